//! The accepted event, from enqueue to settle, and the message it becomes once its address is known.

use std::fmt;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::ticket::Ticket;

/// What an event costs of `buffer.max_bytes` beside its body, in bytes.
///
/// An [`Event`] is about 230 bytes, its decoded fields about 130, three allocations add about 50.
pub const EVENT_OVERHEAD: usize = 512;

/// The decoded fields of a payload that templates and headers need; a missing one is empty.
///
/// Source: the vendor's page on webhook payloads.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fields<'a> {
    /// Unique identifier of the webhook request.
    pub cuid: &'a str,
    /// Who triggered it.
    pub actor_cuid: &'a str,
    /// What happened.
    pub event: &'a str,
    /// The one entity concerned, or the first of several.
    pub target_cuid: &'a str,
    /// Kind of entity.
    pub target_type: &'a str,
}

/// What of the request, beside its body, goes on to the broker.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Name of the source, as in the settings.
    pub source: Arc<str>,
    /// The `X-Authorization-HMAC-256` header as received (64 hex digits), where there was one.
    pub signature: Option<[u8; 64]>,
    /// Whether that signature was verified: not where the source is unsigned.
    pub verified: bool,
    /// A well-formed W3C `traceparent` header (55 bytes), where there was one.
    pub traceparent: Option<Box<str>>,
    /// Wall clock when the head of the request was read.
    pub received: SystemTime,
}

/// What keeps an event if this process ends before it is settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Nothing: it is in memory only.
    Memory,
    /// The journal, under this sequence.
    Journal(u64),
    /// The dead letter it was made from, which goes only when this event is settled.
    DeadLetter,
}

/// Puts an event together again from what journal or dead letter kept of it; none where the body has no `event`.
pub type Rebuild = fn(Origin, Box<[u8]>) -> Option<Box<Event>>;

/// The event id and the decoded fields, owned: one allocation for all of them.
#[derive(Clone)]
pub struct Labels {
    text: Box<str>,
    /// Where in `text` each ends: cuid, id, event, target type, actor, target.
    ends: [u32; 6],
}

impl Labels {
    /// Copies the fields; `digest` is the verified MAC of the body, or its SHA-256 where unsigned.
    #[must_use]
    pub fn new(fields: &Fields<'_>, digest: &[u8; 32]) -> Self {
        let length = 32
            + fields.cuid.len()
            + fields.event.len()
            + fields.target_type.len()
            + fields.actor_cuid.len()
            + fields.target_cuid.len();
        let mut text = String::with_capacity(length);
        let mut ends = [0; 6];
        // A body is at most 1 GiB (`ingress.max_body` is checked), so its fields fit too.
        let end = |text: &String| u32::try_from(text.len()).unwrap_or(u32::MAX);
        text.push_str(fields.cuid);
        ends[0] = end(&text);
        let shown = if fields.cuid.is_empty() {
            &digest[..16]
        } else {
            text.push('-');
            &digest[..6]
        };
        let mut hex = [0; 32];
        text.push_str(faster_hex::hex_encode(shown, &mut hex).unwrap_or_default());
        ends[1] = end(&text);
        for (slot, field) in
            [(2, fields.event), (3, fields.target_type), (4, fields.actor_cuid), (5, fields.target_cuid)]
        {
            text.push_str(field);
            ends[slot] = end(&text);
        }
        Self { text: text.into_boxed_str(), ends }
    }

    /// The event id: `<cuid>-<first 12 hex of the digest>`, without a `cuid` its first 32 hex.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.text[..self.ends[1] as usize]
    }
}

/// One accepted event: the signed bytes, and what was learnt of them.
#[derive(Clone)]
pub struct Event {
    /// Where it came from.
    pub origin: Origin,
    /// The signed bytes, at their exact size.
    pub body: Box<[u8]>,
    /// When it was accepted, for durations.
    pub accepted: Instant,
    /// What keeps it beside this memory.
    pub kept: Kept,
    /// Of one who waits until it is settled.
    pub ticket: Option<Arc<Ticket>>,
    labels: Labels,
}

impl Event {
    /// Puts an event together; `digest` is the verified MAC of the body, or its SHA-256 where unsigned.
    #[must_use]
    pub fn new(origin: Origin, body: Box<[u8]>, fields: &Fields<'_>, digest: &[u8; 32]) -> Self {
        Self::labelled(origin, body, Labels::new(fields, digest), Instant::now())
    }

    /// Puts an event together from labels made before, which borrow nothing of the body; `accepted` is about now.
    #[must_use]
    pub fn labelled(origin: Origin, body: Box<[u8]>, labels: Labels, accepted: Instant) -> Self {
        Self { origin, body, accepted, kept: Kept::Memory, ticket: None, labels }
    }

    fn part(&self, from: usize, to: usize) -> &str {
        &self.labels.text[self.labels.ends[from] as usize..self.labels.ends[to] as usize]
    }

    /// The event id: `<cuid>-<first 12 hex of the digest>`, without a `cuid` its first 32 hex.
    #[must_use]
    pub fn id(&self) -> &str {
        self.labels.id()
    }

    /// The payload's `cuid`, empty where missing.
    #[must_use]
    pub fn cuid(&self) -> &str {
        &self.labels.text[..self.labels.ends[0] as usize]
    }

    /// The payload's `event`.
    #[must_use]
    pub fn event(&self) -> &str {
        self.part(1, 2)
    }

    /// The payload's `targetType`, empty where missing.
    #[must_use]
    pub fn target_type(&self) -> &str {
        self.part(2, 3)
    }

    /// The payload's `actorCuid`, empty where missing.
    #[must_use]
    pub fn actor_cuid(&self) -> &str {
        self.part(3, 4)
    }

    /// The payload's `targetCuid` or the first of its `targetCuids`, empty where missing.
    #[must_use]
    pub fn target_cuid(&self) -> &str {
        self.part(4, 5)
    }

    /// The signature as received, as text.
    #[must_use]
    pub fn signature(&self) -> Option<&str> {
        let digits = self.origin.signature.as_ref()?;
        std::str::from_utf8(digits).ok()
    }

    /// What it takes of `buffer.max_bytes`.
    #[must_use]
    pub fn cost(&self) -> usize {
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
pub struct Message {
    /// The event.
    pub event: Box<Event>,
    /// Topic, exchange, subject or file name.
    pub address: Arc<str>,
    /// Record key or routing key; empty where the broker has none.
    pub key: Arc<str>,
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
        let fields = Fields { cuid: "c1", event: "E", target_type: "t", actor_cuid: "a", target_cuid: "x" };
        let event = Event::new(origin(), Box::from(*b"{}"), &fields, &[0xab; 32]);
        assert_eq!(event.id(), "c1-abababababab");
        assert_eq!(
            (event.cuid(), event.event(), event.target_type(), event.actor_cuid(), event.target_cuid()),
            ("c1", "E", "t", "a", "x")
        );
    }

    #[test]
    fn takes_thirty_two_hex_digits_and_no_dash_without_a_cuid() {
        let event = Event::new(origin(), Box::from(*b"{}"), &Fields::default(), &[0xcd; 32]);
        assert_eq!(event.id(), "cd".repeat(16));
        assert_eq!((event.cuid(), event.event()), ("", ""));
    }

    #[test]
    fn shows_no_body_when_debugged() {
        let event = Event::new(origin(), Box::from(*b"findings"), &Fields::default(), &[0; 32]);
        assert!(!format!("{event:?}").contains("findings"));
    }
}
