//! The pace of the controller's loops.

use std::time::Duration;

use tokio::time::Interval;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// Turns that begin at least this long after each other, the first at once.
#[derive(Debug)]
pub(super) struct Turns {
    pace: Interval,
    stop: CancellationToken,
}

impl Turns {
    /// Turns until it is stopped.
    pub(super) fn every(period: Duration, stop: CancellationToken) -> Self {
        let mut pace = tokio::time::interval(period);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { pace, stop }
    }

    /// Waits for the next one; false when there is none any more.
    pub(super) async fn next(&mut self) -> bool {
        tokio::select! {
            _ = self.pace.tick() => true,
            () = self.stop.cancelled() => false,
        }
    }
}
