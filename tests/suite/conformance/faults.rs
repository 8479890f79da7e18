//! The broker itself is killed, or hangs.

use std::thread;
use std::time::{Duration, Instant};

use super::rig::{Remote, judge};
use crate::support::{LIMIT, Load, Setup, heavy, long};

const WINDOW: usize = 500;

pub(super) fn loses_nothing_when_the_broker_is_killed_under_load<R: Remote>(test: &str) {
    let _one = heavy();
    let kills = if long() { 20 } else { 2 };
    let rig = R::private(test);
    let setup = Setup::new(&rig.table()).raw("publish.max_in_flight", WINDOW.to_string());
    let daemon = setup.start();
    let load = Load { events: 500_000, keys: 4, rate: 400, again: true, ..Load::default() };
    let running = load.start(&daemon.ingress);
    for _ in 0..kills {
        // Long enough for a quorum queue to have its leader.
        let published = daemon.status().count("published");
        daemon.wait_until("events flow", LIMIT, |status| status.count("published") > published + 800);
        rig.broker().kill();
        daemon.wait_until("events gather", LIMIT, |status| status.number("/buffer/events") > 1_000);
        let sent = running.sent();
        rig.broker().up();
        let up = Instant::now();
        daemon.wait_until("the broker is back", Duration::from_secs(20), |status| {
            status.text("/broker/state") == "connected" && status.count("published") > published + 900
        });
        assert!(running.sent() > sent, "the sender was not answered while the broker was away, {:?}", up.elapsed());
    }
    let sent = running.end();
    let status = daemon.wait_until_empty();
    let out_of_order = daemon.metric("publish_out_of_order_total", &[]);
    let repeats = judge(&rig, &setup, &sent, &status, out_of_order);
    assert!(repeats <= kills * WINDOW, "{repeats} repeats after {kills} kills");
    assert_eq!(status.count("dead_lettered"), 0);
    assert_eq!(daemon.stop().code, Some(0));
}

pub(super) fn loses_nothing_when_the_broker_hangs<R: Remote>(test: &str) {
    let _one = heavy();
    let hang = Duration::from_secs(if long() { 30 } else { 15 });
    let rig = R::private(test);
    let setup = Setup::new(&rig.table()).raw("publish.max_in_flight", WINDOW.to_string());
    let daemon = setup.start();
    let running =
        Load { events: 500_000, keys: 4, rate: 200, again: true, ..Load::default() }.start(&daemon.ingress);
    daemon.wait_until("events flow", LIMIT, |status| status.count("published") > 300);
    rig.broker().pause();
    // The fault itself: the broker stands still for this long.
    thread::sleep(hang);
    rig.broker().resume();
    let published = daemon.status().count("published");
    daemon.wait_until("events flow again", LIMIT, |status| status.count("published") > published + 2_000);
    let sent = running.end().all_accepted();
    let slowest = sent.0.iter().map(|note| note.took).max().unwrap_or_default();
    assert!(slowest < hang / 3, "a sender waited {slowest:?} while the broker hung");
    let status = daemon.wait_until_empty();
    let out_of_order = daemon.metric("publish_out_of_order_total", &[]);
    let repeats = judge(&rig, &setup, &sent, &status, out_of_order);
    // A window of repeats for each session that was given up meanwhile, one per time-out of some seconds.
    assert!(repeats <= 10 * WINDOW, "{repeats} repeats");
    assert_eq!(status.count("dead_lettered"), 0);
}
