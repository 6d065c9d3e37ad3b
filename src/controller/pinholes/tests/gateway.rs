//! Pods whose address is on another node than theirs.

use super::*;

const CREATED: &str = "2026-01-01T00:00:00Z";

/// A pod on node-1, of which node-2 has the address, and the nodes.
fn scene_of_a_gateway(ports: &str) -> Scene {
    let mut scene = scene().node("node-1", json!({})).node("node-2", json!({})).node("node-3", json!({}));
    scene.has("node-1", &["203.0.113.1"]);
    scene.has("node-2", &["203.0.113.7"]);
    scene.with(pod(ports, json!({"metadata": {"creationTimestamp": CREATED}}))).claimed(KEY, "mx")
}

#[test]
fn the_node_that_has_the_address_serves_a_pod_of_another_node_and_only_that_one_is_asked() {
    let mut scene = scene_of_a_gateway(PORT);
    scene.settle();
    assert_eq!(scene.labels(), ["node-2"]);
    assert_eq!(scene.columns()[2], "node-2");
    assert_eq!(scene.columns()[4], "Unknown Waiting the agent of node-2 has not reported yet");
    let status = serde_json::to_value(scene.mx().status.clone().unwrap()).unwrap();
    assert_eq!(status["endpoints"][0]["nodes"], json!(["node-2"]));
    assert_eq!(status["targets"][0]["node"], "node-1");
    scene.reported_by("node-1", false, "Released");
    scene.settle();
    assert!(scene.columns()[4].starts_with("Unknown Waiting"), "{:?}", scene.columns());
    scene.reported_by("node-2", true, "Programmed");
    assert_eq!(scene.settle(), ["report mail/mx"]);
    assert_eq!(scene.columns()[4], "True Programmed");
}

#[test]
fn a_pod_with_ports_on_several_nodes_is_reached_when_all_say_so_and_a_standby_is_named_last() {
    let scene =
        scene_of_a_gateway("203.0.113.7:25,203.0.113.99:26,8080:80").claimed("v4-203-0-113-99-tcp-26", "mx");
    let mut scene = scene.called("node-1", &["203.0.113.8"]).claimed("v4-203-0-113-8-tcp-8080", "mx");
    // Another node behind another router can have the same one.
    scene.says("node-3", &["203.0.113.8"], true);
    scene.settle();
    assert_eq!(scene.labels(), ["node-1", "node-2"]);
    let nodes = |scene: &mut Scene| {
        let endpoints = scene.mx().status.clone().unwrap().endpoints.into_iter();
        endpoints
            .map(|endpoint| format!("{} {}", endpoint.address, endpoint.nodes.join(",")))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        nodes(&mut scene),
        ["203.0.113.7 node-2", "203.0.113.99 node-1", "203.0.113.8 node-1"],
        "where no node has it, the pod's is asked, and its own address is served by itself"
    );
    let cases = [
        ((true, "Programmed"), (true, "Programmed"), "True Programmed"),
        ((true, "Programmed"), (false, "KernelRefused"), "False KernelRefused"),
        ((false, "NotProgrammed"), (true, "Programmed"), "False NotProgrammed"),
        ((true, "Programmed"), (false, "Standby"), "False Standby"),
        ((false, "Standby"), (false, "NoAddress"), "False NoAddress"),
    ];
    for (own, gateway, expected) in cases {
        scene.reported_by("node-1", own.0, own.1);
        scene.reported_by("node-2", gateway.0, gateway.1);
        scene.settle();
        assert_eq!(scene.columns()[4], expected);
    }
}

#[test]
fn what_another_node_elects_by_is_said_to_it_and_costs_nothing_where_the_pods_node_serves() {
    let state = |scene: &mut Scene| {
        serde_json::to_value(&scene.mx().status.clone().unwrap().targets[0].state).unwrap()
    };
    let is = |ready: &str| json!({"metadata": {"creationTimestamp": CREATED}, "status": {"conditions": [{"type": "ContainersReady", "status": ready}]}});
    let mut scene = scene_of_a_gateway(PORT);
    scene.settle();
    assert_eq!(state(&mut scene), json!({"created": CREATED, "ready": false, "terminating": false}));
    let mut scene = scene.with(pod(PORT, is("True")));
    scene.settle();
    assert_eq!(state(&mut scene)["ready"], true);
    let mut lost = is("True");
    lost["status"]["conditions"].as_array_mut().unwrap().push(json!({"type": "Ready", "status": "False"}));
    let mut scene = scene.with(pod(PORT, lost));
    scene.settle();
    assert_eq!(state(&mut scene)["ready"], false, "its node is lost, and another pod takes over");
    let mut ending = is("True");
    json_patch::merge(&mut ending, &json!({"metadata": {"deletionTimestamp": CREATED}}));
    let mut scene = scene.with(pod(PORT, ending));
    scene.settle();
    assert_eq!(state(&mut scene)["terminating"], true);
    let mut suspended = is("True");
    json_patch::merge(
        &mut suspended,
        &json!({"metadata": {"annotations": {"pinhole.dev/suspended": "true"}}}),
    );
    let mut scene = scene.with(pod(PORT, suspended));
    scene.settle();
    assert_eq!(state(&mut scene)["suspended"], true);

    scene.has("node-2", &[]);
    scene.has("node-1", &["203.0.113.7"]);
    scene.settle();
    assert_eq!(state(&mut scene), Value::Null);
    let mut scene = scene.with(pod(PORT, is("False")));
    assert_eq!(scene.settle(), ["tell mail/mx"], "its own node sees for itself");
}

#[test]
fn a_node_that_loses_an_address_sees_the_object_until_it_has_let_go() {
    let mut scene = scene_of_a_gateway(PORT);
    scene.settle();
    scene.reported_by("node-2", true, "Programmed");
    scene.settle();
    scene.has("node-2", &[]);
    scene.has("node-3", &["203.0.113.7"]);
    scene.settle();
    assert_eq!(scene.labels(), ["node-2", "node-3"]);
    assert_eq!(scene.columns()[2], "node-3");
    assert_eq!(scene.waits(), ["203.0.113.7:25 node-2"], "what it said before is no answer");
    scene.reported_by("node-2", false, "Released");
    scene.settle();
    assert_eq!(scene.labels(), ["node-3"]);
    assert!(scene.waits().is_empty());
}

#[test]
fn the_port_of_a_pod_that_is_gone_waits_for_the_node_that_served_it_and_for_no_other() {
    let mut scene = scene_of_a_gateway(PORT);
    scene.settle();
    scene.reported_by("node-2", true, "Programmed");
    scene.settle();
    scene.pods.clear();
    scene.settle();
    assert_eq!(scene.columns()[4], "False Releasing waiting for node-2 to let go");
    let key = KEY.parse().unwrap();
    assert!(Serving::of(&scene.pinholes).has(&key));
    scene.reported_by("node-1", false, "Released");
    assert!(!scene.settle().contains(&"delete mail/mx".to_owned()));
    scene.reported_by("node-2", false, "Released");
    assert!(scene.settle().contains(&"delete mail/mx".to_owned()));
    assert!(!Serving::of(&scene.pinholes).has(&key));
}

#[test]
fn whose_connections_end_with_their_source_is_said_to_the_node_that_serves_them() {
    let entries = r#"{"entries":[
        {"srcIP":"203.0.113.7","srcPort":25,"dstPort":25,"proto":"tcp","allowedSources":["192.0.2.0/24"],"terminateExisting":true},
        {"srcPort":8080,"dstPort":80,"proto":"tcp"}]}"#;
    let asks = json!({"metadata": {"annotations": {"pinhole.dev/expose": null, "pinhole.dev/nat": entries}}});
    let mut scene = scene().with(pod(PORT, asks)).claimed(KEY, "mx");
    scene.settle();
    let says: Vec<_> =
        scene.mx().spec.ports.iter().map(|port| (port.port, port.terminate_existing)).collect();
    assert_eq!(says, [(Some(25), true), (Some(8080), false)]);
}
