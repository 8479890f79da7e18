//! The settings in force, and the results of their reloads, for metrics, `/status` and the page.

use std::time::SystemTime;

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

/// The settings in force, and all reloads since the start.
#[derive(Debug, Default)]
pub(crate) struct Reloads {
    /// The last reload.
    pub(crate) last: Option<Reload>,
    /// The number of successful reloads.
    pub(crate) good: u64,
    /// The number of failed reloads.
    pub(crate) bad: u64,
    /// The settings in force, with the origin of each.
    pub(crate) in_force: Value,
}

impl Reloads {
    /// Records a reload.
    pub(crate) fn note(&mut self, reload: Reload) {
        *(if reload.error.is_some() { &mut self.bad } else { &mut self.good }) += 1;
        self.last = Some(reload);
    }
}
