//! Ends connections that follow rules which are gone, beside the loop: a pass over a full connection table takes
//! hundreds of milliseconds, and no rule should wait for it. Changes that arrive meanwhile share the next pass.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::Notify;
use tracing::debug;
use tracing::warn;

use crate::dataplane::conntrack;
use crate::dataplane::conntrack::CleanUp;
use crate::dataplane::settings::Settings;
use crate::model::handover::UdpHandover;
use crate::ruleset::Ruleset;
use crate::ruleset::diff::Change;
use crate::ruleset::entry::Key;
use crate::telemetry::metrics::agent::AgentMetrics;

const ATTEMPTS: usize = 3;
const PAUSE: Duration = Duration::from_secs(1);

/// Where changes are left for the next pass.
#[derive(Clone, Debug, Default)]
pub struct Flows {
    shared: Arc<Shared>,
}

/// Every entry that serves and was not touched, as if it had been, for connections that passed it by while its rules were not as
/// they should be: they would go on like that.
pub fn put_right(served: &Ruleset, changes: &[Change]) -> Vec<Change> {
    let touched: BTreeSet<Key> = changes.iter().filter_map(key).collect();
    let stayed = served.entries().filter(|entry| entry.target.is_some() && !touched.contains(&entry.key));
    stayed.map(|entry| Change::Replaced { before: entry.clone(), after: entry.clone() }).collect()
}

const fn key(change: &Change) -> Option<Key> {
    match change {
        Change::Added(entry) | Change::Removed(entry) | Change::Replaced { after: entry, .. } => {
            Some(entry.key)
        }
        Change::Egress { .. } => None,
    }
}

#[derive(Debug, Default)]
struct Shared {
    batch: Mutex<Batch>,
    filled: Notify,
}

/// What one pass takes care of.
#[derive(Debug, Default)]
struct Batch {
    changes: Vec<Change>,
    gone: BTreeSet<IpAddr>,
    terminating: BTreeSet<Key>,
    said: BTreeMap<Key, UdpHandover>,
}

impl Flows {
    /// Leaves changes for the next pass, with the entries whose connections end with their permission, and what entries say
    /// of their flows.
    pub fn leave(
        &self,
        changes: Vec<Change>,
        gone: BTreeSet<IpAddr>,
        terminating: &BTreeSet<Key>,
        said: &BTreeMap<Key, UdpHandover>,
    ) {
        if changes.is_empty() && gone.is_empty() {
            return;
        }
        let mut batch = self.shared.batch.lock().unwrap_or_else(PoisonError::into_inner);
        batch.changes.extend(changes);
        batch.gone.extend(gone);
        batch.terminating.extend(terminating);
        batch.said.extend(said);
        drop(batch);
        self.shared.filled.notify_one();
    }

    /// The addresses of pods whose connections the next pass ends.
    #[cfg(test)]
    pub(super) fn gone(&self) -> BTreeSet<IpAddr> {
        self.shared.batch.lock().unwrap().gone.clone()
    }

    /// Makes passes until it is dropped.
    pub async fn run(self, settings: Settings, handover: UdpHandover, metrics: AgentMetrics) {
        let mut is_failing = false;
        loop {
            self.shared.filled.notified().await;
            let Batch { changes, gone, terminating, said } =
                std::mem::take(&mut *self.shared.batch.lock().unwrap_or_else(PoisonError::into_inner));
            let clean_up =
                CleanUp { changes: &changes, gone: &gone, terminating: &terminating, handover, said: &said };
            for attempt in 1..=ATTEMPTS {
                match conntrack::clean_up(&settings, &clean_up).await {
                    Ok(deletions) => {
                        metrics.flows_ended.inc_by(u64::try_from(deletions).unwrap_or(u64::MAX));
                        debug!(deletions, "Ended connections that follow rules which are gone");
                        is_failing = false;
                        break;
                    }
                    Err(error) => {
                        metrics.flow_failures.inc();
                        // One warning for a time of trouble: the rules are right, only some old flows live on.
                        if !std::mem::replace(&mut is_failing, true) {
                            warn!(%error, "Cannot end old connections; UDP clients may stay with an old pod until \
                                their flow times out");
                        }
                        if error.is_missing() || attempt == ATTEMPTS {
                            break;
                        }
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::diff::diff;
    use crate::ruleset::fixtures::endpoint;
    use crate::ruleset::fixtures::ruleset;
    use crate::ruleset::fixtures::v4_node;

    #[test]
    fn what_serves_and_was_not_changed_is_put_right() {
        let (dns, web) =
            (endpoint("53/udp", "dns", &["10.244.1.9"]), endpoint("80/tcp", "web", &["10.244.1.9"]));
        let before = ruleset(std::slice::from_ref(&dns), &v4_node());
        let served = ruleset(&[dns, web, endpoint("90/udp", "later", &[])], &v4_node());
        let put_right = put_right(&served, &diff(&before, &served));
        let shown: Vec<_> = put_right.iter().filter_map(key).map(|key| key.ports.to_string()).collect();
        assert_eq!(shown, ["53"]);
    }
}
