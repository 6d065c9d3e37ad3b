//! Tables of a node in memory, as tests of this module need them.

use crate::dataplane::counters::Counters;
use crate::dataplane::iptables::layout::layout;
use crate::dataplane::iptables::memory;
use crate::dataplane::iptables::names::Names;
use crate::dataplane::iptables::parse::parse;
use crate::dataplane::iptables::plan::Means;
use crate::dataplane::iptables::plan::plan;
use crate::dataplane::iptables::table::TableName;
use crate::dataplane::iptables::table::Tables;
use crate::dataplane::settings::Settings;
use crate::model::address::Family;
use crate::ruleset::Ruleset;
use crate::ruleset::endpoint::Endpoint;
use crate::ruleset::fixtures::ruleset;
use crate::ruleset::fixtures::v4_node;

/// Names with the prefix of these settings.
pub(crate) fn names_of(settings: &Settings) -> Names<'_> {
    Names(&settings.prefix)
}

/// Makes the changes that lead one family of a node to these rules, and returns their text.
pub(crate) fn bring(tables: &mut Tables, ruleset: &Ruleset, family: Family) -> String {
    let settings = Settings::default();
    let wanted = layout(ruleset, family, &settings);
    let Some(plan) = plan(tables, &wanted, names_of(&settings), Means::Rules) else { return String::new() };
    memory::restore(tables, &plan.text, names_of(&settings)).unwrap();
    plan.text
}

/// A node that serves these endpoints.
pub(crate) fn serving(endpoints: &[Endpoint]) -> Tables {
    let mut tables = Tables::default();
    bring(&mut tables, &ruleset(endpoints, &v4_node()), Family::V4);
    tables
}

/// The text that leads from one set of endpoints to another.
pub(crate) fn change(before: &[Endpoint], after: &[Endpoint]) -> String {
    bring(&mut serving(before), &ruleset(after, &v4_node()), Family::V4)
}

/// What `iptables-save -c` prints for tables.
pub(crate) fn saved(tables: &Tables) -> String {
    let mut lines = Vec::new();
    for name in TableName::ALL {
        lines.push(format!("*{}", name.name()));
        for (name, chain) in &tables.get(name).chains {
            lines.push(format!(":{name} {} [0:0]", chain.policy.as_deref().unwrap_or("-")));
        }
        for (name, chain) in &tables.get(name).chains {
            for rule in &chain.rules {
                let Counters { packets, bytes } = rule.counters;
                lines.push(format!("[{packets}:{bytes}] -A {name} {}", rule.text));
            }
        }
        lines.push("COMMIT".to_owned());
    }
    lines.push(String::new());
    lines.join("\n")
}

/// What was saved, with foreign rules in the filter and nat tables.
pub(crate) fn with_rules(tables: &Tables, filter: &str, nat: &str) -> Tables {
    let text = saved(tables).replacen("COMMIT", &format!("{filter}COMMIT"), 1);
    let (first, second) = text.rsplit_once("COMMIT").unwrap();
    parse(&format!("{first}{nat}COMMIT{second}"), names_of(&Settings::default())).unwrap()
}
