//! Which workloads are woken, whose pods were refused or could not be decided about. Pure.
//!
//! After a refusal a workload's controller waits, twice as long each time and up to a quarter of an hour. Whatever changes the
//! workload makes it look at once. So one whose pods would be admitted by now is changed, and nothing else is done about it.
//!
//! # Guarantees
//! - A workload is woken at once when what stood in its way is gone: its port was freed, or the webhook answers again.
//! - Otherwise it is woken again after ever longer, so that one that lacks pods for a reason of its own is hardly disturbed.
//! - Nobody is woken to be refused.

use std::collections::BTreeMap;

use k8s_openapi::jiff::SignedDuration;
use k8s_openapi::jiff::Timestamp;

use crate::admission::index::ObjectKey;
use crate::api::object::Kind;
use crate::api::object::Metadata;
use crate::api::object::Object;
use crate::api::object::OwnerReference;
use crate::cluster::lacking_workloads::LackingWorkloads;
use crate::controller::standing;
use crate::controller::standing::Known;
use crate::controller::standing::Standing;
use crate::controller::standing::Verdict;
use crate::model::holder::ObjectName;

/// How long a workload may lack pods before it is woken for the first time: making pods takes a moment.
const FIRST_PAUSE: SignedDuration = SignedDuration::from_secs(10);

/// The longest time until it is woken again.
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_mins(5);

/// The most that are woken in one turn: after an outage many wait, and each of them makes pods.
const MOST_IN_A_TURN: usize = 50;

/// A workload to wake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sleeper {
    /// The workload.
    pub workload: ObjectKey,
    /// Its UID.
    pub uid: String,
}

/// What is remembered, from one turn to the next, of the workloads that lack pods.
#[derive(Debug, Default)]
pub struct Memory {
    by_uid: BTreeMap<String, Remembered>,
}

#[derive(Clone, Copy, Debug)]
struct Remembered {
    /// Whether its pods would not have been admitted when it was last looked at.
    was_held_up: bool,
    /// When it is woken next.
    next: Timestamp,
    /// How long after that again.
    pause: SignedDuration,
}

impl Memory {
    /// The workloads to wake now. `admits` says whether a workload's pods would be admitted.
    pub fn due(
        &mut self,
        workloads: &LackingWorkloads,
        admits: impl Fn(&Object) -> bool,
        now: Timestamp,
    ) -> Vec<Sleeper> {
        let mut by_uid = BTreeMap::new();
        let mut due = Vec::new();
        for (key, workload) in workloads {
            let uid = workload.metadata.uid.clone();
            let known = self.by_uid.get(&uid).copied();
            let remembered = if admits(workload) {
                let is_time = known.is_some_and(|known| known.was_held_up || known.next <= now);
                let is_due = is_time && due.len() < MOST_IN_A_TURN;
                if is_due {
                    due.push(Sleeper { workload: key.clone(), uid: uid.clone() });
                }
                match known {
                    Some(known) if !is_due => known,
                    Some(known) if !known.was_held_up => wait(now, LONGEST_PAUSE.min(known.pause * 2)),
                    _ => wait(now, FIRST_PAUSE),
                }
            } else {
                Remembered { was_held_up: true, ..wait(now, FIRST_PAUSE) }
            };
            by_uid.insert(uid, remembered);
        }
        self.by_uid = by_uid;
        due
    }
}

fn wait(now: Timestamp, pause: SignedDuration) -> Remembered {
    Remembered { was_held_up: false, next: now.saturating_add(pause).unwrap_or(now), pause }
}

/// Whether the pods that a workload makes would be admitted, as far as is known here.
pub fn admits(workload: &Object, known: &Known<'_>) -> bool {
    let Some(pod) = pod_of(workload) else { return false };
    let is_admitted = |pod: &Object| {
        let verdict = standing::stand(pod, known).map(|Standing { verdict, .. }| verdict);
        matches!(verdict, Some(Verdict::Granted | Verdict::Waiting(_)))
    };
    let Some(ordinals) = workload.ordinals() else { return is_admitted(&pod) };
    let Metadata { name, namespace, .. } = &workload.metadata;
    let is_missing = |pod: &String| {
        let key = ObjectKey { kind: Kind::Pod, name: ObjectName::new(namespace.as_str(), pod.as_str()) };
        known.index.uid(&key).is_none()
    };
    let mut missing = ordinals.each().map(|ordinal| format!("{name}-{ordinal}")).filter(is_missing);
    let would_be_admitted = |name| {
        let metadata = Metadata { name, ..pod.metadata.clone() };
        is_admitted(&Object { metadata, ..pod.clone() })
    };
    if workload.spec.pod_management_policy == "Parallel" {
        missing.any(would_be_admitted)
    } else {
        // One after the other: none is made before the first of them.
        missing.next().is_some_and(would_be_admitted)
    }
}

/// The pod that a workload makes of its template, as far as rules read it.
fn pod_of(workload: &Object) -> Option<Object> {
    let template = workload.spec.template.as_ref()?;
    let Metadata { name, namespace, uid, .. } = &workload.metadata;
    let owner = OwnerReference {
        api_version: workload.api_version.clone(),
        kind: workload.kind.clone(),
        name: name.clone(),
        uid: uid.clone(),
        controller: true,
    };
    let metadata = Metadata {
        generate_name: format!("{name}-"),
        namespace: namespace.clone(),
        owner_references: vec![owner],
        ..template.metadata.clone()
    };
    Some(Object {
        api_version: Kind::Pod.api_version().to_owned(),
        kind: Kind::Pod.name().to_owned(),
        metadata,
        spec: template.spec.clone(),
        ..Object::default()
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::admission::index::Index;
    use crate::admission::policy::Policy;
    use crate::allocation::claim::Claim;
    use crate::allocation::claim::StoredClaim;
    use crate::allocation::claim::Version;
    use crate::allocation::key::ClaimKey;
    use crate::api::crd::port_claim::ClaimState;
    use crate::cluster::claim_watch::Claims;
    use crate::controller::automatic::Found;
    use crate::model::holder::Holder;

    /// ReplicaSet web-1 of Deployment web, which asks for these ports.
    fn replica_set(expose: &str) -> Object {
        let owner = json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "d", "controller": true}]);
        let set = json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"namespace": "shop", "name": "web-1", "uid": "r", "ownerReferences": owner},
            "spec": {"replicas": 1, "template": {"metadata": {"annotations": {"pinhole.dev/expose": expose}}}},
        });
        serde_json::from_value(set).unwrap()
    }

    fn lacking() -> LackingWorkloads {
        let set = replica_set("203.0.113.7:443");
        [(ObjectKey::of(&set, "shop").unwrap(), set)].into()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    /// The seconds at which a workload is woken, looked at every second. It is held up in the seconds of `held_up`.
    fn woken(memory: &mut Memory, seconds: i64, held_up: std::ops::Range<i64>) -> Vec<i64> {
        let is_woken = |second: &i64| {
            let due = memory.due(&lacking(), |_| !held_up.contains(second), at(*second));
            due.iter().any(|sleeper| sleeper.uid == "r" && sleeper.workload.kind == Kind::ReplicaSet)
        };
        (0..seconds).filter(is_woken).collect()
    }

    #[test]
    fn it_is_woken_after_ever_longer_but_at_least_every_five_minutes() {
        assert_eq!(woken(&mut Memory::default(), 1300, 0..0), [10, 30, 70, 150, 310, 610, 910, 1210]);
    }

    #[test]
    fn it_is_woken_at_once_when_nothing_is_in_its_way_any_more_and_never_before() {
        assert_eq!(woken(&mut Memory::default(), 60, 0..30), [30, 40], "a port that becomes free");
        assert_eq!(
            woken(&mut Memory::default(), 130, 15..90),
            [10, 90, 100, 120],
            "a webhook that comes back"
        );
    }

    #[test]
    fn after_an_outage_some_are_woken_at_a_time_and_all_in_the_end() {
        let set = |number: usize| {
            let mut set = replica_set("203.0.113.7:443");
            set.metadata.name = format!("web-{number}");
            set.metadata.uid = number.to_string();
            (ObjectKey::of(&set, "shop").unwrap(), set)
        };
        let many: LackingWorkloads = (0..120).map(set).collect();
        let mut memory = Memory::default();
        assert_eq!(memory.due(&many, |_| false, at(0)), []);
        let mut turns = (1..5).map(|second| memory.due(&many, |_| true, at(second)).len());
        assert_eq!(turns.by_ref().collect::<Vec<_>>(), [50, 50, 20, 0]);
    }

    #[test]
    fn what_has_its_pods_is_forgotten() {
        let mut memory = Memory::default();
        assert_eq!(woken(&mut memory, 9, 0..0), [0; 0]);
        assert_eq!(memory.due(&LackingWorkloads::new(), |_| true, at(9)), []);
        assert!(memory.by_uid.is_empty());
        assert_eq!(woken(&mut memory, 9, 0..0), [0; 0], "it begins to wait anew");
    }

    #[test]
    fn pods_would_be_admitted_unless_somebody_else_has_their_port_or_a_rule_forbids_it() {
        let now = at(0);
        let claim = |holder: Holder, state| {
            let key: ClaimKey = "v4-203-0-113-7-tcp-443".parse().unwrap();
            let claim = Claim { state, ..Claim::reserve(key, holder, now) };
            Claims::from([(
                key,
                StoredClaim { claim, version: Version { key, uid: "1".into(), revision: 1 } },
            )])
        };
        let itself = || Holder::new("Deployment", ObjectName::new("shop", "web"));
        let other = || Holder::new("Deployment", ObjectName::new("shop", "other"));
        let cases = [
            ("203.0.113.7:443", Claims::new(), true, "nobody has it"),
            ("203.0.113.7:443", claim(itself(), ClaimState::Bound), true, "it has it"),
            ("203.0.113.7:443", claim(itself(), ClaimState::Cooldown), true, "it had it"),
            ("203.0.113.7:443", claim(other(), ClaimState::Bound), false, "somebody else has it"),
            (
                "203.0.113.7:443",
                claim(other(), ClaimState::Cooldown),
                false,
                "somebody else had it a moment ago",
            ),
            (
                "203.0.113.7:442-444",
                claim(other(), ClaimState::Bound),
                false,
                "somebody else has a part of it",
            ),
            ("443", claim(other(), ClaimState::Bound), true, "on the node's own address it is another port"),
            ("auto:443", claim(other(), ClaimState::Bound), true, "the pod is made, and waits by itself"),
            ("22", Claims::new(), false, "a restricted port"),
        ];
        let policy = Policy::default();
        let mut index = Index::new(Arc::new(policy.clone()));
        let deployment =
            json!({"kind": "Deployment", "metadata": {"namespace": "shop", "name": "web", "uid": "d"}});
        index.apply(&serde_json::from_value(deployment).unwrap());
        for (expose, claims, expected, why) in cases {
            let set = replica_set(expose);
            index.apply(&set);
            let found = Found::of(&claims);
            let known = Known::of_claims(&claims, &found, &index, &policy);
            assert_eq!(admits(&set, &known), expected, "{why}");
        }
    }

    #[test]
    fn of_a_set_the_pod_that_comes_next_is_asked_about() {
        let claim = |number: u16| {
            let key: ClaimKey = format!("v4-203-0-113-7-tcp-{number}").parse().unwrap();
            let other = Holder::new("Deployment", ObjectName::new("shop", "other"));
            let claim = Claim { state: ClaimState::Bound, ..Claim::reserve(key, other, at(0)) };
            (key, StoredClaim { claim, version: Version { key, uid: "1".into(), revision: 1 } })
        };
        let set = |policy: &str| -> Object {
            let annotations = json!({"pinhole.dev/expose": "203.0.113.7:30000+{ordinal}:80"});
            let set = json!({
                "apiVersion": "apps/v1", "kind": "StatefulSet",
                "metadata": {"namespace": "shop", "name": "game", "uid": "s"},
                "spec": {"replicas": 4, "podManagementPolicy": policy, "template": {"metadata": {"annotations": annotations}}},
            });
            serde_json::from_value(set).unwrap()
        };
        let cases = [
            ("OrderedReady", vec![30001], true, "the port of a pod that is there"),
            ("OrderedReady", vec![30002], false, "the port of the pod that comes next"),
            ("OrderedReady", vec![30003], true, "the port of the one after it"),
            ("Parallel", vec![30002], true, "the other one is made at the same time"),
            ("Parallel", vec![30002, 30003], false, "the ports of both"),
        ];
        let policy = Policy::default();
        let mut index = Index::new(Arc::new(policy.clone()));
        for ordinal in 0..2 {
            let mut pod = pod_of(&set("")).unwrap();
            pod.metadata.name = format!("game-{ordinal}");
            pod.metadata.uid = pod.metadata.name.clone();
            index.apply(&pod);
        }
        for (order, taken, expected, why) in cases {
            let set = set(order);
            index.apply(&set);
            let claims: Claims = taken.into_iter().map(claim).collect();
            let found = Found::of(&claims);
            let known = Known::of_claims(&claims, &found, &index, &policy);
            assert_eq!(admits(&set, &known), expected, "{order}: {why}");
        }
    }
}
