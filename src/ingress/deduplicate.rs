//! Deduplicate: which requests were accepted within the window, by source and verified digest of the body.
//!
//! An entry is pending until its waiter has an outcome, and recorded afterwards; an entry with an outcome other than
//! kept counts as absent. Entries are not updated when an event ends: a look-up reads the waiter.
//!
//! Length: half of it is the tests of one small table.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::event::Waiter;
use crate::queue::NotTaken;
use crate::settings::Section;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    digest: [u8; 16],
    source: u16,
}

impl Key {
    /// The key for the source with this number and the verified MAC of the body (its SHA-256 if unsigned).
    pub(super) fn new(source: usize, digest: &[u8; 32]) -> Self {
        let mut half = [0; 16];
        half.copy_from_slice(&digest[..16]);
        Self { digest: half, source: u16::try_from(source).unwrap_or(u16::MAX) }
    }
}

/// A request that counts. 100,000 of them take some 10 MB; those whose waiter has not been released yet take some 100 bytes
/// more each.
#[derive(Debug)]
struct RecentRequest {
    /// The time of acceptance, in nanoseconds.
    since: u64,
    /// Present until the outcome is known.
    waiter: Option<Arc<Waiter>>,
}

/// The requests in order of age, and those among them that count.
#[derive(Debug)]
struct Table {
    settings: Settings,
    /// The zero of the times: one window before the start, because older requests are not restored.
    begin: Instant,
    /// The requests with their times, oldest first.
    entries: VecDeque<(Key, u64)>,
    /// The oldest requests have released their waiter; so many are these.
    released: usize,
    /// The others have an outcome other than kept.
    known: HashMap<Key, RecentRequest>,
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
pub(crate) struct Deduplication(Mutex<Table>);

impl Deduplication {
    /// Creates an empty table.
    pub(crate) fn new(settings: Settings) -> Self {
        Self(Mutex::new(Table::new(settings)))
    }

    /// Changes the window and the limit; entries remain known within both.
    pub(crate) fn limit(&self, settings: Settings) {
        self.0.lock().settings = settings;
    }

    /// Whether deduplication is turned on.
    pub(crate) fn is_on(&self) -> bool {
        self.0.lock().is_on()
    }

    /// Looks up an equal request.
    pub(super) fn look_up(&self, key: &Key, now: Instant) -> Option<Known> {
        let mut table = self.0.lock();
        let now = table.since(now);
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
        let mut table = self.0.lock();
        let now = table.since(now);
        if let Some(known) = table.look_up(key, now) {
            return Err(known);
        }
        let enqueued = enqueue();
        if let Ok(waiter) = &enqueued
            && table.is_on()
        {
            table.enter(*key, now, waiter.clone());
        }
        Ok(enqueued)
    }

    /// Restores what an earlier run accepted: keys with their ages. Entries that exist stay as they are.
    pub(crate) fn restore(&self, mut accepted: Vec<(Key, Duration)>) {
        accepted.sort_by_key(|(_, age)| *age);
        let mut table = self.0.lock();
        let (now, Settings { window, max_entries }) = (table.since(Instant::now()), table.settings);
        for (key, age) in accepted.into_iter().take_while(|(_, age)| *age < window) {
            if table.entries.len() >= max_entries {
                break;
            }
            if table.find(&key).is_none() {
                table.restore(key, now.saturating_sub(nanoseconds(age)));
            }
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Table {
    fn new(settings: Settings) -> Self {
        let now = Instant::now();
        Self {
            settings,
            begin: now.checked_sub(settings.window).unwrap_or(now),
            entries: VecDeque::new(),
            released: 0,
            known: HashMap::new(),
        }
    }

    fn is_on(&self) -> bool {
        !self.settings.window.is_zero()
    }

    fn since(&self, time: Instant) -> u64 {
        nanoseconds(time.saturating_duration_since(self.begin))
    }

    /// The age, if it is within the window.
    fn recent(&self, since: u64, now: u64) -> Option<Duration> {
        Some(Duration::from_nanos(now.saturating_sub(since))).filter(|age| *age < self.settings.window)
    }

    /// The request with this key that counts, without its waiter once that has an outcome.
    fn find(&mut self, key: &Key) -> Option<&RecentRequest> {
        let request = self.known.get_mut(key)?;
        match request.waiter.as_ref().and_then(|waiter| waiter.outcome()) {
            None => {}
            Some(outcome) if outcome.is_kept() => request.waiter = None,
            Some(_) => drop(self.known.remove(key)),
        }
        self.known.get(key)
    }

    fn look_up(&mut self, key: &Key, now: u64) -> Option<Known> {
        if !self.is_on() {
            return None;
        }
        let RecentRequest { since, waiter } = self.find(key)?;
        if let Some(waiter) = waiter {
            return Some(Known::Pending(waiter.clone()));
        }
        let since = *since;
        self.recent(since, now).map(Known::Recorded)
    }

    /// Releases the waiters of the oldest requests that still have one, as far as they have an outcome: only a few, so
    /// that no request waits for many.
    fn release_some(&mut self) {
        for _ in 0..RELEASED_AT_ONCE {
            let Some((key, since)) = self.entries.get(self.released).copied() else { break };
            if self.find(&key).is_some_and(|request| request.since == since && request.waiter.is_some()) {
                break;
            }
            self.released += 1;
        }
    }

    /// Adds the youngest request; its key is not known, or no longer.
    fn enter(&mut self, key: Key, since: u64, waiter: Option<Arc<Waiter>>) {
        self.known.insert(key, RecentRequest { since, waiter });
        self.entries.push_back((key, since));
        while let Some((oldest, then)) = self.entries.front()
            && (self.entries.len() > self.settings.max_entries || self.recent(*then, since).is_none())
        {
            // A later request with the same key stays.
            if self.known.get(oldest).is_some_and(|request| request.since == *then) {
                self.known.remove(oldest);
            }
            self.entries.pop_front();
            self.released = self.released.saturating_sub(1);
        }
        self.release_some();
        if self.entries.len() < self.entries.capacity() / 4 && self.entries.capacity() > 4096 {
            // After a burst: an idle table need not keep its capacity.
            let few = self.entries.len() * 2;
            self.entries.shrink_to(few);
            self.known.shrink_to(few);
        }
    }

    /// Adds the oldest request.
    fn restore(&mut self, key: Key, since: u64) {
        self.released += 1;
        self.known.insert(key, RecentRequest { since, waiter: None });
        self.entries.push_front((key, since));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Outcome, complete_all};

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
        assert_eq!(known.0.lock().entries.len(), 3);
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
        let window = Duration::from_millis(200);
        let known = Deduplication::new(Settings { window, max_entries: 9 });
        assert!(accept(&known, 1));
        assert!(look_up(&known, &Key::new(1, &[1; 32])).is_none());
        assert!(look_up(&known, &key(1)).is_some());
        std::thread::sleep(window);
        assert!(look_up(&known, &key(1)).is_none());
        assert!(accept(&known, 2));
        let table = known.0.lock();
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
        let table = known.0.lock();
        assert_eq!((table.entries.len(), table.known.len()), (3, 2));
    }

    #[test]
    fn agrees_with_a_list_through_a_long_random_life() {
        let (mut random, mut list) = (fastrand::Rng::with_seed(3), VecDeque::new());
        let known = deduplication(20);
        for _ in 0..2_000 {
            let number = random.u8(..60);
            assert_eq!(accept(&known, number), !list.contains(&number));
            if !list.contains(&number) {
                list.push_back(number);
                list.drain(..list.len().saturating_sub(20));
            }
            let table = known.0.lock();
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
        let table = known.0.lock();
        let held = table.known.values().filter(|request| request.waiter.is_some()).count();
        assert!(held <= 1, "{held} waiters are held, which nothing will read");
        assert_eq!(table.known.len(), 90, "those that failed do not count");
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
