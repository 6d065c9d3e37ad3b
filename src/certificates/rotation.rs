//! The steps by which one authority replaces another, as a state machine over one stored object.
//!
//! Any replica may do any step: it stores the state that [`advance`] returns on the condition that nobody has stored
//! another one meanwhile. Who loses reads again. There is no leader.
//!
//! # Guarantees
//! Every leaf that a replica serves chains to an authority in every bundle that an API server may still hold, as long
//! as the assumptions hold. In particular:
//! - Leaves change to the next authority only after every configuration was seen with a bundle that has both, and the
//!   soak time has passed *by the watch of the replica that makes the step*, so that clocks which disagree do no harm.
//! - If a configuration changed meanwhile, in whatever way, the soak begins anew.
//! - An authority leaves the bundle only when every leaf that it signed has expired.
//!
//! # Assumptions
//! - An API server has seen a change of a configuration within the soak time.
//! - Whoever writes a bundle read the configuration first and the state after that, and writes on the condition that
//!   the configuration is still the one that was read. A late writer then never takes back a newer bundle.
//! - A leaf's validity counts from before the state was read that named its authority.
//! - `retire_after` is not shorter than `leaf_lifetime`; [`Times::check`] holds that.

use std::collections::BTreeMap;
use std::time::Duration;

use thiserror::Error;

use crate::certificates::authority::Authority;
use crate::certificates::authority::Leaf;
use crate::certificates::bundle::Bundle;
use crate::certificates::bundle::Trusted;
use crate::certificates::moment::Moment;

/// How long things last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Times {
    /// An authority's validity; its successor is made when two thirds have passed.
    pub ca_lifetime: Duration,
    /// How long every configuration must have had the new bundle before leaves change.
    pub soak: Duration,
    /// How long the old authority stays trusted after leaves changed.
    pub retire_after: Duration,
    /// A leaf's validity; it is renewed when two thirds have passed.
    pub leaf_lifetime: Duration,
}

/// Times that would break calls.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TimesError {
    /// An authority would leave the bundle while its leaves are in use.
    #[error(
        "--ca-retire-after must not be shorter than --leaf-lifetime: a replica that cannot reach the API server serves its \
         leaf to its end, and the authority of that leaf must be trusted until then"
    )]
    RetiresTooEarly,
    /// The next rotation would begin before the last one ends.
    #[error(
        "--ca-lifetime must be longer than three times --ca-soak and --ca-retire-after together: one rotation has to \
         end well before the next one begins"
    )]
    RotatesTooOften,
    /// A leaf would expire while nobody can renew it.
    #[error(
        "--leaf-lifetime must be longer than six times --ca-soak: while a first authority soaks nobody signs, and the last \
         third of a leaf's life has to last until then"
    )]
    LeafTooShort,
    /// Nothing may take no time.
    #[error("--ca-soak and --leaf-lifetime must be longer than a second")]
    TooShort,
}

/// What is stored: who signs, who is trusted, and how far a rotation has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// One authority signs and is trusted alone.
    Stable {
        /// Who signs.
        active: Authority,
    },
    /// The next authority is to be trusted everywhere.
    Publish(Introduction),
    /// The next authority is trusted in every configuration, and every API server is to see that.
    Soak {
        /// Who comes and who is there.
        introduction: Introduction,
        /// The configurations as they were when each had the bundle.
        seen: Versions,
        /// When that was, by the clock of whoever saw it.
        since: Moment,
    },
    /// The new authority signs; those before are trusted until their leaves have expired.
    Retire {
        /// Who signs.
        active: Authority,
        /// Who is trusted beside it.
        kept: Bundle,
        /// When leaves changed.
        since: Moment,
    },
}

/// A next authority beside what is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Introduction {
    /// Who signs until then. Nobody when this is the first authority and callers trusted somebody else's before.
    pub active: Option<Authority>,
    /// Who will sign.
    pub next: Authority,
    /// Who was found trusted and stays so for a while.
    pub kept: Bundle,
}

/// The version of each configuration by its name.
pub type Versions = BTreeMap<String, String>;

/// A webhook configuration as it is stored now, as far as it is our concern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// Kind and name, for messages and to tell them apart.
    pub name: String,
    /// Another text after each change of what it says, also when it was deleted and made anew.
    pub version: String,
    /// What each of its webhooks trusts; empty where it says nothing.
    pub bundles: Vec<Bundle>,
}

/// What a replica sees besides the state.
#[derive(Clone, Debug)]
pub struct Seen<'a> {
    /// The configurations that exist.
    pub configurations: &'a [Configuration],
    /// For how long this replica has seen the present soak, by its own watch.
    pub soaked_for: Duration,
    /// Whether somebody asks for a new authority before it is due.
    pub is_asked_for: bool,
}

impl Times {
    /// Whether these times can be used.
    pub fn check(&self) -> Result<(), TimesError> {
        let Self { ca_lifetime, soak, retire_after, leaf_lifetime } = self;
        if (*soak).min(*leaf_lifetime) <= Duration::from_secs(1) {
            return Err(TimesError::TooShort);
        }
        if *leaf_lifetime <= 6 * *soak {
            return Err(TimesError::LeafTooShort);
        }
        if retire_after < leaf_lifetime {
            return Err(TimesError::RetiresTooEarly);
        }
        if *ca_lifetime <= 3 * (*soak + *retire_after) {
            return Err(TimesError::RotatesTooOften);
        }
        Ok(())
    }

    /// How often to look: a minute, or as often as shorter times need it. The wall clock is asked each time, so that a
    /// machine that slept notices soon.
    pub fn poll(&self) -> Duration {
        let shortest = (self.soak / 2).min(self.leaf_lifetime / 12);
        shortest.clamp(Duration::from_millis(200), Duration::from_mins(1))
    }
}

impl State {
    /// Whom every configuration should trust.
    pub fn bundle(&self) -> Bundle {
        match self {
            Self::Stable { active } => Bundle::from_iter([active.certificate().clone()]),
            Self::Publish(introduction) | Self::Soak { introduction, .. } => introduction.bundle(),
            Self::Retire { active, kept, .. } => {
                let mut bundle = kept.clone();
                bundle.insert(active.certificate().clone());
                bundle
            }
        }
    }

    /// What a webhook that trusts `present` should trust. Whoever is trusted and unknown to this state is left alone
    /// until it is stable again: the state may be younger than the leaves in use, as when its Secret was deleted.
    pub fn wanted(&self, present: &Bundle) -> Bundle {
        let mut wanted = self.bundle();
        if !matches!(self, Self::Stable { .. }) {
            wanted.extend(present.iter().cloned());
        }
        wanted
    }

    /// Who signs leaves now.
    pub fn signer(&self) -> Option<&Authority> {
        match self {
            Self::Stable { active } | Self::Retire { active, .. } => Some(active),
            Self::Publish(introduction) | Self::Soak { introduction, .. } => introduction.active.as_ref(),
        }
    }

    /// The step's name, for logs, metrics and whoever looks at the stored object.
    pub const fn phase(&self) -> &'static str {
        match self {
            Self::Stable { .. } => "stable",
            Self::Publish(_) => "publish",
            Self::Soak { .. } => "soak",
            Self::Retire { .. } => "retire",
        }
    }
}

impl Introduction {
    fn bundle(&self) -> Bundle {
        let mut bundle = self.kept.clone();
        bundle.insert(self.next.certificate().clone());
        bundle.extend(self.active.as_ref().map(|active| active.certificate().clone()));
        bundle
    }
}

impl Configuration {
    /// Whether all of its webhooks trust everybody in `bundle`.
    pub fn covers(&self, bundle: &Bundle) -> bool {
        self.bundles.iter().all(|present| present.covers(bundle))
    }

    /// Whether each of its webhooks trusts what it should.
    pub fn agrees_with(&self, state: &State) -> bool {
        self.bundles.iter().all(|present| *present == state.wanted(present))
    }
}

/// The state to store next, or `None` when it is not time for a step. `mint` makes an authority that is valid from now.
pub fn advance<E>(
    state: Option<&State>,
    seen: &Seen<'_>,
    now: Moment,
    times: &Times,
    mint: impl FnOnce() -> Result<Authority, E>,
) -> Result<Option<State>, E> {
    let Some(state) = state else { return mint().map(|first| Some(begin(first, seen, now))) };
    Ok(match state {
        State::Stable { active } => {
            if let Some(kept) = strangers(active.certificate(), seen, now) {
                // Callers trust somebody else: our leaves may be served once everybody trusts us, too.
                return Ok(Some(State::Publish(Introduction { active: None, next: active.clone(), kept })));
            }
            let is_due = times.ca_lifetime * 2 / 3 <= now.since(active.issued());
            if !is_due && !seen.is_asked_for {
                return Ok(None);
            }
            let (active, next) = (Some(active.clone()), mint()?);
            Some(State::Publish(Introduction { active, next, kept: Bundle::default() }))
        }
        State::Publish(introduction) => is_published(introduction, seen).then(|| State::Soak {
            introduction: introduction.clone(),
            seen: versions(seen.configurations),
            since: now,
        }),
        State::Soak { introduction, seen: then, since: _ } => {
            if *then != versions(seen.configurations) || !is_published(introduction, seen) {
                Some(State::Publish(introduction.clone()))
            } else if seen.soaked_for <= times.soak {
                None
            } else {
                let Introduction { active, next, kept } = introduction.clone();
                let mut kept = kept;
                kept.extend(active.map(|active| active.certificate().clone()));
                kept.remove(next.certificate());
                Some(State::Retire { active: next, kept, since: now })
            }
        }
        State::Retire { active, kept: _, since } => {
            (times.retire_after < now.since(*since)).then(|| State::Stable { active: active.clone() })
        }
    })
}

/// Whether a replica needs another leaf. `early` moves the moment forward, so that replicas differ.
pub fn is_leaf_due(
    leaf: Option<&Leaf>,
    signer: &Authority,
    now: Moment,
    lifetime: Duration,
    early: Duration,
) -> bool {
    let Some(leaf) = leaf else { return true };
    leaf.authority != *signer.certificate()
        || (lifetime * 2 / 3).saturating_sub(early) <= now.since(leaf.issued)
        || leaf.not_after <= now
}

/// Whether a replica with this leaf may be called now: `None`, or why not.
///
/// What the configurations say now is not yet what every API server has seen. So while nobody signs, because our
/// authority is being introduced to callers who trust another one, only a replica stays ready that was so before.
pub fn obstacle(
    leaf: &Leaf,
    state: &State,
    configurations: &[Configuration],
    was_ready: bool,
) -> Option<String> {
    if configurations.is_empty() {
        return Some("there is no webhook configuration that could be given our authority".to_owned());
    }
    let doubtful = configurations
        .iter()
        .find(|configuration| !configuration.bundles.iter().all(|bundle| bundle.trusts(&leaf.authority)));
    if let Some(configuration) = doubtful {
        return Some(format!("{} does not trust our authority yet", configuration.name));
    }
    (state.signer().is_none() && !was_ready)
        .then(|| "API servers that trusted another authority are given time to see ours".to_owned())
}

/// The first state. Where callers trust nobody yet, nothing can break; else what they trust is kept for a while.
fn begin(first: Authority, seen: &Seen<'_>, now: Moment) -> State {
    match strangers(first.certificate(), seen, now) {
        None => State::Stable { active: first },
        Some(kept) => State::Publish(Introduction { active: None, next: first, kept }),
    }
}

/// Whom the configurations trust, if one of them trusts somebody but not `authority`.
fn strangers(authority: &Trusted, seen: &Seen<'_>, now: Moment) -> Option<Bundle> {
    let bundles = || seen.configurations.iter().flat_map(|configuration| &configuration.bundles);
    let mut found: Bundle = bundles().flat_map(Bundle::iter).cloned().collect();
    found.remove(authority);
    found.retain_valid(now);
    let is_doubted = bundles().any(|bundle| !bundle.is_empty() && !bundle.trusts(authority));
    (is_doubted && !found.is_empty()).then_some(found)
}

fn is_published(introduction: &Introduction, seen: &Seen<'_>) -> bool {
    let bundle = introduction.bundle();
    !seen.configurations.is_empty()
        && seen.configurations.iter().all(|configuration| configuration.covers(&bundle))
}

fn versions(configurations: &[Configuration]) -> Versions {
    configurations
        .iter()
        .map(|configuration| (configuration.name.clone(), configuration.version.clone()))
        .collect()
}

#[cfg(test)]
mod tests;
