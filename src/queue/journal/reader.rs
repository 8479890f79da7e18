//! Reading, while the writer continues: the records of a range of sequences, continuing over damage between them, or single
//! records.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::queue::journal::files::{self, UnreadableSegment};
use crate::queue::journal::record::Stored;
use crate::queue::journal::scan::{Item, Records, UnreadableBlocks, describe};

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
    fn skip(&mut self, to: u64, place: impl FnOnce() -> String) {
        if to > self.next {
            self.findings.push(format!("{}: {}", place(), describe(&(self.next..to))));
            self.damaged += to - self.next;
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
#[derive(Debug, Default)]
pub(crate) struct Reader {
    directory: PathBuf,
    /// The known segments, oldest first; listed again when they do not reach far enough. A segment with unsettled
    /// records is never recycled, so its entry stays true.
    index: Vec<SegmentEntry>,
    /// All segments that start below this sequence are in the index. Segments that the writer recycles while they are
    /// listed are not: of two, only the later one may be listed.
    known: u64,
    /// The segment that is read.
    records: Option<Records>,
    /// The sequence at the current position.
    position: u64,
    /// All sequences below are committed.
    end: u64,
    unreadable: UnreadableBlocks,
    /// Segments that were skipped because their header could not be read.
    unreadable_segments: BTreeSet<u32>,
}

impl Reader {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory, ..Self::default() }
    }

    /// Another reader of the same journal.
    pub(crate) fn another(&self) -> Self {
        Self::new(self.directory.clone())
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The handling of unreadable blocks in this call.
    pub(super) fn take_unreadable(&mut self) -> UnreadableBlocks {
        std::mem::take(&mut self.unreadable)
    }

    /// Skips unreadable blocks in the next call: the records in them are damaged.
    pub(crate) fn skip_unreadable(&mut self) {
        self.unreadable = UnreadableBlocks::Skip;
    }

    /// Reads records of the sequences `from..end`, all of which are committed: at most `most` and about `bytes` bytes of
    /// bodies, but at least one if there is one.
    ///
    /// # Errors
    /// A segment cannot be read. The position is kept: the same call may be tried again.
    pub(crate) fn read(&mut self, from: u64, end: u64, most: usize, bytes: usize) -> io::Result<Batch> {
        let mut batch = Batch::default();
        let done = self.read_part(&mut batch, from..end, end, |batch, held| {
            batch.records.len() < most && (held < bytes || batch.records.is_empty())
        });
        self.finish(done, batch)
    }

    /// Looks for these sequences, in ascending order, until it has about so many bytes of bodies. A record that was
    /// committed is missing only if it is damaged, or if its segment was used again since.
    ///
    /// # Errors
    /// A segment cannot be read; the same call may be tried again.
    pub(crate) fn find(&mut self, sequences: &[u64], bytes: usize) -> io::Result<Batch> {
        let (mut batch, mut held, mut done) = (Batch::default(), 0, Ok(()));
        let end = sequences.last().map_or(0, |last| last + 1);
        for sequence in sequences {
            let before = batch.records.len();
            done = self.read_part(&mut batch, *sequence..*sequence + 1, end, |_, _| true);
            held += batch.records[before..].iter().map(|stored| stored.body.len()).sum::<usize>();
            if held >= bytes || done.is_err() {
                break;
            }
        }
        self.finish(done, batch)
    }

    fn finish(&mut self, done: io::Result<()>, mut batch: Batch) -> io::Result<Batch> {
        self.note_skipped(&mut batch);
        self.unreadable = UnreadableBlocks::Fail;
        if done.is_err() {
            self.records = None;
        }
        done.map(|()| batch)
    }

    /// Reads on from the first of these sequences while more are wanted; all below `end` are committed.
    fn read_part(
        &mut self,
        batch: &mut Batch,
        wanted: Range<u64>,
        end: u64,
        wants_more: impl Fn(&Batch, usize) -> bool,
    ) -> io::Result<()> {
        batch.next = wanted.start;
        self.end = end;
        // Where what was wanted before does not exist any more, the records that were found instead begin later.
        let is_past = self.records.as_ref().is_some_and(|records| records.sequence() > batch.next);
        if is_past || (self.position != batch.next && !self.is_ahead_here(batch.next)) {
            self.records = None;
        }
        if let Some(records) = &mut self.records {
            records.read_up_to(end, self.unreadable);
        }
        let done = self.fill(batch, wanted.end, wants_more);
        self.position = batch.next;
        done
    }

    /// Whether a sequence is known to be further ahead in the segment that is read.
    fn is_ahead_here(&self, sequence: u64) -> bool {
        let is_here = |records: &Records| {
            let entry = self.choose(sequence, None).filter(|_| sequence < self.known);
            records.sequence() <= sequence && entry.is_some_and(|entry| entry.first == records.first())
        };
        self.records.as_ref().is_some_and(is_here)
    }

    fn note_skipped(&mut self, batch: &mut Batch) {
        batch.findings.extend(self.records.as_mut().into_iter().flat_map(Records::take_findings));
    }

    fn fill(&mut self, batch: &mut Batch, end: u64, wants_more: impl Fn(&Batch, usize) -> bool) -> io::Result<()> {
        let mut held = 0;
        while batch.next < end && wants_more(batch, held) {
            let Some(records) = &mut self.records else {
                let first = self.enter(batch.next, None)?;
                batch.skip(first.min(end), || format!("{}: no segment has them", self.directory.display()));
                continue;
            };
            match records.next()? {
                Item::Record { sequence, .. } if sequence < batch.next => {}
                Item::Record { sequence, origin, renewals, body } => {
                    held += body.len();
                    debug_assert_eq!(sequence, batch.next, "what is missing before it is reported first");
                    batch.records.push(Stored { sequence, origin, renewals, body: body.into() });
                    batch.next = sequence + 1;
                }
                Item::Damaged { sequences, at } => batch.skip(sequences.end, || records.place(at)),
                Item::End { at, is_marked } => self.leave(batch, at, is_marked, end)?,
            }
        }
        Ok(())
    }

    /// Continues behind the last record of a segment: at its end mark, or where nothing sound follows.
    fn leave(&mut self, batch: &mut Batch, at: u64, is_marked: bool, end: u64) -> io::Result<()> {
        let Some(records) = &self.records else { return Ok(()) };
        let (place, first) = (records.place(at), records.first());
        let is_torn = !is_marked && !records.is_recycled()?;
        self.note_skipped(batch);
        let first = self.enter(batch.next, Some(first))?;
        if is_torn && first <= batch.next {
            batch.findings.push(format!("{place}: the end mark is damaged; no record is"));
        }
        batch.skip(first.min(end), || place);
        Ok(())
    }

    /// Opens the segment that has this sequence, or, with `after`, the one after that; returns its first sequence. If there
    /// is none, the position is kept, and nothing of what is committed follows.
    fn enter(&mut self, sequence: u64, after: Option<u64>) -> io::Result<u64> {
        for fresh in [false, true] {
            if fresh {
                self.list_segments()?;
            } else if sequence >= self.known {
                continue;
            }
            let Some(entry) = self.choose(sequence, after) else { continue };
            let opened = match files::read_header(&self.directory, entry.number) {
                // Its header became unreadable after it was listed; the next list does not have it.
                Err(error) if files::is_unreadable(&error) && self.unreadable == UnreadableBlocks::Skip => None,
                opened => opened?,
            };
            let Some((file, segment)) = opened else { continue };
            // It may have been recycled since it was listed.
            if let Some(header) = segment.block.header.filter(|header| header.first == entry.first) {
                let records = self.records.insert(Records::new(&self.directory, file, &segment, header));
                records.read_up_to(self.end, self.unreadable);
                return Ok(header.first);
            }
        }
        Ok(self.end)
    }

    fn choose(&self, sequence: u64, after: Option<u64>) -> Option<SegmentEntry> {
        let below = |first: u64| self.index.partition_point(|entry| entry.first <= first);
        let at = after.map_or_else(|| below(sequence).saturating_sub(1), below);
        self.index.get(at).copied()
    }

    /// Lists the segments that start below a committed sequence.
    fn list_segments(&mut self) -> io::Result<()> {
        let (segments, unreadable) = files::read_headers(&self.directory)?;
        for UnreadableSegment { number, error } in unreadable {
            if self.unreadable == UnreadableBlocks::Skip {
                self.unreadable_segments.insert(number);
            } else if !self.unreadable_segments.contains(&number) {
                return Err(error);
            }
        }
        let entry = |segment: &files::Segment| {
            segment.block.header.map(|header| SegmentEntry { first: header.first, number: segment.number })
        };
        self.index = segments.iter().filter_map(entry).filter(|entry| entry.first < self.end).collect();
        self.known = self.end;
        Ok(())
    }
}
