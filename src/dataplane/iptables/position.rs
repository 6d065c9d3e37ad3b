//! Where the built-in chains must lead to ours, given what else stands in them.
//!
//! - NAT: in front of whatever else could rewrite the connection, because the first rewriting counts.
//! - Guards, and the marks of links: in front of the first rule that accepts.
//! - The forward accept: behind every jump to another chain and every drop, because network policies stand there and
//!   must keep the last word; but in front of a final rule that rejects everything.
//!
//! A jump that stands well is not touched, wherever it stands, and neither is one for NAT where others insist on the first
//! place.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::dataplane::iptables::names::Names;
use crate::dataplane::iptables::rule::Action;
use crate::dataplane::iptables::rule::Rule;
use crate::dataplane::iptables::table::SavedRule;
use crate::dataplane::iptables::table::Table;
use crate::dataplane::iptables::table::TableName;

/// The comment of a jump.
pub(crate) const JUMP: &str = "pinhole:jump";
/// How deep chains are followed: the kernel allows few more, and real rulesets need less.
const DEPTH: usize = 16;

/// What a jump must stand before or behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    BeforeNat,
    BeforeAccept,
    BehindPolicy,
}

/// A jump from a built-in chain to one of ours.
struct Hook {
    built_in: &'static str,
    chain: String,
    place: Place,
}

/// A built-in chain with a jump for NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spot {
    /// The table.
    pub table: TableName,
    /// The chain.
    pub chain: &'static str,
}

/// Where others may stand in front of us.
pub type Yielded = BTreeSet<Spot>;

/// A change of one rule in a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Takes out the first rule that reads like this.
    Delete {
        /// The chain.
        chain: String,
        /// The rule as it was printed.
        rule: String,
    },
    /// Puts a rule in, counted from 1.
    Insert {
        /// The chain.
        chain: String,
        /// The position that the rule will have.
        position: usize,
        /// The rule.
        rule: String,
    },
    /// Puts a rule last.
    Append {
        /// The chain.
        chain: String,
        /// The rule.
        rule: String,
    },
}

fn hooks(table: TableName, names: Names<'_>) -> Vec<Hook> {
    let hook = |built_in, chain, place| Hook { built_in, chain, place };
    match table {
        TableName::Filter => vec![
            hook("INPUT", names.input(), Place::BeforeAccept),
            hook("FORWARD", names.forward(), Place::BeforeAccept),
            hook("FORWARD", names.accept(), Place::BehindPolicy),
        ],
        TableName::Mangle => vec![hook("PREROUTING", names.links(), Place::BeforeAccept)],
        TableName::Nat => vec![
            hook("PREROUTING", names.dnat(), Place::BeforeNat),
            hook("OUTPUT", names.dnat(), Place::BeforeNat),
            hook("POSTROUTING", names.snat(), Place::BeforeNat),
        ],
    }
}

/// The changes that bring every jump to a wanted chain to a place where it works, and take others out; none when all
/// stand well.
pub fn edits(
    name: TableName,
    table: &Table,
    wanted: &BTreeMap<String, Vec<Rule>>,
    names: Names<'_>,
    yielded: &Yielded,
) -> Vec<Edit> {
    let mut hooks = hooks(name, names);
    hooks.retain(|hook| wanted.contains_key(&hook.chain));
    let built_in =
        table.chains.iter().filter(|(_, chain)| chain.policy.is_some()).map(|(name, _)| name.as_str());
    let mut edits = Vec::new();
    for chain in built_in.filter(|name| !hooks.iter().any(|hook| hook.built_in == *name)) {
        edits.extend(deletions(chain, table, names, |_| true));
    }
    for chain in ["INPUT", "FORWARD", "PREROUTING", "OUTPUT", "POSTROUTING"] {
        let here: Vec<_> = hooks.iter().filter(|hook| hook.built_in == chain).collect();
        if !here.is_empty() {
            let yields = yielded.contains(&Spot { table: name, chain });
            edits.extend(edits_of_chain(chain, &here, table, names, yields));
        }
    }
    edits
}

/// Where others stand in front of a jump for NAT that is as we write it, each with the first such rule.
pub fn preempted(
    name: TableName,
    table: &Table,
    wanted: &BTreeMap<String, Vec<Rule>>,
    names: Names<'_>,
) -> Vec<(Spot, String)> {
    let hooks = hooks(name, names).into_iter();
    let hooks = hooks.filter(|hook| hook.place == Place::BeforeNat && wanted.contains_key(&hook.chain));
    let preempted = hooks.filter_map(|hook| {
        let rules = table.rules(hook.built_in);
        let (before, _) = rules.split_at(index_of_only_jump(&hook, rules)?);
        let mut foreign = before.iter().filter(|rule| !names.owns(&rule.target));
        let first = foreign.find(|rule| may_end(rule, table, DEPTH))?;
        Some((Spot { table: name, chain: hook.built_in }, first.text.clone()))
    });
    preempted.collect()
}

/// The changes that take every jump to a chain of ours out.
pub fn removals(table: &Table, names: Names<'_>) -> Vec<Edit> {
    table
        .chains
        .keys()
        .filter(|chain| !names.owns(chain))
        .flat_map(|chain| deletions(chain, table, names, |_| true))
        .collect()
}

fn deletions<'a>(
    chain: &'a str,
    table: &'a Table,
    names: Names<'a>,
    wrong: impl Fn(&SavedRule) -> bool + 'a,
) -> impl Iterator<Item = Edit> + 'a {
    let leading_to_ours = table.rules(chain).iter().filter(move |rule| names.owns(&rule.target));
    leading_to_ours
        .filter(move |rule| wrong(rule))
        .map(|rule| Edit::Delete { chain: chain.to_owned(), rule: rule.text.clone() })
}

fn edits_of_chain(chain: &str, hooks: &[&Hook], table: &Table, names: Names<'_>, yields: bool) -> Vec<Edit> {
    let rules = table.rules(chain);
    let good: Vec<&Hook> =
        hooks.iter().copied().filter(|hook| stands_well(hook, rules, table, names, yields)).collect();
    let is_good = |rule: &SavedRule| good.iter().any(|hook| hook.chain == rule.target);
    let mut edits: Vec<_> = deletions(chain, table, names, |rule| !is_good(rule)).collect();
    let mut left: Vec<_> =
        rules.iter().filter(|rule| !names.owns(&rule.target) || is_good(rule)).map(Some).collect();
    for hook in hooks.iter().filter(|hook| !good.iter().any(|good| good.chain == hook.chain)) {
        let rule = jump(&hook.chain).to_string();
        let position = match hook.place {
            Place::BeforeNat | Place::BeforeAccept => Some(0),
            Place::BehindPolicy => left.iter().position(|rule| rule.is_some_and(rejects_everything)),
        };
        let chain = chain.to_owned();
        left.insert(position.unwrap_or(left.len()), None);
        edits.push(match position {
            Some(index) => Edit::Insert { chain, position: index + 1, rule },
            None => Edit::Append { chain, rule },
        });
    }
    edits
}

fn jump(chain: &str) -> Rule {
    Rule::new(Action::Jump(chain.to_owned())).comment(JUMP)
}

/// Where the jump to the chain stands, if it is the only one and as we write it.
fn index_of_only_jump(hook: &Hook, rules: &[SavedRule]) -> Option<usize> {
    let mut found = rules.iter().enumerate().filter(|(_, rule)| rule.target == hook.chain);
    let (Some((index, rule)), None) = (found.next(), found.next()) else { return None };
    (rule.rule.as_ref() == Some(&jump(&hook.chain))).then_some(index)
}

/// Whether exactly one jump leads to the chain, as we write it, and stands where it works.
fn stands_well(hook: &Hook, rules: &[SavedRule], table: &Table, names: Names<'_>, yields: bool) -> bool {
    let Some(index) = index_of_only_jump(hook, rules) else { return false };
    let foreign = |rule: &&SavedRule| !names.owns(&rule.target);
    let (before, behind) = rules.split_at(index);
    let mut before = before.iter().filter(foreign);
    let mut behind = behind.iter().filter(foreign).take_while(|rule| !rejects_everything(rule));
    match hook.place {
        Place::BeforeNat => yields || !before.any(|rule| may_end(rule, table, DEPTH)),
        Place::BeforeAccept => {
            !before.any(|rule| matches!(rule.target.as_str(), "ACCEPT" | "RETURN" | "QUEUE" | "NFQUEUE"))
        }
        Place::BehindPolicy => !before.any(rejects_everything) && !behind.any(|rule| may_refuse(rule, table)),
    }
}

/// Whether nothing comes past this rule.
pub fn rejects_everything(rule: &SavedRule) -> bool {
    rule.unconditional && matches!(rule.target.as_str(), "DROP" | "REJECT")
}

/// Whether a connection can be decided by this rule, or by one in the chains that it leads to.
fn may_end(rule: &SavedRule, table: &Table, depth: usize) -> bool {
    match rule.target.as_str() {
        "ACCEPT" | "DNAT" | "SNAT" | "MASQUERADE" | "REDIRECT" | "NETMAP" => true,
        chain if table.chains.contains_key(chain) => {
            depth == 0 || table.rules(chain).iter().any(|rule| may_end(rule, table, depth - 1))
        }
        _ => false,
    }
}

fn may_refuse(rule: &SavedRule, table: &Table) -> bool {
    matches!(rule.target.as_str(), "DROP" | "REJECT" | "QUEUE" | "NFQUEUE")
        || table.chains.contains_key(&rule.target)
}

#[cfg(test)]
mod tests {
    use crate::dataplane::iptables::fixtures::bring;
    use crate::dataplane::iptables::fixtures::change;
    use crate::dataplane::iptables::fixtures::names_of;
    use crate::dataplane::iptables::fixtures::saved;
    use crate::dataplane::iptables::fixtures::serving;
    use crate::dataplane::iptables::fixtures::with_rules;
    use crate::dataplane::iptables::memory;
    use crate::dataplane::iptables::parse::parse;
    use crate::dataplane::iptables::table::Tables;
    use crate::dataplane::settings::Settings;
    use crate::model::address::Family;
    use crate::ruleset::fixtures::endpoint;
    use crate::ruleset::fixtures::ruleset;
    use crate::ruleset::fixtures::v4_node;

    #[test]
    fn r34_nothing_is_written_and_no_jump_moves_when_nothing_changed() {
        let web = [endpoint("80/tcp", "web", &["10.244.1.9"])];
        assert_eq!(change(&web, &web), "");
        for (filter, nat) in [
            // Rules that can neither accept nor rewrite may stand in front.
            ("-A FORWARD -m comment --comment note\n", ""),
            ("", "-A PREROUTING -j LOG\n"),
            // An accept may stand behind ours, and everything may follow a rule that rejects everything.
            ("-A FORWARD -i eth0 -j ACCEPT\n", "-A POSTROUTING -j MASQUERADE\n"),
            (":POLICY - [0:0]\n-A FORWARD -j REJECT\n-A FORWARD -j POLICY\n", ""),
        ] {
            let mut tables = with_rules(&serving(&web), filter, nat);
            assert_eq!(bring(&mut tables, &ruleset(&web, &v4_node()), Family::V4), "", "{filter}{nat}");
        }
    }

    #[test]
    fn r34_a_jump_moves_inside_one_text() {
        let web = [endpoint("80/tcp", "web", &["10.244.1.9"])];
        let before = saved(&serving(&web));
        let in_front = before.replace(
            "[0:0] -A POSTROUTING",
            "[0:0] -A POSTROUTING -s 10.244.0.0/16 -j MASQUERADE\n[0:0] -A POSTROUTING",
        );
        let mut tables = parse(&in_front, names_of(&Settings::default())).unwrap();
        assert_eq!(
            bring(&mut tables, &ruleset(&web, &v4_node()), Family::V4),
            "*nat\n\
             -D POSTROUTING -m comment --comment pinhole:jump -j PINHOLE-SNAT\n\
             -I POSTROUTING 1 -m comment --comment pinhole:jump -j PINHOLE-SNAT\n\
             COMMIT\n"
        );
    }

    /// What FORWARD looks like after our jumps were put into what others wrote.
    fn forward(foreign: &str) -> Vec<String> {
        let chains = ":KUBE-ROUTER-FORWARD - [0:0]\n:cali-FORWARD - [0:0]\n:KUBE-FORWARD - [0:0]\n";
        let mut tables =
            with_rules(&Tables::default(), &format!(":FORWARD DROP [0:0]\n{chains}{foreign}"), "");
        bring(&mut tables, &ruleset(&[], &v4_node()), Family::V4);
        assert_eq!(
            bring(&mut tables, &ruleset(&[], &v4_node()), Family::V4),
            "",
            "a second look moves nothing"
        );
        tables.filter.rules("FORWARD").iter().map(|rule| rule.target.clone()).collect()
    }

    #[test]
    fn our_accept_stands_behind_policies_and_before_a_final_reject() {
        let ours = ["PINHOLE-FWD", "PINHOLE-ACCEPT"];
        assert_eq!(forward(""), ours);
        assert_eq!(
            forward("-A FORWARD -j KUBE-ROUTER-FORWARD\n-A FORWARD -j KUBE-FORWARD\n"),
            ["PINHOLE-FWD", "KUBE-ROUTER-FORWARD", "KUBE-FORWARD", "PINHOLE-ACCEPT"]
        );
        assert_eq!(
            forward(
                "-A FORWARD -j cali-FORWARD\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n-A FORWARD -j KUBE-FORWARD\n"
            ),
            ["PINHOLE-FWD", "cali-FORWARD", "PINHOLE-ACCEPT", "REJECT", "KUBE-FORWARD"]
        );
    }

    #[test]
    fn a_policy_that_arrives_later_is_let_in_front() {
        let mut tables = serving(&[]);
        for (position, chain) in [(1, "KUBE-ROUTER-FORWARD"), (4, "LATE")] {
            let text = format!("*filter\n:{chain} - [0:0]\n-I FORWARD {position} -j {chain}\nCOMMIT\n");
            memory::restore(&mut tables, &text, names_of(&Settings::default())).unwrap();
        }
        let text = bring(&mut tables, &ruleset(&[], &v4_node()), Family::V4);
        assert_eq!(
            text,
            "*filter\n\
             -D FORWARD -m comment --comment pinhole:jump -j PINHOLE-ACCEPT\n\
             -A FORWARD -m comment --comment pinhole:jump -j PINHOLE-ACCEPT\n\
             COMMIT\n"
        );
    }
}
