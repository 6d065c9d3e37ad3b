//! Keeps a Pinhole for each pod that asks for ports, the object that its owner looks at and that its node's agent reads, and
//! says in those that users write how they stand.
//!
//! Like the rest of the controller it starts each turn from what the watches show, and only the leader writes.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use futures::StreamExt;
use futures::stream;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::SignedDuration;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use tracing::warn;

use crate::admission::index::Index;
use crate::admission::policy::Policy;
use crate::api::crd::pinhole::Pinhole;
use crate::api::object::Kind;
use crate::cluster::asking_pods::AskingPods;
use crate::cluster::backends::Backends;
use crate::cluster::backends::KnownBackends;
use crate::cluster::changes::Changes;
use crate::cluster::claim_store;
use crate::cluster::claim_watch::Claims;
use crate::cluster::events::Events;
use crate::cluster::events::ObjectEvent;
use crate::cluster::events::Regarding;
use crate::cluster::pinhole_store::PinholeError;
use crate::cluster::pinhole_store::PinholeStore;
use crate::cluster::pinhole_watch::KnownPinholes;
use crate::cluster::pinhole_watch::Pinholes;
use crate::cluster::pod_writer::PodWriter;
use crate::controller::automatic::Found;
use crate::controller::handover;
use crate::controller::latency;
use crate::controller::news::Teller;
use crate::controller::pinholes;
use crate::controller::pinholes::Plan;
use crate::controller::pinholes::Write;
use crate::controller::releasing::Patience;
use crate::controller::standing::Known;
use crate::controller::standing::Waiting;
use crate::controller::turns::Turns;
use crate::controller::written;
use crate::controller::written::Trouble;
use crate::model::holder::ObjectName;
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
        let mut teller = Teller::default();
        let mut turns = Turns::on_news(&self.changes, self.leading_rx.clone(), stop);
        while turns.next().await {
            self.turn(claim_store::now(), &mut teller).await;
        }
    }

    /// One turn.
    async fn turn(&self, now: Timestamp, teller: &mut Teller) {
        let is_complete = self.startup.is_complete()
            && self.claims_known.load(Ordering::Acquire)
            && self.pinholes.is_complete();
        if !*self.leading_rx.borrow() || !is_complete {
            return;
        }
        let (Plan { writes, mut news, standings }, written) = {
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
        self.metrics.pods(&standings);
        for Trouble { pinhole, uid, reason, message: note } in written.troubles {
            let regarding = Regarding::new(Kind::Pinhole, pinhole, uid);
            news.add(ObjectEvent { regarding, reason, note });
        }
        teller.tell(news, &self.events, now);
    }

    async fn write(&self, write: Write) {
        let (what, result) = match &write {
            Write::Announce { pod, patch } => {
                let granted = self.granted(pod, patch);
                let result = self.pod_writer.patch(pod, patch).await;
                if let Some(took) = granted.filter(|_| result == Ok(true)) {
                    self.metrics.granted(took);
                }
                return self.told("PodTold", result);
            }
            Write::Gate { pod, uid, condition } => {
                return self.told("GateSet", self.pod_writer.set_condition(pod, uid, condition).await);
            }
            Write::Apply(pinhole) => ("PinholeApplied", self.store.apply(pinhole).await),
            Write::Report(pinhole) => {
                let programmed = self.programmed(pinhole);
                let result = self.store.report(pinhole).await;
                if let Some(took) = programmed.filter(|_| result.is_ok()) {
                    self.metrics.programmed(took);
                }
                ("PinholeReported", result)
            }
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

    /// How long a pod has waited for what it is about to be told, if that is a grant.
    fn granted(&self, name: &ObjectName, patch: &Value) -> Option<SignedDuration> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        latency::grant(pods.get(name)?, patch, Timestamp::now())
    }

    /// How long a pod has waited for this report, if it says that its ports are programmed.
    fn programmed(&self, report: &Pinhole) -> Option<SignedDuration> {
        let ObjectMeta { name, namespace, .. } = &report.metadata;
        let name = ObjectName::new(namespace.as_deref()?, name.as_deref()?);
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        let (pod, status) = (pods.get(&name)?, report.status.as_ref()?);
        let took =
            |pinholes: &Pinholes| latency::programmed(pinholes.get(&name)?, pod, status, Timestamp::now());
        self.pinholes.read(took)
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
}
