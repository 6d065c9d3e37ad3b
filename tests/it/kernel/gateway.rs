//! The external address is on one node, the pod on another, and the first has two links to the outside.
//!
//! ```text
//!             eth0 198.51.100.9 ---- eth0 198.51.100.1, external 203.0.113.7          cni0 with pods a and b
//! client                                                             the gateway
//! 198.18.0.9  eth1 192.0.2.9 ------- eth1 192.0.2.1, external 203.0.113.8             fabric 10.0.0.1
//!                                                                                         |
//!                                                        pod 10.244.2.9 --- cni0 --- eth0 10.0.0.2, another node
//! ```
//! Every network has an IPv6 one beside it. By default the gateway reaches the client by its eth0.

use std::collections::BTreeSet;
use std::io::ErrorKind;

use pinhole::dataplane::cleanup::cleanup;
use pinhole::dataplane::condition::ConditionKind;
use pinhole::dataplane::drift::Watcher;
use pinhole::dataplane::links::LinkMask;
use pinhole::dataplane::links::Links;
use pinhole::dataplane::links::LinksInUse;
use pinhole::dataplane::settings::ReturnPath;
use pinhole::model::masquerade::Policy;
use pinhole::ruleset::endpoint::Leaving;
use pinhole::ruleset::node::NodeFacts;

use crate::kernel::lab::A;
use crate::kernel::lab::Lab;
use crate::kernel::lab::endpoint;
use crate::kernel::lab::leaving;
use crate::kernel::lab::to_port;
use crate::kernel::namespace::Namespace;
use crate::kernel::with_every_backend;

/// The addresses of the pod on the other node.
pub(crate) const FAR: &[&str] = &["10.244.2.9", "fd00:244:2::9"];
const CLIENT: &str = "198.18.0.9";
const CLIENT_V6: &str = "2001:db8:99::9";

/// What is behind the gateway.
pub(crate) struct Beyond {
    pub(crate) node: Namespace,
    pub(crate) pod: Namespace,
}

impl Beyond {
    /// Adds a second link and another node to a lab, whose node becomes the gateway.
    pub(crate) fn build(lab: &Lab) -> Self {
        let [node, pod] = [(); 2].map(|()| Namespace::new());
        lab.node.sh(&format!(
            "ip -batch - <<'END'\n\
             link add eth1 type veth peer name eth1 netns {client}\n\
             link add fabric type veth peer name eth0 netns {node}\n\
             addr add 192.0.2.1/24 dev eth1\naddr add 2001:db8:52::1/64 dev eth1 nodad\n\
             addr add 10.0.0.1/24 dev fabric\naddr add fd00:1::1/64 dev fabric nodad\n\
             addr del 203.0.113.8/32 dev eth0\naddr add 203.0.113.8/32 dev eth1\n\
             addr add 2001:db8::8/128 dev eth1 nodad\n\
             link set eth1 up\nlink set fabric up\n\
             route add default via 198.51.100.9\nroute add ::/0 via 2001:db8:51::9\n\
             route add 10.244.2.0/24 via 10.0.0.2\nroute add fd00:244:2::/64 via fd00:1::2\nEND",
            client = lab.client.path(),
            node = node.path(),
        ));
        lab.client.sh("ip -batch - <<'END'\n\
             link set eth1 up\naddr add 192.0.2.9/24 dev eth1\naddr add 2001:db8:52::9/64 dev eth1 nodad\n\
             addr add 198.18.0.9/32 dev lo\naddr add 2001:db8:99::9/128 dev lo nodad\n\
             route replace default via 198.51.100.1 src 198.18.0.9\n\
             route replace ::/0 via 2001:db8:51::1 src 2001:db8:99::9\n\
             route add 203.0.113.8/32 via 192.0.2.1 src 198.18.0.9\n\
             route add 2001:db8::8/128 via 2001:db8:52::1 src 2001:db8:99::9\nEND");
        node.sh(&format!(
            "ip -batch - <<'END'\n\
             link add cni0 type veth peer name eth0 netns {pod}\n\
             addr add 10.0.0.2/24 dev eth0\naddr add fd00:1::2/64 dev eth0 nodad\n\
             addr add 10.244.2.1/24 dev cni0\naddr add fd00:244:2::1/64 dev cni0 nodad\n\
             link set eth0 up\nlink set cni0 up\nEND",
            pod = pod.path(),
        ));
        pod.sh("ip -batch - <<'END'\n\
             link set eth0 up\naddr add 10.244.2.9/24 dev eth0\naddr add fd00:244:2::9/64 dev eth0 nodad\n\
             route add default via 10.244.2.1\nroute add ::/0 via fd00:244:2::1\nEND");
        for namespace in [&node, &lab.node, &lab.client] {
            namespace.sysctl("net/ipv4/ip_forward", "1");
            namespace.sysctl("net/ipv6/conf/all/forwarding", "1");
            // Packets of one connection may come and go by different links.
            for interface in ["all", "default", "lo", "eth0", "eth1"] {
                let key = format!("net/ipv4/conf/{interface}/rp_filter");
                if namespace.has_sysctl(&key) {
                    namespace.sysctl(&key, "0");
                }
            }
        }
        for neighbour in FAR {
            node.wait_for(neighbour.parse().unwrap());
        }
        for neighbour in ["10.0.0.2", "fd00:1::2", "192.0.2.9", "2001:db8:52::9"] {
            lab.node.wait_for(neighbour.parse().unwrap());
        }
        Self { node, pod }
    }

    /// Counts on the client what arrives with the address of the second link, by each link, from here on.
    fn count_arrivals(lab: &Lab) {
        lab.client.sh("nft -f - <<'END'\n\
             add table inet arrivals\n\
             delete table inet arrivals\n\
             table inet arrivals {\n\
             chain seen {\n\
             type filter hook prerouting priority -300\n\
             iifname eth0 ip saddr 203.0.113.8 counter comment \"wrong\"\n\
             iifname eth0 ip6 saddr 2001:db8::8 counter comment \"wrong\"\n\
             iifname eth1 ip saddr 203.0.113.8 counter comment \"right\"\n\
             iifname eth1 ip6 saddr 2001:db8::8 counter comment \"right\"\n\
             }\n}\nEND");
    }

    /// How many packets arrived since then by the wrong link, and by the right one.
    fn arrived(lab: &Lab) -> (u64, u64) {
        let listed = lab.client.sh("nft list table inet arrivals");
        let sum = |comment: &str| {
            let rules = listed.lines().filter(|line| line.contains(comment));
            let counted = rules.map(|line| line.split("packets ").nth(1).unwrap().split(' ').next().unwrap());
            counted.map(|packets| packets.parse::<u64>().unwrap()).sum()
        };
        (sum("wrong"), sum("right"))
    }

    /// Routes what the other node sends to the outside through the gateway.
    pub(crate) fn route_back(&self) {
        self.node.sh("ip route add default via 10.0.0.1; ip route add ::/0 via fd00:1::1");
    }
}

fn r54_a_pod_of_another_node_is_reached_and_answers_through_the_gateway(lab: &mut Lab) {
    let beyond = Beyond::build(lab);
    let (_far, _a) = (beyond.pod.serve("far", "[::]:8080"), lab.a.serve("a", "[::]:8080"));
    let wanted = [
        to_port("80/tcp", "far", FAR, 8080),
        to_port("53/udp", "far", FAR, 8080),
        to_port("81/tcp", "a", A, 8080),
    ];
    lab.apply(&wanted);
    // The other node knows no way to the client.
    assert_eq!(lab.client.tcp("203.0.113.7:80"), Ok("far 10.0.0.1".into()));
    assert_eq!(lab.client.udp("203.0.113.7:53"), Ok("far 10.0.0.1".into()));
    assert_eq!(lab.client.tcp("[2001:db8::7]:80"), Ok("far fd00:1::1".into()));
    assert_eq!(lab.client.udp("[2001:db8::7]:53"), Ok("far fd00:1::1".into()));
    assert_eq!(lab.a.tcp("203.0.113.7:80"), Ok("far 10.0.0.1".into()), "from a pod of the gateway");
    assert!(lab.node.tcp("203.0.113.7:80").unwrap().starts_with("far "), "from the gateway itself");
    assert_eq!(
        lab.client.tcp("203.0.113.7:81"),
        Ok(format!("a {CLIENT}")),
        "pods of the gateway see clients"
    );
    lab.read();
    assert!(lab.apply(&wanted).transactions.is_empty());
}

fn r54_where_replies_are_routed_back_the_pod_sees_the_client(lab: &mut Lab) {
    let beyond = Beyond::build(lab);
    let _far = beyond.pod.serve("far", "[::]:8080");
    lab.settings.return_path = ReturnPath::Routed;
    let wanted = [to_port("80/tcp", "far", FAR, 8080), to_port("53/udp", "far", FAR, 8080)];
    lab.apply(&wanted);
    assert_eq!(lab.client.tcp("203.0.113.7:80"), Err(ErrorKind::TimedOut), "nothing is routed back yet");
    beyond.route_back();
    assert_eq!(lab.client.tcp("203.0.113.7:80"), Ok(format!("far {CLIENT}")));
    assert_eq!(lab.client.udp("203.0.113.7:53"), Ok(format!("far {CLIENT}")));
    assert_eq!(lab.client.tcp("[2001:db8::7]:80"), Ok(format!("far {CLIENT_V6}")));
    // From one return path to the other, nothing else changes.
    lab.settings.return_path = ReturnPath::Masquerade;
    lab.read();
    lab.apply(&wanted);
    assert_eq!(lab.client.tcp("203.0.113.7:80"), Ok("far 10.0.0.1".into()));
}

fn r54_a_policy_that_keeps_pods_addresses_does_not_keep_replies_from_coming_back(lab: &mut Lab) {
    let beyond = Beyond::build(lab);
    let _far = beyond.pod.serve("far", "[::]:8080");
    beyond.route_back();
    let masquerade = Some(Policy { override_existing: true, ..Policy::default() });
    let facts = NodeFacts { masquerade, ..Lab::facts() };
    lab.apply_as(&facts, &[to_port("80/tcp", "far", FAR, 8080)]);
    assert_eq!(lab.client.tcp("203.0.113.7:80"), Ok("far 10.0.0.1".into()));
    assert_eq!(lab.a.tcp("203.0.113.7:80"), Ok("far 10.0.0.1".into()), "from a pod of the gateway");
    assert_eq!(beyond.pod.tcp("203.0.113.7:80"), Ok("far 10.0.0.1".into()), "from the pod itself");
    assert_eq!(lab.a.tcp("10.244.2.9:8080"), Ok("far 10.244.1.9".into()), "inside the cluster");
    lab.read();
    assert_eq!(lab.apply_as(&facts, &[to_port("80/tcp", "far", FAR, 8080)]).transactions, []);
}

fn links(links: &[&str]) -> LinksInUse {
    Links::new(LinkMask::default(), links.iter().map(|link| link.parse().unwrap()).collect()).unwrap().into()
}

/// Everything that leads replies by their links, in both families.
fn routing(lab: &Lab) -> String {
    let ours = lab
        .node
        .sh("for family in -4 -6; do ip $family rule list; ip $family route list table all proto 117; done");
    let is_ours = |line: &&str| line.contains("fwmark") || line.contains("default") && line.contains("table");
    ours.lines().filter(is_ours).map(str::trim).collect::<Vec<_>>().join("\n")
}

/// Every rule of the firewall. The kernel's own chains, which stay once iptables used their table, have none.
fn rules(lab: &Lab) -> Vec<String> {
    let saved = lab.saved();
    let is_frame = |line: &&str| {
        line.starts_with('*') || *line == "COMMIT" || line.starts_with(':') && line.ends_with(" ACCEPT")
    };
    let mut rules: Vec<_> = saved.lines().filter(|line| !is_frame(line)).map(str::to_owned).collect();
    rules.sort();
    rules
}

fn r54_a_reply_leaves_by_the_link_that_the_connection_came_in_by(lab: &mut Lab) {
    let beyond = Beyond::build(lab);
    let (_far, _a) = (beyond.pod.serve("far", "[::]:8080"), lab.a.serve("a", "[::]:8080"));
    let wanted = [
        to_port("203.0.113.8:80/tcp", "far", FAR, 8080),
        to_port("203.0.113.8:53/udp", "far", FAR, 8080),
        to_port("[2001:db8::8]:80/tcp", "far", FAR, 8080),
        to_port("203.0.113.8:81/tcp", "a", A, 8080),
        to_port("203.0.113.7:80/tcp", "far", FAR, 8080),
    ];
    let facts = NodeFacts {
        addresses: Lab::facts().addresses.into_iter().chain(["2001:db8::8".parse().unwrap()]).collect(),
        ..Lab::facts()
    };
    let ask = |lab: &Lab, as_seen: &str, as_seen_v6: &str| {
        assert_eq!(lab.client.tcp("203.0.113.8:80"), Ok(format!("far {as_seen}")));
        assert_eq!(lab.client.udp("203.0.113.8:53"), Ok(format!("far {as_seen}")));
        assert_eq!(lab.client.tcp("[2001:db8::8]:80"), Ok(format!("far {as_seen_v6}")));
        assert_eq!(lab.client.tcp("203.0.113.8:81"), Ok(format!("a {CLIENT}")));
        assert_eq!(lab.client.tcp("203.0.113.7:80"), Ok(format!("far {as_seen}")));
    };
    lab.apply_as(&facts, &wanted);
    Beyond::count_arrivals(lab);
    ask(lab, "10.0.0.1", "fd00:1::1");
    let (wrong, right) = Beyond::arrived(lab);
    assert!(wrong != 0 && right == 0, "without links, the node's default route decides: {wrong}, {right}");

    lab.settings.links = links(&[
        "interface=eth0,gateway=198.51.100.9",
        "interface=eth1,gateway=192.0.2.9,table=101",
        "interface=eth1,gateway=2001:db8:52::9",
    ]);
    lab.read();
    lab.apply_as(&facts, &wanted);
    for return_path in [ReturnPath::Masquerade, ReturnPath::Routed] {
        lab.settings.return_path = return_path;
        lab.read();
        lab.apply_as(&facts, &wanted);
        Beyond::count_arrivals(lab);
        match return_path {
            ReturnPath::Masquerade => ask(lab, "10.0.0.1", "fd00:1::1"),
            ReturnPath::Routed => {
                beyond.route_back();
                ask(lab, CLIENT, CLIENT_V6);
            }
        }
        let (wrong, right) = Beyond::arrived(lab);
        assert!(
            wrong == 0 && right != 0,
            "{return_path}: by the wrong link {wrong}, by the right one {right}"
        );
    }
    assert_eq!(lab.conditions(), []);
    lab.read();
    assert_eq!(lab.apply_as(&facts, &wanted).transactions, [], "nothing is left to do");
}

/// Routes and rules by which the ways of links are not decided.
const OF_OTHERS: &str = "ip route add 10.78.0.0/16 via 192.0.2.9; ip route del 10.78.0.0/16; \
                         ip rule add priority 900 from 10.78.0.0/16 lookup 77; ip rule del priority 900";

fn r54_rules_and_routes_of_links_are_repaired_and_go_with_the_links(lab: &mut Lab) {
    let beyond = Beyond::build(lab);
    let _far = beyond.pod.serve("far", "[::]:8080");
    lab.node.sh(
        "ip rule add priority 500 fwmark 0x10/0x70 lookup 77; ip route add default via 192.0.2.9 table 77",
    );
    lab.node.sh("ip route add 10.77.0.0/16 via 192.0.2.9 table 1171");
    let foreign = routing(lab);
    let wanted = [to_port("203.0.113.8:80/tcp", "far", FAR, 8080)];
    lab.apply(&wanted);
    let untouched = rules(lab);
    lab.settings.links = links(&["interface=eth0", "interface=eth1,gateway=192.0.2.9,table=101"]);
    lab.read();
    lab.apply(&wanted);
    let made = routing(lab);
    assert!(made.contains("default via 192.0.2.9 dev eth1 table 101 onlink"), "{made}");
    // Its network is 198.51.100.0/24, of which the first address is the node's own.
    let conditions = lab.conditions();
    assert_eq!(conditions.iter().map(|found| found.kind).collect::<Vec<_>>(), [ConditionKind::LinkUnusable]);
    assert!(conditions[0].fix.contains("interface=eth0,gateway="), "{conditions:?}");

    let kernel = lab.backend();
    let watcher = Watcher::new(&kernel, lab.settings.clone()).unwrap();
    for damage in [
        "ip route del default table 101",
        "ip rule del priority 501",
        "ip route replace default via 192.0.2.77 dev eth1 table 101 proto 117",
        "ip link set eth1 down; ip link set eth1 up",
    ] {
        let observed = lab.read();
        lab.on_node(async || watcher.settle(&observed).await).unwrap();
        let look = || lab.on_node(async || watcher.look(&observed).await).unwrap();
        assert_eq!(look(), None, "before {damage}");
        lab.node.sh(OF_OTHERS);
        assert_eq!(look(), None, "before {damage}");
        lab.node.sh(damage);
        assert!(look().is_some(), "{damage}");
        assert!(look().is_some(), "{damage}: until it is repaired");
        lab.read();
        lab.apply(&wanted);
        assert_eq!(routing(lab), made, "{damage}");
    }
    lab.node.sh("ip route replace default via 198.51.100.9; ip -6 route replace ::/0 via 2001:db8:51::9");

    let linked = lab.settings.links.clone();
    for end in ["no links", "cleanup"] {
        lab.settings.links = linked.clone();
        lab.read();
        lab.apply(&wanted);
        if end == "cleanup" {
            let settings = lab.settings.clone();
            lab.on_node(async || cleanup(&settings).await).unwrap();
            assert!(!lab.saved().contains("PINHOLE"), "{}", lab.saved());
        } else {
            lab.settings.links = LinksInUse::default();
            lab.read();
            lab.apply(&wanted);
            assert_eq!(rules(lab), untouched);
        }
        assert_eq!(routing(lab), foreign, "{end}");
    }
}

fn r54_a_strict_reverse_path_filter_is_told_with_the_command_that_helps(lab: &mut Lab) {
    let beyond = Beyond::build(lab);
    let _far = beyond.pod.serve("far", "[::]:8080");
    lab.settings.links = links(&["interface=eth0,gateway=198.51.100.9", "interface=eth1,gateway=192.0.2.9"]);
    let second = to_port("203.0.113.8:80/tcp", "far", FAR, 8080);
    lab.apply(std::slice::from_ref(&second));
    assert_eq!(lab.client.tcp("203.0.113.8:80"), Ok("far 10.0.0.1".into()));
    lab.node.sysctl("net/ipv4/conf/all/rp_filter", "1");
    assert_eq!(
        lab.client.tcp("203.0.113.8:80"),
        Ok("far 10.0.0.1".into()),
        "the filter looks behind the rewriting, and what the pod sends leaves by this link"
    );
    // Its lowest address is on the other link, and so it leaves by that.
    lab.apply(&[second, to_port("203.0.113.7:80/tcp", "far", FAR, 8080)]);
    assert_eq!(lab.client.tcp("203.0.113.8:80"), Err(ErrorKind::TimedOut));
    let conditions = lab.conditions();
    let kinds: Vec<_> = conditions.iter().map(|found| found.kind).collect();
    assert_eq!(kinds, [ConditionKind::ReversePathFilter], "only where it drops: {conditions:?}");
    lab.node.sh(conditions[0].fix.split('`').nth(1).unwrap());
    assert_eq!(lab.conditions(), []);
    assert_eq!(lab.client.tcp("203.0.113.8:80"), Ok("far 10.0.0.1".into()));
}

fn r54_what_a_pod_of_another_node_begins_leaves_the_gateway_with_the_mapped_address(lab: &mut Lab) {
    let beyond = Beyond::build(lab);
    let _client = lab.client.serve("client", "[::]:9000");
    beyond.route_back();
    // Behind a Pinhole it leaves as the other node lets it, unless the Pinhole says otherwise.
    let pinhole = |leaves| leaving(endpoint("203.0.113.7:82/tcp", "pinhole", FAR), leaves);
    lab.apply(&[pinhole(Leaving::AsTheClusterDoes)]);
    assert_eq!(beyond.pod.tcp("198.18.0.9:9000"), Ok("client 10.244.2.9".into()));
    lab.apply(&[pinhole(Leaving::WithTheExternal), endpoint("203.0.113.8:80/tcp", "far", FAR)]);
    assert_eq!(beyond.pod.tcp("198.18.0.9:9000"), Ok("client 203.0.113.7".into()));
    lab.apply(&[endpoint("203.0.113.8:80/tcp", "far", FAR), endpoint("81/tcp", "far", FAR)]);
    assert_eq!(beyond.pod.tcp("198.18.0.9:9000"), Ok("client 203.0.113.8".into()));
    assert_eq!(beyond.pod.udp("198.18.0.9:9000"), Ok("client 203.0.113.8".into()));
    assert_eq!(beyond.pod.tcp("[2001:db8:99::9]:9000"), Ok("client 2001:db8::7".into()));
    let _a = lab.a.serve("a", "[::]:9000");
    assert_eq!(beyond.pod.tcp("10.244.1.9:9000"), Ok("a 10.244.2.9".into()), "inside the cluster");
}

fn r54_a_gateway_that_forwards_nothing_else_lets_out_what_its_mapped_pods_begin_and_only_to_the_outside(
    lab: &mut Lab,
) {
    let beyond = Beyond::build(lab);
    beyond.route_back();
    let (_client, _a) = (lab.client.serve("client", "[::]:9000"), lab.a.serve("a", "[::]:9000"));
    lab.iptables("-P FORWARD DROP");
    lab.ip6tables("-P FORWARD DROP");
    lab.apply(&[]);
    assert_eq!(beyond.pod.tcp("198.18.0.9:9000"), Err(ErrorKind::TimedOut), "it is no pod of ours");
    let wanted = [endpoint("203.0.113.8:80/tcp", "far", FAR), endpoint("81/tcp", "far", FAR)];
    // Not only when the kernel is read anew.
    lab.apply(&wanted);
    assert_eq!(beyond.pod.tcp("198.18.0.9:9000"), Ok("client 203.0.113.8".into()));
    assert_eq!(beyond.pod.udp("198.18.0.9:9000"), Ok("client 203.0.113.8".into()));
    assert_eq!(beyond.pod.tcp("[2001:db8:99::9]:9000"), Ok("client 2001:db8::7".into()));
    assert_eq!(
        beyond.pod.tcp("10.244.1.9:9000"),
        Err(ErrorKind::TimedOut),
        "others decide inside the cluster"
    );
    assert_eq!(lab.conditions(), []);
    lab.read();
    assert_eq!(lab.apply(&wanted).transactions, [], "nothing is left to do");
    lab.apply(&[]);
    assert_eq!(beyond.pod.tcp("198.18.0.9:9000"), Err(ErrorKind::TimedOut), "it goes with the entry");
}

fn r54_what_a_pod_begins_leaves_by_the_link_that_owns_its_address(lab: &mut Lab) {
    let beyond = Beyond::build(lab);
    let (_client, _a) = (lab.client.serve("client", "[::]:9000"), lab.a.serve("a", "[::]:9000"));
    beyond.route_back();
    let wanted = [
        endpoint("203.0.113.8:80/tcp", "far", FAR),
        endpoint("[2001:db8::8]:80/tcp", "far", FAR),
        endpoint("203.0.113.7:80/tcp", "a", A),
    ];
    let facts = NodeFacts {
        addresses: Lab::facts().addresses.into_iter().chain(["2001:db8::8".parse().unwrap()]).collect(),
        ..Lab::facts()
    };
    let ask = |lab: &Lab| {
        Beyond::count_arrivals(lab);
        assert_eq!(beyond.pod.tcp("198.18.0.9:9000"), Ok("client 203.0.113.8".into()));
        assert_eq!(beyond.pod.udp("198.18.0.9:9000"), Ok("client 203.0.113.8".into()));
        assert_eq!(beyond.pod.tcp("[2001:db8:99::9]:9000"), Ok("client 2001:db8::8".into()));
        assert_eq!(lab.a.tcp("198.18.0.9:9000"), Ok("client 203.0.113.7".into()), "by the other link");
        assert_eq!(beyond.pod.tcp("10.244.1.9:9000"), Ok("a 10.244.2.9".into()), "inside the cluster");
        Beyond::arrived(lab)
    };
    lab.apply_as(&facts, &wanted);
    let (wrong, right) = ask(lab);
    assert!(wrong != 0 && right == 0, "without links, the default route decides: {wrong}, {right}");

    let before = routing(lab);
    lab.settings.links = links(&[
        "interface=eth0,gateway=198.51.100.9",
        "interface=eth1,gateway=192.0.2.9,table=101",
        "interface=eth1,gateway=2001:db8:52::9",
    ]);
    lab.read();
    lab.apply_as(&facts, &wanted);
    let (wrong, right) = ask(lab);
    assert!(wrong == 0 && right != 0, "by the wrong link {wrong}, by the right one {right}");
    let rules = |lab: &Lab| lab.node.sh("ip rule; ip -6 rule").matches("from 10.244.2.9 ").count();
    assert_eq!(rules(lab), 2);
    lab.read();
    assert_eq!(lab.apply_as(&facts, &wanted).transactions, [], "nothing is left to do");

    // A rollout gives the port to another pod while this one is still there.
    let connection = &mut beyond.pod.connect("198.18.0.9:9000").unwrap();
    let flow = beyond.pod.flow("198.18.0.9:9000");
    assert_eq!(connection.ask().unwrap(), "client 203.0.113.8");
    assert_eq!(flow.ask(), Ok("client 203.0.113.8".into()));
    lab.settings.links.bind(FAR.iter().map(|ip| ip.parse().unwrap()).collect());
    lab.apply_as(&facts, &wanted[2..]);
    Beyond::count_arrivals(lab);
    assert_eq!(connection.ask().unwrap(), "client 203.0.113.8");
    assert_eq!(flow.ask(), Ok("client 203.0.113.8".into()));
    let (wrong, right) = Beyond::arrived(lab);
    assert!(wrong == 0 && right != 0, "by the wrong link {wrong}, by the right one {right}");
    lab.read();
    assert_eq!(lab.apply_as(&facts, &wanted[2..]).transactions, [], "nothing is left to do");
    lab.settings.links.bind(BTreeSet::new());
    lab.apply_as(&facts, &wanted[2..]);
    assert_eq!(rules(lab), 0, "they go with the pod");
    lab.settings.links = LinksInUse::default();
    lab.read();
    lab.apply_as(&facts, &[]);
    assert_eq!(routing(lab), before);
}

with_every_backend!(
    r54_a_pod_of_another_node_is_reached_and_answers_through_the_gateway,
    r54_where_replies_are_routed_back_the_pod_sees_the_client,
    r54_what_a_pod_of_another_node_begins_leaves_the_gateway_with_the_mapped_address,
    r54_a_gateway_that_forwards_nothing_else_lets_out_what_its_mapped_pods_begin_and_only_to_the_outside,
    r54_what_a_pod_begins_leaves_by_the_link_that_owns_its_address,
    r54_a_policy_that_keeps_pods_addresses_does_not_keep_replies_from_coming_back,
    r54_a_reply_leaves_by_the_link_that_the_connection_came_in_by,
    r54_rules_and_routes_of_links_are_repaired_and_go_with_the_links,
    r54_a_strict_reverse_path_filter_is_told_with_the_command_that_helps,
);
