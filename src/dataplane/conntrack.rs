//! Ends connections that follow rules which are no longer there.
//!
//! The kernel translates every packet of a connection as it did the first one. That is what lets established
//! connections survive a change, and what keeps a UDP client talking to a pod that nobody elected any more. After a
//! change, one listing of the connections is taken, and what must end is deleted by as few deletions as possible:
//!
//! | change | ends |
//! |---|---|
//! | ports are served now | UDP and SCTP flows to them that no rule translated |
//! | ports lead to another pod | nothing ([`UdpHandover::Drain`]), or UDP and SCTP flows to the old pod ([`UdpHandover::Cut`]) |
//! | ports are served no more | UDP and SCTP flows to them |
//! | other sources may connect to ports, and connections are to end with that | every connection from others, TCP too |
//! | a pod leaves with another address | its UDP and SCTP flows with the old one |
//! | a pod leaves with a fixed address | its UDP and SCTP flows that others rewrote to another one |
//! | a pod is gone | every connection through our ports to its address, TCP too: somebody else may get the address |
//!
//! Only connections to our external ports, and those that such pods begin, are touched. Everybody else's are not.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::dataplane::command::CommandError;
use crate::dataplane::settings::MarkBit;
use crate::dataplane::settings::Settings;
use crate::model::address::Family;
use crate::model::handover::UdpHandover;
use crate::model::port::Port;
use crate::model::port::PortRange;
use crate::model::port::Protocol;
use crate::ruleset::diff::Change;
use crate::ruleset::entry::Egress;
use crate::ruleset::entry::Entry;
use crate::ruleset::entry::Key;

/// A tracked connection, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flow {
    /// The protocol.
    protocol: Protocol,
    /// Who started it.
    source: IpAddr,
    /// Where its first packet was sent.
    destination: IpAddr,
    /// To which port.
    port: Port,
    /// Who answers.
    answers_from: IpAddr,
    /// To whom the answer goes.
    answers_to: IpAddr,
    /// The connection mark.
    mark: u32,
}

/// What must end after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CleanUp<'a> {
    /// What changed.
    pub changes: &'a [Change],
    /// Addresses of pods that are gone.
    pub gone: &'a BTreeSet<IpAddr>,
    /// Entries whose connections end when their source may no longer connect.
    pub terminating: &'a BTreeSet<Key>,
    /// What happens when another pod takes over, where an entry says nothing.
    pub handover: UdpHandover,
    /// What entries say of it.
    pub said: &'a BTreeMap<Key, UdpHandover>,
}

/// One deletion: every connection that these all hold for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Deletion {
    /// The protocol.
    protocol: Protocol,
    /// Where the first packet was sent.
    destination: Option<IpAddr>,
    /// To which port.
    port: Option<Port>,
    /// Who started it.
    source: Option<IpAddr>,
    /// Who answers.
    answers_from: Option<IpAddr>,
    /// To whom the answer goes.
    answers_to: Option<IpAddr>,
}

impl CleanUp<'_> {
    /// Whether any connection can be concerned: if not, nothing needs to be listed.
    pub fn concerns(&self, family: Family) -> bool {
        let changed = |change: &Change| match change {
            Change::Added(entry) | Change::Removed(entry) | Change::Replaced { before: entry, .. } => {
                (is_connectionless(entry.key.protocol) || self.terminating.contains(&entry.key))
                    && entry.key.family() == family
            }
            Change::Egress { pod, .. } => Family::of(*pod) == family,
        };
        self.changes.iter().any(changed) || self.gone.iter().any(|ip| Family::of(*ip) == family)
    }
}

/// Judges connections one by one, however many changes there are.
struct Judge<'a> {
    /// What was served until now and what is instead; entries of one ruleset never overlap.
    before: BTreeMap<Key, (&'a Entry, Option<&'a Entry>)>,
    added: BTreeMap<Key, &'a Entry>,
    /// Addresses that pods no longer leave with.
    left: BTreeMap<IpAddr, IpAddr>,
    /// Addresses that pods leave with from now on.
    fixed: BTreeMap<IpAddr, IpAddr>,
    gone: &'a BTreeSet<IpAddr>,
    terminating: &'a BTreeSet<Key>,
    handover: UdpHandover,
    said: &'a BTreeMap<Key, UdpHandover>,
    mark: MarkBit,
}

impl<'a> Judge<'a> {
    fn new(clean_up: &CleanUp<'a>, mark: MarkBit) -> Self {
        let CleanUp { changes, gone, terminating, handover, said } = *clean_up;
        let (mut before, mut added) = (BTreeMap::new(), BTreeMap::new());
        let (mut left, mut fixed) = (BTreeMap::new(), BTreeMap::new());
        for change in changes {
            match change {
                Change::Added(entry) => {
                    added.insert(entry.key, entry);
                }
                Change::Removed(entry) => {
                    before.insert(entry.key, (entry, None));
                }
                Change::Replaced { before: old, after } => {
                    before.insert(old.key, (old, Some(after)));
                }
                Change::Egress { pod, before, after } => {
                    let external = |egress: &Option<Egress>| egress.as_ref().map(|egress| egress.external);
                    let (old, new) = (external(before), external(after));
                    if old != new {
                        left.extend(old.map(|old| (*pod, old)));
                        fixed.extend(new.map(|new| (*pod, new)));
                    }
                }
            }
        }
        Self { before, added, left, fixed, gone, terminating, handover, said, mark }
    }

    /// Whether a connection must end.
    fn ends(&self, flow: &Flow) -> bool {
        let ours = flow.mark & self.mark.get() != 0 && flow.answers_from != flow.destination;
        if ours && self.gone.contains(&flow.answers_from) {
            return true;
        }
        let key =
            Key { external: flow.destination, protocol: flow.protocol, ports: PortRange::single(flow.port) };
        if ours && self.is_shut_out(&key, flow.source) {
            return true;
        }
        if !is_connectionless(flow.protocol) {
            return false;
        }
        let untranslated = |now: &Entry| !ours && now.target.is_some();
        let superseded = |old: &Entry, now: Option<&Entry>| {
            let went_there = ours && old.target.is_some_and(|target| target.ip == flow.answers_from);
            match now {
                None => went_there,
                Some(now) => {
                    let handover = self.said.get(&now.key).copied().unwrap_or(self.handover);
                    let cut = handover == UdpHandover::Cut || now.target.is_none();
                    untranslated(now) || went_there && cut && old.target != now.target
                }
            }
        };
        covering(&self.added, &key).is_some_and(|now| untranslated(now))
            || covering(&self.before, &key).is_some_and(|(old, now)| superseded(old, *now))
            || self.left.get(&flow.source) == Some(&flow.answers_to)
            || self.leaves_wrongly(flow)
    }

    /// Whether a pod began this before it had its fixed address, and others chose another one. What keeps the pod's own address
    /// stays inside the cluster, and so does what was sent on to somebody else.
    fn leaves_wrongly(&self, flow: &Flow) -> bool {
        let is_rewritten = flow.answers_to != flow.source && flow.answers_from == flow.destination;
        is_rewritten && self.fixed.get(&flow.source).is_some_and(|fixed| *fixed != flow.answers_to)
    }

    /// Whether a connection to a port that ends with its permission lost it.
    fn is_shut_out(&self, key: &Key, source: IpAddr) -> bool {
        let Some((_, Some(now))) = covering(&self.before, key) else { return false };
        self.terminating.contains(&now.key) && !admits(now, source)
    }
}

/// The entry that the key's one port belongs to, among entries that do not overlap.
fn covering<'a, T>(entries: &'a BTreeMap<Key, T>, key: &Key) -> Option<&'a T> {
    let end = Key { ports: PortRange::new(key.ports.first(), Port::MAX)?, ..*key };
    let (found, entry) = entries.range(..=end).next_back()?;
    found.overlaps(key).then_some(entry)
}

/// Whether the entry lets a source connect.
fn admits(entry: &Entry, source: IpAddr) -> bool {
    entry.target.is_none() || entry.allowed_sources.is_empty() || entry.allowed_sources.have(source)
}

/// Whether the client does not notice by itself that another pod took over.
fn is_connectionless(protocol: Protocol) -> bool {
    protocol != Protocol::Tcp
}

/// The fewest deletions that end exactly these flows among all that there are.
///
/// A deletion walks the whole table, so one for many flows is worth a search, as long as it takes no other flow along.
fn deletions(all: &[Flow], ending: &BTreeSet<&Flow>) -> BTreeSet<Deletion> {
    let mut deletions = BTreeSet::new();
    let mut judged: BTreeMap<Deletion, bool> = BTreeMap::new();
    for flow in ending {
        let exact = Deletion {
            protocol: flow.protocol,
            destination: Some(flow.destination),
            port: Some(flow.port),
            source: Some(flow.source),
            answers_from: Some(flow.answers_from),
            answers_to: Some(flow.answers_to),
        };
        let to_pod = Deletion { source: None, port: None, answers_to: None, ..exact.clone() };
        let to_port = Deletion { source: None, answers_to: None, ..exact.clone() };
        let from_pod = Deletion { destination: None, port: None, answers_from: None, ..exact.clone() };
        let harmless = |wide: &Deletion| {
            let judge = || all.iter().all(|other| !wide.covers(other) || ending.contains(other));
            *judged.entry(wide.clone()).or_insert_with(judge)
        };
        let widest = [to_pod, to_port, from_pod].into_iter().find(harmless);
        deletions.insert(widest.unwrap_or(exact));
    }
    deletions
}

impl Deletion {
    fn covers(&self, flow: &Flow) -> bool {
        self.protocol == flow.protocol
            && self.destination.is_none_or(|destination| destination == flow.destination)
            && self.port.is_none_or(|port| port == flow.port)
            && self.source.is_none_or(|source| source == flow.source)
            && self.answers_from.is_none_or(|from| from == flow.answers_from)
            && self.answers_to.is_none_or(|to| to == flow.answers_to)
    }

    /// As a line for `conntrack --load-file`.
    fn line(&self, family: Family) -> String {
        let mut line = format!("-D -f {} -p {}", option(family), self.protocol);
        for (name, address) in [
            ("--orig-dst", self.destination),
            ("--orig-src", self.source),
            ("--reply-src", self.answers_from),
            ("--reply-dst", self.answers_to),
        ] {
            if let Some(address) = address {
                line.extend([" ", name, " ", &address.to_string()]);
            }
        }
        if let Some(port) = self.port {
            line.extend([" --orig-port-dst ", &port.to_string()]);
        }
        line
    }
}

/// The deletions that end what must end of the connections that were listed. A table of a million is held once, as text: of the
/// rest only those are kept that a deletion could take along, as it has their destination or their source.
fn deletions_of(listed: &str, judge: &Judge<'_>) -> BTreeSet<Deletion> {
    let ending: BTreeSet<Flow> = parse(listed).filter(|flow| judge.ends(flow)).collect();
    if ending.is_empty() {
        return BTreeSet::new();
    }
    let destinations: BTreeSet<IpAddr> = ending.iter().map(|flow| flow.destination).collect();
    let sources: BTreeSet<IpAddr> = ending.iter().map(|flow| flow.source).collect();
    let is_near = |flow: &Flow| destinations.contains(&flow.destination) || sources.contains(&flow.source);
    let near: Vec<Flow> = parse(listed).filter(is_near).collect();
    deletions(&near, &ending.iter().collect())
}

/// Reads the lines of `conntrack -L`; what is neither TCP, UDP nor SCTP is skipped.
fn parse(listed: &str) -> impl Iterator<Item = Flow> {
    listed.lines().filter_map(parse_line)
}

/// Reads `udp 17 29 src=… dst=… sport=… dport=… [UNREPLIED] src=… dst=… sport=… dport=… mark=4096 use=1`.
fn parse_line(line: &str) -> Option<Flow> {
    let mut words = line.split_ascii_whitespace();
    let protocol = words.next()?.parse().ok()?;
    let (mut sources, mut destinations, mut ports, mut mark) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for (name, value) in words.filter_map(|word| word.split_once('=')) {
        match name {
            "src" => sources.push(value.parse().ok()?),
            "dst" => destinations.push(value.parse().ok()?),
            "dport" => ports.push(value.parse::<u16>().ok()?),
            "mark" => mark = value.parse().ok()?,
            _ => {}
        }
    }
    let ([source, answers_from], [destination, answers_to]) =
        (sources[..].try_into().ok()?, destinations[..].try_into().ok()?);
    let port = Port::new(*ports.first()?)?;
    Some(Flow { protocol, source, destination, port, answers_from, answers_to, mark })
}

/// Reads what `conntrack -L` may have printed, for the fuzzer: nothing may panic, and whatever is to end does.
#[doc(hidden)]
pub fn read_listed(listed: &str) {
    let flows: Vec<Flow> = parse(listed).collect();
    let ending: BTreeSet<&Flow> = flows.iter().step_by(2).collect();
    let deletions = deletions(&flows, &ending);
    for flow in ending {
        assert!(deletions.iter().any(|deletion| deletion.covers(flow)), "{flow:?}");
    }
}

const fn option(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}

/// Ends what must end and returns how many deletions that took.
///
/// A missing `conntrack` program is an error that callers should only warn about: rules work without it, but UDP
/// clients may stay with an old pod until their flow times out.
pub async fn clean_up(settings: &Settings, clean_up: &CleanUp<'_>) -> Result<usize, CommandError> {
    let mut made = 0;
    for family in Family::ALL.into_iter().filter(|family| clean_up.concerns(*family)) {
        let listed = settings.tools.run("conntrack", &["-L", "-f", option(family)], "").await?;
        let deletions = deletions_of(&listed, &Judge::new(clean_up, settings.mark));
        if deletions.is_empty() {
            continue;
        }
        let lines: Vec<String> = deletions.iter().map(|deletion| deletion.line(family)).collect();
        settings.tools.run("conntrack", &["--load-file", "-"], &(lines.join("\n") + "\n")).await?;
        made += deletions.len();
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::Ruleset;
    use crate::ruleset::diff::diff;
    use crate::ruleset::fixtures::endpoint;
    use crate::ruleset::fixtures::ip;
    use crate::ruleset::fixtures::ruleset;
    use crate::ruleset::fixtures::v4_node;

    /// A flow to port 53 of the node, answered by `answers_from`; ours carry the mark.
    fn flow(protocol: Protocol, source: &str, answers_from: &str, mark: u32) -> Flow {
        Flow {
            protocol,
            source: ip(source),
            destination: ip("203.0.113.7"),
            port: Port::new(53).unwrap(),
            answers_from: ip(answers_from),
            answers_to: ip(source),
            mark,
        }
    }

    fn serving(ips: &[&str]) -> Ruleset {
        let of = |protocol: &str| endpoint(&format!("53/{protocol}"), &format!("pod-{}", ips.concat()), ips);
        ruleset(&[of("udp"), of("tcp")], &v4_node())
    }

    /// Changes with nothing special to them.
    fn clean_up(changes: &[Change]) -> CleanUp<'_> {
        CleanUp { changes, gone: &NONE, terminating: &NO_KEYS, handover: UdpHandover::Drain, said: &NOTHING }
    }

    static NONE: BTreeSet<IpAddr> = BTreeSet::new();
    static NO_KEYS: BTreeSet<Key> = BTreeSet::new();
    static NOTHING: BTreeMap<Key, UdpHandover> = BTreeMap::new();

    const OLD: &str = "10.244.1.9";
    const NEW: &str = "10.244.1.10";
    const CLIENT: &str = "198.51.100.9";

    #[test]
    fn what_ends_depends_on_the_change_and_on_whose_the_flow_is() {
        let (nobody, old, new, reserved) =
            (ruleset(&[], &v4_node()), serving(&[OLD]), serving(&[NEW]), serving(&[]));
        let udp = |answers_from, mark| flow(Protocol::Udp, CLIENT, answers_from, mark);
        let tcp = |answers_from, mark| flow(Protocol::Tcp, CLIENT, answers_from, mark);
        let ours = MarkBit::default().get();
        let node = "203.0.113.7";
        for (what, before, after, gone, handover, flow, ends) in [
            ("never translated", &nobody, &old, "", UdpHandover::Drain, udp(node, 0), true),
            ("waiting for a pod", &reserved, &old, "", UdpHandover::Drain, udp(node, 0), true),
            ("tcp to the node", &nobody, &old, "", UdpHandover::Drain, tcp(node, 0), false),
            ("drained", &old, &new, "", UdpHandover::Drain, udp(OLD, ours), false),
            ("cut", &old, &new, "", UdpHandover::Cut, udp(OLD, ours), true),
            ("already at the new pod", &old, &new, "", UdpHandover::Cut, udp(NEW, ours), false),
            ("tcp is never cut", &old, &new, "", UdpHandover::Cut, tcp(OLD, ours), false),
            ("removed", &old, &nobody, "", UdpHandover::Drain, udp(OLD, ours), true),
            ("tcp of a removed entry", &old, &nobody, "", UdpHandover::Drain, tcp(OLD, ours), false),
            ("no pod left", &old, &reserved, "", UdpHandover::Drain, udp(OLD, ours), true),
            ("pod gone", &new, &new, OLD, UdpHandover::Drain, udp(OLD, ours), true),
            ("pod gone, tcp", &new, &new, OLD, UdpHandover::Drain, tcp(OLD, ours), true),
            ("pod gone, another service's flow", &new, &new, OLD, UdpHandover::Drain, tcp(OLD, 0), false),
        ] {
            let changes = diff(before, after);
            let gone: BTreeSet<IpAddr> = gone.parse().into_iter().collect();
            let clean_up = CleanUp { handover, gone: &gone, ..clean_up(&changes) };
            assert_eq!(Judge::new(&clean_up, MarkBit::default()).ends(&flow), ends, "{what}");
        }
    }

    #[test]
    fn what_an_entry_says_of_its_flows_counts_before_what_the_node_does() {
        let (before, after) = (serving(&[OLD]), serving(&[NEW]));
        let changes = diff(&before, &after);
        let key = |protocol| {
            let entry = after.entries().find(|entry| entry.key.protocol == protocol);
            entry.map(|entry| entry.key).unwrap()
        };
        let ours = MarkBit::default().get();
        for (handover, said, protocol, ends) in [
            (UdpHandover::Drain, Some((Protocol::Udp, UdpHandover::Cut)), Protocol::Udp, true),
            (UdpHandover::Cut, Some((Protocol::Udp, UdpHandover::Drain)), Protocol::Udp, false),
            (UdpHandover::Cut, Some((Protocol::Tcp, UdpHandover::Drain)), Protocol::Udp, true),
            (UdpHandover::Drain, Some((Protocol::Tcp, UdpHandover::Cut)), Protocol::Tcp, false),
            (UdpHandover::Drain, None, Protocol::Udp, false),
        ] {
            let said = said.map(|(protocol, handover)| (key(protocol), handover)).into_iter().collect();
            let clean_up = CleanUp { handover, said: &said, ..clean_up(&changes) };
            let judge = Judge::new(&clean_up, MarkBit::default());
            assert_eq!(judge.ends(&flow(protocol, CLIENT, OLD, ours)), ends, "{handover:?} {said:?}");
        }
    }

    #[test]
    fn a_pod_that_leaves_with_another_address_loses_its_old_udp_flows() {
        let (before, after) = (serving(&[OLD]), ruleset(&[], &v4_node()));
        let changes = diff(&before, &after);
        let clean_up = clean_up(&changes);
        let judge = Judge::new(&clean_up, MarkBit::default());
        let outbound = |answers_to: &str| Flow {
            source: ip(OLD),
            destination: ip("192.0.2.1"),
            answers_to: ip(answers_to),
            ..flow(Protocol::Udp, OLD, "192.0.2.1", 0)
        };
        assert!(judge.ends(&outbound("203.0.113.7")));
        assert!(!judge.ends(&outbound("198.51.100.1")), "it left with another address already");
    }

    #[test]
    fn what_a_pod_began_with_another_address_ends_when_it_gets_its_fixed_one() {
        let changes = diff(&ruleset(&[], &v4_node()), &serving(&[OLD]));
        let clean_up = clean_up(&changes);
        assert!(clean_up.concerns(Family::V4));
        let judge = Judge::new(&clean_up, MarkBit::default());
        let to = |source: &str, (destination, answers_from): (&str, &str), answers_to: &str| Flow {
            source: ip(source),
            destination: ip(destination),
            answers_from: ip(answers_from),
            answers_to: ip(answers_to),
            ..flow(Protocol::Udp, source, answers_from, 0)
        };
        let outside = ("192.0.2.1", "192.0.2.1");
        for (what, flow, ends) in [
            ("masqueraded by others", to(OLD, outside, "10.0.0.7"), true),
            ("with the fixed address", to(OLD, outside, "203.0.113.7"), false),
            ("inside the cluster", to(OLD, outside, OLD), false),
            ("to a Service", to(OLD, ("10.96.0.10", NEW), "10.0.0.7"), false),
            ("of another pod", to(NEW, outside, "10.0.0.7"), false),
            ("tcp", Flow { protocol: Protocol::Tcp, ..to(OLD, outside, "10.0.0.7") }, false),
        ] {
            assert_eq!(judge.ends(&flow), ends, "{what}");
        }
    }

    #[test]
    fn what_passed_by_rules_that_were_put_right_ends_and_nothing_else() {
        let served = serving(&[OLD]);
        let same = |entry: &Entry| Change::Replaced { before: entry.clone(), after: entry.clone() };
        let changes: Vec<_> = served.entries().map(same).collect();
        let clean_up = CleanUp { handover: UdpHandover::Cut, ..clean_up(&changes) };
        let judge = Judge::new(&clean_up, MarkBit::default());
        let ours = MarkBit::default().get();
        for (protocol, answers_from, mark, ends) in [
            (Protocol::Udp, "203.0.113.7", 0, true),
            (Protocol::Udp, OLD, ours, false),
            (Protocol::Tcp, "203.0.113.7", 0, false),
        ] {
            assert_eq!(judge.ends(&flow(protocol, CLIENT, answers_from, mark)), ends, "{protocol}");
        }
    }

    #[test]
    fn what_cannot_be_concerned_is_not_even_listed() {
        let web = || endpoint("80/tcp", "dns", &[OLD]);
        let tcp = ruleset(&[endpoint("53/tcp", "dns", &[OLD]), web()], &v4_node());
        let changes = diff(&ruleset(&[web()], &v4_node()), &tcp);
        let clean_up = CleanUp { handover: UdpHandover::Cut, ..clean_up(&changes) };
        assert!(!clean_up.concerns(Family::V4));
        let gone = [ip(OLD)].into();
        assert!(CleanUp { gone: &gone, ..clean_up }.concerns(Family::V4));
        let terminating = tcp.entries().map(|entry| entry.key).collect();
        assert!(CleanUp { terminating: &terminating, ..clean_up }.concerns(Family::V4));
    }

    #[test]
    fn connections_end_with_their_permission_only_where_that_was_asked_for() {
        let from = |sources: &[&str]| {
            let of = |protocol: &str| endpoint(&format!("53/{protocol}"), "dns", &[OLD]).from(sources);
            ruleset(&[of("udp"), of("tcp")], &v4_node())
        };
        let (before, after) = (from(&["198.51.100.0/24"]), from(&["198.51.100.8/30", "192.0.2.0/24"]));
        let changes = diff(&before, &after);
        let (all, none) = (after.entries().map(|entry| entry.key).collect(), BTreeSet::new());
        let ours = MarkBit::default().get();
        for (protocol, source, mark, terminating, ends) in [
            (Protocol::Tcp, "198.51.100.7", ours, &all, true),
            (Protocol::Udp, "198.51.100.7", ours, &all, true),
            (Protocol::Tcp, "198.51.100.9", ours, &all, false),
            (Protocol::Tcp, "198.51.100.7", 0, &all, false),
            (Protocol::Tcp, "198.51.100.7", ours, &none, false),
            (Protocol::Udp, "198.51.100.7", ours, &none, false),
        ] {
            let clean_up = CleanUp { terminating, ..clean_up(&changes) };
            let judge = Judge::new(&clean_up, MarkBit::default());
            assert_eq!(judge.ends(&flow(protocol, source, OLD, mark)), ends, "{protocol} {source} {mark}");
        }
    }

    #[test]
    fn one_deletion_ends_many_flows_unless_it_would_take_another_along() {
        let udp = |source: &str, answers_from| flow(Protocol::Udp, source, answers_from, 0x1000);
        let lines = |all: &[Flow], ending: &[usize]| -> Vec<String> {
            let ending = ending.iter().map(|index| &all[*index]).collect();
            deletions(all, &ending).iter().map(|deletion| deletion.line(Family::V4)).collect()
        };
        let all = [udp("198.51.100.1", OLD), udp("198.51.100.2", OLD), udp("198.51.100.3", NEW)];
        assert_eq!(lines(&all, &[0, 1]), ["-D -f ipv4 -p udp --orig-dst 203.0.113.7 --reply-src 10.244.1.9"]);

        let other_port = Flow { port: Port::new(54).unwrap(), ..all[0].clone() };
        let all = [all[0].clone(), all[1].clone(), other_port];
        assert_eq!(
            lines(&all, &[0, 1]),
            ["-D -f ipv4 -p udp --orig-dst 203.0.113.7 --reply-src 10.244.1.9 --orig-port-dst 53"]
        );
        assert_eq!(
            lines(&all, &[0]),
            ["-D -f ipv4 -p udp --orig-dst 203.0.113.7 --orig-src 198.51.100.1 --reply-src 10.244.1.9 \
              --reply-dst 198.51.100.1 --orig-port-dst 53"]
        );
    }

    #[test]
    fn a_deletion_takes_nothing_along_that_shares_an_address_with_what_ends() {
        // One pod's fixed address changed; the other talks to the same resolver.
        let line = |pod: &str, port: u16| {
            format!(
                "udp 17 29 src={pod} dst=192.0.2.1 sport={port} dport=53 src=192.0.2.1 dst=203.0.113.7 sport=53 dport={port} mark=0 use=1\n"
            )
        };
        let listed = [line(OLD, 1), line(OLD, 2), line(NEW, 3)].concat();
        let changes = diff(&serving(&[OLD]), &ruleset(&[], &v4_node()));
        let clean_up = clean_up(&changes);
        let deletions = deletions_of(&listed, &Judge::new(&clean_up, MarkBit::default()));
        let lines: Vec<_> = deletions.iter().map(|deletion| deletion.line(Family::V4)).collect();
        assert_eq!(lines, ["-D -f ipv4 -p udp --orig-src 10.244.1.9 --reply-dst 203.0.113.7"]);
    }

    #[test]
    fn connections_are_read_as_conntrack_lists_them() {
        let listed = "\
udp      17 29 src=198.51.100.9 dst=203.0.113.7 sport=40000 dport=53 [UNREPLIED] src=10.244.1.9 dst=198.51.100.9 sport=53 dport=40000 mark=4096 use=1
tcp      6 431999 ESTABLISHED src=fd00::1 dst=2001:db8::7 sport=5 dport=53 src=fd00::9 dst=fd00::1 sport=53 dport=5 [ASSURED] mark=0 use=1
icmp     1 29 src=10.244.1.9 dst=198.51.100.9 type=8 code=0 id=1 src=198.51.100.9 dst=203.0.113.8 type=0 code=0 id=1 mark=0 use=1
";
        let flows: Vec<_> = parse(listed).collect();
        assert_eq!(flows.len(), 2);
        assert_eq!(flows[0], flow(Protocol::Udp, CLIENT, OLD, 4096));
        assert_eq!((flows[1].protocol, flows[1].answers_from), (Protocol::Tcp, ip("fd00::9")));
    }
}
