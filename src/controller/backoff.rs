//! When something that did not go is tried again: the longer it has not, the later.

use std::collections::HashMap;

use k8s_openapi::jiff::SignedDuration;
use k8s_openapi::jiff::Timestamp;

/// The pause after the first attempt, and the longest one.
const FIRST: SignedDuration = SignedDuration::from_secs(1);
const LONGEST: SignedDuration = SignedDuration::from_secs(60);

/// Who has to wait, by UID, and for how long.
#[derive(Debug, Default)]
pub struct Backoff {
    waits: HashMap<String, Wait>,
}

#[derive(Clone, Copy, Debug)]
struct Wait {
    until: Timestamp,
    pause: SignedDuration,
}

impl Backoff {
    /// Whether it is time for an attempt.
    pub fn is_due(&self, uid: &str, now: Timestamp) -> bool {
        self.waits.get(uid).is_none_or(|wait| wait.until <= now)
    }

    /// Notes an attempt that did not go: the next pause is twice as long as the last.
    pub fn put_off(&mut self, uid: &str, now: Timestamp) {
        let last = self.waits.get(uid).map(|wait| wait.pause);
        let pause = last.map_or(FIRST, |last| (last + last).min(LONGEST));
        let until = now.checked_add(pause).unwrap_or(now);
        self.waits.insert(uid.to_owned(), Wait { until, pause });
    }

    /// Forgets those that nobody waits for any more.
    pub fn retain(&mut self, keeps: impl Fn(&str) -> bool) {
        self.waits.retain(|uid, _| keeps(uid));
    }

    /// Lets everybody try at once, because something has changed.
    pub fn clear(&mut self) {
        self.waits.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pause_is_twice_the_last_up_to_a_minute_and_a_change_ends_it() {
        let mut backoff = Backoff::default();
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut now = 0;
        assert!(backoff.is_due("a", at(now)));
        for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
            backoff.put_off("a", at(now));
            assert!(!backoff.is_due("a", at(now + pause - 1)), "{pause}");
            assert!(backoff.is_due("b", at(now)));
            now += pause;
            assert!(backoff.is_due("a", at(now)), "{pause}");
        }
        backoff.put_off("a", at(now));
        backoff.retain(|uid| uid == "a");
        assert!(!backoff.is_due("a", at(now)));
        backoff.clear();
        assert!(backoff.is_due("a", at(now)));
    }
}
