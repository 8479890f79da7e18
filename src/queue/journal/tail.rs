//! The end of the last segment, where writing continues: found at the start, and repaired if a crash or the disk tore
//! it.

use std::io;

use crate::queue::journal::chain::{MarkKind, SegmentScanner};

/// The end of the records in the last segment.
#[derive(Debug)]
pub(super) struct SegmentTail {
    /// The offset of the next record.
    pub(super) offset: u64,
    /// The sequence of the next record.
    pub(super) next: u64,
    /// There is no sound end mark.
    pub(super) torn: bool,
    /// Remains of an interrupted commit follow a sound end mark.
    pub(super) stale: bool,
    /// The offset of the first unsettled record, or of the end.
    pub(super) unsettled: u64,
}

/// Reads the last segment to its end. `short` means that the file is shorter than its header says, so the missing part
/// had records. All records below the watermark are settled.
pub(super) fn find(scanner: &mut SegmentScanner, short: bool, watermark: u64) -> io::Result<SegmentTail> {
    let (offset, next) = (scanner.offset(), scanner.min_sequence());
    let mut tail = SegmentTail { offset, next, torn: true, stale: false, unsettled: offset };
    // A damaged record counts only if something sound follows it; otherwise it may belong to a commit that was never
    // complete.
    while let Some(item) = scanner.peek()? {
        scanner.advance(&item);
        match item.kind {
            MarkKind::Record(_) => {
                (tail.offset, tail.next) = (item.after, item.sequence + 1);
                if item.sequence < watermark {
                    tail.unsettled = item.after;
                }
            }
            MarkKind::Damaged => {}
            MarkKind::End => {
                (tail.offset, tail.next, tail.torn) = (item.offset, item.sequence, false);
                break;
            }
        }
    }
    tail.unsettled = tail.unsettled.min(tail.offset);
    if tail.torn && short {
        tail.next = scanner.min_sequence().max(tail.next + 1);
    }
    if !tail.torn {
        scanner.advance_over_end();
        tail.stale = scanner.peek()?.is_some();
    }
    Ok(tail)
}
