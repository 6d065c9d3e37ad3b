//! tmp
pub mod addresses;
