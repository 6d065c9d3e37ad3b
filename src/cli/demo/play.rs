//! The demo's three chapters: what users apply, what the node programs, what packets do.

use std::net::IpAddr;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::bail;
use serde_json::Value;

use crate::admission::policy::Policy;
use crate::api::annotation::NatAnnotation;
use crate::api::annotation::SourcePort;
use crate::api::keys;
use crate::api::object::Object;
use crate::cli::demo::api_server::ApiServer;
use crate::cli::demo::examples::EXAMPLES;
use crate::cli::demo::examples::Fate;
use crate::cli::demo::namespace::Namespace;
use crate::cli::demo::node::Node;
use crate::cli::demo::story;
use crate::cli::demo::story::Story;
use crate::cli::demo::topology::CLIENT;
use crate::cli::demo::topology::FIXED_ADDRESS;
use crate::cli::demo::topology::NODE;
use crate::cli::demo::topology::NODE_ADDRESS;
use crate::cli::demo::topology::Network;
use crate::cli::demo::topology::POD_CIDR;
use crate::cli::demo::topology::STRANGER;
use crate::cli::demo::traffic;
use crate::cli::demo::traffic::Answer;
use crate::cli::demo::workload;
use crate::cli::manifest;
use crate::dataplane::command::Tools;
use crate::dataplane::iptables::Iptables;
use crate::dataplane::probe;
use crate::dataplane::settings::FlavorChoice;
use crate::dataplane::settings::Settings;
use crate::model::port::Protocol;

/// Everything that the story is played with.
pub(crate) struct Play {
    story: Story,
    settings: Settings,
    /// Nothing where the system grants no namespaces.
    network: Option<Network>,
    api: ApiServer,
    pods: Vec<Pod>,
    /// The workloads above the pods.
    owners: Vec<Object>,
}

/// A pod that runs on the node.
struct Pod {
    object: Object,
    wanted: NatAnnotation,
    namespace: Namespace,
    address: IpAddr,
}

impl Play {
    /// Plays the whole story; returns whether everything happened as told.
    pub(crate) async fn perform(story: Story) -> anyhow::Result<bool> {
        // The host's own lock is for the host's own rules.
        let tools = Tools { lock_file: Some(PathBuf::from("/dev/null")), ..Tools::default() };
        let settings = Settings { tools, ..Settings::default() };
        let dataplane = dataplane(&settings).await?;
        let network = match Network::build(&settings.tools).await {
            Ok(network) => network,
            Err(error) => {
                Self::perform_without_network(story).await?;
                return Err(error.context("the node's rules and packets cannot be shown here"));
            }
        };
        let mut play = Self::begin(story, settings, Some(network)).await?;
        play.apply_manifests().await?;
        let node = play.program_node(dataplane).await?;
        play.exchange_packets().await?;
        node.stop().await?;
        play.api.stop().await?;
        play.story.end()
    }

    /// Plays what needs no namespace: the first chapter.
    pub(crate) async fn perform_without_network(story: Story) -> anyhow::Result<()> {
        let mut play = Self::begin(story, Settings::default(), None).await?;
        play.apply_manifests().await?;
        play.api.stop().await?;
        story::say("")
    }

    async fn begin(story: Story, settings: Settings, network: Option<Network>) -> anyhow::Result<Self> {
        let title =
            "Pinhole: from kubectl apply to packets, without a cluster and without touching this host.";
        story::say(&story.palette.bold(title))?;
        story::say(&format!(
            "\n  internet               {NODE}                         its pods\n  \
             {CLIENT} ---.\n                   \
             +---  {NODE_ADDRESS}, {FIXED_ADDRESS} ---  {POD_CIDR}\n  \
             {STRANGER} ------'"
        ))?;
        let api = ApiServer::start(Policy::default()).await?;
        Ok(Self { story, settings, network, api, pods: Vec::new(), owners: Vec::new() })
    }

    /// The first chapter.
    async fn apply_manifests(&mut self) -> anyhow::Result<()> {
        self.story.chapter("1. Users apply manifests, and the webhook decides while they wait.")?;
        for example in EXAMPLES {
            self.story.command(&format!("kubectl apply -f {}", example.path))?;
            let manifests = manifest::read_text(example.path, example.text, "default");
            for (manifest, fate) in manifests.objects.iter().zip(example.fates) {
                self.apply(manifest.value(), *fate).await?;
            }
        }
        Ok(())
    }

    async fn apply(&mut self, object: Value, fate: Fate) -> anyhow::Result<()> {
        let title = workload::shown(&object);
        let outcome = self.api.create(object).await?;
        for warning in &outcome.warnings {
            story::say(&format!("{} {warning}", self.story.palette.notice("Warning:")))?;
        }
        match outcome.stored {
            Err(status) => {
                let text = self.story.palette.bad(&status.kubectl_text());
                self.story.happened(&text, fate == Fate::Refused, &format!("{title} created"))
            }
            Ok(stored) => {
                let text = self.story.palette.good(&format!("{title} created"));
                self.story.happened(&text, fate != Fate::Refused, &format!("{title} refused"))?;
                if fate == Fate::Runs { self.run(stored).await } else { Ok(()) }
            }
        }
    }

    /// Lets controllers make pods of a workload, and the pod run.
    async fn run(&mut self, stored: Value) -> anyhow::Result<()> {
        let mut object = stored;
        while let Some(child) = workload::child(&object) {
            self.owners.push(self.api.update(&object)?);
            let title = workload::shown(&child);
            object = self.api.create(child).await?.stored.map_err(|status| {
                anyhow::anyhow!("{title}, which a controller made, is refused: {}", status.kubectl_text())
            })?;
        }
        let title = workload::shown(&object);
        let effective = object["metadata"]["annotations"][keys::EFFECTIVE].as_str().unwrap_or_default();
        let wanted: NatAnnotation = serde_json::from_str(effective)
            .with_context(|| format!("{title} has no readable {}: {effective:?}", keys::EFFECTIVE))?;
        story::say(&format!("  {title} is understood as"))?;
        for entry in &wanted.entries {
            story::say(&format!("    {}", serde_json::to_string(entry)?))?;
        }
        let Some(network) = &mut self.network else { return Ok(()) };
        let (namespace, address) = network.add_pod(&self.settings.tools).await?;
        serve(&namespace, &title, &wanted).await?;
        let object = self.api.update(&workload::run(object, NODE, address))?;
        self.pods.push(Pod { object, wanted, namespace, address });
        Ok(())
    }

    /// The second chapter.
    async fn program_node(&mut self, dataplane: Iptables) -> anyhow::Result<Node> {
        self.story
            .chapter(&format!("2. The agent on {NODE} programs what was granted, in one transaction."))?;
        let pods = self.pods.iter().map(|pod| pod.object.clone()).collect();
        let owners = std::mem::take(&mut self.owners);
        let mut node = Node::start(Policy::default(), dataplane, self.settings.clone(), pods, owners)?;
        let events = node.in_sync().await?;
        self.story.command("kubectl get events")?;
        for event in events {
            story::say(&format!(
                "{:<12} pod {}: {}",
                event.reason.name(),
                event.regarding.object,
                event.note
            ))?;
        }
        self.story.command("iptables-save -t nat")?;
        let rules = node.listed().await?;
        let (shown, others): (Vec<_>, Vec<_>) = rules.iter().partition(|rule| rule.contains("-j DNAT"));
        for rule in shown {
            story::say(rule)?;
        }
        story::say(&format!("(and {} rules more that lead here and back)", others.len()))?;
        let wanted: usize = self.pods.iter().map(|pod| pod.wanted.entries.len()).sum();
        let (served, transactions) = (node.served().await?.len(), node.transactions());
        let told = |entries: usize, transactions: u64| {
            let runs = if transactions == 1 { "run" } else { "runs" };
            let pods = self.pods.len();
            format!(
                "Read back from the kernel: {entries} entries for {pods} pods, by {transactions} {runs} of \
                 iptables-restore."
            )
        };
        let as_told = (served, transactions) == (wanted, 1);
        self.story.happened(&told(served, transactions), as_told, &told(wanted, 1))?;
        Ok(node)
    }

    /// The third chapter.
    async fn exchange_packets(&mut self) -> anyhow::Result<()> {
        use Expected::Refused;
        use Expected::Silence;
        use Expected::TellsWho;
        use Protocol::Tcp;
        use Protocol::Udp;

        let network = self.network.take().context("the demo has a network")?;
        self.story.chapter("3. Packets: every pod answers with the address that it saw.")?;
        story::say("")?;
        let (client, stranger) = (IpAddr::from(CLIENT), IpAddr::from(STRANGER));
        let node = |port| SocketAddr::from((NODE_ADDRESS, port));
        let fixed = |port| SocketAddr::from((FIXED_ADDRESS, port));
        let calls = [
            (client, Tcp, node(25), TellsWho("pod/mail", client), ""),
            (client, Tcp, node(443), TellsWho("pod/web", client), ""),
            (client, Udp, node(7003), TellsWho("pod/game-0", client), ""),
            (client, Tcp, fixed(587), TellsWho("pod/smtp-7c9d5b6f4-x2k8p", client), ""),
            (client, Tcp, node(5432), TellsWho("pod/database", client), "its network is in allowedSources"),
            (stranger, Tcp, node(5432), Silence, "dropped: its network is not in allowedSources"),
            (client, Tcp, node(8080), Refused, "nobody asked for this port"),
        ];
        for (from, protocol, to, expected, why) in calls {
            let patience = if matches!(expected, Silence) { traffic::SHORT } else { traffic::LONG };
            let answer = traffic::call(&network.outside, protocol, from, to, patience).await?;
            self.tell_call(from, protocol, to, &answer, &expected, why)?;
        }
        traffic::serve(&network.outside, Tcp, "the client", [25]).await?;
        let mail = self.pods.iter().find(|pod| &*pod.object.metadata.name == "mail").context("mail runs")?;
        let to = SocketAddr::from((CLIENT, 25));
        let answer = traffic::call(&mail.namespace, Tcp, mail.address, to, traffic::LONG).await?;
        let expected = TellsWho("the client", NODE_ADDRESS.into());
        let from = mail.address;
        self.tell_call(
            from,
            Tcp,
            to,
            &answer,
            &expected,
            "a pod leaves with the address that it is reached at",
        )
    }

    fn tell_call(
        &mut self,
        from: IpAddr,
        protocol: Protocol,
        to: SocketAddr,
        answer: &Answer,
        expected: &Expected,
        why: &str,
    ) -> anyhow::Result<()> {
        let expected = match expected {
            Expected::TellsWho(who, whom) => Answer::Told(traffic::introduction(who, *whom)),
            Expected::Refused => Answer::Refused,
            Expected::Silence => Answer::Silence,
        };
        let palette = self.story.palette;
        let answered = match answer {
            Answer::Told(text) => palette.good(text),
            Answer::Refused | Answer::Silence => palette.notice(&answer.to_string()),
        };
        let why = if why.is_empty() { String::new() } else { format!("  ({why})") };
        let text = format!("{from:<15} -> {:<22} {answered}{why}", format!("{to}/{protocol}"));
        self.story.happened(&text, *answer == expected, &expected.to_string())
    }
}

/// What a caller must get.
enum Expected {
    /// An answer of somebody who saw this caller.
    TellsWho(&'static str, IpAddr),
    /// A refusal.
    Refused,
    /// Nothing.
    Silence,
}

/// The programs that the demo needs, found.
async fn dataplane(settings: &Settings) -> anyhow::Result<Iptables> {
    if let Err(error) = settings.tools.run("ip", &["-V"], "").await {
        if error.is_missing() {
            bail!("the demo needs the program `ip`: apt-get install iproute2 iptables");
        }
        return Err(error.into());
    }
    let found = probe::flavor(FlavorChoice::Auto, &settings.tools).await?;
    Ok(Iptables::new(found.flavor, settings.clone()))
}

/// Listens on every port that a pod publishes.
async fn serve(pod: &Namespace, title: &str, wanted: &NatAnnotation) -> anyhow::Result<()> {
    for entry in &wanted.entries {
        let protocol = entry.proto.as_deref().unwrap_or_default().parse()?;
        let more = match (entry.src_port, entry.src_port_end) {
            (SourcePort::Number(first), Some(last)) => last - first,
            _ => 0,
        };
        traffic::serve(pod, protocol, title, entry.dst_port..=entry.dst_port + more).await?;
    }
    Ok(())
}
