//! Looks for what drops forwarded packets out of our reach: the other flavour's rules, other nft tables, sysctls.
//!
//! An accept of ours ends only its own table; a drop anywhere else still drops. Nothing here is changed: whoever
//! wrote the drop is told by name what to change, and is not told any more once it lets rewritten connections pass.

mod fate;
mod nft;

use std::collections::BTreeMap;
use std::fs;

use crate::dataplane::condition::Condition;
use crate::dataplane::condition::ConditionKind;
use crate::dataplane::iptables::blockers::fate::Fate;
use crate::dataplane::iptables::blockers::fate::Verdict;
use crate::dataplane::iptables::blockers::fate::fate;
use crate::dataplane::iptables::names::Names;
use crate::dataplane::iptables::position::rejects_everything;
use crate::dataplane::iptables::save;
use crate::dataplane::iptables::table::SavedRule;
use crate::dataplane::iptables::table::Table;
use crate::dataplane::iptables::table::Tables;
use crate::dataplane::routing;
use crate::dataplane::settings::Firewall;
use crate::dataplane::settings::Flavor;
use crate::dataplane::settings::Settings;
use crate::model::address::Family;
use crate::ruleset::Ruleset;

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
    conditions.extend(nft::conditions(settings, firewall, desired).await);
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
    let known = Verdicts::of(&tables.filter);
    let accept = names.accept();
    let in_front = tables.filter.rules("FORWARD").iter().take_while(|rule| rule.target != accept);
    let decided = in_front.filter_map(verdict).find_map(|verdict| match verdict {
        Verdict::Jump(chain) | Verdict::Goto(chain) => {
            let fate = known.fate(&chain);
            (fate != Fate::Returned).then_some((fate, chain))
        }
        Verdict::Accept => Some((Fate::Accepted, String::new())),
        Verdict::Refuse | Verdict::Return => None,
    });
    let (Fate::Refused, chain) = decided? else { return None };
    let program = program_of(flavor, family);
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

/// What connections of ours meet in each chain of a table.
struct Verdicts(BTreeMap<String, Vec<Verdict>>);

impl Verdicts {
    fn of(table: &Table) -> Self {
        let chains = table.chains.iter();
        Self(
            chains
                .map(|(name, chain)| (name.clone(), chain.rules.iter().filter_map(verdict).collect()))
                .collect(),
        )
    }

    fn fate(&self, chain: &str) -> Fate {
        // A table names no chain that it does not have.
        fate(chain, &|chain: &str| Some(self.0.get(chain).map_or(&[], Vec::as_slice)))
            .unwrap_or(Fate::Returned)
    }
}

/// What a rule does with every connection of ours that it meets; `None` for one that other conditions limit, or that
/// decides nothing.
fn verdict(rule: &SavedRule) -> Option<Verdict> {
    if !rule.takes_dnat {
        return None;
    }
    match rule.target.as_str() {
        "DROP" | "REJECT" => Some(Verdict::Refuse),
        "ACCEPT" => Some(Verdict::Accept),
        "RETURN" => Some(Verdict::Return),
        // Other targets are chains without rules.
        chain => Some(Verdict::Jump(chain.to_owned())),
    }
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
    let fate = Verdicts::of(&tables.filter).fate("FORWARD");
    let drops = fate == Fate::Returned && chain.policy.as_deref() == Some("DROP");
    if drops || fate == Fate::Refused {
        let rejecting = chain.rules.iter().find(|rule| rejects_everything(rule));
        let (what, fix) = match rejecting {
            _ if drops => {
                // Behind policies that may stand there.
                let accept = format!("{program} -A FORWARD -m conntrack --ctstate DNAT -j ACCEPT");
                ("has the policy DROP in FORWARD".to_owned(), format!("run `{accept}`"))
            }
            Some(rule) => (
                format!("rejects everything in FORWARD (`{}`)", rule.text),
                "remove that rule, or accept `-m conntrack --ctstate DNAT` before it".to_owned(),
            ),
            None => (
                "lets nothing through in FORWARD that it does not accept".to_owned(),
                "accept `-m conntrack --ctstate DNAT` there, by the firewall that owns the chain".to_owned(),
            ),
        };
        conditions.push(Condition {
            kind: ConditionKind::ForwardBlocked,
            message: format!("{program} {what}, and rules of the other flavour cannot accept for it"),
            fix: format!("use one flavour on this node (--iptables-flavor {other}), or {fix}"),
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
        let opened = "-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT\n";
        for closed in ["", "-A FORWARD -j REJECT\n", ":REST - [0:0]\n-A FORWARD -j REST\n-A REST -j DROP\n"] {
            assert_eq!(legacy(&forward("DROP", closed)), [ConditionKind::ForwardBlocked], "{closed}");
            let rules = format!("{opened}{closed}");
            assert_eq!(legacy(&forward("DROP", &rules)), [ConditionKind::MixedFlavors], "{rules}");
        }
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
        let rejecting = "-A ufw -p tcp -j ACCEPT\n-A ufw -j REJECT\n";
        for (opened, forward) in [
            ("-A ufw -m conntrack --ctstate DNAT -j RETURN\n", jump),
            (
                "-A ufw -m comment --comment \"to pods\" -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT\n",
                jump,
            ),
            ("-A ufw -j inner\n-A inner -m conntrack --ctstate DNAT -j ACCEPT\n", jump),
            ("", "-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT\n-A FORWARD -j ufw\n"),
        ] {
            assert!(!told(&format!("{opened}{rejecting}"), forward), "{opened}{forward}");
        }
        for closed in [
            "-A ufw -m conntrack ! --ctstate DNAT -j RETURN\n",
            "-A ufw -i eth0 -m conntrack --ctstate DNAT -j RETURN\n",
            "-A ufw -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN\n",
        ] {
            assert!(told(&format!("{closed}{rejecting}"), jump), "{closed}");
        }
    }
}
