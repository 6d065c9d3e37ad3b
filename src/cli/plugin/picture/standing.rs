//! How a request for a port stands, as `list` and `explain` tell it.

use std::collections::BTreeMap;
use std::fmt;

use crate::model::holder::Holder;
use crate::model::holder::ObjectName;
use crate::model::mapping::Mapping;
use crate::ruleset::entry::Key;

/// How a request for a port stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum State {
    /// The kernel of the node has it.
    Programmed,
    /// The agent said that the kernel has it, in an Event or a Pinhole; the kernel itself was not asked.
    Reported,
    /// The kernel keeps the port for a pod that has no address yet.
    Reserved,
    /// The port is closed without being given up, because whoever asks for it says so.
    Suspended,
    /// By the rules the kernel has it; it was not asked.
    Expected,
    /// By the rules the kernel should have it, and it does not.
    Missing,
    /// Another pod of the same holder has it.
    Waiting,
    /// The controller has not granted it yet.
    Pending,
    /// No pool has a port for it.
    Full,
    /// Somebody else has it.
    Taken,
    /// The rules of admission or the node refuse it.
    Refused,
    /// It is granted to a Pinhole, and leads nowhere.
    Unserved,
    /// The pod has no node yet.
    Unscheduled,
    /// No agent runs on the pod's node.
    NoAgent,
    /// Nobody is granted it any more, and a node has yet to say that it has let go of it.
    Releasing,
    /// The kernel has it, and no pod asks for it any more.
    Leftover,
}

impl State {
    /// The name in tables and `-o json`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Programmed => "Programmed",
            Self::Reported => "Reported",
            Self::Reserved => "Reserved",
            Self::Suspended => "Suspended",
            Self::Expected => "Expected",
            Self::Missing => "Missing",
            Self::Waiting => "Waiting",
            Self::Pending => "Pending",
            Self::Full => "Full",
            Self::Taken => "Taken",
            Self::Refused => "Refused",
            Self::Unserved => "Unserved",
            Self::Unscheduled => "Unscheduled",
            Self::NoAgent => "NoAgent",
            Self::Releasing => "Releasing",
            Self::Leftover => "Leftover",
        }
    }

    /// Whether somebody has the port by it.
    pub(crate) const fn is_held(self) -> bool {
        matches!(
            self,
            Self::Programmed
                | Self::Reported
                | Self::Reserved
                | Self::Suspended
                | Self::Expected
                | Self::Releasing
                | Self::Leftover
        )
    }
}

/// Who asks for a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Asker {
    /// A pod, by its annotation.
    Pod(ObjectName),
    /// A Pinhole that a user wrote.
    Pinhole(ObjectName),
}

impl Asker {
    /// Its name.
    pub(crate) const fn name(&self) -> &ObjectName {
        match self {
            Self::Pod(name) | Self::Pinhole(name) => name,
        }
    }

    /// `pod/mx-0` or `pinholes/shop`, as kubectl takes it: by `pinhole` it means everything of ours.
    pub(crate) fn reference(&self) -> String {
        match self {
            Self::Pod(name) => format!("pod/{}", name.name),
            Self::Pinhole(name) => format!("pinholes/{}", name.name),
        }
    }
}

impl fmt::Display for Asker {
    /// `pod mail/mx-0` or `Pinhole web/shop`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => write!(f, "pod {name}"),
            Self::Pinhole(name) => write!(f, "Pinhole {name}"),
        }
    }
}

/// One request for a port, and how it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The external side, as far as it is known.
    pub(crate) external: String,
    /// The same for the kernel, when it is known to the last bit.
    pub(crate) key: Option<Key>,
    /// What was asked for, where it could be read.
    pub(crate) mapping: Option<Mapping>,
    /// The pod's address and ports, none while it has no address; of a Pinhole the Service or the labels of pods.
    pub(crate) target: Option<String>,
    /// The node.
    pub(crate) node: Option<String>,
    /// Who holds the port once it has it.
    pub(crate) holder: Option<Holder>,
    /// Who asks.
    pub(crate) asker: Asker,
    /// The pod; of a Pinhole the one that is served, if any.
    pub(crate) pod: Option<ObjectName>,
    /// The labels of who asks.
    pub(crate) labels: BTreeMap<String, String>,
    /// When who asks was created, RFC 3339.
    pub(crate) created: String,
    /// How it stands.
    pub(crate) state: State,
    /// How many connections came, where the kernel was asked.
    pub(crate) packets: Option<u64>,
    /// Why, in the words of whoever refuses; with what to do after the last semicolon.
    pub(crate) problem: Option<String>,
}

impl Standing {
    /// One of which nothing more is known.
    pub(super) const fn new(asker: Asker, external: String, state: State) -> Self {
        Self {
            external,
            key: None,
            mapping: None,
            target: None,
            node: None,
            holder: None,
            asker,
            pod: None,
            labels: BTreeMap::new(),
            created: String::new(),
            state,
            packets: None,
            problem: None,
        }
    }
}
