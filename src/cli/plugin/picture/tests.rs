//! How requests stand, as cases.

use serde_json::json;

use super::*;
use crate::cli::plugin::picture::kernel::lines_of_note;
use crate::cli::plugin::testing::kernel;
use crate::cli::plugin::testing::line;
use crate::cli::plugin::testing::node;
use crate::cli::plugin::testing::owned_by;
use crate::cli::plugin::testing::picture;
use crate::cli::plugin::testing::pod;

/// How the requests of a picture stand: pod, external side, state.
fn states(picture: &Picture) -> Vec<String> {
    let told = |one: &Standing| format!("{} {} {}", one.pod.name, one.external, one.state.name());
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
        let of_web = standings.iter().find(|one| &*one.pod.name == "a").unwrap();
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
