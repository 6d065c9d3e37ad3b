//! Ports that are kept for the next pod of the same name, and for how long.

use proptest::prelude::*;

use super::*;
use crate::admission::index::Finder;
use crate::admission::index::ObjectKey;
use crate::allocation::life::Change;
use crate::api::crd::pinhole::Pinhole;
use crate::api::crd::pinhole::PinholeSpec;
use crate::api::crd::pinhole::PinholeTarget;

/// A StatefulSet with fixed ports and so many replicas.
fn lobbies(replicas: i64) -> Object {
    serde_json::from_value(json!({"kind": "StatefulSet",
        "metadata": {"namespace": "games", "name": "lobby", "uid": "s"},
        "spec": {"replicas": replicas, "template": {"metadata": {"annotations": {"pinhole.dev/expose": PORTS}}}}}))
    .unwrap()
}

const PORTS: &str = "fixed:80,fixed:80/udp";

/// A pod of that StatefulSet: the `nth` one of its name.
fn lobby(name: &str, nth: usize) -> Object {
    let owner = json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "lobby", "uid": "s", "controller": true}]);
    let uid = format!("uid-{name}-{nth}");
    pod(name, PORTS, json!({"metadata": {"uid": uid, "ownerReferences": owner}}))
}

/// A pool that keeps fixed ports.
fn keeping(retention: Value) -> Value {
    let mut spec = open();
    spec["retention"] = retention;
    spec
}

impl Scene {
    /// The Pinholes of the pods that there are; no node has anything of them yet.
    fn pinholes(&self) -> Pinholes {
        let pods = self.index.finders().filter(|finder| finder.object.kind == Kind::Pod);
        let pinhole = |finder: Finder<'_>| {
            let name = &finder.object.name;
            let target = PinholeTarget {
                pod: Some(name.name.to_string()),
                pod_uid: Some(finder.uid.to_string()),
                ..PinholeTarget::default()
            };
            (name.clone(), Pinhole::new(&name.name, PinholeSpec { target, ..PinholeSpec::default() }))
        };
        pods.map(pinhole).collect()
    }

    /// Takes turns of the controller until nothing changes: what it does is stored at once, and nobody serves what is released.
    fn settle(&mut self, second: i64) {
        let times = Times { release: SignedDuration::ZERO, cooldown: SignedDuration::from_secs(120) };
        let now = at().checked_add(SignedDuration::from_secs(second)).unwrap();
        for _ in 0..8 {
            let planned = plan::plan(&self.claims, &self.index, &self.pinholes(), &times, now).changes;
            for plan::Planned { stored, change } in planned {
                match change {
                    Change::Delete => drop(self.claims.remove(&stored.claim.key)),
                    Change::Update(claim) => {
                        self.claims.insert(claim.key, StoredClaim { claim: *claim, ..stored });
                    }
                }
            }
        }
    }

    fn delete(&mut self, pod: &Object) {
        let key = ObjectKey::of(pod, "games").unwrap();
        self.index.delete(&key, Some(&pod.metadata.uid));
    }

    /// The states of the claims, in words.
    fn states(&self) -> Vec<&'static str> {
        self.claims.values().map(|stored| stored.claim.state.name()).collect()
    }
}

#[test]
fn a_fixed_port_is_the_next_pods_of_the_same_name_as_long_as_its_set_has_that_pod() {
    let mut scene = scene(open());
    scene.index.apply(&lobbies(2));
    let (first, neighbour) = (lobby("lobby-1", 1), lobby("lobby-0", 1));
    let keys = scene.claim(&first);
    assert!(scene.claim(&neighbour).iter().all(|key| !keys.contains(key)));
    scene.settle(1);
    scene.delete(&first);
    scene.settle(9_999);
    assert_eq!(scene.states(), ["Bound"; 4], "the set is about to have that pod again");
    let next = lobby("lobby-1", 2);
    scene.index.apply(&next);
    assert!(scene.standing(&next).open().next().is_none());
    assert_eq!(scene.announced(&next).unwrap()["spec"]["schedulingGates"], json!([]), "it is let go at once");
    scene.settle(9_999);
    assert!(keys.iter().all(|key| scene.claims[key].claim.pod_uid.as_deref() == Some("uid-lobby-1-2")));

    // Scaled in, it is given up; back within the cooldown it has its ports again, and later it has not.
    scene.index.apply(&lobbies(1));
    scene.delete(&next);
    scene.settle(10_000);
    assert_eq!(scene.states().iter().filter(|state| **state == "Cooldown").count(), 2);
    scene.index.apply(&lobbies(2));
    let back = lobby("lobby-1", 3);
    scene.index.apply(&back);
    let again: Vec<_> = scene.choose(&back, 0).unwrap().into_iter().map(|claim| claim.key).collect();
    assert_eq!(again, keys, "what it had is not searched for");
    scene.settle(10_001);
    assert_eq!(scene.states(), ["Bound"; 4]);
    scene.index.apply(&lobbies(1));
    scene.delete(&back);
    scene.settle(20_000);
    scene.settle(20_120);
    assert_eq!(scene.states(), ["Bound"; 2]);

    // The set is gone, and so is all that it had.
    scene.delete(&lobbies(1));
    scene.delete(&neighbour);
    scene.settle(30_000);
    scene.settle(30_120);
    assert!(scene.claims.is_empty());
}

#[test]
fn a_fixed_port_that_somebody_took_meanwhile_is_searched_for_anew() {
    let mut scene = scene(open());
    let first = pod("lobby", "fixed:80", json!({}));
    let key = scene.claim(&first)[0];
    scene.settle(1);
    scene.delete(&first);
    scene.settle(200);
    assert_eq!(scene.states(), ["Cooldown"]);
    let next = pod("lobby", "fixed:80", json!({"metadata": {"uid": "uid-after-it"}}));
    assert_eq!(scene.choose(&next, 0).unwrap()[0].key, key);
    let found = Found::of(&scene.claims);
    let taken = BTreeSet::from([key]);
    let searched = choose(&next, &scene.standing(&next), &scene.known(&found), &taken, 1, at()).unwrap();
    assert_ne!(searched[0].key, key);
}

#[test]
fn a_fixed_port_is_kept_beyond_its_pod_as_its_pool_says() {
    let scaled_in_for = |retention: Value, seconds: i64, pool_is_deleted: bool| {
        let mut scene = scene(keeping(retention));
        scene.index.apply(&lobbies(1));
        let (set, pod) = (lobbies(0), lobby("lobby-0", 1));
        scene.claim(&pod);
        scene.settle(1);
        scene.index.apply(&set);
        scene.delete(&pod);
        if pool_is_deleted {
            let mut pool = scene.index.pools().unwrap()[0].clone();
            pool.is_deleting = true;
            scene.index.set_pools(Some([pool].into()));
        }
        scene.settle(500);
        scene.settle(500 + seconds);
        scene.states()
    };
    assert_eq!(scaled_in_for(json!({}), 0, false), ["Cooldown"; 2]);
    assert_eq!(scaled_in_for(json!({"policy": "Retain"}), 99_999, false), ["Bound"; 2]);
    assert_eq!(scaled_in_for(json!({"policy": "Retain"}), 0, true), ["Cooldown"; 2], "its pool is to go");
    assert_eq!(scaled_in_for(json!({"policy": "TTL", "ttlSeconds": 60}), 59, false), ["Bound"; 2]);
    assert_eq!(scaled_in_for(json!({"policy": "TTL", "ttlSeconds": 60}), 60, false), ["Cooldown"; 2]);

    // What is not fixed goes with its pod, whatever the pool says.
    let mut scene = scene(keeping(json!({"policy": "TTL", "ttlSeconds": 60})));
    let pod = pod("match", "auto:80", json!({}));
    scene.claim(&pod);
    scene.settle(1);
    scene.delete(&pod);
    scene.settle(500);
    assert_eq!(scene.states(), ["Cooldown"]);
}

/// What happens to a StatefulSet with fixed ports and to its pods.
#[derive(Clone, Debug)]
enum Event {
    Scale(i64),
    Create(usize),
    Delete(usize),
    DeleteSet,
    Pass(i64),
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0..4_i64).prop_map(Event::Scale),
        (0..3_usize).prop_map(Event::Create),
        (0..3_usize).prop_map(Event::Delete),
        Just(Event::DeleteSet),
        prop::sample::select(vec![1, 50, 130, 1_000]).prop_map(Event::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn whatever_is_retained_is_given_back_once_its_set_is_gone_and_two_pods_never_share(
        retention in prop::sample::select(vec![
            json!({}), json!({"policy": "Retain"}), json!({"policy": "TTL", "ttlSeconds": 600}),
        ]),
        events in prop::collection::vec(any_event(), 1..20),
    ) {
        let mut scene = scene(keeping(retention));
        let mut pods: BTreeMap<usize, Object> = BTreeMap::new();
        let (mut second, mut made) = (1, 0);
        for event in events {
            match event {
                Event::Scale(replicas) => scene.index.apply(&lobbies(replicas)),
                Event::DeleteSet => scene.delete(&lobbies(0)),
                Event::Pass(seconds) => second += seconds,
                Event::Delete(ordinal) => {
                    if let Some(pod) = pods.remove(&ordinal) {
                        scene.delete(&pod);
                    }
                }
                Event::Create(ordinal) => {
                    made += 1;
                    let pod = pods.entry(ordinal).or_insert_with(|| lobby(&format!("lobby-{ordinal}"), made)).clone();
                    scene.index.apply(&pod);
                    // A search that is over before the controller's turn, with what it takes back.
                    if scene.standing(&pod).open().next().is_some() {
                        for claim in scene.choose(&pod, 0).unwrap() {
                            let version = Version { key: claim.key, uid: "1".into(), revision: 1 };
                            scene.claims.insert(claim.key, StoredClaim { claim, version });
                        }
                    }
                }
            }
            scene.settle(second);
            for pod in pods.values() {
                let standing = scene.standing(pod);
                prop_assert!(standing.open().next().is_none(), "{} has lost its ports", pod.metadata.name);
                for stored in scene.claims.values() {
                    let is_its = stored.claim.slot.as_ref().is_some_and(|slot| slot.starts_with(&pod.metadata.name));
                    let leads_there = stored.claim.pod_uid.as_deref() == Some(&*pod.metadata.uid);
                    prop_assert_eq!(is_its, leads_there, "{:?}", stored);
                }
            }
        }
        scene.delete(&lobbies(0));
        for pod in pods.values() {
            scene.delete(pod);
        }
        for pause in [0, 121, 601, 121, 121] {
            second += pause;
            scene.settle(second);
        }
        prop_assert!(scene.claims.is_empty(), "{:?}", scene.claims);
    }
}
