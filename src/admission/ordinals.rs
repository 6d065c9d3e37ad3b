//! External ports by the ordinal of a pod: `30000+{ordinal}` is 30003 of `lobby-3`.
//!
//! One annotation in the template of a set gives each of its pods a port of its own. A pod asks for its own one, as if it had
//! written the number; the template asks for those of all pods that its replicas make. So whatever comes after knows numbers
//! alone.

use crate::admission::policy::Policy;
use crate::admission::subject::Subject;
use crate::admission::violation::Rule;
use crate::admission::violation::Violation;
use crate::admission::violation::shown;
use crate::admission::wanted::Located;
use crate::admission::wanted::Wanted;
use crate::api::object::Kind;
use crate::model::mapping::Mapping;
use crate::model::ordinals::ORDINAL;
use crate::model::ordinals::Ordinals;
use crate::model::ordinals::PortByOrdinal;
use crate::model::ordinals::ordinal;
use crate::model::port::Port;
use crate::model::port::PortRange;

/// The most ports that a template can ask for by ordinal, of all its pods together: each is claimed by itself, in one call.
const MOST_PORTS: u64 = 1024;

/// Takes out of a request the ports by ordinal that cannot be, each with what is wrong with it, and tells which ordinals the
/// others are for.
pub(crate) fn settle(wanted: &mut Wanted, subject: &Subject<'_>, policy: &Policy) -> Ordinals {
    let Wanted { entries, violations, .. } = wanted;
    let asked = entries.iter().filter(|entry| entry.ordinal.is_some()).count();
    if asked == 0 {
        return Ordinals::default();
    }
    let ordinals = pods(subject, policy).and_then(|ordinals| few(ordinals, asked as u64));
    let problem = |entry: &Located| match &ordinals {
        Ok(ordinals) => past_the_end(entry, *ordinals, subject),
        Err(problem) => Some(problem.clone()),
    };
    entries.retain(|entry| {
        let problem = Some(entry).filter(|entry| entry.ordinal.is_some()).and_then(problem);
        let is_possible = problem.is_none();
        violations.extend(problem.map(|problem| Violation {
            field: entry.port_field.clone(),
            value: written(entry),
            problem,
            rule: Rule::Workload,
        }));
        is_possible
    });
    ordinals.unwrap_or_default()
}

/// The external ports of an entry, of all these pods together; `None` for a port by ordinal of no pods.
pub(crate) fn external(entry: &Located, ordinals: Ordinals) -> Option<PortRange> {
    if entry.ordinal.is_none() {
        return Some(entry.mapping.external());
    }
    let own = |ordinal: u64| Some(moved(&entry.mapping, ordinal)?.external().first());
    let (first, last) = ordinals.ends()?;
    PortRange::new(own(first)?, own(last)?)
}

/// An entry as it is written.
pub(crate) fn written(entry: &Located) -> String {
    let text = entry.mapping.to_string();
    match text.rsplit_once('/').filter(|_| entry.ordinal.is_some()) {
        Some((ports, protocol)) => format!("{ports}+{ORDINAL}/{protocol}"),
        None => text,
    }
}

/// Gives each of these pods its own port in place of the one that goes by the ordinal.
pub(crate) fn number(wanted: &mut Wanted, ordinals: Ordinals) {
    if wanted.entries.iter().all(|entry| entry.ordinal.is_none()) {
        return;
    }
    let entries = std::mem::take(&mut wanted.entries).into_iter();
    wanted.entries = entries.flat_map(|entry| of_each(entry, ordinals)).collect();
}

fn of_each(entry: Located, ordinals: Ordinals) -> Vec<Located> {
    if entry.ordinal.is_none() {
        return vec![entry];
    }
    let own = |ordinal| {
        let mapping = moved(&entry.mapping, ordinal)?;
        Some(Located { mapping, ordinal: Some(ordinal), ..entry.clone() })
    };
    ordinals.each().filter_map(own).collect()
}

/// The mapping of the pod with this ordinal, by that of ordinal 0.
fn moved(mapping: &Mapping, ordinal: u64) -> Option<Mapping> {
    let distance = u16::try_from(ordinal).ok()?;
    mapping.moved_to(mapping.external().first().checked_add(distance)?)
}

/// Whether a subject asks for ports by ordinal, as far as its text tells.
pub(crate) fn are_asked_for(subject: &Subject<'_>, policy: &Policy) -> bool {
    let annotations = &subject.metadata.annotations;
    let is_by_ordinal = |key| annotations.get(key).is_some_and(|text: &String| text.contains(ORDINAL));
    policy.input_keys().any(is_by_ordinal)
}

/// The ordinals of the pods that a subject asks for; what is to be said of its ports where pods have none.
fn pods(subject: &Subject<'_>, policy: &Policy) -> Result<Ordinals, String> {
    if let Some(ordinals) = subject.ordinals {
        return Ok(ordinals);
    }
    let goes = "goes by the pod's ordinal";
    let owner = subject.owner.controller().filter(|_| subject.kind == Kind::Pod);
    let kind = match (subject.kind, owner) {
        (Kind::Pod, None) => {
            return Err(format!(
                "{goes}, and a pod without a StatefulSet has none; name the port by its number"
            ));
        }
        (Kind::Pod, Some(owner)) => owner.kind.as_str(),
        (kind, _) => kind.name(),
    };
    let Some(set) = owner.filter(|_| policy.is_stateful(kind)) else {
        return Err(if Kind::from_name(kind).is_some() {
            format!(
                "{goes}, and the pods of a {kind} have none; use a StatefulSet, or name the port by its number"
            )
        } else {
            format!(
                "{goes}, and whether the pods of a {kind} have one is not known here; use a StatefulSet, or ask whoever runs \
                 the cluster to name the kind (--stateful-kind)"
            )
        });
    };
    let (set, pod) = (set.name.as_str(), subject.owner.name.as_str());
    ordinal(set, pod).map(Ordinals::single).ok_or_else(|| {
        let name = if pod.is_empty() { "a generated name".to_owned() } else { shown(pod) };
        let set = shown(set);
        format!(
            "{goes}, and {name} has none: it would be named {set}-0, {set}-1 and so on; name the port by its number"
        )
    })
}

/// These ordinals, if so many entries do not ask for too many ports.
fn few(ordinals: Ordinals, entries: u64) -> Result<Ordinals, String> {
    let (pods, ports) = (ordinals.count(), ordinals.count().saturating_mul(entries));
    if ports <= MOST_PORTS {
        return Ok(ordinals);
    }
    Err(format!(
        "is asked for by {pods} replicas, which makes {ports} ports by ordinal; {MOST_PORTS} are the most, so use fewer \
         replicas, or several sets"
    ))
}

/// Why there is no port for some of these pods.
fn past_the_end(entry: &Located, ordinals: Ordinals, subject: &Subject<'_>) -> Option<String> {
    let (lowest, highest) = ordinals.ends()?;
    let base = entry.mapping.external().first();
    let fitting = u64::from(Port::MAX.get() - base.get());
    if highest <= fitting {
        return None;
    }
    let set = match subject.kind {
        Kind::Pod => subject.owner.controller().map_or("", |owner| owner.name.as_str()),
        _ => subject.owner.name.as_str(),
    };
    let first = lowest.max(fitting.saturating_add(1));
    let without = if first == highest { String::new() } else { format!(" to {set}-{highest}") };
    let highest_base = u16::try_from(highest).ok().and_then(|highest| Port::new(Port::MAX.get() - highest));
    let advice = match highest_base {
        Some(base) => format!("the highest that fits is {}", PortByOrdinal { base }),
        None => "no port is left for ordinals as high as that".to_owned(),
    };
    Some(format!("passes 65535 for {set}-{first}{without}; {advice}"))
}
