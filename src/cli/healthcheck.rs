//! `healthcheck`: asks the admin port, for images without a shell. It judges the bridge alone, so that it needs neither
//! settings without mistakes nor certificates.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::settings::{Flags, Layers};
use clap::Args;

use crate::cli::client::local;
use crate::cli::{self, CommandResult, exit, say};

/// The time limit for the connection, whatever the number of addresses, and for each part of the answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The least time for one of several addresses.
const SHORTEST: Duration = Duration::from_millis(100);

/// More than the admin port answers.
const LONGEST_ANSWER: u64 = 1 << 20;

#[derive(Debug, Args)]
pub(super) struct HealthcheckOptions {
    /// Check whether events can be accepted, not only whether the bridge is alive
    #[arg(long)]
    ready: bool,
    /// Address of the admin port [default: `admin.listen` of the settings, as far as they can be read]
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
}

pub(super) fn run(flags: &Flags, options: &HealthcheckOptions) -> CommandResult {
    let (text, problems) = match &options.address {
        Some(address) => (address.clone(), Vec::new()),
        None => configured(flags)?,
    };
    let unusable = |error: &dyn std::fmt::Display| {
        cli::failed(format_args!("{text:?} is not an address ({error}); give --address, such as 127.0.0.1:8081"))
    };
    let resolved = text.to_socket_addrs().map_err(|error| unusable(&error))?;
    let addresses: Vec<SocketAddr> = resolved.flat_map(local).collect();
    if addresses.is_empty() {
        return Err(unusable(&"the name has no address"));
    }
    let path = if options.ready { "/readyz" } else { "/livez" };
    match get(&addresses, path) {
        Ok((is_good, body)) => {
            say(body.trim_end());
            Ok(exit(is_good))
        }
        Err(error) => {
            problems.iter().for_each(cli::warn);
            Err(cli::failed(format_args!("{error}; is the bridge running with these settings?")))
        }
    }
}

/// `admin.listen`, and what of the settings could not be read.
fn configured(flags: &Flags) -> Result<(String, Vec<String>), ExitCode> {
    let (settings, problems) = Layers::as_far_as_readable(flags);
    let Some(listen) = settings.text(&["admin", "listen"]) else {
        return Err(cli::failed("the admin port is off (`admin.listen` is empty), so there is nothing to ask"));
    };
    Ok((listen, problems))
}

/// Asks for a page at the first of these addresses that can be connected to: whether it was answered 200, and its text.
fn get(addresses: &[SocketAddr], path: &str) -> Result<(bool, String), String> {
    let deadline = Instant::now() + TIMEOUT;
    let mut failures = Vec::new();
    for (at, address) in addresses.iter().enumerate() {
        let failure = |error| format!("http://{address}{path}: {error}");
        // One that gives no answer leaves time for the others.
        let left = u32::try_from(addresses.len() - at).unwrap_or(u32::MAX);
        let share = deadline.saturating_duration_since(Instant::now()).max(SHORTEST) / left;
        match TcpStream::connect_timeout(address, share) {
            Ok(stream) => return ask(stream, address, path).map_err(failure),
            Err(error) => failures.push(failure(error)),
        }
    }
    Err(failures.join("; "))
}

fn ask(mut stream: TcpStream, address: &SocketAddr, path: &str) -> io::Result<(bool, String)> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(LONGEST_ANSWER).read_to_end(&mut answer).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::other(format!("no answer within {TIMEOUT:?}")),
        _ => error,
    })?;
    let answer = String::from_utf8_lossy(&answer);
    let parsed = answer.split_once("\r\n\r\n").filter(|(head, _)| head.starts_with("HTTP/1."));
    let (head, body) = parsed.ok_or_else(|| io::Error::other("the answer is not HTTP"))?;
    Ok((head.split(' ').nth(1) == Some("200"), body.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn asks_the_first_address_that_can_be_connected_to() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap();
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let nowhere = [free(), free()];
        let answering = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 256];
            assert!(stream.read(&mut request).unwrap() > 0);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nlive\n").unwrap();
        });
        assert_eq!(get(&[nowhere[0], nowhere[1], there], "/livez"), Ok((true, "live\n".to_owned())));
        answering.join().unwrap();
        let failed = get(&nowhere, "/livez").unwrap_err();
        let both = nowhere.map(|address| format!("http://{address}/livez: "));
        assert!(failed.starts_with(&both[0]) && failed.contains(&format!("; {}", both[1])), "{failed}");
    }

    #[test]
    fn asks_both_families_where_a_wildcard_of_ipv6_is_listened_on() {
        let asked =
            |listen: &str| local(listen.parse().unwrap()).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(asked("[::]:8081"), ["[::1]:8081", "127.0.0.1:8081"]);
        assert_eq!(asked("0.0.0.0:8081"), ["127.0.0.1:8081"]);
        assert_eq!(asked("192.0.2.1:8081"), ["192.0.2.1:8081"]);
    }
}
