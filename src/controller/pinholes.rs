//! The Pinholes of annotated pods: what is to be written, from what is known. Pure, so that a test can ask it anything.
//!
//! # Guarantees
//! - A pod has at most one, with its name. One of that name that somebody else wrote is never touched.
//! - It follows the name: a pod of the same name that comes after it gets the same object, so that what the first one had is
//!   known until every node has let it go.
//! - It goes when no node has anything of it any more, see [`releasing`].
//! - Nothing is written that is stored already.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use crate::admission::handover;
use crate::admission::index::Index;
use crate::admission::sharing;
use crate::admission::suspended;
use crate::api::annotation::MAX_ENTRIES;
use crate::api::crd::condition::Condition;
use crate::api::crd::condition::ConditionStatus;
use crate::api::crd::pinhole::Endpoint;
use crate::api::crd::pinhole::NodeReport;
use crate::api::crd::pinhole::Pinhole;
use crate::api::crd::pinhole::PinholePort;
use crate::api::crd::pinhole::PinholeSpec;
use crate::api::crd::pinhole::PinholeStatus;
use crate::api::crd::pinhole::PinholeTarget;
use crate::api::crd::pinhole::STANDBY;
use crate::api::crd::pinhole::TargetPort;
use crate::api::crd::pinhole::TargetReport;
use crate::api::crd::pinhole::TargetState;
use crate::api::crd::pinhole::UdpHandover;
use crate::api::crd::shared::HolderReference;
use crate::api::keys;
use crate::api::object::Object;
use crate::cluster::asking_pods::AskingPods;
use crate::cluster::events::ObjectEvent;
use crate::cluster::events::Reason;
use crate::cluster::events::Regarding;
use crate::cluster::pinhole_watch::Pinholes;
use crate::controller::automatic;
use crate::controller::ending;
use crate::controller::gate;
use crate::controller::news::News;
use crate::controller::releasing;
use crate::controller::releasing::Patience;
use crate::controller::serving;
use crate::controller::standing;
use crate::controller::standing::Granted;
use crate::controller::standing::Known;
use crate::controller::standing::Standing;
use crate::controller::standing::Verdict;
use crate::model::automatic::AutomaticPort;
use crate::model::holder::ObjectName;
use crate::model::mapping::Address;
use crate::model::mapping::Mapping;
use crate::model::port::PortRange;

/// The longest message of a condition.
const LONGEST_MESSAGE: usize = 4096;

/// What is to be written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The writes, in the order of the objects' names.
    pub writes: Vec<Write>,
    /// What owners are to hear.
    pub news: News,
    /// How many pods stand in each way, by the word of the verdict.
    pub standings: BTreeMap<&'static str, usize>,
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// What is wanted. With a UID, of that object and no other.
    Apply(Box<Pinhole>),
    /// What became of it, of the object with this UID.
    Report(Box<Pinhole>),
    /// Which nodes serve somebody's object, in its labels: all that it is to have, and all its finalizers.
    Label(Box<Pinhole>),
    /// What a pod is told.
    Announce {
        /// The pod.
        pod: ObjectName,
        /// The change of it, as a merge patch of its present version.
        patch: Value,
    },
    /// What its readiness gate says.
    Gate {
        /// The pod.
        pod: ObjectName,
        /// Its UID.
        uid: String,
        /// The condition.
        condition: Value,
    },
    /// It is over.
    Delete(Box<Pinhole>),
}

/// What is to be written now.
pub fn plan(pods: &AskingPods, pinholes: &Pinholes, known: &Known<'_>, patience: &Patience<'_>) -> Plan {
    let mut plan = Plan::default();
    for (name, pod) in pods {
        let Some(standing) = standing::stand(pod, known) else { continue };
        let stored = pinholes.get(name);
        *plan.standings.entry(standing.verdict.word()).or_default() += 1;
        // A pod beside somebody else's object is not served.
        if stored.is_none_or(is_ours) {
            let announcement = automatic::announcement(pod, &standing, known.index);
            plan.writes.extend(announcement.map(|patch| Write::Announce { pod: name.clone(), patch }));
        }
        match stored {
            Some(stored) if !is_ours(stored) => {
                let note = format!(
                    "a Pinhole named {} that somebody else wrote stands in the place of this pod's own, so its ports are not \
                     served; rename or delete that Pinhole",
                    name.name
                );
                let reason = Reason::NotProgrammed;
                plan.news.add(ObjectEvent { regarding: Regarding::pod(pod), reason, note });
                continue;
            }
            Some(stored) => {
                plan.writes.extend(update(stored, pod, &standing, patience));
                let gate =
                    |condition| Write::Gate { pod: name.clone(), uid: pod.metadata.uid.clone(), condition };
                plan.writes.extend(gate::condition(pod, stored, patience.now).map(gate));
            }
            None => plan.writes.push(Write::Apply(Box::new(wanted(pod, &standing, known.index)))),
        }
        plan.news.add_of_pod(pod, &standing, known.index);
    }
    let is_over = |name: &ObjectName| pods.get(name).is_none_or(Object::is_finished);
    let over = pinholes.iter().filter(|(name, stored)| is_ours(stored) && is_over(name));
    plan.writes.extend(over.filter_map(|(_, stored)| ending::end(stored, patience)));
    plan
}

/// Whether the controller wrote it: nobody else may write one for a pod.
pub(super) fn is_ours(pinhole: &Pinhole) -> bool {
    pinhole.spec.target.pod.is_some()
}

/// What differs between a stored object and what it should be.
fn update(stored: &Pinhole, pod: &Object, standing: &Standing, patience: &Patience<'_>) -> Option<Write> {
    let index = patience.index;
    let (nodes, endpoints) = (nodes(pod, standing, index), endpoints(pod, standing, index));
    let withdrawals = releasing::withdrawals(stored, &endpoints, &nodes);
    let spec = PinholeSpec { withdrawals, ..spec(pod, standing) };
    write_spec(stored, spec, &nodes).or_else(|| {
        let status = status(stored, pod, standing, endpoints, &nodes, patience);
        write_status(stored, status)
    })
}

/// Makes spec, labels and finalizer of a stored object so, if they are not.
pub(super) fn write_spec(stored: &Pinhole, spec: PinholeSpec, nodes: &BTreeSet<String>) -> Option<Write> {
    let labels = releasing::labels(stored, nodes);
    // Nobody can put a finalizer on an object that is about to go.
    let is_kept = stored.metadata.deletion_timestamp.is_some() || releasing::is_kept(stored);
    if spec == stored.spec && releasing::node_labels(stored) == labels && is_kept {
        return None;
    }
    let mut written = with_metadata(Pinhole { spec, ..of(stored) }, labels);
    if stored.metadata.deletion_timestamp.is_some() {
        written.metadata.finalizers.clone_from(&stored.metadata.finalizers);
    }
    Some(Write::Apply(Box::new(written)))
}

/// Writes the controller's part of a status, if it is not stored.
pub(super) fn write_status(stored: &Pinhole, status: PinholeStatus) -> Option<Write> {
    // What nodes say is theirs to write.
    (stored.status.as_ref() != Some(&status)).then(|| {
        let status = PinholeStatus { nodes: Vec::new(), ..status };
        Write::Report(Box::new(Pinhole { status: Some(status), ..of(stored) }))
    })
}

/// What names a stored object and the version of it that a write rests on.
pub(super) fn of(stored: &Pinhole) -> Pinhole {
    let mut named = Pinhole::new("", PinholeSpec::default());
    let ObjectMeta { name, namespace, uid, resource_version, finalizers, .. } = stored.metadata.clone();
    named.metadata =
        ObjectMeta { name, namespace, uid, resource_version, finalizers, ..ObjectMeta::default() };
    named
}

fn with_metadata(mut pinhole: Pinhole, node_labels: BTreeSet<String>) -> Pinhole {
    let (manager, us) = keys::MANAGED_BY;
    let labels = node_labels.into_iter().map(|label| (label, String::new()));
    pinhole.metadata.labels = Some(labels.chain([(manager.to_owned(), us.to_owned())]).collect());
    pinhole.metadata.finalizers = Some(vec![keys::RELEASE_FINALIZER.to_owned()]);
    pinhole
}

/// The Pinhole of a pod.
fn wanted(pod: &Object, standing: &Standing, index: &Index) -> Pinhole {
    let mut pinhole = Pinhole::new(&pod.metadata.name, spec(pod, standing));
    pinhole.metadata.namespace = Some(pod.metadata.namespace.clone());
    let labels = nodes(pod, standing, index).iter().map(|node| keys::node_label(node)).collect();
    with_metadata(pinhole, labels)
}

/// What the Pinhole of a pod asks for.
fn spec(pod: &Object, standing: &Standing) -> PinholeSpec {
    let mut ports: Vec<&Mapping> = Vec::new();
    // One that asks for a port twice, or for more than it may, is refused; the object shows the first.
    for mapping in &standing.wanted {
        if ports.len() < MAX_ENTRIES && ports.iter().all(|shown| shown.overlap(mapping).is_none()) {
            ports.push(mapping);
        }
    }
    PinholeSpec {
        target: PinholeTarget {
            pod: Some(pod.metadata.name.clone()),
            pod_uid: Some(pod.metadata.uid.clone()),
            ..PinholeTarget::default()
        },
        ports: ports
            .into_iter()
            .map(port)
            .chain(standing.automatic.iter().map(|(port, _)| open_port(port)))
            .take(MAX_ENTRIES)
            .collect(),
        holder: Some(HolderReference::from(standing.shown_holder())),
        handover: handover::of(&pod.metadata.annotations).into(),
        udp_handover: handover::of_udp(&pod.metadata.annotations).map(UdpHandover::from),
        sharing: sharing::of(&pod.metadata.annotations).unwrap_or_default(),
        ..PinholeSpec::default()
    }
}

fn port(mapping: &Mapping) -> PinholePort {
    let (external, target) = (mapping.external(), mapping.target());
    PinholePort {
        name: None,
        address: match mapping.address() {
            Address::Node => None,
            Address::Fixed(address) => Some(address.to_string()),
        },
        protocol: mapping.protocol().into(),
        port: Some(external.first().get()),
        port_end: (!external.is_single()).then(|| external.last().get()),
        target_port: Some(TargetPort::Number(target.first().get())),
        allowed_sources: mapping.allowed_sources().iter().map(ToString::to_string).collect(),
        terminate_existing: mapping.terminates_existing(),
    }
}

/// A port that is left to a pool: what was found stands in the status.
fn open_port(port: &AutomaticPort) -> PinholePort {
    PinholePort {
        protocol: port.protocol.into(),
        target_port: Some(TargetPort::Number(port.target.get())),
        allowed_sources: port.allowed_sources().iter().map(ToString::to_string).collect(),
        terminate_existing: port.terminates_existing(),
        ..PinholePort::default()
    }
}

/// The nodes that serve a pod; none before it runs on one. They hear of what was refused to it, too.
fn nodes(pod: &Object, standing: &Standing, index: &Index) -> BTreeSet<String> {
    let Some(own) = &pod.spec.node_name else { return BTreeSet::new() };
    let nodes = serving::of(standing.wanted.iter().chain(standing.found()), own, index);
    // Nothing is found for it yet.
    if nodes.is_empty() { [own.clone()].into() } else { nodes }
}

/// What was granted, each with the nodes that serve it.
fn endpoints(pod: &Object, standing: &Standing, index: &Index) -> Vec<Endpoint> {
    let own = pod.spec.node_name.as_deref();
    let of = |granted: &Granted| {
        // The own address of a node is served by that node, whoever else has it.
        let nodes = own.map(|own| serving::at(granted.asked, Some(own), index)).unwrap_or_default();
        Some(Endpoint { nodes: nodes.into_iter().collect(), ..endpoint(granted, index)? })
    };
    standing.granted.iter().filter_map(of).collect()
}

/// What became of a pod's wishes.
fn status(
    stored: &Pinhole,
    pod: &Object,
    standing: &Standing,
    endpoints: Vec<Endpoint>,
    nodes: &BTreeSet<String>,
    patience: &Patience<'_>,
) -> PinholeStatus {
    let releasing = releasing::releasing(stored, &endpoints, nodes, patience);
    let generation = stored.metadata.generation;
    let known = stored.status.clone().unwrap_or_default();
    let node = pod.spec.node_name.as_deref();
    let accepted = accepted(&standing.verdict);
    let programmed = match (&standing.verdict, node) {
        (Verdict::Granted, None) => {
            Said::new(ConditionStatus::False, "Unscheduled", "the pod runs on no node yet")
        }
        (Verdict::Granted, Some(_)) => programmed(&known.nodes, nodes, generation),
        _ => Said { status: ConditionStatus::False, ..accepted.clone() },
    };
    let is_active = programmed.status == ConditionStatus::True;
    let conditions = conditions(known.conditions, accepted, programmed, generation, patience.now);
    let addresses: Vec<_> = pod.status.pod_ips.iter().take(2).map(|found| found.ip.clone()).collect();
    let target = TargetReport {
        pod: pod.metadata.name.clone(),
        pod_uid: pod.metadata.uid.clone(),
        addresses: addresses.clone(),
        node: node.map(str::to_owned),
        active: is_active,
        state: nodes.iter().any(|serving| Some(serving.as_str()) != node).then(|| state(pod)).flatten(),
    };
    let is_before =
        |old: &TargetReport| old.pod_uid != target.pod_uid && patience.named.contains(old.pod_uid.as_str());
    let before: Vec<_> = known
        .targets
        .into_iter()
        .filter(is_before)
        .map(|old| TargetReport { active: false, state: None, ..old })
        .collect();
    PinholeStatus {
        observed_generation: generation,
        external: in_short(&standing.shown(patience.index)),
        target: addresses.first().map_or_else(
            || format!("Pod {}", pod.metadata.name),
            |address| standing.first_target().map_or_else(String::new, |ports| leads_to(address, ports)),
        ),
        node: releasing::shown(nodes),
        holder: standing.shown_holder().in_short(),
        endpoints,
        own_addresses: standing.own_addresses.iter().map(ToString::to_string).collect(),
        releasing,
        targets: std::iter::once(target).chain(before).collect(),
        nodes: known.nodes,
        conditions,
    }
}

/// What another node than the pod's elects by.
fn state(pod: &Object) -> Option<TargetState> {
    Some(TargetState {
        created: pod.metadata.creation_timestamp.parse().ok()?,
        ready: pod.are_containers_ready(),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        suspended: suspended::is(&pod.metadata.annotations),
    })
}

/// What a condition says.
#[derive(Clone, Debug)]
pub(super) struct Said {
    pub(super) status: ConditionStatus,
    pub(super) reason: String,
    pub(super) message: String,
}

impl Said {
    pub(super) fn new(status: ConditionStatus, reason: &str, message: &str) -> Self {
        let message = message.chars().take(LONGEST_MESSAGE).collect();
        Self { status, reason: reason.to_owned(), message }
    }

    pub(super) fn into_condition(self, type_: &str, generation: Option<i64>, now: Timestamp) -> Condition {
        let Self { status, reason, message } = self;
        Condition {
            type_: type_.to_owned(),
            status,
            reason,
            message,
            last_transition_time: now,
            observed_generation: generation,
        }
    }
}

/// What is said of an object, in place of what was said before.
pub(super) fn conditions(
    mut before: Vec<Condition>,
    accepted: Said,
    programmed: Said,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    for (type_, said) in [("Accepted", accepted), ("Programmed", programmed)] {
        said.into_condition(type_, generation, now).set(&mut before);
    }
    before
}

pub(super) fn accepted(verdict: &Verdict) -> Said {
    let status = match verdict {
        Verdict::Granted => ConditionStatus::True,
        Verdict::Waiting(_) => ConditionStatus::Unknown,
        Verdict::Refused(_) | Verdict::Taken(_) | Verdict::Full(_) => ConditionStatus::False,
    };
    Said::new(status, verdict.word(), verdict.message())
}

/// What the serving nodes say of the object as it is now: that all serve it, or what the first says that does not. One that only
/// stands by is the last to be heard.
pub(super) fn programmed(reports: &[NodeReport], nodes: &BTreeSet<String>, generation: Option<i64>) -> Said {
    let said = nodes.iter().map(|node| programmed_by(reports, node, generation));
    let worst = said.min_by_key(|said| match said.status {
        ConditionStatus::True => 2,
        _ if said.reason == STANDBY => 1,
        _ => 0,
    });
    worst.unwrap_or_else(|| Said::new(ConditionStatus::True, "Programmed", ""))
}

fn programmed_by(reports: &[NodeReport], node: &str, generation: Option<i64>) -> Said {
    let is_current = |report: &&NodeReport| report.name == node && report.observed_generation == generation;
    match reports.iter().find(is_current) {
        None => Said::new(
            ConditionStatus::Unknown,
            "Waiting",
            &format!("the agent of {node} has not reported yet"),
        ),
        Some(report) => {
            let status = if report.programmed { ConditionStatus::True } else { ConditionStatus::False };
            Said::new(status, &report.reason, &report.message)
        }
    }
}

/// `203.0.113.7:25/tcp +1`.
pub(super) fn in_short(shown: &[String]) -> String {
    match shown {
        [] => String::new(),
        [only] => only.clone(),
        [first, rest @ ..] => format!("{first} +{}", rest.len()),
    }
}

fn leads_to(address: &str, ports: PortRange) -> String {
    if address.contains(':') { format!("[{address}]:{ports}") } else { format!("{address}:{ports}") }
}

/// What was granted, if its address is known.
pub(super) fn endpoint(granted: &Granted, index: &Index) -> Option<Endpoint> {
    let Granted { mapping, pool, .. } = granted;
    let Address::Fixed(address) = mapping.address() else { return None };
    Some(Endpoint { pool: pool.clone(), ..Endpoint::of(mapping, address, index.advertised(address)) })
}

#[cfg(test)]
mod tests;
