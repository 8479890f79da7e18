//! Heartbeats: each thread that must not stall ticks once a second, and `/livez` reads the time of its last tick.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The interval between two ticks.
const EVERY: Duration = Duration::from_secs(1);

/// The time without a tick after which a thread counts as stalled.
const STALLED_AFTER: Duration = Duration::from_secs(10);

/// The heartbeats of the threads that must not stall.
#[derive(Debug, Default)]
pub(crate) struct Heartbeats(Mutex<Vec<Heartbeat>>);

impl Heartbeats {
    /// Adds the heartbeat of a thread.
    pub(crate) fn add(&self, name: &str) -> Heartbeat {
        let heartbeat = Heartbeat::new(name);
        self.0.lock().push(heartbeat.clone());
        heartbeat
    }

    /// The stalled threads; empty as long as the bridge is alive.
    pub(crate) fn stalled(&self) -> Vec<String> {
        self.0.lock().iter().filter_map(Heartbeat::problem).collect()
    }
}

/// The heartbeat of one thread.
#[derive(Clone, Debug)]
pub(crate) struct Heartbeat {
    name: Arc<str>,
    /// The time of the last tick; none while the thread waits for something that may take long, and has announced it.
    last: Arc<Mutex<Option<Instant>>>,
}

impl Heartbeat {
    /// A heartbeat that has just ticked.
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.into(), last: Arc::new(Mutex::new(Some(Instant::now()))) }
    }

    /// Ticks for ever; runs on the monitored thread.
    pub(crate) async fn run(self) {
        loop {
            self.tick();
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Pauses the check until the next tick: the thread waits for broker or disk, however long that takes, or has
    /// ended.
    pub(crate) fn pause(&self) {
        *self.last.lock() = None;
    }

    /// Records a tick.
    pub(crate) fn tick(&self) {
        *self.last.lock() = Some(Instant::now());
    }

    /// The problem, if the thread is stalled.
    fn problem(&self) -> Option<String> {
        let since = self.last.lock().as_ref()?.elapsed();
        (since > STALLED_AFTER).then(|| format!("{} has not moved for {} s", self.name, since.as_secs()))
    }
}
