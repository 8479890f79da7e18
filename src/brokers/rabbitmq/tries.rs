//! The turns of messages that are tried on channels of their own: one at a time for each address, some addresses at once.
//! One that gets no answer holds up its own address only.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An exchange and a routing key.
pub(super) type ExchangeKey = (Arc<str>, Arc<str>);

/// So many tries at once: each has a channel.
const AT_ONCE: usize = 8;

/// A try without an answer for so long leaves its turn to others.
const TURN: Duration = Duration::from_secs(2);

/// So many channels with those that wait without a turn: a connection has room for some thousand.
const CHANNELS: usize = 1000;

/// The messages that wait for a turn, and the addresses that have one.
#[derive(Debug)]
pub(super) struct Turns<T> {
    waiting: VecDeque<(ExchangeKey, T)>,
    begun: HashMap<ExchangeKey, Instant>,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), begun: HashMap::new() }
    }
}

impl<T> Turns<T> {
    /// Another message waits for its turn.
    pub(super) fn wait(&mut self, place: ExchangeKey, message: T) {
        self.waiting.push_back((place, message));
    }

    /// The message whose turn begins now, if there is room for one.
    pub(super) fn next(&mut self, now: Instant) -> Option<T> {
        let is_young = |begun: &&Instant| now < **begun + TURN;
        let has_room = self.begun.len() < CHANNELS && self.begun.values().filter(is_young).count() < AT_ONCE;
        let (place, message) = if has_room { self.waiting.pop_front()? } else { return None };
        self.begun.insert(place, now);
        Some(message)
    }

    /// A try has ended.
    pub(super) fn end(&mut self, place: &ExchangeKey) {
        self.begun.remove(place);
    }

    /// The time at which the oldest try began.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.begun.values().min().copied()
    }

    /// Whether a message of this place waits or is tried.
    pub(super) fn has(&self, place: &ExchangeKey) -> bool {
        self.begun.contains_key(place) || self.waiting.iter().any(|(waiting, _)| waiting == place)
    }

    /// Whether none waits and none is tried.
    pub(super) fn is_empty(&self) -> bool {
        self.begun.is_empty() && self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(number: usize) -> ExchangeKey {
        ("x".into(), number.to_string().into())
    }

    #[test]
    fn a_try_without_an_answer_holds_up_its_own_address_only() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        for number in 0..=AT_ONCE {
            turns.wait(place(number), number);
        }
        let begun: Vec<_> = std::iter::from_fn(|| turns.next(now)).collect();
        assert_eq!(begun, (0..AT_ONCE).collect::<Vec<_>>());
        assert!(turns.has(&place(0)) && turns.has(&place(AT_ONCE)) && !turns.has(&place(AT_ONCE + 1)));
        assert_eq!(turns.next(now + TURN), Some(AT_ONCE), "silent ones leave their turns");
        assert!(turns.has(&place(0)), "and are waited for");
        assert_eq!(turns.oldest(), Some(now));
        for number in 0..=AT_ONCE {
            turns.end(&place(number));
        }
        assert!(turns.is_empty() && turns.oldest().is_none());
    }
}
