//! The documents in `docs/schema/` against the bridge: what the payload's schema takes, `strict` takes, and the headers
//! of a message are those of the document. What the documents are by themselves, `tests/lint.sh` checks.

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

/// Parts of `GOOD`, and what stands there instead in a payload that is as good, or is not.
const CHANGES: [(bool, &str, &str); 29] = [
    (true, r#""cuid":"c""#, r#""cuid":"""#),
    (true, r#""actorCuid":"a""#, r#""actorCuid":"""#),
    (true, r#""event":"E""#, r#""event":"On Report Creation/Edit""#),
    (true, r#""targetType":"report""#, r#""targetType":"""#),
    (true, r#""text":"x""#, r#""text":"""#),
    (true, r#""text":"x""#, r#""text":"x","clientId":4012,"reportId":500123,"findingId":1,"assessmentId":2"#),
    (true, r#""text":"x""#, r#""text":"x","clientId":"a text","further":[{"cuid":5}]"#),
    (true, r#""targetCuid":"t""#, r#""targetCuid":"""#),
    (true, r#""targetCuid":"t""#, r#""targetCuids":["t","u"]"#),
    (true, r#""targetCuid":"t""#, r#""targetCuids":[]"#),
    (false, r#""cuid":"c","#, ""),
    (false, r#""actorCuid":"a","#, ""),
    (false, r#""event":"E","#, ""),
    (false, r#""targetCuid":"t","#, ""),
    (false, r#""targetType":"report","#, ""),
    (false, r#","text":"x""#, ""),
    (false, r#""cuid":"c""#, r#""cuid":null"#),
    (false, r#""cuid":"c""#, r#""cuid":7"#),
    (false, r#""actorCuid":"a""#, r#""actorCuid":{}"#),
    (false, r#""event":"E""#, r#""event":"""#),
    (false, r#""event":"E""#, r#""event":["E"]"#),
    (false, r#""targetType":"report""#, r#""targetType":true"#),
    (false, r#""text":"x""#, r#""text":null"#),
    (false, r#""text":"x""#, r#""text":1"#),
    (false, r#""targetCuid":"t""#, r#""targetCuid":["t"]"#),
    (false, r#""targetCuid":"t""#, r#""targetCuid":"t","targetCuids":["t"]"#),
    (false, r#""targetCuid":"t""#, r#""targetCuids":"t""#),
    (false, r#""targetCuid":"t""#, r#""targetCuids":["t",7]"#),
    (false, r#""targetCuid":"t""#, r#""targetCuids":[null]"#),
];

#[test]
fn the_schema_of_the_payload_takes_what_the_bridge_takes() {
    let bridge = Bridge::start(|setup| setup.takes_repeats().strict());
    let unicode = UNICODE.map(|text| {
        let body = Payload { text: text.to_owned(), target: text.to_owned(), ..Payload::new("c") }.body();
        (true, String::from_utf8(body).expect("the payload is text"))
    });
    let changed = CHANGES.map(|(good, from, to)| {
        assert!(GOOD.contains(from), "{from}");
        (good, GOOD.replace(from, to))
    });
    let cases: Vec<(bool, String)> = changed.into_iter().chain(unicode).collect();
    let bodies: Vec<&str> = cases.iter().map(|(_, body)| body.as_str()).collect();
    let fits = fit_the_schema(&bodies);
    let (fits, examples) = fits.split_at(bodies.len());
    for ((good, body), fits) in cases.iter().zip(fits) {
        let status = request_once(&bridge.daemon, body.as_bytes(), &[]).status;
        let expected = if *good { (true, 200) } else { (false, 422) };
        assert_eq!((*fits, status), expected, "schema and bridge: {body}");
    }
    assert!(examples.len() >= 2 && examples.iter().all(|fits| *fits), "an example of its own does not fit");
}

#[test]
fn the_samples_of_the_program_fit_the_schema_of_the_payload() {
    let setup = Setup::on_files();
    let daemon = setup.start();
    let url = format!("http://{}{}", daemon.ingress, PATH);
    let done = setup.run(&["send", "--count", "4", &url]);
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));
    daemon.wait_until_empty();
    let delivered = setup.delivered();
    let bodies: Vec<&str> =
        delivered.iter().map(|message| std::str::from_utf8(&message.body).expect("JSON is text")).collect();
    assert_eq!(bodies.len(), 4);
    assert!(fit_the_schema(&bodies).iter().all(|fits| *fits), "{bodies:?}");
}

/// All documented headers of a full event, and only the required ones of the least event that `lenient` takes.
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
        let all = message.body == full;
        let expected = documented.iter().filter(|(_, always)| all || **always).map(|(name, _)| name.as_str());
        let mut expected: BTreeSet<&str> = expected.collect();
        // The full event is the documented one, the least departs from it.
        let deviations = "x-plextrac-deviations";
        if all {
            expected.remove(deviations)
        } else {
            expected.insert(deviations)
        };
        assert_eq!(names, expected, "{}", String::from_utf8_lossy(&message.body));
        if all {
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
