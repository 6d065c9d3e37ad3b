//! `pinhole controller`: flags to the parts of the controller.

mod operating;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use std::time::SystemTime;

use anyhow::Context;
use clap::Args;
use k8s_openapi::jiff::SignedDuration;
use kube::Client;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::admission::index::Index;
use crate::allocation::life;
use crate::cli::controller::operating::OperatingFlags;
use crate::cli::controller::operating::Tools;
use crate::cli::duration;
use crate::cli::hostname;
use crate::cli::listen;
use crate::cli::policy::PolicyFlags;
use crate::cli::watching;
use crate::cli::watching::Kept;
use crate::cli::watching::Pools;
use crate::cluster::backends::KnownBackends;
use crate::cluster::changes::Changes;
use crate::cluster::claim_store::ApiClaims;
use crate::cluster::claim_store::ClaimStore;
use crate::cluster::claim_watch;
use crate::cluster::client;
use crate::cluster::client::Source;
use crate::cluster::events;
use crate::cluster::events::Events;
use crate::cluster::events::Speaker;
use crate::cluster::informers::Informers;
use crate::cluster::informers::Observer;
use crate::cluster::lacking_workloads::LackingWorkloads;
use crate::cluster::lease::Candidate;
use crate::cluster::nat_pools::PoolWriter;
use crate::cluster::pinhole_store::PinholeStore;
use crate::cluster::pinhole_watch::KnownPinholes;
use crate::cluster::pod_writer::PodWriter;
use crate::cluster::workload_writer::WorkloadWriter;
use crate::controller::Controller;
use crate::controller::allocate::Allocator;
use crate::controller::keeper::PinholeKeeper;
use crate::controller::plan::Times;
use crate::controller::pools::PoolKeeper;
use crate::controller::waker::Waker;
use crate::model::holder::ObjectName;
use crate::shutdown;
use crate::telemetry::http;
use crate::telemetry::metrics;
use crate::telemetry::metrics::controller::ControllerMetrics;
use crate::telemetry::metrics::watch::WatchMetrics;
use crate::telemetry::metrics::webhook::register_index;
use crate::telemetry::readiness::Readiness;
use crate::telemetry::startup::Startup;

/// The flags of `pinhole controller`.
#[derive(Debug, Args)]
pub(crate) struct ControllerFlags {
    /// Where to serve /healthz, /readyz and /metrics, without TLS. A bare port listens on every address.
    #[arg(long, value_name = "[ADDRESS:]PORT", default_value = "0.0.0.0:8484", value_parser = listen::parse,
          env = "PINHOLE_HTTP_ADDRESS")]
    http_address: SocketAddr,

    /// The cluster to serve. Default: what KUBECONFIG or ~/.kube/config names, else the cluster around this pod.
    #[arg(long, value_name = "FILE", env = "PINHOLE_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,

    /// The Lease by which one of several replicas leads.
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "pinhole-system/pinhole-controller",
          value_parser = object_name, env = "PINHOLE_LEASE")]
    lease: ObjectName,

    /// The name of this replica in the Lease, unique among all. Default: the host's name and the time of the start.
    #[arg(long, value_name = "NAME", env = "PINHOLE_IDENTITY")]
    identity: Option<String>,

    /// How long to wait, with a released port, for a node that does not say that it has let go of it and is not known to be gone.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration::parse,
          env = "PINHOLE_RELEASE_TIMEOUT")]
    release_timeout: Duration,

    #[command(flatten)]
    operating: OperatingFlags,

    #[command(flatten)]
    policy: PolicyFlags,
}

impl ControllerFlags {
    /// Looks after claims until SIGTERM.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.context("no runtime for network and timers can be made")?.block_on(self.serve())
    }

    #[allow(
        clippy::too_many_lines,
        reason = "every part of the controller is put together here, one after the other"
    )]
    async fn serve(self) -> anyhow::Result<ExitCode> {
        let Self { http_address, kubeconfig, lease, identity, release_timeout, operating, policy } = self;
        let stop = shutdown::on_signal().context("signals cannot be listened for")?;
        let identity = identity.map_or_else(default_identity, Ok)?;
        let policy = Arc::new(policy.into_policy());
        let connection = client::connect(&kubeconfig.map_or(Source::Usual, Source::File)).await?;
        let http_listener = listen::bind(http_address, "--http-address").await?;

        let readiness = Readiness::new();
        let mut registry = metrics::registry();
        let metrics = ControllerMetrics::register(&mut registry);
        let index = Arc::new(RwLock::new(Index::new(Arc::clone(&policy))));
        count_holdings(&mut registry, Arc::clone(&index));
        let claims_known = Arc::new(AtomicBool::new(false));
        let startup = Arc::new(Startup::missing(watching::FIRST_LISTS));
        let caches = readiness.require("caches", watching::FIRST_LISTS);
        let watch_metrics = WatchMetrics::register(&mut registry);
        let changes = Changes::default();
        let observer = telling(
            &changes,
            watching::observer(caches.clone(), Arc::clone(&startup), watch_metrics.clone()),
        );
        let ended = CancellationToken::new();
        let (leading_tx, leading_rx) = watch::channel(false);
        let client = connection.client.clone();
        let (claims, pods) = (Arc::default(), Arc::default());
        let (silent_tx, silent_rx) = watch::channel(false);
        let tools = Tools {
            client: client.clone(),
            claims: Arc::clone(&claims),
            claims_known: Arc::clone(&claims_known),
            pods: Arc::clone(&pods),
            startup: Arc::clone(&startup),
            leading_rx: leading_rx.clone(),
            silent_tx,
            metrics: metrics.clone(),
            stop: stop.clone(),
        };
        operating.start(tools, &mut registry)?;
        tokio::spawn(http::serve(http_listener, http::router(readiness, Arc::new(registry)), ended.clone()));

        info!(server = connection.server, %http_address, %lease, identity, "Looking after claims");
        let pinholes = Arc::<KnownPinholes>::default();
        let speaker = Speaker::controller(&identity);
        let candidate = Candidate::new(client.clone(), lease, identity);
        let running = tokio::spawn(candidate.run(leading_tx, stop.clone()));
        let following = tokio::spawn(claim_watch::follow(
            client.clone(),
            Arc::clone(&claims),
            Arc::clone(&claims_known),
            changes.clone(),
        ));
        index.write().unwrap_or_else(PoisonError::into_inner).set_pools(Some(Arc::default()));
        let (pools_tx, pools_rx) = watch::channel(None);
        let tell = move |pools| drop(pools_tx.send_replace(Some(pools)));
        let pools = Pools { client: client.clone(), tell: Box::new(tell), with_occupants: true };
        let keeper = PoolKeeper {
            writer: PoolWriter::new(client.clone()),
            pools_rx,
            claims: Arc::clone(&claims),
            claims_known: Arc::clone(&claims_known),
            index: Arc::clone(&index),
            startup: Arc::clone(&startup),
            leading_rx: leading_rx.clone(),
            metrics: metrics.clone(),
        };
        tokio::spawn(keeper.run(stop.clone()));
        let backends = Arc::<KnownBackends>::default();
        let showing =
            tokio::spawn(show(client.clone(), Arc::clone(&pinholes), Arc::clone(&backends), changes.clone()));
        let informers = Informers::new(connection, Arc::clone(&policy), Arc::clone(&index), observer);
        let lacking = Arc::<RwLock<LackingWorkloads>>::default();
        let informers =
            informers.keeping(Arc::clone(&pods)).with_lacking(Arc::clone(&lacking)).with_pinholes();
        let kept = Kept {
            index: Arc::clone(&index),
            caches,
            startup: Arc::clone(&startup),
            metrics: watch_metrics,
            changes: changes.clone(),
        };
        let watching = tokio::spawn(watching::keep(informers, Some(pools), kept));
        let release = SignedDuration::try_from(release_timeout).context("--release-timeout is too long")?;
        let store: Arc<dyn ClaimStore> = Arc::new(ApiClaims::new(client.clone()));
        let allocator = Allocator {
            store: Arc::clone(&store),
            claims: Arc::clone(&claims),
            claims_known: Arc::clone(&claims_known),
            index: Arc::clone(&index),
            pods,
            startup: Arc::clone(&startup),
            policy,
            leading_rx: leading_rx.clone(),
            waiting: Arc::default(),
            changes: changes.clone(),
            metrics: metrics.clone(),
        };
        let waker = Waker {
            writer: WorkloadWriter::new(client.clone()),
            workloads: lacking,
            claims: Arc::clone(&claims),
            claims_known: Arc::clone(&claims_known),
            index: Arc::clone(&index),
            startup: Arc::clone(&startup),
            policy: Arc::clone(&allocator.policy),
            leading_rx: leading_rx.clone(),
            silent_rx,
            metrics: metrics.clone(),
        };
        tokio::spawn(waker.run(stop.clone()));
        let shown = (Arc::clone(&pinholes), backends);
        let (policy, events) = (Arc::clone(&allocator.policy), speaking(client.clone(), speaker));
        let keeping =
            tokio::spawn(keep_pods(allocator, client, events.clone(), shown, release, stop.clone()));
        let controller = Controller {
            store,
            claims,
            index,
            claims_known,
            pinholes,
            startup,
            changes,
            leading_rx,
            times: Times { release, cooldown: life::COOLDOWN },
            policy,
            events,
            metrics,
        };
        tokio::select! {
            () = controller.run(stop) => {}
            ended = watching => {
                return Err(over(ended, "the watches on the cluster, by which is known what is in use,"));
            }
            ended = following => return Err(over(ended, "the watch on PortClaims")),
            ended = showing => return Err(over(ended, "the watch on Pinholes, or on what is behind them,")),
        }
        keeping.await.context("keeping the Pinholes and finding ports has failed")?;
        running.await.context("giving the Lease back has failed")?;
        ended.cancel();
        info!("Ended");
        Ok(ExitCode::SUCCESS)
    }
}

/// An observer by which changes are told, too.
fn telling(changes: &Changes, observer: Observer) -> Observer {
    let changes = changes.clone();
    Arc::new(move |resource, sign| {
        observer(resource, sign);
        changes.tell();
    })
}

/// Follows the Pinholes, and what is behind those of users.
async fn show(client: Client, pinholes: Arc<KnownPinholes>, backends: Arc<KnownBackends>, changes: Changes) {
    tokio::select! {
        () = pinholes.follow(client.clone(), None, || changes.tell()) => {}
        () = backends.follow(client, changes.clone()) => {}
    }
}

fn count_holdings(registry: &mut Registry, index: Arc<RwLock<Index>>) {
    register_index(registry, move || index.read().unwrap_or_else(PoisonError::into_inner).holdings_count());
}

/// The end of what goes on for as long as the process does.
fn over<T>(ended: Result<T, JoinError>, what: &str) -> anyhow::Error {
    match ended {
        Ok(_) => anyhow::anyhow!("{what} ended"),
        Err(error) => anyhow::Error::new(error).context(format!("{what} failed")),
    }
}

/// Finds ports for pods and keeps their Pinholes until it is stopped.
async fn keep_pods(
    allocator: Allocator,
    client: Client,
    events: Events,
    (pinholes, backends): (Arc<KnownPinholes>, Arc<KnownBackends>),
    release_timeout: SignedDuration,
    stop: CancellationToken,
) {
    let keeper = PinholeKeeper {
        store: PinholeStore::new(client.clone()),
        pod_writer: PodWriter::new(client),
        waiting: Arc::clone(&allocator.waiting),
        changes: allocator.changes.clone(),
        pinholes,
        backends,
        pods: Arc::clone(&allocator.pods),
        claims: Arc::clone(&allocator.claims),
        claims_known: Arc::clone(&allocator.claims_known),
        index: Arc::clone(&allocator.index),
        startup: Arc::clone(&allocator.startup),
        policy: Arc::clone(&allocator.policy),
        release_timeout,
        leading_rx: allocator.leading_rx.clone(),
        events,
        metrics: allocator.metrics.clone(),
    };
    tokio::join!(keeper.run(stop.clone()), allocator.run(stop));
}

/// Where to offer Events, which are written from then on.
fn speaking(client: Client, speaker: Speaker) -> Events {
    let (events, event_rx) = events::channel();
    tokio::spawn(events::write(client, speaker, event_rx, |_| {}));
    events
}

/// A restarted container has its pod's name again, and must not be taken for the one before it.
fn default_identity() -> anyhow::Result<String> {
    let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(format!("{}-{:x}", hostname::read("--identity")?, started.as_micros()))
}

fn object_name(text: &str) -> Result<ObjectName, String> {
    let parts = text.split_once('/').filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty());
    let (namespace, name) = parts.ok_or_else(|| {
        format!("{text:?} is no namespace and name; write pinhole-system/pinhole-controller")
    })?;
    Ok(ObjectName::new(namespace, name))
}

#[cfg(test)]
mod tests;
