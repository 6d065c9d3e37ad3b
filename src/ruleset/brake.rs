//! The brake: a node whose view of the cluster suddenly loses most of what it serves should doubt the view first.
//!
//! A deleted CRD, a restored etcd or a wrong flag look exactly like a wish to remove everything. While the brake
//! holds, entries are added and changed but none is removed; how long it holds is the caller's business.

use crate::ruleset::Ruleset;
use crate::ruleset::entry::Entry;

/// When the brake engages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Brake {
    /// The share of entries that may vanish at once, in percent.
    pub threshold_percent: u8,
    /// Below this many entries the brake never engages: small nodes lose large shares every day.
    pub minimum: usize,
}

impl Default for Brake {
    fn default() -> Self {
        Self { threshold_percent: 20, minimum: 20 }
    }
}

/// A removal that the brake stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{removed} of {present} entries would be removed at once")]
pub struct MassRemoval {
    /// How many entries would vanish.
    pub removed: usize,
    /// How many there are.
    pub present: usize,
}

impl Brake {
    /// Whether going from `observed` to `desired` removes too much at once.
    pub fn engages(self, observed: &Ruleset, desired: &Ruleset) -> Option<MassRemoval> {
        let present = observed.len();
        let removed = vanishing(observed, desired).count();
        let too_many = removed * 100 > present * usize::from(self.threshold_percent);
        (self.minimum <= present && too_many).then_some(MassRemoval { removed, present })
    }
}

/// `desired`, and whatever is observed and would vanish.
pub fn without_removals(observed: &Ruleset, desired: &Ruleset) -> Ruleset {
    let mut kept = desired.clone();
    for entry in vanishing(observed, desired) {
        // Cannot be taken: nothing desired overlaps it, and observed entries do not overlap each other.
        let _ = kept.insert(entry.clone());
    }
    for egress in observed.egress().filter(|egress| desired.egress_of(&egress.pod).is_none()) {
        kept.set_egress(egress.clone());
    }
    kept
}

/// Entries whose ports nobody serves afterwards. An entry that is re-pointed or cut differently does not count.
fn vanishing<'a>(observed: &'a Ruleset, desired: &Ruleset) -> impl Iterator<Item = &'a Entry> {
    observed.entries().filter(|entry| desired.overlapping(&entry.key).is_none())
}
