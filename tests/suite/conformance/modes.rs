//! The modes `journaled` and `published` before a real broker: cut, stalled, away, and the bridge killed.

use std::thread;
use std::time::{Duration, Instant};

use super::outage::through_cuts;
use super::rig::{Remote, judge};
use crate::support::{
    Answer, Client, Daemon, LIMIT, Load, Oracle, PATH, Payload, SECRET, Sent, Setup, assert_books_balance, heavy,
    request_once, sign, wait_until,
};

const ACCEPTED: &str = r#"{"status":"accepted"}"#;
const DUPLICATE: &str = r#"{"status":"duplicate"}"#;

/// The longest a sender waits here; no broker's own time-out is shorter.
const TIMEOUT: Duration = Duration::from_secs(1);

pub(super) fn keeps_events_through_cut_connections_when_journaled<R: Remote>(test: &str) {
    let load = Load { events: 60_000, keys: 4, rate: 1_000, again: true, ..Load::default() };
    through_cuts::<R>(test, "journaled", 3, &load);
}

pub(super) fn keeps_events_through_cut_connections_when_published<R: Remote>(test: &str) {
    // Each sender waits for the confirm: many of them, for many in flight.
    let load = Load { events: 60_000, connections: 64, keys: 64, rate: 1_000, again: true, ..Load::default() };
    through_cuts::<R>(test, "published", 3, &load);
}

/// The daemon is killed with messages on their way; the load goes on as soon as it is there again.
pub(super) fn loses_nothing_when_it_is_killed_and_started_again<R: Remote>(test: &str) {
    const KILLS: usize = 3;
    const WINDOW: usize = 200;
    let _one = heavy();
    let rig = R::proxied(test);
    let setup = Setup::new(&rig.table()).text("ack", "journaled").at_one_address();
    let setup = setup.raw("publish.max_in_flight", WINDOW.to_string());
    let mut daemon = setup.start();
    rig.proxy().delay(Duration::from_millis(20));
    let load = Load { events: 60_000, keys: 4, rate: 400, again: true, patient: true, ..Load::default() };
    let running = load.start(&daemon.ingress);
    let mut out_of_order = 0;
    for _ in 0..KILLS {
        daemon.wait_until("events flow, many at once", LIMIT, |status| {
            status.count("published") > 200 && status.number("/buffer/in_flight_events") > 2
        });
        out_of_order += daemon.metric("publish_out_of_order_total", &[]);
        daemon.kill();
        daemon = setup.start();
    }
    rig.proxy().heal();
    daemon.wait_until("events flow again", LIMIT, |status| status.count("published") > 200);
    let sent = running.end();
    let status = daemon.wait_until_empty();
    assert_books_balance(&status);
    out_of_order += daemon.metric("publish_out_of_order_total", &[]);
    let delivered = rig.read(sent.accepted());
    let repeats = Oracle { sent: &sent, delivered: &delivered, dead: &[], out_of_order }.judge();
    // What was in flight, what was settled since the last watermark, and what its sender repeated.
    assert!(repeats <= KILLS * 2 * WINDOW, "{repeats} repeats after {KILLS} crashes");
    assert_eq!(daemon.stop().code, Some(0));
}

/// A daemon that has published something, so that it is connected.
fn connected<R: Remote>(rig: &R, change: impl FnOnce(Setup) -> Setup) -> (Setup, Daemon, Sent) {
    let setup = Setup::new(&rig.table()).text("ack", "published").text("publish.timeout", "1s");
    let setup = change(setup);
    let daemon = setup.start();
    let load = Load { events: 8, again: true, ..Load::default() };
    let sent = load.send(&daemon.ingress).all_accepted();
    (setup, daemon, sent)
}

fn ask(daemon: &Daemon, body: &[u8]) -> thread::JoinHandle<Answer> {
    let (ingress, body) = (daemon.ingress.clone(), body.to_vec());
    thread::spawn(move || {
        let signature = sign(SECRET, &body);
        let mut client = Client::connect(&ingress).expect("the daemon listens");
        client.send("POST", PATH, &[("X-Authorization-HMAC-256", &signature)], &body).expect("an answer")
    })
}

fn times<R: Remote>(rig: &R, body: &[u8], at_least: u64) -> usize {
    rig.read(at_least).iter().filter(|message| message.body == body).count()
}

pub(super) fn answers_503_when_the_confirm_is_late_and_knows_the_repeat<R: Remote>(test: &str) {
    let rig = R::proxied(test);
    let (_setup, daemon, before) = connected(&rig, |setup| setup);
    rig.proxy().stall();
    let body = Payload::new("cuid-late").body();
    let asked = ask(&daemon, &body);
    daemon.wait_until("it is sent", LIMIT, |status| status.number("/buffer/in_flight_events") == 1);
    let answer = asked.join().expect("it is answered");
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.header("retry-after").is_some(), "no Retry-After");
    let status = daemon.status();
    assert_eq!((status.count("withdrawn"), status.count("held")), (0, 1), "what was sent stays");
    rig.proxy().heal();
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("published"), status.count("withdrawn")), (before.accepted() + 1, 0));
    assert_eq!(request_once(&daemon, &body, &[]).text(), DUPLICATE, "the late confirm is known");
    assert_books_balance(&daemon.status());
    assert!(times(&rig, &body, before.accepted() + 1) >= 1, "it was published");
    assert_eq!(daemon.stop().code, Some(0));
}

pub(super) fn takes_back_what_was_not_sent_in_time<R: Remote>(test: &str) {
    let rig = R::proxied(test);
    let (_setup, daemon, before) = connected(&rig, |setup| setup.raw("publish.max_in_flight", "1"));
    rig.proxy().stall();
    let (first, second) = (Payload::new("cuid-first").body(), Payload::new("cuid-second").body());
    let asked = ask(&daemon, &first);
    daemon.wait_until("it is sent", LIMIT, |status| status.number("/buffer/in_flight_events") == 1);
    let waiting = ask(&daemon, &second);
    for answer in [asked, waiting] {
        assert_eq!(answer.join().expect("it is answered").status, 503);
    }
    let status = daemon.wait_until("the second is taken back", LIMIT, |status| status.count("withdrawn") == 1);
    assert_eq!(status.count("held"), 1, "{}", status.0["accounting"]);
    assert_eq!(daemon.metric("events_withdrawn_total", &[]), 1);
    rig.proxy().heal();
    let status = daemon.wait_until_empty();
    assert_eq!(status.count("published"), before.accepted() + 1);
    assert_eq!(times(&rig, &second, before.accepted() + 1), 0, "published behind the sender's back");
    wait_until("it is ready again", LIMIT, || daemon.get("/readyz").status == 200);
    assert_eq!(request_once(&daemon, &second, &[]).text(), ACCEPTED, "what was taken back is no duplicate");
    assert_eq!(request_once(&daemon, &first, &[]).text(), DUPLICATE);
    let status = daemon.wait_until_empty();
    assert_books_balance(&status);
    assert_eq!(times(&rig, &second, before.accepted() + 2), 1);
    assert_eq!(daemon.stop().code, Some(0));
}

pub(super) fn refuses_at_once_while_the_broker_is_away_when_published<R: Remote>(test: &str) {
    let rig = R::proxied(test);
    let (setup, daemon, before) = connected(&rig, |setup| setup);
    assert_eq!(daemon.get("/readyz").status, 200);
    rig.proxy().refuse();
    wait_until("it is unready", LIMIT, || daemon.get("/readyz").status == 503);
    assert!(daemon.get("/readyz").text().contains("broker"), "{}", daemon.get("/readyz").text());
    let rejected = || daemon.metric("events_rejected_total", &[("reason", "unavailable")]);
    let counted = rejected();
    let mut fastest = Duration::MAX;
    let during: Vec<Vec<u8>> = (0..5).map(|number| Payload::new(format!("cuid-{number}")).body()).collect();
    for body in &during {
        let began = Instant::now();
        let answer = request_once(&daemon, body, &[]);
        fastest = fastest.min(began.elapsed());
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(answer.header("retry-after").is_some(), "no Retry-After");
    }
    assert!(fastest < TIMEOUT / 2, "the senders waited for what was known: {fastest:?}");
    assert_eq!(rejected(), counted + 5);
    rig.proxy().heal();
    wait_until("it is ready again", LIMIT, || daemon.get("/readyz").status == 200);
    let after = Load { events: 20, again: true, ..Load::default() }.send(&daemon.ingress).all_accepted();
    let status = daemon.wait_until_empty();
    // None of the refused five is among them: the oracle knows only the others.
    judge(&rig, &setup, &before.and(after), &status, 0);
}

pub(super) fn answers_200_when_the_event_is_a_dead_letter_and_not_before<R: Remote>(test: &str) {
    let rig = R::new(test);
    let trapped = rig.trap(R::SMALL_TRAP);
    // What goes to a wrong address is one after half of this.
    let setup = Setup::new(&trapped.table).text("ack", "published").text("publish.timeout", "6s");
    let daemon = setup.start();
    for number in 1..=4 {
        let mut payload = Payload::new(format!("cuid-{number}"));
        "Trapped".clone_into(&mut payload.event);
        payload.text.clone_from(&trapped.text);
        let answer = request_once(&daemon, &payload.body(), &[]);
        assert_eq!((answer.status, answer.text().as_str()), (200, ACCEPTED));
        // No waiting: it is there already.
        assert_eq!(setup.dead_letters().len(), number, "after {number} answers");
    }
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("accepted"), status.count("dead_lettered")), (4, 4));
    assert_eq!(daemon.stop().code, Some(0));
}
