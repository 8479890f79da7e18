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
use super::outstanding::Unacknowledged;
use super::progress::StreamProgress;
use super::question::Answered;
use super::settings::{Settings, StreamPlan};
use super::stream::{self, StreamLook};
use super::topology::KnownStream;
use crate::brokers::{
    Cause, ErrorKind, Headers, Refusal, RefusalReason, Refused, Sent, Sequence, Session, SessionError, Verdict,
};
use crate::event::Message;

/// The interval of checks of clock and questions while something waits.
const LOOK: Duration = Duration::from_millis(100);

/// The main stream's place.
const MAIN: usize = 0;

/// One live connection to JetStream.
pub(super) struct NatsSession {
    connection: NatsConnection,
    headers: Headers,
    settings: Settings,
    /// The main stream first; those of routes that a reload removed come last.
    streams: Vec<StreamProgress>,
    /// The main stream existed when the session began.
    had_main: bool,
    look: Interval,
    lost: Option<SessionError>,
}

impl NatsSession {
    /// A session on this connection, with what was found of each stream.
    pub(super) fn new(
        connection: NatsConnection,
        headers: &Headers,
        settings: &Settings,
        known: &[KnownStream],
    ) -> Self {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let progress = |(plan, known): (&StreamPlan, &KnownStream)| {
            StreamProgress::new(&plan.name, settings, !matches!(known, KnownStream::Unasked))
        };
        Self {
            connection,
            headers: headers.clone(),
            settings: settings.clone(),
            streams: settings.streams.iter().zip(known).map(progress).collect(),
            had_main: matches!(known.first(), Some(KnownStream::Stands(_))),
            look,
            lost: None,
        }
    }

    /// The place of the stream of this name.
    fn place(&mut self, name: &str) -> usize {
        let known = self.streams.iter().position(|stream| *stream.name == *name);
        known.unwrap_or_else(|| {
            self.streams.push(StreamProgress::new(name, &self.settings, true));
            self.streams.len() - 1
        })
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
                Violation::Publish(subject) => self.may_not_publish(&subject, into),
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

    fn may_not_publish(&mut self, subject: &str, into: &mut Vec<(Sequence, Verdict)>) {
        let text = format!("these credentials may not publish to {subject}");
        let verdict = Verdict::Refused(Refusal::wrong(RefusalReason::NotAuthorised, text));
        for at in 0..self.streams.len() {
            let stream = &mut self.streams[at];
            if stream.info == subject {
                stream.may_ask = false;
                self.cannot_ask(at, into);
            } else if stream.creation.take_if(|(creation, _)| creation == subject).is_some() {
                stream.question.give_up();
            } else {
                let sequences = stream.outstanding.take_subject(subject);
                into.extend(sequences.into_iter().map(|sequence| (sequence, verdict.clone())));
            }
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
        let (is_look, token) = token.strip_prefix('q').map_or((false, token), |rest| (true, rest));
        let numbers = token.split_once('-').map(|(at, number)| (at.parse().ok(), number.parse().ok()));
        let Some((Some(at), Some(number))) = numbers else { return };
        if is_look {
            return self.take_look(at, number, stream::read(reply), into);
        }
        let Some(stream) = self.streams.get_mut(at) else { return };
        match acknowledgement::read(reply, &stream.name) {
            AckReply::Stored(position) => stream.stored(number, position, into),
            AckReply::Refused(refusal) => {
                let refused = stream.outstanding.take(number);
                into.extend(refused.map(|waiting| (waiting.sequence, Verdict::Refused(refusal))));
            }
            AckReply::NobodyListens => {
                let Some(Unacknowledged { sequence, subject, .. }) = stream.outstanding.take(number) else {
                    return;
                };
                into.push((sequence, Verdict::Refused(stream.nobody_listens(&subject))));
            }
            // Its own stream may have it as well, and has not answered yet.
            AckReply::OtherStream(other) => stream.outstanding.note_other(number, other),
            AckReply::Foreign => {}
        }
    }

    fn take_look(&mut self, at: usize, number: u64, look: StreamLook, into: &mut Vec<(Sequence, Verdict)>) {
        let now = Instant::now();
        let Some(stream) = self.streams.get_mut(at) else { return };
        if stream.doubt(now).is_none() {
            stream.question.relieve();
        }
        let is_missing = look == StreamLook::Missing;
        match stream.question.answer(number, look, now) {
            Answered::Settled => {}
            Answered::SendAgain => stream.send_again(into),
            Answered::Trouble(_) if is_missing && self.creates(at) => {}
            Answered::Trouble(trouble) => self.takes_nothing(at, &trouble, into),
        }
    }

    /// Creates the missing stream of a route, where that is ours to do; the answer is that of a look.
    fn creates(&mut self, at: usize) -> bool {
        let stream = &mut self.streams[at];
        let Some((subject, content)) = &stream.creation else { return false };
        let token = format!("q{at}-{}", stream.question.next());
        let is_asked = matches!(self.connection.publish(subject, &token, None, content.clone()), Queued::Yes);
        if is_asked {
            tracing::info!(stream = &*stream.name, "creating the stream, which does not exist any more");
            stream.question.ask(Instant::now());
        }
        is_asked
    }

    /// A stream takes nothing: without the main one the session is of no use, what goes to another one waits.
    fn takes_nothing(&mut self, at: usize, why: &Refusal, into: &mut Vec<(Sequence, Verdict)>) {
        if at == MAIN {
            return self.look_elsewhere(why.text.clone());
        }
        self.streams[at].refuse(why, into);
        // The server itself may lead nowhere: then it does not know the main stream either.
        if self.had_main && why.kind == Refused::AddressUnable {
            self.streams[MAIN].question.look();
        }
    }

    fn look_at_clock(&mut self, into: &mut Vec<(Sequence, Verdict)>) {
        let now = Instant::now();
        for at in 0..self.streams.len() {
            let stream = &mut self.streams[at];
            if let Some(doubt) = stream.doubt(now) {
                stream.question.doubt(doubt);
            }
            if stream.question.is_unanswered(now) {
                let trouble = Refusal::unable(format!("no answer about the stream {}", stream.name));
                let trouble = stream.question.note(trouble, now);
                self.takes_nothing(at, &trouble, into);
            }
        }
    }

    /// Asks what is to be asked, if it is time.
    fn ask(&mut self, into: &mut Vec<(Sequence, Verdict)>) {
        let now = Instant::now();
        for at in 0..self.streams.len() {
            let stream = &mut self.streams[at];
            let Some(number) = stream.question.due(now) else { continue };
            if !stream.may_ask {
                self.cannot_ask(at, into);
                continue;
            }
            match self.connection.publish(&stream.info, format_args!("q{at}-{number}"), None, Bytes::new()) {
                Queued::Yes => stream.question.ask(now),
                // At the next look.
                Queued::Full => {}
                Queued::TooLarge | Queued::IllegalSubject | Queued::Ended => self.lose_connection(),
            }
        }
    }

    /// Nothing can be learnt of the stream: what is unanswered is sent again by another session, or waits.
    fn cannot_ask(&mut self, at: usize, into: &mut Vec<(Sequence, Verdict)>) {
        let stream = &mut self.streams[at];
        stream.question.give_up();
        if stream.question.is_in_doubt() {
            let why = Refusal::unable(stream.unanswered());
            self.takes_nothing(at, &why, into);
        }
    }

    fn is_idle(&self) -> bool {
        self.streams.iter().all(StreamProgress::is_idle)
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
        let block = HeaderText::new(&message.event, &self.headers, &message.key);
        let size = block.length + message.event.body.len();
        let most = self.connection.max_payload();
        let too_large = || {
            let text = format!("{size} bytes with headers, more than the server's max_payload of {most}");
            Sent::Refused(Refusal::event(RefusalReason::TooLarge, text))
        };
        if size > most {
            return too_large();
        }
        let at = self.place(&message.key);
        let number = self.streams[at].outstanding.next();
        let body = Bytes::copy_from_slice(&message.event.body);
        match self.connection.publish(&message.address, format_args!("{at}-{number}"), Some(block.map), body) {
            Queued::Yes => {
                let subject = Arc::clone(&message.address);
                let waiting = Unacknowledged { sequence, subject, sent: Instant::now(), other: None };
                self.streams[at].outstanding.push(waiting);
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

    fn takes_more(&self) -> bool {
        self.streams.iter().any(StreamProgress::is_clear)
    }

    fn takes(&self, message: &Message) -> bool {
        self.streams.iter().all(|stream| *stream.name != *message.key || stream.is_clear())
    }

    fn has_changed(&mut self) -> bool {
        self.streams.iter_mut().any(|stream| stream.question.has_recovered())
    }

    async fn verdicts(&mut self, into: &mut Vec<(Sequence, Verdict)>) -> Result<(), SessionError> {
        let before = into.len();
        loop {
            // Events first: an answer that came before the end is then among the replies.
            self.take_events(into);
            self.take_replies(into);
            if self.lost.is_none() {
                self.ask(into);
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
                _ = self.look.tick(), if busy => self.look_at_clock(into),
            }
        }
    }

    async fn close(mut self: Box<Self>, patience: Duration, into: &mut Vec<(Sequence, Verdict)>) {
        let collect = async {
            let events = Arc::clone(self.connection.events());
            while self.streams.iter().any(|stream| !stream.outstanding.is_empty()) {
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
