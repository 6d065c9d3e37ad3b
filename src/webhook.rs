//! `pinhole webhook`: answers the API server's admission calls.
//!
//! No rule lives here. A call is read, joined with the index, given to the pure rules of [`crate::admission`], and
//! their decision is written in the API server's terms. What this module owns is being there: deadlines and limits
//! that no caller can use against another, certificates that change under load, and an end that loses no call.

pub(crate) mod activity;
pub(crate) mod body;
pub(crate) mod budget;
pub(crate) mod connection;
pub mod limits;
pub(crate) mod refusal;
pub(crate) mod reply;
pub(crate) mod review;
pub mod self_signed;
pub mod server;
#[cfg(test)]
pub(crate) mod testing;
pub mod tls;
pub(crate) mod watched;
