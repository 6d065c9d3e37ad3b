//! What stands behind the Pinholes that users write: Services and their EndpointSlices, and pods by label. Of each object only
//! what leads packets is kept.
//!
//! Nothing is watched before a Pinhole needs it, so that a cluster without such Pinholes pays for none of it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::Endpoint;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::Client;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher;
use kube::runtime::watcher::Event;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::debug;
use tracing::info;
use tracing::warn;

use crate::api::object::Kind;
use crate::api::object::Object;
use crate::cluster::changes::Changes;
use crate::cluster::resource::Resource;
use crate::cluster::resource::Seen;
use crate::cluster::trouble::describe_watch;
use crate::cluster::trouble::is_expired;
use crate::cluster::watch::WATCH_SECONDS;
use crate::model::holder::ObjectName;
use crate::model::port::Protocol;

/// The label of an EndpointSlice that names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A port by name, protocol and number: of a Service, or of the pods in a slice. The name is empty where there is one port only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPort {
    /// Its name.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub number: u16,
}

/// How fit a pod is for new connections, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fitness {
    /// Not at all.
    Unready,
    /// It is on its way out and still serves.
    Leaving,
    /// It is ready.
    Ready,
}

/// A pod that packets can be led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its name.
    pub pod: String,
    /// Its UID.
    pub uid: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The node that it runs on.
    pub node: Option<String>,
    /// How fit it is.
    pub fitness: Fitness,
}

/// Pods behind a Service, which share their port numbers and one IP family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The Service.
    pub service: ObjectName,
    /// The pods' ports, by the names of the Service's.
    pub ports: Vec<NamedPort>,
    /// The pods.
    pub backends: Vec<Backend>,
}

/// A pod and its labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelledPod {
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// The pod.
    pub backend: Backend,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// Whether it is being deleted.
    pub is_leaving: bool,
}

/// All that is known.
#[derive(Debug, Default)]
pub struct Backends {
    /// The ports of each Service.
    pub services: BTreeMap<ObjectName, Vec<NamedPort>>,
    /// The slices.
    pub slices: BTreeMap<ObjectName, Slice>,
    /// The pods that have not ended.
    pub pods: BTreeMap<ObjectName, LabelledPod>,
}

/// What Pinholes need to be known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// Services and their slices.
    pub services: bool,
    /// Pods, by label and by age.
    pub pods: bool,
}

/// What the watches have shown.
#[derive(Debug)]
pub struct KnownBackends {
    backends: RwLock<Backends>,
    listed: RwLock<BTreeSet<&'static str>>,
    need_tx: watch::Sender<Need>,
}

impl Default for KnownBackends {
    fn default() -> Self {
        Self {
            backends: RwLock::default(),
            listed: RwLock::default(),
            // Whoever plans -> the watches.
            need_tx: watch::Sender::new(Need::default()),
        }
    }
}

impl KnownBackends {
    /// Shows what is known; `None` while a first list of what is needed is missing. What was needed once is watched from then
    /// on.
    pub fn read<T>(&self, need: Need, look: impl FnOnce(&Backends) -> T) -> Option<T> {
        self.need_tx.send_if_modified(|known| {
            let both = Need { services: known.services || need.services, pods: known.pods || need.pods };
            std::mem::replace(known, both) != both
        });
        let is_known = {
            let listed = self.listed.read().unwrap_or_else(PoisonError::into_inner);
            let have = |plurals: &[&str]| plurals.iter().all(|plural| listed.contains(plural));
            (!need.services || have(&[SERVICES, SLICES])) && (!need.pods || have(&[PODS]))
        };
        is_known.then(|| look(&self.backends.read().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Follows what is needed, as soon as it is, until it is dropped.
    /// Says so each time that something changes.
    pub async fn follow(self: Arc<Self>, client: Client, changes: Changes) {
        let needed = async |is_it: fn(&Need) -> bool| drop(self.need_tx.subscribe().wait_for(is_it).await);
        let services = async {
            needed(|need| need.services).await;
            tokio::join!(
                self.keep(SERVICES, Api::all(client.clone()), |all| &mut all.services, ports_of, &changes),
                self.keep(SLICES, Api::all(client.clone()), |all| &mut all.slices, slice_of, &changes),
            );
        };
        let pods = async {
            needed(|need| need.pods).await;
            let api: Api<Seen> = Api::all_with(client.clone(), &POD);
            self.keep(PODS, api, |all| &mut all.pods, pod_of, &changes).await;
        };
        tokio::join!(services, pods);
    }

    /// Keeps what is needed of each object of one kind.
    async fn keep<K, T>(
        &self,
        plural: &'static str,
        api: Api<K>,
        table: impl Fn(&mut Backends) -> &mut BTreeMap<ObjectName, T>,
        of: impl Fn(K) -> Option<T>,
        changes: &Changes,
    ) where
        K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let config = watcher::Config::default().page_size(500).timeout(WATCH_SECONDS);
        let mut events = watcher(api, config).default_backoff().boxed();
        let mut listing = BTreeMap::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => {
                    listing.clear();
                    continue;
                }
                Ok(Event::InitApply(object)) => {
                    let name = name(&object);
                    listing.extend(of(object).map(|kept| (name, kept)));
                    continue;
                }
                Ok(Event::InitDone) => {
                    info!(resource = plural, count = listing.len(), "Listed");
                    *table(&mut self.write()) = std::mem::take(&mut listing);
                    self.listed.write().unwrap_or_else(PoisonError::into_inner).insert(plural);
                }
                Ok(Event::Apply(object)) => {
                    let name = name(&object);
                    let kept = of(object);
                    let mut backends = self.write();
                    match kept {
                        Some(kept) => drop(table(&mut backends).insert(name, kept)),
                        None => drop(table(&mut backends).remove(&name)),
                    }
                }
                Ok(Event::Delete(object)) => drop(table(&mut self.write()).remove(&name(&object))),
                Err(error) if is_expired(&error) => debug!(resource = plural, "The watch starts anew"),
                Err(error) => {
                    let reason = describe_watch(&error);
                    warn!(resource = plural, reason, "Cannot list or watch; what is known stays");
                }
            }
            changes.tell();
        }
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Backends> {
        self.backends.write().unwrap_or_else(PoisonError::into_inner)
    }
}

const SERVICES: &str = "services";
const SLICES: &str = "endpointslices";
const PODS: &str = "pods";

const POD: Resource = Resource::Holder(Kind::Pod);

fn name(object: &impl kube::Resource) -> ObjectName {
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    ObjectName::new(text(&object.meta().namespace), text(&object.meta().name))
}

fn protocol(text: Option<&str>) -> Option<Protocol> {
    text.unwrap_or("TCP").to_lowercase().parse().ok()
}

fn number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}

fn ports_of(service: Service) -> Option<Vec<NamedPort>> {
    let ports = service.spec?.ports.unwrap_or_default();
    let port = |port: k8s_openapi::api::core::v1::ServicePort| {
        Some(NamedPort {
            protocol: protocol(port.protocol.as_deref())?,
            number: number(port.port)?,
            name: port.name.unwrap_or_default(),
        })
    };
    Some(ports.into_iter().filter_map(port).collect())
}

fn slice_of(slice: EndpointSlice) -> Option<Slice> {
    let metadata = slice.metadata;
    let service = metadata.labels?.remove(SERVICE_NAME)?;
    let namespace = metadata.namespace.unwrap_or_default();
    let port = |port: k8s_openapi::api::discovery::v1::EndpointPort| {
        Some(NamedPort {
            protocol: protocol(port.protocol.as_deref())?,
            number: number(port.port?)?,
            name: port.name.unwrap_or_default(),
        })
    };
    Some(Slice {
        ports: slice.ports.into_iter().flatten().filter_map(port).collect(),
        backends: slice.endpoints.into_iter().filter_map(|endpoint| backend(endpoint, &namespace)).collect(),
        service: ObjectName::new(namespace, service),
    })
}

/// The pod of an endpoint; none for an address that is no pod's of this namespace, to which nothing is led.
fn backend(endpoint: Endpoint, namespace: &str) -> Option<Backend> {
    let pod = endpoint.target_ref.filter(|target| {
        let is_here = target.namespace.as_deref().is_none_or(|found| found == namespace);
        target.kind.as_deref() == Some("Pod") && is_here
    })?;
    let conditions = endpoint.conditions.unwrap_or_default();
    // What nobody has said counts as ready, as the API has it.
    let is_ready = conditions.ready.unwrap_or(true);
    let is_leaving = conditions.serving.unwrap_or(is_ready) && conditions.terminating.unwrap_or(false);
    Some(Backend {
        pod: pod.name?,
        uid: pod.uid?,
        addresses: endpoint.addresses.iter().filter_map(|text| text.parse().ok()).collect(),
        node: endpoint.node_name,
        fitness: fitness(is_ready, is_leaving),
    })
}

const fn fitness(is_ready: bool, is_leaving: bool) -> Fitness {
    match (is_ready, is_leaving) {
        (true, _) => Fitness::Ready,
        (false, true) => Fitness::Leaving,
        (false, false) => Fitness::Unready,
    }
}

/// A pod that packets can be led to: one that has ended never can, and one with its node's address needs no NAT.
fn pod_of(seen: Seen) -> Option<LabelledPod> {
    let pod = seen
        .into_object(POD)
        .ok()
        .map(|object| *object)
        .filter(|pod| !pod.is_finished() && !pod.spec.host_network)?;
    let are_ready = pod.are_containers_ready();
    let Object { metadata, spec, status, .. } = pod;
    let is_leaving = metadata.deletion_timestamp.is_some();
    Some(LabelledPod {
        backend: Backend {
            pod: metadata.name,
            uid: metadata.uid,
            addresses: status.pod_ips.iter().filter_map(|found| found.ip.parse().ok()).collect(),
            node: spec.node_name,
            fitness: fitness(are_ready && !is_leaving, are_ready && is_leaving),
        },
        labels: metadata.labels,
        created: metadata.creation_timestamp.parse().ok(),
        is_leaving,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use serde_json::json;

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "literal JSON at every call")]
    fn slice(endpoints: Value) -> Slice {
        let slice = json!({
            "metadata": {"name": "web-x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "https", "port": 8443, "protocol": "TCP"}, {"name": "no-port"}],
        });
        slice_of(serde_json::from_value(slice).unwrap()).unwrap()
    }

    #[test]
    fn a_slice_leads_to_the_pods_of_its_own_namespace_and_to_nothing_else() {
        let endpoint = |address: &str, target: Value| json!({"addresses": [address], "nodeName": "node-1", "targetRef": target});
        let found = slice(json!([
            endpoint("10.244.1.9", json!({"kind": "Pod", "namespace": "shop", "name": "web-1", "uid": "1"})),
            endpoint("10.0.0.1", json!(null)),
            endpoint("10.0.0.2", json!({"kind": "Node", "name": "node-1", "uid": "2"})),
            endpoint("10.244.1.8", json!({"kind": "Pod", "namespace": "mail", "name": "mx", "uid": "3"})),
        ]));
        assert_eq!(found.service, ObjectName::new("shop", "web"));
        assert_eq!(found.ports, [NamedPort { name: "https".into(), protocol: Protocol::Tcp, number: 8443 }]);
        let pods: Vec<_> = found.backends.iter().map(|backend| backend.pod.as_str()).collect();
        assert_eq!(pods, ["web-1"]);
    }

    #[test]
    fn a_pod_is_as_fit_as_its_endpoint_or_its_containers_say() {
        let target = json!({"kind": "Pod", "name": "web-1", "uid": "1"});
        let cases = [
            (json!(null), Fitness::Ready),
            (json!({"ready": true}), Fitness::Ready),
            (json!({"ready": false, "serving": true, "terminating": true}), Fitness::Leaving),
            (json!({"ready": false, "serving": false, "terminating": true}), Fitness::Unready),
            (json!({"ready": false, "serving": true}), Fitness::Unready),
        ];
        for (conditions, expected) in cases {
            let endpoint =
                json!([{"addresses": ["10.244.1.9"], "conditions": conditions, "targetRef": target}]);
            assert_eq!(slice(endpoint).backends[0].fitness, expected, "{conditions}");
        }
        let pod = |changes: Value| {
            let mut pod = json!({"metadata": {"name": "mx", "namespace": "mail", "uid": "1", "labels": {"app": "mx"}},
                "spec": {"nodeName": "node-1"}, "status": {"phase": "Running", "podIPs": [{"ip": "10.244.1.9"}],
                "conditions": [{"type": "ContainersReady", "status": "True"}]}});
            json_patch::merge(&mut pod, &changes);
            pod_of(serde_json::from_str(&pod.to_string()).unwrap()).map(|pod| pod.backend.fitness)
        };
        assert_eq!(pod(json!({})), Some(Fitness::Ready));
        assert_eq!(
            pod(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})),
            Some(Fitness::Leaving)
        );
        assert_eq!(pod(json!({"status": {"conditions": []}})), Some(Fitness::Unready));
        assert_eq!(pod(json!({"status": {"phase": "Succeeded"}})), None);
        // Its node is not heard of: the containers were ready when it was.
        let lost =
            json!([{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]);
        assert_eq!(pod(json!({"status": {"conditions": lost}})), Some(Fitness::Unready));
        assert_eq!(pod(json!({"spec": {"hostNetwork": true}})), None);
    }

    #[test]
    fn a_service_has_the_ports_that_can_be_served() {
        let service =
            json!({"spec": {"ports": [{"port": 443}, {"name": "dns", "port": 53, "protocol": "UDP"}]}});
        let ports = ports_of(serde_json::from_value(service).unwrap()).unwrap();
        let shown: Vec<_> =
            ports.iter().map(|port| format!("{}:{}/{}", port.name, port.number, port.protocol)).collect();
        assert_eq!(shown, [":443/tcp", "dns:53/udp"]);
    }
}
