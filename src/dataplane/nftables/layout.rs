//! Lays a [`Ruleset`] out as elements, and reads it back from them.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::dataplane::counters::Counters;
use crate::dataplane::nftables::element::Collection;
use crate::dataplane::nftables::element::Data;
use crate::dataplane::nftables::element::ElementKey;
use crate::dataplane::nftables::element::Elements;
use crate::dataplane::nftables::element::Held;
use crate::dataplane::nftables::element::Value;
use crate::dataplane::nftables::element::Wanted;
use crate::model::address::Family;
use crate::model::port::Port;
use crate::model::port::PortRange;
use crate::model::port::Protocol;
use crate::ruleset::Ruleset;
use crate::ruleset::diff::Change;
use crate::ruleset::entry::Egress;
use crate::ruleset::entry::Entry;
use crate::ruleset::entry::Key;
use crate::ruleset::entry::Target;
use crate::ruleset::masquerade::Masquerade;
use crate::ruleset::owner::Owner;
use crate::ruleset::sources::Sources;

/// The longest range that can lead to other ports: nft cannot add to a port, so each takes an element of its own.
pub const LONGEST_SHIFTED_RANGE: u32 = 4096;

/// The comment of every port of a shifted range but the first: it belongs to the same entry as the port before it.
const CONTINUED: &str = "+";

/// Why nft cannot serve an entry at all.
pub fn impossible(entry: &Entry) -> Option<String> {
    let ports = entry.key.ports.count();
    (shifted(entry) && LONGEST_SHIFTED_RANGE < ports).then(|| {
        format!(
            "{ports} ports that lead to other ports are too many for nftables, which takes {LONGEST_SHIFTED_RANGE}; use the same ports on both sides, or split the range"
        )
    })
}

/// Whether the entry is a range that does not keep its ports.
fn shifted(entry: &Entry) -> bool {
    let ports = entry.key.ports;
    !ports.is_single() && entry.target.is_some_and(|target| target.first != ports.first())
}

/// The elements of one family.
pub fn layout(ruleset: &Ruleset, family: Family) -> Wanted {
    let mut wanted = Wanted::new();
    let mut ids = BTreeMap::new();
    let mut add = |collection: Collection, key, data, comment: Option<Arc<str>>| {
        wanted.entry(collection).or_default().insert(key, Value { data, comment });
    };
    for entry in ruleset.entries().filter(|entry| entry.key.family() == family) {
        let Entry { key, target, allowed_sources, owner } = entry;
        add(Collection::Addresses, ElementKey::Address(key.external), Data::None, None);
        let (closed, restricted, listed) = if key.ports.is_single() {
            (Collection::Closed, Collection::Restricted, Collection::Listed)
        } else {
            (Collection::ClosedRanges, Collection::RestrictedRanges, Collection::ListedRanges)
        };
        let Some(target) = target else {
            add(closed, ElementKey::Ports(*key), Data::None, Some(owner.comment()));
            continue;
        };
        if !allowed_sources.is_empty() {
            let id = *ids.entry(allowed_sources).or_insert_with(|| allowed_sources.id());
            add(Collection::Lists, ElementKey::List(id), Data::Networks(allowed_sources.clone()), None);
            add(restricted, ElementKey::Ports(*key), Data::None, None);
            add(listed, ElementKey::Ports(*key), Data::List(id), None);
        }
        if key.ports.is_single() {
            let data = Data::Target(*target);
            add(Collection::Ports, ElementKey::Ports(*key), data, Some(owner.comment()));
        } else if shifted(entry) {
            for (offset, port) in (0..).zip(key.ports.ports()) {
                let key = Key { ports: PortRange::single(port), ..*key };
                let Some(first) = target.first.checked_add(offset) else { continue };
                let comment = if offset == 0 { owner.comment() } else { CONTINUED.into() };
                let data = Data::Target(Target { first, ..*target });
                add(Collection::Ports, ElementKey::Ports(key), data, Some(comment));
            }
        } else {
            let data = Data::Address(target.ip);
            add(Collection::Ranges, ElementKey::Ports(*key), data, Some(owner.comment()));
        }
    }
    for Egress { pod, external, owner } in ruleset.egress().filter(|egress| Family::of(egress.pod) == family)
    {
        let (key, data) = (ElementKey::Address(*pod), Data::Address(*external));
        add(Collection::Egress, key, data, Some(owner.comment()));
    }
    for pod in ruleset.mapped_pods(family).into_iter().filter(|pod| ruleset.egress_of(pod).is_none()) {
        add(Collection::Mapped, ElementKey::Address(pod), Data::None, None);
    }
    for pod in ruleset.restricted_pods(family) {
        add(Collection::RestrictedPods, ElementKey::Address(pod), Data::None, None);
    }
    for net in ruleset.pod_cidrs(family) {
        add(Collection::Pods, ElementKey::Net(*net), Data::None, None);
    }
    for net in ruleset.cluster_cidrs(family) {
        add(Collection::Cluster, ElementKey::Net(*net), Data::None, None);
    }
    for net in ruleset.sheltered(family) {
        add(Collection::Sheltered, ElementKey::Net(*net), Data::None, None);
    }
    let masquerade = ruleset.masquerade();
    for net in masquerade.pods(family) {
        add(Collection::Masqueraded, ElementKey::Net(*net), Data::None, None);
    }
    for net in masquerade.kept(family) {
        add(Collection::Kept, ElementKey::Net(*net), Data::None, None);
    }
    for interface in masquerade.excluded_interfaces(family) {
        add(Collection::ExcludedInterfaces, ElementKey::Interface(*interface), Data::None, None);
    }
    wanted
}

/// The parts of two rulesets in which they differ by these changes, for layouts that differ in the same elements. Of what
/// stays, one entry of each address, list, pod and restricted pod is in both, and the address that a pod leaves with, so that an
/// element that several entries share is not taken for unused, or for new.
pub fn affected(before: &Ruleset, after: &Ruleset, changes: &[Change]) -> (Ruleset, Ruleset) {
    let (mut old, mut new) = (before.without_entries(), after.without_entries());
    let (mut addresses, mut lists, mut pods) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut mapped = BTreeSet::new();
    let mut put = |ruleset: &mut Ruleset, entry: &Entry| {
        addresses.insert(entry.key.external);
        mapped.extend(entry.target.map(|target| target.ip));
        if !entry.allowed_sources.is_empty() {
            lists.insert(entry.allowed_sources.clone());
            pods.extend(entry.target.map(|target| target.ip));
        }
        // Entries of one ruleset do not overlap.
        let _ = ruleset.insert(entry.clone());
    };
    for change in changes {
        match change {
            Change::Removed(entry) => put(&mut old, entry),
            Change::Added(entry) => put(&mut new, entry),
            Change::Replaced { before, after } => {
                put(&mut old, before);
                put(&mut new, after);
            }
            Change::Egress { before, after, .. } => {
                before.iter().cloned().for_each(|egress| old.set_egress(egress));
                after.iter().cloned().for_each(|egress| new.set_egress(egress));
            }
        }
    }
    mapped.extend(changes.iter().filter_map(|change| match change {
        Change::Egress { pod, .. } => Some(*pod),
        _ => None,
    }));
    for pod in mapped {
        if let Some(egress) = before.egress_of(&pod).filter(|egress| after.egress_of(&pod) == Some(*egress)) {
            old.set_egress(egress.clone());
            new.set_egress(egress.clone());
        } else if let Some(entry) =
            before.entries_to(pod).find(|entry| after.entry(&entry.key) == Some(*entry))
        {
            let _ = (old.insert(entry.clone()), new.insert(entry.clone()));
        }
    }
    for address in addresses {
        let stays = before.entries_at(address).find(|entry| old.entry(&entry.key).is_none());
        if let Some(entry) = stays.cloned() {
            let _ = (old.insert(entry.clone()), new.insert(entry));
        }
    }
    // One of each list, and one of each restricted pod.
    let restricted = |entry: &&Entry| !entry.allowed_sources.is_empty();
    for entry in before.entries().filter(restricted) {
        if lists.is_empty() && pods.is_empty() {
            break;
        }
        let is_gone = changes.iter().any(|change| match change {
            Change::Removed(gone) | Change::Replaced { before: gone, .. } => gone.key == entry.key,
            _ => false,
        });
        if is_gone {
            continue;
        }
        let shares_pod =
            entry.key.protocol == Protocol::Tcp && entry.target.is_some_and(|target| pods.remove(&target.ip));
        if lists.remove(&entry.allowed_sources) || shares_pod {
            let _ = (old.insert(entry.clone()), new.insert(entry.clone()));
        }
    }
    (old, new)
}

/// What elements serve, and how often each entry was used.
pub fn decode<'a>(
    tables: impl Iterator<Item = (Family, &'a Elements)>,
) -> (Ruleset, BTreeMap<Key, Counters>) {
    let mut served = Served::default();
    let (mut families, mut pods, mut cluster, mut sheltered) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut masqueraded, mut excluded, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    for (family, elements) in tables {
        families.push(family);
        served.add(elements);
        pods.extend(nets(elements, Collection::Pods));
        cluster.extend(nets(elements, Collection::Cluster));
        sheltered.extend(nets(elements, Collection::Sheltered));
        masqueraded.extend(nets(elements, Collection::Masqueraded));
        kept.extend(nets(elements, Collection::Kept));
        excluded.extend(of(elements, Collection::ExcludedInterfaces).filter_map(|(key, _)| {
            if let ElementKey::Interface(interface) = key { Some(*interface) } else { None }
        }));
    }
    let masquerade = Masquerade::new(masqueraded, excluded, kept);
    let mut ruleset =
        Ruleset::new(pods, cluster, families).with_sheltered(sheltered).with_masquerade(masquerade);
    let mut counters = BTreeMap::new();
    for (entry, counted) in served.entries {
        // Ports in two collections were not laid out by us; the kernel asks the collections in this order.
        let (key, has_pod) = (entry.key, entry.target.is_some());
        if ruleset.insert(entry).is_ok() && has_pod {
            counters.insert(key, counted);
        }
    }
    for egress in served.egress {
        ruleset.set_egress(egress);
    }
    (ruleset, counters)
}

fn of(elements: &Elements, collection: Collection) -> impl Iterator<Item = (&ElementKey, &Held)> {
    elements.get(&collection).into_iter().flatten()
}

fn nets(elements: &Elements, collection: Collection) -> impl Iterator<Item = IpNet> {
    of(elements, collection)
        .filter_map(|(key, _)| if let ElementKey::Net(net) = key { Some(*net) } else { None })
}

fn owner(held: &Held) -> Option<Owner> {
    Owner::parse(held.value.comment.as_deref()?)
}

#[derive(Default)]
struct Served {
    entries: Vec<(Entry, Counters)>,
    egress: Vec<Egress>,
}

impl Served {
    fn add(&mut self, elements: &Elements) {
        let addresses: BTreeSet<IpAddr> = of(elements, Collection::Addresses)
            .filter_map(|(key, _)| if let ElementKey::Address(ip) = key { Some(*ip) } else { None })
            .collect();
        let ports = |collection| {
            let reached = of(elements, collection).filter_map(|(key, held)| match key {
                ElementKey::Ports(key) => Some((*key, held)),
                _ => None,
            });
            reached.filter(|(key, _)| addresses.contains(&key.external)).collect::<Vec<_>>()
        };
        let closed = [Collection::Closed, Collection::ClosedRanges].into_iter().flat_map(ports);
        for (key, held) in closed {
            let Some(owner) = owner(held) else { continue };
            let entry = Entry { key, target: None, allowed_sources: Sources::default(), owner };
            self.entries.push((entry, Counters::default()));
        }
        let mut open: Vec<(Entry, Counters)> = Vec::new();
        for (key, held) in ports(Collection::Ports) {
            let Data::Target(target) = held.value.data else { continue };
            if held.value.comment.as_deref() == Some(CONTINUED) {
                open.last_mut().filter(|(entry, _)| continues(entry, key, target)).map(
                    |(entry, counters)| {
                        entry.key.ports = PortRange::new(entry.key.ports.first(), key.ports.last())?;
                        *counters += held.counters;
                        Some(())
                    },
                );
            } else if let Some(owner) = owner(held) {
                let entry = Entry { key, target: Some(target), allowed_sources: Sources::default(), owner };
                open.push((entry, held.counters));
            }
        }
        for (key, held) in ports(Collection::Ranges) {
            let (Data::Address(ip), Some(owner)) = (&held.value.data, owner(held)) else { continue };
            let target = Some(Target { ip: *ip, first: key.ports.first() });
            open.push((Entry { key, target, allowed_sources: Sources::default(), owner }, held.counters));
        }
        restrict(&mut open, elements, ports);
        self.entries.extend(open);
        self.egress.extend(of(elements, Collection::Egress).filter_map(|(key, held)| {
            let (ElementKey::Address(pod), Data::Address(external)) = (key, &held.value.data) else {
                return None;
            };
            Some(Egress { pod: *pod, external: *external, owner: owner(held)? })
        }));
    }
}

/// Tells entries who may connect to them; one that nobody may connect to leads nowhere.
fn restrict<'a>(
    open: &mut [(Entry, Counters)],
    elements: &'a Elements,
    ports: impl Fn(Collection) -> Vec<(Key, &'a Held)>,
) {
    let lists: BTreeMap<&ElementKey, &Data> =
        of(elements, Collection::Lists).map(|(key, held)| (key, &held.value.data)).collect();
    let listed = [Collection::Listed, Collection::ListedRanges].into_iter().flat_map(&ports);
    let listed: BTreeMap<Key, &Data> = listed.map(|(key, held)| (key, &held.value.data)).collect();
    let sources = |key: &Key| match listed.get(key)? {
        Data::List(id) => match lists.get(&ElementKey::List(*id))? {
            Data::Networks(sources) => Some(sources.clone()),
            _ => None,
        },
        _ => None,
    };
    let restricted = [Collection::Restricted, Collection::RestrictedRanges].into_iter().flat_map(&ports);
    let restricted: BTreeSet<Key> = restricted.map(|(key, _)| key).collect();
    for (entry, _) in open.iter_mut().filter(|(entry, _)| restricted.contains(&entry.key)) {
        entry.allowed_sources = sources(&entry.key).unwrap_or_default();
        if entry.allowed_sources.is_empty() {
            entry.target = None;
        }
    }
}

/// Whether a port goes on where the entry's ports end, on both sides.
fn continues(entry: &Entry, key: Key, target: Target) -> bool {
    let follows = |before: Port, after: Port| before.checked_add(1) == Some(after);
    let Some(last) = entry.target_ports().map(PortRange::last) else { return false };
    entry.key.external == key.external
        && entry.key.protocol == key.protocol
        && entry.target.is_some_and(|known| known.ip == target.ip)
        && follows(entry.key.ports.last(), key.ports.first())
        && follows(last, target.first)
}
