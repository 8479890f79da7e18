//! One client of the library is one TCP connection here, with one reply inbox; it never comes back by itself.

use std::fmt::{Display, Write as _};
use std::pin::pin;
use std::time::Duration;

use async_nats::client::traits::Publisher as _;
use async_nats::connection::State;
use async_nats::message::OutboundMessage;
use async_nats::{Client, Event, HeaderMap, Message, PublishErrorKind, ServerError, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc::Receiver;
use tokio::task::unconstrained;
use tokio::time::timeout;

use crate::brokers::{ConnectError, ErrorKind};

/// For one answer of JetStream while connecting.
const REQUEST: Duration = Duration::from_secs(3);

/// A question is put again after this: between two leaders it has no listener.
const AGAIN: Duration = Duration::from_millis(500);

/// The address given to the library so that its own reconnect fails immediately: port 1 of loopback refuses.
const NOWHERE: &str = "nats://127.0.0.1:1";

/// The length of the longest token, of two numbers.
const LONGEST_TOKEN: usize = 41;

/// One live connection.
pub(super) struct NatsConnection {
    client: Client,
    inbox: Subscriber,
    /// The prefix of every reply subject: the inbox and a dot.
    prefix: String,
    /// The reports of the library beside the inbox. It drops what is more than its queue takes: hints, never the only sign.
    events: Receiver<Event>,
    /// The server's name, without secrets.
    pub(super) at: String,
    /// The server's last error that was no refused permission, after a colon.
    pub(super) last_words: String,
    has_ended: bool,
    /// Subjects that were refused while something else was asked: all that were published to before.
    pub(super) forbidden: Vec<String>,
}

/// The next thing that a connection has to say.
#[derive(Debug)]
pub(super) enum Signal {
    /// An answer on the inbox.
    Reply(Message),
    /// These credentials may not publish to this subject.
    MayNotPublish(String),
    /// These credentials may not subscribe to this inbox.
    MayNotSubscribe(String),
    /// The connection has ended, and nothing more is on the inbox.
    Ended,
}

impl NatsConnection {
    /// The connection of a client that has just connected to this server, and what the library reports of it.
    pub(super) async fn new(client: Client, events: Receiver<Event>, at: String) -> Result<Self, ConnectError> {
        let ended = || ConnectError::new(ErrorKind::Connect, format!("{at}: the connection ended at once"));
        client.set_server_pool(NOWHERE).await.map_err(|_| ended())?;
        let prefix = format!("{}.", client.new_inbox());
        let inbox = client.subscribe(format!("{prefix}*")).await.map_err(|_| ended())?;
        let (last_words, forbidden) = (String::new(), Vec::new());
        Ok(Self { client, inbox, prefix, events, at, last_words, has_ended: false, forbidden })
    }

    /// The server's version.
    pub(super) fn version(&self) -> String {
        self.client.server_info().version
    }

    /// Whether the server has JetStream of its own and no cluster.
    pub(super) fn is_alone(&self) -> bool {
        let server = self.client.server_info();
        server.jetstream && server.cluster.is_none()
    }

    /// The most bytes of headers and body together that the server takes.
    pub(super) fn max_payload(&self) -> usize {
        self.client.max_payload()
    }

    /// Whether the library still has its connection: what is published after that would vanish.
    pub(super) fn is_open(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Gives one message to the library without waiting, unless its queue is full; the answer comes to the inbox under
    /// `token`.
    pub(super) fn publish(
        &self,
        subject: &str,
        token: impl Display,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Option<Result<(), PublishErrorKind>> {
        let mut reply = String::with_capacity(self.prefix.len() + LONGEST_TOKEN);
        // Writing into a String cannot fail.
        let _ = write!(reply, "{}{token}", self.prefix);
        let (reply, headers) = (Some(reply.into()), Some(headers));
        let message = OutboundMessage { subject: subject.into(), reply, payload, headers };
        let published = unconstrained(self.client.publish_message(message)).now_or_never()?;
        Some(published.map_err(|error| error.kind()))
    }

    /// The next thing to take note of. Cancel-safe.
    pub(super) async fn next(&mut self) -> Signal {
        while !self.has_ended {
            // Events first: an answer that came before the end is then on the inbox.
            tokio::select! {
                biased;
                event = self.events.recv() => match event {
                    Some(Event::ServerError(error)) => {
                        let text = match error {
                            ServerError::Other(text) => text,
                            other => other.to_string(),
                        };
                        match violation(&text) {
                            Some(signal) => return signal,
                            None => self.last_words = format!(": {text}"),
                        }
                    }
                    Some(Event::Disconnected | Event::Closed) | None => self.has_ended = true,
                    Some(_) => {}
                },
                reply = self.inbox.next() => match reply {
                    Some(reply) => return Signal::Reply(reply),
                    None => self.has_ended = true,
                },
            }
        }
        unconstrained(self.inbox.next()).now_or_never().flatten().map_or(Signal::Ended, Signal::Reply)
    }

    /// The same without waiting, if there is anything.
    pub(super) fn next_now(&mut self) -> Option<Signal> {
        unconstrained(self.next()).now_or_never()
    }

    /// The token that an answer came under.
    pub(super) fn token<'m>(&self, message: &'m Message) -> Option<&'m str> {
        message.subject.as_str().strip_prefix(self.prefix.as_str())
    }

    /// Asks on an inbox of its own, without a payload again and again; none without an answer in time.
    pub(super) fn question(
        &self,
        subject: &str,
        payload: Bytes,
        patience: Duration,
    ) -> impl Future<Output = Option<Message>> + Send + use<> {
        let (client, subject) = (self.client.clone(), subject.to_owned());
        let answer = async move {
            let inbox = client.new_inbox();
            let mut answers = client.subscribe(inbox.clone()).await.ok()?;
            let again = if payload.is_empty() { AGAIN } else { patience };
            loop {
                client.publish_with_reply(subject.clone(), inbox.clone(), payload.clone()).await.ok()?;
                if let Ok(answer) = timeout(again, answers.next()).await {
                    return answer;
                }
            }
        };
        async move { timeout(patience, answer).await.ok().flatten() }
    }

    /// Asks and waits for the answer, before there is any message. It proves too that inboxes work: a refused
    /// subscription shows itself only by an event. None: these credentials may not ask it.
    pub(super) async fn ask(&mut self, subject: &str, payload: Vec<u8>) -> Result<Option<Message>, ConnectError> {
        let mut question = pin!(self.question(subject, payload.into(), REQUEST));
        let (kind, text) = loop {
            let signal = tokio::select! {
                biased;
                signal = self.next() => signal,
                answer = &mut question => match answer {
                    Some(answer) => return Ok(Some(answer)),
                    None if self.is_open() => {
                        // The same text from each server of a cluster: it is said once.
                        let text = format!("no answer to {subject} within {} s", REQUEST.as_secs());
                        break (ErrorKind::Connect, text);
                    }
                    None => Signal::Ended,
                },
            };
            match signal {
                Signal::Reply(_) => {}
                Signal::MayNotPublish(forbidden) if forbidden == subject => return Ok(None),
                Signal::MayNotPublish(other) => self.forbidden.push(other),
                Signal::MayNotSubscribe(inbox) => {
                    let text = format!(
                        "{}: these credentials may not subscribe to {inbox}, where confirmations arrive; permit it, or \
                         set `inbox_prefix` to the inbox that they may see",
                        self.at
                    );
                    break (ErrorKind::Authentication, text);
                }
                Signal::Ended => {
                    let text = format!("{}: the connection ended while connecting{}", self.at, self.last_words);
                    break (ErrorKind::Connect, text);
                }
            }
        };
        Err(ConnectError::new(kind, text))
    }
}

/// Reads `Permissions Violation for Publish to "subject"`.
fn violation(text: &str) -> Option<Signal> {
    let rest = text.strip_prefix("Permissions Violation for ")?;
    let subject = |rest: &str| rest.strip_prefix('"')?.split('"').next().map(str::to_owned);
    match rest.strip_prefix("Publish to ") {
        Some(rest) => subject(rest).map(Signal::MayNotPublish),
        None => subject(rest.strip_prefix("Subscription to ")?).map(Signal::MayNotSubscribe),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_which_permission_is_refused() {
        let publish = violation("Permissions Violation for Publish to \"A.b\"");
        assert!(matches!(publish, Some(Signal::MayNotPublish(subject)) if subject == "A.b"));
        let subscribe = violation("Permissions Violation for Subscription to \"_INBOX.x.*\" using queue \"q\"");
        assert!(matches!(subscribe, Some(Signal::MayNotSubscribe(inbox)) if inbox == "_INBOX.x.*"));
        assert!(violation("User Authentication Expired").is_none());
    }
}
