//! The metrics of the controller.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ChangeLabels {
    change: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PoolLabels {
    pool: String,
    state: &'static str,
}

/// The metrics of the controller. Clones share the values.
#[derive(Clone, Debug, Default)]
pub struct ControllerMetrics {
    leading: Gauge,
    claims: Family<StateLabels, Gauge>,
    changes: Family<ChangeLabels, Counter>,
    pools: Family<PoolLabels, Gauge>,
    searches: Counter,
    failures: Counter,
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
            "Claims that were brought into a state, deleted, or made for an object that had none",
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
        metrics
    }

    /// Says whether this replica leads. One that does not knows nothing of claims.
    pub fn leads(&self, leads: bool) {
        self.leading.set(leads.into());
        if !leads {
            self.claims.clear();
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
        let text = metrics::encode(&registry).unwrap();
        for line in [
            "pinhole_controller_leading 1",
            r#"pinhole_controller_claims{state="Bound"} 2"#,
            r#"pinhole_controller_claims{state="Reserved"} 0"#,
            r#"pinhole_controller_changes_total{change="Bound"} 1"#,
            "pinhole_controller_failures_total 1",
        ] {
            assert!(text.lines().any(|written| written == line), "{line} is not in\n{text}");
        }
        controller.leads(false);
        assert!(!metrics::encode(&registry).unwrap().contains("claims{"), "who does not lead counts nothing");
    }
}
