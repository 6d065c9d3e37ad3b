//! The subject of a decision: the pod, the pod template of a workload, or the Pinhole, that asks for ports.

use crate::api::crd::pinhole::PinholeSpec;
use crate::api::keys;
use crate::api::object::Kind;
use crate::api::object::Metadata;
use crate::api::object::NodeSelectorRequirement;
use crate::api::object::Object;
use crate::api::object::Spec;
use crate::model::ordinals::Ordinals;

/// A pod or a workload's pod template, and where in the object its fields are.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The kind of the object.
    pub kind: Kind,
    /// The object's own metadata.
    pub owner: &'a Metadata,
    /// The pod's metadata: the object's own, or its template's.
    pub metadata: &'a Metadata,
    /// The pod's spec, likewise.
    pub spec: &'a Spec,
    /// The workload's replicas, of a Job its parallelism; 1 where it says nothing or has none.
    pub replicas: i64,
    /// Of a StatefulSet, the ordinals of its pods.
    pub ordinals: Option<Ordinals>,
    /// The path of the pod's parts inside the object: empty, or `spec.template.` and the like.
    pub prefix: &'static str,
    /// What a Pinhole asks for, which has no pod.
    pub pinhole: Option<&'a PinholeSpec>,
}

impl<'a> Subject<'a> {
    /// The pod or template in an object, or the Pinhole that it is; `None` for a workload without a template, which the API
    /// server refuses itself, and for a Pinhole of the controller's, whose pod asks.
    pub fn of(object: &'a Object) -> Option<Self> {
        let kind = object.known_kind()?;
        let pinhole = object.pinhole.as_deref();
        let (metadata, spec, prefix) = match kind {
            Kind::Pinhole if pinhole?.target.pod.is_some() => return None,
            Kind::Pod | Kind::Pinhole => (&object.metadata, &object.spec, ""),
            Kind::CronJob => {
                let template = object.spec.job_template.as_ref()?.spec.template.as_ref()?;
                (&template.metadata, &template.spec, "spec.jobTemplate.spec.template.")
            }
            _ => {
                let template = object.spec.template.as_ref()?;
                (&template.metadata, &template.spec, "spec.template.")
            }
        };
        let job = object.spec.job_template.as_ref().map_or(&object.spec, |template| &template.spec);
        let replicas = object.spec.replicas.or(job.parallelism).unwrap_or(1);
        let ordinals = object.ordinals();
        Some(Self { kind, owner: &object.metadata, metadata, spec, replicas, ordinals, prefix, pinhole })
    }

    /// The pods that there are at a time, by their ordinals where they have any.
    pub fn pods(&self) -> Ordinals {
        self.ordinals.unwrap_or_else(|| Ordinals::new(0, self.replicas))
    }

    /// The path of the pod's annotations.
    pub fn annotations_path(&self) -> String {
        format!("{}metadata.annotations", self.prefix)
    }

    /// The path of what asks for ports.
    pub fn asking_path(&self) -> String {
        if self.pinhole.is_some() { "spec.ports".to_owned() } else { self.annotations_path() }
    }

    /// Whether this is the API server's copy of a static pod, which no refusal can stop.
    pub fn is_mirror(&self) -> bool {
        self.kind == Kind::Pod && self.metadata.annotations.contains_key(keys::MIRROR_POD)
    }

    /// Whether a controller made this workload from a template of its own, which was judged already.
    pub fn is_derived_workload(&self) -> bool {
        matches!(self.kind, Kind::ReplicaSet | Kind::Job) && self.owner.controller().is_some()
    }

    /// The one node that the pod can run on, when its spec already says so.
    pub fn pinned_node(&self) -> Option<PinnedNode<'a>> {
        if let Some(name) = self.spec.node_name.as_deref().filter(|name| !name.is_empty()) {
            return Some(PinnedNode::Name(name));
        }
        if let Some(hostname) = self.spec.node_selector.get(keys::HOSTNAME_LABEL) {
            return Some(PinnedNode::Hostname(hostname));
        }
        // Terms are alternatives, so that only a single one pins; its own requirements all hold at once.
        let affinity = self.spec.affinity.as_ref()?;
        let [term] = affinity.node_affinity.required.node_selector_terms.as_slice() else {
            return None;
        };
        let hostname = only_value(&term.match_expressions, keys::HOSTNAME_LABEL).map(PinnedNode::Hostname);
        hostname.or_else(|| only_value(&term.match_fields, "metadata.name").map(PinnedNode::Name))
    }
}

/// A node as a pod's spec names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinnedNode<'a> {
    /// By the name of the Node object.
    Name(&'a str),
    /// By the label `kubernetes.io/hostname`.
    Hostname(&'a str),
}

fn only_value<'a>(requirements: &'a [NodeSelectorRequirement], key: &str) -> Option<&'a str> {
    requirements.iter().find(|requirement| requirement.key == key && requirement.operator == "In").and_then(
        |requirement| match requirement.values.as_slice() {
            [only] => Some(only.as_str()),
            _ => None,
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(json: &str) -> Object {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn each_workload_keeps_its_template_where_its_kind_has_it() {
        let cases = [
            (r#"{"kind":"Pod","metadata":{"annotations":{"a":"1"}}}"#, "metadata.annotations"),
            (
                r#"{"kind":"Deployment","spec":{"template":{"metadata":{"annotations":{"a":"1"}}}}}"#,
                "spec.template.metadata.annotations",
            ),
            (
                r#"{"kind":"CronJob","spec":{"jobTemplate":{"spec":{"template":{"metadata":{"annotations":{"a":"1"}}}}}}}"#,
                "spec.jobTemplate.spec.template.metadata.annotations",
            ),
        ];
        for (json, path) in cases {
            let object = object(json);
            let subject = Subject::of(&object).unwrap();
            assert_eq!(subject.annotations_path(), path);
            assert_eq!(subject.metadata.annotations["a"], "1");
        }
        assert!(Subject::of(&object(r#"{"kind":"Service"}"#)).is_none());
        assert!(Subject::of(&object(r#"{"kind":"Deployment"}"#)).is_none());
    }

    #[test]
    fn a_pod_is_pinned_by_name_by_hostname_or_by_a_daemonset_s_affinity() {
        let pinned = |spec: &str| {
            let object = object(&format!(r#"{{"kind":"Pod","spec":{spec}}}"#));
            Subject::of(&object).unwrap().pinned_node().map(|node| format!("{node:?}"))
        };
        assert_eq!(pinned(r#"{"nodeName":"n1"}"#).unwrap(), "Name(\"n1\")");
        assert_eq!(
            pinned(r#"{"nodeSelector":{"kubernetes.io/hostname":"h1"}}"#).unwrap(),
            "Hostname(\"h1\")"
        );
        let daemon = r#"{"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms":[{"matchFields":[{"key":"metadata.name","operator":"In","values":["n2"]}]}]}}}}"#;
        assert_eq!(pinned(daemon).unwrap(), "Name(\"n2\")");
        let either = r#"{"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms":[{"matchFields":[{"key":"metadata.name","operator":"In","values":["n2","n3"]}]}]}}}}"#;
        assert_eq!(pinned(either), None);
        assert_eq!(pinned("{}"), None);
    }
}
