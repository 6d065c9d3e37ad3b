//! What the controller does for the cluster's operator, beside the life of claims: flags to its parts.

use std::sync::Arc;
use std::sync::RwLock;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use k8s_openapi::jiff::SignedDuration;
use kube::Client;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cli::controller::object_name;
use crate::cli::duration;
use crate::cluster::asking_pods::AskingPods;
use crate::cluster::claim_watch::Claims;
use crate::cluster::every;
use crate::cluster::history_store::HistoryStore;
use crate::cluster::masquerade_policies::PolicyWriter;
use crate::cluster::reader::Reader;
use crate::controller::historian::Historian;
use crate::controller::masquerading::PolicyKeeper;
use crate::controller::self_test::SelfTest;
use crate::model::holder::ObjectName;
use crate::telemetry::metrics::controller::ControllerMetrics;
use crate::telemetry::metrics::self_test::SelfTestMetrics;
use crate::telemetry::startup::Startup;

/// The flags of these parts.
#[derive(Debug, Args)]
pub(super) struct OperatingFlags {
    /// The namespace in which the leader proves every minute, by the dry run of a Pinhole that only the webhook refuses, that
    /// the webhook is asked and decides. Not one that the webhook never hears of. Default: no such test.
    #[arg(long, value_name = "NAME", env = "PINHOLE_SELF_TEST_NAMESPACE")]
    self_test_namespace: Option<String>,

    /// How long it is kept who held which external port, for `kubectl pinhole history`: 2160h. Default: not at all.
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, env = "PINHOLE_HISTORY")]
    history: Option<Duration>,

    /// The ConfigMaps that keep it, without the number that each name ends with, from -0 to -15. They must be there.
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "pinhole-system/pinhole-controller-history",
          value_parser = object_name, env = "PINHOLE_HISTORY_STORE")]
    history_store: ObjectName,
}

/// What these parts work with.
pub(super) struct Tools {
    /// The cluster.
    pub(super) client: Client,
    /// The claims that the watch has shown.
    pub(super) claims: Arc<RwLock<Claims>>,
    /// Whether these are complete.
    pub(super) claims_known: Arc<AtomicBool>,
    /// The pods that ask for ports.
    pub(super) pods: Arc<RwLock<AskingPods>>,
    /// Whether these are complete.
    pub(super) startup: Arc<Startup>,
    /// Whether this process leads.
    pub(super) leading_rx: watch::Receiver<bool>,
    /// Where it is said whether the webhook is known not to answer.
    pub(super) silent_tx: watch::Sender<bool>,
    /// What is counted.
    pub(super) metrics: ControllerMetrics,
    /// Ends them.
    pub(super) stop: CancellationToken,
}

impl OperatingFlags {
    /// Starts what is wanted.
    pub(super) fn start(self, tools: Tools, registry: &mut Registry) -> anyhow::Result<()> {
        let Self { self_test_namespace, history, history_store } = self;
        let Tools { client, claims, claims_known, pods, startup, leading_rx, silent_tx, metrics, stop } =
            tools;
        if let Some(namespace) = self_test_namespace {
            let reader = Reader::new(client.clone());
            let metrics = SelfTestMetrics::register(registry);
            let self_test =
                SelfTest { reader, namespace, leading_rx: leading_rx.clone(), silent_tx, metrics };
            tokio::spawn(self_test.run(stop.clone()));
        }
        let (policies_tx, policies_rx) = watch::channel(None);
        let (nodes_tx, nodes_rx) = watch::channel(None);
        tokio::spawn(every::follow(client.clone(), policies_tx));
        tokio::spawn(every::follow(client.clone(), nodes_tx));
        let keeper = PolicyKeeper {
            writer: PolicyWriter::new(client.clone()),
            policies_rx,
            nodes_rx,
            leading_rx: leading_rx.clone(),
            metrics: metrics.clone(),
        };
        tokio::spawn(keeper.run(stop.clone()));
        if let Some(history) = history {
            let keep = SignedDuration::try_from(history).context("--history is too long")?;
            let store = HistoryStore::new(client, history_store);
            let historian =
                Historian { store, keep, claims, claims_known, pods, startup, leading_rx, metrics };
            tokio::spawn(historian.run(stop));
        }
        Ok(())
    }
}
