//! Three nodes of Apache Kafka, each broker and controller: three partitions, three replicas, two of them in sync at least.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::fault::{Fault, Moment};
use super::rig::{Place, Rig};
use crate::support::{Daemon, Kind, LIMIT, Node, Nodes, Operator, Payload, Setup, Table, request_once};

/// An operator who looks must be told within this.
const SAID: Duration = Duration::from_secs(10);

/// For what healthy topics take while another takes nothing: leaders move, and the machine is busy.
const FLOWS: Duration = Duration::from_secs(20);

/// The cluster.
pub(super) struct Kafka {
    operator: Operator,
    nodes: Nodes,
}

impl Kafka {
    fn bootstrap(&self) -> String {
        self.nodes.fact("KAFKA_CLUSTER_BOOTSTRAP").join(",")
    }
}

impl Rig for Kafka {
    const NAME: &'static str = "kafka";

    const COUNTS_EXACTLY: bool = true;

    const SHORT: &'static [Fault] =
        &[Fault::LeaderKilled, Fault::FollowersPaused, Fault::LeaderMoved, Fault::AddressRefuses];

    const ALL: &'static [Fault] = &[
        Fault::LeaderKilled,
        Fault::RollingRestart,
        Fault::LeaderPaused,
        Fault::FollowersPaused,
        Fault::MajorityGone,
        Fault::LeaderMoved,
        Fault::LeaderMovedAtLowRate,
        Fault::AddressRefuses,
        Fault::DeletedAndMadeAnew,
        Fault::PartitionsAdded,
        Fault::PasswordRenewed,
        Fault::OneEvent(Moment::LeaderKilled),
        Fault::OneEvent(Moment::LeaderRestarted),
        Fault::OneEvent(Moment::FollowersKilled),
        Fault::OneEvent(Moment::FollowersPaused),
    ];

    const KIND: Kind = Kind::Kafka;

    fn on(nodes: Nodes) -> Self {
        let bootstrap = nodes.fact("KAFKA_CLUSTER_BOOTSTRAP").join(",");
        Self { operator: Operator::start(&json!({"broker": "kafka", "bootstrap": bootstrap})), nodes }
    }

    fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    fn operator(&self) -> &Operator {
        &self.operator
    }

    fn table(&self, place: &str) -> Table {
        Table::new("kafka")
            .text("bootstrap_servers", self.bootstrap())
            .text("topic", place)
            .text("key", "{targetCuid}")
            .raw("partitions", "3")
            .raw("replication_factor", "3")
            .route(&[("event", "Trapped"), ("topic", &format!("{place}-other")), ("key", "{targetCuid}")])
    }

    fn table_with_login(&self, place: &str, user: &str, file: &Path) -> Table {
        self.table(place)
            .text("bootstrap_servers", self.nodes.fact("KAFKA_CLUSTER_SASL_BOOTSTRAP").join(","))
            .text("security_protocol", "sasl_plaintext")
            .text("sasl_mechanism", "SCRAM-SHA-256")
            .text("username", user)
            .text("password_file", file.display().to_string())
    }

    fn over_tls(&self, table: Table, _user: &str, _file: &Path) -> Table {
        table.text("security_protocol", "sasl_ssl")
    }

    fn order(&self, place: &str, at_least: u64) -> Value {
        json!({"broker": "kafka", "bootstrap": self.bootstrap(), "prefix": place, "at_least": at_least})
    }

    fn connected(&self) -> Option<Node> {
        None
    }

    fn prepare(&self, place: &str) {
        self.operator.ask(&json!({"do": "prepare", "name": place, "alive": self.nodes.alive()}));
    }

    /// Two replicas must be in sync, and there are two: the death of one is enough. The main topic has a third one.
    fn refuse(&self, _place: &str) {
        self.nodes.kill(2);
    }

    fn accept(&self, _place: &str) {
        self.nodes.up();
    }
}

/// Sends so many of these events, each with a cuid of its own; the answers.
fn send(daemon: &Daemon, event: &str, cuid: &str, count: usize) -> Vec<u16> {
    let answer = |number| {
        let payload = Payload { event: event.to_owned(), ..Payload::new(format!("{cuid}-{number}")) };
        request_once(daemon, &payload.body(), &[]).status
    };
    (0..count).map(answer).collect()
}

/// Of two topics one has too few replicas in sync.
#[test]
fn lets_other_topics_flow_while_one_has_too_few_replicas() {
    let rig = Kafka::start();
    let place = Place::new(&rig, "one_topic_waits");
    // So few that the events of one topic take every place.
    let setup = Setup::new(&place.table()).raw("publish.max_in_flight", "10");
    let daemon = setup.start();
    send(&daemon, "ReportPublished", "first", 3);
    send(&daemon, "Trapped", "first", 3);
    daemon.wait_until_empty();
    place.wait_until_whole();
    place.refuse();
    let refused = Instant::now();
    assert!(send(&daemon, "Trapped", "waits", 30).iter().all(|status| *status == 200));
    assert!(send(&daemon, "ReportPublished", "flows", 20).iter().all(|status| *status == 200));
    daemon.wait_until("the other topic flows", FLOWS, |status| status.count("published") == 26);
    let status = daemon.wait_until("it is said what waits, and why", LIMIT, |status| {
        status.text("/broker/waiting/0/reason").contains("min.insync.replicas is 2")
    });
    let waited = refused.elapsed();
    println!("said after {waited:?}: {}", status.0["broker"]);
    assert!(waited < FLOWS + SAID, "said only after {waited:?}");
    assert!(status.text("/broker/waiting/0/address").ends_with("-other"), "{}", status.0["broker"]);
    assert_eq!(daemon.metric("addresses_waiting", &[]), 1);
    daemon.wait_for_line("the line that says so", |line| {
        line["level"] == "WARN" && line["message"].as_str().is_some_and(|text| text.contains("min.insync.replicas"))
    });
    daemon.wait_until("nothing else is out", SAID, |_| daemon.metric("broker_waiting", &[]) == 1);
    reloads_and_publishes(&rig, &place, &setup, &daemon);
    place.accept();
    let status = daemon.wait_until_empty();
    assert_eq!((status.count("published"), status.count("dead_lettered")), (57, 0));
    daemon.wait_until("nothing waits", LIMIT, |status| status.0["broker"]["waiting"] == json!([]));
    daemon.wait_for_line("the end of it", |line| line["message"] == "events are confirmed again");
    assert_eq!((daemon.metric("addresses_waiting", &[]), daemon.metric("broker_waiting", &[])), (0, 0));
    let delivered = place.read(57);
    // What had been sent keeps its topic, what had not been is sent by the new routes.
    let positions = |is_there: bool| -> Vec<usize> {
        let there = delivered.iter().filter(|message| message.address.ends_with("-other") == is_there);
        let bodies: Vec<String> =
            there.map(|message| String::from_utf8_lossy(&message.body).into_owned()).collect();
        let order = (0..30).map(|number| format!("\"waits-{number}\""));
        order.filter_map(|id| bodies.iter().position(|body| body.contains(&id))).collect()
    };
    let (there, elsewhere) = (positions(true), positions(false));
    assert!(!there.is_empty() && there.len() + elsewhere.len() == 30, "{there:?} {elsewhere:?}");
    assert!(there.is_sorted() && elsewhere.is_sorted(), "not in order: {there:?} {elsewhere:?}");
}

/// A reload is in force although events wait, and in `published` only those that go there get a 503.
fn reloads_and_publishes(rig: &Kafka, place: &Place<'_, Kafka>, setup: &Setup, daemon: &Daemon) {
    let bootstrap = rig.bootstrap();
    let main = place.table();
    let setup_of_main = Table::new("kafka")
        .text("bootstrap_servers", bootstrap)
        .text("topic", main_topic(&main))
        .text("key", "{targetCuid}")
        .raw("partitions", "3")
        .raw("replication_factor", "3");
    let elsewhere = setup.clone().with_broker(&setup_of_main);
    elsewhere.file();
    assert_eq!(daemon.reload().text("/reload/result"), "success");
    assert_eq!(send(daemon, "Trapped", "elsewhere", 1), [200]);
    // At most `publish.max_in_flight` had been sent and keep their topic.
    daemon.wait_until("the new routes are in force", FLOWS, |status| status.count("held") <= 10);
    let published = Setup::new(&main).text("ack", "published");
    let other = published.start();
    assert_eq!(send(&other, "Trapped", "late", 1), [503]);
    assert!(send(&other, "ReportPublished", "published", 20).iter().all(|status| *status == 200));
    other.kill();
}

/// The topic of everything that no route takes.
fn main_topic(table: &Table) -> String {
    let toml = table.toml();
    let line = toml.lines().find_map(|line| line.strip_prefix("topic = "));
    line.expect("a table has a topic").trim_matches('"').to_owned()
}
