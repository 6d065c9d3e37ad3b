//! What the mutating webhook writes: the request as it was understood, with every default, under a key of our own.
//!
//! The user's key is never rewritten. Output keys that somebody else sent are replaced or dropped. A second call on
//! the result finds nothing to do.

use std::collections::BTreeMap;

use json_patch::AddOperation;
use json_patch::Patch;
use json_patch::PatchOperation;
use json_patch::RemoveOperation;
use json_patch::jsonptr::PointerBuf;
use serde_json::Value;

use crate::admission::Operation;
use crate::admission::Request;
use crate::admission::policy::Policy;
use crate::admission::subject::Subject;
use crate::admission::wanted;
use crate::api::annotation::NatAnnotation;
use crate::api::annotation::NatEntry;
use crate::api::keys;
use crate::api::object::Kind;
use crate::model::mapping::Address;
use crate::model::mapping::Mapping;

/// The JSON form of these mappings with every default written out; reading it gives the same mappings.
pub fn annotation(mappings: &[Mapping]) -> NatAnnotation {
    NatAnnotation { entries: mappings.iter().map(entry).collect() }
}

fn entry(mapping: &Mapping) -> NatEntry {
    let external = mapping.external();
    let sources = mapping.allowed_sources();
    NatEntry {
        iface_auto: Some(mapping.address() == Address::Node),
        src_ip: match mapping.address() {
            Address::Node => None,
            Address::Fixed(address) => Some(address.to_string()),
        },
        src_port: external.first().get(),
        src_port_end: (!external.is_single()).then(|| external.last().get()),
        dst_port: mapping.target().first().get(),
        proto: Some(mapping.protocol().to_string()),
        allowed_sources: (!sources.is_empty()).then(|| sources.iter().map(ToString::to_string).collect()),
    }
}

/// The patch that a pod needs; `None` when it is as it should be.
pub fn mutate(request: &Request, policy: &Policy) -> Option<Patch> {
    let subject = Subject::of(request.object.as_ref()?)?;
    if subject.kind != Kind::Pod || request.operation == Operation::Other || subject.is_mirror() {
        return None;
    }
    let effective = effective(&subject, policy);
    let mut annotations = Edits::of("annotations", &subject.metadata.annotations);
    annotations.set(keys::EFFECTIVE, effective.as_deref());
    if request.operation == Operation::Create {
        annotations.set(keys::ENDPOINTS, None);
    }
    let mut labels = Edits::of("labels", &subject.metadata.labels);
    labels.set(keys::ENABLED_LABEL, effective.is_some().then_some("true"));
    let operations: Vec<_> = annotations.operations.into_iter().chain(labels.operations).collect();
    (!operations.is_empty()).then_some(Patch(operations))
}

/// The text of the output annotation, if the request can be read as a whole.
fn effective(subject: &Subject<'_>, policy: &Policy) -> Option<String> {
    let wanted = wanted::read(&subject.metadata.annotations, "", policy)?;
    let mappings: Vec<_> = wanted.mappings().cloned().collect();
    let is_whole = wanted.violations.is_empty() && !mappings.is_empty();
    is_whole.then(|| serde_json::to_string(&annotation(&mappings)).ok()).flatten()
}

/// Patch operations on one map of the object's metadata.
struct Edits<'a> {
    name: &'static str,
    present: &'a BTreeMap<String, String>,
    /// An absent map must be added before anything can be added to it.
    is_there: bool,
    operations: Vec<PatchOperation>,
}

impl<'a> Edits<'a> {
    fn of(name: &'static str, present: &'a BTreeMap<String, String>) -> Self {
        Self { name, present, is_there: !present.is_empty(), operations: Vec::new() }
    }

    /// Gives the key this value, or none.
    fn set(&mut self, key: &str, value: Option<&str>) {
        let path = PointerBuf::from_tokens(["metadata", self.name, key]);
        match value {
            Some(value) if self.present.get(key).is_some_and(|found| found == value) => {}
            Some(value) => {
                if !self.is_there {
                    self.is_there = true;
                    let path = PointerBuf::from_tokens(["metadata", self.name]);
                    let value = Value::Object(serde_json::Map::new());
                    self.operations.push(PatchOperation::Add(AddOperation { path, value }));
                }
                self.operations.push(PatchOperation::Add(AddOperation { path, value: Value::from(value) }));
            }
            None if self.present.contains_key(key) => {
                self.operations.push(PatchOperation::Remove(RemoveOperation { path }));
            }
            None => {}
        }
    }
}
