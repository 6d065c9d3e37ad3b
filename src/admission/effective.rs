//! What the mutating webhook writes: the request as it was understood, with every default, under a key of our own, and
//! what the scheduler needs to place the pod.
//!
//! The user's key is never rewritten. Output keys that somebody else sent are replaced or dropped. A second call on
//! the result finds nothing to do.

use std::collections::BTreeMap;

use ipnet::IpNet;
use json_patch::AddOperation;
use json_patch::Patch;
use json_patch::PatchOperation;
use json_patch::RemoveOperation;
use json_patch::jsonptr::PointerBuf;
use serde_json::Value;
use serde_json::json;

use crate::admission::Operation;
use crate::admission::Request;
use crate::admission::World;
use crate::admission::policy::Policy;
use crate::admission::spread;
use crate::admission::subject::Subject;
use crate::admission::wanted;
use crate::api::annotation::Automatic;
use crate::api::annotation::NatAnnotation;
use crate::api::annotation::NatEntry;
use crate::api::annotation::SourcePort;
use crate::api::crd::pinhole::Endpoint;
use crate::api::keys;
use crate::api::object::Kind;
use crate::api::object::SchedulingGate;
use crate::model::automatic::AutomaticPort;
use crate::model::mapping::Address;
use crate::model::mapping::Mapping;

/// The JSON form of these mappings with every default written out; reading it gives the same mappings.
pub fn annotation(mappings: &[Mapping], automatic: &[AutomaticPort]) -> NatAnnotation {
    NatAnnotation { entries: mappings.iter().map(entry).chain(automatic.iter().map(open_entry)).collect() }
}

/// An entry whose external port is left open.
fn open_entry(port: &AutomaticPort) -> NatEntry {
    NatEntry {
        iface_auto: Some(false),
        src_ip: None,
        src_port: SourcePort::Word(if port.is_fixed() { Automatic::Fixed } else { Automatic::Auto }),
        src_port_end: None,
        dst_port: port.target.get(),
        proto: Some(port.protocol.to_string()),
        allowed_sources: sources(port.allowed_sources()),
        terminate_existing: port.terminates_existing().then_some(true),
    }
}

fn sources(networks: &[IpNet]) -> Option<Vec<String>> {
    (!networks.is_empty()).then(|| networks.iter().map(ToString::to_string).collect())
}

fn entry(mapping: &Mapping) -> NatEntry {
    let external = mapping.external();
    NatEntry {
        iface_auto: Some(mapping.address() == Address::Node),
        src_ip: match mapping.address() {
            Address::Node => None,
            Address::Fixed(address) => Some(address.to_string()),
        },
        src_port: SourcePort::Number(external.first().get()),
        src_port_end: (!external.is_single()).then(|| external.last().get()),
        dst_port: mapping.target().first().get(),
        proto: Some(mapping.protocol().to_string()),
        allowed_sources: sources(mapping.allowed_sources()),
        terminate_existing: mapping.terminates_existing().then_some(true),
    }
}

/// The patch that a pod needs; `None` when it is as it should be.
pub fn mutate(request: &Request, world: &World<'_>) -> Option<Patch> {
    let policy = world.policy;
    let subject = Subject::of(request.object.as_ref()?)?;
    if subject.kind != Kind::Pod || request.operation == Operation::Other || subject.is_mirror() {
        return None;
    }
    let (mappings, automatic) = readable(&subject, policy);
    let asks = !mappings.is_empty() || !automatic.is_empty();
    let mut annotations = Edits::of("annotations", &subject.metadata.annotations);
    annotations.set(keys::EFFECTIVE, text(&mappings, &automatic).as_deref());
    let is_new = request.operation == Operation::Create;
    if is_new || !asks {
        annotations.set(keys::ENDPOINTS, granted(&mappings, world).as_deref());
    }
    let ports = spread::labels(&subject, &request.namespace, &mappings);
    let mut labels = Edits::of("labels", &subject.metadata.labels);
    let is_of_others = |key: &&String| key.starts_with(keys::PORT_LABEL_PREFIX) && !ports.contains_key(*key);
    for key in subject.metadata.labels.keys().filter(is_of_others) {
        labels.set(key, None);
    }
    labels.set(keys::ENABLED_LABEL, asks.then_some("true"));
    for (key, holder) in &ports {
        labels.set(key, Some(holder));
    }
    // Where a pod may run can be said only once.
    let placement = is_new.then(|| {
        let is_spread = spread::is_wanted(&subject, &mappings, &request.namespace, world);
        spread::required_terms(&subject, &ports, is_spread).map(|terms| require(&subject, terms))
    });
    // A gate can be taken off at any time, and given to a new pod alone.
    let gate = (is_new || automatic.is_empty()).then(|| gate(&subject, !automatic.is_empty())).flatten();
    let operations = annotations.operations.into_iter().chain(labels.operations);
    let operations: Vec<_> = operations.chain(placement.flatten()).chain(gate).collect();
    (!operations.is_empty()).then_some(Patch(operations))
}

/// What a pod will have been granted when it is stored, for its containers to know from their first start: where claims are on,
/// its ports of fixed addresses. The rest, and all that changes later, the controller tells it.
fn granted(mappings: &[Mapping], world: &World<'_>) -> Option<String> {
    let at_its_address = |mapping: &Mapping| match mapping.address() {
        Address::Fixed(address) => Some(Endpoint::of(mapping, address, world.index.advertised(address))),
        Address::Node => None,
    };
    let fixed = mappings.iter().filter(|_| world.policy.finds_ports).filter_map(at_its_address);
    Endpoint::announcement(&fixed.collect::<Vec<_>>())
}

/// What the pod asks for, if the request can be read as a whole.
fn readable(subject: &Subject<'_>, policy: &Policy) -> (Vec<Mapping>, Vec<AutomaticPort>) {
    let wanted = wanted::of(subject, policy);
    let whole = wanted.filter(|wanted| wanted.violations.is_empty()).unwrap_or_default();
    (whole.mappings().cloned().collect(), whole.automatic_ports().cloned().collect())
}

/// Keeps a new pod from being scheduled until its automatic ports are found, so that its containers know them from their first
/// start, and lets any other one go. A pod that comes with its node cannot have a gate.
fn gate(subject: &Subject<'_>, is_needed: bool) -> Option<PatchOperation> {
    let gates = &subject.spec.scheduling_gates;
    let present = gates.iter().position(|gate| gate.name == keys::ENDPOINTS_GATE);
    let is_placed = subject.spec.node_name.as_ref().is_some_and(|name| !name.is_empty());
    let path = |last: &str| PointerBuf::from_tokens(["spec", "schedulingGates", last]);
    let ours = SchedulingGate { name: keys::ENDPOINTS_GATE.to_owned() };
    match present {
        None if is_needed && !is_placed && gates.is_empty() => Some(PatchOperation::Add(AddOperation {
            path: PointerBuf::from_tokens(["spec", "schedulingGates"]),
            value: json!([ours]),
        })),
        None if is_needed && !is_placed => {
            Some(PatchOperation::Add(AddOperation { path: path("-"), value: json!(ours) }))
        }
        Some(index) if !is_needed => {
            Some(PatchOperation::Remove(RemoveOperation { path: path(&index.to_string()) }))
        }
        Some(_) | None => None,
    }
}

/// The text of the output annotation.
fn text(mappings: &[Mapping], automatic: &[AutomaticPort]) -> Option<String> {
    let annotation = annotation(mappings, automatic);
    (!annotation.entries.is_empty()).then(|| serde_json::to_string(&annotation).ok()).flatten()
}

/// Gives the pod these terms of required anti-affinity in place of those that it has.
fn require(subject: &Subject<'_>, terms: Vec<Value>) -> PatchOperation {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    let affinity = subject.spec.affinity.as_ref();
    let mut path = vec!["spec", "affinity"];
    let mut value = Value::from(terms);
    // Only what is absent is added around them.
    match affinity.map(|affinity| &affinity.pod_anti_affinity) {
        None => value = json!({"podAntiAffinity": {REQUIRED: value}}),
        Some(None) => {
            path.push("podAntiAffinity");
            value = json!({REQUIRED: value});
        }
        Some(Some(_)) => path.extend(["podAntiAffinity", REQUIRED]),
    }
    PatchOperation::Add(AddOperation { path: PointerBuf::from_tokens(path), value })
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
