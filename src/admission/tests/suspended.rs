//! Pods whose ports are closed without being given up.

use super::*;

const KEY: &str = "/metadata/annotations/pinhole.dev~1suspended";
const IN_TEMPLATE: &str = "/spec/template/metadata/annotations/pinhole.dev~1suspended";

#[test]
fn a_pod_or_template_says_so_in_one_of_two_words() {
    let cases = [
        ("true", None),
        ("false", None),
        ("True", Some("is none of true, false; did you mean true?")),
        ("yes", Some("is none of true, false")),
        ("", Some("is none of true, false")),
    ];
    for (word, problem) in cases {
        for object in [
            with(exposing("web", "80"), &[(KEY, json!(word))]),
            with(workload("Deployment", "web", "80"), &[(IN_TEMPLATE, json!(word))]),
        ] {
            let decision = Cluster::new().create(object);
            let said: Vec<_> = decision.violations.iter().map(|each| each.problem.as_str()).collect();
            assert_eq!(said, problem.into_iter().collect::<Vec<_>>(), "{word}");
            assert_eq!(decision.warnings, Vec::<String>::new());
        }
    }
}

#[test]
fn what_was_admitted_once_can_be_suspended_whatever_the_rules_say_now() {
    let says = |word: &str| with(exposing("web", "22"), &[(KEY, json!(word))]);
    let open = exposing("web", "22");
    let template = |object: Value| with(workload("Deployment", "web", "22"), &[(IN_TEMPLATE, object)]);
    let cases = [
        (open.clone(), says("true"), ""),
        (says("true"), open.clone(), ""),
        (says("true"), says("false"), ""),
        (template(json!("false")), template(json!("true")), ""),
        (says("no"), says("no"), ""),
        (open, says("no"), "metadata.annotations[pinhole.dev/suspended]: no: is none of true, false"),
        (
            template(json!("true")),
            template(json!("never")),
            "spec.template.metadata.annotations[pinhole.dev/suspended]: never: is none of true, false",
        ),
        (pod("web", json!({})), pod("web", json!({"pinhole.dev/suspended": "no"})), ""),
    ];
    for (old, new, expected) in cases {
        let decision = Cluster::new().update(old, new);
        let said: Vec<_> = decision.violations.iter().map(ToString::to_string).collect();
        assert_eq!(said.join("; "), expected);
        assert_eq!(decision.mappings, [], "it asks for nothing new");
    }
}

#[test]
fn a_suspended_pod_keeps_its_port_from_others() {
    let suspended = with(exposing("web", "203.0.113.7:80"), &[(KEY, json!("true"))]);
    let decision = Cluster::new().store(suspended).create(exposing("other", "203.0.113.7:80"));
    assert!(summary(&decision.violations).contains("is held by Pod default/web"), "{decision:?}");
}
