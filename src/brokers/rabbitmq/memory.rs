//! The memory of exchanges beyond one session: missing or forbidden as a channel's end has said; and the size that the
//! broker has named.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::brokers::{Refusal, RefusalReason};

/// Limits change by hand; trying costs the channel, and with it repeats of all that is in flight. Long enough for a search
/// for what closes the channel, in which some addresses without an answer take seconds each.
const REMEMBERED: Duration = Duration::from_secs(30);

/// The exchanges remembered; one forgotten costs another channel.
const MOST: usize = 1024;

/// The memory of all exchanges of a broker, which outlives its sessions.
#[derive(Debug, Default)]
pub(super) struct ExchangeMemory {
    /// The reasons to send to an exchange one message at a time, each on a channel of its own: missing, or these
    /// credentials may not publish to it. By exchange, with the routing key where the doubt is about that only.
    doubts: HashMap<(Box<str>, Option<Box<str>>), RefusalReason>,
    /// RabbitMQ's `max_message_size`, known only once it has refused a message, and when that was.
    largest: Option<(usize, Instant)>,
}

impl ExchangeMemory {
    /// The refusal of a body that is larger than the broker has said a moment ago that it takes.
    pub(super) fn too_large(&self, size: usize, now: Instant) -> Option<Refusal> {
        let (largest, _) = self.largest.filter(|(largest, since)| size > *largest && now < *since + REMEMBERED)?;
        let text = format!("the body is {size} bytes, more than the broker's max_message_size of {largest}");
        Some(Refusal::event(RefusalReason::TooLarge, text))
    }

    /// Whether messages of this exchange and key are sent alone.
    pub(super) fn is_doubted(&self, exchange: &str, key: &str) -> bool {
        let has = |key: Option<Box<str>>| self.doubts.contains_key(&(exchange.into(), key));
        !self.doubts.is_empty() && (has(None) || has(Some(key.into())))
    }

    pub(super) fn is_missing(&self, exchange: &str) -> bool {
        self.doubts.get(&(exchange.into(), None)) == Some(&RefusalReason::NoDestination)
    }

    /// The exchange, or this key of it, has ended a channel.
    pub(super) fn doubt(&mut self, exchange: &str, key: Option<&str>, why: RefusalReason) {
        if self.doubts.len() >= MOST {
            self.doubts.clear();
        }
        self.doubts.insert((exchange.into(), key.map(Into::into)), why);
    }

    /// The exchange exists. That says nothing of permissions.
    pub(super) fn saw(&mut self, exchange: &str) {
        self.doubts.retain(|(name, _), why| **name != *exchange || *why != RefusalReason::NoDestination);
    }

    /// The exchange took a message with this key.
    pub(super) fn took(&mut self, exchange: &str, key: &str) {
        let is_it = |own: &Option<Box<str>>| own.as_deref().is_none_or(|own| own == key);
        self.doubts.retain(|(name, own), _| **name != *exchange || !is_it(own));
    }

    /// The broker named its limit.
    pub(super) fn limit(&mut self, largest: usize, now: Instant) {
        self.largest = Some((largest, now));
    }

    /// Another connection, which may be another server with another limit.
    pub(super) fn forget_limit(&mut self) {
        self.largest = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_what_was_missing_until_it_is_seen() {
        let mut memory = ExchangeMemory::default();
        assert!(!memory.is_doubted("x", "k"));
        memory.doubt("x", None, RefusalReason::NoDestination);
        assert!(memory.is_missing("x") && !memory.is_missing("y"));
        assert!(memory.is_doubted("x", "k") && !memory.is_doubted("y", "k"));
        memory.saw("x");
        assert!(!memory.is_doubted("x", "k"));
    }

    #[test]
    fn tries_what_was_forbidden_until_it_takes_a_message_even_if_it_is_seen() {
        let mut memory = ExchangeMemory::default();
        memory.doubt("x", Some("k"), RefusalReason::NotAuthorised);
        memory.saw("x");
        memory.took("x", "other");
        assert!(memory.is_doubted("x", "k") && !memory.is_doubted("x", "other"));
        memory.took("x", "k");
        assert!(!memory.is_doubted("x", "k"));
    }

    #[test]
    fn refuses_a_body_above_the_size_that_the_broker_has_named_for_a_while() {
        let now = Instant::now();
        let mut memory = ExchangeMemory::default();
        memory.limit(100, now);
        assert_eq!(memory.too_large(100, now), None);
        let text = "the body is 101 bytes, more than the broker's max_message_size of 100";
        let refusal = Refusal::event(RefusalReason::TooLarge, text);
        assert_eq!(memory.too_large(101, now + REMEMBERED / 2), Some(refusal));
        assert_eq!(memory.too_large(101, now + REMEMBERED), None);
        memory.limit(100, now);
        memory.forget_limit();
        assert_eq!(memory.too_large(101, now), None);
    }
}
