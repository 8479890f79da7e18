//! The time that a record carries: that of its receipt, unless its topic refuses that.
//!
//! `message.timestamp.before.max.ms` and `.after.max.ms` limit it. A record that is refused for its time is sent again with
//! the present one, and where that is refused too, because clocks differ, with none, which every topic takes. The header
//! `ce_time` keeps the receipt.

use std::collections::HashMap;
use std::sync::Arc;

use crate::brokers::Sequence;

/// So often the present time is tried: a busy broker looks at it late.
const TRIES: u8 = 3;

/// Kafka's `NO_TIMESTAMP`.
const NONE: i64 = -1;

/// The state of refused times.
#[derive(Debug, Default)]
pub(super) struct RecordTimes {
    /// The number of times that a message was refused for its time; 0 where that is only a guess.
    refusals: HashMap<Sequence, u8>,
    /// The latest receipt that each topic refused, in milliseconds; `i64::MAX` where it refuses the present time.
    latest: HashMap<Arc<str>, i64>,
}

impl RecordTimes {
    /// The time to send a message with; none: the present one.
    pub(super) fn of(&mut self, sequence: Sequence, topic: &str, receipt: Option<i64>) -> Option<i64> {
        if self.latest.is_empty() && self.refusals.is_empty() {
            return receipt;
        }
        let latest = self.latest.get_mut(topic);
        if latest.as_deref() == Some(&i64::MAX) {
            return Some(NONE);
        }
        let refusals = self.refusals.get(&sequence).copied();
        match (latest, receipt) {
            (Some(latest), Some(receipt)) if receipt <= *latest => {
                self.refusals.entry(sequence).or_insert(1);
                None
            }
            (Some(latest), Some(receipt)) if refusals.is_some_and(|refusals| refusals > 0) => {
                *latest = receipt;
                None
            }
            _ if refusals.is_some() => None,
            _ => receipt,
        }
    }

    /// The topic refused the time of this message; says what follows.
    pub(super) fn refused(&mut self, sequence: Sequence, topic: &str) -> &'static str {
        let refusals = self.refusals.entry(sequence).or_insert(0);
        *refusals = refusals.saturating_add(1);
        let latest = self.latest.entry(topic.into()).or_insert(i64::MIN);
        if *refusals > TRIES {
            *latest = i64::MAX;
            return "sent again without a time: compare the clocks of Kafka and of this machine";
        }
        "sent again with the present time"
    }

    /// Whether a message that is called invalid was never sent with the present time, so that its time may be what is
    /// wrong; next time it is.
    pub(super) fn doubt(&mut self, sequence: Sequence) -> bool {
        let is_first = !self.refusals.contains_key(&sequence);
        self.refusals.entry(sequence).or_insert(0);
        is_first
    }

    /// Forgets a message.
    pub(super) fn settled(&mut self, sequence: Sequence) {
        if !self.refusals.is_empty() {
            self.refusals.remove(&sequence);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_present_time_then_none_and_remembers_what_a_topic_refuses() {
        let mut times = RecordTimes::default();
        assert_eq!(times.of(1, "t", Some(100)), Some(100));
        assert_eq!(times.refused(1, "t"), "sent again with the present time");
        assert_eq!(
            [(1, 100), (2, 99), (3, 101)].map(|(sequence, receipt)| times.of(sequence, "t", Some(receipt))),
            [None, None, Some(101)]
        );
        assert_eq!(times.of(4, "other", Some(99)), Some(99));
        times.settled(1);
        for _ in 0..2 {
            assert_eq!(times.refused(2, "t"), "sent again with the present time");
            assert_eq!(times.of(2, "t", Some(99)), None);
        }
        assert!(times.refused(2, "t").starts_with("sent again without a time"));
        assert_eq!((times.of(2, "t", Some(99)), times.of(9, "t", Some(900))), (Some(NONE), Some(NONE)));
    }

    #[test]
    fn doubts_a_record_once_and_learns_nothing_from_that() {
        let mut times = RecordTimes::default();
        assert!(times.doubt(1) && !times.doubt(1));
        assert_eq!((times.of(1, "t", Some(100)), times.of(2, "t", Some(90))), (None, Some(90)));
        times.refused(3, "t");
        assert_eq!((times.of(3, "t", Some(50)), times.of(4, "t", Some(51))), (None, Some(51)));
        assert!(!times.doubt(3), "it had the present time");
    }
}
