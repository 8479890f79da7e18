//! The messages of stalled addresses, apart from all others.
//!
//! The oldest message of such an address has no answer while others are answered. Until it has one, the address gets no
//! more, and what it has does not count as in flight. Afterwards the address catches up from here, in its own order.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::brokers::Sequence;
use crate::delivery::ring::{EntryState, RingEntry};
use crate::event::Message;

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Stalled {
    addresses: HashMap<Arc<str>, StalledAddress>,
    places: HashMap<Sequence, Arc<str>>,
    /// Handed over at addresses that are stalled now.
    silent: usize,
    /// Handed over at addresses that catch up.
    counted: usize,
}

/// One of them.
#[derive(Debug, Default)]
struct StalledAddress {
    /// The message without an answer; none while the address catches up.
    blocker: Option<Sequence>,
    entries: BTreeMap<Sequence, RingEntry>,
    waiting: BTreeSet<Sequence>,
    handed: usize,
}

impl Stalled {
    /// The number of messages.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// The number of messages in flight at addresses that are stalled.
    pub(super) fn silent(&self) -> usize {
        self.silent
    }

    /// The number of messages in flight at addresses that catch up.
    pub(super) fn counted(&self) -> usize {
        self.counted
    }

    /// Whether the messages of this address belong here.
    pub(super) fn has(&self, address: &str) -> bool {
        !self.addresses.is_empty() && self.addresses.contains_key(address)
    }

    /// Whether this message is here.
    pub(super) fn holds(&self, sequence: Sequence) -> bool {
        !self.places.is_empty() && self.places.contains_key(&sequence)
    }

    /// Whether this address gets no more.
    pub(super) fn is_stalled(&self, address: &str) -> bool {
        self.addresses.get(address).is_some_and(|stalled| stalled.blocker.is_some())
    }

    /// The oldest message of those that catch up: everything below it is settled or waits without an answer.
    pub(super) fn begin(&self) -> Option<Sequence> {
        let open = self.addresses.values().filter(|stalled| stalled.blocker.is_none());
        open.filter_map(|stalled| stalled.entries.keys().next().copied()).min()
    }

    /// Receipt of the oldest message.
    pub(super) fn oldest(&self) -> Option<SystemTime> {
        let messages =
            self.addresses.values().filter_map(|stalled| stalled.entries.values().next()?.message.as_ref());
        messages.map(|message| message.event.origin.received).min()
    }

    /// Takes a message of an address that is here.
    pub(super) fn insert(&mut self, sequence: Sequence, entry: RingEntry) {
        let address = entry.address.clone();
        let stalled = self.addresses.entry(address.clone()).or_default();
        if matches!(entry.state, EntryState::Waiting) {
            stalled.waiting.insert(sequence);
        } else {
            stalled.handed += 1;
            let is_silent = stalled.blocker.is_some();
            *(if is_silent { &mut self.silent } else { &mut self.counted }) += 1;
        }
        stalled.entries.insert(sequence, entry);
        self.places.insert(sequence, address);
    }

    /// The address gets no more until this message of it is answered.
    pub(super) fn block(&mut self, address: &Arc<str>, blocker: Sequence) {
        let stalled = self.addresses.entry(address.clone()).or_default();
        if stalled.blocker.replace(blocker).is_none() {
            self.counted -= stalled.handed;
            self.silent += stalled.handed;
        }
    }

    /// The oldest message that may be sent, with its number of attempts.
    pub(super) fn next(&self, held_back: &HashSet<Arc<str>>) -> Option<(Sequence, &Message, u32)> {
        let open = self.addresses.iter().filter(|(name, stalled)| {
            stalled.blocker.is_none() && !stalled.waiting.is_empty() && !held_back.contains(*name)
        });
        let first = open.filter_map(|(_, stalled)| Some((*stalled.waiting.first()?, stalled)));
        let (sequence, stalled) = first.min_by_key(|(sequence, _)| *sequence)?;
        let entry = stalled.entries.get(&sequence)?;
        Some((sequence, entry.message.as_ref()?, entry.attempts))
    }

    fn find(&mut self, sequence: Sequence) -> Option<&mut StalledAddress> {
        let address = self.places.get(&sequence)?;
        self.addresses.get_mut(address)
    }

    /// One of the messages.
    pub(super) fn entry(&mut self, sequence: Sequence) -> Option<&mut RingEntry> {
        self.find(sequence)?.entries.get_mut(&sequence)
    }

    /// Notes that the session has the message.
    pub(super) fn hand(&mut self, sequence: Sequence, now: Instant) {
        let Some(stalled) = self.find(sequence) else { return };
        stalled.waiting.remove(&sequence);
        if let Some(entry) = stalled.entries.get_mut(&sequence) {
            entry.state = EntryState::Sent(now);
            entry.attempts += 1;
        }
        stalled.handed += 1;
        self.counted += 1;
    }

    /// Notes an answer to a message that was handed over.
    fn answered(&mut self, sequence: Sequence) {
        let Some(stalled) = self.find(sequence) else { return };
        let (was_stalled, handed) = (stalled.blocker.is_some(), stalled.handed);
        stalled.handed -= 1;
        if stalled.blocker == Some(sequence) {
            stalled.blocker = None;
            self.silent -= handed;
            self.counted += handed - 1;
        } else if was_stalled {
            self.silent -= 1;
        } else {
            self.counted -= 1;
        }
    }

    /// Puts a message back among those to be sent, because the broker refused it for now.
    pub(super) fn defer(&mut self, sequence: Sequence) {
        let is_sent = |entry: &RingEntry| matches!(entry.state, EntryState::Sent(_));
        if !self.find(sequence).is_some_and(|stalled| stalled.entries.get(&sequence).is_some_and(is_sent)) {
            return;
        }
        self.answered(sequence);
        if let Some(stalled) = self.find(sequence) {
            stalled.waiting.insert(sequence);
            if let Some(entry) = stalled.entries.get_mut(&sequence) {
                entry.state = EntryState::Waiting;
                entry.deferred = true;
            }
        }
    }

    /// Takes a message out because it is stored, refused or withdrawn.
    pub(super) fn take(&mut self, sequence: Sequence, stored: bool) -> Option<RingEntry> {
        let state = &self.find(sequence)?.entries.get(&sequence)?.state;
        if matches!(state, EntryState::Sent(_)) {
            self.answered(sequence);
        }
        let stalled = self.find(sequence)?;
        stalled.waiting.remove(&sequence);
        let mut entry = stalled.entries.remove(&sequence)?;
        entry.stored |= stored;
        let is_same_key = |other: &RingEntry| other.key == entry.key;
        if stored {
            for (_, older) in stalled.entries.range_mut(..sequence).filter(|(_, older)| is_same_key(older)) {
                older.overtaken = true;
            }
        }
        entry.overtaken |= stalled.entries.range(sequence..).any(|(_, other)| other.stored && is_same_key(other));
        let is_empty = stalled.entries.is_empty();
        if let Some(address) = self.places.remove(&sequence)
            && is_empty
        {
            self.addresses.remove(&address);
        }
        Some(entry)
    }

    /// The session is lost: everything is to be sent again, and each address is tried again.
    pub(super) fn rewind(&mut self) {
        (self.silent, self.counted) = (0, 0);
        for stalled in self.addresses.values_mut() {
            (stalled.blocker, stalled.handed) = (None, 0);
            stalled.waiting = stalled.entries.keys().copied().collect();
            for entry in stalled.entries.values_mut().filter(|entry| matches!(entry.state, EntryState::Sent(_))) {
                entry.state = EntryState::Waiting;
                entry.stored = true;
            }
        }
    }

    /// All of them, in no order but that of each address.
    pub(super) fn entries(&self) -> impl Iterator<Item = (Sequence, &RingEntry)> {
        self.addresses.values().flat_map(|stalled| &stalled.entries).map(|(sequence, entry)| (*sequence, entry))
    }

    /// The messages, oldest first.
    pub(super) fn messages(&mut self) -> impl Iterator<Item = &mut Message> {
        let mut all: Vec<_> = self.addresses.values_mut().flat_map(|stalled| &mut stalled.entries).collect();
        all.sort_unstable_by_key(|(sequence, _)| **sequence);
        all.into_iter().filter_map(|(_, entry)| entry.message.as_mut())
    }
}
