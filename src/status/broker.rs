//! The state of the broker as delivery reports it: for `/status`, the page, metrics and readiness.

use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::Serialize;

use crate::status::ErrorKind;
use crate::status::time::timestamp;

/// The state of the connection to the broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ConnectionState {
    /// An attempt is in progress, or the next one is scheduled.
    #[default]
    Connecting,
    /// A session exists.
    Connected,
    /// A session exists, but the broker takes nothing at the moment, or confirms nothing.
    Waiting,
}

impl ConnectionState {
    /// The name in `/status`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::Waiting => "waiting",
        }
    }
}

/// The last error.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LastError {
    /// The kind of the error.
    pub(crate) kind: ErrorKind,
    /// A description, without secrets.
    pub(crate) text: String,
    /// The time of the error.
    #[serde(rename = "timestamp_seconds", serialize_with = "timestamp")]
    pub(crate) at: SystemTime,
}

/// An address without an answer.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct WaitingAddress {
    /// The topic, routing key or subject.
    pub(crate) address: String,
    /// The number of events without an answer.
    pub(crate) events: usize,
    /// The time at which the oldest of them was sent.
    #[serde(rename = "since_timestamp_seconds", serialize_with = "timestamp")]
    pub(crate) since: Option<SystemTime>,
    /// The reason, where it is known.
    pub(crate) reason: Option<String>,
}

/// A copy of the state.
#[derive(Clone, Debug, Default)]
pub(crate) struct BrokerSnapshot {
    /// The state of the connection.
    pub(crate) state: ConnectionState,
    /// The time since which it has been in this state.
    pub(crate) since: Option<SystemTime>,
    /// The location of the broker, without secrets.
    pub(crate) location: String,
    /// The last error.
    pub(crate) last_error: Option<LastError>,
    /// The findings of connect that the operator should know.
    pub(crate) findings: Vec<String>,
    /// The number of messages handed to the session.
    pub(crate) in_flight: usize,
    /// The first addresses without an answer.
    pub(crate) waiting: Vec<WaitingAddress>,
    /// The number of addresses without an answer.
    pub(crate) waiting_count: usize,
    /// The time of the last confirmation.
    pub(crate) last_published: Option<SystemTime>,
    /// The reason why delivery waits for the disk of the dead letters, if it does.
    pub(crate) blocked: Option<String>,
    /// The reason why the journal cannot be read, if it cannot.
    pub(crate) unreadable: Option<String>,
}

impl BrokerSnapshot {
    /// The address for which most events wait, in words.
    pub(crate) fn most_waiting(&self) -> Option<String> {
        let WaitingAddress { events, address, reason, .. } =
            self.waiting.iter().max_by_key(|waiting| waiting.events)?;
        let why = reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        Some(format!("{events} of the events wait for {address}{why}"))
    }
}

/// The shared state of the broker.
#[derive(Clone, Debug)]
pub(crate) struct BrokerStatus(Arc<Mutex<BrokerSnapshot>>);

impl Default for BrokerStatus {
    fn default() -> Self {
        let view = BrokerSnapshot { since: Some(SystemTime::now()), ..BrokerSnapshot::default() };
        Self(Arc::new(Mutex::new(view)))
    }
}

impl BrokerStatus {
    /// A copy of the state.
    pub(crate) fn copy(&self) -> BrokerSnapshot {
        self.0.lock().clone()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut BrokerSnapshot)) {
        change(&mut self.0.lock());
    }

    pub(crate) fn state(&self, state: ConnectionState) {
        self.change(|view| {
            if view.state != state {
                view.state = state;
                view.since = Some(SystemTime::now());
            }
        });
    }

    pub(crate) fn error(&self, kind: ErrorKind, text: &str) {
        let error = LastError { kind, text: text.to_owned(), at: SystemTime::now() };
        self.change(|view| view.last_error = Some(error));
    }
}
