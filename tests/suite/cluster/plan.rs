//! The lengths of the faults and the strictness of the verdict; the numbers that are found.

use std::time::Duration;

/// Whether more is asked for than that no event is lost, blamed or late without being counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judged {
    /// No loss, no dead letter, order, recovery.
    Promises,
    /// Besides: what waits is said, what need not wait does not, the count of late events is exact.
    Everything,
}

/// The lengths of the faults, and what is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// The time from the death of a node to its start.
    pub(super) gone: Duration,
    /// The time for which nodes hang, or are too few.
    pub(super) paused: Duration,
    /// The time for which the leader moves.
    pub(super) moved: Duration,
    /// The time for which an address takes nothing.
    pub(super) refusing: Duration,
    /// The limit from the first confirm of a plain client to the bridge's.
    pub(super) recovery: Duration,
    /// The strictness of the verdict.
    pub(super) judged: Judged,
}

/// The numbers of a fault.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Events answered 200.
    pub(super) accepted: u64,
    /// Messages at the broker.
    pub(super) delivered: usize,
    /// Messages among them that were there before.
    pub(super) repeats: usize,
    /// First deliveries after a later event of their key.
    pub(super) late: u64,
    /// The bridge's own count of these.
    pub(super) out_of_order: u64,
    /// The longest time from the first confirm of a plain client to the bridge's.
    pub(super) recovered: Duration,
    /// Departures that cost no event.
    pub(super) wrong: Vec<String>,
}
