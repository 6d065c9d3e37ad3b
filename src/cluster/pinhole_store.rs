//! Pinholes in the API server: server-side apply but for labels, each writer with a field manager of its own.

use json_patch::AddOperation;
use json_patch::PatchOperation;
use json_patch::jsonptr::PointerBuf;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::Client;
use kube::api::DeleteParams;
use kube::api::Patch;
use kube::api::PatchParams;
use kube::api::Preconditions;
use serde_json::Value;
use serde_json::json;

use crate::api::crd::pinhole::NodeReport;
use crate::api::crd::pinhole::Pinhole;
use crate::api::keys;
use crate::cluster::trouble::describe;
use crate::model::digest::fnv1a;
use crate::model::holder::ObjectName;

/// The controller in an object's managed fields.
const CONTROLLER: &str = "pinhole";

/// A write that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinholeError {
    /// It rests on an object that is not there any more, or not yet.
    #[error("the Pinhole {0} is another one by now")]
    Stale(ObjectName),
    /// The API server refused it or could not be asked.
    #[error("{doing} the Pinhole {name} failed: {reason}")]
    Failed {
        /// What was tried.
        doing: &'static str,
        /// Which one.
        name: ObjectName,
        /// Why it failed.
        reason: String,
    },
}

/// The API server as a store of Pinholes.
#[derive(Clone)]
pub struct PinholeStore {
    client: Client,
}

impl PinholeStore {
    /// Stores Pinholes through this client.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Makes an object what it should be. One with a UID is changed only if it is still there, as it was seen.
    pub async fn apply(&self, pinhole: &Pinhole) -> Result<(), PinholeError> {
        let name = name(pinhole);
        let params = PatchParams::apply(CONTROLLER).force();
        let applied = self.api(&name).patch(&name.name, &params, &Patch::Apply(pinhole)).await;
        applied.map(drop).map_err(|error| failed("applying", name, &error))
    }

    /// Gives an object that is still as it was seen these labels and finalizers, and no others. Server-side apply would leave a
    /// label of ours that somebody else wrote.
    pub async fn label(&self, pinhole: &Pinhole) -> Result<(), PinholeError> {
        let name = name(pinhole);
        let ObjectMeta { uid, resource_version, labels, finalizers, .. } = &pinhole.metadata;
        let add = |field: &str, value: Value| {
            let path = PointerBuf::from_tokens(["metadata", field]);
            PatchOperation::Add(AddOperation { path, value })
        };
        let patch = json_patch::Patch(vec![
            add("uid", json!(uid)),
            add("resourceVersion", json!(resource_version)),
            add("labels", json!(labels)),
            add("finalizers", json!(finalizers)),
        ]);
        let params = PatchParams { field_manager: Some(CONTROLLER.to_owned()), ..PatchParams::default() };
        let labelled = self.api(&name).patch(&name.name, &params, &Patch::Json::<()>(patch)).await;
        labelled.map(drop).map_err(|error| failed("labelling", name, &error))
    }

    /// Writes the controller's part of a status, if the object is still as it was seen.
    pub async fn report(&self, pinhole: &Pinhole) -> Result<(), PinholeError> {
        let name = name(pinhole);
        let body = json!({
            "apiVersion": "pinhole.dev/v1alpha1",
            "kind": "Pinhole",
            "metadata": {
                "name": &*name.name,
                "uid": pinhole.metadata.uid,
                "resourceVersion": pinhole.metadata.resource_version,
            },
            "status": pinhole.status,
        });
        let params = PatchParams::apply(CONTROLLER).force();
        let applied = self.api(&name).patch_status(&name.name, &params, &Patch::Apply(body)).await;
        applied.map(drop).map_err(|error| failed("writing the status of", name, &error))
    }

    /// Writes what a node says of an object.
    pub async fn report_node(
        &self,
        name: &ObjectName,
        uid: &str,
        report: &NodeReport,
    ) -> Result<(), PinholeError> {
        let body = json!({
            "apiVersion": "pinhole.dev/v1alpha1",
            "kind": "Pinhole",
            "metadata": {"name": &*name.name, "uid": uid},
            "status": {"nodes": [report]},
        });
        let params = PatchParams::apply(&agent_manager(&report.name)).force();
        let applied = self.api(name).patch_status(&name.name, &params, &Patch::Apply(body)).await;
        applied.map(drop).map_err(|error| failed("reporting on", name.clone(), &error))
    }

    /// Takes our finalizer off an object that is still as it was seen, and deletes it.
    pub async fn delete(&self, pinhole: &Pinhole) -> Result<(), PinholeError> {
        let name = name(pinhole);
        let ObjectMeta { uid, resource_version, finalizers, .. } = pinhole.metadata.clone();
        let mut theirs = finalizers.unwrap_or_default();
        theirs.retain(|finalizer| finalizer != keys::RELEASE_FINALIZER);
        let freed =
            json!({"metadata": {"uid": uid, "resourceVersion": resource_version, "finalizers": theirs}});
        let freed = self.api(&name).patch(&name.name, &PatchParams::default(), &Patch::Merge(freed)).await;
        freed.map_err(|error| failed("letting go of", name.clone(), &error))?;
        let preconditions = Preconditions { uid, resource_version: None };
        let params = DeleteParams::background().preconditions(preconditions);
        match self.api(&name).delete(&name.name, &params).await {
            // It was deleted before, and waited for the finalizer only.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            deleted => deleted.map(drop).map_err(|error| failed("deleting", name, &error)),
        }
    }

    fn api(&self, name: &ObjectName) -> Api<Pinhole> {
        Api::namespaced(self.client.clone(), &name.namespace)
    }
}

/// The agent of a node in an object's managed fields, which hold 128 characters.
fn agent_manager(node_name: &str) -> String {
    let whole = format!("pinhole-agent-{node_name}");
    if whole.len() <= 128 { whole } else { format!("pinhole-agent-{:016x}", fnv1a(node_name.as_bytes())) }
}

fn name(pinhole: &Pinhole) -> ObjectName {
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    ObjectName::new(text(&pinhole.metadata.namespace), text(&pinhole.metadata.name))
}

fn failed(doing: &'static str, name: ObjectName, error: &kube::Error) -> PinholeError {
    match error {
        kube::Error::Api(status) if matches!(status.code, 404 | 409) => PinholeError::Stale(name),
        error => PinholeError::Failed { doing, name, reason: describe(error) },
    }
}
