//! The metrics of a webhook that manages its own certificate authority.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PhaseLabels {
    phase: &'static str,
}

/// Metrics of the authority. Clones share the values.
#[derive(Clone, Debug)]
pub struct AuthorityMetrics {
    phases: Family<PhaseLabels, Gauge>,
    /// When the authority that signs expires.
    pub not_after: Gauge<f64, AtomicU64>,
    /// Turns that failed.
    pub errors: Counter,
    /// Bundles written into webhook configurations.
    pub bundle_writes: Counter,
    /// Configurations whose bundles cert-manager's injector is told to write, too.
    pub other_writers: Gauge,
}

impl AuthorityMetrics {
    /// Adds the authority's metrics to the process's.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            phases: Family::default(),
            not_after: Gauge::default(),
            errors: Counter::default(),
            bundle_writes: Counter::default(),
            other_writers: Gauge::default(),
        };
        let registry = registry.sub_registry_with_prefix("pinhole_certificate_authority");
        registry.register(
            "phase",
            "1 for the step that the replacement of the authority has reached, 0 for the others",
            metrics.phases.clone(),
        );
        registry.register(
            "not_after_timestamp_seconds",
            "When the certificate authority that signs expires",
            metrics.not_after.clone(),
        );
        registry.register(
            "errors",
            "Failed attempts to read or write the authority's Secret or the webhook configurations",
            metrics.errors.clone(),
        );
        registry.register(
            "bundle_writes",
            "Times that this replica wrote the caBundle of a webhook configuration",
            metrics.bundle_writes.clone(),
        );
        registry.register(
            "other_writers",
            "Webhook configurations whose caBundle cert-manager's injector is told to write, too",
            metrics.other_writers.clone(),
        );
        metrics
    }

    /// Tells which step is reached; `None` before one is known.
    pub fn reached(&self, phase: Option<&'static str>) {
        for each in ["stable", "publish", "soak", "retire"] {
            self.phases.get_or_create(&PhaseLabels { phase: each }).set(i64::from(phase == Some(each)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics;

    #[test]
    fn the_names_are_the_contract() {
        let mut registry = metrics::registry();
        let authority = AuthorityMetrics::register(&mut registry);
        authority.reached(Some("soak"));
        let text = metrics::encode(&registry).unwrap();
        for line in [
            r#"pinhole_certificate_authority_phase{phase="soak"} 1"#,
            r#"pinhole_certificate_authority_phase{phase="stable"} 0"#,
            "pinhole_certificate_authority_not_after_timestamp_seconds 0.0",
            "pinhole_certificate_authority_errors_total 0",
            "pinhole_certificate_authority_bundle_writes_total 0",
            "pinhole_certificate_authority_other_writers 0",
        ] {
            assert!(text.lines().any(|written| written == line), "{line} is not in\n{text}");
        }
    }
}
