//! Delivery with a journal, an address that takes nothing, and more events for it than memory has room for.
//!
//! Length: one rig, and a test for each thing that may happen meanwhile.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::*;
use crate::dead_letters::NewLetter;
use crate::delivery::BacklogReader;
use crate::delivery::address_queue::AddressRefusal;
use crate::delivery::ring::Ring;
use crate::delivery::ring::tests::{hand_all, message_to, refusal};
use crate::event::{Outcome, Waiter};
use crate::process::shutdown::Stopper;
use crate::queue::journal::{self, Opened};
use crate::queue::{Journaling, NotTaken};
use crate::status::{Heartbeat, Snapshot};

const LIMITS: Limits = Limits { events: 100_000, bytes: 64 << 10 };

/// The size of each body: of 400 events the buffer holds a quarter.
const BODY: usize = 128;

/// The room for dead letters.
const LETTERS: usize = 1 << 20;

/// A bridge without an ingress, on a directory.
struct Bridge {
    queue: Arc<Buffer>,
    world: Arc<Mutex<World>>,
    letters: SharedStore,
    view: BrokerStatus,
    stopper: Stopper,
    delivery: Option<Delivery>,
    writer: Option<JoinHandle<()>>,
    next: usize,
}

impl Bridge {
    fn open(directory: &Path, world: World, segments: u64) -> Self {
        let mode = Mode { ack: Ack::Journaled, timeout: Duration::from_secs(4) };
        Self::open_as(mode, directory, world, segments)
    }

    fn open_as(mode: Mode, directory: &Path, world: World, segments: u64) -> Self {
        let settings = journal::Settings { max_bytes: segments * (16 << 10), segment_bytes: 16 << 10 };
        Self::open_with(mode, directory, world, settings)
    }

    fn open_with(mode: Mode, directory: &Path, world: World, settings: journal::Settings) -> Self {
        let Opened { layout, writer, reader, recovered, damaged, .. } =
            journal::open(&directory.join("journal"), &settings).unwrap();
        let ledger = Ledger::new(vec![SourceBook::new("a".into(), [])]);
        let queue = Arc::new(Buffer::new(mode, LIMITS, ledger).with_journal(layout, recovered, damaged));
        let metrics = Arc::new(Metrics::new("journaled"));
        let journaling = Journaling::new(queue.clone(), writer, metrics.clone(), Heartbeat::new("the writer"));
        let writer = Some(std::thread::spawn(move || journaling.run()));
        let (stopper, drain) = shutdown::channel();
        let letters = SharedStore::open(directory, StoreKind::DeadLetters, LETTERS).unwrap();
        let view = BrokerStatus::default();
        let (router, refuse_after) = (world.router(), world.refuse_after);
        let successor = world.successor.clone();
        let world = Arc::new(Mutex::new(world));
        let settings = Settings {
            max_in_flight: 100,
            timeout: Duration::from_secs(4),
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(2),
            refuse_after,
            headers: HeaderStyle::None,
        };
        let delivery = Delivery::new(Parts {
            broker: Box::new(Scripted::new(&world, 0)),
            router,
            headers: Headers::new(HeaderStyle::None, "", "", Encoding::Plain),
            successor,
            queue: queue.clone(),
            metrics,
            view: view.clone(),
            settings,
            store: Some(letters.clone()),
            backlog: Some(BacklogReader::new(reader, rebuild)),
            drain,
        });
        Self { queue, world, letters, view, stopper, delivery: Some(delivery), writer, next: 0 }
    }

    /// Has the journal accept so many events, of these keys in turn.
    fn accept(&mut self, count: usize, keys: &[&str]) {
        for at in 0..count {
            let waiter = self.offer(keys[at % keys.len()]);
            waiter.unwrap_or_else(|refused| panic!("{at}: {refused:?}, {:?}", self.queue.snapshot()));
        }
    }

    /// Offers an event of this key, and waits until the journal has it.
    fn offer(&mut self, key: &str) -> Result<(), NotTaken> {
        let waiter = self.enqueue(key)?;
        while waiter.outcome().is_none() {
            std::thread::yield_now();
        }
        Ok(())
    }

    fn enqueue(&mut self, key: &str) -> Result<Arc<Waiter>, NotTaken> {
        self.enqueue_unanswered(key).map(|waiter| waiter.unwrap())
    }

    /// Offers an event of this key; there is nothing to wait for in `buffered` mode.
    fn enqueue_unanswered(&mut self, key: &str) -> Result<Option<Arc<Waiter>>, NotTaken> {
        let body = format!("n{}. {key} ", self.next);
        let event = rebuild(origin(), format!("{body:BODY$}").into_bytes().into());
        let waiter = self.queue.enqueue(0, None, event, &Arc::default())?;
        self.next += 1;
        Ok(waiter)
    }

    /// Delivers while this happens, then stops; returns the number of events lost at the exit.
    fn deliver(&mut self, happens: impl AsyncFnOnce(&mut Self)) -> usize {
        self.deliver_at(true, happens)
    }

    /// The same, in a time that passes by itself whenever nothing but time is waited for, or in real time: only there the end
    /// waits for the thread of the writer.
    fn deliver_at(&mut self, is_paused: bool, happens: impl AsyncFnOnce(&mut Self)) -> usize {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(is_paused).build().unwrap();
        let delivery = self.delivery.take().unwrap();
        let lost = runtime.block_on(async {
            let happens = async {
                happens(self).await;
                self.check();
                self.queue.drain();
                self.stopper.enter(Phase::Draining);
                self.stopper.deadline(std::time::Instant::now() + Duration::from_secs(30));
            };
            tokio::join!(delivery.run(), happens).0
        });
        self.check();
        self.queue.close_journal();
        self.writer.take().unwrap().join().unwrap();
        lost
    }

    /// Waits until this is so.
    async fn until(&self, is_so: impl Fn(&Snapshot) -> bool) {
        for _ in 0..100_000 {
            if is_so(&self.check()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never: {:?}", self.check().totals());
    }

    fn check(&self) -> Snapshot {
        let snapshot = self.queue.snapshot();
        assert_eq!(snapshot.totals().mismatch(), 0);
        assert!(snapshot.bytes <= LIMITS.bytes + (12 << 10), "{} bytes in memory", snapshot.bytes);
        snapshot
    }

    /// Lets nothing be written to the dead letters until the returned sender is dropped.
    fn hang_the_disk_of_letters(&self) -> SyncSender<()> {
        let (letters, (disk_hangs, until)) = (self.letters.clone(), sync_channel(1));
        let (hangs, is_hanging) = sync_channel(1);
        std::thread::spawn(move || {
            let _store = letters.lock();
            hangs.send(()).unwrap();
            let _ = until.recv();
        });
        is_hanging.recv().unwrap();
        disk_hangs
    }

    /// The address `k0` takes everything from now on.
    fn unblock(&self) {
        self.world.lock().refusing.values_mut().for_each(|(_, left)| *left = 0);
    }

    /// The numbers of the events that were stored at this address, in order.
    fn stored(&self, at: &str) -> Vec<usize> {
        let world = self.world.lock();
        let stored = world.stored.iter().zip(&world.addresses).filter(|(_, address)| *address == at);
        stored.map(|(id, _)| id[1..id.find('.').unwrap()].parse().unwrap()).collect()
    }
}

fn origin() -> Origin {
    Origin { source: "a".into(), signature: None, verified: false, traceparent: None, received: SystemTime::now() }
}

fn rebuild(origin: Origin, body: Box<[u8]>) -> Box<Event> {
    let text = String::from_utf8(body.to_vec()).unwrap();
    let mut words = text.split(' ');
    let fields = Fields::<&str> { cuid: words.next().unwrap(), event: words.next().unwrap(), ..Fields::default() };
    Box::new(Event::new(origin, body, &fields, &[0; 32]))
}

fn unable() -> World {
    refusing(Refused::AddressUnable, usize::MAX, Duration::from_mins(1))
}

fn every_second(range: std::ops::Range<usize>) -> Vec<usize> {
    range.step_by(2).collect()
}

fn published(count: u64) -> impl Fn(&Snapshot) -> bool {
    move |snapshot| snapshot.totals().published == count
}

#[test]
fn others_flow_however_much_waits_for_one_address_and_all_of_it_arrives_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let mut bridge = Bridge::open(directory.path(), unable(), 100);
    bridge.accept(1000, &["k0", "k1"]);
    let lost = bridge.deliver(async |bridge| {
        bridge.until(published(500)).await;
        tokio::time::sleep(Duration::from_mins(2)).await;
        let snapshot = bridge.check();
        assert!(snapshot.events <= 300, "{} events in memory", snapshot.events);
        assert_eq!((snapshot.totals().held, snapshot.totals().dead_lettered), (500, 0));
        bridge.accept(100, &["k0", "k1"]);
        bridge.until(published(550)).await;
        bridge.unblock();
        bridge.until(published(1100)).await;
    });
    let snapshot = bridge.check();
    assert_eq!((lost, snapshot.totals().held, snapshot.events, snapshot.bytes), (0, 0, 0, 0));
    assert_eq!(bridge.stored("k0"), every_second(0..1100));
    assert_eq!(bridge.stored("k1"), every_second(1..1100));
}

#[test]
fn what_the_journal_alone_keeps_becomes_dead_letters_in_time_at_a_wrong_address() {
    let directory = tempfile::tempdir().unwrap();
    let world = refusing(MISSING, usize::MAX, Duration::from_mins(1));
    let mut bridge = Bridge::open(directory.path(), world, 100);
    bridge.accept(1000, &["k0", "k1"]);
    let lost = bridge.deliver(async |bridge| {
        bridge.until(published(500)).await;
        assert_eq!(bridge.check().totals().dead_lettered, 0, "before their time");
        bridge.until(|snapshot| snapshot.totals().dead_lettered == 500).await;
    });
    let snapshot = bridge.check();
    assert_eq!((lost, snapshot.totals().held, snapshot.events, snapshot.bytes), (0, 0, 0, 0));
}

#[test]
fn a_stop_keeps_what_waits_and_a_start_delivers_it_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let mut bridge = Bridge::open(directory.path(), unable(), 100);
    bridge.accept(1000, &["k0", "k1"]);
    let lost = bridge.deliver_at(false, async |bridge| bridge.until(published(500)).await);
    assert_eq!((lost, bridge.check().totals().held), (0, 500));
    let mut again = Bridge::open(directory.path(), unable(), 100);
    again.next = bridge.next;
    let lost = again.deliver(async |bridge| {
        bridge.accept(100, &["k0", "k1"]);
        tokio::time::sleep(Duration::from_mins(1)).await;
        bridge.unblock();
        bridge.until(|snapshot| snapshot.totals().held == 0).await;
    });
    assert_eq!((lost, again.check().totals().dead_lettered), (0, 0));
    assert_eq!(again.stored("k0"), every_second(0..1100));
}

#[test]
fn a_stop_leaves_only_what_waits_and_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let mut bridge = Bridge::open(directory.path(), unable(), 100);
    bridge.accept(800, &["k0", "k1"]);
    let lost = bridge.deliver_at(false, async |bridge| bridge.until(published(400)).await);
    assert_eq!((lost, bridge.check().totals().held), (0, 400));
    for _ in 0..2 {
        let mut again = Bridge::open(directory.path(), unable(), 100);
        assert_eq!(again.check().totals().recovered, 400, "the others were settled");
        let lost = again.deliver_at(false, async |_| ());
        assert_eq!((lost, again.check().totals().held), (0, 400));
    }
    let mut third = Bridge::open(directory.path(), unable(), 100);
    third.unblock();
    let lost = third.deliver(async |bridge| bridge.until(published(400)).await);
    assert_eq!((lost, third.stored("k0"), third.stored("k1")), (0, every_second(0..800), Vec::new()));
}

/// In `buffered` the journal has what a stop left, and newer events are in memory, from where they cannot be unloaded.
#[test]
fn an_address_is_tried_although_events_that_only_memory_keeps_take_most_of_the_buffer() {
    for kind in [Refused::AddressUnable, MISSING] {
        let directory = tempfile::tempdir().unwrap();
        let mut bridge = Bridge::open(directory.path(), unable(), 100);
        bridge.accept(400, &["k0"]);
        let lost = bridge.deliver_at(false, async |bridge| {
            bridge.until(|_| !bridge.world.lock().refusals.is_empty()).await;
        });
        assert_eq!((lost, bridge.check().totals().held), (0, 400));
        let mode = Mode { ack: Ack::Buffered, timeout: Duration::from_secs(4) };
        let world = refusing(kind, usize::MAX, Duration::from_secs(4));
        let mut again = Bridge::open_as(mode, directory.path(), world, 100);
        let mut accepted = 400;
        // In real time, by which delivery looks for what is to be unloaded.
        let lost = again.deliver_at(false, async |bridge| {
            bridge.until(|_| bridge.queue.on_disk().is_none()).await;
            for _ in 0..100 {
                let event = rebuild(origin(), format!("n{accepted}. k0 {:1$}", "", BODY).into_bytes().into());
                accepted += usize::from(bridge.queue.enqueue(0, None, event, &Arc::default()).is_ok());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert!(accepted > 480, "{accepted}");
            if kind == Refused::AddressUnable {
                tokio::time::sleep(Duration::from_secs(1)).await;
                bridge.unblock();
            }
            let emptied = bridge.until(|snapshot| snapshot.totals().held == 0);
            tokio::time::timeout(Duration::from_mins(1), emptied).await.expect("it is tried");
        });
        let expected: Vec<usize> = if kind == MISSING { Vec::new() } else { (0..accepted).collect() };
        assert_eq!((lost, again.stored("k0")), (0, expected));
    }
}

#[test]
fn a_stop_does_not_wait_for_an_address_without_an_answer_and_leaves_only_what_it_keeps() {
    let directory = tempfile::tempdir().unwrap();
    let world = || World { silent: Some("k0"), refuse_after: Duration::from_mins(1), ..World::default() };
    let mut bridge = Bridge::open(directory.path(), world(), 100);
    bridge.accept(40, &["k0", "k1"]);
    let began = std::time::Instant::now();
    let lost = bridge.deliver_at(false, async |bridge| {
        // Others are answered for long enough.
        for round in 1..=40 {
            bridge.accept(1, &["k1"]);
            tokio::time::sleep(Duration::from_millis(100)).await;
            bridge.until(published(20 + round)).await;
        }
    });
    assert_eq!((lost, bridge.check().totals().held, bridge.world.lock().connects), (0, 20, 1));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let again = Bridge::open(directory.path(), world(), 100);
    assert_eq!(again.check().totals().recovered, 20, "the others were settled");
}

#[test]
fn other_routes_take_what_the_journal_alone_keeps_before_anything_newer() {
    let directory = tempfile::tempdir().unwrap();
    let refusing = HashMap::from([("address 0", (Refused::AddressUnable, usize::MAX))]);
    let mut bridge = Bridge::open(directory.path(), World { refusing, ..World::default() }, 100);
    bridge.accept(500, &["k0"]);
    let lost = bridge.deliver(async |bridge| {
        tokio::time::sleep(Duration::from_mins(1)).await;
        assert!(bridge.check().events < 300);
        bridge.world.lock().reroute(&bridge.world);
        bridge.accept(100, &["k0"]);
        bridge.until(published(600)).await;
    });
    assert_eq!((lost, bridge.check().totals().held), (0, 0));
    assert_eq!(bridge.stored("address 1"), (0..600).collect::<Vec<_>>());
}

#[test]
fn the_journal_turns_over_while_events_wait_and_none_is_sent_twice() {
    let directory = tempfile::tempdir().unwrap();
    let mut bridge = Bridge::open(directory.path(), unable(), 24);
    bridge.accept(400, &["k0"]);
    let lost = bridge.deliver(async |bridge| {
        // Three times as much as the journal has room for.
        for round in 1..=700 {
            bridge.accept(10, &["k1"]);
            bridge.until(published(10 * round)).await;
        }
        assert_eq!(bridge.check().totals().held, 400);
        bridge.unblock();
        bridge.until(published(7_400)).await;
    });
    let snapshot = bridge.check();
    assert_eq!((lost, snapshot.totals().held, snapshot.events, snapshot.bytes), (0, 0, 0, 0));
    assert_eq!(bridge.stored("k0"), (0..400).collect::<Vec<_>>());
    assert_eq!(bridge.stored("k1"), (400..7_400).collect::<Vec<_>>());
}

/// The directory as a crash at this moment leaves it; nothing is being written.
async fn crashed(bridge: &Bridge, directory: &Path) -> tempfile::TempDir {
    while bridge.queue.is_renewing() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let copy = tempfile::tempdir().unwrap();
    std::fs::create_dir(copy.path().join("journal")).unwrap();
    for file in std::fs::read_dir(directory.join("journal")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.path().join("journal").join(file.file_name())).unwrap();
    }
    copy
}

#[test]
fn a_crash_while_records_are_written_again_changes_no_order() {
    let directory = tempfile::tempdir().unwrap();
    let mut bridge = Bridge::open(directory.path(), unable(), 24);
    let mut left = Vec::new();
    let lost = bridge.deliver(async |bridge| {
        // What waits is spread over many segments, so that some of it is written again while the rest is not.
        for round in 1..=250 {
            bridge.accept(10, if round <= 100 { &["k0", "k1"] } else { &["k1"] });
            let stored = if round <= 100 { 5 * round } else { 500 + 10 * (round - 100) };
            bridge.until(published(stored)).await;
            if round % 60 == 50 {
                left.push((bridge.next, crashed(bridge, directory.path()).await));
            }
        }
    });
    assert_eq!((lost, bridge.check().totals().held), (0, 500));
    for (next, mut directory) in left {
        for crashes in 1..=2 {
            let mut again = Bridge::open(directory.path(), unable(), 24);
            let mut after = None;
            let lost = again.deliver(async |bridge| {
                // Starts and is at work, and crashes once more.
                tokio::time::sleep(Duration::from_secs(5)).await;
                bridge.next = next;
                bridge.accept(40, &["k1"]);
                after = Some(crashed(bridge, directory.path()).await);
                bridge.unblock();
                bridge.until(|snapshot| snapshot.totals().held == 0).await;
            });
            let mut stored = again.stored("k0");
            let mut seen = HashSet::new();
            stored.retain(|number| seen.insert(*number));
            assert_eq!((lost, stored), (0, every_second(0..next.min(1000))), "crash {crashes} after {next} events");
            directory = after.expect("it happened");
        }
    }
}

#[test]
fn many_addresses_with_one_event_each_stop_no_other_and_take_no_more_memory() {
    let directory = tempfile::tempdir().unwrap();
    // More than the buffer holds.
    let names: Vec<&'static str> = (0..250).map(|at| &*format!("k{at}").leak()).collect();
    let refusing = names.iter().map(|name| (*name, (Refused::AddressUnable, usize::MAX))).collect();
    let world = World { refusing, refuse_after: Duration::from_mins(1), ..World::default() };
    let mut bridge = Bridge::open(directory.path(), world, 100);
    bridge.accept(250, &names);
    bridge.accept(100, &["free"]);
    let lost = bridge.deliver(async |bridge| {
        bridge.until(published(100)).await;
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            bridge.check();
        }
        bridge.accept(100, &["free"]);
        bridge.until(published(200)).await;
        bridge.unblock();
        bridge.until(published(450)).await;
    });
    let snapshot = bridge.check();
    assert_eq!((lost, snapshot.totals().held, snapshot.events, snapshot.bytes), (0, 0, 0, 0));
}

#[test]
fn a_damaged_record_of_an_event_that_waits_is_counted_and_no_other_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let mut bridge = Bridge::open(directory.path(), unable(), 100);
    bridge.accept(800, &["k0"]);
    let lost = bridge.deliver(async |bridge| {
        tokio::time::sleep(Duration::from_mins(1)).await;
        let segment = directory.path().join("journal/00000006.segment");
        let bytes = std::fs::read(&segment).unwrap();
        let at = bytes.windows(5).position(|text| text == b". k0 ").unwrap() as u64;
        std::fs::OpenOptions::new().write(true).open(&segment).unwrap().write_all_at(b"!", at).unwrap();
        bridge.unblock();
        bridge.until(|snapshot| snapshot.totals().held == 0).await;
    });
    let snapshot = bridge.check();
    assert_eq!((lost, snapshot.ledger.lost[Loss::Damaged as usize], snapshot.totals().published), (0, 1, 799));
}

/// The oldest event waits, and the journal has no room left when the others are delivered: only a copy of it frees any.
#[test]
fn a_full_journal_takes_events_again_although_its_oldest_one_waits() {
    let directory = tempfile::tempdir().unwrap();
    let mut bridge = Bridge::open(directory.path(), unable(), 8);
    bridge.accept(1, &["k0"]);
    let mut count = 0;
    while bridge.offer("k1").is_ok() {
        count += 1;
    }
    let lost = bridge.deliver(async |bridge| {
        for round in 0..4 {
            bridge.until(published(count + 100 * round)).await;
            bridge.until(|snapshot| snapshot.journal.as_ref().is_some_and(|journal| !journal.full)).await;
            bridge.accept(100, &["k1"]);
        }
        bridge.until(published(count + 400)).await;
    });
    assert_eq!((lost, bridge.check().totals().held), (0, 1));
}

/// A journal that is no larger than a segment may be, full of a backlog whose oldest event waits.
#[test]
fn a_small_journal_takes_events_again_although_its_oldest_one_waits() {
    let directory = tempfile::tempdir().unwrap();
    let mode = Mode { ack: Ack::Journaled, timeout: Duration::from_secs(4) };
    let settings = journal::Settings { max_bytes: 64 << 10, segment_bytes: 16 << 20 }.for_bodies(BODY);
    let mut bridge = Bridge::open_with(mode, directory.path(), unable(), settings);
    bridge.accept(1, &["k0"]);
    let mut count = 0;
    while bridge.offer("k1").is_ok() {
        count += 1;
    }
    let lost = bridge.deliver(async |bridge| {
        for round in 0..40 {
            bridge.until(published(count + 20 * round)).await;
            bridge.until(|snapshot| snapshot.journal.as_ref().is_some_and(|journal| !journal.full)).await;
            bridge.accept(20, &["k1"]);
        }
        bridge.until(published(count + 800)).await;
    });
    assert_eq!((lost, bridge.check().totals().held), (0, 1));
}

/// Leaves no room for another dead letter.
fn fill_the_letters(directory: &Path) {
    let store = SharedStore::open(directory, StoreKind::DeadLetters, LETTERS).unwrap();
    for length in [LETTERS / 8, 100] {
        let line = format!("{}\n", "x".repeat(length)).into_bytes();
        while store.lock().append(&[NewLetter::new(line.clone())]).is_ok() {}
    }
}

#[test]
fn an_event_that_dead_letters_have_no_room_for_stops_neither_the_journal_nor_the_end() {
    let directory = tempfile::tempdir().unwrap();
    fill_the_letters(directory.path());
    let world = || World { refused: Some(("n0.", UNROUTABLE)), ..World::default() };
    let mut bridge = Bridge::open(directory.path(), world(), 24);
    bridge.accept(1, &["k0"]);
    let mut stopped = None;
    let lost = bridge.deliver_at(false, async |bridge| {
        for round in 1..=300 {
            bridge.accept(10, &["k1"]);
            bridge.until(published(10 * round)).await;
        }
        stopped = Some(std::time::Instant::now());
    });
    let took = stopped.expect("it stopped").elapsed();
    assert!(took < Duration::from_secs(25), "the end waited for room: {took:?}");
    assert_eq!((lost, bridge.check().totals().held), (0, 1));
    let again = Bridge::open(directory.path(), world(), 24);
    assert_eq!(again.check().totals().recovered, 1, "the others were settled");
}

#[test]
fn a_stop_writes_what_memory_holds_once_a_backlog_leaves_room_in_the_journal() {
    let directory = tempfile::tempdir().unwrap();
    let silent = World { silent: Some("k1"), ..World::default() };
    let mut earlier = Bridge::open(directory.path(), silent, 6);
    let mut count = 0;
    while earlier.offer("k1").is_ok() {
        count += 1;
    }
    earlier.deliver(async |bridge| bridge.stopper.deadline(std::time::Instant::now()));
    let held = earlier.check().totals().held;
    assert_eq!(held, count);
    let mode = Mode { ack: Ack::Buffered, timeout: Duration::from_secs(4) };
    let mut bridge = Bridge::open_as(mode, directory.path(), unable(), 6);
    bridge.next = 1000;
    // More than the room that the journal keeps for copies.
    for _ in 0..100 {
        bridge.enqueue_unanswered("k0").unwrap();
    }
    let lost = bridge.deliver_at(false, async |_| ());
    let totals = bridge.check().totals();
    assert_eq!((lost, totals.published, totals.held), (0, held, 100));
    let again = Bridge::open(directory.path(), unable(), 6);
    assert_eq!(again.check().totals().recovered, 100);
}

#[test]
fn a_stop_without_a_broker_leaves_only_what_is_not_settled() {
    let directory = tempfile::tempdir().unwrap();
    let mut bridge = Bridge::open(directory.path(), unable(), 100);
    bridge.accept(800, &["k0", "k1"]);
    let lost = bridge.deliver_at(false, async |bridge| {
        bridge.until(published(400)).await;
        let mut script = VecDeque::from([BrokerStep::Lose]);
        script.extend([BrokerStep::FailConnect; 100]);
        bridge.world.lock().script = script;
        bridge.accept(2, &["k1"]);
        bridge.stopper.deadline(std::time::Instant::now() + Duration::from_secs(1));
    });
    assert_eq!((lost, bridge.check().totals().held), (0, 402));
    let mut again = Bridge::open(directory.path(), unable(), 100);
    assert_eq!(again.check().totals().recovered, 402, "the others were settled");
    again.unblock();
    let lost = again.deliver(async |bridge| bridge.until(published(402)).await);
    assert_eq!((lost, again.stored("k0"), again.stored("k1")), (0, every_second(0..800), vec![800, 801]));
}

#[test]
fn the_age_of_what_waits_is_known_after_a_start() {
    let directory = tempfile::tempdir().unwrap();
    let mut bridge = Bridge::open(directory.path(), unable(), 100);
    let began = SystemTime::now();
    bridge.accept(40, &["k0", "k1"]);
    bridge.deliver_at(false, async |bridge| bridge.until(published(20)).await);
    let ended = SystemTime::now();
    let mut again = Bridge::open(directory.path(), unable(), 100);
    again.deliver(async |bridge| {
        bridge.until(|snapshot| snapshot.oldest.is_some_and(|oldest| (began..ended).contains(&oldest))).await;
    });
}

/// In `published` every event is withdrawn while the broker rejects all; with none left nothing would show that it takes
/// events again.
#[test]
fn events_are_accepted_again_after_a_broker_rejected_all_and_none_waits_any_more() {
    let directory = tempfile::tempdir().unwrap();
    let world = refusing(Refused::Broker, 3, Duration::from_mins(1));
    let mode = Mode { ack: Ack::Published, timeout: Duration::ZERO };
    let mut bridge = Bridge::open_as(mode, directory.path(), world, 8);
    let lost = bridge.deliver(async |bridge| {
        let mut withdrawn = 0;
        while bridge.world.lock().refusals.len() < 3 {
            let waiter = loop {
                match bridge.enqueue("k0") {
                    Ok(waiter) => break waiter,
                    Err(refused) => assert_eq!(refused, NotTaken::Away),
                }
                bridge.until(|_| true).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
            };
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert!(waiter.withdraw(), "the broker has refused it");
            withdrawn += 1;
            bridge.until(|snapshot| snapshot.totals().withdrawn == withdrawn).await;
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
        bridge.enqueue("k0").unwrap();
        bridge.until(published(1)).await;
    });
    assert_eq!(lost, 0);
}

/// The sender would get a 503 although it could take the event back, and the event would be published nevertheless.
#[test]
fn an_event_that_was_not_handed_over_can_be_withdrawn() {
    for step in [BrokerStep::NotNowAtSend, BrokerStep::LoseAtSend] {
        let directory = tempfile::tempdir().unwrap();
        let world = World { script: [step, step].into(), ..World::default() };
        let mode = Mode { ack: Ack::Published, timeout: Duration::from_secs(4) };
        let mut bridge = Bridge::open_as(mode, directory.path(), world, 8);
        let lost = bridge.deliver(async |bridge| {
            let waiter = bridge.enqueue("k0").unwrap();
            bridge.until(|_| bridge.world.lock().script.len() < 2).await;
            assert!(waiter.withdraw(), "{step:?}");
            bridge.until(|snapshot| snapshot.totals().withdrawn == 1).await;
        });
        assert_eq!((lost, bridge.check().totals().held, bridge.world.lock().handed), (0, 0, 0));
    }
}

/// The sender would get a 503 and send the event again, and it would be a dead letter too.
#[test]
fn an_event_is_not_withdrawn_while_it_becomes_a_dead_letter() {
    let directory = tempfile::tempdir().unwrap();
    let world = refusing(Refused::AddressWrong(RefusalReason::NoDestination), usize::MAX, Duration::ZERO);
    let mode = Mode { ack: Ack::Published, timeout: Duration::from_secs(4) };
    let mut bridge = Bridge::open_as(mode, directory.path(), world, 8);
    // In real time: the paused clock stands while a thread writes.
    let lost = bridge.deliver_at(false, async |bridge| {
        let disk_hangs = bridge.hang_the_disk_of_letters();
        let waiter = bridge.enqueue("k0").unwrap();
        bridge.until(|_| bridge.view.copy().blocked.is_some()).await;
        assert!(!waiter.withdraw(), "its letter is being written");
        drop(disk_hangs);
        bridge.until(|snapshot| snapshot.totals().dead_lettered == 1).await;
        assert_eq!(waiter.outcome(), Some(Outcome::DeadLettered));
    });
    assert_eq!((lost, bridge.check().totals().held), (0, 0));
}

#[test]
fn what_is_refused_for_good_is_not_tried_until_there_is_room_for_it() {
    let mut ring = Ring::new(false);
    for _ in 0..2 {
        ring.push(message_to("a"), 0);
    }
    assert_eq!(hand_all(&mut ring), [0, 1]);
    let refused = refusal(Refusal::unable("no room"), Duration::ZERO);
    ring.park(0, AddressRefusal { needs_room: true, ..refused });
    ring.retry(1);
    assert_eq!(hand_all(&mut ring), [] as [Sequence; 0]);
    ring.rewind();
    assert_eq!(hand_all(&mut ring), [] as [Sequence; 0], "another session makes no room");
    ring.destinations.has_room_again();
    assert_eq!(hand_all(&mut ring), [0]);
}
