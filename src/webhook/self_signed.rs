//! A certificate authority and a leaf of our own, made at the start: for the demo, for tests and for trying out.
//!
//! Nothing is stored and nothing is renewed: both end with the process. Whoever calls must be given the authority's
//! certificate, which [`SelfSigned::ca_pem`] holds.

use std::time::Duration;
use std::time::SystemTime;

use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::CertifiedIssuer;
use rcgen::DistinguishedName;
use rcgen::DnType;
use rcgen::ExtendedKeyUsagePurpose;
use rcgen::IsCa;
use rcgen::KeyPair;
use rcgen::KeyUsagePurpose;
use thiserror::Error;

use crate::webhook::tls::pair::PairBytes;

/// The name by which API servers call the Service of the shipped manifests.
pub const SERVICE_NAME: &str = "pinhole-webhook.pinhole-system.svc";

/// Names in the leaf when none are given: the way to ourselves, and the Service of the shipped manifests.
pub const DEFAULT_NAMES: [&str; 2] = ["localhost", SERVICE_NAME];

/// Longer than any process that should use this mode runs.
const LIFETIME: Duration = Duration::from_hours(365 * 24);

/// Callers' clocks may be behind ours.
const SKEW: Duration = Duration::from_mins(5);

/// A fresh authority with one leaf.
#[derive(Debug)]
pub struct SelfSigned {
    /// The leaf's chain and key in PEM.
    pub pair: PairBytes,
    /// The authority's certificate in PEM, for callers to trust.
    pub ca_pem: String,
}

/// Why no certificate could be made.
#[derive(Debug, Error)]
#[error("no self-signed certificate for {names:?} can be made: {source}; check --tls-server-name")]
pub struct SelfSignedError {
    names: Vec<String>,
    source: rcgen::Error,
}

impl SelfSigned {
    /// Makes an authority and a leaf for `names`, DNS names and addresses alike.
    pub fn generate(names: &[String], now: SystemTime) -> Result<Self, SelfSignedError> {
        generate(names, now).map_err(|source| SelfSignedError { names: names.to_vec(), source })
    }
}

fn generate(names: &[String], now: SystemTime) -> Result<SelfSigned, rcgen::Error> {
    let mut authority = CertificateParams::default();
    authority.distinguished_name = common_name("pinhole self-signed CA");
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    authority.not_before = (now - SKEW).into();
    authority.not_after = (now + LIFETIME).into();
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;

    let mut leaf = CertificateParams::new(names.to_vec())?;
    leaf.distinguished_name = common_name("pinhole webhook");
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.use_authority_key_identifier_extension = true;
    leaf.not_before = (now - SKEW).into();
    leaf.not_after = (now + LIFETIME).into();
    let key = KeyPair::generate()?;
    let certificate = leaf.signed_by(&key, &authority)?;

    let pair =
        PairBytes { certificate: certificate.pem().into_bytes(), key: key.serialize_pem().into_bytes() };
    Ok(SelfSigned { pair, ca_pem: authority.pem() })
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}
