//! Shapes that more than one kind has.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::Serialize;

use crate::api::object::NodeSelectorRequirement;
use crate::model::holder::Holder;
use crate::model::holder::ObjectName;
use crate::model::port::Protocol;

/// A transport protocol, as the Kubernetes API writes it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum Transport {
    /// TCP.
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    /// UDP.
    #[serde(rename = "UDP")]
    Udp,
    /// SCTP.
    #[serde(rename = "SCTP")]
    Sctp,
}

impl From<Protocol> for Transport {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
            Protocol::Sctp => Self::Sctp,
        }
    }
}

impl From<Transport> for Protocol {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Tcp => Self::Tcp,
            Transport::Udp => Self::Udp,
            Transport::Sctp => Self::Sctp,
        }
    }
}

/// The root owner that holds ports: the nearest owner that survives the replacement of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct HolderReference {
    /// The kind: Deployment, StatefulSet, DaemonSet, ReplicaSet, Job, CronJob, Service, a custom kind, or Pod for a pod that
    /// nobody owns.
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// The namespace.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// The name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The UID that it had when the ports were claimed. For people: a holder is known by kind, namespace and name, so that
    /// deleting and applying it again keeps its ports.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub uid: String,
}

impl From<&Holder> for HolderReference {
    fn from(holder: &Holder) -> Self {
        Self {
            kind: holder.kind.to_string(),
            namespace: holder.object.namespace.to_string(),
            name: holder.object.name.to_string(),
            uid: String::new(),
        }
    }
}

impl From<&HolderReference> for Holder {
    fn from(reference: &HolderReference) -> Self {
        Self::new(
            reference.kind.as_str(),
            ObjectName::new(reference.namespace.as_str(), reference.name.as_str()),
        )
    }
}

/// When a holder's ports are given back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(self.policy == 'TTL') == has(self.ttlSeconds)")
    .message("ttlSeconds goes with policy TTL, and only with it"))]
pub struct Retention {
    /// Release: when the last pod that uses them is gone. Retain: when their holder is gone, so that a StatefulSet that is
    /// scaled to zero keeps them. TTL: ttlSeconds after the last pod is gone. Default: Release.
    #[serde(default)]
    pub policy: RetentionPolicy,
    /// For TTL: how long the ports stay claimed without a pod, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub ttl_seconds: Option<u32>,
}

/// How long ports stay claimed without a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RetentionPolicy {
    /// Not at all.
    #[default]
    Release,
    /// As long as the holder exists.
    Retain,
    /// For a time.
    #[serde(rename = "TTL")]
    Ttl,
}

/// A selector of labels, as in every Kubernetes API. One without requirements selects nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels and the value that each must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements. All must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub match_expressions: Vec<SelectorRequirement>,
}

/// A requirement on one label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)")
    .message("values go with operator In or NotIn, and only with them"))]
pub struct SelectorRequirement {
    /// The label.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// In, NotIn, Exists or DoesNotExist.
    pub operator: SelectorOperator,
    /// The values for In and NotIn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 63)))]
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SelectorOperator {
    /// The label has one of the values.
    In,
    /// It has none of them, or is not there.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

impl SelectorOperator {
    /// The operator as it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::In => "In",
            Self::NotIn => "NotIn",
            Self::Exists => "Exists",
            Self::DoesNotExist => "DoesNotExist",
        }
    }
}

impl LabelSelector {
    /// The same as requirements of a node selector.
    pub fn requirements(&self) -> Vec<NodeSelectorRequirement> {
        let Self { match_labels, match_expressions } = self;
        let labels = match_labels.iter().map(|(key, value)| NodeSelectorRequirement {
            key: key.clone(),
            operator: "In".to_owned(),
            values: vec![value.clone()],
        });
        let expressions = match_expressions.iter().map(|requirement| NodeSelectorRequirement {
            key: requirement.key.clone(),
            operator: requirement.operator.name().to_owned(),
            values: requirement.values.clone(),
        });
        labels.chain(expressions).collect()
    }

    /// Whether an object with these labels is selected.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        let Self { match_labels, match_expressions } = self;
        if match_labels.is_empty() && match_expressions.is_empty() {
            return false;
        }
        match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && match_expressions.iter().all(|requirement| requirement.holds(labels))
    }
}

impl SelectorRequirement {
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            SelectorOperator::In => value.is_some_and(|value| self.values.contains(value)),
            SelectorOperator::NotIn => value.is_none_or(|value| !self.values.contains(value)),
            SelectorOperator::Exists => value.is_some(),
            SelectorOperator::DoesNotExist => value.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_selector_without_requirements_selects_nothing() {
        let labels = BTreeMap::from([("team".to_owned(), "games".to_owned())]);
        let cases = [
            (json!({}), false),
            (json!({"matchLabels": {"team": "games"}}), true),
            (json!({"matchLabels": {"team": "mail"}}), false),
            (
                json!({"matchExpressions": [{"key": "team", "operator": "In", "values": ["mail", "games"]}]}),
                true,
            ),
            (json!({"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["games"]}]}), false),
            (json!({"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]}), true),
            (json!({"matchExpressions": [{"key": "team", "operator": "Exists"}]}), true),
            (json!({"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}), false),
            (
                json!({"matchLabels": {"team": "games"},
                       "matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}),
                false,
            ),
        ];
        for (selector, expected) in cases {
            let parsed: LabelSelector = serde_json::from_value(selector.clone()).unwrap();
            assert_eq!(parsed.selects(&labels), expected, "{selector}");
        }
    }

    #[test]
    fn a_holder_keeps_its_identity_on_the_way_through_a_reference() {
        let holder = Holder::new("Deployment", ObjectName::new("mail", "postfix"));
        assert_eq!(Holder::from(&HolderReference::from(&holder)), holder);
    }
}
