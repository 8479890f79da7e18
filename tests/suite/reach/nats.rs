//! NATS behind leaf nodes, with private inboxes, nkeys, and TLS first.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Broker, Kind, LIMIT, Load, Setup, Table, ports, read, said, unique};

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

fn on_a_leaf_node(test: &str, setting: &str, value: &str) {
    let leaf_port = ports(1);
    let hub = with_conf(&format!(
        "jetstream {{ store_dir: \"hub\", domain: hub }}\nleafnodes {{ listen: \"127.0.0.1:{leaf_port}\" }}"
    ));
    let remote = format!("nats-leaf://bridge:bridge-secret@127.0.0.1:{leaf_port}");
    let leaf = with_conf(&format!(
        "jetstream {{ store_dir: \"leaf\", domain: leaf }}\nleafnodes {{ remotes: [ {{ url: {remote:?} }} ] }}"
    ));
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

#[test]
fn begins_with_tls_where_the_server_waits_for_it() {
    let probe = with_conf("");
    let certificates = fs::canonicalize(probe.fact("NATS_CA")).expect("it is there");
    let tls = certificates.parent().expect("it is in a directory").display().to_string();
    let broker = Broker::start(
        Kind::Nats,
        ports(2),
        &[(
            "NATS_CONF",
            format!(
                "allow_non_tls: false\ntls {{ cert_file: \"{tls}/localhost.crt\", key_file: \"{tls}/localhost.key\", \
             handshake_first: true }}"
            ),
        )],
    );
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
