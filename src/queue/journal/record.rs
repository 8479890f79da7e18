//! Encoding an event as the bytes of a record, and decoding it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::event::{Event, Origin};
use crate::queue::journal::format::{ALIGNMENT, Mark, index};

/// The length of the fixed part: received time, flags, two lengths.
const FIXED: usize = 16;
const SIGNATURE: usize = 64;
/// The length of a W3C `traceparent` of version 00.
const TRACEPARENT: usize = 55;
/// The longest source name that is kept: more than any sensible name.
const LONGEST_SOURCE: usize = 255;

const SIGNED: u8 = 1;
const VERIFIED: u8 = 2;
const TRACED: u8 = 4;

/// The largest record with a body of this size.
pub(super) fn largest(body: usize) -> u64 {
    Mark::record_bytes((FIXED + LONGEST_SOURCE + SIGNATURE + TRACEPARENT + body) as u64)
}

/// The parts of an event that the journal keeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record<'a> {
    /// The wall clock when the head of the request was read, to the microsecond.
    pub(crate) received: SystemTime,
    /// The name of the source.
    pub(crate) source: &'a str,
    /// The signature as received.
    pub(crate) signature: Option<&'a [u8; 64]>,
    /// Whether the signature was verified.
    pub(crate) verified: bool,
    /// A well-formed `traceparent`.
    pub(crate) traceparent: Option<&'a str>,
    /// The number of times that the record was written again.
    pub(crate) renewals: u16,
    /// The signed bytes.
    pub(crate) body: &'a [u8],
}

impl Record<'_> {
    /// The record of this event.
    pub(crate) fn of(event: &Event) -> Record<'_> {
        let origin = &event.origin;
        Record {
            received: origin.received,
            source: &origin.source,
            signature: origin.signature.as_ref(),
            verified: origin.verified,
            traceparent: origin.traceparent.as_deref(),
            renewals: event.renewals,
            body: &event.body,
        }
    }

    /// The size in the segment, including padding.
    pub(crate) fn length(&self) -> u64 {
        Mark::record_bytes(self.payload() as u64)
    }

    fn source(&self) -> &[u8] {
        part(self.source)
    }

    fn traceparent(&self) -> &[u8] {
        part(self.traceparent.unwrap_or_default())
    }

    fn payload(&self) -> usize {
        let signature = self.signature.map_or(0, |_| SIGNATURE);
        FIXED + self.source().len() + signature + self.traceparent().len() + self.body.len()
    }

    /// Appends the record with this sequence.
    pub(super) fn encode(&self, sequence: u64, salt: u64, into: &mut Vec<u8>) {
        // A body is at most 1 GiB (`ingress.max_body` is checked).
        let length = u32::try_from(self.payload()).unwrap_or(Mark::END);
        debug_assert!(length < Mark::END, "a body of more than 4 GiB");
        let (mark, sum) = Mark { length, sequence }.encode(salt);
        let start = into.len();
        into.extend_from_slice(&mark);
        let from = into.len();
        let since = self.received.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        into.extend_from_slice(&u64::try_from(since.as_micros()).unwrap_or(u64::MAX).to_le_bytes());
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let flags = flag(self.signature.is_some(), SIGNED)
            | flag(self.verified, VERIFIED)
            | flag(self.traceparent.is_some(), TRACED);
        into.extend_from_slice(&[flags, 0]);
        for part in [self.source(), self.traceparent()] {
            into.extend_from_slice(&u16::try_from(part.len()).unwrap_or(u16::MAX).to_le_bytes());
        }
        into.extend_from_slice(&self.renewals.to_le_bytes());
        into.extend_from_slice(self.source());
        into.extend_from_slice(self.signature.map_or(&[][..], |signature| signature));
        into.extend_from_slice(self.traceparent());
        into.extend_from_slice(self.body);
        let sum = crc32c::crc32c_append(sum, &into[from..]);
        into.extend_from_slice(&sum.to_le_bytes());
        into.resize(start + (into.len() - start).next_multiple_of(index(ALIGNMENT)), 0);
    }
}

/// Both lengths have two bytes. Names are far shorter; a longer one is truncated, the body never.
fn part(text: &str) -> &[u8] {
    &text.as_bytes()[..text.len().min(usize::from(u16::MAX))]
}

/// An event as read back from the journal.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    /// The number of the record, dense in the order of acceptance.
    pub(crate) sequence: u64,
    /// The parts of the request that are kept beside the body.
    pub(crate) origin: Origin,
    /// The number of times that the record was written again.
    pub(crate) renewals: u16,
    /// The signed bytes.
    pub(crate) body: Box<[u8]>,
}

/// The names of sources seen before, so that a thousand records do not allocate a thousand names.
#[derive(Debug, Default)]
pub(super) struct Names(Option<Arc<str>>);

impl Names {
    fn get(&mut self, name: &str) -> Arc<str> {
        match &self.0 {
            Some(known) if **known == *name => known.clone(),
            _ => self.0.insert(name.into()).clone(),
        }
    }

    /// Decodes a payload with a right checksum; none if it makes no sense nevertheless.
    pub(super) fn decode<'p>(&mut self, payload: &'p [u8]) -> Option<(Origin, u16, &'p [u8])> {
        let (fixed, rest) = payload.split_at_checked(FIXED)?;
        let micros = u64::from_le_bytes(fixed[..8].try_into().ok()?);
        let flags = fixed[8];
        let short = |at: usize| u16::from_le_bytes([fixed[at], fixed[at + 1]]);
        let length = |at: usize| usize::from(short(at));
        let (source, rest) = rest.split_at_checked(length(10))?;
        let (signature, rest) = rest.split_at_checked(if flags & SIGNED == 0 { 0 } else { SIGNATURE })?;
        let (traceparent, body) = rest.split_at_checked(length(12))?;
        let traceparent = std::str::from_utf8(traceparent).ok()?;
        let origin = Origin {
            source: self.get(std::str::from_utf8(source).ok()?),
            signature: signature.try_into().ok(),
            verified: flags & VERIFIED != 0,
            traceparent: (flags & TRACED != 0).then(|| traceparent.into()),
            received: SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(micros))?,
        };
        Some((origin, short(14), body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_as_it_went_with_and_without_what_is_optional() {
        let received = SystemTime::UNIX_EPOCH + Duration::from_micros(1_790_000_000_123_456);
        let full = Record {
            received,
            source: "plextrac",
            signature: Some(&[b'f'; 64]),
            verified: true,
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            renewals: 300,
            body: b"{\"event\":\"E\"}",
        };
        let bare = Record { signature: None, verified: false, traceparent: None, body: b"", ..full };
        for record in [full, bare] {
            let mut bytes = vec![1; 3];
            record.encode(7, 99, &mut bytes);
            assert_eq!(bytes.len() as u64 - 3, record.length());
            assert_eq!(record.length() % 8, 0);
            let length = Mark::decode(&bytes[3..]).length as usize;
            let (origin, renewals, body) = Names::default().decode(&bytes[19..19 + length]).unwrap();
            assert_eq!(&*origin.source, record.source);
            assert_eq!(origin.signature.as_ref(), record.signature);
            assert_eq!(origin.verified, record.verified);
            assert_eq!(origin.traceparent.as_deref(), record.traceparent);
            assert_eq!((origin.received, renewals, body), (received, 300, record.body));
        }
    }

    #[test]
    fn allocates_the_name_of_a_source_once() {
        let record = Record {
            received: SystemTime::UNIX_EPOCH,
            source: "a",
            signature: None,
            verified: false,
            traceparent: None,
            renewals: 0,
            body: b"x",
        };
        let mut bytes = Vec::new();
        record.encode(1, 0, &mut bytes);
        let length = Mark::decode(&bytes).length as usize;
        let mut names = Names::default();
        let one = names.decode(&bytes[16..16 + length]).unwrap().0.source;
        let two = names.decode(&bytes[16..16 + length]).unwrap().0.source;
        assert!(Arc::ptr_eq(&one, &two));
    }
}
