//! Delivery against a scripted broker: order, accounting, and the consequences of each answer of the contract.
//!
//! The broker stores messages in the order in which it confirms them; a script makes it behave differently.
//!
//! Length: the broker, its script and the consequences of each step are best understood together.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use parking_lot::Mutex;
use proptest::prelude::*;

use crate::brokers::{
    Broker, ConnectError, Encoding, ErrorKind, Finding, HeaderStyle, Headers, Refusal, Refused, Router, Sent,
    Sequence, Session, SessionError, Verdict,
};
use crate::dead_letters::{SharedStore, StoreKind};
use crate::delivery::backoff::Backoff;
use crate::delivery::successor::Takeover;
use crate::delivery::{Change, Delivery, Parts, RoutedBroker, Settings, Successor};
use crate::event::{Event, Fields, Message, Origin};
use crate::metrics::Metrics;
use crate::process::shutdown::{self, Phase};
use crate::queue::{Ack, Buffer, Mode};
use crate::status::{BrokerStatus, Ledger, Limits, Loss, RefusalReason, SourceBook, Status, Totals};

/// The broker's reaction to the next message, once its script has a step for it.
#[derive(Clone, Copy, Debug)]
enum BrokerStep {
    Store,
    RetryLater,
    RefuseAtSend,
    NotNowAtSend,
    /// The session is lost before this message is handed over.
    LoseAtSend,
    /// The session is lost before this message is stored.
    Lose,
    /// It is lost although this message is stored.
    LoseAfterStore,
    /// No connection the next time.
    FailConnect,
    /// Does the same as `Store` or, at connect, as `FailConnect`; and a reload sends everything else to another
    /// address.
    Reroute,
    /// Does the same, and then the session stays silent.
    Vanish,
}

/// The event can never be stored.
const UNROUTABLE: Refused = Refused::Event(RefusalReason::Unroutable);

#[derive(Default)]
struct World {
    script: VecDeque<BrokerStep>,
    stored: Vec<String>,
    /// For each stored message, how often the routes had changed when it was rendered.
    addresses: Vec<String>,
    successor: Arc<Successor>,
    reroutes: usize,
    /// Whether a successor cannot connect.
    bars_successors: bool,
    /// The sessions that were opened and closed, by the addresses of their brokers.
    sessions: Vec<(&'static str, String)>,
    handed: usize,
    connects: usize,
    in_flight: usize,
    most_in_flight: usize,
    /// Messages with this text in their id close the session, as RabbitMQ does.
    poison: Option<&'static str>,
    /// Messages with this text in their id are refused in this way.
    refused: Option<(&'static str, Refused)>,
    /// Messages with this text in their id are nacked this often.
    nacked: Option<(&'static str, usize)>,
    /// Whether the session ends after a nack.
    nacks_end_the_session: bool,
    /// The addresses, one for each key or `*` for all, that refuse so many messages in this way.
    refusing: HashMap<&'static str, (Refused, usize)>,
    /// They refuse what is not yet sent.
    refuses_at_send: bool,
    /// The verdict that they give in place of a refusal.
    verdict: Option<fn(Refusal) -> Verdict>,
    /// Messages to this address, one for each key, get no answer.
    silent: Option<&'static str>,
    /// The times at which messages were refused there.
    refusals: Vec<tokio::time::Instant>,
    /// The time at which each message was stored.
    stored_at: Vec<tokio::time::Instant>,
    /// `publish.refuse_after`.
    refuse_after: Duration,
    /// The times at which the nacked messages were handed over.
    tries: Vec<tokio::time::Instant>,
}

mod parked;

struct Scripted {
    world: Arc<Mutex<World>>,
    address: String,
}

impl Scripted {
    fn new(world: &Arc<Mutex<World>>, reroutes: usize) -> Self {
        Self { world: world.clone(), address: format!("address {reroutes}") }
    }
}

impl World {
    fn reroute(&mut self, world: &Arc<Mutex<Self>>) {
        self.reroutes += 1;
        let (broker, router) = (Box::new(Scripted::new(world, self.reroutes)), self.router());
        self.successor.put(RoutedBroker { broker, router }, Change::Routes);
    }

    /// All events to one address, or each to its own where some addresses refuse.
    fn router(&self) -> Router {
        let has_many = self.silent.is_some() || self.refusing.keys().any(|name| !name.starts_with("address"));
        Router::of(&if has_many { "{event}".to_owned() } else { format!("address {}", self.reroutes) }, "{event}")
    }

    fn refusing_at(&mut self, address: &str) -> Option<&mut (Refused, usize)> {
        let name = if self.refusing.contains_key("*") { "*" } else { address };
        self.refusing.get_mut(name)
    }

    fn store(&mut self, id: String, address: String) {
        self.stored_at.push(tokio::time::Instant::now());
        self.stored.push(id);
        self.addresses.push(address);
    }
}

struct ScriptedSession {
    world: Arc<Mutex<World>>,
    address: String,
    /// The messages with id and address.
    waiting: VecDeque<(Sequence, String, String)>,
    away: bool,
    is_ended: bool,
    news: tokio::sync::Notify,
}

#[async_trait]
impl Broker for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn location(&self) -> String {
        "nowhere".to_owned()
    }

    async fn connect(&mut self) -> Result<(Box<dyn Session>, Vec<Finding>), ConnectError> {
        let mut world = self.world.lock();
        if world.bars_successors && self.address != "address 0" {
            return Err(ConnectError::new(ErrorKind::Authentication, "a wrong password"));
        }
        world.connects += 1;
        if matches!(world.script.front(), Some(BrokerStep::FailConnect | BrokerStep::Reroute)) {
            if matches!(world.script.pop_front(), Some(BrokerStep::Reroute)) {
                world.reroute(&self.world);
            }
            return Err(ConnectError::new(ErrorKind::Connect, "refused"));
        }
        world.sessions.push(("open", self.address.clone()));
        let session = ScriptedSession {
            world: self.world.clone(),
            address: self.address.clone(),
            waiting: VecDeque::new(),
            away: false,
            is_ended: false,
            news: tokio::sync::Notify::new(),
        };
        Ok((Box::new(session), Vec::new()))
    }

    async fn inspect(&mut self) -> Result<Vec<Finding>, ConnectError> {
        Ok(Vec::new())
    }
}

#[async_trait]
impl Session for ScriptedSession {
    fn send(&mut self, sequence: Sequence, message: &Message) -> Sent {
        let mut world = self.world.lock();
        if world.refuses_at_send
            && let Some((kind, left)) = world.refusing_at(&message.address).filter(|(_, left)| *left > 0)
        {
            *left -= 1;
            let refusal = Refusal::new(*kind, "not here");
            world.refusals.push(tokio::time::Instant::now());
            return Sent::Refused(refusal);
        }
        match world.script.front() {
            Some(BrokerStep::RefuseAtSend) => {
                world.script.pop_front();
                return Sent::Refused(Refusal::event(RefusalReason::TooLarge, "too large"));
            }
            Some(BrokerStep::NotNowAtSend) => {
                world.script.pop_front();
                return Sent::RetryLater("blocked".to_owned());
            }
            Some(BrokerStep::LoseAtSend) => {
                world.script.pop_front();
                return Sent::Lost(SessionError::lost("cut"));
            }
            _ => {}
        }
        world.handed += 1;
        world.in_flight += 1;
        world.most_in_flight = world.most_in_flight.max(world.in_flight);
        self.waiting.push_back((sequence, message.event.id().to_owned(), message.address.to_string()));
        self.news.notify_one();
        Sent::Taken
    }

    async fn verdicts(&mut self, into: &mut Vec<(Sequence, Verdict)>) -> Result<(), SessionError> {
        if self.is_ended {
            return Err(SessionError::lost("cut"));
        }
        let silent = self.world.lock().silent;
        let answered = || self.waiting.iter().position(|(_, _, address)| Some(&**address) != silent);
        let next = loop {
            match answered().filter(|_| !self.away) {
                Some(next) => break next,
                None => self.news.notified().await,
            }
        };
        let mut world = self.world.lock();
        let (sequence, id, address) = self.waiting.remove(next).unwrap();
        world.in_flight -= 1;
        if world.poison.is_some_and(|poison| id.contains(poison)) {
            let refusal = Refusal::event(RefusalReason::NotAuthorised, "ACCESS_REFUSED");
            return Err(SessionError::suspect(refusal));
        }
        if let Some(refused) = world.refused.filter(|refused| id.contains(refused.0)) {
            into.push((sequence, Verdict::Refused(Refusal::new(refused.1, "no queue"))));
            return Ok(());
        }
        if let Some((kind, left)) = world.refusing_at(&address).filter(|(_, left)| *left > 0) {
            *left -= 1;
            let refusal = Refusal::new(*kind, "not here");
            let is_last = *left == 0;
            world.refusals.push(tokio::time::Instant::now());
            let verdict = world.verdict.unwrap_or(Verdict::Refused);
            into.push((sequence, verdict(refusal)));
            if is_last && address == "address 0" {
                world.reroute(&self.world);
            }
            return Ok(());
        }
        if let Some((_, left)) = world.nacked.as_mut().filter(|(nacked, left)| id.contains(nacked) && *left > 0) {
            *left -= 1;
            world.tries.push(tokio::time::Instant::now());
            into.push((sequence, Verdict::Nacked("nack".to_owned())));
            self.is_ended = world.nacks_end_the_session;
            return Ok(());
        }
        match world.script.pop_front() {
            None
            | Some(
                BrokerStep::Store
                | BrokerStep::FailConnect
                | BrokerStep::RefuseAtSend
                | BrokerStep::NotNowAtSend
                | BrokerStep::LoseAtSend,
            ) => {
                world.store(id, address);
                into.push((sequence, Verdict::Stored));
            }
            Some(step @ (BrokerStep::Reroute | BrokerStep::Vanish)) => {
                self.away = matches!(step, BrokerStep::Vanish);
                world.reroute(&self.world);
                world.store(id, address);
                into.push((sequence, Verdict::Stored));
            }
            Some(BrokerStep::RetryLater) => into.push((sequence, Verdict::RetryLater("full".to_owned()))),
            Some(BrokerStep::Lose) => return Err(SessionError::lost("cut")),
            Some(BrokerStep::LoseAfterStore) => {
                world.store(id, address);
                return Err(SessionError::lost("cut"));
            }
        }
        Ok(())
    }

    fn away(&self) -> Option<ConnectError> {
        self.away.then(|| ConnectError::new(ErrorKind::Connect, "away"))
    }

    async fn close(self: Box<Self>, _: Duration, _: &mut Vec<(Sequence, Verdict)>) {
        let mut world = self.world.lock();
        world.in_flight -= self.waiting.len();
        world.sessions.push(("close", self.address.clone()));
    }
}

struct RunResult {
    view: BrokerStatus,
    world: World,
    totals: Totals,
    ledger: Ledger,
    out_of_order: bool,
    /// The time by the clock of the runtime, which jumps ahead whenever all tasks sleep.
    took: Duration,
    _directory: tempfile::TempDir,
}

/// Accepts these events (name and key), delivers them, stops.
fn run(world: World, events: &[(String, String)], max_in_flight: usize, has_state: bool) -> RunResult {
    run_with(world, events, max_in_flight, has_state.then_some(1 << 20))
}

/// Does the same with this many bytes for dead letters, or none.
fn run_with(world: World, events: &[(String, String)], max_in_flight: usize, letters: Option<usize>) -> RunResult {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mode = Mode { ack: Ack::Buffered, timeout: Duration::from_secs(4) };
    let queue = Arc::new(Buffer::new(
        mode,
        Limits { events: 10_000, bytes: 1 << 30 },
        Ledger::new(vec![SourceBook::new("a".into(), [])]),
    ));
    for (name, key) in events {
        let origin = Origin {
            source: "a".into(),
            signature: None,
            verified: false,
            traceparent: None,
            received: SystemTime::UNIX_EPOCH,
        };
        let fields = Fields::<&str> { cuid: name, event: key, ..Fields::default() };
        let event = Box::new(Event::new(origin, Box::default(), &fields, &[0; 32]));
        assert!(queue.enqueue(0, None, event, &Arc::default()).unwrap().is_none());
    }
    let metrics = Arc::new(Metrics::new("buffered"));
    let (router, successor, world_refuse_after) = (world.router(), world.successor.clone(), world.refuse_after);
    let world = Arc::new(Mutex::new(world));
    let settings = Settings {
        max_in_flight,
        timeout: Duration::from_secs(4),
        retry_min: Duration::from_millis(100),
        retry_max: Duration::from_secs(2),
        refuse_after: world_refuse_after,
        headers: HeaderStyle::None,
    };
    let open = |bytes| SharedStore::open(directory.path(), StoreKind::DeadLetters, bytes).unwrap();
    let store = letters.map(open);
    let (stopper, drain) = shutdown::channel();
    queue.drain();
    stopper.enter(Phase::Draining);
    stopper.deadline(std::time::Instant::now() + Duration::from_hours(1));
    let view = BrokerStatus::default();
    let delivery = Delivery::new(Parts {
        broker: Box::new(Scripted::new(&world, 0)),
        router,
        headers: Headers::new(HeaderStyle::None, "", "", Encoding::Plain),
        successor,
        queue: queue.clone(),
        metrics: metrics.clone(),
        view: view.clone(),
        settings,
        store,
        backlog: None,
        drain,
    });
    let took = runtime.block_on(async {
        let began = tokio::time::Instant::now();
        tokio::time::timeout(Duration::from_hours(2), delivery.run()).await.unwrap();
        began.elapsed()
    });
    let snapshot = queue.snapshot();
    let totals = snapshot.totals();
    let text = metrics.render(&snapshot, &Status::default(), false);
    let out_of_order = !text.contains("plextrac_bridge_publish_out_of_order_total 0");
    let world = std::mem::take(&mut *world.lock());
    RunResult { view, world, totals, ledger: snapshot.ledger, out_of_order, took, _directory: directory }
}

fn events(count: usize, keys: usize) -> Vec<(String, String)> {
    (0..count).map(|number| (format!("n{number}."), format!("k{}", number % keys))).collect()
}

fn id(name: &str) -> String {
    format!("{name}-000000000000")
}

#[test]
fn delivers_everything_in_order_within_the_window() {
    let events = events(100, 3);
    let ended = run(World::default(), &events, 10, true);
    let expected: Vec<String> = events.iter().map(|(name, _)| id(name)).collect();
    assert_eq!(ended.world.stored, expected);
    assert_eq!(ended.world.most_in_flight, 10);
    assert_eq!((ended.totals.published, ended.totals.held, ended.totals.mismatch()), (100, 0, 0));
}

#[test]
fn opens_the_session_of_a_successor_before_it_closes_the_old_one() {
    let script = [BrokerStep::Store, BrokerStep::Reroute].into();
    let ended = run(World { script, ..World::default() }, &events(100, 3), 10, true);
    assert_eq!((ended.totals.published, ended.world.stored.len()), (100, 100), "each once");
    let session = |what, number: u32| (what, format!("address {number}"));
    assert_eq!(
        ended.world.sessions,
        [session("open", 0), session("open", 1), session("close", 0), session("close", 1)]
    );
    assert_eq!(ended.world.addresses.last().map(String::as_str), Some("address 1"));
}

#[test]
fn keeps_the_old_session_where_a_successor_cannot_connect() {
    let script = [BrokerStep::Store, BrokerStep::Reroute].into();
    let world = World { script, bars_successors: true, ..World::default() };
    let ended = run(world, &events(100, 3), 10, true);
    assert_eq!((ended.totals.published, ended.world.connects), (100, 1));
    assert!(ended.world.addresses.iter().all(|address| address == "address 0"));
    assert!(ended.took < Duration::from_secs(1), "{:?}", ended.took);
}

#[test]
fn holds_nothing_up_where_one_message_is_in_flight_at_a_time() {
    let ended = run(World::default(), &events(300, 3), 1, true);
    assert_eq!(ended.totals.published, 300);
    assert!(ended.took < Duration::from_millis(20), "{:?}", ended.took);
}

#[test]
fn sends_again_in_order_after_a_lost_session_and_before_anything_new() {
    let script = [
        BrokerStep::Store,
        BrokerStep::Lose,
        BrokerStep::FailConnect,
        BrokerStep::Store,
        BrokerStep::LoseAfterStore,
    ];
    let world = World { script: script.into(), ..World::default() };
    let ended = run(world, &events(6, 1), 4, true);
    let stored: Vec<&str> = ended.world.stored.iter().map(|id| &id[..2]).collect();
    // n2 was stored although its session was lost: it is stored twice, in its place.
    assert_eq!(stored, ["n0", "n1", "n2", "n2", "n3", "n4", "n5"]);
    assert_eq!((ended.world.connects, ended.totals.published), (4, 6));
}

#[test]
fn finds_the_one_message_that_closes_the_session_and_lets_the_rest_flow() {
    let world = World { poison: Some("n7."), ..World::default() };
    let ended = run(world, &events(20, 2), 8, true);
    let delivered: HashSet<&String> = ended.world.stored.iter().collect();
    assert_eq!(delivered.len(), 19);
    assert_eq!(ended.ledger.dead_lettered[RefusalReason::NotAuthorised as usize], 1);
    assert_eq!((ended.totals.published, ended.totals.dead_lettered, ended.totals.mismatch()), (19, 1, 0));
}

#[test]
fn counts_a_refused_message_lost_without_a_state_directory() {
    let world = World { refused: Some(("n3.", UNROUTABLE)), ..World::default() };
    let ended = run(world, &events(5, 1), 8, false);
    assert_eq!(ended.ledger.lost[Loss::Refused as usize], 1);
    assert_eq!((ended.totals.published, ended.totals.lost, ended.totals.mismatch()), (4, 1, 0));
}

#[test]
fn narrows_the_window_after_a_not_now_and_counts_what_was_overtaken() {
    let world = World { script: [BrokerStep::RetryLater, BrokerStep::Store].into(), ..World::default() };
    let ended = run(world, &events(3, 1), 2, true);
    let stored: Vec<&str> = ended.world.stored.iter().map(|id| &id[..2]).collect();
    assert_eq!(stored, ["n1", "n0", "n2"]);
    assert!(ended.out_of_order);
    let world = World { script: [BrokerStep::RetryLater, BrokerStep::Store].into(), ..World::default() };
    let alone = run(world, &events(3, 1), 1, true);
    assert!(!alone.out_of_order, "one in flight excludes it");
    assert_eq!(alone.world.stored.len(), 3);
}

#[test]
fn keeps_what_fits_of_a_batch_of_refusals_and_loses_the_rest_only_at_the_deadline() {
    // A letter is some hundred bytes: not all five fit.
    let world = World { refused: Some(("n", UNROUTABLE)), ..World::default() };
    let ended = run_with(world, &events(5, 1), 8, Some(1000));
    assert!(ended.totals.dead_lettered > 0 && ended.totals.lost > 0, "{:?}", ended.totals);
    assert_eq!(ended.totals.dead_lettered + ended.totals.lost, 5);
    assert_eq!(ended.totals.mismatch(), 0);
}

#[test]
fn sends_what_comes_after_a_reload_elsewhere_once_nothing_is_in_flight() {
    let script = [BrokerStep::Store, BrokerStep::Store, BrokerStep::Store, BrokerStep::Store, BrokerStep::Reroute];
    let events = events(20, 2);
    let ended = run(World { script: script.into(), ..World::default() }, &events, 4, true);
    let expected: Vec<String> = events.iter().map(|(name, _)| id(name)).collect();
    assert_eq!(ended.world.stored, expected, "each once, in order");
    // The stored ones, and those in flight beside the fifth.
    let addresses = [vec!["address 0"; 8], vec!["address 1"; 12]].concat();
    assert_eq!(ended.world.addresses, addresses);
    assert_eq!((ended.world.connects, ended.totals.published, ended.totals.mismatch()), (2, 20, 0));
    assert_eq!(ended.world.handed, 20, "nothing was handed over again");
}

#[test]
fn does_not_wait_for_verdicts_of_a_broker_that_is_away() {
    let ended = run(World { script: [BrokerStep::Vanish].into(), ..World::default() }, &events(6, 1), 3, true);
    let addresses = [vec!["address 0"; 3], vec!["address 1"; 3]].concat();
    assert_eq!(ended.world.addresses, addresses, "those in flight keep theirs");
    assert_eq!((ended.world.connects, ended.totals.published, ended.totals.mismatch()), (2, 6, 0));
}

#[test]
fn takes_the_latest_of_two_reloads() {
    let script = [BrokerStep::Store, BrokerStep::Reroute, BrokerStep::Reroute];
    let ended = run(World { script: script.into(), ..World::default() }, &events(6, 1), 3, true);
    let addresses = [vec!["address 0"; 4], vec!["address 2"; 2]].concat();
    assert_eq!(ended.world.addresses, addresses);
    assert_eq!((ended.world.connects, ended.totals.published), (2, 6));
}

#[tokio::test]
async fn new_events_wait_for_other_routes_although_another_reload_comes_before_they_are_in_use() {
    let world = Arc::new(Mutex::new(World::default()));
    let mut takeover = Takeover::new(Backoff::new(Duration::from_millis(1), Duration::from_millis(1)));
    for change in [Change::Routes, Change::Connection] {
        let broker = Box::new(Scripted::new(&world, 1));
        takeover.begin(RoutedBroker { broker, router: world.lock().router() }, change);
        assert!(takeover.holds());
        assert!(takeover.news().await.is_none() && takeover.is_ready());
    }
}

#[test]
fn takes_other_routes_at_the_next_connect_and_at_once() {
    let script = [
        BrokerStep::Reroute,
        BrokerStep::FailConnect,
        BrokerStep::Reroute,
        BrokerStep::Store,
        BrokerStep::Lose,
        BrokerStep::Reroute,
    ];
    let ended = run(World { script: script.into(), ..World::default() }, &events(3, 1), 1, true);
    assert_eq!(ended.world.addresses, ["address 2", "address 2", "address 3"]);
    assert_eq!(ended.world.stored, [id("n0."), id("n1."), id("n2.")]);
    assert_eq!(ended.world.connects, 6);
    let ended = run(World { script: [BrokerStep::Reroute].into(), ..World::default() }, &events(3, 1), 1, true);
    assert_eq!(ended.world.addresses, ["address 1"; 3]);
    assert!(ended.took < Duration::from_millis(20), "it backed off for {:?}", ended.took);
}

/// The maximum number of attempts within any minute, and the time between the first two.
fn tries(world: &World) -> (usize, Duration) {
    let within = |from: &tokio::time::Instant| {
        world.tries.iter().filter(|at| *at >= from && **at < *from + Duration::from_mins(1)).count()
    };
    (world.tries.iter().map(within).max().unwrap_or_default(), world.tries[1] - world.tries[0])
}

#[test]
fn sends_a_nacked_message_at_most_six_times_a_minute_and_the_second_time_at_once() {
    for nacks_end_the_session in [false, true] {
        let world = World { nacked: Some(("n2.", 12)), nacks_end_the_session, ..World::default() };
        let ended = run(world, &events(6, 1), 4, true);
        let (most, second) = tries(&ended.world);
        assert_eq!(most, 6, "a session ends after a nack: {nacks_end_the_session}");
        assert!(second < Duration::from_secs(1), "{second:?}");
        assert_eq!((ended.totals.published, ended.totals.mismatch()), (6, 0));
        assert_eq!(ended.world.tries.len(), 12);
    }
}

#[test]
fn takes_one_step_of_the_back_off_for_what_is_nacked_together() {
    let ended = run(World { nacked: Some(("n", 8)), ..World::default() }, &events(8, 1), 8, true);
    let expected: Vec<String> = (0..8).map(|number| id(&format!("n{number}."))).collect();
    assert_eq!(ended.world.stored, expected);
    assert!(ended.took < Duration::from_millis(200), "it backed off for {:?}", ended.took);
}

const MISSING: Refused = Refused::AddressWrong(RefusalReason::NoDestination);

/// A world in which the address `k0` refuses so many messages in this way.
fn refusing(kind: Refused, count: usize, refuse_after: Duration) -> World {
    World { refusing: HashMap::from([("k0", (kind, count))]), refuse_after, ..World::default() }
}

/// The latest time at which a message of another address than `k0` was stored, and all messages that `k0` stored.
fn at_others(world: &World) -> (tokio::time::Instant, Vec<&String>) {
    let stored = world.stored_at.iter().zip(&world.addresses).filter(|(_, address)| *address != "k0");
    let own = world.stored.iter().zip(&world.addresses).filter(|(_, address)| *address == "k0");
    (*stored.map(|(at, _)| at).max().unwrap(), own.map(|(id, _)| id).collect())
}

#[test]
fn what_waits_at_a_wrong_address_is_a_dead_letter_after_its_time_and_nothing_else_waits() {
    let world = refusing(MISSING, usize::MAX, Duration::from_mins(1));
    let ended = run(world, &events(30, 3), 8, true);
    assert_eq!(ended.ledger.dead_lettered[RefusalReason::NoDestination as usize], 10);
    assert_eq!((ended.totals.published, ended.totals.lost, ended.totals.mismatch()), (20, 0, 0));
    assert_eq!(ended.view.copy().last_error.unwrap().kind, ErrorKind::Refused, "the last error is the dead letter");
    let first = ended.world.refusals[0];
    assert!(ended.took >= Duration::from_mins(1), "dead letters after {:?}", ended.took);
    assert!(at_others(&ended.world).0 - first < Duration::from_secs(1), "the others waited");
    // The first eight, then one per step of the back-off.
    assert!((30..80).contains(&ended.world.refusals.len()), "{} refusals", ended.world.refusals.len());
}

#[test]
fn an_address_is_wrong_at_once_where_the_settings_say_so_and_open_once_it_takes_a_message() {
    let ended = run(refusing(MISSING, usize::MAX, Duration::ZERO), &events(30, 3), 8, true);
    assert_eq!((ended.totals.published, ended.totals.dead_lettered), (20, 10));
    assert!(ended.took < Duration::from_secs(1), "{:?}", ended.took);
    let ended = run(refusing(MISSING, 20, Duration::from_mins(1)), &events(30, 3), 8, true);
    assert_eq!((ended.totals.published, ended.totals.dead_lettered), (30, 0));
    let expected: Vec<String> = (0..10).map(|number| id(&format!("n{}.", number * 3))).collect();
    assert_eq!(at_others(&ended.world).1, expected.iter().collect::<Vec<_>>(), "in order");
}

/// It refuses once before the broker is away for longer than `refuse_after`, and a few times after it is back.
#[test]
fn the_time_for_which_the_broker_is_away_proves_no_address_wrong() {
    let script = std::iter::once(BrokerStep::Lose).chain([BrokerStep::FailConnect; 80]).collect();
    let world = World { script, ..refusing(MISSING, 4, Duration::from_mins(1)) };
    let ended = run(world, &events(2, 2), 8, true);
    let away = ended.world.refusals[1] - ended.world.refusals[0];
    assert!(away > Duration::from_mins(1), "it was away for {away:?}");
    assert_eq!((ended.totals.published, ended.totals.dead_lettered), (2, 0));
}

#[test]
fn nothing_is_ever_refused_for_an_address_that_is_unable() {
    let ended = run(refusing(Refused::AddressUnable, usize::MAX, Duration::ZERO), &events(30, 3), 8, true);
    assert_eq!((ended.totals.published, ended.totals.dead_lettered, ended.totals.lost), (20, 0, 10));
    assert!(ended.took >= Duration::from_hours(1), "given up after {:?}", ended.took);
    assert!(at_others(&ended.world).0 - ended.world.refusals[0] < Duration::from_secs(1), "the others waited");
    let world = World { refuses_at_send: true, ..refusing(Refused::AddressUnable, 40, Duration::ZERO) };
    let ended = run(world, &events(30, 3), 8, true);
    assert_eq!((ended.totals.published, ended.totals.dead_lettered), (30, 0));
    assert!(ended.took > Duration::from_secs(30), "tried at once, again and again: {:?}", ended.took);
    let ended = run(refusing(Refused::AddressUnable, 40, Duration::ZERO), &events(30, 3), 8, true);
    assert_eq!((ended.totals.published, ended.totals.dead_lettered), (30, 0));
    assert!(!ended.out_of_order);
}

#[test]
fn nothing_is_refused_for_the_broker_unless_others_are_stored_again_and_again() {
    let refusing_all = HashMap::from([("*", (Refused::Broker, 500))]);
    let world = World { refusing: refusing_all, ..World::default() };
    let ended = run(world, &events(30, 3), 8, true);
    assert_eq!((ended.totals.published, ended.totals.dead_lettered), (30, 0));
    let ended = run(refusing(Refused::Broker, usize::MAX, Duration::from_mins(1)), &events(30, 3), 8, true);
    assert_eq!((ended.totals.published, ended.totals.dead_lettered, ended.totals.mismatch()), (20, 10, 0));
    assert_eq!(ended.ledger.dead_lettered[RefusalReason::Other as usize], 10);
    let first = ended.world.refusals[0];
    assert!(at_others(&ended.world).0 - first < Duration::from_secs(30), "the others waited");
}

#[test]
fn a_reload_sends_elsewhere_what_was_refused() {
    let refusing = HashMap::from([("address 0", (MISSING, 4))]);
    let world = World { refusing, refuse_after: Duration::from_mins(1), ..World::default() };
    let ended = run(world, &events(10, 1), 4, true);
    assert_eq!(ended.world.addresses, ["address 1"; 10]);
    let expected: Vec<String> = (0..10).map(|number| id(&format!("n{number}."))).collect();
    assert_eq!(ended.world.stored, expected);
    assert_eq!((ended.totals.published, ended.totals.dead_lettered), (10, 0));
}

#[test]
fn a_reload_leaves_its_address_to_what_had_no_answer() {
    let refusing = HashMap::from([("address 0", (Refused::AddressUnable, 4))]);
    let world = World { refusing, verdict: Some(Verdict::Unanswered), ..World::default() };
    let ended = run(world, &events(10, 1), 4, true);
    let stored = ended.world.stored.iter().zip(&ended.world.addresses);
    let old: Vec<_> = stored.filter(|(_, address)| *address == "address 0").map(|(id, _)| id.clone()).collect();
    assert_eq!(old, (0..4).map(|number| id(&format!("n{number}."))).collect::<Vec<_>>());
    assert_eq!((ended.totals.published, ended.totals.dead_lettered), (10, 0));
}

#[test]
fn others_flow_while_there_is_no_room_for_dead_letters() {
    let world = refusing(Refused::Event(RefusalReason::TooLarge), usize::MAX, Duration::ZERO);
    let ended = run_with(world, &events(60, 3), 8, Some(1000));
    assert_eq!((ended.totals.published, ended.totals.mismatch()), (40, 0));
    assert!(ended.totals.dead_lettered > 0 && ended.totals.lost > 0, "{:?}", ended.totals);
    assert!(at_others(&ended.world).0 - ended.world.refusals[0] < Duration::from_secs(1), "the others waited");
}

/// More than a batch of them, at an address that is wrong or that no broker could have: the others are taken meanwhile.
#[test]
fn others_flow_beside_more_refused_events_than_are_written_at_once() {
    let world = refusing(MISSING, usize::MAX, Duration::ZERO);
    let ended = run_with(world, &events(1200, 3), 8, Some(1000));
    assert_eq!((ended.totals.published, ended.totals.mismatch()), (800, 0));
    assert!(ended.totals.dead_lettered > 0 && ended.totals.lost > 300, "{:?}", ended.totals);
}

/// A broker that is throttled takes some of what is in flight and others not, of any address.
#[test]
fn no_address_is_blamed_for_a_broker_that_rejects_some_of_many_in_flight() {
    let refusing = HashMap::from([("k0", (Refused::Broker, 20)), ("k1", (Refused::Broker, 20))]);
    let world = World { refusing, refuse_after: Duration::ZERO, ..World::default() };
    let ended = run(world, &events(300, 3), 100, true);
    assert_eq!((ended.totals.published, ended.totals.dead_lettered, ended.totals.mismatch()), (300, 0, 0));
}

fn step() -> impl Strategy<Value = BrokerStep> {
    prop_oneof![
        6 => Just(BrokerStep::Store),
        1 => Just(BrokerStep::RetryLater),
        1 => Just(BrokerStep::RefuseAtSend),
        1 => Just(BrokerStep::NotNowAtSend),
        1 => Just(BrokerStep::LoseAtSend),
        1 => Just(BrokerStep::Lose),
        1 => Just(BrokerStep::LoseAfterStore),
        1 => Just(BrokerStep::FailConnect),
        1 => Just(BrokerStep::Reroute),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever the broker does: every event ends published or as a dead letter, the ledger agrees, and the first
    /// deliveries of a key are in order unless it is counted.
    #[test]
    fn nothing_is_lost_and_order_holds_whatever_the_broker_does(
        script in proptest::collection::vec(step(), 0..60),
        count in 1usize..60,
        keys in 1usize..4,
        window in 1usize..12,
        refusals in proptest::option::of((0usize..4, 1usize..30)),
    ) {
        let events = events(count, keys);
        let kinds = [MISSING, Refused::AddressUnable, Refused::Broker, UNROUTABLE];
        let refusing = refusals.map(|(kind, count)| ("k0", (kinds[kind], count))).into_iter().collect();
        let refuse_after = Duration::from_secs(5);
        let world = World { script: script.into(), refusing, refuse_after, ..World::default() };
        let ended = run(world, &events, window, true);
        prop_assert_eq!(ended.totals.mismatch(), 0);
        prop_assert_eq!((ended.totals.held, ended.totals.lost), (0, 0));
        prop_assert_eq!(ended.totals.published + ended.totals.dead_lettered, count as u64);
        let mut seen = HashSet::new();
        let mut last: HashMap<(&str, &str), usize> = HashMap::new();
        for (id, address) in ended.world.stored.iter().zip(&ended.world.addresses) {
            let number: usize = id[1..id.find('.').unwrap()].parse().unwrap();
            if seen.insert(number) && !ended.out_of_order {
                let before = last.insert((&events[number].1, address), number);
                prop_assert!(before.is_none_or(|before| before < number), "{:?}", ended.world.stored);
            }
        }
    }
}
