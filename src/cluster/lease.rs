//! Leadership by a Lease: of many processes one acts.
//!
//! # Guarantees
//! - Every write is conditional on the version that was read, so that of two who reach for a Lease one gets it.
//! - A Lease is taken from another only when it has not changed for its whole duration by our own clock: nobody's clock is
//!   compared with anybody else's.
//! - Whoever cannot renew stops leading before another can start.
//!
//! # Caveats
//! A process that is stopped for longer than the duration, and goes on, leads for a moment beside another. What a leader
//! writes must therefore be conditional too, as changes of claims are.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::coordination::v1::LeaseSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::Client;
use kube::api::PostParams;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing::warn;

use crate::cluster::trouble::describe;
use crate::model::holder::ObjectName;

/// How long a Lease is its holder's without a renewal.
const DURATION: Duration = Duration::from_secs(15);

/// How long a leader goes on without a renewal.
const DEADLINE: Duration = Duration::from_secs(10);

/// How often it is renewed, or looked at.
const PERIOD: Duration = Duration::from_secs(2);

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// A Lease as somebody who wants it sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    holder: String,
    version: String,
    /// When this version was seen first, by our clock.
    since: Instant,
}

/// What to do about a Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    /// Write our name, or its renewal, over the version that was read.
    Write,
    /// Somebody else leads.
    Wait,
}

fn decide(seen: &Seen, identity: &str, now: Instant) -> Move {
    let is_ours = seen.holder == identity;
    let is_free = seen.holder.is_empty() || DURATION <= now.duration_since(seen.since);
    if is_ours || is_free { Move::Write } else { Move::Wait }
}

/// A candidate for a Lease.
pub struct Candidate {
    api: Api<Lease>,
    lease: ObjectName,
    identity: String,
    seen: Option<Seen>,
}

impl Candidate {
    /// A candidate of this name, unique among all.
    pub fn new(client: Client, lease: ObjectName, identity: String) -> Self {
        Self { api: Api::namespaced(client, &lease.namespace), lease, identity, seen: None }
    }

    /// Tries to lead, and goes on leading, until it is stopped; says in `leading_tx` whether it does. Gives the Lease back at
    /// the end, so that the next one need not wait.
    pub async fn run(mut self, leading_tx: watch::Sender<bool>, stop: CancellationToken) {
        let mut renewed: Option<Instant> = None;
        let mut turn = tokio::time::interval(PERIOD);
        turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = turn.tick() => {}
                () = stop.cancelled() => break,
            }
            let begun = Instant::now();
            let attempt = tokio::time::timeout(PATIENCE, self.attempt()).await;
            match attempt.unwrap_or_else(|_| Err("the API server took too long to answer".to_owned())) {
                Ok(true) => renewed = Some(begun),
                Ok(false) => renewed = None,
                Err(reason) => {
                    warn!(lease = %self.lease, reason, "The Lease cannot be read or renewed; trying again");
                }
            }
            let leads = renewed.is_some_and(|renewed| renewed.elapsed() < DEADLINE);
            let changed = leading_tx.send_if_modified(|leading| std::mem::replace(leading, leads) != leads);
            if changed && leads {
                info!(lease = %self.lease, identity = self.identity, "Leading");
            } else if changed {
                warn!(lease = %self.lease, identity = self.identity, "No longer leading; another replica takes over");
            }
        }
        if leading_tx.send_replace(false) {
            self.give_back().await;
        }
    }

    /// Whether the Lease is ours after this attempt.
    async fn attempt(&mut self) -> Result<bool, String> {
        let found = self.api.get_opt(&self.lease.name).await.map_err(|error| describe(&error))?;
        let Some(found) = found else {
            let created = self.api.create(&PostParams::default(), &self.lease(None)).await;
            return wrote(created);
        };
        let version = found.metadata.resource_version.clone().unwrap_or_default();
        let holder = found.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
        let now = Instant::now();
        let since = self.seen.as_ref().filter(|seen| seen.version == version).map_or(now, |seen| seen.since);
        let seen = self.seen.insert(Seen { holder, version, since });
        match decide(seen, &self.identity, now) {
            Move::Wait => Ok(false),
            Move::Write => {
                let lease = self.lease(Some(&found));
                let written = self.api.replace(&self.lease.name, &PostParams::default(), &lease).await;
                wrote(written)
            }
        }
    }

    /// The Lease with our name on it.
    fn lease(&self, found: Option<&Lease>) -> Lease {
        let spec = found.and_then(|found| found.spec.clone()).unwrap_or_default();
        let is_ours = spec.holder_identity.as_deref() == Some(self.identity.as_str());
        let now = MicroTime(Timestamp::now());
        let transitions = spec.lease_transitions.unwrap_or_default() + i32::from(found.is_some() && !is_ours);
        let metadata = found.map_or_else(
            || ObjectMeta { name: Some(self.lease.name.to_string()), ..ObjectMeta::default() },
            |found| found.metadata.clone(),
        );
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: spec.acquire_time.filter(|_| is_ours).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..spec
        };
        Lease { metadata, spec: Some(spec) }
    }

    async fn give_back(&mut self) {
        let given_back = tokio::time::timeout(PATIENCE, async {
            let Some(mut lease) = self.api.get_opt(&self.lease.name).await? else { return Ok(()) };
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(self.identity.as_str()) {
                spec.holder_identity = None;
                self.api.replace(&self.lease.name, &PostParams::default(), &lease).await?;
            }
            Ok::<_, kube::Error>(())
        });
        match given_back.await {
            Ok(Ok(())) => info!(lease = %self.lease, "Gave the Lease back"),
            Ok(Err(error)) => {
                info!(reason = describe(&error), "The Lease was not given back; it ends by itself");
            }
            Err(_) => info!("The Lease was not given back in time; it ends by itself"),
        }
    }
}

/// Whether a write made the Lease ours.
fn wrote(written: kube::Result<Lease>) -> Result<bool, String> {
    match written {
        Ok(_) => Ok(true),
        // Somebody was faster.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(describe(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_taken_only_when_it_is_ours_free_or_unchanged_for_its_whole_duration() {
        let since = Instant::now();
        let seen = |holder: &str| Seen { holder: holder.to_owned(), version: "1".to_owned(), since };
        let cases = [
            ("me", 0, Move::Write),
            ("", 0, Move::Write),
            ("another", 14, Move::Wait),
            ("another", 15, Move::Write),
        ];
        for (holder, seconds, expected) in cases {
            let now = since + Duration::from_secs(seconds);
            assert_eq!(decide(&seen(holder), "me", now), expected, "{holder} after {seconds} s");
        }
    }

    #[test]
    fn a_leader_stops_before_another_can_start() {
        assert!(DEADLINE + PATIENCE + PERIOD <= DURATION);
    }
}
