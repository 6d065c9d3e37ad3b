//! A port whose external side is left to a pool.

use std::fmt;

use ipnet::IpNet;

use crate::model::address::ExternalAddress;
use crate::model::mapping::Address;
use crate::model::mapping::Mapping;
use crate::model::port::Port;
use crate::model::port::PortRange;
use crate::model::port::Protocol;

/// A port of a pod for which an external one is to be found. Those of one pod that lead to the same port of it, by several
/// protocols, get one number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AutomaticPort {
    /// The protocol on both sides.
    pub protocol: Protocol,
    /// The pod's port.
    pub target: Port,
    allowed_sources: Vec<IpNet>,
    terminates_existing: bool,
    is_fixed: bool,
}

impl AutomaticPort {
    /// One for everybody.
    pub const fn new(protocol: Protocol, target: Port) -> Self {
        Self { protocol, target, allowed_sources: Vec::new(), terminates_existing: false, is_fixed: false }
    }

    /// The same for these sources only (sorted, without repetition); none means everybody.
    pub fn with_allowed_sources(mut self, mut sources: Vec<IpNet>) -> Self {
        sources.sort();
        sources.dedup();
        self.allowed_sources = sources;
        self
    }

    /// Who may connect; empty means everybody.
    pub fn allowed_sources(&self) -> &[IpNet] {
        &self.allowed_sources
    }

    /// The same, and connections end when their source may no longer connect.
    pub const fn terminating_existing(mut self, is_so: bool) -> Self {
        self.terminates_existing = is_so;
        self
    }

    /// Whether connections end when their source may no longer connect.
    pub const fn terminates_existing(&self) -> bool {
        self.terminates_existing
    }

    /// The same, and what is found is kept for the next pod of the same name, or goes with the pod.
    pub const fn fixed(mut self, is_so: bool) -> Self {
        self.is_fixed = is_so;
        self
    }

    /// Whether what is found is kept for the next pod of the same name.
    pub const fn is_fixed(&self) -> bool {
        self.is_fixed
    }

    /// What tells it from the others of its holder: `<UID of the pod>/<protocol>/<pod port>`, and the pod's name for its UID where
    /// the port is fixed.
    pub fn slot(&self, pod_name: &str, pod_uid: &str) -> String {
        let pod = if self.is_fixed { pod_name } else { pod_uid };
        format!("{pod}/{}/{}", self.protocol, self.target)
    }

    /// The name of the pod that a slot of a fixed port is of; of another one its UID.
    pub fn pod_of(slot: &str) -> &str {
        slot.split_once('/').map_or(slot, |(pod, _)| pod)
    }

    /// Whether both are the same port of one pod.
    pub fn is_same_port(&self, other: &Self) -> bool {
        self.protocol == other.protocol && self.target == other.target
    }

    /// The mapping that it becomes with this external port.
    pub fn at(&self, address: ExternalAddress, port: Port) -> Option<Mapping> {
        let external = PortRange::single(port);
        let mapping = Mapping::new(Address::Fixed(address), self.protocol, external, self.target)?;
        let mapping = mapping.with_allowed_sources(self.allowed_sources.clone());
        Some(mapping.terminating_existing(self.terminates_existing))
    }
}

impl fmt::Display for AutomaticPort {
    /// `auto:9000/udp`, or `fixed:9000/udp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.is_fixed { "fixed" } else { "auto" };
        write!(f, "{word}:{}/{}", self.target, self.protocol)
    }
}
