//! The HTTP port for the kubelet and for Prometheus: `/healthz`, `/readyz`, `/metrics`; over TLS where asked.
//!
//! `/healthz` answers as long as the process can answer at all and depends on nothing else: restarting a process
//! because the API server is away helps nobody. `/readyz` lists every condition and is 503 until all hold.
//! Connections are short (no keep-alive, five seconds in all) and bounded in number: a new one ends the oldest, so
//! that nobody can hold the port against the kubelet's probes.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::StatusCode;
use axum::http::header;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use hyper_util::service::TowerToHyperService;
use prometheus_client::registry::Registry;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use tracing::warn;

use crate::telemetry::metrics;
use crate::telemetry::readiness::Readiness;

/// More than a kubelet, a few Prometheus replicas and a curious operator need together.
const MAX_CONNECTIONS: usize = 64;

/// Time to send a request and take the answer.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(5);

/// Pause after `accept` failed, as it does while the process has no file descriptor left.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

/// The routes of every process. A process with more to show merges its own.
pub fn router(readiness: Readiness, registry: Arc<Registry>) -> Router {
    health(readiness).route("/metrics", get(move || async move { exposition(&registry) }))
}

/// The routes for the kubelet alone, where metrics are not for everybody.
pub fn health(readiness: Readiness) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(move || async move { ready(&readiness) }))
}

/// Serves `router` on a listener that the caller bound, until `stop`.
///
/// Give it a token that is cancelled last: while a process drains, `/readyz` must still say that it is not ready.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    accept(listener, stop, |stream| answer(stream, router.clone())).await;
}

/// The same over TLS. The handshake is part of a connection's five seconds.
pub async fn serve_tls(listener: TcpListener, tls: TlsAcceptor, router: Router, stop: CancellationToken) {
    accept(listener, stop, |stream| {
        let (tls, router) = (tls.clone(), router.clone());
        async move {
            match tls.accept(stream).await {
                Ok(stream) => answer(stream, router).await,
                Err(error) => debug!(%error, "A TLS handshake on the metrics port failed"),
            }
        }
    })
    .await;
}

async fn accept<F>(listener: TcpListener, stop: CancellationToken, connect: impl Fn(TcpStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                connections.retain(|connection| !connection.is_finished());
                if MAX_CONNECTIONS <= connections.len()
                    && let Some(oldest) = connections.pop_front()
                {
                    oldest.abort();
                }
                let connection = tokio::time::timeout(CONNECTION_DEADLINE, connect(stream));
                connections.push_back(tokio::spawn(connection).abort_handle());
            }
            Err(error) => {
                warn!(%error, "Cannot accept a connection on the port for probes and metrics; trying again. \
                      If this goes on, look at the process's limit of open files");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router) {
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .header_read_timeout(CONNECTION_DEADLINE)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        debug!(%error, "A connection for probes or metrics ended early");
    }
}

fn ready(readiness: &Readiness) -> (StatusCode, String) {
    let report = readiness.report();
    let mut text = String::new();
    for condition in &report {
        // Writing to a String cannot fail.
        let _ = match &condition.missing {
            None => writeln!(text, "[+] {}", condition.name),
            Some(reason) => writeln!(text, "[-] {}: {reason}", condition.name),
        };
    }
    if report.iter().all(|condition| condition.missing.is_none()) {
        text.push_str("ready\n");
        (StatusCode::OK, text)
    } else {
        text.push_str("not ready\n");
        (StatusCode::SERVICE_UNAVAILABLE, text)
    }
}

/// The metrics as an answer.
pub(crate) fn exposition(registry: &Registry) -> Response {
    match metrics::encode(registry) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], Body::from(text)).into_response(),
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("the metrics cannot be written: {error}\n"))
                .into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::io::AsyncWriteExt;

    use super::*;

    async fn start(readiness: &Readiness) -> (std::net::SocketAddr, CancellationToken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let registry = Arc::new(metrics::registry());
        tokio::spawn(serve(listener, router(readiness.clone(), registry), stop.clone()));
        (address, stop)
    }

    async fn fetch(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn readyz_names_what_is_missing_and_healthz_does_not_care() {
        let readiness = Readiness::new();
        let caches = readiness.require("caches", "waiting for the first list of pods");
        let certificate = readiness.require("certificate", "none loaded");
        certificate.met();
        let (address, _stop) = start(&readiness).await;

        let answer = fetch(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(
            answer.ends_with("[-] caches: waiting for the first list of pods\n[+] certificate\nnot ready\n"),
            "{answer}"
        );
        assert!(fetch(address, "/healthz").await.starts_with("HTTP/1.1 200"));

        caches.met();
        assert!(fetch(address, "/readyz").await.ends_with("[+] caches\n[+] certificate\nready\n"));
    }

    #[tokio::test]
    async fn metrics_are_open_metrics_text() {
        let (address, _stop) = start(&Readiness::new()).await;
        let answer = fetch(address, "/metrics").await;
        assert!(answer.contains("content-type: application/openmetrics-text"), "{answer}");
        assert!(answer.contains("pinhole_build_info{version="), "{answer}");
        assert!(answer.ends_with("# EOF\n"), "{answer}");
    }

    #[tokio::test]
    async fn silent_connections_do_not_keep_a_probe_waiting() {
        let (address, _stop) = start(&Readiness::new()).await;
        let mut silent = Vec::new();
        for _ in 0..2 * MAX_CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        assert!(fetch(address, "/healthz").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn the_port_closes_when_told() {
        let (address, stop) = start(&Readiness::new()).await;
        assert!(fetch(address, "/healthz").await.contains("200 OK"));
        stop.cancel();
        for _ in 0..200 {
            if TcpStream::connect(address).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the port still accepts connections");
    }
}
