//! Removal as a table of what was seen and what follows.

use super::*;
use crate::model::holder::ObjectName;
use crate::removal::report::ByHand;
use crate::removal::report::Gated;
use crate::removal::report::Outcome;

fn node(name: &str) -> Node {
    Node { name: name.into(), labels: labels("linux"), away: None }
}

fn labels(os: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("kubernetes.io/os".to_owned(), os.to_owned())])
}

fn away(name: &str) -> Node {
    Node { away: Some("Ready is Unknown: kubelet stopped posting node status".into()), ..node(name) }
}

fn pod(name: &str, node: &str) -> Pod {
    Pod { name: name.into(), node: Some(node.into()), is_ready: false, trouble: None }
}

fn ready(name: &str, node: &str) -> Pod {
    Pod { is_ready: true, ..pod(name, node) }
}

/// One line for each node: `+` clean, `?` waited for, `-` away.
fn seen(nodes: &[Node], agents: &[Pod], cleanups: &[Pod]) -> Vec<String> {
    let progress = progress(nodes, &labels("linux"), agents, cleanups);
    assert_eq!(progress.is_complete(), progress.pending.is_empty());
    let clean = progress.clean.iter().map(|node| format!("+ {node}"));
    let pending = progress.pending.iter().map(|pending| format!("? {}: {}", pending.node, pending.why));
    let away = progress.away.iter().map(|away| format!("- {}: {}", away.node, away.why));
    clean.chain(pending).chain(away).collect()
}

#[test]
fn every_ready_node_is_waited_for_until_its_cleanup_is_ready() {
    let nodes = [node("a"), node("b"), node("c")];
    let stuck = Pod { trouble: Some("fails: no xtables lock".into()), ..pod("cleanup-2", "b") };
    assert_eq!(
        seen(&nodes, &[], &[ready("cleanup-1", "a"), stuck]),
        ["+ a", "? b: cleanup-2 fails: no xtables lock", "? c: no cleanup pod was started there"]
    );
    let all = [ready("cleanup-1", "a"), ready("cleanup-2", "b"), ready("cleanup-3", "c")];
    assert_eq!(seen(&nodes, &[], &all), ["+ a", "+ b", "+ c"]);
}

#[test]
fn a_node_that_is_not_ready_is_named_and_not_waited_for() {
    let why = "Ready is Unknown: kubelet stopped posting node status";
    // What its pods were last seen as says nothing.
    let stale = [ready("cleanup-2", "b")];
    assert_eq!(
        seen(&[node("a"), away("b")], &[], &[&stale[..], &[ready("cleanup-1", "a")]].concat()),
        ["+ a".to_owned(), format!("- b: {why}")]
    );
    assert_eq!(seen(&[away("b")], &[pod("agent-2", "b")], &stale), [format!("- b: {why}")]);
}

#[test]
fn a_node_is_not_clean_while_an_agent_is_there_that_could_program_again() {
    let cleanups = [ready("cleanup-1", "a")];
    assert_eq!(
        seen(&[node("a")], &[pod("agent-1", "a")], &cleanups),
        ["? a: the agent agent-1 has not ended"]
    );
}

#[test]
fn nodes_that_no_cleanup_is_meant_for_are_not_waited_for() {
    let windows = Node { labels: labels("windows"), ..node("w") };
    let bare = Node { labels: BTreeMap::new(), ..node("bare") };
    assert_eq!(seen(&[windows, bare], &[], &[]), Vec::<String>::new());
    assert_eq!(seen(&[], &[], &[]), Vec::<String>::new());
}

#[test]
fn pods_of_nodes_that_are_away_or_gone_are_not_waited_for() {
    let nodes = [node("a"), away("b")];
    let unscheduled = Pod { node: None, ..pod("agent-4", "") };
    let pods = [pod("agent-1", "a"), pod("agent-2", "b"), pod("agent-3", "deleted"), unscheduled];
    let names = |pods: Vec<&Pod>| pods.into_iter().map(|pod| pod.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(leaving(&pods, &nodes)), ["agent-1", "agent-4"]);
    assert_eq!(names(abandoned(&pods, &nodes)), ["agent-2", "agent-3"]);
}

#[test]
fn the_report_names_what_is_gone_and_the_command_for_what_is_not() {
    let by_hand = ByHand {
        image: "ghcr.io/pinhole-dev/pinhole-agent:0.1.0".into(),
        arguments: vec!["cleanup".into(), "--resource-prefix=NAT".into()],
    };
    let outcome = Outcome {
        deleted: vec!["validatingwebhookconfiguration/pinhole".into(), "daemonset/pinhole-agent".into()],
        clean: Some(vec!["a".into(), "b".into()]),
        away: vec![Away {
            node: "c".into(),
            why: "Ready is Unknown: kubelet stopped posting node status".into(),
        }],
        let_go: vec![ObjectName::new("games", "lobby")],
        gated: vec![Gated {
            pod: ObjectName::new("games", "kept"),
            others: vec!["example.com/quota".into()],
            why: "denied".into(),
        }],
        freed: 2,
    };
    assert_eq!(
        outcome.text(Some(&by_hand)),
        "deleted  validatingwebhookconfiguration/pinhole\n\
         deleted  daemonset/pinhole-agent\n\
         freed    2 of our finalizers\n\
         let go   pod games/lobby, which waited for its ports and starts without them\n\
         \n\
         STILL WAITS: pod games/kept at the scheduling gate of Pinhole, which could not be taken off (denied). Run:\n\
         \n  \
         kubectl -n games patch pod kept --type=merge -p '{\"spec\":{\"schedulingGates\":[{\"name\":\"example.com/quota\"}]}}'\n\
         cleaned  2 nodes: a, b\n\
         \n\
         NOT CLEANED: c could not be reached (Ready is Unknown: kubelet stopped posting node status).\n\
         A restart removes its rules. A node that comes back without one still has them; then run:\n\
         \n  \
         kubectl debug node/c -it --profile=netadmin --image=ghcr.io/pinhole-dev/pinhole-agent:0.1.0 -- \
         pinhole cleanup --resource-prefix=NAT --xtables-lock-file=/host/run/xtables.lock\n"
    );
    assert_eq!(Outcome::default().text_of_claims(), "");
    assert_eq!(Outcome::default().text(None), "The nodes were left as they are, as asked.\n");
}
