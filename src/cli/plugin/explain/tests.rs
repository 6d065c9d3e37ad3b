//! What users read, as files.

use k8s_openapi::jiff::Timestamp;

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
            Reference::Port(wanted) => port(&town, namespace, &wanted, PLAIN),
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
