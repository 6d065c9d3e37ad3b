//! Looks at everything that `kubectl pinhole doctor` judges. Nothing is stored: creations are dry runs.

use std::collections::BTreeMap;

use futures::StreamExt;
use futures::stream;
use k8s_openapi::ByteString;
use k8s_openapi::jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use serde_json::Value;
use serde_json::json;
use x509_parser::prelude::FromDer;
use x509_parser::prelude::X509Certificate;

use crate::admission::policy::Policy;
use crate::api::keys;
use crate::api::object::Kind;
use crate::certificates::bundle::Bundle;
use crate::cli::plugin::API;
use crate::cli::plugin::doctor::Observed;
use crate::cli::plugin::doctor::Proof;
use crate::cli::plugin::doctor::agents::conditions;
use crate::cli::plugin::installation;
use crate::cli::plugin::installation::Part;
use crate::cli::plugin::installation::PartPod;
use crate::cli::plugin::installation::Role;
use crate::cli::plugin::installation::text;
use crate::cli::plugin::observe;
use crate::cluster::pod_access;
use crate::cluster::pod_access::AccessError;
use crate::cluster::reader::ReadError;
use crate::cluster::reader::Reader;
use crate::cluster::resource::Resource;
use crate::model::port::Port;
use crate::model::port::PortRange;
use crate::model::port::Protocol;

const AT_ONCE: usize = 16;

/// How much of an agent's log is searched for what it said of a condition.
const LOG_LINES: u32 = 5000;

/// Looks at the installation.
pub(crate) async fn installation(reader: &Reader, namespace: &str) -> Observed {
    let configurations = "/apis/admissionregistration.k8s.io/v1";
    let (version, nodes, deployments, daemon_sets, mutating, validating) = tokio::join!(
        async { reader.get("/version").await.map_err(|error| told(&error)) },
        list(reader, "/api/v1/nodes".to_owned()),
        list(reader, "/apis/apps/v1/deployments".to_owned()),
        list(reader, "/apis/apps/v1/daemonsets".to_owned()),
        list(reader, format!("{configurations}/mutatingwebhookconfigurations")),
        list(reader, format!("{configurations}/validatingwebhookconfigurations")),
    );
    let part = |role| {
        let found = deployments.as_ref().ok()?;
        installation::parts(found, role).into_iter().next()
    };
    let (webhook, controller) = (part(Role::Webhook), part(Role::Controller));
    let webhook_pods = match &webhook {
        Some(part) => pods_of(reader, part).await,
        None => Vec::new(),
    };
    let agents = observe::agents(reader, &mut Vec::new()).await;
    let agent_metrics = match &agents.shape {
        Some(shape) => metrics(reader, &agents.pods, shape.http_port, |pod| &pod.node).await,
        None => BTreeMap::new(),
    };
    let controller_metrics = match &controller {
        Some(part) => {
            let pods = pods_of(reader, part).await;
            metrics(reader, &pods, part.controller_port(), |pod| &pod.name).await
        }
        None => BTreeMap::new(),
    };
    let conditions = said_of_conditions(reader, &agents.pods, &agent_metrics).await;
    let certificates = match (&webhook, &validating) {
        (Some(part), Ok(configurations)) => certificates(reader, part, &webhook_pods, configurations).await,
        _ => Vec::new(),
    };
    let policy = agents.shape.as_ref().map(|shape| shape.policy.clone()).unwrap_or_default();
    let namespace = namespace_for_proof(namespace, validating.as_deref().unwrap_or_default());
    let proof = prove(reader, namespace, &policy).await;
    // Only who asks in a predecessor's words matters; without the right to know, nothing is said of it.
    let pods = reader.objects(Resource::Holder(Kind::Pod), None).await.unwrap_or_default();
    let workloads = match (deployments, daemon_sets) {
        (Ok(deployments), Ok(daemon_sets)) => Ok(deployments.into_iter().chain(daemon_sets).collect()),
        (Err(reason), _) | (_, Err(reason)) => Err(reason),
    };
    let nat_nodes = reader.list(&format!("{API}/natnodes")).await.unwrap_or_default();
    let nat_nodes = nat_nodes.into_iter().filter_map(|found| serde_json::from_value(found).ok()).collect();
    Observed {
        version,
        nodes,
        nat_nodes,
        workloads,
        webhook,
        webhook_pods,
        agents,
        controller,
        controller_metrics,
        mutating,
        validating,
        proof,
        certificates,
        metrics: agent_metrics,
        conditions,
        pods,
        now: Timestamp::now().as_second(),
    }
}

fn told(error: &ReadError) -> String {
    error.to_string()
}

async fn list(reader: &Reader, path: String) -> Result<Vec<Value>, String> {
    reader.list(&path).await.map_err(|error| told(&error))
}

async fn pods_of(reader: &Reader, part: &Part) -> Vec<PartPod> {
    let found = reader.list(&part.pods_path()).await.unwrap_or_default();
    found.iter().map(|pod| part.pod(pod)).collect()
}

/// What each running pod tells, by its node or by its name.
async fn metrics(
    reader: &Reader,
    pods: &[PartPod],
    port: u16,
    by: fn(&PartPod) -> &String,
) -> BTreeMap<String, Result<String, String>> {
    let ask = |pod: &PartPod| {
        let (client, key, place) = (reader.client(), by(pod).clone(), pod.place.clone());
        async move {
            let place = place?;
            let answer = pod_access::get(&client, &place, port, "/metrics").await;
            Some((key, answer.map_err(|error| reason(&error))))
        }
    };
    let asked: Vec<_> = pods.iter().filter(|pod| pod.running).map(ask).collect();
    stream::iter(asked).buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await
}

fn reason(error: &AccessError) -> String {
    match error {
        AccessError::Denied(_) => "the right to create pods/portforward there is missing".to_owned(),
        AccessError::Failed(reason) => reason.clone(),
    }
}

/// What the agents' logs say last of conditions that hold.
async fn said_of_conditions(
    reader: &Reader,
    pods: &[PartPod],
    metrics: &BTreeMap<String, Result<String, String>>,
) -> BTreeMap<(String, String), (String, String)> {
    let mut said = BTreeMap::new();
    for pod in pods {
        let (Some(Ok(metrics)), Some(place)) = (metrics.get(&pod.node), &pod.place) else { continue };
        let kinds = conditions(metrics);
        if kinds.is_empty() {
            continue;
        }
        let path = format!(
            "/api/v1/namespaces/{}/pods/{}/log?container={}&tailLines={LOG_LINES}",
            place.namespace, place.pod, place.container
        );
        // Without the log there is still the kind, and its usual fix.
        let log = reader.text(&path).await.unwrap_or_default();
        for line in log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let kind = text(&line, "/condition");
            if kinds.contains(&kind) && line.get("fix").is_some() {
                said.insert((pod.node.clone(), kind), (text(&line, "/found"), text(&line, "/fix")));
            }
        }
    }
    said
}

/// The certificate that each replica shows to somebody who trusts the caBundle.
async fn certificates(
    reader: &Reader,
    part: &Part,
    pods: &[PartPod],
    configurations: &[Value],
) -> Vec<(String, Result<i64, String>)> {
    let webhooks = configurations.iter().filter_map(|found| found.get("webhooks")?.as_array()).flatten();
    let ours = webhooks.filter(|webhook| text(webhook, "/name").ends_with(".pinhole.dev"));
    let Some(ours) = ours.into_iter().next() else { return Vec::new() };
    let bundle = ours.pointer("/clientConfig/caBundle").cloned().unwrap_or(Value::Null);
    let bundle = serde_json::from_value::<ByteString>(bundle).map(|bytes| bytes.0).unwrap_or_default();
    let Ok(bundle) = Bundle::parse(&String::from_utf8_lossy(&bundle)) else { return Vec::new() };
    let service = text(ours, "/clientConfig/service/name");
    let name = format!("{service}.{}.svc", part.namespace);
    let listens_on = part.webhook_port();
    let mut certificates = Vec::new();
    for pod in pods.iter().filter(|pod| pod.running) {
        let Some(place) = &pod.place else { continue };
        let authorities = bundle.iter().map(|trusted| CertificateDer::from(trusted.der().to_vec()));
        let shown = pod_access::certificate(&reader.client(), place, listens_on, &name, authorities).await;
        let end = shown.map_err(|error| reason(&error)).and_then(|der| {
            let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| error.to_string())?;
            Ok(parsed.validity().not_after.timestamp())
        });
        certificates.push((pod.name.clone(), end));
    }
    certificates
}

/// The namespace that was asked for, unless the webhook is never asked about it.
fn namespace_for_proof(namespace: &str, configurations: &[Value]) -> String {
    let webhooks = configurations.iter().filter_map(|found| found.get("webhooks")?.as_array()).flatten();
    let ours = webhooks.filter(|webhook| text(webhook, "/name").ends_with(".pinhole.dev"));
    let selectors = ours.filter_map(|webhook| {
        webhook.pointer("/namespaceSelector/matchExpressions").and_then(Value::as_array)
    });
    let excluded = selectors.flatten().filter_map(|one| one.get("values")?.as_array()).flatten();
    let is_excluded = excluded.filter_map(Value::as_str).any(|excluded| excluded == namespace);
    if is_excluded { "default".to_owned() } else { namespace.to_owned() }
}

/// Tries two pods: one that only our webhook refuses, and, if that works, one that it grants.
async fn prove(reader: &Reader, namespace: String, policy: &Policy) -> Proof {
    let path = format!("/api/v1/namespaces/{namespace}/pods");
    let refused_request = refused_request(policy);
    let refused = reader.dry_run(&path, &pod(&refused_request)).await;
    let granted = match granted_request(policy).filter(|_| refused.is_our_refusal()) {
        Some(request) => Some(reader.dry_run(&path, &pod(&request)).await),
        None => None,
    };
    Proof { namespace, refused_request, refused, granted }
}

/// A restricted port; where the operator restricts none, a text that is no request at all.
fn refused_request(policy: &Policy) -> String {
    let restricted = (1..=u16::MAX)
        .filter_map(Port::new)
        .find(|port| policy.restricted_ports.first_match(Protocol::Tcp, PortRange::single(*port)).is_some());
    restricted.map_or_else(|| "is the webhook there?".to_owned(), |port| port.to_string())
}

/// A port that nobody keeps back.
fn granted_request(policy: &Policy) -> Option<String> {
    let is_free = |port: &Port| {
        let ports = PortRange::single(*port);
        let lists = [&policy.restricted_ports, &policy.protected_ports];
        let is_listed = lists.iter().any(|list| list.first_match(Protocol::Udp, ports).is_some());
        !is_listed && !policy.node_port_range.is_some_and(|range| range.contains(*port))
    };
    let free = (1024..=u16::MAX).rev().filter_map(Port::new).find(is_free)?;
    Some(format!("{free}/udp"))
}

/// A pod that Pod Security takes in every namespace.
fn pod(request: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "pinhole-doctor-", "annotations": {keys::EXPOSE: request}},
        "spec": {
            "automountServiceAccountToken": false,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65534, "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "never-started",
                "image": "example.com/never-started:1",
                "resources": {
                    "requests": {"cpu": "1m", "memory": "1Mi"}, "limits": {"cpu": "1m", "memory": "1Mi"},
                },
                "securityContext": {
                    "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
                },
            }],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proof_asks_for_what_this_cluster_restricts_and_what_it_does_not() {
        assert_eq!(refused_request(&Policy::default()), "22");
        assert_eq!(granted_request(&Policy::default()).unwrap(), "65535/udp");
        let open = Policy { restricted_ports: "".parse().unwrap(), ..Policy::default() };
        assert!(refused_request(&open).parse::<Port>().is_err());
        let closed = Policy { restricted_ports: "1-65535".parse().unwrap(), ..Policy::default() };
        assert_eq!(granted_request(&closed), None);
    }

    #[test]
    fn a_namespace_that_the_webhook_never_hears_of_proves_nothing() {
        let configuration = json!({"webhooks": [{
            "name": "pods.pinhole.dev",
            "namespaceSelector": {"matchExpressions": [{"values": ["kube-system", "pinhole-system"]}]},
        }]});
        for (asked, used) in [("kube-system", "default"), ("mail", "mail")] {
            assert_eq!(namespace_for_proof(asked, std::slice::from_ref(&configuration)), used);
        }
    }
}
