//! The settings of librdkafka's clients, and its configuration made of them; which of its properties are ours alone.

use rdkafka::client::Client;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::types::{RDKafkaConfRes, RDKafkaType};

use crate::brokers::Terms;
use crate::brokers::kafka::batch::LINGER;
use crate::brokers::kafka::client::Quiet;
use crate::brokers::kafka::record::BATCH_SIZE;
use crate::brokers::kafka::security::Security;
use crate::settings::{Secret, Section};

/// The properties that name files, and their settings.
const FILES: [(&str, &str); 3] = [
    ("ssl.ca.location", "ca_file"),
    ("ssl.certificate.location", "certificate_file"),
    ("ssl.key.location", "key_file"),
];

/// Other properties that have a setting of their own.
const OWN: [(&str, &str); 7] = [
    ("bootstrap.servers", "bootstrap_servers"),
    ("metadata.broker.list", "bootstrap_servers"),
    ("security.protocol", "security_protocol"),
    ("sasl.mechanism", "sasl_mechanism"),
    ("sasl.mechanisms", "sasl_mechanism"),
    ("sasl.username", "username"),
    ("sasl.password", "password"),
];

/// Reasons to refuse a property, each with the properties that are refused for it.
const REFUSED: [(&str, &str); 5] = [
    (
        "it carries the promise that nothing is lost, repeated or reordered; remove it",
        "enable.idempotence acks request.required.acks message.timeout.ms delivery.timeout.ms retries \
         message.send.max.retries max.in.flight max.in.flight.requests.per.connection enable.gapless.guarantee \
         queuing.strategy transactional.id transaction.timeout.ms delivery.report.only.error test.mock.num.brokers \
         test.mock.broker.rtt",
    ),
    ("always murmur2_random, so that Java producers agree on partitions; remove it", "partitioner"),
    (
        "it follows from `publish.max_in_flight`; remove it",
        "queue.buffering.max.messages queue.buffering.max.kbytes",
    ),
    ("the topic's limit decides; remove it", "message.max.bytes"),
    ("the client library's log is the bridge's own; remove it", "log.queue"),
];

/// The settings of a client.
#[derive(Clone, Debug)]
pub(super) struct ClientSettings {
    pub(super) servers: String,
    pub(super) security: Security,
    /// Other librdkafka properties, of the table and of the file; the values count as secrets.
    pub(super) properties: Vec<(String, Secret)>,
}

impl ClientSettings {
    /// Reads what concerns a client in `[broker.kafka]`, and checks what can be checked without a broker.
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        // Before librdkafka does it in its way, by which OpenSSL is taken down when the process ends: threads of a client
        // that is still closing then would crash.
        openssl_sys::init();
        let servers = section.text("bootstrap_servers");
        if let Err(text) = legal_servers(&servers) {
            section.problem("bootstrap_servers", text);
        }
        let mut settings =
            Self { servers, security: Security::read(section), properties: section.free("properties") };
        let from_file = file_of_properties(section);
        for (name, _) in from_file.iter().filter(|(name, _)| settings.property(name).is_some()) {
            section.problem("properties_file", format_args!("{name} is among `properties` too; keep one"));
        }
        settings.properties.extend(from_file);
        settings.check(section);
        settings
    }

    fn property(&self, name: &str) -> Option<&str> {
        self.properties.iter().find(|(property, _)| property == name).map(|(_, value)| value.reveal())
    }

    /// Reports the problems of the properties alone, or of all settings together. Never a value.
    fn check(&self, section: &mut Section<'_>) {
        let wrong = |(name, value): &(String, Secret)| {
            Some((name.clone(), refused(name).or_else(|| unusable(name, value.reveal()))?))
        };
        let problems: Vec<(String, String)> = self.properties.iter().filter_map(wrong).collect();
        for (name, why) in &problems {
            section.problem(&format!("properties.{name}"), why);
        }
        let security = &self.security;
        let is_complete = security.mechanism.is_empty() != security.protocol.starts_with("sasl");
        if problems.is_empty() && is_complete && (security.is_tls() || !self.properties.is_empty()) {
            // Without servers nothing is connected: this finds what does not go together, and unusable certificates.
            let mut config = self.base();
            config.remove("bootstrap.servers");
            let create = |native| Client::new(&config, native, RDKafkaType::RD_KAFKA_PRODUCER, Quiet);
            if let Err(error) = config.create_native_config().and_then(create) {
                let text = self.refusal(&error);
                let file = FILES.iter().find(|(property, _)| text.contains(property));
                section.problem(file.map_or("properties", |(_, key)| key), text);
            }
        }
    }

    /// The reason why librdkafka refuses the configuration as a whole, without values of properties and the password.
    pub(super) fn refusal(&self, error: &KafkaError) -> String {
        let mut text = match error {
            KafkaError::ClientCreation(text) => format!("librdkafka refuses the settings: {text}"),
            // Its text has the value in it.
            KafkaError::ClientConfig(_, _, name, _) => format!("librdkafka refuses the value of {name}"),
            _ => "librdkafka refuses the settings".to_owned(),
        };
        let values = self.properties.iter().map(|(_, value)| value).chain(&self.security.password);
        for value in values.map(Secret::reveal).filter(|value| value.len() > 3) {
            text = text.replace(value, "[...]");
        }
        text
    }

    /// Whether the producer compresses, so that sizes at the broker cannot be known before.
    pub(super) fn compresses(&self) -> bool {
        let mut codecs = self.properties.iter().filter(|(name, _)| name.starts_with("compression."));
        codecs.any(|(name, value)| name != "compression.level" && value.reveal() != "none")
    }

    /// Whether the operator says how long a request waits to be filled.
    pub(super) fn has_own_linger(&self) -> bool {
        ["linger.ms", "queue.buffering.max.ms"].iter().any(|name| self.property(name).is_some())
    }

    /// Host and port of each server.
    pub(super) fn hosts(&self) -> Vec<(String, u16)> {
        let parts = self.servers.split(',').filter_map(|server| server.trim().rsplit_once(':'));
        let host = |name: &str| name.trim_start_matches('[').trim_end_matches(']').to_owned();
        parts.filter_map(|(name, port)| Some((host(name), port.parse().ok()?))).collect()
    }

    /// The configuration of a producer; `batch_size` is that of a topic whose limit asks for less than 1 MB.
    pub(super) fn producer(&self, terms: &Terms, batch_size: Option<usize>) -> ClientConfig {
        let mut config = self.base();
        // The ring of the delivery task is the bound, in messages and bytes; librdkafka counts a message until its
        // report was taken, hence twice.
        let messages = terms.max_in_flight.saturating_mul(2).clamp(100_000, 10_000_000);
        config.set("queue.buffering.max.messages", messages.to_string());
        config.set("queue.buffering.max.kbytes", i32::MAX.to_string());
        // The limit of the topic decides: an event of the journal or a dead letter may be larger than what is accepted now.
        config.set("message.max.bytes", "1000000000");
        let backoff = terms.retry_max.as_millis().clamp(100, 500);
        config.set("reconnect.backoff.max.ms", backoff.to_string());
        // A larger one of the operator could gather what no topic takes.
        let most = batch_size.unwrap_or(BATCH_SIZE);
        let own = self.property("batch.size").and_then(|value| value.parse().ok()).unwrap_or(most);
        config.set("batch.size", own.min(most).to_string());
        config
    }

    fn base(&self) -> ClientConfig {
        let security = &self.security;
        let mut config = ClientConfig::new();
        config
            .set_log_level(RDKafkaLogLevel::Info)
            .set("bootstrap.servers", &self.servers)
            .set("client.id", "plextrac-bridge")
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", "0")
            .set("partitioner", "murmur2_random")
            // Topics are created as `topology` says, not by the cluster with its own defaults.
            .set("allow.auto.create.topics", "false")
            // The defaults, 10 s and 30 s, are too long for an event that waits.
            .set("reconnect.backoff.max.ms", "500")
            .set("topic.metadata.propagation.max.ms", "5000")
            .set("socket.timeout.ms", "10000")
            .set("security.protocol", security.protocol);
        // An alias beside its property would win or lose by chance.
        if self.property("queue.buffering.max.ms").is_none() {
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
        // Without TLS it is for the endpoint of tokens alone.
        let ca = security.tls.ca.as_ref().filter(|_| security.is_tls());
        let (certificate, key) = security.tls.client.as_ref().map(|(certificate, key)| (certificate, key)).unzip();
        for ((name, _), path) in FILES.iter().zip([ca, certificate, key]) {
            if let Some(path) = path {
                config.set(*name, path.to_string_lossy());
            }
        }
        if security.is_tls() && security.tls.ca.is_none() && self.property("ssl.ca.pem").is_none() {
            // The OpenSSL inside knows no distribution's directory of certificates.
            config.set("ssl.ca.location", "probe");
        }
        for (name, value) in &self.properties {
            config.set(name, value.reveal());
        }
        config
    }
}

/// The reason to refuse a property whatever its value.
fn refused(name: &str) -> Option<String> {
    if let Some((_, setting)) = FILES.iter().chain(&OWN).find(|(own, _)| *own == name) {
        return Some(format!("it has a setting of its own: use `{setting}`"));
    }
    let found = REFUSED.iter().find(|(_, names)| names.split(' ').any(|refused| refused == name));
    found.map(|(why, _)| (*why).to_owned())
}

/// The reason why librdkafka takes no such property, or no such value.
fn unusable(name: &str, value: &str) -> Option<String> {
    let mut config = ClientConfig::new();
    config.set(name, value);
    let why = match config.create_native_config() {
        Ok(_) => return None,
        Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => "no such librdkafka property",
        Err(_) => "librdkafka does not accept this value",
    };
    Some(why.to_owned())
}

/// The lines `name=value` of a file, as other clients of librdkafka read it; `#` begins a comment.
fn file_of_properties(section: &mut Section<'_>) -> Vec<(String, Secret)> {
    let Some(text) = section.secret_in_file("properties_file") else { return Vec::new() };
    let mut properties: Vec<(String, Secret)> = Vec::new();
    for (number, line) in text.reveal().lines().map(str::trim).enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.split_once('=') {
            Some((name, value)) => properties.push((name.trim_end().to_owned(), Secret::new(value.trim_start()))),
            None => section.problem("properties_file", format_args!("line {} is not `name=value`", number + 1)),
        }
    }
    properties
}

fn legal_servers(servers: &str) -> Result<(), String> {
    if servers.trim().is_empty() {
        return Err("empty; name at least one broker as host:port".to_owned());
    }
    // Before anything of it is shown.
    if servers.contains("://") || servers.contains('@') {
        return Err("expected host:port without a scheme or a user".to_owned());
    }
    for server in servers.split(',').map(str::trim) {
        let port = server.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
        if !port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0)) {
            return Err(format!("{server:?} is not host:port; several are written \"a:9092,b:9092\""));
        }
    }
    Ok(())
}
