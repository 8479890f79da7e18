//! Apache Kafka in the conformance suite: topics are not created by themselves, three partitions, ACLs.
//!
//! Length: the cases that all brokers share are listed here, beside those of this one.

use std::sync::OnceLock;

use parking_lot::{Condvar, Mutex};
use serde_json::{Value, json};

use super::rig::{Binding, Instance, Named, Remote, Rig, Trap, Trapped, judge};
use super::stuck::Stuck;
use crate::support::{
    Broker, Delivered, Kind, LIMIT, Load, Payload, Proxy, Setup, Table, admin, ports, read, said, unique,
};

conform! { Kafka:
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
        counts_refused_events_as_lost_without_a_state_directory
        replays_what_was_too_large_with_the_same_id
        replays_what_went_to_a_missing_address_with_the_same_id
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

/// Listeners of the shared broker that are advertised as proxies: a client follows what is advertised.
const PROXIED: u16 = 3;

/// A place on Apache Kafka.
pub(crate) struct Kafka {
    broker: Instance,
    name: String,
    proxy: Option<Proxy>,
}

struct Shared {
    broker: Broker,
    proxies: Mutex<Vec<Proxy>>,
    returned: Condvar,
}

fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        let (broker, proxies) = behind(PROXIED);
        Shared { broker, proxies: Mutex::new(proxies), returned: Condvar::new() }
    })
}

/// A broker with this many more listeners, each behind a proxy.
fn behind(count: u16) -> (Broker, Vec<Proxy>) {
    let base = ports(4 + count);
    let proxies: Vec<Proxy> = (0..count).map(|at| Proxy::to(base + 4 + at)).collect();
    let names = ["PLAINTEXT", "SASL_PLAINTEXT", "SSL", "CONTROLLER"].map(str::to_owned).into_iter();
    let names: Vec<String> = names.chain((0..count).map(|at| format!("PROXY{at}"))).collect();
    let list = |ports: &[(&String, u16)]| {
        let list: Vec<String> = ports.iter().map(|(name, port)| format!("{name}://127.0.0.1:{port}")).collect();
        list.join(",")
    };
    let bound: Vec<(&String, u16)> = names.iter().zip(base..base + 4 + count).collect();
    let outer = names[4..].iter().zip(proxies.iter().map(Proxy::port));
    let advertised: Vec<(&String, u16)> = bound[..3].iter().copied().chain(outer).collect();
    let protocol = |name: &String| match name.as_str() {
        "SASL_PLAINTEXT" | "SSL" => format!("{name}:{name}"),
        _ => format!("{name}:PLAINTEXT"),
    };
    let protocols: Vec<String> = names.iter().map(protocol).collect();
    let properties = format!(
        "listeners={}\nadvertised.listeners={}\nlistener.security.protocol.map={}\n\
         authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
         super.users=User:ANONYMOUS\nallow.everyone.if.no.acl.found=true\n",
        list(&bound),
        list(&advertised),
        protocols.join(",")
    );
    (Broker::start(Kind::Kafka, base, &[("KAFKA_PROPERTIES", properties)]), proxies)
}

impl Kafka {
    /// An order about this place, for the scripts.
    pub(super) fn order(&self, what: &Value) -> Value {
        let mut order = json!({
            "broker": "kafka",
            "bootstrap": self.broker.fact("KAFKA_SSL_BOOTSTRAP"),
            "plain": self.broker.fact("KAFKA_BOOTSTRAP"),
            "ca": self.broker.fact("KAFKA_CA"),
        });
        for (name, value) in what.as_object().into_iter().flatten() {
            order[name] = value.clone();
        }
        order
    }

    fn sasl(&self, password: &str) -> Table {
        self.table()
            .text("bootstrap_servers", self.broker.fact("KAFKA_SASL_BOOTSTRAP"))
            .text("security_protocol", "sasl_plaintext")
            .text("sasl_mechanism", "PLAIN")
            .text("username", self.broker.fact("KAFKA_USERNAME"))
            .text("password", password)
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        let shared_one = matches!(self.broker, Instance::Shared(_));
        if let Some(proxy) = self.proxy.take().filter(|_| shared_one) {
            proxy.heal();
            proxy.cut();
            shared().proxies.lock().push(proxy);
            shared().returned.notify_one();
        }
    }
}

impl Rig for Kafka {
    const BINDING: Binding = Binding { prefix: "ce_", percent: false, also_content_type: None, own: &[] };

    fn new(test: &str) -> Self {
        Self { broker: Instance::Shared(&shared().broker), name: unique(test), proxy: None }
    }

    fn table(&self) -> Table {
        let bootstrap = match &self.proxy {
            Some(proxy) => format!("127.0.0.1:{}", proxy.port()),
            None => self.broker.fact("KAFKA_BOOTSTRAP"),
        };
        Table::new("kafka")
            .text("bootstrap_servers", bootstrap)
            .text("topic", &self.name)
            .text("key", "{targetCuid}")
            .raw("partitions", "3")
            .raw("replication_factor", "1")
    }

    fn templates(&self) -> Table {
        let special = format!("{}-special", self.name);
        self.table()
            .text("topic", format!("{}-{{event}}-{{targetType}}-{{source}}", self.name))
            .text("key", "{event}|{targetType}|{source}|{cuid}|{actorCuid}|{targetCuid}")
            .route(&[("event", "Routed"), ("topic", &special), ("key", "all {targetCuid}")])
    }

    fn rendered(&self, event: &str, target_type: &str, payload: &Payload) -> (String, String) {
        let Payload { cuid, event: raw_event, target_type: raw_type, target, .. } = payload;
        (
            format!("{}-{event}-{target_type}-plextrac", self.name),
            format!("{raw_event}|{raw_type}|plextrac|{cuid}|actor-1|{target}"),
        )
    }

    fn routed(&self, payload: &Payload) -> (String, String) {
        (format!("{}-special", self.name), format!("all {}", payload.target))
    }

    fn read(&self, at_least: u64) -> Vec<Delivered> {
        read(&self.order(&json!({"prefix": self.name, "at_least": at_least})))
    }
}

impl Named for Kafka {
    fn name(&self) -> &str {
        &self.name
    }
}

impl Remote for Kafka {
    const SMALL_TRAP: Trap = Trap::TooLarge;

    fn proxied(test: &str) -> Self {
        let shared = shared();
        let mut free = shared.proxies.lock();
        let proxy = loop {
            match free.pop() {
                Some(proxy) => break proxy,
                None => shared.returned.wait(&mut free),
            }
        };
        Self { broker: Instance::Shared(&shared.broker), name: unique(test), proxy: Some(proxy) }
    }

    fn private(test: &str) -> Self {
        let broker = Broker::start(Kind::Kafka, ports(4), &[]);
        Self { broker: Instance::Own(Box::new(broker)), name: unique(test), proxy: None }
    }

    fn private_and_proxied(test: &str) -> Self {
        let (broker, mut proxies) = behind(1);
        Self { broker: Instance::Own(Box::new(broker)), name: unique(test), proxy: proxies.pop() }
    }

    fn broker(&self) -> &Broker {
        &self.broker
    }

    fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("a place made by `proxied`")
    }

    fn trap(&self, trap: Trap) -> Trapped {
        let other = format!("{}-other", self.name);
        let table = self.table().route(&[("event", "Trapped"), ("topic", &other)]);
        match trap {
            Trap::TooLarge => {
                let config = json!({"max.message.bytes": "10240"});
                admin(&self.order(&json!({"do": "create", "topic": self.name, "partitions": 3, "config": config})));
                Trapped { table: self.table(), text: "x".repeat(20_000), reason: "too_large" }
            }
            Trap::Missing => {
                self.create();
                Trapped { table: table.text("topology", "check"), text: String::new(), reason: "no_destination" }
            }
            Trap::Forbidden => {
                admin(&self.order(&json!({"do": "create", "topic": other})));
                admin(
                    &self.order(&json!({"do": "deny", "topic": other, "user": self.broker.fact("KAFKA_USERNAME")})),
                );
                let password = self.broker.fact("KAFKA_PASSWORD");
                let table = self.sasl(&password).route(&[("event", "Trapped"), ("topic", &other)]);
                Trapped { table, text: String::new(), reason: "not_authorised" }
            }
            Trap::Unroutable => unreachable!("a topic that exists takes everything"),
        }
    }

    fn with_password(&self, password: &str) -> Table {
        self.sasl(password)
    }

    fn over_tls(&self) -> Table {
        self.table()
            .text("bootstrap_servers", self.broker.fact("KAFKA_SSL_BOOTSTRAP"))
            .text("security_protocol", "ssl")
    }

    fn authority(&self) -> String {
        self.broker.fact("KAFKA_CA")
    }

    fn delete(&self) {
        admin(&self.order(&json!({"do": "delete", "topic": self.name})));
    }

    fn create(&self) {
        admin(&self.order(&json!({"do": "create", "topic": self.name, "partitions": 3})));
    }
}

#[test]
fn logs_in_with_every_mechanism() {
    for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
        let rig = Kafka::new("logs_in_with_every_mechanism");
        let setup = Setup::new(&rig.sasl(&rig.broker.fact("KAFKA_PASSWORD")).text("sasl_mechanism", mechanism));
        let daemon = setup.start();
        let sent = Load { events: 10, ..Load::default() }.send(&daemon.ingress).all_accepted();
        let status = daemon.wait_until_empty();
        assert_eq!(judge(&rig, &setup, &sent, &status, 0), 0, "repeats with {mechanism}");
    }
}

#[test]
fn declares_a_topic_with_the_partitions_of_the_settings() {
    let rig = Kafka::new("declares_a_topic");
    let daemon = Setup::new(&rig.table()).start();
    Load { events: 1, ..Load::default() }.send(&daemon.ingress).all_accepted();
    daemon.wait_until_empty();
    assert_eq!(admin(&rig.order(&json!({"do": "partitions", "topic": rig.name}))), [json!(3)]);
}

/// There is one broker.
#[test]
fn misses_a_topic_that_cannot_be_created_when_it_checks() {
    let rig = Kafka::new("cannot_be_created");
    let table = rig.table().raw("replication_factor", "3");
    for (table, missing) in [
        (table.clone(), format!("missing: the topic {} does not exist and cannot be created: ", rig.name)),
        (
            table.text("topic", format!("{}-{{event}}", rig.name)),
            format!("missing: topics such as {}-_ cannot be created: ", rig.name),
        ),
    ] {
        let done = Setup::new(&table).run(&["check", "--connect"]);
        let text = said(&done);
        assert!(
            text.contains(&missing) && text.contains("with `replication_factor` 3"),
            "not {missing:?} in: {text}"
        );
        assert_eq!(done.status.code(), Some(1), "{text}");
    }
    let done = Setup::new(&rig.table()).run(&["check", "--connect"]);
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));
}

#[test]
fn says_the_limit_of_a_topic_when_it_checks() {
    let rig = Kafka::new("says_the_limit_of_a_topic");
    let done = Setup::new(&rig.trap(Trap::TooLarge).table).run(&["check", "--connect"]);
    let text = said(&done);
    assert_eq!(done.status.code(), Some(0), "{text}");
    assert!(text.contains("10240") && text.contains("max.message.bytes"), "{text}");
}

#[test]
fn sends_with_the_present_time_where_the_topic_takes_no_old_one() {
    let rig = Kafka::proxied("sends_with_the_present_time");
    let config = json!({"message.timestamp.before.max.ms": "2000"});
    admin(&rig.order(&json!({"do": "create", "topic": rig.name, "partitions": 3, "config": config})));
    rig.proxy().refuse();
    let setup = Setup::new(&rig.table());
    let daemon = setup.start();
    let sent = Load { events: 30, keys: 3, ..Load::default() }.send(&daemon.ingress).all_accepted();
    daemon.wait_until("the events are too old", LIMIT, |status| {
        let seconds = |pointer| status.0.pointer(pointer).and_then(Value::as_f64).unwrap_or_default();
        let oldest = seconds("/buffer/oldest_event_timestamp_seconds");
        oldest > 0.0 && seconds("/time_seconds") - oldest > 5.0
    });
    rig.proxy().heal();
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("published"), status.count("dead_lettered")), (30, 0));
    let out_of_order = daemon.metric("publish_out_of_order_total", &[]);
    assert_eq!(judge(&rig, &setup, &sent, &status, out_of_order), 0, "repeats");
    let refused = status.text("/broker/last_error/text");
    assert!(refused.contains("sent again with the present time"), "{refused}");
}

#[test]
fn sends_without_a_time_where_the_topic_does_not_take_the_present_one() {
    let rig = Kafka::new("sends_without_a_time");
    let config = json!({"message.timestamp.before.max.ms": "0", "message.timestamp.after.max.ms": "0"});
    admin(&rig.order(&json!({"do": "create", "topic": rig.name, "config": config})));
    let setup = Setup::new(&rig.table());
    let daemon = setup.start();
    let sent = Load { events: 5, ..Load::default() }.send(&daemon.ingress).all_accepted();
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("published"), status.count("dead_lettered")), (5, 0));
    judge(&rig, &setup, &sent, &status, daemon.metric("publish_out_of_order_total", &[]));
}

#[test]
fn leaves_a_deleted_topic_to_its_operator_for_a_while() {
    let rig = Kafka::new("leaves_a_deleted_topic");
    let setup = Setup::new(&rig.table());
    let daemon = setup.start();
    let running = Load { events: 60_000, rate: 100, again: true, ..Load::default() }.start(&daemon.ingress);
    daemon.wait_until("events flow", LIMIT, |status| status.count("published") > 100);
    rig.delete();
    daemon.wait_until("the operator is told", 2 * LIMIT, |status| {
        status.text("/broker/last_error/text").contains("is created again if it does not return within 10 s")
    });
    admin(&rig.order(&json!({"do": "create", "topic": rig.name, "partitions": 5})));
    let published = daemon.status().count("published");
    daemon.wait_until("events flow again", LIMIT, |status| status.count("published") > published + 200);
    running.end().all_accepted();
    assert_eq!(daemon.wait_until_empty().count("dead_lettered"), 0);
    assert_eq!(admin(&rig.order(&json!({"do": "partitions", "topic": rig.name}))), [json!(5)]);
}

#[test]
fn a_topic_with_too_few_replicas_and_more_than_the_buffer_holds_stops_nobody() {
    let rig = Kafka::new("more_than_the_buffer_holds");
    let table = rig.jam();
    super::parked::stops_nobody(&rig, &table, || rig.open());
}
