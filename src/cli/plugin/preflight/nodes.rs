//! The nodes: their addresses, as the API server shows them, and what only a look at the node itself shows.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

use crate::cli::plugin::doctor::count;
use crate::cli::plugin::finding::Finding;
use crate::cli::plugin::installation::text;
use crate::cli::plugin::preflight::Ground;
use crate::cli::plugin::preflight::NodeReport;
use crate::cluster::pod_networks::MANY;
use crate::model::address::is_public;

const NODES: &str = "nodes";
const ON_NODES: &str = "on the nodes";

pub(crate) fn findings(ground: &Ground) -> Vec<Finding> {
    let mut findings = match &ground.nodes {
        Ok(nodes) => listed(nodes),
        Err(reason) => vec![Finding::unchecked(
            NODES,
            format!("the nodes cannot be listed: {reason}"),
            "get the right to list nodes",
        )],
    };
    match &ground.reports {
        Some(reports) => findings.extend(seen(reports)),
        None => findings.push(Finding::unchecked(
            ON_NODES,
            "not looked at: the flavour of iptables, drops of forwarded traffic, sysctls, addresses of the interfaces, chains that predecessors left; only the nodes themselves show them",
            "add --node-image IMAGE with an image of pinhole-agent: one short-lived pod per node in kube-system looks and is deleted; once the agents are installed, they are asked",
        )),
    }
    findings
}

fn listed(nodes: &[Value]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let names = |selected: Vec<&Value>| {
        selected.iter().map(|node| text(node, "/metadata/name")).collect::<Vec<_>>().join(", ")
    };
    let system = |node: &Value| text(node, "/status/nodeInfo/operatingSystem");
    let (linux, others): (Vec<&Value>, Vec<&Value>) =
        nodes.iter().partition(|node| ["linux", ""].contains(&system(node).as_str()));
    if linux.is_empty() {
        findings.push(Finding::problem(NODES, "there is no Linux node", "add one"));
    } else {
        findings.push(Finding::fine(NODES, count(linux.len(), "Linux node")));
    }
    if !others.is_empty() {
        findings.push(Finding::note(
            NODES,
            format!("not Linux, so nothing can be published there: {}", names(others)),
        ));
    }
    let (public, private): (Vec<&Value>, Vec<&Value>) =
        linux.iter().copied().partition(|node| has_public(node));
    if !public.is_empty() {
        findings.push(Finding::fine(NODES, format!("with a public address: {}", names(public))));
    }
    if !private.is_empty() {
        findings.push(
            Finding::note(
                NODES,
                format!("with private addresses only, as far as the API server shows: {}", names(private)),
            )
            .advising(
                "behind 1:1 NAT the ports are served on the private address and something in front forwards to it; --include-net with its network says that this is meant",
            ),
        );
    }
    let without_cidrs: Vec<&Value> = linux
        .iter()
        .copied()
        .filter(|node| node.pointer("/spec/podCIDRs").and_then(Value::as_array).is_none_or(Vec::is_empty))
        .collect();
    if !without_cidrs.is_empty() {
        findings.push(
            Finding::note(NODES, format!("without podCIDRs: {}", names(without_cidrs))).advising(
                "set agent.flags.pod-cidr and agent.clusterCIDRs to the networks of pods: until then agents do not know the cluster, and private networks see mapped pods' own addresses",
            ),
        );
    }
    if MANY < nodes.len() {
        findings.push(
            Finding::note(NODES, format!("more than {MANY}: agents do not look which pods the others have")).advising(
                "set agent.clusterCIDRs to the networks of pods: until then private networks see mapped pods' own addresses",
            ),
        );
    }
    findings
}

fn has_public(node: &Value) -> bool {
    let addresses = node.pointer("/status/addresses").and_then(Value::as_array);
    let mut ips = addresses
        .into_iter()
        .flatten()
        .filter_map(|address| text(address, "/address").parse::<IpAddr>().ok());
    ips.any(is_public)
}

/// What was seen on the nodes; what is the same everywhere is told once.
fn seen(reports: &BTreeMap<String, Result<NodeReport, String>>) -> Vec<Finding> {
    let mut together: Vec<(Finding, Vec<&str>)> = Vec::new();
    for (node, report) in reports {
        let findings = match report {
            Ok(report) => on_node(report),
            Err(reason) => {
                vec![Finding::unchecked(
                    ON_NODES,
                    format!("could not be looked at: {reason}"),
                    "see the reason",
                )]
            }
        };
        for finding in findings {
            match together.iter_mut().find(|(known, _)| *known == finding) {
                Some((_, nodes)) => nodes.push(node),
                None => together.push((finding, vec![node])),
            }
        }
    }
    let told = |(finding, nodes): (Finding, Vec<&str>)| {
        let place = if nodes.len() == reports.len() && 1 < nodes.len() {
            "every node".to_owned()
        } else {
            nodes.join(", ")
        };
        Finding { seen: format!("{place}: {}", finding.seen), ..finding }
    };
    together.into_iter().map(told).collect()
}

fn on_node(report: &NodeReport) -> Vec<Finding> {
    let NodeReport { iptables, iptables_problem, conditions, own_addresses, warnings, leftovers, sysctls } =
        report;
    let mut findings = Vec::new();
    match iptables_problem {
        Some(problem) => findings.push(Finding::problem(
            ON_NODES,
            format!("no usable iptables: {problem}"),
            "load the kernel's modules of iptables (modprobe ip_tables nf_nat), or use a kernel that has them",
        )),
        None => findings.push(Finding::fine(ON_NODES, iptables.clone())),
    }
    for blocker in conditions {
        findings.push(Finding::problem(
            ON_NODES,
            format!("{}: {}", blocker.kind, blocker.found),
            blocker.fix.clone(),
        ));
    }
    if conditions.is_empty() && iptables_problem.is_none() {
        findings.push(Finding::fine(ON_NODES, "nothing drops forwarded traffic out of reach"));
    }
    if own_addresses.is_empty() {
        findings.push(Finding::problem(
            ON_NODES,
            "no address for requests that name none",
            "give the node a default route or a public address, or pass --include-net with the network of the address to use",
        ));
    } else {
        findings.push(Finding::fine(
            ON_NODES,
            format!("requests that name no address are served on {}", own_addresses.join(" and ")),
        ));
    }
    findings.extend(warnings.iter().map(|warning| Finding::note(ON_NODES, warning.clone())));
    if !leftovers.is_empty() {
        findings.push(Finding::problem(
            ON_NODES,
            format!("chains that podnat-controller left: {}", leftovers.join(", ")),
            "once it no longer runs, take them away on the node: iptables-restore --noflush < docs/podnat-controller-leftovers.rules, see docs/migration.md",
        ));
    }
    let forwarding: Vec<_> = sysctls.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if !forwarding.is_empty() {
        findings.push(Finding::note(ON_NODES, forwarding.join(" ")));
    }
    findings.push(Finding::fine(
        ON_NODES,
        "hairpin needs nothing of the node: a pod's way to its own external port is routed and masqueraded by our rules",
    ));
    findings
}
