//! NATS routes with a stream of their own: missing, full, deleted, the wrong one, and moved by a reload.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{
    Broker, Daemon, Delivered, Kind, LIMIT, Load, Oracle, Payload, Sent, Setup, Status, Table, admin, ports, read,
    request_once, said, unique,
};

/// A server with a main stream, and one for the events `Trapped`.
struct Streams {
    broker: Broker,
    name: String,
}

impl Streams {
    fn start(test: &str) -> Self {
        Self { broker: Broker::start(Kind::Nats, ports(2), &[]), name: unique(test) }
    }

    fn own(&self) -> String {
        format!("{}_own", self.name)
    }

    fn url(&self) -> String {
        self.broker.fact("NATS_URL")
    }

    /// Everything goes to the main stream.
    fn main(&self) -> Table {
        Table::new("nats")
            .raw("servers", json!([self.url()]).to_string())
            .text("stream", &self.name)
            .text("subject", format!("{}.{{event}}", self.name))
    }

    /// One kind of events goes to a stream of its own.
    fn table(&self) -> Table {
        let subject = format!("own.{}.{{event}}", self.name);
        self.main().route(&[("event", "Trapped"), ("stream", &self.own()), ("subject", &subject)])
    }

    fn order(&self, what: &str, stream: &str, config: &Value) {
        let subjects =
            if stream == self.name { format!("{}.>", self.name) } else { format!("own.{}.>", self.name) };
        let subjects = [subjects];
        admin(&json!({"broker": "nats", "url": self.url(), "do": what, "stream": stream, "subjects": subjects,
            "config": config}));
    }

    fn create(&self) {
        self.order("create", &self.name, &json!({}));
        self.order("create", &self.own(), &json!({}));
    }

    fn read(&self, stream: &str) -> Vec<Delivered> {
        read(&json!({"broker": "nats", "url": self.url(), "stream": stream}))
    }

    /// Both streams have exactly what was sent, each in order.
    fn judge(&self, sent: &Sent, status: &Status) {
        let mut delivered = self.read(&self.name);
        delivered.extend(self.read(&self.own()));
        let oracle = Oracle { sent, delivered: &delivered, dead: &[], out_of_order: 0 };
        assert_eq!(oracle.judge(), 0, "repeats");
        oracle.agrees_with(status);
    }
}

/// A quarter of the events are `Trapped`.
fn load(events: u64) -> Load {
    Load { events, every: Some((4, "Trapped", String::new())), ..Load::default() }
}

fn lost_sessions(daemon: &Daemon) -> u64 {
    daemon.metric("broker_errors_total", &[("kind", "lost")])
}

fn shown(status: &Status) -> &str {
    status.text("/broker/waiting/0/address")
}

#[test]
fn sends_each_route_to_its_stream() {
    let streams = Streams::start("each_route");
    let setup = Setup::new(&streams.table());
    let text = said(&setup.run(&["check", "--connect"]));
    let will = |name: &str, subject: &str| format!("the stream {name} will be created at start and take {subject}");
    for line in [
        will(&streams.name, &format!("{}.>", streams.name)),
        will(&streams.own(), &format!("own.{}.>", streams.name)),
    ] {
        assert!(text.contains(&line), "not {line:?} in: {text}");
    }
    let daemon = setup.start();
    let sent = load(400).send(&daemon.ingress).all_accepted();
    let status = daemon.wait_until_empty();
    assert_eq!((streams.read(&streams.name).len(), streams.read(&streams.own()).len()), (300, 100));
    streams.judge(&sent, &status);
    let done = setup.run(&["check", "--connect"]);
    let text = said(&done);
    assert_eq!(done.status.code(), Some(0), "{text}");
    assert!(
        text.contains(&format!("the stream {} exists and takes own.{}.>", streams.own(), streams.name)),
        "{text}"
    );
}

#[test]
fn waits_for_the_stream_of_a_route_that_is_missing() {
    let streams = Streams::start("stream_is_missing");
    streams.order("create", &streams.name, &json!({}));
    let setup = Setup::new(&streams.table().text("topology", "check"));
    let missing = format!("the stream {} does not exist", streams.own());
    let done = setup.run(&["check", "--connect"]);
    assert_eq!(done.status.code(), Some(1), "{}", said(&done));
    assert!(said(&done).contains(&missing), "{}", said(&done));
    let daemon = setup.start();
    let sent = load(100).send(&daemon.ingress).all_accepted();
    let status = daemon.wait_until("the others flow, and the reason is shown", LIMIT, |status| {
        status.count("published") == 75 && status.text("/broker/waiting/0/reason").contains(&missing)
    });
    assert_eq!(status.count("held"), 25);
    assert_eq!(shown(&status), format!("own.{}.Trapped ({})", streams.name, streams.own()));
    assert!(status.0["broker"]["findings"].to_string().contains(&missing), "{}", status.0["broker"]);
    assert_eq!(lost_sessions(&daemon), 0);
    streams.order("create", &streams.own(), &json!({}));
    let status = daemon.wait_until_empty();
    streams.judge(&sent, &status);
    assert_eq!((lost_sessions(&daemon), setup.dead_letters()), (0, Vec::new()));
}

#[test]
fn creates_the_stream_of_a_route_again_without_a_new_session() {
    let streams = Streams::start("stream_is_deleted");
    let daemon = Setup::new(&streams.table()).start();
    load(40).send(&daemon.ingress).all_accepted();
    daemon.wait_until_empty();
    streams.order("delete", &streams.own(), &json!({}));
    let again = Load { series: Some(("again".to_owned(), 0)), ..load(40) };
    again.send(&daemon.ingress).all_accepted();
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("published"), lost_sessions(&daemon)), (80, 0), "{}", daemon.log());
    assert_eq!(streams.read(&streams.own()).len(), 10);
}

#[test]
fn waits_for_the_stream_of_a_route_that_is_full() {
    let streams = Streams::start("stream_is_full");
    streams.order("create", &streams.own(), &json!({"max_msgs": 5, "discard": "new"}));
    let setup = Setup::new(&streams.table()).text("publish.refuse_after", "0s");
    let daemon = setup.start();
    let sent = load(100).send(&daemon.ingress).all_accepted();
    let status = daemon.wait_until("all but what does not fit", LIMIT, |status| {
        status.count("published") == 80 && !shown(status).is_empty()
    });
    assert!(shown(&status).ends_with(&format!("({})", streams.own())), "{}", status.0["broker"]);
    streams.order("update", &streams.own(), &json!({"max_msgs": -1, "discard": "old"}));
    let status = daemon.wait_until_empty();
    streams.judge(&sent, &status);
    assert_eq!((lost_sessions(&daemon), setup.dead_letters()), (0, Vec::new()));
}

/// The stream of the route exists, but another one takes its subject.
#[test]
fn keeps_what_another_stream_takes_until_a_reload_sends_it_there() {
    let streams = Streams::start("wrong_stream");
    streams.create();
    let subject = format!("{}.{{event}}", streams.name);
    let wrong = streams.main().route(&[("event", "Trapped"), ("stream", &streams.own()), ("subject", &subject)]);
    let setup = Setup::new(&wrong.text("topology", "check")).text("publish.refuse_after", "1h");
    let takes =
        format!("the stream {} takes own.{}.>, nothing of {}.{{..}}", streams.own(), streams.name, streams.name);
    let done = setup.run(&["check", "--connect"]);
    let text = said(&done);
    assert!(text.contains(&takes), "not {takes:?} in: {text}");
    assert_eq!(done.status.code(), Some(1), "{text}");
    let daemon = setup.start();
    let sent = load(100).send(&daemon.ingress).all_accepted();
    let status = daemon.wait_until("the others flow", LIMIT, |status| {
        status.count("published") == 75 && status.text("/broker/waiting/0/reason").contains("stream")
    });
    assert_eq!((status.count("held"), status.count("dead_lettered")), (25, 0));
    setup.clone().with_broker(&streams.main().text("topology", "check")).file();
    daemon.reload();
    let status = daemon.wait_until_empty();
    assert_eq!(streams.read(&streams.name).len(), 100);
    streams.judge(&sent, &status);
    assert_eq!(setup.dead_letters(), [Value::Null; 0]);
}

/// The stream exists, and takes none of the subjects.
#[test]
fn misses_a_main_stream_that_takes_the_subjects() {
    let streams = Streams::start("takes_nothing");
    streams.order("create", &streams.name, &json!({}));
    for topology in ["declare", "check"] {
        let other = streams.main().text("subject", format!("other.{}.{{event}}", streams.name));
        let done = Setup::new(&other.text("topology", topology)).run(&["check", "--connect"]);
        let text = said(&done);
        let missing = format!(
            "missing: the stream {} takes {}.>, nothing of other.{}.{{..}}: its events will be refused",
            streams.name, streams.name, streams.name
        );
        assert!(text.contains(&missing), "not {missing:?} in: {text}");
        assert_eq!(done.status.code(), Some(1), "{text}");
    }
}

/// The server would refuse the stream that a start creates.
#[test]
fn misses_a_stream_that_cannot_be_created() {
    let streams = Streams::start("cannot_be_created");
    let checked = |table: &Table, why: &str| {
        let done = Setup::new(table).run(&["check", "--connect"]);
        let text = said(&done);
        let missing = format!("missing: the stream {} does not exist and cannot be created: {why}", streams.name);
        assert!(text.contains(&missing), "not {missing:?} in: {text}");
        assert!(!text.contains("will be created"), "{text}");
        assert_eq!(done.status.code(), Some(1), "{text}");
    };
    let replicas = "`stream_replicas` is 3, but the server is in no cluster";
    checked(&streams.main().raw("stream_replicas", "3"), replicas);
    let (own, subject) = (streams.own(), format!("own.{}.{{event}}", streams.name));
    streams.order("create", &own, &json!({}));
    let taken = format!("the stream {own} takes own.{}.>, or a part of it", streams.name);
    checked(&streams.main().text("subject", subject), &taken);
}

#[test]
fn moves_a_route_to_another_stream_under_load() {
    let streams = Streams::start("moved_stream");
    let setup = Setup::new(&streams.main());
    let daemon = setup.start();
    let load = Load { rate: 500, again: true, ..load(u64::MAX) };
    let running = load.start(&daemon.ingress);
    let flows = |what: &str| {
        let before = daemon.status().count("published");
        daemon.wait_until(what, LIMIT, |status| status.count("published") > before + 200);
    };
    flows("events flow");
    let other = format!("{}_other", streams.name);
    let subject = format!("other.{}.{{event}}", streams.name);
    let moved = streams.main().route(&[("event", "Trapped"), ("stream", &other), ("subject", &subject)]);
    for table in [&streams.table(), &moved] {
        setup.clone().with_broker(table).file();
        assert_eq!(daemon.reload().text("/reload/result"), "success");
        flows("events flow after the reload");
    }
    let sent = running.end().all_accepted();
    let status = daemon.wait_until_empty();
    let counts: Vec<usize> = [&streams.own(), &other].map(|name| streams.read(name).len()).into();
    assert!(counts.iter().all(|count| *count > 30), "{counts:?}");
    let mut delivered = streams.read(&streams.name);
    delivered.extend(streams.read(&streams.own()));
    delivered.extend(streams.read(&other));
    // Another subject is another place: the order of a key holds in each.
    let oracle = Oracle { sent: &sent, delivered: &delivered, dead: &[], out_of_order: 0 };
    assert_eq!(oracle.judge(), 0, "repeats");
    oracle.agrees_with(&status);
    assert_eq!(lost_sessions(&daemon), 0);
}

/// A route that names a stream where there is none, and none that is legal.
#[test]
fn says_which_stream_of_a_route_is_wrong() {
    let route = |broker: &'static str, more: &[(&str, &str)]| {
        let mut settings = vec![("event", "E")];
        settings.extend_from_slice(more);
        let done = Setup::new(&Table::new(broker).route(&settings)).run(&["check"]);
        assert_eq!(done.status.code(), Some(78), "{}", said(&done));
        said(&done)
    };
    for broker in ["kafka", "rabbitmq"] {
        let text = route(broker, &[("stream", "S")]);
        assert!(
            text.contains(&format!("`broker.{broker}.routes[0].stream`")) && text.contains("unknown key"),
            "{text}"
        );
    }
    let text = route("nats", &[("stream", "a.b"), ("subject", "other.{event}")]);
    assert!(text.contains("`broker.nats.routes[0].stream`") && text.contains("not a legal stream name"), "{text}");
}

/// A server that does not know of a stream does not end the session, as long as the main one stands.
#[test]
fn publishes_to_the_main_stream_while_nobody_may_ask_about_the_other() {
    let name = unique("nobody_may_ask");
    let deny = ["INFO", "CREATE"].map(|what| format!("\"$JS.API.STREAM.{what}.{name}_own\"")).join(", ");
    let users = format!(
        "authorization {{ users: [ {{ user: anonymous, password: anonymous }}, {{ user: limited, password: limited-secret, \
         permissions: {{ publish: {{ deny: [{deny}] }} }} }} ] }}"
    );
    let broker = Broker::start(Kind::Nats, ports(2), &[("NATS_CONF", users)]);
    let streams = Streams { broker, name };
    let table = streams.table().text("username", "limited").text("password", "limited-secret");
    let setup = Setup::new(&table).text("publish.refuse_after", "2s");
    let daemon = setup.start();
    load(100).send(&daemon.ingress).all_accepted();
    let status = daemon
        .wait_until("the main stream is served", Duration::from_secs(10), |status| status.count("published") == 75);
    assert!(status.0["broker"]["findings"].to_string().contains("the user limited may not publish to $JS.API"));
    let payload = Payload { event: "Trapped".to_owned(), ..Payload::new("late") };
    assert_eq!(request_once(&daemon, &payload.body(), &[]).status, 200);
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("dead_lettered"), lost_sessions(&daemon)), (26, 0));
}

/// Without a leader it has no listener either, and these credentials cannot tell that from a stream that is missing.
#[test]
fn waits_for_the_stream_of_a_route_that_has_stored_events_where_nobody_may_ask_about_it() {
    let name = unique("has_stored_events");
    let users = format!(
        "authorization {{ users: [ {{ user: anonymous, password: anonymous }}, {{ user: limited, password: limited-secret, \
         permissions: {{ publish: {{ deny: [\"$JS.API.STREAM.INFO.{name}_own\"] }} }} }} ] }}\nno_auth_user: anonymous"
    );
    let broker = Broker::start(Kind::Nats, ports(2), &[("NATS_CONF", users)]);
    let streams = Streams { broker, name };
    streams.create();
    let table = streams.table().text("username", "limited").text("password", "limited-secret");
    let setup = Setup::new(&table.text("topology", "ignore")).text("publish.refuse_after", "1s");
    let daemon = setup.start();
    load(40).send(&daemon.ingress).all_accepted();
    daemon.wait_until_empty();
    streams.order("delete", &streams.own(), &json!({}));
    let again = Load { series: Some(("again".to_owned(), 0)), ..load(40) };
    again.send(&daemon.ingress).all_accepted();
    let started = Instant::now();
    let status = daemon.wait_until("it waits for longer than an address that is wrong", LIMIT, |status| {
        status.count("published") == 70 && started.elapsed() > Duration::from_secs(5)
    });
    assert_eq!((status.count("held"), status.count("dead_lettered")), (10, 0));
    streams.order("create", &streams.own(), &json!({}));
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("published"), status.count("dead_lettered"), lost_sessions(&daemon)), (80, 0, 0));
    assert_eq!(streams.read(&streams.own()).len(), 10);
}
