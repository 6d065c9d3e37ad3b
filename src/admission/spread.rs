//! Keeps pods of different holders that want the same port of their node's own address on different nodes.
//!
//! Such a port is unique on each node, and the node is chosen after admission. So every pod is labelled with the ports
//! that it asks for, and one that asks for it (`pinhole.dev/spread: "true"`) is kept off nodes where another holder's pod has
//! one of these labels. The scheduler holds that in both directions: whoever comes later, with or without the annotation,
//! is kept off the node of a pod that has it. Pods of one holder may meet, so that a rolling update is never in its own way.
//!
//! Labels and terms of ours that somebody else wrote are replaced. They only place pods: who has a port is decided
//! without them.

use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::json;

use crate::admission::World;
use crate::admission::grant;
use crate::admission::subject::Subject;
use crate::admission::violation::Rule;
use crate::admission::violation::Violation;
use crate::admission::violation::shown;
use crate::allocation::pool::Pool;
use crate::api::keys;
use crate::api::object::Kind;
use crate::model::digest::fnv1a;
use crate::model::holder::Holder;
use crate::model::holder::ObjectName;
use crate::model::mapping::Address;
use crate::model::mapping::Mapping;

/// The most ports of one pod that are labelled; a pod with more has no such label, and cannot be spread.
pub(crate) const MOST_PORTS: u32 = 64;

/// Whether a pod asks to be spread; what is wrong with the annotation otherwise.
pub(crate) fn is_asked_for<'m>(
    subject: &Subject<'_>,
    mappings: impl Iterator<Item = &'m Mapping>,
) -> Result<bool, Violation> {
    let Some(text) = subject.metadata.annotations.get(keys::SPREAD) else { return Ok(false) };
    let wrong = |problem: String| Violation {
        field: format!("{}[{}]", subject.annotations_path(), keys::SPREAD),
        value: shown(text),
        problem,
        rule: Rule::Syntax,
    };
    match (text.as_str(), count(mappings)) {
        ("false", _) => Ok(false),
        ("true", ports) if ports <= MOST_PORTS => Ok(true),
        ("true", ports) => Err(wrong(format!(
            "is possible with at most {MOST_PORTS} ports of the node's own address, and {ports} are asked for; name fewer, or \
             keep the pods apart by an affinity of your own"
        ))),
        _ => Err(wrong(r#"is neither "true" nor "false""#.to_owned())),
    }
}

/// Whether a new pod is to be spread: because it asks for it, or says nothing and is of those for whom the pool of nodes' own
/// addresses says so.
pub(crate) fn is_wanted(
    subject: &Subject<'_>,
    mappings: &[Mapping],
    namespace: &str,
    world: &World<'_>,
) -> bool {
    if subject.metadata.annotations.contains_key(keys::SPREAD) {
        return is_asked_for(subject, mappings.iter()) == Ok(true);
    }
    let asker = grant::asker(subject, namespace, world);
    let spreads = |pool: &Pool| pool.spreads && pool.has(Address::Node) && pool.admits(asker);
    world.index.pools().is_some_and(|pools| pools.iter().any(spreads))
}

/// How many ports of the node's own address are asked for.
fn count<'m>(mappings: impl Iterator<Item = &'m Mapping>) -> u32 {
    of_node(mappings).map(|mapping| mapping.external().count()).sum()
}

fn of_node<'m>(mappings: impl Iterator<Item = &'m Mapping>) -> impl Iterator<Item = &'m Mapping> {
    mappings.filter(|mapping| mapping.address() == Address::Node)
}

/// The labels that tell which ports of its node a pod asks for. The value stands for its holder.
pub(crate) fn labels(
    subject: &Subject<'_>,
    namespace: &str,
    mappings: &[Mapping],
) -> BTreeMap<String, String> {
    if MOST_PORTS < count(mappings.iter()) {
        return BTreeMap::new();
    }
    let holder = format!("{:016x}", fnv1a(holder(subject, namespace).to_string().as_bytes()));
    let ports = of_node(mappings.iter()).flat_map(|mapping| {
        let protocol = mapping.protocol();
        mapping.external().ports().map(move |port| format!("{}{protocol}-{port}", keys::PORT_LABEL_PREFIX))
    });
    ports.map(|label| (label, holder.clone())).collect()
}

/// What `podAntiAffinity` must require of a pod with these labels, if it is to be `spread`; `None` when it does already.
pub(crate) fn required_terms(
    subject: &Subject<'_>,
    labels: &BTreeMap<String, String>,
    spread: bool,
) -> Option<Vec<Value>> {
    let present = subject.spec.affinity.as_ref().and_then(|affinity| affinity.pod_anti_affinity.as_ref());
    let present = present.map(|present| present.required.as_slice()).unwrap_or_default();
    let ours = labels.iter().filter(|_| spread).map(|(label, holder)| term(label, holder));
    let wanted: Vec<_> = present.iter().filter(|term| !is_ours(term)).cloned().chain(ours).collect();
    (wanted != present).then_some(wanted)
}

/// Keeps a pod off nodes that run a pod of another holder with the label, in any namespace.
fn term(label: &str, holder: &str) -> Value {
    json!({
        "labelSelector": {"matchExpressions": [
            {"key": label, "operator": "Exists"},
            {"key": label, "operator": "NotIn", "values": [holder]},
        ]},
        "namespaceSelector": {},
        "topologyKey": keys::HOSTNAME_LABEL,
    })
}

fn is_ours(term: &Value) -> bool {
    let key = term.pointer("/labelSelector/matchExpressions/0/key").and_then(Value::as_str);
    key.is_some_and(|key| key.starts_with(keys::PORT_LABEL_PREFIX))
}

/// The holder as far as the pod itself tells, so that every replica of the webhook finds the same, whatever it knows of the
/// cluster. A Deployment's ReplicaSets carry its name; the Jobs of a CronJob count as one holder each.
fn holder(subject: &Subject<'_>, namespace: &str) -> Holder {
    let metadata = subject.metadata;
    let (kind, name) = match metadata.controller() {
        // A pod of which only the beginning of the name is known is one holder with its like.
        None if metadata.name.is_empty() => (Kind::Pod.name(), metadata.generate_name.as_str()),
        None => (Kind::Pod.name(), metadata.name.as_str()),
        Some(owner) => {
            let hash = metadata
                .labels
                .get(keys::POD_TEMPLATE_HASH)
                .filter(|_| owner.kind == Kind::ReplicaSet.name());
            let deployment = hash.and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
            match deployment {
                Some(deployment) => (Kind::Deployment.name(), deployment),
                None => (owner.kind.as_str(), owner.name.as_str()),
            }
        }
    };
    Holder::new(kind, ObjectName::new(namespace, name))
}
