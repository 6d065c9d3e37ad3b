//! What a Pinhole leads to: the pods behind its Service or its labels, the one of them that new connections go to, and the
//! port of each there. Pure.
//!
//! One pod at a time is active, by nearly the rule of holders: the fittest; of several the one that is active now, so that
//! nothing moves without need; else one on a node that serves the Pinhole; else the first by name. That is the handover
//! `WhenReady`. With `WhenGone` the active one stays while it exists, and with `Immediate` the newest is active that has an address
//! and is not being deleted.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::jiff::Timestamp;

use crate::api::crd::pinhole::Handover;
use crate::api::crd::pinhole::PinholePort;
use crate::api::crd::pinhole::PinholeSpec;
use crate::api::crd::pinhole::TargetPort;
use crate::api::crd::pinhole::TargetReport;
use crate::api::crd::shared::LabelSelector;
use crate::cluster::backends::Backend;
use crate::cluster::backends::Backends;
use crate::cluster::backends::Fitness;
use crate::cluster::backends::NamedPort;
use crate::cluster::backends::Slice;
use crate::model::holder::ObjectName;
use crate::model::port::Protocol;

/// The most pods that one object shows, so that it stays small however large its Service is.
const MOST_TARGETS: usize = 64;

/// What a Pinhole leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// The pods, the active one first.
    pub targets: Vec<TargetReport>,
    /// The port of the active pod behind each of `spec.ports`, by position; one that leads nowhere is left out.
    pub ports: BTreeMap<usize, u16>,
    /// The names of the pods that are ready, in the same order.
    pub ready: Vec<String>,
    /// What is missing.
    pub problem: Option<Problem>,
}

/// Why a Pinhole, or a port of it, leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// One word.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

/// The slices of each Service.
pub type Slices<'a> = BTreeMap<&'a ObjectName, Vec<&'a Slice>>;

/// The slices of all Services, by Service.
pub fn by_service(backends: &Backends) -> Slices<'_> {
    let mut found = Slices::new();
    for slice in backends.slices.values() {
        found.entry(&slice.service).or_default().push(slice);
    }
    found
}

/// A pod, and its port behind each of `spec.ports`.
#[derive(Clone, Debug)]
struct Candidate {
    backend: Backend,
    ports: BTreeMap<usize, u16>,
}

/// What a Pinhole in this namespace leads to. `active` is the UID of the pod that is active now, `serving` the nodes that serve
/// the Pinhole.
pub fn resolve(
    spec: &PinholeSpec,
    namespace: &str,
    (backends, slices): (&Backends, &Slices<'_>),
    active: Option<&str>,
    serving: &BTreeSet<String>,
) -> Resolved {
    let (candidates, problem) = match (&spec.target.service, &spec.target.pod_selector) {
        (Some(service), _) => {
            of_service(spec, &ObjectName::new(namespace, service.as_str()), backends, slices)
        }
        (None, Some(selector)) => (of_selector(spec, namespace, selector, backends), None),
        (None, None) => (BTreeMap::new(), None),
    };
    let mut candidates: Vec<_> = candidates.into_values().collect();
    let is_active = |backend: &Backend| active == Some(backend.uid.as_str());
    let age = |backend: &Backend| {
        newcomer(backend, namespace, backends).filter(|_| spec.handover == Handover::Immediate)
    };
    candidates.sort_by_cached_key(|Candidate { backend, .. }| {
        let stays = spec.handover == Handover::WhenGone && is_active(backend);
        let is_near = backend.node.as_ref().is_some_and(|node| serving.contains(node));
        let rank = (stays, age(backend), backend.fitness, is_active(backend), is_near);
        (Reverse(rank), backend.pod.clone(), backend.uid.clone())
    });
    let takes = |candidate: &&Candidate| {
        let backend = &candidate.backend;
        let is_fit = backend.fitness != Fitness::Unready || is_active(backend) || age(backend).is_some();
        is_fit && !backend.addresses.is_empty()
    };
    let chosen = candidates.first().filter(takes);
    let ports = chosen.map(|chosen| chosen.ports.clone()).unwrap_or_default();
    let is_chosen = chosen.is_some();
    let report = |(position, Candidate { backend, .. }): (usize, &Candidate)| TargetReport {
        pod: backend.pod.clone(),
        pod_uid: backend.uid.clone(),
        addresses: backend.addresses.iter().take(2).map(ToString::to_string).collect(),
        node: backend.node.clone(),
        active: is_chosen && position == 0,
        state: None,
    };
    let is_ready = |candidate: &&Candidate| candidate.backend.fitness == Fitness::Ready;
    let ready = candidates.iter().filter(is_ready).map(|candidate| candidate.backend.pod.clone()).collect();
    let problem = problem.or_else(|| (!is_chosen).then(|| no_target(spec, candidates.len())));
    Resolved {
        targets: candidates.iter().enumerate().take(MOST_TARGETS).map(report).collect(),
        ports,
        ready,
        problem,
    }
}

/// When a pod came that has an address and is not about to go.
fn newcomer(backend: &Backend, namespace: &str, backends: &Backends) -> Option<Timestamp> {
    let known = backends.pods.get(&ObjectName::new(namespace, backend.pod.as_str()))?;
    let comes = known.backend.uid == backend.uid && !known.is_leaving && !backend.addresses.is_empty();
    known.created.filter(|_| comes)
}

fn no_target(spec: &PinholeSpec, present: usize) -> Problem {
    let whose = spec
        .target
        .service
        .as_ref()
        .map_or_else(|| "the labels of podSelector".to_owned(), |service| format!("Service {service}"));
    let message = match present {
        0 => format!("there are no pods behind {whose}, so connections are dropped until there are"),
        present => {
            format!("none of {present} pods behind {whose} is ready, so connections are dropped until one is")
        }
    };
    Problem { reason: "NoTarget", message }
}

/// Pods by UID: one with addresses of both families is in two slices.
fn of_service(
    spec: &PinholeSpec,
    name: &ObjectName,
    backends: &Backends,
    slices: &Slices<'_>,
) -> (BTreeMap<String, Candidate>, Option<Problem>) {
    let Some(service) = backends.services.get(name) else {
        let message = format!("there is no Service {}, so connections are dropped until there is", name.name);
        return (BTreeMap::new(), Some(Problem { reason: "NoService", message }));
    };
    let mut problem = None;
    let mut wanted = Vec::new();
    for (position, port) in spec.ports.iter().enumerate() {
        match port_of_service(port, service) {
            Some(found) => wanted.push((position, found)),
            None => problem = problem.or_else(|| Some(no_such_port(port, &name.name, service))),
        }
    }
    let mut found: BTreeMap<String, Candidate> = BTreeMap::new();
    for slice in slices.get(name).into_iter().flatten() {
        let behind = |(position, port): &(usize, &NamedPort)| {
            let is_it = |found: &&NamedPort| found.name == port.name && found.protocol == port.protocol;
            slice.ports.iter().find(is_it).map(|found| (*position, found.number))
        };
        let ports: BTreeMap<_, _> = wanted.iter().filter_map(behind).collect();
        for backend in &slice.backends {
            let candidate = found.entry(backend.uid.clone()).or_insert_with(|| {
                let addresses: Vec<IpAddr> = Vec::new();
                Candidate { backend: Backend { addresses, ..backend.clone() }, ports: BTreeMap::new() }
            });
            candidate.backend.addresses.extend(&backend.addresses);
            candidate.backend.addresses.sort();
            candidate.backend.addresses.dedup();
            candidate.backend.fitness = candidate.backend.fitness.max(backend.fitness);
            candidate.ports.extend(&ports);
        }
    }
    (found, problem)
}

fn port_of_service<'a>(port: &PinholePort, service: &'a [NamedPort]) -> Option<&'a NamedPort> {
    let protocol = Protocol::from(port.protocol);
    let is_it = |found: &&NamedPort| {
        let is_named = match &port.target_port {
            Some(TargetPort::Name(name)) => found.name == *name,
            Some(TargetPort::Number(number)) => found.number == *number,
            None => Some(found.number) == port.port,
        };
        is_named && found.protocol == protocol
    };
    service.iter().find(is_it)
}

fn no_such_port(port: &PinholePort, name: &str, service: &[NamedPort]) -> Problem {
    let protocol = Protocol::from(port.protocol);
    let asked = match &port.target_port {
        Some(TargetPort::Name(name)) => name.clone(),
        Some(TargetPort::Number(number)) => number.to_string(),
        None => port.port.unwrap_or_default().to_string(),
    };
    let shown = |port: &NamedPort| {
        let name = if port.name.is_empty() { String::new() } else { format!(" ({})", port.name) };
        format!("{}/{}{name}", port.number, port.protocol)
    };
    let has: Vec<_> = service.iter().map(shown).collect();
    let has = if has.is_empty() { "none".to_owned() } else { has.join(", ") };
    let message = format!(
        "Service {name} has no port {asked}/{protocol}, it has {has}; name one of them in targetPort"
    );
    Problem { reason: "NoSuchPort", message }
}

fn of_selector(
    spec: &PinholeSpec,
    namespace: &str,
    selector: &LabelSelector,
    backends: &Backends,
) -> BTreeMap<String, Candidate> {
    let number = |port: &PinholePort| match &port.target_port {
        Some(TargetPort::Number(number)) => Some(*number),
        Some(TargetPort::Name(_)) => None,
        None => port.port,
    };
    let ports: BTreeMap<_, _> = spec
        .ports
        .iter()
        .enumerate()
        .filter_map(|(position, port)| Some((position, number(port)?)))
        .collect();
    let first = ObjectName::new(namespace, "");
    let here = backends.pods.range(first..).take_while(|(name, _)| *name.namespace == *namespace);
    let selected = here.filter(|(_, pod)| selector.selects(&pod.labels));
    selected
        .map(|(_, pod)| {
            (pod.backend.uid.clone(), Candidate { backend: pod.backend.clone(), ports: ports.clone() })
        })
        .collect()
}
