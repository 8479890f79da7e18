//! A cluster of three real nodes, started by `tests/brokers/cluster.sh`: nodes die, hang and restart one by one. All end
//! with this process.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::broker::home;
use super::wait::test_file;
use super::{Kind, ports, wait_until};

/// The number of a node: 1, 2 or 3.
pub(crate) type Node = usize;

/// The limit of a graceful stop, which may wait for the other nodes.
const END: Duration = Duration::from_mins(2);

/// The three nodes.
#[derive(Debug)]
pub(crate) struct Nodes {
    kind: Kind,
    home: PathBuf,
    port: u16,
    /// The directory of certificates, where clients come over TLS.
    certificates: Option<PathBuf>,
    facts: HashMap<String, String>,
}

impl Nodes {
    /// Starts them; returns once each answers.
    pub(crate) fn start(kind: Kind) -> Self {
        Self::start_with(kind, None)
    }

    /// Starts them with the certificates of this directory, and clients come over TLS with one of the same authority.
    pub(crate) fn start_over_tls(kind: Kind, certificates: &Path) -> Self {
        Self::start_with(kind, Some(certificates.to_owned()))
    }

    fn start_with(kind: Kind, certificates: Option<PathBuf>) -> Self {
        // As many as the widest of them needs.
        let mut nodes = Self { kind, home: home(), port: ports(10), certificates, facts: HashMap::new() };
        nodes.facts = nodes.script(&["up"]);
        nodes
    }

    /// Starts those again that have ended, with their data; returns once these answer.
    pub(crate) fn up(&self) {
        self.script(&["up"]);
    }

    /// Returns one of the facts that the script prints, of each node.
    pub(crate) fn fact(&self, name: &str) -> Vec<String> {
        let fact = self.facts.get(name).unwrap_or_else(|| panic!("cluster.sh printed no {name}: {:?}", self.facts));
        fact.split(',').map(str::to_owned).collect()
    }

    /// Sends SIGKILL: a crash. Returns once the node has ended.
    pub(crate) fn kill(&self, node: Node) {
        self.signal(node, "KILL");
        wait_until("the end of a killed node", END, || self.state(node).is_none());
    }

    /// Sends SIGTERM: a graceful stop. Returns once the node has ended.
    pub(crate) fn terminate(&self, node: Node) {
        self.signal(node, "TERM");
        wait_until("the end of a node that was told to stop", END, || self.state(node).is_none());
    }

    /// Sends SIGSTOP: the node hangs, its sockets stay open.
    pub(crate) fn pause(&self, node: Node) {
        self.signal(node, "STOP");
        wait_until("the node hangs", END, || self.state(node) == Some('T'));
    }

    /// Sends SIGCONT to the nodes that hang.
    pub(crate) fn resume(&self) {
        for node in 1..=3 {
            if self.state(node) == Some('T') {
                self.signal(node, "CONT");
            }
        }
    }

    /// The nodes that run and do not hang.
    pub(crate) fn alive(&self) -> Vec<Node> {
        (1..=3).filter(|node| self.state(*node).is_some_and(|state| state != 'T')).collect()
    }

    /// The end of what each node has logged.
    pub(crate) fn logs(&self) -> String {
        let tail = |node: Node| {
            let text = fs::read_to_string(self.directory(node).join("log")).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            format!("the end of the log of node {node}:\n{}\n", lines[lines.len().saturating_sub(15)..].join("\n"))
        };
        (1..=3).map(tail).collect()
    }

    fn directory(&self, node: Node) -> PathBuf {
        self.home.join("cluster").join(self.kind.name()).join(node.to_string())
    }

    fn pid(&self, node: Node) -> String {
        let text = fs::read_to_string(self.directory(node).join("pid")).unwrap_or_default();
        text.split(' ').next().unwrap_or_default().to_owned()
    }

    /// The state of its process, as Linux has it; none once it has ended.
    fn state(&self, node: Node) -> Option<char> {
        let text = fs::read_to_string(Path::new("/proc").join(self.pid(node)).join("stat")).ok()?;
        let state = text.rsplit_once(") ")?.1.chars().next()?;
        (state != 'Z' && state != 'X').then_some(state)
    }

    fn signal(&self, node: Node, signal: &str) {
        let pid = self.pid(node);
        let done = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(done.expect("kill can be run").success(), "no process {pid} to send SIG{signal}");
    }

    fn script(&self, arguments: &[&str]) -> HashMap<String, String> {
        let port = format!("{}_CLUSTER_PORT", self.kind.name().to_uppercase());
        let done = Command::new(test_file("brokers/cluster.sh"))
            .args(arguments)
            .arg(self.kind.name())
            .env("BROKERS_HOME", &self.home)
            .env("BROKERS_OWNER_PID", std::process::id().to_string())
            .env(port, self.port.to_string())
            .envs(self.certificates.iter().map(|directory| ("CLUSTER_TLS", directory)))
            .stdin(Stdio::null())
            .output();
        let done = done.expect("cluster.sh can be run");
        let text = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "cluster.sh {arguments:?} {}: {text}", self.kind.name());
        let facts = String::from_utf8_lossy(&done.stdout);
        let facts = facts.lines().filter_map(|line| line.split_once('='));
        facts.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        self.script(&["down", "--kill", "--wipe"]);
        // What is left of the directory is swept by the next run.
        let _ = fs::remove_dir_all(&self.home);
    }
}
