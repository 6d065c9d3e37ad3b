//! The join of calls, index and live reads, against an API server in memory.

mod claims;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::task::JoinSet;

use super::*;
use crate::admission::Operation;
use crate::allocation::pool::Pool;
use crate::api::object::Object;
use crate::webhook::testing::pod;
use crate::webhook::testing::replica_set;

/// What the API server would say. Unset objects do not exist.
#[derive(Default)]
struct Stored {
    objects: Mutex<BTreeMap<Evidence, Object>>,
    pools: Mutex<Arc<[Pool]>>,
    /// What the watch brings while a live read is on its way back.
    meanwhile: Mutex<Vec<Object>>,
    index: Mutex<Option<Arc<RwLock<Index>>>>,
    reads: AtomicUsize,
    fails: AtomicBool,
}

impl Stored {
    fn put(&self, object: &Object) {
        let key = admission::index::ObjectKey::of(object, &object.metadata.namespace).unwrap();
        self.objects.lock().unwrap().insert(Evidence::Object(key), object.clone());
    }

    fn found(&self, evidence: &Evidence) -> Found {
        if *evidence == Evidence::Pools {
            return Found::Pools(self.pools.lock().unwrap().clone());
        }
        self.objects.lock().unwrap().get(evidence).cloned().into()
    }
}

impl LiveReads for Arc<Stored> {
    fn read<'a>(&'a self, evidence: &'a Evidence) -> BoxFuture<'a, Result<Found, LiveReadError>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let result = if self.fails.load(Ordering::SeqCst) {
            Err(LiveReadError {
                what: "Pod mail/web".into(),
                reason: "connection refused".into(),
                is_lasting: false,
            })
        } else {
            Ok(self.found(evidence))
        };
        for news in self.meanwhile.lock().unwrap().drain(..) {
            self.index.lock().unwrap().as_ref().unwrap().write().unwrap().apply(&news);
        }
        async move { result }.boxed()
    }
}

struct Setting {
    decider: Arc<Decider>,
    stored: Arc<Stored>,
    startup: Arc<Startup>,
}

/// A webhook whose watch has shown `cached`, before an API server that has stored nothing yet.
fn setting(cached: &[Object]) -> Setting {
    let policy = Arc::new(Policy::default());
    let mut index = Index::new(Arc::clone(&policy));
    for object in cached {
        index.apply(object);
    }
    let stored = Arc::new(Stored::default());
    let startup = Arc::new(Startup::complete());
    let index = Arc::new(RwLock::new(index));
    *stored.index.lock().unwrap() = Some(Arc::clone(&index));
    let decider = Decider::new(
        policy,
        index,
        Some(Arc::new(Arc::clone(&stored))),
        Arc::clone(&startup),
        Duration::from_secs(10),
    );
    Setting { decider: Arc::new(decider), stored, startup }
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
         whether the port is still held"
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

fn at_version(mut object: Object, version: u64) -> Object {
    object.metadata.resource_version = version.to_string();
    object
}

#[tokio::test]
async fn late_news_of_a_holder_that_is_gone_refuses_nobody() {
    let setting = setting(&[at_version(pod("mail", "web", PORT), 10)]);
    setting.stored.meanwhile.lock().unwrap().push(at_version(pod("mail", "web", PORT), 15));
    let request = create(&pod("mail", "other", PORT));
    assert!(setting.decider.decide(&request, false).await.unwrap().is_granted());
}

#[tokio::test]
async fn what_takes_the_name_of_a_holder_that_is_gone_keeps_its_port() {
    let setting = setting(&[pod("mail", "web", PORT)]);
    let mut successor = pod("mail", "web", PORT);
    successor.metadata.uid = "another".to_owned();
    setting.stored.meanwhile.lock().unwrap().push(successor.clone());
    let asking = create(&pod("mail", "other", PORT));
    let _ = setting.decider.decide(&asking, true).await;
    setting.stored.put(&successor);
    assert!(!setting.decider.decide(&asking, true).await.unwrap().is_granted());
}

#[tokio::test]
async fn a_late_read_does_not_undo_what_the_watch_has_shown_since() {
    let setting = setting(&[at_version(pod("mail", "web", PORT), 10)]);
    setting.stored.put(&at_version(pod("mail", "web", "203.0.113.7:26"), 11));
    setting.stored.meanwhile.lock().unwrap().push(at_version(pod("mail", "web", PORT), 12));
    let asking = create(&pod("mail", "other", PORT));
    assert!(!setting.decider.decide(&asking, true).await.unwrap().is_granted());
}

#[tokio::test]
async fn a_change_that_was_granted_and_is_not_stored_yet_is_waited_for() {
    let before = pod("mail", "web", "203.0.113.7:26");
    let setting = setting(std::slice::from_ref(&before));
    setting.stored.put(&before);
    let after = pod("mail", "web", PORT);
    let update = Request { operation: Operation::Update, old_object: Some(before), ..create(&after) };
    assert!(setting.decider.decide(&update, false).await.unwrap().is_granted());
    let stored = Arc::clone(&setting.stored);
    tokio::spawn(async move {
        tokio::time::sleep(STORING / 5).await;
        stored.put(&after);
    });
    assert!(!setting.decider.decide(&create(&pod("mail", "other", PORT)), false).await.unwrap().is_granted());
}

#[tokio::test]
async fn what_is_granted_after_a_live_read_is_remembered_too() {
    let setting = setting(&[pod("mail", "gone", PORT)]);
    let first = pod("mail", "first", PORT);
    assert!(setting.decider.decide(&create(&first), false).await.unwrap().is_granted());
    setting.stored.put(&first);
    assert!(
        !setting.decider.decide(&create(&pod("mail", "second", PORT)), false).await.unwrap().is_granted()
    );
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
    setting.startup.waits_for("waiting for the first list of pods");
    let decide = async |object: Object| setting.decider.decide(&create(&object), false).await;

    let asking = decide(pod("mail", "web", PORT)).await.unwrap_err();
    assert_eq!(asking.reason(), "starting");
    assert!(!decide(pod("mail", "web", "203.0.113.7:22")).await.unwrap().is_granted());
    let mut plain = pod("mail", "web", PORT);
    plain.metadata.annotations.clear();
    assert!(decide(plain).await.unwrap().is_granted());
}
