//! No secret is ever shown: not in logs at trace, not in errors about the settings, not in status, metrics or page.

use crate::support::{Client, PATH, Payload, SECRET, Setup, Table, request_once, said};

/// The secrets, each of which occurs once in the settings and must occur nowhere else.
const SECRETS: [&str; 4] =
    [SECRET, "second-secret-0123456789", "user-secret-0123456789", "property-secret-0123456789"];

fn assert_hidden(what: &str, text: &str) {
    for secret in SECRETS {
        assert!(!text.contains(secret), "{what} shows the secret {secret:?}: {text}");
    }
}

/// An unreachable Kafka with every kind of secret.
fn table() -> Table {
    Table::new("kafka")
        .text("bootstrap_servers", "127.0.0.1:1")
        .text("security_protocol", "sasl_plaintext")
        .text("sasl_mechanism", "PLAIN")
        .text("username", "user")
        .text("password", SECRETS[2])
        .raw("properties", format!("{{ \"client.rack\" = \"{}\" }}", SECRETS[3]))
}

#[test]
fn shows_no_secret_in_logs_at_trace_status_metrics_and_page() {
    let setup = Setup::new(&table())
        .level("trace")
        .raw("sources.second.secrets", format!("[{{ id = \"2026-11\", value = \"{}\" }}]", SECRETS[1]));
    let setup = setup.text("sources.second.path", "/second").text("shutdown.grace", "100ms");
    let daemon = setup.start();
    let body = Payload::new("cuid-1").body();
    assert_eq!(request_once(&daemon, &body, &[]).status, 200);
    let wrong = [("X-Authorization-HMAC-256", "00")];
    let answer = Client::connect(&daemon.ingress).and_then(|mut client| client.send("POST", PATH, &wrong, &body));
    let answer = answer.unwrap();
    assert_eq!(answer.status, 401);
    assert_hidden("the answer 401", &answer.text());
    for path in ["/status", "/metrics", "/"] {
        assert_hidden(path, &daemon.get(path).text());
    }
    for arguments in [&["check", "--print"][..], &["check", "--print", "--json"]] {
        let printed = said(&setup.run(arguments));
        assert!(printed.contains("sources.second.secrets") && printed.contains("[secret]"), "{printed}");
        assert_hidden("check", &printed);
    }
    let stopped = daemon.stop();
    assert_eq!((stopped.code, stopped.count("held")), (Some(0), 1), "one event was not delivered");
    assert_hidden("the log", &stopped.log);
}

#[test]
fn shows_no_secret_in_errors_about_the_settings() {
    let wrong = [
        ("sources.plextrac.secret", format!("[{SECRET:?}]")),
        ("sources.plextrac.secrets", format!("[{SECRET:?}]")),
        ("sources.plextrac.secrte", format!("{SECRET:?}")),
        ("sources.plextrac.secret_file", format!("{SECRET:?}")),
        ("broker.nats.password", format!("{SECRET:?}")),
    ];
    for (key, value) in wrong {
        let done = Setup::new(&table()).raw(key, value).run(&["check"]);
        let text = said(&done);
        assert_eq!(done.status.code(), Some(78), "{key}: {text}");
        if key != "sources.plextrac.secret_file" {
            // There the text is a path, which an error must name.
            assert_hidden(key, &text);
        }
    }
    let uri = format!("amqp://user:{SECRET}@127.0.0.1:1/%2f/too/many?password={SECRET}");
    let uris = format!("[{uri:?}, \"amqp://user:{SECRET}@127.0.0.1:2/%2f/too/many\"]");
    let one = Table::new("rabbitmq").text("uri", uri);
    let several = Table::new("rabbitmq").raw("uris", uris).text("username", "user").text("password", SECRET);
    for (what, table) in [("a uri", one), ("uris and a password", several)] {
        let done = Setup::new(&table).run(&["check", "--connect"]);
        let text = said(&done);
        assert!(!done.status.success(), "{text}");
        assert_hidden(what, &text);
    }
}
