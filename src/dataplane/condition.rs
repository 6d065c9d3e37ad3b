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
    /// Both flavours of iptables hold rules.
    MixedFlavors,
}

impl ConditionKind {
    /// The name in conditions, metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ForwardBlocked => "ForwardBlocked",
            Self::ForwardingDisabled => "ForwardingDisabled",
            Self::MixedFlavors => "MixedFlavors",
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.kind.name(), self.message, self.fix)
    }
}
