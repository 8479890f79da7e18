//! Reads events that are in the journal and not in memory: the backlog, in order.

use std::collections::VecDeque;

use crate::delivery::disk_read::DiskReads;
use crate::event::{Event, Kept, Rebuild};
use crate::queue::journal::{Batch, Reader, RecordLookup, Stored};
use crate::queue::{Backlog, Buffer};
use crate::status::BrokerStatus;

/// The journal as delivery reads it.
#[derive(Debug)]
pub(crate) struct BacklogReader {
    reads: DiskReads<Reader, Read>,
    lookup: Option<RecordLookup>,
    rebuild: Rebuild,
}

/// The result of one read: sound events, the number of damaged records, the sequence to continue with.
#[derive(Debug)]
struct Read {
    events: VecDeque<Box<Event>>,
    damaged: u64,
    next: u64,
    findings: Vec<String>,
}

impl BacklogReader {
    /// Reads with this reader; `rebuild` turns records into events.
    #[must_use]
    pub(crate) fn new(reader: Reader, rebuild: Rebuild) -> Self {
        let lookup = Some(reader.lookup());
        Self { reads: DiskReads::new(reader, Reader::skip_unreadable), lookup, rebuild }
    }

    /// The search for single records of the same journal, the first time; and what turns records into events.
    pub(super) fn lookup(&mut self) -> Option<(RecordLookup, Rebuild)> {
        Some((self.lookup.take()?, self.rebuild))
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
        let (wanted, rebuild) = (backlog.clone(), self.rebuild);
        let read = move |reader: &mut Reader| {
            let batch = reader.read(wanted.sequences.start, wanted.sequences.end, most, wanted.bytes);
            batch.map(|batch| put_together(batch, rebuild))
        };
        let mut read = self.reads.run(view, read).await;
        for finding in &read.findings {
            self.reads.report(finding);
        }
        queue.read_back(&read.events, read.damaged, read.next);
        into.append(&mut read.events);
    }
}

/// The event of a record, known by this sequence.
pub(super) fn restored(stored: Stored, name: u64, rebuild: Rebuild) -> Box<Event> {
    let mut event = rebuild(stored.origin, stored.body);
    event.kept = Kept::Journal(name);
    event
}

fn put_together(batch: Batch, rebuild: Rebuild) -> Read {
    let Batch { records, next, damaged, findings } = batch;
    let events = records.into_iter().map(|stored| {
        let name = stored.sequence;
        restored(stored, name, rebuild)
    });
    Read { events: events.collect(), damaged, next, findings }
}
