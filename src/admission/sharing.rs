//! Whether further pods of a holder are meant to stand by behind its ports: the annotation `pinhole.dev/sharing`.
//!
//! One pod at a time is served whatever it says. `ActiveStandby` says that the others are meant, and `Exclusive` that there should
//! be none; a pod of a rollout that waits for its turn is none of those.

use std::collections::BTreeMap;

use crate::admission::subject::Subject;
use crate::admission::violation::Rule;
use crate::admission::violation::Violation;
use crate::admission::wanted::Located;
use crate::admission::word;
use crate::api::crd::pinhole::Sharing;
use crate::api::keys;
use crate::api::object::Kind;
use crate::model::mapping::Address;

/// What these annotations say, if anything that can be read.
pub fn of(annotations: &BTreeMap<String, String>) -> Option<Sharing> {
    let text = annotations.get(keys::SHARING)?;
    Sharing::ALL.into_iter().find(|sharing| sharing.name() == text)
}

/// The first of these that all pods of a template ask for, wherever they run: a port of a fixed address that does not go by the
/// ordinal.
pub(crate) fn shared(entries: &[Located]) -> Option<&Located> {
    entries.iter().find(|entry| entry.mapping.address() != Address::Node && entry.ordinal.is_none())
}

/// What is wrong with the annotation, or with a template that makes several pods for a port that should have one.
pub(crate) fn violation(subject: &Subject<'_>, entries: &[Located]) -> Option<Violation> {
    let unreadable = word::violation(subject, keys::SHARING, Sharing::ALL.map(Sharing::name));
    unreadable.or_else(|| {
        let is_exclusive = of(&subject.metadata.annotations) == Some(Sharing::Exclusive);
        let mapping = &shared(entries).filter(|_| is_exclusive)?.mapping;
        let makes = makes_several(subject)?;
        let problem = format!(
            "keeps {mapping} to one pod, and {makes}; ask for one, or write {} if the others are to stand by",
            Sharing::ActiveStandby.name()
        );
        Some(Violation {
            field: format!("{}[{}]", subject.annotations_path(), keys::SHARING),
            value: Sharing::Exclusive.name().to_owned(),
            problem,
            rule: Rule::Workload,
        })
    })
}

/// How a template makes several pods at a time, if it does.
fn makes_several(subject: &Subject<'_>) -> Option<String> {
    match subject.kind {
        Kind::DaemonSet if subject.pinned_node().is_none() => {
            Some("a DaemonSet makes one on each node".to_owned())
        }
        Kind::Job | Kind::CronJob if 1 < subject.replicas => {
            Some(format!("parallelism is {}", subject.replicas))
        }
        _ if 1 < subject.replicas => Some(format!("{} replicas are asked for", subject.replicas)),
        _ => None,
    }
}
