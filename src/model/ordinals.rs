//! The numbers of a StatefulSet's pods, and external ports that go by them.

use std::fmt;
use std::str::FromStr;

use crate::model::port::Port;

/// What stands for a pod's ordinal.
pub const ORDINAL: &str = "{ordinal}";

/// The ordinals that a StatefulSet of so many replicas gives to its pods: consecutive numbers, as a rule from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ordinals {
    first: u64,
    count: u64,
}

impl Ordinals {
    /// So many, from this one on. What is negative counts as 0.
    pub fn new(first: i64, count: i64) -> Self {
        Self { first: first.try_into().unwrap_or_default(), count: count.try_into().unwrap_or_default() }
    }

    /// That of one pod.
    pub const fn single(ordinal: u64) -> Self {
        Self { first: ordinal, count: 1 }
    }

    /// How many there are.
    pub const fn count(self) -> u64 {
        self.count
    }

    /// Each of them, ascending.
    pub fn each(self) -> impl Iterator<Item = u64> {
        self.first..self.first.saturating_add(self.count)
    }

    /// The lowest and the highest one; `None` where there is none.
    pub fn ends(self) -> Option<(u64, u64)> {
        let beyond_the_first = self.count.checked_sub(1)?;
        Some((self.first, self.first.saturating_add(beyond_the_first)))
    }

    /// Whether one of these is not among the others.
    pub fn reach_beyond(self, others: Self) -> bool {
        match (self.ends(), others.ends()) {
            (Some((first, last)), Some((lowest, highest))) => first < lowest || highest < last,
            (Some(_), None) => true,
            (None, _) => false,
        }
    }

    /// Whether the set of this name has a pod of that name, or is about to.
    pub fn has_pod(self, set: &str, pod: &str) -> bool {
        ordinal(set, pod)
            .and_then(|ordinal| ordinal.checked_sub(self.first))
            .is_some_and(|nth| nth < self.count)
    }
}

/// The ordinal of a pod of the set of this name, by its name: 3 of `lobby-3`.
pub fn ordinal(set: &str, pod: &str) -> Option<u64> {
    let digits = pod.strip_prefix(set)?.strip_prefix('-')?;
    let ordinal: u64 = digits.parse().ok()?;
    // The set writes no sign and no zeros in front.
    (ordinal.to_string() == digits).then_some(ordinal)
}

/// The external port of each pod of a set by its ordinal: `30000+{ordinal}` is 30003 of `lobby-3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortByOrdinal {
    /// The port of the pod with ordinal 0.
    pub base: Port,
}

impl fmt::Display for PortByOrdinal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{ORDINAL}", self.base)
    }
}

/// Why a text is not a port by ordinal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a port by ordinal; write a number from 1 to 65535 and the ordinal after it, as in 30000+{{ordinal}}"
)]
pub struct PortByOrdinalError(pub String);

impl FromStr for PortByOrdinal {
    type Err = PortByOrdinalError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let base = text.strip_suffix(ORDINAL).and_then(|rest| rest.strip_suffix('+'));
        let base = base.and_then(|digits| digits.parse().ok());
        base.map(|base| Self { base }).ok_or_else(|| PortByOrdinalError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_the_pods_of_its_ordinals_and_no_others() {
        let cases = [
            (Ordinals::new(0, 3), "lobby-0", true),
            (Ordinals::new(0, 3), "lobby-2", true),
            (Ordinals::new(0, 3), "lobby-3", false),
            (Ordinals::new(0, 0), "lobby-0", false),
            (Ordinals::new(5, 2), "lobby-4", false),
            (Ordinals::new(5, 2), "lobby-6", true),
            (Ordinals::new(5, 2), "lobby-7", false),
            (Ordinals::new(-1, 3), "lobby-0", true),
            (Ordinals::new(0, -3), "lobby-0", false),
            (Ordinals::new(i64::MAX, i64::MAX), "lobby-18446744073709551615", false),
            (Ordinals::new(0, 3), "lobby-00", false),
            (Ordinals::new(0, 3), "lobby-+1", false),
            (Ordinals::new(0, 3), "lobby-", false),
            (Ordinals::new(0, 3), "lobby", false),
            (Ordinals::new(0, 3), "lobby-eu-1", false),
            (Ordinals::new(0, 3), "hall-1", false),
        ];
        for (ordinals, pod, expected) in cases {
            assert_eq!(ordinals.has_pod("lobby", pod), expected, "{ordinals:?} {pod}");
        }
    }

    #[test]
    fn a_set_that_grows_at_either_end_reaches_beyond_what_it_was() {
        let set = Ordinals::new;
        let cases = [
            (set(0, 3), set(0, 3), false),
            (set(0, 2), set(0, 3), false),
            (set(0, 4), set(0, 3), true),
            (set(1, 2), set(0, 3), false),
            (set(1, 3), set(0, 3), true),
            (set(0, 3), set(1, 3), true),
            (set(0, 0), set(0, 0), false),
            (set(7, 0), set(0, 3), false),
            (set(0, 1), set(0, 0), true),
        ];
        for (now, before, expected) in cases {
            assert_eq!(now.reach_beyond(before), expected, "{now:?} {before:?}");
        }
        assert_eq!(set(5, 2).each().collect::<Vec<_>>(), [5, 6]);
        assert_eq!(set(i64::MAX, i64::MAX).ends(), Some((i64::MAX as u64, u64::MAX - 2)));
    }

    #[test]
    fn a_port_by_ordinal_is_written_in_one_way() {
        assert_eq!("30000+{ordinal}".parse::<PortByOrdinal>().unwrap().to_string(), "30000+{ordinal}");
        for wrong in [
            "30000",
            "{ordinal}",
            "+{ordinal}",
            "0+{ordinal}",
            "65536+{ordinal}",
            "30000 + {ordinal}",
            "30000-{ordinal}",
            "30000+{ORDINAL}",
            "30000+{ordinal}0",
            "30000-30010+{ordinal}",
        ] {
            assert!(wrong.parse::<PortByOrdinal>().is_err(), "{wrong}");
        }
    }
}
