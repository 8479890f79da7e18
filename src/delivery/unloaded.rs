//! Events that wait for their address and that the journal alone keeps: they are read back in portions when their turn
//! comes, to give them another address after a reload, and to write their records again.

use tokio::time::{Instant, timeout};

use crate::delivery::portion::{BETWEEN_RENEWALS, PortionRead, ReadPortion, ReadPurpose, next_portion};
use crate::delivery::publish::Delivery;
use crate::event::{EVENT_OVERHEAD, Event};
use crate::queue::UnsettledRecord;
use crate::queue::journal::Record;

/// The most bytes of bodies that are read at once.
const PORTION: usize = 1 << 20;

/// The most bytes of events that are written again at once.
const RENEWED: usize = 4 << 20;

/// The most bytes of records that are written again at the stop: it would take too long, and what is interrupted has been written
/// twice.
const GATHERED: u64 = 16 << 20;

/// The number of them that are written at once.
const GATHERED_AT_ONCE: usize = 256;

/// The share of the buffer that events may take while they wait for their address; copies of records may take half of it.
const SHARE: usize = 4;

impl Delivery {
    /// Finds at a start the events whose records were written again while they waited: they are older than all others that the
    /// journal has, although their records are not, and go before them.
    pub(super) async fn adopt_renewed(&mut self) {
        let (range, Some(reader)) = (self.queue.unreached(), &mut self.unloaded) else { return };
        if range.is_empty() {
            return;
        }
        let found = reader.search.run(&self.view, move |reader| reader.renewals(&range)).await;
        let adopted = self.queue.adopt(&found);
        let lengths = found.renewed.iter().map(|record| record.bytes as u64);
        self.ring.adopt(adopted.into_iter().zip(lengths));
    }

    /// Notes in the queue what was unloaded, and how much may be in memory.
    pub(super) fn note_unloaded(&mut self) {
        let memory = self.unloaded.is_some().then(|| self.queue.limits().bytes / SHARE);
        self.ring.destinations.set_memory(memory, self.drain.has_begun());
        self.ring.destinations.set_full(self.queue.held().1 >= self.queue.limits().bytes);
        let (events, bytes) = self.ring.destinations.take_freed();
        if events > 0 {
            self.queue.unload(events, bytes);
        }
        // At the stop nothing is unloaded any more, and no more is read than there is room for.
        let most = memory.filter(|_| !self.drain.has_begun()).unwrap_or(0);
        let parked = self.ring.destinations.loaded_bytes().min(most);
        if self.unloaded.is_some() && std::mem::replace(&mut self.noted_parked, parked) != parked {
            self.queue.note_parked(parked);
        }
    }

    /// Begins to read what is wanted next, if nothing is being read.
    pub(super) fn begin_portion(&mut self) {
        let Some(reader) = self.unloaded.as_ref().filter(|reader| reader.current.is_none()) else { return };
        let portion = if reader.has_renewed {
            self.wanted_portion().or_else(|| self.old_portion())
        } else {
            self.old_portion().or_else(|| self.wanted_portion())
        };
        if let Some(reader) = &mut self.unloaded {
            let is_renewal = |portion: &PortionRead| portion.purpose == ReadPurpose::Renew;
            reader.has_renewed = portion.as_ref().is_some_and(is_renewal);
            reader.current = portion;
        }
    }

    /// The old records that are to be written again; if there were none a moment ago, there are none.
    fn old_portion(&mut self) -> Option<PortionRead> {
        let (reader, now) = (self.unloaded.as_mut()?, Instant::now());
        if reader.looked.is_some_and(|looked| now < looked + BETWEEN_RENEWALS) {
            return None;
        }
        let most = (self.queue.limits().bytes / SHARE / 2).min(RENEWED);
        let waiting = self.ring.destinations.record_bytes() + self.settler.record_bytes();
        let records = self.queue.old_records(waiting, (most / EVENT_OVERHEAD).max(1))?;
        reader.looked = records.is_empty().then_some(now);
        (!records.is_empty()).then_some(PortionRead { purpose: ReadPurpose::Renew, records, bytes: most })
    }

    fn wanted_portion(&mut self) -> Option<PortionRead> {
        // Dead letters take memory until they are written, and while they cannot be none is made.
        let refuse_after = Some(self.settings.refuse_after).filter(|_| self.settler.is_empty());
        let (purpose, mut wanted) = match self.ring.destinations.to_render() {
            // Refused ones that are not written yet would fill the memory; if they cannot be written, none is refused.
            none if none.is_empty() && self.settler.is_behind() => return None,
            none if none.is_empty() => (ReadPurpose::Load, self.ring.destinations.to_load(refuse_after)),
            unrendered => (ReadPurpose::Render, unrendered),
        };
        let bytes = (self.queue.limits().bytes / SHARE).min(PORTION);
        wanted.truncate((bytes / EVENT_OVERHEAD).max(1));
        if wanted.is_empty() {
            return None;
        }
        Some(PortionRead { purpose, records: self.queue.records(&wanted), bytes })
    }

    /// Uses a portion that has been read.
    pub(super) fn take_portion(&mut self, read: ReadPortion) {
        let ReadPortion { portion, mut events, missing } = read;
        let damaged = self.queue.damaged(missing);
        let is_renewal = portion.purpose == ReadPurpose::Renew;
        if is_renewal {
            events.extend(damaged.iter().filter_map(|record| self.in_memory(record.number)));
        }
        events.make_contiguous().sort_unstable_by_key(|event| event.kept.number());
        if is_renewal {
            self.queue.renew(events.into_iter());
            if let Some(reader) = self.unloaded.as_mut().filter(|_| !self.queue.is_renewing()) {
                // There was no room for a copy.
                reader.looked = Some(Instant::now());
            }
        } else {
            for event in events {
                self.take_read(event, portion.purpose);
            }
        }
        self.lose_damaged(&damaged);
        self.ring.destinations.forget_idle();
    }

    /// Writes the records of all that delivery holds again, at the end of a stop: the next start begins with them, in their
    /// order, and sends nothing of what is settled between them. Where that is not possible, all stays as it is.
    pub(super) async fn gather_records(&mut self) {
        self.settle();
        // What becomes a dead letter after that would be in the journal, too.
        while self.settler.is_writing() {
            self.settler.finish().await;
            self.settle();
        }
        let Some(reader) = self.unloaded.as_ref() else { return };
        if reader.current.is_some() {
            let read = next_portion(&mut self.unloaded, &self.view).await;
            self.take_portion(read);
        }
        self.wait_for_copies().await;
        let in_memory = self.unsettled().map(|event| Record::of(event).length()).sum::<u64>();
        let size = in_memory + self.ring.destinations.unloaded_bytes();
        let records = self.queue.gather(size, GATHERED);
        for portion in records.chunks(GATHERED_AT_ONCE) {
            let mut ascending = portion.to_vec();
            ascending.sort_unstable_by_key(|record| record.sequence);
            if let Some(reader) = &mut self.unloaded {
                let (purpose, bytes) = (ReadPurpose::Renew, usize::MAX);
                reader.current = Some(PortionRead { purpose, records: ascending, bytes });
            }
            let read = next_portion(&mut self.unloaded, &self.view).await;
            self.take_portion(read);
            self.wait_for_copies().await;
        }
        self.queue.has_gathered(&records);
    }

    async fn wait_for_copies(&self) {
        while self.queue.is_renewing() {
            // If they cannot be written, nothing else is said.
            let _ = timeout(BETWEEN_RENEWALS, self.queue.ready()).await;
        }
    }

    fn take_read(&mut self, event: Box<Event>, purpose: ReadPurpose) {
        let Some(number) = event.kept.number() else { return };
        let (cost, received) = (event.cost(), event.origin.received);
        let (message, pair, refusal) = self.message_of(event);
        if purpose == ReadPurpose::Render && refusal.is_none() {
            return self.ring.rendered(number, &message.address, &message.key, received);
        }
        let Some(sequence) = self.ring.load(number, message, pair) else { return };
        self.queue.load(cost, received);
        if let Some(refusal) = refusal {
            self.refused(sequence, refusal, false);
        }
    }

    /// A copy of an event in memory whose record is damaged.
    fn in_memory(&self, number: u64) -> Option<Box<Event>> {
        let mut held = self.unsettled();
        held.find(|event| event.kept.number() == Some(number)).map(|event| Box::new(event.clone()))
    }

    /// Counts as lost what only damaged records kept.
    fn lose_damaged(&mut self, damaged: &[UnsettledRecord]) {
        for record in damaged {
            if self.ring.destinations.take_unloaded(record.number, None).is_none() {
                continue;
            }
            self.queue.lose_damaged(&[record.number]);
            if let Some(reader) = &mut self.unloaded {
                reader
                    .reads
                    .report(&format!("record {} is damaged, whose event waits for its address", record.sequence));
            }
        }
    }
}
