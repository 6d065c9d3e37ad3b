//! Everything of one kind, in every namespace: how it is named, deleted, and let go.

use std::collections::BTreeSet;

use kube::Api;
use kube::api::ApiResource;
use kube::api::DeleteParams;
use kube::api::DynamicObject;
use kube::api::ListParams;
use kube::api::Patch;
use kube::api::PatchParams;
use kube::core::GroupVersionKind;
use serde_json::json;
use thiserror::Error;

use crate::api::keys;
use crate::cluster::removal::Installation;
use crate::cluster::removal::RemovalError;
use crate::cluster::removal::failed;

/// All objects of a kind, as kubectl names it: `portclaims.v1alpha1.pinhole.dev`; with `?LABEL=VALUE` those with the label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Every {
    resource: ApiResource,
    selector: Option<String>,
}

/// Text that names no kind.
#[derive(Debug, Error)]
#[error(
    "{0:?} names no kind; write portclaims.v1alpha1.pinhole.dev, and for those with a label ?KEY=VALUE behind it"
)]
pub struct EveryError(String);

impl Installation {
    /// Deletes all of them; how many there were that nobody had deleted yet: 0 where the cluster knows no such kind.
    pub async fn delete_every(&self, every: &Every) -> Result<usize, RemovalError> {
        // What is deleted already waits for somebody else's finalizer.
        let mut found = self.list(every).await?;
        found.retain(|object| object.metadata.deletion_timestamp.is_none());
        // The API server deletes a collection in one namespace at a time.
        let namespaces: BTreeSet<_> =
            found.iter().map(|object| object.metadata.namespace.as_deref()).collect();
        for namespace in namespaces {
            let api = self.every(every, namespace);
            let deleted = api.delete_collection(&DeleteParams::background(), &every.list()).await;
            deleted.map_err(failed("delete", every.to_string()))?;
        }
        Ok(found.len())
    }

    /// Takes our finalizers off all of them, for nobody is left who would: else whoever deletes one waits forever. Off how many.
    pub async fn let_go(&self, every: &Every) -> Result<usize, RemovalError> {
        let mut freed = 0;
        for object in self.list(every).await? {
            let metadata = object.metadata;
            let finalizers = metadata.finalizers.unwrap_or_default();
            let theirs: Vec<_> = finalizers.iter().filter(|name| !name.starts_with(keys::PREFIX)).collect();
            if theirs.len() == finalizers.len() {
                continue;
            }
            let name = metadata.name.unwrap_or_default();
            let change =
                json!({"metadata": {"finalizers": theirs, "resourceVersion": metadata.resource_version}});
            let api = self.every(every, metadata.namespace.as_deref());
            match api.patch(&name, &PatchParams::default(), &Patch::Merge(change)).await {
                // It is gone or was changed meanwhile; whoever looks again sees it.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                changed => {
                    changed.map_err(failed(
                        "take the finalizer off",
                        format!("{}/{name}", every.resource.plural),
                    ))?;
                }
            }
            freed += 1;
        }
        Ok(freed)
    }

    async fn list(&self, every: &Every) -> Result<Vec<DynamicObject>, RemovalError> {
        match self.every(every, None).list(&every.list()).await {
            Ok(found) => Ok(found.items),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
            Err(error) => Err(failed("list", every.to_string())(error)),
        }
    }

    fn every(&self, every: &Every, namespace: Option<&str>) -> Api<DynamicObject> {
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &every.resource),
            None => Api::all_with(self.client.clone(), &every.resource),
        }
    }
}

impl Every {
    fn list(&self) -> ListParams {
        ListParams { label_selector: self.selector.clone(), ..ListParams::default() }
    }
}

impl std::str::FromStr for Every {
    type Err = EveryError;

    fn from_str(text: &str) -> Result<Self, EveryError> {
        let malformed = || EveryError(text.to_owned());
        let (resource, selector) = match text.split_once('?') {
            Some((resource, selector)) => (resource, Some(selector)),
            None => (text, None),
        };
        let mut parts = resource.splitn(3, '.');
        let (plural, version, group) = (parts.next(), parts.next(), parts.next());
        let (Some(plural), Some(version), Some(group)) = (plural, version, group) else {
            return Err(malformed());
        };
        let is_named = [plural, version, group].iter().all(|part| !part.is_empty());
        if !is_named || resource.contains('/') || selector.is_some_and(|selector| !selector.contains('=')) {
            return Err(malformed());
        }
        // Only the path of its URL matters, and the kind has no part in that.
        let kind = GroupVersionKind::gvk(group, version, plural);
        let resource = ApiResource::from_gvk_with_plural(&kind, plural);
        Ok(Self { resource, selector: selector.map(str::to_owned) })
    }
}

impl std::fmt::Display for Every {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ApiResource { group, version, plural, .. } = &self.resource;
        write!(f, "{plural}.{version}.{group}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_named_as_kubectl_names_them() {
        let claims: Every = "portclaims.v1alpha1.pinhole.dev".parse().unwrap();
        assert_eq!(claims.to_string(), "portclaims.v1alpha1.pinhole.dev");
        assert_eq!(claims.list().label_selector, None);
        let some: Every = "pinholes.v1alpha1.pinhole.dev?a=b".parse().unwrap();
        assert_eq!(some.list().label_selector.as_deref(), Some("a=b"));
        for text in ["portclaims", "portclaims.v1alpha1", "a.b.c/d", ".v1.x", "a.v1.b?c"] {
            let error = text.parse::<Every>().unwrap_err().to_string();
            assert!(error.contains("names no kind; write portclaims.v1alpha1.pinhole.dev"), "{error}");
        }
    }
}
