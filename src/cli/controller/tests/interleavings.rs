//! Controller and agents as a state machine: pods that come and go, with ports by name, found by a pool or of their node's own address,
//! which can be another one by then, views that lag, writes that are lost, processes that are killed between any two steps, in any order. Everything but the API server is the real code.

mod gateway;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::jiff::SignedDuration;
use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;
use serde_json::json;

use crate::admission::index::Index;
use crate::admission::index::occupants::Occupants;
use crate::admission::index::occupants::Source;
use crate::admission::policy::Policy;
use crate::agent::desired;
use crate::agent::grants::Grants;
use crate::agent::statements;
use crate::allocation::acquire::Acquisition;
use crate::allocation::acquire::Purpose;
use crate::allocation::acquire::Verdict;
use crate::allocation::claim::Claim;
use crate::allocation::key::ClaimKey;
use crate::allocation::life::Change;
use crate::allocation::memory::Memory;
use crate::allocation::operation::Operation;
use crate::allocation::pool::Pool;
use crate::api::object::Object;
use crate::cluster::asking_pods;
use crate::cluster::asking_pods::AskingPods;
use crate::cluster::claim_watch::Claims;
use crate::cluster::informers;
use crate::cluster::pinhole_reports::Report;
use crate::cluster::pinhole_watch::Pinholes;
use crate::cluster::watch::News;
use crate::controller::automatic;
use crate::controller::automatic::Found;
use crate::controller::pinholes;
use crate::controller::pinholes::Write;
use crate::controller::plan;
use crate::controller::plan::Missing;
use crate::controller::plan::Planned;
use crate::controller::plan::Times;
use crate::controller::releasing::Patience;
use crate::controller::standing;
use crate::controller::standing::HandedOver;
use crate::controller::standing::Known;
use crate::controller::standing::Waiting;
use crate::dataplane::Applied;
use crate::dataplane::Observed;
use crate::model::address::ExternalAddress;
use crate::model::holder::Holder;
use crate::model::holder::ObjectName;
use crate::ruleset::Ruleset;
use crate::ruleset::node::NodeFacts;
use crate::ruleset::owner::Owner;

/// Longer than any test: no port may be safe only because time ran out.
const NEVER: SignedDuration = SignedDuration::from_hours(24 * 365);
/// What a node gets at the end, so that a pod that came and went before anything was written of it leaves nothing.
const TIMEOUT: SignedDuration = SignedDuration::from_secs(300);
const COOLDOWN: SignedDuration = SignedDuration::from_secs(60);
const ADDRESS: &str = "203.0.113.7";
/// The longest that a watch of the controller lags.
const LAG: i64 = 30;
const NAMES: [&str; 2] = ["a", "b"];
static NOTHING: HandedOver = HandedOver::new();
const NODES: usize = 2;
/// The addresses that each node can call its own: first the one of the pool, which pods ask for by name, too.
const OWN: [[&str; 2]; NODES] = [[ADDRESS, "203.0.113.9"], ["203.0.113.8", "203.0.113.9"]];

#[derive(Default)]
struct Node {
    pods: AskingPods,
    pinholes: Pinholes,
    kernel: Ruleset,
    unwritten: Vec<Report>,
    has_listed: bool,
    /// Which of its addresses it calls its own.
    own: usize,
}

/// What a pod asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// A port of the pool's address by name.
    Named(u16),
    /// A port of the own address of its node.
    OfNode(u16),
    /// It leaves it to the pool.
    Found,
}

struct World {
    /// Whether only the first node has the address, so that it serves the pods of the other one, too.
    has_gateway: bool,
    now: i64,
    timeout: SignedDuration,
    revision: u64,
    policy: Arc<Policy>,
    pools: Arc<[Pool]>,
    store: Memory,
    pods: AskingPods,
    pinholes: Pinholes,
    nodes: [Node; NODES],
    /// Whose each pod is, and its UID.
    holders: BTreeMap<Owner, (Holder, String)>,
    /// What the controller knows.
    known_pods: AskingPods,
    known_claims: Claims,
    known_pinholes: Pinholes,
    known_since: i64,
    /// What the NatNodes say to be own addresses, and what the controller knows of that.
    nat_nodes: [Option<usize>; NODES],
    known_nat_nodes: [Option<usize>; NODES],
}

#[derive(Clone, Debug)]
enum Step {
    Create {
        name: usize,
        holder: usize,
        node: usize,
        asked: Asked,
    },
    Ask {
        name: usize,
        asked: Asked,
    },
    /// A node calls another address its own.
    Readdress(usize),
    Find(usize),
    Delete(usize),
    LookAtPods,
    LookAtClaims,
    LookAtPinholes,
    Claim(usize),
    Keep(usize),
    DeletePinhole(usize),
    AgentHearsOfPods(usize),
    AgentHearsOfPinholes(usize),
    AgentTurn {
        node: usize,
        is_braked: bool,
    },
    AgentWrites(usize),
    AgentIsKilled(usize),
    Pass(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (name, node) = (0..NAMES.len(), 0..NODES);
    let asked = prop_oneof![
        2 => (25..27u16).prop_map(Asked::Named),
        2 => (25..27u16).prop_map(Asked::OfNode),
        2 => Just(Asked::Found),
    ];
    let any = 0..16usize;
    let step = prop_oneof![
        3 => (name.clone(), 0..2usize, node.clone(), asked.clone())
            .prop_map(|(name, holder, node, asked)| Step::Create { name, holder, node, asked }),
        1 => (name.clone(), asked).prop_map(|(name, asked)| Step::Ask { name, asked }),
        1 => node.clone().prop_map(Step::Readdress),
        3 => name.clone().prop_map(Step::Delete),
        3 => name.clone().prop_map(Step::Find),
        3 => Just(Step::LookAtPods),
        3 => Just(Step::LookAtClaims),
        5 => Just(Step::LookAtPinholes),
        5 => any.clone().prop_map(Step::Claim),
        9 => any.prop_map(Step::Keep),
        1 => name.prop_map(Step::DeletePinhole),
        4 => node.clone().prop_map(Step::AgentHearsOfPods),
        5 => node.clone().prop_map(Step::AgentHearsOfPinholes),
        5 => (node.clone(), proptest::bool::weighted(0.2))
            .prop_map(|(node, is_braked)| Step::AgentTurn { node, is_braked }),
        4 => node.clone().prop_map(Step::AgentWrites),
        1 => node.prop_map(Step::AgentIsKilled),
        3 => (1..70i64).prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 1..400)
}

fn pool() -> Pool {
    let spec = json!({"addresses": [ADDRESS], "ports": [{"first": 25, "last": 26, "staticBand": 0}],
        "namespaces": {"all": true}, "cooldownSeconds": COOLDOWN.as_secs()});
    Pool::read("edge", &serde_json::from_value(spec).unwrap()).unwrap()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn name(number: usize) -> ObjectName {
    ObjectName::new("mail", NAMES[number])
}

fn node_name(number: usize) -> String {
    format!("node-{number}")
}

impl World {
    fn new() -> Self {
        Self {
            has_gateway: false,
            now: 0,
            timeout: NEVER,
            revision: 0,
            policy: Arc::default(),
            pools: [pool()].into(),
            store: Memory::default(),
            pods: AskingPods::new(),
            pinholes: Pinholes::new(),
            nodes: Default::default(),
            holders: BTreeMap::new(),
            known_pods: AskingPods::new(),
            known_claims: Claims::new(),
            known_pinholes: Pinholes::new(),
            known_since: 0,
            nat_nodes: [None; NODES],
            known_nat_nodes: [None; NODES],
        }
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Create { name, holder, node, asked } => self.create(name, holder, node, asked),
            Step::Ask { name: number, asked } => {
                if let Some(pod) = self.pods.get(&name(number)).cloned() {
                    self.ask(pod, asked);
                }
            }
            Step::Readdress(node) => self.nodes[node].own = 1 - self.nodes[node].own,
            Step::Delete(number) => {
                self.pods.remove(&name(number));
            }
            Step::Find(number) => self.find(number),
            Step::LookAtPods => {
                self.known_pods = self.listed();
                self.known_nat_nodes = self.nat_nodes;
            }
            Step::LookAtClaims => self.look_at_claims(),
            Step::LookAtPinholes => self.known_pinholes.clone_from(&self.pinholes),
            Step::Claim(number) => self.claim(number),
            Step::Keep(number) => self.keep(number),
            Step::DeletePinhole(number) => {
                if let Some(pinhole) = self.pinholes.get_mut(&name(number)) {
                    pinhole.metadata.deletion_timestamp =
                        serde_json::from_value(json!("2026-01-01T00:00:00Z")).ok();
                    pinhole.metadata.generation =
                        pinhole.metadata.generation.map(|generation| generation + 1);
                    self.revise(&name(number));
                }
            }
            Step::AgentHearsOfPods(node) => self.hear_of_pods(node),
            Step::AgentHearsOfPinholes(node) => self.hear_of_pinholes(node),
            Step::AgentTurn { node, is_braked } => self.agent_turn(node, is_braked),
            Step::AgentWrites(node) => self.agent_writes(node),
            Step::AgentIsKilled(node) => {
                let Node { kernel, own, .. } = std::mem::take(&mut self.nodes[node]);
                self.nodes[node] = Node { kernel, own, ..Node::default() };
            }
            Step::Pass(seconds) => {
                self.now += seconds;
                if LAG < self.now - self.known_since {
                    self.look();
                }
            }
        }
    }

    fn create(&mut self, number: usize, holder: usize, node: usize, asked: Asked) {
        if self.pods.contains_key(&name(number)) {
            return;
        }
        self.revision += 1;
        let uid = format!("uid-{}", self.revision);
        let pod = json!({
            "kind": "Pod",
            "metadata": {
                "namespace": "mail", "name": NAMES[number], "uid": uid, "creationTimestamp": at(self.now).to_string(),
                "ownerReferences": [{"kind": "GameSet", "name": format!("set-{holder}"), "uid": "1", "controller": true}],
            },
            "spec": {"nodeName": node_name(node)},
            "status": {"phase": "Running", "podIPs": [{"ip": format!("10.244.{}.9", self.revision % 250)}]},
        });
        let holder = Holder::new("GameSet", ObjectName::new("mail", format!("set-{holder}")));
        self.holders.insert(Owner::new(&name(number), &uid), (holder, uid));
        self.ask(serde_json::from_value(pod).unwrap(), asked);
    }

    /// Admission: a pod is stored with what was claimed for it; the controller sees to the rest.
    fn ask(&mut self, mut pod: Object, asked: Asked) {
        let name = ObjectName::new("mail", pod.metadata.name.as_str());
        let (holder, _) = self.holders[&Owner::new(&name, &pod.metadata.uid)].clone();
        let wish = |port| {
            let key = format!("v4-203-0-113-7-tcp-{port}").parse().unwrap();
            vec![Claim::reserve(key, holder, at(self.now))]
        };
        let (asks, wishes) = match asked {
            Asked::Named(port) => (format!("{ADDRESS}:{port}"), Some(wish(port))),
            Asked::OfNode(port) => (port.to_string(), None),
            Asked::Found => ("auto:25".to_owned(), None),
        };
        if wishes.is_none_or(|wishes| self.acquire(wishes)) {
            pod.metadata.annotations = [("pinhole.dev/expose".to_owned(), asks)].into();
            self.revision += 1;
            pod.metadata.resource_version = self.revision.to_string();
            self.pods.insert(name, pod);
        }
    }

    /// Whether all of them were granted.
    fn acquire(&mut self, wishes: Vec<Claim>) -> bool {
        let mut acquisition = Acquisition::new(wishes, Purpose::Reserve, at(self.now), COOLDOWN);
        while let Some(operation) = acquisition.next() {
            acquisition.take(self.store.perform(operation));
        }
        acquisition.verdict() == Some(&Verdict::Granted)
    }

    /// The controller finds a port for a pod that leaves it to the pool.
    fn find(&mut self, number: usize) {
        let index = self.index(&self.known_pods);
        let (found, waiting) = (Found::of(&self.known_claims), Waiting::new());
        let known = self.known(&index, &found, &waiting);
        let Some(pod) = self.known_pods.get(&name(number)) else { return };
        let Some(standing) = standing::stand(pod, &known).filter(|standing| standing.open().next().is_some())
        else {
            return;
        };
        if let Ok(wishes) = automatic::choose(pod, &standing, &known, &BTreeSet::new(), 0, at(self.now)) {
            self.acquire(wishes);
        }
    }

    fn known<'a>(&'a self, index: &'a Index, found: &'a Found<'a>, waiting: &'a Waiting) -> Known<'a> {
        let claims = &self.known_claims;
        Known { claims, found, waiting, handed_over: &NOTHING, index, policy: &self.policy }
    }

    /// The pods as the controller's watch hands them on.
    fn listed(&self) -> AskingPods {
        let mut listed: Vec<_> = self.pods.values().cloned().collect();
        listed.retain_mut(|pod| informers::trim(pod, &self.policy));
        let mut pods = AskingPods::new();
        asking_pods::feed(&mut pods, &News::Listed(listed), &self.policy);
        pods
    }

    fn look(&mut self) {
        self.known_pods = self.listed();
        self.known_nat_nodes = self.nat_nodes;
        self.known_pinholes.clone_from(&self.pinholes);
        self.look_at_claims();
        self.known_since = self.now;
    }

    fn look_at_claims(&mut self) {
        self.known_claims = self.store.claims().map(|stored| (stored.claim.key, stored.clone())).collect();
    }

    fn index(&self, pods: &AskingPods) -> Index {
        let mut index = Index::new(Arc::clone(&self.policy));
        index.set_pools(Some(Arc::clone(&self.pools)));
        for node in 0..NODES {
            let node = json!({"kind": "Node", "metadata": {"name": node_name(node)},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
            index.apply(&serde_json::from_value(node).unwrap());
        }
        for (node, own) in self.known_nat_nodes.iter().enumerate() {
            let own = own.map(|own| (OWN[node][own].parse().unwrap(), true));
            let gateway = (self.has_gateway && node == 0).then(|| (ADDRESS.parse().unwrap(), false));
            index.set_occupants(Occupants {
                source: Source::NatNode(node_name(node).into()),
                version: None,
                taken: Vec::new(),
                addresses: own.into_iter().chain(gateway).collect(),
            });
        }
        for pod in pods.values() {
            index.apply(pod);
        }
        index
    }

    /// One change of a claim, or the claims that one object lacks; the controller may be killed before it makes another.
    fn claim(&mut self, number: usize) {
        let times = Times { release: self.timeout, cooldown: COOLDOWN };
        let index = self.index(&self.known_pods);
        let plan = plan::plan(&self.known_claims, &index, &self.known_pinholes, &times, at(self.now));
        let count = plan.changes.len() + plan.missing.len();
        if count == 0 {
            return;
        }
        let Some(Planned { stored, change }) = plan.changes.get(number % count).cloned() else {
            let Missing { claims, .. } = plan.missing[number % count - plan.changes.len()].clone();
            self.acquire(claims);
            return;
        };
        let operation = match change {
            Change::Update(claim) => Operation::Update(*claim, stored.version),
            Change::Delete => Operation::Delete(stored.version),
        };
        self.store.perform(operation);
    }

    /// One write of a Pinhole.
    fn keep(&mut self, number: usize) {
        let index = self.index(&self.known_pods);
        let (found, waiting) = (Found::of(&self.known_claims), Waiting::new());
        let known = self.known(&index, &found, &waiting);
        let patience = Patience::of(&known, self.timeout, at(self.now));
        let plan = pinholes::plan(&self.known_pods, &self.known_pinholes, &known, &patience);
        // What a pod is told, no agent reads.
        let is_told = |write: &Write| matches!(write, Write::Announce { .. });
        let writes: Vec<_> = plan.writes.into_iter().filter(|write| !is_told(write)).collect();
        if !writes.is_empty() {
            self.store(writes[number % writes.len()].clone());
        }
    }

    /// As the API server stores it, or refuses to.
    fn store(&mut self, write: Write) {
        let (Write::Apply(pinhole) | Write::Report(pinhole) | Write::Delete(pinhole)) = &write else {
            unreachable!("only what users write is labelled, and here nobody writes a Pinhole: {write:?}");
        };
        let name = ObjectName::new("mail", pinhole.metadata.name.clone().unwrap());
        let stored = self.pinholes.get(&name).cloned();
        if pinhole.metadata.uid.is_some() {
            let version =
                |pinhole: &crate::api::crd::pinhole::Pinhole| pinhole.metadata.resource_version.clone();
            if stored.as_ref().map(version) != Some(version(pinhole)) {
                return;
            }
        }
        match write {
            Write::Apply(mut pinhole) => {
                self.revision += 1;
                let known = stored.unwrap_or_else(|| {
                    let mut made = (*pinhole).clone();
                    made.metadata.uid = Some(format!("pinhole-{}", self.revision));
                    made.metadata.generation = Some(1);
                    made
                });
                let generation = known.metadata.generation.unwrap() + i64::from(known.spec != pinhole.spec);
                pinhole.metadata.uid = known.metadata.uid;
                pinhole.metadata.deletion_timestamp = known.metadata.deletion_timestamp;
                pinhole.metadata.generation = Some(generation);
                pinhole.status = known.status;
                self.pinholes.insert(name.clone(), *pinhole);
                self.revise(&name);
            }
            Write::Report(pinhole) => {
                let Some(known) = self.pinholes.get_mut(&name) else { return };
                let nodes = known.status.take().unwrap_or_default().nodes;
                known.status =
                    pinhole.status.map(|status| crate::api::crd::pinhole::PinholeStatus { nodes, ..status });
                self.revise(&name);
            }
            Write::Delete(_) => {
                self.pinholes.remove(&name);
            }
            Write::Label(_) | Write::Announce { .. } | Write::Gate { .. } => {}
        }
    }

    fn revise(&mut self, name: &ObjectName) {
        self.revision += 1;
        let revision = self.revision.to_string();
        if let Some(pinhole) = self.pinholes.get_mut(name) {
            pinhole.metadata.resource_version = Some(revision);
        }
    }

    fn hear_of_pods(&mut self, node: usize) {
        let is_here = |pod: &Object| pod.spec.node_name.as_deref() == Some(&node_name(node));
        let here = self.pods.iter().filter(|(_, pod)| is_here(pod));
        self.nodes[node].pods = here.map(|(name, pod)| (name.clone(), pod.clone())).collect();
    }

    fn hear_of_pinholes(&mut self, node: usize) {
        let label = crate::api::keys::node_label(&node_name(node));
        let here = self.pinholes.iter().filter(|(_, pinhole)| {
            pinhole.metadata.labels.iter().flatten().any(|(found, _)| *found == label)
        });
        self.nodes[node].pinholes = here.map(|(name, pinhole)| (name.clone(), pinhole.clone())).collect();
    }

    fn agent_turn(&mut self, number: usize, is_braked: bool) {
        if !self.nodes[number].has_listed {
            self.hear_of_pods(number);
            self.hear_of_pinholes(number);
            self.nodes[number].has_listed = true;
        }
        let node = &mut self.nodes[number];
        let own = OWN[number][node.own];
        let has_address = !self.has_gateway || number == 0;
        let addresses = has_address.then_some(ADDRESS).into_iter().chain([own]);
        let facts = NodeFacts {
            addresses: addresses.map(|address| address.parse().unwrap()).collect(),
            node_v4: own.parse().ok(),
            ..NodeFacts::default()
        };
        let grants = Grants::of(&node.pinholes, &node_name(number));
        let plan = desired::plan(&desired::Known {
            pods: &node.pods,
            index: &Index::new(Arc::clone(&self.policy)),
            policy: &self.policy,
            node: &facts,
            programmed: &node.kernel,
            grants: Some(&grants),
        });
        // A brake holds removals back; here it is a kernel that takes nothing.
        if !is_braked {
            node.kernel = plan.ruleset.clone();
        }
        let observed = Observed { ruleset: node.kernel.clone(), ..Observed::default() };
        let applied = Applied { observed, ..Applied::default() };
        node.unwritten = statements::news(
            &node.pinholes,
            &statements::Seen {
                node_name: &node_name(number),
                plan: &plan,
                applied: &applied,
                grants: &grants,
                disclose_holder: true,
                is_paused: false,
            },
        );
    }

    fn agent_writes(&mut self, node: usize) {
        self.nat_nodes[node] = Some(self.nodes[node].own);
        for Report { pinhole: name, uid, report } in std::mem::take(&mut self.nodes[node].unwritten) {
            let Some(stored) = self.pinholes.get_mut(&name) else { continue };
            if stored.metadata.uid.as_ref() != Some(&uid) {
                continue;
            }
            let nodes = &mut stored.status.get_or_insert_default().nodes;
            nodes.retain(|known| known.name != report.name);
            nodes.push(report);
            self.revise(&name);
        }
    }

    /// Every entry of every kernel belongs to the one that has the port's claim.
    fn check(&self) {
        let entries = self.nodes.iter().flat_map(|node| node.kernel.entries());
        let claims: BTreeMap<_, _> =
            self.store.claims().map(|stored| (stored.claim.key, &stored.claim)).collect();
        for entry in entries {
            let address = ExternalAddress::new(entry.key.external).unwrap();
            let [key] = ClaimKey::of_range(address, entry.key.protocol, entry.key.ports)[..] else {
                unreachable!("nobody asks for ranges: {entry}");
            };
            let claim = claims.get(&key);
            // What was found for a pod is that pod's alone.
            let (holder, uid) = &self.holders[&entry.owner];
            let is_of_pod = |slot: &String| slot.starts_with(&format!("{uid}/"));
            let is_its = |claim: &Claim| claim.holder == *holder && claim.slot.as_ref().is_none_or(is_of_pod);
            assert!(
                claim.is_some_and(|claim| is_its(claim)),
                "{entry} of {} is served and claimed by somebody else: {claim:?}",
                entry.owner
            );
        }
    }

    /// Everything ends, and everybody has all the time they need.
    fn end(&mut self) {
        self.pods.clear();
        self.timeout = TIMEOUT;
        for _ in 0..20 {
            self.now += 200;
            for node in 0..NODES {
                self.hear_of_pods(node);
                self.hear_of_pinholes(node);
                self.agent_turn(node, false);
                self.agent_writes(node);
            }
            self.look();
            for number in 0..4 {
                self.keep(number);
                self.claim(number);
                self.look();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_kernel_forwards_a_port_to_one_that_somebody_else_was_granted(
        has_gateway in any::<bool>(),
        steps in steps(),
    ) {
        let mut world = World { has_gateway, ..World::new() };
        for step in &steps {
            world.take(step);
            world.check();
        }
        world.end();
        let claims: Vec<_> = world.store.claims().collect();
        prop_assert!(claims.is_empty(), "claims leaked: {claims:?}");
        prop_assert!(world.pinholes.is_empty(), "Pinholes leaked: {:?}", world.pinholes);
        prop_assert!(world.nodes.iter().all(|node| node.kernel.is_empty()));
    }
}

/// What everybody does in turn, the agent of the first node perhaps without news of pods.
fn round(hears_of_pods: bool) -> Vec<Step> {
    use Step::*;
    let agent = |node| [AgentHearsOfPinholes(node), AgentTurn { node, is_braked: false }, AgentWrites(node)];
    let mut steps = vec![LookAtPods, LookAtPinholes, LookAtClaims, Find(0), Find(1), LookAtClaims];
    steps.extend([Claim(0), Claim(1), Keep(0), Keep(1), LookAtPinholes]);
    steps.extend(hears_of_pods.then_some(AgentHearsOfPods(0)));
    steps.extend(agent(0));
    steps.extend([LookAtPinholes, Keep(0), LookAtPinholes, AgentHearsOfPods(1)]);
    steps.extend(agent(1));
    steps.push(Pass(31));
    steps
}

/// A world in which the first node serves a pod, its own or one of the other node, and at which port.
fn serving(asked: Asked, has_gateway: bool) -> (World, u16) {
    let mut world = World { has_gateway, ..World::new() };
    let create = vec![Step::Create { name: 0, holder: 0, node: usize::from(has_gateway), asked }];
    for step in &[create, round(true), round(true), round(true)].concat() {
        world.take(step);
    }
    let served: Vec<_> = world.nodes[0].kernel.entries().map(|entry| entry.key.ports.first().get()).collect();
    assert_eq!(served.len(), 1, "the pod is served");
    if let Asked::Named(port) | Asked::OfNode(port) = asked {
        assert_eq!(port, served[0]);
    }
    world.take(&Step::Pass(100));
    (world, served[0])
}

#[test]
fn whichever_step_is_lost_a_port_is_nobody_elses_before_it_is_out_of_the_kernel() {
    use Step::*;
    // What is found for a pod is an address of its own node.
    let cases = [
        (Asked::Named(25), false),
        (Asked::OfNode(25), false),
        (Asked::Found, false),
        (Asked::Named(25), true),
    ];
    for (asked, has_gateway) in cases {
        let (_, served) = serving(asked, has_gateway);
        let other = Asked::Named(25 + 26 - served);
        let endings = [
            ("the pod is deleted", vec![Delete(0)]),
            ("it asks for another port", vec![Ask { name: 0, asked: other }]),
            (
                "another pod gets its name",
                vec![Delete(0), Create { name: 0, holder: 1, node: 1, asked: other }],
            ),
            ("its Pinhole is deleted, and it", vec![DeletePinhole(0), Delete(0)]),
        ];
        let thief = Create { name: 1, holder: 1, node: 1, asked: Asked::Named(served) };
        for (name, ending) in endings {
            for hears_of_pods in [true, false] {
                let tail: Vec<_> =
                    (0..10).flat_map(|_| [round(hears_of_pods), vec![thief.clone()]].concat()).collect();
                for lost in 0..tail.len() / 3 {
                    let (mut world, _) = serving(asked, has_gateway);
                    for step in &ending {
                        world.take(step);
                    }
                    for (index, step) in tail.iter().enumerate() {
                        world.take(if index == lost { &AgentIsKilled(0) } else { step });
                        world.check();
                    }
                    let is_had = world.pods.keys().any(|pod| *pod.name == *NAMES[1]);
                    // Of a pod that an agent knows and nobody has decided about, its kernel keeps what it has.
                    let is_due = hears_of_pods || ending.len() != 2 || matches!(ending[0], DeletePinhole(_));
                    assert!(
                        is_had || !is_due,
                        "{name}, {asked:?}, {has_gateway}, {hears_of_pods}: the port was never given to anybody else"
                    );
                }
            }
        }
    }
}
