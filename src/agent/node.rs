//! The node itself, as far as its rules depend on it: its addresses, which of them are served for entries that name none,
//! and the networks of its pods. What is read is remembered, so that each change is told once.

use std::collections::BTreeSet;
use std::io;
use std::mem;
use std::net::IpAddr;

use ipnet::IpNet;
use tracing::info;
use tracing::warn;

use crate::agent::addresses;
use crate::agent::addresses::Addresses;
use crate::agent::addresses::Filter;
use crate::agent::addresses::Own;
use crate::api::object::Object;
use crate::model::masquerade::Policy;
use crate::ruleset::node::NodeFacts;

/// What an operator says of a node's networks.
#[derive(Clone, Debug, Default)]
pub struct Networks {
    /// Which addresses may be served.
    pub filter: Filter,
    /// The addresses of this node's pods; empty to take them from the Node.
    pub pod_cidrs: Vec<IpNet>,
    /// Other destinations inside the cluster.
    pub cluster_cidrs: Vec<IpNet>,
}

/// What is known of the node.
pub struct Node {
    networks: Networks,
    read: Box<dyn FnMut() -> io::Result<Addresses> + Send>,
    addresses: Option<Addresses>,
    own: Own,
    warned_of_cidrs: bool,
}

impl Node {
    /// A node whose addresses `read` reads; nothing is read yet.
    pub fn new(networks: Networks, read: impl FnMut() -> io::Result<Addresses> + Send + 'static) -> Self {
        Self { networks, read: Box::new(read), addresses: None, own: Own::default(), warned_of_cidrs: false }
    }

    /// The addresses as they were last read.
    pub fn addresses(&self) -> Addresses {
        self.addresses.clone().unwrap_or_default()
    }

    /// The addresses that entries without one are served on.
    pub const fn own(&self) -> &Own {
        &self.own
    }

    /// Whether the operator has named the networks of the cluster.
    pub fn knows_cluster(&self) -> bool {
        !self.networks.cluster_cidrs.is_empty()
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

    /// What rules are made from, with the Node of the API server and the addresses of its pods.
    pub fn facts(&mut self, node: &Object, pods: BTreeSet<IpAddr>, masquerade: Option<Policy>) -> NodeFacts {
        let pod_cidrs = self.pod_cidrs(node);
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
            masquerade,
        }
    }

    fn pod_cidrs(&mut self, node: &Object) -> Vec<IpNet> {
        if !self.networks.pod_cidrs.is_empty() {
            return self.networks.pod_cidrs.clone();
        }
        let cidrs: Vec<IpNet> = node.spec.pod_cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect();
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
