//! Writes what a node says of its Pinholes, beside the work and never in its way. Of two reports on one Pinhole the later one
//! counts.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use tokio::sync::Notify;
use tracing::debug;
use tracing::warn;

use crate::api::crd::pinhole::NodeReport;
use crate::cluster::pinhole_store::PinholeError;
use crate::cluster::pinhole_store::PinholeStore;
use crate::model::holder::ObjectName;

/// Writes at a time.
const WRITES_AT_ONCE: usize = 4;

/// Pause after a write that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// What a node says of a Pinhole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The Pinhole.
    pub pinhole: ObjectName,
    /// Its UID.
    pub uid: String,
    /// What is said.
    pub report: NodeReport,
}

/// The reports that wait to be written.
#[derive(Debug, Default)]
pub struct Reports {
    waiting: Mutex<BTreeMap<ObjectName, Report>>,
    offered: Notify,
}

impl Reports {
    /// Replaces what waits: these are all that differ from what is stored. Never waits.
    pub fn offer(&self, reports: Vec<Report>) {
        let waiting = reports.into_iter().map(|report| (report.pinhole.clone(), report)).collect();
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = waiting;
        self.offered.notify_one();
    }

    /// What waits now.
    pub fn take(&self) -> Vec<Report> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *waiting).into_values().collect()
    }

    /// Writes reports until it is dropped.
    pub async fn write(&self, store: &PinholeStore) {
        loop {
            self.offered.notified().await;
            let reports = self.take();
            let writing = stream::iter(reports).map(async |report| write(store, report).await);
            let failed: Vec<_> =
                writing.buffer_unordered(WRITES_AT_ONCE).filter_map(std::future::ready).collect().await;
            if !failed.is_empty() {
                tokio::time::sleep(PAUSE).await;
                self.put_back(failed);
            }
        }
    }

    /// What could not be written waits again, unless there is something newer to say.
    fn put_back(&self, failed: Vec<Report>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for report in failed {
            waiting.entry(report.pinhole.clone()).or_insert(report);
        }
        self.offered.notify_one();
    }
}

/// Hands a report back that is to be tried again.
async fn write(store: &PinholeStore, report: Report) -> Option<Report> {
    match store.report_node(&report.pinhole, &report.uid, &report.report).await {
        Ok(()) => None,
        // The watch shows what is there now, and that is reported on.
        Err(error @ PinholeError::Stale(_)) => {
            debug!("{error}");
            None
        }
        Err(error) => {
            warn!("{error}; trying again");
            Some(report)
        }
    }
}
