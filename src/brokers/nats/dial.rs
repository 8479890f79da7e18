//! Makes a connection: servers in turn, the addresses of each, the login, TLS; and the meaning of errors.
//!
//! The library resolves names by itself and gives each address all of its time, one after the other. So the address is
//! chosen here, and a name with several is given to the library as one of them; certificates are checked for the name all
//! the same. With TLS the name itself comes first: see [`reach`].

use std::collections::BTreeMap;
use std::error::Error;
use std::future::ready;
use std::net::SocketAddr;
use std::time::Duration;
use std::{io, iter};

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, ServerAddr};
use futures_util::FutureExt as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::timeout;
use url::Url;

use super::connection::NatsConnection;
use super::login::Login;
use super::settings::{Settings, host};
use super::tls;
use crate::brokers::dial::{self, ConnectFailure, Reached};
use crate::brokers::{ConnectError, ErrorKind, Finding};
use crate::settings::redact;

/// For TCP, TLS and login at one address.
const DIAL: Duration = Duration::from_secs(5);

/// For all of a server: its name, and addresses that do not answer.
const SERVER: Duration = Duration::from_secs(10);

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
    let servers = &settings.servers;
    let (first, round) = (*turn, *turn / servers.len());
    let place = |step: usize| first.wrapping_add(step) % servers.len();
    let attempts = (0..servers.len()).map(|step| open(settings, &servers[place(step)], window, round));
    let (opened, failures) = dial::first(attempts).await;
    // In the order of the list: two attempts that fail alike read alike.
    let failures: BTreeMap<usize, ConnectError> =
        failures.into_iter().map(|(step, failure)| (place(step), failure)).collect();
    if let Some((step, connection)) = opened {
        *turn = dial::next(first, servers.len(), Some(place(step)));
        let refusing = failures.into_values().filter(|failure| failure.kind != ErrorKind::Connect);
        let finding = |failure| Finding::Warning(format!("{failure}; the other servers are used"));
        return Ok((connection, refusing.map(finding).collect()));
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
    let connected = timeout(SERVER, reach(settings, server, window, round)).await;
    let connected =
        connected.unwrap_or_else(|_| Err((ErrorKind::Connect, format!("no answer within {} s", SERVER.as_secs()))));
    let (client, events) = connected.map_err(failed)?;
    NatsConnection::new(client, events, at).await
}

/// Connects to one address of the server's name. With TLS the library gets the name first: the greeting names the host
/// only then, and a server may have more than one certificate, or a front end others behind it. The library starts at the
/// first address each time, so every other round begins with the address whose turn it is.
async fn reach(
    settings: &Settings,
    server: &Url,
    window: usize,
    round: usize,
) -> Result<DialedClient, ConnectFailure> {
    let is_alone = settings.servers.len() == 1;
    let is_tls = is_tls(settings, server);
    let turn = if is_tls { round.div_ceil(2) } else { round };
    let one = address(server, is_alone, turn).await.map_err(|text| (ErrorKind::Connect, text))?;
    let by_name = || connect(settings, server, None, window);
    let Some(address) = one else { return by_name().await };
    let by_address = || connect(settings, server, Some(address), window);
    if !is_tls {
        return match by_address().await {
            // The server requires TLS.
            Err((ErrorKind::Tls, _)) => by_name().await,
            connected => connected,
        };
    }
    let mut attempts = [by_name().boxed(), by_address().boxed()];
    attempts.rotate_left(round % 2);
    // A login that is refused is refused by another way as well.
    let decided = attempts.map(|attempt| {
        attempt.map(|end| match end {
            Err((ErrorKind::Authentication, _)) | Ok(_) => Ok(end),
            Err(failure) => Err(failure),
        })
    });
    let (end, failures) = dial::first(decided).await;
    if let Some((_, end)) = end {
        return end;
    }
    // What was said of a certificate, before what was not answered.
    let failure = failures.into_values().min_by_key(|(kind, _)| *kind != ErrorKind::Tls);
    Err(failure.expect("an attempt that has not succeeded has failed"))
}

/// Whether the connection begins with TLS, as far as the settings say.
fn is_tls(settings: &Settings, server: &Url) -> bool {
    server.scheme() == "tls" || settings.tls_first || requires_tls(settings)
}

fn requires_tls(settings: &Settings) -> bool {
    settings.tls.ca.is_some() || settings.tls.client.is_some()
}

/// The address of this turn among those of the server's name; none where the library finds the only one there is.
async fn address(server: &Url, is_alone: bool, turn: usize) -> Result<Option<SocketAddr>, String> {
    let host = host(server);
    let found =
        dial::resolve(host.0.clone(), host.1).await.map_err(|error| format!("cannot find the host: {error}"))?;
    if is_alone && found.len() == 1 {
        return Ok(None);
    }
    let known = |_, _| ready(Ok(found.clone()));
    let probe = |address| async move { TcpStream::connect(address).await.map(|_| address) };
    let reached = dial::reach(&[host], turn, known, probe).await;
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
    let is_tls = is_tls(settings, server);
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
        .require_tls(requires_tls(settings))
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
        _ if sources(error).any(is_of_tls) || (tls && cause.contains("tls")) => (ErrorKind::Tls, tls_text(&cause)),
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
fn is_of_tls(error: &(dyn Error + 'static)) -> bool {
    let within = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    error.is::<rustls::Error>() || within.is_some_and(<dyn Error + Send + Sync>::is::<rustls::Error>)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::settings::testing;

    /// The URL of a server that says nothing for so long, and then takes any login.
    async fn server(silence: Duration) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("nats://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    sleep(silence).await;
                    let mut buffer = [0; 4096];
                    let mut said = client.write_all(b"INFO {\"headers\":true,\"max_payload\":1048576}\r\n").await;
                    while said.is_ok() && matches!(client.read(&mut buffer).await, Ok(1..)) {
                        said = client.write_all(b"PONG\r\n").await;
                    }
                });
            }
        });
        url
    }

    /// Connects to servers that are silent for so many seconds each; which one took it, and after what time.
    async fn dialed(silences: &[u64]) -> (usize, Duration) {
        let mut urls = Vec::new();
        for silence in silences {
            urls.push(server(Duration::from_secs(*silence)).await);
        }
        let (settings, problems) =
            testing::read(&["broker", "nats"], &format!("servers = {urls:?}"), Settings::read);
        assert!(problems.errors.is_empty(), "{problems:?}");
        let began = Instant::now();
        let (connection, _) = dial(&settings, 1, &mut 0).await.unwrap();
        let place = urls.iter().position(|url| connection.at.trim_end_matches('/') == url);
        (place.unwrap(), began.elapsed())
    }

    #[tokio::test]
    async fn gives_a_slow_server_its_time_however_many_there_are() {
        let (_, took) = dialed(&[2, 2, 2]).await;
        assert!(took >= Duration::from_secs(2));
    }

    #[tokio::test]
    async fn does_not_wait_long_for_a_server_that_says_nothing_while_another_answers() {
        let (place, took) = dialed(&[60, 0]).await;
        assert!(place == 1 && took < DIAL, "{place} after {took:?}");
    }
}
