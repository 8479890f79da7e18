//! NATS behind leaf nodes, with private inboxes, nkeys, TLS first, and limits that a connection is not told.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::SockRef;

use super::own::Own;
use super::silent::relay;
use crate::support::{
    Broker, Daemon, Kind, LIMIT, Load, Sent, Setup, Table, admin, ports, read, said, unique, wait_until,
};

/// A table for a stream and subjects of its own at this URL.
fn table(url: &str, name: &str) -> Table {
    Table::new("nats")
        .raw("servers", json!([url]).to_string())
        .text("stream", name)
        .text("subject", format!("{name}.{{event}}.{{targetType}}"))
}

fn with_conf(lines: &str) -> Broker {
    Broker::start(Kind::Nats, ports(2), &[("NATS_CONF", lines.to_owned())])
}

/// Publishes some events by these settings, and reads them back at this URL.
fn publishes(setup: &Setup, url: &str, name: &str) {
    let daemon = setup.start();
    let sent = Load { events: 50, ..Load::default() }.send(&daemon.ingress).all_accepted();
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("published"), status.count("dead_lettered")), (50, 0), "{}", status.0["broker"]);
    let stored = read(&json!({"broker": "nats", "url": url, "stream": name}));
    assert_eq!(stored.len() as u64, sent.accepted());
    let done = setup.run(&["check", "--connect"]);
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));
}

/// A hub and its leaf node, each with a JetStream domain of its own.
fn hub_and_leaf() -> (Broker, Broker) {
    let leaf_port = ports(1);
    let hub = with_conf(&format!(
        "jetstream {{ store_dir: \"hub\", domain: hub }}\nleafnodes {{ listen: \"127.0.0.1:{leaf_port}\" }}"
    ));
    let remote = format!("nats-leaf://bridge:bridge-secret@127.0.0.1:{leaf_port}");
    let leaf = with_conf(&format!(
        "jetstream {{ store_dir: \"leaf\", domain: leaf }}\nleafnodes {{ remotes: [ {{ url: {remote:?} }} ] }}"
    ));
    (hub, leaf)
}

fn on_a_leaf_node(test: &str, setting: &str, value: &str) {
    let (hub, leaf) = hub_and_leaf();
    let name = unique(test);
    let setup = Setup::new(&table(&leaf.fact("NATS_URL"), &name).text(setting, value));
    publishes(&setup, &hub.fact("NATS_URL"), &name);
}

#[test]
fn publishes_to_the_stream_of_another_domain() {
    on_a_leaf_node("another_domain", "domain", "hub");
}

#[test]
fn publishes_by_another_prefix_of_the_api() {
    on_a_leaf_node("another_prefix", "api_prefix", "$JS.hub.API");
}

/// Both answer: the nearer one, which is not the bridge's, that it expected another stream.
#[test]
fn blames_no_event_where_the_leaf_node_has_a_stream_of_the_same_subjects() {
    let (hub, leaf) = hub_and_leaf();
    let name = unique("two_streams");
    let (near, far) = (leaf.fact("NATS_URL"), hub.fact("NATS_URL"));
    let other = format!("{name}-near");
    admin(
        &json!({"broker": "nats", "url": near, "do": "create", "stream": other, "subjects": [format!("{name}.>")]}),
    );
    let table = table(&near, &name).text("domain", "hub");
    let daemon = Setup::new(&table).text("publish.refuse_after", "1s").start();
    let sent = Load { events: 200, rate: 50, ..Load::default() }.send(&daemon.ingress).all_accepted();
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("published"), status.count("dead_lettered")), (200, 0), "{}", status.0["broker"]);
    let stored = read(&json!({"broker": "nats", "url": far, "stream": name}));
    assert_eq!(stored.len() as u64, sent.accepted(), "each once");
}

#[test]
fn says_that_a_domain_does_not_exist() {
    let broker = with_conf("");
    let name = unique("no_domain");
    let done =
        Setup::new(&table(&broker.fact("NATS_URL"), &name).text("domain", "nowhere")).run(&["check", "--connect"]);
    let text = said(&done);
    assert_eq!(done.status.code(), Some(1), "{text}");
    assert!(text.contains("JetStream is not available") && text.contains("domain"), "{text}");
}

#[test]
fn publishes_as_a_user_who_may_see_no_other_inbox() {
    let broker = with_conf(
        r#"authorization { users: [
  { user: anonymous, password: anonymous }
  { user: shy, password: shy-secret, permissions: { subscribe: { allow: ["_INBOX_shy.>"] } } }
] }"#,
    );
    let url = broker.fact("NATS_URL");
    let name = unique("no_other_inbox");
    let table = table(&url, &name).text("username", "shy").text("password", "shy-secret");
    let done = Setup::new(&table).run(&["check", "--connect"]);
    let text = said(&done);
    assert_eq!(done.status.code(), Some(1), "{text}");
    assert!(text.contains("may not subscribe to _INBOX.") && text.contains("`inbox_prefix`"), "{text}");
    publishes(&Setup::new(&table.text("inbox_prefix", "_INBOX_shy")), &url, &name);
}

#[test]
fn logs_in_with_the_seed_of_an_nkey() {
    let pair = nkeys::KeyPair::new_user();
    let users = format!(
        "authorization {{ users: [ {{ user: anonymous, password: anonymous }}, {{ nkey: {} }} ] }}",
        pair.public_key()
    );
    let broker = with_conf(&users);
    let url = broker.fact("NATS_URL");
    let name = unique("nkey");
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let file = directory.path().join("seed");
    let with = |seed: &str| {
        fs::write(&file, seed).expect("the directory can be written");
        Setup::new(&table(&url, &name).text("nkey_seed_file", file.display().to_string())).level("trace")
    };
    let seed = pair.seed().expect("it has a seed");
    publishes(&with(&seed), &url, &name);
    let foreign = nkeys::KeyPair::new_user().seed().expect("it has a seed");
    let daemon = with(&foreign).start();
    let status = daemon.wait_until("the reason is shown", LIMIT, |status| {
        status.text("/broker/last_error/kind") == "authentication"
    });
    assert_eq!(status.0.pointer("/broker/state"), Some(&Value::from("connecting")));
    let stopped = daemon.stop();
    assert!(!stopped.log.contains(&foreign), "the seed is in the log");
}

/// A server that waits for TLS before it says anything.
fn tls_first() -> Broker {
    let probe = with_conf("");
    let certificates = fs::canonicalize(probe.fact("NATS_CA")).expect("it is there");
    let tls = certificates.parent().expect("it is in a directory").display().to_string();
    with_conf(&format!(
        "allow_non_tls: false\ntls {{ cert_file: \"{tls}/localhost.crt\", key_file: \"{tls}/localhost.key\", \
         handshake_first: true }}"
    ))
}

#[test]
fn begins_with_tls_where_the_server_waits_for_it() {
    let broker = tls_first();
    let name = unique("tls_first");
    let url = broker.fact("NATS_TLS_URL");
    let table = table(&url, &name).text("ca_file", broker.fact("NATS_CA"));
    let done = Setup::new(&table).run(&["check", "--connect"]);
    assert_eq!(done.status.code(), Some(1), "without it: {}", said(&done));
    let done = Setup::new(&table.clone().raw("tls_first", "true")).run(&["check", "--connect"]);
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));
    let daemon = Setup::new(&table.raw("tls_first", "true")).start();
    Load { events: 20, ..Load::default() }.send(&daemon.ingress).all_accepted();
    assert_eq!(daemon.wait_until_empty().count("published"), 20);
}

/// An event with a text of this size, and two small ones.
fn send_large(daemon: &Daemon, name: &str, size: usize) -> Sent {
    let every = Some((3, "Large", "x".repeat(size)));
    let load = Load { events: 3, connections: 1, every, series: Some((name.to_owned(), 0)), ..Load::default() };
    load.send(&daemon.ingress).all_accepted()
}

/// The server tells a connection its own limit, and closes one that exceeds that of its account.
#[test]
fn keeps_what_an_account_does_not_take_as_dead_letters() {
    let broker = with_conf(
        r"accounts { A { users: [ { user: small, password: small } ], jetstream: enabled, limits { max_payload: 10KB } } }
no_auth_user: small",
    );
    let name = unique("limited_account");
    let setup = Setup::new(&table(&broker.fact("NATS_URL"), &name));
    let daemon = setup.start();
    for (series, size) in [("first", 20_000), ("second", 900_000)] {
        send_large(&daemon, series, size);
    }
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("published"), status.count("dead_lettered")), (4, 2), "{}", status.0["broker"]);
    for letter in setup.dead_letters() {
        assert_eq!((&letter["reason"], &letter["event"]), (&"too_large".into(), &"Large".into()), "{letter}");
    }
}

/// The limit that the server tells a new connection.
fn told_limit(url: &str) -> u64 {
    let server = TcpStream::connect(url.trim_start_matches("nats://")).expect("the server listens");
    let mut line = String::new();
    BufReader::new(server).read_line(&mut line).expect("it says something");
    let told: Value = serde_json::from_str(line.trim_start_matches("INFO ")).expect("it tells what it is");
    told["max_payload"].as_u64().expect("it has a limit")
}

/// A connection learns of no change of the limit.
#[test]
fn takes_a_raised_limit_without_a_restart() {
    const HOLDS: Duration = Duration::from_millis(500);
    let limit = |bytes: u64| format!("max_payload: {bytes}\n");
    let own = Own::start(Kind::Nats, "raised_limit", |files| {
        let file = files.write("limit.conf", &limit(4096));
        // The server takes it as relative to its own directory.
        vec![("NATS_CONF", format!("include '{}{file}'", "../".repeat(20)))]
    });
    let url = own.broker.fact("NATS_URL");
    let table = own.table().raw("servers", json!([url]).to_string());
    let setup = Setup::new(&table).failpoints("nats.limit=500ms");
    let daemon = setup.start();
    daemon.wait_until("it connects", LIMIT, |status| status.text("/broker/state") == "connected");
    let connected = Instant::now();
    own.files().write("limit.conf", &limit(8192));
    own.broker.signal("HUP");
    wait_until("the server has the new limit", LIMIT, || told_limit(&url) == 8192);
    wait_until("the limit is in doubt", LIMIT, || connected.elapsed() > HOLDS);
    send_large(&daemon, "fits", 5000);
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("published"), status.count("dead_lettered")), (3, 0), "{}", status.0["broker"]);
    send_large(&daemon, "exceeds", 10_000);
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("published"), status.count("dead_lettered")), (5, 1), "{}", status.0["broker"]);
    assert_eq!(setup.dead_letters()[0]["reason"], "too_large");
}

/// Forwards connections to this port whose first bytes, a TLS greeting, name `localhost`, and resets all others.
fn only_with_a_name(target: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    relay(listener, target, |client| {
        let mut greeting = [0; 2048];
        let length = client.peek(&mut greeting).unwrap_or_default();
        let has_name = greeting[..length].windows(9).any(|part| part == b"localhost");
        has_name || SockRef::from(client).set_linger(Some(Duration::ZERO)).is_err()
    });
    port
}

/// A front end that finds the server by the name in the TLS greeting has none for a greeting without one.
#[test]
fn names_the_host_in_the_tls_greeting_whatever_the_address() {
    let broker = tls_first();
    let name = unique("tls_name");
    let port = broker.fact("NATS_TLS_URL").rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    let front = only_with_a_name(port.expect("a URL ends in a port"));
    let table = table(&format!("tls://localhost:{front}"), &name)
        .text("ca_file", broker.fact("NATS_CA"))
        .raw("tls_first", "true");
    let setup = Setup::new(&table).failpoints("dial.resolve=127.0.0.1+127.0.0.2");
    let done = setup.run(&["check", "--connect"]);
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));
}
