//! Whether a pod's ports are closed without being given up: the annotation `pinhole.dev/suspended`.
//!
//! To suspend a pod, or to end that, asks for no port, so that no rule which came later stands in its way: of an object that is
//! stored already only the word is judged.

use std::collections::BTreeMap;

use crate::admission::policy::Policy;
use crate::admission::subject::Subject;
use crate::admission::violation::Violation;
use crate::admission::word;
use crate::api::keys;

/// What closes them.
const YES: &str = "true";

/// Whether these annotations say so.
pub fn is(annotations: &BTreeMap<String, String>) -> bool {
    annotations.get(keys::SUSPENDED).is_some_and(|text| text == YES)
}

/// What is wrong with the annotation.
pub(crate) fn violation(subject: &Subject<'_>) -> Option<Violation> {
    word::violation(subject, keys::SUSPENDED, [YES, "false"])
}

/// What is wrong with the annotation of an object that asks for what it asked for before, where the word is another one.
pub(crate) fn changed_to(old: &Subject<'_>, new: &Subject<'_>, policy: &Policy) -> Option<Violation> {
    let annotations = &new.metadata.annotations;
    let is_new = old.metadata.annotations.get(keys::SUSPENDED) != annotations.get(keys::SUSPENDED);
    if is_new && policy.asks(annotations) { violation(new) } else { None }
}
