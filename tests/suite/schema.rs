//! The documents in `docs/schema/` against the bridge: it accepts what a payload's schema accepts, and the headers of a
//! message are those of the document. The documents themselves are checked by `tests/lint.sh`.

use std::collections::BTreeSet;

use crate::conformance::kafka::Kafka;
use crate::conformance::nats::Nats;
use crate::conformance::rabbitmq::Rabbitmq;
use crate::conformance::rig::Rig;
use crate::support::{
    Bridge, Client, PATH, Payload, SECRET, Setup, UNICODE, documented_headers, fit_the_schema, request_once, said,
    sign,
};

const GOOD: &str = r#"{"cuid":"c","actorCuid":"a","event":"E","targetCuid":"t","targetType":"report","text":"x"}"#;

/// The decisions of `strict` and `lenient` about a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The documented payload: an event for both.
    Documented,
    /// An event for `lenient` alone.
    Deviating,
    /// An event for neither.
    Probe,
}

use Verdict::{Deviating, Documented, Probe};

/// Parts of `GOOD`, and their replacements.
const CHANGES: [(Verdict, &str, &str); 56] = [
    (Documented, r#""cuid":"c""#, r#""cuid":"""#),
    (Documented, r#""actorCuid":"a""#, r#""actorCuid":"""#),
    (Documented, r#""event":"E""#, r#""event":"On Report Creation/Edit""#),
    (Documented, r#""targetType":"report""#, r#""targetType":"""#),
    (Documented, r#""text":"x""#, r#""text":"""#),
    (Documented, r#""text":"x""#, r#""text":"x","clientId":4012,"reportId":500123,"findingId":1,"assessmentId":2"#),
    (
        Documented,
        r#""text":"x""#,
        r#""text":"x","clientId":"4012","reportId":"","findingId":-1.5e3,"flawId":"a text""#,
    ),
    (
        Documented,
        r#""text":"x""#,
        r#""text":"x","clientId":null,"reportId":null,"findingId":null,"assessmentId":null"#,
    ),
    (Documented, r#""text":"x""#, r#""text":"x","flawId":null,"further":[{"cuid":5}]"#),
    (Documented, r#""targetCuid":"t""#, r#""targetCuid":"""#),
    (Documented, r#""targetCuid":"t""#, r#""targetCuids":["t","u"]"#),
    (Documented, r#""targetCuid":"t""#, r#""targetCuids":["t",""]"#),
    (Documented, r#""targetCuid":"t""#, r#""targetCuids":[]"#),
    (Documented, r#""targetCuid":"t""#, r#""targetCuid":"t","targetCuids":null"#),
    (Documented, r#""targetCuid":"t""#, r#""targetCuid":null,"targetCuids":["t"]"#),
    (Deviating, r#""cuid":"c","#, ""),
    (Deviating, r#""actorCuid":"a","#, ""),
    (Deviating, r#""event":"E","#, ""),
    (Deviating, r#""targetCuid":"t","#, ""),
    (Deviating, r#""targetType":"report","#, ""),
    (Deviating, r#","text":"x""#, ""),
    (Deviating, r#""cuid":"c""#, r#""cuid":null"#),
    (Deviating, r#""cuid":"c""#, r#""cuid":7"#),
    (Deviating, r#""actorCuid":"a""#, r#""actorCuid":{}"#),
    (Deviating, r#""actorCuid":"a""#, r#""actorCuid":null"#),
    (Deviating, r#""event":"E""#, r#""event":"""#),
    (Deviating, r#""event":"E""#, r#""event":null"#),
    (Deviating, r#""event":"E""#, r#""event":["E"]"#),
    (Deviating, r#""targetType":"report""#, r#""targetType":true"#),
    (Deviating, r#""targetType":"report""#, r#""targetType":null"#),
    (Deviating, r#""text":"x""#, r#""text":null"#),
    (Deviating, r#""text":"x""#, r#""text":1"#),
    (Deviating, r#""text":"x""#, r#""text":"x","clientId":{}"#),
    (Deviating, r#""text":"x""#, r#""text":"x","reportId":[1]"#),
    (Deviating, r#""text":"x""#, r#""text":"x","findingId":true"#),
    (Deviating, r#""text":"x""#, r#""text":"x","flawId":{}"#),
    (Deviating, r#""text":"x""#, r#""text":"x","assessmentId":false"#),
    (Deviating, r#""targetCuid":"t""#, r#""targetCuid":["t"]"#),
    (Deviating, r#""targetCuid":"t""#, r#""targetCuid":null"#),
    (Deviating, r#""targetCuid":"t""#, r#""targetCuid":null,"targetCuids":null"#),
    (Deviating, r#""targetCuid":"t""#, r#""targetCuid":5,"targetCuids":null"#),
    (Deviating, r#""targetCuid":"t""#, r#""targetCuid":"t","targetCuids":["t"]"#),
    (Deviating, r#""targetCuid":"t""#, r#""targetCuid":"t","targetCuids":7"#),
    (Deviating, r#""targetCuid":"t""#, r#""targetCuids":"t""#),
    (Deviating, r#""targetCuid":"t""#, r#""targetCuids":["t",7]"#),
    (Deviating, r#""targetCuid":"t""#, r#""targetCuids":[null]"#),
    (Deviating, GOOD, r#"{"clientId":7,"reportId":"12","findingId":345}"#),
    (Deviating, GOOD, r#"{"flawId":null}"#),
    (Deviating, GOOD, r#"{"":0}"#),
    (Deviating, GOOD, r#"{"Event":"E"}"#),
    (Probe, GOOD, "{}"),
    (Probe, GOOD, "[]"),
    (Probe, GOOD, "[{\"event\":\"E\"}]"),
    (Probe, GOOD, "null"),
    (Probe, GOOD, "5"),
    (Probe, GOOD, "\"x\""),
];

/// Compares what a schema accepts with what a source with this validation publishes.
fn takes_what_the_bridge_takes(schema: &str, validation: &str, is_event: impl Fn(Verdict) -> bool) {
    let bridge = Bridge::start(|setup| setup.takes_repeats().text("sources.plextrac.validation", validation));
    let unicode = UNICODE.map(|text| {
        let body = Payload { text: text.to_owned(), target: text.to_owned(), ..Payload::new("c") }.body();
        (Documented, String::from_utf8(body).expect("the payload is text"))
    });
    let changed = CHANGES.map(|(verdict, from, to)| {
        assert!(GOOD.contains(from), "{from}");
        (verdict, GOOD.replace(from, to))
    });
    let cases: Vec<(Verdict, String)> = changed.into_iter().chain(unicode).collect();
    let bodies: Vec<&str> = cases.iter().map(|(_, body)| body.as_str()).collect();
    let fits = fit_the_schema(schema, &bodies);
    let (fits, examples) = fits.split_at(bodies.len());
    for ((verdict, body), fits) in cases.iter().zip(fits) {
        let answer = request_once(&bridge.daemon, body.as_bytes(), &[]);
        let (status, text) = (answer.status, answer.text());
        assert_eq!(*fits, is_event(*verdict), "the schema: {body}");
        match verdict {
            Probe => assert_eq!((status, text.as_str()), (200, r#"{"status":"probe"}"#), "{body}"),
            _ if *fits => assert_eq!((status, text.as_str()), (200, r#"{"status":"accepted"}"#), "{body}"),
            _ => assert_eq!(status, 422, "{body}: {text}"),
        }
    }
    assert!(examples.len() >= 2 && examples.iter().all(|fits| *fits), "an example of its own does not fit");
}

#[test]
fn the_schema_of_the_payload_takes_what_lenient_publishes() {
    takes_what_the_bridge_takes("payload", "lenient", |verdict| verdict != Probe);
}

#[test]
fn the_schema_of_the_documented_payload_takes_what_strict_publishes() {
    takes_what_the_bridge_takes("documented-payload", "strict", |verdict| verdict == Documented);
}

/// The bodies that `send` sends with these arguments, as they arrive.
fn samples(arguments: &[&str]) -> Vec<String> {
    let setup = Setup::on_files();
    let daemon = setup.start();
    let url = format!("http://{}{}", daemon.ingress, PATH);
    let done = setup.run(&[&["send"], arguments, &[url.as_str()]].concat());
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));
    daemon.wait_until_empty();
    let text = |body| String::from_utf8(body).expect("JSON is text");
    setup.delivered().into_iter().map(|message| text(message.body)).collect()
}

#[test]
fn the_samples_of_the_program_fit_the_schemas_of_the_payload() {
    let usual = samples(&["--count", "10"]);
    let bodies: Vec<&str> = usual.iter().map(String::as_str).collect();
    assert_eq!(bodies.len(), 10);
    assert!(fit_the_schema("documented-payload", &bodies).iter().all(|fits| *fits), "{bodies:?}");
    let all = samples(&["--sample", "all"]);
    let bodies: Vec<&str> = all.iter().map(String::as_str).collect();
    assert_eq!(bodies.len(), 18);
    assert!(fit_the_schema("payload", &bodies).iter().all(|fits| *fits), "{bodies:?}");
    let documented = fit_the_schema("documented-payload", &bodies);
    // Five events and a bulk change; the schema's own examples follow.
    assert_eq!(documented[..18].iter().filter(|fits| **fits).count(), 6, "{bodies:?}");
}

/// All documented headers of a full event but the deviations, and of the least event that `lenient` takes only those that
/// every message has, and its deviations.
fn says_which_headers_a_message_has<R: Rig>(test: &str, broker: &str) {
    let rig = R::new(test);
    let daemon =
        Setup::new(&rig.table()).text("sources.open.path", "/open").raw("sources.open.unsigned", "true").start();
    let trace = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let full = Payload::new("full").body();
    assert_eq!(request_once(&daemon, &full, &[trace]).status, 200);
    let least = br#"{"event":"Least"}"#;
    let answer = Client::connect(&daemon.ingress)
        .and_then(|mut client| client.send("POST", "/open", &[], least))
        .expect("the daemon answers");
    assert_eq!(answer.status, 200, "{}", answer.text());
    daemon.wait_until_empty();
    let delivered = rig.read(2);
    assert_eq!(delivered.len(), 2);
    let documented = documented_headers(broker);
    for message in delivered {
        let mut names: BTreeSet<&str> = message.headers.keys().map(String::as_str).collect();
        if broker == "rabbitmq" {
            names.remove("content-type"); // a property, which the reader of the tests shows as a header
        }
        let is_full = message.body == full;
        let has = |name: &str, always: bool| match name {
            "x-plextrac-deviations" => !is_full,
            _ => is_full || always,
        };
        let expected =
            documented.iter().filter(|(name, always)| has(name, **always)).map(|(name, _)| name.as_str());
        assert_eq!(names, expected.collect(), "{}", String::from_utf8_lossy(&message.body));
        if is_full {
            assert_eq!(message.headers["x-authorization-hmac-256"], sign(SECRET, &full));
        }
    }
}

#[test]
fn the_document_says_which_headers_come_from_kafka() {
    says_which_headers_a_message_has::<Kafka>("headers_come_from_kafka", "kafka");
}

#[test]
fn the_document_says_which_headers_come_from_rabbitmq() {
    says_which_headers_a_message_has::<Rabbitmq>("headers_come_from_rabbitmq", "rabbitmq");
}

#[test]
fn the_document_says_which_headers_come_from_nats() {
    says_which_headers_a_message_has::<Nats>("headers_come_from_nats", "nats");
}
