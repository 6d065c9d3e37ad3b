//! Takes everything of ours out of a node: from the kernel as it is, not from memory, in both flavours and families.

use crate::dataplane::DataplaneError;
use crate::dataplane::Transaction;
use crate::dataplane::iptables::names::Names;
use crate::dataplane::iptables::plan::removal;
use crate::dataplane::iptables::restore;
use crate::dataplane::iptables::save;
use crate::dataplane::settings::Flavor;
use crate::dataplane::settings::Settings;
use crate::model::address::Family;

/// What was removed in one flavour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The flavour.
    pub flavor: Flavor,
    /// The transaction that removed it.
    pub transaction: Transaction,
}

/// Removes jumps and chains with our prefix; rules of others stay. Nothing there is no error, and neither is a flavour
/// that is not installed.
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
            let transaction = Transaction { family, input: plan.text, chains: plan.chains };
            removed.push(Removed { flavor, transaction });
        }
    }
    Ok(removed)
}
