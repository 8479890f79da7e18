//! The queue as a whole against a plain list: the actions of ingress, delivery, the journal's writer, a reload and the
//! stop, in any order, on a disk that hangs, fills, fails and recovers.
//!
//! Events have rising numbers, in the order of acceptance. The list knows which of them must still be delivered.
//!
//! Length: the steps and their possible outcomes form one description.

use std::collections::{BTreeSet, VecDeque};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use proptest::prelude::*;
use tempfile::TempDir;

use crate::event::{Event, Fields, Kept, Origin, Outcome, Waiter};
use crate::metrics::Metrics;
use crate::process::failpoint::set_here;
use crate::queue::journal::{self, Opened, Reader, Record};
use crate::queue::writer::WriterStep;
use crate::queue::{Ack, Buffer, EventEnd, Journaling, Mode, NotTaken, Settlement, SpillResult, Taken};
use crate::status::{Heartbeat, Ledger, Limits, RefusalReason, SourceBook};

const JOURNAL: journal::Settings = journal::Settings { max_bytes: 6 * 8192, segment_bytes: 8192 };
const MODE_TIMEOUT: Duration = Duration::from_mins(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DiskState {
    Sound,
    /// No further segment can be made.
    Full,
    /// All writes fail from now on.
    Failing,
}

#[derive(Clone, Debug)]
enum QueueStep {
    Enqueue(usize),
    Take(usize),
    /// Settles the event at this position of those taken, as published or as a dead letter.
    Settle(usize, bool),
    /// A reload.
    Limit {
        events: usize,
        kilobytes: usize,
    },
    Disk(DiskState),
    /// The writer takes its next step, and the disk begins with it.
    Begin,
    /// The disk answers.
    Finish,
    /// The disk does not answer for longer than a sender waits.
    Hang,
    /// The stop begins.
    Drain,
    /// The stop writes the events that only memory keeps, without waiting for the answer.
    Spill,
    /// The process ends, and another one starts; the disk answers before the end, after it, or never.
    Restart(Reply),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reply {
    Before,
    After,
    Never,
}

fn step() -> impl Strategy<Value = QueueStep> {
    let disk = prop_oneof![
        4 => Just(DiskState::Sound),
        3 => Just(DiskState::Full),
        1 => Just(DiskState::Failing),
    ];
    let answer = prop_oneof![3 => Just(Reply::Before), 1 => Just(Reply::After), 1 => Just(Reply::Never)];
    prop_oneof![
        12 => prop_oneof![3 => 1_usize..300, 1 => 1000_usize..3000].prop_map(QueueStep::Enqueue),
        6 => (1_usize..6).prop_map(QueueStep::Take),
        6 => (0_usize..8, any::<bool>()).prop_map(|(at, is_published)| QueueStep::Settle(at, is_published)),
        2 => (1_usize..8, 1_usize..16).prop_map(|(events, kilobytes)| QueueStep::Limit { events, kilobytes }),
        2 => disk.prop_map(QueueStep::Disk),
        6 => Just(QueueStep::Begin),
        6 => Just(QueueStep::Finish),
        1 => Just(QueueStep::Hang),
        1 => Just(QueueStep::Drain),
        3 => Just(QueueStep::Spill),
        2 => answer.prop_map(QueueStep::Restart),
    ]
}

struct QueueModel {
    directory: TempDir,
    ack: Ack,
    limits: Limits,
    disk: DiskState,
    run: Run,
    next: usize,
    /// Accepted and neither settled nor lost.
    held: BTreeSet<usize>,
    /// The events of `journaled` without an answer yet.
    asked: Vec<(usize, Arc<Waiter>)>,
    /// Settled, or perhaps lost, before this start: they may be delivered once more.
    repeatable: BTreeSet<usize>,
    /// The number of those that are delivered once more in this run, and not settled yet.
    repeats: u64,
}

/// One run of the process.
struct Run {
    buffer: Arc<Buffer>,
    journaling: Journaling,
    reader: Reader,
    /// The step that the disk is working on.
    work: Option<WriterStep>,
    taken: VecDeque<Box<Event>>,
    /// The highest number that delivery took.
    last: Option<usize>,
    spilling: Option<Arc<Waiter>>,
    draining: bool,
}

impl QueueModel {
    fn new(ack: Ack) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let limits = Limits { events: 4, bytes: 8 << 10 };
        let run = Run::start(&directory.path().join("journal"), ack, limits);
        Self {
            directory,
            ack,
            limits,
            disk: DiskState::Sound,
            run,
            next: 1,
            held: BTreeSet::new(),
            asked: Vec::new(),
            repeatable: BTreeSet::new(),
            repeats: 0,
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("journal")
    }

    fn steps(&mut self, steps: &[QueueStep]) {
        for step in steps {
            self.step(step);
        }
    }

    fn step(&mut self, step: &QueueStep) {
        match *step {
            QueueStep::Enqueue(size) => self.enqueue(size),
            QueueStep::Take(most) => {
                self.take(most);
            }
            QueueStep::Settle(at, is_published) => self.settle(at, is_published),
            QueueStep::Limit { events, kilobytes } => {
                self.limits = Limits { events, bytes: kilobytes << 10 };
                self.run.buffer.limit(self.limits);
            }
            QueueStep::Disk(state) => self.disk = state,
            QueueStep::Begin => self.run.begin(),
            QueueStep::Finish => self.finish(),
            QueueStep::Hang => {
                if self.run.work.is_some()
                    && let Some(disk) = &mut self.run.buffer.lock().disk
                    && disk.writing_since.is_some()
                {
                    disk.writing_since = Instant::now().checked_sub(2 * MODE_TIMEOUT);
                }
            }
            QueueStep::Drain => {
                self.run.draining = true;
                self.run.buffer.drain();
            }
            QueueStep::Spill => self.spill(),
            QueueStep::Restart(answer) => self.restart(answer),
        }
        self.check();
    }

    fn enqueue(&mut self, size: usize) {
        let event = event(self.next, size);
        let (fits_in_memory, on_disk) = self.room(&event);
        let was_short = self.is_short();
        let enqueued = self.run.buffer.enqueue(0, None, event, &Arc::default());
        let number = self.next;
        match enqueued {
            Ok(None) => {
                assert!(fits_in_memory, "accepted beyond the limit");
                self.held.insert(number);
            }
            Ok(Some(waiter)) => {
                assert!(on_disk.is_some(), "accepted although the disk is stalled, behind or failed");
                self.asked.push((number, waiter));
            }
            Err(NotTaken::Draining) => assert!(self.run.draining),
            Err(NotTaken::Full) => assert!(!fits_in_memory, "refused although there is room"),
            Err(refused) => {
                assert_ne!(on_disk, Some(true), "{refused:?}, although it fits in what exists");
                assert!(self.is_short() || !was_short, "a refusal does not make room");
            }
        }
        self.next += 1;
    }

    /// Whether memory has room for the event; and if the disk works, whether it has, without another segment.
    fn room(&self, event: &Event) -> (bool, Option<bool>) {
        let (events, bytes) = self.run.buffer.held();
        let in_memory = events < self.limits.events && bytes + event.cost() <= self.limits.bytes;
        let state = self.run.buffer.lock();
        let disk = state.disk.as_ref().unwrap();
        let is_behind = disk.unsynced_bytes > 0 && disk.unsynced_bytes + event.cost() > self.limits.bytes;
        let works = disk.failed.is_none() && !disk.is_stalled(MODE_TIMEOUT) && !is_behind;
        let length = Record::of(event).length();
        (in_memory, works.then(|| disk.layout.clone().reserve_existing(length).is_some()))
    }

    fn is_short(&self) -> bool {
        self.run.buffer.snapshot().journal.unwrap().short
    }

    /// Takes the next events, from memory or from disk; returns their number.
    fn take(&mut self, most: usize) -> usize {
        let before = self.run.taken.len();
        self.run.take(most);
        let taken: Vec<usize> = self.run.taken.iter().skip(before).map(|event| number(event)).collect();
        for number in &taken {
            assert!(self.run.last.is_none_or(|last| last < *number), "{number} after {:?}", self.run.last);
            let passed = self.held.range(self.run.last.map_or(0, |last| last + 1)..*number).next();
            assert_eq!(passed, None, "passed over by {number}");
            assert!(
                self.held.contains(number) || self.repeatable.contains(number),
                "{number} was never accepted, or is delivered twice"
            );
            self.run.last = Some(*number);
        }
        taken.len()
    }

    fn settle(&mut self, at: usize, is_published: bool) {
        if self.run.taken.is_empty() {
            return;
        }
        let event = self.run.taken.remove(at % self.run.taken.len()).unwrap();
        let mut settlement = Settlement::default();
        let end = if is_published { EventEnd::Published(0) } else { EventEnd::DeadLettered(RefusalReason::Other) };
        settlement.add(&event, end);
        self.run.buffer.settle(&settlement, None);
        if !self.held.remove(&number(&event)) {
            self.repeats -= 1;
        }
        self.repeatable.insert(number(&event));
    }

    fn finish(&mut self) {
        set_here(match self.disk {
            DiskState::Sound => &[],
            DiskState::Full => &[("journal.create", ErrorKind::StorageFull)],
            DiskState::Failing => &[("journal.write", ErrorKind::Other)],
        });
        if let Some(work) = self.run.work.take() {
            self.run.journaling.carry_out(work);
        }
        set_here(&[]);
        self.note_outcomes();
    }

    /// Notes the outcomes of the events that wait for the disk.
    fn note_outcomes(&mut self) {
        for (number, waiter) in std::mem::take(&mut self.asked) {
            match waiter.outcome() {
                None => self.asked.push((number, waiter)),
                Some(Outcome::Kept) => {
                    self.held.insert(number);
                }
                // After a failed write it may be on the disk nevertheless, although its sender got an error.
                Some(_) => {
                    self.repeatable.insert(number);
                }
            }
        }
    }

    fn spill(&mut self) {
        if !self.run.draining || self.run.spilling.as_ref().is_some_and(|waiter| waiter.outcome().is_none()) {
            return;
        }
        self.run.spilling = None;
        match self.run.buffer.spill(self.run.taken.iter().map(|event| &**event), 2000) {
            SpillResult::Waits(waiter) => self.run.spilling = Some(waiter),
            SpillResult::Done | SpillResult::Refused(_) => {}
        }
    }

    /// The end of the process as the stop performs it, and the next start.
    fn restart(&mut self, answer: Reply) {
        self.run.draining = true;
        self.run.buffer.drain();
        for _ in 0..200 {
            self.spill();
            if self.run.spilling.is_none() || answer != Reply::Before {
                break;
            }
            self.run.begin();
            self.finish();
        }
        let lost = self.run.lost();
        self.run.buffer.lose(self.run.taken.iter().map(|event| &**event));
        if answer != Reply::Never {
            self.run.buffer.close_journal();
            self.finish();
            self.run.begin();
            self.finish();
        }
        // An answer that arrived too late: it may be on the disk, whatever was counted.
        self.repeatable.extend(self.asked.drain(..).map(|(number, _)| number));
        self.repeatable.extend(&lost);
        self.held.retain(|number| !lost.contains(number));
        let totals = self.run.buffer.snapshot().totals();
        assert_eq!(totals.mismatch(), 0, "{totals:?}");
        assert_eq!(totals.held, self.held.len() as u64 + self.repeats, "{totals:?}, lost {lost:?}");
        let is_sound = answer == Reply::Before && self.disk == DiskState::Sound;
        assert!(!is_sound || lost.len() <= self.may_lose(), "lost {lost:?} on a sound disk with room");
        let path = self.path();
        self.disk = DiskState::Sound;
        self.run = Run::start(&path, self.ack, self.limits);
        let recovered = self.run.buffer.snapshot().totals().recovered;
        let repeats = recovered.checked_sub(self.held.len() as u64);
        self.repeats = repeats.unwrap_or_else(|| panic!("{recovered} of {} are there", self.held.len()));
    }

    /// The number of events that a stop may lose because the journal has no room for them, or failed before.
    fn may_lose(&self) -> usize {
        let state = self.run.buffer.lock();
        let disk = state.disk.as_ref().unwrap();
        let has_room = disk.failed.is_none() && disk.no_space.is_none() && disk.layout.available() > 4000;
        if has_room { 0 } else { usize::MAX }
    }

    fn check(&self) {
        let snapshot = self.run.buffer.snapshot();
        let totals = snapshot.totals();
        assert_eq!(totals.mismatch(), 0, "{totals:?}");
        let state = self.run.buffer.lock();
        let disk = state.disk.as_ref().unwrap();
        assert!(disk.events as u64 <= totals.held, "the journal keeps {} events of {totals:?}", disk.events);
        assert!(disk.unsynced_bytes <= self.limits.bytes.max(32 << 10), "{} bytes unsynced", disk.unsynced_bytes);
        assert!(state.taken_bytes <= state.bytes);
        assert_eq!(totals.held, self.held.len() as u64 + self.repeats, "{totals:?}");
    }

    /// Checks that everything is delivered, and the bridge is ready, once disk and broker work.
    fn recovers(&mut self) {
        self.disk = DiskState::Sound;
        let has_failed = self.run.buffer.snapshot().journal.unwrap().failed.is_some();
        if self.run.draining || has_failed {
            self.restart(Reply::Before);
        }
        let (mut idle, mut rounds) = (0, 0);
        while idle < 3 {
            if let Some(disk) = &mut self.run.buffer.lock().disk {
                disk.make_now();
            }
            self.run.begin();
            self.finish();
            let moved = self.take(3);
            while !self.run.taken.is_empty() {
                self.settle(0, true);
            }
            idle = if moved == 0 { idle + 1 } else { 0 };
            rounds += 1;
            assert!(rounds < 2000, "it never ends");
        }
        assert!(self.held.is_empty(), "never delivered: {:?}", self.held);
        assert!(self.run.buffer.is_empty());
        let snapshot = self.run.buffer.snapshot();
        assert_eq!(snapshot.totals().held, 0);
        assert!(!snapshot.full, "full for ever");
        let journal = snapshot.journal.unwrap();
        assert!(!journal.full && !journal.short && journal.stalled.is_none(), "unready for ever: {journal:?}");
        assert_eq!(journal.events, 0, "kept for ever");
        let fits = self.limits.bytes >= event(1, 6).cost();
        if fits {
            let enqueued = self.run.buffer.enqueue(0, None, event(self.next, 6), &Arc::default());
            assert!(enqueued.is_ok(), "{enqueued:?}");
        }
    }
}

impl Run {
    fn start(path: &std::path::Path, ack: Ack, limits: Limits) -> Self {
        let Opened { layout, writer, reader, recovered, damaged, findings } =
            journal::open(path, &JOURNAL).unwrap();
        assert_eq!(damaged, 0, "{findings:?}");
        let ledger = Ledger::new(vec![SourceBook::new("a".into(), [])]);
        let buffer = Buffer::new(Mode { ack, timeout: MODE_TIMEOUT }, limits, ledger);
        let buffer = Arc::new(buffer.with_journal(layout, recovered, 0));
        let heartbeat = Heartbeat::new("the writer");
        let journaling = Journaling::new(buffer.clone(), writer, Arc::new(Metrics::new("buffered")), heartbeat);
        let taken = VecDeque::new();
        Self { buffer, journaling, reader, work: None, taken, last: None, spilling: None, draining: false }
    }

    fn begin(&mut self) {
        if self.work.is_none() {
            self.work = Some(self.buffer.work_now());
        }
    }

    fn take(&mut self, most: usize) {
        if let Taken::OnDisk(backlog) = self.buffer.take(most, &mut self.taken) {
            let (from, end) = (backlog.sequences.start, backlog.sequences.end);
            let batch = self.reader.read(from, end, most, backlog.bytes).unwrap();
            assert_eq!(batch.damaged, 0, "{batch:?}");
            let events: VecDeque<_> = batch
                .records
                .into_iter()
                .map(|stored| {
                    let mut event = made(stored.body);
                    event.kept = Kept::Journal(stored.sequence);
                    event
                })
                .collect();
            self.buffer.read_back(&events, batch.damaged, batch.next);
            self.taken.extend(events);
        }
    }

    /// The events that an end of the process would lose now.
    fn lost(&self) -> BTreeSet<usize> {
        let state = self.buffer.lock();
        let disk = state.disk.as_ref().unwrap();
        let all = self.taken.iter().chain(&state.waiting);
        all.filter(|event| !disk.keeps(event.kept)).map(|event| number(event)).collect()
    }
}

fn event(number: usize, padding: usize) -> Box<Event> {
    made(format!("{number} {}", "x".repeat(padding)).into_bytes().into())
}

fn made(body: Box<[u8]>) -> Box<Event> {
    let origin = Origin {
        source: "a".into(),
        signature: None,
        verified: false,
        traceparent: None,
        received: SystemTime::now(),
    };
    Box::new(Event::new(origin, body, &Fields::default(), &[0; 32]))
}

fn number(event: &Event) -> usize {
    let text = std::str::from_utf8(&event.body).unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

fn run(ack: Ack, steps: &[QueueStep]) {
    let mut model = QueueModel::new(ack);
    model.steps(steps);
    model.recovers();
}

#[test]
fn delivers_what_is_on_disk_although_a_reload_shrank_the_buffer_below_what_memory_holds() {
    let mut model = QueueModel::new(Ack::Buffered);
    model.step(&QueueStep::Enqueue(10));
    model.step(&QueueStep::Restart(Reply::Before));
    for _ in 0..3 {
        model.step(&QueueStep::Enqueue(2000));
    }
    model.step(&QueueStep::Limit { events: 4, kilobytes: 1 });
    model.recovers();
}

#[test]
fn settles_once_what_is_delivered_while_the_disk_is_writing_it() {
    let mut model = QueueModel::new(Ack::Buffered);
    model.steps(&[
        QueueStep::Enqueue(10),
        QueueStep::Enqueue(10),
        QueueStep::Take(1),
        QueueStep::Drain,
        QueueStep::Spill,
        QueueStep::Begin,
    ]);
    model.steps(&[QueueStep::Settle(0, true), QueueStep::Take(1), QueueStep::Settle(0, false), QueueStep::Finish]);
    let totals = model.run.buffer.snapshot().totals();
    assert_eq!((totals.published, totals.dead_lettered, totals.held), (1, 1, 0));
    model.recovers();
}

#[test]
fn is_ready_again_however_small_the_buffer_is() {
    let mut model = QueueModel::new(Ack::Buffered);
    model.step(&QueueStep::Limit { events: 1, kilobytes: 8 });
    model.step(&QueueStep::Enqueue(10));
    assert!(model.run.buffer.snapshot().full);
    model.recovers();
}

#[test]
fn takes_small_events_on_a_full_disk_and_stays_unready_until_there_is_room() {
    let mut model = QueueModel::new(Ack::Journaled);
    let write = [QueueStep::Begin, QueueStep::Finish];
    model.step(&QueueStep::Disk(DiskState::Full));
    for _ in 0..4 {
        model.step(&QueueStep::Enqueue(1200));
        model.steps(&write);
    }
    assert!(model.is_short(), "no room was noticed");
    for _ in 0..3 {
        let before = model.held.len();
        model.step(&QueueStep::Enqueue(1));
        model.steps(&write);
        assert_eq!(model.held.len(), before + 1, "a small event fits");
        model.step(&QueueStep::Enqueue(2000));
        model.steps(&write);
        assert!(model.is_short(), "it flickers");
    }
    model.recovers();
}

/// On a full disk the segment of an event that waits would otherwise be needed for ever.
#[test]
fn a_copy_frees_segments_on_a_full_disk_where_it_fits_what_exists() {
    // With two segments, and with three.
    [5, 8].into_iter().for_each(a_copy_frees_segments_on_a_disk_that_is_full_after);
}

fn a_copy_frees_segments_on_a_disk_that_is_full_after(count: usize) {
    let mut model = QueueModel::new(Ack::Journaled);
    let write = [QueueStep::Begin, QueueStep::Finish];
    let length = Record::of(&event(1, 10)).length();
    model.step(&QueueStep::Enqueue(10));
    model.steps(&write);
    assert_eq!(model.take(1), 1);
    let waits = model.run.taken.pop_front().unwrap();
    while !model.is_short() {
        if model.next > count {
            model.step(&QueueStep::Disk(DiskState::Full));
        }
        model.step(&QueueStep::Enqueue(1200));
        model.steps(&write);
        model.take(1);
        model.step(&QueueStep::Settle(0, true));
    }
    assert_eq!(model.run.buffer.old_records(length, 100).map(|old| old.len()), Some(1));
    model.run.buffer.renew(std::iter::once(waits));
    model.steps(&write);
    assert!(!model.is_short(), "its segment is free");
    let before = model.held.len();
    model.step(&QueueStep::Enqueue(1200));
    model.steps(&write);
    assert_eq!(model.held.len(), before + 1);
}

#[test]
fn refuses_at_once_while_the_disk_hangs_and_holds_no_more_than_the_buffer_may() {
    let mut model = QueueModel::new(Ack::Journaled);
    model.step(&QueueStep::Enqueue(10));
    model.step(&QueueStep::Begin);
    for _ in 0..20 {
        model.step(&QueueStep::Enqueue(3000));
    }
    assert!(model.asked.len() < 5, "{} events wait for a disk that does not answer", model.asked.len());
    model.step(&QueueStep::Hang);
    let asked = model.asked.len();
    model.step(&QueueStep::Enqueue(1));
    assert_eq!(model.asked.len(), asked, "accepted although the disk hangs");
    assert!(model.run.buffer.snapshot().journal.unwrap().stalled.is_some());
    model.step(&QueueStep::Finish);
    assert!(model.run.buffer.snapshot().journal.unwrap().stalled.is_none(), "it has answered");
    model.recovers();
}

proptest! {
    #![proptest_config(ProptestConfig {
        // PROPTEST_CASES sets more for the long run.
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(200),
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn agrees_with_a_list_in_buffered_mode(steps in prop::collection::vec(step(), 1..60)) {
        run(Ack::Buffered, &steps);
    }

    #[test]
    fn agrees_with_a_list_in_journaled_mode(steps in prop::collection::vec(step(), 1..60)) {
        run(Ack::Journaled, &steps);
    }
}
