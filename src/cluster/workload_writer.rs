//! Wakes workloads: a change that means nothing, so that their controller looks at them again.
//!
//! It goes through the `status` subresource, where the API server takes annotations and keeps the `spec`: who steals the
//! controller's token cannot change a pod template by it.

use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::Patch;
use kube::api::PatchParams;
use serde::Deserialize;
use serde_json::json;

use crate::admission::index::ObjectKey;
use crate::api::keys;
use crate::cluster::resource::Resource;
use crate::cluster::trouble::describe;

/// Who owns the annotation in an object's managed fields.
const MANAGER: &str = "pinhole-waking";

/// Changes workloads.
#[derive(Clone)]
pub struct WorkloadWriter {
    client: Client,
}

/// The answer, of which nothing is needed.
#[derive(Clone, Debug, Deserialize)]
struct Answer {}

impl WorkloadWriter {
    /// Writes through this client.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Wakes the workload of this UID; `false` when it is gone.
    pub async fn wake(&self, workload: &ObjectKey, uid: &str, now: Timestamp) -> Result<bool, String> {
        let ObjectKey { kind, name } = workload;
        let failed = |reason: &str| format!("waking the {} {name} failed: {reason}", kind.name());
        let plural = Resource::Holder(*kind).plural();
        let path = format!("/apis/{}/namespaces/{}/{plural}", kind.api_version(), name.namespace);
        let body = json!({
            "apiVersion": kind.api_version(),
            "kind": kind.name(),
            "metadata": {"name": &*name.name, "uid": uid, "annotations": {keys::WOKEN: now.to_string()}},
        });
        let params = PatchParams::apply(MANAGER).force();
        let request = kube::api::Request::new(path);
        let request = request
            .patch_subresource("status", &name.name, &params, &Patch::Apply(body))
            .map_err(|error| failed(&error.to_string()))?;
        match self.client.request::<Answer>(request).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
            Err(error) => Err(failed(&describe(&error))),
        }
    }
}
