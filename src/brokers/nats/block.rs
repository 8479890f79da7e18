//! The header block of one message, and its size as the server counts it.
//!
//! The client library makes an entry of a hash map of each header, with three allocations, and then text of all of them. Here
//! one value carries the text of all: the library writes a value as it is.

use std::borrow::Cow;
use std::time::SystemTime;

use async_nats::header::NATS_MESSAGE_ID;
use async_nats::{HeaderMap, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::Deserialize as _;
use serde::de::IntoDeserializer as _;
use serde::de::value::{Error, StringDeserializer};

use crate::brokers::Headers;
use crate::event::Event;

/// `NATS/1.0\r\n`, `Nats-Msg-Id: ` before, two ends of line after the text of all headers.
const FRAME: usize = 10 + 13 + 4;

/// The length of the text of most blocks.
const USUAL: usize = 512;

/// As the CloudEvents binding encodes, so that one way of decoding is enough.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// The headers of one message.
pub(super) struct HeaderText {
    pub(super) map: HeaderMap,
    /// The bytes that they add to the payload on the wire.
    pub(super) length: usize,
}

impl HeaderText {
    /// The headers of an event for this stream. Where its source is not the only one, its name follows the id: another
    /// source may have the same event, which the server would drop.
    pub(super) fn new(event: &Event, headers: &Headers, stream: &str, only_source: Option<&str>) -> Self {
        let mut text = String::with_capacity(USUAL);
        text.push_str(&plain(&message_id(event)));
        if only_source != Some(&*event.origin.source) {
            text.push('@');
            text.push_str(&plain(&event.origin.source));
        }
        let mut put = |name: &str, value: &str| {
            for part in ["\r\n", name, ": ", &plain(value)] {
                text.push_str(part);
            }
        };
        put("Nats-Expected-Stream", stream);
        headers.each(event, put);
        let length = FRAME + text.len();
        let text: StringDeserializer<Error> = text.into_deserializer();
        // The one way past the check for an end of line, which no value has here.
        let value = HeaderValue::deserialize(text).expect("any text is a value");
        let mut map = HeaderMap::new();
        map.insert(NATS_MESSAGE_ID, value);
        Self { map, length }
    }
}

/// A value without a control character: an end of line would begin another header.
fn plain(value: &str) -> Cow<'_, str> {
    if value.bytes().any(|byte| byte.is_ascii_control()) { encoded(value) } else { value.into() }
}

/// By what the server knows a repeat: the event id. Without a `cuid` two equal events have one id, and the server would
/// drop the second; so the time of receipt follows, which is the same each time that one event is sent.
fn message_id(event: &Event) -> Cow<'_, str> {
    if !event.cuid().is_empty() {
        return id(event.id());
    }
    // To the microsecond, as the journal keeps it.
    let received = event.origin.received.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{}-{}", event.id(), received.as_micros()).into()
}

/// The event id as `Nats-Msg-Id`: as it is, unless it would break the block or lose its outer blanks. With `%` among
/// what is encoded, two ids never become one.
fn id(id: &str) -> Cow<'_, str> {
    let odd = |byte: u8| byte.is_ascii_control() || byte == b'%';
    if id.starts_with(' ') || id.ends_with(' ') || id.bytes().any(odd) { encoded(id) } else { id.into() }
}

fn encoded(value: &str) -> Cow<'_, str> {
    utf8_percent_encode(value, ENCODED).into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::brokers::{Encoding, HeaderStyle};
    use crate::event::{Fields, Origin};

    fn block(cuid: &str, style: HeaderStyle) -> HeaderText {
        let origin = Origin {
            source: "main".into(),
            signature: Some([b'A'; 64]),
            verified: true,
            traceparent: None,
            received: SystemTime::UNIX_EPOCH,
        };
        let fields = Fields { cuid, event: "E", target_type: "t", ..Fields::default() };
        let event = Event::new(origin, Box::default(), &fields, &[0; 32]);
        let headers = Headers::new(style, "ce-", "content-type", Encoding::Percent);
        HeaderText::new(&event, &headers.with_content_type_also_as("ce-datacontenttype"), "S", Some("main"))
    }

    /// The block as the library writes it.
    fn text(block: &HeaderText) -> String {
        let lines = block.map.iter().map(|(name, values)| format!("{name}: {}\r\n", values[0]));
        format!("NATS/1.0\r\n{}\r\n", lines.collect::<String>())
    }

    #[test]
    fn encodes_ids_that_would_break_the_block() {
        for (cuid, shown) in [
            ("c1", "c1"),
            ("é c", "é c"),
            ("a\r\nb", "a%0D%0Ab"),
            ("a\0", "a%00"),
            ("a%0Ab", "a%250Ab"),
            (" a", "%20a"),
            ("é\n", "%C3%A9%0A"),
        ] {
            assert_eq!(id(cuid), shown);
            let block = text(&block(cuid, HeaderStyle::CloudEvents));
            assert!(block.starts_with(&format!("NATS/1.0\r\nNats-Msg-Id: {shown}-000000000000\r\n")), "{block}");
            assert_eq!(block.lines().count(), 13, "{block}");
        }
    }

    #[test]
    fn tells_equal_events_without_a_cuid_apart_by_their_receipt() {
        let origin = |micros: u64| Origin {
            source: "main".into(),
            signature: None,
            verified: false,
            traceparent: None,
            received: SystemTime::UNIX_EPOCH + Duration::from_nanos(micros * 1000 + 7),
        };
        let headers = Headers::new(HeaderStyle::None, "ce-", "content-type", Encoding::Percent);
        let shown = |micros| {
            let event = Event::new(origin(micros), Box::default(), &Fields::default(), &[0xab; 32]);
            text(&HeaderText::new(&event, &headers, "S", Some("main")))
        };
        assert!(shown(5).contains(&format!("Nats-Msg-Id: {}-5\r\n", "ab".repeat(16))), "{}", shown(5));
        assert_ne!(shown(5), shown(6));
    }

    #[test]
    fn tells_the_events_of_several_sources_apart() {
        let headers = Headers::new(HeaderStyle::None, "ce-", "content-type", Encoding::Percent);
        let shown = |source: &str, only: Option<&str>| {
            let origin = Origin {
                source: source.into(),
                signature: None,
                verified: false,
                traceparent: None,
                received: SystemTime::UNIX_EPOCH,
            };
            let fields = Fields { cuid: "c", ..Fields::default() };
            let block =
                HeaderText::new(&Event::new(origin, Box::default(), &fields, &[0; 32]), &headers, "S", only);
            assert_eq!(block.length, text(&block).len());
            text(&block).lines().nth(1).unwrap().to_owned()
        };
        assert_eq!(shown("a", Some("a")), "Nats-Msg-Id: c-000000000000");
        assert_eq!(shown("a", None), "Nats-Msg-Id: c-000000000000@a");
        assert_eq!(shown("b", None), "Nats-Msg-Id: c-000000000000@b");
        assert_eq!(shown("b", Some("a")), "Nats-Msg-Id: c-000000000000@b", "kept from before it was taken away");
    }

    #[test]
    fn writes_and_counts_the_block_as_the_server_reads_it() {
        let none = block("c", HeaderStyle::None);
        let expected = "NATS/1.0\r\nNats-Msg-Id: c-000000000000\r\nNats-Expected-Stream: S\r\n\r\n";
        assert_eq!((text(&none).as_str(), none.length), (expected, expected.len()));
        let all = block("c\r\nx: y", HeaderStyle::CloudEvents);
        let lines = text(&all);
        assert_eq!(all.length, lines.len());
        let names: Vec<_> = lines.lines().skip(1).filter_map(|line| Some(line.split_once(": ")?.0)).collect();
        let expected = [
            "Nats-Msg-Id",
            "Nats-Expected-Stream",
            "x-authorization-hmac-256",
            "ce-specversion",
            "ce-id",
            "ce-source",
            "ce-type",
            "ce-subject",
            "ce-time",
            "content-type",
            "ce-datacontenttype",
        ];
        assert_eq!(names, expected);
    }
}
