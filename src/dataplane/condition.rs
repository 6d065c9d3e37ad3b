//! What keeps programmed entries from working although the kernel holds them, in words for whoever runs the node.

use std::fmt;

/// A reason why packets may not arrive. It is reported, never worked around.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Condition {
    /// The kind, stable for alerts and conditions.
    pub kind: ConditionKind,
    /// What was found, and where.
    pub message: String,
    /// What to do.
    pub fix: String,
}

/// The kinds of conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionKind {
    /// Forwarded packets are dropped by rules that ours cannot stand before.
    ForwardBlocked,
    /// The kernel does not forward packets of a family.
    ForwardingDisabled,
    /// Another program insists on the place of a jump of ours.
    JumpContested,
    /// A link to the outside cannot be used, so replies do not leave by it.
    LinkUnusable,
    /// Both flavours of iptables hold rules.
    MixedFlavors,
    /// The kernel drops what comes in by a link from where another one leads.
    ReversePathFilter,
}

impl ConditionKind {
    /// All kinds.
    pub const ALL: [Self; 6] = [
        Self::ForwardBlocked,
        Self::ForwardingDisabled,
        Self::JumpContested,
        Self::LinkUnusable,
        Self::MixedFlavors,
        Self::ReversePathFilter,
    ];

    /// The name in conditions, metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ForwardBlocked => "ForwardBlocked",
            Self::ForwardingDisabled => "ForwardingDisabled",
            Self::JumpContested => "JumpContested",
            Self::LinkUnusable => "LinkUnusable",
            Self::MixedFlavors => "MixedFlavors",
            Self::ReversePathFilter => "ReversePathFilter",
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.kind.name(), self.message, self.fix)
    }
}
