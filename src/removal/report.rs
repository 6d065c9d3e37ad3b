//! What a removal tells its reader: what is gone, and what is left to be done by hand.

use std::fmt::Write as _;

use serde_json::Value;
use serde_json::json;

use crate::model::holder::ObjectName;
use crate::removal::Away;

/// How a node is cleaned by hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByHand {
    /// The image with `pinhole` and the tools that it needs.
    pub image: String,
    /// The arguments of `pinhole` that remove everything.
    pub arguments: Vec<String>,
}

/// A pod that waits at our scheduling gate, and could not be let go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gated {
    /// The pod.
    pub pod: ObjectName,
    /// Its other gates, which are somebody else's.
    pub others: Vec<String>,
    /// Why it could not be let go.
    pub why: String,
}

impl Gated {
    /// The command that lets it go.
    fn command(&self) -> String {
        let ObjectName { namespace, name } = &self.pod;
        let change = gated_by(&self.others);
        format!("kubectl -n {namespace} patch pod {name} --type=merge -p '{change}'")
    }
}

/// What is merged into a pod, so that it waits at these scheduling gates alone.
pub fn gated_by(gates: &[String]) -> Value {
    let gates: Vec<_> = gates.iter().map(|name| json!({"name": name})).collect();
    json!({"spec": {"schedulingGates": gates}})
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What was deleted, as kubectl names it.
    pub deleted: Vec<String>,
    /// The nodes that were cleaned; `None` when nobody wanted that.
    pub clean: Option<Vec<String>>,
    /// The nodes that could not be reached.
    pub away: Vec<Away>,
    /// The pods that waited at our scheduling gate and were let go.
    pub let_go: Vec<ObjectName>,
    /// Those that could not be.
    pub gated: Vec<Gated>,
    /// How many objects have our finalizers no more.
    pub freed: usize,
}

impl ByHand {
    /// The command that cleans this node, from wherever kubectl runs. The pod that it makes has the node's files below
    /// /host, where the lock is that all programs on a node take before they write iptables rules.
    pub fn command(&self, node: &str) -> String {
        format!(
            "kubectl debug node/{node} -it --profile=netadmin --image={} -- pinhole {} --xtables-lock-file=/host/run/xtables.lock",
            self.image,
            self.arguments.join(" ")
        )
    }
}

impl Outcome {
    /// The whole report of a removal, for whoever reads the log.
    pub fn text(&self, by_hand: Option<&ByHand>) -> String {
        let mut text = self.text_of_claims();
        match &self.clean {
            Some(nodes) if nodes.is_empty() => text.push_str("cleaned  no node\n"),
            Some(nodes) => {
                let noun = if nodes.len() == 1 { "node" } else { "nodes" };
                let _ = writeln!(text, "cleaned  {} {noun}: {}", nodes.len(), nodes.join(", "));
            }
            None => text.push_str("The nodes were left as they are, as asked.\n"),
        }
        for Away { node, why } in &self.away {
            let _ = writeln!(text, "\nNOT CLEANED: {node} could not be reached ({why}).");
        }
        if !self.away.is_empty() {
            text.push_str("A restart removes its rules. A node that comes back without one still has them; then run:\n\n");
            for Away { node, .. } in &self.away {
                let command = by_hand.map(|by_hand| by_hand.command(node)).unwrap_or_default();
                let _ = writeln!(text, "  {command}");
            }
        }
        text
    }

    /// What is told where only claims end.
    pub fn text_of_claims(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        for object in &self.deleted {
            let _ = writeln!(text, "deleted  {object}");
        }
        if self.freed != 0 {
            let _ = writeln!(text, "freed    {} of our finalizers", self.freed);
        }
        for pod in &self.let_go {
            let _ = writeln!(text, "let go   pod {pod}, which waited for its ports and starts without them");
        }
        for gated in &self.gated {
            let _ = writeln!(
                text,
                "\nSTILL WAITS: pod {} at the scheduling gate of Pinhole, which could not be taken off ({}). Run:\n\n  {}",
                gated.pod,
                gated.why,
                gated.command()
            );
        }
        text
    }
}
