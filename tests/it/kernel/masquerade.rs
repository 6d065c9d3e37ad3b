//! Who sees which address of a pod, on a node whose other programs masquerade more than they should.
//!
//! ```text
//! pod a 10.244.1.9 --- the lab's node  192.0.2.1 --- 192.0.2.2  another node --- pod c 10.244.2.9
//!                        198.51.100.1 |                            | 198.51.101.2
//!                                     +--- 198.51.100.9  client  198.51.101.9 ---+
//! ```
//! IPv6 has the same shape.

use ipnet::IpNet;
use pinhole::dataplane::Applied;
use pinhole::dataplane::Dataplane;
use pinhole::model::masquerade::Policy;
use pinhole::ruleset::desired::desired;
use pinhole::ruleset::endpoint::Endpoint;
use pinhole::ruleset::node::NodeFacts;

use crate::kernel::lab::A;
use crate::kernel::lab::Lab;
use crate::kernel::lab::endpoint;
use crate::kernel::namespace::Namespace;
use crate::kernel::with_every_backend;

/// The rule that how-tos of flannel want to be rid of.
const FOREIGN: &str = "-t nat -A POSTROUTING -s 10.244.0.0/16 -j MASQUERADE";
const FOREIGN_V6: &str = "-t nat -A POSTROUTING -s fd00:244::/32 -j MASQUERADE";

/// A second node and its pod, beside those of a lab.
struct Second {
    node: Namespace,
    c: Namespace,
}

impl Second {
    fn beside(lab: &Lab) -> Self {
        let [node, c] = [(); 2].map(|()| Namespace::new());
        lab.node.sh(&format!(
            "ip -batch - <<'END'\n\
             link add eth1 type veth peer name eth1 netns {}\n\
             addr add 192.0.2.1/24 dev eth1\naddr add 2001:db8:2::1/64 dev eth1 nodad\nlink set eth1 up\n\
             route add 10.244.2.0/24 via 192.0.2.2 dev eth1 onlink\n\
             route add fd00:244:2::/64 via 2001:db8:2::2 dev eth1 onlink\nEND",
            node.path()
        ));
        node.sh(&format!(
            "ip -batch - <<'END'\n\
             link add cni0 type veth peer name eth0 netns {}\nlink add eth0 type veth peer name eth1 netns {}\n\
             addr add 192.0.2.2/24 dev eth1\naddr add 2001:db8:2::2/64 dev eth1 nodad\n\
             addr add 10.244.2.1/24 dev cni0\naddr add fd00:244:2::1/64 dev cni0 nodad\n\
             addr add 198.51.101.2/24 dev eth0\naddr add 2001:db8:53::2/64 dev eth0 nodad\n\
             link set eth1 up\nlink set cni0 up\nlink set eth0 up\n\
             route add 10.244.1.0/24 via 192.0.2.1\nroute add fd00:244:1::/64 via 2001:db8:2::1\nEND",
            c.path(),
            lab.client.path()
        ));
        node.sysctl("net/ipv4/ip_forward", "1");
        node.sysctl("net/ipv6/conf/all/forwarding", "1");
        c.sh("ip -batch - <<'END'\n\
              link set eth0 up\naddr add 10.244.2.9/24 dev eth0\naddr add fd00:244:2::9/64 dev eth0 nodad\n\
              route add default via 10.244.2.1\nroute add ::/0 via fd00:244:2::1\nEND");
        lab.client.sh(
            "ip -batch - <<'END'\n\
             link set eth1 up\naddr add 198.51.101.9/24 dev eth1\naddr add 2001:db8:53::9/64 dev eth1 nodad\nEND",
        );
        for neighbour in
            ["192.0.2.1", "10.244.2.9", "198.51.101.9", "2001:db8:2::1", "fd00:244:2::9", "2001:db8:53::9"]
        {
            node.wait_for(neighbour.parse().unwrap());
        }
        Self { node, c }
    }

    fn facts() -> NodeFacts {
        NodeFacts {
            addresses: ["192.0.2.2", "198.51.101.2", "2001:db8:53::2"].map(|ip| ip.parse().unwrap()).into(),
            pod_cidrs: nets(&["10.244.2.0/24", "fd00:244:2::/64"]),
            ..first()
        }
    }
}

/// The lab's node, which knows the pods of the other.
fn first() -> NodeFacts {
    NodeFacts { cluster_cidrs: nets(&["10.244.0.0/16", "fd00:244::/32"]), ..Lab::facts() }
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn overriding() -> Policy {
    Policy { override_existing: true, ..Policy::default() }
}

/// Looks at a node and puts right whatever differs, as its agent does at a resync.
fn program(
    lab: &Lab,
    node: &Namespace,
    facts: NodeFacts,
    policy: Option<Policy>,
    pods: &[Endpoint],
) -> Applied {
    let wanted = desired(pods, &NodeFacts { masquerade: policy, ..facts }).ruleset;
    let backend = lab.backend();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let applied = node.run(|| {
        runtime().block_on(async {
            let observed = backend.read().await.unwrap();
            let applied = backend.apply(&wanted, observed).await;
            assert_eq!(backend.read().await.unwrap().ruleset, wanted, "what is read is what was asked for");
            applied
        })
    });
    assert!(applied.failures.is_empty(), "{:?}", applied.failures);
    applied
}

fn program_both(lab: &Lab, second: &Second, policy: &Policy) {
    program(lab, &lab.node, first(), Some(policy.clone()), &[]);
    program(lab, &second.node, Second::facts(), Some(policy.clone()), &[]);
}

fn add_foreign_rules(lab: &Lab, second: &Second) {
    for node in [&lab.node, &second.node] {
        node.sh(&lab.command("iptables", FOREIGN));
        node.sh(&lab.command("ip6tables", FOREIGN_V6));
    }
}

/// Everything in the tables of iptables that is not ours.
fn of_others(lab: &Lab, node: &Namespace) -> String {
    let saved = ["iptables", "ip6tables"].map(|program| node.sh(&lab.command(program, "-t nat -S")));
    saved.concat().lines().filter(|line| !line.contains("PINHOLE")).collect::<Vec<_>>().join("\n")
}

fn seen(answer: Result<String, std::io::ErrorKind>) -> String {
    answer.unwrap_or_else(|error| error.to_string())
}

fn pods_of_two_nodes_see_each_other_and_what_leaves_the_cluster_is_masqueraded(lab: &mut Lab) {
    let second = Second::beside(lab);
    let _servers = (
        lab.a.serve("a", "[::]:9000"),
        second.c.serve("c", "[::]:9000"),
        lab.client.serve("client", "[::]:9000"),
    );
    add_foreign_rules(lab, &second);
    let others = of_others(lab, &lab.node);
    let everybody = || {
        [
            seen(lab.a.tcp("10.244.2.9:9000")),
            seen(lab.a.udp("10.244.2.9:9000")),
            seen(lab.a.tcp("[fd00:244:2::9]:9000")),
            seen(second.c.tcp("10.244.1.9:9000")),
            seen(second.c.tcp("[fd00:244:1::9]:9000")),
            seen(lab.a.tcp("198.51.100.9:9000")),
            seen(lab.a.udp("198.51.100.9:9000")),
            seen(lab.a.tcp("[2001:db8:51::9]:9000")),
            seen(second.c.tcp("198.51.101.9:9000")),
            seen(second.c.tcp("[2001:db8:53::9]:9000")),
        ]
    };
    let outside = [
        "client 198.51.100.1",
        "client 198.51.100.1",
        "client 2001:db8:51::1",
        "client 198.51.101.2",
        "client 2001:db8:53::2",
    ];
    let nodes = ["c 192.0.2.1", "c 192.0.2.1", "c 2001:db8:2::1", "a 192.0.2.2", "a 2001:db8:2::2"];
    assert_eq!(everybody(), [nodes, outside].concat()[..], "before: a pod sees the node of the other");

    program_both(lab, &second, &Policy::default());
    assert_eq!(everybody()[..5], nodes, "rules of others still count");

    program_both(lab, &second, &overriding());
    let pods = ["c 10.244.1.9", "c 10.244.1.9", "c fd00:244:1::9", "a 10.244.2.9", "a fd00:244:2::9"];
    assert_eq!(everybody(), [pods, outside].concat()[..], "after: a pod sees the other");
    assert_eq!(of_others(lab, &lab.node), others, "rules of others are untouched");

    for node in [&lab.node, &second.node] {
        for (program, flush) in [("iptables", FOREIGN), ("ip6tables", FOREIGN_V6)] {
            node.sh(&lab.command(program, &flush.replace("-A", "-D")));
        }
    }
    assert_eq!(everybody(), [pods, outside].concat()[..], "and nothing depends on the rules of others");
}

fn what_kube_proxy_marked_is_masqueraded_whatever_is_exempt(lab: &mut Lab) {
    let second = Second::beside(lab);
    let _c = (second.c.serve("c", "[::]:9000"), second.c.serve("service", "[::]:9001"));
    add_foreign_rules(lab, &second);
    lab.iptables("-t nat -A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE");
    lab.iptables("-t mangle -A PREROUTING -s 10.244.1.9 -p tcp --dport 9001 -j MARK --or-mark 0x4000");
    program_both(lab, &second, &overriding());
    assert_eq!(lab.a.tcp("10.244.2.9:9000"), Ok("c 10.244.1.9".into()));
    assert_eq!(lab.a.tcp("10.244.2.9:9001"), Ok("service 192.0.2.1".into()));
}

fn what_others_delete_of_ours_comes_back(lab: &mut Lab) {
    let second = Second::beside(lab);
    let _c = second.c.serve("c", "[::]:9000");
    add_foreign_rules(lab, &second);
    program_both(lab, &second, &overriding());
    let deletions = if lab.is_nftables() {
        ["nft flush chain ip PINHOLE c_keep", "nft delete element ip PINHOLE s_kept { 10.244.0.0/16 }"]
            .map(String::from)
    } else {
        ["-t nat -F PINHOLE-KEEP", "-t nat -D PINHOLE-SNAT -s 10.244.0.0/16 -j PINHOLE-KEEP"]
            .map(|deletion| lab.command("iptables", deletion))
    };
    for deletion in deletions {
        lab.node.sh(&deletion);
        assert_eq!(lab.a.tcp("10.244.2.9:9000"), Ok("c 192.0.2.1".into()), "{deletion}");
        let applied = program(lab, &lab.node, first(), Some(overriding()), &[]);
        assert_eq!(applied.transactions.len(), 1, "{deletion}");
        assert_eq!(lab.a.tcp("10.244.2.9:9000"), Ok("c 10.244.1.9".into()), "{deletion}");
        assert!(program(lab, &lab.node, first(), Some(overriding()), &[]).transactions.is_empty());
    }
}

fn an_excluded_interface_and_network_see_the_pod_and_a_fixed_address_stays_fixed(lab: &mut Lab) {
    let second = Second::beside(lab);
    let _client = lab.client.serve("client", "[::]:9000");
    add_foreign_rules(lab, &second);
    let fixed = [endpoint("203.0.113.8:80/tcp", "a", A)];
    let under = |policy: Policy| {
        program(lab, &lab.node, first(), Some(policy), &fixed);
        [seen(lab.a.tcp("198.51.100.9:9000")), seen(lab.b.tcp("198.51.100.9:9000"))]
    };
    assert_eq!(under(overriding()), ["client 203.0.113.8", "client 198.51.100.1"]);
    let interface = Policy { excluded_interfaces: ["eth0".parse().unwrap()].into(), ..overriding() };
    assert_eq!(under(interface.clone()), ["client 203.0.113.8", "client 10.244.1.10"]);
    let network = Policy { except: nets(&["198.51.100.0/24"]), ..overriding() };
    assert_eq!(under(network), ["client 10.244.1.9", "client 10.244.1.10"]);
    let only_b = Policy { pod_cidrs: nets(&["10.244.1.10/32"]), ..overriding() };
    lab.iptables(&FOREIGN.replace("-A", "-D"));
    assert_eq!(under(only_b), ["client 203.0.113.8", "client 198.51.100.1"]);
    assert_eq!(
        under(Policy { override_existing: false, ..interface }),
        ["client 203.0.113.8", "client 10.244.1.10"]
    );
}

fn without_a_policy_nothing_of_it_is_left_and_rules_of_others_count_again(lab: &mut Lab) {
    let second = Second::beside(lab);
    let _c = second.c.serve("c", "[::]:9000");
    program(lab, &lab.node, first(), None, &[]);
    add_foreign_rules(lab, &second);
    let before = lab.saved();
    let policy = Policy { excluded_interfaces: ["wg0".parse().unwrap()].into(), ..overriding() };
    program_both(lab, &second, &policy);
    assert_ne!(lab.saved(), before);
    assert_eq!(lab.a.tcp("10.244.2.9:9000"), Ok("c 10.244.1.9".into()));
    program(lab, &lab.node, first(), None, &[]);
    assert_eq!(lab.saved(), before);
    assert_eq!(lab.a.tcp("10.244.2.9:9000"), Ok("c 192.0.2.1".into()));
}

with_every_backend!(
    pods_of_two_nodes_see_each_other_and_what_leaves_the_cluster_is_masqueraded,
    what_kube_proxy_marked_is_masqueraded_whatever_is_exempt,
    what_others_delete_of_ours_comes_back,
    an_excluded_interface_and_network_see_the_pod_and_a_fixed_address_stays_fixed,
    without_a_policy_nothing_of_it_is_left_and_rules_of_others_count_again,
);
