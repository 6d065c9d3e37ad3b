//! Wakes workloads whose pods were refused, once they would be admitted ([`waking`] says which and when).
//!
//! One turn: observe (the watches' view), check (is it complete, do we lead), decide, apply (a change of the workload that
//! means nothing), report (metrics and the log).

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use tracing::info;
use tracing::warn;

use crate::admission::index::Index;
use crate::admission::policy::Policy;
use crate::api::object::Object;
use crate::cluster::claim_store;
use crate::cluster::claim_watch::Claims;
use crate::cluster::lacking_workloads::LackingWorkloads;
use crate::cluster::workload_writer::WorkloadWriter;
use crate::controller::automatic::Found;
use crate::controller::standing::Known;
use crate::controller::waking;
use crate::controller::waking::Memory;
use crate::controller::waking::Sleeper;
use crate::telemetry::metrics::controller::ControllerMetrics;
use crate::telemetry::startup::Startup;

/// How often a turn is taken.
const PERIOD: Duration = Duration::from_secs(1);

/// What the waker works with.
pub struct Waker {
    /// How workloads are woken.
    pub writer: WorkloadWriter,
    /// Those that lack pods.
    pub workloads: Arc<RwLock<LackingWorkloads>>,
    /// The claims that the watch has shown.
    pub claims: Arc<RwLock<Claims>>,
    /// Whether the claims are complete.
    pub claims_known: Arc<AtomicBool>,
    /// Owners, namespaces, nodes and pools.
    pub index: Arc<RwLock<Index>>,
    /// Whether workloads and owners are complete.
    pub startup: Arc<Startup>,
    /// What is allowed.
    pub policy: Arc<Policy>,
    /// Whether this process leads.
    pub leading_rx: watch::Receiver<bool>,
    /// Whether the webhook is known not to answer.
    pub silent_rx: watch::Receiver<bool>,
    /// What is counted.
    pub metrics: ControllerMetrics,
}

impl Waker {
    /// Takes turns until it is stopped.
    pub async fn run(self, stop: CancellationToken) {
        let mut memory = Memory::default();
        loop {
            self.turn(&mut memory, claim_store::now()).await;
            tokio::select! {
                () = tokio::time::sleep(PERIOD) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// One turn.
    async fn turn(&self, memory: &mut Memory, now: Timestamp) {
        let is_complete = self.startup.is_complete() && self.claims_known.load(Ordering::Acquire);
        let is_idle = self.workloads.read().unwrap_or_else(PoisonError::into_inner).is_empty();
        if !*self.leading_rx.borrow() || !is_complete || is_idle {
            *memory = Memory::default();
            return;
        }
        let due = {
            let workloads = self.workloads.read().unwrap_or_else(PoisonError::into_inner);
            let claims = self.claims.read().unwrap_or_else(PoisonError::into_inner);
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            let is_silent = *self.silent_rx.borrow();
            let found = Found::of(&claims);
            let known = Known::of_claims(&claims, &found, &index, &self.policy);
            let admits = |workload: &Object| !is_silent && waking::admits(workload, &known);
            memory.due(&workloads, admits, now)
        };
        for sleeper in due {
            self.wake(sleeper, now).await;
        }
    }

    async fn wake(&self, sleeper: Sleeper, now: Timestamp) {
        let Sleeper { workload, uid } = sleeper;
        let kind = workload.kind.name();
        match self.writer.wake(&workload, &uid, now).await {
            Ok(true) => {
                self.metrics.changed("Woken");
                info!(kind, workload = %workload.name, "Woken: it lacks pods that would be admitted");
            }
            Ok(false) => debug!(kind, workload = %workload.name, "Gone before it was woken"),
            Err(reason) => {
                self.metrics.failed();
                warn!("{reason}; trying again later");
            }
        }
    }
}
