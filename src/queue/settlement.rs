//! The outcomes of a batch of events, counted and released under one lock.

use crate::event::Event;
use crate::status::{Loss, RefusalReason};

/// The outcomes of a batch of events.
#[derive(Debug, Default)]
pub(crate) struct Settlement {
    /// The pair number of each confirmed event.
    pub(crate) published: Vec<u16>,
    /// The reason of each dead letter written.
    pub(crate) dead_lettered: Vec<RefusalReason>,
    /// The reason of each lost event.
    pub(crate) lost: Vec<Loss>,
    /// The number of events that their senders withdrew before they were sent.
    pub(crate) withdrawn: usize,
    /// The numbers of these events, but for those made of dead letters.
    pub(super) numbers: Vec<u64>,
    /// The part of the byte limit that all of these used.
    pub(super) bytes: usize,
}

impl Settlement {
    /// Adds the resources of an event; the caller adds its outcome.
    pub(crate) fn release(&mut self, event: &Event) {
        self.bytes += event.cost();
        self.numbers.extend(event.kept.number());
    }

    /// The number of events.
    pub(super) fn events(&self) -> usize {
        self.published.len() + self.dead_lettered.len() + self.lost.len() + self.withdrawn
    }

    /// Whether it is empty.
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
        self.numbers.clear();
        self.bytes = 0;
    }
}
