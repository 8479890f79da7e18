//! Publish: the one task that owns order, retry, back-off and settling.
//!
//! It takes events from the queue into the [`Ring`], hands them to the session oldest first, and settles them on the
//! broker's verdicts. What the contract calls Lost, `NotNow`, Refused and suspect is decided here and nowhere else.
//!
//! Length: the one place of all these decisions, which are only understood side by side.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::brokers::{
    Broker, ErrorKind, Finding, Handed, Refusal, Session, SessionError, Suspect, Ticket, Verdict,
};
use crate::delivery::backoff::Backoff;
use crate::delivery::pairs::Pairs;
use crate::delivery::ring::Ring;
use crate::delivery::settings::Settings;
use crate::delivery::settle::Settler;
use crate::delivery::view::{BrokerState, View};
use crate::delivery::window::Window;
use crate::letters::Store;
use crate::logs::Throttle;
use crate::message::{Event, Message};
use crate::metrics::Metrics;
use crate::queue::Buffer;
use crate::shutdown::Drain;

/// How long verdicts of a lost session are waited for: purging at once turns every message in flight into a repeat.
const COLLECT: Duration = Duration::from_secs(1);

/// How much room the events already taken from the queue make at once; a batch shares one lock.
const BATCH: usize = 256;

/// How often it is looked whether a session that is not lost still reaches a broker.
const LOOK: Duration = Duration::from_secs(1);

/// The delivery task.
pub struct Delivery {
    broker: Box<dyn Broker>,
    queue: Arc<Buffer>,
    metrics: Arc<Metrics>,
    view: View,
    settings: Settings,
    drain: Drain,
    ring: Ring,
    taken: VecDeque<Box<Event>>,
    verdicts: Vec<(Ticket, Verdict)>,
    settler: Settler,
    pairs: Pairs,
    window: Window,
    backoff: Backoff,
    not_now: Throttle,
    /// The session lives, but its brokers do not answer.
    away: bool,
}

impl Delivery {
    /// A delivery task; nothing is connected yet.
    #[must_use]
    pub fn new(
        broker: Box<dyn Broker>,
        queue: Arc<Buffer>,
        metrics: Arc<Metrics>,
        view: View,
        settings: Settings,
        store: Option<Arc<Mutex<Store>>>,
        drain: Drain,
    ) -> Self {
        let settler = Settler::new(store, broker.headers().clone());
        Self {
            broker,
            queue,
            metrics,
            view,
            drain,
            ring: Ring::default(),
            taken: VecDeque::new(),
            verdicts: Vec::new(),
            settler,
            pairs: Pairs::default(),
            window: Window::Open,
            backoff: Backoff::new(settings.retry_min, settings.retry_max),
            not_now: Throttle::new(1, Duration::from_secs(5)),
            away: false,
            settings,
        }
    }

    /// Delivers until the drain is over: everything is settled, or its deadline has come and the rest is lost.
    /// Says how many events were lost at the exit.
    pub async fn run(mut self) -> usize {
        let mut reported = String::new();
        while !self.is_finished() {
            let (drain, finished) = (self.drain.clone(), self.finished());
            let connected = tokio::select! {
                biased;
                connected = self.broker.connect() => connected,
                () = drain.deadline() => break,
                () = finished => break,
            };
            match connected {
                Ok((session, findings)) => {
                    reported.clear();
                    self.connected(&findings);
                    self.deliver(session).await;
                }
                Err(error) => {
                    self.metrics.broker_error(error.kind);
                    self.view.error(error.kind, &error.text);
                    if error.text != reported {
                        tracing::error!(
                            broker = self.broker.name(),
                            kind = error.kind.name(),
                            "no connection to the broker, trying again: {}",
                            error.text
                        );
                        reported.clone_from(&error.text);
                    }
                }
            }
            self.view.state(BrokerState::Connecting);
            if self.is_finished() {
                break;
            }
            let wait = self.backoff.next();
            tokio::select! {
                () = sleep(wait) => {}
                () = drain.deadline() => break,
                () = self.finished() => break,
            }
        }
        self.settler.lose(&mut self.ring, &self.queue)
    }

    /// Nothing is left, and nothing will come.
    fn is_finished(&self) -> bool {
        self.drain.has_begun() && self.ring.unsettled() == 0 && self.settler.is_empty() && self.queue.is_empty()
    }

    /// Settles what is judged; a disk that fails holds it up until the drain's deadline.
    async fn settle(&mut self) {
        tokio::select! {
            biased;
            () = self.settler.settle(&self.ring, &self.queue, &self.view) => {}
            () = self.drain.deadline() => {}
        }
    }

    /// Resolves when the drain begins and there is nothing to deliver; the ring stands still meanwhile.
    fn finished(&self) -> impl Future<Output = ()> + Send + use<> {
        let idle = self.ring.unsettled() == 0 && self.settler.is_empty();
        let (drain, queue) = (self.drain.clone(), self.queue.clone());
        async move {
            drain.begun().await;
            if !idle || !queue.is_empty() {
                std::future::pending::<()>().await;
            }
        }
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
        self.view.state(BrokerState::Connected);
        self.away = false;
        tracing::info!(broker = self.broker.name(), location = self.broker.location(), "connected");
    }

    /// Uses one session until it is lost or everything is delivered.
    async fn deliver(&mut self, mut session: Box<dyn Session>) {
        let ended = loop {
            let pumped = self.pump(&mut *session);
            self.settle().await;
            let going = match pumped {
                Ok(Pumped::All) => {
                    self.look(&*session);
                    self.wait(&mut *session).await
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
        let alone = (self.ring.handed() == 1).then(|| self.ring.handed_tickets().next()).flatten();
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

    /// Some client libraries reconnect by themselves: says when the brokers are gone and when they are back.
    fn look(&mut self, session: &dyn Session) {
        match session.away() {
            Some(error) if !self.away => {
                self.away = true;
                self.metrics.broker_error(error.kind);
                self.view.error(error.kind, &error.text);
                self.view.state(BrokerState::Connecting);
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
                self.view.state(BrokerState::Connected);
                tracing::info!(broker = self.broker.name(), "connected again");
            }
            None => {}
        }
    }

    /// The session is lost: note it, and find the message to blame if there is one.
    fn lost(&mut self, lost: SessionError, alone: Option<Ticket>) {
        self.metrics.broker_error(lost.kind);
        self.view.error(lost.kind, &lost.text);
        tracing::warn!(
            broker = self.broker.name(),
            in_flight = self.ring.handed(),
            "lost the session: {}",
            lost.text
        );
        match lost.suspect {
            Suspect::Message(refusal) => {
                let culprit = alone.and_then(|ticket| self.ring.take(ticket, false));
                if let Some(taken) = culprit {
                    // Alone in flight, it closed the session: it is the one.
                    self.settler.refused(taken, refusal, &self.metrics);
                    self.window = Window::Open;
                } else {
                    self.window = Window::one(&self.ring, true);
                }
                self.backoff.reset();
            }
            Suspect::Nothing => {
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
        loop {
            if self.ring.handed() >= self.window.most(self.settings.max_in_flight) {
                break;
            }
            let Some((ticket, message, attempts)) = self.ring.next() else {
                if self.settler.refused_count() >= BATCH {
                    // A broker that refuses everything at once: settle these before more are taken.
                    return Ok(Pumped::Some);
                }
                if !self.refill() {
                    break;
                }
                continue;
            };
            let handed = session.send(ticket, message);
            if attempts > 0 && matches!(handed, Handed::Over) {
                self.metrics.publish_retry();
            }
            match handed {
                Handed::Over => self.ring.hand(ticket, now),
                Handed::Refused(refusal) => self.refuse(ticket, refusal),
                Handed::NotNow(reason) => self.shut(&reason),
                Handed::Lost(lost) => return Err(lost),
            }
        }
        self.view.change(|view| view.in_flight = self.ring.handed());
        Ok(Pumped::All)
    }

    /// Opens or narrows the window when what it waited for has happened.
    fn adjust_window(&mut self) {
        if let Some(next) = self.window.next(&self.ring) {
            if matches!(self.window, Window::Shut { .. }) {
                self.view.state(BrokerState::Connected);
            }
            self.window = next;
        }
    }

    fn shut(&mut self, reason: &str) {
        self.metrics.broker_error(ErrorKind::NotNow);
        self.view.error(ErrorKind::NotNow, reason);
        self.view.state(BrokerState::Waiting);
        if self.not_now.admits() {
            tracing::warn!(broker = self.broker.name(), "the broker takes nothing for now, waiting: {reason}");
        }
        if !matches!(self.window, Window::Shut { .. }) {
            self.window = Window::Shut { again: Instant::now() + self.backoff.next() };
        }
    }

    fn refuse(&mut self, ticket: Ticket, refusal: Refusal) {
        if let Some(taken) = self.ring.take(ticket, false) {
            self.settler.refused(taken, refusal, &self.metrics);
        }
    }

    /// Takes events from the queue into the ring; whether there were any.
    fn refill(&mut self) -> bool {
        let room = self.settings.max_in_flight.saturating_sub(self.ring.span()).min(BATCH);
        if room == 0 || self.queue.take(room, &mut self.taken) == 0 {
            return false;
        }
        while let Some(event) = self.taken.pop_front() {
            let pair = self.pairs.number(&event, &self.queue);
            match self.broker.address(&event) {
                Ok((address, key)) => self.ring.push(Message { event, address, key }, pair),
                Err(refusal) => {
                    let ticket = self.ring.end();
                    self.ring.push(Message { event, address: "".into(), key: "".into() }, pair);
                    self.refuse(ticket, refusal);
                }
            }
        }
        true
    }

    /// Waits for verdicts, new events or time, and judges what came.
    async fn wait(&mut self, session: &mut dyn Session) -> Result<Going, SessionError> {
        if self.is_finished() {
            return Ok(Going::Finished);
        }
        let again = self.window.again(&self.ring);
        let takes_more = self.window.is_open() && self.ring.span() < self.settings.max_in_flight;
        let draining = self.drain.has_begun();
        let outcome = tokio::select! {
            outcome = session.verdicts(&mut self.verdicts) => outcome,
            () = self.queue.ready(), if takes_more => Ok(()),
            () = sleep_until(again), if again.is_some() => Ok(()),
            () = self.drain.begun(), if !draining => Ok(()),
            () = sleep(LOOK) => Ok(()),
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
        for (ticket, verdict) in verdicts.drain(..) {
            match verdict {
                Verdict::Stored => {
                    if let Some(taken) = self.ring.take(ticket, true) {
                        self.settler.published(&taken, now, &self.metrics);
                        self.backoff.reset();
                    }
                }
                Verdict::Refused(refusal) => self.refuse(ticket, refusal),
                Verdict::NotNow(reason) => {
                    self.ring.defer(ticket);
                    self.shut(&reason);
                }
            }
        }
        self.verdicts = verdicts;
    }
}

/// How much of what the window allows was handed over.
enum Pumped {
    All,
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
