//! The URIs of the nodes: where they are read from, and which are taken; user, password and query are secrets.

use lapin::uri::AMQPUri;
use serde_json::json;
use url::Url;

use crate::settings::{ENCODE, Secret, Section, is_ambiguous, redact};

const FORM: &str = "write it as amqp://user:password@host:5672/%2f";

/// The URIs, and the key that they are from.
pub(super) fn uris(section: &mut Section<'_>) -> (&'static str, Vec<Secret>) {
    let several = section.texts("uris");
    section.describe("uri", json!({ "type": "string", "pattern": "^amqps?://", "writeOnly": true }));
    section.describe("uris", json!({ "items": { "pattern": "^amqps?://" }, "writeOnly": true }));
    let file = section.path("uri_file").is_some();
    if section.is_blank("uris") {
        let key = if file { "uri_file" } else { "uri" };
        let Some(uri) = section.secret_from("uri", "uri_file") else {
            if !file {
                section.problem(key, format_args!("empty; {FORM}"));
            }
            return (key, Vec::new());
        };
        if let Err(problem) = parse(uri.reveal()) {
            section.problem(key, problem);
        }
        return (key, vec![uri]);
    }
    if file || !section.is_default("uri") {
        let other = if file { "uri_file" } else { "uri" };
        section.contradiction("uris", other, "keep one");
    }
    // Known, though only a default.
    section.text("uri");
    let mut vhosts = Vec::new();
    for text in &several {
        match parse(text) {
            Ok(uri) => vhosts.push(uri.vhost),
            Err(problem) => section.problem("uris", format_args!("{}: {problem}", redact(text))),
        }
    }
    if vhosts.windows(2).any(|pair| pair[0] != pair[1]) {
        section.problem("uris", "the URIs have different virtual hosts; a cluster is given as one of them");
    }
    ("uris", several.into_iter().map(Secret::new).collect())
}

/// Whether a user stands in it, other than the one of the default.
pub(super) fn has_user(uri: &Secret) -> bool {
    let default = "amqp://guest:guest@localhost:5672/%2f";
    uri.reveal() != default && Url::parse(uri.reveal()).is_ok_and(|url| !url.username().is_empty())
}

/// Whether no password stands in it.
pub(super) fn has_no_password(uri: &Secret) -> bool {
    Url::parse(uri.reveal()).is_ok_and(|url| url.password().is_none())
}

/// Reads a URI; the text of an error shows nothing of it: user, password and query are secrets.
pub(super) fn parse(text: &str) -> Result<AMQPUri, String> {
    if is_ambiguous(text) {
        return Err(ENCODE.to_owned());
    }
    let url = Url::parse(text).map_err(|error| format!("not a URI ({error}); {FORM}"))?;
    if !matches!(url.scheme(), "amqp" | "amqps") {
        return Err(format!("must start with amqp:// or amqps://; {FORM}"));
    }
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| format!("no host; {FORM}"))?;
    let mut uri: AMQPUri = text.parse().map_err(|_: String| {
        "user, password, virtual host or query cannot be read; percent-encode what is not a letter or digit there, \
         and give frame_max, channel_max and heartbeat as whole numbers"
            .to_owned()
    })?;
    // The library takes the URL's domain name and falls back to localhost for an IPv6 address.
    host.trim_start_matches('[').trim_end_matches(']').clone_into(&mut uri.authority.host);
    Ok(uri)
}
