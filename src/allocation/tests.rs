//! Claims as a state machine: requests of several holders, ports handed over between them, a controller with old news, crashes,
//! and time, in any order.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::jiff::SignedDuration;
use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;

use super::acquire::Acquisition;
use super::acquire::Purpose;
use super::acquire::Verdict;
use super::claim::Claim;
use super::claim::StoredClaim;
use super::key::ClaimKey;
use super::life;
use super::life::Change;
use super::life::Usage;
use super::memory::Memory;
use super::operation::Failure;
use super::operation::Operation;
use super::operation::Outcome;
use super::overlap;
use super::overlap::Rank;
use super::transfer::Heirs;
use crate::api::crd::port_claim::ClaimState;
use crate::model::holder::Holder;
use crate::model::holder::ObjectName;

const COOLDOWN: SignedDuration = SignedDuration::from_secs(60);

/// What requests ask for: few ports, so that nearly everything meets something.
const WISHES: [&[&str]; 8] = [
    &["v4-192-0-2-1-tcp-33"],
    &["v4-192-0-2-1-tcp-33", "v4-192-0-2-1-tcp-40"],
    &["v4-192-0-2-1-tcp-40", "v4-192-0-2-1-udp-33"],
    &["v4-192-0-2-1-tcp-32-47"],
    &["v4-192-0-2-1-tcp-33", "v4-192-0-2-2-tcp-33"],
    &["v4-192-0-2-1"],
    &["v4-192-0-2-2-tcp-33"],
    &["v4-192-0-2-1-tcp-256-511", "v4-192-0-2-1-tcp-48"],
];

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn holder(number: usize) -> Holder {
    Holder::new("Deployment", ObjectName::new("games", format!("holder-{number}")))
}

fn keys(wish: usize) -> Vec<ClaimKey> {
    WISHES[wish].iter().map(|name| name.parse().unwrap()).collect()
}

fn ask(number: usize, wish: usize, purpose: Purpose, second: i64) -> Acquisition {
    let wishes = keys(wish).into_iter().map(|key| Claim::reserve(key, holder(number), at(second))).collect();
    Acquisition::new(wishes, purpose, at(second), COOLDOWN)
}

/// Does one operation of a request; `false` when it is over.
fn advance(acquisition: &mut Acquisition, store: &mut Memory) -> bool {
    let Some(operation) = acquisition.next() else { return false };
    acquisition.take(store.perform(operation));
    true
}

fn finish(acquisition: &mut Acquisition, store: &mut Memory) -> Verdict {
    while advance(acquisition, store) {}
    acquisition.verdict().unwrap().clone()
}

/// A pod that was stored with its claims granted.
#[derive(Clone, Debug)]
struct Pod {
    uid: Arc<str>,
    holder: Holder,
    keys: Vec<ClaimKey>,
    /// Whether the object exists; a node serves it until it has confirmed that it no longer does.
    exists: bool,
}

struct Flying {
    since: i64,
    number: usize,
    wish: usize,
    acquisition: Acquisition,
}

#[derive(Default)]
struct World {
    now: i64,
    store: Memory,
    /// What the holders say now, and everybody whom one has ever named.
    heirs: Heirs,
    named: BTreeSet<(Holder, Holder)>,
    /// What was handed over by whom, and did not come back.
    given: BTreeSet<(Holder, ClaimKey)>,
    flying: Vec<Flying>,
    served: Vec<Pod>,
    /// Stored objects that nobody was asked about; each is served once the controller has bound all its claims to it.
    bypassed: Vec<Pod>,
    pods_made: usize,
    /// What the controller knows, and since when.
    known_pods: Vec<Pod>,
    known_claims: Vec<StoredClaim>,
    known_since: i64,
}

#[derive(Clone, Debug)]
enum Step {
    Ask {
        holder: usize,
        wish: usize,
    },
    Advance(usize),
    Settle {
        flying: usize,
        is_stored: bool,
    },
    Crash(usize),
    /// An object is stored without having been granted anything.
    Bypass {
        holder: usize,
        wish: usize,
    },
    DeletePod(usize),
    Confirm(usize),
    Transfer {
        from: usize,
        to: usize,
    },
    Look,
    Control(usize),
    Pass(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let any = 0..64usize;
    let step = prop_oneof![
        3 => (0..3usize, 0..WISHES.len()).prop_map(|(holder, wish)| Step::Ask { holder, wish }),
        12 => any.clone().prop_map(Step::Advance),
        4 => (any.clone(), proptest::bool::weighted(0.8))
            .prop_map(|(flying, is_stored)| Step::Settle { flying, is_stored }),
        1 => any.clone().prop_map(Step::Crash),
        1 => (0..3usize, 0..WISHES.len()).prop_map(|(holder, wish)| Step::Bypass { holder, wish }),
        2 => any.clone().prop_map(Step::DeletePod),
        2 => any.clone().prop_map(Step::Confirm),
        1 => (0..3usize, 1..3usize).prop_map(|(from, next)| Step::Transfer { from, to: (from + next) % 3 }),
        2 => Just(Step::Look),
        6 => any.prop_map(Step::Control),
        2 => (1..20i64).prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 1..250)
}

fn pick<T>(items: &[T], number: usize) -> Option<usize> {
    (!items.is_empty()).then(|| number % items.len())
}

impl World {
    fn take(&mut self, step: &Step) {
        match *step {
            Step::Ask { holder, wish } => {
                let acquisition = ask(holder, wish, Purpose::Reserve, self.now);
                let acquisition = acquisition.taking_over_from(self.heirs.givers_to(&self::holder(holder)));
                self.flying.push(Flying { since: self.now, number: holder, wish, acquisition });
            }
            Step::Advance(number) => {
                if let Some(index) = pick(&self.flying, number) {
                    advance(&mut self.flying[index].acquisition, &mut self.store);
                }
            }
            Step::Settle { flying, is_stored } => self.settle(flying, is_stored),
            Step::Crash(number) => {
                if let Some(index) = pick(&self.flying, number) {
                    self.flying.swap_remove(index);
                }
            }
            Step::Bypass { holder, wish } => {
                let pod = self.pod(holder, wish);
                self.bypassed.push(pod);
            }
            Step::DeletePod(number) => {
                let (served, bypassed) = (self.served.len(), self.bypassed.len());
                match number % (served + bypassed).max(1) {
                    index if index < served => self.served[index].exists = false,
                    index if index < served + bypassed => drop(self.bypassed.swap_remove(index - served)),
                    _ => {}
                }
            }
            Step::Confirm(number) => {
                if let Some(index) = pick(&self.served, number).filter(|index| !self.served[*index].exists) {
                    self.served.swap_remove(index);
                }
            }
            Step::Transfer { from, to } => self.transfer(holder(from), holder(to)),
            Step::Look => self.look(),
            Step::Control(number) => {
                if let Some(index) = pick(&self.known_claims, number) {
                    self.control(&self.known_claims[index].clone());
                }
            }
            Step::Pass(seconds) => self.pass(seconds),
        }
    }

    /// Ends a request that has its verdict: what was granted is stored as a pod, or refused by somebody after us.
    fn settle(&mut self, number: usize, is_stored: bool) {
        let Some(index) = pick(&self.flying, number) else { return };
        let Some(verdict) = self.flying[index].acquisition.verdict() else { return };
        let is_granted = *verdict == Verdict::Granted;
        let flying = self.flying.swap_remove(index);
        if is_granted && is_stored {
            let pod = self.pod(flying.number, flying.wish);
            self.served.push(pod);
        }
    }

    /// A holder names an heir, or nobody any more.
    fn transfer(&mut self, from: Holder, to: Holder) {
        let is_named = self.heirs.of(&from) == Some(&to);
        self.heirs.set(from.clone(), (!is_named).then(|| to.clone()));
        self.named.insert((from, to));
    }

    /// Whether a holder has ever let another have its ports, itself or through others.
    fn has_given(&self, from: &Holder, to: &Holder) -> bool {
        let mut known = BTreeSet::from([from]);
        while let Some((_, next)) =
            self.named.iter().find(|(from, to)| known.contains(from) && !known.contains(to))
        {
            known.insert(next);
        }
        from != to && known.contains(to)
    }

    fn pod(&mut self, number: usize, wish: usize) -> Pod {
        self.pods_made += 1;
        let uid = format!("pod-{}", self.pods_made).into();
        Pod { uid, holder: holder(number), keys: keys(wish), exists: true }
    }

    fn look(&mut self) {
        let stored = self.served.iter().filter(|pod| pod.exists).chain(&self.bypassed);
        self.known_pods = stored.cloned().collect();
        self.known_claims = self.store.claims().cloned().collect();
        self.known_since = self.now;
    }

    fn control(&mut self, stored: &StoredClaim) {
        let is_user = |pod: &&Pod| pod.holder == stored.claim.holder && pod.keys.contains(&stored.claim.key);
        let is_giver = |pod: &Pod| {
            stored.claim.previous_holder.as_ref() == Some(&pod.holder) && pod.keys.contains(&stored.claim.key)
        };
        let claims = self.known_claims.iter().map(|stored| (stored.claim.key, stored.clone())).collect();
        let rank = overlap::rank(stored, &claims);
        let pod = self.known_pods.iter().find(is_user).map(|pod| pod.uid.clone());
        if rank == Rank::Unclear && pod.is_some() {
            return;
        }
        let usage = Usage {
            pod: pod.filter(|_| rank == Rank::First),
            is_declared: false,
            lent_to: self.known_pods.iter().find(|pod| is_giver(pod)).map(|pod| pod.holder.clone()),
            holder_exists: true,
            is_served: self.served.iter().any(|pod| is_user(&pod) || is_giver(pod)),
        };
        let operation = match life::next(&stored.claim, &usage, COOLDOWN, at(self.now)) {
            None => return,
            Some(Change::Update(claim)) => Operation::Update(*claim, stored.version.clone()),
            Some(Change::Delete) => Operation::Delete(stored.version.clone()),
        };
        self.store.perform(operation);
        let is_bound = |pod: &mut Pod| {
            let is_its = |stored: &&StoredClaim| {
                stored.claim.state == ClaimState::Bound && stored.claim.holder == pod.holder
            };
            let bound: BTreeSet<_> =
                self.store.claims().filter(is_its).map(|stored| stored.claim.key).collect();
            pod.keys.iter().all(|key| bound.contains(key))
        };
        self.served.extend(self.bypassed.extract_if(.., is_bound));
    }

    /// No request takes longer than the API server waits for it, and no watch lags for ever.
    fn pass(&mut self, seconds: i64) {
        self.now += seconds;
        let now = self.now;
        self.flying.retain(|flying| now - flying.since <= 30);
        if 30 < now - self.known_since {
            self.look();
        }
    }

    /// The claims by which a pod may be served, and whose each is: its holder's, and its giver's while that one serves it.
    fn granted(&self, pod: &Pod) -> BTreeMap<ClaimKey, BTreeSet<Holder>> {
        let is_its = |claim: &&Claim| claim.holder == pod.holder || claim.is_lent_to(&pod.holder);
        let claims = self.store.claims().map(|stored| &stored.claim).filter(is_its);
        let asked = claims.filter(|claim| pod.keys.contains(&claim.key));
        let whose =
            |claim: &Claim| [&claim.holder].into_iter().chain(&claim.previous_holder).cloned().collect();
        asked.map(|claim| (claim.key, whose(claim))).collect()
    }

    /// Sees to it that each claim that changed hands was handed over, given back, or free.
    fn follow(&mut self, before: &[StoredClaim]) {
        for old in before.iter().map(|stored| &stored.claim) {
            let now = self.store.claims().map(|stored| &stored.claim).find(|claim| claim.key == old.key);
            let came_back = now.is_none_or(|new| old.previous_holder.as_ref() == Some(&new.holder));
            if let Some(previous) = old.previous_holder.as_ref().filter(|_| came_back) {
                self.given.remove(&(previous.clone(), old.key));
            } else if let Some(new) = now.filter(|new| new.holder != old.holder) {
                if new.previous_holder.as_ref() == Some(&old.holder) {
                    assert!(self.has_given(&old.holder, &new.holder), "{old:?} was taken: {new:?}");
                    self.given.insert((old.holder.clone(), old.key));
                } else {
                    assert_eq!(old.state, ClaimState::Cooldown, "{old:?} became {new:?}");
                }
            }
        }
    }

    fn check(&self) {
        for (index, pod) in self.served.iter().enumerate() {
            let granted = self.granted(pod);
            for other in self.served[..index].iter().filter(|other| other.holder != pod.holder) {
                let others = self.granted(other);
                let both = || granted.iter().flat_map(|one| others.iter().map(move |other| (one, other)));
                let shared = both().filter(|((key, _), (other, _))| key.overlaps(**other));
                // What was handed over is served for both. A request under way may have taken over a part of it.
                let contradict = shared.clone().find(|((_, whose), (_, others))| whose.is_disjoint(others));
                assert_eq!(contradict, None, "two holders: {pod:?} and {other:?}");
                let is_given =
                    self.has_given(&pod.holder, &other.holder) || self.has_given(&other.holder, &pod.holder);
                assert!(is_given || shared.count() == 0, "{pod:?} and {other:?} have handed nothing over");
            }
            let is_kept = |key: &ClaimKey| {
                granted.contains_key(key) || self.given.contains(&(pod.holder.clone(), *key))
            };
            let lost = pod.keys.iter().find(|key| !is_kept(key));
            assert_eq!(lost, None, "{pod:?} lost a claim while it is served");
        }
    }

    /// Everything ends, and the controller has all the time it needs.
    fn end(&mut self) {
        self.flying.clear();
        self.served.clear();
        self.bypassed.clear();
        for _ in 0..8 {
            self.now += 200;
            self.look();
            for claim in self.known_claims.clone() {
                self.control(&claim);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_no_port_has_two_holders_and_nothing_leaks(steps in steps()) {
        let mut world = World::default();
        for step in &steps {
            let before: Vec<_> = world.store.claims().cloned().collect();
            world.take(step);
            world.follow(&before);
            world.check();
        }
        world.end();
        let left: Vec<_> = world.store.claims().collect();
        prop_assert!(left.is_empty(), "leaked: {left:?}");
    }

    #[test]
    fn of_two_that_ask_at_once_never_both_are_granted(
        wishes in (0..WISHES.len(), 0..WISHES.len()),
        order in proptest::collection::vec(any::<bool>(), 0..60),
    ) {
        let mut store = Memory::default();
        let mut one = ask(1, wishes.0, Purpose::Reserve, 0);
        let mut other = ask(2, wishes.1, Purpose::Reserve, 0);
        for is_one in order {
            advance(if is_one { &mut one } else { &mut other }, &mut store);
        }
        let verdicts = [finish(&mut one, &mut store), finish(&mut other, &mut store)];
        let granted = verdicts.iter().filter(|verdict| **verdict == Verdict::Granted).count();
        let overlap = keys(wishes.0).iter().any(|key| keys(wishes.1).iter().any(|other| key.overlaps(*other)));
        prop_assert!(granted <= if overlap { 1 } else { 2 }, "{verdicts:?}");
        prop_assert!(overlap || granted == 2, "{verdicts:?}");
    }
}

/// Both do one step after the other, as two processes of the same speed would.
fn race(one: (usize, usize), other: (usize, usize)) -> [Verdict; 2] {
    let mut store = Memory::default();
    let mut one = ask(one.0, one.1, Purpose::Reserve, 0);
    let mut other = ask(other.0, other.1, Purpose::Reserve, 0);
    loop {
        let is_one = advance(&mut one, &mut store);
        let is_other = advance(&mut other, &mut store);
        if !is_one && !is_other {
            return [one, other].map(|acquisition| acquisition.verdict().unwrap().clone());
        }
    }
}

#[test]
fn of_two_that_overlap_and_ask_at_once_exactly_one_is_granted() {
    for (one, other) in [(0, 3), (3, 0), (0, 5), (5, 1), (3, 5), (1, 4)] {
        let verdicts = race((1, one), (2, other));
        let granted = verdicts.iter().filter(|verdict| **verdict == Verdict::Granted).count();
        assert_eq!(granted, 1, "{:?} and {:?}: {verdicts:?}", WISHES[one], WISHES[other]);
    }
}

#[test]
fn a_holder_never_stands_in_its_own_way() {
    for (one, other) in [(0, 0), (0, 3), (3, 5), (1, 2)] {
        assert_eq!(race((1, one), (1, other)), [Verdict::Granted, Verdict::Granted]);
    }
}

#[test]
fn a_request_that_gets_only_a_part_leaves_nothing_behind() {
    let mut store = Memory::default();
    assert_eq!(finish(&mut ask(1, 6, Purpose::Reserve, 0), &mut store), Verdict::Granted);
    let refused = finish(&mut ask(2, 4, Purpose::Reserve, 100), &mut store);
    let Verdict::Held { wanted, by } = refused else { panic!("{refused:?}") };
    assert_eq!((wanted.to_string().as_str(), &by.claim.holder), ("v4-192-0-2-2-tcp-33", &holder(1)));
    assert_eq!(store.claims().map(|stored| stored.claim.key).collect::<Vec<_>>(), keys(6));
}

#[test]
fn a_dry_run_sees_the_same_and_stores_nothing() {
    let mut store = Memory::default();
    assert_eq!(finish(&mut ask(1, 3, Purpose::Reserve, 0), &mut store), Verdict::Granted);
    let before: Vec<_> = store.claims().cloned().collect();
    for wish in [0, 1, 5] {
        let seen = finish(&mut ask(2, wish, Purpose::Look, 100), &mut store);
        assert!(matches!(seen, Verdict::Held { .. }), "{seen:?}");
        assert_eq!(finish(&mut ask(1, wish, Purpose::Look, 100), &mut store), Verdict::Granted);
    }
    assert_eq!(finish(&mut ask(2, 6, Purpose::Look, 100), &mut store), Verdict::Granted);
    assert_eq!(store.claims().cloned().collect::<Vec<_>>(), before);
}

#[test]
fn a_port_that_has_cooled_down_is_anybodys_and_before_that_only_its_holders() {
    let cooling = || {
        let mut store = Memory::default();
        let claim = Claim { state: ClaimState::Cooldown, ..Claim::reserve(keys(0)[0], holder(1), at(0)) };
        store.perform(Operation::Create(claim));
        store
    };
    assert_eq!(finish(&mut ask(1, 0, Purpose::Reserve, 59), &mut cooling()), Verdict::Granted);
    let early = finish(&mut ask(2, 0, Purpose::Reserve, 59), &mut cooling());
    assert!(matches!(early, Verdict::Held { .. }), "{early:?}");
    assert_eq!(finish(&mut ask(2, 0, Purpose::Reserve, 60), &mut cooling()), Verdict::Granted);
}

#[test]
fn a_block_that_has_cooled_down_is_in_nobodys_way_and_neither_is_a_port_in_a_block() {
    for (cooled, wished) in [(3, 0), (0, 3), (1, 5)] {
        let cooling = || {
            let mut store = Memory::default();
            for key in keys(cooled) {
                let claim = Claim { state: ClaimState::Cooldown, ..Claim::reserve(key, holder(1), at(0)) };
                store.perform(Operation::Create(claim));
            }
            store
        };
        let mut store = cooling();
        let early = finish(&mut ask(2, wished, Purpose::Reserve, 59), &mut store);
        assert!(matches!(early, Verdict::Held { .. }), "{early:?}");
        assert_eq!(finish(&mut ask(2, wished, Purpose::Look, 60), &mut store), Verdict::Granted);
        assert_eq!(store.claims().count(), keys(cooled).len(), "a dry run removes nothing");
        assert_eq!(finish(&mut ask(2, wished, Purpose::Reserve, 60), &mut store), Verdict::Granted);
        assert_eq!(store.claims().map(|stored| stored.claim.key).collect::<Vec<_>>(), keys(wished));
    }
}

#[test]
fn a_store_that_fails_midway_is_cleaned_up_and_the_request_may_come_back() {
    let mut store = Memory::default();
    let mut acquisition = ask(1, 1, Purpose::Reserve, 0);
    advance(&mut acquisition, &mut store);
    let failure = Failure { reason: "the store is away".to_owned(), is_lasting: false };
    acquisition.take(Outcome::Failed(failure.clone()));
    assert_eq!(finish(&mut acquisition, &mut store), Verdict::NotNow(failure));
    assert_eq!(store.claims().count(), 0);
    assert_eq!(finish(&mut ask(1, 1, Purpose::Reserve, 1), &mut store), Verdict::Granted);
}

#[test]
fn what_a_second_request_of_the_holder_relies_on_is_not_taken_back_by_the_first_within_the_same_second() {
    let mut store = Memory::default();
    let mut first = ask(1, 1, Purpose::Reserve, 0);
    advance(&mut first, &mut store);
    assert_eq!(finish(&mut ask(1, 0, Purpose::Reserve, 0), &mut store), Verdict::Granted);
    first.take(Outcome::Failed(Failure { reason: "the store is away".to_owned(), is_lasting: false }));
    finish(&mut first, &mut store);
    assert_eq!(store.claims().map(|stored| stored.claim.key).collect::<Vec<_>>(), keys(0));
}

#[test]
fn a_rollout_of_many_pods_writes_a_claim_in_use_twice_a_minute_at_most() {
    let mut store = Memory::default();
    let claim = Claim { state: ClaimState::Bound, ..Claim::reserve(keys(0)[0], holder(1), at(0)) };
    store.perform(Operation::Create(claim));
    let revision = |store: &Memory| store.claims().next().unwrap().version.revision;
    let before = revision(&store);
    assert_eq!(finish(&mut ask(1, 0, Purpose::Reserve, 29), &mut store), Verdict::Granted);
    assert_eq!(revision(&store), before);
    assert_eq!(finish(&mut ask(1, 0, Purpose::Reserve, 30), &mut store), Verdict::Granted);
    assert_ne!(revision(&store), before);
    assert_eq!(store.claims().next().unwrap().claim.state, ClaimState::Bound);
}

fn shown(store: &Memory) -> Vec<String> {
    let said = |stored: &StoredClaim| {
        let Claim { key, holder, previous_holder, state, .. } = &stored.claim;
        let from = previous_holder.as_ref().map(|previous| format!(" from {}", previous.object.name));
        format!("{key} {} {}{}", state.name(), holder.object.name, from.unwrap_or_default())
    };
    store.claims().map(said).collect()
}

/// What holder 1 has, with the second request's word that holder 2 may have it.
fn handed_over(wish: usize, purpose: Purpose) -> (Memory, Acquisition) {
    let mut store = Memory::default();
    assert_eq!(finish(&mut ask(1, wish, Purpose::Reserve, 0), &mut store), Verdict::Granted);
    (store, ask(2, wish, purpose, 100).taking_over_from([holder(1)].into()))
}

#[test]
fn what_was_handed_over_changes_hands_in_one_write_and_serves_its_giver_on() {
    let (mut store, mut heir) = handed_over(1, Purpose::Reserve);
    assert_eq!(finish(&mut heir, &mut store), Verdict::Granted);
    let taken = [
        "v4-192-0-2-1-tcp-33 Reserved holder-2 from holder-1",
        "v4-192-0-2-1-tcp-40 Reserved holder-2 from holder-1",
    ];
    assert_eq!(shown(&store), taken);
    // Its pods may be recreated; whoever has nothing to do with it may not.
    assert_eq!(finish(&mut ask(1, 1, Purpose::Reserve, 101), &mut store), Verdict::Granted);
    let stranger = finish(&mut ask(0, 0, Purpose::Reserve, 200), &mut store);
    assert!(matches!(stranger, Verdict::Held { .. }), "{stranger:?}");
    assert_eq!(shown(&store), taken);
    // And back.
    let mut back = ask(1, 1, Purpose::Reserve, 102).taking_over_from([holder(2)].into());
    assert_eq!(finish(&mut back, &mut store), Verdict::Granted);
    assert_eq!(shown(&store)[0], "v4-192-0-2-1-tcp-33 Reserved holder-1 from holder-2");
}

#[test]
fn a_dry_run_takes_nothing_over() {
    let (mut store, mut heir) = handed_over(1, Purpose::Look);
    let before = shown(&store);
    assert_eq!(finish(&mut heir, &mut store), Verdict::Granted);
    assert_eq!(shown(&store), before);
}

#[test]
fn an_heir_that_gets_only_a_part_leaves_all_with_its_giver() {
    let (mut store, _) = handed_over(0, Purpose::Reserve);
    assert_eq!(finish(&mut ask(0, 6, Purpose::Reserve, 0), &mut store), Verdict::Granted);
    let before = shown(&store);
    let mut heir = ask(2, 4, Purpose::Reserve, 100).taking_over_from([holder(1)].into());
    let refused = finish(&mut heir, &mut store);
    assert!(matches!(refused, Verdict::Held { .. }), "{refused:?}");
    assert_eq!(shown(&store), before);
}

#[test]
fn a_part_of_a_block_is_not_handed_over() {
    let mut store = Memory::default();
    assert_eq!(finish(&mut ask(1, 3, Purpose::Reserve, 0), &mut store), Verdict::Granted);
    let mut heir = ask(2, 0, Purpose::Reserve, 100).taking_over_from([holder(1)].into());
    let refused = finish(&mut heir, &mut store);
    assert!(matches!(refused, Verdict::Held { .. }), "{refused:?}");
    assert_eq!(shown(&store), ["v4-192-0-2-1-tcp-32-47 Reserved holder-1"]);
}
