//! Turns of the controller over a store in memory, with the pods and templates that a test says there are.

mod own_addresses;

use k8s_openapi::jiff::SignedDuration;
use serde_json::json;

use super::*;
use crate::admission::policy::Policy;
use crate::allocation::claim::Claim;
use crate::allocation::memory::Memory;
use crate::allocation::pool::Pool;
use crate::api::object::Object;
use crate::cluster::events;
use crate::cluster::events::ObjectEvent;
use crate::cluster::pinhole_watch::Pinholes;
use crate::model::holder::Holder;
use crate::model::holder::ObjectName;
use crate::telemetry::metrics;

struct Scene {
    controller: Controller,
    store: Arc<Mutex<Memory>>,
    leading_tx: watch::Sender<bool>,
    event_rx: tokio::sync::mpsc::Receiver<ObjectEvent>,
    remembered: Remembered,
    now: Timestamp,
}

fn scene() -> Scene {
    let store = Arc::new(Mutex::new(Memory::default()));
    let (leading_tx, leading_rx) = watch::channel(true);
    let (events, event_rx) = events::channel();
    let pinholes = KnownPinholes::default();
    pinholes.replace(Pinholes::new());
    let controller = Controller {
        store: Arc::clone(&store) as Arc<dyn ClaimStore>,
        claims: Arc::default(),
        index: Arc::new(RwLock::new(Index::new(Arc::new(Policy::default())))),
        claims_known: Arc::new(AtomicBool::new(true)),
        pinholes: Arc::new(pinholes),
        startup: Arc::new(Startup::complete()),
        changes: Changes::default(),
        leading_rx,
        times: Times { release: SignedDuration::from_secs(30), cooldown: SignedDuration::from_secs(120) },
        policy: Arc::default(),
        events,
        metrics: ControllerMetrics::default(),
    };
    let now = Timestamp::from_second(1_700_000_000).unwrap();
    Scene { controller, store, leading_tx, event_rx, remembered: Remembered::default(), now }
}

fn pod(name: &str, ports: &str, created: &str) -> Object {
    let object = json!({"kind": "Pod", "metadata": {
        "name": name, "namespace": "mail", "uid": format!("uid-{name}"), "creationTimestamp": created,
        "annotations": {"pinhole.dev/expose": ports},
    }});
    serde_json::from_value(object).unwrap()
}

fn deployment(ports: &str) -> Object {
    let object = json!({"kind": "Deployment", "metadata": {"name": "mx", "namespace": "mail", "uid": "uid-mx"},
        "spec": {"replicas": 0, "template": {"metadata": {"annotations": {"pinhole.dev/expose": ports}}}}});
    serde_json::from_value(object).unwrap()
}

const PORT: &str = "203.0.113.7:25";

impl Scene {
    fn stored(self, object: &Object) -> Self {
        self.controller.index.write().unwrap().apply(object);
        self
    }

    fn reserved(self, kind: &str, name: &str, key: &str) -> Self {
        let holder = Holder::new(kind, ObjectName::new("mail", name));
        let claim = Claim::reserve(key.parse().unwrap(), holder, self.now);
        self.store.lock().unwrap().perform(Operation::Create(claim));
        self
    }

    /// A Pinhole of this pod, granted on a node that has answered for it or not.
    fn shown(self, pod: &str, has_answered: bool) -> Self {
        let report = json!({"name": "node-1", "programmed": has_answered, "reason": "Programmed", "message": "",
            "observedGeneration": has_answered.then_some(1)});
        let pinhole = json!({"apiVersion": "pinhole.dev/v1alpha1", "kind": "Pinhole",
            "metadata": {"name": pod, "namespace": "mail", "generation": 1, "labels": {"node.pinhole.dev/node-1": ""}},
            "spec": {"target": {"pod": pod, "podUID": format!("uid-{pod}")}, "ports": [{"port": 80}]},
            "status": {"observedGeneration": 1, "node": "node-1", "nodes": [report]}});
        let name = ObjectName::new("mail", pod);
        self.controller.pinholes.replace([(name, serde_json::from_value(pinhole).unwrap())].into());
        self
    }

    /// How many objects ask for what is somebody else's.
    fn disputes(&self) -> usize {
        let claims = self.controller.claims.read().unwrap();
        let index = self.controller.index.read().unwrap();
        let times = &self.controller.times;
        let plan =
            self.controller.pinholes.read(|pinholes| plan::plan(&claims, &index, pinholes, times, self.now));
        plan.disputes.len()
    }

    /// What was told since this was asked last.
    fn told(&mut self) -> Vec<String> {
        let said =
            |event: ObjectEvent| format!("{} {}: {}", event.regarding, event.reason.name(), event.note);
        std::iter::from_fn(|| self.event_rx.try_recv().ok()).map(said).collect()
    }

    fn deleted(&self, object: &Object) {
        let key = ObjectKey::of(object, "mail").unwrap();
        self.controller.index.write().unwrap().delete(&key, None);
    }

    /// One turn, some time later, that sees all that is stored.
    async fn after(&mut self, seconds: i64) -> Vec<String> {
        self.now = self.now.checked_add(SignedDuration::from_secs(seconds)).unwrap();
        let seen =
            self.store.lock().unwrap().claims().map(|stored| (stored.claim.key, stored.clone())).collect();
        *self.controller.claims.write().unwrap() = seen;
        self.controller.turn(self.now, &mut self.remembered).await;
        let store = self.store.lock().unwrap();
        let said = |claim: &Claim| {
            let pod = claim.pod_uid.as_deref().map(|uid| format!(" {uid}")).unwrap_or_default();
            format!("{} {} {}{pod}", claim.key, claim.state.name(), claim.holder.object.name)
        };
        store.claims().map(|stored| said(&stored.claim)).collect()
    }
}

#[tokio::test]
async fn a_reservation_is_bound_to_its_pod_and_given_back_when_that_is_gone() {
    let pod = pod("mx", PORT, "2026-01-01T00:00:00Z");
    let mut scene = scene().stored(&pod).reserved("Pod", "mx", "v4-203-0-113-7-tcp-25").shown("mx", false);
    assert_eq!(scene.after(1).await, ["v4-203-0-113-7-tcp-25 Bound mx uid-mx"]);
    scene.deleted(&pod);
    assert_eq!(scene.after(118).await, ["v4-203-0-113-7-tcp-25 Bound mx uid-mx"], "its grace is not over");
    assert_eq!(scene.after(1).await, ["v4-203-0-113-7-tcp-25 Releasing mx uid-mx"]);
    scene.controller.pinholes.replace(Pinholes::new());
    assert_eq!(
        scene.after(29).await,
        ["v4-203-0-113-7-tcp-25 Releasing mx uid-mx"],
        "nothing tells any more which node serves it, so it has time"
    );
    assert_eq!(scene.after(1).await, ["v4-203-0-113-7-tcp-25 Cooldown mx"]);
    assert_eq!(scene.after(119).await, ["v4-203-0-113-7-tcp-25 Cooldown mx"]);
    assert!(scene.after(1).await.is_empty());
}

#[tokio::test]
async fn a_port_waits_for_the_answer_of_its_node_and_for_nothing_else() {
    let pod = pod("mx", PORT, "2026-01-01T00:00:00Z");
    let mut scene = scene().stored(&pod).reserved("Pod", "mx", "v4-203-0-113-7-tcp-25").shown("mx", false);
    scene.after(1).await;
    scene.deleted(&pod);
    assert_eq!(scene.after(120).await, ["v4-203-0-113-7-tcp-25 Releasing mx uid-mx"]);
    let mut scene = scene.shown("mx", true);
    assert_eq!(scene.after(1).await, ["v4-203-0-113-7-tcp-25 Cooldown mx"]);
}

#[tokio::test]
async fn nobody_waits_for_a_pod_that_ended_before_it_had_a_pinhole() {
    let pod = pod("mx", PORT, "2026-01-01T00:00:00Z");
    let mut scene = scene().stored(&pod).reserved("Pod", "mx", "v4-203-0-113-7-tcp-25");
    assert_eq!(scene.after(1).await, ["v4-203-0-113-7-tcp-25 Bound mx"], "no node was granted anything");
    scene.deleted(&pod);
    assert_eq!(scene.after(120).await, ["v4-203-0-113-7-tcp-25 Releasing mx"]);
    assert_eq!(scene.after(1).await, ["v4-203-0-113-7-tcp-25 Cooldown mx"]);
}

#[tokio::test]
async fn a_reservation_of_which_nothing_came_is_an_orphan_after_two_minutes() {
    let mut scene = scene().reserved("Pod", "refused", "v4-203-0-113-7-tcp-25");
    let mut registry = metrics::registry();
    scene.controller.metrics = ControllerMetrics::register(&mut registry);
    assert_eq!(scene.after(119).await, ["v4-203-0-113-7-tcp-25 Reserved refused"]);
    assert!(scene.after(1).await.is_empty());
    let counted = metrics::encode(&registry).unwrap();
    assert!(counted.contains(r#"pinhole_controller_changes_total{change="Orphaned"} 1"#), "{counted}");
    assert!(!counted.contains("Deleted"), "{counted}");
}

#[tokio::test]
async fn what_uses_a_claim_keeps_it_and_what_only_seems_to_does_not() {
    let ended = {
        let mut pod = pod("mx", PORT, "");
        pod.status.phase = "Succeeded".to_owned();
        pod
    };
    let cases = [
        ("a pod", pod("mx", PORT, ""), "Pod", true),
        ("a pod with a range around it", pod("mx", "203.0.113.7:20-30", ""), "Pod", true),
        ("a pod with another port", pod("mx", "203.0.113.7:26", ""), "Pod", false),
        ("a pod with another address", pod("mx", "203.0.113.8:25", ""), "Pod", false),
        ("a pod that has ended", ended, "Pod", false),
        ("another pod", pod("spam", "203.0.113.7:26", ""), "Pod", false),
        ("a template without pods", deployment(PORT), "Deployment", true),
        ("a template whose annotation was changed", deployment("8080"), "Deployment", false),
    ];
    for (name, object, kind, is_kept) in cases {
        let mut scene = scene().stored(&object).reserved(kind, "mx", "v4-203-0-113-7-tcp-25");
        let claims = scene.after(121).await;
        let found = claims.iter().any(|claim| claim.starts_with("v4-203-0-113-7-tcp-25 Bound mx"));
        let is_there = claims.iter().any(|claim| claim.starts_with("v4-203-0-113-7-tcp-25 "));
        assert_eq!((found, is_there), (is_kept, is_kept), "{name}: {claims:?}");
    }
}

#[tokio::test]
async fn ports_that_nobody_claimed_are_claimed_for_the_oldest_that_asks() {
    let younger = pod("young", PORT, "2026-01-02T00:00:00Z");
    let older = pod("old", "203.0.113.7:25,203.0.113.7:7008-7024/udp", "2026-01-01T00:00:00Z");
    let mut scene =
        scene().stored(&younger).stored(&older).stored(&pod("node", "8080", "")).shown("old", true);
    scene.after(1).await;
    let claims = scene.after(1).await;
    assert_eq!(
        claims,
        [
            "v4-203-0-113-7-tcp-25 Bound old uid-old",
            "v4-203-0-113-7-udp-7008-7023 Bound old uid-old",
            "v4-203-0-113-7-udp-7024 Bound old uid-old",
        ]
    );
    assert_eq!(scene.disputes(), 1, "the younger one does not get it");
    scene.deleted(&older);
    for seconds in [200, 30, 120] {
        scene.after(seconds).await;
    }
    scene.after(1).await;
    assert_eq!(scene.after(1).await, ["v4-203-0-113-7-tcp-25 Bound young"]);
}

#[tokio::test]
async fn what_was_claimed_over_the_port_of_another_and_not_taken_back_is_never_bound() {
    let (port, block) = ("v4-203-0-113-7-tcp-7010", "v4-203-0-113-7-tcp-7008-7023");
    let first = pod("first", "203.0.113.7:7010", "2026-01-01T00:00:00Z");
    let mut scene = scene().stored(&first).reserved("Pod", "first", port);
    let bound = format!("{port} Bound first");
    assert_eq!(scene.after(1).await, [bound.as_str()]);
    let mut scene = scene.stored(&deployment("203.0.113.7:7008-7023")).reserved("Deployment", "mx", block);
    assert_eq!(scene.after(1).await, [format!("{block} Reserved mx"), bound.clone()]);
    scene.after(121).await;
    assert_eq!(scene.after(1).await, [bound]);
}

#[tokio::test]
async fn what_is_in_dispute_costs_no_write_and_keeps_nobody_from_being_repaired() {
    let mut scene = scene().reserved("Pod", "first", "v4-203-0-113-7-tcp-7010").stored(&pod(
        "first",
        "203.0.113.7:7010",
        "",
    ));
    scene.after(1).await;
    for number in 0..MOST_IN_A_TURN {
        let of_another = pod(&format!("old-{number}"), "203.0.113.7:7001-7010", "2026-01-01T00:00:00Z");
        scene = scene.stored(&of_another);
    }
    let mut scene = scene.stored(&pod("young", PORT, "2026-01-02T00:00:00Z"));
    scene.after(1).await;
    let claims = scene.after(1).await;
    assert_eq!(claims, ["v4-203-0-113-7-tcp-25 Bound young", "v4-203-0-113-7-tcp-7010 Bound first"]);
    let made = |scene: &Scene| scene.store.lock().unwrap().clone();
    let before = format!("{:?}", made(&scene));
    scene.after(1).await;
    assert_eq!(format!("{:?}", made(&scene)), before, "the revision of the store counts each write");
    assert_eq!(scene.disputes(), MOST_IN_A_TURN);
}

#[tokio::test]
async fn of_two_deployments_of_one_port_the_younger_hears_of_it_once_whatever_its_pods_are() {
    let mut older = deployment(PORT);
    older.metadata.name = "old".to_owned();
    older.metadata.uid = "uid-old".to_owned();
    older.metadata.creation_timestamp = "2026-01-01T00:00:00Z".to_owned();
    let mut younger = deployment(PORT);
    younger.metadata.creation_timestamp = "2026-01-02T00:00:00Z".to_owned();
    let owner = json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": "mx", "uid": "uid-mx", "controller": true}]);
    let replica_set = json!({"kind": "ReplicaSet",
        "metadata": {"name": "mx-5f", "namespace": "mail", "uid": "uid-rs", "ownerReferences": owner}});
    let mut scene =
        scene().stored(&older).stored(&younger).stored(&serde_json::from_value(replica_set).unwrap());
    for number in 0..500 {
        let mut of_younger = pod(&format!("mx-{number}"), PORT, "2026-01-02T00:00:01Z");
        let owner = json!([{"kind": "ReplicaSet", "name": "mx-5f", "uid": "uid-rs", "controller": true}]);
        of_younger.metadata.owner_references = serde_json::from_value(owner).unwrap();
        scene = scene.stored(&of_younger);
    }
    for _ in 0..5 {
        scene.after(1).await;
    }
    assert_eq!(scene.disputes(), 501);
    let told = scene.told();
    assert_eq!(told.len(), 1, "{told:?}");
    let expected = "Deployment mail/mx PortTaken: 203.0.113.7:25/tcp: is claimed by Deployment mail/old (PortClaim \
                    v4-203-0-113-7-tcp-25, since 2023-11-14T22:13:21Z); choose another external port, remove it there first, or \
                    have it handed over (kubectl pinhole transfer deployment/old --to deployment/mx)";
    assert_eq!(told[0], expected);
}

#[tokio::test]
async fn a_claim_follows_to_a_standby_when_its_pod_is_gone_or_has_ended() {
    let member = |name: &str, created: &str, phase: &str| {
        let mut pod = pod(name, PORT, created);
        let owner = json!([{"kind": "Fleet", "name": "mx", "uid": "uid-mx", "controller": true}]);
        pod.metadata.owner_references = serde_json::from_value(owner).unwrap();
        pod.status.phase = phase.to_owned();
        pod
    };
    for ends in [false, true] {
        let first = member("mx-a", "2026-01-01T00:00:00Z", "Running");
        let second = member("mx-b", "2026-01-01T00:00:01Z", "Running");
        let mut scene = scene().stored(&first).stored(&second);
        scene = scene.reserved("Fleet", "mx", "v4-203-0-113-7-tcp-25").shown("mx-a", false);
        assert_eq!(scene.after(1).await, ["v4-203-0-113-7-tcp-25 Bound mx uid-mx-a"]);
        if ends {
            scene = scene.stored(&member("mx-a", "2026-01-01T00:00:00Z", "Failed"));
        } else {
            scene.deleted(&first);
        }
        scene = scene.shown("mx-b", false);
        assert_eq!(scene.after(1).await, ["v4-203-0-113-7-tcp-25 Bound mx uid-mx-b"], "{ends}");
    }
}

/// A StatefulSet of so many pods, with a port for each by its ordinal.
fn game(replicas: i64) -> Object {
    let object = json!({"kind": "StatefulSet", "metadata": {"name": "game", "namespace": "mail", "uid": "uid-game"},
        "spec": {"replicas": replicas, "template": {"metadata": {"annotations":
            {"pinhole.dev/expose": "203.0.113.7:30000+{ordinal}:80"}}}}});
    serde_json::from_value(object).unwrap()
}

#[tokio::test]
async fn a_set_keeps_the_ports_of_its_pods_while_its_replicas_include_them() {
    let mut scene = scene().stored(&game(3));
    for number in [30000, 30001, 30002, 30003] {
        scene = scene.reserved("StatefulSet", "game", &format!("v4-203-0-113-7-tcp-{number}"));
    }
    let states = |claims: Vec<String>| -> Vec<String> {
        claims.iter().filter_map(|claim| Some(claim.split(' ').nth(1)?.to_owned())).collect()
    };
    assert_eq!(
        states(scene.after(600).await),
        ["Bound", "Bound", "Bound"],
        "of no fourth pod was there a word"
    );
    scene = scene.stored(&game(1));
    assert_eq!(states(scene.after(600).await), ["Bound", "Releasing", "Releasing"]);
    scene = scene.stored(&game(2));
    assert_eq!(states(scene.after(1).await), ["Bound", "Bound", "Cooldown"], "scaled out again in time");
}

#[tokio::test]
async fn what_a_set_was_scaled_to_without_a_request_is_claimed_by_its_pods_alone() {
    let mut pod = pod("game-1", "203.0.113.7:30000+{ordinal}:80", "2026-01-01T00:00:00Z");
    let owner = json!([{"kind": "StatefulSet", "name": "game", "uid": "uid-game", "controller": true}]);
    pod.metadata.owner_references = serde_json::from_value(owner).unwrap();
    let mut scene = scene().stored(&game(3)).stored(&pod);
    assert_eq!(scene.after(0).await, ["v4-203-0-113-7-tcp-30001 Reserved game"]);
}

#[test]
fn pods_of_one_holder_that_ask_for_one_port_are_repaired_once() {
    let scene = scene();
    let mut index = scene.controller.index.write().unwrap();
    for name in ["mx-1", "mx-2"] {
        let mut pod = pod(name, PORT, "");
        let owner =
            json!({"apiVersion": "x/v1", "kind": "GameSet", "name": "mx", "uid": "s", "controller": true});
        pod.metadata.owner_references = vec![serde_json::from_value(owner).unwrap()];
        index.apply(&pod);
    }
    let plan = plan::plan(&Claims::new(), &index, &Pinholes::new(), &scene.controller.times, scene.now);
    assert_eq!(plan.missing.len(), 1);
}

#[tokio::test]
async fn a_claim_deleted_by_hand_comes_back() {
    let mut scene = scene().stored(&pod("mx", PORT, "")).reserved("Pod", "mx", "v4-203-0-113-7-tcp-25");
    scene = scene.shown("mx", true);
    scene.after(1).await;
    *scene.store.lock().unwrap() = Memory::default();
    scene.after(1).await;
    assert_eq!(scene.after(1).await, ["v4-203-0-113-7-tcp-25 Bound mx uid-mx"]);
}

#[tokio::test]
async fn who_does_not_lead_or_does_not_know_everything_changes_nothing() {
    let mut scene = scene().reserved("Pod", "refused", "v4-203-0-113-7-tcp-25");
    scene.leading_tx.send_replace(false);
    assert_eq!(scene.after(500).await.len(), 1);
    scene.leading_tx.send_replace(true);
    scene.controller.startup.waits_for("pods");
    assert_eq!(scene.after(1).await.len(), 1);
    scene.controller.startup.finish();
    scene.controller.claims_known.store(false, Ordering::Release);
    assert_eq!(scene.after(1).await.len(), 1);
    scene.controller.claims_known.store(true, Ordering::Release);
    assert!(scene.after(1).await.is_empty());
}

#[tokio::test]
async fn a_claim_that_came_before_its_pool_is_taken_into_it_and_cools_down_as_the_pool_says() {
    let pod = pod("mx", PORT, "2026-01-01T00:00:00Z");
    let mut scene = scene().stored(&pod);
    let pool = |scene: &Scene| {
        let store = scene.store.lock().unwrap();
        store.claims().next().and_then(|stored| stored.claim.pool.clone())
    };
    scene.after(1).await;
    assert_eq!(pool(&scene), None);
    let spec =
        json!({"addresses": ["203.0.113.7"], "ports": [{"first": 1, "last": 99}], "cooldownSeconds": 600});
    let edge = Pool::read("edge", &serde_json::from_value(spec).unwrap()).unwrap();
    scene.controller.index.write().unwrap().set_pools(Some([edge].into()));
    scene.after(1).await;
    scene.after(1).await;
    assert_eq!(pool(&scene).as_deref(), Some("edge"));
    scene.deleted(&pod);
    scene.after(120).await;
    assert_eq!(scene.after(30).await, ["v4-203-0-113-7-tcp-25 Cooldown mx"]);
    assert_eq!(scene.after(599).await, ["v4-203-0-113-7-tcp-25 Cooldown mx"]);
    assert!(scene.after(1).await.is_empty());
}

#[tokio::test]
async fn a_port_that_went_past_the_webhook_is_claimed_in_the_pool_that_has_it() {
    let scene = scene();
    let spec = json!({"addresses": ["203.0.113.7"]});
    let edge = Pool::read("edge", &serde_json::from_value(spec).unwrap()).unwrap();
    scene.controller.index.write().unwrap().set_pools(Some([edge].into()));
    let mut scene = scene.stored(&deployment(PORT));
    scene.after(1).await;
    let store = scene.store.lock().unwrap();
    assert_eq!(store.claims().next().unwrap().claim.pool.as_deref(), Some("edge"));
}

#[test]
fn what_is_on_different_addresses_is_claimed_at_one_time_and_the_rest_in_order() {
    let missing = |name: &str, addresses: &[u8]| Missing {
        object: ObjectKey { kind: crate::api::object::Kind::Pod, name: ObjectName::new("mail", name) },
        uid: name.into(),
        controller: None,
        claims: addresses
            .iter()
            .map(|last| {
                let key = format!("v4-203-0-113-{last}-tcp-25").parse().unwrap();
                Claim::reserve(key, Holder::new("Pod", ObjectName::new("mail", name)), Timestamp::UNIX_EPOCH)
            })
            .collect(),
    };
    let all =
        [("a", &[1][..]), ("b", &[2]), ("c", &[3]), ("d", &[1]), ("e", &[1, 2]), ("f", &[2]), ("g", &[4, 3])];
    let groups = plan::apart(all.map(|(name, addresses)| missing(name, addresses)));
    let names = |group: &Vec<Missing>| group.iter().map(|one| one.uid.to_string()).collect::<String>();
    let mut groups: Vec<_> = groups.iter().map(names).filter(|names| !names.is_empty()).collect();
    groups.sort();
    assert_eq!(groups, ["adbef", "cg"]);
}

fn named(name: &str, heir: Option<&str>) -> Object {
    let mut object = deployment(PORT);
    name.clone_into(&mut object.metadata.name);
    let heir = heir.map(|heir| ("pinhole.dev/transfer-to".to_owned(), heir.to_owned()));
    object.metadata.annotations = heir.into_iter().collect();
    object
}

#[tokio::test]
async fn a_port_goes_to_its_heir_back_when_that_is_gone_and_in_no_circles() {
    let (blue, green) = (|heir| named("blue", heir), |heir| named("green", heir));
    let mut scene = scene().stored(&blue(None)).reserved("Deployment", "blue", "v4-203-0-113-7-tcp-25");
    assert_eq!(scene.after(1).await, ["v4-203-0-113-7-tcp-25 Bound blue"]);
    // Whoever went past the webhook gets what is handed over, too; what is not, it does not.
    let mut scene = scene.stored(&green(None));
    assert_eq!(scene.after(1).await, ["v4-203-0-113-7-tcp-25 Bound blue"]);
    let mut scene = scene.stored(&blue(Some("Deployment/green")));
    scene.after(1).await;
    for seconds in [1, 1, 500] {
        assert_eq!(scene.after(seconds).await, ["v4-203-0-113-7-tcp-25 Bound green"]);
    }
    let mut scene = scene.stored(&green(Some("Deployment/blue")));
    assert_eq!(scene.after(1).await, ["v4-203-0-113-7-tcp-25 Bound green"], "each names the other");
    let mut scene = scene.stored(&blue(None));
    scene.after(1).await;
    assert_eq!(scene.after(1).await, ["v4-203-0-113-7-tcp-25 Bound blue"], "handed back");

    let mut scene = scene.stored(&green(None)).stored(&blue(Some("Deployment/green")));
    scene.after(1).await;
    assert_eq!(scene.after(200).await, ["v4-203-0-113-7-tcp-25 Bound green"]);
    scene.deleted(&green(None));
    scene.after(1).await;
    assert_eq!(scene.after(1).await, ["v4-203-0-113-7-tcp-25 Bound blue"], "its heir is gone");
    scene.deleted(&blue(None));
    assert_eq!(scene.after(200).await, ["v4-203-0-113-7-tcp-25 Releasing blue"]);
}
