//! Behaviour of `decide` and `mutate` as a user meets it: manifests in, texts out.

#![allow(clippy::needless_pass_by_value, clippy::too_many_lines, reason = "tables of cases and literal JSON")]

mod ack;
mod automatic;
mod conflicts;
mod forms;
mod handover;
mod mutation;
mod occupied;
mod ordinals;
mod pools;
mod rules;
mod sharing;
mod spread;
mod suspended;
mod warnings;

use std::sync::Arc;

use json_patch::Patch;
use serde_json::Value;
use serde_json::json;

use crate::admission::Decision;
use crate::admission::Operation;
use crate::admission::Request;
use crate::admission::World;
use crate::admission::decide;
use crate::admission::effective;
use crate::admission::index::Index;
use crate::admission::policy::Policy;
use crate::admission::violation::summary;
use crate::allocation::pool::Pool;
use crate::api::object::Object;

/// A cluster with a policy, to which objects are applied as an API server would.
struct Cluster {
    policy: Arc<Policy>,
    index: Index,
}

impl Cluster {
    fn new() -> Self {
        Self::with_policy(Policy::default())
    }

    fn with_policy(policy: Policy) -> Self {
        let policy = Arc::new(policy);
        Self { index: Index::new(policy.clone()), policy }
    }

    fn decide(&self, request: &Request) -> Decision {
        decide(request, &World { policy: &self.policy, index: &self.index })
    }

    fn set_pool(&mut self, spec: Value) {
        let pool = Pool::read("edge", &serde_json::from_value(spec).unwrap()).unwrap();
        self.index.set_pools(Some([pool].into()));
    }

    fn mutate(&self, request: &Request) -> Option<Patch> {
        effective::mutate(request, &World { policy: &self.policy, index: &self.index })
    }

    /// The object after the patch, applied as RFC 6902 says by an implementation that is not ours.
    fn mutated(&self, operation: Operation, object: &Value) -> Value {
        let mut patched = object.clone();
        if let Some(patch) = self.mutate(&request(operation, Some(object.clone()), None)) {
            json_patch::patch(&mut patched, &patch).unwrap();
        }
        patched
    }

    fn create(&self, object: Value) -> Decision {
        self.decide(&request(Operation::Create, Some(object), None))
    }

    fn update(&self, old: Value, new: Value) -> Decision {
        self.decide(&request(Operation::Update, Some(new), Some(old)))
    }

    fn store(mut self, object: Value) -> Self {
        self.index.apply(&slim(object));
        self
    }
}

fn slim(object: Value) -> Object {
    serde_json::from_value(object).unwrap()
}

fn request(operation: Operation, object: Option<Value>, old_object: Option<Value>) -> Request {
    let object = object.map(slim);
    let namespace = object.as_ref().map_or("default", |object| &object.metadata.namespace).to_owned();
    Request { operation, namespace, object, old_object: old_object.map(slim) }
}

/// A bare pod, as the API server would store it.
fn pod(name: &str, annotations: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"),
            "creationTimestamp": "2026-11-22T10:00:00Z", "annotations": annotations},
        "spec": {"containers": [{"name": "main"}]}, "status": {"phase": "Pending"}})
}

fn exposing(name: &str, ports: &str) -> Value {
    pod(name, json!({"pinhole.dev/expose": ports}))
}

fn nat(entries: &str) -> Value {
    pod("web", json!({"pinhole.dev/nat": format!(r#"{{"entries":[{entries}]}}"#)}))
}

fn workload(kind: &str, name: &str, ports: &str) -> Value {
    let template = json!({"metadata": {"annotations": {"pinhole.dev/expose": ports}}, "spec": {}});
    let spec = match kind {
        "CronJob" => json!({"jobTemplate": {"spec": {"template": template}}}),
        _ => json!({"template": template}),
    };
    json!({"kind": kind, "spec": spec, "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"),
        "creationTimestamp": "2026-11-22T09:00:00Z"}})
}

/// The object with fields replaced, named by JSON pointer.
fn with(mut object: Value, changes: &[(&str, Value)]) -> Value {
    for (pointer, value) in changes {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[key.replace("~1", "/")] = value.clone();
    }
    object
}

fn owned_by(object: Value, kind: &str, name: &str) -> Value {
    let owner = json!([{"apiVersion": "x/v1", "kind": kind, "name": name, "uid": format!("uid-{name}"), "controller": true}]);
    with(object, &[("/metadata/ownerReferences", owner)])
}

#[track_caller]
fn assert_granted(decision: &Decision) {
    assert!(decision.is_granted(), "{}", summary(&decision.violations));
}

#[track_caller]
fn assert_refused(decision: &Decision, expected: &str) {
    assert_eq!(summary(&decision.violations), expected);
}
