//! After "no responders" or a missing ack: checks whether the stream still exists, at most once a second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::stream::{StreamLimits, StreamLook};
use crate::brokers::{Refusal, RefusalReason, Sequence, SessionError, Verdict};

/// Between two questions.
const PAUSE: Duration = Duration::from_secs(1);

/// What is open, and what the last answer was.
#[derive(Debug, Default)]
pub(super) struct Question {
    /// Messages to which nobody listened.
    waiting: Vec<(Sequence, Arc<str>)>,
    /// A message went unanswered for the ack time-out, for this refusal.
    overdue: Option<Refusal>,
    /// Number and hearing's time of the question under way.
    asked: Option<(u64, Duration)>,
    number: u64,
    last: Option<Instant>,
    stood: Option<(Instant, StreamLimits)>,
}

impl Question {
    /// Whether anything waits for an answer.
    pub(super) fn is_open(&self) -> bool {
        !self.waiting.is_empty() || self.overdue.is_some()
    }

    /// When the question under way was asked, in the hearing's time.
    pub(super) fn asked(&self) -> Option<Duration> {
        self.asked.map(|(_, at)| at)
    }

    /// Nobody listened to this message. If the stream stood a moment ago and does not take its subject, that is the
    /// answer; whether it still stands needs a new question.
    pub(super) fn nobody_listens(
        &mut self,
        sequence: Sequence,
        subject: Arc<str>,
        now: Instant,
    ) -> Option<Verdict> {
        if let Some((at, stream)) = &self.stood
            && now.duration_since(*at) < PAUSE
            && !stream.takes(&subject)
        {
            return Some(unroutable(&subject, stream));
        }
        self.waiting.push((sequence, subject));
        None
    }

    /// A message is without an answer for too long; it is refused with this if it is so again, alone.
    pub(super) fn overdue(&mut self, refusal: Refusal) {
        self.overdue.get_or_insert(refusal);
    }

    /// The message that was overdue has its answer.
    pub(super) fn relieve(&mut self) {
        self.overdue = None;
    }

    /// The number of the question to ask now, if there is one and it is time.
    pub(super) fn due(&self, now: Instant) -> Option<u64> {
        let soon = self.last.is_some_and(|last| now.duration_since(last) < PAUSE);
        (self.is_open() && self.asked.is_none() && !soon).then_some(self.number + 1)
    }

    /// The question of that number was asked.
    pub(super) fn ask(&mut self, now: Instant, stamp: Duration) {
        self.number += 1;
        self.asked = Some((self.number, stamp));
        self.last = Some(now);
    }

    /// The answer to the question of this number: verdicts, or the loss of the session.
    pub(super) fn answer(
        &mut self,
        number: u64,
        look: StreamLook,
        now: Instant,
        into: &mut Vec<(Sequence, Verdict)>,
    ) -> Result<(), SessionError> {
        if self.asked.is_none_or(|(asked, _)| asked != number) {
            return Ok(());
        }
        self.asked = None;
        let stream = match look {
            StreamLook::Stands(StreamLimits { useless: Some(why), .. }) => {
                return Err(SessionError::lost(format!("the stream {why}")));
            }
            StreamLook::Stands(stream) => stream,
            StreamLook::Missing => return Err(SessionError::lost("the stream is gone")),
            StreamLook::NoJetStream(why) => {
                return Err(SessionError::lost(format!("JetStream is not available: {why}")));
            }
            StreamLook::Unclear(why) => {
                return Err(SessionError::lost(format!("cannot look at the stream: {why}")));
            }
        };
        for (sequence, subject) in self.waiting.drain(..) {
            let verdict = if stream.takes(&subject) {
                // Created in between, or between two leaders.
                Verdict::RetryLater(format!("nobody took {subject}, though the stream stands"))
            } else {
                unroutable(&subject, &stream)
            };
            into.push((sequence, verdict));
        }
        self.stood = Some((now, stream));
        match self.overdue.take() {
            Some(refusal) => Err(SessionError::suspect(refusal)),
            None => Ok(()),
        }
    }
}

fn unroutable(subject: &str, stream: &StreamLimits) -> Verdict {
    let text = format!("the stream does not take {subject}; it takes {}", stream.subjects.join(", "));
    Verdict::Refused(Refusal::new(RefusalReason::Unroutable, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(subject: &str) -> StreamLimits {
        StreamLimits { subjects: vec![subject.to_owned()], max_message: None, useless: None }
    }

    fn asked(question: &mut Question, now: Instant) -> u64 {
        let number = question.due(now).expect("a question is due");
        question.ask(now, Duration::ZERO);
        assert_eq!(question.due(now + PAUSE), None, "one question at a time");
        number
    }

    #[test]
    fn asks_once_a_second_and_answers_all_that_wait() {
        let now = Instant::now();
        let mut question = Question::default();
        assert_eq!(question.due(now), None);
        assert_eq!(question.nobody_listens(1, "a.x".into(), now), None);
        assert_eq!(question.nobody_listens(2, "b".into(), now), None);
        let number = asked(&mut question, now);
        let mut verdicts = Vec::new();
        assert_eq!(
            question.answer(number + 1, StreamLook::Missing, now, &mut verdicts),
            Ok(()),
            "not this question"
        );
        assert_eq!(question.answer(number, StreamLook::Stands(stream("a.>")), now, &mut verdicts), Ok(()));
        assert!(matches!(verdicts[..], [(1, Verdict::RetryLater(_)), (2, Verdict::Refused(_))]), "{verdicts:?}");
        assert!(!question.is_open());
        assert!(question.nobody_listens(3, "b".into(), now).is_some(), "known from a moment ago");
        assert_eq!(question.nobody_listens(4, "a.x".into(), now), None, "may be gone by now");
        assert_eq!(question.due(now + PAUSE / 2), None, "too soon");
        assert_eq!(question.due(now + PAUSE), Some(number + 1));
        assert_eq!(question.nobody_listens(5, "b".into(), now + PAUSE), None, "too old an answer");
    }

    #[test]
    fn loses_the_session_where_the_stream_is_gone() {
        let now = Instant::now();
        let useless = StreamLimits { useless: Some("is sealed"), ..stream("a") };
        for look in [
            StreamLook::Stands(useless),
            StreamLook::Missing,
            StreamLook::NoJetStream("off".to_owned()),
            StreamLook::Unclear("odd".to_owned()),
        ] {
            let mut question = Question::default();
            question.nobody_listens(1, "a".into(), now);
            let number = asked(&mut question, now);
            let mut verdicts = Vec::new();
            let lost = question.answer(number, look, now, &mut verdicts).unwrap_err();
            assert_eq!((lost.suspect, verdicts.len()), (crate::brokers::Cause::Network, 0));
        }
    }

    #[test]
    fn suspects_a_message_only_where_the_stream_stands() {
        let now = Instant::now();
        let refusal = Refusal::new(RefusalReason::Other, "late");
        let mut question = Question::default();
        question.overdue(refusal.clone());
        let number = asked(&mut question, now);
        let suspect = question.answer(number, StreamLook::Stands(stream("a")), now, &mut Vec::new());
        assert_eq!(suspect, Err(SessionError::suspect(refusal)));
    }
}
