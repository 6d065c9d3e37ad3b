//! Notices between two readings of the kernel that somebody else changed the rules.
//!
//! Where the agent may not ask, that is said once, and the reading that is due anyway finds it. Whatever else goes wrong is
//! trouble of the moment: nothing is known then, and it is asked again.

use std::io;
use std::time::Duration;

use tracing::warn;

use crate::dataplane::Observed;
use crate::dataplane::drift::Drift;
use crate::dataplane::drift::Watcher;

/// Watches over the rules.
pub struct Vigil {
    watcher: Option<Watcher>,
    /// Who changed the rules, as far as it is known.
    drift: Option<Drift>,
    resync: Duration,
    is_troubled: bool,
}

impl Vigil {
    /// Without a watcher nothing is noticed; `resync` is how long it takes then.
    pub const fn new(watcher: Option<Watcher>, resync: Duration) -> Self {
        Self { watcher, drift: None, resync, is_troubled: false }
    }

    /// Takes the rules as they are now as those that nobody should change.
    pub async fn begin(&mut self, observed: &Observed) {
        let Some(watcher) = &self.watcher else { return };
        if let Err(error) = watcher.settle(observed).await {
            self.note(&error);
        }
    }

    /// Whether somebody else changed the rules.
    pub async fn has_drifted(&mut self, observed: &Observed) -> bool {
        let Some(watcher) = &self.watcher else { return false };
        match watcher.look(observed).await {
            Ok(found) => {
                self.is_troubled = false;
                self.drift = found;
            }
            Err(error) => self.note(&error),
        }
        self.drift.is_some()
    }

    /// Who it was, and forgets it.
    pub fn take_culprits(&mut self) -> Vec<String> {
        self.drift.take().map_or_else(Vec::new, |drift| drift.by)
    }

    /// Tells once per time of trouble why the kernel did not answer, and asks no more where that is of no use.
    fn note(&mut self, error: &io::Error) {
        if error.kind() == io::ErrorKind::PermissionDenied {
            self.watcher = None;
            warn!(
                %error,
                resync = ?self.resync,
                "The kernel does not tell when others change the node's rules, so that is found at the next resync only; the \
                 agent needs NET_ADMIN and NET_RAW"
            );
        } else if !std::mem::replace(&mut self.is_troubled, true) {
            warn!(
                %error,
                "Cannot ask the kernel whether others have changed the node's rules; asking again, and the next resync finds \
                 it in any case"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::Backend;
    use crate::dataplane::settings::Firewall;
    use crate::dataplane::settings::Settings;

    #[test]
    fn only_a_missing_right_ends_the_watch() {
        let settings = Settings::default();
        let backend = Backend::new(Firewall::Nftables, settings.clone());
        for (code, goes_on) in [
            (libc::ENOBUFS, true),
            (libc::EINTR, true),
            (libc::ETIMEDOUT, true),
            (libc::EPERM, false),
            (libc::EACCES, false),
        ] {
            let mut vigil = Vigil::new(Watcher::new(&backend, settings.clone()), Duration::from_mins(5));
            vigil.note(&io::Error::from_raw_os_error(code));
            assert_eq!((vigil.watcher.is_some(), vigil.is_troubled), (goes_on, goes_on), "{code}");
        }
    }
}
