//! `POST /mutate` and `POST /validate`: from the bytes of a call to the bytes of its answer.
//!
//! Whatever arrives is answered. With the call's UID, however damaged the rest, the answer is an `AdmissionReview`;
//! without it, HTTP 400. Mutating never refuses: what is wrong with an object is the validating call's to say.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request as HttpRequest;
use axum::extract::State;
use axum::http::Response;
use axum::http::StatusCode;
use axum::routing::post;
use tokio::time::Instant;
use tracing::debug;
use tracing::info;
use tracing::warn;

use crate::admission::Decision;
use crate::admission::Operation;
use crate::admission::Request;
use crate::admission::violation;
use crate::admission::violation::Rule;
use crate::admission::violation::Violation;
use crate::telemetry::metrics::webhook::WebhookMetrics;
use crate::webhook::body;
use crate::webhook::body::BodyError;
use crate::webhook::budget::Budget;
use crate::webhook::decider::Decider;
use crate::webhook::decider::NotNow;
use crate::webhook::limits::Limits;
use crate::webhook::refusal;
use crate::webhook::reply::Cause;
use crate::webhook::reply::Details;
use crate::webhook::reply::Reply;
use crate::webhook::review::Review;
use crate::webhook::review::scan_for_uid;

/// What an answer needs to get back to the API server before that gives up.
const WAY_BACK: Duration = Duration::from_millis(200);

/// The API server's own time limit where a webhook configuration names none.
const DEFAULT_TIME: Duration = Duration::from_secs(10);

/// The longest that a webhook configuration may name.
const LONGEST_TIME: Duration = Duration::from_secs(30);

/// When to come back, in seconds. The API server's client repeats within the call's own time limit.
const RETRY_SECONDS: u32 = 1;

/// A call that cannot be decided on yet is looked at again this often, as long as its caller waits,
const LOOK_AGAIN: Duration = Duration::from_millis(300);

/// and is told the reason this long before its time is over.
const LAST_WORD: Duration = Duration::from_millis(300);

/// What both endpoints share.
struct Desk {
    decider: Arc<Decider>,
    budget: Budget,
    max_body: usize,
    metrics: WebhookMetrics,
}

#[derive(Clone, Copy)]
enum Endpoint {
    Mutate,
    Validate,
}

impl Endpoint {
    fn name(self) -> &'static str {
        match self {
            Self::Mutate => "mutate",
            Self::Validate => "validate",
        }
    }
}

/// An answer, and how it is counted.
struct Answer {
    response: Response<Body>,
    decision: &'static str,
    rule: &'static str,
}

impl Answer {
    fn new(decision: &'static str, response: Response<Body>) -> Self {
        Self { response, decision, rule: "" }
    }

    fn reply(decision: &'static str, reply: &Reply) -> Self {
        Self::new(decision, refusal::json(StatusCode::OK, reply))
    }
}

/// The webhook's routes.
pub fn router(decider: Arc<Decider>, limits: &Limits, metrics: WebhookMetrics) -> Router {
    let budget = Budget::new(limits.max_inflight_body, metrics.body_bytes.clone());
    let desk = Arc::new(Desk { decider, budget, max_body: limits.max_body, metrics });
    Router::new()
        .route("/mutate", post(|State(desk), call| answer(desk, Endpoint::Mutate, call)))
        .route("/validate", post(|State(desk), call| answer(desk, Endpoint::Validate, call)))
        .with_state(desk)
}

async fn answer(desk: Arc<Desk>, endpoint: Endpoint, call: HttpRequest) -> Response<Body> {
    let started = Instant::now();
    let time = time_limit(call.uri().query());
    let last_word = started + time.saturating_sub(LAST_WORD);
    let answered = tokio::time::timeout(time, desk.answer(endpoint, call.into_body(), last_word)).await;
    let answer = answered.unwrap_or_else(|_| {
        desk.metrics.shed("deadline");
        warn!(
            endpoint = endpoint.name(),
            seconds = time.as_secs_f64(),
            "A call ran out of its own time; look at the API server's load and at timeoutSeconds"
        );
        let message = "pinhole could not decide within the call's time limit; try again";
        Answer::new("failed", refusal::unavailable(message))
    });
    desk.metrics.answered(endpoint.name(), answer.decision, answer.rule, started.elapsed());
    answer.response
}

impl Desk {
    async fn answer(&self, endpoint: Endpoint, body: Body, last_word: Instant) -> Answer {
        let collected = body::read(body, self.max_body, &self.budget).await;
        let review = match collected {
            Ok(collected) => Review::parse(&collected.bytes).map_err(|error| (error.to_string(), error.uid)),
            Err(error) => return self.without_body(endpoint, error),
        };
        let review = match review {
            Ok(review) => review,
            Err((problem, uid)) => return unreadable(endpoint, problem, uid),
        };
        match endpoint {
            Endpoint::Mutate => self.mutate(review),
            Endpoint::Validate => self.validate(review, last_word).await,
        }
    }

    fn without_body(&self, endpoint: Endpoint, error: BodyError) -> Answer {
        match error {
            BodyError::TooLarge { head } => {
                let problem = format!(
                    "the call is larger than {} bytes (--max-body-bytes), more than the API server stores; \
                     make the object smaller",
                    self.max_body
                );
                warn!(
                    endpoint = endpoint.name(),
                    limit = self.max_body,
                    "A call's body is too large to be read"
                );
                too_large(endpoint, problem, scan_for_uid(&head))
            }
            BodyError::Exhausted => {
                self.metrics.shed("body-budget");
                warn!(
                    endpoint = endpoint.name(),
                    "Too many bytes of calls at once, so one was sent away to come back in {RETRY_SECONDS} s; \
                     if this goes on, raise --max-inflight-body-bytes and the memory limit"
                );
                let message = "pinhole has too many large calls at once; try again";
                Answer::new("failed", refusal::too_many(message, RETRY_SECONDS))
            }
            BodyError::Broken(error) => {
                debug!(%error, "A call's body ended early");
                Answer::new("failed", refusal::bad_request("the body ended before its announced length"))
            }
        }
    }

    fn mutate(&self, review: Review) -> Answer {
        let (uid, request) = split(review);
        let Some(patch) = self.decider.mutate(&request) else {
            return Answer::reply("allowed", &Reply::allowed(uid, Vec::new()));
        };
        match Reply::patched(uid, &patch) {
            Ok(reply) => Answer::reply("patched", &reply),
            Err(error) => {
                warn!(%error, "A patch cannot be written as JSON; the object is left as it is. Please report this");
                Answer::new(
                    "failed",
                    refusal::internal("pinhole could not write its patch; its log has the reason"),
                )
            }
        }
    }

    /// Decides as soon as it can be decided, and at the latest at `last_word` says why it cannot. Sending the caller away
    /// to come back would end in a time limit of its own, and the user would read nothing else.
    async fn decide(&self, request: &Request, dry_run: bool, last_word: Instant) -> Result<Decision, NotNow> {
        loop {
            let not_now = match self.decider.decide(request, dry_run).await {
                Err(not_now) if !not_now.is_lasting() && Instant::now() < last_word => not_now,
                decided => return decided,
            };
            match not_now {
                // Whether it has started or the time is over, the next decision says.
                NotNow::Starting(_) => {
                    let _ = tokio::time::timeout_at(last_word, self.decider.started()).await;
                }
                NotNow::LiveRead(_) | NotNow::Claims(_) | NotNow::NoOwner(_) | NotNow::Unsettled => {
                    tokio::time::sleep_until(last_word.min(Instant::now() + LOOK_AGAIN)).await;
                }
            }
        }
    }

    async fn validate(&self, review: Review, last_word: Instant) -> Answer {
        let dry_run = review.dry_run;
        let shown = Shown {
            kind: review.kind.kind.clone(),
            group: review.kind.group.clone(),
            name: review.shown_name().to_owned(),
        };
        let (uid, request) = split(review);
        match self.decide(&request, dry_run, last_word).await {
            Ok(decision) if decision.is_granted() => {
                debug!(%uid, kind = shown.kind, namespace = request.namespace, name = shown.name, "Allowed");
                Answer::reply("allowed", &Reply::allowed(uid, decision.warnings))
            }
            Ok(decision) => deny(uid, shown, &request.namespace, dry_run, decision),
            // What repeating cannot repair is said at once.
            Err(not_now) if not_now.is_lasting() => {
                warn!(%uid, kind = shown.kind, namespace = request.namespace, name = shown.name,
                      "Not decided: {not_now}");
                Answer::new("failed", refusal::internal(&not_now.to_string()))
            }
            Err(not_now) => {
                self.metrics.shed(not_now.reason());
                warn!(%uid, kind = shown.kind, namespace = request.namespace, name = shown.name,
                      "Not decided in the call's time: {not_now}");
                Answer::new("failed", refusal::unavailable(&not_now.to_string()))
            }
        }
    }
}

/// How a refusal names its object.
struct Shown {
    kind: String,
    group: String,
    name: String,
}

fn deny(uid: String, shown: Shown, namespace: &str, dry_run: bool, decision: Decision) -> Answer {
    let Decision { violations, warnings, mappings: _, automatic: _, pools: _, evidence: _ } = decision;
    let mut rules: Vec<&str> = violations.iter().map(|violation| violation.rule.name()).collect();
    let first = rules.first().copied().unwrap_or_default();
    rules.sort_unstable();
    rules.dedup();
    let rules = rules.join(",");
    info!(%uid, kind = shown.kind, namespace, name = shown.name, rules, dry_run, "Refused");

    let message = violation::summary(&violations);
    let causes = violations.iter().map(cause).collect();
    let details = Details { name: shown.name, group: shown.group, kind: shown.kind, causes };
    let reply = Reply::denied(uid, message, details, rules, warnings);
    let rule = Rule::ALL.into_iter().map(Rule::name).find(|name| *name == first).unwrap_or_default();
    Answer { rule, ..Answer::reply("denied", &reply) }
}

fn cause(violation: &Violation) -> Cause {
    let reason = match violation.rule {
        Rule::Syntax | Rule::Address | Rule::InUse | Rule::Conflict => "FieldValueInvalid",
        Rule::Duplicate => "FieldValueDuplicate",
        Rule::Restricted
        | Rule::Protected
        | Rule::Namespace
        | Rule::HostNetwork
        | Rule::Workload
        | Rule::Pool => "FieldValueForbidden",
    };
    Cause { reason, message: violation.message(), field: violation.field.clone() }
}

fn unreadable(endpoint: Endpoint, problem: String, uid: Option<String>) -> Answer {
    warn!(
        endpoint = endpoint.name(),
        uid = uid.as_deref().unwrap_or("unknown"),
        "A call cannot be read: {problem}"
    );
    let Some(uid) = uid else { return Answer::new("unreadable", refusal::bad_request(&problem)) };
    let reply = match endpoint {
        Endpoint::Mutate => no_defaults(uid),
        Endpoint::Validate => Reply::unreadable(uid, problem),
    };
    Answer::reply("unreadable", &reply)
}

fn too_large(endpoint: Endpoint, problem: String, uid: Option<String>) -> Answer {
    let Some(uid) = uid else { return Answer::new("unreadable", refusal::bad_request(&problem)) };
    let reply = match endpoint {
        Endpoint::Mutate => no_defaults(uid),
        Endpoint::Validate => Reply::too_large(uid, problem),
    };
    Answer::reply("unreadable", &reply)
}

fn no_defaults(uid: String) -> Reply {
    Reply::allowed(uid, vec!["pinhole could not read this object and wrote no defaults into it".to_owned()])
}

fn split(review: Review) -> (String, Request) {
    let operation = match review.operation.as_str() {
        "CREATE" => Operation::Create,
        "UPDATE" => Operation::Update,
        _ => Operation::Other,
    };
    let Review { uid, namespace, object, old_object, .. } = review;
    (uid, Request { operation, namespace, object, old_object })
}

/// The time for an answer: what the API server says is left, less the way back.
fn time_limit(query: Option<&str>) -> Duration {
    let named = query.into_iter().flat_map(|query| query.split('&')).find_map(|pair| {
        let seconds = pair.strip_prefix("timeout=")?.strip_suffix('s')?;
        seconds.parse().ok().map(Duration::from_secs)
    });
    named.unwrap_or(DEFAULT_TIME).min(LONGEST_TIME).saturating_sub(WAY_BACK)
}

#[cfg(test)]
mod tests;
