//! The look at the topology after a message came back, or has no confirm for long: does it still stand? At most one a
//! second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lapin::Connection;
use tokio::time::{sleep_until, timeout};

use crate::brokers::look::TopologyLook;
use crate::brokers::rabbitmq::connection::ATTEMPT;
use crate::brokers::rabbitmq::topology::Exchanges;

/// The least time for which the answer that the topology exists counts.
const FRESH: Duration = Duration::from_secs(5);

/// Each look takes some round trips, and each that finds nothing an error in the broker's log.
const PAUSE: Duration = Duration::from_secs(1);

/// The looks.
pub(super) struct Questions {
    /// The time for which the answer that the topology exists counts: longer than the wait for the next try of an address.
    fresh: Duration,
    is_doubted: bool,
    look: TopologyLook<Result<(), String>>,
    /// The time at which it was last found as it should be.
    stood: Option<Instant>,
}

impl Questions {
    /// No question yet; an address is tried again within `retry_max`.
    pub(super) fn new(retry_max: Duration) -> Self {
        let fresh = FRESH.max(retry_max.saturating_mul(2));
        Self { fresh, is_doubted: false, look: TopologyLook::default(), stood: None }
    }

    /// The time to look because confirms are missing, if that is not decided yet.
    pub(super) fn next_doubt(&self, doubtful: Instant) -> Option<Instant> {
        self.look.next(doubtful.into(), PAUSE).filter(|_| !self.is_doubted).map(tokio::time::Instant::into_std)
    }

    /// Is the topology still what it was?
    pub(super) fn doubt(&mut self) {
        self.is_doubted = true;
    }

    /// Looks once more later in place of a look under way: during an alarm the broker reads no question.
    pub(super) fn set_aside(&mut self) {
        self.is_doubted |= self.look.end();
    }

    /// Whether the topology was what it should be a moment ago.
    pub(super) fn has_stood(&self) -> bool {
        self.stood.is_some_and(|stood| stood.elapsed() < self.fresh)
    }

    /// Looks, when there is a doubt; returns what is missing. Never ready without one; cancel-safe.
    pub(super) async fn answer(&mut self, connection: &Arc<Connection>, plan: &Arc<Exchanges>) -> Option<String> {
        let now = tokio::time::Instant::now();
        if let Some(next) = self.look.next(now, PAUSE).filter(|_| self.is_doubted) {
            if next > now {
                sleep_until(next).await;
            }
            self.is_doubted = false;
            let (connection, plan) = (connection.clone(), plan.clone());
            self.look.begin(async move {
                let look = timeout(ATTEMPT, plan.look(&connection)).await;
                look.unwrap_or_else(|_| Err("the broker does not answer".to_owned()))
            });
        }
        let found = self.look.found().await;
        if found.is_ok() {
            self.stood = Some(Instant::now());
        }
        found.err()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_until_an_address_has_been_tried_again() {
        let stood = |retry_max, ago| {
            let stood = Instant::now().checked_sub(Duration::from_secs(ago));
            Questions { stood, ..Questions::new(Duration::from_secs(retry_max)) }.has_stood()
        };
        assert!(stood(1, 4) && !stood(1, 6), "longer than a look and its pause");
        assert!(stood(10, 15) && !stood(10, 21), "longer than the wait between two tries");
    }
}
