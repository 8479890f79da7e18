//! Which letters a request means, read from their files and made events again, a batch at a time.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::dead_letters::store::LineSet;
use crate::dead_letters::{Filter, Letter, Lines, Request, Store, Validity};
use crate::event::{Event, Origin};

/// The most letters that are replayed at once.
const BATCH: usize = 256;

/// Makes an event of a kept body, if it is valid in this way.
pub(crate) type RebuildLetter = Arc<dyn Fn(Validity, Origin, Box<[u8]>) -> Option<Box<Event>> + Send + Sync>;

/// Some letters of a file, as events.
#[derive(Default)]
pub(super) struct LetterBatch {
    /// With the hash of the line, which is marked as in flight.
    pub(super) events: Vec<(u64, Box<Event>)>,
    /// Letters that match and make no event, or are in flight for another replay.
    pub(super) skipped: u64,
    /// The lines that were looked at in all batches of the file, and stay there.
    pub(super) left: LineSet,
    pub(super) is_last: bool,
}

/// Takes the next letters that a request means from a file, at most about `most` bytes of them, and marks them as in
/// flight; `before` has the lines that earlier batches left. Under the store's lock, so that no letter is dropped in between.
pub(super) fn take(
    store: &mut Store,
    file: u64,
    mut before: LineSet,
    request: &Request,
    rebuild: &RebuildLetter,
    most: usize,
) -> io::Result<LetterBatch> {
    let mut batch = LetterBatch { is_last: true, ..LetterBatch::default() };
    let Some(lines) = Lines::open(&store.path(file))? else { return Ok(batch) };
    let (mut bytes, mut in_flight) = (0, store.in_flight(file));
    for line in lines {
        let line = line.inspect_err(|_| store.unmark(file, batch.events.iter().map(|(hash, _)| *hash)))?;
        let hash = store.hash(&line);
        let is_in_flight = in_flight.take(hash);
        if before.take(hash) {
            batch.left.add(hash);
            continue;
        }
        if let Ok(letter) = Letter::parse(&line)
            && request.filter.matches(&letter)
        {
            let length = letter.body.len();
            let (origin, body) = letter.origin_and_body();
            if !batch.events.is_empty() && (batch.events.len() == BATCH || bytes + length > most) {
                batch.is_last = false;
                break;
            }
            match rebuild(request.validity(), origin, body) {
                Some(event) if !is_in_flight => {
                    store.mark(file, hash);
                    bytes += length;
                    batch.events.push((hash, event));
                    continue;
                }
                _ => batch.skipped += 1,
            }
        }
        batch.left.add(hash);
    }
    Ok(batch)
}

/// The number of letters of a file that match, and of lines that are none.
pub(super) fn count(path: &Path, filter: &Filter) -> io::Result<(u64, u64)> {
    let (mut selected, mut unreadable) = (0, 0);
    for line in Lines::open(path)?.into_iter().flatten() {
        match Letter::parse(&line?) {
            Ok(letter) => selected += u64::from(filter.matches(&letter)),
            Err(_) => unreadable += 1,
        }
    }
    Ok((selected, unreadable))
}
