//! The admin page in a real browser, beside a running daemon: it shows events, refusals and the broker, and requests
//! nothing from other hosts.

use crate::support::{Bridge, Browser, Client, LIMIT, PATH, Payload, Setup, request_once, sign};

fn open(bridge: &Bridge) -> Browser {
    Browser::open(&format!("http://{}/", bridge.daemon.admin))
}

/// Sends one request with this path, signature and body; returns the status of its answer.
fn sends(bridge: &Bridge, path: &str, signature: &str, body: &[u8]) -> u16 {
    let headers = [("X-Authorization-HMAC-256", signature)];
    let answer = bridge.connect().send("POST", path, &headers, body);
    answer.expect("it is answered").status
}

/// A connection, and the address that the daemon sees of it.
fn known(bridge: &Bridge) -> (Client, String) {
    let client = bridge.connect();
    let address = client.address();
    (client, address)
}

#[test]
fn shows_what_comes_while_it_is_open() {
    let bridge = Bridge::start(|setup| setup);
    let page = open(&bridge);
    page.wait("#headline", "Ready");
    page.wait("#empty", "No webhook has arrived yet");
    assert!(page.read("#empty li li")[0].contains(PATH), "{:?}", page.read("#empty"));
    for number in 0..40 {
        let body = Payload::new(format!("event {number}")).body();
        assert_eq!(request_once(&bridge.daemon, &body, &[]).status, 200);
        bridge.accepted(&body);
    }
    for tile in ["#accepted", "#published"] {
        page.wait(&format!("{tile} .big"), "40");
        page.wait(&format!("{tile} .note"), "+40 in ");
        // A line that rises from the bottom: some height other than that of zero.
        let drawn = page.attribute(&format!("{tile} path"), "d");
        assert!(drawn[0].split('V').skip(1).any(|step| !step.starts_with("38")), "{tile}: {drawn:?}");
        let spoken = page.attribute(&format!("{tile} svg"), "aria-label");
        assert!(spoken[0].contains("per second over the last 5 minutes, at most "), "{spoken:?}");
    }
    page.wait(".source .counts", "40");
    assert_eq!(page.read("#empty"), [""; 0], "the steps for the first webhook are over");
    assert_eq!(page.read(".source [data-f=recent]"), [""; 0], "nothing was refused");
    page.wait("#books tbody tr", "✓ adds up");
    assert_eq!(page.complaints().as_array().map(Vec::len), Some(0), "{}", page.complaints());
    bridge.stop();
}

#[test]
fn says_why_a_connection_test_failed_from_where_and_what_to_do() {
    let bridge = Bridge::start(Setup::strict);
    let page = open(&bridge);
    let body = Payload::new("never shown").body();
    let (mut client, address) = known(&bridge);
    let wrong = sign("another secret, 0123456789", &body);
    let answer = client.send("POST", PATH, &[("X-Authorization-HMAC-256", &wrong)], &body);
    assert_eq!(answer.expect("it is answered").status, 401);
    page.wait(".source [data-f=refusals] tbody tr", "signature");
    let row = &page.read(".source [data-f=refusals] tbody tr")[0];
    for part in ["401", "signature", &address, "copy the secret again"] {
        assert!(row.contains(part), "no {part:?} in {row:?}");
    }
    let invalid = br#"{"event":"<img src=x onerror=alert(1)>"}"#;
    assert_eq!(sends(&bridge, PATH, &sign(crate::support::SECRET, invalid), invalid), 422);
    page.wait(".source [data-f=refusals] tbody tr", "validation = \"lenient\"");
    let path = "/webhooks/PlexTrac";
    assert_eq!(sends(&bridge, path, &wrong, &body), 404);
    page.wait("#unknown tbody tr", "Probably meant: /webhooks/plextrac");
    // Read as markup it would look different.
    let strange = "/&lt;b&gt;";
    assert_eq!(sends(&bridge, strange, &wrong, &body), 404);
    page.wait("#unknown tbody tr", strange);
    let row = &page.read("#unknown tbody tr")[0];
    assert!(row.contains("127.0.0.1:"), "from where: {row:?}");
    let all = page.read("body").join(" ");
    for secret in ["never shown", &wrong, "onerror"] {
        assert!(!all.contains(secret), "{secret:?} of a request is on the page");
    }
    for (width, scheme) in [(1200, "light"), (1200, "dark"), (380, "light"), (380, "dark")] {
        assert!(page.fits(width, scheme), "wider than a window of {width}");
    }
    assert_eq!(page.complaints().as_array().map(Vec::len), Some(0), "{}", page.complaints());
}

#[test]
fn shows_how_payloads_depart_from_the_documented_one() {
    let bridge = Bridge::start(|setup| setup);
    let page = open(&bridge);
    page.wait("#headline", "Ready");
    for number in 0..3 {
        let body =
            format!(r#"{{"cuid":"{number}","event":"<b>E</b>","targetCuid":"t","targetType":"t","text":"x"}}"#);
        assert_eq!(request_once(&bridge.daemon, body.as_bytes(), &[]).status, 200);
        bridge.accepted(body.as_bytes());
    }
    page.wait(".source [data-f=deviations]", "`actorCuid` is missing in 3 of 3 `_b_E__b_`");
    assert_eq!(page.complaints().as_array().map(Vec::len), Some(0), "{}", page.complaints());
    bridge.stop();
}

#[test]
fn shows_a_filling_buffer_and_why_the_broker_is_away() {
    let bridge = Bridge::start_without_broker(|setup: Setup| setup.raw("buffer.max_events", "10"));
    let page = open(&bridge);
    page.wait("#broker", "Not connected");
    page.wait("#broker .quote", "cannot create the directory");
    for number in 0..10 {
        let body = Payload::new(format!("event {number}")).body();
        assert_eq!(request_once(&bridge.daemon, &body, &[]).status, 200);
        bridge.accepted(&body);
    }
    page.wait("#headline", "Not ready");
    page.wait("#state li", "buffer full: 10 of 10 events");
    page.wait("#buffer .note", "at most 10 in the last 5 minutes");
    let drawn = page.attribute("#buffer path", "d");
    assert!(drawn[0].contains("V3.0"), "the highest point is near the top: {drawn:?}");
    bridge.bring_the_broker_back();
    bridge.daemon.wait_until("the broker", LIMIT, |status| status.text("/broker/state") == "connected");
    page.wait("#headline", "Ready");
    page.wait("#published .big", "10");
    assert_eq!(page.complaints().as_array().map(Vec::len), Some(0), "{}", page.complaints());
    bridge.stop();
}

#[test]
fn says_that_the_bridge_no_longer_answers() {
    let bridge = Bridge::start(|setup| setup);
    let page = open(&bridge);
    page.wait("#headline", "Ready");
    bridge.stop();
    page.wait("#headline", "No answer from the bridge since");
    page.wait("#state", "It was “Ready” then");
}
