//! Who is served, who is told that somebody else is, and that neither ever depends on the order of events.

mod rollouts;

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::model::mapping::Address;
use crate::model::port::Protocol;
use crate::ruleset::desired::desired;

fn node() -> NodeFacts {
    NodeFacts {
        addresses: ["203.0.113.7".parse().unwrap(), "2001:db8::7".parse().unwrap()].into(),
        node_v4: Some("203.0.113.7".parse().unwrap()),
        node_v6: Some("2001:db8::7".parse().unwrap()),
        ..NodeFacts::default()
    }
}

fn mapping(external: &str) -> Mapping {
    let ports: PortRange = external.parse().unwrap();
    Mapping::new(Address::Node, Protocol::Tcp, ports, ports.first()).unwrap()
}

/// A ready pod of Deployment `app`, created at this second of a minute.
fn pod(app: &str, second: u8, external: &str) -> Candidate {
    let name = format!("{app}-{second}");
    Candidate {
        uid: format!("uid-{name}"),
        pod: ObjectName::new("mail", name),
        holder: Holder::new("Deployment", ObjectName::new("mail", app)),
        created: format!("2026-01-01T00:00:{second:02}Z"),
        ready: true,
        terminating: false,
        ips: vec![format!("10.244.{}.{second}", app.len()).parse().unwrap()],
        suspended: false,
        mappings: vec![mapping(external)],
        handover: Handover::WhenReady,
        udp_handover: None,
        leaving: Leaving::default(),
    }
}

fn not_ready(pod: Candidate) -> Candidate {
    Candidate { ready: false, ..pod }
}

fn terminating(pod: Candidate) -> Candidate {
    Candidate { terminating: true, ..pod }
}

fn without_address(pod: Candidate) -> Candidate {
    Candidate { ready: false, ips: Vec::new(), ..pod }
}

fn suspended(pod: Candidate) -> Candidate {
    Candidate { suspended: true, ..pod }
}

fn programmed(elected: &Elected) -> Ruleset {
    desired(&elected.endpoints, &node()).ruleset
}

fn served(candidates: &[Candidate], before: &Ruleset) -> Vec<String> {
    let elected = elect(candidates, &node(), before);
    elected.endpoints.iter().map(|endpoint| endpoint.pod.name.to_string()).collect()
}

fn only(candidate: &Candidate) -> Ruleset {
    programmed(&elect(std::slice::from_ref(candidate), &node(), &Ruleset::default()))
}

#[test]
fn within_a_holder_the_newest_ready_pod_is_served() {
    let old = pod("web", 1, "80");
    let nothing = Ruleset::default();
    let cases = [
        ("the newest ready one", pod("web", 2, "80"), "web-2"),
        ("not one that is not ready", not_ready(pod("web", 2, "80")), "web-1"),
        ("not one without an address", without_address(pod("web", 2, "80")), "web-1"),
        ("not one that ends", terminating(pod("web", 2, "80")), "web-1"),
    ];
    for (why, new, name) in cases {
        assert_eq!(served(&[old.clone(), new], &nothing), [name], "{why}");
    }
}

#[test]
fn with_no_pod_ready_the_served_one_stays_else_the_newest_with_an_address() {
    let [first, second] = [not_ready(pod("web", 1, "80")), not_ready(pod("web", 2, "80"))];
    let starting = without_address(pod("web", 3, "80"));
    let all = [first.clone(), second.clone(), starting.clone()];
    assert_eq!(served(&all, &Ruleset::default()), ["web-2"]);
    assert_eq!(served(&all, &only(&first)), ["web-1"]);
    assert_eq!(served(&[terminating(first.clone()), second.clone()], &only(&first)), ["web-1"]);
    assert_eq!(served(&[terminating(first), second.clone()], &Ruleset::default()), ["web-2"]);
    assert_eq!(served(&[starting], &only(&second)), ["web-3"], "its ports are reserved");
}

#[test]
fn r14_a_terminating_pod_is_served_only_until_another_is_ready() {
    let old = terminating(pod("web", 1, "80"));
    assert_eq!(served(std::slice::from_ref(&old), &only(&old)), ["web-1"]);
    assert_eq!(served(&[old.clone(), pod("web", 2, "80")], &only(&old)), ["web-2"]);
}

#[test]
fn a_suspended_pod_is_closed_and_keeps_the_port_where_no_other_pod_of_its_holder_can_have_it() {
    let web = pod("web", 2, "80");
    let closed = suspended(web.clone());
    let entries = |candidates: &[Candidate], before: &Ruleset| {
        let ruleset = programmed(&elect(candidates, &node(), before));
        ruleset.entries().map(ToString::to_string).collect::<Vec<_>>()
    };
    let reserved = ["203.0.113.7:80/tcp -> reserved"];
    for other in [None, Some(without_address(pod("web", 3, "80"))), Some(pod("other", 1, "80"))] {
        let candidates: Vec<_> = std::iter::once(closed.clone()).chain(other).collect();
        assert_eq!(entries(&candidates, &only(&web)), reserved, "{candidates:?}");
        assert_eq!(served(&candidates, &only(&web)), ["web-2"]);
    }
    let old = pod("web", 1, "80");
    for other in [old.clone(), not_ready(old.clone()), terminating(old.clone())] {
        assert_eq!(served(&[closed.clone(), other], &only(&web)), ["web-1"]);
    }
    // What must not be two at a time stays with the one that may have connections.
    let gone = |pod: Candidate| Candidate { handover: Handover::WhenGone, ..pod };
    assert_eq!(entries(&[gone(closed), gone(old)], &only(&web)), reserved);
    let immediate = Candidate { handover: Handover::Immediate, ..suspended(web) };
    assert_eq!(entries(&[immediate], &Ruleset::default()), reserved);
}

#[test]
fn between_holders_who_is_served_stays_then_the_oldest_wins() {
    let [web, other] = [pod("web", 5, "80"), pod("other", 1, "80")];
    let both = [web.clone(), other.clone()];
    assert_eq!(served(&both, &Ruleset::default()), ["other-1"], "the oldest");
    assert_eq!(served(&both, &only(&web)), ["web-5"], "the one that has it");
    let twins = [pod("a", 1, "80"), pod("b", 1, "80")];
    assert_eq!(served(&twins, &Ruleset::default()), ["a-1"], "the lowest UID");
}

#[test]
fn a_rollout_keeps_the_port_of_its_holder_although_another_pod_is_older() {
    let before = only(&pod("web", 5, "80"));
    let rollout = [terminating(pod("web", 5, "80")), pod("web", 9, "80"), pod("other", 1, "80")];
    assert_eq!(served(&rollout, &before), ["web-9"]);
}

#[test]
fn a_loser_is_told_who_has_the_port_and_a_waiting_pod_of_the_same_holder_is_none() {
    let candidates = [pod("web", 1, "80"), pod("web", 2, "80"), pod("other", 3, "79-81")];
    let elected = elect(&candidates, &node(), &Ruleset::default());
    let told: Vec<_> =
        elected.losers.iter().map(|loser| format!("{}: {}", loser.pod.name, loser.reason(true))).collect();
    assert_eq!(
        told,
        ["other-3: 79-81/tcp: is served on this node for Deployment mail/web (pod web-2) as 80/tcp; choose \
          another external port, or remove it there first"]
    );
}

#[test]
fn a_winner_in_another_namespace_is_named_only_where_that_may_be_disclosed() {
    let mut foreign = pod("web", 1, "80");
    foreign.pod = ObjectName::new("games", "web-1");
    let elected = elect(&[foreign, pod("other", 2, "80")], &node(), &Ruleset::default());
    assert!(elected.losers[0].reason(true).contains("Deployment mail/web (pod web-1)"));
    assert_eq!(
        elected.losers[0].reason(false),
        "80/tcp: is served on this node for an object in another namespace; choose another external port, or \
         remove it there first"
    );
}

#[test]
fn one_shared_port_costs_the_whole_range() {
    let candidates = [pod("web", 1, "7005"), pod("game", 2, "7000-7010"), pod("late", 3, "7000-7004")];
    let elected = elect(&candidates, &node(), &Ruleset::default());
    assert_eq!(elected.losers.len(), 1);
    let served: Vec<_> = elected.endpoints.iter().map(|endpoint| &*endpoint.pod.name).collect();
    assert_eq!(served, ["late-3", "web-1"], "what the loser leaves is free for others");
}

#[test]
fn a_holder_that_widens_its_range_keeps_what_it_has_against_newcomers() {
    let narrow = pod("web", 5, "7000-7005");
    let before = only(&narrow);
    let wide = Candidate { mappings: vec![mapping("7000-7010")], ..narrow };
    assert_eq!(served(&[wide.clone(), pod("other", 1, "7000-7005")], &before), ["web-5"]);
    let theirs = only(&pod("other", 1, "7006-7010"));
    assert_eq!(served(&[wide, pod("other", 1, "7006-7010")], &theirs), ["other-1"]);
}

#[test]
fn a_pod_that_asks_for_one_port_under_two_addresses_is_told_so() {
    let mut twice = pod("web", 1, "80");
    let named =
        Address::Fixed(crate::model::address::ExternalAddress::new("203.0.113.7".parse().unwrap()).unwrap());
    let port = Port::new(80).unwrap();
    twice
        .mappings
        .push(Mapping::new(named, Protocol::Tcp, PortRange::single(port), Port::new(8080).unwrap()).unwrap());
    let elected = elect(&[twice], &node(), &Ruleset::default());
    assert_eq!(elected.endpoints.len(), 1);
    assert_eq!(
        elected.losers[0].reason(false),
        "203.0.113.7:80/tcp: this pod asks for it twice on this node, also as 80/tcp; remove one of the two \
         entries"
    );
}

#[test]
fn what_the_node_cannot_serve_takes_nothing_from_anybody() {
    let v6_only = Candidate { ips: vec!["fd00::9".parse().unwrap()], ..pod("old", 1, "80") };
    let v4_node = NodeFacts { node_v6: None, ..node() };
    let elected = elect(&[v6_only, pod("web", 2, "80")], &v4_node, &Ruleset::default());
    assert!(elected.losers.is_empty());
    let desired = desired(&elected.endpoints, &v4_node);
    assert_eq!(desired.ruleset.len(), 1);
    assert_eq!(&*desired.refused[0].pod.name, "old-1");
}

#[test]
fn r07_a_conflict_stays_decided_over_100_resyncs_and_restarts() {
    let mut candidates = vec![pod("a", 3, "80"), pod("b", 2, "80"), pod("c", 1, "80")];
    let mut kernel = only(&candidates[0]);
    for resync in 0..100 {
        candidates.rotate_left(resync % 3);
        let elected = elect(&candidates, &node(), &kernel);
        assert_eq!(&*elected.endpoints[0].pod.name, "a-3", "resync {resync}");
        kernel = programmed(&elected);
    }
}

fn any_candidate() -> impl Strategy<Value = Candidate> {
    let ports = prop::collection::vec((1_u16..12, 0_u16..4), 1..3);
    let state = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let handover = prop::sample::select(&Handover::ALL[..]);
    let drawn = ("[abc]", 0_u8..60, ports, state, handover);
    drawn.prop_map(|(app, second, ports, (ready, terminating, addressed, suspended), handover)| {
        let mappings = ports.iter().map(|(first, span)| mapping(&format!("{first}-{}", first + span)));
        let ips = if addressed { pod(&app, second, "1").ips } else { Vec::new() };
        let mappings = mappings.collect();
        Candidate { ready, terminating, ips, suspended, mappings, handover, ..pod(&app, second, "1") }
    })
}

fn any_candidates() -> impl Strategy<Value = Vec<Candidate>> {
    prop::collection::vec(any_candidate(), 0..10).prop_map(|mut candidates| {
        let mut uids = BTreeSet::new();
        candidates.retain(|candidate| uids.insert(candidate.uid.clone()));
        candidates
    })
}

proptest! {
    #[test]
    fn r03_r04_the_outcome_never_depends_on_the_order_of_pods(
        (candidates, shuffled) in any_candidates().prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
        before in any_candidates(),
    ) {
        let kernel = programmed(&elect(&before, &node(), &Ruleset::default()));
        prop_assert_eq!(elect(&candidates, &node(), &kernel), elect(&shuffled, &node(), &kernel));
    }

    #[test]
    fn r07_electing_again_elects_the_same(candidates in any_candidates(), before in any_candidates()) {
        let kernel = programmed(&elect(&before, &node(), &Ruleset::default()));
        let once = elect(&candidates, &node(), &kernel);
        let again = elect(&candidates, &node(), &programmed(&once));
        prop_assert_eq!(once, again);
    }

    #[test]
    fn no_two_pods_are_served_on_one_port_and_nobody_waits_for_a_free_one(candidates in any_candidates()) {
        let elected = elect(&candidates, &node(), &Ruleset::default());
        let outcome = desired(&elected.endpoints, &node());
        prop_assert!(outcome.refused.is_empty(), "{:?}", outcome.refused);
        for loser in &elected.losers {
            prop_assert!(loser.winner.mapping.overlap(&loser.mapping).is_some());
            let is_served = |endpoint: &Endpoint| {
                endpoint.uid == loser.winner.uid && endpoint.mapping == loser.winner.mapping
            };
            let by_itself = loser.winner.uid == loser.uid;
            prop_assert!(by_itself || elected.endpoints.iter().any(is_served), "{loser:?}");
        }
    }
}
