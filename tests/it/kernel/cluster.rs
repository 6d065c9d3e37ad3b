//! To whom a pod shows the address of its ports: to the outside, and not to other pods, whoever knows where these are.
//!
//! The lab's node and the one behind its `fabric`, as `gateway` has them; each is a node of the cluster.

use std::net::IpAddr;

use pinhole::model::masquerade::Policy;
use pinhole::ruleset::endpoint::Endpoint;
use pinhole::ruleset::node::NodeFacts;

use crate::kernel::gateway::Beyond;
use crate::kernel::lab::A;
use crate::kernel::lab::Lab;
use crate::kernel::lab::endpoint;
use crate::kernel::with_every_backend;

/// A node whose operator has named no network.
fn untold() -> NodeFacts {
    let private: [IpAddr; 2] = ["10.0.0.1".parse().unwrap(), "fd00:1::1".parse().unwrap()];
    let facts = Lab::facts();
    NodeFacts {
        addresses: facts.addresses.iter().copied().chain(private).collect(),
        cluster_cidrs: Vec::new(),
        ..facts
    }
}

/// The same where every Node shows which pods it has.
fn shown() -> NodeFacts {
    let nets = ["10.244.1.0/24", "10.244.2.0/24", "fd00:244:1::/64", "fd00:244:2::/64"];
    NodeFacts { node_cidrs: nets.iter().map(|net| net.parse().unwrap()).collect(), ..untold() }
}

/// The same where an operator has named the cluster.
fn named() -> NodeFacts {
    let nets = ["10.244.0.0/16", "fd00:244::/32"];
    NodeFacts { cluster_cidrs: nets.iter().map(|net| net.parse().unwrap()).collect(), ..untold() }
}

/// Applies it, and finds nothing left to do afterwards.
fn settle(lab: &mut Lab, facts: &NodeFacts, endpoints: &[Endpoint]) {
    lab.apply_as(facts, endpoints);
    lab.read();
    assert_eq!(lab.apply_as(facts, endpoints).transactions, []);
}

fn r25_a_mapped_pod_is_seen_as_itself_by_pods_of_other_nodes_whether_or_not_the_cluster_is_known(
    lab: &mut Lab,
) {
    let beyond = Beyond::build(lab);
    beyond.route_back();
    let (_far, _client) = (beyond.pod.serve("far", "[::]:9000"), lab.client.serve("client", "[::]:9000"));
    for (what, facts) in [("nobody knows the cluster", untold()), ("the Nodes show it", shown())] {
        settle(lab, &facts, &[endpoint("80/tcp", "a", A)]);
        assert_eq!(lab.a.tcp("10.244.2.9:9000"), Ok("far 10.244.1.9".into()), "{what}");
        assert_eq!(lab.a.udp("10.244.2.9:9000"), Ok("far 10.244.1.9".into()), "{what}");
        assert_eq!(lab.a.tcp("[fd00:244:2::9]:9000"), Ok("far fd00:244:1::9".into()), "{what}");
        assert_eq!(lab.a.tcp("198.18.0.9:9000"), Ok("client 203.0.113.7".into()), "{what}");
        assert_eq!(lab.a.tcp("[2001:db8:99::9]:9000"), Ok("client 2001:db8::7".into()), "{what}");
    }
}

fn r25_a_private_network_sees_a_private_fixed_address_once_it_is_known_not_to_be_the_cluster(lab: &mut Lab) {
    let beyond = Beyond::build(lab);
    beyond.route_back();
    let (_far, _other) = (beyond.pod.serve("far", "[::]:9000"), beyond.node.serve("other", "[::]:9001"));
    let internal = ["10.0.0.1:80/tcp", "[fd00:1::1]:80/tcp"].map(|port| endpoint(port, "a", A));
    for (what, facts, v4, v6) in [
        ("nobody knows the cluster", untold(), "other 10.244.1.9", "other fd00:244:1::9"),
        ("the Nodes show it", shown(), "other 10.0.0.1", "other fd00:1::1"),
        ("an operator named it", named(), "other 10.0.0.1", "other fd00:1::1"),
    ] {
        settle(lab, &facts, &internal);
        assert_eq!(lab.a.tcp("10.0.0.2:9001"), Ok(v4.into()), "{what}");
        assert_eq!(lab.a.tcp("[fd00:1::2]:9001"), Ok(v6.into()), "{what}");
        assert_eq!(lab.a.tcp("10.244.2.9:9000"), Ok("far 10.244.1.9".into()), "{what}");
        assert_eq!(lab.a.tcp("[fd00:244:2::9]:9000"), Ok("far fd00:244:1::9".into()), "{what}");
    }
}

fn what_sees_no_fixed_address_is_masqueraded_as_a_policy_says(lab: &mut Lab) {
    let beyond = Beyond::build(lab);
    let _other = beyond.node.serve("other", "[::]:9001");
    let _client = lab.client.serve("client", "[::]:9000");
    let facts = NodeFacts { masquerade: Some(Policy::default()), ..shown() };
    settle(lab, &facts, &[endpoint("80/tcp", "a", A)]);
    assert_eq!(lab.a.tcp("10.0.0.2:9001"), Ok("other 10.0.0.1".into()), "with the node's address there");
    assert_eq!(lab.a.tcp("198.18.0.9:9000"), Ok("client 203.0.113.7".into()));
    settle(lab, &facts, &[]);
    assert_eq!(lab.a.tcp("10.0.0.2:9001"), Ok("other 10.0.0.1".into()), "without a port");
}

with_every_backend!(
    r25_a_mapped_pod_is_seen_as_itself_by_pods_of_other_nodes_whether_or_not_the_cluster_is_known,
    r25_a_private_network_sees_a_private_fixed_address_once_it_is_known_not_to_be_the_cluster,
    what_sees_no_fixed_address_is_masqueraded_as_a_policy_says,
);
