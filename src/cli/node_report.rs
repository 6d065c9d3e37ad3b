//! `pinhole node-report`: what only a node can show of itself, as JSON, for `kubectl pinhole doctor --preflight`.
//!
//! It reads and changes nothing. The agent's own code looks: the same choice of the flavour of iptables, the same
//! search for what drops forwarded traffic, the same choice of an address.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use ipnet::IpNet;

use crate::agent::addresses;
use crate::agent::addresses::Filter;
use crate::agent::addresses::Own;
use crate::cli::network;
use crate::cli::plugin::preflight::Blocker;
use crate::cli::plugin::preflight::NodeReport;
use crate::cli::terminal;
use crate::dataplane::iptables::blockers;
use crate::dataplane::probe;
use crate::dataplane::settings::Firewall;
use crate::dataplane::settings::Flavor;
use crate::dataplane::settings::FlavorChoice;
use crate::dataplane::settings::Settings;
use crate::model::address::Family;
use crate::ruleset::Ruleset;

/// What podnat-controller's chains begin with, unless it was told otherwise.
const PREDECESSOR: &str = "podnat";

/// Sysctls that decide over forwarded traffic.
const SYSCTLS: [(&str, &str); 4] = [
    ("net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward"),
    ("net.ipv6.conf.all.forwarding", "/proc/sys/net/ipv6/conf/all/forwarding"),
    ("net.bridge.bridge-nf-call-iptables", "/proc/sys/net/bridge/bridge-nf-call-iptables"),
    ("net.netfilter.nf_conntrack_max", "/proc/sys/net/netfilter/nf_conntrack_max"),
];

/// The flags of `pinhole node-report`.
#[derive(Debug, Args)]
pub(crate) struct NodeReportFlags {
    /// A network of this node's pods. Repeatable. Default: not known, so that any address could be a pod's.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = network::parse, env = "PINHOLE_POD_CIDR")]
    pod_cidr: Vec<IpNet>,
}

impl NodeReportFlags {
    /// Prints the report.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let report = runtime.context("no runtime can be made")?.block_on(report(self.pod_cidr));
        terminal::print(&(serde_json::to_string(&report)? + "\n"))?;
        Ok(ExitCode::SUCCESS)
    }
}

async fn report(pod_cidrs: Vec<IpNet>) -> NodeReport {
    let settings = Settings::default();
    let own = match addresses::read() {
        Ok(found) => addresses::choose(&found, &Filter::default()),
        Err(error) => {
            Own { warnings: vec![format!("the addresses cannot be read: {error}")], ..Own::default() }
        }
    };
    let own_addresses: Vec<IpAddr> =
        own.v4.map(IpAddr::V4).into_iter().chain(own.v6.map(IpAddr::V6)).collect();
    let mut report = NodeReport {
        own_addresses: own_addresses.iter().map(ToString::to_string).collect(),
        warnings: own.warnings,
        sysctls: sysctls(),
        ..NodeReport::default()
    };
    match probe::flavor(FlavorChoice::Auto, &settings.tools).await {
        Ok(found) => {
            report.iptables = format!("{}: {}", found.version, found.reason);
            let families: BTreeSet<Family> =
                own_addresses.iter().map(|address| Family::of(*address)).collect();
            let served = Ruleset::new(pod_cidrs, [], families);
            let conditions = blockers::conditions(&settings, Firewall::Iptables(found.flavor), &served).await;
            let blocker = |condition: crate::dataplane::condition::Condition| Blocker {
                kind: condition.kind.name().to_owned(),
                found: condition.message,
                fix: condition.fix,
            };
            report.conditions = conditions.into_iter().map(blocker).collect();
        }
        Err(error) => report.iptables_problem = Some(error.to_string()),
    }
    report.leftovers = leftovers(&settings).await;
    report
}

/// Chains of the predecessor in either flavour, each with the program that shows it.
async fn leftovers(settings: &Settings) -> Vec<String> {
    let mut found = BTreeSet::new();
    for flavor in Flavor::ALL {
        let program = format!("iptables-{flavor}-save");
        // A flavour that is not there has no chains.
        let saved = settings.tools.run(&program, &[], "").await.unwrap_or_default();
        found.extend(chains_of_predecessor(&saved).map(|chain| format!("{chain} (iptables-{flavor})")));
    }
    found.into_iter().collect()
}

fn chains_of_predecessor(saved: &str) -> impl Iterator<Item = &str> {
    let chains = saved.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next());
    chains.filter(|chain| chain.to_lowercase().starts_with(PREDECESSOR))
}

fn sysctls() -> BTreeMap<String, String> {
    let read = |(name, path): (&str, &str)| {
        let value = fs::read_to_string(path).ok()?;
        Some((name.to_owned(), value.trim().to_owned()))
    };
    SYSCTLS.into_iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_predecessor_s_chains_are_known_by_their_prefix() {
        let saved = "*nat\n:PREROUTING ACCEPT [0:0]\n:PODNAT_PRE - [0:0]\n:KUBE-SERVICES - [0:0]\n-A PODNAT_PRE -j RETURN\nCOMMIT\n";
        assert_eq!(chains_of_predecessor(saved).collect::<Vec<_>>(), ["PODNAT_PRE"]);
    }

    #[tokio::test]
    async fn the_report_can_be_read_by_the_plugin() {
        let report = report(Vec::new()).await;
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<NodeReport>(&text).unwrap(), report);
        assert!(report.sysctls.contains_key("net.ipv4.ip_forward"), "{text}");
    }
}
