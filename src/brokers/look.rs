//! A look at the topology beside the messages of a session: one at a time, with a pause between two, polled by the task
//! that waits for verdicts.

use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

/// One look after the other.
pub(in crate::brokers) struct TopologyLook<T> {
    running: Option<BoxFuture<'static, T>>,
    begun: Option<Instant>,
}

impl<T> Default for TopologyLook<T> {
    fn default() -> Self {
        Self { running: None, begun: None }
    }
}

impl<T> TopologyLook<T> {
    /// The time from which the next look may begin; none while one is under way.
    pub(in crate::brokers) fn next(&self, now: Instant, pause: Duration) -> Option<Instant> {
        self.running.is_none().then(|| self.begun.map_or(now, |begun| now.max(begun + pause)))
    }

    /// Begins a look.
    pub(in crate::brokers) fn begin(&mut self, look: impl Future<Output = T> + Send + 'static) {
        self.begun = Some(Instant::now());
        self.running = Some(look.boxed());
    }

    /// Waits for what the look finds. Never ready without one; cancel-safe.
    pub(in crate::brokers) async fn found(&mut self) -> T {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let found = running.await;
        self.running = None;
        found
    }

    /// Ends a look; whether one was under way.
    pub(in crate::brokers) fn end(&mut self) -> bool {
        self.running.take().is_some()
    }

    /// Takes what the look has found, if it has ended.
    pub(in crate::brokers) fn found_now(&mut self) -> Option<T> {
        self.found().now_or_never()
    }
}
