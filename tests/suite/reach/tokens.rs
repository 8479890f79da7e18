//! Logins with tokens of an OAuth 2.0 endpoint, on brokers that check them by a key: renewed under load, refused, renewed
//! secrets.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::support::{
    Broker, Daemon, Delivered, Kind, LIMIT, Load, Oracle, Payload, Setup, Table, TokenServer, ports, read,
    request_once, unique,
};

/// The life of a token: some are renewed within a test.
const LIFE: Duration = Duration::from_secs(6);

const RATE: u64 = 500;

/// A broker that checks the tokens of this server.
struct Checking {
    broker: Broker,
    kind: Kind,
    name: String,
    tokens: TokenServer,
    directory: tempfile::TempDir,
}

impl Checking {
    fn start(kind: Kind, test: &str, life: Duration) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let tokens = TokenServer::start(life);
        let file = |name: &str, content: String| {
            let path = directory.path().join(name);
            fs::write(&path, content).expect("the directory can be written");
            path.display().to_string()
        };
        let asked = match kind {
            Kind::Kafka => kafka(&file("keys.json", tokens.key_set())),
            Kind::Rabbitmq => rabbitmq(&file("key.pem", tokens.public_key())),
            Kind::Nats => unreachable!("NATS has no such login"),
        };
        let asked: Vec<(&str, String)> = asked.into_iter().collect();
        let broker = Broker::start(kind, ports(4), &asked);
        let checking = Self { broker, kind, name: unique(test), tokens, directory };
        checking.keep_secret("client-secret-1");
        checking
    }

    fn keep_secret(&self, secret: &str) {
        let (new, file) = (self.directory.path().join("new"), self.secret_file());
        fs::write(&new, secret).expect("the directory can be written");
        fs::rename(&new, file).expect("the directory can be written");
    }

    fn secret_file(&self) -> String {
        self.directory.path().join("secret").display().to_string()
    }

    fn setup(&self) -> Setup {
        let table = match self.kind {
            Kind::Kafka => Table::new("kafka")
                .text("bootstrap_servers", self.broker.fact("KAFKA_SASL_BOOTSTRAP"))
                .text("security_protocol", "sasl_plaintext")
                .text("sasl_mechanism", "OAUTHBEARER")
                .text("topic", &self.name)
                .text("key", "{targetCuid}"),
            Kind::Rabbitmq | Kind::Nats => {
                let uri = self.broker.fact("RABBITMQ_URL").replace("bridge:bridge-secret@", "");
                Table::new("rabbitmq").text("uri", uri).text("exchange", &self.name).text("queue", &self.name)
            }
        };
        let table = table
            .text("oauth_token_endpoint", self.tokens.url())
            .text("oauth_client_id", "bridge")
            .text("oauth_client_secret_file", self.secret_file());
        Setup::new(&table).failpoints("reload.look=50ms").level("trace")
    }

    fn stored(&self, at_least: u64) -> Vec<Delivered> {
        let fact = |name| self.broker.fact(name);
        read(&match self.kind {
            Kind::Kafka => json!({"broker": "kafka", "bootstrap": fact("KAFKA_BOOTSTRAP"), "prefix": self.name}),
            _ => {
                json!({"broker": "rabbitmq", "url": fact("RABBITMQ_URL"), "queues": [self.name], "at_least": at_least})
            }
        })
    }
}

fn kafka(keys: &str) -> Vec<(&'static str, String)> {
    let listener = "listener.name.sasl_plaintext";
    let security = "org.apache.kafka.common.security.oauthbearer";
    let properties = format!(
        "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER\n\
         {listener}.oauthbearer.sasl.jaas.config={security}.OAuthBearerLoginModule required;\n\
         {listener}.oauthbearer.sasl.server.callback.handler.class={security}.OAuthBearerValidatorCallbackHandler\n\
         {listener}.oauthbearer.sasl.oauthbearer.jwks.endpoint.url=file://{keys}\n\
         {listener}.oauthbearer.sasl.oauthbearer.expected.audience=kafka\n\
         {listener}.oauthbearer.connections.max.reauth.ms=4000"
    );
    let options = format!(
        "-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Dorg.apache.kafka.sasl.oauthbearer.allowed.urls=file://{keys} \
         -Dorg.apache.kafka.sasl.oauthbearer.allowed.files={keys}"
    );
    vec![("KAFKA_PROPERTIES", properties), ("KAFKA_JVM_OPTS", options)]
}

fn rabbitmq(key: &str) -> Vec<(&'static str, String)> {
    let lines = format!(
        "auth_backends.1 = rabbit_auth_backend_internal\nauth_backends.2 = rabbit_auth_backend_oauth2\n\
         auth_oauth2.resource_server_id = rabbitmq\nauth_oauth2.default_key = k1\n\
         auth_oauth2.signing_keys.k1 = {key}\nauth_oauth2.algorithms.1 = ES256"
    );
    vec![("RABBITMQ_CONF", lines), ("RABBITMQ_PLUGINS", "rabbitmq_auth_backend_oauth2".to_owned())]
}

fn connected(daemon: &Daemon) {
    daemon.wait_until("it connects", LIMIT, |status| status.text("/broker/state") == "connected");
}

fn renews_its_token_under_load(kind: Kind, test: &str) {
    let checking = Checking::start(kind, test, LIFE);
    let daemon = checking.setup().start();
    connected(&daemon);
    let load = Load { events: u64::MAX, rate: RATE, connections: 4, keys: 4, ..Load::default() };
    let running = load.start(&daemon.ingress);
    daemon.wait_until("tokens are renewed", LIMIT, |_| checking.tokens.given() >= 5);
    let before = daemon.status().count("published");
    daemon.wait_until("events flow", LIMIT, |status| status.count("published") > before + RATE);
    let sent = running.end().all_accepted();
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("dead_lettered"), status.count("lost")), (0, 0));
    let delivered = checking.stored(sent.accepted());
    assert_eq!(Oracle { sent: &sent, delivered: &delivered, dead: &[], out_of_order: 0 }.judge(), 0, "repeats");
    let stopped = daemon.stop();
    assert!(!stopped.log.contains("lost the session"), "a renewed token costs no session");
    shows_no_secret(&stopped.log);
}

fn shows_no_secret(log: &str) {
    // Each token begins with the same letters: those of its algorithm.
    for secret in ["client-secret-", "eyJ"] {
        assert!(!log.contains(secret), "a secret is in the log: {secret}");
    }
}

#[test]
fn kafka_renews_its_token_under_load() {
    renews_its_token_under_load(Kind::Kafka, "token_kafka");
}

#[test]
fn rabbitmq_renews_its_token_under_load() {
    renews_its_token_under_load(Kind::Rabbitmq, "token_rabbitmq");
}

/// Every way in which there is no login, each with its reason; in the end a renewed secret.
fn says_why_a_token_does_not_log_in(kind: Kind, test: &str) {
    let checking = Checking::start(kind, test, Duration::from_hours(1));
    checking.tokens.change(|grants| grants.forged = true);
    let setup = checking.setup();
    let daemon = setup.start();
    let reason = |what: &str, text: &str| {
        let status = daemon.wait_until(what, LIMIT, |status| status.text("/broker/last_error/text").contains(text));
        assert_eq!(status.text("/broker/last_error/kind"), "authentication", "{}", status.0["broker"]);
        assert_ne!(status.text("/broker/state"), "connected");
    };
    daemon.wait_until("a forged token is refused", LIMIT, |status| {
        status.text("/broker/last_error/kind") == "authentication"
    });
    checking.tokens.change(|grants| {
        grants.forged = false;
        "client-secret-2".clone_into(&mut grants.secret);
    });
    assert_eq!(request_once(&daemon, &Payload::new("cuid-1").body(), &[]).status, 200);
    // The same secret again: what was fetched before is forgotten.
    checking.keep_secret("client-secret-0");
    reason("the endpoint refuses the secret", "invalid_client");
    checking.keep_secret("client-secret-2");
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("published"), status.text("/broker/state")), (1, "connected"));
    assert!(Path::new(&checking.secret_file()).exists());
    let stopped = daemon.stop();
    shows_no_secret(&stopped.log);
}

#[test]
fn kafka_says_why_a_token_does_not_log_in() {
    says_why_a_token_does_not_log_in(Kind::Kafka, "no_token_kafka");
}

#[test]
fn rabbitmq_says_why_a_token_does_not_log_in() {
    says_why_a_token_does_not_log_in(Kind::Rabbitmq, "no_token_rabbitmq");
}
