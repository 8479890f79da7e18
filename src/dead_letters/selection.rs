//! Which letters a request means, read from their files and made events again, a batch at a time.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::dead_letters::{Filter, Letter, Lines, Request, Store, StoreKind, Validity};
use crate::event::{Event, Origin, Rebuild};

/// The most letters that are replayed at once.
const BATCH: usize = 256;

/// Makes an event of a kept body if it is valid today: as its source is configured, or in the lenient way.
pub(crate) type RebuildInvalid = Arc<dyn Fn(Origin, Box<[u8]>) -> Option<Box<Event>> + Send + Sync>;

/// The rules by which letters become events again.
#[derive(Clone)]
pub(crate) struct Rebuilder {
    /// For bodies that were accepted, and for kept ones with `--as-is`.
    pub(crate) always: Rebuild,
    /// For kept bodies.
    pub(crate) configured: RebuildInvalid,
    /// For kept bodies with `--lenient`.
    pub(crate) lenient: RebuildInvalid,
}

impl Rebuilder {
    /// The event of a letter that a request means, if its body makes one.
    fn event(&self, request: &Request, letter: Letter) -> Option<Box<Event>> {
        let (origin, body) = letter.origin_and_body();
        match (request.kind, request.validity) {
            (StoreKind::Invalid, Validity::AsConfigured) => (self.configured)(origin, body),
            (StoreKind::Invalid, Validity::Lenient) => (self.lenient)(origin, body),
            (StoreKind::Invalid, Validity::AsIs) | (StoreKind::DeadLetters, _) => Some((self.always)(origin, body)),
        }
    }
}

/// Some letters of a file, as events.
#[derive(Default)]
pub(super) struct LetterBatch {
    /// With the hash of the line, which is marked as in flight.
    pub(super) events: Vec<(u64, Box<Event>)>,
    /// Letters that match and make no event, or are in flight for another replay.
    pub(super) skipped: u64,
    /// The hashes of the lines that were looked at, in all batches of the file.
    pub(super) seen: HashSet<u64>,
    pub(super) is_last: bool,
}

/// Takes the next letters that a request means from a file, at most about `most` bytes of them, and marks them as in
/// flight; `seen` has the lines of the batches before. Under the store's lock, so that no letter is dropped in between.
pub(super) fn take(
    store: &mut Store,
    file: u64,
    seen: HashSet<u64>,
    request: &Request,
    rebuilder: &Rebuilder,
    most: usize,
) -> io::Result<LetterBatch> {
    let mut batch = LetterBatch { seen, is_last: true, ..LetterBatch::default() };
    let Some(lines) = Lines::open(&store.path(file))? else { return Ok(batch) };
    let mut bytes = 0;
    for line in lines {
        let line = line.inspect_err(|_| store.unmark(file, batch.events.iter().map(|(hash, _)| *hash)))?;
        let hash = store.hash(&line);
        if batch.seen.contains(&hash) {
            continue;
        }
        if let Ok(letter) = Letter::parse(&line)
            && request.filter.matches(&letter)
        {
            let length = letter.body.len();
            if !batch.events.is_empty() && (batch.events.len() == BATCH || bytes + length > most) {
                batch.is_last = false;
                break;
            }
            match rebuilder.event(request, letter) {
                Some(event) if store.mark(file, hash) => {
                    bytes += length;
                    batch.events.push((hash, event));
                }
                _ => batch.skipped += 1,
            }
        }
        batch.seen.insert(hash);
    }
    Ok(batch)
}

/// The number of letters that match, and of lines that are none.
pub(super) fn count(paths: &[PathBuf], filter: &Filter) -> io::Result<(u64, u64)> {
    let (mut selected, mut unreadable) = (0, 0);
    for path in paths {
        for line in Lines::open(path)?.into_iter().flatten() {
            match Letter::parse(&line?) {
                Ok(letter) => selected += u64::from(filter.matches(&letter)),
                Err(_) => unreadable += 1,
            }
        }
    }
    Ok((selected, unreadable))
}
