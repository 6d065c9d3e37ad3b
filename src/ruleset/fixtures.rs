//! Endpoints and nodes as tests say them.
//!
//! ```text
//! 203.0.113.0/24   2001:db8::/64      external addresses; the node's own are .7 and ::7
//! 10.244.0.0/16    fd00:244::/48      pods; this node's are 10.244.1.0/24 and fd00:244:1::/64
//! 198.51.100.0/24                     clients outside
//! ```

use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::address::ExternalAddress;
use crate::model::holder::ObjectName;
use crate::model::mapping::Address;
use crate::model::mapping::Mapping;
use crate::model::port::PortRange;
use crate::model::port::Protocol;
use crate::ruleset::Ruleset;
use crate::ruleset::desired;
use crate::ruleset::endpoint::Endpoint;
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
        cluster_cidrs: vec![net("10.244.0.0/16"), net("10.96.0.0/12"), net("fd00:244::/48")],
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
