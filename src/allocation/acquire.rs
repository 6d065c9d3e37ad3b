//! Getting all the claims of a request, or none.
//!
//! # Guarantees
//! - Of two holders that ask for ports in common, at whatever moments and through whatever processes, at most one is granted
//!   them: each first stores its own claims, then looks for others that overlap them, and whoever is second to store sees
//!   the first.
//! - Claims are made in the order of their keys, so that two requests for the same ports never wait for each other.
//! - A request that is not granted takes back what it stored, and nothing that somebody else relies on by then. What a crash
//!   leaves behind is an orphan, which the controller collects.
//! - What a holder has handed over changes hands in one conditional write: it never has two holders, and never none. Whoever
//!   handed it over is granted what it may still serve, and holds nothing by it.
//! - The same holder is never refused its own claim, whatever state that is in. Ports that were found for its pods are each
//!   pod's own: another pod of the holder has no more right to them than a stranger.
//!
//! # How two that overlap and see each other settle it
//! Whoever stored later yields at once. Whoever stored first waits a moment for that, and yields too if it does not happen.
//! That is safe without trusting anybody's clock, for nobody ever goes on while it sees another.

use std::collections::BTreeSet;
use std::mem;

use k8s_openapi::jiff::SignedDuration;
use k8s_openapi::jiff::Timestamp;

use crate::allocation::claim::Claim;
use crate::allocation::claim::StoredClaim;
use crate::allocation::claim::Version;
use crate::allocation::key::ClaimKey;
use crate::allocation::operation::Failure;
use crate::allocation::operation::Operation;
use crate::allocation::operation::Outcome;
use crate::allocation::pool::Cooldowns;
use crate::allocation::transfer::Heirs;
use crate::api::crd::port_claim::ClaimState;
use crate::model::address::ExternalAddress;
use crate::model::holder::Holder;

/// A claim in use is written again only when its last renewal is older: a rollout of a thousand pods is not a thousand writes.
const RENEW_AFTER: SignedDuration = SignedDuration::from_secs(30);

/// A reservation that is younger may still be taken back by a request that fails elsewhere.
const UNSETTLED: SignedDuration = SignedDuration::from_secs(5);

/// The shortest time that can be told apart in what is stored.
const SHORTEST: SignedDuration = SignedDuration::from_secs(1);

/// How many moments one waits for others.
const PATIENCE: u8 = 6;

/// Whether anything is to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Store the claims.
    Reserve,
    /// Only look whether they could be had: a dry run.
    Look,
}

/// How a request for claims ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All are the holder's.
    Granted,
    /// Somebody else has one.
    Held {
        /// What was asked for.
        wanted: ClaimKey,
        /// What stands in its way.
        by: Box<StoredClaim>,
    },
    /// It could not be decided now.
    NotNow(Failure),
}

/// One request for claims, under way. [`next`](Self::next) says what to do, [`take`](Self::take) hears how it went.
#[derive(Clone, Debug)]
pub struct Acquisition {
    wishes: Vec<Claim>,
    purpose: Purpose,
    now: Timestamp,
    cooldowns: Cooldowns,
    /// Whose claims the holder may take over.
    givers: BTreeSet<Holder>,
    step: Step,
    /// What this request stored, to be taken back if it fails.
    made: Vec<Made>,
    /// What must not overlap with anybody's, and the revision at which the holder had it.
    unverified: Vec<(ClaimKey, u64)>,
    checks: Vec<Check>,
    patience: u8,
}

/// What a request stored.
#[derive(Clone, Debug)]
struct Made {
    stored: StoredClaim,
    /// What was there before, of a holder that has handed it over.
    before: Option<Claim>,
}

/// Where to look for overlaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Check {
    Key(ClaimKey),
    Address(ExternalAddress),
}

#[derive(Clone, Debug)]
enum Step {
    /// Makes the claim of this wish.
    Make(usize),
    /// Reads the claim that is there in its place.
    Read(usize),
    /// Waits for a reservation that may be taken back.
    Linger(usize),
    /// Takes a claim over that is the holder's already, or nobody's any more.
    Adopt(usize, Box<StoredClaim>),
    /// Looks for overlaps.
    Check(usize),
    /// Waits for a younger claim to yield.
    Await(usize),
    /// Removes what has cooled down, the last first, and looks again.
    Clear(usize, Vec<Version>),
    /// Takes back what was stored, from the last to the first.
    Undo(Box<Verdict>),
    Over(Box<Verdict>),
}

impl Acquisition {
    /// Begins a request for these claims, all of one holder. A claim of another holder that has cooled down for as long as
    /// its pool says is free.
    pub fn new(
        mut wishes: Vec<Claim>,
        purpose: Purpose,
        now: Timestamp,
        cooldowns: impl Into<Cooldowns>,
    ) -> Self {
        wishes.sort_by_key(|wish| wish.key);
        wishes.dedup_by_key(|wish| wish.key);
        let mut acquisition = Self {
            wishes,
            purpose,
            now,
            cooldowns: cooldowns.into(),
            givers: BTreeSet::new(),
            step: Step::Make(0),
            made: Vec::new(),
            unverified: Vec::new(),
            checks: Vec::new(),
            patience: PATIENCE,
        };
        acquisition.make(0);
        acquisition
    }

    /// The same, by a holder that may take over what these have claimed.
    #[must_use]
    pub fn taking_over_from(self, givers: BTreeSet<Holder>) -> Self {
        Self { givers, ..self }
    }

    /// The same, by a holder that may take over what others have handed over to it.
    #[must_use]
    pub fn heeding(self, heirs: &Heirs) -> Self {
        let givers = self.wishes.first().map(|wish| heirs.givers_to(&wish.holder)).unwrap_or_default();
        self.taking_over_from(givers)
    }

    /// What to do next; `None` when it is over.
    pub fn next(&self) -> Option<Operation> {
        let operation = match &self.step {
            Step::Make(index) => match self.purpose {
                Purpose::Reserve => Operation::Create(self.wishes[*index].clone()),
                Purpose::Look => Operation::Get(self.wishes[*index].key),
            },
            Step::Read(index) => Operation::Get(self.wishes[*index].key),
            Step::Linger(_) | Step::Await(_) => Operation::Wait,
            Step::Adopt(index, found) => {
                Operation::Update(self.adopted(*index, found), found.version.clone())
            }
            Step::Check(index) => match self.checks[*index] {
                Check::Key(key) => Operation::Get(key),
                Check::Address(address) => Operation::List(address),
            },
            Step::Clear(_, cooled) => Operation::Delete(cooled.last()?.clone()),
            Step::Undo(_) => {
                let Made { stored, before } = self.made.last()?;
                match before {
                    Some(before) => Operation::Update(before.clone(), stored.version.clone()),
                    None => Operation::Delete(stored.version.clone()),
                }
            }
            Step::Over(_) => return None,
        };
        Some(operation)
    }

    /// What this request stored that was nobody's or somebody else's before.
    pub fn made(&self) -> impl Iterator<Item = &Claim> {
        self.made.iter().map(|stored| &stored.stored.claim)
    }

    /// Takes back what a granted request stored, for a reason that was found afterwards.
    pub fn revoke(&mut self, verdict: Verdict) {
        self.fail(verdict);
    }

    /// How it ended, once it has.
    pub fn verdict(&self) -> Option<&Verdict> {
        match &self.step {
            Step::Over(verdict) => Some(verdict),
            _ => None,
        }
    }

    /// Hears how the last operation went.
    pub fn take(&mut self, outcome: Outcome) {
        let step = mem::replace(&mut self.step, Step::Make(0));
        match (step, outcome) {
            (step @ (Step::Undo(_) | Step::Over(_)), _) => self.undone(step),
            (_, Outcome::Failed(failure)) => self.fail(Verdict::NotNow(failure)),
            (Step::Make(index), Outcome::Stored(stored)) => {
                self.rely_on(&stored, stored.version.revision);
                self.made.push(Made { stored: *stored, before: None });
                self.make(index + 1);
            }
            (Step::Make(index), Outcome::Exists) | (Step::Adopt(index, _), Outcome::Stale) => {
                self.step = Step::Read(index);
            }
            (Step::Make(index), Outcome::Found(None)) => {
                self.unverified.push((self.wishes[index].key, u64::MAX));
                self.make(index + 1);
            }
            (Step::Make(index) | Step::Read(index), Outcome::Found(Some(found))) => self.judge(index, found),
            // It is gone again: now it can be made.
            (Step::Read(index), Outcome::Found(None)) => self.make(index),
            (Step::Linger(index), Outcome::Waited) => {
                self.step = match self.purpose {
                    Purpose::Reserve => Step::Read(index),
                    Purpose::Look => Step::Make(index),
                };
            }
            (Step::Adopt(index, found), Outcome::Stored(stored)) => {
                if self.is_lent(index, &found.claim) {
                    // Its holder has seen to it that nobody else's overlaps it.
                } else if stored.claim.is_same_grant(&found.claim) {
                    self.rely_on(&stored, found.version.revision);
                } else if self.is_given(&found.claim) {
                    // It has stood against others since before.
                    self.rely_on(&stored, found.version.revision);
                    self.made.push(Made { stored: *stored, before: Some(found.claim) });
                } else {
                    self.rely_on(&stored, stored.version.revision);
                    self.made.push(Made { stored: *stored, before: None });
                }
                self.make(index + 1);
            }
            (Step::Check(index), Outcome::Found(found)) => self.check(index, found.as_deref().into_iter()),
            (Step::Check(index), Outcome::Listed(found)) => self.check(index, found.iter()),
            (Step::Await(index), Outcome::Waited) => self.step = Step::Check(index),
            (Step::Clear(index, mut cooled), Outcome::Deleted | Outcome::Stale) => {
                cooled.pop();
                self.step = if cooled.is_empty() { Step::Check(index) } else { Step::Clear(index, cooled) };
            }
            (step, outcome) => {
                let reason =
                    format!("the store of claims answered {outcome:?} while {step:?}; please report this");
                self.fail(Verdict::NotNow(Failure { reason, is_lasting: true }));
            }
        }
    }

    fn rely_on(&mut self, stored: &StoredClaim, revision: u64) {
        self.unverified.push((stored.claim.key, revision));
    }

    fn make(&mut self, index: usize) {
        if index < self.wishes.len() {
            self.step = Step::Make(index);
        } else {
            self.checks = self.plan();
            self.look(0);
        }
    }

    /// Where others that overlap can be: by name where only larger ones can, else among all of the address.
    fn plan(&self) -> Vec<Check> {
        let keys = self.unverified.iter().map(|(key, _)| *key);
        let wide: BTreeSet<_> =
            keys.clone().filter(|key| key.contains_others()).map(ClaimKey::address).collect();
        let around = keys.filter(|key| !wide.contains(&key.address())).flat_map(ClaimKey::around);
        let around: BTreeSet<_> = around.map(Check::Key).collect();
        around.into_iter().chain(wide.iter().copied().map(Check::Address)).collect()
    }

    fn look(&mut self, index: usize) {
        self.step = if index < self.checks.len() {
            Step::Check(index)
        } else {
            Step::Over(Box::new(Verdict::Granted))
        };
    }

    /// Decides about a claim that is there already.
    fn judge(&mut self, index: usize, found: Box<StoredClaim>) {
        let wish = &self.wishes[index];
        let wanted = wish.key;
        let is_own = found.claim.is_same_grant(wish);
        let is_given = wish.slot.is_none() && self.is_given(&found.claim);
        let is_lent = self.is_lent(index, &found.claim);
        let is_free = self.cooldowns.are_over_for(&found.claim, self.now);
        if is_own || is_given || is_lent || is_free {
            if self.purpose == Purpose::Look {
                return self.make(index + 1);
            }
            let is_settled = (is_own || is_lent) && found.claim.state == ClaimState::Bound;
            let is_fresh = self.now < found.claim.renewed.saturating_add_or_max(RENEW_AFTER);
            if is_settled && is_fresh {
                return self.make(index + 1);
            }
            self.step = Step::Adopt(index, found);
            return;
        }
        let is_unsettled = found.claim.state == ClaimState::Reserved
            && self.now < found.claim.since.saturating_add_or_max(UNSETTLED);
        if is_unsettled && self.lose_patience() {
            self.step = Step::Linger(index);
        } else {
            self.fail(Verdict::Held { wanted, by: found });
        }
    }

    /// Whether a claim's holder has handed it over to this one.
    fn is_given(&self, claim: &Claim) -> bool {
        claim.slot.is_none() && self.givers.contains(&claim.holder)
    }

    /// Whether this holder has handed a claim over, does not get it back, and may go on with it.
    fn is_lent(&self, index: usize, claim: &Claim) -> bool {
        let wish = &self.wishes[index];
        wish.slot.is_none() && claim.is_lent_to(&wish.holder) && !self.is_given(claim)
    }

    /// A claim as the holder takes it over.
    fn adopted(&self, index: usize, found: &StoredClaim) -> Claim {
        let wish = &self.wishes[index];
        if self.is_lent(index, &found.claim) {
            return Claim { renewed: self.now, ..found.claim.clone() };
        }
        if !found.claim.is_same_grant(wish) {
            let previous_holder = self.is_given(&found.claim).then(|| found.claim.holder.clone());
            return Claim { previous_holder, ..wish.clone() };
        }
        let is_given_up = matches!(found.claim.state, ClaimState::Releasing | ClaimState::Cooldown);
        let adopted = Claim {
            holder_uid: wish.holder_uid.clone(),
            pool: wish.pool.clone(),
            retention: wish.retention.clone(),
            // A port that was found leads to the pod that it was found for.
            pod_uid: if wish.slot.is_some() { wish.pod_uid.clone() } else { found.claim.pod_uid.clone() },
            ..found.claim.clone()
        };
        let adopted = if is_given_up { adopted.into_state(ClaimState::Reserved, self.now) } else { adopted };
        // Later than whatever it says: a store leaves a version as it is when nothing changes, and whoever made the claim could
        // take it back from under this request.
        let before = adopted.renewed.max(adopted.since);
        Claim { renewed: self.now.max(before.saturating_add_or_max(SHORTEST)), ..adopted }
    }

    /// Decides about claims that may overlap the holder's.
    fn check<'a>(&mut self, index: usize, found: impl Iterator<Item = &'a StoredClaim>) {
        let Some(holder) = self.wishes.first().map(|wish| &wish.holder) else { return self.look(index + 1) };
        let slots: BTreeSet<_> = self.wishes.iter().map(|wish| &wish.slot).collect();
        let is_own = |other: &Claim| other.holder == *holder && slots.contains(&other.slot);
        let others = found.filter(|other| !is_own(&other.claim));
        let overlaps = others.filter_map(|other| {
            let (wanted, revision) = self.unverified.iter().find(|(key, _)| key.overlaps(other.claim.key))?;
            Some((*wanted, *revision, other))
        });
        let (cooled, overlaps): (Vec<_>, Vec<_>) =
            overlaps.partition(|(_, _, other)| self.cooldowns.are_over_for(&other.claim, self.now));
        // The eldest decides: one that came before is final.
        let eldest = overlaps.into_iter().min_by_key(|(_, _, other)| other.version.revision);
        let Some((wanted, revision, other)) = eldest else {
            let cooled: Vec<_> = cooled.into_iter().map(|(_, _, other)| other.version.clone()).collect();
            if cooled.is_empty() || self.purpose == Purpose::Look {
                return self.look(index + 1);
            }
            self.step = Step::Clear(index, cooled);
            return;
        };
        let is_younger = revision < other.version.revision;
        let by = Box::new(other.clone());
        if !is_younger {
            self.fail(Verdict::Held { wanted, by });
        } else if self.lose_patience() {
            self.step = Step::Await(index);
        } else {
            let reason = format!("a request for {}, which overlaps {wanted}, is under way", by.claim.key);
            self.fail(Verdict::NotNow(Failure { reason, is_lasting: false }));
        }
    }

    fn lose_patience(&mut self) -> bool {
        let is_left = self.patience != 0;
        self.patience = self.patience.saturating_sub(1);
        is_left
    }

    fn fail(&mut self, verdict: Verdict) {
        self.step =
            if self.made.is_empty() { Step::Over(Box::new(verdict)) } else { Step::Undo(Box::new(verdict)) };
    }

    /// What was taken back is gone, or its giver's again; what another request of the same holder renewed meanwhile is that one's now, and what
    /// could not be taken back is an orphan.
    fn undone(&mut self, step: Step) {
        self.made.pop();
        match step {
            Step::Undo(verdict) if self.made.is_empty() => self.step = Step::Over(verdict),
            step => self.step = step,
        }
    }
}

/// Adding to a time that cannot overflow.
trait SaturatingTime {
    fn saturating_add_or_max(self, duration: SignedDuration) -> Timestamp;
}

impl SaturatingTime for Timestamp {
    fn saturating_add_or_max(self, duration: SignedDuration) -> Timestamp {
        self.checked_add(duration).unwrap_or(Timestamp::MAX)
    }
}
