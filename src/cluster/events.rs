//! Events on pods, on their root owners and on users' Pinholes: what became of the ports that each asks for, for
//! `kubectl describe`.
//!
//! Events are news, not state. They are written beside the work and never in its way: offering one never waits, a few
//! are written per second, and one that cannot be written is given up after some attempts. The name of a warning is a
//! digest of what it says, so that a process that starts anew does not say it twice.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::Client;
use kube::api::PostParams;
use tokio::sync::mpsc;
use tracing::debug;
use tracing::warn;

use crate::api::object::Kind;
use crate::api::object::Object;
use crate::api::object::OwnerReference;
use crate::cluster::trouble::describe;
use crate::model::digest::fnv1a;
use crate::model::holder::ObjectName;

/// Who says it, in `kubectl describe`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Speaker {
    /// The part of Pinhole.
    pub controller: &'static str,
    /// Which one of them: the node, or the replica.
    pub instance: String,
}

impl Speaker {
    /// The agent of a node.
    pub fn agent(node_name: &str) -> Self {
        Self { controller: "pinhole.dev/agent", instance: node_name.to_owned() }
    }

    /// A replica of the controller.
    pub fn controller(identity: &str) -> Self {
        Self { controller: "pinhole.dev/controller", instance: identity.to_owned() }
    }
}

/// Events that wait to be written. What comes on top is dropped and counted.
const QUEUE: usize = 256;

/// At most this many events are written per second and node.
const PER_SECOND: u32 = 10;

const ATTEMPTS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// The longest text that an Event holds.
const LONGEST_NOTE: usize = 1024;

/// The longest name of an object that leaves room for a digest in the Event's name.
const LONGEST_NAME: usize = 253 - 17;

/// What became of somebody's ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// They lead there now.
    Programmed,
    /// Somebody else has them.
    PortTaken,
    /// They cannot be served, or may not be.
    NotProgrammed,
    /// No pool has one free.
    NoFreePort,
}

impl Reason {
    /// The reason as `kubectl describe` shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Programmed => "Programmed",
            Self::PortTaken => "PortTaken",
            Self::NotProgrammed => "NotProgrammed",
            Self::NoFreePort => "NoFreePort",
        }
    }

    /// The reason that a condition names by this word.
    pub fn of_condition(word: &str) -> Self {
        [Self::Programmed, Self::PortTaken, Self::NoFreePort]
            .into_iter()
            .find(|reason| reason.name() == word)
            .unwrap_or(Self::NotProgrammed)
    }

    const fn kind(self) -> &'static str {
        match self {
            Self::Programmed => "Normal",
            Self::PortTaken | Self::NotProgrammed | Self::NoFreePort => "Warning",
        }
    }
}

/// The object that an Event is about, as `kubectl describe` looks for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Regarding {
    /// Its `apiVersion`.
    pub api_version: Arc<str>,
    /// Its kind.
    pub kind: Arc<str>,
    /// Its namespace and name.
    pub object: ObjectName,
    /// Its UID.
    pub uid: Arc<str>,
}

impl Regarding {
    /// The object of this kind, name and UID.
    pub fn new(kind: Kind, object: ObjectName, uid: impl Into<Arc<str>>) -> Self {
        Self { api_version: kind.api_version().into(), kind: kind.name().into(), object, uid: uid.into() }
    }

    /// A pod.
    pub fn pod(pod: &Object) -> Self {
        let name = ObjectName::new(pod.metadata.namespace.as_str(), pod.metadata.name.as_str());
        Self::new(Kind::Pod, name, pod.metadata.uid.as_str())
    }

    /// The owner, of whichever kind, of an object in `namespace`.
    pub fn owner(namespace: &Arc<str>, owner: &OwnerReference) -> Self {
        Self {
            api_version: owner.api_version.as_str().into(),
            kind: owner.kind.as_str().into(),
            object: ObjectName::new(Arc::clone(namespace), owner.name.as_str()),
            uid: owner.uid.as_str().into(),
        }
    }
}

impl fmt::Display for Regarding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.object)
    }
}

/// Something to say about an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectEvent {
    /// The object.
    pub regarding: Regarding,
    /// What happened.
    pub reason: Reason,
    /// What a reader should know.
    pub note: String,
}

/// How an event ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It can be read now.
    Written,
    /// It was given up.
    GivenUp,
}

/// Where events are offered.
#[derive(Clone, Debug)]
pub struct Events {
    event_tx: mpsc::Sender<ObjectEvent>,
}

impl Events {
    /// Offers an event; hands it back when too many wait already.
    pub fn offer(&self, event: ObjectEvent) -> Result<(), ObjectEvent> {
        self.event_tx.try_send(event).map_err(|full| match full {
            mpsc::error::TrySendError::Full(event) | mpsc::error::TrySendError::Closed(event) => event,
        })
    }
}

/// The place to offer events, and where they come out.
pub fn channel() -> (Events, mpsc::Receiver<ObjectEvent>) {
    // The loop of an agent, or loops of the controller -> the writer below.
    let (event_tx, event_rx) = mpsc::channel(QUEUE);
    (Events { event_tx }, event_rx)
}

/// Writes events until nobody can offer one any more.
pub async fn write(
    client: Client,
    speaker: Speaker,
    mut event_rx: mpsc::Receiver<ObjectEvent>,
    mut observer: impl FnMut(Outcome),
) {
    let mut pace = tokio::time::interval(Duration::from_secs(1) / PER_SECOND);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut is_failing = false;
    while let Some(event) = event_rx.recv().await {
        pace.tick().await;
        let api: Api<Event> = Api::namespaced(client.clone(), &event.regarding.object.namespace);
        let body = body(&event, &speaker, Timestamp::now());
        match create(&api, &body).await {
            Ok(()) => {
                is_failing = false;
                observer(Outcome::Written);
            }
            Err(reason) => {
                observer(Outcome::GivenUp);
                // One warning for a time of trouble: the traffic flows, only the news of it is missing.
                if !std::mem::replace(&mut is_failing, true) {
                    warn!(object = %event.regarding, event = event.reason.name(), note = event.note, reason,
                        "Cannot write Events; pods' owners do not hear of their ports until this is solved");
                }
            }
        }
    }
}

async fn create(api: &Api<Event>, body: &Event) -> Result<(), String> {
    let mut pause = FIRST_PAUSE;
    let mut attempt = 1;
    loop {
        let answer = tokio::time::timeout(ANSWER_PATIENCE, api.create(&PostParams::default(), body)).await;
        let (reason, is_final) = match answer {
            Ok(Ok(_)) => return Ok(()),
            // It was said before and can still be read.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => return Ok(()),
            Ok(Err(error)) => {
                let refused = |status: &kube::core::Status| status.code < 500 && status.code != 429;
                let is_refused = matches!(&error, kube::Error::Api(status) if refused(status));
                (describe(&error), is_refused)
            }
            Err(_) => ("the API server took too long to answer".to_owned(), false),
        };
        if is_final || attempt == ATTEMPTS {
            return Err(reason);
        }
        debug!(attempt, reason, "Could not write an Event; trying again");
        tokio::time::sleep(pause).await;
        pause *= 2;
        attempt += 1;
    }
}

fn body(event: &ObjectEvent, speaker: &Speaker, now: Timestamp) -> Event {
    let Regarding { api_version, kind, object, uid } = &event.regarding;
    Event {
        action: Some("Program".to_owned()),
        deprecated_count: None,
        deprecated_first_timestamp: None,
        deprecated_last_timestamp: None,
        deprecated_source: None,
        event_time: Some(MicroTime(now)),
        metadata: ObjectMeta {
            name: Some(name(event, now)),
            namespace: Some(object.namespace.to_string()),
            ..ObjectMeta::default()
        },
        note: Some(cut(&event.note)),
        reason: Some(event.reason.name().to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some(api_version.to_string()),
            kind: Some(kind.to_string()),
            name: Some(object.name.to_string()),
            namespace: Some(object.namespace.to_string()),
            uid: Some(uid.to_string()),
            ..ObjectReference::default()
        }),
        related: None,
        reporting_controller: Some(speaker.controller.to_owned()),
        reporting_instance: Some(speaker.instance.chars().take(128).collect()),
        series: None,
        type_: Some(event.reason.kind().to_owned()),
    }
}

/// A warning is the same however often it is said; being programmed is news every time.
fn name(event: &ObjectEvent, now: Timestamp) -> String {
    let time = match event.reason {
        Reason::Programmed => now.as_nanosecond(),
        Reason::PortTaken | Reason::NotProgrammed | Reason::NoFreePort => 0,
    };
    let Regarding { object, uid, .. } = &event.regarding;
    let said = format!("{uid} {} {} {time}", event.reason.name(), event.note);
    let object: String = object.name.chars().take(LONGEST_NAME).collect();
    format!("{}.{:016x}", object.trim_end_matches(['.', '-']), fnv1a(said.as_bytes()))
}

fn cut(note: &str) -> String {
    const MORE: &str = "...";
    if note.len() <= LONGEST_NOTE {
        return note.to_owned();
    }
    let end = note.floor_char_boundary(LONGEST_NOTE - MORE.len());
    format!("{}{MORE}", note.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(reason: Reason, note: &str) -> ObjectEvent {
        let regarding = Regarding::new(Kind::Pod, ObjectName::new("mail", "mx"), "u1");
        ObjectEvent { regarding, reason, note: note.into() }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn an_event_names_its_pod_what_happened_and_where() {
        let event = event(Reason::Programmed, "203.0.113.7:25/tcp -> 10.244.1.9:25 on node-1");
        let body = body(&event, &Speaker::agent("node-1"), at(1));
        let regarding = body.regarding.unwrap();
        assert_eq!(regarding.kind.as_deref(), Some("Pod"));
        assert_eq!(regarding.api_version.as_deref(), Some("v1"));
        assert_eq!(regarding.uid.as_deref(), Some("u1"));
        assert_eq!(body.type_.as_deref(), Some("Normal"));
        assert_eq!(body.reason.as_deref(), Some("Programmed"));
        assert_eq!(body.note.as_deref(), Some("203.0.113.7:25/tcp -> 10.244.1.9:25 on node-1"));
        assert_eq!(body.reporting_instance.as_deref(), Some("node-1"));
    }

    #[test]
    fn an_owner_of_a_kind_that_we_do_not_know_is_named_as_its_pod_names_it() {
        let owner = serde_json::json!({"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "name": "web", "uid": "u7",
            "controller": true});
        let regarding = Regarding::owner(&"shop".into(), &serde_json::from_value(owner).unwrap());
        assert_eq!(regarding.to_string(), "Rollout shop/web");
        let event = ObjectEvent { regarding, ..event(Reason::NoFreePort, "x") };
        let regarding = body(&event, &Speaker::controller("c-1"), at(1)).regarding.unwrap();
        assert_eq!(regarding.api_version.as_deref(), Some("argoproj.io/v1alpha1"));
        assert_eq!(regarding.kind.as_deref(), Some("Rollout"));
        assert_eq!(regarding.uid.as_deref(), Some("u7"));
    }

    #[test]
    fn conditions_and_events_have_one_word_for_one_thing() {
        for reason in [Reason::Programmed, Reason::PortTaken, Reason::NoFreePort, Reason::NotProgrammed] {
            assert_eq!(Reason::of_condition(reason.name()), reason);
        }
        assert_eq!(Reason::of_condition("Refused"), Reason::NotProgrammed);
    }

    #[test]
    fn r16_a_warning_has_one_name_however_often_it_is_said() {
        let taken = event(Reason::PortTaken, "80/tcp: is served for Deployment mail/web");
        assert_eq!(name(&taken, at(1)), name(&taken, at(2)));
        assert_ne!(name(&taken, at(1)), name(&event(Reason::PortTaken, "81/tcp: is served"), at(1)));
        let programmed = event(Reason::Programmed, "x");
        assert_ne!(name(&programmed, at(1)), name(&programmed, at(2)));
    }

    #[test]
    fn names_and_notes_of_any_length_fit() {
        let mut long = event(Reason::NotProgrammed, &"é".repeat(1000));
        long.regarding.object = ObjectName::new("mail", "a".repeat(253));
        let body = body(&long, &Speaker::agent("node-1"), at(1));
        assert!(body.metadata.name.unwrap().len() <= 253);
        let note = body.note.unwrap();
        assert!(note.len() <= LONGEST_NOTE && note.ends_with("..."), "{}", note.len());
    }

    #[tokio::test]
    async fn r42_offering_never_waits_and_hands_back_what_is_too_much() {
        let (events, mut event_rx) = channel();
        let fits = (0..QUEUE + 5).filter(|_| events.offer(event(Reason::PortTaken, "x")).is_ok()).count();
        assert_eq!(fits, QUEUE);
        event_rx.recv().await.unwrap();
        assert!(events.offer(event(Reason::PortTaken, "x")).is_ok());
    }
}
