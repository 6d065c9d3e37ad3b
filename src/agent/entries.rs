//! `/entries`: what the kernel holds for which pod, with its counters, as a JSON list.
//!
//! It is read from the kernel when it is asked for, at most once a second, so that the list never shows what ought to
//! be. It names every published pod of the node, so it is served on loopback unless an operator says otherwise.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::get;
use serde::Deserialize;
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::dataplane::Dataplane;
use crate::dataplane::Observed;
use crate::dataplane::counters::Counters;
use crate::ruleset::entry::Entry;

const FRESH: Duration = Duration::from_secs(1);

/// The last answer and when it was read.
type Cache = Mutex<Option<(Instant, Vec<Line>)>>;

/// One line of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// The external address.
    pub address: String,
    /// The external ports, `25` or `7000-7010`.
    pub ports: String,
    /// The protocol.
    pub protocol: String,
    /// The pod's address; none while the ports are only reserved.
    pub target: Option<String>,
    /// The pod's ports.
    pub target_ports: Option<String>,
    /// `namespace/name` of the pod.
    pub pod: String,
    /// Who may connect; empty means everybody.
    pub allowed_sources: Vec<String>,
    /// First packets of connections: one per connection.
    pub packets: u64,
    /// The bytes in them.
    pub bytes: u64,
}

/// The list.
pub fn lines(observed: &Observed) -> Vec<Line> {
    let counters = |entry: &Entry| observed.counters.get(&entry.key).copied().unwrap_or_default();
    observed.ruleset.entries().map(|entry| line(entry, counters(entry))).collect()
}

fn line(entry: &Entry, counters: Counters) -> Line {
    Line {
        address: entry.key.external.to_string(),
        ports: entry.key.ports.to_string(),
        protocol: entry.key.protocol.to_string(),
        target: entry.target.map(|target| target.ip.to_string()),
        target_ports: entry.target_ports().map(|ports| ports.to_string()),
        pod: entry.owner.to_string(),
        allowed_sources: entry.allowed_sources.iter().map(ToString::to_string).collect(),
        packets: counters.packets,
        bytes: counters.bytes,
    }
}

/// The route.
pub fn router<D: Dataplane + Send + Sync + 'static>(dataplane: Arc<D>) -> Router {
    let cache: Arc<Cache> = Arc::default();
    let answer = move || {
        let (dataplane, cache) = (Arc::clone(&dataplane), Arc::clone(&cache));
        async move { answer(&*dataplane, &cache).await }
    };
    Router::new().route("/entries", get(answer))
}

async fn answer<D: Dataplane>(dataplane: &D, cache: &Cache) -> Response {
    // Held while the kernel is read: whoever asks meanwhile gets the same answer.
    let mut cache = cache.lock().await;
    if let Some((read_at, lines)) = &*cache
        && read_at.elapsed() < FRESH
    {
        return Json(lines.clone()).into_response();
    }
    match dataplane.read().await {
        Ok(observed) => {
            let lines = lines(&observed);
            *cache = Some((Instant::now(), lines.clone()));
            Json(lines).into_response()
        }
        Err(error) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("the rules cannot be read: {error}\n")).into_response()
        }
    }
}
