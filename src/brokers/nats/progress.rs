//! One stream as a session sees it: the messages without an answer, and the looks at the stream that judge them. A
//! subject is blamed only if the stream itself says that it does not take it.
//!
//! Length: half of it are its tests.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::settings::{Settings, StreamPlan};
use super::stream::{self, StreamLimits, StreamLook};
use crate::brokers::{Position, Refusal, RefusalReason, Refused, Sequence, Topology, Verdict};

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

/// A sender of thousands of event names must not fill the memory with subjects that are not stored.
const REMEMBERED: usize = 1024;

/// One message without an answer.
#[derive(Debug)]
struct Unacknowledged {
    sequence: Sequence,
    subject: Arc<str>,
    sent: Instant,
    /// The answer of another stream than its own.
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

/// The events that go to a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StreamRole {
    /// All without a route to another one.
    Main,
    /// Those of routes alone.
    OfRoutes,
}

/// The progress of a session at one stream.
#[derive(Debug)]
pub(super) struct StreamProgress {
    pub(super) name: Arc<str>,
    role: StreamRole,
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
    /// Subjects of which a message was not stored, and none since; with the number of stored messages at that time.
    unstored: HashMap<Arc<str>, u64>,
    /// The number of stored messages.
    count: u64,
    last_stored: Option<Arc<str>>,
    /// It stored a message, in this session or an earlier one: it exists, or was there.
    has_stored: Arc<AtomicBool>,
    gap: Option<Gap>,
    /// The time at which it was last checked how long messages have waited.
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
    pub(super) fn new(name: &str, settings: &Settings, may_ask: bool, has_stored: Arc<AtomicBool>) -> Self {
        let creatable = |plan: &&StreamPlan| plan.name == name && !plan.subjects.is_empty();
        let plan = settings.streams[1..].iter().find(creatable).filter(|_| settings.topology == Topology::Declare);
        let creation =
            |plan| (stream::create_subject(&settings.api, name), Bytes::from(stream::creation(settings, plan)));
        Self {
            name: name.into(),
            role: if settings.main().name == name { StreamRole::Main } else { StreamRole::OfRoutes },
            info: stream::info_subject(&settings.api, name),
            may_ask,
            creation: plan.map(creation),
            outstanding: BTreeMap::new(),
            next: 0,
            unheard: Vec::new(),
            unstored: HashMap::new(),
            count: 0,
            last_stored: None,
            has_stored,
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
        self.count += 1;
        self.has_stored.store(true, Ordering::Relaxed);
        self.unstored.remove(&waiting.subject);
        self.last_stored = Some(waiting.subject);
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

    /// Another stream has answered for its own: both may take the subject, in two domains. A look shows whether its own does,
    /// which has not answered yet.
    pub(super) fn answered_elsewhere(&mut self, number: u64, text: String) {
        if let Some(waiting) = self.outstanding.get_mut(&number) {
            waiting.other = Some(text);
            self.is_suspected |= self.may_ask;
        }
    }

    /// The subject of the message of this number has no listener: where the stream may be looked at, it is.
    pub(super) fn nobody_listens(&mut self, number: u64, into: &mut Vec<(Sequence, Verdict)>) {
        self.unheard.extend(self.outstanding.remove(&number));
        if !self.may_ask {
            self.judge_unasked(into);
        }
    }

    /// Without a look, a subject is wrong only if the stream has stored others since it first had no listener: before, it may
    /// be without a leader. The stream of a route may not exist, until it has stored something.
    fn judge_unasked(&mut self, into: &mut Vec<(Sequence, Verdict)>) {
        for Unacknowledged { sequence, subject, .. } in std::mem::take(&mut self.unheard) {
            if self.last_stored.take_if(|last| *last == subject).is_some() {
                // It is the stream that does not listen.
                self.unstored.clear();
            }
            let (name, question) = (&self.name, &self.info);
            let text = format!(
                "no stream takes {subject}, and these credentials may not ask about the stream {name}; permit {question}"
            );
            let may_be_missing = self.role == StreamRole::OfRoutes && !self.has_stored.load(Ordering::Relaxed);
            let is_wrong = self.count > self.note_unstored(&subject) || may_be_missing;
            let wrong = |text| Refusal::wrong(RefusalReason::Unroutable, text);
            let refusal = if is_wrong { wrong(text) } else { Refusal::unable(text) };
            into.push((sequence, Verdict::Refused(refusal)));
        }
    }

    /// Notes that a message of this subject was not stored; returns the number of those stored before the first such one.
    fn note_unstored(&mut self, subject: &Arc<str>) -> u64 {
        if self.unstored.len() >= REMEMBERED {
            self.unstored.clear();
        }
        *self.unstored.entry(subject.clone()).or_insert(self.count)
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

    /// Judges what is unanswered where the stream may not be looked at. Returns why it takes nothing, as far as is known.
    pub(super) fn judge_without_look(
        &mut self,
        now: Instant,
        into: &mut Vec<(Sequence, Verdict)>,
    ) -> Option<Refusal> {
        self.is_suspected &= self.may_ask;
        if self.may_ask || !self.is_in_doubt(now) {
            return None;
        }
        let overdue = self.overdue(now).find(|waiting| !self.is_unstored(waiting));
        if let Some(overdue) = overdue {
            return Some(Refusal::unable(unanswered(&overdue.subject, self.gap())));
        }
        self.judge_unanswered(now, None, into);
        None
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
        let name = self.name.clone();
        self.judge_unheard(into, |subject| {
            if stream.takes(subject) { unheard(subject, &name) } else { not_taken(subject, &name, &stream) }
        });
        self.judge_answered_elsewhere(&stream, into);
        self.judge_unanswered(now, Some(&stream), into);
        Ok(())
    }

    /// Refuses what only another stream takes. What the stream takes, too, it will answer.
    fn judge_answered_elsewhere(&mut self, stream: &StreamLimits, into: &mut Vec<(Sequence, Verdict)>) {
        let answered = self.outstanding.extract_if(.., |_, waiting| {
            waiting.other.take_if(|_| stream.takes(&waiting.subject));
            waiting.other.is_some()
        });
        let wrong =
            |(_, waiting): (u64, Unacknowledged)| waiting.other.map(|text| (waiting.sequence, elsewhere(text)));
        into.extend(answered.filter_map(wrong));
    }

    /// Judges what should be answered by now, by what is known of the stream, which takes messages. Only what is missing for the
    /// first time makes everything wait: behind a subject that was not stored before, the others pass.
    fn judge_unanswered(
        &mut self,
        now: Instant,
        stream: Option<&StreamLimits>,
        into: &mut Vec<(Sequence, Verdict)>,
    ) {
        let (is_all, gap) = (self.is_overdue(now) || self.is_gap_over(now), self.gap());
        let Self { outstanding, unstored, .. } = self;
        let judged = outstanding
            .extract_if(.., |_, waiting| is_all || (waiting.is_overdue(now) && waiting.is_unstored(unstored)));
        let judged: Vec<Unacknowledged> = judged.map(|(_, waiting)| waiting).collect();
        let mut subjects = Vec::new();
        for waiting in judged {
            let subject = waiting.subject.clone();
            let text = unanswered(&subject, gap);
            let is_new = self.role == StreamRole::Main && !self.is_unstored(&waiting);
            let verdict = match stream {
                Some(stream) if !stream.takes(&subject) => {
                    Verdict::Refused(not_taken(&subject, &self.name, stream))
                }
                Some(_) if is_new => Verdict::RetryLater(text),
                _ => Verdict::Unanswered(Refusal::unable(text)),
            };
            into.push((waiting.sequence, waiting.other.map_or(verdict, elsewhere)));
            subjects.push(subject);
        }
        for subject in subjects {
            self.note_unstored(&subject);
        }
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

    /// Hands everything back that is unanswered, because the stream takes nothing.
    pub(super) fn refuse(&mut self, refusal: &Refusal, into: &mut Vec<(Sequence, Verdict)>) {
        self.judge_unheard(into, |_| refusal.clone());
        let is_unable = refusal.kind == Refused::AddressUnable;
        let verdict = if is_unable { Verdict::Unanswered } else { Verdict::Refused };
        let unanswered = std::mem::take(&mut self.outstanding).into_values();
        into.extend(unanswered.map(|waiting| (waiting.sequence, verdict(refusal.clone()))));
    }

    fn is_unstored(&self, waiting: &Unacknowledged) -> bool {
        waiting.is_unstored(&self.unstored)
    }

    /// Whether a message that was sent before this number is still unanswered, although its subject was stored before.
    fn misses_below(&self, number: u64) -> bool {
        self.outstanding.range(..number).any(|(_, waiting)| !self.is_unstored(waiting))
    }

    fn gap(&self) -> Option<Gap> {
        self.gap.filter(|gap| self.misses_below(gap.below))
    }

    fn is_gap_over(&self, now: Instant) -> bool {
        let is_over = |gap: Gap| now.duration_since(gap.heard) >= QUIET || now.duration_since(gap.seen) >= COLLECT;
        self.gap().is_some_and(is_over)
    }

    fn overdue(&self, now: Instant) -> impl Iterator<Item = &Unacknowledged> {
        self.outstanding.values().take_while(move |waiting| waiting.is_overdue(now))
    }

    /// Whether something waits for too long whose subject was stored before.
    fn is_overdue(&self, now: Instant) -> bool {
        self.overdue(now).any(|waiting| !self.is_unstored(waiting))
    }

    /// Whether something is unanswered that should be answered by now.
    fn is_in_doubt(&self, now: Instant) -> bool {
        self.overdue(now).next().is_some() || self.is_gap_over(now)
    }
}

impl Unacknowledged {
    /// Whether no message of its subject was stored since an earlier one was not, or another stream has answered.
    fn is_unstored(&self, unstored: &HashMap<Arc<str>, u64>) -> bool {
        self.other.is_some() || unstored.contains_key(&self.subject)
    }

    fn is_overdue(&self, now: Instant) -> bool {
        now.duration_since(self.sent) >= ACK_TIMEOUT
    }
}

/// The problem, for people.
fn unanswered(subject: &str, gap: Option<Gap>) -> String {
    match gap {
        Some(_) => format!("no acknowledgement of {subject}, though later messages were stored"),
        None => format!("no acknowledgement of {subject} within {} s", ACK_TIMEOUT.as_secs()),
    }
}

fn elsewhere(text: String) -> Verdict {
    Verdict::Refused(Refusal::wrong(RefusalReason::NoDestination, text))
}

fn not_taken(subject: &str, name: &str, stream: &StreamLimits) -> Refusal {
    let takes = stream.subjects.join(", ");
    let text = format!("the stream {name} does not take {subject}; it takes {takes}");
    Refusal::wrong(RefusalReason::Unroutable, text)
}

fn unheard(subject: &str, stream: &str) -> Refusal {
    Refusal::unable(format!("no stream takes {subject}; the stream {stream} is looked at"))
}

#[cfg(test)]
mod tests {
    use super::super::stream::StreamLimits;
    use super::*;
    use crate::settings::testing;

    fn progress(toml: &str, name: &str) -> StreamProgress {
        let (settings, problems) = testing::read(&["broker", "nats"], toml, Settings::read);
        assert!(problems.errors.is_empty(), "{problems:?}");
        StreamProgress::new(name, &settings, true, Arc::default())
    }

    /// The progress at the stream `S` after messages of these subjects, with sequences from 10 on.
    fn sent(subjects: &[&str]) -> StreamProgress {
        let mut progress = progress("stream = \"S\"", "S");
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
            Verdict::Refused(refusal) | Verdict::Unanswered(refusal) => (sequence, refusal.kind),
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
    fn refuses_what_only_another_stream_takes() {
        let mut progress = sent(&["a.b", "b"]);
        progress.answered_elsewhere(0, "T".to_owned());
        progress.answered_elsewhere(1, "T".to_owned());
        let now = Instant::now();
        assert!(progress.begins_look(now), "at once");
        let mut verdicts = Vec::new();
        progress.found(stands("a.>"), now, &mut verdicts).unwrap();
        assert_eq!(verdicts, [(11, elsewhere("T".to_owned()))], "the other is to be answered by its own");
        assert_eq!(stored(&mut progress, 0).len(), 1);
        assert!(progress.is_idle());
    }

    #[test]
    fn the_answer_of_another_stream_makes_no_gap_and_no_refusal_while_its_own_is_silent() {
        let mut progress = sent(&["a", "a"]);
        progress.answered_elsewhere(0, "T".to_owned());
        stored(&mut progress, 1);
        assert!(progress.is_clear());
        let mut verdicts = Vec::new();
        assert!(progress.begins_look(Instant::now()));
        assert!(progress.found(leaderless(), Instant::now() + ACK_TIMEOUT, &mut verdicts).is_ok(), "an election");
        progress.refuse(&Refusal::unable("no leader"), &mut verdicts);
        assert_eq!(refusals(verdicts), [(10, Refused::AddressUnable)]);
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
        let unable = Refused::AddressUnable;
        assert_eq!(refusals(verdicts), [(10, unable), (11, unable)], "the stream may have no leader");
        let now = Instant::now() + ACK_TIMEOUT;
        assert!(!progress.begins_look(now));
        let nothing = Some(Refusal::unable("no acknowledgement of c within 5 s"));
        assert_eq!(progress.judge_without_look(now, &mut Vec::new()), nothing);
    }

    #[test]
    fn blames_a_subject_without_a_look_only_where_others_were_stored_since() {
        let mut progress = sent(&["x", "a", "x", "a", "x"]);
        progress.may_ask = false;
        let mut unheard = |stored_before: Option<u64>, number| {
            let mut verdicts = Vec::new();
            if let Some(number) = stored_before {
                assert_eq!(stored(&mut progress, number).len(), 1);
            }
            progress.nobody_listens(number, &mut verdicts);
            refusals(verdicts).remove(0).1
        };
        assert_eq!(unheard(None, 0), Refused::AddressUnable);
        assert_eq!(unheard(Some(1), 2), Refused::AddressWrong(RefusalReason::Unroutable));
        assert_eq!(unheard(None, 3), Refused::AddressUnable, "not even what was stored last has a listener");
        assert_eq!(unheard(None, 4), Refused::AddressUnable, "it is the stream");
    }

    #[test]
    fn the_stream_of_a_route_is_missing_only_where_it_never_stored_anything() {
        let mut progress = progress("", "S");
        progress.may_ask = false;
        let unheard = |progress: &mut StreamProgress, subject: &str| {
            progress.sent(10, &Arc::from(subject));
            let mut verdicts = Vec::new();
            progress.nobody_listens(progress.next - 1, &mut verdicts);
            refusals(verdicts).remove(0).1
        };
        assert_eq!(unheard(&mut progress, "a"), Refused::AddressWrong(RefusalReason::Unroutable));
        progress.sent(10, &Arc::from("a"));
        assert_eq!(stored(&mut progress, 1).len(), 1);
        assert_eq!(unheard(&mut progress, "a"), Refused::AddressUnable);
        assert_eq!(unheard(&mut progress, "b"), Refused::AddressUnable);
        let has_stored = progress.has_stored.clone();
        let mut next = StreamProgress { may_ask: false, has_stored, ..self::progress("", "S") };
        assert_eq!(unheard(&mut next, "a"), Refused::AddressUnable, "in the next session");
    }

    #[test]
    fn a_gap_parks_what_is_missing_where_the_stream_may_not_be_looked_at() {
        let mut progress = sent(&["x", "a"]);
        progress.may_ask = false;
        stored(&mut progress, 1);
        let mut verdicts = Vec::new();
        assert_eq!(progress.judge_without_look(Instant::now() + QUIET, &mut verdicts), None);
        assert_eq!(refusals(verdicts), [(10, Refused::AddressUnable)]);
    }

    #[test]
    fn a_subject_that_only_others_hear_is_wrong_and_holds_nothing_up() {
        let mut progress = sent(&["x", "a", "a"]);
        assert_eq!(stored(&mut progress, 1).len(), 1);
        let mut now = Instant::now() + QUIET;
        assert!(progress.begins_look(now));
        let mut verdicts = Vec::new();
        progress.found(stands("a"), now, &mut verdicts).unwrap();
        let text = "the stream S does not take x; it takes a";
        let wrong = (10, Verdict::Refused(Refusal::wrong(RefusalReason::Unroutable, text)));
        let again =
            (12, Verdict::RetryLater("no acknowledgement of a, though later messages were stored".to_owned()));
        assert_eq!(verdicts, [wrong.clone(), again]);
        // Its next try makes no gap; a look judges it later, and it alone.
        for (sequence, subject) in [(10, "x"), (12, "a"), (13, "a")] {
            progress.sent(sequence, &Arc::from(subject));
        }
        assert_eq!(stored(&mut progress, 4).len(), 1);
        now += QUIET + PAUSE;
        assert!(progress.is_clear() && !progress.begins_look(now));
        now += ACK_TIMEOUT;
        progress.outstanding.values_mut().next_back().unwrap().sent = now;
        assert!(progress.begins_look(now) && progress.is_clear());
        let mut verdicts = Vec::new();
        progress.found(stands("a"), now, &mut verdicts).unwrap();
        assert_eq!(verdicts, [wrong]);
    }

    #[test]
    fn a_subject_that_is_missing_again_or_at_the_stream_of_a_route_waits_alone() {
        let mut progress = sent(&["x", "a"]);
        stored(&mut progress, 1);
        let mut now = Instant::now() + QUIET;
        assert_eq!(found(&mut progress, stands(">"), now), Ok(vec![10]));
        progress.sent(10, &Arc::from("x"));
        now += ACK_TIMEOUT;
        let mut verdicts = Vec::new();
        assert!(progress.begins_look(now));
        progress.found(stands(">"), now, &mut verdicts).unwrap();
        assert_eq!(refusals(verdicts), [(10, Refused::AddressUnable)]);
        let mut other = self::progress("", "S");
        other.sent(10, &Arc::from("x"));
        let mut verdicts = Vec::new();
        assert!(other.begins_look(now));
        other.found(stands(">"), now, &mut verdicts).unwrap();
        assert_eq!(refusals(verdicts), [(10, Refused::AddressUnable)]);
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
