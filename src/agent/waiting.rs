//! What the agent's loop waits for between two turns: news of pods, policies, links and the NatNode, other addresses, rules that
//! others changed, and times that were set.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::agent::nat_node::Desk;
use crate::cluster::resource::Resource;
use crate::dataplane::Dataplane;

/// Changes arrive in bursts; what comes within this time shares a turn.
const DEBOUNCE: Duration = Duration::from_millis(50);

impl<D: Dataplane> Agent<D> {
    /// Waits until everything that decides has been listed once; false when the agent is to end before.
    pub(super) async fn wait_for_lists(&mut self, stop: &CancellationToken) -> bool {
        loop {
            let mut waiting: Vec<_> = self.parts.pods.waiting().into_iter().map(Resource::plural).collect();
            waiting.extend(self.desk.as_ref().filter(|desk| !desk.is_known()).map(|_| "natnodes"));
            waiting.extend((!self.parts.masquerading.is_known()).then_some("masqueradepolicies"));
            waiting.extend((!self.parts.linking.is_known()).then_some("natpools"));
            if self.parts.granting.as_ref().is_some_and(|granting| !granting.pinholes.is_complete()) {
                waiting.push("pinholes");
            }
            if waiting.is_empty() {
                self.need_networks();
                waiting.extend((!self.parts.node.is_known()).then_some("nodes"));
            }
            if waiting.is_empty() {
                return true;
            }
            let reason = format!("waiting for the first list of {} from the API server", waiting.join(", "));
            self.parts.in_sync.missing(reason);
            tokio::select! {
                () = stop.cancelled() => return false,
                () = self.parts.pods.changed() => {}
                () = self.parts.masquerading.changed() => {}
                () = self.parts.linking.changed() => {}
                () = self.parts.node.changed() => {}
                () = heard(self.desk.as_mut()) => {}
            }
        }
    }

    /// Waits for a reason to make another turn.
    pub(super) async fn wait(&mut self, stop: &CancellationToken) {
        let withheld = self.withheld.filter(|_| !self.situation.is_paused);
        let brake = withheld.map(|withheld| Instant::from_std(withheld.until));
        let in_peace = brake.map_or(self.resync_at, |until| until.min(self.resync_at));
        let next = self.retry.map_or(in_peace, |pause| Instant::now() + pause);
        let mut addresses_at = Instant::now() + self.config.address_check;
        let mut drift_at = Instant::now() + self.config.drift_check;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(next) => return,
                () = self.parts.pods.changed() => break,
                () = self.parts.masquerading.changed() => break,
                () = self.parts.linking.changed() => break,
                () = self.parts.node.changed() => break,
                () = heard(self.desk.as_mut()) => {
                    let is_paused = self.desk.as_ref().is_some_and(Desk::is_paused);
                    if self.situation.is_paused != is_paused || self.is_resumed() {
                        return;
                    }
                }
                () = tokio::time::sleep_until(addresses_at) => match self.refresh_addresses() {
                    Ok(false) => addresses_at = Instant::now() + self.config.address_check,
                    // A failure is told by the turn, which reads them too.
                    Ok(true) | Err(_) => return,
                },
                () = tokio::time::sleep_until(drift_at) => {
                    if self.has_drifted().await {
                        self.resync_at = Instant::now();
                        return;
                    }
                    drift_at = Instant::now() + self.config.drift_check;
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(DEBOUNCE) => {}
        }
    }

    /// Whether somebody else changed the rules. A turn that failed is made again anyway.
    pub(super) async fn has_drifted(&mut self) -> bool {
        match &self.observed {
            Some(observed) => self.parts.vigil.has_drifted(observed).await,
            None => false,
        }
    }
}

/// Waits for news of the NatNode, where there is one.
async fn heard(desk: Option<&mut Desk>) {
    match desk {
        Some(desk) => desk.changed().await,
        None => std::future::pending().await,
    }
}
