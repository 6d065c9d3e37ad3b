//! The networks of the pods of all nodes, as the Nodes show them, for an agent that nobody has told what the cluster is.
//!
//! # Guarantees
//! - Nothing is asked for before it is needed, and in a cluster of many nodes nothing but how many there are: every agent that
//!   watches every Node costs the API server the square of their number.
//! - What is told is of all nodes. While one of them shows no network of a family, nobody knows where the pods of that family are.
//! - Whoever waits is told that it cannot be known, too, and why.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::Client;
use kube::Resource;
use kube::api::ListParams;
use serde::Deserialize;
use tokio::sync::watch;

use crate::cluster::every;
use crate::cluster::every::Followed;
use crate::cluster::trouble::describe;
use crate::model::address::Family;

/// As many nodes as can all watch each other.
pub(crate) const MANY: usize = 500;
/// How long until it is asked again how many there are, or whether that may be known: longer from one time to the next.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(10);
/// A Node that joins gets its networks within this time.
const JOINING: Duration = Duration::from_secs(10);

/// What is known of the networks of other nodes' pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Learnt {
    /// Those of all nodes, of each family that all of them have.
    Networks(BTreeSet<IpNet>),
    /// Nobody can say, for this reason.
    Unknown(String),
}

/// A Node, as far as it matters here.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "Node")]
pub struct NodeWithPods {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Spec,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Spec {
    #[serde(default, rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}

/// The networks of one node's pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodNetworks(Vec<IpNet>);

impl Followed for PodNetworks {
    type Object = NodeWithPods;

    const ADVICE: &'static str =
        "name the networks of all pods by --cluster-cidr, or grant the rights of the chart";

    fn of(node: NodeWithPods) -> Self {
        Self(node.spec.pod_cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect())
    }

    fn differs(&self, other: &Self) -> bool {
        self != other
    }
}

/// Learns them from when they are needed until dropped.
pub async fn learn(
    client: Client,
    mut needed_rx: watch::Receiver<bool>,
    learnt_tx: watch::Sender<Option<Learnt>>,
) {
    if needed_rx.wait_for(|is_needed| *is_needed).await.is_err() {
        return;
    }
    let mut pause = FIRST_PAUSE;
    loop {
        if let Err(reason) = are_few(&client).await {
            learnt_tx.send_replace(Some(Learnt::Unknown(reason)));
            tokio::time::sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
            continue;
        }
        pause = FIRST_PAUSE;
        let (known_tx, known_rx) = watch::channel(None);
        tokio::select! {
            () = every::follow::<PodNetworks>(client.clone(), known_tx) => {}
            () = tell(known_rx, &learnt_tx) => {}
        }
    }
}

/// Whether the Nodes can be watched: there may be too many, or no right to count them.
async fn are_few(client: &Client) -> Result<(), String> {
    let one = ListParams::default().limit(1);
    let listed = Api::<Node>::all(client.clone()).list_metadata(&one).await;
    let listed = listed.map_err(|error| format!("the Nodes cannot be listed: {}", describe(&error)))?;
    let others = listed.metadata.remaining_item_count.unwrap_or_default();
    count(listed.items.len() + usize::try_from(others).unwrap_or_default())
}

fn count(nodes: usize) -> Result<(), String> {
    if nodes <= MANY {
        return Ok(());
    }
    Err(format!("{nodes} Nodes are more than each agent can watch ({MANY})"))
}

/// Passes on what the Nodes show, until there are too many of them.
async fn tell(
    mut known_rx: watch::Receiver<every::Known<PodNetworks>>,
    learnt_tx: &watch::Sender<Option<Learnt>>,
) {
    while known_rx.changed().await.is_ok() {
        let look = |known_rx: &mut watch::Receiver<every::Known<PodNetworks>>| {
            known_rx.borrow_and_update().as_deref().map(networks)
        };
        let mut now = look(&mut known_rx);
        let was_known = matches!(*learnt_tx.borrow(), Some(Learnt::Networks(_)));
        if was_known && matches!(now, Some(Learnt::Unknown(_))) {
            tokio::time::sleep(JOINING).await;
            now = look(&mut known_rx);
        }
        learnt_tx.send_if_modified(|told| {
            let is_news = now.is_some() && *told != now;
            if is_news {
                told.clone_from(&now);
            }
            is_news
        });
        if known_rx.borrow().as_deref().is_some_and(|nodes| count(nodes.len()).is_err()) {
            return;
        }
    }
}

/// What the Nodes say together.
fn networks(nodes: &BTreeMap<String, PodNetworks>) -> Learnt {
    if let Err(reason) = count(nodes.len()) {
        return Learnt::Unknown(reason);
    }
    let lacks =
        |PodNetworks(nets): &PodNetworks, family| !nets.iter().any(|net| Family::of(net.addr()) == family);
    let is_shown = |family| !nodes.is_empty() && !nodes.values().any(|node| lacks(node, family));
    let all = nodes.values().flat_map(|PodNetworks(nets)| nets);
    let shown: BTreeSet<_> = all.filter(|net| is_shown(Family::of(net.addr()))).copied().collect();
    if !shown.is_empty() {
        return Learnt::Networks(shown);
    }
    let bare = nodes.iter().find(|(_, PodNetworks(nets))| nets.is_empty());
    Learnt::Unknown(match bare {
        Some((name, _)) => format!("Node {name} has no podCIDRs"),
        None if nodes.is_empty() => "no Node can be seen".to_owned(),
        None => "the Nodes have podCIDRs of different families".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn nodes(shown: &[&[&str]]) -> BTreeMap<String, PodNetworks> {
        let one = |(number, nets): (usize, &&[&str])| {
            let nets = nets.iter().map(|net| net.parse().unwrap()).collect();
            (format!("node-{number}"), PodNetworks(nets))
        };
        shown.iter().enumerate().map(one).collect()
    }

    fn told(learnt: &Learnt) -> String {
        match learnt {
            Learnt::Networks(nets) => nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            Learnt::Unknown(reason) => reason.clone(),
        }
    }

    #[test]
    fn a_family_is_known_once_every_node_shows_a_network_of_it() {
        let (first, second) =
            (&["10.244.0.0/24", "fd00:244::/64"][..], &["10.244.1.0/24", "fd00:244:1::/64"][..]);
        for (shown, expected) in [
            (&[first, second][..], "10.244.0.0/24 10.244.1.0/24 fd00:244::/64 fd00:244:1::/64"),
            (&[first, &["10.244.1.0/24"]], "10.244.0.0/24 10.244.1.0/24"),
            (&[first, &[]], "Node node-1 has no podCIDRs"),
            (&[&["10.244.0.0/24"], &["fd00:244:1::/64"]], "the Nodes have podCIDRs of different families"),
            (&[], "no Node can be seen"),
        ] {
            assert_eq!(told(&networks(&nodes(shown))), expected);
        }
        let many = vec![first; MANY + 1];
        assert_eq!(told(&networks(&nodes(&many))), "501 Nodes are more than each agent can watch (500)");
    }

    #[test]
    fn of_a_node_only_its_pods_networks_are_kept() {
        let node = serde_json::json!({
            "metadata": {"name": "node-1"}, "spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"]},
            "status": {"images": []},
        });
        assert_eq!(
            PodNetworks::of(serde_json::from_value(node).unwrap()),
            nodes(&[&["10.244.0.0/24"]])["node-0"]
        );
        let bare = serde_json::json!({"metadata": {"name": "node-1"}});
        assert_eq!(PodNetworks::of(serde_json::from_value(bare).unwrap()), PodNetworks::default());
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_joins_does_not_unsettle_what_is_known() {
        let (known_tx, known_rx) = watch::channel(None);
        let (learnt_tx, learnt_rx) = watch::channel(None);
        let telling = tokio::spawn(async move { tell(known_rx, &learnt_tx).await });
        let show = |shown: &[&[&str]]| known_tx.send_replace(Some(Arc::new(nodes(shown))));
        let wait = async |seconds| {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            learnt_rx.borrow().as_ref().map(told).unwrap_or_default()
        };
        show(&[&["10.244.0.0/24"]]);
        assert_eq!(wait(1).await, "10.244.0.0/24");
        show(&[&["10.244.0.0/24"], &[]]);
        assert_eq!(wait(1).await, "10.244.0.0/24", "its networks are on their way");
        show(&[&["10.244.0.0/24"], &["10.244.1.0/24"]]);
        assert_eq!(wait(20).await, "10.244.0.0/24 10.244.1.0/24");
        show(&[&["10.244.0.0/24"], &[]]);
        assert_eq!(wait(20).await, "Node node-1 has no podCIDRs");
        show(&vec![&["10.244.0.0/24"][..]; MANY + 1]);
        tokio::time::timeout(Duration::from_mins(1), telling).await.expect("it is counted anew").unwrap();
    }
}
