//! From settings to librdkafka's configuration; which of its properties are ours alone.

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::producer::BaseProducer;
use rdkafka::types::RDKafkaConfRes;

use crate::brokers::Terms;
use crate::brokers::kafka::batch::LINGER;
use crate::brokers::kafka::client::Quiet;
use crate::brokers::kafka::record;
use crate::brokers::kafka::settings::Settings;

const PROMISE: &str = "it carries the promise that nothing is lost, repeated or reordered; remove it";

/// The properties that name files, and their settings.
const FILES: [(&str, &str); 3] = [
    ("ssl.ca.location", "ca_file"),
    ("ssl.certificate.location", "certificate_file"),
    ("ssl.key.location", "key_file"),
];

/// Properties that are refused, and why.
const REFUSED: [(&str, &str); 31] = [
    ("enable.idempotence", PROMISE),
    ("acks", PROMISE),
    ("request.required.acks", PROMISE),
    ("message.timeout.ms", PROMISE),
    ("delivery.timeout.ms", PROMISE),
    ("retries", PROMISE),
    ("message.send.max.retries", PROMISE),
    ("max.in.flight", PROMISE),
    ("max.in.flight.requests.per.connection", PROMISE),
    ("enable.gapless.guarantee", PROMISE),
    ("queuing.strategy", PROMISE),
    ("transactional.id", PROMISE),
    ("transaction.timeout.ms", PROMISE),
    ("delivery.report.only.error", PROMISE),
    ("test.mock.num.brokers", PROMISE),
    ("test.mock.broker.rtt", PROMISE),
    ("partitioner", "always murmur2_random, so that Java producers agree on partitions; remove it"),
    ("queue.buffering.max.messages", "it follows from `publish.max_in_flight`; remove it"),
    ("queue.buffering.max.kbytes", "it follows from `publish.max_in_flight`; remove it"),
    ("message.max.bytes", "it follows from `ingress.max_body`; remove it"),
    ("bootstrap.servers", "it has a setting of its own: use `bootstrap_servers`"),
    ("metadata.broker.list", "it has a setting of its own: use `bootstrap_servers`"),
    ("security.protocol", "it has a setting of its own: use `security_protocol`"),
    ("sasl.mechanism", "it has a setting of its own: use `sasl_mechanism`"),
    ("sasl.mechanisms", "it has a setting of its own: use `sasl_mechanism`"),
    ("sasl.username", "it has a setting of its own: use `username`"),
    ("sasl.password", "it has a setting of its own: use `password`"),
    ("ssl.ca.location", "it has a setting of its own: use `ca_file`"),
    ("ssl.certificate.location", "it has a setting of its own: use `certificate_file`"),
    ("ssl.key.location", "it has a setting of its own: use `key_file`"),
    ("log.queue", "the client library's log is the bridge's own; remove it"),
];

/// The problems, each with its key: of the properties alone, then of all settings together. Never a value.
pub(super) fn problems(settings: &Settings) -> Vec<(String, String)> {
    let mut problems = Vec::new();
    for (name, value) in &settings.properties {
        let why = match REFUSED.iter().find(|(refused, _)| refused == name) {
            Some((_, why)) => Some(*why),
            None => wrong(name, value.reveal()),
        };
        problems.extend(why.map(|why| (format!("properties.{name}"), why.to_owned())));
    }
    let security = &settings.security;
    let complete = security.mechanism.is_empty() != security.protocol.starts_with("sasl");
    if problems.is_empty() && complete && (security.is_tls() || !settings.properties.is_empty()) {
        // Without servers nothing is connected: this finds what does not go together, and unusable certificates.
        let mut config = base(settings);
        config.remove("bootstrap.servers");
        if let Err(error) = config.create_with_context::<_, BaseProducer<Quiet>>(Quiet) {
            let text = refusal(settings, &error);
            let key =
                FILES.iter().find(|(property, _)| text.contains(property)).map_or("properties", |(_, key)| key);
            problems.push((key.to_owned(), text));
        }
    }
    problems
}

fn wrong(name: &str, value: &str) -> Option<&'static str> {
    let mut config = ClientConfig::new();
    config.set(name, value);
    match config.create_native_config() {
        Ok(_) => None,
        Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => {
            Some("no such librdkafka property")
        }
        Err(_) => Some("librdkafka takes no such value for it"),
    }
}

/// The reason why librdkafka refuses the configuration as a whole, without values of properties and the password.
pub(super) fn refusal(settings: &Settings, error: &KafkaError) -> String {
    let mut text = match error {
        KafkaError::ClientCreation(text) => format!("librdkafka refuses the settings: {text}"),
        // Its text has the value in it.
        KafkaError::ClientConfig(_, _, name, _) => format!("librdkafka refuses the value of {name}"),
        _ => "librdkafka refuses the settings".to_owned(),
    };
    let values = settings.properties.iter().map(|(_, value)| value).chain(&settings.security.password);
    for value in values.map(crate::settings::Secret::reveal).filter(|value| value.len() > 3) {
        text = text.replace(value, "[...]");
    }
    text
}

/// Whether the producer compresses, so that sizes at the broker cannot be known before.
pub(super) fn compresses(settings: &Settings) -> bool {
    let mut codecs = settings.properties.iter().filter(|(name, _)| name.starts_with("compression."));
    codecs.any(|(name, value)| name != "compression.level" && value.reveal() != "none")
}

/// The configuration of a producer; `batch_size` at most, where a topic's limit asks for less than 1 MB.
pub(super) fn producer(settings: &Settings, terms: &Terms, batch_size: Option<usize>) -> ClientConfig {
    let mut config = base(settings);
    // The ring of the delivery task is the bound, in messages and bytes; librdkafka counts a message until its
    // report was taken, hence twice.
    let messages = terms.max_in_flight.saturating_mul(2).clamp(100_000, 10_000_000);
    config.set("queue.buffering.max.messages", messages.to_string());
    config.set("queue.buffering.max.kbytes", i32::MAX.to_string());
    config.set("message.max.bytes", record::largest(terms).to_string());
    let backoff = terms.retry_max.as_millis().clamp(100, 500);
    config.set("reconnect.backoff.max.ms", backoff.to_string());
    if let Some(batch_size) = batch_size {
        let own = settings.properties.iter().find(|(name, _)| name == "batch.size");
        let own = own.and_then(|(_, value)| value.reveal().parse().ok()).unwrap_or(usize::MAX);
        config.set("batch.size", batch_size.min(own).to_string());
    }
    config
}

/// Whether the operator says how long a request waits to be filled.
pub(super) fn has_own_linger(settings: &Settings) -> bool {
    settings.properties.iter().any(|(name, _)| ["linger.ms", "queue.buffering.max.ms"].contains(&name.as_str()))
}

fn base(settings: &Settings) -> ClientConfig {
    let security = &settings.security;
    let mut config = ClientConfig::new();
    config
        .set_log_level(RDKafkaLogLevel::Info)
        .set("bootstrap.servers", &settings.bootstrap_servers)
        .set("client.id", "plextrac-bridge")
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", "0")
        .set("partitioner", "murmur2_random")
        // The defaults, 10 s and 30 s, are too long for an event that waits.
        .set("reconnect.backoff.max.ms", "500")
        .set("topic.metadata.propagation.max.ms", "5000")
        .set("socket.timeout.ms", "10000")
        .set("security.protocol", security.protocol);
    let has = |name: &str| settings.properties.iter().any(|(property, _)| property == name);
    // An alias beside its property would win or lose by chance.
    if !has("queue.buffering.max.ms") {
        config.set("linger.ms", LINGER.as_millis().to_string());
    }
    if !security.mechanism.is_empty() {
        config.set("sasl.mechanism", security.mechanism);
        if security.oauth.is_none() {
            config.set("sasl.username", &security.username);
        }
    }
    if let Some(password) = &security.password {
        config.set("sasl.password", password.reveal());
    }
    let files = [&security.ca_file, &security.certificate_file, &security.key_file];
    for ((name, _), path) in FILES.iter().zip(files) {
        if let Some(path) = path {
            config.set(*name, path.to_string_lossy());
        }
    }
    if security.is_tls() && security.ca_file.is_none() && !has("ssl.ca.pem") {
        // The OpenSSL inside knows no distribution's directory of certificates.
        config.set("ssl.ca.location", "probe");
    }
    for (name, value) in &settings.properties {
        config.set(name, value.reveal());
    }
    config
}
