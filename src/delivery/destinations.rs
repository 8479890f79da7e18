//! The addresses that do not answer as others do, and their messages, which are apart from the ring.
//!
//! An address is *asking* while the answer to one of its messages decides what becomes of it, *parked* after a refusal,
//! and *open* while it catches up, in its own order. What is asking or parked does not count as in flight.
//! Most of what waits and is in the journal is *unloaded*: memory has the sequences alone.
//!
//! Length: the states of an address and each step between them are only understood together.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant, SystemTime};

use crate::brokers::{Refusal, Sequence};
use crate::delivery::address_queue::{
    Address, AddressQueue, AddressRefusal, AddressState, LOADED, Turn, WaitingMessages, WaitingRoom,
};
use crate::delivery::entry::{EntryState, RingEntry, UnloadedMessage};
use crate::event::{Event, Message};
use crate::queue::journal::Record;

/// The addresses that are remembered as wrong although nothing waits for them.
const REMEMBERED: usize = 1024;

/// The messages that are read back at once while memory is short.
const FEW: usize = 16;

/// The parked addresses that are tried in one round: with thousands of them delivery would do nothing else for seconds.
const TRIES: usize = 256;

/// The time until the next round where more are due.
const BETWEEN_TRIES: Duration = Duration::from_millis(5);

/// All addresses of which messages are apart, or which are known to be wrong.
#[derive(Debug, Default)]
pub(super) struct Destinations {
    queues: HashMap<Address, AddressQueue>,
    places: HashMap<Sequence, Address>,
    /// Handed over.
    handed: usize,
    /// Those of them at addresses that are open.
    counted: usize,
    /// Addresses without messages that are remembered as wrong, the oldest first.
    remembered: VecDeque<Address>,
    /// Nothing may be sent before this time, unless something changes.
    quiet_until: Option<tokio::time::Instant>,
    /// The addresses that may be sent to, as the last look at all of them found, in turn.
    ready: VecDeque<Address>,
    /// The parked addresses that were tried in this round.
    tried: usize,
    /// The most bytes that events take here before all but the first of each address are unloaded; none: nothing is kept
    /// by a journal.
    memory: Option<usize>,
    /// Nothing more is unloaded.
    is_stopping: bool,
    /// All events together take what they may.
    is_full: bool,
    /// The bytes that they take, and those of them that can be unloaded, because the journal has the events.
    loaded: usize,
    kept: usize,
    /// The size of their records.
    record_bytes: u64,
    /// The unloaded events, and about the size of their records.
    unloaded: usize,
    unloaded_bytes: u64,
    /// The number and the bytes of those unloaded since this was last asked for.
    freed: (usize, usize),
    /// Unloaded events by their numbers, whose address is to be rendered anew, because the routes have changed.
    unrendered: BTreeMap<u64, UnloadedMessage>,
}

impl Destinations {
    /// The number of messages.
    pub(super) fn len(&self) -> usize {
        self.places.len() + self.unloaded
    }

    /// The number of messages in flight at addresses that are not open.
    pub(super) fn silent(&self) -> usize {
        self.handed - self.counted
    }

    /// The number of messages in flight at addresses that catch up.
    pub(super) fn counted(&self) -> usize {
        self.counted
    }

    /// Whether messages of any address belong here.
    pub(super) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// Whether the messages of this address belong here.
    pub(super) fn has(&self, address: &Address) -> bool {
        self.queues.contains_key(address)
    }

    /// The number of messages of this address that are here.
    pub(super) fn waiting_at(&self, address: &Address) -> usize {
        self.queues.get(address).map_or(0, AddressQueue::len)
    }

    /// Whether messages of this address are here.
    pub(super) fn waits(&self, address: &Address) -> bool {
        self.queues.get(address).is_some_and(|queue| !queue.is_empty())
    }

    /// Whether this message is here.
    pub(super) fn holds(&self, sequence: Sequence) -> bool {
        !self.places.is_empty() && self.places.contains_key(&sequence)
    }

    /// Whether this address gets nothing but tries.
    pub(super) fn is_closed(&self, address: &Address) -> bool {
        self.queues.get(address).is_some_and(|queue| !queue.is_open())
    }

    /// The oldest message of those that catch up: everything below it is settled or waits for its address.
    pub(super) fn begin(&self) -> Option<Sequence> {
        let open = self.queues.values().filter(|queue| queue.is_open());
        open.filter_map(AddressQueue::first).min()
    }

    /// The receipt of the oldest message.
    pub(super) fn oldest(&self) -> Option<SystemTime> {
        let loaded = self.queues.values().filter_map(|queue| queue.entries.values().next()?.message.as_ref());
        let unloaded = self.queues.values().filter(|queue| !queue.unloaded.is_empty());
        let unloaded = unloaded.filter_map(|queue| queue.unloaded_since);
        loaded.map(|message| message.event.origin.received).chain(unloaded).min()
    }

    /// Takes a message of an address that is here.
    pub(super) fn insert(&mut self, sequence: Sequence, address: &Address, entry: RingEntry) {
        let (unloads, room) = (self.unloads(), self.room());
        let queue = self.queues.entry(address.clone()).or_default();
        let is_left = unloads && entry.is_new() && queue.leaves_to_journal(sequence, room);
        if !is_left || !self.unload(sequence, address, &entry) {
            self.hold(sequence, address, entry);
        }
    }

    fn unloads(&self) -> bool {
        self.memory.is_some() && !self.is_stopping
    }

    /// Leaves an event to the journal alone; false where that cannot be.
    fn unload(&mut self, sequence: Sequence, address: &Address, entry: &RingEntry) -> bool {
        let Some((number, event)) = entry.to_unload() else { return false };
        let message = UnloadedMessage { sequence, attempts: entry.attempts, nacks: entry.nacks };
        self.queues.entry(address.clone()).or_default().unload(number, message, event.origin.received);
        self.unloaded += 1;
        self.unloaded_bytes += Record::of(event).length();
        self.freed = (self.freed.0 + 1, self.freed.1 + event.cost());
        true
    }

    /// Leaves the events to the journal that are more than needed in memory.
    pub(super) fn unload_excess(&mut self) {
        if !self.unloads() || self.kept == 0 {
            return;
        }
        let room = self.room();
        let excess = self.queues.values().flat_map(|queue| queue.excess(room)).collect::<Vec<_>>();
        for sequence in excess.into_iter().rev() {
            if self.entry(sequence).is_some_and(|entry| entry.to_unload().is_some())
                && let Some((address, entry)) = self.remove(sequence, AddressQueue::remove)
            {
                self.unload(sequence, &address, &entry);
            }
        }
    }

    /// Changes the queue of an address, and the counts with it.
    fn change<T>(&mut self, address: &Address, change: impl FnOnce(&mut AddressQueue) -> T) -> T {
        self.quiet_until = None;
        let queue = self.queues.entry(address.clone()).or_default();
        let before = (queue.handed(), queue.counted());
        let changed = change(queue);
        self.handed = self.handed + queue.handed() - before.0;
        self.counted = self.counted + queue.counted() - before.1;
        changed
    }

    /// Takes a message out of the queue of its address.
    fn remove(
        &mut self,
        sequence: Sequence,
        remove: impl FnOnce(&mut AddressQueue, Sequence) -> Option<RingEntry>,
    ) -> Option<(Address, RingEntry)> {
        let address = self.places.get(&sequence)?.clone();
        let entry = self.change(&address, |queue| remove(queue, sequence))?;
        self.places.remove(&sequence);
        self.loaded -= entry.cost();
        self.kept -= entry.kept_cost();
        self.record_bytes -= entry.record_bytes();
        Some((address, entry))
    }

    /// Takes a message, and keeps it in memory.
    fn hold(&mut self, sequence: Sequence, address: &Address, entry: RingEntry) {
        self.loaded += entry.cost();
        self.kept += entry.kept_cost();
        self.record_bytes += entry.record_bytes();
        self.places.insert(sequence, address.clone());
        self.change(address, |queue| queue.insert(sequence, entry));
    }

    /// The address gets no more until this message of it is answered.
    pub(super) fn stall(&mut self, address: &Address, blocker: Sequence) {
        if !self.is_closed(address) {
            self.change(address, |queue| queue.state = AddressState::Asking(blocker, None));
        }
    }

    /// Parks the address of a refused message.
    pub(super) fn park(&mut self, address: &Address, sequence: Sequence, refused: AddressRefusal) {
        self.change(address, |queue| queue.park(sequence, refused));
    }

    /// A round begins: parked addresses may be tried again.
    pub(super) fn begin_round(&mut self) {
        self.tried = 0;
    }

    /// A message that may be sent, the oldest of its address: of what catches up, and the tries that are due by now, if a
    /// time is given. The addresses take turns.
    pub(super) fn next(
        &mut self,
        now: Option<tokio::time::Instant>,
        is_held_back: impl Fn(&Address) -> bool,
    ) -> Option<Sequence> {
        let is_quiet = self.quiet_until.is_some_and(|until| now.is_none_or(|now| now < until));
        if self.places.is_empty() || is_quiet {
            return None;
        }
        let next = self.next_ready(now, &is_held_back);
        if next.is_some() {
            return next;
        }
        // All of them are looked at once for a round of messages, not for each.
        let mut later: Option<tokio::time::Instant> = None;
        let mut ready = Vec::new();
        for (address, queue) in &self.queues {
            match queue.turn() {
                Turn::At(at) if now.is_none_or(|now| at > now) => {
                    later = Some(later.map_or(at, |later| later.min(at)));
                }
                Turn::At(_) if self.tried >= TRIES => {
                    let soon = now.map(|now| now + BETWEEN_TRIES);
                    later = later.into_iter().chain(soon).min();
                }
                Turn::Now | Turn::At(_) if !is_held_back(address) => {
                    ready.extend(self.first_sendable(queue).map(|sequence| (sequence, address.clone())));
                }
                Turn::Now | Turn::At(_) | Turn::None => {}
            }
        }
        ready.sort_unstable_by_key(|(sequence, _)| *sequence);
        self.ready.extend(ready.into_iter().map(|(_, address)| address));
        let next = self.next_ready(now, &is_held_back);
        if next.is_none() {
            self.quiet_until = later.or_else(|| Some(tokio::time::Instant::now() + Duration::from_hours(1)));
        }
        next
    }

    /// The message that is next by the last look; an address to which nothing may be sent by now leaves the turn.
    fn next_ready(
        &mut self,
        now: Option<tokio::time::Instant>,
        is_held_back: &impl Fn(&Address) -> bool,
    ) -> Option<Sequence> {
        while let Some(address) = self.ready.pop_front() {
            let Some(queue) = self.queues.get(&address).filter(|_| !is_held_back(&address)) else { continue };
            let is_try = match queue.turn() {
                Turn::Now => false,
                Turn::At(at) if self.tried < TRIES && now.is_some_and(|now| at <= now) => true,
                Turn::At(_) | Turn::None => continue,
            };
            if let Some(sequence) = self.first_sendable(queue) {
                self.tried += usize::from(is_try);
                self.ready.push_back(address);
                return Some(sequence);
            }
        }
        None
    }

    /// The first message of an address that may be sent: not before those whose address is rendered anew, which may be the
    /// same one.
    fn first_sendable(&self, queue: &AddressQueue) -> Option<Sequence> {
        let end = self.first_unrendered();
        queue.sendable().next().filter(|sequence| end.is_none_or(|end| *sequence < end))
    }

    /// The oldest of those whose address is to be rendered anew.
    fn first_unrendered(&self) -> Option<Sequence> {
        self.unrendered.values().next().map(|message| message.sequence)
    }

    /// Looks for a message to send again at once.
    pub(super) fn look_again(&mut self) {
        self.quiet_until = None;
    }

    /// The time of the next try, where only time is waited for.
    pub(super) fn next_try(&self) -> Option<tokio::time::Instant> {
        self.quiet_until.filter(|_| !self.places.is_empty())
    }

    /// One of the messages.
    pub(super) fn entry(&mut self, sequence: Sequence) -> Option<&mut RingEntry> {
        let address = self.places.get(&sequence)?;
        self.queues.get_mut(address)?.entries.get_mut(&sequence)
    }

    /// Changes the queue that a message is in.
    fn change_of(&mut self, sequence: Sequence, change: impl FnOnce(&mut AddressQueue)) {
        if let Some(address) = self.places.get(&sequence).cloned() {
            self.change(&address, change);
        }
    }

    /// Notes that the session has the message.
    pub(super) fn hand(&mut self, sequence: Sequence, now: Instant) {
        self.change_of(sequence, |queue| queue.hand(sequence, now));
    }

    /// Puts a message back among those to be sent.
    pub(super) fn defer(&mut self, sequence: Sequence) {
        self.change_of(sequence, |queue| queue.defer(sequence));
    }

    /// The message was put back and its address not refused: it is tried again.
    pub(super) fn undecided(&mut self, sequence: Sequence) {
        self.change_of(sequence, |queue| queue.decide(sequence, false));
    }

    /// Takes a message out because it is stored, refused or withdrawn.
    pub(super) fn take(&mut self, sequence: Sequence, stored: bool) -> Option<RingEntry> {
        let (address, entry) = self.remove(sequence, |queue, sequence| queue.take(sequence, stored))?;
        self.forget_if_idle(&address);
        Some(entry)
    }

    /// The youngest message of the key of this one, younger than it, that an earlier attempt may have stored.
    pub(super) fn last_perhaps_stored(&self, sequence: Sequence) -> Option<Sequence> {
        let queue = self.queues.get(self.places.get(&sequence)?)?;
        queue.last_perhaps_stored(sequence, &queue.entries.get(&sequence)?.key)
    }

    /// The oldest message in memory.
    pub(super) fn first(&self) -> Option<Sequence> {
        self.queues.values().filter_map(|queue| queue.entries.keys().next().copied()).min()
    }

    /// Forgets an address without messages, unless it is known to be wrong.
    fn forget_if_idle(&mut self, address: &Address) {
        let Some(queue) = self.queues.get_mut(address).filter(|queue| queue.is_empty()) else { return };
        if !matches!(&queue.state, AddressState::Parked(parked) if parked.is_wrong()) {
            self.queues.remove(address);
            return;
        }
        if !std::mem::replace(&mut queue.is_remembered, true) {
            self.remembered.push_back(address.clone());
        }
        if self.remembered.len() > REMEMBERED
            && let Some(oldest) = self.remembered.pop_front()
            && let Some(queue) = self.queues.get_mut(&oldest)
        {
            queue.is_remembered = false;
            if queue.is_empty() {
                self.queues.remove(&oldest);
            }
        }
    }

    /// The session is lost: everything is to be sent again, and each address is tried again.
    pub(super) fn rewind(&mut self) {
        (self.handed, self.counted) = (0, 0);
        self.queues.values_mut().for_each(AddressQueue::rewind);
        self.try_at_once();
    }

    /// Tries each address again at once, because dead letters can be written again.
    pub(super) fn has_room_again(&mut self) {
        for queue in self.queues.values_mut() {
            if let AddressState::Parked(parked) = &mut queue.state {
                parked.needs_room = false;
            }
        }
        self.try_at_once();
    }

    /// Tries each address again at once; only one whose message was nacked on two channels waits as long as it would have.
    pub(super) fn try_at_once(&mut self) {
        let now = tokio::time::Instant::now();
        for queue in self.queues.values_mut() {
            if let AddressState::Parked(parked) = &mut queue.state
                && parked.nacks < 2
            {
                parked.next_try = parked.next_try.min(now);
            }
        }
        self.quiet_until = None;
    }

    /// The messages at wrong addresses whose time is over, at most `most`, oldest first at each, and the refusal of each: those
    /// whose own time is over, and all messages of an address that has been wrong for `refuse_after`, unless a try of it is due.
    pub(super) fn overdue(
        &self,
        refuse_after: Duration,
        is_late: Option<&dyn Fn(&Event) -> bool>,
        most: usize,
    ) -> Vec<(Sequence, Refusal)> {
        let mut overdue = Vec::new();
        if self.places.is_empty() {
            return overdue;
        }
        let now = tokio::time::Instant::now();
        for queue in self.queues.values().filter(|queue| !queue.waiting.is_empty()) {
            let AddressState::Parked(parked) = &queue.state else { continue };
            if !parked.is_wrong() || parked.next_try <= now {
                continue;
            }
            let is_over = queue.is_over(refuse_after);
            if !is_over && is_late.is_none() {
                continue;
            }
            let is_late = |sequence: &&Sequence| {
                let event = queue.entries.get(*sequence).and_then(|entry| entry.message.as_ref());
                is_late.is_some_and(|is_late| event.is_some_and(|message| is_late(&message.event)))
            };
            let end = queue.first_unloaded().into_iter().chain(self.first_unrendered()).min();
            let end = end.unwrap_or(Sequence::MAX);
            let late = queue.waiting.iter().filter(|sequence| (is_over && **sequence < end) || is_late(sequence));
            let late = late.take(most - overdue.len());
            overdue.extend(late.map(|sequence| (*sequence, parked.refusal.clone())));
            if overdue.len() == most {
                break;
            }
        }
        overdue
    }

    /// Whether all messages wait for an address that refuses them.
    pub(super) fn all_wait(&self) -> bool {
        self.queues.values().all(|queue| queue.is_empty() || !queue.is_open())
    }

    /// The messages that wait at parked addresses.
    pub(super) fn parked(&self) -> impl Iterator<Item = WaitingMessages> {
        let now = (tokio::time::Instant::now(), Instant::now());
        self.queues.iter().filter(|(_, queue)| !queue.is_empty()).filter_map(move |(address, queue)| {
            let (AddressState::Parked(parked) | AddressState::Asking(_, Some(parked))) = &queue.state else {
                return None;
            };
            let age = now.0.duration_since(parked.since);
            let since = now.1.checked_sub(age).unwrap_or(now.1);
            let (messages, reason) = (queue.len(), Some(parked.refusal.text.clone()));
            Some(WaitingMessages { address: address.clone(), messages, since, reason })
        })
    }

    /// The size of the records of all events that wait here.
    pub(super) fn record_bytes(&self) -> u64 {
        self.record_bytes + self.unloaded_bytes
    }

    /// Whether the journal has records of them.
    pub(super) fn has_records(&self) -> bool {
        self.kept > 0 || self.unloaded > 0
    }

    /// About the size of the records of those that the journal alone keeps.
    pub(super) fn unloaded_bytes(&self) -> u64 {
        self.unloaded_bytes
    }

    /// Sets the most bytes that events take here before they are unloaded; none: they stay. At the stop no more are.
    pub(super) fn set_memory(&mut self, memory: Option<usize>, is_stopping: bool) {
        (self.memory, self.is_stopping) = (memory, is_stopping);
    }

    /// The bytes of the events in memory.
    pub(super) fn loaded_bytes(&self) -> usize {
        self.loaded
    }

    /// Sets whether all events together take what they may.
    pub(super) fn set_full(&mut self, is_full: bool) {
        self.is_full = is_full;
    }

    /// The most memory that messages in flight may take at other addresses, where all may take this much.
    pub(super) fn most_in_flight(&self, all: usize) -> usize {
        all.saturating_sub(self.loaded) / 4
    }

    /// The room by quarters of the buffer. It is full only if a part of it could be unloaded: where others fill it that only
    /// memory keeps, nothing would ever be tried, and so nothing would leave.
    fn room(&self) -> WaitingRoom {
        let full = if self.is_full { 2 } else { 3 };
        match self.memory {
            Some(most) if self.loaded >= most.saturating_mul(full) && self.kept >= most / 4 => WaitingRoom::Full,
            Some(most) if self.loaded >= most.saturating_mul(2) => WaitingRoom::UsedUp,
            Some(most) if self.loaded >= most => WaitingRoom::Short,
            _ => WaitingRoom::Ample,
        }
    }

    /// The number and the bytes of the events that were unloaded since the last call.
    pub(super) fn take_freed(&mut self) -> (usize, usize) {
        std::mem::take(&mut self.freed)
    }

    /// The numbers of the next unloaded events to be read back, all of one address; after `refuse_after`, if it is given, those
    /// at a wrong address become dead letters.
    pub(super) fn to_load(&self, refuse_after: Option<Duration>) -> Vec<u64> {
        if self.unloaded == self.unrendered.len() {
            return Vec::new();
        }
        let room = self.room();
        let wanting = self.queues.values().filter(|queue| queue.wants_loading(room, refuse_after));
        let next = wanting.min_by_key(|queue| (!queue.is_open(), queue.first_unloaded()));
        let most = match room {
            WaitingRoom::Ample => LOADED,
            WaitingRoom::Short => FEW,
            WaitingRoom::UsedUp | WaitingRoom::Full => 1,
        };
        next.map_or_else(Vec::new, |queue| queue.unloaded.keys().take(most).copied().collect())
    }

    /// The numbers of the next events whose address is to be rendered anew.
    pub(super) fn to_render(&self) -> Vec<u64> {
        self.unrendered.keys().take(LOADED).copied().collect()
    }

    /// The number of unloaded events, and of those whose address is to be rendered anew.
    pub(super) fn unloaded(&self) -> (usize, usize) {
        (self.unloaded, self.unrendered.len())
    }

    /// Takes an event that was read back.
    pub(super) fn load(&mut self, sequence: Sequence, address: &Address, entry: RingEntry) {
        if let Some(message) = &entry.message {
            self.unloaded_bytes = self.unloaded_bytes.saturating_sub(Record::of(&message.event).length());
        }
        self.hold(sequence, address, entry);
    }

    /// Leaves an event at this address to the journal, after its address was rendered anew.
    pub(super) fn rendered(&mut self, number: u64, address: &Address, received: SystemTime) {
        if let Some(message) = self.unrendered.remove(&number) {
            self.change(address, |queue| queue.unload(number, message, received));
        }
    }

    /// Takes an unloaded event whose address is not known yet.
    pub(super) fn adopt(&mut self, number: u64, sequence: Sequence, bytes: u64) {
        self.unrendered.insert(number, UnloadedMessage { sequence, attempts: 0, nacks: 0 });
        self.unloaded += 1;
        self.unloaded_bytes += bytes;
    }

    /// Takes an unloaded message out, because it is in memory or lost; none where it is not unloaded. `received` is its
    /// receipt, before which none of the others was received.
    pub(super) fn take_unloaded(&mut self, number: u64, received: Option<SystemTime>) -> Option<UnloadedMessage> {
        let mut found = self.unrendered.remove(&number);
        if let Some(queue) = self.queues.values_mut().find(|queue| queue.unloaded.contains_key(&number)) {
            found = queue.unloaded.remove(&number);
            queue.unloaded_since = received.or(queue.unloaded_since);
        }
        self.unloaded -= usize::from(found.is_some());
        // If it was lost, what is behind it may be sent.
        self.quiet_until = None;
        if self.unloaded == 0 {
            self.unloaded_bytes = 0;
        }
        found
    }

    /// Has the addresses of all unloaded events rendered anew.
    pub(super) fn render_unloaded(&mut self) {
        for queue in self.queues.values_mut() {
            self.unrendered.append(&mut queue.unloaded);
            queue.unloaded_since = None;
        }
    }

    /// Forgets the addresses that nothing waits for.
    pub(super) fn forget_idle(&mut self) {
        for address in self.queues.keys().cloned().collect::<Vec<_>>() {
            self.forget_if_idle(&address);
        }
    }

    /// The messages that the broker has for certain not, oldest first: each was refused, or not sent.
    pub(super) fn refused(&self) -> Vec<(Sequence, &Message)> {
        let is_refused = |entry: &RingEntry| {
            matches!(entry.state, EntryState::Waiting) && !entry.is_perhaps_stored() && entry.nacks == 0
        };
        let entries = self.entries().filter(|(_, entry)| is_refused(entry));
        let mut refused: Vec<_> =
            entries.filter_map(|(sequence, entry)| Some((sequence, entry.message.as_ref()?))).collect();
        refused.sort_unstable_by_key(|(sequence, _)| *sequence);
        refused
    }

    /// All of them, in no order but that of each address.
    pub(super) fn entries(&self) -> impl Iterator<Item = (Sequence, &RingEntry)> {
        self.queues.values().flat_map(|queue| &queue.entries).map(|(sequence, entry)| (*sequence, entry))
    }
}
