//! `pinhole cleanup`: takes everything of ours out of the node's kernel.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use crate::cli::terminal;
use crate::dataplane::cleanup;
use crate::dataplane::cleanup::Removed;
use crate::dataplane::command::Tools;
use crate::dataplane::settings::Prefix;
use crate::dataplane::settings::Settings;
use crate::shutdown;

/// The flags of `pinhole cleanup`.
#[derive(Debug, Args)]
pub(crate) struct Cleanup {
    /// What the chains start with: the agent's --resource-prefix.
    #[arg(long, value_name = "NAME", default_value_t = Prefix::default(), env = "PINHOLE_RESOURCE_PREFIX")]
    resource_prefix: Prefix,

    /// The lock that programs take before they write iptables-legacy rules. Default: that of iptables. Where the node's
    /// files are mounted elsewhere it must be the node's own.
    #[arg(long, value_name = "FILE", env = "PINHOLE_XTABLES_LOCK_FILE")]
    xtables_lock_file: Option<PathBuf>,

    /// Stay until SIGTERM when all is removed, as the pods of a DaemonSet must.
    #[arg(long, env = "PINHOLE_STAY")]
    stay: bool,
}

impl Cleanup {
    /// Removes jumps and chains, and says which.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let Self { resource_prefix, xtables_lock_file, stay } = self;
        let tools = Tools { lock_file: xtables_lock_file, ..Tools::default() };
        let settings = Settings { prefix: resource_prefix, tools, ..Settings::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("no runtime for starting programs can be made")?;
        runtime.block_on(async {
            // Listened for from the start: who is told to end while it removes ends afterwards.
            let stop = shutdown::on_signal().context("signals cannot be listened for")?;
            let removed = cleanup::cleanup(&settings).await?;
            terminal::print(&report(&removed, &settings.prefix))?;
            if stay {
                stop.cancelled().await;
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

fn report(removed: &[Removed], prefix: &Prefix) -> String {
    if removed.is_empty() {
        return format!(
            "Nothing to remove: no chain of this node starts with {prefix}-, and no table is named so.\n"
        );
    }
    let mut text = String::new();
    for Removed { firewall, transaction } in removed {
        let (chains, family) = (transaction.chains, transaction.family);
        let noun = if chains == 1 { "chain" } else { "chains" };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "Removed {chains} {noun} of {prefix} and what leads to them: {family}, {firewall}."
        );
    }
    text.push_str("Published ports are closed. Rules of others are as they were.\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::Transaction;
    use crate::dataplane::settings::Firewall;
    use crate::dataplane::settings::Flavor;
    use crate::model::address::Family;

    #[test]
    fn it_says_what_was_removed_and_what_was_not() {
        let prefix = Prefix::default();
        assert_eq!(
            report(&[], &prefix),
            "Nothing to remove: no chain of this node starts with PINHOLE-, and no table is named so.\n"
        );
        let removed =
            [(Firewall::Iptables(Flavor::Nft), 7), (Firewall::Nftables, 6)].map(|(firewall, chains)| {
                let transaction =
                    Transaction { family: Family::V4, input: String::new(), chains, elements: 0 };
                Removed { firewall, transaction }
            });
        assert_eq!(
            report(&removed, &prefix),
            "Removed 7 chains of PINHOLE and what leads to them: IPv4, iptables-nft.\n\
             Removed 6 chains of PINHOLE and what leads to them: IPv4, nftables.\n\
             Published ports are closed. Rules of others are as they were.\n"
        );
    }
}
