//! What Kubernetes' controllers, scheduler and kubelets would do next with an object: the pods of a workload, and a
//! pod's life on a node.

use std::net::IpAddr;

use serde_json::Value;
use serde_json::json;

/// The object that a workload's controller creates next, if it creates any: a Deployment its ReplicaSet, a ReplicaSet
/// or StatefulSet its pod.
pub(crate) fn child(owner: &Value) -> Option<Value> {
    let name = |suffix: &str| format!("{}-{suffix}", owner["metadata"]["name"].as_str().unwrap_or_default());
    let template = &owner["spec"]["template"];
    let (mut child, name) = match owner["kind"].as_str()? {
        "Deployment" => {
            let replica_set = json!({
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {},
                "spec": {"replicas": 1, "selector": owner["spec"]["selector"], "template": template},
            });
            (replica_set, name("7c9d5b6f4"))
        }
        "ReplicaSet" => (pod(template), name("x2k8p")),
        "StatefulSet" => (pod(template), name("0")),
        _ => return None,
    };
    child["metadata"]["name"] = json!(name);
    child["metadata"]["namespace"] = owner["metadata"]["namespace"].clone();
    child["metadata"]["ownerReferences"] = json!([{
        "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"], "controller": true, "blockOwnerDeletion": true,
    }]);
    Some(child)
}

fn pod(template: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": template["metadata"], "spec": template["spec"],
    })
}

/// The pod as it is once it runs on a node.
pub(crate) fn run(mut pod: Value, node: &str, address: IpAddr) -> Value {
    pod["spec"]["nodeName"] = json!(node);
    pod["status"] = json!({
        "phase": "Running",
        "podIPs": [{"ip": address}],
        "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [{"ready": true}],
    });
    pod
}

/// The object as kubectl names it: `pod/web`, `deployment.apps/smtp`.
pub(crate) fn shown(object: &Value) -> String {
    let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
    let group = object["apiVersion"].as_str().and_then(|version| version.split_once('/'));
    let group = group.map_or_else(String::new, |(group, _)| format!(".{group}"));
    format!("{kind}{group}/{}", object["metadata"]["name"].as_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deployment_has_a_replica_set_and_that_a_pod_of_the_template() {
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "smtp", "namespace": "mail", "uid": "u1"},
            "spec": {"template": {"metadata": {"annotations": {"a": "b"}}, "spec": {"containers": []}}},
        });
        let replica_set = child(&deployment).unwrap();
        let pod = child(&replica_set).unwrap();
        assert_eq!(shown(&replica_set), "replicaset.apps/smtp-7c9d5b6f4");
        assert_eq!(shown(&pod), "pod/smtp-7c9d5b6f4-x2k8p");
        assert_eq!(pod["metadata"]["annotations"]["a"], "b");
        assert_eq!(pod["metadata"]["ownerReferences"][0]["name"], "smtp-7c9d5b6f4");
        assert_eq!(child(&pod), None);
    }
}
