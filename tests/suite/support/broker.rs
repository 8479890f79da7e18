//! Real brokers, started by `tests/brokers/up.sh`: one of each for all ordinary tests, and private ones for those
//! that kill or stop theirs. All end with this process.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use parking_lot::Mutex;

use super::wait::test_file;

/// The kind of broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Apache Kafka.
    Kafka,
    /// RabbitMQ.
    Rabbitmq,
    /// nats-server with JetStream.
    Nats,
}

impl Kind {
    /// As the scripts call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::Rabbitmq => "rabbitmq",
            Self::Nats => "nats",
        }
    }
}

/// Ports that were free a moment ago, in a row, below the ephemeral range: a client that reconnects to the port of a
/// stopped broker inside that range can be assigned it as its own and talk to itself.
pub(crate) fn ports(count: u16) -> u16 {
    // A broker that starts at this moment does not listen yet.
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock();
    for _ in 0..500 {
        let base = 20_000 + fastrand::u16(0..1490) * 8;
        let wanted = base..base + count;
        let taken: Result<Vec<_>, _> = wanted.clone().map(|port| TcpListener::bind(("127.0.0.1", port))).collect();
        if taken.is_ok() && given.range(wanted.clone()).next().is_none() {
            given.extend(wanted);
            return base;
        }
    }
    panic!("no free ports found");
}

/// A running broker.
#[derive(Debug)]
pub(crate) struct Broker {
    kind: Kind,
    home: PathBuf,
    asked: Vec<(String, String)>,
    facts: Mutex<HashMap<String, String>>,
}

impl Broker {
    /// Starts one; `asked` are variables of `up.sh`. It ends when it is dropped, or with this process.
    pub(crate) fn start(kind: Kind, base_port: u16, asked: &[(&str, String)]) -> Self {
        let home = home();
        let mut asked: Vec<_> = asked.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        asked.push((format!("{}_PORT", kind.name().to_uppercase()), base_port.to_string()));
        let broker = Self { kind, home, asked, facts: Mutex::default() };
        broker.up();
        broker
    }

    /// Starts it again after a kill, at the same address, with the same data; returns once it answers.
    pub(crate) fn up(&self) {
        let script = test_file("brokers/up.sh");
        let done = Command::new(&script)
            .arg(self.kind.name())
            .env("BROKERS_HOME", &self.home)
            .env("BROKERS_OWNER_PID", std::process::id().to_string())
            .envs(self.asked.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("{}: {error}", script.display()));
        let text = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{} does not start: {text}", self.kind.name());
        let facts = String::from_utf8_lossy(&done.stdout);
        let facts = facts.lines().filter_map(|line| line.split_once('='));
        *self.facts.lock() = facts.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    }

    /// One of the facts that `up.sh` prints.
    pub(crate) fn fact(&self, name: &str) -> String {
        let facts = self.facts.lock();
        facts.get(name).unwrap_or_else(|| panic!("up.sh printed no {name}: {facts:?}")).clone()
    }

    /// SIGKILL: a crash.
    pub(crate) fn kill(&self) {
        self.down(&["--kill"]);
    }

    /// SIGSTOP: it hangs, its sockets stay open.
    pub(crate) fn pause(&self) {
        self.signal("STOP");
    }

    /// SIGCONT.
    pub(crate) fn resume(&self) {
        self.signal("CONT");
    }

    /// Runs a tool of this RabbitMQ.
    pub(crate) fn rabbitmqctl(&self, arguments: &[&str]) {
        let tool = Path::new(&self.fact("RABBITMQ_BIN")).join("rabbitmqctl");
        let done = Command::new(tool).arg("-q").args(arguments).stdin(Stdio::null()).output();
        let done = done.expect("rabbitmqctl can be run");
        assert!(done.status.success(), "rabbitmqctl {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.fact(&format!("{}_PID", self.kind.name().to_uppercase()));
        let done = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(done.expect("kill can be run").success(), "no process {pid} to send SIG{signal}");
    }

    fn down(&self, options: &[&str]) {
        let done = Command::new(test_file("brokers/down.sh"))
            .args(options)
            .arg(self.kind.name())
            .env("BROKERS_HOME", &self.home)
            .stdin(Stdio::null())
            .output();
        let done = done.expect("down.sh can be run");
        assert!(done.status.success(), "down.sh: {}", String::from_utf8_lossy(&done.stderr));
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.down(&["--kill", "--wipe"]);
        // Remains of the directory are removed by the next run.
        let _ = fs::remove_dir_all(&self.home);
    }
}

/// A directory for one instance, `<pid>-<number>`; what earlier runs left behind is removed once.
pub(super) fn home() -> PathBuf {
    static NEXT: Mutex<u32> = Mutex::new(0);
    let mut next = NEXT.lock();
    let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("brokers");
    if *next == 0 {
        for old in fs::read_dir(&all).into_iter().flatten().flatten() {
            let name = old.file_name().to_string_lossy().into_owned();
            let pid = name.split('-').next().unwrap_or_default();
            if !Path::new("/proc").join(pid).exists() {
                let _ = fs::remove_dir_all(old.path());
            }
        }
    }
    *next += 1;
    let home = all.join(format!("{}-{next}", std::process::id()));
    fs::create_dir_all(&home).expect("target/tmp can be written");
    home
}
