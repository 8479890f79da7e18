//! Memory: returns unused memory to the system.
//!
//! The C library keeps freed memory for later use: after a backlog of 100 MB that is most of it. After a burst, and in
//! the first quiet second after any work, it is asked to return the memory: this takes some milliseconds for 100 MB,
//! and no time for little. In the quiet second the pages of the program's code that the start loaded are dropped, too:
//! those still in use are read again from the page cache, 64 KiB at a time, in a fraction of a millisecond.

use std::sync::Arc;
use std::time::Duration;

use crate::ingress::{Connections, LARGE_BODY};
use crate::queue::Buffer;

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
    /// Decides what to do: `bytes` are held, and `received` requests have arrived so far.
    fn check(&mut self, bytes: usize, received: u64) -> MemoryAction {
        let quiet = received == self.received && bytes == 0;
        self.worked |= received != self.received;
        self.received = received;
        self.peak = self.peak.max(bytes);
        let action = match (quiet && self.worked, self.peak >= HIGH_WATER && bytes <= self.peak / LOW_FRACTION) {
            (true, _) => MemoryAction::TrimAll,
            (false, true) => MemoryAction::Trim,
            (false, false) => return MemoryAction::None,
        };
        self.peak = bytes;
        self.worked = false;
        action
    }
}

/// The action that follows from a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MemoryAction {
    /// Nothing to do.
    None,
    /// A burst is over, and work continues.
    Trim,
    /// The first quiet second after some work.
    TrimAll,
}

/// Checks once a second, for ever.
pub(super) async fn keep_low(queue: Arc<Buffer>, connections: Arc<Connections>) {
    let (mut of_events, mut of_connections) = (MemoryWatch::default(), MemoryWatch::default());
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        let (_, bytes) = queue.held();
        // Closed connections free as much memory, even if no event arrived.
        if of_connections.check(connections.open() * CONNECTION, 0) == MemoryAction::Trim {
            trim();
        }
        match of_events.check(bytes, queue.received()) {
            MemoryAction::None => {}
            MemoryAction::Trim => trim(),
            MemoryAction::TrimAll => {
                trim();
                drop_code();
            }
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

/// Drops the pages of the program's code; the system reads them again when they are used.
fn drop_code() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
    for (start, length) in maps.lines().filter_map(code) {
        drop_pages(start, length);
    }
}

/// The address and length of code mapped from a file, if a line of `/proc/self/maps` describes such. These pages are
/// never written (no mapping of this program is writable and executable), so they equal the file.
fn code(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (range, rights) = (words.next()?, words.next()?);
    let file = words.nth(3)?;
    if rights != "r-xp" || !file.starts_with('/') {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    Some((start, end.checked_sub(start)?))
}

#[expect(unsafe_code, reason = "advice about memory takes an address")]
fn drop_pages(start: usize, length: usize) {
    let address = std::ptr::without_provenance_mut::<libc::c_void>(start);
    // SAFETY: these pages of a file are never written: once dropped, they are read again from the file, unchanged.
    unsafe { libc::madvise(address, length, libc::MADV_DONTNEED) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_a_quiet_second_and_asks_once() {
        let mut of_events = MemoryWatch::default();
        assert_eq!(of_events.check(0, 0), MemoryAction::None, "nothing was done");
        assert_eq!(
            [of_events.check(500, 1), of_events.check(500, 1), of_events.check(0, 2)],
            [MemoryAction::None; 3]
        );
        assert_eq!(of_events.check(0, 2), MemoryAction::TrimAll);
        assert_eq!(of_events.check(0, 2), MemoryAction::None);
    }

    #[test]
    fn gives_back_after_a_flood_although_requests_go_on() {
        let mut of_events = MemoryWatch::default();
        assert_eq!([of_events.check(160 << 20, 1), of_events.check(20 << 20, 2)], [MemoryAction::None; 2]);
        assert_eq!(of_events.check(10 << 20, 3), MemoryAction::Trim);
        assert_eq!(of_events.check(9 << 20, 4), MemoryAction::None, "this much was held before");
        assert_eq!(of_events.check(1 << 19, 5), MemoryAction::Trim);
        assert_eq!(of_events.check(1000, 6), MemoryAction::None, "little is left alone");
    }

    #[test]
    fn finds_code_of_files_and_nothing_else() {
        let line = "55d0c0a4e000-55d0c0f9b000 r-xp 0034a000 fe:00 1184 /usr/local/bin/plextrac-bridge";
        assert_eq!(code(line), Some((0x55d0_c0a4_e000, 0x54_d000)));
        for other in [
            "55d0c0f9b000-55d0c1099000 r--p 00896000 fe:00 1184 /usr/local/bin/plextrac-bridge",
            "55d0c1099000-55d0c109d000 rwxp 00993000 fe:00 1184 /usr/local/bin/plextrac-bridge",
            "7ffd91bd6000-7ffd91bd8000 r-xp 00000000 00:00 0 [vdso]",
            "7f2c4c000000-7f2c4c021000 r-xp 00000000 00:00 0",
            "",
        ] {
            assert_eq!(code(other), None, "{other}");
        }
    }

    #[test]
    fn goes_on_after_its_code_was_dropped() {
        drop_code();
        assert_eq!(code("0-1000 r-xp 0 0 0 /a"), Some((0, 0x1000)));
    }
}
