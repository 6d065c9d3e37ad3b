//! The readiness gate `pinhole.dev/programmed`: what the condition of a pod says that has it. Pure.
//!
//! A pod is ready when the kernels of the nodes that serve it answer for all of its ports. One that stands by, with its
//! containers ready, behind another pod of its holder is ready, too: it does all that it can, and whoever waited for more would
//! wait for ever, such as a Deployment of two replicas behind one port, or a rollout in which the old pod keeps the port until it
//! is gone. So is one whose ports are suspended: that closes the way from outside, and takes the pod from no Service.
//!
//! # Guarantees
//! - While nobody knows, what was said last stays: a controller or an agent that is away makes no pod unready.
//! - A pod that is about to take over is not ready before the kernel leads to it, so nobody removes the old one too early.

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use serde_json::json;

use crate::api::crd::condition::ConditionStatus;
use crate::api::crd::pinhole::Pinhole;
use crate::api::crd::pinhole::STANDBY;
use crate::api::crd::pinhole::SUSPENDED;
use crate::api::keys;
use crate::api::object::Object;

/// The condition that a pod lacks or has otherwise, by what its Pinhole says; `None` where nothing is to be written.
pub fn condition(pod: &Object, pinhole: &Pinhole, now: Timestamp) -> Option<Value> {
    let mut gates = pod.spec.readiness_gates.iter();
    let has_gate = gates.any(|gate| gate.condition_type == keys::PROGRAMMED_GATE);
    // It may still be about the pod that had this name before.
    let is_its = pinhole.spec.target.pod_uid.as_deref() == Some(&pod.metadata.uid);
    if !has_gate || !is_its || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let conditions = pinhole.status.iter().flat_map(|status| &status.conditions);
    let is_current = |generation| generation == pinhole.metadata.generation;
    let mut programmed = conditions
        .filter(|condition| condition.type_ == "Programmed" && is_current(condition.observed_generation));
    let said = programmed.next()?;
    let status = match said.status {
        ConditionStatus::Unknown => return None,
        ConditionStatus::True => "True",
        ConditionStatus::False if [STANDBY, SUSPENDED].contains(&said.reason.as_str()) => "True",
        ConditionStatus::False => "False",
    };
    let known = pod.status.conditions.iter().find(|known| known.type_ == keys::PROGRAMMED_GATE);
    let unchanged = known.filter(|known| known.status == status);
    if unchanged.is_some_and(|known| known.reason == said.reason) {
        return None;
    }
    let since = unchanged.map_or_else(|| now.to_string(), |known| known.last_transition_time.clone());
    Some(json!({
        "type": keys::PROGRAMMED_GATE,
        "status": status,
        "reason": said.reason,
        "message": said.message,
        "lastTransitionTime": since,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEN: &str = "2026-01-01T00:00:00Z";

    fn now() -> Timestamp {
        "2026-01-01T00:10:00Z".parse().unwrap()
    }

    /// A pod with the gate, whose condition says this.
    fn pod(said: Option<(&str, &str)>) -> Object {
        let condition = said.map(|(status, reason)| {
            json!({"type": "pinhole.dev/programmed", "status": status, "reason": reason, "lastTransitionTime": THEN})
        });
        let ready = json!({"type": "ContainersReady", "status": "True"});
        let conditions: Vec<_> = std::iter::once(ready).chain(condition).collect();
        let gates =
            json!([{"conditionType": "example.com/other"}, {"conditionType": "pinhole.dev/programmed"}]);
        let pod = json!({
            "kind": "Pod", "metadata": {"uid": "1"}, "spec": {"readinessGates": gates}, "status": {"conditions": conditions},
        });
        serde_json::from_value(pod).unwrap()
    }

    fn pinhole(status: &str, reason: &str, observed: i64) -> Pinhole {
        let condition = json!({"type": "Programmed", "status": status, "reason": reason, "message": "why",
            "lastTransitionTime": THEN, "observedGeneration": observed});
        let pinhole = json!({
            "apiVersion": "pinhole.dev/v1alpha1", "kind": "Pinhole",
            "metadata": {"name": "mx", "namespace": "mail", "generation": 2},
            "spec": {"target": {"pod": "mx", "podUID": "1"}, "ports": [{"port": 25}]},
            "status": {"conditions": [condition]},
        });
        serde_json::from_value(pinhole).unwrap()
    }

    #[test]
    fn it_says_what_the_pinhole_says_but_that_a_standby_and_a_suspended_pod_are_ready() {
        let cases = [
            (("True", "Programmed"), Some("True")),
            (("False", "Standby"), Some("True")),
            (("False", "Suspended"), Some("True")),
            (("False", "NotReady"), Some("False")),
            (("False", "PortTaken"), Some("False")),
            (("False", "Unscheduled"), Some("False")),
            (("Unknown", "Waiting"), None),
        ];
        for ((status, reason), expected) in cases {
            let written = condition(&pod(None), &pinhole(status, reason, 2), now());
            let expected = expected.map(|expected| {
                json!({"type": "pinhole.dev/programmed", "status": expected, "reason": reason, "message": "why",
                    "lastTransitionTime": "2026-01-01T00:10:00Z"})
            });
            assert_eq!(written, expected, "{reason}");
        }
    }

    #[test]
    fn what_was_said_stays_while_nobody_knows_and_is_not_said_twice() {
        let ready = pod(Some(("True", "Programmed")));
        for (status, reason, observed) in
            [("Unknown", "Waiting", 2), ("False", "PortTaken", 1), ("True", "Programmed", 2)]
        {
            assert_eq!(condition(&ready, &pinhole(status, reason, observed), now()), None, "{reason}");
        }
        let other = condition(&ready, &pinhole("False", "Standby", 2), now()).unwrap();
        assert_eq!(
            (&other["reason"], &other["lastTransitionTime"]),
            (&json!("Standby"), &json!(THEN)),
            "another reason is no transition"
        );
    }

    #[test]
    fn nothing_is_said_to_pods_without_the_gate_that_are_being_deleted_or_that_it_is_not_about() {
        let mut without = pod(None);
        without.spec.readiness_gates.pop();
        let mut ending = pod(None);
        ending.metadata.deletion_timestamp = Some(THEN.to_owned());
        let mut successor = pod(None);
        successor.metadata.uid = "2".to_owned();
        for pod in [without, ending, successor] {
            assert_eq!(condition(&pod, &pinhole("True", "Programmed", 2), now()), None);
        }
    }
}
