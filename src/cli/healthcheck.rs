//! `healthcheck`: asks the admin port, for images without a shell. It judges the bridge alone, so that it needs neither
//! settings without mistakes nor certificates.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::process::ExitCode;
use std::time::Duration;

use crate::settings::{Flags, Layers};
use clap::Args;

use crate::cli::client::local;
use crate::cli::{self, CommandResult, exit, say};

/// The time limit for the connection, and for each part of the answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// More than the admin port answers.
const LONGEST_ANSWER: u64 = 1 << 20;

#[derive(Debug, Args)]
pub(super) struct HealthcheckOptions {
    /// Ask whether events can be accepted, not only whether the bridge is alive
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
        cli::failed(format_args!("{text:?} is no address to ask ({error}); give --address, such as 127.0.0.1:8081"))
    };
    let resolved = text.to_socket_addrs().map_err(|error| unusable(&error))?;
    let address = local(resolved.into_iter().next().ok_or_else(|| unusable(&"the name has no address"))?);
    let path = if options.ready { "/readyz" } else { "/livez" };
    match get(address, path) {
        Ok((is_good, body)) => {
            say(body.trim_end());
            Ok(exit(is_good))
        }
        Err(error) => {
            problems.iter().for_each(cli::warn);
            let url = format!("http://{address}{path}");
            Err(cli::failed(format_args!("{url}: {error}; is the bridge running with these settings?")))
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

/// Asks for a page: whether it was answered 200, and its text.
fn get(address: SocketAddr, path: &str) -> io::Result<(bool, String)> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
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
