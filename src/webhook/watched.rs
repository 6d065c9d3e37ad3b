//! I/O that ends when its peer stops moving.
//!
//! hyper has one timeout for reading a head, and it also runs between two requests of a kept-alive connection. Kept
//! long enough for the API server's idle connections (more than 90 s), it would let anybody hold a connection with
//! half a request. So hyper's timeout stays off, and the deadline that [`Activity`] gives for the connection's
//! present phase is kept here, below HTTP and above TLS, where the bytes that arrive are bytes of requests.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;

use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::time::Instant;
use tokio::time::Sleep;

use crate::telemetry::metrics::webhook::WebhookMetrics;
use crate::webhook::activity::Activity;
use crate::webhook::activity::Phase;
use crate::webhook::limits::Limits;

/// A stream under the deadlines of its connection's phases.
pub(crate) struct Watched<S> {
    stream: S,
    activity: Arc<Activity>,
    limits: Arc<Limits>,
    metrics: WebhookMetrics,
    read_alarm: Alarm,
    write_alarm: Alarm,
    /// When the write that waits now must have moved on.
    write_deadline: Option<Instant>,
}

impl<S> Watched<S> {
    pub(crate) fn new(
        stream: S,
        activity: Arc<Activity>,
        limits: Arc<Limits>,
        metrics: WebhookMetrics,
    ) -> Self {
        Self {
            stream,
            activity,
            limits,
            metrics,
            read_alarm: Alarm::default(),
            write_alarm: Alarm::default(),
            write_deadline: None,
        }
    }

    /// What a wait that took too long becomes: an end of the stream where no request is open, so that hyper says
    /// goodbye in TLS, and an error where one is.
    fn late(&self) -> io::Result<()> {
        let (reason, result) = match self.activity.phase() {
            Phase::Handshake | Phase::Fresh => ("first-byte-timeout", Ok(())),
            Phase::Idle => ("idle-timeout", Ok(())),
            Phase::Head => ("head-timeout", Err(io::ErrorKind::TimedOut.into())),
            Phase::Body | Phase::Answering => ("body-timeout", Err(io::ErrorKind::TimedOut.into())),
        };
        self.metrics.cut(reason);
        result
    }

    fn watch_write<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write_deadline = None;
            return written;
        }
        let deadline = *self.write_deadline.get_or_insert_with(|| Instant::now() + self.limits.write);
        if self.write_alarm.has_rung(deadline, cx) {
            self.metrics.cut("write-timeout");
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if let Poll::Ready(result) = Pin::new(&mut this.stream).poll_read(cx, buf) {
            if before < buf.filled().len() {
                this.activity.received();
            }
            return Poll::Ready(result);
        }
        match this.activity.deadline(&this.limits) {
            Some(deadline) if this.read_alarm.has_rung(deadline, cx) => Poll::Ready(this.late()),
            _ => Poll::Pending,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.watch_write(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
        this.watch_write(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        this.watch_write(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let shut = Pin::new(&mut this.stream).poll_shutdown(cx);
        this.watch_write(cx, shut)
    }
}

/// A timer that follows a moving deadline lazily: it is set back only when the deadline comes nearer, and when it
/// rings too early it is set to the deadline of that moment. A busy connection thus touches the timer about once in
/// a few seconds, not several times in each request.
#[derive(Default)]
struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Alarm {
    fn has_rung(&mut self, deadline: Instant, cx: &mut Context<'_>) -> bool {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if deadline < sleep.deadline() {
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if deadline <= Instant::now() {
                return true;
            }
            sleep.as_mut().reset(deadline);
        }
        false
    }
}
