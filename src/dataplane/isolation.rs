//! Brings one family to its wanted state, whichever the backend. Entries that the kernel refuses are found by halving, so
//! that they keep no other from being programmed (R08).

use std::future::Future;

use crate::dataplane::DataplaneError;
use crate::dataplane::KernelRefused;
use crate::model::address::Family;
use crate::ruleset::Ruleset;
use crate::ruleset::diff::Change;
use crate::ruleset::diff::change;
use crate::ruleset::diff::diff_of;

/// How many transactions may be spent on finding the entries that the kernel refuses.
const ATTEMPTS: usize = 128;

/// One family on its way to its wanted state.
pub(crate) trait Work {
    /// The family.
    fn family(&self) -> Family;

    /// What the node serves now, in this family and maybe others.
    fn present(&self) -> &Ruleset;

    /// Reads it from the kernel.
    fn reread(&mut self) -> impl Future<Output = Result<(), DataplaneError>> + Send;

    /// Brings it to another state by one transaction, or changes nothing that a packet meets.
    fn bring_to(&mut self, desired: &Ruleset) -> impl Future<Output = Result<(), DataplaneError>> + Send;
}

/// Programs everything that can be, from what was read last; what the kernel refuses is added to `refused`.
pub(crate) async fn bring(
    work: &mut (impl Work + Send),
    desired: &Ruleset,
    refused: &mut Vec<KernelRefused>,
) -> Result<(), DataplaneError> {
    let mut outcome = work.bring_to(desired).await;
    if outcome.as_ref().is_err_and(DataplaneError::is_refusal) {
        // The usual reason is that the rules are no longer what they were when they were read.
        work.reread().await?;
        outcome = work.bring_to(desired).await;
    }
    if outcome.as_ref().is_err_and(DataplaneError::is_refusal) {
        outcome = isolate(work, desired, refused).await;
    }
    outcome
}

/// Programs everything but the entries that the kernel refuses.
async fn isolate(
    work: &mut (impl Work + Send),
    desired: &Ruleset,
    refused: &mut Vec<KernelRefused>,
) -> Result<(), DataplaneError> {
    let family = work.family();
    let mut good = desired.without_entries();
    for present in diff_of(family, &good, work.present()) {
        // Read from one kernel, entries do not overlap.
        let _ = change(&mut good, &present);
    }
    // Without this, it is not an entry that is refused.
    work.bring_to(&good).await?;
    let mut sets: Vec<Vec<Change>> = vec![diff_of(family, &good, desired)];
    let (mut attempts, mut progress, mut whole, mut stuck) = (0, false, None, None);
    while let Some(mut set) = sets.pop() {
        let mut candidate = good.clone();
        // Ports stay taken when the entry that holds them could not be removed, which is told as the failure.
        let outcome = match set.iter().try_for_each(|next| change(&mut candidate, next)) {
            Ok(()) => work.bring_to(&candidate).await.map_err(Some),
            Err(_) => Err(None),
        };
        attempts += 1;
        let error = match outcome {
            Ok(()) => {
                good = candidate;
                progress = true;
                continue;
            }
            Err(Some(error)) if error.is_refusal() && attempts < ATTEMPTS => Some(error),
            Err(Some(error)) => return Err(error),
            Err(None) => None,
        };
        match (set.as_slice(), error) {
            ([Change::Added(entry) | Change::Replaced { after: entry, .. }], Some(error)) => {
                refused.push(KernelRefused { entry: entry.clone(), error: error.to_string() });
            }
            ([_], error) => stuck = stuck.or(error),
            (_, error) => {
                let second = set.split_off(set.len() / 2);
                sets.extend([second, set]);
                whole = whole.or(error);
            }
        }
    }
    // When nothing at all can be changed, it is not for what the entries are.
    if let Some(error) = stuck.or(whole.filter(|_| !progress)) {
        refused.clear();
        return Err(error);
    }
    Ok(())
}
