//! Healthy addresses beside one that takes nothing, while the journal turns over ten times: their rate, the memory, and in
//! the end that everything arrived, in order, at both. `make soak STUCK=1` for ten minutes on each broker, and with a kill.

use std::collections::HashMap;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::conformance::kafka::Kafka;
use crate::conformance::nats::Nats;
use crate::conformance::rabbitmq::Rabbitmq;
use crate::conformance::stuck::Stuck;
use crate::support::{Daemon, Delivered, LIMIT, Load, Oracle, Sent, Setup, Status, Table, heavy};

#[test]
fn a_stuck_topic_slows_no_other_while_the_journal_turns_over() {
    beside_a_stuck_address::<Kafka>("kafka", &SHORT);
}

#[test]
fn a_stuck_queue_slows_no_other_while_the_journal_turns_over() {
    beside_a_stuck_address::<Rabbitmq>("rabbitmq", &SHORT);
}

#[test]
fn a_stuck_stream_slows_no_other_while_the_journal_turns_over() {
    beside_a_stuck_address::<Nats>("nats", &SHORT);
}

#[test]
#[ignore = "long: make soak STUCK=1"]
fn ten_minutes_beside_a_stuck_address_on_kafka() {
    beside_a_stuck_address::<Kafka>("kafka", &LONG);
}

#[test]
#[ignore = "long: make soak STUCK=1"]
fn ten_minutes_beside_a_stuck_address_on_rabbitmq() {
    beside_a_stuck_address::<Rabbitmq>("rabbitmq", &LONG);
}

#[test]
#[ignore = "long: make soak STUCK=1"]
fn ten_minutes_beside_a_stuck_address_on_nats() {
    beside_a_stuck_address::<Nats>("nats", &LONG);
}

/// The sizes of a run.
struct Plan {
    journal: (&'static str, u64),
    segment: &'static str,
    buffer: (&'static str, u64),
    max_body: &'static str,
    /// The events that wait at the stuck address from the beginning: more than the buffer holds.
    waiting: u64,
    /// Bodies are about this long.
    text: usize,
    /// The events of one measurement.
    measured: u64,
    /// The least number of measurements of each bridge.
    rounds: usize,
    /// The time that it takes at least.
    lasts: Duration,
    /// More events for the stuck address after each measurement.
    trickle: u64,
    /// The least rate beside the stuck address, as a share of the rate without one.
    share: f64,
    /// Whether the bridge is killed in the middle.
    is_killed: bool,
}

const SHORT: Plan = Plan {
    journal: ("8MiB", 8 << 20),
    segment: "512KiB",
    buffer: ("1MiB", 1 << 20),
    max_body: "16KiB",
    waiting: 160,
    text: 8_000,
    measured: 1_750,
    rounds: 6,
    lasts: Duration::ZERO,
    trickle: 4,
    share: 0.5,
    is_killed: false,
};

const LONG: Plan = Plan {
    journal: ("64MiB", 64 << 20),
    segment: "4MiB",
    buffer: ("4MiB", 4 << 20),
    max_body: "64KiB",
    waiting: 1_000,
    text: 8_000,
    measured: 4_000,
    rounds: 20,
    lasts: Duration::from_mins(10),
    trickle: 20,
    share: 0.9,
    is_killed: true,
};

/// The turns of the journal that a run makes at least.
const TURNS: u64 = 10;

/// The most times that a message may be stored anywhere.
const COPIES: usize = 6;

/// The memory of the bridge that does not depend on settings.
const PROGRAM: u64 = 32 << 20;

/// The memory of one connection, of which there are fewer than so many here.
const CONNECTIONS: (u64, u64) = (64, 30 << 10);

impl Plan {
    fn setup(&self, table: &Table) -> Setup {
        let setup = Setup::new(table)
            .at_one_address()
            .text("ack", "journaled")
            .text("journal.max_bytes", self.journal.0)
            .text("journal.segment_bytes", self.segment)
            .text("buffer.max_bytes", self.buffer.0)
            .text("ingress.max_body", self.max_body)
            // Nothing of what waits is the event's fault, however short the patience.
            .text("publish.refuse_after", "0s");
        match std::env::var_os("SOAK_PROGRAM").filter(|_| self.lasts > Duration::ZERO) {
            Some(program) => setup.program(Path::new(&program)),
            None => setup,
        }
    }

    /// The most memory of a bridge, as documented. A build for tests takes more, and in a short run less waits than that.
    fn ceiling(&self) -> Option<u64> {
        (self.lasts > Duration::ZERO).then_some(2 * self.buffer.1 + CONNECTIONS.0 * CONNECTIONS.1 + PROGRAM)
    }

    /// Events for the healthy addresses; those of a series are numbered on.
    fn load(&self, series: &str, events: u64) -> Load {
        let series = Some((series.to_owned(), 0));
        let text = "x".repeat(self.text);
        Load { events, connections: 8, keys: 8, text, again: true, series, ..Load::default() }
    }

    /// Events for the stuck address.
    fn jamming(&self, series: &str, events: u64) -> Load {
        let every = Some((1, "Trapped", "x".repeat(self.text)));
        Load { connections: 2, keys: 2, every, ..self.load(series, events) }
    }
}

/// One of the two bridges: beside a stuck address, and without one.
struct Measured<'p> {
    plan: &'p Plan,
    name: &'static str,
    setup: Setup,
    /// None only while one ends and another starts.
    daemon: Option<Daemon>,
    /// Those that wait at the stuck address.
    waits: u64,
    sent: Sent,
    rates: Vec<f64>,
    resident: u64,
    /// The count of earlier runs.
    out_of_order: u64,
}

impl<'p> Measured<'p> {
    fn start(plan: &'p Plan, name: &'static str, table: &Table) -> Self {
        let setup = plan.setup(table);
        let daemon = Some(setup.start());
        let (waits, sent, rates) = (0, Sent::default(), Vec::new());
        Self { plan, name, setup, daemon, waits, sent, rates, resident: 0, out_of_order: 0 }
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("one runs")
    }

    /// Fills the stuck address.
    fn jam(&mut self) {
        let waiting = self.plan.jamming("jam", self.plan.waiting).send(&self.daemon().ingress).all_accepted();
        self.sent = std::mem::take(&mut self.sent).and(waiting);
        self.waits = self.plan.waiting;
    }

    /// Sends as fast as the bridge answers, and notes the rate at which all of it is delivered.
    fn measure(&mut self, round: usize) {
        let load = self.plan.load(&format!("{}-{round}", self.name), self.plan.measured);
        let began = Instant::now();
        let sent = load.send(&self.daemon().ingress).all_accepted();
        self.all_but_what_waits(self.waits);
        #[expect(clippy::cast_precision_loss, reason = "some thousand events")]
        self.rates.push(self.plan.measured as f64 / began.elapsed().as_secs_f64());
        self.sent = std::mem::take(&mut self.sent).and(sent);
        self.resident = self.resident.max(self.daemon().resident());
    }

    /// Sends some more to the stuck address.
    fn trickle(&mut self, round: usize) {
        let events = self.plan.trickle;
        let sent =
            self.plan.jamming(&format!("trickle-{round}"), events).send(&self.daemon().ingress).all_accepted();
        self.sent = std::mem::take(&mut self.sent).and(sent);
        self.waits += events;
    }

    fn all_but_what_waits(&self, waits: u64) -> Status {
        self.daemon().wait_until("the others are delivered", 2 * LIMIT, |status| status.count("held") <= waits)
    }

    /// Kills the bridge under load, at both addresses, and starts it again.
    fn kill(&mut self) {
        let load = |load: Load| Load { patient: true, ..load }.start(&self.daemon().ingress);
        let healthy = load(self.plan.load("kill", self.plan.measured));
        let stuck = load(self.plan.jamming("kill-jam", 200));
        let published = self.daemon().status().count("published");
        let half = published + self.plan.measured / 2;
        self.daemon().wait_until("half of it is delivered", LIMIT, |status| status.count("published") >= half);
        self.out_of_order += self.daemon().metric("publish_out_of_order_total", &[]);
        if let Some(daemon) = self.daemon.take() {
            daemon.kill();
        }
        self.daemon = Some(self.setup.start());
        let sent = healthy.join().and(stuck.join()).all_accepted();
        self.sent = std::mem::take(&mut self.sent).and(sent);
        self.waits += 200;
        self.all_but_what_waits(self.waits);
    }

    fn median(&self) -> f64 {
        let mut rates = self.rates.clone();
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    }

    fn bytes(&self) -> u64 {
        self.sent.0.iter().map(|note| note.body.len() as u64).sum()
    }
}

fn beside_a_stuck_address<R: Stuck>(broker: &'static str, plan: &Plan) {
    let _one = heavy();
    let place = |name: &str| if plan.is_killed { R::private(name) } else { R::new(name) };
    let rig = place(&format!("beside-{broker}"));
    let other = place(&format!("without-{broker}"));
    let mut beside = Measured::start(plan, "beside", &rig.jam());
    let mut without = Measured::start(plan, "without", &other.table());
    beside.jam();
    let began = Instant::now();
    let mut round = 0;
    while round < plan.rounds || began.elapsed() < plan.lasts {
        let since = Instant::now();
        without.measure(round);
        beside.measure(round);
        round += 1;
        if plan.is_killed && round == plan.rounds / 2 {
            beside.kill();
        }
        beside.trickle(round);
        let pause = plan.lasts / u32::try_from(plan.rounds).expect("some rounds");
        // The time that it lasts; a measurement begins each time.
        thread::sleep(pause.saturating_sub(since.elapsed()));
    }
    let status = beside.all_but_what_waits(beside.waits);
    let (turns, median, usual) = (beside.bytes() / plan.journal.1, beside.median(), without.median());
    println!(
        "{broker}: {median:.0} a second beside a stuck address, {usual:.0} without, the journal turned over {turns} times, \
         {} MiB, {} s; {:.0?} {:.0?}",
        beside.resident >> 20,
        began.elapsed().as_secs(),
        beside.rates,
        without.rates,
    );
    assert!(turns >= TURNS, "the journal turned over {turns} times");
    assert_eq!((status.count("held"), status.count("lost"), status.count("dead_lettered")), (beside.waits, 0, 0));
    let waiting = status.0["broker"]["waiting"].to_string();
    assert!(waiting.contains(&rig.stuck()), "{waiting} does not name {}", rig.stuck());
    assert!(plan.ceiling().is_none_or(|most| beside.resident <= most), "{} KiB of memory", beside.resident >> 10);
    assert!(median >= plan.share * usual, "{median:.0} a second beside a stuck address, {usual:.0} without");
    rig.open();
    let status = beside.daemon().wait_until("all of it arrives", 2 * LIMIT, |status| status.count("held") == 0);
    assert_eq!((status.count("lost"), status.count("dead_lettered")), (0, 0));
    let delivered = rig.read_all(beside.sent.accepted());
    let out_of_order = beside.out_of_order + beside.daemon().metric("publish_out_of_order_total", &[]);
    let repeats = Oracle { sent: &beside.sent, delivered: &delivered, dead: &[], out_of_order }.judge();
    let copies = most_copies(&delivered);
    println!(
        "{broker}: {repeats} repeats, at most {copies} of one message; {:.1} s",
        began.elapsed().as_secs_f64()
    );
    assert!(copies <= COPIES, "a message was stored {copies} times");
    assert!(plan.is_killed || repeats == 0, "{repeats} repeats although nothing failed");
}

/// The number of times that the message is stored that is stored most often.
fn most_copies(delivered: &[Delivered]) -> usize {
    let mut copies: HashMap<&str, usize> = HashMap::new();
    for message in delivered {
        *copies.entry(&message.id).or_default() += 1;
    }
    copies.into_values().max().unwrap_or_default()
}
