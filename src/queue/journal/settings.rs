//! `[journal]`: the disk space, and the size of its files.

use crate::queue::journal::format::{BLOCK, HEADER_BYTES, room};
use crate::queue::journal::record;
use crate::settings::Section;

/// The least number of segments with which events that wait for their address stop nothing: one begins with such an event, one
/// follows it, one is written, and one is left to copies.
const ENOUGH_SEGMENTS: u64 = 4;

/// The settings of `[journal]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The limit on the disk space of all segments together.
    pub(crate) max_bytes: u64,
    /// The size of one segment.
    pub(crate) segment_bytes: u64,
}

impl Settings {
    /// Reads `[journal]`.
    pub(crate) fn read(section: &mut Section<'_>) -> Self {
        Self { max_bytes: section.size("max_bytes") as u64, segment_bytes: section.size("segment_bytes") as u64 }
    }

    /// The same with smaller segments, if too few would fit within the limit; but each has room for the record of the largest
    /// body.
    pub(crate) fn for_bodies(self, largest_body: usize) -> Self {
        let most = (self.max_bytes / ENOUGH_SEGMENTS).max(needed(largest_body));
        Self { segment_bytes: self.segment_bytes.min(most), ..self }
    }

    /// The actual size of segments: two fit within the limit, and all are whole blocks.
    pub(crate) fn effective_segment(&self) -> u64 {
        let size = self.segment_bytes.min(self.max_bytes / 2);
        size - size % BLOCK
    }

    /// The number of bytes of records that an empty journal has room for.
    pub(crate) fn room(&self) -> u64 {
        let segment = self.effective_segment();
        self.max_bytes.checked_div(segment).unwrap_or_default() * room(segment)
    }

    /// The problem if an event that waits for its address may keep the journal full, because the largest record leaves room for
    /// few segments.
    pub(crate) fn stops_for_one(&self, largest_body: usize) -> Option<String> {
        let enough = ENOUGH_SEGMENTS * self.effective_segment();
        (self.max_bytes < enough).then(|| {
            format!(
                "`journal.max_bytes` ({} bytes) has room for fewer than {ENOUGH_SEGMENTS} segments that hold a body of \
                 `ingress.max_body` ({largest_body} bytes): one event that waits for its address may keep the journal full; \
                 raise it to {:?}, or lower `ingress.max_body`",
                self.max_bytes,
                shown(enough)
            )
        })
    }

    /// The problem if no segment can hold the largest record: a body of this size, and what accompanies it.
    pub(crate) fn problem(&self, largest_body: usize) -> Option<String> {
        if record::largest(largest_body) <= room(self.effective_segment()) {
            return None;
        }
        let needed = needed(largest_body);
        let mut keys = Vec::new();
        if self.segment_bytes < needed {
            keys.push(format!("raise `journal.segment_bytes` to {:?}", shown(needed)));
        }
        if self.max_bytes < 2 * needed {
            keys.push(format!("raise `journal.max_bytes` to {:?}", shown(2 * needed)));
        }
        Some(format!(
            "a body of `ingress.max_body` ({largest_body} bytes) does not fit into a segment of the journal ({} bytes, \
             at most half of `journal.max_bytes`): {}",
            self.effective_segment(),
            keys.join(" and ")
        ))
    }
}

/// The size of a segment that holds the record of a body of this size.
fn needed(largest_body: usize) -> u64 {
    (record::largest(largest_body) + HEADER_BYTES + BLOCK).next_multiple_of(BLOCK)
}

/// A size in a unit that can be copied into the file.
fn shown(bytes: u64) -> String {
    format!("{}KiB", bytes.div_ceil(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_segments_of_which_two_fit_in_whole_blocks() {
        let settings = Settings { max_bytes: 100_000, segment_bytes: 1 << 20 };
        assert_eq!(settings.effective_segment(), 49_152);
        let settings = Settings { max_bytes: 1 << 20, segment_bytes: 8192 };
        assert_eq!(settings.effective_segment(), 8192);
    }

    #[test]
    fn takes_smaller_segments_where_few_would_fit_and_says_where_the_largest_body_needs_larger_ones() {
        let default = |max_bytes| Settings { max_bytes, segment_bytes: 16 << 20 }.for_bodies(960 << 10);
        assert_eq!(default(1 << 30).effective_segment(), 16 << 20);
        assert_eq!(default(64 << 20).effective_segment(), 16 << 20);
        assert_eq!(default(32 << 20).effective_segment(), 8 << 20);
        assert_eq!(default(4 << 20).effective_segment(), 1 << 20);
        assert_eq!(default(4 << 20).stops_for_one(960 << 10), None);
        let small = default(3 << 20);
        assert_eq!((small.effective_segment(), small.problem(960 << 10)), (972 << 10, None));
        let problem = small.stops_for_one(960 << 10).unwrap();
        assert!(problem.contains("raise it to \"3888KiB\""), "{problem}");
        assert_eq!(default(3888 << 10).stops_for_one(960 << 10), None);
    }

    #[test]
    fn says_which_key_to_raise_so_that_the_largest_body_fits() {
        let settings = Settings { max_bytes: 1 << 20, segment_bytes: 8192 };
        let problem = settings.problem(256 << 10).unwrap();
        assert!(problem.contains("`journal.segment_bytes` to \"268KiB\""), "{problem}");
        assert!(!problem.contains("raise `journal.max_bytes`"), "{problem}");
        let settings = Settings { max_bytes: 65536, segment_bytes: 268 << 10 };
        let problem = settings.problem(256 << 10).unwrap();
        assert!(problem.contains("`journal.max_bytes` to \"536KiB\""), "{problem}");
        assert!(!problem.contains("raise `journal.segment_bytes`"), "{problem}");
        let raised = Settings { max_bytes: 536 << 10, segment_bytes: 268 << 10 };
        assert_eq!(raised.problem(256 << 10), None);
    }
}
