//! Endpoints and nodes as tests say them.
//!
//! ```text
//! 203.0.113.0/24   2001:db8::/64      external addresses; the node's own are .7 and ::7
//! 10.244.0.0/16    fd00:244::/48      pods; this node's are 10.244.1.0/24 and fd00:244:1::/64, others' 10.244.2.0/24 and so on
//! 10.99.0.0/24     fd00:99::/64       pods of this node with addresses that its Node does not name
//! 198.51.100.0/24                     clients outside
//! ```

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use ipnet::Ipv4Net;
use proptest::prelude::*;

use crate::model::address::ExternalAddress;
use crate::model::holder::ObjectName;
use crate::model::mapping::Address;
use crate::model::mapping::Mapping;
use crate::model::masquerade::Policy;
use crate::model::port::PortRange;
use crate::model::port::Protocol;
use crate::ruleset::Ruleset;
use crate::ruleset::desired::desired;
use crate::ruleset::endpoint::Endpoint;
use crate::ruleset::endpoint::Leaving;
use crate::ruleset::entry::Entry;
use crate::ruleset::node::NodeFacts;

/// Parses a value that the test is sure of.
pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Parses a value that the test is sure of.
pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// A dual-stack node that also gets traffic for 203.0.113.64/26.
pub(crate) fn node() -> NodeFacts {
    NodeFacts {
        addresses: ["203.0.113.7", "203.0.113.8", "10.0.0.7", "2001:db8::7"].map(ip).into(),
        node_v4: Some("203.0.113.7".parse().unwrap()),
        node_v6: Some("2001:db8::7".parse().unwrap()),
        include: vec![net("203.0.113.64/26")],
        exclude: Vec::new(),
        pod_cidrs: vec![net("10.244.1.0/24"), net("fd00:244:1::/64")],
        pods: BTreeSet::new(),
        cluster_cidrs: vec![net("10.244.0.0/16"), net("10.96.0.0/12"), net("fd00:244::/48")],
        node_cidrs: Vec::new(),
        masquerade: None,
    }
}

/// A node with one IPv4 address.
pub(crate) fn v4_node() -> NodeFacts {
    NodeFacts {
        addresses: [ip("203.0.113.7")].into(),
        node_v6: None,
        include: Vec::new(),
        exclude: Vec::new(),
        pod_cidrs: vec![net("10.244.1.0/24")],
        cluster_cidrs: vec![net("10.244.0.0/16")],
        ..node()
    }
}

/// `external` (`203.0.113.8:80/tcp`, or `80/tcp` on the node's own address) for `pod`, whose first port is the same.
pub(crate) fn endpoint(external: &str, pod: &str, ips: &[&str]) -> Endpoint {
    let (external, protocol) = external.rsplit_once('/').unwrap();
    let (address, ports) = external.rsplit_once(':').unwrap_or(("", external));
    let address = address.trim_matches(['[', ']']);
    let address = match address {
        "" => Address::Node,
        fixed => Address::Fixed(ExternalAddress::new(ip(fixed)).unwrap()),
    };
    let ports: PortRange = ports.parse().unwrap();
    let protocol: Protocol = protocol.parse().unwrap();
    Endpoint {
        mapping: Mapping::new(address, protocol, ports, ports.first()).unwrap(),
        pod: ObjectName::new("default", pod),
        uid: format!("uid-of-{pod}"),
        ips: ips.iter().copied().map(ip).collect(),
        leaving: Leaving::default(),
        udp_handover: None,
        suspended: false,
    }
}

impl Endpoint {
    /// The same with another pod port.
    pub(crate) fn at(mut self, first: u16) -> Self {
        let first = crate::model::port::Port::new(first).unwrap();
        let sources = self.mapping.allowed_sources().to_vec();
        let Self { mapping, .. } = &self;
        let mapping = Mapping::new(mapping.address(), mapping.protocol(), mapping.external(), first);
        self.mapping = mapping.unwrap().with_allowed_sources(sources);
        self
    }

    /// The same with a pod that leaves the cluster so.
    pub(crate) fn leaving(self, leaving: Leaving) -> Self {
        Self { leaving, ..self }
    }

    /// The same for these sources only.
    pub(crate) fn from(mut self, sources: &[&str]) -> Self {
        self.mapping = self.mapping.with_allowed_sources(sources.iter().copied().map(net).collect());
        self
    }
}

/// The rules for endpoints that the node can all serve.
pub(crate) fn ruleset(endpoints: &[Endpoint], node: &NodeFacts) -> Ruleset {
    let desired = desired(endpoints, node);
    assert_eq!(desired.refused, [], "the fixture asks for what the node can serve");
    desired.ruleset
}

/// The entries as text.
pub(crate) fn entries(ruleset: &Ruleset) -> Vec<String> {
    ruleset.entries().map(Entry::to_string).collect()
}

/// Any endpoints, of pods here and on other nodes: the node serves those that it can.
pub(crate) fn any_endpoints() -> impl Strategy<Value = Vec<Endpoint>> {
    let external = prop::sample::select(vec![
        "",
        "203.0.113.7:",
        "203.0.113.8:",
        "203.0.113.65:",
        "[2001:db8::7]:",
        "8.8.8.8:",
    ]);
    let protocol = prop::sample::select(vec!["tcp", "udp", "sctp"]);
    let first = prop_oneof![1_u16..200, 1_u16..60000, 65400_u16..65500];
    let span = prop_oneof![Just(0_u16), 0_u16..30, 60_u16..80];
    let pod = 1_u8..130;
    let target = prop_oneof![Just(0_u16), 1_u16..60000];
    let sources = prop::sample::subsequence(
        ["198.51.100.0/24", "192.0.2.1/32", "2001:db8:9::/48", "0.0.0.0/0"].map(str::to_owned).to_vec(),
        0..3,
    );
    let long = prop_oneof![4 => Just(0_u32), 1 => 15_u32..20, 1 => 60_u32..200];
    let sources = (sources, long).prop_map(|(mut sources, long)| {
        // No two of these make one network.
        sources
            .extend((0..long).map(|n| Ipv4Net::new_assert((0x0b00_0000 + 512 * n).into(), 24).to_string()));
        sources
    });
    let place = prop_oneof![
        2 => Just(("10.244.1", "fd00:244:1:")),
        1 => Just(("10.244.2", "fd00:244:2:")),
        1 => Just(("10.99.0", "fd00:99:")),
    ];
    let leaving = prop::sample::select(vec![
        Leaving::WithItsPorts,
        Leaving::WithTheExternal,
        Leaving::AsTheClusterDoes,
    ]);
    let parts = (external, protocol, first, span, (pod, place), target, sources, (0_u8..4, leaving));
    let endpoint =
        parts.prop_map(|(external, protocol, first, span, (pod, place), target, sources, rest)| {
            let (ips, leaving) = rest;
            let sources: Vec<_> = sources.iter().map(String::as_str).collect();
            let last = first.saturating_add(span);
            let (v4, v6) = (format!("{}.{pod}", place.0), format!("{}:{pod:x}", place.1));
            let ips: &[&str] = match ips {
                0 => &[],
                1 => &[&v4],
                2 => &[&v6],
                _ => &[&v4, &v6],
            };
            let endpoint =
                endpoint(&format!("{external}{first}-{last}/{protocol}"), &format!("pod-{pod}"), ips);
            let endpoint = endpoint.from(&sources).leaving(leaving);
            if target == 0 { endpoint } else { endpoint.at(target.min(65535 - span)) }
        });
    prop::collection::vec(endpoint, 0..12)
}

/// Rules for whatever endpoints the node can serve, under any masquerade policy.
pub(crate) fn any_ruleset() -> impl Strategy<Value = Ruleset> {
    let networks = |from: &[&str]| {
        let from: Vec<_> = from.iter().copied().map(net).collect();
        let length = from.len();
        prop::sample::subsequence(from, 0..=length)
    };
    let policy = (
        networks(&["10.244.0.0/16", "192.0.2.0/24", "fd00:244:1::/64"]),
        networks(&["172.16.0.0/12", "192.0.2.7/32", "2001:db8:9::/48"]),
        prop::sample::subsequence(vec!["wg0", "eth1"], 0..=2),
        any::<bool>(),
    );
    let policy = policy.prop_map(|(pod_cidrs, except, interfaces, override_existing)| Policy {
        pod_cidrs,
        except,
        excluded_interfaces: interfaces.into_iter().map(|name| name.parse().unwrap()).collect(),
        override_existing,
    });
    let cluster = (any::<bool>(), networks(&["10.244.0.0/16", "fd00:244::/48"]));
    (any_endpoints(), prop::option::of(policy), cluster).prop_map(
        |(endpoints, masquerade, (is_named, learnt))| {
            let unnamed = [net("10.99.0.0/24"), net("fd00:99::/64")];
            let is_here = |ip: &IpAddr| unnamed.iter().any(|net| net.contains(ip));
            let pods = endpoints.iter().flat_map(|endpoint| &endpoint.ips).copied().filter(is_here).collect();
            let node = if is_named {
                node()
            } else {
                NodeFacts { cluster_cidrs: Vec::new(), node_cidrs: learnt, ..node() }
            };
            desired(&endpoints, &NodeFacts { pods, masquerade, ..node }).ruleset
        },
    )
}
