//! One node of a picture: what its agent makes of the pods and Pinholes that it serves, beside what its kernel holds.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::admission::index::Index;
use crate::admission::index::ObjectKey;
use crate::admission::subject::Subject;
use crate::admission::suspended;
use crate::admission::wanted;
use crate::agent::desired;
use crate::agent::desired::Known;
use crate::agent::desired::Plan;
use crate::agent::desired::RefusedBy;
use crate::agent::entries::Line;
use crate::agent::grants::Grants;
use crate::api::crd::pinhole::Pinhole;
use crate::api::object::Kind;
use crate::api::object::NodeAddress;
use crate::api::object::Object;
use crate::api::object::Spec;
use crate::api::object::Status;
use crate::cli::plugin::picture::Picture;
use crate::cli::plugin::picture::granted;
use crate::cli::plugin::picture::is_for;
use crate::cli::plugin::picture::kernel::Kernel;
use crate::cli::plugin::picture::kernel::entry_of;
use crate::cli::plugin::picture::kernel::facts;
use crate::cli::plugin::picture::kernel::key_of;
use crate::cli::plugin::picture::name_of;
use crate::cli::plugin::picture::overlaps;
use crate::cli::plugin::picture::standing::Asker;
use crate::cli::plugin::picture::standing::Standing;
use crate::cli::plugin::picture::standing::State;
use crate::cluster::pinhole_watch::Pinholes;
use crate::model::automatic::AutomaticPort;
use crate::model::holder::Holder;
use crate::model::holder::ObjectName;
use crate::model::mapping::Mapping;
use crate::model::port::PortRange;
use crate::ruleset::Ruleset;
use crate::ruleset::entry::Entry;
use crate::ruleset::node::NodeFacts;
use crate::ruleset::owner::Owner;

/// One node, or none: the pods that have no node yet.
pub(super) struct OneNode<'a> {
    picture: &'a Picture,
    name: Option<&'a str>,
    pods: BTreeMap<ObjectName, Object>,
    index: Index,
    facts: NodeFacts,
    kernel: Option<&'a Kernel>,
    pinholes: Option<Pinholes>,
    grants: Option<Grants>,
}

impl<'a> OneNode<'a> {
    pub(super) fn new(picture: &'a Picture, name: Option<&'a str>, pods: &[&Object]) -> Self {
        let kernel = name.and_then(|name| picture.kernels.get(name));
        let lines = kernel.map(Kernel::lines).unwrap_or_default();
        let node = name.and_then(|name| picture.object("Node", "", name));
        let facts = facts(node, lines, pods, picture);
        let pinholes = picture.pinholes.as_ref();
        let pinholes = pinholes.map(|all| granted::on_node(all, name, pods.iter().copied()));
        let grants = pinholes.as_ref().map(|here| Grants::of(here, name.unwrap_or_default()));
        let pods = pods.iter().map(|pod| (name_of(pod), (*pod).clone())).collect();
        let index = Index::new(Arc::clone(&picture.policy));
        let mut one = Self { picture, name, pods, index, facts, kernel, pinholes, grants };
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

    /// How the requests of this node stand, beside those of which it is known that it has yet to let go.
    pub(super) fn standings(&self, releasing: &[Standing]) -> Vec<Standing> {
        let programmed = self.programmed();
        let plan = desired::plan(&Known {
            pods: &self.pods,
            index: &self.index,
            policy: &self.picture.policy,
            node: &self.facts,
            programmed: &programmed,
            grants: self.grants.as_ref(),
        });
        let of_pods = self.pods.values().flat_map(|pod| self.of_pod(pod, &plan, &programmed));
        let of_pinholes = self.pinholes.iter().flatten();
        let of_pinholes = of_pinholes.flat_map(|(name, pinhole)| {
            let remote = self.of_remote(name, pinhole, &plan);
            self.of_pinhole(name, pinhole, &plan).into_iter().chain(remote)
        });
        let mut standings: Vec<_> = of_pods.chain(of_pinholes).collect();
        let leftovers = self.leftovers(&standings, releasing);
        standings.extend(leftovers);
        standings
    }

    /// What the kernel holds, for the election: who has a port keeps it.
    fn programmed(&self) -> Ruleset {
        let mut ruleset = Ruleset::default();
        for line in self.lines() {
            if let Some(entry) = self.entry_of(line) {
                // Entries of one kernel never overlap.
                let _ = ruleset.insert(entry);
            }
        }
        ruleset
    }

    fn entry_of(&self, line: &Line) -> Option<Entry> {
        entry_of(line, &self.pods, self.pinholes.as_ref())
    }

    fn of_pod(&self, pod: &Object, plan: &Plan, programmed: &Ruleset) -> Vec<Standing> {
        let asked =
            Subject::of(pod).and_then(|pod| wanted::of(&pod, &self.picture.policy)).unwrap_or_default();
        let mappings: Vec<_> = asked.mappings().cloned().collect();
        let automatic: Vec<_> = asked.automatic_ports().cloned().collect();
        let refused = plan
            .unserved
            .iter()
            .find(|unserved| unserved.uid == pod.metadata.uid && unserved.by == RefusedBy::Admission);
        if let Some(refused) = refused {
            let standing = |external: String| Standing {
                state: State::Refused,
                problem: Some(refused.problem.clone()),
                ..self.standing(pod, external, None)
            };
            if mappings.is_empty() && automatic.is_empty() {
                return vec![standing("-".to_owned())];
            }
            let named = mappings
                .iter()
                .map(|mapping| Standing { mapping: Some(mapping.clone()), ..standing(mapping.to_string()) });
            return named.chain(automatic.iter().map(|port| standing(port.to_string()))).collect();
        }
        let owner = Owner::new(&name_of(pod), &pod.metadata.uid);
        let grants = self
            .pinholes
            .as_ref()
            .map(|pinholes| Grants::of(&granted::wherever(pinholes, pod), self.name.unwrap_or_default()));
        let asked = (&mappings[..], &automatic[..]);
        let found =
            grants.map(|grants| grants.found(&pod.metadata.uid, &owner, asked, &self.facts, programmed));
        let found = found.unwrap_or_default();
        let is_for = |found: &Mapping, port: &AutomaticPort| {
            found.protocol() == port.protocol && found.target().first() == port.target
        };
        let open = |port: &&AutomaticPort| !found.iter().any(|found| is_for(found, port));
        let known = mappings.iter().chain(&found);
        let known = known.flat_map(|mapping| self.of_mapping(pod, mapping, plan));
        known.chain(automatic.iter().filter(open).map(|port| self.of_open_port(pod, port))).collect()
    }

    /// A port that is left to a pool, and has yet to be found.
    fn of_open_port(&self, pod: &Object, port: &AutomaticPort) -> Standing {
        let withheld = self.pinholes.as_ref().and_then(|pinholes| granted::withheld(pinholes, pod, None));
        let (state, problem) = withheld.unwrap_or_else(|| {
            let problem = "what was found for it stands in the pod's Pinhole, which was not read; get the right to list pinholes";
            (State::Pending, problem.to_owned())
        });
        let ports = PortRange::single(port.target).to_string();
        let target = pod_ip(pod).map(|ip| socket(ip.parse().ok(), ip, &ports));
        Standing { target, state, problem: Some(problem), ..self.standing(pod, port.to_string(), None) }
    }

    /// What this node serves of a pod of another one.
    fn of_remote(&self, name: &ObjectName, pinhole: &Pinhole, plan: &Plan) -> Vec<Standing> {
        if self.pods.contains_key(name) || granted::is_written(pinhole) {
            return Vec::new();
        }
        let owner = Owner::new(name, pinhole.spec.target.pod_uid.as_deref().unwrap_or_default());
        let entries = plan.ruleset.entries().filter(|entry| entry.owner == owner);
        let elsewhere = granted::elsewhere(self.picture, name, pinhole);
        let standing = |entry: &Entry| {
            let told = elsewhere.iter().find(|one| one.key == Some(entry.key))?;
            let here = Standing { node: self.name.map(str::to_owned), problem: None, ..told.clone() };
            let is_suspended = told.state == State::Suspended;
            Some(self.of_entry(entry, here, is_suspended))
        };
        entries.filter_map(standing).collect()
    }

    /// What of a Pinhole that a user wrote this node serves or should.
    fn of_pinhole(&self, name: &ObjectName, pinhole: &Pinhole, plan: &Plan) -> Vec<Standing> {
        let owner = Owner::new(name, pinhole.metadata.uid.as_deref().unwrap_or_default());
        let is_told = |line: &Line| line.pod == name.to_string();
        let is_agent_known = self.has_agent(is_told);
        let standing = |standing: Standing| {
            let key = standing.key?;
            let entry = plan.ruleset.entries().find(|entry| entry.owner == owner && entry.key == key)?;
            let standing = Standing { node: self.name.map(str::to_owned), problem: None, ..standing };
            if !is_agent_known {
                return Some(Standing { state: State::NoAgent, ..standing });
            }
            let target = standing.target.clone();
            let closed = entry.target.is_none().then(|| granted::closed(pinhole)).flatten();
            let standing = self.of_entry(entry, standing, pinhole.spec.suspended);
            Some(Standing { target, problem: standing.problem.or(closed), ..standing })
        };
        granted::written(name, pinhole).into_iter().filter_map(standing).collect()
    }

    /// Whether an agent runs here, or has said one of these lines.
    fn has_agent(&self, is_told: impl Fn(&Line) -> bool) -> bool {
        self.kernel.is_some_and(|kernel| kernel.has_agent || kernel.told.iter().any(is_told))
    }

    fn of_mapping(&self, pod: &Object, mapping: &Mapping, plan: &Plan) -> Vec<Standing> {
        let standing = || Standing {
            mapping: Some(mapping.clone()),
            ..self.standing(pod, mapping.to_string(), Some(mapping))
        };
        let owner = Owner::new(&name_of(pod), &pod.metadata.uid);
        let is_suspended = suspended::is(&pod.metadata.annotations);
        let entries: Vec<_> = plan
            .ruleset
            .entries()
            .filter(|entry| entry.owner == owner && is_for(&entry.key, mapping))
            .collect();
        if let Some(pinholes) = self.pinholes.as_ref().filter(|_| entries.is_empty()) {
            if let Some((state, problem)) = granted::withheld(pinholes, pod, Some(mapping)) {
                return vec![Standing { state, problem: Some(problem), ..standing() }];
            }
            if granted::is_elsewhere(pinholes, pod, mapping) {
                // The nodes that serve it tell, or the Pinhole itself.
                return Vec::new();
            }
        }
        if self.name.is_none() {
            return vec![Standing { state: State::Unscheduled, ..standing() }];
        }
        let is_told = |line: &Line| line.pod == name_of(pod).to_string();
        if !self.has_agent(is_told) {
            return vec![Standing { state: State::NoAgent, ..standing() }];
        }
        if !entries.is_empty() {
            let of_entry = |entry| self.of_entry(entry, standing(), is_suspended);
            return entries.into_iter().map(of_entry).collect();
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
            let when = if is_suspended {
                "this one is suspended"
            } else {
                "a newer pod that is ready takes over by itself"
            };
            format!("pod {} of the same holder has it; {when}", entry.owner)
        });
        vec![Standing { state: State::Waiting, problem, ..standing() }]
    }

    /// An entry that the node should have, beside what it has.
    fn of_entry(&self, entry: &Entry, standing: Standing, is_suspended: bool) -> Standing {
        let standing = self.in_kernel(entry, standing);
        // That says more than how much is known of the kernel, unless it should not be as it is there.
        let is_closed = is_suspended && standing.state != State::Missing;
        if is_closed { Standing { state: State::Suspended, ..standing } } else { standing }
    }

    fn in_kernel(&self, entry: &Entry, standing: Standing) -> Standing {
        let standing = Standing {
            external: entry.key.to_string(),
            key: Some(entry.key),
            target: entry.target.map(|_| target_of(entry)),
            ..standing
        };
        let overlapping = self
            .lines()
            .iter()
            .filter_map(|line| Some((line, self.entry_of(line)?)))
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
    fn leftovers(&self, standings: &[Standing], releasing: &[Standing]) -> Vec<Standing> {
        let is_read = self.kernel.is_some_and(|kernel| kernel.read.is_some());
        if !is_read || self.picture.only_namespace.is_some() {
            return Vec::new();
        }
        let is_known = |line: &&Line| {
            let key = key_of(line);
            let is_key = |standing: &Standing| standing.key.is_some() && standing.key == key;
            let is_it = |one: &Standing| is_key(one) || one.asker.name().to_string() == line.pod;
            let is_waited_for = |one: &Standing| one.node.as_deref() == self.name && is_key(one);
            standings.iter().any(is_it) || releasing.iter().any(is_waited_for)
        };
        let unknown = self.lines().iter().filter(|line| !is_known(line));
        unknown.map(|line| self.leftover(line)).collect()
    }

    fn leftover(&self, line: &Line) -> Standing {
        let (namespace, name) = line.pod.split_once('/').unwrap_or(("", line.pod.as_str()));
        let pod = ObjectName::new(namespace, name);
        let target = line.target.as_ref().zip(line.target_ports.as_ref());
        let key = key_of(line);
        let external = key.map_or_else(
            || format!("{}:{}/{}", line.address, line.ports, line.protocol),
            |key| key.to_string(),
        );
        Standing {
            key,
            target: target.map(|(ip, ports)| socket(ip.parse().ok(), ip, ports)),
            node: self.name.map(str::to_owned),
            pod: Some(pod.clone()),
            packets: Some(line.packets),
            problem: Some(
                "no pod of the node asks for it any more; the agent removes it within a second, unless its brake holds back a mass removal"
                    .to_owned(),
            ),
            ..Standing::new(Asker::Pod(pod), external, State::Leftover)
        }
    }

    fn standing(&self, pod: &Object, external: String, mapping: Option<&Mapping>) -> Standing {
        let name = name_of(pod);
        let key = ObjectKey { kind: Kind::Pod, name: name.clone() };
        let holder = self
            .index
            .holder(&key, pod.metadata.controller())
            .unwrap_or_else(|owner| Holder::new(owner.kind.name(), owner.name));
        let target = pod_ip(pod)
            .zip(mapping)
            .map(|(ip, mapping)| socket(ip.parse().ok(), ip, &mapping.target().to_string()));
        Standing {
            target,
            node: self.name.map(str::to_owned),
            holder: Some(holder),
            pod: Some(name.clone()),
            labels: pod.metadata.labels.clone(),
            created: pod.metadata.creation_timestamp.clone(),
            ..Standing::new(Asker::Pod(name), external, State::Waiting)
        }
    }
}

/// The first address of a pod.
fn pod_ip(pod: &Object) -> Option<&str> {
    pod.status.pod_ips.iter().map(|found| found.ip.as_str()).find(|ip| !ip.is_empty())
}

fn target_of(entry: &Entry) -> String {
    let ports = entry.target_ports().map(|ports| ports.to_string()).unwrap_or_default();
    let ip = entry.target.map(|target| target.ip);
    socket(ip, &ip.map(|ip| ip.to_string()).unwrap_or_default(), &ports)
}

fn socket(ip: Option<IpAddr>, text: &str, ports: &str) -> String {
    if ip.is_some_and(|ip| ip.is_ipv6()) { format!("[{text}]:{ports}") } else { format!("{text}:{ports}") }
}
