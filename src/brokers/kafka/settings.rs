//! The settings of `[broker.kafka]`: read, and checked as far as that goes without a broker.

use std::sync::Arc;

use crate::brokers::kafka::properties;
use crate::brokers::kafka::security::Security;
use crate::brokers::template::TemplateKind;
use crate::brokers::{Encoding, HeaderStyle, Headers, Router, TemplateNames, Topology};
use crate::settings::{Secret, Section};

/// The settings of `[broker.kafka]`.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(super) bootstrap_servers: String,
    pub(in crate::brokers) router: Router,
    pub(super) topology: Topology,
    pub(super) partitions: i32,
    pub(super) replication_factor: i32,
    pub(super) security: Security,
    /// Other librdkafka properties, of the table and of the file; the values count as secrets.
    pub(super) properties: Vec<(String, Secret)>,
}

const SHAPE: TemplateNames = TemplateNames {
    address: "topic",
    key: Some(("key", TemplateKind::Key)),
    address_legal: legal_topic,
    key_legal: |_| Ok(()),
};

const TOPOLOGIES: [(&str, Topology); 3] =
    [("declare", Topology::Declare), ("check", Topology::Check), ("ignore", Topology::Ignore)];

impl Settings {
    /// Reads `[broker.kafka]`.
    pub(crate) fn read(section: &mut Section<'_>) -> Self {
        let bootstrap_servers = section.text("bootstrap_servers");
        if let Err(text) = legal_servers(&bootstrap_servers) {
            section.problem("bootstrap_servers", text);
        }
        let mut settings = Self {
            bootstrap_servers,
            router: Router::read(section, SHAPE),
            topology: section.choice("topology", &TOPOLOGIES),
            partitions: positive_or_default(section, "partitions", i64::from(i32::MAX)),
            // Kafka's protocol has 16 bits for it.
            replication_factor: positive_or_default(section, "replication_factor", i64::from(i16::MAX)),
            security: Security::read(section),
            properties: section.free("properties"),
        };
        let from_file = file_of_properties(section);
        for name in from_file.iter().map(|(name, _)| name) {
            if settings.properties.iter().any(|(other, _)| other == name) {
                section.problem("properties_file", format_args!("{name} is among `properties` too; keep one"));
            }
        }
        settings.properties.extend(from_file);
        for (key, problem) in properties::problems(&settings) {
            section.problem(&key, problem);
        }
        settings
    }

    /// The names of its headers.
    pub(crate) fn headers(style: HeaderStyle) -> Headers {
        Headers::new(style, "ce_", "content-type", Encoding::Plain)
    }

    /// Host and port of each server.
    pub(super) fn hosts(&self) -> Vec<(String, u16)> {
        let parts = self.bootstrap_servers.split(',').filter_map(|server| server.trim().rsplit_once(':'));
        let host = |name: &str| name.trim_start_matches('[').trim_end_matches(']').to_owned();
        parts.filter_map(|(name, port)| Some((host(name), port.parse().ok()?))).collect()
    }

    /// The topic of everything that no route takes.
    pub(super) fn main_topic(&self) -> Option<&str> {
        self.router.main().address().literal()
    }

    /// The topics that are named without a placeholder, the main one first, each once.
    pub(super) fn literal_topics(&self) -> Vec<Arc<str>> {
        self.router.literals().into_iter().map(Arc::from).collect()
    }

    /// Whether a topic is known only when its first event comes.
    pub(super) fn has_rendered_topics(&self) -> bool {
        self.router.routes().iter().any(|route| route.address().literal().is_none())
    }
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

fn positive_or_default(section: &mut Section<'_>, key: &str, most: i64) -> i32 {
    let number = section.integer(key, -1, most);
    if number == 0 {
        section.problem(key, "expected -1 (the cluster's default) or a number from 1, found 0");
    }
    i32::try_from(number).unwrap_or(-1)
}

fn legal_servers(servers: &str) -> Result<(), String> {
    if servers.trim().is_empty() {
        return Err("empty; name at least one broker as host:port".to_owned());
    }
    for server in servers.split(',').map(str::trim) {
        let port = server.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
        if !port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0)) {
            return Err(format!("{server:?} is not host:port; several are written \"a:9092,b:9092\""));
        }
        if server.contains("://") || server.contains('@') {
            return Err("expected host:port without a scheme or a user".to_owned());
        }
    }
    Ok(())
}

/// Kafka's rule: `Topic.validate` in its clients.
fn legal_topic(topic: &str) -> Result<(), String> {
    if topic == "." || topic == ".." {
        return Err(format!("{topic:?} is no legal topic"));
    }
    if topic.is_empty() || topic.len() > 249 {
        return Err(format!("the topic would be {} characters; 1 to 249 are legal", topic.len()));
    }
    if !topic.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
        return Err(format!("{topic:?} is no legal topic; use letters, digits, `.`, `_` and `-`"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::testing;

    fn errors(toml: &str) -> Vec<String> {
        testing::read(&["broker", "kafka"], toml, Settings::read).1.errors
    }

    #[test]
    fn takes_the_defaults_and_a_full_example() {
        let (settings, problems) = testing::read(&["broker", "kafka"], "", Settings::read);
        assert!(problems.errors.is_empty() && problems.warnings.is_empty(), "{problems:?}");
        assert_eq!(settings.main_topic(), Some("plextrac-events"));
        let toml = "
            bootstrap_servers = \"a:9092, [::1]:9093\"
            topic = \"p.{event}\"
            partitions = 3
            security_protocol = \"sasl_plaintext\"
            sasl_mechanism = \"SCRAM-SHA-512\"
            username = \"bridge\"
            password = \"hunter2hunter2\"
            properties = { \"compression.type\" = \"zstd\", linger.ms = 20 }
            [[routes]]
            event = \"A\"
            topic = \"reports\"
            [[routes]]
            event = \"B\"
            topic = \"reports\"";
        let (settings, problems) = testing::read(&["broker", "kafka"], toml, Settings::read);
        assert!(problems.errors.is_empty(), "{problems:?}");
        assert_eq!(settings.main_topic(), None);
        assert_eq!(settings.literal_topics(), ["reports".into()]);
        assert!(settings.has_rendered_topics());
        assert!(!format!("{settings:?}").contains("hunter2") && !format!("{settings:?}").contains("zstd"));
    }

    #[test]
    fn refuses_servers_without_a_port() {
        assert_eq!(
            errors("bootstrap_servers = \" \""),
            ["`bootstrap_servers`: empty; name at least one broker as host:port"]
        );
        assert_eq!(
            errors("bootstrap_servers = \"a:9092,b\""),
            ["`bootstrap_servers`: \"b\" is not host:port; several are written \"a:9092,b:9092\""]
        );
        assert_eq!(errors("bootstrap_servers = \"kafka://u:p@a:1\"").len(), 1);
    }

    #[test]
    fn refuses_illegal_topics_and_counts() {
        assert_eq!(
            errors("topic = \"a b\""),
            ["`topic`: \"a b\" is no legal topic; use letters, digits, `.`, `_` and `-`"]
        );
        assert_eq!(errors("topic = \"..\""), ["`topic`: \"..\" is no legal topic"]);
        assert_eq!(errors(&format!("topic = \"{}\"", "x".repeat(250))).len(), 1);
        assert_eq!(
            errors("partitions = 0"),
            ["`partitions`: expected -1 (the cluster's default) or a number from 1, found 0"]
        );
    }

    #[test]
    fn asks_for_all_of_sasl_or_nothing() {
        assert_eq!(
            errors("security_protocol = \"sasl_ssl\"\nusername = \"u\""),
            [
                "`sasl_mechanism`: empty; security_protocol \"sasl_ssl\" needs it",
                "`password`: empty; security_protocol \"sasl_ssl\" needs it"
            ]
        );
        assert_eq!(
            errors("password = \"hunter2\""),
            ["`password`: security_protocol \"plaintext\" has no use for it; choose \"sasl_ssl\" or \
              \"sasl_plaintext\", or remove it"]
        );
    }

    #[test]
    fn asks_for_a_token_endpoint_where_a_token_logs_in_and_nowhere_else() {
        let sasl = "security_protocol = \"sasl_ssl\"\nsasl_mechanism = \"OAUTHBEARER\"\n";
        let endpoint = "oauth_token_endpoint = \"https://login.example.com/token\"\noauth_client_id = \"bridge\"\n\
                        oauth_client_secret = \"hunter2hunter2\"\noauth_scope = \"kafka\"\n";
        assert_eq!(errors(&format!("{sasl}{endpoint}")), [""; 0]);
        assert_eq!(errors(sasl), ["`oauth_token_endpoint`: empty; sasl_mechanism \"OAUTHBEARER\" needs it"]);
        assert_eq!(
            errors(&format!("{sasl}{endpoint}username = \"u\"")),
            ["`username`: sasl_mechanism \"OAUTHBEARER\" has no use for it; remove it"]
        );
        assert_eq!(
            errors(endpoint),
            ["`oauth_token_endpoint`: only sasl_mechanism \"OAUTHBEARER\" has a use for it; remove it"]
        );
    }

    #[test]
    fn reads_properties_from_a_file_and_shows_none_of_their_values() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let toml = format!("properties_file = {:?}\n", file.path());
        std::fs::write(file.path(), "# a comment\n\nlinger.ms = 7\nclient.rack=a=b\n").unwrap();
        let (settings, problems) = testing::read(&["broker", "kafka"], &toml, Settings::read);
        assert!(problems.errors.is_empty(), "{problems:?}");
        let pairs: Vec<_> =
            settings.properties.iter().map(|(name, value)| (name.as_str(), value.reveal())).collect();
        assert_eq!(pairs, [("linger.ms", "7"), ("client.rack", "a=b")]);
        std::fs::write(file.path(), "secret-value\nacks=1\nlinger.ms=secret-value").unwrap();
        assert_eq!(
            errors(&toml),
            [
                "`properties_file`: line 1 is not `name=value`",
                "`properties.acks`: it carries the promise that nothing is lost, repeated or reordered; remove it",
                "`properties.linger.ms`: librdkafka takes no such value for it",
            ]
        );
        std::fs::write(file.path(), "linger.ms=7").unwrap();
        let twice = format!("{toml}properties = {{ \"linger.ms\" = \"5\" }}");
        assert_eq!(errors(&twice), ["`properties_file`: linger.ms is among `properties` too; keep one"]);
    }

    #[test]
    fn asks_for_certificate_and_key_together() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let toml = format!("security_protocol = \"ssl\"\ncertificate_file = {:?}", file.path());
        let errors = errors(&toml);
        assert_eq!(errors[0], "`key_file`: empty, but certificate_file is given; they go together");
        assert!(errors[1].starts_with("`certificate_file`: librdkafka refuses the settings: "), "{errors:?}");
    }

    #[test]
    fn refuses_properties_that_carry_the_promise_or_do_not_exist() {
        let toml = "[properties]\n\"acks\" = 1\n\"foo.bar\" = \"secret-value\"\n\"linger.ms\" = \"secret-value\"
            \"sasl.password\" = \"secret-value\"";
        let errors = errors(toml);
        assert_eq!(
            errors,
            [
                "`properties.acks`: it carries the promise that nothing is lost, repeated or reordered; remove it",
                "`properties.foo.bar`: no such librdkafka property",
                "`properties.linger.ms`: librdkafka takes no such value for it",
                "`properties.sasl.password`: it has a setting of its own: use `password`",
            ]
        );
    }

    #[test]
    fn tells_of_properties_that_do_not_go_together() {
        let errors = errors("properties = { \"ssl.ca.pem\" = \"secret-value\" }\nsecurity_protocol = \"ssl\"");
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].starts_with("`properties`: librdkafka refuses the settings: "), "{errors:?}");
        assert!(!errors[0].contains("secret-value"), "{errors:?}");
    }
}
