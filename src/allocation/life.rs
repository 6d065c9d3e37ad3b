//! The life of a claim: Reserved, Bound, Releasing, Cooldown, gone.
//!
//! # Guarantees
//! - A claim that a request has relied on within the grace time is not given up, whatever the caller believes about pods: what
//!   was admitted may be on its way into the store, and the caller's view of pods may be old.
//! - A claim that was in use is nobody else's before the nodes have confirmed that they serve it no more, and its cooldown
//!   after that is over.
//! - What was handed over and is not used by its new holder goes back to the one that handed it over, while that one asks for it.
//! - Every change is decided from the version that was read, and is to be stored only over that version.

use std::sync::Arc;

use k8s_openapi::jiff::SignedDuration;
use k8s_openapi::jiff::Timestamp;

use crate::allocation::claim::Claim;
use crate::api::crd::port_claim::ClaimState;
use crate::api::crd::shared::RetentionPolicy;
use crate::model::holder::Holder;

/// How long an admitted request can take to be stored and to be seen: the API server's request timeout and the webhooks'
/// after it, and as much again for a watch that lags.
pub const GRACE: SignedDuration = SignedDuration::from_secs(120);

/// How long a released port is kept from other holders where no pool says otherwise.
pub const COOLDOWN: SignedDuration = SignedDuration::from_secs(120);

/// What is known of a claim's use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The UID of the pod that the port leads to: the active one of those that ask for it, of the claim's holder and not ended.
    pub pod: Option<Arc<str>>,
    /// Whether a stored template or Pinhole of the holder asks for it, with or without pods.
    pub is_declared: bool,
    /// Whether the holder exists.
    pub holder_exists: bool,
    /// The holder that handed it over, while that one asks for it still.
    pub lent_to: Option<Holder>,
    /// Whether a node may still serve it: none has when each has confirmed, or is known to be gone.
    pub is_served: bool,
}

impl Usage {
    /// Whether anything asks for the port.
    pub fn is_used(&self) -> bool {
        self.pod.is_some() || self.is_declared
    }
}

/// What is to be done with a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Store it like this.
    Update(Box<Claim>),
    /// It is over.
    Delete,
}

/// What is to be done with a claim now; `None` when it is as it should be.
pub fn next(claim: &Claim, usage: &Usage, cooldown: SignedDuration, now: Timestamp) -> Option<Change> {
    let is_over =
        |since: Timestamp, time: SignedDuration| since.checked_add(time).is_ok_and(|end| end <= now);
    let is_settled = is_over(claim.renewed, GRACE);
    if usage.is_used() {
        // Whoever handed it over has no part in it any more once it asks no longer.
        let previous_holder =
            claim.previous_holder.clone().filter(|_| usage.lent_to.is_some() || !is_settled);
        return bind(claim, previous_holder, usage, now);
    }
    if let Some(previous) = usage.lent_to.as_ref().filter(|_| is_settled) {
        return Some(update(give_back(claim, previous, now)));
    }
    // The pod that it led to stays in it, for whoever asks its nodes, until they have confirmed.
    let pod_uid = claim.pod_uid.clone().filter(|_| usage.is_served);
    let unused = Claim { pod_uid, previous_holder: None, ..claim.clone() };
    let change = |state| Some(update(unused.into_state(state, now)));
    match claim.state {
        ClaimState::Reserved | ClaimState::Bound if !is_settled => {
            if usage.is_served {
                None
            } else {
                idle(claim, now)
            }
        }
        // Its pod came and went without being seen, or a grant showed late, and a node may not have noticed the end.
        ClaimState::Reserved | ClaimState::Cooldown if usage.is_served => change(ClaimState::Releasing),
        ClaimState::Reserved => Some(Change::Delete),
        ClaimState::Bound => match claim.retention.policy {
            RetentionPolicy::Retain if usage.holder_exists => idle(claim, now),
            RetentionPolicy::Release | RetentionPolicy::Retain => change(ClaimState::Releasing),
            RetentionPolicy::Ttl => {
                let ttl = SignedDuration::from_secs(claim.retention.ttl_seconds.unwrap_or_default().into());
                match idle(claim, now) {
                    None if is_over(claim.since, ttl) => change(ClaimState::Releasing),
                    other => other,
                }
            }
        },
        ClaimState::Releasing => (!usage.is_served).then(|| change(ClaimState::Cooldown)).flatten(),
        ClaimState::Cooldown => is_over(claim.since, cooldown).then_some(Change::Delete),
    }
}

fn update(claim: Claim) -> Change {
    Change::Update(Box::new(claim))
}

/// The claim of a port that is in use.
fn bind(claim: &Claim, previous_holder: Option<Holder>, usage: &Usage, now: Timestamp) -> Option<Change> {
    // What is kept for a time without a pod is so from here on, should it not be declared any more by then.
    let since = if usage.pod.is_none() && claim.pod_uid.is_some() { now } else { claim.since };
    let used = Claim { pod_uid: usage.pod.clone(), previous_holder, since, ..claim.clone() };
    let bound = used.into_state(ClaimState::Bound, now);
    (bound != *claim).then(|| update(bound))
}

/// The claim of whoever handed the port over, and has it again.
fn give_back(claim: &Claim, previous: &Holder, now: Timestamp) -> Claim {
    let returned = Claim {
        holder: previous.clone(),
        holder_uid: String::new(),
        previous_holder: None,
        pod_uid: None,
        since: now,
        ..claim.clone()
    };
    returned.into_state(ClaimState::Bound, now)
}

/// A claim that is kept without a pod: the time without one begins when the pod is missed first.
fn idle(claim: &Claim, now: Timestamp) -> Option<Change> {
    let is_noticed = claim.pod_uid.is_none();
    (!is_noticed).then(|| update(Claim { pod_uid: None, since: now, ..claim.clone() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::crd::shared::Retention;
    use crate::model::holder::Holder;
    use crate::model::holder::ObjectName;

    const COOLDOWN: SignedDuration = SignedDuration::from_secs(300);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn claim(state: ClaimState) -> Claim {
        let holder = Holder::new("Deployment", ObjectName::new("mail", "postfix"));
        Claim { state, ..Claim::reserve("v4-203-0-113-7-tcp-25".parse().unwrap(), holder, at(0)) }
    }

    fn retained(policy: RetentionPolicy, ttl_seconds: Option<u32>) -> Claim {
        let retention = Retention { policy, ttl_seconds };
        Claim { retention, pod_uid: Some("pod-1".into()), ..claim(ClaimState::Bound) }
    }

    fn pod() -> Usage {
        Usage { pod: Some("pod-1".into()), holder_exists: true, is_served: true, ..Usage::default() }
    }

    fn served() -> Usage {
        Usage { is_served: true, holder_exists: true, ..Usage::default() }
    }

    /// What becomes of a claim, as one word.
    fn becomes(claim: &Claim, usage: &Usage, second: i64) -> &'static str {
        match next(claim, usage, COOLDOWN, at(second)) {
            None => "same",
            Some(Change::Delete) => "gone",
            Some(Change::Update(changed)) if changed.state == claim.state => "noted",
            Some(Change::Update(changed)) => changed.state.name(),
        }
    }

    #[test]
    fn each_state_ends_when_it_should_and_not_before() {
        let reserved = claim(ClaimState::Reserved);
        let (bound, releasing) = (claim(ClaimState::Bound), claim(ClaimState::Releasing));
        let cooling = claim(ClaimState::Cooldown);
        let unserved = Usage::default();
        let template = Usage { is_declared: true, ..Usage::default() };
        let cases = [
            ("an orphan within its grace", &reserved, &unserved, 119, "same"),
            ("an orphan", &reserved, &unserved, 120, "gone"),
            ("a pod that nobody saw and a node may serve", &reserved, &served(), 120, "Releasing"),
            ("a pod that is seen", &reserved, &pod(), 1, "Bound"),
            ("a template without pods", &reserved, &template, 500, "Bound"),
            ("a pod that is gone, admitted a moment ago", &bound, &served(), 119, "same"),
            ("a pod that is gone", &bound, &served(), 120, "Releasing"),
            ("nodes that have yet to confirm", &releasing, &served(), 9_999, "same"),
            ("nodes that have confirmed", &releasing, &unserved, 120, "Cooldown"),
            ("a holder that comes back", &releasing, &pod(), 120, "Bound"),
            ("a port that cools down", &cooling, &unserved, 299, "same"),
            ("a port that has cooled down", &cooling, &unserved, 300, "gone"),
            ("a port that cools down and turns out to be served", &cooling, &served(), 300, "Releasing"),
            ("a holder that comes back late", &cooling, &pod(), 299, "Bound"),
        ];
        for (name, claim, usage, second, expected) in cases {
            assert_eq!(becomes(claim, usage, second), expected, "{name}");
        }
    }

    #[test]
    fn what_was_handed_over_goes_back_while_only_the_giver_asks_for_it() {
        let giver = Holder::new("Deployment", ObjectName::new("mail", "exim"));
        let taken = Claim { previous_holder: Some(giver.clone()), ..claim(ClaimState::Bound) };
        let lent = Usage { lent_to: Some(giver.clone()), ..served() };
        let becomes = |claim: &Claim, usage: &Usage, second| match next(claim, usage, COOLDOWN, at(second)) {
            Some(Change::Update(changed)) => {
                let previous = changed.previous_holder.map(|previous| previous.object.name);
                format!("{} {} {previous:?}", changed.holder.object.name, changed.state.name())
            }
            other => format!("{other:?}"),
        };
        assert_eq!(becomes(&taken, &lent, 119), "None", "its heir may be on its way into the store");
        for state in [ClaimState::Reserved, ClaimState::Bound] {
            assert_eq!(becomes(&Claim { state, ..taken.clone() }, &lent, 120), "exim Bound None");
        }
        assert_eq!(becomes(&taken, &served(), 120), "postfix Releasing None", "nobody asks for it");
        let used = Claim { pod_uid: Some("pod-1".into()), ..taken };
        assert_eq!(becomes(&used, &Usage { lent_to: Some(giver), ..pod() }, 500), "None");
        assert_eq!(becomes(&used, &pod(), 119), "None", "a pod of the giver may not have been seen yet");
        assert_eq!(becomes(&used, &pod(), 120), "postfix Bound None");
    }

    #[test]
    fn a_bound_claim_follows_the_active_pod() {
        let bound = Claim { pod_uid: Some("pod-1".into()), ..claim(ClaimState::Bound) };
        assert_eq!(becomes(&bound, &pod(), 500), "same");
        let second = Usage { pod: Some("pod-2".into()), ..pod() };
        assert_eq!(becomes(&bound, &second, 500), "noted");
    }

    #[test]
    fn ports_are_kept_without_a_pod_as_long_as_their_retention_says() {
        let gone = Usage { holder_exists: false, ..served() };
        let kept = retained(RetentionPolicy::Retain, None);
        assert_eq!(becomes(&kept, &served(), 500), "noted");
        let idle = Claim { pod_uid: None, since: at(500), ..kept.clone() };
        assert_eq!(becomes(&idle, &served(), 999_999), "same");
        assert_eq!(becomes(&idle, &gone, 501), "Releasing");

        let timed = retained(RetentionPolicy::Ttl, Some(60));
        assert_eq!(becomes(&timed, &gone, 500), "noted");
        let idle = Claim { pod_uid: None, since: at(500), ..timed.clone() };
        assert_eq!(becomes(&idle, &gone, 559), "same");
        assert_eq!(becomes(&idle, &gone, 560), "Releasing");
        assert_eq!(becomes(&idle, &pod(), 560), "noted", "a pod that comes in time keeps the port");

        let awaited = Usage { is_declared: true, ..served() };
        let Some(Change::Update(missed)) = next(&timed, &awaited, COOLDOWN, at(500)) else { panic!() };
        assert_eq!((missed.state, missed.since), (ClaimState::Bound, at(500)));
        assert_eq!(becomes(&missed, &awaited, 999_999), "same");
        assert_eq!(becomes(&missed, &gone, 559), "same");
        assert_eq!(becomes(&missed, &gone, 560), "Releasing", "the time began when its pod was missed");
    }
}
