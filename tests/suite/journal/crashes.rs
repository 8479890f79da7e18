//! A daemon that is killed, at random moments and at named points of an event's path.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::support::{LIMIT, Load, Sent, Setup, assert_books_balance, heavy, long, random, wait_until};

/// Unconfirmed messages at most: each of them may be sent again after a crash.
const WINDOW: usize = 50;

/// The number of events that may be settled at this load in the 100 ms that the watermark waits at most, and as much
/// again for a busy disk.
const UNMARKED: usize = 200;

/// The time limit of a start, which reads one segment, however much the journal holds.
const START: Duration = Duration::from_secs(1);

fn journaled(setup: Setup) -> Setup {
    setup.text("ack", "journaled").text("publish.timeout", "60s").raw("publish.max_in_flight", WINDOW.to_string())
}

/// Checks that after the crashes everything is delivered, and fresh events too; returns the number of repeats.
fn delivers_all(setup: &Setup, sent: Sent) -> usize {
    let daemon = setup.start();
    daemon.wait_until_empty();
    let fresh = Load { events: 20, ..Load::default() }.send(&daemon.ingress).all_accepted();
    let status = daemon.wait_until_empty();
    assert_books_balance(&status);
    assert_eq!((status.count("lost"), status.count("dead_lettered")), (0, 0), "{}", status.0["accounting"]);
    let repeats = setup.judge(&sent.and(fresh));
    let stopped = daemon.stop();
    assert_eq!(stopped.code, Some(0), "{}", stopped.last);
    repeats
}

#[test]
fn loses_nothing_when_it_is_killed_at_random_moments() {
    let _one = heavy();
    let rounds = if long() { 50 } else { 5 };
    let mut random = random();
    let setup = journaled(Setup::on_files());
    let mut sent = Sent::default();
    let mut starts = Vec::new();
    for _ in 0..rounds {
        let began = Instant::now();
        let daemon = setup.start();
        wait_until("it is ready", LIMIT, || daemon.get("/readyz").status == 200);
        starts.push(began.elapsed());
        let load = Load { events: 1_000_000, connections: 8, keys: 16, rate: 1_000, ..Load::default() };
        let running = load.start(&daemon.ingress);
        let moment = random.u64(20..800);
        wait_until("events flow", LIMIT, || running.sent() >= moment);
        daemon.kill();
        sent = sent.and(running.end());
    }
    assert!(sent.accepted() > 20 * rounds as u64, "{} accepted", sent.accepted());
    let repeats = delivers_all(&setup, sent);
    assert!(repeats <= rounds * (WINDOW + UNMARKED), "{repeats} repeats after {rounds} crashes");
    // On a busy machine single starts may take longer.
    assert!(starts.iter().min() < Some(&START), "the starts took {starts:?}");
    assert!(!long() || starts.iter().max() < Some(&START), "the starts took {starts:?}");
}

#[test]
fn loses_no_more_than_the_buffer_held_when_it_is_killed_in_buffered_mode() {
    const HELD: usize = 50;
    let _one = heavy();
    let setup = Setup::on_files().raw("buffer.max_events", HELD.to_string());
    let mut sent = Sent::default();
    for round in 1..=3 {
        let daemon = setup.start();
        let load = Load { events: 1_000_000, connections: 8, keys: 16, again: true, ..Load::default() };
        let running = load.start(&daemon.ingress);
        wait_until("events flow", LIMIT, || running.sent() >= 500);
        daemon.kill();
        sent = sent.and(running.end());
        let delivered: HashSet<String> = setup.delivered().into_iter().map(|message| message.id).collect();
        let lost = sent.0.iter().filter(|note| note.accepted() && !delivered.contains(&note.id)).count();
        assert!(lost <= round * HELD, "{lost} of {} accepted are lost after {round} crashes", sent.accepted());
        assert!(delivered.iter().all(|id| sent.0.iter().any(|note| note.id == *id)), "an event nobody sent");
    }
    let daemon = setup.start();
    assert_eq!(daemon.status().count("recovered"), 0, "a crash leaves nothing in the journal in this mode");
    assert_eq!(daemon.stop().code, Some(0));
}

/// Whether the broker is reachable when the daemon is killed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Broker {
    There,
    Away,
}

/// Under load the daemon ends at this pass of a failpoint; started again without it, it has lost nothing.
fn dies_at(point: &str, passes: &[u32], broker: Broker) {
    for pass in passes {
        let setup = if broker == Broker::There { Setup::on_files() } else { Setup::on_missing_files() };
        let setup = journaled(setup).failpoints(&format!("{point}=kill@{pass}"));
        // 8 KB each: a segment is full after a good hundred.
        let load =
            Load { events: 1_000_000, connections: 32, keys: 64, text: "x".repeat(8_000), ..Load::default() };
        let mut sent = Sent::default();
        // Some points are passed at a start already.
        let died = setup.try_start().map_or_else(
            |stopped| stopped,
            |daemon| {
                let running = load.start(&daemon.ingress);
                let stopped = daemon.wait();
                sent = running.end();
                stopped
            },
        );
        assert_eq!(died.code, None, "{point}, pass {pass}: it was to die by a signal:\n{}", died.log);
        if broker == Broker::Away {
            setup.bring_the_broker_back();
        }
        let setup = setup.without_failpoints();
        delivers_all(&setup, sent);
        assert!(setup.segments().iter().map(|(_, size)| size).sum::<u64>() <= 8 << 20, "{:?}", setup.segments());
    }
}

#[test]
fn loses_nothing_when_it_dies_before_a_write() {
    dies_at("journal.write", &[1, 30], Broker::There);
}

#[test]
fn loses_nothing_when_it_dies_between_write_and_sync() {
    dies_at("journal.written", &[1, 30], Broker::There);
}

#[test]
fn loses_nothing_when_it_dies_before_a_sync() {
    dies_at("journal.sync", &[2, 30], Broker::Away);
}

#[test]
fn loses_nothing_when_it_dies_behind_a_sync() {
    dies_at("journal.synced", &[2, 30], Broker::Away);
}

#[test]
fn loses_nothing_when_it_dies_as_it_makes_a_segment() {
    dies_at("journal.create", &[1, 2, 4], Broker::Away);
}

#[test]
fn loses_nothing_when_it_dies_as_it_uses_a_segment_again() {
    dies_at("journal.recycle", &[1, 3], Broker::There);
}

#[test]
fn loses_nothing_when_it_dies_between_confirm_and_settling() {
    dies_at("publish.settled", &[1, 20], Broker::There);
}

#[test]
fn loses_nothing_when_it_dies_between_the_release_of_segments_and_the_watermark() {
    dies_at("journal.release", &[1, 3], Broker::There);
}

#[test]
fn survives_a_crash_within_a_crash() {
    let mut setup = journaled(Setup::on_missing_files());
    let mut sent = Sent::default();
    // Each start finds what the one before left, and ends early.
    for pass in 1..=4 {
        setup = setup.failpoints(&format!("journal.written=kill@{}", pass * 5));
        match setup.try_start() {
            Ok(daemon) => {
                let running = Load { events: 100_000, ..Load::default() }.start(&daemon.ingress);
                assert_eq!(daemon.wait().code, None, "it was to die by a signal");
                sent = sent.and(running.end());
            }
            Err(stopped) => assert_eq!(stopped.code, None, "{}", stopped.log),
        }
    }
    setup.bring_the_broker_back();
    delivers_all(&setup.without_failpoints(), sent);
}
