//! `kubectl pinhole doctor`: whether what is installed works, judged from what was observed: pure.

pub(crate) mod admission;
pub(crate) mod agents;
pub(crate) mod controller;
pub(crate) mod neighbours;

use std::collections::BTreeMap;

use serde_json::Value;

use crate::api::crd::nat_node::NatNode;
use crate::api::object::Object;
use crate::cli::plugin::finding::Finding;
use crate::cli::plugin::installation::Part;
use crate::cli::plugin::installation::PartPod;
use crate::cli::plugin::observe::Agents;
use crate::cluster::reader::Creation;

/// The first Kubernetes version whose API server evaluates `matchConditions` without a feature gate.
pub(crate) const OLDEST_MINOR: u32 = 30;

/// What was observed of an installation. What could not be read is the reason why not.
#[derive(Debug)]
pub(crate) struct Observed {
    /// `/version`.
    pub(crate) version: Result<Value, String>,
    /// The nodes.
    pub(crate) nodes: Result<Vec<Value>, String>,
    /// What agents told of their nodes; none without the right to read it, or where agents keep none.
    pub(crate) nat_nodes: Vec<NatNode>,
    /// Every Deployment and DaemonSet.
    pub(crate) workloads: Result<Vec<Value>, String>,
    /// The webhook's Deployment, if there is one.
    pub(crate) webhook: Option<Part>,
    /// Its pods.
    pub(crate) webhook_pods: Vec<PartPod>,
    /// The agents.
    pub(crate) agents: Agents,
    /// The controller's Deployment, if there is one.
    pub(crate) controller: Option<Part>,
    /// Per replica of the controller, what its `/metrics` says.
    pub(crate) controller_metrics: BTreeMap<String, Result<String, String>>,
    /// The MutatingWebhookConfigurations.
    pub(crate) mutating: Result<Vec<Value>, String>,
    /// The ValidatingWebhookConfigurations.
    pub(crate) validating: Result<Vec<Value>, String>,
    /// What became of the dry runs.
    pub(crate) proof: Proof,
    /// Per replica of the webhook: until when the certificate that it shows is valid, in seconds since 1970.
    pub(crate) certificates: Vec<(String, Result<i64, String>)>,
    /// Per node, what its agent's `/metrics` says.
    pub(crate) metrics: BTreeMap<String, Result<String, String>>,
    /// Per node and kind of condition, what the agent's log says of it: found and fix.
    pub(crate) conditions: BTreeMap<(String, String), (String, String)>,
    /// The pods of the cluster.
    pub(crate) pods: Vec<Object>,
    /// Seconds since 1970.
    pub(crate) now: i64,
}

/// What became of dry runs of pods: nothing was stored.
#[derive(Debug)]
pub(crate) struct Proof {
    /// The namespace in which they were tried.
    pub(crate) namespace: String,
    /// What the pod that must be refused asked for.
    pub(crate) refused_request: String,
    /// What became of it.
    pub(crate) refused: Creation,
    /// What became of one that asks for something harmless.
    pub(crate) granted: Option<Creation>,
}

/// Everything that was found, in the order of a packet's way through the parts.
pub(crate) fn findings(observed: &Observed) -> Vec<Finding> {
    let mut findings = vec![version(&observed.version)];
    findings.extend(admission::findings(observed));
    findings.extend(controller::findings(observed));
    findings.extend(agents::findings(observed));
    findings.extend(neighbours::findings(observed));
    findings
}

/// Whether the API server is new enough.
pub(crate) fn version(version: &Result<Value, String>) -> Finding {
    const AREA: &str = "cluster";
    let version = match version {
        Ok(version) => version,
        Err(reason) => {
            return Finding::unchecked(
                AREA,
                format!("the API server's version is unknown: {reason}"),
                "check the kubeconfig",
            );
        }
    };
    let part = |name: &str| {
        let text = version.get(name).and_then(Value::as_str).unwrap_or_default();
        text.trim_end_matches(|end: char| !end.is_ascii_digit()).parse::<u32>().unwrap_or(0)
    };
    let (major, minor) = (part("major"), part("minor"));
    let shown = version.get("gitVersion").and_then(Value::as_str).unwrap_or("of unknown version");
    if (major, minor) < (1, OLDEST_MINOR) {
        return Finding::problem(
            AREA,
            format!(
                "Kubernetes {shown} is older than 1.{OLDEST_MINOR}: its API server does not evaluate matchConditions"
            ),
            format!("upgrade the cluster to 1.{OLDEST_MINOR} or newer"),
        );
    }
    Finding::fine(AREA, format!("Kubernetes {shown}"))
}

/// The tag of an image; none for one that is named by digest alone.
pub(crate) fn tag(image: &str) -> Option<&str> {
    let name = image.split('@').next()?;
    let (_, tag) = name.rsplit_once(':')?;
    (!tag.contains('/')).then_some(tag)
}

/// `1 node`, `3 nodes`.
pub(crate) fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

#[cfg(test)]
mod tests;
