//! What both benchmarks ask and what they ask it of.

use std::sync::Arc;

use pinhole::admission::index::Index;
use pinhole::admission::policy::Policy;
use pinhole::api::object::Object;
use serde_json::Value;
use serde_json::json;

/// Ports on each address that holders have.
const PORTS_PER_ADDRESS: usize = 1000;

/// An index in which `held` pods hold one port each.
pub(crate) fn index(held: usize) -> Index {
    let mut index = Index::new(Arc::new(Policy::default()));
    for number in 0..held {
        index.apply(&holder(number));
    }
    assert_eq!(index.holdings_count(), held);
    index
}

fn holder(number: usize) -> Object {
    let address = address(number / PORTS_PER_ADDRESS);
    let port = 10_000 + number % PORTS_PER_ADDRESS;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("holder-{number}"), "namespace": format!("team-{}", number % 100),
            "uid": format!("00000000-0000-4000-8000-{number:012}"),
            "creationTimestamp": "2026-11-01T00:00:00Z",
            "annotations": {"pinhole.dev/nat":
                json!({"entries": [{"srcIP": address, "srcPort": port, "dstPort": 8080}]}).to_string()},
        },
        "spec": {"nodeName": format!("node-{}", number % 50)},
        "status": {"phase": "Running"},
    });
    serde_json::from_value(pod).unwrap()
}

/// An address of the network that is set aside for benchmarks (RFC 2544).
fn address(number: usize) -> String {
    format!("198.18.{}.{}", number / 200, 1 + number % 200)
}

/// The API server's review of a new pod of about 3 KB that asks for one free port beside ports that others hold.
pub(crate) fn review(number: usize) -> Vec<u8> {
    let port = 30_000 + number % PORTS_PER_ADDRESS;
    asking(number, &address((number / PORTS_PER_ADDRESS) % 100), port)
}

fn asking(number: usize, address: &str, port: usize) -> Vec<u8> {
    let nat = json!({"entries": [{"srcIP": address, "srcPort": port, "dstPort": 8080}]}).to_string();
    let review = json!({
        "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": format!("705ab4f5-6393-11e8-b7cc-{number:012}"),
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "requestKind": {"group": "", "version": "v1", "kind": "Pod"},
            "requestResource": {"group": "", "version": "v1", "resource": "pods"},
            "name": format!("web-{number}"), "namespace": "shop", "operation": "CREATE",
            "userInfo": {"username": "system:serviceaccount:shop:deployer", "uid": "5a1c1cb0",
                         "groups": ["system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"]},
            "object": pod(number, &nat), "oldObject": null, "dryRun": false,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1", "fieldManager": "kubectl"},
        }
    });
    review.to_string().into_bytes()
}

fn pod(number: usize, nat: &str) -> Value {
    let probe = json!({"httpGet": {"path": "/healthz", "port": 8080, "scheme": "HTTP"}, "timeoutSeconds": 1,
                       "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3});
    let environment: Vec<Value> = ["DATABASE_HOST", "CACHE_HOST", "LOG_LEVEL"]
        .iter()
        .map(|name| json!({"name": name, "value": "a-value-of-usual-length.example.org"}))
        .collect();
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {
            "name": format!("web-{number}"), "namespace": "shop", "creationTimestamp": null,
            "labels": {"app.kubernetes.io/name": "web", "app.kubernetes.io/part-of": "shop", "tier": "front"},
            "annotations": {"pinhole.dev/nat": nat, "prometheus.io/scrape": "true"},
            "managedFields": [{"manager": "kubectl", "operation": "Update", "apiVersion": "v1",
                "time": "2026-11-01T00:00:00Z", "fieldsType": "FieldsV1",
                "fieldsV1": {"f:metadata": {"f:annotations": {".": {}, "f:pinhole.dev/nat": {}}}}}],
        },
        "spec": {
            "volumes": [{"name": "kube-api-access-x", "projected": {"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}]}}],
            "containers": [{
                "name": "web", "image": "registry.example.org/shop/web:1.2.3", "env": environment,
                "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                "livenessProbe": probe, "readinessProbe": probe, "imagePullPolicy": "IfNotPresent",
                "volumeMounts": [{"name": "kube-api-access-x", "readOnly": true,
                                  "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}],
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
            "serviceAccountName": "web", "serviceAccount": "web", "schedulerName": "default-scheduler",
            "securityContext": {"runAsNonRoot": true},
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute",
                             "tolerationSeconds": 300}],
            "priority": 0, "enableServiceLinks": true, "preemptionPolicy": "PreemptLowerPriority",
        },
        "status": {},
    })
}
