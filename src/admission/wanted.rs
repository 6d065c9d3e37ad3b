//! What an object wants: the mappings that its annotation or its `spec` asks for, each with the place it was written at.
//!
//! Several forms of one model: JSON (`admission::entries`), the short form (`admission::short_form`), ACK's annotations
//! (`admission::ack`) and the Pinhole (`admission::pinhole`). All
//! violations of all entries come back at once, and the entries that are right come back beside them.

use std::collections::BTreeMap;

use crate::admission::ack;
use crate::admission::entries;
use crate::admission::ordinals;
use crate::admission::pinhole;
use crate::admission::policy::Policy;
use crate::admission::short_form;
use crate::admission::subject::Subject;
use crate::admission::violation::Rule;
use crate::admission::violation::Violation;
use crate::api::keys;
use crate::api::object::Kind;
use crate::model::automatic::AutomaticPort;
use crate::model::mapping::ExternalPorts;
use crate::model::mapping::Mapping;
use crate::model::ordinals::Ordinals;

/// A mapping and where it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The mapping.
    pub mapping: Mapping,
    /// The path of the field that names its external port.
    pub port_field: String,
    /// The path of the field that names its address.
    pub address_field: String,
    /// The ordinal of the pod that it is for, where the external port goes by that.
    pub ordinal: Option<u64>,
}

impl Located {
    /// Whether an object of this kind only keeps it, for a pod by its ordinal.
    pub fn is_only_kept(&self, kind: Kind) -> bool {
        self.ordinal.is_some() && kind != Kind::Pod
    }
}

/// A port that a pool is to find, and where it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocatedPort {
    /// The port.
    pub port: AutomaticPort,
    /// The path of the field that leaves it open.
    pub field: String,
}

/// What an object asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The entries that could be read, in the order they were written.
    pub entries: Vec<Located>,
    /// The ports whose external side a pool is to find, likewise.
    pub automatic: Vec<LocatedPort>,
    /// Everything that is wrong with the annotation or the spec itself.
    pub violations: Vec<Violation>,
}

impl Wanted {
    /// The mappings alone.
    pub fn mappings(&self) -> impl Iterator<Item = &Mapping> {
        self.entries.iter().map(|entry| &entry.mapping)
    }

    /// The ports that pools are to find, alone.
    pub fn automatic_ports(&self) -> impl Iterator<Item = &AutomaticPort> {
        self.automatic.iter().map(|entry| &entry.port)
    }
}

/// Reads what a subject asks for; `None` when it asks for nothing.
pub fn of(subject: &Subject<'_>, policy: &Policy) -> Option<Wanted> {
    let Some(spec) = subject.pinhole else { return of_pods(subject, policy) };
    let mut wanted = pinhole::read(spec);
    wanted.violations.extend(duplicates(&wanted.entries, "Pinhole", Ordinals::default()));
    Some(wanted)
}

/// Reads what a pod's annotations ask for, or those of a template for all of its pods.
fn of_pods(subject: &Subject<'_>, policy: &Policy) -> Option<Wanted> {
    let mut wanted = read(&subject.metadata.annotations, &subject.annotations_path(), policy)?;
    let ordinals = ordinals::settle(&mut wanted, subject, policy);
    wanted.violations.extend(duplicates(&wanted.entries, "pod", ordinals));
    ordinals::number(&mut wanted, ordinals);
    Some(wanted)
}

/// Reads the annotations found at `path`; `None` when no key of theirs asks for anything.
fn read(annotations: &BTreeMap<String, String>, path: &str, policy: &Policy) -> Option<Wanted> {
    let given: Vec<_> = policy.asking_keys(annotations).collect();
    let mut wanted = match given.as_slice() {
        [] => return None,
        [keys::ACK_ON] => ack::read(annotations, path),
        [key] => read_one(key, annotations.get(*key).map_or("", String::as_str), &format!("{path}[{key}]")),
        [first, .., last] => {
            let violation = Violation {
                field: format!("{path}[{last}]"),
                value: String::new(),
                problem: format!(
                    "{first} is given too; a pod asks with one annotation, so remove one of the two"
                ),
                rule: Rule::Syntax,
            };
            return Some(Wanted { violations: vec![violation], ..Wanted::default() });
        }
    };
    wanted.violations.extend(repeated(&wanted.automatic));
    wanted.violations.extend(half_fixed(&wanted.automatic));
    if !policy.finds_ports {
        wanted.violations.extend(wanted.automatic.iter().map(unfindable));
    }
    Some(wanted)
}

fn read_one(key: &str, text: &str, path: &str) -> Wanted {
    if key == keys::EXPOSE { short_form::read(text, path) } else { entries::read(text, path) }
}

/// Ports of one pod for which two external ones would be found.
fn repeated(automatic: &[LocatedPort]) -> Vec<Violation> {
    let is_again = |(position, later): &(usize, &LocatedPort)| {
        automatic[..*position].iter().any(|earlier| earlier.port.is_same_port(&later.port))
    };
    let again = automatic.iter().enumerate().filter(is_again);
    let violation = |(_, later): (usize, &LocatedPort)| Violation {
        field: later.field.clone(),
        value: later.port.to_string(),
        problem: "is asked for twice by this pod; remove one of the two".to_owned(),
        rule: Rule::Duplicate,
    };
    again.map(violation).collect()
}

/// Ports that get one number, of which one is kept and another goes with the pod.
fn half_fixed(automatic: &[LocatedPort]) -> Vec<Violation> {
    let earlier = |position: usize, later: &AutomaticPort| {
        let differs = |earlier: &&LocatedPort| {
            earlier.port.target == later.target && earlier.port.is_fixed() != later.is_fixed()
        };
        automatic[..position].iter().find(differs)
    };
    let violation = |(position, later): (usize, &LocatedPort)| {
        let earlier = earlier(position, &later.port)?;
        let problem = format!(
            "leads to the same port of the pod as {}, and both get one number; make both fixed, or both auto",
            earlier.port
        );
        let (field, value) = (later.field.clone(), later.port.to_string());
        Some(Violation { field, value, problem, rule: Rule::Syntax })
    };
    automatic.iter().enumerate().filter_map(violation).collect()
}

/// What is said of a port that nobody finds here.
fn unfindable(automatic: &LocatedPort) -> Violation {
    Violation {
        field: automatic.field.clone(),
        value: automatic.port.to_string(),
        problem: "is left to a pool, and pools need claims, which are off here; name the external port, or ask whoever runs \
                  the cluster to turn them on (claims.enabled)"
            .to_owned(),
        rule: Rule::Pool,
    }
}

/// Entries of one object that ask for the same external port.
fn duplicates(entries: &[Located], object: &str, ordinals: Ordinals) -> Vec<Violation> {
    let overlap = |one: &Located, other: &Located| {
        let is_there = one.mapping.address() == other.mapping.address()
            && one.mapping.protocol() == other.mapping.protocol();
        let ports = || ordinals::external(one, ordinals)?.intersection(ordinals::external(other, ordinals)?);
        is_there.then(ports).flatten()
    };
    let mut violations = Vec::new();
    for (position, later) in entries.iter().enumerate() {
        let mut earlier = entries[..position].iter();
        let Some((earlier, ports)) = earlier.find_map(|earlier| Some((earlier, overlap(earlier, later)?)))
        else {
            continue;
        };
        let shared =
            ExternalPorts { address: later.mapping.address(), protocol: later.mapping.protocol(), ports };
        let is_same = earlier.ordinal.is_some() == later.ordinal.is_some()
            && earlier.mapping.external() == later.mapping.external();
        let problem = if is_same {
            format!("is asked for twice by this {object}; remove one of the two")
        } else {
            format!(
                "{shared} is asked for by {} too ({}); make the ranges disjoint",
                earlier.port_field,
                ordinals::written(earlier)
            )
        };
        violations.push(Violation {
            field: later.port_field.clone(),
            value: ordinals::written(later),
            problem,
            rule: Rule::Duplicate,
        });
    }
    violations
}
