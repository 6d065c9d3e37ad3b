//! `MasqueradePolicy`: which pods leave the cluster with their node's address, and who sees their own.

use kube::CustomResource;
use kube::KubeSchema;
use serde::Deserialize;
use serde::Serialize;

use crate::api::crd::condition::Condition;
use crate::api::crd::rules;
use crate::api::crd::shared::LabelSelector;

/// What nodes masquerade.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "pinhole.dev",
    version = "v1alpha1",
    kind = "MasqueradePolicy",
    plural = "masqueradepolicies",
    singular = "masqueradepolicy",
    shortname = "mqp",
    category = "pinhole",
    status = "MasqueradePolicyStatus",
    derive = "PartialEq",
    doc = "Which pods leave the cluster with the address of their node, and which destinations see the pod's own. On each node the oldest policy that selects it counts, whole and alone, in place of the flags of the node's agent.",
    printcolumn(
        name = "Nodes",
        type_ = "integer",
        json_path = ".status.nodes",
        description = "Nodes that it selects"
    ),
    printcolumn(
        name = "Programmed",
        type_ = "integer",
        json_path = ".status.programmed",
        description = "Nodes of these whose kernel masquerades so"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].reason",
        description = "Why it is not so on every one of them"
    ),
    printcolumn(
        name = "Pods",
        type_ = "string",
        json_path = ".spec.podCIDRs",
        priority = 1,
        description = "The pods that are masqueraded, if not those of the node"
    ),
    printcolumn(
        name = "Except",
        type_ = "string",
        json_path = ".spec.nonMasqueradeCIDRs",
        priority = 1,
        description = "Destinations outside the cluster that see the pod's own address"
    ),
    printcolumn(
        name = "Override",
        type_ = "boolean",
        json_path = ".spec.overrideExisting",
        priority = 1,
        description = "Whether rules of other programs are kept from masquerading what is exempt"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct MasqueradePolicySpec {
    /// The nodes, by their labels. One without requirements selects none. Default: every node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,

    /// The pods that leave with their node's address. Default: the pods of the node.
    #[serde(default, rename = "podCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 43)))]
    #[x_kube(validation = Rule::new(rules::NETWORKS).message(rules::NETWORK_MESSAGE))]
    pub pod_cidrs: Vec<String>,

    /// Destinations that see the pod's own address. The pods of the node, the networks that the agent's --cluster-cidr names,
    /// link-local and multicast addresses always do. Name the networks of the cluster here if the agent does not know them.
    /// Default: none besides these.
    #[serde(default, rename = "nonMasqueradeCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 43)))]
    #[x_kube(
        validation = Rule::new(rules::NETWORKS).message(rules::NETWORK_MESSAGE),
        validation = Rule::new("!self.exists(item, item.endsWith('/0'))")
            .message("must not be every destination; delete the policy to masquerade nothing")
    )]
    pub non_masquerade_cidrs: Vec<String>,

    /// Interfaces by which pods leave with their own address, such as a tunnel: wg0. A pod's fixed address is used there, too.
    /// Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 15)))]
    #[x_kube(validation = Rule::new("self.all(item, item.matches('^[a-zA-Z0-9_.-]{1,15}$'))")
        .message("must be names of interfaces, without wildcards: eth0 or wg0"))]
    pub excluded_interfaces: Vec<String>,

    /// Whether rules of other programs, such as Flannel's, docker's or one made by hand, are kept from masquerading what is
    /// exempt. They stay where they are, and what kube-proxy marks stays masqueraded. Default: false.
    #[serde(default)]
    pub override_existing: bool,
}

/// How a policy stands, by the words of the agents in their NatNodes. Written by the controller, which runs where claims are on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MasqueradePolicyStatus {
    /// The generation of the spec that the rest is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Nodes with an agent that the policy selects.
    #[serde(default)]
    pub nodes: u64,
    /// Nodes of these whose kernel masquerades as this generation says.
    #[serde(default)]
    pub programmed: u64,
    /// Accepted: whether the policy can be read, and counts on every node that it selects. Programmed: whether the kernels of all of
    /// them masquerade so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
