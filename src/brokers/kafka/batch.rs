//! The number of messages that librdkafka gets at once, topic by topic: only librdkafka knows the partition of a record.
//!
//! librdkafka has one request in flight per partition, and busy-loops while messages wait for the in-flight request for
//! longer than `linger.ms`: a whole processor while the cluster is stalled. So it gets what makes one request of a topic,
//! and more when all of it is answered. Meanwhile the next batch gathers: the more there is to do, the larger it gets.
//!
//! Source: `rd_kafka_toppar_producer_serve` in librdkafka's `rdkafka_broker.c` (its limit of five in flight counts
//! messages), and measured: with a paused cluster a burst of 50,000 events costs 14 instead of 26 us each.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::brokers::kafka::record::BATCH_SIZE;

/// The time that librdkafka waits for a request to fill: twice the limit here. A few messages do not wait: once
/// their batch is closed, librdkafka is told to send it.
pub(super) const LINGER: Duration = Duration::from_millis(2);

/// Below half of what librdkafka puts in one request (`batch.size`): a last large message still fits.
const BYTES: usize = BATCH_SIZE / 2;

/// The most messages that librdkafka puts in one request (`batch.num.messages`).
const MESSAGES: usize = 10_000;

/// So many messages are added between two looks at the clock.
const BETWEEN_LOOKS: usize = 32;

/// The number of a topic among the batches; beyond the last one topics share it.
pub(super) type BatchNumber = u16;

/// The messages that librdkafka has, topic by topic.
#[derive(Debug, Default)]
pub(super) struct TopicBatches {
    numbers: HashMap<Arc<str>, BatchNumber>,
    batches: Vec<ClientBatch>,
    /// Those that more may join, with something in them.
    open: Vec<BatchNumber>,
    messages: usize,
}

impl TopicBatches {
    /// The number of this topic.
    pub(super) fn number(&mut self, topic: &Arc<str>) -> BatchNumber {
        if let Some(number) = self.numbers.get(topic) {
            return *number;
        }
        let number = BatchNumber::try_from(self.batches.len()).unwrap_or(BatchNumber::MAX);
        if self.batches.len() <= usize::from(BatchNumber::MAX) {
            self.batches.push(ClientBatch::default());
        }
        self.numbers.insert(topic.clone(), number);
        number
    }

    /// Messages without a verdict.
    pub(super) fn messages(&self) -> usize {
        self.messages
    }

    /// Notes a message of so many bytes.
    pub(super) fn add(&mut self, number: BatchNumber, bytes: usize) {
        self.messages += 1;
        if let Some(batch) = self.batches.get_mut(usize::from(number)) {
            if batch.messages == 0 {
                self.open.push(number);
            }
            batch.add(bytes);
        }
    }

    /// Nothing more joins what is there, until it is answered. Returns the number of messages that this is said of for
    /// the first time.
    pub(super) fn close(&mut self) -> usize {
        let mut closed = 0;
        for number in self.open.drain(..) {
            if let Some(batch) = self.batches.get_mut(usize::from(number)) {
                batch.closed = batch.messages > 0;
                closed += batch.messages;
            }
        }
        closed
    }

    /// Notes a verdict. Returns whether its message was alone in its batch.
    pub(super) fn answered(&mut self, number: BatchNumber) -> bool {
        self.messages = self.messages.saturating_sub(1);
        let Some(batch) = self.batches.get_mut(usize::from(number)) else { return false };
        let is_alone = batch.size == 1;
        batch.messages = batch.messages.saturating_sub(1);
        if batch.messages == 0 {
            *batch = ClientBatch::default();
        }
        is_alone
    }

    /// Whether another message of this topic can go along.
    pub(super) fn takes(&self, topic: &str) -> bool {
        let batch = self.numbers.get(topic).and_then(|number| self.batches.get(usize::from(*number)));
        batch.is_none_or(|batch| !batch.closed)
    }

    /// The topics that have not answered a whole batch for so long.
    pub(super) fn silent(&self, patience: Duration) -> Vec<Arc<str>> {
        if self.messages == 0 {
            return Vec::new();
        }
        let is_silent = |number: BatchNumber| {
            let since = self.batches.get(usize::from(number)).and_then(|batch| batch.since);
            since.is_some_and(|since| since.elapsed() >= patience)
        };
        let numbers = self.numbers.iter().filter(|(_, number)| is_silent(**number));
        numbers.map(|(topic, _)| topic.clone()).collect()
    }
}

/// The messages of one topic that librdkafka has, from the first message until the last verdict.
#[derive(Debug, Default)]
struct ClientBatch {
    /// Without a verdict.
    messages: usize,
    /// All that joined it.
    size: usize,
    bytes: usize,
    /// The time at which the first message was added.
    since: Option<Instant>,
    /// Nothing more joins it.
    closed: bool,
}

impl ClientBatch {
    /// Notes a message of so many bytes.
    fn add(&mut self, bytes: usize) {
        self.since.get_or_insert_with(Instant::now);
        self.messages += 1;
        self.size += 1;
        self.bytes += bytes;
        let is_late = self.messages.is_multiple_of(BETWEEN_LOOKS)
            && self.since.is_some_and(|since| since.elapsed() > LINGER / 2);
        self.closed |= is_late || self.bytes >= BYTES || self.messages >= MESSAGES;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_do_not_wait_for_each_other() {
        let mut batches = TopicBatches::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let (first, second) = (batches.number(&a), batches.number(&b));
        assert_eq!((batches.number(&a), first != second), (first, true));
        assert_eq!(batches.close(), 0, "an empty one has nothing to wait for");
        batches.add(first, 1);
        batches.add(first, 1);
        assert!(batches.takes("a"));
        assert_eq!((batches.close(), batches.close()), (2, 0));
        assert!(!batches.takes("a") && batches.takes("b") && batches.takes("new"));
        batches.add(second, 1);
        assert!(batches.takes("b"));
        assert!(batches.answered(second) && !batches.answered(first), "only one of them was alone");
        assert!(!batches.takes("a") && batches.messages() == 1);
        assert_eq!((batches.silent(Duration::ZERO), batches.silent(LINGER * 60_000)), (vec![a], vec![]));
        assert!(!batches.answered(first), "it was the last one, not the only one");
        assert!(batches.takes("a") && batches.messages() == 0);
    }

    #[test]
    fn is_full_by_bytes_and_by_messages() {
        let mut batch = ClientBatch::default();
        batch.add(BYTES - 1);
        assert!(!batch.closed);
        batch.add(1);
        assert!(batch.closed);
        batch = ClientBatch::default();
        for _ in 1..MESSAGES {
            batch.since = None;
            batch.add(0);
        }
        assert!(!batch.closed);
        batch.add(0);
        assert!(batch.closed);
    }

    #[test]
    fn is_not_filled_for_longer_than_librdkafka_waits() {
        let since = Instant::now().checked_sub(LINGER);
        assert!(since.is_some(), "this clock began a moment ago");
        let mut batch = ClientBatch { since, ..ClientBatch::default() };
        for _ in 1..BETWEEN_LOOKS {
            batch.add(1);
        }
        assert!(!batch.closed);
        batch.add(1);
        assert!(batch.closed);
    }
}
