//! The Pinholes that users write: what is to be written into each, from what is known. Pure, so that a test can ask it anything.
//!
//! # Guarantees
//! - Of the object only the labels of its serving nodes, a finalizer and its status are ours; what the user wrote stays as it is.
//! - What is taken away from it, and all of it once it is deleted, is nobody else's before its nodes have let go, see
//!   [`releasing`].
//! - Its status grants what the Pinhole itself has claimed, by the same judgement as an annotated pod's.
//! - Nothing is written that is stored already.

pub mod target;

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::admission::index::Index;
use crate::admission::pinhole;
use crate::admission::pinhole::Forward;
use crate::api::crd::condition::ConditionStatus;
use crate::api::crd::pinhole::Endpoint;
use crate::api::crd::pinhole::Handover;
use crate::api::crd::pinhole::Pinhole;
use crate::api::crd::pinhole::PinholePort;
use crate::api::crd::pinhole::PinholeSpec;
use crate::api::crd::pinhole::PinholeStatus;
use crate::api::crd::pinhole::SUSPENDED;
use crate::api::crd::pinhole::Sharing;
use crate::api::keys;
use crate::api::object::Object;
use crate::cluster::backends::Backends;
use crate::cluster::backends::Need;
use crate::cluster::events::Reason;
use crate::cluster::pinhole_watch::Pinholes;
use crate::controller::ending;
use crate::controller::pinholes::Said;
use crate::controller::pinholes::Write;
use crate::controller::pinholes::accepted;
use crate::controller::pinholes::conditions;
use crate::controller::pinholes::endpoint;
use crate::controller::pinholes::in_short;
use crate::controller::pinholes::is_ours;
use crate::controller::pinholes::of;
use crate::controller::pinholes::programmed;
use crate::controller::pinholes::write_status;
use crate::controller::releasing;
use crate::controller::releasing::Patience;
use crate::controller::serving;
use crate::controller::standing;
use crate::controller::standing::Granted;
use crate::controller::standing::Known;
use crate::controller::standing::Standing;
use crate::controller::standing::Verdict;
use crate::controller::written::target::Problem;
use crate::controller::written::target::Resolved;
use crate::controller::written::target::Slices;
use crate::model::holder::ObjectName;
use crate::model::mapping::Address;

/// The most pods that stand by which one message names.
const MOST_NAMED: usize = 5;

/// What is to be written, and said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The writes, in the order of the objects' names.
    pub writes: Vec<Write>,
    /// What is wrong with some.
    pub troubles: Vec<Trouble>,
}

/// Why a Pinhole is not served, as far as no agent says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The Pinhole.
    pub pinhole: ObjectName,
    /// Its UID.
    pub uid: String,
    /// Why, in the word of its condition as far as Events have it.
    pub reason: Reason,
    /// Why, in a sentence.
    pub message: String,
}

/// What has to be known to plan for these.
pub fn need(pinholes: &Pinholes) -> Need {
    let mut need = Need::default();
    for pinhole in pinholes.values() {
        need.services |= pinhole.spec.target.service.is_some();
        // Which pod is the newest no slice tells.
        need.pods |=
            pinhole.spec.target.pod_selector.is_some() || pinhole.spec.handover == Handover::Immediate;
    }
    need
}

/// What is to be written now.
pub fn plan(pinholes: &Pinholes, backends: &Backends, known: &Known<'_>, patience: &Patience<'_>) -> Plan {
    let slices = target::by_service(backends);
    let mut plan = Plan::default();
    for (name, stored) in pinholes {
        if is_ours(stored) {
            continue;
        }
        if stored.metadata.deletion_timestamp.is_some() {
            plan.writes.extend(ending::leave(stored, patience));
            continue;
        }
        let Some(standing) = standing::stand(&Object::of_pinhole(stored), known) else { continue };
        let scene = Scene { stored, standing: &standing, backends, slices: &slices, index: known.index };
        let serving = scene.serving();
        if let Some(write) = write_labels(stored, &serving.nodes) {
            plan.writes.push(write);
            continue;
        }
        let (status, trouble) = scene.status(name, &serving, patience);
        plan.troubles.extend(trouble.map(|(reason, message)| Trouble {
            pinhole: name.clone(),
            uid: stored.metadata.uid.clone().unwrap_or_default(),
            reason,
            message,
        }));
        plan.writes.extend(write_status(stored, status));
    }
    plan
}

/// Makes our labels and our finalizer so, if they are not, for an object that these nodes serve from now on.
pub(super) fn write_labels(stored: &Pinhole, nodes: &BTreeSet<String>) -> Option<Write> {
    let labels = releasing::labels(stored, nodes);
    // Before a node is granted anything, the object can outlive its deletion.
    let is_deleted = stored.metadata.deletion_timestamp.is_some();
    let is_kept = if is_deleted { releasing::is_kept(stored) } else { !labels.is_empty() };
    if labels == releasing::node_labels(stored) && is_kept == releasing::is_kept(stored) {
        return None;
    }
    let mut written = of(stored);
    let mut all = stored.metadata.labels.clone().unwrap_or_default();
    all.retain(|label, _| !label.starts_with(keys::NODE_LABEL_PREFIX));
    all.extend(labels.into_iter().map(|label| (label, String::new())));
    written.metadata.labels = Some(all);
    let mut finalizers = stored.metadata.finalizers.clone().unwrap_or_default();
    finalizers.retain(|finalizer| finalizer != keys::RELEASE_FINALIZER);
    finalizers.extend(is_kept.then(|| keys::RELEASE_FINALIZER.to_owned()));
    written.metadata.finalizers = Some(finalizers);
    Some(Write::Label(Box::new(written)))
}

/// Who serves a Pinhole.
#[derive(Debug, Default)]
struct Serving {
    /// The nodes that have an address of it.
    nodes: BTreeSet<String>,
    /// The addresses that no node has.
    missing: BTreeSet<IpAddr>,
}

/// One Pinhole and what is known about it.
struct Scene<'a> {
    stored: &'a Pinhole,
    standing: &'a Standing,
    backends: &'a Backends,
    slices: &'a Slices<'a>,
    index: &'a Index,
}

impl Scene<'_> {
    /// Nobody serves what was refused; what waits for its claim goes on being served where it is.
    fn serving(&self) -> Serving {
        let wanted = match self.standing.verdict {
            Verdict::Granted | Verdict::Waiting(_) => self.standing.wanted.iter().collect(),
            Verdict::Refused(_) | Verdict::Taken(_) | Verdict::Full(_) => {
                self.standing.granted.iter().map(|granted| &granted.mapping).collect::<Vec<_>>()
            }
        };
        let mut serving = Serving::default();
        for mapping in wanted {
            let Address::Fixed(address) = mapping.address() else { continue };
            let nodes = serving::at(mapping.address(), None, self.index);
            if nodes.is_empty() {
                serving.missing.insert(address.ip());
            }
            serving.nodes.extend(nodes);
        }
        serving
    }

    /// The status, and what is to be told of it.
    fn status(
        &self,
        name: &ObjectName,
        serving: &Serving,
        patience: &Patience<'_>,
    ) -> (PinholeStatus, Option<(Reason, String)>) {
        let Self { stored, standing, backends, slices, .. } = *self;
        let spec = &stored.spec;
        let generation = stored.metadata.generation;
        let known = stored.status.clone().unwrap_or_default();
        let active = known.targets.iter().find(|target| target.active).map(|target| target.pod_uid.as_str());
        let resolved = target::resolve(spec, &name.namespace, (backends, slices), active, &serving.nodes);
        let accepted = accepted(&standing.verdict);
        let own = match &standing.verdict {
            Verdict::Granted => self.trouble(&resolved, serving),
            _ => Some(Said { status: ConditionStatus::False, ..accepted.clone() }),
        };
        let is_trouble = own.as_ref().filter(|_| !matches!(standing.verdict, Verdict::Waiting(_)));
        let trouble = is_trouble
            .filter(|said| said.reason != SUSPENDED)
            .map(|said| (Reason::of_condition(&said.reason), said.message.clone()));
        let programmed = own.unwrap_or_else(|| programmed(&known.nodes, &serving.nodes, generation));
        let mut conditions = conditions(known.conditions, accepted, programmed, generation, patience.now);
        conditions.retain(|condition| condition.type_ != EXCLUSIVE || spec.sharing == Sharing::Exclusive);
        if spec.sharing == Sharing::Exclusive {
            let said = is_exclusive(&resolved);
            said.into_condition(EXCLUSIVE, generation, patience.now).set(&mut conditions);
        }
        let endpoints = self.endpoints(&resolved);
        let releasing = releasing::releasing(stored, &endpoints, &serving.nodes, patience);
        let status = PinholeStatus {
            observed_generation: generation,
            external: in_short(&standing.shown(self.index)),
            target: leads_to(spec),
            node: releasing::shown(&serving.nodes),
            holder: standing.shown_holder().in_short(),
            endpoints,
            own_addresses: Vec::new(),
            releasing,
            targets: resolved.targets,
            nodes: known.nodes,
            conditions,
        };
        (status, trouble)
    }

    /// What keeps a granted Pinhole from being served, before any node is asked.
    fn trouble(&self, resolved: &Resolved, serving: &Serving) -> Option<Said> {
        let no = |reason: &str, message: &str| Some(Said::new(ConditionStatus::False, reason, message));
        if self.stored.spec.suspended {
            return no(
                SUSPENDED,
                "spec.suspended is true: the ports stay claimed and nothing is let through",
            );
        }
        if let Some(Problem { reason, message }) = &resolved.problem {
            return no(reason, message);
        }
        let missing: Vec<_> = serving.missing.iter().map(ToString::to_string).collect();
        if missing.is_empty() {
            return None;
        }
        let missing = missing.join(", ");
        let message = format!(
            "no node has {missing}, by what NatNodes say; it is served as soon as one has it on an interface of its own"
        );
        no("NoNode", &message)
    }

    /// What was granted, each with its port at the active pod. A port that its Service does not have leads nowhere and is left
    /// out; without any pod all are there, and nodes keep them closed.
    fn endpoints(&self, resolved: &Resolved) -> Vec<Endpoint> {
        let spec = &self.stored.spec;
        let (forwards, _) = pinhole::forwards(spec);
        let has_target = resolved.targets.first().is_some_and(|target| target.active);
        let of = |granted: &Granted| {
            let mapping = &granted.mapping;
            let is_it = |forward: &&Forward| forward.located.mapping == *mapping;
            let position = forwards.iter().find(is_it)?.port;
            let endpoint = endpoint(granted, self.index)?;
            let target_port = match resolved.ports.get(&position) {
                Some(port) => *port,
                None if has_target => return None,
                None => endpoint.target_port,
            };
            let name = spec.ports.get(position).and_then(|port| port.name.clone());
            let nodes = serving::at(mapping.address(), None, self.index).into_iter().collect();
            Some(Endpoint { name, target_port, nodes, ..endpoint })
        };
        self.standing.granted.iter().filter_map(of).collect()
    }
}

/// The condition that tells whether there is one pod, where there should be.
const EXCLUSIVE: &str = "Exclusive";

/// What is said of the pods that are ready where there should be one.
fn is_exclusive(Resolved { ready, targets, .. }: &Resolved) -> Said {
    match ready.len() {
        0 => Said::new(ConditionStatus::True, "NoPod", ""),
        1 => Said::new(ConditionStatus::True, "OnePod", ""),
        number => {
            let served = targets.first().map_or("none", |target| &target.pod);
            let others: Vec<_> = ready.iter().map(String::as_str).filter(|pod| *pod != served).collect();
            let listed = others.iter().take(MOST_NAMED).copied().collect::<Vec<_>>().join(", ");
            let more = if MOST_NAMED < others.len() { ", ..." } else { "" };
            let message = format!(
                "{number} pods are ready: {served} is served, {listed}{more} would take over; keep one, or write sharing: ActiveStandby"
            );
            Said::new(ConditionStatus::False, "SeveralPods", &message)
        }
    }
}

/// `Service web:https`, `app=web:8080`.
fn leads_to(spec: &PinholeSpec) -> String {
    let port = spec.ports.first().and_then(PinholePort::leads_to);
    let port = port.map_or_else(String::new, |port| format!(":{port}"));
    format!("{}{port}", spec.target.in_short())
}

#[cfg(test)]
mod tests;
