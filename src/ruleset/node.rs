//! What a node is, as far as its NAT depends on it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use ipnet::IpNet;

use crate::model::address::Family;
use crate::model::address::PRIVATE;
use crate::model::address::is_public;
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
    /// Other destinations inside the cluster, as an operator names them: traffic to them keeps its source. Whoever names some has
    /// named them all.
    pub cluster_cidrs: Vec<IpNet>,
    /// The networks of all nodes' pods, as their Nodes show them; nothing of a family of which that is not all.
    pub node_cidrs: Vec<IpNet>,
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

    /// Whether it is known which other destinations of a family are inside the cluster.
    pub fn knows_cluster(&self, family: Family) -> bool {
        !self.cluster_cidrs.is_empty() || self.node_cidrs.iter().any(|net| Family::of(net.addr()) == family)
    }

    /// Destinations inside the cluster, as far as they are known, besides this node's pods.
    pub fn inside(&self) -> impl Iterator<Item = IpNet> {
        self.cluster_cidrs.iter().chain(&self.node_cidrs).copied()
    }

    /// Private destinations that see no fixed address, where pods have these: any of them may be a pod while it is not known what
    /// the cluster is, and nobody in a private network can be relied on to answer a public address. An operator who names the
    /// cluster has said that all else is outside.
    pub fn sheltered(&self, fixed: &[IpAddr]) -> Vec<IpNet> {
        let is_sheltered = |family: Family| {
            let mut fixed = fixed.iter().filter(|address| Family::of(**address) == family).peekable();
            let (is_used, shows_public) = (fixed.peek().is_some(), fixed.any(|address| is_public(*address)));
            is_used && self.cluster_cidrs.is_empty() && (shows_public || !self.knows_cluster(family))
        };
        PRIVATE.into_iter().filter(|net| is_sheltered(Family::of(net.addr()))).collect()
    }

    /// The addresses that entries without an address are served on.
    pub fn own_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.node_v4.map(IpAddr::V4).into_iter().chain(self.node_v6.map(IpAddr::V6))
    }
}
