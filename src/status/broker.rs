//! What the delivery task lets others see of the broker: for `/status`, the page, metrics and readiness.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::brokers::ErrorKind;

/// How things stand with the broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ConnectionState {
    /// An attempt is under way, or the next one is waited for.
    #[default]
    Connecting,
    /// A session lives.
    Connected,
    /// A session lives, but the broker takes nothing at the moment, or confirms nothing.
    Waiting,
}

impl ConnectionState {
    /// Its name in `/status`.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::Waiting => "waiting",
        }
    }
}

/// The last thing that went wrong.
#[derive(Clone, Debug)]
pub(crate) struct LastError {
    /// Its kind.
    pub(crate) kind: ErrorKind,
    /// What happened, without secrets.
    pub(crate) text: String,
    /// When.
    pub(crate) at: SystemTime,
}

/// An address that gives no answer.
#[derive(Clone, Debug)]
pub(crate) struct WaitingAddress {
    /// Topic, routing key, subject.
    pub(crate) address: String,
    /// How many events are there without an answer.
    pub(crate) events: usize,
    /// When the oldest of them was sent.
    pub(crate) since: Option<SystemTime>,
    /// Why, where that is known.
    pub(crate) reason: Option<String>,
}

/// A copy of the view.
#[derive(Clone, Debug)]
pub(crate) struct BrokerSnapshot {
    /// How things stand.
    pub(crate) state: ConnectionState,
    /// Since when.
    pub(crate) since: SystemTime,
    /// The last error.
    pub(crate) last_error: Option<LastError>,
    /// What connect found that the operator should know.
    pub(crate) findings: Vec<String>,
    /// Messages handed to the session.
    pub(crate) in_flight: usize,
    /// Addresses that give no answer, the first of them.
    pub(crate) waiting: Vec<WaitingAddress>,
    /// How many there are.
    pub(crate) waiting_count: usize,
    /// The last confirmation.
    pub(crate) last_published: Option<SystemTime>,
    /// Why delivery waits for the disk of the dead letters, if it does.
    pub(crate) blocked: Option<String>,
    /// Why the journal cannot be read, if so.
    pub(crate) unreadable: Option<String>,
}

/// The view, shared.
#[derive(Clone, Debug)]
pub(crate) struct BrokerStatus(Arc<Mutex<BrokerSnapshot>>);

impl Default for BrokerStatus {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(BrokerSnapshot {
            state: ConnectionState::Connecting,
            since: SystemTime::now(),
            last_error: None,
            findings: Vec::new(),
            in_flight: 0,
            waiting: Vec::new(),
            waiting_count: 0,
            last_published: None,
            blocked: None,
            unreadable: None,
        })))
    }
}

impl BrokerStatus {
    /// A copy.
    #[must_use]
    pub(crate) fn copy(&self) -> BrokerSnapshot {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut BrokerSnapshot)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn state(&self, state: ConnectionState) {
        self.change(|view| {
            if view.state != state {
                view.state = state;
                view.since = SystemTime::now();
            }
        });
    }

    pub(crate) fn error(&self, kind: ErrorKind, text: &str) {
        let error = LastError { kind, text: text.to_owned(), at: SystemTime::now() };
        self.change(|view| view.last_error = Some(error));
    }
}
