//! Keeps a Pinhole for each pod that asks for ports, the object that its owner looks at and that its node's agent reads, and
//! says in those that users write how they stand.
//!
//! Like the rest of the controller it starts each turn from what the watches show, and only the leader writes.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use futures::StreamExt;
use futures::stream;
use k8s_openapi::jiff::SignedDuration;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use tracing::info;
use tracing::warn;

use crate::admission::index::Index;
use crate::admission::policy::Policy;
use crate::api::object::Kind;
use crate::cluster::asking_pods::AskingPods;
use crate::cluster::backends::Backends;
use crate::cluster::backends::KnownBackends;
use crate::cluster::changes::Changes;
use crate::cluster::claim_store;
use crate::cluster::claim_watch::Claims;
use crate::cluster::events::Events;
use crate::cluster::events::PodEvent;
use crate::cluster::events::Reason;
use crate::cluster::pinhole_store::PinholeError;
use crate::cluster::pinhole_store::PinholeStore;
use crate::cluster::pinhole_watch::KnownPinholes;
use crate::cluster::pod_writer::PodWriter;
use crate::controller::automatic::Found;
use crate::controller::handover;
use crate::controller::pinholes;
use crate::controller::pinholes::Plan;
use crate::controller::pinholes::Stranger;
use crate::controller::pinholes::Write;
use crate::controller::releasing::Patience;
use crate::controller::standing::Known;
use crate::controller::standing::Waiting;
use crate::controller::turns::Turns;
use crate::controller::written;
use crate::controller::written::Trouble;
use crate::telemetry::metrics::controller::ControllerMetrics;
use crate::telemetry::startup::Startup;

/// Writes at a time.
const WRITES_AT_ONCE: usize = 8;

/// The most that one turn writes, so that a turn ends soon and the next one sees what became of it.
const MOST_IN_A_TURN: usize = 500;

/// What the keeper works with.
pub struct PinholeKeeper {
    /// Where Pinholes are stored.
    pub store: PinholeStore,
    /// How pods are told which ports they have.
    pub pod_writer: PodWriter,
    /// Why no ports are found for pods, where that is so.
    pub waiting: Arc<RwLock<Waiting>>,
    /// Says that any of this has changed.
    pub changes: Changes,
    /// The Pinholes that the watch has shown.
    pub pinholes: Arc<KnownPinholes>,
    /// What stands behind the Pinholes that users write.
    pub backends: Arc<KnownBackends>,
    /// The pods that ask for ports.
    pub pods: Arc<RwLock<AskingPods>>,
    /// The claims that the watch has shown.
    pub claims: Arc<RwLock<Claims>>,
    /// Whether the claims are complete.
    pub claims_known: Arc<AtomicBool>,
    /// Owners, namespaces and nodes.
    pub index: Arc<RwLock<Index>>,
    /// Whether pods and owners are complete.
    pub startup: Arc<Startup>,
    /// What is allowed.
    pub policy: Arc<Policy>,
    /// How long a node that is not heard of is waited for with a released port.
    pub release_timeout: SignedDuration,
    /// Whether this process leads.
    pub leading_rx: watch::Receiver<bool>,
    /// Where a pod's owner is told what has no other place.
    pub events: Events,
    /// What is counted.
    pub metrics: ControllerMetrics,
}

impl PinholeKeeper {
    /// Takes turns until it is stopped.
    pub async fn run(self, stop: CancellationToken) {
        let mut told = HashSet::new();
        let mut turns = Turns::on_news(&self.changes, self.leading_rx.clone(), stop);
        while turns.next().await {
            self.turn(claim_store::now(), &mut told).await;
        }
    }

    /// One turn. `told` remembers what was said.
    async fn turn(&self, now: Timestamp, told: &mut HashSet<PodEvent>) {
        let is_complete = self.startup.is_complete()
            && self.claims_known.load(Ordering::Acquire)
            && self.pinholes.is_complete();
        if !*self.leading_rx.borrow() || !is_complete {
            return;
        }
        let (Plan { writes, strangers }, written) = {
            let claims = self.claims.read().unwrap_or_else(PoisonError::into_inner);
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
            let waiting = self.waiting.read().unwrap_or_else(PoisonError::into_inner);
            let found = Found::of(&claims);
            self.pinholes.read(|pinholes| {
                let handed_over = handover::handed_over(&claims, &index, &pods, pinholes);
                let known = Known {
                    claims: &claims,
                    found: &found,
                    waiting: &waiting,
                    handed_over: &handed_over,
                    index: &index,
                    policy: &self.policy,
                };
                let patience = Patience::of(&known, self.release_timeout, now);
                let of_users = |backends: &Backends| written::plan(pinholes, backends, &known, &patience);
                let written = self.backends.read(written::need(pinholes), of_users);
                (pinholes::plan(&pods, pinholes, &known, &patience), written.unwrap_or_default())
            })
        };
        let changes = writes.into_iter().chain(written.writes);
        let changes = stream::iter(changes.take(MOST_IN_A_TURN));
        changes.for_each_concurrent(WRITES_AT_ONCE, |write| self.write(write)).await;
        self.tell(strangers, written.troubles, told);
    }

    async fn write(&self, write: Write) {
        let (what, result) = match &write {
            Write::Announce { pod, patch } => {
                return self.told("PodTold", self.pod_writer.patch(pod, patch).await);
            }
            Write::Gate { pod, uid, condition } => {
                return self.told("GateSet", self.pod_writer.set_condition(pod, uid, condition).await);
            }
            Write::Apply(pinhole) => ("PinholeApplied", self.store.apply(pinhole).await),
            Write::Report(pinhole) => ("PinholeReported", self.store.report(pinhole).await),
            Write::Label(pinhole) => ("PinholeLabelled", self.store.label(pinhole).await),
            Write::Delete(pinhole) => ("PinholeDeleted", self.store.delete(pinhole).await),
        };
        match result {
            Ok(()) => {
                self.metrics.changed(what);
                debug!(what, ?write, "Written");
            }
            // The watch shows what is there by the next turn.
            Err(error @ PinholeError::Stale(_)) => debug!("{error}"),
            Err(error) => {
                self.metrics.failed();
                warn!("{error}; trying again");
            }
        }
    }

    /// Counts that a pod was changed, if it was.
    fn told(&self, what: &'static str, result: Result<bool, String>) {
        match result {
            Ok(true) => self.metrics.changed(what),
            Ok(false) => {}
            Err(reason) => {
                self.metrics.failed();
                warn!("{reason}; trying again");
            }
        }
    }

    /// Tells what is new. `told` remembers the rest.
    fn tell(&self, strangers: Vec<Stranger>, troubles: Vec<Trouble>, told: &mut HashSet<PodEvent>) {
        let strangers = strangers.into_iter().map(|Stranger { pod, uid }| {
            let note = format!(
                "a Pinhole named {} that somebody else wrote stands in the place of this pod's own, so its ports \
                 are not served; rename or delete that Pinhole",
                pod.name
            );
            PodEvent { kind: Kind::Pod, pod, uid, reason: Reason::NotProgrammed, note }
        });
        let troubles = troubles.into_iter().map(|Trouble { pinhole, uid, message }| PodEvent {
            kind: Kind::Pinhole,
            pod: pinhole,
            uid,
            reason: Reason::NotProgrammed,
            note: message,
        });
        let events: HashSet<_> = strangers.chain(troubles).collect();
        told.retain(|event| events.contains(event));
        for event in events {
            if told.contains(&event) {
                continue;
            }
            info!(object = %event.pod, note = event.note, "Not served");
            if self.events.offer(event.clone()).is_ok() {
                told.insert(event);
            }
        }
    }
}
