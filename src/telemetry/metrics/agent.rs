//! The agent's metrics.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::telemetry::metrics::DURATION_BUCKETS;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByLabels {
    by: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

/// All metrics of the agent. Clones share the values.
#[derive(Clone, Debug)]
pub struct AgentMetrics {
    entries: Family<StateLabels, Gauge>,
    unserved: Family<ByLabels, Gauge>,
    conditions: Family<KindLabels, Gauge>,
    events: Family<OutcomeLabels, Counter>,
    durations: Histogram,
    /// 1 when the kernel has exactly what the node should serve.
    pub in_sync: Gauge,
    /// Transactions made.
    pub restores: Counter,
    /// Readings or changes of the kernel that failed.
    pub failures: Counter,
    /// Entries that somebody else had changed or removed, and that were put right.
    pub repairs: Counter,
    /// Entries that the brake keeps although nobody asks for them any more; 0 when it does not hold.
    pub withheld: Gauge,
    /// Requests for ports that another pod has.
    pub losers: Gauge,
    /// 1 while an operator wants nothing to be changed on the node.
    pub paused: Gauge,
    /// 1 while pods have fixed addresses and nobody knows which networks other nodes' pods have.
    pub unknown_cluster: Gauge,
    /// Deletions made in the connection table.
    pub flows_ended: Counter,
    /// Passes over the connection table that failed.
    pub flow_failures: Counter,
}

impl AgentMetrics {
    /// Adds the agent's metrics to the process's.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            entries: Family::default(),
            unserved: Family::default(),
            conditions: Family::default(),
            events: Family::default(),
            durations: Histogram::new(DURATION_BUCKETS),
            in_sync: Gauge::default(),
            restores: Counter::default(),
            failures: Counter::default(),
            repairs: Counter::default(),
            withheld: Gauge::default(),
            losers: Gauge::default(),
            paused: Gauge::default(),
            unknown_cluster: Gauge::default(),
            flows_ended: Counter::default(),
            flow_failures: Counter::default(),
        };
        metrics.register_state(registry.sub_registry_with_prefix("pinhole_agent"));
        metrics.register_work(registry.sub_registry_with_prefix("pinhole_agent"));
        metrics
    }

    /// How many entries lead to a pod, and how many only reserve their ports.
    pub fn entries(&self, programmed: usize, reserved: usize) {
        for (state, count) in [("programmed", programmed), ("reserved", reserved)] {
            self.entries.get_or_create(&StateLabels { state }).set(gauge(count));
        }
    }

    /// How many pods are not served because of this one's refusal.
    pub fn unserved(&self, by: &'static str, count: usize) {
        self.unserved.get_or_create(&ByLabels { by }).set(gauge(count));
    }

    /// Whether this condition keeps entries from working.
    pub fn condition(&self, kind: &'static str, holds: bool) {
        self.conditions.get_or_create(&KindLabels { kind }).set(i64::from(holds));
    }

    /// Counts an Event that was written, given up or dropped.
    pub fn event(&self, outcome: &'static str) {
        self.events.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// Notes how long it took to bring the kernel to what it should be.
    pub fn applied(&self, took: Duration) {
        self.durations.observe(took.as_secs_f64());
    }

    fn register_state(&self, registry: &mut Registry) {
        registry.register(
            "in_sync",
            "1 when the kernel has exactly what the node should serve",
            self.in_sync.clone(),
        );
        registry.register("entries", "Entries in the kernel", self.entries.clone());
        registry.register(
            "paused",
            "1 while an operator wants nothing to be changed on the node",
            self.paused.clone(),
        );
        registry.register(
            "unknown_cluster",
            "1 while pods have fixed addresses and nobody knows which networks the pods of other nodes have",
            self.unknown_cluster.clone(),
        );
        registry.register("losers", "Requests for ports that another pod has", self.losers.clone());
        registry.register(
            "unserved",
            "Requests that the rules of admission, the claims of others, the node or the kernel refuse",
            self.unserved.clone(),
        );
        registry.register(
            "withheld_removals",
            "Entries that the brake keeps although nobody asks for them any more",
            self.withheld.clone(),
        );
        registry.register(
            "condition",
            "1 while this condition keeps programmed entries from working",
            self.conditions.clone(),
        );
    }

    fn register_work(&self, registry: &mut Registry) {
        registry.register("restores", "Transactions made", self.restores.clone());
        registry.register(
            "apply_duration_seconds",
            "Time to bring the kernel to what it should be",
            self.durations.clone(),
        );
        registry.register("failures", "Readings or changes of the kernel that failed", self.failures.clone());
        registry.register(
            "repairs",
            "Entries that others had changed and that were put right",
            self.repairs.clone(),
        );
        registry.register("events", "Events by what became of them", self.events.clone());
        registry.register(
            "flow_deletions",
            "Deletions made in the connection table",
            self.flows_ended.clone(),
        );
        registry.register(
            "flow_failures",
            "Passes over the connection table that failed",
            self.flow_failures.clone(),
        );
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics;

    #[test]
    fn the_names_are_the_contract() {
        let mut registry = metrics::registry();
        let agent = AgentMetrics::register(&mut registry);
        agent.entries(3, 1);
        agent.unserved("admission", 2);
        agent.condition("ForwardBlocked", true);
        agent.event("written");
        agent.applied(Duration::from_millis(30));
        agent.restores.inc();
        agent.withheld.set(40);
        let text = metrics::encode(&registry).unwrap();
        for line in [
            "pinhole_agent_in_sync 0",
            r#"pinhole_agent_entries{state="programmed"} 3"#,
            r#"pinhole_agent_entries{state="reserved"} 1"#,
            "pinhole_agent_losers 0",
            "pinhole_agent_paused 0",
            "pinhole_agent_unknown_cluster 0",
            r#"pinhole_agent_unserved{by="admission"} 2"#,
            "pinhole_agent_withheld_removals 40",
            r#"pinhole_agent_condition{kind="ForwardBlocked"} 1"#,
            "pinhole_agent_restores_total 1",
            r#"pinhole_agent_apply_duration_seconds_bucket{le="0.05"} 1"#,
            "pinhole_agent_failures_total 0",
            "pinhole_agent_repairs_total 0",
            r#"pinhole_agent_events_total{outcome="written"} 1"#,
            "pinhole_agent_flow_deletions_total 0",
            "pinhole_agent_flow_failures_total 0",
        ] {
            assert!(text.lines().any(|written| written == line), "{line} is not in\n{text}");
        }
    }
}
