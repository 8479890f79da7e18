//! Connections: one request after another, 100 Continue, and the answer that is sent before the body is read.

use std::io::Write as _;
use std::thread;
use std::time::Duration;

use super::case::{Case, Outcome, Request, Signature, assert_closed, good, problem};
use crate::support::{
    Bridge, LIMIT, PATH, Setup, plain, rest, statuses, until_closed, until_closed_by_both, wait_until,
};

#[test]
fn keeps_a_connection_alive_over_good_and_bad_requests() {
    let bridge = Bridge::start(|setup| setup.takes_repeats().strict());
    let mut client = bridge.connect();
    for round in 0..10 {
        let body = good(&format!("kept alive {round}"));
        let rounds = [
            (Request::signed(&body), 200),
            (Request::unsigned(&body), 401),
            (Request::signed(b"no JSON"), 400),
            (Request::signed(br#"{"event":1}"#), 422),
            (Request::signed(b"{}"), 200),
            (Request::unsigned(b"").start("POST /x HTTP/1.1"), 404),
            (Request::unsigned(b"").start(format!("PUT {PATH} HTTP/1.1")), 405),
            (Request::signed(&body).chunked(11), 200),
        ];
        for (request, status) in rounds {
            client.write(&request.bytes()).expect("the connection is kept");
            assert_eq!(client.answer().expect("the connection is kept").status, status, "round {round}");
        }
        bridge.accepted(&body);
        bridge.accepted(&body);
    }
    assert_eq!(bridge.daemon.metric("connections_open", &[]), 1, "all on one connection");
    bridge.stop();
}

#[test]
fn answers_pipelined_requests_in_their_order() {
    let bridge = Bridge::start(|setup| setup);
    let mut bytes = Vec::new();
    let mut expected = Vec::new();
    for number in 0..100 {
        let body = good(&format!("pipelined {number}"));
        let (request, status) = match number % 4 {
            0 | 2 => (Request::signed(&body), 200),
            1 => (Request::unsigned(&body), 401),
            _ => (Request::signed(&body).chunked(50), 200),
        };
        if status == 200 {
            bridge.accepted(&body);
        }
        bytes.extend_from_slice(&request.bytes());
        expected.push(status);
    }
    bytes.extend_from_slice(&Request::signed(b"{}").header("Connection", "close").bytes());
    expected.push(200);
    // Nothing of this is served: it follows the end.
    bytes.extend_from_slice(&Request::signed(&good("behind the end")).bytes());
    let text = until_closed(&bridge.daemon.ingress, &bytes);
    assert_eq!(statuses(&text), expected, "the answers");
    assert_eq!(text.matches(r#"{"status":"probe"}"#).count(), 1, "the last answer");
    bridge.stop();
}

#[test]
fn takes_a_request_in_the_smallest_pieces() {
    let bridge = Bridge::start(|setup| setup);
    let body = good("in pieces");
    let mut client = bridge.connect();
    for byte in Request::signed(&body).bytes() {
        client.write(&[byte]).unwrap();
    }
    assert_eq!(client.answer().unwrap().status, 200, "the answer");
    bridge.accepted(&body);
    bridge.stop();
}

#[test]
fn answers_one_who_ends_his_side_after_the_request() {
    let bridge = Bridge::start(|setup| setup);
    let body = good("half closed");
    let text = until_closed_by_both(&bridge.daemon.ingress, &Request::signed(&body).bytes());
    assert_eq!(statuses(&text), [200], "the answer: {text}");
    bridge.accepted(&body);
    bridge.stop();
}

#[test]
fn answers_http_1_0_and_closes() {
    let bridge = Bridge::start(|setup| setup);
    let body = good("old");
    let request = Request::signed(&body).start(format!("POST {PATH} HTTP/1.0")).without("host");
    let text = until_closed(&bridge.daemon.ingress, &request.bytes());
    assert!(text.starts_with("HTTP/1.0 200 ") && text.ends_with(r#"{"status":"accepted"}"#), "the answer: {text}");
    bridge.accepted(&body);
    bridge.stop();
}

#[test]
fn says_100_continue_before_it_reads_a_body() {
    let bridge = Bridge::start(Setup::takes_repeats);
    let body = good("continued");
    for request in [Request::signed(&body), Request::signed(&body).chunked(30)] {
        let request = request.header("Expect", "100-continue");
        let mut client = bridge.connect();
        client.write(&request.head()).unwrap();
        assert_eq!(client.answer().expect("an interim answer").status, 100, "before the body");
        client.write(&request.bytes()[request.head().len()..]).unwrap();
        assert_eq!(client.answer().expect("an answer").status, 200, "after the body");
        bridge.accepted(&body);
    }
    bridge.stop();
}

#[test]
fn refuses_a_body_before_it_is_sent_where_the_sender_waits() {
    let bridge = Bridge::start(|setup| setup);
    // Bytes that the sender might send nevertheless must not be mistaken for a request.
    let inside = Request::signed(&good("smuggled")).bytes();
    let waiting = |length: usize| {
        Request::unsigned(b"")
            .without("content-length")
            .header("Content-Length", length.to_string())
            .header("Expect", "100-continue")
    };
    let requests = [
        ("too large", waiting(99_999_999), 413),
        ("encoded", waiting(inside.len()).header("Content-Encoding", "gzip"), 415),
        ("a method", waiting(inside.len()).start(format!("PUT {PATH} HTTP/1.1")), 405),
        ("a path", waiting(inside.len()).start("POST /x HTTP/1.1"), 404),
    ];
    for (name, request, status) in requests {
        let mut client = bridge.connect();
        client.write(&request.head()).unwrap();
        let answer = client.answer().unwrap_or_else(|error| panic!("{name}: no answer: {error}"));
        assert_eq!(answer.status, status, "{name}: the one answer, without 100 Continue before it");
        problem(name, &answer);
        // The daemon may have closed already.
        let _ = client.write(&inside);
        assert_closed(name, &mut client);
    }
    bridge.stop();
}

/// A sender that keeps connections must not send its next request on one that is about to be closed.
#[test]
fn says_that_it_closes_where_a_body_has_not_arrived_and_only_there() {
    let bridge = Bridge::start(|setup| {
        setup.takes_repeats().text("ingress.body_timeout", "100ms").text("ingress.max_body", "10000B")
    });
    let body = good("closes");
    let (signed, path) = (Request::signed(&body), "POST /x HTTP/1.1");
    let with_length =
        |length: &str| Request::signed(b"").without("content-length").header("Content-Length", length);
    let part = [signed.clone().start(path).head(), body[..10].to_vec()].concat();
    let closing = [
        ("a path", signed.clone().start(path).head(), 404),
        ("a path and a part of the body", part, 404),
        ("a path and 100 Continue", signed.clone().start(path).header("Expect", "100-continue").head(), 404),
        ("a method", signed.clone().start(format!("PUT {PATH} HTTP/1.1")).head(), 405),
        ("too slow", signed.head(), 408),
        ("too long", with_length("10001").head(), 413),
        (
            "too long in chunks",
            Request::signed(b"").framed([&b"2ee0\r\n"[..], &[b'x'; 12_000]].concat()).bytes(),
            413,
        ),
        ("an encoding", signed.clone().header("Content-Encoding", "gzip").head(), 415),
        ("broken chunks", Request::signed(b"").framed(&b"x\r\n"[..]).bytes(), 400),
        ("no HTTP", b"nonsense\r\n\r\n".to_vec(), 400),
        ("a head too large", signed.clone().header("X", "x".repeat(100_000)).head(), 431),
    ];
    for (name, bytes, status) in closing {
        let mut client = bridge.connect();
        let _ = client.write(&bytes);
        let answer = client.answer().unwrap_or_else(|error| panic!("{name}: no answer: {error}"));
        assert_eq!((answer.status, answer.header("connection")), (status, Some("close")), "{name}");
        assert_closed(name, &mut client);
    }
    let mut client = bridge.connect();
    let keeping = [
        ("a path", signed.clone().start(path), 404),
        ("a method", signed.clone().start(format!("PUT {PATH} HTTP/1.1")), 405),
        ("an encoding", signed.clone().header("Content-Encoding", "gzip"), 415),
        ("no signature", Request::unsigned(&body).chunked(50), 401),
        ("a good one", signed, 200),
    ];
    for (name, request, status) in keeping {
        client.write(&request.bytes()).unwrap();
        let answer = client.answer().unwrap_or_else(|error| panic!("{name}: no answer: {error}"));
        assert_eq!((answer.status, answer.header("connection")), (status, None), "{name}");
    }
    bridge.accepted(&body);
    bridge.stop();
}

#[test]
fn a_sender_that_is_still_writing_sees_the_refusal() {
    let bridge = Bridge::start(|setup| setup);
    let requests = [
        ("a length", Request::signed(b"").without("content-length").header("Content-Length", "4194304"), 413),
        (
            "a path",
            Request::signed(b"")
                .without("content-length")
                .header("Content-Length", "4194304")
                .start("POST /x HTTP/1.1"),
            404,
        ),
        (
            "an encoding",
            Request::signed(b"")
                .without("content-length")
                .header("Content-Length", "200000")
                .header("Content-Encoding", "br"),
            415,
        ),
    ];
    for (name, request, status) in requests {
        // One thread: it writes everything before it reads the answer.
        let mut client = bridge.connect();
        let length = if status == 415 { 200_000 } else { 4_194_304 };
        client.write(&request.head()).unwrap();
        for part in vec![b'x'; length].chunks(length / 16) {
            client.write(part).unwrap_or_else(|error| panic!("{name}: cut off while writing: {error}"));
            // Otherwise all of it would be in the kernel's buffers before the daemon has answered.
            thread::sleep(Duration::from_millis(10));
        }
        let answer = client.answer().unwrap_or_else(|error| panic!("{name}: no answer: {error}"));
        assert_eq!(answer.status, status, "{name}: the answer");
    }
    bridge.stop();
}

#[test]
fn stops_reading_from_a_sender_that_never_stops_writing() {
    let bridge = Bridge::start(|setup| setup);
    let endless = [
        ("a length", Request::signed(b"").without("content-length").header("Content-Length", "99999999999")),
        ("chunks", Request::signed(b"").framed(Vec::new())),
    ];
    for (name, request) in endless {
        let mut reader = plain(&bridge.daemon.ingress);
        let mut writer = reader.try_clone().unwrap();
        writer.write_all(&request.head()).unwrap();
        let chunk = [b"10000\r\n".to_vec(), vec![b'x'; 65_536], b"\r\n".to_vec()].concat();
        let writing = thread::spawn(move || while writer.write_all(&chunk).is_ok() {});
        let text = rest(&mut reader);
        assert_eq!(statuses(&text), [413], "{name}: the answer: {text}");
        writing.join().unwrap();
    }
    wait_until("the connections are closed", LIMIT, || bridge.daemon.metric("connections_open", &[]) == 0);
    Case::body("afterwards", good("afterwards"), Outcome::Accepted(good("afterwards"))).run(&bridge);
    let unsigned = Request::unsigned(&vec![b'x'; 200_000]);
    Case::new("large and unsigned", unsigned.bytes(), Outcome::Refused(401, "signature", Signature::NotSeen))
        .run(&bridge);
    bridge.stop();
}
