//! `/metrics` over HTTPS, for whoever the cluster lets read them: a caller shows a bearer token, and somebody who knows
//! the cluster says whose it is and what that one may do.
//!
//! The certificate is made at the start and signed by itself. It keeps tokens from being read on their way; it does
//! not prove to a scraper who we are. So a scraper should show a token that may do nothing but read metrics.

use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use axum::Router;
use axum::http::HeaderMap;
use axum::http::StatusCode;
use axum::http::header;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::get;
use futures::future::BoxFuture;
use prometheus_client::registry::Registry;
use rcgen::CertificateParams;
use rcgen::DistinguishedName;
use rcgen::DnType;
use rcgen::KeyPair;
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::PrivatePkcs8KeyDer;
use thiserror::Error;
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use crate::telemetry::http;

/// Longer than any node runs without a restart of its agent. Nobody is meant to check it.
const LIFETIME: Duration = Duration::from_hours(10 * 365 * 24);

/// Callers' clocks may be behind ours.
const SKEW: Duration = Duration::from_mins(5);

/// What the cluster says about a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its owner may read metrics.
    Granted,
    /// Nobody's.
    Unknown,
    /// Its owner may not.
    Forbidden {
        /// The owner.
        user: String,
    },
    /// The cluster did not answer.
    Unanswered {
        /// Why not.
        reason: String,
    },
}

/// Asks the cluster about a token.
pub type Review = Arc<dyn Fn(String) -> BoxFuture<'static, Verdict> + Send + Sync>;

/// Why the certificate could not be made.
#[derive(Debug, Error)]
#[error(
    "no certificate for the metrics can be made: {reason}; serve them by --metrics plain or off until that is solved"
)]
pub struct CertificateError {
    reason: String,
}

/// The one route.
pub fn router(registry: Arc<Registry>, review: Review) -> Router {
    let answer = async move |headers: HeaderMap| {
        let Some(token) = bearer(&headers) else { return refusal(&Verdict::Unknown) };
        match review(token).await {
            Verdict::Granted => http::exposition(&registry),
            verdict => {
                debug!(?verdict, "Somebody was refused the metrics");
                refusal(&verdict)
            }
        }
    };
    Router::new().route("/metrics", get(answer))
}

/// TLS with a new certificate of our own.
pub fn acceptor(now: SystemTime) -> Result<TlsAcceptor, CertificateError> {
    let key = KeyPair::generate().map_err(|error| CertificateError { reason: error.to_string() })?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "pinhole metrics");
    params.not_before = (now - SKEW).into();
    params.not_after = (now + LIFETIME).into();
    let certificate =
        params.self_signed(&key).map_err(|error| CertificateError { reason: error.to_string() })?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .map_err(|error| CertificateError { reason: error.to_string() })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn bearer(headers: &HeaderMap) -> Option<String> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned())
}

fn refusal(verdict: &Verdict) -> Response {
    match verdict {
        Verdict::Forbidden { user } => {
            let text = format!(
                "{user} may not read the metrics; bind it to a ClusterRole with nonResourceURLs: [/metrics], verbs: [get]\n"
            );
            (StatusCode::FORBIDDEN, text).into_response()
        }
        Verdict::Unanswered { reason } => {
            let text = format!("the cluster cannot be asked whose token this is: {reason}\n");
            (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], text).into_response()
        }
        Verdict::Unknown | Verdict::Granted => {
            let text = "show the token of a ServiceAccount: Authorization: Bearer TOKEN\n";
            (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], text).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use rustls::ClientConfig;
    use rustls::RootCertStore;
    use tokio::io::AsyncReadExt;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;
    use tokio::net::TcpStream;
    use tokio_rustls::TlsConnector;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::telemetry::metrics;

    /// Knows two people, and is tired sometimes.
    fn review(token: &str) -> BoxFuture<'static, Verdict> {
        let verdict = match token {
            "prometheus" => Verdict::Granted,
            "guest" => Verdict::Forbidden { user: "system:serviceaccount:default:guest".into() },
            "tired" => Verdict::Unanswered { reason: "HTTP 500".into() },
            _ => Verdict::Unknown,
        };
        async move { verdict }.boxed()
    }

    async fn start() -> (std::net::SocketAddr, CancellationToken) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let router = router(Arc::new(metrics::registry()), Arc::new(|token: String| review(&token)));
        let acceptor = acceptor(SystemTime::now()).unwrap();
        tokio::spawn(http::serve_tls(listener, acceptor, router, stop.clone()));
        (address, stop)
    }

    /// As a scraper does that does not check who answers.
    async fn fetch(address: std::net::SocketAddr, path: &str, authorization: &str) -> String {
        #[derive(Debug)]
        struct Credulous;
        impl rustls::client::danger::ServerCertVerifier for Credulous {
            fn verify_server_cert(
                &self,
                _: &rustls_pki_types::CertificateDer<'_>,
                _: &[rustls_pki_types::CertificateDer<'_>],
                _: &rustls_pki_types::ServerName<'_>,
                _: &[u8],
                _: rustls_pki_types::UnixTime,
            ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
                Ok(rustls::client::danger::ServerCertVerified::assertion())
            }
            fn verify_tls12_signature(
                &self,
                _: &[u8],
                _: &rustls_pki_types::CertificateDer<'_>,
                _: &rustls::DigitallySignedStruct,
            ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
                Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
            }
            fn verify_tls13_signature(
                &self,
                _: &[u8],
                _: &rustls_pki_types::CertificateDer<'_>,
                _: &rustls::DigitallySignedStruct,
            ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
                Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
            }
            fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
                rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
            }
        }
        let mut config =
            ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        config.dangerous().set_certificate_verifier(Arc::new(Credulous));
        let stream = TcpStream::connect(address).await.unwrap();
        let name = rustls_pki_types::ServerName::try_from("node-1").unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: node-1\r\n{authorization}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        // The server closes without a farewell when its time is up.
        let _ = stream.read_to_string(&mut answer).await;
        answer
    }

    #[tokio::test]
    async fn only_whom_the_cluster_grants_it_reads_the_metrics() {
        let (address, _stop) = start().await;
        let cases = [
            ("Authorization: Bearer prometheus\r\n", "HTTP/1.1 200", "pinhole_build_info"),
            ("authorization: bearer  prometheus\r\n", "HTTP/1.1 200", "# EOF"),
            ("", "HTTP/1.1 401", "show the token of a ServiceAccount"),
            ("Authorization: Bearer somebody\r\n", "HTTP/1.1 401", "www-authenticate: Bearer"),
            ("Authorization: Bearer \r\n", "HTTP/1.1 401", "show the token"),
            ("Authorization: Basic cHJvbWV0aGV1cw==\r\n", "HTTP/1.1 401", "show the token"),
            (
                "Authorization: Bearer guest\r\n",
                "HTTP/1.1 403",
                "serviceaccount:default:guest may not read the metrics",
            ),
            ("Authorization: Bearer tired\r\n", "HTTP/1.1 503", "retry-after: 1"),
        ];
        for (authorization, status, expected) in cases {
            let answer = fetch(address, "/metrics", authorization).await;
            assert!(answer.starts_with(status) && answer.contains(expected), "{authorization:?}: {answer}");
            assert_eq!(status == "HTTP/1.1 200", answer.contains("pinhole_"), "{authorization:?}: {answer}");
        }
        assert!(fetch(address, "/readyz", "Authorization: Bearer prometheus\r\n").await.contains("404"));
    }

    #[tokio::test]
    async fn nothing_is_answered_in_the_clear() {
        let (address, _stop) = start().await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer prometheus\r\n\r\n")
            .await
            .unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!String::from_utf8_lossy(&answer).contains("HTTP/1.1"), "{answer:?}");
    }
}
