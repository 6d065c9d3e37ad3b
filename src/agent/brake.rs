//! How long the brake holds back a mass removal.
//!
//! [`Brake`] says when a change would remove suspiciously much; this says for how long it is withheld. It ends when
//! the wish to remove that much is gone, when it has lasted for the grace time, or when an operator says that it is meant.

use std::net::IpAddr;
use std::time::Duration;
use std::time::Instant;

use crate::ruleset::Ruleset;
use crate::ruleset::brake::Brake;
use crate::ruleset::brake::MassRemoval;
use crate::ruleset::brake::without_removals;
use crate::ruleset::owner::Owner;

/// The brake over time.
#[derive(Clone, Copy, Debug)]
pub struct BrakeOverTime {
    brake: Brake,
    grace: Duration,
    engaged_at: Option<Instant>,
    /// Whether an operator has said that what is held back is meant.
    is_released: bool,
}

/// A removal that is withheld.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Withheld {
    /// What would be removed.
    pub removal: MassRemoval,
    /// When it will be removed if it is still wanted.
    pub until: Instant,
}

impl BrakeOverTime {
    /// A brake that has not engaged yet.
    pub const fn new(brake: Brake, grace: Duration) -> Self {
        Self { brake, grace, engaged_at: None, is_released: false }
    }

    /// What of `desired` may be applied to `observed` now, where `is_anothers` tells addresses that do not belong to the owner of an
    /// entry any more.
    pub fn hold(
        &mut self,
        observed: &Ruleset,
        desired: Ruleset,
        is_anothers: &dyn Fn(IpAddr, &Owner) -> bool,
        now: Instant,
    ) -> (Ruleset, Option<Withheld>) {
        let Some(removal) = self.brake.engages(observed, &desired) else {
            self.engaged_at = None;
            self.is_released = false;
            return (desired, None);
        };
        let until = *self.engaged_at.get_or_insert(now) + self.grace;
        if until <= now || self.is_released {
            return (desired, None);
        }
        (without_removals(observed, &desired, is_anothers), Some(Withheld { removal, until }))
    }

    /// Gives what is held back all of the grace time again.
    pub const fn begin_anew(&mut self) {
        self.engaged_at = None;
    }

    /// Lets the removal happen that is held back now; the next one is held back again.
    pub const fn release(&mut self) {
        self.is_released = self.engaged_at.is_some();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::holder::ObjectName;
    use crate::model::port::Port;
    use crate::model::port::PortRange;
    use crate::model::port::Protocol;
    use crate::ruleset::entry::Entry;
    use crate::ruleset::entry::Key;
    use crate::ruleset::sources::Sources;

    const NOBODY: fn(IpAddr, &Owner) -> bool = |_, _| false;
    const GRACE: Duration = Duration::from_mins(10);

    fn ruleset(ports: std::ops::Range<u16>) -> Ruleset {
        let mut ruleset = Ruleset::default();
        for port in ports {
            let ports = PortRange::single(Port::new(port).unwrap());
            let key = Key { external: "203.0.113.7".parse().unwrap(), protocol: Protocol::Tcp, ports };
            let owner = Owner::new(&ObjectName::new("a", format!("pod-{port}")), "u");
            ruleset.insert(Entry { key, target: None, allowed_sources: Sources::default(), owner }).unwrap();
        }
        ruleset
    }

    #[test]
    fn a_mass_removal_waits_for_the_grace_time_and_additions_do_not() {
        let mut brake = BrakeOverTime::new(Brake::default(), GRACE);
        let (before, after) = (ruleset(1..101), ruleset(80..120));
        let start = Instant::now();
        let (applied, withheld) = brake.hold(&before, after.clone(), &NOBODY, start);
        assert_eq!(applied.len(), 119, "everything old and new");
        let withheld = withheld.unwrap();
        assert_eq!(withheld.removal, MassRemoval { removed: 79, present: 100 });
        assert_eq!(withheld.until, start + GRACE);
        let (_, still) = brake.hold(&applied, after.clone(), &NOBODY, start + GRACE / 2);
        assert_eq!(still.unwrap().until, start + GRACE, "time goes on, it does not start anew");
        assert_eq!(brake.hold(&applied, after.clone(), &NOBODY, start + GRACE), (after, None));
    }

    #[test]
    fn what_returns_releases_the_brake_and_the_next_mass_removal_waits_in_full() {
        let mut brake = BrakeOverTime::new(Brake::default(), GRACE);
        let (all, few) = (ruleset(1..101), ruleset(1..11));
        let start = Instant::now();
        assert!(brake.hold(&all, few.clone(), &NOBODY, start).1.is_some());
        assert_eq!(brake.hold(&all, all.clone(), &NOBODY, start + GRACE / 2).1, None);
        assert_eq!(brake.hold(&all, few, &NOBODY, start + GRACE).1.unwrap().until, start + 2 * GRACE);
    }

    #[test]
    fn an_operator_lets_one_mass_removal_happen_and_not_the_next() {
        let mut brake = BrakeOverTime::new(Brake::default(), GRACE);
        let (all, few) = (ruleset(1..101), ruleset(1..11));
        let start = Instant::now();
        brake.release();
        assert!(
            brake.hold(&all, few.clone(), &NOBODY, start).1.is_some(),
            "there was nothing to release yet"
        );
        brake.release();
        assert_eq!(brake.hold(&all, few.clone(), &NOBODY, start), (few.clone(), None));
        assert_eq!(brake.hold(&few, few.clone(), &NOBODY, start).1, None);
        assert!(brake.hold(&all, few, &NOBODY, start).1.is_some());
    }
}
