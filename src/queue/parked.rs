//! Events that wait for their address: the journal alone keeps most of them, and their records are written again in time.
//!
//! Left where it is, such a record would keep its segment, and all segments after it, from being used again, and a start
//! after a crash would read everything from there on once more. The copy is made before the old segment is free. At a stop
//! all that waits is written again, so that the next start reads nothing else.

use std::time::SystemTime;

use crate::event::{Event, Kept};
use crate::queue::Buffer;
use crate::queue::disk::{Disk, UnsettledRecord};
use crate::queue::journal::{FoundRenewals, Record};
use crate::status::Loss;

impl Buffer {
    /// Notes the bytes of the events in memory that wait for their address.
    pub(crate) fn note_parked(&self, bytes: usize) {
        self.lock().parked_bytes = bytes;
        // More may be read from the journal now.
        self.ready.notify_one();
    }

    /// Frees the room in memory of so many events: delivery has them no more, and reads them back later.
    pub(crate) fn unload(&self, events: usize, bytes: usize) {
        let mut state = self.lock();
        state.give_back(events, bytes);
        state.full &= !Self::is_below_the_mark(&state);
        drop(state);
        // More may be read from the journal now.
        self.ready.notify_one();
    }

    /// The records of the events of these numbers, in the order of the journal.
    pub(crate) fn records(&self, numbers: &[u64]) -> Vec<UnsettledRecord> {
        let state = self.lock();
        let Some(disk) = &state.disk else { return Vec::new() };
        let mut records: Vec<_> = numbers.iter().map(|number| disk.record_of(*number)).collect();
        records.sort_unstable_by_key(|record| record.sequence);
        records
    }

    /// The records that delivery has not reached.
    pub(crate) fn unreached(&self) -> std::ops::Range<u64> {
        self.lock().disk.as_ref().map_or(0..0, |disk| disk.cursor..disk.synced)
    }

    /// Has delivery hold, from the start, the events whose records were written again; returns their numbers in their order.
    pub(crate) fn adopt(&self, found: &FoundRenewals) -> Vec<u64> {
        let renewed: Vec<u64> = found.renewed.iter().map(|record| record.sequence).collect();
        let mut state = self.lock();
        let state = &mut *state;
        let adopted = state.disk.as_mut().and_then(|disk| disk.adopt(&renewed, &found.repeated));
        if adopted.is_some() {
            let repeated = found.repeated.len() as u64;
            state.ledger.recovered -= repeated;
            state.held -= repeated;
            state.oldest_taken = found.oldest;
        }
        state.check_balance();
        adopted.unwrap_or_default()
    }

    /// Notes an event of this cost and receipt that delivery read back.
    pub(crate) fn load(&self, cost: usize, received: SystemTime) {
        let mut state = self.lock();
        state.oldest_taken.get_or_insert(received);
        state.taken += 1;
        state.bytes += cost;
        state.taken_bytes += cost;
        self.note_room(&mut state);
    }

    /// Those of these records, which were not found, whose events are not settled: they are damaged.
    pub(crate) fn damaged(&self, mut missing: Vec<UnsettledRecord>) -> Vec<UnsettledRecord> {
        let mut state = self.lock();
        missing.retain(|record| state.disk.as_mut().is_some_and(|disk| disk.is_current(*record)));
        missing
    }

    /// Counts events as lost that only these damaged records kept.
    pub(crate) fn lose_damaged(&self, numbers: &[u64]) {
        let mut state = self.lock();
        let state = &mut *state;
        let Some(disk) = &mut state.disk else { return };
        disk.settle(numbers);
        disk.damaged += numbers.len() as u64;
        state.held -= numbers.len() as u64;
        state.ledger.lost[Loss::Damaged as usize] += numbers.len() as u64;
        if disk.wakes_writer() {
            self.work.notify_one();
        }
    }

    /// The oldest records, at most so many, that are to be written again; `waiting` is the size of the records of all that
    /// waits for its address. None while others are being written.
    pub(crate) fn old_records(&self, waiting: u64, most: usize) -> Option<Vec<UnsettledRecord>> {
        let mut state = self.lock();
        let is_draining = state.draining;
        let disk = state.disk.as_mut().filter(|disk| !is_draining && disk.copying == 0)?;
        disk.parked_bytes = waiting;
        Some(if waiting > 0 { disk.old_records(most) } else { Vec::new() })
    }

    /// The records of all that is left at a stop, in the order of the events, if the next start would send what is settled
    /// between them once more, or would find them in another order; `size` is that of those that delivery holds. All of them must
    /// have room, and be at most so many bytes. Until [`Buffer::has_gathered`] the old ones count.
    pub(crate) fn gather(&self, size: u64, most: u64) -> Vec<UnsettledRecord> {
        let mut state = self.lock();
        // What the stop has written of these is not behind what delivery reached, as other records are.
        let spilled = state.waiting.iter().filter(|event| matches!(event.kept, Kept::Memory(_)));
        let size = size + spilled.map(|event| Record::of(event).length()).sum::<u64>();
        let is_possible = |disk: &&mut Disk| disk.failed.is_none() && disk.layout.available() > size;
        let Some(disk) = state.disk.as_mut().filter(is_possible).filter(|_| size <= most) else {
            return Vec::new();
        };
        let records = disk.scattered_records();
        disk.fixed = (!records.is_empty()).then(|| disk.watermark());
        records
    }

    /// Whether copies are being written.
    pub(crate) fn is_renewing(&self) -> bool {
        self.lock().disk.as_ref().is_some_and(|disk| disk.copying > 0)
    }

    /// Has the copies count in place of these records, if each has one.
    pub(crate) fn has_gathered(&self, records: &[UnsettledRecord]) {
        let mut state = self.lock();
        let Some(disk) = &mut state.disk else { return };
        if !records.iter().any(|record| disk.is_current(*record)) {
            disk.fixed = None;
            disk.advance();
        }
    }

    /// Appends these events again. Of what is settled by now, or has no room, no copy is made.
    pub(crate) fn renew(&self, events: impl Iterator<Item = Box<Event>>) {
        let mut state = self.lock();
        let is_draining = state.draining;
        let is_wanted = |disk: &&mut Disk| !is_draining || disk.fixed.is_some();
        let Some(disk) = state.disk.as_mut().filter(is_wanted) else { return };
        for event in events {
            let Some(number) = event.kept.number() else { continue };
            if disk.is_current(disk.record_of(number)) && !disk.copy(number, event) {
                break;
            }
        }
        if disk.copying > 0 && disk.wakes_writer() {
            self.work.notify_one();
        }
    }
}
