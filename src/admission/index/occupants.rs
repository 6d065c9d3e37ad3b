//! What else has ports: programs that listen on nodes, as NatNodes tell, Services, and pods by `hostPort`.
//!
//! None of these asks Pinhole, and NAT for a pod would take the port from them. Whichever came first has it: they stand in the
//! way of who asks later, and nothing is taken from a holder because of them.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::admission::index::is_older;
use crate::api::object::ContainerPort;
use crate::api::object::Object;
use crate::model::address::ExternalAddress;
use crate::model::holder::ObjectName;
use crate::model::port::Port;
use crate::model::port::PortRange;
use crate::model::port::Protocol;

/// The object that says that a port is taken.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The NatNode of this name.
    NatNode(Arc<str>),
    /// A Service.
    Service(ObjectName),
    /// A pod with a `hostPort`.
    Pod(ObjectName),
}

/// Where a port is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On every address of every node of the cluster: a NodePort.
    EveryNode,
    /// On every address of this node, or on every IPv4 address.
    Node {
        /// The node.
        name: Arc<str>,
        /// Whether IPv6 is left out.
        is_v4_only: bool,
    },
    /// On one address.
    Address(IpAddr),
    /// On one address of this node. Whoever names an address has not got it: on other nodes' addresses it takes nothing.
    NodeAddress {
        /// The node.
        name: Arc<str>,
        /// The address.
        address: IpAddr,
    },
}

/// Ports that are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occupant {
    /// Who says so.
    pub source: Source,
    /// The protocol.
    pub protocol: Protocol,
    /// The ports.
    pub ports: PortRange,
    /// Where.
    pub place: Place,
    /// How they are used, in words: `NodePort`, `healthCheckNodePort`, `externalIPs`, `load balancer`, `hostPort`, `a program`.
    pub by: &'static str,
}

/// What one object says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occupants {
    /// The object.
    pub source: Source,
    /// Its version.
    pub version: Option<u64>,
    /// What is taken.
    pub taken: Vec<Occupant>,
    /// Of a NatNode: its addresses, with whether each is its own one.
    pub addresses: Vec<(IpAddr, bool)>,
}

impl Occupants {
    /// What a pod has of its node by `hostPort`: nothing before it is on one, and nothing once it has ended.
    pub(super) fn of_pod(pod: &Object) -> Self {
        let metadata = &pod.metadata;
        let source = Source::Pod(ObjectName::new(metadata.namespace.as_str(), metadata.name.as_str()));
        let node = pod.spec.node_name.as_deref().filter(|name| !name.is_empty() && !pod.is_finished());
        let occupant = |port: &ContainerPort| {
            let number = u16::try_from(port.host_port).ok().and_then(Port::new)?;
            let protocol = match port.protocol.as_str() {
                "" => Protocol::Tcp,
                named => named.to_lowercase().parse().ok()?,
            };
            let address = port.host_ip.parse::<IpAddr>().ok().filter(|address| !address.is_unspecified());
            let name: Arc<str> = node.unwrap_or_default().into();
            let place = match address {
                Some(address) => Place::NodeAddress { name, address },
                None => Place::Node { name, is_v4_only: false },
            };
            let ports = PortRange::single(number);
            Some(Occupant { source: source.clone(), protocol, ports, place, by: "hostPort" })
        };
        let taken =
            if node.is_some() { pod.spec.host_ports().filter_map(occupant).collect() } else { Vec::new() };
        Self { version: metadata.version(), taken, source, addresses: Vec::new() }
    }
}

/// Who has what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is taken wherever the request could be served.
    Everywhere(Arc<Occupant>),
    /// It is taken on these nodes, and the pod may come to others.
    Some(BTreeSet<Arc<str>>),
}

/// All that is known to be taken.
#[derive(Debug, Default)]
pub(super) struct Table {
    by_source: HashMap<Source, Known>,
    singles: BTreeMap<(Protocol, Port), Vec<Arc<Occupant>>>,
    ranges: Vec<Arc<Occupant>>,
    /// The nodes that have an address, by what NatNodes say.
    nodes: HashMap<IpAddr, BTreeSet<Arc<str>>>,
    /// How many NatNodes there are.
    nat_nodes: usize,
}

#[derive(Debug)]
struct Known {
    version: Option<u64>,
    taken: Vec<Arc<Occupant>>,
    addresses: Vec<(IpAddr, bool)>,
}

impl Table {
    /// Takes what an object says now; an older version than the known one changes nothing.
    pub(super) fn set(&mut self, said: Occupants) {
        let Occupants { source, version, taken, addresses } = said;
        if self.by_source.get(&source).is_some_and(|known| is_older(version, known.version)) {
            return;
        }
        self.remove(&source);
        // Of the very many pods nearly all have nothing.
        if taken.is_empty() && matches!(source, Source::Pod(_)) {
            return;
        }
        let taken: Vec<_> = taken.into_iter().map(Arc::new).collect();
        for occupant in &taken {
            if occupant.ports.is_single() {
                let port = (occupant.protocol, occupant.ports.first());
                self.singles.entry(port).or_default().push(Arc::clone(occupant));
            } else {
                self.ranges.push(Arc::clone(occupant));
            }
        }
        if let Source::NatNode(name) = &source {
            self.nat_nodes += 1;
            for (address, _) in &addresses {
                self.nodes.entry(*address).or_default().insert(Arc::clone(name));
            }
        }
        self.by_source.insert(source, Known { version, taken, addresses });
    }

    /// Forgets an object that is gone.
    pub(super) fn remove(&mut self, source: &Source) {
        let Some(Known { taken, addresses, .. }) = self.by_source.remove(source) else { return };
        for occupant in taken {
            let is_other = |found: &Arc<Occupant>| !Arc::ptr_eq(found, &occupant);
            let port = (occupant.protocol, occupant.ports.first());
            if let Some(found) = self.singles.get_mut(&port) {
                found.retain(is_other);
                if found.is_empty() {
                    self.singles.remove(&port);
                }
            }
            self.ranges.retain(is_other);
        }
        if let Source::NatNode(name) = source {
            self.nat_nodes -= 1;
            for (address, _) in addresses {
                if let Some(found) = self.nodes.get_mut(&address) {
                    found.remove(name);
                    if found.is_empty() {
                        self.nodes.remove(&address);
                    }
                }
            }
        }
    }

    /// Forgets every object that `keeps` does not want.
    pub(super) fn retain(&mut self, keeps: impl Fn(&Source) -> bool) {
        let gone: Vec<_> = self.by_source.keys().filter(|source| !keeps(source)).cloned().collect();
        for source in &gone {
            self.remove(source);
        }
    }

    /// Who has these ports of a fixed address, at which NodePorts are answered or not.
    pub(super) fn of_address(
        &self,
        address: ExternalAddress,
        answers_node_ports: bool,
        protocol: Protocol,
        ports: PortRange,
    ) -> Option<Arc<Occupant>> {
        let ip = address.ip();
        let nodes = self.nodes.get(&ip);
        let is_on = |name: &Arc<str>| nodes.is_some_and(|nodes| nodes.contains(name));
        self.overlapping(protocol, ports).into_iter().find(|occupant| match &occupant.place {
            Place::EveryNode => answers_node_ports,
            Place::Node { name, is_v4_only } => is_on(name) && !(*is_v4_only && ip.is_ipv6()),
            Place::Address(taken) => *taken == ip,
            Place::NodeAddress { name, address } => *address == ip && self.may_have(name, ip),
        })
    }

    /// Who has these ports of the own address of a node: the one of this name, or whichever the pod comes to.
    pub(super) fn of_node(
        &self,
        pinned: Option<&Arc<str>>,
        protocol: Protocol,
        ports: PortRange,
    ) -> Option<Taken> {
        let mut nodes: BTreeMap<Arc<str>, Arc<Occupant>> = BTreeMap::new();
        for occupant in self.overlapping(protocol, ports) {
            let node = match &occupant.place {
                Place::EveryNode => return Some(Taken::Everywhere(occupant)),
                Place::Node { name, .. } => Some(Arc::clone(name)),
                Place::Address(address) => self.owner(*address),
                Place::NodeAddress { name, address } => {
                    self.owners(*address).any(|owner| owner == name).then(|| Arc::clone(name))
                }
            };
            if let Some(node) = node {
                nodes.entry(node).or_insert(occupant);
            }
        }
        match pinned {
            Some(pinned) => nodes.remove(pinned).map(Taken::Everywhere),
            None if nodes.is_empty() => None,
            None if nodes.len() < self.nat_nodes => Some(Taken::Some(nodes.into_keys().collect())),
            None => nodes.into_values().next().map(Taken::Everywhere),
        }
    }

    /// The nodes that have an address, by name; as a rule one.
    pub(super) fn nodes_of(&self, address: IpAddr) -> impl Iterator<Item = &Arc<str>> {
        self.nodes.get(&address).into_iter().flatten()
    }

    /// The addresses of these nodes.
    pub(super) fn addresses(&self, is_asked: impl Fn(&str) -> bool) -> impl Iterator<Item = IpAddr> {
        let addresses = self.nodes.iter().filter(move |(_, nodes)| nodes.iter().any(|node| is_asked(node)));
        addresses.map(|(address, _)| *address)
    }

    /// The own addresses of a node.
    pub(super) fn own_addresses(&self, node_name: &str) -> Vec<IpAddr> {
        let known = self.by_source.get(&Source::NatNode(node_name.into()));
        let addresses = known.iter().flat_map(|known| &known.addresses);
        addresses.filter(|(_, is_own)| *is_own).map(|(address, _)| *address).collect()
    }

    /// The nodes whose own address this is: more than one where each is behind a router of its own.
    pub(super) fn owners(&self, address: IpAddr) -> impl Iterator<Item = &Arc<str>> {
        self.nodes_of(address).filter(move |node| {
            let known = self.by_source.get(&Source::NatNode(Arc::clone(node)));
            known.is_some_and(|known| known.addresses.contains(&(address, true)))
        })
    }

    /// Whether a node has an address, by what NatNodes say; of a node without one, whether nobody else says so.
    fn may_have(&self, name: &Arc<str>, address: IpAddr) -> bool {
        let is_known = self.by_source.contains_key(&Source::NatNode(Arc::clone(name)));
        self.nodes.get(&address).map_or(!is_known, |nodes| nodes.contains(name))
    }

    /// The node whose own address this is.
    fn owner(&self, address: IpAddr) -> Option<Arc<str>> {
        self.owners(address).next().cloned()
    }

    /// Likewise, in the order of their ports and sources.
    fn overlapping(&self, protocol: Protocol, ports: PortRange) -> Vec<Arc<Occupant>> {
        let singles = self.singles.range((protocol, ports.first())..=(protocol, ports.last()));
        let ranges = self
            .ranges
            .iter()
            .filter(|occupant| occupant.protocol == protocol && occupant.ports.intersection(ports).is_some());
        singles.flat_map(|(_, found)| found).chain(ranges).cloned().collect()
    }
}
