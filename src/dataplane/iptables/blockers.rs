//! Looks for what drops forwarded packets out of our reach: the other flavour's rules, other nft tables, sysctls.
//!
//! An accept of ours ends only its own table; a drop anywhere else still drops. Nothing here is changed: whoever
//! wrote the drop is told by name what to change.

use std::fs;

use serde_json::Value;

use crate::dataplane::condition::Condition;
use crate::dataplane::condition::ConditionKind;
use crate::dataplane::iptables::names::Names;
use crate::dataplane::iptables::save;
use crate::dataplane::iptables::table::Tables;
use crate::dataplane::settings::Flavor;
use crate::dataplane::settings::Settings;
use crate::model::address::Family;
use crate::ruleset::Ruleset;

/// Everything that is found for the families that the rules serve.
pub async fn conditions(settings: &Settings, flavor: Flavor, desired: &Ruleset) -> Vec<Condition> {
    let other = match flavor {
        Flavor::Nft => Flavor::Legacy,
        Flavor::Legacy => Flavor::Nft,
    };
    let mut conditions = Vec::new();
    for family in desired.families() {
        // A flavour that is not installed or not in the kernel holds nothing.
        if let Ok(tables) = save(settings, other, *family).await {
            conditions.extend(other_flavor(&tables, other, *family, Names(&settings.prefix)));
        }
    }
    // Nothing can be said where nft is missing; without it, other nft tables are rare.
    if let Ok(listed) = settings.tools.run("nft", &["-j", "list", "ruleset"], "").await
        && let Ok(ruleset) = serde_json::from_str(&listed)
    {
        conditions.extend(nft_tables(&ruleset, flavor, desired));
    }
    conditions.extend(desired.families().iter().filter_map(|family| forwarding(*family)));
    conditions
}

/// What the flavour that is not ours holds.
fn other_flavor(tables: &Tables, other: Flavor, family: Family, names: Names<'_>) -> Vec<Condition> {
    let mut conditions = Vec::new();
    let foreign = |table: &crate::dataplane::iptables::table::Table| {
        table.chains.values().flat_map(|chain| &chain.rules).any(|rule| !names.owns(&rule.target))
    };
    let program = match family {
        Family::V4 => format!("iptables-{other}"),
        Family::V6 => format!("ip6tables-{other}"),
    };
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

/// Base chains of nft tables that drop what nobody in them accepts.
fn nft_tables(ruleset: &Value, flavor: Flavor, desired: &Ruleset) -> Vec<Condition> {
    let objects = || ruleset["nftables"].as_array().into_iter().flatten();
    let concerns = |family: &str| match family {
        "inet" => true,
        "ip" => desired.families().contains(&Family::V4),
        "ip6" => desired.families().contains(&Family::V6),
        _ => false,
    };
    let mut conditions = Vec::new();
    for chain in objects().filter_map(|object| object.get("chain")) {
        let text = |key: &str| chain[key].as_str().unwrap_or_default();
        let (family, table, name) = (text("family"), text("table"), text("name"));
        // iptables-nft's own table: its rules order against ours, and as the other flavour it was looked at above.
        let iptables = table == "filter" && name == "FORWARD" && family != "inet";
        if text("hook") != "forward" || iptables || !concerns(family) {
            continue;
        }
        let here =
            |rule: &&Value| rule["family"] == family && rule["table"] == table && rule["chain"] == name;
        let last = objects().filter_map(|object| object.get("rule")).rfind(here);
        let rejects = last.and_then(|rule| rule["expr"].as_array()).is_some_and(|expressions| {
            let counts = |expression: &&Value| expression.get("counter").is_some();
            let refuses =
                |expression: &Value| expression.get("drop").is_some() || expression.get("reject").is_some();
            let mut deciding = expressions.iter().filter(|expression| !counts(expression));
            deciding.next().is_some_and(refuses) && deciding.next().is_none()
        });
        let what = match (text("policy"), rejects) {
            ("drop", _) => "has the policy drop",
            (_, true) => "ends with a rule that rejects everything",
            _ => continue,
        };
        conditions.push(Condition {
            kind: ConditionKind::ForwardBlocked,
            message: format!("the nft chain {family} {table} {name} {what}, and iptables-{flavor} cannot accept for it"),
            fix: format!(
                "accept our connections there: `nft insert rule {family} {table} {name} ct status dnat accept`, or configure the firewall that owns it to forward to pods"
            ),
        });
    }
    conditions
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
    fn a_dropping_chain_of_another_nft_table_is_told_with_the_command_that_opens_it() {
        let ruleset = serde_json::json!({"nftables": [
            {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"}},
            {"chain": {"family": "inet", "table": "firewalld", "name": "filter_FORWARD", "hook": "forward", "policy": "accept"}},
            {"rule": {"family": "inet", "table": "firewalld", "chain": "filter_FORWARD", "expr": [{"reject": {"type": "icmpx"}}]}},
            {"chain": {"family": "ip6", "table": "six", "name": "fwd", "hook": "forward", "policy": "drop"}},
            {"chain": {"family": "inet", "table": "open", "name": "fwd", "hook": "forward", "policy": "accept"}},
        ]});
        let conditions = nft_tables(&ruleset, Flavor::Nft, &v4_only());
        assert_eq!(conditions.len(), 1, "{conditions:?}");
        assert!(
            conditions[0].fix.contains("nft insert rule inet firewalld filter_FORWARD ct status dnat accept")
        );
    }
}
