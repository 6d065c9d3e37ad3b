//! The controller: what becomes of claims after a request was answered.
//!
//! Webhooks reserve; here claims are bound to the pods that came of it, given back when nothing uses them any more, and made
//! again from pods and templates, which are the truth, where one is missing. One replica leads; a second one that did so for a
//! moment would do no harm, because every write names the version that it rests on.
//!
//! One turn: observe (the watches' view), check (is it complete, do we lead), decide ([`plan`]), apply (the store of claims),
//! report (metrics and the log).

pub mod allocate;
pub mod automatic;
pub mod backoff;
pub mod ending;
pub mod gate;
pub mod handover;
pub mod historian;
pub mod keeper;
pub mod latency;
pub mod masquerading;
pub mod news;
pub mod pinholes;
pub mod plan;
pub mod pools;
pub mod releasing;
pub mod self_test;
pub mod serving;
pub mod standing;
mod turns;
pub mod waker;
pub mod waking;
pub mod written;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use futures::StreamExt;
use futures::stream;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use tracing::info;
use tracing::warn;

use crate::admission::index::Index;
use crate::admission::index::ObjectKey;
use crate::admission::policy::Policy;
use crate::allocation::acquire::Acquisition;
use crate::allocation::acquire::Purpose;
use crate::allocation::acquire::Verdict;
use crate::allocation::life::Change;
use crate::allocation::operation::Operation;
use crate::allocation::operation::Outcome;
use crate::allocation::pool::Cooldowns;
use crate::api::crd::port_claim::ClaimState;
use crate::cluster::changes::Changes;
use crate::cluster::claim_store;
use crate::cluster::claim_store::ClaimStore;
use crate::cluster::claim_watch::Claims;
use crate::cluster::events::Events;
use crate::cluster::pinhole_watch::KnownPinholes;
use crate::controller::backoff::Backoff;
use crate::controller::news::News;
use crate::controller::news::Teller;
use crate::controller::plan::Missing;
use crate::controller::plan::Planned;
use crate::controller::plan::Times;
use crate::controller::turns::Turns;
use crate::telemetry::metrics::controller::ControllerMetrics;
use crate::telemetry::startup::Startup;

/// Writes at a time.
const WRITES_AT_ONCE: usize = 8;

/// The most that one turn changes, so that a turn ends soon and the next one sees what became of it.
const MOST_IN_A_TURN: usize = 500;

/// What the controller works with.
pub struct Controller {
    /// Where claims are stored.
    pub store: Arc<dyn ClaimStore>,
    /// The claims that the watch has shown.
    pub claims: Arc<RwLock<Claims>>,
    /// The pods and templates that the watches have shown.
    pub index: Arc<RwLock<Index>>,
    /// Whether the claims are complete.
    pub claims_known: Arc<AtomicBool>,
    /// The Pinholes that the watch has shown, which tell what nodes may have in their kernels.
    pub pinholes: Arc<KnownPinholes>,
    /// Whether pods and templates are complete.
    pub startup: Arc<Startup>,
    /// Says that any of this has changed.
    pub changes: Changes,
    /// Whether this process leads.
    pub leading_rx: watch::Receiver<bool>,
    /// How long claims take to their ends.
    pub times: Times,
    /// What is allowed to be said.
    pub policy: Arc<Policy>,
    /// Where owners are told of ports that somebody else has.
    pub events: Events,
    /// What is counted.
    pub metrics: ControllerMetrics,
}

/// What is kept from turn to turn: nothing that decides what is right, only what need not be said or tried again.
#[derive(Debug, Default)]
struct Remembered {
    /// Who was told that its port is somebody else's.
    teller: Teller,
    /// Whose ports could not be claimed.
    later: Backoff,
}

impl Controller {
    /// Takes turns until it is stopped.
    pub async fn run(self, stop: CancellationToken) {
        let mut turns = Turns::on_news(&self.changes, self.leading_rx.clone(), stop);
        let mut remembered = Remembered::default();
        while turns.next().await {
            self.turn(claim_store::now(), &mut remembered).await;
        }
    }

    async fn turn(&self, now: Timestamp, remembered: &mut Remembered) {
        let leads = *self.leading_rx.borrow();
        let is_complete = self.startup.is_complete()
            && self.claims_known.load(Ordering::Acquire)
            && self.pinholes.is_complete();
        self.metrics.leads(leads);
        if !leads || !is_complete {
            return;
        }
        let plan = {
            let claims = self.claims.read().unwrap_or_else(PoisonError::into_inner);
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            self.metrics.claims(count(&claims));
            self.pinholes.read(|pinholes| plan::plan(&claims, &index, pinholes, &self.times, now))
        };
        let changes = stream::iter(plan.changes.into_iter().take(MOST_IN_A_TURN));
        changes.for_each_concurrent(WRITES_AT_ONCE, |planned| self.change(planned)).await;
        self.metrics.disputes(plan.disputes.len());
        let mut news = News::default();
        for dispute in &plan.disputes {
            news.add_dispute(dispute, &self.policy);
        }
        remembered.teller.tell(news, &self.events, now);
        let uids: HashSet<_> = plan.missing.iter().map(|missing| Arc::clone(&missing.uid)).collect();
        remembered.later.retain(|uid| uids.contains(uid));
        let missing = plan.missing.into_iter().filter(|missing| remembered.later.is_due(&missing.uid, now));
        let groups = plan::apart(missing.take(MOST_IN_A_TURN));
        // One after the other, the oldest first: of two that want one port the older gets it.
        let remembered = Mutex::new(remembered);
        let claiming = stream::iter(groups).for_each_concurrent(WRITES_AT_ONCE, |group| async {
            for missing in group {
                if !*self.leading_rx.borrow() {
                    return;
                }
                self.claim(missing, now, &remembered).await;
            }
        });
        claiming.await;
    }

    async fn change(&self, planned: Planned) {
        let Planned { stored, change } = planned;
        let key = stored.claim.key;
        let (operation, what) = match change {
            Change::Update(claim) => {
                let state = claim.state;
                (Operation::Update(*claim, stored.version), state.name())
            }
            Change::Delete => (Operation::Delete(stored.version), ending(stored.claim.state)),
        };
        match self.store.perform(operation).await {
            Outcome::Stored(_) | Outcome::Deleted => {
                self.metrics.changed(what);
                info!(claim = %key, holder = %stored.claim.holder, from = stored.claim.state.name(), to = what, "Changed");
            }
            // Somebody relied on it meanwhile; the next turn sees that.
            Outcome::Stale => debug!(claim = %key, "Changed by somebody else meanwhile"),
            Outcome::Failed(failure) => {
                self.metrics.failed();
                warn!(claim = %key, "A claim cannot be changed, trying again: {failure}");
            }
            outcome => {
                warn!(claim = %key, ?outcome, "The store of claims gave an answer that fits no question; please report this");
            }
        }
    }

    async fn claim(&self, missing: Missing, now: Timestamp, remembered: &Mutex<&mut Remembered>) {
        let Missing { object, uid, controller: _, claims } = missing;
        let mut acquisition = {
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            let pools = index.pools().map_or(&[][..], |pools| pools);
            let cooldowns = Cooldowns::new(self.times.cooldown, pools);
            Acquisition::new(claims, Purpose::Reserve, now, cooldowns).heeding(index.heirs())
        };
        let verdict = claim_store::acquire(&*self.store, &mut acquisition).await;
        let mut remembered = remembered.lock().unwrap_or_else(PoisonError::into_inner);
        match verdict {
            Verdict::Granted => {
                self.metrics.changed("Repaired");
                info!(object = shown(&object), "Claimed the ports of an object that had no claim");
            }
            // A dispute from the next turn on.
            Verdict::Held { wanted, by } => {
                remembered.later.put_off(&uid, now);
                debug!(object = shown(&object), claim = %wanted, holder = %by.claim.holder, "Claimed by somebody else");
            }
            Verdict::NotNow(failure) => {
                remembered.later.put_off(&uid, now);
                self.metrics.failed();
                warn!(object = shown(&object), "A missing claim cannot be made, trying again: {failure}");
            }
        }
    }
}

/// How a claim that is deleted ends, as metrics and the log name it: a request that nothing came of leaves an orphan.
const fn ending(state: ClaimState) -> &'static str {
    match state {
        ClaimState::Reserved => "Orphaned",
        ClaimState::Bound | ClaimState::Releasing | ClaimState::Cooldown => "Deleted",
    }
}

fn shown(object: &ObjectKey) -> String {
    format!("{} {}", object.kind.name(), object.name)
}

/// How many claims are in each state.
fn count(claims: &Claims) -> impl Iterator<Item = (&'static str, usize)> {
    ClaimState::ALL
        .into_iter()
        .map(|state| (state.name(), claims.values().filter(|stored| stored.claim.state == state).count()))
}

#[cfg(test)]
mod tests;
