//! The journal's side of the queue's state: what is on disk and not settled, and how far delivery has taken it.
//!
//! Pure bookkeeping under the queue's lock; the files belong to [`crate::queue::journal`], the thread that writes them
//! to [`crate::queue::writer`].

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::event::Waiter;
use crate::event::{Event, Kept};
use crate::queue::journal::{Place, SegmentAllocator};

/// How often the writer tries again to make a segment after the disk had no room for one.
pub(super) const MAKE_AGAIN: Duration = Duration::from_secs(1);

/// An event on its way into the journal.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) place: Place,
    pub(super) event: Box<Event>,
    pub(super) entry: AppendReason,
}

/// Why it goes there.
#[derive(Debug)]
pub(super) enum AppendReason {
    /// Accepted once it is synced; somebody waits for that.
    Accept { source: usize, secret: Option<usize>, waiter: Arc<Waiter> },
    /// A copy of one that was accepted before, at the stop; the last of a batch has a waiter.
    Spill { waiter: Option<Arc<Waiter>> },
}

/// What delivery has to read from disk next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Backlog {
    /// The sequences.
    pub(crate) sequences: Range<u64>,
    /// About so many bytes at most.
    pub(crate) bytes: usize,
}

/// What the writer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writing {
    /// It looks for work when it is done.
    Busy,
    /// It waits, and is to be woken.
    Idle,
    /// It is to end once there is no more work.
    Closing,
}

/// Where delivery finds what is synced last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NewestEvents {
    /// In memory as well.
    InMemory,
    /// On disk alone, until delivery has caught up there.
    OnDisk,
}

/// The journal in the queue's state.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) layout: SegmentAllocator,
    pub(super) incoming: Vec<Incoming>,
    /// The cost of everything on its way to the disk: in `incoming`, and with the writer.
    pub(super) unsynced_bytes: usize,
    /// The time at which the oldest event with the writer was accepted, until the writer is done with all of them.
    pub(super) writing_since: Option<Instant>,
    pub(super) writing: Writing,
    /// All below are synced.
    pub(super) synced: u64,
    /// The sequence that delivery takes next. At a stop it passes `synced`: delivery holds the originals of what is written.
    pub(super) cursor: u64,
    /// What delivery took and has not settled, in order; true once it is settled out of order.
    outstanding: VecDeque<(u64, bool)>,
    /// Not settled: synced, and at a stop also what is being written.
    pub(super) events: usize,
    /// The watermark changed since the writer noted it.
    pub(super) moved: bool,
    /// Segments that the writer is to delete.
    pub(super) surplus: Vec<u32>,
    pub(super) tail: NewestEvents,
    /// The limit was reached, and less than 10 % is free since.
    pub(super) full: bool,
    /// Why no segment can be made at the moment.
    pub(super) no_space: Option<String>,
    /// An event was refused for that.
    pub(super) short: bool,
    /// The time at which the writer tries again to make one.
    make_again: Option<Instant>,
    /// Why it can never be written again.
    pub(super) failed: Option<String>,
    /// The error of a spill that could not be written; its events are to be counted as held in memory again.
    pub(super) spill_failed: Option<String>,
    /// Records found damaged.
    pub(super) damaged: u64,
    /// Found at start.
    pub(super) recovered: u64,
}

impl Disk {
    pub(super) fn new(layout: SegmentAllocator, recovered: Range<u64>, damaged: u64) -> Self {
        let count = recovered.end - recovered.start;
        // As it was left: the last record that did not fit may have been a large one.
        let full = layout.available() < layout.capacity() / 100;
        Self {
            layout,
            incoming: Vec::new(),
            unsynced_bytes: 0,
            writing_since: None,
            writing: Writing::Busy,
            synced: recovered.end,
            cursor: recovered.start,
            outstanding: VecDeque::new(),
            events: usize::try_from(count).unwrap_or(usize::MAX),
            moved: false,
            surplus: Vec::new(),
            tail: if count == 0 { NewestEvents::InMemory } else { NewestEvents::OnDisk },
            full,
            no_space: None,
            short: false,
            make_again: None,
            failed: None,
            spill_failed: None,
            damaged,
            recovered: count,
        }
    }

    /// Whether the writer has to be woken; it is, then.
    pub(super) fn wakes_writer(&mut self) -> bool {
        let is_idle = self.writing == Writing::Idle;
        if is_idle {
            self.writing = Writing::Busy;
        }
        is_idle
    }

    /// A place for a record of this encoded length; none where limit or disk have no room for it.
    pub(super) fn reserve(&mut self, length: u64) -> Option<Place> {
        if self.no_space.is_some() { self.layout.reserve_existing(length) } else { self.layout.reserve(length) }
    }

    /// Gives the writer an event with its place.
    pub(super) fn send(&mut self, incoming: Incoming) {
        self.unsynced_bytes += incoming.event.cost();
        self.incoming.push(incoming);
    }

    /// The disk has no room for another segment. The writer tries again by itself.
    pub(super) fn note_no_space(&mut self, text: String) {
        self.no_space = Some(text);
        self.make_again = Some(Instant::now() + MAKE_AGAIN);
    }

    /// A segment for new records exists again.
    pub(super) fn note_space(&mut self) {
        self.no_space = None;
        self.short = false;
        self.make_again = None;
    }

    /// A segment that the writer is to make now.
    pub(super) fn wanted_spare(&mut self) -> Option<u32> {
        if self.no_space.is_none() {
            return self.layout.wants_spare();
        }
        if self.make_again.is_some_and(|at| Instant::now() < at) {
            return None;
        }
        self.make_again = Some(Instant::now() + MAKE_AGAIN);
        self.layout.wants_spare_again()
    }

    /// The writer tries to make a segment at its next look.
    #[cfg(test)]
    pub(super) fn make_now(&mut self) {
        self.make_again = None;
    }

    /// The oldest sequence that is not settled, as far as the disk knows: what is settled before it is synced counts only
    /// afterwards, for its sequence is given again where it cannot be written.
    pub(super) fn watermark(&self) -> u64 {
        self.outstanding.front().map_or(self.cursor, |(sequence, _)| *sequence).min(self.synced)
    }

    /// Delivery took this one.
    pub(super) fn take(&mut self, sequence: u64) {
        debug_assert!(self.outstanding.back().is_none_or(|(last, _)| *last < sequence));
        self.outstanding.push_back((sequence, false));
        self.cursor = sequence + 1;
        if self.cursor >= self.synced {
            // Caught up: what is accepted next is kept in memory again.
            self.tail = NewestEvents::InMemory;
        }
    }

    /// Delivery continues here: everything in between was damaged.
    pub(super) fn skip_to(&mut self, next: u64) {
        self.cursor = self.cursor.max(next);
        if self.cursor >= self.synced {
            self.tail = NewestEvents::InMemory;
        }
        self.advance();
    }

    /// Notes the record of this sequence as synced.
    pub(super) fn note_synced(&mut self, place: &Place) {
        self.synced = place.sequence + 1;
        if place.opens {
            self.layout.exists(place.segment);
        }
    }

    /// These are settled; frees the segments that are no longer needed.
    pub(super) fn settle(&mut self, sequences: &[u64]) {
        for sequence in sequences {
            if let Ok(at) = self.outstanding.binary_search_by_key(sequence, |(sequence, _)| *sequence) {
                debug_assert!(!self.outstanding[at].1, "settled twice");
                self.outstanding[at].1 = true;
                self.events -= 1;
            }
        }
        while self.outstanding.front().is_some_and(|(_, settled)| *settled) {
            self.outstanding.pop_front();
        }
        self.advance();
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

    /// Forgets everything that was given a sequence and is not synced.
    pub(super) fn forget_unsynced(&mut self) {
        while self.outstanding.back().is_some_and(|(sequence, _)| *sequence >= self.synced) {
            self.outstanding.pop_back();
        }
        self.cursor = self.cursor.min(self.synced);
    }

    /// Whether this process may end without losing an event that is kept so.
    pub(super) fn keeps(&self, kept: Kept) -> bool {
        matches!(kept, Kept::Journal(sequence) if sequence < self.synced)
    }
}
