use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::task::JoinSet;

use super::*;
use crate::admission::Operation;
use crate::api::object::Object;
use crate::webhook::testing::pod;
use crate::webhook::testing::replica_set;

/// What the API server would say. Unset objects do not exist.
#[derive(Default)]
struct Stored {
    objects: Mutex<BTreeMap<Evidence, Object>>,
    reads: AtomicUsize,
    fails: AtomicBool,
}

impl Stored {
    fn put(&self, object: &Object) {
        let key = admission::index::ObjectKey::of(object, &object.metadata.namespace).unwrap();
        self.objects.lock().unwrap().insert(Evidence::Object(key), object.clone());
    }
}

impl LiveReads for Arc<Stored> {
    fn read<'a>(&'a self, evidence: &'a Evidence) -> BoxFuture<'a, Result<Option<Object>, LiveReadError>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let result = if self.fails.load(Ordering::SeqCst) {
            Err(LiveReadError { what: "Pod mail/web".into(), reason: "connection refused".into() })
        } else {
            Ok(self.objects.lock().unwrap().get(evidence).cloned())
        };
        async move { result }.boxed()
    }
}

struct Setting {
    decider: Arc<Decider>,
    stored: Arc<Stored>,
    synced: Arc<AtomicBool>,
}

/// A webhook whose watch has shown `cached`, before an API server that has stored nothing yet.
fn setting(cached: &[Object]) -> Setting {
    let policy = Arc::new(Policy::default());
    let mut index = Index::new(Arc::clone(&policy));
    for object in cached {
        index.apply(object);
    }
    let stored = Arc::new(Stored::default());
    let synced = Arc::new(AtomicBool::new(true));
    let decider = Decider::new(
        policy,
        Arc::new(RwLock::new(index)),
        Some(Arc::new(Arc::clone(&stored))),
        Arc::clone(&synced),
        Duration::from_secs(10),
    );
    Setting { decider: Arc::new(decider), stored, synced }
}

fn create(object: &Object) -> Request {
    Request {
        operation: Operation::Create,
        namespace: object.metadata.namespace.clone(),
        object: Some(object.clone()),
        old_object: None,
    }
}

const PORT: &str = "203.0.113.7:25";

#[tokio::test]
async fn a_holder_that_still_stands_refuses() {
    let holder = pod("mail", "web", PORT);
    let setting = setting(std::slice::from_ref(&holder));
    setting.stored.put(&holder);
    let decision = setting.decider.decide(&create(&pod("mail", "other", PORT)), false).await.unwrap();
    assert!(!decision.is_granted());
    assert_eq!(setting.stored.reads.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_holder_that_is_gone_refuses_nobody_however_old_the_cache() {
    let setting = setting(&[pod("mail", "web", PORT)]);
    let request = create(&pod("mail", "other", PORT));
    assert!(setting.decider.decide(&request, false).await.unwrap().is_granted());
}

#[tokio::test]
async fn a_holder_that_has_let_go_of_its_port_refuses_nobody() {
    let setting = setting(&[pod("mail", "web", PORT)]);
    setting.stored.put(&pod("mail", "web", "203.0.113.7:26"));
    let request = create(&pod("mail", "other", PORT));
    assert!(setting.decider.decide(&request, false).await.unwrap().is_granted());
}

#[tokio::test]
async fn an_owner_not_known_yet_is_read_before_its_pods_are_taken_for_strangers() {
    let owned_by = |name: &str, set: &str| {
        let mut pod = pod("mail", name, PORT);
        pod.metadata.owner_references = replica_set("mail", set, "Deployment", "smtp").as_owner();
        pod
    };
    let running = owned_by("smtp-1-a", "smtp-1");
    let setting = setting(std::slice::from_ref(&running));
    setting.stored.put(&running);
    setting.stored.put(&replica_set("mail", "smtp-1", "Deployment", "smtp").object);
    setting.stored.put(&replica_set("mail", "smtp-2", "Deployment", "smtp").object);
    let request = create(&owned_by("smtp-2-b", "smtp-2"));
    let decision = setting.decider.decide(&request, false).await.unwrap();
    assert!(decision.is_granted(), "{:?}", decision.violations);
}

#[tokio::test]
async fn nothing_is_refused_while_the_holder_cannot_be_read() {
    let holder = pod("mail", "web", PORT);
    let setting = setting(std::slice::from_ref(&holder));
    setting.stored.fails.store(true, Ordering::SeqCst);
    let not_now = setting.decider.decide(&create(&pod("mail", "other", PORT)), false).await.unwrap_err();
    assert_eq!(not_now.reason(), "live-read");
    assert_eq!(
        not_now.to_string(),
        "reading Pod mail/web from the API server failed: connection refused; without it pinhole cannot tell \
         whether the port is still held; the call is repeated"
    );
}

#[tokio::test]
async fn of_many_calls_at_once_for_one_port_exactly_one_is_granted() {
    let setting = setting(&[]);
    let mut calls = JoinSet::new();
    for number in 0..20 {
        let (decider, stored) = (Arc::clone(&setting.decider), Arc::clone(&setting.stored));
        calls.spawn(async move {
            let asking = pod("mail", &format!("web-{number}"), PORT);
            let granted = decider.decide(&create(&asking), false).await.unwrap().is_granted();
            if granted {
                // The API server stores what was granted a moment later.
                tokio::time::sleep(STORING / 5).await;
                stored.put(&asking);
            }
            granted
        });
    }
    let granted = calls.join_all().await.into_iter().filter(|granted| *granted).count();
    assert_eq!(granted, 1);
}

#[tokio::test]
async fn what_was_granted_and_then_not_stored_holds_the_port_only_for_a_moment() {
    let setting = setting(&[]);
    assert!(setting.decider.decide(&create(&pod("mail", "first", PORT)), false).await.unwrap().is_granted());
    let started = Instant::now();
    let second = setting.decider.decide(&create(&pod("mail", "second", PORT)), false).await.unwrap();
    assert!(second.is_granted(), "{:?}", second.violations);
    assert!(STORING <= started.elapsed());
}

#[tokio::test]
async fn a_dry_run_leaves_no_trace() {
    let setting = setting(&[]);
    assert!(setting.decider.decide(&create(&pod("mail", "first", PORT)), true).await.unwrap().is_granted());
    let started = Instant::now();
    assert!(setting.decider.decide(&create(&pod("mail", "second", PORT)), false).await.unwrap().is_granted());
    assert!(started.elapsed() < STORING);
    assert_eq!(setting.stored.reads.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn before_the_first_lists_only_what_needs_no_list_is_decided() {
    let setting = setting(&[]);
    setting.synced.store(false, Ordering::SeqCst);
    let decide = async |object: Object| setting.decider.decide(&create(&object), false).await;

    let asking = decide(pod("mail", "web", PORT)).await.unwrap_err();
    assert_eq!(asking.reason(), "starting");
    assert!(!decide(pod("mail", "web", "203.0.113.7:22")).await.unwrap().is_granted());
    let mut plain = pod("mail", "web", PORT);
    plain.metadata.annotations.clear();
    assert!(decide(plain).await.unwrap().is_granted());
}
