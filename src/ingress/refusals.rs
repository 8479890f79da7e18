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
    /// Who sent it: an address, with its port where no proxy stands between.
    pub peer: String,
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
    pub(super) fn note(&self, source: &str, refusal: RecentRefusal) {
        if self.throttle.admits() {
            tracing::warn!(
                source,
                peer = refusal.peer,
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

/// A path that was asked for and is no source's.
#[derive(Clone, Debug)]
pub struct UnknownPath {
    /// The path, escaped and cut.
    pub path: String,
    /// The source's path that was probably meant.
    pub meant: Option<String>,
    /// How often since it was last new here.
    pub count: u64,
    /// From where, last.
    pub peer: String,
    /// When last.
    pub at: SystemTime,
}

/// The last paths that were asked for in vain: a mistyped URL is the likeliest first mistake.
#[derive(Debug)]
pub struct UnknownPaths {
    list: Mutex<VecDeque<UnknownPath>>,
    throttle: Throttle,
}

impl Default for UnknownPaths {
    fn default() -> Self {
        Self { list: Mutex::default(), throttle: Throttle::new(1, Duration::from_secs(1)) }
    }
}

impl UnknownPaths {
    /// Logs and keeps a path; `meant` is a source's path that differs only in a slash or in upper and lower case.
    pub(super) fn note(&self, path: &str, meant: Option<&str>, peer: &str, request_id: &str) {
        // A stranger's words: escaped, and no longer than a line.
        let path: String = path.chars().take(200).flat_map(char::escape_debug).collect();
        if self.throttle.admits() {
            if let Some(meant) = meant {
                tracing::warn!(
                    peer,
                    path,
                    request_id,
                    "no such path; did the sender mean {meant}? a slash or upper and lower case differ"
                );
            } else {
                tracing::info!(peer, path, request_id, "no such path");
            }
        }
        let mut list = self.list.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let known = list.iter().position(|known| known.path == path).and_then(|at| list.remove(at));
        let count = known.map_or(0, |known| known.count) + 1;
        list.truncate(KEPT - 1);
        list.push_front(UnknownPath {
            path,
            meant: meant.map(str::to_owned),
            count,
            peer: peer.to_owned(),
            at: SystemTime::now(),
        });
    }

    /// The last ones, newest first.
    #[must_use]
    pub fn list(&self) -> Vec<UnknownPath> {
        self.list.lock().unwrap_or_else(std::sync::PoisonError::into_inner).iter().cloned().collect()
    }
}
