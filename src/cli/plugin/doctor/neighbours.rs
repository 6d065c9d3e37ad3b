//! Others that program the same ports: the tools that Pinhole replaces, and what they left.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::api::keys;
use crate::cli::plugin::doctor::Observed;
use crate::cli::plugin::doctor::count;
use crate::cli::plugin::finding::Finding;
use crate::cli::plugin::installation::text;

const NEIGHBOURS: &str = "neighbours";

/// Parts of image names by which the predecessors are known, and what they are called.
const PREDECESSORS: [(&str, &str); 3] =
    [("podnat-controller", "podnat-controller"), ("smartnat", "SmartNat"), ("pod-dnat", "ACK's pod-dnat")];

pub(crate) fn findings(observed: &Observed) -> Vec<Finding> {
    let mut findings = running(&observed.workloads);
    let unread = unread_keys(observed, !findings.is_empty());
    findings.extend(unread);
    if findings.is_empty() && observed.workloads.is_ok() {
        findings.push(Finding::fine(NEIGHBOURS, "no predecessor runs, and no pod asks in its words"));
    }
    findings
}

/// The predecessors that run.
pub(crate) fn running(workloads: &Result<Vec<Value>, String>) -> Vec<Finding> {
    let workloads = workloads.as_deref().unwrap_or_default();
    let finding = |(workload, name): (&Value, &str)| {
        let (namespace, object) = (text(workload, "/metadata/namespace"), text(workload, "/metadata/name"));
        let is_daemon_set = workload.pointer("/status/desiredNumberScheduled").is_some();
        let kind = if is_daemon_set { "daemonset" } else { "deployment" };
        Finding::problem(
            NEIGHBOURS,
            format!(
                "{name} runs ({kind}/{object} in {namespace}): beside Pinhole both program the same ports, and whose rule comes first is chance"
            ),
            format!(
                "remove it once its pods ask Pinhole: kubectl -n {namespace} delete {kind} {object}; its chains stay on the nodes until they are removed there, see docs/migration.md"
            ),
        )
    };
    let known = workloads.iter().filter_map(|workload| Some((workload, predecessor(workload)?)));
    known.map(finding).collect()
}

/// The predecessor that a workload runs.
fn predecessor(workload: &Value) -> Option<&'static str> {
    let containers = workload.pointer("/spec/template/spec/containers")?.as_array()?;
    let images = containers.iter().map(|container| text(container, "/image").to_lowercase());
    images
        .filter_map(|image| PREDECESSORS.into_iter().find(|(part, _)| image.contains(part)))
        .map(|(_, name)| name)
        .next()
}

/// Pods that ask by a predecessor's annotation, which nobody here reads.
fn unread_keys(observed: &Observed, predecessor_runs: bool) -> Vec<Finding> {
    let read = observed.agents.shape.iter().flat_map(|shape| shape.policy.foreign_keys());
    let read: Vec<_> = read.collect();
    let mut asking: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in observed.pods.iter().filter(|pod| pod.kind == "Pod" && !pod.is_finished()) {
        for key in [keys::PODNAT, keys::ACK_ON] {
            if pod.metadata.annotations.contains_key(key) && !read.contains(&key) {
                *asking.entry(key).or_default() += 1;
            }
        }
    }
    let finding = |(key, number): (&str, usize)| {
        let pods = count(number, "pod");
        let verb = if number == 1 { "asks" } else { "ask" };
        let seen = format!("{pods} {verb} by the annotation {key}, which Pinhole does not read here");
        if predecessor_runs || key != keys::PODNAT {
            return Finding::note(NEIGHBOURS, seen);
        }
        Finding::problem(
            NEIGHBOURS,
            format!("{seen}, and its own controller does not run"),
            format!("add {key} to the chart's value policy.annotationKeys"),
        )
    };
    asking.into_iter().map(finding).collect()
}
