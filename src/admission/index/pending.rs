//! What was admitted a moment ago and no watch has shown yet.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
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
    since: Instant,
    until: Instant,
    holdings: Vec<Arc<Holding>>,
}

impl Pending {
    pub(super) fn add(&mut self, key: ObjectKey, holdings: Vec<Arc<Holding>>, since: Instant, ttl: Duration) {
        let until = since + ttl;
        self.ends.push_back((until, key.clone()));
        self.entries.insert(key, Entry { since, until, holdings });
    }

    /// Since when an object is remembered, and what it holds.
    pub(super) fn get(&self, key: &ObjectKey) -> Option<(Instant, &[Arc<Holding>])> {
        self.entries.get(key).map(|entry| (entry.since, entry.holdings.as_slice()))
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
