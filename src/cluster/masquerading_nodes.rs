//! What the agents say in their NatNodes of the MasqueradePolicies that count on their nodes.

use std::collections::BTreeMap;

use crate::api::crd::nat_node::NatNode;
use crate::api::crd::nat_node::NodeMasquerade;
use crate::cluster::every::Followed;

/// A node with an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MasqueradingNode {
    /// Its labels, by which policies select it.
    pub labels: BTreeMap<String, String>,
    /// The policy that counts there, and what became of it.
    pub masquerade: Option<NodeMasquerade>,
}

impl Followed for MasqueradingNode {
    type Object = NatNode;

    const ADVICE: &'static str =
        "install the custom resources (pinhole crd | kubectl apply -f -) and the rights of the chart";

    fn of(object: NatNode) -> Self {
        let masquerade = object.status.and_then(|status| status.masquerade);
        Self { labels: object.metadata.labels.unwrap_or_default(), masquerade }
    }

    fn differs(&self, other: &Self) -> bool {
        self != other
    }
}
