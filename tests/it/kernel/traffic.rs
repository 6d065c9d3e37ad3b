//! What reaches pods, from everywhere that traffic can come from, and as whom pods are seen.

use std::io::ErrorKind;

use pinhole::ruleset::endpoint::Leaving;
use pinhole::ruleset::node::NodeFacts;

use crate::kernel::lab::A;
use crate::kernel::lab::B;
use crate::kernel::lab::Lab;
use crate::kernel::lab::endpoint;
use crate::kernel::lab::leaving;
use crate::kernel::lab::only_from;
use crate::kernel::lab::to_port;
use crate::kernel::rewriting::while_connecting;
use crate::kernel::with_every_backend;

fn a_client_reaches_a_pod_by_tcp_and_udp_and_is_seen_with_its_own_address(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:8080");
    lab.apply(&[to_port("80/tcp", "a", A, 8080), to_port("53/udp", "a", A, 8080)]);
    assert_eq!(lab.client.tcp("203.0.113.7:80"), Ok("a 198.51.100.9".into()));
    assert_eq!(lab.client.udp("203.0.113.7:53"), Ok("a 198.51.100.9".into()));
    assert_eq!(lab.client.tcp("[2001:db8::7]:80"), Ok("a 2001:db8:51::9".into()));
    assert_eq!(lab.client.udp("[2001:db8::7]:53"), Ok("a 2001:db8:51::9".into()));
    assert_eq!(
        lab.client.tcp("203.0.113.7:81"),
        Err(ErrorKind::ConnectionRefused),
        "other ports are the node's"
    );
}

fn r01_tcp_and_udp_of_one_port_lead_to_different_pods(lab: &mut Lab) {
    let (_a, _b) = (lab.a.serve("a", "[::]:53"), lab.b.serve("b", "[::]:54"));
    lab.apply(&[to_port("5353/tcp", "a", A, 53), to_port("5353/udp", "b", B, 54)]);
    assert_eq!(lab.client.tcp("203.0.113.7:5353"), Ok("a 198.51.100.9".into()));
    assert_eq!(lab.client.udp("203.0.113.7:5353"), Ok("b 198.51.100.9".into()));
}

fn r17_a_pod_reaches_itself_by_its_external_address(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:8080");
    lab.apply(&[to_port("80/tcp", "a", A, 8080), to_port("80/udp", "a", A, 8080)]);
    // A bridge that calls iptables must be allowed to send a packet back to the port that it came from.
    for (calls_iptables, hairpin) in [(false, "off"), (false, "on"), (true, "on")] {
        if !lab.bridge_calls_iptables(calls_iptables) {
            continue;
        }
        lab.node.sh(&format!("ip link set port-a type bridge_slave hairpin {hairpin}"));
        let setting = format!("the bridge calls iptables: {calls_iptables}, hairpin {hairpin}");
        assert_eq!(lab.a.tcp("203.0.113.7:80"), Ok("a 10.244.1.1".into()), "{setting}");
        assert_eq!(lab.a.udp("203.0.113.7:80"), Ok("a 10.244.1.1".into()), "{setting}");
        assert_eq!(lab.a.tcp("[2001:db8::7]:80"), Ok("a fd00:244:1::1".into()), "{setting}");
    }
}

fn r18_a_pod_reaches_its_neighbour_by_the_external_address(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:8080");
    lab.apply(&[to_port("80/tcp", "a", A, 8080), to_port("80/udp", "a", A, 8080)]);
    for calls_iptables in [false, true] {
        if !lab.bridge_calls_iptables(calls_iptables) {
            continue;
        }
        let setting = format!("the bridge calls iptables: {calls_iptables}");
        assert_eq!(lab.b.tcp("203.0.113.7:80"), Ok("a 10.244.1.1".into()), "{setting}");
        assert_eq!(lab.b.udp("203.0.113.7:80"), Ok("a 10.244.1.1".into()), "{setting}");
        assert_eq!(lab.b.tcp("[2001:db8::7]:80"), Ok("a fd00:244:1::1".into()), "{setting}");
    }
}

fn r19_the_node_reaches_a_pod_by_its_external_address(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:8080");
    lab.apply(&[to_port("80/tcp", "a", A, 8080), to_port("80/udp", "a", A, 8080)]);
    for external in ["203.0.113.7:80", "[2001:db8::7]:80"] {
        assert!(lab.node.tcp(external).unwrap().starts_with("a "), "{external}");
        assert!(lab.node.udp(external).unwrap().starts_with("a "), "{external}");
    }
}

fn r20_a_pod_with_two_external_addresses_leaves_with_one_whatever_the_order_and_protocol(lab: &mut Lab) {
    let _client = lab.client.serve("client", "[::]:9000");
    let fixed = endpoint("203.0.113.8:80/tcp", "a", A);
    let own = endpoint("80/tcp", "a", A);
    for order in [[&fixed, &own], [&own, &fixed]] {
        lab.apply(&order.map(Clone::clone));
        assert_eq!(lab.a.tcp("198.51.100.9:9000"), Ok("client 203.0.113.8".into()));
        assert_eq!(lab.a.udp("198.51.100.9:9000"), Ok("client 203.0.113.8".into()));
        assert_eq!(lab.a.tcp("[2001:db8:51::9]:9000"), Ok("client 2001:db8::7".into()));
    }
    if !lab.is_nftables() {
        let egress = lab.iptables("-t nat -S PINHOLE-E-0AF40100");
        let every_protocol = egress.contains("-s 10.244.1.9/32") && !egress.contains("-p ");
        assert!(every_protocol, "no protocol is left out: {egress}");
    }
    assert_eq!(
        lab.b.tcp("198.51.100.9:9000"),
        Ok("client 10.244.1.10".into()),
        "pods without entries are left alone"
    );
}

fn a_pod_behind_a_pinhole_leaves_with_its_address_only_where_that_is_asked_for(lab: &mut Lab) {
    let (_client, _a) = (lab.client.serve("client", "[::]:9000"), lab.a.serve("a", "[::]:80"));
    let pinhole = |external, leaves| leaving(endpoint(external, "pinhole", A), leaves);
    let leaves = |lab: &Lab| {
        assert_eq!(
            lab.client.tcp("203.0.113.8:80"),
            Ok("a 198.51.100.9".into()),
            "it is reached all the same"
        );
        let as_whom = lab.a.tcp("198.51.100.9:9000");
        assert_eq!(lab.a.udp("198.51.100.9:9000"), as_whom);
        (as_whom.unwrap(), lab.a.tcp("[2001:db8:51::9]:9000").unwrap())
    };
    let seen = |v4: &str, v6: &str| (format!("client {v4}"), format!("client {v6}"));
    let (pod_v4, pod_v6) = (A[0], A[1]);
    lab.apply(&[pinhole("203.0.113.8:80/tcp", Leaving::AsTheClusterDoes)]);
    assert_eq!(leaves(lab), seen(pod_v4, pod_v6), "as the cluster does it, which here does nothing");
    let external = pinhole("203.0.113.8:80/tcp", Leaving::WithTheExternal);
    lab.apply(std::slice::from_ref(&external));
    assert_eq!(leaves(lab), seen("203.0.113.8", pod_v6));
    // The pod's own annotation names a lower address, and has the other family alone.
    let annotated = endpoint("81/tcp", "a", A);
    for both in [[&external, &annotated], [&annotated, &external]] {
        lab.apply(&both.map(Clone::clone));
        assert_eq!(leaves(lab), seen("203.0.113.8", "2001:db8::7"));
    }
    lab.read();
    assert_eq!(lab.apply(&[external, annotated.clone()]).transactions, [], "it is read as it was written");
    lab.apply(&[pinhole("203.0.113.8:80/tcp", Leaving::AsTheClusterDoes), annotated]);
    assert_eq!(leaves(lab), seen("203.0.113.7", "2001:db8::7"));
}

fn r06_a_pods_egress_address_survives_the_removal_of_one_of_its_entries(lab: &mut Lab) {
    let _client = lab.client.serve("client", "[::]:9000");
    let (_smtp, _imap) = (lab.a.serve("smtp", "[::]:25"), lab.a.serve("imap", "[::]:143"));
    let (smtp, imap) = (endpoint("25/tcp", "a", A), endpoint("143/tcp", "a", A));
    for kept in [&smtp, &imap] {
        lab.apply(&[smtp.clone(), imap.clone()]);
        lab.apply(std::slice::from_ref(kept));
        assert_eq!(lab.a.tcp("198.51.100.9:9000"), Ok("client 203.0.113.7".into()));
    }
    assert_eq!(lab.client.tcp("203.0.113.7:143"), Ok("imap 198.51.100.9".into()));
    assert_eq!(lab.client.tcp("203.0.113.7:25"), Err(ErrorKind::ConnectionRefused));
}

fn r25_cluster_networks_keep_the_pods_address_and_corporate_ones_do_not(lab: &mut Lab) {
    lab.client.sh("ip addr add 100.64.9.9/32 dev eth0; ip addr add 172.16.9.9/32 dev eth0");
    lab.node.sh("ip route add 100.64.0.0/10 via 198.51.100.9; ip route add 172.16.0.0/12 via 198.51.100.9");
    let _client = lab.client.serve("client", "[::]:9000");
    let facts = NodeFacts { cluster_cidrs: vec!["100.64.0.0/10".parse().unwrap()], ..Lab::facts() };
    lab.apply_as(&facts, &[endpoint("80/tcp", "a", A)]);
    assert_eq!(lab.a.tcp("100.64.9.9:9000"), Ok("client 10.244.1.9".into()), "inside the cluster");
    assert_eq!(lab.a.tcp("172.16.9.9:9000"), Ok("client 203.0.113.7".into()), "private, but outside");
    let _b = lab.b.serve("b", "[::]:9000");
    assert_eq!(lab.a.tcp("10.244.1.10:9000"), Ok("b 10.244.1.9".into()), "pods of the node");
}

fn r29_ranges_lead_port_by_port_to_the_same_or_shifted_ports(lab: &mut Lab) {
    let servers = [("first", 8000), ("second", 8001), ("last", 8100), ("same", 9005)];
    let _servers = servers.map(|(name, port)| lab.a.serve(name, &format!("[::]:{port}")));
    lab.apply(&[
        to_port("7000-7100/tcp", "a", A, 8000),
        to_port("7000-7100/udp", "a", A, 8000),
        endpoint("9000-9010/tcp", "a", A),
    ]);
    for address in ["203.0.113.7", "[2001:db8::7]"] {
        for (port, name) in [(7000, "first"), (7001, "second"), (7100, "last"), (9005, "same")] {
            let answer = lab.client.tcp(&format!("{address}:{port}")).unwrap();
            assert!(answer.starts_with(name), "{address}:{port} {answer}");
        }
        assert!(lab.client.udp(&format!("{address}:7001")).unwrap().starts_with("second"));
        assert_eq!(lab.client.tcp(&format!("{address}:7101")), Err(ErrorKind::ConnectionRefused));
    }
}

fn r29_sctp_rules_are_taken_by_the_kernel_and_read_back(lab: &mut Lab) {
    lab.apply(&[to_port("36412/sctp", "a", A, 36412), to_port("7000-7010/sctp", "a", A, 8000)]);
    let (program, rule) = if lab.is_nftables() {
        ("nft list map ip PINHOLE m_ports".to_owned(), "203.0.113.7 . sctp . 36412")
    } else {
        let chain = "-t nat -S PINHOLE-S-CB007107-238";
        (lab.command("iptables", chain), "-p sctp -m sctp --dport 36412")
    };
    let listed = lab.node.sh(&program);
    assert!(listed.contains(rule), "{listed}");
    assert_eq!(lab.read().ruleset.len(), 4);
    assert!(
        lab.apply(&[to_port("36412/sctp", "a", A, 36412), to_port("7000-7010/sctp", "a", A, 8000)])
            .transactions
            .is_empty()
    );
}

fn r29_whoever_is_not_allowed_is_dropped_not_refused_even_where_the_node_listens(lab: &mut Lab) {
    let (_a, _node) = (lab.a.serve("a", "[::]:80"), lab.node.serve("node", "[::]:80"));
    let allowed = ["198.51.100.0/24", "192.0.2.1/32"];
    let both = |sources: &[&str]| {
        [only_from(endpoint("80/tcp", "a", A), sources), only_from(endpoint("80/udp", "a", A), sources)]
    };
    lab.apply(&both(&allowed));
    assert_eq!(lab.client.tcp("203.0.113.7:80"), Ok("a 198.51.100.9".into()));
    assert_eq!(lab.client.udp("203.0.113.7:80"), Ok("a 198.51.100.9".into()));
    assert_eq!(lab.client.tcp("[2001:db8::7]:80"), Err(ErrorKind::TimedOut), "nobody may come by IPv6");

    lab.apply(&both(&["192.0.2.0/24", "2001:db8:51::/64"]));
    assert_eq!(lab.client.tcp("203.0.113.7:80"), Err(ErrorKind::TimedOut));
    assert_eq!(lab.client.udp("203.0.113.7:80"), Err(ErrorKind::TimedOut));
    assert_eq!(lab.client.tcp("[2001:db8::7]:80"), Ok("a 2001:db8:51::9".into()));
    assert_eq!(
        lab.client.tcp("203.0.113.8:80"),
        Ok("node 198.51.100.9".into()),
        "other addresses are the node's"
    );
}

fn r53_a_shorter_list_of_sources_leaves_established_connections_alone(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:80");
    lab.apply(&[endpoint("80/tcp", "a", A)]);
    let mut established = lab.client.connect("203.0.113.7:80").unwrap();
    established.ask().unwrap();
    lab.apply(&[only_from(endpoint("80/tcp", "a", A), &["192.0.2.0/24"])]);
    assert_eq!(established.ask().unwrap(), "a 198.51.100.9");
    assert_eq!(lab.client.tcp("203.0.113.7:80"), Err(ErrorKind::TimedOut));
}

fn r53_changing_the_other_sources_of_a_list_loses_no_connection(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:80");
    let lists = [1, 17, 40].map(|others| {
        let others = (0..others).map(|other| format!("192.0.2.{}/32", 2 * other));
        others.chain(["198.51.100.9/32".to_owned()]).collect::<Vec<_>>()
    });
    let wanted = |list: &[String]| {
        only_from(endpoint("80/tcp", "a", A), &list.iter().map(String::as_str).collect::<Vec<_>>())
    };
    lab.apply(&[wanted(&lists[0])]);
    while_connecting(lab, |lab| {
        for list in lists.iter().cycle().skip(1).take(60) {
            // nftables makes the new list first, and removes the old one last.
            let expected = if lab.is_nftables() { 3 } else { 1 };
            assert_eq!(lab.apply(&[wanted(list)]).transactions.len(), expected);
        }
    });
    lab.apply(&[only_from(endpoint("80/tcp", "a", A), &["192.0.2.0/24"])]);
    assert_eq!(lab.client.tcp("203.0.113.7:80"), Err(ErrorKind::TimedOut));
}

fn r35_a_fixed_source_wins_against_a_masquerade_that_stands_first(lab: &mut Lab) {
    let _client = lab.client.serve("client", "[::]:9000");
    let masquerade = "-s 10.244.0.0/16 ! -d 10.244.0.0/16 -j MASQUERADE";
    lab.iptables(&format!("-t nat -A POSTROUTING {masquerade}"));
    lab.apply(&[endpoint("203.0.113.8:80/tcp", "a", A)]);
    assert_eq!(lab.a.tcp("198.51.100.9:9000"), Ok("client 203.0.113.8".into()));
    assert_eq!(
        lab.b.tcp("198.51.100.9:9000"),
        Ok("client 198.51.100.1".into()),
        "the CNI's rule still serves others"
    );

    lab.iptables(&format!("-t nat -I POSTROUTING 1 {masquerade}"));
    // A priority needs no look to stand first.
    let until_then = if lab.is_nftables() { "client 203.0.113.8" } else { "client 198.51.100.1" };
    assert_eq!(lab.a.tcp("198.51.100.9:9000"), Ok(until_then.into()), "pre-empted until the next look");
    lab.read();
    lab.apply(&[endpoint("203.0.113.8:80/tcp", "a", A)]);
    assert_eq!(lab.a.tcp("198.51.100.9:9000"), Ok("client 203.0.113.8".into()));

    lab.iptables("-t nat -N FLANNEL-POSTRTG");
    lab.iptables(&format!("-t nat -A FLANNEL-POSTRTG {masquerade}"));
    lab.iptables("-t nat -I POSTROUTING 1 -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG");
    assert_eq!(lab.a.tcp("198.51.100.9:9000"), Ok(until_then.into()), "and so by a chain that masquerades");
    lab.read();
    lab.apply(&[endpoint("203.0.113.8:80/tcp", "a", A)]);
    assert_eq!(lab.a.tcp("198.51.100.9:9000"), Ok("client 203.0.113.8".into()));
    let rules = lab.iptables("-t nat -S");
    assert_eq!(rules.matches("! -d 10.244.0.0/16 -j MASQUERADE").count(), 3, "rules of others stay: {rules}");
}

fn what_kube_proxy_marked_for_masquerading_is_masqueraded(lab: &mut Lab) {
    let _client = lab.client.serve("client", "[::]:9000");
    lab.apply(&[endpoint("203.0.113.8:80/tcp", "a", A)]);
    lab.iptables("-t nat -A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE");
    lab.iptables("-t mangle -A PREROUTING -s 10.244.1.9 -p tcp --dport 9000 -j MARK --or-mark 0x4000");
    assert_eq!(lab.a.tcp("198.51.100.9:9000"), Ok("client 198.51.100.1".into()));
}

with_every_backend!(
    a_client_reaches_a_pod_by_tcp_and_udp_and_is_seen_with_its_own_address,
    r01_tcp_and_udp_of_one_port_lead_to_different_pods,
    r17_a_pod_reaches_itself_by_its_external_address,
    r18_a_pod_reaches_its_neighbour_by_the_external_address,
    r19_the_node_reaches_a_pod_by_its_external_address,
    r20_a_pod_with_two_external_addresses_leaves_with_one_whatever_the_order_and_protocol,
    a_pod_behind_a_pinhole_leaves_with_its_address_only_where_that_is_asked_for,
    r06_a_pods_egress_address_survives_the_removal_of_one_of_its_entries,
    r25_cluster_networks_keep_the_pods_address_and_corporate_ones_do_not,
    r29_ranges_lead_port_by_port_to_the_same_or_shifted_ports,
    r29_sctp_rules_are_taken_by_the_kernel_and_read_back,
    r29_whoever_is_not_allowed_is_dropped_not_refused_even_where_the_node_listens,
    r53_a_shorter_list_of_sources_leaves_established_connections_alone,
    r53_changing_the_other_sources_of_a_list_loses_no_connection,
    r35_a_fixed_source_wins_against_a_masquerade_that_stands_first,
    what_kube_proxy_marked_for_masquerading_is_masqueraded,
);
