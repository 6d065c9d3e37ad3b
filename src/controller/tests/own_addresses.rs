//! Ports of nodes' own addresses, which are claimed where a pod is.

use serde_json::json;

use super::*;
use crate::admission::index::occupants::Occupants;
use crate::admission::index::occupants::Source;
use crate::api::crd::port_claim::ClaimOrigin;

/// A pod that asks for ports of the own address of its node.
fn bound(name: &str, ports: &str, created: &str, node: &str) -> Object {
    let mut pod = pod(name, ports, created);
    pod.spec.node_name = Some(node.to_owned());
    pod
}

impl Scene {
    /// The NatNode of a node, which says these to be its own addresses.
    fn called(self, node: &str, own: &[&str]) -> Self {
        self.controller.index.write().unwrap().set_occupants(Occupants {
            source: Source::NatNode(node.into()),
            version: None,
            taken: Vec::new(),
            addresses: own.iter().map(|address| (address.parse().unwrap(), true)).collect(),
        });
        self
    }
}

#[tokio::test]
async fn ports_of_a_node_s_own_address_are_claimed_at_that_address_once_the_pod_has_a_node() {
    let mut six = bound("six", "8080", "2026-01-02T00:00:00Z", "node-1");
    six.status.pod_ips = vec![serde_json::from_value(json!({"ip": "fd00::9"})).unwrap()];
    let mut four = bound("four", "8080", "2026-01-01T00:00:00Z", "node-1");
    four.status.pod_ips = vec![serde_json::from_value(json!({"ip": "10.244.1.9"})).unwrap()];
    let mut scene = scene()
        .stored(&pod("open", "8081", ""))
        .stored(&bound("unknown", "8082", "", "node-9"))
        .stored(&four)
        .stored(&six)
        .stored(&bound("there", "8080,5353/udp", "", "node-2"))
        .called("node-1", &["203.0.113.7", "2001:db8::7"])
        .called("node-2", &["203.0.113.8"]);
    let spec = json!({"nodeAddresses": true, "namespaces": {"all": true}});
    let nodes = Pool::read("nodes", &serde_json::from_value(spec).unwrap()).unwrap();
    scene.controller.index.write().unwrap().set_pools(Some([nodes].into()));
    scene.after(1).await;
    assert_eq!(
        scene.after(1).await,
        [
            "v4-203-0-113-7-tcp-8080 Bound four",
            "v4-203-0-113-8-tcp-8080 Bound there",
            "v4-203-0-113-8-udp-5353 Bound there",
            "v6-20010db8000000000000000000000007-tcp-8080 Bound six",
        ]
    );
    let store = scene.store.lock().unwrap();
    let is_of_node =
        |claim: &Claim| claim.origin == ClaimOrigin::Node && claim.pool.as_deref() == Some("nodes");
    assert!(store.claims().all(|stored| is_of_node(&stored.claim)));
}

#[tokio::test]
async fn a_pod_without_an_address_claims_for_the_families_that_its_node_gives_to_pods() {
    for (cidrs, expected) in [(json!(["10.244.1.0/24"]), 1), (json!([]), 2)] {
        let node = json!({"kind": "Node", "metadata": {"name": "node-1"}, "spec": {"podCIDRs": cidrs}});
        let scene = scene().stored(&serde_json::from_value(node).unwrap());
        let mut scene =
            scene.stored(&bound("mx", "25", "", "node-1")).called("node-1", &["203.0.113.7", "2001:db8::7"]);
        scene.after(1).await;
        assert_eq!(scene.after(1).await.len(), expected);
    }
}

#[tokio::test]
async fn a_port_of_a_node_s_own_address_and_the_same_by_its_address_exclude_each_other() {
    let on_node = bound("node", "25,26", "2026-01-01T00:00:00Z", "node-1");
    let scene = scene().called("node-1", &["203.0.113.7"]).stored(&on_node);
    let mut scene = scene.stored(&pod("fixed", PORT, "")).reserved("Pod", "fixed", "v4-203-0-113-7-tcp-25");
    scene.after(1).await;
    // One port that is somebody else's keeps the pod from none of the others.
    let both = ["v4-203-0-113-7-tcp-25 Bound fixed", "v4-203-0-113-7-tcp-26 Bound node"];
    assert_eq!(scene.after(1).await, both);
    assert_eq!(scene.disputes(), 1);
    scene.deleted(&pod("fixed", PORT, ""));
    for seconds in [121, 1, 120] {
        scene.after(seconds).await;
    }
    scene.after(1).await;
    let all = ["v4-203-0-113-7-tcp-25 Bound node", "v4-203-0-113-7-tcp-26 Bound node"];
    assert_eq!(scene.after(1).await, all, "it is free, so it is claimed");
    let mut scene = scene.stored(&deployment(PORT));
    scene.after(1).await;
    assert_eq!(scene.after(1).await, all, "by its address nobody else gets it");
}

#[tokio::test]
async fn a_port_of_a_node_s_own_address_is_handed_over_where_a_pod_of_the_heir_comes() {
    let of = |holder: &str, node: &str| {
        let mut pod = bound(&format!("{holder}-{node}"), "8080", "", node);
        let owner = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": holder, "uid": "s", "controller": true});
        pod.metadata.owner_references = vec![serde_json::from_value(owner).unwrap()];
        pod
    };
    let set = |name: &str, heir: Option<&str>| {
        let heir = heir.map(|heir| json!({"pinhole.dev/transfer-to": heir}));
        let set = json!({"kind": "StatefulSet", "metadata": {"namespace": "mail", "name": name, "annotations": heir}});
        serde_json::from_value(set).unwrap()
    };
    let mut scene = scene()
        .stored(&set("blue", None))
        .stored(&of("blue", "node-1"))
        .stored(&of("blue", "node-2"))
        .called("node-1", &["203.0.113.7"])
        .called("node-2", &["203.0.113.8"]);
    scene.after(1).await;
    let mut scene = scene.stored(&of("green", "node-1"));
    let of_blue = ["v4-203-0-113-7-tcp-8080 Bound blue", "v4-203-0-113-8-tcp-8080 Bound blue"];
    assert_eq!(scene.after(1).await, of_blue);
    let mut scene = scene.stored(&set("blue", Some("StatefulSet/green")));
    scene.after(1).await;
    let both = ["v4-203-0-113-7-tcp-8080 Bound green", "v4-203-0-113-8-tcp-8080 Bound blue"];
    for seconds in [1, 500] {
        assert_eq!(scene.after(seconds).await, both);
    }
}

#[tokio::test]
async fn claims_follow_the_own_address_of_a_node() {
    let scene = scene().stored(&bound("mx", "25", "", "node-1")).called("node-1", &["203.0.113.7"]);
    let mut scene = scene.shown("mx", true);
    scene.after(1).await;
    scene.after(1).await;
    let mut scene = scene.called("node-1", &["203.0.113.9"]);
    scene.after(200).await;
    assert_eq!(
        scene.after(1).await,
        ["v4-203-0-113-7-tcp-25 Cooldown mx", "v4-203-0-113-9-tcp-25 Bound mx uid-mx"]
    );
    for seconds in [120, 1] {
        scene.after(seconds).await;
    }
    assert_eq!(scene.after(1).await, ["v4-203-0-113-9-tcp-25 Bound mx uid-mx"]);
}

#[tokio::test]
async fn of_two_that_ran_on_a_node_before_there_were_claims_the_one_that_is_served_gets_the_port() {
    let older = bound("old", "8080", "2026-01-01T00:00:00Z", "node-1");
    let younger = bound("young", "8080", "2026-01-02T00:00:00Z", "node-1");
    for (served, expected) in [(true, "young uid-young"), (false, "old")] {
        let scene = scene().stored(&older).stored(&younger).called("node-1", &["203.0.113.7"]);
        let mut scene = scene.shown("young", served);
        scene.after(1).await;
        assert_eq!(scene.after(1).await, [format!("v4-203-0-113-7-tcp-8080 Bound {expected}")]);
    }
}
