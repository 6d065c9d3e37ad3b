//! The metrics of what a process watches in the cluster.

use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResourceLabels {
    resource: &'static str,
}

/// The metrics of watches. Clones share the values.
#[derive(Clone, Debug, Default)]
pub struct WatchMetrics {
    lists: Family<ResourceLabels, Counter>,
    changes: Family<ResourceLabels, Counter>,
    failures: Family<ResourceLabels, Counter>,
    last_news: Family<ResourceLabels, Gauge<f64, AtomicU64>>,
}

impl WatchMetrics {
    /// Metrics that appear in `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("pinhole_watch");
        registry.register("lists", "Complete lists taken from the API server", metrics.lists.clone());
        registry.register("changes", "Single changes taken from the API server", metrics.changes.clone());
        registry.register(
            "failures",
            "Lists and watches that the API server refused or that broke off; each is tried again",
            metrics.failures.clone(),
        );
        registry.register(
            "last_news_timestamp_seconds",
            "When the last list or change arrived; long ago is normal for what rarely changes",
            metrics.last_news.clone(),
        );
        metrics
    }

    /// Counts a complete list.
    pub fn listed(&self, resource: &'static str) {
        self.lists.get_or_create(&ResourceLabels { resource }).inc();
        self.news(resource);
    }

    /// Counts a change.
    pub fn changed(&self, resource: &'static str) {
        self.changes.get_or_create(&ResourceLabels { resource }).inc();
        self.news(resource);
    }

    /// Counts a failure.
    pub fn failed(&self, resource: &'static str) {
        self.failures.get_or_create(&ResourceLabels { resource }).inc();
    }

    fn news(&self, resource: &'static str) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.last_news.get_or_create(&ResourceLabels { resource }).set(now.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics;

    #[test]
    fn the_names_are_the_contract() {
        let mut registry = metrics::registry();
        let watch = WatchMetrics::register(&mut registry);
        watch.listed("pods");
        watch.changed("pods");
        watch.failed("nodes");
        let text = metrics::encode(&registry).unwrap();
        for line in [
            r#"pinhole_watch_lists_total{resource="pods"} 1"#,
            r#"pinhole_watch_changes_total{resource="pods"} 1"#,
            r#"pinhole_watch_failures_total{resource="nodes"} 1"#,
        ] {
            assert!(text.lines().any(|written| written == line), "{line} is not in\n{text}");
        }
        assert!(text.contains(r#"pinhole_watch_last_news_timestamp_seconds{resource="pods"} 1"#), "{text}");
        assert!(!text.contains(r#"last_news_timestamp_seconds{resource="nodes"}"#), "a failure is no news");
    }
}
