//! One client of the library is one TCP connection here, with one reply inbox; it never comes back by itself.

use std::fmt::{Display, Write as _};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_nats::client::traits::Publisher as _;
use async_nats::connection::State;
use async_nats::message::OutboundMessage;
use async_nats::{Client, HeaderMap, Message, PublishErrorKind, ServerInfo, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::task::unconstrained;
use tokio::time::{Instant, timeout_at};

use super::dial::ServerTurn;
use super::events::{Events, Violation};
use crate::brokers::{ConnectError, ErrorKind, Finding};

/// For one answer of JetStream while connecting.
const REQUEST: Duration = Duration::from_secs(3);

/// A question is put again after this: between two leaders it has no listener.
const AGAIN: Duration = Duration::from_millis(500);

/// The address given to the library so that its own reconnect fails immediately: port 1 of loopback refuses.
const NOWHERE: &str = "nats://127.0.0.1:1";

/// The length of the longest token, of a letter and two numbers.
const LONGEST_TOKEN: usize = 42;

/// One live connection.
pub(super) struct NatsConnection {
    client: Client,
    inbox: Subscriber,
    /// The prefix of every reply subject: the inbox and a dot.
    prefix: String,
    events: Arc<Events>,
    server: ServerInfo,
    at: String,
    /// Subjects that were refused while something else was asked.
    forbidden: Vec<String>,
    /// The reasons of the servers before it that refused certificates or credentials.
    refusals: Vec<String>,
    turn: ServerTurn,
    /// Its place in the list of servers.
    place: usize,
}

/// The outcome of publishing.
pub(super) enum Queued {
    /// The library will write it.
    Yes,
    /// Its queue is full.
    Full,
    /// It is larger than the server takes.
    TooLarge,
    /// It cannot be a subject.
    IllegalSubject,
    /// The connection has ended.
    Ended,
}

/// The reason why a question got no answer.
pub(super) enum Unanswered {
    /// These credentials may not ask it.
    Forbidden,
    /// Nothing came; the text says what may be the matter.
    Silence(ConnectError),
}

impl NatsConnection {
    /// The connection of a client that has just connected; `place` is that of its server in the list.
    pub(super) async fn new(
        client: Client,
        events: Arc<Events>,
        at: String,
        (turn, place): (ServerTurn, usize),
    ) -> Result<Self, ConnectError> {
        let ended = || ConnectError::new(ErrorKind::Connect, format!("{at}: the connection ended at once"));
        client.set_server_pool(NOWHERE).await.map_err(|_| ended())?;
        let inbox = client.new_inbox();
        let subscriber = client.subscribe(format!("{inbox}.*")).await.map_err(|_| ended())?;
        let server = client.server_info();
        Ok(Self {
            client,
            inbox: subscriber,
            prefix: format!("{inbox}."),
            events,
            server,
            at,
            forbidden: Vec::new(),
            refusals: Vec::new(),
            turn,
            place,
        })
    }

    /// The same after these refusals of other servers.
    pub(super) fn after(self, refusals: Vec<String>) -> Self {
        Self { refusals, ..self }
    }

    /// The findings about servers that refuse what this one takes.
    pub(super) fn refusing(&self) -> impl Iterator<Item = Finding> {
        self.refusals.iter().map(|text| Finding::Warning(format!("{text}; the other servers are used")))
    }

    /// This server leads nowhere at the moment: the next attempt starts with the one after it.
    pub(super) fn leave(&self) {
        self.turn.set(self.place + 1);
    }

    /// The server's name, without secrets.
    pub(super) fn at(&self) -> &str {
        &self.at
    }

    /// The server's description of itself.
    pub(super) fn server(&self) -> &ServerInfo {
        &self.server
    }

    /// The events that the library reports beside the inbox.
    pub(super) fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// The most bytes of headers and body together that the server takes.
    pub(super) fn max_payload(&self) -> usize {
        self.client.max_payload()
    }

    /// Whether the library still has its connection: what is published after that would vanish.
    pub(super) fn is_open(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Gives one message to the library without waiting; the answer comes to the inbox under `token`.
    pub(super) fn publish(
        &self,
        subject: &str,
        token: impl Display,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Queued {
        let mut reply = String::with_capacity(self.prefix.len() + LONGEST_TOKEN);
        // Writing into a String cannot fail.
        let _ = write!(reply, "{}{token}", self.prefix);
        let message = OutboundMessage { subject: subject.into(), reply: Some(reply.into()), payload, headers };
        match unconstrained(self.client.publish_message(message)).now_or_never() {
            Some(Ok(())) => Queued::Yes,
            None => Queued::Full,
            Some(Err(error)) => match error.kind() {
                PublishErrorKind::MaxPayloadExceeded => Queued::TooLarge,
                PublishErrorKind::InvalidSubject => Queued::IllegalSubject,
                PublishErrorKind::Send => Queued::Ended,
            },
        }
    }

    /// The next answer on the inbox; none once the connection has ended. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Message> {
        self.inbox.next().await
    }

    /// The same without waiting.
    pub(super) fn next_now(&mut self) -> Poll<Option<Message>> {
        unconstrained(self.inbox.next()).now_or_never().map_or(Poll::Pending, Poll::Ready)
    }

    /// The token that an answer came under.
    pub(super) fn token<'m>(&self, message: &'m Message) -> Option<&'m str> {
        message.subject.as_str().strip_prefix(self.prefix.as_str())
    }

    /// The subjects that were refused while something else was asked: all that were published to before.
    pub(super) fn forbidden(&self) -> &[String] {
        &self.forbidden
    }

    /// Asks and waits for the answer, before there is any message; a question without a payload is put again and again.
    /// It proves too that the inbox works: a refused subscription shows itself only by an event.
    pub(super) async fn ask(&mut self, subject: &str, payload: Vec<u8>) -> Result<Message, Unanswered> {
        let deadline = Instant::now() + REQUEST;
        let silence = |kind, text: String| Unanswered::Silence(ConnectError::new(kind, text));
        let ended = format!("{}: the connection ended while connecting", self.at);
        // A late answer to an earlier question must not pass for this one's.
        let token = format!("a{}", fastrand::u64(..));
        let payload = Bytes::from(payload);
        let mut again = Instant::now();
        let events = Arc::clone(&self.events);
        loop {
            if Instant::now() >= again {
                if !matches!(self.publish(subject, &token, None, payload.clone()), Queued::Yes) {
                    return Err(silence(ErrorKind::Connect, ended));
                }
                again = if payload.is_empty() { Instant::now() + AGAIN } else { deadline };
            }
            while let Some(violation) = events.violation() {
                match violation {
                    Violation::Publish(forbidden) if forbidden == subject => return Err(Unanswered::Forbidden),
                    Violation::Publish(other) => self.forbidden.push(other),
                    Violation::Subscribe(inbox) => {
                        let text = format!(
                            "{}: these credentials may not subscribe to {inbox}, where confirmations arrive; permit \
                             it, or set `inbox_prefix` to the inbox that they may see",
                            self.at
                        );
                        return Err(silence(ErrorKind::Authentication, text));
                    }
                }
            }
            let answer = async {
                tokio::select! {
                    message = self.next() => Some(message),
                    () = events.news.notified() => None,
                }
            };
            match timeout_at(again.min(deadline), answer).await {
                Ok(Some(Some(message))) if self.token(&message) == Some(token.as_str()) => return Ok(message),
                Ok(Some(Some(_)) | None) if !events.ended() => {}
                Ok(_) => {
                    let words = events.last_error().map(|words| format!(": {words}")).unwrap_or_default();
                    return Err(silence(ErrorKind::Connect, ended + &words));
                }
                Err(_) if Instant::now() < deadline => {}
                Err(_) => {
                    // The same text from each server of a cluster: it is said once.
                    let text = format!("no answer to {subject} within {} s", REQUEST.as_secs());
                    return Err(silence(ErrorKind::Connect, text));
                }
            }
        }
    }
}
