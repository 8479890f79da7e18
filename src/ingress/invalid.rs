//! Signed bodies that were answered 422: kept once each, in `invalid/`, by a thread of its own that nobody waits for.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use std::{fmt, io};

use serde_json::Map;

use crate::ingress::settings::{Source, Validation};
use crate::ingress::validate::{Invalid, Valid, validate};
use crate::ingress::verify::{self, Verified};
use crate::letters::{Entry, Held, Letter, Lines, Store};
use crate::logs::Throttle;
use crate::message::{Event, Fields, Labels, Origin};

/// Bodies that wait for the disk.
const WAITING: usize = 256;

/// And their bytes; the store itself is no larger.
const WAITING_BYTES: usize = 16 << 20;

/// How many are written with one sync.
const BATCH: usize = 64;

/// How long the exit waits for the disk.
const PATIENCE: Duration = Duration::from_secs(5);

/// A body by its source and its verified MAC.
type Key = (Arc<str>, [u8; 32]);

/// Where refused bodies go.
pub struct Invalids {
    shared: Arc<Shared>,
    sender: Mutex<Option<SyncSender<(Key, Letter)>>>,
    ended: Mutex<Receiver<()>>,
    held: Arc<Held>,
}

struct Shared {
    known: Mutex<HashSet<Key>>,
    /// Of bodies that wait.
    bytes: AtomicUsize,
    throttle: Throttle,
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Invalids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invalids").field("held", &self.held).finish_non_exhaustive()
    }
}

impl Invalids {
    /// Starts the writer; what the store holds is known from the start.
    ///
    /// # Errors
    /// The files cannot be read, or there is no thread.
    pub fn start(store: Arc<Mutex<Store>>) -> io::Result<Self> {
        let mut files = BTreeMap::new();
        let held = {
            let store = lock(&store);
            for number in store.files(u64::MAX) {
                files.insert(number, keys(&store, number)?);
            }
            store.held()
        };
        let known = files.values().flatten().cloned().collect();
        let throttle = Throttle::new(1, Duration::from_secs(10));
        let shared = Arc::new(Shared { known: Mutex::new(known), bytes: AtomicUsize::new(0), throttle });
        let (sender, receiver) = sync_channel(WAITING);
        let (end, ended) = sync_channel(1);
        let writer = Writer { store, shared: shared.clone(), held: held.clone(), files };
        std::thread::Builder::new().name("invalid".to_owned()).spawn(move || {
            writer.run(&receiver);
            // Nobody may be waiting any more.
            let _ = end.send(());
        })?;
        Ok(Self { shared, sender: Mutex::new(Some(sender)), ended: Mutex::new(ended), held })
    }

    /// Keeps a body that was refused as undocumented, if it is signed and new. Never waits.
    pub(super) fn keep(
        &self,
        source: &Source,
        invalid: &Invalid,
        verified: &Verified,
        traceparent: Option<Box<str>>,
        received: SystemTime,
        body: &[u8],
    ) {
        let Invalid::Undocumented(problem) = invalid else { return };
        if !source.is_signed() {
            return;
        }
        let key = (source.name.clone(), verified.digest);
        if !self.shared.known().insert(key.clone()) {
            return;
        }
        let waiting = self.shared.bytes.fetch_add(body.len(), Ordering::Relaxed) + body.len();
        let origin = Origin {
            source: source.name.clone(),
            signature: verified.signature,
            verified: true,
            traceparent,
            received,
        };
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let sent = waiting <= WAITING_BYTES
            && sender.is_some_and(|sender| {
                sender.try_send((key.clone(), letter(origin, verified, problem, body))).is_ok()
            });
        if !sent {
            self.shared.bytes.fetch_sub(body.len(), Ordering::Relaxed);
            self.shared.known().remove(&key);
            self.held.drop_some(1);
            if self.shared.throttle.admits() {
                tracing::warn!(
                    source = &*source.name,
                    "did not keep an invalid body: more came than the disk takes"
                );
            }
        }
    }

    /// Takes no more, and waits until what came is on disk; not for ever.
    pub fn close(&self) {
        drop(self.sender.lock().unwrap_or_else(PoisonError::into_inner).take());
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            tracing::error!("the disk does not take the last invalid bodies");
        }
    }
}

/// The letter of a body, with the id that lenient validation gives it.
fn letter(origin: Origin, verified: &Verified, problem: &str, body: &[u8]) -> Letter {
    let labels = match validate(body, Validation::Lenient) {
        Ok(Valid::Event(payload)) => Labels::new(&payload.fields(), &verified.digest),
        _ => Labels::new(&Fields::default(), &verified.digest),
    };
    let event = Event::labelled(origin, body.into(), labels, Instant::now());
    Letter {
        time: SystemTime::now(),
        reason: "invalid".to_owned(),
        text: problem.to_owned(),
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

/// The bodies in a file; a line that cannot be read is none.
fn keys(store: &Store, number: u64) -> io::Result<Vec<Key>> {
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

/// Makes an event of an invalid body again, if it is valid in this way today.
#[must_use]
pub fn revalidate(origin: Origin, body: Box<[u8]>, validation: Validation) -> Option<Box<Event>> {
    validate(&body, validation).ok()?;
    super::rebuild(origin, body)
}

struct Writer {
    store: Arc<Mutex<Store>>,
    shared: Arc<Shared>,
    held: Arc<Held>,
    /// Which bodies each file holds: where a file is gone, its bodies are new again.
    files: BTreeMap<u64, Vec<Key>>,
}

impl Writer {
    fn run(mut self, receiver: &Receiver<(Key, Letter)>) {
        while let Ok(first) = receiver.recv() {
            let mut batch = vec![first];
            batch.extend(receiver.try_iter().take(BATCH - 1));
            self.write(batch);
        }
    }

    fn write(&mut self, batch: Vec<(Key, Letter)>) {
        let bytes: usize = batch.iter().map(|(_, letter)| letter.body.len()).sum();
        let (keys, letters): (Vec<Key>, Vec<Letter>) = batch.into_iter().unzip();
        let entries: Vec<Entry> =
            letters.iter().map(|letter| Entry { line: letter.line(), returns: false }).collect();
        drop(letters);
        let mut store = lock(&self.store);
        let mut done = 0;
        let mut failure = None;
        while done < entries.len() {
            match store.append(&entries[done..]) {
                Ok(count) => {
                    self.files.entry(store.number()).or_default().extend_from_slice(&keys[done..done + count]);
                    done += count;
                }
                Err(error) => {
                    // This one does not fit, or the disk fails: the next one may have better luck.
                    self.shared.known().remove(&keys[done]);
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
            tracing::warn!("did not keep an invalid body: {error}");
        }
    }
}

fn lock(store: &Mutex<Store>) -> MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingress::settings::NamedSecret;
    use crate::letters::Limits;
    use crate::secret::Secret;

    fn source(name: &str) -> Source {
        let secrets = vec![NamedSecret { id: "x".into(), secret: Secret::new("0123456789abcdef") }];
        Source { name: name.into(), path: "/".into(), secrets, validation: Validation::Strict }
    }

    fn open(directory: &std::path::Path) -> (Arc<Mutex<Store>>, Invalids) {
        let store = Arc::new(Mutex::new(Store::open(directory, Limits::invalid()).unwrap()));
        (store.clone(), Invalids::start(store).unwrap())
    }

    fn keep(invalids: &Invalids, source: &Source, body: &[u8], digest: u8) {
        let signature = [b"0123456789abcdef"[usize::from(digest)]; 64];
        let mac = [digest * 0x11; 32];
        let verified = Verified { digest: mac, secret: Some(0), signature: Some(signature) };
        let invalid = Invalid::Undocumented("`cuid` is missing".into());
        invalids.keep(source, &invalid, &verified, None, SystemTime::UNIX_EPOCH, body);
    }

    #[test]
    fn keeps_each_signed_body_once_also_across_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let (store, invalids) = open(directory.path());
        keep(&invalids, &source("a"), b"{\"event\":\"E\",\"cuid\":\"c\"}", 1);
        keep(&invalids, &source("a"), b"{\"event\":\"E\",\"cuid\":\"c\"}", 1);
        keep(&invalids, &source("a"), b"[]", 2);
        keep(&invalids, &source("b"), b"[]", 2);
        keep(&invalids, &Source { secrets: Vec::new(), ..source("c") }, b"[]", 3);
        invalids.close();
        assert_eq!(lock(&store).held().events(), 3);
        let path = lock(&store).path(1);
        let letters: Vec<Letter> =
            Lines::open(&path).unwrap().unwrap().map(|line| Letter::parse(&line.unwrap()).unwrap()).collect();
        assert_eq!((letters[0].id.as_str(), letters[0].event.as_str()), ("c-111111111111", "E"));
        assert_eq!((letters[1].id.as_str(), &*letters[1].body), ("2".repeat(32).as_str(), &b"[]"[..]));
        assert_eq!((letters[1].reason.as_str(), letters[1].text.as_str()), ("invalid", "`cuid` is missing"));
        assert!(letters.into_iter().all(|letter| letter.origin_and_body().0.verified));
        let (store, invalids) = open(directory.path());
        keep(&invalids, &source("b"), b"[]", 2);
        keep(&invalids, &source("b"), b"[]", 4);
        invalids.close();
        assert_eq!(lock(&store).held().kept(), 1);
    }

    #[test]
    fn counts_what_comes_after_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let (store, invalids) = open(directory.path());
        invalids.close();
        keep(&invalids, &source("a"), b"[]", 1);
        let held = lock(&store).held();
        assert_eq!((held.kept(), held.dropped()), (0, 1));
    }

    #[test]
    fn takes_only_what_is_valid_in_the_way_that_is_asked_for() {
        let origin = || Origin {
            source: "a".into(),
            signature: Some([b'a'; 64]),
            verified: true,
            traceparent: None,
            received: SystemTime::UNIX_EPOCH,
        };
        let body = || Box::from(*b"{\"event\":\"E\"}");
        assert!(revalidate(origin(), body(), Validation::Strict).is_none());
        assert_eq!(revalidate(origin(), body(), Validation::Lenient).unwrap().id(), "a".repeat(32));
    }
}
