//! Pinhole.
