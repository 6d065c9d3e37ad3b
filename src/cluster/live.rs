//! Live reads from the API server.

use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::Client;
use kube::api::ListParams;

use crate::admission::conflict::Evidence;
use crate::admission::index::occupants::Source;
use crate::allocation::pool::Pool;
use crate::api::crd::nat_node::NatNode;
use crate::api::crd::nat_pool::NatPool;
use crate::api::object::Kind;
use crate::api::object::Object;
use crate::cluster::evidence::Found;
use crate::cluster::evidence::LiveReadError;
use crate::cluster::evidence::LiveReads;
use crate::cluster::nat_pools;
use crate::cluster::occupants::Speaks;
use crate::cluster::resource::Resource;
use crate::cluster::resource::Seen;
use crate::cluster::trouble::describe;
use crate::cluster::trouble::is_denied;

/// The API server as what live reads ask. Each is a quorum read: what it shows was stored when it was asked.
#[derive(Clone)]
pub struct ApiServer {
    client: Client,
}

impl ApiServer {
    /// Reads through this client.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// The object of this name as it is stored now; `None` when it does not exist. `namespace` only says something
    /// for resources that live in one.
    pub async fn get(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Object>, LiveReadError> {
        let api: Api<Seen> = match resource {
            Resource::Holder(_) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            Resource::Namespace | Resource::Node => Api::all_with(self.client.clone(), &resource),
        };
        let what = || match resource {
            Resource::Holder(_) => format!("{} {namespace}/{name}", resource.kind()),
            Resource::Namespace | Resource::Node => format!("{} {name}", resource.kind()),
        };
        let found = api.get_opt(name).await;
        let found = found.map_err(|error| LiveReadError {
            what: what(),
            reason: describe(&error),
            is_lasting: is_denied(&error),
        })?;
        let object = found.map(|seen| seen.into_object(resource)).transpose();
        let object = object.map_err(|undecodable| LiveReadError {
            what: what(),
            reason: undecodable.reason,
            is_lasting: true,
        })?;
        Ok(object.map(|object| *object))
    }

    /// Every pool.
    async fn pools(&self) -> Result<Arc<[Pool]>, LiveReadError> {
        let api: Api<NatPool> = Api::all(self.client.clone());
        let listed = api.list(&ListParams::default()).await.map_err(|error| LiveReadError {
            what: "the NatPools".to_owned(),
            reason: describe(&error),
            is_lasting: is_denied(&error),
        })?;
        Ok(listed.items.iter().filter_map(|object| nat_pools::read(object).ok()).collect())
    }
}

/// What an object says of the ports that it has.
async fn occupants<K: Speaks>(api: Api<K>, name: &str) -> Result<Found, LiveReadError> {
    let found = api.get_opt(name).await.map_err(|error| LiveReadError {
        what: format!("{name} of the {}", K::PLURAL),
        reason: describe(&error),
        is_lasting: is_denied(&error),
    })?;
    Ok(found.map_or(Found::Nothing, |object| Found::Occupants(Box::new(object.says()))))
}

impl LiveReads for ApiServer {
    fn read<'a>(&'a self, evidence: &'a Evidence) -> BoxFuture<'a, Result<Found, LiveReadError>> {
        Box::pin(async move {
            let object = match evidence {
                Evidence::Object(key) => {
                    self.get(Resource::Holder(key.kind), &key.name.namespace, &key.name.name).await?
                }
                Evidence::Namespace(name) => self.get(Resource::Namespace, "", name).await?,
                Evidence::Pools => return self.pools().await.map(Found::Pools),
                Evidence::Occupant(Source::Pod(name)) => {
                    self.get(Resource::Holder(Kind::Pod), &name.namespace, &name.name).await?
                }
                Evidence::Occupant(Source::NatNode(name)) => {
                    return occupants(Api::<NatNode>::all(self.client.clone()), name).await;
                }
                Evidence::Occupant(Source::Service(name)) => {
                    let api = Api::<Service>::namespaced(self.client.clone(), &name.namespace);
                    return occupants(api, &name.name).await;
                }
            };
            Ok(object.into())
        })
    }
}
