//! A certificate from an authority that the replicas of the webhook manage together, without a leader.
//!
//! Each replica takes a turn about once a minute: it reads the two configurations and then the Secret, does the step
//! that [`rotation`] says is due, signs itself a leaf when it needs one, and writes the bundles that are wrong. The leaf
//! and its key never leave the replica's memory.

use std::collections::BTreeSet;
use std::hash::BuildHasher;
use std::hash::Hasher;
use std::hash::RandomState;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use rcgen::KeyPair;
use rustls::crypto::CryptoProvider;
use thiserror::Error;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing::warn;

use crate::certificates::allowance::Allowance;
use crate::certificates::authority::Authority;
use crate::certificates::authority::AuthorityError;
use crate::certificates::authority::Leaf;
use crate::certificates::moment::Moment;
use crate::certificates::rotation;
use crate::certificates::rotation::Configuration;
use crate::certificates::rotation::Seen;
use crate::certificates::rotation::State;
use crate::certificates::rotation::Times;
use crate::cluster::ca_store::CaStore;
use crate::cluster::ca_store::CaStoreError;
use crate::cluster::ca_store::Found;
use crate::cluster::ca_store::Stored;
use crate::telemetry::metrics::authority::AuthorityMetrics;
use crate::telemetry::readiness::Condition;
use crate::webhook::tls::Certificates;
use crate::webhook::tls::pair::PairBytes;
use crate::webhook::tls::pair::PairError;
use crate::webhook::tls::pair::PairPaths;

/// A turn that takes longer is given up and begun anew.
const TURN: Duration = Duration::from_secs(20);

/// How soon to look again when a turn changed something, so that the next step need not wait for the next round.
const SOON: Duration = Duration::from_millis(100);

/// How soon to try again after a failure, at the latest.
const RETRY: Duration = Duration::from_secs(5);

/// Writers who disagree about a bundle write it this often in a minute and not more.
const WRITES_PER_MINUTE: usize = 6;

/// What the authority is made of.
pub struct Parts {
    /// Where it lives.
    pub store: CaStore,
    /// The names that callers use.
    pub names: Vec<String>,
    /// How long things last.
    pub times: Times,
    /// The cryptography.
    pub provider: Arc<CryptoProvider>,
    /// Where to count.
    pub metrics: AuthorityMetrics,
}

/// One replica's part in managing the authority.
pub struct SelfManaged {
    parts: Parts,
    trusted: Condition,
    leaf: Option<Leaf>,
    was_ready: bool,
    /// The Secret's version in which the present soak was first seen, and when.
    soak: Option<(String, Instant)>,
    allowance: Allowance,
    started: Instant,
    /// Renews a little earlier than other replicas.
    early: Duration,
    /// What was last complained about, so that the same trouble is told once.
    complaint: Option<String>,
    /// The configurations in which another writer was already reported.
    reported: BTreeSet<String>,
}

/// Why a turn ended early.
#[derive(Debug, Error)]
enum TurnError {
    #[error(transparent)]
    Store(#[from] CaStoreError),
    #[error("no certificate can be made: {0}")]
    Authority(#[from] AuthorityError),
    #[error("no key can be made: {0}")]
    Key(#[from] rcgen::Error),
    #[error("our own certificate cannot be served: {0}")]
    Pair(#[from] PairError),
    #[error("the API server has not answered within {} s", TURN.as_secs())]
    Late,
}

/// Whether there is more to do at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Settled,
    Changed,
}

impl SelfManaged {
    /// Nothing is read yet. `trusted` says whether callers trust what is served.
    pub fn new(parts: Parts, trusted: Condition) -> Self {
        let tenth = parts.times.leaf_lifetime / 10;
        Self {
            early: tenth.mul_f64(chance()),
            parts,
            trusted,
            leaf: None,
            was_ready: false,
            soak: None,
            allowance: Allowance::new(WRITES_PER_MINUTE, Duration::from_mins(1)),
            started: Instant::now(),
            complaint: None,
            reported: BTreeSet::new(),
        }
    }

    /// Takes turns until `stop`.
    pub async fn follow(mut self, certificates: Arc<Certificates>, stop: CancellationToken) {
        let poll = self.parts.times.poll();
        loop {
            let turn = tokio::time::timeout(TURN, self.turn(&certificates));
            let pause = match turn.await.unwrap_or(Err(TurnError::Late)) {
                Ok(Outcome::Changed) => SOON,
                Ok(Outcome::Settled) => poll.mul_f64(1.0 - chance() / 5.0),
                Err(error) => {
                    self.complain(&error);
                    poll.min(RETRY)
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn turn(&mut self, certificates: &Certificates) -> Result<Outcome, TurnError> {
        let began = now();
        let found = self.parts.store.configurations().await?;
        let mut stored = self.parts.store.stored().await?;
        let configurations: Vec<_> = found.iter().map(|found| found.configuration.clone()).collect();
        let mut outcome = Outcome::Settled;
        if let Some(next) = self.advance(&stored, &configurations)? {
            let phase = next.phase();
            match self.parts.store.store(next, &stored).await? {
                Some(written) => stored = written,
                None => return Ok(Outcome::Changed),
            }
            info!(phase, secret = self.parts.store.secret_name(), "Took a step of the certificate authority");
            outcome = Outcome::Changed;
        }
        let Some(state) = &stored.state else { return Ok(outcome) };
        self.sign(state, began, certificates)?;
        self.judge(state, &configurations);
        self.notice_other_writers(&found);
        for found in found.iter().filter(|found| !found.configuration.agrees_with(state)) {
            outcome = self.publish(found, state).await?.max(outcome);
        }
        self.complaint = None;
        Ok(outcome)
    }

    /// The step that is due now, if any.
    fn advance(
        &mut self,
        stored: &Stored,
        configurations: &[Configuration],
    ) -> Result<Option<State>, TurnError> {
        if !matches!(stored.state, Some(State::Soak { .. })) {
            self.soak = None;
        } else if self.soak.as_ref().is_none_or(|(version, _)| version != stored.version()) {
            self.soak = Some((stored.version().to_owned(), Instant::now()));
        }
        let soaked_for = self.soak.as_ref().map_or(Duration::ZERO, |(_, since)| since.elapsed());
        let seen = Seen { configurations, soaked_for, is_asked_for: stored.is_asked_for };
        let Parts { names, times, metrics, .. } = &self.parts;
        metrics.reached(stored.state.as_ref().map(State::phase));
        let now = now();
        rotation::advance(stored.state.as_ref(), &seen, now, times, || {
            let key = KeyPair::generate()?;
            Ok(Authority::mint(&key, names, now, times.ca_lifetime)?)
        })
    }

    /// Serves a new leaf when one is due. `began` lies before the state was read, so that the leaf ends in time.
    fn sign(&mut self, state: &State, began: Moment, certificates: &Certificates) -> Result<(), TurnError> {
        let Parts { store, names, times, provider, metrics } = &self.parts;
        metrics.reached(Some(state.phase()));
        let Some(signer) = state.signer() else { return Ok(()) };
        // Exact for the next 285 million years.
        #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 are far below 2^53")]
        metrics.not_after.set(signer.certificate().not_after().unix() as f64);
        if !rotation::is_leaf_due(self.leaf.as_ref(), signer, began, times.leaf_lifetime, self.early) {
            return Ok(());
        }
        let leaf = signer.sign(&KeyPair::generate()?, names, began, times.leaf_lifetime)?;
        let bytes = PairBytes {
            certificate: leaf.certificate_pem.clone().into_bytes(),
            key: leaf.key_pem.clone().into_bytes(),
        };
        let place = format!("memory (signed by the authority in the Secret {})", store.secret_name());
        let paths = PairPaths { certificate: place.clone().into(), key: place.into() };
        certificates.install(bytes.check(&paths, names, SystemTime::now(), provider)?);
        self.leaf = Some(leaf);
        Ok(())
    }

    /// Ready is who can be called.
    fn judge(&mut self, state: &State, configurations: &[Configuration]) {
        let obstacle = match &self.leaf {
            Some(leaf) => rotation::obstacle(leaf, state, configurations, self.was_ready),
            None => Some("no certificate is signed yet".to_owned()),
        };
        self.was_ready = obstacle.is_none();
        match obstacle {
            None => self.trusted.met(),
            Some(reason) => self.trusted.missing(reason),
        }
    }

    /// Says once of each configuration that cert-manager's injector is told to write it as well, at best before it has.
    fn notice_other_writers(&mut self, found: &[Found]) {
        let mut others = BTreeSet::new();
        for Found { configuration, injector, .. } in found {
            let Some(injector) = injector else { continue };
            others.insert(configuration.name.clone());
            if !self.reported.contains(&configuration.name) {
                warn!(
                    configuration = configuration.name,
                    annotation = injector,
                    "Two writers want to set the caBundle: cert-manager's injector, by this annotation, and this webhook, by \
                     --tls-mode self. The webhook leaves it to cert-manager, so callers will not learn of its next \
                     authority. Remove the annotation, or run the webhook with --tls-cert and --tls-key (chart: certificates.mode)"
                );
            }
        }
        self.parts.metrics.other_writers.set(i64::try_from(others.len()).unwrap_or(i64::MAX));
        self.reported = others;
    }

    async fn publish(&mut self, found: &Found, state: &State) -> Result<Outcome, TurnError> {
        if found.injector.is_some() {
            return Ok(Outcome::Settled);
        }
        let name = &found.configuration.name;
        if !self.allowance.take(self.started.elapsed()) {
            warn!(
                configuration = name,
                "The caBundle is wrong again after {WRITES_PER_MINUTE} writes within a minute: somebody else keeps \
                 changing it. Find out who by its managedFields (kubectl get --show-managed-fields) and let only one \
                 of both write it"
            );
            return Ok(Outcome::Settled);
        }
        if self.parts.store.publish(found, state).await? {
            self.parts.metrics.bundle_writes.inc();
            info!(configuration = name, phase = state.phase(), "Wrote the caBundle");
        }
        Ok(Outcome::Changed)
    }

    fn complain(&mut self, error: &TurnError) {
        self.parts.metrics.errors.inc();
        let complaint = error.to_string();
        if self.leaf.is_none() {
            self.trusted.missing(complaint.clone());
        }
        if self.complaint.as_ref() != Some(&complaint) {
            if self.leaf.is_some() {
                warn!(
                    "The certificate authority cannot be looked after; the present certificate stays in service: {complaint}"
                );
            } else {
                warn!("There is no certificate to serve, so no call can be answered: {complaint}");
            }
            self.complaint = Some(complaint);
        }
    }
}

impl Outcome {
    fn max(self, other: Self) -> Self {
        if other == Self::Changed { other } else { self }
    }
}

fn now() -> Moment {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    Moment::from_unix(i64::try_from(seconds).unwrap_or(i64::MAX))
}

/// A number from 0 to 1, another one each time: replicas should not move in step.
fn chance() -> f64 {
    let random = RandomState::new().build_hasher().finish() >> 40;
    #[expect(clippy::cast_precision_loss, reason = "24 bits are exact")]
    let chance = random as f64 / f64::from(1 << 24);
    chance
}
