//! One broker's run: a sender that repeats unanswered events, a fault from time to time, samples every second.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::fault::{Bridge, Deck, Fault};
use super::verdict::{Sample, Verdict};
use crate::conformance::kafka::Kafka;
use crate::conformance::nats::Nats;
use crate::conformance::rabbitmq::Rabbitmq;
use crate::conformance::rig::{Remote, Trapped};
use crate::support::{
    Daemon, LIMIT, Load, Oracle, Outcome, Sent, Setup, Status, assert_books_balance, heavy, random, wait_until,
};

/// Unconfirmed messages at most, and the size of a window of refused ones.
const WINDOW: u64 = 100;

/// Events a second.
const RATE: u64 = 200;

/// Between two samples of memory.
const SAMPLE: Duration = Duration::from_secs(1);

/// After a fault events flow again within this: a broker may need half of it to start.
const BACK: Duration = Duration::from_mins(1);

#[test]
fn survives_faults_of_every_kind_on_kafka() {
    run::<Kafka>("kafka");
}

#[test]
fn survives_faults_of_every_kind_on_rabbitmq() {
    run::<Rabbitmq>("rabbitmq");
}

#[test]
fn survives_faults_of_every_kind_on_nats() {
    run::<Nats>("nats");
}

/// The length of a run.
struct Plan {
    faults: usize,
    /// The fault from which on the bridge is not ended any more, and its memory is measured.
    lives_on: usize,
    /// The interval between faults.
    pause: Duration,
    /// The duration of a fault that ends: a minimum, and a random addition.
    hold: (Duration, Duration),
}

impl Plan {
    /// `SOAK_MINUTES`, a fault each minute; without it one of each fault as fast as they come.
    fn asked() -> Self {
        let minutes =
            std::env::var("SOAK_MINUTES").ok().map(|text| text.parse().expect("SOAK_MINUTES is a number"));
        match minutes {
            Some(minutes) => Self {
                faults: minutes,
                lives_on: minutes / 2,
                pause: Duration::from_mins(1),
                hold: (Duration::from_secs(3), Duration::from_secs(12)),
            },
            None => Self {
                faults: Deck::size(),
                lives_on: Deck::size(),
                pause: Duration::from_millis(500),
                hold: (Duration::from_millis(800), Duration::from_millis(400)),
            },
        }
    }
}

struct Soak<'a, R> {
    rig: &'a R,
    setup: Setup,
    trapped: Trapped,
    /// None only while one ends and another starts.
    daemon: Option<Daemon>,
    random: Rng,
    seed: u64,
    plan: Plan,
    began: Instant,
    samples: Vec<Sample>,
    life: u32,
    /// The count of earlier runs of the bridge.
    out_of_order: u64,
    refused: Sent,
}

/// The whole run.
fn run<R: Remote>(broker: &str) {
    let _one = heavy();
    let random = random();
    let plan = Plan::asked();
    let rig = R::private_and_proxied(&format!("soak-{broker}"));
    let trapped = rig.trap(R::SMALL_TRAP);
    let mut setup = Setup::new(&trapped.table)
        .at_one_address()
        .text("ack", "journaled")
        // The table of known requests is full before memory is measured.
        .text("deduplication.window", "30s")
        .raw("publish.max_in_flight", WINDOW.to_string())
        .text("publish.refuse_after", "5s");
    if let Some(program) = std::env::var_os("SOAK_PROGRAM") {
        setup = setup.program(Path::new(&program));
    }
    let daemon = Some(setup.start());
    let mut soak = Soak {
        rig: &rig,
        setup,
        trapped,
        daemon,
        seed: random.get_seed(),
        random,
        plan,
        began: Instant::now(),
        samples: Vec::new(),
        life: 0,
        out_of_order: 0,
        refused: Sent::default(),
    };
    let verdict = soak.run();
    println!("{}", verdict.table(broker));
    println!("{}", verdict.json(broker));
    verdict.assert_flat();
}

impl<R: Remote> Soak<'_, R> {
    fn run(&mut self) -> Verdict {
        let load = Load {
            events: u64::MAX,
            connections: 4,
            keys: 12,
            rate: RATE,
            text: "x".repeat(100),
            again: true,
            patient: true,
            ..Load::default()
        };
        let running = load.start(&self.daemon().ingress);
        let mut deck = Deck::default();
        let mut faults = Vec::new();
        for number in 0..self.plan.faults {
            self.flows(100);
            self.watch(self.plan.pause);
            let bridge = if number < self.plan.lives_on { Bridge::MayEnd } else { Bridge::LivesOn };
            let fault = deck.draw(&mut self.random, bridge);
            println!("{:>6} s  {}", self.began.elapsed().as_secs(), fault.name());
            self.make(fault);
            faults.push(fault);
        }
        self.flows(100);
        self.watch(self.plan.pause);
        let sent = running.end().and(std::mem::take(&mut self.refused));
        let status = self.daemon().wait_until_empty();
        self.judge(&sent, &status, faults)
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("one runs")
    }

    /// Waits until so many more are published.
    fn flows(&self, events: u64) {
        let published = self.daemon().status().count("published");
        self.daemon().wait_until("events flow", BACK, |status| status.count("published") >= published + events);
    }

    /// The time between faults: nothing but samples.
    fn watch(&mut self, pause: Duration) {
        let until = Instant::now() + pause;
        while Instant::now() < until {
            let own = self.daemon().own_memory();
            self.samples.push(Sample { life: self.life, at: self.began.elapsed(), own });
            thread::sleep(SAMPLE.min(until.saturating_duration_since(Instant::now())));
        }
    }

    /// The duration of this fault.
    fn hold(&mut self) {
        let (least, more) = self.plan.hold;
        // The fault itself is this long.
        thread::sleep(least + more.mul_f64(self.random.f64()));
    }

    fn make(&mut self, fault: Fault) {
        match fault {
            Fault::Crash => {
                let daemon = self.leave();
                daemon.kill();
                self.daemon = Some(self.setup.start());
            }
            Fault::Restart => {
                let stopped = self.leave().stop();
                assert_eq!((stopped.code, stopped.count("lost")), (Some(0), 0), "{}", stopped.last);
                self.daemon = Some(self.setup.start());
            }
            Fault::BrokerCrash => {
                self.rig.broker().kill();
                self.hold();
                self.rig.broker().up();
            }
            Fault::BrokerHang => {
                self.rig.broker().pause();
                self.hold();
                self.rig.broker().resume();
            }
            Fault::Cut => {
                let cuts = self.rig.proxy().cuts();
                self.rig.proxy().cut_after(self.random.usize(20..500));
                wait_until("the connection is cut", LIMIT, || self.rig.proxy().cuts() > cuts);
            }
            Fault::Stall => {
                self.rig.proxy().stall();
                self.hold();
                self.rig.proxy().heal();
            }
            Fault::Refuse => {
                self.rig.proxy().refuse();
                self.hold();
                self.rig.proxy().heal();
            }
            Fault::Refused => self.refused_window(),
        }
    }

    /// Takes the daemon out; its counts are kept.
    fn leave(&mut self) -> Daemon {
        let daemon = self.daemon.take().expect("one runs");
        self.out_of_order += daemon.metric("publish_out_of_order_total", &[]);
        self.life += 1;
        daemon
    }

    fn refused_window(&mut self) {
        let kept = self.daemon().status().number("/dead_letters/events");
        let load = Load {
            events: WINDOW,
            every: Some((1, "Trapped", self.trapped.text.clone())),
            again: true,
            patient: true,
            ..Load::default()
        };
        let sent = load.send(&self.daemon().ingress).all_accepted();
        // Before the next fault: a crash between dead letter and settling makes two letters of one event.
        self.daemon().wait_until("all of them are dead letters", BACK, |status| {
            status.number("/dead_letters/events") >= kept + WINDOW
        });
        self.refused = std::mem::take(&mut self.refused).and(sent);
    }

    fn judge(&self, sent: &Sent, status: &Status, faults: Vec<Fault>) -> Verdict {
        assert_books_balance(status);
        assert_eq!(status.count("lost"), 0, "{}", status.0["accounting"]);
        let dead = self.setup.dead_letters();
        let trapped = sent.0.iter().filter(|note| note.event == "Trapped").count();
        assert_eq!(dead.len(), trapped, "exactly the trapped events are dead letters");
        assert!(dead.iter().all(|letter| letter["event"] == "Trapped"), "another event is a dead letter");
        let delivered = self.rig.read(sent.accepted() - trapped as u64);
        let out_of_order = self.out_of_order + self.daemon().metric("publish_out_of_order_total", &[]);
        let repeats = Oracle { sent, delivered: &delivered, dead: &dead, out_of_order }.judge();
        // A window for each session that a fault ended, and one fault may end several.
        let most = 4 * usize::try_from(WINDOW).expect("a window is small") * (faults.len() + 1);
        assert!(repeats <= most, "{repeats} repeats after {} faults", faults.len());
        Verdict {
            seed: self.seed,
            took: self.began.elapsed(),
            accepted: sent.accepted(),
            unanswered: sent.0.iter().filter(|note| note.outcome == Outcome::Maybe).count(),
            delivered: delivered.len(),
            dead: dead.len(),
            repeats,
            out_of_order,
            faults,
            samples: self.samples.clone(),
        }
    }
}
