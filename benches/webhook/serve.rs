//! The serving process: the webhook as it is shipped, or its accept loop with a handler that allows everything.

use std::io::Read;
use std::sync::Arc;
use std::sync::RwLock;
use std::time::Duration;
use std::time::SystemTime;

use axum::Router;
use axum::body::Bytes;
use axum::http::header::CONTENT_TYPE;
use axum::routing::post;
use pinhole::admission::policy::Policy;
use pinhole::telemetry::http;
use pinhole::telemetry::metrics;
use pinhole::telemetry::metrics::webhook::WebhookMetrics;
use pinhole::telemetry::readiness::Readiness;
use pinhole::telemetry::startup::Startup;
use pinhole::webhook;
use pinhole::webhook::CertificateSource;
use pinhole::webhook::Webhook;
use pinhole::webhook::decider::Decider;
use pinhole::webhook::limits::Limits;
use pinhole::webhook::self_signed::SelfSigned;
use pinhole::webhook::server::Server;
use pinhole::webhook::tls;
use pinhole::webhook::tls::Certificates;
use pinhole::webhook::tls::pair::Pair;
use pinhole::webhook::tls::pair::PairPaths;
use serde::Deserialize;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::fixture;

/// What answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handler {
    /// Reads the UID and allows.
    AllowAll,
    /// The webhook with this many held ports in its index.
    Decide(usize),
}

impl Handler {
    pub(crate) fn parse(text: &str) -> Self {
        text.parse().map_or(Self::AllowAll, Self::Decide)
    }

    pub(crate) fn argument(self) -> String {
        match self {
            Self::AllowAll => "allow-all".to_owned(),
            Self::Decide(held) => held.to_string(),
        }
    }
}

/// What a serving process prints in one line when it can be called.
#[derive(Deserialize, Serialize)]
pub(crate) struct Started {
    pub(crate) port: u16,
    pub(crate) http_port: u16,
    /// The certificate to trust, in PEM.
    pub(crate) authority: String,
}

/// Serves until standard input closes.
pub(crate) fn serve(handler: Handler) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    std::thread::spawn(move || {
        std::io::stdin().read_to_end(&mut Vec::new()).ok();
        stopped.cancel();
    });
    runtime.block_on(run(handler, stop));
}

async fn run(handler: Handler, stop: CancellationToken) {
    let names = ["localhost".to_owned()];
    let made = SelfSigned::generate(&names, SystemTime::now()).unwrap();
    let paths = PairPaths { certificate: "generated".into(), key: "generated".into() };
    let pair = made.pair.check(&paths, &names, SystemTime::now(), &tls::provider()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let http_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let started = Started {
        port: listener.local_addr().unwrap().port(),
        http_port: http_listener.local_addr().unwrap().port(),
        authority: made.ca_pem,
    };

    let mut registry = metrics::registry();
    let metrics = WebhookMetrics::register(&mut registry);
    let readiness = Readiness::new();
    let admin = http::router(readiness.clone(), Arc::new(registry));
    tokio::spawn(http::serve(http_listener, admin, stop.clone()));
    let limits = Limits { drain_period: Duration::ZERO, ..Limits::default() };
    let announce = || println!("{}", serde_json::to_string(&started).unwrap());
    match handler {
        Handler::AllowAll => {
            announce();
            allow_all(pair, limits, metrics, &readiness).run(listener, stop).await;
        }
        Handler::Decide(held) => {
            let index = Arc::new(RwLock::new(fixture::index(held)));
            let policy = Arc::new(Policy::default());
            let decider = Arc::new(Decider::new(
                policy,
                index,
                None,
                Arc::new(Startup::complete()),
                Duration::from_secs(10),
            ));
            let certificates = CertificateSource::Fixed(Box::new(pair));
            announce();
            let parts = Webhook { decider, certificates, limits, metrics, readiness };
            webhook::run(parts, listener, stop).await.unwrap();
        }
    }
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    request: Uid<'a>,
}

#[derive(Deserialize)]
struct Uid<'a> {
    uid: &'a str,
}

fn allow_all(pair: Pair, limits: Limits, metrics: WebhookMetrics, readiness: &Readiness) -> Server {
    let certificates = Certificates::new(metrics.clone(), readiness.require("certificate", "none"));
    certificates.install(pair);
    let allow = post(|body: Bytes| async move {
        let envelope: Envelope<'_> = serde_json::from_slice(&body).unwrap();
        let uid = envelope.request.uid;
        let answer = format!(
            r#"{{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{{"uid":"{uid}","allowed":true}}}}"#
        );
        ([(CONTENT_TYPE, "application/json")], answer)
    });
    let router = Router::new().route("/validate", allow);
    Server::new(tls::server_config(certificates).unwrap(), router, limits, metrics)
}
