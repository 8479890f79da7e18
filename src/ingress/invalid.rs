//! Signed bodies that are not published: kept once each, in `invalid/`, by a separate thread that delays no request, and
//! no dead letter either if the disk hangs.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use std::{io, iter};

use parking_lot::{Mutex, MutexGuard};

use crate::dead_letters::{Letter, Lines, NewLetter, Precedence, SharedStore, Store, WriteError, largest_line};
use crate::event::{Event, Labels, Origin};
use crate::ingress::validate::read_any;
use crate::ingress::verify;
use crate::metrics::Metrics;
use crate::process::is_exhausted;
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

    /// The problem if the largest body may not fit.
    #[must_use]
    pub(crate) fn problem(self, largest_body: usize) -> Option<String> {
        let needed = largest_line(largest_body);
        (self.bytes < needed).then(|| {
            format!(
                "`invalid.max_bytes` ({} bytes) has no room for a signed body of `ingress.max_body` ({largest_body} bytes), \
                 which is not kept if it is not published: raise it to at least \"{}KiB\"",
                self.bytes,
                needed.div_ceil(1024)
            )
        })
    }
}

/// The number of bodies that may wait for the disk.
const WAITING: usize = 256;

/// The number of bytes that may wait for the disk, unless one body alone has more.
const WAITING_BYTES: usize = 16 << 20;

/// The number of bodies written with one sync.
const BATCH: usize = 64;

/// The pause before another attempt where there is no descriptor for a file.
const RETRY: Duration = Duration::from_secs(1);

/// A body by its source and its verified MAC.
type BodyKey = (Arc<str>, [u8; 32]);

/// The bodies that wait or are on disk, with their file.
type KnownBodies = HashMap<BodyKey, Option<u64>>;

/// A body that waits for the disk.
struct Unpublished {
    key: BodyKey,
    reason: KeptReason,
    letter: Letter,
}

/// The store of bodies that are not published.
pub(crate) struct Invalids {
    writer: Arc<InvalidWriter>,
    sender: Mutex<Option<SyncSender<Unpublished>>>,
    /// Disconnected once the writer has ended.
    ended: Mutex<Receiver<()>>,
}

impl Invalids {
    /// Starts the writer; the bodies in the store are known from the start.
    ///
    /// # Errors
    /// No thread can be created.
    pub(crate) fn start(store: SharedStore, metrics: Arc<Metrics>) -> io::Result<Self> {
        let known = read_known(&store.lock());
        let throttle = Throttle::new("signed bodies that were not kept", 1, Duration::from_secs(10));
        let (known, bytes) = (Mutex::new(known), AtomicUsize::new(0));
        let writer = Arc::new(InvalidWriter { store, metrics, known, bytes, throttle });
        let (sender, receiver) = sync_channel(WAITING);
        let (end, ended) = sync_channel(1);
        let writing = writer.clone();
        std::thread::Builder::new().name("invalid".to_owned()).spawn(move || {
            writing.run(&receiver);
            drop(end);
        })?;
        Ok(Self { writer, sender: Mutex::new(Some(sender)), ended: Mutex::new(ended) })
    }

    /// Keeps a body with this verified MAC, if it is new. Never waits.
    pub(super) fn keep(&self, origin: Origin, mac: &[u8; 32], reason: KeptReason, text: &str, body: &[u8]) {
        let (writer, key) = (&self.writer, (origin.source.clone(), *mac));
        writer.forget_removed();
        match writer.known.lock().entry(key.clone()) {
            Entry::Occupied(_) => return,
            Entry::Vacant(new) => new.insert(None),
        };
        let waiting = writer.bytes.fetch_add(body.len(), Ordering::Relaxed) + body.len();
        let sender = self.sender.lock().clone();
        let sent = (waiting <= WAITING_BYTES || waiting == body.len())
            && sender.is_some_and(|sender| {
                let letter = letter(origin, mac, reason, text, body);
                sender.try_send(Unpublished { key: key.clone(), reason, letter }).is_ok()
            });
        if !sent {
            writer.bytes.fetch_sub(body.len(), Ordering::Relaxed);
            writer.forget(&key);
            if let Some(left_out) = writer.throttle.left_out() {
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

    /// Refuses further bodies, and waits no longer than this until those that wait are on disk.
    pub(crate) fn close(&self, limit: Duration) {
        drop(self.sender.lock().take());
        let ended = self.ended.lock();
        if ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            tracing::error!("the last unpublished bodies were not written to disk in time");
        }
    }
}

/// The letter of a body, with the id that it has if it is published.
fn letter(origin: Origin, mac: &[u8; 32], reason: KeptReason, text: &str, body: &[u8]) -> Letter {
    let labels = Labels::new(&read_any(body), mac);
    Letter::new(&Event::labelled(origin, body.into(), labels, Instant::now()), reason.name(), text)
}

/// The bodies in the files of a store; what cannot be read is skipped.
fn read_known(store: &Store) -> KnownBodies {
    let mut known = KnownBodies::new();
    for file in &store.files(u64::MAX) {
        let lines = Lines::open(&store.path(*file)).ok().flatten();
        for line in lines.into_iter().flatten().map_while(Result::ok) {
            if let Ok(letter) = Letter::parse(&line) {
                let (origin, body) = letter.origin_and_body();
                let digest = verify::digest(&origin, &body);
                known.insert((origin.source, digest), Some(*file));
            }
        }
    }
    known
}

struct InvalidWriter {
    store: SharedStore,
    metrics: Arc<Metrics>,
    /// Once letters were removed from a file, its bodies are new again.
    known: Mutex<KnownBodies>,
    /// The bytes of the bodies that wait.
    bytes: AtomicUsize,
    throttle: Throttle,
}

impl InvalidWriter {
    /// Counts a body that cannot be kept, which is new the next time.
    fn forget(&self, key: &BodyKey) {
        self.known.lock().remove(key);
        self.store.held.lock().dropped += 1;
    }

    /// Forgets the bodies of files from which some were removed: by a request, or to make room. Those still there may be kept
    /// once more.
    fn forget_removed(&self) {
        let changed = self.store.take_changed();
        if !changed.is_empty() {
            self.known.lock().retain(|_, file| file.is_none_or(|file| !changed.contains(&file)));
        }
    }

    fn run(&self, receiver: &Receiver<Unpublished>) {
        while let Ok(first) = receiver.recv() {
            self.write(iter::once(first).chain(receiver.try_iter().take(BATCH - 1)).collect());
        }
    }

    fn write(&self, mut batch: Vec<Unpublished>) {
        // The kinds that are dropped last go first: the kinds dropped first make room for them.
        batch.sort_by_key(|one| precedence(one.reason));
        let entry = |one: &Unpublished| NewLetter {
            line: one.letter.line(),
            returns: false,
            precedence: precedence(one.reason),
        };
        let entries: Vec<NewLetter> = batch.iter().map(entry).collect();
        let mut store = self.store.lock();
        let (mut done, mut failure) = (0, None);
        while done < entries.len() {
            match store.append(&entries[done..]) {
                Ok(count) => {
                    for Unpublished { key, reason, .. } in &batch[done..done + count] {
                        self.known.lock().insert(key.clone(), Some(store.written_to()));
                        self.metrics.invalid_kept(*reason, 1);
                    }
                    done += count;
                }
                Err(WriteError::Disk { source, directory }) if is_exhausted(&source) => {
                    if self.throttle.admits() {
                        tracing::warn!("signed bodies that are not published wait for {directory}: {source}");
                    }
                    MutexGuard::unlocked(&mut store, || std::thread::sleep(RETRY));
                }
                Err(error) => {
                    // This one does not fit, or the disk fails: skip it and try the next.
                    self.forget(&batch[done].key);
                    (done, failure) = (done + 1, Some(error));
                }
            }
        }
        drop(store);
        self.bytes.fetch_sub(batch.iter().map(|one| one.letter.body.len()).sum(), Ordering::Relaxed);
        if let Some(error) = failure.filter(|_| self.throttle.admits()) {
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

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::dead_letters::StoreKind;

    fn open(directory: &std::path::Path, capacity: usize) -> (SharedStore, Invalids) {
        let store = SharedStore::open(directory, StoreKind::Invalid, capacity).unwrap();
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

    fn letters(store: &SharedStore) -> Vec<Letter> {
        let store = store.lock();
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
        invalids.close(Duration::from_secs(30));
        assert_eq!(store.held().events, 3);
        let letters = letters(&store);
        assert_eq!((letters[0].id.as_str(), letters[0].event.as_str()), ("c-111111111111", "E"));
        assert_eq!((letters[1].id.as_str(), &*letters[1].body), ("2".repeat(32).as_str(), &b"[]"[..]));
        assert_eq!((letters[1].reason.as_str(), letters[1].text.as_str()), ("invalid", "why"));
        assert!(letters.into_iter().all(|letter| letter.origin_and_body().0.verified));
        let (store, invalids) = open(directory.path(), 1 << 20);
        keep(&invalids, "b", KeptReason::Invalid, b"[]", 2);
        keep(&invalids, "b", KeptReason::Invalid, b"[]", 4);
        invalids.close(Duration::from_secs(30));
        assert_eq!(store.held().kept, 1);
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
        invalids.close(Duration::from_secs(30));
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
            let before = store.held();
            keep(&invalids, "a", reason, &[b'x', b'0' + digit], digit);
            let deadline = Instant::now() + Duration::from_secs(30);
            while (store.held().kept, store.held().dropped) == (before.kept, before.dropped) {
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
        assert!(store.held().bytes <= room as u64);
        invalids.close(Duration::from_secs(30));
    }

    #[test]
    fn keeps_a_body_again_after_it_was_removed_on_request() {
        let directory = tempfile::tempdir().unwrap();
        let (store, invalids) = open(directory.path(), 1 << 20);
        let again = |kept: u64| {
            keep(&invalids, "a", KeptReason::Invalid, b"[1]", 1);
            let deadline = Instant::now() + Duration::from_secs(30);
            while store.held().kept < kept {
                assert!(Instant::now() < deadline, "nothing is written");
                std::thread::yield_now();
            }
        };
        again(1);
        again(1);
        let removed = {
            let mut store = store.lock();
            let file = store.seal();
            store.rewrite(file, |_, _| false).unwrap()
        };
        assert_eq!(removed, 1);
        again(2);
        assert_eq!(letters(&store).len(), 1);
        invalids.close(Duration::from_secs(30));
    }

    #[test]
    fn keeps_a_body_larger_than_all_that_may_wait_together() {
        let directory = tempfile::tempdir().unwrap();
        let (store, invalids) = open(directory.path(), 4 * WAITING_BYTES);
        keep(&invalids, "a", KeptReason::Malformed, &vec![b'x'; WAITING_BYTES + 1], 1);
        invalids.close(Duration::from_secs(30));
        assert_eq!((store.held().kept, store.held().dropped), (1, 0));
    }

    #[test]
    fn counts_what_arrives_after_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let (store, invalids) = open(directory.path(), 1 << 20);
        invalids.close(Duration::from_secs(30));
        keep(&invalids, "a", KeptReason::Probe, b"[]", 1);
        let held = store.held();
        assert_eq!((held.kept, held.dropped), (0, 1));
    }
}
