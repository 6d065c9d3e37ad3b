//! Which pods leave the cluster with the address of their node, and which traffic keeps the address of its pod whatever
//! other programs have rules for.
//!
//! A [`Policy`] is what an operator wants of any node; [`Masquerade`] is what becomes of it on one.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use ipnet::IpNet;
use ipnet::Ipv4Net;
use ipnet::Ipv6Net;

use crate::model::address::Family;
use crate::model::interface::InterfaceName;
use crate::model::masquerade::Policy;
use crate::ruleset::node::NodeFacts;
use crate::ruleset::shortest;

/// Destinations that keep their visitors' addresses: those that a policy names, and what no router forwards.
pub(super) fn exempted(policy: &Policy) -> impl Iterator<Item = IpNet> {
    policy.except.iter().copied().chain(Family::ALL.map(link_local))
}

/// What a node masquerades. Empty for a node that leaves this to others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masquerade {
    pods: BTreeSet<IpNet>,
    excluded_interfaces: BTreeSet<InterfaceName>,
    kept: BTreeSet<IpNet>,
}

impl Masquerade {
    /// Masquerades these pods except where they leave by these interfaces. What comes from `kept` and is exempt is put
    /// out of reach of others' rules.
    pub fn new(
        pods: impl IntoIterator<Item = IpNet>,
        excluded_interfaces: impl IntoIterator<Item = InterfaceName>,
        kept: impl IntoIterator<Item = IpNet>,
    ) -> Self {
        let pods = shortest(pods);
        if pods.is_empty() {
            return Self::default();
        }
        Self { pods, excluded_interfaces: excluded_interfaces.into_iter().collect(), kept: shortest(kept) }
    }

    /// What becomes of a policy on a node.
    pub(super) fn of(policy: &Policy, node: &NodeFacts) -> Self {
        let pods = if policy.pod_cidrs.is_empty() { &node.pod_cidrs } else { &policy.pod_cidrs };
        // A pod of another node is seen here with its own address, too, so both ends of the traffic count.
        let inside = node.pod_cidrs.iter().copied().chain(node.inside()).chain(policy.except.iter().copied());
        let kept = pods.iter().copied().chain(inside).filter(|_| policy.override_existing);
        Self::new(pods.iter().copied(), policy.excluded_interfaces.iter().copied(), kept)
    }

    /// The same, but for one family what `other` masquerades.
    pub(super) fn with(&self, family: Family, other: &Self) -> Self {
        let of = |each: Family| if each == family { other } else { self };
        let pods: BTreeSet<_> =
            Family::ALL.into_iter().flat_map(|each| of(each).pods(each)).copied().collect();
        let kept = Family::ALL.into_iter().flat_map(|each| of(each).kept(each)).copied().collect();
        let excluded_interfaces = if other.pods(family).next().is_some() {
            other.excluded_interfaces.clone()
        } else if pods.is_empty() {
            BTreeSet::new()
        } else {
            self.excluded_interfaces.clone()
        };
        Self { pods, excluded_interfaces, kept }
    }

    /// The pods that leave the cluster with their node's address.
    pub fn pods(&self, family: Family) -> impl Iterator<Item = &IpNet> {
        self.pods.iter().filter(move |net| Family::of(net.addr()) == family)
    }

    /// Interfaces by which they leave with their own address, where there is anything to be masqueraded.
    pub fn excluded_interfaces(&self, family: Family) -> impl Iterator<Item = &InterfaceName> {
        let is_needed = self.pods(family).next().is_some();
        self.excluded_interfaces.iter().filter(move |_| is_needed)
    }

    /// Sources whose exempted traffic nobody else may masquerade; none where the rules of others count.
    pub fn kept(&self, family: Family) -> impl Iterator<Item = &IpNet> {
        self.kept.iter().filter(move |net| Family::of(net.addr()) == family)
    }
}

/// Addresses that no router forwards.
const fn link_local(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16)),
        Family::V6 => IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::desired::desired;
    use crate::ruleset::fixtures::net;
    use crate::ruleset::fixtures::node;

    fn rules_of(policy: Policy) -> crate::ruleset::Ruleset {
        desired(&[], &NodeFacts { masquerade: Some(policy), ..node() }).ruleset
    }

    fn shown<'a>(nets: impl Iterator<Item = &'a IpNet>) -> Vec<String> {
        nets.map(ToString::to_string).collect()
    }

    #[test]
    fn without_a_policy_nothing_is_masqueraded() {
        assert_eq!(*desired(&[], &node()).ruleset.masquerade(), Masquerade::default());
    }

    #[test]
    fn a_bare_policy_masquerades_the_pods_of_the_node_outside_the_cluster() {
        let rules = rules_of(Policy::default());
        let masquerade = rules.masquerade();
        assert_eq!(shown(masquerade.pods(Family::V4)), ["10.244.1.0/24"]);
        assert_eq!(shown(masquerade.pods(Family::V6)), ["fd00:244:1::/64"]);
        assert_eq!(
            shown(rules.cluster_cidrs(Family::V4)),
            ["10.96.0.0/12", "10.244.0.0/16", "169.254.0.0/16"]
        );
        assert_eq!(shown(rules.cluster_cidrs(Family::V6)), ["fd00:244::/48", "fe80::/10"]);
        assert_eq!(masquerade.kept(Family::V4).count(), 0, "rules of others count");
    }

    #[test]
    fn what_is_exempt_adds_to_the_cluster_and_is_kept_in_both_directions() {
        let rules = rules_of(Policy {
            except: vec![net("172.16.0.0/12")],
            override_existing: true,
            ..Policy::default()
        });
        let kept = ["10.96.0.0/12", "10.244.0.0/16", "172.16.0.0/12"];
        assert_eq!(shown(rules.masquerade().kept(Family::V4)), kept);
        let exempt = ["10.96.0.0/12", "10.244.0.0/16", "169.254.0.0/16", "172.16.0.0/12"];
        assert_eq!(shown(rules.cluster_cidrs(Family::V4)), exempt);
    }

    #[test]
    fn a_family_without_pods_has_no_excluded_interfaces_either() {
        let rules = rules_of(Policy {
            pod_cidrs: vec![net("10.244.0.0/16")],
            excluded_interfaces: ["wg0".parse().unwrap()].into(),
            ..Policy::default()
        });
        let masquerade = rules.masquerade();
        assert_eq!(masquerade.excluded_interfaces(Family::V4).count(), 1);
        assert_eq!(masquerade.excluded_interfaces(Family::V6).count(), 0);
    }
}
