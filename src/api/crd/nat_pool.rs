//! `NatPool`: which addresses and ports may be claimed, and by whom.

use kube::CustomResource;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::Serialize;

use crate::api::crd::condition::Condition;
use crate::api::crd::rules;
use crate::api::crd::shared::LabelSelector;
use crate::api::crd::shared::Retention;
use crate::api::crd::shared::Transport;

/// Addresses, ports, and who may have them.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "pinhole.dev",
    version = "v1alpha1",
    kind = "NatPool",
    plural = "natpools",
    singular = "natpool",
    shortname = "np",
    category = "pinhole",
    status = "NatPoolStatus",
    derive = "PartialEq",
    doc = "External addresses and ports that namespaces may claim. What no pool grants cannot be claimed.",
    printcolumn(
        name = "Capacity",
        type_ = "integer",
        json_path = ".status.usage.capacity",
        description = "Ports that can be claimed, of all addresses and protocols"
    ),
    printcolumn(
        name = "Used",
        type_ = "integer",
        json_path = ".status.usage.used",
        description = "Ports that are claimed"
    ),
    printcolumn(
        name = "Free",
        type_ = "integer",
        json_path = ".status.usage.free",
        description = "Ports that can be claimed now"
    ),
    printcolumn(
        name = "Reserved",
        type_ = "integer",
        json_path = ".status.usage.reserved",
        description = "Ports that nobody may have"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether claims are granted"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("size(self.addresses) > 0 || self.nodeAddresses")
        .message("a pool needs addresses, or nodeAddresses: true for each node's own"),
    validation = Rule::new("!has(self.links) || self.links.all(link, self.links.exists_one(other, other.interface == link.interface))")
        .message("links must name each interface once")
)]
pub struct NatPoolSpec {
    /// The external addresses, each one or a network: 203.0.113.7, 203.0.113.0/28, 2001:db8::/120. Of an IPv4 network shorter
    /// than /31 the first and the last address are left out. Default: none.
    #[serde(default)]
    #[schemars(length(max = 256), inner(length(max = 43)))]
    #[x_kube(validation = Rule::new(rules::ADDRESSES_OR_NETWORKS).message(rules::ADDRESS_OR_NETWORK_MESSAGE))]
    pub addresses: Vec<String>,

    /// Whether the pool also has the own address of each of its nodes: what `ifaceAuto` and the short form without an address
    /// ask for. Default: false.
    #[serde(default)]
    pub node_addresses: bool,

    /// Addresses that live on no network card here, because a router or a cloud translates them 1:1: what the outside connects
    /// to instead of an address of the pool. Shown to users in place of it. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["address".into()]))]
    pub advertised_addresses: Vec<AdvertisedAddress>,

    /// The ports that can be claimed, on every address of the pool. Those of the NodePort range, which Services get on every node,
    /// can be claimed on addresses of nodes only where a range here lies inside of it. Default: 1024-65535.
    #[serde(default = "default_ports")]
    #[schemars(length(min = 1, max = 32))]
    pub ports: Vec<PoolPorts>,

    /// The protocols that can be claimed. Default: TCP, UDP and SCTP.
    #[serde(default = "default_protocols")]
    #[schemars(length(min = 1, max = 3))]
    pub protocols: Vec<Transport>,

    /// Ports within `ports` that nobody may have. Default: none beside those that the operator's flags, the nodes' own sockets,
    /// the NodePort range and Services take.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub reserved_ports: Vec<ReservedPorts>,

    /// How ports may be chosen. Static: the holder names one. Dynamic: one is found for it. Default: both.
    #[serde(default = "default_modes")]
    #[schemars(length(min = 1, max = 2))]
    pub modes: Vec<ClaimMode>,

    /// Who may claim. Default: nobody.
    #[serde(default)]
    pub namespaces: NamespaceGrant,

    /// Only pods of these ServiceAccounts may claim, in the namespaces above. Default: every ServiceAccount.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub service_accounts: Vec<ServiceAccountGrant>,

    /// How much one namespace may have. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<Quota>,

    /// The nodes, and gateways outside the cluster, that carry the addresses. Default: every node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<PoolNodes>,

    /// How long a released port is kept from other holders, in seconds: connections of the old one may still linger at
    /// clients and routers. Default: 120.
    #[serde(default = "default_cooldown")]
    #[schemars(range(max = 86_400))]
    pub cooldown_seconds: u32,

    /// What becomes of a fixed port when no pod has it and no StatefulSet is about to have one that does. Release: it is given up.
    /// Retain: it is kept as long as the template of its StatefulSet asks for it, scaled in or not. TTL: it is kept for ttlSeconds.
    /// Counts for ports that are found from then on. Default: Release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,

    /// Whether pods with the same port on their node's own address are kept on different nodes, even if they do not ask for it.
    /// Default: false.
    #[serde(default)]
    pub spread: bool,

    /// Which of several pools a holder that names none gets a port from: the one with the highest priority, then the first by
    /// name. Default: 0.
    #[serde(default)]
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    pub priority: i32,

    /// How replies leave by the link that owns the address, where that is not the default route; each node of the pool uses them.
    /// An interface or table that the agent's --link or an older pool names otherwise is not taken. Default: by the main routing
    /// table.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub links: Vec<Link>,
}

fn default_ports() -> Vec<PoolPorts> {
    vec![PoolPorts { first: 1024, last: 65535, static_band: None }]
}

fn default_protocols() -> Vec<Transport> {
    vec![Transport::Tcp, Transport::Udp, Transport::Sctp]
}

fn default_modes() -> Vec<ClaimMode> {
    vec![ClaimMode::Static, ClaimMode::Dynamic]
}

const fn default_cooldown() -> u32 {
    120
}

/// An address of the pool, and how the outside knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AdvertisedAddress {
    /// The address that packets arrive with.
    #[schemars(length(min = 2, max = 39))]
    #[x_kube(validation = Rule::new(rules::ADDRESS).message(rules::ADDRESS_MESSAGE))]
    pub address: String,
    /// The address that the outside connects to.
    #[schemars(length(min = 2, max = 39))]
    #[x_kube(validation = Rule::new(rules::ADDRESS).message(rules::ADDRESS_MESSAGE))]
    pub advertised: String,
}

/// A range of ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.first <= self.last")
        .message("first must not lie above last"),
    validation = Rule::new("!has(self.staticBand) || self.staticBand <= self.last - self.first + 1")
        .message("staticBand must not be larger than the range")
)]
pub struct PoolPorts {
    /// The lowest port, 1-65535.
    #[schemars(range(min = 1))]
    pub first: u16,
    /// The highest port, 1-65535.
    #[schemars(range(min = 1))]
    pub last: u16,
    /// How many ports from `first` on are kept for holders that name a port: they are chosen for nobody until the rest is
    /// taken. Default: a 32nd of the range, at least 16 and at most 128.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub static_band: Option<u16>,
}

/// Ports that nobody may have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("!has(self.last) || self.first <= self.last").message("first must not lie above last"))]
pub struct ReservedPorts {
    /// The lowest port, 1-65535.
    #[schemars(range(min = 1))]
    pub first: u16,
    /// The highest port, 1-65535. Default: `first`, a single port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub last: Option<u16>,
    /// TCP, UDP or SCTP. Default: every protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Transport")]
    pub protocol: Option<Transport>,
    /// What they are kept for; shown to whoever asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub reason: Option<String>,
}

/// How a port may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ClaimMode {
    /// The holder names it.
    Static,
    /// It is found for the holder.
    Dynamic,
}

/// The namespaces that may claim: those that are named and those that are selected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct NamespaceGrant {
    /// Whether every namespace may. Default: false.
    #[serde(default)]
    pub all: bool,
    /// By name. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 63)))]
    pub names: Vec<String>,
    /// By label, which is as strong as the right to label namespaces. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// A ServiceAccount whose pods may claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct ServiceAccountGrant {
    /// The namespace.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// The name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// How much one namespace may have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Quota {
    /// External ports that one namespace may hold in this pool, each of a range counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports_per_namespace: Option<u32>,
}

/// The nodes of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct PoolNodes {
    /// Labels of the NatNode, which has those of its Node.
    pub selector: LabelSelector,
}

/// A network card that owns addresses of the pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct Link {
    /// Its name on the nodes: eth1. Matched whole, never as a part of a longer name.
    #[schemars(length(min = 1, max = 15))]
    #[x_kube(validation = Rule::new("self.matches('^[a-zA-Z0-9_.-]+$')")
        .message("must be the name of an interface, without wildcards: eth1"))]
    pub interface: String,
    /// The router behind it. Default: the first address of the link's own network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 39))]
    #[x_kube(validation = Rule::new(rules::ADDRESS).message(rules::ADDRESS_MESSAGE))]
    pub gateway: Option<String>,
    /// The routing table that is kept for it, 1-252 or 256-4294967295. Default: one that is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    #[x_kube(validation = Rule::new("self < 253 || self > 255")
        .message("must not be 253 to 255, which are the kernel's own"))]
    pub table: Option<u32>,
}

/// What has become of a pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NatPoolStatus {
    /// The generation of the spec that the rest is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// How full it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<PoolUsage>,
    /// Ready: whether claims are granted. OutOfRange: claims that would not be granted any more, because the spec has changed or
    /// because they are of the NodePort range; they stay. Deleting: waits for its claims to end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// How full a pool is, in external ports: one number of one protocol on one address each. Those of nodes' own addresses are not
/// claimed and not counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolUsage {
    /// Addresses.
    pub addresses: u64,
    /// Ports that can be claimed.
    pub capacity: u64,
    /// Ports of the ranges that are claimed, those in cooldown included.
    pub used: u64,
    /// Ports that can be claimed now.
    pub free: u64,
    /// Ports of the ranges that nobody may have: those of reservedPorts, and on addresses of nodes those of the NodePort range.
    pub reserved: u64,
    /// Ports that were released and are not anybody else's yet.
    pub cooling: u64,
    /// Ports that were claimed and would not be granted any more: those that the spec no longer covers, and on addresses of nodes
    /// those of the NodePort range.
    pub out_of_range: u64,
}
