//! What became of a batch of events, to be counted and released under one lock.

use crate::event::{Event, Kept};
use crate::status::{Loss, RefusalReason};

/// What became of a batch of events.
#[derive(Debug, Default)]
pub(crate) struct Settlement {
    /// The pair number of each confirmed event.
    pub(crate) published: Vec<u16>,
    /// Dead letters written, by their reason.
    pub(crate) dead_lettered: Vec<RefusalReason>,
    /// Lost, by their reason.
    pub(crate) lost: Vec<Loss>,
    /// How many their senders took back before they were sent.
    pub(crate) withdrawn: usize,
    /// The sequences of those that the journal keeps.
    pub(super) sequences: Vec<u64>,
    /// What all of these cost of the byte limit.
    pub(super) bytes: usize,
}

impl Settlement {
    /// Adds what the event took; the caller says what became of it.
    pub(crate) fn release(&mut self, event: &Event) {
        self.bytes += event.cost();
        if let Kept::Journal(sequence) = event.kept {
            self.sequences.push(sequence);
        }
    }

    /// How many events.
    pub(super) fn events(&self) -> usize {
        self.published.len() + self.dead_lettered.len() + self.lost.len() + self.withdrawn
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.events() == 0
    }

    /// Empties it, keeping its memory.
    pub(crate) fn clear(&mut self) {
        self.published.clear();
        self.dead_lettered.clear();
        self.lost.clear();
        self.withdrawn = 0;
        self.sequences.clear();
        self.bytes = 0;
    }
}
