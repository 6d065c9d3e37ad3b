//! Looks at the cluster for the plugin: everything that the user may read, and a hint for everything that they may not.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream;
use k8s_openapi::jiff::SignedDuration;
use serde_json::Value;

use crate::agent::entries::Line;
use crate::allocation::claim::StoredClaim;
use crate::allocation::life;
use crate::api::crd::nat_node::NatNode;
use crate::api::crd::port_claim::PortClaim;
use crate::api::object::Kind;
use crate::api::object::Object;
use crate::cli::agent::Shape;
use crate::cli::plugin::API;
use crate::cli::plugin::explain::port::ClaimOnIt;
use crate::cli::plugin::installation;
use crate::cli::plugin::installation::Part;
use crate::cli::plugin::installation::PartPod;
use crate::cli::plugin::installation::Role;
use crate::cli::plugin::installation::text;
use crate::cli::plugin::picture::Picture;
use crate::cli::plugin::picture::kernel::Kernel;
use crate::cli::plugin::picture::kernel::key_of;
use crate::cli::plugin::picture::kernel::lines_of_note;
use crate::cli::plugin::reference::PortReference;
use crate::cluster::pinhole_watch;
use crate::cluster::pod_access;
use crate::cluster::pod_access::AccessError;
use crate::cluster::reader::ReadError;
use crate::cluster::reader::Reader;
use crate::cluster::resource::Resource;
use crate::model::holder::ObjectName;

/// How many agents are asked at the same time.
const AT_ONCE: usize = 16;

/// The agents of a cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct Agents {
    /// Their DaemonSet.
    pub(crate) part: Option<Part>,
    /// What its flags make of them.
    pub(crate) shape: Option<Shape>,
    /// Its pods.
    pub(crate) pods: Vec<PartPod>,
}

/// What was seen, and what could not be.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The picture.
    pub(crate) picture: Picture,
    /// The agents.
    pub(crate) agents: Agents,
    /// What could not be read, and what would help.
    pub(crate) hints: Vec<String>,
}

/// How far somebody looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Pods and who owns them.
    Pods,
    /// Every workload, too.
    Workloads,
}

/// Looks at the cluster; at one namespace only where the user may not read all.
pub(crate) async fn look(reader: &Reader, namespace: &str, depth: Depth) -> Result<Seen, ReadError> {
    let mut seen = Seen::default();
    seen.agents = agents(reader, &mut seen.hints).await;
    if let Some(Shape { policy, filter, .. }) = &seen.agents.shape {
        seen.picture.policy = Arc::new(policy.clone());
        seen.picture.filter = filter.clone();
    }
    read_objects(reader, namespace, depth, &mut seen).await?;
    // Agents that serve what they find annotated ask no Pinhole.
    if seen.agents.shape.as_ref().is_none_or(|shape| shape.policy.finds_ports) {
        read_grants(reader, namespace, &mut seen).await;
    }
    let told = events(reader, seen.picture.only_namespace.as_deref()).await;
    let mut kernels: BTreeMap<String, Kernel> = BTreeMap::new();
    for (node, lines) in told_lines(&told, &seen.picture.objects) {
        kernels.entry(node).or_default().told.extend(lines);
    }
    for (node, line) in seen.picture.told_in_pinholes() {
        let told = &mut kernels.entry(node).or_default().told;
        told.retain(|before| key_of(before) != key_of(&line));
        told.push(line);
    }
    if let Some(shape) = &seen.agents.shape {
        let read = ask_agents(reader, &seen.agents.pods, shape.entries_port).await;
        for (node, answer) in read {
            let kernel = kernels.entry(node.clone()).or_default();
            kernel.has_agent = true;
            match answer {
                Ok(lines) => kernel.read = Some(lines),
                Err(reason) => seen.hints.push(format!("packets on {node} are unknown: {reason}")),
            }
        }
    }
    merge_denials(&mut seen.hints);
    seen.picture.kernels = kernels;
    Ok(seen)
}

/// The agents, found by what their DaemonSet runs.
pub(crate) async fn agents(reader: &Reader, hints: &mut Vec<String>) -> Agents {
    let mut agents = Agents::default();
    let daemon_sets = match reader.list("/apis/apps/v1/daemonsets").await {
        Ok(found) => found,
        Err(error) => {
            hints.push(format!(
                "the agents cannot be found, so the default settings are assumed and no kernel is asked: {error}"
            ));
            return agents;
        }
    };
    let Some(part) = installation::parts(&daemon_sets, Role::Agent).into_iter().next() else {
        hints.push(
            "no agent of Pinhole is installed in this cluster, so nothing can be programmed; install the chart, see kubectl pinhole doctor --preflight"
                .to_owned(),
        );
        return agents;
    };
    match part.agent_shape() {
        Ok(shape) => agents.shape = Some(shape),
        Err(reason) => hints.push(format!(
            "the agents' flags are not understood ({reason}), so the default settings are assumed; use the kubectl-pinhole of their version"
        )),
    }
    match reader.list(&part.pods_path()).await {
        Ok(pods) => agents.pods = pods.iter().map(|pod| part.pod(pod)).collect(),
        Err(error) => hints.push(format!("the agents' pods cannot be listed: {error}")),
    }
    agents.part = Some(part);
    agents
}

async fn read_objects(
    reader: &Reader,
    namespace: &str,
    depth: Depth,
    seen: &mut Seen,
) -> Result<(), ReadError> {
    let pods = Resource::Holder(Kind::Pod);
    let found = match reader.objects(pods, None).await {
        Err(ReadError::Denied(_)) => {
            seen.picture.only_namespace = Some(namespace.to_owned());
            seen.hints.push(format!(
                "pods of other namespaces cannot be read, so what they hold is unknown; shown is namespace {namespace} alone"
            ));
            reader.objects(pods, Some(namespace)).await?
        }
        answer => answer?,
    };
    let policy = Arc::clone(&seen.picture.policy);
    // A cluster has thousands of pods; those that ask for nothing hold nothing.
    seen.picture.objects.extend(
        found.into_iter().filter(|pod| depth == Depth::Workloads || policy.asks(&pod.metadata.annotations)),
    );
    let only = seen.picture.only_namespace.clone();
    let mut kinds = vec![Kind::ReplicaSet, Kind::Job];
    if depth == Depth::Workloads {
        kinds.extend([Kind::Deployment, Kind::StatefulSet, Kind::DaemonSet, Kind::CronJob]);
    }
    for resource in [Resource::Namespace, Resource::Node] {
        read_more(reader, resource, None, seen).await;
    }
    for kind in kinds {
        read_more(reader, Resource::Holder(kind), only.as_deref(), seen).await;
    }
    Ok(())
}

async fn read_more(reader: &Reader, resource: Resource, namespace: Option<&str>, seen: &mut Seen) {
    match reader.objects(resource, namespace).await {
        Ok(found) => seen.picture.objects.extend(found),
        Err(error) => seen.hints.push(format!("{} cannot be read: {error}", resource.plural())),
    }
}

/// What the controller grants, and which addresses nodes have by their agents. A cluster without the resources has none.
async fn read_grants(reader: &Reader, namespace: &str, seen: &mut Seen) {
    let of_one = format!("{API}/namespaces/{namespace}/pinholes");
    let mut listed = match seen.picture.only_namespace {
        Some(_) => reader.list(&of_one).await,
        None => reader.list(&format!("{API}/pinholes")).await,
    };
    if let (Err(ReadError::Denied(_)), None) = (&listed, &seen.picture.only_namespace) {
        seen.hints
            .push("Pinholes of other namespaces cannot be read, so what they hold is unknown".to_owned());
        listed = reader.list(&of_one).await;
    }
    match listed {
        // Of agents whose flags nobody knows, Pinholes tell whether they go by them.
        Ok(found) if found.is_empty() && seen.agents.shape.is_none() => {}
        Ok(found) => {
            let read = found.into_iter().filter_map(|found| serde_json::from_value(found).ok());
            seen.picture.pinholes = Some(pinhole_watch::by_name(read));
        }
        Err(ReadError::Absent) => {}
        Err(error) => seen.hints.push(format!(
            "the Pinholes cannot be read, so what users wrote and what was found for automatic ports is unknown: {error}"
        )),
    }
    if seen.picture.pinholes.is_none() {
        return;
    }
    match reader.list(&format!("{API}/natnodes")).await {
        Ok(found) => {
            let read = found.into_iter().filter_map(|found| serde_json::from_value::<NatNode>(found).ok());
            seen.picture.node_addresses = read.filter_map(|node| addresses_of(&node)).collect();
        }
        Err(ReadError::Absent) => {}
        Err(error) => seen.hints.push(format!("natnodes cannot be read: {error}")),
    }
}

fn addresses_of(node: &NatNode) -> Option<(String, BTreeSet<IpAddr>)> {
    let addresses = &node.status.as_ref()?.addresses;
    let addresses = addresses.iter().filter_map(|found| found.address.parse().ok()).collect();
    Some((node.metadata.name.clone()?, addresses))
}

/// The claims that have a port; none in a cluster without the resource.
pub(crate) async fn claims_on(reader: &Reader, port: &PortReference) -> Result<Vec<StoredClaim>, ReadError> {
    let mut claims = match claims_with(reader, "spec.address", &port.address.to_string()).await {
        Err(ReadError::Absent) => Vec::new(),
        claims => claims?,
    };
    claims.retain(|stored| port.key().is_some_and(|key| stored.claim.key.overlaps(key)));
    Ok(claims)
}

/// The claims that have a value in a field by which the API server selects them.
pub(crate) async fn claims_with(
    reader: &Reader,
    field: &str,
    value: &str,
) -> Result<Vec<StoredClaim>, ReadError> {
    let listed = reader.list(&format!("{API}/portclaims?fieldSelector={field}%3D{value}")).await?;
    let failed = |reason: String| ReadError::Failed(format!("a PortClaim cannot be read: {reason}"));
    let read = |object| {
        let object: PortClaim = serde_json::from_value(object).map_err(|error| failed(error.to_string()))?;
        StoredClaim::read(&object).map_err(|error| failed(error.to_string()))
    };
    listed.into_iter().map(read).collect()
}

/// A claim, and how long its pool keeps its port from others.
pub(crate) async fn with_cooldown(reader: &Reader, stored: StoredClaim) -> ClaimOnIt {
    let cooldown = cooldown(reader, stored.claim.pool.as_deref()).await;
    ClaimOnIt { claim: stored.claim, cooldown }
}

async fn cooldown(reader: &Reader, pool: Option<&str>) -> Option<SignedDuration> {
    let Some(pool) = pool else { return Some(life::COOLDOWN) };
    let pool = reader.get(&format!("{API}/natpools/{pool}")).await.ok()?;
    let seconds = pool.pointer("/spec/cooldownSeconds").and_then(Value::as_i64);
    seconds.map(SignedDuration::from_secs)
}

/// The Events of the agents.
async fn events(reader: &Reader, namespace: Option<&str>) -> Vec<Value> {
    let scope = namespace.map(|namespace| format!("namespaces/{namespace}/")).unwrap_or_default();
    let path = format!("/api/v1/{scope}events?fieldSelector=reportingComponent%3Dpinhole.dev%2Fagent");
    // Events only say what an agent that can be asked says better.
    reader.list(&path).await.unwrap_or_default()
}

/// What the newest Event of each pod says that its node programmed.
fn told_lines(events: &[Value], pods: &[Object]) -> Vec<(String, Vec<Line>)> {
    let mut newest: BTreeMap<String, (&Value, String)> = BTreeMap::new();
    for event in events {
        let uid = text(event, "/involvedObject/uid");
        let at = text(event, "/eventTime");
        if newest.get(&uid).is_none_or(|(_, known)| *known < at) {
            newest.insert(uid, (event, at));
        }
    }
    let of_pod = |pod: &Object| {
        let (event, _) = newest.get(&pod.metadata.uid)?;
        let node = pod.spec.node_name.clone()?;
        let name = ObjectName::new(pod.metadata.namespace.as_str(), pod.metadata.name.as_str());
        (text(event, "/reason") == "Programmed")
            .then(|| (node.clone(), lines_of_note(&text(event, "/message"), &node, &name)))
    };
    pods.iter().filter(|pod| pod.kind == "Pod").filter_map(of_pod).collect()
}

type Answer = (String, Result<Vec<Line>, String>);

async fn ask_agents(reader: &Reader, pods: &[PartPod], port: u16) -> Vec<Answer> {
    let ask = |pod: &PartPod| {
        let (client, node, place) = (reader.client(), pod.node.clone(), pod.place.clone());
        let (running, waits) = (pod.running, pod.waits.clone());
        async move {
            let Some(place) = place.filter(|_| running) else {
                let waits = waits.unwrap_or_else(|| "it is not running".to_owned());
                return (node, Err(format!("its agent cannot be asked: {waits}")));
            };
            let answer = pod_access::get(&client, &place, port, "/entries").await;
            let lines = answer.map_err(|error| told(&error)).and_then(|body| {
                let mut lines: Vec<Line> = serde_json::from_str(&body)
                    .map_err(|error| format!("its agent's answer is not understood: {error}"))?;
                // What the kernel refused is told by an Event, and is not there.
                lines.retain(|line| line.problem.is_none());
                Ok(lines)
            });
            (node, lines)
        }
    };
    let pods = pods.iter().filter(|pod| !pod.node.is_empty());
    stream::iter(pods.map(ask).collect::<Vec<_>>()).buffer_unordered(AT_ONCE).collect().await
}

const DENIED: &str = "the right to create pods/portforward in the agents' namespace is missing";

fn told(error: &AccessError) -> String {
    match error {
        AccessError::Denied(_) => DENIED.to_owned(),
        AccessError::Failed(reason) => format!("its agent cannot be asked: {reason}"),
    }
}

/// One missing right is told once, not once per node.
fn merge_denials(hints: &mut Vec<String>) {
    let count = hints.len();
    hints.retain(|hint| !hint.ends_with(DENIED));
    if hints.len() < count {
        hints.push(format!("packets are unknown and states rest on Events: {DENIED}"));
    }
}
