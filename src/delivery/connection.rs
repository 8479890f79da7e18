//! The connection as delivery sees it: another broker after a reload, what a connect found, and why there is no session.

use crate::brokers::{Cause, ConnectError, ErrorKind, Finding, Routed, Sequence, Session, SessionError};
use crate::delivery::publish::Delivery;
use crate::delivery::window::Window;
use crate::event::Event;
use crate::status::ConnectionState;

/// The begin of the finding that says why a successor is not in use.
const NOT_IN_USE: &str = "the reloaded settings of the broker are not in use; the old connection stays";

impl Delivery {
    /// Replaces the broker by its successor, if there is one and no session to keep. Messages in the ring keep their
    /// addresses.
    pub(super) fn succeed(&mut self) {
        if let Some((successor, change)) = self.successor.take() {
            self.takeover.give_up(change);
            (self.broker, self.router) = (successor.broker, successor.router);
            self.view.change(|view| view.location = self.broker.location());
            tracing::info!(broker = self.broker.name(), "connecting with the settings that were reloaded");
        }
    }

    /// Lets a successor connect beside the session.
    pub(super) fn begin_takeover(&mut self) {
        if let Some((successor, change)) = self.successor.take() {
            tracing::info!(broker = self.broker.name(), "connecting with the settings that were reloaded");
            self.takeover.begin(successor, change);
        }
    }

    /// Reports that the successor could not connect, in the log once for each reason.
    pub(super) fn note_takeover(&self, error: &ConnectError) {
        let text = format!("{NOT_IN_USE}: {}", error.text);
        self.note_error(error.kind, &text);
        if !self.view.copy().findings.contains(&text) {
            tracing::error!(broker = self.broker.name(), kind = error.kind.name(), "{text}");
            self.view.change(|view| {
                view.findings.retain(|finding| !finding.starts_with(NOT_IN_USE));
                view.findings.push(text);
            });
        }
    }

    /// Counts an error of the broker, and shows it.
    pub(super) fn note_error(&self, kind: ErrorKind, text: &str) {
        self.metrics.broker_error(kind);
        self.view.error(kind, text);
    }

    /// Notes the state of the connection, also for the queue.
    pub(super) fn note_connection(&self, state: ConnectionState) {
        self.view.state(state);
        self.queue.note_connection(state);
    }

    pub(super) fn connected(&mut self, findings: &[Finding]) {
        let texts: Vec<String> = findings
            .iter()
            .filter_map(|finding| match finding {
                Finding::Good(_) => None,
                Finding::Warning(text) | Finding::Missing(text) => Some(text.clone()),
            })
            .collect();
        if self.view.copy().findings != texts {
            for text in &texts {
                tracing::warn!(broker = self.broker.name(), "{text}");
            }
        }
        self.view.change(|view| (view.findings, view.location) = (texts, self.broker.location()));
        let Self { router, pairs, queue, ring, .. } = self;
        let mut route = |event: &Event| pairs.route(event, router, queue).ok();
        ring.reroute(|event| route(event).map(|Routed { address, key, .. }| (address, key)));
        if self.takeover.takes_other_routes() {
            self.ring.destinations.render_unloaded();
        }
        self.note_connection(ConnectionState::Connected);
        self.away = false;
        tracing::info!(broker = self.broker.name(), location = self.broker.location(), "connected");
    }

    /// Logs why there is no session, once per reason; the last two are known, because two brokers may take turns.
    pub(super) fn not_connected(&mut self, error: &ConnectError, reported: &mut Vec<String>) {
        self.note_error(error.kind, &error.text);
        if reported.contains(&error.text) {
            return;
        }
        reported.truncate(1);
        reported.insert(0, error.text.clone());
        let (broker, kind, text) = (self.broker.name(), error.kind.name(), &error.text);
        if error.kind == ErrorKind::NotNow {
            tracing::warn!(broker, "the broker rejects messages temporarily, backing off: {text}");
        } else {
            tracing::error!(broker, kind, "no connection to the broker, trying again: {text}");
        }
    }

    /// Notes when the brokers become unreachable or reachable again, for client libraries that reconnect by themselves.
    pub(super) fn look(&mut self, session: &dyn Session) {
        match session.away() {
            Some(error) if !self.away => {
                self.away = true;
                self.note_error(error.kind, &error.text);
                self.note_connection(ConnectionState::Connecting);
                tracing::error!(
                    broker = self.broker.name(),
                    kind = error.kind.name(),
                    "the broker is away, its client tries again: {}",
                    error.text
                );
            }
            Some(error) => self.view.error(error.kind, &error.text),
            None if self.away => {
                self.away = false;
                self.note_connection(ConnectionState::Connected);
                tracing::info!(broker = self.broker.name(), "connected again");
            }
            None => {}
        }
    }

    /// Notes that the session is lost, and finds the message that caused it, if there is one.
    pub(super) fn lost(&mut self, lost: SessionError, alone: Option<Sequence>) {
        self.note_error(lost.kind, &lost.text);
        tracing::warn!(
            broker = self.broker.name(),
            in_flight = self.ring.in_flight(),
            "lost the session: {}",
            lost.text
        );
        match lost.suspect {
            Cause::Message(refusal) => {
                if let Some(culprit) = alone {
                    // Alone in flight, it closed the session.
                    self.refused(culprit, refusal, false);
                    self.window = Window::Open;
                } else {
                    self.window = Window::one(&self.ring, true);
                }
                self.backoff.reset();
            }
            Cause::Network => {
                self.window = self.window.after_loss();
            }
        }
    }

    pub(super) fn note_not_now(&mut self, reason: &str) {
        self.note_error(ErrorKind::NotNow, reason);
        self.note_connection(ConnectionState::Waiting);
        if self.not_now.admits() {
            tracing::warn!(
                broker = self.broker.name(),
                "the broker rejects messages temporarily, backing off: {reason}"
            );
        }
    }
}
