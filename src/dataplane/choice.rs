//! Chooses what programs a node.

use std::collections::BTreeMap;

use crate::dataplane::DataplaneError;
use crate::dataplane::iptables;
use crate::dataplane::iptables::decode::decode;
use crate::dataplane::iptables::names::Names;
use crate::dataplane::nftables;
use crate::dataplane::nftables::Nftables;
use crate::dataplane::probe;
use crate::dataplane::probe::Found;
use crate::dataplane::settings::Firewall;
use crate::dataplane::settings::Flavor;
use crate::dataplane::settings::FlavorChoice;
use crate::dataplane::settings::Settings;

/// What an operator wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FirewallChoice {
    /// What the node has entries in; else nftables where the kernel has it, else iptables.
    #[default]
    Auto,
    /// nftables.
    Nftables,
    /// iptables.
    Iptables,
}

/// What was chosen and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// What programs the node.
    pub firewall: Firewall,
    /// What the program behind it calls itself; empty where the kernel is asked without one.
    pub version: String,
    /// Why, for the log.
    pub reason: String,
}

/// Chooses, without changing anything on the node.
pub async fn choose(
    choice: FirewallChoice,
    flavor: FlavorChoice,
    settings: &Settings,
) -> Result<Chosen, DataplaneError> {
    let operator = "chosen by the operator";
    match choice {
        FirewallChoice::Nftables => Ok(with_nftables(operator)),
        FirewallChoice::Iptables => with_iptables(flavor, settings, operator).await,
        FirewallChoice::Auto => {
            let nftables = Nftables::new(settings.clone());
            let tables = nftables.tables().await.unwrap_or_default();
            if !nftables::decode(&tables).0.is_empty() {
                return Ok(with_nftables("the node has entries in it"));
            }
            if serving_flavor(settings).await?.is_some() {
                return with_iptables(flavor, settings, "the node has entries in it").await;
            }
            match nftables.is_possible().await {
                Ok(()) => Ok(with_nftables("the kernel has it")),
                Err(error) => {
                    with_iptables(flavor, settings, &format!("nftables cannot be used: {error}")).await
                }
            }
        }
    }
}

fn with_nftables(reason: &str) -> Chosen {
    Chosen { firewall: Firewall::Nftables, version: String::new(), reason: reason.to_owned() }
}

/// The flavour that is asked for, else the one that has entries of ours, else the one that other programs use.
async fn with_iptables(
    flavor: FlavorChoice,
    settings: &Settings,
    reason: &str,
) -> Result<Chosen, DataplaneError> {
    let serving = serving_flavor(settings).await?;
    let flavor = match (flavor, serving) {
        (FlavorChoice::Auto, Some(serving)) => FlavorChoice::Always(serving),
        (choice, _) => choice,
    };
    let Found { flavor, version, reason: because } = probe::flavor(flavor, &settings.tools).await?;
    let because = if serving == Some(flavor) { "this flavour has entries" } else { because };
    let reason = format!("{reason}; {version}: {because}");
    Ok(Chosen { firewall: Firewall::Iptables(flavor), version, reason })
}

/// The flavour that has entries of ours.
async fn serving_flavor(settings: &Settings) -> Result<Option<Flavor>, DataplaneError> {
    let tables = iptables::beside(settings, &Flavor::ALL).await?;
    let serves = |((flavor, family), tables)| {
        let served = decode(&BTreeMap::from([(family, tables)]), Names(&settings.prefix)).0;
        (!served.is_empty()).then_some(flavor)
    };
    Ok(tables.into_iter().find_map(serves))
}
