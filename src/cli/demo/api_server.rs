//! What the demo needs of an API server: it asks the real webhook over TLS about every object, as the shipped webhook
//! configurations say, applies the patches, and shows stored objects to the webhook's index as a watch would.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::time::Duration;
use std::time::SystemTime;

use anyhow::Context;
use anyhow::bail;
use http_body_util::BodyExt;
use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::ByteString;
use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::ServerName;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use crate::admission::index::Index;
use crate::admission::policy::Policy;
use crate::api::object::Kind;
use crate::api::object::Object;
use crate::telemetry::metrics;
use crate::telemetry::metrics::webhook::WebhookMetrics;
use crate::telemetry::readiness::Readiness;
use crate::telemetry::startup::Startup;
use crate::webhook;
use crate::webhook::CertificateSource;
use crate::webhook::Webhook;
use crate::webhook::decider::Decider;
use crate::webhook::limits::Limits;
use crate::webhook::self_signed::SelfSigned;
use crate::webhook::tls;
use crate::webhook::tls::pair::PairPaths;

/// The name that the webhook's certificate carries.
const SERVER_NAME: &str = "localhost";

/// What came of a request.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The object as it is stored, or why it is not.
    pub(crate) stored: Result<Value, Status>,
    /// What kubectl shows before it.
    pub(crate) warnings: Vec<String>,
}

/// A refusal as the API server passes it on.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Status {
    message: String,
    details: Details,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Details {
    name: String,
    kind: String,
    causes: Vec<Cause>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Cause {
    field: String,
    message: String,
}

impl Status {
    /// The refusal as kubectl prints it: the causes if there are any, else the message.
    pub(crate) fn kubectl_text(&self) -> String {
        let Self { message, details } = self;
        let title = format!("The {} {:?} is invalid:", details.kind, details.name);
        match details.causes.as_slice() {
            [] => format!("Error from server: {message}"),
            [only] => format!("{title} {}: {}", only.field, only.message),
            causes => {
                let causes = causes.iter().map(|cause| format!("* {}: {}", cause.field, cause.message));
                std::iter::once(title).chain(causes).collect::<Vec<_>>().join("\n")
            }
        }
    }
}

#[derive(Deserialize)]
struct Reply {
    response: Response,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    uid: String,
    allowed: bool,
    #[serde(default)]
    status: Status,
    patch: Option<ByteString>,
    #[serde(default)]
    warnings: Vec<String>,
}

/// The API server's place, with the webhook behind it.
pub(crate) struct ApiServer {
    index: Arc<RwLock<Index>>,
    calls: http1::SendRequest<Full<Bytes>>,
    stop: CancellationToken,
    serving: JoinHandle<Result<(), rustls::Error>>,
    created: usize,
}

impl ApiServer {
    /// Starts the webhook on loopback and connects to it over TLS.
    pub(crate) async fn start(policy: Policy) -> anyhow::Result<Self> {
        let policy = Arc::new(policy);
        let index = Arc::new(RwLock::new(Index::new(policy.clone())));
        let decider = Arc::new(Decider::new(
            policy,
            index.clone(),
            None,
            Arc::new(Startup::complete()),
            Duration::from_secs(10),
        ));
        let names = vec![SERVER_NAME.to_owned()];
        let SelfSigned { pair, ca_pem } = SelfSigned::generate(&names, SystemTime::now())?;
        let paths = PairPaths { certificate: "self-signed".into(), key: "self-signed".into() };
        let pair = pair.check(&paths, &names, SystemTime::now(), &tls::provider())?;
        let limits = Limits { drain_period: Duration::ZERO, ..Limits::default() };
        let webhook = Webhook {
            decider,
            certificates: CertificateSource::Fixed(Box::new(pair)),
            limits,
            metrics: WebhookMetrics::register(&mut metrics::registry()),
            readiness: Readiness::new(),
        };
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let serving = tokio::spawn(webhook::run(webhook, listener, stop.clone()));
        let calls = connect(address, &ca_pem).await.context("the webhook cannot be reached over TLS")?;
        Ok(Self { index, calls, stop, serving, created: 0 })
    }

    /// Creates an object: mutated and validated by the webhook, stored if it is granted.
    pub(crate) async fn create(&mut self, mut object: Value) -> anyhow::Result<Outcome> {
        self.created += 1;
        let mut warnings = Vec::new();
        let kind =
            object["kind"].as_str().and_then(Kind::from_name).context("no kind that asks for ports")?;
        if kind == Kind::Pod {
            let response = self.review("/mutate", kind, &object).await?;
            if let Some(patch) = response.patch {
                let patch: json_patch::Patch = serde_json::from_slice(&patch.0)?;
                json_patch::patch(&mut object, &patch)?;
            }
        }
        let response = self.review("/validate", kind, &object).await?;
        warnings.extend(response.warnings);
        if !response.allowed {
            return Ok(Outcome { stored: Err(response.status), warnings });
        }
        object["metadata"]["uid"] = json!(format!("{:08}-0000-4000-8000-000000000000", self.created));
        object["metadata"]["creationTimestamp"] = json!(format!("2026-01-01T00:{:02}:00Z", self.created));
        self.update(&object)?;
        Ok(Outcome { stored: Ok(object), warnings })
    }

    /// Stores an object in a new state, and shows it to the webhook's index.
    pub(crate) fn update(&self, object: &Value) -> anyhow::Result<Object> {
        let object: Object = serde_json::from_value(object.clone())?;
        self.index.write().unwrap_or_else(PoisonError::into_inner).apply(&object);
        Ok(object)
    }

    /// Ends the webhook as SIGTERM would.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        let Self { calls, stop, serving, .. } = self;
        drop(calls);
        stop.cancel();
        serving.await??;
        Ok(())
    }

    async fn review(&mut self, path: &str, kind: Kind, object: &Value) -> anyhow::Result<Response> {
        let (group, version) = kind.api_version().split_once('/').unwrap_or(("", kind.api_version()));
        let uid = format!("{:08}-0000-4000-9000-000000000000", self.created);
        let review = json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": uid,
                "kind": {"group": group, "version": version, "kind": kind.name()},
                "resource": {"group": group, "version": version, "resource": format!("{}s", kind.name().to_lowercase())},
                "name": object["metadata"]["name"],
                "namespace": object["metadata"]["namespace"],
                "operation": "CREATE",
                "userInfo": {"username": "kubernetes-admin"},
                "object": object,
                "oldObject": null,
                "dryRun": false,
                "options": {"apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions"},
            },
        });
        let request = Request::post(path)
            .header("host", SERVER_NAME)
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(serde_json::to_vec(&review)?)))?;
        self.calls.ready().await?;
        let answer = self.calls.send_request(request).await?;
        let code = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        if !code.is_success() {
            bail!("the webhook answered {path} with {code}: {}", String::from_utf8_lossy(&body));
        }
        let Reply { response } = serde_json::from_slice(&body)?;
        if response.uid != uid {
            bail!("the webhook answered call {uid} for {}", response.uid);
        }
        Ok(response)
    }
}

async fn connect(address: SocketAddr, ca_pem: &str) -> anyhow::Result<http1::SendRequest<Full<Bytes>>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes())?)?;
    let config = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    let stream =
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(SERVER_NAME)?, stream).await?;
    let (calls, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(calls)
}
