//! Patches of single objects of the kinds that hold ports: of which only matters whether they still found what they name.

use kube::Client;
use kube::Resource as _;
use kube::api::Patch;
use kube::api::PatchParams;
use kube::api::Request;
use serde::Deserialize;
use serde_json::Value;

use crate::api::object::Kind;
use crate::cluster::resource::Resource;
use crate::cluster::resource::Seen;
use crate::cluster::trouble::describe;
use crate::model::holder::ObjectName;

/// The answer, of which nothing is needed.
#[derive(Clone, Debug, Deserialize)]
struct Answer {}

/// Applies a merge patch that names the UID and version of an object; `false` when that is not what is stored any more.
pub(super) async fn merge(
    client: &Client,
    kind: Kind,
    name: &ObjectName,
    patch: &Value,
) -> Result<bool, String> {
    let request = objects(kind, name).patch(&name.name, &PatchParams::default(), &Patch::Merge(patch));
    send(client, request).await
}

/// Applies a part of the status of an object whose UID it names, as this manager; `false` when that object is gone.
pub(super) async fn apply_status(
    client: &Client,
    kind: Kind,
    name: &ObjectName,
    manager: &str,
    part: &Value,
) -> Result<bool, String> {
    let params = PatchParams::apply(manager).force();
    let request = objects(kind, name).patch_subresource("status", &name.name, &params, &Patch::Apply(part));
    send(client, request).await
}

fn objects(kind: Kind, name: &ObjectName) -> Request {
    Request::new(Seen::url_path(&Resource::Holder(kind), Some(&name.namespace)))
}

async fn send<E: ToString>(
    client: &Client,
    request: Result<hyper::Request<Vec<u8>>, E>,
) -> Result<bool, String> {
    match client.request::<Answer>(request.map_err(|error| error.to_string())?).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
        Err(error) => Err(describe(&error)),
    }
}
