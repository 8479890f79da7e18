//! Client certificates and passwords renewed on disk under load, the old ones then refused; settings of the broker that are
//! wrong.

use std::fs;

use serde_json::{Value, json};

use super::own::{Files, Own, connects_again};
use crate::support::{
    Authority, Broker, Kind, LIMIT, Pair, Payload, Setup, Table, admin, cache, ports, request_once, said, unique,
};

/// Starts a broker that wants a certificate of an authority in the file `trusted.pem`.
fn strict(kind: Kind, test: &str, authorities: &[&Authority]) -> Own {
    Own::start(kind, test, |files| {
        let file = trust(files, authorities);
        let tls = cache().join("brokers/dist/tls");
        let tls = tls.display();
        match kind {
            Kind::Kafka => {
                let listener = "listener.name.ssl.ssl";
                let lines = format!(
                    "{listener}.client.auth=required\n{listener}.truststore.type=PEM\n{listener}.truststore.location={file}"
                );
                vec![("KAFKA_PROPERTIES", lines)]
            }
            Kind::Rabbitmq => {
                let lines = format!("ssl_options.cacertfile = {file}\nssl_options.fail_if_no_peer_cert = true");
                vec![("RABBITMQ_CONF", lines)]
            }
            Kind::Nats => {
                let lines = format!(
                    "tls {{ cert_file: \"{tls}/localhost.crt\", key_file: \"{tls}/localhost.key\", ca_file: \"{file}\", \
                     verify: true }}"
                );
                vec![("NATS_CONF", lines)]
            }
        }
    })
}

/// The settings, with a pair that is or will be in the directory.
fn over_tls(own: &Own) -> Table {
    let fact = |name| own.broker.fact(name);
    let (table, ca) = match own.kind {
        Kind::Kafka => {
            let servers = fact("KAFKA_SSL_BOOTSTRAP").replace("127.0.0.1", "localhost");
            (own.table().text("bootstrap_servers", servers).text("security_protocol", "ssl"), fact("KAFKA_CA"))
        }
        Kind::Rabbitmq => (own.table().text("uri", fact("RABBITMQ_TLS_URL")), fact("RABBITMQ_CA")),
        Kind::Nats => (own.table().raw("servers", json!([fact("NATS_TLS_URL")]).to_string()), fact("NATS_CA")),
    };
    let file = |name| own.files().text(name);
    table.text("ca_file", ca).text("certificate_file", file("client.crt")).text("key_file", file("client.key"))
}

fn renew(own: &Own, pair: &Pair) {
    own.files().write("client.crt", &pair.certificate);
    own.files().write("client.key", &pair.key);
}

fn trust(files: &Files<'_>, authorities: &[&Authority]) -> String {
    let brokers = cache().join("brokers/dist/tls/ca.crt");
    let mut text = fs::read_to_string(brokers).expect("the brokers are installed");
    text.extend(authorities.iter().map(|authority| authority.certificate()));
    files.write("trusted.pem", &text)
}

fn renews_its_certificate_under_load(kind: Kind, test: &str) {
    let (old, new) = (Authority::new(), Authority::new());
    let own = strict(kind, test, &[&old, &new]);
    renew(&own, &old.issue());
    let reader = match kind {
        Kind::Nats => json!({"url": own.broker.fact("NATS_TLS_URL"), "ca": own.broker.fact("NATS_CA"),
            "certificate": own.files().text("client.crt"), "key": own.files().text("client.key")}),
        Kind::Kafka | Kind::Rabbitmq => json!({}),
    };
    let (stopped, _) = own.renews(&Own::setup(&over_tls(&own)), &reader, |daemon, flows| {
        let since = || daemon.status().0["broker"]["since_timestamp_seconds"].clone();
        let connected_since = since();
        connects_again(daemon, || renew(&own, &new.issue()));
        assert_eq!(since(), connected_since, "the state does not flap");
        flows();
        assert!(!daemon.log().contains("lost the session"), "no session is lost by it: {}", daemon.log());
        // Ends every connection, and from then on takes certificates of the new authority only.
        own.broker.kill();
        trust(&own.files(), &[&new]);
        own.broker.up();
    });
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

/// The way in which a broker knows the user of the test.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Login {
    Password,
    /// NATS alone: a word without a user.
    Token,
}

const OLD: &str = "first-4711";
const NEW: &str = "second-4712";

/// A broker with a user `rotating` beside those that it has anyway.
struct Users {
    own: Own,
    login: Login,
}

impl Users {
    fn start(kind: Kind, login: Login, test: &str) -> Self {
        let own = Own::start(kind, test, |files| match kind {
            Kind::Kafka => {
                let scram = "listener.name.sasl_plaintext.scram-sha-256.connections.max.reauth.ms=2000";
                vec![("KAFKA_PROPERTIES", scram.to_owned())]
            }
            Kind::Rabbitmq => Vec::new(),
            Kind::Nats => {
                let file = files.write("users.conf", &Self::in_nats(login, OLD));
                // The server takes it as relative to its own directory.
                let include = format!("include '{}{file}'", "../".repeat(20));
                let lines = match login {
                    Login::Password => "authorization { users: $USERS }",
                    Login::Token => "no_auth_user: \"\"\nauthorization { token: $TOKEN }",
                };
                vec![("NATS_CONF", format!("{include}\n{lines}"))]
            }
        });
        let users = Self { own, login };
        if kind == Kind::Rabbitmq {
            users.own.broker.rabbitmqctl(&["add_user", "rotating", OLD]);
            users.own.broker.rabbitmqctl(&["set_permissions", "-p", "/", "rotating", ".*", ".*", ".*"]);
        }
        if kind == Kind::Kafka {
            users.set(OLD);
        }
        users.own.files().write("login", OLD);
        users
    }

    fn in_nats(login: Login, password: &str) -> String {
        match login {
            Login::Password => format!(
                "USERS: [ {{ user: anonymous, password: anonymous }}, {{ user: rotating, password: {password:?} }} ]\n"
            ),
            Login::Token => format!("TOKEN: {password:?}\n"),
        }
    }

    /// Gives the user this password.
    fn set(&self, password: &str) {
        let broker = &self.own.broker;
        match self.own.kind {
            Kind::Kafka => {
                admin(&json!({"broker": "kafka", "do": "password", "user": "rotating", "password": password,
                "bootstrap": broker.fact("KAFKA_SSL_BOOTSTRAP").replace("127.0.0.1", "localhost"),
                "ca": broker.fact("KAFKA_CA")}));
            }
            Kind::Rabbitmq => broker.rabbitmqctl(&["change_password", "rotating", password]),
            Kind::Nats => {
                self.own.files().write("users.conf", &Self::in_nats(self.login, password));
                broker.signal("HUP");
            }
        }
    }

    /// The settings, with this file for the password.
    fn table(&self, file: &str) -> Table {
        let fact = |name| self.own.broker.fact(name);
        let table = match self.own.kind {
            Kind::Kafka => self
                .own
                .table()
                .text("bootstrap_servers", fact("KAFKA_SASL_BOOTSTRAP"))
                .text("security_protocol", "sasl_plaintext")
                .text("sasl_mechanism", "SCRAM-SHA-256"),
            Kind::Rabbitmq => {
                self.own.table().text("uri", fact("RABBITMQ_URL").replace("bridge:bridge-secret@", ""))
            }
            Kind::Nats => self.own.table().raw("servers", json!([fact("NATS_URL")]).to_string()),
        };
        match self.login {
            Login::Password => table.text("username", "rotating").text("password_file", file),
            Login::Token => table.text("token_file", file),
        }
    }
}

fn renews_its_password_under_load(kind: Kind, login: Login, test: &str) {
    let users = Users::start(kind, login, test);
    let files = users.own.files();
    let reader = match login {
        Login::Token => {
            json!({"url": users.own.broker.fact("NATS_URL").replace("nats://", &format!("nats://{NEW}@"))})
        }
        Login::Password => json!({}),
    };
    let setup = Own::setup(&users.table(&files.text("login")));
    let (stopped, _) = users.own.renews(&setup, &reader, |daemon, flows| {
        users.set(NEW);
        connects_again(daemon, || drop(files.write("login", NEW)));
        flows();
        if kind == Kind::Rabbitmq {
            // It leaves connections alone whose password was right when they came.
            connects_again(daemon, || {
                users.own.broker.rabbitmqctl(&["close_all_user_connections", "rotating", "renewed"]);
            });
        }
        let old = Setup::new(&users.table(&files.write("old", OLD))).run(&["check", "--connect"]);
        assert_eq!(old.status.code(), Some(1), "the old one is refused: {}", said(&old));
    });
    for secret in [OLD, NEW] {
        assert!(!stopped.log.contains(secret), "a password is in the log");
    }
}

#[test]
fn kafka_takes_a_renewed_password_under_load() {
    renews_its_password_under_load(Kind::Kafka, Login::Password, "password_kafka");
}

#[test]
fn rabbitmq_takes_a_renewed_password_under_load() {
    renews_its_password_under_load(Kind::Rabbitmq, Login::Password, "password_rabbitmq");
}

#[test]
fn nats_takes_a_renewed_password_under_load() {
    renews_its_password_under_load(Kind::Nats, Login::Password, "password_nats");
}

#[test]
fn nats_takes_a_renewed_token_under_load() {
    renews_its_password_under_load(Kind::Nats, Login::Token, "token_nats");
}

fn says_tls_until_the_expired_certificate_is_renewed(kind: Kind, test: &str) {
    let authority = Authority::new();
    let own = strict(kind, test, &[&authority]);
    renew(&own, &authority.issue_until(2020));
    let daemon = Own::setup(&over_tls(&own)).start();
    let status =
        daemon.wait_until("the reason is shown", LIMIT, |status| status.text("/broker/last_error/kind") == "tls");
    assert_ne!(status.text("/broker/state"), "connected");
    assert_eq!(request_once(&daemon, &Payload::new("cuid-1").body(), &[]).status, 200);
    renew(&own, &authority.issue());
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
    let said = "the reloaded settings of the broker are not in use; the old connection stays: ";
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
    assert!(!stopped.log.contains("wrong-secret") && !stopped.log.contains("lost the session"), "{}", stopped.log);
}
