//! A mapping: external ports of one address and protocol, and the pod ports behind them.

use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::address::ExternalAddress;
use crate::model::port::Port;
use crate::model::port::PortRange;
use crate::model::port::Protocol;

/// Where the outside connects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// The own address of whichever node the pod runs on (`ifaceAuto`). A port of it is unique per node.
    Node,
    /// One address, wherever it lives (`srcIP`). A port of it is unique in the cluster.
    Fixed(ExternalAddress),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => f.write_str("node"),
            Self::Fixed(address) => address.fmt(f),
        }
    }
}

/// External ports and the pod ports they lead to; both sides have the same number of ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mapping {
    address: Address,
    protocol: Protocol,
    external: PortRange,
    target: PortRange,
    /// Shared by the mappings of a set's pods: a list can be long.
    allowed_sources: Arc<[IpNet]>,
    terminates_existing: bool,
}

impl Mapping {
    /// Maps `external` to as many pod ports from `first_target` on. `None` when those would pass 65535.
    pub fn new(
        address: Address,
        protocol: Protocol,
        external: PortRange,
        first_target: Port,
    ) -> Option<Self> {
        let target = external.moved_to(first_target)?;
        Some(Self {
            address,
            protocol,
            external,
            target,
            allowed_sources: Arc::default(),
            terminates_existing: false,
        })
    }

    /// The same mapping for these sources only (sorted, without repetition); none means everybody.
    pub fn with_allowed_sources(mut self, mut sources: Vec<IpNet>) -> Self {
        sources.sort();
        sources.dedup();
        self.allowed_sources = sources.into();
        self
    }

    /// The same mapping, of which connections end when their source is taken off the list.
    pub const fn terminating_existing(mut self, terminates: bool) -> Self {
        self.terminates_existing = terminates;
        self
    }

    /// The same mapping with its external ports from another one on; `None` when they would pass 65535.
    pub fn moved_to(&self, first: Port) -> Option<Self> {
        Some(Self { external: self.external.moved_to(first)?, ..self.clone() })
    }

    /// The same mapping to other ports of the pod, from this one on; `None` when they would pass 65535.
    pub fn leading_to(&self, first: Port) -> Option<Self> {
        Some(Self { target: self.external.moved_to(first)?, ..self.clone() })
    }

    /// The same mapping at this address.
    #[must_use]
    pub fn at(&self, address: ExternalAddress) -> Self {
        Self { address: Address::Fixed(address), ..self.clone() }
    }

    /// Where the outside connects to.
    pub const fn address(&self) -> Address {
        self.address
    }

    /// The protocol on both sides.
    pub const fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The ports that the outside connects to.
    pub const fn external(&self) -> PortRange {
        self.external
    }

    /// The pod's ports; the n-th external port leads to the n-th of these.
    pub const fn target(&self) -> PortRange {
        self.target
    }

    /// Who may connect; empty means everybody.
    pub fn allowed_sources(&self) -> &[IpNet] {
        &self.allowed_sources
    }

    /// Whether connections end when their source may no longer connect.
    pub const fn terminates_existing(&self) -> bool {
        self.terminates_existing
    }

    /// The external ports that both mappings ask for, whoever holds them.
    pub fn overlap(&self, other: &Self) -> Option<PortRange> {
        (self.address == other.address && self.protocol == other.protocol)
            .then(|| self.external.intersection(other.external))
            .flatten()
    }
}

impl fmt::Display for Mapping {
    /// `203.0.113.7:25/tcp`, `[2001:db8::1]:443/tcp`, or `25/tcp` on the node's own address.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        ExternalPorts { address: self.address, protocol: self.protocol, ports: self.external }.fmt(f)
    }
}

/// External ports without what is behind them: what a holder holds and a message names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExternalPorts {
    /// Where the outside connects to.
    pub address: Address,
    /// The protocol.
    pub protocol: Protocol,
    /// The ports.
    pub ports: PortRange,
}

impl fmt::Display for ExternalPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Address::Node => {}
            Address::Fixed(address) if address.ip().is_ipv6() => write!(f, "[{address}]:")?,
            Address::Fixed(address) => write!(f, "{address}:")?,
        }
        write!(f, "{}/{}", self.ports, self.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(address: Address, external: &str, target: u16) -> Option<Mapping> {
        Mapping::new(address, Protocol::Tcp, external.parse().unwrap(), Port::new(target).unwrap())
    }

    #[test]
    fn a_range_at_the_pod_never_passes_the_last_port() {
        assert_eq!(mapping(Address::Node, "7000-7010", 65530), None);
        let target = mapping(Address::Node, "7000-7010", 65525).unwrap().target();
        assert_eq!(target.to_string(), "65525-65535");
    }

    #[test]
    fn a_mapping_reads_as_users_write_addresses() {
        let fixed = |text: &str| Address::Fixed(ExternalAddress::new(text.parse().unwrap()).unwrap());
        assert_eq!(mapping(Address::Node, "25", 25).unwrap().to_string(), "25/tcp");
        assert_eq!(mapping(fixed("203.0.113.7"), "80-81", 80).unwrap().to_string(), "203.0.113.7:80-81/tcp");
        assert_eq!(mapping(fixed("2001:db8::1"), "443", 8443).unwrap().to_string(), "[2001:db8::1]:443/tcp");
    }
}
