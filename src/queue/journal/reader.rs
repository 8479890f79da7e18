//! Reading: the records of a range of sequences, continuing over damage between them, while the writer continues.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use crate::queue::journal::chain::{Item, MarkKind, SegmentScanner, UnreadableBlocks};
use crate::queue::journal::files;
use crate::queue::journal::record::{Names, Stored};

/// The result of a read.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// The records, in order.
    pub(crate) records: Vec<Stored>,
    /// The sequence to continue with.
    pub(crate) next: u64,
    /// The number of skipped sequences without a sound record.
    pub(crate) damaged: u64,
    /// The findings, for the log.
    pub(crate) findings: Vec<String>,
}

impl Batch {
    /// Skips sequences without a sound record.
    fn skip(&mut self, to: u64, why: impl FnOnce() -> String) {
        if to > self.next {
            let count = to - self.next;
            let (first, last) = (self.next, to - 1);
            let which =
                if count == 1 { format!("record {first} is") } else { format!("records {first} to {last} are") };
            self.findings.push(format!("{}: {which} damaged", why()));
            self.damaged += count;
            self.next = to;
        }
    }
}

/// The first sequence of a segment.
#[derive(Clone, Copy, Debug)]
struct SegmentEntry {
    first: u64,
    number: u32,
}

/// Reads records back. Keeps its position between calls.
#[derive(Debug)]
pub(crate) struct Reader {
    directory: PathBuf,
    /// The known segments, oldest first; listed again when they do not reach far enough. A segment with unsettled
    /// records is never recycled, so its entry stays true.
    index: Vec<SegmentEntry>,
    /// All segments that start below this sequence are in the index. Segments that the writer recycles while they are
    /// listed are not: of two, only the later one may be listed.
    known: u64,
    scanner: Option<SegmentScanner>,
    number: u32,
    /// The sequence at the current position.
    place: u64,
    /// Bytes read ahead are reliable below this sequence.
    stable: u64,
    names: Names,
    unreadable: UnreadableBlocks,
    /// Segments that were skipped because their header could not be read.
    unreadable_segments: BTreeSet<u32>,
}

impl Reader {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            index: Vec::new(),
            known: 0,
            scanner: None,
            number: 0,
            place: 0,
            stable: 0,
            names: Names::default(),
            unreadable: UnreadableBlocks::Fail,
            unreadable_segments: BTreeSet::new(),
        }
    }

    /// Skips unreadable blocks in the next call of [`Reader::read`]: the records in them are damaged.
    pub(crate) fn skip_unreadable(&mut self) {
        self.unreadable = UnreadableBlocks::Skip;
    }

    /// Reads records of the sequences `from..end`, all of which are committed: at most `most` and about `bytes` bytes of
    /// bodies, but at least one if there is one.
    ///
    /// # Errors
    /// A segment cannot be read. The position is kept: the same call may be tried again.
    pub(crate) fn read(&mut self, from: u64, end: u64, most: usize, bytes: usize) -> io::Result<Batch> {
        let mut batch = Batch { next: from, ..Batch::default() };
        if self.place != from {
            self.scanner = None;
        }
        if let Some(scanner) = &mut self.scanner {
            scanner.handle_unreadable(self.unreadable);
        }
        let done = self.fill(&mut batch, end, most, bytes);
        self.note_skipped(&mut batch);
        self.unreadable = UnreadableBlocks::Fail;
        self.place = batch.next;
        if done.is_err() {
            self.scanner = None;
            self.place = 0;
        }
        done.map(|()| batch)
    }

    fn note_skipped(&mut self, batch: &mut Batch) {
        let Some(scanner) = &mut self.scanner else { return };
        for block in scanner.take_skipped() {
            let path = files::path(&self.directory, self.number);
            batch.findings.push(format!("{}: the block at byte {block} cannot be read", path.display()));
        }
    }

    fn fill(&mut self, batch: &mut Batch, end: u64, most: usize, bytes: usize) -> io::Result<()> {
        let mut held = 0;
        while batch.next < end && batch.records.len() < most && (held < bytes || batch.records.is_empty()) {
            let Some(scanner) = &mut self.scanner else {
                if !self.enter(batch.next, None, end)? {
                    batch.skip(end, || format!("{}: no segment has them", self.directory.display()));
                }
                continue;
            };
            let item =
                scanner.peek().map_err(|error| files::at(&files::path(&self.directory, self.number), &error))?;
            let plain = |item: &Item| matches!(item.kind, MarkKind::Record(_)) && item.sequence <= batch.next;
            if self.stable < end && !item.as_ref().is_some_and(|item| plain(item) && item.sequence < self.stable) {
                // Bytes read ahead may be older than those that the writer has written there since.
                scanner.forget();
                self.stable = end;
                continue;
            }
            match item {
                Some(item) if item.kind != MarkKind::End => held += self.take(batch, &item, end),
                other => self.leave(batch, other.as_ref(), end)?,
            }
        }
        Ok(())
    }

    /// Takes a record that was found; returns its size.
    fn take(&mut self, batch: &mut Batch, item: &Item, end: u64) -> usize {
        let Some(scanner) = &mut self.scanner else { return 0 };
        let path = || files::path(&self.directory, self.number).display().to_string();
        let at = scanner.offset();
        batch.skip(item.sequence.min(end), || format!("{} at byte {at}", path()));
        if item.sequence >= end {
            return 0;
        }
        let mut size = 0;
        if item.sequence == batch.next {
            let decoded = match &item.kind {
                MarkKind::Record(payload) => self.names.decode(scanner.payload(payload)),
                _ => None,
            };
            if let Some((origin, body)) = decoded {
                size = body.len();
                batch.records.push(Stored { sequence: item.sequence, origin, body: body.into() });
                batch.next += 1;
            } else {
                batch.skip(item.sequence + 1, || format!("{} at byte {}", path(), item.offset));
            }
        }
        scanner.advance(item);
        size
    }

    /// Continues behind the last record of a segment: at its end mark, or where nothing sound follows.
    fn leave(&mut self, batch: &mut Batch, mark: Option<&Item>, end: u64) -> io::Result<()> {
        let Some(scanner) = &mut self.scanner else { return Ok(()) };
        let (at, first) = (scanner.offset(), scanner.header().first);
        let path = files::path(&self.directory, self.number);
        let place = || format!("{} at byte {at}", path.display());
        if let Some(mark) = mark {
            batch.skip(mark.sequence.min(end), place);
            if batch.next >= end {
                return Ok(());
            }
        }
        let torn = mark.is_none() && !scanner.is_recycled()?;
        self.note_skipped(batch);
        if self.enter(batch.next, Some(first), end)? {
            let first = self.scanner.as_ref().map_or(end, |scanner| scanner.header().first);
            if torn && first <= batch.next {
                batch.findings.push(format!("{}: the end mark is damaged; no record is", place()));
            }
            batch.skip(first.min(end), place);
        } else {
            batch.skip(end, place);
        }
        Ok(())
    }

    /// Opens the segment that has this sequence, or, with `after`, the one after that; false if there is none, and then
    /// the position is kept.
    fn enter(&mut self, sequence: u64, after: Option<u64>, end: u64) -> io::Result<bool> {
        for fresh in [false, true] {
            if fresh {
                self.list_segments(end)?;
            } else if sequence >= self.known {
                continue;
            }
            let Some(entry) = self.choose(sequence, after) else { continue };
            let looked = match files::read_header(&self.directory, entry.number) {
                // Its header became unreadable after it was listed; the next list does not have it.
                Err(error) if files::is_unreadable(&error) && self.unreadable == UnreadableBlocks::Skip => None,
                looked => looked?,
            };
            let Some((file, segment)) = looked else { continue };
            // It may have been recycled since it was listed.
            if let Some(header) = segment.block.header
                && header.first == entry.first
            {
                let mut scanner = SegmentScanner::new(file, header, segment.length);
                scanner.handle_unreadable(self.unreadable);
                self.scanner = Some(scanner);
                self.number = entry.number;
                self.stable = 0;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn choose(&self, sequence: u64, after: Option<u64>) -> Option<SegmentEntry> {
        let Some(first) = after else {
            let below = self.index.partition_point(|entry| entry.first <= sequence);
            return if below > 0 { self.index.get(below - 1) } else { self.index.first() }.copied();
        };
        self.index.get(self.index.partition_point(|entry| entry.first <= first)).copied()
    }

    /// Lists the segments that start below a committed sequence.
    fn list_segments(&mut self, end: u64) -> io::Result<()> {
        let (segments, unreadable) = files::read_headers(&self.directory)?;
        for segment in unreadable {
            if self.unreadable == UnreadableBlocks::Skip {
                self.unreadable_segments.insert(segment.number);
            } else if !self.unreadable_segments.contains(&segment.number) {
                return Err(segment.error);
            }
        }
        let entry = |segment: &files::Segment| {
            segment.block.header.map(|header| SegmentEntry { first: header.first, number: segment.number })
        };
        self.index = segments.iter().filter_map(entry).filter(|entry| entry.first < end).collect();
        self.known = end;
        Ok(())
    }
}
