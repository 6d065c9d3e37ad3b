//! Notices that somebody else changed the node's rules, without reading them.
//!
//! The kernel counts the changes of nf_tables and tells of each what it touched, and it tells the sizes of the tables of
//! iptables-legacy: asking takes microseconds. Only when our own rules, or the built-in chains around them, were touched are
//! they looked at over netlink; only when these differ is there a reason to read everything. No program is started for any of
//! it. Somebody who changes so much at once that not all of it is heard is followed by a look too, but not by one after the other.
//!
//! Rules and routes of links have no such count; where there are links, the kernel tells of each change of any, and they are
//! listed when one could matter.
//!
//! What escapes: an edit of a legacy table that keeps its size, one of rules of others in chains of theirs, and one in
//! the same moment in which we change something. A full comparison from time to time finds these.

mod legacy;
mod suspicion;

use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use crate::dataplane::Backend;
use crate::dataplane::DataplaneError;
use crate::dataplane::Observed;
use crate::dataplane::drift::legacy::Size;
use crate::dataplane::drift::suspicion::Doubt;
use crate::dataplane::drift::suspicion::Suspicion;
use crate::dataplane::iptables::names::Names;
use crate::dataplane::iptables::table::TableName;
use crate::dataplane::nftables::Nftables;
use crate::dataplane::nftables::layout::layout;
use crate::dataplane::nftables::netlink::Listener;
use crate::dataplane::nftables::netlink::Part;
use crate::dataplane::nftables::netlink::Socket;
use crate::dataplane::nftables::netlink::Touched;
use crate::dataplane::nftables::netlink::is_unanswered;
use crate::dataplane::nftables::plan::Table;
use crate::dataplane::nftables::read::digest_of_chain;
use crate::dataplane::routing;
use crate::dataplane::routing::lookout::Lookout;
use crate::dataplane::settings::Settings;
use crate::model::address::Family;
use crate::model::digest::fnv1a;

/// How long one look at all our rules is from the next at least, where nothing says that they were touched. What is put off
/// is still found and put right within five seconds.
const PAUSE: Duration = Duration::from_millis(2500);

/// Somebody else changed something that concerns us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    /// The names of the programs that changed nf_tables meanwhile, where the kernel tells them.
    pub by: Vec<String>,
}

/// Watches the rules of one backend. Clones watch together.
#[derive(Clone, Debug)]
pub struct Watcher {
    settings: Settings,
    /// Reads our tables, when they are what is watched.
    nftables: Option<Nftables>,
    marks: Arc<Mutex<Marks>>,
}

/// How everything was when it was right.
#[derive(Debug, Default)]
struct Marks {
    socket: Option<Socket>,
    listener: Option<Listener>,
    lookout: Lookout,
    suspicion: Suspicion,
    legacy: Vec<Size>,
    watched: Watched,
    digest: u64,
    /// When all of it was last looked at for nothing but a doubt.
    looked_at: Option<Instant>,
}

/// What of nf_tables is watched.
#[derive(Clone, Debug, Default)]
struct Watched {
    /// The name of our tables, when they are what is watched.
    table: Option<String>,
    chains: Vec<Chain>,
}

/// A chain of iptables-nft that is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chain {
    family: Family,
    table: &'static str,
    name: String,
}

impl Watcher {
    /// Watches the rules of a backend; nobody can change what is only printed.
    pub fn new(backend: &Backend, settings: Settings) -> Option<Self> {
        let nftables = match backend {
            Backend::Nftables(nftables) => Some(nftables.clone()),
            Backend::Iptables(_) => None,
            Backend::DryRun(_) => return None,
        };
        Some(Self { settings, nftables, marks: Arc::default() })
    }

    /// Takes what there is now as right.
    pub async fn settle(&self, observed: &Observed) -> io::Result<()> {
        let table = self.nftables.is_some().then(|| self.settings.prefix.to_string());
        let watched = Watched { table, chains: self.chains(observed) };
        self.blocking(move |marks| {
            marks.watched = watched;
            marks.legacy = legacy::sizes()?;
            if marks.listener.is_none() {
                // Without it, nobody is named, and every change is a reason to look.
                marks.listener = Listener::open().ok();
            }
            marks.listen();
            let generation = marks.generation()?;
            marks.digest = marks.digest()?;
            marks.suspicion.settle(generation);
            Ok(())
        })
        .await
    }

    /// Whether somebody else changed something that concerns us since then.
    pub async fn look(&self, observed: &Observed) -> io::Result<Option<Drift>> {
        let (generation, doubt, changed) = self.blocking(Marks::glance).await?;
        let differs = changed
            || doubt != Doubt::None && self.tables_differ(observed).await?
            || self.routes_differ(observed).await?;
        self.blocking(move |marks| {
            if differs {
                return Ok(Some(Drift { by: marks.suspicion.culprits() }));
            }
            // Only a look that was taken to its end ends a doubt.
            if doubt != Doubt::None {
                marks.suspicion.settle(generation);
            }
            Ok(None)
        })
        .await
    }

    async fn routes_differ(&self, observed: &Observed) -> io::Result<bool> {
        let links = self.settings.links.now();
        if links.is_empty() {
            return Ok(false);
        }
        let asked = links.clone();
        if !self.blocking(move |marks| Ok(marks.lookout.is_in_doubt(&asked))).await? {
            return Ok(false);
        }
        let differs = routing::differs(&self.settings.links, &observed.ruleset).await?;
        if !differs {
            self.blocking(|marks| {
                marks.lookout.settle();
                Ok(())
            })
            .await?;
        }
        Ok(differs)
    }

    async fn tables_differ(&self, observed: &Observed) -> io::Result<bool> {
        let Some(nftables) = &self.nftables else { return Ok(false) };
        let found = nftables.tables().await.map_err(|error| match error {
            DataplaneError::Netlink(error) => error,
            error => io::Error::other(error),
        })?;
        let nothing = Table::default();
        let differs = |(family, table): (&Family, &Table)| {
            let known = observed.nftables.get(family).unwrap_or(&nothing);
            if known.is_as_served() {
                return !table.holds(&layout(&observed.ruleset, *family));
            }
            !table.serves_like(known)
        };
        Ok(found.iter().any(differs))
    }

    /// The built-in chains that lead to ours or may drop what is ours, and our own chains.
    fn chains(&self, observed: &Observed) -> Vec<Chain> {
        let names = Names(&self.settings.prefix);
        let mut chains = Vec::new();
        for family in Family::ALL {
            let mut watch = |table: TableName, name: &str| {
                chains.push(Chain { family, table: table.name(), name: name.to_owned() });
            };
            watch(TableName::Filter, "FORWARD");
            watch(TableName::Filter, &names.accept());
            if self.nftables.is_some() {
                continue;
            }
            watch(TableName::Filter, "INPUT");
            for name in ["PREROUTING", "OUTPUT", "POSTROUTING"] {
                watch(TableName::Nat, name);
            }
            if !self.settings.links.now().is_empty() {
                watch(TableName::Mangle, "PREROUTING");
            }
            let Some(tables) = observed.tables.get(&family) else { continue };
            for table in TableName::ALL {
                for name in tables.get(table).chains.keys().filter(|name| names.owns(name)) {
                    watch(table, name);
                }
            }
        }
        chains
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Marks) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let marks = Arc::clone(&self.marks);
        let working = tokio::task::spawn_blocking(move || {
            let mut marks = marks.lock().unwrap_or_else(PoisonError::into_inner);
            let outcome = work(&mut marks);
            if outcome.is_err() {
                // Whatever is still on its way must not be taken for the next answer.
                marks.socket = None;
            }
            outcome
        });
        working.await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

impl Marks {
    fn socket(&mut self) -> io::Result<&mut Socket> {
        match &mut self.socket {
            Some(socket) => Ok(socket),
            empty => Ok(empty.insert(Socket::open()?)),
        }
    }

    /// How far the kernel has counted, what there is to doubt, and whether chains or legacy tables differ.
    fn glance(&mut self) -> io::Result<(Option<u32>, Doubt, bool)> {
        let (generation, legacy) = (self.generation()?, legacy::sizes()?);
        let changed = legacy != self.legacy;
        // What it has counted was told before it counted on; of a change that it is just telling of, the end is missed.
        self.listen();
        let mut doubt = self.suspicion.doubt(generation);
        if doubt == Doubt::Unheard {
            if self.looked_at.is_some_and(|looked_at| looked_at.elapsed() < PAUSE) {
                doubt = Doubt::None;
            } else {
                self.looked_at = Some(Instant::now());
            }
        }
        let changed = changed || doubt != Doubt::None && self.digest()? != self.digest;
        Ok((generation, doubt, changed))
    }

    /// `None` on a kernel without nf_tables, where nothing of it can change.
    fn generation(&mut self) -> io::Result<Option<u32>> {
        match self.socket()?.generation() {
            Ok(generation) => Ok(Some(generation)),
            Err(error) => {
                self.socket = None;
                if is_unanswered(&error) { Ok(None) } else { Err(error) }
            }
        }
    }

    fn digest(&mut self) -> io::Result<u64> {
        if self.generation()?.is_none() {
            return Ok(0);
        }
        let chains = std::mem::take(&mut self.watched.chains);
        let mut digests = Vec::new();
        let digest = |Chain { family, table, name }: &Chain| {
            digests.extend(digest_of_chain(self.socket()?, *family, table, name)?.to_ne_bytes());
            Ok(())
        };
        let outcome: io::Result<()> = chains.iter().try_for_each(digest);
        self.watched.chains = chains;
        outcome?;
        Ok(fnv1a(&digests))
    }

    /// Hears what was changed since this was asked last.
    fn listen(&mut self) {
        let Some(listener) = &mut self.listener else { return };
        self.suspicion.hear(listener.hear(|touched| self.watched.has(touched)));
    }
}

impl Watched {
    fn has(&self, touched: &Touched<'_>) -> bool {
        let Touched { family, table, part } = *touched;
        let is_in = |chain: &Chain| chain.family == family && chain.table == table;
        self.table.as_deref() == Some(table)
            || match part {
                Part::Whole => self.chains.iter().any(is_in),
                Part::Chain(name) => self.chains.iter().any(|chain| is_in(chain) && chain.name == name),
                Part::Other => false,
            }
    }
}
