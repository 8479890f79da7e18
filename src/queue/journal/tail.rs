//! The end of the last segment, where writing goes on: found at the start, mended where a crash or the disk tore it.

use std::io;

use crate::queue::journal::chain::{MarkKind, SegmentScanner};

/// Where the records of the last segment end.
#[derive(Debug)]
pub(super) struct SegmentTail {
    /// The next record goes here.
    pub(super) offset: u64,
    /// And has this sequence.
    pub(super) next: u64,
    /// No sound end mark stands there.
    pub(super) torn: bool,
    /// Behind a sound end mark stands what a commit cut short left.
    pub(super) stale: bool,
    /// The offset of the first record that is not settled, or of the end.
    pub(super) unsettled: u64,
}

/// Reads the last segment to its end. `short`: the file is shorter than its header says, so what is missing was there.
/// All records below the watermark are settled.
pub(super) fn find(chain: &mut SegmentScanner, short: bool, watermark: u64) -> io::Result<SegmentTail> {
    let (offset, next) = (chain.offset(), chain.least());
    let mut tail = SegmentTail { offset, next, torn: true, stale: false, unsettled: offset };
    // A damaged record counts once something sound stands behind it; else it may be a commit that never was complete.
    while let Some(item) = chain.peek()? {
        chain.pass(&item);
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
        tail.next = chain.least().max(tail.next + 1);
    }
    if !tail.torn {
        chain.pass_end();
        tail.stale = chain.peek()?.is_some();
    }
    Ok(tail)
}
