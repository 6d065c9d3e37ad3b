//! Reads whatever a person may read: any path of the API server, in pages, and asks what would become of a creation.
//!
//! Unlike the processes, a person at a terminal often may not read everything. So what is forbidden and what does not
//! exist are answers here, which the caller tells apart, and nothing is tried twice.

use std::fmt;
use std::time::Duration;

use hyper::Request;
use hyper::header::CONTENT_TYPE;
use kube::Api;
use kube::Client;
use kube::api::ListParams;
use serde_json::Value;

use crate::api::object::Object;
use crate::cluster::resource::Resource;
use crate::cluster::resource::Seen;
use crate::cluster::trouble::describe;

/// How many objects one answer holds.
const PAGE: u32 = 500;

/// Who somebody at a terminal is in managed fields.
const FIELD_MANAGER: &str = "kubectl-pinhole";

/// Somebody is waiting in front of a terminal.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why something could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// The API server has no such object or resource.
    Absent,
    /// The user has no right to.
    Denied(String),
    /// Anything else.
    Failed(String),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("there is none"),
            Self::Denied(reason) | Self::Failed(reason) => f.write_str(reason),
        }
    }
}

/// What the API server answered to a creation.
#[derive(Clone, Debug, PartialEq)]
pub enum Creation {
    /// It creates this, or would.
    Accepted(Value),
    /// It refuses, with this HTTP status and message.
    Refused {
        /// The HTTP status.
        code: u16,
        /// What the user reads.
        message: String,
    },
    /// There was no answer.
    Unanswered(String),
}

impl Creation {
    /// Whether a webhook of ours has decided against it: the API server names the one that did.
    pub fn is_our_refusal(&self) -> bool {
        matches!(self, Self::Refused { message, .. } if message.contains(".pinhole.dev\" denied the request"))
    }

    /// Whether a webhook of ours was asked and gave no answer.
    pub fn is_failed_call(&self) -> bool {
        matches!(self, Self::Refused { message, .. }
            if message.contains("failed calling webhook") && message.contains(".pinhole.dev"))
    }
}

/// Reads through a client.
#[derive(Clone)]
pub struct Reader {
    client: Client,
}

impl Reader {
    /// Reads through this client.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// The client.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// What a path holds, such as `/version` or `/api/v1/nodes/node-1`.
    pub async fn get(&self, path: &str) -> Result<Value, ReadError> {
        let request = Request::get(path).body(Vec::new());
        let request = request.map_err(|error| ReadError::Failed(error.to_string()))?;
        patiently(self.client.request(request)).await
    }

    /// What a path holds that is no JSON, such as a pod's log.
    pub async fn text(&self, path: &str) -> Result<String, ReadError> {
        let request = Request::get(path).body(Vec::new());
        let request = request.map_err(|error| ReadError::Failed(error.to_string()))?;
        patiently(self.client.request_text(request)).await
    }

    /// The items of a list, over all its pages. The path may bring a selector as its query.
    pub async fn list(&self, path: &str) -> Result<Vec<Value>, ReadError> {
        let joint = if path.contains('?') { '&' } else { '?' };
        let mut items = Vec::new();
        let mut next = String::new();
        loop {
            let mut page = self.get(&format!("{path}{joint}limit={PAGE}{next}")).await?;
            if let Some(Value::Array(found)) = page.get_mut("items").map(Value::take) {
                items.extend(found);
            }
            match page.pointer("/metadata/continue").and_then(Value::as_str) {
                Some(token) if !token.is_empty() => next = format!("&continue={token}"),
                _ => return Ok(items),
            }
        }
    }

    /// The objects of a resource in the slim form that the rules read, in one namespace or in all. What cannot be
    /// decoded is left out: no rule can be applied to it.
    pub async fn objects(
        &self,
        resource: Resource,
        namespace: Option<&str>,
    ) -> Result<Vec<Object>, ReadError> {
        let api: Api<Seen> = match namespace {
            Some(namespace) => Api::namespaced_with(self.client(), namespace, &resource),
            None => Api::all_with(self.client(), &resource),
        };
        let mut objects = Vec::new();
        let mut parameters = ListParams::default().limit(PAGE);
        loop {
            let page = patiently(api.list(&parameters)).await?;
            objects.extend(page.items.into_iter().filter_map(|seen| Some(*seen.into_object(resource).ok()?)));
            match page.metadata.continue_ {
                Some(token) if !token.is_empty() => parameters = parameters.continue_token(&token),
                _ => return Ok(objects),
            }
        }
    }

    /// What would become of creating an object; nothing is stored.
    pub async fn dry_run(&self, path: &str, object: &Value) -> Creation {
        self.post(&format!("{path}?dryRun=All"), object).await
    }

    /// Creates an object.
    pub async fn create(&self, path: &str, object: &Value) -> Creation {
        self.post(path, object).await
    }

    /// Deletes an object.
    pub async fn delete(&self, path: &str) -> Result<(), ReadError> {
        let request = Request::delete(path).body(Vec::new());
        let request = request.map_err(|error| ReadError::Failed(error.to_string()))?;
        patiently(self.client.request::<Value>(request)).await.map(drop)
    }

    /// Merges a change into an object (RFC 7396).
    pub async fn merge(&self, path: &str, change: &Value) -> Result<(), ReadError> {
        let request = Request::patch(format!("{path}?fieldManager={FIELD_MANAGER}"))
            .header(CONTENT_TYPE, "application/merge-patch+json")
            .body(change.to_string().into_bytes());
        let request = request.map_err(|error| ReadError::Failed(error.to_string()))?;
        patiently(self.client.request::<Value>(request)).await.map(drop)
    }

    async fn post(&self, path: &str, object: &Value) -> Creation {
        let request = Request::post(path)
            .header(CONTENT_TYPE, "application/json")
            .body(object.to_string().into_bytes());
        let request = match request {
            Ok(request) => request,
            Err(error) => return Creation::Unanswered(error.to_string()),
        };
        match tokio::time::timeout(PATIENCE, self.client.request::<Value>(request)).await {
            Ok(Ok(created)) => Creation::Accepted(created),
            Ok(Err(kube::Error::Api(status))) => {
                Creation::Refused { code: status.code, message: status.message.clone() }
            }
            Ok(Err(error)) => Creation::Unanswered(describe(&error)),
            Err(_) => Creation::Unanswered(late()),
        }
    }
}

async fn patiently<T>(answer: impl Future<Output = Result<T, kube::Error>>) -> Result<T, ReadError> {
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Err(ReadError::Absent),
        Ok(Err(kube::Error::Api(status))) if status.code == 403 => {
            Err(ReadError::Denied(status.message.clone()))
        }
        Ok(Err(error)) => Err(ReadError::Failed(describe(&error))),
        Err(_) => Err(ReadError::Failed(late())),
    }
}

fn late() -> String {
    format!("the API server gave no answer within {} s", PATIENCE.as_secs())
}
