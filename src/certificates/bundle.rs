//! What callers trust: a set of authorities' certificates, as a `caBundle` holds it.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use thiserror::Error;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::certificates::moment::Moment;

const END: &str = "-----END CERTIFICATE-----";

/// The certificate of one authority, without its key. Two are the same when their bytes are, however PEM writes them.
#[derive(Clone, Debug)]
pub struct Trusted {
    der: Vec<u8>,
    pem: String,
    not_before: Moment,
    not_after: Moment,
}

/// Certificates that are trusted together. Order means nothing, and text around them neither.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundle(BTreeSet<Trusted>);

/// Why a text is no bundle.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("certificate {position} cannot be understood: {reason}")]
pub struct BundleError {
    /// Which certificate in the text, from 1.
    pub position: usize,
    /// What the parser said.
    pub reason: String,
}

impl Trusted {
    /// Reads one certificate from PEM.
    pub fn parse(pem: &str) -> Result<Self, String> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| format!("{error:?}"))?;
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| error.to_string())?;
        let not_before = Moment::from_unix(parsed.validity().not_before.timestamp());
        let not_after = Moment::from_unix(parsed.validity().not_after.timestamp());
        let pem = pem.lines().map(str::trim).filter(|line| !line.is_empty());
        let pem = pem.fold(String::new(), |text, line| text + line + "\n");
        Ok(Self { der: der.to_vec(), pem, not_before, not_after })
    }

    /// The certificate as PEM, with a line feed at its end.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The certificate's bytes.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// From when on it is valid.
    pub const fn not_before(&self) -> Moment {
        self.not_before
    }

    /// Until when it is valid.
    pub const fn not_after(&self) -> Moment {
        self.not_after
    }

    /// A certificate that only the state machine looks at, for tests of it.
    #[cfg(test)]
    pub(crate) fn fake(name: &str, not_before: Moment, not_after: Moment) -> Self {
        Self { der: name.as_bytes().to_vec(), pem: format!("{name}\n"), not_before, not_after }
    }
}

impl PartialEq for Trusted {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl Eq for Trusted {}

impl PartialOrd for Trusted {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Trusted {
    fn cmp(&self, other: &Self) -> Ordering {
        self.der.cmp(&other.der)
    }
}

impl Bundle {
    /// Reads a `caBundle`, decoded from base64. Text outside of certificates is allowed, as API servers allow it.
    pub fn parse(text: &str) -> Result<Self, BundleError> {
        let mut bundle = BTreeSet::new();
        for (index, part) in text.split_inclusive(END).enumerate() {
            let Some(start) = part.find("-----BEGIN CERTIFICATE-----") else { continue };
            let trusted = Trusted::parse(&part[start..])
                .map_err(|reason| BundleError { position: index + 1, reason })?;
            bundle.insert(trusted);
        }
        Ok(Self(bundle))
    }

    /// The bundle as PEM, in an order that depends on nothing but its content.
    pub fn pem(&self) -> String {
        self.0.iter().map(Trusted::pem).collect()
    }

    /// Whether nobody is trusted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this authority is trusted.
    pub fn trusts(&self, authority: &Trusted) -> bool {
        self.0.contains(authority)
    }

    /// Whether everybody of `other` is trusted.
    pub fn covers(&self, other: &Self) -> bool {
        other.0.is_subset(&self.0)
    }

    /// Trusts one more.
    pub fn insert(&mut self, authority: Trusted) {
        self.0.insert(authority);
    }

    /// No longer trusts this one.
    pub fn remove(&mut self, authority: &Trusted) {
        self.0.remove(authority);
    }

    /// Forgets whoever has expired by `now`.
    pub fn retain_valid(&mut self, now: Moment) {
        self.0.retain(|trusted| now < trusted.not_after);
    }

    /// Everybody who is trusted.
    pub fn iter(&self) -> impl Iterator<Item = &Trusted> {
        self.0.iter()
    }
}

impl FromIterator<Trusted> for Bundle {
    fn from_iter<I: IntoIterator<Item = Trusted>>(authorities: I) -> Self {
        Self(authorities.into_iter().collect())
    }
}

impl Extend<Trusted> for Bundle {
    fn extend<I: IntoIterator<Item = Trusted>>(&mut self, authorities: I) {
        self.0.extend(authorities);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::KeyPair;

    use super::*;
    use crate::certificates::authority::Authority;

    fn pem() -> String {
        let (names, now) = (["localhost".to_owned()], Moment::from_unix(1_763_856_000));
        let authority =
            Authority::mint(&KeyPair::generate().unwrap(), &names, now, Duration::from_hours(1)).unwrap();
        authority.certificate().pem().to_owned()
    }

    #[test]
    fn order_repetition_line_width_and_text_in_between_mean_nothing() {
        let (one, other) = (pem(), pem());
        let bundle = Bundle::parse(&format!("{one}{other}")).unwrap();
        let lines: Vec<_> = one.lines().collect();
        let (body, ends) = (lines[1..lines.len() - 1].concat(), [lines[0], lines[lines.len() - 1]]);
        let wide = format!("{}\r\n{body}\r\n{}\r\n", ends[0], ends[1]);
        for same in [format!("{other}# ours\n{one}"), format!("{one}{other}{one}"), format!("{wide}{other}")]
        {
            assert_eq!(Bundle::parse(&same), Ok(bundle.clone()), "{same}");
        }
        assert_eq!(Bundle::parse(&bundle.pem()), Ok(bundle.clone()));
        assert_ne!(Bundle::parse(&one), Ok(bundle));
    }

    #[test]
    fn what_is_no_certificate_is_refused_with_its_place() {
        let damaged = format!("{}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", pem());
        assert_eq!(Bundle::parse(&damaged).unwrap_err().position, 2);
        assert_eq!(Bundle::parse(""), Ok(Bundle::default()));
    }
}
