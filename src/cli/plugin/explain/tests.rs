//! What users read, as files.

use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use super::*;
use crate::cli::plugin::list;
use crate::cli::plugin::list::Width;
use crate::cli::plugin::reference::Reference;
use crate::cli::plugin::testing::golden;
use crate::cli::plugin::testing::town;

const PLAIN: Palette = Palette { is_colourful: false };

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

#[test]
fn the_tables_show_every_state() {
    let standings = town().standings();
    golden("list.txt", &list::text(&standings, Width::Usual, now(), PLAIN));
    golden("list-wide.txt", &list::text(&standings, Width::Wide, now(), PLAIN));
    golden("list-coloured.txt", &list::text(&standings, Width::Usual, now(), Palette { is_colourful: true }));
    golden("list.json", &(serde_json::to_string_pretty(&list::json(&standings)).unwrap() + "\n"));
}

#[test]
fn objects_and_ports_are_explained_with_why_and_what_next() {
    let town = town();
    let mut text = String::new();
    for (namespace, what) in [
        ("mail", "pod/mx-0"),
        ("mail", "pod/starting"),
        ("web", "deployment/front"),
        ("web", "deployment/ssh"),
        ("web", "deployment/plain"),
        ("web", "pod/ssh"),
        ("web", "pod/foreign"),
        ("web", "pod/lost"),
        ("games", "pod/quake"),
        ("games", "pod/new"),
        ("games", "pod/alone"),
        ("games", "pod/unplaced"),
        ("games", "pod/ended"),
        ("web", "203.0.113.7:25"),
        ("web", "203.0.113.7:143"),
        ("web", "203.0.113.7:9999"),
        ("web", "203.0.113.7:10250"),
        ("web", "203.0.113.8:7005/udp"),
        ("web", "203.0.113.9:7200/udp"),
        ("web", "203.0.113.7:8443"),
        ("web", "192.0.2.1:22"),
    ] {
        let answer = match what.parse().unwrap() {
            Reference::Object(wanted) => object(&town, namespace, &wanted, PLAIN).unwrap(),
            Reference::Port(wanted) => port(&town, namespace, &wanted, &[], PLAIN),
        };
        text.extend(["$ kubectl pinhole explain -n ", namespace, " ", what, "\n", &answer, "\n"]);
    }
    golden("explain.txt", &text);
}

#[test]
fn what_does_not_exist_is_not_explained() {
    let Reference::Object(wanted) = "pod/nobody".parse().unwrap() else { panic!("an object") };
    assert_eq!(object(&town(), "mail", &wanted, PLAIN), None);
}

#[test]
fn a_claimed_port_is_told_with_its_holder() {
    let claim = |name: &str, port: u16, end: Option<u16>| {
        json!({
            "metadata": {"name": name},
            "spec": {
                "address": "203.0.113.99", "protocol": "TCP", "port": port, "portEnd": end, "state": "Bound",
                "since": "2026-03-01T10:00:00Z",
                "holder": {"kind": "Deployment", "namespace": "web", "name": "front"},
            },
        })
    };
    let claims =
        [claim("v4-203-0-113-99-tcp-80", 80, None), claim("v4-203-0-113-99-tcp-7008-7023", 7008, Some(7023))];
    let told = |port_number: &str| {
        let Reference::Port(wanted) = format!("203.0.113.99:{port_number}").parse().unwrap() else {
            panic!("a port")
        };
        port(&town(), "web", &wanted, &claims, PLAIN)
    };
    let of_one = told("80");
    let claim = "v4-203-0-113-99-tcp-80 for Deployment web/front, Bound since 2026-03-01T10:00:00Z";
    assert!(of_one.contains(claim) && of_one.contains("whoever the claim names"), "{of_one}");
    assert!(!of_one.contains("a new pod"), "what is claimed is not promised to others: {of_one}");
    assert!(told("7010").contains("v4-203-0-113-99-tcp-7008-7023"), "{}", told("7010"));
    for other in ["81", "80/udp", "7024"] {
        assert!(told(other).contains("nobody, and no pod asks for it"), "{}", told(other));
    }
}
