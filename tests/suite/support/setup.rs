//! A daemon's settings and directories before it starts: a builder that ends in `start` or `run`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread;

use serde_json::Value;

use super::table::{Table, quoted};
use super::wait::{LIMIT, port, tell_panics_at_once};
use super::{Daemon, Delivered, Oracle, Sent, Stopped, files, wait_for};

/// The secret of the source, as the sender knows it.
pub(crate) const SECRET: &str = "the suite's own secret, 0123456789";

/// The path of the source.
pub(crate) const PATH: &str = "/webhooks/plextrac";

/// The limit of a test's journal: what a start reserves is written, and hundreds of tests start.
pub(crate) const JOURNAL: &str = "8MiB";

/// Settings, and a directory of their own.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    directory: Arc<tempfile::TempDir>,
    sections: BTreeMap<String, BTreeMap<String, String>>,
    broker: String,
    limits: Option<String>,
    sockets: Vec<(String, Arc<OwnedFd>)>,
    level: &'static str,
    program: PathBuf,
    variables: Vec<(&'static str, String)>,
}

impl Setup {
    /// Creates settings with one source, free ports, this broker, a state directory.
    pub(crate) fn new(broker: &Table) -> Self {
        Self::within(tempfile::tempdir().expect("a temporary directory can be made"), broker)
    }

    /// Does the same on the file broker, whose files are in `events/` of the test's directory.
    pub(crate) fn on_files() -> Self {
        Self::with_files("events")
    }

    /// Does the same with the broker away until [`Setup::bring_the_broker_back`].
    pub(crate) fn on_missing_files() -> Self {
        // A directory is created only where its parent exists.
        Self::with_files("away/events")
    }

    fn with_files(events: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let events = directory.path().join(events).display().to_string();
        Self::within(directory, &Table::new("file").text("directory", events))
    }

    fn within(directory: tempfile::TempDir, broker: &Table) -> Self {
        tell_panics_at_once();
        let state = directory.path().join("state");
        let setup = Self {
            directory: Arc::new(directory),
            sections: BTreeMap::new(),
            broker: broker.toml(),
            limits: None,
            sockets: Vec::new(),
            level: "info",
            program: env!("CARGO_BIN_EXE_plextrac-bridge").into(),
            variables: Vec::new(),
        };
        setup
            .text("state_directory", &state.display().to_string())
            .text("ingress.listen", "127.0.0.1:0")
            .raw("ingress.threads", "2")
            .text("sources.plextrac.secret", SECRET)
            .text("admin.listen", "127.0.0.1:0")
            .text("journal.max_bytes", JOURNAL)
            .text("journal.segment_bytes", "2MiB")
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

    /// Resets a setting to its default.
    pub(crate) fn by_default(mut self, key: &str) -> Self {
        let (section, key) = key.rsplit_once('.').unwrap_or(("", key));
        self.sections.entry(section.to_owned()).or_default().remove(key);
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
        self.limits = Some(format!("-n {limit}"));
        self
    }

    /// At most this many open files, unless the daemon raises the limit itself.
    pub(crate) fn soft_open_files(mut self, limit: u32) -> Self {
        self.limits = Some(format!("-Sn {limit}"));
        self
    }

    /// Passes a socket to the daemon as systemd does, under a name; at most two.
    pub(crate) fn passing(mut self, name: &str, socket: impl Into<OwnedFd>) -> Self {
        self.sockets.push((name.to_owned(), Arc::new(socket.into())));
        self
    }

    /// Accepts only the documented payload.
    pub(crate) fn strict(self) -> Self {
        self.text("sources.plextrac.validation", "strict")
    }

    /// No deduplication: equal requests are events of their own.
    pub(crate) fn takes_repeats(self) -> Self {
        self.text("deduplication.window", "0s")
    }

    /// The address of the ingress stays the same from one start to the next.
    pub(crate) fn at_one_address(self) -> Self {
        let address = format!("127.0.0.1:{}", port());
        self.text("ingress.listen", &address)
    }

    /// Makes the disk fail or the daemon end at these places: `journal.sync=error@3`.
    pub(crate) fn failpoints(self, points: &str) -> Self {
        self.variable("PLEXTRAC_BRIDGE_FAILPOINTS", points)
    }

    /// Removes all failpoints.
    pub(crate) fn without_failpoints(mut self) -> Self {
        self.variables.retain(|(name, _)| *name != "PLEXTRAC_BRIDGE_FAILPOINTS");
        self
    }

    /// One more variable of the daemon's environment.
    pub(crate) fn variable(mut self, name: &'static str, value: &str) -> Self {
        self.variables.retain(|(known, _)| *known != name);
        self.variables.push((name, value.to_owned()));
        self
    }

    /// Another build of the program.
    pub(crate) fn program(mut self, program: &Path) -> Self {
        program.clone_into(&mut self.program);
        self
    }

    /// Another log level than `info`.
    pub(crate) fn level(mut self, level: &'static str) -> Self {
        self.level = level;
        self
    }

    /// Starts the daemon; returns once it listens.
    pub(crate) fn start(&self) -> Daemon {
        let ended = |stopped: Stopped| panic!("the daemon ended before it listened:\n{}", stopped.log);
        self.try_start().unwrap_or_else(ended)
    }

    /// Starts the daemon; returns how it ended if it ended before it listened.
    pub(crate) fn try_start(&self) -> Result<Daemon, Stopped> {
        let mut command = match (&self.limits, self.sockets.as_slice()) {
            (None, []) => self.command(),
            (Some(limit), _) => self.by_shell(&format!("ulimit {limit}; exec \"$@\"")),
            // The process is the one that was announced: it is replaced, not forked.
            (None, [_]) => self.by_shell("LISTEN_PID=$$ exec \"$@\" 3<&0 </dev/null"),
            (None, _) => self.by_shell("LISTEN_PID=$$ exec \"$@\" 3<&0 4<&1 </dev/null >/dev/null"),
        };
        let fd = |at: usize| {
            let socket = self.sockets.get(at)?;
            Some(Stdio::from(socket.1.try_clone().expect("a descriptor can be doubled")))
        };
        command.stdin(fd(0).unwrap_or_else(Stdio::null)).stdout(fd(1).unwrap_or_else(Stdio::null));
        if !self.sockets.is_empty() {
            let names: Vec<&str> = self.sockets.iter().map(|(name, _)| name.as_str()).collect();
            command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        }
        command.arg("serve").arg("--config").arg(self.file());
        command.args(["--log-format", "json", "--log-level", self.level]);
        Daemon::start(command, self.directory.clone())
    }

    /// Runs another command on these settings and waits for its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.command();
        command.args(arguments).arg("--config").arg(self.file()).stdin(Stdio::null());
        let running = thread::spawn(move || command.output());
        wait_for(&format!("the end of {arguments:?}"), LIMIT, || running.is_finished().then_some(()));
        running.join().expect("the thread only waits").expect("the program can be run")
    }

    /// The dead letters, oldest file first.
    pub(crate) fn dead_letters(&self) -> Vec<Value> {
        let directory = self.state().join("dead-letters");
        let mut files: Vec<PathBuf> =
            fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "ndjson"));
        files.sort();
        let text = |file| fs::read_to_string(file).expect("dead letters are UTF-8");
        let parse = |line: &str| serde_json::from_str(line).expect("a dead letter is one line of JSON");
        files.into_iter().map(text).flat_map(|text| text.lines().map(parse).collect::<Vec<Value>>()).collect()
    }

    /// The content of the file broker.
    pub(crate) fn delivered(&self) -> Vec<Delivered> {
        ["events", "away/events"].iter().flat_map(|events| files::read(&self.directory().join(events))).collect()
    }

    /// Judges the content of the file broker against what was sent; returns the number of repeats.
    pub(crate) fn judge(&self, sent: &Sent) -> usize {
        let (delivered, dead) = (self.delivered(), self.dead_letters());
        Oracle { sent, delivered: &delivered, dead: &dead, out_of_order: 0 }.judge()
    }

    /// Lets the broker of [`Setup::on_missing_files`] take events from now on.
    pub(crate) fn bring_the_broker_back(&self) {
        fs::create_dir(self.directory().join("away")).expect("the temporary directory can be written");
    }

    /// The state directory.
    pub(crate) fn state(&self) -> PathBuf {
        self.directory().join("state")
    }

    /// The names and sizes of the journal's files, oldest first.
    pub(crate) fn segments(&self) -> Vec<(PathBuf, u64)> {
        let entries = fs::read_dir(self.state().join("journal")).into_iter().flatten().flatten();
        // A file that is renamed or removed meanwhile is skipped.
        let sized = entries.filter_map(|entry| Some((entry.path(), entry.metadata().ok()?.len())));
        let mut files: Vec<(PathBuf, u64)> = sized.collect();
        files.sort();
        files
    }

    /// The directory of this test.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Writes the settings file, even if a daemon has read it already.
    pub(crate) fn file(&self) -> PathBuf {
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
        // Replaced as a whole: a daemon that tries a reload again must not read one half of it.
        let new = self.directory().join("config.toml.new");
        fs::write(&new, toml).expect("the temporary directory can be written");
        fs::rename(&new, &file).expect("the temporary directory can be written");
        file
    }

    /// The program, started by a line of shell that ends in `exec "$@"`.
    fn by_shell(&self, line: &str) -> Command {
        let mut shell = Command::new("sh");
        shell.args(["-c", line, "sh"]).arg(&self.program);
        self.clean(&mut shell);
        shell
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        self.clean(&mut command);
        command
    }

    /// The environment of this run must not reach the daemon.
    fn clean(&self, command: &mut Command) {
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PLEXTRAC_BRIDGE") {
                command.env_remove(name);
            }
        }
        for name in
            ["STATE_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "RUST_LOG", "RUST_BACKTRACE"]
        {
            command.env_remove(name);
        }
        for name in ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"] {
            command.env_remove(name);
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
    }
}

/// All that a command printed.
pub(crate) fn said(done: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr))
}
