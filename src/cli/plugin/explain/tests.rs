//! What users read, as files.

use k8s_openapi::jiff::SignedDuration;
use k8s_openapi::jiff::Timestamp;

use super::*;
use crate::allocation::claim::Claim;
use crate::api::crd::port_claim::ClaimState;
use crate::cli::plugin::explain::port::ClaimOnIt;
use crate::cli::plugin::list;
use crate::cli::plugin::list::Width;
use crate::cli::plugin::reference::Reference;
use crate::cli::plugin::testing::golden;
use crate::cli::plugin::testing::harbour;
use crate::cli::plugin::testing::town;

const PLAIN: Palette = Palette { is_colourful: false };

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

/// A command, and what it prints.
fn explained(picture: &Picture, namespace: &str, what: &str, claims: &[ClaimOnIt]) -> String {
    let answer = match what.parse().unwrap() {
        Reference::Object(wanted) => object(picture, namespace, &wanted, PLAIN).unwrap(),
        Reference::Port(wanted) => port::port(picture, namespace, &wanted, claims, PLAIN),
    };
    format!("$ kubectl pinhole explain -n {namespace} {what}\n{answer}\n")
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
        ("web", "pod/shut"),
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
        text.push_str(&explained(&town, namespace, what, &[]));
    }
    golden("explain.txt", &text);
}

#[test]
fn what_does_not_exist_is_not_explained() {
    let Reference::Object(wanted) = "pod/nobody".parse().unwrap() else { panic!("an object") };
    assert_eq!(object(&town(), "mail", &wanted, PLAIN), None);
}

fn claim(name: &str, state: ClaimState) -> ClaimOnIt {
    let holder = Holder::new("Deployment", ObjectName::new("web", "front"));
    let claim = Claim::reserve(name.parse().unwrap(), holder, "2026-03-01T10:00:00Z".parse().unwrap());
    let claim = Claim { pool: Some("edge".to_owned()), state, ..claim };
    ClaimOnIt { claim, cooldown: (state == ClaimState::Cooldown).then(|| SignedDuration::from_secs(300)) }
}

#[test]
fn a_claimed_port_is_told_with_its_holder_and_what_its_claim_waits_for() {
    let Reference::Port(wanted) = "203.0.113.99:80".parse().unwrap() else { panic!("a port") };
    let told = |claim: ClaimOnIt| port::port(&town(), "web", &wanted, &[claim], PLAIN);
    let mut text = String::new();
    for state in ClaimState::ALL {
        text.extend([&told(claim("v4-203-0-113-99-tcp-80", state)), "\n"]);
    }
    let of_unknown_pool =
        ClaimOnIt { cooldown: None, ..claim("v4-203-0-113-99-tcp-80-95", ClaimState::Cooldown) };
    text.push_str(&told(of_unknown_pool));
    assert!(!text.contains("a new pod"), "what is claimed is not promised to others: {text}");
    golden("explain-claimed.txt", &text);
}

#[test]
fn where_claims_are_on_automatic_ports_and_pinholes_of_users_are_told_too() {
    let harbour = harbour();
    let standings = harbour.standings();
    golden("claims-list.txt", &list::text(&standings, Width::Wide, now(), PLAIN));
    golden("claims-list.json", &(serde_json::to_string_pretty(&list::json(&standings)).unwrap() + "\n"));
    let releasing = claim("v4-198-51-100-4-tcp-30009", ClaimState::Releasing);
    let mut text = String::new();
    for (namespace, what, claims) in [
        ("games", "pod/lobby", &[][..]),
        ("games", "pod/gated", &[]),
        ("games", "pod/full", &[]),
        ("games", "pinhole/lobby", &[]),
        ("web", "pinhole/shop", &[]),
        ("web", "pinhole/nowhere", &[]),
        ("web", "198.51.100.4:443", &[]),
        ("web", "198.51.100.4:30009", &[releasing]),
    ] {
        text.push_str(&explained(&harbour, namespace, what, claims));
    }
    golden("claims-explain.txt", &text);
}
