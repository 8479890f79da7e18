//! The content of a signed body: one JSON value in UTF-8, the documented payload, and its size.

use super::case::{Case, Outcome, Request, Signature, good, run_all};
use crate::support::{Bridge, Payload, Setup};

const MALFORMED: Outcome = Outcome::Refused(400, "malformed", Signature::Matched);
const INVALID: Outcome = Outcome::Refused(422, "invalid", Signature::Matched);
const TOO_LARGE: Outcome = Outcome::Refused(413, "too_large", Signature::NotSeen);

fn accepted(name: &str, body: impl AsRef<[u8]>) -> Case {
    Case::body(name, body.as_ref(), Outcome::Accepted(body.as_ref().to_vec()))
}

/// A documented payload with a part of its text replaced.
fn changed(from: &str, to: &str) -> String {
    let body = String::from_utf8(good("changed")).unwrap();
    assert!(body.contains(from), "nothing to replace in {body}: {from}");
    body.replacen(from, to, 1)
}

#[test]
fn refuses_what_is_not_one_json_value() {
    let good = good("malformed");
    let bodies: [(&str, Vec<u8>); 16] = [
        ("blanks", b" \r\n\t".to_vec()),
        ("half of it", good[..good.len() / 2].to_vec()),
        ("trailing bytes", [&good[..], b"x"].concat()),
        ("two values", [&good[..], &good[..]].concat()),
        ("a NUL behind", [&good[..], b"\0"].concat()),
        ("a byte order mark", [b"\xef\xbb\xbf", &good[..]].concat()),
        ("UTF-16", good.iter().flat_map(|byte| [0, *byte]).collect()),
        ("not UTF-8", good.iter().map(|byte| if *byte == b'|' { 0xff } else { *byte }).collect()),
        ("an encoded surrogate", b"{\"event\":\"\xed\xa0\x80\"}".to_vec()),
        ("an overlong slash", b"{\"event\":\"\xc0\xaf\"}".to_vec()),
        ("a form", b"event=x&cuid=y".to_vec()),
        ("single quotes", b"{'event':'x'}".to_vec()),
        ("a comma too many", b"{\"event\":\"x\",}".to_vec()),
        ("a control character", b"{\"event\":\"\x01\"}".to_vec()),
        ("no number", b"{\"event\":NaN}".to_vec()),
        ("a comment", b"{/* */\"event\":\"x\"}".to_vec()),
    ];
    let cases: Vec<Case> = bodies.into_iter().map(|(name, body)| Case::body(name, body, MALFORMED)).collect();
    run_all(Bridge::start(|setup| setup), &cases);
}

#[test]
fn names_the_field_that_is_not_as_documented() {
    let cases = [
        (r#"{"clientId":7,"reportId":"12","findingId":345}"#, "`cuid` is missing"),
        (r#"{"test":true}"#, "`cuid` is missing"),
        (&changed(r#""cuid":"changed","#, ""), "`cuid` is missing"),
        (&changed(r#""actorCuid":"actor-1","#, ""), "`actorCuid` is missing"),
        (&changed(r#""targetType":"report","#, ""), "`targetType` is missing"),
        (&changed(r#""text":"Client||Report","#, ""), "`text` is missing"),
        (&changed(r#""event":"ReportPublished","#, ""), "`event` is missing"),
        (&changed(r#""ReportPublished""#, r#""""#), "`event` is empty"),
        (&changed(r#""ReportPublished""#, "7"), "`event` is a number, a string is documented"),
        (&changed(r#""changed""#, "null"), "`cuid` is missing"),
        (&changed(r#""changed""#, "7"), "`cuid` is a number, a string is documented"),
        (&changed(r#""actor-1""#, "true"), "`actorCuid` is true or false, a string is documented"),
        (&changed(r#""report""#, "[]"), "`targetType` is a list, a string is documented"),
        (&changed(r#""Client||Report""#, "{}"), "`text` is an object, a string is documented"),
        (
            &changed(r#""targetCuid":"target-0","#, ""),
            "neither `targetCuid` nor `targetCuids` is given; exactly one is documented",
        ),
        (
            &changed(r#""targetCuid":"target-0""#, r#""targetCuid":null,"targetCuids":null"#),
            "neither `targetCuid` nor `targetCuids` is given; exactly one is documented",
        ),
        (
            &changed(r#""targetCuid":"target-0","#, r#""targetCuid":"a","targetCuids":["a"],"#),
            "`targetCuid` and `targetCuids` are both given; exactly one is documented",
        ),
        (
            &changed(r#""targetCuid":"target-0""#, r#""targetCuids":["a",1]"#),
            "`targetCuids` has a number, a string is documented",
        ),
        (
            &changed(r#""targetCuid":"target-0""#, r#""targetCuids":"a""#),
            "`targetCuids` is a string, a list of strings is documented",
        ),
        (&changed(r#""text":"#, r#""event":"x","text":"#), "`event` is given twice"),
        (&changed(r#""text":"#, r#""\u0065vent":"x","text":"#), "`event` is given twice"),
        (&changed(r#""text":"#, r#""text":"a","text":"#), "`text` is given twice"),
        (&changed(r#""changed""#, r#""\ud800""#), "`cuid` has a lone surrogate"),
        (&changed(r#""ReportPublished""#, r#""a\udfffb""#), "`event` has a lone surrogate"),
        (
            &changed(r#""targetCuid":"target-0""#, r#""targetCuids":["a","\ud83d"]"#),
            "`targetCuids` has a lone surrogate",
        ),
        (&changed(r#""text":"#, r#""\udc00":1,"text":"#), "a key has a lone surrogate"),
        (&changed(r#""text":"#, r#""reportId":{},"text":"#), "`reportId` is an object, a number is documented"),
    ];
    let cases: Vec<Case> =
        cases.iter().map(|(body, detail)| Case::body(*detail, body, INVALID).detail(*detail)).collect();
    run_all(Bridge::start(Setup::strict), &cases);
}

#[test]
fn takes_what_the_documented_payload_leaves_open() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let cases = [
        accepted("blanks around", format!(" \r\n{}\t ", changed("Client", "blanks"))),
        accepted("a list of targets", changed(r#""targetCuid":"target-0""#, r#""targetCuids":["a","b"]"#)),
        accepted("an unknown event", changed("ReportPublished", "Something new: \u{1f600}/../../etc/passwd")),
        accepted(
            "unknown fields",
            changed(r#""text":"#, r#""clientId":7,"reportId":null,"x":{"event":[1]},"text":"#),
        ),
        accepted("an unknown field twice", changed(r#""text":"#, r#""x":1,"x":2,"text":"#)),
        accepted("a lone surrogate in the text", changed("Client", r"\ud800 and \udc00")),
        accepted("escapes", changed("Client", r#"\"\\\/\b\f\n\r\t\u0000\u00e9\ud83d\ude00"#)),
        accepted("an escaped key", changed(r#""event""#, r#""\u0065vent""#)),
        accepted("separators of JavaScript", changed("Client", "\u{2028}\u{2029}\u{feff}")),
        accepted("numbers out of range", changed(r#""text":"#, r#""x":[1e999999,-0,0.1e-99999],"text":"#)),
        accepted("a deep unknown field", changed(r#""text":"#, &format!(r#""x":{deep},"text":"#))),
        accepted("an empty text", changed("Client||Report", "")),
        accepted("an empty cuid", changed("changed", "")),
        accepted("null beside the targets", changed(r#""target-0""#, r#"null,"targetCuids":["a"]"#)),
        accepted("null beside the target", changed(r#""target-0""#, r#""target-0","targetCuids":null"#)),
    ];
    run_all(Bridge::start(Setup::strict), &cases);
}

#[test]
fn reads_no_deeper_than_it_must() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let objects = format!("{}1{}", r#"{"a":"#.repeat(30_000), "}".repeat(30_000));
    let cases = [
        Case::body("a list", &deep, Outcome::Probe),
        Case::body("in the event", changed(r#""ReportPublished""#, &deep), INVALID)
            .detail("`event` is a list, a string is documented"),
        Case::body("objects", &objects, INVALID).detail("`cuid` is missing"),
        Case::body("never closed", "[".repeat(200_000), MALFORMED),
        Case::body("objects never closed", r#"{"a":"#.repeat(40_000), MALFORMED),
    ];
    run_all(Bridge::start(Setup::strict), &cases);
    let event = changed(r#""ReportPublished""#, &deep);
    run_all(Bridge::start(|setup| setup), &[accepted("a list", event), accepted("objects", objects)]);
}

#[test]
fn takes_numbers_of_a_megabyte() {
    let digits = "9".repeat(1 << 20);
    let cases = [
        accepted("whole", changed(r#""text":"#, &format!(r#""x":{digits},"text":"#))),
        accepted("fraction", changed(r#""text":"#, &format!(r#""x":-0.{digits}e-{digits},"text":"#))),
        Case::body("in the event", changed(r#""ReportPublished""#, &digits), INVALID)
            .detail("`event` is a number, a string is documented"),
        Case::body("with a letter", changed(r#""ReportPublished""#, &format!("{digits}x")), MALFORMED),
    ];
    let large = |setup: Setup| {
        setup
            .strict()
            .text("ingress.max_body", "4MiB")
            .text("journal.max_bytes", "16MiB")
            .text("journal.segment_bytes", "8MiB")
    };
    run_all(Bridge::start(large), &cases);
}

#[test]
fn takes_exactly_max_body_and_not_a_byte_more() {
    let most = 10_000;
    let body = |bytes: usize, cuid: &str| Payload::new(cuid).body_of(bytes);
    let sized = |bytes: usize, cuid: &str, outcome: Outcome, chunk: Option<usize>| {
        let body = body(bytes, cuid);
        let request = Request::signed(&body);
        let request = chunk.map_or(request.clone(), |size| request.chunked(size));
        Case::new(format!("{cuid}: {bytes} bytes in chunks of {chunk:?}"), request.bytes(), outcome)
    };
    let fits = |cuid: &str, chunk| sized(most, cuid, Outcome::Accepted(body(most, cuid)), chunk);
    let detail = "the body is larger than 10000 bytes";
    let cases = [
        fits("with a length", None),
        fits("in one chunk", Some(most)),
        fits("in many chunks", Some(333)),
        sized(most + 1, "with a length", TOO_LARGE, None).detail(detail),
        sized(most + 1, "in one chunk", TOO_LARGE, Some(most + 1)).detail(detail),
        sized(most + 1, "at the last byte", TOO_LARGE, Some(most)).detail(detail),
        sized(most * 10, "in many chunks", TOO_LARGE, Some(333)).detail(detail),
    ];
    run_all(Bridge::start(|setup| setup.text("ingress.max_body", &format!("{most}B"))), &cases);
}
