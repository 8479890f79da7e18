//! A secret that is shown only on explicit request.

use std::fmt;

/// Secret bytes: `Debug` and logs never show them.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(Box<str>);

impl Secret {
    /// Wraps a secret.
    pub(crate) fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// Returns the secret itself, for the one place that needs it.
    #[must_use]
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// A URL without user, password and query, for logs, errors and `/status`; other text is not shown at all.
#[must_use]
pub(crate) fn redact(text: &str) -> String {
    match url::Url::parse(text) {
        Ok(url) if url.has_host() => {
            let host = url.host_str().unwrap_or_default();
            let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
            format!("{}://{host}{port}{}", url.scheme(), url.path())
        }
        _ => "[not a URL]".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hides_the_secret_when_debugged() {
        assert_eq!(format!("{:?}", Some(Secret::new("hunter2hunter2"))), "Some([secret])");
    }

    #[test]
    fn redacts_user_password_and_query_of_a_url() {
        assert_eq!(redact("amqp://guest:pw@host:5672/%2f?auth=x#y"), "amqp://host:5672/%2f");
        assert_eq!(redact("user:pw@host"), "[not a URL]");
    }
}
