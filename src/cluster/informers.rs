//! Feeds the index from watches on everything that can hold a port or tells who does.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::info;

use crate::admission::index::Index;
use crate::admission::index::ObjectKey;
use crate::admission::policy::Policy;
use crate::admission::subject::Subject;
use crate::api::keys;
use crate::api::object::Kind;
use crate::api::object::Object;
use crate::api::object::Spec;
use crate::api::object::Status;
use crate::cluster::asking_pods;
use crate::cluster::asking_pods::AskingPods;
use crate::cluster::client::Connection;
use crate::cluster::lacking_workloads;
use crate::cluster::lacking_workloads::LackingWorkloads;
use crate::cluster::resource::Resource;
use crate::cluster::watch::News;
use crate::cluster::watch::Watch;

/// What the informers tell of themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign<'a> {
    /// A complete list of a resource is in the index; these resources are still to come.
    Listed {
        /// The resources without a first list; the index is complete when there are none.
        waiting: &'a BTreeSet<Resource>,
    },
    /// A change is in the index.
    Changed,
    /// The resource could not be watched for this reason.
    Failed(&'a str),
}

/// Hears what the informers tell. Called often, and never with the index locked.
pub type Observer = Arc<dyn Fn(Resource, Sign<'_>) + Send + Sync>;

/// The watches and what they feed.
pub struct Informers {
    connection: Connection,
    policy: Arc<Policy>,
    index: Arc<RwLock<Index>>,
    observer: Observer,
    waiting_tx: watch::Sender<BTreeSet<Resource>>,
    pods: Option<Arc<RwLock<AskingPods>>>,
    lacking: Option<Arc<RwLock<LackingWorkloads>>>,
    resources: Vec<Resource>,
}

impl Informers {
    /// Informers that keep `index` up to date.
    pub fn new(
        connection: Connection,
        policy: Arc<Policy>,
        index: Arc<RwLock<Index>>,
        observer: Observer,
    ) -> Self {
        let waiting_tx = watch::Sender::new(BTreeSet::from(Resource::ALL));
        let resources = Resource::ALL.to_vec();
        Self { connection, policy, index, observer, waiting_tx, pods: None, lacking: None, resources }
    }

    /// The same, which also keep the pods that ask for ports.
    #[must_use]
    pub fn keeping(mut self, pods: Arc<RwLock<AskingPods>>) -> Self {
        self.pods = Some(pods);
        self
    }

    /// The same, which also keep the workloads that ask for ports and lack pods.
    #[must_use]
    pub fn with_lacking(mut self, workloads: Arc<RwLock<LackingWorkloads>>) -> Self {
        self.lacking = Some(workloads);
        self
    }

    /// The same, which also follow the Pinholes that users write.
    #[must_use]
    pub fn with_pinholes(mut self) -> Self {
        let pinholes = Resource::Holder(Kind::Pinhole);
        self.resources.push(pinholes);
        self.waiting_tx.send_modify(|waiting| waiting.extend([pinholes]));
        self
    }

    /// Watches until it is dropped. A panic in one of the watches is a panic here: a process must not go on with a
    /// view that no longer changes.
    pub async fn run(self) {
        let informers = Arc::new(self);
        let mut watches = JoinSet::new();
        for resource in informers.resources.iter().copied() {
            watches.spawn(Arc::clone(&informers).follow(resource));
        }
        while let Some(ended) = watches.join_next().await {
            if let Err(error) = ended
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }

    async fn follow(self: Arc<Self>, resource: Resource) {
        if matches!(resource, Resource::Holder(_)) {
            // Ports of an object that names its node by hostname are placed as it arrives.
            let mut waiting_rx = self.waiting_tx.subscribe();
            let nodes_known = waiting_rx.wait_for(|waiting| !waiting.contains(&Resource::Node)).await;
            drop(nodes_known);
        }
        let policy = Arc::clone(&self.policy);
        let trim = Box::new(move |object: &mut Object| trim(object, &policy));
        let mut watch = Watch::new(&self.connection, resource, None, trim);
        loop {
            self.take(resource, &watch.next().await);
        }
    }

    fn take(&self, resource: Resource, news: &News) {
        let listed = match news {
            News::Listed(objects) => Some(objects.len()),
            News::Applied(_) | News::Deleted(_) => None,
            News::Failed(reason) => return (self.observer)(resource, Sign::Failed(reason)),
        };
        {
            // A panic in a rule cannot leave the index half changed, for rules do not change it.
            let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
            feed(&mut index, resource, news);
        }
        if let (Resource::Holder(Kind::Pod), Some(pods)) = (resource, &self.pods) {
            let mut pods = pods.write().unwrap_or_else(PoisonError::into_inner);
            asking_pods::feed(&mut pods, news, &self.policy);
        }
        if let (Resource::Holder(kind), Some(workloads)) = (resource, &self.lacking) {
            let mut workloads = workloads.write().unwrap_or_else(PoisonError::into_inner);
            lacking_workloads::feed(&mut workloads, kind, news, &self.policy);
        }
        let Some(kept) = listed else { return (self.observer)(resource, Sign::Changed) };
        let is_first = self.waiting_tx.send_if_modified(|waiting| waiting.remove(&resource));
        info!(resource = resource.plural(), kept, is_first, "Listed");
        (self.observer)(resource, Sign::Listed { waiting: &self.waiting_tx.borrow() });
    }
}

/// Brings news of one resource into the index.
fn feed(index: &mut Index, resource: Resource, news: &News) {
    match (news, resource) {
        (News::Failed(_), _) => {}
        (News::Listed(objects), Resource::Namespace) => index.reset_namespaces(objects),
        (News::Listed(objects), Resource::Node) => index.reset_nodes(objects),
        (News::Listed(objects), Resource::Holder(kind)) => index.reset(kind, objects),
        (News::Applied(object), _) => index.apply(object),
        (News::Deleted(object), Resource::Namespace) => index.delete_namespace(&object.metadata.name),
        (News::Deleted(object), Resource::Node) => index.delete_node(&object.metadata.name),
        (News::Deleted(object), Resource::Holder(_)) => {
            if let Some(key) = ObjectKey::of(object, &object.metadata.namespace) {
                let uid = Some(object.metadata.uid.as_str()).filter(|uid| !uid.is_empty());
                index.delete(&key, uid);
            }
        }
    }
}

/// Takes from an object what nobody reads of it; `false` when that is everything.
pub(crate) fn trim(object: &mut Object, policy: &Policy) -> bool {
    let Some(kind) = object.known_kind() else { return true };
    let asks = Subject::of(object)
        .is_some_and(|subject| subject.pinhole.is_some() || policy.asks(&subject.metadata.annotations));
    let is_link = matches!(kind, Kind::ReplicaSet | Kind::Job);
    let names_heir = object.metadata.annotations.contains_key(keys::TRANSFER_TO);
    let has_host_ports = object.has_host_ports();
    if !asks && has_host_ports {
        let Spec { node_name, containers, .. } = std::mem::take(&mut object.spec);
        object.spec = Spec { node_name, containers, ..Spec::default() };
    } else if !asks {
        object.spec = Spec::default();
        object.status = Status::default();
    }
    object.metadata.annotations.retain(|key, _| is_read(key, policy));
    object.metadata.labels.clear();
    asks || is_link || has_host_ports || names_heir
}

/// Whether somebody reads an annotation: all that ask, and all of ours but the request with its defaults, which is as long as the
/// request itself.
fn is_read(key: &str, policy: &Policy) -> bool {
    let is_ours = || keys::OURS.contains(&key) && key != keys::EFFECTIVE;
    key == keys::MIRROR_POD || is_ours() || policy.input_keys().any(|input| input == key)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::convert::Infallible;
    use std::sync::Mutex;

    use bytes::Bytes;
    use futures::StreamExt;
    use futures::stream;
    use http_body_util::StreamBody;
    use hyper::Request;
    use hyper::Response;
    use hyper::body::Frame;
    use serde_json::Value;
    use serde_json::json;

    use super::*;
    use crate::admission;
    use crate::admission::Operation;
    use crate::admission::World;

    const PODS: Resource = Resource::Holder(Kind::Pod);

    fn object(json: Value) -> Object {
        serde_json::from_value(json).unwrap()
    }

    fn pod(name: &str, annotations: &Value) -> Object {
        object(json!({
            "kind": "Pod",
            "metadata": {
                "name": name, "namespace": "web", "uid": format!("uid-{name}"), "annotations": annotations,
                "labels": {"app": name},
            },
            "spec": {"nodeName": "node-1"},
            "status": {"phase": "Running"},
        }))
    }

    fn exposing(name: &str) -> Object {
        pod(name, &json!({"pinhole.dev/expose": "203.0.113.7:25", "team": "mail"}))
    }

    fn workload(kind: &str, name: &str, owner: &Value) -> Object {
        let template = json!({
            "metadata": {"annotations": {"pinhole.dev/expose": "203.0.113.7:80"}},
            "spec": {"nodeSelector": {"kubernetes.io/hostname": "host-1"}},
        });
        object(json!({
            "kind": kind,
            "metadata": {"name": name, "namespace": "web", "uid": format!("uid-{name}"), "ownerReferences": owner},
            "spec": {"replicas": 0, "template": template},
        }))
    }

    fn may_have_25(index: &Index) -> bool {
        let request = admission::Request {
            operation: Operation::Create,
            namespace: "web".to_owned(),
            object: Some(exposing("another")),
            old_object: None,
        };
        admission::decide(&request, &World { policy: &Policy::default(), index }).is_granted()
    }

    fn index() -> Index {
        Index::new(Arc::new(Policy::default()))
    }

    #[test]
    fn a_list_replaces_what_was_known_as_one_step_and_changes_and_deletions_follow() {
        let mut index = index();
        feed(&mut index, PODS, &News::Listed(vec![exposing("postfix")]));
        assert!(!may_have_25(&index));
        feed(&mut index, PODS, &News::Deleted(Box::new(exposing("postfix"))));
        assert!(may_have_25(&index));
        feed(&mut index, PODS, &News::Applied(Box::new(exposing("postfix"))));
        assert!(!may_have_25(&index));
        feed(&mut index, PODS, &News::Applied(Box::new(pod("postfix", &json!({})))));
        assert!(may_have_25(&index));
        feed(&mut index, PODS, &News::Applied(Box::new(exposing("postfix"))));
        feed(&mut index, PODS, &News::Failed("gone for lunch".to_owned()));
        assert!(!may_have_25(&index), "what is known stays while the API server cannot be asked");
        feed(&mut index, PODS, &News::Listed(Vec::new()));
        assert!(may_have_25(&index));
    }

    #[test]
    fn namespaces_and_nodes_come_and_go() {
        let mut index = index();
        let namespace =
            object(json!({"kind": "Namespace", "metadata": {"name": "web", "labels": {"nat": "yes"}}}));
        let node = object(json!({
            "kind": "Node",
            "metadata": {"name": "node-1", "labels": {"kubernetes.io/hostname": "host-1"}},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.1"}]},
        }));
        feed(&mut index, Resource::Namespace, &News::Listed(vec![namespace.clone()]));
        feed(&mut index, Resource::Node, &News::Listed(vec![node.clone()]));
        assert_eq!(index.namespace_labels("web").unwrap()["nat"], "yes");
        let pinned = admission::subject::PinnedNode::Hostname("host-1");
        assert_eq!(&*index.node_name(pinned), "node-1");
        feed(&mut index, Resource::Namespace, &News::Deleted(Box::new(namespace)));
        assert_eq!(index.namespace_labels("web"), None);
        feed(&mut index, Resource::Node, &News::Deleted(Box::new(node)));
        assert_eq!(&*index.node_name(pinned), "host-1");
    }

    #[test]
    fn a_trimmed_list_tells_the_index_the_same_as_a_whole_one() {
        let owned = json!([{"kind": "Deployment", "name": "web", "uid": "uid-web", "controller": true}]);
        let objects = [
            exposing("postfix"),
            pod("quiet", &json!({"team": "web"})),
            workload("Deployment", "web", &json!(null)),
            workload("ReplicaSet", "web-1", &owned),
            object(json!({"kind": "ReplicaSet", "metadata": {
                "name": "quiet-1", "namespace": "web", "uid": "uid-quiet-1", "ownerReferences": owned,
            }})),
            object(json!({"kind": "StatefulSet", "metadata": {"name": "quiet", "namespace": "web"}})),
        ];
        let policy = Policy::default();
        let mut trimmed = objects.to_vec();
        trimmed.retain_mut(|object| trim(object, &policy));
        let kept: Vec<_> = trimmed.iter().map(|object| object.metadata.name.as_str()).collect();
        assert_eq!(kept, ["postfix", "web", "web-1", "quiet-1"]);
        let fed = |objects: &[Object]| {
            let mut index = index();
            for object in objects {
                index.apply(object);
            }
            format!("{index:?}")
        };
        let facts = |objects: &[Object]| {
            let mut lines: Vec<_> = objects.iter().map(|object| fed(std::slice::from_ref(object))).collect();
            lines.sort();
            lines
        };
        let whole: Vec<_> =
            objects.iter().filter(|object| kept.contains(&object.metadata.name.as_str())).cloned().collect();
        assert_eq!(facts(&trimmed), facts(&whole));
        let nothing = fed(&[]);
        for dropped in objects.iter().filter(|object| !kept.contains(&object.metadata.name.as_str())) {
            assert_eq!(fed(std::slice::from_ref(dropped)), nothing, "{}", dropped.metadata.name);
        }
    }

    #[test]
    fn what_anybody_reads_of_a_pod_outlives_trimming_and_the_rest_goes() {
        let policy = Policy {
            more_annotation_keys: vec![keys::PODNAT.to_owned()],
            reads_ack: true,
            ..Policy::default()
        };
        let mut read = BTreeSet::from([keys::PODNAT, keys::MIRROR_POD]);
        read.extend(keys::OURS.into_iter().chain(keys::ACK).filter(|key| *key != keys::EFFECTIVE));
        let unread = [keys::EFFECTIVE, keys::WOKEN, "team"];
        let annotations: BTreeMap<_, _> = read.iter().chain(&unread).map(|key| (*key, "x")).collect();
        let mut trimmed = pod("postfix", &json!(annotations));
        assert!(trim(&mut trimmed, &policy));
        let kept: BTreeSet<_> = trimmed.metadata.annotations.keys().map(String::as_str).collect();
        assert_eq!(kept, read);
        assert_eq!(
            (trimmed.spec.node_name.as_deref(), trimmed.status.phase.as_str()),
            (Some("node-1"), "Running")
        );
    }

    #[test]
    fn a_change_of_any_key_that_is_a_new_request_is_seen() {
        let policy = Policy { reads_ack: true, ..Policy::default() };
        for key in policy.request_keys() {
            let mut trimmed = pod("postfix", &json!({"pinhole.dev/expose": "25", key: "x"}));
            trim(&mut trimmed, &policy);
            assert_eq!(trimmed.metadata.annotations[key], "x", "{key}");
        }
    }

    /// An API server that lists what it was given, page by page, and then has no news.
    fn api_server(requests: &Arc<Mutex<Vec<String>>>) -> Connection {
        let requests = Arc::clone(requests);
        let serve = move |request: Request<kube::client::Body>| {
            let (path, query) =
                (request.uri().path().to_owned(), request.uri().query().unwrap_or_default().to_owned());
            let is_watch = query.contains("watch=true");
            if !is_watch {
                requests.lock().unwrap().push(path.clone());
            }
            let page = |items: &[Value], more: &str| {
                json!({"metadata": {"resourceVersion": "9", "continue": more}, "items": items}).to_string()
            };
            let item = |name: &str| {
                let metadata = json!({"name": name, "namespace": "web", "resourceVersion": "3",
                    "annotations": {"pinhole.dev/expose": "203.0.113.7:25"}});
                json!({"metadata": metadata})
            };
            let body = match path.as_str() {
                "/api/v1/pods" if query.contains("continue=more") => page(&[item("exim")], ""),
                "/api/v1/pods" => page(&[item("postfix")], "more"),
                _ => page(&[], ""),
            };
            let frame = Ok::<_, Infallible>(Frame::data(Bytes::from(body)));
            let stream = if is_watch {
                stream::pending().boxed()
            } else {
                stream::once(std::future::ready(frame)).boxed()
            };
            std::future::ready(Ok::<_, Infallible>(Response::new(StreamBody::new(stream))))
        };
        let client = kube::Client::new(tower::service_fn(serve), "default");
        Connection { client, server: "https://api.test".to_owned() }
    }

    #[tokio::test]
    async fn the_index_is_complete_once_every_resource_was_listed_and_nodes_come_before_what_runs_on_them() {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let policy = Arc::new(Policy::default());
        let index = Arc::new(RwLock::new(index()));
        let (complete_tx, complete_rx) = watch::channel(false);
        let observer = move |_, sign: Sign<'_>| {
            if let Sign::Listed { waiting } = sign {
                complete_tx.send_replace(waiting.is_empty());
            }
        };
        let informers = Informers::new(api_server(&requests), policy, Arc::clone(&index), Arc::new(observer));
        let running = tokio::spawn(informers.run());
        complete_rx.clone().wait_for(|complete| *complete).await.unwrap();

        assert_eq!(index.read().unwrap().holdings_count(), 2, "both pages count");
        let requests = requests.lock().unwrap().clone();
        let nodes = requests.iter().position(|path| path == "/api/v1/nodes").unwrap();
        let pods = requests.iter().position(|path| path == "/api/v1/pods").unwrap();
        assert!(nodes < pods, "{requests:?}");
        assert!(!running.is_finished(), "watching goes on");
        running.abort();
    }
}
