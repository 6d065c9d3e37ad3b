//! What the controller has granted on a node, to pods and to the Pinholes that users write: a port is served for a pod whose Pinhole
//! says that its holder has claimed it, on a fixed address that this node serves or on the node's own, and for nobody else.
//!
//! # Guarantees
//! - What was never granted is not programmed.
//! - What is programmed stays until the controller has decided about its pod, and on the node's own address until it has decided
//!   about that address. So switching claims on, an upgrade, a restored etcd and Pinholes that vanish take nothing away from
//!   what flows.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::agent::remote;
use crate::agent::remote::Remote;
use crate::agent::written::Written;
use crate::api::crd::condition::Condition;
use crate::api::crd::condition::ConditionStatus;
use crate::api::crd::pinhole::Endpoint;
use crate::api::crd::pinhole::Pinhole;
use crate::api::crd::pinhole::PinholeStatus;
use crate::api::object::Object;
use crate::cluster::events::Reason;
use crate::cluster::pinhole_watch::Pinholes;
use crate::model::address::ExternalAddress;
use crate::model::address::Families;
use crate::model::address::Family;
use crate::model::automatic::AutomaticPort;
use crate::model::holder::Holder;
use crate::model::holder::ObjectName;
use crate::model::mapping::Address;
use crate::model::mapping::Mapping;
use crate::model::port::Port;
use crate::model::port::PortRange;
use crate::ruleset::Ruleset;
use crate::ruleset::election::Candidate;
use crate::ruleset::entry::Key;
use crate::ruleset::node::NodeFacts;
use crate::ruleset::owner::Owner;

/// What is granted, by the UID of the pod, or of the Pinhole where a user wrote it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    by_pod: BTreeMap<String, Grant>,
    written: Vec<Written>,
    remote: Vec<Remote>,
    subjects: BTreeMap<ObjectName, Option<String>>,
}

/// What a pod was granted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Grant {
    keys: BTreeSet<Key>,
    /// Those of which the controller says that this node serves them. It names no node where it knows of none.
    named: BTreeSet<Key>,
    /// The pod's port behind each key.
    targets: BTreeMap<Key, Port>,
    /// Who holds the ports: its root owner, or whoever that one has handed them over to.
    holder: Option<Holder>,
    /// What the controller has said yes or no to.
    decided: Decided,
    /// Why not everything, in the controller's words.
    refusal: Option<(Reason, String)>,
}

/// What of a pod's ports the controller has decided about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Decided {
    /// Nothing yet.
    #[default]
    Nothing,
    /// What names its address, and what does not at these own addresses of its node.
    NamedAnd(BTreeSet<IpAddr>),
    /// Everything.
    Everything,
}

impl Decided {
    /// Whether it is decided who may have ports that the pod asks for at an address.
    fn covers(&self, asked: Address, external: IpAddr) -> bool {
        match self {
            Self::Nothing => false,
            Self::NamedAnd(own) => asked != Address::Node || own.contains(&external),
            Self::Everything => true,
        }
    }
}

impl Grants {
    /// What these Pinholes grant on the node of this name.
    pub fn of(pinholes: &Pinholes, node_name: &str) -> Self {
        let grant = |pinhole| Some((subject_uid(pinhole)?.to_owned(), grant(pinhole, node_name)));
        let subject = |(name, pinhole): (&ObjectName, &Pinhole)| {
            let uid = pinhole.spec.target.pod_uid.clone().filter(|_| !pinhole.spec.suspended);
            pinhole.spec.target.pod.is_some().then(|| (name.clone(), uid))
        };
        Self {
            by_pod: pinholes.values().filter_map(grant).collect(),
            written: pinholes.iter().filter_map(|(name, pinhole)| Written::of(name, pinhole)).collect(),
            remote: pinholes
                .iter()
                .filter_map(|(name, stored)| Remote::of(name, stored, node_name))
                .collect(),
            subjects: pinholes.iter().filter_map(subject).collect(),
        }
    }

    /// The pods of other nodes.
    pub fn remote(&self) -> &[Remote] {
        &self.remote
    }

    /// The UID of the pod that each Pinhole of a pod belongs to; none once it is over.
    pub const fn subjects(&self) -> &BTreeMap<ObjectName, Option<String>> {
        &self.subjects
    }

    /// The Pinholes that users wrote.
    pub fn written(&self) -> &[Written] {
        &self.written
    }

    /// Takes from a candidate what it wants and was not granted; returns why, where the controller has said so.
    pub fn limit(
        &self,
        candidate: &mut Candidate,
        node: &NodeFacts,
        programmed: &Ruleset,
    ) -> Option<(Reason, String)> {
        let nothing = Grant::default();
        let grant = self.by_pod.get(&candidate.uid).unwrap_or(&nothing);
        let owner = Owner::new(&candidate.pod, &candidate.uid);
        let wanted = candidate.mappings.len();
        candidate.mappings.retain(|mapping| {
            let is_programmed = |key: &Key| programmed.entry(key).is_some_and(|entry| entry.owner == owner);
            let is_kept =
                |key: &Key| !grant.decided.covers(mapping.address(), key.external) && is_programmed(key);
            let mut keys = keys(mapping, &candidate.ips, node);
            keys.all(|key| grant.keys.contains(&key) || is_kept(&key))
        });
        let is_limited = candidate.mappings.len() < wanted;
        grant.refusal.clone().filter(|_| is_limited)
    }

    /// What the controller says that this node serves for a candidate that does not want it there.
    pub fn unwanted(&self, candidate: &Candidate, node: &NodeFacts) -> BTreeSet<Key> {
        let wanted: BTreeSet<_> =
            candidate.mappings.iter().flat_map(|mapping| keys(mapping, &candidate.ips, node)).collect();
        let grant = self.by_pod.get(&candidate.uid);
        grant.map(|grant| grant.named.difference(&wanted).copied().collect()).unwrap_or_default()
    }

    /// Whether the controller has yet to decide about something that a candidate wants on the node's own address as it is now.
    pub fn are_awaited(&self, candidate: &Candidate, node: &NodeFacts) -> bool {
        let decided = self.by_pod.get(&candidate.uid).map(|grant| &grant.decided);
        let is_open = |mapping: &Mapping| {
            let is_decided =
                |key: &Key| decided.is_some_and(|decided| decided.covers(Address::Node, key.external));
            mapping.address() == Address::Node
                && !keys(mapping, &candidate.ips, node).all(|key| is_decided(&key))
        };
        candidate.mappings.iter().any(is_open)
    }

    /// The mappings of the ports that a pod leaves to a pool, beside those that it names: what was found for it, and while the
    /// controller has not decided, what is programmed for it.
    pub fn found(
        &self,
        uid: &str,
        owner: &Owner,
        (named, automatic): (&[Mapping], &[AutomaticPort]),
        node: &NodeFacts,
        programmed: &Ruleset,
    ) -> Vec<Mapping> {
        let grant = self.by_pod.get(uid);
        let mut known: BTreeMap<Key, Port> = grant.map(|grant| grant.targets.clone()).unwrap_or_default();
        if !automatic.is_empty() && !self.is_decided(uid) {
            let entries = programmed.entries_owned_by(owner);
            known.extend(entries.filter_map(|entry| Some((entry.key, entry.target?.first))));
        }
        let named: BTreeSet<_> = named.iter().flat_map(|mapping| keys(mapping, &[], node)).collect();
        let is_open = |key: &Key| key.ports.is_single() && !named.contains(key);
        let found = |port: &AutomaticPort| {
            let leads_there = |(key, target): &(&Key, &Port)| {
                is_open(key) && key.protocol == port.protocol && **target == port.target
            };
            let (key, _) = known.iter().find(leads_there)?;
            port.at(ExternalAddress::new(key.external).ok()?, key.ports.first())
        };
        automatic.iter().filter_map(found).collect()
    }

    /// Who holds the ports of a pod, in the controller's words: one that serves for another holder stands in that one's election.
    pub fn holder(&self, pod: &Object) -> Option<Holder> {
        self.by_pod.get(&pod.metadata.uid)?.holder.clone()
    }

    /// Whether the controller has decided about the pod of this UID.
    pub fn is_decided(&self, uid: &str) -> bool {
        self.by_pod.get(uid).is_some_and(|grant| grant.decided != Decided::Nothing)
    }
}

/// The UID of the pod that a Pinhole belongs to; its own where a user wrote it.
pub fn subject_uid(pinhole: &Pinhole) -> Option<&str> {
    let target = &pinhole.spec.target;
    if target.pod.is_some() { target.pod_uid.as_deref() } else { pinhole.metadata.uid.as_deref() }
}

fn grant(pinhole: &Pinhole, node_name: &str) -> Grant {
    // The controller suspends the Pinhole of a pod that is gone. A user who suspends one keeps its ports, closed.
    if pinhole.spec.suspended && pinhole.spec.target.pod.is_some() {
        return Grant { decided: Decided::Everything, ..Grant::default() };
    }
    // Of an object that follows a pod's name, an older status may speak of another pod.
    let is_current =
        |status: &&PinholeStatus| pinhole.spec.target.pod.is_none() || pinhole.is_current(status);
    let Some(status) = pinhole.status.as_ref().filter(is_current) else { return Grant::default() };
    let accepted = Condition::find(&status.conditions, "Accepted");
    let decision = accepted.filter(|condition| condition.status != ConditionStatus::Unknown);
    let own = || status.own_addresses.iter().filter_map(|text| text.parse().ok()).collect();
    let target = |endpoint: &Endpoint| Some((granted(endpoint)?, Port::new(endpoint.target_port)?));
    // A controller that names no nodes means that of the pod.
    let is_open = !remote::is_elsewhere(pinhole, node_name);
    let is_named = |endpoint: &&Endpoint| endpoint.nodes.iter().any(|node| node == node_name);
    let is_here = |endpoint: &&Endpoint| is_named(endpoint) || (endpoint.nodes.is_empty() && is_open);
    let here = || status.endpoints.iter().filter(is_here);
    Grant {
        keys: here().filter_map(granted).collect(),
        named: here().filter(is_named).filter_map(granted).collect(),
        targets: here().filter_map(target).collect(),
        holder: pinhole.spec.holder.as_ref().map(Holder::from),
        decided: decision.map_or(Decided::Nothing, |_| Decided::NamedAnd(own())),
        refusal: decision
            .filter(|condition| condition.status == ConditionStatus::False)
            .map(|condition| (Reason::of_condition(&condition.reason), condition.message.clone())),
    }
}

/// The external sides of a mapping for a pod with these addresses: one of a fixed address, and of the node's own one for each
/// family that the pod has; both while it has none.
fn keys(mapping: &Mapping, ips: &[IpAddr], node: &NodeFacts) -> impl Iterator<Item = Key> {
    let (protocol, ports) = (mapping.protocol(), mapping.external());
    let families: Families = ips.iter().copied().collect();
    let own = node.own_addresses().filter(move |_| mapping.address() == Address::Node);
    let own = own.filter(move |external| families.admit(Family::of(*external)));
    key(mapping).into_iter().chain(own.map(move |external| Key { external, protocol, ports }))
}

/// The external side of a mapping of a fixed address.
pub fn key(mapping: &Mapping) -> Option<Key> {
    let Address::Fixed(address) = mapping.address() else { return None };
    Some(Key { external: address.ip(), protocol: mapping.protocol(), ports: mapping.external() })
}

/// The external side of a granted endpoint.
pub fn granted(endpoint: &Endpoint) -> Option<Key> {
    let external: IpAddr = endpoint.address.parse().ok()?;
    let first = Port::new(endpoint.port)?;
    let last = endpoint.port_end.map_or(Some(first), Port::new)?;
    Some(Key { external, protocol: endpoint.protocol.into(), ports: PortRange::new(first, last)? })
}
