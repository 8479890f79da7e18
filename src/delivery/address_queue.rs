//! One address that does not answer as others do: its state, and the messages that wait for it in order.
//!
//! Length: the state of an address, and what each step of its queue makes of it, are only understood together.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::brokers::{Refusal, Refused, Sequence};
use crate::delivery::backoff::Backoff;
use crate::delivery::entry::{EntryState, RingEntry, UnloadedMessage};

/// The messages of an address that are kept in memory, if the journal keeps the others.
pub(super) const LOADED: usize = 256;

/// A try is answered within so long; Kafka's client looks for a topic that it does not know for half of it.
const ANSWER: Duration = Duration::from_secs(10);

/// The room for events that wait for their address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum WaitingRoom {
    Ample,
    /// The journal keeps all but the first of each address.
    Short,
    /// It keeps the first one, too, until its next try.
    UsedUp,
    /// No parked address is tried.
    Full,
}

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
    pub(super) evidence: Evidence,
    pub(super) next_try: tokio::time::Instant,
    pub(super) backoff: Backoff,
    /// The number of times that its oldest message was nacked.
    pub(super) nacks: u32,
    /// It waits for room among the dead letters, and is not tried before.
    pub(super) needs_room: bool,
}

/// The time for which refusals have followed one another. A longer pause, in which the broker was away or took nothing,
/// proves nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evidence {
    /// At the last refusal.
    lasted: Duration,
    last: tokio::time::Instant,
}

impl Evidence {
    /// Begins with a refusal.
    fn new(now: tokio::time::Instant) -> Self {
        Self { lasted: Duration::ZERO, last: now }
    }

    /// Notes another refusal, or a try that ended without being stored.
    fn again(self, now: tokio::time::Instant, longest: Duration) -> Self {
        Self { lasted: self.lasts(now, longest), last: now }
    }

    fn lasts(self, now: tokio::time::Instant, longest: Duration) -> Duration {
        self.lasted + now.duration_since(self.last).min(longest.saturating_add(ANSWER))
    }
}

impl Parked {
    /// The time for which it is known to be refused in this way.
    pub(super) fn lasts(&self, now: tokio::time::Instant) -> Duration {
        self.evidence.lasts(now, self.backoff.most())
    }

    pub(super) fn is_wrong(&self) -> bool {
        is_wrong(&self.refusal)
    }

    /// Takes the next step of the back-off.
    pub(super) fn step(&mut self, now: tokio::time::Instant) {
        self.next_try = now + self.backoff.after_nacks(self.nacks);
    }
}

fn is_wrong(refusal: &Refusal) -> bool {
    matches!(refusal.kind, Refused::AddressWrong(_))
}

/// A refusal as it concerns an address.
pub(super) struct AddressRefusal {
    pub(super) refusal: Refusal,
    /// Other queues of this address may have stored the message: it is tried less often.
    pub(super) is_nacked: bool,
    /// The message is refused for good, and dead letters have no room.
    pub(super) needs_room: bool,
    /// The waits of an address that is parked now.
    pub(super) backoff: Backoff,
    pub(super) now: tokio::time::Instant,
}

/// The messages that wait for one address.
#[derive(Debug)]
pub(super) struct WaitingMessages {
    pub(super) address: Address,
    pub(super) messages: usize,
    pub(super) since: Instant,
    pub(super) reason: Option<String>,
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
    /// Those of them that the session does not have.
    pub(super) waiting: BTreeSet<Sequence>,
    /// No message after this one may be at the broker from a session that was lost.
    pub(super) perhaps_stored: Option<Sequence>,
    /// After a refusal: so many messages it gets at once; doubled by each that is stored.
    pub(super) allowance: Option<usize>,
    /// It is among those remembered although nothing waits.
    pub(super) is_remembered: bool,
    /// The messages whose events the journal alone keeps, by the numbers of these, which rise as their sequences do.
    pub(super) unloaded: BTreeMap<u64, UnloadedMessage>,
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
        self.entries.keys().next().copied().into_iter().chain(self.first_unloaded()).min()
    }

    pub(super) fn first_unloaded(&self) -> Option<Sequence> {
        self.unloaded.values().next().map(|message| message.sequence)
    }

    /// The number of messages that the session has.
    pub(super) fn handed(&self) -> usize {
        self.entries.len() - self.waiting.len()
    }

    /// The number of those of them that count as in flight.
    pub(super) fn counted(&self) -> usize {
        if self.is_open() { self.handed() } else { 0 }
    }

    pub(super) fn insert(&mut self, sequence: Sequence, entry: RingEntry) {
        if entry.is_perhaps_stored() {
            self.perhaps_stored = self.perhaps_stored.max(Some(sequence));
        }
        if matches!(entry.state, EntryState::Waiting) {
            self.waiting.insert(sequence);
        }
        self.entries.insert(sequence, entry);
    }

    /// Leaves the event of this number to the journal.
    pub(super) fn unload(&mut self, number: u64, message: UnloadedMessage, received: SystemTime) {
        self.unloaded.insert(number, message);
        self.unloaded_since = Some(self.unloaded_since.map_or(received, |since| since.min(received)));
    }

    pub(super) fn remove(&mut self, sequence: Sequence) -> Option<RingEntry> {
        self.waiting.remove(&sequence);
        self.entries.remove(&sequence)
    }

    /// Notes that the session has the message.
    pub(super) fn hand(&mut self, sequence: Sequence, now: Instant) {
        self.waiting.remove(&sequence);
        if let Some(entry) = self.entries.get_mut(&sequence) {
            entry.state = EntryState::Sent(now);
            entry.attempts += 1;
        }
        self.state = match std::mem::take(&mut self.state) {
            AddressState::Parked(parked) => AddressState::Asking(sequence, Some(parked)),
            state => state,
        };
    }

    /// Puts a message back among those to be sent.
    pub(super) fn defer(&mut self, sequence: Sequence) {
        let is_sent = |entry: &&mut RingEntry| matches!(entry.state, EntryState::Sent(_));
        if let Some(entry) = self.entries.get_mut(&sequence).filter(is_sent) {
            entry.defer();
            if entry.is_perhaps_stored() {
                self.perhaps_stored = self.perhaps_stored.max(Some(sequence));
            }
            self.waiting.insert(sequence);
        }
    }

    /// Parks the address because this message was refused. Of messages that were sent together only the first takes a step
    /// of the back-off.
    pub(super) fn park(&mut self, sequence: Sequence, refused: AddressRefusal) {
        let AddressRefusal { refusal, is_nacked, needs_room, backoff, now } = refused;
        let (before, is_step) = match std::mem::take(&mut self.state) {
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
            // The clock belongs to the address: another word for the same fault does not set it back.
            Some(before) if before.is_wrong() == is_wrong(&refusal) => {
                let evidence = before.evidence.again(now, before.backoff.most());
                Parked { refusal, evidence, needs_room, ..before }
            }
            Some(before) => Parked { refusal, since: now, evidence: Evidence::new(now), needs_room, ..before },
            None => {
                let evidence = Evidence::new(now);
                Parked { refusal, since: now, evidence, next_try: now, backoff, nacks: 0, needs_room }
            }
        };
        let nacks = self.entries.get_mut(&sequence).map_or(0, |entry| {
            entry.nacks += u32::from(is_nacked);
            entry.nacks
        });
        if is_step {
            parked.nacks = nacks;
            parked.step(now);
        }
        self.state = AddressState::Parked(parked);
        self.allowance = Some(1);
    }

    /// Decides the state after the message that it waited for has left without a refusal.
    pub(super) fn decide(&mut self, sequence: Sequence, is_stored: bool) {
        let now = tokio::time::Instant::now();
        self.state = match std::mem::take(&mut self.state) {
            AddressState::Asking(asked, None) if asked == sequence => AddressState::Open,
            AddressState::Asking(asked, Some(_)) if asked == sequence && is_stored => AddressState::Open,
            AddressState::Asking(asked, Some(mut before)) if asked == sequence => {
                before.evidence = before.evidence.again(now, before.backoff.most());
                before.step(now);
                AddressState::Parked(before)
            }
            // It takes something: the clock starts anew, and the oldest is tried at once.
            AddressState::Parked(before) if is_stored => {
                let (evidence, next_try) = (Evidence::new(now), before.next_try.min(now));
                AddressState::Parked(Parked { since: now, evidence, next_try, ..before })
            }
            state => state,
        };
    }

    /// Takes a message out because it is stored, refused or withdrawn.
    pub(super) fn take(&mut self, sequence: Sequence, stored: bool) -> Option<RingEntry> {
        let mut entry = self.remove(sequence)?;
        entry.stored |= stored;
        let is_same_key = |other: &RingEntry| other.key == entry.key;
        if stored {
            self.allowance = self.allowance.map(|most| most.saturating_mul(2));
            for (_, older) in self.entries.range_mut(..sequence).filter(|(_, older)| is_same_key(older)) {
                older.overtake(entry.place);
            }
        }
        entry.overtaken |= self.last_perhaps_stored(sequence, &entry.key).is_some();
        self.decide(sequence, stored);
        Some(entry)
    }

    /// The youngest message of this key, younger than this sequence, that an earlier attempt may have stored.
    pub(super) fn last_perhaps_stored(&self, sequence: Sequence, key: &str) -> Option<Sequence> {
        // None beyond this may be at the broker: a backlog of many thousands is not searched for each of them.
        let last = self.perhaps_stored.filter(|last| *last > sequence)?;
        let mut younger = self.entries.range(sequence + 1..=last);
        younger.rfind(|(_, other)| other.is_perhaps_stored() && *other.key == *key).map(|(sequence, _)| *sequence)
    }

    /// The session is lost: everything is to be sent again.
    pub(super) fn rewind(&mut self) {
        self.waiting = self.entries.keys().copied().collect();
        let is_sent = |entry: &RingEntry| matches!(entry.state, EntryState::Sent(_));
        for (sequence, entry) in self.entries.iter_mut().filter(|(_, entry)| is_sent(entry)) {
            (entry.state, entry.stored) = (EntryState::Waiting, true);
            self.perhaps_stored = self.perhaps_stored.max(Some(*sequence));
        }
        self.state = match std::mem::take(&mut self.state) {
            AddressState::Asking(_, Some(parked)) => AddressState::Parked(parked),
            AddressState::Asking(_, None) => AddressState::Open,
            state => state,
        };
    }

    /// The messages that may be sent, oldest first: those after an unloaded one wait for it.
    pub(super) fn sendable(&self) -> impl Iterator<Item = Sequence> {
        let end = self.first_unloaded();
        self.waiting.iter().copied().take_while(move |sequence| end.is_none_or(|end| *sequence < end))
    }

    /// Whether a new message is left to the journal: as many as are needed are loaded, all of them older.
    pub(super) fn leaves_to_journal(&self, sequence: Sequence, room: WaitingRoom) -> bool {
        let follows = self.first_unloaded().is_some_and(|first| first < sequence);
        follows || self.waiting.len() >= LOADED || (room >= WaitingRoom::Short && !self.waiting.is_empty())
    }

    /// Whether nothing may be sent before a time that has not come.
    fn is_early(&self) -> bool {
        matches!(&self.state, AddressState::Parked(parked) if parked.next_try > tokio::time::Instant::now())
    }

    /// Whether it has been wrong for `refuse_after`.
    pub(super) fn is_over(&self, refuse_after: Duration) -> bool {
        let now = tokio::time::Instant::now();
        matches!(&self.state, AddressState::Parked(parked) if parked.is_wrong() && parked.lasts(now) >= refuse_after)
    }

    /// The messages that the journal alone is to keep: the youngest of those that are more than needed. While others are
    /// with the session, their order is not known.
    pub(super) fn excess(&self, room: WaitingRoom) -> Vec<Sequence> {
        let most = match room {
            WaitingRoom::Ample => LOADED,
            WaitingRoom::UsedUp | WaitingRoom::Full if self.is_early() => 0,
            _ => 1,
        };
        if self.waiting.len() <= most || self.handed() > 0 {
            return Vec::new();
        }
        self.waiting.iter().skip(most).copied().collect()
    }

    /// Whether unloaded messages are to be read back. Where room is short, only once what was sent is answered: it stays in
    /// memory if there is no answer.
    pub(super) fn wants_loading(&self, room: WaitingRoom, refuse_after: Option<Duration>) -> bool {
        let has_none = || self.sendable().next().is_none();
        let is_over = || refuse_after.is_some_and(|refuse_after| self.is_over(refuse_after));
        let wants = match room {
            WaitingRoom::Ample => self.waiting.len() < LOADED / 2 || has_none(),
            WaitingRoom::Short => has_none() && self.handed() == 0,
            WaitingRoom::UsedUp => has_none() && self.handed() == 0 && (!self.is_early() || is_over()),
            WaitingRoom::Full => has_none() && self.handed() == 0 && self.is_open(),
        };
        wants && !self.unloaded.is_empty()
    }

    /// Whether it has got what it may have after a refusal. A message that was nacked is sent alone.
    fn is_used_up(&self) -> bool {
        let next = self.waiting.first().and_then(|sequence| self.entries.get(sequence));
        let is_nacked = next.is_some_and(|entry| entry.nacks > 0);
        self.allowance.is_some_and(|most| self.handed() >= most) || (is_nacked && self.handed() > 0)
    }

    /// The time at which the next message may be sent.
    pub(super) fn turn(&self) -> Turn {
        match &self.state {
            _ if self.sendable().next().is_none() => Turn::None,
            AddressState::Open if self.is_used_up() => Turn::None,
            AddressState::Open => Turn::Now,
            AddressState::Parked(parked) if self.handed() == 0 && !parked.needs_room => Turn::At(parked.next_try),
            AddressState::Asking(..) | AddressState::Parked(_) => Turn::None,
        }
    }
}
