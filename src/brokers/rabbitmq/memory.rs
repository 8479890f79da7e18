//! The memory of exchanges beyond one session: missing or forbidden as a channel's end has said; and the size that the
//! broker has named.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::brokers::{Refusal, RefusalReason};

/// Limits change by hand; trying costs the channel, and with it repeats of all that is in flight.
const REMEMBERED: Duration = Duration::from_secs(5);

/// The exchanges remembered; one forgotten costs another channel.
const MOST: usize = 1024;

/// The reason to try an exchange with one message, on a channel of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExchangeDoubt {
    /// It did not exist.
    Missing,
    /// These credentials may not publish to it, or not with this routing key.
    Forbidden,
}

/// The decision about a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ExchangeDecision {
    Open,
    /// It is sent on a channel of its own, which may end.
    Try,
    Refuse(Refusal),
}

/// The memory of all exchanges of a broker.
#[derive(Debug, Default)]
pub(super) struct ExchangeMemory {
    /// By exchange, with the routing key where the doubt is about that only.
    doubts: HashMap<(Box<str>, Option<Box<str>>), ExchangeDoubt>,
    /// RabbitMQ's `max_message_size`, known only once it has refused a message, and when that was.
    largest: Option<(usize, Instant)>,
}

impl ExchangeMemory {
    pub(super) fn decide(&self, exchange: &str, key: &str, size: usize, now: Instant) -> ExchangeDecision {
        let limit = self.largest.filter(|(largest, since)| size > *largest && now < *since + REMEMBERED);
        if let Some((largest, _)) = limit {
            let text = format!("the body is {size} bytes, more than the broker's max_message_size of {largest}");
            return ExchangeDecision::Refuse(Refusal::event(RefusalReason::TooLarge, text));
        }
        if self.is_doubted(exchange, key) { ExchangeDecision::Try } else { ExchangeDecision::Open }
    }

    /// Whether messages of this exchange and key are sent alone.
    pub(super) fn is_doubted(&self, exchange: &str, key: &str) -> bool {
        let has = |key: Option<Box<str>>| self.doubts.contains_key(&(exchange.into(), key));
        !self.doubts.is_empty() && (has(None) || has(Some(key.into())))
    }

    pub(super) fn is_missing(&self, exchange: &str) -> bool {
        self.doubts.get(&(exchange.into(), None)) == Some(&ExchangeDoubt::Missing)
    }

    /// The exchange, or this key of it, has ended a channel.
    pub(super) fn doubt(&mut self, exchange: &str, key: Option<&str>, doubt: ExchangeDoubt) {
        if self.doubts.len() >= MOST {
            self.doubts.clear();
        }
        self.doubts.insert((exchange.into(), key.map(Into::into)), doubt);
    }

    /// The exchange exists. That says nothing of permissions.
    pub(super) fn saw(&mut self, exchange: &str) {
        self.doubts.retain(|(name, _), doubt| **name != *exchange || *doubt != ExchangeDoubt::Missing);
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

    fn decide(memory: &ExchangeMemory, exchange: &str, key: &str) -> ExchangeDecision {
        memory.decide(exchange, key, 1, Instant::now())
    }

    #[test]
    fn tries_what_was_missing_until_it_is_seen() {
        let mut memory = ExchangeMemory::default();
        assert_eq!(decide(&memory, "x", "k"), ExchangeDecision::Open);
        memory.doubt("x", None, ExchangeDoubt::Missing);
        assert!(memory.is_missing("x") && !memory.is_missing("y"));
        assert_eq!(
            [decide(&memory, "x", "k"), decide(&memory, "y", "k")],
            [ExchangeDecision::Try, ExchangeDecision::Open]
        );
        memory.saw("x");
        assert_eq!(decide(&memory, "x", "k"), ExchangeDecision::Open);
    }

    #[test]
    fn tries_what_was_forbidden_until_it_takes_a_message_even_if_it_is_seen() {
        let mut memory = ExchangeMemory::default();
        memory.doubt("x", Some("k"), ExchangeDoubt::Forbidden);
        memory.saw("x");
        memory.took("x", "other");
        assert_eq!(
            [decide(&memory, "x", "k"), decide(&memory, "x", "other")],
            [ExchangeDecision::Try, ExchangeDecision::Open]
        );
        memory.took("x", "k");
        assert_eq!(decide(&memory, "x", "k"), ExchangeDecision::Open);
    }

    #[test]
    fn refuses_a_body_above_the_size_that_the_broker_has_named_for_five_seconds() {
        let now = Instant::now();
        let mut memory = ExchangeMemory::default();
        memory.limit(100, now);
        assert_eq!(memory.decide("x", "k", 100, now), ExchangeDecision::Open);
        let text = "the body is 101 bytes, more than the broker's max_message_size of 100";
        let refusal = Refusal::event(RefusalReason::TooLarge, text);
        assert_eq!(memory.decide("x", "k", 101, now + REMEMBERED / 2), ExchangeDecision::Refuse(refusal));
        assert_eq!(memory.decide("x", "k", 101, now + REMEMBERED), ExchangeDecision::Open);
        memory.limit(100, now);
        memory.forget_limit();
        assert_eq!(memory.decide("x", "k", 101, now), ExchangeDecision::Open);
    }
}
