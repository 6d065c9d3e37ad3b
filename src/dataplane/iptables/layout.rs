//! Lays a [`Ruleset`] out as chains: which rules stand where, and why in this order.
//!
//! The number of chains and the length of each are bounded by how many external addresses and how many groups of 64
//! ports are in use, not by how many entries there are, and nothing per entry is passed by packets of established
//! connections. One changed entry changes rules of one short chain.
//!
//! Connections to external ports of ours carry one bit of the connection mark. It is set in the same chain that
//! rewrites the destination, so a connection that has the bit and was *not* rewritten came to a reserved port that
//! leads nowhere, or from a source that is not allowed: it is dropped before anybody else on the node can answer.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use ipnet::IpNet;
use ipnet::Ipv4Net;
use ipnet::Ipv6Net;

use crate::dataplane::iptables::lists;
use crate::dataplane::iptables::names::Bucket;
use crate::dataplane::iptables::names::Names;
use crate::dataplane::iptables::names::egress_net;
use crate::dataplane::iptables::position::rejects_everything;
use crate::dataplane::iptables::rule::Action;
use crate::dataplane::iptables::rule::Bits;
use crate::dataplane::iptables::rule::Match;
use crate::dataplane::iptables::rule::Rule;
use crate::dataplane::iptables::rule::State;
use crate::dataplane::iptables::table::TableName;
use crate::dataplane::iptables::table::Tables;
use crate::dataplane::settings::ReturnPath;
use crate::dataplane::settings::Settings;
use crate::model::address::Family;
use crate::model::port::PortRange;
use crate::model::port::Protocol;
use crate::ruleset::Ruleset;
use crate::ruleset::entry::Entry;
use crate::ruleset::served;

/// The comment of the rule that tells which layout the chains have. Chains of another version are rewritten whole.
pub const SKELETON: &str = "pinhole:skeleton:1";
/// What the comment begins with in every version.
pub(crate) const SKELETON_OF_ANY_VERSION: &str = "pinhole:skeleton:";
/// The packet mark by which kube-proxy asks for masquerading. Its rule for that may stand behind ours.
const KUBE_MASQUERADE: u32 = 0x4000;

/// The chains that a node should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Chains of the filter table.
    pub filter: BTreeMap<String, Vec<Rule>>,
    /// Chains of the mangle table.
    pub mangle: BTreeMap<String, Vec<Rule>>,
    /// Chains of the nat table.
    pub nat: BTreeMap<String, Vec<Rule>>,
}

impl Layout {
    /// The chains of one table.
    pub const fn get(&self, table: TableName) -> &BTreeMap<String, Vec<Rule>> {
        match table {
            TableName::Filter => &self.filter,
            TableName::Mangle => &self.mangle,
            TableName::Nat => &self.nat,
        }
    }
}

/// Lays out the rules of one family.
pub fn layout(ruleset: &Ruleset, family: Family, settings: &Settings) -> Layout {
    let names = Names(&settings.prefix);
    let mark = settings.mark.get();
    let mut layout = Layout::default();
    layout.filter.insert(names.input(), guard(mark).collect());
    let mut forward = forward(ruleset, family, mark);
    let strays = strays(ruleset, family);
    if !strays.is_empty() {
        let jump = Rule::new(Action::Jump(names.strays())).protocol(Protocol::Tcp);
        forward.push(jump.when(Match::State(vec![State::Invalid])));
        layout.filter.insert(names.strays(), strays);
    }
    layout.filter.insert(names.forward(), forward);
    layout.filter.insert(names.accept(), accept(ruleset, family, mark));
    let by_link = by_link(settings, family);
    if !by_link.is_empty() {
        layout.mangle.insert(names.links(), by_link);
    }
    ingress(&mut layout.nat, ruleset, family, names, mark);
    egress(&mut layout.nat, ruleset, family, settings);
    layout
}

/// The one chain that the nftables backend needs of iptables: an accept in another table does not end what iptables
/// refuses. Nothing where iptables lets forwarded packets pass anyway.
pub fn shim(tables: &Tables, ruleset: &Ruleset, family: Family, settings: &Settings) -> Layout {
    let forward = tables.filter.chains.get("FORWARD");
    let refuses = forward.is_some_and(|forward| {
        forward.policy.as_deref() == Some("DROP") || forward.rules.iter().any(rejects_everything)
    });
    let mut layout = Layout::default();
    if refuses {
        let accept = accept(ruleset, family, settings.mark.get());
        layout.filter.insert(Names(&settings.prefix).accept(), accept);
    }
    layout
}

/// What our own NAT sent on, and what pods of other nodes send through this one to where they show their fixed address. For
/// the pods of this node its CNI plugin does the latter, and theirs it does not know.
fn accept(ruleset: &Ruleset, family: Family, mark: u32) -> Vec<Rule> {
    let mut rules = vec![ours(mark, Rule::new(Action::Accept))];
    let far = far(ruleset, family, ruleset.egress_of_family(family).map(|egress| egress.pod));
    if far.is_empty() {
        return rules;
    }
    let known = || Match::State(vec![State::Related, State::Established]);
    rules.extend(far.iter().map(|pod| Rule::new(Action::Accept).to(*pod).when(known())));
    let inside =
        ruleset.pod_cidrs(family).chain(ruleset.cluster_cidrs(family)).chain(ruleset.sheltered(family));
    rules.extend(inside.map(|net| Rule::new(Action::Return).to(*net)));
    rules.extend(far.into_iter().map(|pod| Rule::new(Action::Accept).from(pod)));
    rules
}

/// Which of these are pods of other nodes.
fn far(ruleset: &Ruleset, family: Family, pods: impl IntoIterator<Item = IpAddr>) -> Vec<IpNet> {
    let is_local = |pod: &IpAddr| ruleset.pod_cidrs(family).any(|net| net.contains(pod));
    pods.into_iter().filter(|pod| !is_local(pod)).map(IpNet::from).collect()
}

/// Adds the condition that a connection was sent on by our own chains.
fn ours(mark: u32, rule: Rule) -> Rule {
    rule.when(Match::Connmark(Bits::set(mark))).when(Match::State(vec![State::Dnat]))
}

/// The first rule is also the pin: as long as one rule looks at connections, the kernel keeps track of them. Without
/// any, established connections would break the moment the last entry goes (R43).
fn guard(mark: u32) -> impl Iterator<Item = Rule> {
    let known = Match::State(vec![State::Related, State::Established]);
    let unanswered = Match::State(vec![State::New]);
    [
        Rule::new(Action::Return).when(known).comment(SKELETON),
        Rule::new(Action::Drop).when(Match::Connmark(Bits::set(mark))).when(unanswered).when(Match::NotDnat),
    ]
    .into_iter()
}

fn forward(ruleset: &Ruleset, family: Family, mark: u32) -> Vec<Rule> {
    // A TCP packet that conntrack rejects would leave with the pod's own address, and the other side would answer
    // with a reset (R55).
    let leaking = ruleset.pod_cidrs(family).map(|net| {
        let invalid = Match::State(vec![State::Invalid]);
        Rule::new(Action::Drop).from(*net).protocol(Protocol::Tcp).when(invalid)
    });
    // A connection whose source may no longer connect can be ended, and what its pod still sends would begin it again the
    // other way round.
    let ended = ruleset.restricted_pods(family).into_iter().map(|pod| {
        let unknown = Match::State(vec![State::New]);
        let rule = Rule::new(Action::Drop).from(IpNet::from(pod)).protocol(Protocol::Tcp);
        rule.when(Match::NotSyn).when(unknown)
    });
    guard(mark).chain(leaking).chain(ended).collect()
}

/// Likewise what mapped pods of other nodes send through this one.
fn strays(ruleset: &Ruleset, family: Family) -> Vec<Rule> {
    let mut pods = ruleset.mapped_pods(family);
    pods.extend(ruleset.egress_of_family(family).map(|egress| egress.pod));
    far(ruleset, family, pods).into_iter().map(|pod| Rule::new(Action::Drop).from(pod)).collect()
}

/// Whatever comes in remembers its link; what answers to connections of ours leaves by it.
fn by_link(settings: &Settings, family: Family) -> Vec<Rule> {
    let (links, mark) = (settings.links.now(), settings.mark.get());
    let numbered = |number| Bits::within(number, links.mask());
    let arrivals = links.marked(family).map(|(number, link)| {
        let rule = Rule::new(Action::SetConnmark(numbered(number))).input(link.interface);
        rule.when(Match::State(vec![State::New]))
    });
    let replies = links.marked(family).map(|(number, _)| {
        let ours = Bits::within(number | mark, links.mask() | mark);
        Rule::new(Action::SetMark(numbered(number))).when(Match::Connmark(ours)).when(Match::Reply)
    });
    arrivals.chain(replies).collect()
}

type Chains = BTreeMap<String, Vec<Rule>>;

fn ingress(chains: &mut Chains, ruleset: &Ruleset, family: Family, names: Names<'_>, mark: u32) {
    let served = served(ruleset, family);
    let addresses = names.addresses(served.keys().copied());
    let mut dispatch = Vec::new();
    for ((address, protocol), entries) in served {
        let Some(chain) = addresses.get(&(address, protocol)) else { continue };
        let jump = Rule::new(Action::Jump(chain.clone()));
        dispatch.push(jump.to(IpNet::from(address)).protocol(protocol));

        let mut buckets: BTreeMap<Bucket, Vec<&Entry>> = BTreeMap::new();
        let mut wide = Vec::new();
        for entry in entries {
            match Bucket::of(entry.key.ports) {
                Some(bucket) => buckets.entry(bucket).or_default().push(entry),
                None => wide.push(entry),
            }
        }
        let mut rules = Vec::new();
        for (bucket, entries) in buckets {
            let leaf = names.bucket(chain, bucket);
            rules.push(Rule::new(Action::Jump(leaf.clone())).ports(protocol, bucket.ports()));
            chains.insert(leaf, serve(&entries, protocol, names, mark));
        }
        rules.extend(serve(&wide, protocol, names, mark));
        chains.insert(chain.clone(), rules);
    }
    chains.insert(names.dnat(), dispatch);
    lists::lay_out(chains, ruleset, family, names);
}

/// Marks what is meant for these entries, then sends it to their pods.
fn serve(entries: &[&Entry], protocol: Protocol, names: Names<'_>, mark: u32) -> Vec<Rule> {
    let mark_rule = |ports| Rule::new(Action::SetConnmark(Bits::set(mark))).ports(protocol, ports);
    let with_pod = entries.iter().filter(|entry| entry.target.is_some());
    let mut rules: Vec<_> = runs(with_pod.map(|entry| entry.key.ports)).into_iter().map(mark_rule).collect();
    // The owner of ports that lead nowhere shows only here.
    let reserved = entries.iter().filter(|entry| entry.target.is_none());
    rules.extend(reserved.map(|entry| mark_rule(entry.key.ports).comment(entry.owner.comment())));
    rules.extend(entries.iter().flat_map(|entry| dnat(entry, names)));
    rules
}

/// Joins ports that follow each other, so that a full bucket is marked by one rule.
fn runs(ports: impl Iterator<Item = PortRange>) -> Vec<PortRange> {
    let mut runs: Vec<PortRange> = Vec::new();
    for ports in ports {
        match runs.last_mut() {
            Some(run) if run.last().checked_add(1) == Some(ports.first()) => {
                *run = PortRange::new(run.first(), ports.last()).unwrap_or(*run);
            }
            _ => runs.push(ports),
        }
    }
    runs
}

/// One rule per allowed source, or one behind the list of them. What matches none keeps its mark and is dropped by the guard.
fn dnat(entry: &Entry, names: Names<'_>) -> Vec<Rule> {
    let (Some(target), Some(ports)) = (entry.target, entry.target_ports()) else { return Vec::new() };
    // A range that keeps its ports needs no port map; a single port is always named.
    let kept = !ports.is_single() && ports == entry.key.ports;
    let action = Action::Dnat { to: target.ip, ports: (!kept).then_some(ports) };
    let rule = Rule::new(action).ports(entry.key.protocol, entry.key.ports).comment(entry.owner.comment());
    if entry.allowed_sources.is_empty() {
        return vec![rule];
    }
    if entry.allowed_sources.is_shared() {
        let list = Rule::new(Action::Jump(names.list(entry.allowed_sources.id())));
        return vec![list.ports(entry.key.protocol, entry.key.ports), rule];
    }
    entry.allowed_sources.iter().map(|source| rule.clone().from(*source)).collect()
}

fn egress(chains: &mut Chains, ruleset: &Ruleset, family: Family, settings: &Settings) {
    let (names, mark) = (Names(&settings.prefix), settings.mark.get());
    let mut nets: BTreeMap<IpNet, Vec<Rule>> = BTreeMap::new();
    for egress in ruleset.egress().filter(|egress| Family::of(egress.pod) == family) {
        let rule = Rule::new(Action::Snat(egress.external)).from(IpNet::from(egress.pod));
        nets.entry(egress_net(egress.pod)).or_default().push(rule.comment(egress.owner.comment()));
    }
    let leaves = names.egress(nets.values().flatten().filter_map(|rule| Some(rule.source?.addr())));

    let mut rules = vec![Rule::new(Action::Return).when(Match::Mark(Bits::set(KUBE_MASQUERADE)))];
    // A pod that connects to its own or a neighbour's external address must get the answer from the node: sent
    // directly, it would come from an address that the pod never talked to (R17, R18).
    rules.extend(ruleset.pod_cidrs(family).map(|net| ours(mark, Rule::new(Action::Masquerade).from(*net))));
    let pods: Vec<_> = ruleset.pod_cidrs(family).copied().collect();
    let cluster: Vec<_> = ruleset.cluster_cidrs(family).copied().chain([multicast(family)]).collect();
    let to = |action: Action, nets: &[IpNet]| -> Vec<Rule> {
        nets.iter().map(|net| Rule::new(action.clone()).to(*net)).collect()
    };
    // What we sent on and is for none of this node's pods is for a pod of another node. Its client's address is kept from
    // rules of others, too, such as Flannel's.
    let is_masqueraded = settings.return_path == ReturnPath::Masquerade;
    let remote = if is_masqueraded { Action::Masquerade } else { Action::Accept };
    let masquerade = ruleset.masquerade();
    if masquerade.kept(family).next().is_some() {
        // Only what ends the whole of POSTROUTING keeps rules behind ours from masquerading.
        let mut keep = to(Action::Accept, &pods);
        keep.extend(is_masqueraded.then(|| ours(mark, Rule::new(Action::Return))));
        keep.extend(to(Action::Accept, &cluster));
        chains.insert(names.keep(), keep);
        rules.extend(masquerade.kept(family).map(|net| Rule::new(Action::Jump(names.keep())).from(*net)));
    }
    rules.extend(to(Action::Return, &pods));
    rules.push(ours(mark, Rule::new(remote)));
    rules.extend(to(Action::Return, &cluster));
    let mut jumps = Vec::new();
    for (net, pods) in nets {
        let Some(leaf) = leaves.get(&net) else { continue };
        jumps.push(Rule::new(Action::Jump(leaf.clone())).from(net));
        chains.insert(leaf.clone(), pods);
    }
    let sheltered: Vec<_> = ruleset.sheltered(family).copied().collect();
    if sheltered.is_empty() {
        rules.extend(jumps);
    } else {
        // What returns from there may still be masqueraded.
        rules.push(Rule::new(Action::Jump(names.out())));
        chains.insert(names.out(), to(Action::Return, &sheltered).into_iter().chain(jumps).collect());
    }
    rules.extend(leaving(ruleset, family));
    chains.insert(names.snat(), rules);
}

/// What pods without a fixed address leave the cluster with.
fn leaving(ruleset: &Ruleset, family: Family) -> Vec<Rule> {
    let masquerade = ruleset.masquerade();
    let mut rules = Vec::new();
    for interface in masquerade.excluded_interfaces(family) {
        let by = |action| Rule::new(action).output(*interface);
        rules.extend(masquerade.kept(family).map(|net| by(Action::Accept).from(*net)));
        rules.push(by(Action::Return));
    }
    let outside = |net: &IpNet| Rule::new(Action::Masquerade).from(*net).when(Match::NotLocal);
    rules.extend(masquerade.pods(family).map(outside));
    rules
}

/// Destinations that are never a connection to the outside.
pub fn multicast(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4)),
        Family::V6 => IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8)),
    }
}

/// The address that a rule's destination is, when it is one address.
pub fn single(net: IpNet) -> Option<IpAddr> {
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}
