//! What other nft tables do with forwarded connections of ours, read from what `nft -j` lists.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::dataplane::command::Tools;
use crate::dataplane::condition::Condition;
use crate::dataplane::condition::ConditionKind;
use crate::dataplane::iptables::blockers::fate::Fate;
use crate::dataplane::iptables::blockers::fate::Verdict;
use crate::dataplane::iptables::blockers::fate::fate;
use crate::dataplane::settings::Firewall;
use crate::dataplane::settings::Settings;
use crate::model::address::Family;
use crate::ruleset::Ruleset;

/// How many chains are read to know what becomes of a connection in one of them.
const MOST_CHAINS: usize = 32;

/// Chains of other nft tables that refuse connections that were sent on to pods. Nothing can be said where nft is
/// missing; without it, other nft tables are rare.
pub(super) async fn conditions(settings: &Settings, firewall: Firewall, desired: &Ruleset) -> Vec<Condition> {
    let tools = &settings.tools;
    let mut conditions = Vec::new();
    let Some(listed) = nft(tools, &["list", "chains"]).await else { return conditions };
    for chain in forward_chains(&listed, desired) {
        if chain.table == settings.prefix.as_str() {
            continue;
        }
        let Some(fate) = fate_in(tools, &chain).await else { continue };
        let NftChain { family, table, name, drops } = &chain;
        let what = match fate {
            Fate::Refused => "rejects what it does not accept",
            Fate::Returned if *drops => "has the policy drop",
            Fate::Accepted | Fate::Returned => continue,
        };
        conditions.push(Condition {
            kind: ConditionKind::ForwardBlocked,
            message: format!("the nft chain {family} {table} {name} {what}, and rules of {firewall} cannot accept for it"),
            fix: format!(
                "accept our connections there: `nft insert rule {family} {table} {name} ct status dnat accept`, or configure the firewall that owns it to forward to pods"
            ),
        });
    }
    conditions
}

async fn nft(tools: &Tools, command: &[&str]) -> Option<Value> {
    let arguments: Vec<&str> = ["-j"].iter().chain(command).copied().collect();
    let listed = tools.run("nft", &arguments, "").await.ok()?;
    serde_json::from_str(&listed).ok()
}

/// What becomes of a connection of ours in a chain. Only the chains are read that decide it: a table can have thousands.
async fn fate_in(tools: &Tools, NftChain { family, table, name, .. }: &NftChain) -> Option<Fate> {
    let mut known: BTreeMap<String, Vec<Verdict>> = BTreeMap::new();
    while known.len() < MOST_CHAINS {
        let unread = match fate(name, &|chain: &str| known.get(chain).map(Vec::as_slice)) {
            Ok(fate) => return Some(fate),
            Err(chain) => chain.to_owned(),
        };
        let listed = nft(tools, &["list", "chain", family, table, &unread]).await?;
        known.insert(unread, verdicts(&listed));
    }
    None
}

/// A base chain that forwarded packets pass.
#[derive(Debug, PartialEq, Eq)]
struct NftChain {
    family: String,
    table: String,
    name: String,
    drops: bool,
}

/// The base chains in `nft -j list chains` that forwarded packets pass, but for iptables' own.
fn forward_chains(listed: &Value, desired: &Ruleset) -> Vec<NftChain> {
    let concerns = |family: &str| match family {
        "inet" => true,
        "ip" => desired.families().contains(&Family::V4),
        "ip6" => desired.families().contains(&Family::V6),
        _ => false,
    };
    let objects = listed["nftables"].as_array().into_iter().flatten();
    let chains = objects.filter_map(|object| object.get("chain")).filter(|chain| chain["hook"] == "forward");
    let text = |chain: &Value, key: &str| chain[key].as_str().unwrap_or_default().to_owned();
    chains
        .map(|chain| NftChain {
            family: text(chain, "family"),
            table: text(chain, "table"),
            name: text(chain, "name"),
            drops: chain["policy"] == "drop",
        })
        // Its rules order against ours, and as the other flavour it is looked at by itself.
        .filter(|chain| {
            chain.family == "inet" || (chain.table.as_str(), chain.name.as_str()) != ("filter", "FORWARD")
        })
        .filter(|chain| concerns(&chain.family))
        .collect()
}

/// The verdicts in `nft -j list chain` that connections of ours meet, in order.
fn verdicts(listed: &Value) -> Vec<Verdict> {
    let objects = listed["nftables"].as_array().into_iter().flatten();
    let rules = objects.filter_map(|object| object["rule"]["expr"].as_array());
    rules.filter_map(|expressions| verdict(expressions)).collect()
}

/// What a rule does with every connection of ours that it meets; `None` for one that other conditions limit.
fn verdict(expressions: &[Value]) -> Option<Verdict> {
    let target = |value: &Value| value["target"].as_str().map(str::to_owned);
    for expression in expressions {
        let (kind, value) = expression.as_object()?.iter().next()?;
        match kind.as_str() {
            "counter" | "log" => {}
            "match" if is_met_by_dnat(value) => {}
            "accept" => return Some(Verdict::Accept),
            "drop" | "reject" => return Some(Verdict::Refuse),
            "return" => return Some(Verdict::Return),
            "jump" => return target(value).map(Verdict::Jump),
            "goto" => return target(value).map(Verdict::Goto),
            _ => return None,
        }
    }
    None
}

/// `ct status dnat`, in each of the ways to write it.
fn is_met_by_dnat(condition: &Value) -> bool {
    let (left, right) = (&condition["left"], &condition["right"]);
    let is_status = |value: &Value| value["ct"]["key"] == "status";
    match condition["op"].as_str() {
        Some("in") => {
            is_status(left)
                && (right == "dnat" || right.as_array().is_some_and(|any| any.contains(&"dnat".into())))
        }
        Some("==") => right == "dnat" && is_status(&left["&"][0]) && left["&"][1] == "dnat",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn chains_of_other_nft_tables_are_told_from_iptables_own() {
        let listed = json!({"nftables": [
            {"metainfo": {"version": "1.0.6"}},
            {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"}},
            {"chain": {"family": "inet", "table": "firewalld", "name": "filter_FORWARD", "hook": "forward", "policy": "accept"}},
            {"chain": {"family": "inet", "table": "firewalld", "name": "filter_INPUT", "hook": "input", "policy": "drop"}},
            {"chain": {"family": "ip6", "table": "six", "name": "forward", "hook": "forward", "policy": "drop"}},
            {"chain": {"family": "ip", "table": "strict", "name": "forward", "hook": "forward", "policy": "drop"}},
            {"chain": {"family": "ip", "table": "strict", "name": "helper"}},
        ]});
        let found = forward_chains(&listed, &Ruleset::new([], [], [Family::V4]));
        let found: Vec<_> = found.iter().map(|chain| (chain.table.as_str(), chain.drops)).collect();
        assert_eq!(found, [("firewalld", false), ("strict", true)]);
    }

    #[test]
    fn only_rules_that_every_connection_of_ours_meets_are_verdicts() {
        let rules = [
            (json!([{"counter": {}}, {"reject": {"type": "icmpx"}}]), Some(Verdict::Refuse)),
            (json!([{"drop": null}]), Some(Verdict::Refuse)),
            (json!([{"accept": null}]), Some(Verdict::Accept)),
            (
                json!([{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "lo"}}, {"accept": null}]),
                None,
            ),
            (json!([{"limit": {"rate": 5}}, {"drop": null}]), None),
            (json!([{"log": {"prefix": "x"}}]), None),
            (json!([{"jump": {"target": "zones"}}]), Some(Verdict::Jump("zones".into()))),
            (json!([{"goto": {"target": "zones"}}]), Some(Verdict::Goto("zones".into()))),
            (json!([{"return": null}]), Some(Verdict::Return)),
        ];
        for (expressions, expected) in rules {
            let listed = json!({"nftables": [{"chain": {}}, {"rule": {"expr": expressions}}]});
            assert_eq!(verdicts(&listed), Vec::from_iter(expected), "{listed}");
        }
    }

    #[test]
    fn an_accept_of_rewritten_connections_is_known_however_it_is_written() {
        let status = json!({"ct": {"key": "status"}});
        for (condition, is_ours) in [
            (json!({"op": "in", "left": status, "right": "dnat"}), true),
            (json!({"op": "in", "left": status, "right": ["snat", "dnat"]}), true),
            (json!({"op": "==", "left": {"&": [status, "dnat"]}, "right": "dnat"}), true),
            // Exactly one of these, and no other bit.
            (json!({"op": "==", "left": status, "right": {"set": ["snat", "dnat"]}}), false),
            (json!({"op": "in", "left": status, "right": "snat"}), false),
            (json!({"op": "!=", "left": {"&": [status, "dnat"]}, "right": "dnat"}), false),
            (json!({"op": "in", "left": {"ct": {"key": "state"}}, "right": "new"}), false),
        ] {
            let expected = is_ours.then_some(Verdict::Accept);
            let rule = [json!({"match": condition}), json!({"accept": null})];
            assert_eq!(verdict(&rule), expected, "{}", rule[0]);
        }
    }
}
