//! What a node should serve, computed from elected endpoints and facts about the node.
//!
//! # Guarantees
//! The same input gives the same rules, and one endpoint that cannot be programmed never keeps another from being
//! programmed: it is refused with the reason.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::address::ExternalAddress;
use crate::model::address::Family;
use crate::model::handover::UdpHandover;
use crate::model::mapping::Address;
use crate::ruleset::Ruleset;
use crate::ruleset::endpoint::Endpoint;
use crate::ruleset::endpoint::Leaving;
use crate::ruleset::endpoint::Reason;
use crate::ruleset::endpoint::Refused;
use crate::ruleset::entry::Egress;
use crate::ruleset::entry::Entry;
use crate::ruleset::entry::Key;
use crate::ruleset::entry::Target;
use crate::ruleset::masquerade;
use crate::ruleset::masquerade::Masquerade;
use crate::ruleset::node::NodeFacts;
use crate::ruleset::owner::Owner;
use crate::ruleset::sources::Lists;
use crate::ruleset::sources::SameName;
use crate::ruleset::sources::Sources;

/// What a node should have, and what it cannot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// What should be programmed.
    pub ruleset: Ruleset,
    /// What cannot be, with the reason.
    pub refused: Vec<Refused>,
    /// Entries whose connections end when their source may no longer connect.
    pub terminating: BTreeSet<Key>,
    /// What becomes of UDP flows when another pod takes over, of the entries that say it.
    pub udp_handover: BTreeMap<Key, UdpHandover>,
}

/// The rules that serve these endpoints on this node.
///
/// Endpoints are taken in the given order: when two want one external port, the first has it and the second is
/// refused. An endpoint without addresses, or one that is suspended, reserves its ports, so that nobody else on the node answers for
/// them.
pub fn desired(endpoints: &[Endpoint], node: &NodeFacts) -> Desired {
    desired_with(Lists::named_by(Sources::id), endpoints, node)
}

fn desired_with<'a>(mut lists: Lists<'a>, endpoints: &'a [Endpoint], node: &NodeFacts) -> Desired {
    let ips = endpoints.iter().flat_map(|endpoint| &endpoint.ips);
    let here = ips.filter(|ip| node.pods.contains(ip)).map(|ip| IpNet::from(*ip));
    let ruleset = Ruleset::new(
        // What is outside of these is taken for a pod of another node.
        node.pod_cidrs.iter().copied().chain(here),
        node.inside().chain(node.masquerade.iter().flat_map(masquerade::exempted)),
        // Every node has loopback addresses of both families, which says nothing.
        node.addresses.iter().filter_map(|ip| ExternalAddress::new(*ip).ok()).map(ExternalAddress::family),
    );
    let masquerade = node.masquerade.as_ref().map(|policy| Masquerade::of(policy, node)).unwrap_or_default();
    let mut desired = Desired { ruleset: ruleset.with_masquerade(masquerade), ..Desired::default() };
    let mut egress: BTreeMap<IpAddr, (EgressRank, Owner)> = BTreeMap::new();
    for endpoint in endpoints {
        let owner = Owner::new(&endpoint.pod, &endpoint.uid);
        let places = match places(endpoint, node) {
            Ok(places) => places,
            Err(reason) => {
                desired.refused.push(Refused::new(endpoint, reason));
                continue;
            }
        };
        for (key, pod) in places {
            let entry = match entry(endpoint, &owner, (key, pod), &mut lists) {
                Ok(entry) => entry,
                Err(same) => {
                    desired.refused.push(Refused::new(endpoint, Reason::SameName(same)));
                    continue;
                }
            };
            if desired.ruleset.entry(&key) != Some(&entry)
                && let Err(taken) = desired.ruleset.insert(entry)
            {
                desired.refused.push(Refused::new(endpoint, Reason::Taken(taken)));
                continue;
            }
            if endpoint.mapping.terminates_existing() {
                desired.terminating.insert(key);
            }
            desired.udp_handover.extend(endpoint.udp_handover.map(|handover| (key, handover)));
            let Some(pod) = pod.filter(|_| endpoint.leaving != Leaving::AsTheClusterDoes) else { continue };
            let rank = EgressRank {
                leaving: endpoint.leaving,
                node: endpoint.mapping.address() == Address::Node,
                external: key.external,
            };
            let candidate = (rank, owner.clone());
            let best = egress.entry(pod).or_insert_with(|| candidate.clone());
            if candidate.0 < best.0 {
                *best = candidate;
            }
        }
    }
    let fixed: Vec<_> = egress.values().map(|(rank, _)| rank.external).collect();
    desired.ruleset = desired.ruleset.with_sheltered(node.sheltered(&fixed));
    for (pod, (rank, owner)) in egress {
        desired.ruleset.set_egress(Egress { pod, external: rank.external, owner });
    }
    desired
}

/// Which of several external addresses a pod leaves with: one that it is to leave with before those of its ports, one that it asked
/// for by name before the node's own, then the lowest, so that the choice does not depend on order (R20).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct EgressRank {
    leaving: Leaving,
    node: bool,
    external: IpAddr,
}

/// The external ports of one endpoint on this node, each with the pod address that it serves in that family.
pub(super) fn places(endpoint: &Endpoint, node: &NodeFacts) -> Result<Vec<(Key, Option<IpAddr>)>, Reason> {
    if let Some(ip) = endpoint.ips.iter().find(|ip| node.addresses.contains(ip)) {
        return Err(Reason::HostNetwork(*ip));
    }
    let mapping = &endpoint.mapping;
    let externals = match mapping.address() {
        Address::Fixed(address) if node.may_serve(address.ip()) => vec![address.ip()],
        Address::Fixed(address) => return Err(Reason::AddressNotHere(address.ip())),
        Address::Node => node.own_addresses().collect(),
    };
    if externals.is_empty() {
        return Err(Reason::NoNodeAddress);
    }
    let reserve_only = endpoint.ips.is_empty();
    let places: Vec<_> = externals
        .iter()
        .filter_map(|external| {
            let family = Family::of(*external);
            let pod = endpoint.ips.iter().copied().find(|ip| Family::of(*ip) == family);
            let key = Key { external: *external, protocol: mapping.protocol(), ports: mapping.external() };
            (pod.is_some() || reserve_only).then_some((key, pod))
        })
        .collect();
    if places.is_empty() {
        return Err(Reason::FamilyMismatch { external: externals, pod: endpoint.ips.clone() });
    }
    Ok(places)
}

/// The entry of one external port of an endpoint.
fn entry<'a>(
    endpoint: &'a Endpoint,
    owner: &Owner,
    (key, pod): (Key, Option<IpAddr>),
    lists: &mut Lists<'a>,
) -> Result<Entry, SameName> {
    let mapping = &endpoint.mapping;
    let served = match pod.filter(|_| !endpoint.suspended) {
        Some(ip) => lists.sources(key.family(), mapping.allowed_sources())?.map(|sources| (ip, sources)),
        None => None,
    };
    let target = served.as_ref().map(|(ip, _)| Target { ip: *ip, first: mapping.target().first() });
    let allowed_sources = served.map(|(_, sources)| sources).unwrap_or_default();
    Ok(Entry { key, target, allowed_sources, owner: owner.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::fixtures::endpoint;
    use crate::ruleset::fixtures::entries;
    use crate::ruleset::fixtures::ip;
    use crate::ruleset::fixtures::net;
    use crate::ruleset::fixtures::node;
    use crate::ruleset::fixtures::ruleset;
    use crate::ruleset::fixtures::v4_node;
    use crate::ruleset::sources::ListId;

    /// The reason why the only endpoint is refused.
    fn refusal(endpoint: Endpoint, node: &NodeFacts) -> Reason {
        let Desired { ruleset, mut refused, .. } = desired(&[endpoint], node);
        assert!(ruleset.is_empty(), "refused and programmed: {ruleset:?}");
        refused.remove(0).reason
    }

    #[test]
    fn r01_one_port_of_two_protocols_is_two_entries() {
        let both = [
            endpoint("5353/tcp", "dns", &["10.244.1.9"]).at(53),
            endpoint("5353/udp", "dns", &["10.244.1.9"]).at(54),
        ];
        assert_eq!(
            entries(&ruleset(&both, &v4_node())),
            ["203.0.113.7:5353/tcp -> 10.244.1.9:53", "203.0.113.7:5353/udp -> 10.244.1.9:54"]
        );
    }

    #[test]
    fn pods_that_run_here_are_pods_of_this_node_whatever_its_networks_say() {
        let here = endpoint("80/tcp", "web", &["10.99.0.9"]);
        let elsewhere = endpoint("81/tcp", "far", &["10.99.0.10"]);
        let node = NodeFacts { pods: [ip("10.99.0.9"), ip("10.99.0.11")].into(), ..v4_node() };
        let nets: Vec<_> =
            ruleset(&[here, elsewhere], &node).pod_cidrs(Family::V4).map(ToString::to_string).collect();
        assert_eq!(nets, ["10.99.0.9/32", "10.244.1.0/24"]);
    }

    #[test]
    fn an_entry_of_the_node_serves_every_family_that_both_sides_have() {
        let dual = endpoint("80/tcp", "web", &["10.244.1.9", "fd00:244:1::9"]).at(8080);
        assert_eq!(
            entries(&ruleset(&[dual], &node())),
            ["203.0.113.7:80/tcp -> 10.244.1.9:8080", "[2001:db8::7]:80/tcp -> [fd00:244:1::9]:8080"]
        );
        let single = endpoint("80/tcp", "web", &["fd00:244:1::9"]);
        assert_eq!(entries(&ruleset(&[single], &node())), ["[2001:db8::7]:80/tcp -> [fd00:244:1::9]:80"]);
    }

    #[test]
    fn a_suspended_endpoint_reserves_its_ports_and_its_pod_leaves_as_ever() {
        let open = endpoint("203.0.113.8:80/tcp", "web", &["10.244.1.9"]);
        let suspended = Endpoint { suspended: true, ..open.clone() };
        let own = Endpoint { suspended: true, ..endpoint("81/tcp", "web", &["10.244.1.9"]) };
        let closed = ruleset(&[suspended, own], &node());
        assert_eq!(
            entries(&closed),
            ["203.0.113.7:81/tcp -> reserved", "203.0.113.8:80/tcp -> reserved"],
            "and none of the family that the pod has not"
        );
        assert!(closed.egress().eq(ruleset(&[open], &node()).egress()));
        assert_eq!(closed.egress().count(), 1);
    }

    #[test]
    fn an_endpoint_without_a_pod_reserves_its_ports() {
        let reserved = ruleset(&[endpoint("80/tcp", "web", &[])], &node());
        assert_eq!(
            entries(&reserved),
            ["203.0.113.7:80/tcp -> reserved", "[2001:db8::7]:80/tcp -> reserved"]
        );
        assert_eq!(reserved.egress().count(), 0);
    }

    #[test]
    fn r27_only_addresses_of_the_node_and_included_ones_are_served() {
        for good in ["203.0.113.8:80/tcp", "203.0.113.64:80/tcp", "203.0.113.127:80/tcp"] {
            ruleset(&[endpoint(good, "web", &["10.244.1.9"])], &node());
        }
        for foreign in ["8.8.8.8", "10.96.0.1", "203.0.113.128"] {
            let endpoint = endpoint(&format!("{foreign}:443/tcp"), "web", &["10.244.1.9"]);
            assert_eq!(refusal(endpoint, &node()), Reason::AddressNotHere(ip(foreign)));
        }
    }

    #[test]
    fn r28_an_address_of_a_family_that_the_pod_lacks_is_refused() {
        let reason = refusal(endpoint("[2001:db8::7]:80/tcp", "web", &["10.244.1.9"]), &node());
        assert_eq!(
            reason.to_string(),
            "the external address 2001:db8::7 and the pod's 10.244.1.9 are of different IP families; \
             use an address of the pod's family, or run the pod dual-stack"
        );
    }

    #[test]
    fn a_node_without_an_address_of_its_own_says_so() {
        let bare = NodeFacts { node_v4: None, node_v6: None, ..node() };
        assert_eq!(refusal(endpoint("80/tcp", "web", &["10.244.1.9"]), &bare), Reason::NoNodeAddress);
    }

    #[test]
    fn r21_a_pod_with_the_nodes_own_address_is_refused() {
        let reason = refusal(endpoint("80/tcp", "web", &["203.0.113.7"]), &node());
        assert_eq!(reason, Reason::HostNetwork(ip("203.0.113.7")));
    }

    #[test]
    fn r08_what_cannot_be_served_keeps_nobody_else_from_being_served() {
        let desired = desired(
            &[
                endpoint("8.8.8.8:25/tcp", "thief", &["10.244.1.8"]),
                endpoint("25/tcp", "mail", &["10.244.1.9"]),
                endpoint("20-30/tcp", "late", &["10.244.1.10"]),
                endpoint("53/udp", "dns", &["10.244.1.11"]),
            ],
            &v4_node(),
        );
        assert_eq!(
            entries(&desired.ruleset),
            ["203.0.113.7:25/tcp -> 10.244.1.9:25", "203.0.113.7:53/udp -> 10.244.1.11:53"]
        );
        let refused: Vec<_> = desired.refused.iter().map(|refused| refused.reason.to_string()).collect();
        assert_eq!(
            refused,
            [
                "8.8.8.8 is not an address of this node; add it to an interface of the node, or name its network in \
                 --include-net if it is routed here",
                "203.0.113.7:25/tcp is already programmed for default/mail; one external port leads to one pod, free \
                 it there or choose another"
            ]
        );
    }

    #[test]
    fn the_same_endpoint_twice_is_one_entry() {
        let web = endpoint("80/tcp", "web", &["10.244.1.9"]);
        assert_eq!(ruleset(&[web.clone(), web], &v4_node()).len(), 1);
    }

    #[test]
    fn the_nodes_own_address_by_name_is_the_same_address() {
        let named = endpoint("203.0.113.7:80/tcp", "named", &["10.244.1.8"]);
        let own = endpoint("80/tcp", "own", &["10.244.1.9"]);
        let desired = desired(&[named, own], &v4_node());
        assert_eq!(entries(&desired.ruleset), ["203.0.113.7:80/tcp -> 10.244.1.8:80"]);
        assert!(matches!(desired.refused[0].reason, Reason::Taken(_)));
    }

    #[test]
    fn sources_are_kept_in_the_shortest_form_of_each_family() {
        let dual = |sources: &[&str]| {
            let endpoint = endpoint("80/tcp", "web", &["10.244.1.9", "fd00:244:1::9"]).from(sources);
            let ruleset = ruleset(&[endpoint], &node());
            ruleset
                .entries()
                .map(|entry| (entry.target.is_some(), entry.allowed_sources.to_vec()))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            dual(&["198.51.100.1/24", "198.51.100.128/25", "2001:db8:9::/48"]),
            [(true, vec![net("198.51.100.0/24")]), (true, vec![net("2001:db8:9::/48")])]
        );
        assert_eq!(dual(&["0.0.0.0/0"]), [(true, vec![]), (false, vec![])], "nobody may come by IPv6");
    }

    #[test]
    fn of_two_lists_of_sources_with_one_name_the_later_is_refused_and_serves_nobody() {
        let from = |pod: &str, port: u16, sources: &[&str]| {
            endpoint(&format!("{port}/tcp"), pod, &["10.244.1.9", "fd00:244:1::9"]).from(sources)
        };
        let endpoints = [
            from("first", 80, &["198.51.100.0/24"]),
            from("everybody", 81, &[]),
            from("second", 82, &["192.0.2.0/24"]),
            from("like-the-first", 83, &["198.51.100.0/25", "198.51.100.128/25"]),
            from("by-ipv6", 84, &["2001:db8:9::/48"]),
        ];
        let named = |name: fn(&Sources) -> ListId| desired_with(Lists::named_by(name), &endpoints, &node());
        assert_eq!(named(Sources::id).refused, []);
        let Desired { ruleset, refused, .. } = named(|_| Sources::default().id());
        let refused: Vec<_> =
            refused.iter().map(|refused| format!("{}: {}", refused.pod, refused.reason)).collect();
        let id = Sources::default().id();
        assert_eq!(
            refused,
            [format!(
                "default/second: another list of sources on the node has the same digest, {id}, which takes intent to bring \
                 about; add a network to allowedSources, or take one away"
            )]
        );
        let served: Vec<_> =
            ruleset.entries_of(Family::V4).map(|entry| entry.key.ports.first().get()).collect();
        assert_eq!(served, [80, 81, 83, 84]);
        assert_eq!(
            ruleset.entries_of(Family::V6).count(),
            5,
            "the lists of a family are beside those of the other"
        );
    }

    #[test]
    fn a_pod_leaves_with_the_address_that_it_is_to_leave_with_before_those_that_only_lead_to_it() {
        use Leaving::AsTheClusterDoes;
        use Leaving::WithItsPorts;
        use Leaving::WithTheExternal;
        let leaves = |wishes: &[(&str, Leaving)]| {
            let endpoints = wishes.iter().map(|(external, leaving)| {
                let pod = format!("{leaving:?}");
                endpoint(external, &pod, &["10.244.1.9", "fd00:244:1::9"]).leaving(*leaving)
            });
            let mut endpoints: Vec<_> = endpoints.collect();
            let forth = ruleset(&endpoints, &node());
            endpoints.reverse();
            assert_eq!(forth, ruleset(&endpoints, &node()), "whatever the order");
            forth.egress().map(|egress| egress.external.to_string()).collect::<Vec<_>>().join(" ")
        };
        let (low, high, v6) = ("203.0.113.7:80/tcp", "203.0.113.8:80/tcp", "[2001:db8::7]:81/tcp");
        for (wishes, expected) in [
            (&[(low, AsTheClusterDoes)][..], ""),
            (&[(low, WithTheExternal)], "203.0.113.7"),
            (&[(low, WithItsPorts), (high, WithTheExternal)], "203.0.113.8"),
            (&[("81/tcp", WithTheExternal), (high, WithItsPorts)], "203.0.113.7 2001:db8::7"),
            (&[(low, WithTheExternal), ("203.0.113.8:81/tcp", WithTheExternal)], "203.0.113.7"),
            (&[(low, AsTheClusterDoes), (high, WithItsPorts)], "203.0.113.8"),
            (&[(low, WithItsPorts), (v6, WithTheExternal)], "203.0.113.7 2001:db8::7"),
        ] {
            assert_eq!(leaves(wishes), expected, "{wishes:?}");
        }
    }

    #[test]
    fn only_entries_that_say_something_of_their_flows_say_it() {
        let said = Endpoint {
            udp_handover: Some(UdpHandover::Cut),
            ..endpoint("53/udp", "dns", &["10.244.1.9", "fd00:244:1::9"])
        };
        let desired = desired(&[said, endpoint("54/udp", "dns", &["10.244.1.9"])], &node());
        let said: Vec<_> =
            desired.udp_handover.iter().map(|(key, said)| format!("{key} {}", said.name())).collect();
        assert_eq!(said, ["203.0.113.7:53/udp Cut", "[2001:db8::7]:53/udp Cut"]);
    }

    #[test]
    fn r20_a_pod_leaves_with_the_lowest_address_that_it_asked_for_whatever_the_order() {
        let own = endpoint("80/tcp", "web", &["10.244.1.9"]);
        let low = endpoint("203.0.113.8:80/udp", "web", &["10.244.1.9"]);
        let high = endpoint("203.0.113.65:80/sctp", "web", &["10.244.1.9"]);
        for order in [[&own, &low, &high], [&high, &low, &own], [&low, &own, &high]] {
            let ruleset = ruleset(&order.map(Clone::clone), &node());
            assert_eq!(ruleset.egress_of(&ip("10.244.1.9")).unwrap().external, ip("203.0.113.8"));
        }
        let only_own = ruleset(&[own], &node());
        assert_eq!(only_own.egress_of(&ip("10.244.1.9")).unwrap().external, ip("203.0.113.7"));
    }

    #[test]
    fn private_networks_see_no_fixed_address_unless_the_cluster_is_known_and_the_address_is_private_too() {
        let private = ["10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"];
        let unique_local = ["fc00::/7", "fe80::/10"];
        let all: Vec<_> = private.into_iter().chain(unique_local).collect();
        let public = endpoint("80/tcp", "web", &["10.244.1.9", "fd00:244:1::9"]);
        let internal = endpoint("10.0.0.7:80/tcp", "web", &["10.244.1.9"]);
        let dual = ["10.244.1.0/24", "10.244.2.0/24", "fd00:244::/56"];
        for (what, endpoints, named, learnt, expected) in [
            ("nobody knows", vec![public.clone()], &[][..], &[][..], &all[..]),
            ("nobody knows, privately", vec![internal.clone()], &[], &[], &private),
            ("an operator named it", vec![public.clone()], &["10.244.0.0/16"], &[], &[]),
            ("the Nodes show it", vec![public.clone()], &[], &dual, &all),
            ("the Nodes show it, privately", vec![internal.clone()], &[], &dual, &[]),
            ("they show one family", vec![internal.clone()], &[], &["fd00:244::/56"], &private),
            ("nobody has a fixed address", vec![], &[], &[], &[]),
        ] {
            let nets = |texts: &[&str]| texts.iter().map(|text| net(text)).collect();
            let node = NodeFacts { cluster_cidrs: nets(named), node_cidrs: nets(learnt), ..node() };
            let ruleset = ruleset(&endpoints, &node);
            let shown: Vec<_> =
                Family::ALL.into_iter().flat_map(|family| ruleset.sheltered(family)).collect();
            assert_eq!(shown.iter().map(ToString::to_string).collect::<Vec<_>>(), expected, "{what}");
            let inside = Family::ALL.into_iter().flat_map(|family| ruleset.cluster_cidrs(family)).count();
            assert_eq!(inside == 0, named.is_empty() && learnt.is_empty(), "{what}");
        }
    }

    #[test]
    fn r06_a_pods_address_outlives_the_removal_of_one_of_its_entries() {
        let smtp = endpoint("25/tcp", "mail", &["10.244.1.9"]);
        let imap = endpoint("143/tcp", "mail", &["10.244.1.9"]);
        let before = ruleset(&[smtp.clone(), imap], &v4_node());
        let after = ruleset(&[smtp], &v4_node());
        assert_eq!(before.egress().collect::<Vec<_>>(), after.egress().collect::<Vec<_>>());
    }
}
