//! The pods of the whole cluster that ask for ports, beside what the index keeps of them: where each runs and its addresses.

use std::collections::BTreeMap;

use crate::admission::policy::Policy;
use crate::api::object::Object;
use crate::cluster::watch::News;
use crate::model::holder::ObjectName;

/// The pods that ask for ports, by name.
pub type AskingPods = BTreeMap<ObjectName, Object>;

/// Brings news of pods into what is known.
pub fn feed(pods: &mut AskingPods, news: &News, policy: &Policy) {
    let asks = |pod: &Object| policy.asks(&pod.metadata.annotations);
    match news {
        News::Listed(listed) => {
            *pods = listed.iter().filter(|pod| asks(pod)).map(|pod| (name(pod), pod.clone())).collect();
        }
        News::Applied(pod) if asks(pod) => {
            pods.insert(name(pod), (**pod).clone());
        }
        News::Applied(pod) => {
            pods.remove(&name(pod));
        }
        News::Deleted(pod) => {
            // One of the same name that came after it stays (R09).
            if pods.get(&name(pod)).is_some_and(|known| known.metadata.uid == pod.metadata.uid) {
                pods.remove(&name(pod));
            }
        }
        News::Failed(_) => {}
    }
}

fn name(pod: &Object) -> ObjectName {
    ObjectName::new(pod.metadata.namespace.as_str(), pod.metadata.name.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, ports: Option<&str>) -> Box<Object> {
        let annotations = ports.map(|ports| json!({"pinhole.dev/expose": ports}));
        let pod = json!({"kind": "Pod", "metadata":
            {"name": "mx", "namespace": "mail", "uid": uid, "annotations": annotations}});
        Box::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn r09_pods_are_known_while_they_ask_and_one_deleted_late_takes_no_other_away() {
        let mut pods = AskingPods::new();
        let steps = [
            (News::Applied(pod("1", Some("25"))), Some("1")),
            (News::Applied(pod("1", None)), None),
            (News::Applied(pod("2", Some("25"))), Some("2")),
            (News::Deleted(pod("1", Some("25"))), Some("2")),
            (News::Failed("gone for lunch".to_owned()), Some("2")),
            (News::Listed(vec![*pod("3", Some("25"))]), Some("3")),
            (News::Deleted(pod("3", Some("25"))), None),
        ];
        for (news, expected) in steps {
            feed(&mut pods, &news, &Policy::default());
            let known = pods.get(&ObjectName::new("mail", "mx")).map(|pod| pod.metadata.uid.as_str());
            assert_eq!(known, expected, "{news:?}");
        }
    }
}
