//! What a node is asked to serve: a mapping and the pod elected for it, and why that can be impossible.

use std::net::IpAddr;

use crate::model::handover::UdpHandover;
use crate::model::holder::ObjectName;
use crate::model::mapping::Mapping;
use crate::ruleset::Taken;
use crate::ruleset::sources::SameName;

/// A mapping and the pod that was elected for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// What is wanted.
    pub mapping: Mapping,
    /// The elected pod.
    pub pod: ObjectName,
    /// Its UID: a pod created anew under the same name is another pod.
    pub uid: String,
    /// Its addresses, at most one per family counts; none reserves the ports until the pod has one.
    pub ips: Vec<IpAddr>,
    /// How the pod leaves the cluster.
    pub leaving: Leaving,
    /// What becomes of UDP flows when this one takes over; `None` leaves it to the node.
    pub udp_handover: Option<UdpHandover>,
    /// Whether its ports are reserved although it has an address. What the pod itself begins leaves as ever.
    pub suspended: bool,
}

/// With which address a pod leaves the cluster that an external port leads to. Of several wishes for one pod the first here counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Leaving {
    /// With the external one, as was asked for.
    WithTheExternal,
    /// With the external one, which goes with an annotation's ports.
    #[default]
    WithItsPorts,
    /// As the cluster does it.
    AsTheClusterDoes,
}

/// An endpoint that the node cannot serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The pod that stays without it.
    pub pod: ObjectName,
    /// Its UID.
    pub uid: String,
    /// What it asked for.
    pub mapping: Mapping,
    /// Why not, and what to do.
    pub reason: Reason,
}

impl Refused {
    /// Refuses `endpoint`.
    pub fn new(endpoint: &Endpoint, reason: Reason) -> Self {
        Self {
            pod: endpoint.pod.clone(),
            uid: endpoint.uid.clone(),
            mapping: endpoint.mapping.clone(),
            reason,
        }
    }
}

/// Why a node cannot serve an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The address belongs to somebody else, as far as the node knows.
    #[error(
        "{0} is not an address of this node; add it to an interface of the node, or name its network in --include-net if it is routed here"
    )]
    AddressNotHere(IpAddr),
    /// There is no address for entries that name none.
    #[error(
        "the node has no address to serve an entry with ifaceAuto on; set srcIP, or check --include-net and --exclude-net"
    )]
    NoNodeAddress,
    /// The pod has no address of the external one's family.
    #[error("the external address {} and the pod's {} are of different IP families; use an address of the pod's family, or run the pod dual-stack", list(.external), list(.pod))]
    FamilyMismatch {
        /// The external addresses that came into question.
        external: Vec<IpAddr>,
        /// The pod's addresses.
        pod: Vec<IpAddr>,
    },
    /// The pod's address is the node's: NAT for it would be NAT for the whole node (R21).
    #[error(
        "the pod uses the node's own address {0} (hostNetwork); its ports are reachable without NAT, remove the annotation"
    )]
    HostNetwork(IpAddr),
    /// Another endpoint came first.
    #[error("{0}; one external port leads to one pod, free it there or choose another")]
    Taken(#[source] Taken),
    /// Its list of sources cannot be told from another one by name.
    #[error("{0}, which takes intent to bring about; add a network to allowedSources, or take one away")]
    SameName(#[source] SameName),
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
