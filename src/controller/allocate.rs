//! Finds ports for the pods that leave them to pools.
//!
//! Where a port is free is decided by the API server, as for everybody else: what is found here is claimed by creating the
//! claim, and whoever comes second searches again. A claim names the pod, so a controller that ends at any step leaves
//! nothing that the next one does not see: either the claim is there and counts, or it is not.
//!
//! One turn: observe (the watches' view), check (is it complete, do we lead), decide ([`automatic::choose`]), apply (the store
//! of claims), report (metrics, and the wish of the keeper of Pinholes to know, which tells the pods and their owners).

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use tracing::info;
use tracing::warn;

use crate::admission::index::Index;
use crate::admission::policy::Policy;
use crate::allocation::acquire::Acquisition;
use crate::allocation::acquire::Purpose;
use crate::allocation::acquire::Verdict;
use crate::allocation::claim::Claim;
use crate::allocation::claim::StoredClaim;
use crate::allocation::grant;
use crate::allocation::grant::Refusal;
use crate::allocation::key::ClaimKey;
use crate::allocation::life;
use crate::allocation::operation::Failure;
use crate::allocation::pool::Cooldowns;
use crate::allocation::pool::Pool;
use crate::api::object::Kind;
use crate::api::object::Object;
use crate::cluster::asking_pods::AskingPods;
use crate::cluster::changes::Changes;
use crate::cluster::claim_store;
use crate::cluster::claim_store::ClaimStore;
use crate::cluster::claim_watch::Claims;
use crate::controller::automatic;
use crate::controller::automatic::Found;
use crate::controller::automatic::Need;
use crate::controller::backoff::Backoff;
use crate::controller::standing;
use crate::controller::standing::Known;
use crate::controller::standing::Waiting;
use crate::controller::turns::Turns;
use crate::model::holder::ObjectName;
use crate::telemetry::metrics::controller::ControllerMetrics;
use crate::telemetry::startup::Startup;

/// Pods for which ports are claimed at a time.
const PODS_AT_ONCE: usize = 8;

/// The most pods of one turn, so that a turn ends soon and the next one sees what became of it.
const MOST_IN_A_TURN: usize = 500;

/// How often ports are searched for one pod in one turn.
const MOST_ATTEMPTS: u32 = 8;

/// How long the watch is given to show what was claimed, so that nothing is claimed twice.
const SHOWING: Duration = Duration::from_secs(10);
const SHOWING_STEP: Duration = Duration::from_millis(10);

/// What the allocator works with.
pub struct Allocator {
    /// Where claims are stored.
    pub store: Arc<dyn ClaimStore>,
    /// The claims that the watch has shown.
    pub claims: Arc<RwLock<Claims>>,
    /// Whether the claims are complete.
    pub claims_known: Arc<AtomicBool>,
    /// Pools, owners, namespaces and nodes, and who leaves ports to pools.
    pub index: Arc<RwLock<Index>>,
    /// The pods that ask for ports.
    pub pods: Arc<RwLock<AskingPods>>,
    /// Whether pods and owners are complete.
    pub startup: Arc<Startup>,
    /// What is allowed.
    pub policy: Arc<Policy>,
    /// Whether this process leads.
    pub leading_rx: watch::Receiver<bool>,
    /// Where it is said why no ports are found for pods.
    pub waiting: Arc<RwLock<Waiting>>,
    /// Says that any of this has changed; also that it is said why no ports are found.
    pub changes: Changes,
    /// What is counted.
    pub metrics: ControllerMetrics,
}

/// What has been claimed in one turn, and what was found to be somebody else's, beside what the watch shows.
#[derive(Default)]
struct Turn {
    taken: BTreeSet<ClaimKey>,
    made: Vec<ClaimKey>,
    /// Why there is nothing for whoever needs the same.
    verdicts: HashMap<Need, String>,
    /// The claims of namespaces, as they were read last.
    held: HashMap<String, Vec<StoredClaim>>,
    /// For whom nothing was found.
    put_off: Vec<String>,
}

/// What is kept from turn to turn: who has searched in vain has to wait, until pools change or something is given back.
#[derive(Default)]
struct Patience {
    later: Backoff,
    pools: Option<Arc<[Pool]>>,
    claims: BTreeSet<ClaimKey>,
}

/// How new what is known of a quota has to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    OncePerTurn,
    Now,
}

/// How the search for one pod ended.
enum End {
    Claimed(Vec<ClaimKey>),
    Nowhere(String),
    Later(Failure),
}

impl Allocator {
    /// Takes turns until it is stopped.
    pub async fn run(self, stop: CancellationToken) {
        let mut turns = Turns::on_news(&self.changes, self.leading_rx.clone(), stop);
        let mut patience = Patience::default();
        while turns.next().await {
            self.turn(claim_store::now(), &mut patience).await;
        }
    }

    /// One turn.
    async fn turn(&self, now: Timestamp, patience: &mut Patience) {
        let is_complete = self.startup.is_complete() && self.claims_known.load(Ordering::Acquire);
        if !*self.leading_rx.borrow() || !is_complete {
            return;
        }
        let pods = self.unserved();
        self.forget_all_but(&pods);
        if pods.is_empty() {
            return;
        }
        self.hasten(patience);
        let waiting: HashSet<_> = pods.iter().map(|pod| pod.metadata.uid.clone()).collect();
        patience.later.retain(|uid| waiting.contains(uid));
        let due = pods.into_iter().filter(|pod| patience.later.is_due(&pod.metadata.uid, now)).collect();
        let turn = Mutex::new(Turn::default());
        // What is over a quota shows only when all have claimed; one at a time is never too much by another's fault.
        let at_once = if self.has_quota() { 1 } else { PODS_AT_ONCE };
        let searches = stream::iter(by_turns(due).into_iter().take(MOST_IN_A_TURN));
        searches.for_each_concurrent(at_once, |pod| self.search(pod, &turn, now)).await;
        let Turn { made, put_off, .. } = turn.into_inner().unwrap_or_else(PoisonError::into_inner);
        for uid in &put_off {
            patience.later.put_off(uid, now);
        }
        self.await_showing(&made).await;
        if !made.is_empty() || !put_off.is_empty() {
            self.changes.tell();
        }
    }

    /// The pods that have not all the ports that they leave to pools, the oldest first.
    fn unserved(&self) -> Vec<Object> {
        let claims = self.claims.read().unwrap_or_else(PoisonError::into_inner);
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        let found = Found::of(&claims);
        let finders = index.finders().filter(|finder| finder.object.kind == Kind::Pod);
        let unserved = finders.filter_map(|finder| {
            let pod = pods.get(&finder.object.name).filter(|pod| *pod.metadata.uid == **finder.uid)?;
            let holder = index.holder(finder.object, finder.controller).ok()?;
            let has = |port| found.usable(&holder, &automatic::slot(&pod.metadata, port)).is_some();
            let is_served = finder.ports.iter().all(has) || pod.metadata.deletion_timestamp.is_some();
            (!is_served).then(|| pod.clone())
        });
        let mut unserved: Vec<_> = unserved.collect();
        let age = |pod: &Object| (pod.metadata.creation_timestamp.clone(), pod.metadata.uid.clone());
        unserved.sort_by_cached_key(age);
        unserved
    }

    /// Lets all search again when there may be more than the last time.
    fn hasten(&self, patience: &mut Patience) {
        let pools = self.index.read().unwrap_or_else(PoisonError::into_inner).pools().cloned();
        let claims = self.claims.read().unwrap_or_else(PoisonError::into_inner);
        if pools != patience.pools || patience.claims.iter().any(|key| !claims.contains_key(key)) {
            patience.later.clear();
        }
        patience.pools = pools;
        patience.claims = claims.keys().copied().collect();
    }

    fn has_quota(&self) -> bool {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        index.pools().is_some_and(|pools| pools.iter().any(|pool| pool.ports_per_namespace.is_some()))
    }

    fn forget_all_but(&self, pods: &[Object]) {
        let uids: HashSet<_> = pods.iter().map(|pod| pod.metadata.uid.as_str()).collect();
        let mut waiting = self.waiting.write().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|uid, _| uids.contains(uid.as_str()));
    }

    /// Finds ports for one pod, and tells what came of it.
    async fn search(&self, pod: Object, turn: &Mutex<Turn>, now: Timestamp) {
        let name = ObjectName::new(pod.metadata.namespace.as_str(), pod.metadata.name.as_str());
        let uid = pod.metadata.uid.clone();
        let Some(end) = self.claim(&pod, turn, now).await else { return };
        match end {
            End::Claimed(keys) => {
                self.metrics.changed("Found");
                let shown: Vec<_> = keys.iter().map(ToString::to_string).collect();
                info!(pod = %name, claims = shown.join(" "), "Found ports");
                self.waiting.write().unwrap_or_else(PoisonError::into_inner).remove(&uid);
                turn.lock().unwrap_or_else(PoisonError::into_inner).made.extend(keys);
            }
            End::Nowhere(reason) => {
                turn.lock().unwrap_or_else(PoisonError::into_inner).put_off.push(uid.clone());
                let mut waiting = self.waiting.write().unwrap_or_else(PoisonError::into_inner);
                if waiting.insert(uid.clone(), reason.clone()).as_ref() != Some(&reason) {
                    info!(pod = %name, reason, "No port is found");
                }
            }
            End::Later(failure) => {
                turn.lock().unwrap_or_else(PoisonError::into_inner).put_off.push(uid);
                self.metrics.failed();
                warn!(pod = %name, "Ports cannot be claimed, trying again: {failure}");
            }
        }
    }

    /// Claims ports for one pod; `None` when it needs none, or cannot be judged yet.
    async fn claim(&self, pod: &Object, turn: &Mutex<Turn>, now: Timestamp) -> Option<End> {
        for attempt in 0..MOST_ATTEMPTS {
            if !*self.leading_rx.borrow() {
                return None;
            }
            let (wishes, need, cooldowns) = {
                let mut turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
                let (wishes, need) = match self.choose(pod, &mut turn, attempt, now)? {
                    Ok(chosen) => chosen,
                    Err(reason) => return Some(End::Nowhere(reason)),
                };
                // Nobody else of this turn tries them.
                turn.taken.extend(wishes.iter().map(|wish| wish.key));
                let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
                (wishes, need, Cooldowns::new(life::COOLDOWN, index.pools().map_or(&[][..], |pools| pools)))
            };
            let keys: Vec<_> = wishes.iter().map(|wish| wish.key).collect();
            match self.over_quota(pod, &wishes, turn, Reading::OncePerTurn).await {
                Ok(None) => {}
                Ok(Some(refusal)) => {
                    let mut turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
                    turn.verdicts.insert(need, refusal.to_string());
                    for key in &keys {
                        turn.taken.remove(key);
                    }
                    return Some(End::Nowhere(refusal.to_string()));
                }
                Err(failure) => return Some(End::Later(failure)),
            }
            self.metrics.searched();
            let mut acquisition = Acquisition::new(wishes.clone(), Purpose::Reserve, now, cooldowns);
            let mut verdict = claim_store::acquire(&*self.store, &mut acquisition).await;
            // A webhook may have claimed something of the same namespace meanwhile.
            if verdict == Verdict::Granted {
                let failure = match self.over_quota(pod, &wishes, turn, Reading::Now).await {
                    Ok(None) => None,
                    Ok(Some(refusal)) => Some(Failure { reason: refusal.to_string(), is_lasting: false }),
                    // Nobody can say; it is not granted before somebody can.
                    Err(failure) => Some(failure),
                };
                if let Some(failure) = failure {
                    verdict = claim_store::take_back(&*self.store, &mut acquisition, failure).await;
                }
            }
            match verdict {
                Verdict::Granted => return Some(End::Claimed(keys)),
                Verdict::Held { wanted, by } => {
                    debug!(claim = %wanted, by = %by.claim.holder, "Somebody else was first; searching again");
                    let mut turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
                    turn.taken.insert(wanted);
                }
                Verdict::NotNow(failure) => return Some(End::Later(failure)),
            }
        }
        let reason = format!("{MOST_ATTEMPTS} ports in a row were claimed by others a moment before");
        Some(End::Later(Failure { reason, is_lasting: false }))
    }

    /// What to try next; `None` for a pod that needs nothing, or cannot be judged yet.
    fn choose(
        &self,
        pod: &Object,
        turn: &mut Turn,
        attempt: u32,
        now: Timestamp,
    ) -> Option<Result<(Vec<Claim>, Need), String>> {
        let claims = self.claims.read().unwrap_or_else(PoisonError::into_inner);
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let found = Found::of_namespace(&claims, &pod.metadata.namespace);
        let known = Known::of_claims(&claims, &found, &index, &self.policy);
        let standing = standing::stand(pod, &known)?;
        standing.open().next()?;
        if let standing::Verdict::Refused(reason) = standing.verdict {
            return Some(Err(reason));
        }
        let need = Need::of(pod, &standing, &known);
        if let Some(reason) = turn.verdicts.get(&need) {
            return Some(Err(reason.clone()));
        }
        let chosen = automatic::choose(pod, &standing, &known, &turn.taken, attempt, now);
        Some(match chosen {
            Ok(wishes) => Ok((wishes, need)),
            Err(refusal) => {
                turn.verdicts.insert(need, refusal.to_string());
                Err(refusal.to_string())
            }
        })
    }

    /// What is said of a pod whose namespace would hold more of a pool than it may. Nothing is read where no quota is set.
    async fn over_quota(
        &self,
        pod: &Object,
        wishes: &[Claim],
        turn: &Mutex<Turn>,
        reading: Reading,
    ) -> Result<Option<Refusal>, Failure> {
        let namespace = &pod.metadata.namespace;
        let pools = self.index.read().unwrap_or_else(PoisonError::into_inner).pools().cloned();
        let pools = pools.unwrap_or_default();
        let lock = || turn.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = reading == Reading::OncePerTurn && lock().held.contains_key(namespace);
        if !is_known {
            let counted = claim_store::counted(&*self.store, &pools, wishes).await?;
            let Some(held) = counted else { return Ok(None) };
            lock().held.insert(namespace.clone(), held);
        }
        let turn = lock();
        let held = turn.held.get(namespace).map_or(&[][..], Vec::as_slice);
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        Ok(grant::over_quota(&pools, automatic::asker(pod, &index), held, wishes))
    }

    /// Waits until the watch has shown what was claimed: a turn that did not see it would claim again.
    async fn await_showing(&self, made: &[ClaimKey]) {
        let end = Instant::now() + SHOWING;
        let is_shown = || {
            let claims = self.claims.read().unwrap_or_else(PoisonError::into_inner);
            made.iter().all(|key| claims.contains_key(key))
        };
        while !is_shown() && Instant::now() < end {
            tokio::time::sleep(SHOWING_STEP).await;
        }
    }
}

/// Pods that are sorted by their age in the order in which they search: of each namespace one, and so on, so that nobody waits for
/// all of another namespace.
fn by_turns(pods: Vec<Object>) -> Vec<Object> {
    let mut before: HashMap<String, usize> = HashMap::new();
    let place = |pod: Object| {
        let place = before.entry(pod.metadata.namespace.clone()).or_default();
        *place += 1;
        (*place, pod)
    };
    let mut placed: Vec<_> = pods.into_iter().map(place).collect();
    placed.sort_by_key(|(place, _)| *place);
    placed.into_iter().map(|(_, pod)| pod).collect()
}

#[cfg(test)]
mod tests;
