//! The NAT that one node should have, as a value: which external ports lead to which pods, which pods leave with
//! which address.
//!
//! [`desired`] computes it from elected endpoints and facts about the node; the dataplane turns it into kernel
//! rules and reads it back from them. Everything here is pure.

pub mod brake;
pub mod desired;
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

use crate::model::address::Family;
use crate::model::port::Port;
use crate::model::port::PortRange;
use crate::model::port::Protocol;
use crate::ruleset::entry::Egress;
use crate::ruleset::entry::Entry;
use crate::ruleset::entry::Key;
use crate::ruleset::masquerade::Masquerade;
use crate::ruleset::owner::Owner;

/// The NAT of one node.
///
/// # Guarantees
/// No two entries share an external port, and no pod address has two egress addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    entries: BTreeMap<Key, Entry>,
    /// What leads to each pod address.
    to: BTreeSet<(IpAddr, Key)>,
    egress: BTreeMap<IpAddr, Egress>,
    pod_cidrs: BTreeSet<IpNet>,
    cluster_cidrs: BTreeSet<IpNet>,
    sheltered: BTreeSet<IpNet>,
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

    /// The same node, whose pods show nobody in these networks a fixed address.
    pub fn with_sheltered(self, networks: impl IntoIterator<Item = IpNet>) -> Self {
        Self { sheltered: shortest(networks), ..self }
    }

    /// The same node, whose pods show no fixed address either where those of another node do not.
    pub fn sheltering_like(self, other: &Self) -> Self {
        let both: Vec<_> = self.sheltered.iter().chain(&other.sheltered).copied().collect();
        self.with_sheltered(both)
    }

    /// The same node, which masquerades what another one does, with the same exemptions.
    pub fn masquerading_like(self, other: &Self) -> Self {
        let mut cluster_cidrs = shortest(self.cluster_cidrs.iter().chain(&other.cluster_cidrs).copied());
        cluster_cidrs.retain(|net| !self.pod_cidrs.contains(net));
        Self { cluster_cidrs, masquerade: other.masquerade.clone(), ..self }
    }

    /// The same node, which serves nobody.
    pub fn without_entries(&self) -> Self {
        let Self { pod_cidrs, cluster_cidrs, sheltered, families, masquerade, entries: _, to: _, egress: _ } =
            self;
        Self {
            entries: BTreeMap::new(),
            to: BTreeSet::new(),
            egress: BTreeMap::new(),
            pod_cidrs: pod_cidrs.clone(),
            cluster_cidrs: cluster_cidrs.clone(),
            sheltered: sheltered.clone(),
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
        replace(&mut self.sheltered, &other.sheltered);
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

    /// The entries of one owner, ordered by key.
    pub fn entries_owned_by(&self, owner: &Owner) -> impl Iterator<Item = &Entry> {
        self.entries().filter(move |entry| entry.owner == *owner)
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
        self.to.extend(entry.target.map(|target| (target.ip, entry.key)));
        self.entries.insert(entry.key, entry);
        Ok(())
    }

    /// Takes the entry with exactly this key out.
    pub fn remove(&mut self, key: &Key) -> Option<Entry> {
        let removed = self.entries.remove(key)?;
        if let Some(target) = removed.target {
            self.to.remove(&(target.ip, *key));
        }
        Some(removed)
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

    /// The entries that lead to a pod address, ordered by key.
    pub fn entries_to(&self, pod: IpAddr) -> impl Iterator<Item = &Entry> {
        let leading = self.to.range((pod, lowest(lowest_address(Family::of(pod))))..);
        let leading = leading.take_while(move |(target, _)| *target == pod);
        leading.filter_map(|(_, key)| self.entries.get(key))
    }

    /// The pods of a family that entries lead to.
    pub fn mapped_pods(&self, family: Family) -> BTreeSet<IpAddr> {
        let address = lowest_address(family);
        let leading = self.to.range((address, lowest(address))..).map(|(pod, _)| *pod);
        leading.take_while(|pod| Family::of(*pod) == family).collect()
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

    /// Destinations that see no fixed address although nobody says that they are inside the cluster: pods of other nodes can be
    /// among them. What others do to traffic there is theirs.
    pub fn sheltered(&self, family: Family) -> impl Iterator<Item = &IpNet> {
        self.sheltered.iter().filter(move |net| Family::of(net.addr()) == family)
    }

    /// What the node masquerades.
    pub const fn masquerade(&self) -> &Masquerade {
        &self.masquerade
    }

    /// Whether another one masquerades as this does, with the same exemptions, in each family that this has addresses in.
    pub fn is_masqueraded_by(&self, other: &Self) -> bool {
        let is_same = |family: Family| {
            let (wanted, found) = (&self.masquerade, &other.masquerade);
            wanted.pods(family).eq(found.pods(family))
                && wanted.excluded_interfaces(family).eq(found.excluded_interfaces(family))
                && wanted.kept(family).eq(found.kept(family))
                && self.cluster_cidrs(family).eq(other.cluster_cidrs(family))
        };
        self.families.iter().copied().all(is_same)
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

/// Every protocol that `ruleset` serves on each external address of a family.
pub fn served(ruleset: &Ruleset, family: Family) -> BTreeMap<(IpAddr, Protocol), Vec<&Entry>> {
    let mut served: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for entry in ruleset.entries_of(family) {
        served.entry((entry.key.external, entry.key.protocol)).or_default().push(entry);
    }
    served
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::fixtures::endpoint;
    use crate::ruleset::fixtures::ip;
    use crate::ruleset::fixtures::net;
    use crate::ruleset::fixtures::ruleset;
    use crate::ruleset::fixtures::v4_node;

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
    fn what_is_masqueraded_is_compared_in_the_families_of_the_node() {
        let masquerading = |pods: &[&str], exempt: &[&str], families: &[Family]| {
            let ruleset = Ruleset::new([], exempt.iter().map(|text| net(text)), families.iter().copied());
            ruleset.with_masquerade(Masquerade::new(pods.iter().map(|text| net(text)), [], []))
        };
        let wanted = masquerading(&["10.244.1.0/24", "fd00:1::/64"], &["10.0.0.0/8"], &[Family::V4]);
        for (pods, exempt, expected) in [
            (&["10.244.1.0/24"][..], &["10.0.0.0/8"][..], true),
            (&["10.244.2.0/24"], &["10.0.0.0/8"], false),
            (&["10.244.1.0/24"], &["10.0.0.0/9"], false),
            (&[], &["10.0.0.0/8"], false),
        ] {
            let found = masquerading(pods, exempt, &[]);
            assert_eq!(wanted.is_masqueraded_by(&found), expected, "{pods:?} {exempt:?}");
        }
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
