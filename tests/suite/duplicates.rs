//! Deduplication: the same source and the same body within the window are one event, whatever else differs.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{
    Bridge, Client, Daemon, LIMIT, Payload, SECRET, Setup, assert_books_balance, request_once, sign, wait_for,
    wait_until,
};

const ACCEPTED: &str = r#"{"status":"accepted"}"#;
const DUPLICATE: &str = r#"{"status":"duplicate"}"#;

fn body(cuid: &str) -> Vec<u8> {
    Payload::new(cuid).body()
}

/// Sends a body, notes it if it was accepted, and says which of both it was.
fn post(bridge: &Bridge, body: &[u8]) -> String {
    let answer = request_once(&bridge.daemon, body, &[]);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/json"));
    if answer.text() == ACCEPTED {
        bridge.accepted(body);
    }
    answer.text()
}

#[test]
fn answers_200_to_a_repeat_and_publishes_it_once() {
    for mode in ["buffered", "journaled", "published"] {
        let bridge = Bridge::start(|setup| setup.text("ack", mode));
        assert_eq!(post(&bridge, &body("a")), ACCEPTED, "{mode}");
        for _ in 0..5 {
            assert_eq!(post(&bridge, &body("a")), DUPLICATE, "{mode}");
        }
        bridge.daemon.wait_until_empty();
        assert_eq!(post(&bridge, &body("a")), DUPLICATE, "{mode}: also when it is delivered");
        let status = bridge.daemon.status();
        assert_eq!((status.count("accepted"), status.count("duplicate")), (1, 6), "{mode}");
        assert_eq!(status.number("/sources/0/duplicate"), 6, "{mode}");
        assert_eq!(status.text("/sources/0/last/outcome"), "duplicate", "{mode}");
        assert_eq!(bridge.daemon.metric("events_duplicate_total", &[("source", "plextrac")]), 6, "{mode}");
        assert_books_balance(&status);
        assert_eq!(bridge.arrived().len(), 1, "{mode}");
        bridge.stop();
    }
}

#[test]
fn treats_a_body_that_differs_in_a_byte_as_another_event() {
    let bridge = Bridge::start(|setup| setup);
    let first = body("a");
    let blank = [&first[..], b" "].concat();
    let mut text = Payload::new("a");
    text.text.push('.');
    for body in [&first, &blank, &text.body(), &body("b")] {
        assert_eq!(post(&bridge, body), ACCEPTED, "{}", body.escape_ascii());
    }
    for body in [&first, &blank, &text.body(), &body("b")] {
        assert_eq!(post(&bridge, body), DUPLICATE, "{}", body.escape_ascii());
    }
    bridge.stop();
}

#[test]
fn forgets_a_body_when_its_window_is_over() {
    const WINDOW: Duration = Duration::from_secs(2);
    let bridge = Bridge::start(|setup| setup.text("deduplication.window", "2s"));
    let began = Instant::now();
    assert_eq!(post(&bridge, &body("a")), ACCEPTED);
    let second = post(&bridge, &body("a"));
    assert!(second == DUPLICATE || began.elapsed() >= WINDOW, "within the window");
    // Sent again and again: a repeat does not extend the window.
    let took =
        wait_for("it is forgotten", LIMIT, || (post(&bridge, &body("a")) == ACCEPTED).then(|| began.elapsed()));
    assert!(took >= WINDOW, "forgotten after {took:?}");
    assert!(took < 5 * WINDOW, "forgotten after {took:?}");
    bridge.stop();
}

#[test]
fn forgets_the_oldest_first_when_there_are_too_many() {
    let bridge = Bridge::start(|setup| setup.raw("deduplication.max_entries", "3"));
    for cuid in ["a", "b", "c", "d"] {
        assert_eq!(post(&bridge, &body(cuid)), ACCEPTED, "{cuid}");
    }
    for cuid in ["b", "c", "d"] {
        assert_eq!(post(&bridge, &body(cuid)), DUPLICATE, "{cuid}");
    }
    assert_eq!(post(&bridge, &body("a")), ACCEPTED, "the oldest was forgotten");
    assert_eq!(post(&bridge, &body("d")), DUPLICATE);
    assert_eq!(post(&bridge, &body("b")), ACCEPTED, "it was the oldest then");
    bridge.stop();
}

#[test]
fn takes_every_repeat_with_a_window_of_zero() {
    for mode in ["buffered", "journaled", "published"] {
        let bridge = Bridge::start(|setup| setup.takes_repeats().text("ack", mode));
        for _ in 0..5 {
            assert_eq!(post(&bridge, &body("a")), ACCEPTED, "{mode}");
        }
        let status = bridge.daemon.wait_until_empty();
        assert_eq!((status.count("accepted"), status.count("duplicate")), (5, 0), "{mode}");
        bridge.stop();
    }
}

#[test]
fn accepts_a_repeat_of_what_was_answered_503() {
    let bridge = Bridge::start_without_broker(|setup| setup.raw("buffer.max_events", "1"));
    assert_eq!(post(&bridge, &body("first")), ACCEPTED);
    for _ in 0..3 {
        assert_eq!(request_once(&bridge.daemon, &body("second"), &[]).status, 503);
    }
    // A known body needs no room.
    assert_eq!(post(&bridge, &body("first")), DUPLICATE);
    bridge.bring_the_broker_back();
    bridge.daemon.wait_until_empty();
    assert_eq!(post(&bridge, &body("second")), ACCEPTED);
    assert_eq!(post(&bridge, &body("second")), DUPLICATE);
    bridge.stop();
}

#[test]
fn does_not_remember_refused_bodies() {
    let bridge = Bridge::start(Setup::strict);
    let good = body("a");
    // Refused for other reasons than its bytes: unsigned, encoded.
    let mut client = bridge.connect();
    assert_eq!(client.send("POST", crate::support::PATH, &[], &good).unwrap().status, 401);
    assert_eq!(request_once(&bridge.daemon, &good, &[("Content-Encoding", "gzip")]).status, 415);
    assert_eq!(post(&bridge, &good), ACCEPTED);
    // And for its bytes: the same each time.
    for _ in 0..2 {
        assert_eq!(request_once(&bridge.daemon, br#"{"cuid":"a","event":1}"#, &[]).status, 422);
        assert_eq!(request_once(&bridge.daemon, br#"{"cuid":"a""#, &[]).status, 400);
        assert_eq!(request_once(&bridge.daemon, b"{}", &[]).text(), r#"{"status":"probe"}"#);
    }
    // A sender without a signature learns nothing of what is known.
    assert_eq!(client.send("POST", crate::support::PATH, &[], &good).unwrap().status, 401);
    bridge.stop();
}

#[test]
fn treats_the_same_body_of_another_source_as_another_event() {
    let second = |setup: Setup| setup.text("sources.second.path", "/second").text("sources.second.secret", SECRET);
    let bridge = Bridge::start(second);
    let body = body("a");
    let signature = sign(SECRET, &body);
    let mut client = bridge.connect();
    let mut at = |path: &str| {
        let answer = client.send("POST", path, &[("X-Authorization-HMAC-256", &signature)], &body).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.text()
    };
    for expected in [ACCEPTED, DUPLICATE] {
        for path in [crate::support::PATH, "/second"] {
            assert_eq!(at(path), expected, "{path}");
        }
    }
    bridge.accepted(&body);
    bridge.accepted(&body);
    bridge.stop();
}

#[test]
fn knows_bodies_of_an_unsigned_source_too() {
    let bridge =
        Bridge::start(|setup| setup.text("sources.plextrac.secret", "").raw("sources.plextrac.unsigned", "true"));
    assert_eq!(post(&bridge, &body("a")), ACCEPTED);
    assert_eq!(post(&bridge, &body("a")), DUPLICATE);
    assert_eq!(post(&bridge, &body("b")), ACCEPTED);
    bridge.stop();
}

#[test]
fn takes_every_repeat_without_a_cuid() {
    let bridge = Bridge::start(|setup| setup);
    for _ in 0..3 {
        assert_eq!(post(&bridge, br#"{"event":"E","text":"no id"}"#), ACCEPTED);
    }
    assert_eq!(post(&bridge, br#"{"event":"E","cuid":"an id"}"#), ACCEPTED);
    assert_eq!(post(&bridge, br#"{"event":"E","cuid":"an id"}"#), DUPLICATE);
    bridge.stop();
}

#[test]
fn makes_one_event_of_equal_requests_at_once() {
    const SENDERS: usize = 8;
    for mode in ["buffered", "journaled", "published"] {
        let bridge = Bridge::start(|setup| setup.text("ack", mode));
        for round in 0..10 {
            let body = body(&format!("round {round}"));
            let signature = sign(SECRET, &body);
            let together = Barrier::new(SENDERS);
            let answers: Vec<String> = thread::scope(|scope| {
                let send = || {
                    let mut client = Client::connect(&bridge.daemon.ingress).unwrap();
                    together.wait();
                    let headers = [("X-Authorization-HMAC-256", signature.as_str())];
                    client.send("POST", crate::support::PATH, &headers, &body).unwrap().text()
                };
                let running: Vec<_> = (0..SENDERS).map(|_| scope.spawn(send)).collect();
                running.into_iter().map(|sender| sender.join().unwrap()).collect()
            });
            let accepted = answers.iter().filter(|answer| *answer == ACCEPTED).count();
            let duplicates = answers.iter().filter(|answer| *answer == DUPLICATE).count();
            assert_eq!((accepted, duplicates), (1, SENDERS - 1), "{mode}, round {round}: {answers:?}");
            bridge.accepted(&body);
        }
        let status = bridge.daemon.wait_until_empty();
        assert_eq!((status.count("accepted"), status.count("duplicate")), (10, 70), "{mode}");
        bridge.stop();
    }
}

#[test]
fn knows_exactly_the_last_hundred_when_it_may_know_no_more() {
    let bridge = Bridge::start(|setup| setup.raw("deduplication.max_entries", "100"));
    for number in 0..500 {
        assert_eq!(post(&bridge, &body(&format!("cuid {number}"))), ACCEPTED);
    }
    for number in 400..500 {
        assert_eq!(
            post(&bridge, &body(&format!("cuid {number}"))),
            DUPLICATE,
            "{number} is one of the last hundred"
        );
    }
    assert_eq!(post(&bridge, &body("cuid 399")), ACCEPTED, "it is none of the last hundred");
    wait_until("all is delivered", LIMIT, || bridge.daemon.status().count("held") == 0);
    bridge.stop();
}

/// Only `journaled` recalls; there a check in the middle would prove nothing.
fn wait_until_recalled(daemon: &Daemon, mode: &str) {
    if mode == "journaled" {
        daemon.wait_for_line("the start has recalled", |line| {
            line["message"].as_str().is_some_and(|text| text.contains("recalled"))
        });
    }
}

#[test]
fn takes_equal_events_without_a_cuid_after_a_restart_too() {
    for mode in ["buffered", "journaled"] {
        // With the broker away a stop writes them to the journal, whatever the mode.
        let setup = Setup::on_missing_files().text("ack", mode).text("sources.plextrac.validation", "lenient");
        let setup = setup.text("shutdown.grace", "100ms").level("debug");
        let body = br#"{"event":"Heartbeat"}"#;
        let daemon = setup.start();
        for _ in 0..3 {
            assert_eq!(request_once(&daemon, body, &[]).text(), ACCEPTED, "{mode}");
        }
        daemon.stop();
        let daemon = setup.start();
        wait_until_recalled(&daemon, mode);
        for _ in 0..3 {
            assert_eq!(request_once(&daemon, body, &[]).text(), ACCEPTED, "{mode}: lost with a 200");
        }
        setup.bring_the_broker_back();
        assert_eq!(daemon.wait_until_empty().count("published"), 6, "{mode}");
        assert_eq!(setup.delivered().len(), 6, "{mode}");
    }
}

#[test]
fn recalls_after_a_restart_what_was_journaled_and_nothing_that_another_mode_wrote_at_its_stop() {
    for (mode, again) in [("buffered", ACCEPTED), ("journaled", DUPLICATE)] {
        let setup = Setup::on_missing_files().text("ack", mode).text("shutdown.grace", "100ms").level("debug");
        let daemon = setup.start();
        assert_eq!(request_once(&daemon, &body("a"), &[]).text(), ACCEPTED, "{mode}");
        daemon.stop();
        let daemon = setup.start();
        wait_until_recalled(&daemon, mode);
        assert_eq!(request_once(&daemon, &body("a"), &[]).text(), again, "{mode}");
        setup.bring_the_broker_back();
        daemon.wait_until_empty();
    }
}
