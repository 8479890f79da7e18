//! The last refused requests, for the log and for `/status`: never bodies, never secrets.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use crate::accounting::Reason;
use crate::logs::Throttle;

/// What the page shows of each source.
const KEPT: usize = 10;

/// Lines of log per second for each source; the rest is counted in the metrics.
const LINES: u32 = 10;

/// One refused request.
#[derive(Clone, Debug)]
pub struct RecentRefusal {
    /// Why.
    pub reason: Reason,
    /// The status of the answer; 0 where the sender left before it.
    pub status: u16,
    /// What was said.
    pub detail: String,
    /// The id that the answer carried.
    pub request_id: String,
    /// When.
    pub at: SystemTime,
}

/// The last refusals of one source.
#[derive(Debug)]
pub struct Recent {
    list: Mutex<VecDeque<RecentRefusal>>,
    throttle: Throttle,
}

impl Default for Recent {
    fn default() -> Self {
        Self { list: Mutex::default(), throttle: Throttle::new(LINES, Duration::from_secs(1)) }
    }
}

impl Recent {
    /// Logs and keeps a refusal.
    pub(super) fn note(&self, source: &str, peer: &str, refusal: RecentRefusal) {
        if self.throttle.admits() {
            tracing::warn!(
                source,
                peer,
                status = refusal.status,
                reason = refusal.reason.name(),
                request_id = refusal.request_id,
                "refused a request: {}",
                refusal.detail
            );
        }
        let mut list = self.list.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        list.truncate(KEPT - 1);
        list.push_front(refusal);
    }

    /// The last ones, newest first.
    #[must_use]
    pub fn list(&self) -> Vec<RecentRefusal> {
        self.list.lock().unwrap_or_else(std::sync::PoisonError::into_inner).iter().cloned().collect()
    }
}
