//! The look at the stream after "no responders" or a missing acknowledgement: whether it exists, has a leader and a
//! majority. It blames a subject only if the stream itself says that it does not accept it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::stream::{StreamLimits, StreamLook};
use crate::brokers::{Refusal, RefusalReason};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(250);

/// The time for which the answer about a subject that the stream does not take counts: longer than a try of it waits.
const FRESH: Duration = Duration::from_secs(5);

/// The longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(2);

/// The time that a cluster may be without a leader before another server is asked: an election mostly takes less.
const ELECTION: Duration = Duration::from_secs(2);

/// The reason to count messages as unanswered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// A later one was stored first.
    Gap,
    /// The oldest has waited too long.
    Overdue,
}

/// The meaning of an answer for the session.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answered {
    /// Nothing more.
    Settled,
    /// The unanswered messages were lost in transit, or their answers were: they are to be sent again.
    SendAgain,
    /// The stream takes nothing: another server is to be asked, or its messages are to wait.
    Trouble(Refusal),
}

/// The open questions, and the last answer.
#[derive(Debug, Default)]
pub(super) struct Question {
    stream: Arc<str>,
    /// A message had no listener.
    is_unheard: bool,
    doubt: Option<Doubt>,
    /// Number and time of the look under way.
    asked: Option<(u64, Instant)>,
    number: u64,
    last: Option<Instant>,
    stood: Option<(Instant, StreamLimits)>,
    /// The reason why the stream took nothing, as it was last seen.
    trouble: Option<(Instant, Refusal)>,
    /// Since when every look has said that the cluster stores nothing.
    unable: Option<Instant>,
    /// The cluster stores again.
    has_recovered: bool,
}

impl Question {
    /// About this stream.
    pub(super) fn new(stream: &str) -> Self {
        Self { stream: stream.into(), ..Self::default() }
    }

    /// Whether there is anything to ask.
    pub(super) fn is_open(&self) -> bool {
        self.is_unheard || self.doubt.is_some()
    }

    /// Whether messages are without an answer that should have one.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.doubt.is_some()
    }

    /// Whether the cluster stores again, since this was last asked.
    pub(super) fn has_recovered(&mut self) -> bool {
        std::mem::take(&mut self.has_recovered)
    }

    /// Whether the look under way has no answer for too long.
    pub(super) fn is_unanswered(&self, now: Instant) -> bool {
        self.asked.is_some_and(|(_, at)| now.duration_since(at) >= ANSWER)
    }

    /// A message of this subject had no listener: the stream is looked at. If it stood a moment ago and does not take the
    /// subject, the subject is wrong.
    pub(super) fn nobody_listens(&mut self, subject: &str, now: Instant) -> Refusal {
        self.look();
        if let Some((_, trouble)) = self.trouble.as_ref().filter(|(at, _)| now.duration_since(*at) < FRESH) {
            return trouble.clone();
        }
        let stood = self.stood.as_ref().filter(|(at, _)| now.duration_since(*at) < FRESH);
        match stood.map(|(_, stream)| stream) {
            Some(stream) if !stream.takes(subject) => {
                let takes = stream.subjects.join(", ");
                let text = format!("the stream {} does not take {subject}; it takes {takes}", self.stream);
                Refusal::wrong(RefusalReason::Unroutable, text)
            }
            _ => Refusal::unable(format!("no stream takes {subject}; the stream {} is looked at", self.stream)),
        }
    }

    /// The stream is to be looked at.
    pub(super) fn look(&mut self) {
        self.is_unheard = true;
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
        (self.is_open() && self.asked.is_none() && !soon).then_some(self.next())
    }

    /// The number of the next look.
    pub(super) fn next(&self) -> u64 {
        self.number + 1
    }

    /// The look of that number was taken.
    pub(super) fn ask(&mut self, now: Instant) {
        self.number += 1;
        self.asked = Some((self.number, now));
        self.last = Some(now);
    }

    /// There is no one to ask.
    pub(super) fn give_up(&mut self) {
        self.is_unheard = false;
    }

    /// The answer to the look of this number: what follows.
    pub(super) fn answer(&mut self, number: u64, look: StreamLook, now: Instant) -> Answered {
        if self.asked.is_none_or(|(asked, _)| asked != number) {
            return Answered::Settled;
        }
        self.asked = None;
        let name = self.stream.clone();
        let trouble = match look {
            StreamLook::Stands(StreamLimits { useless: Some(why), .. }) => {
                Refusal::unable(format!("the stream {name} {why}"))
            }
            StreamLook::Stands(StreamLimits { unable: Some(why), .. }) => {
                let since = *self.unable.get_or_insert(now);
                // Waits here for an election, then elsewhere.
                if self.doubt != Some(Doubt::Overdue) && now.duration_since(since) < ELECTION {
                    return Answered::Settled;
                }
                Refusal::unable(format!("the stream {name} {why}"))
            }
            StreamLook::Stands(stream) => {
                self.has_recovered |= self.unable.take().is_some() | self.trouble.take().is_some();
                self.is_unheard = false;
                self.stood = Some((now, stream));
                let is_in_doubt = self.doubt.take().is_some();
                return if is_in_doubt { Answered::SendAgain } else { Answered::Settled };
            }
            StreamLook::Missing => {
                Refusal::wrong(RefusalReason::NoDestination, format!("the stream {name} does not exist any more"))
            }
            StreamLook::NoJetStream(why) => Refusal::unable(format!("JetStream is not available: {why}")),
            StreamLook::Unclear(why) => Refusal::unable(format!("cannot look at the stream {name}: {why}")),
        };
        Answered::Trouble(self.note(trouble, now))
    }

    /// The stream takes nothing, for this reason.
    pub(super) fn note(&mut self, trouble: Refusal, now: Instant) -> Refusal {
        (self.is_unheard, self.stood, self.asked) = (false, None, None);
        self.trouble = Some((now, trouble.clone()));
        trouble
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::brokers::Refused;

    fn stream(subject: &str) -> StreamLimits {
        StreamLimits {
            subjects: vec![subject.to_owned()],
            max_message: None,
            useless: None,
            unable: None,
            unread: None,
        }
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
    fn blames_a_subject_only_where_the_stream_that_stands_does_not_take_it() {
        let now = Instant::now();
        let mut question = Question::new("S");
        assert_eq!(question.due(now), None);
        let unable = |question: &mut Question, subject, now| {
            question.nobody_listens(subject, now).kind == Refused::AddressUnable
        };
        assert!(unable(&mut question, "a.x", now) && unable(&mut question, "b", now), "nothing is known");
        let number = asked(&mut question, now);
        assert_eq!(question.answer(number + 1, StreamLook::Missing, now), Answered::Settled, "not this look");
        assert_eq!(question.answer(number, StreamLook::Stands(stream("a.>")), now), Answered::Settled);
        assert!(!question.is_open());
        let refusal = question.nobody_listens("b", now);
        assert_eq!(refusal.kind, Refused::AddressWrong(RefusalReason::Unroutable));
        assert!(unable(&mut question, "a.x", now), "may be gone by now");
        assert_eq!(question.due(now + PAUSE / 2), None, "too soon");
        assert_eq!(question.due(now + PAUSE), Some(number + 1));
        assert!(unable(&mut question, "b", now + FRESH), "too old an answer");
    }

    #[test]
    fn says_why_a_stream_takes_nothing() {
        let now = Instant::now();
        let useless = StreamLimits { useless: Some("is sealed"), ..stream("a") };
        for look in [
            StreamLook::Stands(useless),
            StreamLook::Missing,
            StreamLook::NoJetStream("off".to_owned()),
            StreamLook::Unclear("odd".to_owned()),
        ] {
            let mut question = Question::new("S");
            question.nobody_listens("a", now);
            let number = asked(&mut question, now);
            let answer = question.answer(number, look, now);
            let Answered::Trouble(refusal) = answer else { panic!("{answer:?}") };
            assert!(!question.is_open());
            assert_eq!(question.nobody_listens("a", now), refusal, "as it was seen a moment ago");
            assert_ne!(question.nobody_listens("a", now + FRESH), refusal);
        }
    }

    #[test]
    fn sends_again_only_where_a_leader_has_its_majority() {
        let now = Instant::now();
        for doubt in [Doubt::Gap, Doubt::Overdue] {
            let mut question = Question::new("S");
            question.doubt(doubt);
            let number = asked(&mut question, now);
            let answer = question.answer(number, StreamLook::Stands(stream("a")), now);
            assert_eq!((answer, question.is_open()), (Answered::SendAgain, false));
        }
        let mut question = Question::new("S");
        question.doubt(Doubt::Overdue);
        question.doubt(Doubt::Gap);
        let number = asked(&mut question, now);
        let elsewhere = Answered::Trouble(Refusal::unable("the stream S has no leader"));
        assert_eq!(question.answer(number, leaderless("a"), now), elsewhere);
    }

    #[test]
    fn waits_for_an_election_before_it_looks_elsewhere() {
        let mut now = Instant::now();
        let mut question = Question::new("S");
        question.doubt(Doubt::Gap);
        question.nobody_listens("a", now);
        let number = asked(&mut question, now);
        assert_eq!(question.answer(number, leaderless("a"), now), Answered::Settled);
        assert!(question.is_open() && !question.has_recovered());
        now += PAUSE;
        let number = asked(&mut question, now);
        assert_eq!(question.answer(number, StreamLook::Stands(stream("a")), now), Answered::SendAgain);
        assert!(question.has_recovered() && !question.has_recovered());
        question.doubt(Doubt::Gap);
        for (wait, is_over) in [(PAUSE, false), (ELECTION.saturating_sub(PAUSE), false), (PAUSE, true)] {
            now += wait;
            let number = asked(&mut question, now);
            let answer = question.answer(number, leaderless("a"), now);
            assert_eq!(matches!(answer, Answered::Trouble(_)), is_over, "{answer:?}");
        }
    }

    #[test]
    fn waits_for_an_answer_only_so_long() {
        let now = Instant::now();
        let mut question = Question::new("S");
        question.doubt(Doubt::Gap);
        asked(&mut question, now);
        assert!(!question.is_unanswered(now + ANSWER / 2));
        assert!(question.is_unanswered(now + ANSWER));
    }
}
