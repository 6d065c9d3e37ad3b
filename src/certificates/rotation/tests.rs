//! A model of replicas, API servers and two configurations, driven in every order that chance finds.

use std::convert::Infallible;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::*;

const TIMES: Times = Times {
    ca_lifetime: Duration::from_hours(6),
    soak: Duration::from_mins(1),
    // A leaf's lifetime, twice the skew, and a little.
    retire_after: Duration::from_mins(60 + 10 + 1),
    leaf_lifetime: Duration::from_hours(1),
};
const REPLICAS: usize = 3;
const SERVERS: usize = 2;
const CONFIGURATIONS: usize = 2;
const SKEWS: [i64; REPLICAS] = [0, 300, -300];

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A replica does the next small part of its turn.
    Step(usize),
    /// A replica's turn stops where it is, or goes on; it serves all the time.
    Freeze(usize),
    /// A replica ends and another one starts in its place.
    Crash(usize),
    /// Time passes.
    Wait(i64),
    /// An API server sees one more change of one configuration.
    Learn(usize, usize),
    /// Somebody asks for a new authority.
    Ask,
    /// Somebody changes something else in a configuration.
    Touch(usize),
    /// Somebody applies an older export of a configuration that works at that time.
    Restore(usize),
    /// Somebody deletes the Secret.
    Delete,
}

/// Mistakes that the model must notice, so that its silence means something.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mistake {
    None,
    /// Leaves change as soon as the next authority is published.
    NoSoak,
    /// A bundle is written whatever the configuration says meanwhile.
    BlindWrite,
    /// The old authority leaves the bundle at once.
    NoRetirement,
    /// A change of a configuration during the soak is not noticed.
    UnwatchedSoak,
    /// The state is written whatever is stored meanwhile.
    Fork,
}

struct Replica {
    skew: i64,
    leaf: Option<Leaf>,
    is_ready: bool,
    is_frozen: bool,
    /// The version of the stored state in which it first saw the present soak, and when.
    soak: Option<(u64, i64)>,
    turn: Turn,
}

#[derive(Clone)]
struct Turn {
    began: i64,
    position: usize,
    configurations: Vec<Configuration>,
    state: Option<State>,
    version: u64,
}

struct World {
    mistake: Mistake,
    now: i64,
    version: u64,
    stored: Option<State>,
    minted: usize,
    is_asked_for: bool,
    was_deleted: bool,
    /// Every bundle that each configuration ever had, with when it was written.
    histories: [Vec<(i64, Bundle)>; CONFIGURATIONS],
    touched: [usize; CONFIGURATIONS],
    /// Which of those each API server has.
    seen: [[usize; CONFIGURATIONS]; SERVERS],
    replicas: Vec<Replica>,
    rotations: usize,
}

impl Replica {
    fn start(skew: i64) -> Self {
        let turn = Turn { began: 0, position: 0, configurations: Vec::new(), state: None, version: 0 };
        Self { skew, leaf: None, is_ready: false, is_frozen: false, soak: None, turn }
    }

    fn clock(&self, now: i64) -> Moment {
        Moment::from_unix(now + self.skew)
    }
}

impl World {
    fn new(mistake: Mistake) -> Self {
        let now = 1_000_000;
        Self {
            mistake,
            now,
            version: 0,
            stored: None,
            minted: 0,
            is_asked_for: false,
            was_deleted: false,
            histories: [vec![(now, Bundle::default())], vec![(now, Bundle::default())]],
            touched: [0; CONFIGURATIONS],
            seen: [[0; CONFIGURATIONS]; SERVERS],
            replicas: SKEWS.into_iter().map(Replica::start).collect(),
            rotations: 0,
        }
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Step(replica) if self.replicas[replica].is_frozen => {}
            Event::Step(replica) => self.step(replica),
            Event::Freeze(replica) => self.replicas[replica].is_frozen ^= true,
            Event::Crash(replica) => self.replicas[replica] = Replica::start(SKEWS[replica]),
            Event::Wait(seconds) => {
                self.now += seconds;
                self.catch_up();
            }
            Event::Learn(server, configuration) => {
                let last = self.histories[configuration].len() - 1;
                let seen = &mut self.seen[server][configuration];
                *seen = (*seen + 1).min(last);
            }
            Event::Ask => self.is_asked_for = true,
            Event::Touch(configuration) => self.touched[configuration] += 1,
            Event::Restore(configuration) => self.restore(configuration),
            Event::Delete => {
                self.stored = None;
                self.was_deleted = true;
                self.version += 1;
            }
        }
        self.check()
    }

    /// An API server is never further behind than the soak time.
    fn catch_up(&mut self) {
        let soak = i64::try_from(TIMES.soak.as_secs()).unwrap();
        for server in &mut self.seen {
            for (history, seen) in self.histories.iter().zip(server) {
                while history.get(*seen + 1).is_some_and(|(written, _)| written + soak <= self.now) {
                    *seen += 1;
                }
            }
        }
    }

    /// Between two turns of each replica: what somebody breaks in the very moment of a step, nobody can see.
    fn restore(&mut self, configuration: usize) {
        let history = &mut self.histories[configuration];
        let Some(older) = history.len().checked_sub(2).map(|index| history[index].1.clone()) else { return };
        let leaves = self.replicas.iter().filter_map(|replica| replica.leaf.as_ref());
        let signer = self.stored.as_ref().and_then(State::signer).map(Authority::certificate);
        if leaves.map(|leaf| &leaf.authority).chain(signer).all(|authority| older.trusts(authority)) {
            history.push((self.now, older));
            for replica in &mut self.replicas {
                replica.turn.position = 0;
            }
        }
    }

    fn configuration(&self, index: usize) -> Configuration {
        let history = &self.histories[index];
        Configuration {
            name: format!("configuration {index}"),
            version: format!("{}.{}", history.len(), self.touched[index]),
            bundles: vec![history.last().unwrap().1.clone()],
        }
    }

    fn step(&mut self, index: usize) {
        let mut turn = self.replicas[index].turn.clone();
        turn.position += 1;
        match turn.position {
            1 => {
                turn.began = self.now;
                turn.configurations = vec![self.configuration(0)];
            }
            2 => turn.configurations.push(self.configuration(1)),
            3 => {
                turn.state = self.stored.clone();
                turn.version = self.version;
            }
            4 => {
                if !self.advance(index, &mut turn) {
                    turn.position = 0;
                }
            }
            5 => self.sign(index, &turn),
            _ => {
                self.publish(turn.position - 6, &turn);
                turn.position %= 5 + CONFIGURATIONS;
            }
        }
        self.replicas[index].turn = turn;
    }

    /// False when somebody else was faster.
    fn advance(&mut self, index: usize, turn: &mut Turn) -> bool {
        let replica = &mut self.replicas[index];
        if !matches!(turn.state, Some(State::Soak { .. })) {
            replica.soak = None;
        } else if replica.soak.is_none_or(|(version, _)| version != turn.version) {
            replica.soak = Some((turn.version, self.now));
        }
        let soaked_for = replica.soak.map_or(0, |(_, since)| self.now - since);
        let mut soaked_for = Duration::from_secs(u64::try_from(soaked_for).unwrap());
        if self.mistake == Mistake::NoSoak {
            soaked_for = Duration::MAX;
        }
        if self.mistake == Mistake::UnwatchedSoak
            && let Some(State::Soak { seen, .. }) = &turn.state
        {
            for configuration in &mut turn.configurations {
                configuration.version = seen[&configuration.name].clone();
                configuration.bundles = vec![turn.state.as_ref().unwrap().bundle()];
            }
        }
        let now = replica.clock(self.now);
        let name = format!("authority {}", self.minted);
        let mint = || Ok::<_, Infallible>(Authority::fake(&name, now, TIMES.ca_lifetime));
        let seen = Seen { configurations: &turn.configurations, soaked_for, is_asked_for: self.is_asked_for };
        let mut times = TIMES;
        if self.mistake == Mistake::NoRetirement {
            times.retire_after = Duration::ZERO;
        }
        let Ok(next) = advance(turn.state.as_ref(), &seen, now, &times, mint);
        let Some(next) = next else { return true };
        if self.version != turn.version && self.mistake != Mistake::Fork {
            return false;
        }
        self.minted += 1;
        self.rotations += usize::from(matches!(next, State::Retire { .. }));
        self.is_asked_for = false;
        self.version += 1;
        self.stored = Some(next.clone());
        turn.version = self.version;
        turn.state = Some(next);
        true
    }

    fn sign(&mut self, index: usize, turn: &Turn) {
        let replica = &mut self.replicas[index];
        let began = replica.clock(turn.began);
        let Some(state) = &turn.state else { return };
        if let Some(signer) = state.signer()
            && is_leaf_due(replica.leaf.as_ref(), signer, began, TIMES.leaf_lifetime, Duration::ZERO)
        {
            replica.leaf = Some(Leaf {
                certificate_pem: String::new(),
                key_pem: String::new(),
                authority: signer.certificate().clone(),
                issued: began,
                not_after: began.after(TIMES.leaf_lifetime).min(signer.certificate().not_after()),
            });
        }
        replica.is_ready = replica
            .leaf
            .as_ref()
            .is_some_and(|leaf| obstacle(leaf, state, &turn.configurations, replica.is_ready).is_none());
    }

    fn publish(&mut self, index: usize, turn: &Turn) {
        let Some(state) = &turn.state else { return };
        let read = &turn.configurations[index];
        let is_unchanged = read.version == self.configuration(index).version;
        if !read.agrees_with(state) && (is_unchanged || self.mistake == Mistake::BlindWrite) {
            self.histories[index].push((self.now, state.wanted(&read.bundles[0])));
        }
    }

    fn check(&self) -> Result<(), String> {
        for (number, replica) in self.replicas.iter().enumerate() {
            let Some(leaf) = &replica.leaf else { continue };
            if leaf.not_after <= replica.clock(self.now) {
                continue;
            }
            let bundle = self.stored.as_ref().map(State::bundle).unwrap_or_default();
            if !self.was_deleted && !bundle.trusts(&leaf.authority) {
                return Err(format!("replica {number} follows another line of authorities: {leaf:?}"));
            }
            if !replica.is_ready {
                continue;
            }
            for (server, seen) in self.seen.iter().enumerate() {
                for (configuration, (history, &seen)) in self.histories.iter().zip(seen).enumerate() {
                    let bundle = &history[seen].1;
                    if !bundle.is_empty() && !bundle.trusts(&leaf.authority) {
                        return Err(format!(
                            "replica {number} serves a leaf of {:?}, API server {server} trusts {bundle:?} for \
                             configuration {configuration}, stored is {:?}",
                            leaf.authority, self.stored
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        400 => (0..REPLICAS).prop_map(Event::Step),
        20 => (1_i64..30).prop_map(Event::Wait),
        4 => (30_i64..2_000).prop_map(Event::Wait),
        20 => (0..SERVERS, 0..CONFIGURATIONS).prop_map(|(server, seen)| Event::Learn(server, seen)),
        6 => (0..REPLICAS).prop_map(Event::Freeze),
        2 => (0..REPLICAS).prop_map(Event::Crash),
        2 => (0..CONFIGURATIONS).prop_map(Event::Touch),
        2 => (0..CONFIGURATIONS).prop_map(Event::Restore),
        4 => Just(Event::Ask),
        1 => Just(Event::Delete),
    ];
    prop::collection::vec(event, 0..3_000)
}

fn run(events: &[Event], mistake: Mistake) -> Result<usize, String> {
    let mut world = World::new(mistake);
    for event in events {
        world.happen(*event)?;
    }
    Ok(world.rotations)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_leaf_that_is_served_is_trusted_by_every_bundle_an_api_server_may_hold_and_replicas_never_fork(events in events()) {
        if let Err(violation) = run(&events, Mistake::None) {
            return Err(TestCaseError::fail(violation));
        }
    }
}

#[test]
fn the_model_notices_each_mistake_and_completes_rotations_without_one() {
    let mistakes = [Mistake::NoSoak, Mistake::NoRetirement, Mistake::UnwatchedSoak, Mistake::Fork];
    let mut runner = TestRunner::deterministic();
    let walks: Vec<_> = (0..40).map(|_| events().new_tree(&mut runner).unwrap().current()).collect();
    for mistake in mistakes {
        let noticed = walks.iter().filter(|events| run(events, mistake).is_err()).count();
        assert!(0 < noticed, "{mistake:?} is not noticed");
    }
    let rotations: usize = walks.iter().map(|events| run(events, Mistake::None).unwrap()).sum();
    assert!(
        walks.len() < rotations,
        "only {rotations} rotations in {} walks: they prove little",
        walks.len()
    );
}

#[test]
fn a_writer_that_was_held_up_during_a_whole_rotation_takes_nothing_back() {
    let mut events = vec![Event::Step(0); 5];
    for _ in 0..10 {
        events.extend([Event::Step(1); 7]);
        events.extend([Event::Wait(20), Event::Ask]);
    }
    events.extend([Event::Step(0), Event::Step(0), Event::Wait(100)]);
    assert_eq!(run(&events, Mistake::None), Ok(1));
    assert!(run(&events, Mistake::BlindWrite).is_err());
}

fn authority(name: &str, now: Moment) -> Authority {
    Authority::fake(name, now, TIMES.ca_lifetime)
}

fn configuration(authorities: &[&Authority]) -> Configuration {
    let bundle = authorities.iter().map(|authority| authority.certificate().clone()).collect();
    Configuration { name: "configuration".to_owned(), version: "1".to_owned(), bundles: vec![bundle] }
}

fn next(state: Option<&State>, configurations: &[Configuration], soaked: u64, now: Moment) -> Option<State> {
    let seen = Seen { configurations, soaked_for: Duration::from_secs(soaked), is_asked_for: false };
    let Ok(next) = advance(state, &seen, now, &TIMES, || Ok::<_, Infallible>(authority("next", now)));
    next
}

const NOW: Moment = Moment::from_unix(1_000_000);

#[test]
fn where_nobody_is_trusted_yet_the_first_authority_is_used_at_once() {
    let expected = Some(State::Stable { active: authority("next", NOW) });
    assert_eq!(next(None, &[], 0, NOW), expected);
    assert_eq!(next(None, &[configuration(&[])], 0, NOW), expected);
}

#[test]
fn who_was_trusted_before_us_stays_so_until_its_leaves_have_gone() {
    let theirs = authority("theirs", NOW);
    let ours = authority("next", NOW);
    let begun = next(None, &[configuration(&[&theirs])], 0, NOW).unwrap();
    assert!(begun.signer().is_none());
    assert_eq!(begun.bundle(), configuration(&[&theirs, &ours]).bundles[0]);

    let both = [configuration(&[&theirs, &ours])];
    let soak = next(Some(&begun), &both, 0, NOW).unwrap();
    assert_eq!(next(Some(&soak), &both, 60, NOW), None);
    let retire = next(Some(&soak), &both, 61, NOW).unwrap();
    assert_eq!(retire.signer(), Some(&ours));
    assert_eq!(retire.bundle(), both[0].bundles[0]);
    let later = NOW.after(TIMES.retire_after).after(Duration::from_secs(1));
    assert_eq!(next(Some(&retire), &both, 0, later), Some(State::Stable { active: ours }));
}

#[test]
fn an_authority_is_replaced_when_two_thirds_of_its_life_have_passed() {
    let stable = State::Stable { active: authority("active", NOW) };
    let trusted = [configuration(&[&authority("active", NOW)])];
    assert_eq!(next(Some(&stable), &trusted, 0, NOW.after(TIMES.ca_lifetime / 2)), None);
    let due = next(Some(&stable), &trusted, 0, NOW.after(TIMES.ca_lifetime * 2 / 3)).unwrap();
    assert_eq!(due.phase(), "publish");
    assert_eq!(due.signer(), Some(&authority("active", NOW)));
}

#[test]
fn a_soak_begins_anew_when_a_configuration_changed_and_waits_while_none_exists() {
    let (active, coming) = (authority("active", NOW), authority("next", NOW));
    let introduction =
        Introduction { active: Some(active.clone()), next: coming.clone(), kept: Bundle::default() };
    let publish = State::Publish(introduction);
    assert_eq!(next(Some(&publish), &[], 0, NOW), None);
    assert_eq!(next(Some(&publish), &[configuration(&[&active])], 0, NOW), None);
    let both = configuration(&[&active, &coming]);
    let soak = next(Some(&publish), std::slice::from_ref(&both), 0, NOW).unwrap();
    for changed in [
        vec![],
        vec![Configuration { version: "2".to_owned(), ..both.clone() }],
        vec![both, Configuration { name: "another".to_owned(), ..configuration(&[&active, &coming]) }],
    ] {
        assert_eq!(next(Some(&soak), &changed, 10_000, NOW), Some(publish.clone()));
    }
}

#[test]
fn a_bundle_that_lost_our_authority_is_joined_not_replaced() {
    let (active, theirs) = (authority("active", NOW), authority("theirs", NOW));
    let stable = State::Stable { active: active.clone() };
    assert_eq!(next(Some(&stable), &[configuration(&[])], 0, NOW), None);
    let joined = next(Some(&stable), &[configuration(&[&theirs])], 0, NOW).unwrap();
    assert_eq!(joined.bundle(), configuration(&[&active, &theirs]).bundles[0]);
    assert!(joined.signer().is_none());
}

#[test]
fn times_that_would_break_calls_are_refused_by_the_names_of_their_flags() {
    let hours = Duration::from_hours;
    let good = Times {
        ca_lifetime: hours(8_760),
        soak: hours(1),
        retire_after: hours(192),
        leaf_lifetime: hours(168),
    };
    assert_eq!(good.check(), Ok(()));
    let cases = [
        (Times { retire_after: hours(167), ..good.clone() }, "--ca-retire-after must not be shorter"),
        (Times { leaf_lifetime: hours(6), ..good.clone() }, "--leaf-lifetime must be longer than six times"),
        (Times { ca_lifetime: hours(579), ..good.clone() }, "--ca-lifetime must be longer"),
        (Times { soak: Duration::ZERO, ..good.clone() }, "--ca-soak and --leaf-lifetime"),
    ];
    for (times, expected) in cases {
        let error = times.check().unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn a_leaf_is_due_at_two_thirds_of_its_life_or_when_another_authority_signs() {
    let signer = authority("active", NOW);
    let lifetime = Duration::from_hours(1);
    let leaf = Leaf {
        certificate_pem: String::new(),
        key_pem: String::new(),
        authority: signer.certificate().clone(),
        issued: NOW,
        not_after: NOW.after(lifetime),
    };
    let is_due = |signer: &Authority, after: u64, early: u64| {
        let (now, early) = (NOW.after(Duration::from_secs(after)), Duration::from_secs(early));
        is_leaf_due(Some(&leaf), signer, now, lifetime, early)
    };
    assert!(is_leaf_due(None, &signer, NOW, lifetime, Duration::ZERO));
    assert!(!is_due(&signer, 2_399, 0));
    assert!(is_due(&signer, 2_400, 0));
    assert!(is_due(&signer, 2_300, 100));
    assert!(is_due(&authority("next", NOW), 0, 0));
}
