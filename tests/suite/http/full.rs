//! 503: the buffer or the read budget is full, or the bridge is stopping; the answer has Retry-After, and requests
//! succeed again afterwards.

use super::case::{Case, Outcome, Request, Signature, good};
use crate::support::{Bridge, LIMIT, Payload, wait_until};

const FULL: Outcome = Outcome::Refused(503, "buffer_full", Signature::Matched);

fn accepted(cuid: &str) -> Case {
    Case::body(cuid, good(cuid), Outcome::Accepted(good(cuid)))
}

#[test]
fn answers_503_when_the_buffer_has_no_room_for_an_event() {
    let bridge = Bridge::start_without_broker(|setup| setup.raw("buffer.max_events", "3").strict());
    for cuid in ["first", "second", "third"] {
        accepted(cuid).run(&bridge);
    }
    let detail = "the buffer is full because the broker is away or slow; try again later";
    Case::body("one too many", good("one too many"), FULL).detail(detail).run(&bridge);
    // Requests that need no room are answered as usual.
    Case::body("a connection test", "{}", Outcome::Probe).run(&bridge);
    Case::body("invalid", r#"{"event":1}"#, Outcome::Refused(422, "invalid", Signature::Matched)).run(&bridge);
    Case::body("a repeat", good("second"), Outcome::Duplicate).run(&bridge);
    bridge.bring_the_broker_back();
    bridge.check();
    accepted("there is room again").run(&bridge);
    bridge.stop();
}

#[test]
fn answers_503_when_the_buffer_has_no_room_for_the_bytes() {
    // Room for two of 10,000 bytes and their overhead of 512, and for a smaller one.
    let bridge = Bridge::start_without_broker(|setup| {
        setup.text("buffer.max_bytes", "22000B").text("ingress.max_body", "10000B")
    });
    let sized = |cuid: &str, bytes: usize, outcome: fn(Vec<u8>) -> Outcome| {
        let body = Payload::new(cuid).body_of(bytes);
        Case::body(cuid, body.clone(), outcome(body))
    };
    sized("first", 10_000, Outcome::Accepted).run(&bridge);
    sized("second", 10_000, Outcome::Accepted).run(&bridge);
    sized("too large now", 500, |_| FULL).run(&bridge);
    sized("small enough", 400, Outcome::Accepted).run(&bridge);
    let status = bridge.daemon.status();
    assert_eq!(status.number("/buffer/bytes"), 2 * 10_512 + 912, "what the buffer holds");
    bridge.bring_the_broker_back();
    bridge.stop();
}

#[test]
fn answers_503_when_the_bodies_being_read_have_used_their_budget() {
    // One thread: what arrived before the next connection is read, and charged, before that one's body is.
    let bridge = Bridge::start(|setup| {
        setup
            .text("buffer.max_bytes", "11000B")
            .text("ingress.max_body", "10000B")
            .text("ingress.body_timeout", "60s")
            .raw("ingress.threads", "1")
    });
    let slow = Payload::new("slow").body_of(8_000);
    let head = Request::signed(&slow).head();
    let mut client = bridge.connect();
    client.write(&[&head[..], &slow[..7_000]].concat()).unwrap();
    // The first answer to a later connection comes after that.
    assert_eq!(bridge.connect().send("GET", "/", &[], b"").unwrap().status, 404);
    let body = Payload::new("beside it").body_of(8_000);
    let none = Outcome::Refused(503, "buffer_full", Signature::NotSeen);
    let detail = "too many bodies are being read at the moment; try again later";
    Case::body("with a length", &body, none.clone()).detail(detail).run(&bridge);
    Case::new("in chunks", Request::signed(&body).chunked(1000).bytes(), none).detail(detail).run(&bridge);
    accepted("small").run(&bridge);
    client.write(&slow[7_000..]).unwrap();
    assert_eq!(client.answer().unwrap().status, 200, "the slow one");
    bridge.accepted(&slow);
    // The buffer is bounded by the same number, so it has to be empty first.
    bridge.check();
    Case::body("after it", &body, Outcome::Accepted(body.clone())).run(&bridge);
    bridge.stop();
}

#[test]
fn finishes_the_request_that_was_begun_before_the_stop() {
    let bridge = Bridge::start(|setup| setup.text("ingress.body_timeout", "60s"));
    let body = good("begun");
    let request = Request::signed(&body).header("Expect", "100-continue");
    let mut client = bridge.connect();
    client.write(&request.head()).unwrap();
    assert_eq!(client.answer().unwrap().status, 100, "the body is being read");
    bridge.daemon.terminate();
    wait_until("nobody can connect any more", LIMIT, || {
        std::net::TcpStream::connect(&bridge.daemon.ingress).is_err()
    });
    client.write(&body).unwrap();
    assert_eq!(client.answer().unwrap().status, 200, "the answer to what was begun");
    let (stopped, arrived) = bridge.ended();
    assert_eq!(
        (stopped.code, stopped.count("published"), stopped.count("lost")),
        (Some(0), 1, 0),
        "{}",
        stopped.last
    );
    assert_eq!(arrived.len(), 1, "what arrived: {arrived:?}");
}

#[test]
fn waits_no_longer_than_the_grace_for_a_body() {
    let bridge = Bridge::start(|setup| setup.text("ingress.body_timeout", "60s").text("shutdown.grace", "300ms"));
    let request = Request::signed(&good("never sent")).header("Expect", "100-continue");
    let mut client = bridge.connect();
    client.write(&request.head()).unwrap();
    assert_eq!(client.answer().unwrap().status, 100, "the body is being read");
    bridge.daemon.terminate();
    let (stopped, arrived) = bridge.ended();
    assert_eq!((stopped.code, arrived.len()), (Some(0), 0), "{}", stopped.last);
    assert_eq!(
        (stopped.count("received"), stopped.count("rejected")),
        (1, 1),
        "counted as one that left: {}",
        stopped.last
    );
}
