//! Takes everything of ours out of a node: from the kernel as it is, not from memory, whatever put it there.

use std::error::Error;
use std::fmt;

use crate::dataplane::DataplaneError;
use crate::dataplane::Transaction;
use crate::dataplane::former;
use crate::dataplane::iptables::names::Names;
use crate::dataplane::iptables::plan::removal;
use crate::dataplane::iptables::restore;
use crate::dataplane::iptables::save;
use crate::dataplane::nftables;
use crate::dataplane::routing;
use crate::dataplane::routing::Changed;
use crate::dataplane::settings::Firewall;
use crate::dataplane::settings::Flavor;
use crate::dataplane::settings::Prefix;
use crate::dataplane::settings::Settings;
use crate::model::address::Family;

/// What was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// The rules of one family.
    Rules {
        /// What they were named after.
        prefix: Prefix,
        /// Where they were.
        firewall: Firewall,
        /// The transaction that removed them.
        transaction: Transaction,
    },
    /// What led replies back by their links.
    Routing(Changed),
}

/// What could not be removed; everything else is gone.
#[derive(Debug)]
pub struct Uncleaned {
    /// What was removed all the same.
    pub removed: Vec<Removed>,
    /// Why the rest was not.
    pub errors: Vec<DataplaneError>,
}

impl fmt::Display for Uncleaned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errors: Vec<_> = self.errors.iter().map(ToString::to_string).collect();
        write!(f, "{}; the rest is removed", errors.join("; "))
    }
}

impl Error for Uncleaned {}

/// Removes jumps and chains with our prefix, our tables, and the rules and routes of links, and what is known as ours under any
/// other prefix; what others made stays. Nothing there is no error, and neither is a flavour that is not installed or a kernel
/// without nf_tables or without a family.
///
/// Established connections through entries break when no other program on the node tracks connections.
///
/// # Errors
/// What cannot be removed keeps nothing else from being removed, and is told at the end.
pub async fn cleanup(settings: &Settings) -> Result<Vec<Removed>, Uncleaned> {
    let (mut removed, mut errors) = remove_rules(settings).await;
    match former::prefixes(settings).await {
        Ok(prefixes) => {
            for prefix in prefixes {
                let (more, failed) = remove_rules(&former::with_prefix(settings, &prefix)).await;
                removed.extend(more);
                errors.extend(failed);
            }
        }
        Err(error) => errors.push(error),
    }
    match routing::remove().await {
        Ok(routing) if routing == Changed::default() => {}
        Ok(routing) => removed.push(Removed::Routing(routing)),
        Err(error) => errors.push(DataplaneError::Routing(error)),
    }
    if errors.is_empty() { Ok(removed) } else { Err(Uncleaned { removed, errors }) }
}

/// Removes jumps, chains and tables of one prefix; what was removed, and why the rest was not.
pub(crate) async fn remove_rules(settings: &Settings) -> (Vec<Removed>, Vec<DataplaneError>) {
    let (mut removed, mut errors) = (Vec::new(), Vec::new());
    let mut put = |firewall, transaction| {
        removed.push(Removed::Rules { prefix: settings.prefix.clone(), firewall, transaction });
    };
    for flavor in Flavor::ALL {
        for family in Family::ALL {
            match remove(settings, flavor, family).await {
                Ok(None) => {}
                Ok(Some(transaction)) => put(Firewall::Iptables(flavor), transaction),
                Err(error) => errors.push(error),
            }
        }
    }
    for family in Family::ALL {
        match nftables::remove(settings, family).await {
            Ok(None) => {}
            Ok(Some(transaction)) => put(Firewall::Nftables, transaction),
            Err(error) => errors.push(error),
        }
    }
    (removed, errors)
}

/// Removes what one flavour of iptables has of ours in one family, if there is anything.
async fn remove(
    settings: &Settings,
    flavor: Flavor,
    family: Family,
) -> Result<Option<Transaction>, DataplaneError> {
    let tables = match save(settings, flavor, family).await {
        Ok(tables) => tables,
        Err(DataplaneError::Command(error)) if error.is_missing() => return Ok(None),
        // A kernel without IPv6 has no rules of it.
        Err(DataplaneError::Command(error)) if family == Family::V6 && error.is_refusal() => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(plan) = removal(&tables, Names(&settings.prefix)) else { return Ok(None) };
    restore(settings, flavor, family, &plan.text).await?;
    Ok(Some(Transaction { family, input: plan.text, chains: plan.chains, elements: 0 }))
}
