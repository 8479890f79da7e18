//! Lengths, chunks and headers that lie. The bytes after a request of doubtful framing are never served as another.

use super::case::{Case, Outcome, Request, Signature, good};
use crate::support::{Bridge, Counters, LIMIT, PATH, SECRET, Setup, sign, statuses, until_closed, wait_until};

/// A whole good request that must never be served where it stands.
fn smuggled() -> Vec<u8> {
    Request::signed(&good("smuggled")).header("Connection", "close").bytes()
}

/// Sends a request with a good one right behind it; the first answer is one of these, and there is no second.
#[track_caller]
fn refuses(bridge: &Bridge, name: &str, request: &[u8], codes: &[u16]) -> Counters {
    let before = bridge.counters();
    let text = until_closed(&bridge.daemon.ingress, &[request, &smuggled()].concat());
    let answers = statuses(&text);
    assert!(answers.len() <= 1, "{name}: more than one answer: {text}");
    match answers.first() {
        None => assert!(codes.is_empty(), "{name}: closed without an answer, {codes:?} expected"),
        Some(code) => assert!(codes.contains(code), "{name}: {codes:?} expected: {text}"),
    }
    let risen = bridge.risen_since(&before);
    assert!(
        !risen.keys().any(|name| name.starts_with("events_accepted")),
        "{name}: an event was accepted: {risen:?}"
    );
    risen
}

/// Does the same for bytes that are not a request: they are counted as such and as nothing else.
#[track_caller]
fn unreadable(bridge: &Bridge, name: &str, request: &[u8], code: u16) {
    let before = bridge.counters();
    refuses(bridge, name, request, &[code]);
    let expected = Counters::from([(format!("requests_total{{code=\"{code}\",source=\"none\"}}"), 1)]);
    // It is counted once the connection is closed.
    wait_until(&format!("{name} is counted"), LIMIT, || bridge.risen_since(&before) == expected);
}

fn post(headers: &str) -> Vec<u8> {
    let body = good("framing");
    let hex = sign(SECRET, &body);
    let head = format!("POST {PATH} HTTP/1.1\r\nHost: b\r\nX-Authorization-HMAC-256: {hex}\r\n{headers}\r\n\r\n");
    [head.as_bytes(), &body].concat()
}

#[test]
fn refuses_lengths_that_are_none_or_contradict_each_other() {
    let bridge = Bridge::start(|setup| setup.text("ingress.body_timeout", "1s"));
    let length = good("framing").len();
    for headers in [
        "Content-Length: abc".to_owned(),
        "Content-Length: -1".to_owned(),
        format!("Content-Length: +{length}"),
        format!("Content-Length: 0x{length:x}"),
        format!("Content-Length: {length} {length}"),
        format!("Content-Length: {length}.0"),
        "Content-Length: 99999999999999999999999999".to_owned(),
        "Content-Length: 18446744073709551616".to_owned(),
        format!("Content-Length: {length}\r\nContent-Length: {}", length - 1),
        format!("Content-Length: {}\r\nContent-Length: {length}", length + 7),
        format!("Content-Length: {length}, {}", length + 7),
        format!("Content-Length: {length}\r\nContent-Length: x"),
    ] {
        unreadable(&bridge, &headers, &post(&headers), 400);
    }
    bridge.stop();
}

#[test]
fn takes_the_same_length_twice_for_one_request_at_most() {
    let bridge = Bridge::start(|setup| setup);
    let length = good("framing").len();
    let request = post(&format!("Content-Length: {length}\r\nContent-Length: {length}\r\nConnection: close"));
    // RFC 9112, 6.3 leaves the choice: refuse it, or take it for one.
    let answers = statuses(&until_closed(&bridge.daemon.ingress, &[request, smuggled()].concat()));
    assert!(answers == [200] || answers == [400], "the answers: {answers:?}");
    if answers == [200] {
        bridge.accepted(&good("framing"));
    }
    bridge.stop();
}

#[test]
fn refuses_transfer_codings_that_it_does_not_know() {
    let bridge = Bridge::start(|setup| setup.text("ingress.body_timeout", "1s"));
    for coding in ["gzip", "identity", "chunked, gzip", "xchunked", "chunkedx", "\"chunked\"", "chunked;q=1", ""] {
        unreadable(&bridge, coding, &post(&format!("Transfer-Encoding: {coding}")), 400);
    }
    let old = format!("POST {PATH} HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    unreadable(&bridge, "chunks in HTTP/1.0", old.as_bytes(), 400);
    bridge.stop();
}

#[test]
fn lets_chunks_win_over_a_length_and_closes() {
    let bridge = Bridge::start(Setup::takes_repeats);
    for (name, length) in [("shorter", "1"), ("zero", "0"), ("longer", "5000"), ("too long", "99999999")] {
        let body = good(name);
        let chunked = Request::signed(&body).chunked(20);
        for first in [true, false] {
            let request = if first {
                Request::signed(&body).without("content-length").header("Content-Length", length)
            } else {
                Request::signed(&body).without("content-length")
            };
            let request = request.framed(chunked.bytes().split_off(chunked.head().len()));
            // `framed` drops lengths: put this one back at either side of the coding.
            let mut head = String::from_utf8(request.head()).unwrap();
            let line = format!("Content-Length: {length}\r\n");
            let at = if first { head.find("Transfer-Encoding").unwrap() } else { head.len() - 2 };
            head.insert_str(at, &line);
            let chunks = request.bytes().split_off(request.head().len());
            let bytes = [head.as_bytes(), &chunks, &smuggled()].concat();
            let text = until_closed(&bridge.daemon.ingress, &bytes);
            assert_eq!(statuses(&text), [200], "{name} length, before the coding: {first}; the answers: {text}");
            bridge.accepted(&body);
        }
    }
    bridge.stop();
}

#[test]
fn answers_400_to_broken_chunks_and_closes() {
    let bridge = Bridge::start(|setup| setup.text("ingress.body_timeout", "1s"));
    let body = good("chunks");
    let chunk = |size: &str, end: &str| [size.as_bytes(), &body, end.as_bytes()].concat();
    let right = format!("{:x}", body.len());
    let broken = [
        ("no hex", chunk("zz\r\n", "\r\n0\r\n\r\n")),
        ("a minus", chunk(&format!("-{right}\r\n"), "\r\n0\r\n\r\n")),
        ("a prefix", chunk(&format!("0x{right}\r\n"), "\r\n0\r\n\r\n")),
        ("a blank before", chunk(&format!(" {right}\r\n"), "\r\n0\r\n\r\n")),
        ("no size", chunk("\r\n", "\r\n0\r\n\r\n")),
        ("a size beyond 64 bits", chunk("fffffffffffffffff\r\n", "\r\n0\r\n\r\n")),
        ("a size of 2^64", chunk("10000000000000000\r\n", "\r\n0\r\n\r\n")),
        ("too short", chunk(&format!("{:x}\r\n", body.len() - 1), "\r\n0\r\n\r\n")),
        ("no end of the chunk", chunk(&format!("{right}\r\n"), "0\r\n\r\n")),
        ("a bare line feed", chunk(&format!("{right}\n"), "\r\n0\r\n\r\n")),
        ("a bare line feed behind", chunk(&format!("{right}\r\n"), "\n0\r\n\r\n")),
        ("a bare carriage return", chunk(&format!("{right}\rx"), "\r\n0\r\n\r\n")),
        ("two sizes", chunk(&format!("{right} {right}\r\n"), "\r\n0\r\n\r\n")),
        ("an endless extension", chunk(&format!("{right};{}\r\n", "x".repeat(100_000)), "\r\n0\r\n\r\n")),
        ("a line feed in an extension", chunk(&format!("{right};a\nb\r\n"), "\r\n0\r\n\r\n")),
    ];
    for (name, framed) in broken {
        let risen = refuses(&bridge, name, &Request::signed(&body).framed(framed).bytes(), &[400]);
        let rejected = risen.get("events_rejected_total{reason=\"malformed\",source=\"plextrac\"}");
        assert_eq!(rejected, Some(&1), "{name}: what was counted: {risen:?}");
        assert_eq!(risen.len(), 3, "{name}: what was counted: {risen:?}");
    }
    bridge.stop();
}

#[test]
fn reads_chunks_as_http_allows_them() {
    let bridge = Bridge::start(Setup::takes_repeats);
    let body = good("allowed chunks");
    let right = format!("{:x}", body.len());
    let chunk = |size: &str, end: &str| [size.as_bytes(), &body, end.as_bytes()].concat();
    for (name, framed) in [
        ("upper case and zeros", chunk(&format!("000{}\r\n", right.to_uppercase()), "\r\n000\r\n\r\n")),
        ("an extension", chunk(&format!("{right};name=\"value\"\r\n"), "\r\n0;x\r\n\r\n")),
        ("trailers", chunk(&format!("{right}\r\n"), "\r\n0\r\nX-Authorization-HMAC-256: 00\r\nX: y\r\n\r\n")),
    ] {
        let request = Request::signed(&body).framed(framed);
        Case::new(name, request.bytes(), Outcome::Accepted(body.clone())).run(&bridge);
    }
    bridge.stop();
}

#[test]
fn refuses_broken_heads_without_counting_them() {
    let bridge = Bridge::start(|setup| setup);
    let length = good("framing").len();
    let head = |line: &str| post(&format!("{line}\r\nContent-Length: {length}"));
    let start = |line: &str| [line.as_bytes(), b"\r\nHost: b\r\nContent-Length: 0\r\n\r\n"].concat();
    let broken = [
        ("no colon", head("X-Header")),
        ("a blank before the colon", head("X-Header : x")),
        ("no name", head(": x")),
        ("a folded line", head("X-Header: x\r\n folded")),
        ("a NUL", head("X-Header: \0")),
        ("a bare carriage return", head("X-Header: a\rb")),
        ("a name that is none", head("X Header: x")),
        ("a name in UTF-8", head("X-H\u{e9}ader: x")),
        ("no version", start(&format!("POST {PATH}"))),
        ("a blank in the path", start(&format!("POST {PATH} x HTTP/1.1"))),
        ("no path", start("POST HTTP/1.1")),
        ("an odd version", start(&format!("POST {PATH} HTTP/1.9"))),
        ("another protocol", start(&format!("POST {PATH} HTCPCP/1.0"))),
        ("no method", start(&format!(" {PATH} HTTP/1.1"))),
        ("a bracket in the method", start(&format!("PO[ST {PATH} HTTP/1.1"))),
        ("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec()),
        ("a NUL first", b"\0\0\0\0\r\n\r\n".to_vec()),
    ];
    for (name, bytes) in broken {
        unreadable(&bridge, name, &bytes, 400);
    }
    // HTTP/2 by prior knowledge: closed, with or without an answer.
    let text = until_closed(&bridge.daemon.ingress, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    assert!(!text.contains(" 200 "), "HTTP/2: {text}");
    bridge.stop();
}

#[test]
fn answers_431_to_heads_beyond_the_limits() {
    let bridge = Bridge::start(|setup| setup);
    let length = good("framing").len();
    let many = "X-Header: x\r\n".repeat(200);
    let wide = format!("X-Header: {}\r\n", "x".repeat(1000)).repeat(40);
    for (name, headers) in [
        ("a long value", format!("X-Header: {}\r\n", "x".repeat(20_000))),
        ("a long name", format!("X-{}: x\r\n", "x".repeat(20_000))),
        ("many headers", many),
        ("many long headers", wide),
        ("a long signature", format!("X-Authorization-HMAC-256: {}\r\n", "0".repeat(70_000))),
    ] {
        unreadable(&bridge, name, &post(&format!("{headers}Content-Length: {length}")), 431);
    }
    let path = format!("POST /{} HTTP/1.1\r\nHost: b\r\nContent-Length: 0\r\n\r\n", "x".repeat(20_000));
    unreadable(&bridge, "a long path", path.as_bytes(), 431);
    // Within the limits.
    let body = good("large head");
    let request = Request::signed(&body).header("X-Header", "x".repeat(8_000));
    Case::new("8 KB of headers", request.bytes(), Outcome::Accepted(body)).run(&bridge);
    bridge.stop();
}

#[test]
fn never_serves_the_content_of_a_refused_body() {
    let bridge = Bridge::start(|setup| setup);
    let inside = smuggled();
    let length = inside.len();
    let requests = [
        ("an unknown path", format!("POST /x HTTP/1.1\r\nHost: b\r\nContent-Length: {length}\r\n\r\n"), 404),
        ("a method", format!("GET {PATH} HTTP/1.1\r\nHost: b\r\nContent-Length: {length}\r\n\r\n"), 405),
        (
            "an encoding",
            format!("POST {PATH} HTTP/1.1\r\nHost: b\r\nContent-Encoding: br\r\nContent-Length: {length}\r\n\r\n"),
            415,
        ),
        ("a signature", format!("POST {PATH} HTTP/1.1\r\nHost: b\r\nContent-Length: {length}\r\n\r\n"), 401),
        ("a length", format!("POST {PATH} HTTP/1.1\r\nHost: b\r\nContent-Length: 99999999\r\n\r\n"), 413),
    ];
    for (name, head, code) in requests {
        let before = bridge.counters();
        let behind = Request::unsigned(b"").start("POST /behind HTTP/1.1").header("Connection", "close").bytes();
        // Behind the refused body another request may be served; the body itself never.
        let text = until_closed(&bridge.daemon.ingress, &[head.as_bytes(), &inside, &behind].concat());
        let answers = statuses(&text);
        assert_eq!(answers.first(), Some(&code), "{name}: the first answer: {text}");
        let allowed: &[u16] = if code == 413 { &[] } else { &[404] };
        assert!(answers[1..].is_empty() || answers[1..] == *allowed, "{name}: the answers {answers:?}");
        let risen = bridge.risen_since(&before);
        assert!(!risen.keys().any(|name| name.starts_with("events_accepted")), "{name}: accepted: {risen:?}");
        let decided = risen.get("events_received_total{source=\"plextrac\"}").copied().unwrap_or(0);
        assert_eq!(decided, u64::from(code != 404), "{name}: decided requests: {risen:?}");
    }
    bridge.stop();
}

#[test]
fn serves_nothing_out_of_chunks_that_are_too_large_together() {
    let bridge = Bridge::start(|setup| setup.text("ingress.max_body", "1KiB"));
    let before = bridge.counters();
    let body = [vec![b'x'; 1_500], smuggled(), vec![b'x'; 1_500]].concat();
    for chunk in [100, 1_500, 5_000] {
        let request = Request::signed(&body).header("Connection", "close").chunked(chunk);
        let text = until_closed(&bridge.daemon.ingress, &request.bytes());
        assert_eq!(statuses(&text), [413], "chunks of {chunk} bytes: {text}");
    }
    let risen = bridge.risen_since(&before);
    let rejected = risen.get("events_rejected_total{reason=\"too_large\",source=\"plextrac\"}");
    assert_eq!((rejected, risen.len()), (Some(&3), 3), "what was counted: {risen:?}");
    Case::body("after it", good("after"), Outcome::Accepted(good("after"))).run(&bridge);
    Case::new(
        "no body at all",
        Request::unsigned(b"").bytes(),
        Outcome::Refused(401, "signature", Signature::NotSeen),
    )
    .run(&bridge);
    bridge.stop();
}
