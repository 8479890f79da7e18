//! Logs: format and level, the filter for client libraries, and the rate limit for repeated lines.
//!
//! Length: the limit, its reports and their tests belong to the writer.

use std::fmt;
use std::io::{self, IsTerminal as _, Write};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{JsonFields, Writer, format};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{Registry, registry, reload};

use crate::settings::Section;

/// `log.format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Text on a terminal, otherwise JSON.
    Auto,
    /// For human readers.
    Text,
    /// For programs: one object per line.
    Json,
}

/// `[log]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// The format of lines.
    pub(crate) format: Format,
    /// The lowest level that is written.
    pub(crate) level: LevelFilter,
}

impl Settings {
    /// Reads `[log]`.
    pub(crate) fn read(section: &mut Section<'_>) -> Self {
        Self {
            format: section
                .choice("format", &[("auto", Format::Auto), ("text", Format::Text), ("json", Format::Json)]),
            level: section.choice(
                "level",
                &[
                    ("info", LevelFilter::INFO),
                    ("error", LevelFilter::ERROR),
                    ("warn", LevelFilter::WARN),
                    ("debug", LevelFilter::DEBUG),
                    ("trace", LevelFilter::TRACE),
                ],
            ),
        }
    }
}

/// The number of lines that may wait to be written while standard error is not read; further lines are dropped, because
/// a log must not delay a request.
const WAITING_LINES: usize = 4096;

/// The running log. When it is dropped, waiting lines are written.
#[derive(Debug)]
pub(crate) struct Log {
    level: Level,
    gate: LogGate,
    _guard: WorkerGuard,
}

/// A gate before the thread that writes: at the end it lets only one thread pass.
#[derive(Clone, Debug)]
struct LogGate {
    writer: NonBlocking,
    only: Arc<Mutex<Option<ThreadId>>>,
}

impl Write for LogGate {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // Held while the line is handed over, so that lines stay in order.
        let only = self.only.lock();
        if only.is_some_and(|only| only != std::thread::current().id()) {
            return Ok(line.len());
        }
        self.writer.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl MakeWriter<'_> for LogGate {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Log {
    /// A handle that changes the level.
    pub(crate) fn level(&self) -> Level {
        self.level.clone()
    }

    /// Lets only this thread write from now on, so that the last line is its own, whatever other threads, including
    /// those of client libraries, still log; at every level, because the accounting is always written.
    pub(crate) fn close(&self) {
        *self.gate.only.lock() = Some(std::thread::current().id());
        self.level.set(LevelFilter::INFO);
    }
}

/// Changes the level of the log.
#[derive(Clone, Debug)]
pub(crate) struct Level(reload::Handle<Targets, Registry>);

impl Level {
    /// Sets the lowest level that is written.
    pub(crate) fn set(&self, level: LevelFilter) {
        // It fails only once the log has ended, when nothing is written any more.
        let _ = self.0.reload(targets(level));
    }
}

/// The filter by module. Client libraries log what they send, credentials included, at their lower levels; the bridge
/// logs what matters itself. lapin warns about every returned message, which the bridge handles.
fn targets(level: LevelFilter) -> Targets {
    Targets::new()
        .with_default(LevelFilter::WARN.min(level))
        .with_target("lapin", LevelFilter::OFF)
        .with_target("async_nats", LevelFilter::OFF)
        .with_target("librdkafka", LevelFilter::OFF)
        .with_target("rdkafka", LevelFilter::OFF)
        .with_target("plextrac_bridge", level)
}

/// Whether standard error goes to systemd's journal, see `systemd.exec(5)`: `JOURNAL_STREAM` is its device and inode.
fn is_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    rustix::fs::fstat(io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// The priority of a level, as `sd-daemon(3)` has them.
fn priority(level: tracing::Level) -> u8 {
    match level {
        tracing::Level::ERROR => 3,
        tracing::Level::WARN => 4,
        tracing::Level::INFO => 6,
        _ => 7,
    }
}

/// Lines that begin with their priority where they go to systemd's journal.
struct Prioritised<F> {
    format: F,
    to_journal: bool,
}

impl<S, N, F> FormatEvent<S, N> for Prioritised<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if self.to_journal {
            write!(writer, "<{}>", priority(*event.metadata().level()))?;
        }
        self.format.format_event(context, writer, event)
    }
}

/// Starts writing logs to standard error, from a thread of their own.
///
/// # Errors
/// Logging was started before.
pub(crate) fn start(settings: Settings) -> Result<Log, TryInitError> {
    let (targets, handle) = reload::Layer::new(targets(settings.level));
    let text = match settings.format {
        Format::Text => true,
        Format::Json => false,
        Format::Auto => io::stderr().is_terminal(),
    };
    let (writer, guard) = NonBlockingBuilder::default()
        .thread_name("log")
        .buffered_lines_limit(WAITING_LINES)
        .lossy(true)
        .finish(io::stderr());
    let _ = DROPPED.set(writer.error_counter());
    let gate = LogGate { writer, only: Arc::default() };
    let layer = tracing_subscriber::fmt::layer().with_writer(gate.clone());
    let to_journal = is_journal();
    if text {
        let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        let format = Prioritised { format: format().with_target(false), to_journal };
        registry().with(layer.with_ansi(colour).event_format(format).with_filter(targets)).try_init()?;
    } else {
        let format = Prioritised { format: format().json().flatten_event(true), to_journal };
        registry()
            .with(layer.fmt_fields(JsonFields::new()).event_format(format).with_filter(targets))
            .try_init()?;
    }
    Ok(Log { level: Level(handle), gate, _guard: guard })
}

/// All throttles, so that what they left out is reported.
static THROTTLES: Mutex<Vec<Weak<Limit>>> = Mutex::new(Vec::new());

/// The lines that were dropped because standard error was not read.
static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// The interval at which the log says what it left out.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Reports for ever what was left out, at the end of each period.
pub(crate) async fn report_left_out() {
    let mut dropped = 0;
    loop {
        tokio::time::sleep(REPORT_INTERVAL).await;
        report(false);
        let now = DROPPED.get().map_or(0, ErrorCounter::dropped_lines);
        if now > dropped {
            tracing::warn!(
                left_out = now - dropped,
                "left out lines of the log: standard error was not read in time"
            );
            dropped = now;
        }
    }
}

/// Reports what was left out so far: nothing else follows.
pub(crate) fn report_all_left_out() {
    report(true);
}

/// Reports what was left out in periods that are over, or `at_once` in the current ones, too.
fn report(at_once: bool) {
    let mut throttles = THROTTLES.lock();
    throttles.retain(|throttle| throttle.strong_count() > 0);
    let throttles: Vec<_> = throttles.iter().filter_map(Weak::upgrade).collect();
    for (kind, left_out) in throttles.iter().filter_map(|throttle| throttle.due(at_once)) {
        tracing::warn!(left_out, "left out more lines of this kind: {kind}");
    }
}

/// Admits a limited number of lines of the same kind per period. What it leaves out is counted, and reported once the
/// period is over.
#[derive(Debug)]
pub(crate) struct Throttle(Arc<Limit>);

#[derive(Debug)]
struct Limit {
    kind: &'static str,
    most: u32,
    period: Duration,
    state: Mutex<Period>,
}

/// A period of a [`Throttle`].
#[derive(Debug)]
struct Period {
    start: Instant,
    /// The number of lines in the period.
    count: u32,
    /// The number left out and not reported.
    left_out: u64,
}

impl Limit {
    /// Counts a line; returns the state if it is admitted.
    fn admit(&self) -> Option<MutexGuard<'_, Period>> {
        let mut state = self.state.lock();
        let now = Instant::now();
        if now.duration_since(state.start) >= self.period {
            (state.start, state.count) = (now, 0);
        }
        state.count = state.count.saturating_add(1);
        if state.count > self.most {
            state.left_out += 1;
            return None;
        }
        Some(state)
    }

    /// The kind and number of lines left out that are to be reported now.
    fn due(&self, at_once: bool) -> Option<(&'static str, u64)> {
        let mut state = self.state.lock();
        let is_due = at_once || state.start.elapsed() >= self.period;
        (is_due && state.left_out > 0).then(|| (self.kind, std::mem::take(&mut state.left_out)))
    }
}

impl Throttle {
    /// Admits at most `most` lines of this kind per `period`.
    pub(crate) fn new(kind: &'static str, most: u32, period: Duration) -> Self {
        let state = Mutex::new(Period { start: Instant::now(), count: 0, left_out: 0 });
        let limit = Arc::new(Limit { kind, most, period, state });
        THROTTLES.lock().push(Arc::downgrade(&limit));
        Self(limit)
    }

    /// Whether this one is admitted.
    pub(crate) fn admits(&self) -> bool {
        self.0.admit().is_some()
    }

    /// The number left out and not reported so far, for this line to report; none if it is left out, too.
    pub(crate) fn left_out(&self) -> Option<u64> {
        self.0.admit().map(|mut state| std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything written so far.
    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn writes_nothing_of_other_threads_once_it_is_closed() {
        let written = Captured::default();
        let (writer, guard) = NonBlockingBuilder::default().finish(written.clone());
        let mut gate = LogGate { writer, only: Arc::default() };
        let mut other = gate.clone();
        let mut late = gate.clone();
        std::thread::spawn(move || other.write_all(b"other\n").unwrap()).join().unwrap();
        *gate.only.lock() = Some(std::thread::current().id());
        gate.write_all(b"last\n").unwrap();
        std::thread::spawn(move || late.write_all(b"late\n").unwrap()).join().unwrap();
        drop(guard);
        assert_eq!(String::from_utf8_lossy(&written.0.lock()), "other\nlast\n");
    }

    #[test]
    fn lets_so_many_through_per_period() {
        let throttle = Throttle::new("tests", 2, Duration::from_hours(1));
        assert_eq!([throttle.admits(), throttle.admits(), throttle.admits()], [true, true, false]);
        let throttle = Throttle::new("tests", 1, Duration::ZERO);
        assert_eq!([throttle.admits(), throttle.admits()], [true, true]);
    }

    #[test]
    fn counts_what_it_left_out_until_it_is_reported() {
        let throttle = Throttle::new("tests", 1, Duration::from_hours(1));
        assert_eq!([throttle.left_out(), throttle.left_out()], [Some(0), None]);
        assert!(!throttle.admits());
        assert_eq!(throttle.0.due(false), None, "the period is not over");
        assert_eq!(throttle.0.due(true), Some(("tests", 2)));
        assert_eq!(throttle.0.due(true), None, "it is reported");
        let throttle = Throttle::new("tests", 0, Duration::ZERO);
        assert!(!throttle.admits());
        assert_eq!(throttle.0.due(false), Some(("tests", 1)));
        let limit = Limit {
            kind: "tests",
            most: 1,
            period: Duration::ZERO,
            state: Mutex::new(Period { start: Instant::now(), count: 1, left_out: 2 }),
        };
        assert_eq!(limit.admit().map(|state| state.left_out), Some(2));
    }

    #[test]
    fn prefixes_lines_with_the_priority_of_their_level() {
        let priorities = [
            tracing::Level::ERROR,
            tracing::Level::WARN,
            tracing::Level::INFO,
            tracing::Level::DEBUG,
            tracing::Level::TRACE,
        ]
        .map(priority);
        assert_eq!(priorities, [3, 4, 6, 7, 7]);
    }
}
