//! What is left to do with a Pinhole that is over: its pod asks for nothing any more, or its user has deleted it. Pure.
//!
//! # Guarantees
//! First nothing of it is granted, then its nodes say that they have nothing of it, then it goes.

use std::collections::BTreeSet;

use crate::api::crd::condition::ConditionStatus;
use crate::api::crd::pinhole::Endpoint;
use crate::api::crd::pinhole::Pinhole;
use crate::api::crd::pinhole::PinholePort;
use crate::api::crd::pinhole::PinholeSpec;
use crate::api::crd::pinhole::PinholeStatus;
use crate::api::crd::pinhole::Releasing;
use crate::api::crd::pinhole::TargetPort;
use crate::controller::pinholes;
use crate::controller::pinholes::Said;
use crate::controller::pinholes::Write;
use crate::controller::pinholes::conditions;
use crate::controller::releasing;
use crate::controller::releasing::Patience;
use crate::controller::written;

/// The next write for the object of a pod that asks for nothing any more.
pub fn end(stored: &Pinhole, patience: &Patience<'_>) -> Option<Write> {
    let is_named = stored.spec.target.pod_uid.as_deref().is_some_and(|uid| patience.named.contains(uid));
    let delete = || (!is_named).then(|| Write::Delete(Box::new(pinholes::of(stored))));
    if !releasing::is_anywhere(stored) {
        return delete();
    }
    let spec = PinholeSpec { suspended: true, ..stored.spec.clone() };
    let why = "the pod is gone, has ended, or asks for nothing any more";
    pinholes::write_spec(stored, spec, &BTreeSet::new())
        .or_else(|| pinholes::write_status(stored, ended(stored, why, patience)))
        .or_else(|| if is_waiting(stored) { None } else { delete() })
}

/// The next write for an object that its user has deleted.
pub fn leave(stored: &Pinhole, patience: &Patience<'_>) -> Option<Write> {
    if !releasing::is_kept(stored) {
        return None;
    }
    let delete = || Some(Write::Delete(Box::new(pinholes::of(stored))));
    written::write_labels(stored, &BTreeSet::new())
        .or_else(|| pinholes::write_status(stored, ended(stored, "the Pinhole is deleted", patience)))
        .or_else(|| if is_waiting(stored) { None } else { delete() })
}

fn is_waiting(stored: &Pinhole) -> bool {
    stored.status.as_ref().is_some_and(|status| !status.releasing.is_empty())
}

/// The status of an object that is over.
fn ended(stored: &Pinhole, why: &str, patience: &Patience<'_>) -> PinholeStatus {
    let known = stored.status.clone().unwrap_or_default();
    let mut withdrawn = stored.clone();
    let status = withdrawn.status.get_or_insert_default();
    if known.observed_generation != stored.metadata.generation {
        // An agent that found its kernel so before claims were on has what is asked for, granted or not.
        let asked = stored.spec.ports.iter().filter_map(asked);
        let missing: Vec<_> =
            asked.filter(|port| !status.endpoints.iter().any(|known| known == port)).collect();
        status.endpoints.extend(missing);
    }
    let releasing = releasing::releasing(&withdrawn, &[], &BTreeSet::new(), patience);
    let accepted = Said::new(ConditionStatus::False, "Ended", why);
    let programmed = waiting_for(&releasing).unwrap_or_else(|| accepted.clone());
    let generation = stored.metadata.generation;
    let conditions = conditions(known.conditions, accepted, programmed, generation, patience.now);
    PinholeStatus {
        observed_generation: generation,
        node: String::new(),
        endpoints: Vec::new(),
        targets: Vec::new(),
        releasing,
        conditions,
        ..known
    }
}

fn waiting_for(releasing: &[Releasing]) -> Option<Said> {
    let nodes: BTreeSet<_> = releasing.iter().map(|old| old.node.as_str()).collect();
    let nodes = nodes.into_iter().collect::<Vec<_>>().join(", ");
    let message = format!("waiting for {nodes} to let go");
    (!releasing.is_empty()).then(|| Said::new(ConditionStatus::False, "Releasing", &message))
}

/// The endpoint that a port of a spec asks for; none for one of the node's own address.
fn asked(port: &PinholePort) -> Option<Endpoint> {
    let PinholePort { address, protocol, port, port_end, target_port, .. } = port;
    let Some(TargetPort::Number(target_port)) = *target_port else { return None };
    Some(Endpoint {
        name: None,
        address: address.clone()?,
        advertised_address: None,
        protocol: *protocol,
        port: (*port)?,
        port_end: *port_end,
        target_port,
        pool: None,
        nodes: Vec::new(),
    })
}
