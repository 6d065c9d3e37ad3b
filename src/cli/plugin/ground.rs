//! Looks at what `kubectl pinhole doctor --preflight` judges: only reads, unless the user names an image to look at
//! the nodes with.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use serde_json::Value;
use serde_json::json;
use tokio::time::Instant;

use crate::cli::plugin::installation::text;
use crate::cli::plugin::observe;
use crate::cli::plugin::preflight::Ground;
use crate::cli::plugin::preflight::NodeReport;
use crate::cluster::pod_access;
use crate::cluster::reader::Creation;
use crate::cluster::reader::ReadError;
use crate::cluster::reader::Reader;

const AT_ONCE: usize = 16;

/// The hidden subcommand that looks at a node.
const COMMAND: &str = "node-report";

/// Where pods with the host's network are allowed in every cluster.
const NAMESPACE: &str = "kube-system";

/// How long a pod may take to be scheduled, pull its image and look.
const PATIENCE: Duration = Duration::from_secs(90);

/// Looks at the cluster; at its nodes too with an image, or where agents run already.
pub(crate) async fn look(reader: &Reader, image: Option<&str>) -> Ground {
    let get = |path: &'static str| async move { reader.get(path).await.map_err(|error| error.to_string()) };
    let list = |path: &'static str| async move { reader.list(path).await.map_err(|error| error.to_string()) };
    let (version, nodes, deployments, daemon_sets, kube_proxy, cilium, felix, tigera) = tokio::join!(
        get("/version"),
        list("/api/v1/nodes"),
        list("/apis/apps/v1/deployments"),
        list("/apis/apps/v1/daemonsets"),
        get("/api/v1/namespaces/kube-system/configmaps/kube-proxy"),
        get("/api/v1/namespaces/kube-system/configmaps/cilium-config"),
        get("/apis/crd.projectcalico.org/v1/felixconfigurations/default"),
        get("/apis/operator.tigera.io/v1/installations/default"),
    );
    let workloads = match (deployments, daemon_sets) {
        (Ok(deployments), Ok(daemon_sets)) => Ok(deployments.into_iter().chain(daemon_sets).collect()),
        (Err(reason), _) | (_, Err(reason)) => Err(reason),
    };
    let reports = match (image, &nodes) {
        (Some(image), Ok(nodes)) => Some(by_pods(reader, nodes, image).await),
        (None, Ok(nodes)) => by_agents(reader, nodes).await,
        (_, Err(_)) => by_agents(reader, &[]).await,
    };
    Ground { version, nodes, workloads, kube_proxy, cilium, felix, tigera, reports }
}

type Reports = BTreeMap<String, Result<NodeReport, String>>;

/// What the running agents see; `None` without agents.
async fn by_agents(reader: &Reader, nodes: &[Value]) -> Option<Reports> {
    let agents = observe::agents(reader, &mut Vec::new()).await;
    let running: Vec<_> = agents.pods.into_iter().filter(|pod| pod.running).collect();
    if running.is_empty() {
        return None;
    }
    let ask = |pod: crate::cli::plugin::installation::PartPod| {
        let client = reader.client();
        let node = nodes.iter().find(|node| text(node, "/metadata/name") == pod.node);
        let arguments = node.map_or_else(|| vec![COMMAND.to_owned()], arguments);
        async move {
            let place = pod.place?;
            let command: Vec<_> =
                ["pinhole"].into_iter().chain(arguments.iter().map(String::as_str)).collect();
            let ran = pod_access::run(&client, &place, &command).await;
            let report = ran.map_err(|error| error.to_string()).and_then(|ran| {
                serde_json::from_str(&ran.stdout).map_err(|error| {
                    format!("its agent's answer is not understood ({error}): {}", ran.stderr.trim())
                })
            });
            Some((pod.node, report))
        }
    };
    let asked: Vec<_> = running.into_iter().map(ask).collect();
    Some(stream::iter(asked).buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await)
}

/// What one short-lived pod per node sees.
async fn by_pods(reader: &Reader, nodes: &[Value], image: &str) -> Reports {
    let linux = nodes
        .iter()
        .filter(|node| ["linux", ""].contains(&text(node, "/status/nodeInfo/operatingSystem").as_str()));
    let look = |node| async move { (text(node, "/metadata/name"), on_node(reader, node, image).await) };
    let looks: Vec<_> = linux.map(look).collect();
    stream::iter(looks).buffer_unordered(AT_ONCE).collect().await
}

async fn on_node(reader: &Reader, node: &Value, image: &str) -> Result<NodeReport, String> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    let created = match reader.create(&path, &pod(node, image)).await {
        Creation::Accepted(created) => created,
        Creation::Refused { message, .. } => return Err(format!("no pod can be created there: {message}")),
        Creation::Unanswered(reason) => return Err(reason),
    };
    let path = format!("{path}/{}", text(&created, "/metadata/name"));
    let report = read_report(reader, &path).await;
    // Should this fail, its own deadline ends the pod, and its name says whose it was.
    let deleted = reader.delete(&path).await;
    match (report, deleted) {
        (Ok(_), Err(error)) => Err(format!("the pod {path} could not be deleted, please do: {error}")),
        (report, _) => report,
    }
}

async fn read_report(reader: &Reader, path: &str) -> Result<NodeReport, String> {
    let until = Instant::now() + PATIENCE;
    loop {
        let pod = reader.get(path).await.map_err(|error| error.to_string())?;
        match text(&pod, "/status/phase").as_str() {
            "Succeeded" => break,
            "Failed" => {
                let log = reader.text(&format!("{path}/log")).await.unwrap_or_default();
                return Err(format!("looking failed: {}", log.trim()));
            }
            _ if until < Instant::now() => {
                let waiting = "/status/containerStatuses/0/state/waiting";
                let waits =
                    [text(&pod, &format!("{waiting}/reason")), text(&pod, &format!("{waiting}/message"))];
                let waits = waits.join(" ").trim().to_owned();
                let waits = if waits.is_empty() { "it has not started".to_owned() } else { waits };
                return Err(format!("its pod gave no answer within {} s: {waits}", PATIENCE.as_secs()));
            }
            _ => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    }
    let log = reader.text(&format!("{path}/log")).await.map_err(|error: ReadError| error.to_string())?;
    serde_json::from_str(&log).map_err(|error| {
        format!("what the image printed is not understood ({error}): is it an image of pinhole-agent?")
    })
}

/// The subcommand that looks, and what it cannot see from the node.
fn arguments(node: &Value) -> Vec<String> {
    let cidrs = node.pointer("/spec/podCIDRs").and_then(Value::as_array).into_iter().flatten();
    let cidrs = cidrs.filter_map(Value::as_str).map(|cidr| format!("--pod-cidr={cidr}"));
    [COMMAND.to_owned()].into_iter().chain(cidrs).collect()
}

/// A pod that looks at its node with the rights that the agent has, and ends.
fn pod(node: &Value, image: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "pinhole-preflight-",
            "labels": {"app.kubernetes.io/name": "pinhole-preflight"},
        },
        "spec": {
            "nodeName": text(node, "/metadata/name"),
            "hostNetwork": true,
            "restartPolicy": "Never",
            "activeDeadlineSeconds": 120,
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "tolerations": [{"operator": "Exists"}],
            "containers": [{
                "name": "look",
                "image": image,
                "args": arguments(node),
                "securityContext": {
                    "runAsUser": 0,
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]},
                },
            }],
        },
    })
}
