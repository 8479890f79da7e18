//! What became of reloads of the settings, for metrics, `/status` and the page.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// The last reload. Keys, never values.
#[derive(Clone, Debug)]
pub struct Reload {
    /// When.
    pub at: SystemTime,
    /// What changed since the load before.
    pub changed: Vec<String>,
    /// What is other than at the start and needs a restart to have an effect.
    pub needs_restart: Vec<String>,
    /// Why everything stayed as it was, where it did.
    pub error: Option<String>,
}

#[derive(Debug, Default)]
struct State {
    last: Option<Reload>,
    good: u64,
    bad: u64,
}

/// All reloads since the start.
#[derive(Debug, Default)]
pub struct Reloads(Mutex<State>);

impl Reloads {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a reload.
    pub fn note(&self, reload: Reload) {
        let mut state = self.lock();
        if reload.error.is_some() {
            state.bad += 1;
        } else {
            state.good += 1;
        }
        state.last = Some(reload);
    }

    /// The last one.
    #[must_use]
    pub fn last(&self) -> Option<Reload> {
        self.lock().last.clone()
    }

    /// How many were good, and how many bad.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let state = self.lock();
        (state.good, state.bad)
    }
}
