//! The ordered ring of unsettled messages, oldest first: those to be sent next, and those that wait for a verdict.
//!
//! Pure bookkeeping; [`super::publish`] decides when to send and what follows from a verdict.
//!
//! Length: one structure, of which every part needs the others.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::brokers::{Position, Sequence};
use crate::delivery::address_queue::{Address, AddressRefusal};
use crate::delivery::destinations::Destinations;
use crate::delivery::entry::{Deferral, EntryState, Removed, RingEntry, UnansweredMessages};
use crate::delivery::overtaken::Undecided;
use crate::event::{Event, Message};

/// The ring.
#[derive(Debug, Default)]
pub(super) struct Ring {
    slots: VecDeque<RingEntry>,
    /// The sequence of the first slot.
    first: Sequence,
    /// No message before this slot waits to be sent.
    cursor: usize,
    /// No message before this slot may be sent until held-back addresses are checked again.
    looked: usize,
    handed: usize,
    /// The memory that these take.
    handed_bytes: usize,
    settled: usize,
    /// The end of the messages of which an earlier attempt may have been stored.
    uncertain: Sequence,
    undecided: Undecided,
    /// Addresses that get no more messages until they are checked again.
    held_back: HashSet<Address>,
    /// Another one, which was refused last: others are tried first.
    avoided: Option<Address>,
    /// Each key is an address of its own.
    is_keyed: bool,
    /// The messages that are apart.
    pub(super) destinations: Destinations,
}

impl Ring {
    /// An empty ring; the key is part of where a message goes, or it is not.
    pub(super) fn new(is_keyed: bool) -> Self {
        Self { is_keyed, ..Self::default() }
    }

    /// The address that delivery knows messages of this name and key by.
    pub(super) fn address(&self, name: &Arc<str>, key: &Arc<str>) -> Address {
        Address::new(name, self.is_keyed.then_some(key))
    }

    /// The address of the message of this sequence.
    pub(super) fn address_of(&mut self, sequence: Sequence) -> Option<Address> {
        let is_keyed = self.is_keyed;
        self.slot(sequence).map(|slot| Address::new(&slot.address, is_keyed.then_some(&slot.key)))
    }

    /// The number of slots of the ring, gaps included, addresses that are apart not.
    pub(super) fn span(&self) -> usize {
        self.slots.len()
    }

    /// The number of messages that wait for a verdict at addresses that answer.
    pub(super) fn handed(&self) -> usize {
        self.handed + self.destinations.counted()
    }

    /// The memory of the messages that wait for a verdict at addresses that always answered.
    pub(super) fn handed_bytes(&self) -> usize {
        self.handed_bytes
    }

    /// The number of messages that wait for a verdict.
    pub(super) fn in_flight(&self) -> usize {
        self.handed() + self.destinations.silent()
    }

    /// The number of messages that are not settled.
    pub(super) fn unsettled(&self) -> usize {
        self.slots.len() - self.settled + self.destinations.len()
    }

    /// The sequence of the next new message: all current ones are below it.
    pub(super) fn end(&self) -> Sequence {
        self.first + self.slots.len() as Sequence
    }

    /// The sequence of the oldest message, those left out that wait for their address.
    pub(super) fn begin(&self) -> Sequence {
        self.destinations.begin().map_or(self.first, |begin| begin.min(self.first))
    }

    /// The receipt of the oldest unsettled message.
    pub(super) fn oldest(&self) -> Option<SystemTime> {
        let message = self.slots.iter().find_map(|slot| slot.message.as_ref());
        let received = message.map(|message| message.event.origin.received);
        received.into_iter().chain(self.destinations.oldest()).min()
    }

    /// Appends a new message; returns its sequence.
    pub(super) fn push(&mut self, message: Message, pair: u16) -> Sequence {
        let sequence = self.end();
        let (address, key) = (message.address.clone(), message.key.clone());
        let mut entry = RingEntry::new(Some(message), address, key, pair);
        if !self.destinations.is_empty() {
            let address = self.address(&entry.address, &entry.key);
            if self.destinations.has(&address) {
                let gap = entry.gap();
                self.destinations.insert(sequence, &address, std::mem::replace(&mut entry, gap));
                self.settled += 1;
            }
        }
        self.slots.push_back(entry);
        self.drop_gaps();
        sequence
    }

    /// The oldest message to be sent, and the number of times it was sent before; with the tries that are due by now, if a
    /// time is given.
    pub(super) fn next(&mut self, now: Option<tokio::time::Instant>) -> Option<(Sequence, &Message, u32)> {
        let Self { destinations, held_back, avoided, .. } = self;
        let apart =
            destinations.next(now, |address| avoided.as_ref() == Some(address) || held_back.contains(address));
        if let Some(sequence) = apart {
            let entry = self.destinations.entry(sequence)?;
            return Some((sequence, entry.message.as_ref()?, entry.attempts));
        }
        while let Some(slot) = self.slots.get(self.looked) {
            let is_held_back =
                !self.held_back.is_empty() && self.held_back.contains(&self.address(&slot.address, &slot.key));
            let is_avoided = self.avoided.as_ref().is_some_and(|avoided| avoided.is(&slot.address, &slot.key));
            if matches!(slot.state, EntryState::Waiting) && !is_held_back && !is_avoided {
                break;
            }
            self.looked += 1;
        }
        if self.held_back.is_empty() && self.avoided.is_none() {
            self.cursor = self.looked;
        }
        let slot = self.slots.get(self.looked)?;
        let message = slot.message.as_ref()?;
        Some((self.first + self.looked as Sequence, message, slot.attempts))
    }

    /// Prefers other addresses to this one at the next attempt.
    pub(super) fn avoid(&mut self, address: Address) {
        self.look_again();
        self.avoided = Some(address);
    }

    /// Whether the messages of an address are left out for now.
    pub(super) fn is_avoiding(&self) -> bool {
        self.avoided.is_some()
    }

    /// Lets the avoided address be tried after all; false where there is none.
    pub(super) fn stops_avoiding(&mut self) -> bool {
        let was_avoiding = self.avoided.take().is_some();
        if was_avoiding {
            self.looked = self.cursor;
            self.destinations.look_again();
        }
        was_avoiding
    }

    /// Keeps the address of this message from getting more until the next check.
    pub(super) fn hold_back(&mut self, sequence: Sequence) {
        let address = self.address_of(sequence);
        self.held_back.extend(address);
    }

    /// Lets every address be tried again.
    pub(super) fn look_again(&mut self) {
        if !self.held_back.is_empty() || self.avoided.is_some() {
            self.held_back.clear();
            self.avoided = None;
            self.looked = self.cursor;
            self.destinations.look_again();
        }
    }

    /// The messages that the session has, by address.
    pub(super) fn unanswered(&self) -> HashMap<Address, UnansweredMessages> {
        let mut found: HashMap<Address, UnansweredMessages> = HashMap::new();
        for (sequence, entry) in self.entries() {
            let EntryState::Sent(since) = entry.state else { continue };
            let new = UnansweredMessages { oldest: sequence, since, messages: 0 };
            let seen = found.entry(self.address(&entry.address, &entry.key)).or_insert(new);
            seen.messages += 1;
            if (since, sequence) < (seen.since, seen.oldest) {
                (seen.since, seen.oldest) = (since, sequence);
            }
        }
        found
    }

    /// Stops sending to this address until this message of it is answered; the others do not wait for it.
    pub(super) fn stall(&mut self, address: &Address, blocker: Sequence) {
        self.set_apart(address);
        self.destinations.stall(address, blocker);
    }

    /// Parks the address of a refused message; the others do not wait for it.
    pub(super) fn park(&mut self, sequence: Sequence, refused: AddressRefusal) {
        let Some(address) = self.address_of(sequence) else { return };
        self.defer(sequence);
        self.set_apart(&address);
        self.destinations.park(&address, sequence, refused);
    }

    /// Moves the messages of an address out of the ring. Each is marked that a younger one overtook: the younger one's gap stays.
    fn set_apart(&mut self, address: &Address) {
        // For each key the first place of those that are stored.
        let mut stored: HashMap<Arc<str>, Option<u64>> = HashMap::new();
        for slot in self.slots.iter_mut().rev().filter(|slot| address.is(&slot.address, &slot.key)) {
            if let Some(place) = stored.get(&slot.key) {
                slot.overtake(*place);
            }
            if slot.stored {
                let first = stored.get(&slot.key).copied().flatten();
                stored.insert(slot.key.clone(), first.into_iter().chain(slot.place).min());
            }
        }
        for at in 0..self.slots.len() {
            let slot = &self.slots[at];
            if matches!(slot.state, EntryState::Settled) || !address.is(&slot.address, &slot.key) {
                continue;
            }
            let sequence = self.first + at as Sequence;
            let gap = slot.gap();
            let entry = std::mem::replace(&mut self.slots[at], gap);
            if matches!(entry.state, EntryState::Sent(_)) {
                self.handed -= 1;
                self.handed_bytes -= entry.cost();
            }
            self.settled += 1;
            self.destinations.insert(sequence, address, entry);
        }
        self.drop_gaps();
    }

    /// Gives another address to what was refused and never sent without an answer, where the routes say so by now.
    pub(super) fn reroute(&mut self, mut route: impl FnMut(&Event) -> Option<(Arc<str>, Arc<str>)>) {
        let refused = self.destinations.refused().into_iter();
        let elsewhere = refused.filter_map(|(sequence, message)| {
            let (address, key) = route(&message.event)?;
            (*address != *message.address || *key != *message.key).then_some((sequence, address, key))
        });
        for (sequence, address, key) in elsewhere.collect::<Vec<_>>() {
            if let Some(entry) = self.destinations.take(sequence, false)
                && let Some(Message { event, .. }) = entry.message
            {
                let to = self.join(&address, &key);
                let entry = RingEntry::new(
                    Some(Message { event, address: address.clone(), key: key.clone() }),
                    address,
                    key,
                    entry.pair,
                );
                self.destinations.insert(sequence, &to, entry);
            }
        }
    }

    /// Sets an address apart for a message that is apart and older than some of those in the ring.
    fn join(&mut self, name: &Arc<str>, key: &Arc<str>) -> Address {
        let address = self.address(name, key);
        if !self.destinations.has(&address) {
            self.set_apart(&address);
        }
        address
    }

    /// Takes unloaded events, by their numbers and about the sizes of their records, before anything else.
    pub(super) fn adopt(&mut self, events: impl Iterator<Item = (u64, u64)>) {
        debug_assert!(self.slots.is_empty() && self.destinations.is_empty(), "they go before all others");
        for (number, bytes) in events {
            self.destinations.adopt(number, self.first, bytes);
            self.first += 1;
        }
    }

    /// Notes the address of an unloaded event, rendered anew.
    pub(super) fn rendered(&mut self, number: u64, name: &Arc<str>, key: &Arc<str>, received: SystemTime) {
        let address = self.join(name, key);
        self.destinations.rendered(number, &address, received);
    }

    /// Takes back an unloaded event that was read; none where it is not unloaded any more.
    pub(super) fn load(&mut self, number: u64, message: Message, pair: u16) -> Option<Sequence> {
        let unloaded = self.destinations.take_unloaded(number, Some(message.event.origin.received))?;
        let address = self.join(&message.address, &message.key);
        self.destinations.load(unloaded.sequence, &address, RingEntry::loaded(message, pair, unloaded));
        Some(unloaded.sequence)
    }

    /// Whether messages of this address are unsettled.
    pub(super) fn has(&self, address: &Address) -> bool {
        let is_its = |slot: &RingEntry| slot.message.is_some() && address.is(&slot.address, &slot.key);
        self.destinations.waits(address) || self.slots.iter().any(is_its)
    }

    fn slot(&mut self, sequence: Sequence) -> Option<&mut RingEntry> {
        if self.destinations.holds(sequence) {
            return self.destinations.entry(sequence);
        }
        let at = usize::try_from(sequence.checked_sub(self.first)?).ok()?;
        self.slots.get_mut(at)
    }

    /// Notes that the session has the message.
    pub(super) fn hand(&mut self, sequence: Sequence, now: Instant) {
        if self.destinations.holds(sequence) {
            self.destinations.hand(sequence, now);
        } else if let Some(slot) = self.slot(sequence) {
            slot.state = EntryState::Sent(now);
            slot.attempts += 1;
            let cost = slot.cost();
            self.handed += 1;
            self.handed_bytes += cost;
        }
    }

    /// Notes that a message has had no answer for long: the broker may have it.
    pub(super) fn unanswered_for_long(&mut self, sequence: Sequence) {
        if let Some(slot) = self.slot(sequence) {
            slot.deferral = Deferral::Unanswered;
        }
    }

    /// Marks a message to be sent again, although its address did not refuse it.
    pub(super) fn retry(&mut self, sequence: Sequence) {
        self.defer(sequence);
        self.destinations.undecided(sequence);
    }

    /// Marks a message to be sent again.
    fn defer(&mut self, sequence: Sequence) {
        if self.destinations.holds(sequence) {
            return self.destinations.defer(sequence);
        }
        let Some(slot) = self.slot(sequence) else { return };
        if matches!(slot.state, EntryState::Sent(_)) {
            slot.defer();
            let cost = slot.cost();
            self.handed -= 1;
            self.handed_bytes -= cost;
            self.uncertain = self.uncertain.max(sequence + 1);
            let at = usize::try_from(sequence - self.first).unwrap_or(0);
            self.cursor = self.cursor.min(at);
            self.looked = self.looked.min(at);
        }
    }

    /// Lets the request that waits for a message take it back again, unless the broker may have it.
    pub(super) fn unsend(&mut self, sequence: Sequence) {
        if let Some(slot) = self.slot(sequence).filter(|slot| !slot.is_perhaps_stored())
            && let Some(waiter) = slot.message.as_ref().and_then(|message| message.event.waiter.as_ref())
        {
            waiter.unsend();
        }
    }

    /// Removes a message because it is stored or refused; none if it is settled already.
    pub(super) fn take(&mut self, sequence: Sequence, stored: bool) -> Option<Removed> {
        if self.destinations.holds(sequence) {
            let mut entry = self.destinations.take(sequence, stored)?;
            let mut removed = entry.settle()?;
            removed.overtaken &= entry.overtaken;
            return Some(removed);
        }
        let slot = self.slot(sequence).filter(|slot| slot.message.is_some())?;
        // Refused now, it may have been stored by a lost session.
        slot.stored |= stored;
        let mut removed = slot.settle()?;
        if removed.handed.is_some() {
            self.handed -= 1;
            self.handed_bytes -= removed.message.event.cost();
        }
        self.settled += 1;
        let Message { address, key, .. } = &removed.message;
        removed.overtaken = removed.overtaken && self.was_overtaken(sequence, address, key);
        self.drop_gaps();
        Some(removed)
    }

    /// Removes a message that is stored at a known place; none if it is settled already.
    pub(super) fn take_at(&mut self, sequence: Sequence, position: Position) -> Option<Removed> {
        let place = position.number;
        let entry = self.slot(sequence)?;
        entry.place = Some(place);
        let (is_again, is_behind) = (entry.attempts > 1, entry.younger_place.is_some_and(|other| other < place));
        // In the ring a message sent once, in order, is at its right place.
        let overtaken = is_behind || (is_again && self.is_behind_younger(sequence, place));
        let last = if overtaken { None } else { self.last_perhaps_stored(sequence) };
        let removed = self.take(sequence, true)?;
        let Message { address, key, .. } = &removed.message;
        let overtook = if position.repeat { self.undecided.decide(place, address, key) } else { 0 };
        if let Some(until) = last {
            self.undecided.remember(place, address, key, until);
        }
        if !self.undecided.is_empty() {
            let first = self.destinations.first().map_or(self.first, |first| first.min(self.first));
            self.undecided.forget_below(first);
        }
        Some(Removed { overtaken, overtook, ..removed })
    }

    /// The younger slots of the same key as this one.
    fn younger(&self, sequence: Sequence) -> impl DoubleEndedIterator<Item = (Sequence, &RingEntry)> {
        let at = usize::try_from(sequence - self.first).unwrap_or(0);
        let own = self.slots.get(at).map(|slot| (slot.address.clone(), slot.key.clone()));
        let rest = self.slots.iter().enumerate().skip(at + 1);
        rest.map(|(at, slot)| (self.first + at as Sequence, slot)).filter(move |(_, slot)| {
            own.as_ref().is_some_and(|(address, key)| slot.address == *address && slot.key == *key)
        })
    }

    /// Whether a younger one of its key is stored before this place, as far as the ring has both of them.
    fn is_behind_younger(&self, sequence: Sequence, place: u64) -> bool {
        !self.destinations.holds(sequence)
            && self.younger(sequence).any(|(_, slot)| slot.place.is_some_and(|other| other < place))
    }

    /// The youngest unsettled message of the same key that an earlier attempt may have stored.
    fn last_perhaps_stored(&self, sequence: Sequence) -> Option<Sequence> {
        if self.destinations.holds(sequence) {
            return self.destinations.last_perhaps_stored(sequence);
        }
        // Asked for each message: the whole ring is searched only after a failure.
        if sequence + 1 >= self.uncertain {
            return None;
        }
        let is_perhaps_stored =
            |slot: &RingEntry| !matches!(slot.state, EntryState::Settled) && (slot.stored || slot.is_deferred());
        self.younger(sequence).rfind(|(_, slot)| is_perhaps_stored(slot)).map(|(sequence, _)| sequence)
    }

    fn was_overtaken(&self, sequence: Sequence, address: &str, key: &str) -> bool {
        let at = usize::try_from(sequence - self.first).unwrap_or(0);
        self.slots.iter().skip(at + 1).any(|slot| slot.stored && *slot.key == *key && *slot.address == *address)
    }

    fn drop_gaps(&mut self) {
        while self.slots.front().is_some_and(|slot| matches!(slot.state, EntryState::Settled)) {
            self.slots.pop_front();
            self.first += 1;
            self.settled -= 1;
            self.cursor = self.cursor.saturating_sub(1);
            self.looked = self.looked.saturating_sub(1);
        }
    }

    /// Marks everything unsettled to be sent again, oldest first, because the session is lost.
    pub(super) fn rewind(&mut self) {
        for slot in &mut self.slots {
            if matches!(slot.state, EntryState::Sent(_)) {
                slot.state = EntryState::Waiting;
                slot.stored = true;
            }
        }
        (self.handed, self.handed_bytes) = (0, 0);
        self.uncertain = self.end();
        (self.cursor, self.looked) = (0, 0);
        self.held_back.clear();
        self.avoided = None;
        self.destinations.rewind();
    }

    /// The sequences of messages to be sent that their senders have withdrawn.
    pub(super) fn withdrawn(&self) -> Vec<Sequence> {
        let is_withdrawn = |slot: &RingEntry| {
            let waits = slot.message.as_ref().and_then(|message| message.event.waiter.as_ref());
            matches!(slot.state, EntryState::Waiting) && waits.is_some_and(|sequence| sequence.is_withdrawn())
        };
        self.entries().filter(|(_, slot)| is_withdrawn(slot)).map(|(sequence, _)| sequence).collect()
    }

    /// The message that waits for a verdict, if it is the only one.
    pub(super) fn only_one_in_flight(&self) -> Option<Sequence> {
        let mut sent = self.entries().filter(|(_, entry)| matches!(entry.state, EntryState::Sent(_)));
        sent.next().map(|(sequence, _)| sequence).filter(|_| self.in_flight() == 1)
    }

    /// Whether all that is left waits for its address.
    pub(super) fn waits_for_addresses(&self) -> bool {
        self.slots.len() == self.settled && self.destinations.all_wait()
    }

    /// The events that are not settled.
    pub(super) fn events(&self) -> impl Iterator<Item = &Event> {
        self.entries().filter_map(|(_, entry)| entry.message.as_ref()).map(|message| &*message.event)
    }

    fn entries(&self) -> impl Iterator<Item = (Sequence, &RingEntry)> {
        (self.first..).zip(&self.slots).chain(self.destinations.entries())
    }
}

#[cfg(test)]
pub(super) mod tests;
