//! Joins a call with what is known of the cluster and gives both to the pure rules.
//!
//! # Guarantees
//! - Nothing is refused on a cached view alone: what a refusal rests on is read live first, and a changed view is
//!   decided on again.
//! - Two calls through one process never both get a port: what is granted is remembered before the next decision,
//!   until the watch shows it or its time is over.
//! - A dry run leaves no trace.
//!
//! # Caveats
//! Calls through two replicas at the same moment can both be granted; which of them is served is then decided on
//! the node. Admission is the first line, not the last.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::RwLockReadGuard;
use std::sync::RwLockWriteGuard;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use futures::StreamExt;
use futures::TryStreamExt;
use futures::stream;
use thiserror::Error;

use crate::admission;
use crate::admission::Decision;
use crate::admission::Request;
use crate::admission::World;
use crate::admission::conflict::Evidence;
use crate::admission::index::Index;
use crate::admission::policy::Policy;
use crate::cluster::evidence::LiveReadError;
use crate::cluster::evidence::LiveReads;

/// How often a decision is taken again after live reads. Each round can bring up owners not known before; a chain
/// from pod to root is three long.
const ROUNDS: usize = 4;

/// Live reads for one call: at a time, and in one round.
const READS_AT_ONCE: usize = 8;
const READS_IN_A_ROUND: usize = 32;

/// An object that was admitted a moment ago may not be stored yet. It is stored or refused within this time.
const STORING: Duration = Duration::from_secs(1);
const STORING_STEP: Duration = Duration::from_millis(50);

/// Why a call gets no decision now.
#[derive(Debug, Error)]
pub(crate) enum NotNow {
    /// The first lists have not arrived.
    #[error("pinhole is starting and does not know yet which ports are held; the call is repeated")]
    Starting,
    /// A refusal could not be confirmed.
    #[error("{0}; without it pinhole cannot tell whether the port is still held; the call is repeated")]
    LiveRead(#[from] LiveReadError),
    /// What a refusal rests on changes faster than it can be read.
    #[error("the holders of the requested ports keep changing; the call is repeated")]
    Unsettled,
}

impl NotNow {
    /// The label of metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::LiveRead(_) => "live-read",
            Self::Unsettled => "unsettled",
        }
    }
}

/// Decides on calls.
pub struct Decider {
    policy: Arc<Policy>,
    index: Arc<RwLock<Index>>,
    /// Where there is no API server behind the index, the index is the truth.
    live: Option<Arc<dyn LiveReads>>,
    synced: Arc<AtomicBool>,
    pending_ttl: Duration,
    /// How many requests have been remembered: a decision taken beside a change of it is taken again.
    remembered: AtomicU64,
}

impl Decider {
    /// Decides against `index`, which others keep up to date and which is complete once `synced` says so.
    pub fn new(
        policy: Arc<Policy>,
        index: Arc<RwLock<Index>>,
        live: Option<Arc<dyn LiveReads>>,
        synced: Arc<AtomicBool>,
        pending_ttl: Duration,
    ) -> Self {
        Self { policy, index, live, synced, pending_ttl, remembered: AtomicU64::new(0) }
    }

    /// The operator's settings.
    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Decides on one request. A dry run is decided on like any other, but not remembered.
    pub(crate) async fn decide(&self, request: &Request, dry_run: bool) -> Result<Decision, NotNow> {
        if !self.synced.load(Ordering::Acquire) {
            return self.decide_while_starting(request);
        }
        let mut read: BTreeSet<Evidence> = BTreeSet::new();
        for _ in 0..ROUNDS {
            let decision = self.decide_once(request, dry_run);
            let unread: Vec<_> =
                decision.evidence.iter().filter(|evidence| !read.contains(*evidence)).collect();
            let Some(live) = self.live.as_deref().filter(|_| !decision.is_granted() && !unread.is_empty())
            else {
                return Ok(decision);
            };
            let round: Vec<Evidence> = unread.into_iter().take(READS_IN_A_ROUND).cloned().collect();
            stream::iter(round.clone())
                .map(|evidence| self.refresh(live, evidence))
                .buffer_unordered(READS_AT_ONCE)
                .try_collect::<()>()
                .await?;
            read.extend(round);
        }
        let decision = self.decide_once(request, dry_run);
        // With very many holders some may be left unread; one that was read and still counts is enough.
        let confirmed = decision.evidence.iter().any(|evidence| read.contains(evidence));
        if decision.is_granted() || confirmed { Ok(decision) } else { Err(NotNow::Unsettled) }
    }

    /// What can be said without knowing the cluster: requests that no rule applies to pass, and what is wrong in
    /// itself is refused.
    fn decide_while_starting(&self, request: &Request) -> Result<Decision, NotNow> {
        let decision = self.judge(request, &self.read_index());
        let asks_nothing = decision.is_granted() && decision.mappings.is_empty();
        let wrong_in_itself = !decision.is_granted() && decision.evidence.is_empty();
        if asks_nothing || wrong_in_itself { Ok(decision) } else { Err(NotNow::Starting) }
    }

    fn decide_once(&self, request: &Request, dry_run: bool) -> Decision {
        let before = self.remembered.load(Ordering::Acquire);
        let decision = self.judge(request, &self.read_index());
        if !decision.is_granted() && !decision.evidence.is_empty() {
            let mut index = self.write_index();
            index.expire(Instant::now());
            return self.judge(request, &index);
        }
        if dry_run || !decision.is_granted() || decision.mappings.is_empty() {
            return decision;
        }
        let mut index = self.write_index();
        let decision = if self.remembered.load(Ordering::Acquire) == before {
            decision
        } else {
            self.judge(request, &index)
        };
        if decision.is_granted()
            && let Some(object) = &request.object
        {
            index.remember(object, &request.namespace, Instant::now(), self.pending_ttl);
            self.remembered.fetch_add(1, Ordering::Release);
        }
        decision
    }

    fn judge(&self, request: &Request, index: &Index) -> Decision {
        admission::decide(request, &World { policy: &self.policy, index })
    }

    async fn refresh(&self, live: &dyn LiveReads, evidence: Evidence) -> Result<(), NotNow> {
        let patience = Instant::now() + STORING;
        loop {
            if let Some(object) = live.read(&evidence).await? {
                self.write_index().confirm(&object);
                return Ok(());
            }
            let may_be_on_its_way = match &evidence {
                Evidence::Object(key) => self.read_index().is_remembered(key),
                Evidence::Namespace(_) => false,
            };
            if !may_be_on_its_way || patience <= Instant::now() {
                break;
            }
            tokio::time::sleep(STORING_STEP).await;
        }
        let mut index = self.write_index();
        match &evidence {
            Evidence::Object(key) => index.delete(key, None),
            Evidence::Namespace(name) => index.delete_namespace(name),
        }
        Ok(())
    }

    /// A panic in a rule leaves the index as it was, since rules only read: nothing is poisoned by it.
    fn read_index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_index(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
