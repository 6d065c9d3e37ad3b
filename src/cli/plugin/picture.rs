//! What was seen of a cluster, and what follows for each request for a port: pure.
//!
//! Every request is judged by the functions that the node's agent itself uses, [`desired::plan`] and what it calls,
//! from the pods and the node as the API server shows them. Beside that stands what the agents say the kernels hold.
//! Where the two differ the kernel is right about what is, and the rules are right about what should be.

pub(crate) mod kernel;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::admission::index::Index;
use crate::admission::index::ObjectKey;
use crate::admission::policy::Policy;
use crate::admission::subject::Subject;
use crate::admission::wanted;
use crate::agent::addresses::Filter;
use crate::agent::desired;
use crate::agent::desired::Known;
use crate::agent::desired::Plan;
use crate::agent::desired::RefusedBy;
use crate::agent::entries::Line;
use crate::api::object::Kind;
use crate::api::object::NodeAddress;
use crate::api::object::Object;
use crate::api::object::Spec;
use crate::api::object::Status;
use crate::cli::plugin::picture::kernel::Kernel;
use crate::cli::plugin::picture::kernel::entry_of;
use crate::cli::plugin::picture::kernel::facts;
use crate::cli::plugin::picture::kernel::key_of;
use crate::model::holder::Holder;
use crate::model::holder::ObjectName;
use crate::model::mapping::Address;
use crate::model::mapping::Mapping;
use crate::ruleset::Ruleset;
use crate::ruleset::entry::Entry;
use crate::ruleset::entry::Key;
use crate::ruleset::node::NodeFacts;
use crate::ruleset::owner::Owner;

/// What was seen of a cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct Picture {
    /// What the running agents allow.
    pub(crate) policy: Arc<Policy>,
    /// Which addresses they serve.
    pub(crate) filter: Filter,
    /// Pods, workloads, Namespaces and Nodes.
    pub(crate) objects: Vec<Object>,
    /// What is known of the kernel of each node.
    pub(crate) kernels: BTreeMap<String, Kernel>,
    /// The namespace that was read, where the user may not read all.
    pub(crate) only_namespace: Option<String>,
}

/// How a request for a port stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum State {
    /// The kernel of the node has it.
    Programmed,
    /// The agent wrote an Event that the kernel has it; the kernel itself was not asked.
    Reported,
    /// The kernel keeps the port for a pod that has no address yet.
    Reserved,
    /// By the rules the kernel has it; it was not asked.
    Expected,
    /// By the rules the kernel should have it, and it does not.
    Missing,
    /// Another pod of the same holder has it.
    Waiting,
    /// Somebody else has it.
    Taken,
    /// The rules of admission or the node refuse it.
    Refused,
    /// The pod has no node yet.
    Unscheduled,
    /// No agent runs on the pod's node.
    NoAgent,
    /// The kernel has it, and no pod asks for it any more.
    Leftover,
}

impl State {
    /// The name in tables and `-o json`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Programmed => "Programmed",
            Self::Reported => "Reported",
            Self::Reserved => "Reserved",
            Self::Expected => "Expected",
            Self::Missing => "Missing",
            Self::Waiting => "Waiting",
            Self::Taken => "Taken",
            Self::Refused => "Refused",
            Self::Unscheduled => "Unscheduled",
            Self::NoAgent => "NoAgent",
            Self::Leftover => "Leftover",
        }
    }
}

/// One request for a port, and how it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The external side, as far as it is known.
    pub(crate) external: String,
    /// The same for the kernel, when it is known to the last bit.
    pub(crate) key: Option<Key>,
    /// What was asked for, where it could be read.
    pub(crate) mapping: Option<Mapping>,
    /// The pod's address and ports; none while it has no address.
    pub(crate) target: Option<String>,
    /// The node.
    pub(crate) node: Option<String>,
    /// Who holds the port once it has it.
    pub(crate) holder: Option<Holder>,
    /// The pod.
    pub(crate) pod: ObjectName,
    /// The pod's labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// When the pod was created, RFC 3339.
    pub(crate) created: String,
    /// How it stands.
    pub(crate) state: State,
    /// How many connections came, where the kernel was asked.
    pub(crate) packets: Option<u64>,
    /// Why, in the words of whoever refuses; with what to do after the last semicolon.
    pub(crate) problem: Option<String>,
}

impl Picture {
    /// Every request of every pod, ordered by node, external side and pod.
    pub(crate) fn standings(&self) -> Vec<Standing> {
        let mut by_node: BTreeMap<Option<&str>, Vec<&Object>> = BTreeMap::new();
        for pod in self.asking_pods() {
            by_node.entry(node_of(pod)).or_default().push(pod);
        }
        for node in self.kernels.keys() {
            by_node.entry(Some(node)).or_default();
        }
        let mut standings = Vec::new();
        for (node, pods) in by_node {
            standings.extend(OneNode::new(self, node, &pods).standings());
        }
        let place = |standing: &Standing| (standing.key.is_none(), standing.key, standing.external.clone());
        standings
            .sort_by(|a, b| (&a.node, place(a), &a.pod, a.state).cmp(&(&b.node, place(b), &b.pod, b.state)));
        standings
    }

    /// The pods that ask for ports and have not ended.
    fn asking_pods(&self) -> impl Iterator<Item = &Object> {
        self.objects.iter().filter(|object| {
            object.known_kind() == Some(Kind::Pod)
                && !object.is_finished()
                && self.policy.asks(&object.metadata.annotations)
        })
    }

    /// The object of this kind and name.
    pub(crate) fn object(&self, kind: &str, namespace: &str, name: &str) -> Option<&Object> {
        let is_it = |object: &&Object| {
            object.kind == kind && object.metadata.name == name && object.metadata.namespace == namespace
        };
        self.objects.iter().find(is_it)
    }

    /// Everything that was read, as admission knows it.
    pub(crate) fn index(&self) -> Index {
        let mut index = Index::new(Arc::clone(&self.policy));
        // A pod that names its node by hostname can only be placed once the nodes are known.
        let is_place = |object: &&Object| ["Namespace", "Node"].contains(&object.kind.as_str());
        self.objects.iter().filter(is_place).for_each(|object| index.apply(object));
        self.objects.iter().filter(|object| !is_place(object)).for_each(|object| index.apply(object));
        index
    }

    /// Facts about a node, as far as the API server and the kernel's entries tell them.
    pub(crate) fn node_facts(&self, node: &str) -> NodeFacts {
        let pods: Vec<_> = self.asking_pods().filter(|pod| node_of(pod) == Some(node)).collect();
        OneNode::new(self, Some(node), &pods).facts
    }
}

/// One node, or none: the pods that have no node yet.
struct OneNode<'a> {
    picture: &'a Picture,
    name: Option<&'a str>,
    pods: BTreeMap<ObjectName, Object>,
    index: Index,
    facts: NodeFacts,
    kernel: Option<&'a Kernel>,
}

impl<'a> OneNode<'a> {
    fn new(picture: &'a Picture, name: Option<&'a str>, pods: &[&Object]) -> Self {
        let kernel = name.and_then(|name| picture.kernels.get(name));
        let lines = kernel.map(Kernel::lines).unwrap_or_default();
        let node = name.and_then(|name| picture.object("Node", "", name));
        let facts = facts(node, lines, pods, picture);
        let pods = pods.iter().map(|pod| (name_of(pod), (*pod).clone())).collect();
        let mut one =
            Self { picture, name, pods, index: Index::new(Arc::clone(&picture.policy)), facts, kernel };
        one.fill_index(node);
        one
    }

    /// As the agent of the node knows it: owners of its pods, namespaces, the node, and no pods.
    fn fill_index(&mut self, node: Option<&Object>) {
        let owners: BTreeSet<&str> = self
            .pods
            .values()
            .filter_map(|pod| pod.metadata.controller().map(|owner| owner.uid.as_str()))
            .collect();
        for object in &self.picture.objects {
            if object.kind == "Namespace" {
                self.index.apply(object);
            } else if owners.contains(object.metadata.uid.as_str()) {
                let (spec, status) = (Spec::default(), Status::default());
                self.index.apply(&Object { spec, status, ..object.clone() });
            }
        }
        if let Some(node) = node {
            let mut node = node.clone();
            let more = self.facts.own_addresses().map(|address| address.to_string());
            node.status
                .addresses
                .extend(more.map(|address| NodeAddress { address, ..NodeAddress::default() }));
            self.index.apply(&node);
        }
    }

    fn lines(&self) -> &'a [Line] {
        self.kernel.map(Kernel::lines).unwrap_or_default()
    }

    fn standings(&self) -> Vec<Standing> {
        let programmed = self.programmed();
        let plan = desired::plan(&Known {
            pods: &self.pods,
            index: &self.index,
            policy: &self.picture.policy,
            node: &self.facts,
            programmed: &programmed,
            grants: None,
        });
        let mut standings: Vec<_> = self.pods.values().flat_map(|pod| self.of_pod(pod, &plan)).collect();
        let leftovers = self.leftovers(&standings);
        standings.extend(leftovers);
        standings
    }

    /// What the kernel holds, for the election: who has a port keeps it.
    fn programmed(&self) -> Ruleset {
        let mut ruleset = Ruleset::default();
        for line in self.lines() {
            if let Some(entry) = entry_of(line, &self.pods) {
                // Entries of one kernel never overlap.
                let _ = ruleset.insert(entry);
            }
        }
        ruleset
    }

    fn of_pod(&self, pod: &Object, plan: &Plan) -> Vec<Standing> {
        let asked = Subject::of(pod).and_then(|pod| wanted::of(&pod, &self.picture.policy));
        let mappings: Vec<Mapping> =
            asked.iter().flat_map(wanted::Wanted::mappings).cloned().collect::<Vec<_>>();
        let refused = plan
            .unserved
            .iter()
            .find(|unserved| unserved.uid == pod.metadata.uid && unserved.by == RefusedBy::Admission);
        if let Some(refused) = refused {
            let problem = Some(refused.problem.clone());
            let standing = || Standing {
                state: State::Refused,
                problem: problem.clone(),
                ..self.standing(pod, "-".to_owned(), None)
            };
            if mappings.is_empty() {
                return vec![standing()];
            }
            let of = |mapping: &Mapping| Standing {
                external: mapping.to_string(),
                mapping: Some(mapping.clone()),
                ..standing()
            };
            return mappings.iter().map(of).collect();
        }
        mappings.iter().flat_map(|mapping| self.of_mapping(pod, mapping, plan)).collect()
    }

    fn of_mapping(&self, pod: &Object, mapping: &Mapping, plan: &Plan) -> Vec<Standing> {
        let standing = || Standing {
            mapping: Some(mapping.clone()),
            ..self.standing(pod, mapping.to_string(), Some(mapping))
        };
        if self.name.is_none() {
            return vec![Standing { state: State::Unscheduled, ..standing() }];
        }
        let is_told = |line: &Line| line.pod == name_of(pod).to_string();
        if !self.kernel.is_some_and(|kernel| kernel.has_agent || kernel.told.iter().any(is_told)) {
            return vec![Standing { state: State::NoAgent, ..standing() }];
        }
        let owner = Owner::new(&name_of(pod), &pod.metadata.uid);
        let entries: Vec<_> = plan
            .ruleset
            .entries()
            .filter(|entry| entry.owner == owner && is_for(&entry.key, mapping))
            .collect();
        if !entries.is_empty() {
            return entries.into_iter().map(|entry| self.of_entry(entry, standing())).collect();
        }
        let uid = &pod.metadata.uid;
        if let Some(loser) = plan.losers.iter().find(|loser| loser.uid == *uid && loser.mapping == *mapping) {
            let problem = Some(loser.reason(true));
            return vec![Standing { state: State::Taken, problem, ..standing() }];
        }
        let prefix = format!("{mapping}: ");
        let refused = plan
            .unserved
            .iter()
            .find(|unserved| unserved.uid == *uid && unserved.problem.starts_with(&prefix));
        if let Some(refused) = refused {
            let problem = Some(refused.problem.clone());
            return vec![Standing { state: State::Refused, problem, ..standing() }];
        }
        let before = plan.ruleset.entries().find(|entry| overlaps(&entry.key, mapping));
        let problem = before.map(|entry| {
            format!(
                "pod {} of the same holder has it; a newer pod that is ready takes over by itself",
                entry.owner
            )
        });
        vec![Standing { state: State::Waiting, problem, ..standing() }]
    }

    /// An entry that the node should have, beside what it has.
    fn of_entry(&self, entry: &Entry, standing: Standing) -> Standing {
        let standing = Standing {
            external: entry.key.to_string(),
            key: Some(entry.key),
            target: entry.target.map(|_| target_of(entry)),
            ..standing
        };
        let overlapping = self
            .lines()
            .iter()
            .filter_map(|line| Some((line, entry_of(line, &self.pods)?)))
            .find(|(_, held)| held.key.overlaps(&entry.key));
        let is_same =
            |held: &Entry| held.owner == entry.owner && held.key == entry.key && held.target == entry.target;
        let is_read = self.kernel.is_some_and(|kernel| kernel.read.is_some());
        match overlapping {
            Some((line, held)) if is_read && is_same(&held) => {
                let state = if entry.target.is_some() { State::Programmed } else { State::Reserved };
                Standing { state, packets: Some(line.packets), ..standing }
            }
            Some((_, held)) if is_same(&held) => Standing { state: State::Reported, ..standing },
            _ if !is_read => Standing { state: State::Expected, ..standing },
            Some((line, _)) => {
                let problem = format!(
                    "the node's kernel still serves it for pod {}; the node's agent changes that within a second, or says in its log why not",
                    line.pod
                );
                Standing { state: State::Missing, problem: Some(problem), ..standing }
            }
            None => Standing { state: State::Missing, ..standing },
        }
    }

    /// What the kernel holds for pods that ask no longer. Told only where all pods could be read.
    fn leftovers(&self, standings: &[Standing]) -> Vec<Standing> {
        let is_read = self.kernel.is_some_and(|kernel| kernel.read.is_some());
        if !is_read || self.picture.only_namespace.is_some() {
            return Vec::new();
        }
        let is_known = |line: &&Line| {
            let key = key_of(line);
            let is_it = |standing: &Standing| {
                standing.key.is_some() && standing.key == key || standing.pod.to_string() == line.pod
            };
            standings.iter().any(is_it)
        };
        let unknown = self.lines().iter().filter(|line| !is_known(line));
        unknown.map(|line| self.leftover(line)).collect()
    }

    fn leftover(&self, line: &Line) -> Standing {
        let (namespace, name) = line.pod.split_once('/').unwrap_or(("", line.pod.as_str()));
        let target = line.target.as_ref().zip(line.target_ports.as_ref());
        Standing {
            external: key_of(line).map_or_else(
                || format!("{}:{}/{}", line.address, line.ports, line.protocol),
                |key| key.to_string(),
            ),
            key: key_of(line),
            mapping: None,
            target: target.map(|(ip, ports)| socket(ip.parse().ok(), ip, ports)),
            node: self.name.map(str::to_owned),
            holder: None,
            pod: ObjectName::new(namespace, name),
            labels: BTreeMap::new(),
            created: String::new(),
            state: State::Leftover,
            packets: Some(line.packets),
            problem: Some(
                "no pod of the node asks for it any more; the agent removes it within a second, unless its brake holds back a mass removal"
                    .to_owned(),
            ),
        }
    }

    fn standing(&self, pod: &Object, external: String, mapping: Option<&Mapping>) -> Standing {
        let name = name_of(pod);
        let key = ObjectKey { kind: Kind::Pod, name: name.clone() };
        let holder = self
            .index
            .holder(&key, pod.metadata.controller())
            .unwrap_or_else(|owner| Holder::new(owner.kind.name(), owner.name));
        let ip = pod.status.pod_ips.iter().map(|found| found.ip.clone()).find(|ip| !ip.is_empty());
        let target =
            ip.zip(mapping).map(|(ip, mapping)| socket(ip.parse().ok(), &ip, &mapping.target().to_string()));
        Standing {
            external,
            key: None,
            mapping: None,
            target,
            node: self.name.map(str::to_owned),
            holder: Some(holder),
            pod: name,
            labels: pod.metadata.labels.clone(),
            created: pod.metadata.creation_timestamp.clone(),
            state: State::Waiting,
            packets: None,
            problem: None,
        }
    }
}

/// The node that a pod runs on.
pub(crate) fn node_of(pod: &Object) -> Option<&str> {
    pod.spec.node_name.as_deref().filter(|name| !name.is_empty())
}

/// A pod's name.
pub(crate) fn name_of(pod: &Object) -> ObjectName {
    ObjectName::new(pod.metadata.namespace.as_str(), pod.metadata.name.as_str())
}

/// Whether an entry is one that a mapping leads to.
fn is_for(key: &Key, mapping: &Mapping) -> bool {
    key.ports == mapping.external() && overlaps(key, mapping)
}

fn overlaps(key: &Key, mapping: &Mapping) -> bool {
    let is_there = match mapping.address() {
        Address::Node => true,
        Address::Fixed(address) => address.ip() == key.external,
    };
    is_there && key.protocol == mapping.protocol() && key.ports.intersection(mapping.external()).is_some()
}

fn target_of(entry: &Entry) -> String {
    let ports = entry.target_ports().map(|ports| ports.to_string()).unwrap_or_default();
    let ip = entry.target.map(|target| target.ip);
    socket(ip, &ip.map(|ip| ip.to_string()).unwrap_or_default(), &ports)
}

fn socket(ip: Option<IpAddr>, text: &str, ports: &str) -> String {
    if ip.is_some_and(|ip| ip.is_ipv6()) { format!("[{text}]:{ports}") } else { format!("{text}:{ports}") }
}

#[cfg(test)]
mod tests;
