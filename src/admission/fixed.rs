//! Ports that are kept for the next pod of the same name: whose pods have such names at all.

use crate::admission::policy::Policy;
use crate::admission::subject::Subject;
use crate::admission::violation::Rule;
use crate::admission::violation::Violation;
use crate::admission::wanted::LocatedPort;
use crate::api::object::Kind;

/// What is wrong with fixed ports of pods that get a new name each time: the port would be kept for a pod that never comes.
pub(crate) fn violations(
    subject: &Subject<'_>,
    automatic: &[LocatedPort],
    policy: &Policy,
) -> Vec<Violation> {
    let Some(problem) = problem(subject, policy) else { return Vec::new() };
    let fixed = automatic.iter().filter(|entry| entry.port.is_fixed());
    let violation = |entry: &LocatedPort| Violation {
        field: entry.field.clone(),
        value: entry.port.to_string(),
        problem: format!("{problem}; a port that is not fixed goes with its pod"),
        rule: Rule::Workload,
    };
    fixed.map(violation).collect()
}

/// What is to be said of a fixed port; `None` where pods keep their names.
fn problem(subject: &Subject<'_>, policy: &Policy) -> Option<String> {
    let kind = match (subject.kind, subject.owner.controller()) {
        (Kind::Pod, Some(owner)) => owner.kind.as_str(),
        // A bare pod has the name that its author gave it.
        (Kind::Pod, None) => return None,
        (kind, _) => kind.name(),
    };
    if policy.is_stateful(kind) {
        return None;
    }
    let is_kept = "is kept for the next pod of the same name";
    Some(if Kind::from_name(kind).is_some() {
        format!("{is_kept}, and each pod of a {kind} has another one; use a StatefulSet, or a bare pod")
    } else {
        format!(
            "{is_kept}, and whether pods of a {kind} keep theirs is not known here; use a StatefulSet, or ask whoever runs the \
             cluster to name the kind (--stateful-kind)"
        )
    })
}
