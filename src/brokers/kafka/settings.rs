//! The settings of `[broker.kafka]`: read, and checked as far as that goes without a broker.

use crate::brokers::kafka::properties::ClientSettings;
use crate::brokers::template::TemplateKind;
use crate::brokers::{Encoding, HeaderStyle, Headers, Router, TemplateNames, Topology};
use crate::settings::Section;

/// The settings of `[broker.kafka]`.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(super) client: ClientSettings,
    pub(in crate::brokers) router: Router,
    pub(super) topology: Topology,
    pub(super) partitions: i32,
    pub(super) replication_factor: i32,
}

const SHAPE: TemplateNames = TemplateNames {
    address: "topic",
    key: Some(("key", TemplateKind::Key)),
    address_legal: legal_topic,
    key_legal: |_| Ok(()),
};

impl Settings {
    /// Reads `[broker.kafka]`.
    pub(crate) fn read(section: &mut Section<'_>) -> Self {
        Self {
            client: ClientSettings::read(section),
            router: Router::read(section, SHAPE),
            topology: Topology::read(section),
            partitions: positive_or_default(section, "partitions", i64::from(i32::MAX)),
            // Kafka's protocol has 16 bits for it.
            replication_factor: positive_or_default(section, "replication_factor", i64::from(i16::MAX)),
        }
    }

    /// The names of its headers.
    pub(crate) fn headers(style: HeaderStyle) -> Headers {
        Headers::new(style, "ce_", "content-type", Encoding::Plain)
    }
}

fn positive_or_default(section: &mut Section<'_>, key: &str, most: i64) -> i32 {
    let number = section.integer(key, -1, most);
    if number == 0 {
        section.problem(key, "expected -1 (the cluster's default) or a number from 1, found 0");
    }
    i32::try_from(number).unwrap_or(-1)
}

/// Kafka's rule: `Topic.validate` in its clients.
fn legal_topic(topic: &str) -> Result<(), String> {
    if topic == "." || topic == ".." {
        return Err(format!("{topic:?} is not a legal topic"));
    }
    if topic.is_empty() || topic.len() > 249 {
        return Err(format!("the topic would be {} characters; 1 to 249 are legal", topic.len()));
    }
    if !topic.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
        return Err(format!("{topic:?} is not a legal topic; use letters, digits, `.`, `_` and `-`"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::brokers::Terms;
    use crate::settings::testing;

    fn errors(toml: &str) -> Vec<String> {
        testing::read(&["broker", "kafka"], toml, Settings::read).1.errors
    }

    #[test]
    fn takes_the_defaults_and_a_full_example() {
        let (settings, problems) = testing::read(&["broker", "kafka"], "", Settings::read);
        assert!(problems.errors.is_empty() && problems.warnings.is_empty(), "{problems:?}");
        assert_eq!(settings.router.main().address().literal(), Some("plextrac-events"));
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
        assert_eq!(settings.router.main().address().literal(), None);
        assert_eq!(settings.router.literals(), ["reports"]);
        assert!(settings.router.has_placeholders());
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
            ["`topic`: \"a b\" is not a legal topic; use letters, digits, `.`, `_` and `-`"]
        );
        assert_eq!(errors("topic = \"..\""), ["`topic`: \"..\" is not a legal topic"]);
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
            ["`password`: security_protocol \"plaintext\" does not use it; choose \"sasl_ssl\" or \
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
            ["`username`: sasl_mechanism \"OAUTHBEARER\" does not use it; remove it"]
        );
        assert_eq!(
            errors(endpoint),
            ["`oauth_token_endpoint`: only sasl_mechanism \"OAUTHBEARER\" uses it; remove it"]
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
            settings.client.properties.iter().map(|(name, value)| (name.as_str(), value.reveal())).collect();
        assert_eq!(pairs, [("linger.ms", "7"), ("client.rack", "a=b")]);
        std::fs::write(file.path(), "secret-value\nacks=1\nlinger.ms=secret-value").unwrap();
        assert_eq!(
            errors(&toml),
            [
                "`properties_file`: line 1 is not `name=value`",
                "`properties.acks`: it carries the promise that nothing is lost, repeated or reordered; remove it",
                "`properties.linger.ms`: librdkafka does not accept this value",
            ]
        );
        std::fs::write(file.path(), "linger.ms=7").unwrap();
        let twice = format!("{toml}properties = {{ \"linger.ms\" = \"5\" }}");
        assert_eq!(errors(&twice), ["`properties_file`: linger.ms is among `properties` too; keep one"]);
    }

    #[test]
    fn asks_for_certificate_and_key_together() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let toml = format!("security_protocol = \"ssl\"\ncertificate_file = {:?}\n", file.path());
        assert_eq!(errors(&toml), ["`certificate_file`: given without `key_file`"]);
        let errors = errors(&format!("{toml}key_file = {:?}", file.path()));
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].starts_with("`certificate_file`: librdkafka refuses the settings: "), "{errors:?}");
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
                "`properties.linger.ms`: librdkafka does not accept this value",
                "`properties.sasl.password`: it has a setting of its own: use `password`",
            ]
        );
    }

    #[test]
    fn makes_batches_no_larger_than_those_it_assumes() {
        let batch_size = |toml: &str, most| {
            let (settings, problems) = testing::read(&["broker", "kafka"], toml, Settings::read);
            assert!(problems.errors.is_empty(), "{problems:?}");
            let config = settings.client.producer(&Terms::of_tests(Settings::headers), most);
            config.get("batch.size").map(str::to_owned)
        };
        assert_eq!(batch_size("", None).as_deref(), Some("1000000"));
        assert_eq!(batch_size("", Some(5000)).as_deref(), Some("5000"));
        assert_eq!(batch_size("properties = { \"batch.size\" = 3000 }", Some(5000)).as_deref(), Some("3000"));
        assert_eq!(batch_size("properties = { \"batch.size\" = 3000000 }", None).as_deref(), Some("1000000"));
    }

    #[test]
    fn tells_of_properties_that_do_not_go_together() {
        let errors = errors("properties = { \"ssl.ca.pem\" = \"secret-value\" }\nsecurity_protocol = \"ssl\"");
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].starts_with("`properties`: librdkafka refuses the settings: "), "{errors:?}");
        assert!(!errors[0].contains("secret-value"), "{errors:?}");
    }
}
