//! Dead letters: NDJSON in `dead-letters/`, one line per refused event, fsynced before the event counts as settled.
//!
//! Files are numbered and closed at [`FILE_BYTES`]. A line that a crash tore is cut off at the next start.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

use crate::brokers::{Headers, Refusal};
use crate::message::Event;

/// The version of a line.
const VERSION: u32 = 1;

/// A file is closed at this size, so that dropping a letter rewrites little.
const FILE_BYTES: u64 = 4 << 20;

/// What the store holds, for metrics and `/status`.
#[derive(Debug, Default)]
pub struct DeadLetters {
    events: AtomicU64,
    bytes: AtomicU64,
    capacity: u64,
}

impl DeadLetters {
    /// Lines.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    /// Bytes on disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// `dead_letters.max_bytes`.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.capacity
    }
}

/// Why lines were not written; none of them is.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    #[error(
        "no room for a dead letter of {length} bytes ({bytes} of {capacity} bytes used in {directory}); move files \
         away or raise `dead_letters.max_bytes`"
    )]
    Full { length: usize, bytes: u64, capacity: u64, directory: String },
    #[error("cannot write dead letters to {directory}: {source}")]
    Disk { directory: String, source: io::Error },
}

/// The store.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    held: Arc<DeadLetters>,
    current: Option<(File, u64)>,
    number: u64,
    /// Lines and bytes of each file, by its number.
    counted: HashMap<u64, (u64, u64)>,
}

impl Store {
    /// Opens or creates the store.
    ///
    /// # Errors
    /// The directory cannot be created or read.
    pub fn open(directory: &Path, capacity: usize) -> io::Result<Self> {
        create(directory)?;
        let held = DeadLetters { capacity: capacity as u64, ..DeadLetters::default() };
        let directory = directory.to_owned();
        let mut store = Self { directory, held: Arc::new(held), current: None, number: 0, counted: HashMap::new() };
        store.measure()?;
        Ok(store)
    }

    /// What it holds.
    #[must_use]
    pub fn held(&self) -> Arc<DeadLetters> {
        self.held.clone()
    }

    /// Counts what is on disk; the operator may have moved files away. A file whose length is known is not read again.
    fn measure(&mut self) -> io::Result<()> {
        let is_start = self.counted.is_empty() && self.current.is_none();
        let mut counted = HashMap::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let Some(number) = number(&path) else { continue };
            self.number = self.number.max(number);
            let length = fs::metadata(&path)?.len();
            let known = self.counted.get(&number).copied().filter(|(_, known)| *known == length);
            let (lines, sound) = known.map_or_else(|| sound_lines(&path), Ok)?;
            if is_start && length > sound {
                tracing::warn!(file = %path.display(), "cut off a dead letter that a crash had torn");
                OpenOptions::new().write(true).open(&path)?.set_len(sound)?;
            }
            counted.insert(number, (lines, sound));
        }
        self.held.events.store(counted.values().map(|(lines, _)| lines).sum(), Ordering::Relaxed);
        self.held.bytes.store(counted.values().map(|(_, bytes)| bytes).sum(), Ordering::Relaxed);
        self.counted = counted;
        Ok(())
    }

    /// Appends as many of the lines, from the first on, as fit, and syncs them; says how many.
    pub(super) fn append(&mut self, lines: &[Vec<u8>]) -> Result<usize, WriteError> {
        let all: u64 = lines.iter().map(|line| line.len() as u64).sum();
        if self.held.bytes() + all > self.held.capacity {
            self.measure().map_err(|source| self.disk(source))?;
        }
        let mut free = self.held.capacity.saturating_sub(self.held.bytes());
        let fits = |line: &&Vec<u8>| {
            let rest = free.checked_sub(line.len() as u64);
            free = rest.unwrap_or(0);
            rest.is_some()
        };
        let count = lines.iter().take_while(fits).count();
        if let (0, Some(first)) = (count, lines.first()) {
            return Err(WriteError::Full {
                length: first.len(),
                bytes: self.held.bytes(),
                capacity: self.held.capacity,
                directory: self.directory.display().to_string(),
            });
        }
        let lines = &lines[..count];
        if let Err(source) = self.write(lines) {
            // The file may end in half a line: cut it if that can be done, and take a new one next time.
            if let Some((file, length)) = self.current.take() {
                let _ = file.set_len(length);
            }
            return Err(self.disk(source));
        }
        let bytes: u64 = lines.iter().map(|line| line.len() as u64).sum();
        let (events, length) = self.counted.entry(self.number).or_default();
        *events += count as u64;
        *length += bytes;
        self.held.events.fetch_add(count as u64, Ordering::Relaxed);
        self.held.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(count)
    }

    fn disk(&self, source: io::Error) -> WriteError {
        WriteError::Disk { directory: self.directory.display().to_string(), source }
    }

    fn write(&mut self, lines: &[Vec<u8>]) -> io::Result<()> {
        let gone = !self.path(self.number).exists();
        if gone || self.current.as_ref().is_some_and(|(_, length)| *length >= FILE_BYTES) {
            self.current = None;
        }
        if self.current.is_none() {
            create(&self.directory)?;
            self.number += 1;
            let path = self.path(self.number);
            let file = OpenOptions::new().create_new(true).append(true).mode(0o600).open(path)?;
            File::open(&self.directory)?.sync_all()?;
            self.current = Some((file, 0));
        }
        let (file, length) = self.current.as_mut().ok_or(io::ErrorKind::NotFound)?;
        let text = lines.concat();
        file.write_all(&text)?;
        file.sync_data()?;
        *length += text.len() as u64;
        Ok(())
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number:08}.ndjson"))
    }
}

/// Creates the directory where it is missing, for its owner alone: bodies are confidential.
fn create(directory: &Path) -> io::Result<()> {
    if !directory.is_dir() {
        fs::DirBuilder::new().mode(0o700).create(directory)?;
        if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            File::open(parent)?.sync_all()?;
        }
    }
    Ok(())
}

fn number(path: &Path) -> Option<u64> {
    (path.extension()? == "ndjson").then(|| path.file_stem()?.to_str()?.parse().ok())?
}

/// How many whole lines a file has, and where the last one ends.
fn sound_lines(path: &Path) -> io::Result<(u64, u64)> {
    let mut reader = BufReader::with_capacity(1 << 16, File::open(path)?);
    let (mut lines, mut at, mut end) = (0, 0, 0);
    loop {
        let chunk = reader.fill_buf()?;
        if chunk.is_empty() {
            return Ok((lines, end));
        }
        for (offset, _) in chunk.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
            lines += 1;
            end = at + offset as u64 + 1;
        }
        let read = chunk.len();
        at += read as u64;
        reader.consume(read);
    }
}

/// One dead letter as a line.
pub(super) fn line(
    event: &Event,
    address: &str,
    key: &str,
    headers: &Headers,
    refusal: &Refusal,
    attempts: u32,
) -> Vec<u8> {
    let list = headers.list(event).into_iter().map(|(name, value)| (name, Value::String(value)));
    let mut letter = json!({
        "version": VERSION,
        "time": humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string(),
        "reason": refusal.reason.name(),
        "text": refusal.text,
        "attempts": attempts,
        "id": event.id(),
        "source": &*event.origin.source,
        "event": event.event(),
        "received": humantime::format_rfc3339_millis(event.origin.received).to_string(),
        "signature": event.signature(),
        "traceparent": event.origin.traceparent,
        "address": address,
        "key": key,
        "headers": Value::Object(list.collect::<Map<_, _>>()),
    });
    match std::str::from_utf8(&event.body) {
        Ok(text) => letter["body"] = text.into(),
        Err(_) => letter["body_base64"] = BASE64_STANDARD.encode(&event.body).into(),
    }
    let mut line = letter.to_string().into_bytes();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_it_holds_across_a_restart_and_cuts_a_torn_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("dead-letters");
        let mut store = Store::open(&path, 1000).unwrap();
        store.append(&[b"{\"a\":1}\n".to_vec(), b"{\"b\":2}\n".to_vec()]).unwrap();
        assert_eq!((store.held().events(), store.held().bytes()), (2, 16));
        let file = fs::read_dir(&path).unwrap().next().unwrap().unwrap().path();
        OpenOptions::new().append(true).open(&file).unwrap().write_all(b"{\"to").unwrap();
        let mut store = Store::open(&path, 1000).unwrap();
        assert_eq!((store.held().events(), store.held().bytes()), (2, 16));
        assert_eq!(fs::read(&file).unwrap().len(), 16);
        store.append(&[b"{\"c\":3}\n".to_vec()]).unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 2);
    }

    #[test]
    fn is_full_at_its_limit_and_takes_again_when_files_are_moved_away() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::open(directory.path(), 20).unwrap();
        let line = [b"0123456789\n".to_vec()];
        store.append(&line).unwrap();
        assert!(matches!(store.append(&line), Err(WriteError::Full { bytes: 11, .. })));
        assert_eq!(store.append(&[b"12345678\n".to_vec(), b"1\n".to_vec()]).unwrap(), 1, "the first one fits");
        for entry in fs::read_dir(directory.path()).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        store.append(&line).unwrap();
        assert_eq!((store.held().events(), store.held().bytes()), (1, 11));
    }
}
