//! The ordered ring of unsettled messages, oldest first: those to be sent next, and those that wait for a verdict.
//!
//! Pure bookkeeping; [`super::publish`] decides when to send and what follows from a verdict.
//!
//! Length: half of it is its tests.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::brokers::{Position, Sequence};
use crate::delivery::order::Undecided;
use crate::event::{Event, Message};

#[derive(Debug)]
enum EntryState {
    /// To be sent: new, or sent before without an outcome.
    Waiting,
    /// Handed to the session at this time.
    Sent(Instant),
    /// Settled; kept as a gap until everything older is settled, too.
    Settled,
}

#[derive(Debug)]
struct RingEntry {
    state: EntryState,
    message: Option<Message>,
    address: Arc<str>,
    key: Arc<str>,
    pair: u16,
    attempts: u32,
    /// The broker refused it for now: a younger one may have overtaken it.
    deferred: bool,
    /// The number of times it was nacked.
    nacks: u32,
    /// The broker has it, or may have it: its session was lost before the verdict arrived.
    stored: bool,
    /// The place at which the broker reports it as stored.
    place: Option<u64>,
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

/// The ring.
#[derive(Debug, Default)]
pub(super) struct Ring {
    slots: VecDeque<RingEntry>,
    /// The sequence of the first slot.
    first: Sequence,
    /// No message before this slot waits to be sent.
    cursor: usize,
    handed: usize,
    settled: usize,
    undecided: Undecided,
}

impl Ring {
    /// The number of slots of the ring, gaps included.
    pub(super) fn span(&self) -> usize {
        self.slots.len()
    }

    /// The number of messages that wait for a verdict.
    pub(super) fn handed(&self) -> usize {
        self.handed
    }

    /// The number of messages that are not settled.
    pub(super) fn unsettled(&self) -> usize {
        self.slots.len() - self.settled
    }

    /// The sequence of the next new message: all current ones are below it.
    pub(super) fn end(&self) -> Sequence {
        self.first + self.slots.len() as Sequence
    }

    /// The sequence of the oldest slot.
    pub(super) fn begin(&self) -> Sequence {
        self.first
    }

    /// The receipt of the oldest unsettled message.
    pub(super) fn oldest(&self) -> Option<SystemTime> {
        let message = self.slots.iter().find_map(|slot| slot.message.as_ref())?;
        Some(message.event.origin.received)
    }

    /// Appends a new message.
    pub(super) fn push(&mut self, message: Message, pair: u16) {
        self.slots.push_back(RingEntry {
            state: EntryState::Waiting,
            address: message.address.clone(),
            key: message.key.clone(),
            message: Some(message),
            pair,
            attempts: 0,
            deferred: false,
            nacks: 0,
            stored: false,
            place: None,
        });
    }

    /// The oldest message to be sent, and the number of times it was sent before.
    pub(super) fn next(&mut self) -> Option<(Sequence, &Message, u32)> {
        while let Some(slot) = self.slots.get(self.cursor) {
            if matches!(slot.state, EntryState::Waiting) {
                break;
            }
            self.cursor += 1;
        }
        let slot = self.slots.get(self.cursor)?;
        let message = slot.message.as_ref()?;
        Some((self.first + self.cursor as Sequence, message, slot.attempts))
    }

    fn slot(&mut self, sequence: Sequence) -> Option<&mut RingEntry> {
        let at = usize::try_from(sequence.checked_sub(self.first)?).ok()?;
        self.slots.get_mut(at)
    }

    /// Notes that the session has the message.
    pub(super) fn hand(&mut self, sequence: Sequence, now: Instant) {
        if let Some(slot) = self.slot(sequence) {
            slot.state = EntryState::Sent(now);
            slot.attempts += 1;
            self.handed += 1;
        }
    }

    /// Marks a message to be sent again, because the broker refused it for now.
    pub(super) fn defer(&mut self, sequence: Sequence) {
        let Some(slot) = self.slot(sequence) else { return };
        if matches!(slot.state, EntryState::Sent(_)) {
            slot.state = EntryState::Waiting;
            slot.deferred = true;
            self.handed -= 1;
            let at = usize::try_from(sequence - self.first).unwrap_or(0);
            self.cursor = self.cursor.min(at);
        }
    }

    /// Marks a message to be sent again, because it was nacked; returns the number of its nacks so far.
    pub(super) fn nack(&mut self, sequence: Sequence) -> u32 {
        self.defer(sequence);
        let Some(slot) = self.slot(sequence) else { return 0 };
        slot.nacks = slot.nacks.saturating_add(1);
        slot.nacks
    }

    /// Removes a message because it is stored or refused; none if it is settled already.
    pub(super) fn take(&mut self, sequence: Sequence, stored: bool) -> Option<Removed> {
        let slot = self.slot(sequence)?;
        let handed = match slot.state {
            EntryState::Waiting => None,
            EntryState::Sent(since) => Some(since),
            EntryState::Settled => return None,
        };
        let message = slot.message.take()?;
        slot.state = EntryState::Settled;
        // Refused now, it may have been stored by a lost session.
        slot.stored |= stored;
        let (pair, attempts, deferred) = (slot.pair, slot.attempts, slot.deferred && slot.stored);
        if handed.is_some() {
            self.handed -= 1;
        }
        self.settled += 1;
        let overtaken = deferred && self.was_overtaken(sequence, &message);
        self.drop_gaps();
        Some(Removed { message, pair, attempts, handed, overtaken, overtook: 0 })
    }

    /// Removes a message that is stored at a known place; none if it is settled already.
    pub(super) fn take_at(&mut self, sequence: Sequence, position: Position) -> Option<Removed> {
        let place = position.number;
        let slot = self.slot(sequence)?;
        slot.place = Some(place);
        let (address, key) = (slot.address.clone(), slot.key.clone());
        // A message sent once, in order, is at its right place.
        let overtaken = slot.attempts > 1 && self.is_behind_younger(sequence, place);
        let overtook = if position.repeat { self.undecided.decide(place, &address, &key) } else { 0 };
        let last = if overtaken { None } else { self.last_perhaps_stored(sequence) };
        let removed = self.take(sequence, true)?;
        if let Some(until) = last {
            self.undecided.remember(place, &address, &key, until);
        }
        self.undecided.forget_below(self.first);
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

    fn is_behind_younger(&self, sequence: Sequence, place: u64) -> bool {
        self.younger(sequence).any(|(_, slot)| slot.place.is_some_and(|other| other < place))
    }

    /// The youngest unsettled message of the same key that an earlier attempt may have stored.
    fn last_perhaps_stored(&self, sequence: Sequence) -> Option<Sequence> {
        let is_perhaps_stored =
            |slot: &RingEntry| !matches!(slot.state, EntryState::Settled) && (slot.stored || slot.deferred);
        self.younger(sequence).rfind(|(_, slot)| is_perhaps_stored(slot)).map(|(sequence, _)| sequence)
    }

    fn was_overtaken(&self, sequence: Sequence, message: &Message) -> bool {
        let at = usize::try_from(sequence - self.first).unwrap_or(0);
        self.slots
            .iter()
            .skip(at + 1)
            .any(|slot| slot.stored && slot.key == message.key && slot.address == message.address)
    }

    fn drop_gaps(&mut self) {
        while self.slots.front().is_some_and(|slot| matches!(slot.state, EntryState::Settled)) {
            self.slots.pop_front();
            self.first += 1;
            self.settled -= 1;
            self.cursor = self.cursor.saturating_sub(1);
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
        self.handed = 0;
        self.cursor = 0;
    }

    /// The sequences of messages to be sent that their senders have withdrawn.
    pub(super) fn withdrawn(&self) -> Vec<Sequence> {
        let is_withdrawn = |slot: &RingEntry| {
            let waits = slot.message.as_ref().and_then(|message| message.event.waiter.as_ref());
            matches!(slot.state, EntryState::Waiting) && waits.is_some_and(|sequence| sequence.is_withdrawn())
        };
        let slots = (self.first..).zip(&self.slots);
        slots.filter(|(_, slot)| is_withdrawn(slot)).map(|(sequence, _)| sequence).collect()
    }

    /// The sequences that wait for a verdict.
    pub(super) fn handed_sequences(&self) -> impl Iterator<Item = Sequence> + '_ {
        let first = self.first;
        let handed = |slot: &RingEntry| matches!(slot.state, EntryState::Sent(_));
        self.slots
            .iter()
            .enumerate()
            .filter(move |(_, slot)| handed(slot))
            .map(move |(at, _)| first + at as Sequence)
    }

    /// The events that are not settled, oldest first.
    pub(super) fn events(&mut self) -> impl Iterator<Item = &mut Event> {
        self.slots.iter_mut().filter_map(|slot| slot.message.as_mut()).map(|message| &mut *message.event)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::event::{Event, Fields, Origin};

    fn message(key: &str) -> Message {
        let origin = Origin {
            source: "a".into(),
            signature: None,
            verified: false,
            traceparent: None,
            received: SystemTime::UNIX_EPOCH,
        };
        let event = Event::new(origin, Box::default(), &Fields::default(), &[0; 32]);
        Message { event: Box::new(event), address: "topic".into(), key: key.into() }
    }

    fn ring(count: usize) -> Ring {
        let mut ring = Ring::default();
        for _ in 0..count {
            ring.push(message("k"), 0);
        }
        ring
    }

    fn hand_all(ring: &mut Ring) -> Vec<Sequence> {
        let mut order = Vec::new();
        while let Some((sequence, _, _)) = ring.next() {
            ring.hand(sequence, Instant::now());
            order.push(sequence);
        }
        order
    }

    #[test]
    fn sends_again_in_order_after_a_lost_session_and_nothing_that_was_stored() {
        let mut ring = ring(5);
        assert_eq!(hand_all(&mut ring), [0, 1, 2, 3, 4]);
        ring.take(1, true).unwrap();
        ring.take(3, true).unwrap();
        ring.rewind();
        assert_eq!(ring.handed(), 0);
        assert_eq!(hand_all(&mut ring), [0, 2, 4]);
        assert_eq!((ring.span(), ring.unsettled()), (5, 3));
    }

    #[test]
    fn sends_the_deferred_first_and_sees_that_a_younger_one_overtook_it() {
        let mut ring = ring(3);
        hand_all(&mut ring);
        ring.defer(0);
        assert!(!ring.take(1, true).unwrap().overtaken);
        ring.defer(2);
        assert_eq!(ring.next().unwrap().0, 0);
        hand_all(&mut ring);
        assert!(ring.take(0, true).unwrap().overtaken);
        assert!(!ring.take(2, true).unwrap().overtaken);
        assert_eq!((ring.span(), ring.begin()), (0, 3));
    }

    fn at(number: u64) -> Position {
        Position { number, repeat: false }
    }

    fn again(number: u64) -> Position {
        Position { number, repeat: true }
    }

    #[test]
    fn knows_by_their_places_which_one_overtook() {
        let mut ring = ring(4);
        hand_all(&mut ring);
        assert!(!ring.take_at(2, at(7)).unwrap().overtaken, "sent once, in order");
        for sequence in [0, 1, 3] {
            ring.defer(sequence);
        }
        hand_all(&mut ring);
        assert!(
            !ring.take_at(0, again(5)).unwrap().overtaken,
            "stored by the first attempt, only its answer was lost"
        );
        assert!(ring.take_at(1, at(8)).unwrap().overtaken);
        let last = ring.take_at(3, at(9)).unwrap();
        assert_eq!((last.overtaken, last.overtook, ring.span()), (false, 0, 0));
    }

    #[test]
    fn learns_later_that_one_was_overtaken_by_another_whose_answer_was_lost() {
        let mut ring = ring(3);
        hand_all(&mut ring);
        ring.rewind();
        hand_all(&mut ring);
        let first = ring.take_at(0, at(9)).unwrap();
        assert_eq!((first.overtaken, first.overtook), (false, 0), "not known yet");
        assert_eq!(ring.take_at(1, again(5)).unwrap().overtook, 1, "it was before the first");
        assert_eq!(ring.take_at(2, again(6)).unwrap().overtook, 0, "counted once");
        ring.push(message("k"), 0);
        hand_all(&mut ring);
        assert_eq!(ring.take_at(3, again(1)).unwrap().overtook, 0, "forgotten with those it was about");
    }

    #[test]
    fn a_message_of_another_key_overtakes_nothing() {
        let mut ring = Ring::default();
        ring.push(message("a"), 0);
        ring.push(message("b"), 0);
        hand_all(&mut ring);
        ring.defer(0);
        ring.take(1, true).unwrap();
        hand_all(&mut ring);
        assert!(!ring.take(0, true).unwrap().overtaken);
    }

    #[test]
    fn knows_what_its_sender_took_back_before_it_was_sent() {
        let mut ring = Ring::default();
        let sequences: Vec<_> = (0..3).map(|_| crate::event::Waiter::new(None)).collect();
        for sequence in &sequences {
            let mut message = message("k");
            message.event.waiter = Some(sequence.clone());
            ring.push(message, 0);
        }
        assert!(sequences[0].send() && !sequences[0].withdraw());
        ring.hand(0, Instant::now());
        assert!(sequences[2].withdraw());
        assert_eq!(ring.withdrawn(), [2]);
        ring.take(2, false).unwrap();
        assert_eq!((ring.withdrawn(), ring.unsettled()), (vec![], 2));
    }

    #[test]
    fn knows_no_sequence_twice() {
        let mut ring = ring(2);
        hand_all(&mut ring);
        assert!(ring.take(0, true).is_some());
        assert!(ring.take(0, true).is_none());
        assert!(ring.take(7, true).is_none());
        ring.defer(0);
        assert_eq!(ring.handed(), 1);
    }

    proptest! {
        /// For any mix of verdicts and lost sessions: handed-over counts agree, a window is sent oldest first, nothing
        /// stored is sent again, and in the end everything is settled.
        #[test]
        fn settles_everything_in_the_end(steps in proptest::collection::vec((0u8..5, 0usize..20), 1..200)) {
            let mut ring = Ring::default();
            let mut outstanding: Vec<Sequence> = Vec::new();
            let mut stored = HashSet::new();
            let mut pushed = 0u64;
            for (step, at) in steps {
                match step {
                    0 => { ring.push(message("k"), 0); pushed += 1; }
                    1 => {
                        let order = hand_all(&mut ring);
                        prop_assert!(order.windows(2).all(|pair| pair[0] < pair[1]));
                        prop_assert!(order.iter().all(|sequence| !stored.contains(sequence)));
                        outstanding.extend(order);
                    }
                    2 if !outstanding.is_empty() => {
                        let sequence = outstanding.swap_remove(at % outstanding.len());
                        prop_assert!(ring.take(sequence, true).is_some());
                        stored.insert(sequence);
                    }
                    3 if !outstanding.is_empty() => ring.defer(outstanding.swap_remove(at % outstanding.len())),
                    4 => { ring.rewind(); outstanding.clear(); }
                    _ => {}
                }
                prop_assert_eq!(ring.handed(), outstanding.len());
                prop_assert_eq!(ring.unsettled() as u64, pushed - stored.len() as u64);
            }
            ring.rewind();
            for sequence in hand_all(&mut ring) {
                prop_assert!(ring.take(sequence, true).is_some());
            }
            prop_assert_eq!(ring.span(), 0);
        }
    }
}
