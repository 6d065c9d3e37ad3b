//! Writes on pods: what they are told, and their way to the scheduler.

use kube::Client;
use kube::api::Patch;
use kube::api::PatchParams;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;

use crate::cluster::trouble::describe;
use crate::model::holder::ObjectName;

/// Who owns a condition in a pod's managed fields.
const CONTROLLER: &str = "pinhole";

/// Changes pods.
#[derive(Clone)]
pub struct PodWriter {
    client: Client,
}

/// The answer, of which nothing is needed.
#[derive(Clone, Debug, Deserialize)]
struct Answer {}

impl PodWriter {
    /// Writes through this client.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Applies a merge patch that names the pod's UID and version; `false` when that is not what is stored any more.
    pub async fn patch(&self, pod: &ObjectName, patch: &Value) -> Result<bool, String> {
        let request = kube::api::Request::new(pods_path(pod));
        let request = request
            .patch(&pod.name, &PatchParams::default(), &Patch::Merge(patch))
            .map_err(|error| format!("changing the pod {pod} cannot be asked for: {error}"))?;
        match self.client.request::<Answer>(request).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
            Err(error) => Err(format!("changing the pod {pod} failed: {}", describe(&error))),
        }
    }

    /// Sets one condition of the pod of this UID; those of others stay. `false` when the pod is gone.
    pub async fn set_condition(
        &self,
        pod: &ObjectName,
        uid: &str,
        condition: &Value,
    ) -> Result<bool, String> {
        let failed = |reason: &str| format!("setting a condition of the pod {pod} failed: {reason}");
        let body = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": &*pod.name, "uid": uid},
            "status": {"conditions": [condition]},
        });
        let params = PatchParams::apply(CONTROLLER).force();
        let request = kube::api::Request::new(pods_path(pod));
        let request = request
            .patch_subresource("status", &pod.name, &params, &Patch::Apply(body))
            .map_err(|error| failed(&error.to_string()))?;
        match self.client.request::<Answer>(request).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
            Err(error) => Err(failed(&describe(&error))),
        }
    }
}

fn pods_path(pod: &ObjectName) -> String {
    format!("/api/v1/namespaces/{}/pods", pod.namespace)
}
