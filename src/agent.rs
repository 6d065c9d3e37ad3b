//! The agent: keeps one node's kernel at what the pods of the node ask for and may have.
//!
//! One loop with five steps: observe, check, decide, apply, report. Only the first and the last two touch the
//! outside. A turn starts from what is there, never from what an earlier turn meant to do, so that a start, a resync
//! and a change are the same code. The kernel's rules are the only state.
//!
//! # Guarantees
//! - Nothing is changed before every list has come once (R05), and nothing is removed when the process ends.
//! - What nobody may have is not programmed, whoever let the pod in (R27).
//! - A slow kernel delays the loop, never the watches that feed it (R42).
//! - An entry that the kernel refuses is told to its pod and keeps nothing else from being programmed (R08).
//! - A failed turn is tried again, with growing pauses, until it succeeds (R13).
//! - While an operator has paused the node, nothing in the kernel is changed.

pub mod addresses;
pub mod brake;
pub mod desired;
pub mod entries;
pub mod flows;
pub mod following;
pub mod grants;
pub mod links;
pub mod listeners;
pub mod masquerade;
pub mod nat_node;
pub mod node;
pub mod presence;
pub mod remote;
pub mod report;
pub mod statements;
pub mod vigil;
mod waiting;
pub mod written;

use std::cell::LazyCell;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing::warn;

use crate::admission::policy::Policy;
use crate::agent::brake::BrakeOverTime;
use crate::agent::brake::Withheld;
use crate::agent::desired::Known;
use crate::agent::desired::Plan;
use crate::agent::flows::Flows;
use crate::agent::grants::Grants;
use crate::agent::links::Linking;
use crate::agent::masquerade::Masquerading;
use crate::agent::masquerade::Stand;
use crate::agent::nat_node::Desk;
use crate::agent::nat_node::Situation;
use crate::agent::node::Node;
use crate::agent::presence::Presence;
use crate::agent::report::Reporter;
use crate::agent::vigil::Vigil;
use crate::cluster::claim_store;
use crate::cluster::nat_nodes::Identity;
use crate::cluster::node_pods::NodePods;
use crate::cluster::pinhole_reports::Reports;
use crate::cluster::pinhole_watch::KnownPinholes;
use crate::dataplane::Applied;
use crate::dataplane::Dataplane;
use crate::dataplane::KernelRefused;
use crate::dataplane::Observed;
use crate::ruleset::Ruleset;
use crate::ruleset::diff::diff;
use crate::ruleset::entry::Entry;
use crate::ruleset::node::NodeFacts;
use crate::ruleset::owner::Owner;
use crate::telemetry::metrics::agent::AgentMetrics;
use crate::telemetry::readiness::Condition;

const FIRST_RETRY: Duration = Duration::from_millis(250);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// What an operator decides.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of the Node.
    pub node_name: String,
    /// What is allowed.
    pub policy: Arc<Policy>,
    /// How often the kernel is read and compared although nothing happened.
    pub resync: Duration,
    /// How often the node's addresses are looked at.
    pub address_check: Duration,
    /// How often it is looked whether somebody else changed the node's rules.
    pub drift_check: Duration,
}

/// Where claims are on: what was granted, and where it is told what became of it.
pub struct Granting {
    /// The Pinholes that this node serves.
    pub pinholes: Arc<KnownPinholes>,
    /// The reports on them.
    pub reports: Arc<Reports>,
}

/// What the loop works with.
pub struct Parts<D> {
    /// The kernel.
    pub dataplane: Arc<D>,
    /// Notices what others do to the rules.
    pub vigil: Vigil,
    /// The pods of the node.
    pub pods: Arc<NodePods>,
    /// What was granted; `None` where claims are off.
    pub granting: Option<Granting>,
    /// The node.
    pub node: Node,
    /// What pods leave the cluster with.
    pub masquerading: Masquerading,
    /// By which links it reaches the outside.
    pub linking: Linking,
    /// When mass removals are held back.
    pub brake: BrakeOverTime,
    /// Where changes are left for the connection table; `None` leaves connections alone.
    pub flows: Option<Flows>,
    /// Who tells what became of it.
    pub reporter: Reporter,
    /// The numbers.
    pub metrics: AgentMetrics,
    /// Met when the kernel has exactly what the node should serve.
    pub in_sync: Condition,
}

/// The loop and what it remembers: only what saves work, and what it last saw.
pub struct Agent<D> {
    config: Config,
    parts: Parts<D>,
    /// The kernel as the last turn left it; `None` makes the next turn read it.
    observed: Option<Observed>,
    /// What the kernel refused when it was last read.
    refused: Vec<KernelRefused>,
    /// Whether the last turn read the kernel.
    has_read: bool,
    /// What the last turn wanted, to tell drift from change.
    wanted: Option<Ruleset>,
    presence: Presence,
    withheld: Option<Withheld>,
    retry: Option<Duration>,
    resync_at: Instant,
    /// Where the node's NatNode is told of, and heard from.
    desk: Option<Desk>,
    situation: Situation,
    /// Whether the kernel masquerades as it should, when it was last seen.
    is_masquerading: bool,
}

/// Why a turn could not even try.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("there is no Node {0}; pass the name that `kubectl get nodes` shows as --node-name")]
    NoNode(String),
    #[error("the node's addresses cannot be read: {0}")]
    Addresses(#[from] io::Error),
    #[error("the rules in the kernel cannot be read: {0}")]
    Kernel(#[from] crate::dataplane::DataplaneError),
}

impl<D: Dataplane> Agent<D> {
    /// An agent that has seen nothing yet.
    pub fn new(config: Config, parts: Parts<D>) -> Self {
        Self {
            config,
            parts,
            observed: None,
            refused: Vec::new(),
            has_read: false,
            wanted: None,
            presence: Presence::default(),
            withheld: None,
            retry: None,
            resync_at: Instant::now(),
            desk: None,
            situation: Situation::default(),
            is_masquerading: false,
        }
    }

    /// Also tells how the node stands, and changes nothing while an operator has paused it.
    pub fn with_nat_node(self, desk: Desk) -> Self {
        Self { desk: Some(desk), ..self }
    }

    /// Keeps the kernel as it should be until `stop`, and leaves it so. A turn that has begun is finished.
    pub async fn run(mut self, stop: CancellationToken) {
        if !self.wait_for_lists(&stop).await {
            return;
        }
        while !stop.is_cancelled() {
            let started = Instant::now();
            if self.is_paused() {
                match self.rest().await {
                    Ok(()) => self.parts.in_sync.met(),
                    Err(trouble) => self.fail(&trouble.to_string()),
                }
            } else {
                match self.turn().await {
                    Ok(applied) => self.settle(applied, started.elapsed()),
                    Err(trouble) => self.fail(&trouble.to_string()),
                }
            }
            self.tell();
            self.wait(&stop).await;
        }
        info!("Stopped; the rules stay in the kernel and go on working");
    }

    /// The five steps.
    async fn turn(&mut self) -> Result<Applied, Trouble> {
        self.is_masquerading = false;
        let node = self.observe_node()?;
        let (observed, is_fresh) = self.observe_kernel().await?;
        self.has_read = is_fresh;
        let (plan, grants) = self.plan(&node, &observed.ruleset);
        let is_unknown = self.parts.node.tell_of_cluster(&node, &plan.ruleset);
        self.parts.metrics.unknown_cluster.set(i64::from(is_unknown));
        let now = Instant::now().into_std();
        let planned = self.parts.masquerading.settle(plan.ruleset.clone(), &observed.ruleset);
        if self.is_resumed() {
            self.parts.brake.release();
        }
        let (mut wanted, withheld) = {
            // Only what the brake holds back is asked about.
            let holders = LazyCell::new(|| self.parts.pods.read(|view| desired::holders(view.running())));
            let is_anothers = |ip, owner: &Owner| self.presence.is_anothers(owner, &plan, holders.get(&ip));
            self.parts.brake.hold(&observed.ruleset, planned, &is_anothers, now)
        };
        let hopeless = if is_fresh { Vec::new() } else { self.take_hopeless_out(&mut wanted) };
        self.bind_to_links(&wanted, &plan);
        let differences = if is_fresh { diff(&observed.ruleset, &wanted).len() } else { 0 };
        let mut applied = self.parts.dataplane.apply(&wanted, observed).await;
        // At once: what others change from here on is noticed.
        self.watch_from(&applied).await;
        applied.refused.extend(hopeless);
        if is_fresh {
            self.count_repairs(differences, &wanted, &applied);
            self.situation.blockers = self.parts.dataplane.conditions(&wanted).await;
            self.situation.blockers.extend_from_slice(self.parts.linking.problems());
            self.parts.reporter.report_conditions(self.situation.blockers.clone());
        }
        self.take_stock(&wanted, &applied);
        self.end_flows(&plan, &applied, withheld.is_some());
        self.parts.reporter.report(&plan, &applied);
        self.state(&plan, &applied, grants.as_ref());
        self.report_brake(withheld);
        self.wanted = Some(wanted);
        Ok(applied)
    }

    /// Lets pods that are still there go on by the links by which they left.
    fn bind_to_links(&mut self, wanted: &Ruleset, plan: &Plan) {
        let pods = &self.parts.pods;
        self.parts.linking.bind(wanted, || {
            let known =
                plan.pods.iter().flat_map(|(owner, pod)| pod.ips.iter().map(|ip| (*ip, owner.clone())));
            let here = pods.read(|view| desired::holders(view.running()));
            // Of a pod of this node the pod itself is believed.
            known.chain(here.into_iter().map(|(ip, (owner, _))| (ip, owner))).collect()
        });
    }

    /// Whether an operator lets happen what the brake holds back.
    fn is_resumed(&self) -> bool {
        let brake = self.situation.brake.as_deref();
        self.desk.as_ref().zip(brake).is_some_and(|(desk, brake)| desk.resumes(brake))
    }

    /// Whether an operator wants nothing to be changed, told when it changes.
    fn is_paused(&mut self) -> bool {
        let is_paused = self.desk.as_ref().is_some_and(Desk::is_paused);
        if std::mem::replace(&mut self.situation.is_paused, is_paused) != is_paused {
            // What others did meanwhile is seen, whichever way it goes.
            self.resync_at = Instant::now();
            // Nothing could be done about what was held back, so there is all the time for it again.
            self.parts.brake.begin_anew();
            self.parts.metrics.paused.set(i64::from(is_paused));
            if is_paused {
                warn!(
                    "Paused by spec.paused of this node's NatNode: nothing in the kernel is changed until it is false"
                );
            } else {
                info!("No longer paused");
            }
        }
        is_paused
    }

    /// What the node should serve, and what of it is granted.
    fn plan(&self, node: &NodeFacts, programmed: &Ruleset) -> (Plan, Option<Grants>) {
        let granted = |pinholes: &_| Grants::of(pinholes, &self.config.node_name);
        let grants = self.parts.granting.as_ref().map(|granting| granting.pinholes.read(granted));
        let plan = self.parts.pods.read(|view| {
            desired::plan(&Known {
                pods: &view.pods,
                index: &view.index,
                policy: &self.config.policy,
                node,
                programmed,
                grants: grants.as_ref(),
            })
        });
        (plan, grants)
    }

    /// A turn of a paused node: only looks, and says what it sees.
    async fn rest(&mut self) -> Result<(), Trouble> {
        self.is_masquerading = false;
        let node = self.observe_node()?;
        let (observed, is_fresh) = self.observe_kernel().await?;
        self.has_read = is_fresh;
        let (plan, grants) = self.plan(&node, &observed.ruleset);
        let wanted = self.parts.masquerading.settle(plan.ruleset.clone(), &observed.ruleset);
        let is_as_wanted = diff(&observed.ruleset, &wanted).is_empty();
        let applied = Applied { observed, ..Applied::default() };
        self.watch_from(&applied).await;
        self.take_stock(&wanted, &applied);
        self.parts.metrics.in_sync.set(i64::from(is_as_wanted));
        self.state(&plan, &applied, grants.as_ref());
        self.retry = None;
        self.observed = Some(applied.observed);
        Ok(())
    }

    /// Leaves word of how the node stands.
    fn tell(&mut self) {
        let Some(desk) = &self.desk else { return };
        let identity = self.parts.pods.read(|view| {
            let metadata = view.node.as_ref().map(|node| node.metadata.clone()).unwrap_or_default();
            Identity { node_uid: metadata.uid, labels: metadata.labels }
        });
        let stand = Stand {
            is_programmed: self.is_masquerading,
            is_paused: self.situation.is_paused,
            trouble: self.situation.trouble.as_deref(),
        };
        desk.leave(Situation {
            identity,
            masquerade: self.parts.masquerading.shown(stand),
            addresses: self.parts.node.addresses(),
            own: self.parts.node.own().clone(),
            links: self.parts.linking.shown(),
            withheld: self.withheld.map(|withheld| withheld.removal),
            ..self.situation.clone()
        });
    }

    /// Says in each Pinhole what became of it.
    fn state(&self, plan: &Plan, applied: &Applied, grants: Option<&Grants>) {
        let (Some(granting), Some(grants)) = (&self.parts.granting, grants) else { return };
        let Config { node_name, policy, .. } = &self.config;
        let seen = statements::Seen {
            node_name,
            plan,
            applied,
            grants,
            disclose_holder: policy.disclose_holder,
            is_paused: self.situation.is_paused,
        };
        granting.reports.offer(granting.pinholes.read(|pinholes| statements::news(pinholes, &seen)));
    }

    /// Takes out what the kernel refused before. Finding such an entry among others takes many attempts, so it is
    /// tried again only when the kernel is read anew.
    fn take_hopeless_out(&mut self, wanted: &mut Ruleset) -> Vec<KernelRefused> {
        let still_wanted = |refused: &KernelRefused| wanted.entry(&refused.entry.key) == Some(&refused.entry);
        let hopeless: Vec<_> = std::mem::take(&mut self.refused).into_iter().filter(still_wanted).collect();
        for refused in &hopeless {
            wanted.remove(&refused.entry.key);
        }
        hopeless
    }

    /// What the node is, from its interfaces, the operator and its Node.
    fn observe_node(&mut self) -> Result<NodeFacts, Trouble> {
        self.refresh_addresses()?;
        let Some(node) = self.parts.pods.read(|view| view.node.clone()) else {
            return Err(Trouble::NoNode(self.config.node_name.clone()));
        };
        if self.parts.linking.settle(&node.metadata.labels) {
            // The rules of before are not those of these links, and that is no drift.
            self.resync_at = Instant::now();
            self.wanted = None;
        }
        self.need_networks();
        let (pods, all) = self.parts.pods.read(|view| {
            (desired::addresses(view.pods.values()), desired::holders(view.running()).into_keys().collect())
        });
        let facts = self.parts.node.facts(&node, pods, &all);
        let masquerade = self.parts.masquerading.wanted(&node.metadata, &facts);
        Ok(NodeFacts { masquerade, ..facts })
    }

    /// Where pods may leave with an address that is not theirs, it matters which networks other pods have.
    fn need_networks(&self) {
        let Parts { pods, granting, masquerading, node, .. } = &self.parts;
        let is_granted = |granting: &Granting| granting.pinholes.read(|pinholes| !pinholes.is_empty());
        let asks = pods.read(|view| !view.pods.is_empty());
        if asks || granting.as_ref().is_some_and(is_granted) || masquerading.may_be_wanted() {
            node.need_networks();
        }
    }

    /// Whether the addresses are others than before.
    fn refresh_addresses(&mut self) -> io::Result<bool> {
        let Some(own) = self.parts.node.refresh()? else { return Ok(false) };
        self.parts.pods.feed_addresses(own);
        Ok(true)
    }

    /// The rules in the kernel, and whether they were read just now.
    async fn observe_kernel(&mut self) -> Result<(Observed, bool), Trouble> {
        // What others changed meanwhile must not be taken for what we made.
        if Instant::now() < self.resync_at
            && !self.has_drifted().await
            && let Some(observed) = self.observed.take()
        {
            return Ok((observed, false));
        }
        let observed = self.parts.dataplane.read().await?;
        self.resync_at = Instant::now() + self.config.resync;
        Ok((observed, true))
    }

    /// What was put right although nothing that we know of had changed: somebody else had touched it.
    fn count_repairs(&mut self, differences: usize, wanted: &Ruleset, applied: &Applied) {
        let by = self.parts.vigil.take_culprits().join(", ");
        if self.wanted.as_ref() != Some(wanted) || applied.transactions.is_empty() {
            return;
        }
        let repairs = differences.max(1);
        self.parts.metrics.repairs.inc_by(u64::try_from(repairs).unwrap_or(u64::MAX));
        let by = if by.is_empty() { "unknown" } else { &by };
        warn!(
            repairs,
            by,
            "Repaired rules that something else on the node had changed or removed; let it leave alone what is named \
             after the resource prefix"
        );
    }

    /// Leaves to the connection table what must end there: flows of changed entries, and all of pods that are gone. While the
    /// brake holds, nobody is taken for gone: what is known of the pods is what it doubts.
    fn end_flows(&mut self, plan: &Plan, applied: &Applied, is_doubtful: bool) {
        let gone = if is_doubtful {
            BTreeSet::new()
        } else {
            let here =
                self.parts.pods.read(|view| view.running().map(|pod| pod.metadata.uid.clone()).collect());
            self.presence.gone(plan, &applied.changes, &here)
        };
        let Some(flows) = &self.parts.flows else { return };
        let mut changes = applied.changes.clone();
        if self.has_read && !applied.transactions.is_empty() {
            changes.extend(flows::put_right(&applied.observed.ruleset, &applied.changes));
        }
        flows.leave(changes, gone, &plan.terminating, &plan.udp_handover);
    }

    /// What the node's NatNode is to say of the kernel.
    fn take_stock(&mut self, wanted: &Ruleset, applied: &Applied) {
        let programmed = &applied.observed.ruleset;
        let is_missing = |entry: &&Entry| programmed.entry(&entry.key) != Some(*entry);
        let missing = wanted.entries().filter(is_missing).count() + applied.refused.len();
        self.is_masquerading = wanted.is_masqueraded_by(programmed);
        self.situation.entries = serving(programmed);
        self.situation.missing = missing;
        if !applied.changes.is_empty() {
            self.situation.changed = Some(claim_store::now());
        }
    }

    fn report_brake(&mut self, withheld: Option<Withheld>) {
        let removed = withheld.map_or(0, |withheld| withheld.removal.removed);
        self.parts.metrics.withheld.set(i64::try_from(removed).unwrap_or(i64::MAX));
        if let Some(Withheld { removal, until }) = withheld
            && self.withheld.is_none()
        {
            let seconds = until.saturating_duration_since(Instant::now().into_std()).as_secs();
            self.situation.brake = Some(claim_store::now().to_string());
            warn!(
                removed = removal.removed,
                present = removal.present,
                seconds,
                "The brake holds: this much would be removed at once, so nothing is removed for now. If it is meant, \
                 wait, or let it happen: kubectl pinhole resume --node NAME (with --nat-node), or restart the agent with \
                 --brake-grace=0s"
            );
        }
        if withheld.is_none() && self.withheld.is_some() {
            info!("The brake is released");
        }
        if withheld.is_none() {
            self.situation.brake = None;
        }
        self.withheld = withheld;
    }

    /// A turn reached the kernel. What it could not do is tried again.
    fn settle(&mut self, applied: Applied, took: Duration) {
        self.parts.metrics.applied(took);
        if !applied.failures.is_empty() {
            let reasons: Vec<_> = applied.failures.iter().map(ToString::to_string).collect();
            return self.fail(&reasons.join("; "));
        }
        self.retry = None;
        let missing = match (&self.withheld, applied.refused.first()) {
            (Some(Withheld { removal, .. }), _) => Some(format!("the brake holds back a removal: {removal}")),
            // One bad entry is its pod's trouble. All of them are the node's.
            (None, Some(refused)) if applied.observed.ruleset.is_empty() => {
                Some(format!("the kernel takes no entry at all: {}: {}", refused.entry, refused.error))
            }
            (None, _) => None,
        };
        self.parts.metrics.in_sync.set(i64::from(missing.is_none()));
        self.situation.trouble.clone_from(&missing);
        match missing {
            Some(reason) => self.parts.in_sync.missing(reason),
            None => self.parts.in_sync.met(),
        }
        self.observed = Some(applied.observed);
        self.refused = applied.refused;
    }

    fn fail(&mut self, reason: &str) {
        let pause = self.retry.map_or(FIRST_RETRY, |pause| LONGEST_RETRY.min(pause * 2));
        self.retry = Some(pause);
        // What is in the kernel now is anybody's guess, and what differs there is no drift.
        self.observed = None;
        self.wanted = None;
        self.parts.metrics.failures.inc();
        self.parts.metrics.in_sync.set(0);
        self.situation.trouble = Some(reason.to_owned());
        self.parts.in_sync.missing(reason);
        warn!(reason, retry_in = ?pause, "The node does not have the rules that it should; trying again");
    }

    /// Takes the rules as they are now as those that nobody should change.
    async fn watch_from(&mut self, applied: &Applied) {
        // Otherwise nothing is known that was not known before.
        if !applied.transactions.is_empty() || self.has_read {
            self.parts.vigil.begin(&applied.observed).await;
        }
    }
}

/// How many entries lead somewhere.
fn serving(ruleset: &Ruleset) -> usize {
    ruleset.entries().filter(|entry| entry.target.is_some()).count()
}

#[cfg(test)]
mod tests;
