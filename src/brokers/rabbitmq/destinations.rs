//! What is known of each exchange beyond one session: seen, missing, forbidden; and the size the broker has named.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::brokers::{Refusal, RefusalReason};

/// A missing exchange is looked for again at most this often: each look that finds nothing is an error in the
/// broker's log.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Permissions and limits change by hand; trying costs the channel, and with it repeats of all that is on its way.
const REMEMBERED: Duration = Duration::from_secs(5);

#[derive(Debug)]
enum ExchangeState {
    Seen,
    Missing { looked: Instant },
    Forbidden { since: Instant, text: String },
}

/// What to do with a message for an exchange.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ExchangeDecision {
    Open,
    /// It was missing when we looked last: look again, then send or refuse.
    Look,
    Refuse(Refusal),
}

/// The memory of all exchanges of a broker.
#[derive(Debug, Default)]
pub(super) struct Destinations {
    standings: HashMap<Box<str>, ExchangeState>,
    /// RabbitMQ's `max_message_size`, known only once it has refused a message, and when that was.
    largest: Option<(usize, Instant)>,
}

impl Destinations {
    pub(super) fn gate(&self, exchange: &str, size: usize, now: Instant) -> ExchangeDecision {
        let limit = self.largest.filter(|(largest, since)| size > *largest && now < *since + REMEMBERED);
        if let Some((largest, _)) = limit {
            let text = format!("the body is {size} bytes, more than the broker's max_message_size of {largest}");
            return ExchangeDecision::Refuse(Refusal::new(RefusalReason::TooLarge, text));
        }
        match self.standings.get(exchange) {
            Some(ExchangeState::Missing { looked }) if now < *looked + LOOK_AGAIN => {
                ExchangeDecision::Refuse(missing(exchange))
            }
            Some(ExchangeState::Missing { .. }) => ExchangeDecision::Look,
            Some(ExchangeState::Forbidden { since, text }) if now < *since + REMEMBERED => {
                ExchangeDecision::Refuse(Refusal::new(RefusalReason::NotAuthorised, text))
            }
            _ => ExchangeDecision::Open,
        }
    }

    pub(super) fn is_seen(&self, exchange: &str) -> bool {
        matches!(self.standings.get(exchange), Some(ExchangeState::Seen))
    }

    pub(super) fn is_missing(&self, exchange: &str) -> bool {
        matches!(self.standings.get(exchange), Some(ExchangeState::Missing { .. }))
    }

    /// The exchange exists. A refusal of permission says nothing against that, and stays.
    pub(super) fn saw(&mut self, exchange: &str) {
        match self.standings.get(exchange) {
            Some(ExchangeState::Seen | ExchangeState::Forbidden { .. }) => {}
            _ => {
                self.standings.insert(exchange.into(), ExchangeState::Seen);
            }
        }
    }

    pub(super) fn missed(&mut self, exchange: &str, now: Instant) {
        self.standings.insert(exchange.into(), ExchangeState::Missing { looked: now });
    }

    pub(super) fn forget(&mut self, exchange: &str) {
        self.standings.remove(exchange);
    }

    pub(super) fn forbid(&mut self, exchange: &str, text: &str, now: Instant) {
        self.standings.insert(exchange.into(), ExchangeState::Forbidden { since: now, text: text.to_owned() });
    }

    /// The broker named its limit, or (`None`) it may have been restarted with another one.
    pub(super) fn limit(&mut self, largest: usize, now: Instant) {
        self.largest = Some((largest, now));
    }

    /// Another connection, which may be another server with another limit.
    pub(super) fn forget_limit(&mut self) {
        self.largest = None;
    }
}

/// Why a message for a missing exchange is refused.
pub(super) fn missing(exchange: &str) -> Refusal {
    Refusal::new(RefusalReason::NoDestination, format!("the exchange `{exchange}` does not exist"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_missing_and_looks_again_after_a_second() {
        let now = Instant::now();
        let mut destinations = Destinations::default();
        assert_eq!(destinations.gate("x", 1, now), ExchangeDecision::Open);
        destinations.missed("x", now);
        assert_eq!(destinations.gate("x", 1, now + LOOK_AGAIN / 2), ExchangeDecision::Refuse(missing("x")));
        assert_eq!(destinations.gate("x", 1, now + LOOK_AGAIN), ExchangeDecision::Look);
        destinations.saw("x");
        assert_eq!(destinations.gate("x", 1, now), ExchangeDecision::Open);
        assert!(destinations.is_seen("x"));
    }

    #[test]
    fn refuses_what_is_forbidden_for_five_seconds_even_if_it_is_seen() {
        let now = Instant::now();
        let mut destinations = Destinations::default();
        destinations.forbid("x", "ACCESS_REFUSED", now);
        destinations.saw("x");
        let refusal = Refusal::new(RefusalReason::NotAuthorised, "ACCESS_REFUSED");
        assert_eq!(destinations.gate("x", 1, now + REMEMBERED / 2), ExchangeDecision::Refuse(refusal));
        assert_eq!(destinations.gate("x", 1, now + REMEMBERED), ExchangeDecision::Open);
    }

    #[test]
    fn refuses_a_body_above_the_size_that_the_broker_has_named_for_five_seconds() {
        let now = Instant::now();
        let mut destinations = Destinations::default();
        destinations.limit(100, now);
        assert_eq!(destinations.gate("x", 100, now), ExchangeDecision::Open);
        let text = "the body is 101 bytes, more than the broker's max_message_size of 100";
        let refusal = Refusal::new(RefusalReason::TooLarge, text);
        assert_eq!(destinations.gate("x", 101, now + REMEMBERED / 2), ExchangeDecision::Refuse(refusal));
        assert_eq!(destinations.gate("x", 101, now + REMEMBERED), ExchangeDecision::Open);
        destinations.limit(100, now);
        destinations.forget_limit();
        assert_eq!(destinations.gate("x", 101, now), ExchangeDecision::Open);
    }
}
