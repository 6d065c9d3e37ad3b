//! A certificate chain with its key, read, understood and found fit to serve.
//!
//! Whatever is wrong with a pair is an error that names the file and the way out; whatever a caller may stumble over
//! although the pair works (a missing name) is a warning.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem;
use rustls::pki_types::pem::PemObject;
use rustls::sign::CertifiedKey;
use thiserror::Error;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::webhook::tls::acceptance;

/// How far the clocks of issuer, server and callers may disagree.
const SKEW_SECONDS: i64 = 300;

/// A pair that can be served.
#[derive(Debug)]
pub struct Pair {
    /// The chain and its key, for rustls.
    pub key: CertifiedKey,
    /// When the leaf begins to be valid, in seconds since 1970.
    pub not_before: i64,
    /// The same for people.
    pub not_before_text: String,
    /// When the leaf expires, in seconds since 1970.
    pub not_after: i64,
    /// The same for people.
    pub not_after_text: String,
    /// DNS names and addresses that the leaf carries.
    pub names: Vec<String>,
    /// What does not stop the pair from being served but may stop a caller from trusting it.
    pub warnings: Vec<String>,
}

/// The two files of a pair, as given by flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairPaths {
    /// The chain, leaf first.
    pub certificate: PathBuf,
    /// The private key of the leaf.
    pub key: PathBuf,
}

impl PairPaths {
    /// Where the authority lies, if the Secret has it: beside the chain, as cert-manager writes it.
    pub fn authority(&self) -> PathBuf {
        self.certificate.with_file_name("ca.crt")
    }
}

/// Why a pair cannot be served.
#[derive(Debug, Error)]
pub enum PairError {
    /// A file cannot be read.
    #[error(
        "{path} cannot be read: {source}; check the path given by flag and that the Secret is mounted \
         and readable for the user that pinhole runs as"
    )]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The files changed each time they were read.
    #[error("{certificate} and {key} were replaced again and again while being read; they are read again later",
        certificate = paths.certificate.display(), key = paths.key.display())]
    Unstable {
        /// Which pair.
        paths: PairPaths,
    },
    /// Not PEM, or PEM cut short.
    #[error(
        "{path} is not whole PEM: {source:?}; write the file anew, complete, under another name and rename it"
    )]
    Pem {
        /// Which file.
        path: PathBuf,
        /// What the parser said.
        source: pem::Error,
    },
    /// PEM without a certificate.
    #[error("{path} holds no certificate; it needs at least one block \"BEGIN CERTIFICATE\", the leaf first")]
    NoCertificate {
        /// Which file.
        path: PathBuf,
    },
    /// A certificate that cannot be understood.
    #[error("{path} holds a certificate that cannot be understood: {reason}; issue it anew")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// PEM without a key, or with one of an unknown kind.
    #[error(
        "{path} holds no private key that can be used: {reason}; it needs one unencrypted block \
         \"BEGIN PRIVATE KEY\" (ECDSA P-256 or P-384, Ed25519, or RSA of 2048 bits and more)"
    )]
    Key {
        /// Which file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// Certificate and key do not belong together.
    #[error(
        "the key in {key} does not belong to the first certificate in {certificate}; put the leaf first, \
         and replace both files together",
        certificate = paths.certificate.display(), key = paths.key.display()
    )]
    Mismatch {
        /// Which pair.
        paths: PairPaths,
    },
    /// The leaf is not valid yet.
    #[error("the certificate in {path} is valid only from {from}; check this node's clock, or issue it anew")]
    NotYetValid {
        /// Which file.
        path: PathBuf,
        /// The leaf's `notBefore`.
        from: String,
    },
    /// Callers would refuse it, and they accept the one that is served.
    #[error("{}", doubts.join("; "))]
    Doubtful {
        /// What callers would not accept.
        doubts: Vec<String>,
    },
    /// The leaf is not valid any more.
    #[error("the certificate in {path} expired at {at}; issue it anew, or check this node's clock")]
    Expired {
        /// Which file.
        path: PathBuf,
        /// The leaf's `notAfter`.
        at: String,
    },
}

/// The bytes of a pair, before anything is known about them.
#[derive(Debug)]
pub struct PairBytes {
    /// The chain's file.
    pub certificate: Vec<u8>,
    /// The key's file.
    pub key: Vec<u8>,
}

impl PairBytes {
    /// Checks everything that can be checked without a caller. `expected_names` are the names that callers use.
    pub fn check(
        &self,
        paths: &PairPaths,
        expected_names: &[String],
        now: SystemTime,
        provider: &CryptoProvider,
    ) -> Result<Pair, PairError> {
        let path = &paths.certificate;
        let chain = CertificateDer::pem_slice_iter(&self.certificate)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| PairError::Pem { path: path.clone(), source })?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|error| PairError::Key {
            path: paths.key.clone(),
            reason: match error {
                pem::Error::NoItemsFound => "there is none".to_owned(),
                other => format!("{other:?}"),
            },
        })?;
        let leaf = chain.first().cloned().ok_or_else(|| PairError::NoCertificate { path: path.clone() })?;
        let malformed = |reason: String| PairError::Malformed { path: path.clone(), reason };
        let (_, parsed) = X509Certificate::from_der(&leaf).map_err(|error| malformed(error.to_string()))?;
        check_validity(&parsed, paths, seconds(now))?;

        let key = CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => PairError::Mismatch { paths: paths.clone() },
            rustls::Error::InvalidCertificate(reason) => malformed(format!("{reason:?}")),
            other => PairError::Key { path: paths.key.clone(), reason: other.to_string() },
        })?;
        let names = names_of(&parsed);
        let warnings = acceptance::doubts(&leaf, &parsed, path, expected_names, &names);
        Ok(Pair {
            key,
            not_before: parsed.validity().not_before.timestamp(),
            not_before_text: parsed.validity().not_before.to_string(),
            not_after: parsed.validity().not_after.timestamp(),
            not_after_text: parsed.validity().not_after.to_string(),
            names,
            warnings,
        })
    }
}

impl Pair {
    /// Why this pair should not take the place of `served`, although it could be served if there were no other: callers
    /// accept that one, and may not accept this one, or not yet.
    pub fn objection(&self, served: &Served, paths: &PairPaths, now: SystemTime) -> Option<PairError> {
        let now = seconds(now);
        if served.has_doubts || served.not_after < now {
            None
        } else if !self.warnings.is_empty() {
            Some(PairError::Doubtful { doubts: self.warnings.clone() })
        } else if now < self.not_before {
            let from = self.not_before_text.clone();
            Some(PairError::NotYetValid { path: paths.certificate.clone(), from })
        } else {
            None
        }
    }
}

/// What counts of a pair that is in service when the next one comes.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    /// When its leaf expires, in seconds since 1970.
    pub not_after: i64,
    /// Whether callers may not accept it.
    pub has_doubts: bool,
}

impl From<&Pair> for Served {
    fn from(pair: &Pair) -> Self {
        Self { not_after: pair.not_after, has_doubts: !pair.warnings.is_empty() }
    }
}

fn seconds(time: SystemTime) -> i64 {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

fn check_validity(leaf: &X509Certificate<'_>, paths: &PairPaths, now: i64) -> Result<(), PairError> {
    let validity = leaf.validity();
    if now + SKEW_SECONDS < validity.not_before.timestamp() {
        let from = validity.not_before.to_string();
        return Err(PairError::NotYetValid { path: paths.certificate.clone(), from });
    }
    if validity.not_after.timestamp() < now - SKEW_SECONDS {
        let at = validity.not_after.to_string();
        return Err(PairError::Expired { path: paths.certificate.clone(), at });
    }
    Ok(())
}

fn names_of(leaf: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = leaf.subject_alternative_name() else { return Vec::new() };
    let names = extension.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(octets) => address(octets).map(|address| address.to_string()),
        _ => None,
    });
    names.collect()
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
}
