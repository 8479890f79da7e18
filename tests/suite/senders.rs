//! Mistakes that a sender can make on a connection, and the load that many of them can cause; on the file broker.

use std::fs;
use std::io;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::{Client, Daemon, LIMIT, PATH, Payload, SECRET, Setup, get, request_once, sign, wait_until};

/// The time limit of a good request beside bad ones: scheduling on a busy machine, not work.
const FAST: Duration = Duration::from_secs(2);

fn head(signature: &str, length: usize) -> String {
    format!(
        "POST {PATH} HTTP/1.1\r\nHost: b\r\nX-Authorization-HMAC-256: {signature}\r\nContent-Length: {length}\r\n\r\n"
    )
}

fn good_request_is_fast(daemon: &Daemon) {
    let began = Instant::now();
    assert_eq!(request_once(daemon, &Payload::new("cuid-good").body(), &[]).status, 200);
    assert!(began.elapsed() < FAST, "a good request took {:?}", began.elapsed());
}

#[test]
fn creates_no_event_from_half_a_body() {
    let daemon = Setup::on_files().start();
    let body = Payload::new("cuid-half").body();
    let signature = sign(SECRET, &body);
    for at in 0..20 {
        let stream = TcpStream::connect(&daemon.ingress).unwrap();
        if at % 2 == 0 {
            // A reset instead of an end.
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
        let half = [head(&signature, body.len()).as_bytes(), &body[..body.len() / 2]].concat();
        io::Write::write_all(&mut &stream, &half).unwrap();
        // Its headers must have been read; otherwise there was no request yet.
        wait_until("the request is being read", LIMIT, || {
            daemon.status().number("/connections/open") > 0
                || daemon.metric("events_rejected_total", &[("reason", "disconnected")]) > at
        });
        drop(stream);
    }
    wait_until("the senders are gone", LIMIT, || daemon.metric("connections_open", &[]) == 0);
    let status = daemon.status();
    let gone = daemon.metric("events_rejected_total", &[("reason", "disconnected")]);
    assert_eq!((status.count("accepted"), status.count("rejected")), (0, gone));
    assert!(gone > 0, "no request was noticed");
    good_request_is_fast(&daemon);
    let stopped = daemon.stop();
    assert_eq!((stopped.code, stopped.count("published")), (Some(0), 1));
    assert_eq!(stopped.count("received"), stopped.count("accepted") + stopped.count("rejected"));
}

#[test]
fn counts_every_request_whose_sender_does_not_wait_for_the_answer() {
    let setup = Setup::on_files();
    let daemon = setup.start();
    for at in 0..50 {
        let body = Payload::new(format!("cuid-{at}")).body();
        let stream = TcpStream::connect(&daemon.ingress).unwrap();
        let request = [head(&sign(SECRET, &body), body.len()).as_bytes(), &body].concat();
        io::Write::write_all(&mut &stream, &request).unwrap();
    }
    wait_until("the senders are gone", LIMIT, || {
        let status = daemon.status();
        status.count("received") > 0 && status.number("/connections/open") == 0
    });
    let stopped = daemon.stop();
    assert_eq!(stopped.code, Some(0));
    assert_eq!(stopped.count("received"), stopped.count("accepted") + stopped.count("rejected"));
    assert_eq!(stopped.count("published"), stopped.count("accepted"));
    let file = setup.directory().join("events/ReportPublished.report.ndjson");
    let lines = fs::read_to_string(file).unwrap_or_default().lines().count() as u64;
    assert_eq!(lines, stopped.count("accepted"), "lines in the file");
}

#[test]
fn closes_silent_connections_and_slow_headers() {
    let setup = Setup::on_files().text("ingress.header_timeout", "500ms").text("ingress.idle_timeout", "700ms");
    let daemon = setup.start();
    let mut silent = Client::connect(&daemon.ingress).unwrap();
    let mut slow = Client::connect(&daemon.ingress).unwrap();
    slow.write(b"POST /webhooks/plextrac HTTP/1.1\r\nHost: b\r\nX-Slow").unwrap();
    let mut idle = Client::connect(&daemon.ingress).unwrap();
    assert_eq!(idle.send("GET", "/", &[], b"").unwrap().status, 404);
    good_request_is_fast(&daemon);
    for (name, client) in [("silent", &mut silent), ("slow", &mut slow), ("idle", &mut idle)] {
        assert!(client.is_closed_by_server(), "the {name} connection stays open");
    }
    good_request_is_fast(&daemon);
}

#[test]
fn answers_408_to_a_slow_body() {
    let daemon = Setup::on_files().text("ingress.body_timeout", "500ms").start();
    let body = Payload::new("cuid-slow").body();
    let mut slow = Client::connect(&daemon.ingress).unwrap();
    slow.write(head(&sign(SECRET, &body), body.len()).as_bytes()).unwrap();
    slow.write(&body[..10]).unwrap();
    good_request_is_fast(&daemon);
    assert_eq!(slow.answer().unwrap().status, 408);
    assert!(slow.is_closed_by_server(), "the connection stays open");
    assert_eq!(daemon.metric("events_rejected_total", &[("reason", "timeout")]), 1);
    assert_eq!(daemon.status().count("accepted"), 1);
}

#[test]
fn closes_a_connection_that_does_not_read_its_answers() {
    let daemon = Setup::on_files().text("ingress.header_timeout", "1s").start();
    let mut deaf = Client::connect(&daemon.ingress).unwrap();
    let requests = "GET /nothing/here HTTP/1.1\r\nHost: b\r\n\r\n".repeat(1_000);
    let deadline = Instant::now() + LIMIT;
    // The sockets' buffers fill, then the daemon waits for its reader, then it gives up.
    let error = loop {
        assert!(Instant::now() < deadline, "still reading requests of a sender that reads no answer");
        if let Err(error) = deaf.write(requests.as_bytes()) {
            break error;
        }
    };
    let kind = error.kind();
    assert!(
        matches!(kind, io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset),
        "the connection stays open: {error}"
    );
    good_request_is_fast(&daemon);
}

#[test]
fn answers_a_good_request_beside_hundreds_of_idle_connections() {
    let daemon = Setup::on_files().text("ingress.header_timeout", "60s").start();
    // Both processes stay below the usual limit of 1024 descriptors.
    let idle: Vec<TcpStream> = (0..600).map(|_| TcpStream::connect(&daemon.ingress).unwrap()).collect();
    wait_until("all are open", LIMIT, || daemon.metric("connections_open", &[]) >= 600);
    good_request_is_fast(&daemon);
    assert_eq!(get(&daemon.admin, "/livez").unwrap().status, 200);
    drop(idle);
    wait_until("all are closed", LIMIT, || daemon.metric("connections_open", &[]) == 0);
}

#[test]
fn makes_room_when_every_connection_is_taken_by_a_silent_one() {
    let daemon = Setup::on_files().text("ingress.header_timeout", "1s").raw("ingress.max_connections", "8").start();
    let silent: Vec<TcpStream> = (0..8).map(|_| TcpStream::connect(&daemon.ingress).unwrap()).collect();
    wait_until("all are open", LIMIT, || daemon.metric("connections_open", &[]) == 8);
    assert_eq!(request_once(&daemon, &Payload::new("cuid-1").body(), &[]).status, 200);
    assert!(daemon.metric("connections_open", &[]) <= 8);
    drop(silent);
}

#[test]
fn leaves_descriptors_to_the_rest_however_many_connections_are_silent() {
    let setup = Setup::on_files().open_files(320).raw("ingress.threads", "2").text("ingress.header_timeout", "60s");
    let daemon = setup.start();
    daemon.wait_for_line("that the limit is low", |line| {
        line["level"] == "WARN" && line.to_string().contains("at most 320 files may be open")
    });
    // The kernel accepts them all.
    let many: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(&daemon.ingress).unwrap()).collect();
    wait_until("as many are open as may be", LIMIT, || {
        daemon.status().number("/connections/open") == daemon.metric("connections_capacity", &[])
    });
    assert_eq!(get(&daemon.admin, "/livez").unwrap().status, 200);
    // Each silent one before it in the queue makes room for the next after a moment.
    wait_until("a good request is answered", LIMIT, || answers_200(&daemon));
    daemon.wait_until_empty();
    drop(many);
    let stopped = daemon.stop();
    assert_eq!(stopped.code, Some(0), "{}", stopped.log);
    assert!(!stopped.log.contains("Too many open files"), "{}", stopped.log);
}

#[test]
fn recovers_when_it_ran_out_of_descriptors() {
    let daemon = Setup::on_files().text("ingress.header_timeout", "60s").start();
    good_request_is_fast(&daemon);
    // Below what is open already.
    let limit = daemon.limit_open_files(3);
    let waiting = TcpStream::connect(&daemon.ingress).unwrap();
    daemon.wait_for_line("that it cannot accept", |line| line.to_string().contains("Too many open files"));
    let (before, began) = (processor_ticks(&daemon), Instant::now());
    // A busy loop shows only over some time.
    std::thread::sleep(Duration::from_secs(1));
    let used = processor_ticks(&daemon) - before;
    // Linux counts 100 ticks a second.
    assert!(used < 50, "{used} ticks of the processor in {:?}: a busy loop", began.elapsed());
    daemon.limit_open_files(limit);
    wait_until("a good request is answered", LIMIT, || answers_200(&daemon));
    drop(waiting);
    let stopped = daemon.stop();
    assert_eq!(stopped.code, Some(0), "{}", stopped.log);
}

#[test]
fn keeps_a_signed_body_although_there_is_no_descriptor_for_its_file() {
    let daemon = Setup::on_files().start();
    let mut client = Client::connect(&daemon.ingress).unwrap();
    let headers = [("X-Authorization-HMAC-256", &*sign(SECRET, b"{"))];
    assert_eq!(client.send("GET", PATH, &[], b"").unwrap().status, 405, "it is accepted");
    let limit = daemon.limit_open_files(3);
    assert_eq!(client.send("POST", PATH, &headers, b"{").unwrap().status, 400);
    daemon.wait_for_line("that it is not kept yet", |line| line.to_string().contains("Too many open files"));
    daemon.limit_open_files(limit);
    wait_until("it is kept", LIMIT, || daemon.metric("invalid_kept_total", &[("reason", "malformed")]) == 1);
    assert_eq!(daemon.stop().code, Some(0));
}

/// Whether a good request is answered 200.
fn answers_200(daemon: &Daemon) -> bool {
    let body = Payload::new("cuid-after").body();
    let signature = sign(SECRET, &body);
    let headers = [("X-Authorization-HMAC-256", signature.as_str())];
    let answer = Client::connect(&daemon.ingress).and_then(|mut client| client.send("POST", PATH, &headers, &body));
    answer.is_ok_and(|answer| answer.status == 200)
}

fn processor_ticks(daemon: &Daemon) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    // Fields 14 and 15 of proc(5): user and system time.
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
