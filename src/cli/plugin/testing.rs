//! Pictures for the tests of the plugin, and the files that hold what users read.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use serde_json::json;

use crate::admission::policy::Policy;
use crate::agent::entries::Line;
use crate::api::crd::pinhole::Pinhole;
use crate::api::object::Object;
use crate::cli::plugin::picture::Picture;
use crate::cli::plugin::picture::kernel::Kernel;
use crate::cluster::pinhole_watch;

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

/// What the controller says of a pod, or of what a user wrote; `changes` is merged into it.
#[expect(clippy::needless_pass_by_value, reason = "literal JSON at every call")]
pub(crate) fn pinhole(namespace: &str, name: &str, node: &str, changes: Value) -> Pinhole {
    let mut pinhole = json!({
        "metadata": {
            "namespace": namespace, "name": name, "uid": format!("uid-pinhole-{name}"), "generation": 2,
            "creationTimestamp": "2026-03-01T10:00:00Z", "labels": {format!("node.pinhole.dev/{node}"): ""},
        },
        "spec": {"target": {}, "ports": []},
        "status": {"observedGeneration": 2, "node": node},
    });
    if node.is_empty() {
        pinhole["metadata"]["labels"] = json!({});
    }
    json_patch::merge(&mut pinhole, &changes);
    serde_json::from_value(pinhole).unwrap()
}

fn conditions(accepted: (&str, &str, &str), programmed: (&str, &str, &str)) -> Value {
    let condition = |kind: &str, (status, reason, message): (&str, &str, &str)| {
        json!({"type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": "2026-03-01T10:00:00Z"})
    };
    json!([condition("Accepted", accepted), condition("Programmed", programmed)])
}

/// What the controller says of ports found and not found, of Pinholes of users served and not served, and of one port that is
/// on its way out.
fn harbour_pinholes() -> Vec<Pinhole> {
    let of_pod = |pod: &str| json!({"pod": pod, "podUID": format!("uid-games-{pod}")});
    let granted = ("True", "Granted", "");
    let endpoint = |port: u16, target: u16| json!({"address": "198.51.100.4", "protocol": "TCP", "port": port, "targetPort": target, "pool": "edge"});
    let says =
        json!([{"name": "node-1", "programmed": true, "reason": "Programmed", "observedGeneration": 2}]);
    let not_granted = |pod: &str, accepted: &str, reason: &str, why: &str| {
        let said = conditions((accepted, reason, why), ("False", reason, why));
        pinhole("games", pod, "", json!({"spec": {"target": of_pod(pod)}, "status": {"conditions": said}}))
    };
    let ports = json!([{"port": 443, "targetPort": "https"}]);
    let behind =
        |pod: &str| json!([{"pod": pod, "podUID": "u", "addresses": ["10.244.1.40"], "active": true}]);
    vec![
        pinhole(
            "games",
            "lobby",
            "node-1",
            json!({
                "spec": {"target": of_pod("lobby")},
                "status": {
                    "endpoints": [
                            endpoint(30001, 80),
                            {"address": "203.0.113.7", "protocol": "TCP", "port": 25, "targetPort": 25},
                        ], "ownAddresses": ["203.0.113.7"], "conditions": conditions(granted, ("True", "Programmed", "")),
                    "targets": [{"pod": "lobby", "podUID": "uid-games-lobby", "addresses": ["10.244.1.9"], "active": true}],
                    "nodes": says,
                },
            }),
        ),
        not_granted("gated", "Unknown", "Waiting", "auto:80/tcp is about to be claimed"),
        not_granted(
            "full",
            "False",
            "NoFreePort",
            "auto:80/tcp: NatPool edge has no free port; ask whoever runs the cluster for a larger one",
        ),
        pinhole(
            "games",
            "gone",
            "node-1",
            json!({
                "spec": {"target": of_pod("gone"), "suspended": true,
                    "holder": {"kind": "StatefulSet", "namespace": "games", "name": "gone"}},
                "status": {"releasing": [{
                    "address": "198.51.100.4", "protocol": "TCP", "port": 30009, "node": "node-1", "generation": 2,
                    "since": "2026-03-01T11:59:00Z",
                }]},
            }),
        ),
        pinhole(
            "web",
            "shop",
            "node-1",
            json!({
                "spec": {"target": {"service": "shop"}, "addresses": ["198.51.100.4"], "ports": ports},
                "status": {
                    "endpoints": [endpoint(443, 8443)], "conditions": conditions(granted, ("True", "Programmed", "")),
                    "targets": behind("shop-1"), "nodes": says,
                },
            }),
        ),
        pinhole(
            "web",
            "nowhere",
            "",
            json!({
                "spec": {"target": {"podSelector": {"matchLabels": {"app": "x"}}}, "addresses": ["198.51.100.9"],
                    "ports": [{"port": 25}]},
                "status": {
                    "endpoints": [{"address": "198.51.100.9", "protocol": "TCP", "port": 25, "targetPort": 25}],
                    "conditions": conditions(granted, ("False", "NoNode", "no node has 198.51.100.9")),
                },
            }),
        ),
    ]
}

/// A node on which they are served, with the pods that ask.
pub(crate) fn harbour() -> Picture {
    let gated = json!({
        "spec": {"nodeName": null, "schedulingGates": [{"name": "pinhole.dev/endpoints"}]},
        "status": {"phase": "Pending", "podIPs": [], "conditions": []},
    });
    let read = kernel(vec![
        line("198.51.100.4:30001/tcp", Some("10.244.1.9:80"), "games/lobby", 2),
        line("198.51.100.4:443/tcp", Some("10.244.1.40:8443"), "web/shop", 5),
        line("198.51.100.4:30009/tcp", Some("10.244.1.50:80"), "games/gone", 1),
    ]);
    let undecided = json!({"metadata": {"uid": "another"}});
    let objects = vec![
        node("node-1", "203.0.113.7"),
        pod("games", "lobby", "node-1", "10.244.1.9", "auto:80,25", json!({})),
        pod("games", "gated", "", "", "auto:80", gated.clone()),
        pod("games", "full", "", "", "auto:80", gated),
        pod("games", "new", "node-1", "10.244.1.12", "198.51.100.4:26", undecided),
    ];
    let addresses = ["198.51.100.4".parse().unwrap(), "203.0.113.7".parse().unwrap()].into();
    Picture {
        pinholes: Some(pinhole_watch::by_name(harbour_pinholes())),
        node_addresses: [("node-1".to_owned(), addresses)].into(),
        ..picture(objects, vec![("node-1", read)])
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
        line("203.0.113.7:8082/tcp", None, "web/shut", 4),
    ]);
    let told = Kernel {
        has_agent: true,
        read: None,
        told: vec![line("203.0.113.8:7000-7010/udp", Some("10.244.2.9:7000-7010"), "games/quake", 0)],
    };
    let starting = json!({"status": {"phase": "Pending", "podIPs": [], "conditions": []}});
    let suspended = json!({"metadata": {"annotations": {"pinhole.dev/suspended": "true"}}});
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
            pod("web", "shut", "node-1", "10.244.1.33", "8082:80", suspended),
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
