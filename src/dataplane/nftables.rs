//! Programs a node by nftables: one table per family, mappings as elements of its maps.
//!
//! The steps are pure and each has its module: [`skeleton`] is the table that all nodes have, [`mod@layout`] says which
//! elements a [`Ruleset`] needs and reads it back from them, [`mod@plan`] finds the fewest changes. Elements are read and
//! changed over one netlink socket that stays open; `nft -f` makes the table, and does what netlink cannot.
//!
//! iptables stays where it is needed: what it refuses in FORWARD, no table of nftables can accept, so one chain of
//! iptables does where a policy drops.

mod codec;
pub mod element;
#[doc(hidden)]
pub mod fuzzing;
#[cfg(test)]
mod laws;
pub mod layout;
mod lists;
pub(crate) mod netlink;
pub mod plan;
pub(crate) mod read;
pub mod skeleton;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use crate::dataplane::Applied;
use crate::dataplane::Dataplane;
use crate::dataplane::DataplaneError;
use crate::dataplane::Failure;
use crate::dataplane::KernelRefused;
use crate::dataplane::Observed;
use crate::dataplane::Transaction;
use crate::dataplane::condition::Condition;
use crate::dataplane::counters::Counters;
use crate::dataplane::iptables;
use crate::dataplane::iptables::blockers;
use crate::dataplane::iptables::layout::shim;
use crate::dataplane::iptables::table::Tables;
use crate::dataplane::isolation;
use crate::dataplane::netlink::message::CREATE;
use crate::dataplane::nftables::element::Collection;
use crate::dataplane::nftables::element::Elements;
use crate::dataplane::nftables::layout::affected;
use crate::dataplane::nftables::layout::impossible;
use crate::dataplane::nftables::layout::layout;
use crate::dataplane::nftables::netlink::Batch;
use crate::dataplane::nftables::netlink::Refusal;
use crate::dataplane::nftables::netlink::Socket;
use crate::dataplane::nftables::plan::Plan;
use crate::dataplane::nftables::plan::State;
use crate::dataplane::nftables::plan::Table;
use crate::dataplane::nftables::plan::plan;
use crate::dataplane::nftables::read::Reading;
use crate::dataplane::nftables::skeleton::Skeleton;
use crate::dataplane::progress::Progress;
use crate::dataplane::routing;
use crate::dataplane::settings::Firewall;
use crate::dataplane::settings::Flavor;
use crate::dataplane::settings::Prefix;
use crate::dataplane::settings::Settings;
use crate::model::address::Family;
use crate::ruleset::Ruleset;
use crate::ruleset::diff::Change;
use crate::ruleset::entry::Key;

const NEW_ELEMENT: u16 = 12;
const DELETE_ELEMENT: u16 = 14;
const DELETE_TABLE: u16 = 2;
const TABLE_NAME: u16 = 1;

/// How often the tables are read again when somebody changes something between their parts.
const READ_ATTEMPTS: usize = 5;
/// How many elements of a new table are added by one transaction.
const AT_ONCE: usize = 5_000;

/// Programs a node by nftables. Clones share the socket.
#[derive(Clone, Debug)]
pub struct Nftables {
    settings: Settings,
    by_program: bool,
    shared: Arc<Mutex<Shared>>,
}

/// What is kept between calls: it saves work, and nothing is lost with it.
#[derive(Debug, Default)]
struct Shared {
    socket: Option<Socket>,
    /// How the kernel spells the rules of each table as it was made, to tell altered ones.
    rules: BTreeMap<Family, u64>,
}

impl Shared {
    fn ask<T>(&mut self, ask: impl FnOnce(&mut Socket) -> io::Result<T>) -> io::Result<T> {
        let socket = match &mut self.socket {
            Some(socket) => socket,
            empty => empty.insert(Socket::open()?),
        };
        let answer = ask(socket);
        if answer.is_err() {
            // Whatever is still on its way must not be taken for the next answer.
            self.socket = None;
        }
        answer
    }

    /// Reads a table, all parts of one state of it.
    fn read(&mut self, skeleton: &Skeleton) -> io::Result<Table> {
        let read = |socket: &mut Socket| {
            let mut attempts = 0;
            loop {
                let before = socket.generation()?;
                let reading = read::read(socket, skeleton)?;
                attempts += 1;
                // What changed may be anything of anybody: on a busy node the parts are as good as they get.
                if socket.generation()? == before || attempts == READ_ATTEMPTS {
                    return Ok(reading);
                }
            }
        };
        let Reading { mut table, rules } = self.ask(read)?;
        if table.state == State::Intact && *self.rules.entry(skeleton.family).or_insert(rules) != rules {
            table.state = State::Damaged("a rule was altered".to_owned());
        }
        Ok(table)
    }
}

impl Nftables {
    /// Uses the table named after the settings' prefix.
    pub fn new(settings: Settings) -> Self {
        Self { settings, by_program: false, shared: Arc::default() }
    }

    /// Changes elements by `nft -f` too, as it is done where netlink fails.
    pub fn by_program(settings: Settings) -> Self {
        Self { by_program: true, ..Self::new(settings) }
    }

    /// Lets a thread work that may wait for the kernel.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Shared) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let shared = Arc::clone(&self.shared);
        let working = tokio::task::spawn_blocking(move || {
            work(&mut shared.lock().unwrap_or_else(PoisonError::into_inner))
        });
        working.await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    async fn read_family(&self, family: Family) -> Result<Table, DataplaneError> {
        let skeleton = Skeleton::new(family, &self.settings);
        self.blocking(move |shared| shared.read(&skeleton)).await.map_err(DataplaneError::Netlink)
    }

    /// Our tables of both families.
    pub(crate) async fn tables(&self) -> Result<BTreeMap<Family, Table>, DataplaneError> {
        let mut tables = BTreeMap::new();
        for family in Family::ALL {
            match self.read_family(family).await {
                Ok(table) => drop(tables.insert(family, table)),
                // A kernel without IPv6 has no tables of it; if any are wanted, applying them tells.
                Err(DataplaneError::Netlink(error))
                    if family == Family::V6 && error.kind() == ErrorKind::Unsupported => {}
                Err(error) => return Err(error),
            }
        }
        Ok(tables)
    }

    /// The names of all tables that are ours, under whatever prefix.
    pub(crate) async fn prefixes(&self) -> Result<BTreeSet<Prefix>, DataplaneError> {
        let settings = self.settings.clone();
        let found = self.blocking(move |shared| {
            let mut found = BTreeSet::new();
            for family in Family::ALL {
                for prefix in shared.ask(|socket| read::names_like_ours(socket, family))? {
                    let named = Settings { prefix: prefix.clone(), ..settings.clone() };
                    let skeleton = Skeleton::new(family, &named);
                    if shared.ask(|socket| read::is_ours(socket, &skeleton))? {
                        found.insert(prefix);
                    }
                }
            }
            Ok(found)
        });
        found.await.map_err(DataplaneError::Netlink)
    }

    /// Whether the kernel and the installed `nft` can make our table: it is tried, without making it.
    pub async fn is_possible(&self) -> Result<(), DataplaneError> {
        let text = Skeleton::new(Family::V4, &self.settings).text();
        self.settings.tools.run("nft", &["-c", "-f", "-"], &text).await?;
        Ok(())
    }

    async fn apply_family(
        &self,
        family: Family,
        desired: &Ruleset,
        applied: &mut Applied,
    ) -> Result<(), DataplaneError> {
        let table = match applied.observed.nftables.remove(&family) {
            Some(table) => table,
            None => self.read_family(family).await?,
        };
        let (skeleton, progress) = (Skeleton::new(family, &self.settings), Progress::new(family, applied));
        let mut work = Work { backend: self, skeleton, table, progress };
        let mut refused = Vec::new();
        let outcome = isolation::bring(&mut work, desired, &mut refused).await;
        let Work { table, progress, .. } = work;
        progress.finish();
        applied.refused.append(&mut refused);
        // What a failure left is to be read before anything is built on it.
        if outcome.is_ok() {
            applied.observed.nftables.insert(family, table);
        }
        outcome
    }

    /// Puts the accept where iptables refuses, and takes everything else of ours out of iptables: the table of
    /// nftables serves by now. What is done is looked at again when the kernel is read.
    async fn apply_shims(
        &self,
        family: Family,
        desired: &Ruleset,
        applied: &mut Applied,
    ) -> Result<(), DataplaneError> {
        for flavor in Flavor::ALL {
            let Some(tables) = applied.observed.beside.remove(&(flavor, family)) else { continue };
            let wanted = shim(&tables, desired, family, &self.settings);
            let mut work = iptables::Work::new(&self.settings, flavor, family, tables);
            let outcome = work.lay_out(&wanted).await;
            applied.transactions.append(&mut work.transactions);
            outcome?;
            if !wanted.filter.is_empty() {
                // Whom it lets through changes with the pods of other nodes.
                let tables = Tables { filter: work.tables.filter, ..Tables::default() };
                applied.observed.beside.insert((flavor, family), tables);
            }
        }
        Ok(())
    }
}

/// What tables serve that were read, and how often each entry was used. A table whose rules are of another version, or were
/// altered, still says whom it was made for: that is what is kept when it is made anew.
pub(crate) fn decode(tables: &BTreeMap<Family, Table>) -> (Ruleset, BTreeMap<Key, Counters>) {
    let nothing = Elements::new();
    let there = tables.iter().filter(|(_, table)| table.state != State::Missing);
    layout::decode(there.map(|(family, table)| (*family, table.elements.as_ref().unwrap_or(&nothing))))
}

impl Dataplane for Nftables {
    async fn read(&self) -> Result<Observed, DataplaneError> {
        let nftables = self.tables().await?;
        let beside = iptables::beside(&self.settings, &Flavor::ALL).await?;
        let (mut ruleset, mut counters) = decode(&nftables);
        iptables::add_served(&beside, &self.settings, &mut ruleset, &mut counters);
        Ok(Observed { ruleset, counters, nftables, beside, ..Observed::default() })
    }

    async fn apply(&self, desired: &Ruleset, observed: Observed) -> Applied {
        let mut applied = Applied { observed, ..Applied::default() };
        if applied.observed.nftables.is_empty() {
            match iptables::beside(&self.settings, &Flavor::ALL).await {
                Ok(beside) => applied.observed.beside = beside,
                Err(error) => {
                    let family = desired.families().first().copied().unwrap_or(Family::V4);
                    applied.failures.push(Failure { family, error });
                    return applied;
                }
            }
        }
        let mut possible = Cow::Borrowed(desired);
        for entry in desired.entries() {
            if let Some(error) = impossible(entry) {
                possible.to_mut().remove(&entry.key);
                applied.refused.push(KernelRefused { entry: entry.clone(), error });
            }
        }
        for family in Family::ALL {
            // A family that the node does not have is left alone, unless something of ours is there to be emptied.
            let served = applied.observed.ruleset.families();
            if !desired.families().contains(&family) && !served.contains(&family) {
                continue;
            }
            let mut outcome = self.apply_family(family, &possible, &mut applied).await;
            if outcome.is_ok() {
                outcome = self.apply_shims(family, desired, &mut applied).await;
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
        blockers::conditions(&self.settings, Firewall::Nftables, desired).await
    }
}

/// How to get from `served` to `desired`, which differ by these changes, where the table holds exactly what is served.
pub(crate) fn plan_changes(
    served: &Ruleset,
    desired: &Ruleset,
    changes: &[Change],
    family: Family,
) -> Option<Plan> {
    let (before, after) = affected(served, desired, changes);
    plan(&Table::made(layout(&before, family)), &layout(&after, family))
}

/// Whether netlink can change elements of the collection. A network of these is two elements, and they rarely change.
const fn is_simple(collection: Collection) -> bool {
    !collection.is_networks()
}

/// One family on its way to its wanted state.
struct Work<'a> {
    backend: &'a Nftables,
    skeleton: Skeleton,
    table: Table,
    progress: Progress<'a>,
}

impl isolation::Work for Work<'_> {
    fn family(&self) -> Family {
        self.skeleton.family
    }

    fn present(&self) -> &Ruleset {
        self.progress.served()
    }

    async fn reread(&mut self) -> Result<(), DataplaneError> {
        let family = self.skeleton.family;
        self.table = self.backend.read_family(family).await?;
        let (ruleset, counters) = decode(&BTreeMap::from([(family, self.table.clone())]));
        self.progress.found(&ruleset, counters);
        Ok(())
    }

    async fn bring_to(&mut self, desired: &Ruleset) -> Result<(), DataplaneError> {
        let family = self.skeleton.family;
        // Of a table that holds exactly what is served, only what changes is looked at.
        let (planned, changes) = if self.table.is_as_served() {
            let changes = self.progress.changes_to(desired);
            (plan_changes(self.progress.served(), desired, &changes, family), Some(changes))
        } else {
            (plan(&self.table, &layout(desired, family)), None)
        };
        if let Some(plan) = planned {
            let is_new = self.table.state == State::Missing;
            if is_new && AT_ONCE < plan.steps.len() && !self.backend.by_program {
                self.fill(plan).await?;
            } else {
                for stage in plan.staged() {
                    self.make(stage).await?;
                }
            }
        }
        // A whole table's plan is large, and gone by now.
        let changes = changes.unwrap_or_else(|| self.progress.changes_to(desired));
        self.table = Table { state: State::Intact, elements: None };
        self.progress.reached(desired, changes);
        Ok(())
    }
}

impl Work<'_> {
    /// Makes the table and then fills it over netlink, which takes a fraction of the time and memory of the program,
    /// and never keeps the kernel's lock for long. Nothing can be lost on the way: nobody was served, and the external
    /// addresses, which lead packets to the other elements, come last.
    async fn fill(&mut self, plan: Plan) -> Result<(), DataplaneError> {
        let (over_netlink, by_program) =
            plan.steps.into_iter().partition::<Vec<_>, _>(|step| is_simple(step.collection));
        self.make(Plan { rebuilds: true, steps: by_program }).await?;
        let mut rest = over_netlink.into_iter().peekable();
        while rest.peek().is_some() {
            self.make(Plan { rebuilds: false, steps: rest.by_ref().take(AT_ONCE).collect() }).await?;
        }
        Ok(())
    }

    /// Makes a change by one transaction.
    async fn make(&mut self, plan: Plan) -> Result<(), DataplaneError> {
        let input = plan.text(&self.skeleton);
        if !self.by_netlink(&plan).await? {
            let tools = &self.backend.settings.tools;
            tools.run("nft", &["-f", "-"], &input).await?;
        }
        let (elements, rebuilds) = (plan.steps.len(), plan.rebuilds);
        let chains = if rebuilds { self.skeleton.chains.len() } else { 0 };
        let transaction = Transaction { family: self.skeleton.family, input, chains, elements };
        self.progress.applied.transactions.push(transaction);
        if rebuilds { self.learn().await } else { Ok(()) }
    }

    /// Whether netlink made the change; what it cannot do is left to `nft`.
    async fn by_netlink(&self, plan: &Plan) -> Result<bool, DataplaneError> {
        let can = !plan.rebuilds && plan.steps.iter().all(|step| is_simple(step.collection));
        if !can || self.backend.by_program {
            return Ok(false);
        }
        let (family, table) = (self.skeleton.family, self.skeleton.table.as_str());
        let mut batch = Batch::new();
        for (index, step) in plan.steps.iter().enumerate() {
            let (kind, flags) = if step.add.is_some() { (NEW_ELEMENT, CREATE) } else { (DELETE_ELEMENT, 0) };
            batch.add(kind, family, flags, index + 1 == plan.steps.len(), |message| {
                codec::write(message, table, step);
            });
        }
        match self.backend.blocking(|shared| shared.ask(|socket| socket.commit(batch))).await {
            Ok(Ok(())) => Ok(true),
            Ok(Err(refusals)) => Err(refused(self.skeleton.table_name(), &refusals)),
            // The program may still be able to, and says why if it is not.
            Err(_) => Ok(false),
        }
    }

    /// Looks at the table that was just made, to know its rules again.
    async fn learn(&self) -> Result<(), DataplaneError> {
        let skeleton = self.skeleton.clone();
        let reading = self.backend.blocking(move |shared| {
            shared.rules.remove(&skeleton.family);
            shared.read(&skeleton)
        });
        let table = reading.await.map_err(DataplaneError::Netlink)?;
        match table.state {
            State::Intact => Ok(()),
            State::Missing => Err(self.not_as_made("it is gone")),
            State::Damaged(difference) => Err(self.not_as_made(&difference)),
        }
    }

    fn not_as_made(&self, difference: &str) -> DataplaneError {
        DataplaneError::NotAsMade { table: self.skeleton.table_name(), difference: difference.to_owned() }
    }
}

/// Removes our table of one family, if there is one.
pub(crate) async fn remove(
    settings: &Settings,
    family: Family,
) -> Result<Option<Transaction>, DataplaneError> {
    let backend = Nftables::new(settings.clone());
    let skeleton = Skeleton::new(family, settings);
    let name = skeleton.table_name();
    let chains = skeleton.chains.len();
    let removing = backend.blocking(move |shared| {
        shared.ask(|socket| {
            let mut batch = Batch::new();
            batch.add(DELETE_TABLE, family, 0, true, |message| {
                message.text(TABLE_NAME, &skeleton.table);
            });
            socket.commit(batch)
        })
    });
    let is_removed = was_removed(removing.await, name.clone())?;
    let input = format!("delete table {name}\n");
    Ok(is_removed.then_some(Transaction { family, input, chains, elements: 0 }))
}

/// Whether a table was removed; false when there was none, or can be none.
fn was_removed(outcome: io::Result<Result<(), Vec<Refusal>>>, name: String) -> Result<bool, DataplaneError> {
    let is_nothing = |refusal: &Refusal| {
        refusal.code == libc::ENOENT || netlink::is_without(&io::Error::from_raw_os_error(refusal.code))
    };
    match outcome {
        Ok(Ok(())) => Ok(true),
        Ok(Err(refusals)) if refusals.iter().all(is_nothing) => Ok(false),
        Ok(Err(refusals)) => Err(refused(name, &refusals)),
        Err(error) if netlink::is_without(&error) => Ok(false),
        Err(error) => Err(DataplaneError::Netlink(error)),
    }
}

fn refused(table: String, refusals: &[Refusal]) -> DataplaneError {
    let code = refusals.first().map_or(libc::EINVAL, |refusal| refusal.code);
    DataplaneError::Refused { table, error: io::Error::from_raw_os_error(code) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_table_that_cannot_be_there_is_taken_for_removed() {
        let answered = |code: i32| Ok(Err(vec![Refusal { message: 0, code }]));
        let failed = |code: i32| Err(io::Error::from_raw_os_error(code));
        let removed = |outcome| was_removed(outcome, "ip PINHOLE".to_owned()).ok();
        assert_eq!(removed(Ok(Ok(()))), Some(true));
        for code in [libc::ENOENT, libc::EOPNOTSUPP] {
            assert_eq!(removed(answered(code)), Some(false), "{code}");
        }
        for code in [libc::EPROTONOSUPPORT, libc::EAFNOSUPPORT] {
            assert_eq!(removed(failed(code)), Some(false), "{code}");
        }
        for code in [libc::EPERM, libc::EBUSY, libc::EAGAIN] {
            assert_eq!(removed(answered(code)), None, "{code}");
        }
        for code in [libc::EPERM, libc::EAGAIN, libc::ETIMEDOUT, libc::ENOBUFS, libc::EMFILE] {
            assert_eq!(removed(failed(code)), None, "{code}");
        }
        let both =
            vec![Refusal { message: 0, code: libc::ENOENT }, Refusal { message: 1, code: libc::EPERM }];
        assert_eq!(removed(Ok(Err(both))), None);
    }
}
