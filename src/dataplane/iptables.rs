//! Programs a node by iptables: own chains, one `iptables-restore --noflush` per family and change.
//!
//! The steps are pure and each has its module: [`mod@layout`] says which chains a [`Ruleset`] needs, [`parse`] and
//! [`mod@decode`] read what is there, [`position`] judges where jumps stand, `chain` finds the rules of a chain that differ, and
//! [`mod@plan`] writes the shortest text from one to the other. This file runs the programs and deals with their failures.

pub mod blockers;
mod chain;
mod contest;
pub mod decode;
#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod laws;
pub mod layout;
mod lists;
pub mod memory;
pub mod names;
pub mod parse;
pub mod plan;
pub mod position;
pub mod rule;
pub mod table;

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use crate::dataplane::Applied;
use crate::dataplane::Dataplane;
use crate::dataplane::DataplaneError;
use crate::dataplane::Failure;
use crate::dataplane::Observed;
use crate::dataplane::Transaction;
use crate::dataplane::command::CommandError;
use crate::dataplane::command::Tools;
use crate::dataplane::condition::Condition;
use crate::dataplane::counters::Counters;
use crate::dataplane::iptables::contest::Contests;
use crate::dataplane::iptables::decode::decode;
use crate::dataplane::iptables::layout::Layout;
use crate::dataplane::iptables::layout::layout;
use crate::dataplane::iptables::names::Names;
use crate::dataplane::iptables::parse::ParseError;
use crate::dataplane::iptables::plan::Means;
use crate::dataplane::iptables::plan::Plan;
use crate::dataplane::iptables::plan::plan_beside;
use crate::dataplane::iptables::position::preempted;
use crate::dataplane::iptables::table::TableName;
use crate::dataplane::iptables::table::Tables;
use crate::dataplane::isolation;
use crate::dataplane::nftables;
use crate::dataplane::nftables::Nftables;
use crate::dataplane::nftables::plan::Table;
use crate::dataplane::progress::Progress;
use crate::dataplane::routing;
use crate::dataplane::settings::Firewall;
use crate::dataplane::settings::Flavor;
use crate::dataplane::settings::Settings;
use crate::model::address::Family;
use crate::ruleset::Ruleset;
use crate::ruleset::entry::Key;

/// How often jumps are put right in one apply when somebody else edits the same chains meanwhile.
const JUMP_ATTEMPTS: usize = 3;
/// Longer than a transaction of others, after which a table that seemed incompatible is read again.
const INCOMPATIBLE_PAUSE: Duration = Duration::from_millis(50);
/// Up to this many chains, reading their counters one by one is cheaper than reading all tables.
const LISTED_CHAINS: usize = 4;

/// Programs a node by one flavour of iptables. Clones know of the same contests.
#[derive(Clone, Debug)]
pub struct Iptables {
    flavor: Flavor,
    settings: Settings,
    contests: Contests,
}

impl Iptables {
    /// Uses this flavour; [`crate::dataplane::probe`] finds out which one a node uses.
    pub fn new(flavor: Flavor, settings: Settings) -> Self {
        Self { flavor, settings, contests: Contests::default() }
    }

    /// The flavour in use.
    pub const fn flavor(&self) -> Flavor {
        self.flavor
    }

    const fn names(&self) -> Names<'_> {
        Names(&self.settings.prefix)
    }

    const fn other_flavor(&self) -> Flavor {
        match self.flavor {
            Flavor::Nft => Flavor::Legacy,
            Flavor::Legacy => Flavor::Nft,
        }
    }

    /// Removes what nftables or the other flavour of iptables served before this one was chosen: this one serves by now.
    async fn retire(&self, family: Family, applied: &mut Applied) -> Result<(), DataplaneError> {
        if applied.observed.nftables.remove(&family).is_some_and(|table| table != Table::default()) {
            applied.transactions.extend(nftables::remove(&self.settings, family).await?);
        }
        let other = self.other_flavor();
        if let Some(tables) = applied.observed.beside.remove(&(other, family)) {
            let mut work = Work::new(&self.settings, other, family, tables);
            let outcome = work.lay_out(&Layout::default()).await;
            applied.transactions.append(&mut work.transactions);
            outcome?;
        }
        Ok(())
    }

    async fn apply_family(
        &self,
        family: Family,
        desired: &Ruleset,
        applied: &mut Applied,
    ) -> Result<(), DataplaneError> {
        let tables = match applied.observed.tables.remove(&family) {
            Some(tables) => tables,
            None => save(&self.settings, self.flavor, family).await?,
        };
        let contests = self.contests.clone();
        let work = Work { contests, ..Work::new(&self.settings, self.flavor, family, tables) };
        let mut way = Way { work, progress: Progress::new(family, applied) };
        let mut refused = Vec::new();
        let outcome = isolation::bring(&mut way, desired, &mut refused).await;
        let Way { work, progress } = way;
        progress.finish();
        applied.refused.append(&mut refused);
        applied.observed.tables.insert(family, work.tables);
        applied.transactions.extend(work.transactions);
        outcome
    }
}

impl Dataplane for Iptables {
    async fn read(&self) -> Result<Observed, DataplaneError> {
        let mut tables = BTreeMap::new();
        for family in Family::ALL {
            match save(&self.settings, self.flavor, family).await {
                Ok(found) => drop(tables.insert(family, found)),
                // A kernel without IPv6 has no rules of it; if any are wanted, applying them tells.
                Err(DataplaneError::Command(error)) if family == Family::V6 && error.is_refusal() => {}
                Err(error) => return Err(error),
            }
        }
        let (mut ruleset, mut counters) = decode(&tables, self.names());
        let beside = beside(&self.settings, &[self.other_flavor()]).await?;
        add_served(&beside, &self.settings, &mut ruleset, &mut counters);
        // A kernel without nf_tables has no table of ours.
        let nftables = Nftables::new(self.settings.clone()).tables().await.unwrap_or_default();
        let (served, counted) = nftables::decode(&nftables);
        ruleset.complete_with(served);
        for (key, counted) in counted {
            counters.entry(key).or_insert(counted);
        }
        Ok(Observed { ruleset, counters, tables, nftables, beside })
    }

    async fn apply(&self, desired: &Ruleset, observed: Observed) -> Applied {
        let mut applied = Applied { observed, ..Applied::default() };
        for family in Family::ALL {
            // A family that the node does not have is left alone, unless something of ours is there to be emptied.
            let served = applied.observed.ruleset.families();
            if !desired.families().contains(&family) && !served.contains(&family) {
                continue;
            }
            let mut outcome = self.apply_family(family, desired, &mut applied).await;
            if outcome.is_ok() {
                outcome = self.retire(family, &mut applied).await;
            }
            if outcome.is_ok() {
                outcome = routing::apply(&self.settings, family, desired, &mut applied).await;
            }
            if let Err(error) = outcome {
                applied.failures.push(Failure { family, error });
            }
        }
        applied
    }

    async fn conditions(&self, desired: &Ruleset) -> Vec<Condition> {
        let mut conditions =
            blockers::conditions(&self.settings, Firewall::Iptables(self.flavor), desired).await;
        conditions.extend(self.contests.conditions(self.flavor));
        conditions
    }
}

/// One family on its way to its wanted state.
struct Way<'s, 'p> {
    work: Work<'s>,
    progress: Progress<'p>,
}

impl Way<'_, '_> {
    fn look(&mut self) {
        let Work { settings, family, ref tables, .. } = self.work;
        let (ruleset, counters) =
            decode(&BTreeMap::from([(family, tables.clone())]), Names(&settings.prefix));
        self.progress.found(&ruleset, counters);
    }
}

impl isolation::Work for Way<'_, '_> {
    fn family(&self) -> Family {
        self.work.family
    }

    fn present(&self) -> &Ruleset {
        self.progress.served()
    }

    async fn reread(&mut self) -> Result<(), DataplaneError> {
        let Work { settings, flavor, family, .. } = self.work;
        self.work.tables = save(settings, flavor, family).await?;
        // Something was refused. If it was a rule that should have been there, no rule is relied on from here on.
        self.work.means = Means::Chains;
        self.look();
        Ok(())
    }

    async fn bring_to(&mut self, desired: &Ruleset) -> Result<(), DataplaneError> {
        let changes = self.progress.changes_to(desired);
        let Work { settings, family, .. } = self.work;
        let outcome = self.work.lay_out(&layout(desired, family, settings)).await;
        if matches!(outcome, Err(DataplaneError::Displaced { .. })) {
            self.look();
        }
        outcome?;
        self.progress.reached(desired, changes);
        let names = Names(&settings.prefix);
        let counted = decode::counted(&self.work.tables, names, &self.work.counted);
        self.progress.applied.observed.counters.extend(counted);
        Ok(())
    }
}

/// The tables of one family, and what is done to them.
pub(crate) struct Work<'a> {
    settings: &'a Settings,
    flavor: Flavor,
    family: Family,
    /// What there is.
    pub(crate) tables: Tables,
    /// What was done.
    pub(crate) transactions: Vec<Transaction>,
    /// Chains whose counters were read on the way.
    counted: Vec<String>,
    means: Means,
    contests: Contests,
}

impl<'a> Work<'a> {
    pub(crate) fn new(settings: &'a Settings, flavor: Flavor, family: Family, tables: Tables) -> Self {
        Self {
            settings,
            flavor,
            family,
            tables,
            transactions: Vec::new(),
            counted: Vec::new(),
            means: Means::Rules,
            contests: Contests::default(),
        }
    }

    /// Makes one transaction, if anything is to be done, and more only when jumps came out wrong. That they still do is a
    /// failure: whatever served before must not be removed then.
    pub(crate) async fn lay_out(&mut self, wanted: &Layout) -> Result<(), DataplaneError> {
        let Self { settings, flavor, family, .. } = *self;
        let names = Names(&settings.prefix);
        for _ in 0..JUMP_ATTEMPTS {
            let Some(mut next) = self.plan(wanted) else { return Ok(()) };
            if !next.rewritten.is_empty() {
                self.refresh_counters(&next).await?;
                self.counted.append(&mut next.rewritten);
                next = self.plan(wanted).unwrap_or(next);
            }
            match restore(settings, flavor, family, &next.text).await {
                // Looking for rules one by one would take as long the next time.
                Err(DataplaneError::Command(error)) if error.is_timeout() && self.means == Means::Rules => {
                    self.means = Means::Chains;
                    self.tables = save(settings, flavor, family).await?;
                    continue;
                }
                outcome => outcome?,
            }
            self.count_moves(wanted);
            // A position counts rules of others, who may have changed them since.
            let known = next.jumps == 0 && memory::restore(&mut self.tables, &next.text, names).is_ok();
            let Plan { text: input, chains, .. } = next;
            self.transactions.push(Transaction { family, input, chains, elements: 0 });
            if known {
                return Ok(());
            }
            self.tables = save(settings, flavor, family).await?;
        }
        match self.plan(wanted) {
            None => Ok(()),
            Some(_) => Err(DataplaneError::Displaced { program: program(flavor, family, "") }),
        }
    }

    fn plan(&self, wanted: &Layout) -> Option<Plan> {
        let yielded = self.contests.yielded(self.family);
        plan_beside(&self.tables, wanted, Names(&self.settings.prefix), self.means, &yielded)
    }

    /// Remembers who stood in front of us before the transaction that was just made.
    fn count_moves(&self, wanted: &Layout) {
        let (names, yielded) = (Names(&self.settings.prefix), self.contests.yielded(self.family));
        let mut moved = preempted(TableName::Nat, &self.tables.nat, &wanted.nat, names);
        moved.retain(|(spot, _)| !yielded.contains(spot));
        self.contests.moved(self.family, moved);
    }

    async fn refresh_counters(&mut self, plan: &Plan) -> Result<(), DataplaneError> {
        let settings = self.settings;
        if LISTED_CHAINS < plan.rewritten.len() {
            self.tables = save(settings, self.flavor, self.family).await?;
            return Ok(());
        }
        let program = program(self.flavor, self.family, "");
        for name in &plan.rewritten {
            let arguments = ["-w", "5", "-t", "nat", "-v", "-S", name];
            let listed = settings.tools.run(&program, &arguments, "").await.map_err(told)?;
            let unreadable = || DataplaneError::Unreadable { program: program.clone(), line: listed.clone() };
            let rules = parse::parse_listed(&listed, Names(&settings.prefix)).ok_or_else(unreadable)?;
            self.tables.nat.chain_mut(name).rules = rules;
        }
        Ok(())
    }
}

/// `iptables-nft-save`, `ip6tables-legacy-restore` and so on; an empty action names the program for single rules.
fn program(flavor: Flavor, family: Family, action: &str) -> String {
    let base = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    format!("{base}-{flavor}{action}")
}

/// Reads all tables of a family.
///
/// Always without `-t`: naming a table makes iptables-legacy create it.
pub async fn save(settings: &Settings, flavor: Flavor, family: Family) -> Result<Tables, DataplaneError> {
    asking_again(|| save_once(settings, flavor, family)).await
}

/// iptables-nft lists chains and rules one after the other, and also calls a table incompatible that somebody changes
/// between the two: only one that is so twice is believed to be.
async fn asking_again<A: Future<Output = Result<Tables, DataplaneError>>>(ask: impl Fn() -> A) -> A::Output {
    match ask().await {
        Err(DataplaneError::Incompatible { .. }) => {
            tokio::time::sleep(INCOMPATIBLE_PAUSE).await;
            ask().await
        }
        said => said,
    }
}

async fn save_once(settings: &Settings, flavor: Flavor, family: Family) -> Result<Tables, DataplaneError> {
    let program = program(flavor, family, "-save");
    let saved = settings.tools.run(&program, &["-c"], "").await.map_err(told)?;
    read_saved(&saved, &program, settings)
}

fn read_saved(saved: &str, program: &str, settings: &Settings) -> Result<Tables, DataplaneError> {
    let program = program.to_owned();
    parse::parse(saved, Names(&settings.prefix)).map_err(|error| match error {
        ParseError::Line(line) => DataplaneError::Unreadable { program, line },
        ParseError::Incompatible(table) => DataplaneError::Incompatible { program, table },
    })
}

/// What these flavours hold. One that is not installed, or cannot show its tables, holds nothing that could be put
/// right from here.
pub(crate) async fn beside(
    settings: &Settings,
    flavors: &[Flavor],
) -> Result<BTreeMap<(Flavor, Family), Tables>, DataplaneError> {
    let mut beside = BTreeMap::new();
    for flavor in flavors {
        for family in Family::ALL {
            match save(settings, *flavor, family).await {
                Ok(tables) => drop(beside.insert((*flavor, family), tables)),
                Err(DataplaneError::Command(error)) if error.is_missing() || error.is_refusal() => {}
                Err(DataplaneError::Incompatible { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(beside)
}

/// Adds what is served by another backend than the one in use, which it was before.
pub(crate) fn add_served(
    beside: &BTreeMap<(Flavor, Family), Tables>,
    settings: &Settings,
    ruleset: &mut Ruleset,
    counters: &mut BTreeMap<Key, Counters>,
) {
    for ((_, family), tables) in beside {
        let (served, counted) = decode(&BTreeMap::from([(*family, tables.clone())]), Names(&settings.prefix));
        ruleset.complete_with(served);
        for (key, counted) in counted {
            counters.entry(key).or_insert(counted);
        }
    }
}

/// Makes one transaction per table in `input`.
pub async fn restore(
    settings: &Settings,
    flavor: Flavor,
    family: Family,
    input: &str,
) -> Result<(), DataplaneError> {
    let program = program(flavor, family, "-restore");
    let tools: &Tools = &settings.tools;
    tools.run(&program, &["--noflush", "--counters", "-w", "5"], input).await.map(drop).map_err(told)
}

fn told(error: CommandError) -> DataplaneError {
    if error.is_lock_busy() { DataplaneError::Busy(error) } else { DataplaneError::Command(error) }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;
    use crate::ruleset::fixtures::endpoint;
    use crate::ruleset::fixtures::ruleset;
    use crate::ruleset::fixtures::v4_node;

    /// A node whose programs are these scripts.
    fn with_programs(directory: &Path, programs: &[(&str, &str)]) -> Settings {
        for (name, script) in programs {
            let path = directory.join(name);
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let tools = Tools { directory: Some(directory.to_owned()), lock_file: None };
        Settings { tools, ..Settings::default() }
    }

    #[tokio::test]
    async fn jumps_that_do_not_stay_are_a_failure_and_what_served_before_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let removed = directory.path().join("removed");
        let programs = [
            ("iptables-nft-save", "true"),
            ("iptables-nft-restore", "cat > /dev/null"),
            ("iptables-legacy-restore", &format!("cat > {}", removed.display())),
        ];
        let settings = with_programs(directory.path(), &programs);
        let web = ruleset(&[endpoint("80/tcp", "web", &["10.244.1.9"])], &v4_node());
        let before = fixtures::serving(&[endpoint("80/tcp", "web", &["10.244.1.9"])]);
        let observed = Observed {
            tables: [(Family::V4, Tables::default())].into(),
            beside: [((Flavor::Legacy, Family::V4), before)].into(),
            ..Observed::default()
        };
        let applied = Iptables::new(Flavor::Nft, settings).apply(&web, observed).await;
        let [Failure { error, .. }] = &applied.failures[..] else { panic!("{:?}", applied.failures) };
        assert!(matches!(error, DataplaneError::Displaced { .. }) && !error.is_refusal(), "{error}");
        assert!(applied.observed.ruleset.is_empty(), "what did not stay is not served");
        assert!(!removed.exists());
    }

    /// What is said of outputs that come one after the other, and how many were asked for.
    async fn said_of(outputs: &[&str]) -> (Result<Tables, DataplaneError>, usize) {
        let left = RefCell::new(outputs.iter());
        let said = asking_again(|| {
            let output = left.borrow_mut().next().copied().unwrap_or("not asked for");
            std::future::ready(read_saved(output, "iptables-nft-save", &Settings::default()))
        });
        let said = said.await;
        (said, outputs.len() - left.into_inner().len())
    }

    const INCOMPATIBLE: &str = "# Table `nat' is incompatible, use 'nft' tool.\n";
    const GOOD: &str = "*nat\n:PINHOLE-DNAT - [0:0]\nCOMMIT\n";

    #[tokio::test(start_paused = true)]
    async fn a_table_is_incompatible_when_it_is_so_twice() {
        let (said, asked) = said_of(&[INCOMPATIBLE, GOOD, GOOD]).await;
        assert!(said.unwrap().nat.chains.contains_key("PINHOLE-DNAT"), "it was changed while it was listed");
        assert_eq!(asked, 2);
        let (said, asked) = said_of(&[INCOMPATIBLE, INCOMPATIBLE, GOOD]).await;
        let error = said.unwrap_err().to_string();
        assert!(error.contains("iptables-nft-save cannot read the nat table"), "{error}");
        assert_eq!(asked, 2, "a table that is really incompatible is told at once");
    }

    #[tokio::test(start_paused = true)]
    async fn what_can_be_read_or_makes_no_sense_is_asked_for_once() {
        assert_eq!(said_of(&[GOOD, INCOMPATIBLE]).await.1, 1);
        let (said, asked) = said_of(&["*nat\nno rule\n", GOOD]).await;
        assert!(matches!(said, Err(DataplaneError::Unreadable { .. })));
        assert_eq!(asked, 1);
    }
}
