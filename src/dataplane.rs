//! Reads a node's NAT from the kernel and brings it to a wanted [`Ruleset`].
//!
//! The kernel is the only state: nothing is kept in a file, and what was applied is whatever [`Dataplane::read`]
//! finds. The module knows nothing of Kubernetes, and only [`command`] starts programs.

pub mod choice;
pub mod cleanup;
pub mod command;
pub mod condition;
pub mod conntrack;
pub mod counters;
pub mod drift;
pub mod dry_run;
pub mod former;
pub mod iptables;
pub(crate) mod isolation;
pub mod links;
pub(crate) mod netlink;
pub mod nftables;
pub mod probe;
pub(crate) mod progress;
pub mod routing;
pub mod seen_flows;
pub mod settings;

use std::collections::BTreeMap;
use std::future::Future;
use std::io;

use crate::dataplane::command::CommandError;
use crate::dataplane::condition::Condition;
use crate::dataplane::counters::Counters;
use crate::dataplane::dry_run::DryRun;
use crate::dataplane::iptables::Iptables;
use crate::dataplane::iptables::table::Tables;
use crate::dataplane::nftables::Nftables;
use crate::dataplane::nftables::plan::Table;
use crate::dataplane::settings::Firewall;
use crate::dataplane::settings::Flavor;
use crate::dataplane::settings::Settings;
use crate::model::address::Family;
use crate::ruleset::Ruleset;
use crate::ruleset::diff::Change;
use crate::ruleset::entry::Entry;
use crate::ruleset::entry::Key;

/// A way to program a node.
///
/// # Guarantees
/// - `apply` makes one transaction per family, and a transaction that fails changes nothing. Only a table that is not
///   there yet may be filled by several.
/// - Rules of others are neither deleted nor edited.
/// - An entry that the kernel refuses does not keep the others from being programmed (R08).
/// - Applying what is already there changes nothing and starts no program.
/// - What another backend of ours served before is told as served, and removed once this one serves it.
///
/// # Assumptions
/// Only one process per node applies under one prefix.
pub trait Dataplane {
    /// Reads everything that this backend owns, and what stands around it, from the kernel.
    fn read(&self) -> impl Future<Output = Result<Observed, DataplaneError>> + Send;

    /// Brings the kernel from `observed` to `desired`.
    ///
    /// `observed` may be the one that the last `apply` returned, which saves a reading, and then the work grows with
    /// what changes; drift since then is repaired by the next apply after a `read`. One family's failure does not keep
    /// the other from being programmed: both outcomes are told.
    fn apply(&self, desired: &Ruleset, observed: Observed) -> impl Future<Output = Applied> + Send;

    /// What keeps programmed entries from working, as far as the node shows it. It starts programs: call it when the
    /// kernel was read, not for every change.
    fn conditions(&self, desired: &Ruleset) -> impl Future<Output = Vec<Condition>> + Send;
}

/// What was found in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// What is served, as far as packets can reach the rules. Compare it with the wanted rules.
    pub ruleset: Ruleset,
    /// New connections per entry.
    pub counters: BTreeMap<Key, Counters>,
    /// The rules of iptables, when they are ours, per family.
    pub(crate) tables: BTreeMap<Family, Tables>,
    /// Our tables of nftables, per family.
    pub(crate) nftables: BTreeMap<Family, Table>,
    /// The rules of a flavour of iptables that is not the backend, as far as they are still to be looked at.
    pub(crate) beside: BTreeMap<(Flavor, Family), Tables>,
}

/// What an `apply` did.
#[derive(Debug, Default)]
pub struct Applied {
    /// What is in the kernel now.
    pub observed: Observed,
    /// What changed for users, in the order in which it was done. Repairs that users cannot see are not in it.
    pub changes: Vec<Change>,
    /// Entries that the kernel refused.
    pub refused: Vec<KernelRefused>,
    /// Every transaction that was made, as text.
    pub transactions: Vec<Transaction>,
    /// Families that are not as they should be, and why. Read the kernel again before the next attempt.
    pub failures: Vec<Failure>,
}

/// A family that could not be brought to its wanted state.
#[derive(Debug, thiserror::Error)]
#[error("{family}: {error}")]
pub struct Failure {
    /// The family.
    pub family: Family,
    /// Why.
    #[source]
    pub error: DataplaneError,
}

/// An entry that the kernel did not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelRefused {
    /// The entry.
    pub entry: Entry,
    /// What the program that was asked to program it said.
    pub error: String,
}

/// A change that was made together, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// The family.
    pub family: Family,
    /// What was given to the program, or would have been.
    pub input: String,
    /// How many chains it rewrites, adds or removes.
    pub chains: usize,
    /// How many elements of sets and maps it adds or removes.
    pub elements: usize,
}

/// Why the kernel could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// Another program holds the xtables lock. Try again soon; nothing was changed.
    #[error("another program holds the xtables lock: {0}; trying again is safe")]
    Busy(#[source] CommandError),
    /// A program is missing, failed or took too long.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The rules around ours cannot be read.
    #[error(
        "{program} cannot read the {table} table, because nft was used to put rules into it that iptables does not know; move those rules to an nft table of their own (`nft list table ip {table}` shows them)"
    )]
    Incompatible {
        /// The program.
        program: String,
        /// The table.
        table: String,
    },
    /// Jumps to our chains are not where they were put.
    #[error(
        "the jumps to our chains do not stay where {program} puts them; which other program changes INPUT, FORWARD, PREROUTING, OUTPUT or POSTROUTING all the time?"
    )]
    Displaced {
        /// The program.
        program: String,
    },
    /// The rules that were read make no sense.
    #[error("{program} printed a line that is no rule: {line:?}; is it iptables 1.8 or later?")]
    Unreadable {
        /// The program.
        program: String,
        /// The line.
        line: String,
    },
    /// The kernel cannot be asked about nf_tables.
    #[error(
        "the kernel cannot be asked about nf_tables: {0}; it takes the right NET_ADMIN, and a kernel with nf_tables (`modprobe nf_tables`), or use --firewall iptables"
    )]
    Netlink(#[source] io::Error),
    /// The kernel did not take a change.
    #[error("the kernel refused a change of {table}: {error}")]
    Refused {
        /// The table.
        table: String,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// What was made is not what was found afterwards.
    #[error(
        "the table {table} was made anew, and yet {difference}; does another program change it? (`nft monitor` shows)"
    )]
    NotAsMade {
        /// The table.
        table: String,
        /// What is different.
        difference: String,
    },
    /// The rules and routes of links cannot be read or changed.
    #[error(
        "the rules and routes that lead replies back by their link cannot be set: {0}; it takes the right NET_ADMIN, and a kernel with policy routing (CONFIG_IP_MULTIPLE_TABLES)"
    )]
    Routing(#[source] io::Error),
    /// No flavour of iptables is installed.
    #[error("{0}")]
    NoIptables(String),
}

impl DataplaneError {
    /// Whether the same call can succeed shortly.
    pub const fn is_busy(&self) -> bool {
        matches!(self, Self::Busy(_))
    }

    /// Whether the kernel said no: trying the same again will not help.
    pub const fn is_refusal(&self) -> bool {
        match self {
            Self::Command(error) => error.is_refusal(),
            Self::Refused { .. } => true,
            _ => false,
        }
    }
}

/// The backends that exist.
#[derive(Debug)]
pub enum Backend {
    /// Real rules, by nftables.
    Nftables(Nftables),
    /// Real rules, by iptables.
    Iptables(Iptables),
    /// Printed rules.
    DryRun(Box<DryRun>),
}

impl Backend {
    /// What programs a node by this firewall.
    pub fn new(firewall: Firewall, settings: Settings) -> Self {
        match firewall {
            Firewall::Nftables => Self::Nftables(Nftables::new(settings)),
            Firewall::Iptables(flavor) => Self::Iptables(Iptables::new(flavor, settings)),
        }
    }
}

impl Dataplane for Backend {
    async fn read(&self) -> Result<Observed, DataplaneError> {
        match self {
            Self::Nftables(backend) => backend.read().await,
            Self::Iptables(backend) => backend.read().await,
            Self::DryRun(backend) => backend.read().await,
        }
    }

    async fn apply(&self, desired: &Ruleset, observed: Observed) -> Applied {
        match self {
            Self::Nftables(backend) => backend.apply(desired, observed).await,
            Self::Iptables(backend) => backend.apply(desired, observed).await,
            Self::DryRun(backend) => backend.apply(desired, observed).await,
        }
    }

    async fn conditions(&self, desired: &Ruleset) -> Vec<Condition> {
        match self {
            Self::Nftables(backend) => backend.conditions(desired).await,
            Self::Iptables(backend) => backend.conditions(desired).await,
            Self::DryRun(backend) => backend.conditions(desired).await,
        }
    }
}
