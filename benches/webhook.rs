//! What a decision costs over TLS keep-alive connections, beside a handler that allows everything.
//!
//! Each server runs in a process of its own (this program again, as `serve`), so that its CPU time and memory are
//! its own. They all are started first and then take turns, so that whatever else the machine does meets all alike.
//! `decisions/s per core` is calls by the server's CPU time: it does not depend on who else was running. The
//! latencies are a caller's, on the same machine, and do.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    reason = "a benchmark that cannot go on stops, prints its result, starts processes, and rounds"
)]

#[path = "webhook/client.rs"]
mod client;
#[path = "fixture.rs"]
mod fixture;
#[path = "page.rs"]
mod page;
#[path = "webhook/report.rs"]
mod report;
#[path = "webhook/serve.rs"]
mod serve;

use std::time::Duration;

use crate::client::Sample;
use crate::client::Target;
use crate::report::Row;
use crate::serve::Handler;

const CONNECTIONS: [usize; 3] = [1, 8, 64];
const HELD: [usize; 3] = [0, 10_000, 100_000];

/// Each server's turns at each number of connections.
const ROUNDS: usize = 3;

/// The length of one turn.
const TURN: Duration = Duration::from_secs(3);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["serve", handler] => serve::serve(Handler::parse(handler)),
        [] => {
            let rows = measure();
            let report = report::markdown(&rows);
            println!("{report}");
            page::write("make bench-webhook", "The webhook", &report);
        }
        other => panic!("unknown arguments {other:?}; run without any"),
    }
}

fn measure() -> Vec<Row> {
    let started = page::load_average();
    let handlers = std::iter::once(Handler::AllowAll).chain(HELD.map(Handler::Decide));
    let mut servers: Vec<Target> = handlers.map(Target::start).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    for server in &mut servers {
        runtime.block_on(server.turn(8, TURN / 4));
    }
    let mut rows = Vec::new();
    for connections in CONNECTIONS {
        let mut samples: Vec<Sample> = servers.iter().map(|_| Sample::default()).collect();
        for _ in 0..ROUNDS {
            for (server, sample) in servers.iter_mut().zip(&mut samples) {
                sample.add(runtime.block_on(server.turn(connections, TURN)));
            }
        }
        for (server, sample) in servers.iter().zip(samples) {
            rows.push(Row::new(server, connections, sample, &started));
        }
    }
    rows
}
