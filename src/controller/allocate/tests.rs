//! Turns of the allocator over a store in memory that others write to as well.

use std::collections::BTreeMap;

use futures::future::BoxFuture;
use serde_json::json;

use super::*;
use crate::allocation::claim::StoredClaim;
use crate::allocation::memory::Memory;
use crate::allocation::operation::Operation;
use crate::allocation::operation::Outcome;
use crate::model::holder::Holder;

struct Scene {
    allocator: Allocator,
    store: Arc<Mutex<Memory>>,
    patience: tokio::sync::Mutex<Patience>,
}

fn scene(pool: serde_json::Value) -> Scene {
    let mut index = Index::new(Arc::new(Policy::default()));
    let pool = Pool::read("games", &serde_json::from_value(pool).unwrap()).unwrap();
    index.set_pools(Some([pool].into()));
    let store = Arc::new(Mutex::new(Memory::default()));
    let (_, leading_rx) = watch::channel(true);
    let allocator = Allocator {
        store: Arc::clone(&store) as Arc<dyn ClaimStore>,
        claims: Arc::default(),
        claims_known: Arc::new(AtomicBool::new(true)),
        index: Arc::new(RwLock::new(index)),
        pods: Arc::default(),
        startup: Arc::new(Startup::complete()),
        policy: Arc::new(Policy::default()),
        leading_rx,
        waiting: Arc::default(),
        changes: Changes::default(),
        metrics: ControllerMetrics::default(),
    };
    Scene { allocator, store, patience: tokio::sync::Mutex::default() }
}

impl Scene {
    fn asking(&self, name: &str, ports: &str) {
        self.asking_in("games", name, ports);
    }

    fn asking_in(&self, namespace: &str, name: &str, ports: &str) {
        let pod = json!({"kind": "Pod", "metadata": {"namespace": namespace, "name": name, "uid": format!("uid-{name}"),
            "annotations": {"pinhole.dev/expose": ports}}});
        let pod: Object = serde_json::from_value(pod).unwrap();
        self.allocator.index.write().unwrap().apply(&pod);
        self.allocator.pods.write().unwrap().insert(ObjectName::new(namespace, name), pod);
    }

    /// A turn, while the watch shows what is stored.
    async fn turn(&self, sees: bool) {
        self.turn_at(sees, claim_store::now()).await;
    }

    async fn turn_at(&self, sees: bool, now: Timestamp) {
        let showing = async {
            loop {
                if sees {
                    self.see();
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let mut patience = self.patience.lock().await;
        tokio::select! {
            () = self.allocator.turn(now, &mut patience) => {}
            () = showing => {}
        }
    }

    /// Why pods wait.
    fn reasons(&self) -> Vec<String> {
        self.allocator.waiting.read().unwrap().values().cloned().collect()
    }

    fn see(&self) {
        let stored = self.stored();
        *self.allocator.claims.write().unwrap() = stored;
    }

    fn stored(&self) -> Claims {
        self.store.lock().unwrap().claims().map(|stored| (stored.claim.key, stored.clone())).collect()
    }

    /// How many claims each slot has.
    fn slots(&self) -> BTreeMap<String, usize> {
        let mut slots = BTreeMap::new();
        for stored in self.stored().into_values() {
            *slots.entry(stored.claim.slot.unwrap_or_default()).or_default() += 1;
        }
        slots
    }
}

fn pool(last: u16) -> serde_json::Value {
    json!({"addresses": ["192.0.2.1"], "ports": [{"first": 30001, "last": last, "staticBand": 0}], "namespaces": {"all": true}})
}

#[tokio::test]
async fn many_pods_get_one_claim_for_each_port_and_the_next_turn_finds_nothing_to_do() {
    let scene = scene(pool(30_128));
    for number in 0..64 {
        scene.asking(&format!("lobby-{number}"), "auto:53,auto:53/udp");
    }
    scene.turn(true).await;
    let slots = scene.slots();
    assert_eq!(slots.len(), 128);
    assert!(slots.values().all(|count| *count == 1), "{slots:?}");
    scene.turn(true).await;
    assert_eq!(scene.slots(), slots);
    let number = |stored: StoredClaim| {
        let port = stored.claim.key.to_string().rsplit_once('-').unwrap().1.to_owned();
        (stored.claim.slot.unwrap().split_once('/').unwrap().0.to_owned(), port)
    };
    let numbers: BTreeSet<_> = scene.stored().into_values().map(number).collect();
    assert_eq!(numbers.len(), 64, "TCP and UDP of a pod have one number");
}

#[tokio::test]
async fn who_finds_a_port_that_somebody_took_unseen_searches_on() {
    let scene = scene(pool(30_004));
    // Three of four are taken, and the watch has not shown it.
    for port in [30_001, 30_002, 30_004] {
        let key = format!("v4-192-0-2-1-tcp-{port}").parse().unwrap();
        let claim =
            Claim::reserve(key, Holder::new("Pod", ObjectName::new("mail", "mx")), claim_store::now());
        let claim = claim.into_state(crate::api::crd::port_claim::ClaimState::Bound, claim_store::now());
        scene.store.lock().unwrap().perform(Operation::Create(claim));
    }
    scene.asking("lobby", "auto:80");
    let before = scene.allocator.claims.read().unwrap().clone();
    assert!(before.is_empty());
    tokio::time::pause();
    scene.turn(false).await;
    assert_eq!(scene.slots().get("uid-lobby/tcp/80"), Some(&1));
    assert!(scene.stored().keys().any(|key| key.to_string() == "v4-192-0-2-1-tcp-30003"));
}

#[tokio::test]
async fn a_full_pool_is_said_for_as_long_as_it_is_so() {
    let scene = scene(pool(30_002));
    for name in ["a", "b", "c"] {
        scene.asking(name, "auto:80");
    }
    for _ in 0..3 {
        scene.turn(true).await;
    }
    let reasons = scene.reasons();
    assert!(reasons[0].contains("no address of NatPool games has a free port"), "{reasons:?}");
    assert_eq!(reasons.len(), 1);
    let key = scene.stored().into_values().next().unwrap().version;
    scene.store.lock().unwrap().perform(Operation::Delete(key));
    scene.see();
    scene.turn(true).await;
    scene.turn(true).await;
    assert_eq!(scene.slots().len(), 2);
    assert_eq!(scene.reasons().len(), 1, "one of three has none");
}

#[tokio::test]
async fn a_namespace_gets_no_more_than_its_quota() {
    let mut spec = pool(30_100);
    spec["quota"] = json!({"portsPerNamespace": 2});
    let scene = scene(spec);
    for name in ["a", "b", "c"] {
        scene.asking(name, "auto:80");
    }
    scene.turn(true).await;
    assert_eq!(scene.slots().len(), 2);
    let reason = scene.reasons().remove(0);
    assert!(reason.starts_with("needs 1 more of NatPool games, of which this namespace holds 2"), "{reason}");
}

#[tokio::test]
async fn pods_that_wait_in_vain_keep_nobody_from_being_searched_for_and_cost_little() {
    let mut spec = pool(30_100);
    spec["quota"] = json!({"portsPerNamespace": 1});
    let mut scene = scene(spec);
    let lists = Arc::new(Mutex::new(0));
    scene.allocator.store = Arc::new(Counting { store: Arc::clone(&scene.store), lists: Arc::clone(&lists) });
    for number in 0..=MOST_IN_A_TURN {
        scene.asking(&format!("a-{number:03}"), "auto:80");
    }
    scene.asking_in("shop", "z", "auto:80");
    let start = claim_store::now();
    scene.turn_at(true, start).await;
    assert_eq!(scene.slots().get("uid-z/tcp/80"), Some(&1), "one of each namespace comes first");
    assert_eq!(*lists.lock().unwrap(), 4, "before and after each grant");
    scene.turn_at(true, start).await;
    let again = *lists.lock().unwrap();
    assert_eq!(again, 5, "the last one had not been searched for");
    scene.turn_at(true, start).await;
    assert_eq!(*lists.lock().unwrap(), again, "all wait");
    let after = |seconds| start.checked_add(k8s_openapi::jiff::SignedDuration::from_secs(seconds)).unwrap();
    scene.turn_at(true, after(1)).await;
    assert_eq!(*lists.lock().unwrap(), again + 1);
    scene.turn_at(true, after(2)).await;
    let waiting = *lists.lock().unwrap();
    let mut granted = scene.stored().into_values();
    let games = granted.find(|stored| &*stored.claim.holder.object.namespace == "games").unwrap();
    scene.store.lock().unwrap().perform(Operation::Delete(games.version));
    scene.see();
    scene.turn_at(true, after(2)).await;
    assert_eq!(scene.slots().len(), 2, "what was given back is found at once");
    assert!(waiting < *lists.lock().unwrap());
}

/// A store that counts how often a namespace is listed.
struct Counting {
    store: Arc<Mutex<Memory>>,
    lists: Arc<Mutex<usize>>,
}

impl ClaimStore for Counting {
    fn perform(&self, operation: Operation) -> BoxFuture<'_, Outcome> {
        *self.lists.lock().unwrap() += usize::from(matches!(operation, Operation::ListOf(_)));
        self.store.perform(operation)
    }
}

/// A store that lists a namespace once, and fails then.
struct ListsOnce {
    store: Arc<Mutex<Memory>>,
    lists: Mutex<usize>,
}

impl ClaimStore for ListsOnce {
    fn perform(&self, operation: Operation) -> BoxFuture<'_, Outcome> {
        if matches!(operation, Operation::ListOf(_)) {
            let mut lists = self.lists.lock().unwrap();
            *lists += 1;
            if *lists == 2 {
                let failure = Failure { reason: "the store is away".to_owned(), is_lasting: false };
                return Box::pin(async { Outcome::Failed(failure) });
            }
        }
        self.store.perform(operation)
    }
}

#[tokio::test]
async fn a_quota_that_cannot_be_read_again_is_not_taken_for_kept() {
    let mut spec = pool(30_100);
    spec["quota"] = json!({"portsPerNamespace": 2});
    let mut scene = scene(spec);
    scene.allocator.store = Arc::new(ListsOnce { store: Arc::clone(&scene.store), lists: Mutex::default() });
    scene.asking("a", "auto:80");
    scene.turn(true).await;
    assert!(scene.stored().is_empty());
}

#[tokio::test]
async fn who_does_not_lead_claims_nothing() {
    let mut scene = scene(pool(30_100));
    scene.allocator.leading_rx = watch::channel(false).1;
    scene.asking("a", "auto:80");
    scene.turn(true).await;
    assert!(scene.stored().is_empty());
}
