//! What can be asked of wherever claims are stored, and what it can answer.
//!
//! Creating is create-if-absent, and every change is conditional on the version that was read: that is all that uniqueness
//! rests on. The API server is such a store, and so is [`memory::Memory`](crate::allocation::memory::Memory).

use std::sync::Arc;

use crate::allocation::claim::Claim;
use crate::allocation::claim::StoredClaim;
use crate::allocation::claim::Version;
use crate::allocation::key::ClaimKey;
use crate::model::address::ExternalAddress;

/// One read or write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Stores a claim where none of its key is: [`Outcome::Stored`] or [`Outcome::Exists`].
    Create(Claim),
    /// Reads a claim as it is now, never from a cache: [`Outcome::Found`].
    Get(ClaimKey),
    /// Reads every claim of an address as it is now: [`Outcome::Listed`].
    List(ExternalAddress),
    /// Reads every claim of the holders in a namespace as it is now: [`Outcome::Listed`].
    ListOf(Arc<str>),
    /// Replaces a claim that is still the version that was read: [`Outcome::Stored`] or [`Outcome::Stale`].
    Update(Claim, Version),
    /// Deletes a claim that is still the version that was read: [`Outcome::Deleted`] or [`Outcome::Stale`].
    Delete(Version),
    /// Lets a moment pass, so that somebody else can finish: [`Outcome::Waited`].
    Wait,
}

/// How an operation went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The claim as it is stored now.
    Stored(Box<StoredClaim>),
    /// A claim of that key is stored already.
    Exists,
    /// What is stored; `None` when nothing is.
    Found(Option<Box<StoredClaim>>),
    /// Everything that is stored.
    Listed(Vec<StoredClaim>),
    /// It is gone.
    Deleted,
    /// It was changed or deleted in the meantime.
    Stale,
    /// The moment is over.
    Waited,
    /// It could not be done, or nobody knows whether it was.
    Failed(Failure),
}

/// Why a store could not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Failure {
    /// What was tried and why it failed, in one line.
    pub reason: String,
    /// Whether it fails in the same way until somebody does something about it.
    pub is_lasting: bool,
}
