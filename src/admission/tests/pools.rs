//! What pools grant, and whom they cannot block.

use super::*;
use crate::admission::conflict::Evidence;
use crate::allocation::pool::Pool;

/// A cluster with these pools.
fn cluster(pools: &[(&str, Value)]) -> Cluster {
    let mut cluster = Cluster::new();
    let read = |(name, spec): &(&str, Value)| {
        Pool::read(name, &serde_json::from_value(spec.clone()).unwrap()).unwrap()
    };
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
