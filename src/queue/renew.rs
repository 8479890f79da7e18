//! The copies of records whose events delivery holds for long, because their address takes nothing.
//!
//! Left where it is, such a record would keep its segment, and all segments after it, from being used again, and a start
//! after a crash would read everything from there on once more. The copy is made before the old segment is free.

use crate::event::{Event, Kept};
use crate::queue::Buffer;
use crate::queue::disk::{AppendReason, Incoming};
use crate::queue::journal::Record;

impl Buffer {
    /// Whether delivery holds events whose records are so old that they are to be renewed; `held` is the size of all that
    /// wait for their address.
    pub(crate) fn wants_renewal(&self, held: u64) -> bool {
        self.lock().disk.as_ref().is_some_and(|disk| disk.renew_below(held).is_some())
    }

    /// Appends the old records among these events again, at most about `bytes` of them at once.
    pub(crate) fn renew<'e>(&self, events: impl Iterator<Item = &'e Event>, held: u64, bytes: usize) {
        let mut state = self.lock();
        let is_draining = state.draining;
        let Some(disk) = state.disk.as_mut().filter(|_| !is_draining) else { return };
        let Some(below) = disk.renew_below(held) else { return };
        let mut copied = 0;
        for event in events {
            let Kept::Journal(old) = event.kept else { continue };
            if disk.kept_as(old) >= below {
                continue;
            }
            if copied >= bytes {
                break;
            }
            let Some(place) = disk.reserve(Record::of(event).length()) else { break };
            copied += event.cost();
            disk.copies_to(place.sequence);
            let mut copy = Box::new(event.clone());
            (copy.kept, copy.waiter) = (Kept::Journal(place.sequence), None);
            disk.send(Incoming { place, event: copy, entry: AppendReason::Renew { old } });
        }
        if copied > 0 && disk.wakes_writer() {
            self.work.notify_one();
        }
    }
}
