//! Calls and answers as bytes, most of them over the real accept loop.

use std::sync::RwLock;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use futures::FutureExt;
use futures::future::BoxFuture;
use proptest::prelude::*;
use serde_json::Value;
use serde_json::json;
use tower::ServiceExt;

use super::*;
use crate::admission::conflict::Evidence;
use crate::admission::index::Index;
use crate::admission::policy::Policy;
use crate::api::object::Object;
use crate::cluster::evidence::Found;
use crate::cluster::evidence::LiveReadError;
use crate::cluster::evidence::LiveReads;
use crate::telemetry::metrics;
use crate::telemetry::startup::Startup;
use crate::webhook::testing::Client;
use crate::webhook::testing::TestServer;
use crate::webhook::testing::pod;

struct Setting {
    server: TestServer,
    startup: Arc<Startup>,
}

async fn start(cached: &[Object], live: Option<Arc<dyn LiveReads>>, limits: Limits) -> Setting {
    let startup = Arc::new(Startup::complete());
    let decider = decider(cached, live, &startup);
    let router = |metrics: &WebhookMetrics| router(decider, &limits, metrics.clone());
    Setting { server: TestServer::start_with(router, limits.clone()).await, startup }
}

fn decider(cached: &[Object], live: Option<Arc<dyn LiveReads>>, startup: &Arc<Startup>) -> Arc<Decider> {
    let policy = Arc::new(Policy::default());
    let mut index = Index::new(Arc::clone(&policy));
    for object in cached {
        index.apply(object);
    }
    let index = Arc::new(RwLock::new(index));
    Arc::new(Decider::new(policy, index, live, Arc::clone(startup), Duration::from_secs(10)))
}

async fn standard() -> Setting {
    start(&[], None, Limits::default()).await
}

/// A CREATE of pod mail/web with these annotations, as the API server writes it.
fn review(uid: &str, annotations: &Value) -> String {
    json!({
        "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": uid, "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "name": "web", "namespace": "mail", "operation": "CREATE",
            "userInfo": {"username": "kubernetes-admin"},
            "object": {
                "kind": "Pod", "apiVersion": "v1",
                "metadata": {"name": "web", "namespace": "mail", "annotations": annotations},
                "spec": {"containers": [{"name": "c", "image": "i"}]}, "status": {},
            },
            "oldObject": null, "dryRun": false, "options": {"kind": "CreateOptions"},
        }
    })
    .to_string()
}

fn exposing(uid: &str, ports: &str) -> String {
    review(uid, &json!({"pinhole.dev/expose": ports}))
}

fn uid_of(answer: &Value) -> &str {
    answer["response"]["uid"].as_str().unwrap()
}

async fn padded_post(
    client: &mut Client,
    path: &str,
    uid: &str,
    length: usize,
) -> crate::webhook::testing::Answer {
    let body = review(uid, &json!({"a": "x".repeat(length)}));
    client.post(path, body).await
}

#[tokio::test]
async fn a_refused_pod_gets_every_problem_in_each_readers_form() {
    let Setting { server, .. } = standard().await;
    let answer = server.connect().await.post("/validate?timeout=3s", exposing("u1", "22,8080:0")).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    let answer = answer.json();
    let response = &answer["response"];
    assert_eq!((uid_of(&answer), &response["allowed"]), ("u1", &json!(false)));
    let status = &response["status"];
    assert_eq!((&status["code"], &status["reason"]), (&json!(422), &json!("Invalid")));
    assert_eq!((&status["details"]["kind"], &status["details"]["name"]), (&json!("Pod"), &json!("web")));
    let causes = status["details"]["causes"].as_array().unwrap();
    let message = status["message"].as_str().unwrap();
    assert_eq!(causes.len(), 2, "{causes:?}");
    for cause in causes {
        assert!(cause["field"].as_str().unwrap().starts_with("metadata.annotations[pinhole.dev/expose]"));
        assert!(message.contains(cause["message"].as_str().unwrap()), "{message}\nlacks\n{cause}");
    }
    assert!(server.written_metrics().contains(r#"endpoint="validate",decision="denied",rule="#));
}

#[tokio::test]
async fn a_held_port_is_refused_by_the_holder_s_name_and_another_is_granted() {
    let Setting { server, .. } =
        start(&[pod("games", "quake", "203.0.113.7:25")], None, Limits::default()).await;
    let mut client = server.connect().await;
    let refused = client.post("/validate?timeout=3s", exposing("u1", "203.0.113.7:25")).await.json();
    let message = refused["response"]["status"]["message"].as_str().unwrap();
    assert!(message.contains("is held by Pod games/quake"), "{message}");
    assert_eq!(refused["response"]["auditAnnotations"], json!({"rules": "conflict"}));

    let granted = client.post("/validate?timeout=3s", exposing("u2", "203.0.113.7:26")).await.json();
    assert_eq!(granted["response"], json!({"uid": "u2", "allowed": true}));
    for line in [
        r#"pinhole_webhook_requests_total{endpoint="validate",decision="denied",rule="conflict"} 1"#,
        r#"pinhole_webhook_requests_total{endpoint="validate",decision="allowed",rule=""} 1"#,
    ] {
        server.metric(line).await;
    }
}

#[tokio::test]
async fn what_was_just_granted_is_held_before_any_watch_has_shown_it() {
    let Setting { server, .. } = standard().await;
    let mut client = server.connect().await;
    let first = exposing("u1", "203.0.113.7:25");
    assert_eq!(client.post("/validate", &first).await.json()["response"]["allowed"], json!(true));
    let second = exposing("u2", "203.0.113.7:25").replace("\"web\"", "\"other\"");
    let refused = client.post("/validate", second).await.json();
    assert!(refused["response"]["status"]["message"].as_str().unwrap().contains("Pod mail/web"), "{refused}");
    // The same pod again is the same holder.
    assert_eq!(client.post("/validate", &first).await.json()["response"]["allowed"], json!(true));
}

#[tokio::test]
async fn warnings_come_with_a_grant() {
    let Setting { server, .. } = standard().await;
    let body = review("u1", &json!({"pinhole.dev/expos": "25"}));
    let answer = server.connect().await.post("/validate", body).await.json();
    assert_eq!(
        answer["response"],
        json!({"uid": "u1", "allowed": true, "warnings": [
            "annotation pinhole.dev/expos means nothing to Pinhole; did you mean pinhole.dev/expose?"]})
    );
}

#[tokio::test]
async fn mutating_writes_the_defaults_once_and_never_refuses() {
    let Setting { server, .. } = standard().await;
    let mut client = server.connect().await;
    let answer = client.post("/mutate?timeout=2s", exposing("u1", "25")).await.json();
    let response = &answer["response"];
    assert_eq!((uid_of(&answer), &response["patchType"]), ("u1", &json!("JSONPatch")));
    let encoded: k8s_openapi::ByteString = serde_json::from_value(response["patch"].clone()).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&encoded.0).unwrap();
    let mut sent: Value = serde_json::from_str(&exposing("u1", "25")).unwrap();
    json_patch::patch(&mut sent["request"]["object"], &patch).unwrap();
    assert_eq!(sent["request"]["object"]["metadata"]["labels"]["pinhole.dev/enabled"], json!("true"));

    let again = client.post("/mutate?timeout=2s", sent.to_string()).await.json();
    assert_eq!(again["response"], json!({"uid": "u1", "allowed": true}));
    let forbidden = client.post("/mutate?timeout=2s", exposing("u2", "22,,")).await.json();
    assert_eq!((uid_of(&forbidden), &forbidden["response"]["allowed"]), ("u2", &json!(true)));
    server.metric(r#"pinhole_webhook_requests_total{endpoint="mutate",decision="patched",rule=""} 1"#).await;
}

#[tokio::test]
async fn the_uid_comes_back_from_garbled_truncated_and_oversized_calls() {
    let limits = Limits { max_body: 64 * 1024, ..Limits::default() };
    let Setting { server, .. } = start(&[], None, limits).await;
    let mut client = server.connect().await;

    let whole = exposing("u1", "25");
    let truncated = client.post("/validate", &whole[..whole.len() / 2]).await.json();
    assert_eq!((uid_of(&truncated), &truncated["response"]["status"]["code"]), ("u1", &json!(400)));

    let garbled = whole.replace(r#""annotations":{"#, r#""annotations":7,"x":{"#);
    let garbled = client.post("/validate", garbled).await.json();
    assert_eq!((uid_of(&garbled), &garbled["response"]["status"]["reason"]), ("u1", &json!("BadRequest")));

    let oversized = padded_post(&mut client, "/validate", "u2", 512 * 1024).await.json();
    assert_eq!((uid_of(&oversized), &oversized["response"]["status"]["code"]), ("u2", &json!(413)));
    let message = oversized["response"]["status"]["message"].as_str().unwrap();
    assert!(message.contains("65536 bytes (--max-body-bytes)"), "{message}");

    // Mutating lets them pass, for the validating call to judge.
    let mut client = server.connect().await;
    let oversized = padded_post(&mut client, "/mutate", "u3", 512 * 1024).await.json();
    assert_eq!((uid_of(&oversized), &oversized["response"]["allowed"]), ("u3", &json!(true)));
    assert_eq!(oversized["response"]["warnings"].as_array().unwrap().len(), 1);

    let nameless = client.post("/validate", "garbage").await;
    assert_eq!((nameless.status, &nameless.json()["kind"]), (400, &json!("Status")));
}

#[tokio::test]
async fn an_object_as_large_as_the_api_server_stores_is_read() {
    let Setting { server, .. } = standard().await;
    let mut client = server.connect().await;
    let answer = padded_post(&mut client, "/validate", "u1", 7 * 1024 * 1024).await.json();
    assert_eq!(answer["response"], json!({"uid": "u1", "allowed": true}));
}

#[tokio::test]
async fn unknown_operations_and_deletes_pass() {
    let Setting { server, .. } = standard().await;
    let mut client = server.connect().await;
    for operation in ["DELETE", "CONNECT", "TELEPORT"] {
        let body = exposing("u1", "22").replace("CREATE", operation);
        let answer = client.post("/validate", body).await.json();
        assert_eq!(answer["response"], json!({"uid": "u1", "allowed": true}), "{operation}");
    }
}

#[tokio::test]
async fn too_many_bytes_at_once_are_sent_away_to_come_back() {
    let limits = Limits { max_inflight_body: 100 * 1024, ..Limits::default() };
    let Setting { server, .. } = start(&[], None, limits).await;
    let mut holding = server.connect().await;
    let half = "x".repeat(90 * 1024);
    let length = 2 * half.len();
    holding
        .send(format!("POST /validate HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{half}"))
        .await
        .unwrap();

    // The first call's bytes are counted as they arrive, so it takes a moment until no more fit.
    let mut client = server.connect().await;
    let shed = loop {
        let answer = padded_post(&mut client, "/validate", "u1", 20 * 1024).await;
        if answer.status != 200 {
            break answer;
        }
    };
    assert_eq!((shed.status, shed.header("retry-after")), (429, Some("1")));
    assert_eq!(shed.json()["details"]["retryAfterSeconds"], json!(1));
    drop(holding);
    while padded_post(&mut client, "/validate", "u1", 20 * 1024).await.status != 200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(
        server.written_metrics().contains(r#"pinhole_webhook_requests_shed_total{reason="body-budget"}"#)
    );
}

#[tokio::test]
async fn a_call_before_the_caches_have_synced_waits_and_in_the_end_is_told_what_is_missing() {
    let Setting { server, startup } = standard().await;
    startup.waits_for("waiting for the first list of pods");
    let mut client = server.connect().await;
    let started = Instant::now();
    let answer = client.post("/validate?timeout=1s", exposing("u1", "25")).await;
    // No Retry-After: the caller must have time to hear this, and nothing better to do.
    assert_eq!((answer.status, answer.header("retry-after")), (503, None));
    assert_eq!(answer.json()["reason"], json!("ServiceUnavailable"));
    assert_eq!(
        answer.json()["message"],
        json!(
            "pinhole is starting and does not know yet which ports are held (for 0 s, waiting for the first list of \
             pods); try again, and if it stays so, see the webhook's log"
        )
    );
    assert!(started.elapsed() < Duration::from_millis(900), "{:?}", started.elapsed());
    server.metric(r#"pinhole_webhook_requests_shed_total{reason="starting"} 1"#).await;
    assert_eq!(client.post("/mutate", exposing("u1", "25")).await.status, 200);

    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        startup.finish();
    });
    assert_eq!(client.post("/validate?timeout=10s", exposing("u1", "25")).await.status, 200);
    assert!(started.elapsed() < Duration::from_secs(5));
}

/// An API server that fails a few times.
struct Recovering(AtomicUsize);

impl LiveReads for Recovering {
    fn read<'a>(&'a self, _: &'a Evidence) -> BoxFuture<'a, Result<Found, LiveReadError>> {
        let (what, reason) = ("Pod games/quake".to_owned(), "HTTP 500: etcd is away".to_owned());
        let fails =
            self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        let result =
            if fails { Err(LiveReadError { what, reason, is_lasting: false }) } else { Ok(Found::Nothing) };
        std::future::ready(result).boxed()
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_read_again_as_long_as_the_caller_waits() {
    for (failures, status) in [(2, 200), (1000, 503)] {
        let cached = [pod("games", "quake", "203.0.113.7:25")];
        let live = Arc::new(Recovering(AtomicUsize::new(failures)));
        let Setting { server, .. } = start(&cached, Some(live), Limits::default()).await;
        let mut client = server.connect().await;
        let answer = client.post("/validate?timeout=2s", exposing("u1", "203.0.113.7:25")).await;
        assert_eq!((answer.status, answer.header("retry-after")), (status, None));
        if status == 503 {
            let message = answer.json()["message"].to_string();
            assert!(message.contains("HTTP 500: etcd is away; without it pinhole cannot tell"), "{message}");
        }
    }
}

struct Never;

impl LiveReads for Never {
    fn read<'a>(&'a self, _: &'a Evidence) -> BoxFuture<'a, Result<Found, LiveReadError>> {
        std::future::pending().boxed()
    }
}

#[tokio::test]
async fn a_call_is_answered_within_its_own_time_limit_whatever_hangs() {
    let cached = [pod("games", "quake", "203.0.113.7:25")];
    let Setting { server, .. } = start(&cached, Some(Arc::new(Never)), Limits::default()).await;
    let started = Instant::now();
    let mut client = server.connect().await;
    let answer = client.post("/validate?timeout=1s", exposing("u1", "203.0.113.7:25")).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, None));
    assert!(started.elapsed() < Duration::from_secs(5));
    server.metric(r#"pinhole_webhook_requests_shed_total{reason="deadline"} 1"#).await;
}

struct Forbidden;

impl LiveReads for Forbidden {
    fn read<'a>(&'a self, _: &'a Evidence) -> BoxFuture<'a, Result<Found, LiveReadError>> {
        let (what, reason) = ("Pod games/quake".to_owned(), "HTTP 403: pods is forbidden".to_owned());
        std::future::ready(Err(LiveReadError { what, reason, is_lasting: true })).boxed()
    }
}

#[tokio::test]
async fn what_no_repetition_repairs_is_said_at_once() {
    let cached = [pod("games", "quake", "203.0.113.7:25")];
    let Setting { server, .. } = start(&cached, Some(Arc::new(Forbidden)), Limits::default()).await;
    let answer = server.connect().await.post("/validate", exposing("u1", "203.0.113.7:25")).await;
    assert_eq!((answer.status, answer.header("retry-after")), (500, None));
    assert_eq!(
        answer.json()["message"],
        "reading Pod games/quake from the API server failed: HTTP 403: pods is forbidden; without it pinhole cannot tell \
         whether the port is still held"
    );
}

#[test]
fn the_time_limit_is_the_api_servers_less_the_way_back() {
    let cases = [
        (Some("timeout=3s"), 2800),
        (Some("a=b&timeout=1s"), 800),
        (Some("timeout=99s"), 29_800),
        (Some("timeout=soon"), 9800),
        (Some("timeout=0s"), 0),
        (None, 9800),
    ];
    for (query, milliseconds) in cases {
        assert_eq!(time_limit(query), Duration::from_millis(milliseconds), "{query:?}");
    }
}

fn answered(path: &str, body: Vec<u8>) -> (StatusCode, Value) {
    let startup = Arc::new(Startup::complete());
    let metrics = WebhookMetrics::register(&mut metrics::registry());
    let router = router(decider(&[], None, &startup), &Limits::default(), metrics);
    let call = HttpRequest::post(path).body(Body::from(body)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let response = router.oneshot(call).await.unwrap();
        let status = response.status();
        let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_bytes_get_a_well_formed_answer(body in proptest::collection::vec(any::<u8>(), 0..600), mutate: bool) {
        let path = if mutate { "/mutate" } else { "/validate" };
        let (status, answer) = answered(path, body);
        match status {
            StatusCode::OK => prop_assert_eq!(&answer["kind"], "AdmissionReview"),
            StatusCode::BAD_REQUEST => prop_assert_eq!(&answer["kind"], "Status"),
            other => prop_assert!(false, "HTTP {}", other),
        }
    }

    #[test]
    fn a_damaged_call_gets_its_uid_back(
        uid in "[0-9a-f]{8}-[0-9a-f]{4}",
        damage in proptest::collection::vec((200_usize..2000, any::<u8>()), 0..20),
        cut in proptest::option::of(200_usize..2000),
        ports in "[0-9:,/a-z-]{0,20}",
    ) {
        let mut body = exposing(&uid, &ports).into_bytes();
        for (at, byte) in damage {
            let length = body.len();
            body[200 + at % (length - 200)] = byte;
        }
        body.truncate(cut.unwrap_or(usize::MAX));
        for path in ["/validate", "/mutate"] {
            let (status, answer) = answered(path, body.clone());
            prop_assert_eq!(status, StatusCode::OK);
            prop_assert_eq!(uid_of(&answer), uid.as_str());
            prop_assert!(answer["response"]["allowed"].is_boolean());
            if answer["response"]["allowed"] == json!(false) {
                prop_assert!(!answer["response"]["status"]["message"].as_str().unwrap().is_empty());
            }
        }
    }
}
