//! Publish: the one task that owns order, retry, back-off and settling.
//!
//! It takes events from the queue into the [`Ring`], hands them to the session oldest first, and settles them on the
//! broker's verdicts. What follows from a refusal is decided in [`super::refusals`], from a connection in
//! [`super::connection`], from a missing answer here.
//!
//! Length: one task, whose steps are best understood side by side.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};

use crate::brokers::{
    Broker, ErrorKind, Headers, Refusal, Refused, Routed, Router, Sent, Sequence, Session, SessionError, Verdict,
};
use crate::dead_letters::SharedStore;
use crate::delivery::backlog::BacklogReader;
use crate::delivery::backoff::Backoff;
use crate::delivery::entry::Removed;
use crate::delivery::pace::Pace;
use crate::delivery::pairs::Pairs;
use crate::delivery::portion::{BETWEEN_RENEWALS, UnloadedReader, next_portion};
use crate::delivery::ring::Ring;
use crate::delivery::settings::Settings;
use crate::delivery::settle::{BATCH, Settler};
use crate::delivery::spill::Spill;
use crate::delivery::successor::{Successor, Takeover};
use crate::delivery::suspects::Suspects;
use crate::delivery::watch::{EndedWait, Watch};
use crate::delivery::window::Window;
use crate::event::{Event, Message};
use crate::metrics::Metrics;
use crate::process::logs::Throttle;
use crate::process::shutdown::Drain;
use crate::queue::{Backlog, Buffer, Taken};
use crate::status::{BrokerStatus, ConnectionState};

/// The time for which verdicts of a lost session are awaited: purging at once would turn every message in flight into a
/// repeat.
const COLLECT: Duration = Duration::from_secs(1);

/// The interval at which delivery checks whether a session that is not lost still reaches a broker.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The parts of the delivery task.
pub(crate) struct Parts {
    /// The broker that receives events.
    pub(crate) broker: Box<dyn Broker>,
    /// Its routes.
    pub(crate) router: Router,
    /// The names of its headers, for dead letters.
    pub(crate) headers: Headers,
    /// The slot for the broker and the routes that replace these after a reload.
    pub(crate) successor: Arc<Successor>,
    /// The queue that supplies events.
    pub(crate) queue: Arc<Buffer>,
    /// The counters beside the ledger.
    pub(crate) metrics: Arc<Metrics>,
    /// The state that others see.
    pub(crate) view: BrokerStatus,
    /// `[publish]`.
    pub(crate) settings: Settings,
    /// The store of dead letters, if there is one.
    pub(crate) store: Option<SharedStore>,
    /// The journal's backlog, if there is a journal.
    pub(crate) backlog: Option<BacklogReader>,
    /// The stop.
    pub(crate) drain: Drain,
}

/// The delivery task.
pub(crate) struct Delivery {
    pub(super) broker: Box<dyn Broker>,
    /// The routes by which it is connected.
    pub(super) router: Router,
    pub(super) successor: Arc<Successor>,
    pub(super) queue: Arc<Buffer>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) view: BrokerStatus,
    pub(super) settings: Settings,
    pub(super) drain: Drain,
    pub(super) backlog: Option<BacklogReader>,
    pub(super) ring: Ring,
    pub(super) taken: VecDeque<Box<Event>>,
    pub(super) verdicts: Vec<(Sequence, Verdict)>,
    pub(super) settler: Settler,
    pub(super) pairs: Pairs,
    pub(super) window: Window,
    pub(super) backoff: Backoff,
    pub(super) not_now: Throttle,
    pub(super) pace: Pace,
    /// A session exists, but its brokers do not answer.
    pub(super) away: bool,
    /// The messages without an answer.
    pub(super) watch: Watch,
    /// The addresses that the broker rejects because of its own state.
    pub(super) suspects: Suspects,
    /// The reads of what the journal alone keeps.
    pub(super) unloaded: Option<UnloadedReader>,
    /// The bytes of the events in memory that wait for their address, as the queue knows them.
    pub(super) noted_parked: usize,
    /// The progress of a successor.
    pub(super) takeover: Takeover,
    /// The progress of writing to the journal what only memory keeps, because the bridge stops.
    pub(super) spill: Spill,
}

impl Delivery {
    /// A delivery task; nothing is connected yet.
    #[must_use]
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { broker, router, headers, successor, queue, metrics, view, settings, store, backlog, drain } =
            parts;
        let unloaded = backlog.as_ref().map(|backlog| UnloadedReader::new(backlog.another()));
        let settler = Settler::new(store, headers);
        let pace = Pace::new(queue.awaits_broker());
        let ring = Ring::new(router.has_keyed_addresses());
        view.change(|view| view.location = broker.location());
        Self {
            broker,
            router,
            successor,
            queue,
            metrics,
            view,
            drain,
            backlog,
            ring,
            taken: VecDeque::new(),
            verdicts: Vec::new(),
            settler,
            pairs: Pairs::default(),
            window: Window::Open,
            backoff: Backoff::new(settings.retry_min, settings.retry_max),
            not_now: Throttle::new("a broker that rejects messages temporarily", 1, Duration::from_secs(5)),
            pace,
            away: false,
            watch: Watch::default(),
            suspects: Suspects::default(),
            unloaded,
            noted_parked: 0,
            takeover: Takeover::new(Backoff::new(settings.retry_min, settings.retry_max)),
            spill: Spill::NotBegun,
            settings,
        }
    }

    /// Delivers until the drain has ended: everything is settled, or its deadline has passed. Events left then are held
    /// where they are kept, otherwise lost. Returns the number of events lost at the exit.
    pub(crate) async fn run(mut self) -> usize {
        let mut reported = Vec::new();
        let drain_deadline = self.drain.clone();
        tokio::select! {
            () = self.adopt_renewed() => {}
            () = drain_deadline.deadline() => {}
        }
        // Read early, so that the age of the oldest event and the damage on disk are known.
        self.read_ahead().await;
        let mut is_finished = self.is_finished();
        while !is_finished {
            self.spill().await;
            self.succeed();
            let (drain, interrupted, successor) = (self.drain.clone(), self.interrupted(), self.successor.clone());
            let connected = tokio::select! {
                biased;
                connected = self.takeover.connect(&mut self.broker, &mut self.router) => connected,
                () = drain.deadline() => break,
                () = interrupted => {
                    is_finished = self.is_finished();
                    continue;
                }
                () = successor.come() => continue,
            };
            match connected {
                Ok((session, findings)) => {
                    reported.clear();
                    self.connected(&findings);
                    is_finished = self.deliver(session).await;
                    if is_finished || self.takeover.is_ready() {
                        // The state stays connected.
                        continue;
                    }
                }
                Err(error) => self.not_connected(&error, &mut reported),
            }
            self.note_connection(ConnectionState::Connecting);
            self.sweep();
            self.settle();
            let until = tokio::time::Instant::now() + self.backoff.next();
            tokio::select! {
                () = self.wait_without_session(until) => {}
                () = drain.deadline() => break,
            }
            is_finished = self.is_finished();
        }
        // Requests that wait at the deadline withdraw their events first.
        self.drain.begun().await;
        if !is_finished && !self.is_finished() {
            self.finish().await;
        }
        let _ = timeout(self.drain.overtime(), self.gather_records()).await;
        self.queue.lose(self.unsettled())
    }

    /// Waits for the next attempt to connect.
    async fn wait_without_session(&mut self, until: tokio::time::Instant) {
        let (interrupted, successor) = (self.interrupted(), self.successor.clone());
        tokio::pin!(interrupted);
        loop {
            self.begin_portion();
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                () = &mut interrupted => return,
                () = successor.come() => return,
                () = self.settler.news() => self.settle(),
                read = next_portion(&mut self.unloaded, &self.view) => self.take_portion(read),
                () = sleep(BETWEEN_RENEWALS), if self.ring.destinations.has_records() => {}
            }
        }
    }

    /// Whether nothing is left, and nothing more will arrive; what waits for its address, or as a dead letter for room, and is on
    /// disk is not waited for.
    fn is_finished(&self) -> bool {
        let is_last = || self.taken.is_empty() && self.queue.is_empty();
        let waits = || {
            (self.settler.is_empty() || self.settler.waits_for_room())
                && (self.ring.unsettled() == 0 || self.ring.waits_for_addresses())
        };
        let is_kept = || waits() && self.queue.keeps(self.unsettled());
        let is_done = || self.holds_nothing() || (self.spill.is_over() && is_kept());
        self.drain.has_begun() && is_last() && is_done()
    }

    /// The events that it holds.
    pub(super) fn unsettled(&self) -> impl Iterator<Item = &Event> {
        unsettled(&self.settler, &self.ring, &self.taken)
    }

    /// Once the bridge stops: continues to write to the journal what only memory keeps.
    async fn spill(&mut self) {
        let Self { drain, queue, settler, ring, taken, spill, .. } = self;
        if drain.has_begun() {
            spill.go_on(queue, || unsettled(settler, ring, taken)).await;
        }
    }

    fn holds_nothing(&self) -> bool {
        self.ring.unsettled() == 0 && self.taken.is_empty() && self.settler.is_empty()
    }

    /// Settles messages with a verdict, without waiting for a disk.
    pub(super) fn settle(&mut self) {
        self.note_unloaded();
        if self.settler.settle(&self.ring, &self.queue, &self.view) {
            self.ring.destinations.has_room_again();
        }
    }

    /// Resolves when the drain begins and there is something to do at once: to write to the journal what only memory
    /// keeps, or to end because nothing is left. The ring does not change meanwhile.
    fn interrupted(&self) -> impl Future<Output = ()> + Send + use<> {
        let (spill, idle) = (self.spill.clone(), self.holds_nothing());
        let (drain, queue) = (self.drain.clone(), self.queue.clone());
        async move {
            drain.begun().await;
            if !(idle && queue.is_empty()) {
                spill.news().await;
            }
        }
    }

    /// Waits briefly for the writes in progress at the end: until they finish, it is unknown what is kept.
    async fn finish(&mut self) {
        self.sweep();
        let Self { drain, queue, settler, ring, taken, spill, .. } = self;
        let until = tokio::time::Instant::now() + drain.overtime();
        spill.finish(queue, until, || unsettled(settler, ring, taken)).await;
        let _ = timeout(self.drain.overtime(), self.settler.finish()).await;
        self.settler.settle(&self.ring, &self.queue, &self.view);
    }

    /// Reads the next events, if they are on disk and the disk answers soon. Events in memory can still be withdrawn
    /// there.
    async fn read_ahead(&mut self) {
        let (Some(backlog), room) = (self.queue.on_disk(), self.room()) else { return };
        let Some(reader) = &mut self.backlog else { return };
        // The deadline only bounds the wait: the read continues, and the next call takes its result.
        let read = reader.read(&backlog, room, &self.queue, &self.view, &mut self.taken);
        let _ = timeout(CHECK_INTERVAL, read).await;
    }

    /// The number of events that delivery may take at once.
    fn room(&self) -> usize {
        self.settings.max_in_flight.saturating_sub(self.ring.span()).clamp(1, BATCH)
    }

    /// Removes all events that their senders withdrew before they were sent.
    fn sweep(&mut self) {
        self.queue.sweep();
        let Self { taken, settler, .. } = self;
        taken.retain(|event| {
            let is_withdrawn = event.waiter.as_ref().is_some_and(|waiter| waiter.is_withdrawn());
            if is_withdrawn {
                settler.withdrawn(event);
            }
            !is_withdrawn
        });
        self.sweep_ring();
    }

    fn sweep_ring(&mut self) {
        for sequence in self.ring.withdrawn() {
            if let Some(taken) = self.ring.take(sequence, false) {
                self.settler.withdrawn(&taken.message.event);
            }
        }
    }

    /// Uses one session until it is lost, everything is delivered, or another broker takes over; returns whether nothing is
    /// left to be done.
    async fn deliver(&mut self, mut session: Box<dyn Session>) -> bool {
        let ended = loop {
            self.spill().await;
            self.begin_takeover();
            self.pace().await;
            let pumped = self.pump(&mut *session);
            self.settle();
            let going = match pumped {
                Ok(backlog) => {
                    self.begin_portion();
                    self.look(&*session);
                    if self.watch(&*session) { Ok(Going::On) } else { self.wait(&mut *session, backlog).await }
                }
                Err(lost) => Err(lost),
            };
            match going {
                Ok(Going::On) => {}
                Ok(Going::Finished) => break None,
                Err(lost) => break Some(lost),
            }
        };
        // Stored verdicts may still arrive although the session is lost.
        let alone = self.ring.only_one_in_flight();
        let patience = self.drain.remaining().map_or(COLLECT, |left| left.min(COLLECT));
        session.close(patience, &mut self.verdicts).await;
        self.judge();
        self.settle();
        // Before the addresses without an answer are opened for the next session, of which there is none then.
        let is_finished = self.is_finished();
        self.ring.rewind();
        if let Some(lost) = ended {
            self.lost(lost, alone);
        }
        self.view.change(|view| {
            view.in_flight = 0;
            (view.waiting, view.waiting_count) = (Vec::new(), 0);
        });
        self.settle();
        is_finished
    }

    /// Waits a moment for more events if many pass and the last round was just before.
    async fn pace(&mut self) {
        // A small window would limit the rate.
        let is_wide = self.window.most(self.settings.max_in_flight) >= BATCH;
        let next = self.pace.wait(self.ring.handed(), tokio::time::Instant::now());
        if let Some(next) = next.filter(|_| is_wide) {
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = self.drain.deadline() => {}
            }
        }
        self.pace.begin(tokio::time::Instant::now());
    }

    /// Keeps an address without an answer from stopping the others, and reports what waits. Returns whether more can be done
    /// at once because of that.
    fn watch(&mut self, session: &dyn Session) -> bool {
        let now = Instant::now();
        if !self.watch.is_due(now) {
            return false;
        }
        self.sweep_ring();
        let mut has_changed = self.refuse_overdue(true);
        self.ring.destinations.unload_excess();
        let unanswered = self.ring.unanswered();
        let most = self.settings.max_in_flight;
        let is_buffer_full = self.queue.held().1 >= self.queue.limits().bytes;
        let is_full = self.is_full(self.most_bytes()) || self.ring.span() >= most || is_buffer_full;
        // Where no broker can be reached, no address is better than another.
        let has_room = !is_full || session.away().is_some();
        for (address, oldest) in &unanswered {
            if !self.ring.destinations.is_closed(address) && self.watch.stalls(address, oldest, has_room, now) {
                tracing::debug!(%address, "no answer at this address, other addresses go on");
                self.ring.stall(address, oldest.oldest);
                has_changed = true;
            }
        }
        let look = self.watch.look(now, &self.ring, |address| session.reason(address));
        let is_shut = self.window.is_shut();
        if !self.away && !is_shut {
            self.view.state(if look.is_silent { ConnectionState::Waiting } else { ConnectionState::Connected });
        }
        self.view.change(|view| (view.waiting, view.waiting_count) = (look.waiting, look.count));
        for text in &look.begun {
            self.note_error(ErrorKind::NotNow, text);
            tracing::warn!(broker = self.broker.name(), "events wait: {text}");
        }
        for EndedWait { address, lasted, is_confirmed } in &look.ended {
            let (broker, seconds) = (self.broker.name(), lasted.as_secs());
            if *is_confirmed {
                tracing::warn!(broker, %address, seconds, "events are confirmed again");
            } else {
                tracing::warn!(broker, %address, seconds, "no event waits any more: they were refused, or withdrawn");
            }
        }
        has_changed
    }

    /// Hands over everything that the window allows; returns the part of the journal to read next, if any.
    fn pump(&mut self, session: &mut dyn Session) -> Result<Option<Backlog>, SessionError> {
        self.adjust_window();
        self.refuse_overdue(false);
        self.ring.destinations.begin_round();
        let now = Instant::now();
        // A try beside a message that is sent alone would hide which one is at fault.
        let tries = self.window.is_open().then(tokio::time::Instant::now);
        let most_bytes = self.most_bytes();
        let mut next = None;
        loop {
            if self.is_full(most_bytes) || self.takeover.is_ready() || !session.takes_more() {
                break;
            }
            let Some((sequence, message, attempts)) = self.ring.next(tries) else {
                if self.settler.is_behind() {
                    // A broker that refuses everything at once: settle these before more are taken.
                    break;
                }
                match self.refill() {
                    Taken::Events(_) => continue,
                    Taken::OnDisk(backlog) => next = Some(backlog),
                    Taken::Nothing => {}
                }
                if self.ring.stops_avoiding() {
                    continue;
                }
                break;
            };
            if !session.takes(message) {
                self.ring.hold_back(sequence);
                continue;
            }
            if message.address.is_empty()
                && let Err(refusal) = self.pairs.route(&message.event, &mut self.router, &self.queue)
            {
                // It waited for room among the dead letters.
                self.refused(sequence, refusal, false);
                continue;
            }
            if message.event.waiter.as_ref().is_some_and(|waits| !waits.send()) {
                if let Some(taken) = self.ring.take(sequence, false) {
                    self.settler.withdrawn(&taken.message.event);
                }
                continue;
            }
            let handed = session.send(sequence, message);
            if matches!(handed, Sent::Taken) {
                tracing::debug!(id = message.event.id(), address = &*message.address, "sent an event");
            }
            if attempts > 0 && matches!(handed, Sent::Taken) {
                self.metrics.publish_retry();
            }
            self.note_sent(sequence, handed, now)?;
        }
        session.flush();
        self.view.change(|view| view.in_flight = self.ring.in_flight());
        Ok(next)
    }

    /// Notes whether the session took a message.
    fn note_sent(&mut self, sequence: Sequence, sent: Sent, now: Instant) -> Result<(), SessionError> {
        match sent {
            Sent::Taken => {
                self.ring.hand(sequence, now);
                self.pace.note(1);
            }
            Sent::Refused(refusal) => self.refused(sequence, refusal, false),
            // It was not handed over: a request that waits may take it back.
            Sent::RetryLater(reason) => {
                self.ring.unsend(sequence);
                self.shut(&reason);
            }
            Sent::Lost(lost) => {
                self.ring.unsend(sequence);
                return Err(lost);
            }
        }
        Ok(())
    }

    /// The memory that messages in flight may take, if the journal keeps what waits: those of an address that answers no
    /// more cannot be left to it, and must not fill the memory, however many addresses do so one after the other.
    fn most_bytes(&self) -> usize {
        let most = self.unloaded.as_ref().map(|_| self.ring.destinations.most_in_flight(self.queue.limits().bytes));
        most.unwrap_or(usize::MAX)
    }

    /// Whether no more may be in flight.
    fn is_full(&self, most_bytes: usize) -> bool {
        let is_large = self.ring.handed() > 0 && self.ring.handed_bytes() >= most_bytes;
        is_large || self.ring.handed() >= self.window.most(self.settings.max_in_flight)
    }

    /// Opens or narrows the window once its condition is met.
    fn adjust_window(&mut self) {
        if let Some(next) = self.window.next(&self.ring) {
            if self.window.is_shut() {
                // Whether it takes events again is known when it confirms one.
                self.view.state(ConnectionState::Connected);
            }
            if next.is_open() && !self.away {
                // What it rejected is settled, or was withdrawn: the next event shows whether it takes events again.
                self.queue.note_connection(ConnectionState::Connected);
            }
            self.window = next;
        }
    }

    pub(super) fn shut(&mut self, reason: &str) {
        self.note_not_now(reason);
        if !self.window.is_shut() {
            self.window = Window::Shut { again: tokio::time::Instant::now() + self.backoff.next() };
        }
    }

    /// Takes events from the queue into the ring, if there is room.
    fn refill(&mut self) -> Taken {
        let mut room = self.settings.max_in_flight.saturating_sub(self.ring.span()).min(BATCH);
        if room == 0 && self.ring.is_avoiding() {
            // All that is left is for an address that was rejected; only another one shows whether the broker rejects all.
            room = 1;
        }
        if room == 0 {
            return Taken::Nothing;
        }
        let mut found = Taken::Events(self.taken.len());
        if self.taken.is_empty() {
            found = self.queue.take(room, &mut self.taken);
        }
        // Checked after they were taken, so that events accepted since the reload are not sent to an old address, and
        // follow those that are given another one.
        if self.successor.waits() || self.takeover.holds() || self.ring.destinations.unloaded().1 > 0 {
            return Taken::Nothing;
        }
        while let Some(event) = self.taken.pop_front() {
            let (message, pair, refusal) = self.message_of(event);
            let sequence = self.ring.push(message, pair);
            if let Some(refusal) = refusal {
                self.refused(sequence, refusal, false);
            }
        }
        self.note_unloaded();
        found
    }

    /// The message of an event, the number of its pair, and the refusal where it has no address.
    pub(super) fn message_of(&mut self, event: Box<Event>) -> (Message, u16, Option<Refusal>) {
        match self.pairs.route(&event, &mut self.router, &self.queue) {
            Ok(Routed { address, key, pair }) => (Message { event, address, key }, pair, None),
            Err(refusal) => {
                let pair = self.pairs.number(&event, &self.queue);
                (Message { event, address: "".into(), key: "".into() }, pair, Some(refusal))
            }
        }
    }

    /// Waits for verdicts, new events (those of `backlog` are to be read first), or time, and judges what arrived.
    async fn wait(&mut self, session: &mut dyn Session, backlog: Option<Backlog>) -> Result<Going, SessionError> {
        // If no broker answers, verdicts may never arrive, least of all for an address that is wrong.
        let is_quiet = self.ring.handed() == 0 || session.away().is_some() || self.takeover.is_late();
        let is_held = self.takeover.is_ready() || self.takeover.holds();
        if self.is_finished() || (self.takeover.is_ready() && is_quiet) {
            return Ok(Going::Finished);
        }
        let again = self.window.again(&self.ring);
        // One that is due and was not sent waits for something else.
        let next_try = self
            .ring
            .destinations
            .next_try()
            .filter(|at| self.window.is_open() && *at > tokio::time::Instant::now());
        let has_room = self.window.is_open() && self.ring.span() < self.settings.max_in_flight;
        let takes_more = has_room && !is_held && session.takes_more() && backlog.is_none();
        let interrupted = self.interrupted();
        let room = self.room();
        let reading = async {
            match (&mut self.backlog, &backlog) {
                (Some(reader), Some(backlog)) => {
                    reader.read(backlog, room, &self.queue, &self.view, &mut self.taken).await;
                }
                _ => std::future::pending().await,
            }
        };
        let outcome = tokio::select! {
            outcome = session.verdicts(&mut self.verdicts) => outcome,
            () = self.queue.ready(), if takes_more => Ok(()),
            () = reading => Ok(()),
            read = next_portion(&mut self.unloaded, &self.view) => {
                self.take_portion(read);
                Ok(())
            }
            () = self.successor.come() => Ok(()),
            failed = self.takeover.news() => {
                if let Some(error) = failed {
                    self.note_takeover(&error);
                }
                Ok(())
            }
            () = sleep_until(again), if again.is_some() => Ok(()),
            () = sleep_until(next_try), if next_try.is_some() => Ok(()),
            () = self.settler.news() => Ok(()),
            () = interrupted => Ok(()),
            () = sleep(CHECK_INTERVAL) => {
                self.sweep();
                self.ring.look_again();
                Ok(())
            }
            () = self.drain.deadline() => return Ok(Going::Finished),
        };
        self.judge();
        if session.has_changed() {
            self.ring.destinations.try_at_once();
        }
        self.settle();
        outcome.map(|()| Going::On)
    }

    /// Applies the verdicts collected so far.
    fn judge(&mut self) {
        let now = Instant::now();
        let mut verdicts = std::mem::take(&mut self.verdicts);
        if !verdicts.is_empty() {
            self.ring.look_again();
        }
        let mut is_wrong = false;
        for (sequence, verdict) in verdicts.drain(..) {
            match verdict {
                Verdict::Stored => {
                    let taken = self.ring.take(sequence, true);
                    self.stored(taken, now);
                }
                Verdict::StoredAt(position) => {
                    let taken = self.ring.take_at(sequence, position);
                    self.stored(taken, now);
                }
                Verdict::Refused(refusal) => {
                    is_wrong |= matches!(refusal.kind, Refused::AddressWrong(_));
                    self.refused(sequence, refusal, false);
                }
                Verdict::Unanswered(refusal) => {
                    self.ring.unanswered_for_long(sequence);
                    self.refused(sequence, refusal, false);
                }
                Verdict::RetryLater(reason) => {
                    self.ring.unanswered_for_long(sequence);
                    self.ring.retry(sequence);
                    self.shut(&reason);
                }
                Verdict::Nacked(reason) => self.refused(sequence, Refusal::unable(reason), true),
            }
        }
        if is_wrong {
            self.refuse_overdue(true);
        }
        self.verdicts = verdicts;
    }

    fn stored(&mut self, taken: Option<Removed>, now: Instant) {
        if let Some(taken) = taken {
            let Message { address, key, .. } = &taken.message;
            tracing::debug!(id = taken.message.event.id(), address = &**address, "the broker stored an event");
            self.watch.confirmed(&taken.message, now, || self.ring.address(address, key));
            self.suspects.stored(|known| known.is(address, key));
            self.settler.published(&taken, now, &self.metrics);
            self.backoff.reset();
        }
    }
}

/// The events that delivery holds: refused, in the ring, and taken from the queue.
fn unsettled<'e>(
    settler: &'e Settler,
    ring: &'e Ring,
    taken: &'e VecDeque<Box<Event>>,
) -> impl Iterator<Item = &'e Event> {
    settler.refused_events().chain(ring.events()).chain(taken.iter().map(|event| &**event))
}

enum Going {
    On,
    Finished,
}

async fn sleep_until(until: Option<tokio::time::Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}
