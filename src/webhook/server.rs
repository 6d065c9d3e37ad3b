//! The accept loop: who gets a connection, who has to go, and how the process ends without losing a call.
//!
//! # Ending
//! The API server keeps connections to a replica that is about to end, and does not repeat a call that it had begun
//! to send on a connection just closed. So on the order to end nothing is closed. For the drain period the server
//! goes on accepting and answering, and every answer carries `Connection: close`, which moves its caller to another
//! replica before the next call. Then the listener is closed, calls in progress are finished, and a connection is
//! closed when it has been silent for a whole drain period.
//!
//! # Room
//! When all places are taken, the new connection is let in and another has to go: the oldest one that has never
//! been used for a request (an API server connects when it has one), else the one silent the longest. Connections
//! with a request in progress are never chosen; if all are such, the new one is closed.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use futures::FutureExt;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::task::Id;
use tokio::task::JoinError;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing::warn;

use crate::telemetry::metrics::webhook::WebhookMetrics;
use crate::webhook::activity::Activity;
use crate::webhook::connection;
use crate::webhook::connection::Shared;
use crate::webhook::limits::Limits;

/// Pause after `accept` failed, as it does while the process has no file descriptor left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// How often the end of silent connections is looked for while the process ends.
const FINISH_STEP: Duration = Duration::from_millis(50);

/// An HTTPS server for one router.
pub struct Server {
    shared: Arc<Shared>,
    open: HashMap<Id, Arc<Activity>>,
    tasks: JoinSet<()>,
}

impl Server {
    /// A server that has no connection yet.
    pub fn new(tls: Arc<ServerConfig>, router: Router, limits: Limits, metrics: WebhookMetrics) -> Self {
        let shared = Shared {
            acceptor: TlsAcceptor::from(tls),
            router,
            limits: Arc::new(limits),
            metrics,
            draining: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared), open: HashMap::new(), tasks: JoinSet::new() }
    }

    /// Serves on `listener` until `stop` is cancelled and the connections have ended as the module says.
    pub async fn run(mut self, listener: TcpListener, stop: CancellationToken) {
        self.accept_until(&listener, stop.cancelled()).await;

        let ordered = Instant::now();
        let limits = Arc::clone(&self.shared.limits);
        self.shared.draining.store(true, Ordering::Relaxed);
        info!(
            connections = self.open.len(),
            drain_seconds = limits.drain_period.as_secs_f64(),
            "Draining: still accepting, and asking every caller to connect elsewhere"
        );
        self.accept_until(&listener, tokio::time::sleep_until(ordered + limits.drain_period)).await;
        self.accept_waiting(&listener);
        drop(listener);

        info!(connections = self.open.len(), "No longer accepting; finishing what is in progress");
        let latest = ordered + limits.termination_grace.max(limits.drain_period);
        if tokio::time::timeout_at(latest, self.finish(limits.drain_period)).await.is_err() {
            warn!(
                connections = self.open.len(),
                "Ending with open connections: their calls took longer than --termination-grace"
            );
        }
    }

    async fn accept_until(&mut self, listener: &TcpListener, end: impl Future<Output = ()>) {
        let mut end = std::pin::pin!(end);
        loop {
            tokio::select! {
                () = end.as_mut() => return,
                Some(ended) = self.tasks.join_next_with_id() => self.forget(ended),
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => self.admit(stream),
                    Err(error) => {
                        warn!(%error, "Cannot accept a connection; trying again. \
                              If this goes on, look at the process's limit of open files");
                        tokio::time::sleep(ACCEPT_RETRY).await;
                    }
                },
            }
        }
    }

    /// Accepts what the kernel has already completed: closing the listener would reset those callers.
    fn accept_waiting(&mut self, listener: &TcpListener) {
        while let Some(Ok((stream, _))) = listener.accept().now_or_never() {
            self.admit(stream);
        }
    }

    fn admit(&mut self, stream: TcpStream) {
        if self.shared.limits.max_connections <= self.open.len() {
            let Some(id) = self.least_needed() else {
                self.shared.metrics.cut("no-room");
                return;
            };
            if let Some(activity) = self.open.remove(&id) {
                self.shared.metrics.cut("evicted");
                activity.close.cancel();
            }
        }
        let activity = Arc::new(Activity::new());
        let task = connection::serve(stream, Arc::clone(&self.shared), Arc::clone(&activity));
        let id = self.tasks.spawn(task).id();
        self.open.insert(id, activity);
        self.count();
    }

    fn least_needed(&self) -> Option<Id> {
        let now = Instant::now();
        let unused = self.open.iter().filter(|(_, activity)| activity.never_used());
        let oldest_unused = unused.min_by_key(|(_, activity)| activity.opened());
        let silent = || {
            let silent = self.open.iter().filter_map(|(id, activity)| Some((id, activity.silent_for(now)?)));
            silent.max_by_key(|&(_, silence)| silence).map(|(id, _)| *id)
        };
        oldest_unused.map(|(id, _)| *id).or_else(silent)
    }

    async fn finish(&mut self, silence: Duration) {
        while !self.tasks.is_empty() {
            let now = Instant::now();
            for activity in self.open.values() {
                if activity.silent_for(now).is_some_and(|silent| silence <= silent) {
                    activity.close.cancel();
                }
            }
            tokio::select! {
                Some(ended) = self.tasks.join_next_with_id() => self.forget(ended),
                () = tokio::time::sleep(FINISH_STEP) => {}
            }
        }
    }

    fn forget(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                warn!(%error, "The task of a connection failed; only that connection is lost. Please report this");
                error.id()
            }
        };
        self.open.remove(&id);
        self.count();
    }

    fn count(&self) {
        self.shared.metrics.connections.set(i64::try_from(self.open.len()).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests;
