//! What a refusal rests on, read live.
//!
//! A cached view may name a holder that has just let go, so nothing is refused on it alone. Whoever decides asks
//! through [`LiveReads`] and needs to know nothing of the API server.

use futures::future::BoxFuture;
use thiserror::Error;

use crate::admission::conflict::Evidence;
use crate::api::object::Object;

/// Reads what a refusal rests on as it is now.
pub trait LiveReads: Send + Sync + 'static {
    /// The object or Namespace as it is stored now, with its `kind` filled in; `None` when it does not exist.
    fn read<'a>(&'a self, evidence: &'a Evidence) -> BoxFuture<'a, Result<Option<Object>, LiveReadError>>;
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
