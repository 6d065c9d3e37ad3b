//! How a pod says when its holder's ports pass to it: the annotation `pinhole.dev/handover`.

use std::collections::BTreeMap;

use crate::admission::subject::Subject;
use crate::admission::violation::Violation;
use crate::admission::word;
use crate::api::keys;
use crate::model::handover::Handover;

/// What these annotations say; the default where they say nothing that can be read.
pub fn of(annotations: &BTreeMap<String, String>) -> Handover {
    annotations.get(keys::HANDOVER).and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// What is wrong with the annotation.
pub(crate) fn violation(subject: &Subject<'_>) -> Option<Violation> {
    word::violation(subject, keys::HANDOVER, Handover::ALL.map(Handover::name))
}
