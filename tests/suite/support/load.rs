//! A bounded load of signed events over some connections; it records the answer to each.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustls::ClientConfig;

use super::{Answer, Client, PATH, Payload, SECRET, sign};

/// The time between two tries of an event that was answered 503.
const AGAIN: Duration = Duration::from_millis(50);

/// The outcome of an event, as its sender knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Answered 200.
    Accepted,
    /// Not answered: it may have been accepted.
    Maybe,
    /// Answered with something else.
    Refused(u16),
}

/// One event as the sender remembers it.
#[derive(Clone, Debug)]
pub(crate) struct Note {
    /// The payload's `cuid`.
    pub(crate) cuid: String,
    /// The id it must carry everywhere.
    pub(crate) id: String,
    /// The payload's `event`.
    pub(crate) event: &'static str,
    /// The payload's `targetCuid`: the key.
    pub(crate) key: String,
    /// Its place among those of its key.
    pub(crate) sequence: u64,
    /// The signed bytes.
    pub(crate) body: Vec<u8>,
    /// The time at which its first try began.
    pub(crate) began: Instant,
    /// Its outcome.
    pub(crate) outcome: Outcome,
    /// The duration of its last answer.
    pub(crate) took: Duration,
    /// The time of its last answer.
    pub(crate) answered: Instant,
    /// `Retry-After` of its last answer.
    pub(crate) retry_after: Option<String>,
}

impl Note {
    /// Whether the sender was told 200.
    pub(crate) fn accepted(&self) -> bool {
        self.outcome == Outcome::Accepted
    }
}

/// All that was sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sent(pub(crate) Vec<Note>);

impl Sent {
    /// The number answered 200.
    pub(crate) fn accepted(&self) -> u64 {
        self.0.iter().filter(|note| note.accepted()).count() as u64
    }

    /// The number answered with this status.
    pub(crate) fn refused(&self, status: u16) -> usize {
        self.0.iter().filter(|note| note.outcome == Outcome::Refused(status)).count()
    }

    /// Events answered 503 may have been accepted nevertheless: the sender of these modes gave up waiting.
    pub(crate) fn unsure_of_503(mut self) -> Self {
        for note in self.0.iter_mut().filter(|note| note.outcome == Outcome::Refused(503)) {
            note.outcome = Outcome::Maybe;
        }
        self
    }

    /// Adds what another load sent.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// Panics unless every event was answered 200.
    pub(crate) fn all_accepted(self) -> Self {
        let wrong = self.0.iter().find(|note| !note.accepted());
        assert!(wrong.is_none(), "not answered 200: {:?}", wrong.map(|note| (&note.cuid, note.outcome)));
        self
    }
}

/// The plan of a load.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// The maximum number of events.
    pub(crate) events: u64,
    /// The number of connections.
    pub(crate) connections: u64,
    /// The number of keys; all events of a key use one connection, in order.
    pub(crate) keys: u64,
    /// The maximum rate per second, all connections together; 0: as fast as answers arrive.
    pub(crate) rate: u64,
    /// `text` of each.
    pub(crate) text: String,
    /// The interval at which an event is of this kind instead of `ReportPublished`, with this text.
    pub(crate) every: Option<(u64, &'static str, String)>,
    /// Whether an event answered 503 is sent again until it is accepted.
    pub(crate) again: bool,
    /// Whether an event without an answer is sent again too, on a new connection, as long as the load runs.
    pub(crate) patient: bool,
    /// Whether each event has a connection of its own.
    pub(crate) apart: bool,
    /// The name of its cuids and keys, and the number of its first event: for loads that continue others.
    pub(crate) series: Option<(String, u64)>,
    /// The TLS settings of the sender, if it uses TLS.
    pub(crate) tls: Option<Arc<ClientConfig>>,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            events: 100,
            connections: 4,
            keys: 8,
            rate: 0,
            text: "x".repeat(200),
            every: None,
            again: false,
            patient: false,
            apart: false,
            series: None,
            tls: None,
        }
    }
}

/// A load in progress.
#[derive(Debug)]
pub(crate) struct Running {
    threads: Vec<JoinHandle<Vec<Note>>>,
    end: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
}

impl Running {
    /// Whether all is sent.
    pub(crate) fn is_over(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// The number of answers so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Stops sending; returns what was sent.
    pub(crate) fn end(self) -> Sent {
        self.end.store(true, Ordering::Relaxed);
        self.join()
    }

    /// Waits until all is sent.
    pub(crate) fn join(self) -> Sent {
        Sent(self.threads.into_iter().flat_map(|thread| thread.join().expect("the load does not panic")).collect())
    }
}

impl Load {
    /// Sends it all.
    pub(crate) fn send(&self, ingress: &str) -> Sent {
        self.start(ingress).join()
    }

    /// Starts to send.
    pub(crate) fn start(&self, ingress: &str) -> Running {
        static RUNS: AtomicU64 = AtomicU64::new(0);
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let (name, first) = self.series.clone().unwrap_or_else(|| (run.to_string(), 0));
        let (end, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let start = Instant::now();
        let threads = (0..self.connections.min(self.keys)).map(|connection| {
            let (load, ingress, end, sent) = (self.clone(), ingress.to_owned(), end.clone(), sent.clone());
            let series = (name.clone(), first);
            thread::spawn(move || load.connection(connection, &series, &ingress, start, &end, &sent))
        });
        Running { threads: threads.collect(), end, sent }
    }

    fn connection(
        &self,
        connection: u64,
        (name, first): &(String, u64),
        ingress: &str,
        start: Instant,
        end: &AtomicBool,
        sent: &AtomicU64,
    ) -> Vec<Note> {
        let mut sender = Sender { ingress, tls: self.tls.clone(), client: None };
        let mut notes = Vec::new();
        for at in 0..self.events {
            let number = first + at;
            let key = number % self.keys;
            if key % self.connections.min(self.keys) != connection {
                continue;
            }
            if let Some(micros) = (1_000_000 * at).checked_div(self.rate) {
                let due = start + Duration::from_micros(micros);
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            if end.load(Ordering::Relaxed) {
                break;
            }
            let mut note = self.note(name, key, number);
            sender.send(&mut note, self, end);
            sent.fetch_add(1, Ordering::Relaxed);
            notes.push(note);
        }
        notes
    }

    fn note(&self, run: &str, key: u64, number: u64) -> Note {
        let (event, text) = match &self.every {
            Some((every, event, text)) if number % every == every / 2 => (*event, text),
            _ => ("ReportPublished", &self.text),
        };
        let mut payload = Payload::new(format!("cuid-{run}-{number}"));
        event.clone_into(&mut payload.event);
        payload.text.clone_from(text);
        payload.target = format!("target-{run}-{key}");
        payload.sequence = number / self.keys;
        let body = payload.body();
        let signature = sign(SECRET, &body);
        let now = Instant::now();
        Note {
            id: format!("{}-{}", payload.cuid, &signature[..12]),
            cuid: payload.cuid,
            event,
            key: payload.target,
            sequence: payload.sequence,
            body,
            began: now,
            outcome: Outcome::Maybe,
            took: Duration::ZERO,
            answered: now,
            retry_after: None,
        }
    }
}

/// One connection, made again when it is closed.
struct Sender<'a> {
    ingress: &'a str,
    tls: Option<Arc<ClientConfig>>,
    client: Option<Client>,
}

impl Sender<'_> {
    fn send(&mut self, note: &mut Note, load: &Load, end: &AtomicBool) {
        let signature = sign(SECRET, &note.body);
        let mut unanswered = false;
        note.began = Instant::now();
        loop {
            let began = Instant::now();
            let answer = self.post(&signature, &note.body);
            note.answered = Instant::now();
            note.took = note.answered - began;
            unanswered |= answer.is_err();
            // A 503 says nothing about another try that had no answer.
            note.outcome = match &answer {
                Ok(answer) if answer.status == 200 => Outcome::Accepted,
                Ok(answer) if !unanswered => Outcome::Refused(answer.status),
                Ok(_) | Err(_) => Outcome::Maybe,
            };
            note.retry_after =
                answer.as_ref().ok().and_then(|answer| answer.header("retry-after")).map(str::to_owned);
            let is_repeated = match &answer {
                Ok(answer) => answer.status == 503 && load.again,
                Err(_) => load.patient,
            };
            if load.apart || answer.map_or(true, |answer| answer.header("connection") == Some("close")) {
                self.client = None;
            }
            if !is_repeated || end.load(Ordering::Relaxed) {
                return;
            }
            thread::sleep(AGAIN);
        }
    }

    fn post(&mut self, signature: &str, body: &[u8]) -> io::Result<Answer> {
        let client = match &mut self.client {
            Some(client) => client,
            None => self.client.insert(match &self.tls {
                None => Client::connect(self.ingress)?,
                Some(config) => Client::connect_over_tls(self.ingress, config)?,
            }),
        };
        client.send("POST", PATH, &[("X-Authorization-HMAC-256", signature)], body)
    }
}
