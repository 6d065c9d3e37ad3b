//! Every metric of every process, registered in one place.
//!
//! Names, labels and meanings are part of the contract with dashboards and alerts: a change here is a change users
//! see. No metric carries a namespace or the name of an object, so that their number never grows with the cluster.

pub mod agent;
pub mod authority;
pub mod controller;
pub mod process;
pub mod self_test;
pub mod watch;
pub mod webhook;

use std::fmt;

use prometheus_client::encoding::text;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::telemetry::metrics::process::ProcessMetrics;

/// What `/metrics` sends.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Bounds of every duration histogram, in seconds: 100 us to 5 s, for a handler that takes microseconds behind a
/// time limit of seconds.
pub const DURATION_BUCKETS: [f64; 15] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// A registry with what every process tells: its version and what it uses.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.register(
        "pinhole_build",
        "The version that runs",
        Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]),
    );
    registry.register_collector(Box::new(ProcessMetrics));
    registry
}

/// The text form of all metrics.
pub fn encode(registry: &Registry) -> Result<String, fmt::Error> {
    let mut text = String::with_capacity(16 * 1024);
    text::encode(&mut text, registry)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_rise_from_a_hundred_microseconds_to_five_seconds() {
        assert!(DURATION_BUCKETS.is_sorted());
        assert_eq!(DURATION_BUCKETS.first(), Some(&0.000_1));
        assert_eq!(DURATION_BUCKETS.last(), Some(&5.0));
    }
}
