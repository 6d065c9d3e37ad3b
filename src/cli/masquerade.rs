//! The flags that say which pods are masqueraded.

use clap::Args;
use ipnet::IpNet;

use crate::cli::network;
use crate::model::interface::InterfaceName;
use crate::model::masquerade::Policy;

/// Whose traffic leaves the cluster with the node's address.
#[derive(Debug, Args)]
#[command(next_help_heading = "Masquerade")]
pub(crate) struct MasqueradeFlags {
    /// Give pods the node's address when they leave the cluster and have no fixed one. Without it, that is left to others.
    #[arg(long, env = "PINHOLE_MASQUERADE")]
    masquerade: bool,

    /// A network of pods to masquerade. Repeatable. Default: the node's pods.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = network::parse,
          env = "PINHOLE_MASQUERADE_POD_CIDR", requires = "masquerade")]
    masquerade_pod_cidr: Vec<IpNet>,

    /// A destination that sees the pod's own address, as the pods of the node, every --cluster-cidr, link-local and
    /// multicast addresses always do. Repeatable.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = network::parse_part,
          env = "PINHOLE_NON_MASQUERADE_CIDR", requires = "masquerade")]
    non_masquerade_cidr: Vec<IpNet>,

    /// An interface by which pods leave with their own address, such as a tunnel. Repeatable.
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = interface,
          env = "PINHOLE_MASQUERADE_EXCLUDE_INTERFACE", requires = "masquerade")]
    masquerade_exclude_interface: Vec<InterfaceName>,

    /// Keep rules of other programs, such as Flannel's, docker's or one made by hand, from masquerading what is not to
    /// be. Those rules stay where they are.
    #[arg(long, env = "PINHOLE_MASQUERADE_OVERRIDE_EXISTING", requires = "masquerade")]
    masquerade_override_existing: bool,
}

impl MasqueradeFlags {
    /// What the flags want; nothing without --masquerade.
    pub(crate) fn into_policy(self) -> Option<Policy> {
        self.masquerade.then(|| Policy {
            pod_cidrs: self.masquerade_pod_cidr,
            except: self.non_masquerade_cidr,
            excluded_interfaces: self.masquerade_exclude_interface.into_iter().collect(),
            override_existing: self.masquerade_override_existing,
        })
    }
}

fn interface(text: &str) -> Result<InterfaceName, String> {
    text.parse().map_err(|error| format!("{text:?} {error}"))
}
