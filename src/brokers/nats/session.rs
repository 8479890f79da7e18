//! One session: messages out, verdicts in, and the signs that it is lost.
//!
//! Silence blames no message: the stream is looked at, and what is unanswered is sent again on this session, or the
//! session is lost and the next one starts at another server.
//!
//! Length: what leads to the one answer, stored, refused, later or lost, is only understood side by side.

use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use async_nats::Message as Reply;
use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

use super::acknowledgement::{self, AckReply};
use super::block::HeaderText;
use super::connection::{NatsConnection, Queued};
use super::events::Violation;
use super::outstanding::{Outstanding, Unacknowledged};
use super::question::{Answered, Doubt, Question};
use super::settings::Settings;
use super::stream::{self, StreamLook};
use super::topology::KnownStream;
use crate::brokers::{
    Cause, ErrorKind, Headers, Position, Refusal, RefusalReason, Sent, Sequence, Session, SessionError, Verdict,
};
use crate::event::Message;

/// The time that a message may be unanswered before the stream is checked; the library's default for acknowledgements.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// A stream acknowledges in the order in which it takes: once it acknowledged nothing for this long, what is missing
/// below its last word has not arrived.
const QUIET: Duration = Duration::from_millis(200);

/// The wait for a missing answer while later ones arrive.
const COLLECT: Duration = Duration::from_secs(1);

/// The interval of checks of clock and questions while something waits.
const LOOK: Duration = Duration::from_millis(100);

/// A message is unanswered below one that the stream has stored since.
#[derive(Clone, Copy, Debug)]
struct Gap {
    /// The number of the stored one.
    below: u64,
    seen: Instant,
    /// The last answer since.
    heard: Instant,
}

/// One live connection to JetStream.
pub(super) struct NatsSession {
    connection: NatsConnection,
    headers: Headers,
    stream: String,
    /// The subject of questions about it.
    info: String,
    may_ask: bool,
    outstanding: Outstanding,
    question: Question,
    gap: Option<Gap>,
    look: Interval,
    lost: Option<SessionError>,
}

impl NatsSession {
    /// A session on this connection, with what was found of the stream.
    pub(super) fn new(
        connection: NatsConnection,
        headers: &Headers,
        settings: &Settings,
        known: &KnownStream,
    ) -> Self {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            connection,
            headers: headers.clone(),
            stream: settings.stream.clone(),
            info: stream::info_subject(&settings.api, &settings.stream),
            may_ask: !matches!(known, KnownStream::Unasked),
            outstanding: Outstanding::default(),
            question: Question::default(),
            gap: None,
            look,
            lost: None,
        }
    }

    fn is_idle(&self) -> bool {
        self.outstanding.is_empty() && !self.question.is_open()
    }

    /// The first reason stands: what follows from it is not news.
    fn lose(&mut self, error: SessionError) {
        if self.lost.is_none() {
            let text = format!("{}: {}", self.connection.at(), error.text);
            self.lost = Some(SessionError { text, ..error });
        }
    }

    /// This server leads nowhere: no message is to blame, and another server is asked first.
    fn look_elsewhere(&mut self, why: impl Into<String>) {
        self.connection.leave();
        self.lose(SessionError::lost(why));
    }

    fn lose_connection(&mut self) {
        let words = self.connection.events().last_error();
        let text = words
            .map_or_else(|| "the connection ended".to_owned(), |words| format!("the connection ended: {words}"));
        self.look_elsewhere(text);
    }

    /// Events of the library: refused permissions, and the end.
    fn take_events(&mut self, into: &mut Vec<(Sequence, Verdict)>) {
        let events = Arc::clone(self.connection.events());
        while let Some(violation) = events.violation() {
            match violation {
                Violation::Publish(subject) if subject == self.info => {
                    self.may_ask = false;
                    self.cannot_ask();
                }
                Violation::Publish(subject) => {
                    let text = format!("these credentials may not publish to {subject}");
                    let verdict = Verdict::Refused(Refusal::wrong(RefusalReason::NotAuthorised, text));
                    let sequences = self.outstanding.take_subject(&subject);
                    into.extend(sequences.into_iter().map(|sequence| (sequence, verdict.clone())));
                }
                Violation::Subscribe(inbox) => {
                    let text = format!("these credentials may no longer subscribe to {inbox}");
                    let kind = ErrorKind::Authentication;
                    self.lose(SessionError { text, kind, suspect: Cause::Network });
                }
            }
        }
        if events.ended() {
            self.lose_connection();
        }
    }

    /// All answers that are there.
    fn take_replies(&mut self, into: &mut Vec<(Sequence, Verdict)>) {
        while let Poll::Ready(reply) = self.connection.next_now() {
            match reply {
                Some(reply) => self.take_reply(&reply, into),
                None => return self.lose_connection(),
            }
        }
    }

    fn take_reply(&mut self, reply: &Reply, into: &mut Vec<(Sequence, Verdict)>) {
        let Some(token) = self.connection.token(reply) else { return };
        if let Some(number) = token.strip_prefix('q') {
            if let Ok(number) = number.parse() {
                self.take_look(number, stream::read(reply), into);
            }
            return;
        }
        let Ok(number) = token.parse() else { return };
        match acknowledgement::read(reply, &self.stream) {
            AckReply::Stored(position) => self.stored(number, position, into),
            AckReply::Refused(refusal) => {
                let refused = self.outstanding.take(number);
                into.extend(refused.map(|waiting| (waiting.sequence, Verdict::Refused(refusal))));
            }
            AckReply::NobodyListens => {
                let Some(Unacknowledged { sequence, subject, .. }) = self.outstanding.take(number) else { return };
                into.push((sequence, Verdict::Refused(self.nobody_listens(&subject))));
            }
            AckReply::Foreign => {}
        }
    }

    fn stored(&mut self, number: u64, position: Position, into: &mut Vec<(Sequence, Verdict)>) {
        let now = Instant::now();
        let Some(waiting) = self.outstanding.take(number) else { return };
        into.push((waiting.sequence, Verdict::StoredAt(position)));
        if let Some(gap) = &mut self.gap {
            gap.heard = now;
            gap.below = gap.below.max(number);
        } else if !position.repeat && self.outstanding.has_gap_below(number) {
            // A repeat is answered at once, before those that the stream has yet to store.
            self.gap = Some(Gap { below: number, seen: now, heard: now });
        }
        if self.gap.is_some_and(|gap| !self.outstanding.has_gap_below(gap.below)) {
            self.gap = None;
        }
    }

    fn take_look(&mut self, number: u64, look: StreamLook, into: &mut Vec<(Sequence, Verdict)>) {
        if self.doubt(Instant::now()).is_none() {
            self.question.relieve();
        }
        match self.question.answer(number, look, Instant::now()) {
            Answered::Settled => {}
            Answered::SendAgain => self.send_again(into),
            Answered::Elsewhere(why) => self.look_elsewhere(why),
        }
    }

    /// Hands back everything that is unanswered, oldest first.
    fn send_again(&mut self, into: &mut Vec<(Sequence, Verdict)>) {
        let text = self.unanswered();
        let sequences = self.outstanding.take_all();
        into.extend(sequences.into_iter().map(|sequence| (sequence, Verdict::RetryLater(text.clone()))));
        self.gap = None;
    }

    /// The problem, for people.
    fn unanswered(&self) -> String {
        let subject = self.outstanding.oldest().map_or("a message", |oldest| &*oldest.subject);
        if self.gap.is_some() {
            format!("no acknowledgement of {subject}, though later messages were stored")
        } else {
            format!("no acknowledgement of {subject} within {} s", ACK_TIMEOUT.as_secs())
        }
    }

    /// Whether something is unanswered that should be answered by now.
    fn doubt(&self, now: Instant) -> Option<Doubt> {
        let oldest = self.outstanding.oldest()?;
        if now.duration_since(oldest.sent) >= ACK_TIMEOUT {
            return Some(Doubt::Overdue);
        }
        let is_over = |gap: Gap| now.duration_since(gap.heard) >= QUIET || now.duration_since(gap.seen) >= COLLECT;
        self.gap.is_some_and(is_over).then_some(Doubt::Gap)
    }

    /// Judges that a subject has no listener: where the stream may be checked, it is.
    fn nobody_listens(&mut self, subject: &str) -> Refusal {
        if self.may_ask {
            return self.question.nobody_listens(subject, Instant::now());
        }
        let text = format!(
            "no stream takes {subject}, and these credentials may not ask about the stream {}; permit {}",
            self.stream, self.info
        );
        Refusal::wrong(RefusalReason::Unroutable, text)
    }

    fn look_at_clock(&mut self) {
        let now = Instant::now();
        if let Some(doubt) = self.doubt(now) {
            self.question.doubt(doubt);
        }
        if self.question.is_unanswered(now) {
            self.look_elsewhere(format!("no answer about the stream {}", self.stream));
        }
    }

    /// Asks what is to be asked, if it is time.
    fn ask(&mut self) {
        let now = Instant::now();
        let Some(number) = self.question.due(now) else { return };
        if !self.may_ask {
            return self.cannot_ask();
        }
        match self.connection.publish(&self.info, &format!("q{number}"), None, Bytes::new()) {
            Queued::Yes => self.question.ask(now),
            // At the next look.
            Queued::Full => {}
            Queued::TooLarge | Queued::IllegalSubject | Queued::Ended => self.lose_connection(),
        }
    }

    /// Nothing can be learnt of the stream: what is unanswered is sent again by another session.
    fn cannot_ask(&mut self) {
        self.question.give_up();
        if self.question.is_in_doubt() {
            self.look_elsewhere(self.unanswered());
        }
    }
}

#[async_trait]
impl Session for NatsSession {
    fn send(&mut self, sequence: Sequence, message: &Message) -> Sent {
        if !self.connection.is_open() {
            self.lose_connection();
        }
        if let Some(lost) = &self.lost {
            return Sent::Lost(lost.clone());
        }
        let block = HeaderText::new(&message.event, &self.headers, &self.stream);
        let size = block.length + message.event.body.len();
        let most = self.connection.max_payload();
        let too_large = || {
            let text = format!("{size} bytes with headers, more than the server's max_payload of {most}");
            Sent::Refused(Refusal::event(RefusalReason::TooLarge, text))
        };
        if size > most {
            return too_large();
        }
        let token = self.outstanding.next().to_string();
        let body = Bytes::copy_from_slice(&message.event.body);
        match self.connection.publish(&message.address, &token, Some(block.map), body) {
            Queued::Yes => {
                let subject = Arc::clone(&message.address);
                self.outstanding.push(Unacknowledged { sequence, subject, sent: Instant::now() });
                Sent::Taken
            }
            Queued::Full => Sent::RetryLater("the connection takes no more at the moment".to_owned()),
            Queued::TooLarge => too_large(),
            Queued::IllegalSubject => {
                let text = format!("{:?} is no legal subject", message.address);
                Sent::Refused(Refusal::event(RefusalReason::Unroutable, text))
            }
            Queued::Ended => {
                self.lose_connection();
                Sent::Lost(self.lost.clone().unwrap_or_else(|| SessionError::lost("the connection ended")))
            }
        }
    }

    /// Nothing is sent behind a message that may have to be sent again.
    fn takes_more(&self) -> bool {
        self.gap.is_none() && !self.question.is_in_doubt()
    }

    fn has_changed(&mut self) -> bool {
        self.question.has_recovered()
    }

    async fn verdicts(&mut self, into: &mut Vec<(Sequence, Verdict)>) -> Result<(), SessionError> {
        let before = into.len();
        loop {
            // Events first: an answer that came before the end is then among the replies.
            self.take_events(into);
            self.take_replies(into);
            if self.lost.is_none() {
                self.ask();
            }
            if into.len() > before {
                return Ok(());
            }
            if let Some(lost) = &self.lost {
                return Err(lost.clone());
            }
            let events = Arc::clone(self.connection.events());
            let busy = !self.is_idle();
            tokio::select! {
                reply = self.connection.next() => match reply {
                    Some(reply) => self.take_reply(&reply, into),
                    None => self.lose_connection(),
                },
                () = events.news.notified() => {}
                _ = self.look.tick(), if busy => self.look_at_clock(),
            }
        }
    }

    async fn close(mut self: Box<Self>, patience: Duration, into: &mut Vec<(Sequence, Verdict)>) {
        let collect = async {
            let events = Arc::clone(self.connection.events());
            while !self.outstanding.is_empty() {
                tokio::select! {
                    reply = self.connection.next() => match reply {
                        Some(reply) => self.take_reply(&reply, into),
                        None => break,
                    },
                    () = events.news.notified() => self.take_events(into),
                }
            }
        };
        // What is not answered by then is unsettled: the caller knows.
        let _ = timeout(patience, collect).await;
        self.take_events(into);
        // Dropping the client ends its task and its socket: the library has nothing that waits for more.
    }
}
