//! Writes on pods: what they are told, and their way to the scheduler.

use kube::Client;
use serde_json::Value;
use serde_json::json;

use crate::api::object::Kind;
use crate::cluster::patching;
use crate::model::holder::ObjectName;

/// Who owns a condition in a pod's managed fields.
const CONTROLLER: &str = "pinhole";

/// Changes pods.
#[derive(Clone)]
pub struct PodWriter {
    client: Client,
}

impl PodWriter {
    /// Writes through this client.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Applies a merge patch that names the pod's UID and version; `false` when that is not what is stored any more.
    pub async fn patch(&self, pod: &ObjectName, patch: &Value) -> Result<bool, String> {
        let patched = patching::merge(&self.client, Kind::Pod, pod, patch).await;
        patched.map_err(|reason| format!("changing the pod {pod} failed: {reason}"))
    }

    /// Sets one condition of the pod of this UID; those of others stay. `false` when the pod is gone.
    pub async fn set_condition(
        &self,
        pod: &ObjectName,
        uid: &str,
        condition: &Value,
    ) -> Result<bool, String> {
        let part = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": &*pod.name, "uid": uid},
            "status": {"conditions": [condition]},
        });
        let set = patching::apply_status(&self.client, Kind::Pod, pod, CONTROLLER, &part).await;
        set.map_err(|reason| format!("setting a condition of the pod {pod} failed: {reason}"))
    }
}
