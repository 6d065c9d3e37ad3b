//! When ports pass to a pod, and what becomes of flows then, as it says.

use super::*;

const KEY: &str = "/metadata/annotations/pinhole.dev~1handover";
const OF_UDP: &str = "/metadata/annotations/pinhole.dev~1udp-handover";

#[test]
fn a_pod_says_when_it_takes_over_and_what_becomes_of_flows_in_one_of_a_few_words() {
    let cases = [
        (KEY, "WhenReady", None),
        (KEY, "WhenGone", None),
        (KEY, "Immediate", None),
        (KEY, "whengone", Some("is none of WhenReady, WhenGone, Immediate; did you mean WhenGone?")),
        (KEY, "later", Some("is none of WhenReady, WhenGone, Immediate")),
        (OF_UDP, "Drain", None),
        (OF_UDP, "Cut", None),
        (OF_UDP, "cut", Some("is none of Drain, Cut; did you mean Cut?")),
    ];
    for (key, word, problem) in cases {
        let decision = Cluster::new().create(with(exposing("web", "80"), &[(key, json!(word))]));
        let said: Vec<_> = decision.violations.iter().map(|violation| violation.problem.as_str()).collect();
        assert_eq!(said, problem.into_iter().collect::<Vec<_>>(), "{word}");
    }
}

#[test]
fn a_change_of_either_is_a_new_request() {
    let old = exposing("web", "22");
    assert!(Cluster::new().update(old.clone(), old.clone()).is_granted(), "what is there stays");
    for (key, word) in [(KEY, "Immediate"), (OF_UDP, "Cut")] {
        let new = with(old.clone(), &[(key, json!(word))]);
        assert!(!Cluster::new().update(old.clone(), new).is_granted(), "{key}");
    }
}
