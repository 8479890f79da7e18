//! Memory: gives back to the system what is not needed any more.
//!
//! The C library keeps what was freed, for the next time: after a backlog of 100 MB that is most of it. Once the flood
//! has ebbed, and in the first quiet second after any work, it is asked to let go: some milliseconds for 100 MB, none
//! for little. At the quiet second the program's code goes too, which the start brought in: what is still of use comes
//! back from the page cache, 64 KiB at a time, in a fraction of a millisecond.

use std::sync::Arc;
use std::time::Duration;

use crate::ingress::{Connections, LARGE_BODY};
use crate::queue::Buffer;

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(1);

/// A backlog below this leaves nothing worth the effort.
const HIGH_WATER: usize = 1 << 20;

/// A flood has ebbed when this part of it is left: earlier, much of what it took is still in use.
const LOW_FRACTION: usize = 16;

/// The memory of a connection with a small request.
const CONNECTION: usize = 16 << 10;

/// Sets the size from which allocations have pages of their own, given back at once: the C library would raise it with
/// what is freed.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the C library offers it in no other way")]
pub(super) fn give_back_large() {
    let large = libc::c_int::try_from(LARGE_BODY).unwrap_or(libc::c_int::MAX);
    // SAFETY: it takes no pointer.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, large) };
}

/// Does nothing: this C library gives back what is freed.
#[cfg(not(target_env = "gnu"))]
pub(super) fn give_back_large() {}

/// What is seen of the queue from one look to the next.
#[derive(Debug, Default)]
struct MemoryWatch {
    /// Requests until the last look.
    received: u64,
    /// The highest since memory was last given back, in bytes.
    peak: usize,
    /// Something was done since then.
    worked: bool,
}

impl MemoryWatch {
    /// What it is time for: `bytes` are held, and so many requests came until now.
    fn check(&mut self, bytes: usize, received: u64) -> Turn {
        let quiet = received == self.received && bytes == 0;
        self.worked |= received != self.received;
        self.received = received;
        self.peak = self.peak.max(bytes);
        let turn = match (quiet && self.worked, self.peak >= HIGH_WATER && bytes <= self.peak / LOW_FRACTION) {
            (true, _) => Turn::Quiet,
            (false, true) => Turn::Ebb,
            (false, false) => return Turn::None,
        };
        self.peak = bytes;
        self.worked = false;
        turn
    }
}

/// What the look at the queue says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Nothing.
    None,
    /// A flood has ebbed; work goes on.
    Ebb,
    /// The first quiet second after some work.
    Quiet,
}

/// Looks once a second, for ever.
pub(super) async fn keep_low(queue: Arc<Buffer>, connections: Arc<Connections>) {
    let (mut tide, mut of_connections) = (MemoryWatch::default(), MemoryWatch::default());
    loop {
        tokio::time::sleep(LOOK).await;
        let (_, bytes) = queue.held();
        // Connections that were closed leave as much, also where no event arrived.
        if of_connections.check(connections.open() * CONNECTION, 0) == Turn::Ebb {
            trim();
        }
        match tide.check(bytes, queue.received()) {
            Turn::None => {}
            Turn::Ebb => trim(),
            Turn::Quiet => {
                trim();
                drop_code();
            }
        }
    }
}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the C library offers it in no other way")]
fn trim() {
    // SAFETY: it takes no pointer, and locks what it looks at.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn trim() {}

/// Lets go of the pages of the program's code; the system reads them again where they are used.
fn drop_code() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
    for (start, length) in maps.lines().filter_map(code) {
        drop_pages(start, length);
    }
}

/// Where a line of `/proc/self/maps` is code from a file: its address and length. Nobody ever writes to such pages (no
/// mapping of this program is writable and executable), so they are as the file has them.
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
    // SAFETY: pages of a file that are never written to: dropped, they are read from the file again, the same.
    unsafe { libc::madvise(address, length, libc::MADV_DONTNEED) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_a_quiet_second_and_asks_once() {
        let mut tide = MemoryWatch::default();
        assert_eq!(tide.check(0, 0), Turn::None, "nothing was done");
        assert_eq!([tide.check(500, 1), tide.check(500, 1), tide.check(0, 2)], [Turn::None; 3]);
        assert_eq!(tide.check(0, 2), Turn::Quiet);
        assert_eq!(tide.check(0, 2), Turn::None);
    }

    #[test]
    fn gives_back_after_a_flood_although_requests_go_on() {
        let mut tide = MemoryWatch::default();
        assert_eq!([tide.check(160 << 20, 1), tide.check(20 << 20, 2)], [Turn::None; 2]);
        assert_eq!(tide.check(10 << 20, 3), Turn::Ebb);
        assert_eq!(tide.check(9 << 20, 4), Turn::None, "so much is held, and was seen");
        assert_eq!(tide.check(1 << 19, 5), Turn::Ebb);
        assert_eq!(tide.check(1000, 6), Turn::None, "little is left alone");
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
