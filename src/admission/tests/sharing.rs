//! Whether further pods of a holder are meant.

use super::*;

const PORT: &str = "203.0.113.7:25";
const REFUSED: &str = "spec.template.metadata.annotations[pinhole.dev/sharing]: Exclusive: keeps 203.0.113.7:25/tcp to one pod, and";
const ADVICE: &str = "; ask for one, or write ActiveStandby if the others are to stand by";

/// A workload whose template says this of sharing.
fn sharing(kind: &str, ports: &str, word: &str, changes: &[(&str, Value)]) -> Value {
    let annotations = json!({"pinhole.dev/expose": ports, "pinhole.dev/sharing": word});
    let template = if kind == "CronJob" { "/spec/jobTemplate/spec/template" } else { "/spec/template" };
    with(
        with(workload(kind, "web", ports), &[(&format!("{template}/metadata/annotations"), annotations)]),
        changes,
    )
}

fn three(kind: &str, word: &str) -> Value {
    sharing(kind, PORT, word, &[("/spec/replicas", json!(3))])
}

#[test]
fn that_others_stand_by_is_meant_where_a_template_says_so_and_told_where_it_says_nothing() {
    let silent = with(workload("Deployment", "web", PORT), &[("/spec/replicas", json!(3))]);
    let told = "203.0.113.7:25/tcp reaches one pod at a time, the newest ready one, not all 3 replicas";
    for (object, expected) in [(silent, vec![told]), (three("Deployment", "ActiveStandby"), vec![])] {
        let decision = Cluster::new().create(object);
        assert_granted(&decision);
        assert_eq!(decision.warnings, expected);
    }
    let pods = with(workload("Job", "web", PORT), &[("/spec/parallelism", json!(2))]);
    assert_eq!(
        Cluster::new().create(pods).warnings,
        ["203.0.113.7:25/tcp reaches one pod at a time, the newest ready one, not all 2 pods"]
    );
}

#[test]
fn a_template_that_makes_several_pods_for_an_exclusive_port_is_refused() {
    for kind in ["Deployment", "StatefulSet", "ReplicaSet"] {
        assert_refused(
            &Cluster::new().create(three(kind, "Exclusive")),
            &format!("{REFUSED} 3 replicas are asked for{ADVICE}"),
        );
    }
    let parallel = sharing("Job", PORT, "Exclusive", &[("/spec/parallelism", json!(2))]);
    assert_refused(&Cluster::new().create(parallel), &format!("{REFUSED} parallelism is 2{ADVICE}"));
    let parallel = sharing("CronJob", PORT, "Exclusive", &[("/spec/jobTemplate/spec/parallelism", json!(2))]);
    let said = summary(&Cluster::new().create(parallel).violations);
    assert!(said.contains("and parallelism is 2; ask for one"), "{said}");
    assert_refused(
        &Cluster::new().create(sharing("DaemonSet", PORT, "Exclusive", &[])),
        &format!("{REFUSED} a DaemonSet makes one on each node{ADVICE}"),
    );
    let pinned = json!({"nodeSelector": {"kubernetes.io/hostname": "edge-1"}});
    let one = [
        sharing("DaemonSet", PORT, "Exclusive", &[("/spec/template/spec", pinned)]),
        sharing("Deployment", PORT, "Exclusive", &[]),
        sharing("Job", PORT, "Exclusive", &[]),
        with(exposing("web", PORT), &[("/metadata/annotations/pinhole.dev~1sharing", json!("Exclusive"))]),
    ];
    for object in one {
        let decision = Cluster::new().create(object);
        assert_granted(&decision);
        assert_eq!(decision.warnings, [""; 0]);
    }
}

#[test]
fn an_exclusive_port_is_asked_about_again_when_its_template_makes_more_pods() {
    let scaled =
        |replicas: i64| sharing("Deployment", PORT, "Exclusive", &[("/spec/replicas", json!(replicas))]);
    let update = |old, new| Cluster::new().update(scaled(old), scaled(new)).is_granted();
    assert!(!update(1, 2) && !update(2, 3) && update(3, 2) && update(2, 2) && update(0, 1));
    let shared =
        |replicas: i64| sharing("Deployment", "22", "ActiveStandby", &[("/spec/replicas", json!(replicas))]);
    assert_granted(&Cluster::new().update(shared(1), shared(3)));
    // A change of the word is a new request.
    assert!(
        !Cluster::new()
            .update(three("Deployment", "ActiveStandby"), three("Deployment", "Exclusive"))
            .is_granted()
    );
}

#[test]
fn a_pod_of_a_rollout_waits_for_its_turn_and_is_never_refused_for_it() {
    let key = "/metadata/annotations/pinhole.dev~1sharing";
    let member = |name: &str| {
        owned_by(with(exposing(name, PORT), &[(key, json!("Exclusive"))]), "ReplicaSet", "web-1")
    };
    let cluster = Cluster::new().store(member("web-1-a"));
    assert_granted(&cluster.create(member("web-1-b")));
}

#[test]
fn a_word_that_means_nothing_is_refused_and_one_without_effect_told() {
    let said = summary(&Cluster::new().create(three("Deployment", "exclusive")).violations);
    assert_eq!(
        said,
        "spec.template.metadata.annotations[pinhole.dev/sharing]: exclusive: is none of Exclusive, ActiveStandby; did you mean \
         Exclusive?"
    );
    let vain =
        "pinhole.dev/sharing: Exclusive has no effect: no port of a fixed address is shared by the pods";
    for ports in ["25", "203.0.113.7:30000+{ordinal}:80"] {
        let decision = Cluster::new().create(sharing(
            "StatefulSet",
            ports,
            "Exclusive",
            &[("/spec/replicas", json!(2))],
        ));
        assert_granted(&decision);
        assert_eq!(decision.warnings, [vain], "{ports}");
    }
}
