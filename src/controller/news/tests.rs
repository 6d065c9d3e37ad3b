//! Who hears of a port that it does not have, in which words, and how often.

use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::allocation::claim::Claim;
use crate::allocation::claim::StoredClaim;
use crate::allocation::claim::Version;
use crate::allocation::key::ClaimKey;
use crate::allocation::pool::Pool;
use crate::cluster::claim_watch::Claims;
use crate::cluster::events;
use crate::controller::automatic::Found;
use crate::controller::standing;
use crate::controller::standing::Known;
use crate::controller::standing::Waiting;
use crate::model::holder::ObjectName;

const FULL: &str = "waits for 1 free port on one address";

fn index() -> Index {
    let mut index = Index::new(Arc::new(Policy::default()));
    let pool = json!({"addresses": ["203.0.113.7"], "ports": [{"first": 1, "last": 65535}], "namespaces": {"all": true}});
    index.set_pools(Some([Pool::read("all", &serde_json::from_value(pool).unwrap()).unwrap()].into()));
    let replica_set = json!({"kind": "ReplicaSet", "metadata": {"namespace": "mail", "name": "mx-5f", "uid": "uid-rs",
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "mx", "uid": "uid-d", "controller": true}]}});
    index.apply(&serde_json::from_value(replica_set).unwrap());
    index
}

/// A pod of the Deployment.
fn pod(name: &str, ports: &str, node: Option<&str>) -> Object {
    let pod = json!({"kind": "Pod", "spec": {"nodeName": node}, "metadata": {"namespace": "mail", "name": name,
        "uid": format!("uid-{name}"), "annotations": {"pinhole.dev/expose": ports},
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "mx-5f", "uid": "uid-rs", "controller": true}]}});
    serde_json::from_value(pod).unwrap()
}

fn claimed_by(holder: Holder) -> StoredClaim {
    let key: ClaimKey = "v4-203-0-113-7-tcp-25".parse().unwrap();
    let claim = Claim::reserve(key, holder, Timestamp::from_second(1_767_323_045).unwrap());
    StoredClaim { claim, version: Version { key, uid: "1".into(), revision: 1 } }
}

/// What there is to say of these pods, where one port is another's and no pool has a free one.
fn news(pods: &[Object]) -> News {
    let (index, policy) = (index(), Policy::default());
    let other = claimed_by(Holder::new("Deployment", ObjectName::new("shop", "web")));
    let claims: Claims = [(other.claim.key, other)].into();
    let found = Found::of(&claims);
    let waiting: Waiting = pods.iter().map(|pod| (pod.metadata.uid.clone(), FULL.to_owned())).collect();
    let known = Known { waiting: &waiting, ..Known::of_claims(&claims, &found, &index, &policy) };
    let mut news = News::default();
    for pod in pods {
        news.add_of_pod(pod, &standing::stand(pod, &known).unwrap(), &index);
    }
    news
}

#[test]
fn of_pods_that_find_no_port_each_hears_and_their_owner_once() {
    let pods = ["a", "b", "c"].map(|name| pod(name, "auto:80", None));
    let all = [
        "Pod mail/a NoFreePort: auto:80/tcp: waits for 1 free port on one address",
        "Pod mail/b NoFreePort: auto:80/tcp: waits for 1 free port on one address",
        "Pod mail/c NoFreePort: auto:80/tcp: waits for 1 free port on one address",
        "Deployment mail/mx NoFreePort: pods lack ports: auto:80/tcp: waits for 1 free port on one address",
    ];
    let mut said = news(&pods).said();
    said.sort_by_key(|line| line.starts_with("Deployment"));
    assert_eq!(said, all);
}

#[test]
fn a_pod_hears_of_a_refusal_from_its_node_where_it_has_one() {
    let taken = "Pod mail/a PortTaken: metadata.annotations[pinhole.dev/expose][0]: 203.0.113.7:25/tcp: is claimed by Deployment \
                 shop/web (PortClaim v4-203-0-113-7-tcp-25, since 2026-01-02T03:04:05Z); choose another external port, or remove \
                 it there first";
    assert_eq!(news(&[pod("a", "203.0.113.7:25", None)]).said(), [taken]);
    assert!(news(&[pod("a", "203.0.113.7:25", Some("node-1"))]).said().is_empty());
    // What the rules refuse went past the webhook, so that its owner does not know it either.
    let refused = news(&[pod("a", "203.0.113.7:22", Some("node-1"))]).said();
    assert!(
        refused[0].starts_with("Deployment mail/mx NotProgrammed: pods lack ports: metadata.annotations"),
        "{refused:?}"
    );
    assert_eq!(refused.len(), 1);
}

fn dispute(owner: Option<Regarding>, state: ClaimState) -> Dispute {
    let mut by = claimed_by(Holder::new("Deployment", ObjectName::new("mail", "web")));
    by.claim.state = state;
    Dispute { owner, wanted: by.claim.key, by }
}

fn deployment() -> Regarding {
    Regarding::new(Kind::Deployment, ObjectName::new("mail", "mx"), "uid-d")
}

#[test]
fn an_owner_hears_who_has_its_port_and_what_to_do() {
    let said = |dispute: &Dispute, policy: &Policy| {
        let mut news = News::default();
        news.add_dispute(dispute, policy);
        news.said()
    };
    let policy = Policy::default();
    assert_eq!(
        said(&dispute(Some(deployment()), ClaimState::Bound), &policy),
        [
            "Deployment mail/mx PortTaken: 203.0.113.7:25/tcp: is claimed by Deployment mail/web (PortClaim v4-203-0-113-7-tcp-25, \
             since 2026-01-02T03:04:05Z); choose another external port, remove it there first, or have it handed over (kubectl \
             pinhole transfer deployment/web --to deployment/mx)"
        ]
    );
    assert!(said(&dispute(Some(deployment()), ClaimState::Cooldown), &policy).is_empty(), "it gets it soon");
    assert!(said(&dispute(None, ClaimState::Bound), &policy).is_empty(), "a pod is told by how it stands");
    let abroad = Regarding::new(Kind::Deployment, ObjectName::new("shop", "mx"), "uid-d");
    let secretive = Policy { disclose_holder: false, ..policy };
    let hidden = said(&dispute(Some(abroad), ClaimState::Bound), &secretive);
    assert!(hidden[0].contains("is claimed by an object in another namespace ("), "{hidden:?}");
}

fn event(regarding: Regarding, note: &str) -> ObjectEvent {
    ObjectEvent { regarding, reason: Reason::NoFreePort, note: note.to_owned() }
}

fn all(events: impl IntoIterator<Item = ObjectEvent>) -> News {
    let mut news = News::default();
    events.into_iter().for_each(|event| news.add(event));
    news
}

#[test]
fn each_is_told_once_a_change_of_a_pod_s_at_once_and_of_an_owner_s_later() {
    let (events, mut event_rx) = events::channel();
    let mut teller = Teller::default();
    let lobby = || Regarding::new(Kind::Pod, ObjectName::new("mail", "a"), "uid-a");
    let minute = |minute: i64| Timestamp::from_second(minute * 60).unwrap();
    let mut told = |at, news: News| {
        teller.tell(news, &events, minute(at));
        std::iter::from_fn(|| event_rx.try_recv().ok())
            .map(|event| format!("{} {}", event.regarding.kind, event.note))
            .collect::<Vec<_>>()
    };
    let of_both = |note: &str| all([event(lobby(), note), event(deployment(), note)]);
    assert_eq!(told(0, of_both("one")), ["Deployment one", "Pod one"], "the owner first");
    assert_eq!(told(1, of_both("one")), Vec::<String>::new());
    assert_eq!(told(2, of_both("two")), ["Pod two"]);
    assert_eq!(told(3, News::default()), Vec::<String>::new(), "a free port for a moment");
    assert_eq!(told(4, of_both("two")), Vec::<String>::new());
    assert_eq!(told(5, of_both("two")), ["Deployment two"]);
    assert_eq!(told(66, of_both("two")), Vec::<String>::new());
    assert_eq!(told(67, of_both("two")), ["Pod two"], "the Event of before is forgotten");
    assert_eq!(told(70, of_both("two")), ["Deployment two"]);
    assert_eq!(told(76, News::default()), Vec::<String>::new());
    assert_eq!(told(80, of_both("two")), ["Deployment two", "Pod two"], "it was gone");
}

#[test]
fn what_finds_no_room_is_told_in_a_later_turn_and_owners_are_not_kept_waiting() {
    let (events, mut event_rx) = events::channel();
    let mut teller = Teller::default();
    let now = Timestamp::UNIX_EPOCH;
    let pods = || {
        (0..500).map(|number| {
            let name = ObjectName::new("mail", format!("a-{number}"));
            event(Regarding::new(Kind::Pod, name, format!("a-{number}")), "full")
        })
    };
    let mut count = 0;
    for turn in 0..3 {
        teller.tell(all(pods().chain([event(deployment(), "full")])), &events, now);
        let told: Vec<_> = std::iter::from_fn(|| event_rx.try_recv().ok()).collect();
        assert_eq!(told.iter().filter(|event| is_owner(&event.regarding)).count(), usize::from(turn == 0));
        count += told.len();
    }
    assert_eq!(count, 501);
}
