//! The messages handed over and not yet answered, by the number in their reply subject.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::brokers::Sequence;

/// One message without an answer.
#[derive(Debug)]
pub(super) struct Unacknowledged {
    pub(super) sequence: Sequence,
    pub(super) subject: Arc<str>,
    pub(super) sent: Instant,
    /// Another stream than its own says that it has stored it.
    pub(super) other: Option<String>,
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

    /// Notes that another stream has stored a message.
    pub(super) fn note_other(&mut self, number: u64, other: String) {
        let at = number.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        if let Some(waiting) = at.and_then(|at| self.waiting.get_mut(at)?.as_mut()) {
            waiting.other = Some(other);
        }
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

    /// Takes every message, oldest first.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Unacknowledged> {
        self.first = self.next();
        self.count = 0;
        std::mem::take(&mut self.waiting).into_iter().flatten()
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

    /// Whether a message that was sent before this number is still unanswered.
    pub(super) fn has_gap_below(&self, number: u64) -> bool {
        self.first < number && !self.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(sequence: Sequence, subject: &str) -> Unacknowledged {
        Unacknowledged { sequence, subject: subject.into(), sent: Instant::now(), other: None }
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
    fn sees_a_gap_below_what_was_answered_and_gives_up_all_at_once() {
        let mut outstanding = Outstanding::default();
        for sequence in 10..15 {
            outstanding.push(waiting(sequence, "a"));
        }
        outstanding.take(0).unwrap();
        assert!(!outstanding.has_gap_below(0), "nothing is below the first");
        outstanding.take(3).unwrap();
        assert!(outstanding.has_gap_below(3), "1 and 2 are");
        outstanding.note_other(2, "T".to_owned());
        outstanding.note_other(3, "T".to_owned());
        let left: Vec<_> = outstanding.take_all().map(|waiting| (waiting.sequence, waiting.other)).collect();
        assert_eq!(left, [(11, None), (12, Some("T".to_owned())), (14, None)]);
        assert!(outstanding.is_empty() && !outstanding.has_gap_below(3));
        assert!(outstanding.take(1).is_none() && outstanding.take(4).is_none());
        assert_eq!(outstanding.next(), 5);
    }
}
