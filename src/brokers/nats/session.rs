//! One session: messages out, verdicts in, and the signs that it is lost.
//!
//! Silence blames no message: the stream is looked at, and what is unanswered is sent again on this session, or the
//! session is lost and the next one starts at another server.
//!
//! Length: what leads to the one answer, stored, refused, later or lost, is only understood side by side.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use async_nats::{Message as Reply, PublishErrorKind};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::FuturesUnordered;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

use super::acknowledgement::{self, AckReply};
use super::block::HeaderText;
use super::connection::{NatsConnection, Signal};
use super::progress::StreamProgress;
use super::settings::{Settings, StreamPlan};
use super::stream::{self, StreamLook};
use crate::brokers::{
    Cause, ErrorKind, Headers, Refusal, RefusalReason, Refused, Sent, Sequence, Session, SessionError, Terms,
    Verdict,
};
use crate::event::Message;
use crate::process::failpoint;

/// The last words of a server to a connection that exceeded the limit of its account or user: it tells only its own limit.
const TOO_LARGE: &str = "Maximum Payload Violation";

/// A raised `max_payload` is told to new connections only: what exceeds the limit of one that is older is not refused
/// before another one has been asked.
const LIMIT_HOLDS: Duration = Duration::from_mins(1);

/// The interval of checks of the clock while something waits.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// The longest wait for the answer to a look at a stream.
const ANSWER: Duration = Duration::from_secs(2);

/// The main stream's place.
const MAIN: usize = 0;

/// One live connection to JetStream.
pub(super) struct NatsSession {
    connection: NatsConnection,
    headers: Headers,
    only_source: Option<Arc<str>>,
    settings: Settings,
    /// The main stream first; those of routes that a reload removed come last.
    streams: Vec<StreamProgress>,
    /// The main stream existed when the session began.
    had_main: bool,
    /// The looks under way, each with the place of its stream.
    looks: FuturesUnordered<BoxFuture<'static, (usize, StreamLook)>>,
    check: Interval,
    /// The time until which the limit of the server is taken for what it said at the start.
    limit_holds: Instant,
    lost: Option<SessionError>,
}

impl NatsSession {
    /// A session on this connection, with what was found of each stream, and whether it stored anything in an earlier session.
    pub(super) fn new(
        connection: NatsConnection,
        terms: &Terms,
        settings: &Settings,
        known: &[StreamLook],
        stored: &[Arc<AtomicBool>],
    ) -> Self {
        let mut check = interval(CHECK_INTERVAL);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let progress = |((plan, look), has_stored): ((&StreamPlan, &StreamLook), &Arc<AtomicBool>)| {
            StreamProgress::new(&plan.name, settings, *look != StreamLook::Forbidden, has_stored.clone())
        };
        Self {
            connection,
            headers: terms.headers.clone(),
            only_source: terms.only_source.clone(),
            settings: settings.clone(),
            streams: settings.streams.iter().zip(known).zip(stored).map(progress).collect(),
            had_main: known.first().is_some_and(|look| look.stream().is_some()),
            looks: FuturesUnordered::new(),
            check,
            limit_holds: Instant::now() + failpoint::every("nats.limit", LIMIT_HOLDS),
            lost: None,
        }
    }

    /// The place of the stream of this name.
    fn place(&mut self, name: &str) -> usize {
        let known = self.streams.iter().position(|stream| *stream.name == *name);
        known.unwrap_or_else(|| {
            self.streams.push(StreamProgress::new(name, &self.settings, true, Arc::default()));
            self.streams.len() - 1
        })
    }

    /// The first reason stands: what follows from it is not news.
    fn lose(&mut self, error: SessionError) -> SessionError {
        let text = format!("{}: {}", self.connection.at, error.text);
        self.lost.get_or_insert(SessionError { text, ..error }).clone()
    }

    fn lose_connection(&mut self) -> SessionError {
        let words = &self.connection.last_words;
        let text = format!("the connection ended{words}");
        let is_too_large = words.contains(TOO_LARGE);
        self.lose(if is_too_large {
            SessionError::suspect(Refusal::event(RefusalReason::TooLarge, text))
        } else {
            SessionError::lost(text)
        })
    }

    /// A message is larger than the server takes, as it said when the session began.
    fn exceeds_limit(&mut self, size: usize, most: usize) -> Sent {
        let text = format!("{size} bytes with headers, more than the server's max_payload of {most}");
        if Instant::now() < self.limit_holds {
            return Sent::Refused(Refusal::event(RefusalReason::TooLarge, text));
        }
        Sent::Lost(self.lose(SessionError::lost(format!("{text}, which may have been raised; connecting again"))))
    }

    fn take(&mut self, signal: Signal, into: &mut Vec<(Sequence, Verdict)>) {
        match signal {
            Signal::Reply(reply) => self.take_reply(&reply, into),
            Signal::MayNotPublish(subject) => {
                for stream in &mut self.streams {
                    stream.forbidden(&subject, into);
                }
            }
            Signal::MayNotSubscribe(inbox) => {
                let text = format!("these credentials may no longer subscribe to {inbox}");
                self.lose(SessionError { text, kind: ErrorKind::Authentication, suspect: Cause::Network });
            }
            Signal::Ended => {
                self.lose_connection();
            }
        }
    }

    fn take_reply(&mut self, reply: &Reply, into: &mut Vec<(Sequence, Verdict)>) {
        let Some((at, number)) = self.connection.token(reply).and_then(|token| token.split_once('-')) else {
            return;
        };
        let (Ok(at), Ok(number)) = (at.parse::<usize>(), number.parse()) else { return };
        let Some(stream) = self.streams.get_mut(at) else { return };
        match acknowledgement::read(reply, &stream.name) {
            AckReply::Stored(position) => stream.stored(number, position, into),
            AckReply::Refused(refusal) => stream.refused(number, refusal, into),
            AckReply::NobodyListens => stream.nobody_listens(number, into),
            AckReply::OtherStream(text) => stream.answered_elsewhere(number, text),
            AckReply::Foreign => {}
        }
    }

    /// Begins the looks for which it is time.
    fn look(&mut self, into: &mut Vec<(Sequence, Verdict)>) {
        let now = Instant::now();
        for at in 0..self.streams.len() {
            let stream = &mut self.streams[at];
            if stream.begins_look(now) {
                let asked = self.connection.question(&stream.info, Bytes::new(), ANSWER);
                let creation = stream.creation.clone().map(|(subject, content)| {
                    (stream.name.clone(), self.connection.question(&subject, content, ANSWER))
                });
                let look = async move {
                    match (stream::read(asked.await.as_ref()), creation) {
                        (StreamLook::Missing, Some((stream, created))) => {
                            tracing::info!(stream = &*stream, "creating the stream, which does not exist any more");
                            (at, stream::read(created.await.as_ref()))
                        }
                        (look, _) => (at, look),
                    }
                };
                self.looks.push(look.boxed());
            } else if let Some(why) = stream.judge_without_look(now, into) {
                self.takes_nothing(at, &why, into);
            }
        }
    }

    /// A stream takes nothing: without the main one the session is of no use, what goes to another one waits.
    fn takes_nothing(&mut self, at: usize, why: &Refusal, into: &mut Vec<(Sequence, Verdict)>) {
        if at == MAIN {
            self.lose(SessionError::lost(why.text.clone()));
            return;
        }
        self.streams[at].refuse(why, into);
        // The server itself may lead nowhere: then it does not know the main stream either.
        self.streams[MAIN].is_suspected |= self.had_main && why.kind == Refused::AddressUnable;
    }
}

#[async_trait]
impl Session for NatsSession {
    fn send(&mut self, sequence: Sequence, message: &Message) -> Sent {
        if let Some(lost) = &self.lost {
            return Sent::Lost(lost.clone());
        }
        let block = HeaderText::new(&message.event, &self.headers, &message.key, self.only_source.as_deref());
        let size = block.length + message.event.body.len();
        let most = self.connection.max_payload();
        if size > most {
            return self.exceeds_limit(size, most);
        }
        let at = self.place(&message.key);
        let stream = &mut self.streams[at];
        let token = format_args!("{at}-{}", stream.next);
        let body = Bytes::copy_from_slice(&message.event.body);
        match self.connection.publish(&message.address, token, block.map, body) {
            Some(Ok(())) => {
                stream.sent(sequence, &message.address);
                Sent::Taken
            }
            None => Sent::RetryLater("the connection takes no more at the moment".to_owned()),
            Some(Err(PublishErrorKind::MaxPayloadExceeded)) => self.exceeds_limit(size, most),
            Some(Err(PublishErrorKind::InvalidSubject)) => {
                let text = format!("{:?} is not a legal subject", message.address);
                Sent::Refused(Refusal::event(RefusalReason::Unroutable, text))
            }
            Some(Err(PublishErrorKind::Send)) => Sent::Lost(self.lose_connection()),
        }
    }

    /// Nothing on a connection that has ended: `verdicts` tells why, with the server's last words.
    fn takes_more(&self) -> bool {
        self.connection.is_open() && self.streams.iter().any(StreamProgress::is_clear)
    }

    fn takes(&self, message: &Message) -> bool {
        let stream = self.streams.iter().find(|stream| *stream.name == *message.key);
        stream.is_none_or(|stream| stream.is_clear() && !stream.is_unheard(&message.address))
    }

    fn has_changed(&mut self) -> bool {
        self.streams.iter_mut().any(|stream| std::mem::take(&mut stream.has_recovered))
    }

    async fn verdicts(&mut self, into: &mut Vec<(Sequence, Verdict)>) -> Result<(), SessionError> {
        let before = into.len();
        loop {
            while let Some(signal) = self.connection.next_now() {
                let is_end = matches!(signal, Signal::Ended);
                self.take(signal, into);
                if is_end {
                    break;
                }
            }
            if self.lost.is_none() {
                self.look(into);
            }
            if into.len() > before {
                return Ok(());
            }
            if let Some(lost) = &self.lost {
                return Err(lost.clone());
            }
            let is_busy = !self.streams.iter().all(StreamProgress::is_idle);
            tokio::select! {
                signal = self.connection.next() => self.take(signal, into),
                Some((at, look)) = self.looks.next() => {
                    if let Err(why) = self.streams[at].found(look, Instant::now(), into) {
                        self.takes_nothing(at, &why, into);
                    }
                }
                _ = self.check.tick(), if is_busy => {}
            }
        }
    }

    async fn close(mut self: Box<Self>, patience: Duration, into: &mut Vec<(Sequence, Verdict)>) {
        let collect = async {
            while self.streams.iter().any(StreamProgress::has_outstanding) {
                match self.connection.next().await {
                    Signal::Ended => break,
                    signal => self.take(signal, into),
                }
            }
        };
        // What is not answered by then is unsettled: the caller knows.
        let _ = timeout(patience, collect).await;
        for stream in &mut self.streams {
            stream.leave_unheard(into);
        }
        // Dropping the client ends its task and its socket: the library has nothing that waits for more.
    }
}
