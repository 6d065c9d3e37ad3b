//! Reads our chains back into a [`Ruleset`]: what packets can really reach, with how often they did.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::dataplane::counters::Counters;
use crate::dataplane::iptables::layout::multicast;
use crate::dataplane::iptables::layout::single;
use crate::dataplane::iptables::lists;
use crate::dataplane::iptables::names::Names;
use crate::dataplane::iptables::rule::Action;
use crate::dataplane::iptables::rule::Match;
use crate::dataplane::iptables::rule::Rule;
use crate::dataplane::iptables::table::Table;
use crate::dataplane::iptables::table::Tables;
use crate::model::address::Family;
use crate::model::port::Port;
use crate::model::port::PortRange;
use crate::ruleset::Ruleset;
use crate::ruleset::entry::Egress;
use crate::ruleset::entry::Entry;
use crate::ruleset::entry::Key;
use crate::ruleset::entry::Target;
use crate::ruleset::masquerade::Masquerade;
use crate::ruleset::owner::Owner;
use crate::ruleset::sources::Sources;

/// What was found in all families.
pub fn decode(tables: &BTreeMap<Family, Tables>, names: Names<'_>) -> (Ruleset, BTreeMap<Key, Counters>) {
    let mut pod_cidrs = BTreeSet::new();
    let (mut inside, mut sheltered) = (BTreeSet::new(), BTreeSet::new());
    let (mut masqueraded, mut excluded, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    let mut entries = BTreeMap::new();
    let mut egress = Vec::new();
    let mut families = BTreeSet::new();
    for (family, tables) in tables {
        let nat = &tables.nat;
        if nat.chains.contains_key(&names.dnat()) {
            families.insert(*family);
        }
        // One jump is enough: what is served by it must not be taken for new, or for gone, when the other is put back.
        if reached(nat, &["PREROUTING", "OUTPUT"], &names.dnat()) {
            ingress(nat, names, &mut entries, |_| true);
        }
        if reached(nat, &["POSTROUTING"], &names.snat()) {
            for rule in ours(nat, &names.snat()) {
                match rule {
                    Rule { source: Some(net), action: Action::Masquerade, matches, .. }
                        if matches.contains(&Match::NotLocal) =>
                    {
                        masqueraded.push(*net);
                    }
                    Rule { output: Some(interface), action: Action::Return, .. } => excluded.push(*interface),
                    Rule { source: Some(net), action: Action::Jump(chain), .. } if *chain == names.keep() => {
                        kept.push(*net);
                    }
                    Rule { source: Some(net), action: Action::Masquerade, .. } => {
                        pod_cidrs.insert(*net);
                    }
                    Rule { destination: Some(net), action: Action::Return, .. }
                        if *net != multicast(*family) =>
                    {
                        inside.insert(*net);
                    }
                    Rule { action: Action::Jump(out), .. } if *out == names.out() => {
                        for rule in ours(nat, out) {
                            match &rule.action {
                                Action::Return => sheltered.extend(rule.destination),
                                Action::Jump(leaf) => egress.extend(ours(nat, leaf).filter_map(leaving)),
                                _ => {}
                            }
                        }
                    }
                    Rule { action: Action::Jump(leaf), .. } => {
                        egress.extend(ours(nat, leaf).filter_map(leaving));
                    }
                    _ => {}
                }
            }
        }
    }
    let masquerade = Masquerade::new(masqueraded, excluded, kept);
    let mut ruleset =
        Ruleset::new(pod_cidrs, inside, families).with_sheltered(sheltered).with_masquerade(masquerade);
    let mut counters = BTreeMap::new();
    for (key, (entry, counted)) in entries {
        // Ports that two rules serve were not laid out by us; the first rule wins, as in the kernel.
        if ruleset.insert(entry).is_ok() {
            counters.insert(key, counted);
        }
    }
    for egress in egress {
        ruleset.set_egress(egress);
    }
    (ruleset, counters)
}

/// How often the entries in these chains were used.
pub fn counted(tables: &Tables, names: Names<'_>, chains: &[String]) -> BTreeMap<Key, Counters> {
    let mut entries = BTreeMap::new();
    let is_meant = |chain: &str| chains.iter().any(|meant| meant == chain);
    ingress(&tables.nat, names, &mut entries, is_meant);
    entries.into_iter().map(|(key, (_, counters))| (key, counters)).collect()
}

fn reached(table: &Table, from: &[&str], chain: &str) -> bool {
    from.iter().any(|from| table.rules(from).iter().any(|rule| rule.target == chain))
}

fn ours<'a>(table: &'a Table, chain: &str) -> impl Iterator<Item = &'a Rule> {
    table.rules(chain).iter().filter_map(|saved| saved.rule.as_ref())
}

type Entries = BTreeMap<Key, (Entry, Counters)>;

fn ingress(nat: &Table, names: Names<'_>, entries: &mut Entries, is_meant: impl Fn(&str) -> bool) {
    let mut lists: BTreeMap<&str, Sources> = BTreeMap::new();
    for rule in ours(nat, &names.dnat()) {
        let Rule { destination: Some(net), action: Action::Jump(chain), .. } = rule else { continue };
        let Some(external) = single(*net) else { continue };
        let key = |rule: &Rule| Some(Key { external, protocol: rule.protocol?, ports: rule.ports? });
        let leaves = ours(nat, chain).filter_map(|rule| match &rule.action {
            Action::Jump(leaf) if !names.is_list(leaf) => Some(leaf.as_str()),
            _ => None,
        });
        let mut listed: BTreeMap<Key, Sources> = BTreeMap::new();
        for chain in leaves.chain([chain.as_str()]).filter(|chain| is_meant(chain)) {
            for saved in nat.rules(chain) {
                let Some(rule) = &saved.rule else { continue };
                let Some(key) = key(rule) else { continue };
                match &rule.action {
                    Action::Jump(list) if names.is_list(list) => {
                        let sources = lists.entry(list).or_insert_with(|| lists::read(nat, list));
                        listed.insert(key, sources.clone());
                    }
                    _ => {
                        let Some(owner) = rule.comment.as_deref().and_then(Owner::parse) else { continue };
                        let sources = listed.get(&key).cloned().unwrap_or_default();
                        serve(entries, (key, owner), rule, sources, saved.counters);
                    }
                }
            }
        }
    }
}

fn serve(
    entries: &mut Entries,
    (key, owner): (Key, Owner),
    rule: &Rule,
    listed: Sources,
    counters: Counters,
) {
    let target = match rule.action {
        Action::Dnat { to, ports } => {
            let first: Port = ports.map_or(key.ports.first(), PortRange::first);
            Some(Target { ip: to, first })
        }
        Action::SetConnmark(_) => None,
        _ => return,
    };
    let fresh = Entry { key, target, allowed_sources: listed, owner };
    let (entry, counted) = entries.entry(key).or_insert((fresh, Counters::default()));
    if entry.target == target {
        if let Some(source) = rule.source {
            entry.allowed_sources = entry.allowed_sources.with(source);
        }
        *counted += counters;
    }
}

fn leaving(rule: &Rule) -> Option<Egress> {
    let Action::Snat(external) = rule.action else { return None };
    let owner = Owner::parse(rule.comment.as_deref()?)?;
    Some(Egress { pod: single(rule.source?)?, external, owner })
}

/// Whether the chains have the layout that this program writes, so that equal rules mean equal behaviour.
pub fn is_current(tables: &Tables, names: Names<'_>, skeleton: &str) -> bool {
    ours(&tables.filter, &names.forward()).any(|rule| rule.comment.as_deref() == Some(skeleton))
}
