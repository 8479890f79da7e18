//! The waits between attempts: for the broker, and for a message that it has nacked.

use std::time::Duration;

/// The wait after the second nack of a message, doubled by each further one: with the first attempt and the one that
/// follows at once, six in any 65 seconds.
const AFTER_TWO_NACKS: Duration = Duration::from_secs(3);

/// The longest wait for a message that is nacked repeatedly.
const LONGEST_AFTER_NACKS: Duration = Duration::from_mins(1);

/// Waits that double from `retry_min` to `retry_max`, with jitter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    min: Duration,
    most: Duration,
    current: Duration,
}

impl Backoff {
    pub(super) fn new(min: Duration, most: Duration) -> Self {
        Self { min, most, current: min }
    }

    pub(super) fn next(&mut self) -> Duration {
        let wait = self.current.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.current = (self.current * 2).min(self.most);
        wait
    }

    /// The wait before a message is sent again that was nacked so often. One nack says little: it may be the channel's.
    pub(super) fn after_nacks(&mut self, nacks: u32) -> Duration {
        match nacks.checked_sub(2) {
            None => self.next(),
            Some(doubled) => AFTER_TWO_NACKS.saturating_mul(2_u32.saturating_pow(doubled)).min(LONGEST_AFTER_NACKS),
        }
    }

    /// The longest wait but those after nacks.
    pub(super) fn most(&self) -> Duration {
        self.most
    }

    pub(super) fn reset(&mut self) {
        self.current = self.min;
    }
}
