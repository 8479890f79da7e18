//! The waits between attempts.

use std::time::Duration;

/// Waits that double from `retry_min` to `retry_max`, with jitter.
#[derive(Debug)]
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

    pub(super) fn reset(&mut self) {
        self.current = self.min;
    }
}
