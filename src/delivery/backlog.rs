//! Reads events that are in the journal and not in memory: the backlog, in order.

use std::collections::VecDeque;

use crate::delivery::disk_read::DiskReads;
use crate::event::{Event, Kept, Rebuild};
use crate::queue::journal::{Batch, Reader, Stored};
use crate::queue::{Backlog, Buffer};
use crate::status::BrokerStatus;

/// The journal as delivery reads it.
#[derive(Debug)]
pub(crate) struct BacklogReader {
    /// Each with the events of its records.
    reads: DiskReads<(Batch, VecDeque<Box<Event>>)>,
    /// For what waits for its address.
    another: Reader,
    rebuild: Rebuild,
}

impl BacklogReader {
    /// Reads with this reader; `rebuild` turns records into events.
    #[must_use]
    pub(crate) fn new(reader: Reader, rebuild: Rebuild) -> Self {
        Self { another: reader.another(), reads: DiskReads::new(reader), rebuild }
    }

    /// Another reader of the same journal, and what turns its records into events.
    pub(super) fn another(&self) -> (Reader, Rebuild) {
        (self.another.another(), self.rebuild)
    }

    /// Reads up to `most` events of the backlog to the end of `into`, and notes them in the queue. Records that stay
    /// unreadable count as damaged. Cancel-safe.
    pub(super) async fn read(
        &mut self,
        backlog: &Backlog,
        most: usize,
        queue: &Buffer,
        view: &BrokerStatus,
        into: &mut VecDeque<Box<Event>>,
    ) {
        let (Backlog { sequences, bytes }, rebuild) = (backlog.clone(), self.rebuild);
        let read = move |reader: &mut Reader| {
            let mut batch = reader.read(sequences.start, sequences.end, most, bytes)?;
            let records = std::mem::take(&mut batch.records).into_iter();
            let events = records.map(|stored| restored(stored.sequence, stored, rebuild)).collect();
            Ok((batch, events))
        };
        let (batch, mut events) = self.reads.run(view, read).await;
        for finding in &batch.findings {
            self.reads.report(finding);
        }
        queue.read_back(&events, batch.damaged, batch.next);
        into.append(&mut events);
    }
}

/// The event of this number from its record.
pub(super) fn restored(number: u64, stored: Stored, rebuild: Rebuild) -> Box<Event> {
    let mut event = rebuild(stored.origin, stored.body);
    (event.kept, event.renewals) = (Kept::Journal(number), stored.renewals);
    event
}
