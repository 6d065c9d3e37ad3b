//! What may keep a caller from accepting a pair that could be served: a missing name, another purpose, another
//! authority than the one beside it.
//!
//! None of these stops a pair from being served where there is no other, because callers may know better: they may use
//! another name, or trust another authority. But such a pair never replaces one without them.

use std::path::Path;
use std::time::Duration;

use rustls::CertificateError;
use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::UnixTime;
use rustls::pki_types::pem::PemObject;
use rustls::server::ParsedCertificate;
use x509_parser::certificate::X509Certificate;

use crate::webhook::tls::pair::Pair;

/// What the leaf in `path` says of itself that callers will not accept.
pub(crate) fn doubts(
    leaf: &CertificateDer<'_>,
    parsed: &X509Certificate<'_>,
    path: &Path,
    expected_names: &[String],
    names: &[String],
) -> Vec<String> {
    let mut doubts = Vec::new();
    let path = path.display();
    for expected in expected_names {
        if !carries(leaf, expected) {
            doubts.push(format!(
                "The certificate in {path} does not carry the name {expected:?} (it carries {names:?}), so callers \
                 that use this name will refuse it. Issue it with that name, or correct --tls-server-name"
            ));
        }
    }
    if let Ok(Some(usage)) = parsed.extended_key_usage()
        && !usage.value.server_auth
        && !usage.value.any
    {
        doubts.push(format!(
            "The certificate in {path} is not meant for servers (its extended key usage lacks serverAuth), so the \
             API server will refuse it. Issue it with that usage"
        ));
    }
    doubts
}

/// Whether a pair comes from none of the authorities in `bundle`, which lies beside it in `bundle_path` as cert-manager
/// writes it. A bundle that is empty or cannot be read says nothing.
pub(crate) fn stranger(
    pair: &Pair,
    path: &Path,
    bundle: &[u8],
    bundle_path: &Path,
    provider: &CryptoProvider,
) -> Option<String> {
    let mut authorities = RootCertStore::empty();
    authorities.add_parsable_certificates(CertificateDer::pem_slice_iter(bundle).filter_map(Result::ok));
    let (leaf, intermediates) = pair.key.cert.split_first()?;
    if authorities.is_empty() {
        return None;
    }
    // Its time is another check's affair.
    let now = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(pair.not_before).ok()?));
    let verdict = verify_server_cert_signed_by_trust_anchor(
        &ParsedCertificate::try_from(leaf).ok()?,
        &authorities,
        intermediates,
        now,
        provider.signature_verification_algorithms.all,
    );
    let is_stranger = matches!(
        verdict,
        Err(rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature
        ))
    );
    is_stranger.then(|| {
        format!(
            "The certificate in {} does not come from the authority in {}, so callers that trust that one will refuse \
             it. Replace all files together, or remove the second if it is out of date",
            path.display(),
            bundle_path.display()
        )
    })
}

fn carries(leaf: &CertificateDer<'_>, name: &str) -> bool {
    let Ok(leaf) = ParsedCertificate::try_from(leaf) else { return false };
    let Ok(name) = ServerName::try_from(name) else { return false };
    verify_server_name(&leaf, &name).is_ok()
}
