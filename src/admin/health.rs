//! Liveness and readiness: from the heartbeats of the threads and the state of queue and delivery.

use crate::admin::Admin;
use crate::process::shutdown::Phase;
use crate::queue::Ack;
use crate::status::Snapshot;

impl Admin {
    /// The reasons why events cannot be accepted; empty when they can.
    pub(super) fn unready(&self, snapshot: &Snapshot) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.stop.phase() != Phase::Serving {
            reasons.push("draining: the bridge is stopping".to_owned());
        }
        let view = self.status.broker.copy();
        if snapshot.full {
            let most = view.most_waiting().map_or_else(String::new, |most| format!("; {most}"));
            reasons.push(format!(
                "buffer full: {} of {} events, {} of {} bytes{most}",
                snapshot.events, snapshot.limits.events, snapshot.bytes, snapshot.limits.bytes
            ));
        }
        if let Some(journal) = snapshot.journal.as_ref().filter(|_| self.queue.mode().ack == Ack::Journaled) {
            if let Some(text) = journal.failed.as_ref().or(journal.no_space.as_ref().filter(|_| journal.short)) {
                reasons.push(format!("journal: {text}"));
            }
            if let Some(text) = journal.stalled {
                reasons.push(format!("journal: {text}"));
            }
            if journal.full {
                reasons.push(format!("journal full: {} of {} bytes", journal.bytes, journal.capacity));
            }
        }
        if let Some(blocked) = view.blocked {
            reasons.push(format!("dead letters: {blocked}"));
        }
        if snapshot.away {
            let error = view.last_error.map_or_else(String::new, |error| format!(": {}", error.text));
            reasons.push(format!("the broker has been away longer than publish.timeout{error}"));
        }
        reasons
    }
}
