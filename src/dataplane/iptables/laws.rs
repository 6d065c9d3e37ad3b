//! Laws that hold for whatever a node is asked to serve.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::dataplane::iptables::decode::decode;
use crate::dataplane::iptables::fixtures::bring;
use crate::dataplane::iptables::fixtures::names_of;
use crate::dataplane::iptables::fixtures::saved;
use crate::dataplane::iptables::layout::layout;
use crate::dataplane::iptables::names::MAX_LENGTH;
use crate::dataplane::iptables::parse::parse;
use crate::dataplane::iptables::table::Tables;
use crate::dataplane::settings::Settings;
use crate::model::address::Family;
use crate::ruleset::Ruleset;
use crate::ruleset::desired;
use crate::ruleset::endpoint::Endpoint;
use crate::ruleset::fixtures::endpoint;
use crate::ruleset::fixtures::node;

/// Any endpoints: the node serves those that it can.
fn any_endpoints() -> impl Strategy<Value = Vec<Endpoint>> {
    let external = prop::sample::select(vec![
        "",
        "203.0.113.7:",
        "203.0.113.8:",
        "203.0.113.65:",
        "[2001:db8::7]:",
        "8.8.8.8:",
    ]);
    let protocol = prop::sample::select(vec!["tcp", "udp", "sctp"]);
    let first = prop_oneof![1_u16..200, 1_u16..60000, 65400_u16..65500];
    let span = prop_oneof![Just(0_u16), 0_u16..30, 60_u16..80];
    let pod = 1_u8..130;
    let target = prop_oneof![Just(0_u16), 1_u16..60000];
    let sources = prop::sample::subsequence(
        vec!["198.51.100.0/24", "192.0.2.1/32", "2001:db8:9::/48", "0.0.0.0/0"],
        0..3,
    );
    let parts = (external, protocol, first, span, pod, target, sources, 0_u8..4);
    let endpoint = parts.prop_map(|(external, protocol, first, span, pod, target, sources, ips)| {
        let last = first.saturating_add(span);
        let (v4, v6) = (format!("10.244.1.{pod}"), format!("fd00:244:1::{pod:x}"));
        let ips: &[&str] = match ips {
            0 => &[],
            1 => &[&v4],
            2 => &[&v6],
            _ => &[&v4, &v6],
        };
        let endpoint = endpoint(&format!("{external}{first}-{last}/{protocol}"), &format!("pod-{pod}"), ips);
        let endpoint = endpoint.from(&sources);
        if target == 0 { endpoint } else { endpoint.at(target.min(65535 - span)) }
    });
    prop::collection::vec(endpoint, 0..12)
}

fn served_of(endpoints: &[Endpoint]) -> Ruleset {
    desired(endpoints, &node()).ruleset
}

proptest! {
    #[test]
    fn applying_leads_there_and_once_there_nothing_is_left_to_do(
        before in any_endpoints(),
        after in any_endpoints(),
    ) {
        let (before, after) = (served_of(&before), served_of(&after));
        for family in Family::ALL {
            let mut tables = Tables::default();
            bring(&mut tables, &before, family);
            bring(&mut tables, &after, family);
            let mut fresh = Tables::default();
            bring(&mut fresh, &after, family);
            prop_assert_eq!(&tables, &fresh);
            prop_assert_eq!(bring(&mut tables, &after, family), "");
        }
    }

    #[test]
    fn what_is_written_is_read_back(endpoints in any_endpoints()) {
        let wanted = served_of(&endpoints);
        let settings = Settings::default();
        let mut read = BTreeMap::new();
        for family in Family::ALL {
            let mut tables = Tables::default();
            bring(&mut tables, &wanted, family);
            read.insert(family, parse(&saved(&tables), names_of(&settings)).unwrap());
        }
        prop_assert_eq!(decode(&read, names_of(&settings)).0, wanted);
    }

    #[test]
    fn r33_no_name_is_too_long_and_no_comment_either(endpoints in any_endpoints()) {
        let settings = Settings { prefix: "LONGEST8".parse().unwrap(), ..Settings::default() };
        for family in Family::ALL {
            let layout = layout(&served_of(&endpoints), family, &settings);
            for (name, rules) in layout.filter.iter().chain(&layout.nat) {
                prop_assert!(name.len() <= MAX_LENGTH && names_of(&settings).owns(name), "{}", name);
                prop_assert!(rules.iter().flat_map(|rule| &rule.comment).all(|comment| comment.len() <= 128));
            }
        }
    }
}
