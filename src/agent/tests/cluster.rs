//! Which networks the agent takes for the cluster's, and when it looks for them.

use std::collections::BTreeSet;

use super::*;
use crate::agent::following::Following;
use crate::agent::node::Learning;
use crate::cluster::pod_networks::Learnt;

fn learnt(nets: &[&str]) -> Learnt {
    Learnt::Networks(nets.iter().map(|net| net.parse().unwrap()).collect())
}

/// The private networks to which the kernel shows no fixed address.
fn sheltered(bench: &Bench) -> usize {
    bench.kernel.ruleset.lock().unwrap().sheltered(Family::V4).count()
}

#[tokio::test]
async fn other_nodes_pods_are_looked_for_once_a_pod_asks_and_nothing_is_changed_before_they_are_known() {
    let (needed_tx, needed_rx) = watch::channel(false);
    let (learnt_tx, learnt_rx) = watch::channel(None);
    let learning = Learning { needed_tx, learnt: Following::of(learnt_rx) };
    let bench = Bench::start(Settings { learning: Some(learning), ..Settings::default() });
    *bench.public.lock().unwrap() = "10.0.0.7";
    bench.list_node();
    assert!(!*needed_rx.borrow(), "nobody asks");
    bench.pods.feed(POD, News::Listed(vec![pod(80)]));
    bench.until("it waits", |bench| bench.missing().contains("nodes")).await;
    assert!(*needed_rx.borrow());
    assert_eq!(bench.kernel.applies.load(Ordering::SeqCst), 0);

    learnt_tx.send_replace(Some(Learnt::Unknown("501 Nodes".into())));
    bench.until("private networks are sheltered", |bench| sheltered(bench) == 5).await;
    bench.until("it is told", |bench| bench.metrics.unknown_cluster.get() == 1).await;
    learnt_tx.send_replace(Some(learnt(&["10.244.0.0/16", "10.245.0.0/16"])));
    bench.until("the pods alone are exempt", |bench| sheltered(bench) == 0).await;
    bench.until("it is known", |bench| bench.metrics.unknown_cluster.get() == 0).await;
    let inside: BTreeSet<_> =
        bench.kernel.ruleset.lock().unwrap().cluster_cidrs(Family::V4).map(ToString::to_string).collect();
    assert_eq!(inside, ["10.244.0.0/15".to_owned()].into());

    // As where a CNI plugin has addresses of its own, a pod of the node tells that the Nodes say nothing.
    let stranger = json!({"kind": "Pod", "metadata": {"namespace": "x", "name": "y", "uid": "z"},
        "spec": {"nodeName": "node-1"}, "status": {"phase": "Running", "podIPs": [{"ip": "192.168.9.9"}]}});
    let mut host = stranger.clone();
    host["metadata"]["name"] = json!("host");
    host["spec"]["hostNetwork"] = json!(true);
    bench.apply(serde_json::from_value(host).unwrap());
    bench.apply(pod(81));
    bench.until("both are served", |bench| bench.kernel.count() == 2).await;
    assert_eq!(sheltered(&bench), 0, "the node's own network is nobody's");
    bench.apply(serde_json::from_value(stranger).unwrap());
    bench.until("private networks are sheltered again", |bench| sheltered(bench) == 5).await;
    bench.end().await;
}

#[tokio::test]
async fn an_operator_who_names_the_cluster_has_named_all_of_it_and_nothing_is_looked_for() {
    let (needed_tx, needed_rx) = watch::channel(false);
    let (_learnt_tx, learnt_rx) = watch::channel(None);
    let learning = Learning { needed_tx, learnt: Following::of(learnt_rx) };
    let cluster_cidrs = vec!["10.244.0.0/16".parse().unwrap()];
    let bench = Bench::with_pods(
        Settings { learning: Some(learning), cluster_cidrs, ..Settings::default() },
        vec![pod(80)],
    );
    bench.until("it is served", |bench| bench.kernel.count() == 1).await;
    assert_eq!(sheltered(&bench), 0);
    assert!(needed_rx.has_changed().is_err(), "nobody is left who could ask");
    bench.end().await;
}
