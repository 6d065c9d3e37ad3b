//! Long lists of sources as chains that entries share: what comes from a network of the list returns from its chain, and is
//! sent to the pod by the rule behind the jump. All else is accepted as it is, which ends its way through the nat table
//! without a new destination, and the guard drops it.
//!
//! A packet does not walk the whole list: its chain has one rule per part of the address space, and each part has few
//! networks. Only the first packet of a connection comes here.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::dataplane::iptables::names::Names;
use crate::dataplane::iptables::rule::Action;
use crate::dataplane::iptables::rule::Rule;
use crate::dataplane::iptables::table::Table;
use crate::model::address::Family;
use crate::ruleset::Ruleset;
use crate::ruleset::sources::Sources;

/// The most networks of one part.
const PART: usize = 64;
/// Parts of fewer networks have no chain of their own: a jump would cost as much.
const OWN_CHAIN: usize = 4;

/// Adds the chains of all lists that entries refer to.
pub(super) fn lay_out(
    chains: &mut BTreeMap<String, Vec<Rule>>,
    ruleset: &Ruleset,
    family: Family,
    names: Names<'_>,
) {
    let entries = ruleset.entries().filter(|entry| entry.key.family() == family && entry.target.is_some());
    let lists: BTreeSet<_> =
        entries.map(|entry| &entry.allowed_sources).filter(|list| list.is_shared()).collect();
    for list in lists {
        lay_out_one(chains, list, &names.list(list.id()), names);
    }
}

fn lay_out_one(chains: &mut BTreeMap<String, Vec<Rule>>, list: &Sources, chain: &str, names: Names<'_>) {
    let admit = |net: &IpNet| Rule::new(Action::Return).from(*net);
    let mut rules = Vec::new();
    let mut buckets = (0..).map(|bucket| names.list_bucket(chain, bucket));
    for (within, nets) in parts(list) {
        if nets.len() < OWN_CHAIN {
            rules.extend(nets.iter().map(admit));
            continue;
        }
        let Some(bucket) = buckets.next() else { continue };
        // What a part admits returns to where the list was asked.
        rules.push(Rule::new(Action::Goto(bucket.clone())).from(within));
        chains.insert(bucket, nets.iter().map(admit).chain([Rule::new(Action::Accept)]).collect());
    }
    rules.push(Rule::new(Action::Accept));
    chains.insert(chain.to_owned(), rules);
}

/// The list in parts, each with the smallest network that has all of it. No two of these networks overlap.
fn parts(nets: &[IpNet]) -> Vec<(IpNet, &[IpNet])> {
    let (Some(first), Some(last)) = (nets.first(), nets.last()) else { return Vec::new() };
    let around = around(*first, *last);
    if nets.len() <= PART {
        return vec![(around, nets)];
    }
    // Networks are sorted and do not overlap, so those of the upper half come last.
    let Ok(mut halves) = around.subnets(around.prefix_len() + 1) else { return vec![(around, nets)] };
    let upper = halves.nth(1);
    let (low, high) =
        nets.split_at(nets.partition_point(|net| upper.is_some_and(|upper| net.addr() < upper.addr())));
    [parts(low), parts(high)].concat()
}

/// The smallest network that has both.
fn around(first: IpNet, last: IpNet) -> IpNet {
    let mut around = first.trunc();
    while !around.contains(&last)
        && let Some(wider) = around.supernet()
    {
        around = wider;
    }
    around
}

/// The list that a chain admits.
pub(super) fn read(nat: &Table, chain: &str) -> Sources {
    let mut nets = Vec::new();
    let rules = |chain: &str| nat.rules(chain).iter().filter_map(|saved| saved.rule.as_ref());
    for rule in rules(chain) {
        match (&rule.action, rule.source) {
            (Action::Return, Some(net)) => nets.push(net),
            (Action::Goto(bucket), Some(_)) => {
                nets.extend(
                    rules(bucket).filter_map(|rule| rule.source.filter(|_| rule.action == Action::Return)),
                );
            }
            _ => {}
        }
    }
    nets.sort();
    nets.into()
}

#[cfg(test)]
mod tests {
    use ipnet::Ipv4Net;
    use proptest::prelude::*;

    use super::*;

    /// Whether a list lets an address in, as its rules say.
    fn admits(chains: &BTreeMap<String, Vec<Rule>>, chain: &str, address: IpNet) -> bool {
        let rules = chains[chain].iter();
        let applies = |rule: &&Rule| rule.source.is_none_or(|net| net.contains(&address));
        match &rules.clone().find(applies).unwrap().action {
            Action::Return => true,
            Action::Goto(bucket) => admits(chains, bucket, address),
            _ => false,
        }
    }

    fn laid_out(list: &Sources) -> BTreeMap<String, Vec<Rule>> {
        let prefix = crate::dataplane::settings::Prefix::default();
        let mut chains = BTreeMap::new();
        lay_out_one(&mut chains, list, "TOP", Names(&prefix));
        chains
    }

    #[test]
    fn a_packet_passes_few_rules_of_a_long_list() {
        // Every other network of 256 addresses from 1.0.0.0 on.
        let list: Sources = (0..5000_u32)
            .map(|n| IpNet::V4(Ipv4Net::new_assert((0x0100_0000 + n * 512).into(), 24)))
            .collect();
        let chains = laid_out(&list);
        let longest = chains.values().map(Vec::len).max().unwrap();
        assert!(chains["TOP"].len() + longest <= 256, "{} and {longest}", chains["TOP"].len());
    }

    proptest! {
        #[test]
        fn a_list_admits_its_networks_and_nothing_else(
            nets in prop::collection::vec((any::<u32>(), 4_u8..=32), 0..400),
            near in any::<bool>(),
            strangers in prop::collection::vec(any::<u32>(), 0..50),
        ) {
            let net = |(bits, length): &(u32, u8)| {
                let bits = if near { bits & 0xffff | 0x0a00_0000 } else { *bits };
                IpNet::V4(Ipv4Net::new_assert(bits.into(), *length)).trunc()
            };
            let mut nets = IpNet::aggregate(&nets.iter().map(net).collect());
            nets.sort();
            let list = Sources::from(nets);
            let chains = laid_out(&list);
            let one = |bits: u32| IpNet::V4(Ipv4Net::new_assert(bits.into(), 32));
            for net in list.iter() {
                prop_assert!(admits(&chains, "TOP", IpNet::from(net.network())));
                prop_assert!(admits(&chains, "TOP", IpNet::from(net.broadcast())));
            }
            for stranger in strangers.into_iter().map(one) {
                let is_member = list.iter().any(|net| net.contains(&stranger));
                prop_assert_eq!(admits(&chains, "TOP", stranger), is_member);
            }
        }
    }
}
