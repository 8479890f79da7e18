//! The settings of TLS and SASL, and which of them go together.

use crate::brokers::oauth::OAuthSettings;
use crate::brokers::tls::TlsFiles;
use crate::settings::{Secret, Section};

const PROTOCOLS: [&str; 4] = ["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"];

const MECHANISMS: [&str; 5] = ["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", OAUTHBEARER];

/// The mechanism that logs in with a token.
const OAUTHBEARER: &str = "OAUTHBEARER";

/// The protection of the connection, and the login.
#[derive(Clone, Debug, Default)]
pub(super) struct Security {
    pub(super) protocol: &'static str,
    pub(super) mechanism: &'static str,
    pub(super) username: String,
    pub(super) password: Option<Secret>,
    pub(super) tls: TlsFiles,
    /// The source of tokens, with OAUTHBEARER.
    pub(super) oauth: Option<OAuthSettings>,
}

impl Security {
    /// Reads what concerns it in `[broker.kafka]`.
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let tls = TlsFiles::read(section);
        let security = Self {
            oauth: OAuthSettings::read(section, tls.ca.as_deref()),
            protocol: section.choice("security_protocol", &PROTOCOLS.map(|word| (word, word))),
            mechanism: section.choice("sasl_mechanism", &MECHANISMS.map(|word| (word, word))),
            username: section.text("username"),
            password: section.secret("password"),
            tls,
        };
        security.check_sasl(section);
        if !security.is_tls() {
            TlsFiles::refuse(section, &security.useless("\"ssl\" or \"sasl_ssl\""), security.oauth.is_some());
        }
        security
    }

    pub(super) fn is_tls(&self) -> bool {
        self.protocol.ends_with("ssl")
    }

    fn useless(&self, others: &str) -> String {
        format!("security_protocol \"{}\" does not use it; choose {others}, or remove it", self.protocol)
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
                section.problem(key, "sasl_mechanism \"OAUTHBEARER\" does not use it; remove it");
            }
            if self.oauth.is_none() && section.is_blank("oauth_token_endpoint") {
                section.problem("oauth_token_endpoint", "empty; sasl_mechanism \"OAUTHBEARER\" needs it");
            }
            return;
        }
        if self.oauth.is_some() {
            section.problem("oauth_token_endpoint", "only sasl_mechanism \"OAUTHBEARER\" uses it; remove it");
        }
        let wrong = if sasl {
            format!("empty; security_protocol \"{}\" needs it", self.protocol)
        } else {
            self.useless("\"sasl_ssl\" or \"sasl_plaintext\"")
        };
        for (key, _) in given.iter().filter(|(_, given)| *given != sasl) {
            section.problem(key, &wrong);
        }
    }
}
