//! One fault under load, on a place of its own: the fault itself, the way back, and the verdict.
//!
//! Length: a fault is a few lines, and there are many.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::fault::{Fault, Moment};
use super::plan::{Judged, Plan, Seen};
use super::rig::{Address, Place, Rig};
use crate::support::{Daemon, Delivered, Load, Node, Oracle, Running, Sent, Setup, Status};

/// Events a second.
const RATE: u64 = 200;

/// A rate at which an event is mostly the only one in flight.
const LOW_RATE: u64 = 2;

/// The limit of the cluster's way back, beside other tests.
const BACK: Duration = Duration::from_mins(2);

/// The time from one leader to the next.
const BETWEEN_LEADERS: Duration = Duration::from_secs(2);

/// The time within which an operator who looks is shown that events wait.
const SAID: Duration = Duration::from_secs(10);

/// A fault under way.
struct Row<'a, R: Rig> {
    place: Place<'a, R>,
    plan: Plan,
    setup: Setup,
    daemon: Daemon,
    load: Load,
    /// None before the first load, and after the last.
    running: Option<Running>,
    sent: Sent,
    /// The messages that were read before they were deleted.
    kept: Vec<Delivered>,
    seen: Seen,
    /// The directory of the password, for the fault that changes it.
    login: TempDir,
}

/// The number of times that one event meets a moment, unless `SOAK_TIMES` says otherwise.
const TIMES: u32 = 50;

/// The user whose password is renewed.
const USER: &str = "renewed";

/// One fault; a panic says which promise was broken.
pub(super) fn run<R: Rig>(rig: &R, fault: Fault, plan: Plan) -> Seen {
    let place = Place::new(rig, fault.name());
    let login = tempfile::tempdir().expect("a temporary directory can be made");
    let mut table = place.table();
    if fault == Fault::PasswordRenewed {
        place.set_password(USER, "first");
        write_login(&login, &rig.login(USER, "first"));
        table = place.table_with_login(USER, &login.path().join("login"));
    }
    let mut setup = Setup::new(&table).text("ack", "journaled").text("journal.max_bytes", "64MiB");
    if let Some(program) = std::env::var_os("SOAK_PROGRAM") {
        setup = setup.program(Path::new(&program));
    }
    let low = fault == Fault::LeaderMovedAtLowRate;
    let two_addresses = matches!(fault, Fault::AddressRefuses | Fault::LimitRemoved);
    let load = Load {
        events: u64::MAX,
        connections: 4,
        keys: R::KEYS,
        rate: if low { LOW_RATE } else { RATE },
        text: "x".repeat(100),
        every: two_addresses.then(|| (10, "Trapped", "x".repeat(100))),
        again: true,
        patient: true,
        ..Load::default()
    };
    let daemon = setup.start();
    let mut row = Row {
        place,
        plan,
        setup,
        daemon,
        load,
        running: None,
        sent: Sent::default(),
        kept: Vec::new(),
        seen: Seen::default(),
        login,
    };
    row.start();
    row.flows(if low { 2 } else { 200 });
    row.place.wait_until_whole();
    row.make(fault);
    row.flows(if low { 2 } else { 200 });
    row.end();
    row.judge(fault)
}

impl<'a, R: Rig> Row<'a, R> {
    fn start(&mut self) {
        self.running = Some(self.load.start(&self.daemon.ingress));
    }

    /// Ends the load and waits until everything is settled.
    fn end(&mut self) -> Status {
        if let Some(running) = self.running.take() {
            self.sent = std::mem::take(&mut self.sent).and(running.end());
        }
        self.daemon.wait_until_empty()
    }

    /// Waits until the load has sent all that it has to, and everything is settled.
    fn all_sent(&mut self) -> Status {
        if let Some(running) = self.running.take() {
            self.sent = std::mem::take(&mut self.sent).and(running.join());
        }
        self.daemon.wait_until_empty()
    }

    /// Waits until so many more are published.
    fn flows(&self, events: u64) {
        let published = self.daemon.status().count("published");
        self.daemon.wait_until("events flow", BACK, |status| status.count("published") >= published + events);
    }

    /// Waits until a plain client's publish is confirmed, then for the bridge: the oldest event that it holds at that
    /// moment must be settled.
    fn recovers(&mut self, address: Address) {
        self.place.publish(address);
        let confirmed = Instant::now();
        let before = oldest(&self.daemon.status());
        let is_back = |status: &Status| status.count("held") == 0 || oldest(status) > before;
        self.daemon.wait_until("the bridge is confirmed too", BACK, is_back);
        let took = confirmed.elapsed();
        println!("    back {:.1} s after a plain client", took.as_secs_f64());
        self.seen.recovered = self.seen.recovered.max(took);
        let wait = if matches!(address, Address::Other) { R::TRIED_WITHIN } else { Duration::ZERO };
        let limit = self.plan.recovery + wait;
        if took > limit {
            self.wrong(format!("back {took:?} after a plain client, not within {limit:?}"));
        }
    }

    fn wrong(&mut self, what: String) {
        self.seen.wrong.push(what);
    }

    fn make(&mut self, fault: Fault) {
        match fault {
            Fault::LeaderKilled => {
                self.keep_leader_and_connection_apart();
                let leader = self.place.leader();
                self.kill(&[leader]);
            }
            Fault::ConnectedKilled => {
                self.keep_leader_and_connection_apart();
                let node = self.connected();
                self.kill(&[node]);
            }
            Fault::LeaderAndConnectedKilled => {
                let node = self.connected();
                self.place.move_leader(Some(node));
                self.kill(&[node]);
            }
            Fault::MajorityGone => self.majority_gone(),
            Fault::RollingRestart => self.restart_each(),
            Fault::LeaderPaused => {
                let leader = self.place.leader();
                self.pause(&[leader]);
            }
            Fault::FollowersPaused => {
                let followers = self.place.followers();
                self.pause(&followers);
            }
            Fault::FollowersPausedBehindOne => self.pause_behind_one(),
            Fault::LeaderMoved | Fault::LeaderMovedAtLowRate => self.move_the_leader(),
            Fault::AddressRefuses => self.refuse(Place::accept),
            Fault::LimitRemoved => self.refuse(|place| place.order("unlimit")),
            Fault::DeletedAndMadeAnew => self.delete(),
            Fault::PartitionsAdded => {
                // The keys of another load: a key moves to another partition, and its order with it.
                self.end();
                self.start();
                self.place.order("partitions");
                self.recovers(Address::Main);
            }
            Fault::PasswordRenewed => {
                write_login(&self.login, &self.place.rig.login(USER, "second"));
                self.place.set_password(USER, "second");
                self.daemon.reload();
                self.place.expel(USER);
                self.recovers(Address::Main);
            }
            Fault::OneEvent(moment) => self.send_one_at(moment),
        }
    }

    /// Sends one event at a time, just before, while and just after something happens to the nodes; it is stored before the next.
    fn send_one_at(&mut self, moment: Moment) {
        self.end();
        self.load.events = 1;
        let times = std::env::var("SOAK_TIMES").ok().and_then(|times| times.parse().ok()).unwrap_or(TIMES);
        for time in 0..times {
            let leader = self.place.leader();
            let nodes = match moment {
                Moment::LeaderKilled | Moment::LeaderRestarted => vec![leader],
                Moment::FollowersKilled | Moment::FollowersPaused => self.place.followers(),
            };
            let rig = self.place.rig;
            let all = rig.nodes();
            thread::scope(|scope| {
                // From 20 ms before the event to 20 ms after it.
                let (before, after) = (u64::from(time % 5) * 5, u64::from(time / 5 % 5) * 5);
                scope.spawn(move || {
                    thread::sleep(Duration::from_millis(before));
                    for node in nodes {
                        match moment {
                            Moment::LeaderRestarted => all.terminate(node),
                            Moment::LeaderKilled | Moment::FollowersKilled => all.kill(node),
                            Moment::FollowersPaused => all.pause(node),
                        }
                    }
                });
                thread::sleep(Duration::from_millis(after));
                self.start();
            });
            match moment {
                // The others elect a leader and go on.
                Moment::LeaderKilled => drop(self.all_sent()),
                Moment::LeaderRestarted => {}
                // Long enough for each limit of a client, one time in five.
                Moment::FollowersKilled | Moment::FollowersPaused if time % 5 == 0 => {
                    thread::sleep(self.plan.paused);
                }
                Moment::FollowersKilled | Moment::FollowersPaused => thread::sleep(Duration::from_secs(2)),
            }
            self.place.rig.nodes().resume();
            self.place.rig.nodes().up();
            let status = self.all_sent();
            assert_eq!(status.count("dead_lettered"), 0, "the {time}th time: {}", status.0["broker"]);
            self.place.wait_until_whole();
        }
        self.load.events = u64::MAX;
        self.start();
    }

    fn connected(&self) -> Node {
        self.place.rig.connected().expect("the bridge is connected to one node")
    }

    fn keep_leader_and_connection_apart(&self) {
        if self.place.rig.connected() == Some(self.place.leader()) {
            self.place.move_leader(None);
        }
    }

    /// Kills nodes without which the others go on, so the bridge must too.
    fn kill(&mut self, nodes: &[Node]) {
        let killed = Instant::now();
        for node in nodes {
            self.place.rig.nodes().kill(*node);
        }
        self.recovers(Address::Main);
        rest_of(self.plan.gone, killed);
        self.place.rig.nodes().up();
        self.place.wait_until_whole();
        self.recovers(Address::Main);
    }

    fn majority_gone(&mut self) {
        let gone = Instant::now();
        for node in self.place.followers() {
            self.place.rig.nodes().kill(node);
        }
        self.waits_and_says();
        rest_of(self.plan.paused, gone);
        self.has_waited(self.plan.paused);
        self.place.rig.nodes().up();
        self.recovers(Address::Main);
    }

    fn restart_each(&mut self) {
        for node in 1..=3 {
            self.place.rig.nodes().terminate(node);
            self.place.rig.nodes().up();
            self.place.wait_until_whole();
            self.recovers(Address::Main);
        }
    }

    fn pause(&mut self, nodes: &[Node]) {
        let paused = Instant::now();
        for node in nodes {
            self.place.rig.nodes().pause(*node);
        }
        // Without its leader the cluster finds another; without its followers it cannot.
        if nodes.len() > 1 {
            self.waits_and_says();
        }
        rest_of(self.plan.paused, paused);
        if nodes.len() > 1 {
            self.has_waited(self.plan.paused);
        }
        self.place.rig.nodes().resume();
        self.recovers(Address::Main);
    }

    /// The node of the connection leads, and believes for a while that it still does.
    fn pause_behind_one(&mut self) {
        self.end();
        self.place.move_leader(Some(self.connected()));
        self.place.wait_until_whole();
        let paused = Instant::now();
        for node in self.place.followers() {
            self.place.rig.nodes().pause(node);
        }
        self.load.events = 1;
        self.start();
        self.waits_and_says();
        rest_of(self.plan.paused, paused);
        self.place.rig.nodes().resume();
        self.recovers(Address::Main);
        self.end();
        self.load.events = u64::MAX;
        self.start();
    }

    fn move_the_leader(&mut self) {
        let began = Instant::now();
        while began.elapsed() < self.plan.moved {
            let moved = Instant::now();
            self.place.move_leader(None);
            rest_of(BETWEEN_LEADERS, moved);
        }
        self.recovers(Address::Main);
    }

    /// Makes one of two addresses take nothing.
    fn refuse(&mut self, end: impl Fn(&Place<'a, R>)) {
        self.place.refuse();
        let refused = Instant::now();
        self.waits_and_says();
        let before = self.daemon.status().count("published");
        let from = Instant::now();
        rest_of(self.plan.refusing, refused);
        let flowed = self.daemon.status().count("published") - before;
        // Nine of ten go elsewhere.
        let expected = RATE * from.elapsed().as_secs() / 2;
        if self.plan.judged == Judged::Everything && flowed < expected {
            self.wrong(format!(
                "{flowed} events to the healthy address in {:?}, while the other took nothing",
                from.elapsed()
            ));
        }
        self.has_waited(self.plan.refusing);
        end(&self.place);
        self.recovers(Address::Other);
    }

    fn delete(&mut self) {
        // What is in it is deleted with it.
        let status = self.end();
        self.kept = self.place.read(status.count("published"));
        self.place.order("delete");
        self.start();
        self.place.order("create");
        self.recovers(Address::Main);
    }

    /// Panics unless an event has waited for most of the fault, which was none otherwise.
    fn has_waited(&self, fault: Duration) {
        let status = self.daemon.status();
        let waited = status.0["time_seconds"].as_f64().unwrap_or_default() - oldest(&status);
        assert!(waited > fault.as_secs_f64() / 2.0, "no fault: the oldest event has waited for {waited} s");
    }

    /// Notes where an operator who looks is not shown that events wait.
    fn waits_and_says(&mut self) {
        if self.plan.judged == Judged::Promises {
            return;
        }
        let began = Instant::now();
        let is_said = || {
            let metrics = self.daemon.get("/metrics").text();
            let shown = ["broker_connected 0", "broker_waiting 1", "addresses_waiting 1"];
            shown.iter().any(|line| metrics.contains(&format!("\nplextrac_bridge_{line}\n")))
        };
        while !is_said() {
            if began.elapsed() > SAID {
                self.wrong(format!("nothing says within {SAID:?} that events wait"));
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn judge(mut self, fault: Fault) -> Seen {
        let status = self.daemon.wait_until_empty();
        let dead = self.setup.dead_letters();
        assert!(
            dead.is_empty(),
            "{} dead letters, the first of them after {} attempts with the reason {}: {}",
            dead.len(),
            dead[0]["attempts"],
            dead[0]["reason"],
            dead[0]["text"]
        );
        assert_eq!(status.count("lost"), 0, "{}", status.0["accounting"]);
        let out_of_order = self.daemon.metric("publish_out_of_order_total", &[]);
        let mut delivered = std::mem::take(&mut self.kept);
        delivered.extend(self.place.read(status.count("published") - delivered.len() as u64));
        if fault == Fault::PartitionsAdded {
            // A key may move in the middle: its order holds in each partition.
            for message in &mut delivered {
                message.address = format!("{}/{}", message.address, std::mem::take(&mut message.partition));
            }
        }
        let oracle = Oracle { sent: &self.sent, delivered: &delivered, dead: &dead, out_of_order };
        let late = oracle.late();
        println!("    {late} late, {out_of_order} counted, {} delivered", delivered.len());
        let repeats = oracle.judge();
        oracle.agrees_with(&status);
        if self.plan.judged == Judged::Everything && R::COUNTS_EXACTLY && late != out_of_order {
            self.wrong(format!("{late} events are late, the bridge counts {out_of_order}"));
        }
        Seen {
            accepted: self.sent.accepted(),
            delivered: delivered.len(),
            repeats,
            late,
            out_of_order,
            ..std::mem::take(&mut self.seen)
        }
    }
}

impl<R: Rig> Drop for Row<'_, R> {
    fn drop(&mut self) {
        // Where a promise was broken: the load must not outlive it.
        if let Some(running) = self.running.take() {
            running.end();
        }
    }
}

/// Waits until so much time has passed since: the fault itself is this long.
fn rest_of(length: Duration, since: Instant) {
    thread::sleep(length.saturating_sub(since.elapsed()));
}

fn write_login(directory: &TempDir, login: &str) {
    let file = directory.path().join("login");
    fs::write(&file, login).expect("the temporary directory can be written");
    fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("it is ours");
}

fn oldest(status: &Status) -> f64 {
    let oldest = status.0.pointer("/buffer/oldest_event_timestamp_seconds").and_then(Value::as_f64);
    oldest.unwrap_or_default()
}
