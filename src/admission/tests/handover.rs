//! When ports pass to a pod, as it says.

use super::*;

const KEY: &str = "/metadata/annotations/pinhole.dev~1handover";

#[test]
fn a_pod_says_when_it_takes_over_in_one_of_three_words() {
    let cases = [
        ("WhenReady", None),
        ("WhenGone", None),
        ("Immediate", None),
        ("whengone", Some("is none of WhenReady, WhenGone, Immediate; did you mean WhenGone?")),
        ("later", Some("is none of WhenReady, WhenGone, Immediate")),
    ];
    for (word, problem) in cases {
        let decision = Cluster::new().create(with(exposing("web", "80"), &[(KEY, json!(word))]));
        let said: Vec<_> = decision.violations.iter().map(|violation| violation.problem.as_str()).collect();
        assert_eq!(said, problem.into_iter().collect::<Vec<_>>(), "{word}");
    }
}

#[test]
fn a_change_of_it_is_a_new_request() {
    let old = exposing("web", "22");
    let new = with(old.clone(), &[(KEY, json!("Immediate"))]);
    assert!(Cluster::new().update(old.clone(), old.clone()).is_granted(), "what is there stays");
    assert!(!Cluster::new().update(old, new).is_granted());
}
