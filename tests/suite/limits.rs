//! Requests that arrive byte by byte, stop half-way or break off: time-outs count from the first byte, and every
//! request is counted.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, TcpStream};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{
    Answer, Bridge, Client, Daemon, LIMIT, PATH, Payload, Program, SECRET, Setup, plain, request_once, rest, sign,
    statuses, wait_until,
};

/// The time between two bytes: far below every time-out here.
const DROP: Duration = Duration::from_millis(50);

fn head(body: &[u8], framing: &str) -> Vec<u8> {
    let hex = sign(SECRET, body);
    format!("POST {PATH} HTTP/1.1\r\nHost: b\r\nX-Authorization-HMAC-256: {hex}\r\n{framing}\r\n\r\n").into_bytes()
}

fn accepted(bridge: &Bridge, cuid: &str) {
    let body = Payload::new(cuid).body();
    assert_eq!(request_once(&bridge.daemon, &body, &[]).status, 200, "a good request");
    bridge.accepted(&body);
}

/// Writes byte by byte until the other side has had enough or nothing is left.
fn drip(stream: &TcpStream, bytes: &[u8]) {
    let mut stream = stream;
    for byte in bytes {
        if stream.write_all(&[*byte]).is_err() {
            return;
        }
        thread::sleep(DROP);
    }
}

/// Drips from a thread; returns what the daemon answers meanwhile, and after how long it closed.
fn dripped(bridge: &Bridge, first: &[u8], bytes: Vec<u8>) -> (String, Duration) {
    let mut stream = plain(&bridge.daemon.ingress);
    stream.write_all(first).unwrap();
    let begun = Instant::now();
    let writer = stream.try_clone().unwrap();
    let writing = thread::spawn(move || drip(&writer, &bytes));
    accepted(bridge, "beside it");
    let text = rest(&mut stream);
    let took = begun.elapsed();
    // The rest of the bytes finds the connection closed.
    let _ = stream.shutdown(Shutdown::Both);
    writing.join().unwrap();
    (text, took)
}

#[test]
fn closes_on_a_head_that_comes_drop_by_drop() {
    let bridge = Bridge::start(|setup| setup.text("ingress.header_timeout", "400ms"));
    let endless = format!("POST {PATH} HTTP/1.1\r\nX-Long: {}", "x".repeat(100));
    let (text, took) = dripped(&bridge, b"", endless.into_bytes());
    assert_eq!(text, "", "a slow head just closes the connection");
    assert!(took < Duration::from_secs(4), "each drop bought more time: {took:?}");
    bridge.stop();
}

#[test]
fn answers_408_to_a_body_that_comes_drop_by_drop() {
    let bridge = Bridge::start(|setup| setup.takes_repeats().text("ingress.body_timeout", "400ms"));
    let body = Payload::new("dripping").body();
    let before = bridge.counters();
    for (framing, bytes) in [
        (format!("Content-Length: {}", body.len()), body.clone()),
        (
            "Transfer-Encoding: chunked".to_owned(),
            body.iter().flat_map(|byte| [b'1', b'\r', b'\n', *byte, b'\r', b'\n']).collect(),
        ),
    ] {
        let (text, took) = dripped(&bridge, &head(&body, &framing), bytes);
        assert_eq!(statuses(&text), [408], "{framing}: {text}");
        assert!(text.contains("application/problem+json"), "{framing}: {text}");
        assert!(took < Duration::from_secs(5), "{framing}: each drop bought more time: {took:?}");
    }
    let risen = bridge.risen_since(&before);
    for series in [
        "events_rejected_total{reason=\"timeout\",source=\"plextrac\"}",
        "requests_total{code=\"408\",source=\"plextrac\"}",
    ] {
        assert_eq!(risen.get(series), Some(&2), "{series}: {risen:?}");
    }
    bridge.stop();
}

#[test]
fn counts_a_sender_that_disconnects_within_its_body_without_an_event() {
    let bridge = Bridge::start(|setup| setup.text("ingress.body_timeout", "60s"));
    let body = Payload::new("half").body();
    let length = format!("Content-Length: {}", body.len());
    let chunks = [format!("{:x}\r\n", body.len()).into_bytes(), body.clone(), b"\r\n".to_vec()].concat();
    let halves = [
        ("no body at all", head(&body, &length)),
        ("half a body", [head(&body, &length), body[..50].to_vec()].concat()),
        ("all but a byte", [head(&body, &length), body[..body.len() - 1].to_vec()].concat()),
        ("half a chunk", [head(&body, "Transfer-Encoding: chunked"), chunks[..50].to_vec()].concat()),
        ("chunks without an end", [head(&body, "Transfer-Encoding: chunked"), chunks].concat()),
    ];
    let mut left = 0;
    for (name, bytes) in &halves {
        for way in ["end", "reset", "half-closed"] {
            let mut stream = plain(&bridge.daemon.ingress);
            stream.write_all(bytes).unwrap();
            // It is a request once its head was read: if none of the others is open, the connection is.
            wait_until("the head is read", LIMIT, || bridge.daemon.metric("connections_open", &[]) > 0);
            match way {
                "reset" => socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap(),
                "half-closed" => stream.shutdown(Shutdown::Write).unwrap(),
                _ => {}
            }
            if way == "half-closed" {
                let text = rest(&mut stream);
                assert!(!text.contains(" 200 "), "{name}: {text}");
            }
            drop(stream);
            wait_until("the connection is closed", LIMIT, || bridge.daemon.metric("connections_open", &[]) == 0);
            let counted = bridge.daemon.metric("events_rejected_total", &[("reason", "disconnected")]);
            // A reset may arrive before the head was read: then there was no request.
            assert!(
                counted == left + 1 || (way == "reset" && counted == left),
                "{name}, {way}: {counted} after {left}"
            );
            left = counted;
        }
    }
    assert!(left >= 10, "only {left} of 15 were noticed");
    let status = bridge.daemon.status();
    assert_eq!((status.count("received"), status.count("rejected")), (left, left), "all that was received left");
    accepted(&bridge, "after them");
    bridge.stop();
}

#[test]
fn accepts_a_whole_request_whose_sender_does_not_wait() {
    let bridge = Bridge::start(Setup::takes_repeats);
    let body = Payload::new("gone").body();
    let request = [head(&body, &format!("Content-Length: {}", body.len())), body.clone()].concat();
    for _ in 0..20 {
        let mut stream = plain(&bridge.daemon.ingress);
        stream.write_all(&request).unwrap();
        drop(stream);
        bridge.accepted(&body);
    }
    bridge.daemon.wait_until("all are received", LIMIT, |status| status.count("received") == 20);
    bridge.stop();
}

#[test]
fn serves_no_more_connections_than_it_may_and_the_next_one_when_one_ends() {
    let bridge = Bridge::start(|setup| {
        let setup = setup.takes_repeats().text("ingress.header_timeout", "60s");
        setup.raw("ingress.max_connections", "4").raw("ingress.threads", "2")
    });
    let mut served: Vec<_> = (0..4).map(|_| bridge.connect()).collect();
    wait_until("all four are served", LIMIT, || bridge.daemon.metric("connections_open", &[]) == 4);
    let body = Payload::new("fifth").body();
    let signature = sign(SECRET, &body);
    let request = [head(&body, &format!("Content-Length: {}", body.len())), body.clone()].concat();
    // Each carries an event: none is replaced before it has been idle for five seconds.
    for client in &mut served {
        let answer = client.send("POST", PATH, &[("X-Authorization-HMAC-256", &signature)], &body).unwrap();
        assert_eq!(answer.status, 200, "one of the four");
        bridge.accepted(&body);
    }
    let mut fifth = bridge.connect();
    fifth.write(&request).unwrap();
    assert_eq!(bridge.daemon.metric("connections_open", &[]), 4, "the limit");
    assert_eq!(bridge.daemon.status().count("received"), 4, "the fifth is not served");
    // The thread it waits at takes it once there is room.
    served.pop();
    assert_eq!(fifth.answer().unwrap().status, 200, "the fifth");
    bridge.accepted(&body);
    bridge.stop();
}

#[test]
fn closes_one_that_sends_events_and_reads_no_answer() {
    let bridge = Bridge::start(|setup| setup.text("ingress.header_timeout", "500ms"));
    let body = b"{}";
    let request = [head(body, "Content-Length: 2"), body.to_vec()].concat();
    let many = request.repeat(500);
    let mut deaf = plain(&bridge.daemon.ingress);
    let deadline = Instant::now() + LIMIT;
    // Its own buffers fill first, then the daemon's answers find no room, then it is closed.
    while deaf.write_all(&many).is_ok() {
        assert!(Instant::now() < deadline, "still served: {}", bridge.daemon.status().count("received"));
    }
    wait_until("the connection is closed", LIMIT, || bridge.daemon.metric("connections_open", &[]) == 0);
    let status = bridge.daemon.status();
    assert_eq!(
        status.count("received"),
        status.count("probe") + status.count("rejected"),
        "{}",
        status.0["accounting"]
    );
    assert_eq!(status.count("mismatch"), 0, "{}", status.0["accounting"]);
    accepted(&bridge, "after it");
    bridge.stop();
}

#[test]
fn takes_nothing_from_the_read_budget_for_a_length_that_is_only_announced() {
    let limits = |setup: Setup| setup.text("buffer.max_bytes", "1MiB").text("ingress.max_body", "256KiB");
    let bridge = Bridge::start(limits);
    // 16 x 256 KiB announced, four times the budget, and not a byte of them sent.
    let crowd: Vec<TcpStream> = (0..16)
        .map(|_| {
            let mut stream = plain(&bridge.daemon.ingress);
            stream.write_all(&head(b"", "Content-Length: 262144")).unwrap();
            stream
        })
        .collect();
    wait_until("the heads are read", Duration::from_secs(20), || {
        bridge.daemon.status().number("/connections/open") == 16
    });
    accepted(&bridge, "a small one beside the crowd");
    drop(crowd);
    wait_until("the crowd is counted", Duration::from_secs(20), || {
        bridge.daemon.metric("events_rejected_total", &[("source", "plextrac"), ("reason", "disconnected")]) == 16
    });
    bridge.stop();
}

#[test]
fn takes_nothing_from_the_read_budget_for_a_body_without_a_signature() {
    let limits = |setup: Setup| setup.text("buffer.max_bytes", "1MiB").text("ingress.max_body", "256KiB");
    let bridge = Bridge::start(|setup| limits(setup).text("ingress.body_timeout", "60s"));
    let most = "x".repeat(262_143);
    // Together larger than the budget, and a byte of each is still missing.
    let mut crowd: Vec<TcpStream> = (0..8)
        .map(|_| {
            let mut stream = plain(&bridge.daemon.ingress);
            let head = format!("POST {PATH} HTTP/1.1\r\nHost: b\r\nContent-Length: 262144\r\n\r\n");
            stream.write_all(&[head.as_bytes(), most.as_bytes()].concat()).unwrap();
            stream
        })
        .collect();
    accepted(&bridge, "a small one beside the crowd");
    for stream in &mut crowd {
        stream.write_all(b"x").unwrap();
    }
    wait_until("each has its answer", Duration::from_secs(20), || {
        bridge.daemon.metric("events_rejected_total", &[("source", "plextrac"), ("reason", "signature")]) == 8
    });
    bridge.stop();
}

#[test]
fn leaves_a_quarter_of_the_read_budget_to_bodies_of_the_usual_size() {
    let limits = |setup: Setup| setup.text("buffer.max_bytes", "1MiB").text("ingress.max_body", "256KiB");
    let bridge = Bridge::start(|setup| limits(setup).text("ingress.body_timeout", "60s"));
    // Signed by nobody, which shows only at the end: a byte of each is missing.
    let signature = "0".repeat(64);
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: b\r\nX-Authorization-HMAC-256: {signature}\r\nContent-Length: 262144\r\n\r\n"
    );
    let bytes = [head.as_bytes(), "x".repeat(262_143).as_bytes()].concat();
    let crowd: Vec<TcpStream> = (0..8)
        .map(|_| {
            let mut stream = plain(&bridge.daemon.ingress);
            // A reset if the daemon has refused it already.
            let _ = stream.write_all(&bytes);
            stream
        })
        .collect();
    wait_until("the crowd has all that it gets", Duration::from_secs(20), || {
        bridge.daemon.metric("events_rejected_total", &[("source", "plextrac"), ("reason", "buffer_full")]) >= 4
    });
    for number in 0..10 {
        accepted(&bridge, &format!("of the usual size {number}"));
    }
    drop(crowd);
    bridge.stop();
}

#[test]
fn answers_although_nobody_reads_its_log() {
    let directory = tempfile::tempdir().unwrap();
    let toml = "[ingress]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"\"\n[log]\nformat = \"json\"\nlevel = \"debug\"\n\
                [sources.a]\nunsigned = true\n[broker.file]\n";
    std::fs::write(directory.path().join("bridge.toml"), toml).unwrap();
    let mut command = Program::new(["serve", "--config", "bridge.toml"]).within(directory.path()).into_command();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("\"listening\"") {
        line.clear();
        log.read_line(&mut line).unwrap();
    }
    let listening: serde_json::Value = serde_json::from_str(&line).unwrap();
    let ingress = listening["ingress"].as_str().unwrap();
    // A pipe holds 64 KiB: each of these is a line or more of debug and of refusals.
    let path = format!("/{}", "x".repeat(2000));
    for _ in 0..2000 {
        let answer = Client::connect(ingress).unwrap().send("POST", &path, &[], b"").unwrap();
        assert_eq!(answer.status, 404);
    }
    let body = Payload::new("unread").body();
    let answer = Client::connect(ingress).unwrap().send("POST", PATH, &[], &body).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn is_ready_again_after_each_event_of_a_buffer_for_one() {
    let setup = Setup::on_files().raw("buffer.max_events", "1");
    let daemon = setup.start();
    for number in 0..3 {
        wait_until("it takes one", LIMIT, || {
            request_once(&daemon, &Payload::new(format!("cuid-{number}")).body(), &[]).status == 200
        });
        daemon.wait_until_empty();
        wait_until("it is ready", LIMIT, || daemon.get("/readyz").status == 200);
    }
    assert_eq!(daemon.stop().count("published"), 3);
}

/// Sends a request whose body is complete only after `publish.timeout`, which is a second.
fn slowly(daemon: &Daemon, cuid: &str) -> Answer {
    let body = Payload::new(cuid).body();
    let mut client = Client::connect(&daemon.ingress).unwrap();
    client.write(&head(&body, &format!("Content-Length: {}", body.len()))).unwrap();
    client.write(&body[..10]).unwrap();
    // The sender is slow; nothing is waited for.
    thread::sleep(Duration::from_millis(1_100));
    client.write(&body[10..]).unwrap();
    client.answer().unwrap()
}

#[test]
fn leaves_the_event_of_a_slow_sender_some_time() {
    for ack in ["journaled", "published"] {
        let daemon = Setup::on_files().text("ack", ack).text("publish.timeout", "1s").start();
        // A busy disk may need more than that.
        let mut tries = 0..;
        wait_until("the answer is 200", LIMIT, || {
            let cuid = format!("cuid-{:?}", tries.next());
            slowly(&daemon, &cuid).status == 200
        });
    }
}

#[test]
fn says_with_the_503_of_disk_and_broker_that_the_request_took_most_of_the_time() {
    for (ack, hangs) in [("journaled", "journal.written=hang"), ("published", "file.sync=hang")] {
        let daemon = Setup::on_files().text("ack", ack).text("publish.timeout", "1s").failpoints(hangs).start();
        let answer = slowly(&daemon, "cuid-1");
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(answer.header("retry-after").is_some(), "{ack}: no Retry-After");
        assert!(answer.text().contains("the request took most of the time"), "{}", answer.text());
    }
}
