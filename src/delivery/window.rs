//! The number of messages that may be in flight at the moment.

use tokio::time::Instant;

use crate::brokers::Sequence;
use crate::delivery::ring::Ring;

/// The window of unconfirmed messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Window {
    /// `max_in_flight`.
    Open,
    /// One at a time, until everything below this sequence is settled: order holds, and a message that closes the
    /// session is found.
    One {
        /// First sequence after the messages being retried one at a time.
        until: Sequence,
        /// One of them may have closed the session.
        suspect: bool,
    },
    /// No message: the broker takes nothing for now. Outstanding verdicts are collected, then it is tried again.
    Shut {
        /// The time of the next attempt.
        again: Instant,
    },
}

impl Window {
    /// Restricts everything that is in the ring now to one at a time.
    pub(super) fn one(ring: &Ring, suspect: bool) -> Self {
        Self::One { until: ring.end(), suspect }
    }

    /// The maximum number of messages in flight.
    pub(super) fn most(self, max_in_flight: usize) -> usize {
        match self {
            Self::Open => max_in_flight,
            Self::One { .. } => 1,
            Self::Shut { .. } => 0,
        }
    }

    /// Whether new events can be used.
    pub(super) fn is_open(self) -> bool {
        self == Self::Open
    }

    /// Whether messages are sent one at a time.
    pub(super) fn is_one(self) -> bool {
        matches!(self, Self::One { .. })
    }

    /// Whether nothing is sent for now.
    pub(super) fn is_shut(self) -> bool {
        matches!(self, Self::Shut { .. })
    }

    /// The window of the next session, after one that was lost without a message to blame. A session that looked for
    /// such a message leaves its suspects suspect.
    pub(super) fn after_loss(self) -> Self {
        match self {
            Self::One { suspect: true, .. } => self,
            _ => Self::Open,
        }
    }

    /// The time of the next attempt, if only time is waited for.
    pub(super) fn again(self, ring: &Ring) -> Option<Instant> {
        match self {
            Self::Shut { again } if ring.handed() == 0 => Some(again),
            _ => None,
        }
    }

    /// The next window, once the condition of this one is met; none before.
    pub(super) fn next(self, ring: &Ring) -> Option<Self> {
        match self {
            Self::One { until, .. } if ring.begin() >= until => Some(Self::Open),
            Self::Shut { .. } if self.again(ring).is_some_and(|again| Instant::now() >= again) => {
                Some(Self::one(ring, false))
            }
            _ => None,
        }
    }
}
