//! The resources of the process: unused memory is returned to the system; the limit of open files is raised to what the
//! system allows, and compared with what the settings need.
//!
//! The C library keeps freed memory for later use: after a backlog of 100 MB that is most of it. After a burst, and in
//! the first quiet second after any work, it is asked to return the memory: this takes some milliseconds for 100 MB,
//! and no time for little.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::ingress::{self, LARGE_BODY, REPLACED};
use crate::queue::Buffer;
use crate::status::Status;

/// The interval between two checks.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The peak below which trimming is not worth the effort.
const HIGH_WATER: usize = 1 << 20;

/// A burst is over when this fraction of its peak is left: earlier, much of its memory is still in use.
const LOW_FRACTION: usize = 16;

/// The memory of a connection with a small request.
const CONNECTION: usize = 16 << 10;

/// Sets the size from which allocations have pages of their own, returned at once: the C library would otherwise raise
/// it with freed sizes.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the C library offers it in no other way")]
pub(super) fn give_back_large() {
    let large = libc::c_int::try_from(LARGE_BODY).unwrap_or(libc::c_int::MAX);
    // SAFETY: it takes no pointer.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, large) };
}

/// Does nothing: this C library returns freed memory.
#[cfg(not(target_env = "gnu"))]
pub(super) fn give_back_large() {}

/// The state of the queue between two checks.
#[derive(Debug, Default)]
struct MemoryWatch {
    /// The number of requests until the last check.
    received: u64,
    /// The highest number of bytes since memory was last returned.
    peak: usize,
    /// Requests arrived since then.
    worked: bool,
}

impl MemoryWatch {
    /// Whether to return memory: `bytes` are held, and `received` requests have arrived so far.
    fn check(&mut self, bytes: usize, received: u64) -> bool {
        let quiet = received == self.received && bytes == 0;
        self.worked |= received != self.received;
        self.received = received;
        self.peak = self.peak.max(bytes);
        let is_over = self.peak >= HIGH_WATER && bytes <= self.peak / LOW_FRACTION;
        let returns = is_over || (quiet && self.worked);
        if returns {
            (self.peak, self.worked) = (bytes, false);
        }
        returns
    }
}

/// Checks once a second, for ever.
pub(super) async fn keep_low(queue: Arc<Buffer>, status: Arc<Status>) {
    let (mut of_events, mut of_connections) = (MemoryWatch::default(), MemoryWatch::default());
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        let (_, bytes) = queue.held();
        // Closed connections free as much memory, even if no event arrived.
        let of_connections = of_connections.check(status.connections.lock().open * CONNECTION, 0);
        if of_events.check(bytes, queue.received()) || of_connections {
            trim();
        }
    }
}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the C library offers it in no other way")]
fn trim() {
    // SAFETY: it takes no pointer, and locks what it inspects.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn trim() {}

/// Descriptors for the admin port's connections, the files of the state directory, and the client of the broker.
const OTHERS: u64 = 192;

/// Descriptors of each ingress thread: its listening socket, those of its runtime, an accepted connection that waits for a
/// permit, and those that were replaced and still end.
const OF_A_THREAD: u64 = 8 + REPLACED as u64;

/// Raises the soft limit of open files to the hard one.
pub(super) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        // It fails only if another program changed the limit at this moment.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
}

/// The connections that the ingress may have: `ingress.max_connections`, but never so many that the rest has no descriptors.
pub(super) fn connections(settings: &ingress::Settings) -> usize {
    // None means that there is no limit.
    let Some(open) = getrlimit(Resource::Nofile).maximum else { return settings.max_connections };
    let left = open.saturating_sub(settings.threads as u64 * OF_A_THREAD + OTHERS).max(open / 4);
    settings.max_connections.min(usize::try_from(left).unwrap_or(usize::MAX))
}

/// The problem if the hard limit of open files is below what these connections and ingress threads need.
pub(super) fn too_few_files(settings: &ingress::Settings) -> Option<String> {
    let (wanted, connections) = (settings.max_connections, connections(settings));
    let needed = wanted as u64 + settings.threads as u64 * OF_A_THREAD + OTHERS;
    let open = getrlimit(Resource::Nofile).maximum.filter(|open| *open < needed)?;
    Some(format!(
        "at most {open} files may be open, and `ingress.max_connections` = {wanted} needs {needed}: {connections} \
         connections are open at most, and more wait; raise it (LimitNOFILE, ulimit -Hn) or lower the setting"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_a_quiet_second_and_asks_once() {
        let mut of_events = MemoryWatch::default();
        assert!(!of_events.check(0, 0), "nothing was done");
        assert!(![of_events.check(500, 1), of_events.check(500, 1), of_events.check(0, 2)].contains(&true));
        assert!(of_events.check(0, 2) && !of_events.check(0, 2));
    }

    #[test]
    fn gives_back_after_a_flood_although_requests_go_on() {
        let mut of_events = MemoryWatch::default();
        assert!(!of_events.check(160 << 20, 1) && !of_events.check(20 << 20, 2));
        assert!(of_events.check(10 << 20, 3));
        assert!(!of_events.check(9 << 20, 4), "this much was held before");
        assert!(of_events.check(1 << 19, 5));
        assert!(!of_events.check(1000, 6), "little is left alone");
    }
}
