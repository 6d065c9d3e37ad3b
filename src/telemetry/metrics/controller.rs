//! The metrics of the controller.

use std::collections::BTreeMap;

use k8s_openapi::jiff::SignedDuration;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Bounds of what pods wait for, in seconds: from what the clock of the API server can tell to an hour.
const WAIT_BUCKETS: [f64; 13] =
    [0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ChangeLabels {
    change: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct AcceptedLabels {
    accepted: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PoolLabels {
    pool: String,
    state: &'static str,
}

/// The metrics of the controller. Clones share the values.
#[derive(Clone, Debug)]
pub struct ControllerMetrics {
    leading: Gauge,
    claims: Family<StateLabels, Gauge>,
    changes: Family<ChangeLabels, Counter>,
    pools: Family<PoolLabels, Gauge>,
    searches: Counter,
    failures: Counter,
    pods: Family<AcceptedLabels, Gauge>,
    disputes: Gauge,
    grants: Histogram,
    programmings: Histogram,
}

impl Default for ControllerMetrics {
    fn default() -> Self {
        Self {
            leading: Gauge::default(),
            claims: Family::default(),
            changes: Family::default(),
            pools: Family::default(),
            searches: Counter::default(),
            failures: Counter::default(),
            pods: Family::default(),
            disputes: Gauge::default(),
            grants: Histogram::new(WAIT_BUCKETS),
            programmings: Histogram::new(WAIT_BUCKETS),
        }
    }
}

impl ControllerMetrics {
    /// Metrics that appear in `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("pinhole_controller");
        registry.register("leading", "Whether this replica leads", metrics.leading.clone());
        registry.register("claims", "Claims in each state, as the leader sees them", metrics.claims.clone());
        registry.register(
            "changes",
            "Claims that were brought into a state, deleted after their cooldown, given up as orphans because nothing came of the \
             request, or made for an object that had none",
            metrics.changes.clone(),
        );
        registry.register(
            "pool_ports",
            "Ports of each pool that can be claimed, are, are kept or no longer in it, as the leader sees them",
            metrics.pools.clone(),
        );
        registry.register(
            "port_searches",
            "Attempts to claim ports that were found for a pod; those that succeed are changes named Found",
            metrics.searches.clone(),
        );
        registry.register(
            "failures",
            "Claims, pools and masquerade policies that could not be read or written; each is tried again",
            metrics.failures.clone(),
        );
        metrics.register_pods(registry);
        metrics
    }

    fn register_pods(&self, registry: &mut Registry) {
        registry.register(
            "pods",
            "Pods that ask for ports by what the condition Accepted of their Pinholes says, as the leader sees them",
            self.pods.clone(),
        );
        registry.register(
            "disputes",
            "Pods, workloads and Pinholes that ask for a port which another holder has claimed, as the leader sees them",
            self.disputes.clone(),
        );
        registry.register(
            "grant_seconds",
            "Time until a pod was told its first ports, from its creation if it waits at its gate, else from its binding to a node; \
             without those that the webhook told while they were created. Up to a second too long, as these times are whole seconds",
            self.grants.clone(),
        );
        registry.register(
            "programmed_seconds",
            "Time until all nodes that serve a pod have said that they do, from when it had ports, a node and an address; without \
             standbys that take over. Up to a second too long, as these times are whole seconds, and with the wait for the address \
             where the kubelet does not set PodReadyToStartContainers",
            self.programmings.clone(),
        );
    }

    /// Says whether this replica leads. One that does not knows nothing of claims.
    pub fn leads(&self, leads: bool) {
        self.leading.set(leads.into());
        if !leads {
            self.claims.clear();
            self.pods.clear();
            self.disputes.set(0);
        }
    }

    /// Says how many claims are in each of `states`, every state among them, if only with none.
    pub fn claims(&self, counts: impl IntoIterator<Item = (&'static str, usize)>) {
        for (state, count) in counts {
            self.claims.get_or_create(&StateLabels { state }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Says how many ports of a pool are in each state, as `(state, ports)`.
    pub fn pool(&self, pool: &str, counts: impl IntoIterator<Item = (&'static str, u64)>) {
        for (state, count) in counts {
            let labels = PoolLabels { pool: pool.to_owned(), state };
            self.pools.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Says nothing of pools until it is known again: of one that is gone nothing stays.
    pub fn forget_pools(&self) {
        self.pools.clear();
    }

    /// Says how many pods stand in each way, as `(word of the condition, pods)`.
    pub fn pods(&self, standings: &BTreeMap<&'static str, usize>) {
        self.pods.clear();
        for (accepted, count) in standings {
            let gauge = self.pods.get_or_create(&AcceptedLabels { accepted });
            gauge.set(i64::try_from(*count).unwrap_or(i64::MAX));
        }
    }

    /// Says how many ask for a port that another holder has claimed.
    pub fn disputes(&self, count: usize) {
        self.disputes.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Notes how long a pod has waited for its ports.
    pub fn granted(&self, took: SignedDuration) {
        self.grants.observe(took.as_secs_f64());
    }

    /// Notes how long a pod with ports and an address has waited to be served.
    pub fn programmed(&self, took: SignedDuration) {
        self.programmings.observe(took.as_secs_f64());
    }

    /// Counts a change.
    pub fn changed(&self, change: &'static str) {
        self.changes.get_or_create(&ChangeLabels { change }).inc();
    }

    /// Counts an attempt to claim ports that were found.
    pub fn searched(&self) {
        self.searches.inc();
    }

    /// Counts a failure.
    pub fn failed(&self) {
        self.failures.inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics;

    #[test]
    fn the_names_are_the_contract() {
        let mut registry = metrics::registry();
        let controller = ControllerMetrics::register(&mut registry);
        controller.leads(true);
        controller.claims([("Bound", 2), ("Reserved", 0)]);
        controller.changed("Bound");
        controller.failed();
        controller.pods(&[("Granted", 3)].into());
        controller.pods(&[("Granted", 2), ("NoFreePort", 1)].into());
        controller.disputes(4);
        controller.pool("edge", [("free", 7)]);
        controller.granted(SignedDuration::from_millis(1500));
        controller.programmed(SignedDuration::from_secs(4));
        let text = metrics::encode(&registry).unwrap();
        for line in [
            "pinhole_controller_leading 1",
            r#"pinhole_controller_claims{state="Bound"} 2"#,
            r#"pinhole_controller_claims{state="Reserved"} 0"#,
            r#"pinhole_controller_changes_total{change="Bound"} 1"#,
            "pinhole_controller_failures_total 1",
            r#"pinhole_controller_pods{accepted="Granted"} 2"#,
            r#"pinhole_controller_pods{accepted="NoFreePort"} 1"#,
            "pinhole_controller_disputes 4",
            r#"pinhole_controller_pool_ports{pool="edge",state="free"} 7"#,
            "pinhole_controller_grant_seconds_sum 1.5",
            r#"pinhole_controller_grant_seconds_bucket{le="1.0"} 0"#,
            r#"pinhole_controller_grant_seconds_bucket{le="2.0"} 1"#,
            "pinhole_controller_programmed_seconds_sum 4.0",
            r#"pinhole_controller_programmed_seconds_bucket{le="5.0"} 1"#,
        ] {
            assert!(text.lines().any(|written| written == line), "{line} is not in\n{text}");
        }
        controller.leads(false);
        let text = metrics::encode(&registry).unwrap();
        assert!(
            !text.contains("claims{") && !text.contains("pods{"),
            "who does not lead counts nothing\n{text}"
        );
        assert!(text.contains("pinhole_controller_disputes 0"), "{text}");
    }
}
