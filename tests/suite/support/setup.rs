//! A daemon's settings and directories before it starts: a builder that ends in `start` or `run`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread;

use serde_json::Value;

use super::table::{Table, quoted};
use super::wait::LIMIT;
use super::{Daemon, wait_for};

/// The secret of the source, as the sender knows it.
pub(crate) const SECRET: &str = "the suite's own secret, 0123456789";

/// The path of the source.
pub(crate) const PATH: &str = "/webhooks/plextrac";

/// Settings, and a directory of their own.
#[derive(Debug)]
pub(crate) struct Setup {
    directory: Arc<tempfile::TempDir>,
    sections: BTreeMap<String, BTreeMap<String, String>>,
    broker: String,
    limits: Option<u32>,
    level: &'static str,
    variables: Vec<(&'static str, String)>,
}

impl Setup {
    /// One source, free ports, this broker, a state directory.
    pub(crate) fn new(broker: &Table) -> Self {
        Self::within(tempfile::tempdir().expect("a temporary directory can be made"), broker)
    }

    /// The same on the file broker, whose files are in `events/` of the test's directory.
    pub(crate) fn on_files() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let events = directory.path().join("events").display().to_string();
        Self::within(directory, &Table::new("file").text("directory", events))
    }

    fn within(directory: tempfile::TempDir, broker: &Table) -> Self {
        let state = directory.path().join("state");
        let setup = Self {
            directory: Arc::new(directory),
            sections: BTreeMap::new(),
            broker: broker.toml(),
            limits: None,
            level: "info",
            variables: Vec::new(),
        };
        setup
            .text("state_directory", &state.display().to_string())
            .text("ingress.listen", "127.0.0.1:0")
            .raw("ingress.threads", "2")
            .text("sources.plextrac.secret", SECRET)
            .text("admin.listen", "127.0.0.1:0")
    }

    /// Sets a text: `buffer.max_bytes`.
    pub(crate) fn text(self, key: &str, value: &str) -> Self {
        self.raw(key, quoted(value))
    }

    /// Sets anything else, as TOML.
    pub(crate) fn raw(mut self, key: &str, value: impl Into<String>) -> Self {
        let (section, key) = key.rsplit_once('.').unwrap_or(("", key));
        self.sections.entry(section.to_owned()).or_default().insert(key.to_owned(), value.into());
        self
    }

    /// Another broker, in the same directories.
    pub(crate) fn with_broker(mut self, broker: &Table) -> Self {
        self.broker = broker.toml();
        self
    }

    /// No state directory: nowhere to keep dead letters.
    pub(crate) fn without_state(mut self) -> Self {
        self.sections.entry(String::new()).or_default().remove("state_directory");
        self
    }

    /// At most this many open files.
    pub(crate) fn open_files(mut self, limit: u32) -> Self {
        self.limits = Some(limit);
        self
    }

    /// Makes the disk fail or the daemon die at these places: `letters.sync=error@3`.
    pub(crate) fn failpoints(mut self, points: &str) -> Self {
        self.variables.push(("PLEXTRAC_BRIDGE_FAILPOINTS", points.to_owned()));
        self
    }

    /// Nothing fails any more.
    pub(crate) fn without_failpoints(mut self) -> Self {
        self.variables.retain(|(name, _)| *name != "PLEXTRAC_BRIDGE_FAILPOINTS");
        self
    }

    /// Another log level than `info`.
    pub(crate) fn level(mut self, level: &'static str) -> Self {
        self.level = level;
        self
    }

    /// Starts the daemon; returns once it listens.
    pub(crate) fn start(&self) -> Daemon {
        let mut command = match self.limits {
            None => command(),
            Some(limit) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit -n {limit}; exec \"$@\""), "sh"]).arg(program());
                clean(&mut shell);
                shell
            }
        };
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.arg("serve").arg("--config").arg(self.file());
        command.args(["--log-format", "json", "--log-level", self.level]);
        Daemon::start(command, self.directory.clone())
    }

    /// Runs another command on these settings and waits for its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        let mut command = command();
        command.args(arguments).arg("--config").arg(self.file()).stdin(Stdio::null());
        let running = thread::spawn(move || command.output());
        wait_for(&format!("the end of {arguments:?}"), LIMIT, || running.is_finished().then_some(()));
        running.join().expect("the thread only waits").expect("the program can be run")
    }

    /// The dead letters, oldest file first.
    pub(crate) fn dead_letters(&self) -> Vec<Value> {
        let directory = self.directory().join("state/dead-letters");
        let mut files: Vec<PathBuf> =
            fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "ndjson"));
        files.sort();
        let text = |file| fs::read_to_string(file).expect("dead letters are UTF-8");
        let parse = |line: &str| serde_json::from_str(line).expect("a dead letter is one line of JSON");
        files.into_iter().map(text).flat_map(|text| text.lines().map(parse).collect::<Vec<Value>>()).collect()
    }

    /// Where everything of this test is.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn file(&self) -> PathBuf {
        let mut toml = String::new();
        for (name, settings) in &self.sections {
            if !name.is_empty() {
                writeln!(toml, "[{name}]").expect("a String takes everything");
            }
            for (key, value) in settings {
                writeln!(toml, "{key} = {value}").expect("a String takes everything");
            }
        }
        toml.push_str(&self.broker);
        let file = self.directory().join("config.toml");
        fs::write(&file, toml).expect("the temporary directory can be written");
        file
    }
}

/// All that a command printed.
pub(crate) fn said(done: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr))
}

fn program() -> &'static str {
    env!("CARGO_BIN_EXE_plextrac-bridge")
}

fn command() -> Command {
    let mut command = Command::new(program());
    clean(&mut command);
    command
}

/// What the environment of this run says must not reach the daemon.
fn clean(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PLEXTRAC_BRIDGE") {
            command.env_remove(name);
        }
    }
    for name in ["STATE_DIRECTORY", "LISTEN_FDS", "LISTEN_PID", "NOTIFY_SOCKET", "RUST_LOG", "RUST_BACKTRACE"] {
        command.env_remove(name);
    }
}
