//! The warnings of `check --connect`: nodes that do not answer, what grows unread, names that collide.

use serde_json::json;

use crate::support::{Broker, Kind, Payload, Setup, Table, ports, request_once, said, unique};

/// Publishes three events that nothing reads, then checks; the output, which must be good.
fn checked(table: &Table) -> String {
    let setup = Setup::new(table);
    let daemon = setup.start();
    for cuid in ["cuid-1", "cuid-2", "cuid-3"] {
        assert_eq!(request_once(&daemon, &Payload::new(cuid).body(), &[]).status, 200);
    }
    assert_eq!(daemon.wait_until_empty().count("published"), 3);
    let done = setup.run(&["check", "--connect"]);
    let text = said(&done);
    assert_eq!(done.status.code(), Some(0), "{text}");
    text
}

#[track_caller]
fn assert_said(text: &str, what: &str) {
    assert!(text.contains(what), "not {what:?} in:\n{text}");
}

#[test]
fn nats_is_warned_of_an_unread_stream_and_a_silent_server() {
    let broker = Broker::start(Kind::Nats, ports(2), &[]);
    let (name, away) = (unique("checked_nats"), ports(1));
    let servers = json!([format!("nats://127.0.0.1:{away}"), broker.fact("NATS_URL")]).to_string();
    let table = Table::new("nats").raw("servers", servers).text("stream", &name);
    let text = checked(&table.text("subject", format!("{name}.{{event}}")));
    assert_said(&text, &format!("the stream {name} has 3 messages, no consumer and no limit"));
    assert_said(&text, &format!("127.0.0.1:{away} does not answer, the others are used"));
}

#[test]
fn rabbitmq_is_warned_of_an_unread_queue_and_a_silent_node() {
    let broker = Broker::start(Kind::Rabbitmq, ports(4), &[]);
    let (name, away) = (unique("checked_rabbitmq"), ports(1));
    let url = broker.fact("RABBITMQ_URL");
    let uris = json!([format!("amqp://bridge:bridge-secret@127.0.0.1:{away}/%2f"), url]).to_string();
    let text = checked(&Table::new("rabbitmq").raw("uris", uris).text("exchange", &name).text("queue", &name));
    assert_said(&text, &format!("the queue `{name}` has 3 messages and no consumer"));
    assert_said(&text, &format!("127.0.0.1:{away} does not answer, the others are used"));
    assert!(!text.contains("bridge-secret"), "{text}");
}

#[test]
fn kafka_is_warned_of_colliding_topics_and_a_silent_broker() {
    let broker = Broker::start(Kind::Kafka, ports(4), &[]);
    let (name, away) = (unique("checked_kafka"), ports(1));
    let servers = format!("127.0.0.1:{away},{}", broker.fact("KAFKA_BOOTSTRAP"));
    let table = Table::new("kafka").text("bootstrap_servers", servers).text("topic", format!("{name}.a"));
    let text = checked(&table);
    assert!(!text.contains("differ only by"), "{text}");
    assert_said(&text, &format!("127.0.0.1:{away} does not answer, the others are used"));
    let colliding = table.text("topic", format!("{name}_a"));
    let done = Setup::new(&colliding).run(&["check", "--connect"]);
    assert_said(&said(&done), &format!("the topics {name}_a and {name}.a differ only by `.` and `_`"));
}
