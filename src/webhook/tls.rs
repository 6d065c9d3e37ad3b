//! TLS for the webhook: which certificate is served, and changing it without touching open connections.
//!
//! Each handshake takes the certificate that is current at that moment; nothing else is rebuilt on a change. The
//! cryptography is ring's, named explicitly, so that a second provider in the tree can never be picked by accident.

pub(crate) mod acceptance;
pub mod files;
pub mod pair;
pub mod self_managed;

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::ClientHello;
use rustls::server::ResolvesServerCert;
use rustls::sign::CertifiedKey;
use tracing::info;
use tracing::warn;

use crate::telemetry::metrics::webhook::WebhookMetrics;
use crate::telemetry::readiness::Condition;
use crate::webhook::tls::pair::Pair;

/// The only cryptography that Pinhole uses.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The certificate that new connections get, and what depends on there being one.
#[derive(Debug)]
pub struct Certificates {
    current: ArcSwapOption<CertifiedKey>,
    metrics: WebhookMetrics,
    ready: Condition,
}

impl Certificates {
    /// No certificate yet: handshakes fail and `ready` is not met until one is installed.
    pub fn new(metrics: WebhookMetrics, ready: Condition) -> Arc<Self> {
        Arc::new(Self { current: ArcSwapOption::empty(), metrics, ready })
    }

    /// Serves `pair` from the next handshake on.
    pub fn install(&self, pair: Pair) {
        for warning in &pair.warnings {
            warn!(names = %pair.names.join(","), "{warning}");
        }
        info!(names = %pair.names.join(","), not_after = %pair.not_after_text, "Serving a certificate");
        // Exact for the next 285 million years.
        #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 are far below 2^53")]
        self.metrics.certificate_not_after.set(pair.not_after as f64);
        self.metrics.certificate_reloads.inc();
        self.current.store(Some(Arc::new(pair.key)));
        self.ready.met();
    }

    /// Whether a certificate is being served.
    pub fn is_installed(&self) -> bool {
        self.current.load().is_some()
    }

    /// Notes that a pair was refused. The one before stays in service.
    fn refused(&self, error: &pair::PairError) {
        self.metrics.certificate_reload_failures.inc();
        if self.is_installed() {
            warn!("The new certificate is not used, the one before stays in service: {error}");
        } else {
            warn!("No certificate to serve, so no call can be answered: {error}");
            self.ready.missing(error.to_string());
        }
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.load_full()
    }
}

/// A server's TLS: 1.2 and 1.3, no client certificates, HTTP/1.1 as the only protocol offered.
pub fn server_config(certificates: Arc<Certificates>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests;
