//! The look at the stream after "no responders" or a missing acknowledgement: whether it exists, has a leader and a
//! majority. It never blames a message, unless the stream itself says that it does not accept its subject.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::stream::{StreamLimits, StreamLook};
use crate::brokers::{Refusal, RefusalReason, Sequence, Verdict};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(250);

/// How long the answer about a subject that the stream does not take stays true.
const FRESH: Duration = Duration::from_secs(1);

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(2);

/// How long a cluster may be without a leader before another server is asked: an election mostly takes less.
const ELECTION: Duration = Duration::from_secs(2);

/// Why messages are taken for unanswered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// A later one was stored first.
    Gap,
    /// The oldest has waited too long.
    Overdue,
}

/// What an answer means for the session.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answered {
    /// Nothing more.
    Settled,
    /// What is unanswered was lost on its way, or its answer was: it is to be sent again.
    SendAgain,
    /// Another server is to be asked: this one leads nowhere, for this reason.
    Elsewhere(String),
}

/// What is open, and what the last answer was.
#[derive(Debug, Default)]
pub(super) struct Question {
    /// Messages to which nobody listened.
    waiting: Vec<(Sequence, Arc<str>)>,
    doubt: Option<Doubt>,
    /// Number and time of the look under way.
    asked: Option<(u64, Instant)>,
    number: u64,
    last: Option<Instant>,
    stood: Option<(Instant, StreamLimits)>,
    /// Since when every look has said that the cluster stores nothing.
    unable: Option<Instant>,
}

impl Question {
    /// Whether anything waits for an answer.
    pub(super) fn is_open(&self) -> bool {
        !self.waiting.is_empty() || self.doubt.is_some()
    }

    /// Whether the look under way has no answer for too long.
    pub(super) fn is_unanswered(&self, now: Instant) -> bool {
        self.asked.is_some_and(|(_, at)| now.duration_since(at) >= ANSWER)
    }

    /// Nobody listened to this message. If the stream stood a moment ago and does not take its subject, that is the
    /// answer; whether it still stands needs a new look.
    pub(super) fn nobody_listens(
        &mut self,
        sequence: Sequence,
        subject: Arc<str>,
        now: Instant,
    ) -> Option<Verdict> {
        if let Some((at, stream)) = &self.stood
            && now.duration_since(*at) < FRESH
            && !stream.takes(&subject)
        {
            return Some(unroutable(&subject, stream));
        }
        self.waiting.push((sequence, subject));
        None
    }

    /// Messages are without an answer; the graver doubt stands.
    pub(super) fn doubt(&mut self, doubt: Doubt) {
        if self.doubt != Some(Doubt::Overdue) {
            self.doubt = Some(doubt);
        }
    }

    /// Every message that was in doubt has its answer.
    pub(super) fn relieve(&mut self) {
        self.doubt = None;
    }

    /// The number of the look to take now, if there is one and it is time.
    pub(super) fn due(&self, now: Instant) -> Option<u64> {
        let soon = self.last.is_some_and(|last| now.duration_since(last) < PAUSE);
        (self.is_open() && self.asked.is_none() && !soon).then_some(self.number + 1)
    }

    /// The look of that number was taken.
    pub(super) fn ask(&mut self, now: Instant) {
        self.number += 1;
        self.asked = Some((self.number, now));
        self.last = Some(now);
    }

    /// The messages to which nobody listened, where there is no one to ask.
    pub(super) fn give_up(&mut self) -> Vec<(Sequence, Arc<str>)> {
        std::mem::take(&mut self.waiting)
    }

    /// The answer to the look of this number: verdicts, and what follows.
    pub(super) fn answer(
        &mut self,
        number: u64,
        look: StreamLook,
        now: Instant,
        into: &mut Vec<(Sequence, Verdict)>,
    ) -> Answered {
        if self.asked.is_none_or(|(asked, _)| asked != number) {
            return Answered::Settled;
        }
        self.asked = None;
        let stream = match look {
            StreamLook::Stands(StreamLimits { useless: Some(why), .. }) => {
                return Answered::Elsewhere(format!("the stream {why}"));
            }
            StreamLook::Stands(StreamLimits { unable: Some(why), .. }) => return self.unable(&why, now, into),
            StreamLook::Stands(stream) => stream,
            StreamLook::Missing => return Answered::Elsewhere("the stream is gone".to_owned()),
            StreamLook::NoJetStream(why) => {
                return Answered::Elsewhere(format!("JetStream is not available: {why}"));
            }
            StreamLook::Unclear(why) => return Answered::Elsewhere(format!("cannot look at the stream: {why}")),
        };
        self.unable = None;
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
        if self.doubt.take().is_some() { Answered::SendAgain } else { Answered::Settled }
    }

    /// The cluster stores nothing: waits here for an election, then elsewhere.
    fn unable(&mut self, why: &str, now: Instant, into: &mut Vec<(Sequence, Verdict)>) -> Answered {
        let since = *self.unable.get_or_insert(now);
        if self.doubt == Some(Doubt::Overdue) || now.duration_since(since) >= ELECTION {
            return Answered::Elsewhere(format!("the stream {why}"));
        }
        let later = || Verdict::RetryLater(format!("the stream {why}"));
        into.extend(self.waiting.drain(..).map(|(sequence, _)| (sequence, later())));
        Answered::Settled
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
        StreamLimits { subjects: vec![subject.to_owned()], max_message: None, useless: None, unable: None }
    }

    fn leaderless(subject: &str) -> StreamLook {
        StreamLook::Stands(StreamLimits { unable: Some("has no leader".to_owned()), ..stream(subject) })
    }

    fn asked(question: &mut Question, now: Instant) -> u64 {
        let number = question.due(now).expect("a look is due");
        question.ask(now);
        assert_eq!(question.due(now + PAUSE), None, "one look at a time");
        number
    }

    #[test]
    fn asks_now_and_then_and_answers_all_that_wait() {
        let now = Instant::now();
        let mut question = Question::default();
        assert_eq!(question.due(now), None);
        assert_eq!(question.nobody_listens(1, "a.x".into(), now), None);
        assert_eq!(question.nobody_listens(2, "b".into(), now), None);
        let number = asked(&mut question, now);
        let mut verdicts = Vec::new();
        let other = question.answer(number + 1, StreamLook::Missing, now, &mut verdicts);
        assert_eq!(other, Answered::Settled, "not this look");
        let answer = question.answer(number, StreamLook::Stands(stream("a.>")), now, &mut verdicts);
        assert_eq!(answer, Answered::Settled);
        assert!(matches!(verdicts[..], [(1, Verdict::RetryLater(_)), (2, Verdict::Refused(_))]), "{verdicts:?}");
        assert!(!question.is_open());
        assert!(question.nobody_listens(3, "b".into(), now).is_some(), "known from a moment ago");
        assert_eq!(question.nobody_listens(4, "a.x".into(), now), None, "may be gone by now");
        assert_eq!(question.due(now + PAUSE / 2), None, "too soon");
        assert_eq!(question.due(now + PAUSE), Some(number + 1));
        assert_eq!(question.nobody_listens(5, "b".into(), now + FRESH), None, "too old an answer");
    }

    #[test]
    fn looks_elsewhere_where_the_stream_is_gone() {
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
            let answer = question.answer(number, look, now, &mut verdicts);
            assert!(matches!(answer, Answered::Elsewhere(_)) && verdicts.is_empty(), "{answer:?}");
        }
    }

    #[test]
    fn sends_again_only_where_a_leader_has_its_majority() {
        let now = Instant::now();
        for doubt in [Doubt::Gap, Doubt::Overdue] {
            let mut question = Question::default();
            question.doubt(doubt);
            let number = asked(&mut question, now);
            let answer = question.answer(number, StreamLook::Stands(stream("a")), now, &mut Vec::new());
            assert_eq!((answer, question.is_open()), (Answered::SendAgain, false));
        }
        let mut question = Question::default();
        question.doubt(Doubt::Overdue);
        question.doubt(Doubt::Gap);
        let number = asked(&mut question, now);
        let elsewhere = Answered::Elsewhere("the stream has no leader".to_owned());
        assert_eq!(question.answer(number, leaderless("a"), now, &mut Vec::new()), elsewhere);
    }

    #[test]
    fn waits_for_an_election_before_it_looks_elsewhere() {
        let mut now = Instant::now();
        let mut question = Question::default();
        let mut verdicts = Vec::new();
        question.doubt(Doubt::Gap);
        question.nobody_listens(1, "a".into(), now);
        let number = asked(&mut question, now);
        assert_eq!(question.answer(number, leaderless("a"), now, &mut verdicts), Answered::Settled);
        assert!(matches!(verdicts[..], [(1, Verdict::RetryLater(_))]) && question.is_open(), "{verdicts:?}");
        now += PAUSE;
        let number = asked(&mut question, now);
        assert_eq!(
            question.answer(number, StreamLook::Stands(stream("a")), now, &mut verdicts),
            Answered::SendAgain
        );
        question.doubt(Doubt::Gap);
        for (wait, is_over) in [(PAUSE, false), (ELECTION.saturating_sub(PAUSE), false), (PAUSE, true)] {
            now += wait;
            let number = asked(&mut question, now);
            let answer = question.answer(number, leaderless("a"), now, &mut verdicts);
            assert_eq!(matches!(answer, Answered::Elsewhere(_)), is_over, "{answer:?}");
        }
    }

    #[test]
    fn waits_for_an_answer_only_so_long() {
        let now = Instant::now();
        let mut question = Question::default();
        question.doubt(Doubt::Gap);
        asked(&mut question, now);
        assert!(!question.is_unanswered(now + ANSWER / 2));
        assert!(question.is_unanswered(now + ANSWER));
    }
}
