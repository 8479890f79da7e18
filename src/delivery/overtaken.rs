//! The messages that a broker stored after a younger one of their key, if it reports the place of each.

use std::sync::Arc;

use crate::brokers::Sequence;

/// Messages that left the ring while a younger one of their key may have been stored before them: an answer to an
/// earlier attempt at it was lost.
#[derive(Debug, Default)]
pub(super) struct Undecided(Vec<Earlier>);

#[derive(Debug)]
struct Earlier {
    place: u64,
    address: Arc<str>,
    key: Arc<str>,
    /// The youngest one that may have been before it.
    until: Sequence,
}

impl Undecided {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Remembers a message that was stored at this place, until the younger one of this sequence is settled.
    pub(super) fn remember(&mut self, place: u64, address: &Arc<str>, key: &Arc<str>, until: Sequence) {
        self.0.push(Earlier { place, address: address.clone(), key: key.clone(), until });
    }

    /// Notes that an earlier attempt stored a younger message of this key at this place; returns the number of messages
    /// behind it.
    pub(super) fn decide(&mut self, place: u64, address: &str, key: &str) -> usize {
        let before = self.0.len();
        self.0.retain(|earlier| earlier.place < place || *earlier.address != *address || *earlier.key != *key);
        before - self.0.len()
    }

    /// Forgets messages below this sequence, because all of them are settled.
    pub(super) fn forget_below(&mut self, first: Sequence) {
        self.0.retain(|earlier| earlier.until >= first);
    }
}
