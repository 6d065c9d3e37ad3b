//! How often something may be done, so that two writers who disagree never become a storm.

use std::collections::VecDeque;
use std::time::Duration;

/// At most so many times within any stretch of this length.
#[derive(Clone, Debug)]
pub struct Allowance {
    times: usize,
    within: Duration,
    taken: VecDeque<Duration>,
}

impl Allowance {
    /// `times` within `within`.
    pub fn new(times: usize, within: Duration) -> Self {
        Self { times, within, taken: VecDeque::with_capacity(times) }
    }

    /// Whether it may be done at `now`, a time that never goes back; if so, it counts as done.
    pub fn take(&mut self, now: Duration) -> bool {
        while self.taken.front().is_some_and(|&taken| taken + self.within <= now) {
            self.taken.pop_front();
        }
        let may = self.taken.len() < self.times;
        if may {
            self.taken.push_back(now);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_minute_sees_more_than_six() {
        let mut allowance = Allowance::new(6, Duration::from_mins(1));
        let done: Vec<u64> = (0..180).filter(|&s| allowance.take(Duration::from_secs(s))).collect();
        assert_eq!(done, [0, 1, 2, 3, 4, 5, 60, 61, 62, 63, 64, 65, 120, 121, 122, 123, 124, 125]);
    }
}
