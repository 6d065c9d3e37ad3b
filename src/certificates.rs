//! Certificates of our own: an authority kept in one Secret, and its replacement without a failed call.
//!
//! The webhook's callers, the API servers, trust what the `caBundle` of our two webhook configurations holds, and each
//! learns of a change at a time that nobody can see. So an authority is replaced in steps, and every step is safe at
//! whatever point the one before has arrived:
//!
//! 1. *Stable*: one authority signs every leaf, and the bundle holds it alone.
//! 2. *Publish*: the next authority is made, and the bundle holds both.
//! 3. *Soak*: every configuration has that bundle; wait until every API server has seen it.
//! 4. *Retire*: leaves come from the new authority, and the bundle still holds both, until no leaf of the old one can
//!    be in use. Then it is stable again.
//!
//! This module is pure: it says which step is due ([`rotation::advance`]), what the bundle must be, and makes
//! certificates out of keys and times that it is given. Reading and writing the cluster is the caller's.

pub mod allowance;
pub mod authority;
pub mod bundle;
pub mod moment;
pub mod rotation;
pub mod stored;
