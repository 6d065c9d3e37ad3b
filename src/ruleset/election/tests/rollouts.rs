//! Who is served at each step of what happens to the pods of a workload, under each handover.

use super::*;
use crate::model::handover::Handover::Immediate;
use crate::model::handover::Handover::WhenGone;
use crate::model::handover::Handover::WhenReady;

/// The pods of one step, the older one first: `1 ready, 2 starting`.
fn pods(step: &str, handover: Handover) -> Vec<Candidate> {
    let candidate = |text: &str| {
        let (number, state) = text.trim().split_once(' ').unwrap();
        let pod = Candidate { handover, ..pod("web", number.parse().unwrap(), "80") };
        match state {
            "starting" => without_address(pod),
            "unready" => not_ready(pod),
            "ready" => pod,
            "ending" => terminating(pod),
            other => panic!("{other}"),
        }
    };
    step.split(',').filter(|text| !text.is_empty()).map(candidate).collect()
}

/// The pods that are served after each of these steps, each on what the one before left in the kernel.
fn played(steps: &[&str], handover: Handover) -> Vec<String> {
    let mut kernel = Ruleset::default();
    let play = |step: &&str| {
        let elected = elect(&pods(step, handover), &node(), &kernel);
        assert!(elected.losers.is_empty(), "nobody loses to a pod of its own holder");
        kernel = programmed(&elected);
        assert!(elected.endpoints.len() <= 1, "{step}");
        elected.endpoints.iter().map(|endpoint| endpoint.pod.name.replace("web-", "")).collect::<String>()
    };
    steps.iter().map(play).collect()
}

#[test]
fn every_rollout_ends_at_its_new_pod_and_each_handover_has_its_moment() {
    let rolling: &[&str] = &[
        "1 ready",
        "1 ready, 2 starting",
        "1 ready, 2 unready",
        "1 ready, 2 ready",
        "1 ending, 2 ready",
        "2 ready",
    ];
    let broken: &[&str] = &["1 ready", "1 ready, 2 unready", "1 ready, 2 ending", "1 ready"];
    let one_by_one: &[&str] = &["1 ready", "1 ending", "2 starting", "2 unready", "2 ready"];
    let replaced: &[&str] =
        &["1 ready", "1 ending, 2 starting", "1 ending, 2 unready", "1 ending, 2 ready", "2 ready"];
    let two: &[&str] =
        &["1 ready, 2 ready", "1 ready, 2 unready", "1 ready, 2 ready", "1 ready, 2 ending", "1 ready"];
    let failing: &[&str] =
        &["1 ready, 2 ready", "1 ready", "1 ready, 3 starting", "1 unready, 3 ready", "3 ready"];
    let cases: [(&str, &[&str], Handover, &[&str]); 18] = [
        ("a Deployment or DaemonSet with a surge", rolling, WhenReady, &["1", "1", "1", "2", "2", "2"]),
        ("the same", rolling, WhenGone, &["1", "1", "1", "1", "1", "2"]),
        ("the same", rolling, Immediate, &["1", "1", "2", "2", "2", "2"]),
        (
            "a new version that never becomes ready, and is rolled back",
            broken,
            WhenReady,
            &["1", "1", "1", "1"],
        ),
        ("the same", broken, WhenGone, &["1", "1", "1", "1"]),
        ("the same", broken, Immediate, &["1", "2", "1", "1"]),
        ("a StatefulSet, or the strategy Recreate", one_by_one, WhenReady, &["1", "1", "2", "2", "2"]),
        ("the same", one_by_one, WhenGone, &["1", "1", "2", "2", "2"]),
        ("the same", one_by_one, Immediate, &["1", "1", "2", "2", "2"]),
        ("a Job whose old pod is still ending", replaced, WhenReady, &["1", "1", "1", "2", "2"]),
        ("the same", replaced, WhenGone, &["1", "1", "1", "1", "2"]),
        ("the same", replaced, Immediate, &["1", "1", "2", "2", "2"]),
        (
            "two replicas, of which the served one fails, recovers and is drained",
            two,
            WhenReady,
            &["2", "1", "2", "1", "1"],
        ),
        ("the same", two, WhenGone, &["2", "2", "2", "2", "1"]),
        ("the same", two, Immediate, &["2", "2", "2", "1", "1"]),
        (
            "two replicas, of which the served one is deleted by force or ends, and then the next one fails",
            failing,
            WhenReady,
            &["2", "1", "1", "3", "3"],
        ),
        ("the same", failing, WhenGone, &["2", "1", "1", "1", "3"]),
        ("the same", failing, Immediate, &["2", "1", "1", "3", "3"]),
    ];
    for (what, steps, handover, expected) in cases {
        assert_eq!(played(steps, handover), expected, "{what}: {handover}");
    }
}

#[test]
fn the_newest_pod_that_is_to_stay_says_how_its_holder_hands_over() {
    let with = |pod: Candidate, handover| Candidate { handover, ..pod };
    let [old, new] = [pod("web", 1, "80"), not_ready(pod("web", 2, "80"))];
    let before = only(&old);
    let rollout = [with(old.clone(), WhenReady), with(new.clone(), Immediate)];
    assert_eq!(served(&rollout, &before), ["web-2"], "a new template counts as soon as it has a pod");
    let rolled_back = [with(old, WhenReady), terminating(with(new, Immediate))];
    assert_eq!(served(&rolled_back, &before), ["web-1"]);
}
