//! What a watch beside the agent's loop tells it of something that flags can say as well; where nobody watches, the flags say all.

use tokio::sync::watch;

/// What was heard last, and the next news of it.
#[derive(Debug)]
pub struct Following<T>(Option<watch::Receiver<Option<T>>>);

impl<T: Clone> Following<T> {
    /// Hears what comes from here; `None` stands there until somebody has said something.
    pub const fn of(known_rx: watch::Receiver<Option<T>>) -> Self {
        Self(Some(known_rx))
    }

    /// Whether it is known what is so.
    pub fn is_known(&self) -> bool {
        self.0.as_ref().is_none_or(|known_rx| known_rx.borrow().is_some())
    }

    /// What is so, as far as it is known.
    pub fn known(&self) -> Option<T> {
        self.0.as_ref().and_then(|known_rx| known_rx.borrow().clone())
    }

    /// Waits for news.
    pub async fn changed(&mut self) {
        let brings_news = match &mut self.0 {
            Some(known_rx) => known_rx.changed().await.is_ok(),
            None => false,
        };
        if !brings_news {
            std::future::pending::<()>().await;
        }
    }
}

impl<T> Default for Following<T> {
    fn default() -> Self {
        Self(None)
    }
}
