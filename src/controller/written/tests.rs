//! What is written into users' Pinholes for claims, Services, pods and nodes that a test says there are.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::jiff::SignedDuration;
use k8s_openapi::jiff::Timestamp;
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
use crate::api::crd::condition::Condition;
use crate::api::crd::pinhole::NodeReport;
use crate::cluster::backends::Backend;
use crate::cluster::backends::Fitness;
use crate::cluster::backends::LabelledPod;
use crate::cluster::backends::NamedPort;
use crate::cluster::backends::Slice;
use crate::cluster::claim_watch::Claims;
use crate::controller::automatic::Found;
use crate::controller::releasing::Serving;
use crate::controller::standing::HandedOver;
use crate::controller::standing::Waiting;
use crate::model::holder::Holder;
use crate::model::port::Protocol;

struct Scene {
    pinholes: Pinholes,
    backends: Backends,
    claims: Claims,
    index: Index,
    policy: Policy,
    now: Timestamp,
}

fn named(namespace: &str, name: &str) -> ObjectName {
    ObjectName::new(namespace, name)
}

fn port(name: &str, number: u16) -> NamedPort {
    NamedPort { name: name.to_owned(), protocol: Protocol::Tcp, number }
}

fn backend(pod: &str, address: &str, node: &str, fitness: Fitness) -> Backend {
    Backend {
        pod: pod.to_owned(),
        uid: format!("uid-{pod}"),
        addresses: vec![address.parse().unwrap()],
        node: Some(node.to_owned()),
        fitness,
    }
}

fn labelled(backend: Backend) -> LabelledPod {
    LabelledPod { labels: BTreeMap::new(), backend, created: None, is_leaving: false }
}

/// The Pinhole web of namespace shop, whose port is claimed and whose address node-1 has; `changes` is merged into its spec.
#[expect(clippy::needless_pass_by_value, reason = "literal JSON at every call")]
fn scene(changes: Value) -> Scene {
    let mut spec = json!({"target": {"service": "web"}, "addresses": ["203.0.113.7"],
        "ports": [{"port": 443, "targetPort": "https"}]});
    json_patch::merge(&mut spec, &changes);
    let object = json!({"apiVersion": "pinhole.dev/v1alpha1", "kind": "Pinhole", "spec": spec,
        "metadata": {"name": "web", "namespace": "shop", "uid": "pinhole-1", "generation": 1}});
    let mut backends = Backends::default();
    backends.services.insert(named("shop", "web"), vec![port("https", 443), port("http", 80)]);
    let mut index = Index::new(Arc::new(Policy::default()));
    has(&mut index, "node-1", &["203.0.113.7"]);
    has(&mut index, "node-2", &["203.0.113.8"]);
    let mut scene = Scene {
        pinholes: [(named("shop", "web"), serde_json::from_value(object).unwrap())].into(),
        backends,
        claims: Claims::new(),
        index,
        policy: Policy::default(),
        now: Timestamp::UNIX_EPOCH,
    };
    scene.claimed("v4-203-0-113-7-tcp-443", "Pinhole", "web");
    scene
}

/// What a NatNode says of its addresses.
fn has(index: &mut Index, node: &str, addresses: &[&str]) {
    index.set_occupants(Occupants {
        source: Source::NatNode(node.into()),
        version: None,
        taken: Vec::new(),
        addresses: addresses.iter().map(|address| (address.parse().unwrap(), true)).collect(),
    });
}

impl Scene {
    fn claimed(&mut self, name: &str, kind: &str, by: &str) {
        let key: ClaimKey = name.parse().unwrap();
        let claim = Claim::reserve(key, Holder::new(kind, named("shop", by)), Timestamp::UNIX_EPOCH);
        let version = Version { key, uid: "1".into(), revision: 1 };
        self.claims.insert(key, StoredClaim { claim, version });
    }

    /// The slice of the Service web with these pods.
    fn behind(&mut self, ports: Vec<NamedPort>, backends: Vec<Backend>) {
        let slice = Slice { service: named("shop", "web"), ports, backends };
        self.backends.slices.insert(named("shop", "web-x"), slice);
    }

    fn stored(&mut self) -> &mut Pinhole {
        self.pinholes.get_mut(&named("shop", "web")).unwrap()
    }

    /// Takes turns until nothing is left to write, as an API server would store it; says what the Pinhole shows then.
    fn shown(&mut self) -> String {
        for _ in 0..5 {
            let plan = self.plan();
            if plan.writes.is_empty() {
                return self.columns();
            }
            for write in plan.writes {
                self.store(write);
            }
        }
        panic!("it never comes to rest: {:?}", self.plan());
    }

    fn plan(&self) -> Plan {
        let (found, waiting) = (Found::of(&self.claims), Waiting::new());
        let known = Known {
            claims: &self.claims,
            found: &found,
            waiting: &waiting,
            handed_over: &HandedOver::new(),
            index: &self.index,
            policy: &self.policy,
        };
        let patience = Patience::of(&known, SignedDuration::from_secs(300), self.now);
        plan(&self.pinholes, &self.backends, &known, &patience)
    }

    fn store(&mut self, write: Write) {
        let stored = self.pinholes.get_mut(&named("shop", "web")).unwrap();
        match write {
            Write::Label(written) => {
                assert_eq!(written.metadata.uid, stored.metadata.uid);
                stored.metadata.labels = written.metadata.labels;
                stored.metadata.finalizers = written.metadata.finalizers;
            }
            Write::Delete(gone) => {
                assert_eq!(gone.metadata.uid, stored.metadata.uid);
                self.pinholes.clear();
            }
            Write::Report(written) => {
                assert_eq!(written.metadata.uid, stored.metadata.uid);
                let nodes = stored.status.take().unwrap_or_default().nodes;
                stored.status = written.status.map(|status| PinholeStatus { nodes, ..status });
            }
            other => panic!("a user's object is not to be written: {other:?}"),
        }
    }

    fn columns(&mut self) -> String {
        let status = self.stored().status.clone().unwrap();
        let condition = |type_: &str| {
            let found = Condition::find(&status.conditions, type_).unwrap();
            format!("{type_}={:?} {}", found.status, found.reason)
        };
        let endpoints = status.endpoints.iter().map(|found| format!("{}->{}", found.port, found.target_port));
        let active = status.targets.iter().find(|target| target.active).map(|target| target.pod.clone());
        format!(
            "{} | {} | {} | {} | {} | {} | {} {}",
            status.external,
            status.target,
            status.node,
            status.holder,
            endpoints.collect::<Vec<_>>().join(","),
            active.unwrap_or_default(),
            condition("Accepted"),
            condition("Programmed"),
        )
    }

    /// Node-1 says that it is programmed, of the object as it is now.
    fn reported(&mut self) {
        let report = NodeReport {
            name: "node-1".into(),
            programmed: true,
            reason: "Programmed".into(),
            message: String::new(),
            observed_generation: self.stored().metadata.generation,
        };
        self.stored().status.as_mut().unwrap().nodes = vec![report];
    }

    fn message(&mut self, type_: &str) -> String {
        let status = self.stored().status.clone().unwrap();
        Condition::find(&status.conditions, type_).unwrap().message.clone()
    }
}

#[test]
fn a_granted_pinhole_leads_to_a_ready_pod_of_its_service_and_says_so_once_its_node_does() {
    let mut scene = scene(json!({}));
    let ready = backend("web-1", "10.244.1.9", "node-1", Fitness::Ready);
    scene.behind(vec![port("https", 8443), port("http", 8080)], vec![ready]);
    assert_eq!(
        scene.shown(),
        "203.0.113.7:443/tcp | Service web:https | node-1 | Pinhole web | 443->8443 | web-1 | Accepted=True Granted \
         Programmed=Unknown Waiting"
    );
    assert_eq!(
        scene.stored().metadata.labels.clone().unwrap().into_keys().collect::<Vec<_>>(),
        ["node.pinhole.dev/node-1"]
    );
    scene.reported();
    assert!(scene.shown().ends_with("Programmed=True Programmed"), "{}", scene.columns());
    scene.stored().metadata.generation = Some(2);
    assert!(
        scene.shown().ends_with("Programmed=Unknown Waiting"),
        "a report on an older generation says nothing"
    );
}

#[test]
fn a_label_of_ours_that_its_user_wrote_is_taken_off_and_any_other_stays() {
    let mut scene = scene(json!({}));
    let labels = ["node.pinhole.dev/node-9", "team"].map(|label| (label.to_owned(), "mine".to_owned()));
    scene.stored().metadata.labels = Some(labels.into());
    scene.stored().metadata.finalizers = Some(vec!["example.com/theirs".to_owned()]);
    assert!(scene.shown().contains("| node-1 |"), "its status is written");
    let metadata = scene.stored().metadata.clone();
    let shown: Vec<_> =
        metadata.labels.iter().flatten().map(|(label, value)| format!("{label}={value}")).collect();
    assert_eq!(shown, ["node.pinhole.dev/node-1=", "team=mine"]);
    assert_eq!(metadata.finalizers.unwrap(), ["example.com/theirs", "pinhole.dev/release"]);
}

#[test]
fn what_keeps_a_pinhole_from_being_served_is_named_and_told() {
    type Change = fn(&mut Scene);
    let ready = || vec![backend("web-1", "10.244.1.9", "node-1", Fitness::Ready)];
    let https = || vec![port("https", 8443)];
    let cases: [(&str, Value, Change, &str, &str); 7] = [
        (
            "no Service",
            json!({"target": {"service": "shop"}}),
            |_| (),
            "NoService",
            "there is no Service shop, so connections",
        ),
        (
            "no such port",
            json!({"ports": [{"port": 443, "targetPort": 9000}]}),
            |_| (),
            "NoSuchPort",
            "Service web has no port 9000/tcp, it has 443/tcp (https), 80/tcp (http); name one of them in targetPort",
        ),
        (
            "no pods",
            json!({}),
            |scene| scene.backends.slices.clear(),
            "NoTarget",
            "there are no pods behind Service web",
        ),
        (
            "no ready pod",
            json!({}),
            |scene| {
                let unready = backend("web-1", "10.244.1.9", "node-1", Fitness::Unready);
                scene.behind(vec![port("https", 8443)], vec![unready]);
            },
            "NoTarget",
            "none of 1 pods behind Service web is ready",
        ),
        (
            "no node",
            json!({}),
            |scene| scene.index.retain_occupants(|_| false),
            "NoNode",
            "no node has 203.0.113.7, by what NatNodes say",
        ),
        (
            "another's port",
            json!({}),
            |scene| scene.claimed("v4-203-0-113-7-tcp-443", "Pod", "mx"),
            "PortTaken",
            "spec.ports[0].port: 203.0.113.7:443/tcp: is claimed by Pod shop/mx",
        ),
        (
            "a refused port",
            json!({"ports": [{"port": 22}]}),
            |_| (),
            "Refused",
            "spec.ports[0].port: 203.0.113.7:22/tcp: is restricted",
        ),
    ];
    for (name, changes, change, reason, message) in cases {
        let mut scene = scene(changes);
        scene.behind(https(), ready());
        change(&mut scene);
        let shown = scene.shown();
        assert!(shown.ends_with(&format!("Programmed=False {reason}")), "{name}: {shown}");
        let said = scene.message("Programmed");
        assert!(said.contains(message), "{name}: {said}");
        assert_eq!(
            scene.plan().troubles.first().map(|trouble| trouble.message.clone()),
            Some(said),
            "{name}"
        );
    }
}

#[test]
fn what_is_suspended_or_waits_is_no_trouble_and_keeps_its_nodes() {
    let mut suspended = scene(json!({"suspended": true}));
    assert!(
        suspended.shown().ends_with("Accepted=True Granted Programmed=False Suspended"),
        "{}",
        suspended.columns()
    );
    let mut waiting = scene(json!({}));
    waiting.claims.clear();
    let shown = waiting.shown();
    assert!(
        shown.contains("| node-1 |") && shown.ends_with("Accepted=Unknown Waiting Programmed=False Waiting"),
        "{shown}"
    );
    for scene in [&suspended, &waiting] {
        assert_eq!(scene.plan().troubles, []);
    }
}

#[test]
fn the_active_pod_stays_while_it_is_as_fit_as_any_and_is_near_where_there_is_a_choice() {
    let mut scene = scene(json!({}));
    let pods = |fitness: [Fitness; 3]| {
        let [a, b, c] = fitness;
        vec![
            backend("a", "10.244.2.1", "node-2", a),
            backend("b", "10.244.1.1", "node-1", b),
            backend("c", "10.244.1.2", "node-1", c),
        ]
    };
    let steps = [
        ("the near one of two", [Fitness::Ready, Fitness::Ready, Fitness::Unready], "b"),
        ("it leaves and another is ready", [Fitness::Unready, Fitness::Leaving, Fitness::Ready], "c"),
        ("nothing moves without need", [Fitness::Ready, Fitness::Ready, Fitness::Ready], "c"),
        ("the only ready one", [Fitness::Ready, Fitness::Unready, Fitness::Unready], "a"),
        ("none is ready: it stays", [Fitness::Unready; 3], "a"),
    ];
    for (name, fitness, expected) in steps {
        scene.behind(vec![port("https", 8443)], pods(fitness));
        let shown = scene.shown();
        assert!(shown.contains(&format!("| {expected} |")), "{name}: {shown}");
        assert_eq!(scene.stored().status.clone().unwrap().targets.len(), 3, "{name}");
    }
}

#[test]
fn a_standby_takes_over_when_the_active_pod_is_gone_ends_or_loses_its_node() {
    let pods = |fitness: [Option<Fitness>; 2]| {
        let names = ["a", "b"].into_iter().zip(fitness);
        let found = names.filter_map(|(name, fitness)| {
            Some(backend(name, if name == "a" { "10.244.1.1" } else { "10.244.2.1" }, "node-1", fitness?))
        });
        found.collect::<Vec<_>>()
    };
    // A pod that has ended is not among those that are known, like one that is gone; of a lost node none is ready.
    let steps = [
        ("both are ready", [Some(Fitness::Ready), Some(Fitness::Ready)], "a"),
        ("a is gone, or has ended", [None, Some(Fitness::Ready)], "b"),
        ("another a comes, and nothing moves back", [Some(Fitness::Ready), Some(Fitness::Ready)], "b"),
        ("the node of b is lost", [Some(Fitness::Ready), Some(Fitness::Unready)], "a"),
        ("the node of b is back", [Some(Fitness::Ready), Some(Fitness::Ready)], "a"),
        ("both are lost: nobody knows better", [Some(Fitness::Unready), Some(Fitness::Unready)], "a"),
        ("a is gone for good", [None, Some(Fitness::Ready)], "b"),
    ];
    let mut of_service = scene(json!({}));
    let selecting = json!({"target": {"service": null, "podSelector": {"matchLabels": {"app": "web"}}},
        "ports": [{"port": 443, "targetPort": 8443}]});
    let mut of_labels = scene(selecting);
    for (name, fitness, expected) in steps {
        of_service.behind(vec![port("https", 8443)], pods(fitness));
        of_labels.backends.pods = pods(fitness)
            .into_iter()
            .map(|backend| {
                let labels = [("app".to_owned(), "web".to_owned())].into();
                (named("shop", &backend.pod), LabelledPod { labels, ..labelled(backend) })
            })
            .collect();
        for scene in [&mut of_service, &mut of_labels] {
            let shown = scene.shown();
            assert!(shown.contains(&format!("| {expected} |")), "{name}: {shown}");
        }
    }
}

#[test]
fn the_active_pod_stays_until_it_is_gone_where_that_is_asked_for() {
    let mut scene = scene(json!({"handover": "WhenGone"}));
    let a = |fitness| Some(backend("a", "10.244.1.1", "node-1", fitness));
    let b = |fitness| Some(backend("b", "10.244.2.1", "node-2", fitness));
    let steps = [
        ("none is ready", [a(Fitness::Unready), b(Fitness::Unready)], ""),
        ("the one that is ready", [a(Fitness::Unready), b(Fitness::Ready)], "b"),
        ("it is not ready any more", [a(Fitness::Ready), b(Fitness::Unready)], "b"),
        ("it leaves", [a(Fitness::Ready), b(Fitness::Leaving)], "b"),
        ("it is gone", [a(Fitness::Ready), None], "a"),
        ("it is back", [a(Fitness::Ready), b(Fitness::Ready)], "a"),
    ];
    for (name, pods, expected) in steps {
        scene.behind(vec![port("https", 8443)], pods.into_iter().flatten().collect());
        let shown = scene.shown();
        assert!(shown.contains(&format!("| {expected} |")), "{name}: {shown}");
    }
}

#[test]
fn the_newest_pod_with_an_address_is_active_where_that_is_asked_for() {
    let mut scene = scene(json!({"handover": "Immediate"}));
    assert_eq!(need(&scene.pinholes), Need { services: true, pods: true });
    let pod = |name: &str, created: i64, fitness, is_leaving| {
        let backend = backend(name, "10.244.1.1", "node-1", fitness);
        let created = Timestamp::from_second(created).ok();
        LabelledPod { created, is_leaving, ..labelled(backend) }
    };
    let old = || pod("b", 1, Fitness::Ready, false);
    let without_address = || {
        let mut pod = pod("a", 3, Fitness::Unready, false);
        pod.backend.addresses.clear();
        pod
    };
    let steps = [
        ("the only one, and not ready", vec![pod("b", 1, Fitness::Unready, false)], "b"),
        ("a newer one, and not ready", vec![old(), pod("c", 2, Fitness::Unready, false)], "c"),
        ("the newest has no address", vec![old(), without_address()], "b"),
        ("the newest is being deleted", vec![old(), pod("c", 2, Fitness::Leaving, true)], "b"),
        ("two of one second", vec![pod("a", 1, Fitness::Ready, false), old()], "b"),
        ("only one that is being deleted", vec![pod("b", 1, Fitness::Unready, true)], "b"),
    ];
    for (name, pods, expected) in steps {
        scene.behind(vec![port("https", 8443)], pods.iter().map(|pod| pod.backend.clone()).collect());
        scene.backends.pods = pods.into_iter().map(|pod| (named("shop", &pod.backend.pod), pod)).collect();
        let shown = scene.shown();
        assert!(shown.contains(&format!("| {expected} |")), "{name}: {shown}");
    }
    scene.backends.pods.clear();
    scene
        .behind(vec![port("https", 8443)], vec![old().backend, pod("c", 2, Fitness::Unready, false).backend]);
    assert!(scene.shown().contains("| b |"), "of which nobody knows the age, the ready one");
}

#[test]
fn where_there_should_be_one_pod_a_condition_tells_of_others() {
    let mut scene = scene(json!({"sharing": "Exclusive"}));
    let pod = |number: u8| {
        backend(&format!("web-{number}"), &format!("10.244.1.{number}"), "node-1", Fitness::Ready)
    };
    let condition = |scene: &mut Scene| {
        scene.shown();
        let conditions = scene.stored().status.clone().unwrap().conditions;
        let found = Condition::find(&conditions, "Exclusive")?;
        Some(format!("{:?} {}: {}", found.status, found.reason, found.message))
    };
    assert_eq!(condition(&mut scene).unwrap(), "True NoPod: ");
    scene.behind(vec![port("https", 8443)], vec![pod(1)]);
    assert_eq!(condition(&mut scene).unwrap(), "True OnePod: ");
    scene.behind(vec![port("https", 8443)], vec![pod(1), pod(2)]);
    let told = "pods are ready: web-1 is served, web-2";
    let advice = "would take over; keep one, or write sharing: ActiveStandby";
    assert_eq!(condition(&mut scene).unwrap(), format!("False SeveralPods: 2 {told} {advice}"));
    scene.behind(vec![port("https", 8443)], (1..9).map(pod).collect());
    assert_eq!(
        condition(&mut scene).unwrap(),
        format!("False SeveralPods: 8 {told}, web-3, web-4, web-5, web-6, ... {advice}")
    );
    scene.stored().spec.handover = Handover::WhenGone;
    scene.behind(
        vec![port("https", 8443)],
        vec![backend("web-1", "10.244.1.1", "node-1", Fitness::Unready), pod(2), pod(3)],
    );
    assert_eq!(condition(&mut scene).unwrap(), format!("False SeveralPods: 2 {told}, web-3 {advice}"));
    scene.stored().spec.sharing = Sharing::ActiveStandby;
    assert_eq!(condition(&mut scene), None);
}

#[test]
fn r_smartnat_13_pods_in_two_slices_are_all_behind_the_service_and_one_in_both_is_one() {
    let mut scene = scene(json!({"addresses": ["203.0.113.7", "2001:db8::7"]}));
    scene.claimed("v6-20010db8000000000000000000000007-tcp-443", "Pinhole", "web");
    scene.behind(vec![port("https", 8443)], vec![backend("web-1", "10.244.1.9", "node-1", Fitness::Ready)]);
    let six = Slice {
        service: named("shop", "web"),
        ports: vec![port("https", 8443)],
        backends: vec![
            backend("web-1", "fd00::9", "node-1", Fitness::Ready),
            backend("web-2", "fd00::a", "node-2", Fitness::Ready),
        ],
    };
    scene.backends.slices.insert(named("shop", "web-y"), six);
    let shown = scene.shown();
    assert!(shown.contains("443->8443,443->8443 | web-1 |"), "{shown}");
    let targets = scene.stored().status.clone().unwrap().targets;
    assert_eq!(targets[0].addresses, ["10.244.1.9", "fd00::9"]);
    assert_eq!(targets.len(), 2);
}

#[test]
fn pods_are_found_by_their_labels_in_the_pinhole_s_own_namespace() {
    let selector = json!({"target": {"service": null, "podSelector": {"matchLabels": {"app": "mx"}}},
        "ports": [{"port": 443, "targetPort": 8443}]});
    let mut scene = scene(selector);
    let mut add = |namespace: &str, name: &str, app: &str| {
        let pod = LabelledPod {
            labels: [("app".to_owned(), app.to_owned())].into(),
            ..labelled(backend(name, "10.244.1.9", "node-1", Fitness::Ready))
        };
        scene.backends.pods.insert(named(namespace, name), pod);
    };
    add("mail", "a-foreign", "mx");
    add("shop", "a-other", "web");
    add("shop", "mx-0", "mx");
    let shown = scene.shown();
    assert!(shown.contains("| app=mx:8443 | node-1 | Pinhole web | 443->8443 | mx-0 |"), "{shown}");
    assert_eq!(need(&scene.pinholes), Need { services: false, pods: true });
}

#[test]
fn r_smartnat_9_a_service_that_is_made_anew_is_led_to_again() {
    let mut scene = scene(json!({}));
    scene.behind(vec![port("https", 8443)], vec![backend("web-1", "10.244.1.9", "node-1", Fitness::Ready)]);
    assert!(scene.shown().contains("| web-1 |"));
    scene.backends.services.clear();
    scene.backends.slices.clear();
    assert!(scene.shown().ends_with("Programmed=False NoService"));
    scene.backends.services.insert(named("shop", "web"), vec![port("https", 8443)]);
    scene.behind(vec![port("https", 9443)], vec![backend("web-2", "10.244.1.10", "node-1", Fitness::Ready)]);
    assert!(scene.shown().contains("443->9443 | web-2 |"), "{}", scene.columns());
}

#[test]
fn the_controller_s_own_and_those_on_their_way_out_are_left_alone() {
    let mut theirs = scene(json!({"target": {"service": null, "pod": "mx"}}));
    assert_eq!(theirs.plan(), Plan::default());
    assert_eq!(need(&theirs.pinholes), Need::default());
    theirs.pinholes.clear();
    let mut leaving = scene(json!({}));
    leaving.delete();
    assert_eq!(leaving.plan(), Plan::default());
}

impl Scene {
    /// As a user does it, and the API server with what has a finalizer.
    fn delete(&mut self) {
        let metadata = &mut self.stored().metadata;
        metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        metadata.generation = metadata.generation.map(|generation| generation + 1);
    }

    /// Takes turns until nothing is left to write.
    fn settle(&mut self) {
        for _ in 0..10 {
            let Some(write) = self.plan().writes.into_iter().next() else { return };
            self.store(write);
        }
        panic!("it never comes to rest: {:?}", self.plan());
    }

    fn is_served(&self) -> bool {
        Serving::of(&self.pinholes).has(&"v4-203-0-113-7-tcp-443".parse().unwrap())
    }
}

#[test]
fn one_that_is_deleted_goes_when_its_node_has_let_go_or_is_gone_and_a_silent_node_has_its_time() {
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    for (name, node, answers, waits) in [
        ("it answers", Some(ready.clone()), true, 0),
        ("it is silent", Some(ready), false, 300),
        ("it is gone", None, false, 0),
    ] {
        let mut scene = scene(json!({}));
        if let Some(mut node) = node {
            json_patch::merge(&mut node, &json!({"kind": "Node", "metadata": {"name": "node-1"}}));
            scene.index.apply(&serde_json::from_value(node).unwrap());
        }
        scene.settle();
        assert_eq!(
            scene.stored().metadata.finalizers,
            Some(vec!["pinhole.dev/release".to_owned()]),
            "{name}"
        );
        scene.reported();
        scene.settle();
        scene.delete();
        scene.settle();
        if answers {
            assert!(scene.columns().ends_with("Accepted=False Ended Programmed=False Releasing"), "{name}");
            assert!(scene.is_served(), "what the node said before is no answer");
            scene.reported();
            scene.settle();
        }
        for seconds in [waits - 1, 1].into_iter().filter(|_| waits != 0) {
            assert!(!scene.pinholes.is_empty() && scene.is_served(), "{name}");
            scene.now = scene.now.checked_add(SignedDuration::from_secs(seconds)).unwrap();
            scene.settle();
        }
        assert!(scene.pinholes.is_empty(), "{name}");
    }
}

#[test]
fn a_port_that_its_user_takes_out_is_waited_for_and_the_label_of_a_node_stays_until_it_has_let_go() {
    let mut scene = scene(json!({}));
    let node = json!({"kind": "Node", "metadata": {"name": "node-1"}});
    scene.index.apply(&serde_json::from_value(node).unwrap());
    scene.settle();
    scene.reported();
    scene.settle();
    let stored = scene.stored();
    stored.spec.addresses = vec!["203.0.113.8".to_owned()];
    stored.metadata.generation = Some(2);
    scene.claimed("v4-203-0-113-8-tcp-443", "Pinhole", "web");
    scene.settle();
    let nodes =
        |scene: &mut Scene| scene.stored().metadata.labels.clone().unwrap().into_keys().collect::<Vec<_>>();
    assert_eq!(nodes(&mut scene), ["node.pinhole.dev/node-1", "node.pinhole.dev/node-2"]);
    assert!(scene.is_served());
    scene.reported();
    scene.settle();
    assert_eq!(nodes(&mut scene), ["node.pinhole.dev/node-2"]);
    assert!(!scene.is_served());
}
