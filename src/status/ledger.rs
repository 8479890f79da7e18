//! The ledger: exact accounting, with every count as a plain number.
//!
//! `received = accepted + duplicate + probe + rejected` and
//! `accepted + recovered + replayed = published + dead_lettered + withdrawn + lost + held` hold at every moment,
//! because both sides are changed under the queue's one lock, and readers copy the whole under it.

use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;

use crate::status::{Decision, Loss, Reason, RefusalReason};

/// The number of event names that are distinguished per source; then `other`.
pub(crate) const MOST_EVENTS: usize = 100;

/// The number of pairs of event and target type that have a series of their own; then `other`.
pub(crate) const MOST_PAIRS: usize = 100;

/// One secret of a source: how often it matched, and when last.
#[derive(Clone, Debug)]
pub(crate) struct SecretUse {
    /// The secret's id.
    pub(crate) id: Arc<str>,
    /// The number of signatures it matched.
    pub(crate) matched: u64,
    /// The time of the last match.
    pub(crate) last: Option<SystemTime>,
}

/// The book of one source.
#[derive(Clone, Debug, Default)]
pub(crate) struct SourceBook {
    /// The name of the source.
    pub(crate) name: Arc<str>,
    /// The number of decided requests.
    pub(crate) received: u64,
    /// Accepted requests.
    pub(crate) accepted: u64,
    /// Duplicates.
    pub(crate) duplicate: u64,
    /// Probes.
    pub(crate) probe: u64,
    /// Refused requests, by [`Reason::ALL`].
    pub(crate) rejected: [u64; Reason::ALL.len()],
    /// The last decision and its time.
    pub(crate) last: Option<(Decision, SystemTime)>,
    /// The use of its secrets.
    pub(crate) secrets: Vec<SecretUse>,
}

impl SourceBook {
    /// Creates an empty book.
    pub(crate) fn new(name: Arc<str>, secrets: impl IntoIterator<Item = Arc<str>>) -> Self {
        let secrets = secrets.into_iter().map(|id| SecretUse { id, matched: 0, last: None }).collect();
        Self { name, secrets, ..Self::default() }
    }
}

/// Published events of one pair of event and target type, both in address form.
#[derive(Clone, Debug)]
pub(crate) struct PairBook {
    /// The event, in address form.
    pub(crate) event: String,
    /// The target type, in address form.
    pub(crate) target_type: String,
    /// The number of events.
    pub(crate) published: u64,
}

/// All books.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    /// One per source.
    pub(crate) sources: Vec<SourceBook>,
    /// Read from the journal at start.
    pub(crate) recovered: u64,
    /// Rebuilt from dead letters.
    pub(crate) replayed: u64,
    /// Confirmed by the broker.
    pub(crate) published: u64,
    /// The same by pair.
    pub(crate) pairs: Vec<PairBook>,
    /// Dead letters, by [`RefusalReason::ALL`].
    pub(crate) dead_lettered: [u64; RefusalReason::ALL.len()],
    /// Timed out before they were sent (`published` mode).
    pub(crate) withdrawn: u64,
    /// Lost, by [`Loss::ALL`].
    pub(crate) lost: [u64; Loss::ALL.len()],
}

impl Ledger {
    /// Creates empty books for these sources.
    pub(crate) fn new(sources: Vec<SourceBook>) -> Self {
        Self { sources, ..Self::default() }
    }

    /// The number of a source's book, and those of its secrets in it, by their ids. Existing books continue; none is
    /// ever removed, so that numbers stay right and counters never fall.
    pub(crate) fn enter(
        &mut self,
        source: &Arc<str>,
        secrets: impl Iterator<Item = Arc<str>>,
    ) -> (usize, Vec<usize>) {
        let at = self.sources.iter().position(|book| book.name == *source).unwrap_or_else(|| {
            self.sources.push(SourceBook::new(source.clone(), []));
            self.sources.len() - 1
        });
        let known = &mut self.sources[at].secrets;
        let numbers = secrets.map(|id| {
            known.iter().position(|secret| secret.id == id).unwrap_or_else(|| {
                known.push(SecretUse { id, matched: 0, last: None });
                known.len() - 1
            })
        });
        (at, numbers.collect())
    }

    /// Counts the decision about a request that arrived at this time, and the secret that matched.
    pub(crate) fn decide(&mut self, source: usize, secret: Option<usize>, decision: Decision, at: SystemTime) {
        debug_assert!(source < self.sources.len(), "a source without a book");
        let Some(book) = self.sources.get_mut(source) else { return };
        book.received += 1;
        book.last = Some((decision, at));
        match decision {
            Decision::Accepted => book.accepted += 1,
            Decision::Duplicate => book.duplicate += 1,
            Decision::Probe => book.probe += 1,
            Decision::Rejected(reason) => book.rejected[reason as usize] += 1,
        }
        if let Some(secret) = secret.and_then(|at| book.secrets.get_mut(at)) {
            secret.matched += 1;
            secret.last = Some(at);
        }
    }

    /// Counts confirmed events: one pair number for each.
    pub(crate) fn publish(&mut self, pair: u16) {
        self.published += 1;
        if let Some(book) = self.pairs.get_mut(usize::from(pair)) {
            book.published += 1;
        }
    }

    /// The number of decided requests of all sources.
    pub(crate) fn received(&self) -> u64 {
        self.sources.iter().map(|book| book.received).sum()
    }

    /// The totals, with the events held at this moment.
    pub(crate) fn totals(&self, held: u64) -> Totals {
        let mut totals = Totals {
            recovered: self.recovered,
            replayed: self.replayed,
            published: self.published,
            dead_lettered: self.dead_lettered.iter().sum(),
            withdrawn: self.withdrawn,
            lost: self.lost.iter().sum(),
            received: self.received(),
            held,
            ..Totals::default()
        };
        for book in &self.sources {
            totals.accepted += book.accepted;
            totals.duplicate += book.duplicate;
            totals.probe += book.probe;
            totals.rejected += book.rejected.iter().sum::<u64>();
        }
        totals
    }
}

/// The two sums of the accounting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Totals {
    /// Decided requests.
    pub(crate) received: u64,
    /// Entered the buffer.
    pub(crate) accepted: u64,
    /// Already known.
    pub(crate) duplicate: u64,
    /// Connection tests.
    pub(crate) probe: u64,
    /// Refused.
    pub(crate) rejected: u64,
    /// From the journal at start.
    pub(crate) recovered: u64,
    /// From dead letters.
    pub(crate) replayed: u64,
    /// Confirmed by the broker.
    pub(crate) published: u64,
    /// Refused by the broker, and kept.
    pub(crate) dead_lettered: u64,
    /// Timed out before they were sent.
    pub(crate) withdrawn: u64,
    /// Lost.
    pub(crate) lost: u64,
    /// Buffered, in flight, or on disk.
    pub(crate) held: u64,
}

impl Totals {
    /// The number of events by which the two equations fail: 0, unless there is a defect.
    pub(crate) fn mismatch(&self) -> u64 {
        let decided = self.accepted + self.duplicate + self.probe + self.rejected;
        let entered = self.accepted + self.recovered + self.replayed;
        let ended = self.published + self.dead_lettered + self.withdrawn + self.lost + self.held;
        self.received.abs_diff(decided) + entered.abs_diff(ended)
    }
}

/// `[buffer]`: from enqueue to settle, in flight included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Events.
    pub(crate) events: usize,
    /// Bytes: each event counts its body and 512.
    pub(crate) bytes: usize,
}

/// A copy of all counts, taken under the lock.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    /// The ledger.
    pub(crate) ledger: Ledger,
    /// Events in memory: waiting and in delivery's ring.
    pub(crate) events: usize,
    /// Their cost in bytes.
    pub(crate) bytes: usize,
    /// Everything accepted and not settled: in memory, in flight, on disk.
    pub(crate) held: u64,
    /// The limits.
    pub(crate) limits: Limits,
    /// The receipt of the oldest event held.
    pub(crate) oldest: Option<SystemTime>,
    /// A limit was reached, and less than 10 % has become free since.
    pub(crate) full: bool,
    /// The broker has been unreachable for longer than a sender waits, and the mode needs it.
    pub(crate) away: bool,
    /// The journal, if there is one.
    pub(crate) journal: Option<JournalState>,
}

impl Snapshot {
    /// The two sums.
    pub(crate) fn totals(&self) -> Totals {
        self.ledger.totals(self.held)
    }
}

/// The journal at this moment.
#[derive(Clone, Debug)]
pub(crate) struct JournalState {
    /// The number of unsettled events, on disk or read back.
    pub(crate) events: usize,
    /// The bytes of its segments in use.
    pub(crate) bytes: u64,
    /// `journal.max_bytes`, rounded down to whole segments.
    pub(crate) capacity: u64,
    /// The number of events found at start.
    pub(crate) recovered: u64,
    /// The number of damaged records found.
    pub(crate) damaged: u64,
    /// The limit was reached, and less than 10 % has become free since.
    pub(crate) full: bool,
    /// The reason why the journal can never be written again.
    pub(crate) failed: Option<String>,
    /// The reason why no further segment can be created at the moment.
    pub(crate) no_space: Option<String>,
    /// An event was refused for that reason.
    pub(crate) short: bool,
    /// The reason why nothing is accepted although the disk reports no error.
    pub(crate) stalled: Option<&'static str>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_decision_keeps_the_first_equation(decisions in proptest::collection::vec(0usize..14, 0..200)) {
            let mut ledger = Ledger::new(vec![SourceBook::new("a".into(), ["default".into()])]);
            let mut accepted = 0;
            for decision in &decisions {
                let decision = match decision {
                    0 => Decision::Accepted,
                    1 => Decision::Duplicate,
                    2 => Decision::Probe,
                    reason => Decision::Rejected(Reason::ALL[reason - 3]),
                };
                accepted += u64::from(decision == Decision::Accepted);
                ledger.decide(0, Some(0), decision, SystemTime::now());
            }
            let totals = ledger.totals(accepted);
            prop_assert_eq!(totals.mismatch(), 0);
            prop_assert_eq!(totals.received, decisions.len() as u64);
            prop_assert_eq!(ledger.sources[0].secrets[0].matched, decisions.len() as u64);
        }
    }

    #[test]
    fn sources_and_secrets_that_stay_keep_their_books() {
        let mut ledger = Ledger::default();
        let mut enter = |name: &str, ids: &[&str]| ledger.enter(&name.into(), ids.iter().map(|id| (*id).into()));
        assert_eq!(enter("a", &["1"]), (0, vec![0]));
        assert_eq!(enter("b", &[]), (1, vec![]));
        assert_eq!(enter("a", &["2", "1"]), (0, vec![1, 0]));
        assert_eq!(enter("a", &["2"]), (0, vec![1]));
        assert_eq!(ledger.sources[0].secrets.len(), 2);
    }

    #[test]
    fn a_missing_event_shows_as_a_mismatch() {
        let mut ledger = Ledger::new(vec![SourceBook::new("a".into(), [])]);
        ledger.decide(0, None, Decision::Accepted, SystemTime::now());
        assert_eq!(ledger.totals(0).mismatch(), 1);
        assert_eq!(ledger.totals(1).mismatch(), 0);
    }
}
