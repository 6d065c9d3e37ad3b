//! Which custom resources an agent works with, and the tasks that follow and write them beside its loop.

use std::sync::Arc;

use clap::Args;
use kube::Client;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::agent::Granting;
use crate::agent::following::Following;
use crate::agent::links;
use crate::agent::links::Linking;
use crate::agent::masquerade::Masquerading;
use crate::agent::nat_node;
use crate::agent::nat_node::Desk;
use crate::agent::node::Learning;
use crate::cluster::client::Connection;
use crate::cluster::every;
use crate::cluster::nat_nodes::NatNodes;
use crate::cluster::nat_nodes::Stored;
use crate::cluster::nat_pools;
use crate::cluster::node_pods::NodePods;
use crate::cluster::pinhole_reports::Reports;
use crate::cluster::pinhole_store::PinholeStore;
use crate::cluster::pinhole_watch::KnownPinholes;
use crate::cluster::pod_networks;
use crate::dataplane::links::LinksInUse;
use crate::model::masquerade::Policy;

/// Which custom resources to work with.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Custom resources")]
pub(crate) struct ResourceFlags {
    /// Keep a NatNode under the node's name: what it is, which ports its own programs have, how it stands. Its spec.paused
    /// then makes this agent change nothing. Needs the custom resources and the right to write NatNodes.
    #[arg(long, env = "PINHOLE_NAT_NODE")]
    nat_node: bool,

    /// Masquerade as the oldest MasqueradePolicy that selects this node says, and by the flags where none does. Needs the
    /// right to list and watch them; a cluster without the custom resources has none.
    #[arg(long, env = "PINHOLE_MASQUERADE_POLICIES")]
    masquerade_policies: bool,

    /// Serve ports only to whom the controller grants them, and report on it in the Pinholes; use the links of the NatPools that
    /// select this node. Implies --nat-node. Needs the custom resources and `pinhole controller`.
    #[arg(long, env = "PINHOLE_CLAIMS")]
    claims: bool,
}

impl ResourceFlags {
    /// Whether ports are served by what the controller grants.
    pub(crate) const fn has_claims(self) -> bool {
        self.claims
    }

    /// Follows and writes the NatNode of this node, if that is wanted.
    pub(crate) fn nat_node(
        self,
        client: Client,
        node_name: &str,
        backend: nat_node::Backend,
    ) -> Option<Desk> {
        // By it the controller knows for which address the ports are claimed that name none.
        (self.nat_node || self.claims).then(|| {
            let nodes = NatNodes::new(client, node_name.to_owned());
            let (stored_tx, stored_rx) = watch::channel(Stored::Unknown);
            tokio::spawn(nodes.clone().follow(stored_tx));
            let (desk, clerk) = nat_node::open(nodes, backend, stored_rx);
            tokio::spawn(clerk.run());
            desk
        })
    }

    /// What pods leave the cluster with, by `flags` where no policy says so.
    pub(crate) fn masquerading(self, flags: Option<Policy>, client: &Client) -> Masquerading {
        let by_flags = Masquerading::by_flags(flags);
        if !self.masquerade_policies {
            return by_flags;
        }
        // The watch -> the agent's loop; only the last word counts.
        let (known_tx, known_rx) = watch::channel(None);
        tokio::spawn(every::follow(client.clone(), known_tx));
        by_flags.with_policies(known_rx)
    }

    /// By which links the node reaches the outside: those that the flags have put in use, and with claims those of pools.
    pub(crate) fn linking(self, in_use: LinksInUse, client: &Client) -> Linking {
        let by_flags = Linking::by_flags(in_use);
        if !self.claims {
            return by_flags;
        }
        // The watch -> the agent's loop; only the last word counts.
        let (known_tx, known_rx) = watch::channel(None);
        tokio::spawn(nat_pools::follow(client.clone(), move |news| {
            known_tx.send_if_modified(|known| links::hear(known, news));
        }));
        by_flags.with_pools(known_rx)
    }

    /// Follows the Pinholes that the node serves, if that is wanted; the task tells why it has ended. A dry run reports on
    /// none.
    pub(crate) fn granting(
        self,
        connection: &Connection,
        node_name: &str,
        pods: &Arc<NodePods>,
        is_dry_run: bool,
    ) -> Option<(Granting, JoinHandle<anyhow::Error>)> {
        if !self.claims {
            return None;
        }
        let (pinholes, reports) = (Arc::<KnownPinholes>::default(), Arc::<Reports>::default());
        let (client, node_name) = (connection.client.clone(), node_name.to_owned());
        let (known, pods) = (Arc::clone(&pinholes), Arc::clone(pods));
        let following = async move {
            known.follow(client, Some(&node_name), || pods.wake()).await;
            anyhow::anyhow!("the watch on Pinholes has ended, so what is granted is not known any more")
        };
        if !is_dry_run {
            let (reports, store) = (Arc::clone(&reports), PinholeStore::new(connection.client.clone()));
            tokio::spawn(async move { reports.write(&store).await });
        }
        Some((Granting { pinholes, reports }, tokio::spawn(following)))
    }
}

/// Learns the networks of other nodes' pods once the loop needs them.
pub(crate) fn learning(client: &Client) -> Learning {
    // The agent's loop -> the watch -> the loop; only the last word counts.
    let (needed_tx, needed_rx) = watch::channel(false);
    let (learnt_tx, learnt_rx) = watch::channel(None);
    tokio::spawn(pod_networks::learn(client.clone(), needed_rx, learnt_tx));
    Learning { needed_tx, learnt: Following::of(learnt_rx) }
}
