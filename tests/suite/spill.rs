//! The stop: unsettled events are written to the journal, in any mode, and the next start delivers them first.

use std::io::Write as _;
use std::time::{Duration, Instant};

use crate::support::{
    LIMIT, Load, PATH, Payload, SECRET, Sent, Setup, plain, request_once, rest, sign, wait_until,
};

fn load(events: u64) -> Load {
    Load { events, keys: 4, ..Load::default() }
}

#[test]
fn keeps_what_is_not_settled_for_the_next_start() {
    for mode in ["buffered", "journaled"] {
        let setup = Setup::on_missing_files()
            .text("ack", mode)
            .text("publish.timeout", "60s")
            .text("shutdown.grace", "300ms");
        let daemon = setup.start();
        let sent = load(200).send(&daemon.ingress).all_accepted();
        let stopped = daemon.stop();
        assert_eq!(stopped.code, Some(0), "{mode}: {}", stopped.last);
        let counts = ["accepted", "published", "lost", "held"].map(|name| stopped.count(name));
        assert_eq!(counts, [200, 0, 0, 200], "{mode}");
        stopped.assert_balanced();
        setup.bring_the_broker_back();
        let daemon = setup.start();
        let status = daemon.wait_until_empty();
        assert_eq!((status.count("recovered"), status.count("published")), (200, 200), "{mode}");
        assert_eq!(setup.judge(&sent), 0, "{mode}: repeats although nothing was sent before");
        assert_eq!(daemon.stop().code, Some(0), "{mode}");
        let daemon = setup.start();
        assert_eq!(daemon.status().count("recovered"), 0, "{mode}: settled is settled");
    }
}

#[test]
fn is_unready_from_the_start_if_what_a_stop_left_fills_the_buffer() {
    let setup = Setup::on_missing_files().raw("buffer.max_events", "50").text("shutdown.grace", "300ms");
    let daemon = setup.start();
    load(50).send(&daemon.ingress).all_accepted();
    assert_eq!(daemon.stop().code, Some(0));
    let daemon = setup.start();
    let readiness = || daemon.get("/readyz").text();
    // No request has met the full buffer.
    wait_until("what was left is read back", LIMIT, || readiness().contains("buffer full: 50 of 50 events"));
    setup.bring_the_broker_back();
    daemon.wait_until_empty();
    assert_eq!(readiness(), "ready\n");
}

#[test]
fn loses_what_is_not_settled_without_a_state_directory_and_says_so() {
    let setup = Setup::on_missing_files().without_state().text("shutdown.grace", "300ms");
    let daemon = setup.start();
    let sent = load(200).send(&daemon.ingress).all_accepted();
    let stopped = daemon.stop();
    assert_eq!(stopped.code, Some(1), "{}", stopped.last);
    assert_eq!(["lost", "held"].map(|name| stopped.count(name)), [200, 0]);
    assert_eq!(stopped.last["level"], "ERROR", "shown at every level");
    let lost =
        stopped.log.lines().find(|line| line.contains("lost at the end")).expect("a line about what is lost");
    assert!(lost.contains("ERROR") && lost.contains(r#""more":100"#), "{lost}");
    assert_eq!(sent.0.iter().filter(|note| lost.contains(&note.id)).count(), 100, "{lost}");
    setup.bring_the_broker_back();
    let daemon = setup.start();
    assert_eq!(daemon.status().count("recovered"), 0);
    daemon.wait_until_empty();
    assert!(setup.delivered().is_empty());
}

#[test]
fn keeps_what_was_accepted_in_the_middle_of_a_load() {
    for mode in ["buffered", "journaled", "published"] {
        let setup = Setup::on_missing_files()
            .text("ack", mode)
            .text("publish.timeout", "60s")
            .text("shutdown.grace", "500ms");
        let daemon = setup.start();
        let running = Load { connections: 8, keys: 16, ..load(100_000) }.start(&daemon.ingress);
        let enough = if mode == "published" { 8 } else { 500 };
        daemon.wait_until("events are held", LIMIT, |status| status.count("held") >= enough);
        let stopped = daemon.stop();
        let sent = running.end().unsure_of_503();
        assert_eq!((stopped.code, stopped.count("lost")), (Some(0), 0), "{mode}: {}", stopped.last);
        let held = stopped.count("held");
        assert_eq!(stopped.count("accepted"), held + stopped.count("withdrawn"), "{mode}: {}", stopped.last);
        setup.bring_the_broker_back();
        let daemon = setup.start();
        let status = daemon.wait_until_empty();
        assert_eq!((status.count("recovered"), status.count("published")), (held, held), "{mode}");
        assert_eq!(setup.judge(&sent), 0, "{mode}: repeats although nothing was sent before");
        assert_eq!(daemon.stop().code, Some(0), "{mode}");
    }
}

#[test]
fn marks_what_is_delivered_during_the_stop() {
    for mode in ["buffered", "journaled"] {
        let setup = Setup::on_files().text("ack", mode).text("publish.timeout", "60s");
        let daemon = setup.start();
        let running = load(100_000).start(&daemon.ingress);
        daemon.wait_until("events flow", LIMIT, |status| status.count("accepted") >= 500);
        let stopped = daemon.stop();
        let sent = running.end().unsure_of_503();
        assert_eq!((stopped.code, stopped.count("held")), (Some(0), 0), "{mode}: {}", stopped.last);
        let daemon = setup.start();
        let status = daemon.wait_until_empty();
        assert_eq!(status.count("recovered"), 0, "{mode}: what was delivered during the stop");
        assert_eq!(setup.judge(&sent), 0, "{mode}: repeats");
    }
}

#[test]
fn delivers_what_the_broker_takes_within_the_grace() {
    let setup = Setup::on_missing_files().text("shutdown.grace", "60s");
    let daemon = setup.start();
    let sent = load(300).send(&daemon.ingress).all_accepted();
    daemon.terminate();
    daemon.wait_until("all is in the journal", LIMIT, |status| status.number("/journal/events") == 300);
    setup.bring_the_broker_back();
    let stopped = daemon.wait();
    assert_eq!((stopped.code, stopped.count("published"), stopped.count("held")), (Some(0), 300, 0));
    assert_eq!(setup.judge(&sent), 0);
    let daemon = setup.start();
    assert_eq!(daemon.status().count("recovered"), 0, "it was delivered");
}

#[test]
fn keeps_everything_when_a_second_signal_hurries_it() {
    for mode in ["buffered", "journaled"] {
        // Neither of them is waited for.
        let setup = Setup::on_missing_files().text("ack", mode).text("publish.timeout", "60s");
        let setup = setup.text("shutdown.delay", "300s").text("shutdown.grace", "300s");
        let daemon = setup.start();
        let sent = load(300).send(&daemon.ingress).all_accepted();
        let began = Instant::now();
        daemon.terminate();
        wait_until("it is stopping", LIMIT, || daemon.get("/readyz").status == 503);
        daemon.terminate();
        let stopped = daemon.wait();
        assert!(began.elapsed() < Duration::from_mins(1), "{mode}: it was not hurried");
        assert_eq!((stopped.code, stopped.count("held")), (Some(0), 300), "{mode}: {}", stopped.last);
        setup.bring_the_broker_back();
        let daemon = setup.start();
        daemon.wait_until_empty();
        assert_eq!(setup.judge(&sent), 0, "{mode}");
    }
}

#[test]
fn keeps_what_is_accepted_in_the_last_moment_of_a_hurried_stop() {
    let setup = Setup::on_missing_files().raw("ingress.threads", "1").failpoints("ingress.enqueue=2s");
    let daemon = setup.start();
    let running = load(1).start(&daemon.ingress);
    daemon.wait_for_line("the event is about to be accepted", |line| {
        line["message"].to_string().contains("failpoints")
    });
    daemon.terminate();
    wait_until("it is stopping", LIMIT, || daemon.get("/readyz").status == 503);
    daemon.terminate();
    let stopped = daemon.wait();
    let sent = running.join().all_accepted();
    let counts = ["lost", "held"].map(|name| stopped.count(name));
    assert_eq!((stopped.code, counts), (Some(0), [0, 1]), "{}", stopped.last);
    setup.bring_the_broker_back();
    setup.without_failpoints().start().wait_until_empty();
    assert_eq!(sent.accepted(), 1);
}

#[test]
fn answers_503_to_a_body_that_still_arrives_at_the_end_of_a_stop() {
    let setup = Setup::on_files().text("shutdown.grace", "1s");
    let daemon = setup.start();
    let body = Payload::new("cuid-1").body();
    let (signature, length) = (sign(SECRET, &body), body.len());
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: b\r\nX-Authorization-HMAC-256: {signature}\r\nContent-Length: {length}\r\n\r\n"
    );
    let mut sender = plain(&daemon.ingress);
    sender.write_all(&[head.as_bytes(), &body[..length / 2]].concat()).unwrap();
    let stopped = daemon.stop();
    let answer = rest(&mut sender);
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("stopping"), "{answer:?}");
    assert_eq!((stopped.code, stopped.count("rejected")), (Some(0), 1), "{}", stopped.last);
    assert!(stopped.log.contains("draining") && !stopped.log.contains("disconnected"), "{}", stopped.log);
}

#[test]
fn keeps_everything_when_it_is_killed_while_it_stops() {
    let setup = Setup::on_missing_files().text("shutdown.grace", "300s");
    let daemon = setup.start();
    let sent = load(300).send(&daemon.ingress).all_accepted();
    daemon.terminate();
    // Written first; then it continues to try to deliver.
    daemon.wait_until("all is in the journal", LIMIT, |status| status.number("/journal/events") == 300);
    daemon.kill();
    setup.bring_the_broker_back();
    let daemon = setup.start();
    let status = daemon.wait_until_empty();
    assert_eq!(status.count("recovered"), 300);
    assert_eq!(setup.judge(&sent), 0);
}

#[test]
fn keeps_the_order_over_several_stops() {
    let setup = Setup::on_missing_files().text("shutdown.grace", "100ms");
    let mut sent = Sent::default();
    for stop in 0..3 {
        let daemon = setup.start();
        assert_eq!(daemon.status().count("recovered"), stop * 100);
        let series = Some(("stops".to_owned(), stop * 100));
        sent = sent.and(Load { series, ..load(100) }.send(&daemon.ingress).all_accepted());
        let stopped = daemon.stop();
        assert_eq!((stopped.code, stopped.count("held")), (Some(0), (stop + 1) * 100), "{}", stopped.last);
    }
    setup.bring_the_broker_back();
    let daemon = setup.start();
    let status = daemon.wait_until_empty();
    assert_eq!(status.count("published"), 300);
    assert_eq!(setup.judge(&sent), 0);
}

#[test]
fn keeps_the_oldest_and_counts_the_rest_as_lost_when_the_journal_has_no_room() {
    let setup = Setup::on_missing_files().text("journal.max_bytes", "2MiB").text("shutdown.grace", "300ms");
    let daemon = setup.start();
    // 8 MB; one connection, so that the order of the answers is the order of acceptance.
    let load = Load { connections: 1, text: "x".repeat(8_000), ..load(1_000) };
    let sent = load.send(&daemon.ingress).all_accepted();
    let stopped = daemon.stop();
    assert_eq!(stopped.code, Some(1), "something is lost: {}", stopped.last);
    let (held, lost) = (stopped.count("held"), stopped.count("lost"));
    assert_eq!(held + lost, 1_000, "{}", stopped.last);
    stopped.assert_balanced();
    assert!(held > 50, "only {held} are kept in 2 MiB");
    assert!(setup.segments().iter().map(|(_, size)| size).sum::<u64>() <= 2 << 20, "{:?}", setup.segments());
    setup.bring_the_broker_back();
    let daemon = setup.start();
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("recovered"), status.count("published")), (held, held));
    let kept: Vec<String> = setup.delivered().into_iter().map(|message| message.id).collect();
    let oldest = sent.0[..kept.len()].iter().map(|note| note.id.clone());
    assert_eq!(kept, oldest.collect::<Vec<_>>(), "the oldest, in their order");
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn loses_nothing_of_journaled_events_at_a_stop_with_a_full_journal() {
    let setup = Setup::on_missing_files()
        .text("ack", "journaled")
        .text("publish.timeout", "60s")
        .text("journal.max_bytes", "2MiB")
        .text("shutdown.grace", "300ms");
    let daemon = setup.start();
    let sent = Load { text: "x".repeat(8_000), ..load(500) }.send(&daemon.ingress);
    assert!(sent.refused(503) > 0, "the journal is not full");
    let stopped = daemon.stop();
    assert_eq!((stopped.code, stopped.count("lost")), (Some(0), 0), "{}", stopped.last);
    assert_eq!(stopped.count("held"), sent.accepted());
    setup.bring_the_broker_back();
    let daemon = setup.start();
    daemon.wait_until_empty();
    assert_eq!(setup.judge(&sent), 0);
}

#[test]
fn delivers_what_a_stop_wrote_although_a_reload_shrinks_the_buffer_below_what_it_holds() {
    let setup = Setup::on_missing_files().text("shutdown.grace", "100ms").text("ingress.max_body", "256KiB");
    let daemon = setup.start();
    // More than one read from the journal returns.
    let large = |events| Load { text: "x".repeat(200_000), ..load(events) };
    let sent = large(8).send(&daemon.ingress).all_accepted();
    assert_eq!(daemon.stop().count("held"), 8);
    let daemon = setup.start();
    let series = Some(("more".to_owned(), 0));
    let more = Load { series, ..large(60) }.send(&daemon.ingress).all_accepted();
    let setup = setup.text("buffer.max_bytes", "4MiB");
    setup.file();
    assert_eq!(daemon.reload().text("/reload/result"), "success");
    setup.bring_the_broker_back();
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("published"), status.count("lost")), (68, 0));
    assert_eq!(daemon.get("/readyz").status, 200);
    assert_eq!(setup.judge(&sent.and(more)), 0);
    assert_eq!(daemon.stop().code, Some(0));
}

/// A disk that takes three seconds for the sync of what a stop writes.
fn with_a_slow_disk() -> Setup {
    Setup::on_missing_files().text("shutdown.grace", "20s").failpoints("journal.sync=3s@1")
}

#[test]
fn keeps_what_a_slow_disk_has_not_confirmed_when_the_stop_begins() {
    let setup = with_a_slow_disk().text("shutdown.grace", "5s");
    let daemon = setup.start();
    let sent = load(3).send(&daemon.ingress).all_accepted();
    let stopped = daemon.stop();
    assert_eq!(["published", "lost", "held"].map(|name| stopped.count(name)), [0, 0, 3], "{}", stopped.last);
    assert_eq!(stopped.code, Some(0), "{}", stopped.log);
    stopped.assert_balanced();
    setup.bring_the_broker_back();
    let setup = setup.without_failpoints();
    let daemon = setup.start();
    assert_eq!(daemon.wait_until_empty().count("published"), 3);
    assert_eq!(setup.judge(&sent), 0);
}

#[test]
fn keeps_what_the_disk_confirms_shortly_after_the_deadline() {
    let setup = with_a_slow_disk().text("shutdown.grace", "1s");
    let daemon = setup.start();
    load(3).send(&daemon.ingress).all_accepted();
    let stopped = daemon.stop();
    assert_eq!(["lost", "held"].map(|name| stopped.count(name)), [0, 3], "{}", stopped.last);
    assert_eq!(stopped.code, Some(0), "{}", stopped.log);
}

#[test]
fn delivers_once_what_a_slow_disk_is_still_writing() {
    let setup = with_a_slow_disk();
    let daemon = setup.start();
    let sent = load(3).send(&daemon.ingress).all_accepted();
    daemon.terminate();
    wait_until("the stop has begun", LIMIT, || daemon.get("/readyz").status == 503);
    setup.bring_the_broker_back();
    let stopped = daemon.wait();
    assert_eq!(["published", "lost", "held"].map(|name| stopped.count(name)), [3, 0, 0], "{}", stopped.last);
    assert_eq!(stopped.code, Some(0), "{}", stopped.log);
    stopped.assert_balanced();
    let setup = setup.without_failpoints();
    let daemon = setup.start();
    assert_eq!(daemon.status().count("recovered"), 0, "settled is settled");
    assert_eq!(setup.judge(&sent), 0, "published twice");
}

#[test]
fn counts_what_a_disk_that_never_answers_holds_as_lost_and_ends_in_time() {
    let setup = with_a_slow_disk().text("shutdown.grace", "1s").failpoints("journal.sync=hang@1");
    let daemon = setup.start();
    load(3).send(&daemon.ingress).all_accepted();
    let began = Instant::now();
    let stopped = daemon.stop();
    assert!(began.elapsed() < Duration::from_secs(20), "the end waited {:?} for the disk", began.elapsed());
    assert_eq!((stopped.code, stopped.count("lost"), stopped.count("held")), (Some(1), 3, 0), "{}", stopped.last);
    assert!(stopped.log.contains("the disk does not answer"), "{}", stopped.log);
    stopped.assert_balanced();
}

#[test]
fn ends_five_seconds_after_the_grace_although_every_write_hangs() {
    let hanging = "publish.address=error,journal.sync=hang,letters.write=hang@1+";
    let setup = Setup::on_files().text("shutdown.grace", "1s").failpoints(hanging);
    let daemon = setup.start();
    load(1).send(&daemon.ingress).all_accepted();
    // A signed body that is not published, too.
    assert_eq!(request_once(&daemon, b"[", &[]).status, 400);
    let began = Instant::now();
    let stopped = daemon.stop();
    assert!(began.elapsed() < Duration::from_secs(9), "the end waited {:?} for disks", began.elapsed());
    assert_eq!((stopped.code, stopped.count("lost"), stopped.count("held")), (Some(1), 1, 0), "{}", stopped.last);
    stopped.assert_balanced();
}
