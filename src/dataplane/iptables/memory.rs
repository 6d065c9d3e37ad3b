//! Does to tables in memory what `iptables-restore --noflush` does to the kernel's.
//!
//! It understands the text that [`mod@crate::dataplane::iptables::plan`] writes and refuses what the kernel would refuse.
//! Dry runs remember by it, and after a real restore it tells what the tables hold without reading them again.

use crate::dataplane::counters::Counters;
use crate::dataplane::iptables::names::Names;
use crate::dataplane::iptables::parse::saved_rule;
use crate::dataplane::iptables::table::Chain;
use crate::dataplane::iptables::table::SavedRule;
use crate::dataplane::iptables::table::Table;
use crate::dataplane::iptables::table::TableName;
use crate::dataplane::iptables::table::Tables;

/// A line that the kernel would refuse; nothing of its table was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} refused: {text}")]
pub struct Refusal {
    /// Counted from 1.
    pub line: usize,
    /// The line.
    pub text: String,
}

/// Makes the changes, table by table.
pub fn restore(tables: &mut Tables, input: &str, names: Names<'_>) -> Result<(), Refusal> {
    let mut current: Option<(TableName, Table)> = None;
    for (index, line) in input.lines().enumerate() {
        let refuse = || Refusal { line: index + 1, text: line.to_owned() };
        if let Some(name) = line.strip_prefix('*') {
            let name = TableName::ALL.into_iter().find(|table| table.name() == name).ok_or_else(refuse)?;
            let mut table = tables.get(name).clone();
            built_in(name, &mut table);
            current = Some((name, table));
        } else if line == "COMMIT" {
            let (name, table) = current.take().ok_or_else(refuse)?;
            *tables.get_mut(name) = table;
        } else {
            let (_, table) = current.as_mut().ok_or_else(refuse)?;
            command(table, line, names).ok_or_else(refuse)?;
        }
    }
    Ok(())
}

/// The kernel's own chains appear with the first use of a table.
fn built_in(name: TableName, table: &mut Table) {
    let chains: &[&str] = match name {
        TableName::Filter => &["INPUT", "FORWARD", "OUTPUT"],
        TableName::Mangle => &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
        TableName::Nat => &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
    };
    for chain in chains {
        if !table.chains.contains_key(*chain) {
            table.chain_mut(chain).policy = Some("ACCEPT".to_owned());
        }
    }
}

fn command(table: &mut Table, line: &str, names: Names<'_>) -> Option<()> {
    if let Some(declared) = line.strip_prefix(':') {
        let (chain, _) = declared.split_once(' ')?;
        *table.chain_mut(chain) = Chain::default();
        return Some(());
    }
    let (counters, command) = match line.strip_prefix('[') {
        None => (Counters::default(), line),
        Some(counted) => {
            let (counters, command) = counted.split_once("] ")?;
            let (packets, bytes) = counters.split_once(':')?;
            (Counters { packets: packets.parse().ok()?, bytes: bytes.parse().ok()? }, command)
        }
    };
    let (verb, rest) = command.split_once(' ')?;
    if verb == "-X" {
        let used = table.chains.values().flat_map(|chain| &chain.rules).any(|rule| rule.target == rest);
        let empty = table.chains.get(rest).is_some_and(|chain| chain.rules.is_empty());
        return (empty && !used).then(|| table.chains.remove(rest)).flatten().map(drop);
    }
    let (chain, spec) = rest.split_once(' ')?;
    let (position, spec) = match (verb, spec.split_once(' ')) {
        ("-I", Some((position, spec))) => (position.parse::<usize>().ok()?, spec),
        _ => (0, spec),
    };
    let rule = saved_rule(counters, spec, names.owns(chain));
    let rules = &mut table.chains.contains_key(chain).then(|| table.chain_mut(chain))?.rules;
    match verb {
        "-A" => rules.push(rule),
        "-I" if (1..=rules.len() + 1).contains(&position) => rules.insert(position - 1, rule),
        "-D" => {
            let same = |found: &SavedRule| {
                found.text == rule.text || (rule.rule.is_some() && found.rule == rule.rule)
            };
            let index = rules.iter().position(same)?;
            rules.remove(index);
        }
        _ => return None,
    }
    // A jump needs its chain.
    let target = &table.chains.get(chain)?.rules;
    let dangling = |target: &str| names.owns(target) && !table.chains.contains_key(target);
    (!target.iter().any(|rule| dangling(&rule.target))).then_some(())
}
