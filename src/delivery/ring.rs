//! The ordered ring of unsettled messages, oldest first: which may be sent next, which wait for a verdict.
//!
//! Pure bookkeeping; [`super::publish`] decides when to send and what a verdict leads to.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::brokers::Ticket;
use crate::message::{Event, Message};

#[derive(Debug)]
enum State {
    /// To be sent: new, or sent before without an outcome.
    Waiting,
    /// With the session since then.
    Handed(Instant),
    /// Gone from here, kept as a gap until everything older is gone too.
    Settled,
}

#[derive(Debug)]
struct Slot {
    state: State,
    message: Option<Message>,
    address: Arc<str>,
    key: Arc<str>,
    pair: u16,
    attempts: u32,
    /// The broker refused it for now: a younger one may have overtaken it.
    deferred: bool,
    /// The broker has it, or may have it: its session was lost before the verdict came.
    stored: bool,
}

/// A message that left the ring.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) message: Message,
    pub(super) pair: u16,
    pub(super) attempts: u32,
    /// When the session got it, if it did.
    pub(super) handed: Option<Instant>,
    /// It was stored after a younger one of its key, or may have been.
    pub(super) overtaken: bool,
}

/// The ring.
#[derive(Debug, Default)]
pub(super) struct Ring {
    slots: VecDeque<Slot>,
    /// The ticket of the first slot.
    first: Ticket,
    /// Nothing before this slot is waiting.
    cursor: usize,
    handed: usize,
    settled: usize,
}

impl Ring {
    /// How many slots the ring spans, gaps included.
    pub(super) fn span(&self) -> usize {
        self.slots.len()
    }

    /// How many messages wait for a verdict.
    pub(super) fn handed(&self) -> usize {
        self.handed
    }

    /// How many messages are not settled.
    pub(super) fn unsettled(&self) -> usize {
        self.slots.len() - self.settled
    }

    /// The ticket that the next new message will get: all that are here now are below it.
    pub(super) fn end(&self) -> Ticket {
        self.first + self.slots.len() as Ticket
    }

    /// The ticket of the oldest slot.
    pub(super) fn begin(&self) -> Ticket {
        self.first
    }

    /// Receipt of the oldest unsettled message.
    pub(super) fn oldest(&self) -> Option<SystemTime> {
        let message = self.slots.iter().find_map(|slot| slot.message.as_ref())?;
        Some(message.event.origin.received)
    }

    /// Appends a new message.
    pub(super) fn push(&mut self, message: Message, pair: u16) {
        self.slots.push_back(Slot {
            state: State::Waiting,
            address: message.address.clone(),
            key: message.key.clone(),
            message: Some(message),
            pair,
            attempts: 0,
            deferred: false,
            stored: false,
        });
    }

    /// The oldest message that is to be sent, and how often it was sent before.
    pub(super) fn next(&mut self) -> Option<(Ticket, &Message, u32)> {
        while let Some(slot) = self.slots.get(self.cursor) {
            if matches!(slot.state, State::Waiting) {
                break;
            }
            self.cursor += 1;
        }
        let slot = self.slots.get(self.cursor)?;
        let message = slot.message.as_ref()?;
        Some((self.first + self.cursor as Ticket, message, slot.attempts))
    }

    fn slot(&mut self, ticket: Ticket) -> Option<&mut Slot> {
        let at = usize::try_from(ticket.checked_sub(self.first)?).ok()?;
        self.slots.get_mut(at)
    }

    /// Notes that the session has the message.
    pub(super) fn hand(&mut self, ticket: Ticket, now: Instant) {
        if let Some(slot) = self.slot(ticket) {
            slot.state = State::Handed(now);
            slot.attempts += 1;
            self.handed += 1;
        }
    }

    /// Puts a message back among those to be sent, because the broker refused it for now.
    pub(super) fn defer(&mut self, ticket: Ticket) {
        let Some(slot) = self.slot(ticket) else { return };
        if matches!(slot.state, State::Handed(_)) {
            slot.state = State::Waiting;
            slot.deferred = true;
            self.handed -= 1;
            let at = usize::try_from(ticket - self.first).unwrap_or(0);
            self.cursor = self.cursor.min(at);
        }
    }

    /// Takes a message out because it is stored or refused; none where it is settled already.
    pub(super) fn take(&mut self, ticket: Ticket, stored: bool) -> Option<Taken> {
        let slot = self.slot(ticket)?;
        let handed = match slot.state {
            State::Waiting => None,
            State::Handed(since) => Some(since),
            State::Settled => return None,
        };
        let message = slot.message.take()?;
        slot.state = State::Settled;
        // Refused now, it may have been stored by a session that was lost.
        slot.stored |= stored;
        let (pair, attempts, deferred) = (slot.pair, slot.attempts, slot.deferred && slot.stored);
        if handed.is_some() {
            self.handed -= 1;
        }
        self.settled += 1;
        let overtaken = deferred && self.was_overtaken(ticket, &message);
        self.drop_gaps();
        Some(Taken { message, pair, attempts, handed, overtaken })
    }

    fn was_overtaken(&self, ticket: Ticket, message: &Message) -> bool {
        let at = usize::try_from(ticket - self.first).unwrap_or(0);
        self.slots
            .iter()
            .skip(at + 1)
            .any(|slot| slot.stored && slot.key == message.key && slot.address == message.address)
    }

    fn drop_gaps(&mut self) {
        while self.slots.front().is_some_and(|slot| matches!(slot.state, State::Settled)) {
            self.slots.pop_front();
            self.first += 1;
            self.settled -= 1;
            self.cursor = self.cursor.saturating_sub(1);
        }
    }

    /// The session is gone: everything unsettled is to be sent again, oldest first.
    pub(super) fn rewind(&mut self) {
        for slot in &mut self.slots {
            if matches!(slot.state, State::Handed(_)) {
                slot.state = State::Waiting;
                slot.stored = true;
            }
        }
        self.handed = 0;
        self.cursor = 0;
    }

    /// The tickets of messages that are to be sent, and that nobody waits for any more.
    pub(super) fn withdrawn(&self) -> Vec<Ticket> {
        let is_withdrawn = |slot: &Slot| {
            let waits = slot.message.as_ref().and_then(|message| message.event.ticket.as_ref());
            matches!(slot.state, State::Waiting) && waits.is_some_and(|ticket| ticket.is_withdrawn())
        };
        let slots = (self.first..).zip(&self.slots);
        slots.filter(|(_, slot)| is_withdrawn(slot)).map(|(ticket, _)| ticket).collect()
    }

    /// The tickets that wait for a verdict.
    pub(super) fn handed_tickets(&self) -> impl Iterator<Item = Ticket> + '_ {
        let first = self.first;
        let handed = |slot: &Slot| matches!(slot.state, State::Handed(_));
        self.slots.iter().enumerate().filter(move |(_, slot)| handed(slot)).map(move |(at, _)| first + at as Ticket)
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
    use crate::message::{Event, Fields, Origin};

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

    fn hand_all(ring: &mut Ring) -> Vec<Ticket> {
        let mut order = Vec::new();
        while let Some((ticket, _, _)) = ring.next() {
            ring.hand(ticket, Instant::now());
            order.push(ticket);
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
        let tickets: Vec<_> = (0..3).map(|_| crate::ticket::Ticket::new(None)).collect();
        for ticket in &tickets {
            let mut message = message("k");
            message.event.ticket = Some(ticket.clone());
            ring.push(message, 0);
        }
        assert!(tickets[0].send() && !tickets[0].withdraw());
        ring.hand(0, Instant::now());
        assert!(tickets[2].withdraw());
        assert_eq!(ring.withdrawn(), [2]);
        ring.take(2, false).unwrap();
        assert_eq!((ring.withdrawn(), ring.unsettled()), (vec![], 2));
    }

    #[test]
    fn knows_no_ticket_twice() {
        let mut ring = ring(2);
        hand_all(&mut ring);
        assert!(ring.take(0, true).is_some());
        assert!(ring.take(0, true).is_none());
        assert!(ring.take(7, true).is_none());
        ring.defer(0);
        assert_eq!(ring.handed(), 1);
    }

    proptest! {
        /// Against any mix of verdicts and lost sessions: handed-over counts agree, a window is sent oldest first,
        /// nothing stored is sent again, and in the end everything is settled.
        #[test]
        fn settles_everything_in_the_end(steps in proptest::collection::vec((0u8..5, 0usize..20), 1..200)) {
            let mut ring = Ring::default();
            let mut outstanding: Vec<Ticket> = Vec::new();
            let mut stored = HashSet::new();
            let mut pushed = 0u64;
            for (step, at) in steps {
                match step {
                    0 => { ring.push(message("k"), 0); pushed += 1; }
                    1 => {
                        let order = hand_all(&mut ring);
                        prop_assert!(order.windows(2).all(|pair| pair[0] < pair[1]));
                        prop_assert!(order.iter().all(|ticket| !stored.contains(ticket)));
                        outstanding.extend(order);
                    }
                    2 if !outstanding.is_empty() => {
                        let ticket = outstanding.swap_remove(at % outstanding.len());
                        prop_assert!(ring.take(ticket, true).is_some());
                        stored.insert(ticket);
                    }
                    3 if !outstanding.is_empty() => ring.defer(outstanding.swap_remove(at % outstanding.len())),
                    4 => { ring.rewind(); outstanding.clear(); }
                    _ => {}
                }
                prop_assert_eq!(ring.handed(), outstanding.len());
                prop_assert_eq!(ring.unsettled() as u64, pushed - stored.len() as u64);
            }
            ring.rewind();
            for ticket in hand_all(&mut ring) {
                prop_assert!(ring.take(ticket, true).is_some());
            }
            prop_assert_eq!(ring.span(), 0);
        }
    }
}
