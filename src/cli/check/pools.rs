//! The NatPools that `pinhole check` judges by, read from files.

use std::io;
use std::path::PathBuf;

use crate::allocation::pool::Pool;
use crate::allocation::pool::PoolError;
use crate::api::crd::nat_pool::NatPool;
use crate::cli::manifest;
use crate::cli::manifest::Manifest;
use crate::cli::manifest::Place;
use crate::cli::manifest::Unreadable;

/// The pools in these files and directories. What cannot be read goes to `unreadable`: nobody can say then what is granted.
pub(super) fn read(paths: &[PathBuf], unreadable: &mut Vec<Unreadable>) -> Vec<Pool> {
    let mut manifests = manifest::read(paths, "", io::empty());
    let is_all_read = manifests.unreadable.is_empty();
    unreadable.append(&mut manifests.unreadable);
    let is_pool = |manifest: &&Manifest| manifest.object.kind == "NatPool";
    let has_some = manifests.objects.iter().any(|manifest| is_pool(&manifest));
    if let Some(first) = paths.first().filter(|_| is_all_read && !has_some) {
        // Without any everything would be refused, as if that had been meant.
        let place = Place { file: first.display().to_string().into(), line: None };
        unreadable.push(Unreadable { place, message: "--pool names no NatPool".to_owned() });
    }
    let mut pools = Vec::new();
    for manifest in manifests.objects.iter().filter(is_pool) {
        match pool(manifest) {
            Ok(pool) => pools.push(pool),
            Err(trouble) => unreadable.push(trouble),
        }
    }
    pools
}

fn pool(manifest: &Manifest) -> Result<Pool, Unreadable> {
    let name = &manifest.object.metadata.name;
    let trouble = |field: &str, message: String| Unreadable { place: manifest.place_of(field), message };
    let read = serde_json::from_value::<NatPool>(manifest.value());
    let read = read.map_err(|error| trouble("spec", format!("NatPool {name} cannot be read: {error}")))?;
    let pool = Pool::read(name, &read.spec).map_err(|PoolError { field, value, problem }| {
        trouble(&format!("spec.{field}"), format!("NatPool {name}: spec.{field}: {value}: {problem}"))
    })?;
    Ok(pool.deleting(manifest.object.metadata.deletion_timestamp.is_some()))
}
