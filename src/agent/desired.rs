//! What a node should serve, from what is known of it: the pure middle of the agent's loop.
//!
//! Every pod is judged again by the rules that admitted it: admission can have been off, bypassed, or older than the
//! pod (R27). What it asks for then goes through the election, so that each port leads to one pod, and the outcome
//! becomes rules. Whoever is left out is named with the reason, in the words that admission uses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::admission;
use crate::admission::Operation;
use crate::admission::Request;
use crate::admission::World;
use crate::admission::index::Index;
use crate::admission::index::ObjectKey;
use crate::admission::policy::Policy;
use crate::admission::violation;
use crate::api::object::Kind;
use crate::api::object::Object;
use crate::model::holder::Holder;
use crate::model::holder::ObjectName;
use crate::ruleset;
use crate::ruleset::Ruleset;
use crate::ruleset::election;
use crate::ruleset::election::Candidate;
use crate::ruleset::election::Loser;
use crate::ruleset::node::NodeFacts;
use crate::ruleset::owner::Owner;

/// What a plan is made from.
#[derive(Debug)]
pub struct Known<'a> {
    /// The pods of the node that ask for ports.
    pub pods: &'a BTreeMap<ObjectName, Object>,
    /// Owners, the node and namespaces; no pods.
    pub index: &'a Index,
    /// What is allowed.
    pub policy: &'a Policy,
    /// The node.
    pub node: &'a NodeFacts,
    /// What the kernel holds.
    pub programmed: &'a Ruleset,
}

/// What a node should serve.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The rules.
    pub ruleset: Ruleset,
    /// Every pod that has not ended, by its name in the rules.
    pub pods: BTreeMap<Owner, Pod>,
    /// Who stays without a port because another pod has it.
    pub losers: Vec<Loser>,
    /// Who stays without ports for any other reason.
    pub unserved: Vec<Unserved>,
}

/// A pod that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: ObjectName,
    /// Its UID.
    pub uid: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
}

/// A pod that cannot be served, or may not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unserved {
    /// The pod.
    pub pod: ObjectName,
    /// Its UID.
    pub uid: String,
    /// By whom it was refused.
    pub by: RefusedBy,
    /// Why, and what to do.
    pub problem: String,
}

/// Who refuses to serve a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefusedBy {
    /// The rules of admission.
    Admission,
    /// The node, which cannot serve what is asked for.
    Node,
    /// The kernel.
    Kernel,
}

/// Plans what the node should serve.
pub fn plan(known: &Known<'_>) -> Plan {
    let mut plan = Plan::default();
    let mut candidates = Vec::new();
    // A pod that ended never receives a packet again, and its address may be somebody else's by now (R14).
    for pod in known.pods.values().filter(|pod| !pod.is_finished()) {
        let present = Pod { name: name(pod), uid: pod.metadata.uid.clone(), ips: ips(pod) };
        plan.pods.insert(Owner::new(&present.name, &present.uid), present);
        match judge(pod, known) {
            Judgement::AsksForNothing => {}
            Judgement::Refused(problem) => plan.unserved.push(Unserved {
                pod: name(pod),
                uid: pod.metadata.uid.clone(),
                by: RefusedBy::Admission,
                problem,
            }),
            Judgement::Candidate(candidate) => candidates.push(*candidate),
        }
    }
    let elected = election::elect(&candidates, known.node, known.programmed);
    let desired = ruleset::desired(&elected.endpoints, known.node);
    plan.ruleset = desired.ruleset;
    plan.losers = elected.losers;
    plan.unserved.extend(desired.refused.into_iter().map(|refused| Unserved {
        problem: format!("{}: {}", refused.mapping, refused.reason),
        pod: refused.pod,
        uid: refused.uid,
        by: RefusedBy::Node,
    }));
    plan
}

enum Judgement {
    AsksForNothing,
    Refused(String),
    Candidate(Box<Candidate>),
}

fn judge(pod: &Object, known: &Known<'_>) -> Judgement {
    let Known { index, policy, .. } = *known;
    let namespace = &pod.metadata.namespace;
    let namespaces = &policy.namespaces;
    let labels = index.namespace_labels(namespace);
    if !namespaces.selector.is_empty() && !namespaces.allows(namespace, labels) && labels.is_none() {
        // The namespace is new; its labels are on their way, and this is judged again when they arrive.
        return Judgement::AsksForNothing;
    }
    let request = Request {
        operation: Operation::Create,
        namespace: namespace.clone(),
        object: Some(pod.clone()),
        old_object: None,
    };
    let decision = admission::decide(&request, &World { policy, index });
    if !decision.is_granted() {
        return Judgement::Refused(violation::summary(&decision.violations));
    }
    if decision.mappings.is_empty() {
        return Judgement::AsksForNothing;
    }
    Judgement::Candidate(Box::new(Candidate {
        pod: name(pod),
        uid: pod.metadata.uid.clone(),
        holder: holder(pod, index),
        created: pod.metadata.creation_timestamp.clone(),
        ready: are_containers_ready(pod),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        ips: ips(pod),
        mappings: decision.mappings,
    }))
}

/// The holder; while the owner's own owner is not known, the owner that the pod names.
fn holder(pod: &Object, index: &Index) -> Holder {
    let key = ObjectKey { kind: Kind::Pod, name: name(pod) };
    index
        .holder(&key, pod.metadata.controller())
        .unwrap_or_else(|owner| Holder::new(owner.kind.name(), owner.name))
}

/// Not the condition `Ready`: that one also waits for readiness gates, and one of them may wait for us.
fn are_containers_ready(pod: &Object) -> bool {
    let statuses = &pod.status.container_statuses;
    pod.has_condition("ContainersReady")
        || (!statuses.is_empty() && statuses.iter().all(|status| status.ready))
}

fn name(pod: &Object) -> ObjectName {
    ObjectName::new(pod.metadata.namespace.as_str(), pod.metadata.name.as_str())
}

fn ips(pod: &Object) -> Vec<IpAddr> {
    pod.status.pod_ips.iter().filter_map(|found| found.ip.parse().ok()).collect()
}
