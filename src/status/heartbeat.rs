//! Signs of life: each thread that must not hang ticks once a second; `/livez` looks when it did last.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often a thread ticks.
const EVERY: Duration = Duration::from_secs(1);

/// A thread that has not ticked for so long hangs.
const DEAD_AFTER: Duration = Duration::from_secs(10);

/// What hangs; empty as long as the bridge is alive.
#[must_use]
pub(crate) fn stalled(heartbeats: &[Heartbeat]) -> Vec<String> {
    heartbeats.iter().filter_map(Heartbeat::problem).collect()
}

/// The heartbeat of one thread.
#[derive(Clone, Debug)]
pub(crate) struct Heartbeat {
    name: Arc<str>,
    start: Instant,
    /// Milliseconds since `start`.
    last: Arc<AtomicU64>,
    /// It waits for something that may take long, and says so.
    paused: Arc<AtomicBool>,
}

impl Heartbeat {
    /// A heartbeat that has just ticked.
    #[must_use]
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.into(), start: Instant::now(), last: Arc::default(), paused: Arc::default() }
    }

    /// Ticks for ever; runs on the thread it speaks for.
    pub(crate) async fn run(self) {
        loop {
            self.tick();
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Waits for broker or disk, however long that takes, or has ended: no sign of hanging, until the next tick.
    pub(crate) fn pause(&self) {
        self.paused.store(true, Ordering::Relaxed);
    }

    /// Shows life.
    pub(crate) fn tick(&self) {
        self.paused.store(false, Ordering::Relaxed);
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// What is wrong, if the thread hangs.
    fn problem(&self) -> Option<String> {
        if self.paused.load(Ordering::Relaxed) {
            return None;
        }
        let since = self.start.elapsed().saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)));
        (since > DEAD_AFTER).then(|| format!("{} has not moved for {} s", self.name, since.as_secs()))
    }
}
