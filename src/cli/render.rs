//! `pinhole render`: the rules that a node would get for these manifests, as the text that `iptables-restore` or
//! `nft -f` takes.
//!
//! The same admission, the same ruleset and the same renderer as on a node; only the pods' addresses, which
//! manifests do not have, are made up.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use clap::Args;
use clap::ValueEnum;
use ipnet::IpNet;

use crate::admission::policy::Policy;
use crate::admission::subject::Subject;
use crate::admission::suspended;
use crate::admission::wanted;
use crate::admission::wanted::Located;
use crate::agent::written;
use crate::api::object::Object;
use crate::cli::check;
use crate::cli::manifest;
use crate::cli::manifest::Manifest;
use crate::cli::masquerade::MasqueradeFlags;
use crate::cli::policy::PolicyFlags;
use crate::cli::terminal;
use crate::cli::terminal::Palette;
use crate::dataplane::Observed;
use crate::dataplane::dry_run;
use crate::dataplane::dry_run::Dialect;
use crate::dataplane::settings::Prefix;
use crate::dataplane::settings::Settings;
use crate::model::address::ExternalAddress;
use crate::model::address::Family;
use crate::model::holder::ObjectName;
use crate::ruleset;
use crate::ruleset::endpoint::Endpoint;
use crate::ruleset::endpoint::Leaving;
use crate::ruleset::node::NodeFacts;

/// The exit code when a manifest is refused or cannot be read.
const REFUSED: u8 = 1;

/// The flags of `pinhole render`.
#[derive(Debug, Args)]
#[command(
    after_help = "Pods whose manifest has no status.podIPs are rendered with example addresses, 10.244.0.10 and \
                        fd00:10:244::10 upwards in the order of the manifests; what stands in is told on standard \
                        error."
)]
pub(crate) struct Render {
    /// Manifests: YAML or JSON files, directories (read recursively), or - for standard input.
    #[arg(required = true, value_name = "FILE|DIR|-")]
    files: Vec<PathBuf>,

    /// The node's own address, or one of each family, as in `203.0.113.7,2001:db8::7`.
    #[arg(long, value_name = "IP[,IP6]", env = "PINHOLE_NODE_IP")]
    node_ip: NodeIps,

    /// A network whose addresses the node serves beside its own. Repeatable.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', env = "PINHOLE_INCLUDE_NET")]
    include_net: Vec<IpNet>,

    /// The addresses of the node's pods. Repeatable.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', env = "PINHOLE_POD_CIDR",
          default_values = ["10.244.0.0/24", "fd00:10:244::/64"])]
    pod_cidr: Vec<IpNet>,

    /// Other destinations inside the cluster; traffic to them keeps its source. Repeatable.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', env = "PINHOLE_CLUSTER_CIDR")]
    cluster_cidr: Vec<IpNet>,

    /// What the rules are for.
    #[arg(long, value_enum, default_value_t = Firewall::Iptables, env = "PINHOLE_FIREWALL")]
    firewall: Firewall,

    /// What the names of the node's chains start with, and its tables are named.
    #[arg(long, value_name = "NAME", default_value_t, env = "PINHOLE_RESOURCE_PREFIX")]
    resource_prefix: Prefix,

    /// The namespace of objects that name none.
    #[arg(short, long, value_name = "NAME", default_value = "default", env = "PINHOLE_NAMESPACE")]
    namespace: String,

    #[command(flatten)]
    policy: PolicyFlags,

    #[command(flatten)]
    masquerade: MasqueradeFlags,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Firewall {
    /// The input of nft.
    Nftables,
    /// The input of iptables-restore.
    Iptables,
}

/// The own addresses of a node, at most one of each family.
#[derive(Clone, Debug)]
struct NodeIps(BTreeSet<IpAddr>);

impl FromStr for NodeIps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut addresses = BTreeSet::new();
        for part in text.split(',').map(str::trim) {
            let ip: IpAddr = part.parse().map_err(|_| {
                format!("{part:?} is not an IP address: write 203.0.113.7 or 203.0.113.7,2001:db8::7")
            })?;
            ExternalAddress::new(ip).map_err(|error| format!("{part} {error}"))?;
            if addresses.iter().any(|other| Family::of(*other) == Family::of(ip)) {
                let family = Family::of(ip);
                return Err(format!(
                    "{part} is a second {family} address: a node's own is one of each family"
                ));
            }
            addresses.insert(ip);
        }
        Ok(Self(addresses))
    }
}

impl NodeIps {
    fn v4(&self) -> Option<Ipv4Addr> {
        self.0.iter().find_map(|ip| if let IpAddr::V4(v4) = ip { Some(*v4) } else { None })
    }

    fn v6(&self) -> Option<Ipv6Addr> {
        self.0.iter().find_map(|ip| if let IpAddr::V6(v6) = ip { Some(*v6) } else { None })
    }
}

impl Render {
    /// Prints the rules.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let Self {
            files,
            node_ip,
            include_net,
            pod_cidr,
            cluster_cidr,
            firewall,
            resource_prefix,
            namespace,
            policy,
            masquerade,
        } = self;
        let manifests = manifest::read(&files, &namespace, io::stdin());
        let policy = policy.into_policy();
        let report = check::judge(&manifests, policy.clone(), None);
        let is_complete = report.refused() == 0 && report.unreadable.is_empty();
        let palette = Palette { is_colourful: terminal::is_colourful(&io::stderr()) };
        if !is_complete {
            eprint!("{}", report.text(palette));
        }
        let node = NodeFacts {
            node_v4: node_ip.v4(),
            node_v6: node_ip.v6(),
            addresses: node_ip.0,
            include: include_net,
            exclude: Vec::new(),
            pod_cidrs: pod_cidr,
            pods: BTreeSet::new(),
            cluster_cidrs: cluster_cidr,
            node_cidrs: Vec::new(),
            masquerade: masquerade.into_policy(),
        };
        let mut stand_ins = StandIns::new(node.own_addresses().map(Family::of));
        let endpoints: Vec<_> = report
            .objects
            .iter()
            .filter(|judged| judged.is_granted())
            .flat_map(|judged| endpoints(judged.manifest, &policy, &mut stand_ins))
            .collect();
        let desired = ruleset::desired::desired(&endpoints, &node);
        for note in &stand_ins.notes {
            eprintln!("{}: {note}", palette.name("note"));
        }
        for refused in &desired.refused {
            let label = palette.notice("not on this node");
            eprintln!("{label}: {} for {}: {}", refused.mapping, refused.pod, refused.reason);
        }
        let settings = Settings { prefix: resource_prefix, ..Settings::default() };
        let dialect = match firewall {
            Firewall::Nftables => Dialect::Nftables,
            Firewall::Iptables => Dialect::Iptables,
        };
        let transactions = dry_run::transactions(&desired.ruleset, &Observed::default(), &settings, dialect);
        let texts = transactions.iter().map(|transaction| {
            format!("# {}\n{}", dry_run::command_line(dialect, transaction.family), transaction.input)
        });
        terminal::print(&texts.collect::<Vec<_>>().join("\n"))?;
        Ok(if is_complete { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) })
    }
}

/// One endpoint for each mapping of an object, on a pod of it: the one whose port it is, where it goes by the ordinal.
fn endpoints(manifest: &Manifest, policy: &Policy, stand_ins: &mut StandIns) -> Vec<Endpoint> {
    let Object { metadata, .. } = &manifest.object;
    let subject = Subject::of(&manifest.object);
    let suspended = subject.as_ref().is_some_and(|subject| suspended::is(&subject.metadata.annotations));
    let pinhole = subject.and_then(|subject| subject.pinhole);
    let leaving = pinhole.map_or(Leaving::WithItsPorts, |spec| written::leaving(spec.egress));
    let wanted = subject.and_then(|subject| wanted::of(&subject, policy)).unwrap_or_default();
    let mut ips = BTreeMap::new();
    let endpoint = |Located { mapping, ordinal, .. }| {
        let of_set = ordinal.filter(|_| manifest.object.ordinals().is_some());
        let (name, title) = match of_set.map(|ordinal| format!("{}-{ordinal}", metadata.name)) {
            Some(pod) => (pod.clone(), format!("Pod {}/{pod}", metadata.namespace)),
            None => (metadata.name.clone(), manifest.title()),
        };
        let pod = ObjectName::new(metadata.namespace.as_str(), name);
        let ips = ips.entry(pod.clone()).or_insert_with(|| stand_ins.addresses_of(manifest, &title));
        let uid = metadata.uid.clone();
        Endpoint { mapping, pod, uid, ips: ips.clone(), leaving, udp_handover: None, suspended }
    };
    wanted.entries.into_iter().map(endpoint).collect()
}

/// Addresses for pods that have none yet.
#[derive(Debug)]
struct StandIns {
    /// The node's families; a pod needs no address of another.
    families: BTreeSet<Family>,
    given: u8,
    notes: Vec<String>,
}

impl StandIns {
    /// The first address that is given out.
    const FIRST: u8 = 10;

    fn new(families: impl Iterator<Item = Family>) -> Self {
        Self { families: families.collect(), given: 0, notes: Vec::new() }
    }

    fn addresses_of(&mut self, manifest: &Manifest, title: &str) -> Vec<IpAddr> {
        let known: Vec<_> =
            manifest.object.status.pod_ips.iter().filter_map(|found| found.ip.parse().ok()).collect();
        if !known.is_empty() {
            return known;
        }
        // With more pods than a node can have, the examples begin again.
        let number = Self::FIRST + self.given;
        self.given = (self.given + 1) % (u8::MAX - Self::FIRST);
        let address = |family: &Family| match family {
            Family::V4 => IpAddr::from([10, 244, 0, number]),
            Family::V6 => IpAddr::from([0xfd00, 0x10, 0x244, 0, 0, 0, 0, hexadecimal(number)]),
        };
        let stand_ins: Vec<_> = self.families.iter().map(address).collect();
        let listed: Vec<_> = stand_ins.iter().map(ToString::to_string).collect();
        let verb = if listed.len() == 1 { "stands" } else { "stand" };
        self.notes.push(format!("{title} has no address yet; {} {verb} in", listed.join(" and ")));
        stand_ins
    }
}

/// The number whose hexadecimal digits read like `number`'s decimal ones, so that both addresses end alike.
const fn hexadecimal(number: u8) -> u16 {
    let number = number as u16;
    number / 100 * 0x100 + number / 10 % 10 * 0x10 + number % 10
}
