//! `check --connect` as a login that may not do everything: each missing right by name, and nothing is changed.

use serde_json::{Value, json};

use crate::support::{Broker, Kind, Setup, Table, admin, ports, said, unique};

/// The lines of the check about what is missing or doubtful.
fn checked(table: &Table) -> (Option<i32>, Vec<String>) {
    let done = Setup::new(table).run(&["check", "--connect"]);
    let text = said(&done);
    println!("{text}");
    let lines = text.lines().filter(|line| line.contains("lacks") || line.contains("lack "));
    (done.status.code(), lines.map(str::to_owned).collect())
}

#[test]
fn names_what_a_login_of_nats_may_not_publish_to() {
    let name = unique("rights_nats");
    let info = |stream: &str| format!("\"$JS.API.STREAM.INFO.{stream}\"");
    let allow = [info(&name), info(&format!("{name}_own")), format!("\"{name}.ReportPublished.*\"")].join(", ");
    let users = format!(
        "no_auth_user: anonymous\nauthorization {{ users: [ {{ user: anonymous, password: anonymous }}, \
         {{ user: limited, password: limited-secret, permissions: {{ publish: {{ allow: [{allow}] }} }} }}, \
         {{ user: blind, password: blind-secret, permissions: {{ publish: {{ allow: [\"{name}.>\"] }} }} }} ] }}"
    );
    let broker = Broker::start(Kind::Nats, ports(2), &[("NATS_CONF", users)]);
    let url = broker.fact("NATS_URL");
    let order = |what: &str| json!({"broker": "nats", "url": url, "do": what, "stream": name, "subjects": [format!("{name}.>")]});
    let table = |user: &str| {
        Table::new("nats")
            .raw("servers", json!([url]).to_string())
            .text("stream", &name)
            .text("subject", format!("{name}.{{event}}.{{targetType}}"))
            .text("username", user)
            .text("password", format!("{user}-secret"))
    };
    let own = format!("{name}_own");
    let routed = table("limited")
        .route(&[("event", "E"), ("stream", &own), ("subject", &format!("own.{name}"))])
        .route(&[("event", "ReportPublished"), ("subject", &format!("{name}.ReportPublished.{{targetType}}"))]);
    let lacks = |level: &str, subject: &str| {
        format!("{level}: the user limited lacks the permission to publish to {subject}")
    };
    let create = |stream: &str| lacks("missing", &format!("$JS.API.STREAM.CREATE.{stream}"));
    let mut expected = vec![
        lacks("missing", &format!("own.{name}")),
        lacks("warning", &format!("{name}.*.*")),
        create(&name),
        create(&own),
    ];
    let (code, mut lines) = checked(&routed);
    expected.sort();
    lines.sort();
    assert_eq!((code, lines), (Some(1), expected));
    admin(&order("create"));
    let (_, lines) = checked(&table("limited"));
    assert_eq!(lines, [lacks("warning", &format!("{name}.*.*"))], "the trial is no message of a stream");
    let stored = crate::support::read(&json!({"broker": "nats", "url": url, "stream": name}));
    assert!(stored.is_empty(), "{} messages", stored.len());
    let done = Setup::new(&table("blind")).run(&["check", "--connect"]);
    let text = format!("the user blind may not publish to $JS.API.STREAM.INFO.{name}");
    assert!(done.status.code() == Some(1) && said(&done).contains(&text), "{}", said(&done));
    let anonymous = table("limited").without("username").without("password");
    assert_eq!(checked(&anonymous), (Some(0), Vec::new()), "a login without limits");
}

#[test]
fn names_what_a_user_of_rabbitmq_may_not_do() {
    let broker = Broker::start(Kind::Rabbitmq, ports(4), &[]);
    let name = unique("rights_rabbitmq");
    broker.rabbitmqctl(&["add_user", "limited", "limited-secret"]);
    let permit = |configure: &str, write: &str, read: &str| {
        broker.rabbitmqctl(&["set_permissions", "-p", "/", "limited", configure, write, read]);
    };
    let url = broker.fact("RABBITMQ_URL");
    let table = Table::new("rabbitmq")
        .text("uri", url.replace("bridge:bridge-secret@", "limited:limited-secret@"))
        .text("exchange", &name)
        .text("queue", format!("{name}-queue"));
    let lacks = |right: &str, what: &str| {
        format!("missing: the user 'limited' lacks the {right} permission on {what} in vhost '/'")
    };
    let (exchange, queue) = (format!("exchange '{name}'"), format!("queue '{name}-queue'"));
    permit("^$", "^$", "^$");
    let all = || {
        ["configure", "write"].iter().flat_map(|right| [lacks(right, &exchange), lacks(right, &queue)]).collect()
    };
    assert_eq!(checked(&table), (Some(1), all()), "nothing is there");
    // It was not made by the check.
    let done = Setup::new(&table.clone().text("topology", "check")).run(&["check", "--connect"]);
    assert!(said(&done).contains("does not exist"), "{}", said(&done));
    admin(
        &json!({"broker": "rabbitmq", "url": url, "do": "create", "exchange": name, "queue": format!("{name}-queue")}),
    );
    let all = vec![lacks("write", &exchange), lacks("write", &queue)];
    assert_eq!(checked(&table), (Some(1), all), "both are there, and need not be made");
    assert_eq!(checked(&table.clone().text("topology", "check")), (Some(1), vec![lacks("write", &exchange)]));
    permit(".*", ".*", "^$");
    assert_eq!(checked(&table), (Some(1), vec![lacks("read", &exchange)]));
    permit(".*", ".*", ".*");
    assert_eq!(checked(&table), (Some(0), Vec::new()));
    let stored =
        crate::support::read(&json!({"broker": "rabbitmq", "url": url, "queues": [format!("{name}-queue")],
        "at_least": 0}));
    assert!(stored.is_empty(), "{} messages", stored.len());
}

#[test]
fn names_what_a_login_of_kafka_may_not_do() {
    let properties = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
                      super.users=User:ANONYMOUS";
    let broker = Broker::start(Kind::Kafka, ports(4), &[("KAFKA_PROPERTIES", properties.to_owned())]);
    let name = unique("rights_kafka");
    let order = |what: &Value| {
        let mut order = json!({"broker": "kafka", "bootstrap": broker.fact("KAFKA_SSL_BOOTSTRAP").replace("127.0.0.1", "localhost"),
            "ca": broker.fact("KAFKA_CA"), "topic": name, "user": broker.fact("KAFKA_USERNAME")});
        order.as_object_mut().expect("it is one").extend(what.as_object().cloned().unwrap_or_default());
        admin(&order);
    };
    let table = Table::new("kafka")
        .text("bootstrap_servers", broker.fact("KAFKA_SASL_BOOTSTRAP"))
        .text("security_protocol", "sasl_plaintext")
        .text("sasl_mechanism", "SCRAM-SHA-256")
        .text("username", broker.fact("KAFKA_USERNAME"))
        .text("password", broker.fact("KAFKA_PASSWORD"))
        .text("topic", &name)
        .text("key", "{targetCuid}");
    let lacks =
        |operation: &str| format!("missing: the user bridge lacks the operation {operation} on the topic {name}");
    let unseen = lacks("Write, and with it Describe,");
    assert_eq!(checked(&table), (Some(1), vec![unseen.clone()]), "nothing is permitted");
    order(&json!({"do": "allow", "operation": "WRITE"}));
    assert_eq!(checked(&table), (Some(1), vec![lacks("Create")]), "it is missing, and may not be created");
    order(&json!({"do": "create"}));
    assert_eq!(checked(&table), (Some(0), Vec::new()), "it may be written to");
    let other = table.text("topic", format!("{name}-other"));
    let lacks = |operation: &str| {
        format!("missing: the user bridge lacks the operation {operation} on the topic {name}-other")
    };
    order(&json!({"do": "create", "topic": format!("{name}-other")}));
    order(&json!({"do": "allow", "operation": "DESCRIBE", "topic": format!("{name}-other")}));
    assert_eq!(checked(&other), (Some(1), vec![lacks("Write")]), "it may only be seen");
}
