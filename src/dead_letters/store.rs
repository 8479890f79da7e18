//! A store of letters: numbered files of NDJSON, one line a letter, fsynced before a write is reported.
//!
//! A line that a crash tore is cut off at the next start. A file that cannot be read is left alone. Lines leave only by [`Store::rewrite`], or with a whole
//! file where the oldest are dropped at the limit. What is dropped first then is in files of its own.
//!
//! Length: append, seal and rewrite keep the same counts and are only understood side by side; a third are tests.

use std::cmp::Reverse;
use std::collections::hash_map::{Entry, RandomState};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::hash::BuildHasher as _;
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::dead_letters::StoreKind;
use crate::dead_letters::read::{self, Lines, Precedence};
use crate::process::failpoint;
use crate::process::state_directory::{create_directory, give_to_the_owner, sync_directory};
use crate::status::StoreCounts;

/// The reason why lines were not written; none of them is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// No room.
    #[error("no room for a letter of {length} bytes ({bytes} of {capacity} bytes used in {directory}); {remedy}")]
    Full {
        /// The size of the first line.
        length: usize,
        /// Used.
        bytes: u64,
        /// The limit.
        capacity: u64,
        /// Where.
        directory: String,
        /// The way to more room.
        remedy: &'static str,
    },
    /// The disk.
    #[error("cannot write letters to {directory}: {source}")]
    Disk {
        /// Where.
        directory: String,
        /// Why.
        source: io::Error,
    },
}

/// A line to append.
#[derive(Clone, Debug)]
pub(crate) struct NewLetter {
    /// With its end.
    pub(crate) line: Vec<u8>,
    /// A replayed event was refused again: its old line goes as soon as this one is there, so that it always fits.
    pub(crate) returns: bool,
    /// The precedence with which it is dropped.
    pub(crate) precedence: Precedence,
}

impl NewLetter {
    /// A line that is dropped last, if ever.
    pub(crate) fn new(line: Vec<u8>) -> Self {
        Self { line, returns: false, precedence: Precedence::Last }
    }
}

/// A file that lines are appended to.
#[derive(Debug)]
struct Open {
    file: File,
    number: u64,
}

/// The contents of a file of letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileContent {
    lines: u64,
    bytes: u64,
    precedence: Precedence,
    /// Whether it cannot be read: then only its size is known.
    is_unreadable: bool,
}

/// Lines of one file by their [`Store::hash`]. Equal lines are separate letters, and each stands for any of them.
#[derive(Clone, Debug, Default)]
pub(super) struct LineSet(HashMap<u64, usize>);

impl LineSet {
    /// Adds a line.
    pub(super) fn add(&mut self, hash: u64) {
        *self.0.entry(hash).or_default() += 1;
    }

    /// Takes a line out, if it is there.
    pub(super) fn take(&mut self, hash: u64) -> bool {
        let Entry::Occupied(mut count) = self.0.entry(hash) else { return false };
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
        true
    }
}

/// A store that several threads use, one at a time.
#[derive(Clone, Debug)]
pub(crate) struct SharedStore {
    store: Arc<Mutex<Store>>,
    /// Locked for a moment only, unlike the store.
    pub(crate) held: Arc<Mutex<StoreCounts>>,
    /// Locked for a moment only, too.
    changed: Arc<Mutex<BTreeSet<u64>>>,
}

impl SharedStore {
    /// Opens or creates the store. Only its owner writes there.
    ///
    /// # Errors
    /// The directory cannot be created or read.
    pub(crate) fn open(directory: &Path, kind: StoreKind, capacity: usize) -> io::Result<Self> {
        let store = Store::open(directory, kind, capacity)?;
        let (held, changed) = (store.held.clone(), store.changed.clone());
        Ok(Self { store: Arc::new(Mutex::new(store)), held, changed })
    }

    /// Its contents, counted.
    #[cfg(test)]
    pub(crate) fn held(&self) -> StoreCounts {
        *self.held.lock()
    }

    /// The numbers of the files from which letters were removed, or that were moved away, since this was last asked.
    pub(crate) fn take_changed(&self) -> BTreeSet<u64> {
        std::mem::take(&mut *self.changed.lock())
    }

    /// The store, for file operations on a thread that may block.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock()
    }

    /// Does file work on a thread of its own.
    ///
    /// # Errors
    /// The work fails.
    pub(super) async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let shared = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&mut shared.lock())).await;
        done.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

/// The store.
#[derive(Debug)]
pub(crate) struct Store {
    directory: PathBuf,
    kind: StoreKind,
    /// A file is closed at this size, by the capacity, so that a rewrite is small, or what is dropped at once.
    file_size: fn(u64) -> u64,
    /// Its contents, and its capacity, which a reload may change at any time.
    held: Arc<Mutex<StoreCounts>>,
    /// The files from which letters were removed, or that were moved away, until they are asked for.
    changed: Arc<Mutex<BTreeSet<u64>>>,
    /// The files in use, by [`Precedence`].
    current: [Option<Open>; 2],
    /// The highest number of a file.
    number: u64,
    /// The file of the last line.
    written_to: u64,
    /// The files by their numbers.
    counted: BTreeMap<u64, FileContent>,
    /// The letters that a replay has given to delivery, by their file.
    in_flight: HashMap<u64, LineSet>,
    hasher: RandomState,
    /// The length of the letter that last did not fit.
    too_long: Option<usize>,
}

impl Store {
    fn open(directory: &Path, kind: StoreKind, capacity: usize) -> io::Result<Self> {
        create(directory)?;
        let held = Arc::new(Mutex::new(StoreCounts { capacity: capacity as u64, ..StoreCounts::default() }));
        let directory = directory.to_owned();
        let mut store = Self {
            directory,
            kind,
            file_size: match kind {
                StoreKind::DeadLetters => |_| 4 << 20,
                StoreKind::Invalid => |capacity| (capacity / 16).clamp(1, 1 << 20),
            },
            held,
            current: [None, None],
            number: 0,
            written_to: 0,
            counted: BTreeMap::new(),
            changed: Arc::default(),
            in_flight: HashMap::new(),
            hasher: RandomState::new(),
            too_long: None,
        };
        for entry in fs::read_dir(&store.directory)? {
            let path = entry?.path();
            // A rewrite that a crash cut short: the file that it was made from is whole.
            if path.extension().is_some_and(|extension| extension == "rewrite") {
                fs::remove_file(path)?;
            }
        }
        store.measure()?;
        for (number, content) in store.counted.iter().filter(|(_, content)| !content.is_unreadable) {
            let path = store.path(*number);
            if fs::metadata(&path).map_or(0, |about| about.len()) <= content.bytes {
                continue;
            }
            match OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(content.bytes)) {
                Ok(()) => tracing::warn!(file = %path.display(), "cut off a letter that a crash had torn"),
                Err(error) => tracing::warn!("cannot cut off a torn letter in {}: {error}", path.display()),
            }
        }
        Ok(store)
    }

    /// Counts what is on disk; the operator may have moved files away, or put them back. A file whose length is known is
    /// not read again.
    pub(super) fn measure(&mut self) -> io::Result<()> {
        let mut counted = BTreeMap::new();
        for (number, path) in read::files(&self.directory)? {
            self.number = self.number.max(number);
            let length = fs::metadata(&path).map_or(0, |about| about.len());
            let known = self.counted.get(&number);
            let content = match known.filter(|known| known.bytes == length && !known.is_unreadable) {
                Some(known) => *known,
                None => content(&path).unwrap_or_else(|error| {
                    if known.is_none_or(|known| !known.is_unreadable) {
                        tracing::warn!(
                            "{error}; the letters in this file are left out: make it readable for the bridge's user, or \
                             move it away"
                        );
                    }
                    let precedence = read::precedence(&path);
                    FileContent { lines: 0, bytes: length, precedence, is_unreadable: true }
                }),
            };
            counted.insert(number, content);
        }
        let moved_away = self.counted.keys().filter(|number| !counted.contains_key(number));
        self.changed.lock().extend(moved_away);
        self.counted = counted;
        self.recount();
        Ok(())
    }

    fn held(&self) -> StoreCounts {
        *self.held.lock()
    }

    fn recount(&self) {
        let mut held = self.held.lock();
        held.events = self.counted.values().map(|content| content.lines).sum();
        held.bytes = self.counted.values().map(|content| content.bytes).sum();
    }

    /// Appends as many of the lines, from the first on and of its precedence, as fit, and syncs them; says how many.
    ///
    /// # Errors
    /// Not even the first fits, or the disk fails.
    pub(crate) fn append(&mut self, entries: &[NewLetter]) -> Result<usize, WriteError> {
        let Some(precedence) = entries.first().map(|entry| entry.precedence) else { return Ok(0) };
        let alike = entries.iter().take_while(|entry| entry.precedence == precedence).count();
        let entries = &entries[..alike];
        let all: u64 = entries.iter().map(|entry| entry.line.len() as u64).sum();
        let held = self.held();
        if held.bytes + all > held.capacity {
            self.measure().map_err(|source| self.disk(source))?;
            self.make_room(entries, precedence).map_err(|source| self.disk(source))?;
        }
        let held = self.held();
        let mut free = held.capacity.saturating_sub(held.bytes);
        let fits = |entry: &&NewLetter| {
            let rest = free.checked_sub(entry.line.len() as u64);
            free = rest.unwrap_or(if entry.returns { free } else { 0 });
            rest.is_some() || entry.returns
        };
        let count = entries.iter().take_while(fits).count();
        if let (0, Some(first)) = (count, entries.first()) {
            self.too_long = Some(first.line.len());
            return Err(self.full(first.line.len()));
        }
        self.too_long = None;
        let entries = &entries[..count];
        if let Err(source) = self.write(entries, precedence) {
            // The file may end in half a line: cut it if that can be done, and take a new one next time.
            if let Some(Open { file, number }) = self.current[precedence as usize].take() {
                let _ = file.set_len(self.counted.get(&number).map_or(0, |content| content.bytes));
            }
            return Err(self.disk(source));
        }
        let bytes: u64 = entries.iter().map(|entry| entry.line.len() as u64).sum();
        if let Some(content) = self.counted.get_mut(&self.written_to) {
            content.lines += count as u64;
            content.bytes += bytes;
        }
        self.recount();
        self.held.lock().kept += count as u64;
        Ok(count)
    }

    fn full(&self, length: usize) -> WriteError {
        let remedy = match self.kind {
            StoreKind::DeadLetters => {
                "drop letters with `plextrac-bridge dead-letters drop`, or raise `dead_letters.max_bytes`"
            }
            StoreKind::Invalid => "raise `invalid.max_bytes`",
        };
        let StoreCounts { bytes, capacity, .. } = self.held();
        WriteError::Full { length, bytes, capacity, directory: self.directory.display().to_string(), remedy }
    }

    /// Returns the error of the letter that last did not fit, if it still does not.
    pub(crate) fn no_room(&self) -> Option<WriteError> {
        let length = self.too_long?;
        let held = self.held();
        (held.bytes + length as u64 > held.capacity).then(|| self.full(length))
    }

    /// Drops whole files until the lines fit, or as many of them as can: those that go first, then, for lines that go
    /// last, the others, each time the oldest first. None for a line that would not fit even then, and none where nothing
    /// may be dropped.
    fn make_room(&mut self, lines: &[NewLetter], precedence: Precedence) -> io::Result<()> {
        if self.kind == StoreKind::DeadLetters {
            return Ok(());
        }
        let may_go = |content: &FileContent| content.precedence >= precedence && !content.is_unreadable;
        let stays: u64 =
            self.counted.values().filter(|content| !may_go(content)).map(|content| content.bytes).sum();
        let capacity = self.held().capacity;
        let most = capacity.saturating_sub(stays);
        let mut wanted = 0;
        for line in lines {
            let with = wanted + line.line.len() as u64;
            if with > most {
                break;
            }
            wanted = with;
        }
        while self.held().bytes + wanted > capacity {
            let files = self.counted.iter().filter(|(_, content)| may_go(content));
            let next = files.max_by_key(|(number, content)| (content.precedence, Reverse(**number)));
            let Some(number) = next.map(|(number, _)| *number) else { break };
            self.close(number);
            remove(&self.path(number))?;
            let lines = self.counted.remove(&number).map_or(0, |content| content.lines);
            self.changed.lock().insert(number);
            self.recount();
            self.held.lock().dropped += lines;
        }
        Ok(())
    }

    /// Appends nothing more to this file.
    fn close(&mut self, number: u64) {
        for current in &mut self.current {
            current.take_if(|open| open.number == number);
        }
    }

    fn disk(&self, source: io::Error) -> WriteError {
        WriteError::Disk { directory: self.directory.display().to_string(), source }
    }

    fn write(&mut self, entries: &[NewLetter], precedence: Precedence) -> io::Result<()> {
        failpoint::pass("letters.write")?;
        let mut current = self.current[precedence as usize].take();
        let file_size = (self.file_size)(self.held().capacity);
        let is_full = |content: &FileContent| content.bytes >= file_size;
        current
            .take_if(|open| self.counted.get(&open.number).is_none_or(is_full) || !self.path(open.number).exists());
        let open = match current {
            Some(open) => open,
            None => self.create_file(precedence)?,
        };
        let Open { file, number } = self.current[precedence as usize].insert(open);
        self.written_to = *number;
        let text: Vec<u8> = entries.iter().flat_map(|entry| entry.line.iter().copied()).collect();
        file.write_all(&text)?;
        failpoint::pass("letters.sync")?;
        file.sync_data()
    }

    fn create_file(&mut self, precedence: Precedence) -> io::Result<Open> {
        create(&self.directory)?;
        let last = read::files(&self.directory)?.last().map_or(0, |(number, _)| *number);
        self.number = self.number.max(last) + 1;
        let path = self.directory.join(read::name(self.number, precedence));
        let file = OpenOptions::new().create_new(true).append(true).mode(0o600).open(path)?;
        give_to_the_owner(&file, &self.directory);
        sync_directory(&self.directory)?;
        self.counted.insert(self.number, FileContent { lines: 0, bytes: 0, precedence, is_unreadable: false });
        Ok(Open { file, number: self.number })
    }

    /// Closes the files in use: what is written later goes to files of higher numbers than the returned one.
    pub(crate) fn seal(&mut self) -> u64 {
        self.current = [None, None];
        self.number
    }

    /// The number of the file that has the lines of the last [`Store::append`].
    pub(crate) fn written_to(&self) -> u64 {
        self.written_to
    }

    /// The numbers of the files there are, up to this one, oldest first.
    pub(crate) fn files(&self, up_to: u64) -> Vec<u64> {
        self.counted.range(..=up_to).map(|(number, _)| *number).collect()
    }

    /// The path of a file.
    pub(crate) fn path(&self, number: u64) -> PathBuf {
        let precedence = self.counted.get(&number).map_or(Precedence::Last, |content| content.precedence);
        self.directory.join(read::name(number, precedence))
    }

    /// Leaves of a sealed file only the lines that `keep` says, by their place from 0 on and their text; says how
    /// many went. A crash leaves the file as it was, or as it is to be.
    ///
    /// # Errors
    /// The disk fails; the file is as it was.
    pub(crate) fn rewrite(&mut self, number: u64, keep: impl FnMut(usize, &[u8]) -> bool) -> io::Result<u64> {
        let path = self.path(number);
        let temporary = path.with_extension("rewrite");
        let gone = self.rewrite_by(number, &path, &temporary, keep);
        if gone.is_err() {
            // The copy would take what little room the disk has.
            let _ = remove(&temporary);
        }
        if gone.as_ref().is_ok_and(|gone| *gone > 0) {
            self.changed.lock().insert(number);
        }
        gone
    }

    fn rewrite_by(
        &mut self,
        number: u64,
        path: &Path,
        temporary: &Path,
        mut keep: impl FnMut(usize, &[u8]) -> bool,
    ) -> io::Result<u64> {
        self.close(number);
        let Some(lines) = Lines::open(path)? else {
            self.counted.remove(&number);
            self.changed.lock().insert(number);
            self.recount();
            return Ok(0);
        };
        let (mut kept, mut bytes, mut gone) = (0, 0, 0);
        let mut file = None;
        for (at, line) in lines.enumerate() {
            let line = line?;
            if !keep(at, &line) {
                gone += 1;
                continue;
            }
            let into = match &mut file {
                Some(file) => file,
                None => file.insert(BufWriter::new(self.temporary(temporary)?)),
            };
            into.write_all(&line)?;
            into.write_all(b"\n")?;
            kept += 1;
            bytes += line.len() as u64 + 1;
        }
        if gone == 0 {
            // Nothing to change; the copy is of no use.
            return if file.is_some() { remove(temporary).map(|()| 0) } else { Ok(0) };
        }
        if let Some(file) = file {
            failpoint::pass("letters.rewrite")?;
            file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
            failpoint::pass("letters.rename")?;
            fs::rename(temporary, path)?;
            let precedence = read::precedence(path);
            self.counted.insert(number, FileContent { lines: kept, bytes, precedence, is_unreadable: false });
        } else {
            failpoint::pass("letters.remove")?;
            remove(path)?;
            self.counted.remove(&number);
        }
        self.recount();
        sync_directory(&self.directory)?;
        Ok(gone)
    }

    /// A letter's line as a number that outlives a rewrite of its file, for a [`LineSet`].
    pub(super) fn hash(&self, line: &[u8]) -> u64 {
        self.hasher.hash_one(line)
    }

    /// The letters of a file that replays have given to delivery.
    pub(super) fn in_flight(&self, file: u64) -> LineSet {
        self.in_flight.get(&file).cloned().unwrap_or_default()
    }

    /// Notes that a replay gives a letter to delivery.
    pub(super) fn mark(&mut self, file: u64, hash: u64) {
        self.in_flight.entry(file).or_default().add(hash);
    }

    /// Notes that these letters of a file are not in flight any more.
    pub(super) fn unmark(&mut self, file: u64, hashes: impl IntoIterator<Item = u64>) {
        let Some(in_flight) = self.in_flight.get_mut(&file) else { return };
        for hash in hashes {
            in_flight.take(hash);
        }
    }

    /// Removes these letters from a sealed file.
    ///
    /// # Errors
    /// The disk fails; the file is as it was.
    pub(super) fn remove(&mut self, file: u64, mut letters: LineSet) -> io::Result<u64> {
        let keyed = self.hasher.clone();
        self.rewrite(file, |_, line| !letters.take(keyed.hash_one(line)))
    }

    /// Removes the letters that are meant from a sealed file, but for those in flight; says how many of each there were.
    ///
    /// # Errors
    /// The disk fails; the file is as it was.
    pub(super) fn drop_letters(&mut self, file: u64, is_meant: impl Fn(&[u8]) -> bool) -> io::Result<(u64, u64)> {
        let (keyed, mut in_flight, mut skipped) = (self.hasher.clone(), self.in_flight(file), 0);
        let dropped = self.rewrite(file, |_, line| {
            let is_dropped = is_meant(line);
            let stays = is_dropped && in_flight.take(keyed.hash_one(line));
            skipped += u64::from(stays);
            stays || !is_dropped
        });
        dropped.map(|dropped| (dropped, skipped))
    }

    fn temporary(&self, path: &Path) -> io::Result<File> {
        let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
        give_to_the_owner(&file, &self.directory);
        Ok(file)
    }
}

/// Removes a file that may be gone already.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Creates the directory where it is missing, for its owner alone: bodies are confidential.
pub(super) fn create(directory: &Path) -> io::Result<()> {
    if !directory.is_dir() {
        create_directory(directory)?;
        if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            give_to_the_owner(&File::open(directory)?, parent);
        }
    }
    Ok(())
}

/// The contents of a file; a torn last line is left out.
fn content(path: &Path) -> io::Result<FileContent> {
    let precedence = read::precedence(path);
    let mut content = FileContent { lines: 0, bytes: 0, precedence, is_unreadable: false };
    for line in Lines::open(path)?.into_iter().flatten() {
        content.lines += 1;
        content.bytes += line?.len() as u64 + 1;
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dead_letters(directory: &Path, capacity: usize) -> Store {
        Store::open(directory, StoreKind::DeadLetters, capacity).unwrap()
    }

    /// A store of 20 bytes whose oldest lines are dropped, with two or three in a file.
    fn invalid(directory: &Path) -> Store {
        Store { file_size: |_| 6, ..Store::open(directory, StoreKind::Invalid, 20).unwrap() }
    }

    fn entries(lines: &[&str]) -> Vec<NewLetter> {
        lines.iter().map(|line| NewLetter::new(format!("{line}\n").into_bytes())).collect()
    }

    fn counts(store: &Store) -> (u64, u64) {
        (store.held().events, store.held().bytes)
    }

    fn lines(store: &Store, number: u64) -> Vec<String> {
        let text = fs::read_to_string(store.path(number)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn counts_what_it_holds_across_a_restart_and_cuts_a_torn_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("dead-letters");
        let mut store = dead_letters(&path, 1000);
        store.append(&entries(&["{\"a\":1}", "{\"b\":2}"])).unwrap();
        assert_eq!(counts(&store), (2, 16));
        let file = store.path(1);
        OpenOptions::new().append(true).open(&file).unwrap().write_all(b"{\"to").unwrap();
        let mut store = dead_letters(&path, 1000);
        assert_eq!(counts(&store), (2, 16));
        assert_eq!(fs::read(&file).unwrap().len(), 16);
        store.append(&entries(&["{\"c\":3}"])).unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 2);
    }

    #[test]
    fn is_full_at_its_limit_and_takes_again_when_files_are_moved_away() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = dead_letters(directory.path(), 20);
        let line = entries(&["0123456789"]);
        store.append(&line).unwrap();
        let full = store.append(&line).unwrap_err().to_string();
        assert!(full.contains("of 11 bytes (11 of 20 bytes used"), "{full}");
        assert_eq!(store.append(&entries(&["12345678", "1"])).unwrap(), 1, "the first one fits");
        for entry in fs::read_dir(directory.path()).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        store.append(&line).unwrap();
        assert_eq!(counts(&store), (1, 11));
    }

    #[test]
    fn always_takes_the_letter_of_a_replayed_event_back() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = dead_letters(directory.path(), 12);
        store.append(&entries(&["0123456789"])).unwrap();
        let mut returning = entries(&["9876543210", "x"]);
        returning[0].returns = true;
        assert_eq!(store.append(&returning).unwrap(), 1, "the other one must wait");
        assert_eq!(store.held().kept, 2);
    }

    #[test]
    fn writes_behind_a_seal_into_a_new_file() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = dead_letters(directory.path(), 1000);
        store.append(&entries(&["a"])).unwrap();
        assert_eq!(store.seal(), 1);
        store.append(&entries(&["b"])).unwrap();
        assert_eq!((store.files(1), store.files(9)), (vec![1], vec![1, 2]));
        assert_eq!((lines(&store, 1), lines(&store, 2)), (vec!["a".to_owned()], vec!["b".to_owned()]));
    }

    #[test]
    fn removes_lines_and_empty_files_and_corrects_its_counts() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = dead_letters(directory.path(), 1000);
        store.append(&entries(&["a", "bb", "a"])).unwrap();
        let number = store.seal();
        assert_eq!(store.rewrite(number, |_, _| true).unwrap(), 0);
        assert_eq!(store.rewrite(number, |at, line| !(at == 2 && line == b"a")).unwrap(), 1);
        assert_eq!((lines(&store, 1), counts(&store)), (vec!["a".to_owned(), "bb".to_owned()], (2, 5)));
        assert_eq!(store.rewrite(number, |_, _| false).unwrap(), 2);
        assert_eq!((counts(&store), fs::read_dir(directory.path()).unwrap().count()), ((0, 0), 0));
        assert_eq!(store.rewrite(number, |_, _| false).unwrap(), 0, "a file that does not exist any more");
        store.append(&entries(&["c"])).unwrap();
        assert_eq!(store.files(9), [2]);
    }

    #[test]
    fn writes_behind_files_that_were_put_there_meanwhile() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = dead_letters(directory.path(), 1000);
        fs::write(directory.path().join("00000001.ndjson"), "a\n").unwrap();
        store.append(&entries(&["b"])).unwrap();
        store.measure().unwrap();
        assert_eq!(
            (store.files(9), lines(&store, 1), lines(&store, 2)),
            (vec![1, 2], vec!["a".into()], vec!["b".into()])
        );
    }

    #[test]
    fn tells_that_a_file_was_moved_away() {
        let directory = tempfile::tempdir().unwrap();
        let store = SharedStore::open(directory.path(), StoreKind::Invalid, 1000).unwrap();
        let append = || {
            let mut store = store.lock();
            store.append(&entries(&["a"])).unwrap();
            store.seal()
        };
        let (first, second) = (append(), append());
        let moves_away = |file| fs::remove_file(store.lock().path(file)).unwrap();
        moves_away(first);
        store.lock().measure().unwrap();
        assert_eq!(store.take_changed(), BTreeSet::from([first]), "it was looked for");
        moves_away(second);
        assert_eq!(store.lock().rewrite(second, |_, _| false).unwrap(), 0);
        assert_eq!(store.take_changed(), BTreeSet::from([second]), "letters were to be removed from it");
    }

    #[test]
    fn drops_all_but_the_letters_in_flight() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = dead_letters(directory.path(), 1000);
        store.append(&entries(&["a", "b", "c", "b", "d"])).unwrap();
        let file = store.seal();
        let b = store.hash(b"b");
        store.mark(file, b);
        assert_eq!(store.drop_letters(file, |line| line != b"d").unwrap(), (3, 1), "only one of two equal ones");
        assert_eq!(lines(&store, file), ["b", "d"]);
        // Its place in the file is another one by now.
        assert_eq!(store.remove(file, store.in_flight(file)).unwrap(), 1);
        store.unmark(file, [b]);
        assert_eq!((lines(&store, file), counts(&store)), (vec!["d".to_owned()], (1, 2)));
        assert_eq!(store.drop_letters(file, |_| true).unwrap(), (1, 0));
    }

    #[test]
    fn is_full_until_the_letter_that_did_not_fit_would() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = dead_letters(directory.path(), 12);
        assert!(store.no_room().is_none());
        store.append(&entries(&["0123456789"])).unwrap();
        assert!(store.no_room().is_none(), "nothing is known yet");
        assert!(store.append(&entries(&["x"])).is_err());
        let full = store.no_room().unwrap().to_string();
        assert!(
            full.contains("of 2 bytes (11 of 12 bytes used") && full.contains("`dead_letters.max_bytes`"),
            "{full}"
        );
        let file = store.seal();
        store.rewrite(file, |_, _| false).unwrap();
        assert!(store.no_room().is_none());
    }

    #[test]
    fn leaves_no_copy_behind_where_a_rewrite_fails() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = dead_letters(directory.path(), 1000);
        store.append(&entries(&["a", "b"])).unwrap();
        let file = store.seal();
        failpoint::set_here(&[("letters.rewrite", io::ErrorKind::StorageFull)]);
        assert!(store.rewrite(file, |at, _| at == 0).is_err());
        failpoint::set_here(&[]);
        let names: Vec<_> =
            fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 1, "{names:?}");
    }

    #[test]
    fn loses_no_line_where_a_rewrite_was_cut_short() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = dead_letters(directory.path(), 1000);
        store.append(&entries(&["a", "b"])).unwrap();
        // Before its rename: half of the copy, and nothing changed.
        fs::write(directory.path().join("00000001.rewrite"), "b").unwrap();
        let store = dead_letters(directory.path(), 1000);
        assert_eq!((lines(&store, 1), counts(&store)), (vec!["a".to_owned(), "b".to_owned()], (2, 4)));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    /// Lines that are dropped first.
    fn first(lines: &[&str]) -> Vec<NewLetter> {
        let entries = entries(lines).into_iter();
        entries.map(|entry| NewLetter { precedence: Precedence::First, ..entry }).collect()
    }

    #[test]
    fn drops_what_goes_first_before_the_oldest_and_never_the_oldest_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = invalid(directory.path());
        for line in ["1", "2", "3"] {
            store.append(&entries(&[line])).unwrap();
            store.append(&first(&[&format!("p{line}")])).unwrap();
        }
        assert_eq!((counts(&store), store.files(99)), ((6, 15), vec![1, 2, 3]), "files of their own");
        let kept = |store: &Store| -> Vec<String> {
            store.files(99).iter().flat_map(|file| lines(store, *file)).collect()
        };
        // After a restart the name of a file still says when it is dropped.
        let mut store = invalid(directory.path());
        store.append(&entries(&["444444444", "5"])).unwrap();
        assert_eq!(
            (kept(&store), store.held().dropped),
            (["1", "2", "3", "444444444", "5"].map(str::to_owned).to_vec(), 3)
        );
        assert!(store.append(&first(&["too long for it"])).is_err());
        assert_eq!(store.append(&first(&["p"])).unwrap(), 1, "where there is room");
        let number = store.written_to();
        assert_eq!(lines(&store, number), ["p"]);
        store.seal();
        assert_eq!(store.rewrite(number, |_, _| false).unwrap(), 1);
        assert_eq!(kept(&store).len(), 5);
        let mixed = [entries(&["6"]), first(&["p"])].concat();
        assert_eq!(store.append(&mixed).unwrap(), 1, "lines of one precedence at a time");
    }

    #[test]
    fn drops_nothing_for_a_line_that_would_not_fit_even_then() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = invalid(directory.path());
        store.append(&entries(&["1", "2", "3", "4"])).unwrap();
        store.append(&first(&["p1", "p2"])).unwrap();
        let (too_long, fits) = ("a line that never fits", "12345");
        assert!(store.append(&entries(&[too_long])).is_err());
        assert!(store.append(&first(&["a longer probe"])).is_err(), "the room of others is not for it");
        assert_eq!((counts(&store), store.held().dropped), ((6, 14), 0));
        assert_eq!(store.append(&entries(&[fits, too_long, "6"])).unwrap(), 1, "as many as fit");
        assert_eq!((counts(&store), store.held().dropped), ((7, 20), 0));
    }

    #[test]
    fn drops_the_oldest_file_at_the_limit_where_it_may() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = invalid(directory.path());
        for line in ["1", "2", "3", "4", "5", "6", "7", "8"] {
            store.append(&entries(&[line])).unwrap();
        }
        assert_eq!((counts(&store), store.held().dropped), ((8, 16), 0));
        assert_eq!(store.append(&entries(&["9", "10"])).unwrap(), 2);
        assert_eq!(store.append(&entries(&["11"])).unwrap(), 1);
        assert_eq!((store.held().dropped, store.files(99)), (3, vec![2, 3, 4]));
        let full = store.append(&entries(&["a line that never fits"])).unwrap_err().to_string();
        assert!(full.contains("raise `invalid.max_bytes`"), "{full}");
    }

    #[test]
    fn another_capacity_holds_for_the_next_line_and_the_size_of_files_follows_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::open(directory.path(), StoreKind::Invalid, 64).unwrap();
        let mut append = |capacity: u64, lines: usize| {
            store.held.lock().capacity = capacity;
            for _ in 0..lines {
                store.append(&entries(&["abc"])).unwrap();
            }
            (store.held().bytes, store.held().dropped, store.files(99).len())
        };
        assert_eq!(append(64, 16), (64, 0, 16));
        assert_eq!(append(128, 16), (128, 0, 24), "two in a file");
        assert_eq!(append(32, 1), (32, 25, 5), "as many as must go");
        let mut store = dead_letters(&directory.path().join("dead-letters"), 4);
        store.append(&entries(&["abc"])).unwrap();
        assert!(store.append(&entries(&["abc"])).is_err() && store.no_room().is_some());
        store.held.lock().capacity = 8;
        assert!(store.no_room().is_none() && store.append(&entries(&["abc"])).is_ok());
        store.held.lock().capacity = 4;
        assert!(store.append(&entries(&["abc"])).is_err(), "nothing is dropped");
        assert_eq!(counts(&store), (2, 8));
    }
}
