//! The pods of one node that ask for ports, and what is needed to judge them: their owners, the Node itself, and the
//! labels of namespaces where a policy selects by them.
//!
//! Only this node's pods are watched (a field selector), so that an agent costs the API server as much as its node
//! has pods, not as much as the cluster has. [`NodePods`] is fed by plain calls, which tests make without a cluster;
//! [`NodePods::follow`] makes them from watches. Feeding never waits for whoever reads, so that a slow kernel cannot
//! hold up a watch (R42): a change only leaves a note that something changed.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::info;
use tracing::warn;

use crate::admission::index::Index;
use crate::admission::index::ObjectKey;
use crate::admission::policy::Policy;
use crate::api::object::Kind;
use crate::api::object::NodeAddress;
use crate::api::object::Object;
use crate::api::object::Spec;
use crate::api::object::Status;
use crate::cluster::client::Connection;
use crate::cluster::informers::Observer;
use crate::cluster::informers::Sign;
use crate::cluster::live::ApiServer;
use crate::cluster::resource::Resource;
use crate::cluster::watch::News;
use crate::cluster::watch::Watch;
use crate::model::holder::ObjectName;

const POD: Resource = Resource::Holder(Kind::Pod);

/// A pod whose owner cannot be read in this time is taken with the owner that it names itself.
const OWNER_PATIENCE: Duration = Duration::from_secs(2);

const LATE_OWNER: &str = "Cannot tell which workload some pods belong to; a rolling update of it may look like a \
                          conflict until its ReplicaSet or Job can be read";

/// How long until an owner that could not be read is asked for again.
const OWNER_RETRY: Duration = Duration::from_secs(30);

/// What is known of a node.
#[derive(Debug)]
pub struct View {
    /// The pods that ask for ports, or did when they were first seen.
    pub pods: BTreeMap<ObjectName, Object>,
    /// The others: that they are there, and their addresses.
    others: BTreeMap<ObjectName, Object>,
    /// Owners, namespaces and the node. It holds no pods: which of this node's pods has a port is not decided by
    /// who asked, but by an election.
    pub index: Index,
    /// The Node, if it exists.
    pub node: Option<Object>,
    /// Addresses of the node that its Node may not list.
    more_addresses: Vec<IpAddr>,
}

/// A node as the API server knows it.
#[derive(Debug)]
pub struct NodePods {
    policy: Arc<Policy>,
    view: RwLock<View>,
    changed: Notify,
    waiting_tx: watch::Sender<BTreeSet<Resource>>,
}

impl NodePods {
    /// A node of which nothing is known yet.
    pub fn new(policy: Arc<Policy>) -> Self {
        let mut waiting = BTreeSet::from([Resource::Node, POD]);
        if !policy.namespaces.selector.is_empty() {
            waiting.insert(Resource::Namespace);
        }
        let view = View {
            pods: BTreeMap::new(),
            others: BTreeMap::new(),
            index: Index::new(Arc::clone(&policy)),
            node: None,
            more_addresses: Vec::new(),
        };
        Self {
            policy,
            view: RwLock::new(view),
            changed: Notify::new(),
            waiting_tx: watch::Sender::new(waiting),
        }
    }

    /// Shows what is known. Nothing is fed meanwhile, so be quick and wait for nothing.
    pub fn read<T>(&self, look: impl FnOnce(&View) -> T) -> T {
        look(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The resources of which no complete list was seen yet.
    pub fn waiting(&self) -> BTreeSet<Resource> {
        self.waiting_tx.borrow().clone()
    }

    /// Waits until something changed since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Notes that something else changed that the node's rules rest on.
    pub fn wake(&self) {
        self.changed.notify_one();
    }

    /// Takes news of a resource.
    pub fn feed(&self, resource: Resource, news: News) {
        let is_list = matches!(news, News::Listed(_));
        {
            let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
            match (resource, news) {
                (_, News::Failed(_)) => return,
                (Resource::Node, news) => view.feed_node(news),
                (Resource::Namespace, news) => view.feed_namespaces(news),
                (Resource::Holder(_), news) => view.feed_pods(news, &self.policy),
            }
        }
        if is_list && self.waiting_tx.send_if_modified(|waiting| waiting.remove(&resource)) {
            info!(resource = resource.plural(), "Listed for the first time");
        }
        self.changed.notify_one();
    }

    /// Takes the owner of a pod: who manages it, and nothing of its template.
    pub fn feed_owner(&self, mut owner: Object) {
        owner.spec = Spec::default();
        owner.status = Status::default();
        self.view.write().unwrap_or_else(PoisonError::into_inner).index.apply(&owner);
        self.changed.notify_one();
    }

    /// Counts these addresses as the node's own too: its Node may not list the one that the outside uses.
    pub fn feed_addresses(&self, addresses: Vec<IpAddr>) {
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        if view.more_addresses != addresses {
            view.more_addresses = addresses;
            view.index_node();
        }
    }

    /// Watches the node of this name until it is dropped. A panic in one of the watches is a panic here: a process
    /// must not go on with a view that no longer changes.
    pub async fn follow(self: Arc<Self>, connection: Connection, node_name: String, observer: Observer) {
        let mut watches = JoinSet::new();
        for resource in self.waiting() {
            let following = Arc::clone(&self).follow_one(
                connection.clone(),
                resource,
                fields(resource, &node_name),
                Arc::clone(&observer),
            );
            watches.spawn(following);
        }
        while let Some(ended) = watches.join_next().await {
            if let Err(error) = ended
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }

    async fn follow_one(
        self: Arc<Self>,
        connection: Connection,
        resource: Resource,
        fields: Option<String>,
        observer: Observer,
    ) {
        let mut watch = Watch::new(&connection, resource, fields.as_deref(), Box::new(|_| true));
        let api_server = ApiServer::new(connection.client);
        let mut owners_due = Instant::now() + OWNER_RETRY;
        loop {
            let Some(news) = until_due(&mut owners_due, watch.next()).await else {
                if resource == POD {
                    let pods: Vec<_> = self.read(|view| view.pods.values().cloned().collect());
                    self.learn_owners(&pods, &api_server).await;
                }
                continue;
            };
            match &news {
                News::Listed(objects) => self.learn_owners(objects, &api_server).await,
                News::Applied(object) => self.learn_owners(std::slice::from_ref(object), &api_server).await,
                News::Deleted(_) => {}
                News::Failed(reason) => {
                    observer(resource, Sign::Failed(reason));
                    continue;
                }
            }
            let is_list = matches!(news, News::Listed(_));
            self.feed(resource, news);
            let waiting = self.waiting();
            observer(resource, if is_list { Sign::Listed { waiting: &waiting } } else { Sign::Changed });
        }
    }

    /// Reads the owners of pods that are not known yet, each once: an owner's own owner never changes.
    async fn learn_owners(&self, pods: &[Object], api_server: &ApiServer) {
        let unknown: BTreeSet<_> = pods.iter().filter_map(|pod| self.unknown_owner(pod)).collect();
        for owner in unknown {
            let resource = Resource::Holder(owner.kind);
            let read = api_server.get(resource, &owner.name.namespace, &owner.name.name);
            match tokio::time::timeout(OWNER_PATIENCE, read).await {
                Ok(Ok(Some(object))) => self.feed_owner(object),
                // Its pods are about to be collected; until then the owner that they name will do.
                Ok(Ok(None)) => {}
                Ok(Err(error)) => warn!(%error, "{LATE_OWNER}"),
                Err(_) => {
                    let patience = OWNER_PATIENCE;
                    warn!(kind = owner.kind.name(), name = %owner.name, ?patience, "{LATE_OWNER}");
                }
            }
        }
    }

    fn unknown_owner(&self, pod: &Object) -> Option<ObjectKey> {
        if !self.policy.asks(&pod.metadata.annotations) {
            return None;
        }
        let key = ObjectKey::of(pod, &pod.metadata.namespace)?;
        self.read(|view| view.index.holder(&key, pod.metadata.controller()).err())
    }
}

impl View {
    fn feed_node(&mut self, news: News) {
        self.node = match news {
            News::Listed(nodes) => nodes.into_iter().next(),
            News::Applied(node) => Some(*node),
            News::Deleted(_) => None,
            News::Failed(_) => return,
        };
        self.index_node();
    }

    fn index_node(&mut self) {
        let mut node = self.node.clone();
        if let Some(node) = &mut node {
            let more = self.more_addresses.iter().map(ToString::to_string);
            let more = more.map(|address| NodeAddress { address, ..NodeAddress::default() });
            node.status.addresses.extend(more);
        }
        self.index.reset_nodes(&node);
    }

    fn feed_namespaces(&mut self, news: News) {
        match news {
            News::Listed(namespaces) => self.index.reset_namespaces(&namespaces),
            News::Applied(namespace) => self.index.apply(&namespace),
            News::Deleted(namespace) => self.index.delete_namespace(&namespace.metadata.name),
            News::Failed(_) => {}
        }
    }

    fn feed_pods(&mut self, news: News, policy: &Policy) {
        match news {
            News::Listed(pods) => {
                let known = std::mem::take(&mut self.pods);
                self.others.clear();
                for pod in pods {
                    self.put(pod, policy, &known);
                }
            }
            News::Applied(pod) => {
                let known: BTreeMap<_, _> = self.pods.remove_entry(&name(&pod)).into_iter().collect();
                self.put(*pod, policy, &known);
            }
            News::Deleted(pod) => {
                let name = name(&pod);
                // A pod of the same name that came after it stays (R09).
                let is_it = |known: &Object| known.metadata.uid == pod.metadata.uid;
                for pods in [&mut self.pods, &mut self.others] {
                    if pods.get(&name).is_some_and(is_it) {
                        pods.remove(&name);
                    }
                }
                self.forget_owner(&pod);
            }
            News::Failed(_) => {}
        }
    }
}

impl View {
    /// The pods that have not ended, whether they ask for ports or not.
    pub fn running(&self) -> impl Iterator<Item = &Object> {
        self.pods.values().chain(self.others.values()).filter(|pod| !pod.is_finished())
    }

    /// Puts a pod where it belongs. One that asks no longer (R10) is still there, and so are its connections: it stays with
    /// those that ask.
    fn put(&mut self, pod: Object, policy: &Policy, known: &BTreeMap<ObjectName, Object>) {
        let name = name(&pod);
        let is_known = known.get(&name).is_some_and(|known| known.metadata.uid == pod.metadata.uid);
        self.others.remove(&name);
        let asks = policy.asks(&pod.metadata.annotations);
        let pods = if asks || is_known { &mut self.pods } else { &mut self.others };
        pods.insert(name, pod);
    }

    /// Forgets the owner of a pod that is gone, unless another pod has it too: every rollout brings a new one.
    fn forget_owner(&mut self, pod: &Object) {
        let Some(owner) = pod.metadata.controller() else { return };
        let has_it =
            |pod: &Object| pod.metadata.controller().is_some_and(|controller| controller.uid == owner.uid);
        if let Some(kind) = Kind::from_name(&owner.kind)
            && !self.pods.values().any(has_it)
        {
            let name = ObjectName::new(pod.metadata.namespace.as_str(), owner.name.as_str());
            self.index.delete(&ObjectKey { kind, name }, Some(&owner.uid));
        }
    }
}

/// What comes next; `None` when owners are to be asked for first, however much else comes.
async fn until_due<T>(due: &mut Instant, next: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = tokio::time::sleep_until(*due) => {
            *due = Instant::now() + OWNER_RETRY;
            None
        }
        next = next => Some(next),
    }
}

/// What of a resource belongs to the node of exactly this name (R15).
fn fields(resource: Resource, node_name: &str) -> Option<String> {
    match resource {
        Resource::Node => Some(format!("metadata.name={node_name}")),
        Resource::Holder(_) => Some(format!("spec.nodeName={node_name}")),
        Resource::Namespace => None,
    }
}

fn name(pod: &Object) -> ObjectName {
    ObjectName::new(pod.metadata.namespace.as_str(), pod.metadata.name.as_str())
}

#[cfg(test)]
mod tests;
