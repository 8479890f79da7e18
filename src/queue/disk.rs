//! The journal's side of the queue's state: the unsettled events on disk, and how far delivery has taken them.
//!
//! Pure bookkeeping under the queue's lock; the files belong to [`crate::queue::journal`], the thread that writes them
//! to [`crate::queue::writer`].
//!
//! Length: records, their copies and the watermark are one piece of bookkeeping.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::event::{Event, Kept, Waiter};
use crate::queue::journal::{Place, Record, SegmentAllocator, index};

/// The interval at which the writer retries to create a segment after the disk had no room for one.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Marks a record whose event is settled.
const SETTLED: u64 = u64::MAX;

/// An event that is being written to the journal.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) place: Place,
    pub(super) event: Box<Event>,
    pub(super) entry: AppendReason,
}

/// The reason why an event is written.
#[derive(Debug)]
pub(super) enum AppendReason {
    /// It is accepted once it is synced; a sender waits for that.
    Accept { source: usize, secret: Option<usize>, waiter: Arc<Waiter> },
    /// A copy of the event of this number, which was accepted before: at the stop, or because it waits for long. The last of
    /// a batch may have a waiter.
    Copy { number: u64, waiter: Option<Arc<Waiter>> },
}

/// A record whose event is not settled, and is in memory or waits for its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnsettledRecord {
    /// The number of the event.
    pub(crate) number: u64,
    /// The sequence of its record.
    pub(crate) sequence: u64,
}

/// The part of the journal that delivery has to read next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Backlog {
    /// The sequences.
    pub(crate) sequences: Range<u64>,
    /// The approximate maximum of bytes to read.
    pub(crate) bytes: usize,
}

/// The state of the writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writing {
    /// It looks for work when it is done.
    Busy,
    /// It waits, and must be woken.
    Idle,
    /// It must end once there is no more work.
    Closing,
}

/// The place where delivery finds the events synced last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NewestEvents {
    /// In memory as well as on disk.
    InMemory,
    /// On disk only, until delivery has caught up there.
    OnDisk,
}

/// The journal in the queue's state.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) layout: SegmentAllocator,
    pub(super) incoming: Vec<Incoming>,
    /// The number of events in the last batch.
    pub(super) batch: usize,
    /// The cost of all events being written: in `incoming`, and with the writer.
    pub(super) unsynced_bytes: usize,
    /// The time at which the oldest event with the writer was accepted, until the writer is done with all of them.
    pub(super) writing_since: Option<Instant>,
    pub(super) writing: Writing,
    /// All sequences below are synced.
    pub(super) synced: u64,
    /// The sequence that delivery takes next.
    pub(super) cursor: u64,
    /// The records below it that are not settled, in order of their sequences, with the number of the event of each;
    /// [`SETTLED`] once settled out of order.
    outstanding: VecDeque<(u64, u64)>,
    /// The copies above it, which delivery will pass, because memory or an older record has their events; the same numbers.
    copies: BTreeMap<u64, u64>,
    /// The record of an event, by its number, where it has another one than its first.
    records: HashMap<u64, u64>,
    /// The size of the records of events that wait for their address: room for copies of these is left.
    pub(super) parked_bytes: u64,
    /// The number of copies being written.
    pub(super) copying: usize,
    /// The number of unsettled events with a synced record.
    pub(super) events: usize,
    /// The watermark changed since the writer noted it.
    pub(super) moved: bool,
    /// The watermark stays at this sequence while all that is left at the stop is written again.
    pub(super) fixed: Option<u64>,
    /// The watermark that the writer was given last, and when.
    pub(super) noted: u64,
    pub(super) noted_at: Option<Instant>,
    /// The segments that the writer has to delete.
    pub(super) surplus: Vec<u32>,
    pub(super) tail: NewestEvents,
    /// The limit was reached, and less than 10 % has become free since.
    pub(super) full: bool,
    /// The reason why no segment can be created at the moment.
    pub(super) no_space: Option<String>,
    /// An event was refused for that reason.
    pub(super) short: bool,
    /// The time at which the writer retries to create one.
    retry_at: Option<Instant>,
    /// The bytes of records for which room is being made, for a stop; and who waits for it.
    pub(super) reserving: Option<(u64, oneshot::Sender<Result<(), String>>)>,
    /// The reason why the journal can never be written again.
    pub(super) failed: Option<String>,
    /// The number of records found damaged.
    pub(super) damaged: u64,
    /// The records found at start.
    pub(super) recovered: Range<u64>,
    /// The number of them that are copies of others.
    pub(super) repeated: u64,
}

impl Disk {
    pub(super) fn new(layout: SegmentAllocator, recovered: Range<u64>, damaged: u64) -> Self {
        let count = recovered.end - recovered.start;
        // As it was before the stop: the last record that did not fit may have been a large one.
        let full = layout.available_to_new() < layout.capacity() / 100;
        Self {
            layout,
            incoming: Vec::new(),
            batch: 0,
            unsynced_bytes: 0,
            writing_since: None,
            writing: Writing::Busy,
            synced: recovered.end,
            cursor: recovered.start,
            outstanding: VecDeque::new(),
            copies: BTreeMap::new(),
            records: HashMap::new(),
            parked_bytes: 0,
            copying: 0,
            events: index(count),
            moved: false,
            fixed: None,
            noted: recovered.start,
            noted_at: None,
            surplus: Vec::new(),
            tail: if count == 0 { NewestEvents::InMemory } else { NewestEvents::OnDisk },
            full,
            no_space: None,
            short: false,
            retry_at: None,
            reserving: None,
            failed: None,
            damaged,
            recovered,
            repeated: 0,
        }
    }

    /// Whether the writer must be woken; marks it as woken.
    pub(super) fn wakes_writer(&mut self) -> bool {
        let is_idle = self.writing == Writing::Idle;
        if is_idle {
            self.writing = Writing::Busy;
        }
        is_idle
    }

    /// Reserves a place for a record of this encoded length; none if the limit or the disk has no room for it.
    pub(super) fn reserve(&mut self, length: u64) -> Option<Place> {
        if self.no_space.is_some() { self.layout.reserve_existing(length) } else { self.layout.reserve(length) }
    }

    /// Passes an event with its place to the writer.
    pub(super) fn send(&mut self, incoming: Incoming) {
        self.unsynced_bytes += incoming.event.cost();
        self.incoming.push(incoming);
    }

    /// Notes that the disk has no room for another segment. The writer retries by itself.
    pub(super) fn note_no_space(&mut self, text: String) {
        self.no_space = Some(text);
        self.retry_at = Some(Instant::now() + RETRY_INTERVAL);
    }

    /// Notes that a segment for new records exists again.
    pub(super) fn note_space(&mut self) {
        self.no_space = None;
        self.short = false;
        self.retry_at = None;
    }

    /// The segment that the writer has to create now.
    pub(super) fn wanted_spare(&mut self) -> Option<u32> {
        if let Some((bytes, _)) = &self.reserving {
            let bytes = *bytes;
            let wanted = self.layout.wants_reserved(bytes);
            if wanted.is_some() {
                return wanted;
            }
            self.layout.keep_existing(bytes);
            self.end_reserving(Ok(()));
        }
        if self.no_space.is_none() {
            return self.layout.wants_spare();
        }
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return None;
        }
        self.retry_at = Some(Instant::now() + RETRY_INTERVAL);
        if self.layout.has_spare() {
            // It could not be opened; the next record shows whether it can be by now.
            self.note_space();
        }
        self.layout.wants_spare_again()
    }

    /// Tells the outcome of a reservation. What a failed one took is free again.
    pub(super) fn end_reserving(&mut self, done: Result<(), String>) {
        let Some((_, asker)) = self.reserving.take() else { return };
        self.surplus.extend(self.layout.unreserved());
        // A stop does not wait for it.
        let _ = asker.send(done);
    }

    /// Makes the writer create a segment at its next step.
    #[cfg(test)]
    pub(super) fn make_now(&mut self) {
        self.retry_at = None;
    }

    /// The oldest unsettled sequence.
    pub(super) fn watermark(&self) -> u64 {
        debug_assert!(self.cursor <= self.synced, "taken before it is synced");
        let oldest = self.outstanding.front().map_or(self.cursor, |(sequence, _)| *sequence);
        self.fixed.unwrap_or(oldest)
    }

    /// The records of all that is not settled, in the order of its events, if what is settled stands between them, or they
    /// stand in another order.
    pub(super) fn scattered_records(&self) -> Vec<UnsettledRecord> {
        let all = self.outstanding.iter().copied().chain(self.copies.iter().map(|(copy, number)| (*copy, *number)));
        let unsettled = all.clone().filter(|(_, number)| *number != SETTLED);
        let mut records: Vec<_> =
            unsettled.map(|(sequence, number)| UnsettledRecord { number, sequence }).collect();
        let is_scattered = records.len() < all.count() || !records.is_sorted_by_key(|record| record.number);
        records.sort_unstable_by_key(|record| record.number);
        if is_scattered { records } else { Vec::new() }
    }

    /// Gives the events of these records, which delivery has not reached, numbers below all others, in their order. `repeated`
    /// are copies whose records are there, too: they are passed. None if there are not enough numbers.
    pub(super) fn adopt(&mut self, renewed: &[u64], repeated: &[u64]) -> Option<Vec<u64>> {
        // Each had another record below the watermark, with a sequence of its own.
        let first = self.cursor.checked_sub(renewed.len() as u64)?;
        let numbers: Vec<u64> = (first..self.cursor).collect();
        self.records.extend(numbers.iter().copied().zip(renewed.iter().copied()));
        self.copies.extend(renewed.iter().copied().zip(numbers.iter().copied()));
        self.copies.extend(repeated.iter().map(|sequence| (*sequence, SETTLED)));
        self.events -= repeated.len();
        self.repeated = repeated.len() as u64;
        self.pass_next_copies();
        Some(numbers)
    }

    /// Notes that delivery took this sequence.
    pub(super) fn take(&mut self, sequence: u64) {
        self.pass_copies(sequence);
        debug_assert!(self.outstanding.back().is_none_or(|(last, _)| *last < sequence));
        self.outstanding.push_back((sequence, sequence));
        self.cursor = sequence + 1;
    }

    /// Continues at this sequence: everything in between was damaged.
    pub(super) fn skip_to(&mut self, next: u64) {
        self.pass_copies(next);
        self.cursor = self.cursor.max(next);
        self.advance();
    }

    /// Notes the record of this sequence as synced.
    pub(super) fn note_synced(&mut self, place: &Place) {
        self.synced = place.sequence + 1;
        if place.starts_segment {
            self.layout.exists(place.segment);
        }
    }

    /// Notes the events of these numbers as settled; frees the segments that are no longer needed. Events without a record
    /// are left out.
    pub(super) fn settle(&mut self, numbers: &[u64]) {
        let mut is_released = false;
        for number in numbers {
            let record = self.records.remove(number).unwrap_or(*number);
            if self.release(record, *number) {
                is_released = true;
                self.events -= usize::from(record < self.synced);
            }
        }
        if is_released {
            self.drop_settled();
        }
    }

    /// The event of this record, or none once it is settled.
    fn event_of(&mut self, record: u64) -> Option<&mut u64> {
        match self.outstanding.binary_search_by_key(&record, |(sequence, _)| *sequence) {
            Ok(at) => Some(&mut self.outstanding[at].1),
            Err(_) => self.copies.get_mut(&record),
        }
    }

    /// Notes that this record is not needed any more; false if it is not one of this event.
    fn release(&mut self, record: u64, number: u64) -> bool {
        let event = self.event_of(record).filter(|event| **event == number);
        event.map(|event| *event = SETTLED).is_some()
    }

    fn drop_settled(&mut self) {
        while self.outstanding.front().is_some_and(|(_, number)| *number == SETTLED) {
            self.outstanding.pop_front();
        }
        self.advance();
    }

    /// Passes the copies below this sequence.
    fn pass_copies(&mut self, below: u64) {
        while let Some((copy, number)) = self.copies.first_key_value().map(|(copy, number)| (*copy, *number))
            && copy < below
        {
            self.copies.remove(&copy);
            if number != SETTLED {
                self.outstanding.push_back((copy, number));
            }
            self.cursor = self.cursor.max(copy + 1);
        }
    }

    /// Passes the copies that are next.
    pub(super) fn pass_next_copies(&mut self) {
        while self.cursor < self.synced && self.copies.contains_key(&self.cursor) {
            self.pass_copies(self.cursor + 1);
        }
    }

    /// The end of what delivery may read from here: the next copy is passed.
    pub(super) fn next_copy(&self) -> Option<u64> {
        self.copies.range(self.cursor..).next().map(|(copy, _)| *copy)
    }

    /// The oldest records to be written again, at most so many: delivery has their events for so long that they are several
    /// segments behind, and keep these from being used again. On a full disk copies of all must fit what exists: a part of them
    /// would free nothing.
    pub(super) fn old_records(&self, most: usize) -> Vec<UnsettledRecord> {
        let limit = if self.no_space.is_none() { self.layout.capacity() } else { self.layout.total() };
        let has_room = self.no_space.is_none() || self.layout.left() >= self.parked_bytes;
        let is_possible = self.failed.is_none() && has_room;
        let below = self.layout.begin_of_recent(self.parked_bytes, self.cursor, limit);
        let Some(below) = below.filter(|_| is_possible) else { return Vec::new() };
        let old = self.outstanding.iter().take_while(|(sequence, _)| *sequence < below);
        let old = old.filter(|(_, number)| *number != SETTLED).take(most);
        old.map(|(sequence, number)| UnsettledRecord { number: *number, sequence: *sequence }).collect()
    }

    /// The record of an event that has one.
    pub(super) fn record_of(&self, number: u64) -> UnsettledRecord {
        UnsettledRecord { number, sequence: self.records.get(&number).copied().unwrap_or(number) }
    }

    /// Whether this is the record of an event that is not settled.
    pub(super) fn is_current(&mut self, record: UnsettledRecord) -> bool {
        self.record_of(record.number) == record
            && self.event_of(record.sequence).is_some_and(|event| *event == record.number)
    }

    /// Whether this event is in memory only, and not being written.
    pub(super) fn is_unwritten(&self, kept: Kept) -> bool {
        matches!(kept, Kept::Memory(number) if !self.records.contains_key(&number))
    }

    /// Reserves a place for a copy of this event, and passes it to the writer; false if there is no room.
    pub(super) fn copy(&mut self, number: u64, mut event: Box<Event>) -> bool {
        let Some(place) = self.reserve(Record::of(&event).length()) else { return false };
        if self.is_unwritten(event.kept) {
            self.records.insert(number, place.sequence);
        } else {
            event.renewals = event.renewals.saturating_add(1);
        }
        self.copies.insert(place.sequence, number);
        self.copying += 1;
        self.send(Incoming { place, event, entry: AppendReason::Copy { number, waiter: None } });
        true
    }

    /// Notes that a copy is synced: it takes the place of the record before it, unless its event was settled meanwhile.
    pub(super) fn copied(&mut self, number: u64, copy: u64) {
        self.copying -= 1;
        let before = self.record_of(number).sequence;
        if self.records.get(&number) == Some(&copy) {
            self.events += 1;
        } else if self.release(before, number) {
            self.records.insert(number, copy);
        } else {
            self.release(copy, number);
        }
        self.drop_settled();
        self.pass_next_copies();
    }

    /// Notes that a copy could not be written.
    pub(super) fn not_copied(&mut self, number: u64, copy: u64) {
        self.copying -= 1;
        self.copies.remove(&copy);
        if self.records.get(&number) == Some(&copy) {
            self.records.remove(&number);
        }
    }

    /// Frees the segments below the watermark.
    pub(super) fn advance(&mut self) {
        self.moved = true;
        let surplus = self.layout.release(self.watermark());
        self.surplus.extend(surplus);
        if self.layout.has_spare() {
            self.note_space();
        }
        if self.full && self.layout.available_to_new() > self.layout.capacity() / 10 {
            self.full = false;
        }
    }

    /// Whether this process may end without losing this event.
    pub(super) fn keeps(&self, kept: Kept) -> bool {
        kept.number().is_none_or(|number| !self.is_unwritten(kept) && self.record_of(number).sequence < self.synced)
    }
}
