//! The end: what SIGTERM does with the broker up, away, and slow.

use std::time::Duration;

use super::rig::{Remote, Rig};
use crate::support::{LIMIT, Load, Oracle, Outcome, Setup};

pub(super) fn delivers_everything_before_it_ends_under_load<R: Rig>(test: &str) {
    let rig = R::new(test);
    let setup = Setup::new(&rig.table());
    let daemon = setup.start();
    let running = Load { events: 20_000, ..Load::default() }.start(&daemon.ingress);
    daemon.wait_until("events flow", LIMIT, |status| status.count("accepted") > 500);
    daemon.terminate();
    let stopped = daemon.wait();
    let sent = running.end();
    let maybe = sent.0.iter().filter(|note| note.outcome == Outcome::Maybe).count() as u64;
    assert_eq!(stopped.code, Some(0), "{}", stopped.last);
    assert_eq!((stopped.count("lost"), stopped.count("held")), (0, 0));
    let (accepted, told) = (stopped.count("accepted"), sent.accepted());
    assert!((told..=told + maybe).contains(&accepted), "accepted {accepted}, told 200 {told} times, maybe {maybe}");
    assert_eq!(stopped.count("published"), accepted);
    let delivered = rig.read(accepted);
    assert_eq!(Oracle { sent: &sent, delivered: &delivered, dead: &[], out_of_order: 0 }.judge(), 0);
    assert_eq!(delivered.len() as u64, accepted);
}

pub(super) fn keeps_what_it_could_not_deliver_for_the_next_start<R: Remote>(test: &str) {
    let rig = R::proxied(test);
    let setup = Setup::new(&rig.table()).text("shutdown.grace", "1s");
    let daemon = setup.start();
    let before = Load { events: 30, ..Load::default() }.send(&daemon.ingress).all_accepted();
    daemon.wait_until_empty();
    rig.proxy().refuse();
    let sent = before.and(Load { events: 50, ..Load::default() }.send(&daemon.ingress).all_accepted());
    let stopped = daemon.stop();
    assert_eq!(stopped.code, Some(0), "{}", stopped.last);
    let counts = ["accepted", "published", "lost", "held"].map(|name| stopped.count(name));
    assert_eq!(counts, [80, 30, 0, 50]);
    rig.proxy().heal();
    let daemon = setup.start();
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("recovered"), status.count("published")), (50, 50));
    let delivered = rig.read(80);
    let oracle = Oracle { sent: &sent, delivered: &delivered, dead: &[], out_of_order: 0 };
    // What was sent as the connection was cut may have arrived.
    assert!(oracle.judge() <= 50, "{} messages", delivered.len());
    assert_eq!(daemon.stop().code, Some(0));
}

pub(super) fn counts_what_it_could_not_deliver_as_lost<R: Remote>(test: &str) {
    let rig = R::proxied(test);
    let setup = Setup::new(&rig.table()).text("shutdown.grace", "1s").without_state();
    let daemon = setup.start();
    let before = Load { events: 30, ..Load::default() }.send(&daemon.ingress).all_accepted();
    daemon.wait_until_empty();
    rig.proxy().refuse();
    Load { events: 50, ..Load::default() }.send(&daemon.ingress).all_accepted();
    let stopped = daemon.stop();
    assert_eq!(stopped.code, Some(1), "{}", stopped.last);
    let counts = ["accepted", "published", "lost", "held"].map(|name| stopped.count(name));
    assert_eq!(counts, [80, 30, 50, 0]);
    rig.proxy().heal();
    let delivered = rig.read(30);
    assert_eq!(Oracle { sent: &before, delivered: &delivered, dead: &[], out_of_order: 0 }.judge(), 0);
    assert_eq!(delivered.len(), 30);
}

pub(super) fn delivers_through_a_slow_broker_before_it_ends<R: Remote>(test: &str) {
    let rig = R::proxied(test);
    let setup = Setup::new(&rig.table()).raw("publish.max_in_flight", "20");
    let daemon = setup.start();
    let before = Load { events: 20, ..Load::default() }.send(&daemon.ingress).all_accepted();
    daemon.wait_until_empty();
    rig.proxy().delay(Duration::from_millis(100));
    let sent = before.and(Load { events: 400, ..Load::default() }.send(&daemon.ingress).all_accepted());
    let status = daemon.status();
    assert!(status.count("held") > 0, "the proxy slows nothing: {}", status.0["accounting"]);
    let stopped = daemon.stop();
    assert_eq!(stopped.code, Some(0), "{}", stopped.last);
    assert_eq!((stopped.count("published"), stopped.count("lost"), stopped.count("held")), (420, 0, 0));
    rig.proxy().heal();
    let delivered = rig.read(420);
    let repeats = Oracle { sent: &sent, delivered: &delivered, dead: &[], out_of_order: 0 }.judge();
    assert_eq!(repeats, 0, "slow is not lost");
}
