//! The arithmetic of places: where each record goes, which segments are free again, how much disk that takes. No files.
//!
//! Length: a third is the tests of one small arithmetic.

use std::collections::VecDeque;

use crate::queue::journal::format::{HEADER_BYTES, MARK_BYTES, room};

/// The number of spares that a release leaves: one to continue with, one while the next is released.
const SPARES: usize = 2;

/// The place of a record: assigned under the queue's lock, before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The number of the record.
    pub(crate) sequence: u64,
    /// The segment's number.
    pub(crate) segment: u32,
    /// The offset in the segment.
    pub(crate) offset: u64,
    /// Whether it is the first record of this use of the segment.
    pub(crate) starts_segment: bool,
}

/// A segment in use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used {
    pub(super) number: u32,
    /// The sequence of its first record.
    pub(super) first: u64,
    /// The size on disk.
    pub(super) bytes: u64,
    /// The limit for records and the end mark.
    pub(super) limit: u64,
    /// The offset of the next record.
    pub(super) filled: u64,
    /// Whether the file exists.
    pub(super) made: bool,
}

/// Assigns places to records. Lives under the queue's lock.
#[derive(Clone, Debug, Default)]
pub(crate) struct SegmentAllocator {
    max: u64,
    segment: u64,
    /// The segments in use, oldest first; the last is the active one.
    used: VecDeque<Used>,
    /// The spares in the order of their reuse: released first, reused first, so that the old records still on disk are
    /// always the latest ones, without a gap.
    spares: VecDeque<u32>,
    making: Option<u32>,
    /// Creating a spare failed: none is wanted ahead for the active segment.
    spare_failed: bool,
    /// The numbers below `unused` that no file has.
    free: Vec<u32>,
    /// The first number that was never used.
    unused: u32,
    next: u64,
    /// The size of all files, including those being created.
    total: u64,
    /// The bytes of records that the existing files keep room for, for a stop.
    reserved: u64,
    /// A release has deleted some of that room.
    is_short: bool,
}

impl SegmentAllocator {
    /// Creates an empty one; segments found at the start are added to it.
    pub(super) fn new(max: u64, segment: u64, next: u64) -> Self {
        Self { max, segment, next, ..Self::default() }
    }

    /// Adds a segment in use, younger than all before.
    pub(super) fn add_used(&mut self, used: Used) {
        self.count(used.number, used.bytes);
        self.used.push_back(used);
    }

    /// Adds a spare with the size of a segment, to be reused after all before.
    pub(super) fn add_spare(&mut self, number: u32) {
        self.count(number, self.segment);
        self.spares.push_back(number);
    }

    fn count(&mut self, number: u32, bytes: u64) {
        self.total += bytes;
        self.unused = self.unused.max(number.saturating_add(1));
    }

    /// The spares that the limit has no room for, as after a change of settings; they must be deleted.
    pub(super) fn surplus(&mut self) -> Vec<u32> {
        let mut surplus = Vec::new();
        while self.total > self.max
            && let Some(number) = self.spares.pop_front()
        {
            self.drop_file(number, self.segment);
            surplus.push(number);
        }
        surplus
    }

    /// Reserves a place for a record of this encoded length; none if the journal is full.
    ///
    /// A place that starts a segment takes a spare, or the number of a segment to be created, if the limit allows one.
    pub(crate) fn reserve(&mut self, length: u64) -> Option<Place> {
        self.reserve_in(length, Self::open)
    }

    /// Does the same in existing segments only, for when the disk has no room for another one.
    pub(crate) fn reserve_existing(&mut self, length: u64) -> Option<Place> {
        if self.used.back().is_some_and(|active| !active.made) {
            return None;
        }
        self.reserve_in(length, |layout| Some((layout.spares.pop_front()?, true)))
    }

    fn reserve_in(&mut self, length: u64, open: fn(&mut Self) -> Option<(u32, bool)>) -> Option<Place> {
        let fits = |used: &Used| used.filled + length + MARK_BYTES <= used.limit;
        let starts_segment = !self.used.back().is_some_and(fits);
        if starts_segment {
            if length > room(self.segment) {
                return None;
            }
            let (number, made) = open(self)?;
            self.spare_failed = false;
            self.used.push_back(Used {
                number,
                first: self.next,
                bytes: self.segment,
                limit: self.segment,
                filled: HEADER_BYTES,
                made,
            });
        }
        let used = self.used.back_mut()?;
        let place = Place { sequence: self.next, segment: used.number, offset: used.filled, starts_segment };
        used.filled += length;
        self.next += 1;
        Some(place)
    }

    fn open(&mut self) -> Option<(u32, bool)> {
        if let Some(number) = self.spares.pop_front() {
            return Some((number, true));
        }
        // The writer works in order: when it reaches this place, the spare exists, or it tries again.
        let number = self.making.take().or_else(|| self.grow())?;
        Some((number, false))
    }

    /// Assigns a number to another file, which counts from now on; none if the limit allows none.
    pub(super) fn grow(&mut self) -> Option<u32> {
        if !self.may_grow() {
            return None;
        }
        let number = self.free.pop().or_else(|| {
            let number = self.unused;
            self.unused = number.checked_add(1)?;
            Some(number)
        })?;
        self.total += self.segment;
        Some(number)
    }

    fn may_grow(&self) -> bool {
        // Segment too small for any record.
        room(self.segment) > 0 && (self.total + self.segment <= self.max || self.is_left_with_a_larger_one())
    }

    /// Whether the only segment is from a start with larger segments: without another one it could never be released.
    fn is_left_with_a_larger_one(&self) -> bool {
        let is_larger = |only: &Used| only.bytes > self.segment;
        self.used.len() == 1
            && self.used.front().is_some_and(is_larger)
            && self.spares.is_empty()
            && self.making.is_none()
    }

    /// The first sequence of the recent segments: that of the record of this sequence, which is delivered next, and those
    /// before it that events may be kept in while they wait. The more bytes of records wait, the more segments, so that
    /// copies of them never are most of what is written; none if there is no older segment, or if a copy of all that waits
    /// would free less than a quarter of its size. All segments together may take `limit` bytes at the moment; where that is two,
    /// the second is recent.
    pub(crate) fn begin_of_recent(&self, waiting: u64, cursor: u64, limit: u64) -> Option<u64> {
        let segment = self.segment.max(1);
        // Free stay the segment that is left to copies, a tenth, from which on a full journal takes new events again, and what is
        // written meanwhile.
        let segments = limit / segment;
        let behind = (2 + 2 * waiting / segment).min(segments.saturating_sub(4 + segments / 10));
        let is_last = self.used.len() <= 2 && self.spares.is_empty() && self.total + self.segment > limit;
        let behind = behind.max(u64::from(!is_last));
        let reached = self.used.partition_point(|used| used.first <= cursor);
        if reached as u64 * segment < segment + waiting + waiting / 4 {
            return None;
        }
        let oldest = reached.checked_sub(usize::try_from(behind).ok()? + 1)?;
        self.used.get(oldest).filter(|_| oldest > 0).map(|recent| recent.first)
    }

    /// The number of bytes of records of new events that still fit: a segment is left to copies of old ones, where there are
    /// enough segments.
    pub(crate) fn available_to_new(&self) -> u64 {
        let left_to_copies = if self.max / self.segment.max(1) < 4 { 0 } else { room(self.segment) };
        self.available().saturating_sub(left_to_copies)
    }

    /// The number of bytes of records that still fit within the limit.
    pub(crate) fn available(&self) -> u64 {
        let left = self.max.saturating_sub(self.total) / self.segment.max(1);
        let more = if left == 0 && self.is_left_with_a_larger_one() { 1 } else { left };
        self.left() + (more + u64::from(self.making.is_some())) * room(self.segment)
    }

    /// Whether a spare exists.
    pub(crate) fn has_spare(&self) -> bool {
        !self.spares.is_empty()
    }

    /// Notes that a segment exists, because a record was written to it.
    pub(crate) fn exists(&mut self, segment: u32) {
        if let Some(used) = self.used.iter_mut().rev().find(|used| used.number == segment) {
            used.made = true;
        }
    }

    fn drop_file(&mut self, number: u32, bytes: u64) {
        self.total -= bytes;
        self.free.push(number);
    }

    /// The sequence of the next record.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Takes back a place that could not be written, and all later ones.
    pub(crate) fn undo(&mut self, from: &Place) {
        while let Some(last) = self.used.back().copied() {
            if last.first < from.sequence || (last.first == from.sequence && !from.starts_segment) {
                break;
            }
            self.used.pop_back();
            if last.made {
                self.spares.push_front(last.number);
            } else {
                self.drop_file(last.number, last.bytes);
            }
        }
        if !from.starts_segment
            && let Some(last) = self.used.back_mut()
        {
            last.filled = from.offset;
        }
        self.next = from.sequence;
    }

    /// Turns all segments wholly below the watermark into spares. The writer must delete those returned, in this order,
    /// and before it creates a segment or commits to one that was assigned after this. The active segment is never
    /// released.
    #[must_use]
    pub(crate) fn release(&mut self, watermark: u64) -> Vec<u32> {
        let mut deleted = Vec::new();
        while self.used.get(1).is_some_and(|second| second.first <= watermark)
            && let Some(oldest) = self.used.pop_front()
        {
            if oldest.bytes != self.segment || self.total > self.max {
                // Older spares are removed first: a start that does not know this watermark must not find a gap.
                while let Some(number) = self.spares.pop_front() {
                    self.drop_file(number, self.segment);
                    deleted.push(number);
                }
                self.drop_file(oldest.number, oldest.bytes);
                deleted.push(oldest.number);
                self.is_short = true;
                continue;
            }
            let is_surplus = self.spares.len() >= SPARES && self.left() >= self.reserved;
            self.spares.push_back(oldest.number);
            if is_surplus && let Some(number) = self.spares.pop_front() {
                self.drop_file(number, self.segment);
                deleted.push(number);
            }
        }
        deleted
    }

    /// The number of a spare to create ahead, if the active segment is more than half full and there is no spare, or if a
    /// release deleted room that is kept, and the limit allows one. It counts from now on; the outcome goes to
    /// [`SegmentAllocator::prepared`].
    pub(crate) fn wants_spare(&mut self) -> Option<u32> {
        if self.is_short && !self.spare_failed {
            let wanted = self.wants_reserved(self.reserved);
            self.is_short = self.making.is_some();
            if wanted.is_some() {
                return wanted;
            }
        }
        let half = self.used.back().is_some_and(|active| active.filled > HEADER_BYTES.midpoint(active.limit));
        if half && !self.spare_failed { self.wants_spare_again() } else { None }
    }

    /// The number of a spare to create because the disk had no room for one before, if the limit allows one. The
    /// outcome goes to [`SegmentAllocator::prepared`].
    pub(crate) fn wants_spare_again(&mut self) -> Option<u32> {
        if self.making.is_some() || !self.spares.is_empty() {
            return None;
        }
        self.making = self.grow();
        self.making
    }

    /// Notes the outcome of a wanted spare. After a failure none is wanted ahead until another segment is started.
    pub(crate) fn prepared(&mut self, segment: u32, made: bool) {
        if self.making == Some(segment) {
            self.making = None;
            if made {
                self.spares.push_back(segment);
            } else {
                self.drop_file(segment, self.segment);
            }
        } else if let Some(used) = self.used.iter_mut().find(|used| used.number == segment) {
            // A record was given a place in it meanwhile.
            used.made |= made;
        }
        self.spare_failed = !made;
    }

    /// The bytes in use: whole segments, and the filled part of the active one.
    pub(crate) fn bytes(&self) -> u64 {
        let left = self.used.iter().rev().skip(1).map(|used| used.bytes).sum::<u64>();
        left + self.used.back().map_or(0, |active| active.filled)
    }

    /// The limit on the size of all files.
    pub(crate) fn capacity(&self) -> u64 {
        self.max
    }

    /// The size of all files, in use, spare and being created.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The size of segments created from now on.
    pub(super) fn segment_bytes(&self) -> u64 {
        self.segment
    }

    /// Whether there is no file at all.
    pub(super) fn is_empty(&self) -> bool {
        self.used.is_empty() && self.spares.is_empty()
    }

    /// The number of bytes of records that fit without another file.
    pub(crate) fn left(&self) -> u64 {
        let active = self.used.back().map_or(0, |used| used.limit.saturating_sub(used.filled + MARK_BYTES));
        active + self.spares.len() as u64 * room(self.segment)
    }

    /// The number of a spare to create because these bytes of records do not fit into existing files, as far as the limit
    /// allows. The outcome goes to [`SegmentAllocator::prepared`].
    pub(crate) fn wants_reserved(&mut self, bytes: u64) -> Option<u32> {
        if self.making.is_some() || self.left() >= bytes {
            return None;
        }
        self.making = self.grow();
        self.making
    }

    /// Keeps room for so many bytes of records from now on, as far as it exists.
    pub(crate) fn keep_existing(&mut self, bytes: u64) {
        self.reserved = bytes.min(self.left());
    }

    /// The spares beyond what is kept; they must be deleted.
    pub(crate) fn unreserved(&mut self) -> Vec<u32> {
        let mut surplus = Vec::new();
        while self.left() >= self.reserved + room(self.segment)
            && let Some(number) = self.spares.pop_front()
        {
            self.drop_file(number, self.segment);
            surplus.push(number);
        }
        surplus
    }

    /// Notes the outcome of a spare created at the start.
    pub(super) fn grown(&mut self, number: u32, made: bool) {
        if made {
            self.spares.push_front(number);
        } else {
            self.drop_file(number, self.segment);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 8192;
    const LARGEST: u64 = SEGMENT - HEADER_BYTES - MARK_BYTES;

    fn layout(segments: u64) -> SegmentAllocator {
        SegmentAllocator::new(segments * SEGMENT, SEGMENT, 1)
    }

    #[test]
    fn keeps_room_for_the_end_mark_and_not_a_byte_more() {
        let mut layout = layout(2);
        let place = layout.reserve(LARGEST).unwrap();
        assert_eq!(place, Place { sequence: 1, segment: 0, offset: HEADER_BYTES, starts_segment: true });
        let place = layout.reserve(8).unwrap();
        assert_eq!(place, Place { sequence: 2, segment: 1, offset: HEADER_BYTES, starts_segment: true });
        assert_eq!(layout.reserve(LARGEST - 8).map(|place| place.offset), Some(HEADER_BYTES + 8));
        assert_eq!(layout.reserve(8), None, "full");
        assert_eq!(layout.next(), 4);
        assert_eq!(SegmentAllocator::new(1 << 20, SEGMENT, 1).reserve(LARGEST + 8), None, "never fits");
    }

    #[test]
    fn forgets_what_could_not_be_written_and_gives_the_places_again() {
        let mut layout = layout(2);
        let first = layout.reserve(1000).unwrap();
        let second = layout.reserve(LARGEST).unwrap();
        assert!(second.starts_segment);
        let before = (layout.total(), layout.bytes());
        layout.undo(&second);
        assert_eq!((layout.next(), layout.total()), (2, SEGMENT));
        assert_eq!(layout.reserve(LARGEST), Some(second));
        assert_eq!((layout.total(), layout.bytes()), before);
        layout.undo(&first);
        assert_eq!((layout.next(), layout.total(), layout.bytes()), (1, 0, 0));
        assert_eq!(layout.reserve(1000), Some(first));
    }

    #[test]
    fn goes_on_after_an_undo_that_left_no_segment_in_use() {
        let mut layout = layout(2);
        layout.reserve(LARGEST).unwrap();
        layout.add_spare_for_test();
        let second = layout.reserve(LARGEST).unwrap();
        assert_eq!(layout.release(2), [] as [u32; 0]);
        layout.undo(&second);
        let again = layout.reserve(8).unwrap();
        assert!(again.starts_segment && again.sequence == 2);
    }

    impl SegmentAllocator {
        fn add_spare_for_test(&mut self) {
            let number = self.grow().unwrap();
            self.grown(number, true);
        }
    }

    #[test]
    fn makes_anew_what_a_release_of_other_segments_took_from_the_room_for_a_stop() {
        let mut layout = layout(8);
        for (number, first) in [(0, 1), (1, 2)] {
            let bytes = 2 * SEGMENT;
            layout.add_used(Used { number, first, bytes, limit: bytes, filled: bytes, made: true });
        }
        for _ in 0..3 {
            layout.add_spare_for_test();
        }
        layout.keep_existing(3 * LARGEST);
        assert_eq!(layout.wants_spare(), None);
        assert_eq!(layout.release(2).len(), 4, "the released one and all spares");
        for _ in 0..3 {
            let number = layout.wants_spare().expect("one more");
            layout.prepared(number, true);
        }
        assert_eq!((layout.wants_spare(), layout.left() >= 3 * LARGEST), (None, true));
    }

    #[test]
    fn keeps_two_spares_and_deletes_the_oldest_beyond() {
        let mut layout = layout(6);
        for _ in 0..5 {
            layout.reserve(LARGEST).unwrap();
        }
        assert_eq!(layout.release(5), [0, 1], "0 to 3 are settled, 2 and 3 are kept");
        assert_eq!(layout.total(), 3 * SEGMENT);
        assert_eq!(layout.reserve(LARGEST).map(|place| place.segment), Some(2), "the oldest is recycled first");
        assert_eq!(layout.reserve(LARGEST).map(|place| place.segment), Some(3));
        let made: Vec<u32> = (0..3).map(|_| layout.reserve(LARGEST).unwrap().segment).collect();
        assert_eq!((made, layout.total()), (vec![1, 0, 5], 6 * SEGMENT));
        assert_eq!(layout.reserve(LARGEST), None);
        assert_eq!(layout.release(100).len(), 3, "never the active one");
        assert_eq!(layout.bytes(), HEADER_BYTES + LARGEST);
    }

    #[test]
    fn wants_a_spare_from_half_a_segment_on_and_gives_it_away_before_it_is_made() {
        let mut layout = layout(2);
        layout.reserve(2048).unwrap();
        assert_eq!(layout.wants_spare(), None);
        layout.reserve(8).unwrap();
        assert_eq!(layout.wants_spare(), Some(1));
        assert_eq!((layout.wants_spare(), layout.total()), (None, 2 * SEGMENT));
        assert_eq!(layout.reserve(LARGEST).map(|place| place.segment), Some(1));
        layout.prepared(1, true);
        assert_eq!(layout.total(), 2 * SEGMENT);
        assert_eq!(layout.wants_spare(), None, "the limit");
    }

    #[test]
    fn gives_places_in_existing_segments_alone_where_the_disk_has_no_room_for_another() {
        let mut layout = layout(4);
        layout.reserve(2056).unwrap();
        let number = layout.wants_spare().unwrap();
        assert_eq!(layout.reserve_existing(8), None, "the active segment is not written yet");
        layout.exists(0);
        layout.prepared(number, false);
        assert_eq!(layout.reserve_existing(LARGEST), None);
        assert_eq!(layout.reserve_existing(8).map(|place| place.segment), Some(0), "a small one fits");
        assert_eq!((layout.wants_spare(), layout.has_spare()), (None, false));
        let number = layout.wants_spare_again().unwrap();
        layout.prepared(number, true);
        assert!(layout.has_spare() && layout.wants_spare_again().is_none());
        assert_eq!(layout.reserve_existing(LARGEST).map(|place| place.segment), Some(number));
    }

    #[test]
    fn leaves_a_segment_of_a_start_with_larger_ones_although_the_limit_is_passed_by_it() {
        let mut layout = SegmentAllocator::new(2 * SEGMENT, SEGMENT, 9);
        let large = 8 * SEGMENT;
        layout.add_used(Used { number: 0, first: 1, bytes: large, limit: large, filled: large, made: true });
        assert_eq!(layout.available(), room(SEGMENT));
        assert_eq!(layout.reserve(LARGEST).map(|place| place.segment), Some(1));
        assert_eq!((layout.reserve(LARGEST), layout.available()), (None, 0));
        assert_eq!(layout.release(9), [0]);
        assert_eq!(layout.available(), room(SEGMENT));
    }

    #[test]
    fn two_segments_of_a_start_with_larger_ones_do_not_stop_for_an_event_that_waits_in_the_first() {
        let mut layout = SegmentAllocator::new(8 * SEGMENT, 2 * SEGMENT, 9);
        let bytes = 4 * SEGMENT;
        let used = |number, first, filled| Used { number, first, bytes, limit: bytes, filled, made: true };
        layout.add_used(used(0, 1, bytes));
        layout.add_used(used(1, 5, SEGMENT));
        assert_eq!(layout.begin_of_recent(8, 4, 8 * SEGMENT), None, "it is still read");
        assert_eq!(layout.begin_of_recent(8, 6, 8 * SEGMENT), Some(5));
        assert_eq!(layout.begin_of_recent(8, 6, 12 * SEGMENT), None, "another can be made");
    }

    #[test]
    fn wants_no_spare_again_after_a_failure_until_a_segment_is_opened() {
        let mut layout = layout(3);
        layout.reserve(2056).unwrap();
        let number = layout.wants_spare().unwrap();
        layout.prepared(number, false);
        assert_eq!((layout.wants_spare(), layout.total()), (None, SEGMENT));
        layout.reserve(LARGEST).unwrap();
        assert!(layout.wants_spare().is_some());
    }
}
