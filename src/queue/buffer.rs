//! The queue: events in memory and the ledger, under one lock, so that the accounting is exact in every mode.
//!
//! Memory holds the events that delivery takes next. In `journaled` mode an event enters memory once it is synced. If
//! memory is full, the event stays on disk only, and delivery catches up there before memory is used again: order
//! holds, and memory is bounded. A journal found at start is such a backlog, whatever the mode.
//!
//! Length: everything that must happen under the one lock is best understood side by side.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::event::{Event, Kept, Waiter, WakeList};
use crate::queue::disk::{AppendReason, Backlog, Disk, Incoming};
use crate::queue::journal::{Record, SegmentAllocator, index};
use crate::queue::{Ack, EventEnd, Mode, NotTaken, Settlement};
use crate::settings::Section;
use crate::status::{ConnectionState, Decision, JournalState, Ledger, Limits, Loss, PairBook, Snapshot};

/// The share of the limits, in percent, below which a full buffer is no longer full: readiness must not flicker.
const READY_BELOW: usize = 90;

/// The number of bytes read from the journal at once; few in tests, whose events are small.
const READ_BYTES: usize = if cfg!(test) { 2 << 10 } else { 1 << 20 };

/// The reason why nothing is accepted while the disk hangs.
const STALLED: &str = "the disk has not completed a write for longer than `publish.timeout`";

/// Reads `[buffer]`.
pub(crate) fn limits(section: &mut Section<'_>) -> Limits {
    Limits { events: section.count("max_events", 1), bytes: section.size("max_bytes") }
}

/// The result of [`Buffer::take`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// This many events were taken.
    Events(usize),
    /// The next events are to be read from the journal first.
    OnDisk(Backlog),
    /// No event waits.
    Nothing,
}

#[derive(Debug)]
pub(super) struct QueueState {
    pub(super) waiting: VecDeque<Box<Event>>,
    /// Events rebuilt from letters. They are late anyway, and have a share beside `waiting`.
    pub(super) replays: VecDeque<Box<Event>>,
    /// Replays get a quarter of each batch; this is the part not yet used, times four.
    pub(super) replay_share: usize,
    /// Delivery has ended.
    pub(super) closed: bool,
    /// Events that delivery took and has not settled.
    pub(super) taken: usize,
    /// Everything accepted and not settled.
    pub(super) held: u64,
    /// The number of the next event that memory keeps.
    next: u64,
    /// The cost of everything held in memory.
    pub(super) bytes: usize,
    /// The part of it that delivery took.
    pub(super) taken_bytes: usize,
    /// The part of that which waits for its address, as delivery said last.
    pub(super) parked_bytes: usize,
    /// The receipt of the oldest event that delivery holds.
    pub(super) oldest_taken: Option<SystemTime>,
    pub(super) full: bool,
    pub(super) draining: bool,
    /// The time since which the broker takes nothing.
    pub(super) away: Option<Instant>,
    pub(super) disk: Option<Disk>,
    pub(super) ledger: Ledger,
    pub(super) limits: Limits,
}

impl QueueState {
    fn in_memory(&self) -> usize {
        self.waiting.len() + self.replays.len() + self.taken
    }

    /// Frees the room of events that delivery does not hold any more.
    pub(super) fn give_back(&mut self, events: usize, bytes: usize) {
        self.taken -= events;
        self.bytes -= bytes;
        self.taken_bytes -= bytes;
    }

    /// Removes all waiting events that their senders withdrew.
    pub(super) fn sweep(&mut self) {
        let (mut waiting, mut replays) = (std::mem::take(&mut self.waiting), std::mem::take(&mut self.replays));
        waiting.retain(|event| !self.withdraws(event));
        replays.retain(|event| !self.withdraws(event));
        (self.waiting, self.replays) = (waiting, replays);
    }

    /// Settles an event that waits here, if its sender withdrew it.
    fn withdraws(&mut self, event: &Event) -> bool {
        let is_withdrawn = event.waiter.as_ref().is_some_and(|waiter| waiter.is_withdrawn());
        if is_withdrawn {
            self.ledger.withdrawn += 1;
            self.held -= 1;
            self.bytes -= event.cost();
            if let (Some(disk), Some(number)) = (&mut self.disk, event.kept.number()) {
                disk.settle(&[number]);
            }
        }
        is_withdrawn
    }

    /// Checks the two equations of the accounting, in builds for tests.
    pub(super) fn check_balance(&self) {
        debug_assert_eq!(self.ledger.totals(self.held).mismatch(), 0, "an event is counted twice, or not at all");
    }

    fn has_room(&self, cost: usize) -> bool {
        self.in_memory() < self.limits.events && self.bytes + cost <= self.limits.bytes
    }
}

/// The queue. Ingress threads enqueue; the one delivery task takes and settles.
#[derive(Debug)]
pub(crate) struct Buffer {
    state: Mutex<QueueState>,
    pub(super) ready: Notify,
    /// Wakes the journal's writer.
    pub(super) work: Condvar,
    /// Signals that the journal can never be written again.
    pub(super) failed: Notify,
    mode: Mode,
}

impl Buffer {
    /// Creates an empty queue with these limits and this ledger.
    #[must_use]
    pub(crate) fn new(mode: Mode, limits: Limits, ledger: Ledger) -> Self {
        let state = QueueState {
            waiting: VecDeque::new(),
            replays: VecDeque::new(),
            replay_share: 0,
            closed: false,
            taken: 0,
            held: 0,
            next: 1,
            bytes: 0,
            taken_bytes: 0,
            parked_bytes: 0,
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

    /// Adds a journal: `recovered` are the sequences found in it, `damaged` the damage.
    #[must_use]
    pub(crate) fn with_journal(
        mut self,
        layout: SegmentAllocator,
        recovered: std::ops::Range<u64>,
        damaged: u64,
    ) -> Self {
        let state = self.state.get_mut();
        state.held = recovered.end - recovered.start;
        state.next = recovered.end;
        state.ledger.recovered = state.held;
        state.disk = Some(Disk::new(layout, recovered, damaged));
        self
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock()
    }

    /// The meaning of a 200 in this mode.
    #[must_use]
    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether senders wait until the broker has their event.
    #[must_use]
    pub(crate) fn awaits_broker(&self) -> bool {
        self.mode.ack == Ack::Published
    }

    /// Takes an event, or refuses it at once. Where the mode promises more than the buffer, the returned waiter reports
    /// when the promise is kept; `wakes` is the wake list of the waiting thread. The decision is counted under the same
    /// lock, for `journaled` by the writer once the event is synced.
    ///
    /// # Errors
    /// A limit is reached, the bridge is stopping, disk or broker cannot keep the promise.
    pub(crate) fn enqueue(
        &self,
        source: usize,
        secret: Option<usize>,
        event: Box<Event>,
        wakes: &Arc<WakeList>,
    ) -> Result<Option<Arc<Waiter>>, NotTaken> {
        let received = event.origin.received;
        let mut state = self.lock();
        let enqueued = match self.mode.ack {
            _ if state.draining => Err(NotTaken::Draining),
            Ack::Buffered => Self::hold(&mut state, event).map(|()| None),
            Ack::Published if self.is_away_too_long(&state) => Err(NotTaken::Away),
            Ack::Published => {
                let waiter = Waiter::new(Some(wakes.clone()));
                let mut event = event;
                event.waiter = Some(waiter.clone());
                Self::hold(&mut state, event).map(|()| Some(waiter))
            }
            Ack::Journaled => self.submit(&mut state, source, secret, event, wakes).map(Some),
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

    fn hold(state: &mut QueueState, mut event: Box<Event>) -> Result<(), NotTaken> {
        let cost = event.cost();
        if !state.has_room(cost) {
            // A body too large for the room left does not make the buffer full for smaller ones.
            state.full |= !Self::is_below_the_mark(state);
            return Err(NotTaken::Full);
        }
        state.bytes += cost;
        state.held += 1;
        event.kept = Kept::Memory(state.next);
        state.next += 1;
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
        wakes: &Arc<WakeList>,
    ) -> Result<Arc<Waiter>, NotTaken> {
        let Some(disk) = &mut state.disk else { return Err(NotTaken::Disk("there is no journal".to_owned())) };
        if let Some(text) = &disk.failed {
            return Err(NotTaken::Disk(text.clone()));
        }
        if disk.is_stalled(self.mode.timeout) {
            return Err(NotTaken::Disk(STALLED.to_owned()));
        }
        if disk.unsynced_bytes > 0 && disk.unsynced_bytes + event.cost() > state.limits.bytes {
            return Err(NotTaken::DiskBehind);
        }
        let length = Record::of(&event).length();
        // Whether the oldest event will have to wait for its address is not known yet; if it does, only a copy of its record
        // frees a segment again.
        let fits = disk.layout.available_to_new() >= length;
        let Some(place) = Some(length).filter(|_| fits).and_then(|length| disk.reserve(length)) else {
            if let Some(text) = &disk.no_space {
                disk.short = true;
                return Err(NotTaken::Disk(text.clone()));
            }
            disk.full = true;
            return Err(NotTaken::JournalFull);
        };
        event.kept = Kept::Journal(place.sequence);
        let waiter = Waiter::new(Some(wakes.clone()));
        let entry = AppendReason::Accept { source, secret, waiter: waiter.clone() };
        disk.send(Incoming { place, event, entry });
        if disk.wakes_writer() {
            self.work.notify_one();
        }
        Ok(waiter)
    }

    /// Counts any other decision about a request that arrived at this time.
    pub(crate) fn decide(&self, source: usize, secret: Option<usize>, decision: Decision, received: SystemTime) {
        self.lock().ledger.decide(source, secret, decision, received);
    }

    /// Waits until an event may be waiting. Cancel-safe; one waiter.
    pub(crate) async fn ready(&self) {
        self.ready.notified().await;
    }

    /// Moves up to `most` events, oldest first, to the end of `into`. Events withdrawn meanwhile are removed.
    pub(crate) fn take(&self, most: usize, into: &mut VecDeque<Box<Event>>) -> Taken {
        let mut state = self.lock();
        let state = &mut *state;
        // A quarter of each batch, summed over many batches, because some have one event only.
        state.replay_share = if state.replays.is_empty() { 0 } else { state.replay_share + most };
        let share = (state.replay_share / 4).min(state.replays.len()).min(most);
        let before = into.len();
        while into.len() - before < most - share {
            if let Some(disk) = &mut state.disk {
                disk.pass_next_copies();
            }
            let Some(event) = state.waiting.front() else { break };
            let is_next = match (event.kept, &mut state.disk) {
                (Kept::Journal(sequence), Some(disk)) => {
                    let is_next = disk.cursor == sequence;
                    if is_next {
                        disk.take(sequence);
                    }
                    is_next
                }
                // What was found at start is older.
                (_, Some(disk)) => disk.cursor >= disk.recovered.end,
                (_, None) => true,
            };
            if !is_next {
                break;
            }
            let Some(event) = state.waiting.pop_front() else { break };
            if state.withdraws(&event) {
                continue;
            }
            state.taken_bytes += event.cost();
            into.push_back(event);
        }
        let late = state.replays.len().min(most - (into.len() - before));
        state.replay_share = state.replay_share.saturating_sub(4 * late);
        state.taken_bytes += state.replays.iter().take(late).map(|event| event.cost()).sum::<usize>();
        into.extend(state.replays.drain(..late));
        let count = into.len() - before;
        state.taken += count;
        if count > 0 && state.oldest_taken.is_none() {
            state.oldest_taken = into.front().map(|event| event.origin.received);
        }
        if state.waiting.is_empty() && state.waiting.capacity() > 4096 {
            // After a backlog: the pointers of 100,000 events take a megabyte that an idle queue need not keep.
            state.waiting.shrink_to(1024);
        }
        if count > 0 {
            return Taken::Events(count);
        }
        Self::backlog(state).map_or(Taken::Nothing, Taken::OnDisk)
    }

    /// The next sequences to read from disk, if the next event is there.
    #[must_use]
    pub(crate) fn on_disk(&self) -> Option<Backlog> {
        Self::backlog(&self.lock())
    }

    /// The sequences to read from disk before anything in memory, as far as memory has room for them.
    fn backlog(state: &QueueState) -> Option<Backlog> {
        let disk = state.disk.as_ref()?;
        let next = match state.waiting.front().map(|event| event.kept) {
            Some(Kept::Journal(sequence)) => sequence,
            _ => disk.synced,
        };
        let next = disk.next_copy().map_or(next, |copy| copy.min(next));
        // A little beyond the limit, and always a little: events that fill the memory, whatever its limit is by now, must not
        // keep older events on disk, and those that wait for their address must not keep the others there. What waits may be
        // less by now than was said.
        let is_few = state.taken_bytes.saturating_sub(state.parked_bytes) < READ_BYTES;
        let has_room = state.bytes < state.limits.bytes || is_few;
        (disk.cursor < next && has_room).then_some(Backlog { sequences: disk.cursor..next, bytes: READ_BYTES })
    }

    /// Notes what was read of a backlog: delivery holds the events, `damaged` ones are lost, and `next` follows.
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
        debug_assert!(damaged <= disk.events as u64, "more records are damaged than there are");
        disk.events = disk.events.saturating_sub(index(damaged));
        state.held -= damaged;
        disk.damaged += damaged;
        state.ledger.lost[Loss::Damaged as usize] += damaged;
        state.taken += events.len();
        if state.oldest_taken.is_none() {
            state.oldest_taken = events.front().map(|event| event.origin.received);
        }
        self.note_room(state);
    }

    /// Takes events rebuilt from letters; false once delivery has ended. No limit refuses them, because they are few at
    /// a time.
    #[must_use]
    #[expect(clippy::vec_box, reason = "they are queued as boxes")]
    pub(crate) fn replay(&self, events: Vec<Box<Event>>) -> bool {
        let mut state = self.lock();
        if state.closed {
            return false;
        }
        state.ledger.replayed += events.len() as u64;
        state.held += events.len() as u64;
        state.bytes += events.iter().map(|event| event.cost()).sum::<usize>();
        state.replays.extend(events);
        self.note_room(&mut state);
        drop(state);
        self.ready.notify_one();
        true
    }

    /// Counts and releases a batch; `oldest` is the receipt of the oldest event that delivery still holds.
    pub(crate) fn settle(&self, settlement: &Settlement, oldest: Option<SystemTime>) {
        let mut state = self.lock();
        for end in &settlement.ends {
            match end {
                EventEnd::Published(pair) => state.ledger.publish(*pair),
                EventEnd::DeadLettered(reason) => state.ledger.dead_lettered[*reason as usize] += 1,
                EventEnd::Lost(loss) => state.ledger.lost[*loss as usize] += 1,
                EventEnd::Withdrawn => state.ledger.withdrawn += 1,
            }
        }
        state.held -= settlement.ends.len() as u64;
        state.give_back(settlement.ends.len(), settlement.bytes);
        state.oldest_taken = oldest;
        if settlement.has_published() {
            state.away = None;
        }
        if let Some(disk) = &mut state.disk {
            let had_moved = disk.moved;
            disk.settle(&settlement.numbers);
            if disk.moved && !had_moved && disk.wakes_writer() {
                self.work.notify_one();
            }
        }
        state.check_balance();
        if Self::is_below_the_mark(&state) {
            state.full = false;
        }
    }

    pub(super) fn is_below_the_mark(state: &QueueState) -> bool {
        // An empty queue always counts as below, however small the limit is.
        let mark = |limit: usize| (limit / 100 * READY_BELOW + limit % 100 * READY_BELOW / 100).max(1);
        let is_below = |held: usize, limit: usize| held < mark(limit);
        is_below(state.in_memory(), state.limits.events) && is_below(state.bytes, state.limits.bytes)
    }

    /// Notes that nothing more has room, whatever filled it. `journaled` refuses nothing for that.
    pub(super) fn note_room(&self, state: &mut QueueState) {
        let is_reached = state.in_memory() >= state.limits.events || state.bytes >= state.limits.bytes;
        state.full |= is_reached && self.mode.ack != Ack::Journaled;
    }

    /// Notes whether the broker takes events: not without a session, nor while it waits.
    pub(crate) fn note_connection(&self, broker: ConnectionState) {
        let mut state = self.lock();
        let is_away = broker != ConnectionState::Connected;
        state.away = is_away.then(|| state.away.unwrap_or_else(Instant::now));
    }

    fn is_away_too_long(&self, state: &QueueState) -> bool {
        state.away.is_some_and(|since| since.elapsed() > self.mode.timeout)
    }

    /// Removes all waiting events that their senders withdrew.
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

    /// Adds a pair of event and target type to the ledger; returns its number.
    pub(crate) fn add_pair(&self, event: &str, target_type: &str) -> u16 {
        let mut state = self.lock();
        let number = state.ledger.pairs.len();
        let book = PairBook { event: event.to_owned(), target_type: target_type.to_owned(), published: 0 };
        state.ledger.pairs.push(book);
        u16::try_from(number).expect("pairs are bounded")
    }

    /// The number of events in memory, and their cost in bytes.
    #[must_use]
    pub(crate) fn held(&self) -> (usize, usize) {
        let state = self.lock();
        (state.in_memory(), state.bytes)
    }

    /// The number of requests so far.
    #[must_use]
    pub(crate) fn received(&self) -> u64 {
        self.lock().ledger.received()
    }

    /// The limits.
    #[must_use]
    pub(crate) fn limits(&self) -> Limits {
        self.lock().limits
    }

    /// Changes the limits; events already held stay.
    pub(crate) fn limit(&self, limits: Limits) {
        let mut state = self.lock();
        state.limits = limits;
        state.full &= !Self::is_below_the_mark(&state);
        self.note_room(&mut state);
        drop(state);
        // More may be read from the journal now.
        self.ready.notify_one();
    }

    /// The numbers of a source's book and of its secrets, by name and ids: see [`Ledger::enter`].
    pub(crate) fn enter(&self, source: &Arc<str>, secrets: impl Iterator<Item = Arc<str>>) -> (usize, Vec<usize>) {
        self.lock().ledger.enter(source, secrets)
    }

    /// Whether anything waits to be taken, in memory, on disk, or while it is being written.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        let state = self.lock();
        let on_disk = |disk: &Disk| disk.cursor < disk.synced || !disk.incoming.is_empty();
        state.waiting.is_empty() && state.replays.is_empty() && !state.disk.as_ref().is_some_and(on_disk)
    }

    /// A copy of all counts.
    #[must_use]
    pub(crate) fn snapshot(&self) -> Snapshot {
        let state = self.lock();
        let journal = state.disk.as_ref().map(|disk| JournalState {
            events: disk.events,
            bytes: disk.layout.bytes(),
            capacity: disk.layout.capacity(),
            recovered: disk.recovered.end - disk.recovered.start - disk.repeated,
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
            held: state.held,
            limits: state.limits,
            oldest: state.oldest_taken.or_else(|| state.waiting.front().map(|event| event.origin.received)),
            full: state.full,
            away: self.mode.ack == Ack::Published && self.is_away_too_long(&state),
            journal,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::event::{Fields, Origin, Outcome};
    use crate::status::SourceBook;

    const MODE: Mode = Mode { ack: Ack::Buffered, timeout: Duration::from_secs(4) };

    fn enqueue(buffer: &Buffer, event: Box<Event>) -> Result<(), NotTaken> {
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
        assert_eq!(enqueue(&buffer, event(1)), Err(NotTaken::Full));
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
        assert_eq!(enqueue(&buffer, event(16)), Err(NotTaken::Full));
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
        assert_eq!(enqueue(&buffer, event(1)), Err(NotTaken::Full));
        let mut settlement = Settlement::default();
        settlement.add(&taken[0], EventEnd::Published(0));
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
        buffer.lose(std::iter::empty());
        assert_eq!(waiter.outcome(), Some(Outcome::Failed));
        let snapshot = buffer.snapshot();
        let totals = snapshot.totals();
        assert_eq!((totals.lost, totals.held, totals.mismatch(), snapshot.bytes), (1, 1, 0, 513));
        assert!(!buffer.replay(vec![letter(1)]), "delivery has ended");
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
        assert_eq!(enqueue(&buffer, event(1)), Err(NotTaken::Draining));
        buffer.lose(std::iter::empty());
        let snapshot = buffer.snapshot();
        let totals = snapshot.totals();
        assert_eq!((totals.lost, totals.held, totals.mismatch()), (1, 0, 0));
    }
}
