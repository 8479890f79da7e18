//! The accepted event, from enqueue to settle, and the message it becomes once its address is known.

use std::fmt;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::event::{Deviations, Waiter};

/// The memory that an event uses beside its body, in bytes, as counted for `buffer.max_bytes`.
///
/// An [`Event`] is about 260 bytes, its decoded fields about 150, three allocations add about 50.
pub(crate) const EVENT_OVERHEAD: usize = 512;

/// The number of bytes kept of a field beside the body: a longer key or header would only push the message over the
/// broker's own limit.
pub(crate) const LONGEST_FIELD: usize = 1024;

/// The decoded fields of a payload that templates and headers need; an absent field is empty.
///
/// Source: the vendor's page on webhook payloads.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Fields<S> {
    /// The unique identifier of the webhook request.
    pub(crate) cuid: S,
    /// The user who triggered it.
    pub(crate) actor_cuid: S,
    /// The name of the event.
    pub(crate) event: S,
    /// The one entity concerned, or the first of several.
    pub(crate) target_cuid: S,
    /// The kind of entity.
    pub(crate) target_type: S,
    /// The client's number.
    pub(crate) client_id: S,
    /// The report's number.
    pub(crate) report_id: S,
    /// The finding's number.
    pub(crate) finding_id: S,
    /// The assessment's number.
    pub(crate) assessment_id: S,
    /// The deviations from the documented payload.
    pub(crate) deviations: Deviations,
    /// The content type of the body.
    pub(crate) content_type: ContentType,
}

/// The content type of a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ContentType {
    /// JSON, as every accepted event is.
    #[default]
    Json,
    /// Anything else, kept and later published unchanged.
    Octets,
}

impl ContentType {
    /// The media type.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Octets => "application/octet-stream",
        }
    }
}

/// The longest beginning of a text that has at most this many bytes and ends between two characters.
pub(crate) fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// The maximum length of a value in an address, in characters.
pub(crate) const LONGEST_TOKEN: usize = 64;

/// Appends a value in its address form.
pub(crate) fn push_safe(text: &mut String, value: &str) {
    if value.is_empty() {
        text.push('_');
    }
    for character in value.chars().take(LONGEST_TOKEN) {
        let safe = character.is_ascii_alphanumeric() || matches!(character, '_' | '-');
        text.push(if safe { character } else { '_' });
    }
}

/// A value in its address form: only `A-Z a-z 0-9 _ -`, at most 64 characters, never empty.
pub(crate) fn safe(value: &str) -> String {
    let mut text = String::new();
    push_safe(&mut text, value);
    text
}

/// The parts of the request, beside its body, that are passed on to the broker.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    /// The name of the source, as in the settings.
    pub(crate) source: Arc<str>,
    /// The `X-Authorization-HMAC-256` header as received (64 hex digits), if there was one.
    pub(crate) signature: Option<[u8; 64]>,
    /// Whether that signature was verified: not if the source is unsigned.
    pub(crate) verified: bool,
    /// A well-formed W3C `traceparent` header (55 bytes), if there was one.
    pub(crate) traceparent: Option<Box<str>>,
    /// The wall clock when the head of the request was read.
    pub(crate) received: SystemTime,
}

/// The place that keeps an event from enqueue on, with the number that it has in the queue until it is settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Memory, until a stop has written it.
    Memory(u64),
    /// The journal; its first record has this number.
    Journal(u64),
    /// The dead letter it was made from, which is deleted only when this event is settled.
    DeadLetter,
}

impl Kept {
    /// The number in the queue: it rises in the order of acceptance.
    pub(crate) fn number(self) -> Option<u64> {
        match self {
            Self::Memory(number) | Self::Journal(number) => Some(number),
            Self::DeadLetter => None,
        }
    }
}

/// Rebuilds an event from the parts that the journal or a letter kept, whatever the body is.
pub(crate) type Rebuild = fn(Origin, Box<[u8]>) -> Box<Event>;

/// The event id and the decoded fields, owned: one allocation for all of them.
#[derive(Clone)]
pub(crate) struct Labels {
    text: Box<str>,
    /// The ends in `text` of: cuid, id, event, target type, actor, target, client, report, finding, assessment.
    ends: [u16; 10],
    deviations: Deviations,
    content_type: ContentType,
}

impl Labels {
    /// Copies the fields, each up to its kept length; `digest` is the verified MAC of the body, or its SHA-256 if
    /// unsigned.
    pub(crate) fn new<S: AsRef<str>>(fields: &Fields<S>, digest: &[u8; 32]) -> Self {
        let cuid = cut(fields.cuid.as_ref(), LONGEST_FIELD);
        let others = [
            &fields.event,
            &fields.target_type,
            &fields.actor_cuid,
            &fields.target_cuid,
            &fields.client_id,
            &fields.report_id,
            &fields.finding_id,
            &fields.assessment_id,
        ]
        .map(|field| cut(field.as_ref(), LONGEST_FIELD));
        let length = 32 + cuid.len() + others.iter().map(|field| field.len()).sum::<usize>();
        let mut text = String::with_capacity(length);
        let mut ends = [0; 10];
        // Nine fields of at most 1 KiB.
        let end = |text: &String| u16::try_from(text.len()).unwrap_or(u16::MAX);
        text.push_str(cuid);
        ends[0] = end(&text);
        let shown = if cuid.is_empty() {
            &digest[..16]
        } else {
            text.push('-');
            &digest[..6]
        };
        let mut hex = [0; 32];
        text.push_str(faster_hex::hex_encode(shown, &mut hex).unwrap_or_default());
        ends[1] = end(&text);
        for (slot, field) in ends[2..].iter_mut().zip(others) {
            text.push_str(field);
            *slot = end(&text);
        }
        Self { text: text.into_boxed_str(), ends, deviations: fields.deviations, content_type: fields.content_type }
    }

    /// The event id: `<cuid>-<first 12 hex of the digest>`, or its first 32 hex if there is no `cuid`.
    pub(crate) fn id(&self) -> &str {
        &self.text[..usize::from(self.ends[1])]
    }
}

/// One accepted event: the signed bytes, and what was read from them.
#[derive(Clone)]
pub(crate) struct Event {
    /// The origin of the event.
    pub(crate) origin: Origin,
    /// The signed bytes, at their exact size.
    pub(crate) body: Box<[u8]>,
    /// The time of acceptance, for durations.
    pub(crate) accepted: Instant,
    /// The place that keeps it beside this memory.
    pub(crate) kept: Kept,
    /// The number of times that its record in the journal was written again: as often as those of younger ones, or more often.
    pub(crate) renewals: u16,
    /// Wakes the request that waits for the outcome, if any.
    pub(crate) waiter: Option<Arc<Waiter>>,
    labels: Labels,
}

impl Event {
    /// Builds an event; `digest` is the verified MAC of the body, or its SHA-256 if unsigned.
    #[cfg(test)]
    pub(crate) fn new(origin: Origin, body: Box<[u8]>, fields: &Fields<&str>, digest: &[u8; 32]) -> Self {
        Self::labelled(origin, body, Labels::new(fields, digest), Instant::now())
    }

    /// Builds an event from existing labels, which borrow nothing of the body; `accepted` is about now.
    pub(crate) fn labelled(origin: Origin, body: Box<[u8]>, labels: Labels, accepted: Instant) -> Self {
        Self { origin, body, accepted, kept: Kept::Memory(0), renewals: 0, waiter: None, labels }
    }

    /// The field with this index among the ends.
    fn part(&self, at: usize) -> &str {
        &self.labels.text[usize::from(self.labels.ends[at - 1])..usize::from(self.labels.ends[at])]
    }

    /// The event id: `<cuid>-<first 12 hex of the digest>`, or its first 32 hex if there is no `cuid`.
    pub(crate) fn id(&self) -> &str {
        self.labels.id()
    }

    /// The payload's `cuid`, empty if absent.
    pub(crate) fn cuid(&self) -> &str {
        &self.labels.text[..usize::from(self.labels.ends[0])]
    }

    /// The payload's `event`, empty if absent.
    pub(crate) fn event(&self) -> &str {
        self.part(2)
    }

    /// The payload's `targetType`, empty if absent.
    pub(crate) fn target_type(&self) -> &str {
        self.part(3)
    }

    /// The payload's `actorCuid`, empty if absent.
    pub(crate) fn actor_cuid(&self) -> &str {
        self.part(4)
    }

    /// The payload's `targetCuid` or the first of its `targetCuids`, empty if absent.
    pub(crate) fn target_cuid(&self) -> &str {
        self.part(5)
    }

    /// The payload's `clientId`, empty if absent.
    pub(crate) fn client_id(&self) -> &str {
        self.part(6)
    }

    /// The payload's `reportId`, empty if absent.
    pub(crate) fn report_id(&self) -> &str {
        self.part(7)
    }

    /// The payload's `findingId` or `flawId`, empty if absent.
    pub(crate) fn finding_id(&self) -> &str {
        self.part(8)
    }

    /// The payload's `assessmentId`, empty if absent.
    pub(crate) fn assessment_id(&self) -> &str {
        self.part(9)
    }

    /// The deviations from the documented payload.
    pub(crate) fn deviations(&self) -> &Deviations {
        &self.labels.deviations
    }

    /// The content type of the body.
    pub(crate) fn content_type(&self) -> ContentType {
        self.labels.content_type
    }

    /// The signature as received, as text.
    pub(crate) fn signature(&self) -> Option<&str> {
        let digits = self.origin.signature.as_ref()?;
        std::str::from_utf8(digits).ok()
    }

    /// The bytes it uses of `buffer.max_bytes`.
    pub(crate) fn cost(&self) -> usize {
        self.body.len() + EVENT_OVERHEAD
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Bodies are confidential: findings of a penetration test.
        f.debug_struct("Event")
            .field("id", &self.id())
            .field("event", &self.event())
            .field("source", &self.origin.source)
            .field("body", &format_args!("{} bytes", self.body.len()))
            .finish_non_exhaustive()
    }
}

/// An event with its rendered address: what a session sends.
#[derive(Debug)]
pub(crate) struct Message {
    /// The event.
    pub(crate) event: Box<Event>,
    /// The topic, exchange, subject or file name.
    pub(crate) address: Arc<str>,
    /// The record key or routing key; empty if the broker has none.
    pub(crate) key: Arc<str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn origin() -> Origin {
        Origin {
            source: "plextrac".into(),
            signature: Some([b'a'; 64]),
            verified: true,
            traceparent: None,
            received: SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn joins_cuid_and_the_first_twelve_hex_digits_to_an_id() {
        let fields = Fields {
            cuid: "c1",
            event: "E",
            target_type: "t",
            actor_cuid: "a",
            target_cuid: "x",
            client_id: "1",
            report_id: "22",
            finding_id: "333",
            assessment_id: "4",
            ..Fields::default()
        };
        let event = Event::new(origin(), Box::from(*b"{}"), &fields, &[0xab; 32]);
        assert_eq!(event.id(), "c1-abababababab");
        assert_eq!(
            (event.cuid(), event.event(), event.target_type(), event.actor_cuid(), event.target_cuid()),
            ("c1", "E", "t", "a", "x")
        );
        assert_eq!(
            (event.client_id(), event.report_id(), event.finding_id(), event.assessment_id()),
            ("1", "22", "333", "4")
        );
    }

    #[test]
    fn keeps_a_kilobyte_of_a_field_and_cuts_between_characters() {
        let long = "x".to_owned() + &"é".repeat(100_000);
        let fields = Fields::<&str> {
            event: &long,
            target_type: &long,
            actor_cuid: &long,
            target_cuid: &long,
            client_id: &long,
            report_id: &long,
            finding_id: &long,
            assessment_id: &long,
            ..Fields::default()
        };
        let event = Event::new(origin(), Box::from(*b"{}"), &fields, &[0; 32]);
        assert_eq!(event.event(), &long[..1023]);
        assert_eq!(event.assessment_id(), event.event());
    }

    #[test]
    fn takes_thirty_two_hex_digits_and_no_dash_without_a_cuid() {
        let event = Event::new(origin(), Box::from(*b"{}"), &Fields::default(), &[0xcd; 32]);
        assert_eq!(event.id(), "cd".repeat(16));
        assert_eq!((event.cuid(), event.event()), ("", ""));
    }

    #[test]
    fn takes_no_more_than_its_overhead_beside_the_body() {
        assert!(size_of::<Event>() <= 272, "{}", size_of::<Event>());
    }

    #[test]
    fn shows_no_body_when_debugged() {
        let event = Event::new(origin(), Box::from(*b"findings"), &Fields::default(), &[0; 32]);
        assert!(!format!("{event:?}").contains("findings"));
    }
}
