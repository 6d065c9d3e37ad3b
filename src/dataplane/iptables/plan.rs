//! From the chains that are there to the chains that should be: the shortest restore text that leads there.
//!
//! # Guarantees
//! - Equal rules give no text at all.
//! - A chain whose rules are as wanted is not mentioned, so its counters and the packets in it are not disturbed.
//! - Counters of rules that stay survive the rewriting of their chain.
//! - Rules of others are never named, except to put ours before or behind them.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::dataplane::counters::Counters;
use crate::dataplane::iptables::decode::is_current;
use crate::dataplane::iptables::layout::Layout;
use crate::dataplane::iptables::layout::SKELETON;
use crate::dataplane::iptables::names::Names;
use crate::dataplane::iptables::position;
use crate::dataplane::iptables::position::Edit;
use crate::dataplane::iptables::rule::Rule;
use crate::dataplane::iptables::table::SavedRule;
use crate::dataplane::iptables::table::Table;
use crate::dataplane::iptables::table::TableName;
use crate::dataplane::iptables::table::Tables;

/// A change of one family's tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Input for `iptables-restore --noflush --counters`.
    pub text: String,
    /// Chains that are rewritten, added or removed.
    pub chains: usize,
    /// Jumps that are added, moved or removed.
    pub jumps: usize,
    /// Chains that had rules and are rewritten: their counters go on from what was observed.
    pub rewritten: Vec<String>,
}

/// How to get from `observed` to `wanted`; `None` when nothing is to be done.
pub fn plan(observed: &Tables, wanted: &Layout, names: Names<'_>) -> Option<Plan> {
    let mut plan = Plan::default();
    let current = is_current(observed, names, SKELETON);
    for name in TableName::ALL {
        let table = observed.get(name);
        let wanted = wanted.get(name);
        let changed: Vec<_> =
            wanted.iter().filter(|(chain, rules)| !current || !table.holds(chain, rules)).collect();
        let edits = position::edits(name, table, names);
        write(&mut plan, name, table, &Work { changed, stale: stale(table, names, wanted), edits }, names);
    }
    (!plan.text.is_empty()).then_some(plan)
}

/// How to take everything of ours out; `None` when nothing is there.
pub fn removal(observed: &Tables, names: Names<'_>) -> Option<Plan> {
    let mut plan = Plan::default();
    // NAT first: without it, the guards have nothing left to guard.
    for name in [TableName::Nat, TableName::Filter] {
        let table = observed.get(name);
        let edits = position::removals(table, names);
        let stale = stale(table, names, &BTreeMap::new());
        write(&mut plan, name, table, &Work { changed: Vec::new(), stale, edits }, names);
    }
    (!plan.text.is_empty()).then_some(plan)
}

/// The chains of ours that are there and not wanted.
fn stale<'a>(table: &'a Table, names: Names<'_>, wanted: &BTreeMap<String, Vec<Rule>>) -> Vec<&'a str> {
    let ours = table.chains.keys().map(String::as_str).filter(|chain| names.owns(chain));
    ours.filter(|chain| !wanted.contains_key(*chain)).collect()
}

/// What is to be done in one table.
struct Work<'a> {
    changed: Vec<(&'a String, &'a Vec<Rule>)>,
    stale: Vec<&'a str>,
    edits: Vec<Edit>,
}

fn write(plan: &mut Plan, name: TableName, table: &Table, work: &Work<'_>, names: Names<'_>) {
    let Work { changed, stale, edits } = work;
    if changed.is_empty() && stale.is_empty() && edits.is_empty() {
        return;
    }
    plan.chains += changed.len() + stale.len();
    plan.jumps += edits.len();
    let text = &mut plan.text;
    line(text, format_args!("*{}", name.name()));
    // A declaration empties the chain if it exists.
    for chain in changed.iter().map(|(chain, _)| chain.as_str()).chain(stale.iter().copied()) {
        line(text, format_args!(":{chain} - [0:0]"));
    }
    for (chain, rules) in changed {
        let saved = table.rules(chain);
        if name == TableName::Nat && !saved.is_empty() {
            plan.rewritten.push((*chain).clone());
        }
        let counted = |saved: &SavedRule| Some((saved.rule.clone()?, saved.counters));
        let kept: BTreeMap<Rule, Counters> = saved.iter().rev().filter_map(counted).collect();
        for rule in *rules {
            match kept.get(rule) {
                Some(Counters { packets, bytes }) if *packets != 0 => {
                    line(text, format_args!("[{packets}:{bytes}] -A {chain} {rule}"));
                }
                _ => line(text, format_args!("-A {chain} {rule}")),
            }
        }
    }
    for edit in edits {
        match edit {
            Edit::Delete { chain, rule } => line(text, format_args!("-D {chain} {rule}")),
            Edit::Insert { chain, position, rule } => {
                line(text, format_args!("-I {chain} {position} {rule}"));
            }
            Edit::Append { chain, rule } => line(text, format_args!("-A {chain} {rule}")),
        }
    }
    let used = used_by_others(table, edits, names);
    for chain in stale.iter().filter(|chain| !used.contains(*chain)) {
        line(text, format_args!("-X {chain}"));
    }
    line(text, format_args!("COMMIT"));
}

/// Where rules in chains of others lead, if they stay: the kernel does not let such a chain go.
fn used_by_others<'a>(table: &'a Table, edits: &[Edit], names: Names<'_>) -> BTreeSet<&'a str> {
    let others = table.chains.iter().filter(|(name, _)| !names.owns(name));
    let rules = others.flat_map(|(name, chain)| chain.rules.iter().map(move |rule| (name, rule)));
    let deleted = |name: &str, rule: &SavedRule| {
        let this = |edit: &Edit| matches!(edit, Edit::Delete { chain, rule: text } if chain == name && *text == rule.text);
        names.owns(&rule.target) && edits.iter().any(this)
    };
    rules.filter(|(name, rule)| !deleted(name, rule)).map(|(_, rule)| rule.target.as_str()).collect()
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{line}");
}
