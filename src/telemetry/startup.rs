//! Whether what decisions rest on is complete, and until then what is still missing.
//!
//! A call that comes too early waits for that as long as its caller waits for it. What it is told in the end is the
//! reason: the API server's own word for a call that is repeated in vain is "context deadline exceeded".

use std::fmt;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// The start of one process.
#[derive(Debug)]
pub struct Startup {
    /// What is missing; `None` once nothing is. From whoever loads it to the calls that wait.
    missing: watch::Sender<Option<String>>,
    began: Instant,
}

/// What was missing at some moment, and for how long by then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incomplete {
    missing: String,
    since: Duration,
}

impl Startup {
    /// Begins now, with something missing.
    pub fn missing(what: impl Into<String>) -> Self {
        Self { missing: watch::Sender::new(Some(what.into())), began: Instant::now() }
    }

    /// Where there is nothing to wait for.
    pub fn complete() -> Self {
        Self { missing: watch::Sender::new(None), began: Instant::now() }
    }

    /// Says what is missing now.
    pub fn waits_for(&self, what: impl Into<String>) {
        self.missing.send_replace(Some(what.into()));
    }

    /// Nothing is missing any more.
    pub fn finish(&self) {
        self.missing.send_replace(None);
    }

    /// Whether nothing is missing.
    pub fn is_complete(&self) -> bool {
        self.missing.borrow().is_none()
    }

    /// What is missing, if something is.
    pub fn incomplete(&self) -> Option<Incomplete> {
        let missing = self.missing.borrow().clone()?;
        Some(Incomplete { missing, since: self.began.elapsed() })
    }

    /// Waits until nothing is missing.
    pub async fn completed(&self) {
        // It can only fail when the sender is gone, and that is ours.
        let _ = self.missing.subscribe().wait_for(Option::is_none).await;
    }
}

impl fmt::Display for Incomplete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "for {} s, {}", self.since.as_secs(), self.missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_tells_what_is_missing_and_since_when_until_nothing_is() {
        let startup = Startup::missing("waiting for the first list of pods");
        tokio::time::advance(Duration::from_secs(7)).await;
        startup.waits_for("listing pods fails: HTTP 403");
        assert_eq!(startup.incomplete().unwrap().to_string(), "for 7 s, listing pods fails: HTTP 403");
        let soon = Duration::from_millis(1);
        assert!(tokio::time::timeout(soon, startup.completed()).await.is_err());
        startup.finish();
        startup.completed().await;
        assert!(startup.is_complete());
        assert_eq!(startup.incomplete(), None);
    }
}
