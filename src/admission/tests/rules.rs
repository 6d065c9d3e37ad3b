//! The operator's rules, and to whom they do not apply.

use super::*;

#[test]
fn a_restricted_port_is_refused_on_every_address_and_named_inside_a_range() {
    let cases = [
        (
            "22",
            "22/tcp: is restricted in this cluster (restricted: 22, 53, 6443); choose another external port",
        ),
        (
            "53:5353/udp",
            "53/udp: is restricted in this cluster (restricted: 22, 53, 6443); choose another external port",
        ),
        (
            "203.0.113.7:22:2222",
            "203.0.113.7:22/tcp: is restricted in this cluster (restricted: 22, 53, 6443); choose another external port",
        ),
        (
            "20-25",
            "20-25/tcp: port 22 is restricted in this cluster (restricted: 22, 53, 6443); choose another external port",
        ),
    ];
    for (item, expected) in cases {
        let decision = Cluster::new().create(exposing("web", item));
        assert_refused(&decision, &format!("metadata.annotations[pinhole.dev/expose][0]: {expected}"));
    }
}

#[test]
fn r30_the_pod_s_own_port_may_be_a_restricted_one_and_protocols_differ() {
    assert_granted(&Cluster::new().create(exposing("dns", "5353:53/udp,2222:22")));
    let policy = Policy { restricted_ports: "53/udp, 9000-9100".parse().unwrap(), ..Policy::default() };
    let cluster = Cluster::with_policy(policy);
    assert_granted(&cluster.create(exposing("dns", "53/tcp")));
    assert_refused(
        &cluster.create(exposing("dns", "9050")),
        "metadata.annotations[pinhole.dev/expose][0]: 9050/tcp: is restricted in this cluster as one of 9000-9100 \
         (restricted: 53/udp, 9000-9100); choose another external port",
    );
}

#[test]
fn what_a_node_needs_is_protected_on_its_own_addresses_only() {
    let node = json!({"kind": "Node", "metadata": {"name": "node-1"},
        "status": {"addresses": [{"type": "InternalIP", "address": "203.0.113.1"}]}});
    let cluster = Cluster::new().store(node);
    let expected = |item: &str| {
        format!(
            "metadata.annotations[pinhole.dev/expose][0]: {item}: is protected on every node's own address, because \
             the node itself needs it (10248-10260/tcp); choose another external port"
        )
    };
    assert_refused(&cluster.create(exposing("web", "10250")), &expected("10250/tcp"));
    assert_refused(&cluster.create(exposing("web", "203.0.113.1:10250")), &expected("203.0.113.1:10250/tcp"));
    assert_granted(&cluster.create(exposing("web", "203.0.113.99:10250")));
    assert_granted(&cluster.create(exposing("web", "10250/udp")));
}

#[test]
fn a_namespace_that_is_not_allowed_is_told_which_are() {
    let namespaces = crate::admission::policy::NamespacePolicy {
        names: ["mail".to_owned(), "games".to_owned()].into(),
        selector: "nat=yes".parse().unwrap(),
    };
    let cluster = Cluster::with_policy(Policy { namespaces, ..Policy::default() });
    let decision = cluster.create(exposing("web", "80"));
    assert_refused(
        &decision,
        "metadata.namespace: default: may not publish ports; allowed here: games, mail, and namespaces labelled nat=yes. \
         Deploy into one of these, or ask the cluster's administrator to allow default",
    );
    assert_eq!(decision.evidence, [crate::admission::conflict::Evidence::Namespace("default".to_owned())]);
    let labelled = json!({"kind": "Namespace", "metadata": {"name": "default", "labels": {"nat": "yes"}}});
    assert_granted(&cluster.store(labelled).create(exposing("web", "80")));
}

#[test]
fn r21_a_pod_on_its_node_s_network_is_refused() {
    let pod = with(exposing("web", "80"), &[("/spec/hostNetwork", json!(true))]);
    assert_refused(
        &Cluster::new().create(pod),
        "spec.hostNetwork: true: the pod already listens on its node's own addresses, where NAT has nothing to forward \
         to; remove the annotation, or set hostNetwork to false",
    );
    let deployment =
        with(workload("Deployment", "web", "80"), &[("/spec/template/spec/hostNetwork", json!(true))]);
    assert!(!Cluster::new().create(deployment).is_granted());
}

#[test]
fn every_workload_kind_is_judged_by_its_template() {
    for kind in ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob"] {
        let path = if kind == "CronJob" { "spec.jobTemplate.spec.template" } else { "spec.template" };
        assert_refused(
            &Cluster::new().create(workload(kind, "web", "22")),
            &format!(
                "{path}.metadata.annotations[pinhole.dev/expose][0]: 22/tcp: is restricted in this cluster \
                 (restricted: 22, 53, 6443); choose another external port"
            ),
        );
        assert_granted(&Cluster::new().create(workload(kind, "web", "80")));
    }
}

#[test]
fn what_a_controller_derives_from_its_own_template_is_not_judged_again() {
    assert_granted(&Cluster::new().create(owned_by(
        workload("ReplicaSet", "web-1", "22"),
        "Deployment",
        "web",
    )));
    assert_granted(&Cluster::new().create(owned_by(workload("Job", "web-1", "22"), "CronJob", "web")));
}

#[test]
fn an_update_that_leaves_the_annotation_alone_passes_whatever_the_rules_say_today() {
    let refused = exposing("web", "22");
    let labelled = with(refused.clone(), &[("/metadata/labels", json!({"a": "b"}))]);
    assert_granted(&Cluster::new().update(refused.clone(), labelled));
    let deployment = workload("Deployment", "web", "22");
    let scaled = with(deployment.clone(), &[("/spec/replicas", json!(9))]);
    assert_granted(&Cluster::new().update(deployment, scaled));
    let changed = exposing("web", "53");
    assert!(!Cluster::new().update(refused.clone(), changed).is_granted());
    assert_granted(&Cluster::new().update(refused, pod("web", json!({}))));
}

#[test]
fn deletes_unknown_kinds_mirror_pods_and_plain_pods_pass() {
    let delete = request(Operation::Other, None, Some(exposing("web", "22")));
    assert_granted(&Cluster::new().decide(&delete));
    assert_granted(
        &Cluster::new().create(json!({"kind": "Service", "metadata": {"name": "a", "namespace": "b"}})),
    );
    assert_granted(&Cluster::new().create(pod("web", json!({}))));
    let mirror = pod("web", json!({"pinhole.dev/expose": "22", "kubernetes.io/config.mirror": "x"}));
    assert_granted(&Cluster::new().create(mirror));
}

#[test]
fn a_pinhole_that_asks_by_annotation_is_told_where_its_ports_belong() {
    let pinhole = |annotations: Value| json!({"kind": "Pinhole", "metadata": {"name": "mail", "namespace": "mail", "annotations": annotations}});
    let asking = || pinhole(json!({"pinhole.dev/expose": "25"}));
    let expected = "metadata.annotations[pinhole.dev/expose]: 25: is not read here: a Pinhole names its ports in spec.ports, \
                    and a pod in this annotation";
    let cluster = Cluster::new();
    assert_refused(&cluster.create(asking()), expected);
    assert_refused(&cluster.update(pinhole(json!({})), asking()), expected);
    assert_granted(&cluster.update(asking(), asking()));
    assert_granted(&cluster.create(pinhole(json!({"pinhole.dev/spread": "true", "example.com/note": "25"}))));
    assert_granted(&cluster.decide(&request(Operation::Other, Some(asking()), None)));
}
