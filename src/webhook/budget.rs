//! One allowance of bytes for the bodies of all requests together.
//!
//! Bytes are charged as they arrive: a caller that announces megabytes and sends nothing takes nothing from others.
//! What a request holds is given back when its reservation is dropped, whatever way the request ends.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

/// The allowance. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    held: Arc<AtomicUsize>,
    limit: usize,
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
    pub(crate) fn new(limit: usize) -> Self {
        Self { held: Arc::new(AtomicUsize::new(0)), limit }
    }

    /// A request that holds nothing yet.
    pub(crate) fn open(&self) -> Reservation {
        Reservation { budget: self.clone(), bytes: 0 }
    }

    /// Bytes held by all requests.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
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
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_share_the_allowance_and_give_it_back() {
        let budget = Budget::new(100);
        let mut first = budget.open();
        let mut second = budget.open();
        assert_eq!(first.grow(60), Ok(()));
        assert_eq!(second.grow(50), Err(Exhausted));
        assert_eq!(budget.held(), 60);
        assert_eq!(second.grow(40), Ok(()));
        drop(first);
        assert_eq!(budget.held(), 40);
        assert_eq!(second.grow(60), Ok(()));
        drop(second);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn an_absurd_size_is_refused_without_overflow() {
        let budget = Budget::new(100);
        let mut request = budget.open();
        request.grow(1).unwrap();
        assert_eq!(request.grow(usize::MAX), Err(Exhausted));
    }
}
