//! The first head of a connection: in pieces, with more behind it, malformed, never completed; what happens to it at a
//! stop and where all connections are taken; the memory that it takes.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::case::{Request, good};
use crate::support::{
    Authority, Bridge, LIMIT, PATH, Setup, over_tls, plain, rest, statuses, until_closed, wait_until,
};

/// A signed request whose head is larger than one read.
fn large(body: &[u8]) -> Request {
    Request::signed(body).header("X-Long", "x".repeat(12_000))
}

/// The status of the next answer, which has a JSON body.
fn status(stream: &mut impl std::io::Read) -> u16 {
    let mut text = Vec::new();
    let mut buffer = [0; 2048];
    while !text.ends_with(b"}") {
        let read = stream.read(&mut buffer).expect("the daemon answers");
        assert_ne!(read, 0, "closed after {:?}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&buffer[..read]);
    }
    statuses(&String::from_utf8_lossy(&text))[0]
}

/// The number of connections of an IPv4 address that have bytes which the daemon has not read.
fn unread(address: &str) -> usize {
    let port: u16 =
        address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("an address has a port");
    let (port, table) = (format!(":{port:04X}"), std::fs::read_to_string("/proc/net/tcp").expect("Linux has it"));
    let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // Its own address, the state (01: established), and the queues for sending and receiving.
    lines.filter(|line| line[1].ends_with(&port) && line[3] == "01" && !line[4].ends_with(":00000000")).count()
}

#[test]
fn takes_a_first_head_split_anywhere_and_another_request_behind_it() {
    let bridge = Bridge::start(Setup::takes_repeats);
    let body = good("split");
    let bytes = Request::signed(&body).bytes();
    for at in 1..bytes.len() {
        let mut client = bridge.connect();
        client.write(&bytes[..at]).unwrap();
        client.write(&bytes[at..]).unwrap();
        assert_eq!(client.answer().expect("an answer").status, 200, "split at {at}");
        client.write(&bytes).unwrap();
        assert_eq!(client.answer().expect("the connection is kept").status, 200, "split at {at}, the second");
        bridge.accepted(&body);
        bridge.accepted(&body);
    }
    bridge.stop();
}

#[test]
fn answers_what_is_behind_a_first_head_in_order() {
    let bridge = Bridge::start(Setup::takes_repeats);
    let (body, unsigned) = (good("behind"), Request::unsigned(b"{}").bytes());
    let last = Request::signed(b"{}").header("Connection", "close").bytes();
    for first in [Request::signed(&body), large(&body), Request::signed(&body).chunked(50)] {
        let bytes = [&first.bytes()[..], &unsigned, &first.bytes(), &last].concat();
        // At once; with all but the last bytes of the first head before the rest; and byte by byte.
        for piece in [bytes.len(), first.head().len() - 3, 1] {
            let mut stream = plain(&bridge.daemon.ingress);
            bytes.chunks(piece).for_each(|piece| stream.write_all(piece).unwrap());
            assert_eq!(statuses(&rest(&mut stream)), [200, 401, 200, 200], "in pieces of {piece}");
            bridge.accepted(&body);
            bridge.accepted(&body);
        }
    }
    bridge.stop();
}

#[test]
fn says_100_continue_and_takes_a_half_close_after_a_head_in_pieces() {
    let bridge = Bridge::start(Setup::takes_repeats);
    let body = good("continued");
    let request = Request::signed(&body).header("Expect", "100-continue");
    let mut client = bridge.connect();
    for byte in request.head() {
        client.write(&[byte]).unwrap();
    }
    assert_eq!(client.answer().expect("an interim answer").status, 100);
    client.write(&body).unwrap();
    assert_eq!(client.answer().expect("an answer").status, 200);
    bridge.accepted(&body);
    let mut stream = plain(&bridge.daemon.ingress);
    for byte in Request::signed(&body).bytes() {
        stream.write_all(&[byte]).unwrap();
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(statuses(&rest(&mut stream)), [200]);
    bridge.accepted(&body);
    bridge.stop();
}

#[test]
fn refuses_a_malformed_or_large_first_head_at_once_in_however_many_pieces() {
    let bridge = Bridge::start(|setup| setup.text("ingress.header_timeout", "60s"));
    let begin = format!("POST {PATH} HTTP/1.1\r\n");
    let cases = [
        ("TLS", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".to_vec(), 400),
        ("PROXY, version 1", b"PROXY TCP4 192.0.2.1 192.0.2.2 5 80\r\n".to_vec(), 400),
        ("another version", format!("POST {PATH} HTTP/2.0\r\nHost: b\r\n{}", "x".repeat(100)).into_bytes(), 400),
        ("a control character", [begin.as_bytes(), b"X: \0", &[b'x'; 100]].concat(), 400),
        ("a large head", [begin.as_bytes(), b"X: ", &[b'x'; 16 << 10]].concat(), 431),
        ("many headers", [begin.as_bytes(), &b"X: y\r\n".repeat(1_000)].concat(), 431),
    ];
    for (number, (name, bytes, code)) in cases.iter().enumerate() {
        for piece in [bytes.len(), 7, 1] {
            let mut stream = plain(&bridge.daemon.ingress);
            for piece in bytes.chunks(piece) {
                // The answer may have been given before the end.
                if stream.write_all(piece).is_err() {
                    break;
                }
            }
            // This side stays open: it is closed because of the answer.
            assert_eq!(statuses(&rest(&mut stream)), [*code], "{name} in pieces of {piece}");
        }
        let counted = |code| bridge.daemon.metric("requests_total", &[("source", "none"), ("code", code)]);
        wait_until(name, LIMIT, || counted("400") + counted("431") == 3 * (number as u64 + 1));
    }
    bridge.stop();
}

#[test]
fn closes_a_first_head_that_is_never_completed() {
    let bridge = Bridge::start(|setup| setup.text("ingress.header_timeout", "500ms"));
    for begin in [&b""[..], b"P", b"\r\n\r\n", &large(b"").bytes()[..9_000]] {
        let begun = Instant::now();
        assert_eq!(until_closed(&bridge.daemon.ingress, begin), "");
        let took = begun.elapsed();
        assert!(took > Duration::from_millis(400) && took < Duration::from_secs(5), "closed after {took:?}");
    }
    bridge.stop();
}

#[test]
fn answers_a_first_head_that_a_stop_meets_half_way() {
    let bridge = Bridge::start(|setup| setup.text("ingress.header_timeout", "30s"));
    let body = good("through the stop");
    let bytes = large(&body).bytes();
    let mut half = plain(&bridge.daemon.ingress);
    half.write_all(&bytes[..9_000]).unwrap();
    wait_until("it is accepted", LIMIT, || bridge.daemon.metric("connections_open", &[]) == 1);
    bridge.daemon.terminate();
    wait_until("no other is accepted", LIMIT, || TcpStream::connect(&bridge.daemon.ingress).is_err());
    half.write_all(&bytes[9_000..]).unwrap();
    let answer = rest(&mut half);
    assert_eq!(statuses(&answer), [200]);
    assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
    let (stopped, arrived) = bridge.ended();
    assert_eq!((stopped.code, arrived.len()), (Some(0), 1), "{}", stopped.log);
}

#[test]
fn a_stop_waits_for_a_first_head_no_longer_than_it_may_take() {
    let bridge = Bridge::start(|setup| setup.text("ingress.header_timeout", "1s").text("shutdown.grace", "30s"));
    let mut half = plain(&bridge.daemon.ingress);
    half.write_all(b"POST /webhooks/pl").unwrap();
    wait_until("it is accepted", LIMIT, || bridge.daemon.metric("connections_open", &[]) == 1);
    let begun = Instant::now();
    bridge.stop();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(rest(&mut half), "");
}

#[test]
fn replaces_a_silent_connection_and_none_whose_first_head_has_begun() {
    let bridge =
        Bridge::start(|setup| setup.text("ingress.header_timeout", "60s").raw("ingress.max_connections", "2"));
    let body = good("half");
    let bytes = Request::signed(&body).bytes();
    let mut half = plain(&bridge.daemon.ingress);
    half.write_all(&bytes[..40]).unwrap();
    wait_until("it is accepted", LIMIT, || bridge.daemon.metric("connections_open", &[]) == 1);
    for number in 0..5 {
        let mut silent = plain(&bridge.daemon.ingress);
        wait_until("both are open", LIMIT, || bridge.daemon.metric("connections_open", &[]) == 2);
        let new = good(&format!("new {number}"));
        let request = Request::signed(&new).header("Connection", "close").bytes();
        assert_eq!(statuses(&until_closed(&bridge.daemon.ingress, &request)), [200]);
        bridge.accepted(&new);
        assert_eq!(silent.read(&mut [0]).expect("it is closed in an orderly way"), 0);
    }
    half.write_all(&bytes[40..]).unwrap();
    assert_eq!(status(&mut half), 200);
    bridge.accepted(&body);
    drop(half);
    bridge.stop();
}

#[test]
fn takes_a_first_head_in_pieces_over_tls() {
    let authority = Authority::new();
    let setup = Setup::on_files();
    let (certificate, key) = authority.issue().write(setup.directory(), "server");
    let daemon = setup
        .text("ingress.tls.certificate_file", &certificate.display().to_string())
        .text("ingress.tls.key_file", &key.display().to_string())
        .start();
    let mut stream = over_tls(&daemon.ingress, authority.client(None)).expect("it is trusted");
    for (number, piece) in [1, 100, 20_000].into_iter().enumerate() {
        for piece in large(&good(&format!("piece {number}"))).bytes().chunks(piece) {
            stream.write_all(piece).unwrap();
        }
        assert_eq!(status(&mut stream), 200, "in pieces of {piece}");
    }
    assert_eq!(daemon.metric("events_accepted_total", &[]), 3);
}

#[test]
fn takes_little_more_memory_for_an_unfinished_request_than_has_arrived() {
    let setup = |setup: Setup| setup.text("ingress.header_timeout", "60s").text("ingress.body_timeout", "60s");
    let head = large(b"").bytes();
    // Without a signature a body takes no memory: what is left is hyper's.
    let body = Request::unsigned(&vec![b'x'; 131_072]).bytes();
    let cases = [("a short head", &head[..100], 6 << 10), ("a long head", &head[..12_000], 18 << 10)];
    for (name, bytes, most) in cases.into_iter().chain([("a body", &body[..body.len() - 1], 23 << 10)]) {
        let bridge = Bridge::start(setup);
        let resident = || bridge.daemon.resident();
        // All that only the first connection takes.
        let first = Request::unsigned(b"{}").header("Connection", "close").bytes();
        assert_eq!(statuses(&until_closed(&bridge.daemon.ingress, &first)), [401]);
        let before = resident();
        let open = || {
            let mut stream = plain(&bridge.daemon.ingress);
            stream.write_all(bytes).unwrap();
            stream
        };
        let open: Vec<TcpStream> = (0..450).map(|_| open()).collect();
        wait_until("all are accepted", LIMIT, || bridge.daemon.metric("connections_open", &[]) == 450);
        wait_until("all bytes are read", LIMIT, || unread(&bridge.daemon.ingress) == 0);
        let each = resident().saturating_sub(before) / 450;
        assert!(each < most, "{name}: {each} bytes each");
        drop(open);
    }
}
