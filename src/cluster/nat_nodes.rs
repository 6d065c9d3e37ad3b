//! One node's NatNode in the API server: what is stored of it, and writing it.
//!
//! Writes are server-side applies of our own field manager, so that what an operator sets (`spec.paused`, `spec.resume`) is
//! never touched.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::Client;
use kube::api::Patch;
use kube::api::PatchParams;
use kube::api::PostParams;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher;
use kube::runtime::watcher::Event;
use serde_json::json;
use tokio::sync::watch;
use tracing::debug;
use tracing::warn;

use crate::api::crd::nat_node::NatNode;
use crate::api::crd::nat_node::NatNodeSpec;
use crate::api::crd::nat_node::NatNodeStatus;
use crate::cluster::trouble::describe;
use crate::cluster::trouble::describe_watch;
use crate::cluster::trouble::is_expired;
use crate::cluster::trouble::is_out_of_reach;
use crate::cluster::watch::WATCH_SECONDS;

/// Who we are in a NatNode's managed fields.
const FIELD_MANAGER: &str = "pinhole-agent";

const API_VERSION: &str = "pinhole.dev/v1alpha1";

/// What is stored under the node's name.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Stored {
    /// Nobody has said yet.
    #[default]
    Unknown,
    /// Nothing; or the cluster has no NatNodes at all.
    Absent,
    /// This.
    Present(Arc<NatNode>),
}

/// What a NatNode has of its Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The Node's UID.
    pub node_uid: String,
    /// Its labels, by which pools select.
    pub labels: BTreeMap<String, String>,
}

/// The NatNode of one node.
#[derive(Clone)]
pub struct NatNodes {
    api: Api<NatNode>,
    name: String,
}

impl NatNodes {
    /// The NatNode of this name.
    pub fn new(client: Client, name: String) -> Self {
        Self { api: Api::all(client), name }
    }

    /// Follows it until dropped. A cluster without the custom resources has none.
    pub async fn follow(self, stored_tx: watch::Sender<Stored>) {
        let config =
            watcher::Config::default().fields(&format!("metadata.name={}", self.name)).timeout(WATCH_SECONDS);
        let mut events = watcher(self.api, config).default_backoff().boxed();
        let mut listed = Stored::Absent;
        let mut has_warned = false;
        while let Some(event) = events.next().await {
            let stored = match event {
                Ok(Event::Init) => {
                    listed = Stored::Absent;
                    continue;
                }
                Ok(Event::InitApply(object)) => {
                    listed = Stored::Present(Arc::new(object));
                    continue;
                }
                Ok(Event::InitDone) => std::mem::take(&mut listed),
                Ok(Event::Apply(object)) => Stored::Present(Arc::new(object)),
                Ok(Event::Delete(_)) => Stored::Absent,
                Err(error) if is_expired(&error) => {
                    debug!("The watch on the NatNode starts anew");
                    continue;
                }
                Err(error) => {
                    if !std::mem::replace(&mut has_warned, true) {
                        warn!(
                            reason = describe_watch(&error),
                            "The NatNode of this node cannot be watched, so spec.paused is not heard of; install the custom \
                             resources (pinhole crd | kubectl apply -f -) and the rights of the agent, or leave --nat-node out"
                        );
                    }
                    // What was never seen pauses nothing: what runs must not wait for a resource that does not exist.
                    stored_tx.send_if_modified(|stored| {
                        let is_new = *stored == Stored::Unknown && is_out_of_reach(&error);
                        if is_new {
                            *stored = Stored::Absent;
                        }
                        is_new
                    });
                    continue;
                }
            };
            has_warned = false;
            stored_tx.send_replace(stored);
        }
    }

    /// Makes it.
    pub async fn create(&self, identity: &Identity) -> Result<(), String> {
        let mut object = NatNode::new(&self.name, NatNodeSpec::default());
        object.metadata.labels = Some(identity.labels.clone());
        object.metadata.owner_references = Some(self.owner(identity).into_iter().collect());
        let parameters =
            PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        match self.api.create(&parameters, &object).await {
            Ok(_) => Ok(()),
            // The watch will show it.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(describe(&error)),
        }
    }

    /// Sets its labels and its owner.
    pub async fn apply_identity(&self, identity: &Identity) -> Result<(), String> {
        let owners: Vec<_> = self.owner(identity).into_iter().collect();
        let metadata = json!({"labels": identity.labels, "ownerReferences": owners});
        let object = json!({"apiVersion": API_VERSION, "kind": "NatNode", "metadata": metadata});
        let applied = self.api.patch(&self.name, &parameters(), &Patch::Apply(object)).await;
        applied.map(drop).map_err(|error| describe(&error))
    }

    /// Sets its status.
    pub async fn apply_status(&self, status: &NatNodeStatus) -> Result<(), String> {
        let object = json!({"apiVersion": API_VERSION, "kind": "NatNode", "status": status});
        let applied = self.api.patch_status(&self.name, &parameters(), &Patch::Apply(object)).await;
        applied.map(drop).map_err(|error| describe(&error))
    }

    /// Whether what is stored has these labels and this owner.
    pub fn has(&self, object: &NatNode, identity: &Identity) -> bool {
        let labels = object.metadata.labels.as_ref();
        let has_label = |(key, value): (&String, &String)| {
            labels.is_some_and(|labels| labels.get(key).is_some_and(|found| found == value))
        };
        let owners = object.metadata.owner_references.as_deref().unwrap_or_default();
        identity.labels.iter().all(has_label)
            && self.owner(identity).is_none_or(|owner| owners.iter().any(|found| found.uid == owner.uid))
    }

    /// The Node, with which it goes.
    fn owner(&self, identity: &Identity) -> Option<OwnerReference> {
        let owner = OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: self.name.clone(),
            uid: identity.node_uid.clone(),
            ..OwnerReference::default()
        };
        (!identity.node_uid.is_empty()).then_some(owner)
    }
}

fn parameters() -> PatchParams {
    PatchParams::apply(FIELD_MANAGER).force()
}
