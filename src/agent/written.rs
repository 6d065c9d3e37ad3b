//! The Pinholes that users write, as a node serves them: what each asks for, and the pod that its status leads it to.
//!
//! The status is the controller's, and nobody else can write it. All the same it is looked at twice: packets are led to pods'
//! addresses only, as far as the networks of pods are known, and what the spec does not ask for any more, and all of one that is deleted, is
//! closed at once, whatever the status still grants.

use std::net::IpAddr;

use crate::admission::pinhole;
use crate::agent::desired::Pod;
use crate::agent::grants::granted;
use crate::agent::grants::key;
use crate::api::crd::pinhole::Egress;
use crate::api::crd::pinhole::Pinhole;
use crate::api::crd::pinhole::TargetReport;
use crate::model::address::ExternalAddress;
use crate::model::handover::Handover;
use crate::model::handover::UdpHandover;
use crate::model::holder::Holder;
use crate::model::holder::ObjectName;
use crate::model::mapping::Address;
use crate::model::mapping::Mapping;
use crate::model::port::Port;
use crate::ruleset::Ruleset;
use crate::ruleset::election::Candidate;
use crate::ruleset::endpoint::Leaving;
use crate::ruleset::node::NodeFacts;
use crate::ruleset::owner::Owner;

/// A Pinhole that a user wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The Pinhole, as rules name it.
    pub itself: Pod,
    /// The pods behind it that are known.
    pub targets: Vec<Pod>,
    created: String,
    /// What it asks for, each with the port behind the first external one, where the controller has said which.
    forwards: Vec<(Mapping, Option<Port>)>,
    /// The addresses of the active pod; `None` while the controller has not said anything.
    active: Option<Vec<IpAddr>>,
    leaving: Leaving,
    udp_handover: Option<UdpHandover>,
    suspended: bool,
}

impl Written {
    /// What a Pinhole says; `None` for one of a pod.
    pub fn of(name: &ObjectName, stored: &Pinhole) -> Option<Self> {
        if stored.spec.target.pod.is_some() {
            return None;
        }
        let metadata = &stored.metadata;
        let status = stored.status.clone().unwrap_or_default();
        let is_deleted = metadata.deletion_timestamp.is_some();
        let (forwards, _) = if is_deleted { Default::default() } else { pinhole::forwards(&stored.spec) };
        let behind = |mapping: &Mapping| {
            let key = key(mapping)?;
            let endpoint = status.endpoints.iter().find(|endpoint| granted(endpoint) == Some(key))?;
            Port::new(endpoint.target_port)
        };
        let forwards = forwards.into_iter().map(|forward| {
            let mapping = forward.located.mapping;
            let behind = behind(&mapping);
            (mapping, behind)
        });
        let pod = |target: &TargetReport| Pod {
            name: ObjectName::new(name.namespace.clone(), target.pod.as_str()),
            uid: target.pod_uid.clone(),
            ips: target.ips(),
        };
        let active = status.targets.iter().find(|target| target.active).map(pod);
        let is_said = !status.conditions.is_empty();
        Some(Self {
            itself: Pod {
                name: name.clone(),
                uid: metadata.uid.clone().unwrap_or_default(),
                ips: Vec::new(),
            },
            targets: status.targets.iter().map(pod).collect(),
            created: metadata.creation_timestamp.as_ref().map(|time| time.0.to_string()).unwrap_or_default(),
            forwards: forwards.collect(),
            active: is_said.then(|| active.map(|pod| pod.ips).unwrap_or_default()),
            leaving: leaving(stored.spec.egress),
            udp_handover: stored.spec.udp_handover.map(UdpHandover::from),
            suspended: stored.spec.suspended,
        })
    }

    /// What it wants of this node; `Err` says why it is led nowhere.
    pub fn candidate(&self, node: &NodeFacts, programmed: &Ruleset) -> Result<Candidate, String> {
        let owner = Owner::new(&self.itself.name, &self.itself.uid);
        let present = programmed.entries_owned_by(&owner);
        // What is programmed stays until the controller has said something.
        let ips = self
            .active
            .clone()
            .unwrap_or_else(|| present.filter_map(|entry| entry.target.map(|target| target.ip)).collect());
        check_targets(&ips, node)?;
        let here = self.forwards.iter().filter(|(mapping, _)| match mapping.address() {
            Address::Fixed(address) => node.may_serve(address.ip()),
            Address::Node => true,
        });
        let mapping = |(mapping, behind): &(Mapping, Option<Port>)| {
            let programmed = || Some(programmed.entry(&key(mapping)?)?.target?.first);
            let Some(first) = behind.or_else(programmed) else { return Some(mapping.clone()) };
            mapping.leading_to(first)
        };
        Ok(Candidate {
            pod: self.itself.name.clone(),
            uid: self.itself.uid.clone(),
            holder: Holder::new("Pinhole", self.itself.name.clone()),
            created: self.created.clone(),
            ready: true,
            terminating: false,
            mappings: here.filter_map(mapping).collect(),
            handover: Handover::default(),
            udp_handover: self.udp_handover,
            leaving: self.leaving,
            ips,
            suspended: self.suspended,
        })
    }
}

/// How the pod behind a Pinhole leaves the cluster.
pub const fn leaving(egress: Egress) -> Leaving {
    match egress {
        Egress::External => Leaving::WithTheExternal,
        Egress::Cluster => Leaving::AsTheClusterDoes,
    }
}

/// Says why packets are not led to one of these addresses: it is no pod's, as far as the networks of pods are known.
pub(super) fn check_targets(ips: &[IpAddr], node: &NodeFacts) -> Result<(), String> {
    match ips.iter().find(|ip| !is_of_a_pod(**ip, node)) {
        None => Ok(()),
        Some(ip) => Err(format!(
            "{ip} is in none of the networks of pods that this node's agent knows, so nothing is led there; name those of \
             all pods in --cluster-cidr"
        )),
    }
}

/// Whether an address can be a pod's. Where the operator has named no network beside this node's, one of another node's pods may
/// have any that is not the host's own or its link's.
fn is_of_a_pod(ip: IpAddr, node: &NodeFacts) -> bool {
    let mut networks = node.pod_cidrs.iter().chain(&node.cluster_cidrs);
    let is_open = || node.cluster_cidrs.is_empty() && ExternalAddress::new(ip).is_ok();
    node.pods.contains(&ip) || networks.any(|network| network.contains(&ip)) || is_open()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ruleset::fixtures;

    #[test]
    fn what_a_user_says_of_a_port_holds_wherever_its_service_leads_it() {
        let stored = json!({
            "apiVersion": "pinhole.dev/v1alpha1", "kind": "Pinhole",
            "metadata": {"namespace": "shop", "name": "web", "uid": "pinhole-1"},
            "spec": {"target": {"service": "web"}, "addresses": ["203.0.113.7"], "ports": [{
                "port": 443, "targetPort": "https", "allowedSources": ["198.51.100.0/24"], "terminateExisting": true,
            }]},
            "status": {"endpoints": [{"address": "203.0.113.7", "protocol": "TCP", "port": 443, "targetPort": 8443}]},
        });
        let stored = serde_json::from_value(stored).unwrap();
        let written = Written::of(&ObjectName::new("shop", "web"), &stored).unwrap();
        let candidate = written.candidate(&fixtures::node(), &Ruleset::default()).unwrap();
        let [mapping] = candidate.mappings.as_slice() else { panic!("{candidate:?}") };
        assert_eq!(mapping.target().to_string(), "8443");
        assert_eq!(mapping.allowed_sources(), [fixtures::net("198.51.100.0/24")]);
        assert!(mapping.terminates_existing());
        assert_eq!((candidate.leaving, candidate.udp_handover), (Leaving::AsTheClusterDoes, None));

        let mut stored: Pinhole = stored;
        stored.spec.egress = Egress::External;
        stored.spec.udp_handover = Some(UdpHandover::Cut.into());
        let written = Written::of(&ObjectName::new("shop", "web"), &stored).unwrap();
        let candidate = written.candidate(&fixtures::node(), &Ruleset::default()).unwrap();
        assert_eq!(candidate.leaving, Leaving::WithTheExternal);
        assert_eq!(candidate.udp_handover, Some(UdpHandover::Cut));
    }
}
