//! Every known payload of the sender, 500 of them, made and signed by Node: each one is published once, byte for byte,
//! and its departures from the documented payload are reported.

use std::collections::{BTreeMap, HashMap};
use std::fs;

use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use crate::conformance::kafka::Kafka;
use crate::conformance::nats::Nats;
use crate::conformance::rabbitmq::Rabbitmq;
use crate::conformance::rig::{Binding, Remote as _, Rig};
use crate::support::{
    Client, Daemon, Delivered, Known, LIMIT, PATH, Program, SECRET, Setup, Signed, Status, assert_books_balance,
    known_payloads, said,
};

const EVENTS: usize = 500;

/// The seed of the payloads, which are always the same, so that a failure can be repeated.
const SEED: u32 = 20_261_126;

/// The CloudEvents type of an event without a name.
const UNKNOWN: &str = "com.plextrac.unknown";

fn known() -> Vec<Known> {
    known_payloads(SECRET, SEED, EVENTS).0
}

/// Sends the bodies that Node signed, all on one connection; each answer must be this.
fn send<'a>(daemon: &Daemon, bodies: impl Iterator<Item = (&'a str, &'a [u8])>, status: &str) {
    let mut client = Client::connect(&daemon.ingress).expect("the daemon listens");
    for (signature, body) in bodies {
        let headers = [("X-Authorization-HMAC-256", signature), ("Content-Type", "application/json")];
        let answer = client.send("POST", PATH, &headers, body).expect("the daemon answers");
        let shown = body[..body.len().min(300)].escape_ascii();
        assert_eq!((answer.status, answer.text()), (200, json!({ "status": status }).to_string()), "{shown}");
    }
}

fn send_events(daemon: &Daemon, events: &[Known]) {
    let bodies = events.iter().map(|event| (event.signed.signature.as_str(), event.signed.body.as_slice()));
    send(daemon, bodies, "accepted");
}

/// Checks that each event was published once, with its bytes, its id and its headers.
fn arrive_once(events: &[Known], delivered: &[Delivered], binding: &Binding) {
    let mut expected: HashMap<&[u8], &Known> =
        events.iter().map(|event| (event.signed.body.as_slice(), event)).collect();
    assert_eq!(expected.len(), events.len(), "Node made a body twice");
    for message in delivered {
        let event = expected.remove(message.body.as_slice());
        let shown = message.body[..message.body.len().min(300)].escape_ascii();
        let event = event.unwrap_or_else(|| panic!("published twice, or never sent: {shown}"));
        let decoded = |value: &str| {
            if binding.percent {
                percent_decode_str(value).decode_utf8().expect("it is UTF-8").into_owned()
            } else {
                value.to_owned()
            }
        };
        let attribute =
            |name: &str| message.headers.get(&format!("{}{name}", binding.prefix)).map(|value| decoded(value));
        let Known { name, id, event_type, subject, deviations, signed } = event;
        assert_eq!(decoded(&message.id), *id, "the id of {name}");
        assert_eq!(attribute("type").as_ref(), Some(event_type), "the type of {name}");
        assert_eq!(attribute("subject").as_ref(), subject.as_ref(), "the subject of {name}");
        assert_eq!(message.headers["content-type"], "application/json", "the content type of {name}");
        assert_eq!(message.headers["x-authorization-hmac-256"], signed.signature, "the signature of {name}");
        let header = message.headers.get("x-plextrac-deviations").map(String::as_str).unwrap_or_default();
        let mut listed: Vec<&str> = header.split(',').filter(|deviation| !deviation.is_empty()).collect();
        listed.sort_unstable();
        assert_eq!(listed, *deviations, "the deviations of {name}: {shown}");
        assert_eq!(message.headers.contains_key("x-plextrac-deviations"), !deviations.is_empty(), "{name}");
    }
    let missing: Vec<&str> = expected.values().map(|event| event.name.as_str()).collect();
    assert!(missing.is_empty(), "not published: {missing:?}");
}

/// The number of each deviation: `text:missing`.
fn count(events: &[Known]) -> BTreeMap<&str, u64> {
    let mut counts = BTreeMap::new();
    for deviation in events.iter().flat_map(|event| &event.deviations) {
        *counts.entry(deviation.as_str()).or_default() += 1;
    }
    counts
}

/// The number for each name of an event, as `/status` shows it: in the form of addresses; none without a name.
fn count_by_name(events: &[Known]) -> BTreeMap<(String, Option<String>), u64> {
    let mut counts = BTreeMap::new();
    for event in events {
        let name = event.event_type.strip_prefix("com.plextrac.").expect("every type has the prefix");
        let safe = |c: char| if c.is_ascii_alphanumeric() || "_-".contains(c) { c } else { '_' };
        let name = (name != "unknown").then(|| name.chars().map(safe).take(64).collect::<String>());
        for deviation in &event.deviations {
            *counts.entry((deviation.clone(), name.clone())).or_default() += 1;
        }
    }
    counts
}

/// The deviations in `/status`.
fn deviations_of(status: &Status) -> BTreeMap<(String, Option<String>), u64> {
    let mut counts = BTreeMap::new();
    for line in status.0["sources"][0]["deviations"].as_array().into_iter().flatten() {
        let text = |name: &str| line[name].as_str().map(str::to_owned);
        let deviation = format!("{}:{}", line["field"].as_str().unwrap(), line["deviation"].as_str().unwrap());
        *counts.entry((deviation, text("event"))).or_default() += line["count"].as_u64().unwrap();
        assert!(line["count"].as_u64() <= line["of"].as_u64(), "{line}");
    }
    counts
}

#[test]
fn publishes_every_known_payload_once_with_the_default_settings() {
    let setup = Setup::on_files()
        .by_default("ingress.threads")
        .by_default("journal.max_bytes")
        .by_default("journal.segment_bytes");
    let daemon = setup.start();
    let events = known();
    send_events(&daemon, &events);
    let status = daemon.wait_until_empty();
    assert_books_balance(&status);
    let sums = ["received", "accepted", "published", "rejected", "probe", "dead_lettered"];
    assert_eq!(sums.map(|name| status.count(name)), [500, 500, 500, 0, 0, 0]);
    let files = Binding { prefix: "ce_", percent: false, also_content_type: None, own: &[] };
    arrive_once(&events, &setup.delivered(), &files);

    let expected = count(&events);
    assert!(expected.len() > 40, "the payloads have few deviations: {expected:?}");
    for (deviation, count) in &expected {
        let (field, kind) = deviation.split_once(':').expect("a field and a kind");
        let labels = [("source", "plextrac"), ("field", field), ("deviation", kind)];
        assert_eq!(daemon.metric("events_deviating_total", &labels), *count, "{deviation}");
    }
    assert_eq!(daemon.metric("events_deviating_total", &[]), expected.values().sum::<u64>());
    assert_eq!(deviations_of(&status), count_by_name(&events));
    let named = |event: &&Known| event.event_type == "com.plextrac.FindingPublished";
    let of = events.iter().filter(named).count();
    let without = events.iter().filter(named).filter(|event| event.deviations.contains(&"text:missing".to_owned()));
    let sentence = format!("`text` is missing in {} of {of} `FindingPublished`", without.count());
    let shown = status.0["sources"][0]["deviations"].as_array().into_iter().flatten();
    assert_eq!(shown.filter(|line| line["text"] == sentence.as_str()).count(), 1, "{sentence}");
    let stopped = daemon.stop();
    assert_eq!(stopped.code, Some(0), "{}", stopped.log);
    stopped.assert_balanced();
}

#[test]
fn keeps_every_body_that_is_no_event_and_publishes_it_only_when_told_so() {
    let setup = Setup::on_files();
    let daemon = setup.start();
    let (events, probes) = known_payloads(SECRET, SEED, EVENTS);
    let bodies = || probes.iter().map(|signed| (signed.signature.as_str(), signed.body.as_slice()));
    send(&daemon, bodies(), "probe");
    send_events(&daemon, &events[..10]);
    send(&daemon, bodies(), "probe");
    let status = daemon.wait_until_empty();
    assert_books_balance(&status);
    let sums = ["received", "accepted", "probe", "duplicate", "rejected"];
    assert_eq!(sums.map(|name| status.count(name)), [22, 10, 12, 0, 0]);
    arrive_once(
        &events[..10],
        &setup.delivered(),
        &Binding { prefix: "ce_", percent: false, also_content_type: None, own: &[] },
    );
    daemon.wait_until("they are kept", LIMIT, |status| status.number("/invalid/events") == 6);

    let done = setup.run(&["dead-letters", "list", "--invalid", "--json"]);
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));
    let text = String::from_utf8_lossy(&done.stdout);
    let letters: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("it is JSON")).collect();
    let mut listed: Vec<&str> = letters.iter().filter_map(|letter| letter["id"].as_str()).collect();
    let mut expected: Vec<&str> = probes.iter().map(|signed| &signed.signature[..32]).collect();
    listed.sort_unstable();
    expected.sort_unstable();
    assert_eq!(listed, expected);
    assert!(letters.iter().all(|letter| letter["reason"] == "probe"), "{letters:?}");
    for signed in &probes {
        let shown = setup.run(&["dead-letters", "show", "--invalid", "--body", &signed.signature[..32]]);
        assert_eq!((shown.status.code(), shown.stdout), (Some(0), signed.body.clone()));
    }

    // An operator who wants them published can do so: as they are, under ids of their own.
    let done = setup.run(&["dead-letters", "replay", "--invalid", "--as-is", "--json"]);
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("replayed"), status.count("published")), (6, 16));
    let delivered = setup.delivered();
    for signed in &probes {
        let message = delivered.iter().find(|message| message.body == signed.body);
        let message = message.unwrap_or_else(|| panic!("not published: {}", signed.body.escape_ascii()));
        let expected = if signed.body.is_empty() { "application/octet-stream" } else { "application/json" };
        assert_eq!((message.id.as_str(), message.headers["ce_type"].as_str()), (&signed.signature[..32], UNKNOWN));
        assert_eq!(message.headers["content-type"], expected, "{}", signed.body.escape_ascii());
        assert_eq!(message.headers["x-authorization-hmac-256"], signed.signature);
    }
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn explains_what_the_daemon_does_with_every_known_payload() {
    let setup = Setup::on_files();
    let daemon = setup.start();
    let (events, probes) = known_payloads(SECRET, SEED, EVENTS);
    send_events(&daemon, &events);
    daemon.wait_until_empty();
    let delivered = setup.delivered();
    let by_body: HashMap<&[u8], &Delivered> =
        delivered.iter().map(|message| (message.body.as_slice(), message)).collect();
    let signed: Vec<&Signed> = events.iter().map(|event| &event.signed).chain(&probes).collect();
    let files: Vec<String> = (0..signed.len()).map(|number| format!("body-{number}")).collect();
    for (file, signed) in files.iter().zip(&signed) {
        fs::write(setup.directory().join(file), &signed.body).expect("the directory can be written");
    }
    let run = |arguments: &[&str]| Program::new(arguments).within(setup.directory()).run();
    let fixed = ["--config", "config.toml", "explain", "--json"];
    let ended = run(&fixed.into_iter().chain(files.iter().map(String::as_str)).collect::<Vec<_>>());
    ended.assert_code(0);
    let lines: Vec<Value> = ended.out.lines().map(|line| serde_json::from_str(line).expect("it is JSON")).collect();
    assert_eq!(lines.len(), signed.len());
    for (explained, signed) in lines.iter().zip(&signed) {
        assert_eq!(explained["signature"], signed.signature.as_str());
        assert_eq!((&explained["status"], &explained["secret"]), (&json!(200), &json!("default")), "{explained}");
        let Some(message) = by_body.get(signed.body.as_slice()) else {
            assert_eq!(
                (&explained["answer"], &explained["kept"]),
                (&json!("probe"), &json!("probe")),
                "{explained}"
            );
            continue;
        };
        assert_eq!(explained["answer"], "accepted", "{explained}");
        assert_eq!((&explained["id"], &explained["address"]), (&json!(message.id), &json!(message.address)));
        let without_time = |headers: &mut serde_json::Map<String, Value>| headers.remove("ce_time").is_some();
        let mut published = json!(message.headers);
        let mut headers = explained["headers"].clone();
        for headers in [&mut published, &mut headers] {
            assert!(without_time(headers.as_object_mut().expect("headers are an object")));
        }
        assert_eq!(headers, published);
    }
    // What is refused, and where it would go.
    fs::write(setup.directory().join("broken"), "{").expect("the directory can be written");
    let ended = run(&["--config", "config.toml", "explain", "broken"]);
    ended.assert_code(1);
    assert!(
        ended.out.contains("answer      400 malformed: not JSON: ") && ended.out.contains("kept as malformed"),
        "{}",
        ended.out
    );
    let ended = run(&["--config", "config.toml", "explain", "--signature", "00", "body-0"]);
    ended.assert_code(1);
    assert!(
        ended.out.contains("answer      401 signature: ") && ended.out.contains("and not kept"),
        "{}",
        ended.out
    );
    assert_eq!(daemon.status().count("received"), 500, "the daemon is not asked");
}

/// A broker with default limits: the shared ones of other tests have lower ones, which the longest body exceeds.
fn publishes_every_known_payload_once<R: Rig>(rig: &R) {
    let daemon = Setup::new(&rig.table()).start();
    let events = known();
    send_events(&daemon, &events);
    let status = daemon.wait_until_empty();
    assert_books_balance(&status);
    assert_eq!((status.count("published"), status.count("dead_lettered")), (500, 0));
    arrive_once(&events, &rig.read(500), &R::BINDING);
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn publishes_every_known_payload_to_kafka_once() {
    publishes_every_known_payload_once(&Kafka::new("every_known_payload_to_kafka"));
}

#[test]
fn publishes_every_known_payload_to_rabbitmq_once() {
    publishes_every_known_payload_once(&Rabbitmq::private("every_known_payload_to_rabbitmq"));
}

#[test]
fn publishes_every_known_payload_to_nats_once() {
    publishes_every_known_payload_once(&Nats::private("every_known_payload_to_nats"));
}
