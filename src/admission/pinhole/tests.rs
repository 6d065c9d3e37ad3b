//! What users' Pinholes ask for, hold and are refused for.

use std::sync::Arc;

use serde_json::Value;
use serde_json::json;

use super::*;
use crate::admission::Decision;
use crate::admission::Operation;
use crate::admission::Request;
use crate::admission::World;
use crate::admission::decide;
use crate::admission::index::Index;
use crate::admission::policy::Policy;
use crate::admission::reservation;
use crate::allocation::pool::Pool;
use crate::api::object::Object;

fn spec(spec: Value) -> PinholeSpec {
    serde_json::from_value(spec).unwrap()
}

/// A Pinhole to the Service web; `changes` is merged into its spec.
#[expect(clippy::needless_pass_by_value, reason = "literal JSON at every call")]
fn web(changes: Value) -> PinholeSpec {
    let mut json =
        json!({"target": {"service": "web"}, "addresses": ["203.0.113.7"], "ports": [{"port": 443}]});
    json_patch::merge(&mut json, &changes);
    spec(json)
}

fn object(name: &str, spec: PinholeSpec) -> Object {
    let metadata = json!({"name": name, "namespace": "shop", "uid": format!("uid-{name}"),
        "ownerReferences": [{"kind": "Deployment", "name": "theirs", "uid": "d", "controller": true}]});
    let object: Object = serde_json::from_value(json!({"kind": "Pinhole", "metadata": metadata})).unwrap();
    Object { pinhole: Some(Box::new(spec)), ..object }
}

fn create(object: &Object) -> Request {
    Request {
        operation: Operation::Create,
        namespace: "shop".to_owned(),
        object: Some(object.clone()),
        old_object: None,
    }
}

fn judged(request: &Request, index: &Index) -> Decision {
    decide(request, &World { policy: &Policy::default(), index })
}

fn index() -> Index {
    Index::new(Arc::new(Policy::default()))
}

fn pool(name: &str, address: &str) -> Pool {
    let spec =
        json!({"addresses": [address], "namespaces": {"all": true}, "ports": [{"first": 1, "last": 65535}]});
    Pool::read(name, &serde_json::from_value(spec).unwrap()).unwrap()
}

fn said(decision: &Decision) -> Vec<String> {
    decision.violations.iter().map(ToString::to_string).collect()
}

#[test]
fn each_address_gets_each_port_and_a_port_can_have_an_address_of_its_own() {
    let spec = web(json!({
        "addresses": ["203.0.113.7", "2001:db8::7"], "allowedSources": ["192.0.2.0/24"],
        "ports": [{"port": 443, "targetPort": "https"},
                  {"port": 7000, "portEnd": 7010, "protocol": "UDP", "targetPort": 9000, "address": "203.0.113.8",
                   "allowedSources": ["198.51.100.0/24"], "terminateExisting": true}],
    }));
    let (forwards, violations) = forwards(&spec);
    assert_eq!(violations, []);
    let shown = |forward: &Forward| {
        let Located { mapping, port_field, address_field, .. } = &forward.located;
        let sources: Vec<_> = mapping.allowed_sources().iter().map(ToString::to_string).collect();
        format!(
            "{} {mapping} -> {} {} {port_field} {address_field}",
            forward.port,
            mapping.target(),
            sources.join(",")
        )
    };
    assert_eq!(
        forwards.iter().map(shown).collect::<Vec<_>>(),
        [
            "0 203.0.113.7:443/tcp -> 443 192.0.2.0/24 spec.ports[0].port spec.addresses[0]",
            "0 [2001:db8::7]:443/tcp -> 443 192.0.2.0/24 spec.ports[0].port spec.addresses[1]",
            "1 203.0.113.8:7000-7010/udp -> 9000-9010 198.51.100.0/24 spec.ports[1].port spec.ports[1].address",
        ]
    );
    let terminates = |forward: &Forward| forward.located.mapping.terminates_existing();
    assert_eq!(forwards.iter().map(terminates).collect::<Vec<_>>(), [false, false, true]);
}

#[test]
fn what_cannot_work_is_refused_with_its_place_and_what_to_do() {
    let cases = [
        (json!({"addresses": null}), "spec.addresses: is needed for ports without an address of their own"),
        (json!({"addresses": ["127.0.0.1"]}), "spec.addresses[0]: 127.0.0.1: is a loopback address"),
        (json!({"ports": [{"targetPort": 80}]}), "spec.ports[0].port: is needed"),
        (json!({"ports": [{"port": 7010, "portEnd": 7000}]}), "spec.ports[0].port: 7010-7000: are no ports"),
        (
            json!({"ports": [{"port": 7000, "portEnd": 7010, "targetPort": 65530}]}),
            "65525 is the highest first port",
        ),
        (
            json!({"ports": [{"port": 7000, "portEnd": 7010, "targetPort": "rtp"}]}),
            "a range leads to ports by number",
        ),
        (
            json!({"target": {"service": null, "podSelector": {"matchLabels": {"a": "b"}}},
                "ports": [{"port": 80, "targetPort": "http"}]}),
            "spec.ports[0].targetPort: http: is a name",
        ),
        (
            json!({"allowedSources": ["192.0.2.1"]}),
            "spec.allowedSources[0]: 192.0.2.1: is one address, not a network",
        ),
        (
            json!({"ports": [{"port": 1024}, {"port": 1000, "portEnd": 1100}]}),
            "spec.ports[1].port: 203.0.113.7:1000-1100",
        ),
        (
            json!({"ports": [{"port": 22}]}),
            "spec.ports[0].port: 203.0.113.7:22/tcp: is restricted in this cluster",
        ),
    ];
    for (changes, expected) in cases {
        let said = said(&judged(&create(&object("web", web(changes.clone()))), &index()));
        assert!(said.len() == 1 && said[0].contains(expected), "{changes}: {said:?}");
    }
}

#[test]
fn one_object_never_asks_for_a_port_twice() {
    let twice = web(json!({"ports": [{"port": 443}, {"port": 443, "address": "203.0.113.7"}]}));
    assert_eq!(
        said(&judged(&create(&object("web", twice)), &index())),
        [
            "spec.ports[1].port: 203.0.113.7:443/tcp: is asked for twice by this Pinhole; remove one of the two"
        ]
    );
}

#[test]
fn a_pinhole_holds_its_ports_itself_whatever_owners_it_names() {
    let mut index = index();
    let first = object("web", web(json!({})));
    let request = create(&first);
    let decision = judged(&request, &index);
    let claims =
        reservation::claims(&request, &decision, &index, k8s_openapi::jiff::Timestamp::UNIX_EPOCH).unwrap();
    let said: Vec<_> = claims.iter().map(|claim| format!("{} {}", claim.key, claim.holder)).collect();
    assert_eq!(said, ["v4-203-0-113-7-tcp-443 Pinhole shop/web"]);

    index.apply(&first);
    let second = judged(&create(&object("shop", web(json!({})))), &index);
    assert!(second.violations[0].to_string().contains("is held by Pinhole shop/web"), "{second:?}");
    assert!(!second.evidence.is_empty(), "a refusal is confirmed by a live read");
    let pod = json!({"kind": "Pod", "metadata": {"name": "mx", "namespace": "mail",
        "annotations": {"pinhole.dev/expose": "203.0.113.7:443"}}});
    let pod = judged(&create(&serde_json::from_value(pod).unwrap()), &index);
    assert!(pod.violations[0].to_string().contains("is held by Pinhole shop/web"), "{pod:?}");
}

#[test]
fn a_pinhole_of_the_controller_asks_for_nothing_by_itself() {
    let theirs = spec(json!({"target": {"pod": "mx"}, "ports": [{"port": 25, "address": "203.0.113.7"}]}));
    let mut index = index();
    let theirs = object("mx", theirs);
    assert_eq!(judged(&create(&theirs), &index), Decision::default());
    index.apply(&theirs);
    assert_eq!(index.holdings_count(), 0);
}

#[test]
fn what_was_admitted_once_can_be_suspended_whatever_the_rules_say_now() {
    let before = web(json!({"ports": [{"port": 22}]}));
    let update = |after: PinholeSpec| Request {
        operation: Operation::Update,
        old_object: Some(object("web", before.clone())),
        ..create(&object("web", after))
    };
    let suspended = web(json!({"ports": [{"port": 22}], "suspended": true}));
    assert!(judged(&update(suspended), &index()).is_granted());
    let more = web(json!({"ports": [{"port": 22}, {"port": 80}]}));
    assert!(!judged(&update(more), &index()).is_granted());
}

#[test]
fn a_pool_that_is_named_must_be_the_one_that_grants() {
    let mut index = index();
    index.set_pools(Some(
        [pool("a", "203.0.113.7"), pool("b", "203.0.113.7"), pool("c", "203.0.113.9")].into(),
    ));
    let pools = |changes| judged(&create(&object("web", web(changes))), &index);
    assert_eq!(pools(json!({})).pools, [Some("a".to_owned())]);
    assert_eq!(pools(json!({"pool": "b"})).pools, [Some("b".to_owned())]);
    let cases = [
        (
            json!({"pool": "c"}),
            "is not granted by NatPool c, which spec.pool names, but by a; write that, or leave pool out",
        ),
        (
            json!({"addresses": ["203.0.113.8"]}),
            "is on 203.0.113.8, which no NatPool has; this namespace may use a",
        ),
    ];
    for (changes, expected) in cases {
        let said = said(&pools(changes));
        assert!(said.len() == 1 && said[0].contains(expected), "{said:?}");
    }
}
