//! One stream as a session sees it: the messages without an answer, and the looks at the stream that judge them. A
//! subject is blamed only if the stream itself says that it does not take it.
//!
//! Length: half of it are its tests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::settings::{Settings, StreamPlan};
use super::stream::{self, StreamLook};
use crate::brokers::{Position, Refusal, RefusalReason, Sequence, Topology, Verdict};

/// The time that a message may be unanswered before the stream is checked; the library's default for acknowledgements.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// A stream acknowledges in the order in which it takes: once it acknowledged nothing for this long, what is missing
/// below its last word has not arrived.
const QUIET: Duration = Duration::from_millis(200);

/// The wait for a missing answer while later ones arrive.
const COLLECT: Duration = Duration::from_secs(1);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(250);

/// The time that a cluster may be without a leader before another server is asked: an election mostly takes less.
const ELECTION: Duration = Duration::from_secs(2);

/// One message without an answer.
#[derive(Debug)]
struct Unacknowledged {
    sequence: Sequence,
    subject: Arc<str>,
    sent: Instant,
    /// Another stream than its own says that it has stored it.
    other: Option<String>,
}

/// A message is unanswered below one that the stream has stored since.
#[derive(Clone, Copy, Debug)]
struct Gap {
    /// The number of the stored one.
    below: u64,
    seen: Instant,
    /// The last answer since.
    heard: Instant,
}

/// The last look at a stream, and when it began.
#[derive(Clone, Copy, Debug)]
enum LastLook {
    Never,
    UnderWay(Instant),
    Over(Instant),
}

/// The progress of a session at one stream.
#[derive(Debug)]
pub(super) struct StreamProgress {
    pub(super) name: Arc<str>,
    /// The subject of questions about it.
    pub(super) info: String,
    may_ask: bool,
    /// Subject and content of the request that creates it, where only routes name it and it is ours to create.
    pub(super) creation: Option<(String, Bytes)>,
    /// By the number in their reply subject; numbers rise, so a late second answer finds nothing.
    outstanding: BTreeMap<u64, Unacknowledged>,
    /// The number of the next message.
    pub(super) next: u64,
    /// Messages whose subject had no listener: the next look judges them.
    unheard: Vec<Unacknowledged>,
    gap: Option<Gap>,
    /// When it was last checked how long messages have waited.
    checked: Instant,
    /// It is to be looked at, whatever is unanswered.
    pub(super) is_suspected: bool,
    last_look: LastLook,
    /// Since when it takes nothing, as far as is known.
    trouble: Option<Instant>,
    /// It takes messages again.
    pub(super) has_recovered: bool,
}

impl StreamProgress {
    pub(super) fn new(name: &str, settings: &Settings, may_ask: bool) -> Self {
        let creatable = |plan: &&StreamPlan| plan.name == name && !plan.subjects.is_empty();
        let plan = settings.streams[1..].iter().find(creatable).filter(|_| settings.topology == Topology::Declare);
        let creation =
            |plan| (stream::create_subject(&settings.api, name), Bytes::from(stream::creation(settings, plan)));
        Self {
            name: name.into(),
            info: stream::info_subject(&settings.api, name),
            may_ask,
            creation: plan.map(creation),
            outstanding: BTreeMap::new(),
            next: 0,
            unheard: Vec::new(),
            gap: None,
            checked: Instant::now(),
            is_suspected: false,
            last_look: LastLook::Never,
            trouble: None,
            has_recovered: false,
        }
    }

    /// Whether messages are without an answer.
    pub(super) fn has_outstanding(&self) -> bool {
        !self.outstanding.is_empty()
    }

    /// Whether time alone decides nothing.
    pub(super) fn is_idle(&self) -> bool {
        self.outstanding.is_empty() && self.unheard.is_empty() && !self.is_suspected
    }

    /// Nothing is sent behind a message that may have to be sent again.
    pub(super) fn is_clear(&self) -> bool {
        self.gap().is_none() && !self.is_overdue(self.checked)
    }

    /// Whether a message of this subject would only wait for the look that judges another one.
    pub(super) fn is_unheard(&self, subject: &str) -> bool {
        self.unheard.iter().any(|waiting| *waiting.subject == *subject)
    }

    /// Notes that the message of the next number was sent.
    pub(super) fn sent(&mut self, sequence: Sequence, subject: &Arc<str>) {
        let waiting = Unacknowledged { sequence, subject: subject.clone(), sent: Instant::now(), other: None };
        self.outstanding.insert(self.next, waiting);
        self.next += 1;
    }

    /// The stream has the message of this number.
    pub(super) fn stored(&mut self, number: u64, position: Position, into: &mut Vec<(Sequence, Verdict)>) {
        let Some(waiting) = self.outstanding.remove(&number) else { return };
        into.push((waiting.sequence, Verdict::StoredAt(position)));
        self.gap = match self.gap() {
            Some(gap) => Some(Gap { below: gap.below.max(number), heard: Instant::now(), ..gap }),
            // A repeat is answered at once, before those that the stream has yet to store.
            None if !position.repeat && self.misses_below(number) => {
                let now = Instant::now();
                Some(Gap { below: number, seen: now, heard: now })
            }
            None => None,
        };
    }

    /// The message of this number was refused.
    pub(super) fn refused(&mut self, number: u64, refusal: Refusal, into: &mut Vec<(Sequence, Verdict)>) {
        let waiting = self.outstanding.remove(&number);
        into.extend(waiting.map(|waiting| (waiting.sequence, Verdict::Refused(refusal))));
    }

    /// Another stream has stored the message of this number. Its own may have it as well, and has not answered yet.
    pub(super) fn stored_elsewhere(&mut self, number: u64, stream: String) {
        if let Some(waiting) = self.outstanding.get_mut(&number) {
            waiting.other = Some(stream);
        }
    }

    /// The subject of the message of this number has no listener: where the stream may be looked at, it is.
    pub(super) fn nobody_listens(&mut self, number: u64, into: &mut Vec<(Sequence, Verdict)>) {
        self.unheard.extend(self.outstanding.remove(&number));
        if !self.may_ask {
            self.judge_unasked(into);
        }
    }

    fn judge_unasked(&mut self, into: &mut Vec<(Sequence, Verdict)>) {
        let (name, question) = (self.name.clone(), self.info.clone());
        self.judge_unheard(into, |subject| {
            let text = format!(
                "no stream takes {subject}, and these credentials may not ask about the stream {name}; permit {question}"
            );
            Refusal::wrong(RefusalReason::Unroutable, text)
        });
    }

    /// These credentials may not publish to this subject.
    pub(super) fn forbidden(&mut self, subject: &str, into: &mut Vec<(Sequence, Verdict)>) {
        if self.info == subject {
            (self.may_ask, self.last_look) = (false, LastLook::Never);
            self.judge_unasked(into);
        } else if self.creation.take_if(|(creation, _)| creation == subject).is_none() {
            let text = format!("these credentials may not publish to {subject}");
            let verdict = Verdict::Refused(Refusal::wrong(RefusalReason::NotAuthorised, text));
            self.outstanding.retain(|_, waiting| {
                let is_allowed = *waiting.subject != *subject;
                into.extend((!is_allowed).then(|| (waiting.sequence, verdict.clone())));
                is_allowed
            });
        }
    }

    /// Whether a look is to begin now: then it has.
    pub(super) fn begins_look(&mut self, now: Instant) -> bool {
        self.checked = now;
        let is_wanted = self.is_suspected || !self.unheard.is_empty() || self.is_in_doubt(now);
        let is_time = match self.last_look {
            LastLook::Never => true,
            LastLook::UnderWay(_) => false,
            LastLook::Over(begun) => now.duration_since(begun) >= PAUSE,
        };
        let begins = self.may_ask && is_wanted && is_time;
        if begins {
            self.last_look = LastLook::UnderWay(now);
        }
        begins
    }

    /// The reason why what is unanswered cannot be judged: the stream may not be looked at.
    pub(super) fn cannot_look(&mut self, now: Instant) -> Option<Refusal> {
        self.is_suspected &= self.may_ask;
        (!self.may_ask && self.is_in_doubt(now)).then(|| Refusal::unable(self.unanswered()))
    }

    /// Judges what has no answer by what a look has found. `Err`: the stream takes nothing.
    pub(super) fn found(
        &mut self,
        look: StreamLook,
        now: Instant,
        into: &mut Vec<(Sequence, Verdict)>,
    ) -> Result<(), Refusal> {
        let LastLook::UnderWay(begun) = self.last_look else { return Ok(()) };
        self.last_look = LastLook::Over(begun);
        let stream = match look {
            StreamLook::Stands(stream) if stream.trouble().is_none() => stream,
            look => {
                let since = *self.trouble.get_or_insert(now);
                // Waits here for an election, then elsewhere.
                if look.is_unable() && !self.is_overdue(now) && now.duration_since(since) < ELECTION {
                    return Ok(());
                }
                self.is_suspected = false;
                return Err(look.refusal(&self.name));
            }
        };
        self.has_recovered |= self.trouble.take().is_some();
        self.is_suspected = false;
        let is_in_doubt = self.is_in_doubt(now);
        let name = self.name.clone();
        self.judge_unheard(into, |subject| {
            if stream.takes(subject) {
                return unheard(subject, &name);
            }
            let takes = stream.subjects.join(", ");
            let text = format!("the stream {name} does not take {subject}; it takes {takes}");
            Refusal::wrong(RefusalReason::Unroutable, text)
        });
        if is_in_doubt {
            self.hand_back(&Verdict::RetryLater(self.unanswered()), into);
        }
        Ok(())
    }

    /// Gives up the looks that would judge messages without a listener.
    pub(super) fn leave_unheard(&mut self, into: &mut Vec<(Sequence, Verdict)>) {
        let name = self.name.clone();
        self.judge_unheard(into, |subject| unheard(subject, &name));
    }

    fn judge_unheard(&mut self, into: &mut Vec<(Sequence, Verdict)>, refusal: impl Fn(&str) -> Refusal) {
        let judged = self.unheard.drain(..);
        into.extend(judged.map(|waiting| (waiting.sequence, Verdict::Refused(refusal(&waiting.subject)))));
    }

    /// Refuses everything that is unanswered.
    pub(super) fn refuse(&mut self, refusal: &Refusal, into: &mut Vec<(Sequence, Verdict)>) {
        self.judge_unheard(into, |_| refusal.clone());
        self.hand_back(&Verdict::Refused(refusal.clone()), into);
    }

    /// Hands back everything that is unanswered, oldest first; what another stream has stored is sent to a wrong place.
    fn hand_back(&mut self, verdict: &Verdict, into: &mut Vec<(Sequence, Verdict)>) {
        for waiting in std::mem::take(&mut self.outstanding).into_values() {
            let wrong = waiting.other.map(|other| {
                let text = format!("the stream {other} takes {}, not the stream {}", waiting.subject, self.name);
                Verdict::Refused(Refusal::wrong(RefusalReason::NoDestination, text))
            });
            into.push((waiting.sequence, wrong.unwrap_or_else(|| verdict.clone())));
        }
    }

    /// The problem, for people.
    fn unanswered(&self) -> String {
        let subject = self.outstanding.values().next().map_or("a message", |oldest| &*oldest.subject);
        if self.gap().is_some() {
            format!("no acknowledgement of {subject}, though later messages were stored")
        } else {
            format!("no acknowledgement of {subject} within {} s", ACK_TIMEOUT.as_secs())
        }
    }

    /// Whether a message that was sent before this number is still unanswered.
    fn misses_below(&self, number: u64) -> bool {
        self.outstanding.keys().next().is_some_and(|oldest| *oldest < number)
    }

    fn gap(&self) -> Option<Gap> {
        self.gap.filter(|gap| self.misses_below(gap.below))
    }

    fn is_overdue(&self, now: Instant) -> bool {
        let oldest = self.outstanding.values().next();
        oldest.is_some_and(|oldest| now.duration_since(oldest.sent) >= ACK_TIMEOUT)
    }

    /// Whether something is unanswered that should be answered by now.
    fn is_in_doubt(&self, now: Instant) -> bool {
        let is_over = |gap: Gap| now.duration_since(gap.heard) >= QUIET || now.duration_since(gap.seen) >= COLLECT;
        self.is_overdue(now) || self.gap().is_some_and(is_over)
    }
}

fn unheard(subject: &str, stream: &str) -> Refusal {
    Refusal::unable(format!("no stream takes {subject}; the stream {stream} is looked at"))
}

#[cfg(test)]
mod tests {
    use super::super::stream::StreamLimits;
    use super::*;
    use crate::brokers::Refused;
    use crate::settings::testing;

    fn progress(toml: &str, name: &str) -> StreamProgress {
        let (settings, problems) = testing::read(&["broker", "nats"], toml, Settings::read);
        assert!(problems.errors.is_empty(), "{problems:?}");
        StreamProgress::new(name, &settings, true)
    }

    /// The progress at the stream `S` after messages of these subjects, with sequences from 10 on.
    fn sent(subjects: &[&str]) -> StreamProgress {
        let mut progress = progress("", "S");
        for (sequence, subject) in (10..).zip(subjects) {
            progress.sent(sequence, &Arc::from(*subject));
        }
        progress
    }

    fn limits(subject: &str) -> StreamLimits {
        let subjects = vec![subject.to_owned()];
        StreamLimits { subjects, max_message: None, useless: None, unable: None, unread: None }
    }

    fn stands(subject: &str) -> StreamLook {
        StreamLook::Stands(limits(subject))
    }

    fn leaderless() -> StreamLook {
        StreamLook::Stands(StreamLimits { unable: Some("has no leader"), ..limits("a.>") })
    }

    fn stored(progress: &mut StreamProgress, number: u64) -> Vec<(Sequence, Verdict)> {
        let mut verdicts = Vec::new();
        progress.stored(number, Position { number, repeat: false }, &mut verdicts);
        verdicts
    }

    /// Looks, and finds this.
    fn found(progress: &mut StreamProgress, look: StreamLook, now: Instant) -> Result<Vec<Sequence>, Refusal> {
        assert!(progress.begins_look(now), "a look is due");
        assert!(!progress.begins_look(now + PAUSE), "one at a time");
        let mut verdicts = Vec::new();
        progress.found(look, now, &mut verdicts)?;
        Ok(verdicts.into_iter().map(|(sequence, _)| sequence).collect())
    }

    fn refusals(verdicts: Vec<(Sequence, Verdict)>) -> Vec<(Sequence, Refused)> {
        let refusal = |(sequence, verdict)| match verdict {
            Verdict::Refused(refusal) => (sequence, refusal.kind),
            verdict => panic!("{verdict:?}"),
        };
        verdicts.into_iter().map(refusal).collect()
    }

    #[test]
    fn creates_the_streams_of_routes_where_it_knows_their_subjects() {
        let route = |subject: &str| format!("[[routes]]\nevent = \"E\"\nstream = \"S\"\nsubject = \"{subject}\"");
        assert!(progress(&route("a.{event}"), "S").creation.is_some());
        let of_its_own = format!("stream_subjects = [\"plextrac.>\"]\n{}", route("{event}.a"));
        assert_eq!(progress(&of_its_own, "S").creation, None);
        assert_eq!(progress(&format!("topology = \"check\"\n{}", route("a.{event}")), "S").creation, None);
        assert_eq!(progress(&route("a.{event}"), "PLEXTRAC").creation, None, "a new session does");
        assert_eq!(progress(&route("a.{event}"), "REMOVED").creation, None);
    }

    #[test]
    fn finds_each_message_once_by_its_number() {
        let mut progress = sent(&["a", "a", "a", "a"]);
        for (number, sequence) in [(2, 12), (0, 10), (1, 11), (3, 13)] {
            let position = Position { number, repeat: false };
            assert_eq!(stored(&mut progress, number), [(sequence, Verdict::StoredAt(position))]);
            assert_eq!(stored(&mut progress, number), []);
        }
        assert_eq!(stored(&mut progress, 4), []);
        assert_eq!((progress.is_idle(), progress.next), (true, 4));
    }

    #[test]
    fn refuses_all_of_a_forbidden_subject_and_no_other() {
        let mut progress = sent(&["a", "b", "a"]);
        let mut verdicts = Vec::new();
        progress.forbidden("a", &mut verdicts);
        let forbidden = Refused::AddressWrong(RefusalReason::NotAuthorised);
        assert_eq!(refusals(verdicts), [(10, forbidden), (12, forbidden)]);
        assert_eq!(stored(&mut progress, 1).len(), 1);
    }

    #[test]
    fn refuses_what_only_another_stream_has_stored() {
        let mut progress = sent(&["a.b", "a.b"]);
        progress.stored_elsewhere(0, "T".to_owned());
        let now = Instant::now() + ACK_TIMEOUT;
        assert!(progress.begins_look(now));
        let mut verdicts = Vec::new();
        progress.found(stands("a.>"), now, &mut verdicts).unwrap();
        let text = "the stream T takes a.b, not the stream S";
        let wrong = Verdict::Refused(Refusal::wrong(RefusalReason::NoDestination, text));
        let again = Verdict::RetryLater("no acknowledgement of a.b within 5 s".to_owned());
        assert_eq!(verdicts, [(10, wrong), (11, again)]);
    }

    #[test]
    fn blames_a_subject_only_where_the_stream_that_stands_does_not_take_it() {
        let mut progress = sent(&["a.x", "b", "a.y"]);
        let mut verdicts = Vec::new();
        for number in [0, 1] {
            progress.nobody_listens(number, &mut verdicts);
        }
        assert_eq!(verdicts, [], "a look decides");
        assert!(progress.is_clear() && progress.is_unheard("b") && !progress.is_unheard("a.y"));
        let now = Instant::now();
        assert!(progress.begins_look(now));
        progress.found(stands("a.>"), now, &mut verdicts).unwrap();
        let wrong = Refused::AddressWrong(RefusalReason::Unroutable);
        assert_eq!(refusals(std::mem::take(&mut verdicts)), [(10, Refused::AddressUnable), (11, wrong)]);
        progress.found(StreamLook::Missing, now, &mut verdicts).unwrap();
        assert_eq!((verdicts, progress.is_unheard("b")), (Vec::new(), false), "no look is under way");
    }

    #[test]
    fn leaves_a_moment_between_two_looks() {
        let now = Instant::now();
        let mut progress = sent(&["a", "a"]);
        progress.nobody_listens(0, &mut Vec::new());
        assert_eq!(found(&mut progress, stands("a"), now), Ok(vec![10]));
        progress.nobody_listens(1, &mut Vec::new());
        assert!(!progress.begins_look(now + PAUSE / 2), "too soon");
        assert_eq!(found(&mut progress, stands("a"), now + PAUSE), Ok(vec![11]));
    }

    #[test]
    fn says_at_once_that_it_may_not_ask() {
        let mut progress = sent(&["a", "b", "c"]);
        progress.nobody_listens(0, &mut Vec::new());
        assert!(progress.begins_look(Instant::now()));
        let mut verdicts = Vec::new();
        progress.forbidden("$JS.API.STREAM.INFO.S", &mut verdicts);
        progress.nobody_listens(1, &mut verdicts);
        let wrong = Refused::AddressWrong(RefusalReason::Unroutable);
        assert_eq!(refusals(verdicts), [(10, wrong), (11, wrong)]);
        let now = Instant::now() + ACK_TIMEOUT;
        assert!(!progress.begins_look(now));
        assert_eq!(progress.cannot_look(now), Some(Refusal::unable("no acknowledgement of c within 5 s")));
    }

    #[test]
    fn says_why_a_stream_takes_nothing() {
        let useless = StreamLook::Stands(StreamLimits { useless: Some("is sealed"), ..limits("a") });
        for (look, text) in [
            (useless, "the stream S is sealed"),
            (StreamLook::Missing, "the stream S does not exist any more"),
            (StreamLook::NoJetStream("off".to_owned()), "JetStream is not available: off"),
            (StreamLook::Unclear("odd".to_owned()), "cannot look at the stream S: odd"),
            (StreamLook::Silent, "no answer about the stream S"),
        ] {
            let mut progress = sent(&["a"]);
            progress.nobody_listens(0, &mut Vec::new());
            let refusal = found(&mut progress, look, Instant::now()).unwrap_err();
            assert_eq!(refusal.text, text);
            let mut verdicts = Vec::new();
            progress.refuse(&refusal, &mut verdicts);
            assert_eq!(verdicts, [(10, Verdict::Refused(refusal))]);
            assert!(progress.is_idle());
        }
    }

    #[test]
    fn sends_again_what_is_missing_below_a_stored_one() {
        let mut progress = sent(&["a", "a", "a", "a"]);
        assert_eq!(stored(&mut progress, 0).len(), 1);
        assert!(progress.is_clear(), "nothing is below the first");
        assert_eq!(stored(&mut progress, 2).len(), 1);
        assert!(!progress.is_clear(), "1 is missing");
        let now = Instant::now();
        assert!(!progress.begins_look(now), "it may still come");
        assert_eq!(found(&mut progress, stands("a"), now + QUIET), Ok(vec![11, 13]));
        assert!(progress.is_clear() && progress.is_idle());
        progress.sent(20, &Arc::from("a"));
        assert_eq!((stored(&mut progress, 1), stored(&mut progress, 3)), (Vec::new(), Vec::new()), "too late");
        assert_eq!(stored(&mut progress, 4).len(), 1);
    }

    #[test]
    fn forgets_a_gap_that_an_answer_closes() {
        let mut progress = sent(&["a", "a"]);
        stored(&mut progress, 1);
        assert!(!progress.is_clear());
        stored(&mut progress, 0);
        assert!(progress.is_clear());
    }

    #[test]
    fn sends_again_only_where_a_leader_has_its_majority() {
        let mut progress = sent(&["a"]);
        let now = Instant::now() + ACK_TIMEOUT;
        assert_eq!(
            found(&mut progress, leaderless(), now),
            Err(Refusal::unable("the stream S has no leader")),
            "it has waited long enough"
        );
        assert!(!progress.is_clear());
        assert_eq!(found(&mut progress, stands("a"), now + PAUSE), Ok(vec![10]));
    }

    #[test]
    fn waits_for_an_election_before_it_looks_elsewhere() {
        let mut now = Instant::now();
        let mut progress = sent(&["a", "a"]);
        progress.nobody_listens(0, &mut Vec::new());
        assert_eq!(found(&mut progress, leaderless(), now), Ok(Vec::new()));
        assert!(progress.is_unheard("a") && !progress.has_recovered);
        now += PAUSE;
        assert_eq!(found(&mut progress, stands("a"), now), Ok(vec![10]));
        assert!(std::mem::take(&mut progress.has_recovered));
        progress.nobody_listens(1, &mut Vec::new());
        for (wait, is_over) in [(PAUSE, false), (ELECTION.saturating_sub(PAUSE), false), (PAUSE, true)] {
            now += wait;
            assert_eq!(found(&mut progress, leaderless(), now).is_err(), is_over);
        }
    }
}
