//! A broker of a test's own with a directory of files, and what is renewed there under load: no event fails, and no more
//! of them is repeated than was in flight.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::{
    Broker, Daemon, Delivered, Kind, LIMIT, Load, Oracle, Running, Setup, Stopped, Table, ports, read, unique,
    wait_until,
};

/// Events a second.
const RATE: u64 = 500;

/// The window of the bridge, and with it the most repeats that one loss may cause.
const WINDOW: usize = 200;

/// A broker, and files beside it.
pub(super) struct Own {
    pub(super) broker: Broker,
    pub(super) kind: Kind,
    pub(super) name: String,
    directory: tempfile::TempDir,
}

impl Own {
    /// Starts a broker with variables of `up.sh` that `asked` makes, which may write files before.
    pub(super) fn start(
        kind: Kind,
        test: &str,
        asked: impl FnOnce(&Files<'_>) -> Vec<(&'static str, String)>,
    ) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let asked = asked(&Files(&directory));
        let ports = ports(if kind == Kind::Nats { 2 } else { 4 });
        Self { broker: Broker::start(kind, ports, &asked), kind, name: unique(test), directory }
    }

    pub(super) fn files(&self) -> Files<'_> {
        Files(&self.directory)
    }

    /// The settings but for the broker's address and the login.
    pub(super) fn table(&self) -> Table {
        match self.kind {
            Kind::Kafka => Table::new("kafka").text("topic", &self.name).text("key", "{targetCuid}"),
            Kind::Rabbitmq => Table::new("rabbitmq").text("exchange", &self.name).text("queue", &self.name),
            Kind::Nats => {
                Table::new("nats").text("stream", &self.name).text("subject", format!("{}.{{event}}", self.name))
            }
        }
    }

    /// A bridge with these settings, which looks at its files often.
    pub(super) fn setup(table: &Table) -> Setup {
        Setup::new(table).raw("publish.max_in_flight", WINDOW.to_string()).failpoints("reload.look=50ms")
    }

    /// Reads everything; `more` is for NATS, where the reader needs a login as well.
    pub(super) fn stored(&self, at_least: u64, more: &Value) -> Vec<Delivered> {
        let fact = |name| self.broker.fact(name);
        let mut order = match self.kind {
            Kind::Kafka => json!({"broker": "kafka", "bootstrap": fact("KAFKA_BOOTSTRAP"), "prefix": self.name}),
            Kind::Rabbitmq => json!({"broker": "rabbitmq", "url": fact("RABBITMQ_URL"), "queues": [self.name],
                "at_least": at_least}),
            Kind::Nats => json!({"broker": "nats", "url": fact("NATS_URL"), "stream": self.name}),
        };
        for (name, value) in more.as_object().into_iter().flatten() {
            order[name] = value.clone();
        }
        read(&order)
    }

    /// Renews something under load, and judges everything; the number of repeats.
    pub(super) fn renews(
        &self,
        setup: &Setup,
        more: &Value,
        renew: impl FnOnce(&Daemon, &dyn Fn()),
    ) -> (Stopped, usize) {
        let daemon = setup.start();
        connected(&daemon);
        let load = Load { events: u64::MAX, rate: RATE, connections: 4, keys: 4, ..Load::default() };
        let running = load.start(&daemon.ingress);
        flows(&daemon, &running);
        renew(&daemon, &|| flows(&daemon, &running));
        flows(&daemon, &running);
        let sent = running.end().all_accepted();
        let status = daemon.wait_until_empty();
        assert_eq!((status.count("dead_lettered"), status.count("lost")), (0, 0));
        let late = daemon.metric("publish_out_of_order_total", &[]);
        let delivered = self.stored(sent.accepted(), more);
        let repeats = Oracle { sent: &sent, delivered: &delivered, dead: &[], out_of_order: late }.judge();
        assert!(repeats <= WINDOW, "{repeats} repeats");
        (daemon.stop(), repeats)
    }
}

/// The files of a test.
pub(super) struct Files<'a>(&'a tempfile::TempDir);

impl Files<'_> {
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(super) fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Replaces a file as a whole; returns its path.
    pub(super) fn write(&self, name: &str, content: &str) -> String {
        let new = self.path("new");
        fs::write(&new, content).expect("the directory can be written");
        fs::set_permissions(&new, Permissions::from_mode(0o600)).expect("it is ours");
        fs::rename(&new, self.path(name)).expect("the directory can be written");
        self.text(name)
    }
}

pub(super) fn connected(daemon: &Daemon) {
    daemon.wait_until("it connects", LIMIT, |status| status.text("/broker/state") == "connected");
}

/// Waits until the bridge has connected once more.
pub(super) fn connects_again(daemon: &Daemon, renew: impl FnOnce()) {
    let connected = || daemon.log().lines().filter(|line| line.contains("\"connected\"")).count();
    let before = connected();
    renew();
    wait_until("it connects with what is new", LIMIT, || connected() > before);
}

fn flows(daemon: &Daemon, running: &Running) {
    let before = daemon.status().count("published");
    daemon.wait_until("events flow", LIMIT, |status| status.count("published") > before + RATE);
    assert!(!running.is_over());
}
