//! Facts about namespaces and nodes that rules read.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::admission::index::is_older;
use crate::api::keys;
use crate::api::object::Object;
use crate::model::address::Families;

/// The taint of a node that is known to be switched off.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// The labels of namespaces, the hostnames and addresses of nodes.
#[derive(Debug, Default)]
pub(super) struct Facts {
    namespaces: HashMap<String, Namespace>,
    nodes: HashMap<Arc<str>, Node>,
}

#[derive(Debug)]
struct Namespace {
    version: Option<u64>,
    labels: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Node {
    version: Option<u64>,
    hostname: Option<String>,
    labels: BTreeMap<String, String>,
    addresses: Vec<IpAddr>,
    /// Of which families the networks of its pods are.
    pod_families: Families,
    presence: Presence,
}

/// Whether a node can be asked anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// There is no such Node, or an operator has said by the taint `node.kubernetes.io/out-of-service` that it is switched off.
    Gone,
    /// Its kubelet is not heard of, or says that it is not well.
    NotReady,
    /// Its kubelet says that it is well.
    Ready,
}

impl Facts {
    pub(super) fn apply_namespace(&mut self, object: &Object) {
        let version = object.metadata.version();
        let known = self.namespaces.get(&object.metadata.name);
        if known.is_some_and(|known| is_older(version, known.version)) {
            return;
        }
        let namespace = Namespace { version, labels: object.metadata.labels.clone() };
        self.namespaces.insert(object.metadata.name.clone(), namespace);
    }

    pub(super) fn delete_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    pub(super) fn clear_namespaces(&mut self) {
        self.namespaces.clear();
    }

    pub(super) fn namespace_labels(&self, name: &str) -> Option<&BTreeMap<String, String>> {
        self.namespaces.get(name).map(|namespace| &namespace.labels)
    }

    pub(super) fn apply_node(&mut self, object: &Object) {
        let version = object.metadata.version();
        let known = self.nodes.get(object.metadata.name.as_str());
        if known.is_some_and(|known| is_older(version, known.version)) {
            return;
        }
        let node = Node {
            version,
            hostname: object.metadata.labels.get(keys::HOSTNAME_LABEL).cloned(),
            labels: object.metadata.labels.clone(),
            addresses: object
                .status
                .addresses
                .iter()
                .filter_map(|found| found.address.parse().ok())
                .collect(),
            pod_families: object
                .spec
                .pod_cidrs
                .iter()
                .filter_map(|cidr| cidr.parse::<IpNet>().ok())
                .map(|cidr| cidr.addr())
                .collect(),
            presence: if object.spec.taints.iter().any(|taint| taint.key == OUT_OF_SERVICE) {
                Presence::Gone
            } else if object.has_condition("Ready") {
                Presence::Ready
            } else {
                Presence::NotReady
            },
        };
        self.nodes.insert(object.metadata.name.as_str().into(), node);
    }

    pub(super) fn delete_node(&mut self, name: &str) {
        self.nodes.remove(name);
    }

    pub(super) fn clear_nodes(&mut self) {
        self.nodes.clear();
    }

    pub(super) fn presence(&self, name: &str) -> Presence {
        self.nodes.get(name).map_or(Presence::Gone, |node| node.presence)
    }

    pub(super) fn is_node_address(&self, address: IpAddr) -> bool {
        self.nodes.values().any(|node| node.addresses.contains(&address))
    }

    pub(super) fn node_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.nodes.values().flat_map(|node| &node.addresses).copied()
    }

    pub(super) fn knows_node(&self, name: &str) -> bool {
        self.nodes.contains_key(name)
    }

    /// Of which families the addresses of a node's pods are; empty where it does not say.
    pub(super) fn pod_families(&self, name: &str) -> Families {
        self.nodes.get(name).map(|node| node.pod_families).unwrap_or_default()
    }

    pub(super) fn node_labels(&self, name: &str) -> Option<&BTreeMap<String, String>> {
        self.nodes.get(name).map(|node| &node.labels)
    }

    pub(super) fn node_of_hostname(&self, hostname: &str) -> Option<Arc<str>> {
        let labelled = self.nodes.iter().find(|(_, node)| node.hostname.as_deref() == Some(hostname));
        labelled.map(|(name, _)| name.clone())
    }
}
