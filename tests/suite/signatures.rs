//! Signatures of another implementation: Node's `crypto` over `JSON.stringify`, as the sender has it.

use serde_json::{Value, json};

use crate::support::{Bridge, PATH, SECRET, Setup, UNICODE, node_signs, sign};

fn payload(cuid: &str, text: impl Into<Value>) -> Value {
    json!({
        "cuid": cuid,
        "actorCuid": "actor",
        "event": "ReportPublished",
        "targetCuid": "target",
        "targetType": "report",
        "text": text.into(),
    })
}

/// A string of UTF-16 code units, which JSON itself cannot carry if one is a lone surrogate.
fn units(units: &[u16]) -> Value {
    json!({ "$unit": units })
}

/// Sends the bodies that Node signed; all are accepted and published byte for byte, under Node's signature.
#[track_caller]
fn accepts(secret: &str, payloads: &[Value], change: impl FnOnce(Setup) -> Setup) {
    let bridge = Bridge::start(change);
    let all = node_signs(secret, payloads);
    let mut client = bridge.connect();
    for signed in &all {
        let shown = signed.body.escape_ascii().to_string();
        let shown = &shown[..shown.len().min(300)];
        assert_eq!(sign(secret, &signed.body), signed.signature, "the suite's own signature of {shown}");
        let headers =
            [("X-Authorization-HMAC-256", signed.signature.as_str()), ("Content-Type", "application/json")];
        let answer = client.send("POST", PATH, &headers, &signed.body).expect("the daemon answers");
        assert_eq!(answer.status, 200, "{}: {shown}", answer.text());
        assert_eq!(answer.text(), r#"{"status":"accepted"}"#, "{shown}");
        bridge.accepted(&signed.body);
    }
    bridge.check();
    for line in bridge.arrived() {
        let header = &line.headers["x-authorization-hmac-256"];
        assert_eq!(*header, sign(secret, &line.body), "the signature beside the body of {}", line.id);
        assert!(
            line.id.ends_with(&format!("-{}", &header[..12])),
            "the id {} ends in the signature {header}",
            line.id
        );
    }
    bridge.stop();
}

#[test]
fn accepts_every_kind_of_text() {
    let mut payloads: Vec<Value> =
        UNICODE.iter().enumerate().map(|(at, text)| payload(&format!("unicode-{at}"), *text)).collect();
    let all: String = UNICODE.concat();
    payloads.push(payload("all", all));
    accepts(SECRET, &payloads, |setup| setup);
}

#[test]
fn accepts_every_code_unit_that_json_stringify_writes() {
    // Each block of 4096 code units at once; Node writes lone surrogates as \\udXXX.
    let blocks = (0..16u16).map(|block| {
        let all: Vec<u16> = (0..4096).map(|at| block * 4096 + at).collect();
        payload(&format!("block-{block:x}"), units(&all))
    });
    accepts(SECRET, &blocks.collect::<Vec<_>>(), |setup| setup);
}

#[test]
fn accepts_lone_surrogates_in_the_text() {
    let texts: [&[u16]; 6] = [
        &[0xd800],
        &[0xdfff],
        &[0x61, 0xd83d],
        &[0xdc00, 0xd800],
        &[0xd83d, 0xde00, 0xd83d],
        &[0xd800, 0xd800, 0xdc00, 0xdc00],
    ];
    let payloads: Vec<Value> =
        texts.iter().enumerate().map(|(at, text)| payload(&format!("lone-{at}"), units(text))).collect();
    accepts(SECRET, &payloads, |setup| setup);
}

#[test]
fn accepts_texts_of_200_kb_in_every_width_of_utf8() {
    let repeated = [
        ("one", "x", 200_000),
        ("two", "é", 100_000),
        ("three", "語", 66_000),
        ("four", "😀", 50_000),
        ("escaped", "\"", 100_000),
    ];
    let payloads: Vec<Value> =
        repeated.iter().map(|(cuid, text, times)| payload(cuid, json!({ "$repeat": [text, times] }))).collect();
    accepts(SECRET, &payloads, |setup| setup);
}

#[test]
fn accepts_odd_values_in_every_documented_field() {
    let mut payloads = Vec::new();
    for (at, text) in UNICODE.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
        let mut payload = payload(&format!("field-{at}-{text}"), "");
        for field in ["actorCuid", "event", "targetCuid", "targetType"] {
            payload[field] = json!(text);
        }
        payloads.push(payload);
    }
    let mut several = payload("several", "");
    several.as_object_mut().expect("a payload is an object").remove("targetCuid");
    several["targetCuids"] = json!(["first", "", "😀"]);
    payloads.push(several);
    let mut more = payload("more", "");
    more["clientId"] = json!(4711);
    more["reportId"] = json!(0.1);
    more["x"] = json!({ "nested": [null, true, 1e21, -0.0, "\u{2028}"] });
    payloads.push(more);
    accepts(SECRET, &payloads, |setup| setup);
}

#[test]
fn accepts_the_signatures_of_odd_secrets() {
    let long = "0123456789".repeat(20);
    for secret in ["12345678901234567890", "pä$$wörd 😀 \\ \"'", " outer blanks ", "true", long.as_str()] {
        accepts(secret, &[payload("odd", "ü")], |setup| setup.text("sources.plextrac.secret", secret));
    }
}
