//! One TCP connection with the runtime it lives on, and what its errors mean.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, Stream, StreamExt as _};
use lapin::options::ConfirmSelectOptions;
use lapin::protocol::{AMQPErrorKind, AMQPHardError};
use lapin::tcp::{AsyncTcpStream, RustlsConnector};
use lapin::types::{LongString, ShortString};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Channel, Connection, ConnectionProperties, Event};
use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::brokers::dial::{self, ConnectFailure, Reached};
use crate::brokers::oauth::{Token, Tokens};
use crate::brokers::rabbitmq::Settings;
use crate::brokers::tls::TlsFiles;
use crate::brokers::{ConnectError, ErrorKind};

/// A broker that does not answer for so long is as good as away; the caller tries again.
pub(super) const ATTEMPT: Duration = Duration::from_secs(5);

/// The time for an orderly close, so that the broker logs no error.
const GOODBYE: Duration = Duration::from_millis(500);

type ConnectionEvents = Pin<Box<dyn Stream<Item = Event> + Send>>;

/// A connection on a runtime of its own: `close` of a blocked connection never returns and dropping it leaves thread
/// and socket until the alarm ends, but a runtime that is shut down takes them along.
pub(super) struct Link {
    /// Ends first.
    _runtime: OwnRuntime,
    pub(super) connection: Arc<Connection>,
    /// The URI of the host, without secrets.
    pub(super) location: String,
    /// The library's queue of events is shared by all who listen: there is one listener.
    events: ConnectionEvents,
    /// The reason why the broker reads nothing at the moment.
    blocked: Option<String>,
    /// The time since when it reads again.
    pub(super) unblocked: Option<Instant>,
    /// The reason for the end of the connection.
    fault: Option<String>,
    /// The token that the broker has, if that is the login.
    token: Option<CurrentToken>,
}

type CurrentToken = Arc<Mutex<Arc<Token>>>;

/// A runtime must not be dropped where blocking is forbidden; this one ends in the background.
struct OwnRuntime(Option<Runtime>);

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Link {
    /// Connects and logs in; `turn` says where this attempt starts, and then where the next one does.
    pub(super) async fn open(
        settings: &Settings,
        tokens: Option<&Tokens>,
        turn: &mut usize,
    ) -> Result<Self, ConnectError> {
        let all = settings.location();
        let failed = |kind, location: &str, text: String| ConnectError::new(kind, format!("{location}: {text}"));
        // Subscribed before, so that no renewal is missed while it connects.
        let renewed = tokens.map(Tokens::renewed);
        let token = match tokens {
            Some(tokens) => Some(tokens.valid().await?),
            None => None,
        };
        let uris = settings
            .uris(token.as_deref().map(|token| &token.text))
            .map_err(|text| failed(ErrorKind::Connect, &all, text))?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("rabbitmq")
            .enable_all()
            .build()
            .map_err(|error| failed(ErrorKind::Connect, &all, format!("cannot start a thread: {error}")))?;
        let on = runtime.handle().clone();
        // From here on dropping this future ends the runtime in the background.
        let runtime = OwnRuntime(Some(runtime));
        let ended = |_| failed(ErrorKind::Connect, &all, "the connecting task ended".to_owned());
        let hosts = uris.len();
        let (host, connected) = on.spawn(connect(uris, settings.tls.clone(), *turn)).await.map_err(ended)?;
        *turn = dial::next(*turn, hosts, host);
        let location = host.map_or_else(|| all.clone(), |host| settings.location_of(host));
        let connection = Arc::new(connected.map_err(|(kind, text)| failed(kind, &location, text))?);
        let events = Box::pin(connection.events_listener());
        let token = token.map(|token| CurrentToken::new(Mutex::new(token)));
        if let (Some(renewed), Some(token)) = (renewed, &token) {
            on.spawn(update_token(Arc::downgrade(&connection), renewed, token.clone()));
        }
        Ok(Self {
            _runtime: runtime,
            connection,
            location,
            events,
            blocked: None,
            unblocked: None,
            fault: None,
            token,
        })
    }

    /// The reason why the broker reads nothing at the moment, if so.
    pub(super) fn blocked(&mut self) -> Option<&str> {
        while let Some(Some(event)) = self.events.next().now_or_never() {
            self.note(event);
        }
        self.blocked.as_deref().filter(|_| self.is_alive())
    }

    /// Whether the broker has read nothing at some time since so long ago.
    pub(super) fn was_blocked(&mut self, ago: Duration) -> bool {
        self.blocked().is_some() || self.unblocked.is_some_and(|since| since.elapsed() < ago)
    }

    /// The reason for the end of the connection, if it ended.
    pub(super) fn fault(&mut self) -> Option<String> {
        self.blocked();
        self.fault.clone()
    }

    /// Whether its token has ended: RabbitMQ keeps the connection, and refuses everything as not authorised.
    pub(super) fn has_ended_token(&self) -> bool {
        self.token.as_ref().is_some_and(|token| token.lock().has_ended())
    }

    /// Whether its token should have been renewed: what is not authorised may be so for that, by the broker's clock.
    pub(super) fn has_old_token(&self) -> bool {
        self.token.as_ref().is_some_and(|token| token.lock().is_due())
    }

    pub(super) fn is_alive(&self) -> bool {
        self.connection.status().connected()
    }

    /// Waits for the next event; returns why the connection has ended, if it has. Cancel-safe.
    pub(super) async fn news(&mut self) -> Option<String> {
        match self.events.next().await {
            Some(event) => {
                self.note(event);
                self.fault.clone()
            }
            None => Some("the connection ended".to_owned()),
        }
    }

    /// Notes an event. An error of a channel, which is reported there too, says nothing here.
    fn note(&mut self, event: Event) {
        match event {
            Event::ConnectionBlocked(reason) => self.blocked = Some(reason),
            Event::ConnectionUnblocked => {
                self.blocked = None;
                self.unblocked = Some(Instant::now());
            }
            Event::Error(error) if !self.is_alive() => {
                self.fault.get_or_insert_with(|| describe(&error));
            }
            _ => {}
        }
    }

    /// Says goodbye, if the broker can hear it, and lets go of thread and socket.
    pub(super) async fn close(mut self, patience: Duration) {
        if self.is_alive() && self.blocked().is_none() {
            let goodbye = self.connection.close(200, ShortString::from("closing"));
            let _ = timeout(patience.min(GOODBYE), goodbye).await;
        }
    }
}

/// Gives each renewed token to a connection: the broker closes one whose token has ended.
async fn update_token(
    connection: Weak<Connection>,
    mut renewed: watch::Receiver<Option<Arc<Token>>>,
    current: CurrentToken,
) {
    while renewed.changed().await.is_ok() {
        let token = renewed.borrow_and_update().clone();
        let (Some(connection), Some(token)) = (connection.upgrade(), token) else { return };
        // The login's own.
        if Arc::ptr_eq(&token, &current.lock()) {
            continue;
        }
        let text = LongString::from(token.text.reveal());
        match connection.update_secret(text, ShortString::from("renewed")).await {
            Ok(()) => *current.lock() = token,
            // The broker says the same to the connection, if it closes it.
            Err(error) => tracing::warn!("the broker does not take the renewed token: {}", describe(&error)),
        }
    }
}

/// A connection whose channel alone died: a new channel on it takes 1 ms, a new connection 100 times that with TLS.
pub(super) type IdleConnection = Arc<Mutex<Option<Link>>>;

/// Opens a channel that confirms.
pub(super) async fn open_channel(connection: &Connection) -> lapin::Result<Channel> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}

/// Marks an error of the handshake, so that it can be told from one of the network.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct TlsError(io::Error);

/// Connects to the first host that takes a TCP connection, and logs in there; returns which one that was.
async fn connect(
    uris: Vec<AMQPUri>,
    tls: TlsFiles,
    turn: usize,
) -> (Option<usize>, Result<Connection, ConnectFailure>) {
    let has_tls = uris.iter().any(|uri| uri.scheme == AMQPScheme::AMQPS);
    let tls = match has_tls.then(|| tls.client_config(|verifier| verifier)).transpose() {
        Ok(config) => config.map(RustlsConnector::from),
        Err(text) => return (None, Err((ErrorKind::Tls, text))),
    };
    let runtime = match lapin::runtime::default_runtime() {
        Ok(runtime) => runtime,
        Err(error) => return (None, Err(explain(&error, "", false))),
    };
    let hosts: Vec<_> = uris.iter().map(|uri| (uri.authority.host.clone(), uri.authority.port)).collect();
    let open = |address: SocketAddr| {
        let runtime = runtime.clone();
        async move { AsyncTcpStream::connect(&runtime, address).await }
    };
    let (host, stream) = match dial::reach(&hosts, turn, dial::resolve, open).await {
        Ok(Reached { host, stream }) => (host, stream),
        Err(failures) => {
            let text = format!("cannot connect: {}; is the broker running there?", failures.join("; "));
            return (None, Err((ErrorKind::Connect, text)));
        }
    };
    let stream = Mutex::new(Some(stream));
    let secure = async move |uri: AMQPUri, _| {
        let stream = stream.lock().take();
        let stream = stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
        let Some(tls) = tls.as_ref().filter(|_| uri.scheme == AMQPScheme::AMQPS) else { return Ok(stream) };
        Ok(stream.into_rustls(tls, &uri.authority.host).await.map_err(|error| io::Error::other(TlsError(error)))?)
    };
    let properties = ConnectionProperties::default().with_connection_name(LongString::from("plextrac-bridge"));
    let user = uris[host].authority.userinfo.username.clone();
    let is_tls = uris[host].scheme == AMQPScheme::AMQPS;
    let connecting = Connection::connector(uris[host].clone(), runtime, secure, properties);
    let Ok(connected) = timeout(ATTEMPT, connecting).await else {
        let text = format!("no answer within {} s; is this an AMQP port?", ATTEMPT.as_secs());
        return (Some(host), Err((ErrorKind::Connect, text)));
    };
    (Some(host), connected.map_err(|error| explain(&error, &user, is_tls)))
}

fn failed_in_tls(error: &io::Error) -> bool {
    // A refused client certificate shows after the handshake, as TLS 1.3 has it.
    error.get_ref().is_some_and(|error| error.is::<TlsError>() || error.is::<rustls::Error>())
}

/// Whether the connection was cut: what a broker that refuses a client's certificate says may be lost by that, and this
/// is all that is seen of it. It says why where it refuses a login.
fn was_cut(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), ConnectionReset | ConnectionAborted | BrokenPipe | UnexpectedEof)
}

fn handshake_failed(error: &io::Error) -> ConnectFailure {
    let error = error.to_string();
    let error = dial::without_time(&error);
    let text = format!(
        "the TLS handshake failed: {error}; check `ca_file`, `certificate_file`, the port and the host's name"
    );
    (ErrorKind::Tls, text)
}

/// The reason why there is no connection, and what to do about it.
fn explain(error: &lapin::Error, user: &str, is_tls: bool) -> ConnectFailure {
    match error.kind() {
        lapin::ErrorKind::IOError(error) if failed_in_tls(error) || (is_tls && was_cut(error)) => {
            handshake_failed(error)
        }
        lapin::ErrorKind::IOError(error) => {
            (ErrorKind::Connect, format!("cannot connect: {error}; is the broker running there?"))
        }
        lapin::ErrorKind::ProtocolError(error) => {
            let said = error.get_message().as_str().trim_end_matches('.');
            match error.kind() {
                AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) if said.contains("not found") => {
                    (ErrorKind::Connect, format!("{said}; create the virtual host or correct the path of `uri`"))
                }
                AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) if said.contains("limit") => {
                    (ErrorKind::Connect, format!("{said}; raise the limit: a reload needs one connection more"))
                }
                AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => {
                    let whose = if user.is_empty() { "the token".to_owned() } else { format!("`{user}`") };
                    (ErrorKind::Authentication, format!("{said}; check the permissions of {whose}"))
                }
                _ if error.get_id() == 403 && user.is_empty() => {
                    let text = "the broker takes no token of `oauth_token_endpoint`; check `oauth_scope`, and how the broker \
                                checks tokens";
                    (ErrorKind::Authentication, format!("{said}; {text}"))
                }
                _ if error.get_id() == 403 => {
                    (ErrorKind::Authentication, format!("{said}; check user and password of `{user}` in `uri`"))
                }
                _ => (ErrorKind::Connect, said.to_owned()),
            }
        }
        _ => (ErrorKind::Connect, describe(error)),
    }
}

/// The broker's words where it said some, else the library's.
pub(super) fn describe(error: &lapin::Error) -> String {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(error) => error.get_message().to_string(),
        lapin::ErrorKind::IOError(error) => format!("the connection failed: {error}"),
        lapin::ErrorKind::MissingHeartbeatError => "the broker has been silent for too long".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_a_connection_that_is_cut_in_a_tls_handshake_for_a_refused_certificate() {
        for kind in [io::ErrorKind::ConnectionReset, io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionRefused]
        {
            let is_cut = kind != io::ErrorKind::ConnectionRefused;
            for is_tls in [true, false] {
                let (found, text) = explain(&lapin::Error::from(io::Error::from(kind)), "u", is_tls);
                let expected = if is_tls && is_cut { ErrorKind::Tls } else { ErrorKind::Connect };
                assert_eq!(found, expected, "{text}");
            }
        }
    }
}
