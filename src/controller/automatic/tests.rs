//! What is chosen for pods, and what they are told.

mod fixed;

use k8s_openapi::jiff::SignedDuration;

use super::*;
use crate::admission::index::occupants::Occupants;
use crate::admission::index::occupants::Source;
use crate::allocation::claim::Version;
use crate::cluster::pinhole_watch::Pinholes;
use crate::controller::plan;
use crate::controller::plan::Times;
use crate::controller::standing;
use crate::controller::standing::HandedOver;
use crate::controller::standing::Waiting;

struct Scene {
    index: Index,
    claims: Claims,
    waiting: Waiting,
    policy: Policy,
}

fn scene(pool: Value) -> Scene {
    let mut index = Index::new(Arc::new(Policy::default()));
    let pool = Pool::read("games", &serde_json::from_value(pool).unwrap()).unwrap();
    index.set_pools(Some([pool].into()));
    for (name, address) in [("node-1", "203.0.113.7"), ("node-2", "203.0.113.8")] {
        let node = json!({"kind": "Node", "metadata": {"name": name, "labels": {"zone": name}}});
        index.apply(&serde_json::from_value(node).unwrap());
        index.set_occupants(Occupants {
            source: Source::NatNode(name.into()),
            version: Some(1),
            taken: Vec::new(),
            addresses: vec![(address.parse().unwrap(), true)],
        });
    }
    Scene { index, claims: Claims::new(), waiting: Waiting::new(), policy: Policy::default() }
}

fn open() -> Value {
    json!({"addresses": ["192.0.2.1", "192.0.2.2"], "ports": [{"first": 30000, "last": 30099}],
        "namespaces": {"all": true}})
}

#[expect(clippy::needless_pass_by_value, reason = "literal JSON at every call")]
fn pod(name: &str, ports: &str, changes: Value) -> Object {
    let mut pod = json!({
        "kind": "Pod",
        "metadata": {"namespace": "games", "name": name, "uid": format!("uid-{name}"), "resourceVersion": "7",
            "annotations": {"pinhole.dev/expose": ports}},
        "spec": {"schedulingGates": [{"name": "pinhole.dev/endpoints"}]},
    });
    json_patch::merge(&mut pod, &changes);
    serde_json::from_value(pod).unwrap()
}

fn at() -> Timestamp {
    Timestamp::from_second(1_700_000_000).unwrap()
}

static NOTHING: HandedOver = HandedOver::new();

impl Scene {
    fn standing(&self, pod: &Object) -> Standing {
        let found = Found::of(&self.claims);
        standing::stand(pod, &self.known(&found)).unwrap()
    }

    fn known<'a>(&'a self, found: &'a Found<'a>) -> Known<'a> {
        let Self { index, claims, waiting, policy } = self;
        Known { claims, found, waiting, handed_over: &NOTHING, index, policy }
    }

    fn choose(&self, pod: &Object, attempt: u32) -> Result<Vec<Claim>, Refusal> {
        let found = Found::of(&self.claims);
        choose(pod, &self.standing(pod), &self.known(&found), &BTreeSet::new(), attempt, at())
    }

    /// Claims what is chosen, as one that wins does.
    fn claim(&mut self, pod: &Object) -> Vec<ClaimKey> {
        self.index.apply(pod);
        let chosen = self.choose(pod, 0).unwrap();
        chosen.into_iter().map(|claim| self.store(claim)).collect()
    }

    fn store(&mut self, claim: Claim) -> ClaimKey {
        let key = claim.key;
        let version = Version { key, uid: "1".into(), revision: 1 };
        assert!(self.claims.insert(key, StoredClaim { claim, version }).is_none(), "{key} was claimed twice");
        key
    }

    fn announced(&self, pod: &Object) -> Option<Value> {
        announcement(pod, &self.standing(pod), &self.index)
    }
}

fn endpoints(patch: &Value) -> Value {
    let text = patch["metadata"]["annotations"]["pinhole.dev/endpoints"].as_str().unwrap();
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_pod_is_told_and_its_pinhole_shows_what_the_outside_connects_to() {
    let mut pool = open();
    pool["addresses"] = json!(["192.0.2.1"]);
    pool["advertisedAddresses"] = json!([{"address": "192.0.2.1", "advertised": "198.51.100.1"}]);
    let mut scene = scene(pool);
    let pod = pod("lobby", "auto:53", json!({}));
    scene.claim(&pod);
    let told = endpoints(&scene.announced(&pod).unwrap());
    assert_eq!(
        (&told[0]["address"], &told[0]["advertisedAddress"]),
        (&json!("192.0.2.1"), &json!("198.51.100.1"))
    );
    let shown = scene.standing(&pod).shown(&scene.index);
    assert_eq!(shown, [format!("198.51.100.1:{}/tcp", told[0]["port"])]);
}

#[test]
fn a_pod_is_told_its_ports_and_let_go_in_one_write_that_names_its_version() {
    let mut scene = scene(open());
    let pod = pod("lobby", "auto:53,auto:53/udp,auto:9000/udp", json!({}));
    assert_eq!(scene.announced(&pod), None, "it waits at its gate");
    let keys = scene.claim(&pod);
    assert_eq!(keys.len(), 3);
    let patch = scene.announced(&pod).unwrap();
    assert_eq!(patch["metadata"]["resourceVersion"], "7");
    assert_eq!(patch["metadata"]["uid"], "uid-lobby");
    assert_eq!(patch["spec"], json!({"schedulingGates": []}));
    let told = endpoints(&patch);
    let told = told.as_array().unwrap();
    assert!(told.iter().all(|one| one["address"] == told[0]["address"]), "{told:?}");
    assert_eq!(told[0]["port"], told[1]["port"], "TCP and UDP of one port have one number");
    assert_ne!(told[0]["port"], told[2]["port"]);
    let protocols: Vec<_> = told.iter().map(|one| (&one["protocol"], &one["targetPort"])).collect();
    assert_eq!(
        protocols,
        [(&json!("TCP"), &json!(53)), (&json!("UDP"), &json!(53)), (&json!("UDP"), &json!(9000))]
    );

    let mut after = pod.clone();
    after.metadata.annotations.insert(
        keys::ENDPOINTS.to_owned(),
        patch["metadata"]["annotations"][keys::ENDPOINTS].as_str().unwrap().to_owned(),
    );
    after.spec.scheduling_gates.clear();
    assert_eq!(scene.announced(&after), None);
    after.metadata.annotations.insert(keys::ENDPOINTS.to_owned(), "forged".to_owned());
    assert_eq!(endpoints(&scene.announced(&after).unwrap()), json!(told));
}

#[test]
fn gates_of_others_stay_and_a_pod_that_does_not_wait_has_none_lifted() {
    let mut scene = scene(open());
    let held = json!({"spec": {"schedulingGates": [{"name": "a"}, {"name": "pinhole.dev/endpoints"}, {"name": "b"}]}});
    let gated = pod("gated", "auto:80", held);
    scene.claim(&gated);
    assert_eq!(
        scene.announced(&gated).unwrap()["spec"]["schedulingGates"],
        json!([{"name": "a"}, {"name": "b"}])
    );
    let running = pod("running", "auto:80", json!({"spec": {"schedulingGates": null, "nodeName": "node-1"}}));
    scene.claim(&running);
    assert_eq!(scene.announced(&running).unwrap().get("spec"), None);
    let left = pod("left", "8080:80", json!({}));
    assert_eq!(
        scene.announced(&left).unwrap()["spec"]["schedulingGates"],
        json!([]),
        "it waits for nothing any more"
    );
}

#[test]
fn two_pods_of_one_holder_never_share_what_was_found_for_one() {
    let mut scene = scene(open());
    let owner = json!({"metadata": {"ownerReferences": [
        {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "lobby", "uid": "s", "controller": true}]}});
    let (one, other) = (pod("lobby-0", "auto:80", owner.clone()), pod("lobby-1", "auto:80", owner.clone()));
    let first = scene.claim(&one);
    assert!(scene.standing(&other).open().next().is_some());
    let second = scene.claim(&other);
    assert_ne!(first, second);
    let mut again = pod("lobby-0", "auto:80", owner);
    again.metadata.uid = "uid-after-it".to_owned();
    assert!(scene.standing(&again).open().next().is_some(), "the same name is not the same pod");
}

#[test]
fn what_nobody_uses_any_more_is_given_back_and_of_two_for_one_slot_the_second() {
    let mut scene = scene(open());
    let pod = pod("lobby", "auto:80", json!({}));
    let mine = scene.claim(&pod)[0];
    let twin = Claim { key: "v4-192-0-2-99-tcp-30005".parse().unwrap(), ..scene.claims[&mine].claim.clone() };
    let twin = scene.store(twin);
    let times = Times { release: SignedDuration::from_secs(30), cooldown: SignedDuration::from_secs(120) };
    let later = at().checked_add(SignedDuration::from_secs(121)).unwrap();
    let becomes = |scene: &Scene| -> BTreeMap<ClaimKey, String> {
        let plan = plan::plan(&scene.claims, &scene.index, &Pinholes::new(), &times, later);
        plan.changes
            .into_iter()
            .map(|planned| (planned.stored.claim.key, format!("{:?}", planned.change)))
            .collect()
    };
    let changes = becomes(&scene);
    assert!(changes[&mine].contains("Bound"), "{changes:?}");
    assert_eq!(changes[&twin], "Delete");
    let mut ended = pod.clone();
    ended.status.phase = "Succeeded".to_owned();
    scene.index.apply(&ended);
    assert_eq!(becomes(&scene)[&mine], "Delete");
}

#[test]
fn what_nobody_may_have_is_never_chosen() {
    let mut spec = open();
    spec["addresses"] = json!(["203.0.113.7"]);
    spec["ports"] = json!([{"first": 20, "last": 25, "staticBand": 0}]);
    spec["reservedPorts"] = json!([{"first": 20}]);
    let mut scene = scene(spec);
    let service = json!({"kind": "Pod", "metadata": {"namespace": "x", "name": "x", "uid": "x"},
        "spec": {"nodeName": "node-1", "containers": [{"ports": [{"hostPort": 21}]}]}});
    scene.index.apply(&serde_json::from_value(service).unwrap());
    let holder = Holder::new("Pod", crate::model::holder::ObjectName::new("mail", "mx"));
    scene.store(Claim::reserve("v4-203-0-113-7-tcp-25".parse().unwrap(), holder, at()));
    // 20 is reserved, 21 a hostPort, 22 restricted, 25 claimed.
    let mut found: Vec<_> =
        ["a", "b"].iter().map(|name| scene.claim(&pod(name, "auto:80", json!({})))[0].to_string()).collect();
    found.sort();
    assert_eq!(found, ["v4-203-0-113-7-tcp-23", "v4-203-0-113-7-tcp-24"]);
    let said = scene.choose(&pod("c", "auto:80", json!({})), 0).unwrap_err().to_string();
    assert_eq!(
        said,
        "waits for 1 free port on one address: no address of NatPool games has a free port; give ports up, or ask for a \
         larger pool; this namespace may use games (203.0.113.7: 20-25)"
    );
    scene.waiting.insert("uid-c".to_owned(), said);
    let standing = scene.standing(&pod("c", "auto:80", json!({})));
    assert!(
        matches!(standing.verdict, Verdict::Full(text) if text.starts_with("auto:80/tcp: waits for 1 free port"))
    );
}

#[test]
fn a_port_that_a_service_may_get_is_not_found_on_an_address_of_a_node() {
    let found = |addresses: &[&str], ports: Value| {
        let mut spec = open();
        spec["addresses"] = json!(addresses);
        spec["ports"] = ports;
        let mut scene = scene(spec);
        let mut numbers = BTreeSet::new();
        for number in 0..8 {
            let pod = pod(&format!("pod-{number}"), "auto:80", json!({}));
            scene.index.apply(&pod);
            match scene.choose(&pod, 0) {
                Ok(chosen) => numbers.extend(chosen.into_iter().map(|claim| scene.store(claim).to_string())),
                Err(refusal) => return (numbers, refusal.to_string()),
            }
        }
        (numbers, String::new())
    };
    let ends = json!([{"first": 29998, "last": 30003, "staticBand": 0}]);
    let (numbers, refusal) = found(&["203.0.113.7"], ends.clone());
    assert_eq!(numbers.iter().collect::<Vec<_>>(), ["v4-203-0-113-7-tcp-29998", "v4-203-0-113-7-tcp-29999"]);
    assert_eq!(
        refusal.split("; this namespace").next().unwrap(),
        "waits for 1 free port on one address: no address of NatPool games has a free port outside the NodePort range \
         (30000-32767); give ports up, or ask for a larger pool"
    );
    assert_eq!(found(&["192.0.2.1"], ends.clone()).0.len(), 6, "no node has the address");
    let opened = json!([{"first": 29998, "last": 30003, "staticBand": 0}, {"first": 30002, "last": 30003}]);
    assert_eq!(found(&["203.0.113.7"], opened).0.len(), 4, "a range inside opens what it has");
}

#[test]
fn what_a_stored_object_asks_for_by_name_is_not_chosen_before_it_is_claimed() {
    let mut spec = open();
    spec["addresses"] = json!(["192.0.2.1"]);
    spec["ports"] = json!([{"first": 30000, "last": 30003, "staticBand": 0}]);
    let mut scene = scene(spec);
    scene.index.apply(&pod("older", "192.0.2.1:30000-30002:80-82", json!({})));
    assert_eq!(scene.claim(&pod("a", "auto:80", json!({})))[0].to_string(), "v4-192-0-2-1-tcp-30003");
    assert!(scene.choose(&pod("b", "auto:80", json!({})), 0).is_err());
    assert_eq!(scene.claim(&pod("u", "auto:80/udp", json!({}))).len(), 1, "of that protocol nobody asks");
}

#[test]
fn a_pod_is_pinned_to_the_node_that_has_its_address_and_one_that_is_bound_gets_an_address_of_its_node() {
    let mut spec = open();
    spec["addresses"] = json!(["203.0.113.7", "203.0.113.8"]);
    let mut scene = scene(spec);
    let terms = json!([{"matchExpressions": [{"key": "zone", "operator": "Exists"}]}, {"matchFields": []}]);
    let affinity = json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}}});
    let free = pod("free", "auto:80", affinity);
    let key = scene.claim(&free)[0].to_string();
    let node = if key.contains("113-7") { "node-1" } else { "node-2" };
    let patch = scene.announced(&free).unwrap();
    let required =
        &patch["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let field = json!([{"key": "metadata.name", "operator": "In", "values": [node]}]);
    assert_eq!(
        required["nodeSelectorTerms"],
        json!([{"matchExpressions": [{"key": "zone", "operator": "Exists"}], "matchFields": field}, {"matchFields": field}])
    );
    for name in ["a", "b", "c", "d", "e", "f"] {
        let bound = pod(name, "auto:80", json!({"spec": {"schedulingGates": null, "nodeName": "node-2"}}));
        assert!(scene.claim(&bound)[0].to_string().contains("203-0-113-8"), "{name}");
    }
}

#[test]
fn a_pod_is_pinned_by_the_labels_of_its_pool_where_no_node_is_known_to_have_the_address() {
    let mut spec = open();
    spec["nodes"] = json!({"selector": {"matchLabels": {"edge": "yes"}, "matchExpressions": [{"key": "old", "operator": "DoesNotExist"}]}});
    let mut scene = scene(spec);
    let pod = pod("lobby", "auto:80", json!({}));
    scene.claim(&pod);
    let patch = scene.announced(&pod).unwrap();
    let required =
        &patch["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let expected = json!([{"matchExpressions": [
        {"key": "edge", "operator": "In", "values": ["yes"]}, {"key": "old", "operator": "DoesNotExist"}]}]);
    assert_eq!(required["nodeSelectorTerms"], expected);
}

#[test]
fn what_the_webhook_told_a_pod_is_not_taken_back_before_its_claims_are_seen() {
    let mut scene = scene(open());
    let told = r#"[{"address":"192.0.2.1","protocol":"TCP","port":30025,"targetPort":25}]"#;
    let said = json!({"metadata": {"annotations": {"pinhole.dev/endpoints": told}}});
    let mut named = pod("mx", "192.0.2.1:30025:25", json!({"spec": {"schedulingGates": null}}));
    named.metadata.annotations.insert(keys::ENDPOINTS.to_owned(), told.to_owned());
    let both = pod("both", "192.0.2.1:30026:25,auto:80", said);
    assert_eq!(scene.announced(&named), None, "the claim is on its way");
    let holder = |name: &str| Holder::new("Pod", crate::model::holder::ObjectName::new("games", name));
    scene.store(Claim::reserve("v4-192-0-2-1-tcp-30025".parse().unwrap(), holder("mx"), at()));
    assert_eq!(scene.announced(&named), None, "it was right");
    scene.claim(&both);
    assert_eq!(scene.announced(&both), None, "it is let go when all of its ports are known");
    scene.store(Claim::reserve("v4-192-0-2-1-tcp-30026".parse().unwrap(), holder("both"), at()));
    let patch = scene.announced(&both).unwrap();
    assert_eq!(
        (endpoints(&patch).as_array().unwrap().len(), &patch["spec"]["schedulingGates"]),
        (2, &json!([]))
    );

    let mut refused = named;
    refused.metadata.annotations.insert(keys::EXPOSE.to_owned(), "192.0.2.1:30027:25".to_owned());
    scene.store(Claim::reserve("v4-192-0-2-1-tcp-30027".parse().unwrap(), holder("other"), at()));
    let patch = scene.announced(&refused).unwrap();
    assert_eq!(patch["metadata"]["annotations"][keys::ENDPOINTS], Value::Null, "it never had it");
}

#[test]
fn ports_by_name_and_of_the_node_are_told_too_once_they_are_the_pods() {
    let mut spec = open();
    spec["nodeAddresses"] = json!(true);
    let mut scene = scene(spec);
    let pod = pod(
        "mx",
        "192.0.2.1:30025:25,30080-30081:80/tcp",
        json!({
        "spec": {"schedulingGates": null, "nodeName": "node-2"}, "status": {"podIPs": [{"ip": "10.244.2.9"}]}}),
    );
    assert_eq!(scene.announced(&pod), None, "nothing is claimed yet");
    let of_node = json!({"address": "203.0.113.8", "protocol": "TCP", "port": 30080, "portEnd": 30081, "targetPort": 80});
    let holder = Holder::new("Pod", crate::model::holder::ObjectName::new("games", "mx"));
    let claim = |name: &str| Claim::reserve(name.parse().unwrap(), holder.clone(), at());
    scene.store(claim("v4-203-0-113-8-tcp-30080"));
    scene.store(claim("v4-203-0-113-8-tcp-30081"));
    assert_eq!(endpoints(&scene.announced(&pod).unwrap()), json!([of_node]));
    scene.store(claim("v4-192-0-2-1-tcp-30025"));
    let named = json!({"address": "192.0.2.1", "protocol": "TCP", "port": 30025, "targetPort": 25});
    assert_eq!(endpoints(&scene.announced(&pod).unwrap()), json!([named, of_node]));
}
