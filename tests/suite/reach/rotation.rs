//! Client certificates renewed on disk under load, the old ones then refused; settings of the broker that are wrong.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{
    Authority, Broker, Daemon, Kind, LIMIT, Load, Oracle, Pair, Payload, Running, Setup, Table, cache, ports, read,
    request_once, unique, wait_until,
};

/// Events a second.
const RATE: u64 = 500;

/// The window of the bridge, and with it the most repeats that one loss may cause.
const WINDOW: usize = 200;

/// A broker that wants a certificate of an authority in this file.
struct Strict {
    broker: Broker,
    kind: Kind,
    name: String,
    directory: tempfile::TempDir,
}

impl Strict {
    fn start(kind: Kind, test: &str, trusted: &[&Authority]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let file = directory.path().join("trusted.pem");
        trust(&file, trusted);
        let file = file.display();
        let tls = cache().join("brokers/dist/tls");
        let tls = tls.display();
        let (key, lines, count) = match kind {
            Kind::Kafka => {
                let listener = "listener.name.ssl.ssl";
                let lines = format!(
                    "{listener}.client.auth=required\n{listener}.truststore.type=PEM\n{listener}.truststore.location={file}"
                );
                ("KAFKA_PROPERTIES", lines, 4)
            }
            Kind::Rabbitmq => {
                let lines = format!("ssl_options.cacertfile = {file}\nssl_options.fail_if_no_peer_cert = true");
                ("RABBITMQ_CONF", lines, 4)
            }
            Kind::Nats => {
                let lines = format!(
                    "tls {{ cert_file: \"{tls}/localhost.crt\", key_file: \"{tls}/localhost.key\", ca_file: \"{file}\", \
                     verify: true }}"
                );
                ("NATS_CONF", lines, 2)
            }
        };
        let broker = Broker::start(kind, ports(count), &[(key, lines)]);
        Self { broker, kind, name: unique(test), directory }
    }

    /// The settings, with a pair that is or will be in the directory.
    fn table(&self) -> Table {
        let fact = |name| self.broker.fact(name);
        let (table, ca) = match self.kind {
            Kind::Kafka => (
                Table::new("kafka")
                    .text("bootstrap_servers", fact("KAFKA_SSL_BOOTSTRAP").replace("127.0.0.1", "localhost"))
                    .text("security_protocol", "ssl")
                    .text("topic", &self.name)
                    .text("key", "{targetCuid}"),
                fact("KAFKA_CA"),
            ),
            Kind::Rabbitmq => (
                Table::new("rabbitmq")
                    .text("uri", fact("RABBITMQ_TLS_URL"))
                    .text("exchange", &self.name)
                    .text("queue", &self.name),
                fact("RABBITMQ_CA"),
            ),
            Kind::Nats => (
                Table::new("nats")
                    .raw("servers", json!([fact("NATS_TLS_URL")]).to_string())
                    .text("stream", &self.name)
                    .text("subject", format!("{}.{{event}}", self.name)),
                fact("NATS_CA"),
            ),
        };
        let file = |name: &str| self.directory.path().join(name).display().to_string();
        table.text("ca_file", ca).text("certificate_file", file("client.crt")).text("key_file", file("client.key"))
    }

    fn setup(&self) -> Setup {
        Setup::new(&self.table()).raw("publish.max_in_flight", WINDOW.to_string()).failpoints("reload.look=50ms")
    }

    /// Replaces the pair on disk, each file as a whole.
    fn renew(&self, pair: &Pair) {
        let new = self.directory.path().join("new");
        fs::create_dir_all(&new).expect("the directory can be written");
        let (certificate, key) = pair.write(&new, "client");
        for file in [certificate, key] {
            let name = file.file_name().expect("it has a name").to_owned();
            fs::rename(&file, self.directory.path().join(name)).expect("the directory can be written");
        }
    }

    /// Ends every connection, and from then on takes certificates of this authority only.
    fn restart_trusting(&self, authority: &Authority) {
        self.broker.kill();
        trust(&self.directory.path().join("trusted.pem"), &[authority]);
        self.broker.up();
    }

    fn stored(&self, at_least: u64) -> Vec<crate::support::Delivered> {
        let fact = |name| self.broker.fact(name);
        read(&match self.kind {
            Kind::Kafka => json!({"broker": "kafka", "bootstrap": fact("KAFKA_BOOTSTRAP"), "prefix": self.name}),
            Kind::Rabbitmq => json!({"broker": "rabbitmq", "url": fact("RABBITMQ_URL"), "queues": [self.name],
                "at_least": at_least}),
            Kind::Nats => json!({"broker": "nats", "url": fact("NATS_TLS_URL"), "stream": self.name,
                "ca": fact("NATS_CA"), "certificate": self.file("client.crt"), "key": self.file("client.key")}),
        })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

fn trust(file: &Path, authorities: &[&Authority]) {
    let own = cache().join("brokers/dist/tls/ca.crt");
    let mut text = fs::read_to_string(own).expect("the brokers are installed");
    text.extend(authorities.iter().map(|authority| authority.certificate()));
    fs::write(file, text).expect("the directory can be written");
}

fn flows(daemon: &Daemon, running: &Running) {
    let before = daemon.status().count("published");
    daemon.wait_until("events flow", LIMIT, |status| status.count("published") > before + RATE);
    assert!(!running.is_over());
}

fn renews_its_certificate_under_load(kind: Kind, test: &str) {
    let (old, new) = (Authority::new(), Authority::new());
    let strict = Strict::start(kind, test, &[&old, &new]);
    strict.renew(&old.issue());
    let setup = strict.setup();
    let daemon = setup.start();
    daemon.wait_until("it connects", LIMIT, |status| status.text("/broker/state") == "connected");
    let load = Load { events: u64::MAX, rate: RATE, connections: 4, keys: 4, ..Load::default() };
    let running = load.start(&daemon.ingress);
    flows(&daemon, &running);
    let connected = || {
        let lines = daemon.log();
        lines.lines().filter(|line| line.contains("\"connected\"")).count()
    };
    let before = connected();
    strict.renew(&new.issue());
    let since = || daemon.status().0["broker"]["since_timestamp_seconds"].clone();
    let connected_since = since();
    wait_until("it connects with the new pair", LIMIT, || connected() > before);
    assert_eq!(since(), connected_since, "the state does not flap");
    flows(&daemon, &running);
    assert!(!daemon.log().contains("lost the session"), "no session is lost by it: {}", daemon.log());
    strict.restart_trusting(&new);
    flows(&daemon, &running);
    let sent = running.end().all_accepted();
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("dead_lettered"), status.count("lost")), (0, 0));
    let late = daemon.metric("publish_out_of_order_total", &[]);
    let delivered = strict.stored(sent.accepted());
    let oracle = Oracle { sent: &sent, delivered: &delivered, dead: &[], out_of_order: late };
    let repeats = oracle.judge();
    assert!(repeats <= WINDOW, "{repeats} repeats");
    let stopped = daemon.stop();
    assert!(!stopped.log.contains("PRIVATE KEY"), "a key is in the log");
}

#[test]
fn kafka_takes_a_renewed_client_certificate_under_load() {
    renews_its_certificate_under_load(Kind::Kafka, "renewed_kafka");
}

#[test]
fn rabbitmq_takes_a_renewed_client_certificate_under_load() {
    renews_its_certificate_under_load(Kind::Rabbitmq, "renewed_rabbitmq");
}

#[test]
fn nats_takes_a_renewed_client_certificate_under_load() {
    renews_its_certificate_under_load(Kind::Nats, "renewed_nats");
}

fn says_tls_until_the_expired_certificate_is_renewed(kind: Kind, test: &str) {
    let authority = Authority::new();
    let strict = Strict::start(kind, test, &[&authority]);
    strict.renew(&authority.issue_until(2020));
    let daemon = strict.setup().start();
    let status =
        daemon.wait_until("the reason is shown", LIMIT, |status| status.text("/broker/last_error/kind") == "tls");
    assert_ne!(status.text("/broker/state"), "connected");
    assert_eq!(request_once(&daemon, &Payload::new("cuid-1").body(), &[]).status, 200);
    strict.renew(&authority.issue());
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("published"), status.text("/broker/state")), (1, "connected"));
}

#[test]
fn kafka_says_tls_until_the_expired_certificate_is_renewed() {
    says_tls_until_the_expired_certificate_is_renewed(Kind::Kafka, "expired_kafka");
}

#[test]
fn rabbitmq_says_tls_until_the_expired_certificate_is_renewed() {
    says_tls_until_the_expired_certificate_is_renewed(Kind::Rabbitmq, "expired_rabbitmq");
}

#[test]
fn nats_says_tls_until_the_expired_certificate_is_renewed() {
    says_tls_until_the_expired_certificate_is_renewed(Kind::Nats, "expired_nats");
}

/// The old session stays where the new settings lead nowhere; a correction is taken.
#[test]
fn keeps_the_old_session_until_the_new_settings_connect() {
    let port = ports(2);
    let broker = Broker::start(Kind::Nats, port, &[]);
    let name = unique("keeps_the_old_session");
    let table = |password: &str| {
        Table::new("nats")
            .raw("servers", json!([broker.fact("NATS_URL")]).to_string())
            .text("stream", &name)
            .text("subject", format!("{name}.{{event}}"))
            .text("username", "bridge")
            .text("password", password)
    };
    let setup = Setup::new(&table("bridge-secret"));
    let daemon = setup.start();
    let send = |cuid: &str| assert_eq!(request_once(&daemon, &Payload::new(cuid).body(), &[]).status, 200);
    send("before");
    daemon.wait_until_empty();
    setup.clone().with_broker(&table("wrong-secret-4711")).file();
    assert_eq!(daemon.reload().0["reload"]["changed"], json!(["broker.nats.password"]));
    let said = "the reloaded settings of the broker are not in use, the old connection stays: ";
    let status = daemon.wait_until("why they are not in use", LIMIT, |status| {
        status.text("/broker/last_error/text").starts_with(said)
    });
    assert_eq!(
        (status.text("/broker/state"), status.text("/broker/last_error/kind")),
        ("connected", "authentication")
    );
    assert!(status.0["broker"]["findings"].as_array().is_some_and(|findings| findings.len() == 1), "{}", status.0);
    daemon.wait_for_line("the line that says so", |line| {
        line["level"] == "ERROR" && line["message"].as_str().is_some_and(|text| text.starts_with(said))
    });
    send("meanwhile");
    daemon.wait_until_empty();
    setup.file();
    daemon.reload();
    let is_clear = |status: &crate::support::Status| status.0["broker"]["findings"] == Value::Array(Vec::new());
    daemon.wait_until("the correction is in use", LIMIT, is_clear);
    send("after");
    assert_eq!(daemon.wait_until_empty().count("published"), 3);
    let stopped = daemon.stop();
    assert!(!stopped.log.contains("4711") && !stopped.log.contains("lost the session"), "{}", stopped.log);
}
