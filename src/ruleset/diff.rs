//! What changes between two rulesets, entry by entry: for logs, events, metrics, the brake and conntrack.

use std::cmp::Ordering;
use std::fmt;
use std::net::IpAddr;

use crate::model::address::Family;
use crate::ruleset::Ruleset;
use crate::ruleset::Taken;
use crate::ruleset::entry::Egress;
use crate::ruleset::entry::Entry;

/// One difference between two rulesets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An entry goes away.
    Removed(Entry),
    /// An entry leads somewhere else, is for somebody else, or admits others.
    Replaced {
        /// What it was.
        before: Entry,
        /// What it becomes.
        after: Entry,
    },
    /// An entry is new.
    Added(Entry),
    /// A pod leaves the cluster with another address, or no longer with a fixed one.
    Egress {
        /// The pod's address.
        pod: IpAddr,
        /// What it was.
        before: Option<Egress>,
        /// What it becomes.
        after: Option<Egress>,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Removed(entry) => write!(f, "removed {entry} ({})", entry.owner),
            Self::Added(entry) => write!(f, "added {entry} ({})", entry.owner),
            Self::Replaced { before, after } => {
                write!(f, "changed {before} ({}) to {after} ({})", before.owner, after.owner)
            }
            Self::Egress { pod, after: Some(after), .. } => {
                write!(f, "{pod} ({}) leaves the cluster as {}", after.owner, after.external)
            }
            Self::Egress { pod, after: None, .. } => {
                write!(f, "{pod} no longer leaves the cluster with a fixed address")
            }
        }
    }
}

/// What leads from `before` to `after`: removals first, so that the changes can be made in order.
pub fn diff(before: &Ruleset, after: &Ruleset) -> Vec<Change> {
    between((before.entries(), after.entries()), (before.egress(), after.egress()))
}

/// The same, of one family only.
pub fn diff_of(family: Family, before: &Ruleset, after: &Ruleset) -> Vec<Change> {
    between(
        (before.entries_of(family), after.entries_of(family)),
        (before.egress_of_family(family), after.egress_of_family(family)),
    )
}

fn between<'a>(
    entries: (impl Iterator<Item = &'a Entry>, impl Iterator<Item = &'a Entry>),
    egress: (impl Iterator<Item = &'a Egress>, impl Iterator<Item = &'a Egress>),
) -> Vec<Change> {
    let (mut changes, mut replaced, mut added, mut set) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for pair in side_by_side(entries.0, entries.1, |entry| entry.key) {
        match pair {
            (Some(old), Some(new)) if old != new => {
                replaced.push(Change::Replaced { before: old.clone(), after: new.clone() });
            }
            (Some(old), None) => changes.push(Change::Removed(old.clone())),
            (None, Some(new)) => added.push(Change::Added(new.clone())),
            _ => {}
        }
    }
    changes.append(&mut replaced);
    changes.append(&mut added);
    for (old, new) in side_by_side(egress.0, egress.1, |egress| egress.pod) {
        let (Some(Egress { pod, .. }), true) = (new.or(old), old != new) else { continue };
        let change = Change::Egress { pod: *pod, before: old.cloned(), after: new.cloned() };
        if new.is_some() { set.push(change) } else { changes.push(change) }
    }
    changes.append(&mut set);
    changes
}

/// What two lists have under each key; both are ordered by it.
fn side_by_side<'a, T: 'a, K: Ord>(
    before: impl Iterator<Item = &'a T>,
    after: impl Iterator<Item = &'a T>,
    key: impl Fn(&T) -> K,
) -> impl Iterator<Item = (Option<&'a T>, Option<&'a T>)> {
    let (mut before, mut after) = (before.peekable(), after.peekable());
    std::iter::from_fn(move || {
        let order = match (before.peek(), after.peek()) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => key(old).cmp(&key(new)),
        };
        let old = if order.is_le() { before.next() } else { None };
        let new = if order.is_ge() { after.next() } else { None };
        Some((old, new))
    })
}

/// Makes one change. A new entry whose ports another one holds is not added.
pub fn change(ruleset: &mut Ruleset, change: &Change) -> Result<(), Taken> {
    match change {
        Change::Removed(entry) => {
            ruleset.remove(&entry.key);
        }
        Change::Replaced { before, after } => {
            ruleset.remove(&before.key);
            ruleset.insert(after.clone())?;
        }
        Change::Added(entry) => ruleset.insert(entry.clone())?,
        Change::Egress { pod, after: None, .. } => {
            ruleset.remove_egress(pod);
        }
        Change::Egress { after: Some(after), .. } => ruleset.set_egress(after.clone()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::fixtures::endpoint;
    use crate::ruleset::fixtures::ruleset;
    use crate::ruleset::fixtures::v4_node;

    #[test]
    fn changes_read_as_sentences_and_removals_come_first() {
        let before = ruleset(
            &[endpoint("25/tcp", "mail-0", &["10.244.1.9"]), endpoint("80/tcp", "web", &["10.244.1.8"])],
            &v4_node(),
        );
        let after = ruleset(
            &[endpoint("25/tcp", "mail-1", &["10.244.1.10"]), endpoint("2525/tcp", "web", &["10.244.1.8"])],
            &v4_node(),
        );
        let changes: Vec<_> = diff(&before, &after).iter().map(ToString::to_string).collect();
        assert_eq!(
            changes,
            [
                "removed 203.0.113.7:80/tcp -> 10.244.1.8:80 (default/web)",
                "changed 203.0.113.7:25/tcp -> 10.244.1.9:25 (default/mail-0) to 203.0.113.7:25/tcp -> 10.244.1.10:25 (default/mail-1)",
                "added 203.0.113.7:2525/tcp -> 10.244.1.8:2525 (default/web)",
                "10.244.1.9 no longer leaves the cluster with a fixed address",
                "10.244.1.10 (default/mail-1) leaves the cluster as 203.0.113.7",
            ]
        );
    }

    #[test]
    fn r10_an_edited_port_is_removed_and_added_in_one_step() {
        let old = ruleset(&[endpoint("25/tcp", "mail", &["10.244.1.9"])], &v4_node());
        let new = ruleset(&[endpoint("2525/tcp", "mail", &["10.244.1.9"])], &v4_node());
        assert!(matches!(diff(&old, &new).as_slice(), [Change::Removed(_), Change::Added(_)]));
        assert!(matches!(
            diff(&old, &ruleset(&[], &v4_node())).as_slice(),
            [Change::Removed(_), Change::Egress { .. }]
        ));
    }
}
