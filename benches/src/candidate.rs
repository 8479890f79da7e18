//! The programs that are measured, and how each is started.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Deserialize;
use tempfile::TempDir;

use crate::baseline::Work;
use crate::brokers::{Brokers, Kind};
use crate::events::{PATH, SECRET};
use crate::process::{Process, port, wait_until_up};

/// One program in one configuration.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// As in the tables.
    pub name: String,
    /// What is started.
    pub program: Program,
    /// How much is measured.
    pub depth: Depth,
}

/// What is started.
#[derive(Clone, Debug)]
pub enum Program {
    /// A server of this harness.
    Baseline(Work),
    /// The bridge.
    Bridge {
        /// Which build of it.
        build: PathBuf,
        /// The table of its broker.
        broker: Kind,
        /// `ack`.
        ack: &'static str,
        /// `publish.headers`.
        headers: &'static str,
        /// What is not as it comes.
        tweak: Tweak,
    },
    /// A line of the table of peers.
    Peer(Peer),
}

/// What of the bridge is not as it comes.
#[derive(Clone, Debug, Default)]
pub struct Tweak {
    /// More lines of `[ingress]`.
    pub ingress: String,
    /// More lines at the end of the broker's table, and more tables.
    pub tables: String,
    /// It runs on one core.
    pub one_core: bool,
}

/// How much of a candidate is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Everything: load, latency, and both with the broker away.
    Whole,
    /// Load and latency alone.
    Load,
}

/// Any other program: a line of `peers.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// As in the tables.
    pub name: String,
    /// Run by `sh -c`. `$PORT`, `$SECRET` and the lines of `tests/brokers/up.sh` (`$KAFKA_BOOTSTRAP`, `$RABBITMQ_URL`,
    /// `$NATS_URL`) are set.
    pub command: String,
    /// Where it takes webhooks.
    pub path: String,
    /// Where its messages are counted: in the bridge's topic, queue or stream.
    pub broker: Option<Kind>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Peers {
    #[serde(default)]
    peer: Vec<Peer>,
}

/// Reads the table of peers.
pub fn peers(file: &Path) -> Result<Vec<Peer>> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    Ok(toml::from_str::<Peers>(&text).with_context(|| format!("read {}", file.display()))?.peer)
}

/// A program that runs.
pub struct Running {
    /// Its process.
    pub process: Process,
    /// Where it takes webhooks.
    pub address: SocketAddr,
    /// The address of the bridge's metrics.
    pub admin: Option<SocketAddr>,
    /// From the start of the process until it was ready.
    pub started_in: Duration,
    /// Its directories, removed at the end.
    home: TempDir,
}

impl Running {
    /// What it printed.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.home.path().join(LOG)).unwrap_or_default()
    }
}

const LOG: &str = "log";

/// What everything is compared with.
pub const REFERENCE: &str = "hyper + HMAC + JSON";

impl Candidate {
    /// A server of this harness.
    pub fn baseline(name: &str, work: Work) -> Self {
        Self { name: name.to_owned(), program: Program::Baseline(work), depth: Depth::Whole }
    }

    /// What everything is compared with.
    pub fn reference() -> Self {
        Self::baseline(REFERENCE, Work::Checked)
    }

    /// Where its messages are counted.
    #[must_use]
    pub fn broker(&self) -> Option<Kind> {
        match &self.program {
            Program::Baseline(_) => None,
            Program::Bridge { broker, .. } => Some(*broker),
            Program::Peer(peer) => peer.broker,
        }
    }

    /// The path that it takes webhooks at.
    #[must_use]
    pub fn path(&self) -> &str {
        match &self.program {
            Program::Peer(peer) => &peer.path,
            _ => PATH,
        }
    }

    /// Starts it and waits until it is ready.
    pub fn start(&self, brokers: &Brokers) -> Result<Running> {
        let home = tempfile::tempdir()?;
        let (mut command, address, ready) = self.command(brokers, home.path())?;
        let log = home.path().join(LOG);
        let began = Instant::now();
        let process = Process::start(&mut command, &log)?;
        let (up, admin) = match ready {
            Ready::Answers(admin) => (wait_until_up(admin, Some("/readyz")), Some(admin)),
            Ready::Listens => (wait_until_up(address, None), None),
        };
        up.with_context(|| format!("{}: {}", self.name, fs::read_to_string(&log).unwrap_or_default()))?;
        Ok(Running { process, address, admin, started_in: began.elapsed(), home })
    }

    fn command(&self, brokers: &Brokers, home: &Path) -> Result<(Command, SocketAddr, Ready)> {
        let address = SocketAddr::from(([127, 0, 0, 1], port()?));
        Ok(match &self.program {
            Program::Baseline(work) => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("serve").arg(address.to_string());
                command.arg(if *work == Work::Bare { "bare" } else { "checked" });
                (command, address, Ready::Listens)
            }
            Program::Bridge { build, broker, ack, headers, tweak } => {
                let admin = SocketAddr::from(([127, 0, 0, 1], next_port(address.port())?));
                let file = settings(home, address, admin, &brokers.table(*broker)?, (ack, headers), tweak)?;
                let mut command = Command::new(if tweak.one_core { Path::new("taskset") } else { build });
                if tweak.one_core {
                    command.args(["--cpu-list", "0"]).arg(build);
                }
                command.arg("--config").arg(file).arg("serve");
                (command, address, Ready::Answers(admin))
            }
            Program::Peer(peer) => {
                let mut command = Command::new("sh");
                // The shell makes way: what is measured is the program.
                command.arg("-c").arg(format!("exec {}", peer.command)).current_dir(home);
                command.env("PORT", address.port().to_string()).env("SECRET", SECRET);
                command.envs(brokers.facts());
                (command, address, Ready::Listens)
            }
        })
    }
}

enum Ready {
    Answers(SocketAddr),
    Listens,
}

fn next_port(taken: u16) -> Result<u16> {
    (taken + 1..32_000)
        .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .context("no free port")
}

fn settings(
    home: &Path,
    listen: SocketAddr,
    admin: SocketAddr,
    broker: &str,
    (ack, headers): (&str, &str),
    tweak: &Tweak,
) -> Result<PathBuf> {
    let state = home.join("state");
    let text = format!(
        "ack = \"{ack}\"\nstate_directory = \"{}\"\n\
         [ingress]\nlisten = \"{listen}\"\n{}\n[admin]\nlisten = \"{admin}\"\n[log]\nlevel = \"warn\"\n\
         [sources.plextrac]\nsecret = \"{SECRET}\"\n[publish]\nheaders = \"{headers}\"\n{broker}{}",
        state.display(),
        tweak.ingress,
        tweak.tables
    );
    let file = home.join("bridge.toml");
    fs::write(&file, text)?;
    Ok(file)
}
