//! Logs: format and level, the filter for client libraries, and the rate limit for repeated lines.

use std::io::{self, IsTerminal as _, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
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
        let only = self.only.lock().unwrap_or_else(PoisonError::into_inner);
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
    #[must_use]
    pub(crate) fn level(&self) -> Level {
        self.level.clone()
    }

    /// Lets only this thread write from now on, so that the last line is its own, whatever other threads, including
    /// those of client libraries, still log.
    pub(crate) fn close(&self) {
        *self.gate.only.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::thread::current().id());
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
    let gate = LogGate { writer, only: Arc::default() };
    let layer = tracing_subscriber::fmt::layer().with_writer(gate.clone());
    if text {
        let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        registry().with(layer.with_ansi(colour).with_target(false).with_filter(targets)).try_init()?;
    } else {
        registry().with(layer.json().flatten_event(true).with_filter(targets)).try_init()?;
    }
    Ok(Log { level: Level(handle), gate, _guard: guard })
}

/// Admits a limited number of the same kind per period.
#[derive(Debug)]
pub(crate) struct Throttle {
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
    /// The number left out since the last one that was admitted.
    left_out: u64,
}

impl Throttle {
    /// Admits at most `most` per `period`.
    #[must_use]
    pub(crate) fn new(most: u32, period: Duration) -> Self {
        Self { most, period, state: Mutex::new(Period { start: Instant::now(), count: 0, left_out: 0 }) }
    }

    /// Whether this one is admitted.
    pub(crate) fn admits(&self) -> bool {
        self.left_out().is_some()
    }

    /// The number left out since the last one that was admitted; none if this one is left out, too.
    pub(crate) fn left_out(&self) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if now.duration_since(state.start) >= self.period {
            (state.start, state.count) = (now, 0);
        }
        state.count = state.count.saturating_add(1);
        if state.count > self.most {
            state.left_out += 1;
            return None;
        }
        Some(std::mem::take(&mut state.left_out))
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
            self.0.lock().unwrap().extend_from_slice(bytes);
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
        *gate.only.lock().unwrap() = Some(std::thread::current().id());
        gate.write_all(b"last\n").unwrap();
        std::thread::spawn(move || late.write_all(b"late\n").unwrap()).join().unwrap();
        drop(guard);
        assert_eq!(String::from_utf8_lossy(&written.0.lock().unwrap()), "other\nlast\n");
    }

    #[test]
    fn lets_so_many_through_per_period() {
        let throttle = Throttle::new(2, Duration::from_hours(1));
        assert_eq!([throttle.admits(), throttle.admits(), throttle.admits()], [true, true, false]);
        let throttle = Throttle::new(1, Duration::ZERO);
        assert_eq!([throttle.admits(), throttle.admits()], [true, true]);
    }

    #[test]
    fn counts_what_it_left_out() {
        let mut throttle = Throttle::new(1, Duration::from_hours(1));
        assert_eq!([throttle.left_out(), throttle.left_out(), throttle.left_out()], [Some(0), None, None]);
        throttle.period = Duration::ZERO;
        assert_eq!([throttle.left_out(), throttle.left_out()], [Some(2), Some(0)]);
    }
}
