//! Chooses the address of a connection: hosts in turn, a second for each address, the next attempt starts elsewhere.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::FutureExt as _;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::timeout;

use crate::brokers::{ErrorKind, Finding};
use crate::process::failpoint;

/// An address that swallows what is sent to it must not use up the time of those that answer.
const PER_ADDRESS: Duration = Duration::from_secs(1);

/// A resolver that gives no answer must not hold a connect for ever.
const RESOLVE: Duration = Duration::from_secs(5);

/// A kind of failure, and its text with what to do about it.
pub(in crate::brokers) type ConnectFailure = (ErrorKind, String);

/// A TCP connection, and which host it leads to.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::brokers) struct Reached<S> {
    pub(in crate::brokers) host: usize,
    pub(in crate::brokers) stream: S,
}

/// The addresses of a host.
///
/// # Errors
/// The name is unknown, or not resolved in time.
pub(in crate::brokers) async fn resolve(name: String, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Some(addresses) = failpoint::addresses("dial.resolve") {
        return Ok(addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect());
    }
    let found = timeout(RESOLVE, tokio::net::lookup_host((name, port))).await;
    let found = found.map_err(|_| io::Error::other("the name is not resolved in time"))??;
    Ok(found.collect())
}

/// Opens a connection to the first address that answers, from the host whose turn it is. `Err`: why none did, sorted, so
/// that two attempts that fail alike read alike.
pub(in crate::brokers) async fn reach<S, R, C>(
    hosts: &[(String, u16)],
    turn: usize,
    resolve: impl Fn(String, u16) -> R,
    connect: impl Fn(SocketAddr) -> C,
) -> Result<Reached<S>, Vec<String>>
where
    R: Future<Output = io::Result<Vec<SocketAddr>>>,
    C: Future<Output = io::Result<S>>,
{
    let mut failures = Vec::new();
    for host in (0..hosts.len()).map(|step| turn.wrapping_add(step) % hosts.len()) {
        let (name, port) = &hosts[host];
        let mut addresses = match resolve(name.clone(), *port).await {
            Ok(addresses) => addresses,
            Err(error) => {
                failures.push(format!("{name}: {error}"));
                continue;
            }
        };
        let first = turn / hosts.len() % addresses.len().max(1);
        addresses.rotate_left(first);
        for address in addresses {
            match timeout(PER_ADDRESS, connect(address)).await {
                Ok(Ok(stream)) => return Ok(Reached { host, stream }),
                Ok(Err(error)) => failures.push(format!("{address}: {error}")),
                Err(_) => failures.push(format!("{address}: no answer within {} s", PER_ADDRESS.as_secs())),
            }
        }
    }
    failures.sort_unstable();
    Err(failures)
}

/// Makes attempts one after the other, until one succeeds: the next begins when one has failed, and beside those that have
/// no end after a second, so that each has its own time. Returns the place of the one that succeeded, and all failures by
/// their places.
pub(in crate::brokers) async fn first<T, E>(
    attempts: impl IntoIterator<Item: Future<Output = Result<T, E>>>,
) -> (Option<(usize, T)>, BTreeMap<usize, E>) {
    let mut waiting = attempts.into_iter().enumerate();
    let (mut begun, mut failures) = (FuturesUnordered::new(), BTreeMap::new());
    loop {
        begun.extend(waiting.next().map(|(place, attempt)| attempt.map(move |end| (place, end))));
        match timeout(PER_ADDRESS, begun.next()).await {
            Ok(Some((place, Ok(made)))) => return (Some((place, made)), failures),
            Ok(Some((place, Err(error)))) => {
                failures.insert(place, error);
            }
            Ok(None) => return (None, failures),
            Err(_) => {}
        }
    }
}

/// The nodes of a list that take no connection, each with the reason, where there are several.
pub(in crate::brokers) async fn silent(hosts: &[(String, u16)]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for host in hosts.iter().filter(|_| hosts.len() > 1) {
        let reached = reach(std::slice::from_ref(host), 0, resolve, tokio::net::TcpStream::connect).await;
        if let Err(failures) = reached {
            let (name, port) = host;
            let text = format!("{name}:{port} does not answer, the others are used: {}", failures.join("; "));
            findings.push(Finding::Warning(text));
        }
    }
    findings
}

/// An error of TLS without the seconds since a certificate expired: each attempt would be a new reason.
pub(in crate::brokers) fn without_time(text: &str) -> &str {
    text.split(": verification time").next().unwrap_or(text)
}

/// The turn of the next attempt: it starts behind the host that was reached, or one further where none was.
pub(in crate::brokers) fn next(turn: usize, hosts: usize, reached: Option<usize>) -> usize {
    let steps = reached.map_or(0, |host| (host + hosts - turn % hosts) % hosts);
    turn.wrapping_add(steps + 1)
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    fn hosts(names: &[&str]) -> Vec<(String, u16)> {
        names.iter().map(|name| ((*name).to_owned(), 1)).collect()
    }

    /// `a` has the addresses 10.0.0.1 and 10.0.0.2, any other name is unknown.
    async fn resolve(name: String, port: u16) -> io::Result<Vec<SocketAddr>> {
        match name.as_str() {
            "a" => Ok([1, 2].map(|last| SocketAddr::from(([10, 0, 0, last], port))).to_vec()),
            "b" => Ok(vec![SocketAddr::from(([10, 0, 0, 3], port))]),
            _ => Err(io::Error::other("unknown name")),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn passes_over_an_address_that_does_not_answer_within_a_second() {
        let began = tokio::time::Instant::now();
        let silent = |address: SocketAddr| async move {
            if address.ip().to_string() == "10.0.0.1" {
                std::future::pending::<()>().await;
            }
            Ok(address)
        };
        let reached = reach(&hosts(&["a"]), 0, resolve, silent).await.unwrap();
        assert_eq!((reached.host, reached.stream.to_string().as_str()), (0, "10.0.0.2:1"));
        assert_eq!(began.elapsed(), PER_ADDRESS);
        let reached = reach(&hosts(&["a"]), 1, resolve, silent).await.unwrap();
        assert_eq!(reached.stream.to_string(), "10.0.0.2:1", "the next attempt starts at the other address");
        assert_eq!(began.elapsed(), PER_ADDRESS);
    }

    #[tokio::test(start_paused = true)]
    async fn tries_every_host_and_says_why_none_answers() {
        let tried = Mutex::new(Vec::new());
        let refusing = |address: SocketAddr| {
            tried.lock().push(address.ip().to_string());
            async { Err::<(), _>(io::Error::from(io::ErrorKind::ConnectionRefused)) }
        };
        let failures = reach(&hosts(&["a", "x", "b"]), 2, resolve, refusing).await.unwrap_err();
        assert_eq!(*tried.lock(), ["10.0.0.3", "10.0.0.1", "10.0.0.2"], "from the host whose turn it is");
        let refused = |last| format!("10.0.0.{last}:1: connection refused");
        assert_eq!(failures, [refused(1), refused(2), refused(3), "x: unknown name".to_owned()]);
    }

    #[tokio::test(start_paused = true)]
    async fn leaves_each_attempt_its_time_and_begins_the_next_beside_it_after_a_second() {
        let began = tokio::time::Instant::now();
        // Seconds, and whether it succeeds then.
        let attempts = |ends: &'static [(u64, bool)]| {
            ends.iter().map(|(seconds, succeeds)| async move {
                tokio::time::sleep(Duration::from_secs(*seconds)).await;
                if *succeeds { Ok(()) } else { Err(*seconds) }
            })
        };
        let (made, failures) = first(attempts(&[(4, true), (2, false), (60, true)])).await;
        assert_eq!((made, failures), (Some((0, ())), BTreeMap::from([(1, 2)])));
        assert_eq!(began.elapsed(), Duration::from_secs(4));
        let (made, failures) = first(attempts(&[(60, true), (0, false), (0, true)])).await;
        assert_eq!((made, failures), (Some((2, ())), BTreeMap::from([(1, 0)])));
        assert_eq!(began.elapsed(), Duration::from_secs(5));
        let (made, failures) = first(attempts(&[(3, false), (1, false)])).await;
        assert_eq!((made, failures), (None, BTreeMap::from([(0, 3), (1, 1)])));
        assert_eq!(first(attempts(&[])).await, (None, BTreeMap::new()));
    }

    #[test]
    fn reads_alike_each_time_that_an_expired_certificate_is_refused() {
        use rustls::CertificateError::ExpiredContext;
        use rustls::pki_types::UnixTime;
        let text = |now| {
            let (time, not_after) = [now, 5].map(|at| UnixTime::since_unix_epoch(Duration::from_secs(at))).into();
            rustls::Error::InvalidCertificate(ExpiredContext { time, not_after }).to_string()
        };
        assert_ne!(text(7), text(8));
        assert_eq!(without_time(&text(7)), "invalid peer certificate: certificate expired");
        assert_eq!(without_time("else"), "else");
    }

    #[test]
    fn starts_behind_the_host_that_was_reached_last() {
        assert_eq!(next(0, 3, Some(0)) % 3, 1);
        assert_eq!(next(1, 3, Some(0)) % 3, 1);
        assert_eq!(next(4, 3, Some(2)) % 3, 0);
        assert_eq!(next(2, 3, None) % 3, 0);
        assert_eq!(next(7, 1, Some(0)), 8);
    }
}
