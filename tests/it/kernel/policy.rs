//! Other people's rules about forwarding: network policies keep the last word, drops that do not mean pods do not.

use std::io::ErrorKind;

use pinhole::dataplane::Dataplane;
use pinhole::dataplane::condition::ConditionKind;
use pinhole::dataplane::settings::Firewall;
use pinhole::dataplane::settings::Flavor;
use pinhole::ruleset::desired::desired;

use crate::kernel::lab::A;
use crate::kernel::lab::B;
use crate::kernel::lab::Lab;
use crate::kernel::lab::endpoint;
use crate::kernel::lab::to_port;
use crate::kernel::with_every_backend;

/// A default-deny for pod a, as kube-router writes it.
const KUBE_ROUTER: &str = "*filter
:KUBE-ROUTER-FORWARD - [0:0]
:KUBE-POD-FW-A - [0:0]
-A KUBE-POD-FW-A -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-POD-FW-A -m mark ! --mark 0x10000/0x10000 -j REJECT --reject-with icmp-port-unreachable
-A KUBE-POD-FW-A -j MARK --set-xmark 0x20000/0x20000
-A KUBE-ROUTER-FORWARD -s 10.244.1.9/32 -j KUBE-POD-FW-A
-A KUBE-ROUTER-FORWARD -d 10.244.1.9/32 -j KUBE-POD-FW-A
-A KUBE-ROUTER-FORWARD -m mark --mark 0x20000/0x20000 -j ACCEPT
-I FORWARD 1 -m comment --comment \"kube-router netpol - TEMCG2JMHZYE7H7T\" -j KUBE-ROUTER-FORWARD
COMMIT
";

/// A default-deny for pod a, as Calico writes it.
const CALICO: &str = "*filter
:cali-FORWARD - [0:0]
:cali-to-wl-dispatch - [0:0]
:cali-tw-a - [0:0]
-A cali-FORWARD -m comment --comment \"cali:vjrMJCRpqwy5oRoX\" -j MARK --set-xmark 0x0/0xe0000
-A cali-FORWARD -o cni0 -j cali-to-wl-dispatch
-A cali-to-wl-dispatch -d 10.244.1.9/32 -g cali-tw-a
-A cali-tw-a -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A cali-tw-a -m conntrack --ctstate INVALID -j DROP
-A cali-tw-a -m comment --comment \"Drop if no profiles matched\" -j DROP
-I FORWARD 1 -m comment --comment \"cali:wUHhoiAYhphO9Mso\" -j cali-FORWARD
-A FORWARD -m comment --comment \"cali:S93hcgKJrXEqnTfs\" -m mark --mark 0x10000/0x10000 -j ACCEPT
-A FORWARD -m comment --comment \"cali:mp77cMpurHhyjLrM\" -j MARK --set-xmark 0x10000/0x10000
COMMIT
";

fn a_default_deny_holds_and_other_pods_are_reached(lab: &mut Lab) {
    let (_a, _b) = (lab.a.serve("a", "[::]:80"), lab.b.serve("b", "[::]:80"));
    let wanted = [endpoint("80/tcp", "a", A), to_port("81/tcp", "b", B, 80)];
    for engine in [KUBE_ROUTER, CALICO] {
        for forward in ["ACCEPT", "DROP"] {
            for engine_first in [true, false] {
                let setting = format!("policy {forward}, engine first: {engine_first}\n{engine}");
                lab.iptables(&format!("-P FORWARD {forward}"));
                if engine_first {
                    load(lab, engine);
                    lab.read();
                    lab.apply(&wanted);
                } else {
                    lab.read();
                    lab.apply(&wanted);
                    load(lab, engine);
                    lab.read();
                    lab.apply(&wanted);
                }
                assert!(lab.client.tcp("203.0.113.7:80").is_err(), "{setting}");
                assert_eq!(lab.client.tcp("203.0.113.7:81"), Ok("b 198.51.100.9".into()), "{setting}");
                assert_eq!(lab.read().ruleset.len(), 4);
                assert!(lab.apply(&wanted).transactions.is_empty(), "nobody fights over places: {setting}");
                for table in ["filter", "nat"] {
                    lab.iptables(&format!("-t {table} -F"));
                    lab.iptables(&format!("-t {table} -X"));
                }
            }
        }
    }
}

/// What firewalld makes of forwarded packets, with its `StrictForwardPorts` off and on.
const FIREWALLD: &str = "table inet firewalld {
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        DNAT
        iifname \"lo\" accept
        ct state invalid drop
        ip6 daddr { ::/96, ::ffff:0.0.0.0/96, 2002::/24, 2002:a00::/24, 2002:7f00::/24, 2002:a9fe::/32, 2002:ac10::/28, \
2002:c0a8::/32, 2002:e000::/19 } reject with icmpv6 addr-unreachable
        jump filter_FORWARD_POLICIES
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD_POLICIES {
        iifname \"eth9\" jump filter_FWD_public
        jump filter_FWD_public
        reject with icmpx admin-prohibited
    }
    chain filter_FWD_public {
        meta l4proto { icmp, ipv6-icmp } accept
    }
    chain filter_FORWARD_dnat {
        reject with icmpx admin-prohibited
    }
}
";

fn firewalld_is_no_trouble_unless_it_is_strict(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:80");
    lab.apply(&[endpoint("80/tcp", "a", A)]);
    let load = |dnat: &str| {
        lab.node.sh(&format!("nft -f - <<'END'\n{}END", FIREWALLD.replace("DNAT", dnat)));
    };
    load("ct status dnat accept");
    for external in ["203.0.113.7:80", "[2001:db8::7]:80"] {
        assert!(lab.client.tcp(external).is_ok(), "{external}");
    }
    assert_eq!(lab.conditions(), []);

    lab.node.sh("nft delete table inet firewalld");
    load("ct status dnat jump filter_FORWARD_dnat");
    assert!(lab.client.tcp("203.0.113.7:80").is_err());
    let conditions = lab.conditions();
    let messages: Vec<_> = conditions.iter().map(|condition| condition.message.as_str()).collect();
    assert!(
        matches!(messages[..], [only] if only.contains("inet firewalld filter_FORWARD rejects")),
        "{messages:?}"
    );
}

fn load(lab: &Lab, rules: &str) {
    lab.node.sh(&format!("{} <<'END'\n{rules}END", lab.command("iptables", "-restore --noflush")));
}

fn r22_both_directions_are_forwarded_under_a_policy_of_drop(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:80");
    lab.iptables("-P FORWARD DROP");
    lab.ip6tables("-P FORWARD DROP");
    lab.apply(&[endpoint("80/tcp", "a", A), endpoint("80/udp", "a", A)]);
    for external in ["203.0.113.7:80", "[2001:db8::7]:80"] {
        assert!(lab.client.tcp(external).is_ok(), "{external}");
        assert!(lab.client.udp(external).is_ok(), "{external}");
    }
    assert_eq!(lab.conditions(), [], "an accept in the same table is all that this needs");
}

fn a_final_reject_is_stood_before(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:80");
    lab.iptables("-A FORWARD -j REJECT --reject-with icmp-host-prohibited");
    lab.read();
    lab.apply(&[endpoint("80/tcp", "a", A)]);
    assert_eq!(lab.client.tcp("203.0.113.7:80"), Ok("a 198.51.100.9".into()));
}

fn r23_direct_access_to_a_pod_stays_closed(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:80");
    lab.iptables("-P FORWARD DROP");
    lab.apply(&[to_port("8080/tcp", "a", A, 80)]);
    assert_eq!(lab.client.tcp("203.0.113.7:8080"), Ok("a 198.51.100.9".into()));
    assert_eq!(lab.client.tcp("10.244.1.9:80"), Err(ErrorKind::TimedOut));
}

fn a_connection_that_others_redirect_is_not_accepted_for_them(lab: &mut Lab) {
    let (_a, _b) = (lab.a.serve("a", "[::]:80"), lab.b.serve("b", "[::]:80"));
    lab.iptables("-P FORWARD DROP");
    lab.apply(&[to_port("8080/tcp", "a", A, 80)]);
    lab.iptables(
        "-t nat -A PREROUTING -d 203.0.113.7 -p tcp --dport 30000 -j DNAT --to-destination 10.244.1.10:80",
    );
    assert_eq!(lab.client.tcp("203.0.113.7:30000"), Err(ErrorKind::TimedOut));
}

fn a_drop_out_of_reach_is_told_with_what_to_do(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:80");
    lab.apply(&[endpoint("80/tcp", "a", A)]);
    assert_eq!(lab.conditions(), []);

    lab.node.sh("nft add table inet strict; nft add chain inet strict onward '{ type filter hook forward priority 10; policy drop; }'");
    assert_eq!(lab.client.tcp("203.0.113.7:80"), Err(ErrorKind::TimedOut));
    let conditions = lab.conditions();
    let kinds: Vec<_> = conditions.iter().map(|condition| condition.kind).collect();
    assert_eq!(kinds, [ConditionKind::ForwardBlocked], "{conditions:?}");
    let command = conditions[0].fix.split('`').nth(1).unwrap();
    lab.node.sh(command);
    assert_eq!(
        lab.client.tcp("203.0.113.7:80"),
        Ok("a 198.51.100.9".into()),
        "the command that is told helps"
    );
    assert_eq!(lab.conditions(), [], "and then there is nothing to tell");
    lab.node.sh("nft delete table inet strict");

    if lab.is_nftables() {
        return;
    }
    let other = if lab.flavor == Flavor::Nft { "legacy" } else { "nft" };
    let program =
        format!("XTABLES_LOCKFILE={} iptables-{other}", lab.directory().join("other.lock").display());
    lab.node.sh(&format!("{program} -P FORWARD DROP"));
    let conditions = lab.conditions();
    assert_eq!(conditions[0].kind, ConditionKind::ForwardBlocked);
    assert!(lab.client.tcp("203.0.113.7:80").is_err());
    let command = conditions[0].fix.split('`').nth(1).unwrap();
    lab.node.sh(&command.replace(&format!("iptables-{other}"), &program));
    assert_eq!(lab.client.tcp("203.0.113.7:80"), Ok("a 198.51.100.9".into()));
    assert_eq!(
        lab.conditions().iter().map(|condition| condition.kind).collect::<Vec<_>>(),
        [ConditionKind::MixedFlavors]
    );
}

/// iptables cannot be overruled from nftables, so one chain of iptables does, in each flavour that refuses.
#[test]
fn r39_nftables_is_accepted_for_by_either_flavour_of_iptables_and_only_where_it_must_be() {
    let mut lab = Lab::new(Firewall::Nftables);
    let _a = lab.a.serve("a", "[::]:80");
    let wanted = [endpoint("80/tcp", "a", A)];
    lab.apply(&wanted);
    assert!(!lab.iptables("-save").contains("PINHOLE"), "nothing refuses");
    let lock = lab.directory().join("xtables.lock");
    let legacy = format!("XTABLES_LOCKFILE={} iptables-legacy -w 5", lock.display());
    lab.iptables("-P FORWARD DROP");
    lab.node.sh(&format!("{legacy} -A FORWARD -j REJECT"));
    assert!(lab.client.tcp("203.0.113.7:80").is_err());
    lab.read();
    lab.apply(&wanted);
    assert_eq!(lab.client.tcp("203.0.113.7:80"), Ok("a 198.51.100.9".into()));
    assert_eq!(lab.conditions(), []);
    let forward = lab.node.sh(&format!("{legacy} -S FORWARD"));
    let jump = forward.find("-j PINHOLE-ACCEPT").unwrap();
    assert!(jump < forward.find("-j REJECT").unwrap(), "{forward}");

    lab.iptables("-P FORWARD ACCEPT");
    lab.node.sh(&format!("{legacy} -D FORWARD -j REJECT"));
    lab.read();
    lab.apply(&wanted);
    let left = lab.iptables("-save") + &lab.node.sh("iptables-legacy-save");
    assert!(!left.contains("PINHOLE"), "{left}");
    assert_eq!(lab.client.tcp("203.0.113.7:80"), Ok("a 198.51.100.9".into()));
}

fn a_chain_that_rejects_whatever_it_gets_is_told_and_not_stood_before(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:80");
    for rule in
        ["-N ufw-reject-forward", "-A ufw-reject-forward -j REJECT", "-A FORWARD -j ufw-reject-forward"]
    {
        lab.iptables(rule);
    }
    lab.read();
    lab.apply(&[endpoint("80/tcp", "a", A)]);
    assert_eq!(lab.client.tcp("203.0.113.7:80"), Err(ErrorKind::ConnectionRefused));
    let conditions = lab.conditions();
    assert_eq!(conditions.len(), 1, "{conditions:?}");
    assert!(conditions[0].message.contains("ufw-reject-forward"), "{}", conditions[0]);
    let command = conditions[0].fix.split('`').nth(3).unwrap();
    lab.node.sh(&lab.command("iptables", command.split_once(' ').unwrap().1));
    assert_eq!(
        lab.client.tcp("203.0.113.7:80"),
        Ok("a 198.51.100.9".into()),
        "the command that is told helps"
    );
    assert_eq!(lab.conditions(), [], "and then there is nothing to tell");
}

fn a_kernel_that_does_not_forward_is_told(lab: &mut Lab) {
    lab.node.sysctl("net/ipv4/ip_forward", "0");
    let conditions = lab.conditions();
    let kinds: Vec<_> = conditions.iter().map(|condition| condition.kind).collect();
    assert_eq!(kinds, [ConditionKind::ForwardingDisabled]);
    assert!(conditions[0].fix.contains("sysctl -w net.ipv4.ip_forward=1"));
}

/// As Calico does where it is told to insert: it looks from time to time whether it stands first.
#[test]
fn an_engine_that_insists_on_the_first_place_is_moved_a_few_times_and_told() {
    for flavor in Flavor::ALL {
        contest(&Lab::new(Firewall::Iptables(flavor)));
    }
}

fn contest(lab: &Lab) {
    let _a = lab.a.serve("a", "[::]:80");
    let wanted = [endpoint("80/tcp", "a", A)];
    let backend = lab.backend();
    lab.repair(&backend, &wanted);
    lab.iptables("-t nat -N cali-PREROUTING");
    lab.iptables("-t nat -A cali-PREROUTING -d 192.0.2.99 -j DNAT --to-destination 10.244.1.10");
    let jump = "-m comment --comment cali:6gwbT8clXdHdC1b1 -j cali-PREROUTING";
    let mut moves = 0;
    for _ in 0..12 {
        lab.iptables(&format!("-t nat -D PREROUTING {jump} 2>/dev/null || true"));
        lab.iptables(&format!("-t nat -I PREROUTING 1 {jump}"));
        moves += lab.repair(&backend, &wanted).transactions.len();
        assert_eq!(lab.client.tcp("203.0.113.7:80"), Ok("a 198.51.100.9".into()));
    }
    assert_eq!(moves, 5, "then it is left where it stands");
    let rules = lab.iptables("-t nat -S PREROUTING");
    assert!(rules.find("cali-PREROUTING").unwrap() < rules.find("PINHOLE-DNAT").unwrap(), "{rules}");
    let desired = desired(&[], &Lab::facts()).ruleset;
    let conditions = lab.on_node(async || backend.conditions(&desired).await);
    let told: Vec<_> =
        conditions.iter().map(|told| (told.kind, told.message.contains("-j cali-PREROUTING`"))).collect();
    assert_eq!(told, [(ConditionKind::JumpContested, true)], "{conditions:?}");

    // A jump that is gone is put in as ever.
    lab.iptables("-t nat -F PREROUTING");
    assert!(!lab.repair(&backend, &wanted).transactions.is_empty());
    assert_eq!(lab.client.tcp("203.0.113.7:80"), Ok("a 198.51.100.9".into()));
}

with_every_backend!(
    a_default_deny_holds_and_other_pods_are_reached,
    r22_both_directions_are_forwarded_under_a_policy_of_drop,
    a_final_reject_is_stood_before,
    r23_direct_access_to_a_pod_stays_closed,
    a_connection_that_others_redirect_is_not_accepted_for_them,
    a_drop_out_of_reach_is_told_with_what_to_do,
    firewalld_is_no_trouble_unless_it_is_strict,
    a_chain_that_rejects_whatever_it_gets_is_told_and_not_stood_before,
    a_kernel_that_does_not_forward_is_told,
);
