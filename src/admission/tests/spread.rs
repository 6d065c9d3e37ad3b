//! Pods that are kept on different nodes because they want the same port there.

use super::*;

const TERMS: &str = "/spec/affinity/podAntiAffinity/requiredDuringSchedulingIgnoredDuringExecution";

fn created(object: &Value) -> Value {
    Cluster::new().mutated(Operation::Create, object)
}

fn spread(name: &str, ports: &str) -> Value {
    pod(name, json!({"pinhole.dev/expose": ports, "pinhole.dev/spread": "true"}))
}

fn holder_of(object: &Value, port: &str) -> String {
    created(object)["metadata"]["labels"][format!("pinhole.dev/port-{port}")].as_str().unwrap().to_owned()
}

/// What keeps a pod off the nodes of other holders of the port.
fn term(port: &str, holder: &str) -> Value {
    let label = format!("pinhole.dev/port-{port}");
    json!({
        "labelSelector": {"matchExpressions": [
            {"key": label, "operator": "Exists"}, {"key": label, "operator": "NotIn", "values": [holder]},
        ]},
        "namespaceSelector": {},
        "topologyKey": "kubernetes.io/hostname",
    })
}

#[test]
fn a_pod_that_asks_to_be_spread_is_kept_off_the_nodes_of_other_holders_of_each_of_its_ports() {
    let pod = spread("web", "80,53/udp,203.0.113.7:443,7000-7001");
    let holder = holder_of(&pod, "tcp-80");
    let ports = ["tcp-7000", "tcp-7001", "tcp-80", "udp-53"];
    assert_eq!(created(&pod).pointer(TERMS).unwrap(), &json!(ports.map(|port| term(port, &holder))));
    assert_eq!(created(&exposing("web", "80")).pointer(TERMS), None, "who does not ask is only labelled");
}

#[test]
fn a_pool_of_nodes_own_addresses_spreads_the_pods_that_do_not_say_otherwise() {
    let spreading =
        json!({"addresses": [], "nodeAddresses": true, "spread": true, "namespaces": {"all": true}});
    let is_spread = |pool: Value, object: &Value| {
        let mut cluster = Cluster::new();
        cluster.set_pool(pool);
        cluster.mutated(Operation::Create, object).pointer(TERMS).is_some()
    };
    let plain = exposing("web", "80");
    let kept = pod("web", json!({"pinhole.dev/expose": "80", "pinhole.dev/spread": "false"}));
    let changed = |change: Value| {
        let mut pool = spreading.clone();
        json_patch::merge(&mut pool, &change);
        pool
    };
    for (pool, object, expected, what) in [
        (spreading.clone(), &plain, true, "the pool says so"),
        (spreading.clone(), &kept, false, "the pod says otherwise"),
        (spreading.clone(), &exposing("web", "203.0.113.7:80"), false, "it asks for none of its node's own"),
        (changed(json!({"spread": false})), &plain, false, "the pool does not say so"),
        (
            changed(json!({"namespaces": {"all": false, "names": ["mail"]}})),
            &plain,
            false,
            "the pool is not for it",
        ),
        (
            changed(json!({"nodeAddresses": false, "addresses": ["203.0.113.7"]})),
            &plain,
            false,
            "the pool has no node's own addresses",
        ),
    ] {
        assert_eq!(is_spread(pool, object), expected, "{what}");
    }
}

#[test]
fn the_user_s_own_affinity_stays_and_terms_of_ours_that_somebody_copied_go() {
    let theirs = json!({"labelSelector": {"matchLabels": {"app": "db"}}, "topologyKey": "zone"});
    let ours = term("tcp-80", &holder_of(&spread("web", "80"), "tcp-80"));
    let copied = term("tcp-8080", "0123456789abcdef");
    let node = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}});
    let anti =
        |terms: Value| json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}});
    let cases = [
        (Value::Null, json!([ours])),
        (json!({}), json!([ours])),
        (node.clone(), json!([ours])),
        (json!({"podAntiAffinity": null}), json!([ours])),
        (json!({"podAntiAffinity": {}}), json!([ours])),
        (anti(Value::Null), json!([ours])),
        (anti(json!([theirs])), json!([theirs, ours])),
        (anti(json!([copied, theirs])), json!([theirs, ours])),
    ];
    for (affinity, expected) in cases {
        let pod = with(spread("web", "80"), &[("/spec/affinity", affinity.clone())]);
        let once = created(&pod);
        assert_eq!(once.pointer(TERMS), Some(&expected), "{affinity}");
        assert_eq!(created(&once), once, "a second call finds nothing to do");
    }
    let kept = created(&with(spread("web", "80"), &[("/spec/affinity", node.clone())]));
    assert_eq!(kept["spec"]["affinity"]["nodeAffinity"], node["nodeAffinity"]);
    let no_more = created(&with(exposing("web", "80"), &[("/spec/affinity", anti(json!([copied])))]));
    assert_eq!(no_more.pointer(TERMS), Some(&json!([])), "a copied term spreads nobody who does not ask");
}

#[test]
fn the_pods_of_one_holder_may_meet_and_those_of_others_not() {
    let of_set = |set: &str, hash: &str| {
        let labels = json!({"pod-template-hash": hash});
        with(owned_by(spread(&format!("{set}-x"), "80"), "ReplicaSet", set), &[("/metadata/labels", labels)])
    };
    let first = holder_of(&of_set("web-5d9", "5d9"), "tcp-80");
    assert_eq!(first, holder_of(&of_set("web-7f4", "7f4"), "tcp-80"), "two ReplicaSets of one Deployment");
    let others = [
        of_set("api-5d9", "5d9"),
        of_set("web-5d9", "another"),
        spread("web", "80"),
        owned_by(spread("web-0", "80"), "StatefulSet", "web"),
        with(of_set("web-5d9", "5d9"), &[("/metadata/namespace", json!("games"))]),
    ];
    for other in others {
        assert_ne!(first, holder_of(&other, "tcp-80"), "{other}");
    }
}

#[test]
fn the_annotation_is_true_or_false_and_for_few_ports_of_the_node() {
    let cluster = Cluster::new();
    let asking = |ports: &str, spread: &str| {
        pod("web", json!({"pinhole.dev/expose": ports, "pinhole.dev/spread": spread}))
    };
    assert_refused(
        &cluster.create(asking("80", "yes")),
        r#"metadata.annotations[pinhole.dev/spread]: yes: is neither "true" nor "false""#,
    );
    let many = cluster.create(asking("7000-7064", "true"));
    assert!(
        summary(&many.violations).contains("at most 64 ports of the node's own address, and 65"),
        "{many:?}"
    );
    assert_granted(&cluster.create(asking("7000-7064", "false")));
    assert_eq!(
        created(&asking("7000-7064", "true"))["metadata"]["labels"],
        json!({"pinhole.dev/enabled": "true"})
    );
    let in_vain = cluster.create(asking("203.0.113.7:80", "true"));
    assert_granted(&in_vain);
    assert_eq!(
        in_vain.warnings,
        ["pinhole.dev/spread has no effect: no port of the node's own address is asked for"]
    );
}
