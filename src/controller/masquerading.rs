//! The MasqueradePolicies: what is said of each in its status, out of what the agents say in their NatNodes.
//!
//! # Guarantees
//! - Only the word of a node's agent on the generation that is stored counts as programmed.
//! - A policy that counts for nothing somewhere names the older one that does, and one that cannot be read names the field.
//! - A status is written only when it says something else.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::admission::masquerade;
use crate::api::crd::condition::Condition;
use crate::api::crd::condition::Said;
use crate::api::crd::masquerade_policy::MasqueradePolicy;
use crate::api::crd::masquerade_policy::MasqueradePolicyStatus;
use crate::api::crd::nat_node::NodeMasquerade;
use crate::cluster::claim_store;
use crate::cluster::every::Known;
use crate::cluster::masquerade_policies::PolicyWriter;
use crate::cluster::masquerading_nodes::MasqueradingNode;
use crate::controller::turns::Turns;
use crate::telemetry::metrics::controller::ControllerMetrics;

/// How often policies are looked at.
const PERIOD: Duration = Duration::from_secs(5);

/// How many nodes a message names.
const NAMED: usize = 3;

/// How much of a node's own message is repeated.
const REPEATED: usize = 1000;

/// Looks after policies.
pub struct PolicyKeeper {
    /// Writes them.
    pub writer: PolicyWriter,
    /// The policies as the watch shows them.
    pub policies_rx: watch::Receiver<Known<MasqueradePolicy>>,
    /// The nodes as the watch shows them.
    pub nodes_rx: watch::Receiver<Known<MasqueradingNode>>,
    /// Whether this process leads.
    pub leading_rx: watch::Receiver<bool>,
    /// What is counted.
    pub metrics: ControllerMetrics,
}

impl PolicyKeeper {
    /// Looks after policies until it is stopped.
    pub async fn run(self, stop: CancellationToken) {
        let mut turns = Turns::every(PERIOD, stop);
        while turns.next().await {
            self.turn(claim_store::now()).await;
        }
    }

    async fn turn(&self, now: Timestamp) {
        let leads = *self.leading_rx.borrow();
        let (policies, nodes) = (self.policies_rx.borrow().clone(), self.nodes_rx.borrow().clone());
        let (true, Some(policies), Some(nodes)) = (leads, policies, nodes) else { return };
        for (policy, status) in plan(&policies, &nodes, now) {
            if let Err(reason) = self.writer.apply_status(policy, &status).await {
                self.metrics.failed();
                warn!(policy, reason, "A MasqueradePolicy cannot be written, trying again");
            }
        }
    }
}

/// Where a policy is wanted, and what became of it there.
#[derive(Debug, Default)]
struct Standing<'a> {
    nodes: usize,
    programmed: usize,
    /// Nodes whose agent has yet to say something of this generation.
    waiting: Vec<&'a str>,
    /// Nodes whose agent says what is wrong.
    failing: Vec<(&'a str, &'a NodeMasquerade)>,
    /// Nodes where another policy counts, and which.
    lost: Vec<(&'a str, &'a str)>,
}

/// What is to be written.
fn plan<'a>(
    policies: &'a BTreeMap<String, MasqueradePolicy>,
    nodes: &BTreeMap<String, MasqueradingNode>,
    now: Timestamp,
) -> Vec<(&'a str, MasqueradePolicyStatus)> {
    let mut standings = standings(policies, nodes);
    let told = policies.iter().filter_map(|(name, policy)| {
        let standing = standings.remove(name.as_str()).unwrap_or_default();
        let before = policy.status.clone().unwrap_or_default();
        let status = status(policy, &standing, &before, now);
        (status != before).then_some((name.as_str(), status))
    });
    told.collect()
}

/// How each policy that selects a node stands.
fn standings<'a>(
    policies: &'a BTreeMap<String, MasqueradePolicy>,
    nodes: &'a BTreeMap<String, MasqueradingNode>,
) -> BTreeMap<&'a str, Standing<'a>> {
    let mut standings: BTreeMap<&str, Standing<'_>> = BTreeMap::new();
    for (node, MasqueradingNode { labels, masquerade }) in nodes {
        let mut selecting = masquerade::selecting(policies, labels).into_iter();
        let Some((counting, policy)) = selecting.next() else { continue };
        let standing = standings.entry(counting).or_default();
        standing.nodes += 1;
        match masquerade.as_ref().filter(|said| is_about(said, counting, policy)) {
            None => standing.waiting.push(node),
            Some(said) if said.programmed => standing.programmed += 1,
            Some(said) => standing.failing.push((node, said)),
        }
        for (name, _) in selecting {
            let standing = standings.entry(name).or_default();
            standing.nodes += 1;
            standing.lost.push((node, counting));
        }
    }
    standings
}

/// Whether an agent speaks of the policy as it is stored.
fn is_about(said: &NodeMasquerade, name: &str, policy: &MasqueradePolicy) -> bool {
    said.policy == name
        && Some(&said.uid) == policy.metadata.uid.as_ref()
        && said.generation == policy.metadata.generation
}

fn status(
    policy: &MasqueradePolicy,
    standing: &Standing<'_>,
    before: &MasqueradePolicyStatus,
    now: Timestamp,
) -> MasqueradePolicyStatus {
    let generation = policy.metadata.generation;
    let problem = masquerade::read(&policy.spec).err();
    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    MasqueradePolicyStatus {
        observed_generation: generation,
        nodes: count(standing.nodes),
        programmed: count(standing.programmed),
        conditions: Condition::all(
            [accepted(problem.as_deref(), standing), programmed(problem.as_deref(), standing)],
            &before.conditions,
            generation,
            now,
        ),
    }
}

fn accepted<'a>(problem: Option<&str>, standing: &Standing<'_>) -> Said<'a> {
    match problem {
        Some(problem) => ("Accepted", false, "Unreadable", unreadable(problem)),
        None if standing.lost.is_empty() => ("Accepted", true, "Accepted", String::new()),
        None => ("Accepted", false, "Overlapped", overlapped(standing)),
    }
}

fn programmed<'a>(problem: Option<&str>, standing: &Standing<'a>) -> Said<'a> {
    let Standing { nodes, programmed: _, waiting, failing, lost } = standing;
    let (reason, message) = if let Some(problem) = problem {
        ("Unreadable", unreadable(problem))
    } else if let Some((node, said)) = failing.first() {
        let why: String = said.message.chars().take(REPEATED).collect();
        let message = format!("not so on {} of {}; on {node}: {why}", failing.len(), of_nodes(*nodes));
        (said.reason.as_str(), message)
    } else if !waiting.is_empty() {
        let message = format!(
            "the agents of {} of {} have yet to say that they follow it: {}; they need --masquerade-policies and --nat-node",
            waiting.len(),
            of_nodes(*nodes),
            named(waiting)
        );
        ("Pending", message)
    } else if !lost.is_empty() {
        ("Overlapped", overlapped(standing))
    } else if *nodes == 0 {
        ("NoNodes", "selects no node that has an agent; see spec.nodeSelector".to_owned())
    } else {
        return ("Programmed", true, "Programmed", String::new());
    };
    ("Programmed", false, reason, message)
}

fn unreadable(problem: &str) -> String {
    format!("{problem}; correct it: until then the nodes masquerade as they did before")
}

fn overlapped(standing: &Standing<'_>) -> String {
    let mut by_other: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (node, other) in &standing.lost {
        by_other.entry(other).or_default().push(node);
    }
    let others = by_other.iter().map(|(other, nodes)| format!("{other} on {}", named(nodes)));
    format!(
        "an older policy counts in its place on {} of {}: {}; let their spec.nodeSelector select different nodes",
        standing.lost.len(),
        of_nodes(standing.nodes),
        others.take(NAMED).collect::<Vec<_>>().join(", ")
    )
}

/// `1 node`, `3 nodes`.
fn of_nodes(count: usize) -> String {
    if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") }
}

/// `node-1, node-2, node-3 and 4 others`.
fn named(nodes: &[&str]) -> String {
    let shown = nodes.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    match nodes.len().saturating_sub(NAMED) {
        0 => shown,
        1 => format!("{shown} and 1 other"),
        others => format!("{shown} and {others} others"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use serde_json::json;

    use super::*;
    use crate::api::crd::condition::ConditionStatus;

    type Policies = BTreeMap<String, MasqueradePolicy>;
    type Nodes = BTreeMap<String, MasqueradingNode>;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    #[expect(clippy::needless_pass_by_value, reason = "literal JSON at every call")]
    fn policy(name: &str, second: u32, spec: Value) -> (String, MasqueradePolicy) {
        let metadata = json!({
            "name": name, "uid": format!("uid-{name}"), "generation": 2,
            "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z"),
        });
        let object = json!({
            "apiVersion": "pinhole.dev/v1alpha1", "kind": "MasqueradePolicy", "metadata": metadata, "spec": spec,
        });
        (name.to_owned(), serde_json::from_value(object).unwrap())
    }

    fn said(policy: &str, reason: &str, message: &str) -> NodeMasquerade {
        NodeMasquerade {
            policy: policy.to_owned(),
            uid: format!("uid-{policy}"),
            generation: Some(2),
            programmed: reason == "Programmed",
            reason: reason.to_owned(),
            message: message.to_owned(),
        }
    }

    fn node(name: &str, zone: &str, masquerade: Option<NodeMasquerade>) -> (String, MasqueradingNode) {
        let labels = BTreeMap::from([("zone".to_owned(), zone.to_owned())]);
        (name.to_owned(), MasqueradingNode { labels, masquerade })
    }

    /// NODES, PROGRAMMED, and status, reason and message of both conditions.
    fn shown(name: &str, policies: &Policies, nodes: &Nodes) -> [String; 3] {
        let planned = plan(policies, nodes, at(0));
        let (_, status) = planned.into_iter().find(|(planned, _)| *planned == name).unwrap();
        assert_eq!(status.observed_generation, Some(2));
        let condition = |type_: &str| {
            let found = Condition::find(&status.conditions, type_).unwrap();
            let holds = found.status == ConditionStatus::True;
            format!("{type_} {holds} {}: {}", found.reason, found.message)
        };
        [format!("{}/{}", status.programmed, status.nodes), condition("Accepted"), condition("Programmed")]
    }

    #[test]
    fn a_policy_is_programmed_when_every_node_that_it_selects_says_so_of_its_generation() {
        let policies = Policies::from([policy("a", 1, json!({}))]);
        let programmed = || Some(said("a", "Programmed", ""));
        let mut nodes = Nodes::from([node("n1", "a", programmed()), node("n2", "b", programmed())]);
        let fine = ["2/2", "Accepted true Accepted: ", "Programmed true Programmed: "];
        assert_eq!(shown("a", &policies, &nodes), fine);
        let earlier = NodeMasquerade { generation: Some(1), ..programmed().unwrap() };
        let anothers = NodeMasquerade { uid: "of one that was deleted".to_owned(), ..programmed().unwrap() };
        for word in [None, Some(earlier), Some(anothers), Some(said("b", "Programmed", ""))] {
            nodes.extend([node("n2", "b", word)]);
            let [count, accepted, programmed] = shown("a", &policies, &nodes);
            assert_eq!((count.as_str(), accepted.as_str()), ("1/2", "Accepted true Accepted: "));
            let pending = "Programmed false Pending: the agents of 1 of 2 nodes have yet to say that they follow it: n2; ";
            assert!(programmed.starts_with(pending), "{programmed}");
        }
    }

    #[test]
    fn a_policy_that_a_node_cannot_follow_says_why() {
        let policies = Policies::from([policy("a", 1, json!({}))]);
        let nodes = Nodes::from([
            node("n1", "a", Some(said("a", "Programmed", ""))),
            node("n2", "a", Some(said("a", "NotProgrammed", "another program holds the xtables lock"))),
            node("n3", "a", None),
        ]);
        let [count, _, programmed] = shown("a", &policies, &nodes);
        assert_eq!(count, "1/3");
        let expected = "Programmed false NotProgrammed: not so on 1 of 3 nodes; on n2: another program holds the xtables lock";
        assert_eq!(programmed, expected);
    }

    #[test]
    fn a_policy_that_loses_against_an_older_one_names_it_and_where() {
        let zone = json!({"nodeSelector": {"matchLabels": {"zone": "a"}}});
        let policies = Policies::from([
            policy("older", 1, zone),
            policy("younger", 2, json!({})),
            policy("nowhere", 1, json!({"nodeSelector": {"matchLabels": {"zone": "z"}}})),
        ]);
        let nodes = Nodes::from([
            node("n1", "a", Some(said("older", "Programmed", ""))),
            node("n2", "b", Some(said("younger", "Programmed", ""))),
        ]);
        let expected = "Overlapped: an older policy counts in its place on 1 of 2 nodes: older on n1; let their \
                        spec.nodeSelector select different nodes";
        assert_eq!(
            shown("younger", &policies, &nodes),
            ["1/2".to_owned(), format!("Accepted false {expected}"), format!("Programmed false {expected}")]
        );
        assert_eq!(shown("older", &policies, &nodes)[2], "Programmed true Programmed: ");
        let [count, accepted, programmed] = shown("nowhere", &policies, &nodes);
        assert_eq!((count.as_str(), accepted.as_str()), ("0/0", "Accepted true Accepted: "));
        assert!(programmed.starts_with("Programmed false NoNodes: selects no node"), "{programmed}");
    }

    #[test]
    fn a_policy_that_cannot_be_read_says_so_wherever_it_counts() {
        let policies = Policies::from([policy("a", 1, json!({"excludedInterfaces": [".."]}))]);
        for nodes in [Nodes::new(), Nodes::from([node("n1", "a", Some(said("a", "Unreadable", "")))])] {
            for condition in &shown("a", &policies, &nodes)[1..] {
                let expected = "false Unreadable: spec.excludedInterfaces: \"..\" is not the name of";
                assert!(condition.contains(expected), "{condition}");
            }
        }
    }

    #[test]
    fn nothing_is_written_again_that_is_stored_already() {
        let mut policies = Policies::from([policy("a", 1, json!({}))]);
        let nodes = Nodes::from([node("n1", "a", Some(said("a", "Programmed", "")))]);
        let (_, status) = plan(&policies, &nodes, at(0)).remove(0);
        policies.get_mut("a").unwrap().status = Some(status);
        assert_eq!(plan(&policies, &nodes, at(100)), []);
    }

    #[test]
    fn few_of_many_nodes_are_named() {
        for (nodes, expected) in [
            (&["a"][..], "a"),
            (&["a", "b", "c", "d"], "a, b, c and 1 other"),
            (&["a", "b", "c", "d", "e"], "a, b, c and 2 others"),
        ] {
            assert_eq!(named(nodes), expected);
        }
    }
}
