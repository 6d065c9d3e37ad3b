//! What nodes may still have in their kernels of what is not granted any more: nobody else is granted it before they have said
//! that they do not, or are known to be gone. Pure.
//!
//! # How a node says so
//! Whatever takes something away from a Pinhole changes its spec, and so its generation: another annotation, another pod, and
//! `suspended` once its pod is gone; where nothing else of it tells, `withdrawals` counts. The controller then moves what it takes away from `endpoints` to `releasing`, and with that
//! says of which generation its grants are (`observedGeneration`). An agent answers for that generation only when its kernel has
//! nothing but what is granted in it. So a report made before, however late it is read, is never taken for an answer.
//!
//! # Guarantees
//! What was granted is served until every node that could have it in its kernel has answered for a later generation, whoever
//! was killed in between: the record is in the Pinhole, which a finalizer keeps as long as there is one.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use k8s_openapi::jiff::SignedDuration;
use k8s_openapi::jiff::Timestamp;

use crate::admission::index::Index;
use crate::admission::index::facts::Presence;
use crate::allocation::key::ClaimKey;
use crate::api::crd::pinhole::Endpoint;
use crate::api::crd::pinhole::NodeReport;
use crate::api::crd::pinhole::Pinhole;
use crate::api::crd::pinhole::PinholeStatus;
use crate::api::crd::pinhole::Releasing;
use crate::api::crd::pinhole::TargetReport;
use crate::api::crd::shared::Transport;
use crate::api::keys;
use crate::cluster::pinhole_watch::Pinholes;
use crate::model::address::ExternalAddress;
use crate::model::holder::Holder;
use crate::model::port::Port;
use crate::model::port::PortRange;

/// The word of an agent that has something in its kernel that it should not have.
const REMOVING: &str = "Removing";

/// What is asked about nodes.
#[derive(Clone, Copy, Debug)]
pub struct Patience<'a> {
    /// Which nodes there are.
    pub index: &'a Index,
    /// The UIDs of the pods that claims lead to: nothing is forgotten of them.
    pub named: &'a BTreeSet<&'a str>,
    /// How long a node is waited for that is not heard of.
    pub timeout: SignedDuration,
    /// Now.
    pub now: Timestamp,
}

/// What a Pinhole waits for when it grants `endpoints` on `node` from now on.
pub fn releasing(
    stored: &Pinhole,
    endpoints: &[Endpoint],
    node: Option<&str>,
    patience: &Patience<'_>,
) -> Vec<Releasing> {
    let known = stored.status.clone().unwrap_or_default();
    let is_granted = |old: &Releasing| {
        node == Some(old.node.as_str()) && endpoints.iter().any(|endpoint| is_port(endpoint, old))
    };
    let mut waiting: Vec<_> = known
        .releasing
        .iter()
        .filter(|old| !is_granted(old) && !has_let_go(&known, stored.metadata.generation, old, patience))
        .cloned()
        .collect();
    let Some(before) = node_before(&known) else { return waiting };
    for endpoint in &known.endpoints {
        let withdrawn = Releasing {
            address: endpoint.address.clone(),
            protocol: endpoint.protocol,
            port: endpoint.port,
            port_end: endpoint.port_end,
            node: before.to_owned(),
            since: patience.now,
        };
        let is_known = waiting.iter().any(|old| old.node == before && is_port(endpoint, old));
        if !is_known && !is_granted(&withdrawn) {
            waiting.push(withdrawn);
        }
    }
    waiting
}

/// The `withdrawals` of a Pinhole that grants `endpoints` from now on.
pub fn withdrawals(stored: &Pinhole, endpoints: &[Endpoint]) -> Option<u32> {
    let Some(status) = &stored.status else { return stored.spec.withdrawals };
    let is_granted = |old: &Endpoint| endpoints.iter().any(|endpoint| port(endpoint) == port(old));
    // Before the status is of this generation, nobody can have answered for it.
    let is_current = status.observed_generation == stored.metadata.generation;
    if !is_current || status.endpoints.iter().all(is_granted) {
        return stored.spec.withdrawals;
    }
    Some(stored.spec.withdrawals.unwrap_or_default().wrapping_add(1))
}

/// The node that the grants of a status are for.
pub fn node_before(status: &PinholeStatus) -> Option<&str> {
    status.targets.first()?.node.as_deref()
}

/// The targets of a Pinhole that the controller may not have written a status of: its label tells the node then.
pub fn targets(pinhole: &Pinhole) -> Vec<TargetReport> {
    let known = pinhole.status.iter().flat_map(|status| &status.targets).cloned().collect::<Vec<_>>();
    if !known.is_empty() {
        return known;
    }
    let labels = pinhole.metadata.labels.iter().flatten();
    let mut nodes = labels.filter_map(|(label, _)| label.strip_prefix(keys::NODE_LABEL_PREFIX));
    let target = |node: &str| TargetReport {
        pod: pinhole.spec.target.pod.clone().unwrap_or_default(),
        pod_uid: pinhole.spec.target.pod_uid.clone().unwrap_or_default(),
        addresses: Vec::new(),
        node: Some(node.to_owned()),
        active: false,
    };
    nodes.next().map(target).into_iter().collect()
}

/// The labels by which the agents of all nodes find a Pinhole that may have something of it in their kernels.
pub fn labels(status: Option<&PinholeStatus>, node: Option<&str>) -> BTreeSet<String> {
    let before = status.and_then(node_before);
    let waited_for = status.iter().flat_map(|status| &status.releasing).map(|old| old.node.as_str());
    node.into_iter().chain(before).chain(waited_for).map(keys::node_label).collect()
}

/// Whether any agent can have seen it.
pub fn is_anywhere(pinhole: &Pinhole) -> bool {
    let mut labels = pinhole.metadata.labels.iter().flatten();
    labels.any(|(label, _)| label.starts_with(keys::NODE_LABEL_PREFIX))
}

fn has_let_go(
    status: &PinholeStatus,
    generation: Option<i64>,
    old: &Releasing,
    patience: &Patience<'_>,
) -> bool {
    let report = status.nodes.iter().find(|report| report.name == old.node);
    if report.is_some_and(|report| answers(report, status, generation)) {
        return true;
    }
    match patience.index.presence(&old.node) {
        Presence::Gone => true,
        // It is heard of, and says that it has it.
        Presence::Ready if report.is_some_and(|report| report.reason == REMOVING) => false,
        Presence::Ready | Presence::NotReady => {
            old.since.checked_add(patience.timeout).is_ok_and(|end| end <= patience.now)
        }
    }
}

/// Whether a node speaks of what is granted now.
fn answers(report: &NodeReport, status: &PinholeStatus, generation: Option<i64>) -> bool {
    status.observed_generation == generation && report.observed_generation == generation
}

fn is_port(endpoint: &Endpoint, old: &Releasing) -> bool {
    port(endpoint) == (&old.address, old.protocol, old.port, old.port_end)
}

fn port(endpoint: &Endpoint) -> (&String, Transport, u16, Option<u16>) {
    (&endpoint.address, endpoint.protocol, endpoint.port, endpoint.port_end)
}

/// What nodes may have in their kernels, of all Pinholes.
#[derive(Debug, Default)]
pub struct Serving<'a> {
    keys: BTreeSet<ClaimKey>,
    /// Whether everything that was ever granted to the pod of a UID is granted still or was let go.
    settled: BTreeMap<&'a str, bool>,
    /// Whose pods agents may have seen.
    holders: BTreeSet<Holder>,
}

impl<'a> Serving<'a> {
    /// What these Pinholes say.
    pub fn of(pinholes: &'a Pinholes) -> Self {
        let mut serving = Self::default();
        for pinhole in pinholes.values() {
            let (Some(uid), status) = (&pinhole.spec.target.pod_uid, pinhole.status.as_ref()) else {
                continue;
            };
            if !is_anywhere(pinhole) {
                serving.settled.insert(uid, true);
                continue;
            }
            serving.holders.extend(pinhole.spec.holder.as_ref().map(Holder::from));
            let Some(status) = status else {
                serving.settled.insert(uid, false);
                continue;
            };
            let uids = status.targets.iter().map(|target| target.pod_uid.as_str());
            let is_settled = is_settled(pinhole, status);
            serving.settled.extend(uids.chain([uid.as_str()]).map(|uid| (uid, is_settled)));
            for endpoint in &status.endpoints {
                serving.add(&endpoint.address, endpoint.protocol, endpoint.port, endpoint.port_end);
            }
            for old in &status.releasing {
                serving.add(&old.address, old.protocol, old.port, old.port_end);
            }
        }
        serving
    }

    /// Whether a node may have a port in its kernel.
    pub fn has(&self, key: &ClaimKey) -> bool {
        self.keys.contains(key)
    }

    /// Whether a node may know a pod of this holder, and so have been granted what does not show yet.
    pub fn has_pods_of(&self, holder: &Holder) -> bool {
        self.holders.contains(holder)
    }

    /// Whether every node has let go what was taken away from the pod of this UID; `None` where nothing is known of the pod.
    pub fn is_settled(&self, pod_uid: &str) -> Option<bool> {
        self.settled.get(pod_uid).copied()
    }

    fn add(&mut self, address: &str, protocol: Transport, port: u16, port_end: Option<u16>) {
        let address = address.parse().ok().and_then(|address| ExternalAddress::new(address).ok());
        let first = Port::new(port);
        let last = port_end.map_or(first, Port::new);
        let range = first.zip(last).and_then(|(first, last)| PortRange::new(first, last));
        if let Some((address, range)) = address.zip(range) {
            self.keys.extend(ClaimKey::of_range(address, protocol.into(), range));
        }
    }
}

fn is_settled(pinhole: &Pinhole, status: &PinholeStatus) -> bool {
    let generation = pinhole.metadata.generation;
    let has_answered = |node: &str| {
        status.nodes.iter().any(|report| report.name == node && answers(report, status, generation))
    };
    status.observed_generation == generation
        && status.releasing.is_empty()
        && node_before(status).is_none_or(has_answered)
}
