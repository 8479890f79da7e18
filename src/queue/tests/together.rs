//! The queue and its journal together, with the real writer on a real directory.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use crate::event::{Event, Fields, Kept, Origin, Outcome, Waiter};
use crate::metrics::Metrics;
use crate::queue::journal::{self, FoundRenewals, Opened, Reader, Record};
use crate::queue::{Ack, Buffer, EventEnd, Journaling, Mode, NotTaken, Settlement, SpillResult, Taken};
use crate::status::{ConnectionState, Heartbeat, Ledger, Limits, SourceBook};

struct Queue {
    buffer: Arc<Buffer>,
    reader: Reader,
    writer: Option<JoinHandle<()>>,
}

impl Queue {
    /// Room for three events in memory, four small segments on disk.
    fn open(ack: Ack, directory: &Path) -> Self {
        let settings = journal::Settings { max_bytes: 4 * 8192, segment_bytes: 8192 };
        let Opened { layout, writer, reader, recovered, damaged, .. } =
            journal::open(&directory.join("journal"), &settings).unwrap();
        let ledger = Ledger::new(vec![SourceBook::new("a".into(), [])]);
        let limits = Limits { events: 3, bytes: 1 << 20 };
        let buffer = Buffer::new(Mode { ack, timeout: Duration::from_secs(4) }, limits, ledger);
        let buffer = Arc::new(buffer.with_journal(layout, recovered, damaged));
        let journaling = Journaling::new(
            buffer.clone(),
            writer,
            Arc::new(Metrics::new("buffered")),
            Heartbeat::new("the writer"),
        );
        Self { buffer, reader, writer: Some(std::thread::spawn(move || journaling.run())) }
    }

    fn enqueue(&self, number: usize) -> Result<Option<Arc<Waiter>>, NotTaken> {
        self.buffer.enqueue(0, None, event(number), &Arc::default())
    }

    /// Enqueues an event and waits until it is on disk.
    fn accept(&self, number: usize) {
        let waiter = self.enqueue(number).unwrap().unwrap();
        assert_eq!(outcome(&waiter), Outcome::Kept);
    }

    /// Takes the next events, from memory or from disk; collects their cuids.
    fn take(&mut self, most: usize, into: &mut VecDeque<Box<Event>>) -> usize {
        match self.buffer.take(most, into) {
            Taken::Events(count) => count,
            Taken::Nothing => 0,
            Taken::OnDisk(backlog) => {
                let (from, end) = (backlog.sequences.start, backlog.sequences.end);
                let batch = self.reader.read(from, end, most, backlog.bytes).unwrap();
                let mut events: VecDeque<_> = batch
                    .records
                    .into_iter()
                    .map(|stored| {
                        let mut event = event(stored.body.len());
                        event.kept = Kept::Journal(stored.sequence);
                        event
                    })
                    .collect();
                self.buffer.read_back(&events, batch.damaged, batch.next);
                into.append(&mut events);
                into.len()
            }
        }
    }

    fn settle(&self, event: &Event) {
        let mut settlement = Settlement::default();
        settlement.add(event, EventEnd::Published(0));
        self.buffer.settle(&settlement, None);
        self.check();
    }

    /// Takes and settles everything; returns the lengths of the bodies, which identify the events.
    fn drain(&mut self) -> Vec<usize> {
        let mut seen = Vec::new();
        let mut taken = VecDeque::new();
        while self.take(2, &mut taken) > 0 {
            for event in taken.drain(..) {
                seen.push(event.body.len());
                self.settle(&event);
            }
        }
        seen
    }

    fn check(&self) -> crate::status::Totals {
        let totals = self.buffer.snapshot().totals();
        assert_eq!(totals.mismatch(), 0, "{totals:?}");
        totals
    }

    fn close(&mut self) {
        self.buffer.close_journal();
        self.writer.take().unwrap().join().unwrap();
    }
}

fn outcome(waiter: &Waiter) -> Outcome {
    for _ in 0..1000 {
        if let Some(outcome) = waiter.outcome() {
            return outcome;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("no outcome");
}

/// An event with a body of this length.
fn event(number: usize) -> Box<Event> {
    let origin = Origin {
        source: "a".into(),
        signature: None,
        verified: false,
        traceparent: None,
        received: SystemTime::now(),
    };
    Box::new(Event::new(origin, vec![b'x'; number].into(), &Fields::default(), &[0; 32]))
}

#[test]
fn a_batch_waits_for_more_where_the_last_was_large_and_it_is_smaller() {
    let directory = tempfile::tempdir().unwrap();
    let settings = journal::Settings { max_bytes: 4 * 8192, segment_bytes: 8192 };
    let Opened { layout, recovered, damaged, .. } = journal::open(directory.path(), &settings).unwrap();
    let mode = Mode { ack: Ack::Journaled, timeout: Duration::from_secs(4) };
    let ledger = Ledger::new(vec![SourceBook::new("a".into(), [])]);
    let buffer = Buffer::new(mode, Limits { events: 100, bytes: 1 << 20 }, ledger);
    let buffer = buffer.with_journal(layout, recovered, damaged);
    let arrive = |count| {
        for number in 0..count {
            buffer.enqueue(0, None, event(number), &Arc::default()).unwrap();
        }
    };
    for (last, arrived, gathers) in [(8, 3, true), (8, 8, false), (8, 0, false), (3, 1, false)] {
        arrive(last);
        drop(buffer.work_now());
        arrive(arrived);
        assert_eq!(buffer.lock().disk.as_ref().unwrap().gathers(), gathers, "{arrived} after {last}");
        drop(buffer.work_now());
    }
}

#[test]
fn comes_back_from_disk_in_order_when_memory_was_full() {
    let directory = tempfile::tempdir().unwrap();
    let mut queue = Queue::open(Ack::Journaled, directory.path());
    (1..=20).for_each(|number| queue.accept(number));
    let snapshot = queue.buffer.snapshot();
    assert_eq!((snapshot.events, snapshot.held), (3, 20), "memory is bounded");
    let mut taken = VecDeque::new();
    assert_eq!(queue.take(2, &mut taken), 2);
    // Events accepted meanwhile follow those on disk.
    (21..=30).for_each(|number| queue.accept(number));
    let first: Vec<usize> = taken.iter().map(|event| event.body.len()).collect();
    for event in &taken {
        queue.settle(event);
    }
    assert_eq!([first, queue.drain()].concat(), (1..=30).collect::<Vec<_>>());
    // Caught up: memory is used again.
    queue.accept(31);
    assert_eq!(queue.buffer.snapshot().events, 1);
    assert_eq!(queue.drain(), [31]);
    assert_eq!((queue.check().published, queue.check().held), (31, 0));
    queue.close();
}

#[test]
fn delivers_what_was_not_settled_once_more_after_a_restart_and_first() {
    let directory = tempfile::tempdir().unwrap();
    let mut queue = Queue::open(Ack::Journaled, directory.path());
    (1..=5).for_each(|number| queue.accept(number));
    let mut taken = VecDeque::new();
    queue.take(3, &mut taken);
    queue.settle(&taken[0]);
    queue.settle(&taken[2]);
    queue.close();
    // Out of order it does not count: the watermark is the oldest unsettled sequence.
    let mut queue = Queue::open(Ack::Buffered, directory.path());
    assert_eq!((queue.check().recovered, queue.check().held), (4, 4));
    assert!(queue.enqueue(9).unwrap().is_none());
    assert_eq!(queue.drain(), [2, 3, 4, 5, 9]);
    queue.close();
    let mut queue = Queue::open(Ack::Buffered, directory.path());
    assert_eq!(queue.check().recovered, 0);
    queue.close();
}

#[test]
fn is_refused_only_for_a_full_journal_and_takes_again_when_it_is_settled() {
    let directory = tempfile::tempdir().unwrap();
    let mut queue = Queue::open(Ack::Journaled, directory.path());
    let mut accepted = 0;
    while let Ok(waiter) = queue.enqueue(1000) {
        assert_eq!(outcome(&waiter.unwrap()), Outcome::Kept);
        accepted += 1;
    }
    assert!(queue.buffer.snapshot().journal.unwrap().full);
    assert_eq!(queue.check().rejected, 1);
    let bytes: u64 = directory
        .path()
        .join("journal")
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(bytes <= 4 * 8192, "{bytes}");
    assert_eq!(queue.drain().len(), accepted);
    assert!(!queue.buffer.snapshot().journal.unwrap().full);
    queue.accept(1000);
    queue.close();
}

#[test]
fn keeps_at_the_stop_what_only_memory_held() {
    let directory = tempfile::tempdir().unwrap();
    let mut queue = Queue::open(Ack::Buffered, directory.path());
    (1..=3).for_each(|number| assert!(queue.enqueue(number).unwrap().is_none()));
    let mut taken = VecDeque::new();
    queue.take(1, &mut taken);
    queue.buffer.drain();
    let SpillResult::Waits(waiter) = queue.buffer.spill(taken.iter().map(|event| &**event), 1 << 20) else {
        panic!("there are events to spill");
    };
    assert_eq!(outcome(&waiter), Outcome::Kept);
    let none = std::iter::empty();
    assert!(matches!(queue.buffer.spill(none, 1 << 20), SpillResult::Done));
    queue.check();
    // Delivery continues, and its settlements reach the disk.
    queue.settle(&taken[0]);
    queue.buffer.lose(std::iter::empty());
    let totals = queue.check();
    assert_eq!((totals.published, totals.held, totals.lost), (1, 2, 0));
    queue.close();
    let mut queue = Queue::open(Ack::Published, directory.path());
    assert_eq!(queue.drain(), [2, 3]);
    queue.close();
}

#[test]
fn loses_at_the_stop_what_the_journal_has_no_room_for() {
    let directory = tempfile::tempdir().unwrap();
    let mut queue = Queue::open(Ack::Buffered, directory.path());
    // Larger than a segment.
    (0..3).for_each(|_| assert!(queue.enqueue(9000).unwrap().is_none()));
    assert!(matches!(queue.buffer.spill(std::iter::empty(), 1 << 20), SpillResult::Refused(_)));
    queue.buffer.lose(std::iter::empty());
    let totals = queue.check();
    assert_eq!((totals.lost, totals.held), (3, 0));
    queue.close();
}

#[test]
fn lets_go_of_what_was_withdrawn() {
    let directory = tempfile::tempdir().unwrap();
    let mut queue = Queue::open(Ack::Published, directory.path());
    queue.buffer.note_connection(ConnectionState::Connected);
    let waiters: Vec<_> = (1..=3).map(|number| queue.enqueue(number).unwrap().unwrap()).collect();
    assert!(waiters[0].withdraw() && waiters[2].withdraw());
    queue.buffer.sweep();
    assert_eq!((queue.check().withdrawn, queue.check().held), (2, 1));
    assert_eq!(queue.drain(), [2]);
    queue.close();
}

#[test]
fn delivers_after_the_stop_has_begun_what_stood_behind_one_that_was_withdrawn() {
    let directory = tempfile::tempdir().unwrap();
    let mut queue = Queue::open(Ack::Published, directory.path());
    queue.buffer.note_connection(ConnectionState::Connected);
    let waiters: Vec<_> = (1..=3).map(|number| queue.enqueue(number).unwrap().unwrap()).collect();
    assert!(waiters[0].withdraw());
    queue.buffer.drain();
    let SpillResult::Waits(waiter) = queue.buffer.spill(std::iter::empty(), 1 << 20) else {
        panic!("there are events to spill");
    };
    assert_eq!(outcome(&waiter), Outcome::Kept);
    assert_eq!(queue.drain(), [2, 3]);
    assert!(queue.buffer.is_empty(), "no event is still waited for");
    assert_eq!((queue.check().withdrawn, queue.check().published, queue.check().held), (1, 2, 0));
    queue.close();
}

/// Writes old records again, as delivery does: it reads them first.
fn renew(queue: &Queue, waiting: u64) {
    let Some(old) = queue.buffer.old_records(waiting, 100) else { return };
    let sequences: Vec<u64> = old.iter().map(|record| record.sequence).collect();
    let found = queue.reader.another().find(&sequences, 1 << 20).unwrap().records;
    assert_eq!(found.len(), old.len());
    queue.buffer.renew(found.into_iter().zip(&old).map(|(stored, record)| {
        let mut event = event(stored.body.len());
        event.kept = Kept::Journal(record.number);
        event
    }));
}

/// Accepts and settles so many events of this size, while delivery holds others.
fn pass(queue: &mut Queue, held: &VecDeque<Box<Event>>, count: usize, size: usize) {
    let bytes = held.iter().map(|event| Record::of(event).length()).sum();
    for _ in 0..count {
        queue.accept(size);
        assert_eq!(queue.drain(), [size], "each once");
        renew(queue, bytes);
    }
}

#[test]
fn a_record_that_is_held_for_long_keeps_no_segment_and_is_kept_nevertheless() {
    let directory = tempfile::tempdir().unwrap();
    let mut queue = Queue::open(Ack::Journaled, directory.path());
    let mut held = VecDeque::new();
    queue.accept(10);
    queue.accept(11);
    assert_eq!(queue.take(2, &mut held), 2);
    // The journal turns over ten times.
    pass(&mut queue, &held, 400, 800);
    let settled = held.pop_front().unwrap();
    queue.settle(&settled);
    pass(&mut queue, &held, 100, 800);
    queue.close();
    let mut queue = Queue::open(Ack::Journaled, directory.path());
    let recovered = queue.buffer.snapshot().ledger.recovered;
    assert!(recovered < 40, "{recovered} records are read again");
    let read = queue.drain();
    assert_eq!(read.iter().filter(|size| **size == 11).count(), 1, "{read:?}");
    assert!(!read.contains(&10), "{read:?}");
    queue.close();
}

#[test]
fn a_copy_is_settled_with_its_event_whenever_that_happens() {
    let directory = tempfile::tempdir().unwrap();
    let mut queue = Queue::open(Ack::Journaled, directory.path());
    for at in 0..60 {
        let mut held = VecDeque::new();
        queue.accept(10);
        assert_eq!(queue.take(1, &mut held), 1);
        pass(&mut queue, &held, at, 800);
        queue.settle(&held[0]);
    }
    let totals = queue.check();
    assert_eq!((totals.held, queue.drain()), (0, vec![]));
    queue.close();
    let mut queue = Queue::open(Ack::Journaled, directory.path());
    assert_eq!(queue.drain(), [0; 0]);
    queue.close();
}

/// A stop wrote events of two addresses. One of them takes nothing after the start: its events fill what may be read, and must
/// not keep those of the other on disk.
#[test]
fn what_waits_for_its_address_in_memory_keeps_nothing_else_on_disk() {
    let directory = tempfile::tempdir().unwrap();
    let mut queue = Queue::open(Ack::Journaled, directory.path());
    (0..8).for_each(|_| queue.accept(1000));
    queue.close();
    let mut queue = Queue::open(Ack::Buffered, directory.path());
    queue.buffer.limit(Limits { events: 100, bytes: 2 << 10 });
    let mut taken = VecDeque::new();
    while queue.take(1, &mut taken) > 0 && queue.buffer.on_disk().is_some() {}
    let waiting = taken.len();
    assert!((1..8).contains(&waiting), "{waiting}");
    queue.buffer.note_parked(taken.iter().map(|event| event.cost()).sum());
    queue.take(1, &mut taken);
    assert_eq!(taken.len(), waiting + 1);
    queue.close();
}

/// A crash between a copy and the watermark leaves both; one of them is no event.
#[test]
fn a_repeated_copy_counts_nowhere_as_recovered() {
    let directory = tempfile::tempdir().unwrap();
    let mut queue = Queue::open(Ack::Journaled, directory.path());
    (1..=5).for_each(|number| queue.accept(number));
    queue.close();
    let mut queue = Queue::open(Ack::Journaled, directory.path());
    queue.buffer.adopt(&FoundRenewals { repeated: vec![3], ..FoundRenewals::default() });
    let journal = queue.buffer.snapshot().journal.unwrap();
    assert_eq!((queue.check().recovered, journal.recovered, journal.events), (4, 4, 4));
    queue.close();
}
