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
