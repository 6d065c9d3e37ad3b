//! Pictures for the tests of the plugin, and the files that hold what users read.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use serde_json::json;

use crate::admission::policy::Policy;
use crate::agent::entries::Line;
use crate::api::object::Object;
use crate::cli::plugin::picture::Picture;
use crate::cli::plugin::picture::kernel::Kernel;

/// Compares a text with `tests/golden/plugin/NAME`, or writes it when `UPDATE_GOLDEN=1`.
#[track_caller]
#[expect(clippy::disallowed_methods, reason = "the command line reads the environment")]
pub(crate) fn golden(name: &str, text: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/plugin").join(name);
    if std::env::var("UPDATE_GOLDEN").is_ok_and(|value| value == "1") {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, text).unwrap();
        return;
    }
    let kept = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        kept == text,
        "{} is not what the program says now:\n{text}\nIf the new text is right, write it with: make generate",
        file.display()
    );
}

/// An object of the cluster.
pub(crate) fn object(value: Value) -> Object {
    serde_json::from_value(value).unwrap()
}

/// A ready pod that asks in the short form; `changes` is merged into it.
#[expect(clippy::needless_pass_by_value, reason = "literal JSON at every call")]
pub(crate) fn pod(namespace: &str, name: &str, node: &str, ip: &str, expose: &str, changes: Value) -> Object {
    let mut pod = json!({
        "kind": "Pod",
        "metadata": {
            "namespace": namespace, "name": name, "uid": format!("uid-{namespace}-{name}"),
            "creationTimestamp": "2026-03-01T10:00:00Z", "labels": {"app": name},
            "annotations": {"pinhole.dev/expose": expose},
        },
        "spec": {"nodeName": node},
        "status": {
            "phase": "Running", "podIPs": [{"ip": ip}],
            "conditions": [{"type": "ContainersReady", "status": "True"}],
        },
    });
    json_patch::merge(&mut pod, &changes);
    object(pod)
}

/// What makes a pod one of a controller's.
pub(crate) fn owned_by(kind: &str, name: &str) -> Value {
    json!({"metadata": {"ownerReferences": [
        {"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": format!("uid-{name}"), "controller": true},
    ]}})
}

/// A node with one address.
pub(crate) fn node(name: &str, address: &str) -> Object {
    object(json!({
        "kind": "Node", "metadata": {"name": name, "uid": name},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    }))
}

/// A line of an agent's entries.
pub(crate) fn line(external: &str, target: Option<&str>, pod: &str, packets: u64) -> Line {
    let (socket, protocol) = external.split_once('/').unwrap();
    let (address, ports) = socket.rsplit_once(':').unwrap();
    let target = target.map(|target| target.rsplit_once(':').unwrap());
    Line {
        address: address.to_owned(),
        ports: ports.to_owned(),
        protocol: protocol.to_owned(),
        target: target.map(|(ip, _)| ip.to_owned()),
        target_ports: target.map(|(_, ports)| ports.to_owned()),
        pod: pod.to_owned(),
        allowed_sources: Vec::new(),
        packets,
        bytes: 60 * packets,
        problem: None,
    }
}

/// A kernel that was read.
pub(crate) fn kernel(lines: Vec<Line>) -> Kernel {
    Kernel { has_agent: true, read: Some(lines), told: Vec::new() }
}

/// A picture with these objects and kernels.
pub(crate) fn picture(objects: Vec<Object>, kernels: Vec<(&str, Kernel)>) -> Picture {
    Picture {
        policy: Arc::new(Policy::default()),
        objects,
        kernels: kernels.into_iter().map(|(node, kernel)| (node.to_owned(), kernel)).collect(),
        ..Picture::default()
    }
}

/// Two nodes on which requests stand in every way.
pub(crate) fn town() -> Picture {
    let node_1 = kernel(vec![
        line("203.0.113.7:25/tcp", Some("10.244.1.9:25"), "mail/mx-0", 12),
        line("203.0.113.7:143/tcp", Some("10.244.1.11:143"), "web/imap", 3),
        line("203.0.113.7:465/tcp", None, "mail/starting", 0),
        line("203.0.113.7:9999/tcp", Some("10.244.1.77:99"), "gone/pod", 1),
        line("203.0.113.7:8080/tcp", Some("10.244.1.21:80"), "web/front-1", 7),
    ]);
    let told = Kernel {
        has_agent: true,
        read: None,
        told: vec![line("203.0.113.8:7000-7010/udp", Some("10.244.2.9:7000-7010"), "games/quake", 0)],
    };
    let starting = json!({"status": {"phase": "Pending", "podIPs": [], "conditions": []}});
    let older = json!({"metadata": {"creationTimestamp": "2026-02-01T10:00:00Z"}});
    let mut front = owned_by("ReplicaSet", "front-abc");
    let not_ready = json!({"status": {"conditions": []}});
    json_patch::merge(&mut front, &not_ready);
    picture(
        vec![
            node("node-1", "203.0.113.7"),
            node("node-2", "203.0.113.8"),
            node("node-3", "203.0.113.9"),
            object(json!({"kind": "ReplicaSet", "metadata": {
                "namespace": "web", "name": "front-abc", "uid": "uid-front-abc",
                "ownerReferences": [{"kind": "Deployment", "name": "front", "uid": "d", "controller": true}]}})),
            object(json!({"kind": "Deployment",
                "metadata": {"namespace": "web", "name": "front", "uid": "d"},
                "spec": {"template": {"metadata": {"annotations": {"pinhole.dev/expose": "8080:80"}}}}})),
            object(json!({"kind": "Deployment",
                "metadata": {"namespace": "web", "name": "ssh", "uid": "s"},
                "spec": {"template": {"metadata": {"annotations": {"pinhole.dev/expose": "22"}}}}})),
            object(
                json!({"kind": "Deployment", "metadata": {"namespace": "web", "name": "plain", "uid": "p"},
                "spec": {"template": {}}}),
            ),
            pod("mail", "mx-0", "node-1", "10.244.1.9", "25,143", owned_by("StatefulSet", "mx")),
            pod("web", "imap", "node-1", "10.244.1.11", "143", older),
            pod("mail", "starting", "node-1", "", "465", starting),
            pod("web", "front-1", "node-1", "10.244.1.21", "8080:80", owned_by("ReplicaSet", "front-abc")),
            pod("web", "front-2", "node-1", "10.244.1.22", "8080:80", front),
            pod("web", "ssh", "node-1", "10.244.1.30", "22", json!({})),
            pod("web", "foreign", "node-1", "10.244.1.31", "198.51.100.1:80", json!({})),
            pod("web", "lost", "node-1", "10.244.1.32", "8081:80", json!({})),
            pod("games", "quake", "node-2", "10.244.2.9", "7000-7010/udp", json!({})),
            pod("games", "new", "node-2", "10.244.2.10", "7100/udp", json!({})),
            pod("games", "alone", "node-3", "10.244.3.9", "7200/udp", json!({})),
            pod("games", "unplaced", "", "", "7300/udp", json!({"spec": {"nodeName": null}})),
            pod(
                "games",
                "ended",
                "node-2",
                "10.244.2.12",
                "7400/udp",
                json!({"status": {"phase": "Succeeded"}}),
            ),
        ],
        vec![("node-1", node_1), ("node-2", told)],
    )
}
