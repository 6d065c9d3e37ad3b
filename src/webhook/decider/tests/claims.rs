//! What the decider claims, through several replicas that share nothing but the store of claims.

use serde_json::json;

use super::*;
use crate::allocation::memory::Memory;
use crate::allocation::operation::Operation as Store;
use crate::allocation::operation::Outcome;
use crate::api::crd::port_claim::ClaimState;

/// The claims of the API server, which can be away.
#[derive(Clone, Default)]
struct Claims {
    memory: Arc<Mutex<Memory>>,
    fails: Arc<AtomicBool>,
    /// Where set, a claim is stored and its caller hears of it only later.
    answers: Option<Arc<tokio::sync::Semaphore>>,
}

impl Claims {
    fn names(&self) -> Vec<String> {
        self.memory.lock().unwrap().claims().map(|stored| stored.claim.key.to_string()).collect()
    }
}

impl ClaimStore for Claims {
    fn perform(&self, operation: Store) -> BoxFuture<'_, Outcome> {
        async move {
            if self.fails.load(Ordering::SeqCst) {
                let reason = "creating the PortClaim failed: connection refused".to_owned();
                return Outcome::Failed(Failure { reason, is_lasting: false });
            }
            let outcome = self.memory.perform(operation).await;
            if let Some(answers) = &self.answers {
                drop(answers.acquire().await);
            }
            outcome
        }
        .boxed()
    }
}

fn replica(claims: &Claims, cached: &[Object]) -> Arc<Decider> {
    let decider = Arc::into_inner(setting(cached).decider).unwrap();
    Arc::new(decider.with_claims(Arc::new(claims.clone())))
}

#[tokio::test]
async fn of_many_that_ask_three_replicas_at_once_exactly_one_is_granted() {
    let claims = Claims::default();
    let replicas = [replica(&claims, &[]), replica(&claims, &[]), replica(&claims, &[])];
    let mut asking = JoinSet::new();
    for number in 0..30 {
        let decider = Arc::clone(&replicas[number % 3]);
        let request = create(&pod("mail", &format!("web-{number}"), PORT));
        asking.spawn(async move { decider.decide(&request, false).await });
    }
    let decisions = asking.join_all().await;
    let is_granted = |decision: &Result<Decision, NotNow>| decision.as_ref().is_ok_and(Decision::is_granted);
    assert_eq!(decisions.iter().filter(|decision| is_granted(decision)).count(), 1, "{decisions:?}");
    assert_eq!(claims.names(), ["v4-203-0-113-7-tcp-25"]);
    // Whoever was told to come back is refused then, with the name of the winner.
    let late = replicas[0].decide(&create(&pod("mail", "late", PORT)), false).await;
    let said = late.unwrap().violations[0].to_string();
    assert!(said.contains("203.0.113.7:25/tcp") && said.contains("Pod mail/web-"), "{said}");
}

#[tokio::test]
async fn a_call_that_is_cut_off_takes_back_what_it_claimed() {
    let answers = Arc::new(tokio::sync::Semaphore::new(0));
    let claims = Claims { answers: Some(Arc::clone(&answers)), ..Claims::default() };
    let decider = replica(&claims, &[]);
    let request = create(&pod("mail", "first", PORT));
    let cut_off = tokio::time::timeout(Duration::from_millis(50), decider.decide(&request, false)).await;
    assert!(cut_off.is_err());
    assert_eq!(claims.names().len(), 1, "it is stored, and its caller has not heard of it");
    answers.add_permits(1);
    let taken_back = async {
        while !claims.names().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), taken_back).await.unwrap();
}

#[tokio::test]
async fn a_dry_run_claims_nothing_and_sees_what_is_claimed() {
    let claims = Claims::default();
    let (one, other) = (replica(&claims, &[]), replica(&claims, &[]));
    let first = create(&pod("mail", "first", PORT));
    assert!(one.decide(&first, true).await.unwrap().is_granted());
    assert!(claims.names().is_empty());
    assert!(one.decide(&first, false).await.unwrap().is_granted());
    let second = create(&pod("mail", "second", PORT));
    assert!(!other.decide(&second, true).await.unwrap().is_granted());
}

#[tokio::test]
async fn a_pinhole_claims_like_a_pod_and_without_claims_nothing_is_said_of_one() {
    let pinhole = |name: &str| {
        let metadata = json!({"name": name, "namespace": "mail", "uid": name});
        let object: Object =
            serde_json::from_value(json!({"kind": "Pinhole", "metadata": metadata})).unwrap();
        let spec =
            json!({"target": {"service": "smtp"}, "addresses": ["203.0.113.7"], "ports": [{"port": 25}]});
        Object { pinhole: serde_json::from_value(spec).unwrap(), ..object }
    };
    let claims = Claims::default();
    let (one, other) = (replica(&claims, &[]), replica(&claims, &[]));
    assert!(one.decide(&create(&pinhole("smtp")), false).await.unwrap().is_granted());
    assert_eq!(claims.names(), ["v4-203-0-113-7-tcp-25"]);
    for late in [pinhole("late"), pod("mail", "late", PORT)] {
        let said = other.decide(&create(&late), false).await.unwrap().violations[0].to_string();
        assert!(said.contains("is claimed by Pinhole mail/smtp (PortClaim v4-203-0-113-7-tcp-25"), "{said}");
    }
    let without = setting(&[]).decider;
    assert_eq!(without.decide(&create(&pinhole("smtp")), false).await.unwrap(), Decision::default());
    let mut misplaced = pinhole("misplaced");
    misplaced.metadata.annotations = [("pinhole.dev/expose".to_owned(), "25".to_owned())].into();
    for decider in [without, one] {
        let said = decider.decide(&create(&misplaced), true).await.unwrap().violations[0].to_string();
        assert!(said.contains("is not read here: a Pinhole names its ports in spec.ports"), "{said}");
    }
}

#[tokio::test]
async fn the_pods_of_one_deployment_share_its_claim() {
    let claims = Claims::default();
    let owned_by = |name: &str, set: &str| {
        let mut pod = pod("mail", name, PORT);
        pod.metadata.owner_references = replica_set("mail", set, "Deployment", "smtp").as_owner();
        pod
    };
    let sets = ["smtp-1", "smtp-2"].map(|set| replica_set("mail", set, "Deployment", "smtp").object);
    let decider = replica(&claims, &sets);
    for pod in [owned_by("smtp-1-a", "smtp-1"), owned_by("smtp-2-a", "smtp-2")] {
        assert!(decider.decide(&create(&pod), false).await.unwrap().is_granted());
    }
    let memory = claims.memory.lock().unwrap();
    let stored = memory.claims().next().unwrap();
    assert_eq!(stored.claim.holder.to_string(), "Deployment mail/smtp");
    assert_eq!(stored.claim.state, ClaimState::Reserved);
}

#[tokio::test]
async fn an_owner_that_does_not_exist_is_named() {
    let claims = Claims::default();
    let decider = replica(&claims, &[]);
    let mut pod = pod("mail", "smtp-1-a", PORT);
    pod.metadata.owner_references = replica_set("mail", "smtp-1", "Deployment", "smtp").as_owner();
    let not_now = decider.decide(&create(&pod), false).await.unwrap_err();
    assert_eq!(
        not_now.to_string(),
        "its owner ReplicaSet mail/smtp-1 does not exist, so nobody can tell whose ports these would be; create the owner first, \
         or remove the ownerReference"
    );
    assert!(not_now.is_lasting());
    assert_eq!(claims.names(), [""; 0]);
}

#[tokio::test]
async fn without_its_claims_nothing_is_granted_and_nothing_stays_in_the_way() {
    let claims = Claims::default();
    let decider = replica(&claims, &[]);
    claims.fails.store(true, Ordering::SeqCst);
    let not_now = decider.decide(&create(&pod("mail", "first", PORT)), false).await.unwrap_err();
    assert!(!not_now.is_lasting());
    assert_eq!(not_now.reason(), "claims");
    assert!(not_now.to_string().contains("connection refused"), "{not_now}");
    claims.fails.store(false, Ordering::SeqCst);
    let second = decider.decide(&create(&pod("mail", "second", PORT)), false).await.unwrap();
    assert!(second.is_granted(), "{:?}", second.violations);
}

#[tokio::test]
async fn a_request_without_a_fixed_address_claims_nothing() {
    let claims = Claims::default();
    let decider = replica(&claims, &[]);
    assert!(decider.decide(&create(&pod("mail", "web", "25")), false).await.unwrap().is_granted());
    assert!(claims.names().is_empty());
}

fn pools(specs: &[serde_json::Value]) -> Arc<[Pool]> {
    let read = |spec: &serde_json::Value| Pool::read("edge", &serde_json::from_value(spec.clone()).unwrap());
    specs.iter().map(|spec| read(spec).unwrap()).collect()
}

/// A replica that has these pools in its cache, before an API server that has those.
fn pooled(claims: &Claims, cached: &Arc<[Pool]>, stored: &Arc<[Pool]>) -> Arc<Decider> {
    let setting = setting(&[]);
    setting.stored.pools.lock().unwrap().clone_from(stored);
    let decider = Arc::into_inner(setting.decider).unwrap();
    decider.write_index().set_pools(Some(Arc::clone(cached)));
    Arc::new(decider.with_claims(Arc::new(claims.clone())))
}

#[tokio::test]
async fn a_claim_says_which_pool_granted_it() {
    let claims = Claims::default();
    let open = pools(&[json!({"addresses": ["203.0.113.7"], "ports": [{"first": 1, "last": 99}],
        "namespaces": {"all": true}})]);
    let decider = pooled(&claims, &open, &open);
    assert!(decider.decide(&create(&pod("mail", "web", PORT)), false).await.unwrap().is_granted());
    let memory = claims.memory.lock().unwrap();
    assert_eq!(memory.claims().next().unwrap().claim.pool.as_deref(), Some("edge"));
}

#[tokio::test]
async fn a_pool_that_the_watch_has_not_shown_yet_refuses_nobody_and_stays_the_watch_s_to_show() {
    let claims = Claims::default();
    let open = pools(&[json!({"addresses": ["203.0.113.7"], "ports": [{"first": 1, "last": 99}],
        "namespaces": {"all": true}})]);
    let decider = pooled(&claims, &pools(&[]), &open);
    assert!(decider.decide(&create(&pod("mail", "web", PORT)), false).await.unwrap().is_granted());
    assert!(decider.read_index().pools().unwrap().is_empty());
    let decider = pooled(&claims, &pools(&[]), &pools(&[]));
    let refused = decider.decide(&create(&pod("mail", "other", "203.0.113.7:26")), false).await.unwrap();
    assert_eq!(refused.violations[0].rule, admission::violation::Rule::Pool);
}

#[tokio::test]
async fn a_pod_of_a_set_keeps_the_claimed_port_of_its_ordinal_whatever_has_become_of_the_pools() {
    let claims = Claims::default();
    let template =
        json!({"metadata": {"annotations": {"pinhole.dev/expose": "203.0.113.7:30+{ordinal}:80"}}});
    let set = |replicas: i64| -> Object {
        let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "spec": {"template": template, "replicas": replicas},
            "metadata": {"namespace": "mail", "name": "game", "uid": "uid-of-game"}});
        serde_json::from_value(set).unwrap()
    };
    let member = |name: &str| {
        let mut pod = pod("mail", name, "203.0.113.7:30+{ordinal}:80");
        let owner =
            json!([{"kind": "StatefulSet", "name": "game", "uid": "uid-of-game", "controller": true}]);
        pod.metadata.owner_references = serde_json::from_value(owner).unwrap();
        pod
    };
    let open = pools(&[json!({"addresses": ["203.0.113.7"], "ports": [{"first": 1, "last": 99}],
        "namespaces": {"all": true}})]);
    let decider = pooled(&claims, &open, &open);
    assert!(decider.decide(&create(&set(2)), false).await.unwrap().is_granted());
    assert_eq!(claims.names(), ["v4-203-0-113-7-tcp-30", "v4-203-0-113-7-tcp-31"]);

    let decider = pooled(&claims, &pools(&[]), &pools(&[]));
    // Scaled by the subresource, of which nobody was asked.
    decider.write_index().apply(&set(3));
    assert!(decider.decide(&create(&member("game-1")), false).await.unwrap().is_granted());
    let refused = decider.decide(&create(&member("game-2")), false).await.unwrap();
    assert_eq!(refused.violations[0].rule, admission::violation::Rule::Pool);
    claims.fails.store(true, Ordering::SeqCst);
    assert!(matches!(decider.decide(&create(&member("game-1")), false).await, Err(NotNow::Claims(_))));
}

#[tokio::test]
async fn a_quota_is_never_exceeded_however_many_ask_at_once() {
    let claims = Claims::default();
    let limited = pools(&[json!({"addresses": ["203.0.113.7"], "namespaces": {"all": true},
        "quota": {"portsPerNamespace": 10}})]);
    let replicas = [(); 3].map(|()| pooled(&claims, &limited, &limited));
    let mut asking = JoinSet::new();
    for number in 0..30 {
        let decider = Arc::clone(&replicas[number % 3]);
        let request =
            create(&pod("mail", &format!("web-{number}"), &format!("203.0.113.7:{}", 3000 + number)));
        asking.spawn(async move { decider.decide(&request, false).await });
    }
    let decisions = asking.join_all().await;
    let granted =
        decisions.iter().filter(|decision| decision.as_ref().is_ok_and(Decision::is_granted)).count();
    assert!(granted <= 10, "{granted} were granted");
    assert_eq!(claims.names().len(), granted, "what was not granted was taken back");

    // One after the other each gets what is left, and then hears of the limit.
    for number in 0..30 {
        let request =
            create(&pod("mail", &format!("late-{number}"), &format!("203.0.113.7:{}", 4000 + number)));
        let decision = replicas[0].decide(&request, false).await.unwrap();
        assert_eq!(decision.is_granted(), claims.names().len() <= 10 && granted + number < 10);
    }
    assert_eq!(claims.names().len(), 10);
    let dry = create(&pod("mail", "dry", "203.0.113.7:5000-5001"));
    let said = replicas[1].decide(&dry, true).await.unwrap().violations[0].to_string();
    assert!(
        said.starts_with("metadata.annotations: needs 2 more of NatPool edge, of which this namespace holds 10 and may hold 10"),
        "{said}"
    );
    let elsewhere = create(&pod("games", "quake", "203.0.113.7:5000"));
    assert!(
        replicas[1].decide(&elsewhere, false).await.unwrap().is_granted(),
        "a quota is each namespace's own"
    );
}

fn deployment(name: &str, heir: Option<&str>) -> Object {
    let annotations = heir.map(|heir| json!({"pinhole.dev/transfer-to": heir}));
    let template = json!({"metadata": {"annotations": {"pinhole.dev/expose": PORT}}});
    let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"template": template},
        "metadata": {"namespace": "mail", "name": name, "uid": format!("uid-of-{name}"), "annotations": annotations}});
    serde_json::from_value(object).unwrap()
}

#[tokio::test]
async fn a_port_is_handed_over_by_a_word_that_no_watch_has_shown_yet() {
    let open = pools(&[json!({"addresses": ["203.0.113.7"], "ports": [{"first": 1, "last": 99}],
        "namespaces": {"all": true}})]);
    // Whether the watch has shown what the old holder asks for, or only its claim is there.
    for cached in [vec![deployment("blue", None)], Vec::new()] {
        let claims = Claims::default();
        let setting = setting(&cached);
        setting.stored.pools.lock().unwrap().clone_from(&open);
        let decider = Arc::into_inner(setting.decider).unwrap();
        decider.write_index().set_pools(Some(Arc::clone(&open)));
        let decider = decider.with_claims(Arc::new(claims.clone()));
        let decide = async |object: &Object, dry_run| decider.decide(&create(object), dry_run).await.unwrap();
        let holders = || {
            let memory = claims.memory.lock().unwrap();
            let said = |claim: &Claim| {
                (claim.holder.to_string(), claim.previous_holder.as_ref().map(ToString::to_string))
            };
            memory.claims().map(|stored| said(&stored.claim)).collect::<Vec<_>>()
        };
        assert!(decide(&deployment("blue", None), false).await.is_granted());
        setting.stored.put(&deployment("blue", None));
        let said = decide(&deployment("green", None), false).await.violations[0].to_string();
        assert!(said.contains("kubectl pinhole transfer deployment/blue --to deployment/green"), "{said}");

        setting.stored.put(&deployment("blue", Some("Deployment/green")));
        assert!(!decide(&deployment("red", None), false).await.is_granted());
        assert!(decide(&deployment("green", None), true).await.is_granted());
        assert_eq!(holders(), [("Deployment mail/blue".to_owned(), None)], "a dry run takes nothing over");
        assert!(decide(&deployment("green", None), false).await.is_granted());
        assert_eq!(
            holders(),
            [("Deployment mail/green".to_owned(), Some("Deployment mail/blue".to_owned()))]
        );
    }
}
