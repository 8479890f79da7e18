//! HTTPS and client certificates, with independent clients; pairs that do not match.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{
    Authority, Client, Daemon, LIMIT, PATH, Pair, Payload, Program, SECRET, Setup, https, over_tls, plain, rest,
    said, sign,
};

/// A setup with a pair of this authority.
fn setup(authority: &Authority) -> Setup {
    with(Setup::on_files(), &authority.issue())
}

fn with(setup: Setup, pair: &Pair) -> Setup {
    let (certificate, key) = pair.write(setup.directory(), "server");
    setup
        .text("ingress.tls.certificate_file", &certificate.display().to_string())
        .text("ingress.tls.key_file", &key.display().to_string())
}

/// The same that asks clients for a certificate of the second authority.
fn with_clients_of(authority: &Authority, clients: &Authority) -> Setup {
    let setup = setup(authority);
    let file = setup.directory().join("clients.crt");
    fs::write(&file, clients.certificate()).expect("the directory can be written");
    setup.text("ingress.tls.client_ca_file", &file.display().to_string())
}

/// The arguments of Python's client: one signed event, over TLS.
fn order(setup: &Setup, daemon: &Daemon, authority: &Authority, cuid: &str) -> Value {
    let ca = setup.directory().join("ca.crt");
    fs::write(&ca, authority.certificate()).expect("the directory can be written");
    let body = String::from_utf8(Payload::new(cuid).body()).expect("a payload is text");
    let (host, port) = daemon.ingress.split_once(':').expect("an address has a port");
    json!({
        "host": host,
        "port": port.parse::<u16>().expect("it is a port"),
        "path": PATH,
        "headers": {"X-Authorization-HMAC-256": sign(SECRET, body.as_bytes())},
        "body": body,
        "ca": ca.display().to_string(),
    })
}

fn post(client: &mut Client, cuid: &str) -> u16 {
    let body = Payload::new(cuid).body();
    let signature = sign(SECRET, &body);
    let answer = client.send("POST", PATH, &[("X-Authorization-HMAC-256", &signature)], &body);
    answer.expect("the daemon answers").status
}

#[test]
fn takes_webhooks_over_https_and_tells_when_the_certificate_ends() {
    let authority = Authority::new();
    let setup = setup(&authority);
    let daemon = setup.start();
    let mut client = Client::connect_over_tls(&daemon.ingress, &authority.client(None)).expect("it is trusted");
    assert_eq!([post(&mut client, "cuid-1"), post(&mut client, "cuid-2")], [200, 200], "on one connection");
    let mut order = order(&setup, &daemon, &authority, "cuid-3");
    order["protocols"] = json!(["h2", "http/1.1"]);
    let answer = https(&order);
    assert_eq!((&answer["status"], &answer["alpn"]), (&json!(200), &json!("http/1.1")), "{answer}");
    assert_eq!(answer["version"], "TLSv1.3");
    order["protocols"] = json!(["h2"]);
    assert!(https(&order)["error"].is_string(), "another protocol is none of ours");
    // 4000-01-01T00:00:00Z.
    assert_eq!(daemon.metric("tls_certificate_not_after_timestamp_seconds", &[]), 64_060_588_800);
    daemon.wait_until_empty();
    assert_eq!(setup.delivered().len(), 3);
    let stopped = daemon.stop();
    assert_eq!((stopped.code, stopped.count("received")), (Some(0), 3), "{}", stopped.log);
}

#[test]
fn accepts_requests_of_curl() {
    let authority = Authority::new();
    let setup = setup(&authority);
    let daemon = setup.start();
    let ca = setup.directory().join("ca.crt");
    fs::write(&ca, authority.certificate()).expect("the directory can be written");
    let body = String::from_utf8(Payload::new("cuid-1").body()).expect("a payload is text");
    let curl = |url: &str| {
        let signature = format!("X-Authorization-HMAC-256: {}", sign(SECRET, body.as_bytes()));
        let ca = ca.display().to_string();
        Program::other(
            "curl",
            ["--silent", "--show-error", "--cacert", &ca, "-H", &signature, "--data-binary", &body, url],
        )
        .run()
    };
    let url = format!("{}{PATH}", daemon.ingress);
    let ended = curl(&format!("https://{url}"));
    assert_eq!(ended.out, "{\"status\":\"accepted\"}", "{}", ended.err);
    assert_ne!(curl(&format!("http://{url}")).code, Some(0), "without TLS there is no answer");
}

#[test]
fn closes_a_connection_that_does_not_speak_tls_and_says_so() {
    let authority = Authority::new();
    let daemon = setup(&authority).start();
    let mut stream = plain(&daemon.ingress);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: bridge\r\n\r\n").expect("the daemon listens");
    let mut answer = Vec::new();
    // The only answer may be an alert of TLS.
    let _ = stream.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "answered over plain HTTP: {answer:?}");
    let line = daemon.wait_for_line("the failed handshake", |line| {
        line["message"].as_str().is_some_and(|text| text.starts_with("a TLS handshake failed: "))
    });
    assert!(line["peer"].is_string(), "{line}");
    assert!(line["message"].as_str().is_some_and(|text| text.contains("http:// instead of https://")), "{line}");
    let unreadable = || daemon.metric("requests_total", &[("source", "none"), ("code", "400")]);
    assert_eq!(unreadable(), 1);
    // At most one line a second.
    std::thread::sleep(Duration::from_secs(1));
    let mut stream = plain(&daemon.ingress);
    stream.write_all(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 443\r\n\x16\x03\x01").expect("the daemon listens");
    let said = |line: &Value| line["message"].as_str().is_some_and(|text| text.contains("PROXY protocol header"));
    daemon.wait_for_line("the hint at the proxy in front", said);
    assert_eq!(unreadable(), 2);
    let mut client = Client::connect_over_tls(&daemon.ingress, &authority.client(None)).expect("others are served");
    assert_eq!(post(&mut client, "cuid-1"), 200);
    assert_eq!(daemon.metric("events_received_total", &[]), 1);
}

#[test]
fn closes_silent_and_half_handshakes_and_counts_them_as_connections() {
    let authority = Authority::new();
    let daemon = setup(&authority).text("ingress.header_timeout", "1s").raw("ingress.max_connections", "3").start();
    let mut silent = plain(&daemon.ingress);
    let mut half = plain(&daemon.ingress);
    // The head of a record that never arrives.
    half.write_all(&[0x16, 3, 1, 2, 0]).expect("the daemon listens");
    daemon.wait_until("both are counted", LIMIT, |status| status.number("/connections/open") == 2);
    let mut client = Client::connect_over_tls(&daemon.ingress, &authority.client(None)).expect("there is room");
    assert_eq!(post(&mut client, "cuid-1"), 200);
    assert_eq!((rest(&mut silent), rest(&mut half)), (String::new(), String::new()));
    let mut alone = over_tls(&daemon.ingress, authority.client(None)).expect("it is trusted");
    let mut nothing = Vec::new();
    // Closed by an alert of TLS, or by the end of the connection.
    let _ = alone.read_to_end(&mut nothing);
    assert!(nothing.is_empty(), "silent after its handshake: {nothing:?}");
    let stopped = daemon.stop();
    assert_eq!(stopped.code, Some(0), "{}", stopped.log);
}

#[test]
fn logs_a_connection_that_closes_before_its_first_byte_at_debug_only() {
    let daemon = setup(&Authority::new()).start();
    for _ in 0..3 {
        drop(plain(&daemon.ingress));
    }
    daemon.wait_until("they are closed", LIMIT, |status| status.number("/connections/open") == 0);
    let mut other = plain(&daemon.ingress);
    other.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("the daemon listens");
    let is_one = |line: &Value| line.to_string().contains("a TLS handshake failed");
    let line = daemon.wait_for_line("the first failed handshake", is_one);
    assert!(line.to_string().contains("not TLS"), "{line}");
}

#[test]
fn replaces_a_silent_handshake_when_every_connection_is_taken() {
    let authority = Authority::new();
    let daemon =
        setup(&authority).text("ingress.header_timeout", "60s").raw("ingress.max_connections", "2").start();
    let mut silent = plain(&daemon.ingress);
    daemon.wait_until("it is open", LIMIT, |status| status.number("/connections/open") == 1);
    let mut first = Client::connect_over_tls(&daemon.ingress, &authority.client(None)).expect("there is room");
    assert_eq!(post(&mut first, "cuid-1"), 200);
    let mut second = Client::connect_over_tls(&daemon.ingress, &authority.client(None)).expect("room is made");
    assert_eq!(post(&mut second, "cuid-2"), 200);
    assert_eq!(rest(&mut silent), "", "it is the one that was replaced");
    assert_eq!(post(&mut first, "cuid-3"), 200, "it has carried an event just now");
}

#[test]
fn a_stop_does_not_wait_for_a_silent_handshake() {
    let daemon = setup(&Authority::new()).text("ingress.header_timeout", "1m").start();
    let _silent = plain(&daemon.ingress);
    daemon.wait_until("it is accepted", LIMIT, |status| status.number("/connections/open") == 1);
    let begun = Instant::now();
    assert_eq!(daemon.stop().code, Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn serves_only_clients_with_a_certificate_of_the_authority_where_one_is_named() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let setup = with_clients_of(&authority, &clients);
    let daemon = setup.start();
    let mut order = order(&setup, &daemon, &authority, "cuid-1");
    let files = |pair: &Pair, name: &str| {
        let (certificate, key) = pair.write(setup.directory(), name);
        json!([certificate.display().to_string(), key.display().to_string()])
    };
    assert!(https(&order)["error"].is_string(), "without a certificate");
    order["pair"] = files(&authority.issue(), "stranger");
    assert!(https(&order)["error"].is_string(), "with one of another authority");
    order["pair"] = files(&clients.issue_until(2020), "late");
    assert!(https(&order)["error"].is_string(), "with one that has ended");
    order["pair"] = files(&clients.issue(), "client");
    let answer = https(&order);
    assert_eq!(answer["status"], 200, "{answer}");
    let mut client = Client::connect_over_tls(&daemon.ingress, &authority.client(Some(&clients.issue())))
        .expect("it is trusted");
    assert_eq!(post(&mut client, "cuid-2"), 200);
    assert_eq!(daemon.stop().count("received"), 2, "nothing else was a request");
}

/// Checks that `check` and `serve` end with 78 and name key and file.
#[track_caller]
fn refused(setup: &Setup, key: &str, text: &str) {
    let error =
        format!("error: `ingress.tls.{key}` in {}: {text}", setup.directory().join("config.toml").display());
    let done = setup.run(&["check"]);
    assert_eq!(done.status.code(), Some(78), "{}", said(&done));
    assert!(said(&done).contains(&error), "not {error:?} in {}", said(&done));
    let stopped = setup.try_start().expect_err("it does not start");
    assert_eq!(stopped.code, Some(78), "{}", stopped.log);
    assert!(stopped.log.contains(&error), "not {error:?} in {}", stopped.log);
}

fn overwrite(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    fs::write(&path, text).expect("the directory can be written");
    path.display().to_string()
}

#[test]
fn refuses_a_broken_pair_at_start_and_says_what_is_wrong() {
    let authority = Authority::new();
    let setup = setup(&authority);
    let directory = setup.directory().to_owned();
    let (good, other) = (authority.issue(), authority.issue());
    let certificate = overwrite(&directory, "server.crt", &good.certificate);
    refused(
        &setup,
        "key_file",
        &format!("{}/server.key does not belong to the first certificate", directory.display()),
    );
    let key = overwrite(&directory, "server.key", "no key");
    refused(&setup, "key_file", &format!("{key}: it has no private key in PEM"));
    overwrite(&directory, "server.key", &other.key[..other.key.len() / 2]);
    refused(&setup, "key_file", &format!("{key}: not PEM"));
    overwrite(&directory, "server.key", &good.key);
    overwrite(&directory, "server.crt", "");
    refused(&setup, "certificate_file", &format!("{certificate}: it has no certificate in PEM"));
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    overwrite(&directory, "server.crt", broken);
    refused(&setup, "certificate_file", &format!("{certificate}: the certificate cannot be read"));
    fs::remove_file(&certificate).expect("it is there");
    refused(&setup, "certificate_file", &format!("cannot read {certificate}: No such file"));
    overwrite(&directory, "server.crt", &good.certificate);
    let clients = overwrite(&directory, "clients.crt", "");
    let setup = setup.text("ingress.tls.client_ca_file", &clients);
    refused(&setup, "client_ca_file", &format!("{clients}: it has no certificate in PEM"));
    overwrite(&directory, "clients.crt", broken);
    refused(&setup, "client_ca_file", &format!("{clients}: a certificate in it cannot be used"));
    let setup = setup.text("ingress.tls.client_ca_file", "").text("ingress.tls.key_file", "");
    refused(&setup, "key_file", "empty; name a file with the certificate's private key, in PEM");
    let text = said(&setup.run(&["check"]));
    assert!(!text.contains(&good.key[40..60]), "the key is shown: {text}");
}

#[test]
fn warns_about_an_expired_certificate_and_a_world_readable_key() {
    let setup = with(Setup::on_files(), &Authority::new().issue_until(2020));
    let warned = |setup: &Setup, warning: &str| {
        let done = setup.run(&["check"]);
        assert_eq!(done.status.code(), Some(0), "{}", said(&done));
        assert!(said(&done).contains(warning), "not {warning:?} in {}", said(&done));
    };
    warned(&setup, "the certificate ended at 2020-01-01T00:00:00Z; senders refuse it");
    let key = setup.directory().join("server.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("it is ours");
    warned(&setup, &format!("{} can be read by all users; chmod o-r it", key.display()));
    let daemon = setup.start();
    assert_eq!(daemon.metric("tls_certificate_not_after_timestamp_seconds", &[]), 1_577_836_800);
}
