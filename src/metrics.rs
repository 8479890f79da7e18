//! Metrics: histograms and plain counters as they happen, and the ledger copied in at each scrape.
//!
//! Length: the one list of all series, each with its help text.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

use crate::event::{Deviation, Field};
use crate::status::{ConnectionState, ErrorKind, KeptReason, Loss, Reason, RefusalReason, Snapshot, Totals};

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
    gauges: Gauges,
}

#[derive(Debug)]
struct Books {
    received: IntCounterVec,
    accepted: IntCounterVec,
    duplicate: IntCounterVec,
    probe: IntCounterVec,
    rejected: IntCounterVec,
    matched: IntCounterVec,
    recovered: IntCounter,
    replayed: IntCounter,
    published: IntCounterVec,
    dead_lettered: IntCounterVec,
    withdrawn: IntCounter,
    lost: IntCounterVec,
    damaged: IntCounter,
}

#[derive(Debug)]
struct Gauges {
    ready: IntGauge,
    buffer_events: IntGauge,
    buffer_bytes: IntGauge,
    buffer_capacity_events: IntGauge,
    buffer_capacity_bytes: IntGauge,
    in_flight: IntGauge,
    oldest: Gauge,
    last_published: Gauge,
    broker_connected: IntGauge,
    broker_waiting: IntGauge,
    addresses_waiting: IntGauge,
    connections_open: IntGauge,
    connections_capacity: IntGauge,
    journal_events: IntGauge,
    journal_bytes: IntGauge,
    journal_capacity_bytes: IntGauge,
    dead_letters_events: IntGauge,
    dead_letters_bytes: IntGauge,
    dead_letters_capacity_bytes: IntGauge,
    reloaded: IntGauge,
    certificate: Gauge,
    mismatch: IntGauge,
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

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::with_opts(Self::options(name, help)))
    }

    fn time(&self, name: &str, help: &str) -> Gauge {
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
            gauges: Gauges::new(&add),
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
        for counters in [&books.received, &books.accepted, &books.duplicate, &books.probe] {
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
        let _one = self.scrape.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.books.copy(snapshot);
        self.gauges.copy(snapshot, totals, moment);
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
            received: add.counters(
                "events_received_total",
                "Requests for a source's path whose answer was decided.",
                &["source"],
            ),
            accepted: add.counters("events_accepted_total", "Events taken into buffer or journal.", &["source"]),
            duplicate: add.counters("events_duplicate_total", "Events that were there already.", &["source"]),
            probe: add.counters("events_probe_total", "Connection tests, not published.", &["source"]),
            rejected: add.counters("events_rejected_total", "Requests refused.", &["source", "reason"]),
            matched: add.counters(
                "signatures_matched_total",
                "Signatures that matched this secret.",
                &["source", "secret_id"],
            ),
            recovered: add.counter("events_recovered_total", "Events taken from the journal at start."),
            replayed: add.counter("events_replayed_total", "Events taken from dead letters."),
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
            withdrawn: add.counter(
                "events_withdrawn_total",
                "Events timed out, or taken back by the end of their replay, before they were sent.",
            ),
            lost: add.counters("events_lost_total", "Accepted events that were lost.", &["reason"]),
            damaged: add.counter("journal_damaged_records_total", "Damaged records found in the journal."),
        }
    }

    fn copy(&self, snapshot: &Snapshot) {
        let ledger = &snapshot.ledger;
        for book in &ledger.sources {
            let source = [&*book.name];
            follow(&self.received.with_label_values(&source), book.received);
            follow(&self.accepted.with_label_values(&source), book.accepted);
            follow(&self.duplicate.with_label_values(&source), book.duplicate);
            follow(&self.probe.with_label_values(&source), book.probe);
            for (reason, count) in Reason::ALL.iter().zip(book.rejected) {
                follow(&self.rejected.with_label_values(&[&*book.name, reason.name()]), count);
            }
            for secret in &book.secrets {
                follow(&self.matched.with_label_values(&[&*book.name, &*secret.id]), secret.matched);
            }
        }
        follow(&self.recovered, ledger.recovered);
        follow(&self.replayed, ledger.replayed);
        for pair in &ledger.pairs {
            let labels = [pair.event.as_str(), pair.target_type.as_str()];
            follow(&self.published.with_label_values(&labels), pair.published);
        }
        for (reason, count) in RefusalReason::ALL.iter().zip(ledger.dead_lettered) {
            follow(&self.dead_lettered.with_label_values(&[reason.name()]), count);
        }
        follow(&self.withdrawn, ledger.withdrawn);
        for (loss, count) in Loss::ALL.iter().zip(ledger.lost) {
            follow(&self.lost.with_label_values(&[loss.name()]), count);
        }
        follow(&self.damaged, snapshot.journal.as_ref().map_or(0, |journal| journal.damaged));
    }
}

impl Gauges {
    fn new(add: &Register<'_>) -> Self {
        Self {
            ready: add.gauge("ready", "1 while events can be accepted."),
            buffer_events: add.gauge("buffer_events", "Events in memory, from enqueue to settle."),
            buffer_bytes: add
                .gauge("buffer_bytes", "Bytes of the events in memory, as counted for the byte limit."),
            buffer_capacity_events: add.gauge("buffer_capacity_events", "buffer.max_events."),
            buffer_capacity_bytes: add.gauge("buffer_capacity_bytes", "buffer.max_bytes."),
            in_flight: add.gauge("in_flight_events", "Messages handed to the broker's client, without a verdict."),
            oldest: add
                .time("oldest_event_timestamp_seconds", "Receipt of the oldest event held; 0 where none is."),
            last_published: add
                .time("last_published_timestamp_seconds", "The last confirmation; 0 before the first."),
            broker_connected: add.gauge("broker_connected", "1 while there is a session with the broker."),
            broker_waiting: add
                .gauge("broker_waiting", "1 while the broker takes nothing for now, or confirmed nothing for 5 s."),
            addresses_waiting: add
                .gauge("addresses_waiting", "Addresses whose oldest event in flight has no answer for 5 s."),
            connections_open: add.gauge("connections_open", "Open connections of senders."),
            connections_capacity: add.gauge("connections_capacity", "ingress.max_connections."),
            journal_events: add.gauge("journal_events", "Events in the journal that are not settled."),
            journal_bytes: add.gauge("journal_bytes", "Bytes of the journal's segments in use."),
            journal_capacity_bytes: add
                .gauge("journal_capacity_bytes", "journal.max_bytes; 0 where there is none."),
            dead_letters_events: add.gauge("dead_letters_events", "Dead letters on disk."),
            dead_letters_bytes: add.gauge("dead_letters_bytes", "Bytes of the dead letters on disk."),
            dead_letters_capacity_bytes: add.gauge("dead_letters_capacity_bytes", "dead_letters.max_bytes."),
            reloaded: add.gauge("config_last_reload_successful", "1 if the last load of the settings was good."),
            certificate: add.time(
                "tls_certificate_not_after_timestamp_seconds",
                "End of the server certificate; 0 without TLS.",
            ),
            mismatch: add.gauge("accounting_mismatch_events", "0, or the accounting has a defect."),
        }
    }

    fn copy(&self, snapshot: &Snapshot, totals: &Totals, moment: &Moment) {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let large = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.ready.set(i64::from(moment.ready));
        self.buffer_events.set(count(snapshot.events));
        self.buffer_bytes.set(count(snapshot.bytes));
        self.buffer_capacity_events.set(count(snapshot.limits.events));
        self.buffer_capacity_bytes.set(count(snapshot.limits.bytes));
        self.in_flight.set(count(moment.in_flight));
        self.oldest.set(unix_seconds(snapshot.oldest));
        self.last_published.set(unix_seconds(moment.last_published));
        self.broker_connected.set(i64::from(moment.broker != ConnectionState::Connecting));
        self.broker_waiting.set(i64::from(moment.broker == ConnectionState::Waiting));
        self.addresses_waiting.set(count(moment.addresses_waiting));
        self.connections_open.set(count(moment.connections_open));
        self.connections_capacity.set(count(moment.connections_capacity));
        let journal = snapshot.journal.as_ref();
        self.journal_events.set(journal.map_or(0, |journal| count(journal.events)));
        self.journal_bytes.set(journal.map_or(0, |journal| large(journal.bytes)));
        self.journal_capacity_bytes.set(journal.map_or(0, |journal| large(journal.capacity)));
        self.dead_letters_events.set(large(moment.dead_letters.0));
        self.dead_letters_bytes.set(large(moment.dead_letters.1));
        self.dead_letters_capacity_bytes.set(large(moment.dead_letters.2));
        self.reloaded.set(i64::from(!moment.reload_failed));
        self.certificate.set(unix_seconds(moment.certificate_not_after));
        self.mismatch.set(large(totals.mismatch()));
    }
}

/// A wall-clock time as Prometheus writes it; 0 for none.
#[must_use]
pub(crate) fn unix_seconds(time: Option<SystemTime>) -> f64 {
    time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok()).map_or(0.0, |since| since.as_secs_f64())
}
