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
    Address, AddressQueue, AddressRefusal, AddressState, LOADED, Parked, Turn, UnloadedMessage, WaitingMessages,
};
use crate::delivery::ring::{EntryState, RingEntry};
use crate::event::{Event, Kept, Message};
use crate::queue::journal::Record;

/// The addresses that are remembered as wrong although nothing waits for them.
const REMEMBERED: usize = 1024;

/// The messages that are read back at once while memory is short.
const FEW: usize = 16;

/// All addresses of which messages are apart, or which are known to be wrong.
#[derive(Debug, Default)]
pub(super) struct Destinations {
    queues: HashMap<Address, AddressQueue>,
    places: HashMap<Sequence, Address>,
    /// Handed over at addresses that are not open.
    silent: usize,
    /// Handed over at addresses that are open.
    counted: usize,
    /// Addresses without messages that are remembered as wrong, the oldest first.
    remembered: VecDeque<Address>,
    /// Nothing may be sent before this time, unless something changes.
    quiet_until: Option<tokio::time::Instant>,
    /// The most bytes that events take here before all but the first of each address are unloaded; none: nothing is kept
    /// by a journal.
    memory: Option<usize>,
    /// Nothing more is unloaded.
    is_stopping: bool,
    /// The bytes that they take.
    loaded: usize,
    /// The unloaded events, and about the size of their records.
    unloaded: usize,
    unloaded_bytes: u64,
    /// The number and the bytes of those unloaded since this was last asked for.
    freed: (usize, usize),
    /// Unloaded events whose address is to be rendered anew, because the routes have changed.
    unrendered: BTreeMap<Sequence, UnloadedMessage>,
}

impl Destinations {
    /// The number of messages.
    pub(super) fn len(&self) -> usize {
        self.places.len() + self.unloaded
    }

    /// The number of messages in flight at addresses that are not open.
    pub(super) fn silent(&self) -> usize {
        self.silent
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
        let (unloads, is_short) = (self.unloads(), self.is_short());
        let queue = self.queues.entry(address.clone()).or_default();
        let is_left = unloads && entry.is_new() && queue.leaves_to_journal(sequence, is_short);
        match entry.to_unload().filter(|_| is_left) {
            Some((message, event)) => self.unload(sequence, address, message, event),
            None => self.hold(sequence, address, entry),
        }
    }

    fn unloads(&self) -> bool {
        self.memory.is_some() && !self.is_stopping
    }

    /// Leaves an event to the journal alone.
    fn unload(&mut self, sequence: Sequence, address: &Address, message: UnloadedMessage, event: &Event) {
        let queue = self.queues.entry(address.clone()).or_default();
        let received = event.origin.received;
        queue.unloaded_since = Some(queue.unloaded_since.map_or(received, |since| since.min(received)));
        queue.unloaded.insert(sequence, message);
        self.unloaded += 1;
        self.unloaded_bytes += Record::of(event).length();
        self.freed = (self.freed.0 + 1, self.freed.1 + event.cost());
    }

    /// Leaves the events to the journal that are more than needed in memory.
    pub(super) fn unload_excess(&mut self) {
        if !self.unloads() {
            return;
        }
        let is_short = self.is_short();
        let excess = self.queues.values().flat_map(|queue| queue.excess(is_short)).collect::<Vec<_>>();
        for sequence in excess.into_iter().rev() {
            let entry = self.find(sequence).and_then(|queue| {
                queue.entries.get(&sequence)?.to_unload()?;
                queue.waiting.remove(&sequence);
                queue.entries.remove(&sequence)
            });
            if let Some(entry) = entry
                && let Some(address) = self.places.remove(&sequence)
                && let Some((message, event)) = entry.to_unload()
            {
                self.loaded -= entry.cost();
                self.unload(sequence, &address, message, event);
            }
        }
    }

    /// Takes a message, and keeps it in memory.
    fn hold(&mut self, sequence: Sequence, address: &Address, entry: RingEntry) {
        self.quiet_until = None;
        self.loaded += entry.cost();
        let queue = self.queues.entry(address.clone()).or_default();
        if matches!(entry.state, EntryState::Waiting) {
            queue.waiting.insert(sequence);
        } else {
            queue.handed += 1;
            *(if queue.is_open() { &mut self.counted } else { &mut self.silent }) += 1;
        }
        queue.entries.insert(sequence, entry);
        self.places.insert(sequence, address.clone());
    }

    fn set(&mut self, address: &Address, state: AddressState) {
        self.quiet_until = None;
        let queue = self.queues.entry(address.clone()).or_default();
        let was_open = queue.is_open();
        queue.state = state;
        match (was_open, queue.is_open()) {
            (true, false) => {
                (self.counted, self.silent) = (self.counted - queue.handed, self.silent + queue.handed);
            }
            (false, true) => {
                (self.counted, self.silent) = (self.counted + queue.handed, self.silent - queue.handed);
            }
            _ => {}
        }
    }

    fn take_state(&mut self, address: &Address) -> AddressState {
        let Some(queue) = self.queues.get_mut(address) else { return AddressState::Open };
        let placeholder = if queue.is_open() { AddressState::Open } else { AddressState::Asking(0, None) };
        std::mem::replace(&mut queue.state, placeholder)
    }

    /// The address gets no more until this message of it is answered.
    pub(super) fn stall(&mut self, address: &Address, blocker: Sequence) {
        if !self.is_closed(address) {
            self.set(address, AddressState::Asking(blocker, None));
        }
    }

    /// Parks the address of a refused message. Of messages that were sent together only the first takes a step of the
    /// back-off.
    pub(super) fn park(&mut self, address: &Address, sequence: Sequence, refused: AddressRefusal) {
        let AddressRefusal { refusal, is_nacked, backoff, now } = refused;
        let nacks = self.entry(sequence).map_or(0, |entry| {
            entry.nacks += u32::from(is_nacked);
            entry.nacks
        });
        let (before, is_step) = match self.take_state(address) {
            AddressState::Open => (None, true),
            AddressState::Asking(asked, before) => {
                let is_step = asked == sequence || before.is_none();
                (before, is_step)
            }
            // A try that was refused before it was sent, or an answer to a message sent before the address was parked.
            AddressState::Parked(before) => {
                let is_step = before.next_try <= now;
                (Some(before), is_step)
            }
        };
        let mut parked = match before {
            Some(before) if before.refusal.kind == refusal.kind => Parked { refusal, ..before },
            Some(before) => Parked { refusal, since: now, ..before },
            None => Parked { refusal, since: now, next_try: now, backoff, nacks: 0 },
        };
        if is_step {
            parked.nacks = nacks;
            parked.step(now);
        }
        self.set(address, AddressState::Parked(parked));
        if let Some(queue) = self.queues.get_mut(address) {
            queue.allowance = Some(1);
        }
    }

    /// The oldest message that may be sent: of what catches up, and the tries that are due by now, if a time is given.
    pub(super) fn next(
        &mut self,
        now: Option<tokio::time::Instant>,
        is_held_back: impl Fn(&Address) -> bool,
    ) -> Option<Sequence> {
        let is_quiet = self.quiet_until.is_some_and(|until| now.is_none_or(|now| now < until));
        if self.places.is_empty() || is_quiet {
            return None;
        }
        let mut later: Option<tokio::time::Instant> = None;
        let mut found: Option<Sequence> = None;
        for (address, queue) in &self.queues {
            match queue.turn() {
                Turn::At(at) if now.is_none_or(|now| at > now) => {
                    later = Some(later.map_or(at, |later| later.min(at)));
                }
                Turn::Now | Turn::At(_) if !is_held_back(address) => {
                    found = found.into_iter().chain(queue.sendable().next()).min();
                }
                Turn::Now | Turn::At(_) | Turn::None => {}
            }
        }
        if found.is_none() {
            self.quiet_until = later.or_else(|| Some(tokio::time::Instant::now() + Duration::from_hours(1)));
        }
        found
    }

    /// Looks for a message to send again at once.
    pub(super) fn look_again(&mut self) {
        self.quiet_until = None;
    }

    /// The time of the next try, where only time is waited for.
    pub(super) fn next_try(&self) -> Option<tokio::time::Instant> {
        self.quiet_until.filter(|_| !self.places.is_empty())
    }

    fn find(&mut self, sequence: Sequence) -> Option<&mut AddressQueue> {
        let address = self.places.get(&sequence)?;
        self.queues.get_mut(address)
    }

    /// One of the messages.
    pub(super) fn entry(&mut self, sequence: Sequence) -> Option<&mut RingEntry> {
        self.find(sequence)?.entries.get_mut(&sequence)
    }

    /// Notes that the session has the message.
    pub(super) fn hand(&mut self, sequence: Sequence, now: Instant) {
        let Some(address) = self.places.get(&sequence).cloned() else { return };
        let Some(queue) = self.queues.get_mut(&address) else { return };
        queue.waiting.remove(&sequence);
        if let Some(entry) = queue.entries.get_mut(&sequence) {
            entry.state = EntryState::Sent(now);
            entry.attempts += 1;
        }
        queue.handed += 1;
        *(if queue.is_open() { &mut self.counted } else { &mut self.silent }) += 1;
        if let AddressState::Parked(_) = &queue.state
            && let AddressState::Parked(parked) = self.take_state(&address)
        {
            self.set(&address, AddressState::Asking(sequence, Some(parked)));
        }
    }

    /// Notes an answer to a message that was handed over.
    fn answered(&mut self, sequence: Sequence) {
        let Some(queue) = self.find(sequence) else { return };
        queue.handed -= 1;
        let is_open = queue.is_open();
        *(if is_open { &mut self.counted } else { &mut self.silent }) -= 1;
        self.quiet_until = None;
    }

    /// Decides the state of the address after the message that it waited for has left without a refusal.
    fn decide(&mut self, address: &Address, sequence: Sequence, is_stored: bool) {
        let now = tokio::time::Instant::now();
        let state = match self.take_state(address) {
            AddressState::Asking(asked, None) if asked == sequence => AddressState::Open,
            AddressState::Asking(asked, Some(_)) if asked == sequence && is_stored => AddressState::Open,
            AddressState::Asking(asked, Some(mut before)) if asked == sequence => {
                before.step(now);
                AddressState::Parked(before)
            }
            // It takes something: the clock starts anew, and the oldest is tried at once.
            AddressState::Parked(before) if is_stored => {
                AddressState::Parked(Parked { since: now, next_try: before.next_try.min(now), ..before })
            }
            state => state,
        };
        self.set(address, state);
    }

    /// Puts a message back among those to be sent.
    pub(super) fn defer(&mut self, sequence: Sequence) {
        let is_sent = |entry: &RingEntry| matches!(entry.state, EntryState::Sent(_));
        if !self.find(sequence).is_some_and(|queue| queue.entries.get(&sequence).is_some_and(is_sent)) {
            return;
        }
        self.answered(sequence);
        if let Some(queue) = self.find(sequence) {
            queue.waiting.insert(sequence);
            if let Some(entry) = queue.entries.get_mut(&sequence) {
                entry.state = EntryState::Waiting;
                entry.deferred = true;
            }
        }
    }

    /// The message was put back and its address not refused: it is tried again.
    pub(super) fn undecided(&mut self, sequence: Sequence) {
        if let Some(address) = self.places.get(&sequence).cloned() {
            self.decide(&address, sequence, false);
        }
    }

    /// Takes a message out because it is stored, refused or withdrawn.
    pub(super) fn take(&mut self, sequence: Sequence, stored: bool) -> Option<RingEntry> {
        let state = &self.find(sequence)?.entries.get(&sequence)?.state;
        if matches!(state, EntryState::Sent(_)) {
            self.answered(sequence);
        }
        let queue = self.find(sequence)?;
        queue.waiting.remove(&sequence);
        if stored {
            queue.allowance = queue.allowance.map(|most| most.saturating_mul(2));
        }
        let mut entry = queue.entries.remove(&sequence)?;
        let cost = entry.cost();
        entry.stored |= stored;
        let is_same_key = |other: &RingEntry| other.key == entry.key;
        if stored {
            for (_, older) in queue.entries.range_mut(..sequence).filter(|(_, older)| is_same_key(older)) {
                older.overtaken = true;
            }
        }
        entry.overtaken |= queue.entries.range(sequence..).any(|(_, other)| other.stored && is_same_key(other));
        self.loaded -= cost;
        let address = self.places.remove(&sequence)?;
        self.decide(&address, sequence, stored);
        self.forget_if_idle(&address);
        Some(entry)
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
        (self.silent, self.counted) = (0, 0);
        for queue in self.queues.values_mut() {
            queue.handed = 0;
            queue.waiting = queue.entries.keys().copied().collect();
            for entry in queue.entries.values_mut().filter(|entry| matches!(entry.state, EntryState::Sent(_))) {
                entry.state = EntryState::Waiting;
                entry.stored = true;
            }
            queue.state = match std::mem::take(&mut queue.state) {
                AddressState::Asking(_, Some(parked)) => AddressState::Parked(parked),
                AddressState::Asking(_, None) => AddressState::Open,
                state => state,
            };
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

    /// The messages at wrong addresses whose time is over, oldest first at each, and the refusal of each: all of an address
    /// that has been wrong for so long and is not about to be tried again, and those whose own time is over.
    pub(super) fn overdue(
        &self,
        refuse_after: Duration,
        is_late: Option<&dyn Fn(&Event) -> bool>,
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
            let is_over = now.duration_since(parked.since) >= refuse_after;
            let is_late = |sequence: &&Sequence| {
                let event = queue.entries.get(*sequence).and_then(|entry| entry.message.as_ref());
                is_late.is_some_and(|is_late| event.is_some_and(|message| is_late(&message.event)))
            };
            let end = queue.unloaded.keys().next().copied().unwrap_or(Sequence::MAX);
            let late = queue.waiting.iter().filter(|sequence| (is_over && **sequence < end) || is_late(sequence));
            overdue.extend(late.map(|sequence| (*sequence, parked.refusal.clone())));
        }
        overdue
    }

    /// Whether all messages wait for an address that refuses them, and are kept elsewhere than in memory.
    pub(super) fn is_kept(&self) -> bool {
        let is_kept =
            |entry: &RingEntry| entry.message.as_ref().is_none_or(|message| message.event.kept != Kept::Memory);
        let mut queues = self.queues.values().filter(|queue| !queue.is_empty());
        queues.all(|queue| !queue.is_open() && queue.entries.values().all(is_kept))
    }

    /// The messages that wait at parked addresses.
    pub(super) fn parked(&self) -> impl Iterator<Item = WaitingMessages<'_>> {
        let now = (tokio::time::Instant::now(), Instant::now());
        self.queues.iter().filter(|(_, queue)| !queue.is_empty()).filter_map(move |(address, queue)| {
            let (AddressState::Parked(parked) | AddressState::Asking(_, Some(parked))) = &queue.state else {
                return None;
            };
            let age = now.0.duration_since(parked.since);
            let since = now.1.checked_sub(age).unwrap_or(now.1);
            let (messages, reason) = (queue.len(), &*parked.refusal.text);
            Some(WaitingMessages { address, messages, since, reason })
        })
    }

    /// The size of the records of all events that wait here.
    pub(super) fn record_bytes(&self) -> u64 {
        let messages = self.entries().filter_map(|(_, entry)| entry.message.as_ref());
        messages.map(|message| Record::of(&message.event).length()).sum::<u64>() + self.unloaded_bytes
    }

    /// Sets the most bytes that events take here before they are unloaded; none: they stay. At the stop no more are.
    pub(super) fn set_memory(&mut self, memory: Option<usize>, is_stopping: bool) {
        (self.memory, self.is_stopping) = (memory, is_stopping);
    }

    fn is_short(&self) -> bool {
        self.memory.is_some_and(|most| self.loaded >= most)
    }

    /// The number and the bytes of the events that were unloaded since the last call.
    pub(super) fn take_freed(&mut self) -> (usize, usize) {
        std::mem::take(&mut self.freed)
    }

    /// The next unloaded events to be read back, all of one address.
    pub(super) fn to_load(&self) -> Vec<(Sequence, u64)> {
        if self.unloaded == self.unrendered.len() {
            return Vec::new();
        }
        let is_short = self.is_short();
        let wanting = self.queues.values().filter(|queue| queue.wants_loading(is_short));
        let next = wanting.min_by_key(|queue| (!queue.is_open(), queue.unloaded.keys().next().copied()));
        next.map_or_else(Vec::new, |queue| first_of(&queue.unloaded, if is_short { FEW } else { LOADED }))
    }

    /// The next events whose address is to be rendered anew.
    pub(super) fn to_render(&self) -> Vec<(Sequence, u64)> {
        first_of(&self.unrendered, LOADED)
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
    pub(super) fn rendered(&mut self, sequence: Sequence, address: &Address, received: SystemTime) {
        let Some(message) = self.unrendered.remove(&sequence) else { return };
        self.quiet_until = None;
        let queue = self.queues.entry(address.clone()).or_default();
        queue.unloaded.insert(sequence, message);
        queue.unloaded_since = Some(queue.unloaded_since.map_or(received, |since| since.min(received)));
    }

    /// Takes an unloaded message out, because it is in memory or lost; none where it is not unloaded. `received` is its
    /// receipt, before which none of the others was received.
    pub(super) fn take_unloaded(
        &mut self,
        sequence: Sequence,
        received: Option<SystemTime>,
    ) -> Option<UnloadedMessage> {
        let mut found = self.unrendered.remove(&sequence);
        if let Some(queue) = self.queues.values_mut().find(|queue| queue.unloaded.contains_key(&sequence)) {
            found = queue.unloaded.remove(&sequence);
            queue.unloaded_since = received.or(queue.unloaded_since);
        }
        self.unloaded -= usize::from(found.is_some());
        if self.unloaded == 0 {
            self.unloaded_bytes = 0;
        }
        found
    }

    /// The sequence of the unloaded event with this record.
    pub(super) fn unloaded_as(&self, name: u64) -> Option<Sequence> {
        let all = self.queues.values().flat_map(|queue| &queue.unloaded).chain(&self.unrendered);
        all.filter(|(_, message)| message.name == name).map(|(sequence, _)| *sequence).next()
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
        let is_refused =
            |entry: &RingEntry| matches!(entry.state, EntryState::Waiting) && !entry.stored && entry.nacks == 0;
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

    /// The messages, oldest first.
    pub(super) fn messages(&mut self) -> impl Iterator<Item = &mut Message> {
        let mut all: Vec<_> = self.queues.values_mut().flat_map(|queue| &mut queue.entries).collect();
        all.sort_unstable_by_key(|(sequence, _)| **sequence);
        all.into_iter().filter_map(|(_, entry)| entry.message.as_mut())
    }
}

/// The first of these, at most so many.
fn first_of(unloaded: &BTreeMap<Sequence, UnloadedMessage>, most: usize) -> Vec<(Sequence, u64)> {
    unloaded.iter().take(most).map(|(sequence, message)| (*sequence, message.name)).collect()
}
