//! What arrives: bodies, headers, addresses, keys, ids, order.

use std::collections::HashMap;
use std::time::Instant;

use super::rig::{Rig, judge};
use crate::support::{
    Delivered, LIMIT, Load, Outcome, Payload, SECRET, Setup, UNICODE, request_once, sign, wait_until,
};

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// As the settings' default.
const MAX_BODY: usize = 960 * 1024;

fn id(cuid: &str, body: &[u8]) -> String {
    format!("{cuid}-{}", &sign(SECRET, body)[..12])
}

/// HTTP's rule, which CloudEvents over NATS follows.
fn percent(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'%');
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

pub(super) fn delivers_bodies_and_headers_unchanged<R: Rig>(test: &str) {
    let rig = R::new(test);
    let daemon = Setup::new(&rig.table()).start();
    let mut sent = HashMap::new();
    for (at, text) in UNICODE.iter().enumerate() {
        let mut payload = Payload::new(format!("cuid-{at}"));
        payload.event = format!("Réport {at} \"x\" 100% {}", text.replace(char::is_control, ""));
        (payload.text, payload.target) = ((*text).to_owned(), (*text).to_owned());
        let body = payload.body();
        let trace = if at % 2 == 0 { TRACEPARENT } else { "00-not-a-traceparent" };
        let answer = request_once(&daemon, &body, &[("traceparent", trace)]);
        assert_eq!((answer.status, answer.text().as_str()), (200, r#"{"status":"accepted"}"#), "{text:?}");
        sent.insert(id(&payload.cuid, &body), (payload, body, trace));
    }
    let status = daemon.wait_until_empty();
    let delivered = rig.read(status.count("published"));
    assert_eq!(delivered.len(), sent.len());
    for message in delivered {
        let (payload, body, trace) = sent.remove(&message.id).unwrap_or_else(|| panic!("{message:?} twice"));
        assert_eq!(String::from_utf8_lossy(&message.body), String::from_utf8_lossy(&body));
        assert_headers::<R>(&message, &payload, trace);
    }
    assert_eq!(daemon.stop().code, Some(0));
}

fn assert_headers<R: Rig>(message: &Delivered, payload: &Payload, trace: &str) {
    let mut headers = message.headers.clone();
    headers.retain(|name, _| !R::BINDING.own.contains(&name.as_str()));
    let time = headers.remove(&format!("{}time", R::BINDING.prefix)).unwrap_or_default();
    assert!(time.starts_with("20") && time.len() == 24 && time.ends_with('Z'), "time {time:?}");
    let write = |text: &str| if R::BINDING.percent { percent(text) } else { text.to_owned() };
    let attributes = [
        ("specversion", "1.0".to_owned()),
        ("id", message.id.clone()),
        ("source", "/plextrac/plextrac".to_owned()),
        ("type", format!("com.plextrac.{}", payload.event)),
        ("subject", format!("{}/{}", payload.target_type, payload.target)),
    ];
    let mut expected: HashMap<String, String> =
        attributes.iter().map(|(name, value)| (format!("{}{name}", R::BINDING.prefix), write(value))).collect();
    expected.insert("x-authorization-hmac-256".to_owned(), sign(SECRET, &message.body));
    expected.insert("content-type".to_owned(), "application/json".to_owned());
    if let Some(name) = R::BINDING.also_content_type {
        expected.insert(name.to_owned(), "application/json".to_owned());
    }
    if payload.target.is_empty() {
        expected.insert("x-plextrac-deviations".to_owned(), "targetCuid:empty".to_owned());
    }
    if trace == TRACEPARENT {
        expected.insert("traceparent".to_owned(), trace.to_owned());
    }
    assert_eq!(headers, expected, "the headers of {}", payload.cuid);
}

/// Genuine bodies that depart from the documented payload in every way, with the header that says how.
fn odd_bodies() -> Vec<(String, &'static str)> {
    let without = |fields: &str| format!(r#"{{{fields},"actorCuid":"a","targetType":"t","text":"x"}}"#);
    let long = "é".repeat(3000);
    vec![
        (
            r#"{"clientId":7,"reportId":"12","flawId":345}"#.to_owned(),
            "cuid:missing,actorCuid:missing,event:missing,targetCuid:missing,targetType:missing,text:missing",
        ),
        (
            without(r#""cuid":null,"event":"","targetCuid":null,"targetCuids":["t"]"#),
            "cuid:null,targetCuid:null,event:empty",
        ),
        (without(r#""cuid":"\u0000\r\nX: y","event":"a\nb\u0000","targetCuid":"\r\n""#), ""),
        (without(r#""cuid":" % \u00e9 ","event":" .*>/\\","targetCuid":"\"""#), ""),
        (without(r#""cuid":"\ud800","event":["E"],"targetCuid":{}"#), "event:type,targetCuid:type,cuid:surrogate"),
        (without(&format!(r#""cuid":"{}","event":"{long}","targetCuid":"{long}""#, "c".repeat(201))), ""),
        (without(&format!(r#""cuid":"{}","event":"E","targetCuids":["t"]"#, "c".repeat(200))), ""),
    ]
}

pub(super) fn delivers_whatever_a_genuine_payload_holds<R: Rig>(test: &str) {
    let rig = R::new(test);
    let setup = Setup::new(&rig.table());
    let daemon = setup.start();
    let bodies = odd_bodies();
    for (body, _) in &bodies {
        let answer = request_once(&daemon, body.as_bytes(), &[]);
        assert_eq!((answer.status, answer.text().as_str()), (200, r#"{"status":"accepted"}"#), "{body}");
    }
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("published"), status.count("dead_lettered")), (bodies.len() as u64, 0));
    let delivered = rig.read(bodies.len() as u64);
    assert_eq!(delivered.len(), bodies.len());
    for (body, deviations) in bodies {
        let message = delivered.iter().find(|message| message.body == body.as_bytes());
        let message = message.unwrap_or_else(|| panic!("{body} did not arrive"));
        let header = message.headers.get("x-plextrac-deviations").map_or("", String::as_str);
        assert_eq!(header, deviations, "{body}");
        let letters = sign(SECRET, body.as_bytes());
        let ends = [&letters[..32], &letters[..12]];
        assert!(ends.iter().any(|end| message.id.ends_with(end)), "the id {:?} of {body}", message.id);
        let longest = if R::BINDING.percent { 3 * 1024 } else { 1024 };
        assert!(message.headers.values().all(|value| value.len() <= longest), "{:?}", message.headers);
    }
    assert_eq!(daemon.stop().code, Some(0));
}

pub(super) fn delivers_every_size_up_to_the_limit<R: Rig>(test: &str) {
    let rig = R::new(test);
    let daemon = Setup::new(&rig.table()).start();
    let least = Payload::new("cuid-0").body_of(300).len();
    let sizes = [least, 1023, 4096, 16_384, 65_535, 65_536, 131_072, MAX_BODY - 1, MAX_BODY];
    let bodies = sizes.iter().enumerate().map(|(at, size)| Payload::new(format!("cuid-{at}")).body_of(*size));
    let bodies: Vec<Vec<u8>> = bodies.collect();
    for body in &bodies {
        assert_eq!(request_once(&daemon, body, &[]).status, 200, "{} bytes", body.len());
    }
    let larger = Payload::new("cuid-larger").body_of(MAX_BODY + 1);
    assert_eq!(request_once(&daemon, &larger, &[]).status, 413);
    let status = daemon.wait_until_empty();
    assert_eq!(status.count("published"), bodies.len() as u64);
    let mut delivered: Vec<Vec<u8>> =
        rig.read(bodies.len() as u64).into_iter().map(|message| message.body).collect();
    delivered.sort_by_key(Vec::len);
    assert!(delivered == bodies, "sizes: {:?}", delivered.iter().map(Vec::len).collect::<Vec<_>>());
}

pub(super) fn renders_addresses_and_keys_from_templates_and_routes<R: Rig>(test: &str) {
    let rig = R::new(test);
    let daemon = Setup::new(&rig.templates()).start();
    // As they come, and as they stand in an address.
    let long = "L".repeat(80);
    let names = [
        ("ReportPublished", "report", "ReportPublished", "report"),
        ("On Report Finding Creation/Edit", "a.b*c>", "On_Report_Finding_Creation_Edit", "a_b_c_"),
        ("日本-語", "\u{1f600}", "__-_", "_"),
        (long.as_str(), "t", &long[..64], "t"),
    ];
    let mut expected = HashMap::new();
    for (at, (event, target_type, safe_event, safe_type)) in names.iter().enumerate() {
        let mut payload = Payload::new(format!("cuid-{at}"));
        (payload.event, payload.target_type) = ((*event).to_owned(), (*target_type).to_owned());
        payload.target = "a target, ünicode".to_owned();
        assert_eq!(request_once(&daemon, &payload.body(), &[]).status, 200, "{event}");
        expected.insert(id(&payload.cuid, &payload.body()), rig.rendered(safe_event, safe_type, &payload));
    }
    let mut routed = Payload::new("cuid-routed");
    "Routed".clone_into(&mut routed.event);
    assert_eq!(request_once(&daemon, &routed.body(), &[]).status, 200);
    expected.insert(id("cuid-routed", &routed.body()), rig.routed(&routed));
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("published"), status.count("dead_lettered")), (5, 0));
    let delivered = rig.read(5).into_iter().map(|message| (message.id, (message.address, message.key)));
    assert_eq!(delivered.collect::<HashMap<_, _>>(), expected);
}

pub(super) fn keeps_the_order_of_every_key_over_10_000_events<R: Rig>(test: &str) {
    let rig = R::new(test);
    let setup = Setup::new(&rig.table());
    let daemon = setup.start();
    let load = Load { events: 10_000, connections: 8, keys: 16, ..Load::default() };
    let sent = load.send(&daemon.ingress).all_accepted();
    let status = daemon.wait_until_empty();
    assert_eq!(judge(&rig, &setup, &sent, &status, 0), 0, "repeats although nothing went wrong");
    assert_eq!(daemon.stop().count("published"), 10_000);
}

pub(super) fn gives_a_repeated_request_the_same_id<R: Rig>(test: &str) {
    let rig = R::new(test);
    let daemon = Setup::new(&rig.table()).takes_repeats().start();
    let body = Payload::new("cuid-1").body();
    for _ in 0..2 {
        assert_eq!(request_once(&daemon, &body, &[]).status, 200);
    }
    let mut other = Payload::new("cuid-1");
    "another text".clone_into(&mut other.text);
    assert_eq!(request_once(&daemon, &other.body(), &[]).status, 200);
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("accepted"), status.count("published")), (3, 3));
    let same = id("cuid-1", &body);
    let mut expected = vec![same.clone(), same, id("cuid-1", &other.body())];
    if R::DROPS_REPEATS {
        expected.remove(0);
    }
    let delivered: Vec<String> = rig.read(expected.len() as u64).into_iter().map(|message| message.id).collect();
    assert_eq!(delivered, expected);
}

/// A `cuid` that is too long for an id counts as absent; every other one is carried.
pub(super) fn delivers_every_cuid<R: Rig>(test: &str) {
    let rig = R::new(test);
    let setup = Setup::new(&rig.table());
    let daemon = setup.start();
    let long = ["c".repeat(242), "c".repeat(243), "c".repeat(300), "é".repeat(20_000)];
    let texts = UNICODE.iter().filter(|text| !text.is_empty()).map(|text| (*text).to_owned());
    let cuids: Vec<String> = texts.chain(long).chain(["a\r\nNats-Msg-Id: b".to_owned()]).collect();
    let mut sent = HashMap::new();
    for cuid in &cuids {
        let body = Payload::new(cuid).body();
        let answer = request_once(&daemon, &body, &[]);
        assert_eq!(answer.status, 200, "{cuid:?}: {}", answer.text());
        let id = if cuid.len() > 200 { sign(SECRET, &body)[..32].to_owned() } else { id(cuid, &body) };
        sent.insert(id, body);
    }
    let status = daemon.wait_until_empty();
    assert_eq!(status.count("dead_lettered"), 0, "{:?}", setup.dead_letters());
    let plain = Load { events: 20, ..Load::default() }.send(&daemon.ingress);
    assert!(plain.0.iter().all(|note| note.outcome == Outcome::Accepted));
    let status = daemon.wait_until_empty();
    let mut delivered = rig.read(status.count("published"));
    delivered.retain(|message| {
        message
            .headers
            .get("x-authorization-hmac-256")
            .is_some_and(|signature| !plain.0.iter().any(|note| note.id.ends_with(&signature[..12])))
    });
    for message in &delivered {
        // What a binding cannot write as it is, it writes as it writes all other headers.
        let written = |id: &str| message.id == id || (R::BINDING.percent && message.id == percent(id));
        let id = sent.keys().find(|id| written(id)).cloned().unwrap_or_default();
        let body = sent.remove(&id);
        assert_eq!(body.as_ref(), Some(&message.body), "the id {:?} carries its body", message.id);
    }
    assert!(sent.is_empty(), "not delivered: {:?}", sent.keys());
    assert_eq!(status.count("published"), delivered.len() as u64 + 20);
    assert_eq!(daemon.stop().code, Some(0));
}

/// Equal bodies without a `cuid` are events of their own: a report was changed twice.
pub(super) fn delivers_equal_events_without_a_cuid_each<R: Rig>(test: &str) {
    let rig = R::new(test);
    let daemon = Setup::new(&rig.table()).start();
    let body = br#"{"clientId":7,"reportId":"12"}"#;
    for _ in 0..3 {
        assert_eq!(request_once(&daemon, body, &[]).text(), r#"{"status":"accepted"}"#);
    }
    assert_eq!(daemon.wait_until_empty().count("published"), 3);
    let delivered = rig.read(3);
    assert_eq!(delivered.len(), 3, "the broker dropped an event that was counted as published");
    let id = sign(SECRET, body)[..32].to_owned();
    assert!(delivered.iter().all(|message| message.body == body && message.id == id), "{delivered:?}");
    assert_eq!(daemon.stop().code, Some(0));
}

pub(super) fn sends_no_headers_when_told_so<R: Rig>(test: &str) {
    let rig = R::new(test);
    let daemon = Setup::new(&rig.table()).text("publish.headers", "none").start();
    assert_eq!(request_once(&daemon, &Payload::new("cuid-1").body(), &[("traceparent", TRACEPARENT)]).status, 200);
    daemon.wait_until_empty();
    let delivered = rig.read(1);
    assert_eq!(delivered.len(), 1);
    let mut names: Vec<&str> = delivered[0].headers.keys().map(String::as_str).collect();
    names.retain(|name| !R::BINDING.own.contains(name) && *name != "content-type");
    assert_eq!(names, [""; 0], "only the broker's own id");
}

pub(super) fn sends_elsewhere_after_a_reload_under_load<R: Rig>(test: &str) {
    let rig = R::new(test);
    let setup = Setup::new(&rig.table());
    let elsewhere = setup.clone().with_broker(&rig.templates());
    let daemon = setup.start();
    let load = Load { events: 1_000_000, rate: 1000, every: Some((1, "Routed", String::new())), ..Load::default() };
    let running = load.start(&daemon.ingress);
    let goes_on = || {
        let before = running.sent();
        wait_until("the load goes on", LIMIT, || running.sent() > before + 200);
    };
    daemon.wait_until("the first ones are published", LIMIT, |status| status.count("published") > 100);
    elsewhere.file();
    let status = daemon.reload();
    let reloaded = Instant::now();
    assert_eq!(status.text("/reload/result"), "success", "{}", status.0["reload"]);
    assert_eq!(status.0["reload"]["needs_restart"], serde_json::json!([]));
    goes_on();
    let sent = running.end().all_accepted();
    let status = daemon.wait_until_empty();
    assert_eq!(judge(&rig, &setup, &sent, &status, 0), 0, "repeats");
    assert_eq!(status.count("dead_lettered"), 0);
    assert_eq!(daemon.metric("publish_retries_total", &[]), 0, "nothing was handed over twice");
    let delivered = rig.read(status.count("published")).into_iter();
    let places: HashMap<String, (String, String)> =
        delivered.map(|message| (message.id, (message.address, message.key))).collect();
    let (mut earlier, mut later) = (0, 0);
    for note in &sent.0 {
        let mut payload = Payload::new(&note.cuid);
        note.event.clone_into(&mut payload.event);
        payload.target.clone_from(&note.key);
        let is_there = places.get(&note.id) == Some(&rig.routed(&payload));
        if note.began > reloaded {
            assert!(is_there, "{}, sent after the reload, is at {:?}", note.cuid, places.get(&note.id));
            later += 1;
        } else {
            earlier += usize::from(!is_there);
        }
    }
    assert!(earlier >= 100 && later >= 100, "{earlier} went to the old addresses, {later} came after the reload");
}
