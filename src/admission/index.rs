//! Everything that is known of the cluster, in memory: who holds which port, who owns whom, which nodes have which
//! addresses, how namespaces are labelled.
//!
//! Informers feed it with plain calls, and so do unit tests, `pinhole check` and the demo: there is no mock of it.
//! A pod's or template's own annotation is the only truth; keys that we wrote ourselves are never read back. What
//! asks for no port is dropped on arrival, except the owner references that lead from a pod to its holder.

pub mod facts;
mod holdings;
pub mod occupants;
mod owners;
mod pending;
mod places;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use crate::admission::policy::Policy;
use crate::admission::subject::PinnedNode;
use crate::admission::subject::Subject;
use crate::admission::wanted;
use crate::admission::wanted::Located;
use crate::admission::wanted::Wanted;
use crate::allocation::pool::Pool;
use crate::allocation::pool::usage::NodePorts;
use crate::allocation::transfer;
use crate::allocation::transfer::Heirs;
use crate::api::object::Kind;
use crate::api::object::Object;
use crate::api::object::OwnerReference;
use crate::model::address::ExternalAddress;
use crate::model::address::Families;
use crate::model::automatic::AutomaticPort;
use crate::model::holder::Holder;
use crate::model::holder::ObjectName;
use crate::model::mapping::Address;
use crate::model::ordinals::Ordinals;
use crate::model::port::PortRange;
use crate::model::port::Protocol;

use self::facts::Facts;
use self::facts::Presence;
use self::holdings::Holdings;
use self::occupants::Occupant;
use self::occupants::Occupants;
use self::occupants::Source;
use self::occupants::Taken;
use self::owners::Owners;
use self::pending::Pending;

/// The kind, namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// The kind.
    pub kind: Kind,
    /// The namespace and name.
    pub name: ObjectName,
}

impl ObjectKey {
    /// The key of an object that lives in `namespace`; `None` for a kind that holds no ports.
    pub fn of(object: &Object, namespace: &str) -> Option<Self> {
        let kind = object.known_kind()?;
        Some(Self { kind, name: ObjectName::new(namespace, object.metadata.name.as_str()) })
    }
}

/// Where ports are unique: on one address in the whole cluster, or on one node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// One address.
    Address(ExternalAddress),
    /// The own address of the node of this name.
    Node(Arc<str>),
}

/// External ports that an object holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// Where the ports are unique.
    pub scope: Scope,
    /// The protocol.
    pub protocol: Protocol,
    /// The ports.
    pub ports: PortRange,
    /// The pod or workload that asks for them.
    pub object: ObjectKey,
    /// Its UID; empty in manifests.
    pub uid: Arc<str>,
    /// The controller that manages it, if one does.
    pub controller: Option<Arc<OwnerReference>>,
    /// The node that the pod runs on, once it does.
    pub node: Option<Arc<str>>,
    /// The IP families of the pod's addresses; empty while it has none.
    pub families: Families,
    /// When the object was created, RFC 3339; empty in manifests.
    pub since: Arc<str>,
    /// Whether the object is being deleted.
    pub terminating: bool,
    /// Whether a template keeps them for a pod by its ordinal. A set can be scaled without anybody being asked, so this alone is
    /// no sign that they were ever granted.
    pub is_only_kept: bool,
}

impl Holding {
    /// Whether two objects hold the very same ports.
    fn is_same_port(&self, other: &Self) -> bool {
        self.scope == other.scope && self.protocol == other.protocol && self.ports == other.ports
    }
}

/// What is known of the cluster.
#[derive(Debug)]
pub struct Index {
    policy: Arc<Policy>,
    stored: HashMap<ObjectKey, Stored>,
    holdings: Holdings,
    owners: Owners,
    heirs: Heirs,
    facts: Facts,
    pending: Pending,
    pools: Option<Arc<[Pool]>>,
    occupants: occupants::Table,
}

/// An object that holds ports, or hands some over.
#[derive(Debug)]
struct Stored {
    uid: Arc<str>,
    version: Option<u64>,
    holdings: Vec<Arc<Holding>>,
    /// What it asks for on the own address of a node that is not known yet.
    unplaced: Vec<(Protocol, PortRange)>,
    /// What it leaves to a pool to find.
    automatic: Vec<AutomaticPort>,
    /// The controller that manages it, where it leaves anything to a pool.
    controller: Option<Box<OwnerReference>>,
    /// Of a StatefulSet that leaves anything to a pool, which pods it has.
    ordinals: Option<Ordinals>,
}

/// A stored object that leaves ports to a pool to find.
#[derive(Clone, Copy, Debug)]
pub struct Finder<'a> {
    /// The pod or workload.
    pub object: &'a ObjectKey,
    /// Its UID.
    pub uid: &'a Arc<str>,
    /// The controller that manages it, if one does.
    pub controller: Option<&'a OwnerReference>,
    /// The ports.
    pub ports: &'a [AutomaticPort],
    /// Of a StatefulSet, which pods it has.
    pub ordinals: Option<Ordinals>,
}

impl Index {
    /// An empty index that reads annotations as `policy` says.
    pub fn new(policy: Arc<Policy>) -> Self {
        Self {
            policy,
            stored: HashMap::new(),
            holdings: Holdings::default(),
            owners: Owners::default(),
            heirs: Heirs::default(),
            facts: Facts::default(),
            pending: Pending::default(),
            pools: None,
            occupants: occupants::Table::default(),
        }
    }

    /// Takes what an object says of the ports that it has.
    pub fn set_occupants(&mut self, said: Occupants) {
        self.occupants.set(said);
    }

    /// Forgets what an object said that is gone.
    pub fn forget_occupants(&mut self, source: &Source) {
        self.occupants.remove(source);
    }

    /// Forgets what every object said that `keeps` does not want.
    pub fn retain_occupants(&mut self, keeps: impl Fn(&Source) -> bool) {
        self.occupants.retain(keeps);
    }

    /// Who beside our holders has ports of an address.
    pub fn occupant_of_address(
        &self,
        address: ExternalAddress,
        protocol: Protocol,
        ports: PortRange,
    ) -> Option<Arc<Occupant>> {
        self.occupants.of_address(address, self.answers_node_ports(address), protocol, ports)
    }

    /// Who beside our holders has ports of a node's own address: of the named node, or of whichever a pod comes to.
    pub fn occupant_of_node(
        &self,
        pinned: Option<&Arc<str>>,
        protocol: Protocol,
        ports: PortRange,
    ) -> Option<Taken> {
        self.occupants.of_node(pinned, protocol, ports)
    }

    /// Takes the pools that grant ports; `None` where nobody has to grant any.
    pub fn set_pools(&mut self, pools: Option<Arc<[Pool]>>) {
        self.pools = pools;
    }

    /// The pools that grant ports; `None` where nobody has to grant any.
    pub fn pools(&self) -> Option<&Arc<[Pool]>> {
        self.pools.as_ref()
    }

    /// What the outside connects to instead of an address, where a pool says that a router translates it 1:1.
    pub fn advertised(&self, address: ExternalAddress) -> Option<ExternalAddress> {
        self.pools.iter().flat_map(|pools| pools.iter()).find_map(|pool| pool.advertised(address))
    }

    /// Whether a stored object was granted these ports by asking for them, all of them.
    pub fn asks_already(
        &self,
        key: &ObjectKey,
        address: Address,
        protocol: Protocol,
        ports: PortRange,
    ) -> bool {
        let covers = |range: PortRange| range.intersection(ports) == Some(ports);
        self.stored.get(key).is_some_and(|stored| {
            let is_there = |scope: &Scope| match (address, scope) {
                (Address::Node, Scope::Node(_)) => true,
                (Address::Fixed(address), Scope::Address(held)) => address == *held,
                (Address::Node, Scope::Address(_)) | (Address::Fixed(_), Scope::Node(_)) => false,
            };
            let is_held = |held: &Arc<Holding>| {
                let is_it = is_there(&held.scope) && held.protocol == protocol && covers(held.ports);
                is_it && !held.is_only_kept
            };
            let is_unplaced = || {
                address == Address::Node
                    && stored.unplaced.iter().any(|(found, range)| *found == protocol && covers(*range))
            };
            stored.holdings.iter().any(is_held) || is_unplaced()
        })
    }

    /// Whether a stored object leaves this port to a pool already.
    pub fn leaves_open(&self, key: &ObjectKey, port: &AutomaticPort) -> bool {
        self.stored.get(key).is_some_and(|stored| stored.automatic.iter().any(|one| one.is_same_port(port)))
    }

    /// The stored objects that leave ports to a pool.
    pub fn finders(&self) -> impl Iterator<Item = Finder<'_>> {
        let finding = self.stored.iter().filter(|(_, stored)| !stored.automatic.is_empty());
        finding.map(|(object, stored)| Finder {
            object,
            uid: &stored.uid,
            controller: stored.controller.as_deref(),
            ports: &stored.automatic,
            ordinals: stored.ordinals,
        })
    }

    /// The nodes that have an address, by what NatNodes say; as a rule one.
    pub fn nodes_of_address(&self, address: ExternalAddress) -> impl Iterator<Item = &Arc<str>> {
        self.occupants.nodes_of(address.ip())
    }

    /// The node that has an address, by what NatNodes say; of several the first by name.
    pub fn node_of_address(&self, address: ExternalAddress) -> Option<&Arc<str>> {
        self.nodes_of_address(address).next()
    }

    /// The labels of a node, if it is known.
    pub fn node_labels(&self, name: &str) -> Option<&BTreeMap<String, String>> {
        self.facts.node_labels(name)
    }

    /// Takes an object as it is now: a pod, a workload, a Namespace or a Node.
    ///
    /// Watches and live reads overtake each other: an older version than the known one changes nothing.
    pub fn apply(&mut self, object: &Object) {
        match object.kind.as_str() {
            "Namespace" => self.facts.apply_namespace(object),
            "Node" => self.facts.apply_node(object),
            _ => {
                if let Some(key) = ObjectKey::of(object, &object.metadata.namespace) {
                    self.owners.apply(&key, object);
                    self.replace_stored(&key, object);
                    // Only who looks at pools looks at what else has ports.
                    if key.kind == Kind::Pod && self.pools.is_some() {
                        self.occupants.set(Occupants::of_pod(object));
                    }
                }
            }
        }
    }

    /// Takes an object as a live read showed it, which also settles what was remembered of it.
    pub fn confirm(&mut self, object: &Object) {
        if let Some(key) = ObjectKey::of(object, &object.metadata.namespace) {
            self.drop_pending(&key, None);
        }
        self.apply(object);
    }

    /// The UID of the object that is known by this name; `None` when nothing is kept of it.
    pub fn uid(&self, key: &ObjectKey) -> Option<Arc<str>> {
        self.stored.get(key).map(|stored| stored.uid.clone()).or_else(|| self.owners.uid(key))
    }

    /// Forgets an object that is gone. With a UID, one of the same name that came after it stays.
    pub fn delete(&mut self, key: &ObjectKey, uid: Option<&str>) {
        let is_it = |found: &str| uid.is_none_or(|uid| uid == found);
        if self.stored.get(key).is_some_and(|stored| is_it(&stored.uid)) {
            self.remove_stored(key);
        }
        self.owners.delete(key, uid);
        self.drop_pending(key, uid);
        if key.kind == Kind::Pod {
            self.occupants.remove(&Source::Pod(key.name.clone()));
        }
    }

    /// Forgets a Namespace that is gone.
    pub fn delete_namespace(&mut self, name: &str) {
        self.facts.delete_namespace(name);
    }

    /// Forgets a Node that is gone.
    pub fn delete_node(&mut self, name: &str) {
        self.facts.delete_node(name);
    }

    /// Replaces everything known of one kind by a complete list of it.
    pub fn reset<'a>(&mut self, kind: Kind, objects: impl IntoIterator<Item = &'a Object>) {
        let gone: Vec<_> = self.stored.keys().filter(|key| key.kind == kind).cloned().collect();
        for key in gone {
            self.remove_stored(&key);
        }
        self.owners.clear(kind);
        if kind == Kind::Pod {
            self.occupants.retain(|source| !matches!(source, Source::Pod(_)));
        }
        for object in objects {
            self.apply(object);
        }
    }

    /// Replaces the known Namespaces by a complete list.
    pub fn reset_namespaces<'a>(&mut self, objects: impl IntoIterator<Item = &'a Object>) {
        self.facts.clear_namespaces();
        objects.into_iter().for_each(|object| self.facts.apply_namespace(object));
    }

    /// Replaces the known Nodes by a complete list.
    pub fn reset_nodes<'a>(&mut self, objects: impl IntoIterator<Item = &'a Object>) {
        self.facts.clear_nodes();
        objects.into_iter().for_each(|object| self.facts.apply_node(object));
    }

    /// Remembers an object that was just admitted, until the watch has shown it or `ttl` is over.
    pub fn remember(&mut self, object: &Object, namespace: &str, now: Instant, ttl: Duration) {
        self.expire(now);
        let Some(key) = ObjectKey::of(object, namespace).filter(|key| !key.name.name.is_empty()) else {
            return;
        };
        let holdings = self.holdings_of(&key, object);
        if !holdings.is_empty() {
            self.drop_pending(&key, None);
            for holding in &holdings {
                self.holdings.add(holding);
            }
            self.pending.add(key, holdings, now, ttl);
        }
    }

    /// Since when an object is remembered with ports that it does not hold as it was `found` by a live read: it may
    /// still be on its way into the store.
    pub fn awaited(&self, key: &ObjectKey, found: Option<&Object>) -> Option<Instant> {
        let (since, admitted) = self.pending.get(key)?;
        let stored = found.map(|object| self.holdings_of(key, object)).unwrap_or_default();
        let is_stored = |held: &Arc<Holding>| stored.iter().any(|other| other.is_same_port(held));
        (!admitted.iter().all(is_stored)).then_some(since)
    }

    /// Forgets that an object was admitted: it was not stored after all.
    pub fn forget_remembered(&mut self, key: &ObjectKey) {
        self.drop_pending(key, None);
    }

    /// Forgets the remembered objects whose time is over.
    pub fn expire(&mut self, now: Instant) {
        for holding in self.pending.expired(now) {
            self.holdings.remove(&holding);
        }
    }

    /// The holder of an object: its root owner as far as it is known. `Err` names the owner that is not known yet.
    pub fn holder(&self, key: &ObjectKey, controller: Option<&OwnerReference>) -> Result<Holder, ObjectKey> {
        self.owners.holder(key, controller)
    }

    /// The root owner of an object, as the last link to it names it; none for one that holds its ports itself, or of which it is
    /// not known yet.
    pub fn root_owner<'a>(
        &'a self,
        key: &ObjectKey,
        controller: Option<&'a OwnerReference>,
    ) -> Option<&'a OwnerReference> {
        self.owners.root(key, controller).ok().flatten()
    }

    /// Who may take over whose ports.
    pub fn heirs(&self) -> &Heirs {
        &self.heirs
    }

    /// The ports that overlap `ports` in a scope, whoever holds them.
    pub fn held(&self, scope: &Scope, protocol: Protocol, ports: PortRange) -> Vec<Arc<Holding>> {
        self.holdings.overlapping(scope, protocol, ports)
    }

    /// The ports that overlap `ports` on the own address of any node.
    pub fn held_on_nodes(&self, protocol: Protocol, ports: PortRange) -> Vec<Arc<Holding>> {
        self.holdings.on_nodes(protocol, ports)
    }

    /// The ports of every object that is stored, without those that were only just admitted.
    pub fn stored_holdings(&self) -> impl Iterator<Item = &Arc<Holding>> {
        self.stored.values().flat_map(|stored| &stored.holdings)
    }

    /// How many holdings are known.
    pub fn holdings_count(&self) -> usize {
        self.holdings.count()
    }

    /// The labels of a namespace, if it is known.
    pub fn namespace_labels(&self, name: &str) -> Option<&BTreeMap<String, String>> {
        self.facts.namespace_labels(name)
    }

    /// Whether an address is a node's own.
    pub fn is_node_address(&self, address: ExternalAddress) -> bool {
        self.facts.is_node_address(address.ip())
    }

    /// What of these ports is kept for the NodePorts of Services: the range of all of them, where an address of a node is asked for.
    pub fn kept_for_node_ports(&self, address: Address, ports: PortRange) -> Option<PortRange> {
        let is_of_node = || match address {
            Address::Node => true,
            Address::Fixed(address) => self.answers_node_ports(address),
        };
        self.policy.node_port_range.filter(|range| range.intersection(ports).is_some() && is_of_node())
    }

    /// Whether the NodePorts of Services are answered at an address: at each of a node's, but not at those of a gateway outside of
    /// the cluster.
    fn answers_node_ports(&self, address: ExternalAddress) -> bool {
        let mut nodes = self.nodes_of_address(address);
        self.is_node_address(address) || nodes.any(|node| self.facts.knows_node(node))
    }

    /// Which ports are kept for the NodePorts of Services, and where.
    pub fn node_ports(&self) -> NodePorts {
        let of_nat_nodes = self.occupants.addresses(|node| self.facts.knows_node(node));
        let addresses = self.facts.node_addresses().chain(of_nat_nodes);
        let external = addresses.filter_map(|address| ExternalAddress::new(address).ok());
        NodePorts { range: self.policy.node_port_range, addresses: external.collect() }
    }

    /// Whether the node of this name can be asked anything.
    pub fn presence(&self, node_name: &str) -> Presence {
        self.facts.presence(node_name)
    }

    /// The name of the node that a pod's spec pins it to.
    pub fn node_name(&self, pinned: PinnedNode<'_>) -> Arc<str> {
        match pinned {
            PinnedNode::Name(name) => name.into(),
            // Nodes bear the name of their host but for rare exceptions, so that a workload which names a host that
            // has not joined yet holds its ports there from the start.
            PinnedNode::Hostname(hostname) => {
                self.facts.node_of_hostname(hostname).unwrap_or_else(|| hostname.into())
            }
        }
    }

    fn replace_stored(&mut self, key: &ObjectKey, object: &Object) {
        let known = self.stored.get(key);
        if known.is_some_and(|known| is_older(object.metadata.version(), known.version)) {
            return;
        }
        self.remove_stored(key);
        let holdings = self.holdings_of(key, object);
        if self.awaited(key, Some(object)).is_none() {
            self.drop_pending(key, None);
        } else if object.is_finished() {
            self.drop_pending(key, Some(&object.metadata.uid));
        }
        let (unplaced, automatic) = self.open_of(object);
        let heir = transfer::heir(&object.metadata, &key.name.namespace);
        let names_heir = heir.is_some();
        self.heirs.set(itself(key), heir);
        if !holdings.is_empty() || !unplaced.is_empty() || !automatic.is_empty() || names_heir {
            for holding in &holdings {
                self.holdings.add(holding);
            }
            let uid = object.metadata.uid.as_str().into();
            let version = object.metadata.version();
            let controller = object.metadata.controller().filter(|_| !automatic.is_empty());
            let controller = controller.cloned().map(Box::new);
            let ordinals = object.ordinals().filter(|_| !automatic.is_empty());
            let stored = Stored { uid, version, holdings, unplaced, automatic, controller, ordinals };
            self.stored.insert(key.clone(), stored);
        }
    }

    fn remove_stored(&mut self, key: &ObjectKey) {
        self.heirs.set(itself(key), None);
        for holding in self.stored.remove(key).into_iter().flat_map(|stored| stored.holdings) {
            self.holdings.remove(&holding);
        }
    }

    fn drop_pending(&mut self, key: &ObjectKey, uid: Option<&str>) {
        for holding in self.pending.drop(key, uid) {
            self.holdings.remove(&holding);
        }
    }

    /// The ports that an object asks for on a node that is not known yet, and those that it leaves to a pool.
    fn open_of(&self, object: &Object) -> (Vec<(Protocol, PortRange)>, Vec<AutomaticPort>) {
        let subject = holding_subject(object).filter(|_| self.pools.is_some());
        let Some(subject) = subject else { return Default::default() };
        let wanted = wanted::of(&subject, &self.policy);
        let is_open = subject.pinned_node().is_none();
        let entries = wanted.iter().flat_map(|wanted| &wanted.entries);
        let is_unplaced = |entry: &&Located| {
            is_open && entry.mapping.address() == Address::Node && !entry.is_only_kept(subject.kind)
        };
        let unplaced = entries.filter(is_unplaced).map(|entry| &entry.mapping);
        let unplaced = unplaced.map(|mapping| (mapping.protocol(), mapping.external())).collect();
        let automatic = wanted.iter().flat_map(Wanted::automatic_ports).cloned().collect();
        (unplaced, automatic)
    }

    /// The ports that an object holds by being stored.
    fn holdings_of(&self, key: &ObjectKey, object: &Object) -> Vec<Arc<Holding>> {
        let Some(subject) = holding_subject(object) else { return Vec::new() };
        let Some(wanted) = wanted::of(&subject, &self.policy) else { return Vec::new() };
        let node = subject.pinned_node().map(|pinned| self.node_name(pinned));
        let controller = object.metadata.controller().cloned().map(Arc::new);
        let uid: Arc<str> = object.metadata.uid.as_str().into();
        let since: Arc<str> = object.metadata.creation_timestamp.as_str().into();
        let families = object.families();
        let holding = |entry: &Located| {
            let mapping = &entry.mapping;
            Some(Arc::new(Holding {
                scope: scope(mapping.address(), node.as_ref())?,
                protocol: mapping.protocol(),
                ports: mapping.external(),
                object: key.clone(),
                uid: uid.clone(),
                controller: controller.clone(),
                node: node.clone(),
                families,
                since: since.clone(),
                terminating: object.metadata.deletion_timestamp.is_some(),
                is_only_kept: entry.is_only_kept(key.kind),
            }))
        };
        wanted.entries.iter().filter_map(holding).collect()
    }
}

/// What of an object holds ports by being stored: nothing once it has ended, nothing of a workload whose own controller holds
/// them, and nothing of a mirror pod, which no rule judges and nobody serves.
fn holding_subject(object: &Object) -> Option<Subject<'_>> {
    let subject = Subject::of(object)?;
    let is_judged = !subject.is_derived_workload() && !subject.spec.host_network && !subject.is_mirror();
    let holds = !object.is_finished() && is_judged;
    holds.then_some(subject)
}

/// An object as a holder, which it is where nobody owns it.
fn itself(key: &ObjectKey) -> Holder {
    Holder::new(key.kind.name(), key.name.clone())
}

/// Whether a version is older than a known one, as far as both are numbers.
fn is_older(version: Option<u64>, known: Option<u64>) -> bool {
    version.zip(known).is_some_and(|(version, known)| version < known)
}

/// Where a mapping's ports are unique; `None` while its node is open.
pub fn scope(address: Address, node: Option<&Arc<str>>) -> Option<Scope> {
    match address {
        Address::Fixed(address) => Some(Scope::Address(address)),
        Address::Node => node.cloned().map(Scope::Node),
    }
}
