//! The whole agent on a real kernel: pods are fed in as a watch would, and packets show what came of it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use pinhole::admission::policy::Policy;
use pinhole::agent::Agent;
use pinhole::agent::Config;
use pinhole::agent::Parts;
use pinhole::agent::addresses;
use pinhole::agent::addresses::Filter;
use pinhole::agent::brake::BrakeOverTime;
use pinhole::agent::flows::Flows;
use pinhole::agent::links;
use pinhole::agent::links::Linking;
use pinhole::agent::masquerade::Masquerading;
use pinhole::agent::node::Networks;
use pinhole::agent::node::Node;
use pinhole::agent::report::Reporter;
use pinhole::agent::vigil::Vigil;
use pinhole::api::object::Kind;
use pinhole::api::object::Object;
use pinhole::cluster::nat_pools;
use pinhole::cluster::node_pods::NodePods;
use pinhole::cluster::resource::Resource;
use pinhole::cluster::watch::News;
use pinhole::dataplane::Backend;
use pinhole::dataplane::Dataplane;
use pinhole::dataplane::Observed;
use pinhole::dataplane::drift::Watcher;
use pinhole::dataplane::settings::Firewall;
use pinhole::dataplane::settings::Flavor;
use pinhole::model::handover::UdpHandover;
use pinhole::ruleset::brake::Brake;
use pinhole::ruleset::desired::desired;
use pinhole::telemetry::metrics;
use pinhole::telemetry::metrics::agent::AgentMetrics;
use pinhole::telemetry::readiness::Readiness;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::kernel::lab::A;
use crate::kernel::lab::B;
use crate::kernel::lab::Lab;
use crate::kernel::lab::endpoint;
use crate::kernel::rewriting::while_connecting;
use crate::kernel::with_every_backend;

const POD: Resource = Resource::Holder(Kind::Pod);
const PATIENCE: Duration = Duration::from_secs(20);
const RESYNC: Duration = Duration::from_mins(5);

/// An agent that runs on the lab's node.
struct Running {
    pods: Arc<NodePods>,
    kernel: Arc<Backend>,
    metrics: AgentMetrics,
    readiness: Readiness,
    stop: CancellationToken,
    tasks: [JoinHandle<()>; 2],
}

impl Running {
    /// Starts an agent on the node, which the caller's thread must be in, and tells it of these pods.
    fn start(lab: &Lab, grace: Duration, pods: Vec<Object>) -> Self {
        Self::start_with(lab, grace, pods, Linking::default())
    }

    /// Likewise, with links.
    fn start_with(lab: &Lab, grace: Duration, pods: Vec<Object>, linking: Linking) -> Self {
        let policy = Arc::new(Policy::default());
        let known = Arc::new(NodePods::new(Arc::clone(&policy)));
        let kernel = Arc::new(lab.backend());
        let metrics = AgentMetrics::register(&mut metrics::registry());
        let readiness = Readiness::new();
        let flows = Flows::default();
        // The link to the client has a public address too, and the lowest.
        let filter = Filter { include: Vec::new(), exclude: vec!["198.51.100.0/24".parse().unwrap()] };
        let networks = Networks { filter, ..Networks::default() };
        let parts = Parts {
            vigil: Vigil::new(Watcher::new(&kernel, lab.settings.clone()), RESYNC),
            dataplane: Arc::clone(&kernel),
            pods: Arc::clone(&known),
            granting: None,
            node: Node::new(networks, addresses::read),
            masquerading: Masquerading::default(),
            linking,
            brake: BrakeOverTime::new(Brake::default(), grace),
            flows: Some(flows.clone()),
            reporter: Reporter::new("node-1".into(), true, metrics.clone(), None),
            metrics: metrics.clone(),
            in_sync: readiness.require("rules", "starting"),
        };
        let config = Config {
            node_name: "node-1".into(),
            policy,
            resync: RESYNC,
            address_check: Duration::from_secs(5),
            drift_check: Duration::from_millis(1500),
        };
        let stop = CancellationToken::new();
        let tasks = [
            tokio::spawn(Agent::new(config, parts).run(stop.clone())),
            tokio::spawn(flows.run(lab.settings.clone(), UdpHandover::Drain, metrics.clone())),
        ];
        let node = json!({"kind": "Node", "spec": {"podCIDRs": ["10.244.1.0/24", "fd00:244:1::/64"]}});
        known.feed(Resource::Node, News::Listed(vec![serde_json::from_value(node).unwrap()]));
        known.feed(POD, News::Listed(pods));
        Self { pods: known, kernel, metrics, readiness, stop, tasks }
    }

    fn apply(&self, pod: Object) {
        self.pods.feed(POD, News::Applied(Box::new(pod)));
    }

    /// Waits until the kernel has exactly these IPv4 entries.
    async fn until(&self, expected: &[&str]) {
        let mut found = Vec::new();
        let waited = tokio::time::timeout(PATIENCE, async {
            loop {
                let observed = self.kernel.read().await.unwrap().ruleset;
                let v4 = observed.entries().filter(|entry| entry.key.external.is_ipv4());
                found = v4.map(ToString::to_string).collect();
                if found == expected {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let in_time = waited.await.is_ok();
        assert!(in_time, "{expected:?}, but there is {found:?} ({:?})", self.readiness.report());
    }

    async fn ready(&self) {
        let waited = tokio::time::timeout(PATIENCE, async {
            while !self.readiness.is_ready() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(waited.await.is_ok(), "{:?}", self.readiness.report());
    }

    async fn end(self) {
        self.stop.cancel();
        let [agent, flows] = self.tasks;
        tokio::time::timeout(PATIENCE, agent).await.unwrap().unwrap();
        flows.abort();
    }
}

/// A ready pod of one workload, created at this second of a minute.
fn pod(name: &str, second: u8, expose: &str, ips: &[&str]) -> Object {
    let ips: Vec<_> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    let owner = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "w", "controller": true});
    let json = json!({
        "kind": "Pod",
        "metadata": {
            "namespace": "default", "name": name, "uid": format!("uid-of-{name}"),
            "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z"),
            "annotations": {"pinhole.dev/expose": expose}, "ownerReferences": [owner],
        },
        "spec": {"nodeName": "node-1"},
        "status": {
            "phase": "Running", "podIPs": ips, "conditions": [{"type": "ContainersReady", "status": "True"}],
        },
    });
    serde_json::from_value(json).unwrap()
}

/// Asks a few times, until the answer is the expected one.
async fn eventually<T: PartialEq + std::fmt::Debug>(expected: T, mut ask: impl FnMut() -> T) {
    let mut answer = ask();
    for _ in 0..50 {
        if answer == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        answer = ask();
    }
    assert_eq!(answer, expected);
}

const FOREVER: Duration = Duration::from_mins(10);

fn r05_r10_r11_rules_follow_the_pods_and_connections_survive_the_agent(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:8080");
    let lab = &*lab;
    lab.on_node(async || {
        let agent = Running::start(lab, FOREVER, vec![pod("a", 1, "80:8080", A)]);
        agent.until(&["203.0.113.7:80/tcp -> 10.244.1.9:8080"]).await;
        // IPv6 has a transaction of its own, after this one.
        agent.ready().await;
        assert_eq!(lab.client.tcp("203.0.113.7:80"), Ok("a 198.51.100.9".into()));
        assert_eq!(lab.client.tcp("[2001:db8::7]:80"), Ok("a 2001:db8:51::9".into()));
        let mut established = lab.client.connect("203.0.113.7:80").unwrap();
        established.ask().unwrap();

        agent.apply(pod("a", 1, "81:8080", A));
        agent.until(&["203.0.113.7:81/tcp -> 10.244.1.9:8080"]).await;
        assert_eq!(lab.client.tcp("203.0.113.7:80"), Err(io::ErrorKind::ConnectionRefused), "closed at once");
        assert_eq!(lab.client.tcp("203.0.113.7:81"), Ok("a 198.51.100.9".into()));
        assert_eq!(established.ask().unwrap(), "a 198.51.100.9", "an edit ends no connection");
        agent.ready().await;
        agent.end().await;

        let before = lab.saved();
        let agent = Running::start(lab, FOREVER, vec![pod("a", 1, "81:8080", A)]);
        agent.ready().await;
        assert_eq!(lab.saved(), before, "a restart changes nothing");
        assert_eq!(established.ask().unwrap(), "a 198.51.100.9");
        agent.end().await;

        let agent = Running::start(lab, FOREVER, Vec::new());
        agent.until(&[]).await;
        assert_eq!(lab.client.tcp("203.0.113.7:81"), Err(io::ErrorKind::ConnectionRefused));
        agent.end().await;
    });
}

fn r45_restarts_of_the_agent_lose_no_connection(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:8080");
    let pods = || vec![pod("a", 1, "80:8080,7000-7010/udp", A)];
    let start_and_end = async |lab: &Lab| {
        let agent = Running::start(lab, FOREVER, pods());
        agent.ready().await;
        agent.end().await;
    };
    lab.on_node(async || start_and_end(lab).await);
    let mut established = lab.client.connect("203.0.113.7:80").unwrap();
    while_connecting(lab, |lab| {
        for _ in 0..5 {
            lab.on_node(async || start_and_end(lab).await);
            assert_eq!(established.ask().unwrap(), "a 198.51.100.9");
        }
    });
}

fn r54_links_of_a_pool_are_used_while_it_names_them_and_no_connection_is_lost(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:8080");
    let (known_tx, known_rx) = watch::channel(None);
    let say = |links: serde_json::Value| {
        let object = json!({
            "apiVersion": "pinhole.dev/v1alpha1", "kind": "NatPool", "metadata": {"name": "edge"},
            "spec": {"addresses": [], "links": links},
        });
        let pools = BTreeMap::from([("edge".to_owned(), Arc::new(serde_json::from_value(object).unwrap()))]);
        known_tx.send_if_modified(|known| links::hear(known, nat_pools::News::Known(Arc::new(pools))));
    };
    let routed = |lab: &Lab| {
        let rules = lab.node.sh("ip rule list");
        (
            rules.contains("fwmark 0x10/0x70"),
            lab.node.sh("ip route list table all proto 117").trim().to_owned(),
        )
    };
    say(json!([]));
    let linking = Linking::by_flags(lab.settings.links.clone()).with_pools(known_rx);
    let pods = || vec![pod("a", 1, "80:8080", A)];
    lab.on_node(async || {
        let agent = Running::start(lab, FOREVER, pods());
        agent.ready().await;
        agent.end().await;
    });
    let mut established = lab.client.connect("203.0.113.7:80").unwrap();
    established.ask().unwrap();
    while_connecting(lab, |lab| {
        lab.on_node(async || {
            let agent = Running::start_with(lab, FOREVER, pods(), linking);
            let by = |gateway: &str| (true, format!("default via {gateway} dev eth0 table 101 onlink"));
            for (links, expected) in [
                (json!([{"interface": "eth0", "gateway": "198.51.100.9", "table": 101}]), by("198.51.100.9")),
                (json!([{"interface": "eth0", "gateway": "198.51.100.8", "table": 101}]), by("198.51.100.8")),
                (json!([]), (false, String::new())),
            ] {
                say(links);
                eventually(expected, || routed(lab)).await;
                assert_eq!(established.ask().unwrap(), "a 198.51.100.9");
            }
            assert_eq!(agent.metrics.repairs.get(), 0, "what was asked for is no repair");
            agent.end().await;
        });
    });
}

fn r24_a_rollout_keeps_udp_flows_with_the_old_pod_until_it_is_gone(lab: &mut Lab) {
    let (_a, _b) = (lab.a.serve("a", "[::]:53"), lab.b.serve("b", "[::]:53"));
    let lab = &*lab;
    lab.on_node(async || {
        let old = pod("a", 1, "5353:53/udp", A);
        let agent = Running::start(lab, FOREVER, vec![old.clone()]);
        agent.until(&["203.0.113.7:5353/udp -> 10.244.1.9:53"]).await;
        let flow = lab.client.flow("203.0.113.7:5353");
        assert_eq!(flow.ask(), Ok("a 198.51.100.9".into()));

        agent.apply(pod("b", 2, "5353:53/udp", B));
        agent.until(&["203.0.113.7:5353/udp -> 10.244.1.10:53"]).await;
        agent.ready().await;
        assert_eq!(lab.client.udp("203.0.113.7:5353"), Ok("b 198.51.100.9".into()), "new flows");
        assert_eq!(flow.ask(), Ok("a 198.51.100.9".into()), "the old flow");

        agent.pods.feed(POD, News::Deleted(Box::new(old)));
        eventually(Ok("b 198.51.100.9".into()), || flow.ask()).await;
        agent.end().await;
    });
}

fn a_suspended_pod_s_ports_are_closed_to_the_outside_and_to_the_node_and_its_own_connections_go_on(
    lab: &mut Lab,
) {
    let (_a, _dns) = (lab.a.serve("a", "[::]:8080"), lab.a.serve("dns", "[::]:53"));
    // A program of the node must not answer in its place.
    let (_node, _client) = (lab.node.serve("node", "[::]:80"), lab.client.serve("client", "[::]:9000"));
    let lab = &*lab;
    lab.on_node(async || {
        let asks = |suspended: Option<&str>| {
            let mut pod = pod("a", 1, "203.0.113.8:80:8080,203.0.113.8:5353:53/udp", A);
            let key = "pinhole.dev/suspended".to_owned();
            pod.metadata.annotations.extend(suspended.map(|word| (key, word.to_owned())));
            pod
        };
        let [dns, web] = ["203.0.113.8:80/tcp -> 10.244.1.9:8080", "203.0.113.8:5353/udp -> 10.244.1.9:53"];
        let agent = Running::start(lab, FOREVER, vec![asks(None)]);
        agent.until(&[dns, web]).await;
        agent.ready().await;
        let mut established = lab.client.connect("203.0.113.8:80").unwrap();
        established.ask().unwrap();
        let flow = lab.client.flow("203.0.113.8:5353");
        assert_eq!(flow.ask(), Ok("dns 198.51.100.9".into()));

        agent.apply(asks(Some("true")));
        agent.until(&["203.0.113.8:80/tcp -> reserved", "203.0.113.8:5353/udp -> reserved"]).await;
        agent.ready().await;
        assert_eq!(
            lab.client.tcp("203.0.113.8:80"),
            Err(io::ErrorKind::TimedOut),
            "dropped, and not refused"
        );
        assert_eq!(established.ask().unwrap(), "a 198.51.100.9", "what is established goes on");
        eventually(Err(io::ErrorKind::TimedOut), || flow.ask()).await;
        assert_eq!(lab.a.tcp("198.51.100.9:9000"), Ok("client 203.0.113.8".into()), "it leaves as ever");

        agent.apply(asks(Some("false")));
        agent.until(&[dns, web]).await;
        assert_eq!(lab.client.tcp("203.0.113.8:80"), Ok("a 198.51.100.9".into()));
        assert_eq!(established.ask().unwrap(), "a 198.51.100.9");
        agent.end().await;
    });
}

fn the_brake_keeps_ports_open_while_the_cluster_seems_empty(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:8080");
    let lab = &*lab;
    lab.on_node(async || {
        let expose: Vec<_> = (7000..7025).map(|port| format!("{port}:8080")).collect();
        let agent = Running::start(lab, FOREVER, vec![pod("a", 1, &expose.join(","), A)]);
        agent.ready().await;
        agent.pods.feed(POD, News::Listed(Vec::new()));
        let missing = || agent.readiness.report()[0].missing.clone().unwrap_or_default();
        let braked = "the brake holds back a removal: 50 of 50 entries would be removed at once";
        eventually(braked.to_owned(), missing).await;
        assert_eq!(lab.client.tcp("203.0.113.7:7012"), Ok("a 198.51.100.9".into()));
        agent.end().await;

        let meant = Running::start(lab, Duration::ZERO, Vec::new());
        meant.until(&[]).await;
        assert_eq!(lab.client.tcp("203.0.113.7:7012"), Err(io::ErrorKind::ConnectionRefused));
        meant.end().await;
    });
}

/// What others do to a node, and what it is called.
fn damages(lab: &Lab) -> Vec<String> {
    // As a service does that is restarted: everything goes, and its own rules come back.
    let reloads = [
        "nft flush ruleset; nft -f - <<'END'\ntable inet filter { chain input { type filter hook input priority 0; }; }\nEND",
        "nft flush ruleset; nft -f - <<'END'\ntable inet firewalld { chain filter_FORWARD { type filter hook forward priority 10; }; }\nEND",
    ];
    let iptables = |arguments: &str| lab.command("iptables", arguments);
    // As ufw and docker do: chains of theirs, at the head of the built-in ones.
    let restored = "*filter\n:FORWARD ACCEPT [0:0]\n:ufw-before-forward - [0:0]\n-A FORWARD -j ufw-before-forward\nCOMMIT\n\
                    *nat\n:PREROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\nCOMMIT\n";
    let restore = format!("printf '%b' '{}' | {}", restored.replace('\n', "\\n"), iptables("-restore"));
    let mut damages: Vec<String> = if lab.is_nftables() {
        [
            "nft delete table ip PINHOLE",
            "nft flush chain ip PINHOLE c_ingress",
            "nft delete element ip PINHOLE m_ports { 203.0.113.7 . tcp . 80 }",
            "nft insert rule ip PINHOLE c_ingress ip saddr 198.51.100.0/24 drop",
            "nft add chain ip PINHOLE theirs '{ type filter hook forward priority 0; policy drop; }'",
        ]
        .map(str::to_owned)
        .into()
    } else {
        [
            "-F; $ -t nat -F",
            "-t nat -F PINHOLE-T-CB007107-001",
            "-t nat -F PREROUTING; $ -t nat -F OUTPUT; $ -t nat -F PINHOLE-DNAT; $ -t nat -X PINHOLE-DNAT",
            "-t nat -I PREROUTING 1 -s 198.51.100.0/24 -j ACCEPT",
            "-t nat -I PINHOLE-T-CB007107-001 1 -s 198.51.100.0/24 -j ACCEPT",
        ]
        .map(|script| iptables(script).replace('$', &lab.command("iptables", "")))
        .into_iter()
        .chain([restore])
        .collect()
    };
    if lab.flavor == Flavor::Nft {
        damages.extend(reloads.map(str::to_owned));
    }
    damages
}

fn r36_whatever_others_do_is_put_right_within_seconds_and_named(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:8080");
    let lab = &*lab;
    lab.on_node(async || {
        let agent = Running::start(lab, FOREVER, vec![pod("a", 1, "80:8080", A)]);
        agent.ready().await;
        for damage in &damages(lab) {
            let before = agent.metrics.repairs.get();
            lab.node.sh(damage);
            assert!(lab.client.tcp("203.0.113.7:80").is_err(), "{damage}");
            let waiting = tokio::time::Instant::now();
            let repaired = async {
                while agent.metrics.repairs.get() == before {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            assert!(tokio::time::timeout(PATIENCE, repaired).await.is_ok(), "{damage}: not noticed");
            assert!(waiting.elapsed() < Duration::from_secs(5), "{damage}: {:?}", waiting.elapsed());
            agent.ready().await;
            eventually(Ok("a 198.51.100.9".into()), || lab.client.tcp("203.0.113.7:80")).await;
        }
        agent.end().await;
    });
}

fn r41_an_idle_node_starts_no_program(lab: &mut Lab) {
    let log = lab.log_programs();
    let lab = &*lab;
    lab.on_node(async || {
        let agent = Running::start(lab, FOREVER, vec![pod("a", 1, "80:8080", A)]);
        agent.ready().await;
        // Connections of the start are looked at off the loop.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let started = std::fs::read_to_string(&log).unwrap();
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(
            std::fs::read_to_string(&log).unwrap(),
            started,
            "nothing happened, and programs were started"
        );
        agent.end().await;
    });
}

fn r48_changes_of_others_are_told_from_ours_and_from_what_is_none_of_ours(lab: &mut Lab) {
    let lab = &*lab;
    lab.on_node(async || {
        let backend = lab.backend();
        let watcher = Watcher::new(&backend, lab.settings.clone()).unwrap();
        let wanted = |ports: std::ops::Range<u16>| {
            let endpoints: Vec<_> = ports.map(|port| endpoint(&format!("{port}/tcp"), "a", A)).collect();
            desired(&endpoints, &Lab::facts()).ruleset
        };
        let observed = backend.read().await.unwrap();
        let observed = backend.apply(&wanted(80..90), observed).await.observed;
        watcher.settle(&observed).await.unwrap();
        let look = async |observed: &Observed| watcher.look(observed).await.unwrap();
        assert_eq!(look(&observed).await, None);

        let observed = backend.apply(&wanted(80..91), observed).await.observed;
        watcher.settle(&observed).await.unwrap();
        assert_eq!(look(&observed).await, None, "our own change is none of others");
        lab.node.sh("nft add table ip other; nft add chain ip other mine");
        assert_eq!(look(&observed).await, None, "what others do among themselves is theirs");
        lab.node
            .sh("nft -f - <<'END' || true\nadd table ip other\ndelete element ip nowhere nothing { 1 }\nEND");
        assert_eq!(look(&observed).await, None, "what failed has changed nothing");

        if lab.is_nftables() {
            lab.node.sh("nft delete element ip PINHOLE m_ports { 203.0.113.7 . tcp . 80 }");
        } else {
            lab.iptables("-t nat -F PREROUTING");
        }
        let drift = look(&observed).await.unwrap();
        match lab.firewall {
            Firewall::Nftables => assert_eq!(drift.by, ["nft"]),
            Firewall::Iptables(Flavor::Nft) => assert_eq!(drift.by, ["iptables-nft"]),
            Firewall::Iptables(Flavor::Legacy) => assert!(drift.by.is_empty(), "{drift:?}"),
        }
    });
}

/// A node on which kube-proxy or a CNI changes its own tables all the time.
#[test]
fn r48_our_tables_are_not_read_for_changes_of_others_among_themselves() {
    let lab = Lab::new(Firewall::Nftables);
    let lab = &lab;
    lab.on_node(async || {
        let backend = lab.backend();
        let watcher = Watcher::new(&backend, lab.settings.clone()).unwrap();
        let wanted = desired(&[endpoint("80/tcp", "a", A)], &Lab::facts()).ruleset;
        let observed = backend.read().await.unwrap();
        let observed = backend.apply(&wanted, observed).await.observed;
        watcher.settle(&observed).await.unwrap();
        // Whoever reads the tables to compare them with nothing finds a difference.
        let nothing = Observed::default();
        for change in ["nft add table ip busy", "nft add chain ip busy c", "nft add rule ip busy c accept", "nft flush table ip busy"] {
            lab.node.sh(change);
            assert_eq!(watcher.look(&nothing).await.unwrap(), None, "{change}");
        }
        lab.node.sh("nft add element ip PINHOLE s_closed { 203.0.113.7 . tcp . 90 }");
        assert_eq!(watcher.look(&observed).await.unwrap().unwrap().by, ["nft"]);
        lab.node.sh("nft delete element ip PINHOLE s_closed { 203.0.113.7 . tcp . 90 }");
        assert_eq!(watcher.look(&observed).await.unwrap(), None, "it is as it was");

        // More than there is room for: nothing is known of what was touched, so all is read, and what differs is found.
        lab.node.sh("nft add set ip busy s '{ type ipv4_addr . inet_service; }'");
        let many = "seq 1 60000 | sed 's/.*/192.0.2.1 . &/' | paste -sd, | sed 's/.*/add element ip busy s { & }/' | nft -f -";
        lab.node.sh(many);
        assert!(watcher.look(&nothing).await.unwrap().is_some(), "it was read");
        lab.node.sh("nft flush set ip busy s");
        assert_eq!(watcher.look(&nothing).await.unwrap(), None, "but not again and again");
        lab.node.sh("nft delete element ip PINHOLE m_ports { 203.0.113.7 . tcp . 80 }");
        let waiting = tokio::time::Instant::now();
        while watcher.look(&observed).await.unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(waiting.elapsed() < Duration::from_secs(3), "{:?}", waiting.elapsed());
    });
}

with_every_backend! {
    r36_whatever_others_do_is_put_right_within_seconds_and_named,
    r41_an_idle_node_starts_no_program,
    r48_changes_of_others_are_told_from_ours_and_from_what_is_none_of_ours,
    r05_r10_r11_rules_follow_the_pods_and_connections_survive_the_agent,
    r24_a_rollout_keeps_udp_flows_with_the_old_pod_until_it_is_gone,
    r45_restarts_of_the_agent_lose_no_connection,
    r54_links_of_a_pool_are_used_while_it_names_them_and_no_connection_is_lost,
    a_suspended_pod_s_ports_are_closed_to_the_outside_and_to_the_node_and_its_own_connections_go_on,
    the_brake_keeps_ports_open_while_the_cluster_seems_empty,
}
