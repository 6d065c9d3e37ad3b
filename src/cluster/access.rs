//! Whose token it is, and whether that one may read our metrics: the API server's own answers, by TokenReview and
//! SubjectAccessReview, as other controllers ask for them.
//!
//! Answers are remembered for a short while, so that a scraper costs two requests a minute at most and a right that is
//! taken away is gone soon. A flood of made-up tokens reaches the API server a few at a time; the rest is sent away.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use k8s_openapi::api::authentication::v1::TokenReview;
use k8s_openapi::api::authentication::v1::TokenReviewSpec;
use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::api::authorization::v1::NonResourceAttributes;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::authorization::v1::SubjectAccessReviewSpec;
use kube::Api;
use kube::Client;
use kube::api::PostParams;
use thiserror::Error;
use tokio::sync::Semaphore;

use crate::cluster::trouble::describe;

/// How long an answer is believed. What is granted is asked often and rarely taken back; a right that was missing
/// should work soon after it was given.
const GRANT_HOLDS: Duration = Duration::from_mins(1);
const REFUSAL_HOLDS: Duration = Duration::from_secs(10);

/// More than there are scrapers.
const REMEMBERED: usize = 64;

/// As many tokens are asked about at a time.
const AT_A_TIME: usize = 4;

/// Both answers together must come in this time.
const PATIENCE: Duration = Duration::from_secs(4);

/// What the API server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The token's owner may.
    Granted,
    /// Nobody's token.
    Unknown,
    /// The token's owner may not.
    Forbidden {
        /// The owner.
        user: String,
    },
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum AccessError {
    /// The API server refused the question.
    #[error("asking the API server for a {review} failed: {reason}")]
    Failed {
        /// What was asked for.
        review: &'static str,
        /// What came back.
        reason: String,
    },
    /// It took too long.
    #[error("the API server has not answered within {} s", PATIENCE.as_secs())]
    Late,
    /// Too many ask at once.
    #[error("too many unknown tokens are being asked about at once")]
    Crowded,
}

/// Asks about tokens.
pub struct Access {
    client: Client,
    path: &'static str,
    asking: Semaphore,
    remembered: Mutex<Remembered>,
}

#[derive(Default)]
struct Remembered {
    answers: HashMap<String, (Instant, Answer)>,
}

impl Access {
    /// For the right to `get` the URL `path`.
    pub fn new(client: Client, path: &'static str) -> Self {
        Self { client, path, asking: Semaphore::new(AT_A_TIME), remembered: Mutex::default() }
    }

    /// Whether the owner of this token may.
    pub async fn review(&self, token: &str) -> Result<Answer, AccessError> {
        if let Some(answer) = self.remembered(|remembered| remembered.get(token, Instant::now())) {
            return Ok(answer);
        }
        let _turn = self.asking.try_acquire().map_err(|_| AccessError::Crowded)?;
        let answer =
            tokio::time::timeout(PATIENCE, self.ask(token)).await.map_err(|_| AccessError::Late)??;
        self.remembered(|remembered| remembered.put(token, answer.clone(), Instant::now()));
        Ok(answer)
    }

    async fn ask(&self, token: &str) -> Result<Answer, AccessError> {
        let failed = |review| move |error| AccessError::Failed { review, reason: describe(&error) };
        let spec = TokenReviewSpec { token: Some(token.to_owned()), ..TokenReviewSpec::default() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let review = reviews.create(&PostParams::default(), &review).await.map_err(failed("TokenReview"))?;
        let status = review.status.unwrap_or_default();
        let Some(user) = status.user.filter(|_| status.authenticated == Some(true)) else {
            return Ok(Answer::Unknown);
        };
        let name = user.username.clone().unwrap_or_default();
        let review = question(user, self.path);
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let review =
            reviews.create(&PostParams::default(), &review).await.map_err(failed("SubjectAccessReview"))?;
        let is_allowed = review.status.is_some_and(|status| status.allowed);
        Ok(if is_allowed { Answer::Granted } else { Answer::Forbidden { user: name } })
    }

    fn remembered<T>(&self, look: impl FnOnce(&mut Remembered) -> T) -> T {
        look(&mut self.remembered.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Remembered {
    fn get(&self, token: &str, now: Instant) -> Option<Answer> {
        let (since, answer) = self.answers.get(token)?;
        (now.duration_since(*since) < holds(answer)).then(|| answer.clone())
    }

    fn put(&mut self, token: &str, answer: Answer, now: Instant) {
        self.answers.retain(|_, (since, answer)| now.duration_since(*since) < holds(answer));
        if REMEMBERED <= self.answers.len() {
            // Refusals make room first: whoever makes up tokens must not push scrapers out.
            let oldest =
                self.answers.iter().min_by_key(|(_, (since, answer))| (*answer == Answer::Granted, *since));
            if let Some(oldest) = oldest.map(|(token, _)| token.clone()) {
                self.answers.remove(&oldest);
            }
        }
        self.answers.insert(token.to_owned(), (now, answer));
    }
}

const fn holds(answer: &Answer) -> Duration {
    match answer {
        Answer::Granted => GRANT_HOLDS,
        Answer::Unknown | Answer::Forbidden { .. } => REFUSAL_HOLDS,
    }
}

fn question(user: UserInfo, path: &str) -> SubjectAccessReview {
    let UserInfo { username, groups, uid, extra } = user;
    let attributes = NonResourceAttributes { path: Some(path.to_owned()), verb: Some("get".to_owned()) };
    let spec = SubjectAccessReviewSpec {
        user: username,
        groups,
        uid,
        extra,
        non_resource_attributes: Some(attributes),
        ..SubjectAccessReviewSpec::default()
    };
    SubjectAccessReview { spec, ..SubjectAccessReview::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_believed_for_a_short_while() {
        let start = Instant::now();
        let mut remembered = Remembered::default();
        remembered.put("prometheus", Answer::Granted, start);
        remembered.put("guest", Answer::Forbidden { user: "guest".into() }, start);
        let at = |seconds| start + Duration::from_secs(seconds);
        let cases = [
            ("prometheus", 59, Some(Answer::Granted)),
            ("prometheus", 60, None),
            ("guest", 9, Some(Answer::Forbidden { user: "guest".into() })),
            ("guest", 10, None),
            ("nobody", 0, None),
        ];
        for (token, second, expected) in cases {
            assert_eq!(remembered.get(token, at(second)), expected, "{token} after {second} s");
        }
    }

    #[test]
    fn made_up_tokens_fill_no_memory_and_push_no_scraper_out() {
        let start = Instant::now();
        let mut remembered = Remembered::default();
        remembered.put("prometheus", Answer::Granted, start);
        for number in 0..10 * REMEMBERED {
            remembered.put(&format!("made up {number}"), Answer::Unknown, start + Duration::from_millis(1));
        }
        assert_eq!(remembered.answers.len(), REMEMBERED);
        assert_eq!(remembered.get("prometheus", start), Some(Answer::Granted));
    }

    #[test]
    fn the_question_is_about_the_owner_with_all_groups() {
        let user = UserInfo {
            username: Some("system:serviceaccount:monitoring:prometheus".into()),
            groups: Some(vec!["system:serviceaccounts".into()]),
            ..UserInfo::default()
        };
        let spec = question(user, "/metrics").spec;
        assert_eq!(spec.user.as_deref(), Some("system:serviceaccount:monitoring:prometheus"));
        assert_eq!(spec.groups.unwrap(), ["system:serviceaccounts"]);
        let attributes = spec.non_resource_attributes.unwrap();
        assert_eq!((attributes.path.as_deref(), attributes.verb.as_deref()), (Some("/metrics"), Some("get")));
        assert_eq!(spec.resource_attributes, None);
    }
}
