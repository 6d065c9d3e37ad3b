//! The result as a table, and its place in the documentation.

use std::fmt::Write;

use crate::ROUNDS;
use crate::TURN;
use crate::client::Sample;
use crate::client::Target;
use crate::fixture;
use crate::page;
use crate::serve::Handler;

/// One server at one number of connections.
pub(crate) struct Row {
    handler: Handler,
    connections: usize,
    sample: Sample,
    idle_bytes: f64,
    resident_bytes: f64,
    load: (String, String),
}

impl Row {
    pub(crate) fn new(server: &Target, connections: usize, mut sample: Sample, load_at_start: &str) -> Self {
        sample.latencies.sort_unstable();
        Self {
            handler: server.handler,
            connections,
            sample,
            idle_bytes: server.idle_bytes,
            resident_bytes: server.resident_bytes(),
            load: (load_at_start.to_owned(), page::load_average()),
        }
    }

    fn per_second(&self) -> f64 {
        self.sample.latencies.len() as f64 / self.sample.wall.as_secs_f64()
    }

    fn per_core(&self) -> f64 {
        self.sample.latencies.len() as f64 / self.sample.cpu_seconds
    }

    /// In microseconds.
    fn percentile(&self, per_mille: usize) -> u32 {
        let latencies = &self.sample.latencies;
        latencies.get(latencies.len() * per_mille / 1000).or(latencies.last()).copied().unwrap_or_default()
    }

    /// The bound of the bucket that the 99th percentile of the handler's time falls into, in microseconds.
    fn handler_p99(&self) -> Option<f64> {
        let all = self.sample.handler.last()?.1;
        let bucket = self.sample.handler.iter().find(|(_, count)| 0.99 * all <= *count)?;
        (0.0 < all).then_some(bucket.0 * 1e6)
    }
}

/// Everything that a reader needs to judge the figures or to make them again.
pub(crate) fn markdown(rows: &[Row]) -> String {
    let mut text = String::new();
    let load = rows.last().map(|row| row.load.clone()).unwrap_or_default();
    let calls: usize = rows.iter().map(|row| row.sample.latencies.len()).sum();
    writeln!(
        text,
        "`make bench-webhook` on {}: {calls} calls, each the CREATE of a pod with one entry in its annotation \
         ({} bytes), over TLS 1.3 keep-alive connections on loopback; callers and servers share the machine. Each \
         figure is from {ROUNDS} turns of {} s, in which the servers take turns. Load average {} at the start (before \
         the benchmark's own load), {} at the end.\n",
        page::machine(),
        fixture::review(0).len(),
        TURN.as_secs(),
        load.0,
        load.1,
    )
    .unwrap();
    text.push_str(
        "| handler | held ports | connections | calls/s | calls/s per core | of always-allow | p50 | p99 | p99.9 | \
         in the handler, p99 | resident idle / loaded |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let baseline = rows
            .iter()
            .find(|other| other.handler == Handler::AllowAll && other.connections == row.connections);
        let ratio = baseline.map_or(f64::NAN, |baseline| row.per_core() / baseline.per_core());
        let (name, held) = match row.handler {
            Handler::AllowAll => ("always-allow", "-".to_owned()),
            Handler::Decide(held) => ("pinhole", held.to_string()),
        };
        let handler = row.handler_p99().map_or_else(|| "-".to_owned(), |bound| format!("<= {bound:.0} us"));
        writeln!(
            text,
            "| {name} | {held} | {} | {:.0} | {:.0} | {ratio:.2} | {} us | {} us | {} us | {handler} | {:.0} / {:.0} MB |",
            row.connections,
            row.per_second(),
            row.per_core(),
            row.percentile(500),
            row.percentile(990),
            row.percentile(999),
            row.idle_bytes / 1e6,
            row.resident_bytes / 1e6,
        )
        .unwrap();
    }
    text.push_str(&budgets(rows));
    text
}

fn budgets(rows: &[Row]) -> String {
    let decide = |held| rows.iter().filter(move |row| row.handler == Handler::Decide(held));
    let slowest = |held| decide(held).map(Row::per_core).fold(f64::INFINITY, f64::min);
    let handler = decide(100_000).filter_map(Row::handler_p99).fold(0.0, f64::max);
    let idle = decide(0).map(|row| row.idle_bytes).fold(0.0, f64::max) / 1e6;
    let resident = |held| decide(held).map(|row| row.resident_bytes).fold(0.0, f64::max) / 1e6;
    format!(
        "\n| budget | measured, the worst row |\n|---|---|\n\
         | >= 12 000 decisions/s per core, 100 000 held ports | {:.0} (none held: {:.0}) |\n\
         | handler p99 <= 300 us, 100 000 held ports | <= {handler:.0} us |\n\
         | resident, idle, nothing held: 15 MB | {idle:.0} MB |\n\
         | resident, 10 000 held: 30 MB | {:.0} MB after the load |\n\
         | resident, 100 000 held: 120 MB | {:.0} MB after the load |\n",
        slowest(100_000),
        slowest(0),
        resident(10_000),
        resident(100_000),
    )
}
