//! Claims in the API server.
//!
//! # Guarantees
//! Creating is the API server's create-if-absent, reading is a quorum read and never a cache, and every change names the UID
//! and the version that it rests on. An answer that was lost is a failure; whoever repeats the request finds its own claim.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::Client;
use kube::api::DeleteParams;
use kube::api::ListParams;
use kube::api::PostParams;
use kube::api::Preconditions;

use crate::allocation::acquire::Acquisition;
use crate::allocation::acquire::Verdict;
use crate::allocation::claim::Claim;
use crate::allocation::claim::ClaimError;
use crate::allocation::claim::StoredClaim;
use crate::allocation::claim::Version;
use crate::allocation::key::ClaimKey;
use crate::allocation::operation::Failure;
use crate::allocation::operation::Operation;
use crate::allocation::operation::Outcome;
use crate::allocation::pool::Pool;
use crate::api::crd::port_claim::PortClaim;
use crate::cluster::trouble::describe;
use crate::cluster::trouble::is_denied;

/// Who we are in a claim's managed fields: one manager for all that write it, as each more costs memory for each claim.
const FIELD_MANAGER: &str = "pinhole";

/// How long a moment is, in which another request can finish.
const MOMENT: Duration = Duration::from_millis(50);

/// Where claims are stored.
pub trait ClaimStore: Send + Sync + 'static {
    /// Does one thing, completely or not at all.
    fn perform(&self, operation: Operation) -> BoxFuture<'_, Outcome>;
}

/// Plays a request for claims to its end.
pub async fn acquire(store: &dyn ClaimStore, acquisition: &mut Acquisition) -> Verdict {
    while let Some(operation) = acquisition.next() {
        acquisition.take(store.perform(operation).await);
    }
    let unfinished =
        || Failure { reason: "a request for claims ended without a verdict".to_owned(), is_lasting: true };
    acquisition.verdict().cloned().unwrap_or_else(|| Verdict::NotNow(unfinished()))
}

/// The claims of the namespace of these wishes, which count against a quota that one of them is under; `None` where none is.
pub async fn counted(
    store: &dyn ClaimStore,
    pools: &[Pool],
    wishes: &[Claim],
) -> Result<Option<Vec<StoredClaim>>, Failure> {
    let is_asked = |pool: &Pool| wishes.iter().any(|wish| wish.pool.as_ref() == Some(&pool.name));
    let is_limited = pools.iter().any(|pool| pool.ports_per_namespace.is_some() && is_asked(pool));
    let Some(first) = wishes.first().filter(|_| is_limited) else { return Ok(None) };
    match store.perform(Operation::ListOf(Arc::clone(&first.holder.object.namespace))).await {
        Outcome::Listed(held) => Ok(Some(held)),
        Outcome::Failed(failure) => Err(failure),
        outcome => {
            let reason = format!("the store of claims answered {outcome:?} to a list; please report this");
            Err(Failure { reason, is_lasting: true })
        }
    }
}

/// Takes back what a granted request stored, for a reason that was found afterwards.
pub async fn take_back(store: &dyn ClaimStore, acquisition: &mut Acquisition, failure: Failure) -> Verdict {
    acquisition.revoke(Verdict::NotNow(failure));
    acquire(store, acquisition).await
}

/// The time that claims are written with: whole seconds, as elsewhere in Kubernetes.
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

/// The API server as a store of claims.
#[derive(Clone)]
pub struct ApiClaims {
    api: Api<PortClaim>,
}

impl ApiClaims {
    /// Stores claims through this client.
    pub fn new(client: Client) -> Self {
        Self { api: Api::all(client) }
    }

    async fn create(&self, claim: &Claim) -> Result<Outcome, Failure> {
        let parameters =
            PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        match self.api.create(&parameters, &claim.to_object()).await {
            Ok(object) => stored(&object),
            Err(error) if is_code(&error, 409) => Ok(Outcome::Exists),
            Err(error) => Err(failure("creating", claim.key, &error)),
        }
    }

    async fn get(&self, key: ClaimKey) -> Result<Outcome, Failure> {
        let found = self.api.get_opt(&key.to_string()).await;
        let found = found.map_err(|error| failure("reading", key, &error))?;
        let read = found.map(|object| StoredClaim::read(&object).map(Box::new)).transpose();
        read.map(Outcome::Found).map_err(|error| unreadable(&error))
    }

    /// The claims with this value of a field that `is_wanted` tells apart. A server that cannot select by field sends all.
    async fn list(
        &self,
        field: &str,
        value: &str,
        is_wanted: impl Fn(&StoredClaim) -> bool,
    ) -> Result<Outcome, Failure> {
        let selected = ListParams::default().fields(&format!("{field}={value}"));
        let listed = match self.api.list(&selected).await {
            Err(error) if is_code(&error, 400) => self.api.list(&ListParams::default()).await,
            listed => listed,
        };
        let listed = listed.map_err(|error| Failure {
            reason: format!("listing the PortClaims of {value} failed: {}", describe(&error)),
            is_lasting: is_denied(&error),
        })?;
        // One that cannot be read holds nothing that could be compared; its own key is refused when somebody reads it.
        let claims = listed.items.iter().filter_map(|object| StoredClaim::read(object).ok());
        Ok(Outcome::Listed(claims.filter(is_wanted).collect()))
    }

    async fn update(&self, claim: &Claim, version: &Version) -> Result<Outcome, Failure> {
        let mut object = claim.to_object();
        object.metadata.uid = Some(version.uid.to_string());
        object.metadata.resource_version = Some(version.revision.to_string());
        let parameters =
            PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        match self.api.replace(&claim.key.to_string(), &parameters, &object).await {
            Ok(object) => stored(&object),
            Err(error) if is_code(&error, 409) || is_code(&error, 404) => Ok(Outcome::Stale),
            Err(error) => Err(failure("updating", claim.key, &error)),
        }
    }

    async fn delete(&self, version: &Version) -> Result<Outcome, Failure> {
        let preconditions = Preconditions {
            uid: Some(version.uid.to_string()),
            resource_version: Some(version.revision.to_string()),
        };
        let parameters = DeleteParams::default().preconditions(preconditions);
        match self.api.delete(&version.key.to_string(), &parameters).await {
            Ok(_) => Ok(Outcome::Deleted),
            Err(error) if is_code(&error, 409) || is_code(&error, 404) => Ok(Outcome::Stale),
            Err(error) => Err(failure("deleting", version.key, &error)),
        }
    }
}

impl ClaimStore for ApiClaims {
    fn perform(&self, operation: Operation) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            let outcome = match &operation {
                Operation::Create(claim) => self.create(claim).await,
                Operation::Get(key) => self.get(*key).await,
                Operation::List(address) => {
                    let is_wanted = |stored: &StoredClaim| stored.claim.key.address() == *address;
                    self.list("spec.address", &address.to_string(), is_wanted).await
                }
                Operation::ListOf(namespace) => {
                    let is_wanted = |stored: &StoredClaim| stored.claim.holder.object.namespace == *namespace;
                    self.list("spec.holder.namespace", namespace, is_wanted).await
                }
                Operation::Update(claim, version) => self.update(claim, version).await,
                Operation::Delete(version) => self.delete(version).await,
                Operation::Wait => {
                    tokio::time::sleep(MOMENT).await;
                    Ok(Outcome::Waited)
                }
            };
            outcome.unwrap_or_else(Outcome::Failed)
        })
    }
}

fn stored(object: &PortClaim) -> Result<Outcome, Failure> {
    StoredClaim::read(object).map(Box::new).map(Outcome::Stored).map_err(|error| unreadable(&error))
}

fn is_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

fn failure(doing: &str, key: ClaimKey, error: &kube::Error) -> Failure {
    let advice = if is_code(error, 404) {
        "; install the custom resources: pinhole crd | kubectl apply -f -"
    } else {
        ""
    };
    Failure {
        reason: format!("{doing} the PortClaim {key} failed: {}{advice}", describe(error)),
        is_lasting: is_denied(error) || is_code(error, 404),
    }
}

fn unreadable(error: &ClaimError) -> Failure {
    Failure { reason: error.to_string(), is_lasting: true }
}

#[cfg(test)]
impl ClaimStore for std::sync::Mutex<crate::allocation::memory::Memory> {
    fn perform(&self, operation: Operation) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            // Others come first, as they may over a network.
            tokio::task::yield_now().await;
            self.lock().unwrap().perform(operation)
        })
    }
}
