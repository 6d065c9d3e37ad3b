//! The annotated pods of other nodes, as a node serves them that has an address of theirs: a gateway.
//!
//! An agent watches the pods of its own node only. Of the others it knows what the controller writes into their Pinholes: what
//! they ask for, what of that is served here, their addresses, and what decides between the pods of one holder. So the same
//! election is held as on the pod's own node.
//!
//! Nobody but the controller can write that. All the same packets are led to pods' addresses only, as far as the networks of pods
//! are known, and what the spec does not ask for is closed, whatever the status grants.

use std::net::IpAddr;

use crate::admission::pinhole;
use crate::agent::grants::Grants;
use crate::agent::written;
use crate::api::crd::pinhole::Pinhole;
use crate::api::crd::pinhole::PinholePort;
use crate::api::crd::pinhole::TargetPort;
use crate::api::crd::pinhole::TargetReport;
use crate::api::crd::pinhole::TargetState;
use crate::model::automatic::AutomaticPort;
use crate::model::handover::Handover;
use crate::model::handover::UdpHandover;
use crate::model::holder::Holder;
use crate::model::holder::ObjectName;
use crate::model::mapping::Mapping;
use crate::model::port::Port;
use crate::ruleset::Ruleset;
use crate::ruleset::election::Candidate;
use crate::ruleset::endpoint::Leaving;
use crate::ruleset::node::NodeFacts;
use crate::ruleset::owner::Owner;

/// A pod of another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Its name.
    pub name: ObjectName,
    /// Its UID.
    pub uid: String,
    holder: Holder,
    handover: Handover,
    udp_handover: Option<UdpHandover>,
    /// What it asks for by name, on fixed addresses.
    named: Vec<Mapping>,
    /// What it leaves to a pool.
    automatic: Vec<AutomaticPort>,
    /// Its addresses; `None` while the controller has not said anything.
    ips: Option<Vec<IpAddr>>,
    state: Option<TargetState>,
}

impl Remote {
    /// The pod of a Pinhole; `None` for a Pinhole that a user wrote, for one that is over, and for a pod of the node of this name.
    pub fn of(name: &ObjectName, stored: &Pinhole, node_name: &str) -> Option<Self> {
        let spec = &stored.spec;
        let uid = spec.target.pod_uid.clone().filter(|_| spec.target.pod.is_some() && !spec.suspended)?;
        let target = target(stored);
        let is_said = stored.status.as_ref().is_some_and(|status| !status.conditions.is_empty());
        if is_said && !is_elsewhere(stored, node_name) {
            return None;
        }
        let itself = || Holder::new("Pod", name.clone());
        let (forwards, _) = pinhole::forwards(spec);
        Some(Self {
            name: name.clone(),
            uid,
            holder: spec.holder.as_ref().map_or_else(itself, Holder::from),
            handover: spec.handover.into(),
            udp_handover: spec.udp_handover.map(UdpHandover::from),
            named: forwards.into_iter().map(|forward| forward.located.mapping).collect(),
            automatic: spec.ports.iter().filter_map(open).collect(),
            ips: target.map(TargetReport::ips),
            state: target.and_then(|target| target.state.clone()),
        })
    }

    /// What it may have of this node; `Err` says why it is led nowhere.
    pub fn candidate(
        &self,
        grants: &Grants,
        node: &NodeFacts,
        programmed: &Ruleset,
    ) -> Result<Candidate, String> {
        let owner = Owner::new(&self.name, &self.uid);
        let ips = self.ips(&owner, node, programmed);
        written::check_targets(&ips, node)?;
        let found = grants.found(&self.uid, &owner, (&self.named, &self.automatic), node, programmed);
        Ok(Candidate {
            pod: self.name.clone(),
            uid: self.uid.clone(),
            holder: self.holder.clone(),
            created: self.state.as_ref().map(|state| state.created.to_string()).unwrap_or_default(),
            ready: self.state.as_ref().is_some_and(|state| state.ready),
            terminating: self.state.as_ref().is_some_and(|state| state.terminating),
            ips,
            suspended: self.state.as_ref().is_some_and(|state| state.suspended),
            mappings: self.named.iter().cloned().chain(found).collect(),
            handover: self.handover,
            udp_handover: self.udp_handover,
            leaving: Leaving::WithItsPorts,
        })
    }

    /// Where it is led to. What is programmed stays until the controller has said something, unless it leads to a pod of this node,
    /// which would be known.
    fn ips(&self, owner: &Owner, node: &NodeFacts, programmed: &Ruleset) -> Vec<IpAddr> {
        let is_here = |ip: &IpAddr| node.pod_cidrs.iter().any(|network| network.contains(ip));
        let present = programmed.entries_owned_by(owner);
        let present = present.filter_map(|entry| entry.target.map(|target| target.ip));
        self.ips.clone().unwrap_or_else(|| present.filter(|ip| !is_here(ip)).collect())
    }
}

/// Whether the controller says that the pod of a Pinhole runs on another node than the one of this name.
pub(super) fn is_elsewhere(pinhole: &Pinhole, node_name: &str) -> bool {
    let node = target(pinhole).and_then(|target| target.node.as_deref());
    node.is_some_and(|node| node != node_name)
}

/// What is said of the pod that a Pinhole belongs to; the pods before it stand beside it.
fn target(pinhole: &Pinhole) -> Option<&TargetReport> {
    let uid = pinhole.spec.target.pod_uid.as_deref()?;
    pinhole.status.as_ref()?.targets.iter().find(|target| target.pod_uid == uid)
}

/// A port that is left to a pool.
fn open(port: &PinholePort) -> Option<AutomaticPort> {
    let Some(TargetPort::Number(target)) = port.target_port.clone().filter(|_| port.port.is_none()) else {
        return None;
    };
    let sources: Option<_> = port.allowed_sources.iter().map(|text| text.parse().ok()).collect();
    let automatic = AutomaticPort::new(port.protocol.into(), Port::new(target)?);
    Some(automatic.with_allowed_sources(sources?).terminating_existing(port.terminate_existing))
}
