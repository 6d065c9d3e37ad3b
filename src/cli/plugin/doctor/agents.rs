//! The half on the nodes: an agent on each of them, in sync, of the webhook's version, with nothing in its way.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use serde_json::Value;

use crate::api::crd::nat_node::NatNodeStatus;
use crate::cli::plugin::doctor::Observed;
use crate::cli::plugin::doctor::count;
use crate::cli::plugin::doctor::tag;
use crate::cli::plugin::finding::Finding;
use crate::cli::plugin::installation::Part;
use crate::cli::plugin::installation::PartPod;
use crate::cli::plugin::installation::text;

const AGENTS: &str = "agents";
const VERSIONS: &str = "versions";
/// Minutes after which a NatNode is out of date: three times as long as agents wait at most.
const STALE: i64 = 15;
const RULES: &str = "rules on the nodes";

pub(crate) fn findings(observed: &Observed) -> Vec<Finding> {
    let mut findings = Vec::new();
    if observed.agents.part.is_some() {
        findings.extend(on_nodes(observed));
    } else if observed.workloads.is_ok() {
        findings.push(Finding::problem(
            AGENTS,
            "no DaemonSet of the agent is installed, so nothing is programmed",
            "install the chart, or set agent.enabled=true",
        ));
    }
    findings.extend(versions(observed));
    findings.extend(rules(observed));
    findings
}

fn on_nodes(observed: &Observed) -> Vec<Finding> {
    let Some(part) = &observed.agents.part else { return Vec::new() };
    let (namespace, reference) = (&part.namespace, &part.reference);
    let nodes = match &observed.nodes {
        Ok(nodes) => nodes,
        Err(reason) => {
            return vec![Finding::unchecked(
                AGENTS,
                format!("whether every node has an agent is unknown: {reason}"),
                "get the right to list nodes",
            )];
        }
    };
    let by_node: BTreeMap<&str, &PartPod> =
        observed.agents.pods.iter().map(|pod| (pod.node.as_str(), pod)).collect();
    let mut findings = Vec::new();
    let mut ready = 0;
    for node in nodes.iter().filter(|node| is_linux(node)) {
        let name = text(node, "/metadata/name");
        match by_node.get(name.as_str()) {
            Some(pod) if pod.ready => {
                ready += 1;
                findings.extend(silent(&name, observed));
            }
            Some(pod) => {
                let why = pod.waits.clone().unwrap_or_else(|| {
                    "its kernel does not have exactly what it should, or it has not started yet".to_owned()
                });
                findings.push(Finding::problem(
                    AGENTS,
                    format!("the agent on {name} is not ready: {why}"),
                    format!(
                        "kubectl -n {namespace} describe pod {0}; kubectl -n {namespace} logs {0}",
                        pod.name
                    ),
                ));
            }
            None => {
                let left = left_behind(&name, observed);
                let cleanup = if left.is_empty() {
                    String::new()
                } else {
                    format!(
                        "; if no agent is to run there again: kubectl debug node/{name} -it --profile=netadmin --image={} -- pinhole cleanup --xtables-lock-file=/host/run/xtables.lock",
                        part.image
                    )
                };
                findings.push(Finding::problem(
                    AGENTS,
                    format!("no agent runs on {name}, so nothing is programmed for its pods{left}"),
                    format!("kubectl -n {namespace} describe {reference}: a taint, a nodeSelector or a quota keeps it off{cleanup}"),
                ));
            }
        }
    }
    let all = nodes.iter().filter(|node| is_linux(node)).count();
    if ready == all && 0 < all {
        findings.push(Finding::fine(AGENTS, format!("an agent is ready on {}", count(all, "node"))));
    } else if all == 0 {
        findings.push(Finding::problem(AGENTS, "the cluster has no Linux node", "add one"));
    }
    findings
}

/// What an agent that ran on a node left in its kernel, where it serves on without anybody.
fn left_behind(node: &str, observed: &Observed) -> String {
    let Some(status) = status_of(node, observed) else { return String::new() };
    let entries = status.programmed.as_ref().map_or(0, |programmed| programmed.entries);
    if entries == 0 {
        return String::new();
    }
    let told =
        minutes_since(status, observed).map_or(String::new(), |minutes| format!(" {minutes} minutes ago"));
    format!(
        "; what an agent last told of it{told}, {entries} entries, is still in its kernel, until the node is restarted"
    )
}

/// An agent whose pod is ready and that yet tells nothing.
fn silent(node: &str, observed: &Observed) -> Option<Finding> {
    let minutes = minutes_since(status_of(node, observed)?, observed).filter(|minutes| STALE <= *minutes)?;
    Some(Finding::problem(
        AGENTS,
        format!("the agent on {node} has told nothing in its NatNode for {minutes} minutes"),
        "the log of the agent on that node says why it cannot write it; what is programmed does not depend on it",
    ))
}

fn status_of<'a>(node: &str, observed: &'a Observed) -> Option<&'a NatNodeStatus> {
    let found = observed.nat_nodes.iter().find(|found| found.metadata.name.as_deref() == Some(node));
    found?.status.as_ref()
}

fn minutes_since(status: &NatNodeStatus, observed: &Observed) -> Option<i64> {
    Some((observed.now - status.last_report.as_ref()?.as_second()) / 60)
}

fn is_linux(node: &Value) -> bool {
    let system = text(node, "/status/nodeInfo/operatingSystem");
    system.is_empty() || system == "linux"
}

/// Webhook and agents check by the same rules only when they are of one version.
fn versions(observed: &Observed) -> Vec<Finding> {
    let plugin = env!("CARGO_PKG_VERSION");
    let template = |part: &Part| part.image.clone();
    let images = |pods: &[PartPod], part: Option<&Part>| -> BTreeSet<String> {
        let running: BTreeSet<String> =
            pods.iter().map(|pod| pod.image.clone()).filter(|image| !image.is_empty()).collect();
        if running.is_empty() { part.map(template).into_iter().collect() } else { running }
    };
    let webhooks = images(&observed.webhook_pods, observed.webhook.as_ref());
    let agents = images(&observed.agents.pods, observed.agents.part.as_ref());
    let tags = |images: &BTreeSet<String>| -> BTreeSet<String> {
        images
            .iter()
            .filter_map(|image| tag(image))
            .map(|tag| tag.trim_start_matches('v').to_owned())
            .collect()
    };
    let shown = |tags: &BTreeSet<String>| tags.iter().cloned().collect::<Vec<_>>().join(", ");
    let (webhook_tags, agent_tags) = (tags(&webhooks), tags(&agents));
    let all: BTreeSet<_> = webhook_tags.union(&agent_tags).cloned().collect();
    if webhook_tags.is_empty() || agent_tags.is_empty() {
        if webhooks.is_empty() && agents.is_empty() {
            return Vec::new();
        }
        return vec![Finding::unchecked(
            VERSIONS,
            "the images of one part are named by digest, so its version cannot be told",
            "compare with the chart's appVersion: helm list -A",
        )];
    }
    let seen =
        format!("webhook {}, agents {}, this plugin {plugin}", shown(&webhook_tags), shown(&agent_tags));
    if 1 < all.len() {
        return vec![Finding::problem(
            VERSIONS,
            format!("{seen}: an upgrade stands half-way"),
            "kubectl rollout status of both parts; image tags in the chart's values must be the same",
        )];
    }
    if all.contains(plugin) {
        return vec![Finding::fine(VERSIONS, seen)];
    }
    vec![Finding::note(
        VERSIONS,
        format!("{seen}: use the plugin of their version, so that it judges by the same rules"),
    )]
}

fn rules(observed: &Observed) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut silent = BTreeMap::<&str, Vec<&str>>::new();
    let mut quiet = 0;
    for (node, metrics) in &observed.metrics {
        match metrics {
            Ok(metrics) => {
                let found = of_node(node, metrics, observed);
                quiet += usize::from(found.is_empty());
                findings.extend(found);
            }
            Err(reason) => silent.entry(reason).or_default().push(node),
        }
    }
    if 0 < quiet {
        findings.insert(
            0,
            Finding::fine(
                RULES,
                format!("nothing is in the way of programmed ports on {}", count(quiet, "node")),
            ),
        );
    }
    for (reason, nodes) in silent {
        findings.push(Finding::unchecked(
            RULES,
            format!("what is in the way of programmed ports on {} is unknown: {reason}", nodes.join(", ")),
            "get the right to create pods/portforward in the agents' namespace",
        ));
    }
    if observed.metrics.is_empty() && observed.agents.part.is_some() {
        findings.push(Finding::unchecked(
            RULES,
            "no agent runs that could be asked what is in the way of programmed ports",
            "see above",
        ));
    }
    findings
}

fn of_node(node: &str, metrics: &str, observed: &Observed) -> Vec<Finding> {
    let mut findings = Vec::new();
    for kind in conditions(metrics) {
        let logged = observed.conditions.get(&(node.to_owned(), kind.clone()));
        let (found, fix) = match logged {
            Some((found, fix)) => (format!(": {found}"), fix.clone()),
            None => (String::new(), fix_of(&kind).to_owned()),
        };
        findings.push(Finding::problem(RULES, format!("{node}: {kind}{found}"), fix));
    }
    if value(metrics, "pinhole_agent_unknown_cluster") == Some(1.0) {
        findings.push(
            Finding::note(
                RULES,
                format!("{node}: which networks the pods of other nodes have is not known, so private networks do not see the external address of mapped pods"),
            )
            .advising("set agent.clusterCIDRs to the networks of all pods; the log of the agent on that node says why it does not know them"),
        );
    }
    let held = value(metrics, "pinhole_agent_withheld_removals").unwrap_or(0.0);
    if 0.0 < held {
        findings.push(Finding::problem(
            RULES,
            format!("{node}: the brake holds back the removal of {held} entries"),
            "if it is meant, wait for --brake-grace or restart the agent with --brake-grace=0s; if not, find what removed the pods or their annotations",
        ));
    } else if value(metrics, "pinhole_agent_in_sync") == Some(0.0) {
        findings.push(Finding::problem(
            RULES,
            format!("{node}: the kernel does not have exactly what it should"),
            "the log of the agent on that node says why",
        ));
    }
    findings
}

/// The kinds of conditions that hold.
pub(crate) fn conditions(metrics: &str) -> Vec<String> {
    let holding = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix("pinhole_agent_condition{kind=\"")?;
        let (kind, value) = rest.split_once("\"}")?;
        (value.trim().parse::<f64>().ok()? != 0.0).then(|| kind.to_owned())
    });
    holding.collect()
}

/// The value of a metric without labels.
pub(crate) fn value(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

fn fix_of(kind: &str) -> &'static str {
    match kind {
        "ForwardBlocked" => {
            "a firewall of the node drops forwarded traffic; the log of its agent names the chain and the command"
        }
        "ForwardingDisabled" => {
            "switch forwarding on: sysctl -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1, and in /etc/sysctl.d"
        }
        "JumpContested" => {
            "let the other program append its NAT rules, or use --firewall nftables; the log of the node's agent quotes its rule"
        }
        "LinkUnusable" => "bring the link up, or correct --link of the node's agent; its log says which",
        "ReversePathFilter" => {
            "let the node take what comes in by its further links: sysctl -w net.ipv4.conf.LINK.rp_filter=2, and in /etc/sysctl.d"
        }
        "MixedFlavors" => "let every program of the node use the same flavour of iptables",
        _ => "the log of the agent on that node says what to do",
    }
}
