//! Makes authorities and leaves out of keys, names and times that it is given.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::DistinguishedName;
use rcgen::DnType;
use rcgen::ExtendedKeyUsagePurpose;
use rcgen::GeneralSubtree;
use rcgen::IsCa;
use rcgen::Issuer;
use rcgen::KeyPair;
use rcgen::KeyUsagePurpose;
use rcgen::NameConstraints;
use rustls_pki_types::CertificateDer;
use thiserror::Error;

use crate::certificates::bundle::Trusted;
use crate::certificates::moment::Moment;

/// How far the clocks of replicas and API servers may disagree: certificates are valid from this long before they
/// are made.
pub const SKEW: Duration = Duration::from_mins(5);

/// The last second that a certificate can name: the end of the year 9999.
const LAST: Moment = Moment::from_unix(253_402_300_799);

/// An authority with the key that it signs with.
#[derive(Clone, PartialEq, Eq)]
pub struct Authority {
    certificate: Trusted,
    key_pem: String,
}

/// A serving certificate with its key, and who signed it.
#[derive(Clone, PartialEq, Eq)]
pub struct Leaf {
    /// The certificate in PEM. Its authority is in the callers' bundle, so it is no part of the chain.
    pub certificate_pem: String,
    /// Its key in PEM.
    pub key_pem: String,
    /// Who signed it.
    pub authority: Trusted,
    /// When it was made.
    pub issued: Moment,
    /// Until when it is valid.
    pub not_after: Moment,
}

/// Why no certificate could be made or read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AuthorityError {
    /// The names cannot be put into a certificate.
    #[error("no certificate can be made for {names:?}: {reason}; correct --tls-server-name")]
    Names {
        /// The names.
        names: Vec<String>,
        /// What the library said.
        reason: String,
    },
    /// A stored authority cannot be understood.
    #[error("{what} cannot be understood: {reason}")]
    Malformed {
        /// Its certificate or its key.
        what: &'static str,
        /// What the parser said.
        reason: String,
    },
    /// The stored key belongs to another certificate.
    #[error("the key does not belong to the certificate")]
    Mismatch,
}

impl Authority {
    /// A new authority around `key` that may sign for `names` and what lies below them, and for nobody else.
    ///
    /// For `web.team.svc` it may sign for every Service of that namespace, so that a Service that is renamed needs no new
    /// authority.
    pub fn mint(
        key: &KeyPair,
        names: &[String],
        now: Moment,
        lifetime: Duration,
    ) -> Result<Self, AuthorityError> {
        let refused =
            |error: rcgen::Error| AuthorityError::Names { names: names.to_vec(), reason: error.to_string() };
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name("pinhole webhook CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = true;
        params.name_constraints = constraints(names);
        valid(&mut params, now.before(SKEW), now.after(lifetime));
        let certificate = params.self_signed(key).map_err(refused)?;
        Self::load(&certificate.pem(), &key.serialize_pem())
    }

    /// An authority that was stored.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, AuthorityError> {
        let certificate = Trusted::parse(certificate_pem)
            .map_err(|reason| AuthorityError::Malformed { what: "the certificate", reason })?;
        let authority = Self { certificate, key_pem: key_pem.to_owned() };
        let key = authority.key()?;
        let der = CertificateDer::from(authority.certificate.der());
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|error| {
            AuthorityError::Malformed { what: "the certificate", reason: error.to_string() }
        })?;
        if parsed.public_key().subject_public_key.data != key.public_key_raw() {
            return Err(AuthorityError::Mismatch);
        }
        Ok(authority)
    }

    /// Signs a leaf for `names`, valid until `lifetime` after `now` but never longer than the authority.
    pub fn sign(
        &self,
        key: &KeyPair,
        names: &[String],
        now: Moment,
        lifetime: Duration,
    ) -> Result<Leaf, AuthorityError> {
        let refused =
            |error: rcgen::Error| AuthorityError::Names { names: names.to_vec(), reason: error.to_string() };
        let not_after = now.after(lifetime).min(self.certificate.not_after());
        let mut params = CertificateParams::new(names.to_vec()).map_err(refused)?;
        params.distinguished_name = common_name("pinhole webhook");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        valid(&mut params, now.before(SKEW), not_after);
        let der = CertificateDer::from(self.certificate.der());
        let issuer = Issuer::from_ca_cert_der(&der, self.key()?).map_err(|error| {
            AuthorityError::Malformed { what: "the certificate", reason: error.to_string() }
        })?;
        let certificate = params.signed_by(key, &issuer).map_err(refused)?;
        Ok(Leaf {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            authority: self.certificate.clone(),
            issued: now,
            not_after,
        })
    }

    /// What callers need to trust it.
    pub const fn certificate(&self) -> &Trusted {
        &self.certificate
    }

    /// The key that it signs with, in PEM.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// When it was made.
    pub fn issued(&self) -> Moment {
        self.certificate.not_before().after(SKEW)
    }

    /// An authority that only the state machine looks at, for tests of it.
    #[cfg(test)]
    pub(crate) fn fake(name: &str, issued: Moment, lifetime: Duration) -> Self {
        let certificate = Trusted::fake(name, issued.before(SKEW), issued.after(lifetime));
        Self { certificate, key_pem: String::new() }
    }

    fn key(&self) -> Result<KeyPair, AuthorityError> {
        KeyPair::from_pem(&self.key_pem)
            .map_err(|error| AuthorityError::Malformed { what: "the key", reason: error.to_string() })
    }
}

/// Keys are never printed.
impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { certificate_pem: _, key_pem: _, authority, issued, not_after } = self;
        f.debug_struct("Leaf")
            .field("authority", authority)
            .field("issued", issued)
            .field("not_after", not_after)
            .finish_non_exhaustive()
    }
}

/// DNS names only: a name constraint of one kind leaves the other kinds free, and addresses stand in certificates of
/// test set-ups alone.
fn constraints(names: &[String]) -> Option<NameConstraints> {
    let mut domains: Vec<String> = names
        .iter()
        .filter(|name| name.parse::<IpAddr>().is_err())
        .map(|name| match name.split_once('.') {
            Some((_service, namespace)) if namespace.contains('.') => namespace.to_owned(),
            _ => name.clone(),
        })
        .collect();
    domains.sort();
    domains.dedup();
    let permitted_subtrees: Vec<_> = domains.into_iter().map(GeneralSubtree::DnsName).collect();
    let is_constrained = !permitted_subtrees.is_empty();
    is_constrained.then(|| NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() })
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// rcgen takes the `time` crate's type, and offers one function to make it.
fn valid(params: &mut CertificateParams, from: Moment, until: Moment) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let since_epoch = |moment: Moment| moment.min(LAST).since(Moment::from_unix(0));
    params.not_before = epoch + since_epoch(from);
    params.not_after = epoch + since_epoch(until);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::RootCertStore;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls_pki_types::ServerName;
    use rustls_pki_types::UnixTime;
    use rustls_pki_types::pem::PemObject;

    use super::*;

    const NOW: Moment = Moment::from_unix(1_763_856_000);
    const NAME: &str = "pinhole-webhook.pinhole-system.svc";

    fn authority(names: &[&str]) -> Authority {
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        Authority::mint(&KeyPair::generate().unwrap(), &names, NOW, Duration::from_hours(24)).unwrap()
    }

    fn leaf(authority: &Authority, name: &str, now: Moment) -> Leaf {
        let key = KeyPair::generate().unwrap();
        authority.sign(&key, &[name.to_owned()], now, Duration::from_hours(2)).unwrap()
    }

    /// What a caller who trusts `authorities` says to `leaf` under `name`.
    fn verify(leaf: &Leaf, authorities: &[&Authority], name: &str, now: Moment) -> Result<(), String> {
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(CertificateDer::from(authority.certificate().der()).into_owned()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let certificate = CertificateDer::from_pem_slice(leaf.certificate_pem.as_bytes()).unwrap();
        let now = UnixTime::since_unix_epoch(now.since(Moment::from_unix(0)));
        let name = ServerName::try_from(name).unwrap();
        let outcome = verifier.verify_server_cert(&certificate, &[], &name, &[], now);
        outcome.map(|_| ()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_caller_who_trusts_the_authority_trusts_its_leaves() {
        let ours = authority(&[NAME]);
        let leaf = leaf(&ours, NAME, NOW);
        assert_eq!(verify(&leaf, &[&ours], NAME, NOW), Ok(()));
        assert!(verify(&leaf, &[&ours], "another.pinhole-system.svc", NOW).is_err());
        assert!(verify(&leaf, &[&authority(&[NAME])], NAME, NOW).is_err());
    }

    #[test]
    fn two_authorities_of_one_name_are_told_apart() {
        let (old, new) = (authority(&[NAME]), authority(&[NAME]));
        for signer in [&old, &new] {
            assert_eq!(verify(&leaf(signer, NAME, NOW), &[&old, &new], NAME, NOW), Ok(()));
        }
    }

    #[test]
    fn clocks_may_be_five_minutes_apart_and_no_leaf_outlives_its_authority() {
        let ours = authority(&[NAME]);
        let fresh = leaf(&ours, NAME, NOW);
        assert_eq!(verify(&fresh, &[&ours], NAME, NOW.before(SKEW)), Ok(()));
        let end = NOW.after(Duration::from_hours(2));
        assert_eq!(fresh.not_after, end);
        assert!(verify(&fresh, &[&ours], NAME, end.after(Duration::from_secs(1))).is_err());
        let late = leaf(&ours, NAME, NOW.after(Duration::from_hours(23)));
        assert_eq!(late.not_after, ours.certificate().not_after());
        assert_eq!(ours.issued(), NOW);
    }

    #[test]
    fn an_authority_signs_for_the_services_of_its_namespace_and_for_nobody_else() {
        let ours = authority(&[NAME, "localhost", "192.0.2.1"]);
        for (name, is_ours) in [
            (NAME, true),
            ("renamed.pinhole-system.svc", true),
            ("localhost", true),
            ("192.0.2.1", true),
            ("kubernetes.default.svc", false),
            ("example.org", false),
        ] {
            let verified = verify(&leaf(&ours, name, NOW), &[&ours], name, NOW);
            assert_eq!(verified.is_ok(), is_ours, "{name}: {verified:?}");
        }
    }

    #[test]
    fn keys_are_not_printed() {
        let ours = authority(&[NAME]);
        let printed = format!("{ours:?} {:?}", leaf(&ours, NAME, NOW));
        assert!(!printed.contains("PRIVATE"), "{printed}");
    }
}
