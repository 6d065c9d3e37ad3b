//! Reaches into a pod through the API server, with nothing but the user's own rights: a request to one of its ports,
//! a TLS handshake, a program run in it.
//!
//! A port of a pod with hostNetwork is one of its node's, loopback included: that is how a person reads what an agent
//! serves to its own node alone.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::Empty;
use http_body_util::Limited;
use hyper::Request;
use hyper::StatusCode;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::Client;
use kube::api::AttachParams;
use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::ServerName;
use tokio::io::AsyncReadExt;
use tokio::io::DuplexStream;
use tokio_rustls::TlsConnector;

use crate::cluster::trouble::causes;
use crate::cluster::trouble::describe;

/// How long one of these may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// More than any agent has to say.
const LONGEST_ANSWER: usize = 64 << 20;

/// One container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The namespace.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// The container.
    pub container: String,
}

/// Why a pod could not be reached into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessError {
    /// The user has no right to.
    Denied(String),
    /// Anything else.
    Failed(String),
}

impl fmt::Display for AccessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied(reason) | Self::Failed(reason) => f.write_str(reason),
        }
    }
}

/// What a program in a container left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ran {
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// Whether it ended with exit code 0.
    pub succeeded: bool,
}

/// The body of `GET path` at a port of a pod.
pub async fn get(client: &Client, place: &Place, port: u16, path: &str) -> Result<String, AccessError> {
    within(async {
        let stream = stream(client, place, port).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        let driving = tokio::spawn(connection);
        let request = Request::get(path).header(HOST, "localhost").body(Empty::<Bytes>::new());
        let answer = sender.send_request(request.map_err(failed)?).await.map_err(failed)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LONGEST_ANSWER).collect().await;
        driving.abort();
        let body = body.map_err(|error| AccessError::Failed(error.to_string()))?.to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        if status == StatusCode::OK {
            Ok(text)
        } else {
            Err(AccessError::Failed(format!("{path} answers {status}: {}", text.trim())))
        }
    })
    .await
}

/// The certificate that a port of a pod shows to whoever trusts these authorities and expects this name.
pub async fn certificate(
    client: &Client,
    place: &Place,
    port: u16,
    name: &str,
    authorities: impl IntoIterator<Item = CertificateDer<'static>>,
) -> Result<CertificateDer<'static>, AccessError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authorities);
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).map_err(failed)?;
    within(async {
        let stream = stream(client, place, port).await?;
        let session = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(failed)?;
        let shown = session.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
        shown.ok_or_else(|| AccessError::Failed("no certificate was shown".to_owned()))
    })
    .await
}

/// Runs a program in a container and waits for its end.
pub async fn run(client: &Client, place: &Place, command: &[&str]) -> Result<Ran, AccessError> {
    within(async {
        let parameters = AttachParams::default().container(&place.container).stdout(true).stderr(true);
        let api: Api<Pod> = Api::namespaced(client.clone(), &place.namespace);
        let mut process = api.exec(&place.pod, command.iter().copied(), &parameters).await.map_err(told)?;
        let (stdout, stderr) = (process.stdout(), process.stderr());
        let status = process.take_status();
        let (stdout, stderr) = tokio::join!(all_of(stdout), all_of(stderr));
        let status = match status {
            Some(status) => status.await,
            None => None,
        };
        let succeeded = status.and_then(|status| status.status).is_some_and(|status| status == "Success");
        Ok(Ran { stdout, stderr, succeeded })
    })
    .await
}

async fn all_of(stream: Option<impl tokio::io::AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        // What came before a break is all there is to show.
        let _ = stream.read_to_end(&mut bytes).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn stream(client: &Client, place: &Place, port: u16) -> Result<DuplexStream, AccessError> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &place.namespace);
    let mut forwarder = api.portforward(&place.pod, &[port]).await.map_err(told)?;
    forwarder.take_stream(port).ok_or_else(|| AccessError::Failed(format!("port {port} was not forwarded")))
}

async fn within<T>(work: impl Future<Output = Result<T, AccessError>>) -> Result<T, AccessError> {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| {
        Err(AccessError::Failed(format!("no answer from the pod within {} s", PATIENCE.as_secs())))
    })
}

#[expect(clippy::needless_pass_by_value, reason = "as map_err gives it")]
fn told(error: kube::Error) -> AccessError {
    match &error {
        kube::Error::Api(status) if status.code == 403 => AccessError::Denied(status.message.clone()),
        error => AccessError::Failed(describe(error)),
    }
}

fn failed(error: impl std::error::Error) -> AccessError {
    AccessError::Failed(causes(&error))
}
