//! The workloads that ask for ports and lack pods: those whose pods may have been refused.

use std::collections::BTreeMap;

use crate::admission::index::ObjectKey;
use crate::admission::policy::Policy;
use crate::admission::subject::Subject;
use crate::api::object::Kind;
use crate::api::object::Object;
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
    let is_lacking = workload.metadata.deletion_timestamp.is_none() && workload.lacks_pods() && asks();
    let key = ObjectKey::of(workload, &workload.metadata.namespace).filter(|_| is_lacking)?;
    Some((key, workload.clone()))
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
}
