//! What a user is told although the request is granted.

use super::*;

#[track_caller]
fn assert_warns(decision: &Decision, expected: &[&str]) {
    assert_granted(decision);
    assert_eq!(decision.warnings, expected);
    assert!(decision.warnings.iter().all(|warning| warning.chars().count() <= 120));
}

#[test]
fn several_replicas_behind_one_fixed_port_are_told_that_one_is_served() {
    let three = with(workload("Deployment", "web", "203.0.113.7:25"), &[("/spec/replicas", json!(3))]);
    let expected = "203.0.113.7:25/tcp reaches one pod at a time, the newest ready one, not all 3 replicas";
    assert_warns(&Cluster::new().create(three.clone()), &[expected]);
    assert_warns(&Cluster::new().create(workload("Deployment", "web", "203.0.113.7:25")), &[]);
    for (word, which) in [("WhenGone", "until it is gone"), ("Immediate", "the newest one")] {
        let key = "/spec/template/metadata/annotations/pinhole.dev~1handover";
        let three = with(three.clone(), &[(key, json!(word))]);
        let expected = format!("203.0.113.7:25/tcp reaches one pod at a time, {which}, not all 3 replicas");
        assert_warns(&Cluster::new().create(three), &[&expected]);
    }
    let on_nodes = with(workload("Deployment", "web", "25"), &[("/spec/replicas", json!(3))]);
    assert_warns(&Cluster::new().create(on_nodes), &[]);
}

#[test]
fn a_readiness_gate_that_nobody_opens_is_pointed_out() {
    let gates = [("/spec/readinessGates", json!([{"conditionType": "pinhole.dev/programmed"}]))];
    let unclaimed = Cluster::with_policy(Policy { finds_ports: false, ..Policy::default() });
    let expected = "the readiness gate pinhole.dev/programmed needs claims, which are off here: the pod will never be ready";
    assert_warns(&unclaimed.create(with(exposing("web", "80"), &gates)), &[expected]);
    assert_warns(&unclaimed.create(exposing("web", "80")), &[]);
    assert_warns(&Cluster::new().create(with(exposing("web", "80"), &gates)), &[]);
}

#[test]
fn a_pod_whose_node_is_open_is_told_where_its_port_is_taken() {
    let taken =
        |node: &str| with(exposing(&format!("mail-{node}"), "25"), &[("/spec/nodeName", json!(node))]);
    let cluster = Cluster::new().store(taken("node-1"));
    let expected = "25/tcp is taken on node-1; a pod scheduled there gets no connections";
    assert_warns(&cluster.create(exposing("web", "25")), &[expected]);
    let cluster = cluster.store(taken("node-2")).store(taken("node-3")).store(taken("node-4"));
    let expected = "25/tcp is taken on node-1, node-2 and 2 more; a pod scheduled there gets no connections";
    assert_warns(&cluster.create(workload("Deployment", "web", "25")), &[expected]);
    assert_warns(&cluster.create(exposing("web", "26")), &[]);
}

#[test]
fn annotations_that_only_look_like_requests_are_pointed_out() {
    let cases = [
        (
            "pinhole.dev/exposed",
            "annotation pinhole.dev/exposed means nothing to Pinhole; did you mean pinhole.dev/expose?",
        ),
        (
            "bln.space/podnat",
            "bln.space/podnat is not read here: rename it to pinhole.dev/nat, or ask the operator to enable it (--annotation-key)",
        ),
        (
            "k8s.aliyun.com/pod-dnat-expose-port",
            "annotation k8s.aliyun.com/pod-dnat-expose-port is not read here; ask for ports with pinhole.dev/expose",
        ),
    ];
    for (key, expected) in cases {
        assert_warns(&Cluster::new().create(pod("web", json!({key: "80"}))), &[expected]);
    }
    assert_warns(&Cluster::new().create(pod("web", json!({"example.com/other": "80"}))), &[]);
}
