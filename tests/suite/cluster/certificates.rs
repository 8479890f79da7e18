//! One node of three shows a certificate that is not to be trusted: events flow through the others, the state does not
//! flap, and it is said. Over TLS, with client certificates and logins.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::kafka::Kafka;
use super::nats::Nats;
use super::rabbitmq::Rabbitmq;
use super::rig::{Place, Rig};
use crate::support::{
    Authority, Daemon, Kind, LIMIT, Load, Nodes, Oracle, Pair, Payload, Running, Setup, Table, request_once,
};

/// For so long the state is watched.
const WATCHED: Duration = Duration::from_secs(4);

/// The node whose certificate is bad: the first of every list.
const BAD: usize = 1;

const USER: &str = "certified";

/// The files of the nodes, and those of the bridge.
struct Certificates {
    directory: tempfile::TempDir,
    authority: Authority,
}

impl Certificates {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let certificates = Self { directory, authority: Authority::new() };
        certificates.write("ca.crt", &certificates.authority.certificate());
        certificates.authority.issue().write(certificates.path(), "client");
        certificates.write("login", "first");
        for node in 1..=3 {
            certificates.give(node, &certificates.authority.issue());
        }
        certificates
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.path().join(name), content).expect("the directory can be written");
    }

    fn give(&self, node: usize, pair: &Pair) {
        self.write(&format!("{node}.pem"), &format!("{}{}", pair.key, pair.certificate));
    }

    fn table<R: Rig>(&self, place: &Place<'_, R>) -> Table {
        let file = |name: &str| self.path().join(name).display().to_string();
        let table = place.table_with_login(USER, &self.path().join("login"));
        let table = place.rig.over_tls(table, USER, &self.path().join("login"));
        table
            .text("ca_file", file("ca.crt"))
            .text("certificate_file", file("client.crt"))
            .text("key_file", file("client.key"))
    }
}

/// Panics if the connection changes its state while it is watched.
fn does_not_flap(daemon: &Daemon) {
    let state = || {
        let status = daemon.status();
        (status.text("/broker/state").to_owned(), status.0["broker"]["since_timestamp_seconds"].clone())
    };
    let (began, before) = (Instant::now(), state());
    assert_eq!(before.0, "connected");
    while began.elapsed() < WATCHED {
        assert_eq!(state(), before, "{}", daemon.log());
        thread::sleep(Duration::from_millis(100));
    }
}

/// The lines for operators about TLS.
fn said(daemon: &Daemon) -> Vec<String> {
    let log = daemon.log();
    let is_loud = |line: &Value| line["level"] == "WARN" || line["level"] == "ERROR";
    let lines = log.lines().filter(|line| serde_json::from_str(line).is_ok_and(|line| is_loud(&line)));
    lines.filter(|line| line.contains("certificate") || line.contains("TLS")).map(str::to_owned).collect()
}

fn flows(daemon: &Daemon, running: &Running) {
    let before = daemon.status().count("published");
    daemon.wait_until("events flow", LIMIT, |status| status.count("published") > before + 200);
    assert!(!running.is_over());
}

fn goes_on_past_a_bad_certificate<R: Rig>(bad: impl FnOnce(&Authority) -> Pair) {
    let began = Instant::now();
    let certificates = Certificates::new();
    let rig = R::on(Nodes::start_over_tls(R::KIND, certificates.path()));
    let place = Place::new(&rig, "bad_certificate");
    place.set_password(USER, "first");
    let daemon = Setup::new(&certificates.table(&place)).start();
    let load = Load { events: u64::MAX, rate: 200, connections: 4, keys: R::KEYS, again: true, ..Load::default() };
    let running = load.start(&daemon.ingress);
    flows(&daemon, &running);
    place.wait_until_whole();
    certificates.give(BAD, &bad(&certificates.authority));
    rig.nodes().terminate(BAD);
    rig.nodes().up();
    place.wait_until_whole();
    flows(&daemon, &running);
    does_not_flap(&daemon);
    flows(&daemon, &running);
    assert!(said(&daemon).len() <= 1, "said more than once: {:?}", said(&daemon));
    let fresh = Setup::new(&certificates.table(&place)).start();
    fresh.wait_until("another one connects", LIMIT, |status| status.text("/broker/state") == "connected");
    assert_eq!(request_once(&fresh, &Payload::new("probe-fresh").body(), &[]).status, 200);
    assert_eq!(fresh.wait_until_empty().count("published"), 1);
    does_not_flap(&fresh);
    println!("{}: said {:?}", R::NAME, said(&fresh));
    // Kafka's client may have no need of that node.
    let times = said(&fresh).len();
    assert!(times == 1 || (times == 0 && R::KIND == Kind::Kafka), "said {times} times: {}", fresh.log());
    fresh.kill();
    let sent = running.end().all_accepted();
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("dead_lettered"), status.count("lost")), (0, 0));
    let out_of_order = daemon.metric("publish_out_of_order_total", &[]);
    let delivered = place.read(sent.accepted());
    Oracle { sent: &sent, delivered: &delivered, dead: &[], out_of_order }.judge();
    println!("{}: {:.1} s", R::NAME, began.elapsed().as_secs_f64());
}

/// Runs the three in one test: each mostly waits.
#[test]
fn goes_on_past_a_node_with_a_bad_certificate() {
    thread::scope(|scope| {
        let spawn = |name: &str, test: fn()| {
            thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, test).expect("a thread can be made")
        };
        spawn("Kafka, expired", || {
            goes_on_past_a_bad_certificate::<Kafka>(|authority| authority.issue_until(2020));
        });
        spawn("RabbitMQ, foreign", || goes_on_past_a_bad_certificate::<Rabbitmq>(|_| Authority::new().issue()));
        spawn("NATS, expired", || goes_on_past_a_bad_certificate::<Nats>(|authority| authority.issue_until(2020)));
    });
}
