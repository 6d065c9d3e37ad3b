//! Ports that are left to pools to find.

use super::*;
use crate::admission::tests::mutation::mutated;
use crate::allocation::pool::Pool;

fn games() -> Cluster {
    let mut cluster = Cluster::new();
    let pool = |name: &str, spec: Value| Pool::read(name, &serde_json::from_value(spec).unwrap()).unwrap();
    let pools = [
        pool("games", json!({"addresses": ["203.0.113.7"], "namespaces": {"names": ["default"]}})),
        pool(
            "named",
            json!({"addresses": ["203.0.113.8"], "namespaces": {"all": true}, "modes": ["Static"]}),
        ),
        pool("nodes", json!({"nodeAddresses": true, "namespaces": {"all": true}})),
        pool("tcp", json!({"addresses": ["203.0.113.9"], "namespaces": {"all": true}, "protocols": ["TCP"]})),
        pool("mail", json!({"addresses": ["203.0.113.10"], "namespaces": {"names": ["mail"]}})),
    ];
    cluster.index.set_pools(Some(pools.into()));
    cluster
}

fn shown(decision: &Decision) -> Vec<String> {
    decision.automatic.iter().map(ToString::to_string).collect()
}

#[test]
fn both_forms_leave_the_external_port_to_a_pool() {
    let decision = games().create(exposing("web", "auto:9000/udp, AUTO:53,203.0.113.7:8080:80,auto:53/udp"));
    assert_granted(&decision);
    assert_eq!(shown(&decision), ["auto:9000/udp", "auto:53/tcp", "auto:53/udp"]);
    assert_eq!(decision.mappings.len(), 1);
    let decision = games()
        .create(nat(r#"{"srcPort":"auto","dstPort":9000,"proto":"udp","allowedSources":["192.0.2.0/24"],"terminateExisting":true}"#));
    assert_granted(&decision);
    assert_eq!(shown(&decision), ["auto:9000/udp"]);
    assert_eq!(decision.automatic[0].allowed_sources().len(), 1);
    assert!(decision.automatic[0].terminates_existing());
}

#[test]
fn what_makes_no_sense_beside_a_port_that_is_found_is_refused() {
    let cases = [
        (
            r#""ifaceAuto":true"#,
            "ifaceAuto: true: contradicts srcPort \"auto\", whose address is one of a pool's; remove ifaceAuto, or name the port",
        ),
        (
            r#""srcIP":"203.0.113.7""#,
            "srcIP: 203.0.113.7: contradicts srcPort \"auto\", whose address a pool chooses; remove srcIP, or name the port",
        ),
        (
            r#""srcPortEnd":9000"#,
            "srcPortEnd: 9000: goes with a number in srcPort; write one entry for each port that a pool is to find",
        ),
    ];
    for (key, problem) in cases {
        let decision = games().create(nat(&format!(r#"{{"srcPort":"auto","dstPort":80,{key}}}"#)));
        assert_refused(&decision, &format!("metadata.annotations[pinhole.dev/nat].entries[0].{problem}"));
    }
    let word = games().create(nat(r#"{"srcPort":"any","dstPort":80}"#));
    assert_refused(
        &word,
        "metadata.annotations[pinhole.dev/nat].entries[0].srcPort: \"any\": is not a port; write a whole number from 1 to \
         65535, or \"auto\" or \"fixed\" for one that a pool finds",
    );
    assert_refused(
        &games().create(exposing("web", "auto:80,auto:80/tcp")),
        "metadata.annotations[pinhole.dev/expose][1]: auto:80/tcp: is asked for twice by this pod; remove one of the two",
    );
}

#[test]
fn without_claims_nobody_finds_a_port_and_the_refusal_says_so() {
    let cluster = Cluster::with_policy(Policy { finds_ports: false, ..Policy::default() });
    assert_refused(
        &cluster.create(exposing("web", "auto:9000")),
        "metadata.annotations[pinhole.dev/expose][0]: auto:9000/tcp: is left to a pool, and pools need claims, which are off \
         here; name the external port, or ask whoever runs the cluster to turn them on (claims.enabled)",
    );
}

#[test]
fn a_pool_that_would_find_nothing_is_named_with_the_reason() {
    let usable = "this namespace may use games (203.0.113.7: 1024-65535), named (203.0.113.8: 1024-65535), \
                  nodes (each node's own address: 1024-65535), tcp (203.0.113.9: 1024-65535/tcp)";
    let cases = [
        ("nowhere", "is left to NatPool nowhere, which does not exist"),
        ("named", "is left to NatPool named, whose ports are asked for by number"),
        (
            "nodes",
            "is left to NatPool nodes, which has only nodes' own addresses; ports are found on addresses of a pool",
        ),
        ("tcp", "is left to NatPool tcp, which has 1024-65535/tcp"),
        ("mail", "is of NatPool mail, which does not admit this namespace or ServiceAccount"),
    ];
    for (pool, problem) in cases {
        let asking =
            pod("web", json!({"pinhole.dev/expose": "auto:53,auto:53/udp", "pinhole.dev/pool": pool}));
        assert_refused(
            &games().create(asking),
            &format!(
                "metadata.annotations[pinhole.dev/expose][0]: auto:53/tcp, auto:53/udp: {problem}; {usable}"
            ),
        );
    }
    let mut nobody = Cluster::new();
    nobody.index.set_pools(Some(Arc::default()));
    assert_refused(
        &nobody.create(exposing("web", "auto:53")),
        "metadata.annotations[pinhole.dev/expose][0]: auto:53/tcp: is left to a pool, and no NatPool finds ports for this \
         namespace; no NatPool admits this namespace: ask whoever runs the cluster for one",
    );
}

#[test]
fn a_pod_of_a_template_that_was_admitted_is_not_blocked_by_pools_that_changed() {
    let mut cluster = games().store(workload("StatefulSet", "lobby", "auto:9000/udp"));
    cluster.index.set_pools(Some(Arc::default()));
    let of_it = owned_by(exposing("lobby-0", "auto:9000/udp"), "StatefulSet", "lobby");
    assert_granted(&cluster.create(of_it));
    let more = owned_by(exposing("lobby-0", "auto:9000/udp,auto:9001"), "StatefulSet", "lobby");
    assert!(!cluster.create(more).is_granted());
}

#[test]
fn a_new_pod_waits_for_its_ports_at_a_gate_unless_it_comes_with_its_node() {
    let ours = json!({"name": "pinhole.dev/endpoints"});
    let theirs = json!({"name": "example.com/quota"});
    let asking = exposing("web", "auto:9000/udp");
    let held = |gates: Value| with(asking.clone(), &[("/spec/schedulingGates", gates)]);
    let gates = |object: &Value, operation| mutated(operation, object)["spec"]["schedulingGates"].clone();
    assert_eq!(gates(&asking, Operation::Create), json!([ours]));
    assert_eq!(gates(&held(json!([theirs])), Operation::Create), json!([theirs, ours]));
    assert_eq!(gates(&held(json!([ours])), Operation::Create), json!([ours]));
    assert_eq!(gates(&asking, Operation::Update), Value::Null, "a gate comes with a pod or not at all");
    let placed = with(asking.clone(), &[("/spec/nodeName", json!("node-1"))]);
    assert_eq!(gates(&placed, Operation::Create), Value::Null);
    let copied = with(exposing("web", "80"), &[("/spec/schedulingGates", json!([theirs, ours]))]);
    assert_eq!(gates(&copied, Operation::Create), json!([theirs]), "nobody would let it go");
    assert_eq!(gates(&copied, Operation::Update), json!([theirs]), "it asks for nothing any more");
    assert_eq!(gates(&held(json!([ours])), Operation::Update), json!([ours]), "it still waits");

    let once = mutated(Operation::Create, &asking);
    assert_eq!(mutated(Operation::Create, &once), once);
    assert_eq!(
        once["metadata"]["annotations"]["pinhole.dev/effective"],
        r#"{"entries":[{"ifaceAuto":false,"srcPort":"auto","dstPort":9000,"proto":"udp"}]}"#
    );
    assert_eq!(once["metadata"]["labels"], json!({"pinhole.dev/enabled": "true"}));
}

#[test]
fn endpoints_that_a_user_sends_are_dropped_and_those_of_a_pod_that_asks_for_nothing_any_more() {
    let forged = json!({"pinhole.dev/expose": "auto:9000", "pinhole.dev/endpoints": "[]"});
    let created = mutated(Operation::Create, &pod("web", forged));
    assert!(created["metadata"]["annotations"].get("pinhole.dev/endpoints").is_none());
    let stopped = mutated(Operation::Update, &pod("web", json!({"pinhole.dev/endpoints": "[]"})));
    assert!(stopped["metadata"]["annotations"].get("pinhole.dev/endpoints").is_none());
}

#[test]
fn both_forms_can_ask_that_the_port_is_kept_for_the_next_pod_of_the_same_name() {
    let decision = games().create(exposing("web", "fixed:9000/udp,auto:53"));
    assert_granted(&decision);
    assert_eq!(shown(&decision), ["fixed:9000/udp", "auto:53/tcp"]);
    let json = nat(r#"{"srcPort":"fixed","dstPort":9000,"proto":"udp"}"#);
    let decision = games().create(json.clone());
    assert_granted(&decision);
    assert_eq!(shown(&decision), ["fixed:9000/udp"]);
    assert_eq!(
        mutated(Operation::Create, &json)["metadata"]["annotations"]["pinhole.dev/effective"],
        r#"{"entries":[{"ifaceAuto":false,"srcPort":"fixed","dstPort":9000,"proto":"udp"}]}"#
    );
    assert_refused(
        &games().create(nat(r#"{"srcPort":"fixed","dstPort":80,"srcIP":"203.0.113.7"}"#)),
        "metadata.annotations[pinhole.dev/nat].entries[0].srcIP: 203.0.113.7: contradicts srcPort \"fixed\", whose address a \
         pool chooses; remove srcIP, or name the port",
    );
    assert_refused(
        &games().create(exposing("web", "fixed")),
        "metadata.annotations[pinhole.dev/expose][0]: fixed: leaves open which port of the pod is meant; write fixed:9000",
    );
    assert_refused(
        &games().create(exposing("web", "fixed:53,auto:53/udp")),
        "metadata.annotations[pinhole.dev/expose][1]: auto:53/udp: leads to the same port of the pod as fixed:53/tcp, and both \
         get one number; make both fixed, or both auto",
    );
}

#[test]
fn a_port_is_kept_only_for_pods_that_keep_their_names() {
    let policy = Policy { stateful_kinds: vec!["GameServerSet".to_owned()], ..Policy::default() };
    let cluster = Cluster::with_policy(policy);
    let asking = || exposing("lobby-0", "fixed:9000/udp");
    for kind in ["StatefulSet", "GameServerSet"] {
        assert_granted(&cluster.create(owned_by(asking(), kind, "lobby")));
    }
    assert_granted(&cluster.create(asking()));
    assert_granted(&cluster.create(workload("StatefulSet", "lobby", "fixed:9000/udp")));
    for kind in ["Deployment", "DaemonSet", "ReplicaSet", "Job"] {
        assert_refused(
            &cluster.create(workload(kind, "lobby", "fixed:9000/udp")),
            &format!(
                "spec.template.metadata.annotations[pinhole.dev/expose][0]: fixed:9000/udp: is kept for the next pod of the same \
                 name, and each pod of a {kind} has another one; use a StatefulSet, or a bare pod; a port that is not fixed goes \
                 with its pod"
            ),
        );
    }
    let stored = cluster.store(owned_by(workload("ReplicaSet", "lobby-1", "80"), "Deployment", "lobby"));
    assert!(!stored.create(owned_by(asking(), "ReplicaSet", "lobby-1")).is_granted());
    assert_refused(
        &stored.create(owned_by(asking(), "CloneSet", "lobby")),
        "metadata.annotations[pinhole.dev/expose][0]: fixed:9000/udp: is kept for the next pod of the same name, and whether \
         pods of a CloneSet keep theirs is not known here; use a StatefulSet, or ask whoever runs the cluster to name the kind \
         (--stateful-kind); a port that is not fixed goes with its pod",
    );
}
