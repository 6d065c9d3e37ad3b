//! Reads a request's body within the limits of one request and of all requests together.

use axum::body::Body;
use axum::body::HttpBody;
use bytes::Bytes;
use http_body_util::BodyExt;

use crate::webhook::budget::Budget;
use crate::webhook::budget::Reservation;

/// Enough of a body to find the call's UID in: the API server writes it within the first 150 bytes.
pub(crate) const HEAD: usize = 1024;

/// A body that is too large is read to its end and thrown away, so that the caller, who sends before it listens,
/// gets to see the answer. This is where patience ends.
const MOST_DISCARDED: usize = 64 * 1024 * 1024;

/// A body in memory, and its share of the common allowance.
#[derive(Debug)]
pub(crate) struct Collected {
    pub(crate) bytes: Bytes,
    _share: Reservation,
}

/// Why a body is not in memory.
#[derive(Debug)]
pub(crate) enum BodyError {
    /// It is larger than one body may be. `head` is its beginning.
    TooLarge { head: Vec<u8> },
    /// All bodies together are larger than they may be.
    Exhausted,
    /// The connection failed.
    Broken(axum::Error),
}

/// Reads `body`; at most `limit` bytes of it are ever held.
pub(crate) async fn read(mut body: Body, limit: usize, budget: &Budget) -> Result<Collected, BodyError> {
    let mut share = budget.open();
    // Most reviews arrive in one piece, which is then used as it is.
    let mut first = Bytes::new();
    let mut rest = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(BodyError::Broken)?.into_data() else { continue };
        let length = first.len() + rest.len();
        if limit < length + data.len() {
            let pieces = [first.as_ref(), &rest, &data];
            let head = pieces.iter().flat_map(|piece| piece.iter()).copied().take(HEAD).collect();
            drop((share, first, rest));
            discard(body).await;
            return Err(BodyError::TooLarge { head });
        }
        if share.grow(data.len()).is_err() {
            drop((share, first, rest));
            discard(body).await;
            return Err(BodyError::Exhausted);
        }
        if length == 0 {
            first = data;
        } else {
            if rest.is_empty() {
                // As large as announced and not twice that, as growing by doubling would end up; pages that no byte
                // is written to take no memory.
                let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
                rest.reserve_exact(announced.min(limit).saturating_add(length + data.len()));
                rest.extend_from_slice(&std::mem::take(&mut first));
            }
            rest.extend_from_slice(&data);
        }
    }
    let bytes = if rest.is_empty() { first } else { Bytes::from(rest) };
    Ok(Collected { bytes, _share: share })
}

async fn discard(mut body: Body) {
    let mut discarded = 0_usize;
    while let Some(Ok(frame)) = body.frame().await {
        discarded += frame.data_ref().map_or(0, Bytes::len);
        if MOST_DISCARDED < discarded {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use prometheus_client::metrics::gauge::Gauge;

    use super::*;

    fn body(pieces: &[&'static str]) -> Body {
        let pieces: Vec<Result<Bytes, std::io::Error>> =
            pieces.iter().map(|piece| Ok(Bytes::from_static(piece.as_bytes()))).collect();
        Body::from_stream(stream::iter(pieces))
    }

    #[tokio::test]
    async fn pieces_are_joined_and_their_share_is_given_back() {
        let held = Gauge::default();
        let budget = Budget::new(100, held.clone());
        for pieces in [&["whole"][..], &["in ", "three ", "pieces"], &["", "late"], &[]] {
            let collected = read(body(pieces), 50, &budget).await.unwrap();
            assert_eq!(collected.bytes, pieces.concat());
            assert_eq!(held.get(), i64::try_from(collected.bytes.len()).unwrap());
            drop(collected);
            assert_eq!(held.get(), 0);
        }
    }

    #[tokio::test]
    async fn too_much_for_one_request_keeps_only_the_beginning() {
        let held = Gauge::default();
        let budget = Budget::new(100, held.clone());
        let error = read(body(&["0123", "4567", "89"]), 6, &budget).await.unwrap_err();
        assert!(matches!(error, BodyError::TooLarge { head } if head == b"01234567"));
        assert_eq!(held.get(), 0);
    }

    #[tokio::test]
    async fn too_much_for_all_requests_is_told_apart() {
        let held = Gauge::default();
        let budget = Budget::new(6, held.clone());
        let error = read(body(&["0123", "4567"]), 50, &budget).await.unwrap_err();
        assert!(matches!(error, BodyError::Exhausted));
        assert_eq!(held.get(), 0);
    }
}
