//! How a pod says when its holder's ports pass to it: the annotation `pinhole.dev/handover`.

use std::collections::BTreeMap;

use crate::admission::subject::Subject;
use crate::admission::suggest;
use crate::admission::violation::Rule;
use crate::admission::violation::Violation;
use crate::admission::violation::shown;
use crate::api::keys;
use crate::model::handover::Handover;

/// What these annotations say; the default where they say nothing that can be read.
pub fn of(annotations: &BTreeMap<String, String>) -> Handover {
    annotations.get(keys::HANDOVER).and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// What is wrong with the annotation.
pub(crate) fn violation(subject: &Subject<'_>) -> Option<Violation> {
    let text = subject.metadata.annotations.get(keys::HANDOVER)?;
    if subject.pinhole.is_some() || text.parse::<Handover>().is_ok() {
        return None;
    }
    let words = Handover::ALL.map(Handover::name);
    let hint =
        suggest::nearest(text, words).map_or_else(String::new, |word| format!("; did you mean {word}?"));
    Some(Violation {
        field: format!("{}[{}]", subject.annotations_path(), keys::HANDOVER),
        value: shown(text),
        problem: format!("is none of {}{hint}", words.join(", ")),
        rule: Rule::Syntax,
    })
}
