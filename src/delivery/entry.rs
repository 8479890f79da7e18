//! A message as the ring and its address keep it, and what is kept of it once it is unloaded or removed.

use std::sync::Arc;
use std::time::Instant;

use crate::brokers::Sequence;
use crate::event::{Event, Kept, Message};
use crate::queue::journal::Record;

#[derive(Debug)]
pub(super) enum EntryState {
    /// To be sent: new, or sent before without an outcome.
    Waiting,
    /// Handed to the session at this time.
    Sent(Instant),
    /// Settled; kept as a gap until everything older is settled, too.
    Settled,
}

/// The reason to send a message again on a session that lives on. A younger one may have overtaken it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deferral {
    /// It is not.
    None,
    /// The broker refused it for now.
    Refused,
    /// It had no answer for long: the broker may have it.
    Unanswered,
}

#[derive(Debug)]
pub(super) struct RingEntry {
    pub(super) state: EntryState,
    pub(super) message: Option<Message>,
    pub(super) address: Arc<str>,
    pub(super) key: Arc<str>,
    pub(super) pair: u16,
    pub(super) attempts: u32,
    pub(super) deferral: Deferral,
    /// The number of times it was nacked.
    pub(super) nacks: u32,
    /// The broker has it, or may have it: its session was lost before the verdict arrived.
    pub(super) stored: bool,
    /// The place at which the broker reports it as stored.
    pub(super) place: Option<u64>,
    /// A younger one of its key was stored before it, or may have been.
    pub(super) overtaken: bool,
    /// The first place at which a younger one of its key is known to be stored.
    pub(super) younger_place: Option<u64>,
}

/// The size of the record that the journal has of an event.
pub(super) fn record_bytes(event: &Event) -> u64 {
    if matches!(event.kept, Kept::Journal(_)) { Record::of(event).length() } else { 0 }
}

impl RingEntry {
    pub(super) fn new(message: Option<Message>, address: Arc<str>, key: Arc<str>, pair: u16) -> Self {
        let state = if message.is_some() { EntryState::Waiting } else { EntryState::Settled };
        let (attempts, nacks, place, younger_place) = (0, 0, None, None);
        let (deferral, stored, overtaken) = (Deferral::None, false, false);
        Self {
            state,
            message,
            address,
            key,
            pair,
            attempts,
            deferral,
            nacks,
            stored,
            place,
            overtaken,
            younger_place,
        }
    }

    /// Whether the broker may have it from an earlier attempt.
    pub(super) fn is_perhaps_stored(&self) -> bool {
        self.stored || self.deferral == Deferral::Unanswered
    }

    /// Whether a younger one may have overtaken it.
    pub(super) fn is_deferred(&self) -> bool {
        self.deferral != Deferral::None
    }

    /// Marks a message that was sent to be sent again.
    pub(super) fn defer(&mut self) {
        self.state = EntryState::Waiting;
        if self.deferral == Deferral::None {
            self.deferral = Deferral::Refused;
        }
    }

    /// Notes that a younger one of its key is stored, at this place if the broker reports it.
    pub(super) fn overtake(&mut self, place: Option<u64>) {
        self.overtaken = true;
        self.younger_place = self.younger_place.into_iter().chain(place).min();
    }

    /// Whether it was never sent.
    pub(super) fn is_new(&self) -> bool {
        self.attempts + self.nacks == 0 && !self.is_deferred()
    }

    /// The event that the journal alone may keep, and its number; none where the broker may have it, where its order is to be
    /// counted, or where only memory keeps it.
    pub(super) fn to_unload(&self) -> Option<(u64, &Event)> {
        let event = &self.message.as_ref()?.event;
        let is_free = matches!(self.state, EntryState::Waiting) && !self.is_perhaps_stored() && !self.overtaken;
        let Kept::Journal(number) = event.kept else { return None };
        (is_free && event.waiter.is_none()).then_some((number, event))
    }

    /// The entry of a message that was read back.
    pub(super) fn loaded(message: Message, pair: u16, unloaded: UnloadedMessage) -> Self {
        let (address, key) = (message.address.clone(), message.key.clone());
        let UnloadedMessage { attempts, nacks, .. } = unloaded;
        let deferral = if attempts > 0 { Deferral::Refused } else { Deferral::None };
        Self { attempts, deferral, nacks, ..Self::new(Some(message), address, key, pair) }
    }

    /// The memory that its event takes.
    pub(super) fn cost(&self) -> usize {
        self.message.as_ref().map_or(0, |message| message.event.cost())
    }

    /// The part of it that can be left to the journal, which has the event.
    pub(super) fn kept_cost(&self) -> usize {
        let is_kept = |message: &&Message| matches!(message.event.kept, Kept::Journal(_));
        self.message.as_ref().filter(is_kept).map_or(0, |message| message.event.cost())
    }

    /// The size of its record, if it has one.
    pub(super) fn record_bytes(&self) -> u64 {
        self.message.as_ref().map_or(0, |message| record_bytes(&message.event))
    }

    /// Takes the message out and leaves a gap; none if it is settled already. The caller checks whether a younger one was stored
    /// before it.
    pub(super) fn settle(&mut self) -> Option<Removed> {
        let handed = if let EntryState::Sent(since) = self.state { Some(since) } else { None };
        self.state = EntryState::Settled;
        Some(Removed {
            message: self.message.take()?,
            pair: self.pair,
            attempts: self.attempts,
            handed,
            overtaken: self.is_deferred() && self.stored,
            overtook: 0,
        })
    }

    /// The gap that takes its place when it leaves.
    pub(super) fn gap(&self) -> Self {
        let gap = Self::new(None, self.address.clone(), self.key.clone(), self.pair);
        Self { stored: self.stored, place: self.place, ..gap }
    }
}

/// The part of a message that stays in memory while the journal alone keeps its event.
#[derive(Clone, Copy, Debug)]
pub(super) struct UnloadedMessage {
    pub(super) sequence: Sequence,
    pub(super) attempts: u32,
    pub(super) nacks: u32,
}

/// The messages of one address that the session has.
#[derive(Clone, Copy, Debug)]
pub(super) struct UnansweredMessages {
    /// The oldest of them.
    pub(super) oldest: Sequence,
    /// The time at which it was handed over.
    pub(super) since: Instant,
    /// The number of them.
    pub(super) messages: usize,
}

/// A message that was removed from the ring.
#[derive(Debug)]
pub(super) struct Removed {
    pub(super) message: Message,
    pub(super) pair: u16,
    pub(super) attempts: u32,
    /// The time at which the session got it, if it did.
    pub(super) handed: Option<Instant>,
    /// It was stored after a younger one of its key, or may have been.
    pub(super) overtaken: bool,
    /// The number of older ones of its key, not counted before, that turned out to be stored after it.
    pub(super) overtook: usize,
}
