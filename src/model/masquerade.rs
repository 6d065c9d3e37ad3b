//! What an operator wants of pods that leave the cluster, whether flags say it or a policy does.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::model::interface::InterfaceName;

/// Which pods leave with their node's address, and who sees their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The pods that leave with their node's address; none for the pods of the node.
    pub pod_cidrs: Vec<IpNet>,
    /// Destinations that see the pod's own address, besides those inside the cluster.
    pub except: Vec<IpNet>,
    /// Interfaces by which pods leave with their own address.
    pub excluded_interfaces: BTreeSet<InterfaceName>,
    /// Whether traffic that keeps its address is put out of reach of rules that others masquerade by.
    pub override_existing: bool,
}
