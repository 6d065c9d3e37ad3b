//! `pinhole webhook` as a process: what it says while it cannot serve yet, and how it ends.
//!
//! There is no cluster behind it; calls against a real API server are in `e2e/`.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::Path;
use std::process::Child;
use std::process::ChildStderr;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use serde_json::Value;
use tempfile::TempDir;

use crate::program::Program;

/// More than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running webhook, which ends with this value whatever happens.
struct Webhook {
    process: Child,
    log: BufReader<ChildStderr>,
    http_address: String,
    _directory: TempDir,
}

impl Webhook {
    fn start(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let kubeconfig = kubeconfig(directory.path());
        let mut process = Command::new(env!("CARGO_BIN_EXE_pinhole"))
            .args(["webhook", "--log-format=json", "--listen=127.0.0.1:0", "--http-address=127.0.0.1:0"])
            .args(["--tls-self-signed", "--kubeconfig", &kubeconfig])
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(process.stderr.take().unwrap());
        let mut webhook = Self { process, log, http_address: String::new(), _directory: directory };
        let line = webhook.logged("Answering admission calls");
        line["http_address"].as_str().unwrap().clone_into(&mut webhook.http_address);
        webhook
    }

    /// Reads the log up to the line with this message.
    fn logged(&mut self, message: &str) -> Value {
        loop {
            let mut line = String::new();
            assert_ne!(self.log.read_line(&mut line).unwrap(), 0, "the log ended without {message:?}");
            let line: Value = serde_json::from_str(&line).unwrap();
            if line["message"].as_str().is_some_and(|found| found.starts_with(message)) {
                return line;
            }
        }
    }

    fn fetch(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.http_address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// What a path answers once that contains something.
    fn fetch_until(&self, path: &str, part: &str) -> String {
        let started = Instant::now();
        loop {
            let answer = self.fetch(path);
            if answer.contains(part) || PATIENCE < started.elapsed() {
                return answer;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.process.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    fn exit_code(&mut self) -> Option<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.code();
            }
            assert!(started.elapsed() < PATIENCE, "the process does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// A cluster where nobody answers.
fn kubeconfig(directory: &Path) -> String {
    let path = directory.join("kubeconfig");
    let text = "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
                clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\n\
                contexts: [{name: c, context: {cluster: c, user: u}}]\n\
                users: [{name: u, user: {}}]\n";
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn it_is_alive_but_not_ready_without_a_cluster_and_says_what_is_missing() {
    let webhook = Webhook::start(&[]);
    assert!(webhook.fetch("/healthz").starts_with("HTTP/1.1 200"));
    // The port is told before the last step of the start is counted.
    let answer = webhook.fetch_until("/readyz", "[+] serving");
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("[-] caches: "), "{answer}");
    assert!(answer.contains("[+] certificate\n[+] serving\nnot ready\n"), "{answer}");
    assert!(webhook.fetch("/metrics").contains("pinhole_certificate_reloads_total 1"));
}

#[test]
fn sigterm_drains_while_readyz_tells_and_ends_with_success() {
    let mut webhook = Webhook::start(&["--drain-period=3s"]);
    webhook.signal("TERM");
    webhook.logged("Draining");
    let answer = webhook.fetch("/readyz");
    assert!(answer.contains("[-] serving: shutting down"), "{answer}");
    assert_eq!(webhook.exit_code(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut webhook = Webhook::start(&["--drain-period=1h", "--termination-grace=1h"]);
    webhook.signal("TERM");
    webhook.logged("Draining");
    webhook.signal("INT");
    assert_eq!(webhook.exit_code(), Some(130));
}

#[test]
fn an_address_in_use_is_named_with_its_flag() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = kubeconfig(directory.path());
    let output =
        Program::new(&["webhook", "--tls-self-signed", "--kubeconfig", &kubeconfig, "--listen", &address])
            .run();
    assert_eq!(output.code, 1);
    assert!(output.stderr.contains(&format!("--listen {address}: cannot listen there")), "{}", output.stderr);
}
