//! A portion of the events that the journal alone keeps, and how it is read back. What is read, and why: [`super::unloaded`].

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::delivery::backlog::restored;
use crate::delivery::disk_read::DiskReads;
use crate::event::{Event, Rebuild};
use crate::queue::UnsettledRecord;
use crate::queue::journal::{Batch, FoundRenewals, Reader};
use crate::status::BrokerStatus;

/// The interval at which delivery looks for records to be written again: less than a fast sender needs for a segment.
pub(super) const BETWEEN_RENEWALS: Duration = Duration::from_millis(20);

/// The text that is shown while everything unsettled is read at a start, which takes some time after a long outage.
const SEARCHING: &str =
    "reading all that is unsettled, to find the events that waited for their address: these go first";

/// The purpose of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadPurpose {
    /// The events are sent, or become dead letters.
    Load,
    /// Their addresses are rendered by other routes.
    Render,
    /// Their records are written again.
    Renew,
}

/// A read in progress, or its result.
#[derive(Debug)]
pub(super) struct PortionRead {
    pub(super) purpose: ReadPurpose,
    pub(super) records: Vec<UnsettledRecord>,
    /// The most bytes of bodies.
    pub(super) bytes: usize,
}

/// The events of a portion that were read back.
#[derive(Debug)]
pub(super) struct ReadPortion {
    pub(super) portion: PortionRead,
    pub(super) events: VecDeque<Box<Event>>,
    pub(super) missing: Vec<UnsettledRecord>,
}

/// Reads events back, one portion at a time.
pub(super) struct UnloadedReader {
    pub(super) reads: DiskReads<Batch>,
    /// The search, at a start, for what waited before.
    pub(super) search: DiskReads<FoundRenewals>,
    rebuild: Rebuild,
    pub(super) current: Option<PortionRead>,
    /// The last portion was to be written again: others are next.
    pub(super) has_renewed: bool,
    /// There was nothing to be written again at this time.
    pub(super) looked: Option<Instant>,
}

impl UnloadedReader {
    pub(super) fn new((reader, rebuild): (Reader, Rebuild)) -> Self {
        let search = DiskReads::saying(reader.another(), SEARCHING);
        Self { search, reads: DiskReads::new(reader), rebuild, current: None, has_renewed: false, looked: None }
    }

    /// Resolves when a portion has been read. Cancel-safe.
    async fn next(&mut self, view: &BrokerStatus) -> ReadPortion {
        let Some(portion) = &self.current else { return std::future::pending().await };
        let sequences: Vec<u64> = portion.records.iter().map(|record| record.sequence).collect();
        let bytes = portion.bytes;
        let found = self.reads.run(view, move |reader| reader.find(&sequences, bytes)).await;
        let Some(portion) = self.current.take() else { return std::future::pending().await };
        let mut stored = found.records.into_iter().peekable();
        let (mut events, mut missing) = (VecDeque::new(), Vec::new());
        for record in portion.records.iter().take_while(|record| record.sequence < found.next) {
            match stored.next_if(|stored| stored.sequence == record.sequence) {
                Some(stored) => events.push_back(restored(record.number, stored, self.rebuild)),
                None => missing.push(*record),
            }
        }
        ReadPortion { portion, events, missing }
    }
}

/// The next portion that a reader has read; without one it is never there.
pub(super) async fn next_portion(reader: &mut Option<UnloadedReader>, view: &BrokerStatus) -> ReadPortion {
    match reader {
        Some(reader) => reader.next(view).await,
        None => std::future::pending().await,
    }
}
