//! Every status and reason, with its body, its headers, its counters and its line of log.

use super::case::{Case, Outcome, Request, Signature, good, problem, run_all};
use crate::support::{Bridge, PATH, SECRET, Setup, sign, until_closed};

const NO_SIGNATURE: Outcome = Outcome::Refused(401, "signature", Signature::NotSeen);
const NO_ENCODING: Outcome = Outcome::Refused(415, "encoding", Signature::NotSeen);
const NO_METHOD: Outcome = Outcome::Refused(405, "method", Signature::NotSeen);

fn accepted(name: &str, request: impl FnOnce(Request) -> Request) -> Case {
    let body = good(name);
    Case::new(name, request(Request::signed(&body)).bytes(), Outcome::Accepted(body))
}

fn refused(name: &str, outcome: Outcome, request: impl FnOnce(Request) -> Request) -> Case {
    Case::new(name, request(Request::signed(&good(name))).bytes(), outcome)
}

/// Another way to write a signature.
type Spelling = fn(String) -> String;

/// A signed body with something else in the header.
fn with_signature(name: &str, value: impl FnOnce(String) -> String) -> Request {
    let body = good(name);
    Request::unsigned(&body).header("X-Authorization-HMAC-256", value(sign(SECRET, &body)))
}

#[test]
fn accepts_what_is_signed_however_it_is_written() {
    let mut cases = vec![
        accepted("as it should be", |request| request),
        accepted("with a query", |request| request.start(format!("POST {PATH}?key=value&x=/other HTTP/1.1"))),
        accepted("with an empty query", |request| request.start(format!("POST {PATH}? HTTP/1.1"))),
        accepted("in absolute form", |request| request.start(format!("POST http://bridge{PATH} HTTP/1.1"))),
        accepted("as text", |request| request.header("Content-Type", "text/plain; charset=latin1")),
        accepted("as a form", |request| request.header("Content-Type", "application/x-www-form-urlencoded")),
        accepted("encoded as identity", |request| request.header("Content-Encoding", "Identity")),
        accepted("in chunks", |request| request.chunked(7)),
        accepted("in chunks of a byte", |request| request.chunked(1)),
        accepted("with a cookie", |request| {
            request.header("Cookie", "a=b").header("X-Forwarded-For", "not an address")
        }),
    ];
    for (name, header) in [("lower", "x-authorization-hmac-256"), ("upper", "X-AUTHORIZATION-HMAC-256")] {
        let body = good(name);
        let request = Request::unsigned(&body).header(header, sign(SECRET, &body));
        cases.push(Case::new(format!("header name in {name} case"), request.bytes(), Outcome::Accepted(body)));
    }
    let spellings: [(&str, Spelling); 5] = [
        ("upper-case hex", |hex| hex.to_uppercase()),
        ("outer blanks", |hex| format!("  {hex} \t ")),
        ("mixed-case hex", |hex| format!("{}{}", hex[..32].to_uppercase(), &hex[32..])),
        ("a prefix", |hex| format!("sha256={hex}")),
        ("an upper-case prefix", |hex| format!(" SHA256={hex}")),
    ];
    for (name, spelling) in spellings {
        let request = with_signature(name, spelling);
        cases.push(Case::new(name, request.bytes(), Outcome::Accepted(good(name))));
    }
    run_all(Bridge::start(|setup| setup), &cases);
}

#[test]
fn refuses_with_one_and_the_same_answer_whatever_is_wrong_with_the_signature() {
    let body = good("signatures");
    let hex = sign(SECRET, &body);
    let unsigned = Request::unsigned(&body);
    let with = |value: &str| unsigned.clone().header("X-Authorization-HMAC-256", value);
    let other = sign("another secret, as long as that", &body);
    let requests = [
        ("missing", unsigned.clone()),
        ("empty", with("")),
        ("of another secret", with(&other)),
        ("of another body", with(&sign(SECRET, b"{}"))),
        ("the same twice", with(&hex).header("X-Authorization-HMAC-256", hex.as_str())),
        ("a wrong and a right one", with(&other).header("x-authorization-hmac-256", hex.as_str())),
        ("the right one twice in one header", with(&format!("{hex},{hex}"))),
        ("a digit short", with(&hex[1..])),
        ("a byte longer", with(&format!("{hex}00"))),
        ("no hex", with(&format!("{}g", &hex[..63]))),
        ("with another prefix", with(&format!("sha512={hex}"))),
        ("with a prefix twice", with(&format!("sha256=sha256={hex}"))),
        ("with a prefix and a blank", with(&format!("sha256= {hex}"))),
        ("with a prefix alone", with("sha256=")),
        ("in quotes", with(&format!("\"{hex}\""))),
        ("a blank within", with(&format!("{} {}", &hex[..32], &hex[32..]))),
        ("all zeros", with(&"0".repeat(64))),
        ("bytes that are no ASCII", with("é")),
        ("in another header", unsigned.clone().header("X-Hub-Signature-256", hex.as_str())),
    ];
    let bridge = Bridge::start(|setup| setup);
    let mut documents = Vec::new();
    for (name, request) in requests {
        let answer = Case::new(name, request.bytes(), NO_SIGNATURE).run(&bridge);
        let mut document = problem(name, &answer);
        document["request_id"] = "".into();
        documents.push((name, document));
    }
    let (_, first) = documents[0].clone();
    for (name, document) in documents {
        assert_eq!(document, first, "{name}: a stranger learns what was wrong");
    }
    let text = first.to_string();
    assert!(!text.contains(&hex) && !text.contains(SECRET), "the answer shows a secret: {text}");
    bridge.stop();
}

#[test]
fn knows_only_the_very_path_of_a_source() {
    let paths = [
        "/",
        "/webhooks",
        "/webhooks/plextrac/",
        "/webhooks//plextrac",
        "/Webhooks/PlexTrac",
        "/webhooks/plextrac/x",
        "/webhooks/plextra",
        "/webhooks/%70lextrac",
        "/webhooks/./plextrac",
        "/other/../webhooks/plextrac",
        "/webhooks/plextrac;x",
        "/status",
        "/metrics",
        "/livez",
    ];
    let cases: Vec<Case> = paths
        .iter()
        .map(|path| refused(path, Outcome::Unknown, |request| request.start(format!("POST {path} HTTP/1.1"))))
        .chain([
            refused("get", Outcome::Unknown, |request| request.start("GET / HTTP/1.1")),
            refused("asterisk", Outcome::Unknown, |request| request.start("OPTIONS * HTTP/1.1")),
        ])
        .collect();
    run_all(Bridge::start(|setup| setup), &cases);
}

#[test]
fn hints_in_the_log_if_only_a_slash_or_the_case_differs() {
    for path in ["/webhooks/plextrac/", "/Webhooks/PLEXTRAC"] {
        // One line a second is logged: use a daemon for each.
        let bridge = Bridge::start(|setup| setup);
        let case = refused(path, Outcome::Unknown, |request| request.start(format!("POST {path} HTTP/1.1")));
        let problem = problem(path, &case.run(&bridge));
        let line = bridge.daemon.wait_for_line("the hint", |line| line["request_id"] == problem["request_id"]);
        let message = line["message"].as_str().unwrap_or_default();
        assert!(message.contains(&format!("did the sender mean {PATH}?")), "{path}: no hint in {line}");
        assert_eq!(line["path"], path, "the path that was asked for");
        let shown = bridge.daemon.status().0["unknown_paths"][0].clone();
        assert_eq!(
            (&shown["path"], &shown["meant"], &shown["count"]),
            (&path.into(), &PATH.into(), &1.into()),
            "{shown}"
        );
    }
}

#[test]
fn accepts_no_method_but_post() {
    let methods = ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "post", "Post", "BREW"];
    let mut cases: Vec<Case> = methods
        .iter()
        .map(|method| refused(method, NO_METHOD, |request| request.start(format!("{method} {PATH} HTTP/1.1"))))
        .collect();
    let empty = Request::unsigned(b"").without("content-length").start(format!("GET {PATH} HTTP/1.1"));
    cases.push(Case::new("a browser", empty.bytes(), NO_METHOD));
    run_all(Bridge::start(|setup| setup), &cases);
}

#[test]
fn answers_head_without_a_body() {
    let bridge = Bridge::start(|setup| setup);
    let head = format!("HEAD {PATH} HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n");
    let text = until_closed(&bridge.daemon.ingress, head.as_bytes());
    assert!(text.starts_with("HTTP/1.1 405 "), "the answer: {text}");
    assert!(text.to_lowercase().contains("\r\nallow: post\r\n"), "the answer: {text}");
    assert!(text.ends_with("\r\n\r\n"), "an answer to HEAD has no body: {text}");
    bridge.stop();
}

#[test]
fn takes_a_body_only_as_it_was_signed() {
    let encodings = ["gzip", "br", "deflate", "zstd", "identity, gzip", "gzip, identity", "x-unknown"];
    let mut cases: Vec<Case> = encodings
        .iter()
        .map(|encoding| refused(encoding, NO_ENCODING, |request| request.header("Content-Encoding", *encoding)))
        .collect();
    cases.push(refused("in two headers", NO_ENCODING, |request| {
        request.header("Content-Encoding", "identity").header("Content-Encoding", "gzip")
    }));
    run_all(Bridge::start(|setup| setup), &cases);
}

#[test]
fn checks_path_method_length_encoding_body_signature_and_json_in_this_order() {
    let large = "99999999";
    let everything = |request: Request| {
        request.without("content-length").header("Content-Length", large).header("Content-Encoding", "gzip")
    };
    let bad = b"no JSON";
    let at = |path: &str, method: &str| format!("{method} {path} HTTP/1.1");
    let too_large = Outcome::Refused(413, "too_large", Signature::NotSeen);
    let malformed = Outcome::Refused(400, "malformed", Signature::Matched);
    let requests = [
        ("path", everything(Request::unsigned(bad)).start(at("/x", "GET")), Outcome::Unknown),
        ("method", everything(Request::unsigned(bad)).start(at(PATH, "GET")), NO_METHOD),
        ("length", everything(Request::unsigned(bad)), too_large),
        ("encoding", Request::unsigned(bad).header("Content-Encoding", "gzip"), NO_ENCODING),
        ("signature", Request::unsigned(bad), NO_SIGNATURE),
        ("JSON", Request::signed(bad), malformed),
    ];
    let cases: Vec<Case> =
        requests.into_iter().map(|(name, request, outcome)| Case::new(name, request.bytes(), outcome)).collect();
    run_all(Bridge::start(|setup| setup), &cases);
}

#[test]
fn gives_every_refusal_an_id_that_is_also_in_its_log_line() {
    let bridge = Bridge::start(Setup::strict);
    let cases = [
        refused("method", NO_METHOD, |request| request.start(format!("PUT {PATH} HTTP/1.1"))),
        refused("encoding", NO_ENCODING, |request| request.header("Content-Encoding", "gzip")),
        refused("signature", NO_SIGNATURE, |request| request.without("x-authorization-hmac-256")),
        Case::body("malformed", "{", Outcome::Refused(400, "malformed", Signature::Matched)),
        Case::body("invalid", r#"{"event":1}"#, Outcome::Refused(422, "invalid", Signature::Matched)),
        refused("path", Outcome::Unknown, |request| request.start("POST /x HTTP/1.1")),
    ];
    for case in &cases {
        let answer = case.run(&bridge);
        let problem = problem("a refusal", &answer);
        let line = bridge.daemon.wait_for_line("its line", |line| line["request_id"] == problem["request_id"]);
        if answer.status == 404 {
            continue;
        }
        assert_eq!(line["status"], answer.status, "the status in {line}");
        assert_eq!(line["source"], "plextrac", "the source in {line}");
        let recent = &bridge.daemon.status().0["sources"][0]["recent_refusals"][0];
        for field in ["request_id", "status", "detail"] {
            assert_eq!(recent[field], problem[field], "`{field}` of the newest refusal on /status");
        }
        for field in ["reason", "peer"] {
            assert!(line[field].is_string(), "no `{field}` in {line}");
            assert_eq!(recent[field], line[field], "`{field}` in log and status");
        }
        assert!(recent["advice"].as_str().is_some_and(|advice| advice.len() > 20), "what to do: {recent}");
    }
    bridge.stop();
}
