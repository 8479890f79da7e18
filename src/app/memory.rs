//! Memory: gives back to the system what a backlog, or a burst of connections, left free in the heap.
//!
//! The C library keeps what was freed, for the next time: after a backlog of 100 MB that is most of it. Once the flood
//! has ebbed, and in the first quiet second after any work, it is asked to let go: some milliseconds for 100 MB, none
//! for little.

use std::sync::Arc;
use std::time::Duration;

use crate::queue::Buffer;

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(1);

/// A backlog below this leaves nothing worth the effort.
const FLOOD: usize = 1 << 20;

/// A flood has ebbed when this part of it is left: earlier, much of what it took is still in use.
const EBB: usize = 16;

/// What is seen of the queue from one look to the next.
#[derive(Debug, Default)]
struct Tide {
    /// Requests until the last look.
    received: u64,
    /// The highest since memory was last given back, in bytes.
    peak: usize,
    /// Something was done since then.
    worked: bool,
}

impl Tide {
    /// Whether it is time: `bytes` are held, and so many requests came until now.
    fn has_ebbed(&mut self, bytes: usize, received: u64) -> bool {
        let quiet = received == self.received && bytes == 0;
        self.worked |= received != self.received;
        self.received = received;
        self.peak = self.peak.max(bytes);
        let ebbed = (quiet && self.worked) || (self.peak >= FLOOD && bytes <= self.peak / EBB);
        if ebbed {
            self.peak = bytes;
            self.worked = false;
        }
        ebbed
    }
}

/// Looks once a second, for ever.
pub(super) async fn keep_low(queue: Arc<Buffer>) {
    let mut tide = Tide::default();
    loop {
        tokio::time::sleep(LOOK).await;
        let (_, bytes) = queue.held();
        if tide.has_ebbed(bytes, queue.received()) {
            trim();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_a_quiet_second_and_asks_once() {
        let mut tide = Tide::default();
        assert!(!tide.has_ebbed(0, 0), "nothing was done");
        assert!(!tide.has_ebbed(500, 1) && !tide.has_ebbed(500, 1) && !tide.has_ebbed(0, 2));
        assert!(tide.has_ebbed(0, 2));
        assert!(!tide.has_ebbed(0, 2));
    }

    #[test]
    fn gives_back_after_a_flood_although_requests_go_on() {
        let mut tide = Tide::default();
        assert!(!tide.has_ebbed(160 << 20, 1) && !tide.has_ebbed(20 << 20, 2));
        assert!(tide.has_ebbed(10 << 20, 3));
        assert!(!tide.has_ebbed(9 << 20, 4), "so much is held, and was seen");
        assert!(tide.has_ebbed(1 << 19, 5));
        assert!(!tide.has_ebbed(1000, 6), "little is left alone");
    }
}
