//! The consumers in `examples/`: each prints the events that the bridge published, once, whatever a genuine body
//! contains, and nothing that is not genuine.
//!
//! Their dependencies are installed, and the one in Go is built, by `tests/setup.sh`.
//!
//! Length: three examples, each with the same four cases.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use crate::conformance::kafka::Kafka;
use crate::conformance::nats::Nats;
use crate::conformance::rabbitmq::Rabbitmq;
use crate::conformance::rig::{Named, Remote};
use crate::support::{
    Consumer, Daemon, Payload, Program, SECRET, Setup, admin, cache, interpreter, request_once, sign,
};

/// A broker that an example consumes from.
trait Example: Remote + Named {
    /// The example, with this place as its argument.
    fn consumer(&self) -> Program;

    /// Publishes as anyone with write access to the broker could: to the address of `Payload::new`.
    fn publish(&self, headers: &BTreeMap<String, String>, body: &[u8]);
}

fn example(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples").join(path)
}

impl Example for Kafka {
    fn consumer(&self) -> Program {
        Program::other(interpreter(), [example("python-kafka/consumer.py")])
            .variable("KAFKA_BOOTSTRAP_SERVERS", self.broker().fact("KAFKA_BOOTSTRAP"))
            .variable("KAFKA_TOPIC", self.name())
            .variable("KAFKA_GROUP", self.name())
    }

    fn publish(&self, headers: &BTreeMap<String, String>, body: &[u8]) {
        admin(&json!({
            "broker": "kafka", "do": "publish",
            "bootstrap": self.broker().fact("KAFKA_SSL_BOOTSTRAP"), "ca": self.broker().fact("KAFKA_CA"),
            "topic": self.name(), "key": "target-0", "headers": headers, "body": BASE64_STANDARD.encode(body),
        }));
    }
}

impl Example for Rabbitmq {
    fn consumer(&self) -> Program {
        Program::other("node", [example("node-rabbitmq/consumer.js")])
            .variable("NODE_PATH", cache().join("node/node-rabbitmq/node_modules"))
            .variable("RABBITMQ_URI", self.broker().fact("RABBITMQ_URL"))
            .variable("RABBITMQ_QUEUE", self.name())
    }

    fn publish(&self, headers: &BTreeMap<String, String>, body: &[u8]) {
        admin(&json!({
            "broker": "rabbitmq", "do": "publish", "url": self.broker().fact("RABBITMQ_URL"),
            "exchange": self.name(), "key": "ReportPublished.report",
            "headers": headers, "body": BASE64_STANDARD.encode(body),
        }));
    }
}

impl Example for Nats {
    fn consumer(&self) -> Program {
        Program::other(cache().join("go/consumer"), [""; 0])
            .variable("NATS_URL", self.broker().fact("NATS_URL"))
            .variable("NATS_STREAM", self.name())
            .variable("NATS_CONSUMER", self.name())
    }

    /// Without the server's own id: as after its duplicate window.
    fn publish(&self, headers: &BTreeMap<String, String>, body: &[u8]) {
        admin(&json!({
            "broker": "nats", "do": "publish", "url": self.broker().fact("NATS_URL"), "stream": self.name(),
            "subject": format!("{}.ReportPublished.report", self.name()),
            "headers": headers, "body": BASE64_STANDARD.encode(body),
        }));
    }
}

/// An event with names and a text that show whether they are read as they were written.
fn payload(number: usize) -> Payload {
    let mut payload = Payload::new(format!("cuid-{number}"));
    if number % 2 == 1 {
        payload.event = format!("Bericht veröffentlicht: 100% / {number}");
    }
    payload.text = format!("Grüße||\"Report\" {number}");
    payload
}

fn id(payload: &Payload) -> String {
    format!("{}-{}", payload.cuid, &sign(SECRET, &payload.body())[..12])
}

/// The output of an example for an event.
fn line(payload: &Payload) -> String {
    let Payload { event, target_type, target, text, .. } = payload;
    format!("event {} com.plextrac.{event} {target_type}/{target} {}", id(payload), json!(text))
}

fn accept(daemon: &Daemon, payload: &Payload) {
    let answer = request_once(daemon, &payload.body(), &[]);
    assert_eq!((answer.status, answer.text().as_str()), (200, r#"{"status":"accepted"}"#));
}

/// The bridge's headers for this event.
fn headers<R: Example>(payload: &Payload) -> BTreeMap<String, String> {
    let attributes = [
        ("specversion", "1.0".to_owned()),
        ("id", id(payload)),
        ("source", "/plextrac/plextrac".to_owned()),
        ("type", format!("com.plextrac.{}", payload.event)),
        ("subject", format!("{}/{}", payload.target_type, payload.target)),
        ("time", "2026-11-22T09:30:00.125Z".to_owned()),
    ];
    let named = attributes.map(|(name, value)| (format!("{}{name}", R::BINDING.prefix), value));
    let others = [
        ("content-type".to_owned(), "application/json".to_owned()),
        ("x-authorization-hmac-256".to_owned(), sign(SECRET, &payload.body())),
    ];
    named.into_iter().chain(others).collect()
}

fn prints_what_is_genuine_once<R: Example>(test: &str) {
    let rig = R::new(test);
    let daemon = Setup::new(&rig.table()).start();
    let events: Vec<Payload> = (0..5).map(payload).collect();
    events[..3].iter().for_each(|event| accept(&daemon, event));
    daemon.wait_until_empty();
    let start = || Consumer::start(rig.consumer().variable("SECRET", SECRET));

    let consumer = start();
    consumer.wait_for_events(3);
    // Events are in order per key, and all of these have one: what comes after them is printed after them.
    let repeat = &events[0];
    rig.publish(&headers::<R>(repeat), &repeat.body());
    // The same id, of another source: no repeat.
    let mut other = headers::<R>(repeat);
    other.insert(format!("{}source", R::BINDING.prefix), "/plextrac/second".to_owned());
    rig.publish(&other, &repeat.body());
    let forged = Payload { text: "another text".to_owned(), ..payload(8) };
    rig.publish(&headers::<R>(&payload(8)), &forged.body());
    let mut stranger = headers::<R>(&forged);
    stranger.insert("x-authorization-hmac-256".to_owned(), sign("the secret of a stranger", &forged.body()));
    rig.publish(&stranger, &forged.body());
    stranger.remove("x-authorization-hmac-256");
    rig.publish(&stranger, &forged.body());
    // Genuine, but no event: the headers are not signed.
    let mut undescribed = headers::<R>(&payload(9));
    undescribed.remove(&format!("{}source", R::BINDING.prefix));
    rig.publish(&undescribed, &payload(9).body());
    accept(&daemon, &events[3]);
    consumer.wait_for_events(5);
    let ended = consumer.stop();
    ended.assert_code(0);
    let expected = events[..3].iter().chain([repeat, &events[3]]).map(line).collect::<Vec<_>>();
    assert_eq!(ended.out.lines().collect::<Vec<_>>(), expected);
    let told = |word: &str| ended.err.lines().filter(|line| line.starts_with(word)).count();
    assert_eq!(told(&format!("repeat {}", id(repeat))), 1, "{}", ended.err);
    assert_eq!((told("repeat "), told("refused ")), (1, 4), "{}", ended.err);
    let signature = ended.err.lines().filter(|line| line.ends_with("the signature does not belong to the body"));
    assert_eq!(signature.count(), 3, "{}", ended.err);

    // All of that was acknowledged: nothing of it is delivered again.
    let consumer = start();
    accept(&daemon, &events[4]);
    consumer.wait_for_events(1);
    let ended = consumer.stop();
    ended.assert_code(0);
    assert_eq!(ended.out.trim_end(), line(&events[4]));
    assert!(
        !ended.err.lines().any(|line| line.starts_with("repeat ") || line.starts_with("refused ")),
        "{}",
        ended.err
    );
}

/// A genuine body that is not the documented payload, and the output of an example behind the id.
struct Unusual {
    body: &'static [u8],
    printed: &'static str,
    /// The bridge's deviations; empty for a body that is not an event, which an operator replays as it is.
    deviations: &'static str,
}

const fn unusual(body: &'static [u8], printed: &'static str, deviations: &'static str) -> Unusual {
    Unusual { body, printed, deviations }
}

const UNUSUAL: [Unusual; 9] = [
    unusual(
        br#"{"cuid":"c1","event":"FindingPublished","targetType":"finding","actorCuid":"a","targetCuid":"t"}"#,
        "com.plextrac.FindingPublished finding/t null",
        "text:missing",
    ),
    unusual(
        br#"{"cuid":"c2","event":"ReportPublished","targetType":"report","actorCuid":null,"targetCuid":null,"targetCuids":["r1"],"text":null}"#,
        "com.plextrac.ReportPublished report/r1 null",
        "actorCuid:null,targetCuid:null,text:null",
    ),
    unusual(
        br#"{"clientId":7,"reportId":"12","findingId":null}"#,
        "com.plextrac.unknown - null",
        "cuid:missing,actorCuid:missing,event:missing,targetCuid:missing,targetType:missing,text:missing,findingId:null",
    ),
    unusual(
        br#"{"event":"ReportPublished","targetType":"report","text":{"a":[1]}}"#,
        r#"com.plextrac.ReportPublished report/ {"a":[1]}"#,
        "cuid:missing,actorCuid:missing,targetCuid:missing,text:type",
    ),
    unusual(
        br#"{"cuid":"c3","event":"ReportPublished","targetType":"report","actorCuid":"a","targetCuid":"t","text":"\ud800"}"#,
        r#"com.plextrac.ReportPublished report/t "\ud800""#,
        "",
    ),
    unusual(b"[{\"text\":1}]", "com.plextrac.unknown - null", ""),
    unusual(b"null", "com.plextrac.unknown - null", ""),
    unusual(b"", "com.plextrac.unknown - null", ""),
    unusual(b"\xff\x00 not JSON", "com.plextrac.unknown - null", ""),
];

impl Unusual {
    fn id(&self) -> String {
        let signature = sign(SECRET, self.body);
        let payload: serde_json::Value = serde_json::from_slice(self.body).unwrap_or_default();
        match payload["cuid"].as_str() {
            Some(cuid) => format!("{cuid}-{}", &signature[..12]),
            // A lone surrogate cannot be in a Rust string.
            None if self.body.starts_with(b"{\"cuid\":\"c3\"") => format!("c3-{}", &signature[..12]),
            None => signature[..32].to_owned(),
        }
    }

    fn line(&self) -> String {
        format!("event {} {}", self.id(), self.printed)
    }

    /// The bridge's headers for this body.
    fn headers<R: Example>(&self) -> BTreeMap<String, String> {
        let (event_type, rest) = self.printed.split_once(' ').expect("a type, a subject and a text");
        let subject = rest.split(' ').next().filter(|subject| *subject != "-");
        let prefix = R::BINDING.prefix;
        let mut headers = BTreeMap::from([
            (format!("{prefix}specversion"), "1.0".to_owned()),
            (format!("{prefix}id"), self.id()),
            (format!("{prefix}source"), "/plextrac/plextrac".to_owned()),
            (format!("{prefix}type"), event_type.to_owned()),
            (format!("{prefix}time"), "2026-11-22T09:30:00.125Z".to_owned()),
            ("x-authorization-hmac-256".to_owned(), sign(SECRET, self.body)),
        ]);
        let is_json = matches!(self.body.first(), Some(b'{' | b'[' | b'n'));
        let content_type = if is_json { "application/json" } else { "application/octet-stream" };
        headers.insert("content-type".to_owned(), content_type.to_owned());
        headers.extend(subject.map(|subject| (format!("{prefix}subject"), subject.to_owned())));
        if !self.deviations.is_empty() {
            headers.insert("x-plextrac-deviations".to_owned(), self.deviations.to_owned());
        }
        headers
    }
}

/// Checks that any body, as the bridge publishes it, is printed and acknowledged, and the consumer continues.
fn prints_what_is_unusual_and_goes_on<R: Example>(test: &str) {
    let rig = R::new(test);
    let daemon = Setup::new(&rig.table()).start();
    accept(&daemon, &payload(0));
    daemon.wait_until_empty();
    let start = || Consumer::start(rig.consumer().variable("SECRET", SECRET));
    let consumer = start();
    for unusual in &UNUSUAL {
        rig.publish(&unusual.headers::<R>(), unusual.body);
    }
    // All in one partition, queue or stream, so they are in order.
    consumer.wait_for_events(1 + UNUSUAL.len());
    let ended = consumer.stop();
    ended.assert_code(0);
    let expected: Vec<String> = [line(&payload(0))].into_iter().chain(UNUSUAL.iter().map(Unusual::line)).collect();
    assert_eq!(ended.out.lines().collect::<Vec<_>>(), expected);
    let told: Vec<&str> = ended.err.lines().filter(|line| line.starts_with("deviates ")).collect();
    let deviating = UNUSUAL.iter().filter(|unusual| !unusual.deviations.is_empty());
    let expected: Vec<String> =
        deviating.map(|unusual| format!("deviates {} {}", unusual.id(), unusual.deviations)).collect();
    assert_eq!(told, expected, "{}", ended.err);
    assert!(!ended.err.contains("refused "), "{}", ended.err);

    let consumer = start();
    accept(&daemon, &payload(2));
    consumer.wait_for_events(1);
    let ended = consumer.stop();
    ended.assert_code(0);
    assert_eq!(ended.out.trim_end(), line(&payload(2)));
}

/// Sends the same bodies through the bridge.
fn prints_what_the_bridge_accepts<R: Example>(test: &str) {
    let rig = R::new(test);
    let daemon = Setup::new(&rig.table()).start();
    let events: Vec<&Unusual> = UNUSUAL.iter().filter(|unusual| unusual.body.starts_with(b"{")).collect();
    for event in &events {
        let answer = request_once(&daemon, event.body, &[]);
        assert_eq!((answer.status, answer.text().as_str()), (200, r#"{"status":"accepted"}"#));
    }
    daemon.wait_until_empty();
    let consumer = Consumer::start(rig.consumer().variable("SECRET", SECRET));
    consumer.wait_for_events(events.len());
    let ended = consumer.stop();
    ended.assert_code(0);
    let sorted = |mut lines: Vec<String>| {
        lines.sort();
        lines
    };
    let printed = sorted(ended.out.lines().map(str::to_owned).collect());
    assert_eq!(printed, sorted(events.iter().map(|event| event.line()).collect()));
    for event in events {
        let begin = format!("deviates {} ", event.id());
        let told = ended.err.lines().find_map(|line| line.strip_prefix(&begin)).unwrap_or_default();
        let fields = |list: &str| sorted(list.split(',').map(str::to_owned).collect());
        assert_eq!(fields(told), fields(event.deviations), "{}", ended.err);
    }
}

fn leaves_what_it_has_not_done<R: Example>(test: &str) {
    let rig = R::new(test);
    let setup = Setup::new(&rig.table());
    let secret = setup.directory().join("secret");
    fs::write(&secret, format!("{SECRET}\n")).expect("the temporary directory can be written");
    let daemon = setup.start();
    accept(&daemon, &payload(0));
    daemon.wait_until_empty();
    // Printing is its work, and it fails.
    let ended = Consumer::start_with_full_output(rig.consumer().variable("SECRET_FILE", &secret)).wait();
    assert_ne!(ended.code, Some(0), "{}", ended.err);
    assert!(!ended.err.contains("refused "), "it failed at something else: {}", ended.err);

    let consumer = Consumer::start(rig.consumer().variable("SECRET_FILE", &secret));
    consumer.wait_for_events(1);
    let ended = consumer.stop();
    ended.assert_code(0);
    assert_eq!(ended.out.trim_end(), line(&payload(0)));
}

#[test]
fn the_example_in_python_prints_what_is_genuine_once() {
    prints_what_is_genuine_once::<Kafka>("the_example_in_python");
}

#[test]
fn the_example_in_node_prints_what_is_genuine_once() {
    prints_what_is_genuine_once::<Rabbitmq>("the_example_in_node");
}

#[test]
fn the_example_in_go_prints_what_is_genuine_once() {
    prints_what_is_genuine_once::<Nats>("the_example_in_go");
}

#[test]
fn the_example_in_python_leaves_what_it_has_not_done() {
    leaves_what_it_has_not_done::<Kafka>("python_leaves_what_it_has_not_done");
}

#[test]
fn the_example_in_node_leaves_what_it_has_not_done() {
    leaves_what_it_has_not_done::<Rabbitmq>("node_leaves_what_it_has_not_done");
}

#[test]
fn the_example_in_go_leaves_what_it_has_not_done() {
    leaves_what_it_has_not_done::<Nats>("go_leaves_what_it_has_not_done");
}

#[test]
fn the_example_in_python_prints_what_is_unusual_and_goes_on() {
    prints_what_is_unusual_and_goes_on::<Kafka>("python_prints_what_is_unusual");
}

#[test]
fn the_example_in_python_prints_what_the_bridge_accepts() {
    prints_what_the_bridge_accepts::<Kafka>("python_prints_what_the_bridge_accepts");
}

#[test]
fn the_example_in_node_prints_what_is_unusual_and_goes_on() {
    prints_what_is_unusual_and_goes_on::<Rabbitmq>("node_prints_what_is_unusual");
}

#[test]
fn the_example_in_node_prints_what_the_bridge_accepts() {
    prints_what_the_bridge_accepts::<Rabbitmq>("node_prints_what_the_bridge_accepts");
}

#[test]
fn the_example_in_go_prints_what_is_unusual_and_goes_on() {
    prints_what_is_unusual_and_goes_on::<Nats>("go_prints_what_is_unusual");
}

#[test]
fn the_example_in_go_prints_what_the_bridge_accepts() {
    prints_what_the_bridge_accepts::<Nats>("go_prints_what_the_bridge_accepts");
}
