//! When the ports of a holder pass from one of its pods to a newer one, and what becomes of flows then.

use std::fmt;
use std::str::FromStr;

/// When a newer pod of the same holder takes over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Handover {
    /// As soon as its containers are ready.
    #[default]
    WhenReady,
    /// When the old pod is gone.
    WhenGone,
    /// As soon as it has an address.
    Immediate,
}

impl Handover {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::WhenReady, Self::WhenGone, Self::Immediate];

    /// The word that users write.
    pub const fn name(self) -> &'static str {
        match self {
            Self::WhenReady => "WhenReady",
            Self::WhenGone => "WhenGone",
            Self::Immediate => "Immediate",
        }
    }
}

impl fmt::Display for Handover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Handover {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|handover| handover.name() == text).ok_or(())
    }
}

/// What happens to UDP and SCTP flows when another pod takes over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum UdpHandover {
    /// They stay with the old pod until they end or it is gone.
    #[default]
    Drain,
    /// They end, and the client's next packet reaches the new pod.
    Cut,
}

impl UdpHandover {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Drain, Self::Cut];

    /// The word that users write.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drain => "Drain",
            Self::Cut => "Cut",
        }
    }
}

impl FromStr for UdpHandover {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|handover| handover.name() == text).ok_or(())
    }
}
