//! Certificates good and bad, and Secret volumes as kubelet swaps them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use axum::Router;
use rcgen::CertificateParams;
use rcgen::CertifiedIssuer;
use rcgen::IsCa;
use rcgen::KeyPair;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::telemetry::metrics;
use crate::telemetry::metrics::webhook::WebhookMetrics;
use crate::telemetry::readiness::Readiness;
use crate::webhook::limits::Limits;
use crate::webhook::self_signed::SelfSigned;
use crate::webhook::server::Server;
use crate::webhook::testing;
use crate::webhook::testing::PATIENCE;
use crate::webhook::testing::server_name;
use crate::webhook::tls;
use crate::webhook::tls::Certificates;
use crate::webhook::tls::acceptance;
use crate::webhook::tls::files::Files;
use crate::webhook::tls::pair::Pair;
use crate::webhook::tls::pair::PairBytes;
use crate::webhook::tls::pair::PairError;
use crate::webhook::tls::pair::PairPaths;

const DAY: Duration = Duration::from_hours(24);

fn paths(directory: &Path) -> PairPaths {
    PairPaths { certificate: directory.join("tls.crt"), key: directory.join("tls.key") }
}

fn check(bytes: &PairBytes, now: SystemTime) -> Result<Pair, PairError> {
    bytes.check(&paths(Path::new("/certs")), &server_name(), now, &tls::provider())
}

fn fresh() -> SelfSigned {
    SelfSigned::generate(&server_name(), SystemTime::now()).unwrap()
}

/// A Secret volume as kubelet writes it: `tls.crt -> ..data/tls.crt`, `..data -> ..<version>`, swapped by renaming a
/// new link over the old one, after which the old directory is removed.
struct SecretVolume {
    directory: TempDir,
    version: u32,
}

impl SecretVolume {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["tls.crt", "tls.key"] {
            symlink(Path::new("..data").join(name), directory.path().join(name)).unwrap();
        }
        Self { directory, version: 0 }
    }

    fn write(&mut self, certificate: &[u8], key: &[u8]) {
        let old = format!("..version-{}", self.version);
        self.version += 1;
        let new = format!("..version-{}", self.version);
        let root = self.directory.path();
        fs::create_dir(root.join(&new)).unwrap();
        fs::write(root.join(&new).join("tls.crt"), certificate).unwrap();
        fs::write(root.join(&new).join("tls.key"), key).unwrap();
        symlink(&new, root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
        fs::remove_dir_all(root.join(old)).ok();
    }

    fn write_pair(&mut self, bytes: &PairBytes) {
        self.write(&bytes.certificate, &bytes.key);
    }

    /// As cert-manager writes it: the pair and its authority.
    fn write_beside(&mut self, bytes: &PairBytes, authority: &str) {
        fs::write(self.directory.path().join("ca.crt"), authority).unwrap();
        self.write_pair(bytes);
    }

    fn paths(&self) -> PairPaths {
        paths(self.directory.path())
    }
}

#[test]
fn a_chain_with_intermediates_is_served_whole() {
    let now = SystemTime::now();
    let authority = |constraint| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(constraint);
        params
    };
    let unconstrained = rcgen::BasicConstraints::Unconstrained;
    let root = CertifiedIssuer::self_signed(authority(unconstrained), KeyPair::generate().unwrap()).unwrap();
    let unconstrained = rcgen::BasicConstraints::Unconstrained;
    let intermediate =
        CertifiedIssuer::signed_by(authority(unconstrained), KeyPair::generate().unwrap(), &root).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(server_name()).unwrap().signed_by(&key, &intermediate).unwrap();
    let bytes = PairBytes {
        certificate: format!("{}{}", leaf.pem(), intermediate.pem()).into_bytes(),
        key: key.serialize_pem().into_bytes(),
    };
    let pair = check(&bytes, now).unwrap();
    assert_eq!(pair.key.cert.len(), 2);
    assert_eq!(pair.names, ["localhost"]);
    assert_eq!(pair.warnings, [] as [&str; 0]);
}

#[test]
fn an_unfit_pair_is_refused_with_its_file_and_a_way_out() {
    let (one, other) = (fresh().pair, fresh().pair);
    let half = one.certificate[..one.certificate.len() / 2].to_vec();
    let cases = [
        (
            one.certificate.clone(),
            other.key.clone(),
            "does not belong to the first certificate in /certs/tls.crt",
        ),
        (half, one.key.clone(), "/certs/tls.crt is not whole PEM"),
        (Vec::new(), one.key.clone(), "/certs/tls.crt holds no certificate"),
        (one.key.clone(), one.key.clone(), "/certs/tls.crt holds no certificate"),
        (
            one.certificate.clone(),
            Vec::new(),
            "/certs/tls.key holds no private key that can be used: there is none",
        ),
        (
            one.certificate.clone(),
            one.key[..one.key.len() / 2].to_vec(),
            "/certs/tls.key holds no private key",
        ),
        (
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_vec(),
            one.key.clone(),
            "/certs/tls.crt holds a certificate that cannot be understood",
        ),
    ];
    for (certificate, key, expected) in cases {
        let error = check(&PairBytes { certificate, key }, SystemTime::now()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}\nlacks\n{expected}");
    }
}

#[test]
fn validity_tolerates_five_minutes_of_skew_and_no_more() {
    let made = SystemTime::now();
    let bytes = fresh().pair;
    let minute = Duration::from_mins(1);
    // The pair itself is valid from five minutes before it was made, for 365 days.
    assert!(check(&bytes, made - 9 * minute).is_ok());
    let error = check(&bytes, made - 12 * minute).unwrap_err().to_string();
    assert!(error.contains("is valid only from") && error.contains("clock"), "{error}");
    assert!(check(&bytes, made + 365 * DAY + 4 * minute).is_ok());
    let error = check(&bytes, made + 365 * DAY + 7 * minute).unwrap_err().to_string();
    assert!(error.contains("expired at") && error.contains("issue it anew"), "{error}");
}

#[test]
fn a_missing_name_is_a_warning_not_a_refusal() {
    let names = ["pinhole-webhook.pinhole-system.svc".to_owned()];
    let pair =
        fresh().pair.check(&paths(Path::new("/certs")), &names, SystemTime::now(), &tls::provider()).unwrap();
    assert_eq!(pair.warnings.len(), 1);
    assert!(
        pair.warnings[0].contains(
            r#"does not carry the name "pinhole-webhook.pinhole-system.svc" (it carries ["localhost"])"#
        ),
        "{:?}",
        pair.warnings
    );
}

#[test]
fn self_signed_leaves_carry_names_and_addresses() {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned(), "fd00::1".to_owned()];
    let made = SelfSigned::generate(&names, SystemTime::now()).unwrap();
    let pair =
        made.pair.check(&paths(Path::new("/certs")), &names, SystemTime::now(), &tls::provider()).unwrap();
    assert_eq!(pair.names, names);
    assert_eq!(pair.warnings, [] as [&str; 0]);
    assert!(SelfSigned::generate(&["ä".to_owned()], SystemTime::now()).is_err());
}

struct Followed {
    certificates: Arc<Certificates>,
    metrics: WebhookMetrics,
    readiness: Readiness,
    files: Files,
}

fn follow(volume: &SecretVolume) -> Followed {
    let metrics = WebhookMetrics::register(&mut metrics::registry());
    let readiness = Readiness::new();
    let ready = readiness.require("certificate", "none loaded yet");
    let certificates = Certificates::new(metrics.clone(), ready);
    let files = Files::new(volume.paths(), server_name(), tls::provider());
    Followed { certificates, metrics, readiness, files }
}

#[test]
fn a_bad_pair_keeps_the_one_before_and_is_counted_once() {
    let mut volume = SecretVolume::new();
    let (one, other) = (fresh().pair, fresh().pair);
    volume.write_pair(&one);
    let mut followed = follow(&volume);
    let now = SystemTime::now();
    followed.files.refresh(&followed.certificates, now);
    assert!(followed.readiness.is_ready());

    volume.write(&other.certificate, &one.key);
    for _ in 0..3 {
        followed.files.refresh(&followed.certificates, now);
    }
    assert_eq!(followed.metrics.certificate_reload_failures.get(), 1);
    assert!(followed.readiness.is_ready());

    volume.write_pair(&other);
    followed.files.refresh(&followed.certificates, now);
    assert_eq!(followed.metrics.certificate_reloads.get(), 2);
    let year = 365.0 * DAY.as_secs_f64();
    let expires = followed.metrics.certificate_not_after.get();
    let expected = now.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64() + year;
    assert!((expires - expected).abs() < 60.0, "{expires} is not near {expected}");
}

#[test]
fn a_pair_that_callers_would_refuse_does_not_replace_one_that_they_accept() {
    let (good, other) = (fresh(), fresh());
    let elsewhere = SelfSigned::generate(&["elsewhere.example".to_owned()], SystemTime::now()).unwrap();
    let cases = [
        (&elsewhere.pair, &elsewhere.ca_pem, "does not carry the name \"localhost\""),
        (&other.pair, &good.ca_pem, "tls.crt does not come from the authority in "),
    ];
    for (pair, authority, expected) in cases {
        let mut volume = SecretVolume::new();
        volume.write_beside(&good.pair, &good.ca_pem);
        let mut followed = follow(&volume);
        let now = SystemTime::now();
        followed.files.refresh(&followed.certificates, now);
        volume.write_beside(pair, authority);
        followed.files.refresh(&followed.certificates, now);
        followed.files.refresh(&followed.certificates, now);
        assert_eq!(followed.metrics.certificate_reloads.get(), 1, "{expected}");
        assert_eq!(followed.metrics.certificate_reload_failures.get(), 1, "{expected}");

        // Where nothing better is there, it is served: callers may know better.
        let mut anew = follow(&volume);
        anew.files.refresh(&anew.certificates, now);
        assert!(anew.certificates.is_installed());
        // And the one before is of no use once it has expired.
        let (made, year) = (now, 366 * DAY);
        let late = SelfSigned::generate(&["elsewhere.example".to_owned()], made + year).unwrap();
        volume.write_beside(&late.pair, &late.ca_pem);
        followed.files.refresh(&followed.certificates, made + year);
        assert_eq!(followed.metrics.certificate_reloads.get(), 2, "{expected}");
    }
}

#[test]
fn a_pair_of_another_authority_is_known_by_the_one_beside_it() {
    let (one, other) = (fresh(), fresh());
    let (chain, beside) = (Path::new("/certs/tls.crt"), Path::new("/certs/ca.crt"));
    let pair = check(&one.pair, SystemTime::now()).unwrap();
    let stranger =
        |bundle: &str| acceptance::stranger(&pair, chain, bundle.as_bytes(), beside, &tls::provider());
    assert_eq!(stranger(&one.ca_pem), None);
    assert_eq!(stranger(&format!("{}{}", other.ca_pem, one.ca_pem)), None);
    assert_eq!(stranger(""), None);
    assert_eq!(stranger("no certificate"), None);
    let told = stranger(&other.ca_pem).unwrap();
    assert!(told.contains("/certs/tls.crt does not come from the authority in /certs/ca.crt"), "{told}");
}

#[test]
fn a_renewal_from_a_clock_that_is_ahead_waits_for_its_time() {
    let now = SystemTime::now();
    let mut volume = SecretVolume::new();
    volume.write_pair(&fresh().pair);
    let mut followed = follow(&volume);
    followed.files.refresh(&followed.certificates, now);
    // Valid from two minutes ahead of our clock.
    let minute = Duration::from_mins(1);
    let ahead = SelfSigned::generate(&server_name(), now + 7 * minute).unwrap();
    volume.write_pair(&ahead.pair);
    followed.files.refresh(&followed.certificates, now);
    assert_eq!(followed.metrics.certificate_reloads.get(), 1);
    followed.files.refresh(&followed.certificates, now + 3 * minute);
    assert_eq!(followed.metrics.certificate_reloads.get(), 2);
}

#[test]
fn without_any_fit_pair_the_process_waits_and_says_why() {
    let mut volume = SecretVolume::new();
    let mut followed = follow(&volume);
    followed.files.refresh(&followed.certificates, SystemTime::now());
    let missing = followed.readiness.report().remove(0).missing.unwrap();
    assert!(missing.contains("tls.crt cannot be read") && missing.contains("Secret is mounted"), "{missing}");

    volume.write_pair(&fresh().pair);
    followed.files.refresh(&followed.certificates, SystemTime::now());
    assert!(followed.readiness.is_ready());
}

#[test]
fn a_pair_that_was_too_early_is_served_once_its_time_has_come() {
    let mut volume = SecretVolume::new();
    volume.write_pair(&fresh().pair);
    let mut followed = follow(&volume);
    followed.files.refresh(&followed.certificates, SystemTime::now() - DAY);
    assert!(!followed.certificates.is_installed());
    followed.files.refresh(&followed.certificates, SystemTime::now());
    assert!(followed.certificates.is_installed());
}

#[tokio::test]
async fn five_swaps_by_kubelet_are_followed_while_open_connections_go_on() {
    let mut volume = SecretVolume::new();
    let first = fresh();
    volume.write_pair(&first.pair);
    let mut followed = follow(&volume);
    followed.files.refresh(&followed.certificates, SystemTime::now());
    let stop = CancellationToken::new();
    let certificates = Arc::clone(&followed.certificates);
    tokio::spawn(followed.files.follow(certificates, Duration::from_millis(20), stop.clone()));

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = tls::server_config(followed.certificates).unwrap();
    let router: Router = testing::echo();
    let server = Server::new(config, router, Limits::default(), followed.metrics);
    tokio::spawn(server.run(listener, stop.clone()));

    let mut old = testing::connect(address, &first.ca_pem).await.unwrap();
    for _ in 0..5 {
        let next = fresh();
        volume.write_pair(&next.pair);
        let trusted = tokio::time::timeout(PATIENCE, async {
            loop {
                match testing::connect(address, &next.ca_pem).await {
                    Ok(client) => return client,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        });
        let mut client = trusted.await.expect("the swap was not followed");
        assert_eq!(client.post("/echo", "new").await.body, b"new");
        assert_eq!(old.post("/echo", "old").await.body, b"old");
    }
    assert!(testing::connect(address, &first.ca_pem).await.is_err());
    stop.cancel();
}
