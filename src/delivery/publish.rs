//! Publish: the one task that owns order, retry, back-off and settling.
//!
//! It takes events from the queue into the [`Ring`], hands them to the session oldest first, and settles them on the
//! broker's verdicts. What the contract calls Lost, `RetryLater`, Refused and suspect is decided here and nowhere else.
//!
//! Length: the one place of all these decisions, which are only understood side by side.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};

use crate::brokers::{
    Broker, Cause, ConnectError, ErrorKind, Finding, Refusal, Sent, Sequence, Session, SessionError, Verdict,
};
use crate::dead_letters::Store;
use crate::delivery::backlog::BacklogReader;
use crate::delivery::backoff::Backoff;
use crate::delivery::pairs::Pairs;
use crate::delivery::ring::{Removed, Ring};
use crate::delivery::settings::Settings;
use crate::delivery::settle::Settler;
use crate::delivery::spill::{self, Spill, Unsettled};
use crate::delivery::successor::Successor;
use crate::delivery::window::Window;
use crate::event::{Event, Message};
use crate::metrics::Metrics;
use crate::process::logs::Throttle;
use crate::process::shutdown::Drain;
use crate::queue::{Backlog, BrokerState, Buffer, Taken};
use crate::status::{BrokerStatus, ConnectionState};

/// How long verdicts of a lost session are waited for: purging at once turns every message in flight into a repeat.
const COLLECT: Duration = Duration::from_secs(1);

/// How much room the events already taken from the queue make at once; a batch shares one lock.
const BATCH: usize = 256;

/// How often it is looked whether a session that is not lost still reaches a broker.
const LOOK: Duration = Duration::from_secs(1);

/// Between the beginnings of two rounds: under load one wake of this thread takes many events and many verdicts, which
/// saves a tenth of the processor time with RabbitMQ and NATS. An event that comes after a pause goes out at once.
const PACE: Duration = Duration::from_millis(1);

/// What the delivery task is made of.
pub(crate) struct Parts {
    /// Where events go.
    pub(crate) broker: Box<dyn Broker>,
    /// Where they go after a reload that says so.
    pub(crate) successor: Arc<Successor>,
    /// Where they come from.
    pub(crate) queue: Arc<Buffer>,
    /// What is counted beside the books.
    pub(crate) metrics: Arc<Metrics>,
    /// What others see.
    pub(crate) view: BrokerStatus,
    /// `[publish]`.
    pub(crate) settings: Settings,
    /// Dead letters, where they are kept.
    pub(crate) store: Option<Arc<Mutex<Store>>>,
    /// The journal's backlog, where there is a journal.
    pub(crate) backlog: Option<BacklogReader>,
    /// The stop.
    pub(crate) drain: Drain,
}

/// The delivery task.
pub(crate) struct Delivery {
    broker: Box<dyn Broker>,
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
    /// When the last round began.
    round: tokio::time::Instant,
    /// The session lives, but its brokers do not answer.
    away: bool,
    /// The progress of writing to the journal what only memory keeps, because the bridge stops.
    spill: Spill,
}

impl Delivery {
    /// A delivery task; nothing is connected yet.
    #[must_use]
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { broker, successor, queue, metrics, view, settings, store, backlog, drain } = parts;
        let settler = Settler::new(store, broker.headers().clone());
        Self {
            broker,
            successor,
            queue,
            metrics,
            view,
            drain,
            backlog,
            ring: Ring::default(),
            taken: VecDeque::new(),
            verdicts: Vec::new(),
            settler,
            pairs: Pairs::default(),
            window: Window::Open,
            backoff: Backoff::new(settings.retry_min, settings.retry_max),
            not_now: Throttle::new(1, Duration::from_secs(5)),
            round: tokio::time::Instant::now(),
            away: false,
            spill: Spill::NotBegun,
            settings,
        }
    }

    /// Delivers until the drain is over: everything is settled, or its deadline has come. What is left then is held
    /// where it is kept, else lost. Says how many events were lost at the exit.
    pub(crate) async fn run(mut self) -> usize {
        let mut reported = String::new();
        // Seen early: how old the oldest event is, and what the disk has damaged.
        self.look_at_the_disk().await;
        while !self.is_finished() {
            self.spill().await;
            self.succeed();
            let (drain, interrupted, successor) = (self.drain.clone(), self.interrupted(), self.successor.clone());
            let connected = tokio::select! {
                biased;
                connected = self.broker.connect() => connected,
                () = drain.deadline() => break,
                () = interrupted => continue,
                () = successor.come() => continue,
            };
            match connected {
                Ok((session, findings)) => {
                    reported.clear();
                    self.connected(&findings);
                    self.deliver(session).await;
                }
                Err(error) => self.not_connected(&error, &mut reported),
            }
            self.note_connection(ConnectionState::Connecting);
            self.sweep();
            self.settle().await;
            let wait = self.backoff.next();
            tokio::select! {
                () = sleep(wait) => {}
                () = drain.deadline() => break,
                () = self.interrupted() => {}
                () = self.successor.come() => {}
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

    /// Lets the successor take over, where one waits. What is in the ring keeps its address.
    fn succeed(&mut self) {
        if let Some(successor) = self.successor.take() {
            self.broker = successor;
            tracing::info!(broker = self.broker.name(), "connecting with the routes that were reloaded");
        }
    }

    /// Nothing is left, and nothing will come.
    fn is_finished(&self) -> bool {
        self.drain.has_begun() && self.holds_nothing() && self.queue.is_empty()
    }

    fn holds_nothing(&self) -> bool {
        self.ring.unsettled() == 0 && self.taken.is_empty() && self.settler.is_empty()
    }

    /// Settles what is judged; a disk that fails holds it up, but not the stop.
    async fn settle(&mut self) {
        let interrupted = self.interrupted();
        tokio::select! {
            biased;
            () = self.settler.settle(&self.ring, &self.queue, &self.view) => {}
            () = interrupted => {}
            () = self.drain.deadline() => {}
        }
    }

    /// Resolves when the drain begins and there is something to be done at once: to write to the journal what only
    /// memory keeps, or to end because nothing is left. The ring stands still meanwhile.
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

    /// Waits for the writes that are under way at the end, for a moment: until they answer it is unknown what is kept.
    async fn finish(&mut self) {
        let Self { spill, queue, settler, ring, taken, view, .. } = self;
        let _ = timeout(spill::LAST, settler.written(ring, queue, view)).await;
        spill.finish(queue, &mut Unsettled { settler, ring, taken }).await;
    }

    /// Reads what is next, where that is on disk, if the disk answers soon. What is in memory can still be taken back there.
    async fn look_at_the_disk(&mut self) {
        let (Some(backlog), room) = (self.queue.on_disk(), self.room()) else { return };
        let Some(reader) = &mut self.backlog else { return };
        // The deadline only bounds the wait: the read continues, and the next call takes its result.
        let read = reader.read(&backlog, room, &self.queue, &self.view, &mut self.taken);
        let _ = timeout(LOOK, read).await;
    }

    /// How many events delivery may take at once.
    fn room(&self) -> usize {
        self.settings.max_in_flight.saturating_sub(self.ring.span()).clamp(1, BATCH)
    }

    /// Lets go of everything that its sender took back before it was sent.
    fn sweep(&mut self) {
        self.queue.sweep();
        for sequence in self.ring.withdrawn() {
            if let Some(taken) = self.ring.take(sequence, false) {
                self.settler.withdrawn(&taken);
            }
        }
    }

    /// Notes how things stand with the broker, also for those who wait for it.
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
        self.view.change(|view| view.findings = texts);
        self.note_connection(ConnectionState::Connected);
        self.away = false;
        tracing::info!(broker = self.broker.name(), location = self.broker.location(), "connected");
    }

    /// No session: says why, once as long as that stays the same.
    fn not_connected(&mut self, error: &ConnectError, reported: &mut String) {
        self.metrics.broker_error(error.kind);
        self.view.error(error.kind, &error.text);
        if error.text == *reported {
            return;
        }
        reported.clone_from(&error.text);
        let (broker, kind, text) = (self.broker.name(), error.kind.name(), &error.text);
        if error.kind == ErrorKind::NotNow {
            tracing::warn!(broker, "the broker takes nothing for now, waiting: {text}");
        } else {
            tracing::error!(broker, kind, "no connection to the broker, trying again: {text}");
        }
    }

    /// Uses one session until it is lost, everything is delivered, or another broker takes over.
    async fn deliver(&mut self, mut session: Box<dyn Session>) {
        let ended = loop {
            self.spill().await;
            self.pace().await;
            let pumped = self.pump(&mut *session);
            self.settle().await;
            let going = match pumped {
                Ok(Pumped::All(backlog)) => {
                    self.look(&*session);
                    self.wait(&mut *session, backlog).await
                }
                Ok(Pumped::Some) => {
                    tokio::task::yield_now().await;
                    Ok(Going::On)
                }
                Err(lost) => Err(lost),
            };
            match going {
                Ok(Going::On) => {}
                Ok(Going::Finished) => break None,
                Err(lost) => break Some(lost),
            }
        };
        // Stored verdicts may be on their way even though the session is lost.
        let alone = (self.ring.handed() == 1).then(|| self.ring.handed_sequences().next()).flatten();
        let patience = self.drain.remaining().map_or(COLLECT, |left| left.min(COLLECT));
        session.close(patience, &mut self.verdicts).await;
        self.judge();
        if let Some(lost) = ended {
            self.lost(lost, alone);
        }
        self.ring.rewind();
        self.view.change(|view| view.in_flight = 0);
        self.settle().await;
    }

    /// Leaves a moment for more to come where the last round was just now.
    async fn pace(&mut self) {
        let next = self.round + PACE;
        // A small window would be what limits the rate.
        let is_wide = self.window.most(self.settings.max_in_flight) >= BATCH;
        if is_wide && tokio::time::Instant::now() < next {
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = self.drain.deadline() => {}
            }
        }
        self.round = tokio::time::Instant::now();
    }

    /// Some client libraries reconnect by themselves: says when the brokers are gone and when they are back.
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

    /// The session is lost: note it, and find the message to blame if there is one.
    fn lost(&mut self, lost: SessionError, alone: Option<Sequence>) {
        self.metrics.broker_error(lost.kind);
        self.view.error(lost.kind, &lost.text);
        tracing::warn!(
            broker = self.broker.name(),
            in_flight = self.ring.handed(),
            "lost the session: {}",
            lost.text
        );
        match lost.suspect {
            Cause::Message(refusal) => {
                let culprit = alone.and_then(|sequence| self.ring.take(sequence, false));
                if let Some(taken) = culprit {
                    // Alone in flight, it closed the session: it is the one.
                    self.settler.refused(taken, refusal, &self.metrics);
                    self.window = Window::Open;
                } else {
                    self.window = Window::one(&self.ring, true);
                }
                self.backoff.reset();
            }
            Cause::Network => {
                // A suspect session that ends for another reason leaves its suspects suspect.
                if !self.window.is_suspect() {
                    self.window = Window::Open;
                }
            }
        }
    }

    /// Hands over everything that the window allows.
    fn pump(&mut self, session: &mut dyn Session) -> Result<Pumped, SessionError> {
        self.adjust_window();
        let now = Instant::now();
        let mut next = None;
        loop {
            if self.ring.handed() >= self.window.most(self.settings.max_in_flight) || !session.takes_more() {
                break;
            }
            let Some((sequence, message, attempts)) = self.ring.next() else {
                if self.settler.refused_count() >= BATCH {
                    // A broker that refuses everything at once: settle these before more are taken.
                    return Ok(Pumped::Some);
                }
                match self.refill() {
                    Taken::Events(_) => continue,
                    Taken::OnDisk(backlog) => next = Some(backlog),
                    Taken::Nothing => {}
                }
                break;
            };
            if message.event.waiter.as_ref().is_some_and(|waits| !waits.send()) {
                if let Some(taken) = self.ring.take(sequence, false) {
                    self.settler.withdrawn(&taken);
                }
                continue;
            }
            let handed = session.send(sequence, message);
            if attempts > 0 && matches!(handed, Sent::Taken) {
                self.metrics.publish_retry();
            }
            match handed {
                Sent::Taken => self.ring.hand(sequence, now),
                Sent::Refused(refusal) => self.refuse(sequence, refusal),
                Sent::RetryLater(reason) => self.shut(&reason),
                Sent::Lost(lost) => return Err(lost),
            }
        }
        session.flush();
        self.view.change(|view| view.in_flight = self.ring.handed());
        Ok(Pumped::All(next))
    }

    /// Opens or narrows the window when what it waited for has happened.
    fn adjust_window(&mut self) {
        if let Some(next) = self.window.next(&self.ring) {
            if matches!(self.window, Window::Shut { .. }) {
                // Whether it takes events again is seen when it confirms one.
                self.view.state(ConnectionState::Connected);
            }
            self.window = next;
        }
    }

    fn shut(&mut self, reason: &str) {
        self.metrics.broker_error(ErrorKind::NotNow);
        self.view.error(ErrorKind::NotNow, reason);
        self.note_connection(ConnectionState::Waiting);
        if self.not_now.admits() {
            tracing::warn!(broker = self.broker.name(), "the broker takes nothing for now, waiting: {reason}");
        }
        if !matches!(self.window, Window::Shut { .. }) {
            self.window = Window::Shut { again: Instant::now() + self.backoff.next() };
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
        // Looked at after they were taken: what was accepted since it came is not sent to an old address.
        if self.successor.waits() {
            return Taken::Nothing;
        }
        while let Some(event) = self.taken.pop_front() {
            let pair = self.pairs.number(&event, &self.queue);
            match self.broker.address(&event) {
                Ok((address, key)) => self.ring.push(Message { event, address, key }, pair),
                Err(refusal) => {
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
        let succeeded = self.successor.waits();
        // Where nobody answers, verdicts may never come, least of all for an address that is wrong.
        let is_quiet = self.ring.handed() == 0 || session.away().is_some();
        if self.is_finished() || (succeeded && is_quiet) {
            return Ok(Going::Finished);
        }
        let again = self.window.again(&self.ring);
        let has_room = self.window.is_open() && self.ring.span() < self.settings.max_in_flight;
        let takes_more = has_room && !succeeded && session.takes_more() && backlog.is_none();
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
            () = self.successor.come(), if !succeeded => Ok(()),
            () = sleep_until(again), if again.is_some() => Ok(()),
            () = interrupted => Ok(()),
            () = sleep(LOOK) => {
                self.sweep();
                Ok(())
            }
            () = self.drain.deadline() => return Ok(Going::Finished),
        };
        self.judge();
        self.settle().await;
        outcome.map(|()| Going::On)
    }

    /// Applies the verdicts collected so far.
    fn judge(&mut self) {
        let now = Instant::now();
        let mut verdicts = std::mem::take(&mut self.verdicts);
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
                Verdict::Refused(refusal) => self.refuse(sequence, refusal),
                Verdict::RetryLater(reason) => {
                    self.ring.defer(sequence);
                    self.shut(&reason);
                }
            }
        }
        self.verdicts = verdicts;
    }

    fn stored(&mut self, taken: Option<Removed>, now: Instant) {
        if let Some(taken) = taken {
            self.settler.published(&taken, now, &self.metrics);
            self.backoff.reset();
        }
    }
}

/// How much of what the window allows was handed over.
enum Pumped {
    /// Everything in memory; what is to be read from the journal next, if anything is.
    All(Option<Backlog>),
    Some,
}

enum Going {
    On,
    Finished,
}

async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}
