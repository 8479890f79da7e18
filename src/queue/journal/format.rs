//! The bytes of a segment beside its records: the header block with its two copies and two watermark slots, and the
//! mark before each record and at the end.

/// The version of the format that this program writes and reads.
pub(crate) const VERSION: u32 = 1;

/// The block size: segments are whole blocks, and the header is the first one. It is the page size of the common file
/// systems.
pub(super) const BLOCK: u64 = BLOCK_LENGTH as u64;
pub(super) const BLOCK_LENGTH: usize = 4096;
/// The offset of the first record.
pub(super) const HEADER_BYTES: u64 = BLOCK;
/// The length of the mark before a record, or of the whole end mark.
pub(super) const MARK_BYTES: u64 = MARK_LENGTH as u64;
const MARK_LENGTH: usize = 16;
/// Records start at multiples of this.
pub(super) const ALIGNMENT: u64 = 8;

const MAGIC: [u8; 8] = *b"PLXTJRNL";
/// The offsets of the copies. Each copy and each slot has a sector of its own: a disk writes 512 bytes whole or not at
/// all.
const COPIES: [usize; 2] = [0, 512];
const SLOTS: [usize; 2] = [1024, 1536];
const COPY_BYTES: usize = 44;
const SLOT_BYTES: usize = 20;

/// A number of bytes or events as an index: addresses have 64 bits.
pub(crate) fn index(number: u64) -> usize {
    usize::try_from(number).expect("addresses have 64 bits")
}

/// The room for records in a segment of this size.
pub(super) fn room(segment: u64) -> u64 {
    segment.saturating_sub(HEADER_BYTES + MARK_BYTES)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].try_into().map_or(0, u32::from_le_bytes)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes)
}

/// The content of a segment's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) size: u64,
    /// Random for each use of the file: remains of an earlier use are not mistaken for records of this one.
    pub(super) salt: u64,
    /// The lowest sequence that a record in it can have.
    pub(super) first: u64,
}

impl Header {
    fn copy(&self) -> [u8; COPY_BYTES] {
        let mut copy = [0; COPY_BYTES];
        copy[..8].copy_from_slice(&MAGIC);
        copy[8..12].copy_from_slice(&VERSION.to_le_bytes());
        copy[16..24].copy_from_slice(&self.size.to_le_bytes());
        copy[24..32].copy_from_slice(&self.salt.to_le_bytes());
        copy[32..40].copy_from_slice(&self.first.to_le_bytes());
        let sum = crc32c::crc32c(&copy[..40]);
        copy[40..].copy_from_slice(&sum.to_le_bytes());
        copy
    }

    /// The header block as written when a use of the segment begins.
    pub(super) fn block(&self, slot: &WatermarkSlot) -> [u8; BLOCK_LENGTH] {
        let mut block = [0; BLOCK_LENGTH];
        for at in COPIES {
            block[at..at + COPY_BYTES].copy_from_slice(&self.copy());
        }
        let (at, bytes) = slot.place(self.salt);
        block[at..at + SLOT_BYTES].copy_from_slice(&bytes);
        block
    }
}

/// One write of the watermark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct WatermarkSlot {
    /// Incremented by each write; its parity selects one of the two slots.
    pub(super) counter: u64,
    pub(super) watermark: u64,
}

impl WatermarkSlot {
    /// The offset of the slot, and its bytes.
    pub(super) fn place(&self, salt: u64) -> (usize, [u8; SLOT_BYTES]) {
        let mut bytes = [0; SLOT_BYTES];
        bytes[..8].copy_from_slice(&self.counter.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.watermark.to_le_bytes());
        let sum = salted(&bytes[..16], salt);
        bytes[16..].copy_from_slice(&sum.to_le_bytes());
        (SLOTS[index(self.counter % 2)], bytes)
    }
}

fn salted(bytes: &[u8], salt: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(bytes), &salt.to_le_bytes())
}

/// A header block as it was read.
#[derive(Clone, Debug, Default)]
pub(super) struct HeaderBlock {
    /// The sound copy; of two that differ (after an interrupted recycling) the later one.
    pub(super) header: Option<Header>,
    /// The version of a sound header that this program cannot read.
    pub(super) unknown: Option<u32>,
    /// The number of unsound copies.
    pub(super) unsound_copies: u64,
    /// Whether the copies must be written again.
    pub(super) uneven: bool,
    /// The number of watermark slots with unsound content.
    pub(super) unsound_slots: u64,
    /// The newest sound watermark.
    pub(super) slot: Option<WatermarkSlot>,
    /// The block is all zeros.
    pub(super) blank: bool,
}

impl HeaderBlock {
    /// Reads a block. Missing bytes of a short file are zeros.
    pub(super) fn parse(bytes: &[u8; BLOCK_LENGTH]) -> Self {
        let mut block = Self { blank: bytes.iter().all(|byte| *byte == 0), ..Self::default() };
        let mut sound = Vec::new();
        for at in COPIES {
            let copy = &bytes[at..at + COPY_BYTES];
            if copy[..8] != MAGIC || word(copy, 40) != crc32c::crc32c(&copy[..40]) {
                block.unsound_copies += 1;
            } else if word(copy, 8) == VERSION {
                sound.push(Header { size: long(copy, 16), salt: long(copy, 24), first: long(copy, 32) });
            } else {
                block.unknown = Some(word(copy, 8));
            }
        }
        block.header = sound.iter().max_by_key(|header| header.first).copied();
        block.uneven = block.unsound_copies > 0 || sound.first() != sound.last();
        if let Some(header) = block.header {
            block.read_slots(bytes, header.salt);
        }
        block
    }

    fn read_slots(&mut self, bytes: &[u8; BLOCK_LENGTH], salt: u64) {
        for at in SLOTS {
            let slot = &bytes[at..at + SLOT_BYTES];
            if word(slot, 16) == salted(&slot[..16], salt) {
                let read = WatermarkSlot { counter: long(slot, 0), watermark: long(slot, 8) };
                if self.slot.is_none_or(|slot| slot.counter < read.counter) {
                    self.slot = Some(read);
                }
            } else if slot.iter().any(|byte| *byte != 0) {
                self.unsound_slots += 1;
            }
        }
    }
}

/// The mark before each record, and at the end of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// The length of the payload; [`Mark::END`] for the end.
    pub(super) length: u32,
    /// The sequence of the record; at the end, of the next record.
    pub(super) sequence: u64,
}

impl Mark {
    /// The length that marks the end instead of a record.
    pub(super) const END: u32 = u32::MAX;

    /// The end mark before the record of this sequence.
    pub(super) fn end(sequence: u64) -> Self {
        Self { length: Self::END, sequence }
    }

    /// The bytes of the mark, and the checksum that seeds that of the payload.
    pub(super) fn encode(self, salt: u64) -> ([u8; MARK_LENGTH], u32) {
        let mut bytes = [0; MARK_LENGTH];
        bytes[4..8].copy_from_slice(&self.length.to_le_bytes());
        bytes[8..].copy_from_slice(&self.sequence.to_le_bytes());
        let sum = salted(&bytes[4..], salt);
        bytes[..4].copy_from_slice(&sum.to_le_bytes());
        (bytes, sum)
    }

    /// Decodes a mark without checking its checksum.
    pub(super) fn decode(bytes: &[u8]) -> Self {
        Self { length: word(bytes, 4), sequence: long(bytes, 8) }
    }

    /// The checksum, if it is right.
    pub(super) fn sum(bytes: &[u8], salt: u64) -> Option<u32> {
        let sum = word(bytes, 0);
        (sum == salted(&bytes[4..16], salt)).then_some(sum)
    }

    /// The space that a record takes, with mark, checksum and padding.
    pub(super) fn record_bytes(length: u64) -> u64 {
        (MARK_BYTES + length + 4).next_multiple_of(ALIGNMENT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_later_of_two_copies_that_differ() {
        let old = Header { size: 8192, salt: 1, first: 1 };
        let new = Header { size: 8192, salt: 2, first: 9 };
        let mut bytes = old.block(&WatermarkSlot { counter: 1, watermark: 5 });
        bytes[..COPY_BYTES].copy_from_slice(&new.copy());
        let block = HeaderBlock::parse(&bytes);
        assert_eq!((block.header, block.unsound_copies, block.uneven), (Some(new), 0, true));
        assert_eq!(block.slot, None, "the watermark has the salt of the earlier use");
    }

    #[test]
    fn keeps_the_bytes_that_the_format_promises() {
        let header = Header { size: 0x2000, salt: 0x0102_0304_0506_0708, first: 7 };
        let block = header.block(&WatermarkSlot { counter: 1, watermark: 7 });
        assert_eq!(&block[..16], b"PLXTJRNL\x01\0\0\0\0\0\0\0");
        assert_eq!(block[..COPY_BYTES], block[512..512 + COPY_BYTES]);
        assert_eq!(block[24], 8, "little-endian");
        assert_eq!(word(&block, 40), crc32c::crc32c(&block[..40]));
        assert_eq!((long(&block, 1536), long(&block, 1544)), (1, 7));
        let (mark, sum) = Mark::end(9).encode(header.salt);
        assert_eq!(&mark[4..], b"\xff\xff\xff\xff\x09\0\0\0\0\0\0\0");
        assert_eq!(Mark::sum(&mark, header.salt), Some(sum));
        assert_eq!(Mark::sum(&mark, header.salt + 1), None);
    }
}
