//! What `pause` and `resume` write to NatNodes: pure.

use serde_json::Value;
use serde_json::json;

use crate::api::crd::nat_node::NatNode;

/// What an operator wants of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// That nothing in their kernels is changed.
    Pause,
    /// That they go on, and that a mass removal that is held back happens.
    Resume,
}

/// What becomes of one node.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Step {
    /// Its name.
    pub(super) node: String,
    /// What is merged into its NatNode; nothing where it is so already.
    pub(super) change: Option<Value>,
    /// What is said of it.
    pub(super) said: String,
}

/// The steps for these nodes, or for every node where none is named.
pub(super) fn steps(nodes: &[NatNode], names: &[String], wish: Wish) -> Result<Vec<Step>, String> {
    const NONE: &str =
        "there are no NatNodes; agents keep them with --nat-node, which the chart sets with claims.enabled";
    let name_of = |node: &NatNode| node.metadata.name.clone().unwrap_or_default();
    let unknown: Vec<_> =
        names.iter().filter(|name| !nodes.iter().any(|node| name_of(node) == **name)).collect();
    match unknown.as_slice() {
        [] if nodes.is_empty() => return Err(NONE.to_owned()),
        [] => {}
        [name, ..] => return Err(format!("there is no NatNode {name}; kubectl get natnodes lists them")),
    }
    let is_meant = |node: &&NatNode| names.is_empty() || names.contains(&name_of(node));
    Ok(nodes.iter().filter(is_meant).map(|node| step(name_of(node), node, wish)).collect())
}

fn step(name: String, node: &NatNode, wish: Wish) -> Step {
    let is_paused = node.spec.paused;
    // What was released before, and is not held back again, is no news.
    let brake = node.status.as_ref().and_then(|status| status.brake.as_ref());
    let brake = brake.filter(|brake| node.spec.resume.as_ref() != Some(*brake));
    let (change, said) = match (wish, is_paused, brake) {
        (Wish::Pause, true, _) => (None, "was paused already"),
        (Wish::Pause, false, _) => (
            Some(json!({"spec": {"paused": true}})),
            "paused: nothing in its kernel is changed until kubectl pinhole resume",
        ),
        (Wish::Resume, false, None) => (None, "was not paused, and its brake holds nothing back"),
        (Wish::Resume, true, None) => (Some(json!({"spec": {"paused": false}})), "resumed"),
        (Wish::Resume, true, Some(brake)) => (
            Some(json!({"spec": {"paused": false, "resume": brake}})),
            "resumed, and what its brake holds back is removed",
        ),
        (Wish::Resume, false, Some(brake)) => {
            (Some(json!({"spec": {"resume": brake}})), "what its brake holds back is removed")
        }
    };
    Step { node: name, change, said: said.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::crd::nat_node::NatNodeSpec;
    use crate::api::crd::nat_node::NatNodeStatus;

    fn node(name: &str, is_paused: bool, brake: Option<&str>, resume: Option<&str>) -> NatNode {
        let spec = NatNodeSpec { paused: is_paused, resume: resume.map(str::to_owned) };
        let status = NatNodeStatus { brake: brake.map(str::to_owned), ..NatNodeStatus::default() };
        NatNode { status: Some(status), ..NatNode::new(name, spec) }
    }

    #[test]
    fn only_what_is_not_so_yet_is_written() {
        let cases = [
            (node("a", false, None, None), Wish::Pause, Some(json!({"spec": {"paused": true}}))),
            (node("a", true, None, None), Wish::Pause, None),
            (node("a", true, None, None), Wish::Resume, Some(json!({"spec": {"paused": false}}))),
            (node("a", false, None, Some("1")), Wish::Resume, None),
            (node("a", false, Some("2"), Some("1")), Wish::Resume, Some(json!({"spec": {"resume": "2"}}))),
            (node("a", false, Some("2"), Some("2")), Wish::Resume, None),
            (
                node("a", true, Some("2"), None),
                Wish::Resume,
                Some(json!({"spec": {"paused": false, "resume": "2"}})),
            ),
        ];
        for (node, wish, change) in cases {
            let steps = steps(std::slice::from_ref(&node), &[], wish).unwrap();
            assert_eq!(steps[0].change, change, "{wish:?} {:?}", node.spec);
        }
    }

    #[test]
    fn a_node_that_is_not_there_is_named_before_anything_is_written() {
        let nodes = [node("a", false, None, None), node("b", false, None, None)];
        let of = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            steps(&nodes, &names, Wish::Pause)
                .map(|steps| steps.into_iter().map(|step| step.node).collect::<Vec<_>>())
        };
        assert_eq!(of(&[]).unwrap(), ["a", "b"]);
        assert_eq!(of(&["b"]).unwrap(), ["b"]);
        assert!(of(&["b", "c"]).unwrap_err().contains("there is no NatNode c"));
        assert!(steps(&[], &[], Wish::Pause).unwrap_err().contains("--nat-node"));
    }
}
