//! The history of claims in the API server: one ConfigMap for each page, which the installation makes and this fills.
//!
//! # Guarantees
//! A page is written over the version that was read, and never made: one that somebody deleted stays away.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::Client;
use kube::api::PostParams;
use serde_json::Value;
use tracing::warn;

use crate::allocation::history::Page;
use crate::allocation::history::Stretch;
use crate::cluster::trouble::describe;
use crate::model::holder::ObjectName;

/// The pages of a history.
#[derive(Clone)]
pub struct HistoryStore {
    api: Api<ConfigMap>,
    base: ObjectName,
}

/// A page as it is stored, to be written over.
#[derive(Clone, Debug)]
pub struct StoredPage {
    object: ConfigMap,
}

/// Why a page was not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// It has changed meanwhile, or is gone.
    Stale,
    /// Something else.
    Failed(String),
}

/// The name of a page's ConfigMap.
pub fn name(base: &str, number: usize) -> String {
    format!("{base}-{number}")
}

impl HistoryStore {
    /// The pages whose names begin with that of `base`.
    pub fn new(client: Client, base: ObjectName) -> Self {
        Self { api: Api::namespaced(client, &base.namespace), base }
    }

    /// Reads a page; `None` where there is no such ConfigMap.
    pub async fn read(&self, number: usize) -> Result<Option<(Page, StoredPage)>, String> {
        let name = name(&self.base.name, number);
        let found = self.api.get_opt(&name).await;
        let found =
            found.map_err(|error| format!("the ConfigMap {name} cannot be read: {}", describe(&error)))?;
        Ok(found.map(|object| (page(&name, object.data.as_ref()), StoredPage { object })))
    }

    /// Writes a page over what was read.
    pub async fn write(&self, page: &Page, before: &StoredPage) -> Result<StoredPage, WriteError> {
        let data = data(page).map_err(|error| WriteError::Failed(error.to_string()))?;
        let object = ConfigMap { data: Some(data), ..before.object.clone() };
        let name = object.metadata.name.clone().unwrap_or_default();
        match self.api.replace(&name, &PostParams::default(), &object).await {
            Ok(object) => Ok(StoredPage { object }),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Err(WriteError::Stale),
            Err(error) => Err(WriteError::Failed(format!(
                "the ConfigMap {name} cannot be written: {}",
                describe(&error)
            ))),
        }
    }
}

/// A page as a path of the API server shows it.
pub fn page_in(object: &Value) -> Page {
    let data = object.get("data").cloned().unwrap_or(Value::Null);
    page("of the history", serde_json::from_value(data).ok().as_ref())
}

fn page(name: &str, data: Option<&BTreeMap<String, String>>) -> Page {
    let mut page = Page::new();
    for (key, text) in data.into_iter().flatten() {
        let read = key.parse().ok().zip(serde_json::from_str::<Vec<Stretch>>(text).ok());
        match read {
            Some((key, stretches)) => {
                page.insert(key, stretches);
            }
            None => {
                warn!(config_map = name, key, "What stands there is no history of a claim, and is left out");
            }
        }
    }
    page
}

fn data(page: &Page) -> serde_json::Result<BTreeMap<String, String>> {
    page.iter().map(|(key, stretches)| Ok((key.to_string(), serde_json::to_string(stretches)?))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_page_is_read_as_it_was_written_and_what_is_none_is_left_out() {
        let stretch = json!([{"kind": "Pod", "namespace": "mail", "name": "mx", "pod": "mx", "node": "node-1",
            "from": "2026-03-01T10:00:00Z", "until": "2026-03-01T11:00:00Z"}]);
        let object = json!({"data": {
            "v4-203-0-113-7-tcp-25": stretch.to_string(), "v4-203-0-113-7-tcp-26": "{", "README": "[]",
        }});
        let page = page_in(&object);
        assert_eq!(page.len(), 1);
        assert_eq!(super::page("it", Some(&data(&page).unwrap())), page);
        assert_eq!(page_in(&json!({})), Page::new());
    }
}
