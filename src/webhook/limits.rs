//! How long and how much a caller may take. The reasons for each value stand beside it.

use std::time::Duration;

/// What one webhook process grants its callers.
#[derive(Clone, Debug)]
pub struct Limits {
    /// From the TCP connection to the end of the TLS handshake.
    pub handshake: Duration,
    /// From the handshake to the first byte of the first request: the API server connects when it has something to
    /// ask, so a silent new connection is not one of its own.
    pub first_byte: Duration,
    /// From the first byte of a request to the end of its head.
    pub head: Duration,
    /// From the end of the head to the end of the body.
    pub body: Duration,
    /// How long a connection may stay silent between two requests. The API server keeps idle connections for 90 s
    /// and does not repeat a call that meets one being closed: whoever closes first must be the API server.
    pub idle: Duration,
    /// How long an answer may wait for the caller to take it.
    pub write: Duration,
    /// Connections held at once; see `server` for who has to go when a new one comes.
    pub max_connections: usize,
    /// Bytes of one request's body. An update of an object carries it twice, and the API server lets objects grow
    /// to 3 MiB.
    pub max_body: usize,
    /// Bytes of all bodies held at once.
    pub max_inflight_body: usize,
    /// How long to go on accepting connections after the order to end, so that no caller that has not heard of it
    /// yet is turned away.
    pub drain_period: Duration,
    /// When to end at the latest, counted from the same order.
    pub termination_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            first_byte: Duration::from_secs(10),
            head: Duration::from_secs(5),
            body: Duration::from_secs(10),
            idle: Duration::from_mins(3),
            write: Duration::from_secs(10),
            max_connections: 512,
            max_body: 8 * 1024 * 1024,
            max_inflight_body: 64 * 1024 * 1024,
            drain_period: Duration::from_secs(15),
            termination_grace: Duration::from_secs(55),
        }
    }
}
