//! What is written for pods and claims that a test says there are, and what people then see of it.

use std::sync::Arc;

use k8s_openapi::jiff::SignedDuration;
use serde_json::Value;
use serde_json::json;

use super::*;
use crate::admission::index::Index;
use crate::admission::policy::Policy;
use crate::allocation::claim::Claim;
use crate::allocation::claim::StoredClaim;
use crate::allocation::claim::Version;
use crate::allocation::key::ClaimKey;
use crate::cluster::claim_watch::Claims;
use crate::controller::automatic::Found;
use crate::controller::standing::Waiting;
use crate::model::holder::Holder;

struct Scene {
    pods: AskingPods,
    pinholes: Pinholes,
    claims: Claims,
    index: Index,
    policy: Policy,
    now: Timestamp,
    made: u32,
}

fn scene() -> Scene {
    Scene {
        pods: AskingPods::new(),
        pinholes: Pinholes::new(),
        claims: Claims::new(),
        index: Index::new(Arc::new(Policy::default())),
        policy: Policy::default(),
        now: Timestamp::from_second(1_700_000_000).unwrap(),
        made: 0,
    }
}

/// A pod on node-1 with an address; `changes` is merged into it.
#[expect(clippy::needless_pass_by_value, reason = "literal JSON at every call")]
fn pod(ports: &str, changes: Value) -> Object {
    let mut pod = json!({
        "kind": "Pod",
        "metadata": {"namespace": "mail", "name": "mx", "uid": "uid-mx", "annotations": {"pinhole.dev/expose": ports}},
        "spec": {"nodeName": "node-1"},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.244.1.9"}]},
    });
    json_patch::merge(&mut pod, &changes);
    serde_json::from_value(pod).unwrap()
}

impl Scene {
    fn with(mut self, pod: Object) -> Self {
        let name = ObjectName::new(pod.metadata.namespace.as_str(), pod.metadata.name.as_str());
        self.pods.insert(name, pod);
        self
    }

    fn claimed(mut self, name: &str, by: &str) -> Self {
        let key: ClaimKey = name.parse().unwrap();
        let claim = Claim::reserve(key, Holder::new("Pod", ObjectName::new("mail", by)), self.now);
        self.claims
            .insert(key, StoredClaim { claim, version: Version { key, uid: "1".into(), revision: 1 } });
        self
    }

    fn plan(&self) -> Plan {
        let (found, waiting) = (Found::of(&self.claims), Waiting::new());
        let known = Known {
            claims: &self.claims,
            found: &found,
            waiting: &waiting,
            index: &self.index,
            policy: &self.policy,
        };
        plan(&self.pods, &self.pinholes, &known, self.now)
    }

    /// Takes turns until nothing is left to write, as an API server would store it; says what was written.
    fn settle(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        for _ in 0..10 {
            let plan = self.plan();
            if plan.writes.is_empty() {
                return said;
            }
            for write in plan.writes {
                said.push(self.store(write));
            }
            self.now = self.now.checked_add(SignedDuration::from_secs(1)).unwrap();
        }
        panic!("it never comes to rest: {said:?}");
    }

    fn store(&mut self, write: Write) -> String {
        match write {
            Write::Label { .. } => unreachable!("nothing of a pod's is labelled alone"),
            Write::Apply(mut pinhole) => {
                let name = ObjectName::new("mail", pinhole.metadata.name.clone().unwrap());
                let (uid, generation, status) = if let Some(known) = self.pinholes.remove(&name) {
                    assert_eq!(
                        pinhole.metadata.uid, known.metadata.uid,
                        "a known object is written by its UID"
                    );
                    let is_changed = known.spec != pinhole.spec;
                    let generation = known.metadata.generation.unwrap() + i64::from(is_changed);
                    (known.metadata.uid, generation, known.status)
                } else {
                    self.made += 1;
                    (Some(format!("pinhole-{}", self.made)), 1, None)
                };
                pinhole.metadata.uid = uid;
                pinhole.metadata.generation = Some(generation);
                pinhole.status = status;
                let said = format!("apply {name}");
                self.pinholes.insert(name, *pinhole);
                said
            }
            Write::Report(pinhole) => {
                let name = ObjectName::new("mail", pinhole.metadata.name.clone().unwrap());
                let stored = self.pinholes.get_mut(&name).unwrap();
                let nodes = stored.status.take().unwrap_or_default().nodes;
                stored.status = pinhole.status.map(|status| PinholeStatus { nodes, ..status });
                format!("report {name}")
            }
            Write::Announce { pod, patch } => {
                let text =
                    patch["metadata"]["annotations"]["pinhole.dev/endpoints"].as_str().map(str::to_owned);
                let annotations = &mut self.pods.get_mut(&pod).unwrap().metadata.annotations;
                match text {
                    Some(text) => drop(annotations.insert("pinhole.dev/endpoints".to_owned(), text)),
                    None => drop(annotations.remove("pinhole.dev/endpoints")),
                }
                format!("tell {pod}")
            }
            Write::Delete { name, uid } => {
                let gone = self.pinholes.remove(&name).unwrap();
                assert_eq!(gone.metadata.uid, Some(uid));
                format!("delete {name}")
            }
        }
    }

    fn mx(&mut self) -> &mut Pinhole {
        self.pinholes.get_mut(&ObjectName::new("mail", "mx")).unwrap()
    }

    /// The columns of `kubectl get pinholes` without name and age, and what the conditions say.
    fn columns(&mut self) -> [String; 5] {
        let status = self.mx().status.clone().unwrap();
        let condition = |type_: &str| {
            let found = status.conditions.iter().find(|condition| condition.type_ == type_).unwrap();
            format!("{:?} {} {}", found.status, found.reason, found.message).trim_end().to_owned()
        };
        let columns = [status.external.clone(), status.target.clone(), status.node.clone()];
        let [external, target, node] = columns;
        [external, target, node, condition("Accepted"), condition("Programmed")]
    }

    fn reported(&mut self, programmed: bool, reason: &str) {
        let generation = self.mx().metadata.generation;
        let report = NodeReport {
            name: "node-1".to_owned(),
            programmed,
            reason: reason.to_owned(),
            message: String::new(),
            observed_generation: generation,
        };
        self.mx().status.as_mut().unwrap().nodes = vec![report];
    }
}

const PORT: &str = "203.0.113.7:25";
const KEY: &str = "v4-203-0-113-7-tcp-25";

#[test]
fn a_pod_with_its_claims_gets_one_object_that_comes_to_rest() {
    let mut scene = scene().with(pod("203.0.113.7:25,8080:80", json!({}))).claimed(KEY, "mx");
    assert_eq!(scene.settle(), ["tell mail/mx", "apply mail/mx", "report mail/mx"]);
    let expected = [
        "203.0.113.7:25/tcp +1",
        "10.244.1.9:25",
        "node-1",
        "True Granted",
        "Unknown Waiting the agent of node-1 has not reported yet",
    ];
    assert_eq!(scene.columns(), expected);
    scene.reported(true, "Programmed");
    assert_eq!(scene.settle(), ["report mail/mx"]);
    assert_eq!(scene.columns()[4], "True Programmed");
    let stored = scene.mx().clone();
    assert_eq!(
        serde_json::to_value(&stored.spec).unwrap(),
        json!({
            "target": {"pod": "mx"},
            "ports": [
                {"address": "203.0.113.7", "protocol": "TCP", "port": 25, "targetPort": 25},
                {"protocol": "TCP", "port": 8080, "targetPort": 80},
            ],
            "egress": "Cluster", "sharing": "Exclusive", "handover": "WhenReady", "udpHandover": "Drain",
            "suspended": false,
            "holder": {"kind": "Pod", "namespace": "mail", "name": "mx"},
        })
    );
    assert_eq!(
        stored.metadata.labels.unwrap().into_keys().collect::<Vec<_>>(),
        ["app.kubernetes.io/managed-by", "node.pinhole.dev/node-1"]
    );
    let owner = &stored.metadata.owner_references.unwrap()[0];
    assert_eq!((owner.kind.as_str(), owner.uid.as_str()), ("Pod", "uid-mx"));
    let endpoints = serde_json::to_value(&stored.status.unwrap().endpoints).unwrap();
    assert_eq!(
        endpoints,
        json!([{"address": "203.0.113.7", "protocol": "TCP", "port": 25, "targetPort": 25}])
    );
}

#[test]
fn who_has_not_what_it_asks_for_is_told_why() {
    let cases = [
        (scene().with(pod(PORT, json!({}))), "Unknown Waiting 203.0.113.7:25/tcp is about to be claimed", 0),
        (
            scene().with(pod("22", json!({}))),
            "False Refused metadata.annotations[pinhole.dev/expose][0]: 22/tcp: is restricted",
            0,
        ),
        (scene().with(pod("25,25", json!({}))), "False Refused metadata.annotations[pinhole.dev/expose]", 0),
        (
            scene().with(pod(PORT, json!({}))).claimed(KEY, "spam"),
            "False PortTaken metadata.annotations[pinhole.dev/expose][0]: 203.0.113.7:25/tcp: is claimed by Pod mail/spam",
            0,
        ),
        (
            scene()
                .with(pod("203.0.113.7:25,203.0.113.7:26", json!({})))
                .claimed(KEY, "mx")
                .claimed("v4-203-0-113-7-tcp-16-31", "spam"),
            "False PortTaken metadata.annotations[pinhole.dev/expose][1]: 203.0.113.7:26/tcp: is claimed by Pod mail/spam",
            1,
        ),
    ];
    for (mut scene, accepted, granted) in cases {
        scene.settle();
        let columns = scene.columns();
        assert!(columns[3].starts_with(accepted), "{columns:?}");
        assert_eq!(columns[3].split_once(' ').unwrap().1, columns[4].split_once(' ').unwrap().1);
        assert!(columns[4].starts_with("False"), "{columns:?}");
        assert_eq!(scene.mx().status.clone().unwrap().endpoints.len(), granted, "{accepted}");
    }
}

#[test]
fn a_pod_that_is_not_there_yet_is_shown_as_far_as_it_is_known() {
    let unscheduled = json!({"spec": {"nodeName": null}, "status": {"podIPs": []}});
    let mut scene = scene().with(pod(PORT, unscheduled)).claimed(KEY, "mx");
    scene.settle();
    let expected =
        ["203.0.113.7:25/tcp", "Pod mx", "", "True Granted", "False Unscheduled the pod runs on no node yet"];
    assert_eq!(scene.columns(), expected);
    let mut scene = scene.with(pod(PORT, json!({})));
    assert_eq!(scene.settle(), ["tell mail/mx", "apply mail/mx", "report mail/mx"], "its node is a label");
    assert_eq!(scene.columns()[2], "node-1");
}

#[test]
fn what_a_node_said_of_an_older_wish_does_not_count() {
    let mut scene =
        scene().with(pod(PORT, json!({}))).claimed(KEY, "mx").claimed("v4-203-0-113-7-tcp-26", "mx");
    scene.settle();
    scene.reported(true, "Programmed");
    scene.settle();
    let mut scene = scene.with(pod("203.0.113.7:26", json!({})));
    scene.settle();
    assert_eq!(scene.columns()[4], "Unknown Waiting the agent of node-1 has not reported yet");
}

#[test]
fn nobody_else_s_object_is_touched_and_its_pod_is_told() {
    let spec = json!({"target": {"service": "mx"}, "ports": [{"port": 25}]});
    let theirs = Pinhole::new("mx", serde_json::from_value(spec).unwrap());
    let mut scene = scene().with(pod(PORT, json!({}))).claimed(KEY, "mx");
    scene.pinholes.insert(ObjectName::new("mail", "mx"), theirs);
    let plan = scene.plan();
    assert_eq!(plan.writes, []);
    assert_eq!(plan.strangers, [Stranger { pod: ObjectName::new("mail", "mx"), uid: "uid-mx".to_owned() }]);
    scene.pods.clear();
    assert_eq!(scene.plan(), Plan::default());
}

#[test]
fn an_object_goes_with_its_pod_and_before_the_next_pod_of_that_name_gets_its_own() {
    let first = pod(PORT, json!({}));
    let cases = [
        ("a pod that is gone", None, "delete mail/mx"),
        ("a pod that has ended", Some(json!({"status": {"phase": "Failed"}})), "delete mail/mx"),
        (
            "another pod",
            Some(json!({"metadata": {"uid": "uid-2"}})),
            "tell mail/mx, delete mail/mx, apply mail/mx, report mail/mx",
        ),
    ];
    for (name, changes, expected) in cases {
        let mut scene = scene().with(first.clone()).claimed(KEY, "mx");
        scene.settle();
        scene.pods.clear();
        if let Some(changes) = changes {
            scene = scene.with(pod(PORT, changes));
        }
        assert_eq!(scene.settle().join(", "), expected, "{name}");
    }
}
