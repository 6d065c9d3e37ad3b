//! `kubectl pinhole doctor --preflight`: whether Pinhole can work in a cluster before anything is installed: pure.
//!
//! The API server shows which network the cluster has, how Services are done, and the nodes' addresses. What only a
//! node can show is told as unchecked unless somebody looked there ([`NodeReport`]).

mod datapath;
mod nodes;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;

use crate::cli::plugin::doctor;
use crate::cli::plugin::finding::Finding;

/// What was observed of a cluster.
#[derive(Debug)]
pub(crate) struct Ground {
    /// `/version`.
    pub(crate) version: Result<Value, String>,
    /// The nodes.
    pub(crate) nodes: Result<Vec<Value>, String>,
    /// Every Deployment and DaemonSet.
    pub(crate) workloads: Result<Vec<Value>, String>,
    /// kube-proxy's configuration, from its ConfigMap.
    pub(crate) kube_proxy: Result<Value, String>,
    /// cilium's configuration, from its ConfigMap.
    pub(crate) cilium: Result<Value, String>,
    /// Calico's default FelixConfiguration.
    pub(crate) felix: Result<Value, String>,
    /// The Calico operator's Installation.
    pub(crate) tigera: Result<Value, String>,
    /// What was seen on the nodes; `None` when nobody looked.
    pub(crate) reports: Option<BTreeMap<String, Result<NodeReport, String>>>,
}

/// What `pinhole node-report` sees on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct NodeReport {
    /// `nft` or `legacy`, with the version of the program and why it was chosen; empty when there is none.
    pub(crate) iptables: String,
    /// Why no iptables can be used.
    pub(crate) iptables_problem: Option<String>,
    /// What would keep programmed ports from working.
    pub(crate) conditions: Vec<Blocker>,
    /// The addresses that serve requests which name none.
    pub(crate) own_addresses: Vec<String>,
    /// What the operator should know of that choice.
    pub(crate) warnings: Vec<String>,
    /// Chains that predecessors left.
    pub(crate) leftovers: Vec<String>,
    /// Sysctls that matter, and their values.
    pub(crate) sysctls: BTreeMap<String, String>,
}

/// One reason why packets may not arrive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Blocker {
    /// Its kind.
    pub(crate) kind: String,
    /// What was found.
    pub(crate) found: String,
    /// What to do.
    pub(crate) fix: String,
}

/// Everything that was found.
pub(crate) fn findings(ground: &Ground) -> Vec<Finding> {
    let mut findings = vec![doctor::version(&ground.version)];
    findings.extend(datapath::findings(ground));
    findings.extend(nodes::findings(ground));
    findings.extend(doctor::neighbours::running(&ground.workloads));
    findings
}

#[cfg(test)]
mod tests;
