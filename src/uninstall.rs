//! Takes Pinhole out of a cluster, in the order in which nothing breaks and nothing comes back: the webhook
//! configurations, so that nobody is refused any more; the agents, so that nobody programs; the rules on every node;
//! then what was made at run time. Where only claims are turned off, that last step alone.
//!
//! # Guarantees
//! Every step can be repeated: started again after whatever ended it, it goes through all of them. It never waits for
//! a node that is not Ready, and ends at its deadline with what it was waiting for.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use thiserror::Error;
use tracing::info;
use tracing::warn;

use crate::cluster::removal::Installation;
use crate::cluster::removal::RemovalError;
use crate::cluster::removal::Target;
use crate::cluster::removal::every::Every;
use crate::cluster::removal::gates::Lifted;
use crate::removal;
use crate::removal::Node;
use crate::removal::Pending;
use crate::removal::Pod;
use crate::removal::Progress;
use crate::removal::report::ByHand;
use crate::removal::report::Outcome;

/// Pause between two looks at what is waited for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How often nothing must have been found to do before it is believed.
const QUIET_LOOKS: u32 = 5;

/// What to remove.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The name of both webhook configurations.
    pub configuration: String,
    /// The agents' DaemonSet.
    pub agents: String,
    /// What cleans the nodes; `None` leaves them as they are.
    pub cleanup: Option<DaemonSet>,
    /// What was made at run time.
    pub leftovers: Vec<Target>,
    /// Kinds of which nothing is left.
    pub kinds: Vec<Every>,
    /// Kinds whose objects stay, without our finalizers.
    pub kept_kinds: Vec<Every>,
    /// Whether pods are let go that wait at our scheduling gate.
    pub lifts_gates: bool,
    /// How much goes.
    pub extent: Extent,
    /// When to give up.
    pub deadline: Duration,
}

/// How much of an installation goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    Everything,
    /// What only a controller looks after: calls, agents and nodes stay as they are.
    Claims,
}

/// It was not finished in time.
#[derive(Debug, Error)]
#[error(
    "not finished after {} s: {waiting_for}. What is done stays done: solve that and run it again ({again}", .deadline.as_secs()
)]
pub struct UninstallError {
    deadline: Duration,
    waiting_for: String,
    again: &'static str,
}

impl Extent {
    /// How it is run again.
    const fn again(self) -> &'static str {
        match self {
            Self::Everything => {
                "helm uninstall, or the same Job once more). `helm uninstall --no-hooks` goes on without it and leaves the \
                 rules on these nodes"
            }
            Self::Claims => "the same helm upgrade). `helm upgrade --no-hooks` goes on without it",
        }
    }
}

/// Removes everything in `plan`.
pub async fn run(installation: Installation, plan: Plan) -> Result<Outcome, UninstallError> {
    let (deadline, again) = (plan.deadline, plan.extent.again());
    let mut uninstall =
        Uninstall { installation, plan, outcome: Outcome::default(), waiting_for: String::new() };
    let finished = tokio::time::timeout(deadline, uninstall.steps()).await;
    let Uninstall { outcome, waiting_for, .. } = uninstall;
    finished.map(|()| outcome).map_err(|_| UninstallError { deadline, waiting_for, again })
}

/// How the nodes of this DaemonSet would be cleaned by hand.
pub fn by_hand(cleanup: &DaemonSet) -> Option<ByHand> {
    let pod = cleanup.spec.as_ref()?.template.spec.as_ref()?;
    let container = pod.init_containers.iter().flatten().next()?;
    Some(ByHand { image: container.image.clone()?, arguments: container.args.clone()? })
}

struct Uninstall {
    installation: Installation,
    plan: Plan,
    outcome: Outcome,
    /// Why the step that is under way has not ended.
    waiting_for: String,
}

impl Uninstall {
    async fn steps(&mut self) {
        match self.plan.extent {
            Extent::Everything => {
                self.delete_configurations().await;
                self.end_agents().await;
                self.clean_nodes().await;
                self.forget_abandoned_pods().await;
                self.delete_leftovers().await;
                let gone = self.plan.leftovers.clone();
                self.delete_kinds(&gone).await;
            }
            // What is left of a controller tells that this has yet to be done, so it goes last.
            Extent::Claims => {
                self.delete_kinds(&[]).await;
                self.delete_leftovers().await;
            }
        }
    }

    async fn delete_configurations(&mut self) {
        loop {
            let deleted = self.installation.delete_configurations(&self.plan.configuration).await;
            if let Some(deleted) = self.attempt(deleted).await {
                info!(?deleted, "Nobody is asked about ports any more");
                self.outcome.deleted.extend(deleted);
                return;
            }
        }
    }

    async fn end_agents(&mut self) {
        let agents = self.plan.agents.clone();
        loop {
            let deleted = self.installation.delete_daemon_set(&agents).await;
            let Some(was_there) = self.attempt(deleted).await else { continue };
            if was_there {
                self.outcome.deleted.push(format!("daemonset/{agents}"));
            }
            break;
        }
        loop {
            let Some((nodes, pods)) = self.look(&agents).await else { continue };
            let leaving = removal::leaving(&pods, &nodes);
            if leaving.is_empty() {
                info!("No agent is left on a node that can be reached");
                return;
            }
            let leaving: Vec<_> = leaving.into_iter().map(|pod| pod.name.as_str()).collect();
            self.wait(format!("the agents {} have not ended", leaving.join(", "))).await;
        }
    }

    async fn clean_nodes(&mut self) {
        let Some(cleanup) = self.plan.cleanup.clone() else { return };
        let name = cleanup.metadata.name.clone().unwrap_or_default();
        loop {
            let ending = self.installation.is_ending(&name).await;
            match self.attempt(ending).await {
                // Of an earlier attempt.
                Some(Some(true)) => self.wait(format!("daemonset/{name} has not ended")).await,
                Some(_) => {
                    let applied = self.installation.apply_daemon_set(&cleanup).await;
                    if self.attempt(applied).await.is_some() {
                        break;
                    }
                }
                None => {}
            }
        }
        let progress = self.await_cleanup(&name, &node_selector(&cleanup)).await;
        info!(nodes = ?progress.clean, "The nodes are clean");
        self.tell_about_away(&progress, by_hand(&cleanup).as_ref()).await;
        let Progress { clean, away, pending: _ } = progress;
        self.outcome.clean = Some(clean);
        self.outcome.away = away;
        loop {
            let deleted = self.installation.delete_daemon_set(&name).await;
            if self.attempt(deleted).await.is_none() {
                continue;
            }
            let Some((nodes, pods)) = self.look(&name).await else { continue };
            if removal::leaving(&pods, &nodes).is_empty() {
                return;
            }
            self.wait(format!("the pods of daemonset/{name} have not ended")).await;
        }
    }

    async fn await_cleanup(&mut self, name: &str, selector: &BTreeMap<String, String>) -> Progress {
        loop {
            let Some((nodes, cleanups)) = self.look(name).await else { continue };
            let agents = self.installation.pods_of(&self.plan.agents).await;
            let Some(agents) = self.attempt(agents).await else { continue };
            let progress = removal::progress(&nodes, selector, &agents, &cleanups);
            if progress.is_complete() {
                return progress;
            }
            let pending = progress.pending.iter().map(|Pending { node, why }| format!("{node}: {why}"));
            let pending = pending.collect::<Vec<_>>().join("; ");
            self.wait(format!("these nodes are not clean: {pending}")).await;
        }
    }

    /// An Event stays when the Job and its log are gone. It is news, and not worth failing for.
    async fn tell_about_away(&self, progress: &Progress, by_hand: Option<&ByHand>) {
        for away in &progress.away {
            let command = by_hand.map(|by_hand| by_hand.command(&away.node)).unwrap_or_default();
            warn!(
                node = away.node,
                because = away.why,
                command,
                "A node could not be reached; if it comes back without a restart, run this command to remove its rules"
            );
            let note = format!(
                "Pinhole was uninstalled while this node could not be reached. Unless it was restarted, remove its rules: {command}"
            );
            if let Err(error) = self.installation.warn_about_node(&away.node, &note).await {
                warn!(%error, "Cannot leave an Event about that; keep this log");
            }
        }
    }

    /// Nobody will confirm the end of a pod on a node that cannot be reached. As long as it is there, neither its
    /// DaemonSet nor the namespace can go.
    async fn forget_abandoned_pods(&mut self) {
        let cleanup = self.plan.cleanup.as_ref().and_then(|cleanup| cleanup.metadata.name.clone());
        for daemon_set in [Some(self.plan.agents.clone()), cleanup].into_iter().flatten() {
            loop {
                let Some((nodes, pods)) = self.look(&daemon_set).await else { continue };
                let abandoned: Vec<_> =
                    removal::abandoned(&pods, &nodes).into_iter().map(|pod| pod.name.clone()).collect();
                for pod in &abandoned {
                    let forgotten = self.installation.forget_pod(pod).await;
                    self.attempt(forgotten).await;
                }
                let ending = self.installation.is_ending(&daemon_set).await;
                match self.attempt(ending).await {
                    Some(None) if abandoned.is_empty() => break,
                    Some(_) => self.wait(format!("daemonset/{daemon_set} has not ended")).await,
                    None => {}
                }
            }
        }
    }

    async fn delete_leftovers(&mut self) {
        for target in self.plan.leftovers.clone() {
            loop {
                let deleted = self.installation.delete(&target).await;
                let Some(was_there) = self.attempt(deleted).await else { continue };
                if was_there {
                    self.outcome.deleted.push(target.to_string());
                }
                break;
            }
        }
    }

    /// Until nothing has come back for a while, of what is `gone` neither: the controller may not have ended yet.
    async fn delete_kinds(&mut self, gone: &[Target]) {
        let Plan { kinds, kept_kinds, lifts_gates, .. } = self.plan.clone();
        let mut deleted = vec![0; kinds.len()];
        let mut quiet = 0;
        while quiet < QUIET_LOOKS && (lifts_gates || kinds.len() + kept_kinds.len() != 0) {
            let mut found = 0;
            if lifts_gates {
                found += self.lift_gates().await;
            }
            for target in gone {
                let came_back = self.installation.delete_again(target).await;
                found += usize::from(self.attempt(came_back).await.unwrap_or(true));
            }
            for (every, total) in kinds.iter().zip(&mut deleted) {
                let count = self.installation.delete_every(every).await;
                // What failed is looked at again.
                let done = self.attempt(count).await;
                *total += done.unwrap_or(0);
                found += done.unwrap_or(1);
            }
            for every in kinds.iter().chain(&kept_kinds) {
                let count = self.installation.let_go(every).await;
                let freed = self.attempt(count).await;
                self.outcome.freed += freed.unwrap_or(0);
                found += freed.unwrap_or(1);
            }
            quiet = if found == 0 { quiet + 1 } else { 0 };
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let deleted = kinds.iter().zip(deleted).filter(|(_, count)| *count != 0);
        self.outcome.deleted.extend(deleted.map(|(every, count)| format!("{every}: {count}")));
    }

    /// Lets pods go that wait for ports which nobody finds; how much of that was news. One that cannot be let go is tried
    /// again as long as there is, and told in the end: nothing else waits for it.
    async fn lift_gates(&mut self) -> usize {
        let lifted = self.installation.lift_gates().await;
        let Some(Lifted { free, waiting }) = self.attempt(lifted).await else { return 1 };
        let count = free.len();
        self.outcome.let_go.extend(free);
        self.outcome.gated = waiting;
        count
    }

    async fn look(&mut self, daemon_set: &str) -> Option<(Vec<Node>, Vec<Pod>)> {
        let nodes = self.installation.nodes().await;
        let nodes = self.attempt(nodes).await?;
        let pods = self.installation.pods_of(daemon_set).await;
        Some((nodes, self.attempt(pods).await?))
    }

    /// What was asked for; `None`, after a pause, when that failed and has to be asked for again.
    async fn attempt<T>(&mut self, result: Result<T, RemovalError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.wait(error.to_string()).await;
                None
            }
        }
    }

    async fn wait(&mut self, waiting_for: String) {
        if self.waiting_for != waiting_for {
            info!(because = waiting_for, "Waiting");
            self.waiting_for = waiting_for;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn node_selector(daemon_set: &DaemonSet) -> BTreeMap<String, String> {
    let pod = daemon_set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    pod.and_then(|pod| pod.node_selector.clone()).unwrap_or_default()
}
