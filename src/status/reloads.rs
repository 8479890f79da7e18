//! What became of reloads of the settings, for metrics, `/status` and the page.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// The last reload. Keys, never values.
#[derive(Clone, Debug)]
pub(crate) struct Reload {
    /// When.
    pub(crate) at: SystemTime,
    /// What changed since the load before.
    pub(crate) changed: Vec<String>,
    /// What is other than at the start and needs a restart to have an effect.
    pub(crate) needs_restart: Vec<String>,
    /// Why everything stayed as it was, where it did.
    pub(crate) error: Option<String>,
}

#[derive(Debug, Default)]
struct ReloadCounts {
    last: Option<Reload>,
    good: u64,
    bad: u64,
}

/// All reloads since the start.
#[derive(Debug, Default)]
pub(crate) struct Reloads(Mutex<ReloadCounts>);

impl Reloads {
    fn lock(&self) -> MutexGuard<'_, ReloadCounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a reload.
    pub(crate) fn note(&self, reload: Reload) {
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
    pub(crate) fn last(&self) -> Option<Reload> {
        self.lock().last.clone()
    }

    /// How many were good, and how many bad.
    #[must_use]
    pub(crate) fn counts(&self) -> (u64, u64) {
        let state = self.lock();
        (state.good, state.bad)
    }
}
