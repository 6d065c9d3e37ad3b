//! Programs nothing: prints the exact input that `nft` or `iptables-restore` would get, and remembers it as if it had
//! been applied.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Write;
use std::sync::Mutex;
use std::sync::PoisonError;

use crate::dataplane::Applied;
use crate::dataplane::Dataplane;
use crate::dataplane::DataplaneError;
use crate::dataplane::Observed;
use crate::dataplane::Transaction;
use crate::dataplane::condition::Condition;
use crate::dataplane::iptables::layout::layout;
use crate::dataplane::iptables::memory;
use crate::dataplane::iptables::names::Names;
use crate::dataplane::iptables::plan::Means;
use crate::dataplane::iptables::plan::plan;
use crate::dataplane::iptables::table::Tables;
use crate::dataplane::nftables::layout::layout as layout_table;
use crate::dataplane::nftables::plan::State::Intact;
use crate::dataplane::nftables::plan::Table;
use crate::dataplane::nftables::plan::plan as plan_table;
use crate::dataplane::nftables::plan_changes;
use crate::dataplane::nftables::skeleton::Skeleton;
use crate::dataplane::progress::Progress;
use crate::dataplane::settings::Settings;
use crate::model::address::Family;
use crate::ruleset::Ruleset;
use crate::ruleset::diff::diff_of;

/// What is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// The input of `nft -f`.
    Nftables,
    /// The input of `iptables-restore`.
    Iptables,
}

/// A node in memory that starts without any rules.
pub struct DryRun {
    settings: Settings,
    dialect: Dialect,
    state: Mutex<State>,
}

struct State {
    observed: Observed,
    out: Box<dyn Write + Send>,
}

impl DryRun {
    /// Prints to `out`.
    pub fn new(settings: Settings, dialect: Dialect, out: Box<dyn Write + Send>) -> Self {
        Self { settings, dialect, state: Mutex::new(State { observed: Observed::default(), out }) }
    }
}

impl fmt::Debug for DryRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DryRun").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Dataplane for DryRun {
    async fn read(&self) -> Result<Observed, DataplaneError> {
        Ok(self.state.lock().unwrap_or_else(PoisonError::into_inner).observed.clone())
    }

    async fn apply(&self, desired: &Ruleset, observed: Observed) -> Applied {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let planned = transactions(desired, &observed, &self.settings, self.dialect);
        let mut applied = Applied { observed, ..Applied::default() };
        for transaction in planned {
            let Transaction { family, input, .. } = &transaction;
            // Nobody can be told that nobody listens.
            let _ = writeln!(state.out, "# {}\n{input}", command_line(self.dialect, *family));
            if self.dialect == Dialect::Iptables {
                let tables = applied.observed.tables.entry(*family).or_default();
                // What plan() writes for these tables, these tables take; a property test holds that.
                let _ = memory::restore(tables, input, Names(&self.settings.prefix));
            }
            applied.transactions.push(transaction);
        }
        for family in families(desired, &applied.observed) {
            if self.dialect == Dialect::Nftables {
                applied.observed.nftables.insert(family, Table { state: Intact, elements: None });
            }
            let mut progress = Progress::new(family, &mut applied);
            let changes = progress.changes_to(desired);
            progress.reached(desired, changes);
            progress.finish();
        }
        state.observed = applied.observed.clone();
        applied
    }

    async fn conditions(&self, _desired: &Ruleset) -> Vec<Condition> {
        Vec::new()
    }
}

/// The command that a transaction is the input of.
pub const fn command_line(dialect: Dialect, family: Family) -> &'static str {
    match (dialect, family) {
        (Dialect::Nftables, _) => "nft -f -",
        (Dialect::Iptables, Family::V4) => "iptables-restore --noflush --counters -w 5",
        (Dialect::Iptables, Family::V6) => "ip6tables-restore --noflush --counters -w 5",
    }
}

/// The transactions that lead from `observed` to `desired`; from an empty [`Observed`], the whole rules of a node.
pub fn transactions(
    desired: &Ruleset,
    observed: &Observed,
    settings: &Settings,
    dialect: Dialect,
) -> Vec<Transaction> {
    let transaction = |family: Family| match dialect {
        Dialect::Nftables => {
            let skeleton = Skeleton::new(family, settings);
            let served = &observed.ruleset;
            let plan = match observed.nftables.get(&family) {
                None => plan_table(&Table::default(), &layout_table(desired, family)),
                Some(_) => plan_changes(served, desired, &diff_of(family, served, desired), family),
            }?;
            let chains = if plan.rebuilds { skeleton.chains.len() } else { 0 };
            let (input, elements) = (plan.text(&skeleton), plan.steps.len());
            Some(Transaction { family, input, chains, elements })
        }
        Dialect::Iptables => {
            let (nothing, wanted) = (Tables::default(), layout(desired, family, settings));
            let tables = observed.tables.get(&family).unwrap_or(&nothing);
            let plan = plan(tables, &wanted, Names(&settings.prefix), Means::Rules)?;
            Some(Transaction { family, input: plan.text, chains: plan.chains, elements: 0 })
        }
    };
    families(desired, observed).into_iter().filter_map(transaction).collect()
}

fn families(desired: &Ruleset, observed: &Observed) -> BTreeSet<Family> {
    desired.families().union(observed.ruleset.families()).copied().collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ruleset::fixtures::endpoint;
    use crate::ruleset::fixtures::ruleset;
    use crate::ruleset::fixtures::v4_node;

    /// What was printed so far.
    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn it_prints_what_would_be_run_and_remembers_it() {
        let page = Page::default();
        let backend = DryRun::new(Settings::default(), Dialect::Iptables, Box::new(page.clone()));
        let web = ruleset(&[endpoint("80/tcp", "web", &["10.244.1.9"])], &v4_node());
        let applied = backend.apply(&web, Observed::default()).await;
        let changes: Vec<_> = applied.changes.iter().map(ToString::to_string).collect();
        assert_eq!(
            changes,
            [
                "added 203.0.113.7:80/tcp -> 10.244.1.9:80 (default/web)",
                "10.244.1.9 (default/web) leaves the cluster as 203.0.113.7"
            ]
        );
        let printed = String::from_utf8(page.0.lock().unwrap().clone()).unwrap();
        let (command, input) = printed.split_once('\n').unwrap();
        assert_eq!(command, "# iptables-restore --noflush --counters -w 5");
        assert_eq!(input.trim_end(), applied.transactions[0].input.trim_end());

        let observed = backend.read().await.unwrap();
        assert_eq!(observed.ruleset, web);
        assert!(backend.apply(&web, observed).await.transactions.is_empty());
        assert_eq!(page.0.lock().unwrap().len(), printed.len(), "nothing more to print");
    }
}
