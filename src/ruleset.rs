//! The NAT that one node should have, as a value: which external ports lead to which pods, which pods leave with
//! which address.
//!
//! [`desired`] computes it from elected endpoints and facts about the node; the dataplane turns it into kernel
//! rules and reads it back from them. Everything here is pure: the same input gives the same rules, and one
//! endpoint that cannot be programmed never keeps another from being programmed.

pub mod brake;
pub mod diff;
pub mod digest;
pub mod election;
pub mod endpoint;
pub mod entry;
pub mod node;
pub mod owner;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

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
use crate::ruleset::node::NodeFacts;
use crate::ruleset::owner::Owner;

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
        let pod_cidrs: BTreeSet<_> = pod_cidrs.into_iter().map(|net| net.trunc()).collect();
        let cluster_cidrs = cluster_cidrs.into_iter().map(|net| net.trunc());
        Self {
            cluster_cidrs: cluster_cidrs.filter(|net| !pod_cidrs.contains(net)).collect(),
            pod_cidrs,
            families: families.into_iter().collect(),
            ..Self::default()
        }
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

    /// The pods that leave the cluster with a fixed address, ordered by pod address.
    pub fn egress(&self) -> impl Iterator<Item = &Egress> {
        self.egress.values()
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

    /// The families that the node has addresses in.
    pub fn families(&self) -> &BTreeSet<Family> {
        &self.families
    }
}

/// What a node should have, and what it cannot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// What should be programmed.
    pub ruleset: Ruleset,
    /// What cannot be, with the reason.
    pub refused: Vec<Refused>,
}

/// The rules that serve these endpoints on this node.
///
/// Endpoints are taken in the given order: when two want one external port, the first has it and the second is
/// refused. An endpoint without addresses reserves its ports, so that nobody else on the node answers for them.
pub fn desired(endpoints: &[Endpoint], node: &NodeFacts) -> Desired {
    let ruleset = Ruleset::new(
        node.pod_cidrs.iter().copied(),
        node.cluster_cidrs.iter().copied(),
        node.addresses.iter().copied().map(Family::of),
    );
    let mut desired = Desired { ruleset, refused: Vec::new() };
    let mut egress: BTreeMap<IpAddr, (EgressRank, Owner)> = BTreeMap::new();
    for endpoint in endpoints {
        let owner = Owner::new(&endpoint.pod, &endpoint.uid);
        match entries_of(endpoint, &owner, node) {
            Err(reason) => desired.refused.push(Refused::new(endpoint, reason)),
            Ok(entries) => {
                for (entry, pod) in entries {
                    let external = entry.key.external;
                    if desired.ruleset.entry(&entry.key) != Some(&entry)
                        && let Err(taken) = desired.ruleset.insert(entry)
                    {
                        desired.refused.push(Refused::new(endpoint, Reason::Taken(taken)));
                        continue;
                    }
                    let Some(pod) = pod else { continue };
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
fn entries_of(
    endpoint: &Endpoint,
    owner: &Owner,
    node: &NodeFacts,
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
            (pod.is_some() || reserve_only).then(|| (entry(endpoint, owner, *external, pod), pod))
        })
        .collect();
    if entries.is_empty() {
        return Err(Reason::FamilyMismatch { external: externals, pod: endpoint.ips.clone() });
    }
    Ok(entries)
}

fn entry(endpoint: &Endpoint, owner: &Owner, external: IpAddr, pod: Option<IpAddr>) -> Entry {
    let mapping = &endpoint.mapping;
    let sources = sources_in(Family::of(external), mapping.allowed_sources());
    let target = pod.filter(|_| sources.is_some());
    Entry {
        key: Key { external, protocol: mapping.protocol(), ports: mapping.external() },
        target: target.map(|ip| Target { ip, first: mapping.target().first() }),
        allowed_sources: sources.filter(|_| target.is_some()).unwrap_or_default(),
        owner: owner.clone(),
    }
}

/// The sources of one family in the shortest form, empty for everybody, `None` for nobody: a list that names only
/// addresses of the other family lets nobody in.
fn sources_in(family: Family, allowed: &[IpNet]) -> Option<Vec<IpNet>> {
    if allowed.is_empty() {
        return Some(Vec::new());
    }
    let nets: Vec<_> =
        allowed.iter().filter(|net| Family::of(net.addr()) == family).map(IpNet::trunc).collect();
    let mut nets = IpNet::aggregate(&nets);
    nets.sort();
    match nets.as_slice() {
        [] => None,
        // iptables does not keep a match on every address.
        [only] if only.prefix_len() == 0 => Some(Vec::new()),
        _ => Some(nets),
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
