//! Owner chains: from a pod to the nearest owner that survives the pod's replacement.
//!
//! Only ReplicaSets and Jobs stand between a pod and such an owner, so only they are kept. A reference counts only
//! if the owner of that UID really has that name: a pod cannot talk its way into another holder.

use std::collections::HashMap;
use std::sync::Arc;

use crate::admission::index::ObjectKey;
use crate::admission::index::is_older;
use crate::api::object::Kind;
use crate::api::object::Object;
use crate::api::object::OwnerReference;
use crate::model::holder::Holder;
use crate::model::holder::ObjectName;

/// The ReplicaSets and Jobs of the cluster with their own controllers.
#[derive(Debug, Default)]
pub(super) struct Owners {
    by_uid: HashMap<Arc<str>, Owner>,
    uid_of: HashMap<ObjectKey, Arc<str>>,
}

#[derive(Debug)]
struct Owner {
    key: ObjectKey,
    version: Option<u64>,
    controller: Option<OwnerReference>,
}

impl Owners {
    pub(super) fn apply(&mut self, key: &ObjectKey, object: &Object) {
        if !is_link(key.kind) || object.metadata.uid.is_empty() {
            return;
        }
        let version = object.metadata.version();
        let known = self.uid_of.get(key).and_then(|uid| self.by_uid.get(uid));
        if known.is_some_and(|known| is_older(version, known.version)) {
            return;
        }
        self.delete(key, None);
        let uid: Arc<str> = object.metadata.uid.as_str().into();
        let owner = Owner { key: key.clone(), version, controller: object.metadata.controller().cloned() };
        self.by_uid.insert(uid.clone(), owner);
        self.uid_of.insert(key.clone(), uid);
    }

    pub(super) fn delete(&mut self, key: &ObjectKey, uid: Option<&str>) {
        if self.uid_of.get(key).is_some_and(|found| uid.is_none_or(|uid| uid == &**found))
            && let Some(uid) = self.uid_of.remove(key)
        {
            self.by_uid.remove(&uid);
        }
    }

    pub(super) fn uid(&self, key: &ObjectKey) -> Option<Arc<str>> {
        self.uid_of.get(key).cloned()
    }

    pub(super) fn clear(&mut self, kind: Kind) {
        self.by_uid.retain(|_, owner| owner.key.kind != kind);
        self.uid_of.retain(|key, _| key.kind != kind);
    }

    /// The root owner of an object as far as it is known, as the last link to it names it; none for an object that holds its
    /// ports itself. `Err` names the owner that is not known yet.
    pub(super) fn root<'a>(
        &'a self,
        key: &ObjectKey,
        controller: Option<&'a OwnerReference>,
    ) -> Result<Option<&'a OwnerReference>, ObjectKey> {
        // A Pinhole's owners are whatever its author wrote.
        let Some(reference) = controller.filter(|_| key.kind != Kind::Pinhole) else { return Ok(None) };
        let kind = match Kind::from_name(&reference.kind) {
            Some(kind) if is_link(kind) => kind,
            // These make no pods: whoever names one as its owner would share its ports without having a right to them.
            Some(Kind::Pod | Kind::Pinhole) => return Ok(None),
            _ => return Ok(Some(reference)),
        };
        let name = ObjectName::new(Arc::clone(&key.name.namespace), reference.name.as_str());
        let named = ObjectKey { kind, name };
        match self.by_uid.get(reference.uid.as_str()) {
            None => Err(named),
            Some(owner) if owner.key != named => Ok(None),
            // A Job stands below a CronJob and a ReplicaSet below a Deployment: never more than one further step.
            Some(owner) => Ok(owner.controller.as_ref().or(Some(reference))),
        }
    }

    pub(super) fn holder(
        &self,
        key: &ObjectKey,
        controller: Option<&OwnerReference>,
    ) -> Result<Holder, ObjectKey> {
        let namespace = &key.name.namespace;
        Ok(match self.root(key, controller)? {
            None => Holder::new(key.kind.name(), key.name.clone()),
            Some(root) => {
                Holder::new(root.kind.as_str(), ObjectName::new(Arc::clone(namespace), root.name.as_str()))
            }
        })
    }
}

fn is_link(kind: Kind) -> bool {
    matches!(kind, Kind::ReplicaSet | Kind::Job)
}
