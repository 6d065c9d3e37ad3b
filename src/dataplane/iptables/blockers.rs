//! Looks for what drops forwarded packets out of our reach: the other flavour's rules, other nft tables, sysctls.
//!
//! An accept of ours ends only its own table; a drop anywhere else still drops. Nothing here is changed: whoever
//! wrote the drop is told by name what to change.

use std::fs;

use serde_json::Value;

use crate::dataplane::command::Tools;
use crate::dataplane::condition::Condition;
use crate::dataplane::condition::ConditionKind;
use crate::dataplane::iptables::names::Names;
use crate::dataplane::iptables::save;
use crate::dataplane::iptables::table::Table;
use crate::dataplane::iptables::table::Tables;
use crate::dataplane::routing;
use crate::dataplane::settings::Firewall;
use crate::dataplane::settings::Flavor;
use crate::dataplane::settings::Settings;
use crate::model::address::Family;
use crate::ruleset::Ruleset;

/// How deep chains are followed.
const DEPTH: usize = 16;

/// Everything that is found for the families that the rules serve.
pub async fn conditions(settings: &Settings, firewall: Firewall, desired: &Ruleset) -> Vec<Condition> {
    let names = Names(&settings.prefix);
    let mut conditions = Vec::new();
    for family in desired.families() {
        for flavor in Flavor::ALL {
            // A flavour that is not installed or not in the kernel holds nothing. What else cannot be read is told by
            // whoever reads it to change it.
            let Ok(tables) = save(settings, flavor, *family).await else { continue };
            match firewall {
                Firewall::Iptables(other) if other != flavor => {
                    conditions.extend(other_flavor(&tables, flavor, *family, names));
                }
                // Beside tables of nftables an accept of ours stands in either flavour that needs one.
                _ => conditions.extend(own_flavor(&tables, flavor, *family, names)),
            }
        }
    }
    conditions.extend(routing::conditions(&settings.links.now(), desired.families()).await);
    conditions.extend(nft_tables(settings, firewall, desired).await);
    let forwarded = desired.families().iter().filter(|family| has_pods(desired, **family));
    conditions.extend(forwarded.filter_map(|family| forwarding(*family)));
    conditions
}

/// Whether pods have addresses of the family, as far as is known: a node can have addresses that no pod has.
fn has_pods(desired: &Ruleset, family: Family) -> bool {
    let is_known = Family::ALL.into_iter().any(|family| desired.pod_cidrs(family).next().is_some());
    let mut entries = desired.entries().filter(|entry| entry.target.is_some());
    !is_known
        || desired.pod_cidrs(family).next().is_some()
        || entries.any(|entry| entry.key.family() == family)
}

/// A chain in front of our accept that lets nothing through: policies must have the last word, so we stay behind it.
fn own_flavor(tables: &Tables, flavor: Flavor, family: Family, names: Names<'_>) -> Option<Condition> {
    let forward = tables.filter.rules("FORWARD");
    let accept = names.accept();
    let in_front = forward.iter().take_while(|rule| rule.target != accept).filter(|rule| rule.unconditional);
    let refusing =
        in_front.into_iter().find(|rule| refuses_everything(&rule.target, &tables.filter, DEPTH))?;
    let (program, chain) = (program_of(flavor, family), &refusing.target);
    Some(Condition {
        kind: ConditionKind::ForwardBlocked,
        message: format!(
            "the {program} chain {chain}, which FORWARD leads to, lets nothing through that it does not accept"
        ),
        fix: format!(
            "accept connections to pods in {chain} or before it, by the firewall that owns it (ufw: `ufw default allow routed`), or run `{program} -I {chain} 1 -m conntrack --ctstate DNAT -j RETURN`"
        ),
    })
}

/// Whether no packet comes back from a chain, apart from those that one of its earlier rules takes out.
fn refuses_everything(chain: &str, table: &Table, depth: usize) -> bool {
    let deciding = table.rules(chain).iter().filter(|rule| rule.unconditional);
    for rule in deciding {
        match rule.target.as_str() {
            "DROP" | "REJECT" => return true,
            "ACCEPT" | "RETURN" => return false,
            inner if 0 < depth && refuses_everything(inner, table, depth - 1) => return true,
            _ => {}
        }
    }
    false
}

fn program_of(flavor: Flavor, family: Family) -> String {
    match family {
        Family::V4 => format!("iptables-{flavor}"),
        Family::V6 => format!("ip6tables-{flavor}"),
    }
}

/// What the flavour that is not ours holds.
fn other_flavor(tables: &Tables, other: Flavor, family: Family, names: Names<'_>) -> Vec<Condition> {
    let mut conditions = Vec::new();
    let foreign = |table: &Table| {
        table.chains.values().flat_map(|chain| &chain.rules).any(|rule| !names.owns(&rule.target))
    };
    let program = program_of(other, family);
    let Some(chain) = tables.filter.chains.get("FORWARD") else { return conditions };
    let rejecting = chain
        .rules
        .iter()
        .find(|rule| rule.unconditional && ["DROP", "REJECT"].contains(&rule.target.as_str()));
    if chain.policy.as_deref() == Some("DROP") {
        conditions.push(Condition {
            kind: ConditionKind::ForwardBlocked,
            message: format!("{program} has the policy DROP in FORWARD, and rules of the other flavour cannot accept for it"),
            fix: format!("use one flavour on this node (--iptables-flavor {other}), or run `{program} -P FORWARD ACCEPT`"),
        });
    } else if let Some(rule) = rejecting {
        conditions.push(Condition {
            kind: ConditionKind::ForwardBlocked,
            message: format!("{program} rejects everything in FORWARD (`{}`), and rules of the other flavour cannot accept for it", rule.text),
            fix: format!("use one flavour on this node (--iptables-flavor {other}), or remove that rule"),
        });
    } else if foreign(&tables.filter) || foreign(&tables.nat) {
        conditions.push(Condition {
            kind: ConditionKind::MixedFlavors,
            message: format!(
                "{program} holds rules too, and the order between the two flavours is not defined"
            ),
            fix: "let every program on this node use the same flavour".to_owned(),
        });
    }
    conditions
}

/// Chains of other nft tables that drop what nobody in them accepts. Nothing can be said where nft is missing;
/// without it, other nft tables are rare.
async fn nft_tables(settings: &Settings, firewall: Firewall, desired: &Ruleset) -> Vec<Condition> {
    let tools = &settings.tools;
    let mut conditions = Vec::new();
    let Some(listed) = nft(tools, &["list", "chains"]).await else { return conditions };
    for chain in forward_chains(&listed, desired) {
        if chain.table == settings.prefix.as_str() {
            continue;
        }
        let NftChain { family, table, name, drops } = &chain;
        let what = if *drops {
            "has the policy drop"
        } else {
            let rules = nft(tools, &["list", "chain", family, table, name]).await;
            if !rules.as_ref().is_some_and(ends_with_refusal) {
                continue;
            }
            "ends with a rule that rejects everything"
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

/// Whether the last rule in `nft -j list chain` refuses whatever comes that far.
fn ends_with_refusal(listed: &Value) -> bool {
    let last =
        listed["nftables"].as_array().into_iter().flatten().rfind(|object| object.get("rule").is_some());
    let expressions = last.and_then(|object| object["rule"]["expr"].as_array());
    expressions.is_some_and(|expressions| {
        let mut deciding = expressions.iter().filter(|expression| expression.get("counter").is_none());
        let refuses =
            |expression: &Value| expression.get("drop").is_some() || expression.get("reject").is_some();
        deciding.next().is_some_and(refuses) && deciding.next().is_none()
    })
}

/// The sysctl without which the kernel forwards nothing. It is read, never written.
fn forwarding(family: Family) -> Option<Condition> {
    let (path, key) = match family {
        Family::V4 => ("/proc/sys/net/ipv4/ip_forward", "net.ipv4.ip_forward"),
        Family::V6 => ("/proc/sys/net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"),
    };
    let off = fs::read_to_string(path).ok()?.trim() == "0";
    off.then(|| Condition {
        kind: ConditionKind::ForwardingDisabled,
        message: format!("{key} is 0: the node forwards no {family} packets, so none reaches a pod"),
        fix: format!("run `sysctl -w {key}=1` on the node, and keep it in /etc/sysctl.d"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::iptables::parse::parse;
    use crate::dataplane::settings::Prefix;
    use crate::ruleset::fixtures::endpoint;
    use crate::ruleset::fixtures::node;
    use crate::ruleset::fixtures::ruleset;

    fn v4_only() -> Ruleset {
        Ruleset::new([], [], [Family::V4])
    }

    fn legacy(saved: &str) -> Vec<ConditionKind> {
        let prefix = Prefix::default();
        let tables = parse(saved, Names(&prefix)).unwrap();
        let conditions = other_flavor(&tables, Flavor::Legacy, Family::V4, Names(&prefix));
        conditions.into_iter().map(|condition| condition.kind).collect()
    }

    #[test]
    fn only_families_that_pods_have_need_forwarding() {
        let families = |ruleset: &Ruleset| Family::ALL.map(|family| has_pods(ruleset, family));
        let on = |pod_cidrs: &[&str]| {
            Ruleset::new(pod_cidrs.iter().map(|net| net.parse().unwrap()), [], Family::ALL)
        };
        assert_eq!(
            families(&on(&["10.244.1.0/24"])),
            [true, false],
            "a node of a single-stack cluster has IPv6, too"
        );
        assert_eq!(families(&on(&["10.244.1.0/24", "fd00:244:1::/64"])), [true, true]);
        assert_eq!(families(&on(&[])), [true, true], "nobody knows");
        let mut served = on(&["10.244.1.0/24"]);
        let six = ruleset(&[endpoint("80/tcp", "web", &["fd00:244:1::9"])], &node());
        served.insert(six.entries().next().unwrap().clone()).unwrap();
        assert_eq!(families(&served), [true, true], "what is served is there");
    }

    #[test]
    fn r39_a_drop_in_the_other_flavour_is_told_and_so_are_mere_rules() {
        let forward =
            |policy: &str, rules: &str| format!("*filter\n:FORWARD {policy} [0:0]\n{rules}COMMIT\n");
        assert_eq!(legacy(&forward("DROP", "")), [ConditionKind::ForwardBlocked]);
        assert_eq!(
            legacy(&forward("ACCEPT", "-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n")),
            [ConditionKind::ForwardBlocked]
        );
        assert_eq!(
            legacy(&forward("ACCEPT", "-A FORWARD -i eth0 -j ACCEPT\n")),
            [ConditionKind::MixedFlavors]
        );
        assert_eq!(legacy(&forward("ACCEPT", "")), []);
    }

    #[test]
    fn chains_of_other_nft_tables_are_told_from_iptables_own() {
        let listed = serde_json::json!({"nftables": [
            {"metainfo": {"version": "1.0.6"}},
            {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"}},
            {"chain": {"family": "inet", "table": "firewalld", "name": "filter_FORWARD", "hook": "forward", "policy": "accept"}},
            {"chain": {"family": "inet", "table": "firewalld", "name": "filter_INPUT", "hook": "input", "policy": "drop"}},
            {"chain": {"family": "ip6", "table": "six", "name": "forward", "hook": "forward", "policy": "drop"}},
            {"chain": {"family": "ip", "table": "strict", "name": "forward", "hook": "forward", "policy": "drop"}},
            {"chain": {"family": "ip", "table": "strict", "name": "helper"}},
        ]});
        let found = forward_chains(&listed, &v4_only());
        let found: Vec<_> = found.iter().map(|chain| (chain.table.as_str(), chain.drops)).collect();
        assert_eq!(found, [("firewalld", false), ("strict", true)]);
    }

    #[test]
    fn a_last_rule_refuses_only_when_nothing_limits_it() {
        let chain = |expressions: Value| serde_json::json!({"nftables": [{"chain": {}}, {"rule": {"expr": expressions}}]});
        assert!(ends_with_refusal(&chain(
            serde_json::json!([{"counter": {}}, {"reject": {"type": "icmpx"}}])
        )));
        assert!(ends_with_refusal(&chain(serde_json::json!([{"drop": null}]))));
        assert!(!ends_with_refusal(&chain(serde_json::json!([{"match": {}}, {"drop": null}]))));
        assert!(!ends_with_refusal(&chain(serde_json::json!([{"accept": null}]))));
        assert!(!ends_with_refusal(&serde_json::json!({"nftables": [{"chain": {}}]})));
    }

    #[test]
    fn a_chain_in_front_that_lets_nothing_through_is_told() {
        let told = |chains: &str, forward: &str| {
            let prefix = Prefix::default();
            let saved = format!(
                "*filter\n:FORWARD DROP [0:0]\n:ufw - [0:0]\n:inner - [0:0]\n:PINHOLE-ACCEPT - [0:0]\n{chains}{forward}-A FORWARD -j PINHOLE-ACCEPT\nCOMMIT\n"
            );
            let tables = parse(&saved, Names(&prefix)).unwrap();
            own_flavor(&tables, Flavor::Nft, Family::V4, Names(&prefix)).is_some()
        };
        let jump = "-A FORWARD -j ufw\n";
        assert!(told("-A ufw -p tcp -j ACCEPT\n-A ufw -j REJECT\n", jump));
        assert!(told("-A ufw -j inner\n-A inner -j DROP\n", jump));
        assert!(!told("-A ufw -p tcp -j DROP\n", jump), "some packets come back");
        assert!(!told("-A ufw -j RETURN\n-A ufw -j DROP\n", jump));
        assert!(
            !told("-A ufw -j DROP\n", "-A FORWARD -o cni0 -j ufw\n"),
            "a policy for some packets is meant"
        );
    }
}
