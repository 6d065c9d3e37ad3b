//! `pinhole demo`: the whole way from `kubectl apply` to packets, on one machine and without a cluster.
//!
//! The webhook, the agent and the rules are the real ones; node, pods and clients are network namespaces that end with
//! the process. Nothing of the host is read or changed. Every step is checked: the demo is a test that can be watched.

mod api_server;
mod examples;
mod namespace;
mod node;
mod play;
mod story;
mod topology;
mod traffic;
mod workload;

use std::io;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use tokio::runtime;

use crate::cli::demo::play::Play;
use crate::cli::demo::story::Story;
use crate::cli::terminal;
use crate::cli::terminal::Palette;

/// The flags of `pinhole demo`: none.
#[derive(Debug, Args)]
#[command(
    after_help = "Needs Linux, root or user namespaces, and Debian's packages iproute2 and iptables. Exit code: 0 \
                        when everything happened as told, else 1."
)]
pub(crate) struct Demo {}

impl Demo {
    /// Plays the story and checks that it is true.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let Self {} = self;
        let story = Story::new(Palette { is_colourful: terminal::is_colourful(&io::stdout()) });
        // Before there is a runtime: its threads must be in the node's namespace.
        let entered = namespace::enter();
        let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        match entered {
            Ok(()) => {
                let as_told = runtime.block_on(Play::perform(story))?;
                Ok(if as_told { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
            Err(error) => {
                runtime.block_on(Play::perform_without_network(story))?;
                bail!(
                    "the node's rules and packets cannot be shown here: they need network namespaces, and this system \
                     grants none ({error}). Run the demo as root (in a container: privileged), or allow user \
                     namespaces (Debian: sysctl kernel.unprivileged_userns_clone=1, Ubuntu: sysctl \
                     kernel.apparmor_restrict_unprivileged_userns=0). `pinhole render` prints rules anywhere"
                )
            }
        }
    }
}
