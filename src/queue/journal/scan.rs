//! The records of one segment in order, continuing over damage between them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::event::Origin;
use crate::queue::journal::files::{self, Segment, is_unreadable, read_some};
use crate::queue::journal::format::{
    ALIGNMENT, BLOCK_LENGTH, HEADER_BYTES, Header, HeaderBlock, MARK_BYTES, Mark, index,
};
use crate::queue::journal::record::Names;

/// The number of bytes read at once: large enough that a system call costs nothing per record, small beside the bodies
/// in memory.
const CHUNK: usize = 256 << 10;

/// A step through a segment.
#[derive(Debug)]
pub(super) enum Item<'a> {
    /// The next sound record.
    Record { sequence: u64, origin: Origin, renewals: u16, body: &'a [u8] },
    /// No record with these sequences is sound; the damage is at this offset.
    Damaged { sequences: Range<u64>, at: u64 },
    /// No record follows. Without a mark, the end is damaged or was never written.
    End { at: u64, is_marked: bool },
}

/// The kinds of sound marks.
enum MarkKind {
    /// A record, with the range of its payload in the buffer; none if that is damaged, or cut off by the end of the file.
    Record(Option<Range<usize>>),
    End,
}

/// A sound mark and its position.
struct FoundMark {
    offset: u64,
    sequence: u64,
    /// The offset behind the record.
    after: u64,
    kind: MarkKind,
}

/// A description of sequences without a sound record.
pub(super) fn describe(sequences: &Range<u64>) -> String {
    match (sequences.start, sequences.end - 1) {
        (first, last) if first == last => format!("record {first} is damaged"),
        (first, last) => format!("records {first} to {last} are damaged"),
    }
}

/// Handling of a block that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum UnreadableBlocks {
    /// The read fails.
    #[default]
    Fail,
    /// The block counts as zeros: the records in it are damaged.
    Skip,
}

/// The records of one segment.
#[derive(Debug)]
pub(super) struct Records {
    path: PathBuf,
    file: File,
    header: Header,
    /// The length of the file.
    length: u64,
    /// The offset at which the next mark is expected.
    offset: u64,
    /// The sequence that the next record has.
    sequence: u64,
    /// All sequences below are in the file, if it has them at all.
    committed: u64,
    /// The same when the buffer was filled: the writer may have written to its place since.
    stable: u64,
    buffer: Vec<u8>,
    /// The offset in the file at which the buffer starts.
    start: u64,
    unreadable: UnreadableBlocks,
    /// The offsets of the blocks that were skipped.
    skipped: Vec<u64>,
    names: Names,
}

impl Records {
    /// Starts before the first record.
    pub(super) fn new(directory: &Path, file: File, segment: &Segment, header: Header) -> Self {
        Self {
            path: files::path(directory, segment.number),
            file,
            header,
            length: segment.length,
            offset: HEADER_BYTES,
            sequence: header.first,
            committed: u64::MAX,
            stable: 0,
            buffer: Vec::new(),
            start: 0,
            unreadable: UnreadableBlocks::Skip,
            skipped: Vec::new(),
            names: Names::default(),
        }
    }

    /// Continues up to this sequence: all below are committed by now.
    pub(super) fn read_up_to(&mut self, end: u64, unreadable: UnreadableBlocks) {
        (self.committed, self.unreadable) = (end, unreadable);
    }

    /// The offsets of the blocks that were skipped since the last call.
    pub(super) fn take_skipped(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.skipped)
    }

    /// The same for the log.
    pub(super) fn take_findings(&mut self) -> Vec<String> {
        let text = |block| format!("{}: the block at byte {block} cannot be read", self.path.display());
        std::mem::take(&mut self.skipped).into_iter().map(text).collect()
    }

    /// The lowest sequence that a record in it can have.
    pub(super) fn first(&self) -> u64 {
        self.header.first
    }

    /// The offset behind the records passed so far.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The sequence that the next record has.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// An offset in this file, for a text.
    pub(super) fn place(&self, offset: u64) -> String {
        format!("{} at byte {offset}", self.path.display())
    }

    /// Whether the file was recycled meanwhile: its records were settled, and what was read of it is meaningless.
    pub(super) fn is_recycled(&self) -> io::Result<bool> {
        let mut block = [0; BLOCK_LENGTH];
        read_some(&self.file, &mut block, 0)?;
        Ok(HeaderBlock::parse(&block).header.is_some_and(|header| header.salt != self.header.salt))
    }

    /// Forgets bytes read ahead.
    fn forget(&mut self) {
        self.buffer.clear();
        self.stable = self.committed;
        // After a large record.
        self.buffer.shrink_to(4 * CHUNK);
    }

    /// The next record or damage, or the end, which stays the next.
    pub(super) fn next(&mut self) -> io::Result<Item<'_>> {
        debug_assert!(self.sequence < self.committed, "read beyond what is committed");
        if self.buffer.is_empty() {
            self.stable = self.committed;
        }
        let mut found = self.find()?;
        let is_next =
            |mark: &FoundMark| matches!(mark.kind, MarkKind::Record(Some(_))) && mark.sequence == self.sequence;
        if self.stable < self.committed
            && !found.as_ref().is_some_and(|mark| is_next(mark) && mark.sequence < self.stable)
        {
            self.forget();
            found = self.find()?;
        }
        let Some(mark) = found else { return Ok(Item::End { at: self.offset, is_marked: false }) };
        let reached = mark.sequence.min(self.committed);
        if reached > self.sequence {
            let sequences = std::mem::replace(&mut self.sequence, reached)..reached;
            return Ok(Item::Damaged { sequences, at: self.offset });
        }
        let MarkKind::Record(payload) = mark.kind else {
            self.offset = mark.offset;
            return Ok(Item::End { at: mark.offset, is_marked: true });
        };
        (self.offset, self.sequence) = (mark.after, mark.sequence + 1);
        match payload.and_then(|payload| self.names.decode(&self.buffer[payload])) {
            Some((origin, renewals, body)) => Ok(Item::Record { sequence: mark.sequence, origin, renewals, body }),
            None => Ok(Item::Damaged { sequences: mark.sequence..self.sequence, at: mark.offset }),
        }
    }

    /// Whether something that looks like a record follows the end mark reached.
    pub(super) fn has_remains(&mut self) -> io::Result<bool> {
        self.offset += MARK_BYTES;
        Ok(self.find()?.is_some())
    }

    /// The next sound mark at or behind this position; none up to the end of the segment. Does not move.
    fn find(&mut self) -> io::Result<Option<FoundMark>> {
        self.search().map_err(|error| files::at(&self.path, &error))
    }

    fn search(&mut self) -> io::Result<Option<FoundMark>> {
        let end = self.length.min(self.header.size);
        let mut offset = self.offset;
        while offset + MARK_BYTES <= end {
            let Some(at) = self.window(offset, MARK_BYTES)? else { break };
            let bytes = &self.buffer[at];
            let mark = Mark::decode(bytes);
            if self.is_possible(mark, offset)
                && let Some(sum) = Mark::sum(bytes, self.header.salt)
            {
                return self.found(offset, mark, sum).map(Some);
            }
            offset += ALIGNMENT;
        }
        Ok(None)
    }

    /// Cheaper checks than a checksum: the numbers are dense, and a record ends in its segment.
    fn is_possible(&self, mark: Mark, offset: u64) -> bool {
        let most = self.header.first.saturating_add(self.header.size / MARK_BYTES);
        let fits = mark.length == Mark::END
            || offset + Mark::record_bytes(u64::from(mark.length)) + MARK_BYTES <= self.header.size;
        (self.sequence..=most).contains(&mark.sequence) && fits
    }

    fn found(&mut self, offset: u64, mark: Mark, sum: u32) -> io::Result<FoundMark> {
        let found = |after, kind| Ok(FoundMark { offset, sequence: mark.sequence, after, kind });
        if mark.length == Mark::END {
            return found(offset, MarkKind::End);
        }
        let whole = Mark::record_bytes(u64::from(mark.length));
        let payload = self.window(offset, whole)?.and_then(|at| {
            let payload = at.start + 16..at.start + 16 + mark.length as usize;
            let stored = &self.buffer[payload.end..payload.end + 4];
            let is_sound = *stored == crc32c::crc32c_append(sum, &self.buffer[payload.clone()]).to_le_bytes();
            is_sound.then_some(payload)
        });
        found(offset + whole, MarkKind::Record(payload))
    }

    /// The range in the buffer of these bytes of the file; none if the file is shorter.
    fn window(&mut self, offset: u64, length: u64) -> io::Result<Option<Range<usize>>> {
        if offset + length > self.length {
            return Ok(None);
        }
        let held = self.start..self.start + self.buffer.len() as u64;
        if offset < held.start || offset + length > held.end {
            let wanted = length.max(CHUNK as u64).min(self.length - offset);
            self.buffer.resize(index(wanted), 0);
            self.start = offset;
            let read = match read_some(&self.file, &mut self.buffer, offset) {
                Err(error) if is_unreadable(&error) && self.unreadable == UnreadableBlocks::Skip => {
                    self.read_blocks(offset, error)
                }
                read => read,
            };
            self.buffer.truncate(*read.as_ref().unwrap_or(&0));
            if (read? as u64) < length {
                return Ok(None);
            }
        }
        let from = index(offset - self.start);
        Ok(Some(from..from + index(length)))
    }

    /// Fills the buffer block by block, with zeros for each unreadable block. If no block can be read, not even that of
    /// the header, the file or the disk has failed, and the error is returned.
    fn read_blocks(&mut self, offset: u64, error: io::Error) -> io::Result<usize> {
        if read_some(&self.file, &mut [0; BLOCK_LENGTH], 0).is_err() {
            return Err(error);
        }
        let mut done = 0;
        while done < self.buffer.len() {
            let at = offset + done as u64;
            let block = at - at % BLOCK_LENGTH as u64;
            let end = index(block + BLOCK_LENGTH as u64 - offset);
            let piece = done..end.min(self.buffer.len());
            match read_some(&self.file, &mut self.buffer[piece.clone()], at) {
                Ok(read) if read < piece.len() => return Ok(done + read),
                Ok(_) => {}
                Err(error) if is_unreadable(&error) => {
                    self.buffer[piece.clone()].fill(0);
                    if !self.skipped.contains(&block) {
                        self.skipped.push(block);
                    }
                }
                Err(error) => return Err(error),
            }
            done = piece.end;
        }
        Ok(done)
    }
}
