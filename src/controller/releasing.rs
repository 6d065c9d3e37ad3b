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
use crate::api::crd::pinhole::Pinhole;
use crate::api::crd::pinhole::PinholeStatus;
use crate::api::crd::pinhole::REMOVING;
use crate::api::crd::pinhole::Releasing;
use crate::api::crd::shared::Transport;
use crate::api::keys;
use crate::api::object::Kind;
use crate::cluster::pinhole_watch::Pinholes;
use crate::controller::standing::Known;
use crate::model::address::ExternalAddress;
use crate::model::holder::Holder;
use crate::model::port::Port;
use crate::model::port::PortRange;

/// What is asked about nodes.
#[derive(Clone, Debug)]
pub struct Patience<'a> {
    /// Which nodes there are.
    pub index: &'a Index,
    /// The UIDs of the pods that claims lead to: nothing is forgotten of them.
    pub named: BTreeSet<&'a str>,
    /// How long a node is waited for that is not heard of.
    pub timeout: SignedDuration,
    /// Now.
    pub now: Timestamp,
}

impl<'a> Patience<'a> {
    /// By what is known; a node that is not heard of is waited for no longer than `timeout`.
    pub fn of(known: &Known<'a>, timeout: SignedDuration, now: Timestamp) -> Self {
        let named = known.claims.values().filter_map(|stored| stored.claim.pod_uid.as_deref()).collect();
        Self { index: known.index, named, timeout, now }
    }
}

/// What a Pinhole waits for when it grants `endpoints` on `nodes` from now on.
pub fn releasing(
    stored: &Pinhole,
    endpoints: &[Endpoint],
    nodes: &BTreeSet<String>,
    patience: &Patience<'_>,
) -> Vec<Releasing> {
    let known = stored.status.clone().unwrap_or_default();
    let is_granted = |old: &Releasing| {
        nodes.contains(&old.node) && endpoints.iter().any(|endpoint| port(endpoint) == released(old))
    };
    let mut waiting: Vec<_> = known
        .releasing
        .iter()
        .filter(|old| !is_granted(old) && !has_let_go(&known, old, patience))
        .cloned()
        .collect();
    // A report on a generation of which something else was said before is no answer.
    let generation = stored.metadata.generation.unwrap_or_default() + i64::from(stored.is_current(&known));
    for node in nodes_before(stored) {
        for endpoint in &known.endpoints {
            let withdrawn = Releasing {
                address: endpoint.address.clone(),
                protocol: endpoint.protocol,
                port: endpoint.port,
                port_end: endpoint.port_end,
                node: node.clone(),
                generation,
                since: patience.now,
            };
            let is_known = |old: &Releasing| old.node == node && released(old) == port(endpoint);
            if !waiting.iter().any(is_known) && !is_granted(&withdrawn) {
                waiting.push(withdrawn);
            }
        }
    }
    waiting
}

/// The `withdrawals` of a Pinhole that grants `endpoints` on `nodes` from now on.
pub fn withdrawals(stored: &Pinhole, endpoints: &[Endpoint], nodes: &BTreeSet<String>) -> Option<u32> {
    let before = stored.spec.withdrawals;
    let Some(status) = stored.status.as_ref().filter(|status| stored.is_current(status)) else {
        // Nobody can have answered for this generation yet.
        return before;
    };
    let is_granted = |old: &Endpoint| endpoints.iter().any(|endpoint| port(endpoint) == port(old));
    let is_kept = nodes_before(stored).is_subset(nodes) && status.endpoints.iter().all(is_granted);
    if is_kept || status.endpoints.is_empty() {
        before
    } else {
        Some(before.unwrap_or_default().wrapping_add(1))
    }
}

/// The nodes that the grants of a Pinhole are for. Of one that the controller has not written a status of, its labels tell.
pub fn nodes_before(pinhole: &Pinhole) -> BTreeSet<String> {
    let Some(status) = pinhole.status.as_ref().filter(|status| status.observed_generation.is_some()) else {
        let labels = pinhole.metadata.labels.iter().flatten();
        let nodes = labels.filter_map(|(label, _)| label.strip_prefix(keys::NODE_LABEL_PREFIX));
        return nodes.map(str::to_owned).collect();
    };
    status.node.split(',').filter(|node| !node.is_empty()).map(str::to_owned).collect()
}

/// The nodes in the words of a status.
pub fn shown(nodes: &BTreeSet<String>) -> String {
    nodes.iter().cloned().collect::<Vec<_>>().join(",")
}

/// The labels by which the agents of all nodes find a Pinhole that may have something of it in their kernels, when it is served
/// by `nodes` from now on.
pub fn labels(stored: &Pinhole, nodes: &BTreeSet<String>) -> BTreeSet<String> {
    let before = nodes_before(stored);
    let waited_for = stored.status.iter().flat_map(|status| &status.releasing).map(|old| &old.node);
    nodes.iter().chain(&before).chain(waited_for).map(|node| keys::node_label(node)).collect()
}

/// The labels of nodes that it has.
pub fn node_labels(pinhole: &Pinhole) -> BTreeSet<String> {
    let labels = pinhole.metadata.labels.iter().flatten().map(|(label, _)| label);
    labels.filter(|label| label.starts_with(keys::NODE_LABEL_PREFIX)).cloned().collect()
}

/// Whether any agent can have seen it.
pub fn is_anywhere(pinhole: &Pinhole) -> bool {
    !node_labels(pinhole).is_empty()
}

/// Whether it stays until nobody has anything of it.
pub fn is_kept(pinhole: &Pinhole) -> bool {
    pinhole.metadata.finalizers.iter().flatten().any(|name| name == keys::RELEASE_FINALIZER)
}

fn has_let_go(status: &PinholeStatus, old: &Releasing, patience: &Patience<'_>) -> bool {
    let report = status.nodes.iter().find(|report| report.name == old.node);
    if report.is_some_and(|report| report.observed_generation >= Some(old.generation)) {
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

fn port(endpoint: &Endpoint) -> (&String, Transport, u16, Option<u16>) {
    (&endpoint.address, endpoint.protocol, endpoint.port, endpoint.port_end)
}

fn released(old: &Releasing) -> (&String, Transport, u16, Option<u16>) {
    (&old.address, old.protocol, old.port, old.port_end)
}

/// What nodes may have in their kernels, of all Pinholes.
#[derive(Debug, Default)]
pub struct Serving<'a> {
    keys: BTreeSet<ClaimKey>,
    /// Whether everything that was ever granted to the pod of a UID is granted still or was let go.
    settled: BTreeMap<&'a str, bool>,
    /// Whose pods, or Pinholes of their own, agents may have seen.
    holders: BTreeSet<Holder>,
}

impl<'a> Serving<'a> {
    /// What these Pinholes say.
    pub fn of(pinholes: &'a Pinholes) -> Self {
        let mut serving = Self::default();
        for (name, pinhole) in pinholes {
            let status = pinhole.status.as_ref();
            if let Some(uid) = &pinhole.spec.target.pod_uid {
                let of_pods = status.iter().flat_map(|status| &status.targets);
                let uids = of_pods.map(|target| target.pod_uid.as_str()).chain([uid.as_str()]);
                let is_settled = is_settled(pinhole);
                serving.settled.extend(uids.map(|uid| (uid, is_settled)));
            }
            if !is_anywhere(pinhole) {
                continue;
            }
            let itself = || Holder::new(Kind::Pinhole.name(), name.clone());
            serving.holders.insert(pinhole.spec.holder.as_ref().map_or_else(itself, Holder::from));
            for endpoint in status.iter().flat_map(|status| &status.endpoints) {
                serving.add(&endpoint.address, endpoint.protocol, endpoint.port, endpoint.port_end);
            }
            for old in status.iter().flat_map(|status| &status.releasing) {
                serving.add(&old.address, old.protocol, old.port, old.port_end);
            }
        }
        serving
    }

    /// Whether a node may have a port in its kernel.
    pub fn has(&self, key: &ClaimKey) -> bool {
        self.keys.contains(key)
    }

    /// Whether a node may know something of this holder, and so have been granted what does not show yet.
    pub fn knows(&self, holder: &Holder) -> bool {
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

/// Whether every node has answered for what is granted now.
fn is_settled(pinhole: &Pinhole) -> bool {
    if !is_anywhere(pinhole) {
        return true;
    }
    let Some(status) = pinhole.status.as_ref().filter(|status| pinhole.is_current(status)) else {
        return false;
    };
    let has_answered = |node: &String| {
        let mut reports = status.nodes.iter().filter(|report| report.name == *node);
        reports.any(|report| report.observed_generation == pinhole.metadata.generation)
    };
    status.releasing.is_empty() && nodes_before(pinhole).iter().all(has_answered)
}
