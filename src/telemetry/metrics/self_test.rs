//! The metrics of the controller's self-test.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

/// The metrics of the self-test. Clones share the values.
#[derive(Clone, Debug, Default)]
pub struct SelfTestMetrics {
    passed: Gauge,
    tries: Family<OutcomeLabels, Counter>,
}

impl SelfTestMetrics {
    /// Metrics that appear in `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("pinhole_controller");
        registry.register(
            "self_test_passed",
            "Whether the webhook decided in the last self-test of the leader; 0 on who does not lead",
            metrics.passed.clone(),
        );
        registry.register(
            "self_tests",
            "Self-tests of the webhook by what they have shown",
            metrics.tries.clone(),
        );
        metrics
    }

    /// Counts a try.
    pub fn tried(&self, outcome: &'static str, is_passed: bool) {
        self.tries.get_or_create(&OutcomeLabels { outcome }).inc();
        self.passed.set(is_passed.into());
    }

    /// Who does not lead proves nothing.
    pub fn not_leading(&self) {
        self.passed.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics;

    #[test]
    fn the_names_are_the_contract() {
        let mut registry = metrics::registry();
        let tests = SelfTestMetrics::register(&mut registry);
        tests.tried("decided", true);
        let text = metrics::encode(&registry).unwrap();
        for line in [
            "pinhole_controller_self_test_passed 1",
            r#"pinhole_controller_self_tests_total{outcome="decided"} 1"#,
        ] {
            assert!(text.lines().any(|written| written == line), "{line} is not in\n{text}");
        }
        tests.not_leading();
        assert!(metrics::encode(&registry).unwrap().contains("pinhole_controller_self_test_passed 0"));
    }
}
