//! Metrics: histograms and plain counters as they happen, and what is counted elsewhere copied in at each scrape.
//!
//! Length: the one list of all series, each with its help text.

use std::time::Duration;

use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::status::{
    BrokerSnapshot, ConnectionState, ErrorKind, JournalState, KeptReason, Loss, Reason, RefusalReason, Snapshot,
    SourceBook, Status, StoreCounts, Totals, unix_seconds,
};

const REQUEST_BUCKETS: [f64; 13] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
/// An event may wait for the broker for days; of those that waited for longer than one, that much is known.
const DELIVERY_BUCKETS: [f64; 18] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0, 14_400.0,
    43_200.0, 86_400.0,
];

/// The status codes with which a source's path can be answered.
const CODES: [u16; 9] = [200, 400, 401, 405, 408, 413, 415, 422, 503];

/// The version of the program.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit it was built from, if the build recorded it.
pub(crate) fn revision() -> &'static str {
    option_env!("PLEXTRAC_BRIDGE_REVISION").unwrap_or("unknown")
}

/// The state that a scrape reports.
struct Scrape<'s> {
    now: &'s Snapshot,
    totals: Totals,
    status: &'s Status,
    broker: BrokerSnapshot,
    ready: bool,
}

impl Scrape<'_> {
    fn journal(&self, number: fn(&JournalState) -> u64) -> u64 {
        self.now.journal.as_ref().map_or(0, number)
    }

    fn dead_letters(&self) -> StoreCounts {
        self.status.dead_letters.as_ref().map_or_else(StoreCounts::default, |held| *held.lock())
    }
}

/// Takes the values of a counter, each with its labels.
type Values<'v> = dyn FnMut(&[&str], u64) + 'v;

/// A counter that is counted elsewhere: its name, its help text, its labels, and its values at a scrape.
type CounterRow = (&'static str, &'static str, &'static [&'static str], fn(&Scrape<'_>, &mut Values<'_>));

const COUNTERS: [CounterRow; 15] = [
    ("events_received_total", "Requests for a source's path whose answer was decided.", &["source"], |at, set| {
        of_sources(at, set, |book| book.received);
    }),
    ("events_accepted_total", "Events taken into buffer or journal.", &["source"], |at, set| {
        of_sources(at, set, |book| book.accepted);
    }),
    (
        "events_duplicate_total",
        "Events that were accepted before, and not published again.",
        &["source"],
        |at, set| {
            of_sources(at, set, |book| book.duplicate);
        },
    ),
    ("events_probe_total", "Connection tests, not published.", &["source"], |at, set| {
        of_sources(at, set, |book| book.probe);
    }),
    ("events_rejected_total", "Requests refused.", &["source", "reason"], |at, set| {
        for book in &at.now.ledger.sources {
            for (reason, count) in Reason::ALL.into_iter().zip(book.rejected) {
                set(&[&*book.name, reason.name()], count);
            }
        }
    }),
    ("signatures_matched_total", "Signatures that matched this secret.", &["source", "secret_id"], |at, set| {
        for book in &at.now.ledger.sources {
            for secret in &book.secrets {
                set(&[&*book.name, &*secret.id], secret.matched);
            }
        }
    }),
    (
        "events_published_total",
        "Events confirmed by the broker, by event and target type in address form.",
        &["event", "target_type"],
        |at, set| {
            for pair in &at.now.ledger.pairs {
                set(&[pair.event.as_str(), pair.target_type.as_str()], pair.published);
            }
        },
    ),
    (
        "events_dead_lettered_total",
        "Events refused by the broker and kept in dead-letters/.",
        &["reason"],
        |at, set| {
            for (reason, count) in RefusalReason::ALL.into_iter().zip(at.now.ledger.dead_lettered) {
                set(&[reason.name()], count);
            }
        },
    ),
    ("events_lost_total", "Accepted events that were lost.", &["reason"], |at, set| {
        for (loss, count) in Loss::ALL.into_iter().zip(at.now.ledger.lost) {
            set(&[loss.name()], count);
        }
    }),
    ("events_recovered_total", "Events taken from the journal at start.", &[], |at, set| {
        set(&[], at.now.ledger.recovered);
    }),
    ("events_replayed_total", "Events taken from dead letters.", &[], |at, set| set(&[], at.now.ledger.replayed)),
    (
        "events_withdrawn_total",
        "Events timed out, or taken back by the end of their replay, before they were sent.",
        &[],
        |at, set| set(&[], at.now.ledger.withdrawn),
    ),
    (
        "events_deviating_total",
        "Events accepted although a field of their payload deviates from the documented one.",
        &["source", "field", "deviation"],
        |at, set| {
            for (source, observed) in &*at.status.observed.lock() {
                for ((field, deviation), count) in observed.deviating.totals() {
                    set(&[&**source, field.name(), deviation.name()], count);
                }
            }
        },
    ),
    ("journal_damaged_records_total", "Damaged records found in the journal.", &[], |at, set| {
        set(&[], at.journal(|journal| journal.damaged));
    }),
    ("config_reloads_total", "Reloads of the settings.", &["result"], |at, set| {
        let reloads = at.status.reloads.lock();
        set(&["success"], reloads.good);
        set(&["failure"], reloads.bad);
    }),
];

fn of_sources(at: &Scrape<'_>, set: &mut Values<'_>, number: fn(&SourceBook) -> u64) {
    for book in &at.now.ledger.sources {
        set(&[&*book.name], number(book));
    }
}

/// A gauge: its name, its help text, and its value at a scrape.
type GaugeRow = (&'static str, &'static str, fn(&Scrape<'_>) -> f64);

#[expect(clippy::cast_precision_loss, reason = "Prometheus knows no other numbers")]
const GAUGES: [GaugeRow; 22] = [
    ("ready", "1 while events can be accepted.", |at| f64::from(at.ready)),
    ("buffer_events", "Events in memory, from enqueue to settle.", |at| at.now.events as f64),
    ("buffer_bytes", "Bytes of the events in memory, as counted for the byte limit.", |at| at.now.bytes as f64),
    ("buffer_capacity_events", "buffer.max_events.", |at| at.now.limits.events as f64),
    ("buffer_capacity_bytes", "buffer.max_bytes.", |at| at.now.limits.bytes as f64),
    ("in_flight_events", "Messages handed to the broker's client, without a verdict.", |at| {
        at.broker.in_flight as f64
    }),
    ("oldest_event_timestamp_seconds", "Receipt of the oldest event held; 0 where none is.", |at| {
        unix_seconds(at.now.oldest)
    }),
    ("last_published_timestamp_seconds", "The last confirmation; 0 before the first.", |at| {
        unix_seconds(at.broker.last_published)
    }),
    ("broker_connected", "1 while there is a session with the broker.", |at| {
        f64::from(at.broker.state != ConnectionState::Connecting)
    }),
    ("broker_waiting", "1 while the broker takes nothing at the moment, or has confirmed nothing for 5 s.", |at| {
        f64::from(at.broker.state == ConnectionState::Waiting)
    }),
    ("addresses_waiting", "Addresses whose oldest event in flight has no answer for 5 s.", |at| {
        at.broker.waiting_count as f64
    }),
    ("connections_open", "Open connections of senders.", |at| at.status.connections.lock().open as f64),
    ("connections_capacity", "ingress.max_connections.", |at| at.status.connections.lock().capacity as f64),
    ("journal_events", "Events in the journal that are not settled.", |at| {
        at.journal(|journal| journal.events as u64) as f64
    }),
    ("journal_bytes", "Bytes of the journal's segments in use.", |at| at.journal(|journal| journal.bytes) as f64),
    ("journal_capacity_bytes", "journal.max_bytes; 0 where there is none.", |at| {
        at.journal(|journal| journal.capacity) as f64
    }),
    ("dead_letters_events", "Dead letters on disk.", |at| at.dead_letters().events as f64),
    ("dead_letters_bytes", "Bytes of the dead letters on disk.", |at| at.dead_letters().bytes as f64),
    ("dead_letters_capacity_bytes", "dead_letters.max_bytes; 0 where there are none.", |at| {
        at.dead_letters().capacity as f64
    }),
    ("config_last_reload_successful", "1 if the settings were last loaded without an error.", |at| {
        f64::from(at.status.reloads.lock().last.as_ref().is_none_or(|last| last.error.is_none()))
    }),
    ("tls_certificate_not_after_timestamp_seconds", "Expiry of the server certificate; 0 without TLS.", |at| {
        unix_seconds(at.status.ingress.lock().certificate_not_after)
    }),
    ("accounting_mismatch_events", "0, or the accounting has a defect.", |at| at.totals.mismatch() as f64),
];

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
    /// By [`COUNTERS`].
    counters: Vec<IntCounterVec>,
    /// By [`GAUGES`].
    gauges: Vec<Gauge>,
}

/// The name, under the program's prefix, and the help text of a series.
fn options(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace("plextrac_bridge")
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let collector = made.expect("the names and labels below are legal");
    registry.register(Box::new(collector.clone())).expect("the names below are unique");
    collector
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
    pub(crate) fn new(ack: &str) -> Self {
        let registry = Registry::new();
        let process = prometheus::process_collector::ProcessCollector::for_self();
        registry.register(Box::new(process)).expect("the process collector is registered once");
        let counter = |name, help| register(&registry, IntCounter::with_opts(options(name, help)));
        let counters =
            |name, help, labels: &[&str]| register(&registry, IntCounterVec::new(options(name, help), labels));
        let bounded =
            |name, help, bounds: &[f64]| HistogramOpts::from(options(name, help)).buckets(bounds.to_vec());
        let histogram =
            |name, help, bounds: &[f64]| register(&registry, Histogram::with_opts(bounded(name, help, bounds)));
        let build_options = options(
            "build_info",
            "Always 1; the labels name the version, the commit and the promise behind a 200.",
        );
        let build = register(&registry, IntGaugeVec::new(build_options, &["version", "revision", "ack"]));
        build.with_label_values(&[VERSION, revision(), ack]).set(1);
        let request_options = bounded(
            "request_duration_seconds",
            "From the head of a request for a source's path to its answer.",
            &REQUEST_BUCKETS,
        );
        let metrics = Self {
            scrape: Mutex::new(()),
            requests: counters(
                "requests_total",
                "Answered requests; source \"none\": no source's path, or not HTTP/1.1.",
                &["source", "code"],
            ),
            request_duration: register(&registry, HistogramVec::new(request_options, &["source"])),
            publish_duration: histogram(
                "publish_duration_seconds",
                "From handing a message to the broker's client to its verdict.",
                &DELIVERY_BUCKETS,
            ),
            delivery_duration: histogram(
                "delivery_duration_seconds",
                "From accepting an event to settling it.",
                &DELIVERY_BUCKETS,
            ),
            journal_sync_duration: histogram(
                "journal_sync_duration_seconds",
                "One commit of the journal: one write and one fdatasync.",
                &REQUEST_BUCKETS,
            ),
            retries: counter("publish_retries_total", "Messages handed to the broker's client again."),
            out_of_order: counter(
                "publish_out_of_order_total",
                "Messages stored after a later one of their key, because the broker had refused them for now.",
            ),
            broker_errors: counters("broker_errors_total", "Errors of the broker.", &["kind"]),
            invalid_kept: counters(
                "invalid_kept_total",
                "Signed bodies kept instead of published: not what the source takes, not JSON, connection tests.",
                &["reason"],
            ),
            counters: COUNTERS.map(|(name, help, labels, _)| counters(name, help, labels)).into(),
            gauges: GAUGES.map(|(name, help, _)| register(&registry, Gauge::with_opts(options(name, help)))).into(),
            registry: registry.clone(),
        };
        // Every series exists from the start.
        for code in ["400", "404", "431"] {
            metrics.requests.with_label_values(&["none", code]);
        }
        for reason in KeptReason::ALL {
            metrics.invalid_kept(reason, 0);
        }
        for kind in ErrorKind::ALL {
            metrics.broker_errors.with_label_values(&[kind.name()]);
        }
        metrics
    }

    /// The series that one source's requests use, looked up once; they exist from now on.
    pub(crate) fn source(&self, source: &str) -> SourceMetrics {
        SourceMetrics {
            duration: self.request_duration.with_label_values(&[source]),
            codes: CODES.map(|code| self.requests.with_label_values(&[source, code.to_string().as_str()])),
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

    /// Counts an error of the broker.
    pub(crate) fn broker_error(&self, kind: ErrorKind) {
        self.broker_errors.with_label_values(&[kind.name()]).inc();
    }

    /// All series as text, at this moment.
    pub(crate) fn render(&self, now: &Snapshot, status: &Status, ready: bool) -> String {
        // Two concurrent scrapes must not both add the same difference.
        let _one = self.scrape.lock();
        let scrape = Scrape { now, totals: now.totals(), status, broker: status.broker.copy(), ready };
        for (counters, (.., values)) in self.counters.iter().zip(COUNTERS) {
            values(&scrape, &mut |labels, count| {
                let counter = counters.with_label_values(labels);
                counter.inc_by(count.saturating_sub(counter.get()));
            });
        }
        for (gauge, (_, _, value)) in self.gauges.iter().zip(GAUGES) {
            gauge.set(value(&scrape));
        }
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

/// The series of one source, without look-ups.
#[derive(Clone, Debug)]
pub(crate) struct SourceMetrics {
    duration: Histogram,
    /// By [`CODES`].
    codes: [IntCounter; CODES.len()],
}

impl SourceMetrics {
    /// Counts an answer.
    pub(crate) fn answered(&self, code: u16, duration: Duration) {
        let at = CODES.iter().position(|known| *known == code).unwrap_or(CODES.len() - 1);
        self.codes[at].inc();
        self.duration.observe(duration.as_secs_f64());
    }
}
