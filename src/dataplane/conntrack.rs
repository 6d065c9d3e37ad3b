//! Ends connections that follow rules which are no longer there.
//!
//! The kernel translates every packet of a connection as it did the first one. That is what lets established
//! connections survive a change, and what keeps a UDP client talking to a pod that nobody elected any more. After a
//! change, one listing of the connections is taken, and what must end is deleted by as few deletions as possible:
//!
//! | change | ends |
//! |---|---|
//! | ports are served now | UDP and SCTP flows to them that no rule translated |
//! | ports lead to another pod | nothing ([`Handover::Drain`]), or UDP and SCTP flows to the old pod ([`Handover::Cut`]) |
//! | ports are served no more | UDP and SCTP flows to them |
//! | a pod leaves with another address | its UDP and SCTP flows with the old one |
//! | a pod is gone | every connection through our ports to its address, TCP too: somebody else may get the address |
//!
//! Only connections to our external ports are touched. Everybody else's are not.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::dataplane::command::CommandError;
use crate::dataplane::settings::Settings;
use crate::model::address::Family;
use crate::model::port::Port;
use crate::model::port::Protocol;
use crate::ruleset::diff::Change;
use crate::ruleset::entry::Entry;

/// What happens to UDP and SCTP flows when another pod takes over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Handover {
    /// They stay with the old pod until they end or it is gone.
    #[default]
    Drain,
    /// They end, and the client's next packet reaches the new pod.
    Cut,
}

/// Why a text is not a handover.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a way to hand flows over: write drain or cut")]
pub struct HandoverError(pub String);

impl std::str::FromStr for Handover {
    type Err = HandoverError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "drain" => Ok(Self::Drain),
            "cut" => Ok(Self::Cut),
            _ => Err(HandoverError(text.to_owned())),
        }
    }
}

/// A tracked connection, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// The protocol.
    pub protocol: Protocol,
    /// Who started it.
    pub source: IpAddr,
    /// Where its first packet was sent.
    pub destination: IpAddr,
    /// To which port.
    pub port: Port,
    /// Who answers.
    pub answers_from: IpAddr,
    /// To whom the answer goes.
    pub answers_to: IpAddr,
    /// The connection mark.
    pub mark: u32,
}

/// What must end after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CleanUp<'a> {
    /// What changed.
    pub changes: &'a [Change],
    /// Addresses of pods that are gone.
    pub gone: &'a BTreeSet<IpAddr>,
    /// What happens when another pod takes over.
    pub handover: Handover,
}

/// One deletion: every connection that these all hold for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deletion {
    /// The protocol.
    pub protocol: Protocol,
    /// Where the first packet was sent.
    pub destination: Option<IpAddr>,
    /// To which port.
    pub port: Option<Port>,
    /// Who started it.
    pub source: Option<IpAddr>,
    /// Who answers.
    pub answers_from: Option<IpAddr>,
    /// To whom the answer goes.
    pub answers_to: Option<IpAddr>,
}

impl CleanUp<'_> {
    /// Whether any connection can be concerned: if not, nothing needs to be listed.
    pub fn concerns(&self, family: Family) -> bool {
        let changed = |change: &Change| match change {
            Change::Added(entry) | Change::Removed(entry) => {
                stateless(entry.key.protocol) && entry.key.family() == family
            }
            Change::Replaced { before, .. } => {
                stateless(before.key.protocol) && before.key.family() == family
            }
            Change::Egress { pod, before, .. } => before.is_some() && Family::of(*pod) == family,
        };
        self.changes.iter().any(changed) || self.gone.iter().any(|ip| Family::of(*ip) == family)
    }

    /// Whether a connection must end.
    pub fn ends(&self, flow: &Flow, mark: u32) -> bool {
        let ours = flow.mark & mark != 0 && flow.answers_from != flow.destination;
        if ours && self.gone.contains(&flow.answers_from) {
            return true;
        }
        stateless(flow.protocol) && self.changes.iter().any(|change| self.ended_by(change, flow, ours))
    }

    fn ended_by(&self, change: &Change, flow: &Flow, ours: bool) -> bool {
        match change {
            Change::Added(entry) => meant_for(entry, flow) && !ours && leads_on(entry),
            Change::Removed(entry) => meant_for(entry, flow) && ours && goes_to(entry, flow),
            Change::Replaced { before, after } => {
                let moved = ours && goes_to(before, flow) && before.target != after.target;
                let cut = self.handover == Handover::Cut || after.target.is_none();
                meant_for(before, flow) && (moved && cut || !ours && leads_on(after))
            }
            Change::Egress { pod, before: Some(before), after } => {
                let kept = after.as_ref().is_some_and(|after| after.external == before.external);
                flow.source == *pod && flow.answers_to == before.external && !kept
            }
            Change::Egress { before: None, .. } => false,
        }
    }
}

/// Whether the protocol has no end that the client notices when another pod takes over.
fn stateless(protocol: Protocol) -> bool {
    protocol != Protocol::Tcp
}

fn meant_for(entry: &Entry, flow: &Flow) -> bool {
    entry.key.protocol == flow.protocol
        && entry.key.external == flow.destination
        && entry.key.ports.contains(flow.port)
}

fn leads_on(entry: &Entry) -> bool {
    entry.target.is_some()
}

fn goes_to(entry: &Entry, flow: &Flow) -> bool {
    entry.target.is_some_and(|target| target.ip == flow.answers_from)
}

/// The fewest deletions that end exactly these flows among all that there are.
///
/// A deletion walks the whole table, so one for many flows is worth a search, as long as it takes no other flow along.
pub fn deletions(all: &[Flow], ending: &BTreeSet<&Flow>) -> BTreeSet<Deletion> {
    let mut deletions = BTreeSet::new();
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
        let harmless =
            |deletion: &Deletion| all.iter().all(|other| !deletion.covers(other) || ending.contains(other));
        let widest =
            [to_pod, to_port, from_pod].into_iter().find(|wide| deletions.contains(wide) || harmless(wide));
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

/// Reads the lines of `conntrack -L`; what is neither TCP, UDP nor SCTP is skipped.
pub fn parse(listed: &str) -> Vec<Flow> {
    listed.lines().filter_map(parse_line).collect()
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
        let flows = parse(&listed);
        let mark = settings.mark.get();
        let ending: BTreeSet<&Flow> = flows.iter().filter(|flow| clean_up.ends(flow, mark)).collect();
        let deletions = deletions(&flows, &ending);
        if deletions.is_empty() {
            continue;
        }
        let lines: Vec<String> = deletions.iter().map(|deletion| deletion.line(family)).collect();
        settings.tools.run("conntrack", &["--load-file", "-"], &(lines.join("\n") + "\n")).await?;
        made += deletions.len();
    }
    Ok(made)
}
