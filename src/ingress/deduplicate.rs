//! Deduplicate: which requests were accepted within the window, by source and verified digest of the body.
//!
//! An entry is pending as long as its ticket has not ended, recorded afterwards; one whose ticket ended otherwise than
//! kept counts as absent. Nobody has to come back to change it: whoever asks looks at the ticket.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::queue::Refused;
use crate::settings::Section;
use crate::ticket::{Outcome, Ticket};

/// `[deduplication]`.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long a request is known; zero turns it off.
    pub window: Duration,
    /// At most so many are known, the oldest go first.
    pub max_entries: usize,
}

impl Settings {
    /// Reads `[deduplication]`.
    pub fn read(section: &mut Section<'_>) -> Self {
        Self { window: section.duration("window"), max_entries: section.count("max_entries", 1) }
    }
}

/// What a request is known by. Half of a digest is enough: who could find two bodies that share it has the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    digest: [u8; 16],
    source: u16,
}

impl Key {
    /// Of the source with this number, and the verified MAC of the body (its SHA-256 where unsigned).
    #[must_use]
    pub fn new(source: usize, digest: &[u8; 32]) -> Self {
        let mut half = [0; 16];
        half.copy_from_slice(&digest[..16]);
        Self { digest: half, source: u16::try_from(source).unwrap_or(u16::MAX) }
    }
}

#[derive(Clone, Debug)]
struct Entry {
    since: Instant,
    /// Until it is known how it ended.
    ticket: Option<Arc<Ticket>>,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<Key, Entry>,
    /// Oldest first; a key that was entered again stands here twice, once out of date.
    order: VecDeque<(Key, Instant)>,
}

/// Whether a request is known.
#[derive(Clone, Debug)]
pub(super) enum Known {
    /// Accepted before.
    Recorded,
    /// On its way: its ticket tells.
    Pending(Arc<Ticket>),
}

/// The requests that are known.
#[derive(Debug)]
pub struct Deduplication {
    settings: Settings,
    table: Mutex<Table>,
}

impl Deduplication {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, table: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is turned on at all.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.settings.window.is_zero()
    }

    /// Looks for an equal request.
    pub(super) fn look(&self, key: &Key) -> Option<Known> {
        if !self.is_on() {
            return None;
        }
        self.lock().look(key, self.settings.window)
    }

    /// Enters a request and enqueues it in one breath: of two equal ones at the same time one is enqueued. `Err` of
    /// `Ok`: it is known meanwhile.
    pub(super) fn enter(
        &self,
        key: &Key,
        enqueue: impl FnOnce() -> Result<Option<Arc<Ticket>>, Refused>,
    ) -> Result<Result<Option<Arc<Ticket>>, Refused>, Known> {
        if !self.is_on() {
            return Ok(enqueue());
        }
        let mut table = self.lock();
        if let Some(known) = table.look(key, self.settings.window) {
            return Err(known);
        }
        let enqueued = enqueue();
        if let Ok(ticket) = &enqueued {
            table.enter(*key, Entry { since: Instant::now(), ticket: ticket.clone() }, self.settings);
        }
        Ok(enqueued)
    }

    /// Enters what was accepted by an earlier run: keys with their ages. What is known already stays as it is.
    pub fn restore(&self, mut accepted: Vec<(Key, Duration)>) {
        accepted.sort_by_key(|(_, age)| *age);
        let now = Instant::now();
        let mut table = self.lock();
        for (key, age) in accepted {
            let Some(since) = now.checked_sub(age).filter(|_| age < self.settings.window) else { continue };
            if table.entries.len() >= self.settings.max_entries {
                break;
            }
            if let std::collections::hash_map::Entry::Vacant(vacant) = table.entries.entry(key) {
                vacant.insert(Entry { since, ticket: None });
                table.order.push_front((key, since));
            }
        }
    }
}

impl Table {
    fn look(&mut self, key: &Key, window: Duration) -> Option<Known> {
        let entry = self.entries.get_mut(key)?;
        let Some(ticket) = &entry.ticket else {
            return (entry.since.elapsed() < window).then_some(Known::Recorded);
        };
        match ticket.outcome() {
            None => Some(Known::Pending(ticket.clone())),
            Some(Outcome::Kept) => {
                entry.ticket = None;
                (entry.since.elapsed() < window).then_some(Known::Recorded)
            }
            Some(Outcome::Failed | Outcome::Withdrawn) => {
                self.entries.remove(key);
                None
            }
        }
    }

    fn enter(&mut self, key: Key, entry: Entry, settings: Settings) {
        self.order.push_back((key, entry.since));
        self.entries.insert(key, entry);
        while let Some((key, since)) = self.order.front() {
            let current = self.entries.get(key).filter(|entry| entry.since == *since);
            if current.is_some() && self.entries.len() <= settings.max_entries && since.elapsed() < settings.window
            {
                break;
            }
            if current.is_some() {
                self.entries.remove(key);
            }
            self.order.pop_front();
        }
        if self.order.len() < self.order.capacity() / 4 && self.order.capacity() > 4096 {
            // After a flood: idle memory need not hold its room.
            self.order.shrink_to(self.order.len() * 2);
            self.entries.shrink_to(self.entries.len() * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ticket;

    fn key(number: u8) -> Key {
        Key::new(0, &[number; 32])
    }

    fn deduplication(max_entries: usize) -> Deduplication {
        Deduplication::new(Settings { window: Duration::from_mins(1), max_entries })
    }

    fn accept(known: &Deduplication, number: u8) -> bool {
        known.enter(&key(number), || Ok(None)).is_ok()
    }

    #[test]
    fn knows_what_was_accepted_and_forgets_the_oldest_first() {
        let known = deduplication(3);
        assert!((0..4).all(|number| accept(&known, number)));
        assert!(!accept(&known, 1) && !accept(&known, 2) && !accept(&known, 3));
        assert!(accept(&known, 0), "the oldest was forgotten");
        assert!(accept(&known, 1), "and then the next one");
        assert_eq!(known.lock().entries.len(), 3);
    }

    #[test]
    fn forgets_what_was_refused() {
        let known = deduplication(3);
        assert!(matches!(known.enter(&key(1), || Err(Refused::Full)), Ok(Err(Refused::Full))));
        assert!(known.look(&key(1)).is_none());
    }

    #[test]
    fn is_pending_until_the_ticket_ends_and_then_what_became_of_it() {
        for (outcome, is_known) in [(Outcome::Kept, true), (Outcome::Failed, false)] {
            let known = deduplication(3);
            let ticket = Ticket::new(None);
            assert!(known.enter(&key(1), || Ok(Some(ticket.clone()))).is_ok());
            assert!(matches!(known.look(&key(1)), Some(Known::Pending(_))));
            ticket::end([(ticket, outcome)]);
            assert_eq!(matches!(known.look(&key(1)), Some(Known::Recorded)), is_known, "{outcome:?}");
        }
        let known = deduplication(3);
        let ticket = Ticket::new(None);
        assert!(known.enter(&key(1), || Ok(Some(ticket.clone()))).is_ok());
        assert!(ticket.withdraw());
        assert!(known.look(&key(1)).is_none(), "withdrawn");
    }

    #[test]
    fn tells_sources_apart_and_forgets_after_the_window() {
        let known = Deduplication::new(Settings { window: Duration::from_millis(20), max_entries: 9 });
        assert!(accept(&known, 1));
        assert!(known.look(&Key::new(1, &[1; 32])).is_none());
        assert!(known.look(&key(1)).is_some());
        std::thread::sleep(Duration::from_millis(25));
        assert!(known.look(&key(1)).is_none());
        assert!(accept(&known, 2));
        assert_eq!(known.lock().entries.len(), 1, "what is too old takes no room");
    }

    #[test]
    fn takes_over_what_an_earlier_run_accepted() {
        let known = deduplication(2);
        assert!(accept(&known, 1));
        known.restore(vec![
            (key(2), Duration::from_secs(5)),
            (key(3), Duration::from_secs(1)),
            (key(4), Duration::from_hours(1)),
        ]);
        assert!(known.look(&key(3)).is_some(), "the younger one");
        assert!(known.look(&key(2)).is_none() && known.look(&key(4)).is_none());
        assert!(accept(&known, 5));
        assert!(known.look(&key(3)).is_none() && known.look(&key(1)).is_some(), "the oldest went");
    }
}
