//! The verbs of `kubectl pinhole` that change the cluster, and `history`: what operators do.
//!
//! Each says what it will do before it does so, does one thing, and tells what came of it. What is decided is in the modules
//! below, which are pure; here is asked, read and written.

pub(super) mod pause;
mod release;
mod report;
mod transfer;

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::io;
use std::io::IsTerminal;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use crate::allocation::claim::StoredClaim;
use crate::allocation::history;
use crate::allocation::operation::Operation;
use crate::allocation::operation::Outcome;
use crate::api::crd::nat_node::NatNode;
use crate::api::object::Kind;
use crate::api::object::Object;
use crate::cli::plugin::API;
use crate::cli::plugin::AccessFlags;
use crate::cli::plugin::ClusterFlags;
use crate::cli::plugin::FOUND;
use crate::cli::plugin::Output;
use crate::cli::plugin::USAGE;
use crate::cli::plugin::installation;
use crate::cli::plugin::installation::Role;
use crate::cli::plugin::look;
use crate::cli::plugin::observe;
use crate::cli::plugin::observe::Depth;
use crate::cli::plugin::operate::pause::Wish;
use crate::cli::plugin::operate::release::Judgement;
use crate::cli::plugin::operate::transfer::Party;
use crate::cli::plugin::reference::ObjectReference;
use crate::cli::plugin::reference::PortReference;
use crate::cli::plugin::reference::Reference;
use crate::cli::plugin::yaml;
use crate::cli::terminal;
use crate::cli::terminal::Palette;
use crate::cluster::claim_store::ApiClaims;
use crate::cluster::claim_store::ClaimStore;
use crate::cluster::history_store;
use crate::cluster::reader::ReadError;
use crate::cluster::reader::Reader;
use crate::cluster::resource::Resource;
use crate::model::holder::Holder;
use crate::model::holder::ObjectName;

#[derive(Debug, Args)]
pub(super) struct Release {
    /// The external port.
    #[arg(value_name = "ADDRESS:PORT[/PROTO]")]
    port: PortReference,

    /// Also while a pod or a template asks for it.
    #[arg(long)]
    force: bool,

    /// Do not ask.
    #[arg(short = 'y', long)]
    yes: bool,

    #[command(flatten)]
    access: AccessFlags,
}

#[derive(Debug, Args)]
pub(super) struct Transfer {
    /// Who hands over what it has claimed: `deployment/web`, or an external port, for the one that has it.
    #[arg(value_name = "TYPE/NAME|ADDRESS:PORT[/PROTO]")]
    from: Reference,

    /// Who may take it over; it need not be there yet.
    #[arg(long, value_name = "TYPE/NAME")]
    to: ObjectReference,

    /// The namespace of the one that takes over. Default: that of the one that hands over.
    #[arg(long, value_name = "NAME")]
    to_namespace: Option<String>,

    /// Only say what would happen.
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    cluster: ClusterFlags,
}

#[derive(Debug, Args)]
pub(super) struct History {
    /// The external port.
    #[arg(value_name = "ADDRESS:PORT[/PROTO]")]
    port: PortReference,

    /// How to print: `table`, `json` or `yaml`.
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t, env = "PINHOLE_OUTPUT")]
    output: Output,

    #[command(flatten)]
    access: AccessFlags,
}

/// Which nodes.
#[derive(Debug, Args)]
pub(super) struct Nodes {
    /// A node; repeatable. Default: every node that has an agent.
    #[arg(long = "node", value_name = "NAME", value_delimiter = ',')]
    names: Vec<String>,

    #[command(flatten)]
    access: AccessFlags,
}

impl Release {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let Self { port, force, yes, access } = self;
        let (reader, namespace) = access.connect().await?;
        let Some(stored) = claim_of(&reader, &port).await? else {
            eprintln!("pinhole: nobody has claimed {port}");
            return Ok(ExitCode::from(USAGE));
        };
        let seen = look(&reader, &namespace, Depth::Workloads).await?;
        let users = release::users(&stored.claim, &seen.picture);
        terminal::print(&release::text(&stored.claim, &users))?;
        match release::judge(&users, force) {
            Judgement::Refused(reason) => {
                eprintln!("pinhole: {reason}");
                return Ok(ExitCode::from(FOUND));
            }
            Judgement::Free if !yes && !is_agreed("Release it?")? => return Ok(ExitCode::from(FOUND)),
            Judgement::Free => {}
        }
        let deleted = ApiClaims::new(reader.client()).perform(Operation::Delete(stored.version)).await;
        match deleted {
            Outcome::Deleted => {
                terminal::print(&format!("{port} is free\n"))?;
                Ok(ExitCode::SUCCESS)
            }
            Outcome::Failed(failure) => anyhow::bail!("{}", failure.reason),
            _ => {
                eprintln!("pinhole: the claim has changed meanwhile, and nothing was done; look again");
                Ok(ExitCode::from(FOUND))
            }
        }
    }
}

impl Transfer {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let Self { from, to, to_namespace, dry_run, cluster } = self;
        let (reader, namespace) = cluster.connect().await?;
        let mistake = |reason: String| {
            eprintln!("pinhole: {reason}");
            Ok(ExitCode::from(USAGE))
        };
        let from = match from {
            Reference::Object(object) => holder_of(&object, &namespace),
            Reference::Port(port) => match claim_of(&reader, &port).await? {
                Some(stored) => stored.claim.holder,
                None => {
                    return mistake(format!("nobody has claimed {port}"));
                }
            },
        };
        let Some(path) = path_of(&from) else {
            return mistake(format!(
                "{from} is of a kind whose annotations Pinhole does not read; it cannot hand over its ports"
            ));
        };
        let to = holder_of(&to, to_namespace.as_deref().unwrap_or(&from.object.namespace));
        let claims = observe::claims_with(&reader, "spec.holder.namespace", &from.object.namespace).await;
        let claims: Vec<_> = match claims {
            Ok(claims) => claims.into_iter().map(|stored| stored.claim).collect(),
            Err(ReadError::Absent) => {
                return mistake(
                    "ports are not claimed in this cluster, so none can be handed over".to_owned(),
                );
            }
            Err(error) => anyhow::bail!("the PortClaims cannot be read: {error}"),
        };
        let to_path = path_of(&to).context("the kind of --to has no path")?;
        let (giver, heir) = (stored_at(&reader, &path).await?, stored_at(&reader, &to_path).await?);
        let planned = transfer::plan(
            Party { holder: &from, stored: giver.as_ref() },
            Party { holder: &to, stored: heir.as_ref() },
            &claims,
        );
        let plan = match planned {
            Ok(plan) => plan,
            Err(reason) => return mistake(reason),
        };
        terminal::print(&plan.said)?;
        let changes = [(&to_path, &plan.take_back), (&path, &plan.give)].into_iter();
        for (path, change) in
            changes.filter(|_| !dry_run).filter_map(|(path, change)| Some((path, change.as_ref()?)))
        {
            if let Err(error) = reader.merge(path, change).await {
                eprintln!("pinhole: {path} cannot be annotated: {error}");
                return Ok(ExitCode::from(FOUND));
            }
        }
        terminal::print(&transfer::outcome(&plan, &from, dry_run))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The object of a reference as a holder.
fn holder_of(object: &ObjectReference, namespace: &str) -> Holder {
    Holder::new(object.kind.name(), ObjectName::new(namespace, object.name.as_str()))
}

/// Where a holder's object is; `None` for a kind that Pinhole does not know.
fn path_of(holder: &Holder) -> Option<String> {
    let kind = Kind::from_name(&holder.kind)?;
    let version = kind.api_version();
    let root = if version.contains('/') { "/apis" } else { "/api" };
    let ObjectName { namespace, name } = &holder.object;
    Some(format!("{root}/{version}/namespaces/{namespace}/{}/{name}", Resource::Holder(kind).plural()))
}

/// What a path holds, if anything.
async fn stored_at(reader: &Reader, path: &str) -> anyhow::Result<Option<Object>> {
    match reader.get(path).await {
        Ok(found) => {
            Ok(Some(serde_json::from_value(found).with_context(|| format!("{path} cannot be read"))?))
        }
        Err(ReadError::Absent) => Ok(None),
        Err(error) => anyhow::bail!("{path} cannot be read: {error}"),
    }
}

impl History {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let Self { port, output, access } = self;
        let (reader, _) = access.connect().await?;
        let Some(key) = port.key() else {
            eprintln!("pinhole: {} is no address that the outside could connect to", port.address);
            return Ok(ExitCode::from(USAGE));
        };
        let store = store(&reader).await?;
        let numbers: BTreeSet<_> = key.around().into_iter().chain([key]).map(history::page_of).collect();
        let mut stretches = Vec::new();
        for number in numbers {
            let name = history_store::name(&store.name, number);
            let path = format!("/api/v1/namespaces/{}/configmaps/{name}", store.namespace);
            let found = reader.get(&path).await;
            let found =
                found.map_err(|error| anyhow::anyhow!("the history ({path}) cannot be read: {error}"))?;
            stretches.extend(history::about(&history_store::page_in(&found), key));
        }
        stretches.sort_by_key(|(_, stretch)| Reverse(stretch.from));
        let text = match output {
            Output::Table | Output::Wide if stretches.is_empty() => {
                eprintln!("pinhole: nobody is known to have had {port}");
                return Ok(ExitCode::from(FOUND));
            }
            Output::Table | Output::Wide => {
                report::text(&stretches, Palette { is_colourful: terminal::is_colourful(&io::stdout()) })
            }
            Output::Json => serde_json::to_string_pretty(&report::json(&stretches))? + "\n",
            Output::Yaml => yaml::render(&report::json(&stretches)),
        };
        terminal::print(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Where the controller keeps the history.
async fn store(reader: &Reader) -> anyhow::Result<ObjectName> {
    const FLAG: &str = "history-store";
    let deployments = reader.list("/apis/apps/v1/deployments").await;
    let deployments =
        deployments.map_err(|error| anyhow::anyhow!("the Deployments cannot be read: {error}"))?;
    let controllers = installation::parts(&deployments, Role::Controller);
    let store = controllers.iter().find_map(|part| part.flag(FLAG).into_iter().next());
    let store = store.and_then(|store| store.split_once('/'));
    let (namespace, name) = store.context(
        "no controller keeps a history; set claims.enabled=true and claims.controller.history=2160h in the chart",
    )?;
    Ok(ObjectName::new(namespace, name))
}

impl Nodes {
    /// Makes them pause, or go on.
    pub(super) async fn run(self, wish: Wish) -> anyhow::Result<ExitCode> {
        let Self { names, access } = self;
        let (reader, _) = access.connect().await?;
        let listed = reader.list(&format!("{API}/natnodes")).await;
        let listed = listed.map_err(|error| anyhow::anyhow!("the NatNodes cannot be read: {error}"))?;
        let nodes = listed.into_iter().map(serde_json::from_value::<NatNode>).collect::<Result<Vec<_>, _>>();
        let steps = match pause::steps(&nodes.context("a NatNode cannot be read")?, &names, wish) {
            Ok(steps) => steps,
            Err(reason) => {
                eprintln!("pinhole: {reason}");
                return Ok(ExitCode::from(USAGE));
            }
        };
        let mut is_done = true;
        for step in steps {
            let written = match &step.change {
                Some(change) => reader.merge(&format!("{API}/natnodes/{}", step.node), change).await,
                None => Ok(()),
            };
            match written {
                Ok(()) => terminal::print(&format!("{}: {}\n", step.node, step.said))?,
                Err(error) => {
                    is_done = false;
                    eprintln!("pinhole: {}: not written: {error}", step.node);
                }
            }
        }
        Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
    }
}

/// The claim that has this port.
async fn claim_of(reader: &Reader, port: &PortReference) -> anyhow::Result<Option<StoredClaim>> {
    let claims = observe::claims_on(reader, port).await;
    let claims = claims.map_err(|error| anyhow::anyhow!("the PortClaims cannot be read: {error}"))?;
    Ok(claims.into_iter().next())
}

/// Whether somebody at a terminal says yes. Without a terminal nobody can.
fn is_agreed(question: &str) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        eprintln!("pinhole: nobody can be asked here, and nothing was done; say so with --yes");
        return Ok(false);
    }
    eprint!("{question} [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
