//! Notices between two readings of the kernel that somebody else changed the rules.
//!
//! Where the kernel does not tell, that is said once, and the reading that is due anyway finds it.

use std::io;
use std::time::Duration;

use tracing::warn;

use crate::dataplane::Observed;
use crate::dataplane::drift::Drift;
use crate::dataplane::drift::Watcher;

/// Watches over the rules.
pub struct Vigil {
    watcher: Option<Watcher>,
    /// Who changed the rules, as far as it is known.
    drift: Option<Drift>,
    resync: Duration,
}

impl Vigil {
    /// Without a watcher nothing is noticed; `resync` is how long it takes then.
    pub const fn new(watcher: Option<Watcher>, resync: Duration) -> Self {
        Self { watcher, drift: None, resync }
    }

    /// Takes the rules as they are now as those that nobody should change.
    pub async fn begin(&mut self, observed: &Observed) {
        let Some(watcher) = &self.watcher else { return };
        if let Err(error) = watcher.settle(observed).await {
            self.give_up(&error);
        }
    }

    /// Whether somebody else changed the rules.
    pub async fn has_drifted(&mut self, observed: &Observed) -> bool {
        let Some(watcher) = &self.watcher else { return false };
        match watcher.look(observed).await {
            Ok(found) => self.drift = found,
            Err(error) => self.give_up(&error),
        }
        self.drift.is_some()
    }

    /// Who it was, and forgets it.
    pub fn take_culprits(&mut self) -> Vec<String> {
        self.drift.take().map_or_else(Vec::new, |drift| drift.by)
    }

    /// Tells once that changes of others are found by the resync only.
    fn give_up(&mut self, error: &io::Error) {
        self.watcher = None;
        warn!(
            %error,
            resync = ?self.resync,
            "The kernel does not tell when others change the node's rules, so that is found at the next resync only; the \
             agent needs NET_ADMIN and NET_RAW"
        );
    }
}
