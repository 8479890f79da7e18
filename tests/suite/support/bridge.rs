//! A daemon on the file broker, with a record of accepted and published events.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use super::{Client, Daemon, Setup, Stopped, Table};

/// One line of the broker's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Arrived {
    /// The name of the file, without `.ndjson`.
    pub(crate) address: String,
    /// The event id.
    pub(crate) id: String,
    /// The headers.
    pub(crate) headers: BTreeMap<String, String>,
    /// The signed bytes.
    pub(crate) body: Vec<u8>,
}

/// The counters of `/metrics` that count requests and decisions, by name (without `plextrac_bridge_`) and labels.
pub(crate) type Counters = BTreeMap<String, u64>;

/// The families in [`Counters`].
const FAMILIES: [&str; 7] = [
    "requests_total{",
    "events_received_total{",
    "events_accepted_total{",
    "events_duplicate_total{",
    "events_probe_total{",
    "events_rejected_total{",
    "signatures_matched_total{",
];

/// The daemon, its directory of events, and the bodies that it answered 200 for.
#[derive(Debug)]
pub(crate) struct Bridge {
    /// The daemon.
    pub(crate) daemon: Daemon,
    files: tempfile::TempDir,
    events: PathBuf,
    accepted: RefCell<Vec<Vec<u8>>>,
    _setup: Setup,
}

impl Bridge {
    /// Starts a daemon with these changes to the settings.
    pub(crate) fn start(change: impl FnOnce(Setup) -> Setup) -> Self {
        Self::on("events", change)
    }

    /// Starts a daemon whose broker is away until [`Bridge::bring_the_broker_back`].
    pub(crate) fn start_without_broker(change: impl FnOnce(Setup) -> Setup) -> Self {
        // A directory is created only where its parent exists.
        Self::on("away/events", change)
    }

    fn on(events: &str, change: impl FnOnce(Setup) -> Setup) -> Self {
        let files = tempfile::tempdir().expect("a temporary directory can be made");
        let events = files.path().join(events);
        let table = Table::new("file").text("directory", events.display().to_string());
        let setup = change(Setup::new(&table));
        Self { daemon: setup.start(), files, events, accepted: RefCell::default(), _setup: setup }
    }

    /// Lets the broker take events from now on.
    pub(crate) fn bring_the_broker_back(&self) {
        fs::create_dir(self.files.path().join("away")).expect("the temporary directory can be written");
    }

    /// A connection of a sender.
    pub(crate) fn connect(&self) -> Client {
        Client::connect(&self.daemon.ingress).expect("the daemon listens")
    }

    /// Notes a body that was answered 200 with the status accepted.
    pub(crate) fn accepted(&self, body: &[u8]) {
        self.accepted.borrow_mut().push(body.to_vec());
    }

    /// The counters at this moment.
    pub(crate) fn counters(&self) -> Counters {
        let text = self.daemon.get("/metrics").text();
        let series = text.lines().filter_map(|line| line.strip_prefix("plextrac_bridge_"));
        let ours = series.filter(|series| FAMILIES.iter().any(|family| series.starts_with(family)));
        let parsed = ours.filter_map(|series| series.rsplit_once(' '));
        parsed.map(|(name, value)| (name.to_owned(), value.parse().expect("a counter is a whole number"))).collect()
    }

    /// The counters that have risen since, and by how much.
    pub(crate) fn risen_since(&self, before: &Counters) -> Counters {
        let mut now = self.counters();
        for (name, value) in &mut now {
            *value -= before.get(name).copied().unwrap_or(0);
        }
        now.retain(|_, value| *value > 0);
        now
    }

    /// The lines in the broker's files.
    pub(crate) fn arrived(&self) -> Vec<Arrived> {
        arrived(&self.events)
    }

    /// Waits until everything is delivered; checks that the accounting adds up, and that published and accepted events
    /// agree.
    pub(crate) fn check(&self) {
        let status = self.daemon.wait_until_empty();
        assert_eq!(status.count("mismatch"), 0, "the accounting does not add up: {}", status.0["accounting"]);
        let mut arrived: Vec<Vec<u8>> = self.arrived().into_iter().map(|line| line.body).collect();
        let mut accepted = self.accepted.borrow().clone();
        assert_eq!(status.count("accepted"), accepted.len() as u64, "accepted by the bridge, answered 200 here");
        arrived.sort();
        accepted.sort();
        if arrived != accepted {
            let text = |bodies: &[Vec<u8>]| bodies.iter().map(|body| short(body)).collect::<Vec<_>>().join("\n");
            panic!("what arrived:\n{}\nis not what was accepted:\n{}", text(&arrived), text(&accepted));
        }
    }

    /// Waits for the end of a daemon that was told to stop; returns how it ended, and what was published.
    pub(crate) fn ended(self) -> (Stopped, Vec<Arrived>) {
        let Self { daemon, files, events, .. } = self;
        let stopped = daemon.wait();
        let arrived = arrived(&events);
        drop(files);
        (stopped, arrived)
    }

    /// Checks, then stops the daemon, which must end well.
    pub(crate) fn stop(self) -> Stopped {
        self.check();
        let Self { daemon, files, .. } = self;
        let stopped = daemon.stop();
        assert_eq!(stopped.code, Some(0), "the exit status; the log:\n{}", stopped.log);
        drop(files);
        stopped
    }
}

fn arrived(events: &Path) -> Vec<Arrived> {
    let mut all = Vec::new();
    for entry in fs::read_dir(events).into_iter().flatten().flatten() {
        let text = fs::read_to_string(entry.path()).expect("the files are UTF-8");
        let address = entry.path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
        all.extend(text.lines().map(|line| parse(&address, line)));
    }
    all
}

fn parse(address: &str, line: &str) -> Arrived {
    let line: Value = serde_json::from_str(line).expect("a line of the files is JSON");
    let body = match line["body"].as_str() {
        Some(text) => text.as_bytes().to_vec(),
        None => BASE64_STANDARD.decode(line["body_base64"].as_str().unwrap_or_default()).expect("it is base64"),
    };
    let headers = line["headers"].as_object().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Arrived {
        address: address.to_owned(),
        id: text(&line["id"]),
        headers: headers.map(|(name, value)| (name.clone(), text(value))).collect(),
        body,
    }
}

/// Enough of some bytes to know them by.
pub(crate) fn short(bytes: &[u8]) -> String {
    let text = bytes[..bytes.len().min(300)].escape_ascii().to_string();
    if bytes.len() > 300 { format!("{text}... ({} bytes)", bytes.len()) } else { text }
}
