//! The three promises behind a 200, and the reasons why an event is not taken.

use std::time::Duration;

use crate::status::Reason;

/// The meaning of a 200.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ack {
    /// The event is in the bounded buffer.
    Buffered,
    /// The event is in the journal, synced.
    Journaled,
    /// The broker confirmed the event, or it is a dead letter.
    Published,
}

impl Ack {
    /// The name in the settings.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Buffered => "buffered",
            Self::Journaled => "journaled",
            Self::Published => "published",
        }
    }
}

/// `ack`, and `publish.timeout`, the longest time that a sender waits for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mode {
    /// The meaning of a 200.
    pub(crate) ack: Ack,
    /// Measured from the arrival of the request's head.
    pub(crate) timeout: Duration,
}

/// The reason why an event was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// A limit of the buffer is reached.
    Full,
    /// The journal is full.
    JournalFull,
    /// The journal cannot be written.
    Disk(String),
    /// Events arrive faster than the disk takes them.
    DiskBehind,
    /// `published`: the broker has been unreachable for longer than a sender waits.
    Away,
    /// The bridge is stopping.
    Draining,
}

impl NotTaken {
    /// The reason under which it is counted.
    #[must_use]
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::Full | Self::JournalFull | Self::DiskBehind => Reason::BufferFull,
            Self::Disk(_) | Self::Away => Reason::Unavailable,
            Self::Draining => Reason::Draining,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_fits_each_cause_of_a_reason() {
        for (refused, remedy) in [
            (NotTaken::Full, "buffer.max_events"),
            (NotTaken::JournalFull, "journal.max_bytes"),
            (NotTaken::DiskBehind, "disk"),
            (NotTaken::Disk(String::new()), "disk"),
            (NotTaken::Away, "broker"),
        ] {
            let advice = refused.reason().advice();
            assert!(advice.contains(remedy), "{refused:?}: {advice}");
        }
    }
}
