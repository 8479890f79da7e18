//! Three nodes of Apache Kafka, each broker and controller: three partitions, three replicas, two of them in sync at least.

use std::path::Path;

use serde_json::{Value, json};

use super::fault::Fault;
use super::rig::Rig;
use crate::support::{Kind, Node, Nodes, Operator, Table};

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
    ];

    fn start() -> Self {
        let nodes = Nodes::start(Kind::Kafka);
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
