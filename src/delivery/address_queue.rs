//! One address that does not answer as others do: its state, and the messages that wait for it in order.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::brokers::{Refusal, Refused, Sequence};
use crate::delivery::backoff::Backoff;
use crate::delivery::ring::RingEntry;

/// The messages of an address that are kept in memory, if the journal keeps the others.
pub(super) const LOADED: usize = 256;

/// The place that a message goes to, as delivery tells places apart: the address, with the key where each key has its own place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Address {
    name: Arc<str>,
    key: Option<Arc<str>>,
}

impl Address {
    pub(super) fn new(name: &Arc<str>, key: Option<&Arc<str>>) -> Self {
        Self { name: name.clone(), key: key.cloned() }
    }

    /// The address as the broker knows it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether messages of this address and key go here.
    pub(super) fn is(&self, name: &Arc<str>, key: &Arc<str>) -> bool {
        let same = |one: &Arc<str>, other: &Arc<str>| Arc::ptr_eq(one, other) || **one == **other;
        same(&self.name, name) && self.key.as_ref().is_none_or(|own| same(own, key))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.key {
            Some(key) => write!(f, "{} ({key})", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}

/// The state of an address.
#[derive(Debug, Default)]
pub(super) enum AddressState {
    /// Catches up.
    #[default]
    Open,
    /// Gets no more until this message is answered: a try, or one that has no answer for long.
    Asking(Sequence, Option<Parked>),
    /// Refuses what it gets; its oldest message is tried from time to time.
    Parked(Parked),
}

/// A refusal that stands until a message is stored.
#[derive(Debug)]
pub(super) struct Parked {
    pub(super) refusal: Refusal,
    /// The time since which it has been refused in this way.
    pub(super) since: tokio::time::Instant,
    pub(super) next_try: tokio::time::Instant,
    pub(super) backoff: Backoff,
    /// The number of times that its oldest message was nacked.
    pub(super) nacks: u32,
}

impl Parked {
    pub(super) fn is_wrong(&self) -> bool {
        matches!(self.refusal.kind, Refused::AddressWrong(_))
    }

    /// Takes the next step of the back-off.
    pub(super) fn step(&mut self, now: tokio::time::Instant) {
        self.next_try = now + self.backoff.after_nacks(self.nacks);
    }
}

/// A refusal as it concerns an address.
pub(super) struct AddressRefusal {
    pub(super) refusal: Refusal,
    /// Other queues of this address may have stored the message: it is tried less often.
    pub(super) is_nacked: bool,
    /// The waits of an address that is parked now.
    pub(super) backoff: Backoff,
    pub(super) now: tokio::time::Instant,
}

/// The messages that wait at one address.
pub(super) struct WaitingMessages<'d> {
    pub(super) address: &'d Address,
    pub(super) messages: usize,
    pub(super) since: Instant,
    pub(super) reason: &'d str,
}

/// The part of a message that stays in memory while the journal alone keeps its event.
#[derive(Clone, Copy, Debug)]
pub(super) struct UnloadedMessage {
    /// The sequence in the journal under which delivery knows the event.
    pub(super) name: u64,
    pub(super) attempts: u32,
    pub(super) nacks: u32,
}

/// The time at which the next message of an address may be sent.
pub(super) enum Turn {
    Now,
    At(tokio::time::Instant),
    /// Not before an answer, or a message.
    None,
}

/// One address with its messages.
#[derive(Debug, Default)]
pub(super) struct AddressQueue {
    pub(super) state: AddressState,
    pub(super) entries: BTreeMap<Sequence, RingEntry>,
    pub(super) waiting: BTreeSet<Sequence>,
    pub(super) handed: usize,
    /// After a refusal: so many messages it gets at once; doubled by each that is stored.
    pub(super) allowance: Option<usize>,
    /// It is among those remembered although nothing waits.
    pub(super) is_remembered: bool,
    /// The messages whose events the journal alone keeps.
    pub(super) unloaded: BTreeMap<Sequence, UnloadedMessage>,
    /// None of them was received before.
    pub(super) unloaded_since: Option<SystemTime>,
}

impl AddressQueue {
    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, AddressState::Open)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.unloaded.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len() + self.unloaded.len()
    }

    /// The oldest message.
    pub(super) fn first(&self) -> Option<Sequence> {
        self.entries.keys().next().into_iter().chain(self.unloaded.keys().next()).min().copied()
    }

    /// The messages that may be sent, oldest first: those after an unloaded one wait for it.
    pub(super) fn sendable(&self) -> impl Iterator<Item = Sequence> {
        let end = self.unloaded.keys().next().copied();
        self.waiting.iter().copied().take_while(move |sequence| end.is_none_or(|end| *sequence < end))
    }

    /// Whether a new message is left to the journal: as many as are needed are loaded, all of them older.
    pub(super) fn leaves_to_journal(&self, sequence: Sequence, is_memory_short: bool) -> bool {
        let follows = self.unloaded.keys().next().is_some_and(|first| *first < sequence);
        follows || self.waiting.len() >= LOADED || (is_memory_short && !self.waiting.is_empty())
    }

    /// The messages that the journal alone is to keep: the youngest of those that are more than needed. While others are
    /// with the session, their order is not known.
    pub(super) fn excess(&self, is_memory_short: bool) -> Vec<Sequence> {
        let most = if is_memory_short { 1 } else { LOADED };
        if self.waiting.len() <= most || self.handed > 0 {
            return Vec::new();
        }
        self.waiting.iter().skip(most).copied().collect()
    }

    /// Whether unloaded messages are to be read back.
    pub(super) fn wants_loading(&self, is_memory_short: bool) -> bool {
        let is_short = self.waiting.len() < LOADED / 2 && !is_memory_short;
        !self.unloaded.is_empty() && (is_short || self.sendable().next().is_none())
    }

    /// Whether it has got what it may have after a refusal. A message that was nacked is sent alone.
    fn is_used_up(&self) -> bool {
        let next = self.waiting.first().and_then(|sequence| self.entries.get(sequence));
        let is_nacked = next.is_some_and(|entry| entry.nacks > 0);
        self.allowance.is_some_and(|most| self.handed >= most) || (is_nacked && self.handed > 0)
    }

    /// The time at which the next message may be sent.
    pub(super) fn turn(&self) -> Turn {
        match &self.state {
            _ if self.sendable().next().is_none() => Turn::None,
            AddressState::Open if self.is_used_up() => Turn::None,
            AddressState::Open => Turn::Now,
            AddressState::Parked(parked) if self.handed == 0 => Turn::At(parked.next_try),
            AddressState::Asking(..) | AddressState::Parked(_) => Turn::None,
        }
    }
}
