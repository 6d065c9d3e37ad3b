//! Laws that hold for whatever a node is asked to serve.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::dataplane::nftables::decode;
use crate::dataplane::nftables::layout::affected;
use crate::dataplane::nftables::layout::layout;
use crate::dataplane::nftables::plan::State;
use crate::dataplane::nftables::plan::Table;
use crate::dataplane::nftables::plan::plan;
use crate::model::address::Family;
use crate::ruleset::Ruleset;
use crate::ruleset::diff::diff_of;
use crate::ruleset::fixtures::any_ruleset;

/// Makes the changes that lead a table to these rules; how many elements they touch.
fn bring(table: &mut Table, ruleset: &Ruleset, family: Family) -> usize {
    let Some(plan) = plan(table, &layout(ruleset, family)) else { return 0 };
    let steps = plan.steps.len();
    plan.make(table);
    steps
}

proptest! {
    #[test]
    fn applying_leads_there_and_once_there_nothing_is_left_to_do(
        before in any_ruleset(),
        after in any_ruleset(),
    ) {
        for family in Family::ALL {
            let mut table = Table::default();
            bring(&mut table, &before, family);
            bring(&mut table, &after, family);
            let mut fresh = Table::default();
            bring(&mut fresh, &after, family);
            prop_assert_eq!(&table, &fresh);
            prop_assert_eq!(bring(&mut table, &after, family), 0);
        }
    }

    #[test]
    fn what_differs_is_all_that_needs_to_be_laid_out(before in any_ruleset(), after in any_ruleset()) {
        for family in Family::ALL {
            let (old, new) = affected(&before, &after, &diff_of(family, &before, &after));
            let of_all = plan(&Table::made(layout(&before, family)), &layout(&after, family));
            let of_part = plan(&Table::made(layout(&old, family)), &layout(&new, family));
            prop_assert_eq!(of_part, of_all);
        }
    }

    #[test]
    fn what_is_laid_out_is_read_back(wanted in any_ruleset()) {
        let mut tables = BTreeMap::new();
        for family in Family::ALL {
            bring(tables.entry(family).or_default(), &wanted, family);
        }
        prop_assert_eq!(&decode(&tables).0, &wanted);
        // Also from a table of another version, which is made anew all the same.
        for (family, table) in &mut tables {
            table.state = State::Damaged("another version".to_owned());
            prop_assert!(plan(table, &layout(&wanted, *family)).is_some_and(|plan| plan.rebuilds));
        }
        prop_assert_eq!(decode(&tables).0, wanted);
    }
}
