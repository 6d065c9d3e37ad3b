//! What the controller says of requests, in the Pinholes: what it has granted, why not the rest, and what nodes have yet to let go.

use std::net::IpAddr;

use crate::admission::pinhole;
use crate::admission::pinhole::Forward;
use crate::agent::entries::Line;
use crate::agent::grants;
use crate::api::crd::condition::Condition;
use crate::api::crd::condition::ConditionStatus;
use crate::api::crd::pinhole::Endpoint;
use crate::api::crd::pinhole::NodeReport;
use crate::api::crd::pinhole::Pinhole;
use crate::api::crd::pinhole::PinholePort;
use crate::api::crd::pinhole::PinholeStatus;
use crate::api::crd::pinhole::Releasing;
use crate::api::crd::pinhole::STANDBY;
use crate::api::crd::pinhole::SUSPENDED;
use crate::api::keys;
use crate::api::object::Object;
use crate::cli::plugin::picture::Picture;
use crate::cli::plugin::picture::name_of;
use crate::cli::plugin::picture::node_of;
use crate::cli::plugin::picture::standing::Asker;
use crate::cli::plugin::picture::standing::Standing;
use crate::cli::plugin::picture::standing::State;
use crate::cluster::pinhole_watch::Pinholes;
use crate::model::address::ExternalAddress;
use crate::model::holder::Holder;
use crate::model::holder::ObjectName;
use crate::model::mapping::Address;
use crate::model::mapping::Mapping;
use crate::model::port::Port;
use crate::model::port::PortRange;
use crate::ruleset::entry::Key;

/// Why something is neither granted nor refused.
const UNDECIDED: &str = "the controller has not decided about it yet";

/// Whether somebody's own hand wrote it: one of a pod is the controller's.
pub(super) fn is_written(pinhole: &Pinhole) -> bool {
    pinhole.spec.target.pod.is_none()
}

/// The nodes that a Pinhole is for, or has yet to leave.
pub(super) fn nodes(pinhole: &Pinhole) -> impl Iterator<Item = &str> {
    let labels = pinhole.metadata.labels.iter().flatten();
    labels.filter_map(|(label, _)| label.strip_prefix(keys::NODE_LABEL_PREFIX))
}

/// The Pinhole of a pod.
fn of_pod<'a>(pinholes: &'a Pinholes, pod: &Object) -> Option<&'a Pinhole> {
    let found = pinholes.get(&name_of(pod));
    found.filter(|found| found.spec.target.pod_uid.as_deref() == Some(pod.metadata.uid.as_str()))
}

/// What a pod has been granted, as far as its Pinhole tells.
fn endpoints<'a>(pinholes: &'a Pinholes, pod: &Object) -> &'a [Endpoint] {
    of_pod(pinholes, pod).and_then(current).map_or(&[], |status| &status.endpoints)
}

/// Those that a node serves, and those of pods that are on it already.
pub(super) fn on_node<'a>(
    pinholes: &Pinholes,
    node: Option<&str>,
    pods: impl Iterator<Item = &'a Object>,
) -> Pinholes {
    let here = pinholes.iter().filter(|(_, pinhole)| nodes(pinhole).any(|name| Some(name) == node));
    let of_pods = pods.filter_map(|pod| Some((name_of(pod), of_pod(pinholes, pod)?.clone())));
    here.map(|(name, pinhole)| (name.clone(), pinhole.clone())).chain(of_pods).collect()
}

/// Why a pod has not been granted a port: this one, or one that is left to a pool. `None` where it has, and where nobody can
/// grant it yet.
pub(super) fn withheld(
    pinholes: &Pinholes,
    pod: &Object,
    mapping: Option<&Mapping>,
) -> Option<(State, String)> {
    if let Some(mapping) = mapping {
        let mut granted = endpoints(pinholes, pod).iter().filter_map(grants::granted);
        let is_granted = match grants::key(mapping) {
            Some(wanted) => granted.any(|key| key == wanted),
            // Of which node is known once there is one.
            None if node_of(pod).is_none() => true,
            None => granted.any(|key| (key.protocol, key.ports) == (mapping.protocol(), mapping.external())),
        };
        if is_granted {
            return None;
        }
    }
    let name = name_of(pod);
    let accepted = of_pod(pinholes, pod).and_then(|pinhole| condition(pinhole, "Accepted"));
    let (state, why) = match accepted {
        Some(said) => because(said),
        None if pinholes.get(&name).is_some_and(is_written) => (
            State::Pending,
            "a Pinhole that a user wrote has the pod's name, so the pod has none; rename one of the two"
                .to_owned(),
        ),
        None => (State::Pending, UNDECIDED.to_owned()),
    };
    let is_gated = pod.spec.scheduling_gates.iter().any(|gate| gate.name == keys::ENDPOINTS_GATE);
    let gate = format!("the pod waits at its scheduling gate {}: ", keys::ENDPOINTS_GATE);
    Some((state, if is_gated { gate + &why } else { why }))
}

/// The Pinhole of a pod, as if its own node served all that is granted.
pub(super) fn wherever(pinholes: &Pinholes, pod: &Object) -> Pinholes {
    let own = of_pod(pinholes, pod).cloned().map(|mut own| {
        let endpoints = own.status.iter_mut().flat_map(|status| &mut status.endpoints);
        endpoints.for_each(|endpoint| endpoint.nodes.clear());
        (name_of(pod), own)
    });
    own.into_iter().collect()
}

/// Whether a port that is granted to a pod is served by other nodes than its own.
pub(super) fn is_elsewhere(pinholes: &Pinholes, pod: &Object, mapping: &Mapping) -> bool {
    let is_it = |endpoint: &&Endpoint| grants::granted(endpoint) == grants::key(mapping);
    let found = endpoints(pinholes, pod).iter().find(is_it);
    found.zip(node_of(pod)).is_some_and(|(found, own)| is_away(found, own))
}

fn is_away(endpoint: &Endpoint, own: &str) -> bool {
    !endpoint.nodes.is_empty() && endpoint.nodes.iter().all(|node| node != own)
}

/// What other nodes than its own serve of a pod, as far as its Pinhole tells.
pub(super) fn elsewhere(picture: &Picture, name: &ObjectName, pinhole: &Pinhole) -> Vec<Standing> {
    let pod = picture.object("Pod", &name.namespace, &name.name).filter(|pod| !pod.is_finished());
    let uid = pinhole.spec.target.pod_uid.as_deref();
    let Some(pod) = pod.filter(|pod| uid == Some(pod.metadata.uid.as_str())) else { return Vec::new() };
    let (Some(own), Some(status)) = (node_of(pod), current(pinhole)) else { return Vec::new() };
    let (state, why) = how(pinhole);
    let standing = |endpoint: &Endpoint| {
        let key = grants::granted(endpoint)?;
        let address = ExternalAddress::new(key.external).ok()?;
        let first = Port::new(endpoint.target_port)?;
        Some(Standing {
            key: Some(key),
            mapping: Mapping::new(Address::Fixed(address), key.protocol, key.ports, first),
            node: Some(endpoint.nodes.join(",")),
            holder: pinhole.spec.holder.as_ref().map(Holder::from),
            pod: Some(name.clone()),
            labels: pod.metadata.labels.clone(),
            created: pod.metadata.creation_timestamp.clone(),
            problem: why.clone(),
            ..standing(Asker::Pod(name.clone()), pinhole, key.to_string(), state)
        })
    };
    status.endpoints.iter().filter(|endpoint| is_away(endpoint, own)).filter_map(standing).collect()
}

/// What the condition `Accepted` makes of what is not granted.
fn because(accepted: &Condition) -> (State, String) {
    let state = match (accepted.status, accepted.reason.as_str()) {
        (ConditionStatus::False, "PortTaken") => State::Taken,
        (ConditionStatus::False, "NoFreePort") => State::Full,
        (ConditionStatus::False, _) => State::Refused,
        _ => State::Pending,
    };
    let message = &accepted.message;
    (
        state,
        if message.is_empty() { "the controller is about to grant it".to_owned() } else { message.clone() },
    )
}

/// What the agents say in Pinholes that they have programmed, by node. `has` tells whether a node has an address, if that is known.
pub(super) fn told(pinholes: &Pinholes, has: impl Fn(&str, IpAddr) -> Option<bool>) -> Vec<(String, Line)> {
    let mut told = Vec::new();
    for (name, pinhole) in pinholes {
        let Some(status) = current(pinhole) else { continue };
        let says_so = |report: &&NodeReport| {
            report.programmed && report.observed_generation == pinhole.metadata.generation
        };
        let nodes: Vec<_> = status.nodes.iter().filter(says_so).map(|report| report.name.as_str()).collect();
        for node in &nodes {
            let is_here = |endpoint: &&Endpoint| {
                let is_its = || has(node, endpoint.address.parse().ok()?);
                if endpoint.nodes.is_empty() {
                    is_its().unwrap_or(nodes.len() == 1)
                } else {
                    endpoint.nodes.iter().any(|serving| serving == node)
                }
            };
            let line = |endpoint| line(name, status, endpoint);
            told.extend(
                status
                    .endpoints
                    .iter()
                    .filter(is_here)
                    .filter_map(line)
                    .map(|line| ((*node).to_owned(), line)),
            );
        }
    }
    told
}

fn line(name: &ObjectName, status: &PinholeStatus, endpoint: &Endpoint) -> Option<Line> {
    let key = grants::granted(endpoint)?;
    let served = status.targets.iter().find(|target| target.active)?;
    let mut addresses = served.addresses.iter().filter_map(|text| text.parse::<IpAddr>().ok());
    let ip = addresses.find(|ip| ip.is_ipv4() == key.external.is_ipv4())?;
    let first = Port::new(endpoint.target_port)?;
    Some(Line {
        address: key.external.to_string(),
        ports: key.ports.to_string(),
        protocol: key.protocol.to_string(),
        target: Some(ip.to_string()),
        target_ports: Some(PortRange::new(first, first.checked_add(key.ports.span())?)?.to_string()),
        pod: name.to_string(),
        allowed_sources: Vec::new(),
        packets: 0,
        bytes: 0,
        problem: None,
    })
}

/// What a Pinhole that a user wrote asks for, as far as no node is needed to tell; nothing of one that is deleted.
pub(super) fn written(name: &ObjectName, pinhole: &Pinhole) -> Vec<Standing> {
    if !is_written(pinhole) || pinhole.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    let status = pinhole.status.as_ref();
    let served = status.iter().flat_map(|status| &status.targets).find(|target| target.active);
    let (forwards, _) = pinhole::forwards(&pinhole.spec);
    let standing = |forward: Forward| {
        let mapping = forward.located.mapping;
        let port = pinhole.spec.ports.get(forward.port).and_then(PinholePort::leads_to);
        let port = port.map_or_else(String::new, |port| format!(":{port}"));
        let (state, why) = how(pinhole);
        Standing {
            key: grants::key(&mapping),
            mapping: Some(mapping.clone()),
            target: Some(format!("{}{port}", pinhole.spec.target.in_short())),
            holder: Some(Holder::new("Pinhole", name.clone())),
            pod: served.map(|target| ObjectName::new(name.namespace.clone(), target.pod.as_str())),
            problem: why,
            ..standing(Asker::Pinhole(name.clone()), pinhole, mapping.to_string(), state)
        }
    };
    forwards.into_iter().map(standing).collect()
}

/// How what a Pinhole is granted stands by its conditions, and why, where there is more to say.
fn how(pinhole: &Pinhole) -> (State, Option<String>) {
    let Some(accepted) = condition(pinhole, "Accepted") else {
        return (State::Pending, Some(UNDECIDED.to_owned()));
    };
    if accepted.status != ConditionStatus::True {
        let (state, why) = because(accepted);
        return (state, Some(why));
    }
    match condition(pinhole, "Programmed") {
        Some(said) if said.status == ConditionStatus::True => (State::Reported, None),
        Some(said) if said.reason == STANDBY || said.reason == "NotReady" => {
            (State::Waiting, Some(told_by(said)))
        }
        Some(said) if said.reason == SUSPENDED => (State::Suspended, Some(told_by(said))),
        said => (State::Unserved, said.map(told_by)),
    }
}

/// Why a Pinhole that a user wrote is led nowhere, though it is granted.
pub(super) fn closed(pinhole: &Pinhole) -> Option<String> {
    let said = condition(pinhole, "Programmed").filter(|said| said.status != ConditionStatus::True)?;
    Some(told_by(said))
}

fn told_by(condition: &Condition) -> String {
    if condition.message.is_empty() { condition.reason.clone() } else { condition.message.clone() }
}

/// What is not granted any more and a node may still have.
pub(super) fn releasing(name: &ObjectName, pinhole: &Pinhole) -> Vec<Standing> {
    let waited_for = pinhole.status.iter().flat_map(|status| &status.releasing);
    let standing = |old: &Releasing| {
        let key = released(old)?;
        let asker = if is_written(pinhole) { Asker::Pinhole(name.clone()) } else { Asker::Pod(name.clone()) };
        let own = || Holder::new("Pinhole", name.clone());
        Some(Standing {
            key: Some(key),
            node: Some(old.node.clone()),
            holder: Some(pinhole.spec.holder.as_ref().map_or_else(own, Holder::from)),
            pod: pinhole.spec.target.pod.is_some().then(|| name.clone()),
            problem: Some(still_there(old)),
            ..standing(asker, pinhole, key.to_string(), State::Releasing)
        })
    };
    waited_for.filter_map(standing).collect()
}

/// What is waited for, before somebody else can have it.
fn still_there(old: &Releasing) -> String {
    let Releasing { node, since, .. } = old;
    format!(
        "the agent of {node} has not said since {since} that the node's kernel has it no more; kubectl describe natnode {node} shows \
         whether it reports, is paused or holds back a mass removal"
    )
}

/// The external side of what a node has yet to let go.
fn released(old: &Releasing) -> Option<Key> {
    let first = Port::new(old.port)?;
    let last = old.port_end.map_or(Some(first), Port::new)?;
    Some(Key {
        external: old.address.parse().ok()?,
        protocol: old.protocol.into(),
        ports: PortRange::new(first, last)?,
    })
}

fn standing(asker: Asker, pinhole: &Pinhole, external: String, state: State) -> Standing {
    let metadata = &pinhole.metadata;
    Standing {
        labels: metadata.labels.clone().unwrap_or_default(),
        created: metadata.creation_timestamp.as_ref().map(|time| time.0.to_string()).unwrap_or_default(),
        ..Standing::new(asker, external, state)
    }
}

/// The status, if it is about what is asked for now.
fn current(pinhole: &Pinhole) -> Option<&PinholeStatus> {
    pinhole.status.as_ref().filter(|status| pinhole.is_current(status))
}

fn condition<'a>(pinhole: &'a Pinhole, type_: &str) -> Option<&'a Condition> {
    Condition::find(&current(pinhole)?.conditions, type_)
}
