//! A real server on loopback and a client that owns its sockets: a client with a pool would hide, by retrying, what
//! these tests are about.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use axum::Router;
use axum::routing::post;
use prometheus_client::registry::Registry;
use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::api::object::Object;
use crate::api::object::OwnerReference;
use crate::telemetry::metrics;
use crate::telemetry::metrics::webhook::WebhookMetrics;
use crate::telemetry::readiness::Readiness;
use crate::webhook::limits::Limits;
use crate::webhook::self_signed::SelfSigned;
use crate::webhook::server::Server;
use crate::webhook::tls;
use crate::webhook::tls::Certificates;
use crate::webhook::tls::pair::PairPaths;

/// More than anything here takes, less than a hanging test may.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn server_name() -> Vec<String> {
    vec!["localhost".to_owned()]
}

pub(crate) fn no_paths() -> PairPaths {
    PairPaths { certificate: "in memory".into(), key: "in memory".into() }
}

/// A running server.
pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    pub(crate) ca_pem: String,
    pub(crate) stop: CancellationToken,
    pub(crate) ended: JoinHandle<()>,
    pub(crate) registry: Registry,
}

impl TestServer {
    pub(crate) async fn start(router: Router, limits: Limits) -> Self {
        Self::start_with(|_| router, limits).await
    }

    /// Starts with a router that shares the server's metrics.
    pub(crate) async fn start_with(router: impl FnOnce(&WebhookMetrics) -> Router, limits: Limits) -> Self {
        let self_signed = SelfSigned::generate(&server_name(), SystemTime::now()).unwrap();
        let mut registry = metrics::registry();
        let metrics = WebhookMetrics::register(&mut registry);
        let certificates =
            Certificates::new(metrics.clone(), Readiness::new().require("certificate", "none"));
        let pair =
            self_signed.pair.check(&no_paths(), &server_name(), SystemTime::now(), &tls::provider()).unwrap();
        certificates.install(pair);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let tls = tls::server_config(certificates).unwrap();
        let router = router(&metrics);
        let server = Server::new(tls, router, limits, metrics);
        let ended = tokio::spawn(server.run(listener, stop.clone()));
        Self { address, ca_pem: self_signed.ca_pem, stop, ended, registry }
    }

    pub(crate) async fn connect(&self) -> Client {
        self.try_connect().await.unwrap()
    }

    pub(crate) async fn try_connect(&self) -> std::io::Result<Client> {
        connect(self.address, &self.ca_pem).await
    }

    pub(crate) fn written_metrics(&self) -> String {
        metrics::encode(&self.registry).unwrap()
    }

    /// Waits until the metrics hold this line.
    pub(crate) async fn metric(&self, line: &str) {
        let written = || self.written_metrics().lines().any(|written| written == line);
        let waited = tokio::time::timeout(PATIENCE, async {
            while !written() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        let appeared = waited.await.is_ok();
        assert!(appeared, "{line} did not appear in\n{}", self.written_metrics());
    }
}

pub(crate) async fn connect(address: SocketAddr, ca_pem: &str) -> std::io::Result<Client> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    Ok(Client { stream, buffer: Vec::new() })
}

/// One connection.
pub(crate) struct Client {
    pub(crate) stream: TlsStream<TcpStream>,
    buffer: Vec<u8>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?}", String::from_utf8_lossy(&self.body)))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let line = self
            .head
            .lines()
            .find(|line| line.split_once(':').is_some_and(|(found, _)| found.eq_ignore_ascii_case(name)))?;
        line.split_once(':').map(|(_, value)| value.trim())
    }
}

impl Client {
    pub(crate) async fn post(&mut self, path: &str, body: impl AsRef<[u8]>) -> Answer {
        self.try_post(path, body).await.unwrap()
    }

    pub(crate) async fn try_post(&mut self, path: &str, body: impl AsRef<[u8]>) -> std::io::Result<Answer> {
        let body = body.as_ref();
        self.send(format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
            body.len()
        ))
        .await?;
        // A server that has read enough may close while we send: what counts is its answer.
        let _ = self.stream.write_all(body).await;
        self.stream.flush().await.ok();
        self.answer().await
    }

    pub(crate) async fn send(&mut self, text: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.write_all(text.as_ref()).await?;
        self.stream.flush().await
    }

    pub(crate) async fn answer(&mut self) -> std::io::Result<Answer> {
        let answer = tokio::time::timeout(PATIENCE, async {
            let end = loop {
                if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                    break at;
                }
                self.fill().await?;
            };
            let head = String::from_utf8(self.buffer.drain(..end + 4).collect()).unwrap();
            let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap();
            let mut answer = Answer { status, head, body: Vec::new() };
            let length: usize =
                answer.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
            while self.buffer.len() < length {
                self.fill().await?;
            }
            answer.body = self.buffer.drain(..length).collect();
            Ok(answer)
        });
        answer.await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
    }

    /// Waits until the server ends the connection.
    pub(crate) async fn closed(&mut self) {
        let mut rest = Vec::new();
        let end = tokio::time::timeout(PATIENCE, self.stream.read_to_end(&mut rest)).await;
        assert!(end.is_ok(), "the connection is still open");
    }

    async fn fill(&mut self) -> std::io::Result<()> {
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// Answers with the body it got.
pub(crate) fn echo() -> Router {
    Router::new().route("/echo", post(|body: axum::body::Bytes| async { body }))
}

/// A pod that asks for `ports` in the short form.
pub(crate) fn pod(namespace: &str, name: &str, ports: &str) -> Object {
    object(serde_json::json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": namespace, "name": name, "uid": format!("uid-of-{name}"),
            "annotations": {"pinhole.dev/expose": ports},
        },
    }))
}

/// A ReplicaSet that belongs to another object.
pub(crate) struct OwnedSet {
    pub(crate) object: Object,
}

pub(crate) fn replica_set(namespace: &str, name: &str, owner_kind: &str, owner: &str) -> OwnedSet {
    let object = object(serde_json::json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {
            "namespace": namespace, "name": name, "uid": format!("uid-of-{name}"),
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": owner_kind, "name": owner, "uid": format!("uid-of-{owner}"),
                "controller": true,
            }],
        },
    }));
    OwnedSet { object }
}

impl OwnedSet {
    /// The reference that its pods carry.
    pub(crate) fn as_owner(&self) -> Vec<OwnerReference> {
        let metadata = &self.object.metadata;
        serde_json::from_value(serde_json::json!([{
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": metadata.name, "uid": metadata.uid,
            "controller": true,
        }]))
        .unwrap()
    }
}

pub(crate) fn object(json: serde_json::Value) -> Object {
    serde_json::from_value(json).unwrap()
}
