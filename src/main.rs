//! Parses the command line, runs what it names, and turns the outcome into an exit code.

use std::process::ExitCode;

use pinhole::cli::Cli;

fn main() -> ExitCode {
    // Fails only if a provider is installed already, and then there is one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Cli::from_command_line().run().unwrap_or_else(|error| {
        eprintln!("pinhole: {error:#}");
        ExitCode::FAILURE
    })
}
