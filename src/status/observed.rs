//! Observations of one source beside the ledger, for the log and for `/status`; they are kept across reloads.

use std::time::Duration;

use crate::process::logs::Throttle;
use crate::status::deviating::Deviating;
use crate::status::refusals::Recent;

/// Observations of one source.
#[derive(Debug)]
pub(crate) struct Observed {
    /// The last refusals.
    pub(crate) recent: Recent,
    /// The departures of accepted payloads from the documented one.
    pub(crate) deviating: Deviating,
    /// The rate limit for lines about connection tests.
    pub(crate) tests: Throttle,
    /// The rate limit for lines about bodies that cannot be kept.
    pub(crate) unkept: Throttle,
}

impl Default for Observed {
    fn default() -> Self {
        Self {
            recent: Recent::default(),
            deviating: Deviating::default(),
            tests: Throttle::new("connection tests", 1, Duration::from_secs(1)),
            unkept: Throttle::new("signed bodies that cannot be kept", 1, Duration::from_secs(10)),
        }
    }
}
