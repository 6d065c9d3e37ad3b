//! Who holds an external port.
//!
//! The holder is the root owner: the nearest owner that survives the replacement of a pod. Two pods of one holder
//! never conflict with each other, so a rolling update is never blocked by itself.

use std::fmt;
use std::sync::Arc;

/// An object's namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl ObjectName {
    /// Names the object `name` in `namespace`.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The root owner of a pod or of a pod template: a Deployment, StatefulSet, DaemonSet, Job, CronJob, a custom kind,
/// or the bare pod itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder {
    /// The kind, as in the manifest: `Deployment`.
    pub kind: Arc<str>,
    /// Where it lives and what it is called.
    pub object: ObjectName,
}

impl Holder {
    /// The holder of this kind and name.
    pub fn new(kind: impl Into<Arc<str>>, object: ObjectName) -> Self {
        Self { kind: kind.into(), object }
    }

    /// Kind and name, where the namespace is said elsewhere.
    pub fn in_short(&self) -> String {
        format!("{} {}", self.kind, self.object.name)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.object)
    }
}
