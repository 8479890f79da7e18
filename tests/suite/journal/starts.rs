//! The journal at a start: delivered first, in order, whatever the mode; ids are known, and clocks do not matter.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{Daemon, LIMIT, Load, Sent, Setup, request_once, wait_until};

/// Sends this many events of one series: keys and numbers continue where the previous ones ended.
fn part(series: &str, first: u64, events: u64) -> Load {
    Load { events, keys: 4, series: Some((series.to_owned(), first)), ..Load::default() }
}

#[test]
fn keeps_the_order_of_every_key_across_restarts() {
    let setup = Setup::on_missing_files()
        .text("ack", "journaled")
        .text("publish.timeout", "60s")
        .text("shutdown.grace", "100ms");
    let mut sent = Sent::default();
    for start in 0..4 {
        let daemon = setup.start();
        let status = daemon.status();
        let counts = [status.count("recovered"), status.count("held"), status.number("/journal/events")];
        assert_eq!(counts, [start * 200; 3], "known as soon as it listens");
        sent = sent.and(part("across", start * 200, 200).send(&daemon.ingress).all_accepted());
        // A crash and a stop in turn.
        if start % 2 == 0 {
            daemon.kill();
        } else {
            let stopped = daemon.stop();
            assert_eq!((stopped.code, stopped.count("held")), (Some(0), (start + 1) * 200), "{}", stopped.last);
        }
    }
    setup.bring_the_broker_back();
    let daemon = setup.start();
    sent = sent.and(part("across", 800, 200).send(&daemon.ingress).all_accepted());
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("recovered"), status.count("accepted"), status.count("published")), (800, 200, 1_000));
    assert_eq!(daemon.metric("events_recovered_total", &[]), 800);
    assert_eq!(setup.judge(&sent), 0, "repeats although nothing was sent before");
    assert_eq!(daemon.stop().code, Some(0));
}

/// Checks that the journal of another mode is delivered before anything new.
fn delivers_what_it_finds_first(mode: &str) {
    let setup = Setup::on_missing_files().text("ack", "journaled").text("publish.timeout", "60s");
    let daemon = setup.start();
    let old = part(mode, 0, 300).send(&daemon.ingress).all_accepted();
    daemon.kill();
    let setup = setup.text("ack", mode);
    let daemon = setup.start();
    assert_eq!(daemon.status().count("recovered"), 300);
    let running = part(mode, 300, 100).start(&daemon.ingress);
    // In `published` mode each of the four connections waits for its first answer.
    daemon.wait_until("new events are held too", LIMIT, |status| status.count("accepted") >= 4);
    setup.bring_the_broker_back();
    let new = running.join().all_accepted();
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("published"), status.number("/journal/events")), (400, 0), "{}", status.0["journal"]);
    assert_eq!(setup.judge(&old.and(new)), 0, "repeats although nothing was sent before");
    assert_eq!(daemon.stop().code, Some(0));
    let daemon = setup.start();
    assert_eq!(daemon.status().count("recovered"), 0, "it was settled in the journal too");
}

#[test]
fn delivers_a_journal_first_in_buffered_mode() {
    delivers_what_it_finds_first("buffered");
}

#[test]
fn delivers_a_journal_first_in_published_mode() {
    delivers_what_it_finds_first("published");
}

/// Sends accepted events again, one after the other, until one is known; the ids are read after the start.
fn knows_what_came_before(daemon: &Daemon, sent: &Sent) {
    // The last hundred are kept for when they must be known.
    let (first, last) = sent.0.split_at(sent.0.len() - 100);
    let mut repeated = first.iter();
    wait_until("a repeat is known", LIMIT, || {
        let note = repeated.next().expect("one of the first is known before all of them were repeated");
        let answer = request_once(daemon, &note.body, &[]);
        assert_eq!(answer.status, 200);
        answer.text() == r#"{"status":"duplicate"}"#
    });
    for note in last {
        assert_eq!(request_once(daemon, &note.body, &[]).text(), r#"{"status":"duplicate"}"#, "{}", note.cuid);
    }
}

#[test]
fn knows_after_a_crash_what_it_had_not_delivered() {
    let setup = Setup::on_missing_files().text("ack", "journaled").text("publish.timeout", "60s");
    let daemon = setup.start();
    let sent = Load { events: 500, ..Load::default() }.send(&daemon.ingress).all_accepted();
    daemon.kill();
    let daemon = setup.start();
    knows_what_came_before(&daemon, &sent);
    setup.bring_the_broker_back();
    daemon.wait_until_empty();
    setup.judge(&sent);
}

#[test]
fn knows_after_a_restart_what_it_had_delivered() {
    let setup = Setup::on_files().text("ack", "journaled").text("publish.timeout", "60s");
    let daemon = setup.start();
    let sent = Load { events: 500, ..Load::default() }.send(&daemon.ingress).all_accepted();
    daemon.wait_until_empty();
    assert_eq!(daemon.stop().code, Some(0));
    let daemon = setup.start();
    knows_what_came_before(&daemon, &sent);
    daemon.wait_until_empty();
    setup.judge(&sent);
}

#[test]
fn knows_a_body_before_it_looks_at_its_json() {
    // An event accepted by a lenient source is a duplicate to the strict one that replaces it, and not an invalid
    // payload.
    let setup = Setup::on_missing_files().text("ack", "journaled").text("publish.timeout", "60s");
    let daemon = setup.start();
    let body = |number: u64| format!(r#"{{"event":"E","cuid":"lenient-{number}"}}"#).into_bytes();
    for number in 0..50 {
        assert_eq!(request_once(&daemon, &body(number), &[]).status, 200);
    }
    daemon.kill();
    let daemon = setup.strict().start();
    assert_eq!(request_once(&daemon, &body(50), &[]).status, 422, "one that is not known");
    wait_until("a repeat is known", LIMIT, || {
        let answer = request_once(&daemon, &body(0), &[]);
        assert!(matches!(answer.status, 200 | 422), "{}", answer.text());
        answer.text() == r#"{"status":"duplicate"}"#
    });
}

/// The library that shows a process another clock: any of Debian's directories.
fn faketime() -> PathBuf {
    let entries = fs::read_dir("/usr/lib").expect("Linux has it").flatten();
    let found = entries.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.exists());
    found.expect("libfaketimeMT.so.1 in /usr/lib/*/faketime: `make setup` installs it")
}

fn step(clock: &Path, offset: &str) {
    // Whole at once: a half-written file would be half a clock.
    let new = clock.with_extension("new");
    fs::write(&new, format!("{offset}\n")).unwrap();
    fs::rename(new, clock).unwrap();
}

#[test]
fn changes_nothing_but_timestamps_when_the_clock_is_stepped_by_two_hours() {
    let setup = Setup::on_missing_files().text("ack", "journaled").text("publish.timeout", "60s");
    let clock = setup.directory().join("clock");
    step(&clock, "+0");
    let setup = setup
        .variable("LD_PRELOAD", &faketime().display().to_string())
        .variable("FAKETIME_TIMESTAMP_FILE", &clock.display().to_string())
        .variable("FAKETIME_NO_CACHE", "1")
        .variable("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .variable("DONT_FAKE_MONOTONIC", "1");
    let now = |daemon: &Daemon| daemon.status().0["time_seconds"].as_f64().expect("/status has the time");
    let daemon = setup.start();
    let first = part("clock", 0, 50).send(&daemon.ingress).all_accepted();
    let began = now(&daemon);
    step(&clock, "+7200");
    wait_until("the clock is stepped", LIMIT, || now(&daemon) > began + 7_000.0);
    let note = &first.0[0];
    let repeat = |daemon: &Daemon| request_once(daemon, &note.body, &[]).text();
    assert_eq!(repeat(&daemon), r#"{"status":"duplicate"}"#, "ten minutes have not passed");
    let second = part("clock", 50, 50).send(&daemon.ingress).all_accepted();
    assert_eq!((daemon.get("/livez").status, daemon.get("/readyz").status), (200, 200));
    step(&clock, "-7200");
    wait_until("the clock is stepped", LIMIT, || now(&daemon) < began - 7_000.0);
    assert_eq!(repeat(&daemon), r#"{"status":"duplicate"}"#, "ten minutes have not passed");
    let third = part("clock", 100, 50).send(&daemon.ingress).all_accepted();
    assert_eq!((daemon.get("/livez").status, daemon.get("/readyz").status), (200, 200));
    daemon.kill();
    // An event received four hours ahead is delivered in its place.
    setup.bring_the_broker_back();
    let daemon = setup.start();
    let fourth = part("clock", 150, 50).send(&daemon.ingress).all_accepted();
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("recovered"), status.count("lost")), (150, 0));
    let sent: Sent = [first.clone(), second, third, fourth].into_iter().fold(Sent::default(), Sent::and);
    assert_eq!(setup.judge(&sent), 0, "repeats");
    assert_eq!(daemon.stop().code, Some(0));
}
