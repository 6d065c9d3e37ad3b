//! The pace of the controller's loops.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cluster::changes::Changes;

/// The shortest rest between two turns: what changes meanwhile is seen at once. A loop whose turns take longer rests as long as
/// it works.
const REST: Duration = Duration::from_millis(50);

/// The longest wait for news: what becomes due by the clock, or has failed, is looked at by then.
const QUIET: Duration = Duration::from_secs(5);

/// Turns, the first at once.
#[derive(Debug)]
pub(super) struct Turns {
    pace: Pace,
    /// When the last one began.
    began: Option<Instant>,
    stop: CancellationToken,
}

#[derive(Debug)]
enum Pace {
    /// One in each period.
    Steady(Duration),
    /// When something has changed, or who leads.
    News { changes_rx: watch::Receiver<()>, leading_rx: watch::Receiver<bool> },
}

impl Turns {
    /// Turns that begin at least this long after each other, until they are stopped.
    pub(super) fn every(period: Duration, stop: CancellationToken) -> Self {
        Self { pace: Pace::Steady(period), began: None, stop }
    }

    /// Turns that begin soon after something changes, until they are stopped.
    pub(super) fn on_news(
        changes: &Changes,
        leading_rx: watch::Receiver<bool>,
        stop: CancellationToken,
    ) -> Self {
        Self { pace: Pace::News { changes_rx: changes.hear(), leading_rx }, began: None, stop }
    }

    /// Waits for the next one; false when there is none any more.
    pub(super) async fn next(&mut self) -> bool {
        let Self { pace, began, stop } = self;
        tokio::select! {
            () = pace.pass(*began) => {}
            () = stop.cancelled() => return false,
        }
        *began = Some(Instant::now());
        true
    }
}

impl Pace {
    /// Until the next turn is due, when the last one has just ended.
    async fn pass(&mut self, began: Option<Instant>) {
        let Some(began) = began else { return };
        match self {
            Self::Steady(period) => tokio::time::sleep_until(began + *period).await,
            Self::News { changes_rx, leading_rx } => {
                tokio::time::sleep(began.elapsed().max(REST)).await;
                tokio::select! {
                    Ok(()) = changes_rx.changed() => {}
                    Ok(()) = leading_rx.changed() => {}
                    () = tokio::time::sleep(QUIET) => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long after the start of one turn, which takes so long, the next one begins.
    async fn until_next(turns: &mut Turns, takes: Duration) -> Duration {
        let began = Instant::now();
        tokio::time::sleep(takes).await;
        assert!(turns.next().await);
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn news_are_followed_by_a_turn_and_silence_by_one_at_last() {
        let (changes, (leading_tx, leading_rx)) = (Changes::default(), watch::channel(false));
        let mut turns = Turns::on_news(&changes, leading_rx, CancellationToken::new());
        let soon = Duration::from_millis(1);
        assert!(turns.next().await);
        assert_eq!(until_next(&mut turns, soon).await, soon + REST + QUIET);
        // While a turn was busy, and more than once.
        changes.tell();
        changes.tell();
        assert_eq!(until_next(&mut turns, soon).await, soon + REST);
        assert_eq!(until_next(&mut turns, soon).await, soon + REST + QUIET);
        leading_tx.send_replace(true);
        assert_eq!(until_next(&mut turns, soon).await, soon + REST);
        // Whoever is done with the Lease leads nobody any more.
        drop(leading_tx);
        assert_eq!(until_next(&mut turns, soon).await, soon + REST + QUIET);
        changes.tell();
        let long = Duration::from_secs(1);
        assert_eq!(until_next(&mut turns, long).await, long + long);
    }

    #[tokio::test(start_paused = true)]
    async fn steady_turns_begin_a_period_after_each_other_and_none_after_the_end() {
        let (period, stop) = (Duration::from_secs(5), CancellationToken::new());
        let mut turns = Turns::every(period, stop.clone());
        assert!(turns.next().await);
        assert_eq!(until_next(&mut turns, Duration::from_secs(1)).await, period);
        assert_eq!(until_next(&mut turns, Duration::from_secs(7)).await, Duration::from_secs(7));
        stop.cancel();
        assert!(!turns.next().await);
    }
}
