//! Reading single records by their sequences, while the writer continues.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use crate::queue::journal::files::{self, UnreadableSegment};
use crate::queue::journal::record::Stored;
use crate::queue::journal::records::{Item, Records, UnreadableBlocks};

/// Finds records. Keeps its position between calls.
#[derive(Debug, Default)]
pub(crate) struct RecordLookup {
    directory: PathBuf,
    records: Option<Records>,
    /// The first sequence of the next segment, as of when this one was opened.
    until: u64,
    unreadable: UnreadableBlocks,
    /// Segments whose headers cannot be read, and that are skipped.
    unreadable_segments: BTreeSet<u32>,
}

/// The result of a search.
#[derive(Debug, Default)]
pub(crate) struct FoundRecords {
    pub(crate) records: Vec<Stored>,
    /// The number of sequences that were looked for.
    pub(crate) looked: usize,
}

impl RecordLookup {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory, ..Self::default() }
    }

    /// Skips unreadable blocks in the next search: it finds no records in them.
    pub(crate) fn skip_unreadable(&mut self) {
        self.unreadable = UnreadableBlocks::Skip;
    }

    /// Looks for these sequences, in ascending order, until it has about so many bytes of bodies. A record that was
    /// committed is missing only if it is damaged, or if its segment was used again since.
    ///
    /// # Errors
    /// A segment cannot be read; the same call may be tried again.
    pub(crate) fn find(&mut self, sequences: &[u64], bytes: usize) -> io::Result<FoundRecords> {
        let (mut found, mut held) = (FoundRecords::default(), 0);
        let end = sequences.last().map_or(0, |last| last + 1);
        if let Some(records) = &mut self.records {
            records.read_up_to(end, self.unreadable);
        }
        for sequence in sequences {
            if held >= bytes && found.looked > 0 {
                break;
            }
            let record = self.record(*sequence, end);
            let record = record.inspect_err(|_| self.records = None)?;
            held += record.as_ref().map_or(0, |record| record.body.len());
            found.records.extend(record);
            found.looked += 1;
        }
        self.unreadable = UnreadableBlocks::Fail;
        Ok(found)
    }

    fn record(&mut self, sequence: u64, end: u64) -> io::Result<Option<Stored>> {
        let is_here = |records: &Records| records.sequence() <= sequence && sequence < self.until;
        let mut is_fresh = !self.records.as_ref().is_some_and(is_here);
        loop {
            if is_fresh && !self.enter(sequence, end)? {
                return Ok(None);
            }
            let found = self.scan(sequence)?;
            // Another segment may have begun since this one was opened.
            if found.is_some() || is_fresh {
                return Ok(found);
            }
            is_fresh = true;
        }
    }

    /// Reads on to the record of this sequence.
    fn scan(&mut self, wanted: u64) -> io::Result<Option<Stored>> {
        let Some(records) = &mut self.records else { return Ok(None) };
        while records.sequence() <= wanted {
            match records.next()? {
                Item::Record { sequence, origin, body } if sequence == wanted => {
                    return Ok(Some(Stored { sequence, origin, body: body.into() }));
                }
                Item::End { .. } => break,
                Item::Record { .. } | Item::Damaged { .. } => {}
            }
        }
        Ok(None)
    }

    /// Opens the segment that has this sequence; false if there is none.
    fn enter(&mut self, sequence: u64, end: u64) -> io::Result<bool> {
        self.records = None;
        let (segments, unreadable) = files::read_headers(&self.directory)?;
        for UnreadableSegment { number, error } in unreadable {
            if self.unreadable == UnreadableBlocks::Skip {
                self.unreadable_segments.insert(number);
            } else if !self.unreadable_segments.contains(&number) {
                return Err(error);
            }
        }
        let firsts = segments.iter().filter_map(|segment| Some((segment.block.header?.first, segment.number)));
        let (mut chosen, mut until) = (None, u64::MAX);
        for (first, number) in firsts {
            if first > sequence {
                until = first;
                break;
            }
            chosen = Some((first, number));
        }
        let Some((first, number)) = chosen else { return Ok(false) };
        let Some((file, segment)) = files::read_header(&self.directory, number)? else { return Ok(false) };
        // It may have been used again since it was listed.
        let Some(header) = segment.block.header.filter(|header| header.first == first) else { return Ok(false) };
        self.records.insert(Records::new(&self.directory, file, &segment, header)).read_up_to(end, self.unreadable);
        self.until = until;
        Ok(true)
    }
}
