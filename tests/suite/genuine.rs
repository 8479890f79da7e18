//! A correct signature makes a body genuine, however it departs from the documented payload: what is published, what is
//! kept instead, and what is reported of it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Arrived, Bridge, Daemon, SECRET, Setup, request_once, said, sign};

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
fn takes_null_for_a_field_that_is_not_there() {
    let arrived = arrives(&EXAMPLE.replace(r#""cm4v""#, "null"));
    assert_eq!(arrived.headers["x-plextrac-deviations"], "text:missing,actorCuid:null");
    let several = r#""targetCuid":null,"targetCuids":["r1","r2"],"text":"x""#;
    let arrived = arrives(&EXAMPLE.replace(r#""targetCuid":"cm4w""#, several));
    assert_eq!(arrived.headers["ce_subject"], "finding/r1");
    assert_eq!(arrived.headers["x-plextrac-deviations"], "targetCuid:null");
}

/// Waits until so many bodies are kept.
fn kept(daemon: &Daemon, count: u64) {
    daemon.wait_until("they are kept", Duration::from_mins(1), |status| status.number("/invalid/events") == count);
}

/// What is kept, as `dead-letters list --invalid --json` shows it.
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
