//! The queue: events in memory and the books, under one lock, so that the accounting is exact in every mode.
//!
//! Memory holds what delivery takes next. In `journaled` mode an event comes here once it is synced; where memory is
//! full it stays on disk alone, and delivery catches up there before memory is used again: order holds, memory is
//! bounded. A journal found at start is such a backlog, whatever the mode.
//!
//! Length: everything that must happen under the one lock is only understood side by side.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use tokio::sync::Notify;

use crate::event::{Event, Kept};
use crate::event::{Waiter, WakeList};
use crate::queue::disk::{AppendReason, Backlog, Disk, Incoming};
use crate::queue::journal::{Record, SegmentAllocator};
use crate::queue::{Ack, Mode, Refused, Settlement};
use crate::settings::Section;
use crate::status::{Decision, JournalState, Ledger, Limits, Loss, PairBook, Snapshot};

/// Full until it is below this share again, in percent: a probe must not flicker.
const READY_BELOW: usize = 90;

/// So many bytes are read from the journal at once; few in tests, whose events are small.
const READ_BYTES: usize = if cfg!(test) { 2 << 10 } else { 1 << 20 };

/// Why nothing is accepted while the disk hangs.
const STALLED: &str = "the disk has not completed a write for longer than `publish.timeout`";

/// Reads `[buffer]`.
pub(crate) fn limits(section: &mut Section<'_>) -> Limits {
    Limits { events: section.count("max_events", 1), bytes: section.size("max_bytes") }
}

/// What [`Buffer::take`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// So many events.
    Events(usize),
    /// The next ones are to be read from the journal first.
    OnDisk(Backlog),
    /// Nothing waits.
    Nothing,
}

#[derive(Debug)]
pub(super) struct QueueState {
    pub(super) waiting: VecDeque<Box<Event>>,
    /// Events made of letters, which come late anyway: they have a share beside `waiting`.
    pub(super) replays: VecDeque<Box<Event>>,
    /// What `take` owes the replays, in quarters of an event.
    pub(super) owed: usize,
    /// Delivery is over.
    pub(super) closed: bool,
    /// Events that delivery took and has not settled.
    pub(super) taken: usize,
    /// Of all that is in memory: what the journal does not keep.
    pub(super) unjournaled: usize,
    /// Cost of everything held in memory.
    pub(super) bytes: usize,
    /// The part of it that delivery took.
    pub(super) taken_bytes: usize,
    /// Receipt of the oldest event that delivery holds.
    pub(super) oldest_taken: Option<SystemTime>,
    pub(super) full: bool,
    pub(super) draining: bool,
    /// Since when the broker takes nothing.
    pub(super) away: Option<Instant>,
    pub(super) disk: Option<Disk>,
    pub(super) ledger: Ledger,
    pub(super) limits: Limits,
}

impl QueueState {
    fn in_memory(&self) -> usize {
        self.waiting.len() + self.replays.len() + self.taken
    }

    /// Lets go of everything waiting that its sender took back.
    pub(super) fn sweep(&mut self) {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain(|event| {
            let is_withdrawn = is_withdrawn(event);
            if is_withdrawn {
                withdraw(self, event);
            }
            !is_withdrawn
        });
        self.waiting = waiting;
        let mut replays = std::mem::take(&mut self.replays);
        replays.retain(|event| {
            // Its letter stays: nothing has to be done on disk either.
            let is_withdrawn = event.waiter.as_ref().is_some_and(|waiter| waiter.is_withdrawn());
            if is_withdrawn {
                withdraw(self, event);
            }
            !is_withdrawn
        });
        self.replays = replays;
    }

    fn has_room(&self, cost: usize) -> bool {
        self.in_memory() < self.limits.events && self.bytes + cost <= self.limits.bytes
    }
}

/// The queue. Ingress threads enqueue, the one delivery task takes and settles.
#[derive(Debug)]
pub(crate) struct Buffer {
    state: Mutex<QueueState>,
    pub(super) ready: Notify,
    /// Wakes the journal's writer.
    pub(super) work: Condvar,
    /// The journal can never be written again.
    pub(super) failed: Notify,
    mode: Mode,
}

impl Buffer {
    /// An empty queue with these limits and books.
    #[must_use]
    pub(crate) fn new(mode: Mode, limits: Limits, ledger: Ledger) -> Self {
        let state = QueueState {
            waiting: VecDeque::new(),
            replays: VecDeque::new(),
            owed: 0,
            closed: false,
            taken: 0,
            unjournaled: 0,
            bytes: 0,
            taken_bytes: 0,
            oldest_taken: None,
            full: false,
            draining: false,
            away: Some(Instant::now()),
            disk: None,
            ledger,
            limits,
        };
        Self { state: Mutex::new(state), ready: Notify::new(), work: Condvar::new(), failed: Notify::new(), mode }
    }

    /// The same with a journal: `recovered` are the sequences found in it, `damaged` what was found broken.
    #[must_use]
    pub(crate) fn with_journal(
        mut self,
        layout: SegmentAllocator,
        recovered: std::ops::Range<u64>,
        damaged: u64,
    ) -> Self {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let disk = Disk::new(layout, recovered, damaged);
        state.ledger.recovered = disk.recovered;
        state.disk = Some(disk);
        self
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, QueueState> {
        // Nothing under the lock panics half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a 200 means here.
    #[must_use]
    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    /// Takes an event, or refuses it at once. Where the mode promises more than the buffer, the waiter tells when the
    /// promise is kept; `home` is the mailbox of the thread that waits. The decision is counted in the same breath,
    /// `journaled` by the writer once it is synced.
    ///
    /// # Errors
    /// A limit is reached, the bridge is stopping, disk or broker cannot keep the promise.
    pub(crate) fn enqueue(
        &self,
        source: usize,
        secret: Option<usize>,
        event: Box<Event>,
        home: &Arc<WakeList>,
    ) -> Result<Option<Arc<Waiter>>, Refused> {
        let received = event.origin.received;
        let mut state = self.lock();
        let enqueued = match self.mode.ack {
            _ if state.draining => Err(Refused::Draining),
            Ack::Buffered => Self::hold(&mut state, event).map(|()| None),
            Ack::Published if self.is_away_too_long(&state) => Err(Refused::Away),
            Ack::Published => {
                let waiter = Waiter::new(Some(home.clone()));
                let mut event = event;
                event.waiter = Some(waiter.clone());
                Self::hold(&mut state, event).map(|()| Some(waiter))
            }
            Ack::Journaled => self.submit(&mut state, source, secret, event, home).map(Some),
        };
        match &enqueued {
            Err(refused) => state.ledger.decide(source, secret, Decision::Rejected(refused.reason()), received),
            Ok(_) if self.mode.ack == Ack::Journaled => {}
            Ok(_) => state.ledger.decide(source, secret, Decision::Accepted, received),
        }
        drop(state);
        if enqueued.is_ok() && self.mode.ack != Ack::Journaled {
            self.ready.notify_one();
        }
        enqueued
    }

    fn hold(state: &mut QueueState, event: Box<Event>) -> Result<(), Refused> {
        let cost = event.cost();
        if !state.has_room(cost) {
            // One body too large for what is left does not make the buffer full for smaller ones.
            state.full |= !Self::is_below_the_mark(state);
            return Err(Refused::Full);
        }
        state.bytes += cost;
        state.unjournaled += 1;
        state.waiting.push_back(event);
        state.full |= state.in_memory() >= state.limits.events;
        Ok(())
    }

    fn submit(
        &self,
        state: &mut QueueState,
        source: usize,
        secret: Option<usize>,
        mut event: Box<Event>,
        home: &Arc<WakeList>,
    ) -> Result<Arc<Waiter>, Refused> {
        let Some(disk) = &mut state.disk else { return Err(Refused::Disk("there is no journal".to_owned())) };
        if let Some(text) = &disk.failed {
            return Err(Refused::Disk(text.clone()));
        }
        if disk.is_stalled(self.mode.timeout) {
            return Err(Refused::Disk(STALLED.to_owned()));
        }
        if disk.unsynced_bytes > 0 && disk.unsynced_bytes + event.cost() > state.limits.bytes {
            return Err(Refused::DiskBehind);
        }
        let Some(place) = disk.reserve(Record::of(&event).length()) else {
            if let Some(text) = &disk.no_space {
                disk.short = true;
                return Err(Refused::Disk(text.clone()));
            }
            disk.full = true;
            return Err(Refused::JournalFull);
        };
        event.kept = Kept::Journal(place.sequence);
        let waiter = Waiter::new(Some(home.clone()));
        let entry = AppendReason::Accept { source, secret, waiter: waiter.clone() };
        disk.send(Incoming { place, event, entry });
        if disk.wakes_writer() {
            self.work.notify_one();
        }
        Ok(waiter)
    }

    /// Notes any other decision about a request that came at this time.
    pub(crate) fn decide(&self, source: usize, secret: Option<usize>, decision: Decision, received: SystemTime) {
        self.lock().ledger.decide(source, secret, decision, received);
    }

    /// Waits until an event may be waiting. Cancel-safe; one waiter.
    pub(crate) async fn ready(&self) {
        self.ready.notified().await;
    }

    /// Moves up to `most` events, oldest first, to the end of `into`. What a sender took back meanwhile goes at once.
    pub(crate) fn take(&self, most: usize, into: &mut VecDeque<Box<Event>>) -> Taken {
        let mut state = self.lock();
        let state = &mut *state;
        // A quarter of what is taken, counted over many batches: some are of one event.
        state.owed = if state.replays.is_empty() { 0 } else { state.owed + most };
        let share = (state.owed / 4).min(state.replays.len()).min(most);
        let before = into.len();
        while into.len() - before < most - share {
            let Some(event) = state.waiting.front() else { break };
            let is_next = match (event.kept, &mut state.disk) {
                (Kept::Journal(sequence), Some(disk)) => {
                    let is_next = disk.cursor == sequence;
                    if is_next {
                        disk.take(sequence);
                    }
                    is_next
                }
                // Everything that has a sequence is older than what is in memory alone.
                (_, Some(disk)) => disk.cursor >= disk.layout.next(),
                (_, None) => true,
            };
            if !is_next {
                break;
            }
            let Some(event) = state.waiting.pop_front() else { break };
            if is_withdrawn(&event) {
                withdraw(state, &event);
                continue;
            }
            state.taken_bytes += event.cost();
            into.push_back(event);
        }
        let late = state.replays.len().min(most - (into.len() - before));
        state.owed = state.owed.saturating_sub(4 * late);
        state.taken_bytes += state.replays.iter().take(late).map(|event| event.cost()).sum::<usize>();
        into.extend(state.replays.drain(..late));
        let count = into.len() - before;
        state.taken += count;
        if count > 0 && state.oldest_taken.is_none() {
            state.oldest_taken = into.front().map(|event| event.origin.received);
        }
        if state.waiting.is_empty() && state.waiting.capacity() > 4096 {
            // After a backlog: the pointers of 100,000 events are a megabyte that idle memory need not hold.
            state.waiting.shrink_to(1024);
        }
        if count > 0 {
            return Taken::Events(count);
        }
        Self::backlog(state).map_or(Taken::Nothing, Taken::OnDisk)
    }

    /// What is to be read from disk next, if that is where the next event is.
    #[must_use]
    pub(crate) fn on_disk(&self) -> Option<Backlog> {
        Self::backlog(&self.lock())
    }

    /// What is to be read from disk before anything in memory, as far as memory has room for it.
    fn backlog(state: &QueueState) -> Option<Backlog> {
        let disk = state.disk.as_ref()?;
        let next = match state.waiting.front().map(|event| event.kept) {
            Some(Kept::Journal(sequence)) => sequence,
            _ => disk.synced,
        };
        // A little beyond the limit, and in any case a little: what fills the memory, whatever its limit is by now, must
        // not keep the older events on disk.
        let has_room = state.bytes < state.limits.bytes || state.taken_bytes < READ_BYTES;
        (disk.cursor < next && has_room).then_some(Backlog { sequences: disk.cursor..next, bytes: READ_BYTES })
    }

    /// Notes what was read of a backlog: the events are delivery's now, `damaged` ones are lost, `next` comes next.
    pub(crate) fn read_back(&self, events: &VecDeque<Box<Event>>, damaged: u64, next: u64) {
        let mut state = self.lock();
        let state = &mut *state;
        let Some(disk) = &mut state.disk else { return };
        for event in events {
            if let Kept::Journal(sequence) = event.kept {
                disk.take(sequence);
            }
            state.bytes += event.cost();
            state.taken_bytes += event.cost();
        }
        disk.skip_to(next);
        disk.events -= usize::try_from(damaged).unwrap_or(usize::MAX).min(disk.events);
        disk.damaged += damaged;
        state.ledger.lost[Loss::Damaged as usize] += damaged;
        state.taken += events.len();
        if state.oldest_taken.is_none() {
            state.oldest_taken = events.front().map(|event| event.origin.received);
        }
    }

    /// Takes events that were made of letters; false once delivery is over. They are few at a time: no limit refuses
    /// them.
    #[must_use]
    #[expect(clippy::vec_box, reason = "they are queued as boxes")]
    pub(crate) fn replay(&self, events: Vec<Box<Event>>) -> bool {
        let mut state = self.lock();
        if state.closed {
            return false;
        }
        state.ledger.replayed += events.len() as u64;
        state.unjournaled += events.len();
        state.bytes += events.iter().map(|event| event.cost()).sum::<usize>();
        state.replays.extend(events);
        drop(state);
        self.ready.notify_one();
        true
    }

    /// Counts and releases a batch; `oldest` is the receipt of the oldest event that delivery still holds.
    pub(crate) fn settle(&self, settlement: &Settlement, oldest: Option<SystemTime>) {
        let mut state = self.lock();
        state.ledger.publish(&settlement.published);
        for reason in &settlement.dead_lettered {
            state.ledger.dead_lettered[*reason as usize] += 1;
        }
        for loss in &settlement.lost {
            state.ledger.lost[*loss as usize] += 1;
        }
        state.ledger.withdrawn += settlement.withdrawn as u64;
        state.taken -= settlement.events();
        state.unjournaled -= settlement.events() - settlement.sequences.len();
        state.bytes -= settlement.bytes;
        state.taken_bytes -= settlement.bytes;
        state.oldest_taken = oldest;
        if !settlement.published.is_empty() {
            state.away = None;
        }
        if let Some(disk) = state.disk.as_mut().filter(|_| !settlement.sequences.is_empty()) {
            let is_news = !disk.moved;
            disk.settle(&settlement.sequences);
            if is_news && disk.wakes_writer() {
                self.work.notify_one();
            }
        }
        if Self::is_below_the_mark(&state) {
            state.full = false;
        }
    }

    fn is_below_the_mark(state: &QueueState) -> bool {
        // At least nothing held counts as below, however small the limit is.
        let mark = |limit: usize| (limit / 100 * READY_BELOW + limit % 100 * READY_BELOW / 100).max(1);
        let is_below = |held: usize, limit: usize| held < mark(limit);
        is_below(state.in_memory(), state.limits.events) && is_below(state.bytes, state.limits.bytes)
    }

    /// Notes whether the broker takes events.
    pub(crate) fn note_broker(&self, broker: BrokerState) {
        let mut state = self.lock();
        match broker {
            BrokerState::Unreachable => state.away = state.away.or_else(|| Some(Instant::now())),
            BrokerState::Reachable => state.away = None,
        }
    }

    fn is_away_too_long(&self, state: &QueueState) -> bool {
        state.away.is_some_and(|since| since.elapsed() > self.mode.timeout)
    }

    /// Lets go of everything waiting that its sender took back.
    pub(crate) fn sweep(&self) {
        let mut state = self.lock();
        if self.mode.ack != Ack::Published && state.replays.is_empty() {
            return;
        }
        state.sweep();
        if Self::is_below_the_mark(&state) {
            state.full = false;
        }
    }

    /// Adds a pair of event and target type to the books; its number.
    pub(crate) fn add_pair(&self, event: &str, target_type: &str) -> u16 {
        let mut state = self.lock();
        let number = state.ledger.pairs.len();
        let book = PairBook { event: event.to_owned(), target_type: target_type.to_owned(), published: 0 };
        state.ledger.pairs.push(book);
        u16::try_from(number).unwrap_or(u16::MAX)
    }

    /// Events in memory, and their cost in bytes.
    #[must_use]
    pub(crate) fn held(&self) -> (usize, usize) {
        let state = self.lock();
        (state.in_memory(), state.bytes)
    }

    /// Requests until now.
    #[must_use]
    pub(crate) fn received(&self) -> u64 {
        self.lock().ledger.received()
    }

    /// The limits.
    #[must_use]
    pub(crate) fn limits(&self) -> Limits {
        self.lock().limits
    }

    /// Applies other limits from now on; what is held already stays.
    pub(crate) fn limit(&self, limits: Limits) {
        let mut state = self.lock();
        state.limits = limits;
        // `journaled` refuses nothing for a full buffer.
        let is_refusing = self.mode.ack != Ack::Journaled;
        let is_reached = is_refusing && (state.in_memory() >= limits.events || state.bytes >= limits.bytes);
        state.full = is_reached || (state.full && !Self::is_below_the_mark(&state));
        drop(state);
        // More may be read from the journal now.
        self.ready.notify_one();
    }

    /// The number of a source's book, and those of its secrets, by name and ids: see [`Ledger::enter`].
    pub(crate) fn enter(&self, source: &Arc<str>, secrets: impl Iterator<Item = Arc<str>>) -> (usize, Vec<usize>) {
        self.lock().ledger.enter(source, secrets)
    }

    /// Whether anything waits to be taken, in memory, on disk, or on its way there.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        let state = self.lock();
        let on_disk = |disk: &Disk| disk.cursor < disk.synced || !disk.incoming.is_empty();
        state.waiting.is_empty() && state.replays.is_empty() && !state.disk.as_ref().is_some_and(on_disk)
    }

    /// A copy of everything countable.
    #[must_use]
    pub(crate) fn snapshot(&self) -> Snapshot {
        let state = self.lock();
        let journal = state.disk.as_ref().map(|disk| JournalState {
            events: disk.events,
            bytes: disk.layout.bytes(),
            capacity: disk.layout.capacity(),
            recovered: disk.recovered,
            damaged: disk.damaged,
            full: disk.full,
            failed: disk.failed.clone(),
            no_space: disk.no_space.clone(),
            short: disk.short,
            stalled: disk.is_stalled(self.mode.timeout).then_some(STALLED),
        });
        Snapshot {
            ledger: state.ledger.clone(),
            events: state.in_memory(),
            bytes: state.bytes,
            held: (state.unjournaled + journal.as_ref().map_or(0, |journal| journal.events)) as u64,
            limits: state.limits,
            oldest: state.oldest_taken.or_else(|| state.waiting.front().map(|event| event.origin.received)),
            full: state.full,
            away: self.mode.ack == Ack::Published && self.is_away_too_long(&state),
            journal,
        }
    }
}

/// Whether the broker takes events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BrokerState {
    /// A session lives and takes events.
    Reachable,
    /// There is no session, or the broker takes nothing.
    Unreachable,
}

/// Whether its sender took it back, and nothing has to be done about it on disk.
fn is_withdrawn(event: &Event) -> bool {
    event.kept == Kept::Memory && event.waiter.as_ref().is_some_and(|waiter| waiter.is_withdrawn())
}

fn withdraw(state: &mut QueueState, event: &Event) {
    state.ledger.withdrawn += 1;
    state.unjournaled -= 1;
    state.bytes -= event.cost();
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::event::Outcome;
    use crate::event::{Fields, Origin};
    use crate::status::SourceBook;

    const MODE: Mode = Mode { ack: Ack::Buffered, timeout: Duration::from_secs(4) };

    fn enqueue(buffer: &Buffer, event: Box<Event>) -> Result<(), Refused> {
        buffer.enqueue(0, None, event, &Arc::default()).map(|waiter| assert!(waiter.is_none()))
    }

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
        Buffer::new(MODE, Limits { events, bytes }, ledger)
    }

    #[test]
    fn refuses_at_the_limit_of_events_and_counts_both() {
        let buffer = buffer(2, 1 << 20);
        assert_eq!(enqueue(&buffer, event(1)), Ok(()));
        assert_eq!(enqueue(&buffer, event(1)), Ok(()));
        assert_eq!(enqueue(&buffer, event(1)), Err(Refused::Full));
        let snapshot = buffer.snapshot();
        let totals = snapshot.totals();
        assert_eq!((totals.received, totals.accepted, totals.rejected, totals.held), (3, 2, 1, 2));
        assert_eq!(totals.mismatch(), 0);
        assert!(snapshot.full);
    }

    #[test]
    fn refuses_at_the_limit_of_bytes_and_is_not_passed_by_one() {
        let buffer = buffer(10, 2 * 512 + 30);
        assert_eq!(enqueue(&buffer, event(15)), Ok(()));
        assert_eq!(enqueue(&buffer, event(16)), Err(Refused::Full));
        assert_eq!(enqueue(&buffer, event(15)), Ok(()));
        assert_eq!(buffer.snapshot().bytes, 2 * 512 + 30);
    }

    #[test]
    fn keeps_what_is_taken_in_the_limits_until_it_is_settled() {
        let buffer = buffer(1, 1 << 20);
        buffer.add_pair("other", "other");
        assert_eq!(enqueue(&buffer, event(1)), Ok(()));
        let mut taken = VecDeque::new();
        assert_eq!(buffer.take(10, &mut taken), Taken::Events(1));
        assert_eq!(enqueue(&buffer, event(1)), Err(Refused::Full));
        let mut settlement = Settlement { published: vec![0], ..Settlement::default() };
        settlement.release(&taken[0]);
        buffer.settle(&settlement, None);
        assert_eq!(enqueue(&buffer, event(1)), Ok(()));
        let snapshot = buffer.snapshot();
        assert_eq!(snapshot.totals().mismatch(), 0);
        assert_eq!(snapshot.ledger.pairs[0].published, 1);
    }

    fn letter(size: usize) -> Box<Event> {
        let mut letter = event(size);
        letter.kept = Kept::DeadLetter;
        letter.waiter = Some(Waiter::new(None));
        letter
    }

    #[test]
    fn leaves_replayed_events_a_quarter_while_others_wait_and_all_of_it_else() {
        let buffer = buffer(1000, 1 << 20);
        for _ in 0..20 {
            assert_eq!(enqueue(&buffer, event(1)), Ok(()));
        }
        assert!(buffer.replay((0..20).map(|_| letter(1)).collect()));
        let replays = |taken: &VecDeque<Box<Event>>| taken.iter().filter(|event| event.waiter.is_some()).count();
        let mut taken = VecDeque::new();
        assert_eq!((buffer.take(8, &mut taken), replays(&taken)), (Taken::Events(8), 2));
        for _ in 0..8 {
            assert_eq!(buffer.take(1, &mut taken), Taken::Events(1));
        }
        assert_eq!(replays(&taken), 4, "also of batches of one");
        assert_eq!(buffer.take(100, &mut taken), Taken::Events(24));
        assert!(buffer.is_empty());
        let snapshot = buffer.snapshot();
        let totals = snapshot.totals();
        assert_eq!((totals.replayed, totals.held, totals.mismatch()), (20, 40, 0));
    }

    #[test]
    fn holds_replayed_events_at_exit_and_tells_who_waits_for_them() {
        let buffer = buffer(5, 1 << 20);
        assert_eq!(enqueue(&buffer, event(1)), Ok(()));
        let replayed = letter(1);
        let waiter = replayed.waiter.clone().unwrap();
        assert!(buffer.replay(vec![replayed]));
        buffer.lose_waiting();
        assert_eq!(waiter.outcome(), Some(Outcome::Failed));
        let snapshot = buffer.snapshot();
        let totals = snapshot.totals();
        assert_eq!((totals.lost, totals.held, totals.mismatch(), snapshot.bytes), (1, 1, 0, 513));
        assert!(!buffer.replay(vec![letter(1)]), "delivery is over");
    }

    #[test]
    fn lets_go_of_replayed_events_that_were_taken_back() {
        let buffer = buffer(5, 1 << 20);
        let (stays, goes) = (letter(1), letter(1));
        let waiter = goes.waiter.clone().unwrap();
        assert!(buffer.replay(vec![stays, goes]));
        assert!(waiter.withdraw());
        buffer.sweep();
        let snapshot = buffer.snapshot();
        let totals = snapshot.totals();
        assert_eq!((totals.replayed, totals.withdrawn, totals.held, totals.mismatch()), (2, 1, 1, 0));
        assert_eq!((snapshot.events, snapshot.bytes), (1, 513));
    }

    #[test]
    fn counts_what_is_left_at_exit_as_lost() {
        let buffer = buffer(5, 1 << 20);
        assert_eq!(enqueue(&buffer, event(1)), Ok(()));
        buffer.drain();
        assert_eq!(enqueue(&buffer, event(1)), Err(Refused::Draining));
        buffer.lose_waiting();
        let snapshot = buffer.snapshot();
        let totals = snapshot.totals();
        assert_eq!((totals.lost, totals.held, totals.mismatch()), (1, 0, 0));
    }
}
