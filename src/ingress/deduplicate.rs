//! Deduplicate: which requests were accepted within the window, by source and verified digest of the body.
//!
//! An entry is pending as long as its waiter has not ended, recorded afterwards; one whose waiter ended otherwise than
//! kept counts as absent. Nobody has to come back to change it: whoever asks looks at the waiter.
//!
//! Length: half of it are the tests of one small table.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hashbrown::HashTable;

use crate::event::{Outcome, Waiter};
use crate::queue::Refused;
use crate::settings::Section;

/// What the age of a request is counted in: four bytes of it last thirteen years.
const TICK: Duration = Duration::from_millis(100);

/// How many waiters are let go of with each new entry: more than one, so that those that ended in a batch do not pile up.
const RELEASED_AT_ONCE: usize = 4;

/// `[deduplication]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// How long a request is known; zero turns it off.
    pub(crate) window: Duration,
    /// At most so many are known, the oldest go first.
    pub(crate) max_entries: usize,
}

impl Settings {
    /// Reads `[deduplication]`.
    pub(crate) fn read(section: &mut Section<'_>) -> Self {
        Self { window: section.duration("window"), max_entries: section.count("max_entries", 1) }
    }
}

/// What a request is known by. Half of a digest is enough: who could find two bodies that share it has the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    digest: [u8; 16],
    source: u16,
}

impl Key {
    /// Of the source with this number, and the verified MAC of the body (its SHA-256 where unsigned).
    #[must_use]
    pub(crate) fn new(source: usize, digest: &[u8; 32]) -> Self {
        let mut half = [0; 16];
        half.copy_from_slice(&digest[..16]);
        Self { digest: half, source: u16::try_from(source).unwrap_or(u16::MAX) }
    }

    /// A digest is as good as random already, but who may send unsigned bodies can choose some of its bits: the seed
    /// keeps him from filling one place of the table.
    fn hash(&self, seed: u64) -> u64 {
        let half = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| self.digest[at + byte]));
        let product = u128::from(half(0) ^ seed) * u128::from((half(8) ^ u64::from(self.source)) | 1);
        let bytes = product.to_le_bytes();
        let part = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]));
        part(0) ^ part(8)
    }
}

/// One request: 32 bytes, and some 8 for its number in the table. 100,000 of them take 4 to 6 MB; those whose waiter has
/// not been let go of yet take some 100 bytes more.
#[derive(Clone, Debug)]
struct RecentRequest {
    key: Key,
    /// Ticks.
    since: u32,
    /// Until it is known how it ended.
    waiter: Option<Arc<Waiter>>,
}

/// The entries in order of age, and the way from a key to its entry.
#[derive(Debug)]
struct Table {
    window: Duration,
    max_entries: usize,
    /// Ticks are counted from here: one window before the program, as it restores what is no older.
    begin: Instant,
    /// Oldest first, numbered one after the other.
    entries: VecDeque<RecentRequest>,
    /// The number of the oldest.
    first: u32,
    /// From this number on entries may have a waiter; the older ones have let go of theirs.
    pending: u32,
    /// The numbers of those that count. The others ended otherwise than kept, and leave when they are the oldest.
    known: HashTable<u32>,
    seed: u64,
}

/// Whether a request is known.
#[derive(Clone, Debug)]
pub(super) enum Known {
    /// Accepted so long ago.
    Recorded(Duration),
    /// On its way: its waiter tells.
    Pending(Arc<Waiter>),
}

/// The requests that are known.
#[derive(Debug)]
pub(crate) struct Deduplication {
    table: Mutex<Table>,
    /// Whether it is turned on at all.
    on: AtomicBool,
}

impl Deduplication {
    /// Nothing is known yet.
    #[must_use]
    pub(crate) fn new(settings: Settings) -> Self {
        Self { table: Mutex::new(Table::new(settings)), on: AtomicBool::new(!settings.window.is_zero()) }
    }

    /// Another window and limit from now on; what is known stays known as far as both go.
    pub(crate) fn limit(&self, settings: Settings) {
        let mut table = self.lock();
        (table.window, table.max_entries) = (settings.window, settings.max_entries);
        self.on.store(!settings.window.is_zero(), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is turned on at all.
    #[must_use]
    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Looks for an equal request.
    pub(super) fn look(&self, key: &Key, now: Instant) -> Option<Known> {
        if !self.is_on() {
            return None;
        }
        let mut table = self.lock();
        let now = table.ticks(now);
        table.look(key, now)
    }

    /// Enters a request and enqueues it in one breath: of two equal ones at the same time one is enqueued. `Err` of
    /// `Ok`: it is known meanwhile.
    pub(super) fn enter(
        &self,
        key: &Key,
        now: Instant,
        enqueue: impl FnOnce() -> Result<Option<Arc<Waiter>>, Refused>,
    ) -> Result<Result<Option<Arc<Waiter>>, Refused>, Known> {
        if !self.is_on() {
            return Ok(enqueue());
        }
        let mut table = self.lock();
        let now = table.ticks(now);
        if let Some(known) = table.look(key, now) {
            return Err(known);
        }
        let enqueued = enqueue();
        if let Ok(waiter) = &enqueued {
            table.enter(RecentRequest { key: *key, since: now, waiter: waiter.clone() });
        }
        Ok(enqueued)
    }

    /// Enters what was accepted by an earlier run: keys with their ages. What is known already stays as it is.
    pub(crate) fn restore(&self, mut accepted: Vec<(Key, Duration)>) {
        accepted.sort_by_key(|(_, age)| *age);
        let mut table = self.lock();
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

    /// The number of the entry that counts.
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

    fn look(&mut self, key: &Key, now: u32) -> Option<Known> {
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

    /// Lets go of the waiter of an entry, if it has ended; false where the entry does not count any more, because it
    /// ended otherwise than kept.
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

    /// Lets go of the waiters of the oldest entries that have one, as far as they have ended: a few, so that no request
    /// waits for many.
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

    /// Makes it the youngest; its key is not known, or known no more.
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
            // After a flood: idle memory need not hold its room.
            let (few, entries, first, seed) = (self.entries.len() * 2, &mut self.entries, self.first, self.seed);
            entries.shrink_to(few);
            self.known.shrink_to(few, |number| at(entries, first, *number).key.hash(seed));
        }
    }

    /// Makes it the oldest.
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

    fn look(known: &Deduplication, key: &Key) -> Option<Known> {
        known.look(key, Instant::now())
    }

    fn accept(known: &Deduplication, number: u8) -> bool {
        known.enter(&key(number), Instant::now(), || Ok(None)).is_ok()
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
        assert!(matches!(known.enter(&key(1), Instant::now(), || Err(Refused::Full)), Ok(Err(Refused::Full))));
        assert!(look(&known, &key(1)).is_none());
    }

    #[test]
    fn is_pending_until_the_ticket_ends_and_then_what_became_of_it() {
        for (outcome, is_known) in [(Outcome::Kept, true), (Outcome::Failed, false)] {
            let known = deduplication(3);
            let waiter = Waiter::new(None);
            assert!(known.enter(&key(1), Instant::now(), || Ok(Some(waiter.clone()))).is_ok());
            assert!(matches!(look(&known, &key(1)), Some(Known::Pending(_))));
            complete_all([(waiter, outcome)]);
            assert_eq!(matches!(look(&known, &key(1)), Some(Known::Recorded(_))), is_known, "{outcome:?}");
        }
        let known = deduplication(3);
        let waiter = Waiter::new(None);
        assert!(known.enter(&key(1), Instant::now(), || Ok(Some(waiter.clone()))).is_ok());
        assert!(waiter.withdraw());
        assert!(look(&known, &key(1)).is_none(), "withdrawn");
    }

    #[test]
    fn tells_sources_apart_and_forgets_after_the_window() {
        let known = Deduplication::new(Settings { window: 2 * TICK, max_entries: 9 });
        assert!(accept(&known, 1));
        assert!(look(&known, &Key::new(1, &[1; 32])).is_none());
        assert!(look(&known, &key(1)).is_some());
        std::thread::sleep(3 * TICK);
        assert!(look(&known, &key(1)).is_none());
        assert!(accept(&known, 2));
        let table = known.lock();
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
        let table = known.lock();
        assert_eq!((table.entries.len(), table.known.len()), (3, 2));
    }

    #[test]
    fn agrees_with_a_list_through_a_long_random_life() {
        let (mut random, mut list) = (fastrand::Rng::with_seed(3), VecDeque::new());
        let known = deduplication(20);
        {
            let mut table = known.lock();
            (table.first, table.pending) = (u32::MAX - 50, u32::MAX - 50);
        }
        for _ in 0..2_000 {
            let number = random.u8(..60);
            assert_eq!(accept(&known, number), !list.contains(&number));
            if !list.contains(&number) {
                list.push_back(number);
                list.drain(..list.len().saturating_sub(20));
            }
            let table = known.lock();
            assert_eq!((table.entries.len(), table.known.len()), (list.len(), list.len()));
        }
    }

    #[test]
    fn takes_other_limits_and_is_turned_off_and_on() {
        let known = deduplication(3);
        assert!((0..3).all(|number| accept(&known, number)));
        known.limit(Settings { window: Duration::from_mins(1), max_entries: 1 });
        assert!(!accept(&known, 0), "until another one comes");
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
        let table = known.lock();
        let held = table.entries.iter().filter(|entry| entry.waiter.is_some()).count();
        assert!(held <= 1, "{held} waiters are held, which nobody will look at");
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
        assert!(look(&known, &key(3)).is_some(), "the younger one");
        assert!(look(&known, &key(2)).is_none() && look(&known, &key(4)).is_none());
        assert!(accept(&known, 5));
        assert!(look(&known, &key(3)).is_none() && look(&known, &key(1)).is_some(), "the oldest went");
    }
}
