//! One line of a node's NAT: external ports and the pod behind them, or a pod and the address it leaves with.

use std::fmt;
use std::net::IpAddr;

use crate::model::address::Family;
use crate::model::port::Port;
use crate::model::port::PortRange;
use crate::model::port::Protocol;
use crate::ruleset::owner::Owner;
use crate::ruleset::sources::Sources;

/// What the outside connects to. It identifies an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The external address.
    pub external: IpAddr,
    /// The protocol on both sides.
    pub protocol: Protocol,
    /// The external ports.
    pub ports: PortRange,
}

impl Key {
    /// The family of the external address.
    pub const fn family(&self) -> Family {
        Family::of(self.external)
    }

    /// Whether some packet could be meant for both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.external == other.external
            && self.protocol == other.protocol
            && self.ports.intersection(other.ports).is_some()
    }
}

impl fmt::Display for Key {
    /// `203.0.113.7:25/tcp`, `[2001:db8::1]:7000-7010/udp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.external {
            IpAddr::V4(address) => write!(f, "{address}")?,
            IpAddr::V6(address) => write!(f, "[{address}]")?,
        }
        write!(f, ":{}/{}", self.ports, self.protocol)
    }
}

/// Where packets go: the pod's address and the first of as many ports as the key has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// The pod's address, of the same family as the external one.
    pub ip: IpAddr,
    /// The pod port that the first external port leads to.
    pub first: Port,
}

/// External ports and the pod behind them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    /// What the outside connects to.
    pub key: Key,
    /// Where packets go; `None` reserves the ports, so that packets to them are dropped and nobody else answers.
    pub target: Option<Target>,
    /// Who may connect. All others are dropped.
    pub allowed_sources: Sources,
    /// The pod that is served.
    pub owner: Owner,
}

impl Entry {
    /// The pod's ports, when there is a pod.
    pub fn target_ports(&self) -> Option<PortRange> {
        let first = self.target?.first;
        PortRange::new(first, first.checked_add(self.key.ports.span())?)
    }
}

impl fmt::Display for Entry {
    /// `203.0.113.7:25/tcp -> 10.244.1.9:25`, as events and logs show it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> ", self.key)?;
        match (self.target, self.target_ports()) {
            (Some(Target { ip: IpAddr::V4(ip), .. }), Some(ports)) => write!(f, "{ip}:{ports}"),
            (Some(Target { ip: IpAddr::V6(ip), .. }), Some(ports)) => write!(f, "[{ip}]:{ports}"),
            _ => f.write_str("reserved"),
        }
    }
}

/// A pod that leaves the cluster with a fixed address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Egress {
    /// The pod's address.
    pub pod: IpAddr,
    /// The address that the outside sees, of the same family.
    pub external: IpAddr,
    /// The pod.
    pub owner: Owner,
}
