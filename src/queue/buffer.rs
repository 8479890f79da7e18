//! The bounded buffer in memory, and with it the books: one lock for both, so that the accounting is exact.
//!
//! Length: more than a third are its tests.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::Notify;

use crate::accounting::{Decision, Ledger, Limits, Loss, PairBook, Reason, RefusalReason, Snapshot};
use crate::message::{Event, Kept};
use crate::settings::Section;
use crate::ticket::{self, Outcome};

/// Full until it is below this share again, in percent: a probe must not flicker.
const READY_BELOW: usize = 90;

/// Reads `[buffer]`.
pub fn limits(section: &mut Section<'_>) -> Limits {
    Limits { events: section.count("max_events", 1), bytes: section.size("max_bytes") }
}

/// Why an event was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// One of the limits is reached.
    Full,
    /// The bridge is stopping.
    Draining,
}

/// What became of a batch of events: counted and released under one lock.
#[derive(Debug, Default)]
pub struct Settlement {
    /// The pair number of each confirmed event.
    pub published: Vec<u16>,
    /// Dead letters written, by their reason.
    pub dead_lettered: Vec<RefusalReason>,
    /// Lost, by their reason.
    pub lost: Vec<Loss>,
    /// What all of these cost of the byte limit.
    pub bytes: usize,
}

impl Settlement {
    fn events(&self) -> usize {
        self.published.len() + self.dead_lettered.len() + self.lost.len()
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events() == 0
    }

    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        self.published.clear();
        self.dead_lettered.clear();
        self.lost.clear();
        self.bytes = 0;
    }
}

#[derive(Debug)]
struct State {
    waiting: VecDeque<Box<Event>>,
    /// Events made of letters, which come late anyway: they have a share beside `waiting`.
    replays: VecDeque<Box<Event>>,
    /// What `take` owes the replays, in quarters of an event.
    owed: usize,
    /// Delivery is over.
    closed: bool,
    /// Events that delivery took and has not settled.
    taken: usize,
    /// Cost of everything held.
    bytes: usize,
    /// Receipt of the oldest event that delivery holds.
    oldest_taken: Option<SystemTime>,
    full: bool,
    draining: bool,
    ledger: Ledger,
}

impl State {
    fn held(&self) -> usize {
        self.waiting.len() + self.replays.len() + self.taken
    }
}

/// The buffer. Ingress threads enqueue, the one delivery task takes and settles.
#[derive(Debug)]
pub struct Buffer {
    state: Mutex<State>,
    ready: Notify,
    limits: Limits,
}

impl Buffer {
    /// An empty buffer with these limits and books.
    #[must_use]
    pub fn new(limits: Limits, ledger: Ledger) -> Self {
        let state = State {
            waiting: VecDeque::new(),
            replays: VecDeque::new(),
            owed: 0,
            closed: false,
            taken: 0,
            bytes: 0,
            oldest_taken: None,
            full: false,
            draining: false,
            ledger,
        };
        Self { state: Mutex::new(state), ready: Notify::new(), limits }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock panics half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an event, or refuses it at once; counts the decision in the same breath.
    ///
    /// # Errors
    /// A limit is reached, or the bridge is stopping.
    pub fn enqueue(&self, source: usize, secret: Option<usize>, event: Box<Event>) -> Result<(), Refused> {
        let cost = event.cost();
        let mut state = self.lock();
        let refused = if state.draining {
            Some((Refused::Draining, Reason::Draining))
        } else if state.held() >= self.limits.events || state.bytes + cost > self.limits.bytes {
            // One body too large for what is left does not make the buffer full for smaller ones.
            state.full |= !self.is_below_the_mark(&state);
            Some((Refused::Full, Reason::BufferFull))
        } else {
            None
        };
        if let Some((refused, reason)) = refused {
            state.ledger.decide(source, secret, Decision::Rejected(reason));
            return Err(refused);
        }
        state.bytes += cost;
        state.waiting.push_back(event);
        state.ledger.decide(source, secret, Decision::Accepted);
        state.full |= state.held() >= self.limits.events;
        drop(state);
        self.ready.notify_one();
        Ok(())
    }

    /// Takes events that were made of letters; false once delivery is over. They are few at a time: no limit refuses
    /// them.
    #[must_use]
    pub fn replay(&self, events: Vec<Box<Event>>) -> bool {
        let mut state = self.lock();
        if state.closed {
            return false;
        }
        state.ledger.replayed += events.len() as u64;
        state.bytes += events.iter().map(|event| event.cost()).sum::<usize>();
        state.replays.extend(events);
        drop(state);
        self.ready.notify_one();
        true
    }

    /// Notes any other decision about a request.
    pub fn decide(&self, source: usize, secret: Option<usize>, decision: Decision) {
        self.lock().ledger.decide(source, secret, decision);
    }

    /// Waits until an event may be waiting. Cancel-safe; one waiter.
    pub async fn ready(&self) {
        self.ready.notified().await;
    }

    /// Moves up to `most` events, oldest first, to the end of `into`; says how many.
    pub fn take(&self, most: usize, into: &mut VecDeque<Box<Event>>) -> usize {
        let mut state = self.lock();
        // A quarter of what is taken, counted over many batches: some are of one event.
        state.owed = if state.replays.is_empty() { 0 } else { state.owed + most };
        let share = (state.owed / 4).min(state.replays.len()).min(most);
        let first = state.waiting.len().min(most - share);
        let late = state.replays.len().min(most - first);
        state.owed = state.owed.saturating_sub(4 * late);
        let count = first + late;
        into.extend(state.waiting.drain(..first));
        into.extend(state.replays.drain(..late));
        state.taken += count;
        if count > 0 && state.oldest_taken.is_none() {
            state.oldest_taken = into.front().map(|event| event.origin.received);
        }
        if state.waiting.is_empty() && state.waiting.capacity() > 4096 {
            // After a backlog: the pointers of 100,000 events are a megabyte that idle memory need not hold.
            state.waiting.shrink_to(1024);
        }
        count
    }

    /// Counts and releases a batch; `oldest` is the receipt of the oldest event that delivery still holds.
    pub fn settle(&self, settlement: &Settlement, oldest: Option<SystemTime>) {
        let mut state = self.lock();
        state.ledger.publish(&settlement.published);
        for reason in &settlement.dead_lettered {
            state.ledger.dead_lettered[*reason as usize] += 1;
        }
        for loss in &settlement.lost {
            state.ledger.lost[*loss as usize] += 1;
        }
        state.taken -= settlement.events();
        state.bytes -= settlement.bytes;
        state.oldest_taken = oldest;
        if self.is_below_the_mark(&state) {
            state.full = false;
        }
    }

    fn is_below_the_mark(&self, state: &State) -> bool {
        let is_below =
            |held: usize, limit: usize| held < limit / 100 * READY_BELOW + limit % 100 * READY_BELOW / 100;
        is_below(state.held(), self.limits.events) && is_below(state.bytes, self.limits.bytes)
    }

    /// Adds a pair of event and target type to the books; its number.
    pub fn add_pair(&self, event: &str, target_type: &str) -> u16 {
        let mut state = self.lock();
        let number = state.ledger.pairs.len();
        let book = PairBook { event: event.to_owned(), target_type: target_type.to_owned(), published: 0 };
        state.ledger.pairs.push(book);
        u16::try_from(number).unwrap_or(u16::MAX)
    }

    /// From now on nothing is accepted.
    pub fn drain(&self) {
        self.lock().draining = true;
        self.ready.notify_one();
    }

    /// Counts everything that is still waiting as lost at exit, but for what is kept elsewhere: that stays held.
    pub fn lose_waiting(&self) {
        let mut state = self.lock();
        state.closed = true;
        let tickets = state.waiting.iter().chain(&state.replays).filter_map(|event| event.ticket.clone());
        let unsettled: Vec<_> = tickets.filter(|ticket| ticket.outcome().is_none()).collect();
        let (mut count, mut bytes) = (0, 0);
        state.waiting.retain(|event| {
            let is_lost = event.kept == Kept::Memory;
            if is_lost {
                count += 1;
                bytes += event.cost();
            }
            !is_lost
        });
        state.bytes -= bytes;
        state.ledger.lost[Loss::Exit as usize] += count;
        drop(state);
        ticket::end(unsettled.into_iter().map(|ticket| (ticket, Outcome::Failed)));
    }

    /// Events held, and their cost in bytes.
    #[must_use]
    pub fn held(&self) -> (usize, usize) {
        let state = self.lock();
        (state.held(), state.bytes)
    }

    /// The limits.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Whether anything is waiting.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let state = self.lock();
        state.waiting.is_empty() && state.replays.is_empty()
    }

    /// A copy of everything countable.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let state = self.lock();
        Snapshot {
            ledger: state.ledger.clone(),
            events: state.held(),
            bytes: state.bytes,
            limits: self.limits,
            oldest: state.oldest_taken.or_else(|| state.waiting.front().map(|event| event.origin.received)),
            full: state.full,
            draining: state.draining,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounting::SourceBook;
    use crate::message::{Fields, Origin};
    use crate::ticket::Ticket;

    fn event(size: usize) -> Box<Event> {
        let origin = Origin {
            source: "a".into(),
            signature: None,
            verified: false,
            traceparent: None,
            received: SystemTime::UNIX_EPOCH,
        };
        Box::new(Event::new(origin, vec![0; size].into(), &Fields::default(), &[0; 32]))
    }

    fn buffer(events: usize, bytes: usize) -> Buffer {
        let ledger = Ledger::new(vec![SourceBook::new("a".into(), [])]);
        Buffer::new(Limits { events, bytes }, ledger)
    }

    #[test]
    fn refuses_at_the_limit_of_events_and_counts_both() {
        let buffer = buffer(2, 1 << 20);
        assert_eq!(buffer.enqueue(0, None, event(1)), Ok(()));
        assert_eq!(buffer.enqueue(0, None, event(1)), Ok(()));
        assert_eq!(buffer.enqueue(0, None, event(1)), Err(Refused::Full));
        let snapshot = buffer.snapshot();
        let totals = snapshot.ledger.totals(snapshot.events as u64);
        assert_eq!((totals.received, totals.accepted, totals.rejected, totals.held), (3, 2, 1, 2));
        assert_eq!(totals.mismatch(), 0);
        assert!(snapshot.full);
    }

    #[test]
    fn refuses_at_the_limit_of_bytes_and_is_not_passed_by_one() {
        let buffer = buffer(10, 2 * 512 + 30);
        assert_eq!(buffer.enqueue(0, None, event(15)), Ok(()));
        assert_eq!(buffer.enqueue(0, None, event(16)), Err(Refused::Full));
        assert_eq!(buffer.enqueue(0, None, event(15)), Ok(()));
        assert_eq!(buffer.snapshot().bytes, 2 * 512 + 30);
    }

    #[test]
    fn keeps_what_is_taken_in_the_limits_until_it_is_settled() {
        let buffer = buffer(1, 1 << 20);
        buffer.add_pair("other", "other");
        assert_eq!(buffer.enqueue(0, None, event(1)), Ok(()));
        let mut taken = VecDeque::new();
        assert_eq!(buffer.take(10, &mut taken), 1);
        assert_eq!(buffer.enqueue(0, None, event(1)), Err(Refused::Full));
        let settlement = Settlement { published: vec![0], bytes: 513, ..Settlement::default() };
        buffer.settle(&settlement, None);
        assert_eq!(buffer.enqueue(0, None, event(1)), Ok(()));
        let snapshot = buffer.snapshot();
        assert_eq!(snapshot.ledger.totals(snapshot.events as u64).mismatch(), 0);
        assert_eq!(snapshot.ledger.pairs[0].published, 1);
    }

    fn letter(size: usize) -> Box<Event> {
        let mut letter = event(size);
        letter.kept = Kept::DeadLetter;
        letter.ticket = Some(Ticket::new(None));
        letter
    }

    #[test]
    fn leaves_replayed_events_a_quarter_while_others_wait_and_all_of_it_else() {
        let buffer = buffer(1000, 1 << 20);
        for _ in 0..20 {
            assert_eq!(buffer.enqueue(0, None, event(1)), Ok(()));
        }
        assert!(buffer.replay((0..20).map(|_| letter(1)).collect()));
        let replays = |taken: &VecDeque<Box<Event>>| taken.iter().filter(|event| event.ticket.is_some()).count();
        let mut taken = VecDeque::new();
        assert_eq!((buffer.take(8, &mut taken), replays(&taken)), (8, 2));
        for _ in 0..8 {
            assert_eq!(buffer.take(1, &mut taken), 1);
        }
        assert_eq!(replays(&taken), 4, "also of batches of one");
        assert_eq!(buffer.take(100, &mut taken), 24);
        assert!(buffer.is_empty());
        let snapshot = buffer.snapshot();
        let totals = snapshot.ledger.totals(snapshot.events as u64);
        assert_eq!((totals.replayed, totals.held, totals.mismatch()), (20, 40, 0));
    }

    #[test]
    fn holds_replayed_events_at_exit_and_tells_who_waits_for_them() {
        let buffer = buffer(5, 1 << 20);
        assert_eq!(buffer.enqueue(0, None, event(1)), Ok(()));
        let replayed = letter(1);
        let ticket = replayed.ticket.clone().unwrap();
        assert!(buffer.replay(vec![replayed]));
        buffer.lose_waiting();
        assert_eq!(ticket.outcome(), Some(Outcome::Failed));
        let snapshot = buffer.snapshot();
        let totals = snapshot.ledger.totals(snapshot.events as u64);
        assert_eq!((totals.lost, totals.held, totals.mismatch(), snapshot.bytes), (1, 1, 0, 513));
        assert!(!buffer.replay(vec![letter(1)]), "delivery is over");
    }

    #[test]
    fn counts_what_is_left_at_exit_as_lost() {
        let buffer = buffer(5, 1 << 20);
        assert_eq!(buffer.enqueue(0, None, event(1)), Ok(()));
        buffer.drain();
        assert_eq!(buffer.enqueue(0, None, event(1)), Err(Refused::Draining));
        buffer.lose_waiting();
        let snapshot = buffer.snapshot();
        let totals = snapshot.ledger.totals(snapshot.events as u64);
        assert_eq!((totals.lost, totals.held, totals.mismatch()), (1, 0, 0));
    }
}
