//! Takes everything of ours out of a node: from the kernel as it is, not from memory, whatever put it there.

use crate::dataplane::DataplaneError;
use crate::dataplane::Transaction;
use crate::dataplane::iptables::names::Names;
use crate::dataplane::iptables::plan::removal;
use crate::dataplane::iptables::restore;
use crate::dataplane::iptables::save;
use crate::dataplane::nftables;
use crate::dataplane::routing;
use crate::dataplane::routing::Changed;
use crate::dataplane::settings::Firewall;
use crate::dataplane::settings::Flavor;
use crate::dataplane::settings::Settings;
use crate::model::address::Family;

/// What was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// The rules of one family.
    Rules {
        /// Where they were.
        firewall: Firewall,
        /// The transaction that removed them.
        transaction: Transaction,
    },
    /// What led replies back by their links.
    Routing(Changed),
}

/// Removes jumps and chains with our prefix, our tables, and the rules and routes of links; what others made stays. Nothing there is no error, and
/// neither is a flavour that is not installed or a kernel without nf_tables.
///
/// Established connections through entries break when no other program on the node tracks connections.
pub async fn cleanup(settings: &Settings) -> Result<Vec<Removed>, DataplaneError> {
    let mut removed = Vec::new();
    for flavor in Flavor::ALL {
        for family in Family::ALL {
            let tables = match save(settings, flavor, family).await {
                Ok(tables) => tables,
                Err(DataplaneError::Command(error)) if error.is_missing() => continue,
                Err(error) => return Err(error),
            };
            let Some(plan) = removal(&tables, Names(&settings.prefix)) else { continue };
            restore(settings, flavor, family, &plan.text).await?;
            let transaction = Transaction { family, input: plan.text, chains: plan.chains, elements: 0 };
            removed.push(Removed::Rules { firewall: Firewall::Iptables(flavor), transaction });
        }
    }
    for family in Family::ALL {
        match nftables::remove(settings, family).await {
            Ok(None) | Err(DataplaneError::Netlink(_)) => {}
            Ok(Some(transaction)) => {
                removed.push(Removed::Rules { firewall: Firewall::Nftables, transaction });
            }
            Err(error) => return Err(error),
        }
    }
    let routing = routing::remove().await.map_err(DataplaneError::Routing)?;
    if routing != Changed::default() {
        removed.push(Removed::Routing(routing));
    }
    Ok(removed)
}
