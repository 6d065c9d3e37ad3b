//! Changes while packets flow: nothing is lost that need not be, and nothing stays that must go.

use std::io::ErrorKind;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use pinhole::model::handover::UdpHandover;
use pinhole::ruleset::desired::desired;
use pinhole::ruleset::endpoint::Endpoint;
use pinhole::ruleset::node::NodeFacts;

use crate::kernel::lab::A;
use crate::kernel::lab::B;
use crate::kernel::lab::Lab;
use crate::kernel::lab::endpoint;
use crate::kernel::lab::to_port;
use crate::kernel::namespace::Namespace;
use crate::kernel::with_every_backend;

/// Connects again and again while `change` runs. Every connection must be made, and none of the packets that open
/// them may get lost on the way.
pub(crate) fn while_connecting(lab: &mut Lab, change: impl FnOnce(&mut Lab)) {
    let client = std::mem::replace(&mut lab.client, Namespace::new());
    let done = AtomicBool::new(false);
    let answers = thread::scope(|scope| {
        let connecting = scope.spawn(|| {
            let mut answers = Vec::new();
            while !done.load(Ordering::Relaxed) {
                answers.push(client.connect_patiently("203.0.113.7:80"));
            }
            answers
        });
        let changed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| change(lab)));
        done.store(true, Ordering::Relaxed);
        let answers = connecting.join().unwrap();
        changed.unwrap();
        answers
    });
    let failed: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(client.lost_syns(), 0, "of {} connections", answers.len());
    assert!(20 < answers.len(), "only {} connections were tried", answers.len());
    lab.client = client;
}

fn r34_a_moving_jump_loses_no_connection(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:80");
    let wanted = [endpoint("80/tcp", "a", A)];
    lab.apply(&wanted);
    while_connecting(lab, |lab| {
        for _ in 0..20 {
            // Neither matches the client, but either could take its connection from us.
            lab.iptables("-t nat -I PREROUTING 1 -s 192.0.2.0/24 -j ACCEPT");
            lab.iptables("-I FORWARD 1 -s 192.0.2.0/24 -j ACCEPT");
            lab.read();
            let applied = lab.apply(&wanted);
            // nftables has its place by a priority, and no jump to move.
            assert_eq!(applied.transactions.len(), usize::from(!lab.is_nftables()));
        }
    });
}

fn r45_changing_neighbours_lose_no_connection(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:80");
    lab.apply(&[endpoint("80/tcp", "a", A)]);
    while_connecting(lab, |lab| {
        for port in 81..121 {
            let neighbour = endpoint(&format!("{port}/tcp"), "b", B);
            let applied = lab.apply(&[endpoint("80/tcp", "a", A), neighbour]);
            assert_eq!(applied.transactions.len(), 2, "one per family");
        }
    });
}

/// How many elements of nftables, or restores of iptables, other entries are replaced by while a client connects.
const ELEMENTS: usize = 100_000;
const RESTORES: usize = 1_000;

fn r45_replacing_other_entries_thousands_of_times_loses_no_connection(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:80");
    let facts = NodeFacts { node_v6: None, ..Lab::facts() };
    // A change of one entry is the least that iptables can restore; nftables replaces many in one transaction.
    let others = if lab.is_nftables() { 81..131 } else { 81..82 };
    let states = [("a", A), ("b", B)].map(|(pod, ips)| {
        let others = others.clone().map(|port| endpoint(&format!("{port}/tcp"), pod, &ips[..1]));
        let wanted: Vec<_> = others.chain([endpoint("80/tcp", "a", &A[..1])]).collect();
        desired(&wanted, &facts).ruleset
    });
    lab.apply_ruleset(&states[0]);
    let mut established = lab.client.connect("203.0.113.7:80").unwrap();
    established.ask().unwrap();
    // So many connections use a client's ports more than once.
    lab.client.sysctl("net/ipv4/tcp_tw_reuse", "1");
    while_connecting(lab, |lab| {
        let (mut elements, mut restores) = (0, 0);
        for next in states.iter().cycle().skip(1) {
            let applied = lab.apply_ruleset(next);
            assert!(applied.failures.is_empty() && applied.refused.is_empty(), "{applied:?}");
            assert_eq!(applied.transactions.len(), 1);
            restores += 1;
            elements += applied.transactions[0].elements;
            if if lab.is_nftables() { ELEMENTS <= elements } else { restores == RESTORES } {
                break;
            }
        }
    });
    assert_eq!(established.ask().unwrap(), "a 198.51.100.9");
}

fn r45_another_version_of_the_rules_loses_no_connection(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:80");
    let wanted = [endpoint("80/tcp", "a", A), endpoint("7000-7010/udp", "b", B)];
    lab.apply(&wanted);
    let mut established = lab.client.connect("203.0.113.7:80").unwrap();
    while_connecting(lab, |lab| {
        for mark in ["0x2000", "0x1000"].iter().cycle().take(20) {
            // Every rule that has to do with the mark is another one.
            lab.settings.mark = mark.parse().unwrap();
            lab.read();
            assert_eq!(lab.apply(&wanted).transactions.len(), 2, "one per family");
            assert_eq!(established.ask().unwrap(), "a 198.51.100.9");
        }
    });
}

/// What podnat-controller leaves on a node that it served port 80 on, in its own order and words.
fn podnat_controller_programs(lab: &Lab) {
    for rule in [
        "-N PODNAT_FORWARD",
        "-t nat -N PODNAT_PRE",
        "-t nat -N PODNAT_POST",
        "-I FORWARD 1 -m comment --comment 'podnat[jump_to_chain]' -j PODNAT_FORWARD",
        "-t nat -I PREROUTING 1 -m comment --comment 'podnat[jump_to_chain]' -j PODNAT_PRE",
        "-t nat -I POSTROUTING 1 -m comment --comment 'podnat[jump_to_chain]' -j PODNAT_POST",
        "-t nat -A PODNAT_POST -d 10.0.0.0/8 -m comment --comment 'podnat[no_snat_for_internal]' -j RETURN",
        "-A PODNAT_FORWARD -d 10.244.1.9/32 -p tcp -m conntrack --ctstate NEW -m tcp --dport 80 -m comment --comment default:a -j ACCEPT",
        "-t nat -A PODNAT_PRE -d 203.0.113.7/32 -p tcp -m tcp --dport 80 -m comment --comment default:a -j DNAT --to-destination 10.244.1.9:80",
        "-t nat -A PODNAT_POST -s 10.244.1.9/32 -p tcp -m comment --comment default:a -j SNAT --to-source 203.0.113.7",
    ] {
        lab.iptables(rule);
    }
}

fn r40_a_node_moves_over_from_podnat_controller_without_a_lost_connection(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:80");
    podnat_controller_programs(lab);
    let mut established = lab.client.connect("203.0.113.7:80").unwrap();
    assert_eq!(established.ask().unwrap(), "a 198.51.100.9");
    let leftovers = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/podnat-controller-leftovers.rules");
    while_connecting(lab, |lab| {
        lab.apply(&[endpoint("80/tcp", "a", A)]);
        thread::sleep(Duration::from_millis(100));
        lab.node.sh(&format!("{} < {leftovers}", lab.command("iptables", "-restore --noflush -w 5")));
        thread::sleep(Duration::from_millis(100));
    });
    assert!(!lab.saved().to_lowercase().contains("podnat"), "{}", lab.saved());
    assert_eq!(established.ask().unwrap(), "a 198.51.100.9");
}

fn r43_an_established_connection_survives_the_removal_of_the_last_entry(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:80");
    lab.apply(&[endpoint("80/tcp", "a", A)]);
    let mut established = lab.client.connect("203.0.113.7:80").unwrap();
    assert_eq!(established.ask().unwrap(), "a 198.51.100.9");
    lab.apply(&[]);
    assert_eq!(established.ask().unwrap(), "a 198.51.100.9");
    assert_eq!(
        lab.client.tcp("203.0.113.7:80"),
        Err(ErrorKind::ConnectionRefused),
        "new ones are the node's"
    );
}

fn r44_a_connection_to_a_reserved_port_waits_for_the_pod(lab: &mut Lab) {
    let _node = lab.node.serve("node", "[::]:80");
    lab.apply(&[endpoint("80/tcp", "a", &[]), endpoint("80/udp", "a", &[])]);
    assert_eq!(
        lab.client.tcp("203.0.113.7:80"),
        Err(ErrorKind::TimedOut),
        "the node does not answer for the pod"
    );
    assert_eq!(lab.client.tcp("203.0.113.8:80"), Ok("node 198.51.100.9".into()));

    let flow = lab.client.flow("203.0.113.7:80");
    assert_eq!(flow.ask(), Err(ErrorKind::TimedOut));
    let left = lab.node.sh("conntrack -L -f ipv4 -p udp 2>/dev/null");
    assert!(!left.contains("dport=80"), "a flow that was not served leaves no trace: {left}");

    let _a = lab.a.serve("a", "[::]:80");
    let client = std::mem::replace(&mut lab.client, Namespace::new());
    let waited = thread::scope(|scope| {
        let waiting = scope.spawn(|| client.connect_patiently("203.0.113.7:80"));
        thread::sleep(Duration::from_millis(300));
        lab.apply(&[endpoint("80/tcp", "a", A), endpoint("80/udp", "a", A)]);
        waiting.join().unwrap()
    });
    assert_eq!(waited.unwrap(), "a 198.51.100.9", "the first SYN came before the pod, a later one after");
    assert_eq!(
        flow.ask(),
        Ok("a 198.51.100.9".into()),
        "the same UDP flow is served as soon as there is a pod"
    );
}

fn r49_a_range_is_guarded_and_forwarded_like_a_single_port(lab: &mut Lab) {
    lab.iptables("-P FORWARD DROP");
    let _servers = [lab.a.serve("same", "[::]:9005"), lab.a.serve("shifted", "[::]:8005")];
    let _node = lab.node.serve("node", "[::]:7005");
    let mut wanted = Vec::new();
    for protocol in ["tcp", "udp"] {
        wanted.push(endpoint(&format!("7000-7010/{protocol}"), "later", &[]));
        wanted.push(endpoint(&format!("9000-9010/{protocol}"), "a", A));
        wanted.push(to_port(&format!("7100-7110/{protocol}"), "a", A, 8000));
    }
    lab.read();
    lab.apply(&wanted);
    assert_eq!(lab.client.tcp("203.0.113.7:7005"), Err(ErrorKind::TimedOut), "reserved, and not the node's");
    assert_eq!(lab.client.udp("203.0.113.7:7005"), Err(ErrorKind::TimedOut));
    let left = lab.node.sh("conntrack -L -f ipv4 2>/dev/null");
    assert!(!left.contains("dport=7005"), "what was not served leaves no trace: {left}");
    for (port, name) in [(9005, "same"), (7105, "shifted")] {
        let (external, answer) = (format!("203.0.113.7:{port}"), format!("{name} 198.51.100.9"));
        assert_eq!(lab.client.tcp(&external).as_ref(), Ok(&answer), "accepted where iptables would drop");
        assert_eq!(lab.client.udp(&external).as_ref(), Ok(&answer));
    }
    assert_eq!(lab.client.tcp("203.0.113.8:7005"), Ok("node 198.51.100.9".into()));
}

fn r10_an_edited_or_removed_entry_closes_its_old_port_at_once(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:25");
    lab.apply(&[endpoint("25/tcp", "a", A)]);
    assert_eq!(lab.client.tcp("203.0.113.7:25"), Ok("a 198.51.100.9".into()));
    lab.apply(&[to_port("2525/tcp", "a", A, 25)]);
    assert_eq!(lab.client.tcp("203.0.113.7:25"), Err(ErrorKind::ConnectionRefused));
    assert_eq!(lab.client.tcp("203.0.113.7:2525"), Ok("a 198.51.100.9".into()));
    lab.apply(&[]);
    assert_eq!(lab.client.tcp("203.0.113.7:2525"), Err(ErrorKind::ConnectionRefused));
}

fn r24_a_udp_flow_stays_with_a_draining_pod_until_it_is_gone(lab: &mut Lab) {
    let (_a, _b) = (lab.a.serve("a", "[::]:53"), lab.b.serve("b", "[::]:53"));
    lab.apply(&[endpoint("53/udp", "a", A)]);
    for (external, client) in [("203.0.113.7:53", "198.51.100.9"), ("[2001:db8::7]:53", "2001:db8:51::9")] {
        lab.hand_over(&[endpoint("53/udp", "a", A)], &[], UdpHandover::Drain);
        let flow = lab.client.flow(external);
        assert_eq!(flow.ask(), Ok(format!("a {client}")));
        lab.hand_over(&[endpoint("53/udp", "b", B)], &[], UdpHandover::Drain);
        assert_eq!(flow.ask(), Ok(format!("a {client}")), "the old pod keeps its flows");
        assert_eq!(lab.client.udp(external), Ok(format!("b {client}")), "new flows go to the new one");
        lab.hand_over(&[endpoint("53/udp", "b", B)], A, UdpHandover::Drain);
        assert_eq!(flow.ask(), Ok(format!("b {client}")), "gone");
    }
}

fn r24_a_udp_flow_is_cut_over_when_asked_to(lab: &mut Lab) {
    let (_a, _b) = (lab.a.serve("a", "[::]:53"), lab.b.serve("b", "[::]:53"));
    lab.apply(&[endpoint("53/udp", "a", A)]);
    let flow = lab.client.flow("203.0.113.7:53");
    assert_eq!(flow.ask(), Ok("a 198.51.100.9".into()));
    lab.hand_over(&[endpoint("53/udp", "b", B)], &[], UdpHandover::Cut);
    assert_eq!(flow.ask(), Ok("b 198.51.100.9".into()));
}

fn r24_what_becomes_of_a_udp_flow_is_said_by_who_takes_over_before_the_node(lab: &mut Lab) {
    use UdpHandover::Cut;
    use UdpHandover::Drain;
    let (_a, _b) = (lab.a.serve("a", "[::]:53"), lab.b.serve("b", "[::]:53"));
    for (of_the_node, said, answers) in [(Drain, Some(Cut), "b"), (Cut, Some(Drain), "a"), (Cut, None, "b")] {
        lab.hand_over(&[endpoint("53/udp", "a", A)], &[], Cut);
        let flow = lab.client.flow("203.0.113.7:53");
        assert_eq!(flow.ask(), Ok("a 198.51.100.9".into()));
        let taking_over = Endpoint { udp_handover: said, ..endpoint("53/udp", "b", B) };
        lab.hand_over(&[taking_over], &[], of_the_node);
        assert_eq!(flow.ask(), Ok(format!("{answers} 198.51.100.9")), "{of_the_node:?} {said:?}");
    }
}

fn r20_a_udp_flow_that_a_pod_began_before_it_had_a_port_goes_on_with_the_fixed_address(lab: &mut Lab) {
    let _client = lab.client.serve("client", "[::]:9000");
    // As a CNI plugin does.
    lab.iptables("-t nat -A POSTROUTING -s 10.244.1.0/24 -o eth0 -j MASQUERADE");
    lab.apply(&[]);
    let flows = [&lab.a, &lab.b].map(|pod| pod.flow("198.51.100.9:9000"));
    let connection = &mut lab.a.connect("198.51.100.9:9000").unwrap();
    for flow in &flows {
        assert_eq!(flow.ask(), Ok("client 198.51.100.1".into()));
    }
    assert_eq!(connection.ask().unwrap(), "client 198.51.100.1");
    lab.hand_over(&[endpoint("80/tcp", "a", A)], &[], UdpHandover::Drain);
    assert_eq!(flows[0].ask(), Ok("client 203.0.113.7".into()));
    assert_eq!(flows[1].ask(), Ok("client 198.51.100.1".into()), "of a pod without a port");
    assert_eq!(connection.ask().unwrap(), "client 198.51.100.1", "established connections stay");
}

fn r24_a_udp_flow_ends_with_its_entry(lab: &mut Lab) {
    let _a = lab.a.serve("a", "[::]:53");
    lab.apply(&[endpoint("53/udp", "a", A), endpoint("54/udp", "a", A)]);
    let flow = lab.client.flow("203.0.113.7:53");
    assert_eq!(flow.ask(), Ok("a 198.51.100.9".into()));
    lab.hand_over(&[endpoint("54/udp", "a", A)], &[], UdpHandover::Drain);
    assert!(flow.ask().is_err());
}

fn r24_a_udp_flow_that_started_before_its_entry_is_served(lab: &mut Lab) {
    let node = lab.node.serve("node", "203.0.113.7:53");
    lab.apply(&[]);
    let flow = lab.client.flow("203.0.113.7:53");
    assert_eq!(flow.ask(), Ok("node 198.51.100.9".into()));
    drop(node);
    let _a = lab.a.serve("a", "[::]:53");
    lab.hand_over(&[endpoint("53/udp", "a", A)], &[], UdpHandover::Drain);
    assert_eq!(flow.ask(), Ok("a 198.51.100.9".into()));
}

fn r24_only_flows_through_our_ports_are_ended(lab: &mut Lab) {
    let (_a, _b) = (lab.a.serve("a", "[::]:53"), lab.b.serve("b", "[::]:53"));
    lab.apply(&[endpoint("53/udp", "a", A), endpoint("53/tcp", "a", A)]);
    let direct = lab.client.flow("10.244.1.9:53");
    direct.ask().unwrap();
    let mut ours = lab.client.connect("203.0.113.7:53").unwrap();
    ours.ask().unwrap();
    lab.hand_over(&[endpoint("53/udp", "b", B), endpoint("53/tcp", "b", B)], &[], UdpHandover::Cut);
    assert_eq!(ours.ask().unwrap(), "a 198.51.100.9", "TCP connections end by themselves");
    lab.hand_over(&[endpoint("53/udp", "b", B), endpoint("53/tcp", "b", B)], A, UdpHandover::Cut);
    assert!(ours.ask().is_err(), "the pod is gone, and its address may get another owner");
    let left = lab.node.sh("conntrack -L -f ipv4 2>/dev/null");
    assert!(
        left.contains("dst=10.244.1.9 sport"),
        "a connection to the pod itself is nobody's business: {left}"
    );
}

with_every_backend!(
    r34_a_moving_jump_loses_no_connection,
    r45_changing_neighbours_lose_no_connection,
    r45_replacing_other_entries_thousands_of_times_loses_no_connection,
    r45_another_version_of_the_rules_loses_no_connection,
    r40_a_node_moves_over_from_podnat_controller_without_a_lost_connection,
    r43_an_established_connection_survives_the_removal_of_the_last_entry,
    r44_a_connection_to_a_reserved_port_waits_for_the_pod,
    r49_a_range_is_guarded_and_forwarded_like_a_single_port,
    r10_an_edited_or_removed_entry_closes_its_old_port_at_once,
    r24_a_udp_flow_stays_with_a_draining_pod_until_it_is_gone,
    r24_a_udp_flow_is_cut_over_when_asked_to,
    r24_what_becomes_of_a_udp_flow_is_said_by_who_takes_over_before_the_node,
    r20_a_udp_flow_that_a_pod_began_before_it_had_a_port_goes_on_with_the_fixed_address,
    r24_a_udp_flow_ends_with_its_entry,
    r24_a_udp_flow_that_started_before_its_entry_is_served,
    r24_only_flows_through_our_ports_are_ended,
);
