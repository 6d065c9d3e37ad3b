//! `pinhole cleanup`: takes everything of ours out of the node's kernel.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tokio::time::Instant;

use crate::cli::terminal;
use crate::dataplane::cleanup;
use crate::dataplane::cleanup::Removed;
use crate::dataplane::command::Tools;
use crate::dataplane::routing::Changed;
use crate::dataplane::settings::Prefix;
use crate::dataplane::settings::Settings;
use crate::shutdown;

/// What an agent that still runs on the node puts back, it puts back within this time.
const SETTLING: Duration = Duration::from_secs(5);

/// How long an agent that has been told to end may go on: twice as long as Kubernetes gives a pod.
const PATIENCE: Duration = Duration::from_mins(1);

/// The flags of `pinhole cleanup`.
#[derive(Debug, Args)]
pub(crate) struct Cleanup {
    /// What the chains start with: the agent's --resource-prefix. What is known as ours under another one goes, too.
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
            let removed = for_good(async || Ok(cleanup::cleanup(&settings).await?)).await?;
            terminal::print(&report(&removed, &settings.prefix))?;
            if stay {
                stop.cancelled().await;
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

/// Removes until nothing comes back, and returns what was there at first. On a node that was away while Pinhole was
/// uninstalled, the kubelet may not have ended the agent yet.
async fn for_good(remove: impl AsyncFn() -> anyhow::Result<Vec<Removed>>) -> anyhow::Result<Vec<Removed>> {
    let removed = remove().await?;
    if removed.is_empty() {
        return Ok(removed);
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        tokio::time::sleep(SETTLING).await;
        if remove().await?.is_empty() {
            return Ok(removed);
        }
        anyhow::ensure!(
            Instant::now() < deadline,
            "what is removed comes back: an agent runs on this node; stop it (its pod or its process), then run this again"
        );
    }
}

fn report(removed: &[Removed], prefix: &Prefix) -> String {
    if removed.is_empty() {
        return format!(
            "Nothing to remove: no chain of this node starts with {prefix}-, no table is named so, and nothing is ours under another prefix.\n"
        );
    }
    let mut text = String::new();
    for removed in removed {
        let (prefix, firewall, transaction) = match removed {
            Removed::Rules { prefix, firewall, transaction } => (prefix, firewall, transaction),
            Removed::Routing(Changed { rules, routes }) => {
                let _ = writeln!(text, "Removed {rules} rules and {routes} routes of links.");
                continue;
            }
        };
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
    use std::cell::Cell;

    use super::*;
    use crate::dataplane::Transaction;
    use crate::dataplane::settings::Firewall;
    use crate::dataplane::settings::Flavor;
    use crate::model::address::Family;

    fn one() -> Removed {
        let transaction = Transaction { family: Family::V4, input: String::new(), chains: 6, elements: 0 };
        Removed::Rules { prefix: Prefix::default(), firewall: Firewall::Nftables, transaction }
    }

    #[tokio::test(start_paused = true)]
    async fn what_an_ending_agent_puts_back_is_removed_again() {
        for (comes_back, expected) in [(0, 1), (1, 2), (3, 4)] {
            let runs = Cell::new(0);
            let removed = for_good(async || {
                runs.set(runs.get() + 1);
                Ok(if runs.get() <= comes_back + 1 { vec![one()] } else { Vec::new() })
            });
            assert_eq!(removed.await.unwrap(), [one()]);
            assert_eq!(runs.get(), expected + 1, "and one more run finds nothing");
        }
        let runs = Cell::new(0);
        let nothing = for_good(async || {
            runs.set(runs.get() + 1);
            Ok(Vec::new())
        });
        assert_eq!(nothing.await.unwrap(), []);
        assert_eq!(runs.get(), 1, "a clean node is not waited for");
    }

    #[tokio::test(start_paused = true)]
    async fn beside_an_agent_that_goes_on_it_gives_up_and_says_so() {
        let began = Instant::now();
        let error = for_good(async || Ok(vec![one()])).await.unwrap_err().to_string();
        assert!(error.contains("an agent runs on this node; stop it"), "{error}");
        assert_eq!(began.elapsed(), PATIENCE);
    }

    #[test]
    fn it_says_what_was_removed_and_what_was_not() {
        let prefix = Prefix::default();
        assert_eq!(
            report(&[], &prefix),
            "Nothing to remove: no chain of this node starts with PINHOLE-, no table is named so, and nothing is ours under another prefix.\n"
        );
        let removed = [("PINHOLE", Firewall::Iptables(Flavor::Nft), 7), ("NAT", Firewall::Nftables, 6)].map(
            |(prefix, firewall, chains)| {
                let transaction =
                    Transaction { family: Family::V4, input: String::new(), chains, elements: 0 };
                Removed::Rules { prefix: prefix.parse().unwrap(), firewall, transaction }
            },
        );
        let routing = Removed::Routing(Changed { rules: 4, routes: 2 });
        let removed: Vec<_> = removed.into_iter().chain([routing]).collect();
        assert_eq!(
            report(&removed, &prefix),
            "Removed 7 chains of PINHOLE and what leads to them: IPv4, iptables-nft.\n\
             Removed 6 chains of NAT and what leads to them: IPv4, nftables.\n\
             Removed 4 rules and 2 routes of links.\n\
             Published ports are closed. Rules of others are as they were.\n"
        );
    }
}
