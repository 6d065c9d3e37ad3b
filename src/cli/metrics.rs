//! The flags of the agent's metrics: who may read them, and where.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use clap::Args;
use clap::ValueEnum;
use futures::FutureExt;
use kube::Client;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::cli::listen;
use crate::cluster::access::Access;
use crate::cluster::access::Answer;
use crate::telemetry::http;
use crate::telemetry::readiness::Readiness;
use crate::telemetry::secure;
use crate::telemetry::secure::Review;
use crate::telemetry::secure::Verdict;

/// Who may read the metrics.
#[derive(Debug, Args)]
#[command(next_help_heading = "Metrics")]
pub(crate) struct MetricsFlags {
    /// Who may read /metrics.
    #[arg(long, value_enum, default_value_t = Metrics::Plain, env = "PINHOLE_METRICS")]
    metrics: Metrics,

    /// Where to serve them with --metrics authenticated. A bare port listens on every IPv4 address.
    #[arg(long, value_name = "[ADDRESS:]PORT", default_value = "0.0.0.0:8486", value_parser = listen::parse,
          env = "PINHOLE_METRICS_ADDRESS")]
    metrics_address: SocketAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Metrics {
    /// Whoever reaches --http-address.
    Plain,
    /// Over HTTPS, whoever shows a token with the right to `get` the URL /metrics.
    Authenticated,
    /// Nobody.
    Off,
}

impl MetricsFlags {
    /// Serves the metrics where they have a place of their own, until `stop`. Returns what belongs on --http-address.
    pub(crate) async fn serve(
        self,
        readiness: Readiness,
        registry: Arc<Registry>,
        client: Client,
        stop: CancellationToken,
    ) -> anyhow::Result<Router> {
        let Self { metrics, metrics_address } = self;
        match metrics {
            Metrics::Plain => Ok(http::router(readiness, registry)),
            Metrics::Off => Ok(http::health(readiness)),
            Metrics::Authenticated => {
                let acceptor = secure::acceptor(SystemTime::now())?;
                let listener = listen::bind(metrics_address, "--metrics-address").await?;
                info!(%metrics_address, "Serving metrics over HTTPS to whoever the cluster lets read them");
                let router = secure::router(registry, review(Access::new(client, "/metrics")));
                tokio::spawn(http::serve_tls(listener, acceptor, router, stop));
                Ok(http::health(readiness))
            }
        }
    }
}

fn review(access: Access) -> Review {
    let access = Arc::new(access);
    Arc::new(move |token| {
        let access = Arc::clone(&access);
        async move {
            match access.review(&token).await {
                Ok(Answer::Granted) => Verdict::Granted,
                Ok(Answer::Unknown) => Verdict::Unknown,
                Ok(Answer::Forbidden { user }) => Verdict::Forbidden { user },
                Err(error) => Verdict::Unanswered { reason: error.to_string() },
            }
        }
        .boxed()
    })
}
