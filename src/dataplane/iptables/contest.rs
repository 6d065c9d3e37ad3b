//! Programs that insist on the first place in a chain of iptables, as our NAT does: each would move the other for ever.
//!
//! Whoever comes back in front of us often has the place for a while, and that is told. What it does not rewrite is still
//! ours to rewrite. Only places that decide who rewrites first are given up: a guard, or an accept that must stand behind
//! network policies, never is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use crate::dataplane::condition::Condition;
use crate::dataplane::condition::ConditionKind;
use crate::dataplane::iptables::position::Spot;
use crate::dataplane::iptables::position::Yielded;
use crate::dataplane::iptables::program;
use crate::dataplane::settings::Flavor;
use crate::model::address::Family;

/// How often a jump is moved to the front again.
pub(super) const MOVES: usize = 5;
/// Within which time these moves make a contest.
const WITHIN: Duration = Duration::from_mins(10);
/// How long the other side has the place then.
const TRUCE: Duration = Duration::from_hours(1);

/// What is remembered of all chains. Clones remember together.
#[derive(Clone, Debug, Default)]
pub(super) struct Contests(Arc<Mutex<BTreeMap<(Family, Spot), Contest>>>);

/// What is remembered of one chain.
#[derive(Debug, Default)]
struct Contest {
    moves: Vec<Instant>,
    yielded: Option<Instant>,
    /// The rule that came back.
    by: String,
}

impl Contest {
    fn moved(&mut self, by: &str, now: Instant) {
        by.clone_into(&mut self.by);
        self.moves.retain(|moved| now.duration_since(*moved) < WITHIN);
        self.moves.push(now);
        if MOVES <= self.moves.len() {
            self.moves.clear();
            self.yielded = Some(now);
        }
    }

    fn is_yielded(&self, now: Instant) -> bool {
        self.yielded.is_some_and(|since| now.duration_since(since) < TRUCE)
    }
}

impl Contests {
    fn known(&self) -> MutexGuard<'_, BTreeMap<(Family, Spot), Contest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where others have the first place.
    pub(super) fn yielded(&self, family: Family) -> Yielded {
        let now = Instant::now();
        let known = self.known();
        let yielded = known.iter().filter(|((of, _), contest)| *of == family && contest.is_yielded(now));
        yielded.map(|((_, spot), _)| *spot).collect()
    }

    /// Remembers that jumps were moved in front of these rules.
    pub(super) fn moved(&self, family: Family, preempted: Vec<(Spot, String)>) {
        let now = Instant::now();
        let mut known = self.known();
        for (spot, by) in preempted {
            known.entry((family, spot)).or_default().moved(&by, now);
        }
    }

    /// Tells of the contests that were given up.
    pub(super) fn conditions(&self, flavor: Flavor) -> Vec<Condition> {
        let now = Instant::now();
        let known = self.known();
        let given_up = known.iter().filter(|(_, contest)| contest.is_yielded(now));
        let told = given_up.map(|((family, Spot { table, chain }), Contest { by, .. })| Condition {
            kind: ConditionKind::JumpContested,
            message: format!(
                "another program put `{by}` in front of our jump in {} {chain} of {} {MOVES} times within minutes, and has the first place for an hour now: what it rewrites does not reach our ports",
                table.name(),
                program(flavor, *family, ""),
            ),
            fix: "let that program append its rule (Calico: `chainInsertMode: Append` of its FelixConfiguration), or use --firewall nftables, where no place is contested".to_owned(),
        });
        told.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_back_often_has_the_place_for_a_while_and_then_the_contest_begins_anew() {
        let start = Instant::now();
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        let mut contest = Contest::default();
        for second in [0, 2, 4, 6] {
            contest.moved("-j THEIRS", after(second));
            assert!(!contest.is_yielded(after(second)));
        }
        contest.moved("-j THEIRS", after(8));
        for (second, is_yielded) in [(8, true), (3600, true), (3608, false)] {
            assert_eq!(contest.is_yielded(after(second)), is_yielded, "{second}");
        }
        contest.moved("-j THEIRS", after(3610));
        assert!(!contest.is_yielded(after(3610)));
    }

    #[test]
    fn a_reload_now_and_then_is_no_contest() {
        let start = Instant::now();
        let mut contest = Contest::default();
        for hour in 0..20 {
            let now = start + Duration::from_hours(hour);
            contest.moved("-j DOCKER", now);
            assert!(!contest.is_yielded(now), "{hour}");
        }
    }
}
