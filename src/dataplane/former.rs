//! What this program wrote under another resource prefix, before that was changed: it would serve for ever, as nobody looks for
//! that name any more.
//!
//! It is known by the comments that our rules carry, whatever the prefix. It is taken out like a backend that is
//! switched from: told as served, so that nobody hears of a change and no claim is forgotten, and removed once the
//! new rules serve, which loses no connection. That is done once per process: whatever comes back then is made by
//! somebody who runs beside us.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::PoisonError;

use crate::dataplane::Applied;
use crate::dataplane::Backend;
use crate::dataplane::Dataplane;
use crate::dataplane::DataplaneError;
use crate::dataplane::Failure;
use crate::dataplane::Observed;
use crate::dataplane::cleanup;
use crate::dataplane::cleanup::Removed;
use crate::dataplane::condition::Condition;
use crate::dataplane::counters::Counters;
use crate::dataplane::iptables;
use crate::dataplane::iptables::decode::decode;
use crate::dataplane::iptables::names::Names;
use crate::dataplane::iptables::names::prefix_of;
use crate::dataplane::iptables::table::Tables;
use crate::dataplane::nftables;
use crate::dataplane::nftables::Nftables;
use crate::dataplane::settings::Flavor;
use crate::dataplane::settings::Prefix;
use crate::dataplane::settings::Settings;
use crate::model::address::Family;
use crate::ruleset::Ruleset;
use crate::ruleset::entry::Key;

/// Takes over from whatever another prefix serves, and is otherwise the backend inside.
#[derive(Debug)]
pub struct Successor {
    inner: Backend,
    settings: Settings,
    stage: Mutex<Stage>,
}

/// How far it is.
#[derive(Clone, Debug)]
enum Stage {
    /// Nothing was removed yet; what was found.
    Before(BTreeSet<Prefix>),
    /// It is not looked for any more.
    After,
}

impl Successor {
    /// Serves by `inner`, which has these settings. What only prints has nothing to remove.
    pub const fn new(inner: Backend, settings: Settings) -> Self {
        let stage = match inner {
            Backend::DryRun(_) => Stage::After,
            Backend::Nftables(_) | Backend::Iptables(_) => Stage::Before(BTreeSet::new()),
        };
        Self { inner, settings, stage: Mutex::new(stage) }
    }

    /// The backend inside.
    pub const fn inner(&self) -> &Backend {
        &self.inner
    }

    fn stage(&self) -> Stage {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut Stage)) {
        change(&mut self.stage.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// What other prefixes of ours serve, given what was read for this one.
    async fn found(
        &self,
        observed: &Observed,
    ) -> Result<BTreeMap<Prefix, Vec<(Ruleset, BTreeMap<Key, Counters>)>>, DataplaneError> {
        let mut found: BTreeMap<Prefix, Vec<_>> = BTreeMap::new();
        let own = observed.tables.iter().map(|(family, tables)| (*family, tables));
        let beside = observed.beside.iter().map(|((_, family), tables)| (*family, tables));
        for (family, tables) in own.chain(beside) {
            for prefix in others(prefixes_in(tables), &self.settings) {
                let tables = BTreeMap::from([(family, tables.seen_as(Names(&prefix)))]);
                let served = decode(&tables, Names(&prefix));
                found.entry(prefix).or_default().push(served);
            }
        }
        for prefix in others(prefixes_in_nftables(&self.settings).await?, &self.settings) {
            let tables = Nftables::new(with_prefix(&self.settings, &prefix)).tables().await?;
            found.entry(prefix).or_default().push(nftables::decode(&tables));
        }
        Ok(found)
    }
}

impl Dataplane for Successor {
    async fn read(&self) -> Result<Observed, DataplaneError> {
        let mut observed = self.inner.read().await?;
        if matches!(self.stage(), Stage::After) {
            return Ok(observed);
        }
        let found = self.found(&observed).await?;
        // Somebody who only reads must not begin it anew.
        self.change(|stage| {
            if let Stage::Before(former) = stage {
                *former = found.keys().cloned().collect();
            }
        });
        for (served, counted) in found.into_values().flatten() {
            observed.ruleset.complete_with(served);
            for (key, counted) in counted {
                observed.counters.entry(key).or_insert(counted);
            }
        }
        Ok(observed)
    }

    async fn apply(&self, desired: &Ruleset, observed: Observed) -> Applied {
        let mut applied = self.inner.apply(desired, observed).await;
        let Stage::Before(former) = self.stage() else { return applied };
        if !applied.failures.is_empty() {
            return applied;
        }
        for prefix in &former {
            let (removed, errors) = cleanup::remove_rules(&with_prefix(&self.settings, prefix)).await;
            let made = removed.into_iter().filter_map(|removed| match removed {
                Removed::Rules { transaction, .. } => Some(transaction),
                Removed::Routing(_) => None,
            });
            applied.transactions.extend(made);
            // It is tried again with the next turn.
            let family = desired.families().first().copied().unwrap_or(Family::V4);
            applied.failures.extend(errors.into_iter().map(|error| Failure { family, error }));
        }
        if applied.failures.is_empty() {
            self.change(|stage| *stage = Stage::After);
        }
        // The tables are others now than those that were seen.
        if !former.is_empty()
            && let Ok(observed) = self.inner.read().await
        {
            applied.observed = observed;
        }
        applied
    }

    async fn conditions(&self, desired: &Ruleset) -> Vec<Condition> {
        self.inner.conditions(desired).await
    }
}

/// All prefixes under which something of ours is in the kernel, but for the one of these settings.
pub(crate) async fn prefixes(settings: &Settings) -> Result<BTreeSet<Prefix>, DataplaneError> {
    let mut found = prefixes_in_nftables(settings).await?;
    for tables in iptables::beside(settings, &Flavor::ALL).await?.values() {
        found.extend(prefixes_in(tables));
    }
    Ok(others(found, settings).collect())
}

fn others(prefixes: BTreeSet<Prefix>, settings: &Settings) -> impl Iterator<Item = Prefix> {
    prefixes.into_iter().filter(|prefix| *prefix != settings.prefix)
}

/// The same node under another prefix.
pub(crate) fn with_prefix(settings: &Settings, prefix: &Prefix) -> Settings {
    Settings { prefix: prefix.clone(), ..settings.clone() }
}

/// The prefixes of ours in tables of iptables: of jumps, and of the chains that tell their layout.
fn prefixes_in(tables: &Tables) -> BTreeSet<Prefix> {
    let mut found = BTreeSet::new();
    for table in [&tables.filter, &tables.mangle, &tables.nat] {
        for (name, chain) in &table.chains {
            for rule in &chain.rules {
                if rule.text.contains(iptables::position::JUMP) {
                    found.extend(prefix_of(&rule.target));
                } else if rule.text.contains(iptables::layout::SKELETON_OF_ANY_VERSION) {
                    found.extend(prefix_of(name));
                }
            }
        }
    }
    found
}

/// A kernel that cannot be asked about nf_tables has none of ours.
async fn prefixes_in_nftables(settings: &Settings) -> Result<BTreeSet<Prefix>, DataplaneError> {
    match Nftables::new(settings.clone()).prefixes().await {
        Err(DataplaneError::Netlink(error)) if nftables::netlink::is_unanswered(&error) => {
            Ok(BTreeSet::new())
        }
        found => found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::iptables::parse::parse;

    #[test]
    fn our_chains_are_known_by_their_comments_whatever_the_prefix() {
        let found = |saved: &str| {
            let tables = parse(saved, Names(&Prefix::default())).unwrap();
            prefixes_in(&tables).into_iter().map(|prefix| prefix.to_string()).collect::<Vec<_>>()
        };
        let chains = ":FORWARD ACCEPT [0:0]\n:A-B-FWD - [0:0]\n:NAT-IN - [0:0]\n:NAT-ACCEPT - [0:0]\n";
        let saved = |rules: &str| format!("*filter\n{chains}{rules}COMMIT\n");
        assert_eq!(found(&saved("")), [""; 0], "a name alone is anybody's");
        assert_eq!(found(&saved("-A FORWARD -j NAT-ACCEPT\n")), [""; 0]);
        assert_eq!(
            found(&saved("-A FORWARD -m comment --comment \"pinhole:jump\" -j NAT-ACCEPT\n")),
            ["NAT"]
        );
        assert_eq!(
            found(&saved("-A A-B-FWD -m comment --comment \"pinhole:skeleton:7\" -j RETURN\n")),
            ["A-B"]
        );
        assert_eq!(found(&saved("-A FORWARD -m comment --comment pinhole:jump -j lower-ACCEPT\n")), [""; 0]);
    }
}
