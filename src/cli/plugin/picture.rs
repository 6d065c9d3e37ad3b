//! What was seen of a cluster, and what follows for each request for a port: pure.
//!
//! Every request is judged by the functions that the node's agent itself uses, [`crate::agent::desired::plan`] and what it calls,
//! from the pods and the node as the API server shows them. Beside that stands what the agents say the kernels hold.
//! Where the two differ the kernel is right about what is, and the rules are right about what should be. Where claims are on, the
//! Pinholes say what the rules grant, to pods and to the Pinholes that users wrote.

mod granted;
pub(crate) mod kernel;
mod node;
pub(crate) mod standing;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::admission::index::Index;
use crate::admission::policy::Policy;
use crate::agent::addresses::Filter;
use crate::agent::entries::Line;
use crate::api::crd::pinhole::Pinhole;
use crate::api::object::Kind;
use crate::api::object::Object;
use crate::cli::plugin::picture::kernel::Kernel;
use crate::cli::plugin::picture::kernel::facts;
use crate::cli::plugin::picture::node::OneNode;
use crate::cli::plugin::picture::standing::Standing;
use crate::cli::plugin::picture::standing::State;
use crate::cluster::pinhole_watch::Pinholes;
use crate::model::holder::ObjectName;
use crate::model::mapping::Address;
use crate::model::mapping::Mapping;
use crate::ruleset::entry::Key;
use crate::ruleset::node::NodeFacts;

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
    /// What the controller grants; `None` where claims are off, or it could not be read.
    pub(crate) pinholes: Option<Pinholes>,
    /// The addresses of nodes by what their agents say.
    pub(crate) node_addresses: BTreeMap<String, BTreeSet<IpAddr>>,
    /// The namespace that was read, where the user may not read all.
    pub(crate) only_namespace: Option<String>,
}

impl Picture {
    /// Every request of every pod and Pinhole, ordered by node, external side and who asks.
    pub(crate) fn standings(&self) -> Vec<Standing> {
        let mut by_node: BTreeMap<Option<&str>, Vec<&Object>> = BTreeMap::new();
        for pod in self.asking_pods() {
            by_node.entry(node_of(pod)).or_default().push(pod);
        }
        let pinholes = self.pinholes.iter().flatten();
        let serving = pinholes.clone().flat_map(|(_, pinhole)| granted::nodes(pinhole));
        for node in self.kernels.keys().map(String::as_str).chain(serving) {
            by_node.entry(Some(node)).or_default();
        }
        let mut standings: Vec<_> =
            pinholes.clone().flat_map(|(name, pinhole)| granted::releasing(name, pinhole)).collect();
        for (node, pods) in by_node {
            let here = OneNode::new(self, node, &pods).standings(&standings);
            standings.extend(here);
        }
        let nowhere = pinholes.flat_map(|(name, pinhole)| {
            granted::written(name, pinhole).into_iter().chain(granted::elsewhere(self, name, pinhole))
        });
        let nowhere = nowhere.filter(|one| {
            let is_it = |other: &Standing| {
                other.asker == one.asker && other.key == one.key && other.state != State::Releasing
            };
            !standings.iter().any(is_it)
        });
        let nowhere: Vec<_> = nowhere.collect();
        standings.extend(nowhere);
        let place = |standing: &Standing| (standing.key.is_none(), standing.key, standing.external.clone());
        standings.sort_by(|a, b| {
            (&a.node, place(a), &a.asker, a.state).cmp(&(&b.node, place(b), &b.asker, b.state))
        });
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
        self.within(Index::new(Arc::clone(&self.policy)))
    }

    /// The same, with those who leave ports to a pool to find: where ports are claimed.
    pub(crate) fn claiming_index(&self) -> Index {
        let mut index = Index::new(Arc::clone(&self.policy));
        index.set_pools(Some(Arc::default()));
        self.within(index)
    }

    fn within(&self, mut index: Index) -> Index {
        // A pod that names its node by hostname can only be placed once the nodes are known.
        let is_place = |object: &&Object| ["Namespace", "Node"].contains(&object.kind.as_str());
        self.objects.iter().filter(is_place).for_each(|object| index.apply(object));
        self.objects.iter().filter(|object| !is_place(object)).for_each(|object| index.apply(object));
        let written = self.pinholes.iter().flat_map(BTreeMap::values).filter(|one| granted::is_written(one));
        written.for_each(|pinhole| index.apply(&Object::of_pinhole(pinhole)));
        index
    }

    /// What the agents of nodes say in Pinholes that they have programmed.
    pub(crate) fn told_in_pinholes(&self) -> Vec<(String, Line)> {
        let has = |node: &str, address: IpAddr| {
            self.node_addresses.get(node).map(|addresses| addresses.contains(&address))
        };
        self.pinholes.as_ref().map(|pinholes| granted::told(pinholes, has)).unwrap_or_default()
    }

    /// The Pinhole of this name, if it could be read.
    pub(crate) fn pinhole(&self, name: &ObjectName) -> Option<&Pinhole> {
        self.pinholes.as_ref()?.get(name)
    }

    /// Facts about a node, as far as the API server and the kernel's entries tell them.
    pub(crate) fn node_facts(&self, node: &str) -> NodeFacts {
        let pods: Vec<_> = self.asking_pods().filter(|pod| node_of(pod) == Some(node)).collect();
        let lines = self.kernels.get(node).map(Kernel::lines).unwrap_or_default();
        facts(self.object("Node", "", node), lines, &pods, self)
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

/// Whether an entry and a mapping have a port in common, if the node's own address is that of the entry.
pub(crate) fn overlaps(key: &Key, mapping: &Mapping) -> bool {
    let is_there = match mapping.address() {
        Address::Node => true,
        Address::Fixed(address) => address.ip() == key.external,
    };
    is_there && key.protocol == mapping.protocol() && key.ports.intersection(mapping.external()).is_some()
}

#[cfg(test)]
mod tests;
