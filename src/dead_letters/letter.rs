//! One letter: a line of NDJSON, and the event that can be made of it again.

use std::borrow::Cow;
use std::time::SystemTime;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::dead_letters::versioned::{decode, encode, rfc3339};
use crate::event::{Event, LONGEST_FIELD, Origin, cut};

/// An event or body that is kept, and why. The fields are in the order of a line.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Letter {
    /// The address that the settings of that time gave it; like all texts here at most a kilobyte of it.
    #[serde(default)]
    pub(crate) address: String,
    /// The number of times it was sent.
    #[serde(default)]
    pub(crate) attempts: u32,
    /// The signed bytes.
    #[serde(flatten, with = "body")]
    pub(crate) body: Box<[u8]>,
    /// The payload's `event`, empty where it has none.
    #[serde(default)]
    pub(crate) event: String,
    /// The headers of that time.
    #[serde(default)]
    pub(crate) headers: Map<String, Value>,
    /// The event id.
    pub(crate) id: String,
    /// The key of that time.
    #[serde(default)]
    pub(crate) key: String,
    /// `too_large`, `unroutable`, `no_destination`, `not_authorised`, `other`; of a body that was not published
    /// `invalid`, `malformed`, `probe`.
    pub(crate) reason: String,
    /// The time when the request arrived.
    #[serde(with = "rfc3339")]
    pub(crate) received: SystemTime,
    /// `X-Authorization-HMAC-256` as received.
    pub(crate) signature: Option<String>,
    /// Name of the source.
    pub(crate) source: String,
    /// The broker's words, or ours.
    #[serde(default)]
    pub(crate) text: String,
    /// The time when it was written.
    #[serde(with = "rfc3339")]
    pub(crate) time: SystemTime,
    /// `traceparent` as received.
    pub(crate) traceparent: Option<String>,
}

/// The most bytes of a letter whose body has this size. A body at most doubles. Eight other texts can
/// be as long as a field may be, and a control character in them becomes six bytes: event, id, key, address, the broker's text,
/// and the headers for the id, the type and the subject. Everything else takes less than 16 KiB.
pub(crate) fn largest_line(body: usize) -> usize {
    2 * body + 8 * 6 * LONGEST_FIELD + (16 << 10)
}

/// The body in a line: as text, or in base64 what is not UTF-8 or has control characters that no JSON has; escaped, each of
/// them would become six bytes.
mod body {
    use serde::de::Error as _;
    use serde::{Deserializer, Serializer};

    use super::*;

    #[derive(Serialize, Deserialize)]
    struct BodyFields<'b> {
        #[serde(skip_serializing_if = "Option::is_none")]
        body: Option<Cow<'b, str>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        body_base64: Option<String>,
    }

    pub(super) fn serialize<S: Serializer>(body: &[u8], to: S) -> Result<S::Ok, S::Error> {
        let is_control = |byte: &u8| *byte < b' ' && !byte.is_ascii_whitespace();
        let text = std::str::from_utf8(body).ok().filter(|_| !body.iter().any(is_control));
        let body_base64 = text.is_none().then(|| BASE64_STANDARD.encode(body));
        BodyFields { body: text.map(Cow::from), body_base64 }.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Box<[u8]>, D::Error> {
        let BodyFields { body, body_base64 } = BodyFields::deserialize(from)?;
        if let Some(text) = body {
            return Ok(text.into_owned().into_bytes().into());
        }
        let encoded = body_base64.ok_or_else(|| D::Error::custom("no `body`"))?;
        let decoded = BASE64_STANDARD.decode(encoded).map(Vec::into);
        decoded.map_err(|error| D::Error::custom(format_args!("`body_base64`: {error}")))
    }
}

impl Letter {
    /// The letter of an event that was not sent.
    pub(crate) fn new(event: &Event, reason: &str, text: &str) -> Self {
        Self {
            address: String::new(),
            attempts: 0,
            event: event.event().to_owned(),
            headers: Map::new(),
            id: event.id().to_owned(),
            key: String::new(),
            reason: reason.to_owned(),
            received: event.origin.received,
            signature: event.signature().map(str::to_owned),
            source: event.origin.source.to_string(),
            text: cut(text, LONGEST_FIELD).to_owned(),
            time: SystemTime::now(),
            traceparent: event.origin.traceparent.as_deref().map(str::to_owned),
            body: event.body.clone(),
        }
    }

    /// The letter as a line, with its end.
    pub(crate) fn line(&self) -> Vec<u8> {
        let mut line = encode(self).into_bytes();
        line.push(b'\n');
        line
    }

    /// Reads a line.
    ///
    /// # Errors
    /// It is of a later version, or no letter.
    pub(crate) fn parse(line: &[u8]) -> Result<Self, String> {
        decode(line)
    }

    /// The arguments of [`crate::event::Rebuild`].
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

impl std::fmt::Debug for Letter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Bodies are confidential: findings of a penetration test.
        f.debug_struct("Letter").field("id", &self.id).field("reason", &self.reason).finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::status::{KeptReason, RefusalReason};

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

    #[test]
    fn a_body_of_control_characters_takes_no_more_room_than_one_of_json() {
        let body = "\u{1}\u{c}".repeat(100_000).into_bytes();
        let letter = Letter { body: body.clone().into(), ..letter("a") };
        let line = letter.line();
        assert!(line.len() <= largest_line(body.len()), "{} bytes", line.len());
        assert_eq!(Letter::parse(&line), Ok(letter));
    }

    #[test]
    fn keeps_the_times_as_exactly_as_the_clock_has_them() {
        let mut letter = letter("a");
        letter.received += Duration::from_micros(7);
        letter.time += Duration::from_nanos(89);
        let line = String::from_utf8(letter.line()).unwrap();
        assert!(line.contains("\"received\":\"2020-09-13T12:26:40.456007000Z\""), "{line}");
        assert!(line.contains("\"time\":\"2023-11-14T22:13:20.123000089Z\""), "{line}");
        assert_eq!(Letter::parse(line.as_bytes()), Ok(letter));
    }

    /// Letters of every reason, with and without each field that may be absent.
    fn of_every_kind() -> Vec<Letter> {
        let mut binary = letter("c1-abcdef012345");
        binary.body = Box::from(*b"\xff\x00");
        (binary.signature, binary.traceparent) = (None, Some("00-x".into()));
        (binary.key, binary.headers) = (String::new(), Map::new());
        let refused = RefusalReason::ALL.iter().map(|reason| Letter {
            reason: reason.name().to_owned(),
            text: "NO_ROUTE: \"x\" \u{1}\n\u{fc}\u{2028}\u{1f600}".to_owned(),
            attempts: u32::MAX,
            time: SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 62),
            headers: Map::from_iter([("x".to_owned(), Value::from("\u{fc}")), ("a-b".to_owned(), Value::from(""))]),
            body: "{\"text\":\"\\u00e9 \u{e9}/\t\"}".as_bytes().into(),
            ..letter("c2-abcdef012345")
        });
        let kept =
            KeptReason::ALL.iter().zip([&b"{\"a\":1}"[..], b"\xef\xbb\xbf{", b""]).map(|(reason, body)| Letter {
                reason: reason.name().to_owned(),
                attempts: 0,
                event: String::new(),
                received: SystemTime::UNIX_EPOCH,
                address: String::new(),
                key: String::new(),
                headers: Map::new(),
                body: body.into(),
                ..letter("abcdef01234500000000000000000000")
            });
        [letter("c1-abcdef012345"), binary].into_iter().chain(refused).chain(kept).collect()
    }

    /// The format is a promise between versions, byte for byte.
    #[test]
    fn writes_the_lines_that_every_version_has_written() {
        let lines = of_every_kind().iter().flat_map(Letter::line).collect();
        assert_eq!(String::from_utf8(lines).unwrap(), include_str!("letters.ndjson"));
    }

    #[test]
    fn reads_lines_of_every_version_also_with_fields_that_it_does_not_know_and_without_those_that_may_be_absent() {
        let lines = include_str!("letters.ndjson").lines();
        for (line, mut letter) in lines.zip(of_every_kind()) {
            letter.time = letter.time.min(SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799));
            assert_eq!(Letter::parse(line.as_bytes()), Ok(letter.clone()));
            let mut value: Value = serde_json::from_str(line).unwrap();
            value["of_a_later_version"] = Value::from(vec![1]);
            for name in ["address", "attempts", "event", "headers", "key", "signature", "text", "traceparent"] {
                value[name] = Value::Null;
            }
            let (signature, traceparent) = (None, None);
            let bare = Letter {
                address: String::new(),
                attempts: 0,
                event: String::new(),
                headers: Map::new(),
                key: String::new(),
                signature,
                traceparent,
                text: String::new(),
                ..letter
            };
            assert_eq!(Letter::parse(value.to_string().as_bytes()), Ok(bare.clone()));
            value.as_object_mut().unwrap().retain(|_, value| !value.is_null());
            assert_eq!(Letter::parse(value.to_string().as_bytes()), Ok(bare));
        }
    }

    #[test]
    fn names_the_version_of_a_newer_line_and_what_is_wrong_with_a_damaged_one() {
        let newer = String::from_utf8(letter("a").line()).unwrap().replace("\"version\":1", "\"version\":7");
        assert!(Letter::parse(newer.as_bytes()).unwrap_err().contains("version 7"));
        let wrongs: [&[u8]; 5] = [b"", b"[]", b"{}", b"{\"version\":1}", b"{\"version\":1,\"time\":\"x\"}"];
        for wrong in wrongs {
            let why = Letter::parse(wrong).unwrap_err();
            assert!(!why.contains("use the newer"), "{wrong:?}: {why}");
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
