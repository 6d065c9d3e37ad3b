//! The resources that Pinhole reads, and the slim form in which it decodes them.
//!
//! [`Seen`] decodes into [`Object`], so that managed fields, container specs and the like are never held in memory.
//! Decoding never fails on account of one object: what cannot be read keeps its name and the reason.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::DynamicResourceScope;
use serde::Deserialize;
use serde::Deserializer;
use serde::de::Error;
use serde_json::value::RawValue;

use crate::api::object::Kind;
use crate::api::object::Metadata;
use crate::api::object::Object;

/// A resource that Pinhole reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// `v1` Namespace.
    Namespace,
    /// `v1` Node.
    Node,
    /// A kind that asks for ports or owns what does.
    Holder(Kind),
}

impl Resource {
    /// Every resource of the cluster's own, in the order in which they must be known: a pod that names its node by hostname
    /// can only be placed once the nodes are.
    pub const ALL: [Self; 9] = [
        Self::Namespace,
        Self::Node,
        Self::Holder(Kind::Deployment),
        Self::Holder(Kind::StatefulSet),
        Self::Holder(Kind::DaemonSet),
        Self::Holder(Kind::ReplicaSet),
        Self::Holder(Kind::Job),
        Self::Holder(Kind::CronJob),
        Self::Holder(Kind::Pod),
    ];

    /// The kind as a manifest writes it.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Holder(kind) => kind.name(),
        }
    }

    /// The name in URLs, in RBAC rules and for kubectl.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::Node => "nodes",
            Self::Holder(Kind::Pod) => "pods",
            Self::Holder(Kind::Deployment) => "deployments",
            Self::Holder(Kind::StatefulSet) => "statefulsets",
            Self::Holder(Kind::DaemonSet) => "daemonsets",
            Self::Holder(Kind::ReplicaSet) => "replicasets",
            Self::Holder(Kind::Job) => "jobs",
            Self::Holder(Kind::CronJob) => "cronjobs",
            Self::Holder(Kind::Pinhole) => "pinholes",
        }
    }

    /// The API group; empty for the core.
    pub fn group(self) -> &'static str {
        match self {
            Self::Namespace | Self::Node => "",
            Self::Holder(kind) => kind.api_version().split_once('/').map_or("", |(group, _)| group),
        }
    }

    /// The version in its group.
    fn version(self) -> &'static str {
        match self {
            Self::Namespace | Self::Node => "v1",
            Self::Holder(kind) => {
                kind.api_version().rsplit_once('/').map_or(kind.api_version(), |(_, version)| version)
            }
        }
    }
}

/// One object as the API server sent it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Only what kube itself reads: name, namespace, UID and resource version.
    meta: ObjectMeta,
    content: Result<Box<Object>, String>,
}

impl Seen {
    /// The object, with `kind` filled in; or its metadata and why the rest cannot be read.
    pub fn into_object(self, resource: Resource) -> Result<Box<Object>, Undecodable> {
        let Self { meta, content } = self;
        match content {
            Ok(mut object) => {
                resource.kind().clone_into(&mut object.kind);
                Ok(object)
            }
            Err(reason) => {
                let metadata = Metadata {
                    name: meta.name.unwrap_or_default(),
                    namespace: meta.namespace.unwrap_or_default(),
                    uid: meta.uid.unwrap_or_default(),
                    ..Metadata::default()
                };
                let object = Object { kind: resource.kind().to_owned(), metadata, ..Object::default() };
                Err(Undecodable { object: Box::new(object), reason })
            }
        }
    }
}

/// An object that cannot be read as one of its kind.
#[derive(Debug)]
pub struct Undecodable {
    /// Its kind, name, namespace and UID, and nothing else.
    pub object: Box<Object>,
    /// Why it cannot be read.
    pub reason: String,
}

/// The part of any object that identifies it.
#[derive(Deserialize)]
struct Identity {
    metadata: ObjectIdentity,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ObjectIdentity {
    name: String,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
}

/// Reads an object. The items of a list of custom resources name their kind, unlike those of the cluster's own.
fn read(text: &str) -> serde_json::Result<Box<Object>> {
    let object: Object = serde_json::from_str(text)?;
    let is_pinhole = object.known_kind() == Some(Kind::Pinhole);
    Ok(Box::new(if is_pinhole { object.with_pinhole(serde_json::from_str(text)?) } else { object }))
}

impl<'de> Deserialize<'de> for Seen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The text is kept until it is known whether the object can be read: a second look gives at least its name.
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let Identity { metadata } = serde_json::from_str(text.get()).map_err(D::Error::custom)?;
        let meta = ObjectMeta {
            name: Some(metadata.name),
            namespace: metadata.namespace,
            uid: metadata.uid,
            resource_version: metadata.resource_version,
            ..ObjectMeta::default()
        };
        let content = read(text.get()).map_err(|error| error.to_string());
        Ok(Self { meta, content })
    }
}

impl kube::Resource for Seen {
    type DynamicType = Resource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &Resource) -> Cow<'_, str> {
        resource.kind().into()
    }

    fn group(resource: &Resource) -> Cow<'_, str> {
        resource.group().into()
    }

    fn version(resource: &Resource) -> Cow<'_, str> {
        resource.version().into()
    }

    fn plural(resource: &Resource) -> Cow<'_, str> {
        resource.plural().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

#[cfg(test)]
mod tests {
    use kube::Resource as _;
    use kube::core::ObjectList;
    use kube::core::WatchEvent;

    use super::*;

    const PODS: Resource = Resource::Holder(Kind::Pod);

    #[test]
    fn the_items_of_a_typed_list_get_their_kind_back() {
        let list: ObjectList<Seen> = serde_json::from_str(
            r#"{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"7","continue":"token"},"items":[
                {"metadata":{"name":"a","namespace":"web","uid":"1","resourceVersion":"5",
                             "annotations":{"pinhole.dev/expose":"80"},
                             "managedFields":[{"manager":"kubectl","fieldsV1":{"f:metadata":{}}}]},
                 "spec":{"nodeName":"node-1","containers":[{"name":"c","image":"i"}]},
                 "status":{"phase":"Running"}}]}"#,
        )
        .unwrap();
        assert_eq!(list.metadata.continue_.as_deref(), Some("token"));
        let [seen] = list.items.as_slice() else { panic!("{list:?}") };
        assert_eq!(seen.meta().resource_version.as_deref(), Some("5"));
        assert_eq!(seen.meta().managed_fields, None);
        let object = seen.clone().into_object(PODS).unwrap();
        assert_eq!(object.known_kind(), Some(Kind::Pod));
        assert_eq!(object.metadata.annotations["pinhole.dev/expose"], "80");
        assert_eq!(object.spec.node_name.as_deref(), Some("node-1"));
    }

    #[test]
    fn each_line_of_a_watch_is_read() {
        let line = r#"{"type":"MODIFIED","object":{"kind":"Pod","apiVersion":"v1",
            "metadata":{"name":"a","namespace":"web","uid":"1","resourceVersion":"6"}}}"#;
        let WatchEvent::Modified(seen) = serde_json::from_str::<WatchEvent<Seen>>(line).unwrap() else {
            panic!("{line} is a modification");
        };
        assert_eq!(seen.meta().resource_version.as_deref(), Some("6"));
        let line = r#"{"type":"BOOKMARK","object":{"kind":"Pod","apiVersion":"v1",
            "metadata":{"resourceVersion":"12746","creationTimestamp":null},"spec":{"containers":null},"status":{}}}"#;
        assert!(matches!(
            serde_json::from_str::<WatchEvent<Seen>>(line).unwrap(),
            WatchEvent::Bookmark(bookmark) if bookmark.metadata.resource_version == "12746"
        ));
    }

    #[test]
    fn one_object_that_cannot_be_read_keeps_its_name_and_spoils_no_list() {
        let list: ObjectList<Seen> = serde_json::from_str(
            r#"{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"7"},"items":[
                {"metadata":{"name":"odd","namespace":"web","uid":"1","resourceVersion":"5","annotations":["a"]}},
                {"metadata":{"name":"fine","namespace":"web","uid":"2","resourceVersion":"6"}}]}"#,
        )
        .unwrap();
        let mut seen = list.items.into_iter();
        let odd = seen.next().unwrap();
        assert_eq!(odd.meta().resource_version.as_deref(), Some("5"));
        let Undecodable { object, reason } = odd.into_object(PODS).unwrap_err();
        assert_eq!((object.metadata.namespace.as_str(), object.metadata.name.as_str()), ("web", "odd"));
        assert_eq!((object.kind.as_str(), object.metadata.uid.as_str()), ("Pod", "1"));
        assert!(reason.contains("invalid type: sequence"), "{reason}");
        assert_eq!(seen.next().unwrap().into_object(PODS).unwrap().metadata.name, "fine");
    }

    #[test]
    fn every_resource_is_asked_for_where_the_api_server_has_it() {
        let url = |resource| Seen::url_path(&resource, None);
        assert_eq!(url(Resource::Node), "/api/v1/nodes");
        assert_eq!(url(PODS), "/api/v1/pods");
        assert_eq!(url(Resource::Holder(Kind::ReplicaSet)), "/apis/apps/v1/replicasets");
        assert_eq!(url(Resource::Holder(Kind::CronJob)), "/apis/batch/v1/cronjobs");
        assert_eq!(url(Resource::Holder(Kind::Pinhole)), "/apis/pinhole.dev/v1alpha1/pinholes");
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Pinhole) {
            assert!(Resource::ALL.contains(&Resource::Holder(kind)), "{kind:?} is not watched");
        }
    }
}
