//! Claims in memory, with the same promises as the API server gives: for tests, and for playing without a cluster.

use std::collections::BTreeMap;

use crate::allocation::claim::Claim;
use crate::allocation::claim::StoredClaim;
use crate::allocation::claim::Version;
use crate::allocation::key::ClaimKey;
use crate::allocation::operation::Operation;
use crate::allocation::operation::Outcome;

/// A store of claims that one process has for itself.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    claims: BTreeMap<ClaimKey, StoredClaim>,
    revision: u64,
}

impl Memory {
    /// Does one thing, completely or not at all.
    pub fn perform(&mut self, operation: Operation) -> Outcome {
        match operation {
            Operation::Create(claim) if self.claims.contains_key(&claim.key) => Outcome::Exists,
            Operation::Create(claim) => {
                let uid = format!("uid-{}", self.revision + 1);
                self.store(claim, uid.into())
            }
            Operation::Get(key) => Outcome::Found(self.claims.get(&key).cloned().map(Box::new)),
            Operation::List(address) => Outcome::Listed(
                self.claims
                    .values()
                    .filter(|stored| stored.claim.key.address() == address)
                    .cloned()
                    .collect(),
            ),
            Operation::ListOf(namespace) => Outcome::Listed(
                self.claims
                    .values()
                    .filter(|stored| stored.claim.holder.object.namespace == namespace)
                    .cloned()
                    .collect(),
            ),
            Operation::Update(claim, version) if self.is_current(&version) => {
                // As the API server: what changes nothing is not written.
                match self.claims.get(&claim.key).filter(|stored| stored.claim == claim) {
                    Some(same) => Outcome::Stored(Box::new(same.clone())),
                    None => self.store(claim, version.uid),
                }
            }
            Operation::Delete(version) if self.is_current(&version) => {
                self.revision += 1;
                self.claims.remove(&version.key);
                Outcome::Deleted
            }
            Operation::Update(..) | Operation::Delete(_) => Outcome::Stale,
            Operation::Wait => Outcome::Waited,
        }
    }

    /// Every claim, in the order of the keys.
    pub fn claims(&self) -> impl Iterator<Item = &StoredClaim> {
        self.claims.values()
    }

    fn is_current(&self, version: &Version) -> bool {
        self.claims.get(&version.key).is_some_and(|stored| stored.version == *version)
    }

    fn store(&mut self, claim: Claim, uid: std::sync::Arc<str>) -> Outcome {
        self.revision += 1;
        let version = Version { key: claim.key, uid, revision: self.revision };
        let stored = StoredClaim { claim, version };
        self.claims.insert(stored.claim.key, stored.clone());
        Outcome::Stored(Box::new(stored))
    }
}
