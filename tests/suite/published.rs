//! `published`: 200 only for events that the broker confirmed or that are dead letters; how long each sender waits, and
//! the meaning of a disconnect.

use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::support::{
    Answer, Client, Daemon, LIMIT, Load, PATH, Payload, SECRET, Sent, Setup, assert_books_balance, heavy, plain,
    random, request_once, sign, wait_until,
};

const ACCEPTED: &str = r#"{"status":"accepted"}"#;
const DUPLICATE: &str = r#"{"status":"duplicate"}"#;

fn published(setup: Setup) -> Setup {
    setup.text("ack", "published")
}

/// Sends this many equal requests at once, each on a connection of its own.
fn at_once(daemon: &Daemon, body: &[u8], count: usize) -> Vec<JoinHandle<Answer>> {
    let together = Arc::new(Barrier::new(count));
    let ask = || {
        let (ingress, body, together) = (daemon.ingress.clone(), body.to_vec(), together.clone());
        thread::spawn(move || {
            let mut client = Client::connect(&ingress).expect("the daemon listens");
            let signature = sign(SECRET, &body);
            together.wait();
            client.send("POST", PATH, &[("X-Authorization-HMAC-256", &signature)], &body).expect("an answer")
        })
    };
    (0..count).map(|_| ask()).collect()
}

fn answers(running: Vec<JoinHandle<Answer>>) -> Vec<Answer> {
    running.into_iter().map(|thread| thread.join().expect("every request has an answer")).collect()
}

#[test]
fn answers_200_when_the_event_is_there_and_not_before() {
    let setup = published(Setup::on_files());
    let daemon = setup.start();
    for number in 1..=30 {
        let body = Payload::new(format!("cuid-{number}")).body();
        let answer = request_once(&daemon, &body, &[]);
        assert_eq!((answer.status, answer.text().as_str()), (200, ACCEPTED));
        // No waiting: the event is known already.
        let delivered = setup.delivered();
        assert_eq!(delivered.len(), number, "after {number} answers");
        assert!(delivered.iter().any(|message| message.body == body), "event {number} is not there");
    }
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("accepted"), status.count("published")), (30, 30));
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn answers_many_senders_at_once() {
    let setup = published(Setup::on_files());
    let daemon = setup.start();
    let load = Load { events: 2_000, connections: 32, keys: 64, ..Load::default() };
    let sent = load.send(&daemon.ingress).all_accepted();
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("published"), setup.judge(&sent)), (2_000, 0));
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn answers_503_after_the_time_out_and_at_once_when_the_broker_is_away_for_longer() {
    const TIMEOUT: Duration = Duration::from_secs(3);
    let setup = published(Setup::on_missing_files()).text("publish.timeout", "3s");
    let daemon = setup.start();
    let body = Payload::new("cuid-early").body();
    let began = Instant::now();
    let answer = request_once(&daemon, &body, &[]);
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.header("retry-after").is_some(), "no Retry-After");
    assert!(began.elapsed() < 3 * TIMEOUT, "the sender waited {:?}", began.elapsed());
    wait_until("it is unready", LIMIT, || daemon.get("/readyz").status == 503);
    assert!(daemon.get("/readyz").text().contains("broker"), "{}", daemon.get("/readyz").text());
    assert_eq!(daemon.get("/livez").status, 200, "a broker that is away is no reason to be restarted");
    let before = daemon.metric("events_rejected_total", &[("reason", "unavailable")]);
    let began = Instant::now();
    let answer = request_once(&daemon, &Payload::new("cuid-late").body(), &[]);
    assert_eq!(answer.status, 503);
    assert!(answer.header("retry-after").is_some(), "no Retry-After");
    assert!(began.elapsed() < TIMEOUT, "the sender waited {:?} for what was known", began.elapsed());
    assert_eq!(daemon.metric("events_rejected_total", &[("reason", "unavailable")]), before + 1);
    let status =
        daemon.wait_until("what nobody waits for is taken back", LIMIT, |status| status.count("held") == 0);
    assert_eq!(status.count("withdrawn"), status.count("accepted"));
    assert_books_balance(&status);
    setup.bring_the_broker_back();
    wait_until("it is ready again", LIMIT, || daemon.get("/readyz").status == 200);
    // A withdrawn event is not a duplicate, and was not published after its sender got a 503.
    assert!(setup.delivered().is_empty(), "what was withdrawn was published");
    assert_eq!(request_once(&daemon, &body, &[]).text(), ACCEPTED);
    assert_eq!(request_once(&daemon, &body, &[]).text(), DUPLICATE);
    assert_eq!(setup.delivered().len(), 1);
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn cancels_nothing_when_the_sender_leaves() {
    let setup = published(Setup::on_missing_files()).text("publish.timeout", "60s");
    let daemon = setup.start();
    let bodies: Vec<Vec<u8>> = (0..10).map(|number| Payload::new(format!("cuid-{number}")).body()).collect();
    let senders: Vec<_> = bodies
        .iter()
        .map(|body| {
            let (signature, length) = (sign(SECRET, body), body.len());
            let head = format!(
                "POST {PATH} HTTP/1.1\r\nHost: b\r\nX-Authorization-HMAC-256: {signature}\r\nContent-Length: \
                 {length}\r\n\r\n"
            );
            let mut stream = plain(&daemon.ingress);
            std::io::Write::write_all(&mut stream, &[head.as_bytes(), body].concat()).unwrap();
            stream
        })
        .collect();
    daemon.wait_until("all wait", LIMIT, |status| status.count("accepted") == 10);
    // Half of them by an end, which may mean that the sender only waits for its answer, half by a reset.
    for stream in senders.iter().step_by(2) {
        socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
    drop(senders);
    // Each ingress thread has checked its connections since.
    for _ in 0..20 {
        assert_eq!(request_once(&daemon, b"{}", &[]).text(), r#"{"status":"probe"}"#);
    }
    setup.bring_the_broker_back();
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("published"), status.count("withdrawn")), (10, 0), "{}", status.0["accounting"]);
    assert_eq!(setup.delivered().len(), 10);
    // A repeat returns the outcome.
    for body in &bodies {
        assert_eq!(request_once(&daemon, body, &[]).text(), DUPLICATE);
    }
    assert_books_balance(&daemon.status());
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn makes_one_event_of_equal_requests_that_wait_together() {
    let setup = published(Setup::on_missing_files()).text("publish.timeout", "60s");
    let daemon = setup.start();
    let body = Payload::new("cuid-1").body();
    let running = at_once(&daemon, &body, 8);
    daemon.wait_until("the first is held, the others have come", LIMIT, |status| {
        status.count("accepted") == 1 && status.number("/connections/open") == 8
    });
    setup.bring_the_broker_back();
    let answers = answers(running);
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    let duplicates = answers.iter().filter(|answer| answer.text() == DUPLICATE).count();
    assert_eq!(duplicates, 7, "{:?}", answers.iter().map(Answer::text).collect::<Vec<_>>());
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("accepted"), status.count("duplicate"), status.count("published")), (1, 7, 1));
    assert_books_balance(&status);
    assert_eq!(setup.delivered().len(), 1);
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn answers_equal_requests_with_the_same_failure() {
    let setup = published(Setup::on_missing_files()).text("publish.timeout", "3s");
    let daemon = setup.start();
    let body = Payload::new("cuid-1").body();
    let statuses: Vec<u16> = answers(at_once(&daemon, &body, 4)).iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [503; 4]);
    let status =
        daemon.wait_until("what nobody waits for is taken back", LIMIT, |status| status.count("held") == 0);
    assert_eq!(status.count("published"), 0, "{}", status.0["accounting"]);
    assert_eq!(status.count("withdrawn"), status.count("accepted"));
    assert!(status.count("accepted") <= 1, "{}", status.0["accounting"]);
    assert_books_balance(&status);
    setup.bring_the_broker_back();
    wait_until("it is ready again", LIMIT, || daemon.get("/readyz").status == 200);
    assert_eq!(request_once(&daemon, &body, &[]).text(), ACCEPTED, "it is forgotten");
    daemon.wait_until_empty();
    assert_eq!(setup.delivered().len(), 1);
}

#[test]
fn loses_nothing_that_was_answered_200_when_it_is_killed() {
    let _one = heavy();
    let mut random = random();
    let setup = published(Setup::on_files());
    let mut sent = Sent::default();
    for _ in 0..3 {
        let daemon = setup.start();
        let load = Load { events: 1_000_000, connections: 16, keys: 32, ..Load::default() };
        let running = load.start(&daemon.ingress);
        let moment = random.u64(50..500);
        wait_until("events flow", LIMIT, || running.sent() >= moment);
        daemon.kill();
        sent = sent.and(running.end());
    }
    // Nothing is started again: events answered 200 are on disk.
    assert!(sent.accepted() > 100);
    setup.judge(&sent.unsure_of_503());
}

#[test]
fn answers_503_to_what_still_waits_at_the_end_of_a_stop_and_withdraws_it() {
    for has_state in [true, false] {
        let setup =
            published(Setup::on_missing_files()).text("publish.timeout", "60s").text("shutdown.grace", "1s");
        let setup = if has_state { setup } else { setup.without_state() };
        let daemon = setup.start();
        let running: Vec<_> =
            (0..4).flat_map(|number| at_once(&daemon, &Payload::new(format!("cuid-{number}")).body(), 1)).collect();
        daemon.wait_until("all wait", LIMIT, |status| status.count("held") == 4);
        let stopped = daemon.stop();
        let counts = ["accepted", "withdrawn", "held", "lost"].map(|name| stopped.count(name));
        assert_eq!((stopped.code, counts), (Some(0), [4, 4, 0, 0]), "{}", stopped.last);
        stopped.assert_balanced();
        for answer in answers(running) {
            assert_eq!(answer.status, 503, "{}", answer.text());
            assert!(
                answer.header("retry-after").is_some() && answer.text().contains("stopping"),
                "{}",
                answer.text()
            );
        }
        setup.bring_the_broker_back();
        setup.start().wait_until_empty();
        assert!(setup.delivered().is_empty(), "what was withdrawn was published");
    }
}

#[test]
fn publishes_a_repeat_after_a_restart_because_the_first_was_answered_503() {
    let setup = published(Setup::on_missing_files()).text("publish.timeout", "60s").text("shutdown.grace", "1s");
    let daemon = setup.start();
    let body = Payload::new("cuid-repeated").body();
    let mut sender = plain(&daemon.ingress);
    let (signature, length) = (sign(SECRET, &body), body.len());
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: b\r\nX-Authorization-HMAC-256: {signature}\r\nContent-Length: {length}\r\n\r\n"
    );
    std::io::Write::write_all(&mut sender, &[head.as_bytes(), &body].concat()).unwrap();
    daemon.wait_until("it waits", LIMIT, |status| status.count("accepted") == 1);
    let stopped = daemon.stop();
    assert_eq!(stopped.count("held") + stopped.count("withdrawn"), 1, "{}", stopped.last);
    let daemon = setup.start();
    let waiting = at_once(&daemon, &body, 1);
    daemon.wait_until("it is accepted", LIMIT, |status| status.count("accepted") == 1);
    setup.bring_the_broker_back();
    assert_eq!(answers(waiting)[0].text(), ACCEPTED, "a 200 for what was published");
    daemon.wait_until_empty();
    assert!(!setup.delivered().is_empty());
}
