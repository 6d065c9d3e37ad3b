//! Keeps the history of claims: who held which port when, beyond the claims' end.
//!
//! Like the rest of the controller it starts from what the watches show, and only the leader writes. What happens while nobody
//! leads is seen late, and the times are those at which it was seen.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use k8s_openapi::jiff::SignedDuration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing::warn;

use crate::allocation::claim::Claim;
use crate::allocation::history::Advance;
use crate::allocation::history::History;
use crate::allocation::history::PAGES;
use crate::allocation::history::Page;
use crate::allocation::history::Tenure;
use crate::allocation::key::ClaimKey;
use crate::api::crd::port_claim::ClaimState;
use crate::api::object::Kind;
use crate::cluster::asking_pods::AskingPods;
use crate::cluster::claim_store;
use crate::cluster::claim_watch::Claims;
use crate::cluster::history_store::HistoryStore;
use crate::cluster::history_store::StoredPage;
use crate::cluster::history_store::WriteError;
use crate::controller::turns::Turns;
use crate::telemetry::metrics::controller::ControllerMetrics;
use crate::telemetry::startup::Startup;

/// How often a turn is taken.
const PERIOD: Duration = Duration::from_secs(5);

/// How much of a page is written in a second, on average: a small one at once, a full one once a minute, so that etcd is not
/// filled with versions of it.
const BYTES_A_SECOND: usize = 15_000;

/// What the historian works with.
pub struct Historian {
    /// Where it is stored.
    pub store: HistoryStore,
    /// How long what has ended is kept.
    pub keep: SignedDuration,
    /// The claims that the watch has shown.
    pub claims: Arc<RwLock<Claims>>,
    /// Whether the claims are complete.
    pub claims_known: Arc<AtomicBool>,
    /// The pods that ask for ports.
    pub pods: Arc<RwLock<AskingPods>>,
    /// Whether the pods are complete.
    pub startup: Arc<Startup>,
    /// Whether this process leads.
    pub leading_rx: watch::Receiver<bool>,
    /// What is counted.
    pub metrics: ControllerMetrics,
}

/// What is known of the store.
struct Book {
    history: History,
    stored: Vec<Option<StoredPage>>,
    /// The pages that are to be written.
    changed: BTreeSet<usize>,
    /// Which page is not written again before when.
    rests: BTreeMap<usize, Instant>,
    /// Whether it was said that the pages are full.
    is_full: bool,
}

impl Historian {
    /// Takes turns until it is stopped.
    pub async fn run(self, stop: CancellationToken) {
        let mut turns = Turns::every(PERIOD, stop);
        let mut book = None;
        let mut is_failing = false;
        while turns.next().await {
            let is_complete = self.startup.is_complete() && self.claims_known.load(Ordering::Acquire);
            if !*self.leading_rx.borrow() || !is_complete {
                book = None;
                continue;
            }
            let written = self.turn(&mut book).await;
            let has_failed = std::mem::replace(&mut is_failing, written.is_err());
            match written {
                Ok(()) if has_failed => info!("The history of claims is written again"),
                Ok(()) => {}
                Err(reason) => {
                    // Others may have written; what is stored is read again.
                    book = None;
                    self.metrics.failed();
                    if !has_failed {
                        warn!(reason, "The history of claims cannot be kept, trying again");
                    }
                }
            }
        }
    }

    async fn turn(&self, book: &mut Option<Book>) -> Result<(), String> {
        let book = match book {
            Some(book) => book,
            None => book.insert(self.read().await?),
        };
        let held = {
            let claims = self.claims.read().unwrap_or_else(PoisonError::into_inner);
            let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
            held(&claims, &pods)
        };
        let Advance { changed, left_out } = book.history.advance(&held, claim_store::now(), self.keep);
        book.changed.extend(changed);
        let was_full = std::mem::replace(&mut book.is_full, left_out != 0);
        if book.is_full && !was_full {
            warn!(
                claims = left_out,
                "The history of claims is full with those that are held now, so others are not recorded; send the controller's log \
                 to where it is kept for as long as you need it"
            );
        }
        let now = Instant::now();
        for number in book.changed.clone() {
            if book.rests.get(&number).is_some_and(|end| now < *end) {
                continue;
            }
            book.changed.remove(&number);
            let Some(Some(before)) = book.stored.get(number) else { continue };
            let seconds = u64::try_from(book.history.size(number) / BYTES_A_SECOND).unwrap_or(u64::MAX);
            book.rests.insert(number, now + Duration::from_secs(seconds));
            let written = self.store.write(&book.history.page(number), before).await;
            let after = written.map_err(|error| match error {
                WriteError::Stale => "somebody else has written it".to_owned(),
                WriteError::Failed(reason) => reason,
            })?;
            if let Some(stored) = book.stored.get_mut(number) {
                *stored = Some(after);
            }
        }
        Ok(())
    }

    async fn read(&self) -> Result<Book, String> {
        let (mut pages, mut stored) = (Vec::new(), Vec::new());
        for number in 0..PAGES {
            let (page, object) = self.store.read(number).await?.unzip();
            pages.push(page.unwrap_or_else(Page::new));
            stored.push(object);
        }
        let missing = stored.iter().filter(|stored| stored.is_none()).count();
        if missing != 0 {
            warn!(
                missing,
                of = PAGES,
                "ConfigMaps of the history are missing, so a part of it is not kept; apply the chart again"
            );
        }
        let history = History::of(pages);
        Ok(Book { history, stored, changed: BTreeSet::new(), rests: BTreeMap::new(), is_full: false })
    }
}

/// Who has which port now: claims in use. That of a pod by itself names it from when a node may serve it.
fn held(claims: &Claims, pods: &AskingPods) -> BTreeMap<ClaimKey, Tenure> {
    let by_uid: BTreeMap<_, _> =
        pods.iter().map(|(name, pod)| (pod.metadata.uid.as_str(), (name, pod))).collect();
    let tenure = |key: &ClaimKey| {
        let claim = &claims.get(key)?.claim;
        let pod = claim.pod_uid.as_deref().and_then(|uid| by_uid.get(uid));
        Some(Tenure {
            holder: claim.holder.clone(),
            pod: pod.map(|(name, _)| name.name.to_string()).unwrap_or_default(),
            node: pod.and_then(|(_, pod)| pod.spec.node_name.clone()).unwrap_or_default(),
            since: claim.since,
        })
    };
    let is_served = |claim: &Claim| claim.pod_uid.is_some() || *claim.holder.kind != *Kind::Pod.name();
    let bound = claims
        .iter()
        .filter(|(_, stored)| stored.claim.state == ClaimState::Bound && is_served(&stored.claim));
    bound.filter_map(|(key, _)| Some((*key, tenure(key)?))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::allocation::claim::StoredClaim;
    use crate::allocation::claim::Version;
    use crate::model::holder::Holder;
    use crate::model::holder::ObjectName;

    #[test]
    fn who_has_a_port_is_the_pod_that_a_bound_claim_names() {
        let since = "2026-03-01T10:00:00Z".parse().unwrap();
        let mut claims = Claims::new();
        for (port, kind, state, uid) in [
            (25, "StatefulSet", ClaimState::Bound, Some("u")),
            (26, "StatefulSet", ClaimState::Bound, None),
            (27, "StatefulSet", ClaimState::Bound, Some("gone")),
            (28, "StatefulSet", ClaimState::Reserved, None),
            (29, "StatefulSet", ClaimState::Cooldown, None),
            (30, "Pod", ClaimState::Bound, None),
        ] {
            let key: ClaimKey = format!("v4-203-0-113-7-tcp-{port}").parse().unwrap();
            let holder = Holder::new(kind, ObjectName::new("mail", "mx"));
            let claim = Claim { state, pod_uid: uid.map(Into::into), ..Claim::reserve(key, holder, since) };
            let version = Version { key, uid: "1".into(), revision: 1 };
            claims.insert(key, StoredClaim { claim, version });
        }
        let pod = json!({"kind": "Pod", "metadata": {"namespace": "mail", "name": "mx-0", "uid": "u"}, "spec": {"nodeName": "node-1"}});
        let pods =
            AskingPods::from([(ObjectName::new("mail", "mx-0"), serde_json::from_value(pod).unwrap())]);
        let held = held(&claims, &pods);
        let shown: Vec<_> = held
            .iter()
            .map(|(key, tenure)| format!("{key} {} {:?} {:?}", tenure.holder, tenure.pod, tenure.node))
            .collect();
        assert_eq!(
            shown,
            [
                r#"v4-203-0-113-7-tcp-25 StatefulSet mail/mx "mx-0" "node-1""#,
                r#"v4-203-0-113-7-tcp-26 StatefulSet mail/mx "" """#,
                r#"v4-203-0-113-7-tcp-27 StatefulSet mail/mx "" """#,
            ]
        );
    }
}
