//! What is said of trials that end in each way.

use super::*;
use crate::cli::plugin::testing::golden;
use crate::cli::plugin::testing::town;
use crate::model::port::Port;
use crate::model::port::Protocol;

fn port(protocol: Protocol) -> PortReference {
    PortReference { address: "203.0.113.7".parse().unwrap(), port: Port::new(25).unwrap(), protocol }
}

#[expect(clippy::unnecessary_wraps, reason = "as attempts have it")]
fn reached(outcome: Outcome, from: Option<&str>) -> Result<Reached, String> {
    Ok(Reached { outcome, from: from.map(|from| from.parse().unwrap()), error: None })
}

fn flow(client: &str, answered_by: &str) -> SeenFlow {
    SeenFlow {
        client: client.parse().unwrap(),
        client_port: 40000,
        answered_by: answered_by.parse().unwrap(),
        answered_from: 25,
        seen_by_pod: client.parse().unwrap(),
        answered: true,
    }
}

fn trial(
    protocol: Protocol,
    attempts: Vec<Result<Reached, String>>,
    flows: Result<Vec<SeenFlow>, String>,
) -> Trial {
    let standing = town().standings().into_iter().find(|one| one.state == State::Programmed).unwrap();
    let places = ["this machine", "node node-2"].into_iter();
    let attempts =
        places.zip(attempts).map(|(from, reached)| Attempt { from: from.to_owned(), reached }).collect();
    Trial { standing, port: port(protocol), attempts, flows }
}

#[test]
fn only_an_answer_or_a_translated_datagram_is_proof() {
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    let (silent, sent) = (reached(Outcome::Silent, None), reached(Outcome::Sent, Some("198.51.100.9:40000")));
    let open = reached(Outcome::Open, Some("198.51.100.9:40000"));
    let denied = "the right to create pods/exec in the agents' namespace is missing";
    let to_pod = || Ok(vec![flow("198.51.100.9", "10.244.1.9")]);
    let to_node = || Ok(vec![flow("198.51.100.9", "203.0.113.7")]);
    let cases = [
        ("one of two gets through", trial(tcp, vec![silent.clone(), open], to_pod()), Verdict::Reached),
        (
            "nobody answers",
            trial(tcp, vec![silent.clone(), Err(denied.to_owned())], Ok(Vec::new())),
            Verdict::Failed,
        ),
        ("packets arrive", trial(tcp, vec![silent], to_pod()), Verdict::Failed),
        ("the pod refuses", trial(tcp, vec![reached(Outcome::Refused, None)], to_pod()), Verdict::Failed),
        ("a datagram reaches the pod", trial(udp, vec![sent.clone()], to_pod()), Verdict::Reached),
        ("a datagram reaches the node alone", trial(udp, vec![sent.clone()], to_node()), Verdict::Failed),
        ("a datagram, and nobody may look", trial(udp, vec![sent], Err(denied.to_owned())), Verdict::Untried),
    ];
    let mut text = String::new();
    for (what, trial, verdict) in cases {
        assert_eq!(trial.verdict(), verdict, "{what}");
        text.extend(["# ", what, "\n", &trial.text(Palette { is_colourful: false }), "\n"]);
    }
    golden("test.txt", &text);
}
