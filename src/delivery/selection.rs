//! Which letters a request means, read from their files and made events again, a batch at a time.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::path::{Path, PathBuf};

use crate::dead_letters::{Filter, Letter, Lines, Request, StoreKind, Validity};
use crate::delivery::requests::Rebuilder;
use crate::event::Event;

/// The most letters that are replayed at once.
const BATCH: usize = 256;

/// Some letters of a file, as events.
#[derive(Default)]
pub(super) struct LetterBatch {
    /// With the place of the line, and its hash.
    pub(super) events: Vec<(usize, u64, Box<Event>)>,
    /// Letters that match and make no event.
    pub(super) skipped: u64,
    /// How many lines of the file were looked at.
    pub(super) seen: usize,
    pub(super) is_last: bool,
}

/// Reads the next letters that a request means, from this line of the file on.
pub(super) fn read(
    path: &Path,
    from: usize,
    request: &Request,
    rebuilder: &Rebuilder,
    most: usize,
) -> io::Result<LetterBatch> {
    let mut batch = LetterBatch { seen: from, is_last: true, ..LetterBatch::default() };
    let Some(lines) = Lines::open(path)? else { return Ok(batch) };
    let mut bytes = 0;
    for (at, line) in lines.enumerate().skip(from) {
        let line = line?;
        if let Ok(letter) = Letter::parse(&line)
            && request.filter.matches(&letter)
        {
            if !batch.events.is_empty() && (batch.events.len() == BATCH || bytes + letter.body.len() > most) {
                batch.is_last = false;
                break;
            }
            let (origin, body) = letter.origin_and_body();
            bytes += body.len();
            let event = match (request.kind, request.validity) {
                (StoreKind::Invalid, Validity::AsConfigured) => (rebuilder.configured)(origin, body),
                (StoreKind::Invalid, Validity::Lenient) => (rebuilder.lenient)(origin, body),
                (StoreKind::Invalid, Validity::AsIs) | (StoreKind::DeadLetters, _) => {
                    Some((rebuilder.always)(origin, body))
                }
            };
            match event {
                Some(event) => batch.events.push((at, hash(&line), event)),
                None => batch.skipped += 1,
            }
        }
        batch.seen = at + 1;
    }
    Ok(batch)
}

/// How many letters match, and how many lines are none.
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

/// Enough to see that a line is still the one that was read, should somebody have edited the file.
pub(super) fn hash(line: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    line.hash(&mut hasher);
    hasher.finish()
}
