//! One node with two pods on a bridge, and a client outside.
//!
//! ```text
//! client 198.51.100.9 ------- eth0 198.51.100.1, external 203.0.113.7 and .8       the node
//!        2001:db8:51::9            2001:db8:51::1, external 2001:db8::7
//!                                  cni0 10.244.1.1/24, fd00:244:1::1/64
//!                                    |               |
//!                            pod a .9, ::9     pod b .10, ::a
//! ```
//! The client's default route leads to the node, so whatever source address the node lets through can be answered.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;
use pinhole::dataplane::Applied;
use pinhole::dataplane::Backend;
use pinhole::dataplane::Dataplane;
use pinhole::dataplane::Observed;
use pinhole::dataplane::command::Tools;
use pinhole::dataplane::condition::Condition;
use pinhole::dataplane::conntrack;
use pinhole::dataplane::conntrack::CleanUp;
use pinhole::dataplane::iptables::Iptables;
use pinhole::dataplane::nftables::Nftables;
use pinhole::dataplane::settings::Firewall;
use pinhole::dataplane::settings::Flavor;
use pinhole::dataplane::settings::Settings;
use pinhole::model::address::ExternalAddress;
use pinhole::model::handover::UdpHandover;
use pinhole::model::holder::ObjectName;
use pinhole::model::mapping::Address;
use pinhole::model::mapping::Mapping;
use pinhole::model::port::PortRange;
use pinhole::ruleset::Ruleset;
use pinhole::ruleset::desired::desired;
use pinhole::ruleset::endpoint::Endpoint;
use pinhole::ruleset::endpoint::Leaving;
use pinhole::ruleset::node::NodeFacts;
use tempfile::TempDir;

use crate::kernel::namespace::Namespace;

/// The addresses of pod a.
pub(crate) const A: &[&str] = &["10.244.1.9", "fd00:244:1::9"];
/// The addresses of pod b.
pub(crate) const B: &[&str] = &["10.244.1.10", "fd00:244:1::a"];

/// A node, two pods and a client.
pub(crate) struct Lab {
    pub(crate) node: Namespace,
    pub(crate) a: Namespace,
    pub(crate) b: Namespace,
    pub(crate) client: Namespace,
    pub(crate) firewall: Firewall,
    /// The flavour of the programs that play the node's other software.
    pub(crate) flavor: Flavor,
    /// Lets elements of nftables be changed by the program too.
    pub(crate) by_program: bool,
    pub(crate) settings: Settings,
    observed: Observed,
    directory: TempDir,
}

impl Lab {
    /// Builds everything; nothing is programmed yet.
    pub(crate) fn new(firewall: Firewall) -> Self {
        let [node, a, b, client] = [(); 4].map(|()| Namespace::new());
        let mut links = String::from("link add cni0 type bridge\n");
        for (name, namespace) in [("port-a", &a), ("port-b", &b), ("eth0", &client)] {
            writeln!(links, "link add {name} type veth peer name eth0 netns {}", namespace.path()).unwrap();
        }
        links.push_str(
            "link set port-a master cni0\nlink set port-b master cni0\n\
             addr add 10.244.1.1/24 dev cni0\naddr add fd00:244:1::1/64 dev cni0 nodad\n\
             addr add 198.51.100.1/24 dev eth0\naddr add 2001:db8:51::1/64 dev eth0 nodad\n\
             addr add 203.0.113.7/32 dev eth0\naddr add 203.0.113.8/32 dev eth0\naddr add 2001:db8::7/128 dev eth0 nodad\n\
             link set port-a up\nlink set port-b up\nlink set cni0 up\nlink set eth0 up\n",
        );
        node.sh(&format!("ip -batch - <<'END'\n{links}END"));
        node.sysctl("net/ipv4/ip_forward", "1");
        node.sysctl("net/ipv6/conf/all/forwarding", "1");
        for (namespace, v4, via4, v6, via6) in [
            (&a, "10.244.1.9/24", "10.244.1.1", "fd00:244:1::9/64", "fd00:244:1::1"),
            (&b, "10.244.1.10/24", "10.244.1.1", "fd00:244:1::a/64", "fd00:244:1::1"),
            (&client, "198.51.100.9/24", "198.51.100.1", "2001:db8:51::9/64", "2001:db8:51::1"),
        ] {
            namespace.sh(&format!(
                "ip -batch - <<'END'\n\
                 link set eth0 up\naddr add {v4} dev eth0\naddr add {v6} dev eth0 nodad\n\
                 route add default via {via4}\nroute add ::/0 via {via6}\nEND"
            ));
        }
        for neighbour in [A[0], B[0], "198.51.100.9", A[1], B[1], "2001:db8:51::9"] {
            node.wait_for(neighbour.parse().unwrap());
        }
        let directory = TempDir::new().unwrap();
        let tools = Tools { directory: None, lock_file: Some(directory.path().join("xtables.lock")) };
        let settings = Settings { tools, ..Settings::default() };
        let flavor = match firewall {
            Firewall::Iptables(flavor) => flavor,
            Firewall::Nftables => Flavor::Nft,
        };
        let (by_program, observed) = (false, Observed::default());
        let lab = Self { node, a, b, client, firewall, flavor, by_program, settings, observed, directory };
        lab.bridge_calls_iptables(false);
        lab
    }

    /// Lets the bridge pass its packets through iptables, or not. False where it cannot, because `br_netfilter` is not
    /// loaded: loading it would change the bridges of the whole machine, so tests do not, and say what they leave out.
    pub(crate) fn bridge_calls_iptables(&self, calls: bool) -> bool {
        let keys = ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"];
        let can = keys.iter().all(|key| self.node.has_sysctl(key));
        if can {
            for key in keys {
                self.node.sysctl(key, if calls { "1" } else { "0" });
            }
        }
        if calls && !can {
            // Past the harness, which shows what a test prints only when it fails.
            let skipped = "SKIPPED: br_netfilter is not loaded (modprobe br_netfilter), so nothing is tried on a bridge that calls iptables";
            let _ = writeln!(
                std::io::stderr(),
                "{skipped}: {}",
                std::thread::current().name().unwrap_or_default()
            );
        }
        can || !calls
    }

    /// A directory that vanishes with the lab.
    pub(crate) fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// What the node knows about itself.
    pub(crate) fn facts() -> NodeFacts {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        NodeFacts {
            addresses: [
                "198.51.100.1",
                "203.0.113.7",
                "203.0.113.8",
                "10.244.1.1",
                "2001:db8:51::1",
                "2001:db8::7",
            ]
            .map(ip)
            .into(),
            node_v4: Some("203.0.113.7".parse().unwrap()),
            node_v6: Some("2001:db8::7".parse().unwrap()),
            include: Vec::new(),
            exclude: Vec::new(),
            pod_cidrs: vec![net("10.244.1.0/24"), net("fd00:244:1::/64")],
            pods: BTreeSet::new(),
            cluster_cidrs: vec![net("10.244.0.0/16"), net("fd00:244::/48")],
            node_cidrs: Vec::new(),
            masquerade: None,
        }
    }

    /// Programs a node with these facts. Everything must be programmable.
    pub(crate) fn apply_as(&mut self, facts: &NodeFacts, endpoints: &[Endpoint]) -> Applied {
        let desired = desired(endpoints, facts);
        assert_eq!(desired.refused, []);
        let applied = self.apply_ruleset(&desired.ruleset);
        assert!(applied.failures.is_empty(), "{:?}", applied.failures);
        assert_eq!(applied.refused, []);
        assert_eq!(applied.observed.ruleset, desired.ruleset, "what is told is what was asked for");
        applied
    }

    /// Programs the node.
    pub(crate) fn apply(&mut self, endpoints: &[Endpoint]) -> Applied {
        self.apply_as(&Self::facts(), endpoints)
    }

    /// Programs a ruleset, whatever comes of it.
    pub(crate) fn apply_ruleset(&mut self, desired: &Ruleset) -> Applied {
        let backend = self.backend();
        let observed = std::mem::take(&mut self.observed);
        let applied = self.on_node(async || backend.apply(desired, observed).await);
        self.observed = applied.observed.clone();
        applied
    }

    /// Reads the kernel, as an agent does at every resync.
    pub(crate) fn read(&mut self) -> Observed {
        let backend = self.backend();
        self.observed = self.on_node(async || backend.read().await).unwrap();
        self.observed.clone()
    }

    /// Reads and puts right whatever others did, by a backend that goes on from what it knows.
    pub(crate) fn repair(&self, backend: &Backend, endpoints: &[Endpoint]) -> Applied {
        let wanted = desired(endpoints, &Self::facts()).ruleset;
        let applied = self.on_node(async || {
            let observed = backend.read().await.unwrap();
            backend.apply(&wanted, observed).await
        });
        assert!(applied.failures.is_empty(), "{:?}", applied.failures);
        applied
    }

    /// What keeps entries from working.
    pub(crate) fn conditions(&self) -> Vec<Condition> {
        let backend = self.backend();
        let desired = desired(&[], &Self::facts()).ruleset;
        self.on_node(async || backend.conditions(&desired).await)
    }

    /// Programs the node and ends connections that follow rules which are gone.
    pub(crate) fn hand_over(&mut self, endpoints: &[Endpoint], gone: &[&str], handover: UdpHandover) {
        let applied = self.apply(endpoints);
        let gone: BTreeSet<IpAddr> = gone.iter().map(|ip| ip.parse().unwrap()).collect();
        // Which entries these are, is told by the endpoints.
        let desired = desired(endpoints, &Self::facts());
        let clean_up = CleanUp {
            changes: &applied.changes,
            gone: &gone,
            terminating: &desired.terminating,
            handover,
            said: &desired.udp_handover,
        };
        let settings = self.settings.clone();
        self.on_node(async || conntrack::clean_up(&settings, &clean_up).await).unwrap();
    }

    /// Runs asynchronous work in the node's namespace, on one thread: programs that it starts are in it too.
    pub(crate) fn on_node<T: Send, F: Future<Output = T>>(&self, work: impl FnOnce() -> F + Send) -> T {
        self.node.run(|| {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work())
        })
    }

    /// The backend under test.
    pub(crate) fn backend(&self) -> Backend {
        let settings = self.settings.clone();
        match self.firewall {
            Firewall::Nftables if self.by_program => Backend::Nftables(Nftables::by_program(settings)),
            Firewall::Nftables => Backend::Nftables(Nftables::new(settings)),
            Firewall::Iptables(flavor) => Backend::Iptables(Iptables::new(flavor, settings)),
        }
    }

    /// Puts another backend under test.
    pub(crate) fn switch_to(&mut self, firewall: Firewall) {
        self.firewall = firewall;
    }

    /// Whether the backend under test is nftables.
    pub(crate) fn is_nftables(&self) -> bool {
        self.firewall == Firewall::Nftables
    }

    /// Lets every program that the dataplane starts leave a line in a file; which file.
    pub(crate) fn log_programs(&mut self) -> std::path::PathBuf {
        let directory = self.directory().join("logged");
        let log = self.directory().join("started");
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(&log, "").unwrap();
        let mut names = vec!["nft".to_owned(), "conntrack".to_owned()];
        for flavor in Flavor::ALL {
            for base in ["iptables", "ip6tables"] {
                names.extend(["", "-save", "-restore"].map(|action| format!("{base}-{flavor}{action}")));
            }
        }
        for name in names {
            let real = self.node.sh(&format!("command -v {name}"));
            let script =
                format!("#!/bin/sh\necho {name} >> '{}'\nexec {} \"$@\"\n", log.display(), real.trim());
            let path = directory.join(name);
            std::fs::write(&path, script).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        self.settings.tools.directory = Some(directory);
        log
    }

    /// Runs `iptables` of the lab's flavour on the node.
    pub(crate) fn iptables(&self, arguments: &str) -> String {
        self.node.sh(&self.command("iptables", arguments))
    }

    /// The same for IPv6.
    pub(crate) fn ip6tables(&self, arguments: &str) -> String {
        self.node.sh(&self.command("ip6tables", arguments))
    }

    /// A command line for a program of the lab's flavour; `arguments` may start with `-save`.
    pub(crate) fn command(&self, program: &str, arguments: &str) -> String {
        let lock = self.directory.path().join("xtables.lock");
        let space =
            if arguments.starts_with("-save") || arguments.starts_with("-restore") { "" } else { " -w 5 " };
        format!("XTABLES_LOCKFILE={} {program}-{}{space}{arguments}", lock.display(), self.flavor)
    }

    /// Everything in both families' tables but comments.
    pub(crate) fn saved(&self) -> String {
        if self.is_nftables() {
            // A table that was made anew comes last.
            let list = "nft list tables | sort | while read -r table; do nft list $table; done";
            return self.node.sh(&format!("{list} | sed -E 's/packets [0-9]+ bytes [0-9]+//'"));
        }
        let saved = self.iptables("-save") + &self.ip6tables("-save");
        // Counters of built-in chains are printed with their policies.
        let kept = saved.lines().filter(|line| !line.starts_with('#'));
        kept.map(|line| line.split(" [").next().unwrap_or(line).to_owned() + "\n").collect()
    }
}

/// `external` (`203.0.113.8:80/tcp`, or `80/tcp` on the node's own address) for a pod with these addresses.
pub(crate) fn endpoint(external: &str, pod: &str, ips: &[&str]) -> Endpoint {
    forward(external, pod, ips, None)
}

/// The same to another pod port.
pub(crate) fn to_port(external: &str, pod: &str, ips: &[&str], first: u16) -> Endpoint {
    forward(external, pod, ips, Some(first))
}

/// The same, of which connections end with their permission.
pub(crate) fn terminating(mut endpoint: Endpoint) -> Endpoint {
    endpoint.mapping = endpoint.mapping.terminating_existing(true);
    endpoint
}

/// The same with a pod that leaves the cluster so.
pub(crate) fn leaving(endpoint: Endpoint, leaving: Leaving) -> Endpoint {
    Endpoint { leaving, ..endpoint }
}

/// The same for these sources only.
pub(crate) fn only_from(mut endpoint: Endpoint, sources: &[&str]) -> Endpoint {
    let sources = sources.iter().map(|source| source.parse().unwrap()).collect();
    endpoint.mapping = endpoint.mapping.with_allowed_sources(sources);
    endpoint
}

fn forward(external: &str, pod: &str, ips: &[&str], first: Option<u16>) -> Endpoint {
    let (external, protocol) = external.rsplit_once('/').unwrap();
    let (address, ports) = external.rsplit_once(':').unwrap_or(("", external));
    let address = match address.trim_matches(['[', ']']) {
        "" => Address::Node,
        fixed => Address::Fixed(ExternalAddress::new(fixed.parse().unwrap()).unwrap()),
    };
    let ports: PortRange = ports.parse().unwrap();
    let first = first.map_or(ports.first(), |port| pinhole::model::port::Port::new(port).unwrap());
    Endpoint {
        mapping: Mapping::new(address, protocol.parse().unwrap(), ports, first).unwrap(),
        pod: ObjectName::new("default", pod),
        uid: format!("uid-of-{pod}"),
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        leaving: Leaving::default(),
        udp_handover: None,
        suspended: false,
    }
}
