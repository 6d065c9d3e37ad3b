//! What one connection is doing and since when.
//!
//! Three parties share it: the connection's I/O, which knows when bytes arrive; the service, which knows where a
//! request begins and ends; and the accept loop, which has to choose whom to send away when there is no room.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::webhook::limits::Limits;

/// The stages of a connection's life. Those before [`Phase::Answering`] wait for the peer and have a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// TLS is being set up.
    Handshake,
    /// TLS stands; no byte of a request has come yet, ever.
    Fresh,
    /// Between two requests.
    Idle,
    /// A request has begun; its head is not complete.
    Head,
    /// The head is complete, the body is not.
    Body,
    /// The request is complete; the answer is ours to give.
    Answering,
}

impl Phase {
    const ALL: [Self; 6] =
        [Self::Handshake, Self::Fresh, Self::Idle, Self::Head, Self::Body, Self::Answering];

    fn limit(self, limits: &Limits) -> Option<Duration> {
        match self {
            Self::Handshake => Some(limits.handshake),
            Self::Fresh => Some(limits.first_byte),
            Self::Idle => Some(limits.idle),
            Self::Head => Some(limits.head),
            Self::Body => Some(limits.body),
            Self::Answering => None,
        }
    }
}

/// The shared record of one connection.
#[derive(Debug)]
pub(crate) struct Activity {
    opened: Instant,
    phase: AtomicU8,
    /// Microseconds from `opened` to the start of the phase.
    since: AtomicU64,
    /// A request has been answered on this connection.
    used: AtomicBool,
    /// Bytes arrived while a request was being answered: the next one has begun.
    ahead: AtomicBool,
    /// Cancelled to close the connection from outside.
    pub(crate) close: CancellationToken,
}

impl Activity {
    pub(crate) fn new() -> Self {
        Self {
            opened: Instant::now(),
            phase: AtomicU8::new(Phase::Handshake as u8),
            since: AtomicU64::new(0),
            used: AtomicBool::new(false),
            ahead: AtomicBool::new(false),
            close: CancellationToken::new(),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        let stored = usize::from(self.phase.load(Ordering::Relaxed));
        Phase::ALL.get(stored).copied().unwrap_or(Phase::Answering)
    }

    /// The handshake is done.
    pub(crate) fn established(&self) {
        self.enter(Phase::Fresh);
    }

    /// Bytes of requests arrived.
    pub(crate) fn received(&self) {
        match self.phase() {
            Phase::Handshake | Phase::Fresh | Phase::Idle => self.enter(Phase::Head),
            Phase::Head | Phase::Body => {}
            Phase::Answering => self.ahead.store(true, Ordering::Relaxed),
        }
    }

    /// A request's head is complete.
    pub(crate) fn head_complete(&self) {
        self.ahead.store(false, Ordering::Relaxed);
        self.enter(Phase::Body);
    }

    /// A request's body is complete.
    pub(crate) fn body_complete(&self) {
        self.enter(Phase::Answering);
    }

    /// The answer to a request is decided.
    pub(crate) fn answered(&self) {
        self.used.store(true, Ordering::Relaxed);
        self.enter(if self.ahead.load(Ordering::Relaxed) { Phase::Head } else { Phase::Idle });
    }

    /// When the peer must have moved on, if it is the peer that we wait for.
    pub(crate) fn deadline(&self, limits: &Limits) -> Option<Instant> {
        self.phase().limit(limits).map(|limit| self.since() + limit)
    }

    /// How long no request has been in progress; `None` while one is.
    pub(crate) fn silent_for(&self, now: Instant) -> Option<Duration> {
        match self.phase() {
            Phase::Handshake | Phase::Fresh | Phase::Idle => {
                Some(now.saturating_duration_since(self.since()))
            }
            Phase::Head | Phase::Body | Phase::Answering => None,
        }
    }

    /// True until the first answer, unless a request is complete and waits for it.
    pub(crate) fn never_used(&self) -> bool {
        !self.used.load(Ordering::Relaxed) && !matches!(self.phase(), Phase::Answering)
    }

    pub(crate) fn opened(&self) -> Instant {
        self.opened
    }

    fn since(&self) -> Instant {
        self.opened + Duration::from_micros(self.since.load(Ordering::Relaxed))
    }

    fn enter(&self, phase: Phase) {
        let since = u64::try_from(self.opened.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.since.store(since, Ordering::Relaxed);
        self.phase.store(phase as u8, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_walks_through_the_phases() {
        let activity = Activity::new();
        assert_eq!(activity.phase(), Phase::Handshake);
        activity.established();
        assert_eq!(activity.phase(), Phase::Fresh);
        assert!(activity.never_used());
        activity.received();
        assert_eq!(activity.phase(), Phase::Head);
        activity.head_complete();
        activity.received();
        assert_eq!(activity.phase(), Phase::Body);
        activity.body_complete();
        assert_eq!(activity.phase(), Phase::Answering);
        assert_eq!(activity.deadline(&Limits::default()), None);
        assert_eq!(activity.silent_for(Instant::now()), None);
        activity.answered();
        assert_eq!(activity.phase(), Phase::Idle);
        assert!(!activity.never_used());
        assert!(activity.silent_for(Instant::now()).is_some());
    }

    #[test]
    fn a_request_that_began_early_is_held_to_its_deadline() {
        let activity = Activity::new();
        activity.established();
        activity.received();
        activity.head_complete();
        activity.body_complete();
        activity.received();
        activity.answered();
        assert_eq!(activity.phase(), Phase::Head);
    }

    #[test]
    fn an_idle_connection_outlives_the_api_servers_ninety_seconds() {
        let activity = Activity::new();
        activity.answered();
        let deadline = activity.deadline(&Limits::default()).unwrap();
        assert!(Instant::now() + Duration::from_mins(2) <= deadline);
    }
}
