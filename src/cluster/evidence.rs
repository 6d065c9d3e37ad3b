//! What a refusal rests on, read live.
//!
//! A cached view may name a holder that has just let go, so nothing is refused on it alone. Whoever decides asks
//! through [`LiveReads`] and needs to know nothing of the API server.

use std::sync::Arc;

use futures::future::BoxFuture;
use thiserror::Error;

use crate::admission::conflict::Evidence;
use crate::admission::index::occupants::Occupants;
use crate::allocation::pool::Pool;
use crate::api::object::Object;

/// Reads what a refusal rests on as it is now.
pub trait LiveReads: Send + Sync + 'static {
    /// What is stored now.
    fn read<'a>(&'a self, evidence: &'a Evidence) -> BoxFuture<'a, Result<Found, LiveReadError>>;
}

/// What a live read found.
#[derive(Clone, Debug)]
pub enum Found {
    /// It does not exist.
    Nothing,
    /// The object or Namespace, with its `kind` filled in.
    Object(Box<Object>),
    /// Every pool that can be read.
    Pools(Arc<[Pool]>),
    /// What an object says of the ports that it has.
    Occupants(Box<Occupants>),
}

impl From<Option<Object>> for Found {
    fn from(object: Option<Object>) -> Self {
        object.map_or(Self::Nothing, |object| Self::Object(Box::new(object)))
    }
}

/// A live read failed, so that nothing may be refused on what it would have shown.
#[derive(Debug, Error)]
#[error("reading {what} from the API server failed: {reason}")]
pub struct LiveReadError {
    /// What was read.
    pub what: String,
    /// Why it failed, and what to do about it.
    pub reason: String,
    /// Whether it fails in the same way until somebody does that: there is no use in asking again.
    pub is_lasting: bool,
}
