//! The NatPools that `pinhole check` judges by, read from files.

use std::io;
use std::path::PathBuf;

use crate::allocation::pool::Pool;
use crate::allocation::pool::PoolError;
use crate::api::crd::nat_pool::NatPool;
use crate::cli::manifest;
use crate::cli::manifest::Manifest;
use crate::cli::manifest::Manifests;
use crate::cli::manifest::Place;
use crate::cli::manifest::Unreadable;

/// The pools in these files and directories. What cannot be read goes to `unreadable`: nobody can say then what is granted.
pub(super) fn read(paths: &[PathBuf], unreadable: &mut Vec<Unreadable>) -> Vec<Pool> {
    let Manifests { objects, unreadable: mut unread, .. } = manifest::read(paths, "", io::empty());
    let found: Vec<_> = objects.iter().filter(|manifest| manifest.object.kind == "NatPool").collect();
    if let Some(first) = paths.first().filter(|_| found.is_empty() && unread.is_empty()) {
        // Without any everything would be refused, as if that had been meant.
        let place = Place { file: first.display().to_string().into(), line: None };
        unreadable.push(Unreadable { place, message: "--pool names no NatPool".to_owned() });
    }
    unreadable.append(&mut unread);
    let mut pools = Vec::new();
    for manifest in found {
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
