//! A slim view of the Kubernetes objects that matter here: pods, workloads, Pinholes, namespaces, nodes.
//!
//! One type serves the webhook's reviews, the informers and `pinhole check`, so that no two parts can read the
//! same object differently. Fields that no rule needs are skipped while decoding, which keeps a review of tens of
//! kilobytes cheap. An absent or `null` field is its default; nothing is judged here.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde_json::Value;

use crate::api::crd::pinhole::Pinhole;
use crate::api::crd::pinhole::PinholeSpec;
use crate::model::address::Families;
use crate::model::ordinals::Ordinals;

/// The kinds that Pinhole knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1` Pod.
    Pod,
    /// `apps/v1` Deployment.
    Deployment,
    /// `apps/v1` StatefulSet.
    StatefulSet,
    /// `apps/v1` DaemonSet.
    DaemonSet,
    /// `apps/v1` ReplicaSet.
    ReplicaSet,
    /// `batch/v1` Job.
    Job,
    /// `batch/v1` CronJob.
    CronJob,
    /// Our own Pinhole.
    Pinhole,
}

impl Kind {
    /// Every kind, pods first.
    pub const ALL: [Self; 8] = [
        Self::Pod,
        Self::Deployment,
        Self::StatefulSet,
        Self::DaemonSet,
        Self::ReplicaSet,
        Self::Job,
        Self::CronJob,
        Self::Pinhole,
    ];

    /// The kind as a manifest writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pod => "Pod",
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
            Self::ReplicaSet => "ReplicaSet",
            Self::Job => "Job",
            Self::CronJob => "CronJob",
            Self::Pinhole => "Pinhole",
        }
    }

    /// The `apiVersion` that a manifest of the kind writes.
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::Pod => "v1",
            Self::Deployment | Self::StatefulSet | Self::DaemonSet | Self::ReplicaSet => "apps/v1",
            Self::Job | Self::CronJob => "batch/v1",
            Self::Pinhole => "pinhole.dev/v1alpha1",
        }
    }

    /// The kind of this name, if Pinhole knows it.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// An object of one of the kinds above, a Namespace or a Node.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Object {
    /// `apiVersion`; empty in the items of a typed list.
    #[serde(deserialize_with = "null_is_default")]
    pub api_version: String,
    /// `kind`; empty in the items of a typed list.
    #[serde(deserialize_with = "null_is_default")]
    pub kind: String,
    /// `metadata`.
    #[serde(deserialize_with = "null_is_default")]
    pub metadata: Metadata,
    /// `spec`.
    #[serde(deserialize_with = "null_is_default")]
    pub spec: Spec,
    /// `status`.
    #[serde(deserialize_with = "null_is_default")]
    pub status: Status,
    /// A Pinhole's own `spec`, which `with_pinhole` reads: most objects are none.
    #[serde(skip)]
    pub pinhole: Option<Box<PinholeSpec>>,
}

/// The part of `metadata` that rules read.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// `name`; empty on CREATE with `generateName`.
    #[serde(deserialize_with = "null_is_default")]
    pub name: String,
    /// `generateName`.
    #[serde(deserialize_with = "null_is_default")]
    pub generate_name: String,
    /// `namespace`; may be empty in a review, whose request names it.
    #[serde(deserialize_with = "null_is_default")]
    pub namespace: String,
    /// `uid`; empty in manifests.
    #[serde(deserialize_with = "null_is_default")]
    pub uid: String,
    /// `resourceVersion`; empty in manifests.
    #[serde(deserialize_with = "null_is_default")]
    pub resource_version: String,
    /// `creationTimestamp`, RFC 3339 in UTC; empty in manifests.
    #[serde(deserialize_with = "null_is_default")]
    pub creation_timestamp: String,
    /// `deletionTimestamp`, once the object is being deleted.
    pub deletion_timestamp: Option<String>,
    /// `annotations`.
    #[serde(deserialize_with = "null_is_default")]
    pub annotations: BTreeMap<String, String>,
    /// `labels`.
    #[serde(deserialize_with = "null_is_default")]
    pub labels: BTreeMap<String, String>,
    /// `ownerReferences`.
    #[serde(deserialize_with = "null_is_default")]
    pub owner_references: Vec<OwnerReference>,
}

impl Metadata {
    /// The resource version as a number: of two versions of one object the later one has the larger number.
    pub fn version(&self) -> Option<u64> {
        self.resource_version.parse().ok()
    }

    /// The owner that manages this object, if one does.
    pub fn controller(&self) -> Option<&OwnerReference> {
        self.owner_references.iter().find(|owner| owner.controller)
    }
}

/// One of `ownerReferences`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    /// `apiVersion` of the owner.
    #[serde(deserialize_with = "null_is_default")]
    pub api_version: String,
    /// `kind` of the owner.
    #[serde(deserialize_with = "null_is_default")]
    pub kind: String,
    /// `name` of the owner, in the same namespace.
    #[serde(deserialize_with = "null_is_default")]
    pub name: String,
    /// `uid` of the owner.
    #[serde(deserialize_with = "null_is_default")]
    pub uid: String,
    /// Whether this owner manages the object.
    #[serde(deserialize_with = "null_is_default")]
    pub controller: bool,
}

/// The part of `spec` that rules read, of every kind at once: each kind fills its own fields.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// Pod: `nodeName`, once it is bound.
    pub node_name: Option<String>,
    /// Pod: `serviceAccountName`; the API server fills it in before admission.
    #[serde(deserialize_with = "null_is_default")]
    pub service_account_name: String,
    /// Pod: `hostNetwork`.
    #[serde(deserialize_with = "null_is_default")]
    pub host_network: bool,
    /// Pod: `nodeSelector`.
    #[serde(deserialize_with = "null_is_default")]
    pub node_selector: BTreeMap<String, String>,
    /// Pod: `containers`, with nothing but their ports.
    #[serde(deserialize_with = "null_is_default")]
    pub containers: Vec<Container>,
    /// Pod: of `initContainers` those that go on running beside the others.
    #[serde(rename = "initContainers", deserialize_with = "sidecars")]
    pub sidecars: Vec<Container>,
    /// Pod: `schedulingGates`, while it may not be scheduled.
    #[serde(deserialize_with = "null_is_default")]
    pub scheduling_gates: Vec<SchedulingGate>,
    /// Pod: `readinessGates`, the conditions that it is not ready without.
    #[serde(deserialize_with = "null_is_default")]
    pub readiness_gates: Vec<ReadinessGate>,
    /// Pod: `affinity`.
    pub affinity: Option<Affinity>,
    /// Workload: `replicas`.
    pub replicas: Option<i64>,
    /// Job: `parallelism`.
    pub parallelism: Option<i64>,
    /// StatefulSet: `ordinals`.
    #[serde(deserialize_with = "null_is_default")]
    pub ordinals: FirstOrdinal,
    /// StatefulSet: `podManagementPolicy`; empty for `OrderedReady`.
    #[serde(deserialize_with = "null_is_default")]
    pub pod_management_policy: String,
    /// Workload: the template of its pods.
    pub template: Option<Box<Template>>,
    /// CronJob: the template of its Jobs.
    pub job_template: Option<Box<JobTemplate>>,
    /// Node: `podCIDRs`.
    #[serde(rename = "podCIDRs", deserialize_with = "null_is_default")]
    pub pod_cidrs: Vec<String>,
    /// Node: `taints`.
    #[serde(deserialize_with = "null_is_default")]
    pub taints: Vec<Taint>,
}

impl Spec {
    /// The `ports` of a pod's containers by which it has ports of its node.
    pub fn host_ports(&self) -> impl Iterator<Item = &ContainerPort> {
        let running = self.containers.iter().chain(&self.sidecars);
        running.flat_map(|container| &container.ports).filter(|port| port.host_port != 0)
    }
}

/// One of a node's `taints`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Taint {
    /// `key`.
    #[serde(deserialize_with = "null_is_default")]
    pub key: String,
}

/// A StatefulSet's `ordinals`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct FirstOrdinal {
    /// `start`: the number of the first pod.
    #[serde(deserialize_with = "null_is_default")]
    pub start: i64,
}

/// A pod's container: only which ports of the node it has.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Container {
    /// `ports`.
    #[serde(deserialize_with = "null_is_default")]
    pub ports: Vec<ContainerPort>,
}

/// One of a container's `ports`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    /// `hostPort`; 0 without one.
    #[serde(deserialize_with = "null_is_default")]
    pub host_port: i64,
    /// `hostIP`; empty for every address of the node.
    #[serde(rename = "hostIP", deserialize_with = "null_is_default")]
    pub host_ip: String,
    /// `protocol`; empty for TCP.
    #[serde(deserialize_with = "null_is_default")]
    pub protocol: String,
}

/// What keeps a pod from being scheduled until somebody takes it away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SchedulingGate {
    /// The name.
    #[serde(deserialize_with = "null_is_default")]
    pub name: String,
}

/// A condition that a pod is not ready without.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReadinessGate {
    /// The type of the condition.
    #[serde(deserialize_with = "null_is_default")]
    pub condition_type: String,
}

/// A pod template.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Template {
    /// The pods' `metadata`.
    #[serde(deserialize_with = "null_is_default")]
    pub metadata: Metadata,
    /// The pods' `spec`.
    #[serde(deserialize_with = "null_is_default")]
    pub spec: Spec,
}

/// A CronJob's Job template.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct JobTemplate {
    /// The Jobs' `spec`.
    #[serde(deserialize_with = "null_is_default")]
    pub spec: Spec,
}

/// A pod's `affinity`: what can pin it to one node or keep it off one.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Affinity {
    /// `nodeAffinity`.
    #[serde(deserialize_with = "null_is_default")]
    pub node_affinity: NodeAffinity,
    /// `podAntiAffinity`.
    pub pod_anti_affinity: Option<PodAntiAffinity>,
}

/// A pod's `podAntiAffinity`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PodAntiAffinity {
    /// `requiredDuringSchedulingIgnoredDuringExecution`: terms that are passed on as they are.
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution", deserialize_with = "null_is_default")]
    pub required: Vec<Value>,
}

/// A pod's `nodeAffinity`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeAffinity {
    /// `requiredDuringSchedulingIgnoredDuringExecution`.
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution", deserialize_with = "null_is_default")]
    pub required: NodeSelector,
}

/// A required node selector: any of its terms.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSelector {
    /// `nodeSelectorTerms`.
    #[serde(deserialize_with = "null_is_default")]
    pub node_selector_terms: Vec<NodeSelectorTerm>,
}

/// One term of a node selector: all of its expressions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSelectorTerm {
    /// `matchExpressions`, on labels.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<NodeSelectorRequirement>,
    /// `matchFields`, on fields of the node.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub match_fields: Vec<NodeSelectorRequirement>,
}

/// One expression of a node selector.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeSelectorRequirement {
    /// The label or field.
    #[serde(deserialize_with = "null_is_default")]
    pub key: String,
    /// `In`, `NotIn`, `Exists`, ...
    #[serde(deserialize_with = "null_is_default")]
    pub operator: String,
    /// The values.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// The part of `status` that rules read, of every kind at once.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// Pod: `phase`.
    #[serde(deserialize_with = "null_is_default")]
    pub phase: String,
    /// Pod: `podIPs`, the primary first.
    #[serde(rename = "podIPs", deserialize_with = "null_is_default")]
    pub pod_ips: Vec<PodIp>,
    /// Pod and Job: `conditions`.
    #[serde(deserialize_with = "null_is_default")]
    pub conditions: Vec<Condition>,
    /// Pod: `containerStatuses`.
    #[serde(deserialize_with = "null_is_default")]
    pub container_statuses: Vec<ContainerStatus>,
    /// Node: `addresses`.
    #[serde(deserialize_with = "null_is_default")]
    pub addresses: Vec<NodeAddress>,
    /// ReplicaSet and StatefulSet: `replicas`, the pods that there are.
    #[serde(deserialize_with = "null_is_default")]
    pub replicas: i64,
    /// StatefulSet: `availableReplicas`.
    #[serde(deserialize_with = "null_is_default")]
    pub available_replicas: i64,
    /// DaemonSet: `desiredNumberScheduled`, the nodes that should have a pod.
    #[serde(deserialize_with = "null_is_default")]
    pub desired_number_scheduled: i64,
    /// DaemonSet: `currentNumberScheduled`, those of them that have one.
    #[serde(deserialize_with = "null_is_default")]
    pub current_number_scheduled: i64,
}

/// One of a pod's addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PodIp {
    /// The address as text.
    #[serde(deserialize_with = "null_is_default")]
    pub ip: String,
}

/// One of `conditions`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// `type`: `Ready`, `Complete`, ...
    #[serde(rename = "type", deserialize_with = "null_is_default")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    #[serde(deserialize_with = "null_is_default")]
    pub status: String,
    /// `reason`, one word.
    #[serde(deserialize_with = "null_is_default")]
    pub reason: String,
    /// `lastTransitionTime`, RFC 3339 in UTC.
    #[serde(deserialize_with = "null_is_default")]
    pub last_transition_time: String,
}

/// One of a pod's `containerStatuses`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ContainerStatus {
    /// Whether the container passes its readiness probe.
    #[serde(deserialize_with = "null_is_default")]
    pub ready: bool,
}

/// One of a node's addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    /// `InternalIP`, `ExternalIP`, `Hostname`, ...
    #[serde(rename = "type", deserialize_with = "null_is_default")]
    pub type_: String,
    /// The address as text.
    #[serde(deserialize_with = "null_is_default")]
    pub address: String,
}

/// What of a Pinhole says what it asks for.
#[derive(Deserialize)]
pub(crate) struct PinholeBody {
    /// `spec`.
    pub(crate) spec: Box<PinholeSpec>,
}

impl Object {
    /// The same object with what it asks for as a Pinhole.
    #[must_use]
    pub(crate) fn with_pinhole(self, body: PinholeBody) -> Self {
        Self { pinhole: Some(body.spec), ..self }
    }

    /// A stored Pinhole as rules read it.
    pub fn of_pinhole(pinhole: &Pinhole) -> Self {
        let text = |part: &Option<String>| part.clone().unwrap_or_default();
        let time = |part: &Option<Time>| part.as_ref().map(|time| time.0.to_string());
        let metadata = &pinhole.metadata;
        Self {
            api_version: Kind::Pinhole.api_version().to_owned(),
            kind: Kind::Pinhole.name().to_owned(),
            metadata: Metadata {
                name: text(&metadata.name),
                namespace: text(&metadata.namespace),
                uid: text(&metadata.uid),
                resource_version: text(&metadata.resource_version),
                creation_timestamp: time(&metadata.creation_timestamp).unwrap_or_default(),
                deletion_timestamp: time(&metadata.deletion_timestamp),
                ..Metadata::default()
            },
            pinhole: Some(Box::new(pinhole.spec.clone())),
            ..Self::default()
        }
    }

    /// The kind, if Pinhole knows it.
    pub fn known_kind(&self) -> Option<Kind> {
        Kind::from_name(&self.kind)
    }

    /// The ordinals of a StatefulSet's pods.
    pub fn ordinals(&self) -> Option<Ordinals> {
        let Spec { replicas, ordinals, .. } = &self.spec;
        (self.known_kind() == Some(Kind::StatefulSet))
            .then(|| Ordinals::new(ordinals.start, replicas.unwrap_or(1)))
    }

    /// The condition of this type, if it is `True`.
    pub fn true_condition(&self, type_: &str) -> Option<&Condition> {
        self.status.conditions.iter().find(|found| found.type_ == type_ && found.status == "True")
    }

    /// Whether a condition of this type is `True`.
    pub fn has_condition(&self, type_: &str) -> bool {
        self.true_condition(type_).is_some()
    }

    /// Whether a pod's containers are ready. Not the condition `Ready`: that one also waits for readiness gates, and one of them
    /// may wait for us.
    pub fn are_containers_ready(&self) -> bool {
        let statuses = &self.status.container_statuses;
        let are_ready = self.has_condition("ContainersReady")
            || (!statuses.is_empty() && statuses.iter().all(|status| status.ready));
        are_ready && !self.is_lost()
    }

    /// Whether a pod's node is lost. Then the control plane takes away the condition `Ready` and nothing else, without a reason;
    /// a kubelet always gives one.
    fn is_lost(&self) -> bool {
        let is_taken_away = |found: &Condition| {
            found.type_ == "Ready"
                && matches!(found.status.as_str(), "False" | "Unknown")
                && found.reason.is_empty()
        };
        self.status.conditions.iter().any(is_taken_away)
    }

    /// Whether a pod has ports of its node by `hostPort`.
    pub fn has_host_ports(&self) -> bool {
        self.spec.host_ports().next().is_some()
    }

    /// The IP families of a pod's addresses; empty while it has none.
    pub fn families(&self) -> Families {
        self.status.pod_ips.iter().filter_map(|found| found.ip.parse::<IpAddr>().ok()).collect()
    }

    /// Whether a pod or Job has ended for good and will never receive a packet again.
    pub fn is_finished(&self) -> bool {
        match self.known_kind() {
            Some(Kind::Pod) => matches!(self.status.phase.as_str(), "Succeeded" | "Failed"),
            Some(Kind::Job) => self.has_condition("Complete") || self.has_condition("Failed"),
            _ => false,
        }
    }
}

/// Of init containers those that are never done. What others have of their node is free again before the pod serves anybody, and
/// neither the scheduler nor the kubelet counts it.
fn sidecars<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Container>, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct InitContainer {
        #[serde(deserialize_with = "null_is_default")]
        restart_policy: String,
        #[serde(deserialize_with = "null_is_default")]
        ports: Vec<ContainerPort>,
    }
    let all: Vec<InitContainer> = null_is_default(deserializer)?;
    let running = all.into_iter().filter(|one| one.restart_policy == "Always" && !one.ports.is_empty());
    Ok(running.map(|one| Container { ports: one.ports }).collect())
}

/// `null` where a value was expected, as hand-written YAML has it, is the default.
pub(crate) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_null_field_is_its_default_and_an_unknown_one_is_skipped() {
        let object: Object = serde_json::from_str(
            r#"{"kind":"Pod","metadata":{"name":"web","annotations":null,"managedFields":[{"a":1}]},
                "spec":{"containers":[{"name":"c"}],"nodeSelector":null,"affinity":null},"status":null}"#,
        )
        .unwrap();
        assert_eq!(object.known_kind(), Some(Kind::Pod));
        assert_eq!(object.metadata.name, "web");
        assert!(object.metadata.annotations.is_empty());
    }

    #[test]
    fn of_init_containers_only_those_that_go_on_running_have_ports_of_their_node() {
        let pod: Object = serde_json::from_str(
            r#"{"kind":"Pod","spec":{
                "containers":[{"ports":[{"containerPort":80,"hostPort":8080},{"containerPort":81}]}],
                "initContainers":[
                    {"name":"proxy","restartPolicy":"Always","ports":[{"hostPort":9090,"protocol":"UDP"}]},
                    {"name":"quiet","restartPolicy":"Always","ports":null},
                    {"name":"migrate","restartPolicy":null,"ports":[{"hostPort":7070}]}]}}"#,
        )
        .unwrap();
        let ports: Vec<_> = pod.spec.host_ports().map(|port| port.host_port).collect();
        assert_eq!(ports, [8080, 9090]);
        assert_eq!(pod.spec.sidecars.len(), 1);
        let bare: Object = serde_json::from_str(r#"{"kind":"Pod","spec":{"initContainers":null}}"#).unwrap();
        assert!(!bare.has_host_ports());
    }

    #[test]
    fn a_pod_of_a_lost_node_is_not_ready_whatever_its_kubelet_said_last() {
        let condition = |type_: &str, status: &str, reason: &str| {
            format!(r#"{{"type":"{type_}","status":"{status}","reason":"{reason}"}}"#)
        };
        let cases = [
            (condition("Ready", "True", ""), true, "a pod that is well"),
            (condition("Ready", "False", "ReadinessGatesNotReady"), true, "a pod that waits for us"),
            (condition("Ready", "False", ""), false, "a pod whose node was not heard of"),
            (condition("Initialized", "False", ""), true, "another condition"),
        ];
        for (ready, expected, what) in cases {
            let containers = condition("ContainersReady", "True", "");
            let json = format!(r#"{{"kind":"Pod","status":{{"conditions":[{ready},{containers}]}}}}"#);
            let pod: Object = serde_json::from_str(&json).unwrap();
            assert_eq!(pod.are_containers_ready(), expected, "{what}");
        }
    }

    #[test]
    fn r14_pods_and_jobs_that_ended_are_finished() {
        let object = |json: &str| serde_json::from_str::<Object>(json).unwrap();
        assert!(object(r#"{"kind":"Pod","status":{"phase":"Succeeded"}}"#).is_finished());
        assert!(object(r#"{"kind":"Pod","status":{"phase":"Failed"}}"#).is_finished());
        assert!(!object(r#"{"kind":"Pod","status":{"phase":"Running"}}"#).is_finished());
        assert!(
            object(r#"{"kind":"Job","status":{"conditions":[{"type":"Complete","status":"True"}]}}"#)
                .is_finished()
        );
        assert!(!object(r#"{"kind":"Job","status":{}}"#).is_finished());
    }
}
