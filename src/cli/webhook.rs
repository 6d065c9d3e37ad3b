//! `pinhole webhook`: flags to parts, parts to a running webhook.

use std::fs;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::thread;
use std::time::Duration;
use std::time::SystemTime;

use anyhow::Context;
use clap::ArgAction;
use clap::ArgGroup;
use clap::Args;
use clap::ValueEnum;
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing::warn;

use crate::admission::index::Index;
use crate::admission::policy::Policy;
use crate::cli::authority::AuthorityFlags;
use crate::cli::duration;
use crate::cli::listen;
use crate::cli::policy::PolicyFlags;
use crate::cli::watching;
use crate::cli::watching::Kept;
use crate::cli::watching::Pools;
use crate::cluster::changes::Changes;
use crate::cluster::claim_store::ApiClaims;
use crate::cluster::client;
use crate::cluster::client::Source;
use crate::cluster::informers::Informers;
use crate::cluster::live::ApiServer;
use crate::shutdown;
use crate::telemetry::http;
use crate::telemetry::metrics;
use crate::telemetry::metrics::authority::AuthorityMetrics;
use crate::telemetry::metrics::watch::WatchMetrics;
use crate::telemetry::metrics::webhook::WebhookMetrics;
use crate::telemetry::metrics::webhook::register_index;
use crate::telemetry::readiness::Readiness;
use crate::telemetry::startup::Startup;
use crate::webhook;
use crate::webhook::CertificateSource;
use crate::webhook::decider::Decider;
use crate::webhook::limits::Limits;
use crate::webhook::self_signed::DEFAULT_NAMES;
use crate::webhook::self_signed::SERVICE_NAME;
use crate::webhook::self_signed::SelfSigned;
use crate::webhook::tls;
use crate::webhook::tls::files::Files;
use crate::webhook::tls::pair::PairPaths;
use crate::webhook::tls::self_managed::Parts;

/// One core answers thousands of calls a second; on a large node more threads would only take memory.
const MOST_THREADS: usize = 4;

/// The flags of `pinhole webhook`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("certificate_source").required(true).multiple(true)
    .args(["certificate", "self_signed", "mode"]))]
pub(crate) struct Webhook {
    /// Where to answer the API server, with TLS.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:8443", value_parser = listen::parse,
          env = "PINHOLE_LISTEN")]
    listen: SocketAddr,

    /// Where to serve /healthz, /readyz and /metrics, without TLS. A bare port listens on every address.
    #[arg(long, value_name = "[ADDRESS:]PORT", default_value = "0.0.0.0:8484", value_parser = listen::parse,
          env = "PINHOLE_HTTP_ADDRESS")]
    http_address: SocketAddr,

    /// The cluster to serve. Default: what KUBECONFIG or ~/.kube/config names, else the cluster around this pod.
    #[arg(long, value_name = "FILE", env = "PINHOLE_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,

    /// Whether a refusal names a holder in another namespace.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set,
          env = "PINHOLE_DISCLOSE_HOLDER")]
    disclose_holder: bool,

    /// How long a granted request holds its ports before the API server's watch has shown it.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration::parse,
          env = "PINHOLE_PENDING_TTL")]
    pending_ttl: Duration,

    /// Grant only ports that a NatPool grants, and claim each of a fixed address as a PortClaim, so that of requests through
    /// any number of replicas at the same moment one gets it. Needs the custom resources, the rights to read NatPools and to
    /// write PortClaims, and a running `pinhole controller`, which gives unused claims back.
    #[arg(long, env = "PINHOLE_CLAIMS")]
    claims: bool,

    #[command(flatten)]
    policy: PolicyFlags,

    #[command(flatten)]
    tls: TlsFlags,

    #[command(flatten)]
    authority: AuthorityFlags,

    #[command(flatten)]
    limits: LimitFlags,
}

/// Where a certificate may come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TlsMode {
    /// From --tls-cert and --tls-key, and followed when they are replaced.
    Files,
    /// From an authority that the replicas keep in a Secret, replace in time, and write into the webhook
    /// configurations.
    #[value(name = "self")]
    Own,
    /// From an authority that ends with the process, as --tls-self-signed.
    SelfSigned,
}

/// Where the certificate comes from.
#[derive(Debug, Args)]
#[command(next_help_heading = "Certificate")]
struct TlsFlags {
    /// Where the certificate comes from. The flags below imply `files` and `self-signed`.
    #[arg(long = "tls-mode", value_name = "MODE", value_enum, env = "PINHOLE_TLS_MODE")]
    mode: Option<TlsMode>,

    /// The certificate chain in PEM, the leaf first. Followed when it is replaced.
    #[arg(
        long = "tls-cert",
        value_name = "FILE",
        requires = "key",
        required_if_eq("mode", "files"),
        conflicts_with = "self_signed",
        env = "PINHOLE_TLS_CERT"
    )]
    certificate: Option<PathBuf>,

    /// The leaf's private key in PEM.
    #[arg(long = "tls-key", value_name = "FILE", requires = "certificate", env = "PINHOLE_TLS_KEY")]
    key: Option<PathBuf>,

    /// Make a certificate authority and a certificate at the start: for trying out, not for a cluster.
    #[arg(long = "tls-self-signed", env = "PINHOLE_TLS_SELF_SIGNED")]
    self_signed: bool,

    /// Write the self-signed authority's certificate here, for callers to trust.
    #[arg(long = "tls-self-signed-ca-out", value_name = "FILE", env = "PINHOLE_TLS_SELF_SIGNED_CA_OUT")]
    ca_out: Option<PathBuf>,

    /// A name or address that callers use. Repeatable. A certificate that is made here carries these (default: the
    /// shipped Service, and localhost if self-signed); files that lack one are warned about.
    #[arg(
        long = "tls-server-name",
        value_name = "NAME",
        value_delimiter = ',',
        value_parser = server_name,
        env = "PINHOLE_TLS_SERVER_NAME"
    )]
    names: Vec<String>,
}

/// What callers are granted.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
struct LimitFlags {
    /// How long to go on accepting connections after SIGTERM, until every caller has heard of it.
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = duration::parse,
          env = "PINHOLE_DRAIN_PERIOD")]
    drain_period: Duration,

    /// When to end at the latest after SIGTERM. Keep it below the pod's terminationGracePeriodSeconds.
    #[arg(long, value_name = "DURATION", default_value = "55s", value_parser = duration::parse,
          env = "PINHOLE_TERMINATION_GRACE")]
    termination_grace: Duration,

    /// Bytes of one call.
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().max_body,
          env = "PINHOLE_MAX_BODY_BYTES")]
    max_body_bytes: usize,

    /// Bytes of all calls at once.
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().max_inflight_body,
          env = "PINHOLE_MAX_INFLIGHT_BODY_BYTES")]
    max_inflight_body_bytes: usize,

    /// Connections at once.
    #[arg(long, value_name = "NUMBER", default_value_t = Limits::default().max_connections,
          env = "PINHOLE_MAX_CONNECTIONS")]
    max_connections: usize,
}

impl Webhook {
    /// Serves until SIGTERM.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let threads = thread::available_parallelism().map_or(1, NonZero::get).min(MOST_THREADS);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
        runtime.context("no runtime for network and timers can be made")?.block_on(self.serve())
    }

    async fn serve(self) -> anyhow::Result<ExitCode> {
        let Self {
            listen,
            http_address,
            kubeconfig,
            disclose_holder,
            pending_ttl,
            claims,
            policy,
            tls,
            authority,
            limits,
        } = self;
        let stop = shutdown::on_signal().context("signals cannot be listened for")?;
        let policy = Arc::new(Policy { disclose_holder, finds_ports: claims, ..policy.into_policy() });
        let connection = client::connect(&kubeconfig.map_or(Source::Usual, Source::File)).await?;
        let mut registry = metrics::registry();
        let certificates = match tls.mode()? {
            TlsMode::Files | TlsMode::SelfSigned => tls.into_source()?,
            TlsMode::Own => {
                let (store, times) = authority.into_parts(connection.client.clone())?;
                let (names, provider) = (tls.names_or(&[SERVICE_NAME]), tls::provider());
                let metrics = AuthorityMetrics::register(&mut registry);
                CertificateSource::SelfManaged(Box::new(Parts { store, names, times, provider, metrics }))
            }
        };
        let listener = listen::bind(listen, "--listen").await?;
        let http_listener = listen::bind(http_address, "--http-address").await?;

        let readiness = Readiness::new();
        let startup = Arc::new(Startup::missing(watching::FIRST_LISTS));
        let index = Arc::new(RwLock::new(Index::new(Arc::clone(&policy))));
        let metrics = WebhookMetrics::register(&mut registry);
        let watch_metrics = WatchMetrics::register(&mut registry);
        let counted = Arc::clone(&index);
        register_index(&mut registry, move || {
            counted.read().unwrap_or_else(PoisonError::into_inner).holdings_count()
        });

        info!(server = connection.server, "Watching the cluster");
        let live = Arc::new(ApiServer::new(connection.client.clone()));
        let caches = readiness.require("caches", watching::FIRST_LISTS);
        let observer = watching::observer(caches.clone(), Arc::clone(&startup), watch_metrics.clone());
        let store = claims.then(|| ApiClaims::new(connection.client.clone()));
        let pools = claims.then(|| Pools {
            client: connection.client.clone(),
            tell: Box::new(drop),
            with_occupants: true,
        });
        if claims {
            index.write().unwrap_or_else(PoisonError::into_inner).set_pools(Some(Arc::default()));
        }
        let informers = Informers::new(connection, Arc::clone(&policy), Arc::clone(&index), observer);
        let informers = if claims { informers.with_pinholes() } else { informers };
        let kept = Kept {
            index: Arc::clone(&index),
            caches,
            startup: Arc::clone(&startup),
            metrics: watch_metrics,
            // Nobody decides by turns here.
            changes: Changes::default(),
        };
        let watching = tokio::spawn(watching::keep(informers, pools, kept));

        let decider = Decider::new(policy, index, Some(live), startup, pending_ttl);
        let decider = Arc::new(match store {
            Some(store) => decider.with_claims(Arc::new(store)),
            None => decider,
        });
        info!(
            listen = %listener.local_addr()?,
            http_address = %http_listener.local_addr()?,
            "Answering admission calls"
        );
        let ended = CancellationToken::new();
        let admin = http::router(readiness.clone(), Arc::new(registry));
        tokio::spawn(http::serve(http_listener, admin, ended.clone()));
        let parts =
            webhook::Webhook { decider, certificates, limits: limits.into_limits(), metrics, readiness };
        let serving = webhook::run(parts, listener, stop);
        tokio::select! {
            served = serving => served?,
            watched = watching => {
                watched.context("the watches on the cluster have failed, so what is held is not known any more")?;
                anyhow::bail!("the watches on the cluster have ended, so what is held is not known any more");
            }
        }
        ended.cancel();
        info!("Ended");
        Ok(ExitCode::SUCCESS)
    }
}

impl TlsFlags {
    fn mode(&self) -> anyhow::Result<TlsMode> {
        let implied = match (&self.certificate, self.self_signed) {
            (Some(_), _) => Some((TlsMode::Files, "--tls-cert")),
            (None, true) => Some((TlsMode::SelfSigned, "--tls-self-signed")),
            (None, false) => None,
        };
        let mode = match (self.mode, implied) {
            (Some(mode), Some((implied, flag))) if mode != implied => {
                let name = mode.to_possible_value().map(|value| value.get_name().to_owned());
                let name = name.unwrap_or_default();
                anyhow::bail!("--tls-mode {name} and {flag} contradict each other; leave one of them out")
            }
            (Some(mode), _) => mode,
            (None, Some((implied, _))) => implied,
            (None, None) => anyhow::bail!("--tls-mode says where the certificate comes from, and is missing"),
        };
        if self.ca_out.is_some() && mode != TlsMode::SelfSigned {
            anyhow::bail!(
                "--tls-self-signed-ca-out goes with --tls-self-signed alone; other authorities are kept elsewhere"
            );
        }
        Ok(mode)
    }

    fn names_or(&self, default: &[&str]) -> Vec<String> {
        let default = || default.iter().map(ToString::to_string).collect();
        if self.names.is_empty() { default() } else { self.names.clone() }
    }

    fn into_source(self) -> anyhow::Result<CertificateSource> {
        let Self { mode: _, certificate, key, self_signed: _, ca_out, mut names } = self;
        if let (Some(certificate), Some(key)) = (certificate, key) {
            let files = Files::new(PairPaths { certificate, key }, names, tls::provider());
            return Ok(CertificateSource::Files(files));
        }
        if names.is_empty() {
            names = DEFAULT_NAMES.map(str::to_owned).to_vec();
        }
        let now = SystemTime::now();
        let self_signed = SelfSigned::generate(&names, now)?;
        if let Some(path) = ca_out {
            fs::write(&path, &self_signed.ca_pem)
                .with_context(|| format!("--tls-self-signed-ca-out: {} cannot be written", path.display()))?;
        } else {
            warn!(
                "Nobody can trust this self-signed certificate; write its authority with --tls-self-signed-ca-out"
            );
        }
        let generated = PairPaths { certificate: "(generated)".into(), key: "(generated)".into() };
        let pair = self_signed.pair.check(&generated, &names, now, &tls::provider())?;
        Ok(CertificateSource::Fixed(Box::new(pair)))
    }
}

impl LimitFlags {
    fn into_limits(self) -> Limits {
        let Self {
            drain_period,
            termination_grace,
            max_body_bytes,
            max_inflight_body_bytes,
            max_connections,
        } = self;
        Limits {
            drain_period,
            termination_grace,
            max_body: max_body_bytes,
            max_inflight_body: max_inflight_body_bytes,
            max_connections,
            ..Limits::default()
        }
    }
}

fn server_name(text: &str) -> Result<String, String> {
    let is_name = text.parse::<IpAddr>().is_ok()
        || (!text.is_empty()
            && text.len() <= 253
            && text.split('.').all(|label| {
                (1..=63).contains(&label.len())
                    && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            }));
    if is_name {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "{text:?} is neither a DNS name nor an address; write pinhole-webhook.pinhole-system.svc or 192.0.2.1"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing;

    fn parse(arguments: &[&str]) -> Result<Webhook, String> {
        testing::parse(arguments)
    }

    #[test]
    fn without_flags_for_limits_they_are_the_defaults() {
        let limits = parse(&["--tls-self-signed"]).unwrap().limits.into_limits();
        assert_eq!(format!("{limits:?}"), format!("{:?}", Limits::default()));
    }

    #[test]
    fn exactly_one_source_of_the_certificate_is_required() {
        assert!(parse(&[]).unwrap_err().contains("<--tls-cert <FILE>|--tls-self-signed|--tls-mode <MODE>>"));
        assert!(parse(&["--tls-cert=a"]).unwrap_err().contains("--tls-key <FILE>"));
        assert!(parse(&["--tls-key=a"]).unwrap_err().contains("--tls-cert <FILE>"));
        let both = parse(&["--tls-cert=a", "--tls-key=b", "--tls-self-signed"]).unwrap_err();
        assert!(both.contains("cannot be used with"), "{both}");
        assert!(parse(&["--tls-mode=files"]).unwrap_err().contains("--tls-cert <FILE>"));
    }

    #[test]
    fn the_mode_is_implied_by_flags_that_only_one_mode_has() {
        let mode =
            |arguments: &[&str]| parse(arguments).unwrap().tls.mode().map_err(|error| error.to_string());
        let files = ["--tls-cert=a", "--tls-key=b"];
        assert_eq!(mode(&files), Ok(TlsMode::Files));
        assert_eq!(mode(&[&files[..], &["--tls-mode=files"]].concat()), Ok(TlsMode::Files));
        assert_eq!(mode(&["--tls-self-signed"]), Ok(TlsMode::SelfSigned));
        assert_eq!(mode(&["--tls-mode=self-signed"]), Ok(TlsMode::SelfSigned));
        assert_eq!(mode(&["--tls-mode=self"]), Ok(TlsMode::Own));
        let error = mode(&[&files[..], &["--tls-mode=self"]].concat()).unwrap_err();
        assert_eq!(error, "--tls-mode self and --tls-cert contradict each other; leave one of them out");
        let error = mode(&["--tls-mode=self", "--tls-self-signed-ca-out=ca.pem"]).unwrap_err();
        assert!(error.starts_with("--tls-self-signed-ca-out goes with --tls-self-signed"), "{error}");
    }

    #[test]
    fn a_flag_that_cannot_be_read_is_named_with_an_example() {
        let cases = [
            ("--listen=localhost:1", "127.0.0.1:8484"),
            ("--drain-period=15", "15s or 1h30m"),
            ("--tls-server-name=a_b", "pinhole-webhook.pinhole-system.svc"),
            ("--disclose-holder=perhaps", "true, false"),
        ];
        for (argument, expected) in cases {
            let error = parse(&["--tls-self-signed", argument]).unwrap_err();
            let flag = argument.split('=').next().unwrap();
            assert!(error.contains(flag) && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_self_signed_authority_is_written_for_callers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        let argument = format!("--tls-self-signed-ca-out={}", path.display());
        let webhook = parse(&["--tls-self-signed", &argument]).unwrap();
        let CertificateSource::Fixed(pair) = webhook.tls.into_source().unwrap() else {
            panic!("a self-signed certificate comes from no file");
        };
        assert_eq!(pair.names, DEFAULT_NAMES);
        assert!(fs::read_to_string(path).unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
    }
}
