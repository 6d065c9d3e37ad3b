//! Whether the process can serve, as a list of named conditions that its parts raise and drop.
//!
//! Every part that must be up first asks for a condition by name. The process is ready when all of them hold;
//! until then the list says which is missing and why.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

/// All conditions of one process.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    conditions: Arc<Mutex<BTreeMap<&'static str, State>>>,
}

/// One condition; whoever holds it says whether it is met.
#[derive(Clone, Debug)]
pub struct Condition {
    readiness: Readiness,
    name: &'static str,
}

/// A condition and, while it does not hold, the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The condition's name.
    pub name: &'static str,
    /// Why it does not hold; `None` when it does.
    pub missing: Option<String>,
}

type State = Option<String>;

impl Readiness {
    /// A process that waits for nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition that does not hold yet, for the given reason.
    pub fn require(&self, name: &'static str, missing: impl Into<String>) -> Condition {
        self.lock().insert(name, Some(missing.into()));
        Condition { readiness: self.clone(), name }
    }

    /// True when every condition holds.
    pub fn is_ready(&self) -> bool {
        self.lock().values().all(Option::is_none)
    }

    /// Every condition in the order of names.
    pub fn report(&self) -> Vec<Report> {
        self.lock().iter().map(|(&name, missing)| Report { name, missing: missing.clone() }).collect()
    }

    /// A panic elsewhere must not take the answer to "are you ready" with it, hence no poisoning.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, State>> {
        self.conditions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Condition {
    /// The condition holds from now on.
    pub fn met(&self) {
        self.readiness.lock().insert(self.name, None);
    }

    /// The condition does not hold (any more).
    pub fn missing(&self, reason: impl Into<String>) {
        self.readiness.lock().insert(self.name, Some(reason.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_when_every_condition_holds() {
        let readiness = Readiness::new();
        let caches = readiness.require("caches", "waiting for the first list of pods");
        let certificate = readiness.require("certificate", "none loaded");
        caches.met();
        assert!(!readiness.is_ready());
        certificate.met();
        assert!(readiness.is_ready());
    }

    #[test]
    fn a_lost_condition_makes_the_process_unready_and_says_why() {
        let readiness = Readiness::new();
        let serving = readiness.require("serving", "starting");
        serving.met();
        serving.missing("shutting down");
        assert!(!readiness.is_ready());
        assert_eq!(readiness.report(), [Report { name: "serving", missing: Some("shutting down".into()) }]);
    }
}
