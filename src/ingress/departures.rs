//! Counts how an event deviates from the documented payload, once it is accepted, whatever happens to its request.

use std::sync::Arc;

use tokio::task::spawn_local;

use crate::event::{Deviations, Waiter};
use crate::status::Observed;

/// The departures of one event.
#[derive(Clone)]
pub(super) struct Departures {
    pub(super) observed: Arc<Observed>,
    /// The name of the source.
    pub(super) source: Arc<str>,
    /// The index of the event's name.
    pub(super) place: usize,
    pub(super) deviations: Deviations,
}

impl Departures {
    /// Counts them: the event is accepted.
    pub(super) fn count(&self) {
        self.observed.deviating.accepted(self.place, &self.deviations, &self.source);
    }

    /// Counts them once the event is kept; the request drops the result when it ends.
    pub(super) fn once_kept(self, waiter: Arc<Waiter>) -> CountedOnceKept {
        CountedOnceKept { departures: self, waiter }
    }
}

/// The departures of an event that the journal is still to take.
pub(super) struct CountedOnceKept {
    departures: Departures,
    waiter: Arc<Waiter>,
}

impl Drop for CountedOnceKept {
    fn drop(&mut self) {
        match self.waiter.outcome() {
            Some(outcome) if outcome.is_kept() => self.departures.count(),
            Some(_) => {}
            // The sender has left, or was answered that it takes too long.
            None => {
                let (departures, waiter) = (self.departures.clone(), self.waiter.clone());
                spawn_local(async move {
                    if waiter.wait().await.is_kept() {
                        departures.count();
                    }
                });
            }
        }
    }
}
