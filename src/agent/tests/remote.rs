//! The loop and the pods of other nodes, of which this one has an address: what the controller says of them in Pinholes, and what
//! the kernel and the reports then have.

use serde_json::Value;

use super::*;
use crate::api::crd::pinhole::Pinhole;
use crate::cluster::pinhole_watch::Pinholes;
use crate::model::holder::ObjectName;
use crate::ruleset::sources::Sources;

/// The Pinhole of a pod of node-9 that asks for a port here and one elsewhere; `changes` is merged into it.
#[expect(clippy::needless_pass_by_value, reason = "literal JSON at every call")]
fn remote(name: &str, ip: &str, changes: Value) -> (ObjectName, Pinhole) {
    let mut object = json!({
        "apiVersion": "pinhole.dev/v1alpha1", "kind": "Pinhole",
        "metadata": {"namespace": "mail", "name": name, "uid": format!("pinhole-{name}"), "generation": 3},
        "spec": {
            "target": {"pod": name, "podUID": format!("uid-{name}")},
            "holder": {"kind": "StatefulSet", "namespace": "mail", "name": "mx"},
            "ports": [
                {"address": "203.0.113.7", "protocol": "TCP", "port": 25, "targetPort": 2525},
                {"address": "203.0.113.99", "protocol": "TCP", "port": 26, "targetPort": 2525},
                {"protocol": "TCP", "port": 8080, "targetPort": 80},
            ],
        },
        "status": {
            "observedGeneration": 3,
            "endpoints": [
                {"address": "203.0.113.7", "protocol": "TCP", "port": 25, "targetPort": 2525, "nodes": ["node-1"]},
                {"address": "203.0.113.99", "protocol": "TCP", "port": 26, "targetPort": 2525, "nodes": ["node-8"]},
            ],
            "targets": [{
                "pod": name, "podUID": format!("uid-{name}"), "addresses": [ip], "node": "node-9", "active": false,
                "state": {"created": "2026-01-01T00:00:00Z", "ready": true, "terminating": false},
            }],
            "conditions": [{
                "type": "Accepted", "status": "True", "reason": "Granted", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
        },
    });
    json_patch::merge(&mut object, &changes);
    (ObjectName::new("mail", name), serde_json::from_value(object).unwrap())
}

fn mx(changes: Value) -> Pinholes {
    [remote("mx-0", "10.9.9.1", changes)].into()
}

/// How the pod is, as a target.
fn target(name: &str, ip: &str, (created, ready, terminating): (&str, bool, bool)) -> Value {
    json!({"status": {"targets": [{
        "pod": name, "podUID": format!("uid-{name}"), "addresses": [ip], "node": "node-9", "active": false,
        "state": {"created": created, "ready": ready, "terminating": terminating},
    }]}})
}

fn serving(kernel: Kernel, pinholes: Pinholes, pods: Vec<Object>) -> Bench {
    Bench::with_pods(claims::settings(kernel, pinholes), pods)
}

const ENTRY: &str = "203.0.113.7:25/tcp -> 10.9.9.1:2525";
const RESERVED: &str = "203.0.113.7:25/tcp -> reserved";

#[tokio::test]
async fn nobody_says_that_all_is_programmed_while_a_port_is_granted_here_that_is_asked_for_by_nobody() {
    let endpoint = |port| json!({"address": "203.0.113.7", "protocol": "TCP", "port": port, "targetPort": 2525, "nodes": ["node-1"]});
    let granted = json!({"status": {"endpoints": [endpoint(25), endpoint(27)]}});
    let bench = serving(Kernel::default(), mx(granted), Vec::new());
    bench.until("what is asked for is served", |bench| bench.kernel.entries() == [ENTRY]).await;
    let said = "false NotProgrammed Some(3) 203.0.113.7:27/tcp is granted on node-1, whose agent does not find it among what is asked \
                for there, so it is served for nobody; an agent that is older than the controller may not read all of a request";
    bench.until_said(said).await;
    bench.granted(mx(json!({})));
    bench.until_said("true Programmed Some(3) ").await;
}

#[tokio::test]
async fn a_pod_of_another_node_is_served_on_the_addresses_that_this_one_has_and_on_no_other() {
    let mut bench = serving(Kernel::default(), mx(json!({})), Vec::new());
    bench.until("programmed", |bench| bench.kernel.entries() == [ENTRY]).await;
    bench.until_said("true Programmed Some(3) ").await;
    let event = tokio::time::timeout(PATIENCE, bench.events.recv()).await.unwrap().unwrap();
    assert_eq!((&*event.regarding.kind, &*event.regarding.uid), ("Pod", "uid-mx-0"));
    assert_eq!(event.note, format!("{ENTRY} on node-1"));
    let mut starting = mx(json!({}));
    starting.values_mut().next().unwrap().status.as_mut().unwrap().targets[0].addresses.clear();
    bench.granted(starting);
    bench.until("no address: closed to all", |bench| bench.kernel.entries() == [RESERVED]).await;
    bench.until_said("false NoAddress Some(3) the pod has no address yet").await;
}

#[tokio::test]
async fn a_suspended_pod_of_another_node_is_closed_and_keeps_its_ports() {
    let bench = serving(Kernel::default(), mx(json!({})), Vec::new());
    bench.until("programmed", |bench| bench.kernel.entries() == [ENTRY]).await;
    let mut suspended = mx(json!({}));
    let status = suspended.values_mut().next().unwrap().status.as_mut().unwrap();
    status.targets[0].state.as_mut().unwrap().suspended = true;
    bench.granted(suspended);
    bench.until("closed", |bench| bench.kernel.entries() == [RESERVED]).await;
    bench
        .until("told", |bench| bench.said().starts_with("false Suspended Some(3) the pod has pinhole.dev/"))
        .await;
}

#[tokio::test]
async fn nothing_is_served_for_it_that_its_pinhole_does_not_ask_for_or_does_not_grant_here() {
    let here = |endpoint: Value| json!({"status": {"endpoints": [endpoint]}});
    let port = |number: u16| json!({"address": "203.0.113.7", "protocol": "TCP", "port": number, "targetPort": 2525, "nodes": ["node-1"]});
    let mut of_nobody = port(25);
    of_nobody["nodes"] = json!([]);
    let mut of_another = port(25);
    of_another["nodes"] = json!(["node-2"]);
    for (what, changes) in [
        ("its node has the address now", here(of_another)),
        ("a controller that names no nodes means the pod's", here(of_nobody)),
        ("not asked for", here(port(27))),
        ("taken away", json!({"status": {"endpoints": []}})),
        ("over", json!({"spec": {"suspended": true}})),
    ] {
        let bench = serving(Kernel::default(), mx(json!({})), Vec::new());
        bench.until("programmed", |bench| bench.kernel.entries() == [ENTRY]).await;
        bench.granted(mx(changes));
        bench.until(what, |bench| bench.kernel.count() == 0).await;
        bench.until_said("false Released Some(3) node-1 serves nothing of it").await;
    }
}

#[tokio::test]
async fn an_address_that_this_node_lost_is_said_to_be_missing() {
    let bench = serving(Kernel::default(), mx(json!({})), Vec::new());
    bench.until("programmed", |bench| bench.kernel.entries() == [ENTRY]).await;
    *bench.public.lock().unwrap() = "203.0.113.8";
    bench.until("closed", |bench| bench.kernel.count() == 0).await;
    bench
        .until("told", |bench| {
            bench.said().starts_with("false NotProgrammed Some(3) 203.0.113.7:25/tcp: 203.0.113.7 is not an")
        })
        .await;
}

#[tokio::test]
async fn what_is_programmed_for_it_stays_until_the_controller_has_decided_again() {
    let bench = serving(Kernel::default(), mx(json!({})), Vec::new());
    bench.until("programmed", |bench| bench.kernel.entries() == [ENTRY]).await;
    bench.keeps_while_undecided(ENTRY, mx).await;
}

#[tokio::test]
async fn packets_are_led_to_pods_only_whatever_a_pinhole_says() {
    for address in ["127.0.0.1", "169.254.169.254", "203.0.113.7"] {
        let forged = target("mx-0", address, ("2026-01-01T00:00:00Z", true, false));
        let bench = serving(Kernel::default(), mx(forged), Vec::new());
        bench.until("told", |bench| bench.said().starts_with("false NotProgrammed Some(3)")).await;
        assert_eq!(bench.kernel.count(), 0, "{address}");
    }
}

#[tokio::test]
async fn a_found_port_is_served_for_it_for_those_who_may_connect() {
    let asks = json!({"spec": {"ports": [{"protocol": "TCP", "targetPort": 2525, "allowedSources": ["192.0.2.0/24"]}]}});
    let bench = serving(Kernel::default(), mx(asks), Vec::new());
    bench.until("programmed", |bench| bench.kernel.count() == 1).await;
    let entries: Vec<_> = bench.kernel.ruleset.lock().unwrap().entries().cloned().collect();
    assert!(entries[0].to_string().starts_with(ENTRY), "{}", entries[0]);
    assert_ne!(entries[0].allowed_sources, Sources::default());
}

#[tokio::test]
async fn of_the_pods_of_one_holder_the_newest_ready_one_is_served_wherever_they_run() {
    const OLD: &str = "2025-01-01T00:00:00Z";
    const NEW: &str = "2026-02-01T00:00:00Z";
    let both = |new: (bool, bool), old: (bool, bool)| -> Pinholes {
        let is = |name, ip, created, (ready, terminating)| {
            remote(name, ip, target(name, ip, (created, ready, terminating)))
        };
        [is("new", "10.9.9.2", NEW, new), is("old", "10.9.9.1", OLD, old)].into()
    };
    let led = |bench: &Bench| bench.kernel.entries().join(" ");
    let to = |ip: &str| format!("203.0.113.7:25/tcp -> {ip}:2525");
    let bench = serving(Kernel::default(), both((false, false), (true, false)), Vec::new());
    bench.until("only the old one is ready", |bench| led(bench) == to("10.9.9.1")).await;
    bench
        .until("both are heard of", |bench| {
            let said = bench.said();
            said.contains("NotReady Some(3) its containers are not ready")
                && said.contains("true Programmed Some(3)")
        })
        .await;
    bench.granted(both((true, false), (true, false)));
    bench.until("the new one is ready", |bench| led(bench) == to("10.9.9.2")).await;
    bench.until("the old one stands by", |bench| bench.said().contains("false Standby Some(3)")).await;
    bench.granted(both((false, true), (true, false)));
    bench.until("the new one ends", |bench| led(bench) == to("10.9.9.1")).await;
    bench.granted(both((true, false), (true, false)));
    bench.until("the new one is back", |bench| led(bench) == to("10.9.9.2")).await;
    // As the controller says of a pod whose node is lost.
    bench.granted(both((false, false), (true, false)));
    bench.until("the node of the new one is lost", |bench| led(bench) == to("10.9.9.1")).await;
    bench.granted(both((true, false), (true, false)));
    bench.until("the new one is back again", |bench| led(bench) == to("10.9.9.2")).await;
    let mut without = both((true, false), (true, false));
    without.retain(|name, _| &*name.name != "new");
    bench.granted(without);
    bench.until("the new one is gone", |bench| led(bench) == to("10.9.9.1")).await;

    // One of this node beside them is as any of them.
    let mut here = exposing(pod(1), "203.0.113.7:25:2525");
    here.metadata.creation_timestamp = "2026-03-01T00:00:00Z".to_owned();
    let granted_here = json!({"metadata": {"name": "pod-1", "uid": "pinhole-pod-1"},
        "spec": {"target": {"pod": "pod-1", "podUID": "uid-1"}}, "status": {"targets": []}});
    let mut all = both((true, false), (true, false));
    all.extend([remote("pod-1", "10.244.0.2", granted_here)]);
    bench.granted(all);
    bench.apply(here);
    bench.until("the newest runs here", |bench| led(bench) == to("10.244.0.2")).await;
}

#[tokio::test]
async fn a_pods_own_node_does_not_miss_what_another_one_serves() {
    let pod = exposing(pod(1), "203.0.113.99:26:2525,8080:80");
    let mut pinhole = remote("pod-1", "10.244.0.2", json!({"spec": {"target": {"podUID": "uid-1"}}}));
    let status = pinhole.1.status.as_mut().unwrap();
    status.targets[0].pod_uid = "uid-1".to_owned();
    status.targets[0].node = Some("node-1".to_owned());
    status.own_addresses = vec!["203.0.113.7".to_owned()];
    status.endpoints.remove(0);
    let own = json!({"address": "203.0.113.7", "protocol": "TCP", "port": 8080, "targetPort": 80, "nodes": ["node-1"]});
    status.endpoints.push(serde_json::from_value(own).unwrap());
    let bench = serving(Kernel::default(), [pinhole].into(), vec![pod]);
    bench.until("its own", |bench| bench.kernel.entries() == ["203.0.113.7:8080/tcp -> 10.244.0.2:80"]).await;
    bench.until_said("true Programmed Some(3) ").await;
}
