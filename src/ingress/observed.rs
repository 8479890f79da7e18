//! Observations of one source beside the books, for the log and for `/status`; they are kept across reloads.

use std::time::Duration;

use crate::ingress::deviating::Deviating;
use crate::ingress::refusals::Recent;
use crate::logs::Throttle;

/// Observations of one source.
#[derive(Debug)]
pub struct Observed {
    /// The last refusals.
    pub recent: Recent,
    /// How accepted payloads depart from the documented one.
    pub deviating: Deviating,
    /// Lines about connection tests.
    pub(super) tests: Throttle,
    /// Lines about bodies that cannot be kept.
    pub(super) unkept: Throttle,
}

impl Default for Observed {
    fn default() -> Self {
        Self {
            recent: Recent::default(),
            deviating: Deviating::default(),
            tests: Throttle::new(1, Duration::from_secs(1)),
            unkept: Throttle::new(1, Duration::from_secs(10)),
        }
    }
}
