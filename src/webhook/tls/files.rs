//! Follows a certificate pair in files, as kubelet, cert-manager or an operator replaces it.
//!
//! # Why polling
//! Kubelet replaces a mounted Secret by swapping one symbolic link (`..data`) above the files. A watch on the files
//! sees at most the first swap; a watch on the directory misses bind mounts of single files, some network file
//! systems and rewritten files. Reading two small files every few seconds sees every way of replacing them, needs no
//! further crate, and is fast beside the minute that kubelet takes to bring a change here.
//!
//! # No torn pairs
//! Both names are resolved, both files are read, and then both names must still resolve to the same files. A swap in
//! between is noticed and the reading starts over, so that a pair is always one that stood there together. Files
//! that are replaced one after the other fail the key check in between and are read again later.
//!
//! # What is good stays
//! A pair that cannot be served, that callers would not accept (see `acceptance`) or that is not valid yet does not
//! replace one that is.

use std::fs;
use std::hash::DefaultHasher;
use std::hash::Hash;
use std::hash::Hasher;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use rustls::crypto::CryptoProvider;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::webhook::tls::Certificates;
use crate::webhook::tls::acceptance;
use crate::webhook::tls::pair::Pair;
use crate::webhook::tls::pair::PairBytes;
use crate::webhook::tls::pair::PairError;
use crate::webhook::tls::pair::PairPaths;
use crate::webhook::tls::pair::Served;

/// How often the files are read.
pub const POLL: Duration = Duration::from_secs(10);

/// A swap takes microseconds; meeting it this often in a row is no coincidence.
const ATTEMPTS: usize = 8;

/// Where a pair lies, and what was last found there.
#[derive(Debug)]
pub struct Files {
    paths: PairPaths,
    expected_names: Vec<String>,
    provider: Arc<CryptoProvider>,
    /// What was last put in service.
    served: Option<(u64, Served)>,
    /// The last refusal, so that the same trouble is told once.
    refusal: Option<(u64, String)>,
}

impl Files {
    /// Nothing is read yet.
    pub fn new(paths: PairPaths, expected_names: Vec<String>, provider: Arc<CryptoProvider>) -> Self {
        Self { paths, expected_names, provider, served: None, refusal: None }
    }

    /// Reads the pair once and serves it if it is new and fit.
    pub fn refresh(&mut self, certificates: &Certificates, now: SystemTime) {
        match self.load(now) {
            Ok(None) => {}
            Ok(Some((fingerprint, pair))) => {
                self.served = Some((fingerprint, Served::from(&pair)));
                self.refusal = None;
                certificates.install(pair);
            }
            Err((fingerprint, error)) => {
                let refusal = Some((fingerprint, error.to_string()));
                if self.refusal != refusal {
                    self.refusal = refusal;
                    certificates.refused(&error);
                }
            }
        }
    }

    /// Refreshes every `poll` until `stop`.
    pub async fn follow(self, certificates: Arc<Certificates>, poll: Duration, stop: CancellationToken) {
        let mut files = self;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(poll) => {}
            }
            let installed = Arc::clone(&certificates);
            // A hanging network file system must not hold a thread that answers calls.
            let refreshed = tokio::task::spawn_blocking(move || {
                files.refresh(&installed, SystemTime::now());
                files
            });
            match refreshed.await {
                Ok(returned) => files = returned,
                Err(error) => {
                    warn!(%error, "Following the certificate files has failed; the present certificate stays in \
                          service until it expires. Restart this replica");
                    return;
                }
            }
        }
    }

    fn load(&self, now: SystemTime) -> Result<Option<(u64, Pair)>, (u64, PairError)> {
        let Found { pair: bytes, authority } = read_together(&self.paths).map_err(|error| (0, error))?;
        let fingerprint = fingerprint(&bytes, &authority);
        if self.served.is_some_and(|(served, _)| served == fingerprint) {
            return Ok(None);
        }
        let refused = |error| (fingerprint, error);
        let mut pair =
            bytes.check(&self.paths, &self.expected_names, now, &self.provider).map_err(refused)?;
        let beside = self.paths.authority();
        pair.warnings.extend(acceptance::stranger(
            &pair,
            &self.paths.certificate,
            &authority,
            &beside,
            &self.provider,
        ));
        let objection = self.served.and_then(|(_, served)| pair.objection(&served, &self.paths, now));
        objection.map_or(Ok(Some((fingerprint, pair))), |objection| Err(refused(objection)))
    }
}

/// What lies there at one moment.
struct Found {
    pair: PairBytes,
    /// The authority beside it; empty where there is none.
    authority: Vec<u8>,
}

fn read_together(paths: &PairPaths) -> Result<Found, PairError> {
    let mut failure = None;
    for _ in 0..ATTEMPTS {
        match read_once(paths) {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => failure = None,
            // The directory that a name pointed to is removed right after a swap: look again.
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or_else(|| PairError::Unstable { paths: paths.clone() }))
}

/// `None` when the files were replaced while being read.
fn read_once(paths: &PairPaths) -> Result<Option<Found>, PairError> {
    let certificate = resolve(&paths.certificate)?;
    let key = resolve(&paths.key)?;
    let pair = PairBytes { certificate: read(&certificate)?, key: read(&key)? };
    // Kubelet swaps it together with the other two.
    let authority = fs::read(paths.authority()).unwrap_or_default();
    let unmoved = resolve(&paths.certificate)? == certificate && resolve(&paths.key)? == key;
    let siblings = paths.certificate.parent() == paths.key.parent();
    let together = !siblings || certificate.parent() == key.parent();
    Ok((unmoved && together).then_some(Found { pair, authority }))
}

fn resolve(path: &Path) -> Result<PathBuf, PairError> {
    fs::canonicalize(path).map_err(|source| PairError::Unreadable { path: path.to_owned(), source })
}

fn read(path: &Path) -> Result<Vec<u8>, PairError> {
    fs::read(path).map_err(|source| PairError::Unreadable { path: path.to_owned(), source })
}

fn fingerprint(bytes: &PairBytes, authority: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.certificate.hash(&mut hasher);
    bytes.key.hash(&mut hasher);
    authority.hash(&mut hasher);
    hasher.finish()
}
