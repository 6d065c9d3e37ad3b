//! Who may have a port that somebody holds.

use std::time::Duration;
use std::time::Instant;

use super::*;
use crate::admission::conflict::Evidence;
use crate::admission::decide_apart_from_others;
use crate::admission::index::ObjectKey;
use crate::admission::index::facts::Presence;
use crate::allocation::pool::Pool;
use crate::api::object::Kind;
use crate::model::holder::ObjectName;

const PORT: &str = "203.0.113.7:25";

fn key(kind: Kind, name: &str) -> ObjectKey {
    ObjectKey { kind, name: ObjectName::new("default", name) }
}

fn on_node(object: Value, node: &str) -> Value {
    with(object, &[("/spec/nodeName", json!(node)), ("/status/phase", json!("Running"))])
}

fn in_namespace(object: Value, namespace: &str) -> Value {
    with(object, &[("/metadata/namespace", json!(namespace))])
}

#[test]
fn a_port_that_another_pod_holds_is_refused_with_its_holder_and_since_when() {
    let cluster = Cluster::new().store(on_node(in_namespace(exposing("postfix", PORT), "mail"), "node-1"));
    let decision = cluster.create(exposing("web", PORT));
    assert_refused(
        &decision,
        "metadata.annotations[pinhole.dev/expose][0]: 203.0.113.7:25/tcp: is held by Pod mail/postfix (on node node-1, since \
         2026-11-22T10:00:00Z); choose another external port, or remove it there first",
    );
    let held = ObjectKey { kind: Kind::Pod, name: ObjectName::new("mail", "postfix") };
    assert_eq!(decision.evidence, [Evidence::Object(held)]);
    assert_granted(&cluster.create(exposing("web", "203.0.113.7:25/udp")));
    assert_granted(&cluster.create(exposing("web", "203.0.113.8:25")));
}

#[test]
fn apart_from_others_all_is_decided_but_what_they_hold() {
    let cluster = Cluster::new().store(exposing("postfix", PORT));
    let apart = |ports| {
        let asked = request(Operation::Create, Some(exposing("web", ports)), None);
        decide_apart_from_others(&asked, &World { policy: &cluster.policy, index: &cluster.index })
    };
    let decision = apart(PORT);
    assert_granted(&decision);
    assert!(decision.evidence.is_empty(), "nobody's holdings were looked at");
    assert_eq!(decision.mappings, cluster.create(exposing("web", PORT)).mappings);
    assert!(!apart("203.0.113.7:22").is_granted(), "a restricted port is refused all the same");
}

#[test]
fn a_holder_in_another_namespace_is_hidden_where_the_operator_says_so() {
    let cluster = Cluster::with_policy(Policy { disclose_holder: false, ..Policy::default() })
        .store(in_namespace(exposing("postfix", PORT), "mail"))
        .store(exposing("mta", "203.0.113.7:587"));
    assert_refused(
        &cluster.create(exposing("web", PORT)),
        "metadata.annotations[pinhole.dev/expose][0]: 203.0.113.7:25/tcp: is held by an object in another namespace; choose \
         another external port, or remove it there first",
    );
    assert_refused(
        &cluster.create(exposing("web", "203.0.113.7:587")),
        "metadata.annotations[pinhole.dev/expose][0]: 203.0.113.7:587/tcp: is held by Pod default/mta (created \
         2026-11-22T10:00:00Z, not on a node yet); choose another external port, or remove it there first",
    );
}

#[test]
fn the_pods_of_one_holder_never_conflict_with_each_other() {
    let replica_set = |name: &str| owned_by(workload("ReplicaSet", name, PORT), "Deployment", "web");
    let cluster = Cluster::new()
        .store(workload("Deployment", "web", PORT))
        .store(replica_set("web-1"))
        .store(replica_set("web-2"))
        .store(on_node(owned_by(exposing("web-1-a", PORT), "ReplicaSet", "web-1"), "node-1"));
    assert_granted(&cluster.create(owned_by(exposing("web-2-b", PORT), "ReplicaSet", "web-2")));
    assert_granted(&cluster.create(workload("Deployment", "web", PORT)));
    let decision = cluster.create(workload("Deployment", "other", PORT));
    assert_refused(
        &decision,
        "spec.template.metadata.annotations[pinhole.dev/expose][0]: 203.0.113.7:25/tcp: is held by Deployment default/web (since \
         2026-11-22T09:00:00Z); choose another external port, or remove it there first",
    );
    for kind in ["StatefulSet", "DaemonSet", "Rollout"] {
        let cluster = Cluster::new().store(owned_by(exposing("a-0", PORT), kind, "a"));
        assert_granted(&cluster.create(owned_by(exposing("a-1", PORT), kind, "a")));
        assert!(!cluster.create(owned_by(exposing("b-0", PORT), kind, "b")).is_granted());
    }
    let cluster = Cluster::new()
        .store(owned_by(workload("Job", "backup-1", PORT), "CronJob", "backup"))
        .store(owned_by(exposing("backup-1-x", PORT), "Job", "backup-1"));
    assert_granted(&cluster.create(workload("CronJob", "backup", PORT)));
}

#[test]
fn an_owner_that_is_not_known_yet_is_evidence_to_read_and_then_settles_it() {
    let mut cluster = Cluster::new().store(workload("Deployment", "web", PORT));
    let pod = owned_by(exposing("web-1-a", PORT), "ReplicaSet", "web-1");
    let decision = cluster.create(pod.clone());
    let expected =
        [Evidence::Object(key(Kind::Deployment, "web")), Evidence::Object(key(Kind::ReplicaSet, "web-1"))];
    assert_eq!(decision.evidence, expected);
    cluster.index.confirm(&slim(owned_by(workload("ReplicaSet", "web-1", PORT), "Deployment", "web")));
    assert_granted(&cluster.create(pod));
}

#[test]
fn a_reference_to_an_owner_of_another_name_makes_nobody_a_holder() {
    let cluster = Cluster::new().store(workload("Deployment", "web", PORT)).store(owned_by(
        workload("ReplicaSet", "web-1", PORT),
        "Deployment",
        "web",
    ));
    let mut forged = owned_by(exposing("evil", PORT), "ReplicaSet", "web-1");
    forged["metadata"]["ownerReferences"][0]["name"] = json!("web-9");
    assert!(!cluster.create(forged).is_granted());
}

#[test]
fn an_owner_that_makes_no_pods_shares_its_ports_with_none() {
    for kind in ["Pod", "Pinhole"] {
        let cluster = Cluster::new().store(owned_by(exposing("first", PORT), kind, "shop"));
        assert!(!cluster.create(owned_by(exposing("second", PORT), kind, "shop")).is_granted(), "{kind}");
    }
}

#[test]
fn a_mirror_pod_holds_nothing_because_no_rule_judges_it() {
    let mirror = with(
        on_node(exposing("static-web", PORT), "node-1"),
        &[("/metadata/annotations/kubernetes.io~1config.mirror", json!("x"))],
    );
    assert_granted(&Cluster::new().store(mirror).create(exposing("web", PORT)));
}

#[test]
fn ranges_conflict_where_they_overlap_and_name_the_shared_ports() {
    let cluster = Cluster::new().store(exposing("game", "203.0.113.7:7000-7010/udp"));
    assert_refused(
        &cluster.create(exposing("web", "203.0.113.7:7005-7020/udp")),
        "metadata.annotations[pinhole.dev/expose][0]: 203.0.113.7:7005-7020/udp: 203.0.113.7:7005-7010/udp is held by Pod \
         default/game (created 2026-11-22T10:00:00Z, not on a node yet); choose another external port, or remove it there first",
    );
    assert!(!cluster.create(exposing("web", "203.0.113.7:7010/udp")).is_granted());
    assert_granted(&cluster.create(exposing("web", "203.0.113.7:7011-7020/udp")));
}

#[test]
fn a_port_of_a_node_s_own_address_is_unique_on_that_node() {
    let cluster = Cluster::new().store(on_node(exposing("postfix", "25"), "node-1"));
    assert_refused(
        &cluster.create(on_node(exposing("web", "25"), "node-1")),
        "metadata.annotations[pinhole.dev/expose][0]: 25/tcp: is held on node node-1 by Pod default/postfix (since \
         2026-11-22T10:00:00Z); choose another external port, or remove it there first",
    );
    assert_granted(&cluster.create(on_node(exposing("web", "25"), "node-2")));
}

#[test]
fn finished_and_deleted_objects_hold_nothing_and_terminating_ones_still_do() {
    let pod = exposing("postfix", PORT);
    for phase in ["Succeeded", "Failed"] {
        let finished = with(pod.clone(), &[("/status/phase", json!(phase))]);
        assert_granted(&Cluster::new().store(pod.clone()).store(finished).create(exposing("web", PORT)));
    }
    let mut cluster = Cluster::new().store(pod.clone());
    cluster.index.delete(&key(Kind::Pod, "postfix"), Some("uid-postfix"));
    assert_granted(&cluster.create(exposing("web", PORT)));
    let terminating = with(pod, &[("/metadata/deletionTimestamp", json!("2026-11-22T11:00:00Z"))]);
    assert_refused(
        &Cluster::new().store(terminating).create(exposing("web", PORT)),
        "metadata.annotations[pinhole.dev/expose][0]: 203.0.113.7:25/tcp: is held by Pod default/postfix (created \
         2026-11-22T10:00:00Z, not on a node yet, being deleted); try again when it is gone, or choose another external port",
    );
}

#[test]
fn r09_the_late_delete_of_a_pod_does_not_free_what_its_successor_of_the_same_name_holds() {
    let mut cluster = Cluster::new().store(exposing("postfix", PORT));
    let successor = with(exposing("postfix", PORT), &[("/metadata/uid", json!("uid-2"))]);
    cluster.index.apply(&slim(successor));
    cluster.index.delete(&key(Kind::Pod, "postfix"), Some("uid-postfix"));
    assert!(!cluster.create(exposing("web", PORT)).is_granted());
}

#[test]
fn removing_the_annotation_frees_the_port() {
    let cluster = Cluster::new().store(exposing("postfix", PORT)).store(pod("postfix", json!({})));
    assert_eq!(cluster.index.holdings_count(), 0);
    assert_granted(&cluster.create(exposing("web", PORT)));
}

#[test]
fn what_was_just_admitted_counts_until_a_live_read_or_the_end_of_its_time() {
    let now = Instant::now();
    let ttl = Duration::from_secs(10);
    let mut cluster = Cluster::new();
    cluster.index.remember(&slim(exposing("postfix", PORT)), "default", now, ttl);
    assert!(!cluster.create(exposing("web", PORT)).is_granted());
    cluster.index.expire(now + Duration::from_secs(9));
    assert!(!cluster.create(exposing("web", PORT)).is_granted());
    cluster.index.expire(now + ttl);
    assert_granted(&cluster.create(exposing("web", PORT)));

    cluster.index.remember(&slim(exposing("postfix", PORT)), "default", now, ttl);
    cluster.index.delete(&key(Kind::Pod, "postfix"), None);
    assert_granted(&cluster.create(exposing("web", PORT)));

    cluster.index.remember(&slim(exposing("postfix", PORT)), "default", now, ttl);
    cluster.index.confirm(&slim(pod("postfix", json!({}))));
    assert_granted(&cluster.create(exposing("web", PORT)));
    assert_eq!(cluster.index.holdings_count(), 0);
}

#[test]
fn an_older_version_of_an_object_changes_nothing_and_a_complete_list_always_does() {
    let at = |version: &str, ports: &str| {
        slim(with(exposing("postfix", ports), &[("/metadata/resourceVersion", json!(version))]))
    };
    let mut cluster = Cluster::new();
    cluster.index.apply(&at("20", PORT));
    cluster.index.apply(&at("9", "203.0.113.7:80"));
    cluster.index.confirm(&at("19", "203.0.113.7:80"));
    assert!(!cluster.create(exposing("web", PORT)).is_granted());
    assert_granted(&cluster.create(exposing("web", "203.0.113.7:80")));
    cluster.index.apply(&at("21", "203.0.113.7:80"));
    assert_granted(&cluster.create(exposing("web", PORT)));
    // Versions start again where a store was restored from a backup; the list that follows is what counts.
    cluster.index.reset(Kind::Pod, &[at("3", PORT)]);
    assert!(!cluster.create(exposing("web", PORT)).is_granted());
}

#[test]
fn an_older_version_of_an_owner_or_a_node_changes_nothing_either() {
    let at = |version: &str, mut object: Value| {
        object["metadata"]["resourceVersion"] = json!(version);
        slim(object)
    };
    let replica_set = |uid: &str| {
        let owned = owned_by(workload("ReplicaSet", "web-1", PORT), "Deployment", "web");
        with(owned, &[("/metadata/uid", json!(uid))])
    };
    let mut index = Index::new(Arc::new(Policy::default()));
    let owner = key(Kind::ReplicaSet, "web-1");
    index.apply(&at("20", replica_set("new")));
    index.apply(&at("9", replica_set("old")));
    assert_eq!(index.uid(&owner).as_deref(), Some("new"));
    index.apply(&at("21", replica_set("newer")));
    assert_eq!(index.uid(&owner).as_deref(), Some("newer"));
    index.reset(Kind::ReplicaSet, &[at("3", replica_set("restored"))]);
    assert_eq!(index.uid(&owner).as_deref(), Some("restored"));

    let node = |ready: &str| {
        let condition = json!({"type": "Ready", "status": ready});
        json!({"kind": "Node", "metadata": {"name": "node-1"}, "status": {"conditions": [condition]}})
    };
    index.apply(&at("20", node("False")));
    index.apply(&at("9", node("True")));
    assert_eq!(index.presence("node-1"), Presence::NotReady);
    index.apply(&at("21", node("True")));
    assert_eq!(index.presence("node-1"), Presence::Ready);
    index.reset_nodes(&[at("3", node("False"))]);
    assert_eq!(index.presence("node-1"), Presence::NotReady);
}

#[test]
fn what_was_admitted_is_awaited_until_it_is_found_with_the_ports_it_was_admitted_with() {
    let now = Instant::now();
    let mut cluster = Cluster::new();
    let postfix = key(Kind::Pod, "postfix");
    let admitted = slim(exposing("postfix", PORT));
    assert_eq!(cluster.index.awaited(&postfix, None), None);
    cluster.index.remember(&admitted, "default", now, Duration::from_secs(10));
    assert_eq!(cluster.index.awaited(&postfix, None), Some(now));
    let before = slim(exposing("postfix", "203.0.113.7:80"));
    assert_eq!(cluster.index.awaited(&postfix, Some(&before)), Some(now));
    assert_eq!(cluster.index.awaited(&postfix, Some(&admitted)), None);
    cluster.index.apply(&before);
    assert_eq!(cluster.index.awaited(&postfix, None), Some(now), "an older state does not settle it");
    cluster.index.forget_remembered(&postfix);
    assert_granted(&cluster.create(exposing("web", PORT)));

    cluster.index.remember(&admitted, "default", now, Duration::from_secs(10));
    cluster.index.apply(&admitted);
    assert_eq!(cluster.index.awaited(&postfix, None), None);
    assert_eq!(cluster.index.holdings_count(), 1, "a port that is stored is not counted twice");
}

#[test]
fn a_workload_that_names_its_host_holds_its_ports_there_before_the_node_is_known() {
    let pinned = |name: &str, host: &str| {
        let mut deployment = workload("Deployment", name, "25");
        deployment["spec"]["template"]["spec"] = json!({"nodeSelector": {"kubernetes.io/hostname": host}});
        deployment
    };
    let cluster = Cluster::new().store(pinned("postfix", "node-1"));
    assert!(!cluster.create(pinned("exim", "node-1")).is_granted());
    assert_granted(&cluster.create(pinned("exim", "node-2")));
}

#[test]
fn a_complete_list_replaces_what_was_known_of_a_kind() {
    let mut cluster =
        Cluster::new().store(exposing("a", PORT)).store(workload("Deployment", "d", "203.0.113.7:80"));
    cluster.index.reset(Kind::Pod, &[slim(exposing("b", "203.0.113.7:443"))]);
    assert_granted(&cluster.create(exposing("web", PORT)));
    assert!(!cluster.create(exposing("web", "203.0.113.7:443")).is_granted());
    assert!(!cluster.create(exposing("web", "203.0.113.7:80")).is_granted());
}

#[test]
fn a_finished_job_s_template_and_a_template_at_zero_replicas_differ() {
    let job = with(
        workload("Job", "once", PORT),
        &[("/status", json!({"conditions": [{"type": "Complete", "status": "True"}]}))],
    );
    assert_granted(&Cluster::new().store(job).create(exposing("web", PORT)));
    let scaled_down = with(workload("Deployment", "d", PORT), &[("/spec/replicas", json!(0))]);
    assert!(!Cluster::new().store(scaled_down).create(exposing("web", PORT)).is_granted());
}

#[test]
fn output_keys_that_somebody_forged_change_nothing() {
    let forged = pod(
        "evil",
        json!({"pinhole.dev/effective": r#"{"entries":[{"srcIP":"203.0.113.7","srcPort":25,"dstPort":25}]}"#}),
    );
    let cluster = Cluster::new().store(forged);
    assert_eq!(cluster.index.holdings_count(), 0);
    assert_granted(&cluster.create(exposing("web", PORT)));
}

/// A cluster with claims, whose only pool opens everything.
fn claiming() -> Cluster {
    let mut cluster = Cluster::new();
    let open = json!({"addresses": ["203.0.113.7"], "ports": [{"first": 1, "last": 65535}], "namespaces": {"all": true}});
    let pool = Pool::read("edge", &serde_json::from_value(open).unwrap()).unwrap();
    cluster.index.set_pools(Some([pool].into()));
    cluster
}

fn giving(object: Value, heir: &str) -> Value {
    with(object, &[("/metadata/annotations", json!({"pinhole.dev/transfer-to": heir}))])
}

#[test]
fn what_was_handed_over_is_for_its_heir_to_ask_for_and_for_nobody_else() {
    let blue = || workload("Deployment", "blue", PORT);
    let green = || workload("Deployment", "green", PORT);
    let cluster = claiming().store(blue());
    let decision = cluster.create(green());
    assert_refused(
        &decision,
        "spec.template.metadata.annotations[pinhole.dev/expose][0]: 203.0.113.7:25/tcp: is held by Deployment default/blue \
         (since 2026-11-22T09:00:00Z); choose another external port, remove it there first, or have it handed over (kubectl \
         pinhole transfer deployment/blue --to deployment/green)",
    );
    assert_eq!(decision.evidence, [Evidence::Object(key(Kind::Deployment, "blue"))]);
    let elsewhere = cluster.create(in_namespace(green(), "market"));
    assert!(summary(&elsewhere.violations).ends_with("or remove it there first"), "{elsewhere:?}");

    let cluster = cluster.store(giving(blue(), "Deployment/green"));
    assert_granted(&cluster.create(green()));
    for other in [
        workload("Deployment", "red", PORT),
        workload("StatefulSet", "green", PORT),
        in_namespace(green(), "market"),
    ] {
        assert!(!cluster.create(other).is_granted());
    }
    let cluster = cluster.store(blue());
    assert!(!cluster.create(green()).is_granted(), "it was taken back");
    let abroad = cluster.store(giving(blue(), "Deployment/market/green"));
    assert_granted(&abroad.create(in_namespace(green(), "market")));
    assert!(!abroad.create(green()).is_granted());
}

#[test]
fn whoever_names_a_holder_as_its_heir_has_no_right_to_what_that_one_holds() {
    let cluster = claiming().store(workload("Deployment", "green", PORT));
    let thief = giving(workload("Deployment", "blue", PORT), "Deployment/green");
    assert!(!cluster.create(thief.clone()).is_granted());
    let idle = giving(workload("Deployment", "blue", "203.0.113.7:26"), "Deployment/green");
    let cluster = cluster.store(idle.clone());
    assert!(!cluster.update(idle, thief.clone()).is_granted());

    // One that has had them goes on: its pods may be recreated until the heir's are ready.
    let cluster = claiming().store(thief).store(workload("Deployment", "green", PORT)).store(owned_by(
        workload("ReplicaSet", "blue-1", PORT),
        "Deployment",
        "blue",
    ));
    assert_granted(&cluster.create(owned_by(exposing("blue-1-a", PORT), "ReplicaSet", "blue-1")));
}

#[test]
fn without_claims_and_on_a_nodes_own_address_nothing_is_handed_over() {
    let giver = |ports: &str| giving(workload("Deployment", "blue", ports), "Deployment/green");
    assert!(!Cluster::new().store(giver(PORT)).create(workload("Deployment", "green", PORT)).is_granted());
    let pinned = |object: Value| with(object, &[("/spec/template/spec/nodeName", json!("node-1"))]);
    let cluster = claiming().store(pinned(giver("25")));
    let said = summary(&cluster.create(pinned(workload("Deployment", "green", "25"))).violations);
    assert!(
        said.contains("is held on node node-1 by Deployment default/blue") && !said.contains("transfer"),
        "{said}"
    );
}
