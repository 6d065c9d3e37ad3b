//! What was admitted a moment ago and no watch has shown yet.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::admission::index::Holding;
use crate::admission::index::ObjectKey;

/// The objects that were just admitted, each until its time is over.
#[derive(Debug, Default)]
pub(super) struct Pending {
    entries: HashMap<ObjectKey, Entry>,
    /// In the order of their ends, as every entry lives equally long.
    ends: VecDeque<(Instant, ObjectKey)>,
}

#[derive(Debug)]
struct Entry {
    until: Instant,
    holdings: Vec<Arc<Holding>>,
}

impl Pending {
    pub(super) fn add(&mut self, key: ObjectKey, holdings: Vec<Arc<Holding>>, until: Instant) {
        self.ends.push_back((until, key.clone()));
        self.entries.insert(key, Entry { until, holdings });
    }

    pub(super) fn contains(&self, key: &ObjectKey) -> bool {
        self.entries.contains_key(key)
    }

    /// Drops an object, if it has this UID, and returns what it held.
    pub(super) fn drop(&mut self, key: &ObjectKey, uid: Option<&str>) -> Vec<Arc<Holding>> {
        let is_it = |entry: &Entry| uid.is_none_or(|uid| entry.holdings.iter().all(|held| &*held.uid == uid));
        match self.entries.get(key) {
            Some(entry) if is_it(entry) => {
                self.entries.remove(key).map(|entry| entry.holdings).unwrap_or_default()
            }
            _ => Vec::new(),
        }
    }

    /// Drops what is over and returns what it held.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<Arc<Holding>> {
        let mut released = Vec::new();
        while let Some((_, key)) = self.ends.pop_front_if(|(until, _)| *until <= now) {
            if self.entries.get(&key).is_some_and(|entry| entry.until <= now) {
                released.extend(self.drop(&key, None));
            }
        }
        released
    }
}
