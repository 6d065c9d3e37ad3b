//! Tables as they were read: our chains understood, all others as far as the order of rules depends on them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::dataplane::counters::Counters;
use crate::dataplane::iptables::names::Names;
use crate::dataplane::iptables::parse::saved_rule;
use crate::dataplane::iptables::rule::Rule;

/// The tables that rules of ours are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TableName {
    /// Which packets may pass.
    Filter,
    /// Which links packets leave by.
    Mangle,
    /// Which addresses are rewritten.
    Nat,
}

impl TableName {
    /// All, in the order in which they are written: a connection must not be sent to a pod before the rules that
    /// guard it are there.
    pub const ALL: [Self; 3] = [Self::Filter, Self::Mangle, Self::Nat];

    /// The name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Mangle => "mangle",
            Self::Nat => "nat",
        }
    }
}

/// The tables of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Which packets may pass.
    pub filter: Table,
    /// Which links packets leave by.
    pub mangle: Table,
    /// Which addresses are rewritten.
    pub nat: Table,
}

impl Tables {
    /// One of the tables.
    pub const fn get(&self, name: TableName) -> &Table {
        match name {
            TableName::Filter => &self.filter,
            TableName::Mangle => &self.mangle,
            TableName::Nat => &self.nat,
        }
    }

    /// The same tables, as a program with these names reads them.
    pub(crate) fn seen_as(&self, names: Names<'_>) -> Self {
        let Self { filter, mangle, nat } = self;
        Self { filter: filter.seen_as(names), mangle: mangle.seen_as(names), nat: nat.seen_as(names) }
    }

    /// One of the tables, to be changed.
    pub const fn get_mut(&mut self, name: TableName) -> &mut Table {
        match name {
            TableName::Filter => &mut self.filter,
            TableName::Mangle => &mut self.mangle,
            TableName::Nat => &mut self.nat,
        }
    }
}

/// The chains of a table by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The chains, shared between what was observed and what became of it: one change touches few of them.
    pub chains: BTreeMap<String, Arc<Chain>>,
}

/// A chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// What happens at the end of a built-in chain: `ACCEPT` or `DROP`. Chains of programs have none.
    pub policy: Option<String>,
    /// Its rules in order.
    pub rules: Vec<SavedRule>,
}

/// A rule as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedRule {
    /// How often it matched.
    pub counters: Counters,
    /// The rule as it was printed, without its chain.
    pub text: String,
    /// What happens: a chain, or a target such as `ACCEPT`; empty for a rule that only counts.
    pub target: String,
    /// Whether every packet matches.
    pub unconditional: bool,
    /// Whether every packet of a connection matches whose destination was rewritten.
    pub takes_dnat: bool,
    /// The rule, if it is one that this program could have written.
    pub rule: Option<Rule>,
}

impl Table {
    /// The same rules, of which those in chains with these names are understood.
    fn seen_as(&self, names: Names<'_>) -> Self {
        let understood = |(name, chain): (&String, &Arc<Chain>)| {
            let read = |rule: &SavedRule| saved_rule(rule.counters, &rule.text, names.owns(name));
            let rules = chain.rules.iter().map(read).collect();
            (name.clone(), Arc::new(Chain { policy: chain.policy.clone(), rules }))
        };
        Self { chains: self.chains.iter().map(understood).collect() }
    }

    /// A chain to be changed; it comes into being if it is not there.
    pub fn chain_mut(&mut self, name: &str) -> &mut Chain {
        Arc::make_mut(self.chains.entry(name.to_owned()).or_default())
    }

    /// The rules of a chain; none for a chain that does not exist.
    pub fn rules(&self, chain: &str) -> &[SavedRule] {
        self.chains.get(chain).map_or(&[], |chain| &chain.rules)
    }

    /// Whether the chain holds exactly these rules.
    pub fn holds(&self, chain: &str, wanted: &[Rule]) -> bool {
        self.chains.get(chain).is_some_and(|chain| {
            chain.rules.len() == wanted.len()
                && chain.rules.iter().zip(wanted).all(|(saved, wanted)| saved.rule.as_ref() == Some(wanted))
        })
    }
}
