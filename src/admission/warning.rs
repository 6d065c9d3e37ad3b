//! What a user should know of a request that is granted. The API server cuts warnings beyond 120 characters.

use crate::admission::ack;
use crate::admission::handover;
use crate::admission::policy::Policy;
use crate::admission::sharing;
use crate::admission::subject::Subject;
use crate::admission::suggest;
use crate::admission::violation::shown;
use crate::admission::wanted::Located;
use crate::allocation::transfer;
use crate::api::crd::pinhole::Sharing;
use crate::api::keys;
use crate::api::object::Kind;
use crate::model::handover::Handover;
use crate::model::mapping::Address;
use crate::model::mapping::Mapping;

/// The longest warning that every client shows whole.
pub(crate) const LONGEST: usize = 120;

fn cut(text: String) -> String {
    if text.chars().count() <= LONGEST {
        return text;
    }
    text.chars().take(LONGEST - 3).chain("...".chars()).collect()
}

/// Annotations that look like requests and are not read.
pub(crate) fn ignored_keys(subject: &Subject<'_>, policy: &Policy) -> Vec<String> {
    let reads = |key: &str| policy.input_keys().any(|input| input == key);
    let annotations = &subject.metadata.annotations;
    let ignored = |key: &str| {
        if keys::ACK.contains(&key) && key != keys::ACK_ON && reads(key) && !ack::is_on(annotations) {
            return Some(format!("annotation {key} asks for nothing without {}: \"true\"", keys::ACK_ON));
        }
        if reads(key) {
            return None;
        }
        if key == keys::PODNAT {
            return Some(format!(
                "{key} is not read here: rename it to {}, or ask the operator to enable it (--annotation-key)",
                keys::NAT
            ));
        }
        if key == keys::ACK_ON {
            return Some(format!(
                "annotation {key} is not read here; write {}, or ask the operator for --compat ack",
                keys::EXPOSE
            ));
        }
        if keys::ACK.contains(&key) {
            return Some(format!("annotation {key} is not read here; ask for ports with {}", keys::EXPOSE));
        }
        if key == keys::TRANSFER_TO && !matches!(subject.kind, Kind::Pod | Kind::Pinhole) {
            let kind = subject.kind.name();
            return Some(format!(
                "{key} is not read in a template; it belongs among the annotations of the {kind} itself"
            ));
        }
        if !key.starts_with(keys::PREFIX) || keys::OURS.contains(&key) {
            return None;
        }
        let hint = suggest::nearest(key, keys::OURS)
            .map_or_else(String::new, |nearest| format!("; did you mean {nearest}?"));
        Some(format!("annotation {} means nothing to Pinhole{hint}", shown(key)))
    };
    annotations.keys().filter_map(|key| ignored(key)).map(cut).collect()
}

/// Several replicas with one fixed address and port: only one pod at a time is served.
pub(crate) fn shared_by_replicas(subject: &Subject<'_>, entries: &[Located]) -> Option<String> {
    let fixed = sharing::shared(entries)?;
    let is_meant = sharing::of(&subject.metadata.annotations) == Some(Sharing::ActiveStandby);
    (1 < subject.replicas && !is_meant).then(|| {
        let (mapping, replicas) = (&fixed.mapping, subject.replicas);
        let which = match handover::of(&subject.metadata.annotations) {
            Handover::WhenReady => "the newest ready one",
            Handover::WhenGone => "until it is gone",
            Handover::Immediate => "the newest one",
        };
        let pods = if matches!(subject.kind, Kind::Job | Kind::CronJob) { "pods" } else { "replicas" };
        cut(format!("{mapping} reaches one pod at a time, {which}, not all {replicas} {pods}"))
    })
}

/// Pods of which there should be one, without a port that they would share.
pub(crate) fn exclusive_in_vain(subject: &Subject<'_>, entries: &[Located]) -> Option<String> {
    let is_exclusive = sharing::of(&subject.metadata.annotations) == Some(Sharing::Exclusive);
    (is_exclusive && sharing::shared(entries).is_none()).then(|| {
        cut(format!(
            "{}: Exclusive has no effect: no port of a fixed address is shared by the pods",
            keys::SHARING
        ))
    })
}

/// A pod that asks to be spread and has no port of its node's own address.
pub(crate) fn spread_in_vain(subject: &Subject<'_>, entries: &[Located]) -> Option<String> {
    let asks = subject.metadata.annotations.get(keys::SPREAD).is_some_and(|text| text == "true");
    let has_any = entries.iter().any(|entry| entry.mapping.address() == Address::Node);
    (asks && !has_any).then(|| {
        cut(format!("{} has no effect: no port of the node's own address is asked for", keys::SPREAD))
    })
}

/// A readiness gate that nobody opens.
pub(crate) fn gate_in_vain(subject: &Subject<'_>, policy: &Policy) -> Option<String> {
    let mut gates = subject.spec.readiness_gates.iter();
    let has_gate = gates.any(|gate| gate.condition_type == keys::PROGRAMMED_GATE);
    (has_gate && !policy.finds_ports).then(|| {
        cut(format!(
            "the readiness gate {} needs claims, which are off here: the pod will never be ready",
            keys::PROGRAMMED_GATE
        ))
    })
}

/// An heir that nothing is handed over to: because nobody can tell who it is, or because nothing is claimed here.
pub(crate) fn transfer_in_vain(subject: &Subject<'_>, namespace: &str, policy: &Policy) -> Option<String> {
    let key = keys::TRANSFER_TO;
    subject.owner.annotations.get(key)?;
    if !policy.finds_ports {
        return Some(cut(format!(
            "{key} has no effect: only claimed ports are handed over (claims.enabled)"
        )));
    }
    let is_named = transfer::heir(subject.owner, namespace).is_some();
    (!is_named).then(|| cut(format!("{key} names nobody: write KIND/NAME, or KIND/NAMESPACE/NAME")))
}

/// The nodes where others have the port.
pub(crate) fn taken_on(mapping: &Mapping, nodes: &[&str]) -> String {
    let listed = nodes.iter().take(2).copied().collect::<Vec<_>>().join(", ");
    let more = match nodes.len().saturating_sub(2) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    cut(format!("{mapping} is taken on {listed}{more}; a pod scheduled there gets no connections"))
}
