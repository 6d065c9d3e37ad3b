//! The workloads that ask for ports and lack pods: those whose pods may have been refused.

use std::collections::BTreeMap;

use crate::admission::index::ObjectKey;
use crate::admission::policy::Policy;
use crate::admission::subject::Subject;
use crate::api::object::Kind;
use crate::api::object::Object;
use crate::api::object::Status;
use crate::cluster::watch::News;

/// The workloads that lack pods, by name.
pub type LackingWorkloads = BTreeMap<ObjectKey, Object>;

/// Brings news of one kind into what is known.
pub fn feed(workloads: &mut LackingWorkloads, kind: Kind, news: &News, policy: &Policy) {
    match news {
        News::Listed(listed) => {
            workloads.retain(|known, _| known.kind != kind);
            workloads.extend(listed.iter().filter_map(|workload| lacking(workload, policy)));
        }
        News::Applied(workload) => {
            if let Some(key) = ObjectKey::of(workload, &workload.metadata.namespace) {
                workloads.remove(&key);
            }
            workloads.extend(lacking(workload, policy));
        }
        News::Deleted(workload) => {
            if let Some(key) = ObjectKey::of(workload, &workload.metadata.namespace)
                && workloads.get(&key).is_some_and(|known| known.metadata.uid == workload.metadata.uid)
            {
                workloads.remove(&key);
            }
        }
        News::Failed(_) => {}
    }
}

fn lacking(workload: &Object, policy: &Policy) -> Option<(ObjectKey, Object)> {
    let asks = || Subject::of(workload).is_some_and(|subject| policy.asks(&subject.metadata.annotations));
    let is_lacking = workload.metadata.deletion_timestamp.is_none() && lacks_pods(workload) && asks();
    let key = ObjectKey::of(workload, &workload.metadata.namespace).filter(|_| is_lacking)?;
    Some((key, workload.clone()))
}

/// Whether a workload has fewer pods than it should, by what its controller says, and is not just waiting for one of them
/// to become ready. Jobs are not asked: their controller tries again every minute.
fn lacks_pods(workload: &Object) -> bool {
    let Status { replicas, available_replicas, .. } = workload.status;
    let lacks_replicas = replicas < workload.spec.replicas.unwrap_or(1);
    match workload.known_kind() {
        Some(Kind::ReplicaSet) => lacks_replicas && workload.has_condition("ReplicaFailure"),
        Some(Kind::StatefulSet) => lacks_replicas && replicas <= available_replicas,
        Some(Kind::DaemonSet) => {
            workload.status.current_number_scheduled < workload.status.desired_number_scheduled
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn workload(kind: &str, uid: &str, present: i64, expose: Option<&str>) -> Box<Object> {
        let annotations = expose.map(|ports| json!({"pinhole.dev/expose": ports}));
        let workload = json!({
            "kind": kind, "metadata": {"name": "mx", "namespace": "mail", "uid": uid},
            "spec": {"replicas": 1, "template": {"metadata": {"annotations": annotations}}},
            "status": {"replicas": present, "desiredNumberScheduled": 1, "currentNumberScheduled": present},
        });
        Box::new(serde_json::from_value(workload).unwrap())
    }

    #[test]
    fn workloads_are_known_while_they_ask_and_lack_pods_and_kinds_do_not_meddle_with_each_other() {
        let set = |uid, present, expose| workload("StatefulSet", uid, present, expose);
        let daemons = |uid| workload("DaemonSet", uid, 0, Some("25"));
        let steps = [
            (Kind::StatefulSet, News::Applied(set("1", 0, Some("25"))), vec!["1"]),
            (Kind::DaemonSet, News::Listed(vec![*daemons("d")]), vec!["1", "d"]),
            (Kind::StatefulSet, News::Applied(set("1", 1, Some("25"))), vec!["d"]),
            (Kind::StatefulSet, News::Applied(set("1", 0, None)), vec!["d"]),
            (Kind::StatefulSet, News::Applied(set("2", 0, Some("25"))), vec!["2", "d"]),
            (Kind::StatefulSet, News::Deleted(set("1", 0, Some("25"))), vec!["2", "d"]),
            (Kind::StatefulSet, News::Failed("gone for lunch".to_owned()), vec!["2", "d"]),
            (Kind::DaemonSet, News::Deleted(daemons("d")), vec!["2"]),
            (Kind::StatefulSet, News::Listed(Vec::new()), vec![]),
        ];
        let mut workloads = LackingWorkloads::new();
        for (kind, news, expected) in steps {
            feed(&mut workloads, kind, &news, &Policy::default());
            let known: Vec<_> = workloads.values().map(|workload| workload.metadata.uid.as_str()).collect();
            assert_eq!(known, expected, "{news:?}");
        }
    }

    #[test]
    fn a_workload_lacks_pods_that_could_not_be_made_and_not_those_that_wait_for_others() {
        let failure = r#""conditions":[{"type":"ReplicaFailure","status":"True"}]"#;
        let cases = [
            (r#"{"kind":"ReplicaSet","spec":{"replicas":2},"status":{"replicas":1,FAILURE}}"#, true),
            (r#"{"kind":"ReplicaSet","spec":{"replicas":2},"status":{"replicas":1}}"#, false),
            (r#"{"kind":"ReplicaSet","spec":{"replicas":0},"status":{FAILURE}}"#, false),
            (
                r#"{"kind":"StatefulSet","spec":{"replicas":3},"status":{"replicas":1,"availableReplicas":1}}"#,
                true,
            ),
            (r#"{"kind":"StatefulSet","spec":{"replicas":3},"status":{"replicas":1}}"#, false),
            (r#"{"kind":"StatefulSet","spec":{"replicas":1},"status":{"replicas":0}}"#, true),
            (
                r#"{"kind":"DaemonSet","status":{"desiredNumberScheduled":3,"currentNumberScheduled":2}}"#,
                true,
            ),
            (
                r#"{"kind":"DaemonSet","status":{"desiredNumberScheduled":3,"currentNumberScheduled":3}}"#,
                false,
            ),
            (r#"{"kind":"Deployment","spec":{"replicas":3},"status":{"replicas":0}}"#, false),
        ];
        for (text, lacks) in cases {
            let object: Object = serde_json::from_str(&text.replace("FAILURE", failure)).unwrap();
            assert_eq!(lacks_pods(&object), lacks, "{text}");
        }
    }
}
