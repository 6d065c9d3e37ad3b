//! Wakes workloads: a change that means nothing, so that their controller looks at them again.
//!
//! It goes through the `status` subresource, where the API server takes annotations and keeps the `spec`: who steals the
//! controller's token cannot change a pod template by it.

use k8s_openapi::jiff::Timestamp;
use kube::Client;
use serde_json::json;

use crate::admission::index::ObjectKey;
use crate::api::keys;
use crate::cluster::patching;

/// Who owns the annotation in an object's managed fields.
const MANAGER: &str = "pinhole-waking";

/// Changes workloads.
#[derive(Clone)]
pub struct WorkloadWriter {
    client: Client,
}

impl WorkloadWriter {
    /// Writes through this client.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Wakes the workload of this UID; `false` when it is gone.
    pub async fn wake(&self, workload: &ObjectKey, uid: &str, now: Timestamp) -> Result<bool, String> {
        let ObjectKey { kind, name } = workload;
        let part = json!({
            "apiVersion": kind.api_version(),
            "kind": kind.name(),
            "metadata": {"name": &*name.name, "uid": uid, "annotations": {keys::WOKEN: now.to_string()}},
        });
        let woken = patching::apply_status(&self.client, *kind, name, MANAGER, &part).await;
        woken.map_err(|reason| format!("waking the {} {name} failed: {reason}", kind.name()))
    }
}
