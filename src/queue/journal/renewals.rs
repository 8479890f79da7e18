//! The records of events that waited for their address and were written again, as a start finds them, and their order.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::time::SystemTime;

use crate::queue::journal::files;
use crate::queue::journal::reader::Reader;
use crate::queue::journal::scan::{Item, Records, UnreadableBlocks};

/// A record that was written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RenewedRecord {
    pub(crate) sequence: u64,
    /// The size of its body.
    pub(crate) bytes: usize,
}

/// The records of a range that were written again.
#[derive(Debug, Default)]
pub(crate) struct FoundRenewals {
    /// In the order of their events, which are all older than those of the other records.
    pub(crate) renewed: Vec<RenewedRecord>,
    /// Copies of records that are in the range, too.
    pub(crate) repeated: Vec<u64>,
    /// The receipt of the oldest of these events.
    pub(crate) oldest: Option<SystemTime>,
}

/// An event as a scan knows it: time of receipt, checksum and size of the body.
type EventMark = (SystemTime, u32, usize);

impl Reader {
    /// The records of this range, all committed, that were written again. The oldest records are written again first, behind
    /// all others, and one batch in the order of its events. So those that were written again more often are older, and of
    /// those that were written again equally often the first.
    ///
    /// # Errors
    /// A segment cannot be read; the same call may be tried again.
    pub(crate) fn renewals(&mut self, range: &Range<u64>) -> io::Result<FoundRenewals> {
        let mut copies: BTreeMap<(Reverse<u16>, u64), EventMark> = BTreeMap::new();
        let unreadable = self.take_unreadable();
        self.scan(range, unreadable, &mut |sequence, renewals, mark| {
            if renewals > 0 {
                copies.insert((Reverse(renewals), sequence), mark);
            }
        })?;
        let Some(newest) = copies.keys().map(|(_, sequence)| *sequence).max() else {
            return Ok(FoundRenewals::default());
        };
        // The record of each of these that counts, as far as it is in the range: the one written again least often, or first.
        let mut least: HashMap<EventMark, (u16, u64)> = HashMap::new();
        for ((Reverse(often), sequence), mark) in &copies {
            let record = (*often, *sequence);
            least.entry(*mark).and_modify(|least| *least = record.min(*least)).or_insert(record);
        }
        self.scan(&(range.start..newest), unreadable, &mut |sequence, renewals, mark| {
            if let Some(least) = least.get_mut(&mark) {
                *least = (renewals, sequence).min(*least);
            }
        })?;
        let mut found = FoundRenewals::default();
        for ((Reverse(often), sequence), mark) in copies {
            if least.get(&mark).is_some_and(|least| *least < (often, sequence)) {
                found.repeated.push(sequence);
            } else {
                found.renewed.push(RenewedRecord { sequence, bytes: mark.2 });
                found.oldest = Some(found.oldest.map_or(mark.0, |oldest| oldest.min(mark.0)));
            }
        }
        Ok(found)
    }

    /// Visits all sound records of this range.
    fn scan(
        &self,
        range: &Range<u64>,
        unreadable: UnreadableBlocks,
        visit: &mut dyn FnMut(u64, u16, EventMark),
    ) -> io::Result<()> {
        // What is in unreadable segments is reported when it is read.
        let segments = files::read_headers(self.directory())?.0;
        let firsts: Vec<u64> =
            segments.iter().map(|segment| segment.block.header.map_or(0, |header| header.first)).collect();
        for (at, segment) in segments.iter().enumerate() {
            let Some(header) = segment.block.header.filter(|header| header.first < range.end) else { continue };
            if firsts[at + 1..].iter().any(|first| (1..=range.start).contains(first)) {
                continue;
            }
            let Some((file, segment)) = files::read_header(self.directory(), segment.number)? else { continue };
            let mut records = Records::new(self.directory(), file, &segment, header);
            records.read_up_to(range.end, unreadable);
            while records.sequence() < range.end {
                match records.next()? {
                    Item::Record { sequence, origin, renewals, body } if sequence >= range.start => {
                        visit(sequence, renewals, (origin.received, crc32c::crc32c(body), body.len()));
                    }
                    Item::End { .. } => break,
                    Item::Record { .. } | Item::Damaged { .. } => {}
                }
            }
        }
        Ok(())
    }
}
