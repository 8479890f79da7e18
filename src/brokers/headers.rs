//! The headers beside the body: signature, trace, CloudEvents 1.0 in binary mode, named as each binding says.
//!
//! Sources: the CloudEvents bindings for Kafka (`ce_`), AMQP (`cloudEvents_`) and NATS (`ce-`, percent-encoded).

use std::fmt::Write as _;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::message::Event;

/// What goes along with a message beside the id that the broker itself uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderStyle {
    /// Signature, trace and CloudEvents attributes.
    CloudEvents,
    /// Nothing.
    None,
}

/// How a binding writes values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// As they are, in UTF-8.
    Plain,
    /// As HTTP does: blank, `"`, `%` and everything outside printable ASCII become `%xx`.
    Percent,
}

/// CloudEvents HTTP binding, 3.1.3.2: encode space, double quote, percent and what is not printable ASCII.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// The header names of one binding.
#[derive(Clone, Debug)]
pub struct Headers {
    style: HeaderStyle,
    encoding: Encoding,
    names: [String; 8],
}

const ATTRIBUTES: [&str; 7] = ["specversion", "id", "source", "type", "subject", "time", "content-type"];

impl Headers {
    /// The header names of a binding with this prefix; `content_type` is how it calls the content type.
    #[must_use]
    pub fn new(style: HeaderStyle, prefix: &str, content_type: &str, encoding: Encoding) -> Self {
        let mut names: [String; 8] =
            std::array::from_fn(|at| ATTRIBUTES.get(at).map(|name| format!("{prefix}{name}")).unwrap_or_default());
        content_type.clone_into(&mut names[6]);
        "x-authorization-hmac-256".clone_into(&mut names[7]);
        Self { style, encoding, names }
    }

    /// Calls `put` with each header's name and value, in a fixed order.
    pub fn each(&self, event: &Event, mut put: impl FnMut(&str, &str)) {
        if self.style == HeaderStyle::None {
            return;
        }
        if let Some(signature) = event.signature() {
            put(&self.names[7], signature);
        }
        if let Some(traceparent) = &event.origin.traceparent {
            put("traceparent", traceparent);
        }
        let mut scratch = String::with_capacity(128);
        let mut put = |name: &str, value: &str| match self.encoding {
            Encoding::Plain => put(name, value),
            Encoding::Percent if value.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'%') => {
                put(name, value);
            }
            Encoding::Percent => put(name, &utf8_percent_encode(value, ENCODED).to_string()),
        };
        put(&self.names[0], "1.0");
        put(&self.names[1], event.id());
        scratch.push_str("/plextrac/");
        scratch.push_str(&event.origin.source);
        put(&self.names[2], &scratch);
        scratch.clear();
        scratch.push_str("com.plextrac.");
        scratch.push_str(event.event());
        put(&self.names[3], &scratch);
        if !event.target_type().is_empty() || !event.target_cuid().is_empty() {
            scratch.clear();
            scratch.push_str(event.target_type());
            scratch.push('/');
            scratch.push_str(event.target_cuid());
            put(&self.names[4], &scratch);
        }
        scratch.clear();
        // Writing into a String cannot fail.
        let _ = write!(scratch, "{}", humantime::format_rfc3339_millis(event.origin.received));
        put(&self.names[5], &scratch);
        put(&self.names[6], "application/json");
    }

    /// The same as a list.
    #[must_use]
    pub fn list(&self, event: &Event) -> Vec<(String, String)> {
        let mut list = Vec::new();
        self.each(event, |name, value| list.push((name.to_owned(), value.to_owned())));
        list
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::message::{Fields, Origin};

    fn event(target_cuid: &str) -> Event {
        let origin = Origin {
            source: "main".into(),
            signature: Some([b'A'; 64]),
            verified: true,
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
            received: SystemTime::UNIX_EPOCH,
        };
        let fields = Fields { cuid: "c", event: "Ré \"x\"%", target_type: "report", actor_cuid: "", target_cuid };
        Event::new(origin, Box::default(), &fields, &[0; 32])
    }

    #[test]
    fn names_every_attribute_with_the_prefix() {
        let headers = Headers::new(HeaderStyle::CloudEvents, "ce_", "content-type", Encoding::Plain);
        let signature = "A".repeat(64);
        let expected = [
            ("x-authorization-hmac-256", signature.as_str()),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ("ce_specversion", "1.0"),
            ("ce_id", "c-000000000000"),
            ("ce_source", "/plextrac/main"),
            ("ce_type", "com.plextrac.Ré \"x\"%"),
            ("ce_subject", "report/t1"),
            ("ce_time", "1970-01-01T00:00:00.000Z"),
            ("content-type", "application/json"),
        ];
        let expected: Vec<_> = expected.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        assert_eq!(headers.list(&event("t1")), expected);
    }

    #[test]
    fn percent_encodes_where_the_binding_says() {
        let headers = Headers::new(HeaderStyle::CloudEvents, "ce-", "content-type", Encoding::Percent);
        let list = headers.list(&event("t 1"));
        assert!(list.contains(&("ce-type".to_owned(), "com.plextrac.R%C3%A9%20%22x%22%25".to_owned())));
        assert!(list.contains(&("ce-subject".to_owned(), "report/t%201".to_owned())));
    }

    #[test]
    fn writes_none_when_told_so() {
        let headers = Headers::new(HeaderStyle::None, "ce_", "content-type", Encoding::Plain);
        assert!(headers.list(&event("t")).is_empty());
    }
}
