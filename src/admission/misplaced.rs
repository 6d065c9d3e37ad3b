//! A request for ports where nobody looks for one: among the annotations of a Pinhole.
//!
//! Whoever writes it there would wait for ports in vain, and nothing but the webhook says so: a schema cannot see which
//! annotations mean what. By that refusal the controller also proves that the webhook is asked and decides.

use crate::admission::Operation;
use crate::admission::Request;
use crate::admission::policy::Policy;
use crate::admission::violation;
use crate::admission::violation::Rule;
use crate::admission::violation::Violation;
use crate::api::object::Kind;
use crate::api::object::Object;

/// What is wrong with a Pinhole that asks by annotation; nothing with whatever else there is.
pub(crate) fn violations(request: &Request, policy: &Policy) -> Vec<Violation> {
    let asked = |object: &Object, key: &str| object.metadata.annotations.get(key).cloned();
    let is_pinhole = |object: &&Object| object.known_kind() == Some(Kind::Pinhole);
    let Some(object) = request.object.as_ref().filter(is_pinhole) else { return Vec::new() };
    let before = |key: &str| {
        let old = request.old_object.as_ref().filter(|_| request.operation == Operation::Update)?;
        asked(old, key)
    };
    let judge = |key: &str| {
        let value = asked(object, key).filter(|value| before(key).as_ref() != Some(value))?;
        Some(Violation {
            field: format!("metadata.annotations[{key}]"),
            value: violation::shown(&value),
            problem:
                "is not read here: a Pinhole names its ports in spec.ports, and a pod in this annotation"
                    .to_owned(),
            rule: Rule::Syntax,
        })
    };
    match request.operation {
        Operation::Create | Operation::Update => policy.input_keys().filter_map(judge).collect(),
        Operation::Other => Vec::new(),
    }
}
