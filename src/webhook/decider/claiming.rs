//! Claims what a decision grants, in a task of its own: what a call has stored that is cut off meanwhile, because its caller
//! has lost patience or gone, is taken back at once and counts against nobody's quota.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;

use tokio::sync::oneshot;

use crate::admission;
use crate::admission::Request;
use crate::admission::World;
use crate::admission::index::Index;
use crate::admission::policy::Policy;
use crate::admission::violation::Violation;
use crate::allocation::acquire::Acquisition;
use crate::allocation::acquire::Purpose;
use crate::allocation::acquire::Verdict;
use crate::allocation::claim::Claim;
use crate::allocation::grant;
use crate::allocation::life;
use crate::allocation::operation::Failure;
use crate::allocation::pool::Cooldowns;
use crate::allocation::pool::Pool;
use crate::cluster::claim_store;
use crate::cluster::claim_store::ClaimStore;
use crate::webhook::decider::NotNow;

/// The claims of one request, under way.
pub(super) struct Claiming {
    pub(super) store: Arc<dyn ClaimStore>,
    pub(super) policy: Arc<Policy>,
    pub(super) index: Arc<RwLock<Index>>,
    pub(super) request: Request,
    pub(super) wishes: Vec<Claim>,
}

impl Claiming {
    /// What is said of a request whose namespace would hold more of a pool than it may. Nothing is read where no quota is set.
    /// `made` is what it has stored; before that, it is compared with what is there.
    pub(super) async fn over_quota(&self, made: Option<Vec<Claim>>) -> Result<Option<Violation>, NotNow> {
        let held = claim_store::counted(&*self.store, &self.pools(), &self.wishes).await;
        let Some(held) = held.map_err(NotNow::Claims)? else { return Ok(None) };
        let more = made.unwrap_or_else(|| grant::more(&held, &self.wishes));
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let world = World { policy: &self.policy, index: &index };
        Ok(admission::over_quota(&self.request, &world, &held, &more))
    }

    /// Gets all of them or none.
    pub(super) async fn claim(self: Arc<Self>, purpose: Purpose) -> Result<Verdict, NotNow> {
        let cooldowns = Cooldowns::new(life::COOLDOWN, &self.pools());
        let now = claim_store::now();
        let acquisition = Acquisition::new(self.wishes.clone(), purpose, now, cooldowns);
        let mut acquisition = {
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            acquisition.heeding(index.heirs())
        };
        let (verdict_tx, verdict_rx) = oneshot::channel();
        tokio::spawn(async move {
            let verdict = self.play(&mut acquisition, purpose).await;
            if verdict_tx.send(verdict).is_err() {
                self.take_back(&mut acquisition, "the call was cut off".to_owned()).await;
            }
        });
        // Only a panic ends the task without a word.
        verdict_rx.await.unwrap_or(Err(NotNow::Unsettled))
    }

    async fn play(&self, acquisition: &mut Acquisition, purpose: Purpose) -> Result<Verdict, NotNow> {
        let verdict = claim_store::acquire(&*self.store, acquisition).await;
        if verdict != Verdict::Granted || purpose == Purpose::Look {
            return Ok(verdict);
        }
        // Of several at once each has stored its claims by now and sees the others': nobody goes on beyond the quota.
        match self.over_quota(Some(acquisition.made().cloned().collect())).await {
            Ok(None) => Ok(verdict),
            Ok(Some(violation)) => {
                let reason = format!("{violation}; other requests of this namespace are under way");
                Ok(self.take_back(acquisition, reason).await)
            }
            Err(not_now) => {
                self.take_back(acquisition, not_now.to_string()).await;
                Err(not_now)
            }
        }
    }

    /// Takes back what a granted request stored. What was not granted has done so already.
    async fn take_back(&self, acquisition: &mut Acquisition, reason: String) -> Verdict {
        claim_store::take_back(&*self.store, acquisition, Failure { reason, is_lasting: false }).await
    }

    fn pools(&self) -> Arc<[Pool]> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        index.pools().cloned().unwrap_or_default()
    }
}
