//! What a node is, as far as its NAT depends on it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use ipnet::IpNet;

use crate::model::masquerade::Policy;

/// Facts about one node. Whoever gathers them decides which address is "the node's own"; this only uses them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Every address on the node's interfaces.
    pub addresses: BTreeSet<IpAddr>,
    /// The IPv4 address that entries without an address (`ifaceAuto`) are served on.
    pub node_v4: Option<Ipv4Addr>,
    /// The IPv6 address that entries without an address are served on.
    pub node_v6: Option<Ipv6Addr>,
    /// Addresses that are routed to the node without being on an interface (`--include-net`).
    pub include: Vec<IpNet>,
    /// Addresses that are never served, though the node has them (`--exclude-net`).
    pub exclude: Vec<IpNet>,
    /// The addresses of this node's pods.
    pub pod_cidrs: Vec<IpNet>,
    /// The addresses of pods that are known to run here, whatever the networks above say: some CNIs give pods addresses
    /// outside the CIDRs of their Node.
    pub pods: BTreeSet<IpAddr>,
    /// Other destinations inside the cluster: traffic to them keeps its source.
    pub cluster_cidrs: Vec<IpNet>,
    /// What the node is to masquerade; nothing where others do.
    pub masquerade: Option<Policy>,
}

impl NodeFacts {
    /// Whether the node may answer for an address: it has it, or the operator says that it is routed here, and the
    /// operator has not ruled it out. Anything else could be used to intercept other people's traffic (R27).
    pub fn may_serve(&self, address: IpAddr) -> bool {
        let is_in = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&address));
        (self.addresses.contains(&address) || is_in(&self.include)) && !is_in(&self.exclude)
    }

    /// The addresses that entries without an address are served on.
    pub fn own_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.node_v4.map(IpAddr::V4).into_iter().chain(self.node_v6.map(IpAddr::V6))
    }
}
