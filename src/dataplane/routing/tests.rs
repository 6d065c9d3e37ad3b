//! What rules and routes links need, and how they come and go.

use super::*;
use crate::dataplane::links::LinkMask;

fn links(texts: &[&str]) -> Links {
    let links = texts.iter().map(|text| text.parse().unwrap()).collect();
    Links::new(LinkMask::default(), links).unwrap()
}

fn route(table: u32, destination: Option<&str>, interface: u32, protocol: u8) -> Route {
    let kind = if table == LOCAL_TABLE { LOCAL } else { UNICAST };
    let destination = destination.map(|net| net.parse().unwrap());
    let family = Family::V4;
    Route { family, table, destination, gateway: None, interface, metric: 0, protocol, kind }
}

/// Two interfaces, 2 and 3, each with a network; 3 has the second address of its.
fn node() -> Vec<Route> {
    vec![
        route(MAIN, Some("198.51.100.0/24"), 2, BY_KERNEL),
        route(MAIN, Some("192.0.2.0/24"), 3, BY_KERNEL),
        route(LOCAL_TABLE, Some("192.0.2.2/32"), 3, BY_KERNEL),
        route(1172, Some("10.9.0.0/16"), 2, 3),
    ]
}

fn wanted_of(links: &Links, routes: &[Route]) -> Wanted {
    let number = |name: &str| match name {
        "eth1" => Some(2),
        "eth2" => Some(3),
        _ => None,
    };
    let numbered: Vec<_> =
        links.marked(Family::V4).map(|(mark, link)| (mark, link, number(link.interface.as_str()))).collect();
    let leaving = [("10.244.1.9", "192.0.2.2"), ("10.244.1.10", "203.0.113.7")];
    let leaving = leaving.map(|(pod, external)| (pod.parse().unwrap(), external.parse().unwrap()));
    wanted(links, &numbered, &leaving, Family::V4, routes)
}

#[test]
fn r54_a_link_without_gateway_and_table_gets_the_first_address_and_a_free_table() {
    let links = links(&["interface=eth1,table=1171", "interface=eth2"]);
    let wanted = wanted_of(&links, &node());
    let routes: Vec<_> =
        wanted.routes.iter().map(|route| (route.table, route.gateway.unwrap().to_string())).collect();
    assert_eq!(routes, [(1171, "198.51.100.1".to_owned()), (1173, "192.0.2.1".to_owned())]);
    let rules: Vec<_> = wanted.rules.iter().map(|rule| (rule.priority, rule.mark, rule.table)).collect();
    assert_eq!(
        rules,
        [
            (500, 0x10, MAIN),
            (501, 0x10, 1171),
            (500, 0x20, MAIN),
            (501, 0x20, 1173),
            (502, 0, MAIN),
            (503, 0, 1173)
        ]
    );
    // The other pod leaves with an address that is on no link.
    assert_eq!(wanted.rules[5].to_string(), "priority 503 from 10.244.1.9 lookup 1173");
    assert_eq!(wanted.problems, []);
}

#[test]
fn r54_a_link_that_cannot_be_used_is_told_and_the_others_are() {
    let mut routes = node();
    routes.push(route(LOCAL_TABLE, Some("192.0.2.1/32"), 3, BY_KERNEL));
    routes.push(route(77, None, 2, 3));
    let good = "interface=eth1,gateway=198.51.100.254,table=5";
    for (bad, problem) in [
        ("interface=eth9", "does not exist"),
        ("interface=eth2", "is the node's own"),
        ("interface=eth2,gateway=192.0.2.254,table=77", "default route of others"),
    ] {
        let wanted = wanted_of(&links(&[bad, good]), &routes);
        let problems: Vec<_> = wanted.problems.iter().map(|problem| problem.what.as_str()).collect();
        assert!(matches!(problems[..], [only] if only.contains(problem)), "{bad}: {problems:?}");
        let tables: Vec<_> = wanted.routes.iter().map(|route| route.table).collect();
        assert_eq!(tables, [5], "{bad}");
    }
}

#[test]
fn r54_only_the_difference_is_made_and_foreign_routes_stay() {
    let one = links(&["interface=eth1,table=101"]);
    let other = links(&["interface=eth1,table=102"]);
    let (before, after) = (wanted_of(&one, &node()), wanted_of(&other, &node()));
    let mut routes = node();
    routes.extend(&before.routes);
    let found = Found { rules: before.rules.clone(), routes };
    assert_eq!(plan(&found, &before), []);
    assert_eq!(
        plan(&found, &after),
        [
            Step::AddRule(after.rules[1]),
            Step::SetRoute(after.routes[0]),
            Step::RemoveRoute(before.routes[0]),
            Step::RemoveRule(before.rules[1]),
        ]
    );
    let all = plan(&found, &Wanted::default());
    assert_eq!(all.len(), before.rules.len() + before.routes.len());
}

#[test]
fn r54_wherever_a_change_breaks_off_a_rule_leads_to_what_is_left() {
    let (one, other) = (links(&["interface=eth1,table=101"]), links(&["interface=eth2,table=102"]));
    let states = [Wanted::default(), wanted_of(&one, &node()), wanted_of(&other, &node())];
    for (before, after) in states.iter().flat_map(|before| states.iter().map(move |after| (before, after))) {
        let mut found = Found { rules: before.rules.clone(), routes: node() };
        found.routes.extend(&before.routes);
        for step in plan(&found, after) {
            match step {
                Step::AddRule(rule) => found.rules.push(rule),
                Step::SetRoute(route) => found.routes.push(route),
                Step::RemoveRoute(route) => found.routes.retain(|there| *there != route),
                Step::RemoveRule(rule) => found.rules.retain(|there| *there != rule),
            }
            let ours = found.routes.iter().filter(|route| route.protocol == PROTOCOL);
            for route in ours {
                let is_led_to = found.rules.iter().any(|rule| rule.table == route.table);
                assert!(is_led_to, "{step} leaves {route} alone");
            }
        }
        assert_eq!(plan(&found, after), []);
    }
}

#[test]
fn r54_a_pod_that_lost_its_address_goes_on_by_its_link_until_it_is_gone() {
    let links = links(&["interface=eth1,gateway=198.51.100.254", "interface=eth2,gateway=192.0.2.254"]);
    let pod: IpAddr = "10.244.1.9".parse().unwrap();
    let before = wanted_of(&links, &node());
    let of_pod: Vec<_> =
        before.rules.iter().filter(|rule| rule.source.is_some()).copied().map(Step::RemoveRule).collect();
    assert_eq!(of_pod.len(), 2);
    let mut routes = node();
    routes.extend(&before.routes);
    let found = Found { rules: before.rules.clone(), routes };
    let elsewhere: Leaving = (pod, "203.0.113.7".parse().unwrap());
    for (what, leaving, bound, removed) in [
        ("it is still there", &[][..], [pod].into(), &[][..]),
        ("it is gone", &[], BTreeSet::new(), &of_pod),
        ("it has another address", &[elsewhere], [pod].into(), &of_pod),
    ] {
        let mut wanted = before.clone();
        wanted.rules.retain(|rule| rule.source.is_none());
        wanted.keep(&found, leaving, &bound);
        assert_eq!(plan(&found, &wanted), removed, "{what}");
    }
    let mut without_table = before.clone();
    without_table.rules.clear();
    without_table.routes.clear();
    without_table.keep(&found, &[], &[pod].into());
    assert_eq!(without_table.rules.len(), 1, "a table without a way is no table to look into");
}
