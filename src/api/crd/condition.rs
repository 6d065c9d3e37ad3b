//! Conditions, as every Kubernetes API has them, and the one way to change one.

use k8s_openapi::jiff::Timestamp;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::Serialize;

/// One condition of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What the condition is about: Accepted, Programmed, Ready, ForwardBlocked, ...
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 316))]
    pub type_: String,
    /// True, False or Unknown.
    pub status: ConditionStatus,
    /// One word for programs: why the condition has this status.
    #[schemars(length(min = 1, max = 128))]
    pub reason: String,
    /// A sentence for people: what is so, and what to do if something is wrong.
    #[serde(default)]
    #[schemars(length(max = 4096))]
    pub message: String,
    /// When the status last changed, in UTC.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub last_transition_time: Timestamp,
    /// The generation of the object that the condition was seen on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Nobody knows yet.
    Unknown,
}

/// What is said of a condition: its type, whether it holds, why in one word, and a sentence.
pub type Said<'a> = (&'static str, bool, &'a str, String);

impl Condition {
    /// The conditions of an object of which this is said now, and `before` was.
    pub fn all<'a>(
        said: impl IntoIterator<Item = Said<'a>>,
        before: &[Self],
        generation: Option<i64>,
        now: Timestamp,
    ) -> Vec<Self> {
        let mut conditions = Vec::new();
        for (type_, holds, reason, message) in said {
            conditions.extend(Self::find(before, type_).cloned());
            let condition = Self {
                type_: type_.to_owned(),
                status: if holds { ConditionStatus::True } else { ConditionStatus::False },
                reason: reason.to_owned(),
                message,
                last_transition_time: now,
                observed_generation: generation,
            };
            condition.set(&mut conditions);
        }
        conditions
    }

    /// The one of this type.
    pub fn find<'a>(conditions: &'a [Self], type_: &str) -> Option<&'a Self> {
        conditions.iter().find(|condition| condition.type_ == type_)
    }

    /// Puts this condition among the others. The time of the last transition stays where the status does.
    pub fn set(self, conditions: &mut Vec<Self>) {
        match conditions.iter_mut().find(|condition| condition.type_ == self.type_) {
            Some(found) if found.status == self.status => {
                *found = Self { last_transition_time: found.last_transition_time, ..self };
            }
            Some(found) => *found = self,
            None => conditions.push(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programmed(status: ConditionStatus, reason: &str, second: i64) -> Condition {
        Condition {
            type_: "Programmed".to_owned(),
            status,
            reason: reason.to_owned(),
            message: String::new(),
            last_transition_time: Timestamp::from_second(second).unwrap(),
            observed_generation: None,
        }
    }

    #[test]
    fn the_time_of_a_transition_moves_only_when_the_status_does() {
        let mut conditions = Vec::new();
        let steps = [
            (ConditionStatus::False, "Waiting", 1, 1),
            (ConditionStatus::False, "NoPod", 2, 1),
            (ConditionStatus::True, "Programmed", 3, 3),
            (ConditionStatus::True, "Programmed", 4, 3),
        ];
        for (status, reason, now, since) in steps {
            programmed(status, reason, now).set(&mut conditions);
            assert_eq!(conditions, [programmed(status, reason, since)]);
        }
    }
}
