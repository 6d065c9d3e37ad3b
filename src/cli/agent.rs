//! `pinhole agent`: flags to parts, parts to a running agent.

mod resources;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::ArgAction;
use clap::Args;
use clap::ValueEnum;
use futures::future::OptionFuture;
use ipnet::IpNet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::admission::policy::Policy;
use crate::agent::Agent;
use crate::agent::Config;
use crate::agent::Parts;
use crate::agent::addresses;
use crate::agent::addresses::Filter;
use crate::agent::brake::BrakeOverTime;
use crate::agent::entries;
use crate::agent::flows::Flows;
use crate::agent::nat_node;
use crate::agent::node::Networks;
use crate::agent::node::Node;
use crate::agent::report::Reporter;
use crate::agent::vigil::Vigil;
use crate::cli::agent::resources::ResourceFlags;
use crate::cli::duration;
use crate::cli::hostname;
use crate::cli::listen;
use crate::cli::masquerade::MasqueradeFlags;
use crate::cli::metrics::MetricsFlags;
use crate::cli::network;
use crate::cli::policy::PolicyFlags;
use crate::cli::watching;
use crate::cluster::client;
use crate::cluster::client::Connection;
use crate::cluster::client::Source;
use crate::cluster::events;
use crate::cluster::events::Events;
use crate::cluster::events::Outcome;
use crate::cluster::events::Speaker;
use crate::cluster::node_pods::NodePods;
use crate::dataplane::Backend;
use crate::dataplane::choice;
use crate::dataplane::choice::FirewallChoice;
use crate::dataplane::drift::Watcher;
use crate::dataplane::dry_run::Dialect;
use crate::dataplane::dry_run::DryRun;
use crate::dataplane::former::Successor;
use crate::dataplane::links::Link;
use crate::dataplane::links::LinkMask;
use crate::dataplane::links::Links;
use crate::dataplane::settings::FlavorChoice;
use crate::dataplane::settings::Prefix;
use crate::dataplane::settings::ReturnPath;
use crate::dataplane::settings::Settings;
use crate::model::handover::UdpHandover;
use crate::ruleset::brake::Brake;
use crate::shutdown;
use crate::telemetry::http;
use crate::telemetry::metrics;
use crate::telemetry::metrics::agent::AgentMetrics;
use crate::telemetry::metrics::watch::WatchMetrics;
use crate::telemetry::readiness::Readiness;
use crate::telemetry::startup::Startup;

/// How long to go on writing Events after the loop has ended.
const LAST_EVENTS: Duration = Duration::from_secs(3);

/// How often the node's addresses are looked at: it costs some tens of microseconds.
const ADDRESS_CHECK: Duration = Duration::from_secs(5);

/// How often it is looked whether somebody else changed the node's rules: it costs some tens of microseconds.
const DRIFT_CHECK: Duration = Duration::from_millis(1500);

/// Where the kernel says which it is.
const KERNEL_RELEASE: &str = "/proc/sys/kernel/osrelease";

/// The flags of `pinhole agent`.
#[derive(Debug, Args)]
pub(crate) struct AgentFlags {
    /// The name of this node's Node object. Default: NODE_NAME, else the host name in lower case.
    #[arg(long, value_name = "NAME", env = "PINHOLE_NODE_NAME")]
    node_name: Option<String>,

    /// The cluster to serve. Default: what KUBECONFIG or ~/.kube/config names, else the cluster around this pod.
    #[arg(long, value_name = "FILE", env = "PINHOLE_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,

    /// Where to serve /healthz and /readyz, and /metrics unless --metrics says otherwise. A bare port listens on every address.
    #[arg(long, value_name = "[ADDRESS:]PORT", default_value = "0.0.0.0:8484", value_parser = listen::parse,
          env = "PINHOLE_HTTP_ADDRESS")]
    http_address: SocketAddr,

    /// Where to serve /entries, which names every published pod of the node. Only this machine can reach the default.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8485", value_parser = listen::parse,
          env = "PINHOLE_ENTRIES_ADDRESS")]
    entries_address: SocketAddr,

    #[command(flatten)]
    exposure: MetricsFlags,

    /// How often to read the kernel and repair what others changed, although nothing happened.
    #[arg(long, value_name = "DURATION", default_value = "300s", value_parser = resync,
          env = "PINHOLE_RESYNC")]
    resync: Duration,

    /// Whether an Event may name a holder in another namespace.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set,
          env = "PINHOLE_DISCLOSE_HOLDER")]
    disclose_holder: bool,

    #[command(flatten)]
    resources: ResourceFlags,

    #[command(flatten)]
    policy: PolicyFlags,

    #[command(flatten)]
    addresses: AddressFlags,

    #[command(flatten)]
    masquerade: MasqueradeFlags,

    #[command(flatten)]
    kernel: KernelFlags,

    #[command(flatten)]
    brake: BrakeFlags,
}

/// Which addresses are whose.
#[derive(Debug, Args)]
#[command(next_help_heading = "Addresses")]
struct AddressFlags {
    /// A network whose addresses count as public, and are served though no interface has them, as behind 1:1 NAT.
    /// Repeatable.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = network::parse, env = "PINHOLE_INCLUDE_NET")]
    include_net: Vec<IpNet>,

    /// A network whose addresses are never served. Repeatable.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = network::parse, env = "PINHOLE_EXCLUDE_NET")]
    exclude_net: Vec<IpNet>,

    /// A network of this node's pods. Repeatable. Default: the Node's podCIDRs.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = network::parse, env = "PINHOLE_POD_CIDR")]
    pod_cidr: Vec<IpNet>,

    /// Another network inside the cluster, such as other nodes' pods and Services: traffic to it keeps its source.
    /// Repeatable.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = network::parse, env = "PINHOLE_CLUSTER_CIDR")]
    cluster_cidr: Vec<IpNet>,
}

/// How rules get into the kernel.
#[derive(Debug, Args)]
#[command(next_help_heading = "Kernel")]
struct KernelFlags {
    /// What programs the node. A node that has entries keeps its firewall until another one than auto is named.
    #[arg(long, value_enum, default_value_t = FirewallFlag::Auto, env = "PINHOLE_FIREWALL")]
    firewall: FirewallFlag,

    /// Print the exact input of iptables-restore, or of nft with --firewall nftables, and change nothing.
    #[arg(long, env = "PINHOLE_DRY_RUN")]
    dry_run: bool,

    /// Which of the kernel's two sets of tables to use: auto, nft or legacy. auto follows the node's other programs.
    #[arg(long, value_name = "FLAVOR", default_value_t = FlavorChoice::Auto, env = "PINHOLE_IPTABLES_FLAVOR")]
    iptables_flavor: FlavorChoice,

    /// What every chain of ours starts with.
    #[arg(long, value_name = "NAME", default_value_t = Prefix::default(), env = "PINHOLE_RESOURCE_PREFIX")]
    resource_prefix: Prefix,

    /// How replies of pods on other nodes come back through this one: masquerade (the pods see this node's address instead
    /// of the client's) or routed (the network sends their replies through this node, and they see the client's).
    #[arg(long, value_name = "HOW", default_value_t = ReturnPath::default(), env = "PINHOLE_RETURN_PATH")]
    return_path: ReturnPath,

    /// A link to the outside by which replies must leave when the connection came in by it: interface=eth1 and, if need be,
    /// gateway=ADDRESS (default: the first address of the interface's network) and table=NUMBER (default: a free one).
    /// Repeatable; add further ones at the end. With --claims those of the NatPools that select this node come behind them.
    #[arg(long, value_name = "LINK", value_delimiter = ';', env = "PINHOLE_LINK")]
    link: Vec<Link>,

    /// The bits of connection and packet marks that hold the number of a connection's link. All other bits stay as they
    /// are.
    #[arg(long, value_name = "MASK", default_value_t = LinkMask::default(), env = "PINHOLE_LINK_MARK_MASK")]
    link_mark_mask: LinkMask,

    /// What happens to UDP flows when another pod takes over: drain (they stay until they end) or cut. A pod's annotation and a
    /// Pinhole can say otherwise for themselves.
    #[arg(long, value_name = "HOW", default_value = "drain", value_parser = udp_handover, env = "PINHOLE_UDP_HANDOVER")]
    udp_handover: UdpHandover,
}

/// When to doubt a wish to remove much at once.
#[derive(Debug, Args)]
#[command(next_help_heading = "Brake")]
struct BrakeFlags {
    /// Hold back a change that would remove more than this share of the entries, in percent. 100 never holds.
    #[arg(long = "brake-threshold", value_name = "PERCENT", default_value_t = Brake::default().threshold_percent,
          value_parser = clap::value_parser!(u8).range(..=100), env = "PINHOLE_BRAKE_THRESHOLD")]
    threshold_percent: u8,

    /// Never hold below this many entries.
    #[arg(long = "brake-minimum", value_name = "NUMBER", default_value_t = Brake::default().minimum,
          env = "PINHOLE_BRAKE_MINIMUM")]
    minimum: usize,

    /// How long to hold.
    #[arg(long = "brake-grace", value_name = "DURATION", default_value = "10m", value_parser = duration::parse,
          env = "PINHOLE_BRAKE_GRACE")]
    grace: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FirewallFlag {
    /// What the node has entries in; else nftables where the kernel has it, else iptables.
    Auto,
    /// Tables of our own in nf_tables.
    Nftables,
    /// Chains in the tables of iptables.
    Iptables,
    /// Printed rules, of iptables.
    DryRun,
}

impl AgentFlags {
    /// Keeps the node's rules until SIGTERM.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.context("no runtime for network and timers can be made")?.block_on(self.serve())
    }

    async fn serve(self) -> anyhow::Result<ExitCode> {
        let Self {
            node_name,
            kubeconfig,
            http_address,
            entries_address,
            exposure,
            resync,
            disclose_holder,
            resources,
            policy,
            addresses,
            masquerade,
            kernel,
            brake,
        } = self;
        let stop = shutdown::on_signal().context("signals cannot be listened for")?;
        let node_name = node_name.map_or_else(default_node_name, Ok)?;
        let policy =
            Arc::new(Policy { disclose_holder, finds_ports: resources.has_claims(), ..policy.into_policy() });
        let settings = kernel.settings()?;
        let links = settings.links.clone();
        let (dataplane, backend) = kernel.backend(&settings).await?;
        let dataplane = Arc::new(Successor::new(dataplane, settings.clone()));
        let connection = client::connect(&kubeconfig.map_or(Source::Usual, Source::File)).await?;
        let http_listener = listen::bind(http_address, "--http-address").await?;
        let entries_listener = listen::bind(entries_address, "--entries-address").await?;

        let readiness = Readiness::new();
        let mut registry = metrics::registry();
        let metrics = AgentMetrics::register(&mut registry);
        let caches = readiness.require("caches", watching::FIRST_LISTS);
        let startup = Arc::new(Startup::missing(watching::FIRST_LISTS));
        let observer = watching::observer(caches, startup, WatchMetrics::register(&mut registry));
        let in_sync = readiness.require("rules", "starting");
        let ended = CancellationToken::new();
        let client = connection.client.clone();
        let admin = exposure.serve(readiness, Arc::new(registry), client.clone(), ended.clone()).await?;
        tokio::spawn(http::serve(http_listener, admin, ended.clone()));

        info!(node = node_name, server = connection.server, %http_address, "Watching the node's pods");
        let pods = Arc::new(NodePods::new(Arc::clone(&policy)));
        let watching =
            tokio::spawn(Arc::clone(&pods).follow(connection.clone(), node_name.clone(), observer));
        let is_dry_run = matches!(dataplane.inner(), Backend::DryRun(_));
        // A dry run tells nobody that it did something.
        let (events, writing) = if is_dry_run {
            (None, None)
        } else {
            let (events, writing) = write_events(&connection, &node_name, &metrics);
            (Some(events), Some(writing))
        };
        let (granting, following) = resources.granting(&connection, &node_name, &pods, is_dry_run).unzip();
        let vigil = Vigil::new(Watcher::new(dataplane.inner(), settings.clone()), resync);
        let flows = (!is_dry_run).then(Flows::default);
        if let Some(flows) = flows.clone() {
            tokio::spawn(flows.run(settings, kernel.udp_handover, metrics.clone()));
        }
        let masquerading = resources.masquerading(masquerade.into_policy(), &client);
        let linking = resources.linking(links, &client);
        let learning = resources::learning(&client);
        let config = Config {
            node_name: node_name.clone(),
            policy,
            resync,
            address_check: ADDRESS_CHECK,
            drift_check: DRIFT_CHECK,
        };
        let reporter = Reporter::new(node_name.clone(), disclose_holder, metrics.clone(), events);
        let entries = entries::router(Arc::clone(&dataplane), reporter.refusals());
        tokio::spawn(http::serve(entries_listener, entries, ended.clone()));
        let parts = Parts {
            vigil,
            dataplane,
            pods,
            granting,
            node: Node::new(addresses.into_networks(), addresses::read).with_learning(learning),
            masquerading,
            linking,
            brake: brake.into_brake(),
            flows,
            reporter,
            metrics,
            in_sync,
        };
        let mut agent = Agent::new(config, parts);
        if let Some(desk) = resources.nat_node(client, &node_name, backend).filter(|_| !is_dry_run) {
            agent = agent.with_nat_node(desk);
        }
        tokio::select! {
            () = agent.run(stop) => {}
            watched = watching => {
                watched.context("the watches on the cluster have failed, so what the node should serve is not known any more")?;
                anyhow::bail!("the watches on the cluster have ended, so what the node should serve is not known any more");
            }
            Some(ended) = OptionFuture::from(following) => return Err(ended.unwrap_or_else(anyhow::Error::from)),
        }
        if let Some(writing) = writing {
            // News is not worth delaying the end for long.
            let _ = tokio::time::timeout(LAST_EVENTS, writing).await;
        }
        ended.cancel();
        Ok(ExitCode::SUCCESS)
    }
}

/// What an agent with certain flags allows, serves and listens on.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// What it allows.
    pub(crate) policy: Policy,
    /// Which addresses it serves.
    pub(crate) filter: Filter,
    /// The port of its health and metrics.
    pub(crate) http_port: u16,
    /// The port of its entries.
    pub(crate) entries_port: u16,
}

impl AgentFlags {
    /// What the flags say to somebody who looks at a running agent.
    pub(crate) fn shape(self) -> Shape {
        let Self { http_address, entries_address, policy, addresses, disclose_holder, resources, .. } = self;
        Shape {
            policy: Policy { disclose_holder, finds_ports: resources.has_claims(), ..policy.into_policy() },
            filter: addresses.into_networks().filter,
            http_port: http_address.port(),
            entries_port: entries_address.port(),
        }
    }
}

impl AddressFlags {
    fn into_networks(self) -> Networks {
        let Self { include_net, exclude_net, pod_cidr, cluster_cidr } = self;
        Networks {
            filter: Filter { include: include_net, exclude: exclude_net },
            pod_cidrs: pod_cidr,
            cluster_cidrs: cluster_cidr,
        }
    }
}

impl KernelFlags {
    fn settings(&self) -> anyhow::Result<Settings> {
        Ok(Settings {
            prefix: self.resource_prefix.clone(),
            links: Links::new(self.link_mark_mask, self.link.clone()).context("--link")?.into(),
            return_path: self.return_path,
            ..Settings::default()
        })
    }

    async fn backend(&self, settings: &Settings) -> anyhow::Result<(Backend, nat_node::Backend)> {
        let choice = match self.firewall {
            FirewallFlag::Auto => FirewallChoice::Auto,
            FirewallFlag::Nftables => FirewallChoice::Nftables,
            FirewallFlag::Iptables | FirewallFlag::DryRun => FirewallChoice::Iptables,
        };
        if self.dry_run || self.firewall == FirewallFlag::DryRun {
            info!("Dry run: the rules are printed, and nothing on the node or in the cluster is changed");
            let dialect = match choice {
                FirewallChoice::Nftables => Dialect::Nftables,
                FirewallChoice::Auto | FirewallChoice::Iptables => Dialect::Iptables,
            };
            let printing = DryRun::new(settings.clone(), dialect, Box::new(std::io::stdout()));
            return Ok((Backend::DryRun(Box::new(printing)), nat_node::Backend::default()));
        }
        let chosen = choice::choose(choice, self.iptables_flavor, settings).await?;
        info!(firewall = %chosen.firewall, because = chosen.reason, "Programming the node");
        let described = nat_node::Backend {
            name: chosen.firewall.to_string(),
            version: chosen.version,
            kernel: std::fs::read_to_string(KERNEL_RELEASE).unwrap_or_default().trim().to_owned(),
        };
        Ok((Backend::new(chosen.firewall, settings.clone()), described))
    }
}

impl BrakeFlags {
    const fn into_brake(self) -> BrakeOverTime {
        let Self { threshold_percent, minimum, grace } = self;
        BrakeOverTime::new(Brake { threshold_percent, minimum }, grace)
    }
}

fn write_events(
    connection: &Connection,
    node_name: &str,
    metrics: &AgentMetrics,
) -> (Events, tokio::task::JoinHandle<()>) {
    let (events, event_rx) = events::channel();
    let metrics = metrics.clone();
    let observer = move |outcome| {
        metrics.event(match outcome {
            Outcome::Written => "written",
            Outcome::GivenUp => "given-up",
        });
    };
    let writing = events::write(connection.client.clone(), Speaker::agent(node_name), event_rx, observer);
    (events, tokio::spawn(writing))
}

#[expect(clippy::disallowed_methods, reason = "the command line reads the environment")]
fn default_node_name() -> anyhow::Result<String> {
    if let Ok(name) = std::env::var("NODE_NAME")
        && !name.is_empty()
    {
        return Ok(name);
    }
    // The kubelet registers its node in lower case.
    Ok(hostname::read("--node-name")?.to_lowercase())
}

fn udp_handover(text: &str) -> Result<UdpHandover, String> {
    match text {
        "drain" => Ok(UdpHandover::Drain),
        "cut" => Ok(UdpHandover::Cut),
        _ => Err(format!("{text:?} is not a way to hand flows over: write drain or cut")),
    }
}

fn resync(text: &str) -> Result<Duration, String> {
    let duration = duration::parse(text)?;
    if duration < Duration::from_secs(1) {
        return Err("reading the kernel more than once a second is too much; write 1s or more".to_owned());
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing;

    fn parse(arguments: &[&str]) -> Result<AgentFlags, String> {
        testing::parse(arguments)
    }

    #[test]
    fn networks_are_repeated_separated_and_single_addresses() {
        let flags = parse(&["--include-net=192.168.1.7/24,10.0.0.1", "--include-net", "fd00::/8"]).unwrap();
        let nets: Vec<_> = flags.addresses.include_net.iter().map(ToString::to_string).collect();
        assert_eq!(nets, ["192.168.1.0/24", "10.0.0.1/32", "fd00::/8"]);
    }

    #[test]
    fn r33_a_flag_that_cannot_be_read_is_named_with_what_to_write() {
        let cases = [
            ("--resource-prefix=much-too-long", "1 to 8 of A-Z"),
            ("--iptables-flavor=ebtables", "auto, nft or legacy"),
            ("--udp-handover=keep", "drain or cut"),
            ("--return-path=nat", "masquerade or routed"),
            ("--link=eth1", "write interface=eth1,gateway=192.0.2.1,table=101"),
            ("--link-mark-mask=0x1000", "such as 0x70"),
            ("--pod-cidr=10.0.0.0/33", "203.0.113.0/24"),
            ("--brake-threshold=101", "101 is not in 0..=100"),
            ("--brake-grace=10", "15s or 1h30m"),
            ("--resync=10ms", "1s or more"),
            ("--non-masquerade-cidr=0.0.0.0/0", "is every destination"),
            ("--masquerade-exclude-interface=wg+", "without wildcards"),
            ("--firewall=ipvs", "auto, nftables, iptables, dry-run"),
        ];
        for (argument, expected) in cases {
            let error = parse(&[argument]).unwrap_err();
            let flag = argument.split('=').next().unwrap();
            assert!(error.contains(flag) && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_default_brake_and_prefix_are_the_ones_of_the_parts() {
        let flags = parse(&[]).unwrap();
        assert_eq!(flags.kernel.settings().unwrap(), Settings::default());
        let BrakeFlags { threshold_percent, minimum, .. } = flags.brake;
        assert_eq!(Brake { threshold_percent, minimum }, Brake::default());
    }
}
