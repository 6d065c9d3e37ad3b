//! Behaviour of the loop over a kernel in memory: what is fed to the agent, and what the kernel then holds.

mod claims;
mod cluster;
mod masquerade;
mod remote;
mod written;

use std::future::Future;
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use ipnet::IpNet;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::*;
use crate::agent::addresses::Addresses;
use crate::agent::node::Learning;
use crate::agent::node::Networks;
use crate::api::crd::nat_node::NatNode;
use crate::api::crd::nat_node::NatNodeSpec;
use crate::api::object::Kind;
use crate::api::object::Object;
use crate::cluster::events;
use crate::cluster::events::ObjectEvent;
use crate::cluster::nat_nodes::Stored;
use crate::cluster::resource::Resource;
use crate::cluster::watch::News;
use crate::dataplane::DataplaneError;
use crate::dataplane::Failure;
use crate::dataplane::Transaction;
use crate::dataplane::condition::Condition as KernelCondition;
use crate::model::address::Family;
use crate::ruleset::brake::Brake;
use crate::telemetry::metrics;
use crate::telemetry::readiness::Readiness;

const POD: Resource = Resource::Holder(Kind::Pod);
const PATIENCE: Duration = Duration::from_secs(10);

/// A kernel in memory that can be slow, fail, and be changed by others.
#[derive(Debug, Default)]
struct Kernel {
    ruleset: Mutex<Ruleset>,
    fails: AtomicBool,
    /// It does not take entries for this port.
    refuses: AtomicUsize,
    delay_ms: AtomicUsize,
    reads: AtomicUsize,
    applies: AtomicUsize,
    refusals: AtomicUsize,
    transactions: AtomicUsize,
}

impl Kernel {
    fn entries(&self) -> Vec<String> {
        self.ruleset.lock().unwrap().entries().map(ToString::to_string).collect()
    }

    fn count(&self) -> usize {
        self.ruleset.lock().unwrap().len()
    }

    /// Each pod that leaves with a fixed address, and the address.
    fn egress(&self) -> Vec<String> {
        let ruleset = self.ruleset.lock().unwrap();
        ruleset.egress().map(|egress| format!("{} {}", egress.pod, egress.external)).collect()
    }
}

impl Dataplane for Kernel {
    async fn read(&self) -> Result<Observed, DataplaneError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        Ok(Observed { ruleset: self.ruleset.lock().unwrap().clone(), ..Observed::default() })
    }

    async fn apply(&self, desired: &Ruleset, observed: Observed) -> Applied {
        self.applies.fetch_add(1, Ordering::SeqCst);
        let delay = u64::try_from(self.delay_ms.load(Ordering::SeqCst)).unwrap();
        tokio::time::sleep(Duration::from_millis(delay)).await;
        if self.fails.load(Ordering::SeqCst) {
            let error = DataplaneError::NoIptables("iptables is being upgraded".into());
            let failures = vec![Failure { family: Family::V4, error }];
            return Applied { observed, failures, ..Applied::default() };
        }
        let mut ruleset = self.ruleset.lock().unwrap();
        let mut taken = desired.clone();
        let mut refused = Vec::new();
        for entry in desired.entries() {
            if usize::from(entry.key.ports.first().get()) == self.refuses.load(Ordering::SeqCst) {
                taken.remove(&entry.key);
                refused.push(KernelRefused { entry: entry.clone(), error: "unknown match".into() });
            }
        }
        self.refusals.fetch_add(refused.len(), Ordering::SeqCst);
        let changes = diff(&ruleset, &taken);
        *ruleset = taken.clone();
        let transaction =
            Transaction { family: Family::V4, input: String::new(), chains: changes.len(), elements: 0 };
        let transactions: Vec<_> = (!changes.is_empty()).then_some(transaction).into_iter().collect();
        self.transactions.fetch_add(transactions.len(), Ordering::SeqCst);
        let observed = Observed { ruleset: taken, ..Observed::default() };
        Applied { observed, changes, refused, transactions, ..Applied::default() }
    }

    fn conditions(&self, _desired: &Ruleset) -> impl Future<Output = Vec<KernelCondition>> + Send {
        std::future::ready(Vec::new())
    }
}

/// A running agent and everything around it.
struct Bench {
    kernel: Arc<Kernel>,
    pods: Arc<NodePods>,
    public: Arc<Mutex<&'static str>>,
    metrics: AgentMetrics,
    readiness: Readiness,
    flows: Flows,
    events: mpsc::Receiver<ObjectEvent>,
    granting: Option<(Arc<KnownPinholes>, Arc<Reports>)>,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

struct Settings {
    kernel: Kernel,
    resync: Duration,
    grace: Duration,
    brake: Brake,
    granted: Option<Arc<KnownPinholes>>,
    masquerading: Masquerading,
    cluster_cidrs: Vec<IpNet>,
    learning: Option<Learning>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            kernel: Kernel::default(),
            resync: Duration::from_mins(5),
            grace: Duration::from_mins(10),
            brake: Brake::default(),
            granted: None,
            masquerading: Masquerading::default(),
            cluster_cidrs: Vec::new(),
            learning: None,
        }
    }
}

impl Bench {
    fn start(settings: Settings) -> Self {
        Self::start_with(settings, None)
    }

    fn start_with(settings: Settings, desk: Option<Desk>) -> Self {
        let kernel = Arc::new(settings.kernel);
        let policy = Arc::new(Policy::default());
        let pods = Arc::new(NodePods::new(Arc::clone(&policy)));
        let public = Arc::new(Mutex::new("203.0.113.7"));
        let metrics = AgentMetrics::register(&mut metrics::registry());
        let readiness = Readiness::new();
        let flows = Flows::default();
        let (sender, events) = events::channel();
        let current = Arc::clone(&public);
        let addresses = move || {
            let address: Ipv4Addr = current.lock().unwrap().parse().unwrap();
            Ok(Addresses {
                lasting: [address.into()].into(),
                default_v4: Some(address),
                ..Addresses::default()
            })
        };
        let networks = Networks { cluster_cidrs: settings.cluster_cidrs, ..Networks::default() };
        let mut node = Node::new(networks, addresses);
        if let Some(learning) = settings.learning {
            node = node.with_learning(learning);
        }
        let granting = settings.granted.map(|pinholes| (pinholes, Arc::<Reports>::default()));
        let parts = Parts {
            vigil: Vigil::new(None, settings.resync),
            dataplane: Arc::clone(&kernel),
            pods: Arc::clone(&pods),
            granting: granting.clone().map(|(pinholes, reports)| Granting { pinholes, reports }),
            node,
            masquerading: settings.masquerading,
            linking: Linking::default(),
            brake: BrakeOverTime::new(settings.brake, settings.grace),
            flows: Some(flows.clone()),
            reporter: Reporter::new("node-1".into(), true, metrics.clone(), Some(sender)),
            metrics: metrics.clone(),
            in_sync: readiness.require("rules", "starting"),
        };
        let config = Config {
            node_name: "node-1".into(),
            policy,
            resync: settings.resync,
            address_check: Duration::from_millis(20),
            drift_check: Duration::from_secs(5),
        };
        let stop = CancellationToken::new();
        let agent = Agent { desk, ..Agent::new(config, parts) };
        let running = tokio::spawn(agent.run(stop.clone()));
        Self { kernel, pods, public, metrics, readiness, flows, events, granting, stop, running }
    }

    /// An agent that knows its node and these pods.
    fn with_pods(settings: Settings, pods: Vec<Object>) -> Self {
        let bench = Self::start(settings);
        bench.list_node();
        bench.pods.feed(POD, News::Listed(pods));
        bench
    }

    fn list_node(&self) {
        let node =
            json!({"kind": "Node", "metadata": {"name": "node-1"}, "spec": {"podCIDRs": ["10.244.0.0/16"]}});
        self.pods.feed(Resource::Node, News::Listed(vec![serde_json::from_value(node).unwrap()]));
    }

    fn apply(&self, pod: Object) {
        self.pods.feed(POD, News::Applied(Box::new(pod)));
    }

    fn missing(&self) -> String {
        self.readiness.report().into_iter().filter_map(|report| report.missing).collect()
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let waited = tokio::time::timeout(PATIENCE, async {
            while !holds(self) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        let state = || format!("{what}: {:?}, not ready: {:?}", self.kernel.entries(), self.missing());
        assert!(waited.await.is_ok(), "{}", state());
    }

    async fn end(self) -> Arc<Kernel> {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.running).await.unwrap().unwrap();
        self.kernel
    }
}

fn pod(number: u16) -> Object {
    let json = json!({
        "kind": "Pod",
        "metadata": {
            "namespace": "mail", "name": format!("pod-{number}"), "uid": format!("uid-{number}"),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": {"pinhole.dev/expose": format!("{}:80", 7000 + number)},
        },
        "spec": {"nodeName": "node-1"},
        "status": {
            "phase": "Running", "podIPs": [{"ip": format!("10.244.{}.{}", number / 250, number % 250 + 1)}],
            "conditions": [{"type": "ContainersReady", "status": "True"}],
        },
    });
    serde_json::from_value(json).unwrap()
}

/// The same pod, whose ports are closed, as a later version of it.
fn suspended(mut pod: Object) -> Object {
    pod.metadata.annotations.insert("pinhole.dev/suspended".into(), "true".into());
    pod.metadata.resource_version = "2".to_owned();
    pod
}

fn exposing(mut pod: Object, expose: &str) -> Object {
    pod.metadata.annotations.insert("pinhole.dev/expose".into(), expose.into());
    pod
}

/// A kernel that an agent left with these pods.
async fn left_by_an_agent(pods: impl IntoIterator<Item = u16>) -> Kernel {
    let pods: Vec<_> = pods.into_iter().map(pod).collect();
    let count = pods.len();
    let bench = Bench::with_pods(Settings::default(), pods);
    bench.until("programmed", |bench| bench.kernel.count() == count).await;
    let ruleset = bench.end().await.ruleset.lock().unwrap().clone();
    Kernel { ruleset: Mutex::new(ruleset), ..Kernel::default() }
}

#[tokio::test]
async fn r05_nothing_is_changed_before_every_list_came_and_nothing_that_is_right_afterwards() {
    let bench = Bench::start(Settings { kernel: left_by_an_agent([1, 2]).await, ..Settings::default() });
    bench.pods.feed(POD, News::Listed(vec![pod(1), pod(2)]));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(bench.kernel.reads.load(Ordering::SeqCst), 0, "the node is not known yet");
    assert_eq!(bench.missing(), "waiting for the first list of nodes from the API server");
    bench.list_node();
    bench.until("ready", |bench| bench.readiness.is_ready()).await;
    assert_eq!(bench.kernel.transactions.load(Ordering::SeqCst), 0);
    assert_eq!(bench.kernel.count(), 2);
}

#[tokio::test]
async fn a_node_that_does_not_exist_changes_nothing_and_is_named() {
    let bench = Bench::start(Settings { kernel: left_by_an_agent([1]).await, ..Settings::default() });
    bench.pods.feed(Resource::Node, News::Listed(Vec::new()));
    bench.pods.feed(POD, News::Listed(Vec::new()));
    bench.until("told", |bench| bench.missing().contains("there is no Node node-1")).await;
    assert_eq!(bench.kernel.count(), 1);
}

#[tokio::test]
async fn r11_what_was_deleted_while_the_agent_was_down_is_removed() {
    let settings = Settings { kernel: left_by_an_agent([1, 2]).await, ..Settings::default() };
    let bench = Bench::with_pods(settings, vec![pod(2)]);
    bench.until("removed", |bench| bench.kernel.count() == 1).await;
    assert_eq!(bench.kernel.entries(), ["203.0.113.7:7002/tcp -> 10.244.0.3:80"]);
}

#[tokio::test]
async fn a_suspended_pod_s_ports_are_closed_and_kept_until_it_is_no_longer() {
    let bench = Bench::with_pods(Settings::default(), vec![pod(1)]);
    let open = "203.0.113.7:7001/tcp -> 10.244.0.2:80";
    bench.until("open", |bench| bench.kernel.entries() == [open]).await;
    bench.apply(suspended(pod(1)));
    bench.until("closed", |bench| bench.kernel.entries() == ["203.0.113.7:7001/tcp -> reserved"]).await;
    let mut again = pod(1);
    again.metadata.resource_version = "3".to_owned();
    bench.apply(again);
    bench.until("open again", |bench| bench.kernel.entries() == [open]).await;
}

#[tokio::test]
async fn r10_an_edited_port_closes_the_old_one_in_the_same_turn() {
    let bench = Bench::with_pods(Settings::default(), vec![pod(1)]);
    bench.until("programmed", |bench| bench.kernel.count() == 1).await;
    bench.apply(exposing(pod(1), "7999:80"));
    let edited = ["203.0.113.7:7999/tcp -> 10.244.0.2:80"];
    bench.until("edited", |bench| bench.kernel.entries() == edited).await;
}

#[tokio::test]
async fn r37_the_agent_is_ready_only_while_the_kernel_has_what_it_should() {
    let bench = Bench::with_pods(Settings::default(), vec![pod(1)]);
    bench.until("ready", |bench| bench.readiness.is_ready()).await;
    bench.kernel.fails.store(true, Ordering::SeqCst);
    bench.apply(pod(2));
    bench.until("unready", |bench| bench.missing() == "IPv4: iptables is being upgraded").await;
    assert_eq!(bench.metrics.in_sync.get(), 0);
    bench.kernel.fails.store(false, Ordering::SeqCst);
    bench.until("ready again", |bench| bench.readiness.is_ready()).await;
    assert_eq!(bench.kernel.count(), 2);
}

#[tokio::test]
async fn r13_a_removal_that_failed_is_made_up_for_without_any_further_event() {
    let bench = Bench::with_pods(Settings::default(), vec![pod(1), pod(2)]);
    bench.until("programmed", |bench| bench.kernel.count() == 2).await;
    bench.kernel.fails.store(true, Ordering::SeqCst);
    bench.pods.feed(POD, News::Deleted(Box::new(pod(1))));
    bench.until("failed", |bench| 0 < bench.metrics.failures.get()).await;
    assert_eq!(bench.kernel.count(), 2);
    bench.kernel.fails.store(false, Ordering::SeqCst);
    bench.until("removed", |bench| bench.kernel.count() == 1).await;
    assert_eq!(bench.metrics.repairs.get(), 0, "our own failure is nobody's drift");
}

#[tokio::test]
async fn r08_an_entry_that_the_kernel_refuses_blocks_no_other_and_is_tried_again_at_a_resync_only() {
    let kernel = Kernel { refuses: AtomicUsize::new(7001), ..Kernel::default() };
    let mut bench = Bench::with_pods(Settings { kernel, ..Settings::default() }, vec![pod(1), pod(2)]);
    bench.until("ready", |bench| bench.readiness.is_ready()).await;
    assert_eq!(bench.kernel.count(), 1);
    bench.apply(pod(3));
    bench.until("programmed", |bench| bench.kernel.count() == 2).await;
    assert_eq!(bench.kernel.refusals.load(Ordering::SeqCst), 1, "asked once");
    let told = std::iter::from_fn(|| bench.events.try_recv().ok()).map(|event| event.note);
    let problem =
        "203.0.113.7:7001/tcp -> 10.244.0.2:80: the kernel of node-1 does not take it: unknown match";
    assert_eq!(told.filter(|note| note == problem).count(), 1);
}

#[tokio::test]
async fn r37_a_node_whose_kernel_takes_no_entry_at_all_is_not_ready() {
    let kernel = Kernel { refuses: AtomicUsize::new(7001), ..Kernel::default() };
    let bench = Bench::with_pods(Settings { kernel, ..Settings::default() }, vec![pod(1)]);
    let expected = "the kernel takes no entry at all: 203.0.113.7:7001/tcp -> 10.244.0.2:80: unknown match";
    bench.until("told", |bench| bench.missing() == expected).await;
    bench.apply(pod(2));
    bench.until("ready", |bench| bench.readiness.is_ready()).await;
}

#[tokio::test]
async fn r42_a_slow_kernel_delays_no_watch_and_gets_the_changes_together() {
    let bench = Bench::with_pods(Settings::default(), Vec::new());
    bench.until("ready", |bench| bench.readiness.is_ready()).await;
    bench.kernel.delay_ms.store(200, Ordering::SeqCst);
    let applies = bench.kernel.applies.load(Ordering::SeqCst);
    let started = Instant::now();
    for number in 0..500 {
        bench.apply(pod(number));
        tokio::task::yield_now().await;
    }
    assert!(started.elapsed() < Duration::from_secs(2), "feeding took {:?}", started.elapsed());
    bench.until("all", |bench| bench.kernel.count() == 500).await;
    let made = bench.kernel.applies.load(Ordering::SeqCst) - applies;
    assert!(made <= 15, "{made} changes of the kernel for 500 pods");
}

#[tokio::test]
async fn r16_a_resync_writes_nothing_and_tells_nobody_anything_twice() {
    let resync = Duration::from_millis(20);
    let loser = exposing(pod(2), "7001:80");
    let mut bench = Bench::with_pods(Settings { resync, ..Settings::default() }, vec![pod(1), loser]);
    bench.until("ten resyncs", |bench| 10 < bench.kernel.reads.load(Ordering::SeqCst)).await;
    assert_eq!(bench.kernel.transactions.load(Ordering::SeqCst), 1);
    let mut told = Vec::new();
    while let Ok(event) = bench.events.try_recv() {
        told.push(format!("{} {} {}", event.regarding.object, event.reason.name(), event.note));
    }
    assert_eq!(
        told,
        [
            "mail/pod-1 Programmed 203.0.113.7:7001/tcp -> 10.244.0.2:80 on node-1",
            "mail/pod-2 PortTaken 7001/tcp: is served on this node for Pod mail/pod-1; choose another \
             external port, or remove it there first",
        ]
    );
}

#[tokio::test]
async fn r26_what_others_change_is_repaired_at_the_next_resync_and_counted() {
    let resync = Duration::from_millis(50);
    let bench = Bench::with_pods(Settings { resync, ..Settings::default() }, vec![pod(1)]);
    bench.until("programmed", |bench| bench.kernel.count() == 1).await;
    *bench.kernel.ruleset.lock().unwrap() = Ruleset::default();
    bench.until("repaired", |bench| bench.kernel.count() == 1).await;
    bench.until("counted", |bench| 0 < bench.metrics.repairs.get()).await;
}

#[tokio::test]
async fn the_brake_withholds_a_mass_removal_until_its_grace_time_is_over() {
    let kernel = left_by_an_agent(0..30).await;
    let settings = Settings { kernel, grace: Duration::from_secs(2), ..Settings::default() };
    let bench = Bench::with_pods(settings, vec![pod(40)]);
    bench.until("told", |bench| bench.missing().contains("30 of 30 entries would be removed at once")).await;
    assert_eq!(bench.kernel.count(), 31, "the new one is served, and nothing is removed");
    assert_eq!(bench.metrics.withheld.get(), 30);
    bench.until("removed", |bench| bench.kernel.count() == 1).await;
    bench.until("ready", |bench| bench.readiness.is_ready()).await;
    assert_eq!(bench.metrics.withheld.get(), 0);
}

#[tokio::test]
async fn no_connection_ends_while_the_brake_holds_and_all_of_pods_that_stay_away_do_afterwards() {
    let settings = Settings { grace: Duration::from_secs(1), ..Settings::default() };
    let bench = Bench::with_pods(settings, (0..30).map(pod).collect());
    bench.until("programmed", |bench| bench.kernel.count() == 30).await;
    bench.pods.feed(POD, News::Listed(Vec::new()));
    bench.until("told", |bench| bench.missing().contains("the brake holds back")).await;
    assert_eq!(bench.flows.gone(), BTreeSet::new());
    bench.pods.feed(POD, News::Listed((5..30).map(pod).collect()));
    bench.until("ready", |bench| bench.kernel.count() == 25 && bench.readiness.is_ready()).await;
    bench.until("the five that are gone", |bench| bench.flows.gone().len() == 5).await;
}

#[tokio::test]
async fn while_the_brake_holds_nothing_leads_to_a_pod_that_got_the_address_of_another() {
    let settings = Settings { kernel: left_by_an_agent(0..30).await, ..Settings::default() };
    let mut other = pod(1);
    other.metadata.name = "other".to_owned();
    other.metadata.uid = "another".to_owned();
    other.metadata.annotations.clear();
    let bench = Bench::with_pods(settings, vec![other]);
    let closed = "203.0.113.7:7001/tcp -> reserved";
    bench.until("closed", |bench| bench.kernel.entries().iter().any(|entry| entry == closed)).await;
    let open = bench.kernel.entries().iter().filter(|entry| !entry.ends_with("reserved")).count();
    assert_eq!((bench.kernel.count(), open), (30, 29));
}

#[tokio::test]
async fn the_brake_lets_go_when_an_operator_names_what_it_holds_back() {
    let spec = |resume: &str| {
        let spec = NatNodeSpec { paused: false, resume: Some(resume.to_owned()) };
        Stored::Present(Arc::new(NatNode::new("node-1", spec)))
    };
    let (stored_tx, stored_rx) = watch::channel(spec("what was held back last year"));
    let (desk, situation_rx) = Desk::new(stored_rx);
    let settings = Settings { kernel: left_by_an_agent(0..30).await, ..Settings::default() };
    let bench = Bench::start_with(settings, Some(desk));
    bench.list_node();
    bench.pods.feed(POD, News::Listed(Vec::new()));
    let asked = || situation_rx.borrow().as_ref().and_then(|told| told.brake.clone());
    bench.until("told", |_| asked().is_some()).await;
    assert_eq!(bench.kernel.count(), 30);
    stored_tx.send_replace(spec(&asked().unwrap()));
    bench.until("removed", |bench| bench.kernel.count() == 0).await;
    bench.until("nothing is held back any more", |_| asked().is_none()).await;
    bench.end().await;
}

#[tokio::test]
async fn the_brake_is_released_when_the_pods_come_back() {
    let settings = Settings { kernel: left_by_an_agent(0..30).await, ..Settings::default() };
    let bench = Bench::with_pods(settings, Vec::new());
    bench.until("told", |bench| bench.missing().contains("the brake holds back")).await;
    bench.pods.feed(POD, News::Listed((0..30).map(pod).collect()));
    bench.until("ready", |bench| bench.readiness.is_ready()).await;
    assert_eq!(bench.kernel.count(), 30);
    assert_eq!(bench.kernel.transactions.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn r31_entries_follow_the_node_s_address() {
    let bench = Bench::with_pods(Settings::default(), vec![pod(1)]);
    bench.until("programmed", |bench| bench.kernel.count() == 1).await;
    *bench.public.lock().unwrap() = "203.0.113.8";
    let moved = ["203.0.113.8:7001/tcp -> 10.244.0.2:80"];
    bench.until("moved", |bench| bench.kernel.entries() == moved).await;
}

#[tokio::test]
async fn r40_stopping_leaves_the_rules_and_starting_again_changes_none() {
    let kernel = left_by_an_agent([1, 2, 3]).await;
    assert_eq!(kernel.count(), 3);
    let bench = Bench::with_pods(Settings { kernel, ..Settings::default() }, (1..4).map(pod).collect());
    bench.until("ready", |bench| bench.readiness.is_ready()).await;
    assert_eq!(bench.end().await.transactions.load(Ordering::SeqCst), 0);
}

fn stored(is_paused: bool) -> Stored {
    Stored::Present(Arc::new(NatNode::new("node-1", NatNodeSpec { paused: is_paused, resume: None })))
}

#[tokio::test]
async fn a_paused_node_is_looked_at_and_not_changed_until_it_is_no_longer_paused() {
    let (stored_tx, stored_rx) = watch::channel(Stored::Unknown);
    let (desk, situation_rx) = Desk::new(stored_rx);
    let bench = Bench::start_with(Settings::default(), Some(desk));
    bench.list_node();
    bench.pods.feed(POD, News::Listed(vec![pod(25)]));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(bench.kernel.reads.load(Ordering::SeqCst), 0, "whether it is paused is not known yet");
    assert!(bench.missing().contains("natnodes"), "{}", bench.missing());

    stored_tx.send_replace(stored(true));
    bench.until("a paused agent is ready", |bench| bench.missing().is_empty()).await;
    bench.apply(pod(26));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(bench.kernel.applies.load(Ordering::SeqCst), 0);
    let told = situation_rx.borrow().clone().unwrap();
    assert!(told.is_paused);
    assert_eq!((told.entries, told.missing, bench.metrics.in_sync.get()), (0, 2, 0));

    stored_tx.send_replace(stored(false));
    bench.until("both are programmed", |bench| bench.kernel.count() == 2).await;
    stored_tx.send_replace(stored(true));
    bench.until("it is paused again", |bench| bench.metrics.paused.get() == 1).await;
    let told = situation_rx.borrow().clone().unwrap();
    assert_eq!((told.entries, told.missing, told.trouble), (2, 0, None));
    bench.pods.feed(POD, News::Listed(Vec::new()));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(bench.end().await.count(), 2, "what is programmed stays");
}

#[tokio::test]
async fn a_node_that_is_paused_while_the_brake_holds_rests_and_the_brake_has_its_time_again_afterwards() {
    let (stored_tx, stored_rx) = watch::channel(stored(false));
    let (desk, situation_rx) = Desk::new(stored_rx);
    let grace = Duration::from_millis(700);
    let settings = Settings { kernel: left_by_an_agent(0..30).await, grace, ..Settings::default() };
    let bench = Bench::start_with(settings, Some(desk));
    bench.list_node();
    bench.pods.feed(POD, News::Listed(Vec::new()));
    bench.until("the brake holds", |bench| bench.missing().contains("the brake holds back")).await;
    stored_tx.send_replace(stored(true));
    bench.until("it is paused", |bench| bench.metrics.paused.get() == 1).await;
    tokio::time::sleep(grace).await;
    let turns = std::cell::Cell::new(0);
    let mut news = situation_rx.clone();
    news.mark_unchanged();
    let _ = tokio::time::timeout(Duration::from_millis(200), async {
        while news.changed().await.is_ok() {
            turns.set(turns.get() + 1);
        }
    })
    .await;
    assert!(turns.get() <= 2, "{} turns in 200 ms", turns.get());
    assert_eq!((bench.kernel.count(), bench.metrics.in_sync.get()), (30, 0));
    let unpaused = Instant::now();
    stored_tx.send_replace(stored(false));
    bench.until("removed", |bench| bench.kernel.count() == 0).await;
    assert!(grace <= unpaused.elapsed(), "{:?}", unpaused.elapsed());
    bench.end().await;
}

#[tokio::test]
async fn a_cluster_without_nat_nodes_keeps_nothing_from_being_programmed() {
    let (_stored_tx, stored_rx) = watch::channel(Stored::Absent);
    let (desk, situation_rx) = Desk::new(stored_rx);
    let bench = Bench::start_with(Settings::default(), Some(desk));
    bench.list_node();
    bench.pods.feed(POD, News::Listed(vec![pod(25)]));
    bench.until("it is programmed", |bench| bench.kernel.count() == 1).await;
    bench.until("it is told", |_| situation_rx.borrow().as_ref().is_some_and(|told| told.entries == 1)).await;
    bench.end().await;
}
