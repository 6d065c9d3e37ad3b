//! `NatNode`: what an agent knows of its node and has programmed there.

use k8s_openapi::jiff::Timestamp;
use kube::CustomResource;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::Serialize;

use crate::api::crd::condition::Condition;
use crate::api::crd::shared::Transport;

/// What an operator asks of a node.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "pinhole.dev",
    version = "v1alpha1",
    kind = "NatNode",
    plural = "natnodes",
    singular = "natnode",
    shortname = "nn",
    category = "pinhole",
    status = "NatNodeStatus",
    derive = "PartialEq",
    doc = "A node, or a gateway outside the cluster, that programs external ports: its addresses, what is taken on it, and what its agent has programmed. Written by the agent, under the node's name and with the node's labels.",
    printcolumn(
        name = "Address",
        type_ = "string",
        json_path = ".status.address",
        description = "The own addresses that ports are published on"
    ),
    printcolumn(
        name = "Backend",
        type_ = "string",
        json_path = ".status.backend",
        description = "How the kernel is programmed"
    ),
    printcolumn(
        name = "Entries",
        type_ = "integer",
        json_path = ".status.programmed.entries",
        description = "Entries in the kernel"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether the kernel has what it should"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why"
    ),
    printcolumn(
        name = "Paused",
        type_ = "boolean",
        json_path = ".spec.paused",
        priority = 1,
        description = "Whether nothing is changed on the node"
    ),
    printcolumn(
        name = "Version",
        type_ = "string",
        json_path = ".status.agentVersion",
        priority = 1,
        description = "The agent's version"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct NatNodeSpec {
    /// Whether the agent leaves the kernel as it is, until this is false again: for work on the node. Default: false.
    #[serde(default)]
    pub paused: bool,
    /// Releases the brake of a mass removal: the agent removes what it holds back once this names the generation that
    /// `status.brake` asks for. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub resume: Option<String>,
}

/// What the agent found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NatNodeStatus {
    /// The generation of the spec that the rest is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The own addresses that ports are published on, one of each family, joined by a comma: for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// Every address of the node that the outside could connect to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["address".into()]))]
    pub addresses: Vec<NodeAddress>,
    /// The links to the outside between which replies are told apart, in the order of their numbers: those of the agent's --link,
    /// then those of the pools that select the node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub links: Vec<LinkInUse>,
    /// Ports that programs have on the node, so that nobody is granted one there. Those of Services and of hostPorts are known from
    /// the Services and pods themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4096))]
    pub ports_in_use: Vec<PortInUse>,
    /// How the kernel is programmed: nftables, iptables-nft or iptables-legacy.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub backend: String,
    /// The version of the program behind it, as it says itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub backend_version: String,
    /// The kernel's release.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kernel_version: String,
    /// The agent's version.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub agent_version: String,
    /// What is in the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub programmed: Option<ProgrammedEntries>,
    /// The MasqueradePolicy that counts on the node. Absent: none does, and the agent's flags say what is masqueraded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masquerade: Option<NodeMasquerade>,
    /// A mass removal that is held back, and the value of `spec.resume` that releases it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub brake: Option<String>,
    /// When the agent last reported, in UTC. It does so when something has changed, and every five minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub last_report: Option<Timestamp>,
    /// Ready: whether the kernel has what it should. ForwardBlocked: something on the node drops what is forwarded. LinkUnusable: a
    /// link is not used. Braked: a
    /// mass removal is held back. Paused: nothing is changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// An address of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct NodeAddress {
    /// The address.
    #[schemars(length(min = 2, max = 39))]
    pub address: String,
    /// The network card that has it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub interface: String,
    /// Whether the internet can route to it.
    #[serde(default)]
    pub public: bool,
    /// Whether it is the node's own address of its family: the one that `ifaceAuto` stands for.
    #[serde(default)]
    pub own: bool,
}

/// A link by which a node reaches the outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct LinkInUse {
    /// Its interface.
    pub interface: String,
    /// The router behind it. Absent: the first address of the interface's own network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// The routing table that is kept for it. Absent: a free one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Its number in marks of connections and packets, and which bits hold it: 0x10/0x70.
    pub mark: String,
    /// The NatPool that names it. Absent: the agent's --link does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
}

/// Ports that are taken on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct PortInUse {
    /// The protocol.
    pub protocol: Transport,
    /// The first port.
    #[schemars(range(min = 1))]
    pub first: u16,
    /// The last port.
    #[schemars(range(min = 1))]
    pub last: u16,
    /// The addresses where they are taken; 0.0.0.0 is every IPv4 address. Absent: on every address of the node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub addresses: Vec<String>,
    /// Socket: a program listens.
    pub by: PortUser,
}

/// What has a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PortUser {
    /// A listening program.
    Socket,
}

/// What became of a MasqueradePolicy on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeMasquerade {
    /// The policy.
    pub policy: String,
    /// Its UID, by which another one of the same name is told apart.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// The generation of its spec that the rest is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// Whether the kernel masquerades so.
    pub programmed: bool,
    /// Why, in one word: Programmed, NotProgrammed, Paused or Unreadable.
    #[schemars(length(min = 1, max = 128))]
    pub reason: String,
    /// What is wrong, and what to do about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4096))]
    pub message: String,
}

/// What is in a node's kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProgrammedEntries {
    /// Entries that lead somewhere.
    pub entries: u64,
    /// Entries that should be there and are not.
    #[serde(default)]
    pub missing: u64,
    /// When the kernel was last changed, in UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub since: Option<Timestamp>,
}
