//! What a removal reads from the API server, and what it deletes there.
//!
//! Deleting what does not exist is no error. Every failure names the object and says what to do.

pub mod every;
pub mod gates;

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::ContainerState;
use k8s_openapi::api::core::v1::ContainerStatus;
use k8s_openapi::api::core::v1::Node as ApiNode;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::core::v1::Pod as ApiPod;
use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::api::core::v1::PodStatus;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::Client;
use kube::api::ApiResource;
use kube::api::DeleteParams;
use kube::api::DynamicObject;
use kube::api::ListParams;
use kube::api::Patch;
use kube::api::PatchParams;
use kube::api::PostParams;
use kube::core::GroupVersionKind;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::cluster::trouble::describe;
use crate::removal::Node;
use crate::removal::Pod;

/// Who we are in the managed fields of what we make.
const FIELD_MANAGER: &str = "pinhole-uninstall";

/// The longest text that an Event holds.
const LONGEST_NOTE: usize = 1024;

/// A request that failed.
#[derive(Debug, Error)]
#[error("cannot {verb} {object}: {reason}")]
pub struct RemovalError {
    verb: &'static str,
    object: String,
    reason: String,
}

/// An object of any kind in the installation's namespace, as kubectl names it: `secrets/NAME` or
/// `certificates.v1.cert-manager.io/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    resource: ApiResource,
    name: String,
}

/// Text that names no object.
#[derive(Debug, Error)]
#[error(
    "{0:?} names no object; write secrets/NAME, or certificates.v1.cert-manager.io/NAME for what is not in the core group"
)]
pub struct TargetError(String);

/// One installation in one cluster.
#[derive(Clone)]
pub struct Installation {
    client: Client,
    namespace: String,
}

impl Installation {
    /// The installation in `namespace`.
    pub fn new(client: Client, namespace: String) -> Self {
        Self { client, namespace }
    }

    /// Deletes both webhook configurations of this name; returns those that were there.
    pub async fn delete_configurations(&self, name: &str) -> Result<Vec<String>, RemovalError> {
        let mut deleted = Vec::new();
        let object = format!("validatingwebhookconfiguration/{name}");
        let api: Api<ValidatingWebhookConfiguration> = Api::all(self.client.clone());
        if delete(&api, name, &DeleteParams::default(), &object).await? {
            deleted.push(object);
        }
        let object = format!("mutatingwebhookconfiguration/{name}");
        let api: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        if delete(&api, name, &DeleteParams::default(), &object).await? {
            deleted.push(object);
        }
        Ok(deleted)
    }

    /// Asks for the end of a DaemonSet and all of its pods; false when it is not there any more. The object itself goes
    /// last.
    pub async fn delete_daemon_set(&self, name: &str) -> Result<bool, RemovalError> {
        delete(&self.daemon_sets(), name, &DeleteParams::foreground(), &format!("daemonset/{name}")).await
    }

    /// Whether the DaemonSet is about to end; `None` when it does not exist.
    pub async fn is_ending(&self, name: &str) -> Result<Option<bool>, RemovalError> {
        let found =
            self.daemon_sets().get_opt(name).await.map_err(failed("read", format!("daemonset/{name}")))?;
        Ok(found.map(|found| found.metadata.deletion_timestamp.is_some()))
    }

    /// Makes the DaemonSet, or makes the present one like it.
    pub async fn apply_daemon_set(&self, wanted: &DaemonSet) -> Result<(), RemovalError> {
        let name = wanted.metadata.name.clone().unwrap_or_default();
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let applied = self.daemon_sets().patch(&name, &params, &Patch::Apply(wanted)).await;
        applied.map(|_| ()).map_err(failed("create", format!("daemonset/{name}")))
    }

    /// The pods of a DaemonSet, also when the DaemonSet itself is gone.
    pub async fn pods_of(&self, daemon_set: &str) -> Result<Vec<Pod>, RemovalError> {
        let pods = self.pods().list(&ListParams::default()).await;
        let pods = pods.map_err(failed("list", format!("pods in the namespace {}", self.namespace)))?;
        let is_its = |pod: &ApiPod| {
            let mut owners = pod.metadata.owner_references.iter().flatten();
            owners.any(|owner| owner.kind == "DaemonSet" && owner.name == daemon_set)
        };
        Ok(pods.items.into_iter().filter(is_its).map(slim_pod).collect())
    }

    /// Deletes a pod that nobody will end, without waiting for its node.
    pub async fn forget_pod(&self, name: &str) -> Result<(), RemovalError> {
        let at_once = DeleteParams::default().grace_period(0);
        delete(&self.pods(), name, &at_once, &format!("pod/{name}")).await.map(|_| ())
    }

    /// Every node.
    pub async fn nodes(&self) -> Result<Vec<Node>, RemovalError> {
        let api: Api<ApiNode> = Api::all(self.client.clone());
        let nodes = api.list(&ListParams::default()).await.map_err(failed("list", "nodes".to_owned()))?;
        Ok(nodes.items.into_iter().map(slim_node).collect())
    }

    /// Deletes any object; false when it is not there, or the cluster knows no such kind.
    pub async fn delete(&self, target: &Target) -> Result<bool, RemovalError> {
        delete(&self.all_like(target), &target.name, &DeleteParams::background(), &target.to_string()).await
    }

    /// Deletes an object that somebody may have made again; whether it was there and is gone now.
    pub async fn delete_again(&self, target: &Target) -> Result<bool, RemovalError> {
        match self.all_like(target).delete(&target.name, &DeleteParams::background()).await {
            Ok(deleted) => Ok(deleted.is_right()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => Err(failed("delete", target.to_string())(error)),
        }
    }

    /// Tells a node's operator what is left to do there, for as long as Events are kept.
    pub async fn warn_about_node(&self, node: &str, message: &str) -> Result<(), RemovalError> {
        // Events about what has no namespace live in this one.
        let api: Api<Event> = Api::namespaced(self.client.clone(), "default");
        let event = warning(node, message, Timestamp::now());
        let written = api.create(&PostParams::default(), &event).await;
        written.map(|_| ()).map_err(failed("create", format!("an Event about node/{node}")))
    }

    fn all_like(&self, target: &Target) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, &target.resource)
    }

    fn daemon_sets(&self) -> Api<DaemonSet> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn pods(&self) -> Api<ApiPod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

impl std::str::FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let malformed = || TargetError(text.to_owned());
        let (resource, name) = text.split_once('/').ok_or_else(malformed)?;
        let mut parts = resource.splitn(3, '.');
        let plural = parts.next().unwrap_or_default();
        let (version, group) = match (parts.next(), parts.next()) {
            (None, _) => ("v1", ""),
            (Some(version), Some(group)) if !version.is_empty() && !group.is_empty() => (version, group),
            _ => return Err(malformed()),
        };
        if plural.is_empty() || name.is_empty() || name.contains('/') {
            return Err(malformed());
        }
        // Only the path of its URL matters, and the kind has no part in that.
        let kind = GroupVersionKind::gvk(group, version, plural);
        Ok(Self { resource: ApiResource::from_gvk_with_plural(&kind, plural), name: name.to_owned() })
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ApiResource { group, version, plural, .. } = &self.resource;
        if group.is_empty() {
            write!(f, "{plural}/{}", self.name)
        } else {
            write!(f, "{plural}.{version}.{group}/{}", self.name)
        }
    }
}

async fn delete<K>(
    api: &Api<K>,
    name: &str,
    params: &DeleteParams,
    object: &str,
) -> Result<bool, RemovalError>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    match api.delete(name, params).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(failed("delete", object.to_owned())(error)),
    }
}

fn failed(verb: &'static str, object: String) -> impl FnOnce(kube::Error) -> RemovalError {
    move |error| RemovalError { verb, object, reason: describe(&error) }
}

fn slim_node(node: ApiNode) -> Node {
    let mut ready = node.status.and_then(|status| status.conditions).into_iter().flatten();
    let ready = ready.find(|condition| condition.type_ == "Ready");
    let away = match ready {
        Some(ready) if ready.status == "True" => None,
        Some(ready) => {
            let message = ready.message.filter(|message| !message.is_empty()).or(ready.reason);
            let message = message.map(|message| format!(": {message}")).unwrap_or_default();
            Some(format!("Ready is {}{message}", ready.status))
        }
        None => Some("it has never reported to be Ready".to_owned()),
    };
    Node {
        name: node.metadata.name.unwrap_or_default(),
        labels: node.metadata.labels.unwrap_or_default(),
        away,
    }
}

fn slim_pod(pod: ApiPod) -> Pod {
    let ApiPod { metadata, spec, status } = pod;
    let status = status.unwrap_or_default();
    let mut conditions = status.conditions.iter().flatten();
    let is_ready = conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True");
    Pod {
        name: metadata.name.unwrap_or_default(),
        node: spec.as_ref().and_then(node_of),
        is_ready: is_ready && metadata.deletion_timestamp.is_none(),
        trouble: trouble(&status),
    }
}

/// The node that a pod runs on, else the one that its DaemonSet made it for.
fn node_of(spec: &PodSpec) -> Option<String> {
    if let Some(node) = &spec.node_name {
        return Some(node.clone());
    }
    let required = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = required.required_during_scheduling_ignored_during_execution.as_ref()?;
    let mut fields = required.node_selector_terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    fields.find(|field| field.key == "metadata.name")?.values.as_ref()?.first().cloned()
}

/// What keeps a pod from being ready, in the words of whoever runs it.
fn trouble(status: &PodStatus) -> Option<String> {
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    if let Some(trouble) = containers.filter(|container| !container.ready).find_map(container_trouble) {
        return Some(trouble);
    }
    let mut conditions = status.conditions.iter().flatten();
    let unscheduled =
        conditions.find(|condition| condition.type_ == "PodScheduled" && condition.status != "True")?;
    Some(format!(
        "has no node: {}",
        unscheduled.message.as_deref().unwrap_or("the scheduler has not said why")
    ))
}

fn container_trouble(container: &ContainerStatus) -> Option<String> {
    let ended = |state: &Option<ContainerState>| {
        let ended = state.as_ref()?.terminated.as_ref().filter(|ended| ended.exit_code != 0)?;
        let message = ended.message.as_deref().unwrap_or_default().trim();
        Some(format!("ended with exit status {}: {message}", ended.exit_code))
    };
    // Between two attempts the reason of the last one says more than "is waiting".
    ended(&container.state).or_else(|| ended(&container.last_state)).or_else(|| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref().filter(|reason| *reason != "PodInitializing")?;
        Some(format!("waits: {reason} {}", waiting.message.as_deref().unwrap_or_default()))
    })
}

fn warning(node: &str, message: &str, now: Timestamp) -> Event {
    Event {
        action: Some("Uninstall".to_owned()),
        deprecated_count: None,
        deprecated_first_timestamp: None,
        deprecated_last_timestamp: None,
        deprecated_source: None,
        event_time: Some(MicroTime(now)),
        metadata: ObjectMeta {
            name: Some(format!("{node}.{:x}", now.as_nanosecond())),
            namespace: Some("default".to_owned()),
            ..ObjectMeta::default()
        },
        note: Some(message.get(..message.floor_char_boundary(LONGEST_NOTE)).unwrap_or_default().to_owned()),
        reason: Some("PinholeNotCleaned".to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            // What `kubectl describe node` looks for.
            uid: Some(node.to_owned()),
            ..ObjectReference::default()
        }),
        related: None,
        reporting_controller: Some("pinhole.dev/uninstall".to_owned()),
        reporting_instance: Some("pinhole-uninstall".to_owned()),
        series: None,
        type_: Some("Warning".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use serde_json::json;

    use super::*;

    fn pod(spec: &Value, status: &Value) -> Pod {
        let pod = json!({ "metadata": { "name": "cleanup-1" }, "spec": spec, "status": status });
        slim_pod(serde_json::from_value(pod).unwrap())
    }

    fn node(conditions: &Value) -> Option<String> {
        let node = json!({ "metadata": { "name": "a" }, "status": { "conditions": conditions } });
        slim_node(serde_json::from_value(node).unwrap()).away
    }

    #[test]
    fn a_pod_belongs_to_the_node_that_it_is_on_or_was_made_for() {
        let containers = json!([]);
        let affinity = json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["b"] }] }]
        } } });
        let cases = [
            (json!({ "containers": containers, "nodeName": "a", "affinity": affinity }), Some("a")),
            (json!({ "containers": containers, "affinity": affinity }), Some("b")),
            (json!({ "containers": containers }), None),
        ];
        for (spec, node) in cases {
            assert_eq!(pod(&spec, &json!({})).node.as_deref(), node);
        }
    }

    #[test]
    fn what_keeps_a_pod_from_being_ready_is_told_in_its_own_words() {
        let init = |state: Value, last: Value| {
            json!({ "initContainerStatuses": [{
                "name": "cleanup", "image": "x", "imageID": "", "ready": false, "restartCount": 1,
                "state": state, "lastState": last,
            }] })
        };
        let waiting = |reason: &str| json!({ "waiting": { "reason": reason, "message": "back-off" } });
        let ended = json!({ "terminated": { "exitCode": 1, "message": "iptables-save: not found\n" } });
        let unscheduled = json!({ "conditions": [
            { "type": "PodScheduled", "status": "False", "message": "0/3 nodes are available" },
        ] });
        let cases = [
            (
                init(waiting("CrashLoopBackOff"), ended),
                Some("ended with exit status 1: iptables-save: not found"),
            ),
            (init(waiting("ImagePullBackOff"), json!({})), Some("waits: ImagePullBackOff back-off")),
            (unscheduled, Some("has no node: 0/3 nodes are available")),
            (json!({}), None),
        ];
        for (status, expected) in cases {
            assert_eq!(pod(&json!({ "containers": [] }), &status).trouble.as_deref(), expected);
        }
    }

    #[test]
    fn only_a_ready_condition_that_is_true_makes_a_node_reachable() {
        let ready = |status: &str| {
            json!([{ "type": "DiskPressure", "status": "False" },
                   { "type": "Ready", "status": status, "message": "kubelet stopped posting node status" }])
        };
        assert_eq!(node(&ready("True")), None);
        assert_eq!(node(&ready("Unknown")).unwrap(), "Ready is Unknown: kubelet stopped posting node status");
        assert_eq!(node(&json!([])).unwrap(), "it has never reported to be Ready");
    }

    #[test]
    fn objects_are_named_as_kubectl_names_them() {
        for text in ["secrets/pinhole-webhook-ca", "certificates.v1.cert-manager.io/pinhole-webhook"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        let target: Target = "certificates.v1.cert-manager.io/a".parse().unwrap();
        assert_eq!(target.resource.api_version, "cert-manager.io/v1");
        for text in ["secrets", "/a", "secrets/", "leases.v1/a", "a/b/c", "certificates..cert-manager.io/a"] {
            let error = text.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains("names no object; write secrets/NAME"), "{error}");
        }
    }

    #[test]
    fn a_warning_about_a_node_fits_an_event() {
        let event = warning("a", &"é".repeat(1000), Timestamp::from_second(1).unwrap());
        assert!(event.note.unwrap().len() <= LONGEST_NOTE);
        assert_eq!(event.regarding.unwrap().name.as_deref(), Some("a"));
    }
}
