//! The way to the broker is away, full, cut or stalled; the broker itself is well.

use std::time::Duration;

use super::rig::{Remote, judge};
use crate::support::{Daemon, LIMIT, Load, Setup, wait_until};

/// A refusal must not wait for anything: this is scheduling on a busy machine, not work.
const AT_ONCE: Duration = Duration::from_secs(2);

/// An operator who looks must not be told that all is well for longer than this.
const SEEN: Duration = Duration::from_secs(20);

fn out_of_order(daemon: &Daemon) -> u64 {
    daemon.metric("publish_out_of_order_total", &[])
}

pub(super) fn accepts_while_the_broker_is_down_at_start<R: Remote>(test: &str) {
    let rig = R::proxied(test);
    rig.proxy().refuse();
    let setup = Setup::new(&rig.table());
    let daemon = setup.start();
    let sent = Load { events: 300, ..Load::default() }.send(&daemon.ingress).all_accepted();
    let status = daemon.wait_until("the reason is shown", LIMIT, |status| {
        !status.text("/broker/last_error/text").is_empty() && status.text("/broker/state") == "connecting"
    });
    assert_eq!(status.text("/broker/last_error/kind"), "connect");
    assert!(status.text("/broker/location").contains("127.0.0.1"), "{}", status.0["broker"]);
    assert_eq!((status.count("held"), status.count("published")), (300, 0));
    assert_eq!((daemon.get("/readyz").status, daemon.get("/livez").status), (200, 200));
    assert_eq!(daemon.metric("broker_connected", &[]), 0);
    rig.proxy().heal();
    let status = daemon.wait_until_empty();
    assert_eq!(status.text("/broker/state"), "connected");
    assert_eq!(daemon.metric("broker_connected", &[]), 1);
    assert_eq!(judge(&rig, &setup, &sent, &status, 0), 0, "repeats although nothing was sent before");
}

pub(super) fn shows_that_the_broker_went_away<R: Remote>(test: &str) {
    let rig = R::proxied(test);
    let setup = Setup::new(&rig.table());
    let daemon = setup.start();
    let before = Load { events: 50, ..Load::default() }.send(&daemon.ingress).all_accepted();
    daemon.wait_until_empty();
    let errors = daemon.metric("broker_errors_total", &[]);
    rig.proxy().refuse();
    let during = Load { events: 50, ..Load::default() }.send(&daemon.ingress).all_accepted();
    let status = daemon.wait_until("the reason is shown", SEEN, |status| {
        !status.text("/broker/last_error/text").is_empty() && status.text("/broker/state") != "connected"
    });
    assert_eq!(status.count("held"), 50);
    assert_eq!(daemon.metric("broker_connected", &[]), 0);
    assert!(daemon.metric("broker_errors_total", &[]) > errors, "no error is counted");
    rig.proxy().heal();
    let status = daemon.wait_until_empty();
    assert_eq!(status.text("/broker/state"), "connected");
    judge(&rig, &setup, &before.and(during), &status, out_of_order(&daemon));
}

pub(super) fn answers_503_at_once_when_the_buffer_is_full<R: Remote>(test: &str) {
    let rig = R::proxied(test);
    rig.proxy().refuse();
    let setup = Setup::new(&rig.table()).raw("buffer.max_events", "100");
    let daemon = setup.start();
    let sent = Load { events: 400, keys: 4, ..Load::default() }.send(&daemon.ingress);
    assert_eq!((sent.accepted(), sent.refused(503)), (100, 300));
    for note in sent.0.iter().filter(|note| !note.accepted()) {
        let seconds: Option<u64> = note.retry_after.as_ref().and_then(|text| text.parse().ok());
        assert!(seconds.is_some_and(|seconds| seconds > 0), "Retry-After {:?}", note.retry_after);
        assert!(note.took < AT_ONCE, "a refusal took {:?}", note.took);
    }
    let status = daemon.status();
    assert_eq!((status.count("accepted"), status.count("rejected"), status.count("held")), (100, 300, 100));
    assert_eq!(status.number("/buffer/events"), 100);
    assert_eq!(daemon.metric("events_rejected_total", &[("reason", "buffer_full")]), 300);
    assert_eq!(daemon.get("/readyz").status, 503);
    rig.proxy().heal();
    let status = daemon.wait_until_empty();
    wait_until("ready again", LIMIT, || daemon.get("/readyz").status == 200);
    assert_eq!(judge(&rig, &setup, &sent, &status, 0), 0);
}

pub(super) fn bounds_the_bytes_of_the_buffer<R: Remote>(test: &str) {
    let rig = R::proxied(test);
    rig.proxy().refuse();
    let setup = Setup::new(&rig.table()).text("buffer.max_bytes", "4MiB");
    let daemon = setup.start();
    let before = daemon.resident();
    let load = Load { events: 100, text: "x".repeat(200_000), ..Load::default() };
    let sent = load.send(&daemon.ingress);
    // 4 MiB hold twenty bodies of 200 kB; while others are being read, less may fit.
    assert!((1..=20).contains(&sent.accepted()), "{} accepted", sent.accepted());
    assert_eq!(sent.accepted() + sent.refused(503) as u64, 100);
    let status = daemon.status();
    assert!(status.number("/buffer/bytes") <= 4 << 20, "{}", status.0["buffer"]);
    let grown = daemon.resident().saturating_sub(before);
    assert!(grown < 64 << 20, "{} MiB more than before", grown >> 20);
    rig.proxy().heal();
    let status = daemon.wait_until_empty();
    judge(&rig, &setup, &sent, &status, 0);
}

pub(super) fn keeps_events_through_cut_connections<R: Remote>(test: &str) {
    // Few keys and late answers: at every cut several events of one key are in flight.
    let load = Load { events: 60_000, keys: 4, rate: 1_000, again: true, ..Load::default() };
    through_cuts::<R>(test, "buffered", 5, &load);
}

/// The connection is cut this often under load.
pub(super) fn through_cuts<R: Remote>(test: &str, mode: &str, cuts: usize, load: &Load) {
    const WINDOW: usize = 200;
    let rig = R::proxied(test);
    let setup = Setup::new(&rig.table()).text("ack", mode).raw("publish.max_in_flight", WINDOW.to_string());
    let daemon = setup.start();
    rig.proxy().delay(Duration::from_millis(50));
    // Another test may have had this proxy before.
    let before = rig.proxy().cuts();
    let running = load.start(&daemon.ingress);
    for cut in 1..=cuts {
        let published = daemon.status().count("published");
        daemon.wait_until("events flow, many at once", LIMIT, |status| {
            status.count("published") > published + 100 && status.number("/buffer/in_flight_events") > 20
        });
        rig.proxy().cut_after(fastrand::usize(20..500));
        daemon.wait_until("the connection is cut", LIMIT, |_| rig.proxy().cuts() == before + cut);
    }
    rig.proxy().heal();
    let published = daemon.status().count("published");
    daemon.wait_until("events flow again", LIMIT, |status| {
        status.count("published") > published + 100 && status.text("/broker/state") == "connected"
    });
    let sent = running.end();
    let sent = if mode == "published" { sent.unsure_of_503() } else { sent };
    let status = daemon.wait_until_empty();
    let repeats = judge(&rig, &setup, &sent, &status, out_of_order(&daemon));
    assert!(repeats <= cuts * WINDOW, "{repeats} repeats after {cuts} cuts");
    assert_eq!(daemon.stop().code, Some(0));
}

/// The network swallows everything for a while, without an end of the connection.
pub(super) fn keeps_events_through_a_stalled_connection<R: Remote>(test: &str) {
    let rig = R::proxied(test);
    let setup = Setup::new(&rig.table());
    let daemon = setup.start();
    let running =
        Load { events: 60_000, keys: 12, rate: 300, again: true, ..Load::default() }.start(&daemon.ingress);
    daemon.wait_until("events flow", LIMIT, |status| status.count("published") > 100);
    rig.proxy().stall();
    daemon.wait_until("events gather", LIMIT, |status| status.number("/buffer/events") > 1_000);
    rig.proxy().heal();
    let status = daemon.status();
    daemon.wait_until("events flow again", LIMIT, |now| now.count("published") > status.count("published") + 1_000);
    let sent = running.end();
    let status = daemon.wait_until_empty();
    let repeats = judge(&rig, &setup, &sent, &status, out_of_order(&daemon));
    // A session lost once or twice in that time, each with a full window.
    assert!(repeats <= 2_000, "{repeats} repeats");
}
