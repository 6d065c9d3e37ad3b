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
use crate::agent::desired::Unserved;
use crate::agent::entries::Refusals;
use crate::api::object::Kind;
use crate::cluster::events::Events;
use crate::cluster::events::ObjectEvent;
use crate::cluster::events::Reason;
use crate::cluster::events::Regarding;
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
    refusals: Refusals,
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
        let (told, conditions, refusals) = (HashMap::new(), Vec::new(), Refusals::default());
        Self { node_name, disclose_holder, metrics, events, told, conditions, refusals }
    }

    /// Where it leaves what the kernel refused.
    pub fn refusals(&self) -> Refusals {
        self.refusals.clone()
    }

    /// Reports what was planned and what became of it.
    pub fn report(&mut self, plan: &Plan, applied: &Applied) {
        self.count(plan, applied);
        self.refusals.leave(&applied.refused);
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
        for by in ["admission", "claims", "node"] {
            let refused = plan.unserved.iter().filter(|unserved| unserved.by.name() == by);
            self.metrics.unserved(by, refused.count());
        }
        self.metrics.unserved("kernel", applied.refused.len());
        self.metrics.restores.inc_by(u64::try_from(applied.transactions.len()).unwrap_or(u64::MAX));
    }

    fn tell_of_trouble(&mut self, troubles: Vec<ObjectEvent>) {
        let mut still = HashMap::new();
        for event in troubles {
            let key = (event.regarding.uid.to_string(), event.reason);
            let known = self.told.get(&key).filter(|told| told.note == event.note);
            if known.is_none() {
                warn!(object = %event.regarding, reason = event.reason.name(), problem = event.note, "Not served");
            }
            let note = event.note.clone();
            let offered = known.is_some_and(|told| told.offered) || self.offer(event);
            still.insert(key, Told { note, offered });
        }
        self.told = still;
    }

    /// Whether there was room, or nobody to tell.
    fn offer(&self, event: ObjectEvent) -> bool {
        let offered = self.events.as_ref().is_none_or(|events| events.offer(event).is_ok());
        if !offered {
            self.metrics.event("dropped");
        }
        offered
    }
}

fn log_changes(changes: &[Change]) {
    for change in changes.iter().take(LOGGED_CHANGES) {
        info!(%change, "Programmed");
    }
    for change in changes.iter().skip(LOGGED_CHANGES) {
        debug!(%change, "Programmed");
    }
    let unlisted = changes.len().saturating_sub(LOGGED_CHANGES);
    if 0 < unlisted {
        info!(changes = unlisted, "Programmed more; the debug level lists all");
    }
}

/// What an Event is about.
fn regarding(plan: &Plan, name: &ObjectName, uid: &str) -> Regarding {
    let kind = if plan.pinholes.contains(uid) { Kind::Pinhole } else { Kind::Pod };
    Regarding::new(kind, name.clone(), uid)
}

/// What pods hear of ports that lead to them now: one Event for each pod.
fn programmed(changes: &[Change], plan: &Plan, node_name: &str) -> Vec<ObjectEvent> {
    let mut by_owner: BTreeMap<&Owner, Vec<String>> = BTreeMap::new();
    for change in changes {
        let (Change::Added(entry) | Change::Replaced { after: entry, .. }) = change else { continue };
        if entry.target.is_some() {
            by_owner.entry(&entry.owner).or_default().push(entry.to_string());
        }
    }
    let event = |(owner, entries): (&Owner, Vec<String>)| {
        let pod = plan.pods.get(owner)?;
        Some(ObjectEvent {
            regarding: regarding(plan, &pod.name, &pod.uid),
            reason: Reason::Programmed,
            note: format!("{} on {node_name}", entries.join(", ")),
        })
    };
    by_owner.into_iter().filter_map(event).collect()
}

/// What pods hear of ports that do not lead to them: one Event for each pod and reason.
fn troubles(
    plan: &Plan,
    refused: &[KernelRefused],
    disclose_holder: bool,
    node_name: &str,
) -> Vec<ObjectEvent> {
    let mut notes: BTreeMap<(&str, Reason), (&ObjectName, Vec<String>)> = BTreeMap::new();
    let mut add = |uid, reason, pod, note| {
        notes.entry((uid, reason)).or_insert_with(|| (pod, Vec::new())).1.push(note);
    };
    for loser in &plan.losers {
        add(loser.uid.as_str(), Reason::PortTaken, &loser.pod, loser.reason(disclose_holder));
    }
    for Unserved { pod, uid, by, problem } in &plan.unserved {
        add(uid.as_str(), by.reason(), pod, problem.clone());
    }
    for KernelRefused { entry, error } in refused {
        if let Some(pod) = plan.pods.get(&entry.owner) {
            let note = format!("{entry}: the kernel of {node_name} does not take it: {error}");
            add(pod.uid.as_str(), Reason::NotProgrammed, &pod.name, note);
        }
    }
    notes
        .into_iter()
        .map(|((uid, reason), (pod, notes))| ObjectEvent {
            regarding: regarding(plan, pod, uid),
            reason,
            note: notes.join("; "),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::desired::Pod;
    use crate::agent::desired::RefusedBy;
    use crate::model::mapping::Address;
    use crate::model::mapping::Mapping;
    use crate::model::port::Port;
    use crate::model::port::PortRange;
    use crate::model::port::Protocol;
    use crate::ruleset::entry::Entry;
    use crate::ruleset::entry::Key;
    use crate::ruleset::entry::Target;
    use crate::ruleset::sources::Sources;
    use crate::telemetry::metrics;

    fn owner() -> Owner {
        Owner::new(&ObjectName::new("mail", "mx"), "u1")
    }

    fn entry(port: u16, is_served: bool) -> Entry {
        let first = Port::new(port).unwrap();
        let key = Key {
            external: "203.0.113.7".parse().unwrap(),
            protocol: Protocol::Tcp,
            ports: PortRange::single(first),
        };
        let target = is_served.then(|| Target { ip: "10.244.1.9".parse().unwrap(), first });
        Entry { key, target, allowed_sources: Sources::default(), owner: owner() }
    }

    fn plan() -> Plan {
        let pod = Pod { name: ObjectName::new("mail", "mx"), uid: "u1".into(), ips: Vec::new() };
        Plan { pods: [(owner(), pod)].into(), ..Plan::default() }
    }

    fn refused(problem: &str) -> Unserved {
        Unserved {
            pod: ObjectName::new("mail", "mx"),
            uid: "u1".into(),
            by: RefusedBy::Admission,
            problem: problem.into(),
        }
    }

    fn reporter() -> (Reporter, tokio::sync::mpsc::Receiver<ObjectEvent>) {
        let (events, event_rx) = crate::cluster::events::channel();
        let metrics = AgentMetrics::register(&mut metrics::registry());
        (Reporter::new("node-1".into(), true, metrics, Some(events)), event_rx)
    }

    #[test]
    fn a_served_pod_hears_of_all_its_ports_at_once_and_not_of_reserved_ones() {
        let changes = [
            Change::Added(entry(25, true)),
            Change::Replaced { before: entry(143, false), after: entry(143, true) },
            Change::Added(entry(587, false)),
            Change::Removed(entry(993, true)),
        ];
        let notes: Vec<_> =
            programmed(&changes, &plan(), "node-1").into_iter().map(|event| event.note).collect();
        assert_eq!(
            notes,
            ["203.0.113.7:25/tcp -> 10.244.1.9:25, 203.0.113.7:143/tcp -> 10.244.1.9:143 on node-1"]
        );
    }

    #[test]
    fn an_entry_that_the_kernel_refuses_is_told_to_its_pod() {
        let refused = [KernelRefused { entry: entry(25, true), error: "no sctp here".into() }];
        let events = troubles(&plan(), &refused, true, "node-1");
        assert_eq!(
            events[0].note,
            "203.0.113.7:25/tcp -> 10.244.1.9:25: the kernel of node-1 does not take it: no sctp here"
        );
        assert_eq!(events[0].reason, Reason::NotProgrammed);
    }

    #[test]
    fn what_the_controller_refuses_is_told_by_the_word_of_its_condition() {
        let taken = Unserved { by: RefusedBy::Claims(Reason::PortTaken), ..refused("80/tcp: is claimed") };
        let events = troubles(&Plan { unserved: vec![taken, refused("a")], ..plan() }, &[], true, "node-1");
        let said: Vec<_> = events.iter().map(|event| (event.reason, event.note.as_str())).collect();
        assert_eq!(said, [(Reason::PortTaken, "80/tcp: is claimed"), (Reason::NotProgrammed, "a")]);
    }

    #[test]
    fn r16_trouble_is_told_when_it_is_new_or_another_and_again_after_it_was_gone() {
        let (mut reporter, mut event_rx) = reporter();
        let mut told = |unserved: Vec<Unserved>| {
            reporter.report(&Plan { unserved, ..plan() }, &Applied::default());
            std::iter::from_fn(|| event_rx.try_recv().ok().map(|event| event.note)).collect::<Vec<_>>()
        };
        assert_eq!(told(vec![refused("a")]), ["a"]);
        assert_eq!(told(vec![refused("a")]), Vec::<String>::new());
        assert_eq!(told(vec![refused("a"), refused("b")]), ["a; b"]);
        assert_eq!(told(Vec::new()), Vec::<String>::new());
        assert_eq!(told(vec![refused("a")]), ["a"]);
    }

    #[test]
    fn trouble_that_nobody_could_be_told_of_is_offered_again() {
        let (mut reporter, mut event_rx) = reporter();
        let full = (0..1000).map(|number| Unserved { uid: number.to_string(), ..refused("full") });
        reporter.report(&Plan { unserved: full.collect(), ..plan() }, &Applied::default());
        let mut count = || std::iter::from_fn(|| event_rx.try_recv().ok()).count();
        let first = count();
        assert!(first < 1000, "{first}");
        let full = (0..1000).map(|number| Unserved { uid: number.to_string(), ..refused("full") });
        reporter.report(&Plan { unserved: full.collect(), ..plan() }, &Applied::default());
        assert_eq!(count(), first.min(1000 - first), "those that found no room, and only those");
    }

    #[test]
    fn a_winner_in_another_namespace_is_told_only_where_it_may_be() {
        let port = Port::new(80).unwrap();
        let mapping = Mapping::new(Address::Node, Protocol::Tcp, PortRange::single(port), port).unwrap();
        let loser = crate::ruleset::election::Loser {
            pod: ObjectName::new("mail", "mx"),
            uid: "u1".into(),
            mapping: mapping.clone(),
            winner: crate::ruleset::election::Winner {
                holder: crate::model::holder::Holder::new("Pod", ObjectName::new("games", "x")),
                pod: ObjectName::new("games", "x"),
                uid: "u2".into(),
                mapping,
            },
        };
        let plan = Plan { losers: vec![loser], ..plan() };
        let note = |disclose| troubles(&plan, &[], disclose, "node-1").remove(0).note;
        assert!(note(true).contains("for Pod games/x;"), "{}", note(true));
        assert!(note(false).contains("for an object in another namespace;"), "{}", note(false));
    }
}
