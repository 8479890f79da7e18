//! The headers beside the body: signature, trace, CloudEvents 1.0 in binary mode, named as each binding says.
//!
//! Sources: the CloudEvents bindings for Kafka (`ce_`), AMQP (`cloudEvents_`) and NATS (`ce-`, percent-encoded).

use std::fmt::Write as _;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::event::{Event, cut};

/// The longest value of a header, in bytes before it is encoded.
const LONGEST: usize = 1024;

/// The most that headers and key of a message take, in bytes: what a broker's own limit needs beside the largest body.
///
/// Three attributes of 1 KiB, each byte of which may become three, and a key of some fields.
pub(crate) const LARGEST_HEADERS: usize = 16 << 10;

/// The headers of a message beside the id that the broker itself uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderStyle {
    /// Signature, trace and CloudEvents attributes.
    CloudEvents,
    /// Nothing.
    None,
}

/// The encoding of a binding's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// As they are, in UTF-8.
    Plain,
    /// As HTTP does: blank, `"`, `%` and everything outside printable ASCII become `%xx`.
    Percent,
}

/// CloudEvents HTTP binding, 3.1.3.2: encode space, double quote, percent and what is not printable ASCII.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// The header names of one binding.
#[derive(Clone, Debug)]
pub(crate) struct Headers {
    style: HeaderStyle,
    encoding: Encoding,
    names: [String; 8],
    /// A second name under which the content type goes along.
    also_content_type: Option<&'static str>,
}

/// The deviations of the payload from the documented one: `text:missing,targetCuid:null`.
const DEVIATIONS: &str = "x-plextrac-deviations";

const ATTRIBUTES: [&str; 7] = ["specversion", "id", "source", "type", "subject", "time", "content-type"];

impl Headers {
    /// The header names of a binding with this prefix; `content_type` is how it calls the content type.
    #[must_use]
    pub(crate) fn new(style: HeaderStyle, prefix: &str, content_type: &str, encoding: Encoding) -> Self {
        let mut names: [String; 8] =
            std::array::from_fn(|at| ATTRIBUTES.get(at).map(|name| format!("{prefix}{name}")).unwrap_or_default());
        content_type.clone_into(&mut names[6]);
        "x-authorization-hmac-256".clone_into(&mut names[7]);
        Self { style, encoding, names, also_content_type: None }
    }

    /// The same with a second header for the content type.
    #[must_use]
    pub(crate) fn with_content_type_also_as(self, name: &'static str) -> Self {
        Self { also_content_type: Some(name), ..self }
    }

    /// Calls `put` with each header's name and value, in a fixed order.
    pub(crate) fn each(&self, event: &Event, mut put: impl FnMut(&str, &str)) {
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
        if !event.deviations().is_empty() {
            // Writing into a String cannot fail.
            let _ = write!(scratch, "{}", event.deviations());
            put(DEVIATIONS, cut(&scratch, LONGEST));
            scratch.clear();
        }
        let mut put = |name: &str, value: &str| {
            let value = cut(value, LONGEST);
            match self.encoding {
                Encoding::Plain => put(name, value),
                Encoding::Percent if value.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'%') => {
                    put(name, value);
                }
                Encoding::Percent => put(name, &utf8_percent_encode(value, ENCODED).to_string()),
            }
        };
        put(&self.names[0], "1.0");
        put(&self.names[1], event.id());
        scratch.push_str("/plextrac/");
        scratch.push_str(&event.origin.source);
        put(&self.names[2], &scratch);
        scratch.clear();
        scratch.push_str("com.plextrac.");
        scratch.push_str(if event.event().is_empty() { "unknown" } else { event.event() });
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
        for name in [Some(&*self.names[6]), self.also_content_type].into_iter().flatten() {
            put(name, event.content_type().name());
        }
    }

    /// The same as a list.
    #[must_use]
    pub(crate) fn list(&self, event: &Event) -> Vec<(String, String)> {
        let mut list = Vec::new();
        self.each(event, |name, value| list.push((name.to_owned(), value.to_owned())));
        list
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::event::{ContentType, Deviation, Field, Fields, Origin};

    fn fields() -> Fields<&'static str> {
        Fields { cuid: "c", ..Fields::default() }
    }

    fn origin() -> Origin {
        Origin {
            source: "main".into(),
            signature: Some([b'A'; 64]),
            verified: true,
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
            received: SystemTime::UNIX_EPOCH,
        }
    }

    fn event(target_cuid: &str) -> Event {
        let fields = Fields { event: "Ré \"x\"%", target_type: "report", target_cuid, ..fields() };
        Event::new(origin(), Box::default(), &fields, &[0; 32])
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
        let list = headers.with_content_type_also_as("ce-datacontenttype").list(&event("t1"));
        for name in ["content-type", "ce-datacontenttype"] {
            assert!(list.contains(&(name.to_owned(), "application/json".to_owned())), "{list:?}");
        }
    }

    /// The value of a header, if the event of these fields has it.
    fn value(fields: &Fields<&str>, encoding: Encoding, name: &str) -> Option<String> {
        let headers = Headers::new(HeaderStyle::CloudEvents, "ce_", "content-type", encoding);
        let event = Event::new(origin(), Box::default(), fields, &[0; 32]);
        headers.list(&event).into_iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    #[test]
    fn names_an_event_without_a_name_unknown_and_leaves_an_empty_subject_out() {
        let plain = |fields: &Fields<&str>, name| value(fields, Encoding::Plain, name);
        assert_eq!(plain(&fields(), "ce_type").unwrap(), "com.plextrac.unknown");
        assert_eq!(plain(&fields(), "ce_subject"), None);
        let (target, kind) = (Fields { target_cuid: "x", ..fields() }, Fields { target_type: "t", ..fields() });
        assert_eq!(
            (plain(&target, "ce_subject").unwrap(), plain(&kind, "ce_subject").unwrap()),
            ("/x".into(), "t/".into())
        );
        let octets = Fields { content_type: ContentType::Octets, ..fields() };
        assert_eq!(plain(&octets, "content-type").unwrap(), "application/octet-stream");
    }

    #[test]
    fn says_how_a_payload_departs_only_where_it_does() {
        let mut departing = fields();
        departing.deviations.note(Field::TargetCuid, Deviation::Null);
        departing.deviations.note(Field::Text, Deviation::Missing);
        for encoding in [Encoding::Plain, Encoding::Percent] {
            assert_eq!(value(&departing, encoding, DEVIATIONS).unwrap(), "text:missing,targetCuid:null");
            assert_eq!(value(&fields(), encoding, DEVIATIONS), None);
        }
    }

    #[test]
    fn cuts_values_at_a_kilobyte_between_characters() {
        let long = "é".repeat(900);
        let fields = Fields::<&str> { event: &long, target_type: &long, target_cuid: &long, ..fields() };
        // 13 bytes of `com.plextrac.`: an odd number.
        assert_eq!(value(&fields, Encoding::Plain, "ce_type").unwrap().len(), 1023);
        assert_eq!(value(&fields, Encoding::Plain, "ce_subject").unwrap(), long[..1024]);
        assert_eq!(value(&fields, Encoding::Percent, "ce_subject").unwrap(), "%C3%A9".repeat(512));
    }

    #[test]
    fn writes_none_when_told_so() {
        let headers = Headers::new(HeaderStyle::None, "ce_", "content-type", Encoding::Plain);
        assert!(headers.list(&event("t")).is_empty());
    }
}
