//! One record: its size as the broker counts it, and its headers.

use std::time::UNIX_EPOCH;

use rdkafka::message::{Header, OwnedHeaders};

use crate::brokers::Headers;
use crate::event::Message;

/// The head of a record batch of version 2; `max.message.bytes` limits the whole batch.
///
/// Source: the record batch format in Kafka's documentation of its protocol.
const BATCH_HEAD: usize = 61;

/// The largest batch that librdkafka assumes.
pub(super) const BATCH_SIZE: usize = 1_000_000;

/// Bytes of a batch with this one uncompressed record: exactly what the broker compares with its limit.
pub(super) struct Size {
    fields: usize,
    headers: usize,
}

impl Size {
    pub(super) fn new(key: &[u8], body: &[u8]) -> Self {
        // Attributes, timestamp delta and offset delta are a byte each in the first record of a batch.
        Self { fields: 3 + text(key.len()) + text(body.len()), headers: 0 }
    }

    pub(super) fn header(&mut self, name: &str, value: &[u8]) {
        self.fields += text(name.len()) + text(value.len());
        self.headers += 1;
    }

    pub(super) fn bytes(&self) -> usize {
        let record = self.fields + varint(self.headers);
        BATCH_HEAD + varint(record) + record
    }
}

fn text(length: usize) -> usize {
    varint(length) + length
}

/// Bytes of a length as zigzag varint.
fn varint(length: usize) -> usize {
    let mut zigzag = length << 1;
    let mut bytes = 1;
    while zigzag > 0x7f {
        zigzag >>= 7;
        bytes += 1;
    }
    bytes
}

/// The parts of a record beside key and body.
pub(super) struct Extras {
    pub(super) headers: Option<OwnedHeaders>,
    /// Receipt in milliseconds: what consumers expect as the time of creation.
    pub(super) timestamp: Option<i64>,
    pub(super) size: usize,
}

impl Extras {
    pub(super) fn new(headers: &Headers, message: &Message) -> Self {
        let mut size = Size::new(message.key.as_bytes(), &message.event.body);
        let mut owned = None;
        headers.each(&message.event, |name, value| {
            size.header(name, value.as_bytes());
            let list = owned.take().unwrap_or_else(|| OwnedHeaders::new_with_capacity(9));
            owned = Some(list.insert(Header { key: name, value: Some(value) }));
        });
        let timestamp = message.event.origin.received.duration_since(UNIX_EPOCH).ok();
        let timestamp = timestamp.and_then(|since| i64::try_from(since.as_millis()).ok());
        Self { headers: owned, timestamp, size: size.bytes() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_a_batch_as_the_broker_does() {
        // Seen with Kafka 4.3 and a limit of 10,000: it stores what counts 10,000 here and refuses 10,001.
        assert_eq!(Size::new(b"key", &[0; 100]).bytes(), 61 + 2 + 3 + 4 + 102 + 1);
        let mut size = Size::new(b"", b"");
        size.header("ab", b"c");
        assert_eq!(size.bytes(), 61 + 1 + 3 + 1 + 1 + 1 + 3 + 2);
        assert_eq!([varint(63), varint(64), varint(8191), varint(8192)], [1, 2, 2, 3]);
    }
}
