//! What the mutating webhook writes.

use proptest::prelude::*;

use super::*;

/// An object as it is after the patch, in a cluster of which nothing is known.
pub(super) fn mutated(operation: Operation, object: &Value) -> Value {
    Cluster::new().mutated(operation, object)
}

#[test]
fn every_default_is_written_out_beside_the_user_s_own_key() {
    let object = nat(
        r#"{"srcPort":25,"dstPort":25},{"srcIP":"2001:db8::1","srcPort":7000,"srcPortEnd":7002,"dstPort":7000,"proto":"UDP","allowedSources":["2001:db8::/32"]}"#,
    );
    let patched = mutated(Operation::Create, &object);
    let annotations = &patched["metadata"]["annotations"];
    assert_eq!(
        annotations["pinhole.dev/effective"],
        concat!(
            r#"{"entries":[{"ifaceAuto":true,"srcPort":25,"dstPort":25,"proto":"tcp"},"#,
            r#"{"ifaceAuto":false,"srcIP":"2001:db8::1","srcPort":7000,"srcPortEnd":7002,"dstPort":7000,"proto":"udp","#,
            r#""allowedSources":["2001:db8::/32"]}]}"#
        )
    );
    assert_eq!(annotations["pinhole.dev/nat"], object["metadata"]["annotations"]["pinhole.dev/nat"]);
    let holder = &patched["metadata"]["labels"]["pinhole.dev/port-tcp-25"];
    assert_eq!(
        patched["metadata"]["labels"],
        json!({"pinhole.dev/enabled": "true", "pinhole.dev/port-tcp-25": holder}),
        "the ports of a fixed address are unique without the scheduler"
    );
}

#[test]
fn output_keys_that_a_user_sends_are_replaced_or_dropped() {
    let forged = pod(
        "web",
        json!({"pinhole.dev/expose": "80", "pinhole.dev/effective": "forged", "pinhole.dev/endpoints": "forged"}),
    );
    let labels = json!({"pinhole.dev/enabled": "maybe", "pinhole.dev/port-tcp-80": "forged",
        "pinhole.dev/port-tcp-81": "forged", "app": "web"});
    let forged = with(forged, &[("/metadata/labels", labels)]);
    let patched = mutated(Operation::Create, &forged);
    let honest = mutated(Operation::Create, &exposing("web", "80"));
    let holder = &honest["metadata"]["labels"]["pinhole.dev/port-tcp-80"];
    assert_eq!(
        patched["metadata"]["labels"],
        json!({"pinhole.dev/enabled": "true", "pinhole.dev/port-tcp-80": holder, "app": "web"})
    );
    assert!(patched["metadata"]["annotations"].get("pinhole.dev/endpoints").is_none());
    assert_ne!(patched["metadata"]["annotations"]["pinhole.dev/effective"], "forged");

    let unreadable = with(forged, &[("/metadata/annotations/pinhole.dev~1expose", json!("http"))]);
    let patched = mutated(Operation::Create, &unreadable);
    assert!(patched["metadata"]["annotations"].get("pinhole.dev/effective").is_none());
    assert_eq!(patched["metadata"]["labels"], json!({"app": "web"}));
}

#[test]
fn a_new_pod_is_told_its_ports_of_fixed_addresses_where_they_are_claimed() {
    let told = |policy: &Policy, operation, object: &Value| {
        let patched = Cluster::with_policy(policy.clone()).mutated(operation, object);
        patched["metadata"]["annotations"].get("pinhole.dev/endpoints").cloned()
    };
    let claims = Policy::default();
    let object = exposing("web", "443,203.0.113.7:25,[2001:db8::1]:7000-7002:9000/udp,auto:80");
    let expected = concat!(
        r#"[{"address":"203.0.113.7","protocol":"TCP","port":25,"targetPort":25},"#,
        r#"{"address":"2001:db8::1","protocol":"UDP","port":7000,"portEnd":7002,"targetPort":9000}]"#
    );
    assert_eq!(told(&claims, Operation::Create, &object), Some(json!(expected)));
    let forged = with(object.clone(), &[("/metadata/annotations/pinhole.dev~1endpoints", json!("forged"))]);
    assert_eq!(told(&claims, Operation::Create, &forged), Some(json!(expected)));
    assert_eq!(told(&claims, Operation::Update, &object), None, "from then on the controller tells it");
    let unclaimed = Policy { finds_ports: false, ..Policy::default() };
    let object = exposing("web", "203.0.113.7:25");
    assert_eq!(told(&unclaimed, Operation::Create, &object), None, "nobody has granted anything");
}

#[test]
fn a_new_pod_is_told_the_address_that_the_outside_connects_to() {
    let mut cluster = Cluster::new();
    cluster.set_pool(json!({
        "addresses": ["203.0.113.7"], "advertisedAddresses": [{"address": "203.0.113.7", "advertised": "198.51.100.7"}],
    }));
    let object = cluster.mutated(Operation::Create, &exposing("web", "203.0.113.7:25"));
    let expected = concat!(
        r#"[{"address":"203.0.113.7","advertisedAddress":"198.51.100.7","protocol":"TCP","port":25,"#,
        r#""targetPort":25}]"#
    );
    assert_eq!(object["metadata"]["annotations"]["pinhole.dev/endpoints"], expected);
}

#[test]
fn removing_the_request_removes_the_output() {
    let once = mutated(Operation::Create, &exposing("web", "80"));
    let mut removed = once;
    removed["metadata"]["annotations"].as_object_mut().unwrap().remove("pinhole.dev/expose");
    let patched = mutated(Operation::Update, &removed);
    assert_eq!(patched["metadata"]["annotations"], json!({}));
    assert_eq!(patched["metadata"]["labels"], json!({}));
}

#[test]
fn workloads_plain_pods_and_deletes_are_left_alone() {
    let cases = [
        request(Operation::Create, Some(workload("Deployment", "web", "80")), None),
        request(Operation::Create, Some(pod("web", json!({}))), None),
        request(Operation::Other, None, Some(exposing("web", "80"))),
    ];
    for request in cases {
        assert_eq!(Cluster::new().mutate(&request), None);
    }
}

proptest! {
    #[test]
    fn every_patch_applies_and_a_second_call_finds_nothing_to_do(
        text in prop_oneof![any::<String>(), Just("80,443".to_owned()), Just("203.0.113.7:53/udp".to_owned())],
        forged in any::<bool>(),
        labelled in any::<bool>(),
        annotated in any::<bool>(),
        create in any::<bool>(),
    ) {
        let mut object = if annotated { exposing("web", &text) } else { pod("web", Value::Null) };
        if forged && annotated {
            object = with(object, &[("/metadata/annotations/pinhole.dev~1effective", json!(text))]);
        }
        if labelled {
            object = with(object, &[("/metadata/labels", json!({"pinhole.dev/enabled": text}))]);
        }
        let operation = if create { Operation::Create } else { Operation::Update };
        let once = mutated(operation, &object);
        let again = request(operation, Some(once), None);
        prop_assert_eq!(Cluster::new().mutate(&again), None);
    }
}
