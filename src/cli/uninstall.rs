//! `pinhole uninstall`: takes everything of ours out of the cluster and its nodes.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use k8s_openapi::api::apps::v1::DaemonSet;

use crate::cli::duration;
use crate::cli::terminal;
use crate::cluster::client;
use crate::cluster::client::Source;
use crate::cluster::removal::Installation;
use crate::cluster::removal::Target;
use crate::cluster::removal::every::Every;
use crate::uninstall;
use crate::uninstall::Extent;
use crate::uninstall::Plan;

/// The flags of `pinhole uninstall`.
#[derive(Debug, Args)]
pub(crate) struct Uninstall {
    /// The cluster. Default: what KUBECONFIG or ~/.kube/config names, else the cluster around this pod.
    #[arg(long, value_name = "FILE", env = "PINHOLE_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,

    /// The namespace of the installation. Default: that of the kubeconfig or of this pod.
    #[arg(long, value_name = "NAME", env = "PINHOLE_NAMESPACE")]
    namespace: Option<String>,

    /// The name of the two webhook configurations. They are deleted first.
    #[arg(long, value_name = "NAME", default_value = "pinhole", env = "PINHOLE_WEBHOOK_CONFIGURATION")]
    webhook_configuration: String,

    /// The agents' DaemonSet. Its pods must have ended before the nodes are cleaned.
    #[arg(long, value_name = "NAME", default_value = "pinhole-agent", env = "PINHOLE_AGENT_DAEMON_SET")]
    agent_daemon_set: String,

    /// A manifest of the DaemonSet whose pods clean the nodes: ready means clean. Without it nodes stay as they are.
    #[arg(long, value_name = "FILE", env = "PINHOLE_CLEANUP_MANIFEST")]
    cleanup_manifest: Option<PathBuf>,

    /// What else to delete in the namespace, as kubectl names it: secrets/NAME, or certificates.v1.cert-manager.io/NAME.
    /// Repeatable.
    #[arg(long, value_name = "RESOURCE/NAME", value_delimiter = ',', env = "PINHOLE_DELETE")]
    delete: Vec<Target>,

    /// Kinds of which to delete everything in the whole cluster: portclaims.v1alpha1.pinhole.dev, or only what has a label,
    /// with ?KEY=VALUE behind it. Repeatable.
    #[arg(long, value_name = "KIND[?LABEL]", env = "PINHOLE_DELETE_EVERY", value_delimiter = ',')]
    delete_every: Vec<Every>,

    /// Kinds whose objects stay, but without the finalizers of Pinhole, which nobody is left to take off. Repeatable.
    #[arg(long, value_name = "KIND", env = "PINHOLE_LET_GO", value_delimiter = ',')]
    let_go: Vec<Every>,

    /// Let pods go that wait at the scheduling gate of Pinhole for ports that nobody is left to find.
    #[arg(long, env = "PINHOLE_LIFT_GATES")]
    lift_gates: bool,

    /// Only end claims, as where they are turned off: neither calls nor agents nor nodes are touched. What --delete names goes last.
    #[arg(long, env = "PINHOLE_CLAIMS_ONLY", conflicts_with = "cleanup_manifest")]
    claims_only: bool,

    /// When to give up. What is done by then stays done.
    #[arg(long, value_name = "DURATION", default_value = "4m", value_parser = duration::parse,
          env = "PINHOLE_DEADLINE")]
    deadline: Duration,
}

impl Uninstall {
    /// Removes everything, and says what is left to be done by hand.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.context("no runtime for network and timers can be made")?.block_on(self.remove())
    }

    async fn remove(self) -> anyhow::Result<ExitCode> {
        let Self {
            kubeconfig,
            namespace,
            webhook_configuration,
            agent_daemon_set,
            cleanup_manifest,
            delete,
            delete_every,
            let_go,
            lift_gates,
            claims_only,
            deadline,
        } = self;
        let connection = client::connect(&kubeconfig.map_or(Source::Usual, Source::File)).await?;
        let namespace = namespace.unwrap_or_else(|| connection.client.default_namespace().to_owned());
        let cleanup = cleanup_manifest.as_deref().map(|path| read(path, &namespace)).transpose()?;
        let by_hand = cleanup.as_ref().and_then(uninstall::by_hand);
        let plan = Plan {
            configuration: webhook_configuration,
            agents: agent_daemon_set,
            cleanup,
            leftovers: delete,
            kinds: delete_every,
            kept_kinds: let_go,
            lifts_gates: lift_gates,
            extent: if claims_only { Extent::Claims } else { Extent::Everything },
            deadline,
        };
        let outcome = uninstall::run(Installation::new(connection.client, namespace), plan).await?;
        let text = if claims_only { outcome.text_of_claims() } else { outcome.text(by_hand.as_ref()) };
        terminal::print(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn read(path: &Path, namespace: &str) -> anyhow::Result<DaemonSet> {
    let what = || format!("--cleanup-manifest {}", path.display());
    let text = fs::read_to_string(path).with_context(what)?;
    let manifest: DaemonSet = serde_saphyr::from_str(&text).with_context(what)?;
    anyhow::ensure!(manifest.metadata.name.is_some(), "{}: the DaemonSet has no name", what());
    let home = manifest.metadata.namespace.as_deref();
    anyhow::ensure!(
        home.is_none_or(|home| home == namespace),
        "{}: the DaemonSet belongs into the namespace {namespace}, not {}; pass --namespace to change that",
        what(),
        home.unwrap_or_default()
    );
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "\
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: cleanup, namespace: nat}
spec:
  selector: {matchLabels: {app: cleanup}}
  template:
    spec:
      initContainers: [{name: cleanup, image: pinhole-agent:1, args: [cleanup]}]
      containers: [{name: stay, image: pinhole-agent:1}]
";

    fn reading(text: &str) -> anyhow::Result<DaemonSet> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cleanup.yaml");
        fs::write(&path, text).unwrap();
        read(&path, "nat")
    }

    #[test]
    fn the_manifest_says_how_nodes_are_cleaned_by_hand() {
        let by_hand = uninstall::by_hand(&reading(MANIFEST).unwrap()).unwrap();
        assert_eq!(
            (by_hand.image.as_str(), by_hand.arguments.join(" ").as_str()),
            ("pinhole-agent:1", "cleanup")
        );
    }

    #[test]
    fn a_manifest_that_cannot_be_used_is_named() {
        let cases = [
            (MANIFEST.replace("kind: DaemonSet", "kind: Deployment"), "expected DaemonSet"),
            (MANIFEST.replace("name: cleanup, namespace", "namespace"), "the DaemonSet has no name"),
            (
                MANIFEST.replace("namespace: nat", "namespace: default"),
                "belongs into the namespace nat, not default",
            ),
        ];
        for (text, expected) in cases {
            let error = format!("{:#}", reading(&text).unwrap_err());
            assert!(error.contains("--cleanup-manifest") && error.contains(expected), "{error}");
        }
    }
}
