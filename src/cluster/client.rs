//! Finds the cluster and makes the client for it.

use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use hyper::header::HeaderValue;
use hyper::header::USER_AGENT;
use kube::Client;
use kube::Config;
use kube::config::KubeConfigOptions;
use kube::config::Kubeconfig;
use kube::config::KubeconfigError;
use thiserror::Error;

use crate::cluster::trouble::causes;
use crate::cluster::watch::WATCH_SECONDS;

/// How we introduce ourselves, in the API server's audit log for example.
const AGENT: &str = concat!("pinhole/", env!("CARGO_PKG_VERSION"));

/// A connection that takes longer fails, so that the next attempt can go to another address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that has been silent for so long after a request is dead, whatever it looks like: the API server ends
/// each watch before (see [`WATCH_SECONDS`]) and answers everything else sooner. Without it, one load balancer that
/// swallows an answer would end a watch for good.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 30);

/// Where the cluster is described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// In this file, which was asked for.
    File(PathBuf),
    /// In the files that `KUBECONFIG` lists, else in `~/.kube/config`, else in what every pod is given.
    Usual,
}

/// Why there is no client.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// A kubeconfig file cannot be used.
    #[error("the kubeconfig {file} cannot be used: {reason}", file = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The files that `KUBECONFIG` or the home directory name cannot be used.
    #[error(
        "the kubeconfig that KUBECONFIG or ~/.kube/config names cannot be used: {reason}; pass --kubeconfig FILE to use another one"
    )]
    Usual {
        /// What is wrong with them.
        reason: String,
    },
    /// Neither a kubeconfig nor a pod's service account.
    #[error(
        "found no cluster to talk to: there is no kubeconfig (KUBECONFIG, ~/.kube/config) and this is not a pod with a \
         service account ({reason}); pass --kubeconfig FILE"
    )]
    Nowhere {
        /// What is missing for a pod.
        reason: String,
    },
    /// The client cannot be built from what was found.
    #[error("cannot make a client for the cluster at {server}: {reason}")]
    Build {
        /// The API server's address.
        server: String,
        /// Why not.
        reason: String,
    },
}

/// A client, and where it goes.
#[derive(Clone)]
pub struct Connection {
    /// The client.
    pub client: Client,
    /// The API server's address, for messages.
    pub server: String,
}

/// Makes a client for the cluster. Nothing is sent yet: a cluster that is not there yet is waited for by the watches.
///
/// Must be called inside a Tokio runtime.
pub async fn connect(source: &Source) -> Result<Connection, ConnectError> {
    connect_in(source, None).await.map(|(connection, _)| connection)
}

/// Likewise in a context of the kubeconfig, by default its current one; with the namespace that the context names.
pub async fn connect_in(
    source: &Source,
    context: Option<&str>,
) -> Result<(Connection, String), ConnectError> {
    let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
    let mut config = match source {
        Source::File(path) => from_file(path, &options).await?,
        Source::Usual => from_the_usual_places(&options).await?,
    };
    let namespace = config.default_namespace.clone();
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(SILENCE_TIMEOUT);
    config.write_timeout = Some(SILENCE_TIMEOUT);
    // Counted from the request: a connection may have been idle in the pool before.
    config.reset_reader_on_write = true;
    config.headers.push((USER_AGENT, HeaderValue::from_static(AGENT)));
    // Nobody else installs one: without it rustls would have to guess. A second call finds the first one's.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    let client = Client::try_from(config)
        .map_err(|error| ConnectError::Build { server: server.clone(), reason: causes(&error) })?;
    Ok((Connection { client, server }, namespace))
}

async fn from_file(path: &Path, options: &KubeConfigOptions) -> Result<Config, ConnectError> {
    let refused = |error: KubeconfigError| {
        let reason = match &error {
            KubeconfigError::ReadConfig(error, unread) if unread == path => error.to_string(),
            other => explain(other),
        };
        ConnectError::File { path: path.to_owned(), reason }
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(refused)?;
    Config::from_custom_kubeconfig(kubeconfig, options).await.map_err(refused)
}

/// A kubeconfig that is there but broken is an error, not a reason to look elsewhere: what answers there may be
/// another cluster.
async fn from_the_usual_places(options: &KubeConfigOptions) -> Result<Config, ConnectError> {
    match Config::from_kubeconfig(options).await {
        Ok(config) => Ok(config),
        Err(error) if is_absent(&error) => {
            Config::incluster().map_err(|error| ConnectError::Nowhere { reason: causes(&error) })
        }
        Err(error) => Err(ConnectError::Usual { reason: explain(&error) }),
    }
}

fn is_absent(error: &KubeconfigError) -> bool {
    match error {
        KubeconfigError::FindPath => true,
        KubeconfigError::ReadConfig(error, path) => {
            error.kind() == std::io::ErrorKind::NotFound && path.ends_with(".kube/config")
        }
        _ => false,
    }
}

fn explain(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::ReadConfig(error, path) => format!("{}: {error}", path.display()),
        KubeconfigError::CurrentContextNotSet => {
            "no current context is set; choose one with kubectl config use-context".to_owned()
        }
        KubeconfigError::MissingClusterUrl => "the cluster of the current context has no server".to_owned(),
        other => causes(other),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const KUBECONFIG: &str = r#"
apiVersion: v1
kind: Config
current-context: there
clusters: [{name: c, cluster: {server: "https://203.0.113.1:6443", insecure-skip-tls-verify: true}}]
users: [{name: u, user: {token: secret}}]
contexts: [{name: there, context: {cluster: c, user: u}}]
"#;

    async fn connect_by(text: &str) -> Result<Connection, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kubeconfig");
        fs::write(&path, text).unwrap();
        let connection = connect(&Source::File(path.clone())).await;
        connection.map_err(|error| error.to_string().replace(&path.display().to_string(), "FILE"))
    }

    #[tokio::test]
    async fn a_kubeconfig_leads_to_its_current_context_without_asking_anybody() {
        assert_eq!(connect_by(KUBECONFIG).await.unwrap().server, "https://203.0.113.1:6443");
    }

    #[tokio::test]
    async fn a_kubeconfig_that_cannot_be_used_is_named_with_what_is_wrong() {
        let cases = [
            (
                KUBECONFIG.replace("current-context: there", ""),
                "no current context is set; choose one with kubectl",
            ),
            (KUBECONFIG.replace("name: c,", "name: d,"), "failed to load the cluster of context: c"),
            (KUBECONFIG.replace("server:", "srv:"), "the cluster of the current context has no server"),
            ("{".to_owned(), "failed to parse kubeconfig YAML"),
        ];
        for (text, expected) in cases {
            let Err(error) = connect_by(&text).await else { panic!("{text} was accepted") };
            assert!(error.starts_with("the kubeconfig FILE cannot be used: "), "{error}");
            assert!(error.contains(expected), "{expected:?} is not in {error:?}");
        }
        let missing = connect(&Source::File("/nowhere/kubeconfig".into())).await.err().unwrap();
        assert_eq!(
            missing.to_string(),
            "the kubeconfig /nowhere/kubeconfig cannot be used: No such file or directory (os error 2)"
        );
    }
}
