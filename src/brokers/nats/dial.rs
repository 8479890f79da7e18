//! Makes a connection: servers in turn, the addresses of each, the login, TLS; and the meaning of errors.
//!
//! The library resolves names by itself and gives each address all of its time. So the address is chosen here, and a
//! name with several is given to the library as one of them; certificates are checked for the name all the same.

use std::error::Error as _;
use std::future::ready;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, ConnectOptions, ServerAddr};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use url::Url;

use super::connection::NatsConnection;
use super::events::Events;
use super::login::Login;
use super::settings::{DEFAULT_PORT, Settings};
use super::tls;
use crate::brokers::dial::{self, Reached};
use crate::brokers::{ConnectError, ErrorKind};
use crate::settings::redact;

/// For all servers together; each gets an equal share of the remaining time.
const DIAL: Duration = Duration::from_secs(5);

/// A stopped server is noticed at the third unanswered one.
const PING: Duration = Duration::from_secs(3);

/// The server of the list that the next attempt starts with, by its place; shared with the connection that may move it.
#[derive(Clone, Debug, Default)]
pub(super) struct ServerTurn {
    server: Arc<AtomicUsize>,
    /// Rises with each attempt: the addresses of a name take turns.
    attempt: Arc<AtomicUsize>,
}

impl ServerTurn {
    fn get(&self) -> usize {
        self.server.load(Ordering::Relaxed)
    }

    pub(super) fn set(&self, place: usize) {
        self.server.store(place, Ordering::Relaxed);
    }
}

/// Connects to the first server that takes us, from the one whose turn it is on, for a window of so many messages.
pub(super) async fn dial(
    settings: &Settings,
    window: usize,
    turn: &ServerTurn,
) -> Result<NatsConnection, ConnectError> {
    let deadline = Instant::now() + DIAL;
    let mut failures: Vec<ConnectError> = Vec::new();
    let (servers, first) = (&settings.servers, turn.get());
    let attempt = turn.attempt.fetch_add(1, Ordering::Relaxed);
    for tried in 0..servers.len() {
        let place = (first + tried) % servers.len();
        let Some(server) = servers.get(place) else { continue };
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(servers.len() - tried).unwrap_or(u32::MAX);
        turn.set(place);
        match timeout(share, open(settings, server, window, (turn, attempt))).await {
            Ok(Ok(connection)) => {
                let refusing = failures.into_iter().filter(|failure| failure.kind != ErrorKind::Connect);
                return Ok(connection.after(refusing.map(|failure| failure.text).collect()));
            }
            Ok(Err(error)) => failures.push(error),
            Err(_) => {
                let text = format!("{}: no answer within {:.1} s", redact(server.as_str()), share.as_secs_f32());
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
    (turn, attempt): (&ServerTurn, usize),
) -> Result<NatsConnection, ConnectError> {
    let at = redact(server.as_str());
    let failed = |(kind, text): (ErrorKind, String)| ConnectError::new(kind, format!("{at}: {text}"));
    let alone = settings.servers.len() == 1;
    let one = address(server, alone, attempt).await.map_err(|text| failed((ErrorKind::Connect, text)))?;
    let (client, events) = match connect(settings, server, one, window).await {
        // Without a name in the handshake a server may have shown another certificate than it has for that name.
        Err((ErrorKind::Tls, _)) if one.is_some() => connect(settings, server, None, window).await,
        connected => connected,
    }
    .map_err(failed)?;
    let place = turn.get();
    NatsConnection::new(client, events, at, (turn.clone(), place)).await
}

/// The address to take among those of the server's name; none where the library finds the only one there is.
async fn address(server: &Url, alone: bool, attempt: usize) -> Result<Option<SocketAddr>, String> {
    let Some(host) = server.host_str() else { return Ok(None) };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = server.port().unwrap_or(DEFAULT_PORT);
    let found =
        dial::resolve(host.to_owned(), port).await.map_err(|error| format!("cannot find the host: {error}"))?;
    if alone && found.len() == 1 {
        return Ok(None);
    }
    let known = |_, _| ready(Ok(found.clone()));
    let probe = |address| async move { TcpStream::connect(address).await.map(|_| address) };
    let Reached { stream: address, .. } = dial::reach(&[(host.to_owned(), port)], attempt, known, probe)
        .await
        .map_err(|failures| failures.join("; "))?;
    Ok((found.len() > 1).then_some(address))
}

/// Connects and logs in, to one address of the server's name where one is given.
async fn connect(
    settings: &Settings,
    server: &Url,
    one: Option<SocketAddr>,
    window: usize,
) -> Result<(Client, Arc<Events>), (ErrorKind, String)> {
    let events = Arc::new(Events::default());
    let mut options = options(settings, window, &events).await?;
    let mut url = server.clone();
    if let Some(address) = one {
        let name = server.host_str().unwrap_or_default();
        let config = tls::config(&settings.tls, name).map_err(|text| (ErrorKind::Tls, text))?;
        options = options.tls_client_config(config);
        // It has a host, so it can have another one.
        let _ = url.set_ip_host(address.ip());
    }
    let address = ServerAddr::from_url(url).map_err(|error| (ErrorKind::Connect, error.to_string()))?;
    let is_tls = server.scheme() == "tls" || settings.tls_first;
    let client = options.connect(address).await.map_err(|error| explain(&error, is_tls))?;
    Ok((client, events))
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
        .custom_inbox_prefix(&settings.inbox_prefix)
        .require_tls(settings.tls.ca.is_some() || settings.tls.client.is_some())
        .event_callback(move |event| {
            events.take(event);
            ready(())
        });
    let options = if settings.tls_first { options.tls_first() } else { options };
    let options = match &settings.tls.ca {
        Some(ca) => options.add_root_certificates(ca.clone()),
        None => options,
    };
    let options = match &settings.tls.client {
        Some((certificate, key)) => options.add_client_certificate(certificate.clone(), key.clone()),
        None => options,
    };
    Ok(match &settings.login {
        Login::Anonymous => options,
        Login::Password(user, password) => options.user_and_password(user.clone(), password.reveal().to_owned()),
        Login::Seed(seed) => options.nkey(seed.reveal().to_owned()),
        Login::Token(token) => options.token(token.reveal().to_owned()),
        Login::Credentials(path) => options.credentials_file(path).await.map_err(|error| {
            (ErrorKind::Authentication, format!("cannot use the credentials file {}: {error}", path.display()))
        })?,
    })
}

/// The meaning of a failed attempt, and what to do.
fn explain(error: &async_nats::ConnectError, tls: bool) -> (ErrorKind, String) {
    let cause = cause(error);
    let refused = "the server refuses the credentials; check username and password, token, credentials_file or nkey_seed_file";
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
    let cause = dial::without_time(cause);
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
