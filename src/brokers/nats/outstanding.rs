//! The messages handed over and not yet answered, by the number in their reply subject; and the time they waited.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::brokers::Sequence;

/// Above the ping interval and one look: a longer silence is the connection's, not a message's.
const SILENCE: Duration = Duration::from_secs(4);

/// One message without an answer.
#[derive(Debug)]
pub(super) struct Unacknowledged {
    pub(super) sequence: Sequence,
    pub(super) subject: Arc<str>,
    /// The hearing's time when it was sent.
    pub(super) sent: Duration,
}

/// All of them, oldest first; numbers rise, so a late second answer finds nothing.
#[derive(Debug, Default)]
pub(super) struct Outstanding {
    first: u64,
    waiting: VecDeque<Option<Unacknowledged>>,
    count: usize,
}

impl Outstanding {
    /// The number that the next message gets.
    pub(super) fn next(&self) -> u64 {
        self.first + self.waiting.len() as u64
    }

    pub(super) fn push(&mut self, waiting: Unacknowledged) {
        self.waiting.push_back(Some(waiting));
        self.count += 1;
    }

    pub(super) fn take(&mut self, number: u64) -> Option<Unacknowledged> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let taken = self.waiting.get_mut(at)?.take()?;
        self.count -= 1;
        self.trim();
        Some(taken)
    }

    /// Takes every message of this subject.
    pub(super) fn take_subject(&mut self, subject: &str) -> Vec<Sequence> {
        let mut sequences = Vec::new();
        for place in &mut self.waiting {
            if place.as_ref().is_some_and(|waiting| *waiting.subject == *subject) {
                sequences.extend(place.take().map(|waiting| waiting.sequence));
            }
        }
        self.count -= sequences.len();
        self.trim();
        sequences
    }

    fn trim(&mut self) {
        while let Some(None) = self.waiting.front() {
            self.waiting.pop_front();
            self.first += 1;
        }
    }

    pub(super) fn oldest(&self) -> Option<&Unacknowledged> {
        self.waiting.front()?.as_ref()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// Counts the time in which the server was there to answer: a stopped server or a cut stops the clock.
#[derive(Debug)]
pub(super) struct ResponsiveClock {
    counted: Duration,
    heard: Instant,
    bytes: u64,
}

impl ResponsiveClock {
    pub(super) fn new(now: Instant, bytes: u64) -> Self {
        Self { counted: Duration::ZERO, heard: now, bytes }
    }

    /// Looks at the count of bytes received so far. Pings make it rise every 3 s on a sound connection.
    pub(super) fn look(&mut self, now: Instant, bytes: u64) {
        if bytes != self.bytes {
            let gap = now.saturating_duration_since(self.heard);
            if gap <= SILENCE {
                self.counted += gap;
            }
            self.heard = now;
            self.bytes = bytes;
        }
    }

    /// Begins anew after a time in which nobody looked.
    pub(super) fn resume(&mut self, now: Instant, bytes: u64) {
        self.heard = now;
        self.bytes = bytes;
    }

    /// The time a message sent now starts with: never before what is counted later.
    pub(super) fn stamp(&self, now: Instant) -> Duration {
        self.counted + now.saturating_duration_since(self.heard).min(SILENCE)
    }

    /// How long the server was there and did not answer something sent at `stamp`.
    pub(super) fn since(&self, stamp: Duration) -> Duration {
        self.counted.saturating_sub(stamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(sequence: Sequence, subject: &str) -> Unacknowledged {
        Unacknowledged { sequence, subject: subject.into(), sent: Duration::ZERO }
    }

    #[test]
    fn finds_each_message_once_by_its_number() {
        let mut outstanding = Outstanding::default();
        for sequence in 10..14 {
            assert_eq!(outstanding.next(), sequence - 10);
            outstanding.push(waiting(sequence, "a"));
        }
        assert_eq!(outstanding.take(2).unwrap().sequence, 12);
        assert!(outstanding.take(2).is_none());
        assert_eq!(outstanding.take(0).unwrap().sequence, 10);
        assert!(outstanding.take(0).is_none());
        assert!(outstanding.take(4).is_none());
        assert_eq!(outstanding.oldest().unwrap().sequence, 11);
        assert_eq!(outstanding.next(), 4);
        assert_eq!(outstanding.take(1).unwrap().sequence, 11);
        assert_eq!(outstanding.take(3).unwrap().sequence, 13);
        assert!(outstanding.is_empty() && outstanding.oldest().is_none());
        assert_eq!(outstanding.next(), 4);
    }

    #[test]
    fn takes_all_of_one_subject_and_no_other() {
        let mut outstanding = Outstanding::default();
        for (sequence, subject) in [(1, "a"), (2, "b"), (3, "a")] {
            outstanding.push(waiting(sequence, subject));
        }
        assert_eq!(outstanding.take_subject("a"), [1, 3]);
        assert_eq!(outstanding.oldest().unwrap().sequence, 2);
        assert_eq!(outstanding.take_subject("a"), [0; 0]);
        assert!(!outstanding.is_empty());
    }

    #[test]
    fn counts_no_silence_of_the_connection() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut hearing = ResponsiveClock::new(start, 0);
        let stamp = hearing.stamp(start);
        hearing.look(at(3), 6);
        assert_eq!(hearing.since(stamp), Duration::from_secs(3));
        hearing.look(at(10), 6);
        assert_eq!(hearing.since(stamp), Duration::from_secs(3));
        hearing.look(at(11), 12);
        assert_eq!(hearing.since(stamp), Duration::from_secs(3), "eight silent seconds");
        hearing.look(at(13), 18);
        assert_eq!(hearing.since(stamp), Duration::from_secs(5));
    }

    #[test]
    fn never_starts_a_message_too_early() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut hearing = ResponsiveClock::new(start, 0);
        let stamp = hearing.stamp(at(2));
        hearing.look(at(3), 6);
        assert_eq!(hearing.since(stamp), Duration::from_secs(1));
    }
}
