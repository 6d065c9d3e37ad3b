//! Pods that wait at our scheduling gate: with no controller left nobody would ever find them a port, and let them go.

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use kube::api::Patch;
use kube::api::PatchParams;

use crate::api::keys;
use crate::cluster::removal::Installation;
use crate::cluster::removal::RemovalError;
use crate::cluster::removal::failed;
use crate::cluster::trouble::describe;
use crate::model::holder::ObjectName;
use crate::removal::report::Gated;
use crate::removal::report::gated_by;

/// What became of the pods that waited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lifted {
    /// Those that may be scheduled now, as far as it is up to us.
    pub free: Vec<ObjectName>,
    /// Those that changed meanwhile, or could not be let go; whoever looks again tries again.
    pub waiting: Vec<Gated>,
}

impl Installation {
    /// Takes our gate off every pod that waits at it.
    pub async fn lift_gates(&self) -> Result<Lifted, RemovalError> {
        let pods: Api<Pod> = Api::all(self.client.clone());
        // A gated pod is on no node, so most pods of a cluster are not even sent.
        let pending = ListParams::default().fields("status.phase=Pending");
        let pods = pods.list(&pending).await.map_err(failed("list", "pods".to_owned()))?;
        let mut lifted = Lifted::default();
        for pod in pods.items {
            let Some(others) = other_gates(&pod) else { continue };
            let metadata = pod.metadata;
            let name =
                ObjectName::new(metadata.namespace.unwrap_or_default(), metadata.name.unwrap_or_default());
            let mut change = gated_by(&others);
            change["metadata"] = serde_json::json!({"resourceVersion": metadata.resource_version});
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &name.namespace);
            match api.patch(&name.name, &PatchParams::default(), &Patch::Merge(change)).await {
                Ok(_) => lifted.free.push(name),
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => lifted.waiting.push(Gated { pod: name, others, why: describe(&error) }),
            }
        }
        Ok(lifted)
    }
}

/// The gates of a pod beside ours; `None` where it has not ours.
fn other_gates(pod: &Pod) -> Option<Vec<String>> {
    let gates = pod.spec.as_ref()?.scheduling_gates.iter().flatten().map(|gate| gate.name.as_str());
    let others: Vec<_> =
        gates.clone().filter(|gate| *gate != keys::ENDPOINTS_GATE).map(str::to_owned).collect();
    (gates.count() != others.len()).then_some(others)
}
