//! What is written for pods and claims that a test says there are, and what people then see of it.

mod gateway;

use std::sync::Arc;

use k8s_openapi::jiff::SignedDuration;
use serde_json::Value;
use serde_json::json;

use super::*;
use crate::admission::index::Index;
use crate::admission::index::occupants::Occupants;
use crate::admission::index::occupants::Source;
use crate::admission::policy::Policy;
use crate::allocation::claim::Claim;
use crate::allocation::claim::StoredClaim;
use crate::allocation::claim::Version;
use crate::allocation::key::ClaimKey;
use crate::cluster::claim_watch::Claims;
use crate::controller::automatic::Found;
use crate::controller::releasing::Serving;
use crate::controller::standing::HandedOver;
use crate::controller::standing::Waiting;
use crate::model::holder::Holder;

struct Scene {
    pods: AskingPods,
    pinholes: Pinholes,
    claims: Claims,
    index: Index,
    policy: Policy,
    handed_over: HandedOver,
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
        handed_over: HandedOver::new(),
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

    #[expect(clippy::needless_pass_by_value, reason = "literal JSON at every call")]
    fn node(mut self, name: &str, changes: Value) -> Self {
        let mut node = json!({"kind": "Node", "metadata": {"name": name}});
        json_patch::merge(&mut node, &changes);
        self.index.apply(&serde_json::from_value(node).unwrap());
        self
    }

    /// A node that has these addresses beside its own, by what its NatNode says.
    fn has(&mut self, node: &str, addresses: &[&str]) {
        self.says(node, addresses, false);
    }

    /// A node that has these addresses, and calls them its own.
    fn called(mut self, node: &str, own: &[&str]) -> Self {
        self.says(node, own, true);
        self
    }

    fn says(&mut self, node: &str, addresses: &[&str], is_own: bool) {
        self.index.set_occupants(Occupants {
            source: Source::NatNode(node.into()),
            version: None,
            taken: Vec::new(),
            addresses: addresses.iter().map(|address| (address.parse().unwrap(), is_own)).collect(),
        });
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
            handed_over: &self.handed_over,
            index: &self.index,
            policy: &self.policy,
        };
        plan(&self.pods, &self.pinholes, &known, &Patience::of(&known, TIMEOUT, self.now))
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
            Write::Gate { pod, uid, condition } => {
                let known = self.pods.get_mut(&pod).unwrap();
                assert_eq!(known.metadata.uid, uid);
                let condition: crate::api::object::Condition = serde_json::from_value(condition).unwrap();
                known.status.conditions.retain(|known| known.type_ != condition.type_);
                let said = format!("gate {pod} {} {}", condition.status, condition.reason);
                known.status.conditions.push(condition);
                said
            }
            Write::Delete(pinhole) => {
                let name = ObjectName::new("mail", pinhole.metadata.name.clone().unwrap());
                let gone = self.pinholes.remove(&name).unwrap();
                assert_eq!(gone.metadata.uid, pinhole.metadata.uid);
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
            let found = Condition::find(&status.conditions, type_).unwrap();
            format!("{:?} {} {}", found.status, found.reason, found.message).trim_end().to_owned()
        };
        let columns = [status.external.clone(), status.target.clone(), status.node.clone()];
        let [external, target, node] = columns;
        [external, target, node, condition("Accepted"), condition("Programmed")]
    }

    fn reported(&mut self, programmed: bool, reason: &str) {
        self.mx().status.as_mut().unwrap().nodes.clear();
        self.reported_by("node-1", programmed, reason);
    }

    fn reported_by(&mut self, node: &str, programmed: bool, reason: &str) {
        let generation = self.mx().metadata.generation;
        let report = NodeReport {
            name: node.to_owned(),
            programmed,
            reason: reason.to_owned(),
            message: String::new(),
            observed_generation: generation,
        };
        let nodes = &mut self.mx().status.as_mut().unwrap().nodes;
        nodes.retain(|known| known.name != node);
        nodes.push(report);
    }

    /// The nodes whose agents see it.
    fn labels(&mut self) -> Vec<String> {
        let labels = self.mx().metadata.labels.clone().unwrap().into_keys();
        labels.filter_map(|label| label.strip_prefix("node.pinhole.dev/").map(str::to_owned)).collect()
    }

    /// What is waited for, and on which node.
    fn waits(&mut self) -> Vec<String> {
        let releasing = self.mx().status.clone().unwrap().releasing.into_iter();
        releasing.map(|old| format!("{}:{} {}", old.address, old.port, old.node)).collect()
    }
}

const TIMEOUT: SignedDuration = SignedDuration::from_secs(300);

const PORT: &str = "203.0.113.7:25";
const KEY: &str = "v4-203-0-113-7-tcp-25";

#[test]
fn what_a_pod_says_of_its_kind_of_handover_and_sharing_is_shown() {
    let notes = json!({
        "pinhole.dev/handover": "WhenGone", "pinhole.dev/udp-handover": "Cut", "pinhole.dev/sharing": "Exclusive",
    });
    let mut scene = scene().with(pod(PORT, json!({"metadata": {"annotations": notes}}))).claimed(KEY, "mx");
    scene.settle();
    let spec = serde_json::to_value(&scene.mx().spec).unwrap();
    let shown = ["handover", "udpHandover", "sharing"].map(|field| spec[field].as_str().unwrap_or_default());
    assert_eq!(shown, ["WhenGone", "Cut", "Exclusive"]);
}

#[test]
fn all_that_a_pod_can_ask_for_is_shown() {
    let asked: Vec<_> = (0..MAX_ENTRIES - 1).map(|number| format!("203.0.113.7:{}", 7000 + number)).collect();
    let mut scene = scene().with(pod(&format!("{},auto:9000", asked.join(",")), json!({})));
    scene.settle();
    let shown = &scene.mx().spec.ports;
    assert_eq!(shown.len(), MAX_ENTRIES);
    assert_eq!(shown.last().unwrap().port, None, "{shown:?}");
}

#[test]
fn a_claim_that_was_never_granted_grants_nothing() {
    let mut scene = scene().with(pod("203.0.113.7:7008-7023", json!({})));
    let (block, port) = ("v4-203-0-113-7-tcp-7008-7023", "v4-203-0-113-7-tcp-7010");
    scene = scene.claimed(port, "other").claimed(block, "mx");
    scene.claims.get_mut(&block.parse().unwrap()).unwrap().version.revision = 2;
    scene.settle();
    let status = scene.pinholes.values().next().unwrap().status.as_ref().unwrap();
    assert!(status.endpoints.is_empty(), "{status:?}");
    let said = serde_json::to_string(status).unwrap();
    assert!(said.contains("PortTaken") && said.contains(port), "{said}");
}

#[test]
fn a_pod_with_its_claims_gets_one_object_that_comes_to_rest() {
    let scene = scene().with(pod("203.0.113.7:25,8080:80", json!({}))).claimed(KEY, "mx");
    let mut scene = scene.called("node-1", &["203.0.113.8"]).claimed("v4-203-0-113-8-tcp-8080", "mx");
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
            "target": {"pod": "mx", "podUID": "uid-mx"},
            "ports": [
                {"address": "203.0.113.7", "protocol": "TCP", "port": 25, "targetPort": 25},
                {"protocol": "TCP", "port": 8080, "targetPort": 80},
            ],
            "egress": "Cluster", "sharing": "ActiveStandby", "handover": "WhenReady",
            "suspended": false,
            "holder": {"kind": "Pod", "namespace": "mail", "name": "mx"},
        })
    );
    assert_eq!(
        stored.metadata.labels.unwrap().into_keys().collect::<Vec<_>>(),
        ["app.kubernetes.io/managed-by", "node.pinhole.dev/node-1"]
    );
    assert_eq!(stored.metadata.finalizers, Some(vec!["pinhole.dev/release".to_owned()]));
    let status = stored.status.unwrap();
    assert_eq!(
        serde_json::to_value(&status.endpoints).unwrap(),
        json!([
            {"address": "203.0.113.7", "protocol": "TCP", "port": 25, "targetPort": 25, "nodes": ["node-1"]},
            {"address": "203.0.113.8", "protocol": "TCP", "port": 8080, "targetPort": 80, "nodes": ["node-1"]},
        ])
    );
    assert_eq!(status.own_addresses, ["203.0.113.8"]);
}

#[test]
fn a_port_of_the_node_s_own_address_waits_for_its_node_its_natnode_and_its_claim() {
    let unbound = json!({"spec": {"nodeName": null}});
    let mut scene = scene().with(pod("8080:80", unbound));
    scene.settle();
    assert_eq!(scene.columns()[3..], ["True Granted", "False Unscheduled the pod runs on no node yet"]);
    let mut scene = scene.with(pod("8080:80", json!({})));
    scene.settle();
    let unknown = "Unknown Waiting NatNode node-1 does not say yet what the own address of its node is";
    assert_eq!(scene.columns()[3], unknown);
    let mut scene = scene.called("node-1", &["203.0.113.8", "2001:db8::8"]);
    scene.settle();
    assert_eq!(scene.columns()[3], "Unknown Waiting 8080/tcp is about to be claimed");
    assert_eq!(scene.mx().status.as_ref().unwrap().own_addresses, ["203.0.113.8"], "it has no IPv6");
    let mut scene = scene.claimed("v4-203-0-113-8-tcp-8080", "mx");
    scene.settle();
    assert_eq!(scene.columns()[3], "True Granted");
}

#[test]
fn who_has_a_port_of_the_node_s_own_address_is_named_to_the_one_that_has_not() {
    let scene = scene().with(pod("8080:80,8081:81", json!({}))).called("node-1", &["203.0.113.8"]);
    let scene = scene.claimed("v4-203-0-113-8-tcp-8080", "other");
    let mut scene = scene.claimed("v4-203-0-113-8-tcp-8081", "mx");
    scene.settle();
    let said = scene.columns()[3].clone();
    let expected = "False PortTaken metadata.annotations[pinhole.dev/expose][0]: 8080/tcp: is claimed by Pod mail/other \
                    (PortClaim v4-203-0-113-8-tcp-8080, since 2023-11-14T22:13:20Z); choose another external port, remove it \
                    there first, or have it handed over (kubectl pinhole transfer pod/other --to pod/mx)";
    assert_eq!(said, expected);
    let granted = &scene.mx().status.as_ref().unwrap().endpoints;
    assert_eq!(granted.iter().map(|endpoint| endpoint.port).collect::<Vec<_>>(), [8081]);
}

#[test]
fn a_port_of_another_own_address_is_granted_there_and_let_go_where_it_was() {
    let scene = scene().with(pod("8080:80", json!({}))).node("node-1", json!({}));
    let mut scene = scene.called("node-1", &["203.0.113.8"]).claimed("v4-203-0-113-8-tcp-8080", "mx");
    scene.settle();
    scene.reported(true, "Programmed");
    scene.settle();
    let generation = scene.mx().metadata.generation;
    let mut scene = scene.called("node-1", &["203.0.113.9"]).claimed("v4-203-0-113-9-tcp-8080", "mx");
    scene.settle();
    let (now, status) = (scene.mx().metadata.generation, scene.mx().status.clone().unwrap());
    assert!(generation < now, "the node is to answer for what is granted now");
    assert_eq!(status.endpoints[0].address, "203.0.113.9");
    assert_eq!((status.releasing[0].address.as_str(), status.releasing[0].port), ("203.0.113.8", 8080));
    scene.reported(true, "Programmed");
    scene.settle();
    assert_eq!(scene.mx().status.as_ref().unwrap().releasing, []);
}

#[test]
fn a_readiness_gate_follows_what_the_node_says_and_comes_to_rest() {
    let gate = json!({"spec": {"readinessGates": [{"conditionType": "pinhole.dev/programmed"}]}});
    let mut scene = scene().with(pod(PORT, gate)).claimed(KEY, "mx");
    assert_eq!(
        scene.settle(),
        ["tell mail/mx", "apply mail/mx", "report mail/mx"],
        "as long as no node has said anything nothing is said"
    );
    for (programmed, reason, gate) in [
        (false, "NoAddress", "gate mail/mx False NoAddress"),
        (true, "Programmed", "gate mail/mx True Programmed"),
        (false, "Standby", "gate mail/mx True Standby"),
        (false, "KernelRefused", "gate mail/mx False KernelRefused"),
    ] {
        scene.reported(programmed, reason);
        assert_eq!(scene.settle(), ["report mail/mx", gate], "{reason}");
    }
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
    assert_eq!(
        plan.news.said(),
        [
            "Pod mail/mx NotProgrammed: a Pinhole named mx that somebody else wrote stands in the place of this pod's own, so its \
             ports are not served; rename or delete that Pinhole"
        ]
    );
    scene.pods.clear();
    assert_eq!(scene.plan(), Plan::default());
}

#[test]
fn an_object_goes_once_the_node_of_its_pod_has_let_go_of_what_it_granted() {
    for (name, ended) in [("gone", None), ("ended", Some(json!({"status": {"phase": "Failed"}})))] {
        let mut scene = scene().node("node-1", json!({})).with(pod(PORT, json!({}))).claimed(KEY, "mx");
        scene.settle();
        scene.pods.clear();
        if let Some(changes) = ended {
            scene = scene.with(pod(PORT, changes));
        }
        scene.reported(true, "Programmed");
        assert_eq!(scene.settle(), ["apply mail/mx", "report mail/mx"], "{name}");
        assert_eq!(scene.columns()[4], "False Releasing waiting for node-1 to let go", "{name}");
        assert!(scene.mx().spec.suspended && scene.mx().status.as_ref().unwrap().endpoints.is_empty());
        scene.reported(false, "Released");
        assert_eq!(scene.settle(), ["report mail/mx", "apply mail/mx", "delete mail/mx"], "{name}");
    }
}

#[test]
fn a_pod_that_no_node_has_leaves_nothing_to_wait_for() {
    let unscheduled = json!({"spec": {"nodeName": null}, "status": {"podIPs": []}});
    let mut scene = scene().with(pod(PORT, unscheduled)).claimed(KEY, "mx");
    scene.settle();
    scene.pods.clear();
    assert_eq!(scene.settle(), ["delete mail/mx"]);
}

#[test]
fn a_node_is_not_waited_for_that_is_gone_and_one_that_is_silent_for_its_time_only() {
    let silent = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    let out_of_service = json!({"spec": {"taints": [{"key": "node.kubernetes.io/out-of-service"}]}});
    let unready = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
    let cases = [
        ("gone", None, "Programmed", 0),
        ("switched off", Some(out_of_service), "Removing", 0),
        ("not ready", Some(unready), "Removing", 300),
        ("silent", Some(silent.clone()), "Programmed", 300),
        ("braked", Some(silent), "Removing", 9_999),
    ];
    for (name, node, reason, waits) in cases {
        let mut scene = scene().with(pod(PORT, json!({}))).claimed(KEY, "mx");
        if let Some(node) = node {
            scene = scene.node("node-1", node);
        }
        scene.settle();
        scene.pods.clear();
        scene.reported(true, reason);
        scene.mx().status.as_mut().unwrap().nodes[0].observed_generation = None;
        let goes = |scene: &mut Scene| scene.settle().contains(&"delete mail/mx".to_owned());
        if waits == 0 {
            assert!(goes(&mut scene), "{name}");
            continue;
        }
        assert!(!goes(&mut scene), "{name}");
        for (seconds, is_over) in [(waits - 10, false), (10, waits == 300)] {
            scene.now = scene.now.checked_add(SignedDuration::from_secs(seconds)).unwrap();
            assert_eq!(goes(&mut scene), is_over, "{name} {seconds}");
            if is_over {
                break;
            }
        }
    }
}

#[test]
fn an_object_stays_while_a_claim_still_leads_to_its_pod() {
    let mut scene = scene().with(pod(PORT, json!({}))).claimed(KEY, "mx");
    scene.settle();
    scene.pods.clear();
    let key: ClaimKey = KEY.parse().unwrap();
    scene.claims.get_mut(&key).unwrap().claim.pod_uid = Some("uid-mx".into());
    assert!(!scene.settle().contains(&"delete mail/mx".to_owned()));
    scene.claims.get_mut(&key).unwrap().claim.pod_uid = None;
    assert_eq!(scene.settle(), ["delete mail/mx"]);
}

#[test]
fn another_pod_of_the_name_gets_the_object_at_once_and_the_node_of_the_first_is_waited_for() {
    let mut scene = scene().node("node-1", json!({})).node("node-2", json!({}));
    scene = scene.with(pod(PORT, json!({}))).claimed(KEY, "mx");
    scene.settle();
    scene.reported(true, "Programmed");
    scene.settle();
    let other = json!({"metadata": {"uid": "uid-2"}, "spec": {"nodeName": "node-2"}});
    let mut scene = scene.with(pod(PORT, other));
    assert_eq!(scene.settle(), ["tell mail/mx", "apply mail/mx", "report mail/mx"]);
    assert_eq!(scene.mx().status.as_ref().unwrap().endpoints.len(), 1, "it is granted at once");
    assert_eq!(scene.labels(), ["node-1", "node-2"]);
    assert_eq!(scene.waits(), ["203.0.113.7:25 node-1"]);
    scene.reported(false, "Released");
    scene.settle();
    assert_eq!(scene.labels(), ["node-2"]);
    assert!(scene.waits().is_empty());
}

#[test]
fn a_port_that_is_asked_for_no_more_is_waited_for_and_the_others_are_not() {
    let mut scene =
        scene().node("node-1", json!({})).claimed(KEY, "mx").claimed("v4-203-0-113-7-tcp-26", "mx");
    scene = scene.with(pod("203.0.113.7:25,203.0.113.7:26", json!({})));
    scene.settle();
    scene.reported(true, "Programmed");
    let mut scene = scene.with(pod("203.0.113.7:26", json!({})));
    scene.settle();
    let (gone, kept): (ClaimKey, ClaimKey) = (KEY.parse().unwrap(), "v4-203-0-113-7-tcp-26".parse().unwrap());
    assert_eq!(scene.mx().status.as_ref().unwrap().releasing.len(), 1);
    assert!(Serving::of(&scene.pinholes).has(&gone));
    scene.reported(true, "Programmed");
    scene.settle();
    let serving = Serving::of(&scene.pinholes);
    assert!(!serving.has(&gone) && serving.has(&kept) && serving.is_settled("uid-mx") == Some(true));
}

#[test]
fn a_claim_that_is_lost_is_waited_for_although_the_pod_asks_on() {
    let mut scene = scene().node("node-1", json!({})).with(pod(PORT, json!({}))).claimed(KEY, "mx");
    scene.settle();
    scene.reported(true, "Programmed");
    scene.settle();
    let key: ClaimKey = KEY.parse().unwrap();
    scene.claims.clear();
    scene = scene.claimed(KEY, "thief");
    assert_eq!(scene.settle(), ["tell mail/mx", "apply mail/mx", "report mail/mx"]);
    assert!(Serving::of(&scene.pinholes).has(&key), "what the node said before is no answer");
    scene.reported(false, "Released");
    scene.settle();
    assert!(!Serving::of(&scene.pinholes).has(&key));
}

#[test]
fn whoever_handed_its_port_over_serves_it_for_the_new_holder_until_that_is_ready() {
    let mut scene = scene().with(pod(PORT, json!({}))).claimed(KEY, "green");
    let key = KEY.parse().unwrap();
    let claim = &mut scene.claims.get_mut(&key).unwrap().claim;
    claim.previous_holder = Some(Holder::new("Pod", ObjectName::new("mail", "mx")));
    scene.settle();
    let holder = |scene: &mut Scene| {
        let spec = scene.mx().spec.holder.clone().unwrap();
        (spec.name, scene.mx().status.clone().unwrap().holder)
    };
    assert_eq!(scene.columns()[3], "True Granted");
    assert_eq!(scene.mx().status.clone().unwrap().endpoints.len(), 1);
    assert_eq!(holder(&mut scene), ("green".to_owned(), "Pod green".to_owned()), "agents elect among both");
    scene.handed_over.insert(key);
    scene.settle();
    assert_eq!(
        scene.columns()[3],
        "False PortTaken metadata.annotations[pinhole.dev/expose][0]: 203.0.113.7:25/tcp: was handed over to Pod mail/green, of \
         which a pod is ready; delete this, or take the port out of it"
    );
    assert!(scene.mx().status.clone().unwrap().endpoints.is_empty());
    assert_eq!(holder(&mut scene), ("mx".to_owned(), "Pod mx".to_owned()));
    scene.handed_over.clear();
    scene.settle();
    assert_eq!(scene.columns()[3], "True Granted", "a failure of the new one is a failover");
}
