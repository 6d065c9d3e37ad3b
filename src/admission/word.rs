//! Annotations that say one of a few words.

use crate::admission::subject::Subject;
use crate::admission::suggest;
use crate::admission::violation::Rule;
use crate::admission::violation::Violation;
use crate::admission::violation::shown;

/// What is wrong with an annotation of a pod or template that says none of these words.
pub(crate) fn violation<const N: usize>(
    subject: &Subject<'_>,
    key: &str,
    words: [&'static str; N],
) -> Option<Violation> {
    let text = subject.metadata.annotations.get(key)?;
    if subject.pinhole.is_some() || words.contains(&text.as_str()) {
        return None;
    }
    let hint =
        suggest::nearest(text, words).map_or_else(String::new, |word| format!("; did you mean {word}?"));
    Some(Violation {
        field: format!("{}[{key}]", subject.annotations_path()),
        value: shown(text),
        problem: format!("is none of {}{hint}", words.join(", ")),
        rule: Rule::Syntax,
    })
}
