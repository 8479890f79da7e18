//! The journal's side of the queue's state: what is on disk and not settled, and where delivery stands in it.
//!
//! Pure bookkeeping under the queue's lock; the files belong to [`crate::queue::journal`], the thread that writes them
//! to [`crate::queue::writer`].

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use crate::message::{Event, Kept};
use crate::queue::journal::{Layout, Place};
use crate::ticket::Ticket;

/// An event on its way into the journal.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) place: Place,
    pub(super) event: Box<Event>,
    pub(super) entry: Entry,
}

/// Why it goes there.
#[derive(Debug)]
pub(super) enum Entry {
    /// Accepted once it is synced; somebody waits for that.
    Accept { source: usize, secret: Option<usize>, ticket: Arc<Ticket> },
    /// A copy of one that was accepted before, at the stop; the last of a batch has a ticket.
    Spill { holder: Holder, ticket: Option<Arc<Ticket>> },
}

/// Who holds the original of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// Delivery took it.
    Delivery,
    /// It waits in the queue.
    Queue,
}

/// What delivery has to read from disk next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// The sequences.
    pub sequences: Range<u64>,
    /// About so many bytes at most.
    pub bytes: usize,
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
pub(super) enum Tail {
    /// In memory as well.
    InMemory,
    /// On disk alone, until delivery has caught up there.
    OnDisk,
}

/// The journal in the queue's state.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) layout: Layout,
    pub(super) incoming: Vec<Incoming>,
    pub(super) writing: Writing,
    /// All below are synced.
    pub(super) synced: u64,
    /// What delivery takes next.
    pub(super) cursor: u64,
    /// What delivery took and has not settled, in order; true once it is settled out of order.
    outstanding: VecDeque<(u64, bool)>,
    /// Synced and not settled.
    pub(super) events: usize,
    /// The watermark changed since the writer noted it.
    pub(super) moved: bool,
    /// Segments that the writer is to delete.
    pub(super) surplus: Vec<u32>,
    pub(super) tail: Tail,
    /// The limit was reached, and less than 10 % is free since.
    pub(super) full: bool,
    /// Why no segment can be made at the moment.
    pub(super) no_space: Option<String>,
    /// Why it can never be written again.
    pub(super) failed: Option<String>,
    /// Records found damaged.
    pub(super) damaged: u64,
    /// Found at start.
    pub(super) recovered: u64,
}

impl Disk {
    pub(super) fn new(layout: Layout, recovered: Range<u64>, damaged: u64) -> Self {
        let count = recovered.end - recovered.start;
        // As it was left: the last record that did not fit may have been a large one.
        let full = layout.bytes() >= layout.capacity() / 100 * 99;
        Self {
            layout,
            incoming: Vec::new(),
            writing: Writing::Busy,
            synced: recovered.end,
            cursor: recovered.start,
            outstanding: VecDeque::new(),
            events: usize::try_from(count).unwrap_or(usize::MAX),
            moved: false,
            surplus: Vec::new(),
            tail: if count == 0 { Tail::InMemory } else { Tail::OnDisk },
            full,
            no_space: None,
            failed: None,
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

    /// The oldest sequence that is not settled.
    pub(super) fn watermark(&self) -> u64 {
        self.outstanding.front().map_or(self.cursor, |(sequence, _)| *sequence)
    }

    /// Delivery took this one.
    pub(super) fn take(&mut self, sequence: u64) {
        self.outstanding.push_back((sequence, false));
        self.cursor = sequence + 1;
        if self.cursor >= self.synced {
            // Caught up: what comes next goes through memory again.
            self.tail = Tail::InMemory;
        }
    }

    /// Delivery goes on here: what lies between was damaged.
    pub(super) fn skip_to(&mut self, next: u64) {
        self.cursor = self.cursor.max(next);
        if self.cursor >= self.synced {
            self.tail = Tail::InMemory;
        }
        self.advance();
    }

    /// These are settled; frees the segments that nobody needs any more.
    pub(super) fn settle(&mut self, sequences: &[u64]) {
        for sequence in sequences {
            if let Ok(at) = self.outstanding.binary_search_by_key(sequence, |(sequence, _)| *sequence) {
                self.outstanding[at].1 = true;
                self.events -= 1;
            }
        }
        while self.outstanding.front().is_some_and(|(_, settled)| *settled) {
            self.outstanding.pop_front();
        }
        self.advance();
    }

    fn advance(&mut self) {
        self.moved = true;
        let surplus = self.layout.release(self.watermark());
        self.surplus.extend(surplus);
        if self.full && self.layout.bytes() < self.layout.capacity() / 10 * 9 {
            self.full = false;
        }
    }

    /// Whether this process may end without losing an event that is kept so.
    pub(super) fn keeps(&self, kept: Kept) -> bool {
        matches!(kept, Kept::Journal(sequence) if sequence < self.synced)
    }
}
