//! Live and ready: from the pulses of the threads and the state of queue and delivery.

use std::sync::Arc;

use crate::accounting::Snapshot;
use crate::delivery::View;
use crate::pulse::Pulse;
use crate::queue::Buffer;
use crate::shutdown::{Drain, Phase};

/// What health is judged by.
#[derive(Debug)]
pub struct Health {
    /// The threads that must not hang.
    pub pulses: Vec<Pulse>,
    /// The queue.
    pub queue: Arc<Buffer>,
    /// The view of delivery.
    pub view: View,
    /// The stop.
    pub stop: Drain,
}

impl Health {
    /// What hangs.
    #[must_use]
    pub fn dead(&self) -> Vec<String> {
        self.pulses.iter().filter_map(Pulse::problem).collect()
    }

    /// Why events cannot be accepted; empty when they can.
    #[must_use]
    pub fn unready(&self, snapshot: &Snapshot) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.stop.phase() != Phase::Serving {
            reasons.push("draining: the bridge is stopping".to_owned());
        }
        if snapshot.full {
            reasons.push(format!(
                "buffer full: {} of {} events, {} of {} bytes",
                snapshot.events, snapshot.limits.events, snapshot.bytes, snapshot.limits.bytes
            ));
        }
        if let Some(blocked) = self.view.copy().blocked {
            reasons.push(format!("dead letters: {blocked}"));
        }
        reasons
    }
}
