//! `Pinhole`: external ports that lead to a Service, to pods by label, or to one pod.

use std::net::IpAddr;

use k8s_openapi::jiff::Timestamp;
use kube::CustomResource;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::Serialize;

use crate::api::crd::condition::Condition;
use crate::api::crd::rules;
use crate::api::crd::shared::HolderReference;
use crate::api::crd::shared::LabelSelector;
use crate::api::crd::shared::Transport;
use crate::model::address::ExternalAddress;
use crate::model::handover;
use crate::model::mapping::Mapping;

/// Which external ports lead where, and for whom.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "pinhole.dev",
    version = "v1alpha1",
    kind = "Pinhole",
    plural = "pinholes",
    singular = "pinhole",
    shortname = "ph",
    category = "pinhole",
    namespaced,
    status = "PinholeStatus",
    derive = "PartialEq",
    doc = "External ports that lead to a Service, to pods by label, or to one pod. You write one for a Service or a group of pods; for an annotated pod the controller writes one with the pod's name.",
    selectable = ".spec.target.service",
    selectable = ".spec.target.pod",
    printcolumn(
        name = "External",
        type_ = "string",
        json_path = ".status.external",
        description = "What the outside connects to"
    ),
    printcolumn(
        name = "Target",
        type_ = "string",
        json_path = ".status.target",
        description = "Where it leads"
    ),
    printcolumn(
        name = "Node",
        type_ = "string",
        json_path = ".status.node",
        description = "The nodes that serve it"
    ),
    printcolumn(
        name = "Holder",
        type_ = "string",
        json_path = ".status.holder",
        description = "Who holds the ports"
    ),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].status",
        description = "Whether connections are let through"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].reason",
        description = "Why"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("!has(self.addresses) || size(self.addresses) == 0 || !self.ports.exists(port, !has(port.port)) || size(self.addresses) == 1")
        .message("a port without a number is found on one address: leave addresses out, or name one"),
    validation = Rule::new("has(self.target.pod) || size(self.ports) <= 64")
        .message("ports has more than 64 entries; write another Pinhole for the rest, or ask for ports in a row as a range by portEnd"),
    // What the controller writes asks for no port twice; to compare all pairs of 256 entries would cost more than the API server
    // lets a rule spend.
    validation = Rule::new("has(self.target.pod) || self.ports.all(port, !has(port.port) || self.ports.filter(other, has(other.port) && other.protocol == port.protocol && (has(other.address) ? other.address : '') == (has(port.address) ? port.address : '') && other.port <= (has(port.portEnd) ? port.portEnd : port.port) && port.port <= (has(other.portEnd) ? other.portEnd : other.port)).size() <= 1)")
        .message("two entries of ports ask for the same external port and protocol"),
    validation = Rule::new("self.ports.all(port, !has(port.name) || self.ports.filter(other, has(other.name) && other.name == port.name).size() == 1)")
        .message("two entries of ports have the same name"),
    validation = Rule::new("has(self.target.pod) == has(oldSelf.target.pod) && (!has(self.target.pod) || self.target.pod == oldSelf.target.pod)")
        .message("target.pod belongs to the controller and cannot change")
)]
pub struct PinholeSpec {
    /// Where connections lead: a Service, pods by label, or one pod, all in this namespace.
    pub target: PinholeTarget,

    /// The external addresses; each gets all of `ports`, served by the nodes that carry it. An address that no node has yet is
    /// served as soon as one has. Yours needs one, or an address of its own at each port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 39)))]
    #[x_kube(validation = Rule::new(rules::ADDRESSES).message(rules::ADDRESS_MESSAGE))]
    pub addresses: Vec<String>,

    /// The NatPool that must grant the ports. Default: the first that grants them to this namespace, by priority and name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub pool: Option<String>,

    /// The ports, at least one and at most 64. Only what the controller writes has up to 256, as many as a pod can ask for.
    #[schemars(length(min = 1, max = 256))]
    pub ports: Vec<PinholePort>,

    /// The networks (CIDRs) that may connect; everybody else is dropped. Default: everybody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5000), inner(length(max = 43)))]
    #[x_kube(validation = Rule::new(rules::NETWORKS).message(rules::NETWORK_MESSAGE))]
    pub allowed_sources: Vec<String>,

    /// With which address connections leave that the served pod itself opens to the outside. Cluster: as the cluster does it.
    /// External: the external one of the pod's family, the lowest of several, by its link. Of no effect in what the controller
    /// writes, as an annotated pod leaves with its external address. Default: Cluster.
    #[serde(default)]
    pub egress: Egress,

    /// Whether further pods are meant. One serves at a time, and the others stand by and take over. ActiveStandby: that is
    /// meant. Exclusive: there should be one; while several are ready, the condition Exclusive is False and names them. In what
    /// the controller writes, what the pod's annotation says. Default: ActiveStandby.
    #[serde(default)]
    pub sharing: Sharing,

    /// When a newer pod of the same holder takes over. WhenReady: as soon as its containers are ready; in a Pinhole of yours only
    /// once the old pod is not ready any more. WhenGone: when the old pod is gone. Immediate: as soon as it has an address.
    /// Default: WhenReady.
    #[serde(default)]
    pub handover: Handover,

    /// What happens to UDP and SCTP flows of the old pod when another takes over. Drain: they stay with it until they end or it
    /// is gone. Cut: they move at once. In what the controller writes, what the pod's annotation says. Default: what the
    /// agents' --udp-handover says, which is Drain unless an operator has changed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "UdpHandover")]
    pub udp_handover: Option<UdpHandover>,

    /// Whether nothing is let through although the ports stay claimed. Default: false.
    #[serde(default)]
    pub suspended: bool,

    /// For a Pinhole that the controller wrote for a pod: who holds the ports. Absent in yours, which hold them themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<HolderReference>,

    /// How often a port was taken away that nothing else in here tells of, so that nodes can answer for what is granted now. Only in
    /// what the controller writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withdrawals: Option<u32>,
}

/// Where connections lead: one of the three.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.service), has(self.podSelector), has(self.pod)].filter(given, given).size() == 1")
        .message("target needs exactly one of service, podSelector and pod"),
    validation = Rule::new("!has(self.podUID) || has(self.pod)")
        .message("podUID goes with pod")
)]
pub struct PinholeTarget {
    /// The name of a Service, headless or not. It may come later. Connections go straight to a ready pod of it, without kube-proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub service: Option<String>,
    /// Labels of pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// The name of a pod. Only in what the controller writes; ask with the pod's annotation instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub pod: Option<String>,
    /// The UID of that pod, so that one of the same name that follows it is not taken for it. Only in what the controller writes.
    #[serde(default, rename = "podUID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub pod_uid: Option<String>,
}

impl PinholeTarget {
    /// In short, for people: `Service web`, or `app=web`.
    pub fn in_short(&self) -> String {
        let Self { service, pod_selector, pod, .. } = self;
        let of_labels = |selector: &LabelSelector| {
            let labels: Vec<_> =
                selector.match_labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            if labels.is_empty() { "Pods".to_owned() } else { labels.join(",") }
        };
        let service = service.as_ref().map(|service| format!("Service {service}"));
        let pod = || pod.as_ref().map(|pod| format!("Pod {pod}"));
        service.or_else(|| pod_selector.as_ref().map(of_labels)).or_else(pod).unwrap_or_default()
    }
}

impl PinholePort {
    /// The port behind the first external one, as it was written.
    pub fn leads_to(&self) -> Option<String> {
        match &self.target_port {
            Some(TargetPort::Name(name)) => Some(name.clone()),
            Some(TargetPort::Number(number)) => Some(number.to_string()),
            None => self.port.map(|port| port.to_string()),
        }
    }
}

impl Pinhole {
    /// Whether this status of it is about what is asked for now.
    pub fn is_current(&self, status: &PinholeStatus) -> bool {
        status.observed_generation == self.metadata.generation
    }
}

/// One external port or a range of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.portEnd) || (has(self.port) && self.port <= self.portEnd)")
        .message("portEnd goes with port, and must not lie below it"),
    validation = Rule::new("!has(self.portEnd) || !has(self.targetPort) || type(self.targetPort) == int")
        .message("a range leads to ports by number: targetPort is the first of them"),
    validation = Rule::new("has(self.port) || has(self.targetPort)")
        .message("targetPort is needed where port is left to be found")
)]
pub struct PinholePort {
    /// A name of your choice, shown in the status. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: Option<String>,
    /// TCP, UDP or SCTP. Default: TCP.
    #[serde(default)]
    pub protocol: Transport,
    /// The external address of this port alone. Default: each of `addresses`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 39), regex(pattern = r"^[0-9a-f.:]+$"))]
    pub address: Option<String>,
    /// The external port, 1-65535; the first one where portEnd is given. Yours needs one. Absent in what the controller writes for
    /// a port that it finds in a pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// The last external port of a range, 1-65535. Default: `port`, a single port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub port_end: Option<u16>,
    /// The target's port: for a Service the number or name of one of its ports, for pods a number. In a range the n-th external
    /// port leads to the n-th port from here on. Default: `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<TargetPort>,
    /// The networks (CIDRs) that may connect to this port. Default: `allowedSources` of the object.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5000), inner(length(max = 43), regex(pattern = r"^[0-9a-f.:]+/[0-9]+$")))]
    pub allowed_sources: Vec<String>,
    /// Whether connections end when their source is taken off the networks that may connect. Default: false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub terminate_existing: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// A port of the target, by number or by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetPort {
    /// By number, 1-65535.
    Number(u16),
    /// By name.
    Name(String),
}

impl JsonSchema for TargetPort {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "TargetPort".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "x-kubernetes-int-or-string": true,
            // Of a number the first two count, of a name the others. A rule in CEL that asks which of both it is would be
            // too costly for Kubernetes 1.33.
            "minimum": 1,
            "maximum": 65535,
            "minLength": 1,
            "maxLength": 63,
        })
    }
}

/// How the target's own connections leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Egress {
    /// As the cluster does it.
    #[default]
    Cluster,
    /// With the external address.
    External,
}

/// Whether further pods are meant to stand by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Sharing {
    /// There should be one.
    Exclusive,
    /// They are.
    #[default]
    ActiveStandby,
}

impl Sharing {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Exclusive, Self::ActiveStandby];

    /// The word that users write.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exclusive => "Exclusive",
            Self::ActiveStandby => "ActiveStandby",
        }
    }
}

/// When a newer pod takes over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Handover {
    /// Its containers are ready.
    #[default]
    WhenReady,
    /// The old pod is gone.
    WhenGone,
    /// It has an address.
    Immediate,
}

impl From<handover::Handover> for Handover {
    fn from(handover: handover::Handover) -> Self {
        match handover {
            handover::Handover::WhenReady => Self::WhenReady,
            handover::Handover::WhenGone => Self::WhenGone,
            handover::Handover::Immediate => Self::Immediate,
        }
    }
}

impl From<Handover> for handover::Handover {
    fn from(handover: Handover) -> Self {
        match handover {
            Handover::WhenReady => Self::WhenReady,
            Handover::WhenGone => Self::WhenGone,
            Handover::Immediate => Self::Immediate,
        }
    }
}

/// What happens to UDP flows at a handover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum UdpHandover {
    /// They end where they are.
    Drain,
    /// They move.
    Cut,
}

impl From<handover::UdpHandover> for UdpHandover {
    fn from(handover: handover::UdpHandover) -> Self {
        match handover {
            handover::UdpHandover::Drain => Self::Drain,
            handover::UdpHandover::Cut => Self::Cut,
        }
    }
}

impl From<UdpHandover> for handover::UdpHandover {
    fn from(handover: UdpHandover) -> Self {
        match handover {
            UdpHandover::Drain => Self::Drain,
            UdpHandover::Cut => Self::Cut,
        }
    }
}

/// What was granted, and where it is programmed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PinholeStatus {
    /// The generation of the spec that the rest is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What the outside connects to, in short, for people: `203.0.113.7:443/tcp +2`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub external: String,
    /// Where it leads, in short: `Service web:8443` or `10.244.1.7:8443`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target: String,
    /// The nodes that serve it, in short.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// Who holds the ports, in short: `Deployment postfix`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub holder: String,
    /// The granted external ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    pub endpoints: Vec<Endpoint>,
    /// The own addresses of the pod's node at which its ports without an address were looked for among the claims. Of another own
    /// address nothing is decided yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 39)))]
    pub own_addresses: Vec<String>,
    /// What was granted before and a node may still have in its kernel. Nobody else gets it until the node has said that it is
    /// gone, or is known to be gone itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    pub releasing: Vec<Releasing>,
    /// The pods behind them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    pub targets: Vec<TargetReport>,
    /// What each serving node says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub nodes: Vec<NodeReport>,
    /// Accepted: whether the ports are granted. Programmed: whether every serving node lets connections through.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// A granted external port or range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// The name of the entry of `spec.ports`, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The external address that packets arrive with.
    pub address: String,
    /// The address that the outside connects to, where that is another (1:1 NAT).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertised_address: Option<String>,
    /// The protocol.
    pub protocol: Transport,
    /// The external port; the first of a range.
    pub port: u16,
    /// The last external port of a range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_end: Option<u16>,
    /// The port behind `port`.
    pub target_port: u16,
    /// The pool that granted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// The nodes that serve it: those that have the address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub nodes: Vec<String>,
}

impl Endpoint {
    /// A mapping at an address, and what the outside connects to instead.
    pub fn of(mapping: &Mapping, address: ExternalAddress, advertised: Option<ExternalAddress>) -> Self {
        let external = mapping.external();
        Self {
            name: None,
            address: address.to_string(),
            advertised_address: advertised.map(|advertised| advertised.to_string()),
            protocol: mapping.protocol().into(),
            port: external.first().get(),
            port_end: (!external.is_single()).then(|| external.last().get()),
            target_port: mapping.target().first().get(),
            pool: None,
            nodes: Vec::new(),
        }
    }

    /// What a pod is told of these; `None` for none.
    pub fn announcement(endpoints: &[Self]) -> Option<String> {
        (!endpoints.is_empty()).then(|| serde_json::to_string(endpoints).ok()).flatten()
    }
}

/// An external port or range that a node has yet to let go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Releasing {
    /// The external address that packets arrive with.
    pub address: String,
    /// The protocol.
    pub protocol: Transport,
    /// The external port; the first of a range.
    pub port: u16,
    /// The last external port of a range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_end: Option<u16>,
    /// The node.
    pub node: String,
    /// The generation that the node reports on once it has nothing of it.
    pub generation: i64,
    /// Since when it is waited for, in UTC.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub since: Timestamp,
}

/// A pod behind a pinhole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetReport {
    /// The pod's name.
    pub pod: String,
    /// The pod's UID, so that one of the same name that follows it is not taken for it.
    #[serde(rename = "podUID")]
    pub pod_uid: String,
    /// The pod's addresses, the primary one first.
    #[serde(default)]
    #[schemars(length(max = 2))]
    pub addresses: Vec<String>,
    /// The node that it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Whether new connections go to it.
    #[serde(default)]
    pub active: bool,
    /// How an annotated pod is, for the nodes that serve it without running it; absent where none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<TargetState>,
}

impl TargetReport {
    /// The pod's addresses, the primary one first.
    pub fn ips(&self) -> Vec<IpAddr> {
        self.addresses.iter().filter_map(|text| text.parse().ok()).collect()
    }
}

/// What decides which pod of a holder is served, where that is told to a node that does not run it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetState {
    /// When the pod was created, in UTC.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub created: Timestamp,
    /// Whether its containers are ready.
    pub ready: bool,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// Whether its ports are closed without being given up, as its annotation says.
    #[serde(default, skip_serializing_if = "is_false")]
    pub suspended: bool,
}

/// What is said of ports that are closed without being given up, because whoever asks for them says so.
pub const SUSPENDED: &str = "Suspended";

/// What a node says of a pod that could serve at once, behind another pod of its holder that does.
pub const STANDBY: &str = "Standby";

/// What a node says that still has in its kernel what it should not.
pub const REMOVING: &str = "Removing";

/// What a node has made of a pinhole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    /// The node's name.
    pub name: String,
    /// Whether every endpoint that the node serves is in its kernel.
    pub programmed: bool,
    /// One word: why.
    #[schemars(length(min = 1, max = 128))]
    pub reason: String,
    /// A sentence for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub message: String,
    /// The generation that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}
