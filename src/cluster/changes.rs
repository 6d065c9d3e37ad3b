//! Says that something of what is watched has changed, so that whoever decides by it need not look again and again.

use tokio::sync::watch;

/// Told by the watches, heard by loops. Much that is told at once is heard once, and nothing is missed: what is told while a
/// loop is busy, it hears when it listens next.
#[derive(Clone, Debug, Default)]
pub struct Changes(watch::Sender<()>);

impl Changes {
    /// Says that something has changed: once it can be read.
    pub fn tell(&self) {
        self.0.send_replace(());
    }

    /// Where it is heard, from now on. It ends with the last of those who could tell.
    pub fn hear(&self) -> watch::Receiver<()> {
        self.0.subscribe()
    }
}
