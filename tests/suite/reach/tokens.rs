//! Logins with tokens of an OAuth 2.0 endpoint, on brokers that check them by a key: renewed under load, refused, renewed
//! secrets.

use std::cell::Cell;
use std::time::Duration;

use serde_json::json;

use super::own::{Own, connected};
use crate::support::{Kind, LIMIT, Payload, Table, TokenServer, request_once};

/// The life of a token: some are renewed within a test.
const LIFE: Duration = Duration::from_secs(6);

/// A broker that checks the tokens of a server.
struct Checking {
    own: Own,
    tokens: TokenServer,
}

impl Checking {
    fn start(kind: Kind, test: &str, life: Duration) -> Self {
        let tokens = TokenServer::start(life);
        let own = Own::start(kind, test, |files| match kind {
            Kind::Kafka => kafka(&files.write("keys.json", &tokens.key_set())),
            Kind::Rabbitmq => rabbitmq(&files.write("key.pem", &tokens.public_key())),
            Kind::Nats => unreachable!("NATS has no such login"),
        });
        own.files().write("secret", "client-secret-1");
        Self { own, tokens }
    }

    fn table(&self) -> Table {
        let fact = |name| self.own.broker.fact(name);
        let table = match self.own.kind {
            Kind::Kafka => self
                .own
                .table()
                .text("bootstrap_servers", fact("KAFKA_SASL_BOOTSTRAP"))
                .text("security_protocol", "sasl_plaintext")
                .text("sasl_mechanism", "OAUTHBEARER"),
            Kind::Rabbitmq | Kind::Nats => {
                self.own.table().text("uri", fact("RABBITMQ_URL").replace("bridge:bridge-secret@", ""))
            }
        };
        table
            .text("oauth_token_endpoint", self.tokens.url())
            .text("oauth_client_id", "bridge")
            .text("oauth_client_secret_file", self.own.files().text("secret"))
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

/// A token that has ended is refused, so each renewed one is in use before.
fn renews_its_token_under_load(kind: Kind, test: &str) {
    let checking = Checking::start(kind, test, LIFE);
    let setup = Own::setup(&checking.table()).level("trace");
    let (stopped, repeats) = checking.own.renews(&setup, &json!({}), |daemon, _| {
        daemon.wait_until("tokens are renewed", LIMIT, |_| checking.tokens.given() >= 5);
    });
    assert_eq!(repeats, 0);
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
    let daemon = Own::setup(&checking.table()).level("trace").start();
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
    checking.own.files().write("secret", "client-secret-0");
    reason("the endpoint refuses the secret", "invalid_client");
    checking.own.files().write("secret", "client-secret-2");
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("published"), status.text("/broker/state")), (1, "connected"));
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

/// RabbitMQ keeps a connection whose token has ended, and answers 403 to what it has not permitted before: each event
/// has a routing key of its own.
#[test]
fn rabbitmq_keeps_what_a_token_that_has_ended_may_not_publish() {
    let checking = Checking::start(Kind::Rabbitmq, "ended_token_rabbitmq", LIFE);
    let setup = Own::setup(&checking.table()).text("publish.refuse_after", "5s");
    let daemon = setup.start();
    connected(&daemon);
    let count = Cell::new(0);
    let send = || {
        count.set(count.get() + 1);
        let event = format!("E{}", count.get());
        let payload = Payload { event, ..Payload::new(format!("cuid-{}", count.get())) };
        assert_eq!(request_once(&daemon, &payload.body(), &[]).status, 200);
    };
    let secret = |secret: &str| checking.tokens.change(|grants| secret.clone_into(&mut grants.secret));
    secret("client-secret-2");
    daemon.wait_until("the session is lost", LIMIT, |status| {
        send();
        status.text("/broker/state") != "connected"
    });
    // It takes longer than an address that is wrong has.
    let before = count.get();
    daemon.wait_until("events wait", LIMIT, |_| {
        send();
        count.get() > before + 300
    });
    secret("client-secret-1");
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("published"), status.count("dead_lettered")), (count.get(), 0));
}
