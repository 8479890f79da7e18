//! The number of messages that librdkafka gets at once.
//!
//! librdkafka has one request in flight per partition, and busy-loops while messages wait for the in-flight request for
//! longer than `linger.ms`: a whole processor while the cluster is stalled. So it gets what makes one request, and more
//! when all of it is answered. Meanwhile the next batch gathers: the more there is to do, the larger it gets.
//!
//! Source: `rd_kafka_toppar_producer_serve` in librdkafka's `rdkafka_broker.c` (its limit of five in flight counts
//! messages), and measured: with a paused cluster a burst of 50,000 events costs 14 instead of 26 us each.

use std::time::{Duration, Instant};

use crate::brokers::kafka::record::BATCH_SIZE;

/// How long librdkafka waits for a request to fill: twice what filling it may take here, and all that a lone event
/// waits.
pub(super) const LINGER: Duration = Duration::from_millis(2);

/// Below half of what librdkafka puts in one request (`batch.size`): a last large message still fits.
const BYTES: usize = BATCH_SIZE / 2;

/// What librdkafka puts in one request (`batch.num.messages`).
const MESSAGES: usize = 10_000;

/// So many messages are added between two looks at the clock.
const BETWEEN_LOOKS: usize = 32;

/// What librdkafka has, from the first message until the last verdict.
#[derive(Debug, Default)]
pub(super) struct ClientBatch {
    messages: usize,
    bytes: usize,
    /// When the first message went in.
    since: Option<Instant>,
    /// Nothing more joins it.
    closed: bool,
}

impl ClientBatch {
    /// Messages without a verdict.
    pub(super) fn messages(&self) -> usize {
        self.messages
    }

    /// Notes a message of so many bytes.
    pub(super) fn add(&mut self, bytes: usize) {
        self.since.get_or_insert_with(Instant::now);
        self.messages += 1;
        self.bytes += bytes;
        let is_late = self.messages.is_multiple_of(BETWEEN_LOOKS)
            && self.since.is_some_and(|since| since.elapsed() > LINGER / 2);
        self.closed |= is_late || self.bytes >= BYTES || self.messages >= MESSAGES;
    }

    /// Nothing more joins it, until it is answered.
    pub(super) fn close(&mut self) {
        self.closed = self.messages > 0;
    }

    /// Notes so many verdicts.
    pub(super) fn answered(&mut self, messages: usize) {
        self.messages = self.messages.saturating_sub(messages);
        if self.messages == 0 {
            *self = Self::default();
        }
    }

    /// Whether another message can go with it.
    pub(super) fn takes_more(&self) -> bool {
        !self.closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_nothing_until_all_of_it_is_answered() {
        let mut batch = ClientBatch::default();
        batch.close();
        assert!(batch.takes_more(), "an empty one has nothing to wait for");
        batch.add(100);
        batch.add(100);
        assert!(batch.takes_more());
        batch.close();
        assert!(!batch.takes_more());
        batch.answered(1);
        assert!(!batch.takes_more() && batch.messages() == 1);
        batch.answered(1);
        assert!(batch.takes_more());
    }

    #[test]
    fn is_full_by_bytes_and_by_messages() {
        let mut batch = ClientBatch::default();
        batch.add(BYTES - 1);
        assert!(batch.takes_more());
        batch.add(1);
        assert!(!batch.takes_more());
        batch.answered(2);
        for _ in 1..MESSAGES {
            batch.since = None;
            batch.add(0);
        }
        assert!(batch.takes_more());
        batch.add(0);
        assert!(!batch.takes_more());
    }

    #[test]
    fn is_not_filled_for_longer_than_librdkafka_waits() {
        let since = Instant::now().checked_sub(LINGER);
        assert!(since.is_some(), "this clock began a moment ago");
        let mut batch = ClientBatch { since, ..ClientBatch::default() };
        for _ in 1..BETWEEN_LOOKS {
            batch.add(1);
        }
        assert!(batch.takes_more());
        batch.add(1);
        assert!(!batch.takes_more());
    }
}
