//! How a pod says when its holder's ports pass to it, and what becomes of the old pod's UDP flows then: the annotations
//! `pinhole.dev/handover` and `pinhole.dev/udp-handover`.

use std::collections::BTreeMap;

use crate::admission::subject::Subject;
use crate::admission::violation::Violation;
use crate::admission::word;
use crate::api::keys;
use crate::model::handover::Handover;
use crate::model::handover::UdpHandover;

/// What these annotations say; the default where they say nothing that can be read.
pub fn of(annotations: &BTreeMap<String, String>) -> Handover {
    annotations.get(keys::HANDOVER).and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// What these annotations say of UDP flows, if anything that can be read.
pub fn of_udp(annotations: &BTreeMap<String, String>) -> Option<UdpHandover> {
    annotations.get(keys::UDP_HANDOVER)?.parse().ok()
}

/// What is wrong with the annotations.
pub(crate) fn violations(subject: &Subject<'_>) -> impl Iterator<Item = Violation> {
    let handover = word::violation(subject, keys::HANDOVER, Handover::ALL.map(Handover::name));
    let of_udp = word::violation(subject, keys::UDP_HANDOVER, UdpHandover::ALL.map(UdpHandover::name));
    handover.into_iter().chain(of_udp)
}
