//! One client of the library is one TCP connection here, with one reply inbox; it never comes back by itself.

use std::error::Error as _;
use std::future::ready;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use async_nats::client::traits::Publisher as _;
use async_nats::connection::State;
use async_nats::message::OutboundMessage;
use async_nats::{
    Client, ConnectErrorKind, ConnectOptions, HeaderMap, Message, PublishErrorKind, ServerAddr, ServerInfo,
    Subscriber,
};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::task::unconstrained;
use tokio::time::{Instant, timeout, timeout_at};
use url::Url;

use super::events::{Events, Violation};
use super::settings::{Login, Settings};
use crate::brokers::{ConnectError, ErrorKind};
use crate::settings::redact;

/// For all servers together; each gets an equal share of what is left.
const DIAL: Duration = Duration::from_secs(5);

/// For one answer of JetStream while connecting.
const REQUEST: Duration = Duration::from_secs(3);

/// A question is put again after this: between two leaders nobody hears it.
const AGAIN: Duration = Duration::from_millis(500);

/// A stopped server is noticed at the third unanswered one.
const PING: Duration = Duration::from_secs(3);

/// The address given to the library so that its own reconnect fails immediately: port 1 of loopback refuses.
const NOWHERE: &str = "nats://127.0.0.1:1";

/// The server of the list that the next attempt starts with, by its place; shared with the connection that may move it.
#[derive(Clone, Debug, Default)]
pub(super) struct ServerTurn(Arc<AtomicUsize>);

impl ServerTurn {
    fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, place: usize) {
        self.0.store(place, Ordering::Relaxed);
    }
}

/// One live connection.
pub(super) struct NatsConnection {
    client: Client,
    inbox: Subscriber,
    /// Of every reply subject: the inbox and a dot.
    prefix: String,
    events: Arc<Events>,
    server: ServerInfo,
    at: String,
    turn: ServerTurn,
    /// Its place in the list of servers.
    place: usize,
}

/// What became of something published.
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

/// Why a question got no answer.
pub(super) enum Unanswered {
    /// These credentials may not ask it.
    Forbidden,
    /// Nothing came; the text says what may be the matter.
    Silence(ConnectError),
}

impl NatsConnection {
    /// Connects to the first server that takes us, from the one whose turn it is on, for a window of so many messages.
    pub(super) async fn dial(settings: &Settings, window: usize, turn: &ServerTurn) -> Result<Self, ConnectError> {
        let deadline = Instant::now() + DIAL;
        let mut failures: Vec<ConnectError> = Vec::new();
        let (servers, first) = (&settings.servers, turn.get());
        for tried in 0..servers.len() {
            let place = (first + tried) % servers.len();
            let Some(server) = servers.get(place) else { continue };
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(servers.len() - tried).unwrap_or(u32::MAX);
            turn.set(place);
            match timeout(share, Self::open(settings, server, window, turn)).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => failures.push(error),
                Err(_) => {
                    let text =
                        format!("{}: no answer within {:.1} s", redact(server.as_str()), share.as_secs_f32());
                    failures.push(ConnectError::new(ErrorKind::Connect, text));
                }
            }
        }
        turn.set(first);
        let kinds = [ErrorKind::Authentication, ErrorKind::Tls];
        let kind = kinds.into_iter().find(|kind| failures.iter().any(|failure| failure.kind == *kind));
        let texts: Vec<String> = failures.into_iter().map(|failure| failure.text).collect();
        Err(ConnectError::new(kind.unwrap_or(ErrorKind::Connect), texts.join("; ")))
    }

    async fn open(
        settings: &Settings,
        server: &Url,
        window: usize,
        turn: &ServerTurn,
    ) -> Result<Self, ConnectError> {
        let at = redact(server.as_str());
        let failed = |kind, text: &str| ConnectError::new(kind, format!("{at}: {text}"));
        let events = Arc::new(Events::default());
        let options = options(settings, window, &events).await.map_err(|(kind, text)| failed(kind, &text))?;
        let address =
            ServerAddr::from_url(server.clone()).map_err(|error| failed(ErrorKind::Connect, &error.to_string()))?;
        let client = options.connect(address).await.map_err(|error| {
            let (kind, text) = explain(&error, server.scheme() == "tls");
            failed(kind, &text)
        })?;
        let ended = || failed(ErrorKind::Connect, "the connection ended at once");
        client.set_server_pool(NOWHERE).await.map_err(|_| ended())?;
        let inbox = client.new_inbox();
        let subscriber = client.subscribe(format!("{inbox}.*")).await.map_err(|_| ended())?;
        let server = client.server_info();
        let (turn, place) = (turn.clone(), turn.get());
        Ok(Self { client, inbox: subscriber, prefix: format!("{inbox}."), events, server, at, turn, place })
    }

    /// This server leads nowhere at the moment: the next attempt starts with the one after it.
    pub(super) fn leave(&self) {
        self.turn.set(self.place + 1);
    }

    /// Which server it is, without secrets.
    pub(super) fn at(&self) -> &str {
        &self.at
    }

    /// What the server said of itself.
    pub(super) fn server(&self) -> &ServerInfo {
        &self.server
    }

    /// What the library tells beside the inbox.
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
    pub(super) fn publish(&self, subject: &str, token: &str, headers: Option<HeaderMap>, payload: Bytes) -> Queued {
        let reply = [self.prefix.as_str(), token].concat();
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
                    Violation::Publish(_) => {}
                    Violation::Subscribe(inbox) => {
                        let text = format!(
                            "{}: these credentials may not subscribe to {inbox}, where confirmations arrive; permit \
                             `_INBOX.>`",
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

async fn options(
    settings: &Settings,
    window: usize,
    events: &Arc<Events>,
) -> Result<ConnectOptions, (ErrorKind, String)> {
    let capacity = 2 * window + 64;
    let events = Arc::clone(events);
    let options = ConnectOptions::new()
        .name("plextrac-bridge")
        // 0 would mean for ever; the one attempt goes to `NOWHERE`.
        .max_reconnects(1)
        .ignore_discovered_servers()
        .connection_timeout(DIAL)
        .client_capacity(capacity)
        .subscription_capacity(capacity)
        .ping_interval(PING)
        .require_tls(settings.tls.ca.is_some() || settings.tls.client.is_some())
        .event_callback(move |event| {
            events.take(event);
            ready(())
        });
    let options = match &settings.tls.ca {
        Some(ca) => options.add_root_certificates(ca.clone()),
        None => options,
    };
    let options = match &settings.tls.client {
        Some((certificate, key)) => options.add_client_certificate(certificate.clone(), key.clone()),
        None => options,
    };
    Ok(match &settings.login {
        Login::Nobody => options,
        Login::Password(user, password) => options.user_and_password(user.clone(), password.reveal().to_owned()),
        Login::Token(token) => options.token(token.reveal().to_owned()),
        Login::Credentials(path) => options.credentials_file(path).await.map_err(|error| {
            (ErrorKind::Authentication, format!("cannot use the credentials file {}: {error}", path.display()))
        })?,
    })
}

/// What a failed attempt means, and what to do.
fn explain(error: &async_nats::ConnectError, tls: bool) -> (ErrorKind, String) {
    let cause = cause(error);
    let refused = "the server refuses the credentials; check username and password, token or credentials_file";
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation => (ErrorKind::Authentication, refused.to_owned()),
        ConnectErrorKind::Authentication => {
            (ErrorKind::Authentication, format!("cannot sign with the credentials: {cause}"))
        }
        ConnectErrorKind::Tls => (ErrorKind::Tls, tls_text(&cause)),
        ConnectErrorKind::Dns => (ErrorKind::Connect, format!("cannot find the host: {cause}")),
        ConnectErrorKind::TimedOut => (ErrorKind::Connect, "no answer in time".to_owned()),
        _ if is_tls(error) || (tls && cause.contains("tls")) => (ErrorKind::Tls, tls_text(&cause)),
        _ if cause.contains("uthentication") || cause.contains("uthorization") => {
            (ErrorKind::Authentication, format!("{refused} ({cause})"))
        }
        _ => (ErrorKind::Connect, cause),
    }
}

fn tls_text(cause: &str) -> String {
    format!("TLS failed: {cause}; check ca_file, the host name in the URL, certificate_file and key_file")
}

/// The text of the innermost error.
fn cause(error: &async_nats::ConnectError) -> String {
    let mut text = error.kind().to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = error.to_string();
        source = error.source();
    }
    text
}

/// Whether TLS is at fault: the library reports its errors as those of the socket.
fn is_tls(error: &async_nats::ConnectError) -> bool {
    let mut source = error.source();
    while let Some(error) = source {
        let within = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if error.is::<rustls::Error>()
            || within.is_some_and(<dyn std::error::Error + Send + Sync>::is::<rustls::Error>)
        {
            return true;
        }
        source = error.source();
    }
    false
}
