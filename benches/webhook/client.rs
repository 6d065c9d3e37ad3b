//! Callers that keep their connections, and what they saw.

use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::fixture;
use crate::serve::Handler;
use crate::serve::Started;

/// Different pods that ask, in turn.
const CALLS: usize = 2000;

/// User space counts CPU time in hundredths of a second.
const TICKS_PER_SECOND: f64 = 100.0;

/// A serving process.
pub(crate) struct Target {
    pub(crate) handler: Handler,
    process: Child,
    port: u16,
    http_port: u16,
    tls: Arc<ClientConfig>,
    calls: Arc<Vec<Vec<u8>>>,
    /// Resident before the first call.
    pub(crate) idle_bytes: f64,
}

/// What some turns gave.
#[derive(Default)]
pub(crate) struct Sample {
    pub(crate) wall: Duration,
    pub(crate) cpu_seconds: f64,
    pub(crate) latencies: Vec<u32>,
    /// Calls by the upper bound of their time in the handler, in seconds; cumulative, as the server counts them.
    pub(crate) handler: Vec<(f64, f64)>,
}

impl Sample {
    pub(crate) fn add(&mut self, turn: Self) {
        self.wall += turn.wall;
        self.cpu_seconds += turn.cpu_seconds;
        self.latencies.extend(turn.latencies);
        if self.handler.is_empty() {
            self.handler = turn.handler;
        } else {
            for (sum, bucket) in self.handler.iter_mut().zip(turn.handler) {
                sum.1 += bucket.1;
            }
        }
    }
}

impl Target {
    pub(crate) fn start(handler: Handler) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["serve", &handler.argument()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let started: Started = serde_json::from_str(&line).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(started.authority.as_bytes()).unwrap()).unwrap();
        let tls = ClientConfig::builder_with_provider(pinhole::webhook::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut target = Self {
            handler,
            process,
            port: started.port,
            http_port: started.http_port,
            tls: Arc::new(tls),
            calls: Arc::new((0..CALLS).map(call).collect()),
            idle_bytes: 0.0,
        };
        target.idle_bytes = target.resident_bytes();
        target
    }

    /// Calls over this many connections for this long.
    pub(crate) async fn turn(&mut self, connections: usize, length: Duration) -> Sample {
        let mut streams = Vec::new();
        for _ in 0..connections {
            streams.push(self.connect().await);
        }
        let (cpu_before, handler_before) = (self.cpu_seconds(), self.handler_times());
        let started = Instant::now();
        let mut callers = JoinSet::new();
        for (number, stream) in streams.into_iter().enumerate() {
            let calls = Arc::clone(&self.calls);
            callers.spawn(caller(stream, calls, number * CALLS / connections, started + length));
        }
        let mut latencies = Vec::new();
        while let Some(seen) = callers.join_next().await {
            latencies.extend(seen.unwrap());
        }
        let wall = started.elapsed();
        let cpu_seconds = self.cpu_seconds() - cpu_before;
        let before = handler_before.into_iter().map(|(_, count)| count);
        let handler = self.handler_times().into_iter().zip(before.chain(std::iter::repeat(0.0)));
        let handler = handler.map(|((bound, count), before)| (bound, count - before)).collect();
        Sample { wall, cpu_seconds, latencies, handler }
    }

    pub(crate) fn resident_bytes(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<f64>().unwrap() * 1024.0
    }

    fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        let fields: Vec<f64> = stat
            .rsplit_once(')')
            .unwrap()
            .1
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|field| field.parse().unwrap())
            .collect();
        fields.iter().sum::<f64>() / TICKS_PER_SECOND
    }

    /// The server's own histogram of its time in the handler.
    fn handler_times(&self) -> Vec<(f64, f64)> {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.http_port)).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let prefix = "pinhole_webhook_request_duration_seconds_bucket{le=\"";
        let buckets = text.lines().filter_map(|line| {
            let (bound, rest) = line.strip_prefix(prefix)?.split_once('"')?;
            let bound = bound.parse().unwrap_or(f64::INFINITY);
            Some((bound, rest.rsplit_once(' ')?.1.parse().ok()?))
        });
        buckets.collect()
    }

    async fn connect(&self) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await.unwrap()
    }
}

impl Drop for Target {
    /// Closing its standard input ends the server.
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        self.process.wait().ok();
    }
}

fn call(number: usize) -> Vec<u8> {
    let review = fixture::review(number);
    let head = format!(
        "POST /validate?timeout=3s HTTP/1.1\r\nHost: pinhole-webhook.pinhole-system.svc:443\r\nUser-Agent: \
         kube-apiserver-admission\r\nContent-Length: {}\r\nAccept: application/json, */*\r\nContent-Type: \
         application/json\r\nAccept-Encoding: gzip\r\n\r\n",
        review.len()
    );
    [head.into_bytes(), review].concat()
}

async fn caller(
    mut stream: TlsStream<TcpStream>,
    calls: Arc<Vec<Vec<u8>>>,
    first: usize,
    end: Instant,
) -> Vec<u32> {
    let mut latencies = Vec::with_capacity(64 * 1024);
    let mut buffer = Vec::with_capacity(16 * 1024);
    for call in calls.iter().cycle().skip(first) {
        let started = Instant::now();
        if end <= started {
            break;
        }
        stream.write_all(call).await.unwrap();
        stream.flush().await.unwrap();
        buffer.clear();
        while !is_whole(&buffer) {
            assert_ne!(stream.read_buf(&mut buffer).await.unwrap(), 0, "the server closed a connection");
        }
        latencies.push(u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX));
        let granted = br#""allowed":true"#;
        assert!(
            buffer.windows(granted.len()).any(|window| window == granted),
            "{}",
            String::from_utf8_lossy(&buffer)
        );
    }
    latencies
}

/// Whether an answer has come to its end. An answer's head is lower-case, as hyper writes it.
fn is_whole(buffer: &[u8]) -> bool {
    let Some(head) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    let text = std::str::from_utf8(&buffer[..head]).unwrap();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    head + 4 + length.parse::<usize>().unwrap() <= buffer.len()
}
