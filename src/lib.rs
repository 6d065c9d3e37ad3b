//! Pinhole opens NAT pinholes to Kubernetes pods and services.
//!
//! The modules are listed in reading order, and each uses only modules above it (`tests/it/layering.rs` holds
//! that). The first are pure: no I/O, no clock, no environment. The processes at the end join them to the outside.

pub mod model;

pub mod api;

pub mod allocation;

pub mod admission;

pub mod certificates;

pub mod removal;

pub mod ruleset;

pub mod dataplane;

pub mod cluster;

pub mod telemetry;

pub mod shutdown;

pub mod webhook;

pub mod controller;

pub mod agent;

pub mod uninstall;

pub mod cli;
