//! Joins a call with what is known of the cluster and gives both to the pure rules.
//!
//! # Guarantees
//! - Nothing is refused on a cached view alone: what a refusal rests on is read live first, and a changed view is
//!   decided on again.
//! - Two calls through one process never both get a port: what is granted is remembered before the next decision,
//!   until the watch shows it or its time is over.
//! - A dry run leaves no trace.
//!
//! - With claims, what is granted is claimed before the answer goes out, so that of calls through any number of
//!   replicas at the same moment one gets the port.
//!
//! # Caveats
//! Without claims, calls through two replicas at the same moment can both be granted; which of them is served is then
//! decided on the node. Admission is the first line, not the last.

mod claiming;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::RwLockReadGuard;
use std::sync::RwLockWriteGuard;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use futures::StreamExt;
use futures::TryStreamExt;
use futures::stream;
use json_patch::Patch;
use thiserror::Error;

use crate::admission;
use crate::admission::Decision;
use crate::admission::Request;
use crate::admission::World;
use crate::admission::conflict::Evidence;
use crate::admission::effective;
use crate::admission::index::Index;
use crate::admission::index::ObjectKey;
use crate::admission::index::occupants::Source;
use crate::admission::policy::Policy;
use crate::admission::reservation;
use crate::admission::violation::Rule;
use crate::allocation::acquire::Purpose;
use crate::allocation::acquire::Verdict;
use crate::allocation::claim::Claim;
use crate::allocation::operation::Failure;
use crate::allocation::operation::Operation;
use crate::allocation::operation::Outcome;
use crate::api::object::Kind;
use crate::api::object::Object;
use crate::cluster::claim_store;
use crate::cluster::claim_store::ClaimStore;
use crate::cluster::evidence::Found;
use crate::cluster::evidence::LiveReadError;
use crate::cluster::evidence::LiveReads;
use crate::model::holder::Holder;
use crate::model::mapping::Address;
use crate::model::mapping::Mapping;
use crate::telemetry::startup::Incomplete;
use crate::telemetry::startup::Startup;
use crate::webhook::decider::claiming::Claiming;

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
    #[error(
        "pinhole is starting and does not know yet which ports are held ({0}); try again, and if it stays so, see the \
         webhook's log"
    )]
    Starting(Incomplete),
    /// A refusal could not be confirmed.
    #[error("{0}; without it pinhole cannot tell whether the port is still held")]
    LiveRead(#[from] LiveReadError),
    /// The ports could not be claimed.
    #[error("{0}; without its claims nothing is granted")]
    Claims(Failure),
    /// Whose ports they would be depends on an object that is not there.
    #[error(
        "its owner {} {} does not exist, so nobody can tell whose ports these would be; create the owner first, or remove the \
         ownerReference",
        .0.kind.name(), .0.name
    )]
    NoOwner(ObjectKey),
    /// What a refusal rests on changes faster than it can be read.
    #[error("the holders of the requested ports keep changing; try again")]
    Unsettled,
}

impl NotNow {
    /// Whether there is no use in repeating the call until somebody has done something.
    pub(crate) fn is_lasting(&self) -> bool {
        match self {
            Self::LiveRead(error) => error.is_lasting,
            Self::Claims(failure) => failure.is_lasting,
            Self::NoOwner(_) => true,
            Self::Starting(_) | Self::Unsettled => false,
        }
    }

    /// The label of metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Starting(_) => "starting",
            Self::LiveRead(_) => "live-read",
            Self::Claims(_) => "claims",
            Self::NoOwner(_) => "no-owner",
            Self::Unsettled => "unsettled",
        }
    }
}

/// What was read live for one call.
type Reads = BTreeMap<Evidence, Read>;

struct Read {
    /// The UID that the object was known by when the read was asked.
    known: Option<Arc<str>>,
    found: Found,
}

impl Read {
    fn bring_into(&self, index: &mut Index, evidence: &Evidence) {
        match (evidence, &self.found) {
            (_, Found::Object(object)) => index.confirm(object),
            // They count for this call alone, see `judge_by`.
            (_, Found::Pools(_)) | (Evidence::Pools, Found::Nothing) => {}
            (_, Found::Occupants(said)) => index.set_occupants((**said).clone()),
            (Evidence::Occupant(source), Found::Nothing) => index.forget_occupants(source),
            (Evidence::Namespace(name), Found::Nothing) => index.delete_namespace(name),
            (Evidence::Object(key), Found::Nothing) => {
                index.forget_remembered(key);
                if key.kind == Kind::Pod {
                    index.forget_occupants(&Source::Pod(key.name.clone()));
                }
                // Another of the same name may have come since; that one is not what was found missing.
                if let Some(known) = &self.known {
                    index.delete(key, Some(known));
                }
            }
        }
    }
}

/// Decides on calls.
pub struct Decider {
    policy: Arc<Policy>,
    index: Arc<RwLock<Index>>,
    /// Where there is no API server behind the index, the index is the truth.
    live: Option<Arc<dyn LiveReads>>,
    startup: Arc<Startup>,
    pending_ttl: Duration,
    claims: Option<Arc<dyn ClaimStore>>,
    /// How many requests have been remembered: a decision taken beside a change of it is taken again.
    remembered: AtomicU64,
}

impl Decider {
    /// Decides against `index`, which others keep up to date and which is complete once `startup` is.
    pub fn new(
        policy: Arc<Policy>,
        index: Arc<RwLock<Index>>,
        live: Option<Arc<dyn LiveReads>>,
        startup: Arc<Startup>,
        pending_ttl: Duration,
    ) -> Self {
        Self { policy, index, live, startup, pending_ttl, claims: None, remembered: AtomicU64::new(0) }
    }

    /// Also claims what it grants, in this store.
    pub fn with_claims(self, claims: Arc<dyn ClaimStore>) -> Self {
        Self { claims: Some(claims), ..self }
    }

    /// What is written into an object, as far as the cluster is known; `None` when it is as it should be.
    pub(crate) fn mutate(&self, request: &Request) -> Option<Patch> {
        effective::mutate(request, &World { policy: &self.policy, index: &self.read_index() })
    }

    /// Waits until the first lists have arrived.
    pub(crate) async fn started(&self) {
        self.startup.completed().await;
    }

    /// Decides on one request, and claims what it grants. A dry run is decided on like any other, but leaves no trace.
    pub(crate) async fn decide(&self, request: &Request, dry_run: bool) -> Result<Decision, NotNow> {
        let kind = request.object.as_ref().and_then(Object::known_kind);
        if kind == Some(Kind::Pinhole) && self.claims.is_none() {
            // Without claims nothing serves what it asks for; where it asks is looked at all the same.
            let object = request.object.clone().map(|object| Object { pinhole: None, ..object });
            return Ok(self.judge(&Request { object, ..request.clone() }, &self.read_index()));
        }
        let mut decision = self.decide_by_view(request, dry_run).await?;
        if self.was_granted(request, &decision).await? {
            decision.violations.clear();
        }
        let Some(claims) = self.claims.as_ref().filter(|_| decision.is_granted()) else {
            return Ok(decision);
        };
        let reserved = self.reserve(claims, request, decision, dry_run).await;
        if !reserved.as_ref().is_ok_and(Decision::is_granted)
            && let Some(object) = &request.object
            && let Some(key) = ObjectKey::of(object, &request.namespace)
        {
            self.write_index().forget_remembered(&key);
        }
        reserved
    }

    /// Whether a pod that no pool grants its ports has them by the claims of the workload that holds them: what is claimed was
    /// granted, whatever has become of the pools. Of ports by ordinal nothing else tells.
    async fn was_granted(&self, request: &Request, decision: &Decision) -> Result<bool, NotNow> {
        let is_pod = request.object.as_ref().and_then(Object::known_kind) == Some(Kind::Pod);
        let is_up_to_pools = decision.violations.iter().all(|violation| violation.rule == Rule::Pool);
        let is_claimable = |mapping: &Mapping| matches!(mapping.address(), Address::Fixed(_));
        let has_claims = decision.automatic.is_empty() && decision.mappings.iter().all(is_claimable);
        let Some(store) = &self.claims else { return Ok(false) };
        if decision.is_granted() || !(is_pod && is_up_to_pools && has_claims) {
            return Ok(false);
        }
        let Ok(wishes) = self.wishes(request, decision).await else { return Ok(false) };
        let is_of_workload = |wish: &Claim| &*wish.holder.kind != Kind::Pod.name();
        if !wishes.first().is_some_and(is_of_workload) {
            return Ok(false);
        }
        for wish in &wishes {
            match store.perform(Operation::Get(wish.key)).await {
                Outcome::Found(Some(stored)) if stored.claim.is_relied_on_by(&wish.holder) => {}
                Outcome::Failed(failure) => return Err(NotNow::Claims(failure)),
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Claims what a decision grants, all of it or nothing.
    async fn reserve(
        &self,
        claims: &Arc<dyn ClaimStore>,
        request: &Request,
        decision: Decision,
        dry_run: bool,
    ) -> Result<Decision, NotNow> {
        let wishes = self.wishes(request, &decision).await?;
        let Some(asker) = wishes.first().map(|wish| wish.holder.clone()) else { return Ok(decision) };
        let claiming = Arc::new(Claiming {
            store: Arc::clone(claims),
            policy: Arc::clone(&self.policy),
            index: Arc::clone(&self.index),
            request: request.clone(),
            wishes,
        });
        if let Some(violation) = claiming.over_quota(None).await? {
            return Ok(Decision { violations: vec![violation], ..decision });
        }
        let purpose = if dry_run { Purpose::Look } else { Purpose::Reserve };
        let mut verdict = Arc::clone(&claiming).claim(purpose).await?;
        if let Verdict::Held { by, .. } = &verdict
            && self.is_handed_over(&by.claim.holder, &asker).await?
        {
            verdict = claiming.claim(purpose).await?;
        }
        match verdict {
            Verdict::Granted => Ok(decision),
            Verdict::Held { wanted, by } => {
                let violation = reservation::held(request, &self.policy, wanted, &by, &asker);
                Ok(Decision { violations: vec![violation], ..decision })
            }
            Verdict::NotNow(failure) => Err(NotNow::Claims(failure)),
        }
    }

    /// Whether a holder has handed over what it has, which the watches have not shown yet: the last thing to be read before a
    /// refusal.
    async fn is_handed_over(&self, from: &Holder, to: &Holder) -> Result<bool, NotNow> {
        let root = Kind::from_name(&from.kind).filter(|_| !self.read_index().heirs().passes(from, to));
        let (Some(kind), Some(live)) = (root, self.live.as_deref()) else { return Ok(false) };
        let root = ObjectKey { kind, name: from.object.clone() };
        let (evidence, read) = self.read(live, Evidence::Object(root)).await?;
        read.bring_into(&mut self.write_index(), &evidence);
        Ok(self.read_index().heirs().passes(from, to))
    }

    /// The claims that a decision needs. An owner that the watches have not shown yet is read live.
    async fn wishes(&self, request: &Request, decision: &Decision) -> Result<Vec<Claim>, NotNow> {
        for _ in 0..ROUNDS {
            let claims = reservation::claims(request, decision, &self.read_index(), claim_store::now());
            let owner = match claims {
                Ok(claims) => return Ok(claims),
                Err(owner) => owner,
            };
            let Some(live) = self.live.as_deref() else { return Err(NotNow::Unsettled) };
            let (evidence, read) = self.read(live, Evidence::Object(owner.clone())).await?;
            if matches!(read.found, Found::Nothing) {
                return Err(NotNow::NoOwner(owner));
            }
            read.bring_into(&mut self.write_index(), &evidence);
        }
        Err(NotNow::Unsettled)
    }

    async fn decide_by_view(&self, request: &Request, dry_run: bool) -> Result<Decision, NotNow> {
        if let Some(incomplete) = self.startup.incomplete() {
            return self.decide_while_starting(request, incomplete);
        }
        let mut reads = Reads::new();
        for _ in 0..ROUNDS {
            let decision = self.decide_once(request, &reads, dry_run);
            let unread = decision.evidence.iter().filter(|evidence| !reads.contains_key(*evidence));
            let round: Vec<Evidence> = unread.take(READS_IN_A_ROUND).cloned().collect();
            let Some(live) = self.live.as_deref().filter(|_| !decision.is_granted() && !round.is_empty())
            else {
                return Ok(decision);
            };
            let read: Vec<_> = stream::iter(round)
                .map(|evidence| self.read(live, evidence))
                .buffer_unordered(READS_AT_ONCE)
                .try_collect()
                .await?;
            reads.extend(read);
        }
        let decision = self.decide_once(request, &reads, dry_run);
        // With very many holders some may be left unread; one that was found and still counts is enough.
        let is_found =
            |evidence| reads.get(evidence).is_some_and(|read| !matches!(read.found, Found::Nothing));
        if decision.is_granted() || decision.evidence.iter().any(is_found) {
            Ok(decision)
        } else {
            Err(NotNow::Unsettled)
        }
    }

    /// What can be said without knowing the cluster: requests that no rule applies to pass, and what is wrong in
    /// itself is refused.
    fn decide_while_starting(&self, request: &Request, incomplete: Incomplete) -> Result<Decision, NotNow> {
        let decision = self.judge(request, &self.read_index());
        let asks_nothing = decision.is_granted() && !decision.asks();
        let wrong_in_itself = !decision.is_granted() && decision.evidence.is_empty();
        if asks_nothing || wrong_in_itself { Ok(decision) } else { Err(NotNow::Starting(incomplete)) }
    }

    fn decide_once(&self, request: &Request, reads: &Reads, dry_run: bool) -> Decision {
        let before = self.remembered.load(Ordering::Acquire);
        let mut decision = self.judge(request, &self.read_index());
        if !decision.is_granted() && !decision.evidence.is_empty() {
            let mut index = self.write_index();
            index.expire(Instant::now());
            // With the index locked, so that no late news of the watch comes between what was read and the decision.
            for (evidence, read) in reads {
                read.bring_into(&mut index, evidence);
            }
            decision = self.judge_by(request, &mut index, reads);
            if !decision.is_granted() {
                return decision;
            }
        }
        if dry_run || !decision.is_granted() || decision.mappings.is_empty() {
            return decision;
        }
        let mut index = self.write_index();
        let decision = if self.remembered.load(Ordering::Acquire) == before {
            decision
        } else {
            self.judge_by(request, &mut index, reads)
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

    /// Judges by the pools that were read live, if any were. They do not stay: the watch may know newer ones by now, and would
    /// not tell of them again.
    fn judge_by(&self, request: &Request, index: &mut Index, reads: &Reads) -> Decision {
        let Some(Found::Pools(live)) = reads.get(&Evidence::Pools).map(|read| &read.found) else {
            return self.judge(request, index);
        };
        let known = index.pools().cloned();
        index.set_pools(Some(Arc::clone(live)));
        let decision = self.judge(request, index);
        index.set_pools(known);
        decision
    }

    /// Reads one thing that a refusal rests on. What was admitted a moment ago and is not stored yet is waited for.
    async fn read(&self, live: &dyn LiveReads, evidence: Evidence) -> Result<(Evidence, Read), NotNow> {
        loop {
            let known = match &evidence {
                Evidence::Object(key) => self.read_index().uid(key),
                Evidence::Namespace(_) | Evidence::Pools | Evidence::Occupant(_) => None,
            };
            let found = live.read(&evidence).await?;
            let admitted = match (&evidence, &found) {
                (Evidence::Object(key), Found::Object(object)) => {
                    self.read_index().awaited(key, Some(&**object))
                }
                (Evidence::Object(key), _) => self.read_index().awaited(key, None),
                (Evidence::Namespace(_) | Evidence::Pools | Evidence::Occupant(_), _) => None,
            };
            if admitted.is_none_or(|admitted| admitted + STORING <= Instant::now()) {
                return Ok((evidence, Read { known, found }));
            }
            tokio::time::sleep(STORING_STEP).await;
        }
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
