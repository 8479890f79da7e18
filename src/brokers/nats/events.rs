//! The events of the client library beside the inbox: the end of the connection, and refused permissions.
//!
//! The library's own queue of events has 128 places and drops what is more: events are hints, never the only sign.

use std::collections::VecDeque;

use async_nats::{Event, ServerError};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Subjects kept until the session looks; each one once. Addresses are few.
const KEPT: usize = 64;

/// The permission that these credentials lack, in the server's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Violation {
    /// Publish to this subject.
    Publish(String),
    /// Subscribe to this subject.
    Subscribe(String),
}

/// Filled on the library's task, read by the session.
#[derive(Debug, Default)]
pub(super) struct Events {
    heard: Mutex<Heard>,
    /// Told after each event that matters.
    pub(super) news: Notify,
}

#[derive(Debug, Default)]
struct Heard {
    violations: VecDeque<Violation>,
    last_error: Option<String>,
    ended: bool,
}

impl Events {
    /// Takes one event of the library.
    pub(super) fn take(&self, event: Event) {
        let mut heard = self.heard.lock();
        match event {
            Event::Disconnected | Event::Closed => heard.ended = true,
            Event::ServerError(error) => {
                let text = match error {
                    ServerError::Other(text) => text,
                    other => other.to_string(),
                };
                match violation(&text) {
                    Some(violation) if heard.violations.contains(&violation) => {}
                    Some(violation) if heard.violations.len() < KEPT => heard.violations.push_back(violation),
                    Some(_) => {}
                    None => heard.last_error = Some(text),
                }
            }
            _ => return,
        }
        drop(heard);
        self.news.notify_one();
    }

    /// The oldest refused permission not yet looked at.
    pub(super) fn violation(&self) -> Option<Violation> {
        self.heard.lock().violations.pop_front()
    }

    /// Whether the connection has ended.
    pub(super) fn ended(&self) -> bool {
        self.heard.lock().ended
    }

    /// The last server error other than a permission violation.
    pub(super) fn last_error(&self) -> Option<String> {
        self.heard.lock().last_error.clone()
    }
}

/// Reads `Permissions Violation for Publish to "subject"`.
fn violation(text: &str) -> Option<Violation> {
    let rest = text.strip_prefix("Permissions Violation for ")?;
    let subject = |rest: &str| rest.strip_prefix('"')?.split('"').next().map(str::to_owned);
    if let Some(rest) = rest.strip_prefix("Publish to ") {
        return subject(rest).map(Violation::Publish);
    }
    subject(rest.strip_prefix("Subscription to ")?).map(Violation::Subscribe)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> Event {
        Event::ServerError(ServerError::Other(text.to_owned()))
    }

    #[test]
    fn keeps_each_forbidden_subject_once() {
        let events = Events::default();
        for _ in 0..3 {
            events.take(error("Permissions Violation for Publish to \"A.b\""));
        }
        events.take(error("Permissions Violation for Subscription to \"_INBOX.x.*\" using queue \"q\""));
        assert_eq!(events.violation(), Some(Violation::Publish("A.b".to_owned())));
        assert_eq!(events.violation(), Some(Violation::Subscribe("_INBOX.x.*".to_owned())));
        assert_eq!(events.violation(), None);
        assert!(!events.ended());
    }

    #[test]
    fn keeps_no_more_subjects_than_it_has_places() {
        let events = Events::default();
        for at in 0..200 {
            events.take(error(&format!("Permissions Violation for Publish to \"a.{at}\"")));
        }
        assert_eq!(std::iter::from_fn(|| events.violation()).count(), KEPT);
    }

    #[test]
    fn remembers_the_last_words_of_a_connection_that_ended() {
        let events = Events::default();
        events.take(error("User Authentication Expired"));
        assert!(!events.ended());
        events.take(Event::Disconnected);
        assert!(events.ended());
        assert_eq!(events.last_error().as_deref(), Some("User Authentication Expired"));
    }
}
