//! The MasqueradePolicies of the cluster: what agents and the controller hear of them, and what the controller writes.

use kube::Api;
use kube::Client;
use kube::api::Patch;
use kube::api::PatchParams;
use serde_json::json;

use crate::api::crd::masquerade_policy::MasqueradePolicy;
use crate::api::crd::masquerade_policy::MasqueradePolicyStatus;
use crate::cluster::every::Followed;
use crate::cluster::trouble::describe;

/// Who we are in a policy's managed fields.
const FIELD_MANAGER: &str = "pinhole-controller";

impl Followed for MasqueradePolicy {
    type Object = Self;

    const ADVICE: &'static str = "install the custom resources (pinhole crd | kubectl apply -f -) and the rights of the chart, or, if \
                                  this is an agent, leave --masquerade-policies out";

    fn of(object: Self) -> Self {
        object
    }

    /// What is wanted, and when it was first said, are others. A status changes neither.
    fn differs(&self, other: &Self) -> bool {
        let version = |policy: &Self| (policy.metadata.generation, policy.metadata.uid.clone());
        version(self) != version(other)
    }
}

/// Says in policies how they stand.
#[derive(Clone)]
pub struct PolicyWriter {
    api: Api<MasqueradePolicy>,
}

impl PolicyWriter {
    /// Writes through this client.
    pub fn new(client: Client) -> Self {
        Self { api: Api::all(client) }
    }

    /// Sets a policy's status. One that is gone needs none.
    pub async fn apply_status(&self, name: &str, status: &MasqueradePolicyStatus) -> Result<(), String> {
        let object =
            json!({"apiVersion": "pinhole.dev/v1alpha1", "kind": "MasqueradePolicy", "status": status});
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        match self.api.patch_status(name, &parameters, &Patch::Apply(object)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(describe(&error)),
        }
    }
}
