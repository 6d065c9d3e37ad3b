//! Notices that somebody else changed the node's rules, without reading them.
//!
//! The kernel counts the changes of nf_tables, and tells the sizes of the tables of iptables-legacy: asking takes
//! microseconds. Only when one of them moved are our own rules, and the built-in chains around them, looked at over
//! netlink; only when these differ is there a reason to read everything. No program is started for any of it.
//!
//! Rules and routes of links have no such count; where there are links, the kernel tells of each change of any, and they are
//! listed when one could matter.
//!
//! What escapes: an edit of a legacy table that keeps its size, one of rules of others in chains of theirs, and one in
//! the same moment in which we change something. A full comparison from time to time finds these.

mod legacy;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use crate::dataplane::Backend;
use crate::dataplane::DataplaneError;
use crate::dataplane::Observed;
use crate::dataplane::drift::legacy::Size;
use crate::dataplane::iptables::names::Names;
use crate::dataplane::iptables::table::TableName;
use crate::dataplane::nftables::Nftables;
use crate::dataplane::nftables::layout::layout;
use crate::dataplane::nftables::netlink::Listener;
use crate::dataplane::nftables::netlink::Socket;
use crate::dataplane::nftables::plan::Table;
use crate::dataplane::nftables::read::digest_of_chain;
use crate::dataplane::routing;
use crate::dataplane::routing::lookout::Lookout;
use crate::dataplane::settings::Settings;
use crate::model::address::Family;
use crate::model::digest::fnv1a;

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
    generation: Option<u32>,
    legacy: Vec<Size>,
    chains: Vec<Chain>,
    digest: u64,
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
        let chains = self.chains(observed);
        self.blocking(move |marks| {
            marks.chains = chains;
            marks.legacy = legacy::sizes()?;
            if marks.listener.is_none() {
                // Without it, nobody is named.
                marks.listener = Listener::open().ok();
            }
            marks.hear();
            marks.generation = marks.generation()?;
            marks.digest = marks.digest()?;
            Ok(())
        })
        .await
    }

    /// Whether somebody else changed something that concerns us since then.
    pub async fn look(&self, observed: &Observed) -> io::Result<Option<Drift>> {
        let (moved, changed) = self
            .blocking(|marks| {
                let (generation, legacy) = (marks.generation()?, legacy::sizes()?);
                let mut changed = legacy != marks.legacy;
                let moved = generation != marks.generation;
                if moved {
                    changed |= marks.digest()? != marks.digest;
                    // What is ours is looked at by the caller, before this is believed.
                    marks.generation = generation;
                }
                Ok((moved, changed))
            })
            .await?;
        let differs =
            changed || moved && self.tables_differ(observed).await? || self.routes_differ(observed).await?;
        if !moved && !differs {
            return Ok(None);
        }
        let by = self.blocking(|marks| Ok(marks.hear())).await?;
        Ok(differs.then(|| Drift { by: by.into_iter().collect() }))
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
        let differs = routing::differs(&links, &observed.ruleset).await?;
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

    /// `None` on a kernel without nf_tables, where nothing of it can change.
    fn generation(&mut self) -> io::Result<Option<u32>> {
        match self.socket()?.generation() {
            Ok(generation) => Ok(Some(generation)),
            Err(error) => {
                self.socket = None;
                // The kernel says so when nobody answers for nf_tables.
                if error.raw_os_error() == Some(libc::EINVAL) { Ok(None) } else { Err(error) }
            }
        }
    }

    fn digest(&mut self) -> io::Result<u64> {
        if self.generation()?.is_none() {
            return Ok(0);
        }
        let chains = std::mem::take(&mut self.chains);
        let mut digests = Vec::new();
        let digest = |Chain { family, table, name }: &Chain| {
            digests.extend(digest_of_chain(self.socket()?, *family, table, name)?.to_ne_bytes());
            Ok(())
        };
        let outcome: io::Result<()> = chains.iter().try_for_each(digest);
        self.chains = chains;
        outcome?;
        Ok(fnv1a(&digests))
    }

    /// Who changed something since this was asked last.
    fn hear(&mut self) -> BTreeSet<String> {
        self.listener.as_mut().map(Listener::names).unwrap_or_default()
    }
}
