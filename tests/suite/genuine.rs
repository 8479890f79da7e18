//! A correct signature makes a body genuine, however it departs from the documented payload: some are published, some
//! kept instead, and the departures are reported.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Arrived, Bridge, Daemon, LIMIT, PATH, Payload, SECRET, Setup, request_once, said, sign};

/// The example of the vendor's page: no `text`.
const EXAMPLE: &str = r#"{"cuid":"1736201637380-0","event":"FindingPublished","targetType":"finding","actorCuid":"cm4v","targetCuid":"cm4w"}"#;

/// Sends one signed body that is answered 200 `accepted`, and returns what has arrived.
#[track_caller]
fn arrives(body: &str) -> Arrived {
    let bridge = Bridge::start(|setup| setup);
    let answer = request_once(&bridge.daemon, body.as_bytes(), &[]);
    assert_eq!((answer.status, answer.text().as_str()), (200, r#"{"status":"accepted"}"#), "{body}");
    bridge.accepted(body.as_bytes());
    bridge.check();
    let arrived = bridge.arrived().remove(0);
    bridge.stop();
    arrived
}

#[test]
fn publishes_the_vendors_example_although_it_has_no_text() {
    let arrived = arrives(EXAMPLE);
    assert_eq!(arrived.address, "FindingPublished.finding");
    assert_eq!(arrived.id, format!("1736201637380-0-{}", &sign(SECRET, EXAMPLE.as_bytes())[..12]));
    assert_eq!(arrived.headers["x-plextrac-deviations"], "text:missing");
    assert_eq!(arrived.headers["ce_subject"], "finding/cm4w");
}

#[test]
fn publishes_ids_alone() {
    let body = r#"{"clientId":7,"reportId":"12","findingId":345}"#;
    let arrived = arrives(body);
    assert_eq!(arrived.address, "_._");
    assert_eq!(arrived.id, sign(SECRET, body.as_bytes())[..32]);
    assert_eq!(arrived.headers["ce_type"], "com.plextrac.unknown");
    assert!(!arrived.headers.contains_key("ce_subject"), "{:?}", arrived.headers);
    let missing = "cuid:missing,actorCuid:missing,event:missing,targetCuid:missing,targetType:missing,text:missing";
    assert_eq!(arrived.headers["x-plextrac-deviations"], missing);
}

#[test]
fn treats_null_as_an_absent_field() {
    let arrived = arrives(&EXAMPLE.replace(r#""cm4v""#, "null"));
    assert_eq!(arrived.headers["x-plextrac-deviations"], "text:missing,actorCuid:null");
    let several = r#""targetCuid":null,"targetCuids":["r1","r2"],"text":"x""#;
    let arrived = arrives(&EXAMPLE.replace(r#""targetCuid":"cm4w""#, several));
    assert_eq!(arrived.headers["ce_subject"], "finding/r1");
    assert_eq!(arrived.headers["x-plextrac-deviations"], "targetCuid:null");
}

/// Waits until this many bodies are kept.
fn kept(daemon: &Daemon, count: u64) {
    daemon.wait_until("they are kept", Duration::from_mins(1), |status| status.number("/invalid/events") == count);
}

/// The kept bodies, as `dead-letters list --invalid --json` shows them.
fn list(setup: &Setup, arguments: &[&str]) -> Vec<Value> {
    let done = setup.run(&[&["dead-letters", "list", "--invalid", "--json"], arguments].concat());
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));
    String::from_utf8_lossy(&done.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn answers_200_to_a_connection_test_of_any_shape_and_keeps_it_once() {
    let setup = Setup::on_files();
    let daemon = setup.start();
    let bodies: [&[u8]; 8] = [b"", b"{}", b" { } ", b"[]", b"[{\"event\":\"E\"}]", b"null", b"7", b"\"test\""];
    for body in bodies.iter().chain(&bodies) {
        let answer = request_once(&daemon, body, &[]);
        assert_eq!((answer.status, answer.text().as_str()), (200, r#"{"status":"probe"}"#), "{body:?}");
    }
    kept(&daemon, 8);
    assert_eq!(daemon.metric("events_probe_total", &[]), 16);
    assert_eq!(daemon.metric("invalid_kept_total", &[("reason", "probe")]), 8);
    let letters = list(&setup, &["--reason", "probe"]);
    let mut ids: Vec<&str> = letters.iter().filter_map(|letter| letter["id"].as_str()).collect();
    let mut expected: Vec<String> = bodies.iter().map(|body| sign(SECRET, body)[..32].to_owned()).collect();
    ids.sort_unstable();
    expected.sort_unstable();
    assert_eq!(ids, expected);
    assert!(letters.iter().all(|letter| letter["reason"] == json!("probe")), "{letters:?}");
    let stopped = daemon.stop();
    assert_eq!((stopped.code, stopped.count("accepted"), stopped.count("probe")), (Some(0), 0, 16));
}

#[test]
fn keeps_a_body_that_is_not_json_and_answers_400() {
    let setup = Setup::on_files();
    let daemon = setup.start();
    let bodies: [&[u8]; 4] = [b"{", b"\xef\xbb\xbf{}", b"{\"event\":\"\xff\"}", b"\x00"];
    for body in bodies.iter().chain(&bodies) {
        assert_eq!(request_once(&daemon, body, &[]).status, 400, "{body:?}");
    }
    kept(&daemon, 4);
    assert_eq!(daemon.metric("invalid_kept_total", &[("reason", "malformed")]), 4);
    for body in bodies {
        let id = &sign(SECRET, body)[..32];
        let shown = setup.run(&["dead-letters", "show", "--invalid", "--body", id]);
        assert_eq!(shown.stdout, body, "{}", said(&shown));
    }
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn reports_departures_by_kind_and_event_and_never_a_value() {
    let bridge = Bridge::start(Setup::takes_repeats);
    let clean = Payload { event: "FindingPublished".to_owned(), ..Payload::new("clean") }.body();
    let odd =
        br#"{"cuid":"secret-cuid","event":null,"targetCuids":["t",7],"actorCuid":"a","targetType":"t","text":"x"}"#;
    for (times, body) in [(40, EXAMPLE.as_bytes()), (2, &clean[..]), (3, &odd[..])] {
        for _ in 0..times {
            assert_eq!(request_once(&bridge.daemon, body, &[]).status, 200);
            bridge.accepted(body);
        }
    }
    let counted = |field: &str, deviation: &str| {
        bridge
            .daemon
            .metric("events_deviating_total", &[("source", "plextrac"), ("field", field), ("deviation", deviation)])
    };
    assert_eq!((counted("text", "missing"), counted("event", "null"), counted("targetCuids", "type")), (40, 3, 3));
    assert_eq!(
        bridge.daemon.metric("events_deviating_total", &[]),
        46,
        "series of what there is, and of nothing else"
    );
    let status = bridge.daemon.status().0;
    let listed = status["sources"][0]["deviations"].as_array().unwrap();
    let texts: Vec<&str> = listed.iter().filter_map(|entry| entry["text"].as_str()).collect();
    assert_eq!(
        texts,
        [
            "`event` is null in 3 of 3 events without a name",
            "`targetCuids` is of another type in 3 of 3 events without a name",
            "`text` is missing in 40 of 42 `FindingPublished`",
        ]
    );
    let entry = json!({ "field": "text", "deviation": "missing", "event": "FindingPublished", "count": 40, "of": 42,
        "text": texts[2] });
    assert_eq!((&listed[2], &listed[0]["event"]), (&entry, &Value::Null));
    let log = bridge.stop().log;
    let lines = log.lines().filter(|line| line.contains("deviates from the documented one"));
    assert_eq!(lines.count(), 3, "one line of each kind: {log}");
    assert!(!log.contains("secret-cuid") && !status.to_string().contains("secret-cuid"));
}

#[test]
fn counts_no_departure_of_what_is_not_accepted() {
    let bridge = Bridge::start_without_broker(|setup| setup.raw("buffer.max_events", "1").takes_repeats());
    let event = |number: u64| EXAMPLE.replace("1736201637380-0", &number.to_string()).into_bytes();
    assert_eq!(request_once(&bridge.daemon, &event(1), &[]).status, 200);
    assert_eq!(request_once(&bridge.daemon, &event(2), &[]).status, 503);
    assert_eq!(bridge.daemon.metric("events_deviating_total", &[]), 1);
    bridge.accepted(&event(1));
    bridge.bring_the_broker_back();
    bridge.stop();
}

#[test]
fn counts_the_departures_of_an_event_once_the_journal_has_it_also_after_its_sender_was_answered() {
    let bridge = Bridge::start(|setup| {
        setup.text("ack", "journaled").text("publish.timeout", "500ms").failpoints("journal.sync=3s@1")
    });
    assert_eq!(request_once(&bridge.daemon, EXAMPLE.as_bytes(), &[]).status, 503, "the disk is slow");
    let status = bridge.daemon.status();
    assert_eq!((status.count("accepted"), &status.0["sources"][0]["deviations"]), (0, &json!([])));
    let status = bridge.daemon.wait_until("it is taken and counted", LIMIT, |status| {
        status.0["sources"][0]["deviations"].as_array().is_some_and(|listed| !listed.is_empty())
    });
    assert_eq!(status.count("accepted"), 1);
    assert_eq!(bridge.daemon.metric("events_deviating_total", &[]), 1);
    bridge.accepted(EXAMPLE.as_bytes());
    bridge.stop();
}

#[test]
fn names_the_same_departures_after_a_restart_from_the_journal() {
    let setup = Setup::on_missing_files().text("ack", "journaled").text("publish.timeout", "60s");
    let daemon = setup.start();
    let long = format!(r#"{{"cuid":"{}","event":"E","text":7}}"#, "c".repeat(201));
    let bodies = [EXAMPLE, r#"{"clientId":7}"#, r#"{"cuid":"c","cuid":"d","event":"\ud800"}"#, &long];
    let deviations = [
        "text:missing",
        "cuid:missing,actorCuid:missing,event:missing,targetCuid:missing,targetType:missing,text:missing",
        "actorCuid:missing,targetCuid:missing,targetType:missing,text:missing,cuid:duplicate,event:surrogate",
        "actorCuid:missing,targetCuid:missing,targetType:missing,text:type",
    ];
    for body in bodies {
        assert_eq!(request_once(&daemon, body.as_bytes(), &[]).status, 200, "{body}");
    }
    daemon.kill();
    setup.bring_the_broker_back();
    let daemon = setup.start();
    daemon.wait_until("all are published", Duration::from_mins(1), |status| status.count("published") == 4);
    let delivered = setup.delivered();
    for (body, deviations) in bodies.iter().zip(deviations) {
        let message = delivered.iter().find(|message| message.body == body.as_bytes()).expect("it arrived");
        assert_eq!(message.headers["x-plextrac-deviations"], deviations, "{body}");
        let signature = sign(SECRET, body.as_bytes());
        let id = match *body {
            EXAMPLE => format!("1736201637380-0-{}", &signature[..12]),
            body if body.contains("\"d\"") => format!("d-{}", &signature[..12]),
            _ => signature[..32].to_owned(),
        };
        assert_eq!(message.id, id, "{body}");
    }
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn says_how_a_dead_letter_departs() {
    let setup = Setup::on_files().failpoints("publish.address=error@1+");
    let daemon = setup.start();
    assert_eq!(request_once(&daemon, EXAMPLE.as_bytes(), &[]).status, 200);
    daemon.wait_until("it is a dead letter", Duration::from_mins(1), |status| {
        status.number("/dead_letters/events") == 1
    });
    assert_eq!(setup.dead_letters()[0]["headers"]["x-plextrac-deviations"], "text:missing");
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn logs_connection_tests_once_a_second_and_counts_the_others() {
    const TESTS: u64 = 300;
    let bridge = Bridge::start(|setup| setup);
    let mut client = bridge.connect();
    let began = Instant::now();
    for number in 0..TESTS {
        let body = format!("[{number}]");
        let signature = sign(SECRET, body.as_bytes());
        let headers = [("X-Authorization-HMAC-256", signature.as_str())];
        assert_eq!(client.send("POST", PATH, &headers, body.as_bytes()).unwrap().status, 200);
    }
    let seconds = began.elapsed().as_secs() + 1;
    let log = bridge.stop().log;
    let lines: Vec<Value> = log
        .lines()
        .filter(|line| line.contains("a connection test arrived"))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!((1..=seconds).contains(&(lines.len() as u64)), "{} lines in {seconds} s", lines.len());
    assert_eq!((&lines[0]["left_out"], &lines[0]["source"]), (&json!(0), &json!("plextrac")), "{}", lines[0]);
}

#[test]
fn keeps_nothing_of_an_unsigned_source() {
    let setup = Setup::on_files().text("sources.plextrac.secret", "").raw("sources.plextrac.unsigned", "true");
    let daemon = setup.start();
    for (body, status) in
        [("", 200), ("[]", 200), ("{", 400), (r#"{"hello":"world"}"#, 422), (r#"{"flawId":7}"#, 200)]
    {
        assert_eq!(request_once(&daemon, body.as_bytes(), &[]).status, status, "{body}");
    }
    let stopped = daemon.stop();
    assert_eq!((stopped.code, stopped.count("probe"), stopped.count("accepted")), (Some(0), 2, 1));
    assert_eq!(list(&setup, &[]), [Value::Null; 0]);
}

#[test]
fn says_that_it_cannot_keep_a_body_without_a_state_directory() {
    let daemon = Setup::on_files().without_state().start();
    assert_eq!(request_once(&daemon, b"{", &[]).status, 400);
    let line = daemon.wait_for_line("the warning", |line| line["reason"] == "malformed" && line["left_out"] == 0);
    assert_eq!(line["level"], "WARN", "{line}");
    assert!(line["message"].as_str().unwrap().contains("there is no `state_directory`"), "{line}");
    assert_eq!(daemon.stop().code, Some(0));
}
