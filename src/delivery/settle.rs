//! Settle: every event ends published, as a dead letter, or counted lost; only then is its room free again.

use std::time::{Duration, Instant, SystemTime};

use crate::accounting::Loss;
use crate::brokers::{ErrorKind, Headers, Refusal};
use crate::delivery::dead_letters::{self, Store};
use crate::delivery::ring::{Ring, Taken};
use crate::delivery::view::View;
use crate::logs::Throttle;
use crate::metrics::Metrics;
use crate::queue::{Buffer, Settlement};

/// How long delivery waits before it tries again to write dead letters.
const DISK_RETRY: Duration = Duration::from_secs(1);

/// Collects what one batch of verdicts settles.
#[derive(Debug)]
pub(super) struct Settler {
    settlement: Settlement,
    refused: Vec<(Taken, Refusal)>,
    store: Option<Store>,
    headers: Headers,
    throttle: Throttle,
}

impl Settler {
    pub(super) fn new(store: Option<Store>, headers: Headers) -> Self {
        let throttle = Throttle::new(5, Duration::from_secs(1));
        Self { settlement: Settlement::default(), refused: Vec::new(), store, headers, throttle }
    }

    /// A confirmed message.
    pub(super) fn published(&mut self, taken: &Taken, now: Instant, metrics: &Metrics) {
        if let Some(handed) = taken.handed {
            metrics.publish_duration(now.saturating_duration_since(handed));
        }
        metrics.delivery_duration(now.saturating_duration_since(taken.message.event.accepted));
        if taken.overtaken {
            metrics.out_of_order();
        }
        self.settlement.published.push(taken.pair);
        self.settlement.bytes += taken.message.event.cost();
    }

    /// A message refused for good.
    pub(super) fn refused(&mut self, taken: Taken, refusal: Refusal, metrics: &Metrics) {
        metrics.broker_error(ErrorKind::Refused);
        if self.throttle.admits() {
            tracing::warn!(
                id = taken.message.event.id(),
                address = &*taken.message.address,
                reason = refusal.reason.name(),
                "the broker refused an event: {}{}",
                refusal.text,
                if self.store.is_some() {
                    "; it becomes a dead letter"
                } else {
                    "; lost, for there is no `state_directory` to keep it in"
                },
            );
        }
        self.refused.push((taken, refusal));
    }

    /// How many refused messages wait to be settled.
    pub(super) fn refused_count(&self) -> usize {
        self.refused.len()
    }

    /// Whether anything waits to be settled.
    pub(super) fn is_empty(&self) -> bool {
        self.settlement.is_empty() && self.refused.is_empty()
    }

    /// Writes the dead letters of the batch, counts everything, frees its room. While the disk is full or fails it
    /// waits and tries again: nothing is dropped. Cancel-safe: what is not settled yet stays here.
    pub(super) async fn settle(&mut self, ring: &Ring, queue: &Buffer, view: &View) {
        // The confirmed ones first: they need not wait for a disk.
        self.count(ring, queue, view);
        if self.refused.is_empty() {
            return;
        }
        let lines: Vec<Vec<u8>> = self
            .refused
            .iter()
            .map(|(taken, refusal)| {
                let message = &taken.message;
                let (address, key) = (&message.address, &message.key);
                dead_letters::line(&message.event, address, key, &self.headers, refusal, taken.attempts)
            })
            .collect();
        if self.store.is_some() {
            self.write(&lines, view).await;
        }
        for (taken, refusal) in self.refused.drain(..) {
            self.settlement.bytes += taken.message.event.cost();
            if self.store.is_some() {
                self.settlement.dead_lettered.push(refusal.reason);
            } else {
                self.settlement.lost.push(Loss::Refused);
            }
        }
        self.count(ring, queue, view);
    }

    async fn write(&mut self, lines: &[Vec<u8>], view: &View) {
        while let Some(store) = &mut self.store {
            // Refusals are rare and a sync takes a millisecond: worth no thread of its own.
            let Err(error) = store.append(lines) else { break };
            let text = error.to_string();
            if self.throttle.admits() {
                tracing::error!("delivery waits: {text}");
            }
            view.change(|view| view.blocked = Some(text));
            tokio::time::sleep(DISK_RETRY).await;
        }
        view.change(|view| view.blocked = None);
    }

    fn count(&mut self, ring: &Ring, queue: &Buffer, view: &View) {
        if self.settlement.is_empty() {
            return;
        }
        let oldest = self.refused.first().map(|(taken, _)| taken.message.event.origin.received);
        queue.settle(&self.settlement, oldest.or_else(|| ring.oldest()));
        if !self.settlement.published.is_empty() {
            view.change(|view| view.last_published = Some(SystemTime::now()));
        }
        self.settlement.clear();
    }

    /// Counts everything still unsettled as lost at exit.
    pub(super) fn lose(&mut self, ring: &mut Ring, queue: &Buffer) -> usize {
        let refused = std::mem::take(&mut self.refused).into_iter().map(|(taken, _)| taken.message);
        for message in refused.chain(ring.drain()) {
            self.settlement.bytes += message.event.cost();
            self.settlement.lost.push(Loss::Exit);
        }
        let count = self.settlement.lost.len();
        queue.settle(&self.settlement, None);
        self.settlement.clear();
        queue.lose_waiting();
        count
    }
}
