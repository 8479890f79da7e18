//! Several sources, several secrets, no signature, both ways of validation, connection tests.

use super::case::{Case, Outcome, Request, Signature, good, run_all};
use crate::support::{Bridge, Daemon, Setup, sign, until_closed, until_closed_by_both};

const NO_SIGNATURE: Outcome = Outcome::Refused(401, "signature", Signature::NotSeen);
const INVALID: Outcome = Outcome::Refused(422, "invalid", Signature::Matched);
const OLD: &str = "the secret of last November";
const NEW: &str = "the secret of this December";
const OTHER: &str = "the secret of another tenant";

/// A request for a path, signed with a secret.
fn post(path: &str, secret: &str, body: &[u8]) -> Vec<u8> {
    let request = Request::unsigned(body).start(format!("POST {path} HTTP/1.1"));
    request.header("X-Authorization-HMAC-256", sign(secret, body)).bytes()
}

fn two_sources(setup: Setup) -> Setup {
    setup
        .text("sources.plextrac.secret", "")
        .raw(
            "sources.plextrac.secrets",
            format!(r#"[{{ id = "old", value = "{OLD}" }}, {{ id = "new", value = "{NEW}" }}]"#),
        )
        .text("sources.tenant_2.path", "/hooks/2")
        .text("sources.tenant_2.secret", OTHER)
}

#[test]
fn takes_every_secret_of_a_source_and_none_of_another() {
    let first = "/webhooks/plextrac";
    let accepted = |name: &str, path: &str, secret: &str| {
        let body = good(name);
        Case::new(name, post(path, secret, &body), Outcome::Accepted(body))
    };
    let refused =
        |name: &str, path: &str, secret: &str| Case::new(name, post(path, secret, &good(name)), NO_SIGNATURE);
    let cases = [
        accepted("the old secret", first, OLD).of("plextrac", "old"),
        accepted("the new secret", first, NEW).of("plextrac", "new"),
        accepted("the other source", "/hooks/2", OTHER).of("tenant_2", "default"),
        refused("the other source's secret", first, OTHER),
        refused("an old secret at the other source", "/hooks/2", OLD).of("tenant_2", "default"),
        refused("the ids are no secrets", first, "old"),
    ];
    let bridge = Bridge::start(two_sources);
    for case in &cases {
        case.run(&bridge);
    }
    bridge.check();
    for line in bridge.arrived() {
        let body = String::from_utf8(line.body).unwrap();
        let source = if body.contains("the other source") { "tenant_2" } else { "plextrac" };
        assert_eq!(line.headers["ce_source"], format!("/plextrac/{source}"), "the source of {body}");
    }
    let status = bridge.daemon.status().0;
    let secrets = &status["sources"][0]["secrets"];
    for (at, id) in ["old", "new"].into_iter().enumerate() {
        assert_eq!(
            (&secrets[at]["id"], &secrets[at]["matched"]),
            (&id.into(), &1.into()),
            "the secrets: {secrets}"
        );
        assert!(secrets[at]["last_used_timestamp_seconds"].as_f64() > Some(1e9), "the last use of {id}: {secrets}");
    }
    bridge.stop();
}

#[test]
fn asks_an_unsigned_source_for_no_signature() {
    let unsigned = |name: &str, request: fn(Request) -> Request| {
        let body = good(name);
        Case::new(name, request(Request::unsigned(&body)).bytes(), Outcome::Accepted(body)).of("plextrac", "")
    };
    let cases = [
        unsigned("without a signature", |request| request),
        unsigned("with a wrong one", |request| request.header("X-Authorization-HMAC-256", "00")),
        unsigned("with two", |request| {
            request.header("X-Authorization-HMAC-256", "a".repeat(64)).header("X-Authorization-HMAC-256", "b")
        }),
        Case::new(
            "an id alone",
            Request::unsigned(br#"{"flawId":7}"#).bytes(),
            Outcome::Accepted(br#"{"flawId":7}"#.to_vec()),
        )
        .of("plextrac", ""),
        Case::new(
            "nothing that can be used",
            Request::unsigned(br#"{"event":1,"reportId":null,"text":"x"}"#).bytes(),
            INVALID,
        )
        .detail("neither `event` nor any documented id can be used; a source without signatures requires one")
        .of("plextrac", ""),
        Case::new("a list", Request::unsigned(b"[]").bytes(), Outcome::Probe).of("plextrac", ""),
        Case::new(
            "malformed",
            Request::unsigned(b"{").bytes(),
            Outcome::Refused(400, "malformed", Signature::NotSeen),
        )
        .of("plextrac", ""),
        Case::new("a probe", Request::unsigned(b"{}").bytes(), Outcome::Probe).of("plextrac", ""),
    ];
    let bridge =
        Bridge::start(|setup| setup.text("sources.plextrac.secret", "").raw("sources.plextrac.unsigned", "true"));
    bridge.daemon.wait_for_line("a warning", |line| {
        line["level"] == "WARN"
            && line["message"].as_str().is_some_and(|text| text.contains("`sources.plextrac.unsigned`"))
    });
    run_all(bridge, &cases);
}

#[test]
fn takes_every_signed_object_with_a_field() {
    let accepted = |body: &str| Case::body(body, body, Outcome::Accepted(body.as_bytes().to_vec()));
    let malformed = |body: &str| Case::body(body, body, Outcome::Refused(400, "malformed", Signature::Matched));
    let cases = [
        accepted(r#"{"event":"OnReportCreation"}"#),
        accepted(r#"{"event":"E","cuid":"c","text":"\ud800","other":[1]}"#),
        accepted(r#"{"event":"E","targetCuids":["a"],"targetType":"report"}"#),
        accepted(r#"{"clientId":7,"reportId":"12","findingId":345}"#),
        accepted(r#"{"test":true}"#),
        accepted(r#"{"text":"hello","targetCuid":"x","actorCuid":"y"}"#),
        accepted(r#"{"nested":{"event":"E","cuid":"c"}}"#),
        accepted(r#"{"":null}"#),
        accepted(r#"{"event":""}"#),
        accepted(r#"{"event":"E","text":1}"#),
        accepted(r#"{"event":"E","cuid":null}"#),
        accepted(r#"{"event":"E","targetCuid":"a","targetCuids":["a"]}"#),
        accepted(r#"{"event":"E","event":"F"}"#),
        accepted(r#"{"\ud800":1}"#),
        accepted(r#"{"cuid":"\ud800","event":["E"],"targetCuids":{}}"#),
        malformed("{\"event\":\"E\""),
        malformed("\u{feff}{\"event\":\"E\"}"),
    ];
    run_all(Bridge::start(|setup| setup), &cases);
}

#[test]
fn answers_a_connection_test_and_publishes_nothing() {
    let probe = |body: &str| Case::body(body, body, Outcome::Probe);
    let cases = [
        probe(""),
        probe("{}"),
        probe(" { } "),
        probe("[]"),
        probe(r#"[{"event":"E","cuid":"c"}]"#),
        probe("null"),
        probe("\"hello\""),
        probe(" 7 "),
        Case::new("unsigned", Request::unsigned(b"{}").bytes(), NO_SIGNATURE),
        Case::new("unsigned and empty", Request::unsigned(b"").bytes(), NO_SIGNATURE),
        Case::body("malformed", "{}}", Outcome::Refused(400, "malformed", Signature::Matched)),
        Case::body("blanks", " \n", Outcome::Refused(400, "malformed", Signature::Matched)),
    ];
    for change in [Setup::strict as fn(Setup) -> Setup, |setup| setup] {
        let bridge = Bridge::start(change);
        for case in &cases {
            case.run(&bridge);
        }
        assert_eq!(bridge.arrived(), [], "a connection test was published");
        bridge.stop();
    }
}

#[test]
fn shows_no_secret_whatever_it_is_sent() {
    let odd = [
        "quoted \" and \\ and ' 0123456789",
        "\u{fc}n\u{ef}c\u{f6}de \u{1f600} {event} %s $HOME",
        "98765432109876543210",
    ];
    let bridge = Bridge::start(|setup| {
        let value = |text: &str| serde_json::Value::from(text).to_string();
        let secrets =
            format!("[{{ id = \"a\", value = {} }}, {{ id = \"b\", value = {} }}]", value(odd[0]), value(odd[1]));
        let setup =
            setup.level("trace").text("sources.plextrac.secret", "").raw("sources.plextrac.secrets", secrets);
        setup.text("sources.other.path", "/other").text("sources.other.secret", odd[2])
    });
    let path = "/webhooks/plextrac";
    let mut shown = String::new();
    for (path, secret) in [(path, odd[0]), (path, odd[1]), ("/other", odd[2])] {
        for (secret, body) in [
            (secret, good("secret").as_slice()),
            (secret, b"{"),
            (secret, b"{}"),
            (secret, b"[]"),
            ("wrong", b"{}"),
        ] {
            let mut client = bridge.connect();
            client.write(&post(path, secret, body)).unwrap();
            let answer = client.answer().unwrap();
            shown.extend(answer.headers.iter().map(|(name, value)| [name.as_str(), value].concat()));
            shown.push_str(&answer.text());
            if answer.text().contains("accepted") {
                bridge.accepted(body);
            }
        }
    }
    shown.push_str(&until_closed(&bridge.daemon.ingress, b"no HTTP\r\n\r\n"));
    for page in ["/status", "/metrics", "/", "/livez", "/readyz"] {
        shown.push_str(&bridge.daemon.get(page).text());
    }
    shown.push_str(&bridge.stop().log);
    for secret in odd {
        let escaped = secret.escape_default().to_string();
        let json = serde_json::Value::from(secret).to_string();
        for form in [secret, &escaped, json.trim_matches('"')] {
            assert!(!shown.contains(form), "the secret {secret:?} shows in:\n{shown}");
        }
    }
    assert!(shown.contains("TRACE") || shown.contains("DEBUG") || shown.contains("refused a request"), "{shown}");
}

#[test]
fn shows_the_client_of_a_trusted_proxy_without_deciding_by_it() {
    let forged = |header: &str| {
        let request = Request::unsigned(&good("forged")).start("POST /webhooks/plextrac HTTP/1.1");
        request.header("X-Forwarded-For", "192.0.2.1").header("X-Forwarded-For", header).bytes()
    };
    let bridge = Bridge::start(|setup| setup.raw("ingress.trusted_proxies", r#"["127.0.0.0/8", "10.0.0.1"]"#));
    let peer = |daemon: &Daemon| daemon.status().text("/sources/0/recent_refusals/0/peer").to_owned();
    assert!(until_closed_by_both(&bridge.daemon.ingress, &forged("203.0.113.7, 10.0.0.1")).contains(" 401 "));
    assert_eq!(peer(&bridge.daemon), "203.0.113.7");
    bridge.daemon.wait_for_line("the refusal", |line| line["peer"] == "203.0.113.7" && line["status"] == 401);
    assert!(until_closed_by_both(&bridge.daemon.ingress, &forged("203.0.113.8, garbage")).contains(" 401 "));
    assert!(peer(&bridge.daemon).starts_with("127.0.0.1:"), "{}", peer(&bridge.daemon));
    until_closed_by_both(
        &bridge.daemon.ingress,
        b"GET /nothing HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n",
    );
    bridge.daemon.wait_for_line("the path", |line| line["peer"] == "203.0.113.9" && line["path"] == "/nothing");
    bridge.stop();
    let bridge = Bridge::start(|setup| setup);
    until_closed_by_both(&bridge.daemon.ingress, &forged("203.0.113.7"));
    assert!(peer(&bridge.daemon).starts_with("127.0.0.1:"), "nobody is trusted: {}", peer(&bridge.daemon));
    bridge.stop();
}
