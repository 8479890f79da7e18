//! The settings in force, and the results of their reloads, for metrics, `/status` and the page.

use std::time::SystemTime;

use parking_lot::Mutex;
use serde_json::Value;

/// The last reload. Keys, never values.
#[derive(Clone, Debug)]
pub(crate) struct Reload {
    /// The time of the reload.
    pub(crate) at: SystemTime,
    /// The keys that changed since the previous load.
    pub(crate) changed: Vec<String>,
    /// The keys that differ from the start and need a restart to take effect.
    pub(crate) needs_restart: Vec<String>,
    /// The reason why everything stayed as it was, if it did.
    pub(crate) error: Option<String>,
}

#[derive(Debug, Default)]
struct ReloadCounts {
    last: Option<Reload>,
    good: u64,
    bad: u64,
    in_force: Value,
}

/// All reloads since the start.
#[derive(Debug, Default)]
pub(crate) struct Reloads(Mutex<ReloadCounts>);

impl Reloads {
    /// Records a reload.
    pub(crate) fn note(&self, reload: Reload) {
        let mut state = self.0.lock();
        if reload.error.is_some() {
            state.bad += 1;
        } else {
            state.good += 1;
        }
        state.last = Some(reload);
    }

    /// Records the settings in force, with the origin of each.
    pub(crate) fn set_in_force(&self, settings: Value) {
        self.0.lock().in_force = settings;
    }

    /// The settings in force.
    #[must_use]
    pub(crate) fn in_force(&self) -> Value {
        self.0.lock().in_force.clone()
    }

    /// The last reload.
    #[must_use]
    pub(crate) fn last(&self) -> Option<Reload> {
        self.0.lock().last.clone()
    }

    /// The numbers of successful and failed reloads.
    #[must_use]
    pub(crate) fn counts(&self) -> (u64, u64) {
        let state = self.0.lock();
        (state.good, state.bad)
    }
}
