//! NATS JetStream in the conformance suite: subjects, streams, permissions, the server's own deduplication.
//!
//! Length: the cases that all brokers share are listed here, beside those of this one.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::rig::{Binding, Instance, Named, Remote, Rig, Trap, Trapped, judge};
use crate::support::{
    Broker, Client, Daemon, Delivered, Kind, LIMIT, Load, Oracle, PATH, Payload, Proxy, SECRET, Setup, Status,
    Table, admin, ports, read, said, sign, unique, wait_until,
};

conform! { Nats:
    delivery {
        delivers_bodies_and_headers_unchanged
        delivers_whatever_a_genuine_payload_holds
        delivers_every_size_up_to_the_limit
        renders_addresses_and_keys_from_templates_and_routes
        keeps_the_order_of_every_key_over_10_000_events
        gives_a_repeated_request_the_same_id
        delivers_every_cuid
        delivers_equal_events_without_a_cuid_each
        sends_no_headers_when_told_so
        sends_elsewhere_after_a_reload_under_load
    }
    refusal {
        keeps_what_is_too_large_as_dead_letters
        keeps_what_goes_to_a_forbidden_address_as_dead_letters
        keeps_what_is_unroutable_as_dead_letters
        counts_refused_events_as_lost_without_a_state_directory
        replays_what_was_unroutable_with_the_same_id
        replays_what_was_forbidden_without_a_daemon
        waits_with_full_dead_letters_and_goes_on_when_they_are_moved_away
    }
    outage {
        accepts_while_the_broker_is_down_at_start
        shows_that_the_broker_went_away
        answers_503_at_once_when_the_buffer_is_full
        bounds_the_bytes_of_the_buffer
        keeps_events_through_cut_connections
        keeps_events_through_a_stalled_connection
    }
    modes {
        keeps_events_through_cut_connections_when_journaled
        keeps_events_through_cut_connections_when_published
        loses_nothing_when_it_is_killed_and_started_again
        answers_503_when_the_confirm_is_late_and_knows_the_repeat
        takes_back_what_was_not_sent_in_time
        refuses_at_once_while_the_broker_is_away_when_published
        answers_200_when_the_event_is_a_dead_letter_and_not_before
    }
    faults {
        loses_nothing_when_the_broker_is_killed_under_load
        loses_nothing_when_the_broker_hangs
    }
    topology {
        makes_again_what_was_deleted
        waits_for_what_was_deleted_until_it_is_mended
        says_what_is_missing_when_it_checks
        says_that_all_is_there_when_it_checks
    }
    access {
        says_that_credentials_are_wrong_and_shows_no_secret
        publishes_over_tls_with_a_known_authority
        refuses_a_certificate_of_an_unknown_authority
    }
    end {
        delivers_everything_before_it_ends_under_load
        keeps_what_it_could_not_deliver_for_the_next_start
        counts_what_it_could_not_deliver_as_lost
        delivers_through_a_slow_broker_before_it_ends
    }
}

/// A user who may not write to subjects with `other` as their second token; a limit above every `max_body` here but
/// that of the test of what is too large.
const CONFIGURATION: &str = r#"max_payload: 1048576
authorization { users: [
  { user: anonymous, password: anonymous }
  { user: bridge, password: bridge-secret }
  { user: limited, password: limited-secret, permissions: { publish: { deny: ["*.other.>"] } } }
] }"#;

/// A place on NATS JetStream.
pub(crate) struct Nats {
    broker: Instance,
    name: String,
    proxy: Option<Proxy>,
}

fn shared() -> &'static Broker {
    static SHARED: OnceLock<Broker> = OnceLock::new();
    SHARED.get_or_init(|| Broker::start(Kind::Nats, ports(2), &[("NATS_CONF", CONFIGURATION.to_owned())]))
}

impl Nats {
    /// A server of its own with these lines of configuration.
    fn configured(test: &str, lines: String) -> Self {
        let broker = Broker::start(Kind::Nats, ports(2), &[("NATS_CONF", lines)]);
        Self { broker: Instance::Own(Box::new(broker)), name: unique(test), proxy: None }
    }

    /// An order about this place, for the scripts.
    pub(super) fn order(&self, what: &Value) -> Value {
        let mut order = json!({"broker": "nats", "url": self.broker.fact("NATS_URL"), "stream": self.name});
        for (name, value) in what.as_object().into_iter().flatten() {
            order[name] = value.clone();
        }
        order
    }

    fn port(&self) -> u16 {
        let url = self.broker.fact("NATS_URL");
        let port = url.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        port.unwrap_or_else(|| panic!("no port in {url}"))
    }

    fn at(&self, url: &str) -> Table {
        Table::new("nats")
            .raw("servers", json!([url]).to_string())
            .text("stream", &self.name)
            .text("subject", format!("{}.{{event}}.{{targetType}}", self.name))
    }

    fn logged_in(&self, user: &str, password: &str) -> Table {
        self.at(&self.broker.fact("NATS_URL")).text("username", user).text("password", password)
    }
}

impl Rig for Nats {
    const BINDING: Binding = Binding {
        prefix: "ce-",
        percent: true,
        also_content_type: Some("ce-datacontenttype"),
        own: &["Nats-Msg-Id", "Nats-Expected-Stream"],
    };
    const DROPS_REPEATS: bool = true;

    fn new(test: &str) -> Self {
        Self { broker: Instance::Shared(shared()), name: unique(test), proxy: None }
    }

    fn table(&self) -> Table {
        match &self.proxy {
            Some(proxy) => self.at(&format!("nats://127.0.0.1:{}", proxy.port())),
            None => self.at(&self.broker.fact("NATS_URL")),
        }
    }

    fn templates(&self) -> Table {
        let special = format!("{}.special.{{targetType}}", self.name);
        self.table()
            .text("subject", format!("{}.{{event}}.{{targetType}}.{{source}}", self.name))
            .route(&[("event", "Routed"), ("subject", &special)])
    }

    fn rendered(&self, event: &str, target_type: &str, _payload: &Payload) -> (String, String) {
        (format!("{}.{event}.{target_type}.plextrac", self.name), String::new())
    }

    fn routed(&self, payload: &Payload) -> (String, String) {
        (format!("{}.special.{}", self.name, payload.target_type), String::new())
    }

    fn read(&self, _at_least: u64) -> Vec<Delivered> {
        read(&self.order(&json!({})))
    }
}

impl Named for Nats {
    fn name(&self) -> &str {
        &self.name
    }
}

impl Remote for Nats {
    const SMALL_TRAP: Trap = Trap::Unroutable;

    fn proxied(test: &str) -> Self {
        let rig = Self::new(test);
        let proxy = Some(Proxy::to(rig.port()));
        Self { proxy, ..rig }
    }

    fn private(test: &str) -> Self {
        let broker = Broker::start(Kind::Nats, ports(2), &[]);
        Self { broker: Instance::Own(Box::new(broker)), name: unique(test), proxy: None }
    }

    fn private_and_proxied(test: &str) -> Self {
        let rig = Self::private(test);
        let proxy = Some(Proxy::to(rig.port()));
        Self { proxy, ..rig }
    }

    fn broker(&self) -> &Broker {
        &self.broker
    }

    fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("a place made by `proxied`")
    }

    fn trap(&self, trap: Trap) -> Trapped {
        let own = json!([format!("{}.>", self.name)]).to_string();
        let trapped = |table, reason| Trapped { table, text: String::new(), reason };
        match trap {
            Trap::TooLarge => Trapped { text: "x".repeat(1_100_000), ..trapped(self.table(), "too_large") },
            Trap::Unroutable => {
                let subject = format!("outside.{}", self.name);
                let table = self.table().raw("stream_subjects", own);
                trapped(table.route(&[("event", "Trapped"), ("subject", &subject)]), "unroutable")
            }
            Trap::Forbidden => {
                let subject = format!("{}.other.{{event}}", self.name);
                let table = self.logged_in("limited", "limited-secret").raw("stream_subjects", own);
                trapped(table.route(&[("event", "Trapped"), ("subject", &subject)]), "not_authorised")
            }
            Trap::Missing => unreachable!("a subject outside of every stream is unroutable"),
        }
    }

    fn with_password(&self, password: &str) -> Table {
        self.logged_in("bridge", password)
    }

    fn over_tls(&self) -> Table {
        self.at(&self.broker.fact("NATS_TLS_URL"))
    }

    fn authority(&self) -> String {
        self.broker.fact("NATS_CA")
    }

    fn delete(&self) {
        admin(&self.order(&json!({"do": "delete"})));
    }

    fn create(&self) {
        admin(&self.order(&json!({"do": "create", "subjects": [format!("{}.>", self.name)]})));
    }
}

#[test]
fn says_the_limit_of_the_server_when_it_checks() {
    let rig = Nats::new("says_the_limit_of_the_server");
    let done = Setup::new(&rig.table()).text("ingress.max_body", "1280KiB").run(&["check", "--connect"]);
    let text = said(&done);
    assert_eq!(done.status.code(), Some(0), "{text}");
    assert!(text.contains("1048576") && text.contains("max_payload"), "{text}");
}

#[test]
fn waits_where_the_account_is_full() {
    let account = "accounts { A { users: [ { user: small, password: small } ], jetstream: { max_file: 30000 } } }";
    let rig = Nats::configured("waits_where_the_account_is_full", format!("{account}\nno_auth_user: small"));
    let setup = Setup::new(&rig.table());
    let daemon = setup.start();
    let sent = Load { events: 60, connections: 1, keys: 1, ..Load::default() }.send(&daemon.ingress).all_accepted();
    let is_waiting = |status: &Status| {
        status.text("/broker/state") == "waiting" && status.text("/broker/last_error/text").contains("10002")
    };
    let status = daemon.wait_until("it says that the account is full", LIMIT, is_waiting);
    assert!(status.count("published") > 0 && status.count("held") > 0, "{}", status.0["accounting"]);
    let before = rig.read(0);
    rig.delete();
    let status = daemon.wait_until_empty();
    assert_eq!(setup.dead_letters(), [Value::Null; 0]);
    let mut delivered = before;
    delivered.extend(rig.read(0));
    let oracle = Oracle { sent: &sent, delivered: &delivered, dead: &[], out_of_order: 0 };
    oracle.judge();
    oracle.agrees_with(&status);
}

#[test]
fn counts_exactly_what_is_late_where_the_server_takes_few_at_once() {
    let store = tempfile::tempdir().expect("a temporary directory can be made");
    let jetstream = format!("jetstream {{ store_dir: {:?}, max_buffered_msgs: 5 }}", store.path());
    let rig = Nats::configured("counts_exactly_what_is_late", jetstream);
    let setup = Setup::new(&rig.table());
    let daemon = setup.start();
    let sent =
        Load { events: 1_500, connections: 1, keys: 1, ..Load::default() }.send(&daemon.ingress).all_accepted();
    let status = daemon.wait_until_empty();
    assert_eq!(setup.dead_letters(), [Value::Null; 0]);
    let late = daemon.metric("publish_out_of_order_total", &[]);
    judge(&rig, &setup, &sent, &status, late);
    let delivered = rig.read(0);
    assert_eq!(Oracle { sent: &sent, delivered: &delivered, dead: &[], out_of_order: late }.late(), late);
}

/// Two sources may share a secret: then one body has one id at both. While there is one source, `Nats-Msg-Id` is the id.
#[test]
fn stores_the_same_body_of_two_sources_once_each() {
    let rig = Nats::new("same_body_of_two_sources");
    let table = rig.table().text("subject", format!("{}.{{source}}.{{event}}", rig.name));
    let one = Setup::new(&table);
    let two = one.clone().text("sources.second.path", "/second").text("sources.second.secret", SECRET);
    let post = |daemon: &Daemon, cuid: &str, paths: &[&str]| {
        let body = Payload::new(cuid).body();
        let signature = sign(SECRET, &body);
        let mut client = Client::connect(&daemon.ingress).expect("the daemon listens");
        for path in paths {
            let answer = client.send("POST", path, &[("X-Authorization-HMAC-256", &signature)], &body);
            assert_eq!(answer.expect("the daemon answers").text(), r#"{"status":"accepted"}"#, "{cuid} at {path}");
        }
        format!("{cuid}-{}", &signature[..12])
    };
    let reload = |daemon: &Daemon, setup: &Setup| {
        let connects = || daemon.log().lines().filter(|line| line.contains("\"connected\"")).count();
        let before = connects();
        setup.file();
        assert_eq!(daemon.reload().text("/reload/result"), "success");
        wait_until("it connects with what is new", LIMIT, || connects() > before);
    };
    let daemon = two.start();
    let first = post(&daemon, "first", &[PATH, "/second"]);
    assert_eq!(daemon.wait_until_empty().count("published"), 2);
    assert_eq!(rig.read(0).len(), 2, "what is counted as published is in the stream");
    reload(&daemon, &one);
    let second = post(&daemon, "second", &[PATH]);
    daemon.wait_until_empty();
    reload(&daemon, &two);
    let third = post(&daemon, "third", &[PATH, "/second"]);
    daemon.wait_until_empty();
    assert_eq!(daemon.stop().code, Some(0));
    let shown = rig.read(0).into_iter().map(|message| {
        let source = message.headers["ce-source"].clone();
        (message.headers["Nats-Msg-Id"].clone(), message.id, source)
    });
    let expected = [
        (&first, "@plextrac", "plextrac"),
        (&first, "@second", "second"),
        (&second, "", "plextrac"),
        (&third, "@plextrac", "plextrac"),
        (&third, "@second", "second"),
    ]
    .map(|(id, more, source)| (format!("{id}{more}"), id.clone(), format!("/plextrac/{source}")));
    assert_eq!(shown.collect::<Vec<_>>(), expected);
}

#[test]
fn a_full_subject_stops_neither_the_others_nor_the_journal() {
    const MOST: u64 = 1_000;
    let rig = Nats::new("a_full_subject");
    let subjects = json!([format!("{}.>", rig.name)]);
    let config = json!({"max_msgs_per_subject": MOST, "discard": "new", "discard_new_per_subject": true});
    admin(&rig.order(&json!({"do": "create", "subjects": subjects, "config": config})));
    // Smaller than what passes: it turns over several times while events wait.
    let setup = Setup::new(&rig.table()).text("ack", "journaled").text("publish.refuse_after", "0s");
    let setup = setup.text("ingress.max_body", "16KiB").text("journal.max_bytes", "1MiB");
    let setup = setup.text("journal.segment_bytes", "128KiB");
    let daemon = setup.start();
    let trapped = |every| Some((every, "Trapped", "x".repeat(100)));
    let first = Load { events: MOST, every: trapped(1), ..Load::default() }.send(&daemon.ingress).all_accepted();
    daemon.wait_until_empty();
    let second = Load {
        events: 950,
        rate: 300,
        every: trapped(50),
        text: "x".repeat(4_000),
        series: Some(("second".to_owned(), MOST)),
        ..Load::default()
    };
    let second = second.send(&daemon.ingress).all_accepted();
    let waits = |status: &Status| status.count("held") == 19 && status.count("published") == MOST + 931;
    daemon.wait_until("only what goes to the full subject waits", LIMIT, waits);
    let shown = |status: &Status| status.0["broker"]["waiting"][0]["address"].as_str().map(str::to_owned);
    let status = daemon.wait_until("it is shown", LIMIT, |status| shown(status).is_some());
    assert!(shown(&status).is_some_and(|address| address.contains("Trapped")), "{}", status.0["broker"]);
    let config = json!({"max_msgs_per_subject": -1, "discard": "old", "discard_new_per_subject": false});
    admin(&rig.order(&json!({"do": "update", "subjects": subjects, "config": config})));
    let status = daemon.wait_until_empty();
    assert_eq!(judge(&rig, &setup, &first.and(second), &status, 0), 0);
}

#[test]
fn a_subject_that_nobody_takes_and_nobody_may_ask_about_costs_no_session() {
    let users = r#"authorization { users: [
      { user: anonymous, password: anonymous }
      { user: limited, password: limited-secret, permissions: { publish: { deny: ["$JS.>"] } } }
    ] }
    no_auth_user: anonymous"#;
    let rig = Nats::configured("costs_no_session", users.to_owned());
    admin(&rig.order(&json!({"do": "create", "subjects": [format!("{}.ReportPublished.>", rig.name)]})));
    let table = rig.logged_in("limited", "limited-secret").text("topology", "ignore");
    let setup = Setup::new(&table).text("publish.refuse_after", "8s");
    let daemon = setup.start();
    let every = Some((10, "Trapped", String::new()));
    let sent = Load { events: 100, every, ..Load::default() }.send(&daemon.ingress).all_accepted();
    daemon.wait_until("the others flow", Duration::from_secs(5), |status| status.count("published") == 90);
    assert_eq!(daemon.status().count("held"), 10, "they wait for their subject first");
    let status = daemon.wait_until_empty();
    assert_eq!(daemon.metric("events_dead_lettered_total", &[("reason", "unroutable")]), 10);
    assert_eq!(daemon.metric("broker_errors_total", &[("kind", "lost")]), 0);
    judge(&rig, &setup, &sent, &status, 0);
}

/// The server says nothing of what somebody hears, and no stream acknowledges it.
#[test]
fn a_subject_that_only_a_subscriber_hears_is_unroutable_and_holds_nothing_up() {
    let rig = Nats::new("only_a_subscriber_hears");
    admin(&rig.order(&json!({"do": "create", "subjects": [format!("{}.ReportPublished.>", rig.name)]})));
    let mut subscriber = TcpStream::connect(("127.0.0.1", rig.port())).expect("the server listens");
    let login = json!({"user": "bridge", "pass": "bridge-secret", "verbose": false});
    write!(subscriber, "CONNECT {login}\r\nSUB {}.> 1\r\nPING\r\n", rig.name).expect("the server reads");
    let mut heard = BufReader::new(subscriber);
    let mut line = String::new();
    while !line.starts_with("PONG") {
        line.clear();
        assert!(heard.read_line(&mut line).is_ok_and(|length| length > 0), "no answer to the subscription");
    }
    let reader = thread::spawn(move || io::copy(&mut heard, &mut io::sink()));
    let setup = Setup::new(&rig.table()).text("publish.refuse_after", "8s");
    let daemon = setup.start();
    let every = Some((1, "Trapped", String::new()));
    let trapped = Load { events: 1, every, ..Load::default() }.send(&daemon.ingress).all_accepted();
    let series = Some(("others".to_owned(), 1));
    let sent = Load { events: 100, series, ..Load::default() }.send(&daemon.ingress).all_accepted();
    daemon.wait_until("the others flow", Duration::from_secs(5), |status| status.count("published") == 100);
    let status = daemon.wait_until("it is shown", Duration::from_secs(10), |status| {
        status.0["broker"]["waiting"][0]["reason"].as_str().is_some_and(|reason| reason.contains("does not take"))
    });
    assert_eq!(status.count("held"), 1);
    let status = daemon.wait_until_empty();
    assert_eq!(daemon.metric("events_dead_lettered_total", &[("reason", "unroutable")]), 1);
    assert_eq!(daemon.metric("broker_errors_total", &[("kind", "lost")]), 0);
    judge(&rig, &setup, &trapped.and(sent), &status, 0);
    drop(rig);
    assert!(!reader.is_finished(), "it was there all the time");
}

/// Longer apart than anything that is known of the stream counts.
#[test]
fn a_subject_that_no_stream_takes_is_wrong_however_rarely_it_is_tried() {
    let rig = Nats::new("tried_rarely");
    let setup = Setup::new(&rig.trap(Trap::Unroutable).table).text("publish.refuse_after", "1s");
    let setup = setup.text("publish.retry_min", "15s").text("publish.retry_max", "15s");
    let daemon = setup.start();
    let every = Some((10, "Trapped", String::new()));
    let sent = Load { events: 50, every, ..Load::default() }.send(&daemon.ingress).all_accepted();
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("published"), status.count("dead_lettered")), (45, 5));
    judge(&rig, &setup, &sent, &status, 0);
}

#[test]
fn a_sealed_stream_refuses_no_event() {
    let rig = Nats::new("a_sealed_stream");
    rig.create();
    let setup = Setup::new(&rig.table()).text("publish.refuse_after", "0s");
    let daemon = setup.start();
    let load = |series: &str| Load { events: 20, series: Some((series.to_owned(), 0)), ..Load::default() };
    let before = load("before").send(&daemon.ingress).all_accepted();
    daemon.wait_until_empty();
    let kept = rig.read(0);
    let config = json!({"sealed": true, "allow_rollup_hdrs": false});
    admin(&rig.order(&json!({"do": "update", "subjects": [format!("{}.>", rig.name)], "config": config})));
    let after = load("after").send(&daemon.ingress).all_accepted();
    let is_waiting = |status: &Status| {
        status.text("/broker/state") == "waiting" && status.0["broker"]["waiting"].to_string().contains("sealed")
    };
    let status = daemon.wait_until("it says that the stream is sealed", LIMIT, is_waiting);
    assert_eq!((status.count("held"), status.count("dead_lettered")), (20, 0));
    rig.delete();
    let status = daemon.wait_until_empty();
    let mut delivered = kept;
    delivered.extend(rig.read(0));
    let oracle = Oracle { sent: &before.and(after), delivered: &delivered, dead: &[], out_of_order: 0 };
    oracle.judge();
    oracle.agrees_with(&status);
}

#[test]
fn a_stop_does_not_wait_for_a_full_subject() {
    let rig = Nats::new("a_stop_does_not_wait");
    let subjects = json!([format!("{}.>", rig.name)]);
    let config = json!({"max_msgs_per_subject": 5, "discard": "new", "discard_new_per_subject": true});
    admin(&rig.order(&json!({"do": "create", "subjects": subjects, "config": config})));
    let setup = Setup::new(&rig.table()).text("shutdown.grace", "60s");
    let daemon = setup.start();
    let sent = Load { events: 12, connections: 1, keys: 1, ..Load::default() }.send(&daemon.ingress).all_accepted();
    daemon.wait_until("what does not fit waits", LIMIT, |status| {
        (status.count("published"), status.count("held")) == (5, 7)
    });
    let began = Instant::now();
    let stopped = daemon.stop();
    assert!(began.elapsed() < Duration::from_secs(20), "stopped after {:?}", began.elapsed());
    assert_eq!((stopped.code, stopped.count("held"), stopped.count("lost")), (Some(0), 7, 0));
    let config = json!({"max_msgs_per_subject": -1, "discard": "old", "discard_new_per_subject": false});
    admin(&rig.order(&json!({"do": "update", "subjects": subjects, "config": config})));
    let daemon = setup.start();
    daemon.wait_until_empty();
    Oracle { sent: &sent, delivered: &rig.read(0), dead: &[], out_of_order: 0 }.judge();
}

#[test]
fn a_full_subject_with_more_than_the_buffer_holds_stops_nobody() {
    let rig = Nats::new("more_than_the_buffer_holds");
    let order = |what: &str, config| {
        let subjects = [format!("{}.>", rig.name)];
        admin(&rig.order(&json!({"do": what, "subjects": subjects, "config": config})));
    };
    order("create", json!({"max_msgs_per_subject": 300, "discard": "new", "discard_new_per_subject": true}));
    super::parked::stops_nobody(&rig, &rig.table(), || {
        order("update", json!({"max_msgs_per_subject": -1, "discard": "old", "discard_new_per_subject": false}));
    });
}
