//! The ends of a batch of events, counted and released under one lock.

use crate::event::Event;
use crate::status::{Loss, RefusalReason};

/// The end of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventEnd {
    /// The broker confirmed it; with the number of its pair.
    Published(u16),
    /// A dead letter is written.
    DeadLettered(RefusalReason),
    /// It is kept nowhere.
    Lost(Loss),
    /// Its sender withdrew it before it was sent.
    Withdrawn,
}

/// The ends of a batch of events.
#[derive(Debug, Default)]
pub(crate) struct Settlement {
    pub(super) ends: Vec<EventEnd>,
    /// The numbers of these events, but for those made of dead letters.
    pub(super) numbers: Vec<u64>,
    /// The part of the byte limit that all of these used.
    pub(super) bytes: usize,
}

impl Settlement {
    /// Adds an event that has ended.
    pub(crate) fn add(&mut self, event: &Event, end: EventEnd) {
        self.ends.push(end);
        self.numbers.extend(event.kept.number());
        self.bytes += event.cost();
    }

    /// Whether it is empty.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Whether the broker has confirmed any.
    #[must_use]
    pub(crate) fn has_published(&self) -> bool {
        self.ends.iter().any(|end| matches!(end, EventEnd::Published(_)))
    }

    /// Empties it, keeping its memory.
    pub(crate) fn clear(&mut self) {
        self.ends.clear();
        self.numbers.clear();
        self.bytes = 0;
    }
}
