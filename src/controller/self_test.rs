//! Proves, minute by minute, that the webhook in service is asked and decides.
//!
//! A webhook can be healthy and out of service: its configuration was deleted or edited, an API server does not trust it or
//! cannot reach it. So the leader has an API server try an object that nobody but the webhook refuses, as a dry run:
//! nothing is stored, whatever comes of it. Nothing is mended either: the configurations belong to the operator.
//!
//! The object is a Pinhole of a pod that asks by annotation ([`crate::admission`] refuses that). It goes through the entry of the
//! configuration that judges pods, and through no other; and the right to make Pinholes is one that the controller has anyway; whoever steals its token
//! gets no right to make pods by it.

use std::time::Duration;

use serde_json::Value;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing::warn;

use crate::api::keys;
use crate::cluster::reader::Creation;
use crate::cluster::reader::Reader;
use crate::telemetry::metrics::self_test::SelfTestMetrics;

/// How often it is tried.
const PERIOD: Duration = Duration::from_mins(1);

/// How soon again after a try that proved nothing.
const AGAIN: Duration = Duration::from_secs(10);

/// What the object is called in the log of whoever refuses it.
const NAME: &str = "pinhole-self-test";

/// What a try has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Shown {
    /// The webhook refuses what only it refuses.
    Decides,
    /// It was not asked.
    NotAsked,
    /// It was asked, and the API server got no answer.
    NoAnswer(String),
    /// The API server did not come to ask it.
    Untested(String),
}

/// Tries the webhook.
pub struct SelfTest {
    /// Asks the API server.
    pub reader: Reader,
    /// The namespace in which it is tried.
    pub namespace: String,
    /// Whether this process leads.
    pub leading_rx: watch::Receiver<bool>,
    /// Where it is said whether the webhook is known not to answer.
    pub silent_tx: watch::Sender<bool>,
    /// What is counted.
    pub metrics: SelfTestMetrics,
}

impl SelfTest {
    /// Tries it until it is stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut before = None;
        loop {
            let leads = *self.leading_rx.borrow_and_update();
            let mut pause = PERIOD;
            if leads {
                let path = format!("/apis/pinhole.dev/v1alpha1/namespaces/{}/pinholes", self.namespace);
                let shown = judge(self.reader.dry_run(&path, &object()).await);
                self.metrics.tried(shown.outcome(), shown == Shown::Decides);
                if shown != Shown::Decides {
                    pause = AGAIN;
                }
                self.silent_tx.send_replace(matches!(shown, Shown::NoAnswer(_)));
                self.tell(&mut before, shown);
            } else {
                self.silent_tx.send_replace(false);
                self.metrics.not_leading();
                before = None;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                Ok(()) = self.leading_rx.changed() => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Says what is new.
    fn tell(&self, before: &mut Option<Shown>, shown: Shown) {
        let is_new = before.as_ref().map(Shown::outcome) != Some(shown.outcome());
        if is_new {
            match shown.problem() {
                None => info!(namespace = self.namespace, "The self-test passes: the webhook decides"),
                Some(problem) => warn!(namespace = self.namespace, "The self-test fails: {problem}"),
            }
        }
        *before = Some(shown);
    }
}

impl Shown {
    /// The label of metrics.
    const fn outcome(&self) -> &'static str {
        match self {
            Self::Decides => "decided",
            Self::NotAsked => "not-asked",
            Self::NoAnswer(_) => "no-answer",
            Self::Untested(_) => "untested",
        }
    }

    /// What is wrong, and what to do.
    fn problem(&self) -> Option<String> {
        match self {
            Self::Decides => None,
            Self::NotAsked => Some(
                "the API server accepts what only the webhook refuses, so requests for ports are not judged at kubectl apply; \
                 look at the ValidatingWebhookConfiguration (kubectl pinhole doctor), and apply the chart again"
                    .to_owned(),
            ),
            Self::NoAnswer(reason) => Some(format!(
                "the API server gets no answer from the webhook: {reason}; kubectl pinhole doctor says what is in its way"
            )),
            Self::Untested(reason) => Some(format!(
                "the API server could not be made to ask the webhook: {reason}; name a namespace where a Pinhole can be made \
                 with --self-test-namespace"
            )),
        }
    }
}

/// What the answer to the dry run shows.
fn judge(creation: Creation) -> Shown {
    if creation.is_our_refusal() {
        return Shown::Decides;
    }
    let is_failed_call = creation.is_failed_call();
    match creation {
        Creation::Accepted(_) => Shown::NotAsked,
        Creation::Refused { message, .. } if is_failed_call => Shown::NoAnswer(message),
        Creation::Refused { code, message } => Shown::Untested(format!("HTTP {code}: {message}")),
        Creation::Unanswered(reason) => Shown::Untested(reason),
    }
}

/// A Pinhole that is right in every other respect.
fn object() -> Value {
    json!({
        "apiVersion": "pinhole.dev/v1alpha1",
        "kind": "Pinhole",
        "metadata": {"name": NAME, "annotations": {keys::EXPOSE: "is the webhook there?"}},
        "spec": {"target": {"pod": NAME}, "ports": [{"port": 1}], "suspended": true},
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission;
    use crate::admission::Operation;
    use crate::admission::Request;
    use crate::admission::World;
    use crate::admission::index::Index;
    use crate::admission::policy::Policy;
    use crate::admission::violation;
    use crate::api::crd::pinhole::Pinhole;

    #[test]
    fn the_webhook_refuses_the_object_whatever_else_it_knows() {
        let (policy, index) = (Policy::default(), Index::new(Policy::default().into()));
        let request = Request {
            operation: Operation::Create,
            namespace: "default".to_owned(),
            object: Some(serde_json::from_value(object()).unwrap()),
            old_object: None,
        };
        let decision = admission::decide(&request, &World { policy: &policy, index: &index });
        assert_eq!(
            violation::summary(&decision.violations),
            "metadata.annotations[pinhole.dev/expose]: is the webhook there?: is not read here: a Pinhole names its ports in \
             spec.ports, and a pod in this annotation"
        );
        assert!(decision.evidence.is_empty(), "no read is needed for it");
        assert!(serde_json::from_value::<Pinhole>(object()).unwrap().spec.suspended);
    }

    #[test]
    fn only_a_refusal_by_the_webhook_itself_passes() {
        let refused = |code, message: &str| Creation::Refused { code, message: message.to_owned() };
        let cases = [
            (refused(422, "admission webhook \"pods.pinhole.dev\" denied the request: no"), "decided"),
            (refused(422, "admission webhook \"pods.example.com\" denied the request: no"), "untested"),
            (
                refused(
                    500,
                    "Internal error occurred: failed calling webhook \"pods.pinhole.dev\": no endpoints available",
                ),
                "no-answer",
            ),
            (
                refused(500, "Internal error occurred: failed calling webhook \"x.example.com\": EOF"),
                "untested",
            ),
            (refused(404, "the server could not find the requested resource"), "untested"),
            (Creation::Accepted(Value::Null), "not-asked"),
            (Creation::Unanswered("connection refused".to_owned()), "untested"),
        ];
        for (creation, outcome) in cases {
            let shown = judge(creation.clone());
            assert_eq!(shown.outcome(), outcome, "{creation:?}");
            assert_eq!(shown.problem().is_none(), outcome == "decided");
        }
    }
}
