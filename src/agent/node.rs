//! The node itself, as far as its rules depend on it: its addresses, which of them are served for entries that name none,
//! and the networks of its pods. What is read is remembered, so that each change is told once.

use std::collections::BTreeSet;
use std::io;
use std::mem;
use std::net::IpAddr;

use ipnet::IpNet;
use tokio::sync::watch;
use tracing::info;
use tracing::warn;

use crate::agent::addresses;
use crate::agent::addresses::Addresses;
use crate::agent::addresses::Filter;
use crate::agent::addresses::Own;
use crate::agent::following::Following;
use crate::api::object::Object;
use crate::cluster::pod_networks::Learnt;
use crate::model::address::Family;
use crate::ruleset::Ruleset;
use crate::ruleset::node::NodeFacts;

/// What an operator says of a node's networks.
#[derive(Clone, Debug, Default)]
pub struct Networks {
    /// Which addresses may be served.
    pub filter: Filter,
    /// The addresses of this node's pods; empty to take them from the Node.
    pub pod_cidrs: Vec<IpNet>,
    /// Other destinations inside the cluster; empty to take the pods of all Nodes for it.
    pub cluster_cidrs: Vec<IpNet>,
}

/// Where it is learnt which networks the pods of other nodes have, once that is needed.
#[derive(Debug)]
pub struct Learning {
    /// Says that it is needed.
    pub needed_tx: watch::Sender<bool>,
    /// What was learnt.
    pub learnt: Following<Learnt>,
}

/// What is known of the node.
pub struct Node {
    networks: Networks,
    learning: Option<Learning>,
    /// Why it is not known which networks the pods of other nodes have.
    unknown: Option<String>,
    warned_of_cluster: bool,
    read: Box<dyn FnMut() -> io::Result<Addresses> + Send>,
    addresses: Option<Addresses>,
    own: Own,
    warned_of_cidrs: bool,
}

impl Node {
    /// A node whose addresses `read` reads; nothing is read yet.
    pub fn new(networks: Networks, read: impl FnMut() -> io::Result<Addresses> + Send + 'static) -> Self {
        Self {
            networks,
            learning: None,
            unknown: None,
            warned_of_cluster: false,
            read: Box::new(read),
            addresses: None,
            own: Own::default(),
            warned_of_cidrs: false,
        }
    }

    /// The same node, which learns the networks of other nodes' pods where no operator has named them.
    pub fn with_learning(self, learning: Learning) -> Self {
        Self { learning: Some(learning).filter(|_| self.networks.cluster_cidrs.is_empty()), ..self }
    }

    /// Lets it be learnt from now on which networks the pods of other nodes have.
    pub fn need_networks(&self) {
        if let Some(Learning { needed_tx, .. }) = &self.learning {
            needed_tx.send_if_modified(|is_needed| !mem::replace(is_needed, true));
        }
    }

    /// Whether nothing of that which was asked for is still on its way.
    pub fn is_known(&self) -> bool {
        let is_settled = |learning: &Learning| !*learning.needed_tx.borrow() || learning.learnt.is_known();
        self.learning.as_ref().is_none_or(is_settled)
    }

    /// Waits for news of other nodes' pods.
    pub async fn changed(&mut self) {
        match &mut self.learning {
            Some(learning) => learning.learnt.changed().await,
            None => std::future::pending().await,
        }
    }

    /// The addresses as they were last read.
    pub fn addresses(&self) -> Addresses {
        self.addresses.clone().unwrap_or_default()
    }

    /// The addresses that entries without one are served on.
    pub const fn own(&self) -> &Own {
        &self.own
    }

    /// Reads the addresses. The node's own ones, when any is another than before.
    ///
    /// # Errors
    /// They cannot be read; what was known before stays.
    pub fn refresh(&mut self) -> io::Result<Option<Vec<IpAddr>>> {
        let found = (self.read)()?;
        if self.addresses.as_ref() == Some(&found) {
            return Ok(None);
        }
        let own = addresses::choose(&found, &self.networks.filter);
        let (v4, v6) = (own.v4.map(IpAddr::V4), own.v6.map(IpAddr::V6));
        if own != self.own {
            for warning in &own.warnings {
                warn!("{warning}");
            }
            let shown = |address: Option<IpAddr>| address.map_or("none".to_owned(), |ip| ip.to_string());
            info!(
                v4 = shown(v4),
                v6 = shown(v6),
                "Serving entries that name no address (ifaceAuto) on these"
            );
        }
        self.addresses = Some(found);
        self.own = own;
        Ok(Some(v4.into_iter().chain(v6).collect()))
    }

    /// What rules are made from, with the Node of the API server, the addresses of its pods that ask for ports, and those of all.
    pub fn facts(&mut self, node: &Object, pods: BTreeSet<IpAddr>, all: &BTreeSet<IpAddr>) -> NodeFacts {
        let pod_cidrs = self.pod_cidrs(node);
        let (node_cidrs, unknown) = self.learnt(node, all);
        self.unknown = unknown;
        let Networks { filter, cluster_cidrs, .. } = &self.networks;
        NodeFacts {
            addresses: self.addresses.iter().flat_map(Addresses::all).collect(),
            node_v4: self.own.v4,
            node_v6: self.own.v6,
            include: filter.include.clone(),
            exclude: filter.exclude.clone(),
            pod_cidrs,
            pods,
            cluster_cidrs: cluster_cidrs.clone(),
            node_cidrs,
            masquerade: None,
        }
    }

    /// The networks of other nodes' pods, and why those of a family are not known.
    fn learnt(&self, node: &Object, pods: &BTreeSet<IpAddr>) -> (Vec<IpNet>, Option<String>) {
        let Some(learning) = &self.learning else { return (Vec::new(), None) };
        let networks = match learning.learnt.known() {
            Some(Learnt::Networks(networks)) => networks,
            Some(Learnt::Unknown(reason)) => return (Vec::new(), Some(reason)),
            None => return (Vec::new(), Some("the Nodes are yet to be listed".to_owned())),
        };
        // A CNI plugin that hands out addresses by itself may do so whatever the Nodes show.
        let own = cidrs(node);
        let is_elsewhere = |ip: &&IpAddr| !own.iter().any(|net| net.contains(*ip));
        let elsewhere: Vec<&IpAddr> = pods.iter().filter(is_elsewhere).collect();
        let shows = |family| !elsewhere.iter().any(|ip| Family::of(**ip) == family);
        let reason = elsewhere.first().map(|ip| {
            format!("a pod here has the address {ip}, which is in none of its Node's podCIDRs, so those of other Nodes say nothing")
        });
        (networks.into_iter().filter(|net| shows(Family::of(net.addr()))).collect(), reason)
    }

    /// Whether pods have fixed addresses while it is not known to whom they may be shown, told once.
    pub fn tell_of_cluster(&mut self, facts: &NodeFacts, rules: &Ruleset) -> bool {
        let is_open = |family: &Family| {
            rules.egress_of_family(*family).next().is_some() && !facts.knows_cluster(*family)
        };
        let open = Family::ALL.into_iter().find(is_open);
        if let Some(family) = open
            && !mem::replace(&mut self.warned_of_cluster, true)
        {
            let reason = self.unknown.as_deref().unwrap_or("not every Node shows a network of this family");
            warn!(
                %family,
                reason,
                "Which networks the pods of other nodes have is not known, so private networks do not see the external address of \
                 mapped pods; name the networks of all pods by --cluster-cidr (agent.clusterCIDRs in the chart), and all others see it"
            );
        }
        open.is_some()
    }

    fn pod_cidrs(&mut self, node: &Object) -> Vec<IpNet> {
        if !self.networks.pod_cidrs.is_empty() {
            return self.networks.pod_cidrs.clone();
        }
        let cidrs = cidrs(node);
        if cidrs.is_empty() && !mem::replace(&mut self.warned_of_cidrs, true) {
            warn!(
                node = node.metadata.name,
                "The Node has no podCIDRs, so traffic between pods cannot be told from traffic that leaves the \
                 cluster; pass --pod-cidr and --cluster-cidr with the networks of pods"
            );
        }
        cidrs
    }
}

fn cidrs(node: &Object) -> Vec<IpNet> {
    node.spec.pod_cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect()
}
