//! Every name and shape that a user or another component can see: annotation keys, labels, the annotation's JSON,
//! the custom resources, and the slim view of Kubernetes objects that all parts share.
//!
//! Shapes only: nothing here judges a value. No I/O.

pub mod annotation;
pub mod crd;
pub mod keys;
pub mod object;
