//! Metrics: histograms and plain counters as they happen, and the ledger copied in at each scrape.
//!
//! Length: the one list of all series, each with its help text.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry, TextEncoder,
};

use crate::event::{Deviation, Field};
use crate::status::{
    ConnectionState, ErrorKind, JournalState, KeptReason, Loss, Reason, RefusalReason, Snapshot, SourceBook, Totals,
};

const REQUEST_BUCKETS: [f64; 13] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
/// An event may wait for the broker for days; of those that waited for longer than one, that much is known.
const DELIVERY_BUCKETS: [f64; 18] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0, 14_400.0,
    43_200.0, 86_400.0,
];

/// The status codes with which a source's path can be answered.
pub(crate) const CODES: [&str; 9] = ["200", "400", "401", "405", "408", "413", "415", "422", "503"];

/// The results of a reload of the settings.
const RELOADS: [&str; 2] = ["success", "failure"];

/// The version of the program.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit it was built from, if the build recorded it.
#[must_use]
pub(crate) fn revision() -> &'static str {
    option_env!("PLEXTRAC_BRIDGE_REVISION").unwrap_or("unknown")
}

/// The values that a scrape adds to the snapshot of the queue.
#[derive(Clone, Debug, Default)]
pub(crate) struct Moment {
    /// Whether `/readyz` answers 200.
    pub(crate) ready: bool,
    /// The state of the connection to the broker.
    pub(crate) broker: ConnectionState,
    /// The number of addresses without an answer.
    pub(crate) addresses_waiting: usize,
    /// The number of messages handed to the session.
    pub(crate) in_flight: usize,
    /// The time of the last confirmation.
    pub(crate) last_published: Option<SystemTime>,
    /// The number of open connections.
    pub(crate) connections_open: usize,
    /// `ingress.max_connections`.
    pub(crate) connections_capacity: usize,
    /// Dead letters: events, bytes, capacity.
    pub(crate) dead_letters: (u64, u64, u64),
    /// The numbers of successful and failed reloads of the settings.
    pub(crate) reloads: (u64, u64),
    /// Whether the last reload failed.
    pub(crate) reload_failed: bool,
    /// The time at which the ingress' certificate expires, if it has one.
    pub(crate) certificate_not_after: Option<SystemTime>,
}

/// All series.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    scrape: Mutex<()>,
    requests: IntCounterVec,
    request_duration: HistogramVec,
    publish_duration: Histogram,
    delivery_duration: Histogram,
    journal_sync_duration: Histogram,
    retries: IntCounter,
    out_of_order: IntCounter,
    broker_errors: IntCounterVec,
    invalid_kept: IntCounterVec,
    deviating: IntCounterVec,
    reloads: IntCounterVec,
    books: Books,
    gauges: Vec<Gauge>,
}

#[derive(Debug)]
struct Books {
    of_sources: Vec<IntCounterVec>,
    rejected: IntCounterVec,
    matched: IntCounterVec,
    published: IntCounterVec,
    dead_lettered: IntCounterVec,
    lost: IntCounterVec,
    plain: Vec<IntCounter>,
}

/// A counter of each source: its name, its help text, its number in the ledger.
type SourceRow = (&'static str, &'static str, fn(&SourceBook) -> u64);

const OF_SOURCES: [SourceRow; 4] = [
    ("events_received_total", "Requests for a source's path whose answer was decided.", |book| book.received),
    ("events_accepted_total", "Events taken into buffer or journal.", |book| book.accepted),
    ("events_duplicate_total", "Events that were there already.", |book| book.duplicate),
    ("events_probe_total", "Connection tests, not published.", |book| book.probe),
];

/// A counter without labels, in the same way.
type PlainRow = (&'static str, &'static str, fn(&Snapshot) -> u64);

const PLAIN: [PlainRow; 4] = [
    ("events_recovered_total", "Events taken from the journal at start.", |now| now.ledger.recovered),
    ("events_replayed_total", "Events taken from dead letters.", |now| now.ledger.replayed),
    (
        "events_withdrawn_total",
        "Events timed out, or taken back by the end of their replay, before they were sent.",
        |now| now.ledger.withdrawn,
    ),
    ("journal_damaged_records_total", "Damaged records found in the journal.", |now| {
        now.journal.as_ref().map_or(0, |journal| journal.damaged)
    }),
];

/// A gauge, in the same way.
type GaugeRow = (&'static str, &'static str, fn(&Scrape<'_>) -> f64);

/// The state that a scrape reports.
struct Scrape<'s> {
    now: &'s Snapshot,
    totals: &'s Totals,
    moment: &'s Moment,
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus knows no other numbers")]
const GAUGES: [GaugeRow; 22] = [
    ("ready", "1 while events can be accepted.", |at| f64::from(at.moment.ready)),
    ("buffer_events", "Events in memory, from enqueue to settle.", |at| at.now.events as f64),
    ("buffer_bytes", "Bytes of the events in memory, as counted for the byte limit.", |at| at.now.bytes as f64),
    ("buffer_capacity_events", "buffer.max_events.", |at| at.now.limits.events as f64),
    ("buffer_capacity_bytes", "buffer.max_bytes.", |at| at.now.limits.bytes as f64),
    ("in_flight_events", "Messages handed to the broker's client, without a verdict.", |at| {
        at.moment.in_flight as f64
    }),
    ("oldest_event_timestamp_seconds", "Receipt of the oldest event held; 0 where none is.", |at| {
        unix_seconds(at.now.oldest)
    }),
    ("last_published_timestamp_seconds", "The last confirmation; 0 before the first.", |at| {
        unix_seconds(at.moment.last_published)
    }),
    ("broker_connected", "1 while there is a session with the broker.", |at| {
        f64::from(at.moment.broker != ConnectionState::Connecting)
    }),
    ("broker_waiting", "1 while the broker takes nothing for now, or confirmed nothing for 5 s.", |at| {
        f64::from(at.moment.broker == ConnectionState::Waiting)
    }),
    ("addresses_waiting", "Addresses whose oldest event in flight has no answer for 5 s.", |at| {
        at.moment.addresses_waiting as f64
    }),
    ("connections_open", "Open connections of senders.", |at| at.moment.connections_open as f64),
    ("connections_capacity", "ingress.max_connections.", |at| at.moment.connections_capacity as f64),
    ("journal_events", "Events in the journal that are not settled.", |at| {
        journal(at, |journal| journal.events as f64)
    }),
    ("journal_bytes", "Bytes of the journal's segments in use.", |at| journal(at, |journal| journal.bytes as f64)),
    ("journal_capacity_bytes", "journal.max_bytes; 0 where there is none.", |at| {
        journal(at, |journal| journal.capacity as f64)
    }),
    ("dead_letters_events", "Dead letters on disk.", |at| at.moment.dead_letters.0 as f64),
    ("dead_letters_bytes", "Bytes of the dead letters on disk.", |at| at.moment.dead_letters.1 as f64),
    ("dead_letters_capacity_bytes", "dead_letters.max_bytes.", |at| at.moment.dead_letters.2 as f64),
    ("config_last_reload_successful", "1 if the last load of the settings was good.", |at| {
        f64::from(!at.moment.reload_failed)
    }),
    ("tls_certificate_not_after_timestamp_seconds", "End of the server certificate; 0 without TLS.", |at| {
        unix_seconds(at.moment.certificate_not_after)
    }),
    ("accounting_mismatch_events", "0, or the accounting has a defect.", |at| at.totals.mismatch() as f64),
];

fn journal(at: &Scrape<'_>, number: fn(&JournalState) -> f64) -> f64 {
    at.now.journal.as_ref().map_or(0.0, number)
}

/// Registers series under the program's prefix.
struct Register<'r>(&'r Registry);

impl Register<'_> {
    fn add<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let collector = made.expect("the names and labels below are legal");
        self.0.register(Box::new(collector.clone())).expect("the names below are unique");
        collector
    }

    fn options(name: &str, help: &str) -> Opts {
        Opts::new(name, help).namespace("plextrac_bridge")
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::with_opts(Self::options(name, help)))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Self::options(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.add(Gauge::with_opts(Self::options(name, help)))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let options = HistogramOpts::new(name, help).namespace("plextrac_bridge").buckets(buckets.to_vec());
        self.add(Histogram::with_opts(options))
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new("buffered")
    }
}

impl Metrics {
    /// Creates all series, at 0; those of a source exist with its [`Metrics::source`].
    ///
    /// # Panics
    /// If two series have the same name: a test creates one.
    #[must_use]
    pub(crate) fn new(ack: &str) -> Self {
        let registry = Registry::new();
        let add = Register(&registry);
        let process = prometheus::process_collector::ProcessCollector::for_self();
        registry.register(Box::new(process)).expect("the process collector is registered once");
        let build = add.add(prometheus::IntGaugeVec::new(
            Register::options("build_info", "Always 1; the labels tell the version, and the promise behind a 200."),
            &["version", "revision", "ack"],
        ));
        build.with_label_values(&[VERSION, revision(), ack]).set(1);
        let request_options = HistogramOpts::new(
            "request_duration_seconds",
            "From the head of a request for a source's path to its answer.",
        )
        .namespace("plextrac_bridge")
        .buckets(REQUEST_BUCKETS.to_vec());
        let metrics = Self {
            scrape: Mutex::new(()),
            requests: add.counters(
                "requests_total",
                "Answered requests; source \"none\": no source's path, or no HTTP/1.1.",
                &["source", "code"],
            ),
            request_duration: add.add(HistogramVec::new(request_options, &["source"])),
            publish_duration: add.histogram(
                "publish_duration_seconds",
                "From handing a message to the broker's client to its verdict.",
                &DELIVERY_BUCKETS,
            ),
            delivery_duration: add.histogram(
                "delivery_duration_seconds",
                "From accepting an event to settling it.",
                &DELIVERY_BUCKETS,
            ),
            journal_sync_duration: add.histogram(
                "journal_sync_duration_seconds",
                "One commit of the journal: one write and one fdatasync.",
                &REQUEST_BUCKETS,
            ),
            retries: add.counter("publish_retries_total", "Messages handed to the broker's client once more."),
            out_of_order: add.counter(
                "publish_out_of_order_total",
                "Messages stored after a younger one of their key, because the broker had refused them for now.",
            ),
            broker_errors: add.counters("broker_errors_total", "Errors of the broker.", &["kind"]),
            invalid_kept: add.counters(
                "invalid_kept_total",
                "Signed bodies kept instead of published: not what the source takes, not JSON, connection tests.",
                &["reason"],
            ),
            deviating: add.counters(
                "events_deviating_total",
                "Events accepted although a field of their payload departs from the documented one.",
                &["source", "field", "deviation"],
            ),
            reloads: add.counters("config_reloads_total", "Reloads of the settings.", &["result"]),
            books: Books::new(&add),
            gauges: GAUGES.map(|(name, help, _)| add.gauge(name, help)).into(),
            registry: registry.clone(),
        };
        metrics.start();
        metrics
    }

    /// Makes every series exist with 0.
    fn start(&self) {
        for code in ["400", "404", "431"] {
            self.requests.with_label_values(&["none", code]);
        }
        for result in RELOADS {
            self.reloads.with_label_values(&[result]);
        }
        for reason in KeptReason::ALL {
            self.invalid_kept.with_label_values(&[reason.name()]);
        }
        for kind in ErrorKind::ALL {
            self.broker_errors.with_label_values(&[kind.name()]);
        }
        for reason in RefusalReason::ALL {
            self.books.dead_lettered.with_label_values(&[reason.name()]);
        }
        for loss in Loss::ALL {
            self.books.lost.with_label_values(&[loss.name()]);
        }
    }

    /// The series that one source's requests use, looked up once. All series of that source exist from now on.
    #[must_use]
    pub(crate) fn source(&self, source: &str, secrets: impl Iterator<Item = Arc<str>>) -> SourceMetrics {
        let books = &self.books;
        // A look-up creates the codes and the histogram below.
        for counters in &books.of_sources {
            counters.with_label_values(&[source]);
        }
        for reason in Reason::ALL {
            books.rejected.with_label_values(&[source, reason.name()]);
        }
        for secret in secrets {
            books.matched.with_label_values(&[source, &*secret]);
        }
        SourceMetrics {
            duration: self.request_duration.with_label_values(&[source]),
            codes: CODES.map(|code| self.requests.with_label_values(&[source, code])),
        }
    }

    /// Counts an answered request for an unknown path.
    pub(crate) fn unknown_path(&self) {
        self.requests.with_label_values(&["none", "404"]).inc();
    }

    /// Counts a request that is not HTTP/1.1, or whose head is too large.
    pub(crate) fn unreadable(&self, code: &str) {
        self.requests.with_label_values(&["none", code]).inc();
    }

    /// Records the time from handing over to the verdict.
    pub(crate) fn publish_duration(&self, duration: Duration) {
        self.publish_duration.observe(duration.as_secs_f64());
    }

    /// Records the time from accept to settle.
    pub(crate) fn delivery_duration(&self, duration: Duration) {
        self.delivery_duration.observe(duration.as_secs_f64());
    }

    /// Records one write and one fdatasync of the journal.
    pub(crate) fn journal_sync_duration(&self, duration: Duration) {
        self.journal_sync_duration.observe(duration.as_secs_f64());
    }

    /// Counts a message that is handed over once more.
    pub(crate) fn publish_retry(&self) {
        self.retries.inc();
    }

    /// Counts a message that was stored after a younger one of its key.
    pub(crate) fn out_of_order(&self) {
        self.out_of_order.inc();
    }

    /// Counts signed bodies that were kept instead of published.
    pub(crate) fn invalid_kept(&self, reason: KeptReason, count: u64) {
        self.invalid_kept.with_label_values(&[reason.name()]).inc_by(count);
    }

    /// Counts an accepted event whose payload departs from the documented one in this field.
    pub(crate) fn deviating(&self, source: &str, field: Field, deviation: Deviation) {
        self.deviating.with_label_values(&[source, field.name(), deviation.name()]).inc();
    }

    /// Counts an error of the broker.
    pub(crate) fn broker_error(&self, kind: ErrorKind) {
        self.broker_errors.with_label_values(&[kind.name()]).inc();
    }

    /// All series as text, with the ledger of `snapshot`.
    #[must_use]
    pub(crate) fn render(&self, snapshot: &Snapshot, totals: &Totals, moment: &Moment) -> String {
        // Two concurrent scrapes must not both add the same difference.
        let _one = self.scrape.lock();
        self.books.copy(snapshot);
        let scrape = Scrape { now: snapshot, totals, moment };
        for (gauge, (_, _, number)) in self.gauges.iter().zip(GAUGES) {
            gauge.set(number(&scrape));
        }
        for (result, count) in RELOADS.into_iter().zip([moment.reloads.0, moment.reloads.1]) {
            follow(&self.reloads.with_label_values(&[result]), count);
        }
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

/// The series of one source, without look-ups.
#[derive(Clone, Debug)]
pub(crate) struct SourceMetrics {
    duration: Histogram,
    codes: [IntCounter; CODES.len()],
}

impl SourceMetrics {
    /// Counts an answer.
    pub(crate) fn answered(&self, code: u16, duration: Duration) {
        let at = match code {
            200 => 0,
            400 => 1,
            401 => 2,
            405 => 3,
            408 => 4,
            413 => 5,
            415 => 6,
            422 => 7,
            _ => 8,
        };
        self.codes[at].inc();
        self.duration.observe(duration.as_secs_f64());
    }
}

/// Raises a counter to a number in the ledger.
fn follow(counter: &IntCounter, count: u64) {
    counter.inc_by(count.saturating_sub(counter.get()));
}

impl Books {
    fn new(add: &Register<'_>) -> Self {
        Self {
            of_sources: OF_SOURCES.map(|(name, help, _)| add.counters(name, help, &["source"])).into(),
            rejected: add.counters("events_rejected_total", "Requests refused.", &["source", "reason"]),
            matched: add.counters(
                "signatures_matched_total",
                "Signatures that matched this secret.",
                &["source", "secret_id"],
            ),
            published: add.counters(
                "events_published_total",
                "Events confirmed by the broker, by event and target type in address form.",
                &["event", "target_type"],
            ),
            dead_lettered: add.counters(
                "events_dead_lettered_total",
                "Events refused by the broker and kept in dead-letters/.",
                &["reason"],
            ),
            lost: add.counters("events_lost_total", "Accepted events that were lost.", &["reason"]),
            plain: PLAIN.map(|(name, help, _)| add.counter(name, help)).into(),
        }
    }

    fn copy(&self, now: &Snapshot) {
        for book in &now.ledger.sources {
            for (counters, (_, _, number)) in self.of_sources.iter().zip(OF_SOURCES) {
                follow(&counters.with_label_values(&[&*book.name]), number(book));
            }
            for (reason, count) in Reason::ALL.iter().zip(book.rejected) {
                follow(&self.rejected.with_label_values(&[&*book.name, reason.name()]), count);
            }
            for secret in &book.secrets {
                follow(&self.matched.with_label_values(&[&*book.name, &*secret.id]), secret.matched);
            }
        }
        for pair in &now.ledger.pairs {
            let labels = [pair.event.as_str(), pair.target_type.as_str()];
            follow(&self.published.with_label_values(&labels), pair.published);
        }
        for (reason, count) in RefusalReason::ALL.iter().zip(now.ledger.dead_lettered) {
            follow(&self.dead_lettered.with_label_values(&[reason.name()]), count);
        }
        for (loss, count) in Loss::ALL.iter().zip(now.ledger.lost) {
            follow(&self.lost.with_label_values(&[loss.name()]), count);
        }
        for (counter, (_, _, number)) in self.plain.iter().zip(PLAIN) {
            follow(counter, number(now));
        }
    }
}

/// A wall-clock time as Prometheus writes it; 0 for none.
#[must_use]
pub(crate) fn unix_seconds(time: Option<SystemTime>) -> f64 {
    time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok()).map_or(0.0, |since| since.as_secs_f64())
}
