//! Tells what became of every pod's ports: in Events to its owner, in logs and metrics to the operator.
//!
//! A pod hears that its ports lead to it when the kernel changed so, and why they do not when that is new. Nothing is
//! said again at the next resync, and nothing is written when nothing changed (R16).

use std::collections::BTreeMap;
use std::collections::HashMap;

use tracing::debug;
use tracing::info;
use tracing::warn;

use crate::agent::desired::Plan;
use crate::agent::desired::RefusedBy;
use crate::agent::desired::Unserved;
use crate::cluster::events::Events;
use crate::cluster::events::PodEvent;
use crate::cluster::events::Reason;
use crate::dataplane::Applied;
use crate::dataplane::KernelRefused;
use crate::dataplane::condition::Condition;
use crate::model::holder::ObjectName;
use crate::ruleset::diff::Change;
use crate::ruleset::owner::Owner;
use crate::telemetry::metrics::agent::AgentMetrics;

/// How many changes of one turn are logged one by one; a cold start can have thousands.
const LOGGED_CHANGES: usize = 50;

/// Tells what became of every pod's ports.
#[derive(Debug)]
pub struct Reporter {
    node_name: String,
    disclose_holder: bool,
    metrics: AgentMetrics,
    events: Option<Events>,
    told: HashMap<(String, Reason), Told>,
    conditions: Vec<Condition>,
}

#[derive(Debug, PartialEq, Eq)]
struct Told {
    note: String,
    /// Whether there was room for the Event; if not, it is offered again.
    offered: bool,
}

impl Reporter {
    /// Reports about this node. Without a place to offer Events, only in logs and metrics.
    pub fn new(
        node_name: String,
        disclose_holder: bool,
        metrics: AgentMetrics,
        events: Option<Events>,
    ) -> Self {
        Self { node_name, disclose_holder, metrics, events, told: HashMap::new(), conditions: Vec::new() }
    }

    /// Reports what was planned and what became of it.
    pub fn report(&mut self, plan: &Plan, applied: &Applied) {
        self.count(plan, applied);
        log_changes(&applied.changes);
        for event in programmed(&applied.changes, plan, &self.node_name) {
            self.offer(event);
        }
        self.tell_of_trouble(troubles(plan, &applied.refused, self.disclose_holder, &self.node_name));
    }

    /// Reports what keeps entries from working, when that changed.
    pub fn report_conditions(&mut self, conditions: Vec<Condition>) {
        for condition in &self.conditions {
            self.metrics.condition(condition.kind.name(), false);
        }
        for condition in &conditions {
            self.metrics.condition(condition.kind.name(), true);
            if !self.conditions.contains(condition) {
                let Condition { kind, message, fix } = condition;
                warn!(condition = kind.name(), found = message, fix, "Programmed ports may not be reachable");
            }
        }
        for gone in self.conditions.iter().filter(|known| !conditions.contains(known)) {
            info!(
                condition = gone.kind.name(),
                found = gone.message,
                "No longer in the way of programmed ports"
            );
        }
        self.conditions = conditions;
    }

    fn count(&self, plan: &Plan, applied: &Applied) {
        let ruleset = &applied.observed.ruleset;
        let programmed = ruleset.entries().filter(|entry| entry.target.is_some()).count();
        self.metrics.entries(programmed, ruleset.len() - programmed);
        self.metrics.losers.set(i64::try_from(plan.losers.len()).unwrap_or(i64::MAX));
        let refused = |by| plan.unserved.iter().filter(|unserved| unserved.by == by).count();
        self.metrics.unserved("admission", refused(RefusedBy::Admission));
        self.metrics.unserved("node", refused(RefusedBy::Node));
        self.metrics.unserved("kernel", applied.refused.len());
        self.metrics.restores.inc_by(u64::try_from(applied.transactions.len()).unwrap_or(u64::MAX));
    }

    fn tell_of_trouble(&mut self, troubles: Vec<PodEvent>) {
        let mut still = HashMap::new();
        for event in troubles {
            let key = (event.uid.clone(), event.reason);
            let known = self.told.get(&key).filter(|told| told.note == event.note);
            if known.is_none() {
                warn!(pod = %event.pod, reason = event.reason.name(), problem = event.note, "Not served");
            }
            let note = event.note.clone();
            let offered = known.is_some_and(|told| told.offered) || self.offer(event);
            still.insert(key, Told { note, offered });
        }
        self.told = still;
    }

    /// Whether there was room, or nobody to tell.
    fn offer(&self, event: PodEvent) -> bool {
        let offered = self.events.as_ref().is_none_or(|events| events.offer(event).is_ok());
        if !offered {
            self.metrics.event("dropped");
        }
        offered
    }
}

fn log_changes(changes: &[Change]) {
    for change in changes.iter().take(LOGGED_CHANGES) {
        info!("Programmed: {change}");
    }
    for change in changes.iter().skip(LOGGED_CHANGES) {
        debug!("Programmed: {change}");
    }
    let unlisted = changes.len().saturating_sub(LOGGED_CHANGES);
    if 0 < unlisted {
        info!(changes = unlisted, "Programmed more; the debug level lists all");
    }
}

/// What pods hear of ports that lead to them now: one Event for each pod.
fn programmed(changes: &[Change], plan: &Plan, node_name: &str) -> Vec<PodEvent> {
    let mut by_owner: BTreeMap<&Owner, Vec<String>> = BTreeMap::new();
    for change in changes {
        let (Change::Added(entry) | Change::Replaced { after: entry, .. }) = change else { continue };
        if entry.target.is_some() {
            by_owner.entry(&entry.owner).or_default().push(entry.to_string());
        }
    }
    let event = |(owner, entries): (&Owner, Vec<String>)| {
        let pod = plan.pods.get(owner)?;
        Some(PodEvent {
            pod: pod.name.clone(),
            uid: pod.uid.clone(),
            reason: Reason::Programmed,
            note: format!("{} on {node_name}", entries.join(", ")),
        })
    };
    by_owner.into_iter().filter_map(event).collect()
}

/// What pods hear of ports that do not lead to them: one Event for each pod and reason.
fn troubles(plan: &Plan, refused: &[KernelRefused], disclose_holder: bool, node_name: &str) -> Vec<PodEvent> {
    let mut notes: BTreeMap<(&str, Reason), (&ObjectName, Vec<String>)> = BTreeMap::new();
    let mut add = |uid, reason, pod, note| {
        notes.entry((uid, reason)).or_insert_with(|| (pod, Vec::new())).1.push(note);
    };
    for loser in &plan.losers {
        add(loser.uid.as_str(), Reason::PortTaken, &loser.pod, loser.reason(disclose_holder));
    }
    for Unserved { pod, uid, by: _, problem } in &plan.unserved {
        add(uid.as_str(), Reason::NotProgrammed, pod, problem.clone());
    }
    for KernelRefused { entry, error } in refused {
        if let Some(pod) = plan.pods.get(&entry.owner) {
            let note = format!("{entry}: the kernel of {node_name} does not take it: {error}");
            add(pod.uid.as_str(), Reason::NotProgrammed, &pod.name, note);
        }
    }
    notes
        .into_iter()
        .map(|((uid, reason), (pod, notes))| PodEvent {
            pod: pod.clone(),
            uid: uid.to_owned(),
            reason,
            note: notes.join("; "),
        })
        .collect()
}
