//! The header block of one message, and its size as the server counts it.

use std::borrow::Cow;
use std::time::SystemTime;

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::brokers::Headers;
use crate::event::Event;

/// `NATS/1.0\r\n` before and an empty line after the headers.
const FRAME: usize = 12;

/// As the CloudEvents binding encodes, so that one way of decoding is enough.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// The headers of one message.
pub(super) struct HeaderText {
    pub(super) map: HeaderMap,
    /// The bytes that they add to the payload on the wire.
    pub(super) length: usize,
}

impl HeaderText {
    /// The headers of an event for this stream.
    pub(super) fn new(event: &Event, headers: &Headers, stream: &str) -> Self {
        let mut block = Self { map: HeaderMap::new(), length: FRAME };
        block.put("Nats-Msg-Id", &message_id(event));
        block.put("Nats-Expected-Stream", stream);
        headers.each(event, |name, value| block.put(name, value));
        block
    }

    fn put(&mut self, name: &str, value: &str) {
        let value = if value.bytes().any(|byte| byte.is_ascii_control()) { encoded(value) } else { value.into() };
        let length = name.len() + value.len() + 4;
        // Names are ours and legal; an end of line, the one thing a value cannot have, is encoded.
        let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) else { return };
        // A name, a colon and a blank, the value, an end of line.
        self.length += length;
        self.map.insert(name, value);
    }
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
        HeaderText::new(&event, &headers.with_content_type_also_as("ce-datacontenttype"), "S")
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
            let block = block(cuid, HeaderStyle::CloudEvents);
            assert_eq!(block.map.get("Nats-Msg-Id").unwrap().as_str(), format!("{shown}-000000000000"));
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
            HeaderText::new(&event, &headers, "S").map.get("Nats-Msg-Id").unwrap().as_str().to_owned()
        };
        assert_eq!(shown(5), format!("{}-5", "ab".repeat(16)));
        assert_ne!(shown(5), shown(6));
    }

    #[test]
    fn counts_the_block_as_the_server_does() {
        let none = block("c", HeaderStyle::None);
        let text = "NATS/1.0\r\nNats-Msg-Id: c-000000000000\r\nNats-Expected-Stream: S\r\n\r\n";
        assert_eq!((none.length, none.map.len()), (text.len(), 2));
        let all = block("c", HeaderStyle::CloudEvents);
        let lines = |block: &HeaderText| -> usize {
            block.map.iter().map(|(name, values)| name.to_string().len() + values[0].as_str().len() + 4).sum()
        };
        assert_eq!((all.length, all.map.len()), (12 + lines(&all), 11));
    }
}
