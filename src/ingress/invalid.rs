//! Signed bodies that are not published: kept once each, in `invalid/`, by a separate thread that delays no request.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use std::{fmt, io};

use serde_json::Map;

use crate::dead_letters::{Letter, Lines, NewLetter, Precedence, Store, StoreCounts};
use crate::event::{Event, Labels, Origin};
use crate::ingress::settings::Validation;
use crate::ingress::validate::{Trust, Valid, read_any, validate};
use crate::ingress::verify;
use crate::metrics::Metrics;
use crate::process::logs::Throttle;
use crate::settings::Section;
use crate::status::KeptReason;

/// `[invalid]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// The size limit of the store, in bytes.
    pub(crate) bytes: usize,
}

impl Settings {
    /// Reads `[invalid]`.
    pub(crate) fn read(section: &mut Section<'_>) -> Self {
        Self { bytes: section.size("max_bytes") }
    }
}

/// The number of bodies that may wait for the disk.
const WAITING: usize = 256;

/// The number of bytes that may wait for the disk.
const WAITING_BYTES: usize = 16 << 20;

/// The number of bodies written with one sync.
const BATCH: usize = 64;

/// The time for which the exit waits for the disk.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A body by its source and its verified MAC.
type BodyKey = (Arc<str>, [u8; 32]);

/// A body that waits for the disk.
struct Unpublished {
    key: BodyKey,
    reason: KeptReason,
    letter: Letter,
}

/// The store of bodies that are not published.
pub(crate) struct Invalids {
    shared: Arc<WriterState>,
    sender: Mutex<Option<SyncSender<Unpublished>>>,
    ended: Mutex<Receiver<()>>,
    held: Arc<StoreCounts>,
}

struct WriterState {
    known: Mutex<HashSet<BodyKey>>,
    /// The bytes of the bodies that wait.
    bytes: AtomicUsize,
    throttle: Throttle,
}

impl WriterState {
    fn known(&self) -> MutexGuard<'_, HashSet<BodyKey>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Invalids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invalids").field("held", &self.held).finish_non_exhaustive()
    }
}

impl Invalids {
    /// Starts the writer; the bodies in the store are known from the start.
    ///
    /// # Errors
    /// The files cannot be read, or no thread can be created.
    pub(crate) fn start(store: Arc<Mutex<Store>>, metrics: Arc<Metrics>) -> io::Result<Self> {
        let mut files = BTreeMap::new();
        let held = {
            let store = lock(&store);
            for number in store.files(u64::MAX) {
                files.insert(number, keys(&store, number)?);
            }
            store.held()
        };
        let known = files.values().flatten().cloned().collect();
        let throttle = Throttle::new("signed bodies that were not kept", 1, Duration::from_secs(10));
        let shared = Arc::new(WriterState { known: Mutex::new(known), bytes: AtomicUsize::new(0), throttle });
        let (sender, receiver) = sync_channel(WAITING);
        let (end, ended) = sync_channel(1);
        let writer = InvalidWriter { store, shared: shared.clone(), held: held.clone(), metrics, files };
        std::thread::Builder::new().name("invalid".to_owned()).spawn(move || {
            writer.run(&receiver);
            // The receiver may have given up waiting.
            let _ = end.send(());
        })?;
        Ok(Self { shared, sender: Mutex::new(Some(sender)), ended: Mutex::new(ended), held })
    }

    /// Keeps a body with this verified MAC, if it is new. Never waits.
    pub(super) fn keep(&self, origin: Origin, mac: &[u8; 32], reason: KeptReason, text: &str, body: &[u8]) {
        let key = (origin.source.clone(), *mac);
        if !self.shared.known().insert(key.clone()) {
            return;
        }
        let waiting = self.shared.bytes.fetch_add(body.len(), Ordering::Relaxed) + body.len();
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let sent = waiting <= WAITING_BYTES
            && sender.is_some_and(|sender| {
                let letter = letter(origin, mac, reason, text, body);
                sender.try_send(Unpublished { key: key.clone(), reason, letter }).is_ok()
            });
        if !sent {
            self.shared.bytes.fetch_sub(body.len(), Ordering::Relaxed);
            self.shared.known().remove(&key);
            self.held.drop_some(1);
            if let Some(left_out) = self.shared.throttle.left_out() {
                let (source, reason) = (&*key.0, reason.name());
                tracing::warn!(
                    source,
                    reason,
                    left_out,
                    "a signed body that is not published was not kept: more arrive than the disk takes"
                );
            }
        }
    }

    /// Refuses further bodies, and waits for a limited time until those that wait are on disk.
    pub(crate) fn close(&self) {
        drop(self.sender.lock().unwrap_or_else(PoisonError::into_inner).take());
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.recv_timeout(CLOSE_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            tracing::error!("the last unpublished bodies were not written to disk in time");
        }
    }
}

/// The letter of a body, with the id that it has if it is published.
fn letter(origin: Origin, mac: &[u8; 32], reason: KeptReason, text: &str, body: &[u8]) -> Letter {
    let labels = Labels::new(&read_any(body).fields(), mac);
    let event = Event::labelled(origin, body.into(), labels, Instant::now());
    Letter {
        time: SystemTime::now(),
        reason: reason.name().to_owned(),
        text: text.to_owned(),
        attempts: 0,
        id: event.id().to_owned(),
        source: event.origin.source.to_string(),
        event: event.event().to_owned(),
        received: event.origin.received,
        signature: event.signature().map(str::to_owned),
        traceparent: event.origin.traceparent.as_deref().map(str::to_owned),
        address: String::new(),
        key: String::new(),
        headers: Map::new(),
        body: event.body,
    }
}

/// The bodies in a file; a line that cannot be read is skipped.
fn keys(store: &Store, number: u64) -> io::Result<Vec<BodyKey>> {
    let mut keys = Vec::new();
    for line in Lines::open(&store.path(number))?.into_iter().flatten() {
        if let Ok(letter) = Letter::parse(&line?) {
            let (origin, body) = letter.origin_and_body();
            let digest = verify::digest(origin.signature.as_ref(), &body);
            keys.push((origin.source, digest));
        }
    }
    Ok(keys)
}

/// Builds an event from a kept body, if it is valid today under this validation: a connection test is not.
#[must_use]
pub(crate) fn revalidate(origin: Origin, body: Box<[u8]>, validation: Validation) -> Option<Box<Event>> {
    let trust = if origin.verified { Trust::Signed } else { Trust::Unsigned };
    let is_event = matches!(validate(&body, validation, trust), Ok(Valid::Event(_)));
    is_event.then(|| super::rebuild(origin, body))
}

struct InvalidWriter {
    store: Arc<Mutex<Store>>,
    shared: Arc<WriterState>,
    held: Arc<StoreCounts>,
    metrics: Arc<Metrics>,
    /// The bodies that each file holds: once a file is removed, its bodies are new again.
    files: BTreeMap<u64, Vec<BodyKey>>,
}

impl InvalidWriter {
    fn run(mut self, receiver: &Receiver<Unpublished>) {
        while let Ok(first) = receiver.recv() {
            let mut batch = vec![first];
            batch.extend(receiver.try_iter().take(BATCH - 1));
            self.write(batch);
        }
    }

    fn write(&mut self, mut batch: Vec<Unpublished>) {
        // The kinds that are dropped last go first: the kinds dropped first make room for them.
        batch.sort_by_key(|one| precedence(one.reason));
        let bytes: usize = batch.iter().map(|one| one.letter.body.len()).sum();
        let entry = |Unpublished { key, reason, letter }: Unpublished| {
            let line = NewLetter { line: letter.line(), returns: false, precedence: precedence(reason) };
            ((key, reason), line)
        };
        let (keys, entries): (Vec<(BodyKey, KeptReason)>, Vec<NewLetter>) = batch.into_iter().map(entry).unzip();
        let mut store = lock(&self.store);
        let mut done = 0;
        let mut failure = None;
        while done < entries.len() {
            match store.append(&entries[done..]) {
                Ok(count) => {
                    let written = &keys[done..done + count];
                    let file = self.files.entry(store.written_to()).or_default();
                    file.extend(written.iter().map(|(key, _)| key.clone()));
                    for (_, reason) in written {
                        self.metrics.invalid_kept(*reason, 1);
                    }
                    done += count;
                }
                Err(error) => {
                    // This one does not fit, or the disk fails: skip it and try the next.
                    self.shared.known().remove(&keys[done].0);
                    self.held.drop_some(1);
                    done += 1;
                    failure = Some(error);
                }
            }
        }
        let there: HashSet<u64> = store.files(u64::MAX).into_iter().collect();
        drop(store);
        let mut known = self.shared.known();
        self.files.retain(|number, keys| {
            let stays = there.contains(number);
            if !stays {
                known.retain(|key| !keys.contains(key));
            }
            stays
        });
        drop(known);
        self.shared.bytes.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(error) = failure
            && self.shared.throttle.admits()
        {
            tracing::warn!("a signed body that is not published was not kept: {error}");
        }
    }
}

/// Connection tests are dropped first.
fn precedence(reason: KeptReason) -> Precedence {
    match reason {
        KeptReason::Invalid | KeptReason::Malformed => Precedence::Last,
        KeptReason::Probe => Precedence::First,
    }
}

fn lock(store: &Mutex<Store>) -> MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letters::StoreLimits;

    fn open(directory: &std::path::Path, capacity: usize) -> (Arc<Mutex<Store>>, Invalids) {
        let store = Arc::new(Mutex::new(Store::open(directory, StoreLimits::invalid(capacity)).unwrap()));
        (store.clone(), Invalids::start(store, Arc::new(Metrics::new("buffered"))).unwrap())
    }

    fn origin(source: &str, digit: u8) -> Origin {
        Origin {
            source: source.into(),
            signature: Some([b"0123456789abcdef"[usize::from(digit)]; 64]),
            verified: true,
            traceparent: None,
            received: SystemTime::UNIX_EPOCH,
        }
    }

    fn keep(invalids: &Invalids, source: &str, reason: KeptReason, body: &[u8], digit: u8) {
        invalids.keep(origin(source, digit), &[digit * 0x11; 32], reason, "why", body);
    }

    fn letters(store: &Mutex<Store>) -> Vec<Letter> {
        let store = lock(store);
        let files = store.files(u64::MAX).into_iter().filter_map(|file| Lines::open(&store.path(file)).unwrap());
        files.flatten().map(|line| Letter::parse(&line.unwrap()).unwrap()).collect()
    }

    #[test]
    fn keeps_each_body_once_also_across_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let (store, invalids) = open(directory.path(), 1 << 20);
        let invalid = |source: &str, body: &[u8], digit| {
            keep(&invalids, source, KeptReason::Invalid, body, digit);
        };
        invalid("a", b"{\"event\":\"E\",\"cuid\":\"c\"}", 1);
        invalid("a", b"{\"event\":\"E\",\"cuid\":\"c\"}", 1);
        invalid("a", b"[]", 2);
        invalid("b", b"[]", 2);
        invalids.close();
        assert_eq!(lock(&store).held().events(), 3);
        let letters = letters(&store);
        assert_eq!((letters[0].id.as_str(), letters[0].event.as_str()), ("c-111111111111", "E"));
        assert_eq!((letters[1].id.as_str(), &*letters[1].body), ("2".repeat(32).as_str(), &b"[]"[..]));
        assert_eq!((letters[1].reason.as_str(), letters[1].text.as_str()), ("invalid", "why"));
        assert!(letters.into_iter().all(|letter| letter.origin_and_body().0.verified));
        let (store, invalids) = open(directory.path(), 1 << 20);
        keep(&invalids, "b", KeptReason::Invalid, b"[]", 2);
        keep(&invalids, "b", KeptReason::Invalid, b"[]", 4);
        invalids.close();
        assert_eq!(lock(&store).held().kept(), 1);
    }

    #[test]
    fn keeps_bodies_of_every_kind_byte_for_byte() {
        let directory = tempfile::tempdir().unwrap();
        let (store, invalids) = open(directory.path(), 1 << 20);
        let bodies: [&[u8]; 4] = [b"", b"{", b"\xff\x00{\"cuid\":\"c\"}", b"\xef\xbb\xbf{}"];
        for (body, digit) in bodies.iter().zip(1..) {
            let reason = if body.is_empty() { KeptReason::Probe } else { KeptReason::Malformed };
            keep(&invalids, "a", reason, body, digit);
        }
        invalids.close();
        let mut kept = letters(&store);
        kept.sort_by(|one, other| one.id.cmp(&other.id));
        assert_eq!(kept.iter().map(|letter| &*letter.body).collect::<Vec<_>>(), bodies);
        assert_eq!(kept.iter().filter(|letter| letter.reason == "probe").count(), 1);
        assert_eq!(kept[1].id, "2".repeat(32), "a body that cannot be read has no cuid");
    }

    #[test]
    fn drops_connection_tests_first_and_keeps_them_again_later() {
        let directory = tempfile::tempdir().unwrap();
        let line = letter(origin("a", 1), &[0x11; 32], KeptReason::Malformed, "why", b"xy").line().len();
        let room = 4 * line;
        let (store, invalids) = open(directory.path(), room);
        let add = |reason, digit: u8| {
            let before = lock(&store).held();
            let (kept, dropped) = (before.kept(), before.dropped());
            keep(&invalids, "a", reason, &[b'x', b'0' + digit], digit);
            let deadline = Instant::now() + Duration::from_secs(30);
            while before.kept() == kept && before.dropped() == dropped {
                assert!(Instant::now() < deadline, "nothing is written");
                std::thread::yield_now();
            }
        };
        for digit in 1..5 {
            add(if digit < 3 { KeptReason::Invalid } else { KeptReason::Probe }, digit);
        }
        for digit in 5..7 {
            add(KeptReason::Malformed, digit);
        }
        add(KeptReason::Probe, 7);
        let reasons: Vec<String> = letters(&store).into_iter().map(|letter| letter.reason).collect();
        assert!(!reasons.contains(&"probe".to_owned()), "{reasons:?}");
        assert_eq!(reasons.iter().filter(|reason| *reason == "invalid").count(), 2, "{reasons:?}");
        assert!(lock(&store).held().bytes() <= room as u64);
        invalids.close();
    }

    #[test]
    fn counts_what_arrives_after_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let (store, invalids) = open(directory.path(), 1 << 20);
        invalids.close();
        keep(&invalids, "a", KeptReason::Probe, b"[]", 1);
        let held = lock(&store).held();
        assert_eq!((held.kept(), held.dropped()), (0, 1));
    }

    #[test]
    fn takes_only_what_is_valid_in_the_way_that_is_asked_for() {
        let valid = |body: &[u8], validation| revalidate(origin("a", 10), body.into(), validation);
        let body = b"{\"event\":\"E\"}";
        assert!(valid(body, Validation::Strict).is_none());
        assert_eq!(valid(body, Validation::Lenient).unwrap().id(), "a".repeat(32));
        assert!(valid(b"[]", Validation::Lenient).is_none(), "a connection test");
        assert!(valid(b"{", Validation::Lenient).is_none());
        let unsigned = Origin { verified: false, ..origin("a", 10) };
        assert!(revalidate(unsigned, Box::from(*b"{\"x\":1}"), Validation::Lenient).is_none());
    }
}
