//! Who may have which external port: claims, their life, and the pools that grant them.
//!
//! A claim is an object in the API server whose name is what it is for ([`key`]), so that of many who ask at once one gets
//! it. Everything that takes several reads and writes is written here as a machine that says what to do next and is told
//! how it went ([`acquire`]); whoever drives it does the I/O. So the same code runs in the webhook, in the controller, and
//! in a test that lets ten of them interleave, crash and look at old news. No I/O, no clock: time is an argument.

pub mod acquire;
pub mod claim;
pub mod grant;
pub mod history;
pub mod key;
pub mod life;
pub mod memory;
pub mod operation;
pub mod overlap;
pub mod pool;
pub mod probe;
pub mod transfer;

#[cfg(test)]
mod tests;
