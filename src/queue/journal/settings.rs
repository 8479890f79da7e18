//! `[journal]`: the disk space, and the size of its files.

use crate::queue::journal::format::{BLOCK, HEADER_BYTES, room};
use crate::queue::journal::record;
use crate::settings::Section;

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

    /// The actual size of segments: two fit within the limit, and all are whole blocks.
    pub(crate) fn effective_segment(&self) -> u64 {
        let size = self.segment_bytes.min(self.max_bytes / 2);
        size - size % BLOCK
    }

    /// The problem if no segment can hold the largest record: a body of this size, and what accompanies it.
    pub(crate) fn problem(&self, largest_body: usize) -> Option<String> {
        let largest = record::largest(largest_body);
        if largest <= room(self.effective_segment()) {
            return None;
        }
        let needed = (largest + HEADER_BYTES + BLOCK).next_multiple_of(BLOCK);
        // Shown in a unit that can be copied into the file.
        let at_least = |bytes: u64| format!("{}KiB", bytes.div_ceil(1024));
        let mut keys = Vec::new();
        if self.segment_bytes < needed {
            keys.push(format!("raise `journal.segment_bytes` to {:?}", at_least(needed)));
        }
        if self.max_bytes < 2 * needed {
            keys.push(format!("raise `journal.max_bytes` to {:?}", at_least(2 * needed)));
        }
        Some(format!(
            "a body of `ingress.max_body` ({largest_body} bytes) does not fit into a segment of the journal ({} bytes, \
             at most half of `journal.max_bytes`): {}",
            self.effective_segment(),
            keys.join(" and ")
        ))
    }
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
