//! One TCP connection with the runtime it lives on, and what its errors mean.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::{FutureExt as _, Stream, StreamExt as _};
use lapin::options::ConfirmSelectOptions;
use lapin::protocol::{AMQPErrorKind, AMQPHardError};
use lapin::tcp::{AsyncTcpStream, RustlsConnector, RustlsConnectorConfig};
use lapin::types::{LongString, ShortString};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Channel, Connection, ConnectionProperties, Event};
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::brokers::dial::{self, Reached};
use crate::brokers::oauth::{Token, Tokens};
use crate::brokers::rabbitmq::Settings;
use crate::brokers::{ConnectError, ErrorKind};

/// A broker that does not answer for so long is as good as away; the caller tries again.
pub(super) const ATTEMPT: Duration = Duration::from_secs(5);

/// The time for an orderly close, so that the broker logs no error.
const GOODBYE: Duration = Duration::from_millis(500);

type ConnectionEvents = Pin<Box<dyn Stream<Item = Event> + Send>>;

/// A connection on a runtime of its own: `close` of a blocked connection never returns and dropping it leaves thread
/// and socket until the alarm ends, but a runtime that is shut down takes them along.
pub(super) struct Link {
    pub(super) connection: Arc<Connection>,
    /// The URI of the host, without secrets.
    pub(super) location: String,
    /// The library's queue of events is shared by all who listen: there is one listener.
    events: ConnectionEvents,
    /// The reason why the broker reads nothing at the moment.
    blocked: Option<String>,
    /// The number of times that it read again.
    pub(super) alarms_ended: u64,
    /// The reason for the end of the connection.
    fault: Option<String>,
    /// Always there until it is dropped.
    runtime: Option<Runtime>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("blocked", &self.blocked).finish_non_exhaustive()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The reports of the connection.
pub(super) enum News {
    /// Blocked, unblocked, or an error of a channel, which is told there too.
    Noted,
    /// The connection has ended.
    Lost(String),
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
        let token = match tokens {
            Some(tokens) => Some(tokens.fresh().await?),
            None => None,
        };
        let uris = settings
            .uris(token.as_deref().map(|token| &token.text))
            .map_err(|text| failed(ErrorKind::Connect, &all, text))?;
        let tls = AmqpTls::read(settings, &uris).map_err(|text| failed(ErrorKind::Tls, &all, text))?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("rabbitmq")
            .enable_all()
            .build()
            .map_err(|error| failed(ErrorKind::Connect, &all, format!("cannot start a thread: {error}")))?;
        // From here on dropping this future ends the runtime in the background.
        let mut runtime = Unfinished(Some(runtime));
        let connecting = runtime.0.as_ref().map(|runtime| runtime.spawn(connect(uris.clone(), tls, *turn)));
        let ended = || failed(ErrorKind::Connect, &all, "the connecting task ended".to_owned());
        let (host, connected) = connecting.ok_or_else(ended)?.await.map_err(|_| ended())?;
        *turn = dial::next(*turn, uris.len(), host);
        let location = host.map_or_else(|| all.clone(), |host| settings.location_of(host));
        let user = host.and_then(|host| uris.get(host)).map_or("", |uri| &uri.authority.userinfo.username);
        let connection = connected.map_err(|error| {
            let (kind, text) = error.explain(user);
            failed(kind, &location, text)
        })?;
        let events = Box::pin(connection.events_listener());
        let connection = Arc::new(connection);
        if let (Some(tokens), Some(runtime)) = (tokens, &runtime.0) {
            runtime.spawn(update_token(Arc::downgrade(&connection), tokens.renewed()));
        }
        Ok(Self {
            connection,
            location,
            events,
            blocked: None,
            alarms_ended: 0,
            fault: None,
            runtime: runtime.0.take(),
        })
    }

    /// The reason why the broker reads nothing at the moment, if so.
    pub(super) fn blocked(&mut self) -> Option<&str> {
        while let Some(Some(event)) = self.events.next().now_or_never() {
            self.note(event);
        }
        self.blocked.as_deref().filter(|_| self.is_alive())
    }

    /// The reason for the end of the connection, if it ended.
    pub(super) fn fault(&mut self) -> Option<String> {
        self.blocked();
        self.fault.clone()
    }

    pub(super) fn is_alive(&self) -> bool {
        self.connection.status().connected()
    }

    /// Waits for the next event. Cancel-safe.
    pub(super) async fn news(&mut self) -> News {
        match self.events.next().await {
            Some(event) => self.note(event),
            None => News::Lost("the connection ended".to_owned()),
        }
    }

    fn note(&mut self, event: Event) -> News {
        match event {
            Event::ConnectionBlocked(reason) => self.blocked = Some(reason),
            Event::ConnectionUnblocked => {
                self.blocked = None;
                self.alarms_ended += 1;
            }
            Event::Error(error) if !self.is_alive() => {
                let text = describe(&error);
                self.fault.get_or_insert_with(|| text.clone());
                return News::Lost(text);
            }
            _ => {}
        }
        News::Noted
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
async fn update_token(connection: Weak<Connection>, mut renewed: watch::Receiver<Option<Arc<Token>>>) {
    while renewed.changed().await.is_ok() {
        let token = renewed.borrow_and_update().clone();
        let (Some(connection), Some(token)) = (connection.upgrade(), token) else { return };
        let text = LongString::from(token.text.reveal());
        if let Err(error) = connection.update_secret(text, ShortString::from("renewed")).await {
            // The broker says the same to the connection, if it closes it.
            tracing::warn!("the broker does not take the renewed token: {}", describe(&error));
        }
    }
}

/// Opens a channel that confirms.
pub(super) async fn open_channel(connection: &Connection) -> lapin::Result<Channel> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}

/// A runtime must not be dropped where blocking is forbidden; this one ends in the background.
struct Unfinished(Option<Runtime>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// The files of the TLS handshake, read at each connect, so that renewed ones are taken.
#[derive(Clone)]
struct AmqpTls {
    roots: Option<Vec<CertificateDer<'static>>>,
    identity: Option<Arc<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>>,
}

impl AmqpTls {
    fn read(settings: &Settings, uris: &[AMQPUri]) -> Result<Option<Self>, String> {
        if uris.iter().all(|uri| uri.scheme == AMQPScheme::AMQP) {
            return Ok(None);
        }
        let roots = settings.ca_file.as_deref().map(|path| certificates("ca_file", path)).transpose()?;
        let identity = settings.identity.as_ref().map(|(certificate, key)| {
            let chain = certificates("certificate_file", certificate)?;
            let key = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| format!("`key_file`: no PEM key in {}: {error}", key.display()))?;
            Ok::<_, String>(Arc::new((chain, key)))
        });
        Ok(Some(Self { roots, identity: identity.transpose()? }))
    }

    /// With a `ca_file` only that is trusted: the system's certificates stay out.
    fn connector(&self) -> io::Result<RustlsConnector> {
        let config = match &self.roots {
            Some(roots) => RustlsConnectorConfig::default().with_parsable_certificates(roots.clone()),
            None => RustlsConnectorConfig::new_with_native_certs()?,
        };
        match &self.identity {
            Some(identity) => config.connector_with_single_cert(identity.0.clone(), identity.1.clone_key()),
            None => config.connector_with_no_client_auth(),
        }
    }
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let list = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| format!("`{key}`: cannot read {}: {error}", path.display()))?;
    if list.is_empty() {
        return Err(format!("`{key}`: no PEM certificate in {}", path.display()));
    }
    Ok(list)
}

/// Marks an error of the handshake, so that it can be told from one of the network.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct TlsError(io::Error);

/// The reason why there is no connection.
enum ConnectFailure {
    /// No address takes a TCP connection.
    Unreachable(Vec<String>),
    /// One does, and then says nothing.
    Silent,
    /// It does not let us in.
    Refused(lapin::Error),
}

impl ConnectFailure {
    /// The kind of an error, and what to do about it.
    fn explain(&self, user: &str) -> (ErrorKind, String) {
        match self {
            Self::Unreachable(failures) => {
                let failures = failures.join("; ");
                (ErrorKind::Connect, format!("cannot connect: {failures}; is the broker running there?"))
            }
            Self::Silent => {
                let text = format!("no answer within {} s; is this an AMQP port?", ATTEMPT.as_secs());
                (ErrorKind::Connect, text)
            }
            Self::Refused(error) => explain(error, user),
        }
    }
}

/// Connects to the first host that takes a TCP connection, and logs in there; returns which one that was.
async fn connect(
    uris: Vec<AMQPUri>,
    tls: Option<AmqpTls>,
    turn: usize,
) -> (Option<usize>, Result<Connection, ConnectFailure>) {
    let runtime = match lapin::runtime::default_runtime() {
        Ok(runtime) => runtime,
        Err(error) => return (None, Err(ConnectFailure::Refused(error))),
    };
    let hosts: Vec<_> = uris.iter().map(|uri| (uri.authority.host.clone(), uri.authority.port)).collect();
    let open = |address: SocketAddr| {
        let runtime = runtime.clone();
        async move { AsyncTcpStream::connect(&runtime, address).await }
    };
    let (host, stream) = match dial::reach(&hosts, turn, dial::resolve, open).await {
        Ok(Reached { host, stream }) => (host, stream),
        Err(failures) => return (None, Err(ConnectFailure::Unreachable(failures))),
    };
    let stream = Mutex::new(Some(stream));
    let secure = async move |uri: AMQPUri, _| {
        let stream = stream.lock().take();
        let stream = stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
        let Some(tls) = tls.as_ref().filter(|_| uri.scheme == AMQPScheme::AMQPS) else { return Ok(stream) };
        let failed = |error| io::Error::other(TlsError(error));
        let connector = tls.connector().map_err(failed)?;
        Ok(stream.into_rustls(&connector, &uri.authority.host).await.map_err(failed)?)
    };
    let properties = ConnectionProperties::default().with_connection_name(LongString::from("plextrac-bridge"));
    let connecting = Connection::connector(uris[host].clone(), runtime, secure, properties);
    let connected = match timeout(ATTEMPT, connecting).await {
        Ok(connected) => connected.map_err(ConnectFailure::Refused),
        Err(_) => Err(ConnectFailure::Silent),
    };
    (Some(host), connected)
}

fn failed_in_tls(error: &io::Error) -> bool {
    // A refused client certificate shows after the handshake, as TLS 1.3 has it.
    error.get_ref().is_some_and(|error| error.is::<TlsError>() || error.is::<rustls::Error>())
}

/// The reason why there is no connection, and what to do about it.
fn explain(error: &lapin::Error, user: &str) -> (ErrorKind, String) {
    match error.kind() {
        lapin::ErrorKind::IOError(error) if failed_in_tls(error) => {
            let text = format!(
                "the TLS handshake failed: {error}; check `ca_file`, `certificate_file`, the port and the host's name"
            );
            (ErrorKind::Tls, text)
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
                AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => {
                    (ErrorKind::Authentication, format!("{said}; check the permissions of `{user}`"))
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
