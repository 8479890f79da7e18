//! What the delivery task lets others see of the broker: for `/status`, the page, metrics and readiness.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::brokers::ErrorKind;

/// How things stand with the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerState {
    /// An attempt is under way, or the next one is waited for.
    Connecting,
    /// A session lives.
    Connected,
    /// A session lives, but the broker takes nothing at the moment.
    Waiting,
}

impl BrokerState {
    /// Its name in `/status`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::Waiting => "waiting",
        }
    }
}

/// The last thing that went wrong.
#[derive(Clone, Debug)]
pub struct LastError {
    /// Its kind.
    pub kind: ErrorKind,
    /// What happened, without secrets.
    pub text: String,
    /// When.
    pub at: SystemTime,
}

/// A copy of the view.
#[derive(Clone, Debug)]
pub struct BrokerView {
    /// How things stand.
    pub state: BrokerState,
    /// Since when.
    pub since: SystemTime,
    /// The last error.
    pub last_error: Option<LastError>,
    /// What connect found that the operator should know.
    pub findings: Vec<String>,
    /// Messages handed to the session.
    pub in_flight: usize,
    /// The last confirmation.
    pub last_published: Option<SystemTime>,
    /// Why delivery waits for the disk of the dead letters, if it does.
    pub blocked: Option<String>,
    /// Why the journal cannot be read, if so.
    pub unreadable: Option<String>,
}

/// The view, shared.
#[derive(Clone, Debug)]
pub struct View(Arc<Mutex<BrokerView>>);

impl Default for View {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(BrokerView {
            state: BrokerState::Connecting,
            since: SystemTime::now(),
            last_error: None,
            findings: Vec::new(),
            in_flight: 0,
            last_published: None,
            blocked: None,
            unreadable: None,
        })))
    }
}

impl View {
    /// A copy.
    #[must_use]
    pub fn copy(&self) -> BrokerView {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut BrokerView)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn state(&self, state: BrokerState) {
        self.change(|view| {
            if view.state != state {
                view.state = state;
                view.since = SystemTime::now();
            }
        });
    }

    pub(super) fn error(&self, kind: ErrorKind, text: &str) {
        let error = LastError { kind, text: text.to_owned(), at: SystemTime::now() };
        self.change(|view| view.last_error = Some(error));
    }
}
