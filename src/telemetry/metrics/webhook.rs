//! The webhook's metrics.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::EncodeMetric;
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::telemetry::metrics::DURATION_BUCKETS;

/// Which kind of call, how it ended, and for a refusal by which rule.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    endpoint: &'static str,
    decision: &'static str,
    rule: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct EndpointLabels {
    endpoint: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

/// Adds the size of the webhook's index, read whenever the metrics are read.
pub fn register_index(registry: &mut Registry, held_ports: impl Fn() -> usize + Send + Sync + 'static) {
    registry.register_collector(Box::new(IndexSize { held_ports }));
}

struct IndexSize<F> {
    held_ports: F,
}

impl<F> fmt::Debug for IndexSize<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IndexSize")
    }
}

impl<F: Fn() -> usize + Send + Sync + 'static> Collector for IndexSize<F> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let held_ports = i64::try_from((self.held_ports)()).unwrap_or(i64::MAX);
        ConstGauge::new(held_ports).encode(encoder.encode_descriptor(
            "pinhole_index_held_ports",
            "External ports that known objects hold",
            None,
            MetricType::Gauge,
        )?)
    }
}

/// All metrics of the webhook. Clones share the values.
#[derive(Clone, Debug)]
pub struct WebhookMetrics {
    requests: Family<RequestLabels, Counter>,
    durations: Family<EndpointLabels, Histogram>,
    shed: Family<ReasonLabels, Counter>,
    closed: Family<ReasonLabels, Counter>,
    /// Calls being answered now.
    pub in_flight: Gauge,
    /// Bytes of request bodies held now.
    pub body_bytes: Gauge,
    /// Panics caught; each became an HTTP 500.
    pub panics: Counter,
    /// Open connections.
    pub connections: Gauge,
    /// TLS handshakes that did not complete.
    pub handshake_failures: Counter,
    /// When the certificate that is being served expires.
    pub certificate_not_after: Gauge<f64, AtomicU64>,
    /// Certificates put in service since the start.
    pub certificate_reloads: Counter,
    /// Certificate pairs that were refused; the one before stays in service.
    pub certificate_reload_failures: Counter,
}

impl WebhookMetrics {
    /// Adds the webhook's metrics to the process's.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(DURATION_BUCKETS)),
            shed: Family::default(),
            closed: Family::default(),
            in_flight: Gauge::default(),
            body_bytes: Gauge::default(),
            panics: Counter::default(),
            connections: Gauge::default(),
            handshake_failures: Counter::default(),
            certificate_not_after: Gauge::default(),
            certificate_reloads: Counter::default(),
            certificate_reload_failures: Counter::default(),
        };
        metrics.register_requests(registry.sub_registry_with_prefix("pinhole_webhook"));
        metrics.register_certificate(registry.sub_registry_with_prefix("pinhole_certificate"));
        metrics
    }

    /// Counts an answered call. `rule` names the first rule broken, or is empty.
    pub fn answered(
        &self,
        endpoint: &'static str,
        decision: &'static str,
        rule: &'static str,
        took: Duration,
    ) {
        self.requests.get_or_create(&RequestLabels { endpoint, decision, rule }).inc();
        self.durations.get_or_create(&EndpointLabels { endpoint }).observe(took.as_secs_f64());
    }

    /// Counts a call that was sent away to come back later.
    pub fn shed(&self, reason: &'static str) {
        self.shed.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Counts a connection that we ended for a reason other than the end of its use.
    pub fn cut(&self, reason: &'static str) {
        self.closed.get_or_create(&ReasonLabels { reason }).inc();
    }

    fn register_requests(&self, registry: &mut Registry) {
        registry.register(
            "requests",
            "Admission calls by endpoint, decision and the rule that refused",
            self.requests.clone(),
        );
        registry.register(
            "request_duration_seconds",
            "Time from a call's head to its answer",
            self.durations.clone(),
        );
        registry.register("requests_in_flight", "Admission calls being answered", self.in_flight.clone());
        registry.register("requests_shed", "Admission calls sent away to come back later", self.shed.clone());
        registry.register("request_body_bytes", "Bytes of request bodies held now", self.body_bytes.clone());
        registry.register("panics", "Panics while answering; each became an HTTP 500", self.panics.clone());
        registry.register("connections", "Open connections", self.connections.clone());
        registry.register(
            "connections_cut",
            "Connections that the webhook ended because of the peer's behaviour or for lack of room",
            self.closed.clone(),
        );
        registry.register(
            "handshake_failures",
            "TLS handshakes that did not complete",
            self.handshake_failures.clone(),
        );
    }

    fn register_certificate(&self, registry: &mut Registry) {
        registry.register(
            "not_after_timestamp_seconds",
            "When the certificate being served expires",
            self.certificate_not_after.clone(),
        );
        registry.register("reloads", "Certificates put in service", self.certificate_reloads.clone());
        registry.register(
            "reload_failures",
            "Certificate pairs refused; the one before stays in service",
            self.certificate_reload_failures.clone(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics;
    use crate::telemetry::metrics::watch::WatchMetrics;

    #[test]
    fn the_names_are_the_contract() {
        let mut registry = metrics::registry();
        let webhook = WebhookMetrics::register(&mut registry);
        webhook.answered("validate", "denied", "restricted-port", Duration::from_micros(300));
        webhook.shed("body-budget");
        webhook.cut("evicted");
        register_index(&mut registry, || 3);
        let text = metrics::encode(&registry).unwrap();
        for line in [
            r#"pinhole_webhook_requests_total{endpoint="validate",decision="denied",rule="restricted-port"} 1"#,
            r#"pinhole_webhook_request_duration_seconds_bucket{le="0.0005",endpoint="validate"} 1"#,
            r#"pinhole_webhook_request_duration_seconds_bucket{le="0.00025",endpoint="validate"} 0"#,
            "pinhole_webhook_requests_in_flight 0",
            r#"pinhole_webhook_requests_shed_total{reason="body-budget"} 1"#,
            "pinhole_webhook_request_body_bytes 0",
            "pinhole_webhook_panics_total 0",
            "pinhole_webhook_connections 0",
            r#"pinhole_webhook_connections_cut_total{reason="evicted"} 1"#,
            "pinhole_webhook_handshake_failures_total 0",
            "pinhole_certificate_not_after_timestamp_seconds 0.0",
            "pinhole_certificate_reloads_total 0",
            "pinhole_certificate_reload_failures_total 0",
            "pinhole_index_held_ports 3",
        ] {
            assert!(text.lines().any(|written| written == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn every_metric_is_documented() {
        let documentation = include_str!("../../../docs/webhook.md");
        let mut registry = metrics::registry();
        let webhook = WebhookMetrics::register(&mut registry);
        webhook.answered("mutate", "allowed", "", Duration::ZERO);
        webhook.shed("deadline");
        webhook.cut("evicted");
        register_index(&mut registry, || 0);
        let watches = WatchMetrics::register(&mut registry);
        watches.listed("pods");
        watches.changed("pods");
        watches.failed("pods");
        let text = metrics::encode(&registry).unwrap();
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        for (name, kind) in types {
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            let name = format!("`{name}{suffix}`");
            assert!(documentation.contains(&name), "docs/webhook.md does not explain {name}");
        }
    }
}
