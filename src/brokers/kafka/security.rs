//! The settings of TLS and SASL, and which of them go together.

use std::path::PathBuf;

use crate::brokers::oauth::OAuthSettings;
use crate::settings::{Secret, Section};

const PROTOCOLS: [(&str, &str); 4] =
    [("plaintext", "plaintext"), ("ssl", "ssl"), ("sasl_plaintext", "sasl_plaintext"), ("sasl_ssl", "sasl_ssl")];

const MECHANISMS: [(&str, &str); 5] = [
    ("", ""),
    ("PLAIN", "PLAIN"),
    ("SCRAM-SHA-256", "SCRAM-SHA-256"),
    ("SCRAM-SHA-512", "SCRAM-SHA-512"),
    (OAUTHBEARER, OAUTHBEARER),
];

/// The mechanism that logs in with a token.
const OAUTHBEARER: &str = "OAUTHBEARER";

/// The protection of the connection, and the login.
#[derive(Clone, Debug, Default)]
pub(super) struct Security {
    pub(super) protocol: &'static str,
    pub(super) mechanism: &'static str,
    pub(super) username: String,
    pub(super) password: Option<Secret>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) certificate_file: Option<PathBuf>,
    pub(super) key_file: Option<PathBuf>,
    /// The source of tokens, with OAUTHBEARER.
    pub(super) oauth: Option<OAuthSettings>,
}

impl Security {
    /// Reads what concerns it in `[broker.kafka]`.
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let ca_file = section.readable_file("ca_file");
        let security = Self {
            oauth: OAuthSettings::read(section, ca_file.as_deref()),
            protocol: section.choice("security_protocol", &PROTOCOLS),
            mechanism: section.choice("sasl_mechanism", &MECHANISMS),
            username: section.text("username"),
            password: section.secret("password"),
            ca_file,
            certificate_file: section.readable_file("certificate_file"),
            key_file: section.readable_file("key_file"),
        };
        security.check_sasl(section);
        security.check_tls(section);
        if let Some(path) = &security.key_file {
            section.warn_if_world_readable("key_file", path);
        }
        security
    }

    pub(super) fn is_tls(&self) -> bool {
        self.protocol.ends_with("ssl")
    }

    fn check_sasl(&self, section: &mut Section<'_>) {
        let given = [
            ("sasl_mechanism", !self.mechanism.is_empty()),
            ("username", !self.username.is_empty()),
            ("password", self.password.is_some()),
        ];
        let sasl = self.protocol.starts_with("sasl");
        if sasl && self.mechanism == OAUTHBEARER {
            for (key, _) in given[1..].iter().filter(|(_, given)| *given) {
                section.problem(key, "sasl_mechanism \"OAUTHBEARER\" has no use for it; remove it");
            }
            if self.oauth.is_none() && section.is_blank("oauth_token_endpoint") {
                section.problem("oauth_token_endpoint", "empty; sasl_mechanism \"OAUTHBEARER\" needs it");
            }
            return;
        }
        if self.oauth.is_some() {
            section
                .problem("oauth_token_endpoint", "only sasl_mechanism \"OAUTHBEARER\" has a use for it; remove it");
        }
        for (key, _) in given.iter().filter(|(_, given)| *given != sasl) {
            if sasl {
                section.problem(key, format_args!("empty; security_protocol \"{}\" needs it", self.protocol));
            } else {
                let text = format!(
                    "security_protocol \"{}\" has no use for it; choose \"sasl_ssl\" or \
                     \"sasl_plaintext\", or remove it",
                    self.protocol
                );
                section.problem(key, text);
            }
        }
    }

    fn check_tls(&self, section: &mut Section<'_>) {
        let files = [
            ("ca_file", &self.ca_file),
            ("certificate_file", &self.certificate_file),
            ("key_file", &self.key_file),
        ];
        if !self.is_tls() {
            for (key, _) in files.iter().filter(|(_, path)| path.is_some()) {
                let text = format!(
                    "security_protocol \"{}\" has no use for it; choose \"ssl\" or \"sasl_ssl\", or remove it",
                    self.protocol
                );
                section.problem(key, text);
            }
        }
        let together = [("key_file", &self.key_file), ("certificate_file", &self.certificate_file)];
        for (at, (key, path)) in together.iter().enumerate() {
            let (other, other_path) = together[1 - at];
            if path.is_none() && other_path.is_some() {
                section.problem(key, format_args!("empty, but {other} is given; they go together"));
            }
        }
    }
}
