//! Publish: the one task that owns order, retry, back-off and settling.
//!
//! It takes events from the queue into the [`Ring`], hands them to the session oldest first, and settles them on the
//! broker's verdicts. The consequences of a refusal of each kind, of a missing answer and of a lost session are decided
//! only here.
//!
//! Length: all these decisions are in one place, because they are best understood side by side.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};

use crate::brokers::{
    Broker, Cause, ConnectError, ErrorKind, Finding, Headers, Refusal, RefusalReason, Refused, Routed, Router,
    Sent, Sequence, Session, SessionError, Verdict,
};
use crate::dead_letters::SharedStore;
use crate::delivery::backlog::BacklogReader;
use crate::delivery::backoff::Backoff;
use crate::delivery::destinations::AddressRefusal;
use crate::delivery::pace::Pace;
use crate::delivery::pairs::Pairs;
use crate::delivery::rejections::Rejections;
use crate::delivery::ring::{Removed, Ring};
use crate::delivery::settings::Settings;
use crate::delivery::settle::Settler;
use crate::delivery::spill::{self, Spill, Unsettled};
use crate::delivery::successor::{Successor, Takeover};
use crate::delivery::watch::Watch;
use crate::delivery::window::Window;
use crate::event::{Event, Kept, Message};
use crate::metrics::Metrics;
use crate::process::logs::Throttle;
use crate::process::shutdown::Drain;
use crate::queue::{Backlog, BrokerState, Buffer, Taken};
use crate::status::{BrokerStatus, ConnectionState};

/// The time for which verdicts of a lost session are awaited: purging at once would turn every message in flight into a
/// repeat.
const COLLECT: Duration = Duration::from_secs(1);

/// The most room that the events already taken from the queue make at once; a batch shares one lock.
const BATCH: usize = 256;

/// The number of bytes of records that are written again at once.
const RENEWED: usize = 4 << 20;

/// The interval at which delivery looks for records to be written again: less than a fast sender needs for a segment.
const BETWEEN_RENEWALS: Duration = Duration::from_millis(100);

/// The interval at which delivery checks whether a session that is not lost still reaches a broker.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The begin of the finding that says why a successor is not in use.
const NOT_IN_USE: &str = "the reloaded settings of the broker are not in use, the old connection stays";

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
    broker: Box<dyn Broker>,
    /// The routes by which it is connected.
    router: Router,
    successor: Arc<Successor>,
    queue: Arc<Buffer>,
    metrics: Arc<Metrics>,
    view: BrokerStatus,
    settings: Settings,
    drain: Drain,
    backlog: Option<BacklogReader>,
    ring: Ring,
    taken: VecDeque<Box<Event>>,
    verdicts: Vec<(Sequence, Verdict)>,
    settler: Settler,
    pairs: Pairs,
    window: Window,
    backoff: Backoff,
    not_now: Throttle,
    pace: Pace,
    /// A session exists, but its brokers do not answer.
    away: bool,
    /// The messages without an answer.
    watch: Watch,
    /// The addresses that the broker rejects because of its own state.
    rejections: Rejections,
    /// The last look for records to be written again.
    renewed: Option<tokio::time::Instant>,
    /// The progress of a successor.
    takeover: Takeover,
    /// The progress of writing to the journal what only memory keeps, because the bridge stops.
    spill: Spill,
}

impl Delivery {
    /// A delivery task; nothing is connected yet.
    #[must_use]
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { broker, router, headers, successor, queue, metrics, view, settings, store, backlog, drain } =
            parts;
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
            rejections: Rejections::default(),
            renewed: None,
            takeover: Takeover::new(Backoff::new(settings.retry_min, settings.retry_max)),
            spill: Spill::NotBegun,
            settings,
        }
    }

    /// Delivers until the drain has ended: everything is settled, or its deadline has passed. Events left then are held
    /// where they are kept, otherwise lost. Returns the number of events lost at the exit.
    pub(crate) async fn run(mut self) -> usize {
        let mut reported = Vec::new();
        // Read early, so that the age of the oldest event and the damage on disk are known.
        self.read_ahead().await;
        while !self.is_finished() {
            self.spill().await;
            self.succeed();
            let (drain, interrupted, successor) = (self.drain.clone(), self.interrupted(), self.successor.clone());
            let connected = tokio::select! {
                biased;
                connected = self.takeover.connect(&mut self.broker, &mut self.router) => connected,
                () = drain.deadline() => break,
                () = interrupted => continue,
                () = successor.come() => continue,
            };
            match connected {
                Ok((session, findings)) => {
                    reported.clear();
                    self.connected(&findings);
                    self.deliver(session).await;
                    if self.takeover.is_ready() {
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
        }
        if !self.is_finished() {
            self.finish().await;
        }
        let held = self.settler.refused_events().chain(self.ring.events()).map(|event| &*event);
        let lost = self.queue.lose_taken(held.chain(self.taken.iter().map(|event| &**event)));
        self.queue.lose_waiting();
        lost
    }

    /// Waits for the next attempt to connect.
    async fn wait_without_session(&mut self, until: tokio::time::Instant) {
        let (interrupted, successor) = (self.interrupted(), self.successor.clone());
        tokio::pin!(interrupted);
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                () = &mut interrupted => return,
                () = successor.come() => return,
                () = self.settler.news() => self.settle(),
            }
        }
    }

    /// Replaces the broker by its successor, if there is one and no session to keep. Messages in the ring keep their
    /// addresses.
    fn succeed(&mut self) {
        if let Some((successor, _)) = self.successor.take() {
            self.takeover.give_up();
            (self.broker, self.router) = (successor.broker, successor.router);
            self.view.change(|view| view.location = self.broker.location());
            tracing::info!(broker = self.broker.name(), "connecting with the settings that were reloaded");
        }
    }

    /// Lets a successor connect beside the session.
    fn begin_takeover(&mut self) {
        if let Some((successor, change)) = self.successor.take() {
            tracing::info!(broker = self.broker.name(), "connecting with the settings that were reloaded");
            self.takeover.begin(successor, change);
        }
    }

    /// Reports that the successor could not connect, in the log once for each reason.
    fn note_takeover(&self, error: &ConnectError) {
        let text = format!("{NOT_IN_USE}: {}", error.text);
        self.metrics.broker_error(error.kind);
        self.view.error(error.kind, &text);
        if !self.view.copy().findings.contains(&text) {
            tracing::error!(broker = self.broker.name(), kind = error.kind.name(), "{text}");
            self.view.change(|view| {
                view.findings.retain(|finding| !finding.starts_with(NOT_IN_USE));
                view.findings.push(text);
            });
        }
    }

    /// Whether nothing is left, and nothing more will arrive; what waits for its address and is on disk is not waited for.
    fn is_finished(&self) -> bool {
        let is_last = || self.taken.is_empty() && self.settler.is_empty() && self.queue.is_empty();
        let is_done = || self.ring.unsettled() == 0 || (self.spill.is_over() && self.ring.is_kept_for_addresses());
        self.drain.has_begun() && is_last() && is_done()
    }

    fn holds_nothing(&self) -> bool {
        self.ring.unsettled() == 0 && self.taken.is_empty() && self.settler.is_empty()
    }

    /// Settles messages with a verdict, without waiting for a disk.
    fn settle(&mut self) {
        if self.settler.settle(&self.ring, &self.queue, &self.view) {
            self.ring.try_at_once();
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

    /// Once the bridge stops: writes what only memory keeps to the journal, first.
    async fn spill(&mut self) {
        if self.drain.has_begun() && !self.spill.is_over() {
            let Self { spill, queue, settler, ring, taken, .. } = self;
            spill.advance(queue, &mut Unsettled { settler, ring, taken }).await;
        }
    }

    /// Waits briefly for the writes in progress at the end: until they finish, it is unknown what is kept.
    async fn finish(&mut self) {
        let Self { spill, queue, settler, ring, taken, view, .. } = self;
        let _ = timeout(spill::LAST, settler.finish()).await;
        settler.settle(ring, queue, view);
        spill.finish(queue, &mut Unsettled { settler, ring, taken }).await;
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
        self.sweep_ring();
    }

    fn sweep_ring(&mut self) {
        for sequence in self.ring.withdrawn() {
            if let Some(taken) = self.ring.take(sequence, false) {
                self.settler.withdrawn(&taken);
            }
        }
    }

    /// Notes the state of the connection, also for the queue.
    fn note_connection(&self, state: ConnectionState) {
        self.view.state(state);
        self.queue.note_broker(if state == ConnectionState::Connected {
            BrokerState::Reachable
        } else {
            BrokerState::Unreachable
        });
    }

    fn connected(&mut self, findings: &[Finding]) {
        let texts: Vec<String> = findings
            .iter()
            .filter_map(|finding| match finding {
                Finding::Good(_) => None,
                Finding::Warning(text) | Finding::Missing(text) => Some(text.clone()),
            })
            .collect();
        if self.view.copy().findings != texts {
            for text in &texts {
                tracing::warn!(broker = self.broker.name(), "{text}");
            }
        }
        self.view.change(|view| (view.findings, view.location) = (texts, self.broker.location()));
        let Self { router, pairs, queue, ring, .. } = self;
        let mut route = |event: &Event| pairs.route(event, router, queue).ok();
        ring.reroute(|event| route(event).map(|Routed { address, key, .. }| (address, key)));
        self.note_connection(ConnectionState::Connected);
        self.away = false;
        tracing::info!(broker = self.broker.name(), location = self.broker.location(), "connected");
    }

    /// Logs why there is no session, once per reason; the last two are known, because two brokers may take turns.
    fn not_connected(&mut self, error: &ConnectError, reported: &mut Vec<String>) {
        self.metrics.broker_error(error.kind);
        self.view.error(error.kind, &error.text);
        if reported.contains(&error.text) {
            return;
        }
        reported.truncate(1);
        reported.insert(0, error.text.clone());
        let (broker, kind, text) = (self.broker.name(), error.kind.name(), &error.text);
        if error.kind == ErrorKind::NotNow {
            tracing::warn!(broker, "the broker rejects messages temporarily, backing off: {text}");
        } else {
            tracing::error!(broker, kind, "no connection to the broker, trying again: {text}");
        }
    }

    /// Uses one session until it is lost, everything is delivered, or another broker takes over.
    async fn deliver(&mut self, mut session: Box<dyn Session>) {
        let ended = loop {
            self.spill().await;
            self.begin_takeover();
            self.pace().await;
            let pumped = self.pump(&mut *session);
            self.settle();
            let going = match pumped {
                Ok(backlog) => {
                    self.renew();
                    self.look(&*session);
                    self.watch(&*session);
                    self.wait(&mut *session, backlog).await
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
        self.ring.rewind();
        if let Some(lost) = ended {
            self.lost(lost, alone);
        }
        self.view.change(|view| {
            view.in_flight = 0;
            (view.waiting, view.waiting_count) = (Vec::new(), 0);
        });
        self.settle();
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

    /// Notes when the brokers become unreachable or reachable again, for client libraries that reconnect by themselves.
    fn look(&mut self, session: &dyn Session) {
        match session.away() {
            Some(error) if !self.away => {
                self.away = true;
                self.metrics.broker_error(error.kind);
                self.view.error(error.kind, &error.text);
                self.note_connection(ConnectionState::Connecting);
                tracing::error!(
                    broker = self.broker.name(),
                    kind = error.kind.name(),
                    "the broker is away, its client tries again: {}",
                    error.text
                );
            }
            Some(error) => self.view.error(error.kind, &error.text),
            None if self.away => {
                self.away = false;
                self.note_connection(ConnectionState::Connected);
                tracing::info!(broker = self.broker.name(), "connected again");
            }
            None => {}
        }
    }

    /// Keeps an address without an answer from stopping the others, and reports what waits.
    fn watch(&mut self, session: &dyn Session) {
        let now = Instant::now();
        if !self.watch.is_due(now) {
            return;
        }
        self.sweep_ring();
        self.refuse_overdue(true);
        let unanswered = self.ring.unanswered();
        let most = self.settings.max_in_flight;
        let is_full = self.ring.handed() >= self.window.most(most) || self.ring.span() >= most;
        // Where no broker can be reached, no address is better than another.
        let has_room = !is_full || session.away().is_some();
        for (address, oldest) in &unanswered {
            if !self.ring.is_closed(address) && self.watch.stalls(address, oldest, has_room, now) {
                tracing::debug!(%address, "no answer to what goes there, the others pass");
                self.ring.stall(address, oldest.oldest);
            }
        }
        let look = self.watch.look(now, &self.ring, |address| session.reason(address));
        let is_shut = self.window.is_shut();
        if !self.away && !is_shut {
            self.view.state(if look.is_silent { ConnectionState::Waiting } else { ConnectionState::Connected });
        }
        self.view.change(|view| (view.waiting, view.waiting_count) = (look.waiting, look.count));
        for text in &look.begun {
            self.metrics.broker_error(ErrorKind::NotNow);
            self.view.error(ErrorKind::NotNow, text);
            tracing::warn!(broker = self.broker.name(), "events wait: {text}");
        }
        for (address, lasted) in &look.ended {
            let seconds = lasted.as_secs();
            tracing::warn!(broker = self.broker.name(), %address, seconds, "events are confirmed again");
        }
    }

    /// Has old records of events that wait for their address written again, so that their segments can be reused.
    fn renew(&mut self) {
        let now = tokio::time::Instant::now();
        if self.renewed.is_some_and(|renewed| now < renewed + BETWEEN_RENEWALS) {
            return;
        }
        self.renewed = Some(now);
        let held = self.ring.parked_bytes();
        if held > 0 && self.queue.wants_renewal(held) {
            self.queue.renew(self.ring.parked_events(), held, RENEWED);
        }
    }

    /// Notes that the session is lost, and finds the message that caused it, if there is one.
    fn lost(&mut self, lost: SessionError, alone: Option<Sequence>) {
        self.metrics.broker_error(lost.kind);
        self.view.error(lost.kind, &lost.text);
        tracing::warn!(
            broker = self.broker.name(),
            in_flight = self.ring.in_flight(),
            "lost the session: {}",
            lost.text
        );
        match lost.suspect {
            Cause::Message(refusal) => {
                if let Some(culprit) = alone {
                    // Alone in flight, it closed the session.
                    self.refused(culprit, refusal, false);
                    self.window = Window::Open;
                } else {
                    self.window = Window::one(&self.ring, true);
                }
                self.backoff.reset();
            }
            Cause::Network => {
                self.window = self.window.after_loss();
            }
        }
    }

    /// Hands over everything that the window allows; returns the part of the journal to read next, if any.
    fn pump(&mut self, session: &mut dyn Session) -> Result<Option<Backlog>, SessionError> {
        self.adjust_window();
        self.refuse_overdue(false);
        let now = Instant::now();
        // A try beside a message that is sent alone would hide which one is at fault.
        let tries = self.window.is_open().then(tokio::time::Instant::now);
        let mut next = None;
        loop {
            let is_full = self.ring.handed() >= self.window.most(self.settings.max_in_flight);
            if is_full || self.takeover.is_ready() || !session.takes_more() {
                break;
            }
            let Some((sequence, message, attempts)) = self.ring.next(tries) else {
                if self.settler.refused_count() >= BATCH {
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
                let address = message.address.clone();
                self.ring.hold_back(address);
                continue;
            }
            if message.event.waiter.as_ref().is_some_and(|waits| !waits.send()) {
                if let Some(taken) = self.ring.take(sequence, false) {
                    self.settler.withdrawn(&taken);
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
            match handed {
                Sent::Taken => {
                    self.ring.hand(sequence, now);
                    self.pace.note(1);
                }
                Sent::Refused(refusal) => self.refused(sequence, refusal, false),
                Sent::RetryLater(reason) => self.shut(&reason),
                Sent::Lost(lost) => return Err(lost),
            }
        }
        session.flush();
        self.view.change(|view| view.in_flight = self.ring.in_flight());
        Ok(next)
    }

    /// Opens or narrows the window once its condition is met.
    fn adjust_window(&mut self) {
        if let Some(next) = self.window.next(&self.ring) {
            if self.window.is_shut() {
                // Whether it takes events again is known when it confirms one.
                self.view.state(ConnectionState::Connected);
            }
            self.window = next;
        }
    }

    fn shut(&mut self, reason: &str) {
        self.note_not_now(reason);
        if !self.window.is_shut() {
            self.window = Window::Shut { again: tokio::time::Instant::now() + self.backoff.next() };
        }
    }

    /// Decides what follows from a refusal of each kind.
    fn refused(&mut self, sequence: Sequence, refusal: Refusal, is_nacked: bool) {
        match refusal.kind {
            Refused::Event(_) if self.settler.is_blocked() => {
                let text = format!("dead letters have no room for an event that is refused: {}", refusal.text);
                self.park(sequence, Refusal::unable(text), false);
            }
            Refused::Event(_) => self.refuse(sequence, refusal),
            Refused::AddressWrong(_) | Refused::AddressUnable => self.park(sequence, refusal, is_nacked),
            Refused::Broker => self.rejected(sequence, &refusal),
        }
    }

    /// Parks the address of a message; the others do not wait for it.
    fn park(&mut self, sequence: Sequence, refusal: Refusal, is_nacked: bool) {
        self.metrics.broker_error(ErrorKind::NotNow);
        self.view.error(ErrorKind::NotNow, &refusal.text);
        self.ring.unsend(sequence);
        let backoff = Backoff::new(self.settings.retry_min, self.settings.retry_max);
        let now = tokio::time::Instant::now();
        self.ring.park(sequence, AddressRefusal { refusal, is_nacked, backoff, now });
    }

    /// Waits, because the broker takes nothing; an address that it rejects while others are stored is wrong.
    fn rejected(&mut self, sequence: Sequence, refusal: &Refusal) {
        let Some(address) = self.ring.address_of(sequence) else { return };
        if self.rejections.rejected(&address) {
            let text = format!("{}; others are stored meanwhile", refusal.text);
            return self.park(sequence, Refusal::wrong(RefusalReason::Other, text), false);
        }
        self.ring.unsend(sequence);
        self.ring.retry(sequence);
        self.ring.avoid(address);
        self.shut(&refusal.text);
    }

    /// Makes dead letters of what has waited too long at a wrong address. `all`: of each event whose own time is over, too:
    /// a replayed one, and one whose sender needs an answer soon.
    fn refuse_overdue(&mut self, all: bool) {
        if self.settler.is_blocked() {
            return;
        }
        let half = self.settings.timeout / 2;
        let is_late = |event: &Event| {
            let is_awaited = event.waiter.as_ref().is_some_and(|waiter| waiter.outcome().is_none());
            event.kept == Kept::DeadLetter || (is_awaited && event.accepted.elapsed() >= half)
        };
        let is_late: &dyn Fn(&Event) -> bool = &is_late;
        for (sequence, refusal) in self.ring.overdue(self.settings.refuse_after, all.then_some(is_late)) {
            self.refuse(sequence, refusal);
        }
    }

    fn note_not_now(&mut self, reason: &str) {
        self.metrics.broker_error(ErrorKind::NotNow);
        self.view.error(ErrorKind::NotNow, reason);
        self.note_connection(ConnectionState::Waiting);
        if self.not_now.admits() {
            tracing::warn!(
                broker = self.broker.name(),
                "the broker rejects messages temporarily, backing off: {reason}"
            );
        }
    }

    fn refuse(&mut self, sequence: Sequence, refusal: Refusal) {
        if let Some(taken) = self.ring.take(sequence, false) {
            self.settler.refused(taken, refusal, &self.metrics);
        }
    }

    /// Takes events from the queue into the ring, if there is room.
    fn refill(&mut self) -> Taken {
        let room = self.settings.max_in_flight.saturating_sub(self.ring.span()).min(BATCH);
        if room == 0 {
            return Taken::Nothing;
        }
        let mut found = Taken::Events(self.taken.len());
        if self.taken.is_empty() {
            found = self.queue.take(room, &mut self.taken);
        }
        // Checked after they were taken, so that events accepted since the reload are not sent to an old address.
        if self.successor.waits() || self.takeover.holds() {
            return Taken::Nothing;
        }
        while let Some(event) = self.taken.pop_front() {
            match self.pairs.route(&event, &mut self.router, &self.queue) {
                Ok(Routed { address, key, pair }) => self.ring.push(Message { event, address, key }, pair),
                Err(refusal) => {
                    let pair = self.pairs.number(&event, &self.queue);
                    let sequence = self.ring.end();
                    self.ring.push(Message { event, address: "".into(), key: "".into() }, pair);
                    self.refuse(sequence, refusal);
                }
            }
        }
        found
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
        let next_try = self.ring.next_try().filter(|at| self.window.is_open() && *at > tokio::time::Instant::now());
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
            self.ring.try_at_once();
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
                Verdict::RetryLater(reason) => {
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
            self.rejections.stored(|known| known.is(address, key));
            self.settler.published(&taken, now, &self.metrics);
            self.backoff.reset();
        }
    }
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
