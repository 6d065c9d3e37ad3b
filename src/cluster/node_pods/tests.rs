//! What is known of a node after news of every kind, in any order.

use serde_json::json;

use super::*;
use crate::model::address::ExternalAddress;

fn pod(name: &str, uid: &str, annotation: &str) -> Object {
    let json = json!({
        "kind": "Pod",
        "metadata": {"namespace": "mail", "name": name, "uid": uid, "annotations": {annotation: "25"}},
    });
    serde_json::from_value(json).unwrap()
}

fn applied(pod: Object) -> News {
    News::Applied(Box::new(pod))
}

fn deleted(pod: Object) -> News {
    News::Deleted(Box::new(pod))
}

fn uids(pods: &NodePods) -> Vec<String> {
    pods.read(|view| view.pods.values().map(|pod| pod.metadata.uid.clone()).collect())
}

fn node_pods() -> NodePods {
    NodePods::new(Arc::new(Policy::default()))
}

#[test]
fn the_owner_of_the_last_of_its_pods_is_forgotten_with_it() {
    let pods = node_pods();
    let owned = |name: &str, uid: &str| {
        let mut pod = pod(name, uid, "pinhole.dev/expose");
        let owner = json!({"kind": "ReplicaSet", "name": "web-1", "uid": "r", "controller": true});
        pod.metadata.owner_references = vec![serde_json::from_value(owner).unwrap()];
        pod
    };
    let replica_set =
        json!({"kind": "ReplicaSet", "metadata": {"namespace": "mail", "name": "web-1", "uid": "r"}});
    pods.feed_owner(serde_json::from_value(replica_set).unwrap());
    let is_known = || pods.unknown_owner(&owned("probe", "p")).is_none();
    for (name, uid) in [("a", "1"), ("b", "2")] {
        pods.feed(POD, applied(owned(name, uid)));
    }
    pods.feed(POD, deleted(owned("a", "1")));
    assert!(is_known(), "the other pod has it too");
    pods.feed(POD, deleted(owned("b", "2")));
    assert!(!is_known());
}

#[test]
fn r15_the_node_is_known_by_its_whole_name() {
    let pods_of = |node_name| fields(POD, node_name).unwrap();
    assert_eq!(pods_of("a.zone1"), "spec.nodeName=a.zone1");
    assert_ne!(pods_of("a.zone1"), pods_of("a.zone2"));
    assert_eq!(fields(Resource::Node, "a.zone1").unwrap(), "metadata.name=a.zone1");
}

#[test]
fn r02_the_deletion_of_an_unknown_pod_changes_nothing() {
    let pods = node_pods();
    pods.feed(POD, deleted(pod("mx", "1", "pinhole.dev/expose")));
    assert_eq!(uids(&pods), Vec::<String>::new());
}

#[test]
fn r09_the_late_deletion_of_a_replaced_pod_leaves_its_successor() {
    let pods = node_pods();
    pods.feed(POD, applied(pod("mx-0", "1", "pinhole.dev/expose")));
    pods.feed(POD, applied(pod("mx-0", "2", "pinhole.dev/expose")));
    pods.feed(POD, deleted(pod("mx-0", "1", "pinhole.dev/expose")));
    assert_eq!(uids(&pods), ["2"]);
}

#[test]
fn r10_a_pod_whose_annotation_is_removed_is_known_without_it() {
    let pods = node_pods();
    pods.feed(POD, applied(pod("mx", "1", "pinhole.dev/expose")));
    pods.feed(POD, applied(pod("mx", "1", "example.org/other")));
    pods.feed(POD, applied(pod("never-asked", "2", "example.org/other")));
    assert_eq!(uids(&pods), ["1"]);
    let asks = |view: &View| view.pods.values().any(|pod| Policy::default().asks(&pod.metadata.annotations));
    assert!(!pods.read(asks));
}

#[test]
fn r12_a_list_replaces_what_vanished_while_nobody_looked() {
    let pods = node_pods();
    pods.feed(POD, applied(pod("a", "1", "pinhole.dev/expose")));
    pods.feed(POD, News::Listed(vec![pod("b", "2", "pinhole.dev/expose"), pod("c", "3", "example.org/x")]));
    assert_eq!(uids(&pods), ["2"]);
}

#[test]
fn r10_a_list_keeps_a_pod_that_asks_no_longer_among_those_that_did() {
    let pods = node_pods();
    let running = || pods.read(|view| view.running().map(|pod| pod.metadata.uid.clone()).collect::<Vec<_>>());
    pods.feed(POD, applied(pod("mx", "1", "pinhole.dev/expose")));
    let listed = || vec![pod("mx", "1", "example.org/x"), pod("never-asked", "2", "example.org/x")];
    pods.feed(POD, News::Listed(listed()));
    assert_eq!((uids(&pods), running()), (vec!["1".to_owned()], vec!["1".to_owned(), "2".to_owned()]));
    pods.feed(POD, applied(pod("mx", "3", "example.org/x")));
    assert_eq!(uids(&pods), Vec::<String>::new(), "another pod of the same name never asked");
    pods.feed(POD, deleted(pod("never-asked", "2", "example.org/x")));
    assert_eq!(running(), ["3"]);
}

#[test]
fn r05_nothing_is_known_before_every_list_came() {
    let pods = node_pods();
    assert_eq!(pods.waiting().len(), 2);
    pods.feed(POD, applied(pod("a", "1", "pinhole.dev/expose")));
    pods.feed(POD, News::Failed("no route to host".into()));
    assert_eq!(pods.waiting().len(), 2, "neither a change nor a failure is a list");
    pods.feed(POD, News::Listed(Vec::new()));
    pods.feed(Resource::Node, News::Listed(Vec::new()));
    assert!(pods.waiting().is_empty());
}

#[test]
fn addresses_that_the_node_object_does_not_list_are_the_node_s_own_all_the_same() {
    let pods = node_pods();
    let own: IpAddr = "203.0.113.7".parse().unwrap();
    let is_own = |view: &View| view.index.is_node_address(ExternalAddress::new(own).unwrap());
    pods.feed_addresses(vec![own]);
    assert!(!pods.read(is_own), "there is no node yet");
    let node = || Object { kind: "Node".into(), ..Object::default() };
    pods.feed(Resource::Node, News::Listed(vec![node()]));
    assert!(pods.read(is_own));
    pods.feed(Resource::Node, News::Applied(Box::new(node())));
    assert!(pods.read(is_own));
    pods.feed_addresses(Vec::new());
    assert!(!pods.read(is_own));
}

#[test]
fn namespaces_are_only_watched_where_a_policy_selects_by_their_labels() {
    let mut policy = Policy::default();
    policy.namespaces.selector = "nat=yes".parse().unwrap();
    assert!(NodePods::new(Arc::new(policy)).waiting().contains(&Resource::Namespace));
    assert!(!node_pods().waiting().contains(&Resource::Namespace));
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_could_not_be_read_is_asked_for_again_in_time_however_much_happens() {
    let started = Instant::now();
    let mut due = started + OWNER_RETRY;
    let mut asked = Vec::new();
    for _ in 0..8 {
        let event = tokio::time::sleep(OWNER_RETRY / 3);
        if until_due(&mut due, event).await.is_none() {
            asked.push(started.elapsed());
        }
    }
    // Timers are as fine as a millisecond.
    let seconds: Vec<_> = asked.iter().map(Duration::as_secs).collect();
    assert_eq!(seconds, [OWNER_RETRY.as_secs(), 2 * OWNER_RETRY.as_secs()]);
}

#[tokio::test]
async fn r42_any_number_of_changes_is_fed_while_nobody_reads_and_leaves_one_note() {
    let pods = node_pods();
    for number in 0..10_000 {
        pods.feed(POD, applied(pod("mx", &number.to_string(), "pinhole.dev/expose")));
    }
    pods.changed().await;
    assert_eq!(uids(&pods), ["9999"]);
    let again = tokio::time::timeout(Duration::from_millis(20), pods.changed()).await;
    assert!(again.is_err(), "one note for all changes");
}
