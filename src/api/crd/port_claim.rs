//! `PortClaim`: one external port, and who holds it.

use k8s_openapi::jiff::Timestamp;
use kube::CustomResource;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::Serialize;

use crate::api::crd::rules;
use crate::api::crd::shared::HolderReference;
use crate::api::crd::shared::Retention;
use crate::api::crd::shared::Transport;

/// The name begins with the address. CEL cannot write an IPv6 address out, so of such a name only the length is compared;
/// whoever reads a claim compares the whole.
const NAME_ADDRESS: &str = concat!(
    "self.spec.address.contains(':')",
    " ? self.metadata.name.startsWith('v6-') && size(self.metadata.name.split('-')[1]) == 32",
    " : has(self.spec.protocol)",
    " ? self.metadata.name.startsWith('v4-' + self.spec.address.replace('.', '-') + '-')",
    " : self.metadata.name == 'v4-' + self.spec.address.replace('.', '-')",
);

/// The name ends with protocol and ports, and has nothing else.
const NAME_PORTS: &str = concat!(
    "size(self.metadata.name.split('-')) == (self.spec.address.contains(':') ? 2 : 5)",
    " + (has(self.spec.protocol) ? 2 : 0) + (has(self.spec.portEnd) ? 1 : 0) && (!has(self.spec.protocol) || (",
    "self.metadata.name.split('-')[self.spec.address.contains(':') ? 2 : 5] == ",
    "(self.spec.protocol == 'TCP' ? 'tcp' : self.spec.protocol == 'UDP' ? 'udp' : 'sctp')",
    " && int(self.metadata.name.split('-')[self.spec.address.contains(':') ? 3 : 6]) == self.spec.port",
    " && (!has(self.spec.portEnd)",
    " || int(self.metadata.name.split('-')[self.spec.address.contains(':') ? 4 : 7]) == self.spec.portEnd)))",
);

/// The message for both.
const NAME_MESSAGE: &str = "metadata.name must be made of address, protocol and port: v4-203-0-113-7-tcp-8080, or v6- and the 32 digits of the address; Pinhole makes PortClaims, nobody else need";

/// What is claimed, by whom, and how far it has come.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "pinhole.dev",
    version = "v1alpha1",
    kind = "PortClaim",
    plural = "portclaims",
    singular = "portclaim",
    shortname = "pcl",
    category = "pinhole",
    derive = "PartialEq",
    doc = "One external port, or an aligned block of ports, and who holds it. Its name is made from what is claimed, so that the API server lets nobody claim it twice. Pinhole writes these; people read them.",
    selectable = ".spec.address",
    selectable = ".spec.pool",
    selectable = ".spec.state",
    selectable = ".spec.holder.namespace",
    printcolumn(name = "Address", type_ = "string", json_path = ".spec.address", description = "The external address"),
    printcolumn(name = "Protocol", type_ = "string", json_path = ".spec.protocol", description = "The protocol; empty for a whole address"),
    printcolumn(name = "Port", type_ = "integer", json_path = ".spec.port", description = "The first external port"),
    printcolumn(name = "State", type_ = "string", json_path = ".spec.state", description = "Reserved, Bound, Releasing or Cooldown"),
    printcolumn(name = "Namespace", type_ = "string", json_path = ".spec.holder.namespace", description = "The holder's namespace"),
    printcolumn(name = "Kind", type_ = "string", json_path = ".spec.holder.kind", description = "The holder's kind"),
    printcolumn(name = "Holder", type_ = "string", json_path = ".spec.holder.name", description = "The holder's name"),
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.pool", priority = 1, description = "The pool that granted it"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new(NAME_ADDRESS).message(NAME_MESSAGE),
    validation = Rule::new(NAME_PORTS).message(NAME_MESSAGE)
)]
#[x_kube(
    validation = Rule::new("has(self.protocol) == has(self.port)")
        .message("protocol and port go together; a claim without both is for a whole address"),
    validation = Rule::new("!has(self.portEnd) || (has(self.port) && self.portEnd - self.port in [15, 255, 4095] && self.port % (self.portEnd - self.port + 1) == 0)")
        .message("portEnd must end an aligned block of 16, 256 or 4096 ports: 7008-7023, 6912-7167 or 4096-8191"),
    validation = Rule::new("self.address == oldSelf.address && has(self.protocol) == has(oldSelf.protocol) && (!has(self.protocol) || self.protocol == oldSelf.protocol) && has(self.port) == has(oldSelf.port) && (!has(self.port) || self.port == oldSelf.port) && has(self.portEnd) == has(oldSelf.portEnd) && (!has(self.portEnd) || self.portEnd == oldSelf.portEnd)")
        .message("what a claim is for cannot change: delete it and let Pinhole claim the other port")
)]
pub struct PortClaimSpec {
    /// The external address, in its shortest form: 203.0.113.7 or 2001:db8::1. Never changes.
    #[schemars(length(min = 2, max = 39))]
    #[x_kube(validation = Rule::new(rules::ADDRESS).message(rules::ADDRESS_MESSAGE))]
    pub address: String,

    /// TCP, UDP or SCTP. Absent, with `port`, for a claim to every port of the address (1:1 NAT). Never changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Transport")]
    pub protocol: Option<Transport>,

    /// The external port, 1-65535; the first one of a block. Never changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,

    /// The last port of an aligned block of 16, 256 or 4096 ports, the parts of a long range. Absent for a single port.
    /// Never changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub port_end: Option<u16>,

    /// The pool that granted it. Absent where the address belongs to no pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub pool: Option<String>,

    /// Who holds it. Changed only by an explicit transfer (annotation pinhole.dev/transfer-to on the old holder).
    pub holder: HolderReference,

    /// Who handed it over to the holder. It goes on serving the port while no pod of the holder is ready, and gets it back if
    /// the holder gives it up first. Absent where nobody did, and once that one asks for the port no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_holder: Option<HolderReference>,

    /// How the port was chosen. Static: the holder named it. Dynamic: it was found for the holder. Node: it is on the own
    /// address of the node where the pod runs. Default: Static.
    #[serde(default)]
    pub origin: ClaimOrigin,

    /// For Dynamic: which port of the holder this is, as `<UID of the pod>/<protocol>/<pod port>`. It is that pod's alone.
    /// Of a fixed port the pod's name stands for its UID, and it is the next pod's of that name, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 280))]
    pub slot: Option<String>,

    /// Reserved: granted, and no pod has been seen yet. Bound: a pod, a template or a Pinhole uses it. Releasing: nobody
    /// does, and nodes have yet to confirm that they serve it no more. Cooldown: free soon, until then for its holder only.
    pub state: ClaimState,

    /// When the claim came into this state, in UTC.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub since: Timestamp,

    /// When a request last relied on this claim at admission, in UTC. For a while after it the claim is not given up, because
    /// what was admitted may not be stored yet.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub renewed: Timestamp,

    /// The UID of the pod that the port leads to. Absent while no pod does.
    #[serde(default, rename = "podUID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub pod_uid: Option<String>,

    /// When the holder's ports are given back. Default: when its last pod is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
}

/// How a claimed port was chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ClaimOrigin {
    /// The holder named it.
    #[default]
    Static,
    /// It was found in a pool.
    Dynamic,
    /// It is on the own address of a pod's node.
    Node,
}

/// How far a claim has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ClaimState {
    /// Granted, not seen in use.
    Reserved,
    /// In use.
    Bound,
    /// No longer in use, and perhaps still programmed.
    Releasing,
    /// Programmed nowhere, and not yet anybody else's.
    Cooldown,
}

impl ClaimState {
    /// Every state, in the order of a claim's life.
    pub const ALL: [Self; 4] = [Self::Reserved, Self::Bound, Self::Releasing, Self::Cooldown];

    /// The name as the API writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reserved => "Reserved",
            Self::Bound => "Bound",
            Self::Releasing => "Releasing",
            Self::Cooldown => "Cooldown",
        }
    }
}
