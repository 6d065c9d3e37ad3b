//! `kubectl pinhole`: what a user asks about ports, answered with nothing but a kubeconfig.
//!
//! The program is this plugin when it is called `kubectl-pinhole`, or as `pinhole kubectl`. Nothing but the verbs of
//! [`operate`] changes the cluster. What a request is worth is decided by the rules of admission and of the agents themselves
//! ([`picture`]); this module and [`observe`] only look, and the others only put into words.

mod age;
mod doctor;
mod examine;
mod explain;
mod finding;
mod ground;
mod installation;
mod list;
mod observe;
mod operate;
mod picture;
pub(crate) mod preflight;
pub(crate) mod reference;
mod table;
#[cfg(test)]
mod testing;
mod trial;
mod yaml;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use clap::Subcommand;
use clap::ValueEnum;
use futures::future;
use k8s_openapi::jiff::Timestamp;

use crate::cli::plugin::list::Width;
use crate::cli::plugin::observe::Depth;
use crate::cli::plugin::observe::Seen;
use crate::cli::plugin::operate::History;
use crate::cli::plugin::operate::Nodes;
use crate::cli::plugin::operate::Release;
use crate::cli::plugin::operate::Transfer;
use crate::cli::plugin::operate::pause::Wish;
use crate::cli::plugin::picture::standing::State;
use crate::cli::plugin::reference::ObjectReference;
use crate::cli::plugin::reference::Reference;
use crate::cli::terminal;
use crate::cli::terminal::Palette;
use crate::cluster::client;
use crate::cluster::client::Source;
use crate::cluster::reader::Reader;
use crate::model::label_selector::LabelSelector;

/// Where our resources are.
const API: &str = "/apis/pinhole.dev/v1alpha1";

/// The exit code when an examination finds a problem.
const FOUND: u8 = 1;

/// The exit code of a user's mistake, such as an object that does not exist.
const USAGE: u8 = 2;

/// Ports, who has them, and why somebody has them not.
#[derive(Debug, Args)]
pub(crate) struct Plugin {
    #[command(subcommand)]
    command: PluginCommand,
}

#[derive(Debug, Subcommand)]
enum PluginCommand {
    /// List external ports: where they lead, who holds them, how they stand.
    List(List),

    /// Say who has a port, why a pod or workload has it not, and what to do next.
    Explain(Explain),

    /// Connect to the ports of a pod or workload from outside the pod network, and tell the client address that the pod
    /// saw.
    #[command(
        after_help = "Exit code: 0 when every port was reached, 1 when one was not, 2 for a wrong command line."
    )]
    Test(Test),

    /// Examine what is installed, or with --preflight whether it could be. Each problem comes with its fix.
    #[command(
        after_help = "Exit code: 0 when no problem was found in what could be checked, 1 when there is one, 2 for \
                            a wrong command line. What could not be checked is told as such."
    )]
    Doctor(Doctor),

    /// Give up the claim on an external port that is stuck, after saying what that breaks.
    #[command(
        after_help = "Exit code: 0 when it was released, 1 when it is in use, was not agreed to, or changed meanwhile, 2 when \
                            nobody has claimed it or for a wrong command line."
    )]
    Release(Release),

    /// Let another workload have the ports that one has claimed, without a moment in which neither or somebody else has them:
    /// for a rename, or for blue and green.
    #[command(
        after_help = "Exit code: 0 when it is said, or with --dry-run could be, 1 when it could not be written, 2 when there is \
                            nothing to hand over or for a wrong command line."
    )]
    Transfer(Transfer),

    /// Who held an external port when, the last holder first: for reports of abuse.
    #[command(
        after_help = "Exit code: 0 when a holder is known, 1 when none is, 2 for an address that cannot be claimed or a wrong \
                            command line."
    )]
    History(History),

    /// Leave the kernels of nodes as they are until `resume`: for work on a node.
    #[command(
        after_help = "Exit code: 0 when it is so on every node, 1 when one could not be written, 2 for a node without NatNode \
                            or a wrong command line."
    )]
    Pause(Nodes),

    /// Let paused nodes go on, and let a mass removal happen that a brake holds back.
    #[command(
        after_help = "Exit code: 0 when it is so on every node, 1 when one could not be written, 2 for a node without NatNode \
                            or a wrong command line."
    )]
    Resume(Nodes),
}

/// Which cluster.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cluster")]
struct AccessFlags {
    /// The cluster to ask. Default: what KUBECONFIG or ~/.kube/config names.
    #[arg(long, value_name = "FILE", env = "PINHOLE_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,

    /// The context of the kubeconfig. Default: its current one.
    #[arg(long, value_name = "NAME", env = "PINHOLE_CONTEXT")]
    context: Option<String>,
}

/// Which cluster and namespace.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cluster")]
struct ClusterFlags {
    #[command(flatten)]
    access: AccessFlags,

    /// The namespace. Default: the context's.
    #[arg(short, long, value_name = "NAME", env = "PINHOLE_NAMESPACE")]
    namespace: Option<String>,
}

#[derive(Debug, Args)]
struct List {
    #[command(flatten)]
    cluster: ClusterFlags,

    /// Every namespace.
    #[arg(short = 'A', long, env = "PINHOLE_ALL_NAMESPACES")]
    all_namespaces: bool,

    /// Only pods and Pinholes with these labels, as in `app=mail` or `tier in (web, mail)`.
    #[arg(
        short = 'l',
        long,
        value_name = "SELECTOR",
        default_value = "",
        hide_default_value = true,
        env = "PINHOLE_SELECTOR"
    )]
    selector: LabelSelector,

    /// How to print: `table`, `wide` with the reasons, `json` or `yaml`.
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t, env = "PINHOLE_OUTPUT")]
    output: Output,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    #[default]
    Table,
    Wide,
    Json,
    Yaml,
}

#[derive(Debug, Args)]
struct Explain {
    /// A pod, workload or Pinhole, or an external port: `pod/web`, `deployment/web`, `pinhole/web`, `203.0.113.7:25`,
    /// `[2001:db8::1]:53/udp`.
    #[arg(value_name = "TYPE/NAME|ADDRESS:PORT[/PROTO]")]
    what: Reference,

    #[command(flatten)]
    cluster: ClusterFlags,
}

#[derive(Debug, Args)]
struct Test {
    /// A pod or workload, as in `pod/web` or `deployment/web`.
    #[arg(value_name = "TYPE/NAME", value_parser = ObjectReference::of_pods)]
    what: ObjectReference,

    #[command(flatten)]
    cluster: ClusterFlags,
}

#[derive(Debug, Args)]
struct Doctor {
    /// Examine whether Pinhole can work in this cluster, before anything is installed.
    #[arg(long, env = "PINHOLE_PREFLIGHT")]
    preflight: bool,

    /// An image of pinhole-agent, by which --preflight looks at the nodes themselves: one short-lived pod per node in
    /// kube-system, with the agent's own rights, deleted afterwards.
    #[arg(long, value_name = "IMAGE", requires = "preflight", env = "PINHOLE_NODE_IMAGE")]
    node_image: Option<String>,

    /// How to print: `text` for people, `json` or `yaml` for programs.
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t, env = "PINHOLE_OUTPUT")]
    output: Report,

    #[command(flatten)]
    cluster: ClusterFlags,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Report {
    #[default]
    Text,
    Json,
    Yaml,
}

impl Plugin {
    /// Answers.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.context("no runtime for network and timers can be made")?;
        runtime.block_on(async {
            match self.command {
                PluginCommand::List(command) => command.run().await,
                PluginCommand::Explain(command) => command.run().await,
                PluginCommand::Test(command) => Box::pin(command.run()).await,
                PluginCommand::Doctor(command) => Box::pin(command.run()).await,
                PluginCommand::Release(command) => Box::pin(command.run()).await,
                PluginCommand::Transfer(command) => Box::pin(command.run()).await,
                PluginCommand::History(command) => command.run().await,
                PluginCommand::Pause(nodes) => nodes.run(Wish::Pause).await,
                PluginCommand::Resume(nodes) => nodes.run(Wish::Resume).await,
            }
        })
    }
}

impl AccessFlags {
    /// A reader of the cluster, and the context's namespace.
    async fn connect(self) -> anyhow::Result<(Reader, String)> {
        let Self { kubeconfig, context } = self;
        let source = kubeconfig.map_or(Source::Usual, Source::File);
        let (connection, default) = client::connect_in(&source, context.as_deref()).await?;
        Ok((Reader::new(connection.client), default))
    }
}

impl ClusterFlags {
    /// A reader of the cluster, and the namespace that is meant.
    async fn connect(self) -> anyhow::Result<(Reader, String)> {
        let Self { access, namespace } = self;
        let (reader, default) = access.connect().await?;
        Ok((reader, namespace.unwrap_or(default)))
    }
}

impl List {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let Self { cluster, all_namespaces, selector, output } = self;
        let (reader, namespace) = cluster.connect().await?;
        let seen = look(&reader, &namespace, Depth::Pods).await?;
        let mut standings = seen.picture.standings();
        standings.retain(|one| {
            (all_namespaces || *one.asker.name().namespace == *namespace)
                && (selector.is_empty() || selector.selects(&one.labels))
        });
        let palette = Palette { is_colourful: terminal::is_colourful(&io::stdout()) };
        let table = |width| list::text(&standings, width, Timestamp::now(), palette);
        let text = match output {
            Output::Table | Output::Wide if standings.is_empty() => {
                let place = if all_namespaces {
                    "any namespace".to_owned()
                } else {
                    format!("namespace {namespace}")
                };
                let asker = if seen.picture.pinholes.is_some() { "No pod and no Pinhole" } else { "No pod" };
                eprintln!("{asker} in {place} asks for a port.");
                String::new()
            }
            Output::Table => table(Width::Usual),
            Output::Wide => table(Width::Wide),
            Output::Json => serde_json::to_string_pretty(&list::json(&standings))? + "\n",
            Output::Yaml => yaml::render(&list::json(&standings)),
        };
        terminal::print(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Explain {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let Self { what, cluster } = self;
        let (reader, namespace) = cluster.connect().await?;
        let seen = look(&reader, &namespace, Depth::Workloads).await?;
        let palette = Palette { is_colourful: terminal::is_colourful(&io::stdout()) };
        let text = match &what {
            Reference::Port(port) => {
                // Not everybody has the right to read them.
                let stored = observe::claims_on(&reader, port).await.unwrap_or_else(|error| {
                    hint(&format!("the PortClaims cannot be read: {error}"));
                    Vec::new()
                });
                let claims = stored.into_iter().map(|stored| observe::with_cooldown(&reader, stored));
                let claims = future::join_all(claims).await;
                explain::port::port(&seen.picture, &namespace, port, &claims, palette)
            }
            Reference::Object(object) => {
                let Some(text) = explain::object(&seen.picture, &namespace, object, palette) else {
                    eprintln!("pinhole: there is no {object} in namespace {namespace}; name another with -n");
                    return Ok(ExitCode::from(USAGE));
                };
                text
            }
        };
        terminal::print(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Test {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let Self { what, cluster } = self;
        let (reader, namespace) = cluster.connect().await?;
        let seen = look(&reader, &namespace, Depth::Workloads).await?;
        let Some(standings) = explain::standings_of(&seen.picture, &namespace, &what) else {
            eprintln!("pinhole: there is no {what} in namespace {namespace}; name another with -n");
            return Ok(ExitCode::from(USAGE));
        };
        let palette = Palette { is_colourful: terminal::is_colourful(&io::stdout()) };
        let (ready, others): (Vec<_>, Vec<_>) =
            standings.into_iter().partition(|one| one.key.is_some() && trial::can_be_tried(one.state));
        let mut is_reached = !ready.is_empty() && others.iter().all(|one| one.state == State::Waiting);
        for standing in ready {
            let Some(key) = standing.key else { continue };
            let trial = trial::attempt(&reader, standing, &key, &seen.agents.pods).await;
            is_reached = is_reached && trial.verdict() == trial::Verdict::Reached;
            terminal::print(&trial.text(palette))?;
        }
        for one in &others {
            let state = one.state.tone().paint(palette, one.state.name());
            terminal::print(&format!("{}: {state}, so it was not tried\n", palette.name(&one.external)))?;
        }
        if !is_reached {
            eprintln!(
                "pinhole: not every port was reached; kubectl pinhole explain -n {namespace} {what} says more"
            );
        }
        Ok(if is_reached { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
    }
}

impl Doctor {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let Self { preflight, node_image, output, cluster } = self;
        let (reader, namespace) = cluster.connect().await?;
        let findings = if preflight {
            preflight::findings(&Box::pin(ground::look(&reader, node_image.as_deref())).await)
        } else {
            doctor::findings(&Box::pin(examine::installation(&reader, &namespace)).await)
        };
        terminal::print(&match output {
            Report::Text => {
                finding::text(&findings, Palette { is_colourful: terminal::is_colourful(&io::stdout()) })
            }
            Report::Json => serde_json::to_string_pretty(&finding::json(&findings))? + "\n",
            Report::Yaml => yaml::render(&finding::json(&findings)),
        })?;
        Ok(if finding::problems(&findings) == 0 { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
    }
}

/// Looks at the cluster and tells on standard error what could not be seen.
async fn look(reader: &Reader, namespace: &str, depth: Depth) -> anyhow::Result<Seen> {
    let seen = observe::look(reader, namespace, depth).await;
    let seen = seen.map_err(|error| anyhow::anyhow!("the pods cannot be read: {error}"))?;
    seen.hints.iter().for_each(|told| hint(told));
    Ok(seen)
}

/// Tells on standard error what could not be seen.
fn hint(told: &str) {
    let palette = Palette { is_colourful: terminal::is_colourful(&io::stderr()) };
    eprintln!("{}: {told}", palette.name("hint"));
}
