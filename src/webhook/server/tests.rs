//! The accept loop over real sockets: who is served, who is cut, and how it ends.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use axum::Router;
use axum::routing::post;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::webhook::limits::Limits;
use crate::webhook::testing;
use crate::webhook::testing::Client;
use crate::webhook::testing::PATIENCE;
use crate::webhook::testing::TestServer;
use crate::webhook::testing::echo;

const SHORT: Duration = Duration::from_millis(200);

/// The echo, and a call that is answered when the test says so.
fn gated(gate: &Arc<Notify>) -> Router {
    let gate = Arc::clone(gate);
    echo().route(
        "/gated",
        post(move || {
            let gate = Arc::clone(&gate);
            async move {
                gate.notified().await;
                "done"
            }
        }),
    )
}

/// Begins a call that is answered when the test says so, and waits until it is in progress.
async fn begin_gated(server: &TestServer) -> Client {
    let mut client = server.connect().await;
    client.send("POST /gated HTTP/1.1\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    server.metric("pinhole_webhook_requests_in_flight 1").await;
    client
}

/// Deadlines that no test here reaches.
fn unhurried() -> Limits {
    let hour = Duration::from_hours(1);
    Limits { handshake: hour, first_byte: hour, head: hour, body: hour, write: hour, ..Limits::default() }
}

fn ending_fast() -> Limits {
    Limits { drain_period: SHORT, termination_grace: Duration::from_secs(10), ..Limits::default() }
}

#[tokio::test]
async fn one_connection_answers_many_calls_over_http_1_1_only() {
    let server = TestServer::start(echo(), Limits::default()).await;
    let mut client = server.connect().await;
    assert_eq!(client.stream.get_ref().1.alpn_protocol(), Some(b"http/1.1".as_slice()));
    for round in 0..5 {
        let answer = client.post("/echo", format!("round {round}")).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.body, format!("round {round}").into_bytes());
        assert_eq!(answer.header("connection"), None);
    }
    server.metric("pinhole_webhook_connections 1").await;
}

#[tokio::test]
async fn an_idle_connection_outlives_every_other_deadline() {
    let second = Duration::from_secs(1);
    let limits = Limits { first_byte: second, head: second, body: second, write: second, ..unhurried() };
    let server = TestServer::start(echo(), limits).await;
    let mut client = server.connect().await;
    for _ in 0..2 {
        assert_eq!(client.post("/echo", "x").await.status, 200);
        tokio::time::sleep(second + SHORT).await;
    }
    assert_eq!(client.post("/echo", "x").await.status, 200);
}

#[tokio::test]
async fn a_connection_idle_for_too_long_ends_with_a_goodbye() {
    let limits = Limits { idle: SHORT, ..Limits::default() };
    let server = TestServer::start(echo(), limits).await;
    let mut client = server.connect().await;
    client.post("/echo", "x").await;
    // `closed` reads to the end, which rustls reports as an error when the goodbye of TLS is missing.
    let mut rest = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut client.stream, &mut rest);
    tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap();
    server.metric(r#"pinhole_webhook_connections_cut_total{reason="idle-timeout"} 1"#).await;
}

#[tokio::test]
async fn whoever_does_not_move_is_cut_and_the_reason_is_counted() {
    let cases = [
        ("", Limits { first_byte: SHORT, ..unhurried() }, "first-byte-timeout"),
        ("POST /echo HT", Limits { head: SHORT, ..unhurried() }, "head-timeout"),
        (
            "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n123",
            Limits { body: SHORT, ..unhurried() },
            "body-timeout",
        ),
    ];
    for (sent, limits, reason) in cases {
        let server = TestServer::start(echo(), limits).await;
        let mut client = server.connect().await;
        client.send(sent).await.unwrap();
        client.closed().await;
        server.metric(&format!(r#"pinhole_webhook_connections_cut_total{{reason="{reason}"}} 1"#)).await;
        server.metric("pinhole_webhook_connections 0").await;
    }
}

#[tokio::test]
async fn a_trickle_of_bytes_does_not_move_the_deadline() {
    let limits = Limits { head: SHORT, ..unhurried() };
    let server = TestServer::start(echo(), limits).await;
    let mut client = server.connect().await;
    let started = Instant::now();
    // One byte at a time, always well within the deadline since the byte before.
    while client.send("P").await.is_ok() {
        assert!(started.elapsed() < PATIENCE, "the trickle was never cut");
        tokio::time::sleep(SHORT / 10).await;
    }
    server.metric(r#"pinhole_webhook_connections_cut_total{reason="head-timeout"} 1"#).await;
}

#[tokio::test]
async fn a_handshake_that_stalls_is_cut_and_disturbs_nobody() {
    let limits = Limits { handshake: 10 * SHORT, ..unhurried() };
    let server = TestServer::start(echo(), limits).await;
    let stalled = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(server.connect().await.post("/echo", "x").await.status, 200);
    server.metric(r#"pinhole_webhook_connections_cut_total{reason="handshake-timeout"} 1"#).await;
    drop(stalled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_slow_connections_do_not_disturb_the_others() {
    let server = TestServer::start(echo(), unhurried()).await;
    let mut slow = Vec::new();
    for index in 0..240 {
        let mut client = server.connect().await;
        let sent = ["", "POST /echo HT", "POST /echo HTTP/1.1\r\nContent-Length: 100\r\n\r\nx"][index % 3];
        client.send(sent).await.unwrap();
        slow.push(client);
    }
    server.metric("pinhole_webhook_connections 240").await;
    let mut client = server.connect().await;
    for _ in 0..100 {
        assert_eq!(client.post("/echo", "x").await.status, 200);
    }
}

#[tokio::test]
async fn a_full_house_sends_away_who_has_never_asked_anything() {
    let limits = Limits { max_connections: 3, ..Limits::default() };
    let server = TestServer::start(echo(), limits).await;
    let mut used = server.connect().await;
    used.post("/echo", "x").await;
    let mut oldest_unused = server.connect().await;
    let _other_unused = server.connect().await;
    server.metric("pinhole_webhook_connections 3").await;

    let mut newcomer = server.connect().await;
    assert_eq!(newcomer.post("/echo", "x").await.status, 200);
    oldest_unused.closed().await;
    assert_eq!(used.post("/echo", "x").await.status, 200);
    server.metric(r#"pinhole_webhook_connections_cut_total{reason="evicted"} 1"#).await;
}

#[tokio::test]
async fn a_house_full_of_used_connections_sends_away_the_one_silent_the_longest() {
    let limits = Limits { max_connections: 2, ..Limits::default() };
    let server = TestServer::start(echo(), limits).await;
    let mut first = server.connect().await;
    first.post("/echo", "x").await;
    let mut second = server.connect().await;
    second.post("/echo", "x").await;
    first.post("/echo", "x").await;

    assert_eq!(server.connect().await.post("/echo", "x").await.status, 200);
    second.closed().await;
    assert_eq!(first.post("/echo", "x").await.status, 200);
}

#[tokio::test]
async fn a_house_full_of_busy_connections_keeps_them() {
    let limits = Limits { max_connections: 1, ..Limits::default() };
    let gate = Arc::new(Notify::new());
    let server = TestServer::start(gated(&gate), limits).await;
    let mut busy = begin_gated(&server).await;
    assert!(server.try_connect().await.is_err());
    gate.notify_one();
    assert_eq!(busy.answer().await.unwrap().body, b"done");
    server.metric(r#"pinhole_webhook_connections_cut_total{reason="no-room"} 1"#).await;
}

#[tokio::test]
async fn a_panic_is_a_500_and_the_next_call_works() {
    async fn broken() -> &'static str {
        panic!("the handler is broken")
    }
    let router = echo().route("/panic", post(broken));
    let server = TestServer::start(router, Limits::default()).await;
    let mut client = server.connect().await;
    let answer = client.post("/panic", "").await;
    assert_eq!(answer.status, 500);
    assert_eq!(answer.json()["kind"], "Status");
    assert_eq!(answer.json()["reason"], "InternalError");
    assert_eq!(client.post("/echo", "x").await.status, 200);
    server.metric("pinhole_webhook_panics_total 1").await;
    server.metric("pinhole_webhook_requests_in_flight 0").await;
}

#[tokio::test]
async fn draining_still_accepts_and_asks_every_caller_to_leave() {
    let server = TestServer::start(echo(), Limits::default()).await;
    let mut old = server.connect().await;
    old.post("/echo", "x").await;
    server.stop.cancel();

    let started = Instant::now();
    loop {
        let answer = old.post("/echo", "x").await;
        assert_eq!(answer.status, 200);
        if answer.header("connection") == Some("close") {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "nobody is asked to leave");
    }
    old.closed().await;
    let mut new = server.connect().await;
    let answer = new.post("/echo", "x").await;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert!(!server.ended.is_finished());
}

#[tokio::test]
async fn the_end_waits_for_calls_in_progress() {
    let limits = Limits { termination_grace: Duration::from_hours(1), ..ending_fast() };
    let gate = Arc::new(Notify::new());
    let server = TestServer::start(gated(&gate), limits).await;
    let mut client = begin_gated(&server).await;
    server.stop.cancel();
    tokio::time::sleep(4 * SHORT).await;
    gate.notify_one();
    assert_eq!(client.answer().await.unwrap().body, b"done");
    tokio::time::timeout(PATIENCE, server.ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn silent_connections_do_not_delay_the_end_beyond_a_drain_period_of_silence() {
    let limits = Limits { termination_grace: Duration::from_hours(1), ..ending_fast() };
    let server = TestServer::start(echo(), limits).await;
    let mut idle = server.connect().await;
    idle.post("/echo", "x").await;
    server.stop.cancel();
    idle.closed().await;
    tokio::time::timeout(PATIENCE, server.ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_end_comes_at_the_termination_grace_at_the_latest() {
    let limits = Limits { drain_period: SHORT, termination_grace: 2 * SHORT, ..Limits::default() };
    let server = TestServer::start(gated(&Arc::new(Notify::new())), limits).await;
    let _client = begin_gated(&server).await;
    server.stop.cancel();
    tokio::time::timeout(PATIENCE, server.ended).await.unwrap().unwrap();
}

/// Callers as the API server's: each keeps its connection, and connects anew when it is asked to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_under_load_loses_no_call() {
    const CALLERS: usize = 16;
    let limits = Limits { drain_period: 10 * SHORT, ..Limits::default() };
    let leaving = TestServer::start(echo(), limits).await;
    let staying = TestServer::start(echo(), Limits::default()).await;
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (leaving, leaving_ca) = (leaving.address, leaving.ca_pem.clone());
        let (staying, staying_ca) = (staying.address, staying.ca_pem.clone());
        callers.spawn(async move {
            let mut client = testing::connect(leaving, &leaving_ca).await.unwrap();
            let started = Instant::now();
            loop {
                let answer = client.try_post("/echo", "x").await.expect("a call was lost");
                assert_eq!(answer.status, 200);
                if answer.header("connection") == Some("close") {
                    break;
                }
                assert!(started.elapsed() < PATIENCE, "a caller was never asked to leave");
            }
            // The replicas that stay are behind the same Service: whoever is sent away finds one of them.
            let mut client = testing::connect(staying, &staying_ca).await.unwrap();
            assert_eq!(client.try_post("/echo", "x").await.expect("a call was lost").status, 200);
        });
    }
    leaving.metric(&format!("pinhole_webhook_connections {CALLERS}")).await;
    leaving.stop.cancel();
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    tokio::time::timeout(PATIENCE, leaving.ended).await.unwrap().unwrap();
}
