//! The real daemon as a child: its log, its addresses, its status, its end.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::Value;

use super::wait::LIMIT;
use super::{Answer, Client, PATH, SECRET, get, sign, wait_for};

/// The log of the daemon so far, and whether its pipe has ended.
#[derive(Debug, Default)]
struct Lines {
    lines: Vec<String>,
    ended: bool,
}

#[derive(Debug, Default)]
struct Log {
    lines: Mutex<Lines>,
    changed: Condvar,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock()
    }

    fn collect(&self, stderr: ChildStderr) {
        for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
            self.lock().lines.push(String::from_utf8_lossy(&line).into_owned());
            self.changed.notify_all();
        }
        self.lock().ended = true;
        self.changed.notify_all();
    }
}

/// A running daemon; killed when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    log: Arc<Log>,
    /// Kept as long as the daemon runs, even if the test keeps no `Setup`.
    _directory: Arc<tempfile::TempDir>,
    reader: Option<JoinHandle<()>>,
    /// The address for webhooks: `host:port`.
    pub(crate) ingress: String,
    /// The address of `/status` and `/metrics`.
    pub(crate) admin: String,
}

/// A daemon that has ended.
#[derive(Debug)]
pub(crate) struct Stopped {
    /// Its exit status; none if a signal ended it.
    pub(crate) code: Option<i32>,
    /// Its last line of log.
    pub(crate) last: Value,
    /// Everything it wrote.
    pub(crate) log: String,
}

impl Stopped {
    /// One number of the accounting in the last line.
    pub(crate) fn count(&self, name: &str) -> u64 {
        assert_eq!(self.last["message"], "stopped", "the last line of the log: {}", self.last);
        self.last[name].as_u64().unwrap_or_else(|| panic!("no number `{name}` in the last line: {}", self.last))
    }

    /// Both equations of the accounting in the last line.
    pub(crate) fn assert_balanced(&self) {
        let sum = |names: &[&str]| names.iter().map(|name| self.count(name)).sum::<u64>();
        let received = sum(&["accepted", "duplicate", "probe", "rejected"]);
        assert_eq!(self.count("received"), received, "what was received: {}", self.last);
        let ended = sum(&["published", "dead_lettered", "withdrawn", "lost", "held"]);
        assert_eq!(sum(&["accepted", "recovered", "replayed"]), ended, "what became of it: {}", self.last);
    }
}

/// `/status` at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Status(pub(crate) Value);

impl Status {
    /// A number, by JSON pointer.
    pub(crate) fn number(&self, pointer: &str) -> u64 {
        let value = self.0.pointer(pointer).and_then(Value::as_u64);
        value.unwrap_or_else(|| panic!("no number at {pointer} in /status: {}", self.0))
    }

    /// A text, by JSON pointer; empty where there is none.
    pub(crate) fn text(&self, pointer: &str) -> &str {
        self.0.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    /// One number of the accounting.
    pub(crate) fn count(&self, name: &str) -> u64 {
        self.number(&format!("/accounting/{name}"))
    }
}

impl Daemon {
    /// Starts the command, which has its input and output, and waits, by reading its log, until it listens; returns how
    /// it ended if it ended before.
    pub(super) fn start(mut command: Command, directory: Arc<tempfile::TempDir>) -> Result<Self, Stopped> {
        let child = command.stderr(Stdio::piped()).spawn();
        let mut child = child.expect("the daemon can be started");
        let log = Arc::new(Log::default());
        let stderr = child.stderr.take().expect("stderr is piped");
        let reader = thread::spawn({
            let log = log.clone();
            move || log.collect(stderr)
        });
        let mut daemon = Self {
            child,
            log,
            _directory: directory,
            reader: Some(reader),
            ingress: String::new(),
            admin: String::new(),
        };
        let Some(listening) = daemon.find_line("listening", |line| line["message"] == "listening") else {
            return Err(daemon.wait());
        };
        let field = |name: &str| listening[name].as_str().unwrap_or_default().to_owned();
        (daemon.ingress, daemon.admin) = (field("ingress"), field("admin"));
        assert!(!daemon.ingress.is_empty() && !daemon.admin.is_empty(), "no addresses in {listening}");
        Ok(daemon)
    }

    /// Waits for a line of the log.
    pub(crate) fn wait_for_line(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        self.find_line(what, is_it).unwrap_or_else(|| panic!("the daemon ended before {what}"))
    }

    /// Does the same; none if the daemon ends before.
    fn find_line(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Option<Value> {
        let deadline = Instant::now() + LIMIT;
        let mut seen = 0;
        let mut lines = self.log.lock();
        loop {
            for line in &lines.lines[seen..] {
                if let Ok(line) = serde_json::from_str(line)
                    && is_it(&line)
                {
                    return Some(line);
                }
            }
            seen = lines.lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if lines.ended {
                return None;
            }
            assert!(!left.is_zero(), "not in the log within {LIMIT:?}: {what}");
            self.log.changed.wait_for(&mut lines, left);
        }
    }

    /// The log so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().lines.join("\n")
    }

    /// GET on the admin port.
    pub(crate) fn get(&self, path: &str) -> Answer {
        get(&self.admin, path).unwrap_or_else(|error| panic!("GET {path} of the admin port: {error}"))
    }

    /// `/status`, parsed.
    pub(crate) fn status(&self) -> Status {
        let answer = self.get("/status");
        assert_eq!(answer.status, 200, "/status: {}", answer.text());
        Status(serde_json::from_slice(&answer.body).expect("/status is JSON"))
    }

    /// Polls `/status` until it shows this.
    pub(crate) fn wait_until(&self, what: &str, limit: Duration, is_it: impl Fn(&Status) -> bool) -> Status {
        let mut last = None;
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            let status = self.status();
            if is_it(&status) {
                return status;
            }
            last = Some(status);
            thread::sleep(Duration::from_millis(20));
        }
        panic!("not within {limit:?}: {what}; /status: {}", last.map(|status| status.0).unwrap_or_default());
    }

    /// Waits until nothing is held: buffered, in flight or in the journal.
    pub(crate) fn wait_until_empty(&self) -> Status {
        self.wait_until("nothing is held", LIMIT, |status| {
            status.count("held") == 0 && status.number("/buffer/events") == 0
        })
    }

    /// The sum of the series of this name (without `plextrac_bridge_`) that have all these labels.
    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let text = self.get("/metrics").text();
        let full = format!("plextrac_bridge_{name}");
        let wanted: Vec<String> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let series: Vec<u64> = text
            .lines()
            .filter_map(|line| line.strip_prefix(&full))
            .filter(|rest| rest.starts_with([' ', '{']) && wanted.iter().all(|label| rest.contains(label)))
            .filter_map(|rest| rest.rsplit(' ').next()?.parse().ok())
            .collect();
        assert!(!series.is_empty(), "no series {full}{labels:?} in /metrics");
        series.iter().sum()
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Changes how many files it may have open, up to the hard limit; returns how many it might before. Those that are open
    /// stay open.
    pub(crate) fn limit_open_files(&self, soft: u64) -> u64 {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).expect("it is a process id");
        // It raised its own to the hard one, which it has from here.
        let new = Rlimit { current: Some(soft), maximum: getrlimit(Resource::Nofile).maximum };
        prlimit(Some(pid), Resource::Nofile, new).expect("the daemon is ours").current.unwrap_or(u64::MAX)
    }

    /// Sends SIGTERM and does not wait.
    pub(crate) fn terminate(&self) {
        let pid = self.child.id().to_string();
        let done = Command::new("kill").args(["-s", "TERM", &pid]).status();
        assert!(done.expect("kill can be run").success(), "the daemon has ended before");
    }

    /// Sends SIGHUP and waits until the reload is over; `/status` then.
    pub(crate) fn reload(&self) -> Status {
        let before = self.metric("config_reloads_total", &[]);
        let done = Command::new("kill").args(["-s", "HUP", &self.pid().to_string()]).status();
        assert!(done.expect("kill can be run").success(), "the daemon has ended before");
        wait_for("the reload", LIMIT, || (self.metric("config_reloads_total", &[]) > before).then(|| self.status()))
    }

    /// Sends SIGTERM and waits for the end.
    pub(crate) fn stop(self) -> Stopped {
        self.terminate();
        self.wait()
    }

    /// SIGKILL: a crash. Returns once it has ended.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("the daemon has not been waited for");
        self.child.wait().expect("it is our child");
        self.join();
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_some()
    }

    /// Bytes of memory in use.
    pub(crate) fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// Bytes of memory in use that are its own: without its code, which counts once it has run.
    pub(crate) fn own_memory(&self) -> u64 {
        self.memory("RssAnon:")
    }

    fn memory(&self, kind: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the daemon runs");
        let line = text.lines().find_map(|line| line.strip_prefix(kind)).expect("Linux tells each kind");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("it is a number of kB");
        kib << 10
    }

    /// Waits for the end.
    pub(crate) fn wait(mut self) -> Stopped {
        let child = &mut self.child;
        let status = wait_for("the end of the daemon", LIMIT, || child.try_wait().expect("it is our child"));
        self.join();
        let log = self.log();
        let last = log.lines().rfind(|line| !line.is_empty()).unwrap_or_default();
        Stopped { code: status.code(), last: serde_json::from_str(last).unwrap_or_default(), log }
    }

    fn join(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader of the log does not panic");
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Already ended: nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.join();
        if thread::panicking() {
            let log = self.log.lock();
            let mut tail = String::new();
            for line in &log.lines[log.lines.len().saturating_sub(40)..] {
                // Writing into a String cannot fail.
                let _ = writeln!(tail, "{line}");
            }
            eprintln!("the end of the daemon's log:\n{tail}");
        }
    }
}

/// Sends one signed body on a connection of its own.
pub(crate) fn request_once(daemon: &Daemon, body: &[u8], headers: &[(&str, &str)]) -> Answer {
    let signature = sign(SECRET, body);
    let mut all = vec![("X-Authorization-HMAC-256", signature.as_str())];
    all.extend_from_slice(headers);
    let answer = Client::connect(&daemon.ingress).and_then(|mut client| client.send("POST", PATH, &all, body));
    answer.expect("the daemon answers")
}
