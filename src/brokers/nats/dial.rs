//! Makes a connection: servers in turn, the addresses of each, the login, TLS; and the meaning of errors.
//!
//! The library resolves names by itself and gives each address all of its time. So the address is chosen here, and a
//! name with several is given to the library as one of them; certificates are checked for the name all the same.

use std::collections::BTreeMap;
use std::error::Error;
use std::future::ready;
use std::net::SocketAddr;
use std::time::Duration;
use std::{io, iter};

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, ServerAddr};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{Instant, timeout};
use url::Url;

use super::connection::NatsConnection;
use super::login::Login;
use super::settings::{Settings, host};
use super::tls;
use crate::brokers::dial::{self, ConnectFailure, Reached};
use crate::brokers::{ConnectError, ErrorKind, Finding};
use crate::settings::redact;

/// For all servers together; each gets an equal share of the remaining time.
const DIAL: Duration = Duration::from_secs(5);

/// A stopped server is noticed at the third unanswered one.
const PING: Duration = Duration::from_secs(3);

/// Events kept until they are looked at: twice what the library's own queue takes.
const EVENTS: usize = 256;

/// A client of the library, and what it reports.
type DialedClient = (Client, Receiver<Event>);

/// Connects to the first server that takes us, from the one whose turn it is on, for a window of so many messages; with a
/// finding for each that refuses what this one takes. The next attempt starts behind it.
pub(super) async fn dial(
    settings: &Settings,
    window: usize,
    turn: &mut usize,
) -> Result<(NatsConnection, Vec<Finding>), ConnectError> {
    let deadline = Instant::now() + DIAL;
    let servers = &settings.servers;
    let (first, round) = (*turn, *turn / servers.len());
    // In the order of the list: two attempts that fail alike read alike.
    let mut failures: BTreeMap<usize, ConnectError> = BTreeMap::new();
    for tried in 0..servers.len() {
        let place = first.wrapping_add(tried) % servers.len();
        let server = &servers[place];
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(servers.len() - tried).unwrap_or(u32::MAX);
        let opened = timeout(share, open(settings, server, window, round)).await.unwrap_or_else(|_| {
            let text = format!("{}: no answer within {:.1} s", redact(server.as_str()), share.as_secs_f32());
            Err(ConnectError::new(ErrorKind::Connect, text))
        });
        match opened {
            Ok(connection) => {
                *turn = dial::next(first, servers.len(), Some(place));
                let refusing = failures.into_values().filter(|failure| failure.kind != ErrorKind::Connect);
                let finding = |failure| Finding::Warning(format!("{failure}; the other servers are used"));
                return Ok((connection, refusing.map(finding).collect()));
            }
            Err(error) => failures.insert(place, error),
        };
    }
    *turn = dial::next(first, servers.len(), None);
    let kinds = [ErrorKind::Authentication, ErrorKind::Tls];
    let kind = kinds.into_iter().find(|kind| failures.values().any(|failure| failure.kind == *kind));
    let texts: Vec<String> = failures.into_values().map(|failure| failure.text).collect();
    Err(ConnectError::new(kind.unwrap_or(ErrorKind::Connect), texts.join("; ")))
}

async fn open(
    settings: &Settings,
    server: &Url,
    window: usize,
    round: usize,
) -> Result<NatsConnection, ConnectError> {
    let at = redact(server.as_str());
    let failed = |(kind, text): ConnectFailure| ConnectError::new(kind, format!("{at}: {text}"));
    let is_alone = settings.servers.len() == 1;
    let one = address(server, is_alone, round).await.map_err(|text| failed((ErrorKind::Connect, text)))?;
    let (client, events) = match connect(settings, server, one, window).await {
        // Without a name in the handshake a server may have shown another certificate than it has for that name.
        Err((ErrorKind::Tls, _)) if one.is_some() => connect(settings, server, None, window).await,
        connected => connected,
    }
    .map_err(failed)?;
    NatsConnection::new(client, events, at).await
}

/// The address to take among those of the server's name; none where the library finds the only one there is.
async fn address(server: &Url, is_alone: bool, round: usize) -> Result<Option<SocketAddr>, String> {
    let host = host(server);
    let found =
        dial::resolve(host.0.clone(), host.1).await.map_err(|error| format!("cannot find the host: {error}"))?;
    if is_alone && found.len() == 1 {
        return Ok(None);
    }
    let known = |_, _| ready(Ok(found.clone()));
    let probe = |address| async move { TcpStream::connect(address).await.map(|_| address) };
    let reached = dial::reach(&[host], round, known, probe).await;
    let Reached { stream: address, .. } = reached.map_err(|failures| failures.join("; "))?;
    Ok((found.len() > 1).then_some(address))
}

/// Connects and logs in, to one address of the server's name where one is given.
async fn connect(
    settings: &Settings,
    server: &Url,
    one: Option<SocketAddr>,
    window: usize,
) -> Result<DialedClient, ConnectFailure> {
    let (sender, events) = channel(EVENTS);
    let mut options = options(settings, window, sender).await?;
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
    events: Sender<Event>,
) -> Result<ConnectOptions, ConnectFailure> {
    let capacity = 2 * window + 64;
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
            // What does not fit is dropped, as the library does.
            let _ = events.try_send(event);
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
fn explain(error: &async_nats::ConnectError, tls: bool) -> ConnectFailure {
    let cause = sources(error).last().map_or_else(|| error.kind().to_string(), ToString::to_string);
    let refused = "the server refuses the credentials; check username and password, token, credentials_file or nkey_seed_file";
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation => (ErrorKind::Authentication, refused.to_owned()),
        ConnectErrorKind::Authentication => {
            (ErrorKind::Authentication, format!("cannot sign with the credentials: {cause}"))
        }
        ConnectErrorKind::Tls => (ErrorKind::Tls, tls_text(&cause)),
        ConnectErrorKind::Dns => (ErrorKind::Connect, format!("cannot find the host: {cause}")),
        ConnectErrorKind::TimedOut => (ErrorKind::Connect, "no answer in time".to_owned()),
        _ if sources(error).any(is_tls) || (tls && cause.contains("tls")) => (ErrorKind::Tls, tls_text(&cause)),
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

/// The errors behind this one, down to the innermost.
fn sources(error: &async_nats::ConnectError) -> impl Iterator<Item = &(dyn Error + 'static)> {
    iter::successors(error.source(), |error| (*error).source())
}

/// Whether TLS is at fault: the library reports its errors as those of the socket.
fn is_tls(error: &(dyn Error + 'static)) -> bool {
    let within = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    error.is::<rustls::Error>() || within.is_some_and(<dyn Error + Send + Sync>::is::<rustls::Error>)
}
