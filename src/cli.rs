//! The command line: flags, their environment variables, and what each command joins together.
//!
//! Only this module reads flags, the environment and the terminal; every other part takes values. A command returns
//! its exit code: 0 for yes, 1 for no (violations found, a process that failed), 2 for usage.

mod agent;
mod authority;
mod check;
mod cleanup;
mod completion;
mod controller;
mod crd;
mod demo;
mod duration;
mod hostname;
mod listen;
mod manifest;
mod masquerade;
mod metrics;
mod network;
mod node_report;
mod plugin;
pub mod policy;
mod reach;
mod render;
mod schema;
mod terminal;
#[cfg(test)]
mod testing;
mod uninstall;
mod watching;
mod webhook;

use std::ffi::OsStr;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use clap::Parser;
use clap::Subcommand;

use crate::cli::agent::AgentFlags;
use crate::cli::check::Check;
use crate::cli::cleanup::Cleanup;
use crate::cli::completion::Completion;
use crate::cli::completion::Words;
use crate::cli::controller::ControllerFlags;
use crate::cli::crd::Crd;
use crate::cli::demo::Demo;
use crate::cli::node_report::NodeReportFlags;
use crate::cli::plugin::Plugin;
use crate::cli::reach::Flows;
use crate::cli::reach::Reach;
use crate::cli::render::Render;
use crate::cli::schema::Schema;
use crate::cli::uninstall::Uninstall;
use crate::cli::webhook::Webhook;
use crate::telemetry::log;
use crate::telemetry::log::LogFormat;

/// What kubectl calls the program when somebody types `kubectl pinhole`.
const PLUGIN: &str = "kubectl-pinhole";

/// What kubectl calls it to complete that.
const COMPLETER: &str = "kubectl_complete-pinhole";

/// External ports for Kubernetes pods by NAT: refused or granted at `kubectl apply`, programmed on the node in one
/// transaction.
#[derive(Debug, Parser)]
#[command(name = "pinhole", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    log: LogFlags,

    #[command(subcommand)]
    command: Command,
}

/// Ports, who has them, and why somebody has them not.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-pinhole",
    bin_name = "kubectl pinhole",
    version,
    propagate_version = true,
    max_term_width = 100
)]
struct AsPlugin {
    #[command(flatten)]
    log: LogFlags,

    #[command(flatten)]
    plugin: Plugin,
}

#[derive(Debug, Args)]
struct LogFlags {
    /// What to log: a level (error, warn, info, debug, trace), or levels by module as in
    /// `info,pinhole::webhook=debug`. Default: info; warn for check, render and demo.
    #[arg(long, global = true, value_name = "LEVEL", env = "PINHOLE_LOG_LEVEL")]
    log_level: Option<String>,

    /// How log lines look: `text` for people, `json` for collectors.
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text", env = "PINHOLE_LOG_FORMAT")]
    log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer the API server's admission calls.
    Webhook(Box<Webhook>),

    /// Bind claims to pods, give unused ones back, and claim what went past the webhook.
    Controller(Box<ControllerFlags>),

    /// Keep this node's NAT rules at what the pods of the node ask for and may have. Stopping it leaves the rules.
    Agent(Box<AgentFlags>),

    /// Remove every rule and chain of ours from this node. Stop the agent first, or it programs them again.
    Cleanup(Cleanup),

    /// Remove Pinhole from the cluster and from every node's kernel. `helm uninstall` runs it.
    Uninstall(Box<Uninstall>),

    /// Judge manifests by the rules of admission, offline, before anybody applies them.
    Check(Check),

    /// Print the rules that a node would get for manifests.
    Render(Render),

    /// Play the whole way from kubectl apply to packets on this machine, without a cluster.
    Demo(Demo),

    /// Print the JSON Schema of the pinhole.dev/nat annotation.
    Schema(Schema),

    /// Print the definitions of the custom resources, for kubectl apply -f -.
    Crd(Crd),

    /// Ask about ports in a cluster; the same as `kubectl pinhole`.
    Kubectl(Box<Plugin>),

    /// Print what this node can say of itself, as JSON: for `kubectl pinhole doctor --preflight`.
    #[command(hide = true)]
    NodeReport(NodeReportFlags),

    /// Connect to an external port and print what came of it, as JSON: for `kubectl pinhole test`.
    #[command(hide = true)]
    Reach(Reach),

    /// Print this node's connections to an external port, as JSON: for `kubectl pinhole test`.
    #[command(hide = true)]
    Flows(Flows),

    /// Print the script by which a shell completes this command.
    Completion(Completion),

    /// Print what could stand in the place of the last word.
    #[command(hide = true)]
    Complete(Words),

    /// Likewise for kubectl, after `kubectl pinhole`.
    #[command(hide = true)]
    KubectlComplete(Words),
}

impl Command {
    /// A process says what it does; a command that prints an answer says only what is wrong.
    const fn default_log_level(&self) -> &'static str {
        match self {
            Self::Webhook(_)
            | Self::Controller(_)
            | Self::Agent(_)
            | Self::Cleanup(_)
            | Self::Uninstall(_) => "info",
            Self::Check(_)
            | Self::Render(_)
            | Self::Demo(_)
            | Self::Schema(_)
            | Self::Crd(_)
            | Self::Kubectl(_)
            | Self::NodeReport(_)
            | Self::Reach(_)
            | Self::Flows(_)
            | Self::Completion(_)
            | Self::Complete(_)
            | Self::KubectlComplete(_) => "warn",
        }
    }
}

impl Cli {
    /// Reads the command line. A mistake ends the process with what is wrong and the exit code 2.
    ///
    /// Called as `kubectl-pinhole`, as kubectl calls its plugins, everything after that is for `kubectl pinhole`.
    pub fn from_command_line() -> Self {
        let mut arguments: Vec<OsString> = std::env::args_os().collect();
        let name = arguments.first().map(Path::new).and_then(Path::file_name).map(OsStr::to_owned);
        if name.as_ref().is_some_and(|name| name == PLUGIN) {
            let AsPlugin { log, plugin } = AsPlugin::parse_from(arguments);
            return Self { log, command: Command::Kubectl(Box::new(plugin)) };
        }
        if name.is_some_and(|name| name == COMPLETER) {
            arguments.splice(0..1, ["pinhole", "kubectl-complete", "--"].map(OsString::from));
        }
        Self::parse_from(arguments)
    }

    /// Sets up logging and runs the command.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let Self { log: LogFlags { log_level, log_format }, command } = self;
        let log_level = log_level.as_deref().unwrap_or_else(|| command.default_log_level());
        log::install(log_level, log_format, terminal::is_colourful(&std::io::stderr()))?;
        match command {
            Command::Webhook(command) => command.run(),
            Command::Controller(command) => command.run(),
            Command::Agent(command) => command.run(),
            Command::Cleanup(command) => command.run(),
            Command::Uninstall(command) => command.run(),
            Command::Check(command) => command.run(),
            Command::Render(command) => command.run(),
            Command::Demo(command) => command.run(),
            Command::Schema(command) => command.run(),
            Command::Crd(command) => command.run(),
            Command::Kubectl(command) => command.run(),
            Command::NodeReport(command) => command.run(),
            Command::Reach(command) => command.run(),
            Command::Flows(command) => command.run(),
            Command::Completion(command) => command.run(),
            Command::Complete(words) => words.for_shell(),
            Command::KubectlComplete(words) => words.for_kubectl(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_flag_is_an_environment_variable_of_its_name() {
        fn check(command: &clap::Command) {
            for argument in command.get_arguments().filter(|argument| !argument.is_positional()) {
                let flag = argument.get_long().unwrap();
                // What a change is aimed at, and that it is wanted, is said for one command.
                let is_aim = ["to", "to-namespace", "node"].contains(&flag);
                if is_aim || ["help", "version", "force", "yes", "dry-run"].contains(&flag) {
                    continue;
                }
                let expected = format!("PINHOLE_{}", flag.to_uppercase().replace('-', "_"));
                let found = argument.get_env().map(|name| name.to_string_lossy().into_owned());
                assert_eq!(found, Some(expected), "{} --{flag}", command.get_name());
            }
            command.get_subcommands().for_each(check);
        }
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        check(&command);
    }
}
