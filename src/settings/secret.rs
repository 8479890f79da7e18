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

    /// Reads a secret from a file, which loses one line break at its end; also returns a doubt about it, for the operator.
    ///
    /// # Errors
    /// The text is surely not what was meant.
    pub(crate) fn read(text: &str) -> Result<(Self, Option<String>), &'static str> {
        let text = without_line_break(text);
        Ok((Self::new(text), Self::doubt(text)?))
    }

    /// The reason to doubt that a text is the secret that was meant.
    ///
    /// # Errors
    /// It is surely not.
    pub(super) fn doubt(text: &str) -> Result<Option<String>, &'static str> {
        if text.starts_with('\u{feff}') {
            return Err("begins with a byte order mark (U+FEFF), which no sender signs with; save it without one");
        }
        if text.trim().is_empty() {
            return Err("is empty");
        }
        let found = [text.chars().next(), text.chars().next_back()].map(|end| end.and_then(oddity));
        let is_placeholder =
            |mark: &str| text.starts_with(mark) || (text.ends_with(['}', ')']) && text.contains(mark));
        let mark = ["${", "$(", "{{"].into_iter().find(|mark| is_placeholder(mark));
        let oddities: Vec<String> = [("begins", found[0]), ("ends", found[1])]
            .into_iter()
            .filter_map(|(verb, oddity)| Some(format!("{verb} with {}", oddity?)))
            .chain(mark.map(|mark| format!("has `{mark}`, which is not replaced by anything")))
            .collect();
        let advice = "it is part of the secret; remove it unless the sender's secret has it too";
        Ok((!oddities.is_empty()).then(|| format!("the secret {}: {advice}", oddities.join(" and "))))
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

/// A text without one line break at its end.
pub(super) fn without_line_break(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

/// The name of a character that a secret hardly has at an end.
fn oddity(end: char) -> Option<&'static str> {
    match end {
        '\n' | '\r' => Some("a line break"),
        '"' | '\'' | '`' => Some("a quote"),
        '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}' => Some("an invisible character"),
        end if end.is_whitespace() => Some("a blank"),
        end if end.is_control() => Some("a control character"),
        _ => None,
    }
}

/// The advice about a URI that [`is_ambiguous`].
pub(crate) const ENCODE: &str = "the password, or what comes after the host, has a character that must be percent-encoded \
                                 there: / as %2F, ? as %3F, # as %23, @ as %40";

/// Whether a part of the password may stand after the host of this URI: there is an `@`, or a fragment, and no URI in the
/// settings needs either there.
#[must_use]
pub(crate) fn is_ambiguous(uri: &str) -> bool {
    let rest = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    rest.contains('#') || rest.split_once(['/', '?']).is_some_and(|(_, after)| after.contains('@'))
}

/// A URL without user, password and query, for logs, errors and `/status`; other text is not shown at all.
#[must_use]
pub(crate) fn redact(text: &str) -> String {
    match url::Url::parse(text) {
        _ if is_ambiguous(text) => "[not shown]".to_owned(),
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
    fn doubts_what_is_hardly_the_secret_that_was_meant() {
        let read = |text: &str| Secret::read(text).map(|(secret, doubt)| (secret.reveal().to_owned(), doubt));
        for text in ["s e c r e t", "s\n", "s\r\n", "se\"cret", "a{b}", "$x", "pa$$word"] {
            assert_eq!(read(text), Ok((text.trim_end().to_owned(), None)), "{text:?}");
        }
        for (text, found) in [
            ("s\n\n", "ends with a line break"),
            (" s", "begins with a blank"),
            ("s\u{a0}", "ends with a blank"),
            ("'s'", "begins with a quote and ends with a quote"),
            ("\"s", "begins with a quote"),
            ("s\u{200b}", "ends with an invisible character"),
            ("s\0", "ends with a control character"),
            ("${SECRET}", "has `${`, which is not replaced by anything"),
            ("a-${SECRET}", "has `${`, which is not replaced by anything"),
            ("{{ secret }}", "has `{{`, which is not replaced by anything"),
        ] {
            let (secret, doubt) = read(text).unwrap();
            assert_eq!(secret, text.strip_suffix('\n').unwrap_or(text));
            assert!(
                doubt.as_ref().is_some_and(|doubt| doubt.starts_with(&format!("the secret {found}: "))),
                "{doubt:?}"
            );
        }
        assert!(read("\u{feff}secret").unwrap_err().starts_with("begins with a byte order mark"));
        for text in ["", "\n", " \n", "\r\n\r\n"] {
            assert_eq!(read(text), Err("is empty"), "{text:?}");
        }
    }

    #[test]
    fn redacts_user_password_and_query_of_a_url() {
        assert_eq!(redact("amqp://guest:p@w%2F@host:5672/%2f?auth=x"), "amqp://host:5672/%2f");
        assert_eq!(redact("user:pw@host"), "[not a URL]");
        for text in [
            "amqp://u:12/se@host/",
            "amqp://u:p@ss/w#rd@host/",
            "amqp://12?se@host",
            "amqp:///12@host",
            "nats://u#p",
        ] {
            assert_eq!(redact(text), "[not shown]", "{text}");
        }
    }
}
