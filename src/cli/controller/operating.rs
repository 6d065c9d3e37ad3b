//! What the controller does for the cluster's operator, beside the life of claims: flags to its parts.

use clap::Args;
use kube::Client;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cluster::reader::Reader;
use crate::controller::self_test::SelfTest;
use crate::telemetry::metrics::self_test::SelfTestMetrics;

/// The flags of these parts.
#[derive(Debug, Args)]
pub(super) struct OperatingFlags {
    /// The namespace in which the leader proves every minute, by the dry run of a Pinhole that only the webhook refuses, that
    /// the webhook is asked and decides. Not one that the webhook never hears of. Default: no such test.
    #[arg(long, value_name = "NAME", env = "PINHOLE_SELF_TEST_NAMESPACE")]
    self_test_namespace: Option<String>,
}

impl OperatingFlags {
    /// Starts what is wanted.
    pub(super) fn start(
        self,
        client: &Client,
        leading_rx: &watch::Receiver<bool>,
        registry: &mut Registry,
        stop: &CancellationToken,
    ) {
        if let Some(namespace) = self.self_test_namespace {
            let reader = Reader::new(client.clone());
            let metrics = SelfTestMetrics::register(registry);
            let self_test = SelfTest { reader, namespace, leading_rx: leading_rx.clone(), metrics };
            tokio::spawn(self_test.run(stop.clone()));
        }
    }
}
