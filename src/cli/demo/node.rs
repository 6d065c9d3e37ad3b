//! The demo's node: the real agent with the real loop, fed by hand instead of by watches.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use anyhow::bail;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::admission::policy::Policy;
use crate::agent;
use crate::agent::Agent;
use crate::agent::Config;
use crate::agent::Parts;
use crate::agent::addresses;
use crate::agent::brake::BrakeOverTime;
use crate::agent::links::Linking;
use crate::agent::masquerade::Masquerading;
use crate::agent::node::Networks;
use crate::agent::report::Reporter;
use crate::agent::vigil::Vigil;
use crate::api::object::Kind;
use crate::api::object::Object;
use crate::cli::demo::topology::NODE;
use crate::cli::demo::topology::POD_CIDR;
use crate::cluster::events;
use crate::cluster::events::ObjectEvent;
use crate::cluster::node_pods::NodePods;
use crate::cluster::resource::Resource;
use crate::cluster::watch::News;
use crate::dataplane::Dataplane;
use crate::dataplane::iptables::Iptables;
use crate::dataplane::settings::Settings;
use crate::ruleset::Ruleset;
use crate::ruleset::brake::Brake;
use crate::telemetry::metrics;
use crate::telemetry::metrics::agent::AgentMetrics;
use crate::telemetry::readiness::Readiness;

/// More than a turn of the agent takes on any machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// Nobody else changes its rules.
const RESYNC: Duration = Duration::from_mins(5);

/// The node, with its agent at work.
pub(crate) struct Node {
    dataplane: Arc<Iptables>,
    settings: Settings,
    events: mpsc::Receiver<ObjectEvent>,
    metrics: AgentMetrics,
    readiness: Readiness,
    stop: CancellationToken,
    working: JoinHandle<()>,
}

impl Node {
    /// Starts the agent on a node that runs these pods, managed by these owners.
    pub(crate) fn start(
        policy: Policy,
        dataplane: Iptables,
        settings: Settings,
        pods: Vec<Object>,
        owners: Vec<Object>,
    ) -> anyhow::Result<Self> {
        let policy = Arc::new(policy);
        let known = Arc::new(NodePods::new(policy.clone()));
        let node = json!({"kind": "Node", "metadata": {"name": NODE}, "spec": {"podCIDRs": [POD_CIDR]}});
        known.feed(Resource::Node, News::Listed(vec![serde_json::from_value(node)?]));
        for owner in owners {
            known.feed_owner(owner);
        }
        known.feed(Resource::Holder(Kind::Pod), News::Listed(pods));

        // There is no other node, so these are all pods.
        let networks = Networks { cluster_cidrs: vec![POD_CIDR.parse()?], ..Networks::default() };
        let dataplane = Arc::new(dataplane);
        let readiness = Readiness::new();
        let metrics = AgentMetrics::register(&mut metrics::registry());
        let (offered, events) = events::channel();
        let config = Config {
            node_name: NODE.to_owned(),
            policy,
            resync: RESYNC,
            address_check: Duration::from_secs(5),
            drift_check: Duration::from_secs(5),
        };
        let parts = Parts {
            vigil: Vigil::new(None, RESYNC),
            dataplane: dataplane.clone(),
            pods: known,
            granting: None,
            node: agent::node::Node::new(networks, addresses::read),
            masquerading: Masquerading::default(),
            linking: Linking::default(),
            brake: BrakeOverTime::new(Brake::default(), Duration::ZERO),
            flows: None,
            reporter: Reporter::new(NODE.to_owned(), true, metrics.clone(), Some(offered)),
            metrics: metrics.clone(),
            in_sync: readiness.require("rules", "starting"),
        };
        let stop = CancellationToken::new();
        let working = tokio::spawn(Agent::new(config, parts).run(stop.clone()));
        Ok(Self { dataplane, settings, events, metrics, readiness, stop, working })
    }

    /// Waits until the agent says that the kernel has what it should; returns its Events, as `kubectl describe pod`
    /// would show them.
    pub(crate) async fn in_sync(&mut self) -> anyhow::Result<Vec<ObjectEvent>> {
        let ready = async {
            while !self.readiness.is_ready() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if timeout(PATIENCE, ready).await.is_err() {
            let missing = self.readiness.report().into_iter().find_map(|report| report.missing);
            bail!("the agent is not done after {} s: {}", PATIENCE.as_secs(), missing.unwrap_or_default());
        }
        let mut events = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            events.push(event);
        }
        Ok(events)
    }

    /// How many transactions the agent has made.
    pub(crate) fn transactions(&self) -> u64 {
        self.metrics.restores.get()
    }

    /// What the kernel serves, read back from it.
    pub(crate) async fn served(&self) -> anyhow::Result<Ruleset> {
        Ok(self.dataplane.read().await.context("the rules cannot be read back")?.ruleset)
    }

    /// The kernel's NAT rules, as anybody on the node would list them.
    pub(crate) async fn listed(&self) -> anyhow::Result<Vec<String>> {
        let program = format!("iptables-{}-save", self.dataplane.flavor());
        let text = self.settings.tools.run(&program, &["-t", "nat"], "").await?;
        Ok(text.lines().filter(|line| line.starts_with("-A ")).map(str::to_owned).collect())
    }

    /// Ends the agent as SIGTERM would.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        Ok(self.working.await?)
    }
}
