//! What pools grant, and whom they cannot block.

use super::*;
use crate::admission::conflict::Evidence;
use crate::admission::index::occupants::Occupants;
use crate::admission::index::occupants::Source;
use crate::allocation::pool::Pool;

fn read((name, spec): &(&str, Value)) -> Pool {
    Pool::read(name, &serde_json::from_value(spec.clone()).unwrap()).unwrap()
}

/// A cluster with these pools.
fn cluster(pools: &[(&str, Value)]) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.index.set_pools(Some(pools.iter().map(read).collect()));
    cluster
}

fn edge() -> (&'static str, Value) {
    ("edge", json!({"addresses": ["203.0.113.7"], "namespaces": {"names": ["default"]}}))
}

fn nodes() -> (&'static str, Value) {
    let ports = json!([{"first": 1, "last": 65535}]);
    ("nodes", json!({"nodeAddresses": true, "ports": ports, "namespaces": {"all": true}}))
}

#[test]
fn a_pool_grants_its_addresses_and_says_which_it_is() {
    let decision =
        cluster(&[edge(), nodes()]).create(exposing("web", "203.0.113.7:8080,80,203.0.113.7:2000-2010/udp"));
    assert_granted(&decision);
    let pools: Vec<_> = decision.pools.iter().map(|pool| pool.as_deref().unwrap()).collect();
    assert_eq!(pools, ["edge", "nodes", "edge"]);
}

#[test]
fn what_no_pool_grants_is_refused_with_what_the_namespace_may_have() {
    let usable = "this namespace may use edge (203.0.113.7: 1024-65535)";
    let none = "no NatPool admits this namespace: ask whoever runs the cluster for one";
    let cases = [
        (cluster(&[]), "203.0.113.7:80", format!("is on 203.0.113.7, which no NatPool has; {none}")),
        (
            cluster(&[]),
            "80",
            format!("is on its node's own address, which no NatPool opens (nodeAddresses); {none}"),
        ),
        (
            cluster(&[edge()]),
            "203.0.113.7:80",
            format!("is outside NatPool edge, which has 1024-65535; {usable}"),
        ),
        (
            cluster(&[edge()]),
            "203.0.113.8:8080",
            format!("is on 203.0.113.8, which no NatPool has; {usable}"),
        ),
    ];
    for (cluster, ports, problem) in cases {
        let decision = cluster.create(exposing("web", ports));
        let expected = format!("metadata.annotations[pinhole.dev/expose][0]: {ports}/tcp: {problem}");
        assert_refused(&decision, &expected);
        assert_eq!(decision.evidence, [Evidence::Namespace("default".to_owned()), Evidence::Pools]);
    }
}

/// A cluster with a node, of which `edge` has an address, and a gateway, of which it has one.
fn with_nodes(policy: Policy, pools: &[(&str, Value)]) -> Cluster {
    let mut cluster =
        Cluster::with_policy(policy).store(json!({"kind": "Node", "metadata": {"name": "node-1"}}));
    for (name, address) in [("node-1", "203.0.113.7"), ("gateway", "203.0.113.9")] {
        cluster.index.set_occupants(Occupants {
            source: Source::NatNode(name.into()),
            version: Some(1),
            taken: Vec::new(),
            addresses: vec![(address.parse().unwrap(), true)],
        });
    }
    cluster.index.set_pools(Some(pools.iter().map(read).collect()));
    cluster
}

fn both() -> (&'static str, Value) {
    let addresses = json!(["203.0.113.7", "203.0.113.8", "203.0.113.9"]);
    ("edge", json!({"addresses": addresses, "namespaces": {"all": true}}))
}

#[test]
fn a_port_that_a_service_may_get_is_refused_on_every_address_of_a_node() {
    let cluster = with_nodes(Policy::default(), &[both(), nodes()]);
    for (ports, is_granted) in [
        ("31000", false),
        ("203.0.113.7:31000", false),
        ("203.0.113.7:29999", true),
        ("203.0.113.7:32768", true),
        ("203.0.113.8:31000", true),
        ("203.0.113.9:31000", true),
    ] {
        let decision = cluster.create(exposing("web", ports));
        assert_eq!(decision.is_granted(), is_granted, "{ports}: {}", summary(&decision.violations));
    }
    let refused = cluster.create(exposing("web", "203.0.113.7:31000/udp"));
    assert_refused(
        &refused,
        "metadata.annotations[pinhole.dev/expose][0]: 203.0.113.7:31000/udp: overlaps the NodePort range (30000-32767), of which \
         a Service may get any port on every node; choose another external port, or have NatPool edge open it by a range of \
         ports inside of it; this namespace may use edge (203.0.113.7, 203.0.113.8, 203.0.113.9: 1024-65535), nodes (each \
         node's own address: 1-65535)",
    );
    assert!(
        refused.evidence.contains(&Evidence::Occupant(Source::NatNode("node-1".into()))),
        "the address may be another node's by now"
    );
    let off = with_nodes(Policy { node_port_range: None, ..Policy::default() }, &[both(), nodes()]);
    assert_granted(&off.create(exposing("web", "31000,203.0.113.7:31000")));
    let mut without_claims = with_nodes(Policy::default(), &[]);
    without_claims.index.set_pools(None);
    assert_granted(&without_claims.create(exposing("web", "31000,203.0.113.7:31000")));
}

#[test]
fn what_had_a_port_of_the_node_port_range_before_that_was_kept_goes_on() {
    let cluster = with_nodes(Policy::default(), &[both(), nodes()])
        .store(workload("StatefulSet", "db", "31000,203.0.113.7:31001"))
        .store(with(exposing("bare", "31002"), &[("/spec/nodeName", json!("node-1"))]));
    assert_granted(&cluster.create(owned_by(
        exposing("db-0", "31000,203.0.113.7:31001"),
        "StatefulSet",
        "db",
    )));
    assert_granted(&cluster.create(exposing("bare", "31002")));
    assert!(!cluster.create(owned_by(exposing("db-1", "31003"), "StatefulSet", "db")).is_granted());
}

#[test]
fn where_nobody_looks_at_pools_none_has_to_grant_anything() {
    let decision = Cluster::new().create(exposing("web", "203.0.113.7:80"));
    assert_granted(&decision);
    assert_eq!(decision.pools, []);
}

#[test]
fn a_pool_can_be_for_pods_of_one_service_account_alone() {
    let account = json!([{"namespace": "default", "name": "mailer"}]);
    let spec = json!({"addresses": ["203.0.113.7"], "namespaces": {"all": true}, "serviceAccounts": account});
    let cluster = cluster(&[("edge", spec)]);
    let pod = |account: &str| {
        with(exposing("web", "203.0.113.7:8080"), &[("/spec/serviceAccountName", json!(account))])
    };
    assert_granted(&cluster.create(pod("mailer")));
    assert!(!cluster.create(pod("default")).is_granted());
    assert!(!cluster.create(exposing("web", "203.0.113.7:8080")).is_granted());
}

#[test]
fn what_runs_already_goes_on_whatever_has_become_of_the_pools() {
    let set = |owner: &str| {
        let set = json!({"kind": "ReplicaSet", "spec": {}, "metadata": {
            "name": format!("{owner}-1"), "namespace": "default", "uid": format!("uid-{owner}-1")}});
        owned_by(set, "Deployment", owner)
    };
    let cluster = cluster(&[])
        .store(workload("Deployment", "smtp", "203.0.113.7:25,143"))
        .store(set("smtp"))
        .store(set("other"));
    let pod =
        |owner: &str, ports: &str| owned_by(exposing("new", ports), "ReplicaSet", &format!("{owner}-1"));
    assert_granted(&cluster.create(pod("smtp", "203.0.113.7:25,143")));
    let changed = workload("Deployment", "smtp", "203.0.113.7:25,143,203.0.113.7:26");
    let decision = cluster.update(workload("Deployment", "smtp", "203.0.113.7:25,143"), changed);
    assert_eq!(decision.violations.len(), 1, "only what is new: {:?}", decision.violations);
    assert_eq!(decision.violations[0].value, "203.0.113.7:26/tcp");
    assert!(!cluster.create(pod("other", "143")).is_granted(), "another holder has never asked for it");
    assert!(!cluster.create(pod("smtp", "203.0.113.7:25-26")).is_granted(), "more than it has asked for");
    assert!(!cluster.create(exposing("bare", "143")).is_granted());
}

#[test]
fn a_pod_s_ports_stay_granted_to_its_siblings_of_an_owner_that_is_not_known() {
    let of = |name: &str| owned_by(exposing(name, "203.0.113.7:25,143"), "GameServer", "quake");
    let running = with(of("quake-1"), &[("/spec/nodeName", json!("node-1"))]);
    let cluster = cluster(&[]).store(running);
    assert_granted(&cluster.create(of("quake-2")));
}
