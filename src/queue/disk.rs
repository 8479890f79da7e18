//! The journal's side of the queue's state: the unsettled events on disk, and how far delivery has taken them.
//!
//! Pure bookkeeping under the queue's lock; the files belong to [`crate::queue::journal`], the thread that writes them
//! to [`crate::queue::writer`].

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::event::{Event, Kept, Waiter};
use crate::queue::journal::{Place, SegmentAllocator, index};

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
    /// At the stop, a copy of an event that was accepted before; the last of a batch has a waiter.
    Spill { waiter: Option<Arc<Waiter>> },
    /// A copy of the record of this sequence, whose event delivery holds for long.
    Renew { old: u64 },
}

/// A record whose event delivery has taken and not settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnsettledRecord {
    /// The sequence under which delivery knows the event: that of its first record.
    pub(crate) name: u64,
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
    /// The sequence that delivery takes next. At a stop it exceeds `synced`: delivery holds the originals of the copies
    /// being written.
    pub(super) cursor: u64,
    /// The records that delivery took and has not settled, in order of their sequences, with the sequence under which
    /// delivery knows the event of each; [`SETTLED`] once settled out of order.
    outstanding: VecDeque<(u64, u64)>,
    /// The copies of records that delivery has not reached, and will pass, because it has their events; the same numbers.
    copies: BTreeMap<u64, u64>,
    /// The sequence under which an event is kept now, by that under which delivery knows it.
    renewed: HashMap<u64, u64>,
    /// The size of the records of events that wait for their address: room for copies of these is left.
    pub(super) parked_bytes: u64,
    /// The number of copies being written.
    pub(super) renewing: usize,
    /// The number of unsettled events: synced, and at a stop also those being written.
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
    /// The reason why the journal can never be written again.
    pub(super) failed: Option<String>,
    /// The error of a spill that could not be written; its events must be counted as held in memory again.
    pub(super) spill_failed: Option<String>,
    /// The number of records found damaged.
    pub(super) damaged: u64,
    /// The number of records found at start.
    pub(super) recovered: u64,
}

impl Disk {
    pub(super) fn new(layout: SegmentAllocator, recovered: Range<u64>, damaged: u64) -> Self {
        let count = recovered.end - recovered.start;
        // As it was before the stop: the last record that did not fit may have been a large one.
        let full = layout.available() < layout.capacity() / 100;
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
            renewed: HashMap::new(),
            parked_bytes: 0,
            renewing: 0,
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
            failed: None,
            spill_failed: None,
            damaged,
            recovered: count,
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
        if self.no_space.is_none() {
            return self.layout.wants_spare();
        }
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return None;
        }
        self.retry_at = Some(Instant::now() + RETRY_INTERVAL);
        self.layout.wants_spare_again()
    }

    /// Makes the writer create a segment at its next step.
    #[cfg(test)]
    pub(super) fn make_now(&mut self) {
        self.retry_at = None;
    }

    /// The oldest unsettled sequence, as far as the disk knows. An event settled before it is synced counts only
    /// afterwards, because its sequence is reused if it cannot be written.
    pub(super) fn watermark(&self) -> u64 {
        let oldest = self.outstanding.front().map_or(self.cursor, |(sequence, _)| *sequence);
        self.fixed.unwrap_or(oldest.min(self.synced))
    }

    /// The records of all that is not settled, in the order of its events, if what is settled stands between them, or they
    /// stand in another order.
    pub(super) fn scattered_records(&self) -> Vec<UnsettledRecord> {
        let all = self.outstanding.iter().copied().chain(self.copies.iter().map(|(copy, name)| (*copy, *name)));
        let unsettled = all.clone().filter(|(_, name)| *name != SETTLED);
        let mut records: Vec<_> = unsettled.map(|(sequence, name)| UnsettledRecord { name, sequence }).collect();
        let is_scattered = records.len() < all.count() || !records.is_sorted_by_key(|record| record.name);
        records.sort_unstable_by_key(|record| record.name);
        if is_scattered { records } else { Vec::new() }
    }

    /// Notes that delivery took this sequence.
    pub(super) fn take(&mut self, sequence: u64) {
        self.pass_copies(sequence);
        debug_assert!(self.outstanding.back().is_none_or(|(last, _)| *last < sequence));
        self.outstanding.push_back((sequence, sequence));
        self.cursor = sequence + 1;
        if self.cursor >= self.synced {
            // Caught up: events accepted next are kept in memory again.
            self.tail = NewestEvents::InMemory;
        }
    }

    /// Continues at this sequence: everything in between was damaged.
    pub(super) fn skip_to(&mut self, next: u64) {
        self.pass_copies(next);
        self.cursor = self.cursor.max(next);
        if self.cursor >= self.synced {
            self.tail = NewestEvents::InMemory;
        }
        self.advance();
    }

    /// Notes the record of this sequence as synced.
    pub(super) fn note_synced(&mut self, place: &Place) {
        self.synced = place.sequence + 1;
        if place.starts_segment {
            self.layout.exists(place.segment);
        }
    }

    /// Notes these sequences as settled; frees the segments that are no longer needed.
    pub(super) fn settle(&mut self, sequences: &[u64]) {
        for sequence in sequences {
            let sequence = self.renewed.remove(sequence).unwrap_or(*sequence);
            let is_settled = self.release(sequence);
            debug_assert!(is_settled != Some(false), "settled twice");
            self.events -= usize::from(is_settled == Some(true));
        }
        self.drop_settled();
    }

    /// Notes that the record of this sequence is not needed any more; false if it was noted before, none if delivery does
    /// not hold it.
    fn release(&mut self, sequence: u64) -> Option<bool> {
        let name = match self.outstanding.binary_search_by_key(&sequence, |(sequence, _)| *sequence) {
            Ok(at) => &mut self.outstanding[at].1,
            Err(_) => self.copies.get_mut(&sequence)?,
        };
        Some(std::mem::replace(name, SETTLED) != SETTLED)
    }

    fn drop_settled(&mut self) {
        while self.outstanding.front().is_some_and(|(_, name)| *name == SETTLED) {
            self.outstanding.pop_front();
        }
        self.advance();
    }

    /// Passes the copies below this sequence: delivery holds their events already.
    fn pass_copies(&mut self, below: u64) {
        while let Some((copy, name)) = self.copies.first_key_value().map(|(copy, name)| (*copy, *name))
            && copy < below
        {
            self.copies.remove(&copy);
            if name != SETTLED {
                self.outstanding.push_back((copy, name));
            }
            self.cursor = self.cursor.max(copy + 1);
        }
    }

    /// Passes the copies that are next.
    pub(super) fn pass_next_copies(&mut self) {
        while self.cursor < self.synced && self.copies.contains_key(&self.cursor) {
            self.pass_copies(self.cursor + 1);
        }
        if self.cursor >= self.synced {
            self.tail = NewestEvents::InMemory;
        }
    }

    /// The end of what delivery may read from here: the next copy is passed.
    pub(super) fn next_copy(&self) -> Option<u64> {
        self.copies.range(self.cursor..).next().map(|(copy, _)| *copy)
    }

    /// The oldest records to be written again, at most so many: delivery has their events for so long that they are several
    /// segments behind, and keep these from being used again.
    pub(super) fn old_records(&self, most: usize) -> Vec<UnsettledRecord> {
        let is_possible = self.failed.is_none() && self.no_space.is_none();
        let Some(below) = self.layout.begin_of_recent(self.parked_bytes, self.cursor).filter(|_| is_possible)
        else {
            return Vec::new();
        };
        let old = self.outstanding.iter().take_while(|(sequence, _)| *sequence < below);
        let old = old.filter(|(_, name)| *name != SETTLED).take(most);
        old.map(|(sequence, name)| UnsettledRecord { name: *name, sequence: *sequence }).collect()
    }

    /// The sequence under which an event is kept now.
    pub(super) fn kept_as(&self, sequence: u64) -> u64 {
        self.renewed.get(&sequence).copied().unwrap_or(sequence)
    }

    /// Whether this is the record of an event that is not settled.
    pub(super) fn is_current(&self, record: UnsettledRecord) -> bool {
        let at = self.outstanding.binary_search_by_key(&record.sequence, |(sequence, _)| *sequence);
        let name = at.map_or_else(|_| self.copies.get(&record.sequence), |at| Some(&self.outstanding[at].1));
        self.kept_as(record.name) == record.sequence && name == Some(&record.name)
    }

    /// Notes that a copy of the record of this event gets this place.
    pub(super) fn copies_to(&mut self, sequence: u64, name: u64) {
        self.copies.insert(sequence, name);
        self.renewing += 1;
    }

    /// Notes that the copy is synced: it takes the place of the record, unless its event was settled meanwhile.
    pub(super) fn renewed(&mut self, old: u64, new: u64) {
        self.renewing -= 1;
        if self.release(self.kept_as(old)) == Some(true) {
            self.renewed.insert(old, new);
        } else {
            self.release(new);
        }
        self.drop_settled();
    }

    /// Notes that the copy could not be written.
    pub(super) fn not_renewed(&mut self, new: u64) {
        self.renewing -= 1;
        self.copies.remove(&new);
    }

    /// Frees the segments below the watermark.
    pub(super) fn advance(&mut self) {
        self.moved = true;
        let surplus = self.layout.release(self.watermark());
        self.surplus.extend(surplus);
        if self.layout.has_spare() {
            self.note_space();
        }
        if self.full && self.layout.available() > self.layout.capacity() / 10 {
            self.full = false;
        }
    }

    /// Forgets every sequence that is not synced.
    pub(super) fn forget_unsynced(&mut self) {
        while self.outstanding.back().is_some_and(|(sequence, _)| *sequence >= self.synced) {
            self.outstanding.pop_back();
        }
        self.cursor = self.cursor.min(self.synced);
    }

    /// Whether this process may end without losing an event that is kept this way.
    pub(super) fn keeps(&self, kept: Kept) -> bool {
        matches!(kept, Kept::Journal(sequence) if sequence < self.synced)
    }
}
