//! How requests stand, as cases.

use serde_json::json;

use super::*;
use crate::api::object::NodeAddress;
use crate::cli::plugin::picture::kernel::lines_of_note;
use crate::cli::plugin::testing::kernel;
use crate::cli::plugin::testing::line;
use crate::cli::plugin::testing::node;
use crate::cli::plugin::testing::owned_by;
use crate::cli::plugin::testing::picture;
use crate::cli::plugin::testing::pinhole;
use crate::cli::plugin::testing::pod;
use crate::cluster::pinhole_watch;

/// How the requests of a picture stand: pod, external side, state.
fn states(picture: &Picture) -> Vec<String> {
    let told = |one: &Standing| format!("{} {} {}", one.asker.name().name, one.external, one.state.name());
    picture.standings().iter().map(told).collect()
}

#[test]
fn what_is_programmed_is_what_the_kernel_holds_and_the_rules_grant() {
    let web = || pod("web", "a", "node-1", "10.244.1.9", "8080:80", json!({}));
    let has_it = line("203.0.113.7:8080/tcp", Some("10.244.1.9:80"), "web/a", 4);
    let old_address = line("203.0.113.7:8080/tcp", Some("10.244.1.8:80"), "web/a", 4);
    let another = line("203.0.113.7:8080/tcp", Some("10.244.1.5:80"), "web/gone", 4);
    let told = Kernel { has_agent: true, read: None, told: vec![has_it.clone()] };
    let told_of_old = Kernel { told: vec![old_address.clone()], ..told.clone() };
    for (what, kernel, expected) in [
        ("held", Some(kernel(vec![has_it])), "Programmed"),
        ("nothing held", Some(kernel(Vec::new())), "Missing"),
        ("held for the pod's predecessor", Some(kernel(vec![old_address])), "Missing"),
        ("held for another pod", Some(kernel(vec![another])), "Missing"),
        ("told in an Event", Some(told.clone()), "Reported"),
        ("told of another address", Some(told_of_old), "Expected"),
        ("nothing told", Some(Kernel { told: Vec::new(), ..told.clone() }), "Expected"),
        ("told by an agent that is gone", Some(Kernel { has_agent: false, ..told }), "Reported"),
        ("no agent", None, "NoAgent"),
    ] {
        let kernels = kernel.into_iter().map(|kernel| ("node-1", kernel)).collect();
        let picture = picture(vec![node("node-1", "203.0.113.7"), web()], kernels);
        let standings = picture.standings();
        let of_web = standings.iter().find(|one| &*one.asker.name().name == "a").unwrap();
        assert_eq!(of_web.state.name(), expected, "{what}");
        assert_eq!(of_web.packets, (expected == "Programmed").then_some(4), "{what}");
    }
}

#[test]
fn the_address_that_the_kernel_serves_goes_before_those_of_the_node() {
    let lines = vec![line("198.51.100.4:8080/tcp", Some("10.244.1.9:80"), "web/a", 0)];
    let objects = vec![
        node("node-1", "203.0.113.7"),
        pod("web", "a", "node-1", "10.244.1.9", "8080:80", json!({})),
        pod("web", "b", "node-1", "10.244.1.10", "9090:80", json!({})),
    ];
    let picture = picture(objects, vec![("node-1", kernel(lines))]);
    assert_eq!(
        states(&picture),
        ["a 198.51.100.4:8080/tcp Programmed", "b 198.51.100.4:9090/tcp Missing"],
        "behind 1:1 NAT or with --include-net, only the agent knows its address"
    );
}

#[test]
fn between_holders_the_agents_own_election_decides() {
    let younger = pod("web", "young", "node-1", "10.244.1.9", "80", json!({}));
    let older = json!({"metadata": {"creationTimestamp": "2020-01-01T00:00:00Z"}});
    let older = pod("mail", "old", "node-1", "10.244.1.10", "80", older);
    let objects = || vec![node("node-1", "203.0.113.7"), younger.clone(), older.clone()];
    let none = picture(objects(), vec![("node-1", Kernel { has_agent: true, ..Kernel::default() })]);
    assert_eq!(states(&none), ["old 203.0.113.7:80/tcp Expected", "young 80/tcp Taken"]);
    let served = vec![line("203.0.113.7:80/tcp", Some("10.244.1.9:80"), "web/young", 1)];
    let served = picture(objects(), vec![("node-1", kernel(served))]);
    assert_eq!(
        states(&served),
        ["young 203.0.113.7:80/tcp Programmed", "old 80/tcp Taken"],
        "who has a port keeps it"
    );
}

#[test]
fn a_pod_of_the_same_holder_waits_and_is_not_refused() {
    let not_ready = |ip: &str, name: &str| {
        let mut changes = owned_by("StatefulSet", "game");
        json_patch::merge(&mut changes, &json!({"status": {"conditions": []}}));
        pod("games", name, "node-1", ip, "7000/udp", changes)
    };
    let lines = vec![line("203.0.113.7:7000/udp", Some("10.244.1.9:7000"), "games/game-0", 9)];
    let objects = vec![
        node("node-1", "203.0.113.7"),
        not_ready("10.244.1.9", "game-0"),
        not_ready("10.244.1.10", "game-1"),
    ];
    let picture = picture(objects, vec![("node-1", kernel(lines))]);
    assert_eq!(states(&picture), ["game-0 203.0.113.7:7000/udp Programmed", "game-1 7000/udp Waiting"]);
}

#[test]
fn what_is_suspended_is_told_so_however_much_is_known_of_the_kernel_unless_it_is_still_open_there() {
    let suspended = json!({"metadata": {"annotations": {"pinhole.dev/suspended": "true"}}});
    let closed = line("203.0.113.7:80/tcp", None, "web/a", 0);
    let open = line("203.0.113.7:80/tcp", Some("10.244.1.9:80"), "web/a", 0);
    for (kernel, expected) in [
        (kernel(vec![closed]), "Suspended"),
        (Kernel { has_agent: true, ..Kernel::default() }, "Suspended"),
        (kernel(vec![open]), "Missing"),
    ] {
        let web = pod("web", "a", "node-1", "10.244.1.9", "80", suspended.clone());
        let picture = picture(vec![node("node-1", "203.0.113.7"), web], vec![("node-1", kernel)]);
        assert_eq!(states(&picture), [format!("a 203.0.113.7:80/tcp {expected}")]);
    }
}

#[test]
fn leftovers_are_told_only_by_somebody_who_sees_every_pod() {
    let lines = vec![line("203.0.113.7:80/tcp", Some("10.244.1.9:80"), "web/gone", 1)];
    let mut picture = picture(vec![node("node-1", "203.0.113.7")], vec![("node-1", kernel(lines))]);
    assert_eq!(states(&picture), ["gone 203.0.113.7:80/tcp Leftover"]);
    picture.only_namespace = Some("web".to_owned());
    assert!(states(&picture).is_empty());
}

#[test]
fn a_dual_stack_node_serves_a_request_once_per_family() {
    let mut dual = node("node-1", "203.0.113.7");
    dual.status.addresses.push(NodeAddress { address: "2001:db8::7".to_owned(), ..NodeAddress::default() });
    let ips = json!({"status": {"podIPs": [{"ip": "10.244.1.9"}, {"ip": "fd00::9"}]}});
    let web = pod("web", "a", "node-1", "", "80", ips);
    let picture = picture(vec![dual, web], vec![("node-1", Kernel { has_agent: true, ..Kernel::default() })]);
    assert_eq!(states(&picture), ["a 203.0.113.7:80/tcp Expected", "a [2001:db8::7]:80/tcp Expected"]);
}

#[test]
fn where_claims_are_on_a_port_is_the_pod_s_only_once_its_pinhole_grants_it() {
    let said = |status: &str, reason: &str| {
        let condition = json!({"type": "Accepted", "status": status, "reason": reason, "message": "so it is",
            "lastTransitionTime": "2026-03-01T10:00:00Z"});
        json!({"spec": {"target": {"pod": "a", "podUID": "uid-web-a"}}, "status": {"conditions": [condition]}})
    };
    let mut granted = said("True", "Granted");
    granted["status"]["endpoints"] =
        json!([{"address": "203.0.113.7", "protocol": "TCP", "port": 80, "targetPort": 80}]);
    let mut reported = granted.clone();
    reported["status"]["nodes"] =
        json!([{"name": "node-1", "programmed": true, "reason": "Programmed", "observedGeneration": 2}]);
    reported["status"]["targets"] =
        json!([{"pod": "a", "podUID": "uid-web-a", "addresses": ["10.244.1.9"], "active": true}]);
    let of_an_older_pod = json!({"spec": {"target": {"podUID": "uid-before"}}});
    let of_before = json!({"status": {"observedGeneration": 1}});
    let with = |changes: &serde_json::Value| {
        let mut changed = granted.clone();
        json_patch::merge(&mut changed, changes);
        Some(changed)
    };
    for (what, says, expected) in [
        ("granted", Some(granted.clone()), "Expected"),
        ("granted, and the agent has said that it is programmed", Some(reported), "Reported"),
        ("granted to an older pod of the name", with(&of_an_older_pod), "Pending"),
        ("granted by an older request", with(&of_before), "Pending"),
        ("nothing said", None, "Pending"),
        ("claimed by another holder", Some(said("False", "PortTaken")), "Taken"),
        ("refused", Some(said("False", "Refused")), "Refused"),
        ("a full pool", Some(said("False", "NoFreePort")), "Full"),
        ("about to be claimed", Some(said("Unknown", "Waiting")), "Pending"),
    ] {
        let pinholes = says.map(|says| pinhole("web", "a", "node-1", says));
        let mut picture = picture(
            vec![
                node("node-1", "203.0.113.7"),
                pod("web", "a", "node-1", "10.244.1.9", "203.0.113.7:80", json!({})),
            ],
            Vec::new(),
        );
        picture.pinholes = Some(pinhole_watch::by_name(pinholes));
        let told = picture.told_in_pinholes().into_iter().map(|(_, line)| line).collect();
        let kernel = Kernel { has_agent: true, read: None, told };
        picture.kernels.insert("node-1".to_owned(), kernel);
        assert!(states(&picture)[0].ends_with(expected), "{what}: {:?}", states(&picture));
    }
}

#[test]
fn a_pinhole_of_a_user_is_served_by_the_nodes_that_have_its_addresses() {
    let says = |node: &str| json!({"name": node, "programmed": true, "reason": "Programmed", "observedGeneration": 2});
    let endpoint =
        |address: &str| json!({"address": address, "protocol": "TCP", "port": 443, "targetPort": 8443});
    let condition = |kind: &str, reason: &str| json!({"type": kind, "status": "True", "reason": reason, "lastTransitionTime": "2026-03-01T10:00:00Z"});
    let shop = json!({
        "metadata": {"labels": {"node.pinhole.dev/node-2": ""}},
        "spec": {"target": {"service": "shop"}, "addresses": ["203.0.113.7", "203.0.113.8"], "ports": [{"port": 443}]},
        "status": {
            "endpoints": [endpoint("203.0.113.7"), endpoint("203.0.113.8")],
            "targets": [{"pod": "a", "podUID": "u", "addresses": ["10.244.1.9"], "active": true}],
            "nodes": [says("node-1"), says("node-2")],
            "conditions": [condition("Accepted", "Granted"), condition("Programmed", "Programmed")],
        },
    });
    let mut picture = picture(vec![node("node-1", "10.0.0.1"), node("node-2", "10.0.0.2")], Vec::new());
    picture.pinholes = Some(pinhole_watch::by_name([pinhole("web", "shop", "node-1", shop)]));
    let addresses = |address: &str| BTreeSet::from([address.parse().unwrap()]);
    picture.node_addresses =
        [("node-1".to_owned(), addresses("203.0.113.7")), ("node-2".to_owned(), addresses("203.0.113.8"))]
            .into();
    for (node, line) in picture.told_in_pinholes() {
        picture.kernels.entry(node).or_default().told.push(line);
    }
    let told = |picture: &Picture| {
        let told = |one: Standing| format!("{} {:?} {:?}", one.external, one.node, one.state);
        picture.standings().into_iter().map(told).collect::<Vec<_>>()
    };
    assert_eq!(
        told(&picture),
        [r#"203.0.113.7:443/tcp Some("node-1") Reported"#, r#"203.0.113.8:443/tcp Some("node-2") Reported"#]
    );
    for pinhole in picture.pinholes.iter_mut().flat_map(BTreeMap::values_mut) {
        pinhole.spec.suspended = true;
    }
    assert!(told(&picture).iter().all(|one| one.ends_with(" Suspended")), "{:?}", told(&picture));
}

#[test]
fn a_pod_s_port_is_listed_on_the_node_that_serves_it_wherever_the_pod_runs() {
    let condition = |kind: &str, status: &str, reason: &str| {
        json!({"type": kind, "status": status, "reason": reason, "message": "so it is",
            "lastTransitionTime": "2026-03-01T10:00:00Z"})
    };
    let says = |programmed: &str, reason: &str| {
        json!({
            "metadata": {"labels": {"node.pinhole.dev/node-9": ""}},
            "spec": {
                "target": {"pod": "a", "podUID": "uid-web-a"},
                "ports": [{"targetPort": 80}], "holder": {"kind": "Pod", "namespace": "web", "name": "a"},
            },
            "status": {
                "endpoints": [{"address": "198.51.100.9", "protocol": "TCP", "port": 30001, "targetPort": 80,
                    "nodes": ["node-9"]}],
                "targets": [{"pod": "a", "podUID": "uid-web-a", "addresses": ["10.244.1.9"], "node": "node-1",
                    "active": true,
                    "state": {"created": "2026-03-01T10:00:00Z", "ready": true, "terminating": false}}],
                "conditions": [condition("Accepted", "True", "Granted"), condition("Programmed", programmed, reason)],
            },
        })
    };
    let has_it = vec![line("198.51.100.9:30001/tcp", Some("10.244.1.9:80"), "web/a", 4)];
    for (what, says, lines, expected) in [
        ("the kernel has it", says("True", "Programmed"), has_it, "Programmed"),
        ("it has nothing", says("False", "Failed"), Vec::new(), "Missing"),
    ] {
        let objects = vec![
            node("node-1", "203.0.113.7"),
            node("node-9", "10.0.0.9"),
            pod("web", "a", "node-1", "10.244.1.9", "auto:80", json!({})),
        ];
        let mut picture = picture(objects, vec![("node-9", kernel(lines))]);
        picture.pinholes = Some(pinhole_watch::by_name([pinhole("web", "a", "node-1", says)]));
        let addresses = BTreeSet::from(["198.51.100.9".parse().unwrap()]);
        picture.node_addresses = [("node-9".to_owned(), addresses)].into();
        let told = |one: Standing| format!("{} {:?} {}", one.external, one.node, one.state.name());
        let told: Vec<_> = picture.standings().into_iter().map(told).collect();
        assert_eq!(told, [format!("198.51.100.9:30001/tcp Some(\"node-9\") {expected}")], "{what}");
        picture.kernels.clear();
        picture.node_addresses.clear();
        assert_eq!(picture.standings().len(), 1, "{what}: then the Pinhole tells it");
    }
}

#[test]
fn the_notes_of_events_are_read_as_agents_write_them() {
    let pod = ObjectName::new("mail", "mx");
    let lines = lines_of_note(
        "203.0.113.7:25/tcp -> 10.244.1.9:25, [2001:db8::7]:7000-7010/udp -> [fd00::9]:7000-7010 on node-1",
        "node-1",
        &pod,
    );
    assert_eq!(lines[0], line("203.0.113.7:25/tcp", Some("10.244.1.9:25"), "mail/mx", 0));
    assert_eq!((lines[1].address.as_str(), lines[1].target.as_deref()), ("2001:db8::7", Some("fd00::9")));
    assert!(lines_of_note("203.0.113.7:25/tcp -> 10.244.1.9:25 on node-1", "node-2", &pod).is_empty());
}
