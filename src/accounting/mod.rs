//! Exact accounting.
//!
//! `received = accepted + duplicate + probe + rejected` and
//! `accepted + recovered + replayed = published + dead_lettered + withdrawn + lost + held` hold at every moment,
//! because whoever changes two sides does it under the queue's one lock, and readers copy the whole under it.

mod ledger;
mod reasons;

pub use ledger::{JournalState, Ledger, Limits, PairBook, SecretUse, Snapshot, SourceBook, Totals};
pub use reasons::{Decision, ErrorKind, KeptReason, Loss, Reason, RefusalReason};

/// At most so many names of events are told apart per source; then `other`.
pub const MOST_EVENTS: usize = 100;

/// At most so many pairs of event and target type have a series of their own; then `other`.
pub const MOST_PAIRS: usize = 100;
