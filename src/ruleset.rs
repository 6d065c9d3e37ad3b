//! The NAT that one node should have, as a value: which external ports lead to which pods, which pods leave with
//! which address.
//!
//! [`desired`] computes it from elected endpoints and facts about the node; the dataplane turns it into kernel
//! rules and reads it back from them. Everything here is pure: the same input gives the same rules, and one
//! endpoint that cannot be programmed never keeps another from being programmed.

pub mod brake;
pub mod diff;
pub mod election;
pub mod endpoint;
pub mod entry;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod masquerade;
pub mod node;
pub mod owner;
pub mod sources;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use ipnet::IpNet;

use crate::model::address::ExternalAddress;
use crate::model::address::Family;
use crate::model::mapping::Address;
use crate::model::port::Port;
use crate::model::port::PortRange;
use crate::model::port::Protocol;
use crate::ruleset::endpoint::Endpoint;
use crate::ruleset::endpoint::Reason;
use crate::ruleset::endpoint::Refused;
use crate::ruleset::entry::Egress;
use crate::ruleset::entry::Entry;
use crate::ruleset::entry::Key;
use crate::ruleset::entry::Target;
use crate::ruleset::masquerade::Masquerade;
use crate::ruleset::node::NodeFacts;
use crate::ruleset::owner::Owner;
use crate::ruleset::sources::Sources;

/// The NAT of one node.
///
/// # Guarantees
/// No two entries share an external port, and no pod address has two egress addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    entries: BTreeMap<Key, Entry>,
    egress: BTreeMap<IpAddr, Egress>,
    pod_cidrs: BTreeSet<IpNet>,
    cluster_cidrs: BTreeSet<IpNet>,
    families: BTreeSet<Family>,
    masquerade: Masquerade,
}

/// An entry that was not added because another one holds some of its ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} is already programmed for {owner}")]
pub struct Taken {
    /// What the other entry serves.
    pub key: Key,
    /// The pod that it serves.
    pub owner: Owner,
}

impl Ruleset {
    /// The rules of a node that serves nobody yet; these CIDRs decide what is masqueraded and what never is.
    pub fn new(
        pod_cidrs: impl IntoIterator<Item = IpNet>,
        cluster_cidrs: impl IntoIterator<Item = IpNet>,
        families: impl IntoIterator<Item = Family>,
    ) -> Self {
        let pod_cidrs = shortest(pod_cidrs);
        let mut cluster_cidrs = shortest(cluster_cidrs);
        cluster_cidrs.retain(|net| !pod_cidrs.contains(net));
        Self { cluster_cidrs, pod_cidrs, families: families.into_iter().collect(), ..Self::default() }
    }

    /// The same node, which also masquerades.
    pub fn with_masquerade(self, masquerade: Masquerade) -> Self {
        Self { masquerade, ..self }
    }

    /// The same node, which masquerades what another one does, with the same exemptions.
    pub fn masquerading_like(self, other: &Self) -> Self {
        let mut cluster_cidrs = shortest(self.cluster_cidrs.iter().chain(&other.cluster_cidrs).copied());
        cluster_cidrs.retain(|net| !self.pod_cidrs.contains(net));
        Self { cluster_cidrs, masquerade: other.masquerade.clone(), ..self }
    }

    /// The same node, which serves nobody.
    pub fn without_entries(&self) -> Self {
        let Self { pod_cidrs, cluster_cidrs, families, masquerade, entries: _, egress: _ } = self;
        Self {
            entries: BTreeMap::new(),
            egress: BTreeMap::new(),
            pod_cidrs: pod_cidrs.clone(),
            cluster_cidrs: cluster_cidrs.clone(),
            families: families.clone(),
            masquerade: masquerade.clone(),
        }
    }

    /// Takes over what `other` says of one family besides whom it serves.
    pub fn set_networks(&mut self, family: Family, other: &Self) {
        let replace = |nets: &mut BTreeSet<IpNet>, with: &BTreeSet<IpNet>| {
            let is_meant = |net: &&IpNet| Family::of(net.addr()) == family;
            nets.retain(|net| !is_meant(&net));
            nets.extend(with.iter().filter(is_meant));
        };
        replace(&mut self.pod_cidrs, &other.pod_cidrs);
        replace(&mut self.cluster_cidrs, &other.cluster_cidrs);
        self.masquerade = self.masquerade.with(family, &other.masquerade);
        self.families.insert(family);
    }

    /// The entries, ordered by key.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is served.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry with exactly this key.
    pub fn entry(&self, key: &Key) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// The entries of one family, ordered by key.
    pub fn entries_of(&self, family: Family) -> impl Iterator<Item = &Entry> {
        let entries = self.entries.range(lowest(lowest_address(family))..).map(|(_, entry)| entry);
        entries.take_while(move |entry| entry.key.family() == family)
    }

    /// The entries of one external address, ordered by key.
    pub fn entries_at(&self, external: IpAddr) -> impl Iterator<Item = &Entry> {
        let entries = self.entries.range(lowest(external)..).map(|(_, entry)| entry);
        entries.take_while(move |entry| entry.key.external == external)
    }

    /// An entry that holds some of these ports.
    pub fn overlapping(&self, key: &Key) -> Option<&Entry> {
        // Entries never overlap, so only the one with the highest first port can reach into the range.
        let end = Key { ports: PortRange::new(key.ports.last(), Port::MAX)?, ..*key };
        let (_, entry) = self.entries.range(..=end).next_back()?;
        entry.key.overlaps(key).then_some(entry)
    }

    /// Adds an entry unless another one holds some of its ports.
    pub fn insert(&mut self, entry: Entry) -> Result<(), Taken> {
        if let Some(other) = self.overlapping(&entry.key) {
            return Err(Taken { key: other.key, owner: other.owner.clone() });
        }
        self.entries.insert(entry.key, entry);
        Ok(())
    }

    /// Takes the entry with exactly this key out.
    pub fn remove(&mut self, key: &Key) -> Option<Entry> {
        self.entries.remove(key)
    }

    /// Adds what `other` serves and this does not.
    pub fn complete_with(&mut self, other: Self) {
        for entry in other.entries.into_values() {
            // What this serves counts.
            let _ = self.insert(entry);
        }
        for (pod, egress) in other.egress {
            self.egress.entry(pod).or_insert(egress);
        }
        self.families.extend(other.families);
    }

    /// The pods of a family that only some sources may connect to by TCP.
    pub fn restricted_pods(&self, family: Family) -> BTreeSet<IpAddr> {
        let is_restricted = |entry: &&Entry| {
            entry.key.family() == family
                && entry.key.protocol == Protocol::Tcp
                && !entry.allowed_sources.is_empty()
        };
        self.entries().filter(is_restricted).filter_map(|entry| Some(entry.target?.ip)).collect()
    }

    /// The pods that leave the cluster with a fixed address, ordered by pod address.
    pub fn egress(&self) -> impl Iterator<Item = &Egress> {
        self.egress.values()
    }

    /// The same, of one family.
    pub fn egress_of_family(&self, family: Family) -> impl Iterator<Item = &Egress> {
        let egress = self.egress.range(lowest_address(family)..).map(|(_, egress)| egress);
        egress.take_while(move |egress| Family::of(egress.pod) == family)
    }

    /// Which address the pod with this address leaves the cluster with.
    pub fn egress_of(&self, pod: &IpAddr) -> Option<&Egress> {
        self.egress.get(pod)
    }

    /// Lets a pod leave the cluster with a fixed address; an earlier choice for the same pod address is replaced.
    pub fn set_egress(&mut self, egress: Egress) {
        self.egress.insert(egress.pod, egress);
    }

    /// Ends the fixed address of a pod.
    pub fn remove_egress(&mut self, pod: &IpAddr) -> Option<Egress> {
        self.egress.remove(pod)
    }

    /// The addresses of this node's pods.
    pub fn pod_cidrs(&self, family: Family) -> impl Iterator<Item = &IpNet> {
        self.pod_cidrs.iter().filter(move |net| Family::of(net.addr()) == family)
    }

    /// Destinations inside the cluster, besides this node's pods: traffic to them keeps its source.
    pub fn cluster_cidrs(&self, family: Family) -> impl Iterator<Item = &IpNet> {
        self.cluster_cidrs.iter().filter(move |net| Family::of(net.addr()) == family)
    }

    /// What the node masquerades.
    pub const fn masquerade(&self) -> &Masquerade {
        &self.masquerade
    }

    /// The families that the node has addresses in.
    pub fn families(&self) -> &BTreeSet<Family> {
        &self.families
    }
}

/// Addresses are ordered by family first.
const fn lowest_address(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

/// The lowest key of an address.
const fn lowest(external: IpAddr) -> Key {
    Key { external, protocol: Protocol::Tcp, ports: PortRange::single(Port::MIN) }
}

/// The same addresses in as few networks as possible: a set of networks in the kernel takes no two that overlap.
fn shortest(nets: impl IntoIterator<Item = IpNet>) -> BTreeSet<IpNet> {
    let nets: Vec<_> = nets.into_iter().map(|net| net.trunc()).collect();
    IpNet::aggregate(&nets).into_iter().collect()
}

/// What a node should have, and what it cannot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// What should be programmed.
    pub ruleset: Ruleset,
    /// What cannot be, with the reason.
    pub refused: Vec<Refused>,
    /// Entries whose connections end when their source may no longer connect.
    pub terminating: BTreeSet<Key>,
}

/// The rules that serve these endpoints on this node.
///
/// Endpoints are taken in the given order: when two want one external port, the first has it and the second is
/// refused. An endpoint without addresses reserves its ports, so that nobody else on the node answers for them.
pub fn desired(endpoints: &[Endpoint], node: &NodeFacts) -> Desired {
    let ips = endpoints.iter().flat_map(|endpoint| &endpoint.ips);
    let here = ips.filter(|ip| node.pods.contains(ip)).map(|ip| IpNet::from(*ip));
    let ruleset = Ruleset::new(
        // What is outside of these is taken for a pod of another node.
        node.pod_cidrs.iter().copied().chain(here),
        node.cluster_cidrs
            .iter()
            .copied()
            .chain(node.masquerade.iter().flat_map(masquerade::Policy::exempted)),
        // Every node has loopback addresses of both families, which says nothing.
        node.addresses.iter().filter_map(|ip| ExternalAddress::new(*ip).ok()).map(ExternalAddress::family),
    );
    let masquerade = node.masquerade.as_ref().map(|policy| policy.on(node)).unwrap_or_default();
    let mut desired = Desired { ruleset: ruleset.with_masquerade(masquerade), ..Desired::default() };
    let mut lists = Lists::default();
    let mut egress: BTreeMap<IpAddr, (EgressRank, Owner)> = BTreeMap::new();
    for endpoint in endpoints {
        let owner = Owner::new(&endpoint.pod, &endpoint.uid);
        match entries_of(endpoint, &owner, node, &mut lists) {
            Err(reason) => desired.refused.push(Refused::new(endpoint, reason)),
            Ok(entries) => {
                for (entry, pod) in entries {
                    let key = entry.key;
                    if desired.ruleset.entry(&entry.key) != Some(&entry)
                        && let Err(taken) = desired.ruleset.insert(entry)
                    {
                        desired.refused.push(Refused::new(endpoint, Reason::Taken(taken)));
                        continue;
                    }
                    if endpoint.mapping.terminates_existing() {
                        desired.terminating.insert(key);
                    }
                    let Some(pod) = pod else { continue };
                    let external = key.external;
                    let rank = EgressRank { node: endpoint.mapping.address() == Address::Node, external };
                    let candidate = (rank, owner.clone());
                    let best = egress.entry(pod).or_insert_with(|| candidate.clone());
                    if candidate.0 < best.0 {
                        *best = candidate;
                    }
                }
            }
        }
    }
    for (pod, (rank, owner)) in egress {
        desired.ruleset.set_egress(Egress { pod, external: rank.external, owner });
    }
    desired
}

/// Which of several external addresses a pod leaves with: one that it asked for by name before the node's own, then
/// the lowest, so that the choice does not depend on order (R20).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct EgressRank {
    node: bool,
    external: IpAddr,
}

/// The entries of one endpoint, each with the pod address that it serves in that family.
fn entries_of<'a>(
    endpoint: &'a Endpoint,
    owner: &Owner,
    node: &NodeFacts,
    lists: &mut Lists<'a>,
) -> Result<Vec<(Entry, Option<IpAddr>)>, Reason> {
    if let Some(ip) = endpoint.ips.iter().find(|ip| node.addresses.contains(ip)) {
        return Err(Reason::HostNetwork(*ip));
    }
    let externals = match endpoint.mapping.address() {
        Address::Fixed(address) if node.may_serve(address.ip()) => vec![address.ip()],
        Address::Fixed(address) => return Err(Reason::AddressNotHere(address.ip())),
        Address::Node => node.own_addresses().collect(),
    };
    if externals.is_empty() {
        return Err(Reason::NoNodeAddress);
    }
    let reserve_only = endpoint.ips.is_empty();
    let entries: Vec<_> = externals
        .iter()
        .filter_map(|external| {
            let family = Family::of(*external);
            let pod = endpoint.ips.iter().copied().find(|ip| Family::of(*ip) == family);
            (pod.is_some() || reserve_only).then(|| (entry(endpoint, owner, *external, pod, lists), pod))
        })
        .collect();
    if entries.is_empty() {
        return Err(Reason::FamilyMismatch { external: externals, pod: endpoint.ips.clone() });
    }
    Ok(entries)
}

fn entry<'a>(
    endpoint: &'a Endpoint,
    owner: &Owner,
    external: IpAddr,
    pod: Option<IpAddr>,
    lists: &mut Lists<'a>,
) -> Entry {
    let mapping = &endpoint.mapping;
    let sources = lists.sources(Family::of(external), mapping.allowed_sources());
    let target = pod.filter(|_| sources.is_some());
    Entry {
        key: Key { external, protocol: mapping.protocol(), ports: mapping.external() },
        target: target.map(|ip| Target { ip, first: mapping.target().first() }),
        allowed_sources: sources.filter(|_| target.is_some()).unwrap_or_default(),
        owner: owner.clone(),
    }
}

/// The lists of sources that were brought into their shortest form. Entries with the same one share it.
#[derive(Default)]
struct Lists<'a>(BTreeMap<(Family, &'a [IpNet]), Option<Sources>>);

impl<'a> Lists<'a> {
    fn sources(&mut self, family: Family, allowed: &'a [IpNet]) -> Option<Sources> {
        self.0.entry((family, allowed)).or_insert_with(|| sources_in(family, allowed)).clone()
    }
}

/// The sources of one family in the shortest form, empty for everybody, `None` for nobody: a list that names only
/// addresses of the other family lets nobody in.
fn sources_in(family: Family, allowed: &[IpNet]) -> Option<Sources> {
    if allowed.is_empty() {
        return Some(Sources::default());
    }
    let nets: Vec<_> =
        allowed.iter().filter(|net| Family::of(net.addr()) == family).map(IpNet::trunc).collect();
    let mut nets = IpNet::aggregate(&nets);
    nets.sort();
    match nets.as_slice() {
        [] => None,
        // iptables does not keep a match on every address.
        [only] if only.prefix_len() == 0 => Some(Sources::default()),
        _ => Some(nets.into()),
    }
}

/// Every protocol that `ruleset` serves on each external address of a family.
pub fn served(ruleset: &Ruleset, family: Family) -> BTreeMap<(IpAddr, Protocol), Vec<&Entry>> {
    let mut served: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for entry in ruleset.entries().filter(|entry| entry.key.family() == family) {
        served.entry((entry.key.external, entry.key.protocol)).or_default().push(entry);
    }
    served
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::fixtures::endpoint;
    use crate::ruleset::fixtures::entries;
    use crate::ruleset::fixtures::ip;
    use crate::ruleset::fixtures::net;
    use crate::ruleset::fixtures::node;
    use crate::ruleset::fixtures::ruleset;
    use crate::ruleset::fixtures::v4_node;

    /// The reason why the only endpoint is refused.
    fn refusal(endpoint: Endpoint, node: &NodeFacts) -> Reason {
        let Desired { ruleset, mut refused, .. } = desired(&[endpoint], node);
        assert!(ruleset.is_empty(), "refused and programmed: {ruleset:?}");
        refused.remove(0).reason
    }

    #[test]
    fn r01_one_port_of_two_protocols_is_two_entries() {
        let both = [
            endpoint("5353/tcp", "dns", &["10.244.1.9"]).at(53),
            endpoint("5353/udp", "dns", &["10.244.1.9"]).at(54),
        ];
        assert_eq!(
            entries(&ruleset(&both, &v4_node())),
            ["203.0.113.7:5353/tcp -> 10.244.1.9:53", "203.0.113.7:5353/udp -> 10.244.1.9:54"]
        );
    }

    #[test]
    fn pods_that_run_here_are_pods_of_this_node_whatever_its_networks_say() {
        let here = endpoint("80/tcp", "web", &["10.99.0.9"]);
        let elsewhere = endpoint("81/tcp", "far", &["10.99.0.10"]);
        let node = NodeFacts { pods: [ip("10.99.0.9"), ip("10.99.0.11")].into(), ..v4_node() };
        let nets: Vec<_> =
            ruleset(&[here, elsewhere], &node).pod_cidrs(Family::V4).map(ToString::to_string).collect();
        assert_eq!(nets, ["10.99.0.9/32", "10.244.1.0/24"]);
    }

    #[test]
    fn an_entry_of_the_node_serves_every_family_that_both_sides_have() {
        let dual = endpoint("80/tcp", "web", &["10.244.1.9", "fd00:244:1::9"]).at(8080);
        assert_eq!(
            entries(&ruleset(&[dual], &node())),
            ["203.0.113.7:80/tcp -> 10.244.1.9:8080", "[2001:db8::7]:80/tcp -> [fd00:244:1::9]:8080"]
        );
        let single = endpoint("80/tcp", "web", &["fd00:244:1::9"]);
        assert_eq!(entries(&ruleset(&[single], &node())), ["[2001:db8::7]:80/tcp -> [fd00:244:1::9]:80"]);
    }

    #[test]
    fn networks_that_overlap_or_belong_together_are_one() {
        let nets = ["10.0.0.0/8", "10.244.0.0/16", "172.16.0.0/13", "172.24.0.0/13", "fd00::/8"].map(net);
        let ruleset = Ruleset::new([net("10.244.1.7/24")], nets, []);
        let v4: Vec<_> = ruleset.cluster_cidrs(Family::V4).map(ToString::to_string).collect();
        assert_eq!(v4, ["10.0.0.0/8", "172.16.0.0/12"]);
        let pods: Vec<_> = ruleset.pod_cidrs(Family::V4).map(ToString::to_string).collect();
        assert_eq!(pods, ["10.244.1.0/24"]);
    }

    #[test]
    fn an_endpoint_without_a_pod_reserves_its_ports() {
        let reserved = ruleset(&[endpoint("80/tcp", "web", &[])], &node());
        assert_eq!(
            entries(&reserved),
            ["203.0.113.7:80/tcp -> reserved", "[2001:db8::7]:80/tcp -> reserved"]
        );
        assert_eq!(reserved.egress().count(), 0);
    }

    #[test]
    fn r27_only_addresses_of_the_node_and_included_ones_are_served() {
        for good in ["203.0.113.8:80/tcp", "203.0.113.64:80/tcp", "203.0.113.127:80/tcp"] {
            ruleset(&[endpoint(good, "web", &["10.244.1.9"])], &node());
        }
        for foreign in ["8.8.8.8", "10.96.0.1", "203.0.113.128"] {
            let endpoint = endpoint(&format!("{foreign}:443/tcp"), "web", &["10.244.1.9"]);
            assert_eq!(refusal(endpoint, &node()), Reason::AddressNotHere(ip(foreign)));
        }
    }

    #[test]
    fn r28_an_address_of_a_family_that_the_pod_lacks_is_refused() {
        let reason = refusal(endpoint("[2001:db8::7]:80/tcp", "web", &["10.244.1.9"]), &node());
        assert_eq!(
            reason.to_string(),
            "the external address 2001:db8::7 and the pod's 10.244.1.9 are of different IP families; \
             use an address of the pod's family, or run the pod dual-stack"
        );
    }

    #[test]
    fn a_node_without_an_address_of_its_own_says_so() {
        let bare = NodeFacts { node_v4: None, node_v6: None, ..node() };
        assert_eq!(refusal(endpoint("80/tcp", "web", &["10.244.1.9"]), &bare), Reason::NoNodeAddress);
    }

    #[test]
    fn r21_a_pod_with_the_nodes_own_address_is_refused() {
        let reason = refusal(endpoint("80/tcp", "web", &["203.0.113.7"]), &node());
        assert_eq!(reason, Reason::HostNetwork(ip("203.0.113.7")));
    }

    #[test]
    fn r08_what_cannot_be_served_keeps_nobody_else_from_being_served() {
        let desired = desired(
            &[
                endpoint("8.8.8.8:25/tcp", "thief", &["10.244.1.8"]),
                endpoint("25/tcp", "mail", &["10.244.1.9"]),
                endpoint("20-30/tcp", "late", &["10.244.1.10"]),
                endpoint("53/udp", "dns", &["10.244.1.11"]),
            ],
            &v4_node(),
        );
        assert_eq!(
            entries(&desired.ruleset),
            ["203.0.113.7:25/tcp -> 10.244.1.9:25", "203.0.113.7:53/udp -> 10.244.1.11:53"]
        );
        let refused: Vec<_> = desired.refused.iter().map(|refused| refused.reason.to_string()).collect();
        assert_eq!(
            refused,
            [
                "8.8.8.8 is not an address of this node; add it to an interface of the node, or name its network in \
                 --include-net if it is routed here",
                "203.0.113.7:25/tcp is already programmed for default/mail; one external port leads to one pod, free \
                 it there or choose another"
            ]
        );
    }

    #[test]
    fn the_same_endpoint_twice_is_one_entry() {
        let web = endpoint("80/tcp", "web", &["10.244.1.9"]);
        assert_eq!(ruleset(&[web.clone(), web], &v4_node()).len(), 1);
    }

    #[test]
    fn the_nodes_own_address_by_name_is_the_same_address() {
        let named = endpoint("203.0.113.7:80/tcp", "named", &["10.244.1.8"]);
        let own = endpoint("80/tcp", "own", &["10.244.1.9"]);
        let desired = desired(&[named, own], &v4_node());
        assert_eq!(entries(&desired.ruleset), ["203.0.113.7:80/tcp -> 10.244.1.8:80"]);
        assert!(matches!(desired.refused[0].reason, Reason::Taken(_)));
    }

    #[test]
    fn sources_are_kept_in_the_shortest_form_of_each_family() {
        let dual = |sources: &[&str]| {
            let endpoint = endpoint("80/tcp", "web", &["10.244.1.9", "fd00:244:1::9"]).from(sources);
            let ruleset = ruleset(&[endpoint], &node());
            ruleset
                .entries()
                .map(|entry| (entry.target.is_some(), entry.allowed_sources.to_vec()))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            dual(&["198.51.100.1/24", "198.51.100.128/25", "2001:db8:9::/48"]),
            [(true, vec![net("198.51.100.0/24")]), (true, vec![net("2001:db8:9::/48")])]
        );
        assert_eq!(dual(&["0.0.0.0/0"]), [(true, vec![]), (false, vec![])], "nobody may come by IPv6");
    }

    #[test]
    fn r20_a_pod_leaves_with_the_lowest_address_that_it_asked_for_whatever_the_order() {
        let own = endpoint("80/tcp", "web", &["10.244.1.9"]);
        let low = endpoint("203.0.113.8:80/udp", "web", &["10.244.1.9"]);
        let high = endpoint("203.0.113.65:80/sctp", "web", &["10.244.1.9"]);
        for order in [[&own, &low, &high], [&high, &low, &own], [&low, &own, &high]] {
            let ruleset = ruleset(&order.map(Clone::clone), &node());
            assert_eq!(ruleset.egress_of(&ip("10.244.1.9")).unwrap().external, ip("203.0.113.8"));
        }
        let only_own = ruleset(&[own], &node());
        assert_eq!(only_own.egress_of(&ip("10.244.1.9")).unwrap().external, ip("203.0.113.7"));
    }

    #[test]
    fn r06_a_pods_address_outlives_the_removal_of_one_of_its_entries() {
        let smtp = endpoint("25/tcp", "mail", &["10.244.1.9"]);
        let imap = endpoint("143/tcp", "mail", &["10.244.1.9"]);
        let before = ruleset(&[smtp.clone(), imap], &v4_node());
        let after = ruleset(&[smtp], &v4_node());
        assert_eq!(before.egress().collect::<Vec<_>>(), after.egress().collect::<Vec<_>>());
    }

    #[test]
    fn overlapping_ranges_are_found_from_both_sides() {
        let ruleset = ruleset(&[endpoint("7000-7010/tcp", "rtp", &["10.244.1.9"])], &v4_node());
        let key = |ports: &str, protocol| Key {
            external: ip("203.0.113.7"),
            protocol,
            ports: ports.parse().unwrap(),
        };
        for taken in ["7000", "7010", "6990-7000", "7010-7020", "7004-7005", "1-65535"] {
            assert!(ruleset.overlapping(&key(taken, Protocol::Tcp)).is_some(), "{taken}");
        }
        for free in ["6999", "7011", "1-6999", "7011-65535"] {
            assert!(ruleset.overlapping(&key(free, Protocol::Tcp)).is_none(), "{free}");
        }
        assert!(ruleset.overlapping(&key("7000", Protocol::Udp)).is_none());
    }
}
