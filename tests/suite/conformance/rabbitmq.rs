//! RabbitMQ in the conformance suite: topic exchanges, quorum queues, returns, alarms.
//!
//! Length: the cases that all brokers share are listed here, beside those of this one.

use std::net::{SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use super::rig::{Binding, Instance, Named, Remote, Rig, Trap, Trapped, judge};
use crate::support::{
    Broker, Daemon, Delivered, Kind, LIMIT, Load, Oracle, Payload, Proxy, Setup, Table, admin, heavy, ports, read,
    said, unique, wait_until,
};

conform! { Rabbitmq:
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
        keeps_what_goes_to_a_missing_address_as_dead_letters
        keeps_what_goes_to_a_forbidden_address_as_dead_letters
        keeps_what_is_unroutable_as_dead_letters
        counts_refused_events_as_lost_without_a_state_directory
        replays_what_went_to_a_missing_address_with_the_same_id
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

/// Above every `max_body` here but that of the test of what is too large.
const LARGEST: &str = "max_message_size = 1048576";

/// From the start of a daemon until it is connected, where one host of several is away.
const CONNECTED: Duration = Duration::from_secs(3);

/// A place on RabbitMQ.
pub(crate) struct Rabbitmq {
    broker: Instance,
    name: String,
    proxy: Option<Proxy>,
    /// Reading takes messages out of the queue.
    taken: Mutex<Vec<Delivered>>,
}

fn shared() -> &'static Broker {
    static SHARED: OnceLock<Broker> = OnceLock::new();
    SHARED.get_or_init(|| Broker::start(Kind::Rabbitmq, ports(8), &[("RABBITMQ_CONF", LARGEST.to_owned())]))
}

/// The URI of a user who may not write to exchanges whose name ends in `other`.
fn limited(broker: &Broker) -> String {
    static MADE: OnceLock<()> = OnceLock::new();
    MADE.get_or_init(|| {
        broker.rabbitmqctl(&["add_user", "limited", "limited-secret"]);
        broker.rabbitmqctl(&["set_permissions", "limited", ".*", "^(?!.*other$).*", ".*"]);
    });
    broker.fact("RABBITMQ_URL").replace("bridge:bridge-secret", "limited:limited-secret")
}

impl Rabbitmq {
    fn on(broker: Instance, name: String) -> Self {
        Self { broker, name, proxy: None, taken: Mutex::default() }
    }

    /// An order about this place, for the scripts.
    pub(super) fn order(&self, what: &Value) -> Value {
        let mut order = json!({"broker": "rabbitmq", "url": self.broker.fact("RABBITMQ_URL")});
        for (name, value) in what.as_object().into_iter().flatten() {
            order[name] = value.clone();
        }
        order
    }

    fn port(&self) -> u16 {
        let url = self.broker.fact("RABBITMQ_URL");
        let port = url.rsplit_once(':').and_then(|(_, rest)| rest.split('/').next()?.parse().ok());
        port.unwrap_or_else(|| panic!("no port in {url}"))
    }
}

impl Rig for Rabbitmq {
    const BINDING: Binding = Binding { prefix: "cloudEvents_", percent: false, also_content_type: None, own: &[] };

    fn new(test: &str) -> Self {
        Self::on(Instance::Shared(shared()), unique(test))
    }

    fn table(&self) -> Table {
        let mut uri = self.broker.fact("RABBITMQ_URL");
        if let Some(proxy) = &self.proxy {
            uri = uri.replace(&format!(":{}/", self.port()), &format!(":{}/", proxy.port()));
        }
        Table::new("rabbitmq").text("uri", uri).text("exchange", &self.name).text("queue", &self.name)
    }

    fn templates(&self) -> Table {
        let special = format!("{}-special", self.name);
        admin(&self.order(&json!({"do": "create", "exchange": special, "queue": special})));
        self.table().text("routing_key", "a.{event}.{targetType}.{source}").route(&[
            ("event", "Routed"),
            ("exchange", &special),
            ("routing_key", "all.{targetType}"),
        ])
    }

    fn rendered(&self, event: &str, target_type: &str, _payload: &Payload) -> (String, String) {
        (self.name.clone(), format!("a.{event}.{target_type}.plextrac"))
    }

    fn routed(&self, payload: &Payload) -> (String, String) {
        (format!("{}-special", self.name), format!("all.{}", payload.target_type))
    }

    fn read(&self, at_least: u64) -> Vec<Delivered> {
        let mut taken = self.taken.lock();
        let left = at_least.saturating_sub(taken.len() as u64);
        let queues = [self.name.clone(), format!("{}-special", self.name)];
        let order = json!({"prefix": self.name, "queues": queues, "at_least": left});
        taken.extend(read(&self.order(&order)));
        taken.clone()
    }
}

impl Named for Rabbitmq {
    fn name(&self) -> &str {
        &self.name
    }
}

impl Remote for Rabbitmq {
    const SMALL_TRAP: Trap = Trap::Unroutable;

    fn proxied(test: &str) -> Self {
        let rig = Self::new(test);
        let proxy = Some(Proxy::to(rig.port()));
        Self { proxy, ..rig }
    }

    fn private(test: &str) -> Self {
        let broker = Broker::start(Kind::Rabbitmq, ports(8), &[]);
        Self::on(Instance::Own(Box::new(broker)), unique(test))
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
        let other = format!("{}-other", self.name);
        let table = self.table().route(&[("event", "Trapped"), ("exchange", &other)]);
        let trapped = |table, reason| Trapped { table, text: String::new(), reason };
        match trap {
            Trap::TooLarge => Trapped { text: "x".repeat(1_100_000), ..trapped(self.table(), "too_large") },
            Trap::Missing => {
                self.create();
                trapped(table.text("topology", "check"), "no_destination")
            }
            Trap::Unroutable => {
                admin(&self.order(&json!({"do": "create", "exchange": other})));
                trapped(table, "unroutable")
            }
            Trap::Forbidden => {
                admin(&self.order(&json!({"do": "create", "exchange": other})));
                trapped(table.text("uri", limited(&self.broker)), "not_authorised")
            }
        }
    }

    fn with_password(&self, password: &str) -> Table {
        let uri = self.broker.fact("RABBITMQ_URL").replace("bridge-secret", password);
        self.table().text("uri", uri)
    }

    fn over_tls(&self) -> Table {
        self.table().text("uri", self.broker.fact("RABBITMQ_TLS_URL"))
    }

    fn authority(&self) -> String {
        self.broker.fact("RABBITMQ_CA")
    }

    fn delete(&self) {
        admin(&self.order(&json!({"do": "delete", "queue": self.name})));
    }

    fn create(&self) {
        admin(&self.order(&json!({"do": "create", "exchange": self.name, "queue": self.name})));
    }
}

#[test]
fn waits_through_a_memory_alarm() {
    let _one = heavy();
    let rig = Rabbitmq::private("waits_through_a_memory_alarm");
    let setup = Setup::new(&rig.table());
    let daemon = setup.start();
    let before = Load { events: 200, ..Load::default() }.send(&daemon.ingress).all_accepted();
    daemon.wait_until_empty();
    rig.broker.rabbitmqctl(&["set_vm_memory_high_watermark", "absolute", "1"]);
    let during = Load { events: 500, ..Load::default() }.send(&daemon.ingress).all_accepted();
    wait_until("the alarm is in the metrics", LIMIT, || {
        daemon.metric("broker_errors_total", &[("kind", "not_now")]) > 0
    });
    assert_eq!(daemon.get("/readyz").status, 200, "events can still be accepted");
    rig.broker.rabbitmqctl(&["set_vm_memory_high_watermark", "absolute", "1GB"]);
    let status = daemon.wait_until_empty();
    assert_eq!(status.count("dead_lettered"), 0);
    let out_of_order = daemon.metric("publish_out_of_order_total", &[]);
    judge(&rig, &setup, &before.and(during), &status, out_of_order);
    assert_eq!(daemon.stop().code, Some(0));
}

/// The refused messages since the start.
fn nacks(daemon: &Daemon) -> u64 {
    daemon.metric("broker_errors_total", &[("kind", "not_now")])
}

#[test]
fn takes_another_channel_where_one_goes_on_refusing() {
    let rig = Rabbitmq::new("another_channel");
    let setup = Setup::new(&rig.table());
    let daemon = setup.start();
    let before = Load { events: 10, ..Load::default() }.send(&daemon.ingress).all_accepted();
    daemon.wait_until_empty();
    let limit = r#"{"max-length": 1, "overflow": "reject-publish"}"#;
    let pattern = format!("^{}$", rig.name);
    rig.broker.rabbitmqctl(&["set_policy", &rig.name, &pattern, limit, "--apply-to", "queues"]);
    let during = Load { events: 20, ..Load::default() }.send(&daemon.ingress).all_accepted();
    wait_until("the queue refuses", LIMIT, || nacks(&daemon) > 0);
    // The queue takes messages again, and does not say so to the channels that it has refused.
    rig.broker.rabbitmqctl(&["clear_policy", &rig.name]);
    let status = daemon.wait_until_empty();
    assert_eq!(status.count("dead_lettered"), 0);
    let out_of_order = daemon.metric("publish_out_of_order_total", &[]);
    judge(&rig, &setup, &before.and(during), &status, out_of_order);
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn adds_few_copies_beside_a_queue_that_refuses() {
    let rig = Rabbitmq::new("few_copies");
    rig.create();
    let full = format!("{}-full", rig.name);
    let arguments = json!({"x-queue-type": "classic", "x-max-length": 2, "x-overflow": "reject-publish"});
    let order = json!({
        "do": "create", "exchange": rig.name, "queue": full, "arguments": arguments, "binding": "Trapped.*",
    });
    admin(&rig.order(&order));
    let setup = Setup::new(&rig.table());
    let daemon = setup.start();
    let load = |events, series: &str, every| {
        let every = Some((every, "Trapped", String::new()));
        Load { events, every, series: Some((series.to_owned(), 0)), ..Load::default() }
    };
    let before = load(2, "before", 1).send(&daemon.ingress).all_accepted();
    daemon.wait_until_empty();
    let began = Instant::now();
    let after = load(500, "after", 500).send(&daemon.ingress).all_accepted();
    daemon.wait_until("the others flow", Duration::from_secs(5), |status| status.count("published") == 501);
    // Each nack is another copy in the queue that takes it.
    wait_until("the fourth nack", LIMIT, || nacks(&daemon) >= 4);
    assert!(began.elapsed() > Duration::from_secs(5), "the fourth nack after {:?}", began.elapsed());
    admin(&rig.order(&json!({"do": "delete", "queue": full})));
    let status = daemon.wait_until_empty();
    let repeats = judge(&rig, &setup, &before.and(after), &status, 0);
    assert!((3..6).contains(&repeats), "{repeats} repeats of one event");
}

#[test]
fn says_that_an_exchange_is_of_another_type() {
    let rig = Rabbitmq::new("another_type");
    let other = format!("{}-other", rig.name);
    admin(&rig.order(&json!({"do": "create", "exchange": rig.name, "type": "direct"})));
    admin(&rig.order(&json!({"do": "create", "exchange": other, "type": "fanout"})));
    let table = rig.table().text("queue", "").route(&[("event", "Routed"), ("exchange", &other)]);
    let direct = format!("the exchange `{}` is a direct exchange, not a topic exchange", rig.name);
    let fanout = format!("the exchange `{other}` is a fanout exchange, not a topic exchange");
    for topology in ["declare", "check"] {
        let setup = Setup::new(&table.clone().text("topology", topology));
        let done = setup.run(&["check", "--connect"]);
        let text = said(&done);
        assert_eq!(done.status.code(), Some(1), "{topology}: {text}");
        assert!(text.contains(&format!("missing: {direct}")), "{topology}: {text}");
        assert!(text.contains(&format!("warning: {fanout}")), "{topology}: {text}");
        let daemon = setup.start();
        let status =
            daemon.wait_until("it is connected", LIMIT, |status| status.text("/broker/state") == "connected");
        let findings = status.0["broker"]["findings"].to_string();
        assert!(findings.contains(&direct) && findings.contains(&fanout), "{topology}: {findings}");
    }
    let done = Setup::new(&table.text("topology", "ignore")).run(&["check", "--connect"]);
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));
}

/// An address that answers no attempt to connect: a listener whose queue is full.
fn silent_address() -> (SocketAddr, Socket, TcpStream) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let only = TcpStream::connect(address).unwrap();
    let second = TcpStream::connect_timeout(&address, Duration::from_millis(200));
    assert!(second.is_err(), "a full queue takes another connection");
    (address, socket, only)
}

#[test]
fn connects_to_the_hosts_of_a_cluster_that_answer() {
    let _one = heavy();
    let rig = Rabbitmq::new("hosts_that_answer");
    let (silent, _listener, _only) = silent_address();
    let good = rig.broker.fact("RABBITMQ_URL").replace("bridge:bridge-secret@", "");
    let vhost = good.rsplit_once('/').unwrap().1;
    let closed = format!("amqp://127.0.0.1:{}/{vhost}", ports(1));
    let uris = json!([format!("amqp://{silent}/{vhost}"), closed, good]).to_string();
    let table = Table::new("rabbitmq")
        .raw("uris", uris)
        .text("username", "bridge")
        .text("password", "bridge-secret")
        .text("exchange", &rig.name)
        .text("queue", &rig.name);
    let setup = Setup::new(&table);
    let done = setup.run(&["check", "--connect"]);
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));
    let began = Instant::now();
    let daemon = setup.start();
    daemon.wait_until("it is connected", LIMIT, |status| status.text("/broker/state") == "connected");
    assert!(began.elapsed() < CONNECTED, "connected after {:?}", began.elapsed());
    let sent = Load { events: 20, ..Load::default() }.send(&daemon.ingress).all_accepted();
    let status = daemon.wait_until_empty();
    assert_eq!(judge(&rig, &setup, &sent, &status, 0), 0);
}

#[test]
fn a_full_queue_with_more_than_the_buffer_holds_stops_nobody() {
    let rig = Rabbitmq::new("more_than_the_buffer_holds");
    rig.create();
    let full = format!("{}-full", rig.name);
    let arguments = json!({"x-queue-type": "classic", "x-max-length": 2, "x-overflow": "reject-publish"});
    let order = json!({
        "do": "create", "exchange": rig.name, "queue": full, "arguments": arguments, "binding": "Trapped.*",
    });
    admin(&rig.order(&order));
    super::parked::stops_nobody(&rig, &rig.table(), || {
        admin(&rig.order(&json!({"do": "delete", "queue": full})));
    });
}

#[test]
fn goes_on_without_the_exchange_of_a_route_that_it_may_not_make() {
    let rig = Rabbitmq::new("may_not_make");
    let other = format!("{}-other", rig.name);
    rig.create();
    admin(&rig.order(&json!({"do": "create", "exchange": other})));
    rig.broker.rabbitmqctl(&["add_user", "writer", "writer-secret"]);
    rig.broker.rabbitmqctl(&["set_permissions", "writer", "^$", ".*", ".*"]);
    let uri = rig.broker.fact("RABBITMQ_URL").replace("bridge:bridge-secret", "writer:writer-secret");
    let table = rig.table().text("uri", uri).route(&[("event", "Trapped"), ("exchange", &other)]);
    let setup = Setup::new(&table).text("publish.refuse_after", "1s");
    let daemon = setup.start();
    daemon.wait_until("it is connected", LIMIT, |status| status.text("/broker/state") == "connected");
    admin(&rig.order(&json!({"do": "delete", "exchange": other})));
    let every = Some((51, "Trapped", String::new()));
    let sent = Load { events: 51, every, ..Load::default() }.send(&daemon.ingress).all_accepted();
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("published"), status.count("dead_lettered")), (50, 1));
    assert_eq!(setup.dead_letters()[0]["reason"], "no_destination");
    let findings = status.0["broker"]["findings"].to_string();
    assert!(findings.contains(&format!("cannot create the exchange `{other}`")), "{findings}");
    judge(&rig, &setup, &sent, &status, 0);
}

/// Suspends the process of a quorum queue, or lets it go on: meanwhile it neither confirms nor refuses.
fn change_queue(broker: &Broker, queue: &str, change: &str) {
    broker.rabbitmqctl(&[
        "eval",
        &format!(
            "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{queue}\">>)), \
             {{Name, _}} = amqqueue:get_pid(Q), sys:{change}(whereis(Name))."
        ),
    ]);
}

#[test]
fn a_queue_that_is_silent_holds_up_no_other_address() {
    let rig = Rabbitmq::new("a_silent_queue");
    rig.create();
    let own = |what: &str| format!("{}-{what}", rig.name);
    let (silent, full, nowhere) = (own("silent"), own("full"), own("nowhere"));
    for name in [&silent, &full] {
        admin(&rig.order(&json!({"do": "create", "exchange": name, "queue": name})));
    }
    admin(&rig.order(&json!({"do": "create", "exchange": nowhere})));
    let limit = r#"{"max-length": 1, "overflow": "reject-publish"}"#;
    rig.broker.rabbitmqctl(&["set_policy", &full, &format!("^{full}$"), limit, "--apply-to", "queues"]);
    let route = |table: Table, event, exchange: &str| table.route(&[("event", event), ("exchange", exchange)]);
    let table = route(route(route(rig.table(), "Silent", &silent), "Full", &full), "Nowhere", &nowhere);
    let setup = Setup::new(&table).text("publish.refuse_after", "1s");
    let daemon = setup.start();
    daemon.wait_until("it is connected", LIMIT, |status| status.text("/broker/state") == "connected");
    let load = |events, event: &'static str, rate| {
        let every = (!event.is_empty()).then(|| (1, event, String::new()));
        let load = Load { events, rate, every, series: Some((unique("series"), 0)), ..Load::default() };
        load.send(&daemon.ingress).all_accepted()
    };
    let published = |what: &str, count| {
        daemon.wait_until(what, Duration::from_secs(15), |status| status.count("published") >= count);
    };
    // The first message of a channel for a queue asks the queue, and the channel waits for the answer.
    let mut sent = load(1, "Silent", 0);
    published("the queue is known", 1);
    change_queue(&rig.broker, &silent, "suspend");
    sent = sent.and(load(1, "Silent", 0)).and(load(10, "Full", 0)).and(load(100, "", 0));
    wait_until("the queue is full", LIMIT, || nacks(&daemon) > 0);
    published("the others flow", 102);
    sent = sent.and(load(5, "Nowhere", 0)).and(load(10, "", 0));
    daemon.wait_until("what is unroutable is judged", Duration::from_secs(15), |status| {
        status.count("dead_lettered") == 5
    });
    rig.broker.rabbitmqctl(&["clear_policy", &full]);
    sent = sent.and(load(100, "", 10));
    published("a queue that takes messages again stops nobody", 221);
    change_queue(&rig.broker, &silent, "resume");
    let status = daemon.wait_until_empty();
    assert!(!daemon.log().contains("lost the session"), "silence costs no session");
    let queues = [&rig.name, &silent, &full];
    let delivered = read(&rig.order(&json!({"prefix": rig.name, "queues": queues, "at_least": 222})));
    let dead = setup.dead_letters();
    let oracle = Oracle { sent: &sent, delivered: &delivered, dead: &dead, out_of_order: 0 };
    assert_eq!(oracle.judge(), 0, "silence costs no copies");
    oracle.agrees_with(&status);
}

/// A node that is cut off from the others confirms nothing, and its connections live.
#[test]
fn a_node_that_confirms_nothing_for_long_is_left_for_another() {
    let rig = Rabbitmq::new("confirms_nothing");
    let nodes = [Proxy::to(rig.port()), Proxy::to(rig.port())];
    let url = rig.broker.fact("RABBITMQ_URL");
    let uri = |node: &Proxy| url.replace(&format!(":{}/", rig.port()), &format!(":{}/", node.port()));
    let uris = json!(nodes.each_ref().map(uri)).to_string();
    let table = Table::new("rabbitmq").raw("uris", uris).text("exchange", &rig.name).text("queue", &rig.name);
    let setup = Setup::new(&table).failpoints("rabbitmq.silence=8s");
    let daemon = setup.start();
    let before = Load { events: 1, ..Load::default() }.send(&daemon.ingress).all_accepted();
    daemon.wait_until_empty();
    change_queue(&rig.broker, &rig.name, "suspend");
    let after = Load { events: 1, series: Some(("after".to_owned(), 0)), ..Load::default() };
    let after = after.send(&daemon.ingress).all_accepted();
    let lines = |text: &str| daemon.log().lines().filter(|line| line.contains(text)).count();
    wait_until("it connects again", LIMIT, || lines("\"connected\"") == 2);
    nodes[0].refuse();
    change_queue(&rig.broker, &rig.name, "resume");
    let status = daemon.wait_until_empty();
    assert_eq!(lines("lost the session"), 1, "it is connected to the other one: {}", daemon.log());
    judge(&rig, &setup, &before.and(after), &status, 0);
}

/// What an address that was forbidden takes is tried on a channel of its own.
#[test]
fn a_try_that_is_confirmed_by_nothing_leads_to_another_connection() {
    let rig = Rabbitmq::new("silent_try");
    let other = format!("{}-other", rig.name);
    admin(&rig.order(&json!({"do": "create", "exchange": other, "queue": other})));
    let user = unique("permitted");
    rig.broker.rabbitmqctl(&["add_user", &user, "permitted-secret"]);
    let permit = |write| rig.broker.rabbitmqctl(&["set_permissions", &user, ".*", write, ".*"]);
    permit("^(?!.*other$).*");
    let uri = rig.broker.fact("RABBITMQ_URL").replace("bridge:bridge-secret", &format!("{user}:permitted-secret"));
    let table = rig.table().text("uri", uri).route(&[("event", "Trapped"), ("exchange", &other)]);
    let setup = Setup::new(&table).failpoints("rabbitmq.silence=3s");
    let daemon = setup.start();
    let every = Some((11, "Trapped", String::new()));
    let sent = Load { events: 11, every, ..Load::default() }.send(&daemon.ingress).all_accepted();
    daemon.wait_until("it is refused", LIMIT, |status| !status.text("/broker/waiting/0/address").is_empty());
    daemon.wait_until("the others flow", LIMIT, |status| status.count("published") == 10);
    change_queue(&rig.broker, &other, "suspend");
    permit(".*");
    wait_until("the connection is given up", LIMIT, || daemon.log().contains("no confirm for 3 s"));
    change_queue(&rig.broker, &other, "resume");
    let status = daemon.wait_until_empty();
    assert_eq!(status.count("dead_lettered"), 0);
    let queues = [&rig.name, &other];
    let delivered = read(&rig.order(&json!({"prefix": rig.name, "queues": queues, "at_least": 11})));
    let oracle = Oracle { sent: &sent, delivered: &delivered, dead: &[], out_of_order: 0 };
    oracle.judge();
    oracle.agrees_with(&status);
}
