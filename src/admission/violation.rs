//! A violation: what is wrong with a request, where, with which value, and what to do about it.
//!
//! A violation is a value, not an error: rules return all they find at once. Its texts are written to be read
//! alone by somebody who has never heard of Pinhole.

use std::fmt;

/// The rule that a request breaks; the name is the label of metrics and audit annotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// The annotation cannot be read.
    Syntax,
    /// An address that nobody outside can connect to, or one that contradicts the rest of its entry.
    Address,
    /// Two entries of one pod ask for the same external port.
    Duplicate,
    /// The port is on the operator's list of restricted ports.
    Restricted,
    /// The port is one that the node itself needs.
    Protected,
    /// The namespace may not publish ports.
    Namespace,
    /// The pod shares its node's network, where NAT has nothing to forward to.
    HostNetwork,
    /// The pods of this kind of workload cannot have a port of this kind.
    Workload,
    /// No pool grants the port.
    Pool,
    /// A program on a node or a Service has the port.
    InUse,
    /// Another holder has the port.
    Conflict,
}

impl Rule {
    /// Every rule.
    pub const ALL: [Self; 11] = [
        Self::Syntax,
        Self::Address,
        Self::Duplicate,
        Self::Restricted,
        Self::Protected,
        Self::Namespace,
        Self::HostNetwork,
        Self::Workload,
        Self::Pool,
        Self::InUse,
        Self::Conflict,
    ];

    /// The rule's name in metrics, audit annotations and `-o json`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Syntax => "syntax",
            Self::Address => "address",
            Self::Duplicate => "duplicate",
            Self::Restricted => "restricted-port",
            Self::Protected => "protected-port",
            Self::Namespace => "namespace",
            Self::HostNetwork => "host-network",
            Self::Workload => "workload",
            Self::Pool => "pool",
            Self::InUse => "in-use",
            Self::Conflict => "conflict",
        }
    }
}

/// One thing that is wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The path of the field, as in `metadata.annotations[pinhole.dev/nat].entries[1].srcPort`.
    pub field: String,
    /// The offending value as the user wrote it, shortened; empty when the point is that there is none.
    pub value: String,
    /// The rule and what to do: `is restricted here (...); choose another external port`.
    pub problem: String,
    /// Which rule it is.
    pub rule: Rule,
}

impl Violation {
    /// The text beside the field's path: the value and the problem.
    pub fn message(&self) -> String {
        if self.value.is_empty() { self.problem.clone() } else { format!("{}: {}", self.value, self.problem) }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message())
    }
}

/// Puts violations in the order in which a reader goes through the object: what concerns all of it, then entry by entry,
/// each by field. Rules that concern one field keep their order.
pub(crate) fn sort(violations: &mut [Violation]) {
    violations.sort_by(|a, b| place(&a.field).cmp(&place(&b.field)));
}

/// Says once what is said in the same words of several values of one field, as of the ports of a set's pods.
pub(crate) fn fold(violations: &mut Vec<Violation>) {
    let alike = |one: &Violation, other: &Violation| {
        one.field == other.field && one.problem == other.problem && one.rule == other.rule
    };
    let mut folded: Vec<Violation> = Vec::with_capacity(violations.len());
    for same in violations.chunk_by(alike) {
        let [first, others @ ..] = same else { continue };
        let value = match others {
            [] => first.value.clone(),
            [second] => format!("{}, {}", first.value, second.value),
            [.., last] => format!("{}, ..., {} ({} in all)", first.value, last.value, same.len()),
        };
        folded.push(Violation { value, ..first.clone() });
    }
    *violations = folded;
}

fn place(path: &str) -> (Option<u64>, Vec<(u64, &str)>) {
    (entry(path), natural(path))
}

/// Which entry of an annotation a path lies in: `[KEY].entries[N]`, or `[KEY][N]` in the short form.
fn entry(path: &str) -> Option<u64> {
    let (_, within) = path.split_once("annotations[")?.1.split_once(']')?;
    let position = within.strip_prefix(".entries").unwrap_or(within).strip_prefix('[')?;
    position.split_once(']')?.0.parse().ok()
}

/// A path that compares as people count: item 10 after item 9.
fn natural(path: &str) -> Vec<(u64, &str)> {
    let parts = path.split_inclusive('[').map(|part| {
        let rest = part.trim_start_matches(|first: char| first.is_ascii_digit());
        (part[..part.len() - rest.len()].parse().unwrap_or(0), rest)
    });
    parts.collect()
}

/// How many violations one message spells out. Controllers copy it into Events, which hold 1 KiB.
const SPELLED_OUT: usize = 10;

/// All violations in one line that stands alone, for the readers that see no list.
pub fn summary(violations: &[Violation]) -> String {
    if let [only] = violations {
        return only.to_string();
    }
    let listed: Vec<_> = violations
        .iter()
        .take(SPELLED_OUT)
        .enumerate()
        .map(|(index, violation)| format!("({}) {violation}", index + 1))
        .collect();
    let unlisted = violations.len().saturating_sub(SPELLED_OUT);
    let more = if unlisted == 0 { String::new() } else { format!("; and {unlisted} more") };
    format!("{} problems: {}{more}", violations.len(), listed.join("; "))
}

/// A value as a message shows it: at most 64 characters, without control characters.
pub fn shown(value: &str) -> String {
    const LONGEST: usize = 64;
    let clean = value.chars().map(|character| if character.is_control() { ' ' } else { character });
    let mut text: String = clean.clone().take(LONGEST).collect();
    if clean.count() > LONGEST {
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violation(field: &str) -> Violation {
        Violation { field: field.into(), value: "1".into(), problem: "is bad".into(), rule: Rule::Syntax }
    }

    #[test]
    fn one_line_tells_everything_and_says_what_it_left_out() {
        assert_eq!(summary(&[violation("a")]), "a: 1: is bad");
        assert_eq!(
            summary(&[violation("a"), violation("b")]),
            "2 problems: (1) a: 1: is bad; (2) b: 1: is bad"
        );
        assert!(summary(&vec![violation("a"); 12]).ends_with("(10) a: 1: is bad; and 2 more"));
    }

    #[test]
    fn violations_are_read_in_the_order_of_the_entries_and_their_fields() {
        let in_order = [
            "metadata.namespace",
            "spec.hostNetwork",
            "metadata.annotations[k].entries[0].proto",
            "metadata.annotations[k].entries[2].allowedSources[9]",
            "metadata.annotations[k].entries[2].allowedSources[10]",
            "metadata.annotations[k].entries[2].srcPort",
            "spec.template.metadata.annotations[k][9]",
            "spec.template.metadata.annotations[k][10]",
        ];
        let mut sorted: Vec<_> = in_order.iter().rev().map(|field| violation(field)).collect();
        sort(&mut sorted);
        assert_eq!(sorted.iter().map(|violation| violation.field.as_str()).collect::<Vec<_>>(), in_order);

        let mut of_one_field = [
            Violation { rule: Rule::Restricted, ..violation("a") },
            Violation { rule: Rule::Conflict, ..violation("a") },
        ];
        sort(&mut of_one_field);
        assert_eq!(of_one_field.map(|violation| violation.rule), [Rule::Restricted, Rule::Conflict]);
    }

    #[test]
    fn what_is_wrong_with_several_values_of_a_field_in_the_same_way_is_said_once() {
        let of = |field: &str, value: &str| Violation { value: value.into(), ..violation(field) };
        let other = Violation { problem: "is worse".into(), ..violation("b") };
        let mut violations =
            vec![of("a", "1"), of("a", "2"), of("a", "3"), of("b", "4"), of("b", "5"), other, of("c", "")];
        fold(&mut violations);
        let shown: Vec<_> = violations.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            ["a: 1, ..., 3 (3 in all): is bad", "b: 4, 5: is bad", "b: 1: is worse", "c: is bad"]
        );
    }

    #[test]
    fn a_long_or_dirty_value_is_shown_short_and_clean() {
        assert_eq!(shown("a\nb"), "a b");
        assert_eq!(shown(&"é".repeat(65)), format!("{}...", "é".repeat(64)));
    }
}
