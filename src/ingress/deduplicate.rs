//! Deduplicate: which requests were accepted within the window, by source and verified digest of the body.
//!
//! An entry is pending until its waiter has an outcome, and recorded afterwards; an entry with an outcome other than
//! kept counts as absent. Entries are not updated when an event ends: a look-up reads the waiter.
//!
//! Length: half of it is the tests of one small table.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hashbrown::HashTable;
use parking_lot::Mutex;

use crate::event::{Outcome, Waiter};
use crate::queue::NotTaken;
use crate::settings::Section;

/// The unit of an entry's age: four bytes of it last thirteen years.
const TICK: Duration = Duration::from_millis(100);

/// The number of waiters released with each new entry: more than one, so that those that ended in a batch do not pile
/// up.
const RELEASED_AT_ONCE: usize = 4;

/// `[deduplication]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// The time for which a request is known; zero turns deduplication off.
    pub(crate) window: Duration,
    /// The maximum number of entries; the oldest are removed first.
    pub(crate) max_entries: usize,
}

impl Settings {
    /// Reads `[deduplication]`.
    pub(crate) fn read(section: &mut Section<'_>) -> Self {
        Self { window: section.duration("window"), max_entries: section.count("max_entries", 1) }
    }
}

/// The key of a request. 16 bytes suffice: only someone with the secret could search for a collision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    digest: [u8; 16],
    source: u16,
}

impl Key {
    /// The key for the source with this number and the verified MAC of the body (its SHA-256 if unsigned).
    #[must_use]
    pub(crate) fn new(source: usize, digest: &[u8; 32]) -> Self {
        let mut half = [0; 16];
        half.copy_from_slice(&digest[..16]);
        Self { digest: half, source: u16::try_from(source).unwrap_or(u16::MAX) }
    }

    /// A digest is as good as random, but a sender of unsigned bodies can choose some of its bits: the seed prevents it
    /// from filling one bucket of the table.
    fn hash(&self, seed: u64) -> u64 {
        let half = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| self.digest[at + byte]));
        let product = u128::from(half(0) ^ seed) * u128::from((half(8) ^ u64::from(self.source)) | 1);
        let bytes = product.to_le_bytes();
        let part = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]));
        part(0) ^ part(8)
    }
}

/// One request: 32 bytes, and some 8 for its number in the table. 100,000 of them take 4 to 6 MB; those whose waiter
/// has not been released yet take some 100 bytes more.
#[derive(Clone, Debug)]
struct RecentRequest {
    key: Key,
    /// The time of acceptance, in ticks.
    since: u32,
    /// Present until the outcome is known.
    waiter: Option<Arc<Waiter>>,
}

/// The entries in order of age, and an index from key to entry.
#[derive(Debug)]
struct Table {
    window: Duration,
    max_entries: usize,
    /// The zero of the ticks: one window before the start, because older requests are not restored.
    begin: Instant,
    /// The entries, oldest first, numbered consecutively.
    entries: VecDeque<RecentRequest>,
    /// The number of the oldest entry.
    first: u32,
    /// The number from which on entries may have a waiter; older entries have released theirs.
    pending: u32,
    /// The numbers of the entries that count. The others have an outcome other than kept, and are removed when they are
    /// the oldest.
    known: HashTable<u32>,
    seed: u64,
}

/// Whether a request is known.
#[derive(Clone, Debug)]
pub(super) enum Known {
    /// Accepted this long ago.
    Recorded(Duration),
    /// Accepted, with an outcome to come: its waiter reports it.
    Pending(Arc<Waiter>),
}

/// The requests that are known.
#[derive(Debug)]
pub(crate) struct Deduplication {
    table: Mutex<Table>,
    /// Whether deduplication is turned on.
    on: AtomicBool,
}

impl Deduplication {
    /// Creates an empty table.
    #[must_use]
    pub(crate) fn new(settings: Settings) -> Self {
        Self { table: Mutex::new(Table::new(settings)), on: AtomicBool::new(!settings.window.is_zero()) }
    }

    /// Changes the window and the limit; entries remain known within both.
    pub(crate) fn limit(&self, settings: Settings) {
        let mut table = self.table.lock();
        (table.window, table.max_entries) = (settings.window, settings.max_entries);
        self.on.store(!settings.window.is_zero(), Ordering::Relaxed);
    }

    /// Whether deduplication is turned on.
    #[must_use]
    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Looks up an equal request.
    pub(super) fn look_up(&self, key: &Key, now: Instant) -> Option<Known> {
        if !self.is_on() {
            return None;
        }
        let mut table = self.table.lock();
        let now = table.ticks(now);
        table.look_up(key, now)
    }

    /// Atomically records and enqueues a request, so that only one of two concurrent equal requests is enqueued.
    /// Returns `Err(known)` for the other.
    pub(super) fn enter(
        &self,
        key: &Key,
        now: Instant,
        enqueue: impl FnOnce() -> Result<Option<Arc<Waiter>>, NotTaken>,
    ) -> Result<Result<Option<Arc<Waiter>>, NotTaken>, Known> {
        if !self.is_on() {
            return Ok(enqueue());
        }
        let mut table = self.table.lock();
        let now = table.ticks(now);
        if let Some(known) = table.look_up(key, now) {
            return Err(known);
        }
        let enqueued = enqueue();
        if let Ok(waiter) = &enqueued {
            table.enter(RecentRequest { key: *key, since: now, waiter: waiter.clone() });
        }
        Ok(enqueued)
    }

    /// Restores what an earlier run accepted: keys with their ages. Entries that exist stay as they are.
    pub(crate) fn restore(&self, mut accepted: Vec<(Key, Duration)>) {
        accepted.sort_by_key(|(_, age)| *age);
        let mut table = self.table.lock();
        let (now, window) = (table.ticks(Instant::now()), table.window);
        for (key, age) in accepted.into_iter().take_while(|(_, age)| *age < window) {
            if table.entries.len() >= table.max_entries {
                break;
            }
            if table.find(&key).is_none() {
                table.restore(RecentRequest { key, since: now.saturating_sub(ticks(age)), waiter: None });
            }
        }
    }
}

fn ticks(time: Duration) -> u32 {
    u32::try_from(time.as_millis() / TICK.as_millis()).unwrap_or(u32::MAX)
}

impl Table {
    fn new(Settings { window, max_entries }: Settings) -> Self {
        let now = Instant::now();
        Self {
            window,
            max_entries,
            begin: now.checked_sub(window).unwrap_or(now),
            entries: VecDeque::new(),
            first: 0,
            pending: 0,
            known: HashTable::new(),
            seed: fastrand::u64(..),
        }
    }

    fn ticks(&self, time: Instant) -> u32 {
        ticks(time.saturating_duration_since(self.begin))
    }

    fn is_recent(&self, since: u32, now: u32) -> bool {
        TICK * now.saturating_sub(since) < self.window
    }

    /// The number of the entry that counts for this key.
    fn find(&self, key: &Key) -> Option<u32> {
        let (entries, first) = (&self.entries, self.first);
        self.known.find(key.hash(self.seed), |number| at(entries, first, *number).key == *key).copied()
    }

    fn forget(&mut self, number: u32) {
        let hash = at(&self.entries, self.first, number).key.hash(self.seed);
        if let Ok(found) = self.known.find_entry(hash, |known| *known == number) {
            found.remove();
        }
    }

    fn look_up(&mut self, key: &Key, now: u32) -> Option<Known> {
        let number = self.find(key)?;
        let entry = &mut self.entries[number.wrapping_sub(self.first) as usize];
        if let Some(waiter) = entry.waiter.as_ref().filter(|waiter| waiter.outcome().is_none()) {
            return Some(Known::Pending(waiter.clone()));
        }
        if !self.release(number) {
            return None;
        }
        let since = at(&self.entries, self.first, number).since;
        self.is_recent(since, now).then(|| Known::Recorded(TICK * now.saturating_sub(since)))
    }

    /// Releases the waiter of an entry, if it has an outcome; false if the entry no longer counts, because the outcome
    /// is not kept.
    fn release(&mut self, number: u32) -> bool {
        let entry = &mut self.entries[number.wrapping_sub(self.first) as usize];
        match entry.waiter.as_ref().and_then(|waiter| waiter.outcome()) {
            None => return true,
            Some(Outcome::Kept) => entry.waiter = None,
            Some(Outcome::Failed | Outcome::Withdrawn) => {
                entry.waiter = None;
                self.forget(number);
                return false;
            }
        }
        true
    }

    /// Releases the waiters of the oldest entries that still have one, as far as they have an outcome: only a few, so
    /// that no request waits for many.
    fn release_some(&mut self) {
        for _ in 0..RELEASED_AT_ONCE {
            let at = self.pending.wrapping_sub(self.first) as usize;
            let Some(entry) = self.entries.get(at) else { break };
            if entry.waiter.as_ref().is_some_and(|waiter| waiter.outcome().is_none()) {
                break;
            }
            self.release(self.pending);
            self.pending = self.pending.wrapping_add(1);
        }
    }

    /// Adds the youngest entry; its key is not known, or no longer.
    fn enter(&mut self, entry: RecentRequest) {
        if let Some(number) = self.find(&entry.key) {
            self.forget(number);
        }
        let now = entry.since;
        let number = self.first.wrapping_add(u32::try_from(self.entries.len()).unwrap_or(u32::MAX));
        self.insert(number, &entry.key);
        self.entries.push_back(entry);
        while self.entries.len() > self.max_entries
            || self.entries.front().is_some_and(|oldest| !self.is_recent(oldest.since, now))
        {
            self.forget(self.first);
            self.entries.pop_front();
            if self.pending == self.first {
                self.pending = self.pending.wrapping_add(1);
            }
            self.first = self.first.wrapping_add(1);
        }
        self.release_some();
        if self.entries.len() < self.entries.capacity() / 4 && self.entries.capacity() > 4096 {
            // After a burst: an idle table need not keep its capacity.
            let (few, entries, first, seed) = (self.entries.len() * 2, &mut self.entries, self.first, self.seed);
            entries.shrink_to(few);
            self.known.shrink_to(few, |number| at(entries, first, *number).key.hash(seed));
        }
    }

    /// Adds the oldest entry.
    fn restore(&mut self, entry: RecentRequest) {
        self.first = self.first.wrapping_sub(1);
        let key = entry.key;
        self.entries.push_front(entry);
        self.insert(self.first, &key);
    }

    fn insert(&mut self, number: u32, key: &Key) {
        let (entries, first, seed) = (&self.entries, self.first, self.seed);
        self.known.insert_unique(key.hash(seed), number, |number| at(entries, first, *number).key.hash(seed));
    }
}

/// The entry with this number.
fn at(entries: &VecDeque<RecentRequest>, first: u32, number: u32) -> &RecentRequest {
    &entries[number.wrapping_sub(first) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::complete_all;

    fn key(number: u8) -> Key {
        Key::new(0, &[number; 32])
    }

    fn deduplication(max_entries: usize) -> Deduplication {
        Deduplication::new(Settings { window: Duration::from_mins(1), max_entries })
    }

    fn look_up(known: &Deduplication, key: &Key) -> Option<Known> {
        known.look_up(key, Instant::now())
    }

    fn accept(known: &Deduplication, number: u8) -> bool {
        known.enter(&key(number), Instant::now(), || Ok(None)).is_ok()
    }

    #[test]
    fn knows_what_was_accepted_and_forgets_the_oldest_first() {
        let known = deduplication(3);
        assert!((0..4).all(|number| accept(&known, number)));
        assert!(!accept(&known, 1) && !accept(&known, 2) && !accept(&known, 3));
        assert!(accept(&known, 0), "the oldest was removed");
        assert!(accept(&known, 1), "then the next one");
        assert_eq!(known.table.lock().entries.len(), 3);
    }

    #[test]
    fn forgets_what_was_refused() {
        let known = deduplication(3);
        assert!(matches!(known.enter(&key(1), Instant::now(), || Err(NotTaken::Full)), Ok(Err(NotTaken::Full))));
        assert!(look_up(&known, &key(1)).is_none());
    }

    #[test]
    fn is_pending_until_the_ticket_ends_and_then_what_became_of_it() {
        for (outcome, is_known) in [(Outcome::Kept, true), (Outcome::Failed, false)] {
            let known = deduplication(3);
            let waiter = Waiter::new(None);
            assert!(known.enter(&key(1), Instant::now(), || Ok(Some(waiter.clone()))).is_ok());
            assert!(matches!(look_up(&known, &key(1)), Some(Known::Pending(_))));
            complete_all([(waiter, outcome)]);
            assert_eq!(matches!(look_up(&known, &key(1)), Some(Known::Recorded(_))), is_known, "{outcome:?}");
        }
        let known = deduplication(3);
        let waiter = Waiter::new(None);
        assert!(known.enter(&key(1), Instant::now(), || Ok(Some(waiter.clone()))).is_ok());
        assert!(waiter.withdraw());
        assert!(look_up(&known, &key(1)).is_none(), "withdrawn");
    }

    #[test]
    fn tells_sources_apart_and_forgets_after_the_window() {
        let known = Deduplication::new(Settings { window: 2 * TICK, max_entries: 9 });
        assert!(accept(&known, 1));
        assert!(look_up(&known, &Key::new(1, &[1; 32])).is_none());
        assert!(look_up(&known, &key(1)).is_some());
        std::thread::sleep(3 * TICK);
        assert!(look_up(&known, &key(1)).is_none());
        assert!(accept(&known, 2));
        let table = known.table.lock();
        assert_eq!((table.entries.len(), table.known.len()), (1, 1), "what is too old takes no room");
    }

    #[test]
    fn takes_an_entry_that_failed_for_no_entry_and_leaves_its_room() {
        let known = deduplication(3);
        for _ in 0..5 {
            let waiter = Waiter::new(None);
            assert!(known.enter(&key(1), Instant::now(), || Ok(Some(waiter.clone()))).is_ok());
            complete_all([(waiter, Outcome::Failed)]);
        }
        assert!(accept(&known, 1) && accept(&known, 2));
        assert!(!accept(&known, 1) && !accept(&known, 2));
        let table = known.table.lock();
        assert_eq!((table.entries.len(), table.known.len()), (3, 2));
    }

    #[test]
    fn agrees_with_a_list_through_a_long_random_life() {
        let (mut random, mut list) = (fastrand::Rng::with_seed(3), VecDeque::new());
        let known = deduplication(20);
        {
            let mut table = known.table.lock();
            (table.first, table.pending) = (u32::MAX - 50, u32::MAX - 50);
        }
        for _ in 0..2_000 {
            let number = random.u8(..60);
            assert_eq!(accept(&known, number), !list.contains(&number));
            if !list.contains(&number) {
                list.push_back(number);
                list.drain(..list.len().saturating_sub(20));
            }
            let table = known.table.lock();
            assert_eq!((table.entries.len(), table.known.len()), (list.len(), list.len()));
        }
    }

    #[test]
    fn takes_other_limits_and_is_turned_off_and_on() {
        let known = deduplication(3);
        assert!((0..3).all(|number| accept(&known, number)));
        known.limit(Settings { window: Duration::from_mins(1), max_entries: 1 });
        assert!(!accept(&known, 0), "until another one arrives");
        assert!(accept(&known, 3) && accept(&known, 2), "one is left");
        known.limit(Settings { window: Duration::ZERO, max_entries: 1 });
        assert!(accept(&known, 2) && !known.is_on());
        known.limit(Settings { window: Duration::from_mins(1), max_entries: 1 });
        assert!(!accept(&known, 2), "known from before");
    }

    #[test]
    fn lets_go_of_tickets_that_have_ended() {
        let known = deduplication(1000);
        for number in 0..100 {
            let waiter = Waiter::new(None);
            assert!(known.enter(&key(number), Instant::now(), || Ok(Some(waiter.clone()))).is_ok());
            let outcome = if number % 10 == 0 { Outcome::Failed } else { Outcome::Kept };
            complete_all([(waiter, outcome)]);
        }
        let table = known.table.lock();
        let held = table.entries.iter().filter(|entry| entry.waiter.is_some()).count();
        assert!(held <= 1, "{held} waiters are held, which nothing will read");
        assert_eq!(table.known.len(), 90, "those that failed do not count");
    }

    #[test]
    fn takes_32_bytes_an_entry() {
        assert_eq!(size_of::<RecentRequest>(), 32);
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
        assert!(look_up(&known, &key(3)).is_some(), "the younger one");
        assert!(look_up(&known, &key(2)).is_none() && look_up(&known, &key(4)).is_none());
        assert!(accept(&known, 5));
        assert!(look_up(&known, &key(3)).is_none() && look_up(&known, &key(1)).is_some(), "the oldest was removed");
    }
}
