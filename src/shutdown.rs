//! Turns SIGTERM and SIGINT into one token that every part of a process watches.
//!
//! The first signal cancels the token: the process drains and ends by itself. A second one ends it at once, for
//! whoever waits at a terminal. Nothing else in the program listens for signals.

use std::io;

use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing::warn;

/// What a shell expects from a process that an interrupt ended: 128 + SIGINT.
const ABORTED: i32 = 130;

/// Listens for SIGTERM and SIGINT from now on; the first one cancels the returned token, the second ends the
/// process.
///
/// Must be called inside a Tokio runtime.
pub fn on_signal() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Signal streams -> `relay`; two places are enough, the second signal ends the process.
    let (signal_tx, signal_rx) = mpsc::channel(2);
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                Some(()) = terminate.recv() => "SIGTERM",
                Some(()) = interrupt.recv() => "SIGINT",
                else => return,
            };
            if signal_tx.send(name).await.is_err() {
                return;
            }
        }
    });

    let token = CancellationToken::new();
    tokio::spawn(relay(signal_rx, token.clone(), || std::process::exit(ABORTED)));
    Ok(token)
}

async fn relay(mut signal_rx: mpsc::Receiver<&'static str>, token: CancellationToken, abort: impl FnOnce()) {
    let Some(signal) = signal_rx.recv().await else { return };
    info!(signal, "Shutting down: finishing what is in progress; a second signal ends the process at once");
    token.cancel();
    let Some(signal) = signal_rx.recv().await else { return };
    warn!(signal, "Ending at once on the second signal; calls in progress are lost");
    abort();
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering;

    use super::*;

    #[tokio::test]
    async fn the_first_signal_cancels_and_the_second_aborts() {
        let (signal_tx, signal_rx) = mpsc::channel(2);
        let token = CancellationToken::new();
        let aborted = Arc::new(AtomicBool::new(false));
        let abort_seen = Arc::clone(&aborted);
        let relay =
            tokio::spawn(relay(signal_rx, token.clone(), move || abort_seen.store(true, Ordering::SeqCst)));

        assert!(!token.is_cancelled());
        signal_tx.send("SIGTERM").await.unwrap();
        token.cancelled().await;
        assert!(!aborted.load(Ordering::SeqCst));

        signal_tx.send("SIGINT").await.unwrap();
        relay.await.unwrap();
        assert!(aborted.load(Ordering::SeqCst));
    }
}
