//! Tests of the whole: the command line, the layering of the sources, generated files.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test helper that cannot go on fails its test, and tests start processes of their own"
)]

mod check;
mod command_line;
mod corpora;
mod demo;
mod generated;
mod golden;
mod image;
mod kernel;
mod layering;
mod links;
mod program;
mod regressions;
mod render;
mod webhook;
