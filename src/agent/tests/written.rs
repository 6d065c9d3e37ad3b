//! The loop and the Pinholes that users write: what the kernel and the reports have of them.

use serde_json::Value;

use super::*;
use crate::api::crd::pinhole::Pinhole;
use crate::cluster::pinhole_watch::Pinholes;
use crate::model::holder::ObjectName;

/// A Pinhole with port 443 of 203.0.113.7, granted and led to a pod of another node; `changes` is merged into it.
#[expect(clippy::needless_pass_by_value, reason = "literal JSON at every call")]
fn written(changes: Value) -> Pinholes {
    let mut object = json!({
        "apiVersion": "pinhole.dev/v1alpha1", "kind": "Pinhole",
        "metadata": {"namespace": "shop", "name": "web", "uid": "pinhole-1", "generation": 3},
        "spec": {"target": {"service": "web"}, "addresses": ["203.0.113.7", "203.0.113.99"], "ports": [{"port": 443}]},
        "status": {
            "observedGeneration": 3,
            "endpoints": [
                {"address": "203.0.113.7", "protocol": "TCP", "port": 443, "targetPort": 8443},
                {"address": "203.0.113.99", "protocol": "TCP", "port": 443, "targetPort": 8443},
            ],
            "targets": [{"pod": "web-1", "podUID": "uid-web-1", "addresses": ["10.244.9.1"], "node": "node-9", "active": true}],
            "conditions": [{
                "type": "Accepted", "status": "True", "reason": "Granted", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
        },
    });
    json_patch::merge(&mut object, &changes);
    let object: Pinhole = serde_json::from_value(object).unwrap();
    [(ObjectName::new("shop", "web"), object)].into()
}

fn serving(changes: Value) -> Bench {
    Bench::with_pods(claims::settings(Kernel::default(), written(changes)), Vec::new())
}

const ENTRY: &str = "203.0.113.7:443/tcp -> 10.244.9.1:8443";
const RESERVED: &str = "203.0.113.7:443/tcp -> reserved";

#[tokio::test]
async fn a_user_s_pinhole_is_served_on_the_addresses_that_the_node_has_and_follows_its_status() {
    let bench = serving(json!({}));
    bench.until("programmed", |bench| bench.kernel.entries() == [ENTRY]).await;
    bench.until_said("true Programmed Some(3) ").await;
    let other = json!({"status": {"targets":
        [{"pod": "web-2", "podUID": "uid-web-2", "addresses": ["10.244.0.7"], "node": "node-1", "active": true}]}});
    bench.granted(written(other));
    bench
        .until("another pod", |bench| bench.kernel.entries() == ["203.0.113.7:443/tcp -> 10.244.0.7:8443"])
        .await;
    bench.granted(written(json!({"status": {"targets": []}})));
    bench.until("no pod: closed to all", |bench| bench.kernel.entries() == [RESERVED]).await;
    bench.until_said("false NoTarget Some(3) there is no ready pod to lead to").await;
    bench.granted(Pinholes::new());
    bench.until("deleted", |bench| bench.kernel.count() == 0).await;
}

#[tokio::test]
async fn a_pod_of_the_same_name_has_its_own_ports_and_is_not_taken_for_a_leftover() {
    let mut namesake = pod(80);
    namesake.metadata.namespace = "shop".to_owned();
    namesake.metadata.name = "web".to_owned();
    // The controller makes no Pinhole in the place of a user's, so that it decides nothing about this pod.
    let kernel = claims::left_without_claims(namesake.clone()).await;
    let bench = Bench::with_pods(claims::settings(kernel, written(json!({}))), vec![namesake]);
    bench.until("programmed", |bench| bench.kernel.count() == 2).await;
    bench.until_said("true Programmed Some(3) ").await;
}

#[tokio::test]
async fn the_pod_behind_a_pinhole_leaves_with_its_address_only_where_that_is_asked_for() {
    let bench = serving(json!({}));
    bench.until("programmed", |bench| bench.kernel.entries() == [ENTRY]).await;
    assert_eq!(bench.kernel.egress(), [""; 0]);
    bench.granted(written(json!({"spec": {"egress": "External"}})));
    bench.until("leaving", |bench| bench.kernel.egress() == ["10.244.9.1 203.0.113.7"]).await;
    bench.granted(written(json!({"spec": {"egress": "External"}, "status": {"targets": []}})));
    bench.until("no pod any more", |bench| bench.kernel.egress().is_empty()).await;
}

#[tokio::test]
async fn suspending_a_pinhole_closes_its_ports_and_keeps_them() {
    let bench = serving(json!({"spec": {"suspended": true}}));
    bench.until("reserved", |bench| bench.kernel.entries() == [RESERVED]).await;
    bench.granted(written(json!({})));
    bench.until("open", |bench| bench.kernel.entries() == [ENTRY]).await;
}

#[tokio::test]
async fn nothing_is_programmed_that_the_spec_does_not_ask_for_or_the_status_does_not_grant() {
    let ungranted = json!({"status": {"endpoints": []}});
    let removed = json!({"spec": {"ports": [{"port": 444}]}});
    let deleted = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    for changes in [ungranted, removed, deleted] {
        let bench = serving(json!({}));
        bench.until("programmed", |bench| bench.kernel.entries() == [ENTRY]).await;
        bench.granted(written(changes));
        bench.until("closed", |bench| bench.kernel.count() == 0).await;
        bench.until_said("false Released Some(3) node-1 serves nothing of it").await;
    }
}

#[tokio::test]
async fn what_is_programmed_stays_until_the_controller_has_decided_again() {
    let bench = serving(json!({}));
    bench.until("programmed", |bench| bench.kernel.entries() == [ENTRY]).await;
    bench.keeps_while_undecided(ENTRY, written).await;
}

#[tokio::test]
async fn packets_are_led_to_pods_and_to_nothing_else() {
    for address in ["127.0.0.1", "169.254.169.254", "203.0.113.7"] {
        let forged = json!({"status": {"targets":
            [{"pod": "web-1", "podUID": "uid-web-1", "addresses": [address], "active": true}]}});
        let bench = serving(forged);
        bench.until("told", |bench| bench.said().starts_with("false NotProgrammed Some(3)")).await;
        assert_eq!(bench.kernel.count(), 0, "{address}");
    }
}

#[tokio::test]
async fn the_pinhole_hears_of_its_ports_in_an_event_of_its_own() {
    let mut bench = serving(json!({}));
    let event = tokio::time::timeout(PATIENCE, bench.events.recv()).await.unwrap().unwrap();
    assert_eq!((&*event.regarding.kind, &*event.regarding.uid), ("Pinhole", "pinhole-1"));
    assert_eq!(event.note, format!("{ENTRY} on node-1"));
}
