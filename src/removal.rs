//! Taking Pinhole out of a cluster, as decisions on what was seen there: whom to wait for, who cannot be reached, when
//! it is done.
//!
//! Nothing is remembered between two decisions, so that an attempt that died is simply made again.
//!
//! # Guarantees
//! - A node counts as clean only when a cleanup pod on it is ready while no agent is there any more: an agent that runs
//!   on would program again what was removed.
//! - Nobody waits for a node that is not Ready. It is named instead, with what to run there.

pub mod report;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

/// A node, as far as removal looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Why it cannot be reached; `None` while it is Ready.
    pub away: Option<String>,
}

/// A pod of the agent or of the cleanup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// The node that it runs on, or is meant for.
    pub node: Option<String>,
    /// Whether it is ready, and not about to end.
    pub is_ready: bool,
    /// What keeps it from being ready, when it says so.
    pub trouble: Option<String>,
}

/// A node that is not clean yet, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// The node.
    pub node: String,
    /// What is missing.
    pub why: String,
}

/// A node that nobody can reach, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Away {
    /// The node.
    pub node: String,
    /// What the cluster says about it.
    pub why: String,
}

/// How far the cleaning of nodes is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Nodes whose kernel has nothing of ours any more.
    pub clean: Vec<String>,
    /// Nodes that are waited for.
    pub pending: Vec<Pending>,
    /// Nodes that are not waited for.
    pub away: Vec<Away>,
}

/// The pods that will confirm their end: those on nodes that can be reached.
pub fn leaving<'a>(pods: &'a [Pod], nodes: &[Node]) -> Vec<&'a Pod> {
    pods.iter().filter(|pod| !is_abandoned(pod, nodes)).collect()
}

/// The pods whose end nobody will confirm: their node cannot be reached, or does not exist any more.
pub fn abandoned<'a>(pods: &'a [Pod], nodes: &[Node]) -> Vec<&'a Pod> {
    pods.iter().filter(|pod| is_abandoned(pod, nodes)).collect()
}

fn is_abandoned(pod: &Pod, nodes: &[Node]) -> bool {
    let Some(name) = &pod.node else { return false };
    nodes.iter().find(|node| node.name == *name).is_none_or(|node| node.away.is_some())
}

/// How far the cleaning is on the nodes that have all labels of `selector`.
pub fn progress(
    nodes: &[Node],
    selector: &BTreeMap<String, String>,
    agents: &[Pod],
    cleanups: &[Pod],
) -> Progress {
    let mut progress = Progress::default();
    let is_meant = |node: &&Node| selector.iter().all(|(key, value)| node.labels.get(key) == Some(value));
    for node in nodes.iter().filter(is_meant) {
        let is_here = |pod: &&Pod| pod.node.as_ref() == Some(&node.name);
        let name = node.name.clone();
        if let Some(why) = &node.away {
            progress.away.push(Away { node: name, why: why.clone() });
        } else if let Some(agent) = agents.iter().find(is_here) {
            progress
                .pending
                .push(Pending { node: name, why: format!("the agent {} has not ended", agent.name) });
        } else if let Some(cleanup) = cleanups.iter().find(is_here) {
            if cleanup.is_ready {
                progress.clean.push(name);
            } else {
                let trouble = cleanup.trouble.as_deref().unwrap_or("has not finished");
                progress.pending.push(Pending { node: name, why: format!("{} {trouble}", cleanup.name) });
            }
        } else {
            progress.pending.push(Pending { node: name, why: "no cleanup pod was started there".to_owned() });
        }
    }
    progress
}

impl Progress {
    /// Whether nobody is waited for.
    pub fn is_complete(&self) -> bool {
        self.pending.is_empty()
    }
}
