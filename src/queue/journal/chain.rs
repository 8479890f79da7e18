//! The records of one segment in order, continuing over damage between them.

use std::fs::File;
use std::io;
use std::ops::Range;

use crate::queue::journal::files::{is_unreadable, read_some};
use crate::queue::journal::format::{ALIGNMENT, BLOCK_LENGTH, HEADER_BYTES, Header, HeaderBlock, MARK_BYTES, Mark};

/// The number of bytes read at once: large enough that a system call costs nothing per record, small beside the bodies
/// in memory.
const CHUNK: u64 = 256 << 10;

/// The kinds of sound marks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum MarkKind {
    /// A record, with the range of its payload in the buffer.
    Record(Range<usize>),
    /// A record whose payload is damaged, or cut off by the end of the file.
    Damaged,
    /// The end: all records below this sequence are before it, or in earlier segments.
    End,
}

/// A sound mark and its position.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) offset: u64,
    /// The offset at which the next mark is expected.
    pub(super) after: u64,
    pub(super) sequence: u64,
    pub(super) kind: MarkKind,
}

/// Handling of a block that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnreadableBlocks {
    /// The read fails.
    Fail,
    /// The block counts as zeros: the records in it are damaged.
    Skip,
}

/// Scans the records of one segment.
#[derive(Debug)]
pub(super) struct SegmentScanner {
    file: File,
    header: Header,
    /// The length of the file.
    length: u64,
    /// The offset at which the next mark is expected.
    offset: u64,
    /// The lowest sequence that the next mark can have.
    min_sequence: u64,
    buffer: Vec<u8>,
    /// The offset in the file at which the buffer starts.
    start: u64,
    unreadable: UnreadableBlocks,
    /// The offsets of the blocks that were skipped.
    skipped: Vec<u64>,
}

impl SegmentScanner {
    /// Starts before the first record.
    pub(super) fn new(file: File, header: Header, length: u64) -> Self {
        Self {
            file,
            header,
            length,
            offset: HEADER_BYTES,
            min_sequence: header.first,
            buffer: Vec::new(),
            start: 0,
            unreadable: UnreadableBlocks::Fail,
            skipped: Vec::new(),
        }
    }

    /// Changes how unreadable blocks are handled.
    pub(super) fn handle_unreadable(&mut self, blocks: UnreadableBlocks) {
        self.unreadable = blocks;
    }

    /// The offsets of the blocks that were skipped since the last call.
    pub(super) fn take_skipped(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.skipped)
    }

    pub(super) fn header(&self) -> Header {
        self.header
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn min_sequence(&self) -> u64 {
        self.min_sequence
    }

    /// Whether the file was recycled meanwhile: its records were settled, and what was read of it is meaningless.
    pub(super) fn is_recycled(&self) -> io::Result<bool> {
        let mut block = [0; BLOCK_LENGTH];
        read_some(&self.file, &mut block, 0)?;
        Ok(HeaderBlock::parse(&block).header.is_some_and(|header| header.salt != self.header.salt))
    }

    /// Forgets bytes read ahead: the writer may have written there since.
    pub(super) fn forget(&mut self) {
        self.buffer.clear();
        // After a large record.
        self.buffer.shrink_to(4 * usize::try_from(CHUNK).unwrap_or_default());
    }

    /// The next sound mark at or behind this position; none up to the end of the segment. Does not move.
    pub(super) fn peek(&mut self) -> io::Result<Option<Item>> {
        let end = self.length.min(self.header.size);
        let mut offset = self.offset;
        while offset + MARK_BYTES <= end {
            let Some(at) = self.window(offset, MARK_BYTES)? else { break };
            let bytes = &self.buffer[at];
            let mark = Mark::decode(bytes);
            if self.is_possible(mark, offset)
                && let Some(sum) = Mark::sum(bytes, self.header.salt)
            {
                return self.item(offset, mark, sum).map(Some);
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
        (self.min_sequence..=most).contains(&mark.sequence) && fits
    }

    fn item(&mut self, offset: u64, mark: Mark, sum: u32) -> io::Result<Item> {
        let mut item = Item { offset, after: offset, sequence: mark.sequence, kind: MarkKind::End };
        if mark.length != Mark::END {
            let whole = Mark::record_bytes(u64::from(mark.length));
            item.after = offset + whole;
            item.kind = MarkKind::Damaged;
            if let Some(at) = self.window(offset, whole)? {
                let payload = at.start + 16..at.start + 16 + mark.length as usize;
                let stored = &self.buffer[payload.end..payload.end + 4];
                if *stored == crc32c::crc32c_append(sum, &self.buffer[payload.clone()]).to_le_bytes() {
                    item.kind = MarkKind::Record(payload);
                }
            }
        }
        Ok(item)
    }

    /// The payload of a record just found.
    pub(super) fn payload(&self, at: &Range<usize>) -> &[u8] {
        &self.buffer[at.clone()]
    }

    /// Moves behind a record.
    pub(super) fn advance(&mut self, item: &Item) {
        self.offset = item.after;
        self.min_sequence = item.sequence + u64::from(item.kind != MarkKind::End);
    }

    /// Moves over an end mark, to see whether anything follows it.
    pub(super) fn advance_over_end(&mut self) {
        self.offset += MARK_BYTES;
    }

    /// The range in the buffer of these bytes of the file; none if the file is shorter.
    fn window(&mut self, offset: u64, length: u64) -> io::Result<Option<Range<usize>>> {
        if offset + length > self.length {
            return Ok(None);
        }
        let held = self.start..self.start + self.buffer.len() as u64;
        if offset < held.start || offset + length > held.end {
            let wanted = length.max(CHUNK).min(self.length - offset);
            self.buffer.resize(usize::try_from(wanted).map_err(io::Error::other)?, 0);
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
        let from = usize::try_from(offset - self.start).map_err(io::Error::other)?;
        let length = usize::try_from(length).map_err(io::Error::other)?;
        Ok(Some(from..from + length))
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
            let end = usize::try_from(block + BLOCK_LENGTH as u64 - offset).map_err(io::Error::other)?;
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
