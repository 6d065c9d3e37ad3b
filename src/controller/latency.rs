//! How long pods wait for their ports, from times that are stored, so that it does not matter which replica leads, or how often it was
//! restarted. Pure.
//!
//! The API server and the controller write such times in whole seconds, so each is up to a second too long.

use k8s_openapi::jiff::SignedDuration;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use crate::api::crd::condition::Condition;
use crate::api::crd::condition::ConditionStatus;
use crate::api::crd::pinhole::Pinhole;
use crate::api::crd::pinhole::PinholeStatus;
use crate::api::keys;
use crate::api::object::Object;

/// How long a pod has waited to be told of ports for the first time, once this patch of it is written: since it was created, where it
/// waits for them at its gate, else since it has a node. None where it was told before, as the webhook tells of fixed addresses.
pub fn grant(pod: &Object, patch: &Value, now: Timestamp) -> Option<SignedDuration> {
    let annotations = &pod.metadata.annotations;
    let is_told = patch["metadata"]["annotations"][keys::ENDPOINTS].is_string();
    if !is_told || annotations.contains_key(keys::ENDPOINTS) {
        return None;
    }
    let is_gated = pod.spec.scheduling_gates.iter().any(|gate| gate.name == keys::ENDPOINTS_GATE);
    let since = if is_gated { None } else { since(pod, "PodScheduled") };
    Some(elapsed(since.or_else(|| pod.metadata.creation_timestamp.parse().ok())?, now))
}

/// How long a pod has waited, with ports and with an address, for its nodes to say that they serve it, once this status of its Pinhole
/// is written. None where nothing was to be programmed, as for a standby that takes over.
pub fn programmed(
    stored: &Pinhole,
    pod: &Object,
    written: &PinholeStatus,
    now: Timestamp,
) -> Option<SignedDuration> {
    let before = stored.status.as_ref().filter(|status| is_of(status, pod))?;
    let (before, after) = (
        Condition::find(&before.conditions, "Programmed")?,
        Condition::find(&written.conditions, "Programmed")?,
    );
    let was_waiting = before.status != ConditionStatus::True
        && matches!(before.reason.as_str(), "Waiting" | "NoAddress")
        && after.status == ConditionStatus::True;
    if !was_waiting {
        return None;
    }
    // Where the kubelet does not say since when the pod has its address, the wait for that is in it.
    let since =
        since(pod, "PodReadyToStartContainers").into_iter().chain([before.last_transition_time]).max()?;
    Some(elapsed(since, now))
}

/// Whether a status is about this pod, and not about one that had the name before.
fn is_of(status: &PinholeStatus, pod: &Object) -> bool {
    status.targets.first().is_some_and(|target| target.pod_uid == pod.metadata.uid)
}

/// Since when a pod's own condition is true.
fn since(pod: &Object, type_: &str) -> Option<Timestamp> {
    pod.true_condition(type_)?.last_transition_time.parse().ok()
}

/// Nothing ends before it began, whatever the clocks say.
fn elapsed(since: Timestamp, now: Timestamp) -> SignedDuration {
    now.duration_since(since).max(SignedDuration::ZERO)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_767_225_600 + second).unwrap()
    }

    #[expect(clippy::needless_pass_by_value, reason = "literal JSON at every call")]
    fn pod(changes: Value) -> Object {
        let mut pod = json!({"kind": "Pod", "metadata": {"namespace": "mail", "name": "mx", "uid": "uid-mx",
            "creationTimestamp": "2026-01-01T00:00:00Z"}});
        json_patch::merge(&mut pod, &changes);
        serde_json::from_value(pod).unwrap()
    }

    fn said(type_: &str, second: i64) -> Value {
        json!({"type": type_, "status": "True", "lastTransitionTime": at(second).to_string()})
    }

    #[test]
    fn a_grant_is_measured_once_from_when_it_was_possible() {
        let patch = json!({"metadata": {"annotations": {"pinhole.dev/endpoints": "[]"}}});
        let gated = json!({"spec": {"schedulingGates": [{"name": "pinhole.dev/endpoints"}]}});
        let bound = json!({"status": {"conditions": [said("PodScheduled", 20)]}});
        let told = json!({"metadata": {"annotations": {"pinhole.dev/endpoints": "[]"}}});
        let cases = [
            ("at its gate", gated, &patch, Some(30)),
            ("of its node's own address", bound, &patch, Some(10)),
            ("with nothing that tells more", json!({}), &patch, Some(30)),
            ("told before", told, &patch, None),
            (
                "told of nothing",
                json!({}),
                &json!({"metadata": {"annotations": {"pinhole.dev/endpoints": null}}}),
                None,
            ),
        ];
        for (name, changes, patch, expected) in cases {
            let measured = grant(&pod(changes), patch, at(30));
            assert_eq!(measured, expected.map(SignedDuration::from_secs), "{name}");
        }
        assert_eq!(
            grant(&pod(json!({})), &patch, at(-5)),
            Some(SignedDuration::ZERO),
            "a clock that is behind"
        );
    }

    #[test]
    fn programming_is_measured_from_when_the_pod_had_ports_and_an_address() {
        let status = |uid: &str, status: &str, reason: &str, second: i64| {
            let status = json!({"targets": [{"pod": "mx", "podUID": uid, "addresses": [], "active": true}],
                "conditions": [{"type": "Programmed", "status": status, "reason": reason,
                    "lastTransitionTime": at(second).to_string()}]});
            serde_json::from_value::<PinholeStatus>(status).unwrap()
        };
        let started = || json!({"status": {"conditions": [said("PodReadyToStartContainers", 20)]}});
        let cases = [
            ("granted first", status("uid-mx", "False", "NoAddress", 5), started(), Some(10)),
            ("with its address first", status("uid-mx", "Unknown", "Waiting", 25), started(), Some(5)),
            ("of an older kubelet", status("uid-mx", "Unknown", "Waiting", 5), json!({}), Some(25)),
            ("a standby that takes over", status("uid-mx", "False", "Standby", 5), started(), None),
            ("programmed already", status("uid-mx", "True", "Programmed", 5), started(), None),
            (
                "of a pod that had the name before",
                status("uid-old", "Unknown", "Waiting", 5),
                started(),
                None,
            ),
        ];
        let after = status("uid-mx", "True", "Programmed", 30);
        for (name, before, changes, expected) in cases {
            let mut stored = Pinhole::new("mx", crate::api::crd::pinhole::PinholeSpec::default());
            stored.status = Some(before);
            let measured = programmed(&stored, &pod(changes), &after, at(30));
            assert_eq!(measured, expected.map(SignedDuration::from_secs), "{name}");
        }
    }
}
