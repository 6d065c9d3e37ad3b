//! `/entries`: what the kernel holds for which pod, with its counters, as a JSON list, and behind it what it refused.
//!
//! It is read from the kernel when it is asked for, at most once a second, so that the list never shows what ought to
//! be as if it were. It names every published pod of the node, so it is served on loopback unless an operator says otherwise.

use std::sync::Arc;
use std::sync::PoisonError;
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
use crate::dataplane::KernelRefused;
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
    /// Why the kernel does not hold the entry: it refused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What the kernel refused, as the agent's last turn left it for whoever asks. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Refusals(Arc<std::sync::Mutex<Vec<KernelRefused>>>);

impl Refusals {
    /// Leaves what was refused in place of what was before.
    pub fn leave(&self, refused: &[KernelRefused]) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = refused.to_vec();
    }

    fn lines(&self) -> Vec<Line> {
        let refused = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let line = |KernelRefused { entry, error }: &KernelRefused| Line {
            problem: Some(error.clone()),
            ..line(entry, Counters::default())
        };
        refused.iter().map(line).collect()
    }
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
        problem: None,
    }
}

/// The route.
pub fn router<D: Dataplane + Send + Sync + 'static>(dataplane: Arc<D>, refusals: Refusals) -> Router {
    let cache: Arc<Cache> = Arc::default();
    let answer = move || {
        let (dataplane, refusals, cache) = (Arc::clone(&dataplane), refusals.clone(), Arc::clone(&cache));
        async move { answer(&*dataplane, &refusals, &cache).await }
    };
    Router::new().route("/entries", get(answer))
}

async fn answer<D: Dataplane>(dataplane: &D, refusals: &Refusals, cache: &Cache) -> Response {
    // Held while the kernel is read: whoever asks meanwhile gets the same answer.
    let mut cache = cache.lock().await;
    if let Some((read_at, lines)) = &*cache
        && read_at.elapsed() < FRESH
    {
        return Json(lines.clone()).into_response();
    }
    match dataplane.read().await {
        Ok(observed) => {
            let mut lines = lines(&observed);
            lines.append(&mut refusals.lines());
            *cache = Some((Instant::now(), lines.clone()));
            Json(lines).into_response()
        }
        Err(error) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("the rules cannot be read: {error}\n")).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::fixtures::endpoint;
    use crate::ruleset::fixtures::ruleset;
    use crate::ruleset::fixtures::v4_node;

    #[test]
    fn what_the_kernel_refused_is_listed_with_the_reason_until_it_is_taken() {
        let ruleset = ruleset(&[endpoint("36412/sctp", "a", &["10.244.1.9"])], &v4_node());
        let entry = ruleset.entries().next().unwrap().clone();
        let refusals = Refusals::default();
        refusals.leave(&[KernelRefused { entry, error: "no sctp here".into() }]);
        let listed = serde_json::to_value(refusals.lines()).unwrap();
        assert_eq!(listed[0]["ports"], "36412");
        assert_eq!(listed[0]["target"], "10.244.1.9");
        assert_eq!(listed[0]["problem"], "no sctp here");
        refusals.leave(&[]);
        assert_eq!(refusals.lines(), []);
        let held = Observed { ruleset, ..Observed::default() };
        assert!(serde_json::to_value(lines(&held)).unwrap()[0].get("problem").is_none());
    }
}
