//! `pinhole webhook`: answers the API server's admission calls.
//!
//! No rule lives here. A call is read, joined with the index, given to the pure rules of [`crate::admission`], and
//! their decision is written in the API server's terms. What this module owns is being there: deadlines and limits
//! that no caller can use against another, certificates that change under load, and an end that loses no call.

pub(crate) mod activity;
pub(crate) mod body;
pub(crate) mod budget;
pub(crate) mod connection;
pub mod decider;
pub mod limits;
pub(crate) mod refusal;
pub(crate) mod reply;
pub mod review;
pub mod routes;
pub mod self_signed;
pub mod server;
#[cfg(test)]
pub(crate) mod testing;
pub mod tls;
pub(crate) mod watched;

use std::sync::Arc;
use std::time::SystemTime;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::telemetry::metrics::webhook::WebhookMetrics;
use crate::telemetry::readiness::Readiness;
use crate::webhook::decider::Decider;
use crate::webhook::limits::Limits;
use crate::webhook::server::Server;
use crate::webhook::tls::Certificates;
use crate::webhook::tls::files;
use crate::webhook::tls::files::Files;
use crate::webhook::tls::pair::Pair;
use crate::webhook::tls::self_managed;
use crate::webhook::tls::self_managed::SelfManaged;

/// Where the serving certificate comes from.
pub enum CertificateSource {
    /// Files that somebody else replaces in time.
    Files(Files),
    /// An authority that the replicas manage by themselves.
    SelfManaged(Box<self_managed::Parts>),
    /// One pair for as long as the process runs.
    Fixed(Box<Pair>),
}

/// What a webhook is made of.
pub struct Webhook {
    /// Decides on calls.
    pub decider: Arc<Decider>,
    /// Where the certificate comes from.
    pub certificates: CertificateSource,
    /// What callers are granted.
    pub limits: Limits,
    /// Where to count.
    pub metrics: WebhookMetrics,
    /// Where to say what is missing before calls can be answered.
    pub readiness: Readiness,
}

/// Serves admission calls on `listener` until `stop` is cancelled and the last call is answered.
pub async fn run(
    webhook: Webhook,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), rustls::Error> {
    let Webhook { decider, certificates: source, limits, metrics, readiness } = webhook;
    let serving = readiness.require("serving", "not accepting calls yet");
    let certificates =
        Certificates::new(metrics.clone(), readiness.require("certificate", "no certificate loaded yet"));
    let router = routes::router(decider, &limits, metrics.clone());
    let server = Server::new(tls::server_config(Arc::clone(&certificates))?, router, limits, metrics);

    let ended = CancellationToken::new();
    let _ended = ended.clone().drop_guard();
    match source {
        CertificateSource::Fixed(pair) => certificates.install(*pair),
        CertificateSource::SelfManaged(parts) => {
            let trusted = readiness.require("authority", "the certificate authority is not read yet");
            tokio::spawn(SelfManaged::new(*parts, trusted).follow(certificates, ended));
        }
        CertificateSource::Files(mut files) => {
            files.refresh(&certificates, SystemTime::now());
            // To the very end: a certificate may be replaced while the last callers are being answered.
            tokio::spawn(files.follow(certificates, files::POLL, ended));
        }
    }
    serving.met();
    let stopping = stop.clone();
    tokio::spawn(async move {
        stopping.cancelled().await;
        serving.missing("shutting down: calls are still answered, new ones belong elsewhere");
    });
    server.run(listener, stop).await;
    Ok(())
}
