//! What one family serves while a backend brings it to its wanted state, and what changed on the way.
//!
//! A transaction that was made leads to what it was made for, so nothing is read or decoded after it: keeping account
//! costs as much as the change, however many entries stay.

use std::collections::BTreeMap;

use crate::dataplane::Applied;
use crate::dataplane::Observed;
use crate::dataplane::counters::Counters;
use crate::model::address::Family;
use crate::ruleset::Ruleset;
use crate::ruleset::diff::Change;
use crate::ruleset::diff::change;
use crate::ruleset::diff::diff_of;
use crate::ruleset::entry::Entry;
use crate::ruleset::entry::Key;

/// One family on its way.
pub(crate) struct Progress<'a> {
    pub(crate) family: Family,
    pub(crate) applied: &'a mut Applied,
    /// What was served before the kernel turned out to have something else.
    before: Option<Ruleset>,
    changes: Vec<Change>,
}

impl<'a> Progress<'a> {
    pub(crate) const fn new(family: Family, applied: &'a mut Applied) -> Self {
        Self { family, applied, before: None, changes: Vec::new() }
    }

    /// What the node serves; the other family is in it, too.
    pub(crate) const fn served(&self) -> &Ruleset {
        &self.applied.observed.ruleset
    }

    /// What leads from there to `desired`.
    pub(crate) fn changes_to(&self, desired: &Ruleset) -> Vec<Change> {
        diff_of(self.family, self.served(), desired)
    }

    /// The kernel has what is desired by now, which these changes led to.
    pub(crate) fn reached(&mut self, desired: &Ruleset, mut changes: Vec<Change>) {
        let Observed { ruleset, counters, .. } = &mut self.applied.observed;
        make(ruleset, &changes);
        ruleset.set_networks(self.family, desired);
        for change in &changes {
            count_anew(counters, change);
        }
        self.changes.append(&mut changes);
    }

    /// The kernel has something else than it was thought to have.
    pub(crate) fn found(&mut self, ruleset: &Ruleset, counted: BTreeMap<Key, Counters>) {
        let changes = self.changes_to(ruleset);
        let Observed { ruleset: served, counters, .. } = &mut self.applied.observed;
        if self.before.is_none() {
            self.before = Some(served.clone());
        }
        make(served, &changes);
        served.set_networks(self.family, ruleset);
        counters.retain(|key, _| key.family() != self.family);
        counters.extend(counted);
    }

    /// Tells what changed.
    pub(crate) fn finish(self) {
        let Self { family, applied, before, mut changes } = self;
        match before {
            None => applied.changes.append(&mut changes),
            Some(before) => applied.changes.extend(diff_of(family, &before, &applied.observed.ruleset)),
        }
    }
}

fn make(ruleset: &mut Ruleset, changes: &[Change]) {
    for next in changes {
        // Removals come first, and what is wanted or was read does not overlap.
        let _ = change(ruleset, next);
    }
}

/// An entry that leads somewhere else counts from nothing.
fn count_anew(counters: &mut BTreeMap<Key, Counters>, change: &Change) {
    let leads_as =
        |before: &Entry, after: &Entry| before.target == after.target && before.owner == after.owner;
    match change {
        Change::Replaced { before, after } if leads_as(before, after) => {}
        Change::Added(Entry { key, target: Some(_), .. })
        | Change::Replaced { after: Entry { key, target: Some(_), .. }, .. } => {
            counters.insert(*key, Counters::default());
        }
        Change::Removed(Entry { key, .. }) | Change::Replaced { before: Entry { key, .. }, .. } => {
            counters.remove(key);
        }
        Change::Added(_) | Change::Egress { .. } => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ruleset::diff::diff;
    use crate::ruleset::fixtures::any_ruleset;
    use crate::ruleset::fixtures::endpoint;
    use crate::ruleset::fixtures::ruleset;
    use crate::ruleset::fixtures::v4_node;

    fn serving(ruleset: &Ruleset) -> Applied {
        let observed = Observed { ruleset: ruleset.clone(), ..Observed::default() };
        Applied { observed, ..Applied::default() }
    }

    proptest! {
        #[test]
        fn what_was_wanted_is_served_when_each_family_has_got_there(
            before in any_ruleset(),
            after in any_ruleset(),
        ) {
            let mut applied = serving(&before);
            for family in Family::ALL {
                let mut progress = Progress::new(family, &mut applied);
                let changes = progress.changes_to(&after);
                progress.reached(&after, changes);
                progress.finish();
            }
            prop_assert_eq!(&applied.observed.ruleset, &after);
            prop_assert_eq!(applied.changes.len(), diff(&before, &after).len());
        }
    }

    #[test]
    fn what_others_had_done_meanwhile_and_was_put_right_is_no_change() {
        let web = ruleset(&[endpoint("80/tcp", "web", &["10.244.1.9"])], &v4_node());
        let both = [endpoint("80/tcp", "web", &["10.244.1.9"]), endpoint("81/tcp", "dns", &["10.244.1.8"])];
        let both = ruleset(&both, &v4_node());
        let mut applied = serving(&web);
        let mut progress = Progress::new(Family::V4, &mut applied);
        progress.found(&web.without_entries(), BTreeMap::new());
        assert!(progress.served().is_empty());
        let changes = progress.changes_to(&both);
        progress.reached(&both, changes);
        progress.finish();
        assert_eq!(applied.changes, diff(&web, &both));
        assert_eq!(applied.observed.ruleset, both);
    }

    #[test]
    fn counters_go_on_for_entries_that_lead_where_they_led() {
        let entry = |pod: &str, sources: &[&str]| {
            let endpoint = endpoint("80/tcp", pod, &["10.244.1.9"]).from(sources);
            ruleset(&[endpoint], &v4_node())
        };
        let used = Counters { packets: 12, bytes: 720 };
        let cases = [
            (entry("web", &["192.0.2.0/24"]), Some(used)),
            (entry("other", &[]), Some(Counters::default())),
            (ruleset(&[], &v4_node()), None),
        ];
        for (after, expected) in cases {
            let before = entry("web", &[]);
            let key = before.entries().next().unwrap().key;
            let mut applied = serving(&before);
            applied.observed.counters.insert(key, used);
            let mut progress = Progress::new(Family::V4, &mut applied);
            let changes = progress.changes_to(&after);
            progress.reached(&after, changes);
            progress.finish();
            assert_eq!(applied.observed.counters.get(&key).copied(), expected, "{after:?}");
        }
    }
}
