//! Answers that are not an AdmissionReview: the call failed, and the caller's failure policy or retry decides.
//!
//! The API server's client repeats a call that came back with 429 or 5xx and a whole number in `Retry-After`, within
//! the call's own deadline. The body is a `Status`, whose message that client hands on to the user.

use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::Response;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::http::header::RETRY_AFTER;
use serde::Serialize;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status<'a> {
    api_version: &'static str,
    kind: &'static str,
    #[serde(rename = "status")]
    outcome: &'static str,
    message: &'a str,
    reason: &'static str,
    code: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Details {
    retry_after_seconds: u32,
}

/// 503: not in the time that the call had. Without `Retry-After`, because no time is left to come back in, and a client
/// that comes back for nothing keeps the message to itself.
pub(crate) fn unavailable(message: &str) -> Response<Body> {
    status(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message, None)
}

/// 429: too much at once, come back in `seconds`.
pub(crate) fn too_many(message: &str, seconds: u32) -> Response<Body> {
    let details = Details { retry_after_seconds: seconds };
    let mut response = status(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message, Some(details));
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    response
}

/// 500: our fault; nothing says that trying again helps.
pub(crate) fn internal(message: &str) -> Response<Body> {
    status(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message, None)
}

/// 400: not a question that we could answer, not even with a refusal.
pub(crate) fn bad_request(message: &str) -> Response<Body> {
    status(StatusCode::BAD_REQUEST, "BadRequest", message, None)
}

fn status(code: StatusCode, reason: &'static str, message: &str, details: Option<Details>) -> Response<Body> {
    let status = Status {
        api_version: "v1",
        kind: "Status",
        outcome: "Failure",
        message,
        reason,
        code: code.as_u16(),
        details,
    };
    json(code, &status)
}

/// Any answer in JSON.
pub(crate) fn json(code: StatusCode, body: &impl Serialize) -> Response<Body> {
    // Our own types have string keys and no failing serialisers; should that change, an empty 500 is still an answer.
    let (code, text) = match serde_json::to_vec(body) {
        Ok(text) => (code, text),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, Vec::new()),
    };
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
