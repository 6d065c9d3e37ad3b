//! One connection: the TLS handshake, then requests one after another until either side has enough.
//!
//! HTTP/1.1 only: the API server speaks nothing else to a webhook behind a Service, and one request at a time keeps
//! the deadlines of [`Watched`] exact. A panic while answering is caught here: the caller gets an HTTP 500, so that
//! its failure policy decides, and the process lives on.

use std::any::Any;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::Request;
use axum::http::Response;
use axum::http::header::CONNECTION;
use bytes::Bytes;
use futures::FutureExt;
use hyper::body::Body as HttpBody;
use hyper::body::Frame;
use hyper::body::Incoming;
use hyper::body::SizeHint;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;
use tracing::debug;
use tracing::error;

use crate::telemetry::metrics::webhook::WebhookMetrics;
use crate::webhook::activity::Activity;
use crate::webhook::limits::Limits;
use crate::webhook::refusal;
use crate::webhook::watched::Watched;

/// What a connection that is closed from outside gets to say goodbye in TLS.
const GOODBYE: Duration = Duration::from_millis(500);

/// A head larger than this is not the API server's; its largest is some hundred bytes.
const MAX_HEAD: usize = 64 * 1024;

/// What all connections of a server share.
pub(crate) struct Shared {
    pub(crate) acceptor: TlsAcceptor,
    pub(crate) router: Router,
    pub(crate) limits: Arc<Limits>,
    pub(crate) metrics: WebhookMetrics,
    /// The process is about to end: every answer asks its caller to come back on another connection.
    pub(crate) draining: AtomicBool,
}

/// Serves one accepted connection until it ends, by the peer, by a deadline or by `activity.close`.
pub(crate) async fn serve(stream: TcpStream, shared: Arc<Shared>, activity: Arc<Activity>) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "Cannot switch off Nagle's algorithm; answers may be late");
    }
    let handshake = tokio::time::timeout(shared.limits.handshake, shared.acceptor.accept(stream));
    let stream = tokio::select! {
        () = activity.close.cancelled() => return,
        handshake = handshake => match handshake {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                shared.metrics.handshake_failures.inc();
                debug!(%error, "A TLS handshake failed");
                return;
            }
            Err(_) => {
                shared.metrics.handshake_failures.inc();
                shared.metrics.cut("handshake-timeout");
                return;
            }
        },
    };
    activity.established();

    let limits = Arc::clone(&shared.limits);
    let stream = Watched::new(stream, Arc::clone(&activity), limits, shared.metrics.clone());
    let service = service_fn(|request| answer(request, &shared, &activity));
    // The deadlines are `Watched`'s; hyper's own would cut idle connections of the API server.
    let mut http = http1::Builder::new();
    http.header_read_timeout(None).max_buf_size(MAX_HEAD);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    let end = tokio::select! {
        end = connection.as_mut() => end,
        () = activity.close.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(GOODBYE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = end {
        debug!(%error, "A connection ended early");
    }
}

async fn answer(
    request: Request<Incoming>,
    shared: &Shared,
    activity: &Arc<Activity>,
) -> Result<Response<Body>, Infallible> {
    activity.head_complete();
    shared.metrics.in_flight.inc();
    let request = request.map(|body| Body::new(Tracked::new(body, Arc::clone(activity))));
    let answered = AssertUnwindSafe(shared.router.clone().oneshot(request)).catch_unwind().await;
    shared.metrics.in_flight.dec();
    let mut response = match answered {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(panic) => {
            shared.metrics.panics.inc();
            error!(
                panic = panic_text(&*panic),
                "Answering a call panicked; the caller got HTTP 500. Please report this"
            );
            refusal::internal("answering this call failed inside pinhole; its log has the reason")
        }
    };
    if shared.draining.load(Ordering::Relaxed) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    activity.answered();
    Ok(response)
}

/// A request's body that notes when the peer has sent all of it.
struct Tracked {
    body: Incoming,
    activity: Arc<Activity>,
}

impl Tracked {
    fn new(body: Incoming, activity: Arc<Activity>) -> Self {
        let tracked = Self { body, activity };
        tracked.note_end();
        tracked
    }

    fn note_end(&self) {
        if self.body.is_end_stream() {
            self.activity.body_complete();
        }
    }
}

impl HttpBody for Tracked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        match &frame {
            Poll::Ready(None) => this.activity.body_complete(),
            Poll::Ready(Some(_)) => this.note_end(),
            Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}
