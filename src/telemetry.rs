//! What a running process tells its operator: logs, metrics, and whether it is alive and ready.
//!
//! Nothing here knows what the process does; webhook and agent bring their own conditions and metrics.

pub mod http;
pub mod log;
pub mod metrics;
pub mod readiness;
pub mod secure;
pub mod startup;
