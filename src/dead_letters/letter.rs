//! One letter: a line of NDJSON, and the event that can be made of it again.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

use crate::event::Origin;

/// The version of a line.
pub(crate) const VERSION: u32 = 1;

/// An event or body that is kept, and why.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Letter {
    /// The time when it was written.
    pub(crate) time: SystemTime,
    /// `too_large`, `unroutable`, `no_destination`, `not_authorised`, `other`; of a body that was not published
    /// `invalid`, `malformed`, `probe`.
    pub(crate) reason: String,
    /// The broker's words, or ours.
    pub(crate) text: String,
    /// The number of times it was sent.
    pub(crate) attempts: u32,
    /// The event id.
    pub(crate) id: String,
    /// Name of the source.
    pub(crate) source: String,
    /// The payload's `event`, empty where it has none.
    pub(crate) event: String,
    /// The time when the request arrived.
    pub(crate) received: SystemTime,
    /// `X-Authorization-HMAC-256` as received.
    pub(crate) signature: Option<String>,
    /// `traceparent` as received.
    pub(crate) traceparent: Option<String>,
    /// The address that the settings of that time gave it.
    pub(crate) address: String,
    /// The key of that time.
    pub(crate) key: String,
    /// The headers of that time.
    pub(crate) headers: Map<String, Value>,
    /// The signed bytes.
    pub(crate) body: Box<[u8]>,
}

/// The reason why a line is no letter. It is kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotALetter {
    /// A later version of the program wrote it.
    #[error(
        "written in version {0} of the format, this program reads up to {VERSION}; use the newer plextrac-bridge"
    )]
    Newer(u64),
    /// It is no letter.
    #[error("not a letter: {0}")]
    Damaged(String),
}

fn damaged(text: impl Into<String>) -> NotALetter {
    NotALetter::Damaged(text.into())
}

impl Letter {
    /// The letter as a line, with its end.
    #[must_use]
    pub(crate) fn line(&self) -> Vec<u8> {
        let mut letter = json!({
            "version": VERSION,
            "time": rfc3339(self.time),
            "reason": self.reason,
            "text": self.text,
            "attempts": self.attempts,
            "id": self.id,
            "source": self.source,
            "event": self.event,
            "received": rfc3339(self.received),
            "signature": self.signature,
            "traceparent": self.traceparent,
            "address": self.address,
            "key": self.key,
            "headers": self.headers,
        });
        match std::str::from_utf8(&self.body) {
            Ok(text) => letter["body"] = text.into(),
            Err(_) => letter["body_base64"] = BASE64_STANDARD.encode(&self.body).into(),
        }
        let mut line = letter.to_string().into_bytes();
        line.push(b'\n');
        line
    }

    /// Reads a line.
    ///
    /// # Errors
    /// It is of a later version, or no letter.
    pub(crate) fn parse(line: &[u8]) -> Result<Self, NotALetter> {
        let value: Value = serde_json::from_slice(line).map_err(|error| damaged(error.to_string()))?;
        let Value::Object(mut fields) = value else { return Err(damaged("no object")) };
        match fields.get("version").and_then(Value::as_u64) {
            Some(version) if version == u64::from(VERSION) => {}
            Some(version) if version > u64::from(VERSION) => return Err(NotALetter::Newer(version)),
            _ => return Err(damaged("no `version`")),
        }
        let mut text = |name: &str| match fields.remove(name) {
            Some(Value::String(text)) => Ok(Some(text)),
            None | Some(Value::Null) => Ok(None),
            Some(_) => Err(damaged(format!("`{name}` is no text"))),
        };
        let mut needed = |name: &str| text(name)?.ok_or_else(|| damaged(format!("no `{name}`")));
        let time = moment(&needed("time")?)?;
        let received = moment(&needed("received")?)?;
        let (reason, id, source) = (needed("reason")?, needed("id")?, needed("source")?);
        let body = if let Some(text) = text("body")? {
            text.into_bytes()
        } else {
            let encoded = text("body_base64")?.ok_or_else(|| damaged("no `body`"))?;
            BASE64_STANDARD.decode(encoded).map_err(|error| damaged(format!("`body_base64`: {error}")))?
        };
        Ok(Self {
            time,
            reason,
            text: text("text")?.unwrap_or_default(),
            id,
            source,
            event: text("event")?.unwrap_or_default(),
            received,
            signature: text("signature")?,
            traceparent: text("traceparent")?,
            address: text("address")?.unwrap_or_default(),
            key: text("key")?.unwrap_or_default(),
            attempts: fields
                .get("attempts")
                .and_then(Value::as_u64)
                .map_or(0, |n| u32::try_from(n).unwrap_or(u32::MAX)),
            headers: match fields.remove("headers") {
                Some(Value::Object(headers)) => headers,
                _ => Map::new(),
            },
            body: body.into(),
        })
    }

    /// The arguments of [`crate::event::Rebuild`].
    #[must_use]
    pub(crate) fn origin_and_body(self) -> (Origin, Box<[u8]>) {
        let signature: Option<[u8; 64]> =
            self.signature.as_deref().and_then(|text| text.as_bytes().try_into().ok());
        let origin = Origin {
            verified: signature.is_some_and(|signature| begins(&self.id, &signature)),
            source: self.source.into(),
            signature,
            traceparent: self.traceparent.map(String::into_boxed_str),
            received: self.received,
        };
        (origin, self.body)
    }
}

/// Whether the id was made of this signature: an unsigned source may have been sent one that was never verified.
fn begins(id: &str, signature: &[u8; 64]) -> bool {
    let digits = match id.rsplit_once('-') {
        Some((_, digits)) if digits.len() == 12 => digits,
        None if id.len() == 32 => id,
        _ => return false,
    };
    signature[..digits.len()].eq_ignore_ascii_case(digits.as_bytes())
}

fn rfc3339(time: SystemTime) -> String {
    // Its text ends with the year 9999; a clock beyond that is wrong anyway.
    let last = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_millis(time.clamp(SystemTime::UNIX_EPOCH, last)).to_string()
}

fn moment(text: &str) -> Result<SystemTime, NotALetter> {
    humantime::parse_rfc3339(text).map_err(|error| damaged(format!("{text:?}: {error}")))
}

impl std::fmt::Debug for Letter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Bodies are confidential: findings of a penetration test.
        f.debug_struct("Letter").field("id", &self.id).field("reason", &self.reason).finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn letter(id: &str) -> Letter {
        Letter {
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
            reason: "too_large".into(),
            text: "larger than 10 bytes".into(),
            attempts: 2,
            id: id.into(),
            source: "plextrac".into(),
            event: "ReportPublished".into(),
            received: SystemTime::UNIX_EPOCH + Duration::from_millis(1_600_000_000_456),
            signature: Some("ABCDEF012345".to_owned() + &"0".repeat(52)),
            traceparent: None,
            address: "plextrac".into(),
            key: "k".into(),
            headers: Map::from_iter([("ce_id".to_owned(), Value::from(id))]),
            body: Box::from(*b"{\"event\":\"ReportPublished\"}"),
        }
    }

    #[test]
    fn reads_what_it_wrote() {
        let mut letter = letter("c1-abcdef012345");
        assert_eq!(Letter::parse(&letter.line()), Ok(letter.clone()));
        letter.body = Box::from(*b"\xff\x00");
        letter.signature = None;
        letter.traceparent = Some("00-x".into());
        assert_eq!(Letter::parse(&letter.line()), Ok(letter));
    }

    /// The format is a promise between versions, byte for byte.
    #[test]
    fn writes_the_lines_that_every_version_has_written() {
        let mut letter = letter("c1-abcdef012345");
        let text = String::from_utf8(letter.line()).unwrap();
        letter.body = Box::from(*b"\xff\x00");
        letter.signature = None;
        letter.traceparent = Some("00-x".into());
        letter.key = String::new();
        letter.headers = Map::new();
        let binary = String::from_utf8(letter.line()).unwrap();
        assert_eq!(format!("{text}{binary}"), include_str!("letters.ndjson"));
    }

    #[test]
    fn names_the_version_of_a_newer_line_and_what_is_wrong_with_a_damaged_one() {
        let newer = String::from_utf8(letter("a").line()).unwrap().replace("\"version\":1", "\"version\":7");
        assert_eq!(Letter::parse(newer.as_bytes()), Err(NotALetter::Newer(7)));
        assert!(NotALetter::Newer(7).to_string().contains("version 7"));
        let wrongs: [&[u8]; 5] = [b"", b"[]", b"{}", b"{\"version\":1}", b"{\"version\":1,\"time\":\"x\"}"];
        for wrong in wrongs {
            assert!(matches!(Letter::parse(wrong), Err(NotALetter::Damaged(_))), "{wrong:?}");
        }
    }

    #[test]
    fn takes_a_signature_for_verified_only_where_the_id_was_made_of_it() {
        let verified = |id: &str| letter(id).origin_and_body().0.verified;
        assert!(verified("c1-abcdef012345") && verified("with-dashes-abcdef012345"));
        assert!(verified(&("abcdef012345".to_owned() + &"0".repeat(20))));
        assert!(
            !verified("c1-abcdef012346") && !verified("c1-abcdef") && !verified("") && !verified("abcdef012345")
        );
        let mut unsigned = letter("c1-abcdef012345");
        unsigned.signature = None;
        assert!(!unsigned.origin_and_body().0.verified);
    }

    #[test]
    fn shows_no_body_when_debugged() {
        assert!(!format!("{:?}", letter("a")).contains("event"));
    }
}
