//! Whether a gateway, which knows the pods of other nodes by their Pinholes only, elects as if they were its own.

use super::*;
use crate::model::handover::Handover;

/// How a pod of a holder is at some moment: whether it is ready, is being deleted, has an address and is suspended; `None` while there
/// is none.
type Moment = Option<(bool, bool, bool, bool)>;

impl World {
    /// What the first node forwards to when its pods and Pinholes are as they are now and everybody has heard so.
    fn settled(&mut self, pods: &[Object]) -> Vec<String> {
        self.pods = pods
            .iter()
            .map(|pod| (ObjectName::new("mail", pod.metadata.name.as_str()), pod.clone()))
            .collect();
        for _ in 0..40 {
            self.look();
            self.keep(0);
        }
        self.nodes[0].has_listed = false;
        self.agent_turn(0, false);
        self.agent_writes(0);
        self.nodes[0].kernel.entries().map(ToString::to_string).collect()
    }
}

fn of_fleet(
    number: usize,
    node: usize,
    handover: Handover,
    (is_ready, ends, has_address, is_suspended): (bool, bool, bool, bool),
) -> Object {
    let ips: &[serde_json::Value] =
        if has_address { &[json!({"ip": format!("10.244.7.{}", number + 1)})] } else { &[] };
    let ready = if is_ready { "True" } else { "False" };
    let annotations = json!({
        "pinhole.dev/expose": format!("{ADDRESS}:25"), "pinhole.dev/handover": handover.name(),
        "pinhole.dev/suspended": is_suspended.to_string(),
    });
    let pod = json!({
        "kind": "Pod",
        "metadata": {
            "namespace": "mail", "name": format!("mx-{number}"), "uid": format!("uid-{number}"),
            "creationTimestamp": at(i64::try_from(number / 2).unwrap()).to_string(),
            "deletionTimestamp": ends.then(|| at(50).to_string()),
            "annotations": annotations,
            "ownerReferences": [{"kind": "GameSet", "name": "set-0", "uid": "1", "controller": true}],
        },
        "spec": {"nodeName": node_name(node)},
        "status": {"phase": "Running", "podIPs": ips, "conditions": [{"type": "ContainersReady", "status": ready}]},
    });
    serde_json::from_value(pod).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever its pods do, and on whichever nodes they are.
    #[test]
    fn a_gateway_elects_the_pod_that_its_own_node_would(
        moments in proptest::collection::vec(proptest::collection::vec(any::<Moment>(), 4), 1..5),
        nodes in proptest::collection::vec(0..NODES, 4),
        handovers in proptest::collection::vec(proptest::sample::select(Handover::ALL.to_vec()), 4),
    ) {
        let world = || {
            let mut world = World { has_gateway: true, ..World::new() };
            let holder = Holder::new("GameSet", ObjectName::new("mail", "set-0"));
            let key = "v4-203-0-113-7-tcp-25".parse().unwrap();
            assert!(world.acquire(vec![Claim::reserve(key, holder, at(0))]));
            world
        };
        let (mut here, mut spread) = (world(), world());
        for moment in &moments {
            let pods = |node_of: &dyn Fn(usize) -> usize| -> Vec<_> {
                let pod = |(number, how): (usize, &Moment)| Some(of_fleet(number, node_of(number), handovers[number], (*how)?));
                moment.iter().enumerate().filter_map(pod).collect()
            };
            let expected = here.settled(&pods(&|_| 0));
            let found = spread.settled(&pods(&|number| nodes[number]));
            prop_assert_eq!(found, expected);
        }
    }
}
