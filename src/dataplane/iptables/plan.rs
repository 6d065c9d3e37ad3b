//! From the chains that are there to the chains that should be: the shortest restore text that leads there.
//!
//! # Guarantees
//! - Equal rules give no text at all.
//! - A chain whose rules are as wanted is not mentioned, so its counters and the packets in it are not disturbed.
//! - In a chain of which most rules stay, only the others are mentioned, where their places do not matter.
//! - Counters of rules that stay survive the rewriting of their chain.
//! - Rules of others are never named, except to put ours before or behind them.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::dataplane::counters::Counters;
use crate::dataplane::iptables::chain;
use crate::dataplane::iptables::decode::is_current;
use crate::dataplane::iptables::layout::Layout;
use crate::dataplane::iptables::layout::SKELETON;
use crate::dataplane::iptables::names::Names;
use crate::dataplane::iptables::position;
use crate::dataplane::iptables::position::Edit;
use crate::dataplane::iptables::position::Yielded;
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
    /// Chains that are changed, added or removed.
    pub chains: usize,
    /// Jumps that are added, moved or removed.
    pub jumps: usize,
    /// Chains that had rules and are rewritten: their counters go on from what was observed.
    pub rewritten: Vec<String>,
}

/// How a chain is changed of which some rules stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// By its rules that differ, each by what it says.
    Rules,
    /// By writing it anew, whatever is in it.
    Chains,
}

/// How to get from `observed` to `wanted`; `None` when nothing is to be done.
pub fn plan(observed: &Tables, wanted: &Layout, names: Names<'_>, means: Means) -> Option<Plan> {
    plan_beside(observed, wanted, names, means, &Yielded::new())
}

/// Likewise, where others may stand in front of us in some chains.
pub fn plan_beside(
    observed: &Tables,
    wanted: &Layout,
    names: Names<'_>,
    means: Means,
    yielded: &Yielded,
) -> Option<Plan> {
    let mut plan = Plan::default();
    // What has no skeleton has no version.
    let current = !wanted.filter.contains_key(&names.forward()) || is_current(observed, names, SKELETON);
    for name in TableName::ALL {
        let table = observed.get(name);
        let wanted = wanted.get(name);
        let mut work = Work { stale: stale(table, names, wanted), ..Work::default() };
        for (chain, rules) in wanted {
            if current && table.holds(chain, rules) {
                continue;
            }
            let single = || chain::edits(chain, table.rules(chain), rules, names);
            match (current && means == Means::Rules).then(single).flatten() {
                Some(edits) => work.edited.push(edits),
                None => work.rewritten.push((chain, rules)),
            }
        }
        work.jumps = position::edits(name, table, wanted, names, yielded);
        write(&mut plan, name, table, &work, names);
    }
    (!plan.text.is_empty()).then_some(plan)
}

/// How to take everything of ours out; `None` when nothing is there.
pub fn removal(observed: &Tables, names: Names<'_>) -> Option<Plan> {
    let mut plan = Plan::default();
    // NAT first: without it, the guards have nothing left to guard.
    for name in [TableName::Nat, TableName::Mangle, TableName::Filter] {
        let table = observed.get(name);
        let stale = stale(table, names, &BTreeMap::new());
        let work = Work { stale, jumps: position::removals(table, names), ..Work::default() };
        write(&mut plan, name, table, &work, names);
    }
    (!plan.text.is_empty()).then_some(plan)
}

/// The chains of ours that are there and not wanted.
fn stale<'a>(table: &'a Table, names: Names<'_>, wanted: &BTreeMap<String, Vec<Rule>>) -> Vec<&'a str> {
    let ours = table.chains.keys().map(String::as_str).filter(|chain| names.owns(chain));
    ours.filter(|chain| !wanted.contains_key(*chain)).collect()
}

/// What is to be done in one table.
#[derive(Default)]
struct Work<'a> {
    rewritten: Vec<(&'a String, &'a Vec<Rule>)>,
    /// Chains of which single rules are changed.
    edited: Vec<Vec<Edit>>,
    stale: Vec<&'a str>,
    jumps: Vec<Edit>,
}

fn write(plan: &mut Plan, name: TableName, table: &Table, work: &Work<'_>, names: Names<'_>) {
    let Work { rewritten, edited, stale, jumps } = work;
    if rewritten.is_empty() && edited.is_empty() && stale.is_empty() && jumps.is_empty() {
        return;
    }
    plan.chains += rewritten.len() + edited.len() + stale.len();
    plan.jumps += jumps.len();
    let text = &mut plan.text;
    line(text, format_args!("*{}", name.name()));
    // A declaration empties the chain if it exists.
    for chain in rewritten.iter().map(|(chain, _)| chain.as_str()).chain(stale.iter().copied()) {
        line(text, format_args!(":{chain} - [0:0]"));
    }
    for (chain, rules) in rewritten {
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
    for edit in edited.iter().flatten().chain(jumps) {
        match edit {
            Edit::Delete { chain, rule } => line(text, format_args!("-D {chain} {rule}")),
            Edit::Insert { chain, position, rule } => {
                line(text, format_args!("-I {chain} {position} {rule}"));
            }
            Edit::Append { chain, rule } => line(text, format_args!("-A {chain} {rule}")),
        }
    }
    let used = used_by_others(table, jumps, names);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::iptables::decode::decode;
    use crate::dataplane::iptables::fixtures::bring;
    use crate::dataplane::iptables::fixtures::change;
    use crate::dataplane::iptables::fixtures::names_of;
    use crate::dataplane::iptables::fixtures::saved;
    use crate::dataplane::iptables::fixtures::serving;
    use crate::dataplane::iptables::fixtures::with_rules;
    use crate::dataplane::iptables::memory;
    use crate::dataplane::iptables::parse::parse;
    use crate::dataplane::settings::Settings;
    use crate::model::address::Family;
    use crate::model::masquerade::Policy;
    use crate::ruleset::fixtures::endpoint;
    use crate::ruleset::fixtures::node;
    use crate::ruleset::fixtures::ruleset;
    use crate::ruleset::fixtures::v4_node;
    use crate::ruleset::node::NodeFacts;

    #[test]
    fn an_empty_node_gets_everything_in_one_text() {
        let endpoints = [
            endpoint("80/tcp", "web", &["10.244.1.9"]).at(8080),
            endpoint("81/tcp", "web", &["10.244.1.9"]).from(&["198.51.100.0/24", "192.0.2.1/32"]),
            endpoint("90/tcp", "later", &[]),
            endpoint("7000-7100/udp", "rtp", &["10.244.1.70"]).at(8000),
            endpoint("9000-9009/udp", "rtp", &["10.244.1.70"]),
        ];
        let text = bring(&mut Tables::default(), &ruleset(&endpoints, &v4_node()), Family::V4);
        let expected = "\
*filter
:PINHOLE-ACCEPT - [0:0]
:PINHOLE-FWD - [0:0]
:PINHOLE-IN - [0:0]
-A PINHOLE-ACCEPT -m connmark --mark 0x1000/0x1000 -m conntrack --ctstate DNAT -j ACCEPT
-A PINHOLE-FWD -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment pinhole:skeleton:1 -j RETURN
-A PINHOLE-FWD -m connmark --mark 0x1000/0x1000 -m conntrack --ctstate NEW -m conntrack ! --ctstate DNAT -j DROP
-A PINHOLE-FWD -s 10.244.1.0/24 -p tcp -m conntrack --ctstate INVALID -j DROP
-A PINHOLE-FWD -s 10.244.1.9/32 -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW -j DROP
-A PINHOLE-IN -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment pinhole:skeleton:1 -j RETURN
-A PINHOLE-IN -m connmark --mark 0x1000/0x1000 -m conntrack --ctstate NEW -m conntrack ! --ctstate DNAT -j DROP
-I INPUT 1 -m comment --comment pinhole:jump -j PINHOLE-IN
-I FORWARD 1 -m comment --comment pinhole:jump -j PINHOLE-FWD
-A FORWARD -m comment --comment pinhole:jump -j PINHOLE-ACCEPT
COMMIT
*nat
:PINHOLE-DNAT - [0:0]
:PINHOLE-E-0AF40100 - [0:0]
:PINHOLE-E-0AF40140 - [0:0]
:PINHOLE-SNAT - [0:0]
:PINHOLE-T-CB007107 - [0:0]
:PINHOLE-T-CB007107-001 - [0:0]
:PINHOLE-U-CB007107 - [0:0]
:PINHOLE-U-CB007107-08C - [0:0]
-A PINHOLE-DNAT -d 203.0.113.7/32 -p tcp -j PINHOLE-T-CB007107
-A PINHOLE-DNAT -d 203.0.113.7/32 -p udp -j PINHOLE-U-CB007107
-A PINHOLE-E-0AF40100 -s 10.244.1.9/32 -m comment --comment default/web:3c8afc1a -j SNAT --to-source 203.0.113.7
-A PINHOLE-E-0AF40140 -s 10.244.1.70/32 -m comment --comment default/rtp:55e7811a -j SNAT --to-source 203.0.113.7
-A PINHOLE-SNAT -m mark --mark 0x4000/0x4000 -j RETURN
-A PINHOLE-SNAT -s 10.244.1.0/24 -m connmark --mark 0x1000/0x1000 -m conntrack --ctstate DNAT -j MASQUERADE --random-fully
-A PINHOLE-SNAT -d 10.244.1.0/24 -j RETURN
-A PINHOLE-SNAT -m connmark --mark 0x1000/0x1000 -m conntrack --ctstate DNAT -j MASQUERADE --random-fully
-A PINHOLE-SNAT -d 10.244.0.0/16 -j RETURN
-A PINHOLE-SNAT -d 224.0.0.0/4 -j RETURN
-A PINHOLE-SNAT -s 10.244.1.0/26 -j PINHOLE-E-0AF40100
-A PINHOLE-SNAT -s 10.244.1.64/26 -j PINHOLE-E-0AF40140
-A PINHOLE-T-CB007107 -p tcp -m tcp --dport 64:127 -j PINHOLE-T-CB007107-001
-A PINHOLE-T-CB007107-001 -p tcp -m tcp --dport 80:81 -j CONNMARK --set-xmark 0x1000/0x1000
-A PINHOLE-T-CB007107-001 -p tcp -m tcp --dport 90 -m comment --comment default/later:b9004143 -j CONNMARK --set-xmark 0x1000/0x1000
-A PINHOLE-T-CB007107-001 -p tcp -m tcp --dport 80 -m comment --comment default/web:3c8afc1a -j DNAT --to-destination 10.244.1.9:8080
-A PINHOLE-T-CB007107-001 -s 192.0.2.1/32 -p tcp -m tcp --dport 81 -m comment --comment default/web:3c8afc1a -j DNAT --to-destination 10.244.1.9:81
-A PINHOLE-T-CB007107-001 -s 198.51.100.0/24 -p tcp -m tcp --dport 81 -m comment --comment default/web:3c8afc1a -j DNAT --to-destination 10.244.1.9:81
-A PINHOLE-U-CB007107 -p udp -m udp --dport 8960:9023 -j PINHOLE-U-CB007107-08C
-A PINHOLE-U-CB007107 -p udp -m udp --dport 7000:7100 -j CONNMARK --set-xmark 0x1000/0x1000
-A PINHOLE-U-CB007107 -p udp -m udp --dport 7000:7100 -m comment --comment default/rtp:55e7811a -j DNAT --to-destination 10.244.1.70:8000-8100/7000
-A PINHOLE-U-CB007107-08C -p udp -m udp --dport 9000:9009 -j CONNMARK --set-xmark 0x1000/0x1000
-A PINHOLE-U-CB007107-08C -p udp -m udp --dport 9000:9009 -m comment --comment default/rtp:55e7811a -j DNAT --to-destination 10.244.1.70
-I PREROUTING 1 -m comment --comment pinhole:jump -j PINHOLE-DNAT
-I OUTPUT 1 -m comment --comment pinhole:jump -j PINHOLE-DNAT
-I POSTROUTING 1 -m comment --comment pinhole:jump -j PINHOLE-SNAT
COMMIT
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_masquerade_policy_exempts_first_and_masquerades_last() {
        let policy = Policy {
            except: vec!["172.16.0.0/12".parse().unwrap()],
            excluded_interfaces: ["wg0".parse().unwrap()].into(),
            override_existing: true,
            ..Policy::default()
        };
        let web = [endpoint("80/tcp", "web", &["10.244.1.9"])];
        let masquerading = NodeFacts { masquerade: Some(policy), ..v4_node() };
        let expected = "\
-A PINHOLE-KEEP -d 10.244.1.0/24 -j ACCEPT
-A PINHOLE-KEEP -m connmark --mark 0x1000/0x1000 -m conntrack --ctstate DNAT -j RETURN
-A PINHOLE-KEEP -d 10.244.0.0/16 -j ACCEPT
-A PINHOLE-KEEP -d 169.254.0.0/16 -j ACCEPT
-A PINHOLE-KEEP -d 172.16.0.0/12 -j ACCEPT
-A PINHOLE-KEEP -d 224.0.0.0/4 -j ACCEPT
-A PINHOLE-SNAT -m mark --mark 0x4000/0x4000 -j RETURN
-A PINHOLE-SNAT -s 10.244.1.0/24 -m connmark --mark 0x1000/0x1000 -m conntrack --ctstate DNAT -j MASQUERADE --random-fully
-A PINHOLE-SNAT -s 10.244.0.0/16 -j PINHOLE-KEEP
-A PINHOLE-SNAT -s 172.16.0.0/12 -j PINHOLE-KEEP
-A PINHOLE-SNAT -d 10.244.1.0/24 -j RETURN
-A PINHOLE-SNAT -m connmark --mark 0x1000/0x1000 -m conntrack --ctstate DNAT -j MASQUERADE --random-fully
-A PINHOLE-SNAT -d 10.244.0.0/16 -j RETURN
-A PINHOLE-SNAT -d 169.254.0.0/16 -j RETURN
-A PINHOLE-SNAT -d 172.16.0.0/12 -j RETURN
-A PINHOLE-SNAT -d 224.0.0.0/4 -j RETURN
-A PINHOLE-SNAT -s 10.244.1.0/26 -j PINHOLE-E-0AF40100
-A PINHOLE-SNAT -s 10.244.0.0/16 -o wg0 -j ACCEPT
-A PINHOLE-SNAT -s 172.16.0.0/12 -o wg0 -j ACCEPT
-A PINHOLE-SNAT -o wg0 -j RETURN
-A PINHOLE-SNAT -s 10.244.1.0/24 -m addrtype ! --dst-type LOCAL -j MASQUERADE --random-fully
";
        let text = bring(&mut Tables::default(), &ruleset(&web, &masquerading), Family::V4);
        let is_told =
            |line: &str| ["-A PINHOLE-KEEP", "-A PINHOLE-SNAT"].iter().any(|chain| line.starts_with(chain));
        assert_eq!(text.split_inclusive('\n').filter(|line| is_told(line)).collect::<String>(), expected);
    }

    #[test]
    fn one_more_port_adds_its_rules_where_they_belong() {
        let web = endpoint("80/tcp", "web", &["10.244.1.9"]);
        let more = endpoint("82/tcp", "web", &["10.244.1.9"]);
        let expected = "\
*nat
-I PINHOLE-T-CB007107-001 2 -p tcp -m tcp --dport 82 -j CONNMARK --set-xmark 0x1000/0x1000
-I PINHOLE-T-CB007107-001 4 -p tcp -m tcp --dport 82 -m comment --comment default/web:3c8afc1a -j DNAT --to-destination 10.244.1.9:82
COMMIT
";
        assert_eq!(change(std::slice::from_ref(&web), &[web.clone(), more]), expected);
    }

    #[test]
    fn a_port_far_from_the_others_adds_a_chain_and_a_jump_to_it() {
        let web = endpoint("80/tcp", "web", &["10.244.1.9"]);
        let more = endpoint("443/tcp", "web", &["10.244.1.9"]);
        let expected = "\
*nat
:PINHOLE-T-CB007107-006 - [0:0]
-A PINHOLE-T-CB007107-006 -p tcp -m tcp --dport 443 -j CONNMARK --set-xmark 0x1000/0x1000
-A PINHOLE-T-CB007107-006 -p tcp -m tcp --dport 443 -m comment --comment default/web:3c8afc1a -j DNAT --to-destination 10.244.1.9:443
-I PINHOLE-T-CB007107 2 -p tcp -m tcp --dport 384:447 -j PINHOLE-T-CB007107-006
COMMIT
";
        assert_eq!(change(std::slice::from_ref(&web), &[web.clone(), more]), expected);
    }

    #[test]
    fn the_last_entry_takes_its_chains_along_and_leaves_the_guards() {
        let web = endpoint("80/tcp", "web", &["10.244.1.9"]);
        let expected = "\
*nat
:PINHOLE-DNAT - [0:0]
:PINHOLE-E-0AF40100 - [0:0]
:PINHOLE-T-CB007107 - [0:0]
:PINHOLE-T-CB007107-001 - [0:0]
-D PINHOLE-SNAT -s 10.244.1.0/26 -j PINHOLE-E-0AF40100
-X PINHOLE-E-0AF40100
-X PINHOLE-T-CB007107
-X PINHOLE-T-CB007107-001
COMMIT
";
        assert_eq!(change(&[web], &[]), expected);
    }

    #[test]
    fn ipv6_looks_the_same_with_digests_for_addresses() {
        let web = endpoint("443-444/tcp", "web", &["fd00:244:1::9"]).at(8443);
        let text = bring(&mut Tables::default(), &ruleset(&[web], &node()), Family::V6);
        let (_, nat) = text.split_once("*nat\n").unwrap();
        let expected = "\
:PINHOLE-DNAT - [0:0]
:PINHOLE-E-FE26FC65702A9 - [0:0]
:PINHOLE-SNAT - [0:0]
:PINHOLE-T-99BE530B3C03E - [0:0]
:PINHOLE-T-99BE530B3C03E-006 - [0:0]
-A PINHOLE-DNAT -d 2001:db8::7/128 -p tcp -j PINHOLE-T-99BE530B3C03E
-A PINHOLE-E-FE26FC65702A9 -s fd00:244:1::9/128 -m comment --comment default/web:3c8afc1a -j SNAT --to-source 2001:db8::7
-A PINHOLE-SNAT -m mark --mark 0x4000/0x4000 -j RETURN
-A PINHOLE-SNAT -s fd00:244:1::/64 -m connmark --mark 0x1000/0x1000 -m conntrack --ctstate DNAT -j MASQUERADE --random-fully
-A PINHOLE-SNAT -d fd00:244:1::/64 -j RETURN
-A PINHOLE-SNAT -m connmark --mark 0x1000/0x1000 -m conntrack --ctstate DNAT -j MASQUERADE --random-fully
-A PINHOLE-SNAT -d fd00:244::/48 -j RETURN
-A PINHOLE-SNAT -d ff00::/8 -j RETURN
-A PINHOLE-SNAT -s fd00:244:1::/122 -j PINHOLE-E-FE26FC65702A9
-A PINHOLE-T-99BE530B3C03E -p tcp -m tcp --dport 384:447 -j PINHOLE-T-99BE530B3C03E-006
-A PINHOLE-T-99BE530B3C03E-006 -p tcp -m tcp --dport 443:444 -j CONNMARK --set-xmark 0x1000/0x1000
-A PINHOLE-T-99BE530B3C03E-006 -p tcp -m tcp --dport 443:444 -m comment --comment default/web:3c8afc1a -j DNAT --to-destination [fd00:244:1::9]:8443-8444/443
-I PREROUTING 1 -m comment --comment pinhole:jump -j PINHOLE-DNAT
-I OUTPUT 1 -m comment --comment pinhole:jump -j PINHOLE-DNAT
-I POSTROUTING 1 -m comment --comment pinhole:jump -j PINHOLE-SNAT
COMMIT
";
        assert_eq!(nat, expected);
    }

    #[test]
    fn r26_whatever_others_flush_or_edit_is_put_back_and_nothing_else() {
        let web = [endpoint("80/tcp", "web", &["10.244.1.9"])];
        let names = Settings::default();
        for damage in [
            "*nat\n:PINHOLE-SNAT - [0:0]\nCOMMIT\n",
            "*nat\n:PINHOLE-T-CB007107-001 - [0:0]\nCOMMIT\n",
            "*nat\n:PREROUTING - [0:0]\nCOMMIT\n",
            "*filter\n:PINHOLE-FWD - [0:0]\n-A PINHOLE-FWD -j ACCEPT\nCOMMIT\n",
            "*filter\n-I FORWARD 1 -i eth0 -j PINHOLE-ACCEPT\nCOMMIT\n",
        ] {
            let intact = serving(&web);
            let mut tables = intact.clone();
            memory::restore(&mut tables, damage, names_of(&names)).unwrap();
            // Flushing made the built-in chain one of a program; its policy is not what is tested.
            tables.nat.chain_mut("PREROUTING").policy = Some("ACCEPT".into());
            assert_ne!(tables, intact, "{damage}");
            bring(&mut tables, &ruleset(&web, &v4_node()), Family::V4);
            assert_eq!(tables, intact, "{damage}");
        }
    }

    #[test]
    fn chains_of_another_layout_are_rewritten_whole() {
        let web = [endpoint("80/tcp", "web", &["10.244.1.9"])];
        let old = saved(&serving(&web)).replace(SKELETON, "pinhole:skeleton:0");
        let mut tables = parse(&old, names_of(&Settings::default())).unwrap();
        let text = bring(&mut tables, &ruleset(&web, &v4_node()), Family::V4);
        assert!(text.contains(":PINHOLE-T-CB007107-001 -"), "{text}");
        assert_eq!(tables, serving(&web));
    }

    #[test]
    fn r51_counters_go_on_when_a_neighbour_changes() {
        let web = endpoint("80/tcp", "web", &["10.244.1.9"]);
        let counted = saved(&serving(std::slice::from_ref(&web))).replace(
            "[0:0] -A PINHOLE-T-CB007107-001 -p tcp -m tcp --dport 80 -m comment",
            "[12:720] -A PINHOLE-T-CB007107-001 -p tcp -m tcp --dport 80 -m comment",
        );
        let names = Settings::default();
        let mut tables = parse(&counted, names_of(&names)).unwrap();
        let both = ruleset(&[web, endpoint("81/tcp", "new", &["10.244.1.10"])], &v4_node());
        bring(&mut tables, &both, Family::V4);
        let (_, counters) = decode(&BTreeMap::from([(Family::V4, tables)]), names_of(&names));
        let counted: Vec<_> = counters.values().map(|counters| (counters.packets, counters.bytes)).collect();
        assert_eq!(counted, [(12, 720), (0, 0)]);
    }

    #[test]
    fn r40_removal_leaves_what_was_there_before() {
        let foreign = with_rules(
            &Tables::default(),
            ":FORWARD DROP [0:0]\n:cali-FORWARD - [0:0]\n-A FORWARD -j cali-FORWARD\n:PINHOLE-NOT-OURS - [0:0]\n",
            ":POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -s 10.244.0.0/16 -j MASQUERADE\n",
        );
        let settings = Settings::default();
        let mut tables = foreign.clone();
        bring(&mut tables, &ruleset(&[endpoint("80/tcp", "web", &["10.244.1.9"])], &v4_node()), Family::V4);
        let removal = removal(&tables, names_of(&settings)).unwrap();
        memory::restore(&mut tables, &removal.text, names_of(&settings)).unwrap();
        for name in TableName::ALL {
            for (chain, rules) in &tables.get(name).chains {
                let before = foreign.get(name).chains.get(chain).cloned().unwrap_or_default();
                assert_eq!(rules.rules, before.rules, "{chain}");
            }
        }
        assert!(tables.filter.chains.keys().any(|chain| chain == "PINHOLE-NOT-OURS"));
        assert_eq!(super::removal(&tables, names_of(&settings)), None);
    }

    #[test]
    fn what_one_jump_still_leads_to_is_served_and_the_other_jump_is_put_back() {
        let settings = Settings::default();
        let web = [endpoint("80/tcp", "web", &["10.244.1.9"])];
        let intact = serving(&web);
        for hook in ["OUTPUT", "PREROUTING"] {
            let mut tables = intact.clone();
            tables.nat.chain_mut(hook).rules.clear();
            let observed = BTreeMap::from([(Family::V4, tables.clone())]);
            assert_eq!(decode(&observed, names_of(&settings)).0.len(), 1, "{hook}");
            bring(&mut tables, &ruleset(&web, &v4_node()), Family::V4);
            assert_eq!(tables, intact, "{hook}");
        }
    }

    #[test]
    fn a_chain_that_others_jump_to_is_emptied_but_kept() {
        let settings = Settings::default();
        let foreign = ":ADMIN - [0:0]\n-A ADMIN -p tcp -j PINHOLE-T-CB007107\n";
        let mut tables = with_rules(&serving(&[endpoint("80/tcp", "web", &["10.244.1.9"])]), "", foreign);
        bring(&mut tables, &ruleset(&[], &v4_node()), Family::V4);
        assert!(tables.nat.rules("PINHOLE-T-CB007107").is_empty());
        assert!(
            names_of(&settings).owns("PINHOLE-T-CB007107")
                && tables.nat.chains.contains_key("PINHOLE-T-CB007107")
        );
    }
}
