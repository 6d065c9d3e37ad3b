//! One allowance of bytes for the bodies of all requests together.
//!
//! Bytes are charged as they arrive: a caller that announces megabytes and sends nothing takes nothing from others.
//! What a request holds is given back when its reservation is dropped, whatever way the request ends.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use prometheus_client::metrics::gauge::Gauge;

/// The allowance. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    held: Arc<AtomicUsize>,
    limit: usize,
    /// Shows what is held.
    gauge: Gauge,
}

/// What one request holds of the allowance.
#[derive(Debug)]
pub(crate) struct Reservation {
    budget: Budget,
    bytes: usize,
}

/// The allowance is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exhausted;

impl Budget {
    pub(crate) fn new(limit: usize, gauge: Gauge) -> Self {
        Self { held: Arc::new(AtomicUsize::new(0)), limit, gauge }
    }

    /// A request that holds nothing yet.
    pub(crate) fn open(&self) -> Reservation {
        Reservation { budget: self.clone(), bytes: 0 }
    }
}

impl Reservation {
    /// Takes `bytes` more, or nothing when the allowance does not have them.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), Exhausted> {
        let limit = self.budget.limit;
        self.budget
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                held.checked_add(bytes).filter(|&sum| sum <= limit)
            })
            .map_err(|_| Exhausted)?;
        self.bytes += bytes;
        self.budget.gauge.inc_by(shown(bytes));
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::Relaxed);
        self.budget.gauge.dec_by(shown(self.bytes));
    }
}

fn shown(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_share_the_allowance_and_give_it_back() {
        let held = Gauge::default();
        let budget = Budget::new(100, held.clone());
        let mut first = budget.open();
        let mut second = budget.open();
        assert_eq!(first.grow(60), Ok(()));
        assert_eq!(second.grow(50), Err(Exhausted));
        assert_eq!(held.get(), 60);
        assert_eq!(second.grow(40), Ok(()));
        drop(first);
        assert_eq!(held.get(), 40);
        assert_eq!(second.grow(60), Ok(()));
        drop(second);
        assert_eq!(held.get(), 0);
        assert_eq!(budget.open().grow(100), Ok(()));
    }

    #[test]
    fn an_absurd_size_is_refused_without_overflow() {
        let budget = Budget::new(100, Gauge::default());
        let mut request = budget.open();
        request.grow(1).unwrap();
        assert_eq!(request.grow(usize::MAX), Err(Exhausted));
    }
}
