//! One stream as a session sees it: what is unanswered there, and what is known or asked about it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::outstanding::Outstanding;
use super::question::{Doubt, Question};
use super::settings::{Settings, StreamPlan};
use super::stream;
use crate::brokers::{Position, Refusal, RefusalReason, Sequence, Topology, Verdict};

/// The time that a message may be unanswered before the stream is checked; the library's default for acknowledgements.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// A stream acknowledges in the order in which it takes: once it acknowledged nothing for this long, what is missing
/// below its last word has not arrived.
const QUIET: Duration = Duration::from_millis(200);

/// The wait for a missing answer while later ones arrive.
const COLLECT: Duration = Duration::from_secs(1);

/// A message is unanswered below one that the stream has stored since.
#[derive(Clone, Copy, Debug)]
struct Gap {
    /// The number of the stored one.
    below: u64,
    seen: Instant,
    /// The last answer since.
    heard: Instant,
}

/// The progress of a session at one stream.
#[derive(Debug)]
pub(super) struct StreamProgress {
    pub(super) name: Arc<str>,
    /// The subject of questions about it.
    pub(super) info: String,
    pub(super) may_ask: bool,
    /// Subject and content of the request that creates it, where only routes name it and it is ours to create.
    pub(super) creation: Option<(String, Bytes)>,
    pub(super) outstanding: Outstanding,
    pub(super) question: Question,
    gap: Option<Gap>,
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
            outstanding: Outstanding::default(),
            question: Question::new(name),
            gap: None,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.outstanding.is_empty() && !self.question.is_open()
    }

    /// Nothing is sent behind a message that may have to be sent again.
    pub(super) fn is_clear(&self) -> bool {
        self.gap.is_none() && !self.question.is_in_doubt()
    }

    /// The stream has the message of this number.
    pub(super) fn stored(&mut self, number: u64, position: Position, into: &mut Vec<(Sequence, Verdict)>) {
        let Some(waiting) = self.outstanding.take(number) else { return };
        into.push((waiting.sequence, Verdict::StoredAt(position)));
        if let Some(gap) = &mut self.gap {
            gap.heard = Instant::now();
            gap.below = gap.below.max(number);
        } else if !position.repeat && self.outstanding.has_gap_below(number) {
            // A repeat is answered at once, before those that the stream has yet to store.
            let now = Instant::now();
            self.gap = Some(Gap { below: number, seen: now, heard: now });
        }
        if self.gap.is_some_and(|gap| !self.outstanding.has_gap_below(gap.below)) {
            self.gap = None;
        }
    }

    /// Hands back everything that is unanswered, oldest first; what another stream has stored is sent to a wrong place.
    pub(super) fn send_again(&mut self, into: &mut Vec<(Sequence, Verdict)>) {
        self.hand_back(into, &Verdict::RetryLater(self.unanswered()));
    }

    /// Refuses everything that is unanswered.
    pub(super) fn refuse(&mut self, refusal: &Refusal, into: &mut Vec<(Sequence, Verdict)>) {
        self.question.relieve();
        self.hand_back(into, &Verdict::Refused(refusal.clone()));
    }

    fn hand_back(&mut self, into: &mut Vec<(Sequence, Verdict)>, verdict: &Verdict) {
        let name = self.name.clone();
        into.extend(self.outstanding.take_all().map(|waiting| {
            let verdict = match &waiting.other {
                Some(other) => {
                    let text = format!("the stream {other} takes {}, not the stream {name}", waiting.subject);
                    Verdict::Refused(Refusal::wrong(RefusalReason::NoDestination, text))
                }
                None => verdict.clone(),
            };
            (waiting.sequence, verdict)
        }));
        self.gap = None;
    }

    /// The problem, for people.
    pub(super) fn unanswered(&self) -> String {
        let subject = self.outstanding.oldest().map_or("a message", |oldest| &*oldest.subject);
        if self.gap.is_some() {
            format!("no acknowledgement of {subject}, though later messages were stored")
        } else {
            format!("no acknowledgement of {subject} within {} s", ACK_TIMEOUT.as_secs())
        }
    }

    /// Whether something is unanswered that should be answered by now.
    pub(super) fn doubt(&self, now: Instant) -> Option<Doubt> {
        let oldest = self.outstanding.oldest()?;
        if now.duration_since(oldest.sent) >= ACK_TIMEOUT {
            return Some(Doubt::Overdue);
        }
        let is_over = |gap: Gap| now.duration_since(gap.heard) >= QUIET || now.duration_since(gap.seen) >= COLLECT;
        self.gap.is_some_and(is_over).then_some(Doubt::Gap)
    }

    /// Judges that a subject has no listener: where the stream may be checked, it is.
    pub(super) fn nobody_listens(&mut self, subject: &str) -> Refusal {
        if self.may_ask {
            return self.question.nobody_listens(subject, Instant::now());
        }
        let text = format!(
            "no stream takes {subject}, and these credentials may not ask about the stream {}; permit {}",
            self.name, self.info
        );
        Refusal::wrong(RefusalReason::Unroutable, text)
    }
}

#[cfg(test)]
mod tests {
    use super::super::outstanding::Unacknowledged;
    use super::*;
    use crate::settings::testing;

    fn progress(toml: &str, name: &str) -> StreamProgress {
        let (settings, problems) = testing::read(&["broker", "nats"], toml, Settings::read);
        assert!(problems.errors.is_empty(), "{problems:?}");
        StreamProgress::new(name, &settings, true)
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
    fn refuses_what_only_another_stream_has_stored() {
        let mut progress = progress("", "S");
        for sequence in [5, 6] {
            let waiting = Unacknowledged { sequence, subject: "a.b".into(), sent: Instant::now(), other: None };
            progress.outstanding.push(waiting);
        }
        progress.outstanding.note_other(0, "T".to_owned());
        let mut verdicts = Vec::new();
        progress.send_again(&mut verdicts);
        let text = "the stream T takes a.b, not the stream S";
        let wrong = Verdict::Refused(Refusal::wrong(RefusalReason::NoDestination, text));
        let again = Verdict::RetryLater("no acknowledgement of a.b within 5 s".to_owned());
        assert_eq!(verdicts, [(5, wrong), (6, again)]);
    }
}
