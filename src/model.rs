//! Values that cannot be wrong: ports, protocols, addresses, mappings, holders.
//!
//! Everything is parsed once, at the edge, into these types; what holds one needs no further check. The
//! module knows neither Kubernetes nor netfilter and does no I/O.

pub mod address;
pub mod automatic;
pub mod digest;
pub mod handover;
pub mod holder;
pub mod interface;
pub mod label_selector;
pub mod mapping;
pub mod masquerade;
pub mod ordinals;
pub mod port;
pub mod port_set;
