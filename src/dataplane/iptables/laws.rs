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
use crate::ruleset::fixtures::any_ruleset;

proptest! {
    #[test]
    fn applying_leads_there_and_once_there_nothing_is_left_to_do(
        before in any_ruleset(),
        after in any_ruleset(),
    ) {
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
    fn what_is_written_is_read_back(wanted in any_ruleset()) {
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
    fn r33_no_name_is_too_long_and_no_comment_either(ruleset in any_ruleset()) {
        let settings = Settings { prefix: "LONGEST8".parse().unwrap(), ..Settings::default() };
        for family in Family::ALL {
            let layout = layout(&ruleset, family, &settings);
            for (name, rules) in layout.filter.iter().chain(&layout.nat) {
                prop_assert!(name.len() <= MAX_LENGTH && names_of(&settings).owns(name), "{}", name);
                prop_assert!(rules.iter().flat_map(|rule| &rule.comment).all(|comment| comment.len() <= 128));
            }
        }
    }
}
